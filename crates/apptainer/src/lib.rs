//! The names `apptainer` and `singularity`: the command line of Apptainer, over Isles.
//!
//! A door: it reads arguments and variables as Apptainer 1.4 does ([`parse`], [`variables`]), translates them into a
//! [`isles_spec::Workload`], and calls the engine, the builder, the store and the registry. It starts no process and
//! mounts nothing. Programs that call `singularity` (cwltool, Galaxy, Snakemake, Nextflow, spython, Slurm scripts) read
//! its exit codes and the prefixes of its messages ([`talk`]), so these are kept to the letter.
//!
//! The tables of flags are the documentation: `--help` prints them.

mod action_flags;
mod ask;
mod bind;
mod caller;
mod certificate;
mod columns;
mod command;
mod commands;
mod contents;
mod control_list;
mod environment;
mod failure;
mod flag;
mod fusemount;
mod global;
mod gpu;
mod help;
mod identity_files;
mod image;
mod image_key;
mod instance;
mod instance_stats;
mod keys;
mod known_scripts;
mod launch;
mod limits;
mod lock;
mod looked_into;
mod mksquashfs;
mod mounts;
mod network;
mod overlays;
mod parse;
mod place;
mod program;
mod ranks;
mod reach;
mod remotes;
mod script;
mod settings;
mod share;
mod site;
mod talk;
mod text_file;
mod variables;

pub use commands::push::check_signed;
pub use environment::LIBS as LIBRARIES;
pub use failure::Failure;
pub use gpu::{Lent, lend_drivers};
pub use image_key::{opener_by_variables, passphrase_by_variables};
pub use looked_into::inspection;
pub use program::{Host, VERSION, is_name, main};
pub use reach::{fetch_file, library_of, library_settings};
