//! `isles restart`

use crate::commands::each::each;
use crate::commands::kill::signal;
use crate::commands::stop::patience;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Stop containers and start them again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles restart web\n  isles restart -t 0 web")]
pub struct Args {
    /// The signal that asks it to end; by default the container's or the image's, or TERM.
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds until it is killed; -1 for never [default: the container's --stop-timeout, or 10].
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<i64>,
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Restarts them, one after the other.
pub fn cmd_restart(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let signal = args.signal.as_deref().map(signal).transpose()?;
    let warn = |text: &str| cx.ui.warning(text);
    each(cx, &args.containers, |name| engine.restart(name, signal, patience(args.time), &warn))
}
