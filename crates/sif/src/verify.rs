//! Verifying: a signature is believed when a trusted key made it, and what it says is what the file has. What it does
//! not speak of is not believed.

use std::collections::VecDeque;
use std::io::{self, Read};

use isles_openpgp::{Key, Verdict, cleartext};
use isles_spec::digest::hex;

use crate::integrity::{Difference, Metadata, digest};
use crate::pem::PublicKey;
use crate::sign::Selection;
use crate::{Data, Extra, Hash, Kind, Link, Object, Result, Sif, dsse};

/// Signatures may have this many bytes; those of a hundred objects have some 30 kB.
const LIMIT: u64 = 4 << 20;
/// How the text of a legacy signature begins.
const LEGACY: &str = "SIFHASH:\n";

/// Whom to believe. Without a keyring no OpenPGP signature is, without keys no other.
#[derive(Debug, Clone, Default)]
pub struct Trust<'a> {
    pub keyring: Option<&'a [Key]>,
    pub keys: &'a [PublicKey],
    /// The time at which keys must not have expired, seconds since 1970.
    pub now: u64,
}

/// Which of the two kinds of signatures is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Those that cover descriptors too.
    Usual,
    /// Those that cover the data of objects only, as they were made before 2020. Of the primary partition where
    /// nothing is chosen, or of all objects.
    Legacy { all: bool },
}

/// Why a file is not verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("signature not found for object group {0}")]
    UnsignedGroup(u32),
    #[error("signature not found for object {0}")]
    UnsignedObject(u32),
    #[error("object {0} is in no group, so that no signature can cover it")]
    Ungrouped(u32),
    #[error("there is nothing to verify")]
    Nothing,
    #[error("object {0}: signature format not recognized")]
    Format(u32),
    #[error("signature object {0} is an OpenPGP signature, and a key in PEM form was given")]
    NoKeyring(u32),
    #[error("signature object {0} is a DSSE envelope: key material not provided")]
    NoKeys(u32),
    #[error("signature object {signature} not valid: {reason}")]
    Invalid { signature: u32, reason: String },
    /// A key that is not in the keyring made it; `key` is its fingerprint or ID in hexadecimal.
    #[error("signature object {signature} not valid: signature made by unknown entity {key}")]
    UnknownKey { signature: u32, key: String },
    #[error("fingerprint in descriptor of object {0} does not correspond to signing entity")]
    Fingerprint(u32),
    #[error("object {0}: object not signed")]
    NotSigned(u32),
    #[error("object {0}: signed object not found")]
    Lost(u32),
    #[error("header integrity compromised")]
    Header,
    #[error("data object descriptor integrity compromised: {0}")]
    Descriptor(u32),
    #[error("data object integrity compromised: {0}")]
    Object(u32),
    #[error("data object integrity compromised: group {0}")]
    Group(u32),
}

/// One signature that was looked at.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// The ID of the signature.
    pub signature: u32,
    /// The OpenPGP key that made it, where that is known.
    pub signer: Option<Key>,
    /// The other keys that made it.
    pub keys: Vec<PublicKey>,
    /// The objects that are as they were signed.
    pub verified: Vec<u32>,
    pub problem: Option<Problem>,
}

/// What was found: the signatures in the order in which they were looked at, up to the first that is not good.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub checked: Vec<Checked>,
    pub problem: Option<Problem>,
}

impl Report {
    /// The objects, signatures aside, that nothing speaks for.
    pub fn uncovered(&self, sif: &Sif) -> Vec<u32> {
        let covered = |id: u32| self.checked.iter().any(|checked| checked.verified.contains(&id));
        let objects = sif.objects().iter().filter(|object| object.kind != Kind::Signature);
        objects.map(|object| object.id).filter(|id| !covered(*id)).collect()
    }

    /// The fingerprints of the primary keys that have signed every part that was to be verified.
    pub fn signers(&self) -> Vec<[u8; 20]> {
        let mut all: Vec<[u8; 20]> =
            self.checked.iter().filter_map(|c| Some(c.signer.as_ref()?.primary)).collect();
        all.sort_unstable();
        all.dedup();
        let speaks = |primary: &[u8; 20], id: u32| {
            let by = self.checked.iter().filter(|c| c.signer.as_ref().is_some_and(|k| k.primary == *primary));
            by.flat_map(|checked| &checked.verified).any(|verified| *verified == id)
        };
        let wanted: Vec<u32> = self.checked.iter().flat_map(|checked| checked.verified.clone()).collect();
        all.retain(|primary| wanted.iter().all(|id| speaks(primary, *id)));
        all
    }
}

/// Something whose signatures are looked for.
struct Task<'a> {
    group: u32,
    objects: Vec<&'a Object>,
    /// Whether these are all that a signature may speak of.
    whole: bool,
    /// The object that a legacy signature is linked to, where it is not the group.
    single: Option<u32>,
}

/// Verifies what is chosen of a file, or every group.
pub fn verify(sif: &Sif, selection: &Selection, kinds: Kinds, trust: &Trust<'_>) -> Result<Report> {
    let mut report = Report::default();
    let ungrouped = sif.of_group(0).find(|object| object.kind != Kind::Signature);
    report.problem = ungrouped.map(|object| Problem::Ungrouped(object.id));
    if report.problem.is_some() {
        return Ok(report);
    }
    let tasks = tasks(sif, selection, kinds)?;
    if tasks.is_empty() {
        report.problem = Some(Problem::Nothing);
    }
    for task in tasks {
        let link = task.single.map_or(Link::Group(task.group), Link::Object);
        let mut found = 0;
        for object in sif.of_kind(Kind::Signature).filter(|object| object.link == link) {
            let message = sif.read(object, LIMIT)?;
            let signed = cleartext::parse(&message).ok();
            let is_legacy = signed.as_ref().is_some_and(|signed| signed.text.starts_with(LEGACY));
            if is_legacy != (kinds != Kinds::Usual) {
                continue;
            }
            found += 1;
            let mut checked = Checked { signature: object.id, ..Checked::default() };
            let looked = match (&signed, trust.keyring) {
                (Some(signed), Some(keyring)) => by_openpgp(signed, keyring, trust.now, object, &mut checked),
                (Some(_), None) => Err(Problem::NoKeyring(object.id)),
                (None, _) if !dsse::is_envelope(&message) => Err(Problem::Format(object.id)),
                (None, _) if trust.keys.is_empty() => Err(Problem::NoKeys(object.id)),
                (None, _) => by_envelope(&message, trust.keys, object, &mut checked),
            };
            checked.problem = match looked {
                Err(problem) => Some(problem),
                Ok(text) if is_legacy => legacy(sif, &task, object, &text)?,
                Ok(text) => usual(sif, &task, object, &text, &mut checked.verified)?,
            };
            if checked.problem.is_none() {
                checked.verified = task.objects.iter().map(|object| object.id).collect();
            }
            report.problem.clone_from(&checked.problem);
            report.checked.push(checked);
            if report.problem.is_some() {
                return Ok(report);
            }
        }
        if found == 0 {
            let problem = task.single.map_or(Problem::UnsignedGroup(task.group), Problem::UnsignedObject);
            report.problem = Some(problem);
            return Ok(report);
        }
    }
    Ok(report)
}

fn tasks<'a>(sif: &'a Sif, selection: &Selection, kinds: Kinds) -> Result<Vec<Task<'a>>> {
    let mut groups = selection.groups.clone();
    let mut objects = selection.objects.clone();
    let is_open = groups.is_empty() && objects.is_empty();
    match kinds {
        Kinds::Legacy { all: true } => {
            let all = sif.objects().iter().filter(|o| o.kind != Kind::Signature && o.group != 0);
            objects.extend(all.map(|object| object.id));
            objects.sort_unstable();
            objects.dedup();
        }
        Kinds::Legacy { all: false } if is_open => objects.extend(sif.primary().map(|object| object.id)),
        Kinds::Usual if is_open => groups = sif.groups(),
        _ => {}
    }
    let mut tasks = Vec::new();
    for group in groups {
        let mut members: Vec<&Object> = sif.of_group(group).collect();
        if group == 0 || members.is_empty() {
            let what = format!("group {group}");
            return Err(crate::Error::Missing { object: sif.name().to_owned(), what });
        }
        members.sort_by_key(|object| object.slot);
        tasks.push(Task { group, objects: members, whole: true, single: None });
    }
    for id in objects {
        let object = sif.object(id)?;
        let single = (kinds != Kinds::Usual).then_some(id);
        tasks.push(Task { group: object.group, objects: vec![object], whole: false, single });
    }
    Ok(tasks)
}

/// The text that an OpenPGP key of the keyring has signed.
fn by_openpgp(
    signed: &cleartext::Signed,
    keyring: &[Key],
    now: u64,
    object: &Object,
    checked: &mut Checked,
) -> std::result::Result<Vec<u8>, Problem> {
    let invalid = |reason: &str| Problem::Invalid { signature: object.id, reason: reason.to_owned() };
    let mut problem = invalid("it holds no signature");
    for signature in &signed.signatures {
        problem = match signature.verify(keyring, &signed.canonical, now) {
            Verdict::Good => {
                let good = |key: &&Key| {
                    let alone = std::slice::from_ref(*key);
                    signature.verify(alone, &signed.canonical, now) == Verdict::Good
                };
                let Some(key) = keyring.iter().find(good) else { continue };
                checked.signer = Some(key.clone());
                let Extra::Signature { fingerprint, .. } = object.extra else {
                    return Err(Problem::Format(object.id));
                };
                // The one who is named in the descriptor is the one whom people are shown.
                return if fingerprint == Some(key.primary) {
                    Ok(signed.text.clone().into_bytes())
                } else {
                    Err(Problem::Fingerprint(object.id))
                };
            }
            Verdict::Bad => return Err(invalid("the signature does not fit its text")),
            Verdict::Expired(_) => invalid("the key or the signature has expired"),
            Verdict::Revoked => invalid("the key has been revoked"),
            Verdict::Unknown => Problem::UnknownKey { signature: object.id, key: signature.issuer_name() },
        };
    }
    Err(problem)
}

fn by_envelope(
    message: &[u8],
    keys: &[PublicKey],
    object: &Object,
    checked: &mut Checked,
) -> std::result::Result<Vec<u8>, Problem> {
    match dsse::verify(message, keys) {
        Ok((payload, keys)) => {
            checked.keys = keys;
            Ok(payload)
        }
        Err(reason) => Err(Problem::Invalid { signature: object.id, reason: reason.to_owned() }),
    }
}

/// Holds the file against what a signature says.
fn usual(
    sif: &Sif,
    task: &Task<'_>,
    signature: &Object,
    text: &[u8],
    verified: &mut Vec<u32>,
) -> Result<Option<Problem>> {
    let Some(metadata) = Metadata::from_json(text) else {
        let reason = "what is signed does not describe an image".to_owned();
        return Ok(Some(Problem::Invalid { signature: signature.id, reason }));
    };
    let first = sif.first_id(task.group).unwrap_or_default();
    let signed: Vec<Option<u32>> =
        metadata.objects.iter().map(|o| first.checked_add(o.relative_id)).collect();
    if let Some(object) = task.objects.iter().find(|object| !signed.contains(&Some(object.id))) {
        return Ok(Some(Problem::NotSigned(object.id)));
    }
    if task.whole {
        let lost = signed.iter().find(|id| !task.objects.iter().any(|object| Some(object.id) == **id));
        if let Some(id) = lost {
            return Ok(Some(Problem::Lost(id.unwrap_or(u32::MAX))));
        }
    }
    for object in &task.objects {
        match metadata.compare(sif, first, &[object])? {
            None => verified.push(object.id),
            Some(Difference::Header) => return Ok(Some(Problem::Header)),
            Some(Difference::Descriptor(id)) => return Ok(Some(Problem::Descriptor(id))),
            Some(Difference::Object(id)) => return Ok(Some(Problem::Object(id))),
        }
    }
    Ok(None)
}

/// Holds the data of objects against the one hash in a legacy signature.
fn legacy(sif: &Sif, task: &Task<'_>, signature: &Object, text: &[u8]) -> Result<Option<Problem>> {
    let algorithm = match signature.extra {
        Extra::Signature { hash: Hash::Sha256, .. } => "sha256",
        Extra::Signature { hash: Hash::Sha384, .. } => "sha384",
        Extra::Signature { hash: Hash::Sha512, .. } => "sha512",
        _ => return Ok(Some(Problem::Format(signature.id))),
    };
    let text = String::from_utf8_lossy(text);
    let claimed = text.strip_prefix(LEGACY).unwrap_or_default().trim_end();
    let mut all = OneAfterAnother(task.objects.iter().map(|object| sif.reader(object)).collect());
    let found = digest(algorithm, &mut all).map_err(|e| crate::Error::io("read", sif.name(), e))?;
    if found.is_some_and(|found| found.eq_ignore_ascii_case(claimed)) {
        return Ok(None);
    }
    Ok(Some(task.single.map_or(Problem::Group(task.group), Problem::Object)))
}

/// The data of several objects.
struct OneAfterAnother<'a>(VecDeque<Data<'a>>);

impl Read for OneAfterAnother<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(first) = self.0.front_mut() {
            match first.read(buffer)? {
                0 if !buffer.is_empty() => self.0.pop_front(),
                n => return Ok(n),
            };
        }
        Ok(0)
    }
}

/// A fingerprint as people are shown it.
pub fn fingerprint_text(fingerprint: &[u8; 20]) -> String {
    hex(fingerprint).to_uppercase()
}
