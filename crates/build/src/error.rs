//! What can go wrong in a build.

use std::io;
use std::path::PathBuf;

use isles_spec::Hint;

use crate::debian;
use crate::position::Diagnostic;

pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe itself is wrong, or asks for something that cannot be had.
    #[error(transparent)]
    Recipe(#[from] Box<Diagnostic>),
    /// Something that an instruction needs failed; the place is the instruction's.
    #[error("{place}")]
    At { place: Box<Diagnostic>, source: Box<Error> },
    /// An operation on a file failed.
    #[error("cannot {operation} '{}': {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The caller's wish cannot be met.
    #[error(transparent)]
    Request(#[from] isles_spec::Error),
    #[error(transparent)]
    Store(#[from] isles_store::Error),
    #[error(transparent)]
    Engine(#[from] isles_engine::Error),
    #[error(transparent)]
    Registry(#[from] Box<isles_registry::Error>),
    #[error(transparent)]
    Debian(#[from] Box<debian::Error>),
    /// A step ran and did not succeed.
    #[error("{place}: '{command}' failed with exit code {code}{}", tail_text(tail))]
    StepFailed {
        /// File and line.
        place: String,
        command: String,
        /// As a shell gives it: 128 and the signal where one ended the step.
        code: u8,
        /// The end of what it wrote, where that was not shown.
        tail: String,
        hint: Option<String>,
    },
    /// Another stage failed; its error is the one to show.
    #[error("the build was stopped")]
    Stopped,
}

/// So many lines of what failed are repeated.
const TAIL_LINES: usize = 20;

pub(crate) fn tail_text(tail: &str) -> String {
    let lines: Vec<&str> = tail.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() { String::new() } else { format!("\n    {}", last.join("\n    ")) }
}

impl Error {
    /// The line of the recipe that the error is about, with a mark under the place.
    pub fn picture(&self) -> Option<String> {
        match self {
            Error::Recipe(place) | Error::At { place, .. } => Some(place.picture()),
            _ => None,
        }
    }

    /// The line of the recipe that the error is about, from 1.
    pub fn line(&self) -> Option<usize> {
        match self {
            Error::Recipe(place) | Error::At { place, .. } => Some(place.line),
            _ => None,
        }
    }

    /// Wraps an error of the operating system; for `map_err`.
    pub fn io<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source: source.into() }
    }
}

impl From<Diagnostic> for Error {
    fn from(diagnostic: Diagnostic) -> Self {
        Error::Recipe(Box::new(diagnostic))
    }
}

impl From<debian::Error> for Error {
    fn from(error: debian::Error) -> Self {
        Error::Debian(Box::new(error))
    }
}

impl From<isles_registry::Error> for Error {
    fn from(error: isles_registry::Error) -> Self {
        Error::Registry(Box::new(error))
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Recipe(d) => d.hint(),
            Error::At { place, source } => place.hint().or_else(|| source.hint()),
            Error::Request(e) => e.hint(),
            Error::Store(e) => e.hint(),
            Error::Engine(e) => e.hint(),
            Error::Registry(e) => e.hint(),
            Error::Debian(e) => e.hint(),
            Error::StepFailed { hint, .. } => hint.clone(),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("check the permissions of the path; .dockerignore can leave it out".into())
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space, for example with `isles prune`".into())
            }
            Error::Io { .. } | Error::Stopped => None,
        }
    }
}

impl From<isles_sif::Error> for Error {
    fn from(error: isles_sif::Error) -> Error {
        isles_store::Error::from(error).into()
    }
}

/// What the last words of common programs mean for whoever wrote the step.
const LAST_WORDS: [(&str, &str); 9] = [
    ("Do you want to continue?", "nobody can answer during a build: write apt-get install -y"),
    ("certificate verify failed", "the network may intercept TLS; --host-ca trusts the host's authorities"),
    ("SSL certificate problem", "the network may intercept TLS; --host-ca trusts the host's authorities"),
    ("certificate is NOT trusted", "the network may intercept TLS; --host-ca trusts the host's authorities"),
    ("Temporary failure resolving", "names cannot be resolved in the step; check the network and --network"),
    (
        "Temporary failure in name resolution",
        "names cannot be resolved in the step; check the network and --network",
    ),
    ("Could not resolve host", "names cannot be resolved in the step; check the network and --network"),
    ("Unable to locate package", "run apt-get update in the same RUN, and check the spelling"),
    ("No space left on device", "free some space, for example with `isles prune`"),
];

impl Error {
    /// A step that did not succeed. Its output is part of the message where nobody has seen it.
    pub(crate) fn step(
        place: String,
        command: &str,
        outcome: &isles_engine::StepOutcome,
        unseen: bool,
    ) -> Error {
        let output = String::from_utf8_lossy(&outcome.tail);
        let code = outcome.exit.code();
        let by_code = match code {
            126 => Some("a program of the command is there but cannot be run; is it executable?"),
            127 => Some("a program of the command is not in the image; install it in an earlier step"),
            137 => Some("the step was killed, which is what happens when memory runs out"),
            _ => None,
        };
        let by_words = LAST_WORDS.iter().find(|(words, _)| output.contains(words)).map(|(_, hint)| *hint);
        Error::StepFailed {
            place,
            command: command.split_whitespace().collect::<Vec<_>>().join(" "),
            code,
            tail: if unseen { output.into_owned() } else { String::new() },
            hint: by_words.or(by_code).map(str::to_owned),
        }
    }
}
