//! `isles pause`

use crate::commands::each::each;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Keep all processes of containers from running.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles pause worker")]
pub struct Args {
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Does so with each of them.
pub fn cmd_pause(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    each(cx, &args.containers, |name| engine.pause(name))
}
