//! What an image is made of: anything that can list directories and open files.

use std::io::{self, Read};

use crate::inode::FileType;
use crate::xattr::Xattr;

/// A file as its tree describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The last component of its path; ignored for the root.
    pub name: Vec<u8>,
    pub file_type: FileType,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970. What an image cannot say (before 1970, after 2106) becomes the nearest that it can.
    pub mtime: i64,
    /// Bytes of a regular file; exactly so many are read from it.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// In any order.
    pub xattrs: Vec<Xattr>,
    /// The same for all names of one file, and different for different files: device and inode, for
    /// example. None for a file that has no other name.
    pub link: Option<(u64, u64)>,
}

impl Node {
    /// A file that belongs to root, without content and attributes, from 1970.
    pub fn new(name: impl Into<Vec<u8>>, file_type: FileType, mode: u32) -> Node {
        Node {
            name: name.into(),
            file_type,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            device: (0, 0),
            target: Vec::new(),
            xattrs: Vec::new(),
            link: None,
        }
    }
}

/// A tree of files, named by paths without a `/` at the beginning; the root is the empty path.
///
/// Every directory is listed once, all of them before the first file is opened. A large file that may be
/// another one's duplicate is opened twice.
pub trait Tree {
    /// The root directory.
    fn root(&mut self) -> io::Result<Node>;

    /// What is in a directory, in any order.
    fn children(&mut self, path: &[u8]) -> io::Result<Vec<Node>>;

    /// Opens a regular file.
    fn open(&mut self, path: &[u8]) -> io::Result<Box<dyn Read + '_>>;
}
