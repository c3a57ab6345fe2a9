//! Reading and writing the small files of a control group by directory descriptor.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags};

/// Control files are short; statistics of a large machine stay below this.
const MAX_READ: u64 = 1 << 20;

pub(super) fn open_dir(at: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

pub(super) fn open_mount(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?)
}

/// Makes the directory where it is missing and opens it; says whether it was made.
pub(super) fn make_dir(at: impl AsFd, name: &str) -> io::Result<(OwnedFd, bool)> {
    let made = match rustix::fs::mkdirat(at.as_fd(), name, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(rustix::io::Errno::EXIST) => false,
        Err(e) => return Err(e.into()),
    };
    Ok((open_dir(at, name)?, made))
}

pub(super) fn remove_dir(at: impl AsFd, name: &str) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)?)
}

pub(super) fn open_file(dir: impl AsFd, file: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, file, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

/// One write(2), as control files want it.
pub(super) fn write(dir: impl AsFd, file: &str, value: &str) -> io::Result<()> {
    let mut file = std::fs::File::from(open_file(dir, file, OFlags::WRONLY)?);
    file.write_all(value.as_bytes())
}

pub(super) fn read(dir: impl AsFd, file: &str) -> io::Result<String> {
    let file = std::fs::File::from(open_file(dir, file, OFlags::RDONLY)?);
    let mut text = String::with_capacity(4096);
    file.take(MAX_READ).read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn exists(dir: impl AsFd, file: &str) -> bool {
    rustix::fs::statat(dir, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The names of the directories in a directory.
pub(super) fn child_dirs(dir: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

/// The components of a group's path; `None` where one is not a plain name.
pub(super) fn components(path: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(name.to_str().filter(|n| n.len() <= 255 && !n.contains(['\n', '\0']))?)
            }
            _ => return None,
        }
    }
    Some(names)
}
