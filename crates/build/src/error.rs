//! What can go wrong in a build.

use std::io;
use std::path::PathBuf;

use isles_spec::Hint;

use crate::position::Diagnostic;

pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe itself is wrong, or asks for something that cannot be had.
    #[error(transparent)]
    Recipe(#[from] Box<Diagnostic>),
    /// An operation on a file failed.
    #[error("cannot {operation} '{}': {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The caller's wish cannot be met.
    #[error(transparent)]
    Request(#[from] isles_spec::Error),
}

impl Error {
    /// Wraps an error of the operating system; for `map_err`.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source }
    }
}

impl From<Diagnostic> for Error {
    fn from(diagnostic: Diagnostic) -> Self {
        Error::Recipe(Box::new(diagnostic))
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Recipe(d) => d.hint(),
            Error::Request(e) => e.hint(),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("check the permissions of the path".into())
            }
            Error::Io { .. } => None,
        }
    }
}
