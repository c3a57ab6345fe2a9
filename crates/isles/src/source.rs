//! From a SOURCE on the command line to an image in the store: looked up, pulled, read from a file, built, or
//! bootstrapped.

use std::fs::File;
use std::path::Path;

use isles_build::{BuildOptions, Built, image_of_recipe, image_of_suite};
use isles_engine::Engine;
use isles_engine::image_file::{self, Form};
use isles_registry::Daemon;
use isles_sif::Sif;
use isles_spec::{FileSystemKind, Hint, OnDisk, Platform, PullPolicy, Reference, Source};
use isles_store::{Image, Imported, Lease, SifSource, Store};

use crate::address::{Address, Scratch, of_door};
use crate::commands::build::{failure, lint};
use crate::commands::pull::{Policy, pull_sif};
use crate::context::Context;
use crate::failure::Failure;
use crate::registry::Connection;
use crate::ui::progress::Bars;

/// How an image may be had.
#[derive(Debug, Clone)]
pub struct Wishes {
    pub platform: Option<Platform>,
    pub pull: PullPolicy,
    /// How to speak with the registry.
    pub connection: Connection,
    /// What a recipe is built with, beside these.
    pub build: BuildOptions,
}

/// An image, what it was called, and what keeps it from being collected until something stands on it.
pub struct Acquired {
    pub image: Image,
    pub name: String,
    _lease: Option<Lease>,
}

impl Acquired {
    /// An image that is in the store, and was made a moment ago.
    pub fn of(image: Image, name: &str) -> Acquired {
        Acquired { image, name: name.to_owned(), _lease: None }
    }
}

/// What a word of the command line leads to, where it is a path.
pub fn look(word: &str) -> OnDisk {
    let path = Path::new(word);
    let Ok(found) = path.metadata() else { return OnDisk::Nothing };
    let has = |name: &str| path.join(name).symlink_metadata().is_ok();
    if found.is_dir() && has(".singularity.d") {
        // Its own recipe lies in it.
        return OnDisk::Tree;
    }
    if isles_build::is_recipe(path) {
        return OnDisk::Recipe;
    }
    if found.is_dir() && ["bin", "usr", "etc"].iter().any(|name| has(name)) {
        return OnDisk::Tree;
    }
    if found.is_file() && image_file::detect(path).is_some() { OnDisk::ImageFile } else { OnDisk::Other }
}

/// Brings the image of `source` into the store, where it is not there already.
pub fn acquire(cx: &Context, engine: &Engine, source: &Source, wishes: &Wishes) -> Result<Acquired, Failure> {
    let store = engine.store();
    let name = source.to_string();
    let (image, lease) = match source {
        Source::Name(reference) => (named(cx, store, reference, wishes)?, None),
        Source::Id(id) => (whole(cx, store, store.resolve(id, wishes.platform.as_ref())?)?, None),
        Source::OciLayout { path, tag } if path.is_dir() => {
            let lease = store.lease()?;
            let found = store.import_oci_dir(&lease, path, tag.as_deref(), &Bars::new(&cx.ui))?;
            (choose(&name, found, wishes.platform.as_ref())?, Some(lease))
        }
        Source::OciArchive { path, tag } => {
            let lease = store.lease()?;
            let (mut file, bars) = (open(path)?, Bars::new(&cx.ui));
            let found = store.import_from_archive(&lease, &mut file, tag.as_deref(), &bars)?;
            (choose(&name, found, wishes.platform.as_ref())?, Some(lease))
        }
        Source::OciLayout { path, tag } | Source::DockerArchive { path, name: tag } => {
            let lease = store.lease()?;
            let mut file = open(path)?;
            let mut found = store.import_archive(&lease, &mut file, &Bars::new(&cx.ui))?;
            if let Some(tag) = tag {
                found.retain(|(_, names)| names.iter().any(|n| n.goes_by(tag)));
            }
            (choose(&name, found, wishes.platform.as_ref())?, Some(lease))
        }
        Source::File(path) => {
            let lease = store.lease()?;
            (unpacked(cx, store, &lease, image_file::open(path)?, &name)?, Some(lease))
        }
        Source::Sif(text) => {
            let Address::Sif(address) = text.parse()? else {
                return Err(Failure::new(format!("'{text}' is no address of a SIF file")));
            };
            let policy = match wishes.pull {
                PullPolicy::Always => Policy::Always,
                PullPolicy::Newer => Policy::Newer,
                PullPolicy::Missing => Policy::Missing,
                PullPolicy::Never => Policy::Never,
            };
            let platform = wishes.platform.clone().unwrap_or_else(Platform::host);
            // Only of what is fetched there is something to be said.
            let ui = if address.is_here(store, &wishes.connection, &platform)? {
                cx.ui.quieter(true)
            } else {
                cx.ui
            };
            let name = pull_sif(cx, &ui, store, &address, &platform, policy, &wishes.connection)?;
            (whole(cx, store, store.resolve_reference(&name, Some(&platform))?)?, None)
        }
        Source::Daemon(name) => {
            let lease = store.lease()?;
            let bars = Bars::new(&cx.ui);
            (of_daemon(store, &lease, name, wishes.platform.as_ref(), &bars)?, Some(lease))
        }
        Source::Url(url) => {
            let scratch = Scratch::new(store)?;
            let path = scratch.join("image");
            let create = File::options().read(true).write(true).create_new(true).open(&path);
            let mut file =
                create.map_err(|e| Failure::because(format!("cannot create '{}'", path.display()), &e))?;
            isles_apptainer::fetch_file(&wishes.connection.options(), url, &mut file).map_err(of_door)?;
            let lease = store.lease()?;
            (unpacked(cx, store, &lease, file, url)?, Some(lease))
        }
        Source::Tree(_) => {
            return Err(Failure::new(format!("'{name}' is no image of the store"))
                .with_hint("`isles run` mounts it as it is"));
        }
        Source::Instance(_) => {
            return Err(Failure::new(format!("'{name}' is no image"))
                .with_hint("instances are joined by `singularity exec` and `singularity shell`"));
        }
        Source::Recipe(_) | Source::Debian(_) => {
            let built = build(cx, engine, source, wishes)?;
            (built.image, Some(built.lease))
        }
    };
    Ok(Acquired { image, name, _lease: lease })
}

/// Takes an image of the Docker daemon on this machine into the store, with its names.
pub fn of_daemon(
    store: &Store,
    lease: &Lease,
    name: &str,
    platform: Option<&Platform>,
    bars: &Bars,
) -> Result<Image, Failure> {
    let daemon = Daemon::from_environment()?;
    let found = store.import_archive(lease, &mut daemon.save(name)?, bars)?;
    choose(&format!("docker-daemon:{name}"), found, platform)
}

fn build(cx: &Context, engine: &Engine, source: &Source, wishes: &Wishes) -> Result<Built, Failure> {
    let (client, bars) = (wishes.connection.client_of_recipes(), Bars::new(&cx.ui));
    let options = BuildOptions {
        pull: wishes.pull,
        platforms: wishes.platform.iter().cloned().collect(),
        quiet: cx.ui.is_quiet(),
        ..wishes.build.clone()
    };
    let built = match source {
        Source::Debian(suite) => image_of_suite(engine, &client, suite, &options, &bars),
        other => image_of_recipe(engine, &client, Path::new(&other.to_string()), &options, &bars),
    };
    let built = built.map_err(|e| failure(&e))?;
    for warning in &built.warnings {
        cx.ui.warning(&lint(warning));
    }
    Ok(built)
}

fn named(cx: &Context, store: &Store, reference: &Reference, wishes: &Wishes) -> Result<Image, Failure> {
    let here = match wishes.pull {
        PullPolicy::Always | PullPolicy::Newer => None,
        PullPolicy::Missing | PullPolicy::Never => {
            match store.resolve(&reference.familiar(), wishes.platform.as_ref()) {
                Ok(image) => Some(image),
                Err(isles_store::Error::NoImage { .. } | isles_store::Error::OtherPlatform { .. })
                    if wishes.pull == PullPolicy::Missing =>
                {
                    None
                }
                Err(e) => return Err(e.into()),
            }
        }
    };
    if let Some(image) = here {
        return whole(cx, store, image);
    }
    let platform = wishes.platform.clone().unwrap_or_else(Platform::host);
    match wishes.connection.client().pull(store, reference, &platform, &Bars::new(&cx.ui)) {
        Err(isles_registry::Error::Unreachable { host, cause, .. }) if wishes.pull == PullPolicy::Newer => {
            let Ok(image) = store.resolve(&reference.familiar(), Some(&platform)) else {
                return Err(Failure::new(format!("cannot reach {host}: {cause}"))
                    .with_hint("the image is not here either"));
            };
            cx.ui.warning(&format!("cannot reach {host}: {cause}; using the image that is here"));
            whole(cx, store, image)
        }
        Err(e @ isles_registry::Error::Unreachable { .. }) => {
            let name = reference.familiar();
            // A word without a slash is the name of an image, whatever lies here.
            let file = name.strip_suffix(":latest").unwrap_or(&name);
            let hint = match Path::new(file).exists() {
                true => Some(format!("there is a file of that name: write ./{file} for that")),
                false => e.hint(),
            };
            let what = format!("no image '{name}' is here, and none can be fetched");
            Err(Failure { hint, ..Failure::because(what, &e) })
        }
        pulled => Ok(pulled?.image),
    }
}

/// Unpacked for another kind of user, or damaged and repaired: what the blobs have is made again.
fn whole(cx: &Context, store: &Store, image: Image) -> Result<Image, Failure> {
    if store.layers_of(&image).is_err() {
        let lease = store.lease()?;
        store.ensure_layers(&lease, &image, &Bars::new(&cx.ui))?;
    }
    Ok(image)
}

/// Takes the file system of a file into the store; one that was taken in before and has not changed is known again.
fn unpacked(cx: &Context, store: &Store, lease: &Lease, file: File, name: &str) -> Result<Image, Failure> {
    let bars = Bars::new(&cx.ui);
    match image_file::form(&file).map_err(|e| Failure::because(format!("cannot read '{name}'"), &e))? {
        Some(Form::Sif) => {
            let sif = Sif::from_file(file, name)?;
            Ok(store.import_sif(lease, SifSource::Sif(&sif), &[], &bars)?)
        }
        Some(Form::Bare(FileSystemKind::Squashfs)) => {
            Ok(store.import_sif(lease, SifSource::Squashfs(&file, name), &[], &bars)?)
        }
        Some(Form::Bare(FileSystemKind::Ext)) => {
            Ok(store.import_sif(lease, SifSource::Ext(&file, name), &[], &bars)?)
        }
        _ => Err(Failure::new(format!("'{name}' is no image"))
            .with_hint("files of SIF, squashfs and ext3 are known by how they begin")),
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e| Failure::because(format!("cannot open the image '{}'", path.display()), &e))
}

fn choose(name: &str, found: Vec<Imported>, platform: Option<&Platform>) -> Result<Image, Failure> {
    let host = Platform::host();
    let wanted = platform.unwrap_or(&host);
    let mut images: Vec<Image> = found.into_iter().map(|(image, _)| image).collect();
    if images.len() > 1 {
        images.retain(|image| wanted.accepts(&image.config.platform()));
        images.dedup_by(|a, b| a.manifest_digest == b.manifest_digest);
    }
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err(Failure::new(format!("no such image in '{name}'"))
            .with_hint("load it with `isles load` to see the names that it holds")),
        n => Err(Failure::new(format!("'{name}' holds {n} images"))
            .with_hint("name one: oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG")),
    }
}
