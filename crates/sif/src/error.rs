//! What can go wrong with a SIF file: the operation, the object, the cause.

use std::io;
use std::path::Path;

use isles_spec::Hint;

pub type Result<T> = std::result::Result<T, Error>;

/// Everything that operations on SIF files fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; `doing` is a verb phrase, `object` what it was done to.
    #[error("cannot {doing} {object}: {source}")]
    Io { doing: &'static str, object: String, source: io::Error },
    #[error("{object} is not a SIF file: {reason}")]
    NotSif { object: String, reason: String },
    /// The file begins as a SIF file and contradicts itself.
    #[error("{object} is not a valid SIF file: {reason}")]
    Malformed { object: String, reason: String },
    /// A bound that protects against hostile input was reached.
    #[error("{object}: {what} exceeds the limit of {limit}")]
    Limit { object: String, what: String, limit: u64 },
    #[error("{object} has no {what}")]
    Missing { object: String, what: String },
    /// What is asked for does not fit what is in the file.
    #[error("cannot {doing} {object}: {reason}")]
    Refused { doing: &'static str, object: String, reason: String },
}

impl Error {
    pub(crate) fn io(doing: &'static str, object: &str, source: impl Into<io::Error>) -> Self {
        Error::Io { doing, object: object.to_owned(), source: source.into() }
    }

    pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { doing, object: path.display().to_string(), source }
    }

    pub(crate) fn malformed(object: &str, reason: impl Into<String>) -> Self {
        Error::Malformed { object: object.to_owned(), reason: reason.into() }
    }

    pub(crate) fn refused(doing: &'static str, object: &str, reason: impl Into<String>) -> Self {
        Error::Refused { doing, object: object.to_owned(), reason: reason.into() }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Malformed { .. } => "it may be cut short or damaged; fetch or build it again",
            Error::Limit { .. } => "the limit protects against hostile files",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
