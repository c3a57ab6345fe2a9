//! Serves a file system that never changes over `/dev/fuse`, as the kernel's low-level protocol has it
//! (`include/uapi/linux/fuse.h`, fuse(4), version 7.31 and later: Linux 5.4).
//!
//! The one idea: what cannot change is asked for once. Names, their absence, attributes, links, listings and pages may
//! be kept for ever; files are opened without asking; what the kernel could ask again is answered in a way that makes
//! it not ask again. So the server holds no table of open files and no counts of what the kernel remembers, and its
//! threads share nothing but the file system.
//!
//! It mounts nothing: whoever has mounted gives it the descriptor of `/dev/fuse`. The process that serves must never
//! touch the mount, or it would wait for itself.
//!
//! Messages come from the kernel, but are read as if they came from anywhere: a short or odd one gets an error.

mod file_system;
#[cfg(test)]
mod memory;
mod message;
mod reply;
mod serve;
mod server;

pub use file_system::{Attributes, DirEntry, FileKind, FileSystem, Statistics};
pub use serve::serve;
pub use server::Server;
