//! `isles builder cache`: cache mounts that go elsewhere and come back.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};

use isles_build::cache_mounts;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Carry cache mounts (RUN --mount=type=cache) to other machines.
#[derive(Debug, clap::Subcommand)]
pub enum CacheCommand {
    /// Write what a cache mount holds as a tar archive.
    Export {
        /// What recipes call it (id=, or its target), or its ID of `isles builder df`.
        #[arg(value_name = "ID")]
        id: String,
        /// The archive; - is standard output.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Fill a cache mount from a tar archive, plain or compressed. What it held goes.
    Import {
        /// What recipes call it: id=, or its target.
        #[arg(value_name = "ID")]
        id: String,
        /// The archive; - is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub fn cmd_cache(cx: &Context, command: &CacheCommand) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    match command {
        CacheCommand::Export { id, file } if is_dash(file) => {
            let out = io::stdout();
            if out.is_terminal() {
                return Err(Failure::new("an archive is not for the terminal").with_hint("name a file"));
            }
            cache_mounts::export(store, id, &mut out.lock()).map_err(|e| failure(&e))?;
        }
        CacheCommand::Export { id, file } => {
            isles_build::output::into_file(file, |out| cache_mounts::export(store, id, out))
                .map_err(|e| failure(&e))?;
        }
        CacheCommand::Import { id, file } => {
            let mut input: Box<dyn Read + Send> = if is_dash(file) {
                Box::new(io::stdin())
            } else {
                let file = File::open(file)
                    .map_err(|e| Failure::because(format!("cannot open '{}'", file.display()), &e))?;
                Box::new(BufReader::new(file))
            };
            cache_mounts::import(store, id, &mut *input).map_err(|e| failure(&e))?;
        }
    }
    Ok(Code::SUCCESS)
}

fn is_dash(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn failure(error: &isles_build::Error) -> Failure {
    crate::commands::build::failure(error)
}
