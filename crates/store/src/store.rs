//! The store itself: where it is, who owns its files, and the bounds it enforces.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{FlockOperation, flock};

use crate::error::At;
use crate::{Error, Result};

/// The layout that this program reads and writes.
const VERSION: u32 = 1;

/// How files in layers are owned, which follows from what this process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Real root: files get the owners that the layer says, devices are made, and overlay markers are
    /// `trusted.overlay.*`.
    Root,
    /// Inside a user namespace with a range of IDs: as root, but devices are recorded and overlay
    /// markers are `user.overlay.*`.
    Mapped,
    /// One ID only: every file belongs to the caller and the true owner is kept in the extended
    /// attribute `user.isles.owner` as `uid:gid`.
    Single,
}

impl Ownership {
    /// Whether files get the owners that layers name.
    pub fn keeps_owners(self) -> bool {
        self != Ownership::Single
    }

    /// Whether overlay file systems over these layers need the mount option `userxattr`.
    pub fn userxattr(self) -> bool {
        self != Ownership::Root
    }

    /// The prefix of overlay's extended attributes.
    pub(crate) fn overlay_prefix(self) -> &'static str {
        if self.userxattr() { "user.overlay." } else { "trusted.overlay." }
    }

    /// What distinguishes the folder of a layer unpacked this way from one unpacked in another.
    pub(crate) fn flavour(self) -> &'static str {
        match self {
            Ownership::Root => "",
            Ownership::Mapped => ".mapped",
            Ownership::Single => ".single",
        }
    }
}

/// Bounds on what an image may demand. Each is named in the error that it causes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one uncompressed layer.
    pub layer_bytes: u64,
    /// Uncompressed bytes for each compressed one, beyond the first GiB.
    pub ratio: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of a path in a layer.
    pub path: usize,
    /// Bytes of all extended attributes of one entry.
    pub xattrs: usize,
    /// Bytes of one PAX header.
    pub pax: usize,
    /// Bytes of a manifest, an index or a configuration.
    pub document: usize,
    /// Layers of one image.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            layer_bytes: 256 << 30,
            ratio: 1200,
            entries: 5_000_000,
            path: 4096,
            xattrs: 1 << 20,
            pax: 2 << 20,
            document: 8 << 20,
            layers: 500,
        }
    }
}

/// A directory of images, layers and containers. Cheap to open and to clone; usable from any thread.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) ownership: Ownership,
    pub(crate) limits: Limits,
    present: bool,
    worker: Arc<Mutex<Option<Worker>>>,
}

/// A folder in `tmp/` for the work in progress of this process, locked for as long as that lives. Folders
/// whose lock is free are leftovers.
#[derive(Debug)]
struct Worker {
    path: PathBuf,
    _lock: File,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Fails, rightly, while something is left in it.
        let _ = fs::remove_dir(&self.path);
    }
}

impl Store {
    /// Opens the store at `dir`. Creates nothing: a store that does not exist yet is empty, and the first
    /// write makes it. Reads one small file.
    pub fn open(dir: impl Into<PathBuf>, ownership: Ownership) -> Result<Store> {
        let root: PathBuf = dir.into();
        let path = root.join("version");
        let present = match fs::read_to_string(&path) {
            Ok(found) if found.trim() == VERSION.to_string() => true,
            Ok(found) => {
                return Err(Error::Version {
                    root: root.display().to_string(),
                    found: found.trim().chars().take(20).collect(),
                    known: VERSION,
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        Ok(Store { root, ownership, limits: Limits::default(), present, worker: Arc::default() })
    }

    /// The same store with other bounds on what images may demand.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Makes the store's directory and version file where they are missing. Images carry setuid programs,
    /// so nobody else may look inside.
    pub(crate) fn prepare(&self) -> Result<()> {
        if self.present {
            return Ok(());
        }
        let version = self.root.join("version");
        if version.exists() {
            return Ok(());
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .at("create the store", &self.root)?;
        crate::atomic::replace(&version, format!("{VERSION}\n").as_bytes())
    }

    /// A directory below the store's root, created where it is missing.
    pub(crate) fn dir(&self, relative: &str) -> Result<PathBuf> {
        let path = self.root.join(relative);
        if !path.is_dir() {
            self.prepare()?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).at("create", &path)?;
        }
        Ok(path)
    }

    /// As [`Store::dir`], for a directory whose subdirectories come and go all the time.
    pub(crate) fn busy_dir(&self, relative: &str) -> Result<PathBuf> {
        let path = self.root.join(relative);
        if !path.is_dir() {
            self.dir(relative)?;
            spread(&File::open(&path).at("open", &path)?);
        }
        Ok(path)
    }

    /// A fresh path in this process's folder under `tmp/`, which nobody else uses; `what` makes leftovers
    /// recognisable.
    pub(crate) fn scratch(&self, what: &str) -> Result<PathBuf> {
        let mut worker = self.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if worker.is_none() {
            *worker = Some(self.start_worker()?);
        }
        let folder = worker.as_ref().map(|w| w.path.as_path()).unwrap_or(&self.root);
        Ok(folder.join(format!("{what}-{}", crate::atomic::random_name())))
    }

    fn start_worker(&self) -> Result<Worker> {
        let tmp = self.dir("tmp")?;
        loop {
            let path = tmp.join(format!("work-{}", crate::atomic::random_name()));
            fs::DirBuilder::new().mode(0o700).create(&path).at("create", &path)?;
            let lock = match File::open(&path) {
                Ok(lock) => lock,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("open", &path, e)),
            };
            flock(&lock, FlockOperation::LockExclusive).at("lock", &path)?;
            spread(&lock);
            // A collector may have taken the folder for a dead one before it was locked.
            if path.exists() {
                return Ok(Worker { path, _lock: lock });
            }
        }
    }

    /// Moves a folder out of sight, then deletes it; a crash in between leaves work for the collector, and a
    /// collector that is faster does no harm.
    pub(crate) fn discard_dir(&self, dir: &Path) -> Result<()> {
        match self.set_aside(dir)? {
            Some(gone) => crate::remove::tree(&gone),
            None => Ok(()),
        }
    }

    /// Moves a folder to where anyone may delete it. `None` where it does not exist.
    pub(crate) fn set_aside(&self, dir: &Path) -> Result<Option<PathBuf>> {
        let gone = self.dir("tmp")?.join(format!("gone-{}", crate::atomic::random_name()));
        match fs::rename(dir, &gone) {
            Ok(()) => Ok(Some(gone)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("remove", dir, e)),
        }
    }

    /// Makes everything written so far survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        let dir = fs::File::open(&self.root).at("open", &self.root)?;
        rustix::fs::syncfs(&dir).at("write to disk", &self.root)
    }
}

/// Asks the file system to put each tree made in `dir` somewhere else on the disk, instead of beside the last
/// one (ext4's `FS_TOPDIR_FL`). Layers are unpacked by several threads, which then do not wait for each
/// other's inode bitmap. Without a journal, ext4 also looks at every inode of the neighbourhood that was freed
/// in the last minutes before it takes one, which makes unpacking soon after a removal ten times slower, and each
/// of a hundred short containers in a row slower than the one before.
/// Other file systems do not know the flag, and need not.
fn spread(dir: &File) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(dir) {
        let _ = rustix::fs::ioctl_setflags(dir, flags | rustix::fs::IFlags::TOPDIR);
    }
}
