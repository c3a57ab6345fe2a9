//! One file per command.

pub mod completion;
pub mod man;
pub mod oci;
pub mod ps;
pub mod rm;
pub mod run;
pub mod version;
