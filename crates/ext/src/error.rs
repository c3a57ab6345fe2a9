//! What can go wrong with an image.

use std::io;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that the image is in cannot be read.
    #[error("cannot read the ext image at byte {at}: {source}")]
    Read { at: u64, source: io::Error },
    /// A valid image that this reader does not handle.
    #[error("the ext image {what}, which is not supported")]
    Unsupported { what: String },
    /// It was not unmounted, and what is in its journal is not yet in its place.
    #[error("the ext image was not unmounted cleanly: its journal has to be replayed first (`e2fsck -p`)")]
    Journal,
    /// The image contradicts itself or the format.
    #[error("the ext image is damaged: {what}")]
    Damaged { what: String },
    /// The caller asked a file for what its kind does not have.
    #[error("inode {number} is not a {wanted}")]
    Kind { number: u32, wanted: &'static str },
}

/// Shortens the commonest way out.
pub(crate) fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Damaged { what: what.into() })
}
