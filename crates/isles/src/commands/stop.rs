//! `isles stop`

use std::time::Duration;

use crate::commands::each::each;
use crate::commands::kill::signal;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Ask containers to end, and kill those that do not.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles stop web\n  isles stop -t 30 db        it has half a minute to write what it knows\n  isles stop -s INT worker"
)]
pub struct Args {
    /// The signal that asks; by default the container's or the image's, or TERM.
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds until it is killed; -1 for never [default: the container's --stop-timeout, or 10].
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<i64>,
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// As the engine has it: `None` for what the container says, `None` inside for never.
pub fn patience(seconds: Option<i64>) -> Option<Option<Duration>> {
    seconds.map(|seconds| u64::try_from(seconds).ok().map(Duration::from_secs))
}

/// Stops them, one after the other.
pub fn cmd_stop(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let signal = args.signal.as_deref().map(signal).transpose()?;
    each(cx, &args.containers, |name| engine.stop(name, signal, patience(args.time)).map(drop))
}
