//! `isles push`

use std::fs::File;
use std::path::Path;

use isles_engine::Engine;
use isles_registry::NewArtifact;
use isles_sif::{Sif, is_sif};
use isles_spec::{Platform, Reference};
use isles_store::SifSource;

use crate::address::{self, Address, Scratch, SifAddress};
use crate::commands::save;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::ui::Ui;
use crate::ui::progress::Bars;

/// Send an image to a registry or a library.
///
/// What the registry has is not sent, and what a sibling repository there has is mounted from it. Layers are
/// compressed once and then remembered. A name that stands for several platforms, all of which are here, is sent
/// whole. To oras:// and library:// a SIF file goes as it is, and an image of the store as the SIF file that
/// `isles save --format sif` makes of it; elsewhere a SIF file goes as an image of layers.
#[derive(Debug, clap::Args)]
#[command(override_usage = "isles push [OPTIONS] <IMAGE> [NAME[:TAG]]
       isles push [OPTIONS] --artifact-type <TYPE> <FILE[:TYPE]>... <NAME[:TAG]>")]
#[command(after_help = "Examples:
  isles push localhost:5000/app:1.0
  isles push app localhost:5000/app:1.0
  isles push app.sif localhost:5000/app:1.0
  isles push app.sif oras://localhost:5000/app:1.0
  isles push app.sif library://entity/collection/app:1.0
  isles push --artifact-type application/x-results table.csv:text/csv plot.png:image/png localhost:5000/results:1
  isles push --config chart.json:application/vnd.cncf.helm.config.v1+json \\
    app-1.0.tgz:application/vnd.cncf.helm.chart.content.v1.tar+gzip localhost:5000/charts/app:1.0")]
pub struct Args {
    /// The image, by name or ID, or a SIF file, and the name it gets in the registry [default: the same]; after oras://
    /// or library:// that of a SIF file. With --artifact-type or --config files of any kind, and the name of what they
    /// become.
    #[arg(value_name = "IMAGE [NAME[:TAG]]", required = true)]
    words: Vec<String>,
    /// Send files as they are, as one artefact of this type. Each is called FILE, or FILE:TYPE with its media type.
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,
    /// Send files as one artefact with this configuration, as Helm's charts have one.
    #[arg(long, value_name = "FILE:TYPE")]
    config: Option<String>,
    /// A note on the artefact.
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Send only the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Send a SIF file to a library even if nobody whose key is known has signed it.
    #[arg(short = 'U', long)]
    allow_unsigned: bool,
    /// Print only the name.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn cmd_push(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let ui = cx.ui.quieter(args.quiet);
    if args.artifact_type.is_some() || args.config.is_some() {
        artifact(cx, &ui, args)?;
        return Ok(Code::SUCCESS);
    }
    if !args.annotation.is_empty() {
        return Err(
            Failure::new("--annotation is for artefacts").with_hint("say what it is with --artifact-type")
        );
    }
    let target: Option<Address> = match args.words.as_slice() {
        [_] => None,
        [_, name] => Some(name.parse()?),
        _ => {
            return Err(Failure::new("several files are sent as an artefact only")
                .with_hint("say what it is with --artifact-type"));
        }
    };
    let file = Path::new(args.image());
    let is_file = file.is_file() && File::open(file).is_ok_and(|file| is_sif(&file).unwrap_or(false));
    match &target {
        Some(Address::Sif(target)) if is_file => send_sif(cx, &engine, &ui, args, file, target)?,
        Some(Address::Sif(target)) => {
            let store = engine.store();
            let lease = store.lease()?;
            let image = store.resolve(args.image(), args.platform.as_ref())?;
            lease.hold(&image.manifest_digest)?;
            let (scratch, bars) = (Scratch::new(store)?, Bars::new(&ui));
            store.ensure_layers(&lease, &image, &bars)?;
            drop(bars);
            // Who fetches it sees this name.
            let last = args.image().rsplit('/').next().unwrap_or(args.image());
            let file = scratch.join(format!("{}.sif", last.replace(':', "_")));
            save::write_file(store, &image, args.image(), false, &file)?;
            send_sif(cx, &engine, &ui, args, &file, target)?;
        }
        Some(Address::Daemon(name)) => {
            return Err(Failure::new(format!("docker-daemon:{name} is no registry"))
                .with_hint("`isles save IMAGE | docker load` gives an image to a Docker daemon"));
        }
        Some(Address::Image(target)) => send(cx, &engine, &ui, args, is_file, target)?,
        None if is_file => {
            return Err(Failure::new(format!("'{}' has no name of its own", args.image()))
                .with_hint("say what it is to be called in the registry: `isles push FILE NAME`"));
        }
        None => send(cx, &engine, &ui, args, false, &args.image().parse()?)?,
    }
    Ok(Code::SUCCESS)
}

impl Args {
    fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
}

/// Sends files as one artefact.
fn artifact(cx: &Context, ui: &Ui, args: &Args) -> Result<(), Failure> {
    let Some((name, files)) = args.words.split_last().filter(|(_, files)| !files.is_empty()) else {
        return Err(Failure::new("an artefact needs files and a name").with_hint("isles push FILE... NAME"));
    };
    let typed = |word: &str, usual: &str| {
        // A path may have colons; a media type has a slash and no leading one.
        let split = word.rsplit_once(':').filter(|(_, kind)| kind.contains('/') && !kind.starts_with('/'));
        match split {
            Some((path, kind)) if !Path::new(word).exists() => (path.into(), kind.to_owned()),
            _ => (word.into(), usual.to_owned()),
        }
    };
    let mut annotations = std::collections::BTreeMap::new();
    for text in &args.annotation {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            Failure::new(format!("invalid annotation '{text}'")).with_hint("it is written KEY=VALUE")
        })?;
        annotations.insert(key.to_owned(), value.to_owned());
    }
    let new = NewArtifact {
        artifact_type: args.artifact_type.clone(),
        config: args.config.as_deref().map(|config| typed(config, "application/json")),
        files: files.iter().map(|file| typed(file, "application/octet-stream")).collect(),
        annotations,
    };
    let name = name.strip_prefix("oras://").unwrap_or(name).parse::<Reference>()?.normalized();
    let bars = Bars::new(ui);
    let pushed = args.connection.client().push_artifact(&new, &name, &bars)?;
    drop(bars);
    if ui.is_quiet() {
        return cx.ui.line(&name.to_string());
    }
    let tag = name.tag().unwrap_or("digest");
    cx.ui.line(&format!("{tag}: digest: {} size: {}", pushed.target.digest, pushed.target.size))
}

/// Sends an image of layers, which a file has to become first.
fn send(
    cx: &Context,
    engine: &Engine,
    ui: &Ui,
    args: &Args,
    is_file: bool,
    target: &Reference,
) -> Result<(), Failure> {
    let (store, bars) = (engine.store(), Bars::new(ui));
    let (image, _lease) = if is_file {
        let sif = Sif::open(Path::new(args.image())).map_err(isles_store::Error::from)?;
        let lease = store.lease()?;
        let image = store.import_sif(&lease, SifSource::Sif(&sif), &[], &bars)?;
        (image.id().to_string(), Some(lease))
    } else {
        (args.image().to_owned(), None)
    };
    let target = target.normalized();
    let pushed = args.connection.client().push(store, &image, args.platform.as_ref(), &target, &bars)?;
    drop(bars);
    if ui.is_quiet() {
        return cx.ui.line(&target.to_string());
    }
    let tag = target.tag().unwrap_or("digest");
    cx.ui.line(&format!("{tag}: digest: {} size: {}", pushed.target.digest, pushed.target.size))
}

/// Sends a file as it is.
fn send_sif(
    cx: &Context,
    engine: &Engine,
    ui: &Ui,
    args: &Args,
    file: &Path,
    target: &SifAddress,
) -> Result<(), Failure> {
    let bars = Bars::new(ui);
    match target {
        SifAddress::Registry(name) => {
            let pushed = args.connection.client().push_sif(engine.store(), file, name, &bars)?;
            drop(bars);
            if !ui.is_quiet() {
                let tag = name.normalized().tag().unwrap_or("digest").to_owned();
                return cx.ui.line(&format!("{tag}: digest: {} size: {}", pushed.digest, pushed.size));
            }
        }
        SifAddress::Library(name) => {
            let sif = Sif::open(file).map_err(isles_store::Error::from)?;
            if !args.allow_unsigned {
                isles_apptainer::check_signed(&sif).map_err(address::of_door)?;
            }
            let library = address::library(&args.connection, name)?;
            library.push(file, name, sif.header().arch.name(), "No description", &bars)?;
            drop(bars);
        }
    }
    cx.ui.line(&target.to_string())
}
