//! Secrets as files that no disk sees: folders in `/dev/shm`, for their owner only, which go when the step is
//! over. Each is locked while it is needed, so one whose lock is free was left by a build that was killed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::options::SecretSource;

const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "isles-secret-";

/// As BuildKit.
const LIMIT: u64 = 500 << 10;

impl SecretSource {
    /// What the secret is now.
    ///
    /// # Errors
    /// It cannot be read, or is larger than a secret may be.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let (bytes, name) = match self {
            SecretSource::File(file) => {
                let read = File::open(file).and_then(|f| isles_store::read_bounded(f, LIMIT));
                (read.map_err(Error::io("read the secret", file))?, format!("'{}'", file.display()))
            }
            SecretSource::Variable(name) => {
                let value = std::env::var_os(name).ok_or_else(|| {
                    isles_spec::Error::new(format!("the variable {name}, which holds a secret, is not set"))
                })?;
                (Some(value.into_encoded_bytes()).filter(|v| v.len() as u64 <= LIMIT), format!("${name}"))
            }
        };
        bytes.ok_or_else(|| {
            let message =
                format!("the secret in {name} is larger than a secret may be ({} KiB)", LIMIT >> 10);
            isles_spec::Error::new(message).into()
        })
    }
}

/// A folder in memory for this user only. It is gone when this is dropped.
pub struct Hidden {
    folder: PathBuf,
    _lock: File,
}

impl Hidden {
    pub fn new() -> Result<Hidden> {
        Hidden::within(Path::new(MEMORY))
    }

    fn within(memory: &Path) -> Result<Hidden> {
        loop {
            let folder = memory.join(format!("{PREFIX}{}", isles_store::random_name()));
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(Error::io("create", &folder))?,
            }
            // Another build may take the folder for a dead one's before it is locked.
            let lock = match File::open(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(Error::io("open", &folder))?,
            };
            flock(&lock, FlockOperation::LockExclusive).map_err(Error::io("lock", &folder))?;
            if folder.exists() {
                return Ok(Hidden { folder, _lock: lock });
            }
        }
    }

    /// A name in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A secret in memory. It is gone when this is dropped.
pub struct Secret {
    file: PathBuf,
    _folder: Hidden,
}

impl Secret {
    /// Writes a secret, readable for this user only.
    pub fn new(bytes: &[u8]) -> Result<Secret> {
        Secret::within(Path::new(MEMORY), bytes)
    }

    fn within(memory: &Path, bytes: &[u8]) -> Result<Secret> {
        let folder = Hidden::within(memory)?;
        let secret = Secret { file: folder.path("secret"), _folder: folder };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&secret.file)
            .and_then(|mut f| f.write_all(bytes))
            .map_err(Error::io("write", &secret.file))?;
        Ok(secret)
    }

    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// Removes the secrets of this user's builds that were killed. What cannot be removed is left to the next one.
pub fn remove_dead_secrets() {
    remove_dead_within(Path::new(MEMORY));
}

fn remove_dead_within(memory: &Path) {
    let me = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(memory).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Anybody may put anything here.
        let mine = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == me);
        let Some(folder) = mine.then(|| File::open(entry.path()).ok()).flatten() else { continue };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn dead_secrets_go_and_living_ones_stay() {
        let memory = tempfile::tempdir().unwrap();
        let dead = memory.path().join(format!("{PREFIX}0123"));
        let other = memory.path().join("somebody-elses");
        for folder in [&dead, &other] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("secret"), "x").unwrap();
        }
        std::os::unix::fs::symlink(&other, memory.path().join(format!("{PREFIX}link"))).unwrap();
        let living = Secret::within(memory.path(), b"word").unwrap();
        remove_dead_within(memory.path());
        assert!(!dead.exists());
        assert!(other.join("secret").exists(), "a link is not followed");
        assert_eq!(std::fs::read(living.file()).unwrap(), b"word");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&living._folder.folder), mode(living.file())), (0o700, 0o600));
        let folder = living._folder.folder.clone();
        drop(living);
        assert!(!folder.exists());
    }
}
