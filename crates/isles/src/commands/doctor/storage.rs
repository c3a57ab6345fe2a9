//! The place for images and containers: room, and what its file system can do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use isles_sandbox::identity::is_real_root;
use isles_spec::quantity::human_bytes;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::Finding;
use super::probe::{self, Probe};

/// Below this nothing can be pulled.
const NOTHING: u64 = 100 << 20;
/// Below this it will soon be so.
const LITTLE: u64 = 5 << 30;

pub fn findings(state: &Path) -> Vec<Finding> {
    const CHECK: &str = "state directory";
    const CURE: &str = "choose another place with --root or ISLES_ROOT";
    let Some(place) = existing(state) else {
        return vec![Finding::problem(CHECK, format!("{} leads nowhere", state.display()), CURE)];
    };
    let mut findings = vec![room(state, place)];
    let scratch = match Scratch::new(place) {
        Ok(scratch) => scratch,
        Err(e) => {
            let text = format!("{} cannot be written: {e}", place.display());
            return [vec![Finding::problem(CHECK, text, CURE)], findings].concat();
        }
    };
    findings.insert(0, Finding::ok(CHECK, format!("{}, on {}", state.display(), file_system(place))));
    findings.push(features(&scratch));
    findings.push(overlay(&scratch));
    findings
}

/// The deepest directory of a path that is there.
fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|p| p.is_dir())
}

fn room(state: &Path, place: &Path) -> Finding {
    const CHECK: &str = "disk space";
    let stat = match rustix::fs::statvfs(place) {
        Ok(stat) => stat,
        Err(e) => {
            let text = format!("{}: {}", place.display(), io::Error::from(e));
            return Finding::note(CHECK, text, "choose another place with --root or ISLES_ROOT");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let text = format!("{} free for {}", human_bytes(free), state.display());
    let cure = "free some with `isles prune`, or choose another place with --root or ISLES_ROOT";
    if free < NOTHING || (stat.f_files > 0 && stat.f_favail < 1000) {
        let text = if free < NOTHING { text } else { format!("{text}, but no inodes are left") };
        Finding::problem(CHECK, text, cure)
    } else if free < LITTLE {
        Finding::note(CHECK, text, cure)
    } else {
        Finding::ok(CHECK, text)
    }
}

/// A folder that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(place: &Path) -> io::Result<Scratch> {
        let path = place.join(format!(".isles-doctor-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What overlay left in `work` is without permissions.
        let _ = isles_store::remove_tree(&self.0);
    }
}

fn features(scratch: &Scratch) -> Finding {
    const CHECK: &str = "file system";
    let dir = &scratch.0;
    let attribute = File::create(dir.join("attribute"))
        .and_then(|file| Ok(rustix::fs::fsetxattr(&file, "user.isles.owner", b"0:0", XattrFlags::empty())?));
    if let Err(e) = attribute {
        let text = format!("it keeps no extended attributes of users: {e}");
        let cure = "put the state directory on ext4, xfs, btrfs or (from Linux 6.6) tmpfs, with --root or ISLES_ROOT";
        return if is_real_root() {
            Finding::note(CHECK, text, cure)
        } else {
            Finding::problem(CHECK, text, cure)
        };
    }
    let unnamed = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o600));
    match unnamed {
        Ok(_) => Finding::ok(CHECK, "extended attributes and unnamed files work"),
        Err(e) => Finding::note(
            CHECK,
            format!("it has no unnamed files: {}", io::Error::from(e)),
            "nothing needs to be done: named ones are used, and collected after a crash",
        ),
    }
}

fn overlay(scratch: &Scratch) -> Finding {
    const CHECK: &str = "overlay";
    let dir = &scratch.0;
    let made =
        ["lower", "upper", "work", "merged"].iter().try_for_each(|name| fs::create_dir(dir.join(name)));
    let filled = made
        .and_then(|()| fs::write(dir.join("lower/old"), "old"))
        .and_then(|()| fs::write(dir.join("lower/gone"), ""));
    if let Err(e) = filled {
        return Finding::problem(CHECK, format!("cannot be tried: {e}"), "see above");
    }
    match probe::ask(Probe::Overlay, dir) {
        Ok(()) if is_real_root() => Finding::ok(CHECK, "works here"),
        Ok(()) => Finding::ok(CHECK, "works here in a user namespace"),
        Err(why) => Finding::problem(
            CHECK,
            format!("does not work here: {why}"),
            format!(
                "load the module (modprobe overlay); users need Linux 5.11; {} cannot hold one if it is itself an \
                 overlay or a network file system: choose another place with --root or ISLES_ROOT",
                dir.parent().unwrap_or(dir).display()
            ),
        ),
    }
}

/// The name of a file system, where its number is known (statfs(2)).
fn file_system(place: &Path) -> &'static str {
    let Ok(stat) = rustix::fs::statfs(place) else { return "an unknown file system" };
    match stat.f_type as u32 {
        0xEF53 => "ext4 or its elders",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "an overlay",
        0x2FC1_2FC1 => "zfs",
        0xF2F5_2010 => "f2fs",
        0xCA45_1A4E => "bcachefs",
        0x6969 => "NFS",
        0xFF53_4D42 | 0xFE53_4D42 => "SMB",
        0x6573_5546 => "FUSE",
        0x0BD0_0BD0 => "Lustre",
        0x00C3_6400 => "Ceph",
        _ => "a file system of another kind",
    }
}
