//! A squashfs image as a file system that can be served, and looked into.

use std::sync::OnceLock;

use isles_fuse::{Attributes, DirEntry, FileKind, FileSystem, Statistics};
use isles_squashfs::{Error, FileType, Image, Inode, InodeRef};
use rustix::io::{Errno, Result};

/// An open image, as the kernel is to see it.
#[derive(Debug)]
pub struct Squashfs {
    image: Image,
    owner: OnceLock<(u32, u32)>,
}

impl Squashfs {
    pub fn new(image: Image) -> Self {
        Squashfs { image, owner: OnceLock::new() }
    }

    /// All files are this user's and group's, from now on: those of a user namespace that has no others.
    pub fn belongs_to(&self, uid: u32, gid: u32) {
        // Said once, before it is served.
        let _ = self.owner.set((uid, gid));
    }

    fn inode(&self, file: u64) -> Result<Inode> {
        self.image.inode(InodeRef::from_raw(file)).map_err(|e| errno(&e))
    }
}

/// What the kernel is told; what it was in words, nobody could hear.
fn errno(error: &Error) -> Errno {
    match error {
        Error::Kind { wanted: "directory", .. } => Errno::NOTDIR,
        Error::Kind { .. } => Errno::INVAL,
        Error::Unsupported { .. } => Errno::OPNOTSUPP,
        Error::Read { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        _ => Errno::IO,
    }
}

fn kind(of: FileType) -> FileKind {
    match of {
        FileType::Dir => FileKind::Dir,
        FileType::File => FileKind::File,
        FileType::Symlink => FileKind::Symlink,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharDevice => FileKind::CharDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
    }
}

/// Marks by which an overlay changes what it shows are the overlay's own, and no image's.
fn shown(name: &[u8]) -> bool {
    !name.starts_with(b"user.overlay.") && !name.starts_with(b"trusted.")
}

impl FileSystem for Squashfs {
    fn root(&self) -> u64 {
        self.image.root().raw()
    }

    fn attributes(&self, file: u64) -> Result<Attributes> {
        let inode = self.inode(file)?;
        let (uid, gid) = *self.owner.get().unwrap_or(&(inode.uid, inode.gid));
        Ok(Attributes {
            inode: inode.number.into(),
            kind: kind(inode.file_type),
            mode: inode.mode,
            links: inode.nlink,
            uid,
            gid,
            size: inode.size,
            mtime: inode.mtime.into(),
            device: inode.device,
        })
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
        let found = self.image.lookup(&self.inode(folder)?, name).map_err(|e| errno(&e))?;
        found.map(|entry| entry.inode.raw()).ok_or(Errno::NOENT)
    }

    fn read(&self, file: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.image.read_at(&self.inode(file)?, buffer, offset).map_err(|e| errno(&e))
    }

    fn read_link(&self, file: u64) -> Result<Vec<u8>> {
        self.image.read_link(&self.inode(file)?).map_err(|e| errno(&e))
    }

    fn read_dir(&self, folder: u64, cursor: u64, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        for entry in self.image.read_dir(&self.inode(folder)?, cursor).map_err(|e| errno(&e))? {
            let entry = entry.map_err(|e| errno(&e))?;
            let wanted = take(&DirEntry {
                name: entry.name,
                file: entry.inode.raw(),
                inode: entry.number.into(),
                kind: kind(entry.file_type),
                next: entry.next,
            });
            if !wanted {
                break;
            }
        }
        Ok(())
    }

    fn has_xattrs(&self) -> bool {
        self.image.has_xattrs()
    }

    fn xattrs(&self, file: u64) -> Result<Vec<Vec<u8>>> {
        let all = self.image.xattrs(&self.inode(file)?).map_err(|e| errno(&e))?;
        Ok(all.into_iter().map(|(name, _)| name).filter(|name| shown(name)).collect())
    }

    fn xattr(&self, file: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if !shown(name) {
            return Ok(None);
        }
        let all = self.image.xattrs(&self.inode(file)?).map_err(|e| errno(&e))?;
        Ok(all.into_iter().find(|(known, _)| known == name).map(|(_, value)| value))
    }

    fn statistics(&self) -> Statistics {
        let all = self.image.statistics();
        Statistics { bytes: all.bytes_used, files: all.inodes.into() }
    }
}
