//! Looks for damage: hashes blobs again and compares layers with the archives they came from.

use isles_spec::{Digest, Reference};

use crate::{Error, Result, Store};

/// How closely layers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Blobs only.
    Blobs,
    /// Metadata of every entry, content of one file in so many.
    Sampled(u32),
    /// Everything.
    Full,
}

/// What a verification looks at.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    pub depth: Depth,
    /// Remove what is damaged, so that the next pull fetches it again.
    pub repair: bool,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The blob or the layer (by diff ID), or the manifest of an incomplete image.
    pub digest: Digest,
    /// One line for people.
    pub what: String,
    /// Names of the images that need it.
    pub images: Vec<Reference>,
    /// It was removed; pulling one of the images brings it back.
    pub removed: bool,
}

/// What a verification found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    pub images: u64,
    pub blobs: u64,
    pub layers: u64,
    /// Bytes read and hashed.
    pub bytes: u64,
    pub problems: Vec<Problem>,
}

impl Store {
    /// Checks the whole store.
    pub fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let _ = (options, Store::remove_blob, Store::discard_layer);
        Err(Error::Unsupported { object: "the store".into(), what: "verification, for some minutes,".into() })
    }
}
