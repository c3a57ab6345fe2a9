//! The device nodes of a container, between clone3 and exec.

use std::ffi::CStr;

use crate::child::{At, Done};
use crate::error::Step;
use crate::plan::Plan;
use crate::root::{PATH_ROOM, mount_point};
use crate::sys::{self, Errno, mount as m};

const STANDARD_NODES: [(&CStr, &CStr, u32, u32); 6] = [
    (c"null", c"/dev/null", 1, 3),
    (c"zero", c"/dev/zero", 1, 5),
    (c"full", c"/dev/full", 1, 7),
    (c"random", c"/dev/random", 1, 8),
    (c"urandom", c"/dev/urandom", 1, 9),
    (c"tty", c"/dev/tty", 5, 0),
];

const STANDARD_LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// What every /dev has, in a tmpfs of its own.
pub(crate) fn populate(plan: &Plan<'_>, dev: i32) -> sys::Result<()> {
    for (name, source, major, minor) in STANDARD_NODES {
        let mode = libc::S_IFCHR | 0o666;
        node(plan, dev, name, source, mode, libc::makedev(major, minor))?;
    }
    for (name, target) in STANDARD_LINKS {
        sys::symlinkat(target, dev, name)?;
    }
    for name in [c"pts", c"shm", c"mqueue"] {
        sys::mkdirat(dev, name, 0o755)?;
    }
    Ok(())
}

/// Makes a node, or binds the host's where making is not allowed.
fn node(plan: &Plan<'_>, dir: i32, name: &CStr, source: &CStr, mode: u32, device: u64) -> sys::Result<()> {
    if plan.make_nodes || mode & libc::S_IFMT == libc::S_IFIFO {
        match sys::mknodat(dir, name, mode, device) {
            Ok(()) => return sys::chmodat(dir, name, mode & 0o7777),
            Err(Errno(libc::EPERM)) => {}
            Err(e) => return Err(e),
        }
    }
    let host = sys::open(source, libc::O_PATH, 0)?;
    let stat = sys::stat(host.0)?;
    if stat.st_mode & libc::S_IFMT != mode & libc::S_IFMT || stat.st_rdev != device {
        return Err(Errno(libc::ENODEV));
    }
    let mount = m::clone_tree(host.0, c"", false)?;
    drop(sys::openat(dir, name, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW, 0o644)?);
    let place = sys::openat(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    m::attach(&mount, place.0)
}

/// The devices that were asked for.
pub(crate) fn devices(plan: &Plan<'_>, root: i32) -> Done {
    for (index, device) in plan.devices.iter().enumerate() {
        let bytes = device.destination.to_bytes_with_nul();
        let mut room = [0u8; PATH_ROOM];
        if bytes.len() > PATH_ROOM {
            return Err(Errno(libc::ENAMETOOLONG)).at_index(Step::Device, index);
        }
        room[..bytes.len()].copy_from_slice(bytes);
        let slash = bytes.iter().rposition(|b| *b == b'/');
        let (folder, name) = match slash {
            Some(at) => {
                room[at] = 0;
                (CStr::from_bytes_until_nul(&room), CStr::from_bytes_until_nul(&room[at + 1..]))
            }
            None => (Ok(c"."), CStr::from_bytes_until_nul(&room)),
        };
        let (Ok(folder), Ok(name)) = (folder, name) else {
            return Err(Errno(libc::EINVAL)).at_index(Step::Device, index);
        };
        let dir = mount_point(root, folder, true, false).at_index(Step::Device, index)?;
        match sys::unlinkat(dir.0, name) {
            Ok(()) | Err(Errno(libc::ENOENT | libc::EBUSY)) => {}
            Err(e) => return Err(e).at_index(Step::Device, index),
        }
        match node(plan, dir.0, name, &device.source, device.mode, device.device) {
            Ok(()) => {}
            // One of the standard nodes, bound there before.
            Err(Errno(libc::EEXIST)) => continue,
            Err(e) => return Err(e).at_index(Step::Device, index),
        }
        if plan.make_nodes {
            sys::chownat(dir.0, name, device.uid, device.gid).at_index(Step::Device, index)?;
        }
    }
    Ok(())
}
