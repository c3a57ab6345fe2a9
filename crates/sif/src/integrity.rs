//! What a signature in a SIF file says: the digests of the header and of each object of one group, with the descriptors
//! as far as they do not depend on where in the file things are.

use std::io::{self, Read};

use isles_spec::digest::hex;
use serde::{Deserialize, Serialize};
use sha2::{Sha224, Sha256, Sha384, Sha512, Sha512_224, Sha512_256};

use crate::{Error, Object, Result, Sif};

/// The document that is signed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Metadata {
    version: u32,
    header: HeaderDigest,
    pub objects: Vec<ObjectDigests>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeaderDigest {
    digest: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectDigests {
    /// Counted from the lowest ID of the group.
    pub relative_id: u32,
    descriptor_digest: String,
    object_digest: String,
}

/// What of the file is not as it was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    Header,
    Descriptor(u32),
    Object(u32),
}

impl Metadata {
    /// Of these objects of one group, whose lowest ID is `first`.
    pub fn of(sif: &Sif, first: u32, objects: &[&Object]) -> Result<Metadata> {
        let sha256 = |input: &mut dyn Read| -> Result<String> {
            let digest = digest("sha256", input).map_err(|e| Error::io("read", sif.name(), e))?;
            Ok(format!("sha256:{}", digest.unwrap_or_default()))
        };
        let mut digests = Vec::with_capacity(objects.len());
        for object in objects {
            digests.push(ObjectDigests {
                relative_id: object.id - first,
                descriptor_digest: sha256(&mut object.integrity(first).as_slice())?,
                object_digest: sha256(&mut sif.reader(object))?,
            });
        }
        let header = HeaderDigest { digest: sha256(&mut sif.header().integrity().as_slice())? };
        Ok(Metadata { version: 1, header, objects: digests })
    }

    pub fn to_json(&self) -> String {
        // Strings and numbers only: there is nothing that JSON cannot say.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None` for what is not such a document.
    pub fn from_json(text: &[u8]) -> Option<Metadata> {
        serde_json::from_slice(text).ok().filter(|metadata: &Metadata| metadata.version == 1)
    }

    /// What the file has differently, of its header and of these objects. All of them must be in the document.
    pub fn compare(&self, sif: &Sif, first: u32, objects: &[&Object]) -> Result<Option<Difference>> {
        let same = |claim: &str, input: &mut dyn Read| -> Result<bool> {
            let Some((algorithm, value)) = claim.split_once(':') else { return Ok(false) };
            let found = digest(algorithm, input).map_err(|e| Error::io("read", sif.name(), e))?;
            Ok(found.is_some_and(|found| found == value))
        };
        if !same(&self.header.digest, &mut sif.header().integrity().as_slice())? {
            return Ok(Some(Difference::Header));
        }
        for object in objects {
            let signed =
                self.objects.iter().find(|signed| first.checked_add(signed.relative_id) == Some(object.id));
            let Some(signed) = signed else { return Ok(Some(Difference::Descriptor(object.id))) };
            if !same(&signed.descriptor_digest, &mut object.integrity(first).as_slice())? {
                return Ok(Some(Difference::Descriptor(object.id)));
            }
            if !same(&signed.object_digest, &mut sif.reader(object))? {
                return Ok(Some(Difference::Object(object.id)));
            }
        }
        Ok(None)
    }
}

/// The digest of what `input` has left, in hexadecimal; `None` for algorithms that are not known.
pub fn digest(algorithm: &str, input: &mut dyn Read) -> io::Result<Option<String>> {
    fn of<H: sha2::Digest>(input: &mut dyn Read) -> io::Result<Option<String>> {
        let mut hash = H::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(Some(hex(&hash.finalize()))),
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    match algorithm {
        "sha224" => of::<Sha224>(input),
        "sha256" => of::<Sha256>(input),
        "sha384" => of::<Sha384>(input),
        "sha512" => of::<Sha512>(input),
        "sha512_224" => of::<Sha512_224>(input),
        "sha512_256" => of::<Sha512_256>(input),
        _ => Ok(None),
    }
}
