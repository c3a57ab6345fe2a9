//! `isles unpause`

use crate::commands::each::each;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Let the processes of paused containers go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles unpause worker")]
pub struct Args {
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Does so with each of them.
pub fn cmd_unpause(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    each(cx, &args.containers, |name| engine.unpause(name))
}
