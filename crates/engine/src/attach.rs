//! Attached to a container: its streams on the caller's, as another who is attached has them too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use isles_sandbox::signals::Signals;
use isles_spec::Workload;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::control::send_to;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::monitor::frames::{self, HEAD, Kind, SOCKET, WANTS_INPUT, WANTS_OUTPUT};
use crate::record::Status;
use crate::run::Foreground;
use crate::terminal;

/// What those who are attached want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    pub input: bool,
    /// Bytes that let go of a container with a terminal, when they are typed one after the other; none does where empty.
    pub detach_keys: Vec<u8>,
    /// The caller's signals are the container's.
    pub signals: bool,
}

impl Wishes {
    /// Reads keys as docker writes them: letters, and `ctrl-` with a letter or one of `@^[,_`, with commas between.
    ///
    /// # Errors
    /// That is none.
    pub fn keys(text: &str) -> Result<Vec<u8>> {
        let key = |word: &str| match word.as_bytes() {
            [only] => Some(*only),
            _ => match *word.strip_prefix("ctrl-")?.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                [b'@'] => Some(0),
                [b'['] => Some(27),
                [b'\\'] => Some(28),
                [b']'] => Some(29),
                [b'^'] => Some(30),
                [b'_'] => Some(31),
                _ => None,
            },
        };
        let words = text.split(',').filter(|_| !text.is_empty());
        words.map(key).collect::<Option<Vec<u8>>>().ok_or_else(|| {
            isles_spec::Error::new(format!("invalid detach keys ({text})"))
                .with_hint("write letters and ctrl-LETTER with commas between, such as ctrl-p,ctrl-q")
                .into()
        })
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
            return refuse("it runs in the foreground of another command, which has its streams");
        }
        let socket = self.connect(&found.record.id)?;
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
        let (id, started) = self.start_container(name, Some(theirs.into()), warn)?;
        if !started {
            return self.attach(&id, wishes);
        }
        self.stay_attached(&id, ours, wishes)
    }

    /// Makes a container, starts it with a monitor of its own, and stays attached to it from its first word on. The process
    /// must have one thread.
    ///
    /// # Errors
    /// As [`Engine::run`]; nothing of the container is left then.
    pub fn run_attached(
        &self,
        workload: &Workload,
        foreground: &Foreground<'_>,
        wishes: &Wishes,
    ) -> Result<Parted> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| Error::system("make a socket", e))?;
        let id = self.run_detached(workload, foreground, Some(theirs.into()))?;
        self.stay_attached(&id, ours, wishes)
    }

    fn stay_attached(&self, id: &str, socket: UnixStream, wishes: &Wishes) -> Result<Parted> {
        // It may have ended by now, but what it said waits.
        let process = self.find(id).ok().and_then(|info| info.state.pid.zip(info.state.pid_start));
        match Streams::new(socket, wishes, process)?.stay()? {
            Some(parted) => Ok(parted),
            None => Err(Error::impossible(
                format!("staying attached to container {id}"),
                "its monitor let go of the connection",
            )),
        }
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
    /// How many of the detach keys were typed.
    typed: usize,
    raw: Option<terminal::Raw>,
}

/// So much waits for the monitor at most, before more is read.
const ENOUGH: usize = 64 << 10;
/// More than a frame.
const ROOM: usize = 256 << 10;

/// Prints all of it, whatever the caller has made of its streams. What nobody takes is lost.
fn print(to: impl AsFd, mut content: &[u8]) {
    while !content.is_empty() {
        match rustix::io::write(&to, content) {
            Ok(n) => content = &content[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}

impl<'a> Streams<'a> {
    fn new(socket: UnixStream, wishes: &'a Wishes, process: Option<(i32, u64)>) -> Result<Streams<'a>> {
        let failed = |e: io::Error| Error::system("attach to the container", e);
        let signals = Signals::block().map_err(failed)?;
        let wants = WANTS_OUTPUT | if wishes.input { WANTS_INPUT } else { 0 };
        let mut waiting = frames::head(Kind::Hello, 1).to_vec();
        waiting.push(wants);
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Streams {
            socket: socket.into(),
            wishes,
            process,
            signals,
            waiting,
            got: Vec::new(),
            have: 0,
            terminal: false,
            input_ended: !wishes.input,
            typed: 0,
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
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            if ready.get(2).is_some_and(|flags| !flags.is_empty()) && self.read(stdin.as_fd()) {
                return Ok(Some(Parted::LetGo));
            }
            if ready[1].contains(PollFlags::OUT) {
                self.send();
            }
            if ready[1].intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match self.hear().map_err(failed)? {
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
        let (text, let_go) = self.without_keys(&piece[..n]);
        if !text.is_empty() {
            self.say(Kind::Stdin, &text);
        }
        let_go
    }

    /// Leaves out the keys that let go of the container, as far as they were typed.
    fn without_keys(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.wishes.detach_keys;
        if !self.terminal || keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut out = Vec::with_capacity(typed.len());
        for byte in typed {
            if *byte == keys[self.typed] {
                self.typed += 1;
                if self.typed == keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&keys[..self.typed]);
            self.typed = usize::from(*byte == keys[0]);
            if self.typed == 0 {
                out.push(*byte);
            } else if keys.len() == 1 {
                return (out, true);
            }
        }
        (out, false)
    }

    fn say(&mut self, kind: Kind, content: &[u8]) {
        self.waiting.extend_from_slice(&frames::head(kind, content.len()));
        self.waiting.extend_from_slice(content);
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

    fn hear(&mut self) -> io::Result<Heard> {
        if self.got.is_empty() {
            self.got = vec![0; ROOM];
        }
        match rustix::io::read(&self.socket, &mut self.got[self.have..]) {
            Ok(0) | Err(Errno::CONNRESET) => return Ok(Heard::End),
            Ok(n) => self.have += n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::More),
            Err(e) => return Err(e.into()),
        }
        let got = std::mem::take(&mut self.got);
        let mut rest = &got[..self.have];
        let mut heard = Heard::More;
        while let Some(head) = rest.first_chunk::<HEAD>() {
            let (kind, length) = frames::parse(*head)?;
            let Some(content) = rest.get(HEAD..HEAD + length) else { break };
            rest = &rest[HEAD + length..];
            match kind {
                // Whoever does not read what we print need not end the container.
                Kind::Stdout => print(rustix::stdio::stdout(), content),
                Kind::Stderr => print(rustix::stdio::stderr(), content),
                Kind::Exit => {
                    heard = Heard::Exit(content.first().copied().unwrap_or(0));
                    break;
                }
                Kind::Hello => self.begin(content == [1]),
                Kind::Stdin | Kind::Resize => {}
            }
        }
        let left = self.have - rest.len()..self.have;
        self.have = rest.len();
        self.got = got;
        self.got.copy_within(left, 0);
        Ok(heard)
    }

    /// What the monitor says first: whether there is a terminal.
    fn begin(&mut self, terminal: bool) {
        self.terminal = terminal;
        if terminal {
            if self.wishes.input {
                self.raw = terminal::Raw::enter();
            }
            self.resize();
        }
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

enum Heard {
    More,
    Exit(u8),
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", Some(vec![16, 17])),
            ("a", Some(vec![b'a'])),
            ("ctrl-@,x,ctrl-_", Some(vec![0, b'x', 31])),
            ("", Some(vec![])),
            ("ctrl-", None),
            ("ctrl-P", None),
            ("ab", None),
            ("a,,b", None),
        ] {
            assert_eq!(Wishes::keys(text).ok(), keys, "{text}");
        }
    }

    #[test]
    fn keys_let_go() {
        let wishes = Wishes { input: true, detach_keys: vec![16, 17], signals: false };
        let run = |pieces: &[&[u8]]| {
            let (socket, _other) = UnixStream::pair().unwrap();
            let mut streams = Streams::new(socket, &wishes, None).unwrap();
            streams.terminal = true;
            let mut out = Vec::new();
            for piece in pieces {
                let (text, let_go) = streams.without_keys(piece);
                out.extend(text);
                if let_go {
                    return (out, true);
                }
            }
            (out, false)
        };
        assert_eq!(run(&[b"ab\x10\x11c"]), (b"ab".to_vec(), true));
        assert_eq!(run(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(run(&[b"a\x10", b"b"]), (b"a\x10b".to_vec(), false));
        assert_eq!(run(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(run(&[b"\x11"]), (b"\x11".to_vec(), false));
    }
}
