//! What files contain, by digest, and the memory that spares reading them again.
//!
//! A file whose device, inode, size, times of change and of modification are as before has the content of
//! before. A change within the clock's resolution would go unseen, so files that changed just before they were
//! read are not remembered (the same trap and cure as in git's index, Documentation/technical/racy-git).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isles_store::{FileKind, Memory, Store};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::tree::{Meta, Tree};

/// A file that changed so recently when it was read is read again next time.
const SETTLED: Duration = Duration::from_millis(100);
/// From so many bytes on, several threads read.
const MUCH: u64 = 8 << 20;
/// Files that one memory keeps.
const MOST: usize = 500_000;

/// The digest of a file's data and extended attributes.
pub type Content = [u8; 32];

/// Digests of the files below one folder, kept in the store between builds.
#[derive(Debug)]
pub struct Digests {
    store: Store,
    /// What the memory is called in the store.
    name: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    loaded: bool,
    changed: bool,
    by_inode: HashMap<(u64, u64), (Stamp, Content)>,
}

/// What tells whether a file is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

impl Digests {
    /// The memory for a folder. Nothing is read before the first question.
    pub fn of(store: &Store, folder: &Path) -> Digests {
        let name = isles_spec::digest::hex(&Sha256::digest(folder.as_os_str().as_encoded_bytes()));
        Digests { store: store.clone(), name, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of a regular file's data and of a file's or directory's attributes.
    pub fn content(&self, tree: &Tree, path: &Path, meta: &Meta) -> Result<Content> {
        // Layers do not tell when an inode changed, but an open file does.
        let opened = match meta.ctime {
            None if meta.kind == FileKind::File => Some(tree.open_file(path)?),
            _ => None,
        };
        let ctime = match &opened {
            Some(file) => {
                let raw = rustix::fs::fstat(file).map_err(Error::io("look at", tree.place(path)))?;
                Some((raw.st_ctime, raw.st_ctime_nsec as u32))
            }
            None => meta.ctime,
        };
        let stamp = ctime.map(|ctime| Stamp { size: meta.size, mtime: meta.mtime, ctime });
        if let Some(stamp) = stamp {
            let mut known = self.known();
            known.load(&self.store, &self.name);
            if let Some((before, content)) = known.by_inode.get(&meta.inode)
                && *before == stamp
            {
                return Ok(*content);
            }
        }
        let began = SystemTime::now();
        let content = read(tree, path, meta, opened)?;
        if let Some(stamp) = stamp.filter(|s| is_settled(s.ctime, began)) {
            let mut known = self.known();
            known.by_inode.insert(meta.inode, (stamp, content));
            known.changed = true;
        }
        Ok(content)
    }

    /// The digests of many files, by as many threads as there are processors where there is much to read. A file
    /// that cannot be read has none; [`Self::content`] says why.
    pub fn contents(&self, tree: &Tree, files: &[(&Path, &Meta)]) -> Vec<Option<Content>> {
        let much = files.iter().map(|(_, meta)| meta.size).sum::<u64>() >= MUCH;
        let threads = if much { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
        if threads == 1 {
            return vec![None; files.len()];
        }
        let next = AtomicUsize::new(0);
        let found = Mutex::new(vec![None; files.len()]);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some((path, meta)) = files.get(number) else { return };
                        let content = self.content(tree, path, meta).ok();
                        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(slot) = found.get_mut(number) {
                            *slot = content;
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was learned. Losing it costs time only, so a failure is none.
    pub fn save(&self) {
        let known = self.known();
        if !known.changed {
            return;
        }
        let mut text = String::new();
        for ((device, inode), (stamp, content)) in known.by_inode.iter().take(MOST) {
            let _ = writeln!(
                text,
                "{device} {inode} {} {} {} {} {} {}",
                stamp.size,
                stamp.mtime.0,
                stamp.mtime.1,
                stamp.ctime.0,
                stamp.ctime.1,
                isles_spec::digest::hex(content)
            );
        }
        let _ = self.store.remember(Memory::Files, &self.name, text.as_bytes());
    }
}

impl Known {
    fn load(&mut self, store: &Store, name: &str) {
        if std::mem::replace(&mut self.loaded, true) {
            return;
        }
        let Ok(Some(bytes)) = store.remembered(Memory::Files, name) else { return };
        let Ok(text) = std::str::from_utf8(&bytes) else { return };
        self.by_inode.extend(text.lines().filter_map(line));
    }
}

fn line(text: &str) -> Option<((u64, u64), (Stamp, Content))> {
    let mut words = text.split(' ');
    let mut number = || words.next()?.parse::<i128>().ok();
    let (device, inode, size) = (number()?, number()?, number()?);
    let mtime = (number()?, number()?);
    let ctime = (number()?, number()?);
    let time = |t: (i128, i128)| Some((i64::try_from(t.0).ok()?, u32::try_from(t.1).ok()?));
    let stamp = Stamp { size: u64::try_from(size).ok()?, mtime: time(mtime)?, ctime: time(ctime)? };
    let content = isles_spec::digest::from_hex(words.next()?)?;
    Some(((u64::try_from(device).ok()?, u64::try_from(inode).ok()?), (stamp, content)))
}

fn is_settled(ctime: (i64, u32), now: SystemTime) -> bool {
    let changed = UNIX_EPOCH + Duration::new(u64::try_from(ctime.0).unwrap_or(0), ctime.1);
    now.duration_since(changed).is_ok_and(|age| age >= SETTLED)
}

fn read(tree: &Tree, path: &Path, meta: &Meta, opened: Option<std::fs::File>) -> Result<Content> {
    let mut hash = Sha256::new();
    let xattrs = tree.xattrs(path)?;
    for (name, value) in &xattrs {
        for part in [name.as_encoded_bytes(), value] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.update(b"\0data\0");
    if meta.kind == FileKind::File {
        let mut file = match opened {
            Some(file) => file,
            None => tree.open_file(path)?,
        };
        let mut buffer = vec![0u8; 128 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", tree.place(path))(e)),
            }
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Folder;

    #[test]
    fn several_threads_find_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), isles_store::Ownership::Single).unwrap();
        let names: Vec<std::path::PathBuf> = (0..40).map(|n| format!("f{n}").into()).collect();
        for (number, name) in names.iter().enumerate() {
            std::fs::write(dir.path().join(name), vec![number as u8; MUCH as usize / 20]).unwrap();
        }
        let tree = Tree::Folder(Folder::open(dir.path()).unwrap());
        let metas: Vec<Meta> = names.iter().map(|n| tree.lstat(n).unwrap().unwrap()).collect();
        std::fs::remove_file(dir.path().join("f7")).unwrap();
        let files: Vec<(&Path, &Meta)> = names.iter().map(|n| n.as_path()).zip(&metas).collect();
        let digests = Digests::of(&store, dir.path());
        let found = digests.contents(&tree, &files);
        if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
            assert_eq!(found.iter().position(Option::is_none), Some(7), "the file that went has none");
        }
        for ((path, meta), found) in files.iter().zip(&found) {
            if let Some(found) = found {
                assert_eq!(*found, digests.content(&tree, path, meta).unwrap());
            }
        }
        assert!(
            digests.contents(&tree, &files[..1]).iter().all(Option::is_none),
            "little is not worth threads"
        );
    }

    #[test]
    fn content_is_read_once_and_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path().join("store"), isles_store::Ownership::Single).unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "one").unwrap();
        let tree = Tree::Folder(Folder::open(dir.path()).unwrap());
        let digest = |digests: &Digests| {
            let meta = tree.lstat(Path::new("f")).unwrap().unwrap();
            digests.content(&tree, Path::new("f"), &meta).unwrap()
        };
        let fresh = Digests::of(&store, dir.path());
        let one = digest(&fresh);
        assert!(fresh.known().by_inode.is_empty(), "a file of this moment is not to be trusted yet");
        // A file of the past, by a clock that is ahead.
        let meta = tree.lstat(Path::new("f")).unwrap().unwrap();
        let stamp = Stamp { size: meta.size, mtime: meta.mtime, ctime: meta.ctime.unwrap() };
        fresh.known().by_inode.insert(meta.inode, (stamp, one));
        fresh.known().changed = true;
        fresh.save();
        let again = Digests::of(&store, dir.path());
        assert_eq!(digest(&again), one);
        assert_eq!(again.known().by_inode.len(), 1, "it was remembered");
        std::fs::write(&file, "two").unwrap();
        assert_ne!(digest(&again), one);
        assert!(is_settled((0, 0), SystemTime::now()));
        assert!(!is_settled((i64::MAX, 0), SystemTime::now()));
    }
}
