//! A folder of this machine as a [`Tree`], by descriptors: no link leads out of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::inode::FileType;
use crate::tree::{Node, Tree};
use crate::xattr::{PREFIXES, Xattr};

/// A folder and what is in it, with what is mounted there. Attributes that squashfs has no room for, such as
/// access control lists (`system.*`), are left out.
#[derive(Debug)]
pub struct Folder {
    root: OwnedFd,
}

impl Folder {
    pub fn open(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder::from_fd(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The folder that a descriptor stands for.
    pub fn from_fd(root: OwnedFd) -> Folder {
        Folder { root }
    }

    fn descriptor(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        loop {
            // EAGAIN means that a rename elsewhere made the answer doubtful.
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => continue,
                other => return other,
            }
        }
    }
}

impl Tree for Folder {
    fn root(&mut self) -> io::Result<Node> {
        let stat = rustix::fs::fstat(&self.root)?;
        node(&self.root, Vec::new(), &stat)
    }

    fn children(&mut self, path: &[u8]) -> io::Result<Vec<Node>> {
        let dir = self.descriptor(path, OFlags::DIRECTORY)?;
        let mut out = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            out.push(node(&dir, name.to_vec(), &stat)?);
        }
        Ok(out)
    }

    fn open(&mut self, path: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        // Were it a pipe by now, opening it would wait.
        let file = self.descriptor(path, OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&file)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(io::Error::other("it is not a regular file any more"));
        }
        Ok(Box::new(File::from(file)))
    }
}

// On other processors some of these fields are narrower.
#[allow(clippy::unnecessary_cast)]
fn node(dir: &OwnedFd, name: Vec<u8>, stat: &Stat) -> io::Result<Node> {
    let file_type = file_type(stat)?;
    let mut node = Node::new(name, file_type, stat.st_mode & 0o7777);
    (node.uid, node.gid) = (stat.st_uid, stat.st_gid);
    node.mtime = stat.st_mtime as i64;
    match file_type {
        FileType::File => node.size = stat.st_size as u64,
        FileType::Symlink => {
            node.target = rustix::fs::readlinkat(dir, node.name.as_slice(), Vec::new())?.into_bytes();
        }
        FileType::BlockDevice | FileType::CharDevice => {
            node.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        }
        _ => {}
    }
    if file_type != FileType::Dir && stat.st_nlink > 1 {
        node.link = Some((stat.st_dev as u64, stat.st_ino as u64));
    }
    // There is no call for attributes by directory and name; this name is as good.
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(if node.name.is_empty() { b"." } else { &node.name });
    node.xattrs = xattrs(&path)?;
    Ok(node)
}

fn file_type(stat: &Stat) -> io::Result<FileType> {
    Ok(match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => FileType::Dir,
        rustix::fs::FileType::RegularFile => FileType::File,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::Fifo => FileType::Fifo,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::Unknown => return Err(io::Error::other("its type is unknown")),
    })
}

fn xattrs(path: &[u8]) -> io::Result<Vec<Xattr>> {
    let names = match grown(|out| rustix::fs::llistxattr(path, out)) {
        Ok(names) => names,
        // A file system without attributes.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut out = Vec::new();
    for name in names.split(|b| *b == 0) {
        if PREFIXES.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len()) {
            let value = grown(|out| rustix::fs::lgetxattr(path, name, out))?;
            out.push((name.to_vec(), value));
        }
    }
    Ok(out)
}

/// Calls again with more room, as long as there is too little.
fn grown(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut room = vec![0; 256];
    loop {
        match call(&mut room) {
            Ok(n) => {
                room.truncate(n);
                return Ok(room);
            }
            // More than 64 KiB no list and no value has.
            Err(Errno::RANGE) if room.len() <= 64 << 10 => room = vec![0; room.len() * 4],
            Err(e) => return Err(e),
        }
    }
}
