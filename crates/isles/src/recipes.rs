//! (joined with the build room on another branch)
use std::path::Path;

use isles_engine::Engine;
use isles_spec::source::DebianSuite;
use isles_store::Image;

use crate::context::Context;
use crate::failure::Failure;
use crate::source::Wishes;

/// What a recipe is built with.
#[derive(Debug, Clone, Default)]
pub struct RecipeOptions {
    pub build_args: Vec<String>,
    pub target: Option<String>,
    pub no_cache: bool,
    pub host_ca: bool,
    pub mirror: Option<String>,
}

pub fn build(_: &Context, _: &Engine, _: &Path, _: &Wishes) -> Result<Image, Failure> {
    Err(Failure::new("recipes are on another branch"))
}
pub fn bootstrap(_: &Context, _: &Engine, _: &DebianSuite, _: &Wishes) -> Result<Image, Failure> {
    Err(Failure::new("recipes are on another branch"))
}
