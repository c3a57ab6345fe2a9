//! A root file system in a file, whatever its kind, as one that is copied and looked into as a whole.

use std::fs::File;
use std::io;

use isles_squashfs::FileType;

use super::tree::TEXT_LIMIT;
use crate::{Error, Result};

/// A file system in a file.
#[derive(Debug)]
pub struct FileTree(Kind);

// There is one for each file that is open.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Kind {
    Squashfs(isles_squashfs::Image),
    Ext(isles_ext::Image),
}

/// A file of such a tree.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    /// The same for all names of one file.
    pub number: u64,
    pub file_type: FileType,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    pub size: u64,
    pub links: u32,
    pub device: (u32, u32),
    inode: Inode,
}

#[derive(Debug, Clone)]
enum Inode {
    Squashfs(isles_squashfs::Inode),
    Ext(isles_ext::Inode),
}

impl From<isles_squashfs::Inode> for Leaf {
    fn from(inode: isles_squashfs::Inode) -> Leaf {
        Leaf {
            number: inode.number.into(),
            file_type: inode.file_type,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime.into(),
            size: inode.size,
            links: inode.nlink,
            device: inode.device,
            inode: Inode::Squashfs(inode),
        }
    }
}

impl From<isles_ext::Inode> for Leaf {
    fn from(inode: isles_ext::Inode) -> Leaf {
        use isles_ext::FileType as Ext;
        let file_type = match inode.file_type {
            Ext::File => FileType::File,
            Ext::Dir => FileType::Dir,
            Ext::Symlink => FileType::Symlink,
            Ext::CharDevice => FileType::CharDevice,
            Ext::BlockDevice => FileType::BlockDevice,
            Ext::Fifo => FileType::Fifo,
            Ext::Socket => FileType::Socket,
        };
        Leaf {
            number: inode.number.into(),
            file_type,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            size: inode.size,
            links: inode.links,
            device: inode.device,
            inode: Inode::Ext(inode),
        }
    }
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

impl FileTree {
    /// The SquashFS image in `size` bytes of a file from `at` on; `name` is what messages call the file.
    pub fn squashfs(file: &File, at: u64, size: u64, name: &str) -> Result<FileTree> {
        let object = || name.to_owned();
        let file = file.try_clone().map_err(|e| Error::Io { doing: "open", object: object(), source: e })?;
        let image = isles_squashfs::Image::open(file, at, size);
        Ok(FileTree(Kind::Squashfs(image.map_err(|source| Error::Squashfs { object: object(), source })?)))
    }

    /// The same of one that is encrypted, as LUKS2 or, where it is not `luks`, by gocryptfs.
    pub fn decrypted(
        file: &File,
        at: u64,
        size: u64,
        luks: bool,
        passphrase: &[u8],
        name: &str,
    ) -> Result<FileTree> {
        let object = || name.to_owned();
        let file = file.try_clone().map_err(|e| Error::Io { doing: "open", object: object(), source: e })?;
        let closed = |source| Error::Crypt { object: object(), source };
        let image = if luks {
            let volume = isles_crypt::luks::open(file, at, size, passphrase).map_err(closed)?;
            let size = volume.len();
            isles_squashfs::Image::open(volume, 0, size)
        } else {
            let volume = isles_crypt::gocryptfs::open(file, at, size, passphrase).map_err(closed)?;
            let size = volume.len();
            isles_squashfs::Image::open(volume, 0, size)
        };
        Ok(FileTree(Kind::Squashfs(image.map_err(|source| Error::Squashfs { object: object(), source })?)))
    }

    /// The same of an image of ext2, ext3 or ext4.
    pub fn ext(file: &File, at: u64, size: u64, name: &str) -> Result<FileTree> {
        let object = || name.to_owned();
        let file = file.try_clone().map_err(|e| Error::Io { doing: "open", object: object(), source: e })?;
        let image = isles_ext::Image::open(file, at, size);
        Ok(FileTree(Kind::Ext(image.map_err(|source| Error::Ext { object: object(), source })?)))
    }

    /// All files with their paths, a folder before what is in it, names in the order of their bytes. The root's path is
    /// empty. Ends, whatever the file system.
    pub(super) fn walk(&self) -> Box<dyn Iterator<Item = io::Result<(Vec<u8>, Leaf)>> + '_> {
        match &self.0 {
            Kind::Squashfs(image) => Box::new(image.walk().map(|walked| {
                let walked = walked.map_err(io::Error::other)?;
                Ok((walked.path, walked.inode.into()))
            })),
            // Where e2fsck puts what it finds belongs to the file system, and not to what is kept in it.
            Kind::Ext(image) => Box::new(image.walk().filter_map(|walked| match walked {
                Ok(walked) if walked.path == b"lost+found" => None,
                Ok(walked) => Some(Ok((walked.path, walked.inode.into()))),
                Err(e) => Some(Err(io::Error::other(e))),
            })),
        }
    }

    /// Reads of a regular file what begins at `at`; how many bytes.
    pub(super) fn read_at(&self, leaf: &Leaf, out: &mut [u8], at: u64) -> io::Result<usize> {
        match (&self.0, &leaf.inode) {
            (Kind::Squashfs(image), Inode::Squashfs(inode)) => {
                image.read_at(inode, out, at).map_err(io::Error::other)
            }
            (Kind::Ext(image), Inode::Ext(inode)) => image.read_at(inode, out, at).map_err(io::Error::other),
            _ => Err(of_another()),
        }
    }

    /// The target of a symbolic link.
    pub(super) fn read_link(&self, leaf: &Leaf) -> io::Result<Vec<u8>> {
        match (&self.0, &leaf.inode) {
            (Kind::Squashfs(image), Inode::Squashfs(inode)) => {
                image.read_link(inode).map_err(io::Error::other)
            }
            (Kind::Ext(image), Inode::Ext(inode)) => image.read_link(inode).map_err(io::Error::other),
            _ => Err(of_another()),
        }
    }

    pub(super) fn xattrs(&self, leaf: &Leaf) -> io::Result<Attributes> {
        match (&self.0, &leaf.inode) {
            (Kind::Squashfs(image), Inode::Squashfs(inode)) => image.xattrs(inode).map_err(io::Error::other),
            (Kind::Ext(image), Inode::Ext(inode)) => {
                let mut all = image.attributes(inode).map_err(io::Error::other)?;
                all.sort();
                Ok(all)
            }
            _ => Err(of_another()),
        }
    }

    /// What a path leads to, without following links; `None` where it is not there or cannot be read.
    pub(super) fn find(&self, path: &str) -> Option<Leaf> {
        let names = path.split('/').filter(|name| !name.is_empty());
        match &self.0 {
            Kind::Squashfs(image) => {
                let mut inode = image.inode(image.root()).ok()?;
                for name in names {
                    inode = image.inode(image.lookup(&inode, name.as_bytes()).ok()??.inode).ok()?;
                }
                Some(inode.into())
            }
            Kind::Ext(image) => {
                let mut inode = image.inode(image.root()).ok()?;
                for name in names {
                    inode = image.inode(image.lookup(&inode, name.as_bytes()).ok()??).ok()?;
                }
                Some(inode.into())
            }
        }
    }
}

fn of_another() -> io::Error {
    io::Error::other("a file of another tree")
}

/// For what an image says of itself: links are not followed.
impl isles_sif::Root for FileTree {
    fn text(&self, path: &str) -> Option<String> {
        let leaf = self.find(path).filter(|leaf| leaf.file_type == FileType::File)?;
        if leaf.size > TEXT_LIMIT {
            return None;
        }
        let mut bytes = vec![0; leaf.size as usize];
        self.read_at(&leaf, &mut bytes, 0).ok()?;
        String::from_utf8(bytes).ok()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        match (&self.0, self.find(path).map(|leaf| leaf.inode)) {
            (Kind::Squashfs(image), Some(Inode::Squashfs(inode))) => {
                let Ok(entries) = image.read_dir(&inode, 0) else { return names };
                names.extend(entries.map_while(|entry| String::from_utf8(entry.ok()?.name).ok()));
            }
            (Kind::Ext(image), Some(Inode::Ext(inode))) => {
                let listed = image.read_dir(&inode, 0, &mut |entry| {
                    names.extend(String::from_utf8(entry.name));
                    true
                });
                if listed.is_err() {
                    names.clear();
                }
            }
            _ => {}
        }
        names
    }
}
