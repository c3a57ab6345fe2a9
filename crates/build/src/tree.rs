//! What files are copied from: a folder of the host, or the layers of another stage or image.
//!
//! A folder is read through one descriptor: every path is resolved below it as if it were `/` (openat2(2),
//! RESOLVE_IN_ROOT), so no symbolic link in a build context leads to a file of the host.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use isles_store::{FileKind, Merged};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// As the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;

/// Metadata of a file to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    /// Device and inode.
    pub inode: (u64, u64),
    pub links: u64,
    /// When the inode last changed, where that is known.
    pub ctime: Option<(i64, u32)>,
}

/// Extended attributes, sorted by name.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// A source of files. All paths are relative to it; absolute ones mean the same.
#[derive(Debug)]
pub enum Tree {
    Folder(Folder),
    Layers(Merged),
}

/// A folder of the host.
#[derive(Debug)]
pub struct Folder {
    root: OwnedFd,
    path: PathBuf,
}

impl Folder {
    pub fn open(path: &Path) -> Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?;
        Ok(Folder { root, path: path.to_owned() })
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Tree {
    /// Metadata of what is at a path, a link itself; `None` where nothing is.
    pub fn lstat(&self, path: &Path) -> Result<Option<Meta>> {
        match self {
            Tree::Folder(folder) => match folder.open_at(path, OFlags::PATH | OFlags::NOFOLLOW) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                other => other,
            }
            .and_then(|fd| rustix::fs::fstat(&fd))
            .map(|raw| Some(of_context(&raw)))
            .map_err(Error::io("look at", folder.at(path))),
            Tree::Layers(view) => match view.lstat(path) {
                Ok(stat) => Ok(Some(of_layers(stat))),
                Err(e) if is_absent(&e) => Ok(None),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// The names in a directory with their metadata, sorted by name.
    pub fn list(&self, path: &Path) -> Result<Vec<(OsString, Meta)>> {
        let mut out = Vec::new();
        match self {
            Tree::Folder(folder) => {
                let failed = |e: Errno| Error::io("read", folder.at(path))(e);
                let dir = folder.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
                for entry in Dir::read_from(&dir).map_err(failed)? {
                    let entry = entry.map_err(failed)?;
                    let name = entry.file_name().to_bytes();
                    if matches!(name, b"." | b"..") {
                        continue;
                    }
                    match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(raw) => out.push((OsString::from_vec(name.to_vec()), of_context(&raw))),
                        // Gone since its name was read.
                        Err(Errno::NOENT) => {}
                        Err(e) => {
                            let path = folder.at(path).join(OsString::from_vec(name.to_vec()));
                            return Err(Error::io("look at", path)(e));
                        }
                    }
                }
            }
            Tree::Layers(view) => {
                for entry in view.read_dir(path)? {
                    let stat = view.lstat(&path.join(&entry.name))?;
                    out.push((entry.name, of_layers(stat)));
                }
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, path: &Path) -> Result<OsString> {
        match self {
            Tree::Folder(folder) => folder
                .open_at(path, OFlags::PATH | OFlags::NOFOLLOW)
                .and_then(|fd| readlinkat(&fd, c"", Vec::new()))
                .map(|target| OsString::from_vec(target.into_bytes()))
                .map_err(Error::io("read the link", folder.at(path))),
            Tree::Layers(view) => Ok(view.readlink(path)?),
        }
    }

    /// Opens a regular file, and nothing else.
    pub fn open_file(&self, path: &Path) -> Result<File> {
        match self {
            Tree::Folder(folder) => folder
                .open_at(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY)
                .and_then(|fd| {
                    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
                    if kind == FileType::RegularFile { Ok(File::from(fd)) } else { Err(Errno::INVAL) }
                })
                .map_err(Error::io("open", folder.at(path))),
            Tree::Layers(view) => Ok(view.open_file(path)?),
        }
    }

    /// The extended attributes of a file or directory that belong into an image.
    pub fn xattrs(&self, path: &Path) -> Result<Xattrs> {
        match self {
            Tree::Folder(folder) => folder
                .open_at(path, OFlags::PATH | OFlags::NOFOLLOW)
                .and_then(|fd| context_xattrs(&fd))
                .map_err(Error::io("read the attributes of", folder.at(path))),
            Tree::Layers(view) => Ok(view.xattrs(path)?.into_iter().collect()),
        }
    }

    /// The path without symbolic links that `path` leads to, and what is there. Links are followed with the
    /// tree as `/`. `None` where nothing is there.
    pub fn follow(&self, path: &Path) -> Result<Option<(PathBuf, Meta)>> {
        let mut links = 0;
        let mut here = PathBuf::new();
        let mut todo = names(path);
        todo.reverse();
        let mut last = self.lstat(&here)?;
        while let Some(name) = todo.pop() {
            if name == ".." {
                here.pop();
                last = self.lstat(&here)?;
                continue;
            }
            here.push(&name);
            last = self.lstat(&here)?;
            match &last {
                None => return Ok(None),
                Some(meta) if meta.kind == FileKind::Symlink => {
                    links += 1;
                    if links > LINKS {
                        return Err(Error::io("follow", self.place(path))(Errno::LOOP));
                    }
                    let target = PathBuf::from(self.readlink(&here)?);
                    here.pop();
                    if target.is_absolute() {
                        here.clear();
                    }
                    let mut more = names(&target);
                    more.reverse();
                    todo.extend(more);
                    if todo.is_empty() {
                        last = self.lstat(&here)?;
                    }
                }
                Some(meta) if meta.kind != FileKind::Dir && !todo.is_empty() => return Ok(None),
                Some(_) => {}
            }
        }
        Ok(last.map(|meta| (here, meta)))
    }

    /// What messages call the source.
    pub fn describe(&self) -> String {
        match self {
            Tree::Folder(folder) => format!("'{}'", folder.path.display()),
            Tree::Layers(_) => "the image that is copied from".to_owned(),
        }
    }

    /// A path as messages show it.
    pub fn place(&self, path: &Path) -> PathBuf {
        match self {
            Tree::Folder(folder) => folder.at(path),
            Tree::Layers(_) => Path::new("/").join(path),
        }
    }
}

/// The components of a path that matter for a walk from the root.
pub fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

/// The path without links that `path` leads to in a tree that `kind` and `readlink` show, with that as `/`.
/// What does not exist is kept as it is written.
pub fn resolve(
    path: &Path,
    kind: &dyn Fn(&Path) -> Result<Option<FileKind>>,
    readlink: &dyn Fn(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let mut here = PathBuf::new();
    let mut todo = names(path);
    todo.reverse();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        here.push(name);
        if kind(&here)? != Some(FileKind::Symlink) {
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(Error::io("follow", path)(Errno::LOOP));
        }
        let target = readlink(&here)?;
        here.pop();
        if target.is_absolute() {
            here.clear();
        }
        let mut more = names(&target);
        more.reverse();
        todo.extend(more);
    }
    Ok(here)
}

/// Whether an error of the store means that nothing is at a path.
pub fn is_absent(error: &isles_store::Error) -> bool {
    let isles_store::Error::Io { source, .. } = error else { return false };
    matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// What comes from a build context belongs to root, whoever owns it on the host.
fn of_context(raw: &rustix::fs::Stat) -> Meta {
    Meta {
        kind: match FileType::from_raw_mode(raw.st_mode) {
            FileType::Directory => FileKind::Dir,
            FileType::Symlink => FileKind::Symlink,
            FileType::CharacterDevice => FileKind::CharDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            _ => FileKind::File,
        },
        mode: raw.st_mode & 0o7777,
        uid: 0,
        gid: 0,
        size: raw.st_size as u64,
        mtime: (raw.st_mtime, raw.st_mtime_nsec as u32),
        device: (rustix::fs::major(raw.st_rdev), rustix::fs::minor(raw.st_rdev)),
        inode: (raw.st_dev, raw.st_ino),
        links: raw.st_nlink,
        ctime: Some((raw.st_ctime, raw.st_ctime_nsec as u32)),
    }
}

fn of_layers(stat: isles_store::Stat) -> Meta {
    Meta {
        kind: stat.kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mtime: stat.mtime,
        device: stat.device,
        inode: stat.inode,
        links: stat.links,
        ctime: None,
    }
}

/// Of a file of the host only what its user attached to it goes along, and what lets it run with privileges.
fn context_xattrs(fd: &OwnedFd) -> rustix::io::Result<Xattrs> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let mut names = [0u8; 4096];
    let listed = match rustix::fs::listxattr(&*path, &mut names[..]) {
        Ok(n) => names[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; 64 << 10];
            let n = rustix::fs::listxattr(&*path, &mut large[..])?;
            large.truncate(n);
            large
        }
        Err(Errno::OPNOTSUPP | Errno::NODATA | Errno::NOENT | Errno::LOOP) => return Ok(Xattrs::new()),
        Err(e) => return Err(e),
    };
    let mut out = Xattrs::new();
    for name in listed.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let own = name.starts_with(b"user.overlay.") || name.starts_with(b"user.isles.");
        if own || !(name.starts_with(b"user.") || name == b"security.capability") {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::getxattr(&*path, name, &mut value[..]) {
            Ok(n) => {
                value.truncate(n);
                out.insert(OsString::from_vec(name.to_vec()), value);
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/f"), "x").unwrap();
        symlink("/a", root.join("absolute")).unwrap();
        symlink("../../../../a/b", root.join("a/up")).unwrap();
        symlink("/etc/passwd", root.join("out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let tree = Tree::Folder(Folder::open(root).unwrap());
        for (path, leads) in [
            ("a/b/f", Some("a/b/f")),
            ("/a/b/f", Some("a/b/f")),
            ("absolute/b/f", Some("a/b/f")),
            ("a/up/f", Some("a/b/f")),
            ("absolute", Some("a")),
            ("../..", Some("")),
            ("out", None),
            ("nothing", None),
            ("a/b/f/x", None),
        ] {
            let found = tree.follow(Path::new(path)).unwrap().map(|(p, _)| p);
            assert_eq!(found.as_deref(), leads.map(Path::new), "{path}");
        }
        assert!(tree.follow(Path::new("loop")).is_err());
        assert!(tree.open_file(Path::new("out")).is_err());
        let names: Vec<_> = tree.list(Path::new("a")).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["b", "up"]);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let tree = Tree::Folder(Folder::open(dir.path()).unwrap());
        assert!(tree.open_file(Path::new("fifo")).is_err());
        assert_eq!(tree.lstat(Path::new("fifo")).unwrap().unwrap().kind, FileKind::Fifo);
    }
}
