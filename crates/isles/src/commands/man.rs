//! `isles man`

use clap::CommandFactory;

use crate::cli::Cli;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Print the manual page of Isles or of one command, in troff.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles man run | man -l -")]
pub struct Args {
    /// The command; the page of the program as a whole where it is left out.
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

pub fn cmd_man(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let mut whole = Cli::command();
    whole.build();
    let page = match &args.command {
        None => whole,
        Some(name) => {
            whole.find_subcommand(name).cloned().map(|c| c.version(env!("CARGO_PKG_VERSION"))).ok_or_else(
                || {
                    Failure::new(format!("no command is called '{name}'"))
                        .with_hint("'isles --help' lists the commands")
                },
            )?
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .map_err(|e| Failure::because("cannot write the manual page", &e))?;
    cx.ui.bytes(&text)?;
    Ok(Code::SUCCESS)
}
