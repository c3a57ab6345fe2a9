//! `isles create`

use crate::commands::run::{self, Way};
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Make a container without starting it, and print its ID.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles create --name db -v db:/var/lib/db postgres:16\n  isles start db\n\nThe options are those of `isles run`.",
    disable_help_flag = true,
    args_override_self = true
)]
pub struct Args {
    #[command(flatten)]
    run: run::Args,
}

/// Makes the container.
pub fn cmd_create(cx: &Context, args: &Args) -> Result<Code, Failure> {
    run::make(cx, &args.run, Way::Created)
}
