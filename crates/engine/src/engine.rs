//! The engine itself: a store, and what this process may do with IDs.

use std::path::PathBuf;

use isles_sandbox::identity::{self, Identity};
use isles_store::{Ownership, Store};

use crate::error::Result;

/// Runs containers out of one store. Cheap to clone and usable from any thread.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) identity: Identity,
}

impl Engine {
    /// Opens the state directory for what this process is: root, root of a range of IDs, or one ID. Where the
    /// caller has subordinate IDs and the programs that map them, the process moves into a user namespace
    /// that has them ([`identity::enter_mapped`]), so it must have one thread still.
    pub fn open(root: impl Into<PathBuf>) -> Result<Engine> {
        let mut identity = identity::detect();
        // Without a range containers have one ID, which works as well; `isles doctor` says what keeps it away.
        if identity == Identity::Single
            && !rustix::process::geteuid().is_root()
            && identity::enter_mapped().is_ok()
        {
            identity = Identity::Mapped;
        }
        let ownership = match identity {
            Identity::Root => Ownership::Root,
            Identity::Mapped => Ownership::Mapped,
            Identity::Single => Ownership::Single,
        };
        Ok(Engine { store: Store::open(root, ownership)?, identity })
    }

    /// The images, layers and containers that this engine works with.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What this process may do with user and group IDs.
    pub fn identity(&self) -> Identity {
        self.identity
    }
}
