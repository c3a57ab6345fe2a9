//! What can go wrong at a start, by the step that failed.

use std::fmt;
use std::io;
use std::path::Path;

use isles_spec::error::Hint;

/// The steps of a start, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Prepare,
    Clone,
    JoinNamespace,
    MapIds,
    EnterCgroup,
    BecomeRoot,
    Session,
    Hostname,
    Loopback,
    Devices,
    TimeOffsets,
    Propagation,
    Image,
    Root,
    MountPoint,
    Mount,
    MountFlags,
    CopyUp,
    Device,
    Mask,
    ReadOnlyPath,
    Sysctl,
    PivotRoot,
    Terminal,
    Streams,
    Scheduling,
    Rlimit,
    UserNamespace,
    Interpreter,
    OomScore,
    AppArmor,
    Capabilities,
    User,
    WorkingDirectory,
    NoNewPrivileges,
    Seccomp,
    Gate,
    Exec,
}

impl Step {
    pub(crate) fn from_byte(b: u8) -> Step {
        const LAST: u8 = Step::Exec as u8;
        if b > LAST {
            return Step::Prepare;
        }
        // SAFETY: the enum is one byte, its values are 0 to LAST without a gap, and b is one of them.
        unsafe { std::mem::transmute::<u8, Step>(b) }
    }

    fn words(self) -> &'static str {
        match self {
            Step::Prepare => "prepare the container",
            Step::Clone => "make a process with its namespaces",
            Step::JoinNamespace => "join a namespace",
            Step::MapIds => "map user and group IDs",
            Step::EnterCgroup => "enter the control group",
            Step::BecomeRoot => "become root of the user namespace",
            Step::Session => "begin a session",
            Step::Hostname => "set the host name",
            Step::Loopback => "bring up the loopback device",
            Step::Devices => "make the devices of the network",
            Step::TimeOffsets => "set the offsets of the clocks",
            Step::Propagation => "make mounts private",
            Step::Image => "mount the image",
            Step::Root => "mount the root file system",
            Step::MountPoint => "make the mount point",
            Step::Mount => "mount",
            Step::MountFlags => "set the options of the mount",
            Step::CopyUp => "copy what the image has at the mount",
            Step::Device => "make the device",
            Step::Mask => "hide",
            Step::ReadOnlyPath => "protect",
            Step::Sysctl => "set the kernel parameter",
            Step::PivotRoot => "enter the root file system",
            Step::Terminal => "set up the terminal",
            Step::Streams => "set up the standard streams",
            Step::Scheduling => "set the scheduling of the process",
            Step::Rlimit => "set the resource limit",
            Step::UserNamespace => "make a user namespace for the interpreter of foreign programs",
            Step::Interpreter => "register the interpreter of foreign programs",
            Step::AppArmor => "enter the AppArmor profile",
            Step::OomScore => "set the out-of-memory score",
            Step::Capabilities => "set capabilities",
            Step::User => "become the user",
            Step::WorkingDirectory => "enter the working directory",
            Step::NoNewPrivileges => "set no_new_privs",
            Step::Seccomp => "install the system call filter",
            Step::Gate => "wait for the start",
            Step::Exec => "run",
        }
    }
}

/// A start that failed: what was being done, with what, and what the kernel said.
#[derive(Debug)]
pub struct SpawnError {
    pub step: Step,
    /// The path, name or value that the step was about.
    pub object: String,
    pub cause: io::Error,
}

impl SpawnError {
    pub(crate) fn new(step: Step, object: impl Into<String>, errno: i32) -> Self {
        SpawnError { step, object: object.into(), cause: io::Error::from_raw_os_error(errno) }
    }

    pub(crate) fn value(what: &str, value: &str) -> Self {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, format!("invalid {what}"));
        SpawnError { step: Step::Prepare, object: value.to_owned(), cause }
    }

    pub(crate) fn nul(what: &str, value: &[u8]) -> Self {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, format!("{what} with a NUL byte"));
        SpawnError { step: Step::Prepare, object: String::from_utf8_lossy(value).into_owned(), cause }
    }

    pub(crate) fn source(path: &Path, error: &io::Error) -> Self {
        let cause =
            error.raw_os_error().map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error);
        SpawnError { step: Step::Mount, object: path.display().to_string(), cause }
    }

    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }

    /// 127 when the program is not there, 126 when it cannot be run, 125 otherwise (docker-run(1)).
    pub fn exit_code(&self) -> u8 {
        match (self.step, self.errno()) {
            (Step::Exec, Some(libc::ENOENT | libc::ENOTDIR)) => 127,
            (Step::Exec, _) => 126,
            _ => 125,
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.step.words())?;
        if self.object.is_empty() { Ok(()) } else { write!(f, " '{}'", self.object) }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl Hint for SpawnError {
    fn hint(&self) -> Option<String> {
        let text = match (self.step, self.errno()) {
            (Step::Clone, Some(libc::EPERM)) => {
                "user namespaces may be switched off for ordinary users; `isles doctor` says what is missing"
            }
            (Step::Clone, Some(libc::ENOSPC)) => "the limit of namespaces is reached: see /proc/sys/user",
            (Step::Clone, Some(libc::EAGAIN)) => "the limit of processes is reached: see ulimit -u",
            (Step::Rlimit, Some(libc::EPERM)) => {
                "the limit is above the caller's own hard limit, which only CAP_SYS_RESOURCE may raise"
            }
            (Step::Interpreter, Some(libc::EPERM | libc::ENODEV)) => {
                "this takes Linux 6.7 with binfmt_misc; on older ones root registers it for all, with the flag F"
            }
            (Step::Mount, Some(libc::ENOENT)) => "the source of the mount does not exist",
            (Step::Mount, Some(libc::EPERM)) if self.object == "/proc" => {
                "parts of this /proc are hidden, as in a container, and the kernel shows no new one to those who do not \
                 see all of the old; run where /proc is whole, or share the PID namespace"
            }
            (Step::Image, Some(libc::ENOENT | libc::EACCES | libc::ENXIO | libc::ENODEV)) => {
                "ordinary users mount images by /dev/fuse, which is missing or shut here; unpack the image instead"
            }
            (Step::Root, Some(libc::EINVAL)) => {
                "the file system below the store may not support overlays; `isles doctor` checks it"
            }
            (Step::Exec, Some(libc::E2BIG)) => "arguments and environment together are too long",
            (Step::User, Some(libc::EINVAL)) => "the user or group ID is not mapped in the user namespace",
            (Step::EnterCgroup, Some(libc::EINVAL)) => {
                "a real-time process cannot enter a cpu group of cgroup v1"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
