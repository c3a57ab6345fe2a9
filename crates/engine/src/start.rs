//! From a plan to a running process: its control group, the start itself, and why a start failed.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use isles_sandbox::cgroup::{Group, Layout, Limits, Request};
use isles_sandbox::explain::explain;
use isles_sandbox::{Child, ExitStatus, Setup, SpawnError, Step as StartStep};

use crate::error::{Error, Result};
use crate::step::Exit;
use crate::view::View;

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Exit {
        match status {
            ExitStatus::Code(code) => Exit::Code(code),
            ExitStatus::Signal(signal) => Exit::Signal(signal),
        }
    }
}

/// A control group that is removed, with whatever still runs in it, when it is dropped.
#[derive(Debug)]
pub struct Fence(Option<Group>);

impl Fence {
    /// No group at all.
    pub fn none() -> Fence {
        Fence(None)
    }

    /// Makes the group and sets its limits. A limit that cannot be set is an error, or, for best effort, a text
    /// for `warn`.
    pub fn new(
        name: &str,
        limits: &Limits,
        best_effort: bool,
        warn: &mut dyn FnMut(String),
    ) -> Result<Fence> {
        let layout = Layout::detect().map_err(|e| Error::system("look at the control groups", e))?;
        for (wanted, wish) in [
            (limits.disable_oom_killer, "disabling the killer of processes that memory is short for"),
            (limits.swappiness.is_some(), "choosing how readily memory is swapped out"),
        ] {
            if !wanted || layout.hierarchy("memory").is_some() {
                continue;
            }
            if !best_effort {
                return Err(Error::impossible(wish, "cgroup v2 has no such setting"));
            }
            warn(format!("{wish} is not possible here: cgroup v2 has no such setting"));
        }
        let request = Request { path: name, limits, accounting: false, best_effort };
        let (group, warnings) = Group::create(&layout, &request)?;
        warnings.into_iter().for_each(|w| warn(w.to_string()));
        Ok(Fence(Some(group)))
    }

    /// The group of a container whose monitor died, as far as there is one.
    pub fn leftover(name: &str) -> Result<Fence> {
        let layout = Layout::detect().map_err(|e| Error::system("look at the control groups", e))?;
        let group = Group::open(&layout, name)?;
        Ok(Fence(Some(group).filter(|g| !g.is_absent())))
    }

    /// Lets the start put its process into the group.
    pub fn admit(&self, setup: &mut Setup) -> Result<()> {
        if let Some(group) = &self.0 {
            setup.cgroup = group.entry()?;
        }
        Ok(())
    }

    /// How many processes the kernel has killed because the group ran out of memory.
    pub fn oom_kills(&self) -> u64 {
        self.0.as_ref().map_or(0, Group::oom_kills)
    }

    /// Lets the group be, for others who know its name.
    pub fn keep(mut self) {
        drop(self.0.take());
    }

    /// Kills what is left in the group, and removes it.
    pub fn remove(&mut self) -> Result<()> {
        let Some(mut group) = self.0.take() else { return Ok(()) };
        group.kill()?;
        Ok(group.remove()?)
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // On the way out of another failure, which is the one to tell; what stays is collected later.
        let _ = self.remove();
    }
}

/// Starts the process. A program that cannot be run is explained by what the root file system shows.
pub fn spawn(setup: &Setup, view: &View) -> Result<Child> {
    isles_sandbox::spawn(setup).map_err(|error| explained(error, setup, view))
}

/// What is done while a process waits on its way.
#[derive(Default)]
pub struct Halts<'a> {
    /// When the namespaces are there, before it enters its root ([`isles_sandbox::setup::Gate::before_root`]). Given its number and
    /// the socket of its network.
    #[allow(clippy::type_complexity)]
    pub before_root: Option<&'a dyn Fn(i32, Option<BorrowedFd<'_>>) -> Result<()>>,
    /// When all is set up, before its program ([`isles_sandbox::setup::Gate::before_exec`]). It opens that gate itself.
    pub before_exec: Option<&'a dyn Fn(i32) -> Result<()>>,
}

/// As [`spawn`], with halts.
pub fn spawn_halting(setup: &Setup, view: &View, halts: &Halts<'_>) -> Result<Child> {
    let explain = |error| explained(error, setup, view);
    let mut pending = isles_sandbox::Pending::new(setup).map_err(explain)?;
    if let Some(halt) = halts.before_root {
        pending.wait_before_root().map_err(explain)?;
        halt(pending.pid(), pending.network())?;
        pending.proceed().map_err(explain)?;
    }
    if let Some(halt) = halts.before_exec {
        pending.halt_before_exec().map_err(explain)?;
        halt(pending.pid())?;
    }
    pending.finish().map_err(explain)
}

fn explained(error: SpawnError, setup: &Setup, view: &View) -> Error {
    let Some(errno) = error.errno().filter(|_| error.step == StartStep::Exec) else {
        return Error::Spawn(error);
    };
    let process = &setup.process;
    let program = process.args.first().map_or(OsStr::new(""), |a| OsStr::from_bytes(a));
    let path = process.env.iter().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or_default();
    let said = explain(view, program, &String::from_utf8_lossy(path), &process.cwd, errno);
    Error::Program { reason: said.reason, hint: said.hint, exit_code: said.exit_code }
}

/// A pipe whose ends do not outlive an exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Error::system("make a pipe", e))
}

/// `/dev/null`, to read from or to write to.
pub fn null() -> Result<OwnedFd> {
    let file = std::fs::File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|e| Error::file("open", "/dev/null", e))
}
