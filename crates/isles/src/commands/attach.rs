//! `isles attach`

use isles_engine::{Parted, Wishes};

use crate::commands::run::DETACH_KEYS;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Have a container's streams on this terminal, beside whoever else has them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles attach game\n  isles attach --no-stdin web    only look\n\n\
A container of 'isles run --rm' in the foreground has the streams of that command itself, so nobody else can have them,\n\
unless it was given -t, -a or --log-driver.\n\nThe exit code is the container's.")]
pub struct Args {
    /// Pass no input on.
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the container.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that let go of a container with a terminal, and leave it running.
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Its name or ID.
    container: String,
}

/// Stays attached until the container ends, or is let go of.
pub fn cmd_attach(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let wishes =
        Wishes { signals: args.sig_proxy, ..Wishes::all(!args.no_stdin, Wishes::keys(&args.detach_keys)?) };
    Ok(match engine.attach(&args.container, &wishes)? {
        Parted::Ended(code) => Code(code),
        Parted::LetGo => Code::SUCCESS,
    })
}
