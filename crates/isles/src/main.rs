//! The `isles` program: argument parsing, output and progress, and nothing that a library could hold.
//!
//! One file per command in [`commands`]; each has an `Args` structure, whose comments are the manual,
//! and one function that reads from top to bottom. What a command prints goes through [`ui::Ui`].

mod address;
mod cli;
mod commands;
mod context;
mod devices;
mod failure;
mod filter;
mod registry;
mod root;
mod source;
mod ui;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
