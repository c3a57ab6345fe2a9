//! `isles export`

use std::io::{self, BufWriter, IsTerminal};
use std::path::PathBuf;

use crate::commands::save::into_file;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Write the root file system of a container as a tar archive, without its volumes and what else is mounted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles export -o lab1.tar lab1
  isles export lab1 | ssh host 'mkdir tree && tar x -C tree'")]
pub struct Args {
    /// Write it to this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container, by name or ID.
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub fn cmd_export(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    match &args.output {
        Some(file) => into_file(file, |out| Ok(engine.export(&args.container, out)?))?,
        None => {
            let out = io::stdout();
            if out.is_terminal() {
                return Err(Failure::new("an archive is not for the terminal")
                    .with_hint("name a file with -o, or redirect standard output"));
            }
            engine.export(&args.container, &mut BufWriter::new(out.lock()))?;
        }
    }
    Ok(Code::SUCCESS)
}
