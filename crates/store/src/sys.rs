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

/// Whether a directory is of a file system in which the kernel shows itself: no file in it has been put there by anybody,
/// and some have no end.
pub fn is_kernels(dir: impl std::os::fd::AsFd) -> bool {
    /// statfs(2): proc, sysfs, cgroup v1 and v2, devpts, mqueue, debugfs, tracefs, securityfs, bpf, pstore, efivarfs,
    /// binfmt_misc, nsfs, configfs.
    const KERNELS: [u64; 15] = [
        0x9fa0,
        0x6265_6572,
        0x0027_e0eb,
        0x6367_7270,
        0x1cd1,
        0x1980_0202,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xcafe_4a11,
        0x6165_676c,
        0xde5e_81e4,
        0x4249_4e4d,
        0x6e73_6673,
        0x6265_6570,
    ];
    // On other processors the field is narrower, or signed.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::fstatfs(dir).is_ok_and(|found| KERNELS.contains(&(found.f_type as u32 as u64)))
}

/// The permission bits that new files of this process lack.
pub(crate) fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Where it cannot be known, every mode is set explicitly.
    mask.and_then(|m| u32::from_str_radix(m.trim(), 8).ok()).unwrap_or(0o777)
}
