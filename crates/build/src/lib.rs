//! Recipes to images: the parsers, the build graph, its cache, and the Debian bootstrap.
//!
//! Both languages come down to the same few operations on a stage ([`snapshot`]): begin with an image
//! ([`images`]), copy chosen files ([`select`], [`copy`]), run a program ([`run`]), note a change of the
//! configuration. Stages are built side by side as they need each other ([`stages`]).

mod archive;
pub mod attest;
mod build;
pub mod cache_mounts;
pub mod cache_transfer;
mod check;
mod chmod;
mod commit;
mod context;
mod copy;
pub mod debian;
pub mod definition;
mod device;
mod digests;
pub mod dockerfile;
pub mod elsewhere;
pub mod error;
mod fetch;
mod git;
mod images;
mod key;
pub mod named;
pub mod options;
pub mod output;
pub mod pattern;
pub mod position;
pub mod recipe;
mod run;
mod secret;
mod select;
mod sif;
mod snapshot;
mod ssh;
mod stages;
mod tree;
mod upper;

pub use build::{build, image_of_recipe, image_of_suite};
pub use check::{Reach, check};
pub use commit::{Remarks, commit, import};
pub use debian::compression::decoder;
pub use error::{Error, Result};
pub use options::{BuildOptions, Built, Entitlement, SecretSource, inherited_epoch};
pub use recipe::is_recipe;
pub use secret::remove_dead_secrets;
pub use sif::{SifOptions, write_oci_sif, write_sif};
