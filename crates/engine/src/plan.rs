//! A workload over an image, as one [`Setup`] of the sandbox: Docker's defaults, and what the caller's identity
//! makes of them. Everything is decided here; the sandbox decides nothing.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use isles_sandbox::capability::CapabilitySet;
use isles_sandbox::cgroup::{DeviceRule, Limits};
use isles_sandbox::identity::Identity;
use isles_sandbox::seccomp::{self, Bpf};
use isles_sandbox::setup::{
    Capabilities, CgroupEntry, Gate, Interpreter, Mount, MountFlags, MountSource, Namespace, Namespaces,
    Prepared, Process, RootFs, Scheduling, Stdio,
};
use isles_sandbox::{Setup, rlimit};
use isles_spec::image::ContainerConfig;
use isles_spec::{
    CapabilityBase, Isolation, MountKind, NamespaceMode, Propagation, RunAs, SeccompChoice, SystemMount,
    UserNamespace, Workload,
};

use crate::caller::{caller, caller_and_groups};
use crate::devices::{block_limits, device_rules, devices};
use crate::error::{Error, Result};
use crate::namespaces::namespaces;
use crate::owners;
use crate::process;
use crate::user::User;
use crate::view::{View, absolute};

/// A profile of a user's may have this many bytes.
const PROFILE_LIMIT: u64 = 4 << 20;
const SHM_SIZE: u64 = 64 << 20;

/// Files of /proc and /sys that tell of the host or change it (moby/profiles and moby's `oci/defaults.go`,
/// version 28).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const POWER: &str = "/sys/devices/virtual/powercap";
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What stands behind a mount that is no bind of the host's.
pub struct Behind {
    pub source: MountSource,
    pub flags: MountFlags,
}

impl From<MountSource> for Behind {
    fn from(source: MountSource) -> Behind {
        Behind { source, flags: MountFlags::default() }
    }
}

/// What a plan is made of.
pub struct Parts<'a> {
    pub workload: &'a Workload,
    pub image: &'a ContainerConfig,
    pub identity: Identity,
    pub prepared: Vec<Prepared>,
    pub root: RootFs,
    pub read_only_root: bool,
    pub untrusted_root: bool,
    /// The root file system, to look users up in.
    pub view: &'a View,
    /// What stands behind those mounts of the workload that are no binds of the host, by their places in the list.
    pub sources: Vec<Option<Behind>>,
    pub hostname: &'a str,
    /// Finds the process 1 of a running container.
    pub pid_of: &'a dyn Fn(&str) -> Result<i32>,
    /// Mounts that the engine itself wants, such as /etc/hosts.
    pub extra: Vec<Mount>,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// What runs programs of the image's architecture, where this machine does not.
    pub interpreters: Vec<Interpreter>,
    /// Told what goes on differently from what was asked for.
    pub warn: &'a dyn Fn(&str),
}

/// A plan and what goes with it.
pub struct Planned {
    pub setup: Setup,
    /// `None` where nothing is limited and no group is needed.
    pub limits: Option<Limits>,
}

/// Decides everything about a start but its control group and its streams.
pub fn plan(parts: Parts<'_>) -> Result<Planned> {
    let Parts { workload, image, identity, view, hostname, pid_of, extra, terminal, warn, .. } = parts;
    match workload.isolation {
        Isolation::Sandbox => {}
        Isolation::Vm => {
            return Err(Error::impossible("isolation by a virtual machine", "it is not built in yet"));
        }
        Isolation::None => return Err(Error::impossible("no isolation", "a container is always isolated")),
    }
    let security = &workload.security;
    let user = user(workload, image, identity, view)?;
    let capabilities = capabilities(workload, user.uid == 0)?;
    let mut env = process::environment(workload, image, hostname);
    if !workload.bare_env {
        env.add("HOME", &user.home.to_string_lossy());
    }
    let single = identity == Identity::Single;
    let filters = filters(workload, capabilities.bounding, single && user.uid == 0)?;
    let namespaces = namespaces(workload, identity, &user, pid_of)?;
    let mut mounts = system_mounts(workload, &namespaces);
    mounts.extend(extra);
    let mut sources = parts.sources.into_iter();
    for wish in &workload.mounts {
        let made = user_mount(wish, sources.next().flatten()).and_then(|mut mount| {
            if let (MountKind::Bind { owners, .. } | MountKind::Volume { owners, .. }, Some(source)) =
                (&wish.kind, source_of(&mount))
            {
                let ids = (user.uid, user.gid);
                mount.idmap = owners::of_mount(owners, &source, ids, &namespaces.user, identity)?;
            }
            // What an earlier mount shows there is not the image's.
            if !mounts.iter().any(|earlier: &Mount| mount.destination.starts_with(&earlier.destination)) {
                fits(&mount, view)?;
            }
            Ok(mount)
        });
        match made {
            Err(e) if wish.optional => {
                warn(&format!("{} is not mounted: {e}", wish.destination.display()));
            }
            mount => mounts.push(mount?),
        }
    }
    let (devices, rules) = devices(workload)?;
    let mut limits = Limits::from(&workload.resources);
    block_limits(&workload.resources, &mut limits)?;
    // Whoever keeps the caller's rights keeps those over devices.
    let fenced = !security.privileged && security.capabilities != CapabilityBase::Caller;
    if identity == Identity::Root && fenced {
        limits.devices = Some(rules);
        limits.unified_devices = true;
    }
    let further = device_rules(&workload.resources)?;
    if !further.is_empty() {
        if identity != Identity::Root {
            return Err(Error::impossible("rules for devices", "only root's control groups have such"));
        }
        limits.devices.get_or_insert_with(|| vec![DeviceRule::all(true)]).extend(further);
        limits.unified_devices = true;
    }
    let needs_group = !limits.is_empty();
    let unmasked = security.privileged || security.unmask_system_paths;
    let bytes = |list: Vec<String>| list.into_iter().map(String::into_bytes).collect();
    let process = Process {
        args: bytes(process::argv(workload, image)?),
        env: bytes(env.into_vec()),
        cwd: process::working_dir(workload, image),
        create_cwd: !workload.existing_working_dir,
        cwd_else: workload.working_dir_else.clone(),
        keep_descriptors: workload.keep_descriptors,
        uid: user.uid,
        gid: user.gid,
        groups: if single { Vec::new() } else { user.groups.clone() },
        umask: (!workload.keep_umask).then_some(0o022),
        capabilities,
        // With one ID there is nothing to gain from a set-uid program, and much to lose.
        no_new_privileges: security.no_new_privileges.unwrap_or(single),
        apparmor: None,
        rlimits: rlimits(workload)?,
        oom_score_adj: workload.resources.oom_score_adj,
        seccomp: filters,
        terminal,
        init: workload.init || workload.here || workload.init_stays,
        init_stays: workload.init_stays,
        new_session: !workload.keep_session,
        scheduling: Scheduling::default(),
    };
    let private_uts = matches!(namespaces.uts, Namespace::New);
    let setup = Setup {
        prepared: parts.prepared,
        root: parts.root,
        read_only_root: parts.read_only_root,
        untrusted_root: parts.untrusted_root,
        root_propagation: None,
        hostname: private_uts.then(|| hostname.to_owned()),
        domainname: None,
        mounts,
        devices,
        masked_paths: if unmasked { Vec::new() } else { masked_paths() },
        read_only_paths: if unmasked { Vec::new() } else { READ_ONLY.map(str::to_owned).to_vec() },
        sysctls: sysctls(workload, &namespaces)?,
        namespaces,
        warm: None,
        process,
        stdio: Stdio::default(),
        interpreters: parts.interpreters,
        cgroup: CgroupEntry::default(),
        die_with_parent: true,
        new_keyring: true,
        // Root may join it in any case; and of its programs none should see into this one.
        gate: Gate { open_to_owner: workload.init_stays && identity != Identity::Root, ..Gate::default() },
    };
    Ok(Planned { setup, limits: needs_group.then_some(limits) })
}

/// Who the process is.
fn user(workload: &Workload, image: &ContainerConfig, identity: Identity, view: &View) -> Result<User> {
    if workload.run_as == RunAs::Caller {
        return Ok(caller_and_groups(identity));
    }
    // As with docker, an empty one is none.
    let own = workload.user.as_deref().filter(|user| !user.is_empty());
    match own {
        None if workload.here => Ok(caller()),
        None if workload.userns == UserNamespace::KeepId => {
            // As podman has it: the caller's ID, in the image's own world.
            let User { uid, gid, .. } = caller();
            User::resolve(&format!("{uid}:{gid}"), &workload.groups, view)
        }
        spec => {
            let mut user = User::resolve(spec.unwrap_or(&image.user), &workload.groups, view)?;
            if workload.run_as == RunAs::Given {
                user.groups.retain(|group| *group != user.gid);
            }
            Ok(user)
        }
    }
}

/// The set that was asked for as the base, changed as the caller wishes. A user who is not root has only those that were asked
/// for by name, as podman has it; the others could come back by a set-uid program at most.
fn capabilities(workload: &Workload, root: bool) -> Result<Capabilities> {
    let security = &workload.security;
    let set = |names: &[String], all: CapabilitySet| -> Result<CapabilitySet> {
        names.iter().try_fold(CapabilitySet::EMPTY, |set, name| {
            if name.eq_ignore_ascii_case("all") {
                return Ok(all);
            }
            let bit = CapabilitySet::bit(name).ok_or_else(|| {
                isles_spec::Error::new(format!("unknown capability '{name}'"))
                    .with_hint("capabilities have names such as NET_ADMIN or CAP_SYS_PTRACE, or ALL")
            })?;
            Ok(set.with(bit))
        })
    };
    let add = set(&security.cap_add, CapabilitySet::ALL)?;
    let drop = set(&security.cap_drop, CapabilitySet::ALL)?;
    if security.privileged {
        return Ok(Capabilities::of(CapabilitySet::ALL));
    }
    let named = |list: &[String]| {
        let only: Vec<String> = list.iter().filter(|n| !n.eq_ignore_ascii_case("all")).cloned().collect();
        set(&only, CapabilitySet::EMPTY)
    };
    let base = match security.capabilities {
        CapabilityBase::Container => CapabilitySet::CONTAINER,
        CapabilityBase::Caller => CapabilitySet::ALL,
        CapabilityBase::None => CapabilitySet::EMPTY,
    };
    // ALL on one side and names on the other: the names win.
    let base = CapabilitySet(base.0 & !drop.0 | add.0);
    let bounding = CapabilitySet(base.0 & !named(&security.cap_drop)?.0);
    if root {
        return Ok(Capabilities::of(bounding));
    }
    let asked = CapabilitySet(named(&security.cap_add)?.0 & bounding.0);
    Ok(Capabilities { bounding, effective: asked, permitted: asked, inheritable: asked, ambient: asked })
}

fn filters(workload: &Workload, bounding: CapabilitySet, emulate: bool) -> Result<Vec<Bpf>> {
    let security = &workload.security;
    let choice = if security.privileged { &SeccompChoice::Unconfined } else { &security.seccomp };
    // A session of its own has no terminal.
    let lends_terminal = workload.keep_session && seccomp::Arch::native().is_some() && has_terminal();
    let finished = |mut profile: seccomp::Profile| -> Result<Bpf> {
        if lends_terminal {
            profile.protect_terminal();
        }
        if emulate {
            profile.emulate_owners();
        }
        Ok(seccomp::compile(&profile)?)
    };
    Ok(vec![match choice {
        SeccompChoice::Default => {
            // The last one is kept: the steps of a workflow have all the same.
            type Wanted = (CapabilitySet, bool, bool);
            static LAST: Mutex<Option<(Wanted, Bpf)>> = Mutex::new(None);
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = (bounding, lends_terminal, emulate);
            match &*last {
                Some((of, filter)) if *of == wanted => filter.clone(),
                _ => {
                    let filter = finished(seccomp::default_profile(bounding)?)?;
                    *last = Some((wanted, filter.clone()));
                    filter
                }
            }
        }
        SeccompChoice::Profile(path) => {
            let text = read_bounded(path, PROFILE_LIMIT)?;
            finished(seccomp::Profile::from_json(&text, &seccomp::Host::here(bounding)?)?)?
        }
        SeccompChoice::Unconfined if emulate || lends_terminal => {
            finished(seccomp::Profile::allow_all(seccomp::Host::here(bounding)?.arch))?
        }
        SeccompChoice::Unconfined => return Ok(Vec::new()),
    }])
}

/// Whether this process has a terminal that controls it, which whoever it starts would have, too.
fn has_terminal() -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).is_ok()
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // A pipe without a writer would be waited for, and signals are waited with by now: nothing could end this.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let open = File::options().read(true).custom_flags(nonblocking).open(path);
    let file = open.map_err(|e| Error::file("open", path, e))?;
    // One with a writer, as shells make them with <(…), is read to its end.
    rustix::io::ioctl_fionbio(&file, false).map_err(|e| Error::file("read", path, e))?;
    let bytes = isles_store::read_bounded(file, limit).map_err(|e| Error::file("read", path, e))?;
    bytes.ok_or_else(|| Error::TooLarge(path.to_owned(), limit))
}

fn mount(destination: &str, source: MountSource, flags: MountFlags) -> Mount {
    Mount { flags, ..Mount::new(destination, source) }
}

/// A bind mount of a file of the engine's, in the way that an image expects it.
pub fn bind(destination: &str, source: &Path) -> Mount {
    mount(
        destination,
        MountSource::Bind { source: source.to_owned(), recursive: false },
        MountFlags::default(),
    )
}

fn system_mounts(workload: &Workload, namespaces: &Namespaces) -> Vec<Mount> {
    let safe = MountFlags { nosuid: true, nodev: true, noexec: true, ..Default::default() };
    let writable = workload.security.privileged;
    let sys = MountFlags { read_only: !writable, recursive_read_only: !writable, ..safe };
    let of_host = |path: &str| {
        let source = MountSource::Bind { source: path.into(), recursive: true };
        mount(path, source, MountFlags::default())
    };
    let mut mounts = Vec::new();
    match workload.system.proc {
        SystemMount::New => mounts.push(mount("/proc", MountSource::Proc, safe)),
        SystemMount::Host => mounts.push(of_host("/proc")),
        SystemMount::None => {}
    }
    match workload.system.dev {
        SystemMount::New => new_dev(workload, &mut mounts),
        SystemMount::Host => mounts.push(of_host("/dev")),
        SystemMount::None => {}
    }
    match workload.system.sys {
        SystemMount::New => {
            mounts.push(mount("/sys", MountSource::Sysfs, sys));
            if matches!(namespaces.cgroup, Namespace::New) && pure_v2() {
                mounts.push(mount("/sys/fs/cgroup", MountSource::Cgroup, sys));
            }
        }
        SystemMount::Host => mounts.push(of_host("/sys")),
        SystemMount::None => {}
    }
    mounts
}

/// A /dev of the container's own, with what is mounted in it.
fn new_dev(workload: &Workload, mounts: &mut Vec<Mount>) {
    let safe = MountFlags { nosuid: true, nodev: true, noexec: true, ..Default::default() };
    let pts = MountFlags { nosuid: true, noexec: true, ..Default::default() };
    let dev = MountFlags { nosuid: true, strictatime: true, ..Default::default() };
    mounts.push(mount("/dev", MountSource::Dev, dev));
    mounts.push(mount("/dev/pts", MountSource::Devpts, pts));
    if workload.ipc == NamespaceMode::Host {
        // The memory and the queues that processes share are part of what they share.
        for path in ["/dev/shm", "/dev/mqueue"] {
            if Path::new(path).is_dir() {
                let source = MountSource::Bind { source: path.into(), recursive: true };
                mounts.push(mount(path, source, safe));
            }
        }
    } else {
        let size = workload.shm_size.unwrap_or(SHM_SIZE);
        mounts.push(mount("/dev/shm", tmpfs(Some(size), Some(0o1777), &[]), safe));
        mounts.push(mount("/dev/mqueue", MountSource::Mqueue, safe));
    }
}

/// Whether the host has nothing but cgroup v2, mounted at its usual place.
fn pure_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn tmpfs(size: Option<u64>, mode: Option<u32>, options: &[String]) -> MountSource {
    let mut list = vec![("mode".to_owned(), format!("{:o}", mode.unwrap_or(0o1777)))];
    list.extend(size.map(|bytes| ("size".to_owned(), bytes.to_string())));
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        list.push((name.to_owned(), value.to_owned()));
    }
    MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options: list }
}

/// A mount that the caller wishes; `given` is what stands behind one that is no bind of the host.
fn user_mount(wish: &isles_spec::Mount, given: Option<Behind>) -> Result<Mount> {
    let destination = absolute(&wish.destination);
    if destination == Path::new("/") {
        return Err(Error::impossible("a mount at '/'", "it would hide the whole container"));
    }
    let mut flags = MountFlags { read_only: wish.read_only, ..Default::default() };
    let (source, propagation) = match &wish.kind {
        MountKind::Bind { source, recursive, create_source, propagation, recursive_read_only, .. } => {
            match std::fs::metadata(source) {
                Ok(_) => {}
                Err(e) if *create_source && e.kind() == std::io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(source).map_err(|e| {
                        let reason = format!("it is not there, and cannot be made as a folder: {e}");
                        Error::impossible(format!("binding '{}'", source.display()), reason)
                    })?;
                }
                Err(e) => return Err(Error::file("bind", source, e)),
            }
            // As Docker 25 has it: what is mounted below a read-only folder is read-only as well.
            flags.recursive_read_only = wish.read_only && (*recursive || *recursive_read_only);
            (MountSource::Bind { source: source.clone(), recursive: *recursive }, Some(*propagation))
        }
        MountKind::Tmpfs { size, mode, options } => {
            (flags.nosuid, flags.nodev, flags.noexec) = (true, true, true);
            let mut rest = Vec::new();
            for option in options {
                match option.as_str() {
                    "exec" => flags.noexec = false,
                    "noexec" => flags.noexec = true,
                    "suid" => flags.nosuid = false,
                    "nosuid" => flags.nosuid = true,
                    "dev" => flags.nodev = false,
                    "nodev" => flags.nodev = true,
                    "ro" => flags.read_only = true,
                    "rw" => flags.read_only = false,
                    "noatime" => flags.noatime = true,
                    "relatime" => flags.relatime = true,
                    _ => rest.push(option.clone()),
                }
            }
            (tmpfs(*size, *mode, &rest), None)
        }
        MountKind::File { .. } | MountKind::Image { .. } | MountKind::Fuse { .. } => {
            let missing = || {
                Error::impossible(format!("a mount at {}", destination.display()), "nothing stands behind it")
            };
            (given.ok_or_else(missing)?.source, None)
        }
        MountKind::Volume { name, .. } => {
            let shown = name.as_deref().unwrap_or("without a name");
            let missing = || {
                Error::impossible(
                    format!("the volume {shown} at {}", destination.display()),
                    "a step of a build has no volumes",
                )
            };
            let given = given.ok_or_else(missing)?;
            flags = MountFlags { read_only: wish.read_only || given.flags.read_only, ..given.flags };
            // A file system that is made for it has nothing below it, and neither has a part of a volume.
            let has_more = matches!(given.source, MountSource::Bind { recursive: true, .. });
            flags.recursive_read_only = flags.read_only && has_more;
            (given.source, Some(Propagation::default()))
        }
    };
    Ok(Mount { destination, source, flags, propagation, idmap: None, optional: wish.optional })
}

/// The file or folder of the host that a mount shows.
fn source_of(mount: &Mount) -> Option<PathBuf> {
    match &mount.source {
        MountSource::Bind { source, .. } => Some(source.clone()),
        MountSource::Inside { place, path, .. } => Some(place.join(path)),
        _ => None,
    }
}

/// A file goes where a file is, and a folder where a folder is. The kernel only says "invalid argument".
fn fits(mount: &Mount, view: &View) -> Result<()> {
    let (source, folder) = match &mount.source {
        MountSource::Bind { source, .. } => (source, source.is_dir()),
        MountSource::Inside { path, directory, .. } => (path, *directory),
        _ => return Ok(()),
    };
    let Some(there) = view.stat(&mount.destination) else { return Ok(()) };
    let there = there.kind == isles_store::FileKind::Dir;
    let kind = |folder| if folder { "a folder" } else { "a file" };
    if folder == there {
        return Ok(());
    }
    Err(Error::impossible(
        format!("binding {} at {}", source.display(), mount.destination.display()),
        format!("it is {}, and the image has {} there", kind(folder), kind(there)),
    ))
}

fn masked_paths() -> Vec<String> {
    let mut paths: Vec<String> = MASKED.map(str::to_owned).to_vec();
    paths.push(POWER.into());
    // How often a processor got too hot tells its neighbours what it computes.
    let throttle = |n: usize| format!("/sys/devices/system/cpu/cpu{n}/thermal_throttle");
    if Path::new(&throttle(0)).exists() {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        paths.extend((0..count.max(online_cpus())).map(throttle));
    }
    paths
}

/// The highest number of a possible processor, plus one.
fn online_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<usize>().ok());
    last.map_or(1, |n| n.min(8191) + 1)
}

/// Kernel parameters that belong to a namespace of the container's.
fn sysctls(workload: &Workload, namespaces: &Namespaces) -> Result<Vec<(String, String)>> {
    let own = |namespace: &Namespace| !matches!(namespace, Namespace::Host);
    for name in workload.sysctls.keys() {
        let allowed = if name.starts_with("net.") {
            own(&namespaces.network)
        } else if name.starts_with("fs.mqueue.")
            || name.starts_with("kernel.msg")
            || name.starts_with("kernel.shm")
            || name == "kernel.sem"
        {
            own(&namespaces.ipc)
        } else {
            false
        };
        if !allowed {
            return Err(Error::impossible(
                format!("the kernel parameter '{name}'"),
                "it is the host's; only those of a network or IPC namespace of its own are the container's",
            ));
        }
    }
    Ok(workload.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}

fn rlimits(workload: &Workload) -> Result<Vec<isles_sandbox::setup::Rlimit>> {
    let one = |limit: &isles_spec::Rlimit| {
        let resource = rlimit::number(&limit.name).ok_or_else(|| {
            Error::from(isles_spec::Error::new(format!("no resource limit is called '{}'", limit.name)))
        })?;
        let value = |n: Option<u64>| n.unwrap_or(libc::RLIM_INFINITY);
        Ok(isles_sandbox::setup::Rlimit {
            resource,
            soft: value(limit.soft),
            hard: value(limit.hard),
            clamp: false,
        })
    };
    // As with docker, the last word on a resource counts.
    let last = |(at, limit): &(usize, &isles_spec::Rlimit)| {
        !workload.rlimits[at + 1..].iter().any(|later| later.name == limit.name)
    };
    workload.rlimits.iter().enumerate().filter(last).map(|(_, limit)| one(limit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_spec::Security;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn capabilities_as_docker_adds_and_drops_them() {
        let default = CapabilitySet::CONTAINER.0;
        let bit = |name: &str| 1 << CapabilitySet::bit(name).unwrap();
        for (add, drop, expected) in [
            ("", "", default),
            ("NET_ADMIN", "", default | bit("NET_ADMIN")),
            ("", "cap_chown", default & !bit("CHOWN")),
            ("", "ALL", 0),
            ("ALL", "", CapabilitySet::ALL.0),
            ("CHOWN", "all", bit("CHOWN")),
            ("ALL", "SYS_ADMIN", CapabilitySet::ALL.0 & !bit("SYS_ADMIN")),
        ] {
            let security = Security { cap_add: words(add), cap_drop: words(drop), ..Default::default() };
            let workload = Workload { security, ..Default::default() };
            let root = capabilities(&workload, true).unwrap();
            assert_eq!(root.effective.0, expected, "+{add} -{drop}");
            assert_eq!((root.inheritable.0, root.ambient.0), (0, 0), "CVE-2022-29162");
            let other = capabilities(&workload, false).unwrap();
            assert_eq!(other.bounding.0, expected, "+{add} -{drop}");
            let asked = if add == "ALL" { 0 } else { words(add).iter().fold(0, |s, n| s | bit(n.as_str())) };
            assert_eq!(other.ambient.0, asked, "+{add} -{drop}");
        }
        let security = Security { cap_add: words("NET_ADMINS"), ..Default::default() };
        assert!(capabilities(&Workload { security, ..Default::default() }, true).is_err());
    }

    fn wish(destination: &str, kind: MountKind) -> isles_spec::Mount {
        isles_spec::Mount { destination: destination.into(), kind, read_only: false, optional: false }
    }

    #[test]
    fn tmpfs_options() {
        let kind =
            MountKind::Tmpfs { size: Some(5), mode: Some(0o700), options: words("exec ro huge=never") };
        let mount = user_mount(&wish("run/x/..", kind), None).unwrap();
        assert_eq!(mount.destination, Path::new("/run"));
        assert!(mount.flags.nosuid && mount.flags.nodev && !mount.flags.noexec && mount.flags.read_only);
        let MountSource::Filesystem { options, .. } = mount.source else { panic!("not a file system") };
        let text: Vec<String> = options.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, ["mode=700", "size=5", "huge=never"]);
    }

    #[test]
    fn mounts_that_are_refused() {
        let refused = |destination: &str, kind: MountKind| {
            let wish = wish(destination, kind);
            user_mount(&wish, None).unwrap_err().to_string()
        };
        let tmpfs = || MountKind::Tmpfs { size: None, mode: None, options: vec![] };
        assert!(refused("/a/..", tmpfs()).contains("'/'"));
        let volume = MountKind::volume(Some("data".into()));
        assert!(refused("/d", volume).contains("volume data"));
        let bind = MountKind::Bind {
            source: "/nonexistent/x".into(),
            recursive: true,
            create_source: false,
            propagation: Default::default(),
            recursive_read_only: false,
            owners: Default::default(),
        };
        assert!(refused("/d", bind).contains("/nonexistent/x"));
    }

    #[test]
    fn parameters_of_the_host_are_refused() {
        let check = |name: &str, network: Namespace| {
            let workload =
                Workload { sysctls: [(name.to_owned(), "1".to_owned())].into(), ..Default::default() };
            sysctls(&workload, &Namespaces { network, ..Default::default() }).is_ok()
        };
        for (name, network, fine) in [
            ("net.ipv4.ip_forward", Namespace::New, true),
            ("net.ipv4.ip_forward", Namespace::Host, false),
            ("kernel.shmmax", Namespace::New, true),
            ("kernel.panic", Namespace::New, false),
            ("vm.swappiness", Namespace::New, false),
        ] {
            assert_eq!(check(name, network), fine, "{name}");
        }
    }
}
