//! Leases: what a running process holds against garbage collection.
//!
//! A lease is a file under `leases/` that its process keeps locked. The lock ends with the process, however
//! it ends, so a crash releases what it held. The collector deletes only while it holds the store's `gc.lock`
//! alone; everything that makes something reachable takes that lock shared for a moment.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use isles_spec::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::error::At;
use crate::{Error, Result, Store};

/// Keeps blobs and layers from being collected for as long as it lives. One lease serves one operation (a
/// pull, a push, a build) and may be shared by its threads.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    file: Mutex<File>,
    store: Store,
}

impl Store {
    /// A new lease that holds nothing yet.
    pub fn lease(&self) -> Result<Lease> {
        let dir = self.dir("leases")?;
        loop {
            let path = dir.join(crate::atomic::random_name());
            let file = match File::options().append(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("create the lease", &path, e)),
            };
            flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
            // A collector may have taken the file for a dead one before it was locked.
            if path.exists() {
                return Ok(Lease { path, file: Mutex::new(file), store: self.clone() });
            }
        }
    }

    /// Holds off the collector's deletions until the guard is dropped.
    pub(crate) fn share(&self) -> Result<GcGuard> {
        self.gc_lock(FlockOperation::LockShared)
    }

    /// Waits until nobody is making anything reachable, and keeps it so until the guard is dropped.
    pub(crate) fn exclude(&self) -> Result<GcGuard> {
        self.gc_lock(FlockOperation::LockExclusive)
    }

    fn gc_lock(&self, operation: FlockOperation) -> Result<GcGuard> {
        let path = self.root.join("gc.lock");
        let open = || File::options().write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.prepare()?;
                open()
            }
            other => other,
        };
        let file = file.at("open", &path)?;
        flock(&file, operation).at("lock", &path)?;
        Ok(GcGuard { _file: file })
    }

    /// Removes the leases of processes that are gone.
    pub fn forget_dead_leases(&self) -> Result<()> {
        self.leased().map(drop)
    }

    /// What living processes hold. Leases of dead ones are removed on the way.
    pub(crate) fn leased(&self) -> Result<Vec<Digest>> {
        let dir = self.root.join("leases");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("read", &dir, e)),
        };
        let mut held = Vec::new();
        for entry in entries {
            let path = entry.at("read", &dir)?.path();
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("open", &path, e)),
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                crate::atomic::remove_file(&path)?;
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text).at("read", &path)?;
            held.extend(text.lines().filter_map(|line| line.parse::<Digest>().ok()));
        }
        Ok(held)
    }
}

/// The store's `gc.lock`, held.
#[derive(Debug)]
pub(crate) struct GcGuard {
    _file: File,
}

impl Lease {
    /// Holds a blob or a layer (by its diff ID). It need not exist yet. When this returns, the collector
    /// will not remove it; whether it is there must be looked up afterwards.
    pub fn hold(&self, digest: &Digest) -> Result<()> {
        let _shared = self.store.share()?;
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(format!("{digest}\n").as_bytes()).at("write", &self.path)
    }

    /// The store that this lease belongs to.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
