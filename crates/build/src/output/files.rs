//! The files of an image below a folder of the host, each made through a descriptor of the directory that it is in:
//! nothing in the image leads outside, and no symbolic link in the folder is followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged, Ownership, Stat};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Directories deeper than this would use up the descriptors of an ordinary process.
const DEPTH: usize = 400;

struct Writer<'a> {
    view: &'a Merged,
    folder: &'a Path,
    /// The latest time of change that a file may have, in seconds since 1970.
    clamp: Option<i64>,
    /// Whether owners, extended attributes and devices are written, too.
    whole: Option<Ownership>,
    /// First names of files that have several.
    links: HashMap<(u64, u64), PathBuf>,
    root: OwnedFd,
    left_out: u64,
}

/// Writes what layers show: contents, modes and times. The files belong to whoever asks; what is there stays, and files
/// of the same name are replaced. Says how many devices and sockets were left out.
pub fn write(view: &Merged, folder: &Path, clamp: Option<i64>) -> Result<u64> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut writer = Writer::new(view, folder, clamp, None)?;
    writer.directory(&writer.top()?, Path::new(""), 0)?;
    Ok(writer.left_out)
}

/// Writes what layers show to an empty folder, as far as whoever asks may: with owners, attributes and devices.
pub fn write_whole(view: &Merged, folder: &Path, ownership: Ownership) -> Result<()> {
    let mut writer = Writer::new(view, folder, None, Some(ownership))?;
    let (top, path) = (writer.top()?, Path::new(""));
    writer.directory(&top, path, 0)?;
    writer.attributes(&top, path, &view.lstat(path)?)
}

impl<'a> Writer<'a> {
    fn new(
        view: &'a Merged,
        folder: &'a Path,
        clamp: Option<i64>,
        whole: Option<Ownership>,
    ) -> Result<Writer<'a>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty()).map_err(Error::io("open", folder))?;
        Ok(Writer { view, folder, clamp, whole, links: HashMap::new(), root, left_out: 0 })
    }

    fn top(&self) -> Result<OwnedFd> {
        self.root.try_clone().map_err(Error::io("open", self.folder))
    }

    fn failed<E: Into<io::Error>>(&self, doing: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        Error::io(doing, self.folder.join(path))
    }

    fn directory(&mut self, at: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        if depth > DEPTH {
            let message = format!("'{}' is more than {DEPTH} directories deep", path.display());
            return Err(isles_spec::Error::new(message).into());
        }
        for entry in self.view.read_dir(&Path::new("/").join(path))? {
            let below = path.join(&entry.name);
            let stat = self.view.lstat(&below)?;
            self.entry(at, &entry.name, &below, &stat, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, at: &OwnedFd, name: &OsStr, path: &Path, stat: &Stat, depth: usize) -> Result<()> {
        if stat.kind == FileKind::Dir {
            return self.subdirectory(at, name, path, stat, depth);
        }
        if self.whole.is_none() {
            self.make_way(at, name, path)?;
        }
        if stat.links > 1 {
            if let Some(first) = self.links.get(&stat.inode) {
                // The first name was made by us a moment ago, below directories that we hold to be ours.
                return linkat(&self.root, first, at, name, AtFlags::empty())
                    .map_err(self.failed("link", path));
            }
            self.links.insert(stat.inode, path.to_owned());
        }
        let made = match stat.kind {
            FileKind::File => return self.file(at, name, path, stat),
            FileKind::Symlink => {
                symlinkat(self.view.readlink(path)?, at, name).map_err(self.failed("create", path))?;
                true
            }
            FileKind::Fifo => {
                mknodat(at, name, FileType::Fifo, self.mode(stat), 0).map_err(self.failed("create", path))?;
                true
            }
            FileKind::CharDevice if self.whole.is_some() => {
                self.device(at, name, path, stat, FileType::CharacterDevice)?
            }
            FileKind::BlockDevice if self.whole.is_some() => {
                self.device(at, name, path, stat, FileType::BlockDevice)?
            }
            FileKind::Dir | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => false,
        };
        if made {
            return self.leaf(at, name, path, stat);
        }
        self.links.remove(&stat.inode);
        self.left_out += 1;
        Ok(())
    }

    /// Removes a file that is in the way.
    fn make_way(&self, at: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        match unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) if is_dir(at, name) => {
                let message = format!("'{}' is a directory", self.folder.join(path).display());
                let hint = "a file of the image has this name; remove the directory, or name another folder";
                Err(isles_spec::Error::new(message).with_hint(hint).into())
            }
            Err(e) => Err(self.failed("replace", path)(e)),
        }
    }

    fn subdirectory(
        &mut self,
        at: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
        depth: usize,
    ) -> Result<()> {
        match mkdirat(at, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(self.failed("create", path)(e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(at, name, flags, Mode::empty()).map_err(self.failed("open", path))?;
        self.directory(&dir, path, depth + 1)?;
        self.attributes(&dir, path, stat)
    }

    fn file(&self, at: &OwnedFd, name: &OsStr, path: &Path, stat: &Stat) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(at, name, flags, Mode::RUSR | Mode::WUSR).map_err(self.failed("create", path))?;
        let mut to = File::from(fd);
        io::copy(&mut self.view.open_file(path)?, &mut to).map_err(self.failed("write", path))?;
        self.attributes(&OwnedFd::from(to), path, stat)
    }

    /// Returns whether it could be made: only root can, and every runtime brings its own.
    fn device(&self, at: &OwnedFd, name: &OsStr, path: &Path, stat: &Stat, kind: FileType) -> Result<bool> {
        let number = rustix::fs::makedev(stat.device.0, stat.device.1);
        match mknodat(at, name, kind, self.mode(stat), number) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => Ok(false),
            Err(e) => Err(self.failed("create", path)(e)),
        }
    }

    /// Owner, attributes, mode and time of something that is open.
    fn attributes(&self, fd: &OwnedFd, path: &Path, stat: &Stat) -> Result<()> {
        if self.keeps_owners() {
            fchown(fd, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))
                .map_err(self.failed("set the owner of", path))?;
        }
        if self.whole.is_some() {
            for (name, value) in self.view.xattrs(path)? {
                match fsetxattr(fd, name, &value, XattrFlags::empty()) {
                    Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                    Err(e) => return Err(self.failed("set an attribute of", path)(e)),
                }
            }
        }
        fchmod(fd, self.mode(stat)).map_err(self.failed("set the mode of", path))?;
        futimens(fd, &self.times(stat)).map_err(self.failed("set the time of", path))
    }

    /// Owner and time of what cannot be opened.
    fn leaf(&self, at: &OwnedFd, name: &OsStr, path: &Path, stat: &Stat) -> Result<()> {
        if self.keeps_owners() {
            let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
            chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.failed("set the owner of", path))?;
        }
        utimensat(at, name, &self.times(stat), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("set the time of", path))
    }

    fn keeps_owners(&self) -> bool {
        self.whole.is_some_and(Ownership::keeps_owners)
    }

    /// The mode of something. Where all files become the caller's, none runs with the rights of its owner.
    fn mode(&self, stat: &Stat) -> Mode {
        Mode::from(match (self.keeps_owners(), stat.kind) {
            (true, _) => stat.mode,
            (false, FileKind::Dir) => stat.mode & 0o1777,
            (false, _) => stat.mode & 0o777,
        })
    }

    fn times(&self, stat: &Stat) -> Timestamps {
        let (seconds, nanoseconds) = match self.clamp {
            Some(most) if stat.mtime.0 >= most => (most, 0),
            _ => stat.mtime,
        };
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

fn is_dir(at: &OwnedFd, name: &OsStr) -> bool {
    statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nothing_runs_as_its_new_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, to) = (dir.path().join("layer"), dir.path().join("to"));
        std::fs::create_dir_all(layer.join("d")).unwrap();
        std::fs::write(layer.join("f"), "x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for (name, bits) in [("f", 0o6755), ("d", 0o7775)] {
            std::fs::set_permissions(layer.join(name), std::fs::Permissions::from_mode(bits)).unwrap();
            assert_eq!(mode(&layer.join(name)), bits);
        }
        let view = Merged::open(&[layer], Ownership::Single).unwrap();
        write(&view, &to, None).unwrap();
        assert_eq!((mode(&to.join("f")), mode(&to.join("d"))), (0o755, 0o1775));
        let to = dir.path().join("whole");
        std::fs::create_dir(&to).unwrap();
        write_whole(&view, &to, Ownership::Single).unwrap();
        assert_eq!((mode(&to.join("f")), mode(&to.join("d"))), (0o755, 0o1775));
    }
}
