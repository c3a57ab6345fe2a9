//! `isles completion`

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Print the completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles completion bash > /etc/bash_completion.d/isles")]
pub struct Args {
    /// The shell: bash, zsh, fish, elvish or powershell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub fn cmd_completion(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "isles", &mut script);
    cx.ui.bytes(&script)?;
    Ok(Code::SUCCESS)
}
