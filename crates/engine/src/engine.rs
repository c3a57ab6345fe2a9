//! The engine itself: a store, and what this process may do with IDs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use isles_sandbox::identity::{self, Identity};
use isles_spec::ImageMount;
use isles_store::{Ownership, Store};

use crate::error::Result;
use crate::record::some_monitor;
use crate::step_share::Shared;

/// Runs containers out of one store. Cheap to clone and usable from any thread.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) identity: Identity,
    /// What steps of this process use one after the other.
    pub(crate) shared: Arc<Shared>,
}

impl Engine {
    /// Opens the state directory for what this process is: root, root of a range of IDs, or one ID. Where the
    /// caller has subordinate IDs and the programs that map them, the process moves into a user namespace
    /// that has them ([`identity::enter_mapped`]), so it must have one thread still.
    pub fn open(root: impl Into<PathBuf>) -> Result<Engine> {
        let root = root.into();
        let mut identity = identity::detect();
        // Without a range containers have one ID, which works as well; `isles doctor` says what keeps it away.
        if identity == Identity::Single && !rustix::process::geteuid().is_root() && enter_range(&root)? {
            identity = Identity::Mapped;
        }
        Engine::with(root, identity)
    }

    /// As [`Engine::open`] for an ordinary user who needs no IDs but their own: the process stays in the user namespace
    /// that it is in, and no other program is run. Such an engine runs containers as the caller, or as root that is the
    /// caller.
    pub fn open_single(root: impl Into<PathBuf>) -> Result<Engine> {
        Engine::with(root.into(), identity::detect())
    }

    fn with(root: PathBuf, identity: Identity) -> Result<Engine> {
        let ownership = match identity {
            Identity::Root => Ownership::Root,
            Identity::Mapped => Ownership::Mapped,
            Identity::Single => Ownership::Single,
        };
        Ok(Engine { store: Store::open(root, ownership)?, identity, shared: Arc::default() })
    }

    /// The images, layers and containers that this engine works with.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How an image file is mounted here where that was asked for: with [`ImageMount::Unpack`] it is to be taken into the
    /// store, and run as an image of it.
    pub fn image_mount(&self, asked: ImageMount) -> ImageMount {
        crate::image_mount::way(asked, self.identity)
    }

    /// What this process may do with user and group IDs.
    pub fn identity(&self) -> Identity {
        self.identity
    }
}

/// Enters the user namespace of a container that runs already, so that its namespaces can be joined, or a new one.
fn enter_range(root: &Path) -> Result<bool> {
    if !identity::has_range() {
        return Ok(false);
    }
    let living = some_monitor(&Store::open(root, Ownership::Mapped)?);
    Ok(living.is_some_and(|pid| identity::enter_mapped_of(pid).is_ok()) || identity::enter_mapped().is_ok())
}
