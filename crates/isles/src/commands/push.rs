//! `isles push`

use isles_spec::{Platform, Reference};

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
  isles push app localhost:5000/app:1.0")]
pub struct Args {
    /// The image, by name or ID.
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
    let target = match &args.target {
        Some(target) => target.normalized(),
        None => args.image.parse::<Reference>()?.normalized(),
    };
    let bars = Bars::new(&ui);
    let client = args.connection.client();
    let pushed = client.push(engine.store(), &args.image, args.platform.as_ref(), &target, &bars)?;
    drop(bars);
    if ui.is_quiet() {
        cx.ui.line(&target.to_string())?;
    } else {
        let tag = target.tag().unwrap_or("digest");
        cx.ui.line(&format!("{tag}: digest: {} size: {}", pushed.target.digest, pushed.target.size))?;
    }
    Ok(Code::SUCCESS)
}
