//! A container in the foreground: this process is its monitor, and takes it along when it ends.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use isles_fuse::Server;
use isles_network::dns::{Resolver, Token};
use isles_network::user::door::Door;
use isles_sandbox::identity::Identity;
use isles_sandbox::setup::UserNs;
use isles_sandbox::signals::{From, Signals};
use isles_sandbox::{Child, ExitStatus};
use isles_spec::image::ContainerConfig;
use isles_spec::{ImageFile, LogDriver, NamespaceMode, NetworkMode, Port, Root, Workload, Writable};
use isles_store::{Container, Image};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::caller::caller;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::file_image::FileImage;
use crate::fuse_programs::{Serve, Serving};
use crate::health::merged;
use crate::inside::Inside;
use crate::log::{JOURNAL, has_journal};
use crate::networks::{Taken, serve_doors};
use crate::overlay_programs::OverlayPrograms;
use crate::plan::{Parts, Planned, plan};
use crate::record::{Record, State, now, process_start};
use crate::start::{Fence, Halts, null, spawn, spawn_halting};
use crate::step::Exit;
use crate::user_network::{Unserved, UserNetwork, usual};
use crate::view::View;
use crate::{bare_root, foreign, hosts, kept_blocks, name, namespaces, process, terminal};

/// So many signals to end it, one after the other, kill a container that does not listen (docker does the same).
pub(crate) const PATIENCE: u32 = 3;

/// How a foreground run speaks to its caller.
#[derive(Clone, Copy)]
pub struct Foreground<'a> {
    /// The image of [`Root::Image`].
    pub image: Option<&'a Image>,
    /// The file of [`Root::File`], where the caller has opened it already: what was checked is then what is mounted.
    pub file: Option<&'a std::fs::File>,
    /// The user namespace of other containers of the caller ([`Engine::user_namespace_of`]), to be in where the container
    /// would have one of its own with the same IDs.
    pub user_namespace: Option<&'a std::fs::File>,
    /// A look that the caller has had into the root: what was read for it is not read again.
    pub inside: Option<&'a Inside>,
    /// Told the ID when the container is there, before its program starts.
    pub created: &'a dyn Fn(&str) -> io::Result<()>,
    /// Told the process ID when its program runs.
    pub started: &'a dyn Fn(i32),
    /// Told what went on differently from what was asked for.
    pub warn: &'a dyn Fn(&str),
}

impl Default for Foreground<'_> {
    /// For a folder or a file, and telling nobody.
    fn default() -> Self {
        Foreground {
            image: None,
            file: None,
            user_namespace: None,
            inside: None,
            created: &|_| Ok(()),
            started: &|_| {},
            warn: &|_| {},
        }
    }
}

impl Engine {
    /// Runs a container on the caller's standard streams until it ends. The process must have one thread.
    ///
    /// # Errors
    /// The container could not be made or started. Nothing of it is left then, whatever `remove` says.
    pub fn run(&self, workload: &Workload, foreground: &Foreground<'_>) -> Result<Exit> {
        if workload.tty && workload.interactive && !terminal::stdin_is_one() {
            return Err(terminal::is_none());
        }
        self.wake_pod(workload)?;
        // From here on signals wait until there is a container to hand them to.
        let signals = Signals::block().map_err(|e| Error::system("wait for signals", e))?;
        let container = self.create(workload, foreground)?;
        let mut started = match self.start_in(&container.folder, &container.record, foreground, None) {
            Ok(started) => started,
            Err(e) => {
                // Collected later, if not now.
                drop(container.folder.remove());
                self.forget_name(&container.record);
                drop(self.release_volumes(&container.record.workload));
                return Err(e);
            }
        };
        let exit = self.stay(&mut started, &container, foreground, &signals);
        started.fuse.drain(..).for_each(Serving::end);
        // Before the folder in which they have mounted is removed.
        let written = started.programs.take().map_or(Ok(()), OverlayPrograms::finish);
        let exit = exit.and_then(|exit| written.map(|()| exit));
        started.servers.iter().for_each(|image| kept_blocks::remember(&self.store, image.file_system()));
        if workload.remove {
            self.note(&container.record, "destroy", &[]);
        }
        if workload.remove
            && let Err(e) = container.folder.remove()
        {
            (foreground.warn)(&format!("what the container wrote stays until the next collection: {e}"));
        } else if workload.remove {
            self.forget_name(&container.record);
        }
        if workload.remove
            && let Err(e) = self.release_volumes(&container.record.workload)
        {
            (foreground.warn)(&format!("volumes of the container stay until the next collection: {e}"));
        }
        exit
    }

    pub(crate) fn create(&self, workload: &Workload, foreground: &Foreground<'_>) -> Result<Created> {
        let id = name::id()?;
        let mut workload = workload.clone();
        workload.network = usual(workload.network, self.identity);
        if workload.log.driver == LogDriver::Journald && !has_journal() {
            return Err(Error::impossible(
                "the log driver journald",
                format!("no journal listens at {JOURNAL}; choose another driver"),
            ));
        }
        let default = ContainerConfig::default();
        let config = foreground.image.map_or(&default, |image| &image.config.config);
        let command = process::argv(&workload, config)?;
        let chosen = workload.name.is_some();
        let name = workload.name.get_or_insert_with(|| name::of(&id)).clone();
        let mut record = Record {
            id: id.clone(),
            image_id: foreground.image.map(|image| image.id().clone()),
            image: match &workload.root {
                Root::Image { name, .. } => name.clone(),
                Root::Directory(path) | Root::File(ImageFile { path, .. }) => path.display().to_string(),
            },
            command,
            health: merged(workload.health.as_ref(), config.healthcheck.as_ref()),
            image_stop_signal: foreground.image.and_then(|image| image.config.config.stop_signal.clone()),
            created: now(),
            name: name.clone(),
            workload,
        };
        let holds = foreground.image.map(|image| image.manifest_digest.clone());
        let holds = holds.as_slice();
        // A name that a person chose is given once; one that was made up is as good as unique.
        let _names = if chosen { Some(self.claim(&name)?) } else { None };
        // Until all of it is written down it is a leftover of whoever is killed here.
        let folder = self.store.create_container(&id, holds, true)?;
        let adopted = self.adopt_volumes(&mut record.workload, config, &id);
        let named = if chosen { self.put_name(&name, &id) } else { Ok(()) };
        let written = named.and(adopted).and_then(|_held| record.save(&folder)).and_then(|()| {
            if !record.workload.remove {
                folder.keep()?;
            }
            (foreground.created)(&id).map_err(|e| Error::system("tell the container's ID", e))
        });
        match written {
            Ok(()) => {
                self.note(&record, "create", &[]);
                Ok(Created { folder, record })
            }
            Err(e) => {
                drop(folder.remove());
                drop(self.release_volumes(&record.workload));
                Err(e)
            }
        }
    }

    /// Sees to it that no container has the name, for as long as the lock is held.
    pub(crate) fn claim(&self, name: &str) -> Result<std::fs::File> {
        name::check(name)?;
        let lock = self.store.lock_names()?;
        match self.named(name)? {
            Some(info) if info.record.workload.remove && info.status == crate::record::Status::Dead => {
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
    pub(crate) fn start_in(
        &self,
        folder: &Container,
        record: &Record,
        foreground: &Foreground<'_>,
        streams: Option<Streams>,
    ) -> Result<Started> {
        let workload = &record.workload;
        let base = self.base(folder, workload, foreground)?;
        let view = base.view;
        let hostname = self.hostname(workload, &record.id)?;
        let mut network = UserNetwork::of(workload, self.identity)?;
        let default = ContainerConfig::default();
        let taken = self.take_places(record)?;
        if let Some(network) = &mut network {
            network.of_container(&record.id);
            taken.as_ref().map_or(Ok(()), |taken| network.share(taken, folder.path()))?;
        }
        let mut extra = match workload.system.bare_etc {
            true => Vec::new(),
            false => {
                let places = taken.as_ref().map(|taken| &taken.places);
                match &workload.network {
                    NetworkMode::Container(other) => {
                        let other = self.store.container(&self.find(other)?.record.id)?;
                        hosts::of_shared_network(folder, &hostname, other.path(), &view)?
                    }
                    _ => hosts::of_container(folder, &hostname, workload, &view, places, network.as_ref())?,
                }
            }
        };
        if workload.here {
            extra.extend(hosts::of_caller(&caller(), folder, &view)?);
        }
        // An image that this machine has nothing for is tried all the same: not all of its programs need be foreign.
        let interpreter =
            foreground.image.and_then(|image| foreign::interpreter(&image.config.platform()).ok()).flatten();
        let mut planned = plan(Parts {
            workload,
            image: foreground.image.map_or(&default, |image| &image.config.config),
            identity: self.identity,
            prepared: base.prepared,
            root: base.root,
            read_only_root: base.read_only,
            untrusted_root: base.untrusted,
            view: &view,
            sources: base.sources,
            hostname: &hostname,
            pid_of: &|name| self.pid_of(name),
            extra,
            terminal: workload.tty.then(terminal::size),
            interpreters: interpreter.iter().map(foreign::Interpreter::open).collect::<Result<_>>()?,
            warn: foreground.warn,
        })?;
        if matches!(workload.root, Root::File(_)) && workload.writable == Writable::Nowhere {
            bare_root::without_overlay(&mut planned.setup, &view);
        }
        planned.setup.namespaces.network_messages = network.as_ref().map(UserNetwork::messages);
        // Another namespace of the caller's is no part of the one that these programs mount in.
        if let Some(shared) = foreground.user_namespace.filter(|_| base.programs.is_none())
            && namespaces::is_of_caller(&planned.setup.namespaces.user)
        {
            let shared = shared.try_clone().map_err(|e| Error::system("share a user namespace", e))?;
            planned.setup.namespaces.user = UserNs::Join(shared.into());
        }
        if self.identity == Identity::Single {
            let process = &planned.setup.process;
            base.servers.iter().for_each(|image| image.file_system().belongs_to(process.uid, process.gid));
        }
        let mut warn = |text: String| (foreground.warn)(&text);
        let fence = match &planned.limits {
            Some(limits) => {
                let best_effort = workload.resources.best_effort;
                Fence::new(&self.group_name(&record.id), limits, best_effort, &mut warn)?
            }
            None => Fence::none(),
        };
        if let Some(Streams { stdin, stdout, stderr }) = streams {
            planned.setup.stdio.stdin = Some(stdin);
            planned.setup.stdio.stdout = Some(stdout);
            planned.setup.stdio.stderr = Some(stderr);
        } else if !workload.interactive && !workload.tty {
            planned.setup.stdio.stdin = Some(null()?);
        }
        let of_places = taken.as_ref().map(|taken| taken.places.ports.clone());
        let ports = network.as_ref().map(|network| network.ports.clone()).or(of_places).unwrap_or_default();
        let serving = RefCell::new(Vec::new());
        let serve = Serve { engine: self, programs: base.fuse, record, foreground, serving: &serving };
        fence.admit(&mut planned.setup)?;
        let (mut child, state) = self.begin(folder, &mut planned, &view, taken.as_ref(), ports, serve)?;
        let made = network.and_then(|network| Some(network.made(child.network.take()?)));
        let mut locks = base.locks;
        let (mut resolver, mut doors) = (None, Vec::new());
        if let Some(taken) = taken {
            let kept = taken.keep(&workload.dns);
            locks.extend(kept.held);
            (resolver, doors) = (kept.resolver, kept.doors);
        }
        for warning in &child.warnings {
            (foreground.warn)(&format!("{warning}: {}", warning.cause));
        }
        (foreground.started)(child.pid());
        self.note(record, "start", &[]);
        let (servers, programs, fuse) = (base.servers, base.programs, serving.into_inner());
        Ok(Started { child, state, fence, locks, network: made, servers, resolver, doors, programs, fuse })
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
        // The program waits for it only where it uses the network.
        let served = started.network.take().map(|network| network.serve(self, &workload.dns)).transpose();
        if let Err(e) = &served {
            (foreground.warn)(&format!("the container has no network: {e}"));
        }
        let doors = std::mem::take(&mut started.doors);
        let passing = serve_doors(self, &container.record.id, doors);
        if let Err(e) = &passing {
            (foreground.warn)(&format!("its ports do not lead to it by IPv6: {e}"));
        }
        let status = attend(&mut started.child, workload, signals, started.resolver.as_mut(), &|| {
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
        drop(passing);
        let out_of_memory = started.fence.oom_kills() > 0;
        if let Err(e) = started.fence.remove() {
            (foreground.warn)(&format!("the control group stays until the next collection: {e}"));
        }
        if let Err(e) = self.release_networks(&container.record.id) {
            (foreground.warn)(&format!("places in networks stay until the next collection: {e}"));
        }
        let exit = Exit::from(status?);
        self.note_end(&container.record, exit.code(), out_of_memory, started.state.pid_start);
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

    fn begin(
        &self,
        folder: &Container,
        planned: &mut Planned,
        view: &View,
        taken: Option<&Taken>,
        ports: Vec<Port>,
        serve: Serve<'_>,
    ) -> Result<(Child, State)> {
        let setup = &mut planned.setup;
        let gate = serve.gate(setup)?;
        let connect = taken.map(|taken| {
            setup.gate.before_root = true;
            // First, so what the user wants of the same parameter has the last word.
            setup.sysctls.splice(..0, taken.parameters());
            |pid, network: Option<BorrowedFd<'_>>| taken.connect(pid, network)
        });
        let begin = gate.map(|gate| move |pid| serve.begin(pid, &gate));
        let child = match (&connect, &begin) {
            (None, None) => spawn(setup, view)?,
            _ => {
                let halts = Halts {
                    before_root: connect.as_ref().map(|halt| halt as _),
                    before_exec: begin.as_ref().map(|halt| halt as _),
                };
                spawn_halting(setup, view, &halts)?
            }
        };
        let own = std::process::id().cast_signed();
        let state = State {
            pid: Some(child.pid()),
            pid_start: process_start(child.pid()),
            monitor: process_start(own).map(|start| (own, start)),
            started: Some(now()),
            ports,
            ..State::default()
        };
        if let Err(e) = state.save(folder) {
            drop(child.kill(libc::SIGKILL));
            return Err(e);
        }
        Ok((child, state))
    }
}

pub(crate) struct Created {
    pub folder: Container,
    pub record: Record,
}

/// A container whose program runs.
pub(crate) struct Started {
    pub child: Child,
    pub state: State,
    pub fence: Fence,
    /// Files that are this container's alone while it runs.
    pub locks: Vec<std::fs::File>,
    /// Its network, where nobody serves it yet.
    pub network: Option<Unserved>,
    /// The images of which threads of this process serve files.
    pub servers: Vec<Arc<Server<FileImage>>>,
    /// Answers its questions for names, where it has networks.
    pub resolver: Option<Resolver>,
    /// Ports of the host's that lead to it by whoever stays with it.
    pub doors: Vec<Door>,
    /// Programs of the host that serve its root.
    pub programs: Option<OverlayPrograms>,
    /// Programs that serve its mounts, and that end with it.
    pub fuse: Vec<Serving>,
}

/// Streams of a program other than the caller's.
#[derive(Debug)]
pub(crate) struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Engine {
    /// That of the container whose name it shares, or its own.
    pub(crate) fn hostname(&self, workload: &Workload, id: &str) -> Result<String> {
        match &workload.uts {
            NamespaceMode::Container(other) => {
                let other = self.find(other)?.record;
                Ok(hostname(&other.workload, &other.id))
            }
            _ => Ok(hostname(workload, id)),
        }
    }
}

/// The caller's wish, the host's own name where the network is asked to be the host's, else the short ID, as Docker
/// has it.
fn hostname(workload: &Workload, id: &str) -> String {
    if let Some(name) = &workload.hostname {
        return name.clone();
    }
    let of_host = workload.network == NetworkMode::Host || workload.uts == NamespaceMode::Host;
    if of_host {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    id[..12].to_owned()
}

/// Stays with the container until it ends: hands signals on, and copies between the caller's terminal and its own.
pub(crate) fn attend(
    child: &mut Child,
    workload: &Workload,
    signals: &Signals,
    mut resolver: Option<&mut Resolver>,
    meanwhile: &dyn Fn(),
) -> Result<ExitStatus> {
    let failed = |e: io::Error| Error::system("stay with the container", e);
    let mut master = child.terminal.take();
    if let Some(master) = &master {
        rustix::io::ioctl_fionbio(master, true).map_err(|e| failed(e.into()))?;
    }
    let _raw = if master.is_some() && workload.interactive { terminal::Raw::enter() } else { None };
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let (mut input, mut output) = (Flow::default(), Flow::default());
    input.ended = !workload.interactive;
    // Any other process ends by such a signal unless it has a reason not to.
    let is_first = workload.pid == NamespaceMode::Private;
    let mut asked_to_end = 0;
    let mut ended = false;
    meanwhile();
    loop {
        // Known once, it need not be heard of again.
        let of_child = if ended { PollFlags::empty() } else { PollFlags::IN };
        let mut more = false;
        if let Some(terminal) = &master {
            let mut fds =
                vec![PollFd::new(signals, PollFlags::IN), PollFd::from_borrowed_fd(child.pidfd(), of_child)];
            // What the program has printed is in its terminal by now, and that of the caller may be slow.
            let at_once = ended && output.waiting.is_empty();
            let places = [input.awaits(&stdin, terminal), output.awaits(terminal, &stdout)].map(|fd| {
                fds.extend(fd);
                fds.len() - 1
            });
            let Some(questions) = wait(&mut fds, resolver.as_deref(), at_once).map_err(failed)? else {
                continue;
            };
            ended |= !fds[1].revents().is_empty();
            // The place of a direction that awaits nothing is another's, and harmless.
            let [from_caller, from_terminal] = places.map(|at| at > 1 && !fds[at].revents().is_empty());
            if from_caller && input.pump(&stdin, terminal, true).is_err() {
                input = Flow { ended: true, ..Flow::default() };
            }
            // As a terminal whose person has gone: nobody reads any more, or the other side is closed.
            let hung_up = from_terminal && output.pump(terminal, &stdout, false).is_err();
            if hung_up || output.ended && output.waiting.is_empty() {
                master = None;
            }
            more = master.is_some() && (from_terminal || !output.waiting.is_empty());
            if let Some(resolver) = &mut resolver {
                resolver.advance(&questions);
            }
        } else {
            let mut fds = vec![
                PollFd::new(signals, PollFlags::IN),
                PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN),
            ];
            let Some(questions) = wait(&mut fds, resolver.as_deref(), ended).map_err(failed)? else {
                continue;
            };
            ended |= !fds[1].revents().is_empty();
            if let Some(resolver) = &mut resolver {
                resolver.advance(&questions);
            }
        }
        if ended && !more {
            return child.wait().map_err(failed);
        }
        while let Some((signal, from)) = signals.next().map_err(failed)? {
            match signal {
                // The terminal has told the program as well.
                libc::SIGINT | libc::SIGQUIT | libc::SIGHUP
                    if workload.keep_session && from == From::Kernel => {}
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE | libc::SIGCONT => {}
                libc::SIGWINCH => {
                    if let Some(master) = &master {
                        terminal::resize(master);
                    }
                }
                libc::SIGINT | libc::SIGTERM => {
                    asked_to_end += u32::from(is_first);
                    let signal = if asked_to_end >= PATIENCE { libc::SIGKILL } else { signal };
                    child.kill(signal).map_err(failed)?;
                }
                libc::SIGHUP if terminal::is_gone() => {
                    master = None;
                    child.kill(libc::SIGHUP).map_err(failed)?;
                    // The kernel keeps from process 1 what it does not listen to. Any other program would end here,
                    // and this one has nobody left who could end it.
                    if !process::minds(child.pid(), libc::SIGHUP) {
                        child.kill(libc::SIGKILL).map_err(failed)?;
                    }
                }
                other => child.kill(other).map_err(failed)?,
            }
        }
    }
}

/// Waits until something is ready, or only looks (`at_once`), also for the resolver, whose descriptors come behind the others. Says which of its are;
/// `None` where a signal came in between.
fn wait<'a>(
    fds: &mut Vec<PollFd<'a>>,
    resolver: Option<&'a Resolver>,
    at_once: bool,
) -> io::Result<Option<Vec<Token>>> {
    let own = fds.len();
    let awaits = resolver.map(Resolver::awaits).unwrap_or_default();
    fds.extend(awaits.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
    let until = if at_once { Some(Instant::now()) } else { resolver.and_then(Resolver::deadline) };
    let timeout = until.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    let ready = awaits.iter().zip(&fds[own..]).filter(|(_, fd)| !fd.revents().is_empty());
    Ok(Some(ready.map(|((token, ..), _)| *token).collect()))
}

/// One direction between two terminals. It never waits for its reader while the other direction has something to
/// say, or both sides would wait for each other.
#[derive(Debug, Default)]
struct Flow {
    waiting: Vec<u8>,
    ended: bool,
}

impl Flow {
    /// So much fits into a pipe that is ready, without waiting (pipe(7)).
    const PIECE: usize = 4096;

    /// The end that has to be ready for the next step.
    fn awaits<'a>(&self, from: &'a impl AsFd, to: &'a impl AsFd) -> Option<PollFd<'a>> {
        match (self.waiting.is_empty(), self.ended) {
            (false, _) => Some(PollFd::new(to, PollFlags::OUT)),
            (true, false) => Some(PollFd::new(from, PollFlags::IN)),
            (true, true) => None,
        }
    }

    /// Reads what is there, or writes what waits. With `says_end` the reader is told the end as a person would, by the
    /// terminal's own character for it.
    fn pump(&mut self, from: impl AsFd, to: impl AsFd, says_end: bool) -> rustix::io::Result<()> {
        if self.waiting.is_empty() {
            if self.ended {
                return Ok(());
            }
            let mut buffer = [0u8; Self::PIECE];
            match rustix::io::read(from, &mut buffer) {
                // The other side of a terminal closes with an error (EIO).
                Ok(0) | Err(Errno::IO) => {
                    self.ended = true;
                    if says_end {
                        self.waiting.push(0x04);
                    }
                }
                Ok(n) => self.waiting.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e),
            }
            return Ok(());
        }
        match rustix::io::write(to, &self.waiting) {
            Ok(n) => drop(self.waiting.drain(..n)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
