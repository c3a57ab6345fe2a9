//! A look into the mount namespace of another process, without running anything that is in it: a child of this process
//! joins it, and works there with the root as a descriptor.
//!
//! The child has the rights of root in that process's user namespace and no way for the processes there to look into it
//! (CVE-2019-5736). It was made before the namespaces are known, so that the caller may have threads by then; nothing that
//! the container has is loaded or executed, since this program is one file (CVE-2019-14271).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::setup::{Namespace, Namespaces, UserNs};
use crate::spawn::{ExitStatus, reap};
use crate::sys::{self, Errno, Fd, process as p};

/// A child that waits to be told whom to visit, or is there already. Dropped, it is killed.
#[derive(Debug)]
pub struct Visitor {
    pid: i32,
    to: File,
    from: File,
}

/// Makes the child; `work` is what it does there, and its result is the exit code. The process must have one thread.
pub fn visitor(work: impl FnOnce(OwnedFd) -> u8) -> io::Result<Visitor> {
    let (order_read, order_write) = sys::pipe().map_err(error)?;
    let (answer_read, answer_write) = sys::pipe().map_err(error)?;
    // SAFETY: this process has one thread, so the child may allocate and lock.
    let pid = sys::check(unsafe { libc::fork() }.into()).map_err(error)? as i32;
    if pid > 0 {
        return Ok(Visitor { pid, to: owned(order_write), from: owned(answer_read) });
    }
    drop((order_write, answer_read));
    let visit = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let root = go(owned(order_read), owned(answer_write));
        root.map_or(125, work)
    }));
    p::exit(visit.unwrap_or(101).into())
}

/// Waits for the order and goes there. `None` where that is not possible, which was said, or nobody gave an order.
fn go(mut order: File, mut answer: File) -> Option<OwnedFd> {
    let safe = || -> sys::Result<()> {
        p::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)?;
        p::prctl(libc::PR_SET_DUMPABLE, 0)
    };
    loop {
        let mut pid = [0; 4];
        order.read_exact(&mut pid).ok()?;
        let entered = Namespaces::of_process(i32::from_ne_bytes(pid)).and_then(|namespaces| {
            safe().map_err(error)?;
            enter(&namespaces)
        });
        let errno = match &entered {
            Ok(_) => 0,
            Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
        };
        answer.write_all(&errno.to_ne_bytes()).ok()?;
        if let Ok(root) = entered {
            // The caller looks whether it was the one that was meant.
            order.read_exact(&mut [0]).ok()?;
            return Some(root);
        }
    }
}

fn enter(namespaces: &Namespaces) -> io::Result<OwnedFd> {
    if let UserNs::Join(fd) = &namespaces.user {
        p::setns(fd.as_raw_fd(), libc::CLONE_NEWUSER).map_err(error)?;
        // Root of that namespace, where it has one.
        let _ = p::set_gid(0);
        let _ = p::set_uid(0);
        p::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).map_err(error)?;
        p::prctl(libc::PR_SET_DUMPABLE, 0).map_err(error)?;
    }
    if let Namespace::Join(fd) = &namespaces.mount {
        p::setns(fd.as_raw_fd(), libc::CLONE_NEWNS).map_err(error)?;
    } else {
        // Whoever has no mount namespace of their own shows this process's files, not a container's.
        return Err(io::Error::from_raw_os_error(libc::ENXIO));
    }
    // SAFETY: umask(2) cannot fail.
    unsafe { libc::umask(0) };
    let root = sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(error)?;
    Ok(owned(root).into())
}

impl Visitor {
    /// Sends the child into the namespaces of a process. `still` says afterwards whether that is still the one that was
    /// meant: only then does the child begin its work.
    ///
    /// # Errors
    /// The process has ended, or may not be joined; the child waits for another order then.
    pub fn send(&mut self, pid: i32, still: impl FnOnce() -> bool) -> io::Result<()> {
        self.to.write_all(&pid.to_ne_bytes())?;
        let mut errno = [0; 4];
        self.from.read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 if still() => self.to.write_all(b"g"),
            0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits for the end of the work.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        let pid = std::mem::replace(&mut self.pid, 0);
        loop {
            if let Some(status) = reap(pid, 0)? {
                return Ok(status);
            }
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if self.pid > 0 {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = reap(self.pid, 0);
        }
    }
}

fn error(Errno(errno): Errno) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn owned(fd: Fd) -> File {
    let raw = fd.0;
    std::mem::forget(fd);
    // SAFETY: the descriptor was owned by the value that was just forgotten.
    unsafe { File::from_raw_fd(raw) }
}
