//! From the word that names an image to something that can run: a folder, a file, an image in the store, or an instance.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use isles_engine::{Engine, image_file};
use isles_registry::LibraryName;
use isles_sif::Sif;
use isles_spec::image::ContainerConfig;
use isles_spec::{FileSystemKind, ImageFile, ImageMount, Platform, Reference, Root};
use isles_store::{Image as StoreImage, Imported, Lease, SifSource, Store};
use sha2::{Digest, Sha256};

use crate::action_flags as flags;
use crate::command::Context;
use crate::commands::pull::path_and_tag;
use crate::failure::Failure;
use crate::image_key;
use crate::reach::{self, Steps};

/// How an image is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named<'a> {
    Path(&'a Path),
    Instance(&'a str),
    /// The transport, and what stands behind its colon (and slashes).
    Uri(&'a str, &'a str),
}

/// Transports that are known, with or without slashes behind the colon.
const TRANSPORTS: [&str; 12] = [
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "library",
    "oras",
    "shub",
    "http",
    "https",
    "ipfs",
    "instance",
];

impl<'a> Named<'a> {
    /// A word whose beginning is no transport is a path: names of files may have colons in them.
    pub fn parse(text: &'a str) -> Named<'a> {
        let Some((transport, rest)) = text.split_once(':').filter(|(t, _)| TRANSPORTS.contains(t)) else {
            return Named::Path(Path::new(text));
        };
        let slashes = rest.strip_prefix("//");
        match (transport, slashes) {
            ("instance", Some(name)) => Named::Instance(name),
            // These are paths or names by themselves, in which two slashes may mean something.
            ("oci" | "oci-archive" | "docker-archive" | "docker-daemon", _) => {
                Named::Uri(transport, rest.strip_prefix("//").unwrap_or(rest))
            }
            (_, Some(rest)) => Named::Uri(transport, rest),
            _ => Named::Path(Path::new(text)),
        }
    }
}

/// An image that can run.
#[derive(Debug)]
pub struct Image {
    pub root: Root,
    /// As `APPTAINER_CONTAINER` says it.
    pub name: String,
    pub config: ContainerConfig,
    pub store_image: Option<StoreImage>,
    /// Opened once: what was looked at is what is mounted.
    pub file: Option<File>,
    /// The passphrase of one that is encrypted.
    pub secret: Option<Vec<u8>>,
    /// Keeps an image of the store from being collected until a container holds it.
    _lease: Option<Lease>,
    temporary: Option<Unfinished>,
    /// The name under which it came into the store only now, where it is not to stay.
    unwanted: Option<Reference>,
}

impl Image {
    /// After the run: takes the name away that an image has got for it, where nothing is to be kept.
    pub fn forget(&self, store: &Store) {
        if let Some(name) = &self.unwanted {
            // What is left is collected with everything that has no name.
            let _ = store.untag(name);
        }
    }

    /// The last part of the name, as `APPTAINER_NAME` says it.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    fn new(root: Root, name: String) -> Image {
        Image {
            root,
            name,
            config: ContainerConfig::default(),
            store_image: None,
            file: None,
            secret: None,
            _lease: None,
            temporary: None,
            unwanted: None,
        }
    }
}

/// Finds the image, and fetches it where it is not here.
pub fn acquire(cx: &Context<'_>, engine: &Engine, text: &str) -> Result<Image, Failure> {
    let mut image = found(cx, engine, text)?;
    if let (Root::File(file), Some(opened)) = (&image.root, &image.file)
        && file.kind.is_encrypted()
    {
        image.secret = Some(image_key::passphrase(cx, &image.name, opened)?);
    }
    Ok(image)
}

fn found(cx: &Context<'_>, engine: &Engine, text: &str) -> Result<Image, Failure> {
    match Named::parse(text) {
        Named::Path(path) => mountable(cx, engine, on_disk(path)?),
        Named::Instance(name) => Err(Failure::new(format!("the instance {name} is no image"))),
        Named::Uri(transport, rest) => {
            let fetched = fetch(cx, engine, text, transport, rest);
            fetched.and_then(|image| mountable(cx, engine, image)).map_err(|failure| Failure {
                message: format!("Unable to handle {text} uri: {}", failure.message),
                ..failure
            })
        }
    }
}

/// An image file as it can be used here: unpacked into the store where the caller wants that, or where this user
/// cannot mount it. What was unpacked before, and has not changed since, is there already.
fn mountable(cx: &Context<'_>, engine: &Engine, image: Image) -> Result<Image, Failure> {
    let Root::File(ImageFile { path, kind, .. }) = &image.root else { return Ok(image) };
    // It would lie open in the store.
    if kind.is_encrypted() {
        return Ok(image);
    }
    let wanted = if cx.values.is(&flags::UNSQUASH) { ImageMount::Unpack } else { ImageMount::Auto };
    if engine.image_mount(wanted) != ImageMount::Unpack {
        return Ok(image);
    }
    cx.talk.info("Converting SIF file to temporary sandbox...");
    let failed = |e: std::io::Error| Failure::because(format!("while extracting {}", path.display()), &e);
    let file = match &image.file {
        Some(file) => file.try_clone().map_err(failed)?,
        None => image_file::open(path)?,
    };
    let store = engine.store();
    let lease = store.lease()?;
    let unpacked = match image_file::form(&file).map_err(failed)? {
        Some(image_file::Form::Sif) => {
            let sif = Sif::from_file(file, image.name.clone())
                .map_err(|e| Failure::because(format!("while extracting {}", path.display()), &e))?;
            store.import_sif(&lease, SifSource::Sif(&sif), &[], &Steps(cx.talk))?
        }
        _ => {
            let source = match kind {
                FileSystemKind::Ext => SifSource::Ext(&file, &image.name),
                _ => SifSource::Squashfs(&file, &image.name),
            };
            store.import_sif(&lease, source, &[], &Steps(cx.talk))?
        }
    };
    if store.layers_of(&unpacked).is_err() {
        store.ensure_layers(&lease, &unpacked, &Steps(cx.talk))?;
    }
    let root = Root::Image { manifest: unpacked.manifest_digest.clone(), name: image.name.clone() };
    // It is run as the file is: by what is in it, and not by the configuration that the store has for it.
    Ok(Image { store_image: Some(unpacked), file: None, _lease: Some(lease), root, ..image })
}

/// A folder that is known to be a root file system, under another name.
pub fn of_folder(folder: PathBuf, name: String) -> Image {
    Image::new(Root::Directory(folder), name)
}

/// A folder or a file, by a path of the host.
pub fn on_disk(path: &Path) -> Result<Image, Failure> {
    let could_not =
        |e: &std::io::Error| Failure::because(format!("could not open image {}", path.display()), e);
    let absolute = fs::canonicalize(path).map_err(|e| could_not(&e))?;
    let name = absolute.display().to_string();
    if absolute.is_dir() {
        return Ok(Image::new(Root::Directory(absolute), name));
    }
    let file = image_file::open(&absolute)?;
    let found = match image_file::form(&file).map_err(|e| could_not(&e))? {
        Some(image_file::Form::Sif) => {
            let copy = file.try_clone().map_err(|e| could_not(&e))?;
            let sif = Sif::from_file(copy, name.clone())
                .map_err(|e| Failure::because(format!("could not open image {name}"), &e))?;
            runs_here(&sif)?;
            image_file::primary(&absolute, &sif)?
        }
        Some(image_file::Form::Bare(_)) => image_file::find(&absolute, &file)?,
        None => {
            return Err(Failure::new(format!("could not open image {name}: image format not recognized"))
                .with_hint(
                    "an image is a file of SIF, squashfs or ext3, or a folder with a root file system",
                ));
        }
    };
    let mut image = Image::new(Root::File(found), name);
    image.file = Some(file);
    Ok(image)
}

/// Whether the image is for this machine, as far as it says.
fn runs_here(sif: &Sif) -> Result<(), Failure> {
    let own = go_architecture();
    let arch = sif.primary().and_then(|object| object.partition()).map(|partition| partition.arch.name());
    match arch {
        Some(arch) if arch != own && arch != "unknown" => {
            Err(Failure::new(format!("image targets '{arch}', cannot run on '{own}'"))
                .with_hint("pull or build the image for this architecture, with --arch"))
        }
        _ => Ok(()),
    }
}

/// The name that Go, and so Apptainer, has for this machine.
pub fn go_architecture() -> String {
    Platform::host().architecture
}

fn fetch(
    cx: &Context<'_>,
    engine: &Engine,
    text: &str,
    transport: &str,
    rest: &str,
) -> Result<Image, Failure> {
    let store = engine.store();
    let bars = Steps(cx.talk);
    match transport {
        "docker" => {
            let reference = Reference::parse(rest)?;
            pulled(cx, store, &reference, text)
        }
        "oci" | "oci-archive" | "docker-archive" => {
            let (path, tag) = path_and_tag(rest);
            let lease = store.lease()?;
            let found = if path.is_dir() {
                store.import_oci_dir(&lease, &path, tag.as_deref(), &bars)?
            } else {
                let mut file = File::open(&path)
                    .map_err(|e| Failure::because(format!("cannot open '{}'", path.display()), &e))?;
                let mut found = store.import_archive(&lease, &mut file, &bars)?;
                if let Some(tag) = &tag {
                    found.retain(|(_, names)| names.iter().any(|name| name.goes_by(tag)));
                }
                found
            };
            of_store(choose(text, found)?, text, Some(lease))
        }
        "docker-daemon" => {
            let daemon = reach::daemon(cx)?;
            let lease = store.lease()?;
            let mut archive = daemon.save(rest)?;
            of_store(choose(text, store.import_archive(&lease, &mut archive, &bars)?)?, text, Some(lease))
        }
        "oras" => {
            let reference = Reference::parse(rest)?;
            let client = reach::client(cx)?;
            let platform = Platform::host();
            let key = client.find_sif(&reference, &platform)?.file.digest.to_string();
            cached(cx, "oras", Some(&key), |file| {
                client.pull_sif(&reference, &platform, file, &bars)?;
                Ok(())
            })
        }
        "library" => {
            let name = LibraryName::parse(text)?;
            let library = reach::library(cx, Some(&name), None)?;
            let arch = go_architecture();
            let key = library.find(&name, &arch)?.digest().map(|digest| digest.to_string());
            cached(cx, "library", key.as_deref(), |file| {
                library.pull(&name, &arch, file, &bars)?;
                Ok(())
            })
        }
        "http" | "https" => cached(cx, "net", None, |file| reach::download(cx, text, file)),
        "shub" => Err(Failure::unsupported(
            "shub://",
            "Singularity Hub was switched off in 2021; use docker:// or oras://",
        )),
        _ => Err(Failure::unsupported(
            format!("{transport}://"),
            "fetch the file by other means, and run it by its path",
        )),
    }
}

/// The registry is asked each time, because a tag may have moved; what is here is used where it cannot be reached.
fn pulled(cx: &Context<'_>, store: &Store, reference: &Reference, text: &str) -> Result<Image, Failure> {
    let platform = Platform::host();
    let lines = Steps(cx.talk);
    let known = store.resolve_reference(&reference.normalized(), None).is_ok();
    let image = match reach::client(cx)?.pull(store, reference, &platform, &lines) {
        Ok(pulled) => {
            if pulled.up_to_date {
                cx.talk.info("Using cached image");
            }
            pulled.image
        }
        Err(error) => {
            let here = store.resolve_reference(&reference.normalized(), Some(&platform));
            let gone = matches!(error, isles_registry::Error::Unreachable { .. });
            match here.ok().filter(|image| gone && store.is_whole(image)) {
                Some(image) => {
                    cx.talk.warning(&format!("{error}; using the image that is here"));
                    image
                }
                None => return Err(error.into()),
            }
        }
    };
    if store.layers_of(&image).is_err() {
        // Unpacked for another kind of user: what the blobs have is made again.
        let lease = store.lease()?;
        store.ensure_layers(&lease, &image, &lines)?;
    }
    let unwanted = (!known && cx.values.is(&flags::DISABLE_CACHE)).then(|| reference.normalized());
    Ok(Image { unwanted, ..of_store(image, text, None)? })
}

fn of_store(image: StoreImage, text: &str, lease: Option<Lease>) -> Result<Image, Failure> {
    let own = Platform::host();
    let platform = image.config.platform();
    if !own.accepts(&platform) {
        let (theirs, own) = (&platform.architecture, &own.architecture);
        return Err(Failure::new(format!("image targets '{theirs}', cannot run on '{own}'"))
            .with_hint("the image has to be made for this architecture"));
    }
    let root = Root::Image { manifest: image.manifest_digest.clone(), name: text.to_owned() };
    let config = image.config.config.clone();
    Ok(Image {
        root,
        name: text.to_owned(),
        config,
        store_image: Some(image),
        file: None,
        secret: None,
        _lease: lease,
        temporary: None,
        unwanted: None,
    })
}

fn choose(text: &str, found: Vec<Imported>) -> Result<StoreImage, Failure> {
    let own = Platform::host();
    let mut images: Vec<StoreImage> = found.into_iter().map(|(image, _)| image).collect();
    if images.len() > 1 {
        images.retain(|image| own.accepts(&image.config.platform()));
        images.dedup_by(|a, b| a.manifest_digest == b.manifest_digest);
    }
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err(Failure::new(format!("no image is there for {} in '{text}'", own.architecture))),
        n => Err(Failure::new(format!("'{text}' holds {n} images")).with_hint("name one, by its tag")),
    }
}

/// A SIF file of a network, kept in the cache by the digest that it is known to have before it is fetched. One of
/// which nothing is known, or that is not to be kept, goes with the container.
fn cached(
    cx: &Context<'_>,
    kind: &str,
    key: Option<&str>,
    fill: impl FnOnce(&mut File) -> Result<(), Failure>,
) -> Result<Image, Failure> {
    let keep = !cx.values.is(&flags::DISABLE_CACHE);
    let folder = if keep { cx.cache_dir()?.join(kind) } else { temporary_folder(cx) };
    let failed =
        |e: &std::io::Error| Failure::because(format!("cannot keep an image in '{}'", folder.display()), e);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(|e| failed(&e))?;
    let place = key.filter(|_| keep).map(|key| folder.join(key.replace(':', ".")));
    if let (Some(place), Some(key)) = (place.as_ref().filter(|place| place.is_file()), key) {
        match kept(place, key) {
            Some(image) => {
                cx.talk.info("Using cached SIF image");
                return Ok(image);
            }
            None => cx.talk.warning(&format!("'{}' is not what its name says", place.display())),
        }
    }
    // Others that fetch the same at once each write a file of their own, and the last one stays.
    let unfinished = Unfinished(folder.join(format!(".isles-{}", isles_store::random_name())));
    let made = File::options().read(true).write(true).create_new(true).mode(0o644).open(&unfinished.0);
    let mut file = made.map_err(|e| failed(&e))?;
    fill(&mut file)?;
    match place {
        Some(place) => {
            fs::rename(&unfinished.0, &place).map_err(|e| failed(&e))?;
            on_disk(&place)
        }
        None => {
            let mut image = on_disk(&unfinished.0)?;
            image.temporary = Some(unfinished);
            Ok(image)
        }
    }
}

/// An image of the cache; `None` where it is not what its name says.
fn kept(place: &Path, digest: &str) -> Option<Image> {
    let image = on_disk(place).ok()?;
    let is_it = is_as_named(place, image.file.as_ref()?, digest);
    is_it.is_ok_and(|is_it| is_it).then_some(image)
}

/// A name is believed where nobody else could have given it; else the digest of the open file, which is what is run, is
/// found out.
fn is_as_named(place: &Path, file: &File, digest: &str) -> std::io::Result<bool> {
    let folder = fs::metadata(place.parent().unwrap_or(Path::new("/")))?;
    let (named, opened) = (fs::symlink_metadata(place)?, file.metadata()?);
    let is_same = (named.dev(), named.ino()) == (opened.dev(), opened.ino());
    if is_same && [folder, named, opened].iter().all(is_own) {
        return Ok(true);
    }
    let (mut hash, mut at, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 17]);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
    Ok(digest == format!("sha256:{}", isles_spec::digest::hex(&hash.finalize())))
}

/// Whether nobody but the caller, or root, can change it.
fn is_own(about: &fs::Metadata) -> bool {
    let caller = rustix::process::geteuid().as_raw();
    (about.uid() == caller || about.uid() == 0) && about.mode() & 0o022 == 0
}

/// A file that goes when it is no longer needed, unless it has got another name.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// `APPTAINER_TMPDIR`, `TMPDIR`, `/tmp`.
pub fn temporary_folder(cx: &Context<'_>) -> PathBuf {
    cx.values.word(&flags::TMPDIR).map_or_else(std::env::temp_dir, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_that_others_may_have_put_into_the_cache() {
        const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("x");
        for (folder, mode, text, fine) in [
            (0o755, 0o644, "other", true),
            (0o755, 0o666, "other", false),
            (0o777, 0o644, "other", false),
            (0o775, 0o664, "abc", true),
        ] {
            fs::write(&place, text).unwrap();
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(folder)).unwrap();
            let file = File::open(&place).unwrap();
            assert_eq!(is_as_named(&place, &file, ABC).unwrap(), fine, "{folder:o} {mode:o} {text}");
        }
        let other = tempfile::tempfile().unwrap();
        assert!(!is_as_named(&place, &other, ABC).unwrap(), "what is run is another file");
    }

    #[test]
    fn words_that_name_images() {
        for (text, expected) in [
            ("x.sif", Named::Path(Path::new("x.sif"))),
            ("samtools:1.0--0", Named::Path(Path::new("samtools:1.0--0"))),
            ("/a:b/c", Named::Path(Path::new("/a:b/c"))),
            ("docker:x", Named::Path(Path::new("docker:x"))),
            ("instance://web", Named::Instance("web")),
            ("docker://debian:12", Named::Uri("docker", "debian:12")),
            ("oci:/a/b:t", Named::Uri("oci", "/a/b:t")),
            ("oci:///a/b", Named::Uri("oci", "/a/b")),
            ("docker-archive:x.tar", Named::Uri("docker-archive", "x.tar")),
            ("library://a/b/c", Named::Uri("library", "a/b/c")),
            ("https://x/y.sif", Named::Uri("https", "x/y.sif")),
        ] {
            assert_eq!(Named::parse(text), expected, "{text}");
        }
    }
}
