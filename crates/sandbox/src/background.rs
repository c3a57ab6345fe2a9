//! A process that goes on when its caller has ended: it has a session of its own, and is nobody's child that waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::{self, Errno, Fd, process as p};

/// Where a split comes back.
#[derive(Debug)]
pub enum Side {
    /// The process that was there. What the other one reports comes from here; the end of it says that it will not
    /// report any more, or is gone.
    Caller(OwnedFd),
    /// The process that stays, and where it reports.
    Background(OwnedFd),
}

/// Something that is done when this is dropped, and also when this process is killed before.
#[derive(Debug)]
pub struct Afterwards {
    pid: i32,
    /// Closed by the kernel, whatever becomes of this process.
    held: Option<Fd>,
}

/// Makes a process that waits for the end of this one, or until it lets go, and then does `work`. Nothing that a terminal
/// or a session tells reaches it. The process must have one thread.
pub fn afterwards(work: impl FnOnce()) -> io::Result<Afterwards> {
    let (read, write) = sys::pipe()?;
    // SAFETY: this process has one thread, so the child may allocate and lock.
    let pid = sys::check(unsafe { libc::fork() }.into())? as i32;
    if pid > 0 {
        return Ok(Afterwards { pid, held: Some(write) });
    }
    drop(write);
    // SAFETY: setsid(2) has no preconditions.
    unsafe { libc::setsid() };
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while matches!(sys::read(read.0, &mut [0]), Ok(1..) | Err(Errno(libc::EINTR))) {}
        work();
    }));
    p::exit(u8::from(done.is_err()).into())
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        drop(self.held.take());
        // SAFETY: the child is this process's own; its status is not wanted.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Splits this process in two. The one in the background reads nothing, and writes to these files; the rest is as it
/// was. The process must have one thread.
pub fn split(stdout: &File, stderr: &File) -> io::Result<Side> {
    let (read, write) = sys::pipe()?;
    // SAFETY: this process has one thread, so the child may allocate and lock.
    let child = sys::check(unsafe { libc::fork() }.into())? as i32;
    if child > 0 {
        // SAFETY: the child is this process's own; it ends at once.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        drop(write);
        return Ok(Side::Caller(owned(read)));
    }
    drop(read);
    // SAFETY: setsid(2) has no preconditions, and this process has one thread still.
    let next = unsafe {
        libc::setsid();
        libc::fork()
    };
    if next != 0 {
        // The one in the middle, or nobody follows: the pipe is closed, which the caller notices.
        p::exit(if next > 0 { 0 } else { 1 });
    }
    let null = File::open("/dev/null")?;
    for (file, target) in [(&null, 0), (stdout, 1), (stderr, 2)] {
        p::dup_to(file.as_raw_fd(), target)?;
    }
    Ok(Side::Background(owned(write)))
}

/// Lets all descriptors from `first` on end with this program, when it executes another one or itself anew.
pub fn close_on_execution(first: u32) -> io::Result<()> {
    const CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: close_range(2) of numbers has no memory effects.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    match sys::check(answer) {
        Ok(_) => Ok(()),
        // Before Linux 5.11 there is no such flag.
        Err(Errno(libc::EINVAL | libc::ENOSYS)) => {
            for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
                if let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
                    && fd >= first as i32
                {
                    // SAFETY: fcntl(2) of numbers has no memory effects.
                    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
                }
            }
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

fn owned(fd: Fd) -> OwnedFd {
    let raw = fd.0;
    std::mem::forget(fd);
    // SAFETY: the descriptor was owned by the value that was just forgotten.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
