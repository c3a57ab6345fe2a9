//! Mounts that programs serve (fuse(4)): the container's first process makes the mount in its own namespaces and sends its
//! descriptor; the program is given that one, and needs neither rights nor fusermount.
//!
//! All is set up when the programs begin, and the workload's own waits for that: one of the container's is started in it as
//! `exec` would, one of the host's beside this process. What is asked before a program listens waits in the kernel.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use isles_sandbox::identity::Identity;
use isles_sandbox::setup::{PreparedSource, Setup};
use isles_sandbox::{ExitStatus, device_program, fuse};
use isles_spec::{Mount, NamespaceMode, NetworkMode, RunAs, Workload};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::background::Target;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::join::other_user_namespace;
use crate::record::Record;
use crate::run::Foreground;
use crate::terminal;

/// A program that has not ended so long after it was asked to is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A program that is to serve a mount.
#[derive(Debug)]
pub struct FuseProgram {
    pub program: Vec<String>,
    pub inside: bool,
    pub daemon: bool,
    /// From where its device comes.
    pub served: OwnedFd,
}

impl FuseProgram {
    fn words(&self) -> Vec<String> {
        let mut words = self.program.clone();
        words.push(format!("/dev/fd/{}", device_program::DEVICE));
        words.extend((!self.daemon).then(|| "-f".to_owned()));
        words
    }

    fn failed(&self, why: impl std::fmt::Display) -> Error {
        Error::impossible(format!("serving a mount by '{}'", self.program.join(" ")), why.to_string())
    }
}

/// The mount of such a program, and where its device comes from.
pub fn prepare(workload: &Workload, mount: &Mount) -> Result<(OwnedFd, PreparedSource)> {
    let below = |dir: &Path| dir.starts_with(&mount.destination);
    if workload.working_dir.as_deref().is_some_and(below) {
        return Err(Error::impossible(
            format!("starting in a folder of the mount at {}", mount.destination.display()),
            "nobody serves it before the program runs",
        ));
    }
    if let Err(e) = File::options().read(true).write(true).open("/dev/fuse") {
        return Err(Error::file("let a program serve a mount by", "/dev/fuse", e));
    }
    let (served, channel) = fuse::channel().map_err(|e| Error::system("make a mount for a program", e))?;
    // Root of a container may be other users there.
    let for_all = workload.run_as != RunAs::Caller;
    Ok((served, PreparedSource::FuseProgram { channel, for_all }))
}

/// All that it takes to begin.
pub(crate) struct Serve<'a> {
    pub engine: &'a Engine,
    pub programs: Vec<FuseProgram>,
    pub record: &'a Record,
    pub foreground: &'a Foreground<'a>,
    pub serving: &'a RefCell<Vec<Serving>>,
}

impl Serve<'_> {
    /// Lets the container's process wait where there are programs. What comes back lets it go on.
    pub fn gate(&self, setup: &mut Setup) -> Result<Option<OwnedFd>> {
        if self.programs.is_empty() {
            return Ok(None);
        }
        let (wait, go) = crate::start::pipe()?;
        setup.gate.before_exec = Some(wait);
        setup.gate.open_to_owner = true;
        Ok(Some(go))
    }

    /// Starts the programs of the container whose first process this is, and lets it go on.
    pub fn begin(&self, pid: i32, gate: &OwnedFd) -> Result<()> {
        let failed = |e| Error::system("start the programs that serve mounts", e);
        for program in &self.programs {
            let device = fuse::receive(&program.served).map_err(failed)?;
            let device = device.ok_or_else(|| program.failed("there is no device for it"))?;
            let serving = if program.inside {
                self.inside(program, pid, device)?
            } else {
                self.beside(program, pid, &device)?
            };
            self.serving.borrow_mut().extend(serving);
        }
        let mut gate = File::from(gate.try_clone().map_err(failed)?);
        gate.write_all(b"g").map_err(failed)
    }

    fn beside(&self, program: &FuseProgram, pid: i32, device: &OwnedFd) -> Result<Option<Serving>> {
        // Where its IDs are other ones than the caller's.
        let theirs = self.record.workload.run_as != RunAs::Caller && self.engine.identity() != Identity::Root;
        let user = if theirs { other_user_namespace(pid).map_err(|e| program.failed(e))? } else { None };
        let started = device_program::start(&program.words(), device, user.as_ref(), !program.daemon);
        let mut child = started.map_err(|e| program.failed(e))?;
        if program.daemon {
            let status = child.wait().map_err(|e| program.failed(e))?;
            return if status.success() { Ok(None) } else { Err(program.failed(status)) };
        }
        let serving = Serving::of(child.id().cast_signed(), move || drop(child.wait()))?;
        Ok(Some(serving))
    }

    fn inside(&self, program: &FuseProgram, pid: i32, device: OwnedFd) -> Result<Option<Serving>> {
        let own = &self.record.workload;
        let mut env = own.env.clone();
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        }
        let workload = Workload {
            root: own.root.clone(),
            entrypoint: Some(Vec::new()),
            command: program.words(),
            env,
            working_dir: Some("/".into()),
            user: own.user.clone(),
            groups: own.groups.clone(),
            run_as: own.run_as,
            userns: own.userns.clone(),
            security: own.security.clone(),
            network: NetworkMode::Host,
            pid: NamespaceMode::Host,
            ipc: NamespaceMode::Host,
            uts: NamespaceMode::Host,
            cgroupns: NamespaceMode::Host,
            bare_env: own.bare_env,
            keep_umask: own.keep_umask,
            ..Workload::default()
        };
        let target = Target::of(pid).ok_or_else(|| program.failed("the container has ended"))?;
        let foreground = Foreground { warn: self.foreground.warn, ..Foreground::default() };
        let group = self.engine.group_name(&self.record.id);
        let further = vec![device];
        let started =
            self.engine.start_with(target, &workload, &foreground, Some(&group), terminal::size(), further);
        let mut child = started.map_err(|e| program.failed(e))?;
        if program.daemon {
            let status = child.wait().map_err(|e| program.failed(e))?;
            let fine = status == ExitStatus::Code(0);
            return if fine {
                Ok(None)
            } else {
                Err(program.failed(format!("it ended with {}", status.code())))
            };
        }
        let serving = Serving::of(child.pid(), move || drop(child.wait()))?;
        Ok(Some(serving))
    }
}

/// A program that serves a mount. Dropped, it is ended.
#[derive(Debug)]
pub(crate) struct Serving {
    held: OwnedFd,
    /// Waits for it: the namespace of a container's processes does not end before all of them were waited for.
    waits: Option<JoinHandle<()>>,
}

impl Serving {
    fn of(pid: i32, wait: impl FnOnce() + Send + 'static) -> Result<Serving> {
        let failed = |e| Error::system("stay with a program that serves a mount", e);
        let number = Pid::from_raw(pid).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let held = pidfd_open(number, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let waits = thread::Builder::new().name("served".into()).spawn(wait).map_err(failed)?;
        Ok(Serving { held, waits: Some(waits) })
    }

    /// Asks the program to end, and waits for that.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.held, Signal::TERM);
        let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        while matches!(poll(&mut [PollFd::new(&self.held, PollFlags::IN)], Some(&timeout)), Err(Errno::INTR))
        {
        }
        let _ = pidfd_send_signal(&self.held, Signal::KILL);
        if let Some(waits) = self.waits.take() {
            let _ = waits.join();
        }
    }
}
