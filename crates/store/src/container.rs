//! Writable layers and the files that describe a container: `containers/<id>/`.
//!
//! A folder appears by one rename, complete and locked. The lock is a `flock` held by the process that owns
//! the container's life (its monitor); it ends with that process. Folders marked ephemeral whose lock is
//! free are leftovers, which [`Store::collect`] removes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isles_spec::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::error::At;
use crate::{Error, Result, Store};

const FILE_LIMIT: u64 = 16 << 20;
/// A collector cannot be unlucky for a new container more often than this.
const TRIES: u32 = 16;

/// A container's folder. Dropping it releases its lock, if it holds it, and removes nothing.
#[derive(Debug)]
pub struct Container {
    id: String,
    path: PathBuf,
    lock: Option<File>,
    store: Store,
}

impl Store {
    /// Makes the folder of a new container and locks it. `holds` are the manifest or layers that it stands
    /// on; they are not collected while it exists. An ephemeral container is removed by anyone who finds
    /// it unlocked.
    pub fn create_container(&self, id: &str, holds: &[Digest], ephemeral: bool) -> Result<Container> {
        check_id(id)?;
        let containers = self.busy_dir("containers")?;
        let target = containers.join(id);
        for _ in 0..TRIES {
            let work = containers.join(format!(".new-{}", crate::atomic::random_name()));
            match self.fill_container(&work, &target, id, holds, ephemeral) {
                Ok(lock) => {
                    return Ok(Container {
                        id: id.to_owned(),
                        path: target,
                        lock: Some(lock),
                        store: self.clone(),
                    });
                }
                // A collector took the folder for a leftover before it was locked.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    let _ = crate::remove::tree(&work);
                    return Err(e);
                }
            }
        }
        Err(Error::InUse { what: "container", name: id.to_owned() })
    }

    fn fill_container(
        &self,
        work: &Path,
        target: &Path,
        id: &str,
        holds: &[Digest],
        ephemeral: bool,
    ) -> Result<File> {
        let mkdir = |path: &Path, mode: u32| fs::DirBuilder::new().mode(mode).create(path).at("create", path);
        mkdir(work, 0o700)?;
        let lock_path = work.join("lock");
        let lock = File::options().write(true).create_new(true).open(&lock_path).at("create", &lock_path)?;
        flock(&lock, FlockOperation::LockExclusive).at("lock", &lock_path)?;
        for name in ["upper", "work"] {
            mkdir(&work.join(name), 0o755)?;
        }
        let upper = work.join("upper");
        // Whatever the umask says: this is the mode of the container's root.
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).at("set the mode of", &upper)?;
        let text: String = holds.iter().map(|d| format!("{d}\n")).collect();
        fs::write(work.join("holds"), text).at("write", work)?;
        if ephemeral {
            fs::write(work.join("ephemeral"), "").at("write", work)?;
        }
        let _shared = self.share()?;
        match fs::rename(work, target) {
            Ok(()) => Ok(lock),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Err(Error::Exists { what: "container", name: id.to_owned() })
            }
            Err(e) => Err(Error::io("create the container", target, e)),
        }
    }

    /// Keeps others from giving containers names, until the file is dropped.
    pub fn lock_names(&self) -> Result<File> {
        let path = self.busy_dir("containers")?.join(".names");
        let file = File::options().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
        Ok(file)
    }

    /// What the containers stand on.
    pub(crate) fn held_by_containers(&self) -> Result<Vec<Digest>> {
        let mut held = Vec::new();
        for id in self.containers()? {
            let path = self.root.join("containers").join(id).join("holds");
            let text = crate::atomic::read_bounded(&path, FILE_LIMIT).unwrap_or_default();
            held.extend(String::from_utf8_lossy(&text).lines().filter_map(|l| l.parse::<Digest>().ok()));
        }
        Ok(held)
    }

    /// Opens a container by its whole ID. It is not locked.
    pub fn container(&self, id: &str) -> Result<Container> {
        let path = self.root.join("containers").join(id);
        if check_id(id).is_err() || !path.is_dir() {
            return Err(Error::NoContainer { id: id.to_owned() });
        }
        Ok(Container { id: id.to_owned(), path, lock: None, store: self.clone() })
    }

    /// A container whose lock this process holds by a descriptor that it had before it executed itself anew.
    pub fn adopt_container(&self, id: &str, lock: File) -> Result<Container> {
        Ok(Container { lock: Some(lock), ..self.container(id)? })
    }

    /// Finds a container by its ID or a prefix of it that no other shares.
    pub fn find_container(&self, prefix: &str) -> Result<Container> {
        if let Ok(container) = self.container(prefix) {
            return Ok(container);
        }
        let mut ids = self.containers()?;
        ids.retain(|id| !prefix.is_empty() && id.starts_with(prefix));
        match ids.as_slice() {
            [] => Err(Error::NoContainer { id: prefix.to_owned() }),
            [id] => self.container(id),
            _ => Err(Error::Ambiguous { name: prefix.to_owned(), candidates: ids }),
        }
    }

    /// The IDs of all containers, sorted.
    pub fn containers(&self) -> Result<Vec<String>> {
        let mut ids = crate::refs::names_in(&self.root.join("containers"))?;
        ids.retain(|id| check_id(id).is_ok());
        ids.sort();
        Ok(ids)
    }

    /// Removes what dead processes left: ephemeral containers that nobody locks, work in progress without a
    /// worker, half-removed trees. Returns the IDs of the removed containers.
    pub fn collect(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for id in self.containers()? {
            let Ok(mut container) = self.container(&id) else { continue };
            if !container.path.join("ephemeral").exists() {
                continue;
            }
            match container.try_lock() {
                Ok(true) => {
                    container.remove()?;
                    removed.push(id);
                }
                Ok(false) => {}
                // Somebody else has removed it just now.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        for name in crate::refs::names_in(&self.root.join("containers"))? {
            let path = self.root.join("containers").join(&name);
            if name.starts_with(".new-") && !is_locked(&path.join("lock")) {
                // It may be one that is not locked yet. Its maker moves it to its place or finds it gone, and makes
                // another; were it emptied where it is, the container would be there with a part of its files.
                self.discard_dir(&path)?;
            }
        }
        crate::gc::clear_tmp(self, false)?;
        // Those of the dead go on the way.
        self.leased()?;
        Ok(removed)
    }
}

impl Container {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The container's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the container writes, as the upper directory of an overlay mount.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// The work directory that overlay wants beside the upper one.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Takes the lock, if it is free. `true` also when this handle holds it already.
    pub fn try_lock(&mut self) -> Result<bool> {
        if self.lock.is_some() {
            return Ok(true);
        }
        let path = self.path.join("lock");
        let file = File::options().write(true).open(&path).at("open", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.lock = Some(file);
                Ok(true)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(Error::io("lock", &path, e)),
        }
    }

    /// Waits for the lock.
    pub fn lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            let path = self.path.join("lock");
            let file = File::options().write(true).open(&path).at("open", &path)?;
            flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
            self.lock = Some(file);
        }
        Ok(())
    }

    /// Whether some process, perhaps this one, owns the container's life.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some() || is_locked(&self.path.join("lock"))
    }

    /// From now on anyone who finds the container unlocked removes it.
    pub fn make_ephemeral(&self) -> Result<()> {
        let path = self.path.join("ephemeral");
        fs::write(&path, "").at("write", &path)
    }

    /// From now on it stays when it is unlocked.
    pub fn keep(&self) -> Result<()> {
        self.forget("ephemeral")
    }

    /// Bytes on disk of all that the container wrote and is described by.
    pub fn disk_bytes(&self) -> u64 {
        crate::gc::disk_bytes(&self.path)
    }

    /// The lock's file, to hand to another process (which then owns it too).
    pub fn lock_file(&self) -> Option<&File> {
        self.lock.as_ref()
    }

    /// Replaces one of the container's files, such as `config.json`. Survives a power cut.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        crate::atomic::replace(&self.path.join(name), content)
    }

    /// As [`Container::write`] for state that means nothing after a reboot; does not wait for the disk.
    pub fn write_volatile(&self, name: &str, content: &[u8]) -> Result<()> {
        crate::atomic::replace_volatile(&self.path.join(name), content)
    }

    /// Removes one of the container's files, where it is there.
    pub fn forget(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Reads one of the container's files; `None` where it does not exist.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        match crate::atomic::read_bounded(&path, FILE_LIMIT) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// Removes the container and all that it wrote. The lock must be free or held by this handle. The folder
    /// is out of sight at once; a crash while its tree is deleted leaves that to [`Store::collect`].
    pub fn remove(self) -> Result<()> {
        self.set_aside()?.delete()
    }

    /// As [`Container::remove`], without deleting what the container wrote: that can take its time.
    pub fn set_aside(mut self) -> Result<Remains> {
        if !self.try_lock()? {
            return Err(Error::InUse { what: "container", name: self.id.clone() });
        }
        Ok(Remains(self.store.set_aside(&self.path)?))
    }
}

/// What a removed container wrote, where nobody looks for it any more. When it is not deleted, [`Store::collect`] does so.
#[must_use]
#[derive(Debug, Default)]
pub struct Remains(Option<PathBuf>);

impl Remains {
    /// Deletes it. What is gone already is fine.
    pub fn delete(self) -> Result<()> {
        self.0.map_or(Ok(()), |tree| crate::remove::tree(&tree))
    }
}

/// Opened for reading, so that whoever waits for the end of a writer (inotify(7), IN_CLOSE_WRITE) is not woken by the look.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// An ID becomes a file name.
fn check_id(id: &str) -> Result<()> {
    let fine = (1..=128).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if fine { Ok(()) } else { Err(Error::NoContainer { id: id.to_owned() }) }
}
