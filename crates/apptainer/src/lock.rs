//! Locks by which processes of one user, on one machine, agree on who does what.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::failure::Failure;

/// Where locks are of this machine alone, and gone when it is restarted.
const FOLDER: &str = "/dev/shm";

/// Where the lock of this name is, without an ending.
pub fn place(uid: u32, name: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("isles-{uid}-{name}"))
}

/// Those of a user whose names begin so.
pub fn all(uid: u32, prefix: &str) -> Vec<PathBuf> {
    let prefix = format!("isles-{uid}-{prefix}");
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let ours =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)));
    ours.map(|entry| entry.path()).collect()
}

/// A file that processes of one user lock (flock(2)).
pub struct Lock {
    path: PathBuf,
    pub file: File,
}

impl Lock {
    /// The lock under which is decided, taken. One whose file was removed meanwhile is nobody's any more.
    pub fn to_decide(path: &Path, uid: u32) -> Result<Lock, Failure> {
        loop {
            let lock = Lock::open(path.to_owned(), uid)?;
            lock.take(FlockOperation::LockExclusive)?;
            if lock.is_there() {
                return Ok(lock);
            }
        }
    }

    /// Whether its file is still the one of its name.
    pub fn is_there(&self) -> bool {
        let own = self.file.metadata().map(|found| found.ino()).ok();
        own.is_some() && own == fs::symlink_metadata(&self.path).map(|found| found.ino()).ok()
    }

    /// The file belongs to the caller, whoever may have put one there before.
    pub fn open(path: PathBuf, uid: u32) -> Result<Lock, Failure> {
        let failed =
            |e: &std::io::Error| Failure::because(format!("cannot use the lock '{}'", path.display()), e);
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path);
        let file = opened.map_err(|e| failed(&e))?;
        if file.metadata().map_err(|e| failed(&e))?.uid() != uid {
            return Err(Failure::new(format!("the lock '{}' belongs to another user", path.display())));
        }
        Ok(Lock { path, file })
    }

    pub fn take(&self, how: FlockOperation) -> Result<(), Failure> {
        loop {
            match rustix::fs::flock(&self.file, how) {
                Err(rustix::io::Errno::INTR) => {}
                other => {
                    let what = || format!("cannot take the lock '{}'", self.path.display());
                    return other.map_err(|e| Failure::because(what(), &std::io::Error::from(e)));
                }
            }
        }
    }

    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}
