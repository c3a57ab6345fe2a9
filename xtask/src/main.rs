//! Everything a person does to the project, one file per command.

mod apptainer;
mod bench;
mod conformance_oci;
mod packages;
mod python;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  test [FILTER…]   format check, lints and every test; installs the clients that the tests use
  conformance oci [PROGRAM…]
                   the validation programs of opencontainers/runtime-tools in ISLES_RUNTIME_TOOLS
  conformance cwl  the conformance tests of CWL v1.2, with a table for each tag
  bench [NAME…]    measure beside the peers and write BENCHMARKS.md
                   (names: size, start, life, bridge, network, recipe, build, sif, definition, pull, registry,
                   cwl, bootstrap; all where none is given)
";

/// What a command of the project can fail with: a line for the person who ran it.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.split_first() {
        Some((command, rest)) if command == "test" => test::run(rest),
        Some((command, rest)) if command == "bench" => bench::run(rest),
        Some((command, rest)) if command == bench::FLOOR => bench::floor(rest),
        Some((command, rest)) if command == "conformance" => match rest.split_first() {
            Some((suite, rest)) if suite == "oci" => conformance_oci::run(rest),
            Some((suite, _)) if suite == "cwl" => test::run_shown("cwl_conformance"),
            _ => Err(format!("which suite?\n\n{USAGE}")),
        },
        Some((command, _)) if command == "help" || command == "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        Some((command, _)) => Err(format!("unknown command '{command}'\n\n{USAGE}")),
        None => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
