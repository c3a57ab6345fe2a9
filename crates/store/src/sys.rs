//! The few calls that need a detour through `/proc/self/fd`, because the plain ones take no descriptor of
//! the kind at hand (open(2), O_PATH).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `chmod` of what an `O_PATH` descriptor stands for.
pub(crate) fn chmod_path_fd(fd: BorrowedFd<'_>, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::chmod(proc_path(fd), Mode::from(mode))
}

/// A name for an open descriptor.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A name for an entry of an open directory. Only for calls that do not follow a link at the end.
pub(crate) fn proc_child(fd: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = proc_path(fd).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// Opens a path as if `root` were `/` (openat2(2), RESOLVE_IN_ROOT), and with `across` also what is mounted there.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    across: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    resolve.set(ResolveFlags::NO_XDEV, !across);
    loop {
        // EAGAIN means that a rename elsewhere made the answer doubtful.
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => continue,
            other => return other,
        }
    }
}

/// The permission bits that new files of this process lack.
pub(crate) fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Where it cannot be known, every mode is set explicitly.
    mask.and_then(|m| u32::from_str_radix(m.trim(), 8).ok()).unwrap_or(0o777)
}
