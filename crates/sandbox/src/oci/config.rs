//! `config.json` of a bundle (OCI runtime-spec 1.x, config.md and config-linux.md), as far as Linux has it.
//!
//! Members that are not listed here are ignored, as the specification asks (extensibility), and `null` may stand
//! where a list or an object may, as Go writes empty ones. What is listed but cannot be honoured is
//! refused by name in [`check`](Config::check).

use std::collections::BTreeMap;
use std::path::PathBuf;

use isles_spec::null_default;
use serde::Deserialize;

use super::{Error, Result};

/// A configuration longer than this is refused unread.
pub const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub oci_version: String,
    pub process: Option<Process>,
    pub root: Option<Root>,
    pub hostname: String,
    pub domainname: String,
    #[serde(deserialize_with = "null_default")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "null_default")]
    pub hooks: Hooks,
    #[serde(deserialize_with = "null_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_default")]
    pub linux: Linux,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    pub path: PathBuf,
    pub readonly: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    pub destination: PathBuf,
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub kind: String,
    #[serde(deserialize_with = "null_default")]
    pub source: String,
    #[serde(deserialize_with = "null_default")]
    pub options: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "null_default")]
    pub gid_mappings: Vec<IdMapping>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    #[serde(deserialize_with = "null_default")]
    pub user: User,
    #[serde(deserialize_with = "null_default")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub env: Vec<String>,
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    #[serde(deserialize_with = "null_default")]
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub apparmor_profile: String,
    pub selinux_label: String,
    pub oom_score_adj: Option<i32>,
    pub io_priority: Option<IoPriority>,
    pub scheduler: Option<Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    #[serde(deserialize_with = "null_default")]
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    #[serde(deserialize_with = "null_default")]
    pub bounding: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub effective: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub permitted: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub inheritable: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub ambient: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    pub class: String,
    pub priority: i32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    pub policy: String,
    pub nice: i32,
    pub priority: i32,
    #[serde(deserialize_with = "null_default")]
    pub flags: Vec<String>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CpuAffinity {
    pub initial: String,
    #[serde(rename = "final")]
    pub last: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(deserialize_with = "null_default")]
    pub prestart: Vec<Hook>,
    #[serde(deserialize_with = "null_default")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "null_default")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "null_default")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "null_default")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "null_default")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    fn each(&self) -> impl Iterator<Item = &Hook> {
        [
            &self.prestart,
            &self.create_runtime,
            &self.create_container,
            &self.start_container,
            &self.poststart,
            &self.poststop,
        ]
        .into_iter()
        .flatten()
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Hook {
    pub path: PathBuf,
    #[serde(deserialize_with = "null_default")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    #[serde(deserialize_with = "null_default")]
    pub namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "null_default")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "null_default")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "null_default")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    #[serde(deserialize_with = "null_default")]
    pub devices: Vec<Device>,
    #[serde(deserialize_with = "null_default")]
    pub cgroups_path: String,
    pub resources: Option<Resources>,
    #[serde(deserialize_with = "null_default")]
    pub rootfs_propagation: String,
    pub seccomp: Option<serde_json::Value>,
    #[serde(deserialize_with = "null_default")]
    pub sysctl: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_default")]
    pub masked_paths: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub readonly_paths: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub mount_label: String,
    pub intel_rdt: Option<serde_json::Value>,
    pub memory_policy: Option<serde_json::Value>,
    #[serde(deserialize_with = "null_default")]
    pub net_devices: BTreeMap<String, serde_json::Value>,
    pub personality: Option<Personality>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "null_default")]
    pub path: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: PathBuf,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Personality {
    pub domain: String,
    #[serde(deserialize_with = "null_default")]
    pub flags: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    #[serde(deserialize_with = "null_default")]
    pub devices: Vec<DeviceRule>,
    #[serde(deserialize_with = "null_default")]
    pub memory: Memory,
    #[serde(deserialize_with = "null_default")]
    pub cpu: Cpu,
    pub pids: Option<Pids>,
    #[serde(rename = "blockIO", deserialize_with = "null_default")]
    pub block_io: BlockIo,
    #[serde(deserialize_with = "null_default")]
    pub hugepage_limits: Vec<HugepageLimit>,
    #[serde(deserialize_with = "null_default")]
    pub network: Network,
    #[serde(deserialize_with = "null_default")]
    pub rdma: BTreeMap<String, Rdma>,
    #[serde(deserialize_with = "null_default")]
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub kind: String,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub access: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    pub check_before_update: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub burst: Option<u64>,
    pub period: Option<u64>,
    pub realtime_runtime: Option<i64>,
    pub realtime_period: Option<u64>,
    #[serde(deserialize_with = "null_default")]
    pub cpus: String,
    #[serde(deserialize_with = "null_default")]
    pub mems: String,
    pub idle: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pids {
    pub limit: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    pub weight: Option<u16>,
    #[serde(deserialize_with = "null_default")]
    pub weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "null_default")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "null_default")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "null_default")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "null_default")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightDevice {
    pub major: u64,
    pub minor: u64,
    pub weight: Option<u16>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ThrottleDevice {
    pub major: u64,
    pub minor: u64,
    pub rate: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Network {
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    #[serde(deserialize_with = "null_default")]
    pub priorities: Vec<InterfacePriority>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct InterfacePriority {
    pub name: String,
    pub priority: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rdma {
    pub hca_handles: Option<u32>,
    pub hca_objects: Option<u32>,
}

impl Config {
    /// Reads a configuration and checks what can be checked without looking at the host.
    pub fn parse(text: &[u8]) -> Result<Config> {
        if text.len() as u64 > MAX_BYTES {
            return Err(invalid(format!("it has {} bytes; {MAX_BYTES} is the most", text.len())));
        }
        let config: Config = serde_json::from_slice(text).map_err(|e| invalid(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        check_version(&self.oci_version)?;
        let linux = &self.linux;
        for (index, ns) in linux.namespaces.iter().enumerate() {
            if linux.namespaces[..index].iter().any(|other| other.kind == ns.kind) {
                return Err(invalid(format!("namespace '{}' is listed twice", ns.kind)));
            }
            if !ns.path.as_os_str().is_empty() && !ns.path.is_absolute() {
                return Err(invalid(format!("the path of namespace '{}' is not absolute", ns.kind)));
            }
        }
        if linux.cgroups_path.split('/').any(|part| part == "..") {
            return Err(invalid(format!("cgroupsPath '{}' contains '..'", linux.cgroups_path)));
        }
        for hook in self.hooks.each() {
            if !hook.path.is_absolute() || hook.path.components().any(|c| c.as_os_str() == "..") {
                return Err(invalid(format!("the path of hook '{}' is not absolute", hook.path.display())));
            }
            if hook.timeout.is_some_and(|t| t <= 0) {
                return Err(invalid(format!(
                    "the timeout of hook '{}' is not positive",
                    hook.path.display()
                )));
            }
        }
        for mount in &self.mounts {
            if mount.destination.as_os_str().is_empty() {
                return Err(invalid("a mount has no destination"));
            }
            if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
                return Err(invalid(format!(
                    "mount {} has uidMappings or gidMappings, but not both",
                    mount.destination.display()
                )));
            }
        }
        for (paths, what) in [(&linux.masked_paths, "maskedPaths"), (&linux.readonly_paths, "readonlyPaths")]
        {
            if let Some(path) = paths.iter().find(|p| !p.starts_with('/')) {
                return Err(invalid(format!("'{path}' in {what} is not absolute")));
            }
        }
        if linux.intel_rdt.is_some() {
            return Err(unsupported("linux.intelRdt"));
        }
        if linux.memory_policy.is_some() {
            return Err(unsupported("linux.memoryPolicy"));
        }
        if !linux.net_devices.is_empty() {
            return Err(unsupported("linux.netDevices"));
        }
        self.process.iter().try_for_each(Process::check)
    }

    /// The namespace of a kind: `None` where the host's is meant.
    pub fn namespace(&self, kind: &str) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|n| n.kind == kind)
    }

    /// Whether the container has a new or another's namespace of a kind.
    pub fn has_namespace(&self, kind: &str) -> bool {
        self.namespace(kind).is_some()
    }
}

impl Process {
    /// What is wrong with a process whatever the container is.
    pub fn check(&self) -> Result<()> {
        if self.cwd.is_empty() || !self.cwd.starts_with('/') {
            return Err(invalid(format!("process.cwd '{}' is not an absolute path", self.cwd)));
        }
        if self.args.is_empty() || self.args[0].is_empty() {
            return Err(invalid("process.args is empty"));
        }
        if let Some(text) = self.args.iter().chain(&self.env).chain([&self.cwd]).find(|t| t.contains('\0')) {
            return Err(invalid(format!("'{}' contains a zero byte", text.escape_default())));
        }
        for (index, limit) in self.rlimits.iter().enumerate() {
            if self.rlimits[..index].iter().any(|other| other.kind == limit.kind) {
                return Err(invalid(format!("{} is listed twice in process.rlimits", limit.kind)));
            }
            if limit.soft > limit.hard {
                return Err(invalid(format!("the soft limit of {} is above the hard limit", limit.kind)));
            }
        }
        Ok(())
    }
}

/// Any 1.x is understood: later minor versions only add members.
fn check_version(version: &str) -> Result<()> {
    let mut parts = version.split(['.', '-', '+']);
    let numeric = |p: Option<&str>| p.and_then(|p| p.parse::<u32>().ok());
    match (numeric(parts.next()), numeric(parts.next()), numeric(parts.next())) {
        (Some(1), Some(_), Some(_)) => Ok(()),
        (Some(major), Some(_), Some(_)) => {
            Err(invalid(format!("ociVersion {version} is not understood: major version {major}, not 1")))
        }
        _ => Err(invalid(format!("ociVersion '{version}' is not a semantic version"))),
    }
}

pub(super) fn invalid(why: impl Into<String>) -> Error {
    Error::Config(why.into())
}

fn unsupported(member: &str) -> Error {
    invalid(format!("{member} is not supported; remove it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text.as_bytes())
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.99.0", "1.2.0+dev", "1.0.0-rc5"] {
            assert!(parse(&format!(r#"{{"ociVersion":"{good}"}}"#)).is_ok(), "{good}");
        }
        for bad in ["", "1", "1.0", "0.9.0", "2.0.0", "v1.0.0", "latest"] {
            assert!(parse(&format!(r#"{{"ociVersion":"{bad}"}}"#)).is_err(), "{bad}");
        }
    }

    #[test]
    fn null_and_unknown_members_do_no_harm() {
        let config = parse(
            r#"{"ociVersion":"1.2.1","mounts":null,"hooks":null,"future":{"a":[1]},"annotations":null,
                "process":{"args":["a"],"cwd":"/","env":null,"rlimits":null,"user":{"uid":1,"gid":2},"novel":1},
                "linux":{"namespaces":null,"resources":{"devices":null,"memory":null,"blockIO":null},"sysctl":null}}"#,
        )
        .unwrap();
        assert_eq!(config.process.unwrap().user.uid, 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#""linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#, "'pid' is listed twice"),
            (r#""linux":{"namespaces":[{"type":"pid","path":"proc"}]}"#, "not absolute"),
            (r#""linux":{"cgroupsPath":"/a/../../b"}"#, "contains '..'"),
            (r#""linux":{"maskedPaths":["proc"]}"#, "maskedPaths is not absolute"),
            (r#""linux":{"intelRdt":{"closID":"x"}}"#, "linux.intelRdt is not supported"),
            (r#""linux":{"memoryPolicy":{"mode":"x"}}"#, "linux.memoryPolicy"),
            (r#""linux":{"netDevices":{"eth0":{}}}"#, "linux.netDevices"),
            (r#""hooks":{"prestart":[{"path":"sh"}]}"#, "not absolute"),
            (r#""hooks":{"poststop":[{"path":"/bin/../sh"}]}"#, "not absolute"),
            (r#""hooks":{"poststart":[{"path":"/sh","timeout":0}]}"#, "not positive"),
            (r#""mounts":[{"type":"tmpfs"}]"#, "no destination"),
            (
                r#""mounts":[{"destination":"/a","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
                "not both",
            ),
            (r#""process":{"args":["a"]}"#, "process.cwd"),
            (r#""process":{"args":["a"],"cwd":"tmp"}"#, "process.cwd 'tmp'"),
            (r#""process":{"cwd":"/"}"#, "process.args"),
            (r#""process":{"cwd":"/","args":["a\u0000b"]}"#, "zero byte"),
            (r#""process":{"cwd":"/","args":[7]}"#, "invalid"),
            (
                r#""process":{"cwd":"/","args":["a"],"rlimits":[{"type":"RLIMIT_CORE","soft":2,"hard":1}]}"#,
                "above the hard limit",
            ),
            (
                r#""process":{"cwd":"/","args":["a"],"rlimits":[{"type":"X","soft":1,"hard":1},{"type":"X","soft":1,"hard":1}]}"#,
                "X is listed twice",
            ),
        ] {
            let whole = if text.starts_with('"') {
                format!(r#"{{"ociVersion":"1.0.0",{text}}}"#)
            } else {
                text.to_owned()
            };
            let error = parse(&whole).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let long = vec![b' '; MAX_BYTES as usize + 1];
        assert!(Config::parse(&long).unwrap_err().to_string().contains("the most"));
    }
}
