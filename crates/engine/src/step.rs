//! One step of a build: a process over given layers, whose output goes to the build's progress.

use std::path::{Path, PathBuf};

use isles_spec::{Mount, NetworkMode, Progress, Resources, Rlimit};

/// The root file system of a step.
#[derive(Debug, Clone, Copy)]
pub enum StepRoot<'a> {
    /// Unpacked layers, base first, below a writable one. The work folder is on the file system of
    /// `upper`; all of it may be gone after a crash of the machine (nothing is synchronised).
    Layers { lowers: &'a [PathBuf], upper: &'a Path, work: &'a Path },
    /// A folder that is changed in place.
    Directory(&'a Path),
}

/// What a step reads from its standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StepInput<'a> {
    #[default]
    Null,
    Bytes(&'a [u8]),
}

/// A process to run for a build. The environment is what is given here, with PATH and HOME added where
/// they are missing; nothing of the caller's is inherited.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    pub root: StepRoot<'a>,
    pub argv: Vec<String>,
    pub env: Vec<String>,
    /// Made where it does not exist.
    pub working_dir: PathBuf,
    /// `user[:group]` as an image has it; empty is root.
    pub user: String,
    pub hostname: Option<String>,
    pub mounts: Vec<Mount>,
    pub network: NetworkMode,
    pub stdin: StepInput<'a>,
    /// Trust the certificate authorities of the host, in a network that intercepts TLS. They are
    /// mounted, so they do not become part of the image.
    pub host_ca: bool,
    pub resources: Resources,
    pub rlimits: Vec<Rlimit>,
    /// Full capabilities, devices and no filter (`RUN --security=insecure`).
    pub privileged: bool,
}

impl<'a> Step<'a> {
    /// A step that runs `argv` as root in `/` on the host's network, with everything else as usual.
    pub fn new(root: StepRoot<'a>, argv: Vec<String>) -> Self {
        Step {
            root,
            argv,
            env: Vec::new(),
            working_dir: "/".into(),
            user: String::new(),
            hostname: None,
            mounts: Vec::new(),
            network: NetworkMode::Host,
            stdin: StepInput::Null,
            host_ca: host_ca_wanted(),
            resources: Resources::default(),
            rlimits: Vec::new(),
            privileged: false,
        }
    }
}

/// Whether the caller's environment asks for the host's certificate authorities (`ISLES_HOST_CA=1`).
pub fn host_ca_wanted() -> bool {
    std::env::var_os("ISLES_HOST_CA").is_some_and(|v| !v.is_empty() && v != "0")
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(u8),
    Signal(u8),
}

impl Exit {
    /// The exit code that shells give: the code, or 128 and the signal.
    pub fn code(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128u8.saturating_add(signal),
        }
    }

    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// How a step went.
#[derive(Debug, Clone)]
pub struct StepOutcome {
    pub exit: Exit,
    /// The end of what the step wrote, at most 64 KiB, for the message when it failed.
    pub tail: Vec<u8>,
}

/// Where the output of a step goes: the work it belongs to.
#[derive(Clone, Copy)]
pub struct StepOutput<'a> {
    pub progress: &'a dyn Progress,
    pub id: u64,
}
