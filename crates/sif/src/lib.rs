//! SIF, the Singularity Image Format, version 01: one file with a root file system in it, what it was made from and
//! who vouches for it.
//!
//! One idea: a file is a header, a table of descriptors and the bytes of the objects that they describe. [`Sif`]
//! checks all of it when it is opened; what comes after works on numbers that fit.
//!
//! ```text
//! 0      header, 128 bytes
//! 4096   descriptors, 48 of 585 bytes unless more are needed
//! 32176  objects, one after the other; partitions begin at multiples of 4096
//! ```

mod bytes;
mod create;
mod descriptor;
mod dsse;
mod edit;
mod error;
mod header;
mod inspection;
mod integrity;
mod object;
mod pem;
mod read;
mod sign;
mod verify;
mod wrapped_key;

pub use create::{NewFile, NewSif, PROGRAM, create_whole, random_uuid};
pub use descriptor::{
    Extra, FileSystem, Hash, Kind, Link, MessageFormat, MessageKind, Object, Partition, Role, SbomFormat,
};
pub use edit::{Deletion, Editor};
pub use error::{Error, Result};
pub use header::{Arch, Header, NO_TIME};
pub use inspection::{App, Attributes, INSPECTION, Inspection, OCI_CONFIG, Root};
pub use object::NewObject;
pub use pem::{PrivateKey, PublicKey, blocks as pem_blocks};
pub use read::{Data, Sif, is_sif};
pub use sign::{Selection, Signer, sign};
pub use verify::{Checked, Kinds, Problem, Report, Trust, fingerprint_text, verify};
pub use wrapped_key::{UnwrappingKey, WrappingKey};
