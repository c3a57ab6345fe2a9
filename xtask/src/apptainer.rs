//! The real Apptainer, from Debian's packages of the development suite: unpacked beside the system, with the C
//! library that it was built for. Tests and benchmarks compare Isles with it; the system is left as it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// Where it is: `usr/bin` below it belongs into PATH.
const HOME: &str = "/var/tmp/isles-peers/apptainer";

/// What is installed; what these need comes along.
const PACKAGES: [&str; 4] = ["apptainer", "squashfuse", "fuse2fs", "fuse-overlayfs"];

/// The programs that are run, in `usr/bin`; what else came along goes, as it would hide the system's own.
const PROGRAMS: [&str; 7] =
    ["apptainer", "squashfuse", "squashfuse_ll", "fuse2fs", "fuse-overlayfs", "mksquashfs", "unsquashfs"];

/// Installs it where it is missing. Where that cannot be done, says why: the tests that need it skip.
pub fn ensure() {
    if works(Path::new(HOME)) {
        return;
    }
    eprintln!("xtask: installing apptainer in {HOME}");
    if let Err(e) = install() {
        eprintln!("xtask: no apptainer: {e}; the tests that need it will say that they skip");
    }
}

/// The program.
pub fn program() -> PathBuf {
    Path::new(HOME).join("usr/bin/apptainer")
}

/// A PATH in which it finds its helpers.
pub fn path() -> String {
    format!("{HOME}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

fn works(home: &Path) -> bool {
    Command::new(home.join("usr/bin/apptainer")).arg("--version").output().is_ok_and(|o| o.status.success())
}

fn install() -> Result<()> {
    let home = Path::new(HOME);
    let parent = home.parent().unwrap_or(home);
    let fail = |e: std::io::Error| format!("{}: {e}", parent.display());
    fs::create_dir_all(parent).map_err(fail)?;
    let work = parent.join(format!("apptainer.{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    let installed = fetch(&work.join("apt"), &work.join("root"))
        .and_then(|()| fs::rename(work.join("root"), home).map_err(fail))
        .and_then(|()| relocate(home));
    let _ = fs::remove_dir_all(&work);
    if installed.is_err() || !works(home) {
        let _ = fs::remove_dir_all(home);
    }
    installed
}

/// Downloads the packages, with all that they need, by an apt that knows of nothing that is installed, and unpacks
/// them below `root`. apt checks the archive's signature.
fn fetch(apt: &Path, root: &Path) -> Result<()> {
    let fail = |e: std::io::Error| format!("{}: {e}", apt.display());
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder)).map_err(fail)?;
    }
    fs::create_dir_all(root).map_err(fail)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(fail)?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={keys}] {} sid main\n", mirror()?);
    fs::write(apt.join("sources.list"), source).map_err(fail)?;
    let run = |words: &[&str]| {
        let at = |option: &str, name: &str| format!("{option}={}", apt.join(name).display());
        let mut command = Command::new("apt-get");
        for option in [
            at("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            at("Dir::State::lists", "lists"),
            at("Dir::Cache", "cache"),
            "Dir::State::status=/dev/null".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Debug::NoLocking=true".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        quiet(command.args(["-q", "-y", "--no-install-recommends"]).args(words))
    };
    run(&["update"])?;
    run(&[&["install", "--download-only"], &PACKAGES[..]].concat())?;
    for entry in fs::read_dir(apt.join("cache/archives")).map_err(fail)? {
        let package = entry.map_err(fail)?.path();
        if package.extension().is_some_and(|e| e == "deb") {
            quiet(Command::new("dpkg-deb").arg("-x").arg(&package).arg(root))?;
        }
    }
    Ok(())
}

/// The mirror that the system's own apt uses for its main archive.
pub fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
        .ok_or_else(|| "apt's configuration names no mirror of Debian".to_owned())
}

/// The first address in either format of sources.list(5) that is not the security archive.
fn mirror_in(text: &str) -> Option<String> {
    let words = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    words
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && !word.contains("security"))
        .map(|address| address.trim_end_matches('/').to_owned())
}

/// Lets the programs find their own C library, and Apptainer its configuration, which it looks for beside itself.
fn relocate(home: &Path) -> Result<()> {
    let usr = home.join("usr");
    let libraries = usr.join("lib/x86_64-linux-gnu");
    let starter = libraries.join("apptainer/bin/starter");
    let fail = |e: std::io::Error| format!("{}: {e}", home.display());
    for entry in fs::read_dir(usr.join("bin")).map_err(fail)?.flatten() {
        if !PROGRAMS.iter().any(|program| entry.file_name() == *program) {
            fs::remove_file(entry.path()).map_err(fail)?;
        }
    }
    let programs = PROGRAMS.iter().map(|program| usr.join("bin").join(program)).chain([starter]);
    for program in programs {
        // In two steps: patchelf 0.14 loses the first change where both are asked for at once.
        let mut interpreter = Command::new("patchelf");
        interpreter.arg("--set-interpreter").arg(libraries.join("ld-linux-x86-64.so.2")).arg(&program);
        quiet(&mut interpreter)?;
        let mut libraries_of = Command::new("patchelf");
        libraries_of.args(["--force-rpath", "--set-rpath"]).arg(&libraries).arg(&program);
        quiet(&mut libraries_of)?;
    }
    let link = |to: &str, at: PathBuf| symlink(to, &at).map_err(|e| format!("{}: {e}", at.display()));
    fs::create_dir_all(home.join("var/lib/apptainer/mnt/session")).map_err(fail)?;
    fs::create_dir_all(usr.join("lib/var")).map_err(fail)?;
    link("../etc", usr.join("etc"))?;
    link("../../etc", usr.join("lib/etc"))?;
    link("../../../var/lib", usr.join("lib/var/lib"))
}

fn quiet(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} ended with {}: {}", output.status, talk.trim().lines().last().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::mirror_in;

    #[test]
    fn mirrors_of_both_formats() {
        for (text, expected) in [
            (
                "deb [trusted=yes] http://mirror.test/debian/ bookworm main\n",
                Some("http://mirror.test/debian"),
            ),
            (
                "Types: deb\n# http://old.test\nURIs: http://a.test/debian\nSuites: x\n",
                Some("http://a.test/debian"),
            ),
            (
                "URIs: http://a.test/debian-security\n\nURIs: http://b.test/debian\n",
                Some("http://b.test/debian"),
            ),
            ("# deb http://old.test/debian x main\n", None),
            ("", None),
        ] {
            assert_eq!(mirror_in(text).as_deref(), expected, "{text}");
        }
    }
}
