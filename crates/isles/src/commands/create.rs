//! `isles create`: the options are those of `isles run`.

use crate::commands::run::{self, Way};
use crate::context::Context;
use crate::failure::{Code, Failure};

/// What `--help` says at its end.
pub const EXAMPLES: &str = "\
Examples:
  isles create --name db -v db:/var/lib/db postgres:16
  isles start db

The options are those of `isles run`.";

/// Makes the container, and prints its ID.
pub fn cmd_create(cx: &Context, args: &run::Args) -> Result<Code, Failure> {
    run::make(cx, args, Way::Created)
}
