//! The merged view of a stack of layers, without a mount: lookups that honour whiteouts and opaque
//! directories (overlayfs.rst), by descriptors, never leaving the layers.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::error::At;
use crate::{Error, Ownership, Result, xattr};

/// As the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;
/// So many directories are kept open, each once for every layer that has it.
const OPEN: usize = 32;

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileKind {
    pub(crate) fn of(kind: FileType) -> FileKind {
        match kind {
            FileType::Directory => FileKind::Dir,
            FileType::Symlink => FileKind::Symlink,
            FileType::CharacterDevice => FileKind::CharDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            _ => FileKind::File,
        }
    }
}

/// Metadata of a file in the merged view, with the owner that the image means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a regular file, or of a symbolic link's target.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Device number of devices: major, minor.
    pub device: (u32, u32),
    /// Tells files with several names apart: device and inode.
    pub inode: (u64, u64),
    pub links: u64,
}

/// A name in a directory of the merged view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub kind: FileKind,
}

/// One directory of the view: the same directory in the layers that have it, top first.
type Stack = Arc<Vec<OwnedFd>>;

/// A stack of layers seen as one tree. The layers must not change while it is used.
#[derive(Debug)]
pub struct Merged {
    root: Stack,
    ownership: Ownership,
    open: Mutex<HashMap<Vec<u8>, Stack>>,
}

/// What a path leads to.
enum Node {
    Dir(Stack),
    /// Anything else: the layer's directory that it is in, and its name there.
    Leaf {
        stack: Stack,
        layer: usize,
        name: Vec<u8>,
        kind: FileType,
    },
}

impl Merged {
    /// The view of `layers`, base first as [`Store::layers_of`](crate::Store::layers_of) gives them.
    pub fn open(layers: &[PathBuf], ownership: Ownership) -> Result<Merged> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &PathBuf| rustix::fs::open(path, flags, Mode::empty()).at("open", path);
        let root = layers.iter().rev().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Merged { root: Arc::new(root), ownership, open: Mutex::default() })
    }

    /// Opens a regular file. Symbolic links are followed inside the view; the path may be absolute or
    /// relative and means the same.
    pub fn open_file(&self, path: &Path) -> Result<File> {
        let opened = self.resolve(path, true).and_then(|node| match node {
            Node::Leaf { stack, layer, name, kind: FileType::RegularFile } => {
                open_readable(&stack[layer], &name)
            }
            Node::Dir(_) => Err(Errno::ISDIR),
            // Opening a device or a pipe would do more than read.
            Node::Leaf { .. } => Err(Errno::INVAL),
        });
        opened.map(File::from).at("open", path)
    }

    /// Metadata, of the link itself where the last component is a symbolic link.
    pub fn lstat(&self, path: &Path) -> Result<Stat> {
        self.stat_of(path, false)
    }

    /// Metadata, following symbolic links.
    pub fn stat(&self, path: &Path) -> Result<Stat> {
        self.stat_of(path, true)
    }

    fn stat_of(&self, path: &Path, follow: bool) -> Result<Stat> {
        let node = self.resolve(path, follow).at("look at", path)?;
        let (raw, owner) = match &node {
            Node::Dir(stack) => match stack.first() {
                Some(fd) => {
                    (rustix::fs::fstat(fd), self.owner(|name, out| rustix::fs::fgetxattr(fd, name, out)))
                }
                // A view of no layers has an empty root.
                None => {
                    return Ok(Stat {
                        kind: FileKind::Dir,
                        mode: 0o755,
                        uid: 0,
                        gid: 0,
                        size: 0,
                        mtime: (0, 0),
                        device: (0, 0),
                        inode: (0, 0),
                        links: 1,
                    });
                }
            },
            Node::Leaf { stack, layer, name, kind } => {
                let fd = &stack[*layer];
                let owner = match kind {
                    FileType::RegularFile => {
                        let at = crate::sys::proc_child(fd.as_fd(), name);
                        self.owner(|attribute, out| rustix::fs::lgetxattr(&at[..], attribute, out))
                    }
                    _ => None,
                };
                (statat(fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW), owner)
            }
        };
        let raw = raw.at("look at", path)?;
        Ok(from_raw(&raw, owner, self.ownership))
    }

    /// The recorded owner, where this kind of ownership records any.
    fn owner(&self, get: impl Fn(&str, &mut [u8]) -> rustix::io::Result<usize>) -> Option<(u32, u32)> {
        if self.ownership == Ownership::Root {
            return None;
        }
        let mut value = [0u8; 32];
        let n = get(xattr::OWNER, &mut value).ok()?;
        xattr::parse_owner(&value[..n])
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, path: &Path) -> Result<OsString> {
        let target = self.resolve(path, false).and_then(|node| match node {
            Node::Leaf { stack, layer, name, kind: FileType::Symlink } => {
                readlinkat(&stack[layer], name.as_slice(), Vec::new())
            }
            _ => Err(Errno::INVAL),
        });
        target.map(|t| OsString::from_vec(t.into_bytes())).at("read the link", path)
    }

    /// The names in a directory, sorted by bytes.
    pub fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let names = self.resolve(path, true).and_then(|node| match node {
            Node::Dir(stack) => list(&stack),
            Node::Leaf { .. } => Err(Errno::NOTDIR),
        });
        names.at("read", path)
    }

    /// Extended attributes of the file itself, without overlay's and the store's own.
    pub fn xattrs(&self, path: &Path) -> Result<Vec<(OsString, Vec<u8>)>> {
        let node = self.resolve(path, false).at("look at", path)?;
        let at = match &node {
            Node::Dir(stack) => match stack.first() {
                Some(fd) => crate::sys::proc_path(fd.as_fd()).into_bytes(),
                None => return Ok(Vec::new()),
            },
            Node::Leaf { kind: FileType::RegularFile, stack, layer, name } => {
                crate::sys::proc_child(stack[*layer].as_fd(), name)
            }
            Node::Leaf { .. } => return Ok(Vec::new()),
        };
        let follow = matches!(node, Node::Dir(_));
        let attributes = xattr::list(&at, follow).at("read the attributes of", path)?;
        let exported = attributes.into_iter().filter(|(name, _)| xattr::exported(name));
        Ok(exported.map(|(name, value)| (OsString::from_vec(name), value)).collect())
    }

    /// Whether something is there, following symbolic links.
    pub fn exists(&self, path: &Path) -> bool {
        self.resolve(path, true).is_ok()
    }

    /// The path without any symbolic link that leads to the same file; what does not exist is kept as it is
    /// written.
    pub fn canonical(&self, path: &Path) -> Result<PathBuf> {
        let mut names = Vec::new();
        match self.walk(path.as_os_str().as_bytes(), true, &mut names) {
            Ok(_) => {}
            Err(e) => return Err(Error::io("look at", path, e)),
        }
        Ok(names.iter().map(|n| OsStr::from_bytes(n)).collect())
    }

    fn resolve(&self, path: &Path, follow: bool) -> rustix::io::Result<Node> {
        let bytes = path.as_os_str().as_bytes();
        // Most lookups are in a directory that was just used.
        let mut clean = Vec::new();
        if crate::dirs::clean(bytes, &mut clean).is_ok() && !clean.is_empty() {
            let (parent, name) = crate::dirs::split(&clean);
            let stack = self.directory(parent)?;
            let node = step(&stack, name)?;
            if !follow || !matches!(node, Node::Leaf { kind: FileType::Symlink, .. }) {
                return Ok(node);
            }
        }
        self.walk(bytes, follow, &mut Vec::new())
    }

    /// A directory by its clean path.
    fn directory(&self, path: &[u8]) -> rustix::io::Result<Stack> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        let lock = || self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(stack) = lock().get(path) {
            return Ok(stack.clone());
        }
        let Node::Dir(stack) = self.walk(path, true, &mut Vec::new())? else { return Err(Errno::NOTDIR) };
        let mut open = lock();
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert(path.to_vec(), stack.clone());
        Ok(stack)
    }

    /// Walks component by component with the view as `/`; `names` receives the path without links.
    fn walk(&self, path: &[u8], follow: bool, names: &mut Vec<Vec<u8>>) -> rustix::io::Result<Node> {
        let mut todo: Vec<Vec<u8>> = path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut stacks: Vec<Stack> = Vec::new();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    stacks.pop();
                    names.pop();
                    continue;
                }
                _ => {}
            }
            let here = stacks.last().unwrap_or(&self.root);
            match step(here, &component)? {
                Node::Dir(stack) => {
                    stacks.push(stack);
                    names.push(component);
                }
                Node::Leaf { stack, layer, name, kind: FileType::Symlink }
                    if follow || todo.iter().any(|c| !c.is_empty()) =>
                {
                    links += 1;
                    if links > LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(&stack[layer], name.as_slice(), Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        stacks.clear();
                        names.clear();
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                leaf => {
                    names.push(component);
                    return if todo.is_empty() { Ok(leaf) } else { Err(Errno::NOTDIR) };
                }
            }
        }
        Ok(Node::Dir(stacks.pop().unwrap_or_else(|| self.root.clone())))
    }
}

/// One name in a merged directory.
fn step(stack: &Stack, name: &[u8]) -> rustix::io::Result<Node> {
    let mut found = Vec::new();
    for (layer, dir) in stack.iter().enumerate() {
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            break;
        }
        if kind != FileType::Directory {
            if found.is_empty() {
                return Ok(Node::Leaf { stack: stack.clone(), layer, name: name.to_vec(), kind });
            }
            break;
        }
        let fd = open_readable_dir(dir, name)?;
        let opaque = is_opaque(&fd);
        found.push(fd);
        if opaque {
            break;
        }
    }
    if found.is_empty() { Err(Errno::NOENT) } else { Ok(Node::Dir(Arc::new(found))) }
}

fn list(stack: &Stack) -> rustix::io::Result<Vec<DirEntry>> {
    let mut seen: HashMap<Vec<u8>, Option<FileKind>> = HashMap::new();
    for dir in stack.iter() {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || seen.contains_key(name) {
                continue;
            }
            let mut kind = entry.file_type();
            if matches!(kind, FileType::Unknown | FileType::CharacterDevice) {
                let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                kind = FileType::from_raw_mode(stat.st_mode);
                if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                    seen.insert(name.to_vec(), None);
                    continue;
                }
            }
            seen.insert(name.to_vec(), Some(FileKind::of(kind)));
        }
    }
    let present = seen.into_iter().filter_map(|(name, kind)| kind.map(|kind| (name, kind)));
    let mut out: Vec<DirEntry> =
        present.map(|(name, kind)| DirEntry { name: OsString::from_vec(name), kind }).collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// Whether a directory hides those below it; both prefixes count, since only the store makes layers.
fn is_opaque(dir: &OwnedFd) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0u8; 4];
        matches!(rustix::fs::fgetxattr(dir, *name, &mut value[..]), Ok(1) if value[0] == b'y')
    })
}

/// Opens a file for reading also where its mode forbids that to its owner, who is not root here.
pub(crate) fn open_readable(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_despite_mode(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK)
}

pub(crate) fn open_readable_dir(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_despite_mode(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)
}

/// A directory that can be walked, also where its mode shuts out its owner: then it is open until this is
/// dropped.
pub(crate) struct Walkable {
    pub fd: OwnedFd,
    shut: Option<u32>,
}

impl Walkable {
    /// `mode` is what the directory has.
    pub(crate) fn open(dir: &OwnedFd, name: &[u8], mode: u32) -> rustix::io::Result<Walkable> {
        let fd = open_readable_dir(dir, name)?;
        let root = rustix::process::geteuid().is_root();
        let shut = (!root && mode & 0o500 != 0o500).then_some(mode & 0o7777);
        if shut.is_some() {
            rustix::fs::fchmod(&fd, Mode::from(mode & 0o7777 | 0o700))?;
        }
        Ok(Walkable { fd, shut })
    }
}

impl Drop for Walkable {
    fn drop(&mut self) {
        if let Some(mode) = self.shut {
            // It is the caller's own, and was changed a moment ago.
            let _ = rustix::fs::fchmod(&self.fd, Mode::from(mode));
        }
    }
}

fn open_despite_mode(dir: &OwnedFd, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let held = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let mode = rustix::fs::fstat(&held)?.st_mode & 0o7777;
            crate::sys::chmod_path_fd(held.as_fd(), mode | 0o700)?;
            let opened = openat(dir, name, flags, Mode::empty());
            crate::sys::chmod_path_fd(held.as_fd(), mode)?;
            opened
        }
        other => other,
    }
}

// On other processors some of these fields are narrower.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn from_raw(raw: &rustix::fs::Stat, owner: Option<(u32, u32)>, ownership: Ownership) -> Stat {
    let stored = if ownership.keeps_owners() { (raw.st_uid, raw.st_gid) } else { (0, 0) };
    let (uid, gid) = owner.unwrap_or(stored);
    Stat {
        kind: FileKind::of(FileType::from_raw_mode(raw.st_mode)),
        mode: raw.st_mode & 0o7777,
        uid,
        gid,
        size: raw.st_size as u64,
        mtime: (raw.st_mtime as i64, raw.st_mtime_nsec as u32),
        device: (rustix::fs::major(raw.st_rdev), rustix::fs::minor(raw.st_rdev)),
        inode: (raw.st_dev as u64, raw.st_ino as u64),
        links: raw.st_nlink as u64,
    }
}
