//! The host as a step of a build may see it: all its files, none of which can be written, and an image in its midst
//! that can.
//!
//! The root is a folder of our own; what stands at the top of the host's is bound there, read-only with all that is
//! mounted below. /proc, /sys and /dev are the step's own; /run is empty, because the sockets there (a container
//! engine's, systemd's) would be a way out that a read-only mount does not close. The same goes for the folders of X
//! and for all other sockets of files that the network namespace knows (`/proc/net/unix`): each is covered. What
//! remains: abstract sockets, where the step has the host's network; sockets that were bound in another network
//! namespace but lie among the host's files; and those that are made while the step runs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use isles_sandbox::setup::{Mount, MountFlags, MountSource};

use crate::error::{Error, Result};

/// What the step has of its own, and what nobody needs.
const OWN: [&str; 5] = ["proc", "sys", "dev", "run", "lost+found"];
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where X and its session manager have their sockets.
const SOCKET_FOLDERS: [&str; 2] = ["/tmp/.X11-unix", "/tmp/.ICE-unix"];
/// Each is a mount; a host has some dozens.
const MOST_SOCKETS: usize = 2000;

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
    out.push(empty(Path::new("/run")));
    let folders = SOCKET_FOLDERS.iter().filter_map(|folder| std::fs::canonicalize(folder).ok());
    out.extend(folders.filter(|folder| is_shown(folder) && folder.is_dir()).map(|folder| empty(&folder)));
    let listed = std::fs::read("/proc/net/unix").unwrap_or_default();
    let sockets = sockets(&listed);
    if sockets.len() > MOST_SOCKETS {
        let reason =
            format!("{} sockets are in it, and at most {MOST_SOCKETS} can be covered", sockets.len());
        return Err(Error::impossible("showing the host to a step", reason));
    }
    for socket in sockets {
        let null = MountSource::Bind { source: "/dev/null".into(), recursive: false };
        // Its owner may remove it before it is covered.
        out.push(Mount { optional: true, ..Mount::new(socket, null) });
    }
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

/// The sockets of a list as `/proc/net/unix` is one that the step would see, by their real paths.
fn sockets(listed: &[u8]) -> BTreeSet<PathBuf> {
    let mut out = BTreeSet::new();
    for line in listed.split(|byte| *byte == b'\n') {
        // Seven columns come before the path, which may have blanks in it. A name that is no path begins with an @.
        let Some(path) = line.iter().position(|byte| *byte == b'/').map(|at| &line[at..]) else { continue };
        let Ok(real) = std::fs::canonicalize(OsStr::from_bytes(path)) else { continue };
        let in_empty = SOCKET_FOLDERS.iter().any(|folder| real.starts_with(folder));
        let is_socket = real.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
        if is_socket && is_shown(&real) && !in_empty {
            out.insert(real);
        }
    }
    out
}

/// Whether a real path is among what is shown of the host.
fn is_shown(path: &Path) -> bool {
    let first = path.components().nth(1);
    first.is_some_and(|first| OWN.iter().all(|own| first.as_os_str() != *own))
}

fn empty(at: &Path) -> Mount {
    let mode = ("mode".to_owned(), "755".to_owned());
    let source =
        MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options: vec![mode] };
    Mount { flags: MountFlags { nosuid: true, nodev: true, ..Default::default() }, ..Mount::new(at, source) }
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_among_the_files_of_the_host_are_covered() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a socket"), dir.path().join("link"));
        let _listener = UnixListener::bind(&path).unwrap();
        symlink(&path, &link).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let line = |name: &str| {
            let shown = dir.path().join(name);
            format!("ffff0000: 00000002 00000000 00010000 0001 01 4711 {}\n", shown.display())
        };
        let real = path.canonicalize().unwrap();
        for (listed, expected) in [
            (line("a socket"), vec![real.clone()]),
            (line("link") + &line("a socket"), vec![real.clone()]),
            (line("file"), vec![]),
            (line("gone"), vec![]),
            ("ffff0000: 00000002 00000000 00010000 0001 01 4711 @/tmp/abstract\n".to_owned(), vec![]),
            (
                "Num       RefCount Protocol Flags    Type St Inode Path\nffff0000: 3 0 0 1 3 640\n"
                    .to_owned(),
                vec![],
            ),
        ] {
            assert_eq!(Vec::from_iter(sockets(listed.as_bytes())), expected, "{listed}");
        }
        let image = Writable { lowers: &[], upper: dir.path(), work: dir.path(), userxattr: false };
        let folder = tempfile::tempdir().unwrap();
        let mounts = mounts(folder.path(), Path::new("/nonexistent"), image).unwrap();
        assert!(mounts.iter().any(|mount| mount.destination == real), "the kernel lists it");
        for (path, shown) in
            [("/run/docker.sock", false), ("/tmp/s", true), ("/runner/s", true), ("/", false)]
        {
            assert_eq!(is_shown(Path::new(path)), shown, "{path}");
        }
    }
}
