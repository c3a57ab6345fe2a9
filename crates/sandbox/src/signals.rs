//! The signals of a process that stays with a container: blocked, and read from a descriptor (signalfd(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The kernel itself, as for a key at the terminal, which goes to all processes in front.
    Kernel,
    Process,
}

/// Signals that wait to be read. Those of faults, and those that stop a job, keep their usual effect.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks signals in this thread, and in those that it makes from now on. A program that [`crate::spawn`]
    /// starts has none blocked.
    pub fn block() -> io::Result<Signals> {
        use libc::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTSTP, SIGTTIN, SIGTTOU};
        // SAFETY: the set lives and is filled before it is used; the descriptor is new and owned by nobody else.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            for signal in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTSTP, SIGTTIN, SIGTTOU] {
                libc::sigdelset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                fd if fd >= 0 => Ok(Signals(OwnedFd::from_raw_fd(fd))),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// The next signal that has come, if any.
    pub fn next(&self) -> io::Result<Option<(i32, From)>> {
        // SAFETY: all zeroes is a valid structure, and the call fills as much of it as is asked for.
        unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let size = size_of_val(&info);
            let n = libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size);
            if n == size as isize {
                let from = if info.ssi_code == libc::SI_KERNEL { From::Kernel } else { From::Process };
                return Ok(Some((info.ssi_signo as i32, from)));
            }
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        }
    }
}

/// All signals blocked in this thread, until this is dropped.
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    pub(crate) fn all() -> Blocked {
        // SAFETY: both sets live, and the one that blocks is filled before it is used.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Blocked(before)
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Ends this process by a signal, whatever was done about it before, and without a dump of its memory. Returns where the
/// signal ends nothing.
pub fn die_of(signal: i32) {
    // SAFETY: the set lives and is filled before it is used; the rest takes numbers.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
