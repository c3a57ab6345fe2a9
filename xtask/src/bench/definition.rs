//! A definition file that bootstraps Debian: Isles beside the real Apptainer with debootstrap, both as an ordinary user
//! with subordinate IDs, which Apptainer needs.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use super::Isles;
use super::measure::{Case, Outcome, interleave, timed};
use super::peers::{cache, must};
use super::report::{Section, bound, contenders, promises};
use crate::{Result, apptainer};

const RANGED: u32 = 4244;

const OURS: &str = "isles";
const REAL: &str = "Apptainer with debootstrap";

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("definition");
    let _ = fs::remove_dir_all(&work);
    let home = work.join("home");
    let fail = |e: std::io::Error| format!("{}: {e}", work.display());
    fs::create_dir_all(&home).map_err(fail)?;
    chown(&home, Some(RANGED), Some(RANGED)).map_err(fail)?;
    for (name, line) in [
        ("passwd", format!("ranged:x:{RANGED}:{RANGED}::{}:/bin/sh\n", home.display())),
        ("group", format!("ranged:x:{RANGED}:\n")),
        ("subuid", String::from("ranged:200000:65536\n")),
        ("subgid", String::from("ranged:200000:65536\n")),
    ] {
        let known = fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
        fs::write(work.join(name), known + &line).map_err(fail)?;
    }
    let recipe = |script: &str| {
        format!(
            "Bootstrap: debootstrap\nMirrorURL: {}\nOSVersion: bookworm\n\n%post\n    echo built > /etc/built\n\n\
             %test\n    test -s /etc/built\n\n%runscript\n    {script}\n",
            apptainer::mirror().unwrap_or_default()
        )
    };
    fs::write(work.join("a.def"), recipe("exec echo one \"$@\"")).map_err(fail)?;
    fs::write(work.join("b.def"), recipe("exec echo two \"$@\"")).map_err(fail)?;

    let build = |program: Command, recipe: &str, options: &[&str]| {
        let mut command = as_ranged(&work);
        command.arg(program.get_program()).args(program.get_args()).arg("build").arg("--force").args(options);
        command.arg(home.join("out.sif")).arg(work.join(recipe));
        command
            .env_clear()
            .env("PATH", apptainer::path())
            .env("HOME", &home)
            .env("ISLES_ROOT", home.join("isles"))
            .current_dir(&home);
        command
    };
    let ours = || {
        let mut command = Command::new(&isles.program);
        command.arg("apptainer");
        command
    };
    let real = || Command::new(apptainer::program());
    let cold = interleave(
        vec![
            Case::new(OURS, || timed(&mut build(ours(), "a.def", &["--disable-cache"]))),
            Case::new(REAL, || timed(&mut build(real(), "a.def", &[]))),
        ],
        2,
    )?;
    let mut odd = false;
    must(&mut build(ours(), "b.def", &[]))?;
    let changed = interleave(
        vec![Case::new(OURS, || {
            odd = !odd;
            timed(&mut build(ours(), if odd { "a.def" } else { "b.def" }, &[]))
        })],
        3,
    )?;
    let cpu = |outcomes: &[Outcome], name: &str| {
        outcomes.iter().find(|o| o.name == name).map_or(f64::NAN, Outcome::cpu)
    };
    let mut text = String::from(
        "`Bootstrap: debootstrap`, bookworm, with %post, %test and %runscript, into a SIF. Isles has the packages of an \
         earlier round in its cache and nothing else.\n\n",
    );
    text += &contenders(&cold, OURS);
    text += "\nOnly %runscript changed:\n\n";
    text += &contenders(&changed, OURS);
    text += &promises(&[
        bound("CPU", cpu(&cold, OURS) / cpu(&cold, REAL), 0.333, "× Apptainer's"),
        bound("only %runscript changed", changed[0].wall(), 2.0, "s"),
    ]);
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "definition", title: "Definition files", text })
}

/// Becomes the user with the range, in a mount namespace where the files of /etc tell of it and /dev/fuse is for all.
fn as_ranged(work: &Path) -> Command {
    let script = "for f in passwd group subuid subgid; do mount --bind $0/$f /etc/$f || exit 99; done; \
                  [ -e $0/fuse ] || mknod -m 666 $0/fuse c 10 229; mount --bind $0/fuse /dev/fuse || exit 99; \
                  exec setpriv --reuid 4244 --regid 4244 --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(work);
    command
}
