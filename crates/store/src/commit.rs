//! A layer out of a folder: what a container wrote, or any tree.

use std::io::Read;
use std::path::{Path, PathBuf};

use isles_spec::Digest;
use isles_spec::image::Descriptor;

use crate::{Error, Lease, Result, Store};

/// How a folder becomes a layer.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Later modification times become this one (seconds since 1970; `SOURCE_DATE_EPOCH`).
    pub clamp_mtime: Option<i64>,
    /// The layers below an upper directory, base first. Needed where overlay recorded renames or changes of
    /// metadata only (`redirect_dir`, `metacopy`).
    pub lowers: Vec<PathBuf>,
    /// Paths, relative and without leading `./`, that do not become part of the layer, with all below them.
    pub exclude: Vec<PathBuf>,
}

/// A layer that was made here.
#[derive(Debug, Clone)]
pub struct CommittedLayer {
    /// The digest of the uncompressed archive, which is also the digest of its blob.
    pub diff_id: Digest,
    /// Bytes of the archive.
    pub size: u64,
    pub entries: u64,
    /// The uncompressed blob, as manifests refer to it.
    pub blob: Descriptor,
}

impl Store {
    /// Makes a layer of an overlay's upper directory, which must lie on the store's file system. The folder
    /// moves into the store (it is gone afterwards) and its content is also written as an uncompressed blob.
    /// The same content gives the same digest.
    pub fn commit_layer(
        &self,
        lease: &Lease,
        upper: &Path,
        options: &CommitOptions,
    ) -> Result<CommittedLayer> {
        let _ = (lease, upper, options);
        Err(Error::Unsupported {
            object: upper.display().to_string(),
            what: "commit, for some minutes,".into(),
        })
    }

    /// Makes a layer of a folder anywhere, which stays as it is.
    pub fn layer_from_tree(
        &self,
        lease: &Lease,
        tree: &Path,
        options: &CommitOptions,
    ) -> Result<CommittedLayer> {
        let _ = (lease, tree, options);
        Err(Error::Unsupported {
            object: tree.display().to_string(),
            what: "commit, for some minutes,".into(),
        })
    }

    /// Makes a layer of an uncompressed tar stream, kept byte for byte.
    pub fn layer_from_tar(&self, lease: &Lease, tar: &mut dyn Read) -> Result<CommittedLayer> {
        let _ = (lease, tar);
        Err(Error::Unsupported { object: "tar".into(), what: "commit, for some minutes,".into() })
    }
}
