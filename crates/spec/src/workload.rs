//! The description of something to run: what every door translates its own format into.
//!
//! A workload says what is wanted, not how it is done: the engine merges it with the image's
//! configuration and hands a lower-level set-up to the sandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::Healthcheck;
use crate::port::Port;
use crate::resources::{Resources, Rlimit};
use crate::volume::VolumeSpec;
use crate::{Digest, Error, LogOptions, NetworkUse, Platform, Result};

/// What is to run, in which root, between which walls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// The name of the container; the engine makes one up where there is none.
    pub name: Option<String>,
    pub root: Root,
    /// Replaces the image's entrypoint; an empty list clears it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command where it is not empty.
    pub command: Vec<String>,
    /// `NAME=value`, in order; later ones win over the image's and over earlier ones.
    pub env: Vec<String>,
    pub working_dir: Option<PathBuf>,
    /// `user[:group]`, by name or number, resolved in the container.
    pub user: Option<String>,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
    pub hostname: Option<String>,
    pub tty: bool,
    /// Whether the caller's standard input is passed on.
    pub interactive: bool,
    /// Remove the container when it ends.
    pub remove: bool,
    /// Run our own init as process 1, which reaps orphans and forwards signals.
    pub init: bool,
    /// That init stays when the program has ended, until it is told to end and nobody is left.
    pub init_stays: bool,
    pub read_only: bool,
    pub mounts: Vec<Mount>,
    /// The volumes that the image declares are made for the container, too.
    pub image_volumes: bool,
    pub devices: Vec<Device>,
    pub resources: Resources,
    pub rlimits: Vec<Rlimit>,
    /// Size of /dev/shm in bytes; 64 MiB where not given.
    pub shm_size: Option<u64>,
    pub network: NetworkMode,
    /// Ports of the host that are the workload's, where it has a network.
    pub ports: Vec<Port>,
    pub dns: Dns,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub uts: NamespaceMode,
    pub cgroupns: NamespaceMode,
    pub userns: UserNamespace,
    pub security: Security,
    pub isolation: Isolation,
    pub sysctls: BTreeMap<String, String>,
    /// Lines for /etc/hosts, `name:address`.
    pub extra_hosts: Vec<String>,
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and the kill; 10 where not given.
    pub stop_timeout: Option<u64>,
    pub restart: RestartPolicy,
    /// What it has to do with a pod.
    pub pod: Option<Pod>,
    /// Standard input ends for the program when the first who attached to it has no more.
    pub stdin_once: bool,
    pub log: LogOptions,
    /// Replaces what the image says of how its health is looked at, each part that is given.
    pub health: Option<Healthcheck>,
    pub labels: BTreeMap<String, String>,
    pub platform: Option<Platform>,
    /// Run as the caller in the current folder, with it and the home visible (`--here`).
    pub here: bool,
    /// Where what is written to the root goes.
    pub writable: Writable,
    /// Further layers between the root and what is written, bottom first.
    pub overlays: Vec<Overlay>,
    /// How a file with a file system in it is mounted.
    pub image_mount: ImageMount,
    pub run_as: RunAs,
    /// Which file systems of the kernel's, and which files of /etc, the container has.
    pub system: SystemFiles,
    /// The environment is `env` and nothing else: neither the image's, nor PATH, HOME and HOSTNAME of ours.
    pub bare_env: bool,
    /// Further folders to start in, tried in this order, where the one before is not there or shut.
    pub working_dir_else: Vec<PathBuf>,
    /// The working directory has to be there; else it is made where it is missing.
    pub existing_working_dir: bool,
    /// The caller's open descriptors above 2 stay open, such as the one in `PMI_FD`.
    pub keep_descriptors: bool,
    /// The caller's umask rather than 022.
    pub keep_umask: bool,
    /// Stay in the caller's session and process group, so that the caller's terminal is the program's as well.
    pub keep_session: bool,
}

/// A pod: containers that share namespaces, which come and go together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pod {
    /// The one whose namespaces they are. It runs no program.
    Owner(PodShares),
    /// One of them, and the ID of that one.
    Member(String),
}

/// The namespaces that containers of a pod share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodShares {
    pub network: bool,
    pub ipc: bool,
    pub uts: bool,
    pub pid: bool,
}

impl Default for PodShares {
    /// As Podman and Kubernetes have it.
    fn default() -> PodShares {
        PodShares { network: true, ipc: true, uts: true, pid: false }
    }
}

impl PodShares {
    /// Reads names of namespaces with commas between; `none` for none of them.
    ///
    /// # Errors
    /// One is no namespace that can be shared.
    pub fn parse(text: &str) -> Result<PodShares> {
        let mut out = PodShares { network: false, ipc: false, uts: false, pid: false };
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty() && *word != "none") {
            match word {
                "net" => out.network = true,
                "ipc" => out.ipc = true,
                "uts" => out.uts = true,
                "pid" => out.pid = true,
                _ => {
                    return Err(Error::new(format!("invalid namespace to share '{word}'"))
                        .with_hint("known are net, ipc, uts and pid, with commas between, or none"));
                }
            }
        }
        Ok(out)
    }
}

/// The root file system of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// An image in the store: the digest of its manifest, and how the caller named it.
    Image { manifest: Digest, name: String },
    /// A folder; it is used as it is, without a writable layer over it, where [`Workload::writable`] says nothing else.
    Directory(PathBuf),
    /// A file that holds the file system.
    File(ImageFile),
}

/// A file system in a file: all of it, or a part such as a partition of a SIF file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    pub path: PathBuf,
    pub kind: FileSystemKind,
    /// Bytes before it.
    #[serde(default)]
    pub offset: u64,
    /// Bytes of it; up to the end of the file where not given.
    #[serde(default)]
    pub size: Option<u64>,
}

/// A kind of file system that images are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystemKind {
    Squashfs,
    /// ext2, ext3 or ext4.
    Ext,
    /// SquashFS in a container of LUKS2.
    LuksSquashfs,
    /// SquashFS in a file that gocryptfs encrypted.
    GocryptfsSquashfs,
}

impl FileSystemKind {
    /// Whether it takes a key to read it.
    pub fn is_encrypted(self) -> bool {
        matches!(self, FileSystemKind::LuksSquashfs | FileSystemKind::GocryptfsSquashfs)
    }
}

/// How a file system in a file gets into the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageMount {
    /// Root: by the kernel, where it can, else as others. Others: by our own server.
    #[default]
    Auto,
    /// By the kernel, on a loop device: for root.
    Kernel,
    /// By a server in the process that stays with the container (FUSE).
    Fuse,
    /// Unpacked into the store first.
    Unpack,
}

impl ImageMount {
    /// The words by which people choose.
    pub const WORDS: [&str; 4] = ["auto", "kernel", "fuse", "unpack"];

    /// Reads one of [`ImageMount::WORDS`].
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => ImageMount::Auto,
            "kernel" => ImageMount::Kernel,
            "fuse" => ImageMount::Fuse,
            "unpack" => ImageMount::Unpack,
            _ => {
                return Err(Error::new(format!("unknown way to mount an image: '{text}'"))
                    .with_hint(format!("known are {}", ImageMount::WORDS.join(", "))));
            }
        })
    }
}

/// Where what a container writes to its root goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writable {
    /// An image: into a layer of the container's own, in the store. A folder: into that folder.
    #[default]
    Usual,
    /// Into memory, and away with the container. Bytes; half the memory where not given.
    Memory { size: Option<u64> },
    /// Nowhere: the root is read-only. Missing places of mounts are made all the same, and seen by the container only.
    Nowhere,
    /// Into the folders `upper` and `work` of this folder, which stays.
    Folder(PathBuf),
    /// Into those of this ext3 image, which stays. One container at a time; for users other than root with `remove` only, and
    /// by programs of the host.
    File(ImageFile),
}

/// A layer over the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// A folder; of one that has a folder `upper`, as [`Writable::Folder`] leaves it, that one.
    Folder(PathBuf),
    File(ImageFile),
}

/// Who the process of a workload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunAs {
    /// [`Workload::user`], or whom the image names.
    #[default]
    Image,
    /// [`Workload::user`]; their own group is not among the supplementary ones as well.
    Given,
    /// The caller, with their IDs and groups; who that is, is not looked up in the image.
    Caller,
}

/// The file systems of the kernel's in a container, and the engine's own files in /etc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemFiles {
    pub dev: SystemMount,
    pub proc: SystemMount,
    pub sys: SystemMount,
    /// Leave /etc/hosts, /etc/hostname and /etc/resolv.conf to the image and to [`Workload::mounts`].
    pub bare_etc: bool,
}

/// Whether a file system of the kernel's is the container's own, the host's with all that is mounted there, or missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemMount {
    #[default]
    New,
    Host,
    None,
}

impl Default for Root {
    fn default() -> Self {
        Root::Directory(PathBuf::new())
    }
}

/// Something of the host, or something new, that appears in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    pub kind: MountKind,
    pub read_only: bool,
    /// Where it cannot be mounted, there is a warning instead of an error.
    #[serde(default)]
    pub optional: bool,
}

/// What stands behind a [`Mount`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum MountKind {
    Bind {
        source: PathBuf,
        /// With everything mounted below it.
        recursive: bool,
        /// Make the source as a folder where it is missing (`-v`), rather than fail (`--mount`).
        create_source: bool,
        propagation: Propagation,
        /// A read-only recursive bind is read-only below too, or fails (`rro`).
        recursive_read_only: bool,
        #[serde(default)]
        owners: Owners,
    },
    /// A named volume; `None` is an anonymous one, which gets a name when the container is made.
    Volume {
        name: Option<String>,
        /// An empty volume gets what the image has at its place.
        copy_up: bool,
        /// A file or folder of the volume instead of all of it; no link leads out of it.
        #[serde(default)]
        subpath: Option<PathBuf>,
        #[serde(default)]
        owners: Owners,
        /// How it is made where it is not there yet.
        #[serde(default)]
        make: VolumeSpec,
    },
    Tmpfs {
        /// Bytes; half the memory where not given.
        size: Option<u64>,
        /// Permission bits; 1777 where not given.
        mode: Option<u32>,
        /// Further options as mount(8) knows them: `noexec`, `nosuid`, `uid=5`.
        options: Vec<String>,
    },
    /// A file that is written for the container: passwd(5), resolv.conf(5).
    File { text: String, mode: u32 },
    /// A file or folder of an image file.
    Image { image: ImageFile, inside: PathBuf },
    /// A file system that a program serves (fuse(4)), for containers in the foreground. It is started before the workload's own,
    /// with the words `/dev/fd/3`, which is the device, and `-f` in addition.
    Fuse {
        program: Vec<String>,
        /// The program is one of the container's, not of the host's.
        inside: bool,
        /// It goes into the background by itself when it serves; so `-f` is left out, and its end is waited for.
        daemon: bool,
    },
}

/// Whose the files behind a mount are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owners {
    /// Those who own them.
    #[default]
    Kept,
    /// The owner of the source and the user of the container change places: what either writes is the other's (`idmap`).
    Swapped,
    /// IDs on disk (`inside`) appear as others (`outside`) in the container (`idmap=uids=…;gids=…`).
    Mapped { uids: Vec<IdMapping>, gids: Vec<IdMapping> },
    /// All of them are given to the user of the container, for good (`U`).
    Given,
}

/// How mounts made later cross a bind mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    Private,
    #[default]
    Rprivate,
    Slave,
    Rslave,
    Shared,
    Rshared,
    Unbindable,
    Runbindable,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub source: PathBuf,
    pub destination: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// Which network a workload sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// What the engine takes where nothing is said: [`NetworkMode::User`] for ordinary users, the usual bridge for root.
    #[default]
    Default,
    /// One of its own, from which a process of the caller's leads to the world: no rights on the host are needed.
    User {
        /// Its router stands for the host's loopback.
        host_loopback: bool,
    },
    /// Only a loopback device of its own.
    None,
    Host,
    Container(String),
    /// A network namespace by path.
    Path(PathBuf),
    /// Networks of the engine's, the one with the way out first.
    Networks(Vec<NetworkUse>),
}

/// Whether a namespace is the workload's own, the host's, or another container's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamespaceMode {
    #[default]
    Private,
    Host,
    Container(String),
    Path(PathBuf),
}

/// How user and group IDs of the workload map to the host's (user_namespaces(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespace {
    /// Root: the host's. Others: their own, with subuids where there are some, else one ID.
    #[default]
    Auto,
    Host,
    /// The caller's ID is the same inside (as with `--here`).
    KeepId,
    /// These mappings.
    Map {
        uids: Vec<IdMapping>,
        gids: Vec<IdMapping>,
    },
}

/// `length` IDs from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

/// What a workload may do beyond the ordinary, or not even that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    pub privileged: bool,
    /// What `cap_add` and `cap_drop` start from.
    pub capabilities: CapabilityBase,
    /// Names with or without `CAP_`, upper or lower case, or `ALL`.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    /// `None`: on for ordinary users, off for root, as Docker has it.
    pub no_new_privileges: Option<bool>,
    pub seccomp: SeccompChoice,
    /// Leave /proc and /sys unmasked (`systempaths=unconfined`).
    pub unmask_system_paths: bool,
}

/// The capabilities of a workload before some are added or dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapabilityBase {
    /// Docker's for root, and none in effect for others.
    #[default]
    Container,
    /// All that root of this user namespace has, and none in effect for others.
    Caller,
    /// None, not even to be had by a set-uid program.
    None,
}

/// Which system calls are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompChoice {
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON form.
    Profile(PathBuf),
}

/// Which wall stands around a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Namespaces of this kernel.
    #[default]
    Sandbox,
    /// A kernel of its own.
    Vm,
    /// None: a plain process.
    None,
}

/// When an ended container starts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    No,
    OnFailure {
        max_retries: Option<u32>,
    },
    Always,
    UnlessStopped,
}

/// Whom a workload asks for names; where a list is empty, those that the host asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl RestartPolicy {
    /// Reads `no`, `always`, `unless-stopped`, `on-failure` and `on-failure:N`.
    ///
    /// # Errors
    /// The policy is not known, or its number is none.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::new(format!("invalid restart policy '{text}'"))
                .with_hint("known are no, on-failure[:MAX-RETRIES], always and unless-stopped")
        };
        Ok(match text.split_once(':').unwrap_or((text, "")) {
            ("no" | "", "") => RestartPolicy::No,
            ("always", "") => RestartPolicy::Always,
            ("unless-stopped", "") => RestartPolicy::UnlessStopped,
            ("on-failure", "") => RestartPolicy::OnFailure { max_retries: None },
            ("on-failure", number) => {
                let number: u32 = number.parse().map_err(|_| bad())?;
                RestartPolicy::OnFailure { max_retries: Some(number).filter(|n| *n > 0) }
            }
            _ => return Err(bad()),
        })
    }

    /// Docker's name of it.
    pub fn name(self) -> &'static str {
        match self {
            RestartPolicy::No => "no",
            RestartPolicy::OnFailure { .. } => "on-failure",
            RestartPolicy::Always => "always",
            RestartPolicy::UnlessStopped => "unless-stopped",
        }
    }
}

/// When an image is fetched before a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    #[default]
    Missing,
    Always,
    /// As `Always`, but what is here is used where the registry cannot be reached.
    Newer,
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_survives_json() {
        let workload = Workload {
            root: Root::Image { manifest: Digest::sha256(&[1; 32]), name: "x".into() },
            mounts: vec![Mount {
                destination: "/data".into(),
                kind: MountKind::Tmpfs { size: Some(1), mode: None, options: vec![] },
                read_only: false,
                optional: false,
            }],
            overlays: vec![Overlay::File(ImageFile {
                path: "/x.sqfs".into(),
                kind: FileSystemKind::Squashfs,
                offset: 1,
                size: None,
            })],
            writable: Writable::Memory { size: Some(1) },
            restart: RestartPolicy::OnFailure { max_retries: Some(3) },
            ..Default::default()
        };
        let text = serde_json::to_string(&workload).unwrap();
        assert_eq!(serde_json::from_str::<Workload>(&text).unwrap(), workload);
        assert_eq!(serde_json::from_str::<Workload>("{}").unwrap(), Workload::default());
    }

    #[test]
    fn ways_to_mount_an_image() {
        for word in ImageMount::WORDS {
            let way = ImageMount::parse(word).unwrap();
            assert_eq!(serde_json::to_string(&way).unwrap(), format!("\"{word}\""));
        }
        assert!(ImageMount::parse("loop").is_err());
    }
}
