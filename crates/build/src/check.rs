//! Looking at a Dockerfile without building it.
//!
//! Of the base images only the configuration is needed: it is taken from the store, or else fetched from the
//! registry without the layers. An image that cannot be had is no error, but what depends on it is not checked.

use std::cell::RefCell;
use std::collections::BTreeMap;

use isles_engine::Engine;
use isles_registry::Client;
use isles_spec::image::ImageConfig;
use isles_spec::{Platform, Reference};

use crate::context::ignore_of;
use crate::dockerfile::checks::{self, Checked, Look};
use crate::dockerfile::execute::Dockerfile;
use crate::error::Result;
use crate::images;
use crate::options::BuildOptions;
use crate::position::SourceText;
use crate::recipe::Found;

/// Where configurations of base images may come from.
#[derive(Clone, Copy)]
pub enum Reach<'a> {
    /// The store.
    Local,
    /// The store, or else a registry.
    Registry(&'a Client),
}

/// Looks at a Dockerfile: at the stages that the target needs, or without a target at all of them where
/// `all_stages`, else at those that the last one needs.
///
/// # Errors
/// The recipe or `.dockerignore` cannot be read. That the recipe is wrong is part of the result.
pub fn check(
    engine: &Engine,
    reach: Reach<'_>,
    recipe: &Found,
    options: &BuildOptions,
    all_stages: bool,
) -> Result<Checked> {
    let source = SourceText::new(recipe.file.display().to_string(), &recipe.read()?);
    let ignore = ignore_of(recipe)?;
    let bases = Bases { engine, reach, seen: RefCell::default(), unknown: RefCell::default() };
    let platform = options.platforms.first().cloned().unwrap_or_else(Platform::host);
    let mut checked = checks::check(
        &source,
        &Look {
            platform: &platform,
            build_args: &options.build_args,
            target: options.target.as_deref(),
            all_stages: all_stages && options.target.is_none(),
            ignore: &ignore,
            named: &|name| options.contexts.key(name, &platform),
            base: &|name, platform| bases.config(name, platform),
        },
    );
    checked.unknown = bases.unknown.into_inner();
    Ok(checked)
}

/// What the checks find in a Dockerfile that is being built, in the stages that the build needs. With `fetch`,
/// before anything was done: base images are brought here, which the build needs anyway. Without, afterwards.
pub fn of_build(file: &Dockerfile<'_>, fetch: bool) -> Checked {
    let build = file.build;
    let local = |name: &str, platform: &Platform| images::here(build.store, name, platform);
    let fetched = |name: &str, platform: &Platform| images::named_or_other(build, name, platform).ok();
    checks::check(
        &file.recipe.source,
        &Look {
            platform: &build.platform,
            build_args: &build.options.build_args,
            target: build.options.target.as_deref(),
            all_stages: false,
            ignore: &file.context.ignore,
            named: &|name| build.named(name),
            base: &|name, platform| {
                let image = if fetch { fetched(name, platform) } else { local(name, platform) };
                image.map(|image| image.config)
            },
        },
    )
}

struct Bases<'a> {
    engine: &'a Engine,
    reach: Reach<'a>,
    seen: RefCell<BTreeMap<(String, String), Option<ImageConfig>>>,
    unknown: RefCell<Vec<String>>,
}

impl Bases<'_> {
    fn config(&self, name: &str, platform: &Platform) -> Option<ImageConfig> {
        let key = (name.to_owned(), platform.to_string());
        if let Some(known) = self.seen.borrow().get(&key) {
            return known.clone();
        }
        let found = self.find(name, platform);
        self.seen.borrow_mut().insert(key, found.clone());
        found
    }

    fn find(&self, name: &str, platform: &Platform) -> Option<ImageConfig> {
        let store = self.engine.store();
        let local = match store.resolve(name, Some(platform)) {
            Ok(image) => return Some(image.config),
            Err(error) => error,
        };
        let why = match (self.reach, name.parse::<Reference>()) {
            (Reach::Registry(client), Ok(reference)) => match client.image_config(&reference, platform) {
                Ok(config) => return Some(config),
                Err(error) => error.to_string(),
            },
            (_, Err(error)) => error.to_string(),
            (Reach::Local, Ok(_)) => local.to_string(),
        };
        // One for another platform tells more than none.
        if let Ok(image) = store.resolve(name, None) {
            return Some(image.config);
        }
        self.unknown.borrow_mut().push(format!("the base image '{name}' cannot be looked at: {why}"));
        None
    }
}
