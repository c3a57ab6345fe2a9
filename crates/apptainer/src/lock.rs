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

    /// The file belongs to the caller alone, whoever may have put one there before: the folder is everybody's.
    pub fn open(path: PathBuf, uid: u32) -> Result<Lock, Failure> {
        let failed =
            |e: &std::io::Error| Failure::because(format!("cannot use the lock '{}'", path.display()), e);
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path);
        let file = opened.map_err(|e| failed(&e))?;
        let about = file.metadata().map_err(|e| failed(&e))?;
        let odd = |why: &str| Err(Failure::new(format!("the lock '{}' {why}", path.display())));
        if about.uid() != uid {
            return odd("belongs to another user");
        }
        // One that somebody removes meanwhile has no name.
        if !about.is_file() || about.nlink() > 1 || about.mode() & 0o077 != 0 {
            return odd("is no file of the caller alone, which others can neither read nor link to");
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_somebody_left_there_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (at, uid) = (|name: &str| dir.path().join(name), rustix::process::geteuid().as_raw());
        let make = |name: &str| drop(Lock::open(at(name), uid).unwrap());
        make("fine");
        make("fine");
        make("open");
        fs::set_permissions(at("open"), fs::Permissions::from_mode(0o644)).unwrap();
        make("linked");
        fs::hard_link(at("linked"), at("twice")).unwrap();
        symlink(at("fine"), at("link")).unwrap();
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for name in ["open", "linked", "twice", "link", "pipe"] {
            assert!(Lock::open(at(name), uid).is_err(), "{name}");
        }
        assert!(Lock::open(at("fine"), uid + 1).is_err());
    }
}
