//! One who is attached to a container, as its monitor sees them: what they say, and what waits to be said to them.
//!
//! They may be slow, or say nonsense. While one has too much waiting, nothing more is read from the container, so that
//! nobody misses anything; but who has taken nothing for [`PATIENCE`] is let go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::frames::{self, HEAD, Kind, OWNS, WANTS_INPUT, WANTS_OUTPUT};

/// Who has more waiting than this has to be waited for.
const ENOUGH: usize = 256 << 10;
/// Who takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Less in a pipe is sooner read than passed on as it is.
const WORTH_PASSING: usize = 16 << 10;
/// What the longest frame takes of the room of a socket, with the kernel's own part.
const FRAME: usize = frames::LONGEST + (4 << 10);
/// So much they take in that time, or all that there is.
const LEAST: usize = 4096;

/// Something that was said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Input(Vec<u8>),
    EndOfInput,
    Resize {
        rows: u16,
        columns: u16,
    },
    /// They go, and the program goes on.
    LetGo,
}

/// What became of a frame that lies in a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It is theirs. What their socket had no room for waits.
    Frame,
    /// It stays in the pipe until they have taken what came before.
    Later,
    /// They want none or have something waiting, or it is too little for that.
    Nothing,
}

/// The monitor's end of one connection.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// What they want, once they have said so.
    wants: Option<u8>,
    /// They were there before the program, so they get its output even before they have said that they want it.
    first: bool,
    got: Vec<u8>,
    waiting: VecDeque<u8>,
    /// So many bytes fit into their socket.
    room: usize,
    /// It has too little room for what would come next.
    blocked: bool,
    /// Since when they have taken next to nothing of what waits, and how much that was.
    stuck_since: Option<Instant>,
    taken: usize,
    /// They say no more.
    silent: bool,
    /// They are let go at the next occasion.
    gone: bool,
    terminal: bool,
}

impl Client {
    /// Takes over a socket. `terminal` says whether the program has one.
    pub fn new(socket: OwnedFd, terminal: bool) -> io::Result<Client> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Client {
            room: rustix::net::sockopt::socket_send_buffer_size(&socket)?,
            blocked: false,
            socket,
            wants: None,
            first: false,
            got: Vec::new(),
            waiting: VecDeque::new(),
            stuck_since: None,
            taken: 0,
            silent: false,
            gone: false,
            terminal,
        })
    }

    /// As [`Client::new`], for one who wants all output from the beginning.
    pub fn first(socket: OwnedFd, terminal: bool) -> io::Result<Client> {
        Ok(Client { first: true, ..Client::new(socket, terminal)? })
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// What to wait for. Input is not taken while the program has not taken what came before.
    pub fn awaits(&self, input_is_full: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        if !(self.silent || input_is_full && self.wants_input()) {
            flags |= PollFlags::IN;
        }
        if self.blocked || !self.waiting.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Whether they may have more at once.
    pub fn is_full(&self) -> bool {
        self.blocked || self.waiting.len() > ENOUGH
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether they have closed their side.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether the program ends where they go without a word.
    pub fn owns(&self) -> bool {
        self.wants.is_some_and(|wants| wants & OWNS != 0)
    }

    fn wants_input(&self) -> bool {
        self.wants.is_some_and(|wants| wants & WANTS_INPUT != 0)
    }

    /// When they are to be let go, if they take nothing until then.
    pub fn patience_ends(&self) -> Option<Instant> {
        self.stuck_since.map(|since| since + PATIENCE)
    }

    /// Has nothing more to do with them.
    pub fn let_go(&mut self) {
        self.gone = true;
    }

    pub fn is_let_go(&self) -> bool {
        self.gone
    }

    fn wants_output(&self) -> bool {
        self.wants.map_or(self.first, |wants| wants & WANTS_OUTPUT != 0)
    }

    /// Lets them have what the program printed.
    pub fn tell(&mut self, kind: Kind, content: &[u8]) {
        if matches!(kind, Kind::Stdout | Kind::Stderr) && !self.wants_output() {
            return;
        }
        for piece in content.chunks(frames::LONGEST) {
            let head = frames::head(kind, piece.len());
            let sent = self.send_now(&head, piece);
            self.waiting.extend(head.get(sent..).unwrap_or_default());
            self.waiting.extend(piece.get(sent.saturating_sub(head.len())..).unwrap_or_default());
        }
        self.begin_to_wait();
    }

    fn begin_to_wait(&mut self) {
        if (self.blocked || !self.waiting.is_empty()) && self.stuck_since.is_none() {
            self.stuck_since = Some(Instant::now());
            self.taken = 0;
        }
    }

    /// Lets them have one frame of what lies in a pipe, without its bytes being copied (splice(2)).
    pub fn pass(&mut self, kind: Kind, pipe: &OwnedFd) -> Passed {
        let there =
            rustix::io::ioctl_fionread(pipe).map_or(0, |there| usize::try_from(there).unwrap_or(usize::MAX));
        let length = there.min(frames::LONGEST);
        // A socket counts as writable when a quarter of its room is taken at most (unix(7)), and then a frame has to fit.
        if self.room < 2 * FRAME
            || length < WORTH_PASSING
            || self.gone
            || !self.waiting.is_empty()
            || !self.wants_output()
        {
            return Passed::Nothing;
        }
        // A frame that does not fit as a whole would have to be copied in part.
        let head = frames::head(kind, length);
        let fits = unsent(&self.socket).is_none_or(|unsent| unsent + FRAME <= self.room);
        let sent = match fits {
            true => rustix::net::send(&self.socket, &head, rustix::net::SendFlags::NOSIGNAL).unwrap_or(0),
            false => 0,
        };
        if sent == 0 {
            self.blocked = true;
            self.begin_to_wait();
            return Passed::Later;
        }
        self.waiting.extend(&head[sent..]);
        let mut passed = 0;
        while self.waiting.is_empty() && passed < length {
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            match splice(pipe, None, &self.socket, None, length - passed, flags) {
                Ok(n) if n > 0 => passed += n,
                Err(Errno::INTR) => {}
                // Full, or gone, which the next look shows.
                _ => break,
            }
        }
        // The frame was begun, and nobody else reads this pipe.
        let mut piece = vec![0; length - passed];
        let mut have = 0;
        while have < piece.len() {
            match rustix::io::read(pipe, &mut piece[have..]) {
                Ok(n) if n > 0 => have += n,
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        self.waiting.extend(piece);
        self.begin_to_wait();
        Passed::Frame
    }

    /// They have taken something.
    pub fn unblock(&mut self) {
        if std::mem::take(&mut self.blocked) && self.waiting.is_empty() {
            self.stuck_since = None;
        }
    }

    /// Sends a frame as far as it goes, where nothing waits before it. That they are gone is seen with the next look.
    fn send_now(&self, head: &[u8], content: &[u8]) -> usize {
        if self.gone || !self.waiting.is_empty() {
            return 0;
        }
        let parts = [io::IoSlice::new(head), io::IoSlice::new(content)];
        let nothing = &mut rustix::net::SendAncillaryBuffer::default();
        rustix::net::sendmsg(&self.socket, &parts, nothing, rustix::net::SendFlags::NOSIGNAL).unwrap_or(0)
    }

    /// Sends what waits, as far as it goes.
    ///
    /// # Errors
    /// They are gone.
    pub fn send(&mut self) -> io::Result<()> {
        if self.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            match rustix::net::send(&self.socket, first, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) => {
                    self.waiting.drain(..n);
                    self.taken += n;
                    if self.waiting.is_empty() {
                        self.stuck_since = None;
                    } else if self.taken >= LEAST {
                        // A byte now and then would hold up the program for ever.
                        self.stuck_since = Some(Instant::now());
                        self.taken = 0;
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(e) => return Err(e.into()),
            }
        }
        if self.waiting.is_empty() {
            // What one flood took is given back.
            self.waiting.shrink_to(4096);
        }
        match self.patience_ends() {
            Some(end) if Instant::now() >= end => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Hears what they say.
    ///
    /// # Errors
    /// They are gone, or say what nobody understands.
    pub fn hear(&mut self) -> io::Result<Vec<Said>> {
        let mut piece = [0u8; 4096];
        let n = match rustix::io::read(&self.socket, &mut piece) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        if n == 0 {
            self.silent = true;
            // Those who came to say something only are done.
            if self.owns() || self.wants.is_none_or(|wants| wants & WANTS_OUTPUT == 0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            return Ok(Vec::new());
        }
        self.got.extend_from_slice(&piece[..n]);
        let mut said = Vec::new();
        while let Some(head) = self.got.first_chunk::<HEAD>() {
            let (kind, length) = frames::parse(*head)?;
            let Some(content) = self.got.get(HEAD..HEAD + length) else { break };
            let content = content.to_vec();
            self.got.drain(..HEAD + length);
            said.extend(self.understand(kind, content)?);
        }
        if self.got.is_empty() {
            self.got.shrink_to(4096);
        }
        Ok(said)
    }

    fn understand(&mut self, kind: Kind, content: Vec<u8>) -> io::Result<Option<Said>> {
        let strange = || Err(io::ErrorKind::InvalidData.into());
        match (kind, self.wants, content.as_slice()) {
            (Kind::Hello, None, [wants]) => {
                self.wants = Some(*wants);
                self.tell(Kind::Hello, &[u8::from(self.terminal)]);
                Ok(None)
            }
            (Kind::Stdin, Some(_), []) if self.wants_input() => Ok(Some(Said::EndOfInput)),
            (Kind::Stdin, Some(_), _) if self.wants_input() => Ok(Some(Said::Input(content))),
            (Kind::Resize, Some(_), [a, b, c, d]) => {
                let (rows, columns) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                Ok(Some(Said::Resize { rows, columns }))
            }
            (Kind::LetGo, Some(_), []) => Ok(Some(Said::LetGo)),
            _ => strange(),
        }
    }
}

/// How much of what was sent to a socket is not taken yet, with the kernel's own part (SIOCOUTQ, unix(7)).
fn unsent(socket: &OwnedFd) -> Option<usize> {
    // SAFETY: TIOCOUTQ, by its other name SIOCOUTQ, gives an int.
    let unsent = unsafe {
        rustix::ioctl::ioctl(
            socket,
            rustix::ioctl::Getter::<{ libc::TIOCOUTQ as rustix::ioctl::Opcode }, i32>::new(),
        )
    };
    usize::try_from(unsent.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, poll};

    use super::*;

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::new(ours.into(), true).unwrap(), theirs)
    }

    #[test]
    fn a_conversation() {
        let (mut client, mut other) = pair();
        client.tell(Kind::Stdout, b"too early");
        assert!(!client.has_waiting());
        frames::send(&other, Kind::Hello, &[WANTS_INPUT | WANTS_OUTPUT]).unwrap();
        assert_eq!(client.hear().unwrap(), []);
        client.tell(Kind::Stderr, b"text");
        client.send().unwrap();
        assert_eq!(frames::receive(&other).unwrap(), Some((Kind::Hello, vec![1])));
        assert_eq!(frames::receive(&other).unwrap(), Some((Kind::Stderr, b"text".to_vec())));
        // In pieces, and several at once.
        let mut wire = Vec::new();
        frames::send(&mut wire, Kind::Stdin, b"abc").unwrap();
        frames::send(&mut wire, Kind::Resize, &[0, 24, 1, 0]).unwrap();
        frames::send(&mut wire, Kind::Stdin, b"").unwrap();
        frames::send(&mut wire, Kind::LetGo, b"").unwrap();
        other.write_all(&wire[..5]).unwrap();
        assert_eq!(client.hear().unwrap(), []);
        other.write_all(&wire[5..]).unwrap();
        let said = client.hear().unwrap();
        assert_eq!(
            said,
            [
                Said::Input(b"abc".to_vec()),
                Said::Resize { rows: 24, columns: 256 },
                Said::EndOfInput,
                Said::LetGo
            ]
        );
        // Who says no more may listen still.
        other.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.hear().unwrap(), []);
        assert!(!client.awaits(false).contains(PollFlags::IN));
        client.tell(Kind::Exit, &[7]);
        client.send().unwrap();
        let mut rest = Vec::new();
        drop(client);
        other.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"\x04\0\0\0\0\0\0\x01\x07");
    }

    #[test]
    fn nonsense_ends_it() {
        let hello = [6, 0, 0, 0, 0, 0, 0, 1, WANTS_OUTPUT];
        for wire in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0, 0, 0, 0, 0, 0, 0, 1, b'a'],
            &[hello, hello].concat(),
            // Input that was not asked for.
            &[&hello[..], &[0, 0, 0, 0, 0, 0, 0, 1, b'a']].concat(),
            &[&hello[..], &[5, 0, 0, 0, 0, 0, 0, 1, b'a']].concat(),
            &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ] {
            let (mut client, mut other) = pair();
            other.write_all(wire).unwrap();
            assert!(client.hear().is_err(), "{wire:?}");
        }
        let (mut client, other) = pair();
        drop(other);
        assert!(client.hear().is_err());
    }

    #[test]
    fn what_lies_in_a_pipe_is_passed_on_whole() {
        // Less than is worth it, one frame, and more than the socket has room for.
        for total in [WORTH_PASSING - 1, WORTH_PASSING, 3 * frames::LONGEST + WORTH_PASSING, 1 << 20] {
            let (mut client, other) = pair();
            frames::send(&other, Kind::Hello, &[WANTS_OUTPUT]).unwrap();
            client.hear().unwrap();
            let text: Vec<u8> = (0..total).map(|at| (at / 7) as u8).collect();
            let (end, mut writes) = std::io::pipe().unwrap();
            rustix::io::ioctl_fionbio(&end, true).unwrap();
            let end = OwnedFd::from(end);
            let said = text.clone();
            let program = std::thread::spawn(move || writes.write_all(&said).unwrap());
            let reader = std::thread::spawn(move || {
                assert_eq!(frames::receive(&other).unwrap(), Some((Kind::Hello, vec![1])));
                let mut all = Vec::new();
                while let Some((kind, content)) = frames::receive(&other).unwrap() {
                    assert_eq!(kind, Kind::Stderr);
                    all.extend(content);
                }
                all
            });
            let (mut ended, mut buffer) = (false, vec![0; 4096]);
            while !ended {
                let mut awaits =
                    [PollFd::new(&end, PollFlags::IN), PollFd::new(client.socket(), client.awaits(false))];
                poll(&mut awaits, None).unwrap();
                client.send().unwrap();
                client.unblock();
                if client.pass(Kind::Stderr, &end) == Passed::Nothing
                    && let Ok(n) = rustix::io::read(&end, &mut buffer)
                {
                    client.tell(Kind::Stderr, &buffer[..n]);
                    ended = n == 0;
                }
            }
            while client.has_waiting() {
                poll(&mut [PollFd::new(client.socket(), PollFlags::OUT)], None).unwrap();
                client.send().unwrap();
            }
            drop(client);
            program.join().unwrap();
            assert!(reader.join().unwrap() == text, "{total}");
        }
        // Nobody gets what they did not ask for.
        let (mut client, other) = pair();
        frames::send(&other, Kind::Hello, &[WANTS_INPUT]).unwrap();
        client.hear().unwrap();
        let (end, mut writes) = std::io::pipe().unwrap();
        writes.write_all(&[0; WORTH_PASSING]).unwrap();
        assert_eq!(client.pass(Kind::Stdout, &end.into()), Passed::Nothing);
        // Who takes nothing has to be waited for, and is let go after a time.
        let (mut client, other) = pair();
        frames::send(&other, Kind::Hello, &[WANTS_OUTPUT]).unwrap();
        client.hear().unwrap();
        let (end, mut writes) = std::io::pipe().unwrap();
        let end = OwnedFd::from(end);
        let mut frames = 0;
        loop {
            writes.write_all(&[0; WORTH_PASSING]).unwrap();
            match client.pass(Kind::Stdout, &end) {
                Passed::Frame => frames += 1,
                Passed::Later => break,
                Passed::Nothing => unreachable!("it wants some, and nothing waits"),
            }
        }
        assert!(frames > 0 && client.is_full() && client.patience_ends().is_some());
        assert!(client.awaits(false).contains(PollFlags::OUT));
        client.unblock();
        assert!(!client.is_full() && client.patience_ends().is_none());
    }

    #[test]
    fn who_takes_nothing_has_to_be_waited_for() {
        let (mut client, other) = pair();
        frames::send(&other, Kind::Hello, &[WANTS_OUTPUT]).unwrap();
        client.hear().unwrap();
        let mut told = 0;
        while !client.is_full() {
            client.tell(Kind::Stdout, &[b'x'; 8192]);
            client.send().unwrap();
            told += 1;
            assert!(told < 1000);
        }
        assert!(client.patience_ends().is_some());
    }
}
