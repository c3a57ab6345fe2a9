//! `isles cwl`

pub mod executor;
mod folders;
mod reference;
mod run;
mod slurm;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Run tools and workflows of the Common Workflow Language.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles cwl run tool.cwl job.yml
  isles cwl run tool.cwl --message hi
  isles cwl run --validate workflow.cwl")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(Box<run::Args>),
}

pub fn cmd_cwl(cx: &Context, args: &Args) -> Result<Code, Failure> {
    match &args.command {
        Command::Run(args) => run::cmd_cwl_run(cx, args),
    }
}
