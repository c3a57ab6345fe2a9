//! `isles exec`

use std::path::PathBuf;

use isles_engine::{Exec, Wishes};

use crate::commands::run::{DETACH_KEYS, add_variable, read_env_file};
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Run a command in a container that runs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles exec web nginx -s reload\n  isles exec -it db sh\n  isles exec -u 0 -w /etc web ls\n\nThe exit code is the command's; 126 when it could not be run, 127 when it was not found."
)]
pub struct Args {
    /// Do not wait for it.
    #[arg(short, long)]
    detach: bool,
    /// Keep standard input open.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal of its own.
    #[arg(short, long)]
    tty: bool,
    /// Keys that let go of a command with a terminal, and leave it running.
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Set a variable, or pass on the caller's (-e NAME).
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Start in this folder of the container.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Run as this user and group: names of the container's, or numbers.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// With all rights.
    #[arg(long)]
    privileged: bool,
    /// Its name or ID.
    container: String,
    /// The command and its words.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the command, and stays with it.
pub fn cmd_exec(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let mut env = Vec::new();
    for path in &args.env_file {
        read_env_file(path, &mut env)?;
    }
    for entry in &args.env {
        add_variable(entry, &mut env)?;
    }
    let exec = Exec {
        command: args.command.clone(),
        interactive: args.interactive,
        tty: args.tty,
        env,
        working_dir: args.workdir.clone(),
        user: args.user.clone().filter(|user| !user.is_empty()),
        privileged: args.privileged,
        detach_keys: Wishes::keys(&args.detach_keys)?,
    };
    let engine = cx.engine()?;
    let done = match args.detach {
        true => engine.exec_detached(&args.container, &exec).map(|()| 0),
        false => engine.exec(&args.container, &exec, &|text| cx.ui.warning(text)).map(|exit| exit.code()),
    };
    done.map(Code).map_err(|e| {
        let code = if e.exit_code() == 125 { 1 } else { e.exit_code() };
        Failure::from(e).with_code(code)
    })
}
