//! Recipes to images: the parsers, the build graph, its cache, and the Debian bootstrap.

pub mod debian;
pub mod definition;
pub mod dockerfile;
pub mod error;
pub mod position;
pub mod recipe;

pub use error::{Error, Result};
pub use recipe::is_recipe;
