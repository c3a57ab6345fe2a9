//! What files are besides their content: owners, extended attributes, modes and times. What cannot be given is noted, and an
//! owner that this process may not set is recorded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fsetxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::{Unpacker, failed};
use crate::Ownership;
use crate::placing::NewOwners;
use crate::tar::{self, Entry, display};
use crate::xattr::{self, Fate};

impl Unpacker {
    pub(super) fn owner_of(&self, entry: &Entry) -> Owner {
        if let Some(placing) = &self.placing {
            let wanted = match placing.owners {
                NewOwners::Archive => Some((entry.uid, entry.gid)),
                NewOwners::All(uid, gid) => Some((uid, gid)),
                NewOwners::Own => None,
            };
            let gives = self.ownership.keeps_owners();
            return Owner { chown: wanted.filter(|_| gives), recorded: None };
        }
        if !self.ownership.keeps_owners() {
            let recorded = (entry.uid, entry.gid) != (0, 0);
            return Owner { chown: None, recorded: recorded.then_some((entry.uid, entry.gid)) };
        }
        let differs = entry.uid != self.uid || entry.gid != self.gid;
        Owner { chown: differs.then_some((entry.uid, entry.gid)), recorded: None }
    }

    /// Owner and extended attributes of a file or directory that is open.
    pub(super) fn attributes(
        &mut self,
        entry: &Entry,
        owner: &Owner,
        fd: BorrowedFd<'_>,
        path: &[u8],
    ) -> Result<(), tar::Error> {
        let refused = own(owner, fd).map_err(|e| failed("set the owner of", path, e))?;
        if refused {
            self.note(
                path,
                &format!("owner {}:{}: outside the range of this user namespace", entry.uid, entry.gid),
            );
            if self.placing.is_none() {
                xattr::record_owner(fd, entry.uid, entry.gid)
                    .map_err(|e| failed("record the owner of", path, e))?;
            }
        }
        self.set_xattrs(entry, fd, path)
    }

    pub(super) fn set_xattrs(
        &mut self,
        entry: &Entry,
        fd: BorrowedFd<'_>,
        path: &[u8],
    ) -> Result<(), tar::Error> {
        self.each_xattr(entry, path, |name, value| fsetxattr(fd, name, value, XattrFlags::empty()))
    }

    /// Extended attributes of what cannot be opened: symbolic links and devices.
    pub(super) fn xattrs_at(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), tar::Error> {
        if self.placing.is_some() {
            entry
                .xattrs
                .iter()
                .for_each(|(name, _)| self.note(path, &format!("attribute {}", display(name))));
            return Ok(());
        }
        let at = crate::sys::proc_child(dir.as_fd(), name);
        self.each_xattr(entry, path, |name, value| lsetxattr(&at, name, value, XattrFlags::empty()))
    }

    /// Sets each attribute that is to be set by `set`, and notes what cannot be had.
    fn each_xattr(
        &mut self,
        entry: &Entry,
        path: &[u8],
        set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
    ) -> Result<(), tar::Error> {
        for (name, value) in &entry.xattrs {
            match xattr::fate(name, self.ownership) {
                Fate::Drop => continue,
                Fate::Note => self.note(path, &format!("attribute {}", display(name))),
                Fate::Set => match set(name, &xattr::value_for(name, value, self.ownership)) {
                    Ok(()) => {}
                    Err(e) if xattr::is_refusal(e) => {
                        self.note(path, &format!("attribute {}: {}", display(name), std::io::Error::from(e)));
                    }
                    Err(e) => return Err(failed("set an attribute of", path, e)),
                },
            }
        }
        Ok(())
    }

    pub(super) fn chown_at(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        uid: u32,
        gid: u32,
        path: &[u8],
    ) -> Result<(), tar::Error> {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        match rustix::fs::chownat(dir, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::INVAL | Errno::PERM) if self.ownership == Ownership::Mapped => {
                self.note(path, &format!("owner {uid}:{gid}: outside the range of this user namespace"));
                Ok(())
            }
            Err(e) => Err(failed("set the owner of", path, e)),
        }
    }

    pub(super) fn time_at(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        mtime: (i64, u32),
        path: &[u8],
    ) -> Result<(), tar::Error> {
        utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("set the time of", path, e))
    }

    /// Sets modes and times of directories, deepest first, because a mode may shut the way to what is below.
    pub(super) fn finish_dirs(&mut self) -> Result<(), tar::Error> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_by_key(|d| std::cmp::Reverse(depth(&d.path)));
        for dir in &pending {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let path: &[u8] = if dir.path.is_empty() { b"." } else { &dir.path };
            let fd = match self.dirs.open_at(path, flags) {
                Ok(fd) => fd,
                // Replaced since, by way of a symbolic link.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                // Already shut by an earlier entry for the same directory.
                Err(Errno::ACCESS) => {
                    let held = self
                        .dirs
                        .open_at(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
                        .map_err(|e| failed("open", path, e))?;
                    crate::sys::chmod_path_fd(held.as_fd(), 0o700).map_err(|e| failed("open", path, e))?;
                    self.dirs.open_at(path, flags).map_err(|e| failed("open", path, e))?
                }
                Err(e) => return Err(failed("open", path, e)),
            };
            if let Some(mode) = dir.mode {
                rustix::fs::fchmod(&fd, Mode::from(mode)).map_err(|e| failed("set the mode of", path, e))?;
            }
            rustix::fs::futimens(&fd, &times(dir.mtime)).map_err(|e| failed("set the time of", path, e))?;
        }
        Ok(())
    }
}

/// What is to be done about an entry's owner.
pub(super) struct Owner {
    pub chown: Option<(u32, u32)>,
    pub recorded: Option<(u32, u32)>,
}

/// Sets or records an owner. `true`: this process may not set it.
pub(super) fn own(owner: &Owner, fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    if let Some((uid, gid)) = owner.recorded {
        xattr::record_owner(fd, uid, gid)?;
    }
    let Some((uid, gid)) = owner.chown else { return Ok(false) };
    match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        Ok(()) => Ok(false),
        Err(Errno::INVAL | Errno::PERM) => Ok(true),
        Err(e) => Err(e),
    }
}

pub(super) fn times((tv_sec, tv_nsec): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: i64::from(tv_nsec) };
    Timestamps { last_access: time, last_modification: time }
}

fn depth(path: &[u8]) -> usize {
    if path.is_empty() { 0 } else { 1 + path.iter().filter(|b| **b == b'/').count() }
}
