//! A Debian minbase with the packages already downloaded, beside mmdebstrap with the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Isles;
use super::measure::{Case, interleave, timed};
use super::peers::{cache, must};
use super::report::{Section, at_most, contenders, promises};
use crate::Result;

const ROUNDS: usize = 3;

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("bootstrap");
    let _ = fs::remove_dir_all(&work);
    let archives = work.join("archives");
    fs::create_dir_all(&archives).map_err(|e| e.to_string())?;
    let root = work.join("isles");
    // The first round of each, which is not counted, downloads.
    let outcomes = interleave(
        vec![
            Case::new("isles build debian://bookworm", || {
                timed(isles.command(&root).args([
                    "build",
                    "-q",
                    "--no-cache",
                    "-t",
                    "bench",
                    "debian://bookworm",
                ]))
            }),
            Case::new("mmdebstrap --variant=minbase", || {
                let target = work.join("mmdebstrap");
                let _ = fs::remove_dir_all(&target);
                mmdebstrap(&archives, &target)
            }),
        ],
        ROUNDS,
    )?;
    let mut text = String::from(
        "bookworm, minbase, into a folder (mmdebstrap) or an image in the store (Isles). The packages of the first, \
         uncounted round are kept by both: in Isles' cache, and in the apt archive folder that mmdebstrap copies in.\n\n",
    );
    text += &contenders(&outcomes, "isles build debian://bookworm");
    let row = at_most(&outcomes, "isles build debian://bookworm", "mmdebstrap --variant=minbase", 0.5);
    text += &promises(&row.into_iter().collect::<Vec<_>>());
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "bootstrap", title: "Bootstrapping Debian", text })
}

fn mmdebstrap(archives: &Path, target: &Path) -> Result<super::measure::Sample> {
    let kept = archives.display();
    let sample = timed(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", "--quiet", "--skip=download/empty", "--skip=essential/unlink"])
            .arg(format!("--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"; cp -al {kept}/. \"$1/var/cache/apt/archives/\" 2>/dev/null || true"))
            .args(["--skip=cleanup/apt/cache", "bookworm"])
            .arg(target),
    )?;
    must(
        Command::new("sh")
            .args(["-c", &format!("cp -n {}/var/cache/apt/archives/*.deb {kept}/", target.display())]),
    )?;
    Ok(sample)
}
