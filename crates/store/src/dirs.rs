//! Directories of a tree by path, kept open, and never outside the tree.
//!
//! Symbolic links on the way mean what they mean with the tree as `/`. The kernel resolves
//! (`openat2`, RESOLVE_IN_ROOT); where something has to be made, or the kernel has no such call, the walk is
//! done here, one component at a time, with descriptors that follow no link.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat, unlinkat};
use rustix::io::Errno;

/// So many directories are kept open.
const OPEN: usize = 200;
/// As the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;

pub(crate) struct Dirs {
    root: Rc<OwnedFd>,
    open: HashMap<Box<[u8]>, Rc<OwnedFd>>,
    last: Option<(Box<[u8]>, Rc<OwnedFd>)>,
    has_openat2: bool,
    /// Mounts belong to the tree.
    across: bool,
}

/// A directory that was asked for.
pub(crate) enum Parent {
    Found(Rc<OwnedFd>),
    /// It was not there; these paths were made.
    Made(Rc<OwnedFd>, Vec<Box<[u8]>>),
}

impl Dirs {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Dirs { root: Rc::new(root), open: HashMap::new(), last: None, has_openat2: true, across: false }
    }

    /// The same for a tree that others mount in and change at the same time.
    pub(crate) fn across_mounts(root: OwnedFd) -> Self {
        Dirs { across: true, ..Dirs::new(root) }
    }

    pub(crate) fn root(&self) -> Rc<OwnedFd> {
        self.root.clone()
    }

    /// Forgets what is open, because a directory or a symbolic link has been replaced.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
        self.last = None;
    }

    /// The directory at a clean path. With `make`, missing ones are made with mode 0755, and `hide` is called
    /// for those that take the place of an overlay whiteout.
    pub(crate) fn open(
        &mut self,
        path: &[u8],
        make: bool,
        hide: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<Parent> {
        if path.is_empty() {
            return Ok(Parent::Found(self.root.clone()));
        }
        if let Some((last, fd)) = &self.last
            && **last == *path
        {
            return Ok(Parent::Found(fd.clone()));
        }
        if let Some(fd) = self.open.get(path) {
            let fd = fd.clone();
            self.last = Some((path.into(), fd.clone()));
            return Ok(Parent::Found(fd));
        }
        let mut made = Vec::new();
        let fd = match self.open_at(path, OFlags::PATH | OFlags::DIRECTORY) {
            // A whiteout on the way is ENOTDIR, and may be replaced.
            Err(Errno::NOENT | Errno::NOTDIR) if make => self.walk(path, true, &hide, &mut made)?,
            other => other?,
        };
        let fd = Rc::new(fd);
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        self.open.insert(path.into(), fd.clone());
        self.last = Some((path.into(), fd.clone()));
        Ok(if made.is_empty() { Parent::Found(fd) } else { Parent::Made(fd, made) })
    }

    /// Opens a path below the root.
    pub(crate) fn open_at(&mut self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        if self.has_openat2 {
            match crate::sys::open_in_root(self.root.as_fd(), path, flags, self.across) {
                // Before Linux 5.6, or forbidden by a seccomp filter that does not know it.
                Err(Errno::NOSYS | Errno::PERM) if !self.probe() => self.has_openat2 = false,
                other => return other,
            }
        }
        let fd = self.walk(path, false, &|_| Ok(()), &mut Vec::new())?;
        openat(fd, c".", flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn probe(&self) -> bool {
        crate::sys::open_in_root(self.root.as_fd(), b".", OFlags::PATH | OFlags::DIRECTORY, true).is_ok()
    }

    /// Resolves directory by directory.
    fn walk(
        &self,
        path: &[u8],
        make: bool,
        hide: &dyn Fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
        made: &mut Vec<Box<[u8]>>,
    ) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut todo: Vec<Vec<u8>> = path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut stack: Vec<OwnedFd> = Vec::new();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    stack.pop();
                    names.pop();
                    continue;
                }
                _ => {}
            }
            let here = stack.last().map_or(self.root.as_fd(), AsFd::as_fd);
            let name = component.as_slice();
            let next = match openat(here, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if make => {
                    mkdirat(here, name, Mode::from(0o755))?;
                    made.push(joined(&names, name));
                    openat(here, name, flags, Mode::empty())?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let stat = statat(here, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Symlink => {
                            links += 1;
                            if links > LINKS {
                                return Err(Errno::LOOP);
                            }
                            let target = readlinkat(here, name, Vec::new())?.into_bytes();
                            if target.starts_with(b"/") {
                                stack.clear();
                                names.clear();
                            }
                            todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                            continue;
                        }
                        FileType::CharacterDevice if stat.st_rdev == 0 && make => {
                            unlinkat(here, name, AtFlags::empty())?;
                            mkdirat(here, name, Mode::from(0o755))?;
                            made.push(joined(&names, name));
                            let readable =
                                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                            hide(openat(here, name, readable, Mode::empty())?.as_fd())?;
                            openat(here, name, flags, Mode::empty())?
                        }
                        _ => return Err(Errno::NOTDIR),
                    }
                }
                Err(e) => return Err(e),
            };
            stack.push(next);
            names.push(component);
        }
        match stack.pop() {
            Some(fd) => Ok(fd),
            None => openat(&*self.root, c".", flags, Mode::empty()),
        }
    }
}

fn joined(names: &[Vec<u8>], name: &[u8]) -> Box<[u8]> {
    let mut path = names.join(&b'/');
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path.into_boxed_slice()
}

/// A path of an archive without leading and doubled slashes and without `.`; a `..` is an error, because
/// what it means depends on the links on the way.
pub(crate) fn clean(path: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    out.clear();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err("a path may not contain '..'"),
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(component);
    }
    Ok(())
}

/// Directory and last component of a clean path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
