//! A [`Setup`] made flat: terminated strings and numbers, so that the child has nothing to compute.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use isles_spec::{IdMapping, Propagation};

use crate::error::{SpawnError, Step};
use crate::interpreter::{self, Registrations};
use crate::prepared::{self, PlannedPrepared};
use crate::setup::{Mount, MountFlags, MountSource, Namespace, Process, RootFs, Setup, UserNs};
use crate::sys::mount as m;
use crate::sys::process::CLONE_NEWTIME;
use crate::warm::WarmSandbox;

/// Strings in the form that execve(2) wants, with their terminating null pointer.
pub(crate) struct Strings {
    pub pointers: Vec<*const c_char>,
    pub strings: Vec<CString>,
}

impl Strings {
    fn new(items: &[Vec<u8>], what: &'static str) -> Result<Self, SpawnError> {
        let strings: Vec<CString> = items
            .iter()
            .map(|s| CString::new(s.as_slice()).map_err(|_| SpawnError::nul(what, s)))
            .collect::<Result<_, _>>()?;
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Strings { pointers, strings })
    }
}

pub(crate) enum PlannedRoot {
    Overlay {
        lowers: Vec<CString>,
        joined: CString,
        upper: CString,
        work: CString,
        volatile: bool,
        userxattr: bool,
        foreign: bool,
    },
    Directory(CString),
    Change(CString),
}

pub(crate) enum PlannedSource {
    Bind {
        source: CString,
        recursive: bool,
        directory: bool,
        /// For a mount that is to be shared with the host: the copy of it, once it is made. The child alone sets it.
        held: Option<Cell<RawFd>>,
        /// The copy, where the root is mounted somewhere below the source: it is made before that, and shows the host's
        /// folder without the container in it.
        around: Option<Cell<RawFd>>,
    },
    Inside {
        place: CString,
        /// Below the place, without a leading slash.
        path: CString,
        directory: bool,
    },
    Filesystem {
        kind: CString,
        source: CString,
        options: Vec<(CString, Option<CString>)>,
    },
    Proc,
    Sysfs,
    Dev,
    /// Options of devpts: the group of terminals where it is mapped.
    Devpts {
        gid: Option<CString>,
    },
    Mqueue,
    Cgroup,
    /// Only the place of it.
    Place {
        directory: bool,
    },
}

pub(crate) struct PlannedMount {
    /// Below the root, without a leading slash.
    pub destination: CString,
    /// A link at the destination is an attack, not a convenience (/proc, /sys, /dev).
    pub no_link: bool,
    pub source: PlannedSource,
    pub set: u64,
    pub clear: u64,
    pub recursive: bool,
    pub recursive_read_only: bool,
    /// The new file system begins with what is at its place.
    pub copy_up: bool,
    /// The mount, once it is made, where it is to become read-only in the end.
    pub sealed: Option<Cell<i32>>,
    pub propagation: u64,
    pub idmap_userns: Option<OwnedFd>,
    pub optional: bool,
}

pub(crate) struct PlannedDevice {
    pub destination: CString,
    pub source: CString,
    pub mode: u32,
    pub device: u64,
    pub uid: u32,
    pub gid: u32,
}

/// A path on whose place something is put that hides or protects it.
pub(crate) struct Hidden {
    pub path: CString,
}

/// A hierarchy of cgroup v1 and where it is mounted in the container.
pub(crate) struct Hierarchy {
    pub folder: CString,
    pub options: Vec<CString>,
    pub name: Option<CString>,
    /// `cpu` and `cpuacct` beside `cpu,cpuacct`.
    pub links: Vec<CString>,
}

pub(crate) enum CgroupMount {
    V2,
    V1(Vec<Hierarchy>),
}

pub(crate) struct Plan<'a> {
    pub flags: u64,
    /// Descriptors of namespaces to enter and their kinds, the user namespace first.
    pub joins: Vec<(RawFd, i32)>,
    pub joins_pid: Option<RawFd>,
    /// `uid_map` and `gid_map` of a new user namespace.
    pub maps: Option<(Vec<u8>, Vec<u8>)>,
    /// The maps have one line of one ID, the caller's: the child may write them itself.
    pub maps_by_child: bool,
    /// The child is in the host's user namespace, as the caller is.
    pub in_initial_userns: bool,
    pub become_root: bool,
    pub prepared: Vec<PlannedPrepared>,
    pub root: PlannedRoot,
    /// Attributes of the root's mount, set when all mounts are made.
    pub root_attributes: u64,
    pub root_propagation: u64,
    pub mounts: Vec<PlannedMount>,
    pub devices: Vec<PlannedDevice>,
    pub make_nodes: bool,
    pub masked: Vec<Hidden>,
    pub protected: Vec<Hidden>,
    /// Path below /proc/sys and value.
    pub sysctls: Vec<(CString, Vec<u8>)>,
    /// They are written by the container's own /proc, which is certain to be a new one.
    pub sysctls_by_proc: bool,
    pub hostname: Option<Vec<u8>>,
    pub domainname: Option<Vec<u8>>,
    pub setgroups_allowed: bool,
    pub new_network: bool,
    pub new_mount: bool,
    pub warm: Option<&'a WarmSandbox>,
    pub cgroup_mount: CgroupMount,
    pub cwd: CString,
    pub cwd_else: Vec<CString>,
    pub argv: Strings,
    pub env: Strings,
    /// Where the program may be, in the order of PATH.
    pub candidates: Vec<CString>,
    pub rlimits: Vec<(u32, u64, u64)>,
    pub oom: Option<Vec<u8>>,
    /// What AppArmor is told to do at exec.
    pub apparmor: Option<Vec<u8>>,
    /// The caller's /proc.
    pub proc: OwnedFd,
    pub time_offsets: Option<Vec<u8>>,
    pub interpreters: Registrations,
    pub process: &'a Process,
    pub setup: &'a Setup,
}

/// `OVL_MAX_STACK` of the kernel, which says no more than "invalid argument".
const MAX_LAYERS: usize = 500;

pub(crate) fn c(path: &Path) -> Result<CString, SpawnError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| SpawnError::nul("path", path.as_os_str().as_bytes()))
}

pub(crate) fn text(s: &str) -> Result<CString, SpawnError> {
    CString::new(s).map_err(|_| SpawnError::nul("value", s.as_bytes()))
}

/// An absolute path as one below the root: no leading slash, no `.`, and `..` resolved as text (it could not
/// leave the root anyway). The root itself is `.`.
fn below(path: &Path) -> Result<CString, SpawnError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.as_bytes()),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    let joined = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
    CString::new(joined).map_err(|_| SpawnError::nul("path", path.as_os_str().as_bytes()))
}

pub(crate) fn propagation_flag(p: Propagation) -> u64 {
    match p {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Rprivate => libc::MS_PRIVATE | libc::MS_REC,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Rslave => libc::MS_SLAVE | libc::MS_REC,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Rshared => libc::MS_SHARED | libc::MS_REC,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
        Propagation::Runbindable => libc::MS_UNBINDABLE | libc::MS_REC,
    }
}

/// Attributes to set and to clear.
fn attributes(f: &MountFlags) -> (u64, u64) {
    let mut set = 0;
    let mut clear = 0;
    for (on, bit) in [
        (f.read_only || f.recursive_read_only, m::ATTR_RDONLY),
        (f.nosuid, m::ATTR_NOSUID),
        (f.nodev, m::ATTR_NODEV),
        (f.noexec, m::ATTR_NOEXEC),
        (f.nodiratime, m::ATTR_NODIRATIME),
        (f.nosymfollow, m::ATTR_NOSYMFOLLOW),
    ] {
        if on {
            set |= bit;
        }
    }
    for (on, bit) in [
        (f.writable, m::ATTR_RDONLY),
        (f.suid, m::ATTR_NOSUID),
        (f.dev, m::ATTR_NODEV),
        (f.exec, m::ATTR_NOEXEC),
        (f.diratime, m::ATTR_NODIRATIME),
        (f.symfollow, m::ATTR_NOSYMFOLLOW),
    ] {
        if on {
            clear |= bit;
        }
    }
    if f.noatime || f.strictatime || f.relatime {
        clear |= m::ATTR_ATIME_MASK;
        if f.noatime {
            set |= m::ATTR_NOATIME;
        } else if f.strictatime {
            set |= m::ATTR_STRICTATIME;
        }
    }
    (set, clear)
}

pub(crate) fn map_text(map: &[IdMapping]) -> Vec<u8> {
    map.iter().map(|m| format!("{} {} {}\n", m.inside, m.outside, m.length)).collect::<String>().into_bytes()
}

pub(crate) fn contains(map: &[IdMapping], id: u32) -> bool {
    map.iter().any(|m| id >= m.inside && u64::from(id) < u64::from(m.inside) + u64::from(m.length))
}

impl<'a> Plan<'a> {
    pub(crate) fn new(setup: &'a Setup) -> Result<Plan<'a>, SpawnError> {
        let ns = &setup.namespaces;
        let mut flags = 0u64;
        let mut joins = Vec::new();
        if let UserNs::Join(fd) = &ns.user {
            joins.push((fd.as_raw_fd(), libc::CLONE_NEWUSER));
        }
        for (namespace, kind) in [
            (&ns.ipc, libc::CLONE_NEWIPC),
            (&ns.uts, libc::CLONE_NEWUTS),
            (&ns.network, libc::CLONE_NEWNET),
            (&ns.cgroup, libc::CLONE_NEWCGROUP),
            (&ns.mount, libc::CLONE_NEWNS),
        ] {
            match namespace {
                Namespace::New => flags |= kind as u32 as u64,
                Namespace::Host => {}
                Namespace::Join(fd) => joins.push((fd.as_raw_fd(), kind)),
            }
        }
        if let Some(fd) = &ns.time_joined {
            joins.push((fd.as_raw_fd(), CLONE_NEWTIME as i32));
        }
        let mut joins_pid = None;
        match &ns.pid {
            Namespace::New => flags |= libc::CLONE_NEWPID as u64,
            Namespace::Host => {}
            Namespace::Join(fd) => joins_pid = Some(fd.as_raw_fd()),
        }
        let mut maps = None;
        let (mut maps_by_child, mut become_root) = (false, false);
        if let UserNs::New { uids, gids } = &ns.user {
            flags |= libc::CLONE_NEWUSER as u64;
            // SAFETY: geteuid(2) and getegid(2) have no preconditions and cannot fail.
            let (euid, egid) = unsafe { (libc::geteuid(), libc::getegid()) };
            let own =
                |map: &[IdMapping], id: u32| matches!(map, [one] if one.outside == id && one.length == 1);
            maps_by_child = own(uids, euid) && own(gids, egid);
            become_root = contains(uids, 0) && contains(gids, 0);
            maps = Some((map_text(uids), map_text(gids)));
        }
        let warm = setup.warm.as_deref();
        if warm.is_some() {
            // They are those of the sandbox.
            flags = 0;
        }
        // A sandbox that is warm is made nowhere else.
        let in_own_userns = warm.is_none() && (!matches!(ns.user, UserNs::Host) || !initial_user_namespace());

        let root = match &setup.root {
            RootFs::Overlay { lowers, upper, work, volatile, userxattr, foreign } => {
                if lowers.len() > MAX_LAYERS {
                    return Err(SpawnError {
                        step: Step::Root,
                        object: upper.display().to_string(),
                        cause: std::io::Error::other(format!(
                            "{} layers; an overlay takes at most {MAX_LAYERS}",
                            lowers.len()
                        )),
                    });
                }
                // The kernel wants the topmost first.
                let lowers: Vec<CString> = lowers.iter().rev().map(|p| c(p)).collect::<Result<_, _>>()?;
                let joined: Vec<&[u8]> = lowers.iter().map(|l| l.as_bytes()).collect();
                let joined = CString::new(joined.join(&b':')).unwrap_or_default();
                PlannedRoot::Overlay {
                    lowers,
                    joined,
                    upper: c(upper)?,
                    work: c(work)?,
                    volatile: *volatile,
                    userxattr: *userxattr,
                    foreign: *foreign,
                }
            }
            RootFs::Directory(path) => PlannedRoot::Directory(c(path)?),
            RootFs::Change(path) => PlannedRoot::Change(c(path)?),
        };

        let prepared =
            setup.prepared.iter().map(|p| prepared::plan(p, &ns.user)).collect::<Result<Vec<_>, _>>()?;
        let has_terminals = setup.mounts.iter().any(|m| m.source == MountSource::Devpts) && warm.is_none();
        let tty_group = match &ns.user {
            _ if !has_terminals => false,
            UserNs::New { gids, .. } => contains(gids, 5),
            // What is mapped in somebody else's is not known here.
            UserNs::Join(_) => false,
            UserNs::Host => group_is_mapped(5),
        };
        let binds = |mount: &Mount| matches!(mount.source, MountSource::Bind { recursive: true, .. });
        let above =
            if warm.is_none() && setup.mounts.iter().any(binds) { above_root(setup) } else { HashSet::new() };
        let mut mounts = Vec::with_capacity(setup.mounts.len());
        for mount in &setup.mounts {
            if warm.is_some_and(|warm| warm.has(mount)) {
                continue;
            }
            let mut planned = plan_mount(mount, tty_group, &above)?;
            if let (Some(_), PlannedSource::Bind { held, .. }) = (warm, &mut planned.source) {
                // In the sandbox nothing of the host is seen any more.
                *held = Some(Cell::new(-1));
            }
            mounts.push(planned);
        }
        let mut devices = Vec::new();
        for device in &setup.devices {
            devices.push(PlannedDevice {
                destination: below(&device.path)?,
                source: c(device.source.as_deref().unwrap_or(&device.path))?,
                mode: device.kind | device.mode & 0o7777,
                device: libc::makedev(device.major, device.minor),
                uid: device.uid,
                gid: device.gid,
            });
        }
        let hidden = |paths: &[String]| -> Result<Vec<Hidden>, SpawnError> {
            let left = paths.iter().filter(|_| warm.is_none());
            left.map(|p| Ok(Hidden { path: below(Path::new(p))? })).collect()
        };
        let mut sysctls = Vec::new();
        for (name, value) in &setup.sysctls {
            if name.is_empty() || name.split(['.', '/']).any(|part| part.is_empty() || part == "..") {
                return Err(SpawnError::value("sysctl", name));
            }
            // A slash in a name stands for a dot in a part, as sysctl(8) has it.
            let path: String = name
                .chars()
                .map(|ch| {
                    if ch == '.' {
                        '/'
                    } else if ch == '/' {
                        '.'
                    } else {
                        ch
                    }
                })
                .collect();
            let path = if name.contains('/') && !name.contains('.') { name.clone() } else { path };
            sysctls.push((text(&format!("sys/{path}"))?, value.clone().into_bytes()));
        }
        let own_pids = flags & libc::CLONE_NEWPID as u64 != 0 || joins_pid.is_some();
        let is_proc = |m: &PlannedMount| matches!(m.source, PlannedSource::Proc) && !m.optional;
        let sysctls_by_proc = own_pids && mounts.iter().any(is_proc);
        let process = &setup.process;
        let argv = Strings::new(&process.args, "argument")?;
        let env = Strings::new(&process.env, "environment variable")?;
        let candidates = candidates(process, &argv)?;
        let rlimits = process
            .rlimits
            .iter()
            .map(|l| {
                if l.clamp
                    && let Ok((_, hard)) = crate::sys::process::get_rlimit(l.resource)
                {
                    return (l.resource, l.soft.min(hard), l.hard.min(hard));
                }
                (l.resource, l.soft, l.hard)
            })
            .collect();
        let time_offsets = ns.time.map(|t| {
            let line = |name: &str, ns: i128| {
                format!("{name} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
            };
            (line("monotonic", t.monotonic) + &line("boottime", t.boottime)).into_bytes()
        });
        let wants_cgroup = setup.mounts.iter().any(|m| matches!(m.source, MountSource::Cgroup));
        let setgroups_allowed = !maps_by_child
            && (maps.is_some()
                || !in_own_userns
                || crate::proc_file::read("/proc/self/setgroups").map_or(true, |s| s.starts_with("allow")));
        Ok(Plan {
            setgroups_allowed,
            new_network: warm.is_none() && matches!(ns.network, Namespace::New),
            warm,
            new_mount: matches!(ns.mount, Namespace::New),
            flags,
            joins,
            joins_pid,
            maps,
            maps_by_child,
            in_initial_userns: !in_own_userns,
            become_root,
            prepared,
            root,
            root_attributes: [
                (setup.read_only_root, m::ATTR_RDONLY),
                (setup.untrusted_root, m::ATTR_NOSUID | m::ATTR_NODEV),
            ]
            .iter()
            .fold(0, |all, (on, bits)| if *on { all | bits } else { all }),
            root_propagation: setup.root_propagation.map_or(0, propagation_flag),
            mounts,
            devices,
            make_nodes: !in_own_userns,
            masked: hidden(&setup.masked_paths)?,
            protected: hidden(&setup.read_only_paths)?,
            sysctls,
            sysctls_by_proc,
            hostname: setup.hostname.clone().filter(|_| warm.is_none()).map(String::into_bytes),
            domainname: setup.domainname.clone().filter(|_| warm.is_none()).map(String::into_bytes),
            cgroup_mount: if wants_cgroup { cgroup_layout()? } else { CgroupMount::V2 },
            cwd: c(&process.cwd)?,
            cwd_else: process.cwd_else.iter().map(|path| c(path)).collect::<Result<_, _>>()?,
            argv,
            env,
            candidates,
            rlimits,
            apparmor: process.apparmor.as_ref().map(|profile| format!("exec {profile}").into_bytes()),
            proc: open_proc()?,
            oom: process.oom_score_adj.map(|n| n.to_string().into_bytes()),
            time_offsets,
            interpreters: interpreter::plan(setup)?,
            process,
            setup,
        })
    }
}

/// Device and inode of the folders above those that something is mounted on before the mounts of the container are made.
fn above_root(setup: &Setup) -> HashSet<(u64, u64)> {
    let root = match &setup.root {
        RootFs::Directory(path) | RootFs::Change(path) => path,
        RootFs::Overlay { upper, .. } => upper,
    };
    let places = setup.prepared.iter().map(|prepared| &prepared.place);
    let above: HashSet<&Path> = places.chain([root]).flat_map(|place| place.ancestors().skip(1)).collect();
    above
        .into_iter()
        .filter_map(|folder| std::fs::metadata(folder).ok())
        .map(|found| (found.dev(), found.ino()))
        .collect()
}

fn plan_mount(
    mount: &Mount,
    tty_group: bool,
    above: &HashSet<(u64, u64)>,
) -> Result<PlannedMount, SpawnError> {
    let (set, clear) = attributes(&mount.flags);
    let source = match &mount.source {
        MountSource::Bind { source, recursive } => {
            let metadata = std::fs::metadata(source).map_err(|e| SpawnError::source(source, &e))?;
            let shared = matches!(mount.propagation, Some(Propagation::Shared | Propagation::Rshared));
            PlannedSource::Bind {
                source: c(source)?,
                recursive: *recursive,
                directory: metadata.is_dir(),
                held: shared.then(|| Cell::new(-1)),
                around: (*recursive && !shared && above.contains(&(metadata.dev(), metadata.ino())))
                    .then(|| Cell::new(-1)),
            }
        }
        MountSource::Filesystem { kind, source, options } => PlannedSource::Filesystem {
            kind: text(kind)?,
            source: text(source)?,
            options: options
                .iter()
                .map(|(k, v)| Ok((text(k)?, if v.is_empty() { None } else { Some(text(v)?) })))
                .collect::<Result<_, SpawnError>>()?,
        },
        MountSource::Inside { place, path, directory } => {
            PlannedSource::Inside { place: c(place)?, path: below(path)?, directory: *directory }
        }
        MountSource::Proc => PlannedSource::Proc,
        MountSource::Sysfs => PlannedSource::Sysfs,
        MountSource::Dev => PlannedSource::Dev,
        MountSource::Place { directory } => PlannedSource::Place { directory: *directory },
        MountSource::Devpts => PlannedSource::Devpts { gid: if tty_group { Some(text("5")?) } else { None } },
        MountSource::Mqueue => PlannedSource::Mqueue,
        MountSource::Cgroup => PlannedSource::Cgroup,
    };
    let destination = below(&mount.destination)?;
    let no_link = matches!(
        destination.as_bytes(),
        b"proc" | b"sys" | b"dev" | b"dev/pts" | b"dev/shm" | b"dev/mqueue" | b"sys/fs/cgroup"
    );
    Ok(PlannedMount {
        destination,
        no_link,
        source,
        set,
        clear,
        recursive: mount.flags.recursive,
        recursive_read_only: mount.flags.recursive_read_only,
        copy_up: mount.flags.copy_up && matches!(mount.source, MountSource::Filesystem { .. }),
        sealed: mount.flags.sealed.then(|| Cell::new(-1)),
        propagation: mount.propagation.map_or(0, propagation_flag),
        idmap_userns: mount
            .idmap
            .as_ref()
            .map(|(uids, gids)| crate::idmap::namespace(uids, gids))
            .transpose()?,
        optional: mount.optional,
    })
}

/// The places to try for the program: the word itself if it has a slash, else each folder of PATH.
fn candidates(process: &Process, argv: &Strings) -> Result<Vec<CString>, SpawnError> {
    if process.init_stays && argv.strings.is_empty() {
        return Ok(Vec::new());
    }
    let Some(program) = argv.strings.first() else { return Err(SpawnError::value("command", "(nothing)")) };
    let program = program.as_bytes();
    if program.contains(&b'/') || program.is_empty() {
        return Ok(vec![argv.strings[0].clone()]);
    }
    let path = process
        .env
        .iter()
        .find_map(|e| e.strip_prefix(b"PATH="))
        .unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut out = Vec::new();
    for folder in path.split(|b| *b == b':') {
        let folder = if folder.is_empty() { b".".as_slice() } else { folder };
        out.push(
            CString::new([folder, b"/", program].concat()).map_err(|_| SpawnError::nul("PATH", folder))?,
        );
    }
    Ok(out)
}

/// The caller's /proc, which must be one: files of this process are written through it.
fn open_proc() -> Result<OwnedFd, SpawnError> {
    let fail = |errno| SpawnError::new(Step::Prepare, "/proc", errno);
    let fd = crate::sys::open(c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(|e| fail(e.0))?;
    // SAFETY: all zeroes is a valid statfs, and the call fills it.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        crate::sys::check(libc::fstatfs(fd.0, &raw mut stat).into()).map_err(|e| fail(e.0))?;
        stat.f_type
    };
    if kind != libc::PROC_SUPER_MAGIC {
        return Err(fail(libc::ENODEV));
    }
    // Never in the place of a standard stream that the caller has closed.
    // SAFETY: fcntl(2) of numbers has no memory effects.
    let lifted = unsafe { libc::fcntl(fd.0, libc::F_DUPFD_CLOEXEC, 3) };
    crate::sys::check(lifted.into()).map_err(|e| fail(e.0))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(lifted) })
}

/// Whether this process is in the first user namespace, which maps all IDs to themselves.
pub(crate) fn initial_user_namespace() -> bool {
    crate::proc_file::read("/proc/self/uid_map").is_ok_and(|map| {
        let mut words = map.split_whitespace();
        words.next() == Some("0") && words.next() == Some("0") && words.next() == Some("4294967295")
    })
}

fn group_is_mapped(gid: u32) -> bool {
    let Ok(map) = crate::proc_file::read("/proc/self/gid_map") else { return false };
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [inside, _, length] if u64::from(gid) >= inside && u64::from(gid) - inside < length)
    })
}

/// What the container gets at its cgroup mount: the hierarchies that the host has mounted, each in its folder.
fn cgroup_layout() -> Result<CgroupMount, SpawnError> {
    let layout = crate::cgroup::Layout::detect().map_err(|e| SpawnError::source(Path::new("/proc"), &e))?;
    if matches!(layout.kind(), "v2" | "none") {
        return Ok(CgroupMount::V2);
    }
    let mut out = Vec::with_capacity(layout.v1.len());
    for hierarchy in &layout.v1 {
        let several = &hierarchy.controllers;
        let name = several.first().and_then(|c| c.strip_prefix("name="));
        let all = || several.iter().map(|o| text(o)).collect::<Result<Vec<_>, _>>();
        out.push(Hierarchy {
            folder: text(name.unwrap_or(&several.join(",")))?,
            options: if name.is_some() { Vec::new() } else { all()? },
            name: name.map(text).transpose()?,
            links: if several.len() > 1 { all()? } else { Vec::new() },
        });
    }
    Ok(CgroupMount::V1(out))
}

impl Plan<'_> {
    /// Whether the child waits for the parent before anything else.
    pub(crate) fn parent_helps(&self) -> bool {
        self.maps.is_some() && !self.maps_by_child
    }

    /// Whether the start may run in the caller's own memory while the calling thread waits ([`crate::spawn`]): it needs
    /// nothing of that thread, ends in a program, and is seen by nobody of the container meanwhile.
    pub(crate) fn may_share_memory(&self) -> bool {
        let gate = &self.setup.gate;
        let waits = self.parent_helps()
            || gate.before_root
            || gate.before_exec.is_some()
            || self.interpreters.maps.is_some()
            || self.process.seccomp.iter().any(|filter| filter.listens());
        // Of an ordinary user's processes on the host none is seen less than the caller is anyway.
        let unseen = self.flags & libc::CLONE_NEWPID as u64 != 0 || self.warm.is_some() || self.maps_by_child;
        // Root of another namespace would no longer own its files in /proc, when its memory has been closed to others.
        let closes = self.maps_by_child || self.in_initial_userns;
        // An init is no program, and a time namespace wants memory of its own (clone(2)).
        cfg!(target_arch = "x86_64")
            && unseen
            && closes
            && !waits
            && !self.process.init
            && self.time_offsets.is_none()
    }

    /// Whether the namespaces to enter are such that a thread enters, and leaves again, without the rest of the process. Who
    /// is in a user namespace of its own has no right to come back into those of the host.
    pub(crate) fn joins_as_thread(&self) -> bool {
        let of_thread = |kind: i32| {
            [libc::CLONE_NEWIPC, libc::CLONE_NEWUTS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP]
                .contains(&kind)
        };
        let may_return = self.joins.is_empty() || self.in_initial_userns;
        may_return && self.joins_pid.is_none() && self.joins.iter().all(|(_, kind)| of_thread(*kind))
    }

    pub(crate) fn joins_user(&self) -> bool {
        matches!(self.setup.namespaces.user, UserNs::Join(_))
    }

    /// Whether filters are installed by right of CAP_SYS_ADMIN, which the program itself does not get.
    pub(crate) fn filters_need_admin(&self) -> bool {
        !self.process.no_new_privileges && !self.process.seccomp.is_empty()
    }

    /// Whether setgroups(2) is allowed: not where a map was written without the right to it.
    pub(crate) fn may_set_groups(&self) -> bool {
        self.setgroups_allowed
    }

    /// Puts words to what the child reported.
    pub(crate) fn explain(&self, failure: crate::child::Failure) -> SpawnError {
        let index = failure.index as usize;
        let s = |c: &CString| c.to_string_lossy().into_owned();
        let object = match failure.step {
            Step::Mount | Step::MountFlags | Step::CopyUp => {
                self.mounts.get(index).map(|m| match &m.source {
                    PlannedSource::Bind { source, .. } | PlannedSource::Inside { path: source, .. } => {
                        format!("{}' at '/{}", s(source), s(&m.destination))
                    }
                    _ => format!("/{}", s(&m.destination)),
                })
            }
            Step::MountPoint => self.mounts.get(index).map(|m| format!("/{}", s(&m.destination))),
            Step::Device => self.devices.get(index).map(|d| format!("/{}", s(&d.destination))),
            Step::Mask => self.masked.get(index).map(|h| format!("/{}", s(&h.path))),
            Step::ReadOnlyPath => self.protected.get(index).map(|h| format!("/{}", s(&h.path))),
            Step::Sysctl => self.setup.sysctls.get(index).map(|(name, _)| name.clone()),
            Step::Rlimit => self.process.rlimits.get(index).map(|l| {
                crate::rlimit::name(l.resource).map_or_else(|| l.resource.to_string(), str::to_owned)
            }),
            Step::Interpreter => self.setup.interpreters.get(index).map(|i| i.name.clone()),
            Step::WorkingDirectory => Some(s(&self.cwd)),
            Step::User => Some(format!("{}:{}", self.process.uid, self.process.gid)),
            Step::Hostname => self.setup.hostname.clone(),
            Step::AppArmor => self.process.apparmor.clone(),
            Step::Exec => self.argv.strings.first().map(s),
            Step::Image => self.setup.prepared.get(index).map(|p| p.name.clone()),
            Step::Root => Some(match &self.setup.root {
                RootFs::Directory(path) | RootFs::Change(path) => path.display().to_string(),
                RootFs::Overlay { lowers, upper, .. } => {
                    lowers.iter().rev().nth(index).unwrap_or(upper).display().to_string()
                }
            }),
            _ => None,
        };
        SpawnError::new(failure.step, object.unwrap_or_default(), failure.errno)
    }
}
