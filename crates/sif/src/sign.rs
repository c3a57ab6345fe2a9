//! Signing: one signature for each group of objects, added to the file as an object of its own.

use std::collections::BTreeMap;

use isles_openpgp::SigningKey;

use crate::integrity::Metadata;
use crate::pem::PrivateKey;
use crate::{Editor, Error, Extra, Hash, Kind, Link, NewObject, Object, Result, dsse};

/// With what a file is signed.
pub enum Signer<'a> {
    /// `now` is the time of the signature, seconds since 1970.
    OpenPgp { key: &'a SigningKey, now: u64 },
    /// All of the keys sign one envelope.
    Pem(&'a [PrivateKey]),
}

/// What of a file is signed or verified: whole groups, and single objects. Nothing chosen means every group.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub groups: Vec<u32>,
    pub objects: Vec<u32>,
}

/// Signs a file and gives the IDs of the signatures.
pub fn sign(editor: &mut Editor, signer: &Signer<'_>, selection: &Selection) -> Result<Vec<u32>> {
    let mut documents = Vec::new();
    for (group, ids) in chosen(editor, selection)? {
        let sif = editor.sif();
        let mut objects: Vec<&Object> =
            sif.of_group(group).filter(|o| ids.is_empty() || ids.contains(&o.id)).collect();
        objects.sort_by_key(|object| object.id);
        let first = sif.first_id(group).unwrap_or_default();
        documents.push((group, Metadata::of(sif, first, &objects)?.to_json()));
    }
    let mut signatures = Vec::with_capacity(documents.len());
    for (group, document) in documents {
        let (message, fingerprint) = match signer {
            Signer::OpenPgp { key, now } => {
                (key.clear_sign(&document, *now).into_bytes(), Some(key.fingerprint))
            }
            Signer::Pem(keys) => {
                let envelope = dsse::sign(document.as_bytes(), keys);
                let refused = || Error::refused("sign", editor.sif().name(), "the key gave no signature");
                (envelope.ok_or_else(refused)?, None)
            }
        };
        signatures.push(editor.add(NewObject {
            group: 0,
            link: Link::Group(group),
            extra: Extra::Signature { hash: Hash::Sha256, fingerprint },
            ..NewObject::new(Kind::Signature, message.as_slice())
        })?);
    }
    Ok(signatures)
}

/// The groups that are to be signed, each with those of its objects that are, or none for all.
fn chosen(editor: &Editor, selection: &Selection) -> Result<Vec<(u32, Vec<u32>)>> {
    let sif = editor.sif();
    let missing = |what: String| Error::Missing { object: sif.name().to_owned(), what };
    let mut chosen: Vec<(u32, Vec<u32>)> = Vec::new();
    for group in &selection.groups {
        if *group == 0 || sif.first_id(*group).is_none() {
            return Err(missing(format!("group {group}")));
        }
        chosen.push((*group, Vec::new()));
    }
    let mut single: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for id in &selection.objects {
        let object = sif.object(*id)?;
        if object.group == 0 {
            return Err(Error::refused("sign", sif.name(), format!("object {id} is in no group")));
        }
        single.entry(object.group).or_default().push(*id);
    }
    chosen.extend(single);
    if chosen.is_empty() {
        chosen = sif.groups().into_iter().map(|group| (group, Vec::new())).collect();
    }
    if chosen.is_empty() { Err(missing("objects to sign".to_owned())) } else { Ok(chosen) }
}
