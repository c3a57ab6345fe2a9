//! `isles create`: the options are those of `isles run`.

use crate::commands::run::{self, Way};
use crate::context::Context;
use crate::failure::{Code, Failure};

/// What `--help` says at its end.
const EXAMPLES: &str = "\
Examples:
  isles create --name db -v db:/var/lib/db postgres:16
  isles start db

The options are those of `isles run`.";

// What it says of itself is given in words, since a comment would be hidden by that of `isles run`.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(about = "Make a container without starting it", long_about = None, after_help = EXAMPLES)]
#[command(disable_help_flag = true, args_override_self = true)]
pub struct Args {
    #[command(flatten)]
    pub run: run::Args,
}

/// Makes the container, and prints its ID.
pub fn cmd_create(cx: &Context, args: &Args) -> Result<Code, Failure> {
    run::make(cx, &args.run, Way::Created)
}
