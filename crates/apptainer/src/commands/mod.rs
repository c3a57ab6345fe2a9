//! One file per command. Each has a static [`Command`] with its flags, arguments and words for help, and one function
//! that reads from top to bottom; groups (`instance`, `sif`, …) list their commands. What is in the table below is
//! what the program knows.

pub mod version;

use crate::command::Command;

/// `apptainer` itself.
pub static ROOT: Command = Command {
    usage: "apptainer [global options...]",
    short: "Run programs in containers from single files, on clusters and elsewhere",
    long: "Under this name Isles takes the command line of Apptainer and Singularity. Images that are files or folders\n\
           run in place; others are kept in the store of Isles and run from there.",
    examples: "apptainer exec docker://debian:12 cat /etc/os-release\napptainer help instance start",
    commands: &[&version::COMMAND],
    ..Command::EMPTY
};
