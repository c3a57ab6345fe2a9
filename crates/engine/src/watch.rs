//! Waiting for something to happen in a folder (inotify(7)).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

/// Tells of changes in one folder since it was made, or since the last wait.
#[derive(Debug)]
pub struct Watch {
    /// Here until the end.
    queue: Option<OwnedFd>,
}

impl Watch {
    /// Watches a folder, the files in it, and whether it goes away. Who has a file open for writing and ends is noticed,
    /// too, so that the end of a lock's holder is.
    pub fn folder(path: &Path) -> io::Result<Watch> {
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF;
        Watch::of(path, events)
    }

    /// Watches which names there are in a folder, and not what is written to its files.
    pub fn names(path: &Path) -> io::Result<Watch> {
        Watch::of(path, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVE)
    }

    fn of(path: &Path, events: inotify::WatchFlags) -> io::Result<Watch> {
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&queue, path, events)?;
        Ok(Watch { queue: Some(queue) })
    }

    /// Waits until something has happened, for this time at most. `false` where nothing has.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait_for(None, timeout)
    }

    /// As [`Watch::wait`], also for what can be read from `other`.
    pub fn wait_with(&mut self, other: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait_for(Some(other), timeout)
    }

    fn wait_for(&mut self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<bool> {
        let Some(queue) = &self.queue else { return Ok(false) };
        let timeout =
            timeout.map(|t| Timespec { tv_sec: t.as_secs().cast_signed(), tv_nsec: t.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(queue, PollFlags::IN)];
        fds.extend(other.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
        // What happened is found out by looking.
        let mut events = [0u8; 4096];
        while matches!(rustix::io::read(queue, &mut events), Ok(1..)) {}
        Ok(true)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            isles_sandbox::aside::close(queue, Duration::ZERO);
        }
    }
}
