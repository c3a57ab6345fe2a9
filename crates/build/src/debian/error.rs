//! What can go wrong between an archive and a root file system.

use std::io;
use std::path::PathBuf;

use isles_spec::Hint;

pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no Debian root file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no mirror for Debian's suite '{suite}'")]
    NoMirror { suite: String },
    #[error("no keyring to check the Debian archive's signature with")]
    NoKeyring,
    #[error("cannot use the keyring '{}': {reason}", path.display())]
    Keyring { path: PathBuf, reason: String },
    /// Something about who made the archive's index, or when.
    #[error("'{url}' is not to be trusted: {reason}")]
    Untrusted { url: String, reason: String, hint: Option<&'static str> },
    /// A file of the archive does not follow its format.
    #[error("{object} is malformed: {reason}")]
    Malformed { object: String, reason: String },
    #[error("{object}: {what} exceeds the limit of {limit} bytes")]
    Limit { object: String, what: &'static str, limit: u64 },
    #[error("{object} has SHA-256 {actual}, the archive's index says {expected}")]
    WrongHash { object: String, expected: String, actual: String },
    #[error("'{suite}' of '{url}' has nothing for {what}")]
    NotServed { suite: String, url: String, what: String },
    /// A package that is wanted cannot be had; `chain` says who wants it.
    #[error("cannot install {package}: {reason}{}", chain_text(chain))]
    Unsatisfied { package: String, reason: String, chain: Vec<String> },
    #[error("package {package} and package {other} cannot be installed together: {relation}")]
    Conflict { package: String, other: String, relation: String },
    #[error("cannot {operation} '{}': {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot unpack {package}: {source}")]
    Unpack { package: String, source: io::Error },
    #[error("package {package} cannot be unpacked: {reason}")]
    Refused { package: String, reason: String },
    #[error("configuring the packages failed with exit code {code}{}", crate::error::tail_text(tail))]
    Configure { code: u8, tail: String },
    #[error("the packages are not all in order afterwards: {0}")]
    Audit(String),
    #[error("cannot fetch '{url}': {source}")]
    Fetch { url: String, source: Box<isles_registry::Error> },
    #[error("cannot fetch '{url}': {reason}")]
    Answer { url: String, reason: String },
    #[error(transparent)]
    Store(#[from] isles_store::Error),
    #[error(transparent)]
    Engine(#[from] isles_engine::Error),
    /// A wish that is spelled wrong or cannot be met.
    #[error(transparent)]
    Request(#[from] isles_spec::Error),
}

fn chain_text(chain: &[String]) -> String {
    if chain.is_empty() { String::new() } else { format!(" (needed by {})", chain.join(", needed by ")) }
}

impl Error {
    /// Wraps an error of the operating system; for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source: source.into() }
    }

    pub(crate) fn malformed(object: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Malformed { object: object.into(), reason: reason.into() }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::NoMirror { .. } => {
                "name one with --mirror URL, or with MirrorURL in a definition file; a machine whose own apt \
                 is set up for Debian needs neither"
            }
            Error::NoKeyring => {
                "install the package debian-archive-keyring, or name a keyring with --keyring FILE"
            }
            Error::Keyring { .. } => "a keyring is made with `gpg --export` and may be armored",
            Error::Untrusted { hint, .. } => return hint.map(str::to_owned),
            Error::WrongHash { .. } => {
                "the mirror may be in the middle of an update; try again later or use another one"
            }
            Error::NotServed { .. } => "check the suite, the components and the architecture",
            Error::Unsatisfied { .. } => "check the spelling, the suite and its components",
            Error::Limit { .. } => "the limit protects against hostile archives",
            Error::Configure { .. } => "the lines of dpkg say which package failed",
            Error::Fetch { source, .. } => return source.hint(),
            Error::Store(e) => return e.hint(),
            Error::Engine(e) => return e.hint(),
            Error::Request(e) => return e.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_said_last_is_shown() {
        let tail: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        let text = Error::Configure { code: 1, tail }.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[1], lines[20]), (21, "    line 11", "    line 30"), "{text}");
    }
}
