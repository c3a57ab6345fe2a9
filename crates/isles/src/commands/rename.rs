//! `isles rename`

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Give a container another name.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles rename quiet_reef_4f2a web")]
pub struct Args {
    /// Its name or ID.
    container: String,
    /// The new name.
    name: String,
}

/// Renames it.
pub fn cmd_rename(cx: &Context, args: &Args) -> Result<Code, Failure> {
    cx.engine()?.rename(&args.container, &args.name)?;
    Ok(Code::SUCCESS)
}
