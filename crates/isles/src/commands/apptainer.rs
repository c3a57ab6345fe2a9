//! `isles apptainer`, also as `apptainer` and `singularity`: Apptainer's command line.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use isles_apptainer::Host;
use rustix::fs::Access;

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
    let state_dir =
        || place(cx).map_err(|f| std::iter::once(f.message).chain(f.causes).collect::<Vec<_>>().join(": "));
    isles_apptainer::main(argv, &Host { state_dir: &state_dir })
}

/// The state directory, or where the caller has chosen none and cannot write to the usual one, a folder of theirs for
/// temporary files: to run an image file needs no home on a cluster, and should not here.
fn place(cx: &Context) -> Result<PathBuf, Failure> {
    let usual = cx.state_dir();
    let chosen = cx.root.is_some() || std::env::var_os("ISLES_ROOT").is_some_and(|root| !root.is_empty());
    if chosen || usual.as_ref().is_ok_and(|path| can_be_made(path)) {
        return usual;
    }
    let uid = rustix::process::geteuid().as_raw();
    let path = std::env::temp_dir().join(format!("isles-{uid}"));
    let failed = |e: &io::Error| {
        Failure::because(format!("cannot use the folder '{}' in place of a home", path.display()), e)
            .with_hint("name a folder with ISLES_ROOT")
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&e)),
        _ => {}
    }
    // Everybody can make such a name there.
    let meta = path.symlink_metadata().map_err(|e| failed(&e))?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        return Err(failed(&io::Error::other("it is not a folder of yours alone")));
    }
    Ok(path)
}

/// Whether a folder is there to be written to, or can be made.
fn can_be_made(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}
