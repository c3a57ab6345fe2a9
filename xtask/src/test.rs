//! `cargo xtask test`: what must hold before a change lands.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::{Result, apptainer, packages, python, workspace};

pub fn run(filters: &[String]) -> Result<()> {
    packages::ensure(&[packages::FOR_TESTS]);
    apptainer::ensure();
    python::ensure();
    if filters.is_empty() {
        step("format", cargo().args(["fmt", "--all", "--check"]))?;
        step(
            "lints",
            cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        )?;
    }
    if !cargo().args(["nextest", "--version"]).output().is_ok_and(|o| o.status.success()) {
        step("install nextest", cargo().args(["install", "--locked", "cargo-nextest"]))?;
    }
    let mut tests = cargo();
    tests.args(["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "slow"]).args(filters);
    let summary = last_summary(&mut tests)?;
    println!("{} passed, {} failed", summary.passed, summary.failed);
    if summary.failed > 0 || !summary.success {
        return Err("the tests failed".into());
    }
    Ok(())
}

/// Runs the tests of one file and shows all that they say.
pub fn run_shown(file: &str) -> Result<()> {
    packages::ensure(&[packages::FOR_TESTS]);
    python::ensure();
    step(file, cargo().args(["nextest", "run", "--package", "isles", "--test", file, "--no-capture"]))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).stdin(Stdio::null());
    command
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {name}");
    let status = command.status().map_err(|e| format!("{name}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed")) }
}

struct Summary {
    passed: u64,
    failed: u64,
    success: bool,
}

/// Runs nextest, passes its talk on, and reads the counts from its closing line:
/// `Summary [ 1.2s] 17 tests run: 16 passed (1 slow), 1 failed, 0 skipped`.
fn last_summary(command: &mut Command) -> Result<Summary> {
    eprintln!("xtask: tests");
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(|e| format!("cargo nextest: {e}"))?;
    let mut summary = None;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.map_err(|e| format!("cargo nextest: {e}"))?;
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            if line.trim_start().starts_with("Summary [") {
                summary = Some((count(&line, "passed"), count(&line, "failed") + count(&line, "timed out")));
            }
        }
    }
    let status = child.wait().map_err(|e| format!("cargo nextest: {e}"))?;
    let (passed, failed) = summary.ok_or("cargo nextest ran no test")?;
    Ok(Summary { passed, failed, success: status.success() })
}

/// The number before `word`, 0 where the line does not have it.
fn count(line: &str, word: &str) -> u64 {
    line.find(&format!(" {word}"))
        .and_then(|at| line[..at].rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_of_the_closing_line() {
        let line =
            "     Summary [   1.234s] 19 tests run: 16 passed (1 slow), 2 failed, 1 timed out, 3 skipped";
        assert_eq!(count(line, "passed"), 16);
        assert_eq!(count(line, "failed"), 2);
        assert_eq!(count(line, "timed out"), 1);
        assert_eq!(count(line, "flaky"), 0);
    }
}
