//! The caches as people see them: what is kept, how large it is, when it was last used; and how they shrink.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

use crate::decompress::Decoder;
use crate::error::At;
use crate::evict::{Cached, Kind};
use crate::gc::{Pruned, Reach, Roots, Sizes};
use crate::pack::{Packing, pack};
use crate::{CacheMount, Error, Result, Store};

/// The cache's budget where none is named, and a tenth of the disk is not less.
const BUDGET: u64 = 20 << 30;
/// A cache is not measured more often than this by itself.
const INTERVAL: Duration = Duration::from_secs(3600);

/// What kind of thing is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheKind {
    /// What a step of a build gave.
    Record,
    /// The folder of `RUN --mount=type=cache`.
    Mount,
    /// A file by its digest.
    Download,
    /// What only spares time.
    Memory,
}

/// Something that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Tells it from others of its kind.
    pub id: String,
    pub kind: CacheKind,
    /// What it is, in words of whoever keeps it: a step, the ID of a cache mount.
    pub about: String,
    /// Bytes on disk that go with it. What an image needs too is not among them, and what several records need
    /// counts for the most recently used.
    pub bytes: u64,
    pub used: SystemTime,
    /// An image stands on some of the same layers.
    pub shared: bool,
    /// A step uses it right now.
    pub in_use: bool,
}

/// What of a cache is to go.
#[derive(Clone, Default)]
pub struct Shrinking<'a> {
    /// Bytes that may stay of the whole, the most recently used first.
    pub budget: u64,
    /// What was used since stays.
    pub older_than: Duration,
    /// Which entries may go; all where nothing is said.
    pub may_go: Option<&'a dyn Fn(&CacheEntry) -> bool>,
    /// Only say what would go.
    pub dry_run: bool,
}

impl Store {
    /// Everything in the caches, the most recently used first.
    pub fn cache_entries(&self) -> Result<Vec<CacheEntry>> {
        Ok(self.measured()?.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Takes what goes out of the caches, then blobs and layers that nothing needs. Returns the entries that
    /// went, and the bytes on disk that this freed.
    pub fn shrink_caches(&self, wanted: &Shrinking<'_>) -> Result<(Vec<CacheEntry>, u64)> {
        let measured = self.measured()?;
        let mut total: u64 = measured.iter().map(|(_, entry)| entry.bytes).sum();
        let mut gone = Vec::new();
        // The least recently used first.
        for (item, entry) in measured.into_iter().rev() {
            if total <= wanted.budget && wanted.budget > 0 {
                break;
            }
            let young = !wanted.older_than.is_zero()
                && entry.used.elapsed().map_or(true, |age| age < wanted.older_than);
            if entry.in_use || young || !wanted.may_go.is_none_or(|may| may(&entry)) {
                continue;
            }
            if wanted.dry_run || self.evict(&item)? {
                total = total.saturating_sub(entry.bytes);
                gone.push(entry);
            }
        }
        if wanted.dry_run {
            let freed = gone.iter().map(|e| e.bytes).sum();
            return Ok((gone, freed));
        }
        let mut pruned = Pruned::default();
        if !gone.is_empty() {
            self.sweep(Duration::ZERO, None, &mut Sizes::default(), &mut pruned)?;
        }
        // Layers are counted when they are deleted, everything else is gone already.
        let own = gone.iter().filter(|e| e.kind != CacheKind::Record).map(|e| e.bytes).sum::<u64>();
        Ok((gone, pruned.freed + own))
    }

    /// What the caches may hold: 20 GB, or a tenth of the disk where that is less.
    pub fn cache_budget(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.root());
        disk.map_or(BUDGET, |s| BUDGET.min(s.f_blocks.saturating_mul(s.f_frsize) / 10))
    }

    /// Shrinks the caches to their budget, if that was not looked at lately.
    pub fn keep_caches_small(&self) -> Result<()> {
        let stamp = self.dir("cache")?.join("measured");
        let age = fs::metadata(&stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age < INTERVAL) {
            return Ok(());
        }
        // Written first, so that of several builds one looks.
        File::create(&stamp).and_then(|f| f.set_modified(SystemTime::now())).at("write", &stamp)?;
        // A new cache cannot be too large.
        if age.is_some() {
            let budget = self.cache_budget();
            self.shrink_caches(&Shrinking { budget, ..Shrinking::default() })?;
        }
        Ok(())
    }

    fn measured(&self) -> Result<Vec<(Cached, CacheEntry)>> {
        let nothing = HashSet::new();
        let base = self.mark(&Roots { dropped: &nothing, evicted: None })?;
        let mut sizes = Sizes::default();
        let mut counted = Reach::default();
        let mut items = self.cached()?;
        items.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
        let describe = |item: Cached| {
            let (kind, more) = match &item.kind {
                Kind::Record(holds) => {
                    (CacheKind::Record, self.extra(holds, &base, &mut counted, &mut sizes))
                }
                Kind::Mount(_) => (CacheKind::Mount, 0),
                Kind::Download => (CacheKind::Download, 0),
                Kind::Memory => (CacheKind::Memory, 0),
            };
            let shared = match &item.kind {
                Kind::Record(holds) => holds.iter().any(|d| base.layers.contains(d)),
                _ => false,
            };
            let name = item.path.file_name().unwrap_or_default().to_string_lossy();
            let id = name.trim_end_matches(".lock").trim_start_matches("sha256-").to_owned();
            let entry = CacheEntry {
                id,
                kind,
                about: about(&item),
                bytes: item.bytes + more,
                used: item.used,
                shared,
                in_use: item.in_use(),
            };
            (item, entry)
        };
        Ok(items.into_iter().map(describe).collect())
    }

    /// Writes what a cache mount holds as a tar stream.
    pub fn export_cache_mount(&self, mount: &CacheMount, out: &mut dyn Write) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd =
            rustix::fs::open(&mount.folder, flags, Mode::empty()).at("open", &mount.folder)?;
        let exclude = Default::default();
        let what = Packing {
            live: false,
            ownership: self.ownership,
            upper: false,
            lowers: None,
            clamp_mtime: None,
            exclude: &exclude,
        };
        let (_, out) = pack(root, &what, std::io::BufWriter::with_capacity(64 << 10, out))?;
        let flushed =
            out.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|out| out.flush());
        flushed.map_err(|source| Error::Io { doing: "write", object: "the archive".into(), source })
    }

    /// Fills a cache mount, which nobody else may use meanwhile, from a tar stream, plain or
    /// compressed. What it held goes.
    pub fn import_cache_mount(&self, mount: &CacheMount, tar: &mut (dyn Read + Send)) -> Result<()> {
        let work = self.scratch_dir()?;
        let result = (|| {
            let input = BufReader::with_capacity(64 << 10, tar);
            let mut plain = Decoder::new(input).at("decompress the archive into", &mount.folder)?;
            crate::ingest::unpack_plain(self, &work, &mut plain, |_| Ok(()))?;
            let old = self.set_aside(&mount.folder)?;
            fs::rename(work.join("root"), &mount.folder).at("create", &mount.folder)?;
            old.map_or(Ok(()), |old| crate::remove::tree(&old))
        })();
        crate::remove::tree(&work)?;
        result
    }
}

/// What people are shown of something that is kept.
fn about(item: &Cached) -> String {
    match &item.kind {
        Kind::Record(_) => crate::cache::about(&item.path),
        Kind::Mount(_) => crate::cache_mount::about(&item.path),
        Kind::Download => "a downloaded file".into(),
        Kind::Memory => match item.path.parent().and_then(Path::file_name).and_then(|n| n.to_str()) {
            Some("files") => "digests of files".into(),
            _ => "lists of packages".into(),
        },
    }
}
