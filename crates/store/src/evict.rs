//! What the caches hold, and which of it goes when they are to shrink: the least recently used first.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use isles_spec::Digest;

use crate::cache::Memory;
use crate::gc::{Pruned, Reach, Roots, Sizes, disk_bytes};
use crate::refs::names_in;
use crate::{Result, Store, cache_mount};

/// Something in a cache, with when it was last used.
pub(crate) struct Cached {
    /// The file whose time is that of the last use.
    pub path: PathBuf,
    pub used: SystemTime,
    pub bytes: u64,
    pub kind: Kind,
}

pub(crate) enum Kind {
    /// A build record, with what it needs.
    Record(Vec<Digest>),
    Download,
    /// What only spares time.
    Memory,
    /// The folder of a cache mount, whose lock is the file.
    Mount(PathBuf),
}

impl Cached {
    /// `None` where it is gone.
    fn of(path: PathBuf, kind: Kind) -> Option<Cached> {
        let meta = fs::metadata(&path).ok()?;
        let more = match &kind {
            Kind::Mount(folder) => disk_bytes(folder),
            Kind::Record(_) | Kind::Download | Kind::Memory => 0,
        };
        let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Cached { path, used, bytes: meta.blocks() * 512 + more, kind })
    }

    /// A cache mount that a step uses right now.
    pub fn in_use(&self) -> bool {
        matches!(self.kind, Kind::Mount(_)) && cache_mount::in_use(&self.path)
    }

    /// Adds it to what a pruning took away.
    pub fn count(&self, pruned: &mut Pruned) {
        match self.kind {
            Kind::Record(_) => pruned.build_records += 1,
            Kind::Download => pruned.downloads += 1,
            Kind::Memory => pruned.memories += 1,
            Kind::Mount(_) => pruned.cache_mounts += 1,
        }
        pruned.freed += self.bytes;
    }
}

impl Store {
    /// What exceeds a budget, when the most recently used stay. What is in use, or was used within `grace`, counts, and stays.
    pub(crate) fn over_budget(
        &self,
        dropped: &HashSet<Digest>,
        budget: u64,
        grace: Duration,
        sizes: &mut Sizes,
    ) -> Result<Vec<Cached>> {
        let base = self.mark(&Roots { dropped, evicted: None })?;
        let mut items = self.cached()?;
        items.sort_by_key(|item| std::cmp::Reverse(item.used));
        let mut counted = Reach::default();
        let mut total = 0u64;
        items.retain(|item| {
            total += item.bytes;
            if let Kind::Record(holds) = &item.kind {
                total += self.extra(holds, &base, &mut counted, sizes);
            }
            let young = !grace.is_zero() && item.used.elapsed().map_or(true, |age| age < grace);
            (total > budget || budget == 0) && !young && !item.in_use()
        });
        Ok(items)
    }

    /// Takes something out of a cache. Says whether it went: what came into use meanwhile stays.
    pub(crate) fn evict(&self, item: &Cached) -> Result<bool> {
        match &item.kind {
            Kind::Mount(folder) => self.evict_cache_mount(&item.path, folder),
            Kind::Record(_) | Kind::Download | Kind::Memory => {
                crate::atomic::remove_file(&item.path).map(|()| true)
            }
        }
    }

    /// Takes the least recently used away of what was remembered of one kind, until no more than `budget` bytes are there.
    pub fn shrink_memory(&self, memory: Memory, budget: u64) -> Result<()> {
        let mut items: Vec<Cached> = self.of_memory(memory)?;
        items.sort_by_key(|item| std::cmp::Reverse(item.used));
        let mut total = 0;
        for item in items {
            total += item.bytes;
            if total > budget {
                self.evict(&item)?;
            }
        }
        Ok(())
    }

    fn of_memory(&self, memory: Memory) -> Result<Vec<Cached>> {
        let folder = self.root.join(memory.folder());
        let names = names_in(&folder)?;
        Ok(names.iter().filter_map(|name| Cached::of(folder.join(name), Kind::Memory)).collect())
    }

    /// Everything in the caches.
    pub(crate) fn cached(&self) -> Result<Vec<Cached>> {
        let mut out = Vec::new();
        let mut add = |path: PathBuf, kind: Kind| out.extend(Cached::of(path, kind));
        for (path, holds) in self.build_records()? {
            add(path, Kind::Record(holds));
        }
        for digest in self.downloads()? {
            add(self.download_path(&digest), Kind::Download);
        }
        for (lock, folder) in self.cache_mounts()? {
            add(lock, Kind::Mount(folder));
        }
        for memory in Memory::ALL {
            out.extend(self.of_memory(memory)?);
        }
        Ok(out)
    }

    /// The build records, with what they need.
    pub(crate) fn build_records(&self) -> Result<Vec<(PathBuf, Vec<Digest>)>> {
        let folder = self.root.join("cache/build");
        let with_needs = |path: PathBuf| {
            let holds = crate::cache::holds_of(&path);
            (path, holds)
        };
        Ok(names_in(&folder)?.iter().map(|name| with_needs(folder.join(name))).collect())
    }

    /// Bytes of what `holds` names beyond `base` and what has been counted.
    pub(crate) fn extra(
        &self,
        holds: &[Digest],
        base: &Reach,
        counted: &mut Reach,
        sizes: &mut Sizes,
    ) -> u64 {
        let mut reach = Reach::default();
        for digest in holds {
            self.mark_layer(digest, &mut reach);
            reach.blobs.insert(digest.clone());
        }
        let mut bytes = 0;
        for digest in reach.layers {
            if !base.layers.contains(&digest) && counted.layers.insert(digest.clone()) {
                bytes += sizes.layer(&self.layer_dir(&digest));
            }
        }
        for digest in reach.blobs {
            if !base.blobs.contains(&digest) && counted.blobs.insert(digest.clone()) {
                bytes += sizes.blob(self, &digest);
            }
        }
        bytes
    }
}

/// The files of evicted things.
pub(crate) fn paths(items: &[Cached]) -> HashSet<&Path> {
    items.iter().map(|item| item.path.as_path()).collect()
}
