//! A new layer being written without a container: a folder over layers, as overlay's upper directory is.
//!
//! Only what is new is written. Directories that the layers below have get their mode, owner and times, since
//! the uppermost layer's count. Every path is resolved by descriptors below the folder, and what is written
//! lies under directories that this code made or that the layers really have.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged, Ownership, record_owner};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::tree::{Xattrs, is_absent};

/// Who a new file belongs to and what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What a directory gets in the end.
struct Directory {
    mode: u32,
    mtime: Option<(i64, u32)>,
}

/// A layer being written.
pub struct Upper<'a> {
    path: PathBuf,
    root: OwnedFd,
    lowers: &'a Merged,
    ownership: Ownership,
    /// Directories that are in the folder.
    made: HashSet<PathBuf>,
    /// The first name here of source files that have several.
    links: HashMap<(u64, u64), PathBuf>,
    /// Modes and times of directories, set when nothing more is written into them.
    directories: BTreeMap<PathBuf, Directory>,
    /// The time of directories that nothing else gives one.
    new_mtime: Option<(i64, u32)>,
    /// What the layers below have at these paths, or below them, does not count any more.
    removed: HashMap<PathBuf, FileKind>,
}

impl<'a> Upper<'a> {
    /// An empty layer in the folder `path`, which exists, over `lowers`.
    pub fn new(path: &Path, lowers: &'a Merged, ownership: Ownership) -> Result<Upper<'a>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?;
        let mut upper = Upper {
            path: path.to_owned(),
            root,
            lowers,
            ownership,
            made: HashSet::from([PathBuf::new()]),
            links: HashMap::new(),
            directories: BTreeMap::new(),
            new_mtime: None,
            removed: HashMap::new(),
        };
        upper.copy_metadata(Path::new(""))?;
        Ok(upper)
    }

    fn failed<E: Into<std::io::Error>>(
        &self,
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Error {
        Error::io(operation, Path::new("/").join(path))
    }

    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&self.root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), how)
    }

    /// What is at a path without links: here, or in the layers below.
    pub fn kind(&self, path: &Path) -> Result<Option<FileKind>> {
        match self.open(path, OFlags::PATH).and_then(|fd| rustix::fs::fstat(&fd)) {
            Ok(raw) => {
                return Ok(Some(match FileType::from_raw_mode(raw.st_mode) {
                    FileType::Directory => FileKind::Dir,
                    FileType::Symlink => FileKind::Symlink,
                    _ => FileKind::File,
                }));
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(self.failed("look at", path)(e)),
        }
        self.kind_below(path)
    }

    /// What the layers below have at a path, as far as that is still to be seen.
    fn kind_below(&self, path: &Path) -> Result<Option<FileKind>> {
        if !self.removed.is_empty() && path.ancestors().any(|above| self.removed.contains_key(above)) {
            return Ok(None);
        }
        match self.lowers.lstat(path) {
            Ok(stat) => Ok(Some(stat.kind)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn readlink(&self, path: &Path) -> Result<PathBuf> {
        match self.open(path, OFlags::PATH).and_then(|fd| rustix::fs::readlinkat(&fd, c"", Vec::new())) {
            Ok(target) => {
                Ok(PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target.as_bytes())))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(self.lowers.readlink(path)?.into()),
            Err(e) => Err(self.failed("read the link", path)(e)),
        }
    }

    /// The path without links that `path` leads to, with the image as `/`. What does not exist is kept as it
    /// is written.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf> {
        crate::tree::resolve(path, &|p| self.kind(p), &|p| self.readlink(p))
    }

    /// Makes sure that a directory (a path without links) is in the layer. What exists below keeps its mode
    /// and owner; what is new gets `access`.
    pub fn directory(&mut self, path: &Path, access: Access) -> Result<OwnedFd> {
        self.ensure_directory(path, access)?;
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.failed("open", path))
    }

    /// Gives new directories this time: the layer then depends on what is copied, not on when.
    pub fn set_new_mtime(&mut self, mtime: (i64, u32)) {
        self.new_mtime = Some(mtime);
    }

    /// The time of the nearest directory above that the layers below have.
    fn mtime_above(&self, path: &Path) -> Option<(i64, u32)> {
        let found = path.ancestors().skip(1).find_map(|above| self.lowers.lstat(above).ok());
        found.map(|stat| stat.mtime).filter(|mtime| *mtime != (0, 0))
    }

    /// Makes the directories above a path.
    pub fn ensure_parents(&mut self, path: &Path, access: Access) -> Result<()> {
        self.ensure_directory(path.parent().unwrap_or(Path::new("")), access).map(drop)
    }

    /// Whether the directory is new to the image.
    fn ensure_directory(&mut self, path: &Path, access: Access) -> Result<bool> {
        if self.made.contains(path) {
            return Ok(false);
        }
        if let Some(parent) = path.parent() {
            self.ensure_directory(parent, access)?;
        }
        let new = match self.kind(path)? {
            None => true,
            Some(FileKind::Dir) => false,
            Some(_) => {
                return Err(isles_spec::Error::new(format!(
                    "cannot copy into '/{}': it is not a directory in the image",
                    path.display()
                ))
                .with_hint(
                    "a directory cannot take the place of a file or a link; remove that in an earlier RUN",
                )
                .into());
            }
        };
        let parent = self
            .open(path.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(self.failed("open", path))?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                self.made.insert(path.to_owned());
                return Ok(false);
            }
            Err(e) => return Err(self.failed("create", path)(e)),
        }
        self.made.insert(path.to_owned());
        if new {
            let fd =
                self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.failed("open", path))?;
            if self.removed.get(path) == Some(&FileKind::Dir) {
                self.set_opaque(&fd, path)?;
            }
            self.set_owner(&fd, path, access)?;
            let mtime = self.new_mtime.or_else(|| self.mtime_above(path));
            self.directories.insert(path.to_owned(), Directory { mode: access.mode, mtime });
        } else {
            self.copy_metadata(path)?;
        }
        Ok(new)
    }

    /// Gives a directory what it has in the layers below.
    fn copy_metadata(&mut self, path: &Path) -> Result<()> {
        let stat = self.lowers.lstat(path)?;
        let xattrs: Xattrs = self.lowers.xattrs(path)?.into_iter().collect();
        let access = Access { mode: stat.mode, uid: stat.uid, gid: stat.gid };
        let fd = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.failed("open", path))?;
        self.set_xattrs(&fd, path, &xattrs)?;
        self.set_owner(&fd, path, access)?;
        let mtime = (stat.mtime != (0, 0)).then_some(stat.mtime);
        self.directories.insert(path.to_owned(), Directory { mode: access.mode, mtime });
        Ok(())
    }

    /// Gives a directory of a copied tree what it has there, where the image has another of its name too.
    pub fn copied_directory(
        &mut self,
        path: &Path,
        access: Access,
        xattrs: &Xattrs,
        mtime: (i64, u32),
    ) -> Result<()> {
        let fd = self.directory(path, access)?;
        self.set_xattrs(&fd, path, xattrs)?;
        self.set_owner(&fd, path, access)?;
        self.directories.insert(path.to_owned(), Directory { mode: access.mode, mtime: Some(mtime) });
        Ok(())
    }

    fn set_owner(&self, fd: impl AsFd, path: &Path, access: Access) -> Result<()> {
        if self.ownership == Ownership::Single {
            // What has no record is root's.
            if (access.uid, access.gid) == (0, 0) {
                return Ok(());
            }
            return record_owner(fd, access.uid, access.gid)
                .map_err(self.failed("record the owner of", path));
        }
        let (uid, gid) = (Uid::from_raw(access.uid), Gid::from_raw(access.gid));
        match fchown(fd, Some(uid), Some(gid)) {
            Err(Errno::INVAL) => Err(self.unmapped(path, access)),
            other => other.map_err(self.failed("set the owner of", path)),
        }
    }

    fn unmapped(&self, path: &Path, access: Access) -> Error {
        let (uid, gid) = (access.uid, access.gid);
        isles_spec::Error::new(format!("cannot give '/{}' to {uid}:{gid}", path.display()))
            .with_hint(
                "the ID is outside of the range of subordinate IDs; see /etc/subuid and `isles doctor`",
            )
            .into()
    }

    fn set_xattrs(&self, fd: &OwnedFd, path: &Path, xattrs: &Xattrs) -> Result<()> {
        for (name, value) in xattrs {
            match fsetxattr(fd, name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // File capabilities need a right over the file that an ordinary user lacks.
                Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(self.failed("set an attribute of", path)(e)),
            }
        }
        Ok(())
    }

    /// The directory that a new entry goes into. What is there in this layer already is removed; what is there
    /// below must not be a directory.
    fn place(&mut self, path: &Path, parents: Access) -> Result<OwnedFd> {
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        self.ensure_directory(&parent, parents)?;
        if self.kind(path)? == Some(FileKind::Dir) {
            return Err(isles_spec::Error::new(format!(
                "cannot copy to '/{}': it is a directory in the image",
                path.display()
            ))
            .with_hint("a file cannot take the place of a directory; remove that in an earlier RUN")
            .into());
        }
        let fd =
            self.open(&parent, OFlags::PATH | OFlags::DIRECTORY).map_err(self.failed("open", &parent))?;
        match unlinkat(&fd, name_of(path), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(fd),
            Err(e) => Err(self.failed("replace", path)(e)),
        }
    }

    /// Takes away what is at a path, with all below it, so that something else can come there.
    pub fn remove(&mut self, path: &Path) -> Result<()> {
        if let Some(kind) = self.kind_below(path)? {
            self.removed.insert(path.to_owned(), kind);
        }
        let parent =
            match self.open(path.parent().unwrap_or(Path::new("")), OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(parent) => parent,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(self.failed("open", path)(e)),
            };
        match unlinkat(&parent, name_of(path), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                // Deletes through descriptors, and follows no links.
                let here = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
                std::fs::remove_dir_all(here.join(name_of(path))).map_err(self.failed("remove", path))?;
                self.made.retain(|made| !made.starts_with(path));
                self.directories.retain(|directory, _| !directory.starts_with(path));
            }
            Err(e) => return Err(self.failed("remove", path)(e)),
        }
        self.links.retain(|_, first| !first.starts_with(path));
        Ok(())
    }

    /// Brings a file of the layers below into this one, as it is there. `false` where there is none.
    pub fn copy_up(&mut self, path: &Path) -> Result<bool> {
        if self.kind_below(path)? != Some(FileKind::File) {
            return Ok(false);
        }
        let stat = self.lowers.lstat(path)?;
        let access = Access { mode: stat.mode, uid: stat.uid, gid: stat.gid };
        let xattrs: Xattrs = self.lowers.xattrs(path)?.into_iter().collect();
        let mut source = self.lowers.open_file(path)?;
        let shown = Path::new("/").join(path);
        self.file(path, access, &xattrs, stat.mtime, &mut |file| {
            std::io::copy(&mut source, file).map(drop).map_err(Error::io("copy", &shown))
        })?;
        Ok(true)
    }

    /// Hides what the layers below have in a directory (overlayfs.rst, "whiteouts and opaque directories").
    fn set_opaque(&self, fd: &OwnedFd, path: &Path) -> Result<()> {
        let name = if self.ownership.userxattr() { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        fsetxattr(fd, name, b"y", XattrFlags::empty()).map_err(self.failed("set an attribute of", path))
    }

    /// Gives a directory of the layer this time in the end.
    pub fn set_mtime(&mut self, path: &Path, mtime: (i64, u32)) {
        if let Some(directory) = self.directories.get_mut(path) {
            directory.mtime = Some(mtime);
        }
    }

    /// Writes a file from `data`.
    pub fn file(
        &mut self,
        path: &Path,
        access: Access,
        xattrs: &Xattrs,
        mtime: (i64, u32),
        write: &mut dyn FnMut(&mut File) -> Result<()>,
    ) -> Result<()> {
        let parent = self.place(path, Access { mode: 0o755, ..access })?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&parent, name_of(path), flags, Mode::RUSR | Mode::WUSR)
            .map_err(self.failed("create", path))?;
        let mut file = File::from(fd);
        write(&mut file)?;
        let fd = OwnedFd::from(file);
        self.set_owner(&fd, path, access)?;
        self.set_xattrs(&fd, path, xattrs)?;
        fchmod(&fd, Mode::from(access.mode)).map_err(self.failed("set the mode of", path))?;
        rustix::fs::futimens(&fd, &timestamps(mtime)).map_err(self.failed("set the time of", path))
    }

    /// Writes a small file.
    pub fn bytes(&mut self, path: &Path, access: Access, mtime: (i64, u32), bytes: &[u8]) -> Result<()> {
        let shown = Path::new("/").join(path);
        self.file(path, access, &Xattrs::new(), mtime, &mut |file| {
            file.write_all(bytes).map_err(Error::io("write", &shown))
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, path: &Path, access: Access, target: &OsStr, mtime: (i64, u32)) -> Result<()> {
        let parent = self.place(path, Access { mode: 0o755, ..access })?;
        symlinkat(target, &parent, name_of(path)).map_err(self.failed("create", path))?;
        self.leaf(&parent, path, access, mtime)
    }

    /// Makes a pipe or a device.
    pub fn node(
        &mut self,
        path: &Path,
        kind: FileKind,
        device: (u32, u32),
        access: Access,
        mtime: (i64, u32),
    ) -> Result<()> {
        let parent = self.place(path, Access { mode: 0o755, ..access })?;
        let (kind, number) = match kind {
            FileKind::CharDevice => (FileType::CharacterDevice, rustix::fs::makedev(device.0, device.1)),
            FileKind::BlockDevice => (FileType::BlockDevice, rustix::fs::makedev(device.0, device.1)),
            _ => (FileType::Fifo, 0),
        };
        mknodat(&parent, name_of(path), kind, Mode::RUSR | Mode::WUSR, number)
            .map_err(self.failed("create", path))?;
        let fd =
            openat(&parent, name_of(path), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(self.failed("open", path))?;
        self.leaf(&parent, path, access, mtime)?;
        rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), Mode::from(access.mode))
            .map_err(self.failed("set the mode of", path))
    }

    /// Hides what the layers below have at a path; nothing of this layer may be there.
    pub fn hide(&mut self, path: &Path) -> Result<()> {
        if self.lowers.lstat(path).is_err_and(|e| is_absent(&e)) {
            return Ok(());
        }
        let parent = self.place(path, Access { mode: 0o755, uid: 0, gid: 0 })?;
        // The mark of overlay and of layers that are unpacked, which an ordinary user may make since Linux 5.8.
        let mark = rustix::fs::makedev(0, 0);
        mknodat(&parent, name_of(path), FileType::CharacterDevice, Mode::empty(), mark)
            .map_err(self.failed("remove", path))
    }

    /// Owner and time of what cannot be opened.
    fn leaf(&self, parent: &OwnedFd, path: &Path, access: Access, mtime: (i64, u32)) -> Result<()> {
        let name = name_of(path);
        if self.ownership.keeps_owners() {
            let (uid, gid) = (Uid::from_raw(access.uid), Gid::from_raw(access.gid));
            match chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::INVAL) => return Err(self.unmapped(path, access)),
                other => other.map_err(self.failed("set the owner of", path))?,
            }
        }
        utimensat(parent, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("set the time of", path))
    }

    /// Gives a file that was written before another name. `false` where it was not.
    pub fn hard_link(&mut self, inode: (u64, u64), path: &Path, parents: Access) -> Result<bool> {
        let Some(first) = self.links.get(&inode).cloned() else { return Ok(false) };
        self.link_to(&first, path, parents)?;
        Ok(true)
    }

    /// Gives the file at `first`, in this layer, another name.
    pub fn link_to(&mut self, first: &Path, path: &Path, parents: Access) -> Result<()> {
        if first == path {
            return Ok(());
        }
        let parent = self.place(path, Access { mode: 0o755, ..parents })?;
        let from = self
            .open(first.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(self.failed("open", first))?;
        linkat(&from, name_of(first), &parent, name_of(path), AtFlags::empty())
            .map_err(self.failed("link", path))
    }

    /// Remembers the name of a source file that may come again under another.
    pub fn remember_link(&mut self, inode: (u64, u64), path: &Path) {
        self.links.entry(inode).or_insert_with(|| path.to_owned());
    }

    /// Whether a path, without links, is in this layer itself.
    pub fn has(&self, path: &Path) -> bool {
        self.open(path.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)
            .is_ok_and(|dir| statat(&dir, name_of(path), AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// Ends the writing: directories get their modes and times. The layer is in the folder that is returned.
    pub fn finish(self) -> Result<PathBuf> {
        // From the bottom up, so that a directory is still open to us when those below it have theirs.
        for (path, end) in self.directories.iter().rev() {
            let fd =
                self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.failed("open", path))?;
            if let Some(mtime) = end.mtime {
                rustix::fs::futimens(&fd, &timestamps(mtime))
                    .map_err(self.failed("set the time of", path))?;
            }
            fchmod(&fd, Mode::from(end.mode)).map_err(self.failed("set the mode of", path))?;
        }
        Ok(self.path)
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("."))
}

fn timestamps(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}
