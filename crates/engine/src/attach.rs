//! Attached to a container: its streams on the caller's, as another who is attached has them too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use isles_sandbox::signals::Signals;
use isles_spec::Workload;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::control::send_to;
use crate::detach::Keys;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::monitor::frames::{self, HEAD, Kind, OWNS, SOCKET, WANTS_INPUT, WANTS_OUTPUT};
use crate::record::Status;
use crate::run::{Foreground, PATIENCE};
use crate::{process, terminal};

/// What those who are attached want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    pub input: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Bytes that let go of a container with a terminal, when they are typed one after the other; none does where empty.
    pub detach_keys: Vec<u8>,
    /// The caller's signals are the container's.
    pub signals: bool,
    /// The container is the caller's, as one in the foreground: it ends with the caller's terminal, and where the caller is
    /// asked to end again and again.
    pub foreground: bool,
}

impl Wishes {
    /// All of its streams, and the caller's signals.
    pub fn all(input: bool, detach_keys: Vec<u8>) -> Wishes {
        Wishes { input, stdout: true, stderr: true, detach_keys, signals: true, foreground: false }
    }

    /// Reads keys as docker writes them: letters, and `ctrl-` with a letter or one of `@^[,_`, with commas between.
    ///
    /// # Errors
    /// That is none.
    pub fn keys(text: &str) -> Result<Vec<u8>> {
        crate::detach::parse(text)
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parted {
    /// The container has ended, with this exit code.
    Ended(u8),
    /// The caller let go of it; it goes on.
    LetGo,
}

impl Engine {
    /// Attaches to a container, until it ends or the caller lets go of it. The process must have one thread.
    ///
    /// # Errors
    /// It does not run, or runs in somebody's foreground.
    pub fn attach(&self, name: &str, wishes: &Wishes) -> Result<Parted> {
        let found = self.begun(name)?;
        let refuse = |why: &str| Err(Error::impossible(format!("attaching to container {name}"), why));
        match found.status {
            Status::Running => {}
            Status::Paused => return refuse("it is paused; 'isles unpause' lets it go on"),
            Status::Restarting => return refuse("it has ended, and is about to start again"),
            _ => return Err(Error::NotRunning(name.to_owned())),
        }
        if !found.state.detached {
            return Err(Error::HasNoStreams { name: name.to_owned(), doing: "attaching to" });
        }
        let socket = self.connect(&found.record.id)?;
        greet(&socket, wishes)?;
        self.note(&found.record, "attach", &[]);
        self.stay_attached(&found.record.id, socket, wishes)
    }

    pub(crate) fn connect(&self, id: &str) -> Result<UnixStream> {
        let container = self.store.container(id)?;
        let failed = |e| Error::file("connect to the monitor of", container.path(), e);
        let dir = File::open(container.path()).map_err(failed)?;
        // The path of a socket has 107 bytes at most (unix(7)).
        UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).map_err(failed)
    }

    /// Starts a container and stays attached to it from its first word on. The process must have one thread.
    ///
    /// # Errors
    /// It runs already, or could not be started.
    pub fn start_attached(&self, name: &str, wishes: &Wishes, warn: &dyn Fn(&str)) -> Result<Parted> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| Error::system("make a socket", e))?;
        greet(&ours, wishes)?;
        let (id, started) = self.start_container(name, Some(theirs.into()), warn)?;
        if !started {
            return self.attach(&id, wishes);
        }
        self.stay_attached(&id, ours, wishes)
    }

    /// Makes a container, starts it with a monitor of its own, and stays attached to it from its first word on. The process
    /// must have one thread. `began` is told the ID when its program runs.
    ///
    /// # Errors
    /// As [`Engine::run`]; nothing of the container is left then.
    pub fn run_attached(
        &self,
        workload: &Workload,
        foreground: &Foreground<'_>,
        wishes: &Wishes,
        began: &dyn Fn(&str),
    ) -> Result<Parted> {
        if workload.tty && wishes.input && !terminal::stdin_is_one() {
            return Err(terminal::is_none());
        }
        let (ours, theirs) = UnixStream::pair().map_err(|e| Error::system("make a socket", e))?;
        greet(&ours, wishes)?;
        let id = self.run_detached(workload, foreground, Some(theirs.into()))?;
        began(&id);
        self.stay_attached(&id, ours, wishes)
    }

    fn stay_attached(&self, id: &str, socket: UnixStream, wishes: &Wishes) -> Result<Parted> {
        // It may have ended by now, but what it said waits.
        let found = self.find(id).ok();
        let process = found.as_ref().and_then(|info| info.state.pid.zip(info.state.pid_start));
        let terminal = found.as_ref().is_some_and(|info| info.record.workload.tty);
        let goes = found.filter(|info| info.record.workload.remove);
        let goes = goes.and_then(|info| info.state.monitor);
        let monitor = goes.and_then(|(pid, _)| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok());
        let parted = stay(socket, wishes, process, terminal, &format!("container {id}"))?;
        if let (Parted::Ended(_), Some(monitor)) = (parted, monitor) {
            // It removes the container, where that goes with its end, and lets go of it.
            let _ = poll(&mut [PollFd::new(&monitor, PollFlags::IN)], Some(&timespec(REMOVAL)));
        }
        Ok(parted)
    }
}

/// Says what is wanted. Said before there is anybody to hear it, so that a caller who is killed at any moment has said it.
pub(crate) fn greet(socket: &UnixStream, wishes: &Wishes) -> Result<()> {
    // The end is told to those only who want some output.
    let mut wants = WANTS_OUTPUT;
    wants |= if wishes.input { WANTS_INPUT } else { 0 };
    wants |= if wishes.foreground { OWNS } else { 0 };
    frames::send(socket, Kind::Hello, &[wants]).map_err(|e| Error::system("attach to the container", e))
}

/// Stays with a program, at the other end of whose streams somebody is that was greeted, until it ends or the caller lets go of it. With a
/// terminal, the caller's is raw from the first word on.
pub(crate) fn stay(
    socket: UnixStream,
    wishes: &Wishes,
    process: Option<(i32, u64)>,
    terminal: bool,
    whom: &str,
) -> Result<Parted> {
    let mut streams = Streams::new(socket, wishes, process)?;
    if terminal {
        streams.begin();
    }
    match streams.stay()? {
        Some(parted) => Ok(parted),
        None => Err(Error::impossible(
            format!("staying attached to {whom}"),
            "its monitor let go of the connection",
        )),
    }
}

struct Streams<'a> {
    socket: OwnedFd,
    wishes: &'a Wishes,
    process: Option<(i32, u64)>,
    signals: Signals,
    /// To the monitor.
    waiting: Vec<u8>,
    /// From it.
    /// Room for what the monitor says, and how much of it is there.
    got: Vec<u8>,
    have: usize,
    terminal: bool,
    input_ended: bool,
    keys: Keys,
    /// How often the caller was asked to end.
    asked_to_end: u32,
    raw: Option<terminal::Raw>,
}

/// So much waits for the monitor at most, before more is read.
const ENOUGH: usize = 64 << 10;
/// How long the end of a monitor is waited for after that of its container.
const REMOVAL: Duration = Duration::from_secs(10);
/// How long the last word to a monitor may take that has not listened for a while.
const PARTING: Duration = Duration::from_secs(2);
/// A frame: more at once would leave the processor's caches before it is printed.
const ROOM: usize = frames::LONGEST + HEAD;

/// Prints all of it, whatever the caller has made of its streams. What nobody takes is lost, and `false` said.
fn print(to: impl AsFd, mut content: &[u8]) -> bool {
    while !content.is_empty() {
        match rustix::io::write(&to, content) {
            Ok(n) => content = &content[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => return false,
        }
    }
    true
}

impl<'a> Streams<'a> {
    fn new(socket: UnixStream, wishes: &'a Wishes, process: Option<(i32, u64)>) -> Result<Streams<'a>> {
        let failed = |e: io::Error| Error::system("attach to the container", e);
        let signals = Signals::block().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Streams {
            socket: socket.into(),
            wishes,
            process,
            signals,
            waiting: Vec::new(),
            got: Vec::new(),
            have: 0,
            terminal: false,
            input_ended: !wishes.input,
            keys: Keys::new(&wishes.detach_keys),
            asked_to_end: 0,
            raw: None,
        })
    }

    /// Until it ends; `None` where the monitor is gone.
    fn stay(&mut self) -> Result<Option<Parted>> {
        let failed = |e: io::Error| Error::system("stay attached to the container", e);
        let stdin = io::stdin();
        loop {
            let reads = !self.input_ended && self.waiting.len() < ENOUGH;
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !self.waiting.is_empty());
            let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.socket, flags)];
            if reads {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            let left = self.keys.deadline().map(|end| end.saturating_duration_since(Instant::now()));
            match poll(&mut fds, left.map(timespec).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            let late = self.keys.late(Instant::now());
            if !late.is_empty() {
                self.say(Kind::Stdin, &late);
            }
            if ready.get(2).is_some_and(|flags| !flags.is_empty()) && self.read(stdin.as_fd()) {
                self.part();
                return Ok(Some(Parted::LetGo));
            }
            if ready[1].contains(PollFlags::OUT) {
                self.send();
            }
            if ready[1].intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match self.hear()? {
                    Heard::More => {}
                    Heard::Exit(code) => return Ok(Some(Parted::Ended(code))),
                    Heard::End => return Ok(None),
                }
            }
            self.pass_signals()?;
        }
    }

    /// Reads the caller's input. `true` where the keys were typed that let go of the container.
    fn read(&mut self, stdin: impl AsFd) -> bool {
        let mut piece = [0u8; 8192];
        let n = match rustix::io::read(stdin, &mut piece) {
            Ok(0) | Err(Errno::IO | Errno::BADF) => {
                self.input_ended = true;
                // A terminal is told the end by its own character, as a person would.
                if self.terminal {
                    self.say(Kind::Stdin, &[0x04]);
                }
                self.say(Kind::Stdin, &[]);
                return false;
            }
            Ok(n) => n,
            Err(_) => return false,
        };
        let (text, let_go) = match self.terminal {
            true => self.keys.take(&piece[..n], Instant::now()),
            false => (piece[..n].to_vec(), false),
        };
        if !text.is_empty() {
            self.say(Kind::Stdin, &text);
        }
        let_go
    }

    fn say(&mut self, kind: Kind, content: &[u8]) {
        self.waiting.extend_from_slice(&frames::head(kind, content.len()));
        self.waiting.extend_from_slice(content);
    }

    /// Says that the caller has let go, after all that was said before.
    fn part(&mut self) {
        self.say(Kind::LetGo, &[]);
        // Who does not listen any more need not hear it.
        let _ = rustix::io::ioctl_fionbio(&self.socket, false);
        let _ = sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, Some(PARTING));
        let mut rest = self.waiting.as_slice();
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn send(&mut self) {
        match rustix::net::send(&self.socket, &self.waiting, rustix::net::SendFlags::NOSIGNAL) {
            Ok(n) => drop(self.waiting.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // What it had to say comes still.
            Err(_) => {
                self.waiting.clear();
                self.input_ended = true;
            }
        }
    }

    fn hear(&mut self) -> Result<Heard> {
        let failed = |e: io::Error| Error::system("stay attached to the container", e);
        if self.got.is_empty() {
            self.got = vec![0; ROOM];
        }
        match rustix::io::read(&self.socket, &mut self.got[self.have..]) {
            Ok(0) | Err(Errno::CONNRESET) => return Ok(Heard::End),
            Ok(n) => self.have += n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::More),
            Err(e) => return Err(failed(e.into())),
        }
        let got = std::mem::take(&mut self.got);
        let mut rest = &got[..self.have];
        let mut heard = Heard::More;
        while let Some(head) = rest.first_chunk::<HEAD>() {
            let (kind, length) = frames::parse(*head).map_err(failed)?;
            let Some(content) = rest.get(HEAD..HEAD + length) else { break };
            rest = &rest[HEAD + length..];
            match kind {
                Kind::Stdout if self.wishes.stdout => {
                    // Whoever does not read what we print need not end the container, unless it is theirs.
                    if !print(rustix::stdio::stdout(), content) && self.terminal && self.wishes.foreground {
                        self.hang_up()?;
                    }
                }
                Kind::Stderr if self.wishes.stderr => drop(print(rustix::stdio::stderr(), content)),
                Kind::Stdout | Kind::Stderr => {}
                Kind::Exit => {
                    heard = Heard::Exit(content.first().copied().unwrap_or(0));
                    break;
                }
                Kind::Hello if content == [1] && !self.terminal => self.begin(),
                Kind::Hello => {}
                Kind::Stdin | Kind::Resize | Kind::LetGo => {}
            }
        }
        let left = self.have - rest.len()..self.have;
        self.have = rest.len();
        self.got = got;
        self.got.copy_within(left, 0);
        Ok(heard)
    }

    /// There is a terminal.
    fn begin(&mut self) {
        self.terminal = true;
        if self.wishes.input {
            self.raw = terminal::Raw::enter();
        }
        self.resize();
    }

    fn resize(&mut self) {
        if !terminal::is_any() {
            return;
        }
        let (rows, columns) = terminal::size();
        let size = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
        self.say(Kind::Resize, &size);
    }

    fn pass_signals(&mut self) -> Result<()> {
        while let Some((signal, _)) = self.signals.next().map_err(|e| Error::system("wait for signals", e))? {
            match signal {
                libc::SIGWINCH if self.terminal => self.resize(),
                libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE | libc::SIGCONT | libc::SIGWINCH => {}
                libc::SIGHUP if self.wishes.foreground && terminal::is_gone() => self.hang_up()?,
                libc::SIGINT | libc::SIGTERM if self.wishes.foreground => {
                    self.asked_to_end += 1;
                    let signal = if self.asked_to_end >= PATIENCE { libc::SIGKILL } else { signal };
                    send_to(self.process, signal)?;
                }
                _ if self.wishes.signals => send_to(self.process, signal)?,
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => {
                    self.raw = None;
                    isles_sandbox::signals::die_of(signal);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Streams<'_> {
    /// The caller's terminal is gone: any other program would end here, and so does the container, whose process 1 the kernel
    /// keeps from signals that it does not listen to.
    fn hang_up(&mut self) -> Result<()> {
        send_to(self.process, libc::SIGHUP)?;
        match self.process {
            Some((pid, _)) if !process::minds(pid, libc::SIGHUP) => send_to(self.process, libc::SIGKILL),
            _ => Ok(()),
        }
    }
}

enum Heard {
    More,
    Exit(u8),
    End,
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}
