//! An OCI runtime over the sandbox: a bundle in, a container's life cycle out (runtime-spec 1.x).
//!
//! Every command is one function on [`Runtime`], and between commands all that is known is in the container's
//! folder ([`state`]). `create` starts the container's process, which sets itself up and then waits at a FIFO; `start`
//! opens it. No process of ours stays behind: whoever called `create` is the parent, as engines expect.
//!
//! The command line is runc's, so that podman, docker and containerd can call it; parsing it is the binary's work.

mod bundle;
pub mod config;
mod console;
mod features;
mod foreground;
mod gate;
mod hooks;
mod lifecycle;
mod mounts;
mod process;
mod resources;
pub mod state;

pub use features::{features, spec};
pub use foreground::wait;
pub use lifecycle::{CreateOptions, ExecOptions, Runtime, now};
pub use process::parse_signal;
pub use resources::limits;
pub use state::Status;

use std::io;
use std::path::PathBuf;

use isles_spec::Hint;

/// What can go wrong in the OCI runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid container configuration: {0}")]
    Config(String),
    #[error("invalid container ID '{0}'")]
    Id(String),
    #[error("container '{0}' does not exist")]
    NotFound(String),
    #[error("container '{0}' exists already")]
    Exists(String),
    #[error("cannot {operation} container '{id}': it is {status}")]
    Status { operation: &'static str, id: String, status: &'static str },
    #[error("cannot {operation} {path}: {cause}", path = path.display(), cause = plain(source))]
    State { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{stage} hook {path} failed: {why}", path = path.display())]
    Hook { stage: &'static str, path: PathBuf, why: String },
    #[error("cannot {operation}: {cause}", cause = plain(source))]
    Io { operation: String, source: io::Error },
    #[error("unknown signal '{0}'")]
    Signal(String),
    #[error("{error}: {cause}", cause = plain(&error.cause))]
    Spawn { error: crate::SpawnError },
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    #[error(transparent)]
    Profile(#[from] isles_spec::Error),
}

impl From<crate::SpawnError> for Error {
    fn from(error: crate::SpawnError) -> Self {
        Error::Spawn { error }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Id(_) => Some(
                "an ID has letters, digits, '_', '+', '-' and '.', does not begin with '.', and is at most 255 long".into(),
            ),
            Error::Exists(_) => Some("delete it first, or choose another ID".into()),
            Error::Status { status: "stopped", .. } => Some("it has ended; only delete is left".into()),
            Error::Spawn { error } => error.hint(),
            Error::Cgroup(error) => error.hint(),
            Error::Profile(error) => error.hint(),
            _ => None,
        }
    }
}

/// What the kernel said, spelled as C programs spell it: engines look for "no such file or directory".
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

pub type Result<T> = std::result::Result<T, Error>;
