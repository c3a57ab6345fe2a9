//! `cargo xtask bench`: every number that the project promises, beside its peers in the same run.

mod bootstrap;
mod bridge;
mod build;
mod cwl;
mod definition;
mod floor;
mod life;
mod measure;
mod network;
mod peers;
mod pull;
mod recipe;
mod registry;
mod report;
mod sif;
mod size;
mod start;

use std::path::PathBuf;
use std::process::Command;

use crate::{Result, apptainer, packages, workspace};

pub use floor::{COMMAND as FLOOR, run as floor};

/// A benchmark makes one section of the report.
type Bench = fn(&Isles) -> Result<report::Section>;

const BENCHES: &[(&str, Bench)] = &[
    ("size", size::run),
    ("start", start::run),
    ("life", life::run),
    ("bridge", bridge::run),
    ("network", network::run),
    ("recipe", recipe::run),
    ("build", build::run),
    ("sif", sif::run),
    ("definition", definition::run),
    ("pull", pull::run),
    ("registry", registry::run),
    ("cwl", cwl::run),
    ("bootstrap", bootstrap::run),
];

/// The program under test, built for release, with a state of its own.
pub struct Isles {
    pub program: PathBuf,
}

impl Isles {
    /// A command with its own state directory.
    pub fn command(&self, root: &std::path::Path) -> Command {
        let mut command = Command::new(&self.program);
        command.env("ISLES_ROOT", root);
        command
    }
}

pub fn run(names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|n| !BENCHES.iter().any(|(b, _)| b == n)) {
        return Err(format!("no benchmark is named '{unknown}'"));
    }
    // SAFETY: geteuid(2) has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Err("the benchmarks start peers that need root; run them as root".into());
    }
    packages::ensure(&[packages::FOR_TESTS, packages::FOR_BENCH]);
    apptainer::ensure();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    peers::must(Command::new(&cargo).current_dir(workspace()).args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "isles",
    ]))?;
    // A copy that an ordinary user can reach.
    let program = peers::cache().join("bin/isles");
    let fail = |e: std::io::Error| format!("{}: {e}", program.display());
    std::fs::create_dir_all(peers::cache().join("bin")).map_err(fail)?;
    let _ = std::fs::remove_file(&program);
    std::fs::copy(size::release_binary(), &program).map_err(fail)?;
    let isles = Isles { program };
    for (name, bench) in BENCHES {
        if names.is_empty() || names.iter().any(|n| n == name) {
            eprintln!("bench: {name}");
            let section = bench(&isles)?;
            println!("## {}\n\n{}", section.title, section.text);
            report::write(&[section])?;
        }
    }
    Ok(())
}
