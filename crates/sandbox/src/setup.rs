//! What the sandbox is told: everything decided, nothing left to look up but paths in the root.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::capability::CapabilitySet;
use crate::seccomp::Bpf;
use crate::sys::{Errno, process};
use crate::warm::WarmSandbox;
use isles_spec::{IdMapping, Propagation};

/// One start of one process tree.
#[derive(Debug)]
pub struct Setup {
    /// Mounted in the new mount namespace before all else, in this order: what the root and the other mounts are made of.
    pub prepared: Vec<Prepared>,
    pub root: RootFs,
    pub read_only_root: bool,
    /// Set-uid bits, file capabilities and device nodes of the root have no effect.
    pub untrusted_root: bool,
    /// Propagation of the container's root (`rootfsPropagation`); private where not given.
    pub root_propagation: Option<Propagation>,
    pub namespaces: Namespaces,
    /// The sandbox that the process is put into, and nobody else is in: it fits this set-up.
    pub warm: Option<Arc<WarmSandbox>>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// In this order; /proc, /dev, /sys are entries like any other.
    pub mounts: Vec<Mount>,
    /// Made in /dev of the container, beside those of [`MountSource::Dev`].
    pub devices: Vec<DeviceNode>,
    /// Paths in the container that show nothing: files read as /dev/null, folders as empty ones.
    pub masked_paths: Vec<String>,
    /// Paths in the container that cannot be written through.
    pub read_only_paths: Vec<String>,
    /// Name with dots, and value.
    pub sysctls: Vec<(String, String)>,
    pub process: Process,
    pub stdio: Stdio,
    /// Programs that run those of another architecture, in this container only.
    pub interpreters: Vec<Interpreter>,
    /// The control group that the process is in before it does anything: [`crate::cgroup::Group::entry`] makes it.
    pub cgroup: CgroupEntry,
    /// The process tree is killed when the process that called [`crate::spawn`] dies.
    pub die_with_parent: bool,
    /// The process gets a session keyring of its own, so that it does not share the caller's (keyrings(7)).
    pub new_keyring: bool,
    /// Before the root is entered, and before the program starts.
    pub gate: Gate,
}

impl Setup {
    /// A container with a root file system and a program, and for the rest what docker gives: namespaces of its own
    /// but for users, /proc, /dev and /sys, the default capabilities, no new privileges, and the caller's streams.
    /// It has no limits, no masked paths and no filter of system calls, and dies with its starter.
    pub fn new(root: RootFs, args: &[&str]) -> Setup {
        let mounts = [
            ("/proc", MountSource::Proc),
            ("/dev", MountSource::Dev),
            ("/dev/pts", MountSource::Devpts),
            ("/dev/mqueue", MountSource::Mqueue),
            ("/sys", MountSource::Sysfs),
        ];
        Setup {
            prepared: Vec::new(),
            root,
            read_only_root: false,
            untrusted_root: false,
            root_propagation: None,
            namespaces: Namespaces::default(),
            warm: None,
            hostname: None,
            domainname: None,
            mounts: mounts.map(|(destination, source)| Mount::new(destination, source)).into(),
            devices: Vec::new(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            sysctls: Vec::new(),
            process: Process::new(args),
            stdio: Stdio::default(),
            interpreters: Vec::new(),
            cgroup: CgroupEntry::default(),
            die_with_parent: true,
            new_keyring: false,
            gate: Gate::default(),
        }
    }
}

/// Where the root file system comes from.
#[derive(Debug, Clone)]
pub enum RootFs {
    /// Unpacked layers, base first, below a writable one. With no lowers, `upper` is the root itself.
    Overlay {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        /// Skip all synchronisation: what was written is lost when the machine crashes.
        volatile: bool,
        /// Markers are in `user.overlay.*` (in a user namespace).
        userxattr: bool,
        /// Others may write to the folder that `upper` and `work` are in: neither may be a link.
        foreign: bool,
    },
    /// A folder as it is.
    Directory(PathBuf),
    /// A folder that the process changes its root to, in a mount namespace that is not new.
    Change(PathBuf),
}

/// A file system that is mounted at a folder of the host, where only this container sees it.
#[derive(Debug)]
pub struct Prepared {
    /// An empty folder that nobody else uses.
    pub place: PathBuf,
    pub source: PreparedSource,
    /// What it is, for messages: the file of the image.
    pub name: String,
}

/// What is mounted there.
#[derive(Debug)]
pub enum PreparedSource {
    /// A mount that is attached nowhere yet (fsmount(2)).
    Mount(OwnedFd),
    /// A file system that whoever holds the other end of this socket serves (fuse(4)): the descriptors of `/dev/fuse` are
    /// sent there, up to `devices` of them for as many threads, and received with [`crate::fuse::receive`].
    Fuse { channel: OwnedFd, devices: u32 },
    /// The same with one descriptor, of a program that may be written to and asked by its own rules: by the owner of the mount,
    /// or `for_all` of the user namespace.
    FuseProgram { channel: OwnedFd, for_all: bool },
    /// A folder in one of the host or in what was mounted before, where a link of that name is refused.
    Folder { of: PathBuf, name: String },
    /// A tmpfs of that many bytes at most, half the memory where not given, with these folders in it.
    Memory { size: Option<u64>, folders: Vec<String> },
}

/// A program that runs others, which the kernel knows by how they begin. It needs /proc in the container, and the
/// kernel Linux 6.7.
#[derive(Debug)]
pub struct Interpreter {
    /// What it is called in `/proc/sys/fs/binfmt_misc`.
    pub name: String,
    /// The first bytes of a program, where the mask has ones.
    pub magic: Vec<u8>,
    pub mask: Vec<u8>,
    /// A static program: nothing else of the host is seen by it.
    pub file: OwnedFd,
    /// It expects the program's argument 0 after the path of the program, as qemu does since version 6.
    pub keeps_name: bool,
}

/// Where a namespace comes from.
#[derive(Debug, Default)]
pub enum Namespace {
    #[default]
    New,
    /// That of the caller.
    Host,
    /// That behind this descriptor (a file of /proc/PID/ns or a bind of one).
    Join(OwnedFd),
}

/// The eight namespaces. Only in a new mount namespace is the set-up mounted: the caller's, or one that is joined, is
/// used by others as well.
#[derive(Debug, Default)]
pub struct Namespaces {
    pub mount: Namespace,
    pub pid: Namespace,
    pub network: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
    pub cgroup: Namespace,
    pub user: UserNs,
    /// `None` leaves the caller's; offsets are of the monotonic and boot-time clocks.
    pub time: Option<TimeOffsets>,
    /// A time namespace to be in, instead of a new one.
    pub time_joined: Option<OwnedFd>,
    /// What a new network namespace gets besides a loopback device that is up.
    pub network_messages: Option<NetworkMessages>,
}

/// Messages of rtnetlink(7) that are sent in a new network namespace, each of which asks for an acknowledgement. The socket
/// that sent them comes back in [`crate::Child::network`]: it hears of every neighbour that is looked for, and whoever
/// owns the namespace can say more on it.
#[derive(Debug, Clone)]
pub struct NetworkMessages {
    pub bytes: Vec<u8>,
    pub number: usize,
}

impl Namespaces {
    /// Those of a running process, for another one to join: what `exec` does. Those that the caller is in
    /// already are left as they are. The root of [`Setup`] and its mounts are not used then.
    pub fn of_process(pid: i32) -> io::Result<Namespaces> {
        let open = |name: &str| -> io::Result<Option<OwnedFd>> {
            let theirs = File::open(format!("/proc/{pid}/ns/{name}"))?;
            let own = std::fs::metadata(format!("/proc/self/ns/{name}"))?;
            let metadata = theirs.metadata()?;
            let same = metadata.ino() == own.ino() && metadata.dev() == own.dev();
            Ok(if same { None } else { Some(theirs.into()) })
        };
        let join = |name: &str| open(name).map(|fd| fd.map_or(Namespace::Host, Namespace::Join));
        Ok(Namespaces {
            user: open("user")?.map_or(UserNs::Host, UserNs::Join),
            mount: join("mnt")?,
            pid: join("pid")?,
            network: join("net")?,
            ipc: join("ipc")?,
            uts: join("uts")?,
            cgroup: join("cgroup")?,
            time: None,
            time_joined: open("time")?,
            network_messages: None,
        })
    }
}

/// The user namespace of a running process, where this one may make containers in it: a child of its own namespace in
/// which its own IDs, and no others, are what they are outside.
///
/// # Errors
/// The process has ended or may not be looked into, or its namespace is another one.
pub fn user_namespace_of_caller(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: geteuid(2) and getegid(2) have no preconditions and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let theirs: OwnedFd = File::open(format!("/proc/{pid}/ns/user"))?.into();
    let parent = process::parent_of_namespace(theirs.as_raw_fd())
        .map_err(|Errno(errno)| io::Error::from_raw_os_error(errno))?;
    let (parent, own) = (File::from(parent).metadata()?, std::fs::metadata("/proc/self/ns/user")?);
    let maps = |file: &str, id: u32| -> io::Result<bool> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
        Ok(text.split_whitespace().eq([id.to_string().as_str(), &id.to_string(), "1"]))
    };
    let same = (parent.dev(), parent.ino()) == (own.dev(), own.ino());
    if !same || !maps("uid_map", uid)? || !maps("gid_map", gid)? {
        return Err(io::Error::other("its user namespace is not one of this user's ID in this one"));
    }
    Ok(theirs)
}

/// The user namespace.
#[derive(Debug, Default)]
pub enum UserNs {
    /// That of the caller.
    #[default]
    Host,
    New {
        uids: Vec<IdMapping>,
        gids: Vec<IdMapping>,
    },
    Join(OwnedFd),
}

/// Offsets of the clocks of a time namespace, in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimeOffsets {
    pub monotonic: i128,
    pub boottime: i128,
}

/// Something mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute, in the container; made where it is missing.
    pub destination: PathBuf,
    pub source: MountSource,
    pub flags: MountFlags,
    pub propagation: Option<Propagation>,
    /// IDs of the source appear mapped (needs privileges over the source's file system).
    pub idmap: Option<(Vec<IdMapping>, Vec<IdMapping>)>,
    /// Where it cannot be mounted the start goes on, and [`crate::Child::warnings`] says so.
    pub optional: bool,
}

impl Mount {
    /// Without options.
    pub fn new(destination: impl Into<PathBuf>, source: MountSource) -> Mount {
        let (destination, flags) = (destination.into(), MountFlags::default());
        Mount { destination, source, flags, propagation: None, idmap: None, optional: false }
    }
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A file or folder of the host; `recursive` takes along what is mounted below it.
    Bind {
        source: PathBuf,
        recursive: bool,
    },
    /// A file or folder of one of [`Setup::prepared`], whose place this is. Links lead nowhere outside of it.
    Inside {
        place: PathBuf,
        path: PathBuf,
        directory: bool,
    },
    /// A new file system of a type that the kernel makes from nothing, with its options
    /// (`("size", "65536k")`, flags with an empty value).
    Filesystem {
        kind: String,
        source: String,
        options: Vec<(String, String)>,
    },
    Proc,
    Sysfs,
    /// A tmpfs with the standard nodes, links, pts and shm folders.
    Dev,
    /// Nothing yet: the place is made where it is missing.
    Place {
        directory: bool,
    },
    Devpts,
    Mqueue,
    /// The container's own cgroup hierarchy, as the host lays it out.
    Cgroup,
}

/// Flags of a mount (mount_setattr(2)); `recursive_*` hold for what is mounted below as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountFlags {
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub nodiratime: bool,
    pub relatime: bool,
    pub strictatime: bool,
    pub nosymfollow: bool,
    /// The opposites: a copy of a mount has the flags of its source until they are taken away.
    pub writable: bool,
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    pub diratime: bool,
    pub symfollow: bool,
    /// The other flags hold below, too.
    pub recursive: bool,
    /// A tmpfs shows what the image has at its place (copied before it is mounted).
    pub copy_up: bool,
    /// It becomes read-only when everything is in its place, with what is mounted below it left as it is.
    pub sealed: bool,
}

/// A device node.
#[derive(Debug, Clone)]
pub struct DeviceNode {
    pub path: PathBuf,
    /// `libc::S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The host's node, bound where nodes cannot be made; the node's own path where not given.
    pub source: Option<PathBuf>,
}

/// The process that the container is for.
#[derive(Debug, Clone)]
pub struct Process {
    /// None where there is only an init that stays.
    pub args: Vec<Vec<u8>>,
    /// `NAME=value`; PATH of it is searched for the program.
    pub env: Vec<Vec<u8>>,
    pub cwd: PathBuf,
    /// Make the working folder where it is missing.
    pub create_cwd: bool,
    /// Folders to try, in this order, where the working folder is not there or cannot be entered.
    pub cwd_else: Vec<PathBuf>,
    /// Descriptors above those of [`Stdio`] that are open without `O_CLOEXEC` stay open.
    pub keep_descriptors: bool,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: Option<u32>,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    /// The AppArmor profile that the program runs under.
    pub apparmor: Option<String>,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
    /// Installed in this order, after everything else.
    pub seccomp: Vec<Bpf>,
    /// A terminal of the container's own, of this many rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// Process 1 is our own: it reaps orphans, forwards signals, and ends with the program's code.
    pub init: bool,
    /// That process stays when the program has ended, until it is told to end (SIGINT, SIGTERM) and nobody is left.
    pub init_stays: bool,
    /// Leave the parent's session and process group: always with a terminal.
    pub new_session: bool,
    pub scheduling: Scheduling,
}

impl Process {
    /// Root in `/` with docker's capabilities and a PATH, in a session of its own.
    pub fn new(args: &[&str]) -> Process {
        Process {
            args: args.iter().map(|a| a.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_vec()],
            cwd: "/".into(),
            create_cwd: false,
            cwd_else: Vec::new(),
            keep_descriptors: false,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            umask: None,
            capabilities: Capabilities::of(CapabilitySet::CONTAINER),
            no_new_privileges: true,
            apparmor: None,
            rlimits: Vec::new(),
            oom_score_adj: None,
            seccomp: Vec::new(),
            terminal: None,
            init: false,
            init_stays: false,
            new_session: true,
            scheduling: Scheduling::default(),
        }
    }
}

/// Scheduling attributes that OCI's process object knows.
#[derive(Debug, Clone, Default)]
pub struct Scheduling {
    /// Class and level as ioprio_set(2) wants them.
    pub io_priority: Option<(u8, u8)>,
    /// Policy, nice, priority, flags, runtime, deadline, period as sched_setattr(2) wants them.
    pub policy: Option<SchedulingPolicy>,
    /// CPU indices for the program.
    pub affinity: Option<Vec<u32>>,
    /// personality(2).
    pub personality: Option<u64>,
}

/// sched_setattr(2).
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedulingPolicy {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// The five sets (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub permitted: CapabilitySet,
    pub inheritable: CapabilitySet,
    pub ambient: CapabilitySet,
}

impl Capabilities {
    /// One set as bounding, effective and permitted; nothing is inherited (CVE-2022-29162).
    pub fn of(set: CapabilitySet) -> Self {
        Capabilities { bounding: set, effective: set, permitted: set, ..Default::default() }
    }
}

/// setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `libc::RLIMIT_*`.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
    /// A default gives in to the caller's own hard limit; a wish of the user's fails.
    pub clamp: bool,
}

/// Standard streams. With a terminal, all three are the terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    /// `None` inherits the caller's.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Further descriptors, which become 3, 4, … of the program.
    pub further: Vec<OwnedFd>,
}

/// How the process gets into its cgroups.
#[derive(Debug, Default)]
pub struct CgroupEntry {
    /// A folder of a v2 hierarchy.
    pub v2: Option<OwnedFd>,
    /// Open `cgroup.procs` files of v1 hierarchies.
    pub v1_procs: Vec<OwnedFd>,
}

/// Where the child waits for the parent.
#[derive(Debug, Default)]
pub struct Gate {
    /// When the namespaces exist, before the root is entered: [`crate::Pending::proceed`] lets it go on.
    pub before_root: bool,
    /// When all is set up, before the program: [`crate::Pending::proceed`] again, or a byte read from this
    /// descriptor (a FIFO that `start` opens).
    pub before_exec: Option<OwnedFd>,
    /// While it waits at a gate, the process may be looked into and joined by the user who owns its user namespace,
    /// as hooks in the container need it. So may an init that stays.
    pub open_to_owner: bool,
    /// Look before that gate whether the program is there and may be run.
    pub check_program: bool,
    /// Where a failure after that gate is reported, for [`crate::late_failure`]: it closes when the program runs.
    pub late_report: Option<OwnedFd>,
}
