//! `isles system prune`: what `isles prune` removes, with containers and networks, as docker has it.

use crate::commands::prune;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;

/// Remove containers that do not run, networks that nobody is in, images without a name, and build cache above its budget.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles system prune\n  isles system prune -a --volumes -f")]
pub struct Args {
    /// Also images that have a name but no container, and the whole build cache.
    #[arg(short, long)]
    all: bool,
    /// Also volumes that nobody named and no container has.
    #[arg(long)]
    volumes: bool,
    /// Only what meets until=24h or a time (made, or in the build cache used, before it), label=KEY[=VALUE] and
    /// label!=KEY[=VALUE]. Build cache has no labels.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

pub fn cmd_system_prune(cx: &Context, args: &Args) -> Result<Code, Failure> {
    prune::cmd_prune(cx, &prune::Args::of_system(args.all, args.volumes, &args.filter, args.force))
}
