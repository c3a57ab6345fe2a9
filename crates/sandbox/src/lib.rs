//! Runs one process tree between Linux namespaces, and ends it.
pub mod capability;
pub mod cgroup;
mod child;
mod copy_up;
mod credentials;
mod dev;
mod error;
pub mod explain;
pub mod identity;
mod idmap;
mod init;
pub mod oci;
mod own_program;
mod plan;
mod proc_file;
mod root;
pub mod setup;
pub mod signals;
mod spawn;
mod sys;
mod terminal;

pub use error::{SpawnError, Step};
pub use own_program::protect_own_program;
pub use setup::Setup;
pub use spawn::{Child, ExitStatus, Pending, late_failure, spawn};
pub mod seccomp;
