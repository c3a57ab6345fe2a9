//! The merged view of a stack of layers, without a mount: lookups that honour whiteouts and opaque
//! directories, by descriptors, never leaving the layers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::{Error, Ownership, Result};

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// Metadata of a file in the merged view, with the owner that the image means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a regular file, or of a symbolic link's target.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Device number of devices: major, minor.
    pub device: (u32, u32),
    /// Tells files with several names apart: device and inode.
    pub inode: (u64, u64),
    pub links: u64,
}

/// A name in a directory of the merged view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub kind: FileKind,
}

/// A stack of layers seen as one tree.
#[derive(Debug)]
pub struct Merged {
    /// The layers' roots, top first.
    roots: Vec<OwnedFd>,
    ownership: Ownership,
}

impl Merged {
    /// The view of `layers`, base first as [`Store::layers_of`](crate::Store::layers_of) gives them.
    pub fn open(layers: &[PathBuf], ownership: Ownership) -> Result<Merged> {
        let _ = layers;
        Ok(Merged { roots: Vec::new(), ownership })
    }

    /// Opens a regular file. Symbolic links are followed inside the view; the path may be absolute or
    /// relative and means the same.
    pub fn open_file(&self, path: &Path) -> Result<File> {
        self.unfinished(path)
    }

    /// Metadata, of the link itself where the last component is a symbolic link.
    pub fn lstat(&self, path: &Path) -> Result<Stat> {
        self.unfinished(path)
    }

    /// Metadata, following symbolic links.
    pub fn stat(&self, path: &Path) -> Result<Stat> {
        self.unfinished(path)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, path: &Path) -> Result<OsString> {
        self.unfinished(path)
    }

    /// The names in a directory, sorted by bytes.
    pub fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        self.unfinished(path)
    }

    /// Extended attributes of the file itself, without overlay's and the store's own.
    pub fn xattrs(&self, path: &Path) -> Result<Vec<(OsString, Vec<u8>)>> {
        self.unfinished(path)
    }

    /// Whether something is there, following symbolic links.
    pub fn exists(&self, path: &Path) -> bool {
        self.stat(path).is_ok()
    }

    fn unfinished<T>(&self, path: &Path) -> Result<T> {
        let _ = (&self.roots, self.ownership, OsStr::new(""));
        Err(Error::Unsupported {
            object: path.display().to_string(),
            what: "lookup, for some minutes,".into(),
        })
    }
}
