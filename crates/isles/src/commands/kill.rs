//! `isles kill`

use isles_spec::Error as Spelling;

use crate::commands::each::each;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Send a signal to containers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles kill web\n  isles kill -s HUP web        let it read its configuration again"
)]
pub struct Args {
    /// The signal: a name or a number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// The number of a signal.
pub fn signal(name: &str) -> Result<i32, Failure> {
    match isles_sandbox::oci::parse_signal(name) {
        Ok(number @ 1..) => Ok(number),
        _ => Err(Spelling::new(format!("invalid signal '{name}'"))
            .with_hint("write a name, such as TERM or SIGINT, or a number up to 64")
            .into()),
    }
}

/// Sends the signal to each of them.
pub fn cmd_kill(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let signal = signal(&args.signal)?;
    each(cx, &args.containers, |name| engine.signal(name, signal))
}
