//! One file per command.

pub mod completion;
pub mod man;
pub mod oci;
pub mod version;
