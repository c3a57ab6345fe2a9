//! From a recipe to an image in the store.

use std::path::Path;

use isles_engine::Engine;
use isles_registry::Client;
use isles_spec::source::DebianSuite;
use isles_spec::{Digest, Progress};
use isles_store::{BuildRecord, Image};

use crate::error::Result;
use crate::key::Key;
use crate::options::{BuildOptions, Built};
use crate::position::{Diagnostic, SourceText};
use crate::recipe::{self, Found, Language};
use crate::snapshot::{Build, Snapshot};

/// Builds an image from a recipe, or finds the one that it gave before.
///
/// With nothing changed this reads the recipe and the metadata of the files that it copies, and asks no network:
/// base images are taken as they are here, unless [`BuildOptions::pull`] says otherwise.
///
/// # Errors
/// The recipe is wrong, something that it needs cannot be had, or a step failed. Errors about the recipe name
/// their place.
pub fn build(
    engine: &Engine,
    client: &Client,
    recipe: &Found,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Built> {
    let mut build = Build::new(engine, client, options, progress)?;
    let bytes = recipe.read()?;
    let source = SourceText::new(recipe.file.display().to_string(), &bytes);
    let (snapshot, warnings) = match recipe.language {
        Language::Dockerfile => crate::dockerfile::execute::execute(&mut build, recipe, source)?,
        Language::Definition => crate::definition::execute::execute(&build, recipe, source)?,
    };
    build.layer_digests.save();
    finish(build, snapshot, warnings)
}

/// The image of a recipe by its path, or by that of a folder that holds one.
pub fn image_of_recipe(
    engine: &Engine,
    client: &Client,
    path: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Built> {
    build(engine, client, &recipe::find(path)?, options, progress)
}

/// The image of a Debian suite (`debian://SUITE`), bootstrapped where it is not here.
pub fn image_of_suite(
    engine: &Engine,
    client: &Client,
    suite: &DebianSuite,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Built> {
    let build = Build::new(engine, client, options, progress)?;
    let snapshot = crate::definition::bootstrap::debian(&build, suite)?;
    finish(build, snapshot, Vec::new())
}

/// Makes the image of a finished stage, or finds the one that was made of the same.
fn finish(build: Build<'_>, mut snapshot: Snapshot, warnings: Vec<Diagnostic>) -> Result<Built> {
    snapshot.config.rootfs.diff_ids = snapshot.layers.iter().map(|l| l.diff_id.clone()).collect();
    if let Some(parent) = snapshot.config.config.rest.get_mut("Image") {
        // Docker's old builder named the parent here; it is another one now.
        *parent = serde_json::Value::String(String::new());
    }
    let key = image_key(&snapshot, build.epoch);
    let known = if build.options.no_cache { None } else { build.store.build_record(&build.lease, &key)? };
    let manifest: Option<Digest> = known.and_then(|r| serde_json::from_value(r.value).ok());
    let found = manifest.filter(|m| build.store.has_image(m)).map(|m| build.store.image(&m)).transpose()?;
    let image = match found {
        Some(image) => {
            for tag in &build.options.tags {
                if build.store.lookup(&tag.normalized())?.as_ref() != Some(&image.manifest_digest) {
                    build.store.tag(&image, &tag.normalized())?;
                }
            }
            image
        }
        None => assemble(&build, snapshot, &key)?,
    };
    build.lease.hold(&image.manifest_digest)?;
    build.lease.hold(image.id())?;
    Ok(Built { image, cached: !build.worked(), warnings, lease: build.lease })
}

/// What an image is made of, without the times that are filled in when it is made.
fn image_key(snapshot: &Snapshot, epoch: Option<i64>) -> Digest {
    let config = serde_json::to_vec(&snapshot.config).unwrap_or_default();
    let blobs = snapshot.layers.iter().map(|l| format!("{} {}", l.blob.media_type, l.blob.digest));
    let epoch = epoch.map(|e| e.to_string()).unwrap_or_default();
    Key::new("image of a build")
        .with("epoch", epoch)
        .with("config", config)
        .with_list("layers", blobs)
        .finish()
}

fn assemble(build: &Build<'_>, mut snapshot: Snapshot, key: &Digest) -> Result<Image> {
    // A change without a layer has the time of the layer before it.
    let newest = build
        .epoch
        .map(isles_spec::time::rfc3339)
        .or(snapshot.created.clone())
        .unwrap_or_else(|| build.now());
    let mut last: Option<String> = None;
    for entry in &mut snapshot.config.history {
        match &entry.created {
            Some(created) => last = Some(created.clone()),
            None => entry.created = last.clone().or_else(|| Some(newest.clone())),
        }
    }
    snapshot.config.created = Some(newest);
    let blobs: Vec<_> = snapshot.layers.iter().map(|l| l.blob.clone()).collect();
    let tags: Vec<_> = build.options.tags.iter().map(isles_spec::Reference::normalized).collect();
    let image = build.store.assemble(&build.lease, &snapshot.config, &blobs, &tags)?;
    let mut holds = vec![image.manifest_digest.clone(), image.id().clone()];
    holds.extend(image.config.rootfs.diff_ids.iter().cloned());
    let value = serde_json::to_value(&image.manifest_digest).unwrap_or_default();
    build.store.put_build_record(key, &BuildRecord { holds, value })?;
    Ok(image)
}
