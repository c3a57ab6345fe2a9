//! From a recipe to an image in the store.

use std::path::Path;
use std::sync::PoisonError;
use std::time::SystemTime;

use isles_engine::Engine;
use isles_registry::Client;
use isles_spec::source::DebianSuite;
use isles_spec::{Digest, Platform, Progress};
use isles_store::{BuildRecord, Image};

use crate::attest::{self, Told};
use crate::cache_transfer::{self, Transfer};
use crate::error::Result;
use crate::key::Key;
use crate::options::{BuildOptions, Built};
use crate::output::{self, Encoding, Made};
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
    let bytes = recipe.read()?;
    let source = SourceText::new(recipe.file.display().to_string(), &bytes);
    let options = &match recipe.language {
        Language::Dockerfile => {
            crate::dockerfile::epoch::resolve(engine, client, recipe, &source, options, progress)?
        }
        Language::Definition => options.clone(),
    };
    let frontend = match recipe.language {
        Language::Dockerfile => "dockerfile.v0",
        Language::Definition => "definition.v0",
    };
    let name = recipe.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let told = Told { frontend, recipe: name, text: &bytes, began: SystemTime::now() };
    every_platform(engine, client, options, progress, &told, &|build| match recipe.language {
        Language::Dockerfile => crate::dockerfile::execute::execute(build, recipe, source.clone()),
        Language::Definition => crate::definition::execute::execute(build, recipe, source.clone()),
    })
}

/// Builds a stage for one platform, and says what is odd about the recipe.
type Make<'m> = dyn Fn(&Build<'_>) -> Result<(Snapshot, Vec<Diagnostic>)> + 'm;

/// Builds for each platform that is asked for, one after the other: what they share is in the cache by then.
fn every_platform(
    engine: &Engine,
    client: &Client,
    options: &BuildOptions,
    progress: &dyn Progress,
    told: &Told<'_>,
    make: &Make<'_>,
) -> Result<Built> {
    crate::secret::remove_dead_secrets();
    let store = engine.store();
    let lease = store.lease()?;
    let host = [Platform::host()];
    let platforms = if options.platforms.is_empty() { &host } else { options.platforms.as_slice() };
    let mut made: Vec<Made> = Vec::new();
    let mut warnings: Vec<Diagnostic> = Vec::new();
    let mut cached = true;
    let (mut noted, mut last) = (Vec::new(), None);
    for platform in platforms {
        if made.iter().any(|m| m.platform == *platform) {
            continue;
        }
        let mut build = Build::new(engine, client, options, &lease, platform.clone(), progress);
        build.transfer = Transfer::read(&build, &options.cache_from);
        let (snapshot, odd) = make(&build)?;
        build.layer_digests.save();
        warnings.extend(odd.into_iter().filter(|w| !warnings.contains(w)).collect::<Vec<_>>());
        let image = finish(&build, snapshot)?;
        cached &= !build.worked();
        let attested = attest::predicates(&build, &image, told)?;
        made.push(Made { platform: platform.clone(), image, attested });
        noted.append(&mut build.noted.lock().unwrap_or_else(PoisonError::into_inner));
        last = Some(build);
    }
    if let Some(build) = &last {
        let images: Vec<&Image> = made.iter().map(|m| &m.image).collect();
        for target in &options.cache_to {
            cache_transfer::write(build, target, &noted, &images)?;
        }
    }
    if !cached {
        store.keep_caches_small()?;
    }
    let Some(first) = made.first() else { return Err(crate::Error::Stopped) };
    let image = first.image.clone();
    if !options.tags.is_empty() {
        let bundle = output::bundle(store, &lease, &made, &Encoding::default(), &[])?;
        output::name(store, &bundle, &options.tags)?;
    }
    Ok(Built { image, made, epoch: options.epoch(), cached, warnings, lease })
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
    let name = format!("debian://{}", suite.suite);
    let told = Told { frontend: "debian.v0", recipe: name, text: b"", began: SystemTime::now() };
    every_platform(engine, client, options, progress, &told, &|build| {
        Ok((crate::definition::bootstrap::debian(build, suite)?, Vec::new()))
    })
}

/// Makes the image of a finished stage, or finds the one that was made of the same.
fn finish(build: &Build<'_>, mut snapshot: Snapshot) -> Result<Image> {
    snapshot.config.rootfs.diff_ids = snapshot.layers.iter().map(|l| l.diff_id.clone()).collect();
    if let Some(parent) = snapshot.config.config.rest.get_mut("Image") {
        // Docker's old builder named the parent here; it is another one now.
        *parent = serde_json::Value::String(String::new());
    }
    if build.options.inline_cache() {
        let (member, cache) = cache_transfer::inline(build, &snapshot.layers);
        snapshot.config.rest.insert(member, cache);
    }
    let key = image_key(&snapshot, build.epoch);
    let known = if build.options.no_cache { None } else { build.store.build_record(build.lease, &key)? };
    let manifest: Option<Digest> = known.and_then(|r| serde_json::from_value(r.value).ok());
    let found = manifest.filter(|m| build.store.has_image(m)).map(|m| build.store.image(&m)).transpose()?;
    let image = match found {
        Some(image) => image,
        None => assemble(build, snapshot, &key)?,
    };
    build.lease.hold(&image.manifest_digest)?;
    build.lease.hold(image.id())?;
    Ok(image)
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
    let image = build.store.assemble(build.lease, &snapshot.config, &blobs, &[])?;
    let mut holds = vec![image.manifest_digest.clone(), image.id().clone()];
    holds.extend(image.config.rootfs.diff_ids.iter().cloned());
    let value = serde_json::to_value(&image.manifest_digest).unwrap_or_default();
    build.store.put_build_record(key, &BuildRecord { holds, value })?;
    Ok(image)
}
