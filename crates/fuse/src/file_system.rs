//! What a file system has to answer to be served.

use rustix::io::Result;

/// A file system that never changes. A file is a number of the file system's choosing, the same one whenever it is
/// found, and the same for all names of one file. The kernel may ask about any number, also one that it was never given.
///
/// Errors are the kernel's: `Errno::NOENT` for a name that is not there, `Errno::IO` for an image that is damaged.
pub trait FileSystem: Send + Sync {
    /// The folder that all paths begin at.
    fn root(&self) -> u64;

    fn attributes(&self, file: u64) -> Result<Attributes>;

    /// The file of a name in a folder. Names are never empty, `.` or `..`, and have no slash.
    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64>;

    /// Fills the buffer from `offset` on; less only at the end of the file.
    fn read(&self, file: u64, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// The target of a symbolic link.
    fn read_link(&self, file: u64) -> Result<Vec<u8>>;

    /// Hands the names of a folder but `.` and `..` to `take`, until that says `false`. `cursor` is 0 for the beginning, or
    /// the [`DirEntry::next`] of the entry after which to go on.
    fn read_dir(&self, folder: u64, cursor: u64, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()>;

    /// Whether any file has extended attributes. Where none has, the kernel asks once and never again.
    fn has_xattrs(&self) -> bool {
        false
    }

    /// The names of a file's extended attributes.
    fn xattrs(&self, _file: u64) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// The value of an extended attribute.
    fn xattr(&self, _file: u64, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn statistics(&self) -> Statistics;
}

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

impl FileKind {
    /// The bits of `st_mode` (inode(7)).
    pub(crate) fn mode(self) -> u32 {
        match self {
            FileKind::Fifo => 0o010_000,
            FileKind::CharDevice => 0o020_000,
            FileKind::Dir => 0o040_000,
            FileKind::BlockDevice => 0o060_000,
            FileKind::File => 0o100_000,
            FileKind::Symlink => 0o120_000,
            FileKind::Socket => 0o140_000,
        }
    }
}

/// What stat(2) says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    pub inode: u64,
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub file: u64,
    pub inode: u64,
    pub kind: FileKind,
    /// Where the entries behind this one begin; never 0.
    pub next: u64,
}

/// What statfs(2) says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of the whole.
    pub bytes: u64,
    pub files: u64,
}
