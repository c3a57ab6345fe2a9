//! Tar archives: a reader that copies no file data, and a deterministic writer.
//!
//! Specifications: POSIX.1-2024 `pax` (ustar and pax interchange formats), GNU tar's manual, "GNU tar and
//! POSIX tar" (long names, base-256 numbers, sparse formats), `SCHILY.xattr` as star and Docker write it.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

use std::io;

pub use reader::Reader;
pub use sparse::Segment;
pub use writer::Writer;

/// All blocks of an archive have this many bytes.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    File,
    Dir,
    /// Its target is in [`Entry::link`], uninterpreted.
    Symlink,
    /// Another name for the earlier entry whose path is in [`Entry::link`].
    Hardlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One entry of an archive. Paths are bytes as they stand in the archive, without NUL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Bytes of a regular file, holes included.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Names with their prefix (`user.x`, `security.capability`) and raw values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored data belongs in a sparse file; everything else is a hole.
    pub sparse: Option<Vec<Segment>>,
}

impl Entry {
    fn clear(&mut self) {
        self.path.clear();
        self.link.clear();
        self.xattrs.clear();
        self.sparse = None;
        self.size = 0;
        self.device = (0, 0);
    }
}

/// Bounds that the reader enforces.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of a path or of a link's target.
    pub path: usize,
    /// Bytes of all extended attributes of one entry.
    pub xattrs: usize,
    /// Bytes of one pax header.
    pub pax: usize,
    /// Segments of one sparse file.
    pub segments: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        ReadLimits { entries: u64::MAX, path: 4096, xattrs: 1 << 20, pax: 2 << 20, segments: 1 << 18 }
    }
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
    #[error("{what} exceeds the limit of {limit}")]
    Limit { what: String, limit: u64 },
}

impl Error {
    /// The store's error for an archive called `object`.
    pub(crate) fn of(self, object: &str) -> crate::Error {
        match self {
            Error::Io(source) => crate::Error::Io { doing: "read", object: object.to_owned(), source },
            Error::Malformed(reason) => crate::Error::Archive { object: object.to_owned(), reason },
            Error::Limit { what, limit } => crate::Error::Limit { object: object.to_owned(), what, limit },
        }
    }
}

fn malformed<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Malformed(reason.into()))
}

/// A path for messages: bytes that are not printable text are replaced.
pub(crate) fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
