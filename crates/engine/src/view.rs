//! Looks into the root file system of a container without mounting it: for users, and for the reason why
//! a program could not be run.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use isles_sandbox::explain::{Found, HEAD, Tree};
use isles_store::{FileKind, Merged};

use crate::error::{Error, Result};

/// The content of a regular file of at most `limit` bytes; `None` where there is no such file. A FIFO, a device
/// or a directory of that name counts as absent (CVE-2024-9676).
pub fn read(view: &Merged, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let absent = |e: &io::Error| {
        use rustix::io::Errno;
        let absent = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::INVAL];
        absent.iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
    };
    let file = match view.open_file(path) {
        Ok(file) => file,
        Err(isles_store::Error::Io { source, .. }) if absent(&source) => return Ok(None),
        Err(e) => return Err(e.into()),
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

/// The view as [`isles_sandbox::explain`] wants it.
pub struct Root<'a>(pub &'a Merged);

impl Tree for Root<'_> {
    fn look(&self, path: &Path) -> Option<Found> {
        let stat = self.0.stat(path).ok()?;
        Some(match stat.kind {
            FileKind::Dir => Found::Directory,
            FileKind::File => {
                let mut head = Vec::new();
                let file = self.0.open_file(path).ok()?;
                file.take(HEAD as u64).read_to_end(&mut head).ok()?;
                Found::File { mode: stat.mode, head }
            }
            _ => Found::Other,
        })
    }

    fn names(&self, folder: &Path) -> Vec<OsString> {
        self.0.read_dir(folder).unwrap_or_default().into_iter().map(|entry| entry.name).collect()
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
        let view = Merged::open(&[dir.path().to_owned()], Ownership::Single).unwrap();
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
