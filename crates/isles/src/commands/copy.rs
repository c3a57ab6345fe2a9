//! `isles copy`

use std::fs::File;
use std::path::PathBuf;

use isles_engine::Engine;
use isles_registry::{
    Client, Copied, CopyFrom, CopyOptions, CopyTo, Credentials, Login, Platforms, copy,
    copy_to_docker_archive,
};
use isles_sif::{PROGRAM, create_whole};
use isles_spec::image::Descriptor;
use isles_spec::{Platform, PullPolicy, Reference, Source};
use isles_store::{DockerArchiveWriter, ExportFormat, Layout, LayoutWriter, Lease, Store};
use serde::Serialize;

use crate::address::{Scratch, SifAddress};
use crate::commands::copy_place::Place;
use crate::commands::save;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::source::{self, Acquired, Wishes};
use crate::ui::format::Format;
use crate::ui::progress::Bars;

/// Copy images and artefacts between registries, the store, folders and files.
///
/// Between registries, OCI layouts and OCI archives everything is copied byte for byte: nothing is unpacked, digests stay
/// as they are, and what the target has already is not sent. Within one registry blobs are mounted. Of a name that stands
/// for several platforms the image for this machine is copied, unless --all or --platform say otherwise: several
/// platforms make an index of these alone, which is another document and has another digest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Places:
  docker://NAME[:TAG|@DIGEST]        a registry
  NAME, isles:NAME                   the store
  oci:DIR[:TAG]                      an OCI layout in a folder
  oci-archive:FILE[:TAG]             one in a tar file
  docker-archive:FILE[:NAME:TAG]     what `docker save` writes and `docker load` reads
  docker-daemon:NAME                 the Docker daemon on this machine (only as SRC)
  FILE.sif, sif:FILE                 a SIF file
  oras://NAME, library://NAME        a SIF file in a registry or a library

Examples:
  isles copy docker://debian:12 docker://localhost:5000/debian:12
  isles copy --all --referrers docker://localhost:5000/app:1 docker://registry.example/app:1
  isles copy --platform linux/arm64 docker://localhost:5000/app:1 oci:layout:1
  isles copy --platform linux/amd64,linux/arm64 docker://debian:12 docker://localhost:5000/debian:12
  isles copy app:1 oci-archive:app.tar:1")]
pub struct Args {
    #[arg(value_name = "SRC")]
    from: Place,
    #[arg(value_name = "DST")]
    to: Place,
    /// Copy all platforms of a name.
    #[arg(short, long, conflicts_with = "platform")]
    all: bool,
    /// Copy the image for this platform; of several, an index of these alone.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Copy also what refers to it: signatures, attestations, bills of materials; and what lies beside it under the
    /// tags of cosign (sha256-….sig, .att, .sbom).
    #[arg(long)]
    referrers: bool,
    /// How to print what was done: json, or a template such as '{{.Digest}}' [default: the digest].
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Write the digest of what was copied into a file.
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    /// Print only the digest.
    #[arg(short, long)]
    quiet: bool,
    /// The login for the registry of SRC.
    #[arg(long, value_name = "USER[:PASSWORD]")]
    src_creds: Option<String>,
    /// The login for the registry of DST.
    #[arg(long, value_name = "USER[:PASSWORD]", alias = "dst-creds")]
    dest_creds: Option<String>,
    /// Check certificates of SRC, and refuse plain HTTP except on loopback [default: as --tls-verify].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    src_tls_verify: Option<bool>,
    /// The same for DST.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        alias = "dst-tls-verify"
    )]
    dest_tls_verify: Option<bool>,
    /// Accepted, because it is what happens: digests always stay as they are.
    #[arg(long, hide = true)]
    preserve_digests: bool,
    #[command(flatten)]
    connection: Connection,
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What was copied, for --format.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    source: String,
    target: String,
    digest: String,
    media_type: String,
    size: u64,
    /// Manifests and indexes.
    manifests: usize,
    /// Blobs that were sent, mounted, and there already.
    copied: usize,
    mounted: usize,
    existing: usize,
    /// Bytes of blobs that were sent.
    bytes: u64,
    referrers: Vec<Referrer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Referrer {
    digest: String,
    artifact_type: Option<String>,
    /// Where it lies under one.
    tag: Option<String>,
}

/// What came of a copy.
struct Done {
    target: Descriptor,
    copied: Option<Copied>,
}

impl From<Descriptor> for Done {
    fn from(target: Descriptor) -> Done {
        Done { target, copied: None }
    }
}

impl From<Copied> for Done {
    fn from(copied: Copied) -> Done {
        Done { target: copied.target.clone(), copied: Some(copied) }
    }
}

pub fn cmd_copy(cx: &Context, args: &Args) -> Result<Code, Failure> {
    if let Place::Daemon(name) = &args.to {
        return Err(Failure::new(format!("docker-daemon:{name} is not copied to"))
            .with_hint("`isles save IMAGE | docker load` gives an image to a Docker daemon"));
    }
    let engine = cx.engine()?;
    let bars = Bars::new(&cx.ui.quieter(args.quiet));
    let done = match (args.from.streams(), args.to.streams()) {
        (true, true) => streamed(engine.store(), args, &bars)?,
        _ if args.referrers => {
            return Err(Failure::new("--referrers is for registries, OCI layouts and OCI archives")
                .with_hint(
                    "neither the store nor SIF files and Docker archives keep what refers to an image",
                ));
        }
        (true, false) if matches!(args.to, Place::DockerArchive { .. }) => {
            docker_archive(engine.store(), args, &bars)?
        }
        _ => by_the_store(cx, &engine, args, &bars)?,
    };
    drop(bars);
    let digest = done.target.digest.to_string();
    if let Some(file) = &args.digestfile {
        save::into_file(file, |out| {
            let failed = |e| Failure::because(format!("cannot write {}", file.display()), &e);
            out.write_all(digest.as_bytes()).map_err(failed)
        })?;
    }
    match &args.format {
        None => cx.ui.line(&digest)?,
        Some(format) => {
            let report = report(args, &done);
            cx.ui.object(format, &report)?;
        }
    }
    Ok(Code::SUCCESS)
}

fn report(args: &Args, done: &Done) -> Report {
    let copied = done.copied.as_ref();
    let number = |of: fn(&Copied) -> usize| copied.map_or(0, of);
    let referrers = copied.iter().flat_map(|c| &c.referrers);
    Report {
        source: args.from.to_string(),
        target: args.to.to_string(),
        digest: done.target.digest.to_string(),
        media_type: done.target.media_type.clone(),
        size: done.target.size,
        manifests: copied.map_or(1, |c| c.manifests),
        copied: number(|c| c.copied),
        mounted: number(|c| c.mounted),
        existing: number(|c| c.existing),
        bytes: copied.map_or(0, |c| c.bytes),
        referrers: referrers
            .map(|r| Referrer {
                digest: r.digest.to_string(),
                artifact_type: r.artifact_type.clone(),
                tag: r.annotations.get(REF_NAME).cloned(),
            })
            .collect(),
    }
}

/// How to speak to the registry of one side.
fn client(args: &Args, verify: Option<bool>, login: Option<&str>) -> Client {
    let mut options = args.connection.options();
    options.tls_verify = verify.unwrap_or(options.tls_verify);
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let login = Login::Password { user: user.to_owned(), password: password.to_owned() };
        options.credentials = Credentials::fixed(login);
    }
    Client::new(options)
}

fn source_client(args: &Args) -> Client {
    client(args, args.src_tls_verify, args.src_creds.as_deref())
}

fn target_client(args: &Args) -> Client {
    client(args, args.dest_tls_verify, args.dest_creds.as_deref())
}

/// A layout that is read, and what of it.
fn layout(store: &Store, place: &Place) -> Result<Option<(Layout, Descriptor)>, Failure> {
    let (layout, name) = match place {
        Place::Oci { path, name } => (store.open_layout(path)?, name),
        Place::OciArchive { path, name } => (store.open_oci_archive(path)?, name),
        Place::DockerArchive { path, name } => (store.open_docker_archive(path, name.as_deref())?, &None),
        _ => return Ok(None),
    };
    let root = layout.select(name.as_deref())?;
    Ok(Some((layout, root)))
}

/// A layout that is written, and what its image is called there.
fn layout_writer(place: &Place) -> Result<Option<(LayoutWriter, Option<&str>)>, Failure> {
    Ok(match place {
        Place::Oci { path, name } => Some((LayoutWriter::folder(path)?, name.as_deref())),
        Place::OciArchive { path, name } => Some((LayoutWriter::archive(path)?, name.as_deref())),
        _ => None,
    })
}

/// Runs `work` with the source of a copy that needs no store.
fn with_source<T>(
    store: &Store,
    args: &Args,
    work: impl FnOnce(CopyFrom<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match (layout(store, &args.from)?, &args.from) {
        (Some((layout, root)), _) => work(CopyFrom::Layout(&layout, &root)),
        (None, Place::Registry(name)) => work(CopyFrom::Registry(&source_client(args), &name.normalized())),
        (None, other) => Err(Failure::new(format!("{other} cannot be copied from as it is"))),
    }
}

/// Between registries and layouts: everything goes through as it is.
fn streamed(store: &Store, args: &Args, bars: &Bars) -> Result<Done, Failure> {
    let platforms = match args.platform.as_slice() {
        _ if args.all => Platforms::All,
        [] => Platforms::One(Platform::host()),
        [one] => Platforms::One(one.clone()),
        several => Platforms::These(several.to_vec()),
    };
    let options = CopyOptions { platforms, referrers: args.referrers };
    with_source(store, args, |from| {
        if let Place::Registry(name) = &args.to {
            let target = target_client(args);
            return Ok(copy(from, CopyTo::Registry(&target, &name.normalized()), &options, bars)?.into());
        }
        let Some((writer, name)) = layout_writer(&args.to)? else {
            return Err(Failure::new(format!("{} cannot be written to as it is", args.to)));
        };
        let copied = copy(from, CopyTo::Layout(&writer), &options, bars)?;
        let mut root = copied.target.clone();
        if let Some(name) = name {
            root.annotations.insert(REF_NAME.into(), name.to_owned());
        }
        let mut roots = vec![root];
        roots.extend(copied.referrers.iter().cloned());
        writer.finish(&roots)?;
        Ok(copied.into())
    })
}

/// Into a file for `docker load`, whose layers are not compressed.
fn docker_archive(store: &Store, args: &Args, bars: &Bars) -> Result<Done, Failure> {
    let Place::DockerArchive { path, name } = &args.to else {
        return Err(Failure::new(format!("{} is no Docker archive", args.to)));
    };
    one_platform(args)?;
    let names =
        name.iter().map(|n| Ok(n.parse::<Reference>()?.normalized())).collect::<Result<Vec<_>, Failure>>()?;
    let platform = args.platform.first().cloned().unwrap_or_else(Platform::host);
    with_source(store, args, |from| {
        let writer = DockerArchiveWriter::new(store, path)?;
        Ok(copy_to_docker_archive(from, &platform, writer, &names, bars)?.into())
    })
}

fn one_platform(args: &Args) -> Result<(), Failure> {
    if args.all || args.platform.len() > 1 {
        return Err(Failure::new(format!("{} holds an image for one platform", args.to))
            .with_hint("leave --all away, or name one platform with --platform"));
    }
    Ok(())
}

/// Everything else goes by the store: into it, out of it, or through it.
fn by_the_store(cx: &Context, engine: &Engine, args: &Args, bars: &Bars) -> Result<Done, Failure> {
    let store = engine.store();
    if args.platform.len() > 1 {
        return Err(Failure::new(format!(
            "{} to {} is a copy of one platform, or of all",
            args.from, args.to
        ))
        .with_hint("several platforms go between registries, OCI layouts and OCI archives"));
    }
    // Files that are SIF files on both sides stay what they are.
    if let (Place::Sif(file), Place::Remote(SifAddress::Registry(name))) = (&args.from, &args.to) {
        return Ok(target_client(args).push_sif(store, file, name, bars)?.into());
    }
    if let (Place::Remote(SifAddress::Registry(name)), Place::Sif(file)) = (&args.from, &args.to) {
        let platform = args.platform.first().cloned().unwrap_or_else(Platform::host);
        let mut found = None;
        create_whole(file, PROGRAM, |whole| {
            let copy = whole.try_clone();
            let mut copy =
                copy.map_err(|e| Failure::because(format!("cannot write {}", file.display()), &e))?;
            found = Some(source_client(args).pull_sif(name, &platform, &mut copy, bars)?);
            Ok::<_, Failure>(())
        })?;
        if let Some(found) = found {
            return Ok(found.file.into());
        }
    }
    if let (true, true, Place::Store(to)) = (args.all, args.from.streams(), &args.to) {
        return all_platforms(store, args, to, bars);
    }
    if let (true, Place::Store(from)) = (args.all, &args.from)
        && let Some(done) = whole_index(store, args, from, bars)?
    {
        return Ok(done);
    }
    let found = acquire(cx, engine, args)?;
    let lease = store.lease()?;
    lease.hold(&found.image.manifest_digest)?;
    put(store, &lease, args, &found, bars)
}

/// Brings the source into the store, where it is not there.
fn acquire(cx: &Context, engine: &Engine, args: &Args) -> Result<Acquired, Failure> {
    let mut connection = args.connection.clone();
    connection.tls_verify = args.src_tls_verify.unwrap_or(connection.tls_verify);
    if let (Place::Registry(name), Some(_)) = (&args.from, &args.src_creds) {
        // With the login of this command.
        let (store, platform) =
            (engine.store(), args.platform.first().cloned().unwrap_or_else(Platform::host));
        let pulled = source_client(args).pull(store, name, &platform, &Bars::new(&cx.ui))?;
        return Ok(Acquired::of(pulled.image, &name.familiar()));
    }
    let wishes = Wishes {
        platform: args.platform.first().cloned(),
        pull: PullPolicy::Always,
        connection,
        build: Default::default(),
    };
    let source = match &args.from {
        Place::Registry(name) => Source::Name(name.normalized()),
        Place::Store(name) => {
            let image = engine.store().resolve(name, args.platform.first())?;
            return Ok(Acquired::of(image, name));
        }
        Place::Oci { path, name } => Source::OciLayout { path: path.clone(), tag: name.clone() },
        Place::OciArchive { path, name } => Source::OciArchive { path: path.clone(), tag: name.clone() },
        Place::DockerArchive { path, name } => {
            Source::DockerArchive { path: path.clone(), name: name.clone() }
        }
        Place::Daemon(name) => Source::Daemon(name.clone()),
        Place::Sif(path) => Source::File(path.clone()),
        Place::Remote(address) => Source::Sif(address.to_string()),
    };
    source::acquire(cx, engine, &source, &wishes)
}

/// Gives an image of the store to the target.
fn put(store: &Store, lease: &Lease, args: &Args, found: &Acquired, bars: &Bars) -> Result<Done, Failure> {
    let image = &found.image;
    let id = image.manifest_digest.to_string();
    let as_is = || Descriptor::new(&image.manifest_media_type, image.manifest_digest.clone(), 0);
    match &args.to {
        Place::Registry(name) => {
            // By its name, where it has one: so a name of several platforms is sent whole.
            let from = match (&args.from, args.all) {
                (Place::Store(name), true) => name.clone(),
                _ => id,
            };
            let pushed =
                target_client(args).push(store, &from, args.platform.first(), &name.normalized(), bars)?;
            Ok(Copied {
                target: pushed.target,
                referrers: Vec::new(),
                manifests: 1,
                copied: pushed.uploaded,
                mounted: pushed.mounted,
                existing: pushed.existing,
                bytes: pushed.bytes,
            }
            .into())
        }
        Place::Store(name) => {
            let name = name.parse::<Reference>()?.normalized();
            store.tag(image, &name)?;
            Ok(measured(store, as_is()).into())
        }
        Place::Oci { .. } | Place::OciArchive { .. } => {
            let Some((writer, name)) = layout_writer(&args.to)? else {
                return Err(Failure::new(format!("{} is no layout", args.to)));
            };
            Ok(store.write_image(image, name, writer, bars)?.into())
        }
        Place::DockerArchive { path, name } => {
            one_platform(args)?;
            let mut names = Vec::new();
            if let Some(name) = name {
                names.push(name.parse::<Reference>()?.normalized());
            }
            let images = [(image.clone(), names)];
            save::into_file(path, |out| {
                Ok(store.export_archive(&images, ExportFormat::DockerArchive, out, bars)?)
            })?;
            Ok(measured(store, as_is()).into())
        }
        Place::Sif(path) => {
            one_platform(args)?;
            store.ensure_layers(lease, image, bars)?;
            save::write_file(store, image, &found.name, false, path)?;
            let mut file = File::open(path)
                .map_err(|e| Failure::because(format!("cannot open {}", path.display()), &e))?;
            let (digest, size) = isles_store::digest_of_file(&mut file)
                .map_err(|e| Failure::because(format!("cannot read {}", path.display()), &e))?;
            Ok(Descriptor::new(isles_registry::SIF_LAYER, digest, size).into())
        }
        Place::Remote(SifAddress::Registry(name)) => {
            one_platform(args)?;
            let scratch = Scratch::new(store)?;
            store.ensure_layers(lease, image, bars)?;
            let last = found.name.rsplit('/').next().unwrap_or("image");
            let file = scratch.join(format!("{}.sif", last.replace(':', "_")));
            save::write_file(store, image, &found.name, false, &file)?;
            Ok(target_client(args).push_sif(store, &file, name, bars)?.into())
        }
        Place::Remote(SifAddress::Library(_)) | Place::Daemon(_) => {
            Err(Failure::new(format!("{} is not copied to", args.to))
                .with_hint("`isles push` sends a SIF file to a library, once it is signed"))
        }
    }
}

/// With the size of the document, which is here.
fn measured(store: &Store, mut descriptor: Descriptor) -> Descriptor {
    descriptor.size = store.blob_size(&descriptor.digest).unwrap_or_default();
    descriptor
}

/// Brings everything as it is, takes the images of all platforms, and gives their index a name.
fn all_platforms(store: &Store, args: &Args, to: &str, bars: &Bars) -> Result<Done, Failure> {
    let name = to.parse::<Reference>()?.normalized();
    let lease = store.lease()?;
    let copied = with_source(store, args, |from| {
        Ok(copy(from, CopyTo::Store(store, &lease), &CopyOptions::default(), bars)?)
    })?;
    store.import_document(&lease, &copied.target, bars)?;
    store.set_name(&name, &copied.target.digest)?;
    Ok(copied.into())
}

/// A name of the store that stands for an index, written as such into a layout.
fn whole_index(store: &Store, args: &Args, name: &str, bars: &Bars) -> Result<Option<Done>, Failure> {
    let Ok(reference) = name.parse::<Reference>() else { return Ok(None) };
    let Some(target) = store.lookup(&reference)?.filter(|t| !store.has_image(t)) else { return Ok(None) };
    let Some((writer, name)) = layout_writer(&args.to)? else { return Ok(None) };
    let kind = isles_spec::image::media_type::OCI_INDEX;
    let root = measured(store, Descriptor::new(kind, target, 0));
    Ok(Some(store.write_document(&root, name, writer, bars)?.into()))
}
