//! A container in the foreground: this process is its monitor, and takes it along when it ends.

use std::io;
use std::os::fd::AsFd;

use isles_sandbox::setup::RootFs;
use isles_sandbox::signals::Signals;
use isles_sandbox::{Child, ExitStatus};
use isles_spec::image::ContainerConfig;
use isles_spec::{NetworkMode, Root, Workload};
use isles_store::{Container, Image, Merged};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::{Parts, Planned, caller, plan};
use crate::record::{Record, State, now, process_start};
use crate::start::{Fence, null, spawn};
use crate::step::Exit;
use crate::{hosts, name, process, terminal};

/// So many signals to end it, one after the other, kill a container that does not listen (docker does the same).
const PATIENCE: u32 = 3;

/// How a foreground run speaks to its caller.
pub struct Foreground<'a> {
    /// The image of [`Root::Image`].
    pub image: Option<&'a Image>,
    /// Told the ID when the container is there, before its program starts.
    pub created: &'a dyn Fn(&str) -> io::Result<()>,
    /// Told what went on differently from what was asked for.
    pub warn: &'a dyn Fn(&str),
}

impl Engine {
    /// Runs a container on the caller's standard streams until it ends. The process must have one thread.
    ///
    /// # Errors
    /// The container could not be made or started. Nothing of it is left then, whatever `remove` says.
    pub fn run(&self, workload: &Workload, foreground: &Foreground<'_>) -> Result<Exit> {
        if workload.tty && workload.interactive && !terminal::stdin_is_one() {
            return Err(isles_spec::Error::new("the input device is not a terminal")
                .with_hint("leave out -t when standard input comes from a file or a pipe")
                .into());
        }
        // From here on signals wait until there is a container to hand them to.
        let signals = Signals::block().map_err(|e| Error::system("wait for signals", e))?;
        let container = self.create(workload, foreground)?;
        let mut started = match self.start_in(&container.folder, &container.record, foreground) {
            Ok(started) => started,
            Err(e) => {
                // Collected later, if not now.
                drop(container.folder.remove());
                return Err(e);
            }
        };
        let exit = self.stay(&mut started, &container, foreground, &signals);
        if workload.remove {
            container.folder.remove()?;
        }
        exit
    }

    fn create(&self, workload: &Workload, foreground: &Foreground<'_>) -> Result<Created> {
        let id = name::id()?;
        let mut workload = workload.clone();
        let default = ContainerConfig::default();
        let config = foreground.image.map_or(&default, |image| &image.config.config);
        let command = process::argv(&workload, config)?;
        let name = workload.name.get_or_insert_with(|| name::of(&id)).clone();
        let record = Record {
            id: id.clone(),
            image_id: foreground.image.map(|image| image.id().clone()),
            image: match &workload.root {
                Root::Image { name, .. } => name.clone(),
                Root::Directory(path) => path.display().to_string(),
            },
            command,
            created: now(),
            name: name.clone(),
            workload,
        };
        let holds = foreground.image.map(|image| image.manifest_digest.clone());
        let holds = holds.as_slice();
        // A name that a person chose is given once; one that was made up is as good as unique.
        let _names = if record.name == name::of(&id) { None } else { Some(self.claim(&name)?) };
        let folder = self.store.create_container(&id, holds, record.workload.remove)?;
        let written = record.save(&folder).and_then(|()| {
            (foreground.created)(&id).map_err(|e| Error::system("tell the container's ID", e))
        });
        match written {
            Ok(()) => Ok(Created { folder, record }),
            Err(e) => {
                drop(folder.remove());
                Err(e)
            }
        }
    }

    /// Sees to it that no container has the name, for as long as the lock is held.
    fn claim(&self, name: &str) -> Result<std::fs::File> {
        name::check(name)?;
        let lock = self.store.lock_names()?;
        match self.containers()?.into_iter().find(|info| info.record.name == name) {
            Some(info) if info.ephemeral && info.status == crate::record::Status::Dead => {
                self.collect()?;
                Ok(lock)
            }
            Some(info) => {
                Err(Error::NameInUse { name: name.to_owned(), id: info.record.id[..12].to_owned() })
            }
            None => Ok(lock),
        }
    }

    /// Plans the container and starts its program.
    fn start_in(&self, folder: &Container, record: &Record, foreground: &Foreground<'_>) -> Result<Started> {
        let workload = &record.workload;
        let ownership = self.store.ownership();
        let (root, view) = match (&workload.root, foreground.image) {
            (Root::Directory(path), _) => {
                (RootFs::Directory(path.clone()), Merged::open(std::slice::from_ref(path), ownership)?)
            }
            (Root::Image { name, .. }, None) => {
                return Err(Error::impossible(format!("image {name}"), "it was not looked up"));
            }
            (Root::Image { .. }, Some(image)) => {
                let lowers = self.store.layers_of(image)?;
                let view = Merged::open(&lowers, ownership)?;
                let root = RootFs::Overlay {
                    lowers,
                    upper: folder.upper(),
                    work: folder.work(),
                    // What goes away with the container need not survive the machine either.
                    volatile: workload.remove,
                    userxattr: ownership.userxattr(),
                };
                (root, view)
            }
        };
        let hostname = hostname(workload, &record.id);
        let default = ContainerConfig::default();
        let mut extra = hosts::of_container(folder, &hostname, workload, &view)?;
        if workload.here {
            extra.extend(hosts::of_caller(&caller(self.identity), folder, &view)?);
        }
        let mut planned = plan(Parts {
            workload,
            image: foreground.image.map_or(&default, |image| &image.config.config),
            identity: self.identity,
            root,
            view: &view,
            hostname: &hostname,
            pid_of: &|name| self.pid_of(name),
            extra,
            terminal: workload.tty.then(terminal::size),
        })?;
        let mut warn = |text: String| (foreground.warn)(&text);
        let fence = match &planned.limits {
            Some(limits) => {
                let best_effort = workload.resources.best_effort;
                Fence::new(&self.group_name(&record.id), limits, best_effort, &mut warn)?
            }
            None => Fence::none(),
        };
        let (child, state) = self.start(folder, &mut planned, &fence, workload, &view)?;
        Ok(Started { child, state, fence })
    }

    /// Stays with a started container until it ends, and writes down how.
    fn stay(
        &self,
        started: &mut Started,
        container: &Created,
        foreground: &Foreground<'_>,
        signals: &Signals,
    ) -> Result<Exit> {
        let workload = &container.record.workload;
        let status = attend(&mut started.child, workload, signals, &|| {
            // While the program works: what others left behind.
            if let Err(e) = self.collect() {
                (foreground.warn)(&format!("leftovers could not be collected: {e}"));
            }
        });
        if status.is_err() {
            // Whatever went wrong here, nobody will be there to watch it.
            drop(started.child.kill(libc::SIGKILL));
            drop(started.child.wait());
        }
        let out_of_memory = started.fence.oom_kills() > 0;
        if let Err(e) = started.fence.remove() {
            (foreground.warn)(&format!("the control group stays until the next collection: {e}"));
        }
        let exit = Exit::from(status?);
        if out_of_memory && exit == Exit::Signal(libc::SIGKILL as u8) {
            (foreground.warn)("the container was killed because it used more memory than its limit");
        }
        if !workload.remove {
            let state = &mut started.state;
            state.out_of_memory = out_of_memory;
            state.finished = Some(now());
            state.exit_code = Some(exit.code());
            state.save(&container.folder)?;
        }
        Ok(exit)
    }

    fn start(
        &self,
        folder: &Container,
        planned: &mut Planned,
        fence: &Fence,
        workload: &Workload,
        view: &Merged,
    ) -> Result<(Child, State)> {
        let setup = &mut planned.setup;
        fence.admit(setup)?;
        if !workload.interactive && !workload.tty {
            setup.stdio.stdin = Some(null()?);
        }
        let child = spawn(setup, view)?;
        let own = std::process::id().cast_signed();
        let state = State {
            pid: Some(child.pid()),
            pid_start: process_start(child.pid()),
            monitor: process_start(own).map(|start| (own, start)),
            started: Some(now()),
            ..State::default()
        };
        if let Err(e) = state.save(folder) {
            drop(child.kill(libc::SIGKILL));
            return Err(e);
        }
        Ok((child, state))
    }
}

struct Created {
    folder: Container,
    record: Record,
}

/// A container whose program runs.
struct Started {
    child: Child,
    state: State,
    fence: Fence,
}

/// The caller's wish, the host's own name where the network is asked to be the host's, else the short ID, as Docker
/// has it.
fn hostname(workload: &Workload, id: &str) -> String {
    if let Some(name) = &workload.hostname {
        return name.clone();
    }
    let of_host = workload.network == NetworkMode::Host || workload.uts == isles_spec::NamespaceMode::Host;
    if of_host {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    id[..12].to_owned()
}

/// Stays with the container until it ends: hands signals on, and copies between the caller's terminal and its own.
fn attend(
    child: &mut Child,
    workload: &Workload,
    signals: &Signals,
    meanwhile: &dyn Fn(),
) -> Result<ExitStatus> {
    let failed = |e: io::Error| Error::system("stay with the container", e);
    let mut master = child.terminal.take();
    let _raw = if master.is_some() && workload.interactive { terminal::Raw::enter() } else { None };
    let stdin = io::stdin();
    let mut input = master.is_some() && workload.interactive;
    let mut asked_to_end = 0;
    meanwhile();
    loop {
        let (mut from_terminal, mut from_caller, mut ended) = (false, false, false);
        {
            let mut fds = vec![
                PollFd::new(signals, PollFlags::IN),
                PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN),
            ];
            if let Some(master) = &master {
                fds.push(PollFd::new(master, PollFlags::IN));
                if input {
                    fds.push(PollFd::new(&stdin, PollFlags::IN));
                }
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
            ended |= !fds[1].revents().is_empty();
            from_terminal |= fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
            from_caller |= fds.get(3).is_some_and(|fd| !fd.revents().is_empty());
        }
        if from_terminal
            && let Some(fd) = &master
            && !copy(fd, io::stdout())
        {
            master = None;
        }
        if from_caller
            && let Some(fd) = &master
            && !copy(&stdin, fd)
        {
            input = false;
            // As a person would end the input: the terminal's own character for it.
            let _ = rustix::io::write(fd, b"\x04");
        }
        if ended && !from_terminal {
            return child.wait().map_err(failed);
        }
        while let Some(signal) = signals.next().map_err(failed)? {
            match signal {
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE | libc::SIGCONT => {}
                libc::SIGWINCH => {
                    if let Some(master) = &master {
                        terminal::resize(master);
                    }
                }
                libc::SIGINT | libc::SIGTERM => {
                    asked_to_end += 1;
                    let signal = if asked_to_end >= PATIENCE { libc::SIGKILL } else { signal };
                    child.kill(signal).map_err(failed)?;
                }
                other => child.kill(other).map_err(failed)?,
            }
        }
    }
}

/// Copies what is there to be read. `false` at the end: of a terminal that is an error (EIO).
fn copy(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0u8; 16 << 10];
    let n = match rustix::io::read(from, &mut buffer) {
        Ok(0) => return false,
        Ok(n) => n,
        Err(Errno::INTR | Errno::AGAIN) => return true,
        Err(_) => return false,
    };
    let mut rest = &buffer[..n];
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            // Nobody reads any more; the container goes on all the same.
            Err(_) => return true,
        }
    }
    true
}
