//! `isles container prune`

use std::io::{self, IsTerminal};

use isles_spec::quantity::human_bytes;

use crate::commands::prune::{Conditions, Ended, ended};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;

/// Remove containers that do not run.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles container prune\n  isles container prune -f --filter until=24h --filter label!=keep"
)]
pub struct Args {
    /// Only those with: until=24h or a time (made before it), label=KEY[=VALUE], label!=KEY[=VALUE].
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

pub fn cmd_container_prune(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let which = Ended { conditions: &Conditions::of(&args.filter)?, waiting: true };
    let asks = !args.force && io::stdin().is_terminal();
    if asks && !cx.ui.confirmed("this removes all containers that do not run")? {
        return Ok(Code(1));
    }
    let engine = cx.engine()?;
    // What monitors left that were killed has ended, too.
    engine.collect_all()?;
    let (ids, bytes) = ended(&engine, &which, false)?;
    ids.iter().try_for_each(|id| cx.ui.line(id))?;
    cx.ui.line(&format!("Total reclaimed space: {}", human_bytes(bytes)))?;
    Ok(Code::SUCCESS)
}
