//! `isles wait`

use isles_engine::Condition;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Wait until containers have ended, and print their exit codes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles wait job\n  isles wait --condition removed job")]
pub struct Args {
    /// What to wait for: not-running, next-exit, or removed.
    #[arg(long, value_name = "CONDITION", default_value = "not-running")]
    condition: String,
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Waits for one after the other.
pub fn cmd_wait(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let condition = Condition::parse(&args.condition)?;
    let mut code = Code::SUCCESS;
    for name in &args.containers {
        match engine.wait(name, condition) {
            Ok(ended) => cx.ui.line(&ended.to_string())?,
            Err(e) => {
                cx.ui.error(&e.into());
                code = Code(1);
            }
        }
    }
    Ok(code)
}
