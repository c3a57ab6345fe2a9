//! `apptainer verify`: who signed a SIF file, and whether it is what they signed.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;

use isles_openpgp::{Certificate, Key};
use isles_sif::{Checked, Kinds, Link, Problem, PublicKey, Report, Selection, Sif, Trust};
use serde::Serialize;

use crate::certificate;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::{Keys, Part};

use super::key::{KEYSDIR, URL};
use super::sign::{GROUP, OBJECT, OLD_GROUP, OLD_OBJECT, prefixed, selection};

static ALL: Flag = Flag::switch("all", "verify all objects").short('a');
static CERTIFICATE: Flag =
    Flag::text("certificate", "path", "verify with the key of this certificate").env(&["VERIFY_CERTIFICATE"]);
static INTERMEDIATES: Flag =
    Flag::text("certificate-intermediates", "path", "certificates between that and an authority")
        .env(&["VERIFY_INTERMEDIATES"]);
static ROOTS: Flag =
    Flag::text("certificate-roots", "path", "the authorities to trust, instead of the machine's")
        .env(&["VERIFY_ROOTS"]);
static OCSP: Flag =
    Flag::switch("ocsp-verify", "ask whether certificates were revoked").env(&["VERIFY_OCSP"]);
static KEY: Flag =
    Flag::text("key", "path", "verify with the public key in this PEM file").env(&["VERIFY_KEY"]);
static LOCAL: Flag =
    Flag::switch("local", "with the keys that are here; ask no key server").short('l').env(&["LOCAL_VERIFY"]);
static JSON: Flag = Flag::switch("json", "print the result as JSON").short('j');
static LEGACY: Flag =
    Flag::switch("legacy-insecure", "believe the old signatures, which cover the data of objects only");

pub static COMMAND: Command = Command {
    usage: "verify [verify options...] <image path>",
    short: "Verify digital signatures within an image",
    long: "Every group of objects must have a signature of a key that is trusted, and be what was signed. Trusted are the\n\
           keys of the caller's keyring, those of the machine's, and unless --local says otherwise what a key server\n\
           has under the fingerprint in the signature.",
    examples: "apptainer verify container.sif\napptainer verify --key public.pem container.sif",
    flags: &[&[
        &ALL,
        &CERTIFICATE,
        &INTERMEDIATES,
        &ROOTS,
        &GROUP,
        &OLD_GROUP,
        &OLD_OBJECT,
        &JSON,
        &KEY,
        &KEYSDIR,
        &LEGACY,
        &LOCAL,
        &OCSP,
        &OBJECT,
        &URL,
    ]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

/// Where a key is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Global,
    Local,
    Remote,
}

/// Whom to believe, and where each is known from.
#[derive(Default)]
struct Believed {
    keys: Vec<Key>,
    origins: Vec<Known>,
}

impl Believed {
    fn add(&mut self, certificates: &[Certificate], origin: Known) {
        for certificate in certificates {
            // A key that cannot be read verifies nothing.
            let keys = certificate.keys().unwrap_or_default();
            self.origins.extend(keys.iter().map(|_| origin));
            self.keys.extend(keys);
        }
    }

    fn origin(&self, key: &Key) -> Known {
        let at = self.keys.iter().position(|known| known.fingerprint == key.fingerprint);
        at.map_or(Known::Remote, |at| self.origins[at])
    }
}

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let path = &cx.arguments[0];
    let failed = |e: isles_sif::Error| prefixed("Failed to verify container", Failure::from(e));
    if cx.values.is(&OCSP) {
        let instead = "check with the authority, or leave --ocsp-verify out";
        return Err(Failure::unsupported(
            "asking whether a certificate was revoked (--ocsp-verify)",
            instead,
        ));
    }
    let selection = selection(cx)?;
    let kinds = if cx.values.is(&LEGACY) { Kinds::Legacy { all: cx.values.is(&ALL) } } else { Kinds::Usual };
    let mut believed = Believed::default();
    let mut pem: Vec<PublicKey> = Vec::new();
    if let Some(file) = cx.values.word(&CERTIFICATE) {
        cx.talk.info(&format!("Verifying image with key material from certificate '{file}'"));
        let (between, roots) = (cx.values.word(&INTERMEDIATES), cx.values.word(&ROOTS));
        pem.push(certificate::key_of(Path::new(file), between.map(Path::new), roots.map(Path::new))?);
    } else if let Some(file) = cx.values.word(&KEY) {
        cx.talk.info(&format!("Verifying image with key material from '{file}'"));
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|e| Failure::because(format!("Failed to load key {file}"), &e))?;
        pem.push(PublicKey::from_pem(&text, file)?);
    } else {
        cx.talk.info("Verifying image with PGP key material");
        believed.add(&Keys::global().all(Part::Public)?, Known::Global);
        believed.add(&Keys::own(cx.values.word(&KEYSDIR))?.all(Part::Public)?, Known::Local);
    }
    let file = File::open(path)
        .map_err(|e| Failure::because(format!("Failed to verify container: cannot open {path}"), &e))?;
    let sif = Sif::from_file(file, path.as_str()).map_err(failed)?;
    let report = judged(cx, &sif, &selection, kinds, &mut believed, &pem)?;
    if cx.values.is(&JSON) {
        cx.print(json(&sif, &report, &believed))?;
    } else {
        cx.print(told(&sif, &report, &believed))?;
    }
    if let Some(problem) = &report.problem {
        let hint = hint(problem);
        let failure = Failure::new(format!("Failed to verify container: {problem}"));
        return Err(Failure { hint, ..failure });
    }
    let open = report.uncovered(&sif);
    if !open.is_empty() {
        let ids: Vec<String> = open.iter().map(u32::to_string).collect();
        cx.talk.warning(&format!("Nothing vouches for object(s) {}", ids.join(", ")));
        if cx.values.is(&ALL) {
            return Err(Failure::new(format!(
                "Failed to verify container: object {} is not verified",
                ids[0]
            )));
        }
    }
    if !cx.values.is(&JSON) {
        cx.talk.info(&format!("Verified signature(s) from image '{path}'"));
    }
    Ok(0)
}

/// Verifies, and asks a key server for the keys that are missing, each once.
fn judged(
    cx: &Context<'_>,
    sif: &Sif,
    selection: &Selection,
    kinds: Kinds,
    believed: &mut Believed,
    pem: &[PublicKey],
) -> Result<Report, Failure> {
    let mut asked = Vec::new();
    loop {
        let keyring = pem.is_empty().then_some(believed.keys.as_slice());
        let trust = Trust { keyring, keys: pem, now: super::now() };
        let report = isles_sif::verify(sif, selection, kinds, &trust)
            .map_err(|e| prefixed("Failed to verify container", Failure::from(e)))?;
        let Some(Problem::UnknownKey { key, .. }) = &report.problem else { return Ok(report) };
        if cx.values.is(&LOCAL) || asked.contains(key) {
            return Ok(report);
        }
        asked.push(key.clone());
        let server = super::key::connect(cx)?;
        match server.get(key) {
            Ok(Some(bytes)) => {
                let found = Certificate::read(&bytes).unwrap_or_default();
                // A server's word that this is the key is not needed: the fingerprint says it.
                let found: Vec<_> = found.into_iter().filter(|c| speaks_for(c, key)).collect();
                believed.add(&found, Known::Remote);
            }
            Ok(None) => {}
            Err(e) => {
                cx.talk.warning(&format!("cannot ask for the key {key}: {}", Failure::from(e).line()));
                return Ok(report);
            }
        }
    }
}

fn speaks_for(certificate: &Certificate, key: &str) -> bool {
    let keys = certificate.keys().unwrap_or_default();
    keys.iter().any(|known| isles_sif::fingerprint_text(&known.fingerprint).ends_with(key))
}

fn hint(problem: &Problem) -> Option<String> {
    let hint = match problem {
        Problem::UnsignedGroup(_) | Problem::UnsignedObject(_) => {
            "nobody signed this; old signatures are looked at with --legacy-insecure"
        }
        Problem::UnknownKey { .. } => "get the key with `key pull` or `key import`, if you trust its owner",
        Problem::NoKeys(_) => "give the key that it was signed with, by --key or --certificate",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The report for people, as Apptainer prints it.
fn told(sif: &Sif, report: &Report, believed: &Believed) -> String {
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = String::new();
    for checked in &report.checked {
        if let Some(signer) = &checked.signer {
            let (word, code) = match believed.origin(signer) {
                Known::Global => ("[GLOBAL]", 36),
                Known::Local => ("[LOCAL]", 32),
                Known::Remote => ("[REMOTE]", 33),
            };
            let word = if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
            text.push_str(&format!("{word:<18} Signing entity: {}\n", signer.owner));
            let fingerprint = isles_sif::fingerprint_text(&signer.primary);
            text.push_str(&format!("{word:<18} Fingerprint: {fingerprint}\n"));
        }
        if !checked.verified.is_empty() {
            text.push_str(&format!("Objects verified:\n{:<4}|{:<8}|{:<8}|TYPE\n", "ID", "GROUP", "LINK"));
            text.push_str(&format!("{}\n", "-".repeat(48)));
        }
        for object in verified(sif, checked) {
            let group = if object.group == 0 { "NONE".to_owned() } else { object.group.to_string() };
            let link = match object.link {
                Link::None => "NONE".to_owned(),
                Link::Group(group) => format!("{group} (G)"),
                Link::Object(id) => id.to_string(),
            };
            text.push_str(&format!("{:<4}|{group:<8}|{link:<8}|{}\n", object.id, object.kind.name()));
        }
        if let Some(problem) = &checked.problem {
            text.push_str(&format!("\nError encountered during signature verification: {problem}\n"));
        }
    }
    text
}

fn verified<'a>(sif: &'a Sif, checked: &Checked) -> impl Iterator<Item = &'a isles_sif::Object> {
    checked.verified.clone().into_iter().filter_map(|id| sif.object(id).ok())
}

/// The names are Apptainer's.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyList {
    signatures: usize,
    signer_keys: Option<Vec<SignerKey>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SignerKey {
    signer: Signer,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Signer {
    partition: &'static str,
    name: String,
    fingerprint: String,
    key_local: bool,
    key_check: bool,
    data_check: bool,
}

/// The report for programs: what each signature says about each object.
fn json(sif: &Sif, report: &Report, believed: &Believed) -> String {
    let mut keys = Vec::new();
    for checked in &report.checked {
        let signer = checked.signer.as_ref();
        let entry = |object: &isles_sif::Object, data_check| SignerKey {
            signer: Signer {
                partition: object.kind.name(),
                name: signer.map_or_else(|| "unknown".to_owned(), |key| key.owner.clone()),
                fingerprint: signer.map(|key| isles_spec::digest::hex(&key.primary)).unwrap_or_default(),
                key_local: signer.is_some_and(|key| believed.origin(key) == Known::Local),
                key_check: signer.is_some(),
                data_check,
            },
        };
        keys.extend(verified(sif, checked).map(|object| entry(object, true)));
        if let Some(Problem::Object(id)) = &checked.problem
            && let Ok(object) = sif.object(*id)
        {
            keys.push(entry(object, false));
        }
    }
    let list =
        KeyList { signatures: report.checked.len(), signer_keys: Some(keys).filter(|k| !k.is_empty()) };
    // Strings and numbers only: there is nothing that JSON cannot say.
    serde_json::to_string_pretty(&list).unwrap_or_default() + "\n"
}
