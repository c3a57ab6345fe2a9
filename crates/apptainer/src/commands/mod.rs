//! One file per command. Each has a static [`Command`] with its flags, arguments and words for help, and one function
//! that reads from top to bottom; groups (`instance`, `sif`, …) list their commands. What is in the table below is
//! what the program knows.

pub mod action;
pub mod build;
pub mod buildcfg;
pub mod cache;
pub mod capability;
pub mod completion;
pub mod confgen;
pub mod config;
pub mod delete;
pub mod fakeroot;
pub mod inspect;
pub mod instance;
pub mod key;
pub mod keyserver;
pub mod oci;
pub mod overlay;
pub mod pull;
pub mod push;
pub mod refused;
pub mod registry;
pub mod remote;
pub mod run_help;
pub mod search;
pub mod sif;
pub mod sign;
pub mod tag;
pub mod verify;
pub mod version;

use crate::command::Command;

/// `apptainer` itself.
pub static ROOT: Command = Command {
    usage: "apptainer [global options...]",
    short: "Run programs in containers from single files, on clusters and elsewhere",
    long: "Under this name Isles takes the command line of Apptainer and Singularity. Images that are files or folders\n\
           run in place; others are kept in the store of Isles and run from there.",
    examples: "apptainer exec docker://debian:12 cat /etc/os-release\napptainer help instance start",
    commands: &[
        &build::COMMAND,
        &buildcfg::COMMAND,
        &cache::COMMAND,
        &capability::COMMAND,
        &refused::CHECKPOINT,
        &completion::COMMAND,
        &confgen::COMMAND,
        &config::COMMAND,
        &delete::COMMAND,
        &action::EXEC,
        &inspect::COMMAND,
        &instance::COMMAND,
        &key::COMMAND,
        &keyserver::COMMAND,
        &oci::COMMAND,
        &overlay::COMMAND,
        &refused::PLUGIN,
        &pull::COMMAND,
        &push::COMMAND,
        &registry::COMMAND,
        &remote::COMMAND,
        &action::RUN,
        &run_help::COMMAND,
        &search::COMMAND,
        &action::SHELL_COMMAND,
        &sif::COMMAND,
        &sign::COMMAND,
        &tag::COMMAND,
        &action::TEST,
        &verify::COMMAND,
        &version::COMMAND,
    ],
    ..Command::EMPTY
};

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The time that builds are to have, where the caller wants equal results (`SOURCE_DATE_EPOCH`).
fn epoch() -> Option<i64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.trim().parse().ok()
}

/// A fingerprint of 40 hexadecimal digits.
fn fingerprint(text: &str) -> Option<[u8; 20]> {
    isles_spec::digest::from_hex(text.trim_start_matches("0x"))
}
