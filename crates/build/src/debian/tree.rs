//! The root file system while packages are put into it. Every path is resolved below one directory
//! descriptor as if that were `/` (openat2(2), RESOLVE_IN_ROOT), so no package leads outside, and packages
//! that still think of `/bin` land in `/usr/bin`.
//!
//! Packages are unpacked by several threads at once. That changes nothing about the result: files belong
//! to one package each, and directories get the mode and owner that the first package in order gives them,
//! at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use isles_store::Ownership;
use isles_store::tar::{Entry, Kind, ReadLimits, Reader};
use md5::{Digest as _, Md5};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, fchmod, fchown, linkat,
    mkdirat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::deb::{drain, tar_error};

/// Directories that a worker keeps open.
const OPEN: usize = 400;

/// A root file system being made.
pub struct Tree {
    root: OwnedFd,
    ownership: Ownership,
}

/// What unpacking a package's data gave.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Its paths as dpkg lists them, in the archive's order, `/.` first.
    pub paths: Vec<String>,
    /// Mode and owner of its directories.
    pub directories: Vec<(Vec<u8>, Meta)>,
    /// MD5 of its configuration files, in hexadecimal, by path.
    pub conffiles: HashMap<String, String>,
    /// MD5 of its other files, where that was asked for.
    pub sums: BTreeMap<String, String>,
    /// The newest time of its files, seconds since 1970.
    pub newest: i64,
}

/// Mode and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

fn refuse(path: &[u8], reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("'{}': {reason}", String::from_utf8_lossy(path)))
}

fn failed(doing: &str, path: &[u8], e: Errno) -> io::Error {
    let e = io::Error::from(e);
    io::Error::new(e.kind(), format!("cannot {doing} '{}': {e}", String::from_utf8_lossy(path)))
}

impl Tree {
    /// A tree in the empty directory `path`.
    pub fn open(path: &Path, ownership: Ownership) -> io::Result<Tree> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Tree { root: rustix::fs::open(path, flags, Mode::empty())?, ownership })
    }

    fn resolve(&self, path: &[u8], flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, how) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// The directory at a clean path, made with what is missing above it.
    pub fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        match self.resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if !path.is_empty() => {
                let (parent, name) = split(path);
                let parent = self.directory(parent)?;
                match mkdirat(&parent, name, Mode::from(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(failed("create", path, e)),
                }
                self.resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                    .map_err(|e| failed("open", path, e))
            }
            other => other.map_err(|e| failed("open", path, e)),
        }
    }

    /// Writes a file of root's, in place of what is there.
    pub fn write(&self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let path = path.as_bytes();
        let (parent, name) = split(path);
        let parent = self.directory(parent)?;
        match unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("replace", path, e)),
        }
        let fd = create(&parent, name).map_err(|e| failed("create", path, e))?;
        write_all(&fd, bytes).map_err(|e| failed("write", path, e))?;
        fchmod(&fd, Mode::from(mode)).map_err(|e| failed("set the mode of", path, e))
    }

    /// Reads a file of at most `limit` bytes; `None` where there is none.
    pub fn read(&self, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match self.resolve(path.as_bytes(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed("open", path.as_bytes(), e)),
        };
        let bytes = isles_store::read_bounded(std::fs::File::from(fd), limit)?;
        bytes.map(Some).ok_or_else(|| refuse(path.as_bytes(), "it is too large"))
    }

    /// Whether something is there, the last component not followed.
    pub fn exists(&self, path: &str) -> bool {
        let (parent, name) = split(path.as_bytes());
        self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .is_ok_and(|dir| statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// Makes a symbolic link where nothing is.
    pub fn link(&self, path: &str, target: &str) -> io::Result<()> {
        let (parent, name) = split(path.as_bytes());
        let parent = self.directory(parent)?;
        symlinkat(target, &parent, name).map_err(|e| failed("create", path.as_bytes(), e))
    }

    /// Renames within one directory.
    pub fn rename(&self, path: &str, name: &str) -> io::Result<()> {
        let (parent, old) = split(path.as_bytes());
        let parent = self.directory(parent)?;
        rustix::fs::renameat(&parent, old, &parent, name).map_err(|e| failed("rename", path.as_bytes(), e))
    }

    /// Removes a file; what is not there is fine, and so are directories, which stay.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let (parent, name) = split(path.as_bytes());
        let Ok(parent) = self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) else {
            return Ok(());
        };
        match unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR | Errno::PERM) => Ok(()),
            Err(e) => Err(failed("remove", path.as_bytes(), e)),
        }
    }

    /// The names in a directory that lead to something else than directories; none where there is no
    /// such directory.
    pub fn names(&self, path: &str) -> io::Result<Vec<(String, bool)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(dir) = self.resolve(path.as_bytes(), flags, Mode::empty()) else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push((name, entry.file_type() == FileType::Directory));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes all files below a directory; the directories stay where `keep_directories` says so.
    pub fn empty(&self, path: &str, keep_directories: bool) -> io::Result<()> {
        for (name, is_directory) in self.names(path)? {
            let child = if path.is_empty() { name } else { format!("{path}/{name}") };
            if !is_directory {
                self.remove(&child)?;
                continue;
            }
            self.empty(&child, keep_directories)?;
            if !keep_directories {
                let (parent, name) = split(child.as_bytes());
                let parent = self.directory(parent)?;
                unlinkat(&parent, name, AtFlags::REMOVEDIR)
                    .map_err(|e| failed("remove", child.as_bytes(), e))?;
            }
        }
        Ok(())
    }

    /// Gives a directory its mode and owner. Symbolic links that stand for directories keep theirs.
    pub fn set_directory(&self, path: &[u8], meta: Meta) -> io::Result<()> {
        let (parent, name) = split(path);
        let parent = self.directory(parent)?;
        let name = if name.is_empty() { b".".as_slice() } else { name };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(&parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(failed("open", path, e)),
        };
        self.own(fd.as_fd(), meta).map_err(|e| failed("set the owner of", path, e))?;
        fchmod(&fd, Mode::from(meta.mode)).map_err(|e| failed("set the mode of", path, e))
    }

    fn own(&self, fd: BorrowedFd<'_>, meta: Meta) -> rustix::io::Result<()> {
        if (meta.uid, meta.gid) == (0, 0) {
            return Ok(());
        }
        if self.ownership.keeps_owners() {
            match fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid))) {
                // Outside the range of this user namespace.
                Err(Errno::INVAL) => {}
                other => return other,
            }
        }
        isles_store::record_owner(fd, meta.uid, meta.gid)
    }

    /// Unpacks a package's data archive. Paths in `conffiles` are hashed; with `sums`, all others too.
    ///
    /// # Errors
    /// The archive is damaged, leads outside, holds what a package may not, or a file that is there already.
    pub fn unpack(&self, data: impl Read, conffiles: &HashSet<String>, sums: bool) -> io::Result<Unpacked> {
        let limits = ReadLimits { entries: 1 << 20, ..ReadLimits::default() };
        let mut reader = Reader::new(BufReader::with_capacity(128 << 10, data), limits);
        let mut worker = Worker { tree: self, open: HashMap::new(), out: Unpacked::default() };
        let mut entry = Entry::default();
        let mut path = Vec::new();
        while reader.next(&mut entry).map_err(tar_error)? {
            clean(&entry.path, &mut path)?;
            let listed = match path.is_empty() {
                true => "/.".to_owned(),
                false => format!("/{}", String::from_utf8_lossy(&path)),
            };
            worker.out.newest = worker.out.newest.max(entry.mtime.0);
            match entry.kind {
                Kind::Dir => worker.dir(&entry, &path)?,
                Kind::File => {
                    let conffile = conffiles.contains(&listed);
                    let mut hash = (conffile || sums).then(Md5::new);
                    worker.file(&entry, &path, &mut reader, hash.as_mut())?;
                    if let Some(hash) = hash {
                        let hex = isles_spec::digest::hex(&hash.finalize());
                        if conffile {
                            worker.out.conffiles.insert(listed.clone(), hex);
                        } else {
                            worker.out.sums.insert(listed[1..].to_owned(), hex);
                        }
                    }
                }
                Kind::Symlink => worker.symlink(&entry, &path)?,
                Kind::Hardlink => worker.hardlink(&entry, &path)?,
                Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                    return Err(refuse(&path, "packages may not hold devices or pipes"));
                }
            }
            worker.out.paths.push(listed);
        }
        // The rest of the stream tells whether it was whole.
        drain(reader.into_inner())?;
        Ok(worker.out)
    }
}

/// One thread that unpacks one package.
struct Worker<'t> {
    tree: &'t Tree,
    open: HashMap<Vec<u8>, OwnedFd>,
    out: Unpacked,
}

impl Worker<'_> {
    fn parent<'p>(&mut self, path: &'p [u8]) -> io::Result<(&OwnedFd, &'p [u8])> {
        let (parent, name) = split(path);
        if !self.open.contains_key(parent) {
            if self.open.len() >= OPEN {
                self.open.clear();
            }
            let fd = self.tree.directory(parent)?;
            self.open.insert(parent.to_vec(), fd);
        }
        Ok((&self.open[parent], name))
    }

    fn dir(&mut self, entry: &Entry, path: &[u8]) -> io::Result<()> {
        let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid };
        if !path.is_empty() {
            let (parent, name) = self.parent(path)?;
            match mkdirat(parent, name, Mode::from(0o755)) {
                Ok(()) => {}
                // A link to a directory will do as well.
                Err(Errno::EXIST) => {
                    self.tree
                        .resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                        .map_err(|e| failed("create the directory", path, e))?;
                }
                Err(e) => return Err(failed("create the directory", path, e)),
            }
        }
        self.out.directories.push((path.to_vec(), meta));
        Ok(())
    }

    fn file<R: io::BufRead>(
        &mut self,
        entry: &Entry,
        path: &[u8],
        reader: &mut Reader<R>,
        mut hash: Option<&mut Md5>,
    ) -> io::Result<()> {
        if entry.sparse.is_some() {
            return Err(refuse(path, "packages may not hold sparse files"));
        }
        let (parent, name) = self.parent(path)?;
        let fd = create(parent, name).map_err(|e| match e {
            Errno::EXIST => refuse(path, "another package has a file of this name"),
            e => failed("create", path, e),
        })?;
        loop {
            let data = reader.data().map_err(tar_error)?;
            if data.is_empty() {
                break;
            }
            if let Some(hash) = &mut hash {
                hash.update(data);
            }
            write_all(&fd, data).map_err(|e| failed("write", path, e))?;
            let n = data.len();
            reader.consume(n);
        }
        let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid };
        self.tree.own(fd.as_fd(), meta).map_err(|e| failed("set the owner of", path, e))?;
        // After the owner, because a change of owner takes setuid bits away.
        fchmod(&fd, Mode::from(entry.mode)).map_err(|e| failed("set the mode of", path, e))?;
        rustix::fs::futimens(&fd, &times(entry.mtime)).map_err(|e| failed("set the time of", path, e))
    }

    fn symlink(&mut self, entry: &Entry, path: &[u8]) -> io::Result<()> {
        if entry.link.is_empty() {
            return Err(refuse(path, "a symbolic link has no target"));
        }
        let keeps_owners = self.tree.ownership.keeps_owners();
        let (parent, name) = self.parent(path)?;
        match symlinkat(entry.link.as_slice(), parent, name) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let same = rustix::fs::readlinkat(parent, name, Vec::new())
                    .is_ok_and(|target| target.as_bytes() == entry.link);
                let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| failed("look at", path, e))?;
                // A directory in the place of a link stays, as dpkg has it.
                let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !same && !directory {
                    return Err(refuse(path, "another package has a file of this name"));
                }
                return Ok(());
            }
            Err(e) => return Err(failed("create", path, e)),
        }
        if keeps_owners && (entry.uid, entry.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            match rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(e) => return Err(failed("set the owner of", path, e)),
            }
        }
        utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("set the time of", path, e))
    }

    fn hardlink(&mut self, entry: &Entry, path: &[u8]) -> io::Result<()> {
        let mut target = Vec::new();
        clean(&entry.link, &mut target)?;
        let (target_parent, target_name) = split(&target);
        let target_dir = self.tree.directory(target_parent)?;
        let stat = statat(&target_dir, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("find the target of", path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refuse(path, "a hard link does not lead to a file"));
        }
        let (parent, name) = self.parent(path)?;
        linkat(&target_dir, target_name, parent, name, AtFlags::empty()).map_err(|e| failed("link", path, e))
    }
}

fn create(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::from(0o600))
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn times((tv_sec, tv_nsec): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: i64::from(tv_nsec) };
    Timestamps { last_access: time, last_modification: time }
}

/// Directory and last component of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A path of an archive without `./`, leading, doubled and trailing slashes; what climbs is refused.
fn clean(path: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.clear();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(refuse(path, "a path may not contain '..'")),
            c if c.contains(&b'\n') => return Err(refuse(path, "a path may not contain a line break")),
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(component);
    }
    Ok(())
}
