//! `apptainer sign`: adds signatures to a SIF file.

use std::fs;
use std::path::Path;

use isles_openpgp::{Certificate, SigningKey};
use isles_sif::{Editor, PrivateKey, Selection, Signer};

use crate::ask;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::{Keys, Part, listed};

use super::key::KEYSDIR;

pub static GROUP: Flag = Flag::number("group-id", "the objects of this group").short('g');
pub static OLD_GROUP: Flag =
    Flag::number("groupid", "the objects of this group").deprecated("use '--group-id'");
pub static OBJECT: Flag = Flag::number("sif-id", "the object with this ID").short('i');
pub static OLD_OBJECT: Flag = Flag::number("id", "the object with this ID").deprecated("use '--sif-id'");
static KEY: Flag = Flag::text("key", "path", "sign with the private key in this PEM file").env(&["SIGN_KEY"]);
static INDEX: Flag =
    Flag::number("keyidx", "sign with this key of 'key list --secret', counted from 0").short('k');
static ALL: Flag = Flag::switch("all", "sign all objects").short('a').deprecated("now the default behavior");

pub static COMMAND: Command = Command {
    usage: "sign [sign options...] <image path>",
    short: "Add digital signatures to an image",
    long: "Each group of objects gets a signature of its own. They are made with a key of the caller's keyring (see 'key\n\
           newpair'), or with one in PEM form: RSA, ECDSA over P-256, Ed25519.",
    examples: "apptainer sign container.sif\napptainer sign --key private.pem container.sif",
    flags: &[&[&ALL, &GROUP, &OLD_GROUP, &OLD_OBJECT, &KEY, &INDEX, &KEYSDIR, &OBJECT]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let path = &cx.arguments[0];
    let selection = selection(cx)?;
    let failed = |e: isles_sif::Error| prefixed("Failed to sign container", Failure::from(e));
    if let Some(key) = cx.values.word(&KEY) {
        cx.talk.info(&format!("Signing image with key material from '{key}'"));
        let text =
            fs::read_to_string(key).map_err(|e| Failure::because(format!("Failed to load key {key}"), &e))?;
        let keys = [PrivateKey::from_pem(&text, key)?];
        let mut editor = Editor::open(Path::new(path)).map_err(failed)?.with_time(super::epoch());
        isles_sif::sign(&mut editor, &Signer::Pem(&keys), &selection).map_err(failed)?;
    } else {
        cx.talk.info("Signing image with PGP key material");
        let mut editor = Editor::open(Path::new(path)).map_err(failed)?.with_time(super::epoch());
        let key = chosen(cx)?;
        let now = super::epoch().map_or_else(super::now, |at| at.max(0).cast_unsigned());
        isles_sif::sign(&mut editor, &Signer::OpenPgp { key: &key, now }, &selection).map_err(failed)?;
    }
    cx.talk.info(&format!("Signature created and applied to image '{path}'"));
    Ok(0)
}

/// What of the file the flags choose.
pub fn selection(cx: &Context<'_>) -> Result<Selection, Failure> {
    let number = |flags: [&Flag; 2]| -> Result<Vec<u32>, Failure> {
        let found = flags.iter().find_map(|flag| cx.values.number(flag).map(|n| (flag, n)));
        let Some((flag, number)) = found else { return Ok(Vec::new()) };
        let odd = |_| Failure::new(format!("--{} {number} is no number of an object or group", flag.name));
        Ok(vec![u32::try_from(number).map_err(odd)?])
    };
    Ok(Selection { groups: number([&GROUP, &OLD_GROUP])?, objects: number([&OBJECT, &OLD_OBJECT])? })
}

/// The key of the keyring that is named, the only one there is, or the one that is asked for.
fn chosen(cx: &Context<'_>) -> Result<SigningKey, Failure> {
    let keys = Keys::own(cx.values.word(&KEYSDIR))?.all(Part::Secret)?;
    let wrong = |why: &str| Failure::new(format!("Failed to sign container: {why}"));
    let key = match (cx.values.number(&INDEX), keys.len()) {
        (_, 0) => return Err(wrong("keyring is empty").with_hint("make a key with `key newpair`")),
        (Some(index), _) => {
            let found = usize::try_from(index).ok().and_then(|index| keys.get(index));
            found
                .ok_or_else(|| wrong("index out of range").with_hint("`key list --secret` shows the keys"))?
        }
        (None, 1) => &keys[0],
        (None, count) => {
            cx.print(listed(&keys))?;
            &keys[ask::number("Enter # of private key to use : ", count)?]
        }
    };
    opened(key).map_err(|e| prefixed("Failed to sign container", e))
}

fn opened(key: &Certificate) -> Result<SigningKey, Failure> {
    let passphrase = if key.is_locked() { Some(ask::secret("Enter key passphrase : ")?) } else { None };
    key.open(passphrase.as_deref()).map_err(|e| Failure::because("cannot open the private key", &e))
}

/// Puts what was to be done before what went wrong.
pub fn prefixed(what: &str, mut failure: Failure) -> Failure {
    failure.message = format!("{what}: {}", failure.message);
    failure
}
