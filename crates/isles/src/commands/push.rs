//! `isles push`

use std::fs::File;
use std::path::Path;

use isles_sif::{Sif, is_sif};
use isles_spec::{Platform, Reference};
use isles_store::SifSource;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::ui::progress::Bars;

/// Send an image to a registry.
///
/// What the registry has is not sent, and what a sibling repository there has is mounted from it. Layers are
/// compressed once and then remembered. A name that stands for several platforms, all of which are here, is sent
/// whole.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles push localhost:5000/app:1.0
  isles push app localhost:5000/app:1.0
  isles push app.sif localhost:5000/app:1.0")]
pub struct Args {
    /// The image, by name or ID, or a SIF file.
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The name it gets in the registry [default: the same].
    #[arg(value_name = "NAME[:TAG]")]
    target: Option<Reference>,
    /// Send only the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Print only the name.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn cmd_push(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let ui = cx.ui.quieter(args.quiet);
    let file = Path::new(&args.image);
    let (image, _lease) =
        if file.is_file() && File::open(file).is_ok_and(|file| is_sif(&file).unwrap_or(false)) {
            let sif = Sif::open(file).map_err(isles_store::Error::from)?;
            let lease = engine.store().lease()?;
            let bars = Bars::new(&ui);
            let image = engine.store().import_sif(&lease, SifSource::Sif(&sif), &[], &bars)?;
            (image.id().to_string(), Some(lease))
        } else {
            (args.image.clone(), None)
        };
    let target = match &args.target {
        Some(target) => target.normalized(),
        None if image != args.image => {
            return Err(Failure::new(format!("'{}' has no name of its own", args.image))
                .with_hint("say what it is to be called in the registry: `isles push FILE NAME`"));
        }
        None => args.image.parse::<Reference>()?.normalized(),
    };
    let bars = Bars::new(&ui);
    let client = args.connection.client();
    let pushed = client.push(engine.store(), &image, args.platform.as_ref(), &target, &bars)?;
    drop(bars);
    if ui.is_quiet() {
        cx.ui.line(&target.to_string())?;
    } else {
        let tag = target.tag().unwrap_or("digest");
        cx.ui.line(&format!("{tag}: digest: {} size: {}", pushed.target.digest, pushed.target.size))?;
    }
    Ok(Code::SUCCESS)
}
