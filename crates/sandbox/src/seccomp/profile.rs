//! Profiles: what is said about system calls, before it is turned into instructions.
//!
//! Docker's JSON form (`archMap`, `includes`, `excludes`, `minKernel`) and `linux.seccomp` of the OCI
//! runtime-spec (config-linux.md#seccomp) differ only in which members they have, so one reader takes both.

use std::borrow::Cow;

use isles_spec::{Error, Result, null_default};
use serde::Deserialize;

use super::Arch;
use crate::capability::CapabilitySet;

/// A profile longer than this is refused unread.
const MAX_BYTES: usize = 4 << 20;

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    KillThread,
    KillProcess,
    /// SIGSYS, with this number in `si_errno`.
    Trap(u16),
    /// The call fails with this number; 0 is success without effect.
    Errno(u16),
    /// A tracer is asked, with this number as its message.
    Trace(u16),
    Log,
    Allow,
    /// The listener decides (seccomp_unotify(2)).
    Notify,
}

impl Action {
    /// `SECCOMP_RET_*` with its data.
    pub(super) fn value(self) -> u32 {
        match self {
            Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Action::Trap(data) => libc::SECCOMP_RET_TRAP | u32::from(data),
            Action::Errno(data) => libc::SECCOMP_RET_ERRNO | u32::from(data),
            Action::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Action::Trace(data) => libc::SECCOMP_RET_TRACE | u32::from(data),
            Action::Log => libc::SECCOMP_RET_LOG,
            Action::Allow => libc::SECCOMP_RET_ALLOW,
        }
    }

    /// Whether a call that the profile does not know is kept from working by this default.
    pub(super) fn refuses(self) -> bool {
        matches!(self, Action::KillProcess | Action::KillThread | Action::Trap(_) | Action::Errno(_))
    }

    fn parse(name: &str, errno: Option<u32>) -> Result<Action> {
        let data =
            u16::try_from(errno.unwrap_or(libc::EPERM as u32)).ok().filter(|n| *n <= 4095).ok_or_else(
                || Error::new(format!("invalid errnoRet of {name}: an error number is at most 4095")),
            )?;
        Ok(match name {
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
            "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
            "SCMP_ACT_TRAP" => Action::Trap(0),
            "SCMP_ACT_ERRNO" => Action::Errno(data),
            "SCMP_ACT_TRACE" => Action::Trace(data),
            "SCMP_ACT_LOG" => Action::Log,
            "SCMP_ACT_ALLOW" => Action::Allow,
            "SCMP_ACT_NOTIFY" => Action::Notify,
            _ => {
                return Err(Error::new(format!("unknown seccomp action '{name}'")).with_hint(
                    "the actions are SCMP_ACT_ followed by ALLOW, ERRNO, KILL, KILL_PROCESS, KILL_THREAD, LOG, \
                     NOTIFY, TRACE or TRAP",
                ));
            }
        })
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// `argument & mask == value & mask`.
    MaskedEq {
        mask: u64,
    },
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub index: u8,
    pub compare: Compare,
    pub value: u64,
}

/// What happens to some calls when all conditions hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub names: Vec<Cow<'static, str>>,
    pub action: Action,
    pub conditions: Vec<Condition>,
}

/// `SECCOMP_FILTER_FLAG_*` that a profile asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    pub tsync: bool,
    pub log: bool,
    pub spec_allow: bool,
    pub wait_killable: bool,
}

impl Flags {
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;

    /// All that [`Profile::from_json`] knows, by name.
    pub const NAMES: [&str; 4] = [
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];

    pub(super) fn bits(self) -> libc::c_ulong {
        let on = |flag: bool, bit: libc::c_ulong| if flag { bit } else { 0 };
        on(self.tsync, libc::SECCOMP_FILTER_FLAG_TSYNC)
            | on(self.log, libc::SECCOMP_FILTER_FLAG_LOG)
            | on(self.spec_allow, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW)
            | on(self.wait_killable, Flags::WAIT_KILLABLE_RECV)
    }
}

/// What a profile's conditional parts depend on.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    pub arch: Arch,
    /// The bounding set that the container will have.
    pub capabilities: CapabilitySet,
    /// Version and patch level of the kernel.
    pub kernel: (u32, u32),
}

impl Host {
    /// This machine, for a container with these capabilities.
    ///
    /// # Errors
    /// On a processor without a table of system calls.
    pub fn here(capabilities: CapabilitySet) -> Result<Host> {
        let arch = Arch::native().ok_or_else(|| {
            Error::new(format!("no table of system calls for {}", std::env::consts::ARCH))
                .with_hint("run without a seccomp profile (--security-opt seccomp=unconfined)")
        })?;
        Ok(Host { arch, capabilities, kernel: kernel_version() })
    }
}

fn kernel_version() -> (u32, u32) {
    // SAFETY: utsname is plain bytes, and uname fills it with terminated strings.
    let release = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        std::ffi::CStr::from_ptr(name.release.as_ptr()).to_string_lossy().into_owned()
    };
    version(&release).unwrap_or((0, 0))
}

/// The first two numbers of `6.18.44-x`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Everything that [`compile`](super::compile) needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub default_action: Action,
    /// The interfaces with rules, the native one first; calls through others kill the thread.
    pub arches: Vec<Arch>,
    pub flags: Flags,
    pub rules: Vec<Rule>,
    /// Looked at before the rules, first match first.
    pub overrides: Vec<Rule>,
}

impl Profile {
    /// A profile without rules.
    pub fn new(arch: Arch, default_action: Action) -> Self {
        Profile {
            default_action,
            arches: vec![arch],
            flags: Flags::default(),
            rules: Vec::new(),
            overrides: Vec::new(),
        }
    }

    /// Reads Docker's or the OCI's form. Parts that are for other processors, capabilities or kernels are
    /// left out; names of calls that no table here knows are kept and have no effect, as with libseccomp.
    ///
    /// # Errors
    /// When the text is not such a profile: the message names the member.
    pub fn from_json(text: &[u8], host: &Host) -> Result<Profile> {
        if text.len() > MAX_BYTES {
            return Err(Error::new(format!(
                "the seccomp profile has {} bytes; {MAX_BYTES} is the most",
                text.len()
            )));
        }
        let document: Document = serde_json::from_slice(text).map_err(|e| {
            Error::new(format!("invalid seccomp profile: {e}")).with_hint(
                "a profile is JSON with defaultAction and syscalls, as Docker and the OCI define it",
            )
        })?;
        document.resolve(host)
    }

    /// Reads a `linux.seccomp` that is already JSON.
    pub fn from_value(value: serde_json::Value, host: &Host) -> Result<Profile> {
        let document: Document =
            serde_json::from_value(value).map_err(|e| Error::new(format!("invalid seccomp section: {e}")))?;
        document.resolve(host)
    }

    /// Whether some rule, or the default, asks a listener.
    pub fn listens(&self) -> bool {
        self.default_action == Action::Notify
            || self.rules.iter().chain(&self.overrides).any(|r| r.action == Action::Notify)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default, deserialize_with = "null_default")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "null_default")]
    arch_map: Vec<ArchMap>,
    #[serde(default, deserialize_with = "null_default")]
    flags: Vec<String>,
    #[serde(default, deserialize_with = "null_default")]
    syscalls: Vec<Syscalls>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default, deserialize_with = "null_default")]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscalls {
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "null_default")]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    errno: Option<String>,
    #[serde(default, deserialize_with = "null_default")]
    args: Vec<Argument>,
    #[serde(default, deserialize_with = "null_default")]
    includes: Filter,
    #[serde(default, deserialize_with = "null_default")]
    excludes: Filter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default, deserialize_with = "null_default")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "null_default")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Document {
    fn resolve(self, host: &Host) -> Result<Profile> {
        let default_action = Action::parse(
            &self.default_action,
            self.default_errno_ret.or(number(self.default_errno.as_deref())?),
        )?;
        if default_action == Action::Notify {
            return Err(Error::new("seccomp: SCMP_ACT_NOTIFY cannot be the default action").with_hint(
                "the listener could not be handed over: name the calls that it is to see in 'syscalls'",
            ));
        }
        let mut arches = vec![host.arch];
        let mapped = self
            .arch_map
            .iter()
            .filter(|m| m.architecture == host.arch.scmp())
            .flat_map(|m| m.sub_architectures.iter());
        for name in self.architectures.iter().chain(mapped) {
            if !name.starts_with("SCMP_ARCH_") {
                return Err(Error::new(format!("unknown seccomp architecture '{name}'")));
            }
            // Other processors' interfaces cannot be entered on this one; 32-bit ARM has no table and stays shut.
            let Some(arch) = Arch::from_scmp(name) else { continue };
            let foreign = (arch == Arch::Aarch64) != (host.arch == Arch::Aarch64);
            if !foreign && !arches.contains(&arch) {
                arches.push(arch);
            }
        }
        let mut flags = Flags::default();
        for flag in &self.flags {
            match flag.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => flags.tsync = true,
                "SECCOMP_FILTER_FLAG_LOG" => flags.log = true,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags.spec_allow = true,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => flags.wait_killable = true,
                _ => return Err(Error::new(format!("unknown seccomp flag '{flag}'"))),
            }
        }
        let mut rules = Vec::with_capacity(self.syscalls.len());
        for entry in self.syscalls {
            if entry.applies(host)? {
                rules.push(entry.rule()?);
            }
        }
        let profile = Profile { default_action, arches, flags, rules, overrides: Vec::new() };
        if flags.wait_killable && !profile.listens() {
            return Err(Error::new("seccomp: WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY"));
        }
        Ok(profile)
    }
}

impl Syscalls {
    fn applies(&self, host: &Host) -> Result<bool> {
        let has_cap = |name: &String| CapabilitySet::bit(name).is_some_and(|bit| host.capabilities.has(bit));
        let is_arch = |name: &String| name == host.arch.goarch();
        let (inc, exc) = (&self.includes, &self.excludes);
        let min = |f: &Filter| match &f.min_kernel {
            None => Ok(None),
            Some(text) => version(text)
                .map(|v| Some(host.kernel >= v))
                .ok_or_else(|| Error::new(format!("seccomp: '{text}' is not a kernel version"))),
        };
        Ok(inc.caps.iter().all(has_cap)
            && (inc.arches.is_empty() || inc.arches.iter().any(is_arch))
            && min(inc)?.unwrap_or(true)
            && !exc.caps.iter().any(has_cap)
            && !exc.arches.iter().any(is_arch)
            && !min(exc)?.unwrap_or(false))
    }

    fn rule(self) -> Result<Rule> {
        let action = Action::parse(&self.action, self.errno_ret.or(number(self.errno.as_deref())?))?;
        let mut names: Vec<Cow<'static, str>> = self.names.into_iter().map(Cow::Owned).collect();
        if !self.name.is_empty() {
            names.push(Cow::Owned(self.name));
        }
        // The descriptor of the listener is handed over with write(2) and sendmsg(2) while the filter is on.
        if action == Action::Notify && names.iter().any(|n| n == "write") {
            return Err(Error::new("seccomp: SCMP_ACT_NOTIFY cannot be used for write").with_hint(
                "the container could not start: the runtime itself must write after the filter is on",
            ));
        }
        let conditions = self.args.into_iter().map(Argument::condition).collect::<Result<_>>()?;
        Ok(Rule { names, action, conditions })
    }
}

impl Argument {
    fn condition(self) -> Result<Condition> {
        let index = u8::try_from(self.index).ok().filter(|i| *i < 6).ok_or_else(|| {
            Error::new(format!("seccomp: argument index {} does not exist; a call has six", self.index))
        })?;
        let (compare, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (Compare::Ne, self.value),
            "SCMP_CMP_LT" => (Compare::Lt, self.value),
            "SCMP_CMP_LE" => (Compare::Le, self.value),
            "SCMP_CMP_EQ" => (Compare::Eq, self.value),
            "SCMP_CMP_GE" => (Compare::Ge, self.value),
            "SCMP_CMP_GT" => (Compare::Gt, self.value),
            "SCMP_CMP_MASKED_EQ" => (Compare::MaskedEq { mask: self.value }, self.value_two),
            op => return Err(Error::new(format!("unknown seccomp operator '{op}'"))),
        };
        Ok(Condition { index, compare, value })
    }
}

/// The number of an error that podman's profiles give by name beside `errnoRet`.
fn number(name: Option<&str>) -> Result<Option<u32>> {
    let number = match name {
        None | Some("") => return Ok(None),
        Some("EPERM") => libc::EPERM,
        Some("ENOENT") => libc::ENOENT,
        Some("EIO") => libc::EIO,
        Some("EBADF") => libc::EBADF,
        Some("EAGAIN") => libc::EAGAIN,
        Some("ENOMEM") => libc::ENOMEM,
        Some("EACCES") => libc::EACCES,
        Some("EFAULT") => libc::EFAULT,
        Some("EBUSY") => libc::EBUSY,
        Some("EEXIST") => libc::EEXIST,
        Some("ENODEV") => libc::ENODEV,
        Some("EINVAL") => libc::EINVAL,
        Some("ENOTTY") => libc::ENOTTY,
        Some("ENOSPC") => libc::ENOSPC,
        Some("EROFS") => libc::EROFS,
        Some("ENOSYS") => libc::ENOSYS,
        Some("EAFNOSUPPORT") => libc::EAFNOSUPPORT,
        Some("EOPNOTSUPP" | "ENOTSUP") => libc::EOPNOTSUPP,
        Some("EPROTONOSUPPORT") => libc::EPROTONOSUPPORT,
        Some(other) => {
            return Err(Error::new(format!("seccomp: no error is known by the name '{other}'"))
                .with_hint("give its number as errnoRet"));
        }
    };
    Ok(Some(number as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { arch: Arch::X86_64, capabilities: CapabilitySet::CONTAINER, kernel: (6, 18) };

    #[test]
    fn conditional_parts() {
        let text = br#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":null}],
            "syscalls":[
              {"names":["a"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["b"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["c"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","s390"]}},
              {"names":["d"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["amd64"]}},
              {"names":["e"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.18"}},
              {"names":["f"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.19"}},
              {"names":["g"],"action":"SCMP_ACT_ERRNO","errno":"EINVAL","args":null,"includes":null}]}"#;
        let profile = Profile::from_json(text, &HOST).unwrap();
        let names: Vec<&str> = profile.rules.iter().map(|r| &*r.names[0]).collect();
        assert_eq!(names, ["b", "c", "e", "g"]);
        assert_eq!(profile.default_action, Action::Errno(38));
        assert_eq!(profile.rules[3].action, Action::Errno(22));
        assert_eq!(profile.arches, [Arch::X86_64, Arch::X86, Arch::X32]);
    }

    #[test]
    fn bad_profiles_are_named() {
        for (text, word) in [
            ("", "invalid seccomp profile"),
            ("[]", "invalid seccomp profile"),
            (r#"{"syscalls":[]}"#, "defaultAction"),
            (r#"{"defaultAction":"ALLOW"}"#, "unknown seccomp action 'ALLOW'"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "4095"),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "default action"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["x86"]}"#, "architecture 'x86'"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["TSYNC"]}"#, "flag 'TSYNC'"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ERRNO",
                    "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
                "index 6",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ERRNO",
                    "args":[{"index":0,"value":1,"op":"=="}]}]}"#,
                "operator '=='",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
                "write",
            ),
        ] {
            let error = Profile::from_json(text.as_bytes(), &HOST).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
