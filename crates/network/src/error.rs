//! What can go wrong with a network: the operation, its object, and the cause.

use isles_spec::{Hint, Protocol};
use std::io;

/// The result of operations on networks.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that operations on networks fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses something that it was asked for over netlink, or otherwise.
    #[error("cannot {doing}: {source}")]
    System { doing: String, source: io::Error },
    #[error("network with name {0} already exists")]
    Exists(String),
    #[error("network {name} has active endpoints ({})", users.join(", "))]
    InUse { name: String, users: Vec<String> },
    #[error("bind for {address}:{port} failed: port is already allocated{}", whose.as_ref().map(|name| format!(" by container {name}")).unwrap_or_default())]
    PortTaken { address: String, port: String, protocol: Protocol, whose: Option<String> },
    /// Words that mean nothing here.
    #[error(transparent)]
    Spelling(#[from] isles_spec::Error),
}

impl Error {
    /// What the caller can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Spelling(error) => error.hint(),
            Error::Exists(_) => Some("choose another name, or remove that network first".into()),
            Error::InUse { .. } => Some("disconnect or remove these containers first".into()),
            Error::PortTaken { .. } => Some("choose another port of the host, or stop whoever has it".into()),
            Error::System { .. } => None,
        }
    }

    pub(crate) fn system(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::System { doing: doing.into(), source: source.into() }
    }
}
