//! Garbage collection: what no name, container, lease or cache record reaches goes.

use std::time::Duration;

use isles_spec::Digest;

use crate::{Error, Result, Store};

/// What a pruning takes away.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Also images that have a name but no container, not only nameless ones.
    pub all_images: bool,
    /// Also the build cache and downloads, as far as they exceed `cache_budget`.
    pub cache: bool,
    /// Bytes of cache that may stay, the most recently used first.
    pub cache_budget: u64,
    /// Younger unreachable objects stay; protects nothing that a lease does not protect already.
    pub grace: Duration,
    /// Only say what would go.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions {
            all_images: false,
            cache: false,
            cache_budget: 0,
            grace: Duration::ZERO,
            dry_run: false,
        }
    }
}

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of images, and IDs of nameless ones.
    pub images: Vec<String>,
    pub layers: Vec<Digest>,
    pub blobs: Vec<Digest>,
    pub build_records: usize,
    pub downloads: usize,
    /// Bytes on disk.
    pub freed: u64,
}

/// One kind of content and what it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageLine {
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes that a pruning would free.
    pub reclaimable: u64,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub images: UsageLine,
    pub blobs: UsageLine,
    pub layers: UsageLine,
    pub containers: UsageLine,
    pub build_cache: UsageLine,
    pub downloads: UsageLine,
}

impl Store {
    /// Removes what is not needed. Runs beside everything else; stops others for moments only.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned> {
        let _ = options;
        Err(Error::Unsupported { object: "the store".into(), what: "pruning, for some minutes,".into() })
    }

    /// Removes an image by name (only the name, while others stand for it) or by ID (with all its names if
    /// `force`), then frees what it alone needed.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Pruned> {
        let _ = force;
        self.resolve(name, None)?;
        let _ = Store::remove_record;
        Err(Error::Unsupported { object: name.into(), what: "removal, for some minutes,".into() })
    }

    /// Counts and sizes by kind.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        Ok(DiskUsage::default())
    }
}

/// Removes leftovers of dead processes from `tmp/`.
pub(crate) fn clear_tmp(store: &Store) -> Result<()> {
    let _ = store.exclude()?;
    let _ = store.leased()?;
    Ok(())
}
