//! From an archive to a layer's tree (image-spec, layer.md; overlayfs.rst for the markers).
//!
//! Every path is resolved below one directory descriptor, as if that were `/`; directories that were just
//! used are kept open, so that a file costs five system calls and no walk. Whiteouts become what overlay
//! expects of a lower layer, wherever in the archive they stand. Modes and times of directories are set last.

mod attributes;
mod data;

use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, fsetxattr, linkat, mkdirat, mknodat, openat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::content::Contents;
use crate::dirs::{Dirs, Parent, split};
use crate::placing::Placing;
use crate::tar::{self, Entry, Kind, ReadLimits, Reader, display};
use crate::xattr;
use crate::{Limits, Ownership, Skipped};
use attributes::{own, times};
use data::{copy_data, copy_sparse};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that begin so belong to AUFS itself and are no files of the image.
const AUFS: &[u8] = b".wh..wh.";
/// More notes than this are counted, not listed.
const NOTES: usize = 500;

/// What unpacking gave, besides the tree.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub entries: u64,
    /// Bytes of regular files.
    pub content: u64,
    /// The layer hides everything below it.
    pub opaque: bool,
    pub skipped: Vec<Skipped>,
}

/// Unpacks an archive into the empty directory `root`. Reads up to the archive's end, not the stream's.
pub(crate) fn unpack<R: BufRead>(
    input: R,
    root: OwnedFd,
    ownership: Ownership,
    limits: &Limits,
) -> Result<(Unpacked, R), tar::Error> {
    let (unpacker, rest) = run(input, Unpacker::new(root, ownership), limits)?;
    Ok((unpacker.out, rest))
}

/// As [`unpack`], with the same tree but for the data of files: they only get their size, and `contents`
/// says what they should hold.
pub(crate) fn unpack_skeleton<R: BufRead>(
    input: R,
    root: OwnedFd,
    ownership: Ownership,
    limits: &Limits,
    contents: Contents,
) -> Result<(Contents, R), tar::Error> {
    let unpacker = Unpacker { contents: Some(contents), ..Unpacker::new(root, ownership) };
    let (unpacker, rest) = run(input, unpacker, limits)?;
    Ok((unpacker.contents.unwrap_or_else(|| Contents::new(0, 0)), rest))
}

/// Unpacks an archive into a tree that others use at the same time, and mount in: links mean what they mean with `root` as
/// `/`. Whiteouts are files like others. Returns what could not be made.
///
/// # Errors
/// As for layers, and where a folder would take the place of something else, or the other way round.
pub fn extract<R: BufRead>(
    input: R,
    root: OwnedFd,
    placing: &Placing,
    ownership: Ownership,
    limits: &Limits,
) -> crate::Result<Vec<Skipped>> {
    let unpacker = Unpacker {
        dirs: Dirs::across_mounts(root.try_clone().map_err(|e| tar::Error::Io(e).of("the archive"))?),
        placing: Some(placing.clone()),
        ..Unpacker::new(root, ownership)
    };
    let (unpacker, _) = run(input, unpacker, limits).map_err(|e| match e {
        // The tree is not the store's: it is who asked that may not write there.
        tar::Error::Io(source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            crate::Error::Denied { doing: "write", object: "the files".to_owned(), source }
        }
        other => other.of("the archive"),
    })?;
    Ok(unpacker.out.skipped)
}

fn run<R: BufRead>(input: R, mut unpacker: Unpacker, limits: &Limits) -> Result<(Unpacker, R), tar::Error> {
    let read_limits = ReadLimits {
        entries: limits.entries,
        path: limits.path,
        xattrs: limits.xattrs,
        pax: limits.pax,
        ..ReadLimits::default()
    };
    let mut reader = Reader::new(input, read_limits);
    let mut entry = Entry::default();
    while reader.next(&mut entry)? {
        unpacker.entry(&entry, &mut reader)?;
    }
    unpacker.finish_dirs()?;
    unpacker.out.entries = reader.entries();
    unpacker.note_uncounted();
    Ok((unpacker, reader.into_inner()))
}

struct Unpacker {
    dirs: Dirs,
    ownership: Ownership,
    umask: u32,
    uid: u32,
    gid: u32,
    /// Directories whose mode or time is to be set at the end.
    pending: Vec<PendingDir>,
    uncounted: u64,
    /// Set where files get no data.
    contents: Option<Contents>,
    /// Set where the tree is in use.
    placing: Option<Placing>,
    out: Unpacked,
    path: Vec<u8>,
}

struct PendingDir {
    path: Box<[u8]>,
    /// Where it was made with another mode, or may have been.
    mode: Option<u32>,
    mtime: (i64, u32),
}

/// What stands where an entry is to be made.
enum Occupant {
    Nothing,
    Dir,
    Whiteout,
    Other,
}

impl Unpacker {
    fn new(root: OwnedFd, ownership: Ownership) -> Self {
        Unpacker {
            dirs: Dirs::new(root),
            ownership,
            umask: crate::sys::umask(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pending: Vec::new(),
            uncounted: 0,
            contents: None,
            placing: None,
            out: Unpacked::default(),
            path: Vec::new(),
        }
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), tar::Error> {
        let mut path = std::mem::take(&mut self.path);
        let result = match crate::dirs::clean(&entry.path, &mut path) {
            Ok(()) => self.clean_entry(entry, &path, reader),
            Err(reason) => Err(refuse(&entry.path, reason)),
        };
        self.path = path;
        result
    }

    fn clean_entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        path: &[u8],
        reader: &mut Reader<R>,
    ) -> Result<(), tar::Error> {
        if let Some(placing) = &self.placing {
            let full = placing.place(path);
            let is_top = full.len() == placing.prefix.len();
            if is_top && entry.kind == Kind::Dir && (placing.keeps_top || full.is_empty()) {
                return Ok(());
            }
            if full.is_empty() {
                return Err(refuse(path, "it would take the place of the root"));
            }
            let (parent_path, name) = split(&full);
            let parent = self.parent(parent_path, &full)?;
            return self.make(entry, &parent, name, &full, reader);
        }
        if path.is_empty() {
            return match entry.kind {
                Kind::Dir => self.root_dir(entry),
                _ => Err(refuse(&entry.path, "the root of a layer is not a directory")),
            };
        }
        let (parent_path, name) = split(path);
        for component in path.split(|b| *b == b'/') {
            if component.starts_with(AUFS) && component != OPAQUE {
                return Ok(());
            }
        }
        if parent_path.split(|b| *b == b'/').any(|c| c.starts_with(WHITEOUT)) {
            return Err(refuse(path, "it is inside something that is marked as deleted"));
        }
        let parent = self.parent(parent_path, path)?;
        if name == OPAQUE {
            return self.opaque(parent_path, &parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&parent, hidden, path);
        }
        self.make(entry, &parent, name, path, reader)
    }

    fn make<R: BufRead>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        reader: &mut Reader<R>,
    ) -> Result<(), tar::Error> {
        match entry.kind {
            Kind::File => self.file(entry, parent, name, path, reader),
            Kind::Dir => self.dir(entry, parent, name, path),
            Kind::Symlink => self.symlink(entry, parent, name, path),
            Kind::Hardlink => self.hardlink(entry, parent, name, path),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.device(entry, parent, name, path),
        }
    }

    /// The directory that an entry goes into, made where the archive did not mention it.
    fn parent(&mut self, parent: &[u8], path: &[u8]) -> Result<Rc<OwnedFd>, tar::Error> {
        let prefix = self.ownership.overlay_prefix();
        match self.dirs.open(parent, true, |dir| mark_opaque(dir, prefix)) {
            Ok(Parent::Found(fd)) => Ok(fd),
            Ok(Parent::Made(fd, made)) => {
                for path in made {
                    self.pending.push(PendingDir { path, mode: Some(0o755), mtime: (0, 0) });
                }
                Ok(fd)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(refuse(path, "it is below something that is not a directory"))
            }
            Err(e) => Err(failed("create the directories of", path, e)),
        }
    }

    fn root_dir(&mut self, entry: &Entry) -> Result<(), tar::Error> {
        let root = self.dirs.root();
        let done = own(&self.owner_of(entry), root.as_fd()).and_then(|refused| {
            if refused { xattr::record_owner(root.as_fd(), entry.uid, entry.gid) } else { Ok(()) }
        });
        done.map_err(|e| failed("set the owner of", b"/", e))?;
        self.set_xattrs(entry, root.as_fd(), b"/")?;
        self.pending.push(PendingDir { path: Box::default(), mode: Some(entry.mode), mtime: entry.mtime });
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        reader: &mut Reader<R>,
    ) -> Result<(), tar::Error> {
        // Attributes need a writable file; the true mode is set after them.
        let owner = self.owner_of(entry);
        let attributes = owner.recorded.is_some() || !entry.xattrs.is_empty();
        let first_mode = if attributes { 0o600 } else { entry.mode & 0o777 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(dir, name, flags, Mode::from(first_mode));
        let fd = match create() {
            Err(Errno::EXIST) if self.placing.is_some() && self.is_mounted(dir, name) => {
                // A file that is a mount of its own cannot be replaced, only written.
                openat(
                    dir,
                    name,
                    OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
            }
            Err(Errno::EXIST) => {
                self.clear(dir, name, path)?;
                create()
            }
            other => other,
        };
        let fd = fd.map_err(|e| failed("create", path, e))?;
        match (&mut self.contents, &entry.sparse) {
            (Some(contents), _) => contents.skeleton(&fd, entry, reader),
            (None, None) => copy_data(&fd, reader),
            (None, Some(map)) => copy_sparse(&fd, map, entry.size, reader),
        }
        .map_err(|e| about(path, e))?;
        self.out.content = self.out.content.saturating_add(entry.size);
        self.attributes(entry, &owner, fd.as_fd(), path)?;
        if entry.mode != first_mode || entry.mode & self.umask != 0 {
            rustix::fs::fchmod(&fd, Mode::from(entry.mode))
                .map_err(|e| failed("set the mode of", path, e))?;
            // A change of mode leaves capabilities alone, but only a file that nobody can write keeps them.
        }
        rustix::fs::futimens(&fd, &times(entry.mtime)).map_err(|e| failed("set the time of", path, e))
    }

    fn dir(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), tar::Error> {
        // Accessible while it is being filled; a setgid bit would be inherited by what is made in it.
        let first_mode = (entry.mode & 0o777) | 0o700;
        let make = || mkdirat(parent, name, Mode::from(first_mode));
        let mut hide = false;
        let mut mode_is_set = entry.mode == first_mode & !self.umask;
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => match self.occupant(parent, name, path)? {
                Occupant::Dir => mode_is_set = false,
                Occupant::Whiteout | Occupant::Other if self.placing.is_some() => {
                    return Err(refuse(path, "a folder cannot take the place of what is there and is none"));
                }
                occupant => {
                    // A deleted directory and a new one of the same name: nothing of the old shows through.
                    hide = matches!(occupant, Occupant::Whiteout);
                    self.clear(parent, name, path)?;
                    make().map_err(|e| failed("create", path, e))?;
                }
            },
            Err(e) => return Err(failed("create", path, e)),
        }
        let owner = self.owner_of(entry);
        if hide || owner.recorded.is_some() || !entry.xattrs.is_empty() {
            let fd = open_dir(parent, name).map_err(|e| failed("open", path, e))?;
            if hide {
                mark_opaque(fd.as_fd(), self.ownership.overlay_prefix())
                    .map_err(|e| failed("mark as opaque", path, e))?;
            }
            self.attributes(entry, &owner, fd.as_fd(), path)?;
        } else if let Some((uid, gid)) = owner.chown {
            self.chown_at(parent, name, uid, gid, path)?;
        }
        let mode = (!mode_is_set).then_some(entry.mode);
        self.pending.push(PendingDir { path: path.into(), mode, mtime: entry.mtime });
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), tar::Error> {
        if entry.link.is_empty() {
            return Err(refuse(path, "a symbolic link has no target"));
        }
        let make = || symlinkat(entry.link.as_slice(), dir, name);
        match make() {
            Err(Errno::EXIST) => {
                self.clear(dir, name, path)?;
                make()
            }
            other => other,
        }
        .map_err(|e| failed("create", path, e))?;
        let owner = self.owner_of(entry);
        if let Some((uid, gid)) = owner.chown {
            self.chown_at(dir, name, uid, gid, path)?;
        }
        self.xattrs_at(entry, dir, name, path)?;
        self.time_at(dir, name, entry.mtime, path)
    }

    fn hardlink(&mut self, entry: &Entry, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), tar::Error> {
        // Some builders write absolute targets; like every path here they begin at the layer's root.
        let mut target = Vec::new();
        crate::dirs::clean(&entry.link, &mut target)
            .map_err(|reason| refuse(path, format!("its target: {reason}")))?;
        if let Some(placing) = &self.placing {
            target = placing.place(&target);
        }
        if target == path {
            return Ok(());
        }
        let missing =
            || refuse(path, format!("it is a link to '{}', which is not in the layer", display(&target)));
        let (target_parent, target_name) = split(&target);
        if target_name.is_empty() {
            return Err(refuse(path, "it is a link to a directory"));
        }
        let prefix = self.ownership.overlay_prefix();
        let target_dir = match self.dirs.open(target_parent, false, |dir| mark_opaque(dir, prefix)) {
            Ok(Parent::Found(fd) | Parent::Made(fd, _)) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            Err(e) => return Err(failed("open the target of", path, e)),
        };
        match self.occupant(&target_dir, target_name, path)? {
            Occupant::Other => {}
            Occupant::Nothing => {
                // What could not be made here cannot be linked to either.
                let name = display(&target);
                if self.out.skipped.iter().any(|s| s.path == name) {
                    self.note(path, "a link to something that was left out");
                    return Ok(());
                }
                return Err(missing());
            }
            Occupant::Whiteout => {
                return Err(refuse(
                    path,
                    format!("it is a link to '{}', which is deleted", display(&target)),
                ));
            }
            Occupant::Dir => return Err(refuse(path, "it is a link to a directory")),
        }
        let make = || linkat(&*target_dir, target_name, dir, name, AtFlags::empty());
        match make() {
            Err(Errno::EXIST) => {
                let of = |d: &OwnedFd, n: &[u8]| {
                    statat(d, n, AtFlags::SYMLINK_NOFOLLOW).map(|s| (s.st_dev, s.st_ino))
                };
                if of(&target_dir, target_name).is_ok_and(|t| of(dir, name) == Ok(t)) {
                    return Ok(());
                }
                self.clear(dir, name, path)?;
                make()
            }
            other => other,
        }
        .map_err(|e| match e {
            // Replacing the name has removed the target, which was below it.
            Errno::NOENT => missing(),
            e => failed("link", path, e),
        })
    }

    fn device(&mut self, entry: &Entry, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), tar::Error> {
        let (kind, word) = match entry.kind {
            Kind::CharDevice => (FileType::CharacterDevice, "character device"),
            Kind::BlockDevice => (FileType::BlockDevice, "block device"),
            _ => (FileType::Fifo, "named pipe"),
        };
        let (major, minor) = if entry.kind == Kind::Fifo { (0, 0) } else { entry.device };
        if entry.kind == Kind::CharDevice && (major, minor) == (0, 0) {
            self.note(path, "character device 0:0: it would mean a deleted file");
            return Ok(());
        }
        if self.ownership != Ownership::Root && entry.kind != Kind::Fifo {
            self.note(path, &format!("{word} {major}:{minor}: only root can make devices"));
            return Ok(());
        }
        let number = rustix::fs::makedev(major, minor);
        let make = || mknodat(dir, name, kind, Mode::from(entry.mode & 0o777), number);
        let made = match make() {
            Err(Errno::EXIST) => {
                self.clear(dir, name, path)?;
                make()
            }
            other => other,
        };
        match made {
            Ok(()) => {}
            Err(Errno::PERM) => {
                self.note(path, &format!("{word} {major}:{minor}: this process may not make devices"));
                return Ok(());
            }
            Err(e) => return Err(failed("create", path, e)),
        }
        let owner = self.owner_of(entry);
        if let Some((uid, gid)) = owner.chown {
            self.chown_at(dir, name, uid, gid, path)?;
        }
        if self.placing.is_some() {
            // This process's own /proc may be out of reach here; a link that was put in its place leads nowhere outside,
            // because the tree is this process's root.
            rustix::fs::chmodat(dir, name, Mode::from(entry.mode & 0o7777), AtFlags::empty())
                .map_err(|e| failed("set the mode of", path, e))?;
            return self.time_at(dir, name, entry.mtime, path);
        }
        if entry.mode & (0o7000 | self.umask) != 0 {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(dir, name, flags, Mode::empty())
                .and_then(|fd| crate::sys::chmod_path_fd(fd.as_fd(), entry.mode))
                .map_err(|e| failed("set the mode of", path, e))?;
        }
        self.xattrs_at(entry, dir, name, path)?;
        self.time_at(dir, name, entry.mtime, path)
    }

    /// `.wh.NAME`: whatever the layers below have under that name is gone. What this layer has stays.
    fn whiteout(&mut self, dir: &OwnedFd, hidden: &[u8], path: &[u8]) -> Result<(), tar::Error> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refuse(path, "a deletion does not name a file"));
        }
        match mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                if let Occupant::Dir = self.occupant(dir, hidden, path)? {
                    let fd = open_dir(dir, hidden).map_err(|e| failed("open", path, e))?;
                    mark_opaque(fd.as_fd(), self.ownership.overlay_prefix())
                        .map_err(|e| failed("mark as opaque", path, e))?;
                }
                Ok(())
            }
            Err(e) => Err(failed("mark as deleted", path, e)),
        }
    }

    /// `.wh..wh..opq`: nothing of the layers below shows in this directory.
    fn opaque(&mut self, path: &[u8], dir: &OwnedFd) -> Result<(), tar::Error> {
        if path.is_empty() {
            // Overlay does not look at the marker of a root, so whoever stacks the layers must.
            self.out.opaque = true;
            return Ok(());
        }
        open_dir(dir, b".")
            .and_then(|fd| mark_opaque(fd.as_fd(), self.ownership.overlay_prefix()))
            .map_err(|e| failed("mark as opaque", path, e))
    }

    fn occupant(&self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Occupant, tar::Error> {
        match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Occupant::Dir,
                FileType::CharacterDevice if stat.st_rdev == 0 => Occupant::Whiteout,
                _ => Occupant::Other,
            }),
            Err(Errno::NOENT) => Ok(Occupant::Nothing),
            Err(e) => Err(failed("look at", path, e)),
        }
    }

    /// Takes away what stands where an entry goes: the later of two entries counts.
    fn clear(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), tar::Error> {
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed("look at", path, e)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            // Open directories may have been reached through it.
            self.dirs.forget();
        }
        if kind == FileType::Directory && self.placing.is_some() {
            return Err(refuse(path, "what is no folder cannot take the place of one"));
        }
        if kind != FileType::Directory {
            return unlinkat(dir, name, AtFlags::empty()).map_err(|e| failed("replace", path, e));
        }
        let below = [path, b"/"].concat();
        self.pending.retain(|d| *d.path != *path && !d.path.starts_with(&below));
        let name = std::ffi::CString::new(name).map_err(|_| refuse(path, "it contains a NUL byte"))?;
        crate::remove::below(dir.as_fd(), &name).map_err(|e| failed("replace", path, e))
    }

    /// Whether a name is the place of a mount (statx(2), STATX_ATTR_MOUNT_ROOT).
    fn is_mounted(&self, dir: &OwnedFd, name: &[u8]) -> bool {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(dir, name, flags, rustix::fs::StatxFlags::TYPE)
            .is_ok_and(|found| found.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
    }

    fn note(&mut self, path: &[u8], what: &str) {
        if self.out.skipped.len() < NOTES {
            self.out.skipped.push(Skipped { path: display(path), what: what.to_owned() });
        } else {
            self.uncounted += 1;
        }
    }

    fn note_uncounted(&mut self) {
        if self.uncounted > 0 {
            let what = format!("and {} more", self.uncounted);
            self.out.skipped.push(Skipped { path: String::new(), what });
        }
    }
}

/// Opens a directory for reading its attributes and setting them.
fn open_dir(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn mark_opaque(dir: BorrowedFd<'_>, prefix: &str) -> rustix::io::Result<()> {
    fsetxattr(dir, format!("{prefix}opaque"), b"y", XattrFlags::empty())
}

fn refuse(path: &[u8], reason: impl std::fmt::Display) -> tar::Error {
    tar::Error::Malformed(format!("'{}': {reason}", display(path)))
}

/// An operating system error with what it was about.
fn failed(doing: &str, path: &[u8], e: Errno) -> tar::Error {
    let e = std::io::Error::from(e);
    tar::Error::Io(std::io::Error::new(e.kind(), format!("cannot {doing} '{}': {e}", display(path))))
}

fn about(path: &[u8], e: tar::Error) -> tar::Error {
    match e {
        tar::Error::Io(e) => {
            tar::Error::Io(std::io::Error::new(e.kind(), format!("'{}': {e}", display(path))))
        }
        other => other,
    }
}
