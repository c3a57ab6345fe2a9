//! A bundle, its `config.json` and its root file system, as one [`Setup`].

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::config::{self, Config, invalid};
use super::{Error, Result, mounts, process};
use crate::setup::{
    CgroupEntry, DeviceNode, Gate, MountSource, Namespace, Namespaces, RootFs, Setup, Stdio, TimeOffsets,
    UserNs,
};

/// `NS_GET_NSTYPE` of ioctl_ns(2).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The devices that every container has (config-linux.md#default-devices), where /dev is not a tmpfs of ours.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Everything that a start needs but its control group, its gates and its streams.
pub(super) fn plan(config: &Config, bundle: &Path, warn: &mut dyn FnMut(String)) -> Result<Setup> {
    let linux = &config.linux;
    // A container may be created without a process; only its start is then an error.
    let none = config::Process { args: vec!["none".into()], cwd: "/".into(), ..config::Process::default() };
    let process = config.process.as_ref().unwrap_or(&none);
    if !linux.mount_label.is_empty() {
        if selinux() {
            return Err(invalid("linux.mountLabel is not supported"));
        }
        warn("linux.mountLabel means nothing without SELinux".into());
    }
    for (name, value, what) in
        [("uts", &config.hostname, "hostname"), ("uts", &config.domainname, "domainname")]
    {
        if !value.is_empty() && !config.has_namespace(name) {
            return Err(invalid(format!("{what} is set, but the {name} namespace is the host's")));
        }
    }
    let mut planned = Vec::with_capacity(config.mounts.len());
    for mount in &config.mounts {
        planned.push(mounts::plan(mount, config, bundle)?);
    }
    let root_propagation = match linux.rootfs_propagation.as_str() {
        "" => None,
        word => Some(
            mounts::propagation(word)
                .ok_or_else(|| invalid(format!("rootfsPropagation '{word}' is not understood")))?,
        ),
    };
    check_sysctls(config)?;
    let mut root = RootFs::Directory(rootfs(config, bundle)?);
    if config.namespace("mount").is_none_or(|n| !n.path.as_os_str().is_empty()) {
        root = RootFs::Change(rootfs(config, bundle)?);
        // What is mounted in the namespace of others would stay there, and be theirs.
        let nothing = planned.is_empty() && linux.masked_paths.is_empty() && linux.readonly_paths.is_empty();
        if !nothing || config.root.as_ref().is_some_and(|r| r.readonly) {
            warn("the mount namespace is not the container's own: nothing is mounted, hidden or made read-only".into());
        }
    }
    let text = |s: &String| Some(s.clone()).filter(|s| !s.is_empty());
    Ok(Setup {
        prepared: Vec::new(),
        untrusted_root: false,
        root,
        read_only_root: config.root.as_ref().is_some_and(|r| r.readonly),
        root_propagation,
        namespaces: namespaces(config)?,
        warm: None,
        hostname: text(&config.hostname),
        domainname: text(&config.domainname),
        devices: devices(linux, &planned)?,
        mounts: planned,
        masked_paths: linux.masked_paths.clone(),
        read_only_paths: linux.readonly_paths.clone(),
        sysctls: linux.sysctl.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        process: process::plan(process, linux, process::filter(config)?, warn)?,
        stdio: Stdio::default(),
        interpreters: Vec::new(),
        cgroup: CgroupEntry::default(),
        die_with_parent: false,
        new_keyring: true,
        gate: Gate::default(),
    })
}

/// A further process in the container whose process 1 is `pid`.
pub(super) fn join(
    config: &Config,
    pid: i32,
    process: &config::Process,
    warn: &mut dyn FnMut(String),
) -> Result<Setup> {
    let namespaces = Namespaces::of_process(pid).map_err(|source| Error::State {
        operation: "read the namespaces of",
        path: format!("/proc/{pid}").into(),
        source,
    })?;
    let mut planned = process::plan(process, &config.linux, process::filter(config)?, warn)?;
    planned.create_cwd = false;
    if let Some(affinity) = &process.exec_cpu_affinity {
        let list = if affinity.last.is_empty() { &affinity.initial } else { &affinity.last };
        if !list.is_empty() {
            planned.scheduling.affinity = Some(process::cpu_list(list)?);
        }
    }
    // A mount namespace that is joined has its root; in the host's the container has only changed its own.
    let root = match namespaces.mount {
        Namespace::Host => RootFs::Change(format!("/proc/{pid}/root").into()),
        _ => RootFs::Directory("/".into()),
    };
    Ok(Setup {
        prepared: Vec::new(),
        untrusted_root: false,
        root,
        read_only_root: false,
        root_propagation: None,
        namespaces,
        warm: None,
        hostname: None,
        domainname: None,
        mounts: Vec::new(),
        devices: Vec::new(),
        masked_paths: Vec::new(),
        read_only_paths: Vec::new(),
        sysctls: Vec::new(),
        process: planned,
        stdio: Stdio::default(),
        interpreters: Vec::new(),
        cgroup: CgroupEntry::default(),
        die_with_parent: false,
        new_keyring: false,
        gate: Gate::default(),
    })
}

/// Whether labels mean something to this kernel.
pub(super) fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The folder of the root file system; a link to one is followed, as runc does.
pub(super) fn rootfs(config: &Config, bundle: &Path) -> Result<PathBuf> {
    let path = &config.root.as_ref().ok_or_else(|| invalid("there is no root"))?.path;
    if path.as_os_str().is_empty() {
        return Err(invalid("root.path is empty"));
    }
    let whole = bundle.join(path);
    let real = whole.canonicalize().map_err(|source| Error::State {
        operation: "find the root file system",
        path: whole.clone(),
        source,
    })?;
    if !real.is_dir() {
        return Err(invalid(format!("root.path {} is not a folder", whole.display())));
    }
    Ok(real)
}

fn namespaces(config: &Config) -> Result<Namespaces> {
    let linux = &config.linux;
    let mut out = Namespaces {
        mount: Namespace::Host,
        pid: Namespace::Host,
        network: Namespace::Host,
        ipc: Namespace::Host,
        uts: Namespace::Host,
        cgroup: Namespace::Host,
        user: UserNs::Host,
        time: None,
        time_joined: None,
        network_messages: None,
    };
    for ns in &linux.namespaces {
        let joined = if ns.path.as_os_str().is_empty() { None } else { Some(open(&ns.kind, &ns.path)?) };
        let plain = |fd: Option<OwnedFd>| fd.map_or(Namespace::New, Namespace::Join);
        match ns.kind.as_str() {
            "mount" => out.mount = plain(joined),
            "pid" => out.pid = plain(joined),
            "network" => out.network = plain(joined),
            "ipc" => out.ipc = plain(joined),
            "uts" => out.uts = plain(joined),
            "cgroup" => out.cgroup = plain(joined),
            "user" => {
                out.user = match joined {
                    Some(fd) => UserNs::Join(fd),
                    None if linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty() => {
                        return Err(invalid("a new user namespace needs uidMappings and gidMappings"));
                    }
                    None => UserNs::New {
                        uids: mounts::mappings(&linux.uid_mappings),
                        gids: mounts::mappings(&linux.gid_mappings),
                    },
                }
            }
            "time" if joined.is_none() => out.time = Some(time_offsets(linux)?),
            "time" => out.time_joined = joined,
            other => return Err(invalid(format!("no namespace is called '{other}'"))),
        }
    }
    if !linux.uid_mappings.is_empty() && !config.has_namespace("user") {
        return Err(invalid("there are uidMappings, but the user namespace is the host's"));
    }
    if !linux.time_offsets.is_empty() && out.time.is_none() {
        return Err(invalid("there are timeOffsets, but no new time namespace"));
    }
    Ok(out)
}

fn time_offsets(linux: &config::Linux) -> Result<TimeOffsets> {
    let mut offsets = TimeOffsets::default();
    for (clock, offset) in &linux.time_offsets {
        let nanoseconds = i128::from(offset.secs) * 1_000_000_000 + i128::from(offset.nanosecs);
        match clock.as_str() {
            "monotonic" => offsets.monotonic = nanoseconds,
            "boottime" => offsets.boottime = nanoseconds,
            other => return Err(invalid(format!("timeOffsets: no clock is called '{other}'"))),
        }
    }
    Ok(offsets)
}

/// Opens a namespace by its path, and looks whether it is one of that kind.
pub(super) fn open(kind: &str, path: &Path) -> Result<OwnedFd> {
    let error = |source| Error::State { operation: "join the namespace", path: path.to_owned(), source };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(error)?;
    // SAFETY: the request takes no argument; on anything but a namespace it fails with ENOTTY.
    let found = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    let wanted = match kind {
        "mount" => libc::CLONE_NEWNS,
        "pid" => libc::CLONE_NEWPID,
        "network" => libc::CLONE_NEWNET,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        "cgroup" => libc::CLONE_NEWCGROUP,
        "user" => libc::CLONE_NEWUSER,
        "time" => crate::sys::process::CLONE_NEWTIME as i32,
        _ => 0,
    };
    if found != wanted {
        return Err(invalid(format!("{} is not a {kind} namespace", path.display())));
    }
    Ok(file.into())
}

fn devices(linux: &config::Linux, planned: &[crate::setup::Mount]) -> Result<Vec<DeviceNode>> {
    let dev = planned.iter().rev().find(|m| m.destination == Path::new("/dev")).map(|m| &m.source);
    // With the host's own /dev there is nothing to add, and adding would change the host.
    if matches!(dev, Some(MountSource::Bind { .. })) {
        return Ok(Vec::new());
    }
    let mut nodes = Vec::new();
    if !matches!(dev, Some(MountSource::Dev)) {
        nodes.extend(DEFAULT_DEVICES.map(|(path, major, minor)| DeviceNode {
            path: path.into(),
            kind: libc::S_IFCHR,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
            source: None,
        }));
    }
    for device in &linux.devices {
        let kind = match device.kind.as_str() {
            "c" | "u" => libc::S_IFCHR,
            "b" => libc::S_IFBLK,
            "p" => libc::S_IFIFO,
            other => {
                return Err(invalid(format!("device {} has the type '{other}'", device.path.display())));
            }
        };
        if !device.path.is_absolute() {
            return Err(invalid(format!("the path of device '{}' is not absolute", device.path.display())));
        }
        let number = |n: i64| {
            u32::try_from(n)
                .map_err(|_| invalid(format!("device {} has the number {n}", device.path.display())))
        };
        let (major, minor) =
            if kind == libc::S_IFIFO { (0, 0) } else { (number(device.major)?, number(device.minor)?) };
        nodes.retain(|n: &DeviceNode| n.path != device.path);
        nodes.push(DeviceNode {
            path: device.path.clone(),
            kind,
            major,
            minor,
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
            source: None,
        });
    }
    Ok(nodes)
}

/// A kernel parameter may only be set where the container has the namespace that it belongs to.
fn check_sysctls(config: &Config) -> Result<()> {
    for name in config.linux.sysctl.keys() {
        let dotted = name.replace('/', ".");
        let namespace = match dotted.as_str() {
            "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced" => "ipc",
            "kernel.domainname" | "kernel.hostname" => "uts",
            other if other.starts_with("fs.mqueue.") => "ipc",
            other if other.starts_with("net.") => "network",
            other if other.starts_with("user.") => "user",
            _ => return Err(invalid(format!("kernel parameter '{name}' belongs to no namespace"))),
        };
        if !config.has_namespace(namespace) {
            return Err(invalid(format!(
                "kernel parameter '{name}' cannot be set: the {namespace} namespace is the host's"
            )));
        }
        if dotted == "kernel.hostname" && !config.hostname.is_empty() {
            return Err(invalid("both hostname and the kernel parameter 'kernel.hostname' are set"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Result<Setup> {
        let whole = format!(
            r#"{{"ociVersion":"1.0.0","root":{{"path":"."}},"process":{{"args":["a"],"cwd":"/"}},{text}}}"#
        );
        let config = Config::parse(whole.as_bytes()).unwrap();
        let bundle = tempfile::tempdir().unwrap();
        plan(&config, bundle.path(), &mut |_| {})
    }

    #[test]
    fn contradictions_are_named() {
        for (text, word) in [
            (r#""hostname":"a""#, "the uts namespace is the host's"),
            (r#""linux":{"namespaces":[{"type":"user"}]}"#, "uidMappings"),
            (
                r#""linux":{"uidMappings":[{"containerID":0,"hostID":0,"size":1}]}"#,
                "user namespace is the host's",
            ),
            (r#""linux":{"namespaces":[{"type":"color"}]}"#, "'color'"),
            (r#""linux":{"namespaces":[{"type":"pid","path":"/proc/self/ns/net"}]}"#, "not a pid namespace"),
            (r#""linux":{"namespaces":[{"type":"pid","path":"/etc/passwd"}]}"#, "not a pid namespace"),
            (r#""linux":{"namespaces":[{"type":"pid","path":"/nonexistent"}]}"#, "/nonexistent"),
            (r#""linux":{"timeOffsets":{"monotonic":{"secs":1}}}"#, "timeOffsets"),
            (r#""linux":{"rootfsPropagation":"wide"}"#, "'wide'"),
            (r#""linux":{"sysctl":{"kernel.panic":"1"}}"#, "belongs to no namespace"),
            (r#""linux":{"sysctl":{"net.ipv4.ip_forward":"1"}}"#, "the network namespace is the host's"),
            (r#""linux":{"sysctl":{"kernel/shmmax":"1"}}"#, "the ipc namespace is the host's"),
            (r#""linux":{"devices":[{"type":"x","path":"/dev/x"}]}"#, "type 'x'"),
            (r#""linux":{"devices":[{"type":"c","path":"x"}]}"#, "not absolute"),
            (r#""linux":{"devices":[{"type":"c","path":"/x","major":-1}]}"#, "number -1"),
            (r#""linux":{"personality":{"domain":"BSD"}}"#, "'BSD'"),
            (r#""linux":{"seccomp":{"defaultAction":"X"}}"#, "'X'"),
        ] {
            let error = outcome(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_hosts_dev_gets_no_devices() {
        let devices = |mounts: &str| {
            let text = format!(
                r#""mounts":[{mounts}],"linux":{{"devices":[{{"type":"c","path":"/dev/fuse","major":10,"minor":229}}]}}"#
            );
            outcome(&text).unwrap().devices.len()
        };
        assert_eq!(devices(r#"{"destination":"/dev","type":"bind","source":"/dev","options":["rbind"]}"#), 0);
        assert_eq!(devices(r#"{"destination":"/dev","type":"tmpfs"}"#), 1);
        assert_eq!(devices(""), 7);
    }

    #[test]
    fn namespaces_default_to_the_hosts() {
        let setup =
            outcome(r#""linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":"/proc/self/ns/ipc"}]}"#)
                .unwrap();
        assert!(matches!(setup.namespaces.pid, Namespace::New));
        assert!(matches!(setup.namespaces.ipc, Namespace::Join(_)));
        assert!(matches!(setup.namespaces.network, Namespace::Host));
        assert!(matches!(setup.namespaces.user, UserNs::Host));
    }

    #[test]
    fn the_root_is_a_folder() {
        let bundle = tempfile::tempdir().unwrap();
        let with = |path: &str| {
            let config = Config {
                root: Some(config::Root { path: path.into(), readonly: false }),
                ..Config::default()
            };
            rootfs(&config, bundle.path())
        };
        std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
        std::fs::write(bundle.path().join("file"), "").unwrap();
        assert_eq!(with("rootfs/").unwrap(), bundle.path().canonicalize().unwrap().join("rootfs"));
        assert!(with("file").unwrap_err().to_string().contains("not a folder"));
        assert!(with("missing").unwrap_err().to_string().contains("missing"));
        assert!(with("").is_err());
    }
}
