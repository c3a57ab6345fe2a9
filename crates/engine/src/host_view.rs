//! The host as a step of a build may see it: all its files, none of which can be written, and an image in its midst
//! that can.
//!
//! The root is a folder of our own; what stands at the top of the host's is bound there, read-only with all that is
//! mounted below. /proc, /sys and /dev are the step's own; /run is empty, because the sockets there (a container
//! engine's, systemd's) would be a way out that a read-only mount does not close.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use isles_sandbox::setup::{Mount, MountFlags, MountSource};

use crate::error::{Error, Result};

/// What the step has of its own, and what nobody needs.
const OWN: [&str; 5] = ["proc", "sys", "dev", "run", "lost+found"];
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Layers below a writable folder.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a> {
    pub lowers: &'a [PathBuf],
    pub upper: &'a Path,
    pub work: &'a Path,
    pub userxattr: bool,
}

/// The mounts below `folder`, an empty one of ours that becomes the root, for the host to be seen and for `image` to
/// stand at `at`, which is no folder of the host.
pub fn mounts(folder: &Path, at: &Path, image: Writable<'_>) -> Result<Vec<Mount>> {
    let top = Path::new("/");
    let failed = |e| Error::file("list", top, e);
    let mut out = Vec::new();
    for entry in std::fs::read_dir(top).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, path) = (entry.file_name(), entry.path());
        if OWN.iter().any(|own| name == *own) || Path::new("/").join(&name) == at {
            continue;
        }
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(|e| Error::file("read the link", &path, e))?;
            let link = folder.join(&name);
            symlink(target, &link).map_err(|e| Error::file("create", &link, e))?;
        } else if kind.is_dir() || kind.is_file() {
            out.push(read_only(&path, &path));
        }
    }
    let empty = ("mode".to_owned(), "755".to_owned());
    let run = MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options: vec![empty] };
    out.push(Mount {
        flags: MountFlags { nosuid: true, nodev: true, ..Default::default() },
        ..Mount::new("/run", run)
    });
    // systemd-resolved and others keep it in /run.
    if let Ok(real) = std::fs::canonicalize(RESOLV_CONF)
        && real.starts_with("/run")
    {
        out.push(read_only(&real, &real));
    }
    out.push(Mount {
        flags: MountFlags { nodev: true, ..Default::default() },
        ..Mount::new(at, overlay(image))
    });
    Ok(out)
}

fn read_only(source: &Path, at: &Path) -> Mount {
    let flags = MountFlags { read_only: true, recursive_read_only: true, nodev: true, ..Default::default() };
    Mount { flags, ..Mount::new(at, MountSource::Bind { source: source.to_owned(), recursive: true }) }
}

fn overlay(image: Writable<'_>) -> MountSource {
    if image.lowers.is_empty() {
        return MountSource::Bind { source: image.upper.to_owned(), recursive: false };
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut options = Vec::new();
    if takes_layers_one_by_one() {
        options.extend(image.lowers.iter().rev().map(|lower| ("lowerdir+".to_owned(), text(lower))));
    } else {
        let joined: Vec<String> = image.lowers.iter().rev().map(|lower| text(lower)).collect();
        options.push(("lowerdir".to_owned(), joined.join(":")));
    }
    options.push(("upperdir".to_owned(), text(image.upper)));
    options.push(("workdir".to_owned(), text(image.work)));
    if image.userxattr {
        options.push(("userxattr".to_owned(), String::new()));
    }
    MountSource::Filesystem { kind: "overlay".into(), source: "overlay".into(), options }
}

/// Since Linux 6.7.
fn takes_layers_one_by_one() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0u32);
    (next(), next()) >= (6, 7)
}
