//! `isles rm`

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Remove containers and what they wrote.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles rm quiet_reef_4f2a\n  isles rm -f $(isles ps -aq)    all of them")]
pub struct Args {
    /// Kill a container that runs.
    #[arg(short, long)]
    force: bool,
    /// Remove the volumes that nobody named, too.
    #[arg(short, long)]
    volumes: bool,
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes what can be removed, and tells of the rest.
pub fn cmd_rm(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    if args.force {
        engine.doom(&args.containers);
    }
    // What monitors left that were killed is nobody's container any more. The kernel takes the others apart meanwhile.
    engine.collect_all()?;
    let mut code = Code::SUCCESS;
    let mut outcome = Ok(());
    engine.remove_all(&args.containers, args.force, args.volumes, &mut |name, removed| match removed {
        Ok(()) if outcome.is_ok() => outcome = cx.ui.line(name),
        Ok(()) => {}
        // As with docker and rm(1): what is not there need not be removed.
        Err(isles_engine::Error::NoContainer(_)) if args.force => {}
        Err(e) => {
            cx.ui.error(&e.into());
            code = Code(1);
        }
    });
    outcome?;
    Ok(code)
}
