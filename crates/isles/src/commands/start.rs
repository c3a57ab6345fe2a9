//! `isles start`

use isles_engine::{Parted, Wishes};

use crate::commands::each::each;
use crate::commands::run::DETACH_KEYS;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Start containers that were made before.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles start db\n  isles start -ai shell\n  isles start --all-restartable    after a reboot: those whose restart policy says so"
)]
pub struct Args {
    /// Have the container's output here, and its exit code.
    #[arg(short, long)]
    attach: bool,
    /// Pass input on to it.
    #[arg(short, long)]
    interactive: bool,
    /// Keys that let go of a container with a terminal, and leave it running.
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Start all that are to run after a reboot, by their restart policies.
    #[arg(long, conflicts_with = "containers")]
    all_restartable: bool,
    /// Names or IDs.
    #[arg(required_unless_present = "all_restartable")]
    containers: Vec<String>,
}

/// Starts them, one after the other, or stays with the only one.
pub fn cmd_start(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let warn = |text: &str| cx.ui.warning(text);
    if args.attach || args.interactive {
        let [name] = args.containers.as_slice() else {
            return Err(Failure::new("only one container can be attached to")
                .with_hint("start the others without --attach and --interactive"));
        };
        let keys = Wishes::keys(&args.detach_keys)?;
        let wishes = Wishes::all(args.interactive, keys);
        return match engine.start_attached(name, &wishes, &warn) {
            Ok(Parted::Ended(code)) => Ok(Code(code)),
            Ok(Parted::LetGo) => Ok(Code::SUCCESS),
            Err(e) => {
                let code = if e.exit_code() == 125 { 1 } else { e.exit_code() };
                Err(Failure::from(e).with_code(code))
            }
        };
    }
    let names = match args.all_restartable {
        true => engine.containers_to_restart()?,
        false => args.containers.clone(),
    };
    each(cx, &names, |name| engine.start_container(name, None, &warn).map(drop))
}
