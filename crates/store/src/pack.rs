//! From a tree to an archive, the same bytes for the same tree: names sorted, times in whole seconds, owners
//! as the image means them, overlay's markers as whiteout entries (image-spec, layer.md).

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, SeekFrom, readlinkat, statat};
use rustix::io::Errno;

use crate::merged::{FileKind, Merged, Stat, Walkable, from_raw, open_readable};
use crate::tar::{Entry, Kind, Segment, Writer, display};
use crate::{Error, Ownership, Result, xattr};

/// Directories deeper than this would use up the descriptors of an ordinary process.
const DEPTH: usize = 400;
const BUFFER: usize = 256 << 10;
/// Files from this size on are looked at for holes.
const SPARSE: u64 = 1 << 20;

/// What to make of a tree.
pub(crate) struct Packing<'a> {
    pub ownership: Ownership,
    /// The tree is an overlay's upper directory.
    pub upper: bool,
    /// What an upper directory lies on, for what overlay moved or changed without a copy.
    pub lowers: Option<&'a Merged>,
    pub clamp_mtime: Option<i64>,
    /// Clean paths that are left out.
    pub exclude: &'a BTreeSet<Vec<u8>>,
    /// Others change the tree meanwhile: what vanishes is left out, what becomes shorter is filled up with zeros.
    pub live: bool,
}

/// What came of it, besides the archive.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub entries: u64,
    /// Bytes of regular files.
    pub content: u64,
    /// The archive has more than the tree: overlay had redirected or left data below.
    pub relocated: bool,
    /// Clean paths of the tree that are not in the archive.
    pub left_out: Vec<Vec<u8>>,
    /// Clean paths of the tree that are later than their entries, whose times were clamped.
    pub later: Vec<Vec<u8>>,
    /// The tree hides everything below it.
    pub opaque: bool,
}

/// Writes a tree as an archive.
pub(crate) fn pack<W: Write>(root: OwnedFd, what: &Packing<'_>, out: W) -> Result<(Packed, W)> {
    let mut packer = Packer::new(what, out);
    packer.root(&root)?;
    let lower = what.lowers.map(|_| Vec::new());
    packer.dir(&root, b"", lower, false, 0)?;
    packer.packed.entries = packer.writer.entries();
    let out = packer.writer.finish().map_err(|e| failed("write", b"the archive", e))?;
    Ok((packer.packed, out))
}

/// Writes what stacks of layers show as one archive, without whiteouts; each below a folder, where it has one.
pub(crate) fn pack_views<W: Write>(views: &[(&str, Merged)], what: &Packing<'_>, out: W) -> Result<W> {
    let mut packer = Packer::new(what, out);
    for (folder, view) in views {
        // Links do not go from one tree to another.
        packer.links.clear();
        if !folder.is_empty() {
            packer.entry = Entry {
                path: format!("{folder}/").into_bytes(),
                kind: Kind::Dir,
                mode: 0o755,
                ..Entry::default()
            };
            packer.begin()?;
        }
        for entry in view.read_dir(Path::new("/"))? {
            let name = entry.name.as_bytes();
            packer.copy_from_below(view, name, &join(folder.as_bytes(), name), 0)?;
        }
    }
    packer.writer.finish().map_err(|e| failed("write", b"the archive", e))
}

/// Writes what a stack of layers has in one folder as an archive whose root is that folder.
pub(crate) fn pack_folder<W: Write>(view: &Merged, folder: &Path, what: &Packing<'_>, out: W) -> Result<W> {
    let mut packer = Packer::new(what, out);
    let folder = view.canonical(folder)?;
    let xattrs: Xattrs = view.xattrs(&folder)?.into_iter().map(|(n, v)| (n.into_vec(), v)).collect();
    packer.header(b"./", Kind::Dir, &view.stat(&folder)?, &xattrs);
    packer.begin()?;
    for entry in view.read_dir(&folder)? {
        let name = entry.name.as_bytes();
        packer.copy_from_below(view, &join(folder.as_os_str().as_bytes(), name), name, 0)?;
    }
    packer.writer.finish().map_err(|e| failed("write", b"the archive", e))
}

/// Something in a tree, held by descriptors.
#[derive(Debug)]
pub enum Held {
    /// Open for reading.
    Dir(OwnedFd),
    /// Anything else: the directory that it is in, and its name.
    Leaf { parent: OwnedFd, name: Vec<u8> },
}

/// Writes a file, or a directory with all in it and all that is mounted there, as an archive in which it is called
/// `name`; the tree may change meanwhile. Returns the paths that are not in the archive: sockets, and what vanished.
pub fn write_archive<W: Write>(
    held: &Held,
    name: &[u8],
    ownership: Ownership,
    out: W,
) -> Result<(W, Vec<Vec<u8>>)> {
    let exclude = BTreeSet::new();
    let what =
        Packing { ownership, upper: false, lowers: None, clamp_mtime: None, exclude: &exclude, live: true };
    let mut packer = Packer::new(&what, out);
    match held {
        Held::Dir(fd) => {
            let raw = rustix::fs::fstat(fd).map_err(|e| failed("look at", name, e.into()))?;
            packer.directory(fd, &raw, name, None, false, 0)?;
        }
        Held::Leaf { parent, name: own } => packer.child(parent, own, name, None, false, 0)?,
    }
    let left_out = std::mem::take(&mut packer.packed.left_out);
    let out = packer.writer.finish().map_err(|e| failed("write", b"the archive", e))?;
    Ok((out, left_out))
}

struct Packer<'a, W> {
    what: &'a Packing<'a>,
    writer: Writer<W>,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    entry: Entry,
    /// Directories that are as they are below: they are written when something in them is.
    pending: Vec<Entry>,
    buffer: Vec<u8>,
    packed: Packed,
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl<'a, W: Write> Packer<'a, W> {
    fn new(what: &'a Packing<'a>, out: W) -> Self {
        Packer {
            what,
            writer: Writer::new(out),
            links: HashMap::new(),
            entry: Entry::default(),
            pending: Vec::new(),
            buffer: vec![0; BUFFER],
            packed: Packed::default(),
        }
    }
}

impl<W: Write> Packer<'_, W> {
    /// The root has an entry only where it is not what a root is anyway.
    fn root(&mut self, root: &OwnedFd) -> Result<()> {
        let raw = rustix::fs::fstat(root).map_err(|e| failed("look at", b"/", e.into()))?;
        let xattrs = xattr::list_fd(root).map_err(|e| failed("read the attributes of", b"/", e.into()))?;
        let stat = from_raw(&raw, recorded(&xattrs), self.what.ownership);
        self.packed.opaque = self.what.upper && marker(&xattrs, "opaque").is_some_and(|v| v == b"y");
        if self.packed.opaque {
            self.whiteout(b".wh..wh..opq")?;
        }
        let plain = stat.mode == 0o755 && (stat.uid, stat.gid) == (0, 0);
        if plain && !xattrs.iter().any(|(name, _)| xattr::exported(name)) {
            return Ok(());
        }
        self.header(b"./", Kind::Dir, &stat, &xattrs);
        self.begin()
    }

    /// The entries of a directory. `lower` is where its content below lies in the view of the lowers; with
    /// `whole` that content is written too, because nothing at this path below would show it.
    fn dir(
        &mut self,
        dir: &OwnedFd,
        path: &[u8],
        lower: Option<Vec<u8>>,
        whole: bool,
        depth: usize,
    ) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::Limit {
                object: display(path),
                what: "the depth of directories".into(),
                limit: DEPTH as u64,
            });
        }
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(dir).map_err(|e| failed("read", path, e.into()))? {
            let entry = entry.map_err(|e| failed("read", path, e.into()))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.insert(name.to_vec());
            }
        }
        let above = names.clone();
        if let (true, Some(lower), Some(view)) = (whole, &lower, self.what.lowers)
            && view.stat(as_path(lower)).is_ok_and(|s| s.kind == FileKind::Dir)
        {
            names.extend(view.read_dir(as_path(lower))?.into_iter().map(|e| e.name.into_vec()));
        }
        for name in names {
            let child = join(path, &name);
            if self.what.exclude.contains(&child) {
                self.packed.left_out.push(child);
                continue;
            }
            let child_lower = lower.as_ref().map(|l| join(l, &name));
            if above.contains(&name) {
                self.child(dir, &name, &child, child_lower, whole, depth)?;
            } else if let (Some(lower), Some(view)) = (child_lower, self.what.lowers) {
                self.copy_from_below(view, &lower, &child, depth)?;
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        lower: Option<Vec<u8>>,
        whole: bool,
        depth: usize,
    ) -> Result<()> {
        let raw = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if self.what.live => {
                self.packed.left_out.push(path.to_vec());
                return Ok(());
            }
            raw => raw.map_err(|e| failed("look at", path, e.into()))?,
        };
        match FileType::from_raw_mode(raw.st_mode) {
            FileType::CharacterDevice if raw.st_rdev == 0 => {
                if !self.what.upper {
                    self.packed.left_out.push(path.to_vec());
                } else if !whole {
                    self.whiteout(&whiteout_path(path, name))?;
                }
                Ok(())
            }
            FileType::Socket => {
                self.packed.left_out.push(path.to_vec());
                Ok(())
            }
            FileType::Directory => {
                let opened = Walkable::open(dir, name, raw.st_mode);
                let opened = opened.map_err(|e| failed("open", path, e.into()))?;
                self.directory(&opened.fd, &raw, path, lower, whole, depth)
            }
            FileType::RegularFile => {
                let fd = open_readable(dir, name).map_err(|e| failed("open", path, e.into()))?;
                self.regular(fd, &raw, path, lower, whole)
            }
            kind => {
                let stat = from_raw(&raw, None, self.what.ownership);
                if self.linked(&stat, path)? {
                    return Ok(());
                }
                let kind = match kind {
                    FileType::Symlink => Kind::Symlink,
                    FileType::CharacterDevice => Kind::CharDevice,
                    FileType::BlockDevice => Kind::BlockDevice,
                    _ => Kind::Fifo,
                };
                self.header(path, kind, &stat, &[]);
                if kind == Kind::Symlink {
                    let target =
                        readlinkat(dir, name, Vec::new()).map_err(|e| failed("read", path, e.into()))?;
                    self.entry.link = target.into_bytes();
                }
                self.begin()
            }
        }
    }

    fn directory(
        &mut self,
        fd: &OwnedFd,
        raw: &rustix::fs::Stat,
        path: &[u8],
        lower: Option<Vec<u8>>,
        whole: bool,
        depth: usize,
    ) -> Result<()> {
        let xattrs = xattr::list_fd(fd).map_err(|e| failed("read the attributes of", path, e.into()))?;
        let stat = from_raw(raw, recorded(&xattrs), self.what.ownership);
        let with_slash = [path, b"/"].concat();
        self.header(&with_slash, Kind::Dir, &stat, &xattrs);
        let unchanged = !whole && self.is_below(&stat, &xattrs, lower.as_deref())?;
        if unchanged {
            self.pending.push(self.entry.clone());
        } else {
            self.begin()?;
        }
        if self.what.live && crate::sys::is_kernels(fd) {
            return Ok(());
        }
        let waiting = self.pending.len();
        let (mut lower, mut below) = (lower, whole);
        if self.what.upper {
            let opaque = marker(&xattrs, "opaque").is_some_and(|v| v == b"y");
            let redirect = marker(&xattrs, "redirect");
            if (opaque || redirect.is_some()) && !whole {
                self.whiteout(&[&with_slash[..], b".wh..wh..opq"].concat())?;
            }
            if let Some(target) = redirect {
                lower = Some(self.redirected(target, lower, path)?);
                below = true;
            } else if opaque {
                lower = None;
            }
        }
        self.dir(fd, path, lower, below, depth + 1)?;
        if unchanged && self.pending.len() == waiting {
            self.pending.pop();
            self.packed.left_out.push(path.to_vec());
        }
        Ok(())
    }

    /// Whether the layers below have the same directory: overlay copies one up also where a step only sets what is
    /// set already, or what a mount stands in.
    fn is_below(&self, stat: &Stat, xattrs: &Xattrs, lower: Option<&[u8]>) -> Result<bool> {
        let (true, Some(lower), Some(view)) = (self.what.upper, lower, self.what.lowers) else {
            return Ok(false);
        };
        if marker(xattrs, "opaque").is_some() || marker(xattrs, "redirect").is_some() {
            return Ok(false);
        }
        let Ok(below) = view.lstat(as_path(lower)) else { return Ok(false) };
        let plain = |s: &Stat| (s.kind, s.mode, s.uid, s.gid, s.mtime);
        if plain(&below) != plain(stat) {
            return Ok(false);
        }
        let mut above: Vec<_> = xattrs.iter().filter(|(name, _)| xattr::exported(name)).cloned().collect();
        let below = view.xattrs(as_path(lower))?.into_iter();
        let mut below: Vec<_> = below.map(|(name, value)| (name.into_vec(), value)).collect();
        above.sort();
        below.sort();
        Ok(above == below)
    }

    /// Where a redirected directory or file was before it moved (overlayfs.rst, "Renaming directories").
    fn redirected(&mut self, target: &[u8], lower: Option<Vec<u8>>, path: &[u8]) -> Result<Vec<u8>> {
        self.packed.relocated = true;
        if self.what.lowers.is_none() {
            let what = format!("'{}', which overlay has moved without a copy,", display(path));
            return Err(Error::Unsupported { object: "the upper directory".into(), what });
        }
        let mut clean = Vec::new();
        let place = match target.strip_prefix(b"/") {
            Some(absolute) => absolute.to_vec(),
            None => {
                let here = lower.unwrap_or_else(|| path.to_vec());
                join(crate::dirs::split(&here).0, target)
            }
        };
        crate::dirs::clean(&place, &mut clean)
            .map_err(|reason| Error::Archive { object: display(path), reason: reason.into() })?;
        Ok(clean)
    }

    fn regular(
        &mut self,
        fd: OwnedFd,
        raw: &rustix::fs::Stat,
        path: &[u8],
        lower: Option<Vec<u8>>,
        whole: bool,
    ) -> Result<()> {
        if self.what.live {
            // Opened a moment after it was looked at, it may be a device by now.
            let now = rustix::fs::fstat(&fd).map_err(|e| failed("look at", path, e.into()))?;
            if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
                self.packed.left_out.push(path.to_vec());
                return Ok(());
            }
        }
        let mut xattrs = Vec::new();
        // One call tells that there is none, which is so for almost every file.
        let any = rustix::fs::flistxattr_query(&fd);
        if !matches!(any, Ok(0) | Err(Errno::OPNOTSUPP)) {
            xattrs = xattr::list_fd(&fd).map_err(|e| failed("read the attributes of", path, e.into()))?;
        }
        let stat = from_raw(raw, recorded(&xattrs), self.what.ownership);
        if self.what.upper {
            // The newer kind of whiteout, for overlays on overlays (Linux 6.7).
            if marker(&xattrs, "whiteout").is_some() && stat.size == 0 {
                self.packed.relocated = true;
                if !whole {
                    let name = crate::dirs::split(path).1.to_vec();
                    self.whiteout(&whiteout_path(path, &name))?;
                }
                return Ok(());
            }
            if marker(&xattrs, "metacopy").is_some() {
                let place = match marker(&xattrs, "redirect") {
                    Some(target) => self.redirected(target, lower, path)?,
                    None => {
                        self.redirected(&[b"/", lower.as_deref().unwrap_or(path)].concat(), None, path)?
                    }
                };
                let view = self.what.lowers.ok_or_else(|| Error::Unsupported {
                    object: "the upper directory".into(),
                    what: format!("'{}', whose data overlay left below,", display(path)),
                })?;
                let file = view.open_file(as_path(&place))?;
                if self.linked(&stat, path)? {
                    return Ok(());
                }
                return self.file(file.into(), &stat, &xattrs, path);
            }
        }
        if self.linked(&stat, path)? {
            return Ok(());
        }
        self.file(fd, &stat, &xattrs, path)
    }

    /// Everything that the lowers show at a place, as if it had been copied up.
    fn copy_from_below(&mut self, view: &Merged, lower: &[u8], path: &[u8], depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::Limit {
                object: display(path),
                what: "the depth of directories".into(),
                limit: DEPTH as u64,
            });
        }
        let place = as_path(lower);
        let stat = match view.lstat(place) {
            Err(_) if self.what.live => return Ok(()),
            stat => stat?,
        };
        let xattrs: Xattrs = view.xattrs(place)?.into_iter().map(|(n, v)| (n.into_vec(), v)).collect();
        match stat.kind {
            FileKind::Dir => {
                self.header(&[path, b"/"].concat(), Kind::Dir, &stat, &xattrs);
                self.begin()?;
                for entry in view.read_dir(place)? {
                    let name = entry.name.as_bytes();
                    let child = join(path, name);
                    if !self.what.exclude.contains(&child) {
                        self.copy_from_below(view, &join(lower, name), &child, depth + 1)?;
                    }
                }
                Ok(())
            }
            FileKind::File => {
                if self.linked(&stat, path)? {
                    return Ok(());
                }
                self.file(view.open_file(place)?.into(), &stat, &xattrs, path)
            }
            FileKind::Socket => Ok(()),
            kind => {
                let kind = match kind {
                    FileKind::Symlink => Kind::Symlink,
                    FileKind::CharDevice => Kind::CharDevice,
                    FileKind::BlockDevice => Kind::BlockDevice,
                    _ => Kind::Fifo,
                };
                self.header(path, kind, &stat, &[]);
                if kind == Kind::Symlink {
                    self.entry.link = view.readlink(place)?.into_vec();
                }
                self.begin()
            }
        }
    }

    /// Writes a link entry where the file has been written under another name.
    fn linked(&mut self, stat: &Stat, path: &[u8]) -> Result<bool> {
        if stat.links < 2 {
            return Ok(false);
        }
        match self.links.get(&stat.inode) {
            Some(first) => {
                let first = first.clone();
                self.header(path, Kind::Hardlink, stat, &[]);
                self.entry.link = first;
                self.begin()?;
                Ok(true)
            }
            None => {
                self.links.insert(stat.inode, path.to_vec());
                Ok(false)
            }
        }
    }

    fn file(&mut self, fd: OwnedFd, stat: &Stat, xattrs: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<()> {
        self.header(path, Kind::File, stat, xattrs);
        self.entry.size = stat.size;
        if stat.size >= SPARSE {
            self.entry.sparse = segments(&fd, stat.size).map_err(|e| failed("read", path, e.into()))?;
        }
        self.packed.content += stat.size;
        self.begin()?;
        let mut file = File::from(fd);
        match self.entry.sparse.take() {
            None => self.copy(&mut file, stat.size, path),
            Some(map) => map.iter().try_for_each(|segment| {
                io::Seek::seek(&mut file, io::SeekFrom::Start(segment.offset))
                    .map_err(|e| failed("read", path, e))?;
                self.copy(&mut file, segment.length, path)
            }),
        }
    }

    fn copy(&mut self, file: &mut File, mut left: u64, path: &[u8]) -> Result<()> {
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let n = match file.read(&mut self.buffer[..room]) {
                Ok(0) if self.what.live => {
                    self.buffer[..room].fill(0);
                    room
                }
                Ok(0) => {
                    let e =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read");
                    return Err(failed("read", path, e));
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed("read", path, e)),
            };
            self.writer.data(&self.buffer[..n]).map_err(|e| failed("write", path, e))?;
            left -= n as u64;
        }
        Ok(())
    }

    fn header(&mut self, path: &[u8], kind: Kind, stat: &Stat, xattrs: &[(Vec<u8>, Vec<u8>)]) {
        let entry = &mut self.entry;
        entry.path.clear();
        entry.path.extend_from_slice(path);
        entry.link.clear();
        entry.kind = kind;
        (entry.mode, entry.uid, entry.gid, entry.size) = (stat.mode, stat.uid, stat.gid, 0);
        let seconds = stat.mtime.0;
        if self.what.clamp_mtime.is_some_and(|most| seconds > most) {
            self.packed.later.push(path.strip_suffix(b"/").unwrap_or(path).to_vec());
        }
        entry.mtime = (self.what.clamp_mtime.map_or(seconds, |most| seconds.min(most)), 0);
        entry.device = match kind {
            Kind::CharDevice | Kind::BlockDevice => stat.device,
            _ => (0, 0),
        };
        entry.sparse = None;
        entry.xattrs = xattrs.iter().filter(|(name, _)| xattr::exported(name)).cloned().collect();
    }

    fn begin(&mut self) -> Result<()> {
        for entry in std::mem::take(&mut self.pending) {
            self.writer.begin(&entry).map_err(|e| failed("write", &entry.path, e))?;
        }
        self.writer.begin(&self.entry).map_err(|e| failed("write", &self.entry.path, e))
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        self.entry = Entry { path: path.to_vec(), ..Entry::default() };
        self.begin()
    }
}

/// The value of one of overlay's attributes, under either prefix.
fn marker<'a>(xattrs: &'a [(Vec<u8>, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    xattrs.iter().find_map(|(attribute, value)| {
        let bare =
            [&b"trusted.overlay."[..], b"user.overlay."].iter().find_map(|p| attribute.strip_prefix(*p))?;
        (bare == name.as_bytes()).then_some(value.as_slice())
    })
}

fn recorded(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<(u32, u32)> {
    let (_, value) = xattrs.iter().find(|(name, _)| name == xattr::OWNER.as_bytes())?;
    xattr::parse_owner(value)
}

/// Where the data of a file with holes lies; `None` where it has none worth the trouble.
fn segments(fd: &OwnedFd, size: u64) -> rustix::io::Result<Option<Vec<Segment>>> {
    let stored = rustix::fs::fstat(fd.as_fd())?.st_blocks as u64 * 512;
    if stored + size / 8 >= size {
        return Ok(None);
    }
    let mut map = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // No way to find holes here: written in full.
            Err(Errno::INVAL) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(fd, SeekFrom::Hole(start))?.min(size);
        map.push(Segment { offset: start, length: end - start });
        at = end;
    }
    if at < size || map.is_empty() {
        // The map says how long the file is.
        map.push(Segment { offset: size, length: 0 });
    }
    rustix::fs::seek(fd, SeekFrom::Start(0))?;
    Ok(Some(map))
}

fn whiteout_path(path: &[u8], name: &[u8]) -> Vec<u8> {
    let parent = crate::dirs::split(path).0;
    join(parent, &[b".wh.", name].concat())
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn failed(doing: &'static str, path: &[u8], source: io::Error) -> Error {
    Error::Io { doing, object: format!("'{}'", display(path)), source }
}
