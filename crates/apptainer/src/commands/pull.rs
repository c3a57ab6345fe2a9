//! `apptainer pull`: an image from somewhere else, as a SIF file here.

use std::fs::File;
use std::path::{Path, PathBuf};

use isles_build::definition::Origin;
use isles_build::{SifOptions, write_sif};
use isles_registry::LibraryName;
use isles_sif::Sif;
use isles_spec::time::parse_rfc3339;
use isles_spec::{Platform, Reference};
use isles_store::{Image, Imported, Lease, Store};

use crate::action_flags as flags;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::reach::{self, Steps};

use super::build;
use super::sign::prefixed;

pub static ARCH: Flag =
    Flag::text("arch", "name", "the architecture (default that of this machine)").env(&["PULL_ARCH"]);
static VARIANT: Flag = Flag::text("arch-variant", "name", "the variant of the architecture, for example v7")
    .env(&["PULL_ARCH_VARIANT"]);
static SANDBOX: Flag =
    Flag::switch("sandbox", "make a folder instead of a file").env(&["SANDBOX", "PULL_SANDBOX"]);
pub static LIBRARY: Flag = Flag::text("library", "url", "the library to speak with").env(&["LIBRARY"]);
pub static UNSIGNED: Flag =
    Flag::switch("allow-unsigned", "do not look for signatures").short('U').env(&["ALLOW_UNSIGNED"]);
static DIR: Flag = Flag::text("dir", "folder", "put the file there").env(&["PULLDIR", "PULLFOLDER"]);
static NAME: Flag = Flag::text("name", "name", "the name of the file").hidden().env(&["PULL_NAME"]);
static FORCE: Flag = Flag::switch("force", "overwrite a file that is there").short('F').env(&["FORCE"]);
static DISABLE_CACHE: Flag =
    Flag::switch("disable-cache", "keep nothing but the file").env(&["DISABLE_CACHE"]);
static NO_CLEANUP: Flag = Flag::switch("no-cleanup", "leave what is there when it fails").hidden();
static REPRODUCIBLE: Flag =
    Flag::switch("reproducible", "equal images give equal files, which they do anyway");

pub static COMMAND: Command = Command {
    usage: "pull [pull options...] [output file] <URI>",
    short: "Pull an image from a URI",
    long: "docker:// and the like are converted, and the same image gives the same file; oras://, library://, http://\n\
           and https:// are fetched as they are. With --sandbox there is a folder in the place of the file.",
    examples: "apptainer pull docker://debian:12\napptainer pull mine.sif oras://localhost:5000/image:tag",
    flags: &[
        &[
            &UNSIGNED,
            &ARCH,
            &DIR,
            &DISABLE_CACHE,
            &FORCE,
            &LIBRARY,
            &NAME,
            &NO_CLEANUP,
            &REPRODUCIBLE,
            &SANDBOX,
            &VARIANT,
        ],
        REGISTRY,
    ],
    arity: Arity::Between(1, 2),
    interspersed: true,
    run,
    ..Command::EMPTY
};

/// The flags of every command that speaks with registries.
pub const REGISTRY: &[&Flag] = &[
    &flags::NO_HTTPS,
    &flags::NOHTTPS,
    &flags::DOCKER_LOGIN,
    &flags::DOCKER_HOST,
    &flags::DOCKER_USERNAME,
    &flags::DOCKER_PASSWORD,
    &flags::AUTHFILE,
];

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let (named, uri) = match cx.arguments {
        [name, uri] => (Some(name.as_str()), uri),
        [uri] => (None, uri),
        _ => return Err(Failure::usage("accepts between 1 and 2 arg(s)")),
    };
    let (scheme, rest) = reach::split(uri).ok_or_else(|| {
        Failure::new("No transport type URI supplied")
            .with_hint("write where the image is, for example docker://debian:12")
    })?;
    if rest.is_empty() {
        return Err(Failure::new(format!("Bad URI {uri}")));
    }
    let name = cx.values.word(&NAME).or(named).map_or_else(|| usual_name(scheme, rest), str::to_owned);
    let path = cx.values.word(&DIR).map_or_else(PathBuf::new, PathBuf::from).join(name);
    if path.symlink_metadata().is_ok() && !cx.values.is(&FORCE) {
        let text =
            format!("Image file already exists: {:?} - will not overwrite", path.display().to_string());
        return Err(Failure::new(text).with_hint("--force overwrites it"));
    }
    let platform = platform(cx)?;
    if cx.values.is(&SANDBOX) {
        sandbox(cx, scheme, (uri, rest), &platform, &path)?;
        return Ok(0);
    }
    if path.is_dir() {
        return Err(Failure::new(format!("'{}' is a folder", path.display())));
    }
    match scheme {
        "docker" | "oci" | "oci-archive" | "docker-archive" | "docker-daemon" => {
            let converted = convert(cx, scheme, rest, &platform, &path);
            converted.map_err(|e| prefixed("While making image from oci registry", e))?;
        }
        "oras" => {
            let reference = Reference::parse(rest)?;
            let client = reach::client(cx)?;
            fetched(&path, |file| {
                Ok(client.pull_sif(&reference, &platform, file, &Steps(cx.talk)).map(drop)?)
            })
            .map_err(|e| prefixed("While pulling image from oci registry", e))?;
        }
        "library" => {
            let name = LibraryName::parse(uri)?;
            let library = reach::library(cx, Some(&name), cx.values.word(&LIBRARY))?;
            let arch = &platform.architecture;
            fetched(&path, |file| Ok(library.pull(&name, arch, file, &Steps(cx.talk)).map(drop)?))
                .map_err(|e| prefixed("While pulling library image", e))?;
            let signed =
                Sif::open(&path).is_ok_and(|sif| sif.of_kind(isles_sif::Kind::Signature).next().is_some());
            if cx.values.is(&UNSIGNED) || !signed {
                cx.talk.warning("Skipping container verification");
            } else {
                cx.talk.info(&format!("The image is signed; `verify {}` tells by whom", path.display()));
            }
        }
        "http" | "https" => {
            fetched(&path, |file| reach::download(cx, uri, file))
                .map_err(|e| prefixed("While pulling from image from http(s)", e))?;
        }
        "shub" => {
            let instead = "Singularity Hub was switched off in 2021; use docker:// or oras://";
            return Err(Failure::unsupported("shub://", instead));
        }
        other => return Err(Failure::new(format!("Unsupported transport type: {other}"))),
    }
    Ok(0)
}

/// A folder with what an image holds. What was there is replaced when all of it is here.
fn sandbox(
    cx: &Context<'_>,
    scheme: &str,
    (uri, rest): (&str, &str),
    platform: &Platform,
    path: &Path,
) -> Result<(), Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    let (image, _lease) = match scheme {
        "docker" | "oci" | "oci-archive" | "docker-archive" | "docker-daemon" => {
            let lease = store.lease()?;
            let image = obtained(cx, store, &lease, scheme, rest, platform)
                .map_err(|e| prefixed("While making image from oci registry", e))?;
            store.ensure_layers(&lease, &image, &Steps(cx.talk))?;
            (image, lease)
        }
        "oras" => {
            let (reference, client) = (Reference::parse(rest)?, reach::client(cx)?);
            build::fetched_image(cx, store, uri, |file| {
                Ok(client.pull_sif(&reference, platform, file, &Steps(cx.talk)).map(drop)?)
            })
            .map_err(|e| prefixed("While pulling image from oci registry", e))?
        }
        "library" => {
            let name = LibraryName::parse(uri)?;
            let library = reach::library(cx, Some(&name), cx.values.word(&LIBRARY))?;
            let arch = &platform.architecture;
            build::fetched_image(cx, store, uri, |file| {
                Ok(library.pull(&name, arch, file, &Steps(cx.talk)).map(drop)?)
            })
            .map_err(|e| prefixed("While pulling library image", e))?
        }
        "http" | "https" => build::fetched_image(cx, store, uri, |file| reach::download(cx, uri, file))
            .map_err(|e| prefixed("While pulling from image from http(s)", e))?,
        other => return Err(Failure::new(format!("Unsupported transport type: {other}"))),
    };
    cx.talk.info("Extracting image to sandbox...");
    match path.symlink_metadata() {
        Err(_) => {}
        Ok(there) if there.is_dir() && !build::is_sandbox(path) => {
            return Err(Failure::new(format!("'{}' is a folder, and no sandbox", path.display()))
                .with_hint("give another name, or remove it first"));
        }
        Ok(there) => {
            if !there.is_dir() {
                let what = || format!("cannot replace '{}'", path.display());
                std::fs::remove_file(path).map_err(|e| Failure::because(what(), &e))?;
            }
        }
    }
    build::sandbox_of(cx, &engine, &image, uri, path)
}

/// The platform that is asked for, or this machine's.
pub fn platform(cx: &Context<'_>) -> Result<Platform, Failure> {
    let host = Platform::host();
    let (arch, variant) = (cx.values.word(&ARCH), cx.values.word(&VARIANT));
    if variant.is_none() && arch.is_none_or(|arch| arch == host.architecture) {
        return Ok(host);
    }
    // As `docker --platform` takes it: `arm/v7` is an architecture with its variant, which may be said without the v.
    let arch = arch.unwrap_or(&host.architecture);
    let variant = variant.map(|v| if v.starts_with('v') { format!("/{v}") } else { format!("/v{v}") });
    Ok(format!("linux/{arch}{}", variant.unwrap_or_default()).parse::<Platform>()?)
}

/// What a file is called that nobody gave a name: `debian_12.sif`.
fn usual_name(scheme: &str, rest: &str) -> String {
    let last = rest.trim_matches('/').rsplit('/').next().unwrap_or(rest);
    if matches!(scheme, "http" | "https") {
        return last.split(['?', '#']).next().unwrap_or(last).to_owned();
    }
    let (name, tag) = last.split_once(':').unwrap_or((last, "latest"));
    let tag = tag.split(',').next().unwrap_or(tag);
    format!("{name}_{tag}.sif")
}

/// Brings an OCI image into the store and makes a SIF file of it.
fn convert(
    cx: &Context<'_>,
    scheme: &str,
    rest: &str,
    platform: &Platform,
    path: &Path,
) -> Result<(), Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    let lease = store.lease()?;
    let image = obtained(cx, store, &lease, scheme, rest, platform)?;
    store.ensure_layers(&lease, &image, &Steps(cx.talk))?;
    cx.talk.info("Creating SIF file...");
    let epoch = super::epoch();
    let created = image.config.created.as_deref().and_then(parse_rfc3339);
    let origin = Origin::of_image(scheme, rest, epoch.or(created).unwrap_or(0));
    write_sif(store, &image, &SifOptions { origin, latest: epoch, ..SifOptions::default() }, path)?;
    if cx.values.is(&DISABLE_CACHE) {
        cx.talk.verbose("the image stays in the store; `isles prune` removes what has no name");
    }
    Ok(())
}

fn obtained(
    cx: &Context<'_>,
    store: &Store,
    lease: &Lease,
    scheme: &str,
    rest: &str,
    platform: &Platform,
) -> Result<Image, Failure> {
    let steps = Steps(cx.talk);
    let found = match scheme {
        "docker" => {
            let reference = Reference::parse(rest)?;
            cx.talk.info("Converting OCI blobs to SIF format");
            let image = reach::client(cx)?.pull(store, &reference, platform, &steps)?.image;
            lease.hold(&image.manifest_digest)?;
            return Ok(image);
        }
        "docker-daemon" => store.import_archive(lease, &mut reach::daemon(cx)?.save(rest)?, &steps)?,
        _ => {
            let (path, tag) = path_and_tag(rest);
            if path.is_dir() {
                store.import_oci_dir(lease, &path, tag.as_deref(), &steps)?
            } else {
                let mut file = File::open(&path)
                    .map_err(|e| Failure::because(format!("cannot open '{}'", path.display()), &e))?;
                let mut found = store.import_archive(lease, &mut file, &steps)?;
                if let Some(tag) = &tag {
                    found.retain(|(_, names)| names.iter().any(|name| name.goes_by(tag)));
                }
                found
            }
        }
    };
    cx.talk.info("Converting OCI blobs to SIF format");
    choose(rest, found, platform)
}

/// `PATH[:TAG]`, where what is on disk decides where the path ends.
pub fn path_and_tag(text: &str) -> (PathBuf, Option<String>) {
    if Path::new(text).exists() {
        return (text.into(), None);
    }
    let mut splits = text.match_indices(':').map(|(at, _)| (&text[..at], &text[at + 1..]));
    let found = splits.rfind(|(path, _)| Path::new(path).exists());
    found.map_or_else(|| (text.into(), None), |(path, tag)| (path.into(), Some(tag.to_owned())))
}

/// The one image, or that of several which is for the platform.
fn choose(text: &str, found: Vec<Imported>, platform: &Platform) -> Result<Image, Failure> {
    let mut images: Vec<Image> = found.into_iter().map(|(image, _)| image).collect();
    if images.len() > 1 {
        images.retain(|image| platform.accepts(&image.config.platform()));
    }
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err(Failure::new(format!("'{text}' has no image for {platform}"))),
        n => Err(Failure::new(format!("'{text}' has {n} images"))
            .with_hint("name one of them: PATH:TAG, or PATH:NAME:TAG")),
    }
}

/// A file that appears under its name when it is complete.
fn fetched(path: &Path, fetch: impl FnOnce(&mut File) -> Result<(), Failure>) -> Result<(), Failure> {
    isles_sif::create_whole(path, isles_sif::PROGRAM, |file| {
        let copy = file.try_clone();
        fetch(&mut copy.map_err(|e| Failure::because(format!("cannot write {}", path.display()), &e))?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_get_the_usual_names() {
        for (scheme, rest, name) in [
            ("docker", "debian:12", "debian_12.sif"),
            ("docker", "quay.io:443/a/b", "b_latest.sif"),
            ("library", "sylabs/default/alpine:3.1,latest", "alpine_3.1.sif"),
            ("docker", "alpine@sha256:abc", "alpine@sha256_abc.sif"),
            ("https", "example.org/a/b.sif?x=1", "b.sif"),
        ] {
            assert_eq!(usual_name(scheme, rest), name);
        }
    }

    #[test]
    fn paths_and_tags() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        for name in ["a:1", "x.tar"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        for (rest, path, tag) in [
            ("a:1", "a:1", None),
            ("a:1:t", "a:1", Some("t")),
            ("x.tar", "x.tar", None),
            ("x.tar:a/b:1", "x.tar", Some("a/b:1")),
            ("none:1", "none:1", None),
        ] {
            let (found, name) = path_and_tag(&format!("{root}/{rest}"));
            assert_eq!((found, name.as_deref()), (dir.path().join(path), tag), "{rest}");
        }
    }
}
