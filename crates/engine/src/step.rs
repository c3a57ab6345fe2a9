//! One step of a build: a process over given layers, whose output goes to the build's progress.

use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isles_network::user::Service;
use isles_sandbox::beside::Usage;
use isles_sandbox::identity::Identity;
use isles_sandbox::setup::{Namespace, Prepared, PreparedSource, RootFs};
use isles_sandbox::{Child, Setup, Step as StartStep, WarmSandbox};
use isles_spec::image::ContainerConfig;
use isles_spec::{Device, Dns, Mount, NetworkMode, Progress, Resources, Rlimit, Security, Workload};
use isles_store::Merged;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::foreign;
use crate::host_view::{self, Writable};
use crate::hosts;
use crate::plan::{Parts, plan};
use crate::start::{Fence, null, pipe, spawn};
use crate::step_share::network_of;
use crate::user_network::UserNetwork;
use crate::view::View;

/// So much of the end of a step's output is kept for the message when it fails.
const TAIL: usize = 64 << 10;

/// The root file system of a step.
#[derive(Debug, Clone, Copy)]
pub enum StepRoot<'a> {
    /// Unpacked layers, base first, below a writable one. The work folder is on the file system of
    /// `upper`; all of it may be gone after a crash of the machine (nothing is synchronised).
    Layers { lowers: &'a [PathBuf], upper: &'a Path, work: &'a Path },
    /// Unpacked layers, base first, below a writable one in memory, of `size` bytes at most, half of the memory where not
    /// given. `place` is an empty folder, which may be that of others as well.
    Memory { lowers: &'a [PathBuf], place: &'a Path, size: Option<u64> },
    /// A folder that is changed in place.
    Directory(&'a Path),
    /// The host's own files, none of which can be written, and at `at` layers as in [`StepRoot::Layers`], which can
    /// ([`crate::host_view`]). `folder` is an empty one, and `at` names no folder of the host.
    Host { folder: &'a Path, at: &'a Path, lowers: &'a [PathBuf], upper: &'a Path, work: &'a Path },
}

/// What a step reads from its standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StepInput<'a> {
    #[default]
    Null,
    Bytes(&'a [u8]),
}

/// The names of hosts that a step knows beside its own and the host's.
#[derive(Debug, Clone, Copy)]
pub struct StepNames<'a> {
    /// A folder for files of the step, which may be that of other steps as well.
    pub folder: &'a Path,
    /// As `NAME:ADDRESS`.
    pub extra: &'a [String],
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
    /// What is written for it of names; without, it sees the host's own files.
    pub names: Option<StepNames<'a>>,
    pub mounts: Vec<Mount>,
    /// [`NetworkMode::Default`] is one of its own, from which this process leads to the world; the host's without `names`.
    pub network: NetworkMode,
    pub stdin: StepInput<'a>,
    /// Trust the certificate authorities of the host, in a network that intercepts TLS. They are
    /// mounted, so they do not become part of the image.
    pub host_ca: bool,
    pub resources: Resources,
    pub rlimits: Vec<Rlimit>,
    /// Size of /dev/shm in bytes; that of containers where not given.
    pub shm_size: Option<u64>,
    /// Full capabilities, devices and no filter (`RUN --security=insecure`).
    pub privileged: bool,
    /// Devices of the host beside those that every container has.
    pub devices: Vec<Device>,
    /// What runs the step's programs, where this machine does not ([`crate::foreign::interpreter`]).
    pub interpreter: Option<foreign::Interpreter>,
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
            names: None,
            mounts: Vec::new(),
            network: NetworkMode::Host,
            stdin: StepInput::Null,
            host_ca: host_ca_wanted(),
            resources: Resources::default(),
            rlimits: Vec::new(),
            shm_size: None,
            privileged: false,
            devices: Vec::new(),
            interpreter: None,
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

    /// Ends this process by the signal that ended the program, if one did, as whoever waits for it may want to know.
    /// Else, and where this process outlives it, the code.
    pub fn pass_on(self) -> u8 {
        if let Exit::Signal(signal) = self {
            isles_sandbox::signals::die_of(signal.into());
        }
        self.code()
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

impl Engine {
    /// Runs a step to its end. Its output goes to `output` as it comes. Threads may run steps side by side.
    ///
    /// # Errors
    /// The step could not be started: the root, a mount, the user or the program is missing or refused. A program
    /// that ran and failed is an outcome, not an error.
    pub fn run_step(&self, step: &Step<'_>, output: StepOutput<'_>) -> Result<StepOutcome> {
        let (reader, writer) = pipe()?;
        let (stdin, input) = match step.stdin {
            StepInput::Null => (null()?, None),
            StepInput::Bytes(bytes) => {
                let (theirs, ours) = pipe()?;
                (theirs, Some((ours, bytes)))
            }
        };
        let stdout = writer.try_clone().map_err(|e| Error::system("copy a descriptor", e))?;
        let mut begun = self.begin_step(step, StepStreams { stdin, stdout, stderr: writer })?;
        std::thread::scope(|scope| {
            if let Some((pipe, bytes)) = input {
                // A step that does not read all of it is no failure.
                scope.spawn(move || std::io::Write::write_all(&mut std::fs::File::from(pipe), bytes));
            }
            let tail = gather(reader, output);
            if tail.is_err() {
                let _ = begun.child.kill(libc::SIGKILL);
            }
            let exit = begun.end()?;
            Ok(StepOutcome { exit, tail: tail? })
        })
    }

    /// Runs a step to its end on given streams; [`Step::stdin`] is not looked at. `attend` is told the process ID of its
    /// first process, whose death is that of all others, and its descriptor; it comes back when that has ended, or with
    /// false when it is to be killed. Nothing comes back in its place then. Threads may run steps side by side.
    ///
    /// # Errors
    /// As those of [`Engine::run_step`].
    pub fn run_step_on(
        &self,
        step: &Step<'_>,
        streams: StepStreams,
        attend: &mut dyn FnMut(i32, BorrowedFd<'_>) -> bool,
    ) -> Result<(Option<Exit>, Usage)> {
        let mut begun = self.begin_step(step, streams)?;
        let in_time = attend(begun.child.pid(), begun.child.pidfd());
        if !in_time {
            let _ = begun.child.kill(libc::SIGKILL);
        }
        let exit = begun.end()?;
        Ok((in_time.then_some(exit), begun.child.usage()))
    }

    fn begin_step(&self, step: &Step<'_>, streams: StepStreams) -> Result<Begun<'_>> {
        let ownership = self.store.ownership();
        let mut around = Vec::new();
        let mut prepared = Vec::new();
        let (root, view) = match step.root {
            StepRoot::Host { folder, at, lowers, upper, work } => {
                let image = Writable { lowers, upper, work, userxattr: ownership.userxattr() };
                around = host_view::mounts(folder, at, image)?;
                let view = Merged::open(&[folder.to_owned()], ownership)?;
                (RootFs::Directory(folder.to_owned()), View::from(view))
            }
            StepRoot::Layers { lowers, upper, work } => {
                let mut layers = lowers.to_vec();
                layers.push(upper.to_owned());
                let root = RootFs::Overlay {
                    lowers: lowers.to_vec(),
                    upper: upper.to_owned(),
                    work: work.to_owned(),
                    volatile: true,
                    userxattr: ownership.userxattr(),
                    foreign: false,
                };
                (root, View::from(Merged::open(&layers, ownership)?))
            }
            StepRoot::Memory { lowers, place, size } => {
                let folders = vec!["upper".to_owned(), "work".to_owned()];
                let source = PreparedSource::Memory { size, folders };
                prepared.push(Prepared { place: place.to_owned(), source, name: "memory".into() });
                let root = RootFs::Overlay {
                    lowers: lowers.to_vec(),
                    upper: place.join("upper"),
                    work: place.join("work"),
                    // Nothing of it is ever synchronised, and the mark of it would cost two folders.
                    volatile: false,
                    userxattr: ownership.userxattr(),
                    foreign: false,
                };
                (root, View::from(Merged::open(lowers, ownership)?))
            }
            StepRoot::Directory(path) => {
                let view = Merged::open(&[path.to_owned()], ownership)?;
                (RootFs::Directory(path.to_owned()), View::from(view))
            }
        };
        let mut workload = workload_of(step);
        let of_host = matches!(step.root, StepRoot::Host { .. });
        workload.read_only = of_host;
        let network = UserNetwork::of(&workload, self.identity)?;
        let mut extra = if of_host {
            around
        } else {
            let known = (step.names, step.hostname.as_deref());
            hosts::of_step(&workload.network, &view, known, network.as_ref())?
        };
        let image = ContainerConfig::default();
        let authorities = step.host_ca.then(hosts::authorities).flatten();
        if let Some((mount, variables)) = authorities {
            extra.push(mount);
            // Before the step's own, which win.
            workload.env.splice(0..0, variables);
        }
        let hostname = step.hostname.clone().unwrap_or_else(|| hosts::HOSTNAME_OF_STEPS.into());
        let no_container = |name: &str| Err(Error::NoContainer(name.to_owned()));
        let mut planned = plan(Parts {
            workload: &workload,
            image: &image,
            identity: self.identity,
            prepared,
            root,
            read_only_root: of_host,
            untrusted_root: false,
            view: &view,
            sources: Vec::new(),
            hostname: &hostname,
            pid_of: &no_container,
            extra,
            terminal: None,
            interpreters: step.interpreter.iter().map(foreign::Interpreter::open).collect::<Result<_>>()?,
            warn: &|_| {},
        })?;
        let setup = &mut planned.setup;
        setup.namespaces.network_messages = network.as_ref().map(UserNetwork::messages);
        // Of containers that are as rightless as usual, and see no network.
        let alone = self.identity == Identity::Root
            && workload.network == NetworkMode::None
            && !step.privileged
            && matches!(setup.namespaces.network, Namespace::New);
        let mut network_left = None;
        let unbounded = step.resources.is_empty();
        let fence = match &planned.limits {
            Some(limits) if unbounded => {
                self.shared.admit(self, limits, setup)?;
                Fence::none()
            }
            Some(limits) => Fence::new(&self.step_group_name()?, limits, false, &mut |_| {})?,
            None => Fence::none(),
        };
        fence.admit(setup)?;
        let setup = &mut planned.setup;
        if alone && unbounded && matches!(step.root, StepRoot::Memory { .. }) {
            setup.warm = self.shared.warm(setup);
        }
        let network_of_before = |setup: &mut Setup| {
            let network = self.shared.network()?;
            let kept = network.try_clone().ok();
            setup.namespaces.network = Namespace::Join(network);
            kept
        };
        if alone && setup.warm.is_none() {
            network_left = network_of_before(setup);
        }
        setup.stdio.stdin = Some(streams.stdin);
        setup.stdio.stdout = Some(streams.stdout);
        setup.stdio.stderr = Some(streams.stderr);
        let mut child = match spawn(setup, &view) {
            // It is gone, as when the thread that has made it has ended.
            Err(Error::Spawn(e))
                if matches!(e.step, StartStep::JoinNamespace | StartStep::Clone)
                    && setup.warm.take().is_some() =>
            {
                network_left = network_of_before(setup);
                spawn(setup, &view)?
            }
            other => other?,
        };
        setup.stdio = Default::default();
        let warm = setup.warm.take();
        if alone && warm.is_none() && network_left.is_none() {
            network_left = network_of(child.pid());
        }
        let mounts = child.mount_namespace();
        let served = match (network, child.network.take()) {
            (Some(network), Some(socket)) => network.made(socket).serve(self, &Dns::default()).map(Some),
            _ => Ok(None),
        };
        let served = match served {
            Ok(served) => served,
            Err(e) => {
                let _ = child.kill(libc::SIGKILL);
                let _ = child.wait();
                return Err(e);
            }
        };
        Ok(Begun { engine: self, child, fence, served, network_left, warm, mounts })
    }
}

/// The standard streams of a step.
#[derive(Debug)]
pub struct StepStreams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A step that runs.
struct Begun<'e> {
    engine: &'e Engine,
    child: Child,
    fence: Fence,
    /// Its network, which is there as long as this is.
    served: Option<Service>,
    /// That is empty when it has ended.
    network_left: Option<OwnedFd>,
    /// That is free when it has ended.
    warm: Option<Arc<WarmSandbox>>,
    /// Its mount namespace, which outlives it a moment.
    mounts: Option<OwnedFd>,
}

impl Begun<'_> {
    fn end(&mut self) -> Result<Exit> {
        let status = self.child.wait().map_err(|e| Error::system("wait for the step", e))?;
        self.served = None;
        if let Some(network) = self.network_left.take() {
            self.engine.shared.give_back(network);
        }
        if let Some(warm) = self.warm.take() {
            self.engine.shared.give_warm_back(warm);
        }
        if let Some(mounts) = self.mounts.take() {
            self.engine.shared.let_go(mounts);
        }
        self.fence.remove()?;
        Ok(status.into())
    }
}

fn workload_of(step: &Step<'_>) -> Workload {
    Workload {
        entrypoint: Some(step.argv.clone()),
        env: step.env.clone(),
        working_dir: Some(step.working_dir.clone()),
        user: Some(step.user.clone()),
        mounts: step.mounts.clone(),
        network: match (&step.network, step.names) {
            (NetworkMode::Default, Some(_)) => NetworkMode::User { host_loopback: false },
            (NetworkMode::Default, None) => NetworkMode::Host,
            (other, _) => other.clone(),
        },
        resources: step.resources.clone(),
        rlimits: step.rlimits.clone(),
        shm_size: step.shm_size,
        devices: step.devices.clone(),
        security: Security { privileged: step.privileged, ..Security::default() },
        ..Workload::default()
    }
}

/// Passes output on until nobody holds the pipe any more. Whatever a step leaves behind dies with its PID namespace.
fn gather(reader: OwnedFd, output: StepOutput<'_>) -> Result<Vec<u8>> {
    let mut tail = Vec::new();
    let mut buffer = vec![0u8; 32 << 10];
    let mut reader = std::fs::File::from(reader);
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::system("read the output of the step", e)),
        };
        output.progress.output(output.id, &buffer[..n]);
        tail.extend_from_slice(&buffer[..n]);
        if tail.len() > 2 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }
    tail.drain(..tail.len().saturating_sub(TAIL));
    Ok(tail)
}
