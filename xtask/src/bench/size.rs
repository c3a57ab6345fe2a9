//! The size of the release binary, the time of a clean build, and the cost of starting the program at all.

use std::path::PathBuf;
use std::process::Command;

use super::Isles;
use super::measure::{Case, interleave, timed};
use super::peers::{cache, must};
use super::report::{Section, bound, promises};
use crate::{Result, workspace};

/// Where cargo puts the release binary: the host's own triple is named as the target.
pub fn release_binary() -> PathBuf {
    let target = workspace().join("target");
    let below = std::fs::read_dir(&target).into_iter().flatten().flatten();
    below
        .map(|entry| entry.path().join("release/isles"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| target.join("release/isles"))
}

pub fn run(isles: &Isles) -> Result<Section> {
    let bytes = std::fs::metadata(&isles.program).map_err(|e| e.to_string())?.len();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = cache().join("clean-build");
    let _ = std::fs::remove_dir_all(&target);
    must(Command::new(&cargo).current_dir(workspace()).arg("fetch"))?;
    let build = timed(
        Command::new(&cargo)
            .current_dir(workspace())
            .args(["build", "--release", "--quiet", "--package", "isles", "--target-dir"])
            .arg(&target),
    )?;
    let _ = std::fs::remove_dir_all(&target);
    let version = interleave(
        vec![Case::command("isles --version", || {
            let mut c = Command::new(&isles.program);
            c.arg("--version");
            c
        })],
        50,
    )?;
    let text = format!(
        "`cargo build --release --package isles` from nothing (crates already fetched): {:.0} s, {:.0} CPU s.\n\
         The binary, static and stripped: {:.1} MB.\n{}",
        build.wall,
        build.cpu,
        bytes as f64 / 1e6,
        promises(&[bound("`isles --version`", version[0].wall() * 1e3, 3.0, "ms")]),
    );
    Ok(Section { name: "size", title: "Size and build", text })
}
