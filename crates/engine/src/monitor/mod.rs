//! Containers in the background: each has a process of its own that stays with it, its monitor. The monitor takes what the
//! container prints into its log and to those who are attached, writes down how it ended, and starts it again where its
//! policy says so.
//!
//! What others want of a container they do themselves: they send signals by process descriptors, join its namespaces,
//! change its control group, and wait for its files to change. The only thing that they need the monitor for is its
//! streams ([`frames`]), so that is all that its socket is for. What they want to be known is a file beside its record: one
//! who stops a container says so in `stopped` first.
//!
//! A start needs memory that is not wanted later, so when the program runs the monitor executes itself anew ([`Handed`]):
//! children, descriptors and blocked signals stay. It has one thread.

mod client;
pub mod frames;
mod probe;
mod restart;
mod stay;
mod terminal;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isles_network::dns::{Resolver, Sockets};
use isles_network::user::door::Door;
use isles_network::user::inside::Plan;
use isles_network::user::rules::Shared;
use isles_network::user::{Kind, Listener};
use isles_sandbox::Child;
use isles_sandbox::background::{Side, split};
use isles_sandbox::signals::Signals;
use isles_spec::{Hint, Workload};
use isles_store::Container;
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use crate::background::{Report, said, started};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::overlay_programs;
use crate::record::{Record, State, Status, now};
use crate::run::{Created, Foreground, Started, Streams};
use crate::start::{null, pipe};
use crate::user_network::Unserved;

pub use restart::at_boot;
pub(crate) use stay::stay_with;
pub(crate) use terminal::with_terminal;

/// The word that makes this program a monitor, before what [`Handed`] says.
pub const WORD: &str = "monitor";
/// Says that somebody asked for the end of the container.
pub(crate) const STOPPED: &str = "stopped";
/// A line of [`STOPPED`]: they will remove it then.
pub(crate) const DOOMED: &str = "doomed";
/// Says that somebody will start it again, so it is not removed when it ends.
pub(crate) const RESTARTS: &str = "restarts";
/// Tells a monitor that waits to look again.
pub(crate) const WAKE: i32 = libc::SIGUSR1;

/// What a monitor takes along when it executes itself anew; descriptors by their numbers.
#[derive(Debug, Serialize, Deserialize)]
struct Handed {
    root: PathBuf,
    id: String,
    pid: i32,
    lock: RawFd,
    control: RawFd,
    stdin: Option<RawFd>,
    stdout: Option<RawFd>,
    stderr: Option<RawFd>,
    terminal: Option<RawFd>,
    /// Who is attached from the beginning.
    first: Option<RawFd>,
    /// Files that are locked while the container runs.
    kept: Vec<RawFd>,
    tree: Option<RawFd>,
    /// Ports of the host's that lead to ports of the container's.
    doors: Vec<(RawFd, u16)>,
    network: Option<HandedNetwork>,
    /// On which it asks for names: over UDP, over TCP.
    names: Option<(RawFd, RawFd)>,
    /// The delay before this run, in milliseconds.
    delay: u64,
}

/// A network that the monitor serves, and the sockets of its published ports.
#[derive(Debug, Serialize, Deserialize)]
struct HandedNetwork {
    socket: RawFd,
    plan: Plan,
    host_loopback: bool,
    shared: Vec<Shared>,
    internal: bool,
    container: Option<String>,
    listeners: Vec<(RawFd, Kind, u16, bool)>,
}

/// A monitor whose container runs.
pub(crate) struct Running {
    pub engine: Engine,
    pub folder: Container,
    pub record: Record,
    pub state: State,
    pub child: Child,
    pub control: UnixListener,
    pub ends: Ends,
    pub first: Option<OwnedFd>,
    pub kept: Vec<File>,
    /// The container's files. Whoever lets go of an overlay last waits until what was written is on the disk: held by the monitor,
    /// the program ends without that, and its end is told.
    pub tree: Option<OwnedFd>,
    pub doors: Vec<Door>,
    pub network: Option<Unserved>,
    pub resolver: Option<Resolver>,
    pub delay: Duration,
    pub signals: Signals,
}

/// The monitor's ends of the program's streams.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

impl Engine {
    /// Makes a container without starting it, and returns its ID.
    pub fn create_container(&self, workload: &Workload, foreground: &Foreground<'_>) -> Result<String> {
        let created = self.create(workload, foreground)?;
        // Nobody stays with it, and that does not make it a leftover.
        created.folder.keep()?;
        Ok(created.record.id)
    }

    /// Runs a container in the background, and comes back with its ID when its program runs. Who is at the other end of
    /// `first` is attached from the beginning. The process must have one thread.
    ///
    /// # Errors
    /// As [`Engine::run`]; nothing of the container is left then.
    pub fn run_detached(
        &self,
        workload: &Workload,
        foreground: &Foreground<'_>,
        first: Option<OwnedFd>,
    ) -> Result<String> {
        self.wake_pod(workload)?;
        let created = self.create(workload, foreground)?;
        let id = created.record.id.clone();
        let left = created.record.clone();
        if let Err(e) = self.launch(created, foreground, first) {
            if let Ok(mut container) = self.store.container(&id)
                && container.lock().is_ok()
            {
                drop(container.remove());
                self.forget_name(&left);
                drop(self.release_volumes(&left.workload));
            }
            return Err(e);
        }
        Ok(id)
    }

    /// Starts a container that was made before, and does not run. Returns its ID, and whether it had to be started. The
    /// process must have one thread.
    ///
    /// # Errors
    /// There is none of that name, or it could not be started; it stays as it was then.
    pub fn start_container(
        &self,
        name: &str,
        first: Option<OwnedFd>,
        warn: &dyn Fn(&str),
    ) -> Result<(String, bool)> {
        let found = self.find(name)?;
        let id = found.record.id.clone();
        let mut folder = self.store.container(&id)?;
        if !folder.try_lock()? {
            match self.find(&id)?.status {
                // Its monitor has written down its end, and is about to let go of it.
                Status::Exited => folder.lock()?,
                Status::Paused => {
                    return Err(Error::impossible(
                        format!("starting container {name}"),
                        "it is paused; 'isles unpause' lets it go on",
                    ));
                }
                _ => return Ok((id, false)),
            }
        }
        self.wake_pod(&found.record.workload)?;
        // The last word that was written, by somebody who may have had it until now.
        let Some(record) = Record::load(&folder)? else { return Err(Error::NoContainer(name.to_owned())) };
        crate::start::Fence::leftover(&self.group_name(&id))?.remove()?;
        State::default().save(&folder)?;
        folder.forget(STOPPED)?;
        folder.forget(PAUSED)?;
        if record.workload.remove {
            folder.make_ephemeral()?;
        }
        let image = self.image_of(&record)?;
        let foreground = Foreground { image: image.as_ref(), warn, ..Foreground::default() };
        let created = Created { folder, record };
        match self.launch(created, &foreground, first) {
            Ok(()) => Ok((id, true)),
            Err(e) => {
                if let Ok(mut folder) = self.store.container(&id)
                    && folder.lock().is_ok()
                {
                    let state = State {
                        finished: Some(now()),
                        exit_code: Some(e.exit_code()),
                        error: said(&e),
                        ..State::default()
                    };
                    drop(state.save(&folder));
                    drop(folder.keep());
                }
                Err(e)
            }
        }
    }

    /// Splits the monitor off, and waits until the program runs.
    fn launch(&self, created: Created, foreground: &Foreground<'_>, first: Option<OwnedFd>) -> Result<()> {
        let failed = |e| Error::system("start a process in the background", e);
        // What waits to be written would be written by both.
        io::stdout().flush().and_then(|()| io::stderr().flush()).map_err(failed)?;
        let stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)
            .map_or_else(|_| null(), Ok)
            .map(File::from)?;
        let nowhere = File::from(null()?);
        match split(&nowhere, &stderr).map_err(failed)? {
            Side::Caller(reports) => {
                // The lock is the monitor's now.
                drop((created, first));
                let mut text = Vec::new();
                io::Read::read_to_end(
                    &mut io::Read::take(File::from(reports), crate::background::REPORT_LIMIT),
                    &mut text,
                )
                .map_err(failed)?;
                started(&text).map(drop)
            }
            Side::Background(reports) => {
                let code = self.begin_monitor(created, foreground, first, File::from(reports));
                std::process::exit(code.into())
            }
        }
    }

    fn begin_monitor(
        &self,
        created: Created,
        foreground: &Foreground<'_>,
        first: Option<OwnedFd>,
        mut reports: File,
    ) -> u8 {
        let outcome = self.start_behind(created, foreground, first, Duration::ZERO, 0);
        let report = match &outcome {
            Ok((running, _)) => Report::Runs {
                id: running.record.id.clone(),
                pid: running.child.pid(),
                monitor: std::process::id().cast_signed(),
            },
            Err(e) => Report::Failed { message: said(e), hint: e.hint(), exit_code: e.exit_code() },
        };
        // Whoever listened may be gone, and the container goes on.
        if let Ok(text) = serde_json::to_vec(&report) {
            drop(reports.write_all(&text));
        }
        match outcome {
            Ok((running, serves)) => {
                drop(reports);
                go_on(running, serves)
            }
            Err(e) => e.exit_code(),
        }
    }

    /// Starts the program with the monitor at the other end of its streams. The second part says that this process serves
    /// the container's files, and so must stay what it is.
    pub(crate) fn start_behind(
        &self,
        created: Created,
        foreground: &Foreground<'_>,
        first: Option<OwnedFd>,
        delay: Duration,
        restarts: u32,
    ) -> Result<(Running, bool)> {
        overlay_programs::refuse_in_background(&created.record.workload, self.identity)?;
        let signals = Signals::block().map_err(|e| Error::system("wait for signals", e))?;
        let Created { folder, record } = created;
        let control = listen(folder.path())?;
        let (streams, mut ends) = streams(&record.workload)?;
        let Started { mut child, mut state, fence, locks, network, servers, resolver, doors, .. } =
            self.start_in(&folder, &record, foreground, streams)?;
        // The group is found again by its name.
        fence.keep();
        ends.terminal = child.terminal.take();
        state.restarts = restarts;
        state.detached = true;
        state.save(&folder)?;
        // Of one that goes with its end nothing has to reach the disk, and files that this process serves end with it.
        let tree = if record.workload.remove || !servers.is_empty() { None } else { tree_of(child.pid()) };
        let running = Running {
            engine: self.clone(),
            folder,
            record,
            state,
            child,
            control,
            ends,
            first,
            kept: locks,
            tree,
            doors,
            network,
            resolver,
            delay,
            signals,
        };
        Ok((running, !servers.is_empty()))
    }
}

/// The root of a process's files; `None` where it has ended, or may not be looked at.
fn tree_of(pid: i32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty()).ok()
}

/// Marks a container whose processes are kept from running.
pub(crate) const PAUSED: &str = "paused";

/// The socket of a container that is about to run.
fn listen(folder: &Path) -> Result<UnixListener> {
    let failed = |e| Error::file("listen in", folder, e);
    // The path of a socket has 107 bytes at most (unix(7)), and a folder may be anywhere.
    let dir = File::open(folder).map_err(failed)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), frames::SOCKET));
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    // Whoever may write to it is at the program's terminal: its owner, whatever the umask says.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The program's streams, and the other ends of them. With a terminal they come with it.
fn streams(workload: &Workload) -> Result<(Option<Streams>, Ends)> {
    if workload.tty {
        return Ok((None, Ends::default()));
    }
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let (stdin, in_write) = match workload.interactive {
        true => {
            let (read, write) = pipe()?;
            (read, Some(write))
        }
        false => (null()?, None),
    };
    let streams = Streams { stdin, stdout: out_write, stderr: err_write };
    Ok((
        Some(streams),
        Ends { stdin: in_write, stdout: Some(out_read), stderr: Some(err_read), terminal: None },
    ))
}

/// Goes on as a monitor whose program runs, with as little memory as can be. Returns the exit code of the process.
pub(crate) fn go_on(running: Running, serves: bool) -> u8 {
    if serves {
        return stay_with(running);
    }
    match execute_again(&running) {
        // Where that cannot be done, it works all the same.
        Ok(()) | Err(_) => stay_with(running),
    }
}

fn execute_again(running: &Running) -> io::Result<()> {
    let Some(lock) = running.folder.lock_file() else { return Ok(()) };
    let number = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
    let handed = Handed {
        root: running.engine.store().root().to_owned(),
        id: running.record.id.clone(),
        pid: running.child.pid(),
        lock: lock.as_raw_fd(),
        control: running.control.as_raw_fd(),
        stdin: number(&running.ends.stdin),
        stdout: number(&running.ends.stdout),
        stderr: number(&running.ends.stderr),
        terminal: number(&running.ends.terminal),
        first: number(&running.first),
        kept: running.kept.iter().map(AsRawFd::as_raw_fd).collect(),
        tree: number(&running.tree),
        doors: running.doors.iter().map(|door| (door.socket.as_raw_fd(), door.port)).collect(),
        network: running.network.as_ref().map(|network| HandedNetwork {
            socket: network.network.as_raw_fd(),
            plan: network.plan,
            host_loopback: network.host_loopback,
            shared: network.shared.clone(),
            internal: network.internal,
            container: network.container.clone(),
            listeners: network
                .listeners
                .iter()
                .map(|l| (l.socket.as_raw_fd(), l.kind, l.port, l.ipv6))
                .collect(),
        }),
        names: running.resolver.as_ref().map(|resolver| {
            let sockets = resolver.sockets();
            (sockets.udp.as_raw_fd(), sockets.tcp.as_raw_fd())
        }),
        delay: u64::try_from(running.delay.as_millis()).unwrap_or(u64::MAX),
    };
    let text = serde_json::to_string(&handed)?;
    // What the caller had open is not the monitor's to keep.
    isles_sandbox::background::close_on_execution(3)?;
    let own = [Some(handed.lock), Some(handed.control), handed.stdin, handed.stdout, handed.stderr];
    let own = own.into_iter().chain([handed.terminal, handed.first, handed.tree]).flatten();
    let sockets = handed.network.iter().flat_map(|n| n.listeners.iter().map(|l| l.0).chain([n.socket]));
    let names = handed.names.iter().flat_map(|(udp, tcp)| [*udp, *tcp]);
    let names = names.chain(handed.doors.iter().map(|door| door.0));
    for fd in own.chain(handed.kept.iter().copied()).chain(sockets).chain(names) {
        // SAFETY: the descriptors are open: their owners are in `running`.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    let null = null().map_err(io::Error::other)?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Err(isles_sandbox::execute_again(&["isles".into(), WORD.into(), text.into()]))
}

/// What the program does with [`WORD`] and the word after it: it is a monitor that has executed itself anew. Returns the
/// exit code of the process.
pub fn main(handed: &str) -> u8 {
    const STRANGE: u8 = 125;
    match adopt(handed) {
        Ok(running) => stay_with(running),
        Err(_) => STRANGE,
    }
}

fn adopt(handed: &str) -> Result<Running> {
    let strange = || Error::system("go on as a monitor", io::Error::from(io::ErrorKind::InvalidInput));
    let handed: Handed = serde_json::from_str(handed).map_err(|_| strange())?;
    let own = |fd: RawFd| -> Result<OwnedFd> {
        if fd < 3 || rustix::io::fcntl_getfd(borrow(fd)).is_err() {
            return Err(strange());
        }
        rustix::io::fcntl_setfd(borrow(fd), FdFlags::CLOEXEC).map_err(|_| strange())?;
        // SAFETY: the descriptor is open, and was handed over by whoever owned it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let some = |fd: Option<RawFd>| fd.map(own).transpose();
    let engine = Engine::open(handed.root)?;
    let folder = engine.store.adopt_container(&handed.id, own(handed.lock)?.into())?;
    let record = Record::load(&folder)?.ok_or_else(strange)?;
    let state = State::load(&folder)?;
    let child = Child::adopt(handed.pid).map_err(|e| Error::system("go on as a monitor", e))?;
    let listener = |(socket, kind, port, ipv6)| -> Result<Listener> {
        Ok(Listener { socket: own(socket)?, kind, port, ipv6 })
    };
    let network = handed.network.map(|network| -> Result<Unserved> {
        Ok(Unserved {
            network: own(network.socket)?,
            plan: network.plan,
            host_loopback: network.host_loopback,
            shared: network.shared,
            internal: network.internal,
            container: network.container,
            listeners: network.listeners.into_iter().map(listener).collect::<Result<_>>()?,
        })
    });
    let door = |(socket, port)| -> Result<Door> { Ok(Door { socket: own(socket)?, port }) };
    let sockets = match handed.names {
        Some((udp, tcp)) => Some(Sockets { udp: own(udp)?, tcp: own(tcp)? }),
        None => None,
    };
    let dns = &record.workload.dns;
    let resolver = sockets.map(|sockets| crate::networks::resolver(&engine, sockets, &handed.id, dns));
    Ok(Running {
        network: network.transpose()?,
        resolver,
        control: own(handed.control)?.into(),
        ends: Ends {
            stdin: some(handed.stdin)?,
            stdout: some(handed.stdout)?,
            stderr: some(handed.stderr)?,
            terminal: some(handed.terminal)?,
        },
        first: some(handed.first)?,
        kept: handed.kept.into_iter().map(|fd| own(fd).map(File::from)).collect::<Result<_>>()?,
        tree: some(handed.tree)?,
        doors: handed.doors.into_iter().map(door).collect::<Result<_>>()?,
        delay: Duration::from_millis(handed.delay),
        signals: Signals::block().map_err(|e| Error::system("wait for signals", e))?,
        engine,
        folder,
        record,
        state,
        child,
    })
}

fn borrow(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: whoever asks has looked whether it is one that may be open; a closed one is answered with EBADF.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.max(0)) }
}
