//! Recipes to images: the parsers, the build graph, its cache, and the Debian bootstrap.

pub mod dockerfile;
pub mod error;
pub mod position;

pub use error::{Error, Result};
