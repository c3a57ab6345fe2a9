//! What keeps a server from serving: the operation, the object, the cause.

use std::io;
use std::path::Path;

use isles_spec::Hint;

/// The result of what a server does as a whole; what one request fails with is its answer.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing} {object}: {source}")]
    Io { doing: &'static str, object: String, source: io::Error },
    /// The configuration, or a file that it names, says something that cannot be.
    #[error("{object} is not valid: {reason}")]
    Config { object: String, reason: String },
    #[error(transparent)]
    Store(Box<isles_store::Error>),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { doing, object: path.display().to_string(), source }
    }

    pub(crate) fn config(object: impl ToString, reason: impl ToString) -> Self {
        Error::Config { object: object.to_string(), reason: reason.to_string() }
    }
}

impl From<isles_store::Error> for Error {
    fn from(error: isles_store::Error) -> Self {
        Error::Store(Box::new(error))
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Store(e) => e.hint(),
            Error::Io { doing: "listen on", source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    Some("another program has the address; choose another with --listen".into())
                }
                io::ErrorKind::AddrNotAvailable => {
                    Some("this machine has no such address; 0.0.0.0 stands for all that it has".into())
                }
                io::ErrorKind::PermissionDenied => {
                    Some("ports below 1024 are root's; choose another with --listen".into())
                }
                _ => None,
            },
            Error::Config { .. } => Some("`isles registry serve --help` shows what can be said".into()),
            Error::Io { .. } => None,
        }
    }
}
