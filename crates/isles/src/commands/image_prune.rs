//! `isles image prune`

use crate::commands::prune;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;

/// Remove images without a name, and content that no image needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles image prune\n  isles image prune -a -f --filter until=168h")]
pub struct Args {
    /// Also those that have a name but no container.
    #[arg(short, long)]
    all: bool,
    /// Only those with: until=24h or a time (made before it), label=KEY[=VALUE], label!=KEY[=VALUE].
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

pub fn cmd_image_prune(cx: &Context, args: &Args) -> Result<Code, Failure> {
    prune::cmd_prune(cx, &prune::Args::of_images(args.all, &args.filter, args.force))
}
