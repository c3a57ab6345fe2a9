//! Deletes trees that anyone may have filled: by descriptors, never through a symbolic link, whatever the
//! modes and flags of what is in them, and at any depth.
//!
//! A tree that is interrupted half-way is simply deleted again.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::Result;
use crate::error::At;

/// So many directories are open at once at most; deeper ones are moved up first.
const DEPTH: usize = 48;
/// How often a tree is looked through again in which something is left.
const AGAIN: usize = 100;

/// Deletes a file or a tree. What is gone already is fine.
pub fn tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(crate::Error::io("remove", path, std::io::Error::from(std::io::ErrorKind::InvalidInput)));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.at("open", parent)?,
    };
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name))
        .map_err(|e| crate::Error::io("remove", path, std::io::Error::from(e)))?;
    below(parent.as_fd(), &name).at("remove", path)
}

/// Deletes the entry `name` of a directory, with everything below it.
pub(crate) fn below(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<()> {
    match unlink(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    }
    let Some(top) = open_for_deletion(parent, name)? else {
        return gone_is_fine(unlink(parent, name, AtFlags::empty()));
    };
    let mut moved = 0;
    let mut again = 0;
    // Directories too deep to hold open are moved to the top; the loop comes round for them.
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if before != moved {
            continue;
        }
        match unlink(parent, name, AtFlags::REMOVEDIR) {
            // While somebody else deletes the same, a reader misses entries.
            Err(Errno::NOTEMPTY) if again < AGAIN => again += 1,
            other => return gone_is_fine(other),
        }
    }
}

/// Two may delete the same tree at once.
fn gone_is_fine(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if result == Err(Errno::NOENT) { Ok(()) } else { result }
}

fn empty(dir: BorrowedFd<'_>, top: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> rustix::io::Result<()> {
    // Entries may be skipped when a directory shrinks while it is read, so it is read until nothing is left.
    loop {
        let mut any = false;
        let mut progress = false;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            any = true;
            if entry.file_type() != FileType::Directory {
                match unlink(dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {
                        progress = true;
                        continue;
                    }
                    Err(Errno::ISDIR) => {}
                    Err(e) => return Err(e),
                }
            }
            let Some(child) = open_for_deletion(dir, name)? else { continue };
            if depth >= DEPTH {
                *moved += 1;
                let aside = format!(".deep-{}-{moved}", crate::atomic::random_name());
                drop(child);
                gone_is_fine(rustix::fs::renameat(dir, name, top, aside))?;
            } else {
                empty(child.as_fd(), top, depth + 1, moved)?;
                match unlink(dir, name, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY) => continue,
                    other => gone_is_fine(other)?,
                }
            }
            progress = true;
        }
        // What was moved up to `top` itself waits for the caller's next round.
        if !any || !progress || depth == 0 {
            return Ok(());
        }
    }
}

/// Opens a directory with the permissions that reading and emptying it need. `None` where the name is gone
/// or is no directory.
fn open_for_deletion(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            allow(parent, name)?;
            openat(parent, name, flags, Mode::empty())
        }
        other => other,
    };
    match opened {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            let owner = rustix::process::geteuid();
            if stat.st_mode & 0o700 != 0o700 && (owner.is_root() || owner.as_raw() == stat.st_uid) {
                rustix::fs::fchmod(&fd, Mode::from(0o700))?;
            }
            Ok(Some(fd))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Gives the owner all permissions on a directory that cannot even be opened. It is addressed through its
/// own descriptor, so that a symbolic link in its place is not followed.
fn allow(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<()> {
    let fd = openat(
        parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    crate::sys::chmod_path_fd(fd.as_fd(), 0o700)
}

/// `unlinkat`, after taking away the flags (chattr +i, +a) that forbid it where that is why it fails.
fn unlink(dir: BorrowedFd<'_>, name: &std::ffi::CStr, flags: AtFlags) -> rustix::io::Result<()> {
    match unlinkat(dir, name, flags) {
        Err(Errno::PERM) if clear_flags(dir, name) => unlinkat(dir, name, flags),
        other => other,
    }
}

fn clear_flags(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> bool {
    let held = IFlags::IMMUTABLE | IFlags::APPEND;
    let clear = |fd: BorrowedFd<'_>| match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) if flags.intersects(held) => rustix::fs::ioctl_setflags(fd, flags - held).is_ok(),
        _ => false,
    };
    let of_dir = openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let cleared = of_dir.is_ok_and(|fd| clear(fd.as_fd()));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).is_ok_and(|fd| clear(fd.as_fd())) || cleared
}
