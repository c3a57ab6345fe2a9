//! Clients from the Python package index, in an environment of their own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Result;

/// Where it is: `bin` below it belongs into PATH.
const HOME: &str = "/var/tmp/isles-peers/python";

/// What is installed, in versions that the tests were written for.
const PACKAGES: [&str; 7] = [
    "cwltool==3.3.20260925135507",
    "cwltest==2.7.20260814150058",
    "snakemake==9.27.1",
    "spython==0.3.14",
    "pytest==8.4.2",
    "bagit==1.9.0",
    "rocrate==0.16.0",
];

/// The file of a client.
pub fn program(name: &str) -> std::path::PathBuf {
    Path::new(HOME).join("bin").join(name)
}

/// Installs the clients where they are missing. Where that cannot be done, says why: the tests that need them skip.
pub fn ensure() {
    let installed = Path::new(HOME).join("installed");
    if fs::read_to_string(&installed).is_ok_and(|list| list == PACKAGES.join("\n")) {
        return;
    }
    eprintln!("xtask: installing {} in {HOME}", PACKAGES.join(" "));
    let done = install().and_then(|()| {
        fs::write(&installed, PACKAGES.join("\n")).map_err(|e| format!("{}: {e}", installed.display()))
    });
    if let Err(e) = done {
        eprintln!("xtask: no clients in Python: {e}; the tests that need them will say that they skip");
    }
}

fn install() -> Result<()> {
    let _ = fs::remove_dir_all(HOME);
    // The system's own interpreter: one in somebody's home is out of reach for the ordinary user of the tests.
    run(Command::new("/usr/bin/python3").args(["-m", "venv", HOME]))?;
    run(Command::new(format!("{HOME}/bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(PACKAGES))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} ended with {}: {}", output.status, talk.trim().lines().last().unwrap_or_default()))
}
