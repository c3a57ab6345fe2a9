//! `tmpcopyup`: a new tmpfs begins with what the root has at its place.
//!
//! Runs between clone3 and exec, so it walks with buffers on the stack: entries by getdents64(2), contents by
//! copy_file_range(2) or, between file systems that do not know it, sendfile(2). Owners and modes are kept where this
//! process may set them; extended attributes and times are not.

use std::ffi::CStr;

use crate::sys::{self, Errno, Fd};

/// Deeper trees are refused: each level has its buffer on the stack.
const MAX_DEPTH: u32 = 64;
const ENTRIES: usize = 2048;
/// Offsets in `linux_dirent64`.
const RECORD_LENGTH: usize = 16;
const NAME: usize = 19;

#[repr(align(8))]
struct Buffer([u8; ENTRIES]);

/// Copies what is in the folder `from` into the folder `to`.
pub(crate) fn copy(from: i32, to: i32) -> sys::Result<()> {
    let read = libc::O_RDONLY | libc::O_DIRECTORY;
    let from = sys::openat(from, c".", read, 0)?;
    let to = sys::openat(to, c".", read, 0)?;
    owner(&sys::stat(from.0)?, to.0, c".")?;
    tree(&from, &to, 0)
}

fn tree(from: &Fd, to: &Fd, depth: u32) -> sys::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno(libc::ELOOP));
    }
    let mut buffer = Buffer([0; ENTRIES]);
    loop {
        // SAFETY: the buffer lives, is aligned, and has the length that is given.
        let filled = sys::check(unsafe {
            libc::syscall(libc::SYS_getdents64, from.0, buffer.0.as_mut_ptr(), buffer.0.len())
        })? as usize;
        if filled == 0 {
            return Ok(());
        }
        let mut at = 0;
        while at + NAME < filled {
            let length = usize::from(u16::from_ne_bytes([
                buffer.0[at + RECORD_LENGTH],
                buffer.0[at + RECORD_LENGTH + 1],
            ]));
            let end = (at + length).min(filled);
            let Ok(name) = CStr::from_bytes_until_nul(&buffer.0[at + NAME..end]) else { break };
            if name != c"." && name != c".." {
                entry(from, to, name, depth)?;
            }
            at += length.max(NAME);
        }
    }
}

fn entry(from: &Fd, to: &Fd, name: &CStr, depth: u32) -> sys::Result<()> {
    let place = sys::openat(from.0, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    let stat = sys::stat(place.0)?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            let read = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            sys::mkdirat(to.0, name, 0o700)?;
            let inner = sys::openat(to.0, name, read, 0)?;
            tree(&sys::openat(from.0, name, read, 0)?, &inner, depth + 1)?;
        }
        libc::S_IFREG => {
            let source = sys::openat(from.0, name, libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            contents(&source, &sys::openat(to.0, name, flags, 0o600)?)?;
        }
        libc::S_IFLNK => {
            let mut target = [0u8; libc::PATH_MAX as usize + 1];
            // SAFETY: the buffer lives; one byte less than it has is given, so a terminator remains.
            let length = sys::check(unsafe {
                libc::readlinkat(from.0, name.as_ptr(), target.as_mut_ptr().cast(), target.len() - 1)
            } as libc::c_long)?;
            target[length as usize] = 0;
            let target = CStr::from_bytes_until_nul(&target).map_err(|_| Errno(libc::EINVAL))?;
            sys::symlinkat(target, to.0, name)?;
            // Links have an owner but no mode.
            return sys::chownat(to.0, name, stat.st_uid, stat.st_gid).or_else(unmapped);
        }
        // Devices, sockets and FIFOs are made by programs, not shipped in images.
        _ => return Ok(()),
    }
    owner(&stat, to.0, name)
}

fn contents(from: &Fd, to: &Fd) -> sys::Result<()> {
    loop {
        const MOST: usize = 1 << 30;
        let null = std::ptr::null_mut::<libc::off64_t>();
        // SAFETY: without offsets the calls take numbers.
        let mut copied =
            sys::check(unsafe { libc::copy_file_range(from.0, null, to.0, null, MOST, 0) } as libc::c_long);
        if let Err(Errno(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)) = copied {
            // SAFETY: as above.
            copied = sys::check(
                unsafe { libc::sendfile(to.0, from.0, std::ptr::null_mut(), MOST) } as libc::c_long
            );
        }
        if copied? == 0 {
            return Ok(());
        }
    }
}

fn owner(stat: &libc::stat, dir: i32, name: &CStr) -> sys::Result<()> {
    sys::chownat(dir, name, stat.st_uid, stat.st_gid).or_else(unmapped)?;
    sys::chmodat(dir, name, stat.st_mode & 0o7777)
}

/// An owner that this user namespace does not have stays this process's.
fn unmapped(error: Errno) -> sys::Result<()> {
    match error {
        Errno(libc::EINVAL | libc::EPERM) => Ok(()),
        other => Err(other),
    }
}
