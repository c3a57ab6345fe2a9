//! What can go wrong with a network: the operation, its object, and the cause.

use isles_spec::Hint;
use std::io;

/// The result of operations on networks.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that operations on networks fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses something that it was asked for over netlink, or otherwise.
    #[error("cannot {doing}: {source}")]
    System { doing: String, source: io::Error },
    /// Words that mean nothing here.
    #[error(transparent)]
    Spelling(#[from] isles_spec::Error),
}

impl Error {
    /// What the caller can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Spelling(error) => error.hint(),
            Error::System { .. } => None,
        }
    }

    pub(crate) fn system(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::System { doing: doing.into(), source: source.into() }
    }
}
