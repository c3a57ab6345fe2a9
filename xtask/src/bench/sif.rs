//! One image file: started by an ordinary user, built, and read, beside the real Apptainer and the kernel's squashfs.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Isles;
use super::measure::{Case, Outcome, Sample, interleave, timed};
use super::peers::{ORDINARY, cache, must};
use super::report::{Row, Section, at_most, bound, contenders, promises};
use crate::{Result, apptainer};

const ROUNDS: usize = 25;
const BUILD_ROUNDS: usize = 3;
const READ_ROUNDS: usize = 5;

const OURS: &str = "isles";
const REAL: &str = "Apptainer";
const KERNEL: &str = "kernel squashfs, as root";

/// Prints how long it takes to look at every file, in ns, six times.
const FIND: &str = "for i in 1 2 3 4 5 6; do s=$(date +%s%N); find /usr -xdev -type f -size +0 >/dev/null; \
                    e=$(date +%s%N); echo $((e-s)); done";
/// The same for the import of a large package, each time by a new interpreter.
const IMPORT: &str = "for i in 1 2 3 4 5 6; do s=$(date +%s%N); python3 -c 'import numpy'; e=$(date +%s%N); \
                      echo $((e-s)); done";

pub fn run(isles: &Isles) -> Result<Section> {
    // The thread that starts the contenders has mounts of its own.
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| measure(isles)).join();
        measured.map_err(|_| String::from("the measurement panicked"))?
    })
}

fn measure(isles: &Isles) -> Result<Section> {
    let work = cache().join("sif");
    let tree = tree()?;
    let _ = fs::remove_dir_all(&work);
    let home = work.join("home");
    let fail = |e: std::io::Error| format!("{}: {e}", work.display());
    fs::create_dir_all(&home).map_err(fail)?;
    chown(&home, Some(ORDINARY), Some(ORDINARY)).map_err(fail)?;
    own_mounts(&work)?;
    let contenders_of = Contenders { isles, home: &home, work: &work };

    let builds = interleave(
        vec![
            Case::new(OURS, || contenders_of.build(contenders_of.ours(), &tree, "ours.sif")),
            Case::new(REAL, || contenders_of.build(real(), &tree, "real.sif")),
        ],
        BUILD_ROUNDS,
    )?;
    let sizes: Vec<u64> = ["ours.sif", "real.sif"]
        .iter()
        .map(|name| fs::metadata(work.join(name)).map_or(0, |m| m.len() / 1_000_000))
        .collect();
    let sif = work.join("real.sif");
    // What was needed of a file that was changed a moment ago is not remembered.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let starts = interleave(
        vec![
            Case::command(OURS, || contenders_of.exec(contenders_of.ours(), &sif, &["/bin/true"])),
            Case::command(REAL, || contenders_of.exec(real(), &sif, &["/bin/true"])),
        ],
        ROUNDS,
    )?;
    let mounted = Mounted::new(&sif, &work.join("mounted"))?;
    let find = contenders_of.read(&sif, &mounted, FIND)?;
    let import = contenders_of.read(&sif, &mounted, IMPORT)?;
    drop(mounted);

    let mut text = format!(
        "Debian minbase with python3-numpy. A SIF of its tree, made by root: ours has {} MB, Apptainer's {} MB.\n\n",
        sizes[0], sizes[1]
    );
    text += &contenders(&builds, OURS);
    text += "\n`exec IMAGE.sif /bin/true` as an ordinary user without subuids, Apptainer's SIF, which was run before:\n\n";
    text += &contenders(&starts, OURS);
    text += "\nIn a container from that SIF, `find /usr -type f -size +0`; the second to sixth time:\n\n";
    text += &contenders(&find.again, OURS);
    text += "\nThe first time after the mount:\n\n";
    text += &contenders(&find.first, OURS);
    text += "\n`python3 -c 'import numpy'`, the second to sixth time:\n\n";
    text += &contenders(&import.again, OURS);
    text += "\nThe first time after the mount:\n\n";
    text += &contenders(&import.first, OURS);
    let mut rows = Vec::new();
    let cpu = |outcomes: &[Outcome], name: &str| {
        outcomes.iter().find(|o| o.name == name).map_or(f64::NAN, Outcome::cpu)
    };
    rows.push(bound("CPU of making the SIF", cpu(&builds, OURS), 8.0, "s"));
    rows.extend(at_most(&starts, OURS, REAL, 0.167).map(|row| told("`exec`", row)));
    let share = cpu(&starts, OURS) / cpu(&starts, REAL);
    rows.push(bound("CPU of `exec`", share, 0.1, "× Apptainer's"));
    rows.extend(at_most(&find.again, OURS, KERNEL, 1.3).map(|row| told("`find`", row)));
    rows.extend(at_most(&import.again, OURS, KERNEL, 1.3).map(|row| told("`import numpy`", row)));
    text += &promises(&rows);
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "sif", title: "Image files", text })
}

fn told(what: &str, row: Row) -> Row {
    Row { what: format!("{what}: {}", row.what), ..row }
}

/// The tree of which the image is made, kept between runs.
fn tree() -> Result<PathBuf> {
    let tree = cache().join("numpy-tree");
    if tree.join("usr/bin/python3").exists() {
        return Ok(tree);
    }
    let _ = fs::remove_dir_all(&tree);
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--include=python3-numpy", "bookworm"]).arg(&tree);
    must(&mut command)?;
    Ok(tree)
}

/// Gives this thread a mount namespace where the ordinary user has a name, which Apptainer wants, and where /dev/fuse
/// is for all, as udev has it.
fn own_mounts(work: &Path) -> Result<()> {
    // SAFETY: unshare(2) takes no memory; it changes this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(format!("unshare: {}", std::io::Error::last_os_error()));
    }
    must(Command::new("mount").args(["--make-rprivate", "/"]))?;
    let fail = |e: std::io::Error| format!("{}: {e}", work.display());
    for (file, line) in [
        ("passwd", format!("bench:x:{ORDINARY}:{ORDINARY}::{}:/bin/sh\n", work.join("home").display())),
        ("group", format!("bench:x:{ORDINARY}:\n")),
    ] {
        let known = fs::read_to_string(Path::new("/etc").join(file)).map_err(fail)?;
        fs::write(work.join(file), known + &line).map_err(fail)?;
        must(Command::new("mount").arg("--bind").arg(work.join(file)).arg(format!("/etc/{file}")))?;
    }
    let device = work.join("fuse");
    let name = CString::new(device.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: the name is a C string that outlives the call.
    if unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(10, 229)) } != 0 {
        return Err(format!("mknod: {}", std::io::Error::last_os_error()));
    }
    fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).map_err(fail)?;
    must(Command::new("mount").arg("--bind").arg(&device).arg("/dev/fuse")).map(drop)
}

fn real() -> Command {
    let mut command = Command::new(apptainer::program());
    command.env("PATH", apptainer::path());
    command
}

struct Contenders<'a> {
    isles: &'a Isles,
    home: &'a Path,
    work: &'a Path,
}

/// What reading took: the first time after the mount, and later.
struct Reading {
    first: Vec<Outcome>,
    again: Vec<Outcome>,
}

impl Contenders<'_> {
    fn ours(&self) -> Command {
        let mut command = self.isles.command(&self.work.join("isles"));
        command.arg("apptainer");
        command
    }

    fn build(&self, mut command: Command, tree: &Path, name: &str) -> Result<Sample> {
        timed(command.args(["build", "--force"]).arg(self.work.join(name)).arg(tree))
    }

    /// `exec` as the ordinary user, in an empty environment.
    fn exec(&self, mut command: Command, sif: &Path, words: &[&str]) -> Command {
        command
            .env_clear()
            .env("PATH", apptainer::path())
            .env("HOME", self.home)
            .env("ISLES_ROOT", self.home.join("isles"))
            .current_dir(self.home)
            .arg("exec")
            .arg(sif)
            .args(words)
            .uid(ORDINARY)
            .gid(ORDINARY);
        command
    }

    fn read(&self, sif: &Path, mounted: &Mounted, script: &str) -> Result<Reading> {
        let mut reading = Reading { first: Vec::new(), again: Vec::new() };
        let names = [OURS, REAL, KERNEL];
        for list in [&mut reading.first, &mut reading.again] {
            list.extend(names.map(|name| Outcome { name: name.to_owned(), samples: Vec::new() }));
        }
        for round in 0..=READ_ROUNDS {
            for (at, name) in names.iter().enumerate() {
                let mut command = match *name {
                    OURS => self.exec(self.ours(), sif, &["sh", "-c", script]),
                    REAL => self.exec(real(), sif, &["sh", "-c", script]),
                    _ => mounted.again()?.chroot(script),
                };
                let times = must(&mut command)?;
                let mut times = times.lines().filter_map(|line| line.trim().parse::<f64>().ok());
                let wall = |ns: f64| Sample { wall: ns / 1e9, ..Sample::default() };
                let first = times.next().ok_or_else(|| format!("{name} printed no time"))?;
                // The first round warms up the page cache for all of them.
                if round > 0 {
                    reading.first[at].samples.push(wall(first));
                    reading.again[at].samples.extend(times.map(wall));
                }
            }
        }
        Ok(reading)
    }
}

/// The squashfs of a SIF, mounted by the kernel.
struct Mounted {
    at: PathBuf,
    sif: PathBuf,
    offset: u64,
}

impl Mounted {
    fn new(sif: &Path, at: &Path) -> Result<Mounted> {
        fs::create_dir_all(at).map_err(|e| e.to_string())?;
        let listing = must(real().args(["sif", "list"]).arg(sif))?;
        // `3    |1       |NONE    |36864-1081344             |FS (Squashfs/*System/amd64)`
        let offset = listing
            .lines()
            .find(|line| line.contains("Squashfs"))
            .and_then(|line| line.split('|').nth(3)?.trim().split('-').next()?.parse().ok())
            .ok_or("the SIF has no squashfs partition")?;
        let mounted = Mounted { at: at.to_owned(), sif: sif.to_owned(), offset };
        mounted.mount()?;
        Ok(mounted)
    }

    fn mount(&self) -> Result<()> {
        let options = format!("loop,ro,offset={}", self.offset);
        must(Command::new("mount").args(["-t", "squashfs", "-o", &options]).arg(&self.sif).arg(&self.at))
            .map(drop)
    }

    /// Mounted anew, as the others are each time.
    fn again(&self) -> Result<&Mounted> {
        must(Command::new("umount").arg(&self.at))?;
        self.mount()?;
        Ok(self)
    }

    fn chroot(&self, script: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.at).args(["sh", "-c", script]);
        command
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}
