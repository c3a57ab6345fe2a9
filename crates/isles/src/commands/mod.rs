//! One file per command.

pub mod completion;
pub mod man;
pub mod version;
