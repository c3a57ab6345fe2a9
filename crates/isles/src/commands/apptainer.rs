//! `isles apptainer`, also as `apptainer` and `singularity`: Apptainer's command line.

use std::ffi::OsString;
use std::process::ExitCode;

use isles_apptainer::Host;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Take the command line of Apptainer and Singularity, for programs and people that are used to it.
///
/// A link to isles named apptainer or singularity does the same.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:
  isles singularity exec docker://debian:12 cat /etc/os-release
  ln -s $(which isles) ~/bin/singularity"
)]
pub struct Args {
    /// What apptainer is given; --help lists its commands.
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub fn cmd_apptainer(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let argv = std::iter::once("apptainer".into()).chain(args.words.iter().cloned()).collect();
    Ok(Code(run(cx, argv)))
}

/// The whole program under one of its other names.
pub fn main(cx: &Context, argv: Vec<OsString>) -> ExitCode {
    ExitCode::from(run(cx, argv))
}

fn run(cx: &Context, argv: Vec<OsString>) -> u8 {
    let state_dir = || cx.state_dir().map_err(|failure| failure.message);
    isles_apptainer::main(argv, &Host { state_dir: &state_dir })
}
