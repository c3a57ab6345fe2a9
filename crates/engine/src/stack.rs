//! Reads the merged view of layers without mounting them.
//!
//! A container's user is looked up in its image before the image is mounted. The walk here follows
//! the rules of overlayfs (Documentation/filesystems/overlayfs.rst: whiteouts, opaque directories)
//! and of a root of its own: `..` and symbolic links never leave it. Each step is taken from a
//! directory descriptor with `O_NOFOLLOW`, so a layer cannot lead the walk to a file of the host.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};

use crate::error::{Error, Result};

/// As many symbolic links are followed as the kernel follows (path_resolution(7)).
const LINK_LIMIT: u32 = 40;

/// Layers, the uppermost first.
#[derive(Debug)]
pub struct Stack {
    root: Dir,
}

/// One directory of the merged view: its parts in the layers, uppermost first.
type Dir = Rc<Vec<OwnedFd>>;

/// What stands at a path.
enum Entry {
    Missing,
    Directory(Dir),
    /// Something else: the directory of the layer that has it, by its place in the parent.
    Other {
        layer: usize,
        stat: Stat,
    },
}

/// What the walk found at a path after following links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Missing,
    Directory,
    File,
    Other,
}

impl Stack {
    /// Opens layers given uppermost first.
    pub fn open<'a>(layers: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let mut root = Vec::new();
        for path in layers {
            let fd = fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| Error::file("open the layer", path, e))?;
            root.push(fd);
        }
        Ok(Stack { root: Rc::new(root) })
    }

    /// What is at `path`, links followed.
    pub fn kind(&self, path: &Path) -> io::Result<Kind> {
        Ok(match self.walk(path)? {
            (_, _, Entry::Missing) => Kind::Missing,
            (_, _, Entry::Directory(_)) => Kind::Directory,
            (_, _, Entry::Other { stat, .. }) if is_file(&stat) => Kind::File,
            _ => Kind::Other,
        })
    }

    /// The content of a regular file of at most `limit` bytes; `None` where there is no such file.
    /// A FIFO, a device or a directory of that name counts as absent (CVE-2024-9676).
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        let fail = |e| Error::file("read in the image", path, e);
        let (dir, name, entry) = self.walk(path).map_err(fail)?;
        let Entry::Other { layer, stat } = entry else { return Ok(None) };
        if !is_file(&stat) {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = fs::openat(&dir[layer], &name, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        // The layer may have changed since; what counts is what was opened.
        if !is_file(&fs::fstat(&fd).map_err(|e| fail(e.into()))?) {
            return Ok(None);
        }
        let mut content = Vec::new();
        std::fs::File::from(fd).take(limit + 1).read_to_end(&mut content).map_err(fail)?;
        if content.len() as u64 > limit {
            return Err(Error::TooLarge(path.to_owned(), limit));
        }
        Ok(Some(content))
    }

    /// Follows `path` to its last component: the directory that holds it, its name there, and itself.
    fn walk(&self, path: &Path) -> io::Result<(Dir, OsString, Entry)> {
        let mut above: Vec<Dir> = Vec::new();
        let mut here = Rc::clone(&self.root);
        let mut left: VecDeque<OsString> = names(path);
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                here = above.pop().unwrap_or_else(|| Rc::clone(&self.root));
                continue;
            }
            match look_up(&here, &name)? {
                Entry::Directory(dir) => {
                    if left.is_empty() {
                        return Ok((here, name, Entry::Directory(dir)));
                    }
                    above.push(std::mem::replace(&mut here, dir));
                }
                Entry::Other { layer, stat } if is_link(&stat) => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    let target = fs::readlinkat(&here[layer], &name, Vec::new())?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        above.clear();
                        here = Rc::clone(&self.root);
                    }
                    for name in names(&target).into_iter().rev() {
                        left.push_front(name);
                    }
                }
                other if left.is_empty() => return Ok((here, name, other)),
                _ => return Ok((here, name, Entry::Missing)),
            }
        }
        let dir = Rc::clone(&here);
        Ok((here, OsString::from("."), Entry::Directory(dir)))
    }
}

/// The components that matter for a walk from the root.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

/// Merges the entries of one name, from the uppermost layer down to the first that hides the rest.
fn look_up(dir: &Dir, name: &OsStr) -> io::Result<Entry> {
    let mut parts = Vec::new();
    for (layer, fd) in dir.iter().enumerate() {
        let stat = match fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let part = match fs::openat(fd, name, flags, Mode::empty()) {
                    // A directory that its owner may not read can still be passed through.
                    Err(rustix::io::Errno::ACCESS) => {
                        fs::openat(fd, name, flags | OFlags::PATH, Mode::empty())?
                    }
                    other => other?,
                };
                let hides = dir.len() > layer + 1 && is_opaque(&part);
                parts.push(part);
                if hides {
                    break;
                }
            }
            _ if !parts.is_empty() || is_whiteout(&stat) => break,
            _ => return Ok(Entry::Other { layer, stat }),
        }
    }
    Ok(if parts.is_empty() { Entry::Missing } else { Entry::Directory(Rc::new(parts)) })
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn is_link(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the directory hides those of its name below it. One that cannot be asked does not.
fn is_opaque(dir: impl AsFd) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0u8; 1];
        matches!(fs::fgetxattr(&dir, *name, &mut value[..]), Ok(1) if value == *b"y")
    })
}

/// A path as the program in the container will see it.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    if path.is_absolute() { path.to_owned() } else { Path::new("/").join(path) }
}

/// The text of a file of the image as far as it is UTF-8.
pub(crate) fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    OsStr::from_bytes(bytes).to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    struct Layers {
        dir: tempfile::TempDir,
        names: Vec<&'static str>,
    }

    impl Layers {
        fn new(names: &[&'static str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                create_dir_all(dir.path().join(name)).unwrap();
            }
            Layers { dir, names: names.to_vec() }
        }

        fn at(&self, path: &str) -> PathBuf {
            let path = self.dir.path().join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn stack(&self) -> Stack {
            let paths: Vec<PathBuf> = self.names.iter().map(|n| self.dir.path().join(n)).collect();
            Stack::open(paths.iter().map(PathBuf::as_path)).unwrap()
        }

        fn read(&self, path: &str) -> Option<String> {
            self.stack().read(Path::new(path), 100).unwrap().map(|b| String::from_utf8(b).unwrap())
        }
    }

    #[test]
    fn the_uppermost_file_wins_and_directories_merge() {
        let l = Layers::new(&["up", "low"]);
        write(l.at("low/etc/passwd"), "low").unwrap();
        write(l.at("low/etc/group"), "group").unwrap();
        write(l.at("up/etc/passwd"), "up").unwrap();
        assert_eq!(l.read("/etc/passwd").as_deref(), Some("up"));
        assert_eq!(l.read("/etc/group").as_deref(), Some("group"));
        assert_eq!(l.read("/etc/none"), None);
        assert_eq!(l.read("/etc"), None);
        assert_eq!(l.read("/etc/passwd/x"), None);
        assert_eq!(l.stack().kind(Path::new("/etc")).unwrap(), Kind::Directory);
        assert_eq!(l.stack().kind(Path::new("/")).unwrap(), Kind::Directory);
    }

    #[test]
    fn a_file_hides_a_directory_and_an_opaque_directory_hides_what_is_below() {
        let l = Layers::new(&["up", "low"]);
        write(l.at("low/a/x"), "low").unwrap();
        write(l.at("up/a"), "file").unwrap();
        assert_eq!(l.read("/a/x"), None);
        write(l.at("low/b/x"), "low").unwrap();
        write(l.at("up/b/y"), "up").unwrap();
        let set = |path: &str| {
            fs::setxattr(l.at(path), "user.overlay.opaque", b"y", fs::XattrFlags::empty()).is_ok()
        };
        if !set("up/b") {
            println!("skip: the file system of the temporary folder has no user attributes");
            return;
        }
        assert_eq!(l.read("/b/x"), None);
        assert_eq!(l.read("/b/y").as_deref(), Some("up"));
    }

    #[test]
    fn a_whiteout_hides_what_is_below() {
        let l = Layers::new(&["up", "low"]);
        write(l.at("low/etc/passwd"), "low").unwrap();
        let made = fs::mknodat(fs::CWD, l.at("up/etc/passwd"), FileType::CharacterDevice, Mode::empty(), 0);
        match made {
            Ok(()) => assert_eq!(l.read("/etc/passwd"), None),
            Err(e) => println!("skip: cannot make a whiteout: {e}"),
        }
    }

    #[test]
    fn links_stay_inside() {
        let l = Layers::new(&["up", "low"]);
        write(l.at("low/usr/lib/passwd"), "inside").unwrap();
        create_dir_all(l.at("up/etc")).unwrap();
        symlink("/usr/lib/passwd", l.at("up/etc/passwd")).unwrap();
        symlink("../../../../usr/lib", l.at("up/lib")).unwrap();
        symlink("/proc/self/root/etc/passwd", l.at("up/escape")).unwrap();
        symlink("loop", l.at("up/loop")).unwrap();
        assert_eq!(l.read("/etc/passwd").as_deref(), Some("inside"));
        assert_eq!(l.read("/lib/passwd").as_deref(), Some("inside"));
        assert_eq!(l.read("/../../usr/lib/../lib/passwd").as_deref(), Some("inside"));
        assert_eq!(l.read("/escape"), None);
        assert!(l.stack().read(Path::new("/loop"), 10).is_err());
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let l = Layers::new(&["up"]);
        fs::mknodat(fs::CWD, l.at("up/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(l.read("/fifo"), None);
        write(l.at("up/large"), [b'x'; 101]).unwrap();
        assert!(matches!(l.stack().read(Path::new("/large"), 100), Err(Error::TooLarge(..))));
    }
}
