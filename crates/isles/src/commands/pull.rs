//! `isles pull`

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use isles_registry::Pulled;
use isles_sif::Sif;
use isles_spec::{Platform, Reference};
use isles_store::{SifSource, Skipped, Store};

use crate::address::{Address, Scratch, SifAddress};
use crate::commands::save;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::source;
use crate::ui::Ui;
use crate::ui::progress::Bars;

/// Fetch images from a registry or a library.
///
/// What an earlier try has fetched is used; layers that are here already, in whatever compression, are not
/// fetched again. A SIF file becomes an image of the store like any other, or with -o stays the file that it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles pull debian:12
  isles pull --platform linux/arm64 debian:12
  isles pull localhost:5000/app@sha256:…
  isles pull oras://localhost:5000/app:1.0
  isles pull -o tool.sif library://entity/collection/tool:1.0
  isles pull -o debian.sif debian:12
  isles pull --artifact -o results localhost:5000/results:1
  isles pull docker-daemon:app:1.0")]
pub struct Args {
    /// Names, by Docker's rules; docker:// before them is allowed. oras:// before them means a SIF file in a registry,
    /// library://[HOST/]ENTITY/COLLECTION/CONTAINER[:TAG] one in a library, docker-daemon: an image of the Docker daemon
    /// on this machine.
    #[arg(value_name = "NAME[:TAG|@DIGEST]", required = true)]
    names: Vec<Address>,
    /// Write the one image into this SIF file, instead of leaving it in the store only.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the files of an artefact into the folder -o, or into the current one. Nothing comes into the store.
    #[arg(long)]
    artifact: bool,
    /// Fetch the image for this platform, such as linux/arm64 [default: this machine's].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// When to ask the registry.
    #[arg(long, alias = "pull", value_enum, default_value_t = Policy::Always)]
    policy: Policy,
    /// Print only the names.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Fetch the image if the registry has another one than is here.
    Always,
    /// The same, but use what is here if the registry cannot be reached.
    Newer,
    /// Only if the image is not here.
    Missing,
    /// Not at all: fail if the image is not here.
    Never,
}

pub fn cmd_pull(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let (store, host) = (engine.store(), Platform::host());
    let platform = args.platform.as_ref().unwrap_or(&host);
    if args.artifact {
        let dir = args.output.as_deref().unwrap_or(Path::new("."));
        for name in &args.names {
            let (Address::Image(name) | Address::Sif(SifAddress::Registry(name))) = name else {
                return Err(Failure::new("artefacts are in registries only"));
            };
            let bars = Bars::new(&cx.ui.quieter(args.quiet));
            let paths = args.connection.client().pull_artifact(name, dir, &bars)?;
            drop(bars);
            paths.iter().try_for_each(|path| cx.ui.line(&path.display().to_string()))?;
        }
        return Ok(Code::SUCCESS);
    }
    if let Some(file) = &args.output {
        let [name] = args.names.as_slice() else {
            return Err(Failure::new(format!("a SIF file holds one image, not {}", args.names.len()))
                .with_hint("pull one at a time, each with its own -o"));
        };
        into_file(cx, store, name, platform, args, file)?;
        return Ok(Code::SUCCESS);
    }
    for name in &args.names {
        match name {
            Address::Image(name) => {
                pull(cx, store, name, platform, args)?;
                cx.ui.line(&name.normalized().to_string())?;
            }
            Address::Sif(address) => {
                let ui = cx.ui.quieter(args.quiet);
                let name = pull_sif(cx, &ui, store, address, platform, args.policy, &args.connection)?;
                cx.ui.line(&name.to_string())?;
            }
            Address::Daemon(name) => {
                let lease = store.lease()?;
                let bars = Bars::new(&cx.ui.quieter(args.quiet));
                source::of_daemon(store, &lease, name, args.platform.as_ref(), &bars)?;
                cx.ui.line(&name.parse::<Reference>()?.normalized().to_string())?;
            }
        }
    }
    Ok(Code::SUCCESS)
}

/// The image as a file; one that is a SIF file elsewhere stays as it is to the last byte.
fn into_file(
    cx: &Context,
    store: &Store,
    name: &Address,
    platform: &Platform,
    args: &Args,
    file: &Path,
) -> Result<(), Failure> {
    match name {
        Address::Sif(address) => {
            let bars = Bars::new(&cx.ui.quieter(args.quiet));
            isles_sif::create_whole(file, isles_sif::PROGRAM, |whole| {
                let copy = whole.try_clone();
                let mut copy =
                    copy.map_err(|e| Failure::because(format!("cannot write {}", file.display()), &e))?;
                address.fetch(&args.connection, platform, &mut copy, &bars)
            })?;
        }
        Address::Daemon(name) => {
            let (lease, bars) = (store.lease()?, Bars::new(&cx.ui.quieter(args.quiet)));
            let image = source::of_daemon(store, &lease, name, args.platform.as_ref(), &bars)?;
            save::write_file(store, &image, name, false, file)?;
        }
        Address::Image(name) => {
            pull(cx, store, name, platform, args)?;
            let lease = store.lease()?;
            let image = store.resolve_reference(&name.normalized(), Some(platform))?;
            lease.hold(&image.manifest_digest)?;
            store.ensure_layers(&lease, &image, &Bars::new(&cx.ui.quieter(args.quiet)))?;
            save::write_file(store, &image, &name.normalized().familiar(), false, file)?;
        }
    }
    cx.ui.line(&file.display().to_string())
}

/// A SIF file from elsewhere, as an image of the store.
pub fn pull_sif(
    cx: &Context,
    ui: &Ui,
    store: &Store,
    address: &SifAddress,
    platform: &Platform,
    policy: Policy,
    connection: &Connection,
) -> Result<Reference, Failure> {
    let name = address.name(connection)?;
    let here = store.resolve_reference(&name, Some(platform)).is_ok_and(|image| store.is_whole(&image));
    match policy {
        Policy::Missing | Policy::Never if here => {
            ui.note(&format!("Status: {} is here", name.familiar()));
            return Ok(name);
        }
        Policy::Never => {
            return Err(Failure::new(format!("{} is not here", name.familiar()))
                .with_hint("--policy never does not ask a registry"));
        }
        _ => {}
    }
    let (scratch, bars) = (Scratch::new(store)?, Bars::new(ui));
    let path = scratch.join("image.sif");
    let create = File::options().read(true).write(true).create_new(true).open(&path);
    let mut file = create.map_err(|e| Failure::because(format!("cannot create '{}'", path.display()), &e))?;
    match address.fetch(connection, platform, &mut file, &bars) {
        Err(failure) if policy == Policy::Newer && here => {
            cx.ui.warning(&format!("{}; using the image that is here", failure.message));
        }
        fetched => {
            fetched?;
            let lease = store.lease()?;
            let sif = Sif::from_file(file, address.to_string())?;
            store.import_sif(&lease, SifSource::Sif(&sif), std::slice::from_ref(&name), &bars)?;
        }
    }
    Ok(name)
}

fn pull(
    cx: &Context,
    store: &Store,
    name: &Reference,
    platform: &Platform,
    args: &Args,
) -> Result<(), Failure> {
    let ui = cx.ui.quieter(args.quiet);
    let name = name.normalized();
    let here = store.resolve_reference(&name, Some(platform)).ok().filter(|image| store.is_whole(image));
    match (args.policy, &here) {
        (Policy::Missing | Policy::Never, Some(_)) => {
            ui.note(&format!("Status: {} is here", name.familiar()));
            return Ok(());
        }
        (Policy::Never, None) => {
            return Err(Failure::new(format!("{} is not here", name.familiar()))
                .with_hint("--policy never does not ask a registry"));
        }
        _ => {}
    }
    let bars = Bars::new(&ui);
    match args.connection.client().pull(store, &name, platform, &bars) {
        Ok(pulled) => {
            drop(bars);
            ui.note(&format!("Digest: {}", pulled.target));
            ui.note(&status(&name, &pulled));
            if let Some(text) = left_out(&pulled.skipped) {
                ui.note(&text);
            }
        }
        Err(isles_registry::Error::Unreachable { host, cause, .. })
            if args.policy == Policy::Newer && here.is_some() =>
        {
            cx.ui.warning(&format!("cannot reach {host}: {cause}; using the image that is here"));
        }
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

fn status(name: &Reference, pulled: &Pulled) -> String {
    let name = name.familiar();
    if pulled.up_to_date {
        format!("Status: Image is up to date for {name}")
    } else {
        format!("Status: Downloaded newer image for {name}")
    }
}

/// What of a layer could not be made, in one line.
pub fn left_out(skipped: &[Skipped]) -> Option<String> {
    let first = skipped.first()?;
    let more = match skipped.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    Some(format!("left out of the unpacked files: '{}' ({}){more}", first.path, first.what))
}
