//! Looks into the root file system of a container without mounting it: for users, and for the reason why
//! a program could not be run.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use isles_fuse::{FileKind as Served, FileSystem, Server};
use isles_sandbox::explain::{Found, HEAD, Tree};
use isles_store::{FileKind, Merged};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::file_image::FileImage;

/// As the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;

/// A root file system as it is at rest.
#[derive(Debug)]
pub enum View {
    Layers(Merged),
    Image(Arc<Server<FileImage>>),
}

impl From<Merged> for View {
    fn from(layers: Merged) -> View {
        View::Layers(layers)
    }
}

/// Bytes of a file in an image that are read at once.
const PIECE: usize = 64 << 10;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
}

impl View {
    /// What a path leads to, through links.
    pub fn stat(&self, path: &Path) -> Option<Look> {
        match self {
            View::Layers(layers) => {
                layers.stat(path).ok().map(|stat| Look { kind: stat.kind, mode: stat.mode })
            }
            View::Image(server) => {
                let (file, _) = walk(server.file_system(), path).ok()?;
                let found = server.file_system().attributes(file).ok()?;
                Some(Look { kind: kind(found.kind), mode: found.mode })
            }
        }
    }

    pub fn exists(&self, path: &Path) -> bool {
        self.stat(path).is_some()
    }

    /// The path without any link that leads to the same file.
    pub fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        match self {
            View::Layers(layers) => layers.canonical(path).map_err(|e| match e {
                isles_store::Error::Io { source, .. } => source,
                other => io::Error::other(other),
            }),
            View::Image(server) => Ok(walk(server.file_system(), path)?.1),
        }
    }

    /// The target of a link; `None` for everything else.
    pub fn read_link(&self, path: &Path) -> Option<PathBuf> {
        match self {
            View::Layers(layers) => layers.readlink(path).ok().map(PathBuf::from),
            View::Image(server) => {
                let of = server.file_system();
                let (folder, _) = walk(of, path.parent()?).ok()?;
                let link = of.lookup(folder, path.file_name()?.as_bytes()).ok()?;
                of.read_link(link).ok().map(|target| PathBuf::from(OsString::from_vec(target)))
            }
        }
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        match self {
            View::Layers(layers) => match layers.open_file(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(isles_store::Error::Io { source, .. }) => Err(source),
                Err(other) => Err(io::Error::other(other)),
            },
            View::Image(server) => {
                let of = server.file_system();
                let (file, _) = walk(of, path)?;
                let found = of.attributes(file)?;
                if found.kind != Served::File {
                    return Err(Errno::INVAL.into());
                }
                let content = Content { of, file, at: 0 };
                // Who reads with a small buffer first would have the same block looked for again and again.
                let room = usize::try_from(found.size).map_or(PIECE, |size| size.min(PIECE));
                Ok(Box::new(BufReader::with_capacity(room.max(1), content)))
            }
        }
    }

    pub fn names(&self, folder: &Path) -> Vec<OsString> {
        match self {
            View::Layers(layers) => {
                layers.read_dir(folder).unwrap_or_default().into_iter().map(|entry| entry.name).collect()
            }
            View::Image(server) => {
                let of = server.file_system();
                let mut names = Vec::new();
                let listed = walk(of, folder).and_then(|(file, _)| {
                    of.read_dir(file, 0, &mut |entry| {
                        names.push(OsString::from_vec(entry.name.clone()));
                        true
                    })
                });
                if listed.is_ok() { names } else { Vec::new() }
            }
        }
    }
}

/// A file of an image, read from its beginning on.
struct Content<'a> {
    of: &'a FileImage,
    file: u64,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.of.read(self.file, self.at, buffer)?;
        self.at += length as u64;
        Ok(length)
    }
}

fn kind(of: Served) -> FileKind {
    match of {
        Served::File => FileKind::File,
        Served::Dir => FileKind::Dir,
        Served::Symlink => FileKind::Symlink,
        Served::CharDevice => FileKind::CharDevice,
        Served::BlockDevice => FileKind::BlockDevice,
        Served::Fifo => FileKind::Fifo,
        Served::Socket => FileKind::Socket,
    }
}

/// Walks a path with the image's root as `/`, through all links. Also says the path without them.
fn walk(of: &impl FileSystem, path: &Path) -> rustix::io::Result<(u64, PathBuf)> {
    let parts = |path: &[u8]| path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut todo = parts(path.as_os_str().as_bytes());
    let mut way = vec![(of.root(), Vec::new())];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        let here = way.last().map_or(of.root(), |(file, _)| *file);
        let file = of.lookup(here, &name)?;
        if of.attributes(file)?.kind != Served::Symlink {
            way.push((file, name));
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(Errno::LOOP);
        }
        let target = of.read_link(file)?;
        if target.starts_with(b"/") {
            way.truncate(1);
        }
        todo.extend(parts(&target));
    }
    let names: PathBuf = way.iter().map(|(_, name)| OsStr::from_bytes(name)).collect();
    Ok((way.last().map_or(of.root(), |(file, _)| *file), names))
}

/// The content of a regular file of at most `limit` bytes; `None` where there is no such file. A FIFO, a device
/// or a directory of that name counts as absent (CVE-2024-9676).
pub fn read(view: &View, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let absent = |e: &io::Error| {
        let absent = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::INVAL];
        absent.iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
    };
    let file = match view.open(path) {
        Ok(file) => file,
        Err(e) if absent(&e) => return Ok(None),
        Err(e) => return Err(Error::file("open in the image", path, e)),
    };
    let content =
        isles_store::read_bounded(file, limit).map_err(|e| Error::file("read in the image", path, e))?;
    content.map(Some).ok_or_else(|| Error::TooLarge(path.to_owned(), limit))
}

/// A file of lines in whatever encoding.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A path from the root on, with `.` and `..` resolved as text.
pub fn absolute(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

impl Tree for View {
    fn look(&self, path: &Path) -> Option<Found> {
        let found = self.stat(path)?;
        Some(match found.kind {
            FileKind::Dir => Found::Directory,
            FileKind::File => {
                let mut head = Vec::new();
                self.open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
                Found::File { mode: found.mode, head }
            }
            _ => Found::Other,
        })
    }

    fn names(&self, folder: &Path) -> Vec<OsString> {
        View::names(self, folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_store::Ownership;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        create_dir_all(at("etc")).unwrap();
        write(at("etc/passwd"), "inside").unwrap();
        write(at("large"), [b'x'; 101]).unwrap();
        symlink("/etc/passwd", at("link")).unwrap();
        symlink("/proc/self/root/etc/passwd", at("escape")).unwrap();
        symlink("loop", at("loop")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let view = View::from(Merged::open(&[dir.path().to_owned()], Ownership::Single).unwrap());
        let read = |path: &str| read(&view, Path::new(path), 100);
        for (path, expected) in [
            ("/etc/passwd", Some("inside")),
            ("/link", Some("inside")),
            ("/../etc/../etc/passwd", Some("inside")),
            ("/fifo", None),
            ("/etc", None),
            ("/nothing", None),
            ("/link/below", None),
            ("/escape", None),
        ] {
            let found = read(path).unwrap();
            assert_eq!(found.as_deref().map(text).as_deref(), expected, "{path}");
        }
        assert!(matches!(read("/large"), Err(Error::TooLarge(..))));
        assert!(read("/loop").is_err());
    }

    #[test]
    fn paths_from_the_root() {
        for (path, expected) in [("app", "/app"), ("/a/./b/..", "/a"), ("../../x", "/x"), ("", "/")] {
            assert_eq!(absolute(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
