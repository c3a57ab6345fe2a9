//! Folders that stay from build to build (`RUN --mount=type=cache`): `cache/mounts/<name>`, and beside each a
//! lock, which a step holds while it uses the folder. The lock's time is that of the last use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::At;
use crate::refs::names_in;
use crate::{Error, Result, Store};

const ABOUT_LIMIT: u64 = 64 << 10;

/// With whom a cache mount is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheLock {
    /// With everyone who wants the same.
    Shared,
    /// With nobody; others are waited for.
    Exclusive,
    /// With nobody; others are not waited for.
    IfFree,
}

/// The right to use the folder of a cache mount.
#[derive(Debug)]
pub struct CacheMount {
    /// Whoever comes first makes it.
    pub folder: PathBuf,
    lock: File,
}

impl CacheMount {
    /// Says what people are to be shown of it. What was said first stays.
    pub fn describe(&self, about: &str) {
        // It is for people only, so a failure is none.
        let mut file = &self.lock;
        if file.metadata().is_ok_and(|m| m.len() == 0) {
            let _ = io::Write::write_all(&mut file, about.as_bytes());
        }
    }
}

impl Store {
    /// The cache mount of a name, which must do as a file name. `None` where somebody else has what
    /// [`CacheLock::IfFree`] asks for.
    pub fn cache_mount(&self, name: &str, lock: CacheLock) -> Result<Option<CacheMount>> {
        let dir = self.dir("cache/mounts")?;
        let (folder, path) = (dir.join(name), dir.join(format!("{name}.lock")));
        let operation = match lock {
            CacheLock::Shared => FlockOperation::LockShared,
            CacheLock::Exclusive => FlockOperation::LockExclusive,
            CacheLock::IfFree => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            let file =
                File::options().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(Error::io("lock", &path, e)),
            }
            // The collector may have taken both away before this was locked.
            if is_at(&file, &path) {
                let _ = file.set_modified(std::time::SystemTime::now());
                return Ok(Some(CacheMount { folder, lock: file }));
            }
        }
    }

    /// Locks and folders of all cache mounts.
    pub(crate) fn cache_mounts(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let dir = self.root.join("cache/mounts");
        let names = names_in(&dir)?;
        let stems = names.iter().filter_map(|name| name.strip_suffix(".lock"));
        Ok(stems.map(|stem| (dir.join(format!("{stem}.lock")), dir.join(stem))).collect())
    }

    /// Removes a cache mount that no step uses. Says whether it went.
    pub(crate) fn evict_cache_mount(&self, lock: &Path, folder: &Path) -> Result<bool> {
        let file = match File::options().write(true).open(lock) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("open", lock, e)),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&file, lock) {
            return Ok(false);
        }
        let gone = self.set_aside(folder)?;
        crate::atomic::remove_file(lock)?;
        drop(file);
        gone.map_or(Ok(()), |gone| crate::remove::tree(&gone))?;
        Ok(true)
    }
}

/// What was said of the cache mount of a lock.
pub(crate) fn about(lock: &Path) -> String {
    let text = crate::atomic::read_bounded(lock, ABOUT_LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether a step holds the lock.
pub(crate) fn in_use(lock: &Path) -> bool {
    File::options()
        .write(true)
        .open(lock)
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK))
}

/// Whether an open file is the one that has this name now.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
