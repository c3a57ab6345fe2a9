//! The files of a log in the order in which they were written, each of which is opened before it can be gone.
//!
//! Whoever follows a log may be slow, and the oldest file is thrown away when a new one begins. So those who follow open each
//! file when it begins, on a thread that does nothing else, and hold a lock on the newest that they have opened (flock(2),
//! shared). Before the writer throws a file away it looks whether somebody still has its lock on that one: who has not
//! seen what came after it by now would miss it, so the writer waits a moment ([`wait_for_followers`]), and not for ever.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::file;
use crate::watch::Watch;

/// More files than anybody keeps.
const MOST_FILES: u32 = 1000;
/// Who has stopped following is noticed after this time, where nothing else happens.
const LOOK: Duration = Duration::from_secs(1);
/// A follower that has not looked after this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Files that were opened and not read yet.
#[derive(Debug)]
pub(crate) struct Chain {
    folder: PathBuf,
    follows: bool,
    /// The oldest first.
    files: VecDeque<File>,
    /// The one that was opened last, which keeps its inode number as long as it is here.
    newest: Option<(u64, File)>,
}

impl Chain {
    /// Opens all files that there are.
    pub(crate) fn open(folder: &Path, follows: bool) -> io::Result<Chain> {
        let mut chain = Chain { folder: folder.to_owned(), follows, files: VecDeque::new(), newest: None };
        chain.look()?;
        Ok(chain)
    }

    /// Opens those that are newer than the newest.
    fn look(&mut self) -> io::Result<()> {
        let mut found: Vec<(u64, File)> = Vec::new();
        for number in 0..MOST_FILES {
            let opened = match File::open(file(&self.folder, number)) {
                Ok(opened) => opened,
                // While the others are put aside there is no first one.
                Err(e) if e.kind() == io::ErrorKind::NotFound && number == 0 => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
            };
            let inode = opened.metadata()?.ino();
            if self.newest.as_ref().is_some_and(|(newest, _)| *newest == inode) {
                break;
            }
            // Put aside between two looks.
            if found.iter().all(|(known, _)| *known != inode) {
                found.push((inode, opened));
            }
        }
        if let Some((inode, newest)) = found.first() {
            let newest = newest.try_clone()?;
            if self.follows {
                // Before the lock on the former one is let go. File systems without locks have followers that may miss something.
                let _ = flock(&newest, FlockOperation::NonBlockingLockShared);
                if let Some((_, former)) = &self.newest {
                    let _ = flock(former, FlockOperation::NonBlockingUnlock);
                }
            }
            self.newest = Some((*inode, newest));
        }
        self.files.extend(found.into_iter().rev().map(|(_, file)| file));
        Ok(())
    }

    /// The next file, where there is one.
    pub(crate) fn next(&mut self) -> io::Result<Option<File>> {
        if self.files.is_empty() {
            self.look()?;
        }
        Ok(self.files.pop_front())
    }

    /// Gives one back that is not to be read yet.
    pub(crate) fn put_back(&mut self, file: File) {
        self.files.push_front(file);
    }

    /// All that were opened and not read, newest first.
    pub(crate) fn take(&mut self) -> Vec<File> {
        std::mem::take(&mut self.files).into_iter().rev().collect()
    }

    /// Has these read next, newest first.
    pub(crate) fn set(&mut self, files: Vec<File>) {
        self.files = files.into_iter().rev().collect();
    }
}

/// A chain whose files are opened when they begin, by a thread, if it is followed.
#[derive(Debug)]
pub(crate) struct Ahead {
    chain: Arc<Mutex<Chain>>,
    ends: Arc<AtomicBool>,
}

impl Ahead {
    pub(crate) fn new(chain: Chain) -> io::Result<Ahead> {
        let (folder, follows) = (chain.folder.clone(), chain.follows);
        let ahead = Ahead { chain: Arc::new(Mutex::new(chain)), ends: Arc::default() };
        if follows {
            let mut watch = Watch::names(&folder)?;
            let (chain, ends) = (ahead.chain.clone(), ahead.ends.clone());
            let look = move || {
                // What began before there was a watch is found by the first look.
                while !ends.load(Ordering::Relaxed) && lock(&chain).look().is_ok() {
                    if watch.wait(Some(LOOK)).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new().name("isles-log".to_owned()).spawn(look)?;
        }
        Ok(ahead)
    }

    pub(crate) fn chain(&self) -> MutexGuard<'_, Chain> {
        lock(&self.chain)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

fn lock(chain: &Mutex<Chain>) -> MutexGuard<'_, Chain> {
    chain.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until nobody has opened this file, of which the name goes or has gone, and nothing after it. Not for long: a follower
/// that was stopped misses what it does not open, and holds up the writer once.
pub(crate) fn wait_for_followers(going: &File) {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_micros(100);
    while flock(going, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
        && waited < PATIENCE
    {
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    let _ = flock(going, FlockOperation::NonBlockingUnlock);
}
