//! The files of an image below a folder of the host. They belong to whoever asks; what is there stays, and
//! files of the same name are replaced. No symbolic link in the folder is followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged, Stat};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat, mknodat, openat, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Directories deeper than this would use up the descriptors of an ordinary process.
const DEPTH: usize = 400;

struct Writer<'a> {
    view: &'a Merged,
    folder: &'a Path,
    clamp: Option<i64>,
    /// First names of files that have several.
    links: HashMap<(u64, u64), PathBuf>,
    root: OwnedFd,
    left_out: u64,
}

/// Writes what layers show. Says how many devices and sockets were left out.
pub fn write(view: &Merged, folder: &Path, clamp: Option<i64>) -> Result<u64> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(folder, flags, Mode::empty()).map_err(Error::io("open", folder));
    let mut writer = Writer { view, folder, clamp, links: HashMap::new(), root: open()?, left_out: 0 };
    writer.directory(&open()?, Path::new(""), 0)?;
    Ok(writer.left_out)
}

impl Writer<'_> {
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
        match unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) if is_dir(at, name) => {
                let message = format!("'{}' is a directory", self.folder.join(path).display());
                let hint = "a file of the image has this name; remove the directory, or name another folder";
                return Err(isles_spec::Error::new(message).with_hint(hint).into());
            }
            Err(e) => return Err(self.failed("replace", path)(e)),
        }
        if stat.links > 1 {
            if let Some(first) = self.links.get(&stat.inode) {
                // The first name was made by us a moment ago, below directories that we hold to be ours.
                return linkat(&self.root, first, at, name, AtFlags::empty())
                    .map_err(self.failed("link", path));
            }
            self.links.insert(stat.inode, path.to_owned());
        }
        match stat.kind {
            FileKind::File => self.file(at, name, path, stat),
            FileKind::Symlink => {
                symlinkat(self.view.readlink(path)?, at, name).map_err(self.failed("create", path))?;
                self.times_of(at, name, path, stat)
            }
            FileKind::Fifo => {
                mknodat(at, name, rustix::fs::FileType::Fifo, Mode::from(stat.mode & 0o777), 0)
                    .map_err(self.failed("create", path))?;
                self.times_of(at, name, path, stat)
            }
            FileKind::Dir | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => {
                self.links.remove(&stat.inode);
                self.left_out += 1;
                Ok(())
            }
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
        fchmod(&dir, Mode::from(stat.mode & 0o1777)).map_err(self.failed("set the mode of", path))?;
        futimens(&dir, &self.times(stat)).map_err(self.failed("set the time of", path))
    }

    fn file(&self, at: &OwnedFd, name: &OsStr, path: &Path, stat: &Stat) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(at, name, flags, Mode::RUSR | Mode::WUSR).map_err(self.failed("create", path))?;
        let mut to = File::from(fd);
        io::copy(&mut self.view.open_file(path)?, &mut to).map_err(self.failed("write", path))?;
        // What ran as somebody of the image would run as whoever asked.
        fchmod(&to, Mode::from(stat.mode & 0o777)).map_err(self.failed("set the mode of", path))?;
        futimens(&to, &self.times(stat)).map_err(self.failed("set the time of", path))
    }

    fn times(&self, stat: &Stat) -> Timestamps {
        let (seconds, nanoseconds) = match self.clamp {
            Some(most) if stat.mtime.0 >= most => (most, 0),
            _ => stat.mtime,
        };
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        Timestamps { last_access: time, last_modification: time }
    }

    fn times_of(&self, at: &OwnedFd, name: &OsStr, path: &Path, stat: &Stat) -> Result<()> {
        utimensat(at, name, &self.times(stat), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("set the time of", path))
    }
}

fn is_dir(at: &OwnedFd, name: &OsStr) -> bool {
    statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use isles_store::Ownership;

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
    }
}
