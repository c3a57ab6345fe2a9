//! Encrypted file systems of SIF files: containers of LUKS2, which root makes with cryptsetup, and files of gocryptfs,
//! which everybody makes.
//!
//! One idea: both become a [`Source`](isles_squashfs::Source) for the reader of SquashFS images. Blocks are decrypted
//! when they are read and never lie anywhere, no device mapper and no other file system takes part, so ordinary users
//! open both. Everything in a header was written by somebody else: sizes are bounded before memory is taken, and what
//! making a key costs is bounded before it is begun.
//!
//! ```no_run
//! let file = std::fs::File::open("partition")?;
//! let len = file.metadata()?.len();
//! let volume = isles_crypt::luks::open(file, 0, len, b"passphrase")?;
//! let len = volume.len();
//! let image = isles_squashfs::Image::open(volume, 0, len)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod anti_forensic;
mod error;
mod gcm;
pub mod gocryptfs;
mod kdf;
pub mod luks;
mod scrypt;
mod xts;

pub use error::{Error, Result};
pub use kdf::random_passphrase;
