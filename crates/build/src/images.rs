//! Base images: the local store first, a registry where the caller's policy says so.

use std::fs::File;
use std::path::Path;

use isles_registry::Daemon;
use isles_spec::image::ContainerConfig;
use isles_spec::{Platform, PullPolicy, Reference};
use isles_store::{BuildRecord, CommitOptions, Image, Merged, Store};

use crate::attest::Dependency;
use crate::context::Context;
use crate::copy::{Placement, copy};
use crate::digests::Digests;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::select::Wish;
use crate::snapshot::{Build, Layer, Scratch, Snapshot, commit};
use crate::upper::Upper;

/// Where programs are looked for where an image does not say.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image of a name, with its layers unpacked. Fetched where the policy says so, or it is not here.
pub fn named(build: &Build<'_>, name: &str, platform: &Platform) -> Result<Image> {
    let _turn =
        build.turn(&Key::new("image").with("name", name).with("platform", platform.to_string()).finish());
    let local = || build.store.resolve(name, Some(platform));
    let image = match build.options.pull {
        PullPolicy::Never => local()?,
        PullPolicy::Missing => match local() {
            Err(isles_store::Error::NoImage { .. } | isles_store::Error::OtherPlatform { .. }) => {
                pull(build, name, platform)?
            }
            other => other?,
        },
        PullPolicy::Always | PullPolicy::Newer => match Reference::parse(name) {
            Ok(reference) if reference.digest().is_none() => match pull(build, name, platform) {
                Err(Error::Registry(e))
                    if build.options.pull == PullPolicy::Newer
                        && matches!(*e, isles_registry::Error::Unreachable { .. }) =>
                {
                    local().map_err(|_| Error::Registry(e))?
                }
                pulled => pulled?,
            },
            _ => local()?,
        },
    };
    if let Ok(reference) = Reference::parse(name) {
        let target = build.store.lookup(&reference)?.unwrap_or_else(|| image.manifest_digest.clone());
        build.depends_on(Dependency::image(&reference, platform, &target));
    }
    hold(build, image)
}

/// The same, and where the name stands for one image only, which is for another platform, that one: its files can be
/// had, and steps are refused where their programs do not run. The checks warn of it.
pub fn named_or_other(build: &Build<'_>, name: &str, platform: &Platform) -> Result<Image> {
    named(build, name, platform).or_else(|error| {
        let found = match &error {
            Error::Registry(e) => match &**e {
                isles_registry::Error::WrongPlatform { found, .. } => found.parse::<Platform>().ok(),
                _ => None,
            },
            _ => None,
        };
        if let Some(found) = found {
            return named(build, name, &found);
        }
        // What the registry was to be asked for is not taken from here.
        let here = (!matches!(build.options.pull, PullPolicy::Always | PullPolicy::Newer))
            .then(|| only_other(build.store, name))
            .flatten();
        match here {
            Some(image) => hold(build, image),
            None => Err(error),
        }
    })
}

/// The image of a name in the store, for a platform or, where there is but one, for another.
pub fn here(store: &Store, name: &str, platform: &Platform) -> Option<Image> {
    store.resolve(name, Some(platform)).ok().or_else(|| only_other(store, name))
}

/// The image that a name of the store stands for by itself, not by an index of several.
fn only_other(store: &Store, name: &str) -> Option<Image> {
    let target = store.lookup(&Reference::parse(name).ok()?.normalized()).ok()??;
    store.resolve(name, None).ok().filter(|image| image.manifest_digest == target)
}

/// Keeps an image from being collected while the build lasts, and its layers at hand.
pub fn hold(build: &Build<'_>, image: Image) -> Result<Image> {
    build.lease.hold(&image.manifest_digest)?;
    build.store.ensure_layers(build.lease, &image, build.progress)?;
    Ok(image)
}

fn pull(build: &Build<'_>, name: &str, platform: &Platform) -> Result<Image> {
    let reference = Reference::parse(name)?;
    build.note_work();
    Ok(build.client.pull(build.store, &reference, platform, build.progress)?.image)
}

/// Nothing: `FROM scratch`.
pub fn scratch(platform: &Platform) -> Snapshot {
    let mut snapshot = Snapshot::empty(platform);
    snapshot.config.config.env = vec![DEFAULT_PATH.to_owned()];
    snapshot.config.config.working_dir = "/".to_owned();
    snapshot
}

/// What a stage that begins with an image begins with.
pub fn base(image: &Image, platform: &Platform) -> Snapshot {
    if image.config.rootfs.diff_ids.is_empty() && image.config.history.is_empty() {
        return scratch(platform);
    }
    Snapshot::of_image(image)
}

/// An image in a file or folder of the host (`docker-archive`, `oci`, `oci-archive`), which is read again only
/// when it changed.
pub fn on_disk(build: &Build<'_>, path: &Path, select: Option<&str>) -> Result<Image> {
    let index = if path.is_dir() { path.join("index.json") } else { path.to_owned() };
    let metadata = std::fs::metadata(&index).map_err(Error::io("find the image", &index))?;
    let stamp = {
        use std::os::unix::fs::MetadataExt;
        let m = &metadata;
        format!(
            "{} {} {} {}.{} {}.{}",
            m.dev(),
            m.ino(),
            m.size(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec()
        )
    };
    let key =
        Key::new("image on disk").with("stamp", stamp).with("select", select.unwrap_or_default()).finish();
    if let Some(record) = build.store.build_record(build.lease, &key)?
        && let Some(manifest) = record.holds.first()
        && build.store.has_image(manifest)
    {
        return hold(build, build.store.image(manifest)?);
    }
    build.note_work();
    let imported = if path.is_dir() {
        build.store.import_oci_dir(build.lease, path, select, build.progress)?
    } else {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        build.store.import_archive(build.lease, &mut file, build.progress)?
    };
    let wanted = |(image, names): &(Image, Vec<Reference>)| {
        let named = select.is_none_or(|s| names.iter().any(|n| n.familiar() == s || n.tag() == Some(s)));
        named && build.platform.accepts(&image.config.platform())
    };
    let chosen =
        imported.iter().find(|i| wanted(i)).or_else(|| imported.first().filter(|_| imported.len() == 1));
    let Some((image, _)) = chosen else {
        return Err(isles_spec::Error::new(format!(
            "'{}' has no image for {}",
            path.display(),
            build.platform
        ))
        .with_hint("name one of several with FILE:NAME")
        .into());
    };
    let holds = vec![image.manifest_digest.clone()];
    build.store.put_build_record(&key, &BuildRecord { holds, value: serde_json::Value::Null })?;
    hold(build, image.clone())
}

/// An image of a Docker daemon on this machine, which is taken over again only when the daemon has another one.
pub fn of_daemon(build: &Build<'_>, daemon: &Daemon, name: &str) -> Result<Image> {
    let id = daemon.image_id(name)?;
    let key = Key::new("image of a daemon").with("id", id).finish();
    if let Some(record) = build.store.build_record(build.lease, &key)?
        && let Some(manifest) = record.holds.first()
        && build.store.has_image(manifest)
    {
        return hold(build, build.store.image(manifest)?);
    }
    build.note_work();
    let mut archive = daemon.save(name)?;
    let imported = build.store.import_archive(build.lease, &mut archive, build.progress)?;
    let Some((image, _)) = imported.into_iter().next() else {
        return Err(isles_spec::Error::new(format!("the Docker daemon sent no image for '{name}'"))
            .with_hint("check the name with `docker images`")
            .into());
    };
    let holds = vec![image.manifest_digest.clone()];
    build.store.put_build_record(&key, &BuildRecord { holds, value: serde_json::Value::Null })?;
    hold(build, image)
}

/// A root file system in a folder of the host as the only layer.
pub fn of_folder(build: &Build<'_>, path: &Path) -> Result<Snapshot> {
    let tree = crate::tree::Tree::Folder(crate::tree::Folder::open(path)?);
    let digests = Digests::of(build.store, path);
    let found = crate::select::select(&tree, "/", &Default::default())?.map_err(|n| n.into_error())?;
    let mut snapshot = scratch(&build.platform);
    let mut key = snapshot.key("folder", build);
    crate::select::add_to_key(&mut key, &tree, &digests, &found)?;
    digests.save();
    let step = crate::snapshot::Step {
        title: &format!("copying '{}'", path.display()),
        key: key.finish(),
        shortcut: None,
        created_by: format!("Bootstrap: localimage {}", path.display()),
    };
    build.add(&mut snapshot, step, |_, _| {
        let options = CommitOptions { clamp_mtime: build.epoch, ..CommitOptions::default() };
        Ok(build.store.layer_from_tree(build.lease, path, &options)?)
    })?;
    Ok(snapshot)
}

/// The files of a named context as the only layer, as COPY would bring them into an empty image.
pub fn of_context(build: &Build<'_>, context: &Context, name: &str, platform: &Platform) -> Result<Snapshot> {
    let wish = Wish { ignore: context.ignore.clone(), ..Wish::default() };
    let found = crate::select::select(&context.tree, "/", &wish)?.map_err(|n| n.into_error())?;
    let mut snapshot = scratch(platform);
    let mut key = snapshot.key("context", build);
    crate::select::add_to_key(&mut key, &context.tree, &context.digests, &found)?;
    let step = crate::snapshot::Step {
        title: &format!("copying the context '{name}'"),
        key: key.finish(),
        shortcut: None,
        created_by: format!("FROM {name}"),
    };
    build.add(&mut snapshot, step, |_, _| {
        let ownership = build.store.ownership();
        let scratch = Scratch::new(build.store)?;
        let nothing = Merged::open(&[], ownership)?;
        let mut upper = Upper::new(&scratch.folder("upper")?, &nothing, ownership)?;
        copy(&mut upper, &context.tree, &found, &Placement::plain("/", ownership))?;
        commit(build, upper)
    })?;
    Ok(snapshot)
}

/// A stage of one layer that is in the store, with what a container of it starts with.
pub fn of_layer(
    build: &Build<'_>,
    layer: Layer,
    config: ContainerConfig,
    created: i64,
    created_by: String,
) -> Snapshot {
    let mut snapshot = Snapshot::empty(&build.platform);
    snapshot.config.config = config;
    snapshot.push_layer(layer, &isles_spec::time::rfc3339(created), created_by);
    snapshot
}
