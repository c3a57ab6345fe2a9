//! The container's tree of files: what is mounted between the new mount namespace and the change of the root.
//!
//! Runs between clone3 and exec like all of [`crate::child`], whose steps call the functions here in this order:
//! [`mount`], then [`place`] for each mount, [`sysctls`], [`cover`], [`enter`]. A path in the container is resolved
//! once, as if the container's root were `/`, and from then on is a descriptor: nothing that a container could put in
//! its place meanwhile is ever mounted on.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::AsRawFd;

use crate::child::{At, Done};
use crate::dev;
use crate::error::Step;
use crate::plan::{CgroupMount, Plan, PlannedMount, PlannedRoot, PlannedSource};
use crate::sys::{self, Errno, Fd, mount as m, process as p};
use crate::warm::WarmSandbox;

/// Copies what is to be mounted of the host, where that is not to be seen any more, or changed, when it is mounted.
fn hold(plan: &Plan<'_>) -> Done {
    for (index, mount) in plan.mounts.iter().enumerate() {
        if let PlannedSource::Bind { source, recursive, held: Some(held), .. } = &mount.source {
            // A copy that is made now stays a peer of the host's mount.
            let from = sys::open(source, libc::O_PATH, 0).at_index(Step::Mount, index)?;
            let copy = m::clone_tree(from.0, c"", *recursive).at_index(Step::Mount, index)?;
            if plan.warm.is_some() {
                change(&copy, *recursive, 0, 0, libc::MS_SLAVE).at_index(Step::Mount, index)?;
            }
            held.set(copy.0);
            std::mem::forget(copy);
        }
    }
    Ok(())
}

/// Goes into a sandbox that is there already, with a copy of its mount namespace, and returns a descriptor of its root.
pub(crate) fn of_warm(plan: &Plan<'_>, warm: &WarmSandbox) -> Done<Fd> {
    hold(plan)?;
    let shared = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    p::setns(warm.holder(), libc::CLONE_NEWNS | shared).at(Step::JoinNamespace)?;
    p::unshare(libc::CLONE_NEWNS).at(Step::JoinNamespace)?;
    sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).at(Step::Root)
}

/// Mounts the root file system and returns a descriptor of it, attached in this namespace.
pub(crate) fn mount(plan: &Plan<'_>) -> Done<Fd> {
    hold(plan)?;
    // From here on nothing that is mounted reaches the host.
    m::propagation(libc::MS_SLAVE | libc::MS_REC).at(Step::Propagation)?;
    for mount in &plan.mounts {
        if let PlannedSource::Bind { source, recursive, around: Some(around), .. } = &mount.source {
            let copy =
                sys::open(source, libc::O_PATH, 0).and_then(|from| m::clone_tree(from.0, c"", *recursive));
            // What cannot be copied is found out about when it is to be mounted.
            if let Ok(copy) = copy {
                around.set(copy.0);
                std::mem::forget(copy);
            }
        }
    }
    for (index, prepared) in plan.prepared.iter().enumerate() {
        crate::prepared::mount(prepared).at_index(Step::Image, index)?;
    }
    let (mount, place) = match &plan.root {
        PlannedRoot::Directory(path) | PlannedRoot::Change(path) => {
            let place = sys::open(path, libc::O_PATH | libc::O_DIRECTORY, 0).at(Step::Root)?;
            (m::clone_tree(place.0, c"", true).at(Step::Root)?, place)
        }
        PlannedRoot::Overlay { lowers, joined, upper, work, volatile, userxattr, foreign } => {
            let flags = libc::O_PATH | libc::O_DIRECTORY | if *foreign { libc::O_NOFOLLOW } else { 0 };
            let place = sys::open(upper, flags, 0).at_index(Step::Root, usize::MAX)?;
            if lowers.is_empty() {
                let mount = m::clone_tree(place.0, c"", false).at(Step::Root)?;
                (mount, place)
            } else {
                let context = m::fsopen(c"overlay").at(Step::Root)?;
                // `lowerdir+` takes paths one by one (Linux 6.7); before that they are joined by colons.
                for (index, lower) in lowers.iter().enumerate() {
                    match m::set_string(&context, c"lowerdir+", lower) {
                        Ok(()) => {}
                        Err(Errno(libc::EINVAL)) if index == 0 => {
                            m::set_string(&context, c"lowerdir", joined).at(Step::Root)?;
                            break;
                        }
                        Err(e) => return Err(e).at_index(Step::Root, index),
                    }
                }
                if *foreign {
                    // What was opened is what is used, even where there is a link of its name by now.
                    let work = sys::open(work, flags, 0).at_index(Step::Root, usize::MAX)?;
                    for (key, folder) in [(c"upperdir", place.0), (c"workdir", work.0)] {
                        let path = sys::path_of_descriptor(folder);
                        let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno(libc::EINVAL));
                        let set = path.and_then(|path| m::set_string(&context, key, path));
                        set.at_index(Step::Root, usize::MAX)?;
                    }
                    // Before Linux 6.5 the paths are looked up no sooner than the file system is made.
                    std::mem::forget(work);
                } else {
                    m::set_string(&context, c"upperdir", upper).at(Step::Root)?;
                    m::set_string(&context, c"workdir", work).at(Step::Root)?;
                }
                if *userxattr {
                    m::set_flag(&context, c"userxattr").at(Step::Root)?;
                }
                if *volatile {
                    match m::set_flag(&context, c"volatile") {
                        // Linux 5.10 and younger know it; without it the container is only slower.
                        Ok(()) | Err(Errno(libc::EINVAL)) => {}
                        Err(e) => return Err(e).at(Step::Root),
                    }
                }
                (m::create(&context, 0).at(Step::Root)?, place)
            }
        }
    };
    m::attach(&mount, place.0).at(Step::Root)?;
    // pivot_root(2) wants a root whose mount does not propagate.
    change(&mount, false, 0, 0, libc::MS_PRIVATE).at(Step::Root)?;
    Ok(mount)
}

/// The longest path, with its end.
pub(crate) const PATH_ROOM: usize = 4096;

/// The place at `path` below the root, made where it is missing: a folder, or an empty file.
pub(crate) fn mount_point(root: i32, path: &CStr, directory: bool, no_link: bool) -> sys::Result<Fd> {
    let flags = libc::O_PATH | if directory { libc::O_DIRECTORY } else { 0 };
    let open = |path: &CStr, flags: i32| {
        if no_link {
            sys::open_in_root_no_links(root, path, flags, 0)
        } else {
            sys::open_in_root(root, path, flags)
        }
    };
    match open(path, flags) {
        Err(Errno(libc::ENOENT)) => {}
        other => return other,
    }
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > PATH_ROOM {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    let mut room = [0u8; PATH_ROOM];
    room[..bytes.len()].copy_from_slice(bytes);
    let mut parent = open(c".", libc::O_PATH | libc::O_DIRECTORY)?;
    let mut begin = 0;
    for end in 0..bytes.len() {
        if room[end] != b'/' && room[end] != 0 {
            continue;
        }
        let last = room[end] == 0;
        room[end] = 0;
        let prefix = CStr::from_bytes_until_nul(&room).map_err(|_| Errno(libc::EINVAL))?;
        let want_directory = directory || !last;
        let flags = libc::O_PATH | if want_directory { libc::O_DIRECTORY } else { 0 };
        let next = match open(prefix, flags) {
            Err(Errno(libc::ENOENT)) => {
                let name = CStr::from_bytes_until_nul(&room[begin..]).map_err(|_| Errno(libc::EINVAL))?;
                if want_directory {
                    match sys::mkdirat(parent.0, name, 0o755) {
                        Ok(()) | Err(Errno(libc::EEXIST)) => {}
                        Err(e) => return Err(e),
                    }
                } else {
                    match sys::openat(
                        parent.0,
                        name,
                        libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW,
                        0o644,
                    ) {
                        Ok(_) | Err(Errno(libc::EEXIST)) => {}
                        Err(e) => return Err(e),
                    }
                }
                // A link that dangles is refused here, so nothing is made where it points.
                sys::open_in_root_no_links(parent.0, name, flags, 0)?
            }
            other => other?,
        };
        parent = next;
        if !last {
            room[end] = b'/';
        }
        begin = end + 1;
    }
    Ok(parent)
}

/// Makes one mount and puts it in its place.
pub(crate) fn place(plan: &Plan<'_>, root: i32, mount: &PlannedMount, index: usize) -> Done {
    let made = match &mount.source {
        PlannedSource::Bind { held: Some(held), recursive, .. } => {
            let held = Fd(held.get());
            // Mounts are listed in the order in which they were made, so it is copied once more; before Linux 6.15
            // what is attached nowhere cannot be copied.
            if plan.warm.is_some() { held } else { m::clone_tree(held.0, c"", *recursive).unwrap_or(held) }
        }
        PlannedSource::Bind { around: Some(around), .. } if around.get() >= 0 => Fd(around.get()),
        PlannedSource::Bind { source, recursive, .. } => {
            let from = sys::open(source, libc::O_PATH, 0).at_index(Step::Mount, index)?;
            m::clone_tree(from.0, c"", *recursive).at_index(Step::Mount, index)?
        }
        PlannedSource::Inside { place, path, .. } => {
            let place = sys::open(place, libc::O_PATH | libc::O_DIRECTORY, 0).at_index(Step::Mount, index)?;
            let from = sys::open_in_root(place.0, path, libc::O_PATH).at_index(Step::Mount, index)?;
            m::clone_tree(from.0, c"", false).at_index(Step::Mount, index)?
        }
        PlannedSource::Filesystem { kind, source, options } => {
            let context = m::fsopen(kind).at_index(Step::Mount, index)?;
            m::set_string(&context, c"source", source).at_index(Step::Mount, index)?;
            for (key, value) in options {
                match value {
                    Some(value) => m::set_string(&context, key, value),
                    None => m::set_flag(&context, key),
                }
                .at_index(Step::Mount, index)?;
            }
            m::create(&context, 0).at_index(Step::Mount, index)?
        }
        PlannedSource::Proc => proc(plan).at_index(Step::Mount, index)?,
        PlannedSource::Sysfs => {
            simple(c"sysfs").or_else(|e| fallback(e, c"/sys", plan)).at_index(Step::Mount, index)?
        }
        PlannedSource::Mqueue => {
            simple(c"mqueue").or_else(|e| fallback(e, c"/dev/mqueue", plan)).at_index(Step::Mount, index)?
        }
        PlannedSource::Devpts { gid } => {
            let context = m::fsopen_named(c"devpts").at_index(Step::Mount, index)?;
            let set = || -> sys::Result<Fd> {
                m::set_flag(&context, c"newinstance")?;
                m::set_string(&context, c"ptmxmode", c"0666")?;
                m::set_string(&context, c"mode", c"0620")?;
                if let Some(gid) = gid {
                    m::set_string(&context, c"gid", gid)?;
                }
                m::create(&context, 0)
            };
            set().at_index(Step::Mount, index)?
        }
        PlannedSource::Dev => tmpfs(c"65536k", c"755").at_index(Step::Mount, index)?,
        PlannedSource::Cgroup => return cgroup(plan, root, mount, index),
        PlannedSource::Place { directory } => {
            return mount_point(root, &mount.destination, *directory, mount.no_link)
                .at_index(Step::MountPoint, index)
                .map(drop);
        }
    };
    let directory = !matches!(
        mount.source,
        PlannedSource::Bind { directory: false, .. } | PlannedSource::Inside { directory: false, .. }
    );
    let point =
        mount_point(root, &mount.destination, directory, mount.no_link).at_index(Step::MountPoint, index)?;
    if let Some(userns) = &mount.idmap_userns {
        m::set_attributes(made.0, mount.recursive, m::ATTR_IDMAP, 0, 0, userns.as_raw_fd())
            .at_index(Step::MountFlags, index)?;
    }
    if mount.copy_up {
        crate::copy_up::copy(point.0, made.0).at_index(Step::CopyUp, index)?;
    }
    if plan.sysctls_by_proc && matches!(mount.source, PlannedSource::Proc) {
        write_sysctls(plan, &made)?;
    }
    m::attach(&made, point.0).at_index(Step::Mount, index)?;
    if matches!(mount.source, PlannedSource::Dev) {
        dev::populate(plan, made.0).at_index(Step::Device, usize::MAX)?;
    }
    let fresh = match mount.source {
        PlannedSource::Bind { .. } | PlannedSource::Inside { .. } => false,
        PlannedSource::Filesystem { .. } | PlannedSource::Dev | PlannedSource::Devpts { .. } => true,
        // In a user namespace of its own these may be the caller's.
        _ => plan.make_nodes,
    };
    restrict(&made, mount, fresh, index)?;
    if let Some(sealed) = &mount.sealed {
        sealed.set(made.0);
        std::mem::forget(made);
    }
    Ok(())
}

/// Makes those mounts read-only that others had to find their places in.
pub(crate) fn seal(plan: &Plan<'_>) -> Done {
    for (index, mount) in plan.mounts.iter().enumerate() {
        if let Some(made) = mount.sealed.as_ref().map(Cell::get).filter(|made| *made >= 0) {
            change(&Fd(made), false, m::ATTR_RDONLY, 0, 0).at_index(Step::MountFlags, index)?;
        }
    }
    Ok(())
}

/// Changes an attached mount, before Linux 5.12 by mount(2). That what is below becomes read-only, too, is left to
/// mount_setattr(2): half of it would be a promise broken.
fn change(mount: &Fd, recursive: bool, set: u64, clear: u64, propagation: u64) -> sys::Result<()> {
    match m::set_attributes(mount.0, recursive, set, clear, propagation, 0) {
        Err(Errno(libc::ENOSYS)) if !(recursive && set & m::ATTR_RDONLY != 0) => {
            m::remount(mount.0, set, clear, propagation | if recursive { libc::MS_REC } else { 0 })
        }
        other => other,
    }
}

/// The options and the propagation of a mount.
fn restrict(made: &Fd, mount: &PlannedMount, fresh: bool, index: usize) -> Done {
    if mount.set != 0 || mount.clear != 0 {
        // A file system that was just made has nothing below it.
        let recursive = !fresh && (mount.recursive || mount.recursive_read_only);
        change(made, recursive, mount.set, mount.clear, 0).at_index(Step::MountFlags, index)?;
    }
    if mount.propagation != 0 {
        let recursive = mount.propagation & libc::MS_REC != 0;
        change(made, recursive, 0, 0, mount.propagation & !libc::MS_REC).at_index(Step::MountFlags, index)?;
    }
    Ok(())
}

fn simple(kind: &CStr) -> sys::Result<Fd> {
    let context = m::fsopen_named(kind)?;
    m::create(&context, m::ATTR_NOSUID | m::ATTR_NODEV | m::ATTR_NOEXEC)
}

fn tmpfs(size: &CStr, mode: &CStr) -> sys::Result<Fd> {
    let context = m::fsopen_named(c"tmpfs")?;
    m::set_string(&context, c"size", size)?;
    m::set_string(&context, c"mode", mode)?;
    m::create(&context, 0)
}

fn proc(plan: &Plan<'_>) -> sys::Result<Fd> {
    // With the caller's PID namespace, the caller's /proc says the same, and a new one may be forbidden.
    simple(c"proc").or_else(|e| {
        let own_pids = plan.flags & libc::CLONE_NEWPID as u64 != 0 || plan.joins_pid.is_some();
        if own_pids { Err(e) } else { fallback(e, c"/proc", plan) }
    })
}

/// The caller's own mount, where the kernel does not let this user namespace make one because it does not
/// own the namespace that the file system is of.
fn fallback(error: Errno, path: &CStr, _plan: &Plan<'_>) -> sys::Result<Fd> {
    if error != Errno(libc::EPERM) {
        return Err(error);
    }
    let place = sys::open(path, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    m::clone_tree(place.0, c"", true)
}

fn cgroup(plan: &Plan<'_>, root: i32, mount: &PlannedMount, index: usize) -> Done {
    let point =
        mount_point(root, &mount.destination, true, mount.no_link).at_index(Step::MountPoint, index)?;
    let made = match &plan.cgroup_mount {
        CgroupMount::V2 => simple(c"cgroup2"),
        CgroupMount::V1(_) => tmpfs(c"64k", c"755"),
    };
    let made = match made {
        Ok(made) => made,
        Err(e) => fallback(e, c"/sys/fs/cgroup", plan).at_index(Step::Mount, index)?,
    };
    m::attach(&made, point.0).at_index(Step::Mount, index)?;
    if let CgroupMount::V1(hierarchies) = &plan.cgroup_mount {
        for h in hierarchies {
            let make = || -> sys::Result<Fd> {
                let context = m::fsopen_named(c"cgroup")?;
                for option in &h.options {
                    m::set_flag(&context, option)?;
                }
                if let Some(name) = &h.name {
                    m::set_flag(&context, c"none")?;
                    m::set_string(&context, c"name", name)?;
                }
                m::create(&context, m::ATTR_NOSUID | m::ATTR_NODEV | m::ATTR_NOEXEC)
            };
            // A user namespace may not mount v1 hierarchies; the folder then stays away.
            let Ok(hierarchy) = make() else { continue };
            sys::mkdirat(made.0, &h.folder, 0o755).at_index(Step::MountPoint, index)?;
            let place = sys::openat(made.0, &h.folder, libc::O_PATH | libc::O_DIRECTORY, 0)
                .at_index(Step::MountPoint, index)?;
            m::attach(&hierarchy, place.0).at_index(Step::Mount, index)?;
            restrict(&hierarchy, mount, true, index)?;
            for link in &h.links {
                let _ = sys::symlinkat(&h.folder, made.0, link);
            }
        }
    }
    restrict(&made, mount, plan.make_nodes, index)
}

/// Kernel parameters are written through a /proc of our own, so that nothing mounted over the container's can
/// catch the write (CVE-2019-19921, CVE-2025-52881). The container's own is as good before it is attached; to let go of
/// another takes a wait for the kernel's readers.
pub(crate) fn sysctls(plan: &Plan<'_>) -> Done {
    if plan.sysctls.is_empty() || plan.sysctls_by_proc {
        return Ok(());
    }
    write_sysctls(plan, &simple(c"proc").at(Step::Sysctl)?)
}

fn write_sysctls(plan: &Plan<'_>, proc: &Fd) -> Done {
    for (index, (path, value)) in plan.sysctls.iter().enumerate() {
        let file =
            sys::open_in_root_no_links(proc.0, path, libc::O_WRONLY, 0).at_index(Step::Sysctl, index)?;
        sys::write_all(file.0, value).at_index(Step::Sysctl, index)?;
    }
    Ok(())
}

/// Hides masked paths and protects read-only ones. A path that is not there needs neither.
pub(crate) fn cover(plan: &Plan<'_>, root: i32) -> Done {
    for (index, hidden) in plan.protected.iter().enumerate() {
        let place = match sys::open_in_root(root, &hidden.path, libc::O_PATH) {
            Err(Errno(libc::ENOENT | libc::ENOTDIR)) => continue,
            other => other.at_index(Step::ReadOnlyPath, index)?,
        };
        let copy = m::clone_tree(place.0, c"", true).at_index(Step::ReadOnlyPath, index)?;
        m::attach(&copy, place.0).at_index(Step::ReadOnlyPath, index)?;
        // Below these there is nothing but what the caller has mounted there.
        match m::set_attributes(copy.0, true, m::ATTR_RDONLY, 0, 0, 0) {
            Err(Errno(libc::ENOSYS)) => m::remount(copy.0, m::ATTR_RDONLY, 0, 0),
            other => other,
        }
        .at_index(Step::ReadOnlyPath, index)?;
    }
    if plan.masked.is_empty() {
        return Ok(());
    }
    // Our own /dev/null, looked at, because the container's may be anything (CVE-2025-31133).
    let null = sys::open(c"/dev/null", libc::O_PATH, 0).at(Step::Mask)?;
    let stat = sys::stat(null.0).at(Step::Mask)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || stat.st_rdev != libc::makedev(1, 3) {
        return Err(Errno(libc::ENODEV)).at(Step::Mask);
    }
    let mut empty: Option<Fd> = None;
    for (index, hidden) in plan.masked.iter().enumerate() {
        let place = match sys::open_in_root(root, &hidden.path, libc::O_PATH) {
            Err(Errno(libc::ENOENT | libc::ENOTDIR)) => continue,
            other => other.at_index(Step::Mask, index)?,
        };
        let stat = sys::stat(place.0).at_index(Step::Mask, index)?;
        let cover = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            // One empty file system serves all folders (opencontainers/runc#5275: one each is slow).
            if let Some(first) = &empty {
                m::clone_tree(first.0, c"", false).at_index(Step::Mask, index)?
            } else {
                let context = m::fsopen_named(c"tmpfs").at_index(Step::Mask, index)?;
                m::set_string(&context, c"size", c"0k").at_index(Step::Mask, index)?;
                m::set_string(&context, c"nr_blocks", c"1").at_index(Step::Mask, index)?;
                m::set_string(&context, c"nr_inodes", c"1").at_index(Step::Mask, index)?;
                m::set_string(&context, c"mode", c"555").at_index(Step::Mask, index)?;
                let made =
                    m::create(&context, m::ATTR_RDONLY | m::ATTR_NOSUID | m::ATTR_NODEV | m::ATTR_NOEXEC)
                        .at_index(Step::Mask, index)?;
                m::attach(&made, place.0).at_index(Step::Mask, index)?;
                empty = Some(made);
                continue;
            }
        } else {
            m::clone_tree(null.0, c"", false).at_index(Step::Mask, index)?
        };
        m::attach(&cover, place.0).at_index(Step::Mask, index)?;
    }
    Ok(())
}

pub(crate) fn enter(plan: &Plan<'_>, root: &Fd) -> Done {
    if plan.warm.is_some() {
        // Whoever joins a mount namespace has its root.
        return sys::chdir(c"/").at(Step::PivotRoot);
    }
    if plan.root_attributes != 0 {
        change(root, false, plan.root_attributes, 0, 0).at(Step::Root)?;
    }
    sys::fchdir(root.0).at(Step::PivotRoot)?;
    m::pivot_here().at(Step::PivotRoot)?;
    sys::chdir(c"/").at(Step::PivotRoot)?;
    if plan.root_propagation != 0 {
        m::propagation(plan.root_propagation).at(Step::Propagation)?;
    }
    Ok(())
}
