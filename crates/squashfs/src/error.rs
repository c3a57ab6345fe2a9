//! What can go wrong with an image: where in it, and what is wrong there.

use std::io;

/// The result of image operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that image operations fail with. Positions count from the image's first byte.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that the image is in cannot be read.
    #[error("cannot read the squashfs image at byte {at}: {source}")]
    Read { at: u64, source: io::Error },
    /// The bytes are not a squashfs file system at all.
    #[error("not a squashfs image: {reason}")]
    NotSquashfs { reason: String },
    /// A valid image that this reader does not handle.
    #[error("the squashfs image uses {what}, which is not supported")]
    Unsupported { what: String },
    /// The image contradicts itself or the format.
    #[error("the squashfs image is damaged at byte {at}: {what}")]
    Damaged { at: u64, what: String },
    /// The caller asked a file for what its kind does not have.
    #[error("inode {number} is not a {wanted}")]
    Kind { number: u32, wanted: &'static str },
    /// More links on the way to a file than Linux would follow.
    #[error("'{path}' leads through too many symbolic links")]
    Loop { path: String },
    /// A file has more bytes than the caller can do with.
    #[error("inode {number} has {size} bytes; {limit} are the most here")]
    Large { number: u32, size: u64, limit: usize },
    /// What an image is made of cannot be read.
    #[error("cannot {doing} '{path}': {source}")]
    Source { doing: &'static str, path: String, source: io::Error },
    /// What an image is made of cannot be said in one.
    #[error("'{path}' does not fit into a squashfs image: {reason}")]
    Entry { path: String, reason: String },
    /// An option that no squashfs image can have.
    #[error("invalid option for a squashfs image: {0}")]
    Option(String),
    /// The image cannot be written where it was to go.
    #[error("cannot write the squashfs image: {0}")]
    Write(io::Error),
}

impl Error {
    /// Whether the image itself is at fault, rather than its place or the caller.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::NotSquashfs { .. })
    }
}

/// Shortens the commonest way out.
pub(crate) fn damaged<T>(at: u64, what: impl Into<String>) -> Result<T> {
    Err(Error::Damaged { at, what: what.into() })
}
