//! One connection of TCP: the container's kernel at one end, a socket of the host's at the other (RFC 9293).
//!
//! Nothing is kept in between. What comes from the container is acknowledged when the socket has taken it; what goes to
//! the container stays in the socket, where it is only looked at (MSG_PEEK), until the container has acknowledged it. So
//! the two kernels' own buffers are the ones of the connection, and flow control goes from end to end.
//!
//! The link loses a frame only where a queue is full, and never changes their order: there is no congestion to control,
//! and what comes out of turn is dropped and sent again.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::inside::MTU;
use super::link::{Link, way};
use super::neighbour::TAKEN;
use super::packet::{self, ACK, FIN, PSH, RST, SYN, Said, Segment};

/// The scratch that a connection may need at most.
pub(super) const SCRATCH: usize = FLIGHT as usize + (64 << 10);

/// What a container may send before it hears of us, and what it may have unacknowledged.
const WINDOW: u32 = 1 << 20;
const FLIGHT: u32 = 1 << 20;
/// Windows are told in units of 2 to this power.
const SCALE: u8 = 7;
/// What a container that names no limit takes in one segment (RFC 9293, 3.7.1).
const DEFAULT_LARGEST: u16 = 536;
/// The most data that one frame takes there.
const MOST: usize = MTU as usize - 60;

/// So many segments are kept that came before their turn.
const EARLY: usize = 32;

/// First wait for an acknowledgement, doubled each time; and how often it is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
const ATTEMPTS: u8 = 9;
/// A connection on which nothing was heard for so long is asked whether it is there.
pub(super) const IDLE: Duration = Duration::from_secs(120);

/// Who speaks with whom, as the container sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    pub container: SocketAddr,
    pub remote: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The container asked; the host's socket is on its way.
    Connecting,
    /// The container asked, and was told that it is connected.
    Answered,
    /// Somebody on the host's side asked; the container was told.
    Asked,
    Open,
}

/// How far the end of what goes to the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Ahead,
    Sent,
    Acknowledged,
}

/// A segment that came before its turn.
#[derive(Debug)]
struct Early {
    sequence: u32,
    data: Vec<u8>,
    last: bool,
}

/// What is to become of a connection after something has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    Stays,
    /// It is over, and both sides know.
    Over,
    /// It could not be made: the container is told why.
    Failed(Errno),
    /// Nobody in the container listens.
    Refused,
}

/// What a connection needs of its surroundings.
pub(super) struct Outside<'a, L> {
    pub link: &'a mut L,
    pub scratch: &'a mut [u8],
    pub now: Instant,
    /// How much all connections together may still keep of what sockets did not take.
    pub room: &'a mut usize,
}

#[derive(Debug)]
pub struct Connection {
    pub ends: Ends,
    pub socket: OwnedFd,
    state: State,
    /// To the container: the first byte that it has not acknowledged, the next one to send, what it has room for, in what
    /// units it says so, and what fits into one packet.
    unacknowledged: u32,
    next: u32,
    window: u32,
    scale: u8,
    largest: u16,
    end: End,
    repeated: u8,
    /// From the container: the next byte that is expected, and whether windows are scaled.
    expected: u32,
    scaled: bool,
    /// What the socket did not take although the window had allowed it.
    kept: Vec<u8>,
    /// What came before its turn.
    early: Vec<Early>,
    ended: bool,
    shut: bool,
    /// The container was told this last.
    told: (u32, u16),
    /// It is to be told again in any case.
    repeat: bool,
    attempts: u8,
    pub deadline: Option<Instant>,
    heard: Instant,
    /// The socket is another container's, who says a word when that one is connected; or waits for ours.
    pub awaits_word: bool,
    pub says_word: bool,
}

impl Connection {
    /// One that the container has asked for, with a socket that is being connected.
    pub fn asked(ends: Ends, socket: OwnedFd, first: &Segment<'_>, number: u32, now: Instant) -> Connection {
        Connection { state: State::Connecting, deadline: None, ..Connection::new(ends, socket, number, now) }
            .with_options(first)
    }

    /// One that somebody on the host's side has made. [`Connection::begin`] tells the container.
    pub fn accepted(ends: Ends, socket: OwnedFd, number: u32, now: Instant) -> Connection {
        Connection::new(ends, socket, number, now)
    }

    fn new(ends: Ends, socket: OwnedFd, number: u32, now: Instant) -> Connection {
        // A program that writes little at a time has its reason.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        Connection {
            ends,
            socket,
            state: State::Asked,
            unacknowledged: number,
            next: number,
            window: 0,
            scale: 0,
            largest: DEFAULT_LARGEST,
            end: End::Ahead,
            repeated: 0,
            expected: 0,
            scaled: false,
            kept: Vec::new(),
            early: Vec::new(),
            ended: false,
            shut: false,
            told: (0, 0),
            repeat: false,
            attempts: 0,
            deadline: Some(now),
            heard: now,
            awaits_word: false,
            says_word: false,
        }
    }

    fn with_options(mut self, first: &Segment<'_>) -> Connection {
        self.expected = first.sequence.wrapping_add(1);
        self.window = u32::from(first.window);
        self.scaled = first.scale.is_some();
        self.scale = first.scale.unwrap_or(0);
        self.largest = first.largest.unwrap_or(DEFAULT_LARGEST).clamp(48, MOST as u16);
        self
    }

    fn largest_here(&self) -> u16 {
        (MTU - if self.ends.container.is_ipv4() { 40 } else { 60 }) as u16
    }

    /// Asks the container for the connection.
    pub fn begin<L: Link>(&mut self, outside: &mut Outside<'_, L>) {
        self.first(SYN, outside);
    }

    /// Something has happened to the socket: it is connected, has data, room, or an error.
    pub fn stirred<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        match self.state {
            State::Connecting if self.awaits_word => {
                let mut word = [0];
                match recv(&self.socket, &mut word, RecvFlags::DONTWAIT) {
                    Ok((1, _)) if word[0] == TAKEN => {
                        self.state = State::Answered;
                        self.first(SYN | ACK, outside);
                        Fate::Stays
                    }
                    Err(Errno::AGAIN | Errno::INTR) => Fate::Stays,
                    Ok(_) | Err(_) => Fate::Failed(Errno::CONNREFUSED),
                }
            }
            State::Connecting => match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) if rustix::net::getpeername(&self.socket).is_ok() => {
                    self.state = State::Answered;
                    self.first(SYN | ACK, outside);
                    Fate::Stays
                }
                Ok(Ok(())) => Fate::Stays,
                Ok(Err(errno)) | Err(errno) => Fate::Failed(errno),
            },
            State::Asked | State::Answered => Fate::Stays,
            State::Open => {
                let kept = self.flush(outside);
                if kept == Fate::Stays { self.fill(outside) } else { kept }
            }
        }
    }

    /// A segment came from the container. What it leads to is sent by [`Connection::settle`].
    pub fn received<L: Link>(&mut self, segment: &Segment<'_>, outside: &mut Outside<'_, L>) -> Fate {
        self.heard = outside.now;
        if segment.has(RST) {
            let answers = self.state == State::Asked && segment.acknowledged == self.next;
            if answers {
                return Fate::Refused;
            }
            if segment.sequence == self.expected && self.state != State::Asked {
                self.reset_socket();
                return Fate::Over;
            }
            return Fate::Stays;
        }
        match self.state {
            State::Connecting => return Fate::Stays,
            State::Asked => {
                if segment.has(ACK) && segment.acknowledged != self.next {
                    // A connection that is over stands in the way of this one, which looks the same to the container: it
                    // forgets that one, and is asked again (RFC 9293, 3.10.7.3).
                    self.say(RST, segment.acknowledged, &[], outside);
                    self.first(SYN, outside);
                    return Fate::Stays;
                }
                if !segment.has(SYN) || !segment.has(ACK) {
                    return Fate::Stays;
                }
                self.expected = segment.sequence.wrapping_add(1);
                self.window = u32::from(segment.window);
                self.scaled = segment.scale.is_some();
                self.scale = segment.scale.unwrap_or(0);
                self.largest = segment.largest.unwrap_or(DEFAULT_LARGEST).clamp(48, MOST as u16);
                self.open();
                self.repeat = true;
                return Fate::Stays;
            }
            State::Answered if segment.has(SYN) => {
                self.first(SYN | ACK, outside);
                return Fate::Stays;
            }
            State::Answered | State::Open => {}
        }
        if segment.has(SYN) || !segment.has(ACK) {
            // Of another connection with the same ports, or nonsense: the container finds out by the answer (RFC 5961, 4).
            self.repeat = true;
            return Fate::Stays;
        }
        let acknowledged = segment.acknowledged.wrapping_sub(self.unacknowledged);
        let flight = self.next.wrapping_sub(self.unacknowledged);
        if flight == 0 {
            self.attempts = 0;
            self.deadline = None;
        }
        if acknowledged > flight {
            // Older than what is known already, or of bytes that were never sent.
            self.repeat |= (acknowledged as i32) > 0;
            if (acknowledged as i32) > 0 {
                return Fate::Stays;
            }
        } else {
            if self.state == State::Answered {
                if acknowledged == 0 {
                    return Fate::Stays;
                }
                self.open();
            } else if acknowledged > 0 {
                let ending = self.end == End::Sent && acknowledged == flight;
                if ending {
                    self.end = End::Acknowledged;
                }
                self.discard(acknowledged - u32::from(ending), outside);
                self.unacknowledged = segment.acknowledged;
                self.attempts = 0;
                self.repeated = 0;
                self.deadline = (self.unacknowledged != self.next).then(|| outside.now + PATIENCE);
            }
            let window = u32::from(segment.window) << self.scale;
            if acknowledged == 0
                && flight > 0
                && segment.data.is_empty()
                && window == self.window
                && !segment.has(FIN)
            {
                self.repeated = self.repeated.saturating_add(1);
                if self.repeated == 3 {
                    self.rewind();
                }
            }
            self.window = window;
        }
        self.take(segment, outside)
    }

    /// Takes what is new of the data.
    fn take<L: Link>(&mut self, segment: &Segment<'_>, outside: &mut Outside<'_, L>) -> Fate {
        let length = segment.data.len() as u32 + u32::from(segment.has(FIN));
        if length == 0 {
            // Beside the window it is a question whether we are here (keep-alive).
            self.repeat |= segment.sequence != self.expected;
            return Fate::Stays;
        }
        self.repeat = true;
        if self.ended {
            return Fate::Stays;
        }
        let ahead = segment.sequence.wrapping_sub(self.expected);
        if ahead != 0 && ahead < WINDOW {
            self.keep_early(segment, outside);
            // Each is answered at once: the third tells the container that one is missing (RFC 5681, 3.2).
            self.say(ACK, self.next, &[], outside);
            return Fate::Stays;
        }
        if self.take_next(segment.sequence, segment.data, segment.has(FIN), outside).is_err() {
            return self.abort(outside);
        }
        while let Some(at) =
            self.early.iter().position(|early| early.sequence.wrapping_sub(self.expected) as i32 <= 0)
        {
            let early = self.early.swap_remove(at);
            *outside.room += early.data.len();
            if !self.ended && self.take_next(early.sequence, &early.data, early.last, outside).is_err() {
                return self.abort(outside);
            }
        }
        self.shut_when_empty();
        self.fate()
    }

    /// Takes what is new of data that begins at the next byte, or before it.
    fn take_next<L: Link>(
        &mut self,
        sequence: u32,
        data: &[u8],
        last: bool,
        outside: &mut Outside<'_, L>,
    ) -> Result<(), Errno> {
        let known = self.expected.wrapping_sub(sequence) as usize;
        if known >= data.len() + usize::from(last) {
            return Ok(());
        }
        let data = data.get(known..).unwrap_or_default();
        let taken = self.pass(data, outside)?;
        self.expected = self.expected.wrapping_add(taken as u32);
        if last && taken == data.len() {
            self.expected = self.expected.wrapping_add(1);
            self.ended = true;
        }
        Ok(())
    }

    /// Keeps what came before its turn: two processors may send for the container, each in its own order.
    fn keep_early<L: Link>(&mut self, segment: &Segment<'_>, outside: &mut Outside<'_, L>) {
        let known = self.early.iter().any(|early| early.sequence == segment.sequence);
        if known || self.early.len() >= EARLY || segment.data.len() > *outside.room {
            return;
        }
        *outside.room -= segment.data.len();
        let (sequence, data, last) = (segment.sequence, segment.data.to_vec(), segment.has(FIN));
        self.early.push(Early { sequence, data, last });
    }

    /// Gives data to the socket, and keeps what it does not take, as far as there is room. How much was taken, either way.
    fn pass<L: Link>(&mut self, data: &[u8], outside: &mut Outside<'_, L>) -> Result<usize, Errno> {
        let mut sent = 0;
        if self.kept.is_empty() {
            while sent < data.len() {
                match send(&self.socket, &data[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(n) => sent += n,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(errno) => return Err(errno),
                }
            }
        }
        let rest = &data[sent..];
        let keep = rest.len().min(*outside.room).min((WINDOW as usize).saturating_sub(self.kept.len()));
        self.kept.extend_from_slice(&rest[..keep]);
        *outside.room -= keep;
        Ok(sent + keep)
    }

    /// Gives the socket what was kept for it.
    fn flush<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        if self.kept.is_empty() {
            return Fate::Stays;
        }
        let mut sent = 0;
        while sent < self.kept.len() {
            match send(&self.socket, &self.kept[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.abort(outside),
            }
        }
        *outside.room += sent;
        if sent == self.kept.len() {
            self.kept = Vec::new();
        } else {
            self.kept.drain(..sent);
        }
        self.shut_when_empty();
        self.fate()
    }

    fn shut_when_empty(&mut self) {
        if self.ended && self.kept.is_empty() && !self.shut {
            self.shut = true;
            // One that is gone already need not be told.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }

    fn fate(&self) -> Fate {
        // The container is told of its own end first.
        let known = self.told.0 == self.expected && !self.repeat;
        if self.shut && self.end == End::Acknowledged && known { Fate::Over } else { Fate::Stays }
    }

    /// Sends what there is and what the container has room for, and acknowledges what it has sent.
    pub fn settle<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        if self.state != State::Open {
            return Fate::Stays;
        }
        let fate = self.fill(outside);
        if fate != Fate::Stays {
            return fate;
        }
        if self.repeat || self.told != (self.expected, self.room()) {
            self.say(ACK, self.next, &[], outside);
        }
        self.fate()
    }

    fn fill<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        let mut skips = None;
        while self.end == End::Ahead {
            let flight = self.next.wrapping_sub(self.unacknowledged);
            let room = self.window.min(FLIGHT).saturating_sub(flight);
            // Crumbs make the next window one of crumbs as well (RFC 9293, 3.8.6.2.1).
            if room == 0 || flight > 0 && room < self.window.min(self.largest.into()) {
                if flight == 0 && self.deadline.is_none() {
                    self.deadline = Some(outside.now + PATIENCE);
                }
                break;
            }
            let whole = MOST / usize::from(self.largest) * usize::from(self.largest);
            let want = whole.max(self.largest.into()).min(room as usize);
            let skips = *skips.get_or_insert_with(|| super::socket::peek_from(&self.socket, flight));
            // Kernels before Linux 6.9 cannot, so what is on its way is looked at again.
            let from = if skips { 0 } else { flight as usize };
            let place = &mut outside.scratch[..from + want];
            match recv(&self.socket, place, RecvFlags::PEEK | RecvFlags::DONTWAIT)
                .map(|(n, _)| n.checked_sub(from))
            {
                // As much as before, and not the end: nothing new.
                Ok(None) => break,
                Ok(Some(0)) if from > 0 && !super::socket::is_at_end(&self.socket) => break,
                Ok(Some(0)) => {
                    self.end = End::Sent;
                    self.say(ACK | FIN, self.next, &[], outside);
                    self.next = self.next.wrapping_add(1);
                }
                Ok(Some(n)) => {
                    let (data, at) = (&outside.scratch[from..from + n], self.next);
                    let headers = self.headers(ACK | PSH, at, n);
                    outside.link.send(&headers, data);
                    self.next = self.next.wrapping_add(n as u32);
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(_) => return self.abort(outside),
            }
            self.deadline.get_or_insert(outside.now + PATIENCE);
        }
        Fate::Stays
    }

    /// Removes from the socket what has arrived.
    fn discard<L: Link>(&mut self, mut length: u32, outside: &mut Outside<'_, L>) {
        while length > 0 {
            // TCP copies none of it; other sockets do, and need not touch all of the scratch for it.
            let part = (64 << 10).min(length as usize);
            match recv(&self.socket, &mut outside.scratch[..part], RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
                Ok((n, whole)) if n.max(whole) > 0 => length -= (n.max(whole) as u32).min(length),
                Err(Errno::INTR) => {}
                // It was there when it was looked at; a connection that was reset since says so the next time.
                _ => break,
            }
        }
    }

    /// Begins again with what was not acknowledged.
    fn rewind(&mut self) {
        self.next = self.unacknowledged;
        if self.end == End::Sent {
            self.end = End::Ahead;
        }
    }

    fn open(&mut self) {
        if self.says_word {
            // There is room for one byte in a socket that was never written to.
            let _ = send(&self.socket, &[TAKEN], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        self.state = State::Open;
        self.unacknowledged = self.next;
        self.attempts = 0;
        self.deadline = None;
    }

    /// The deadline has passed: what was not answered is said again.
    pub fn late<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        self.deadline = None;
        if self.attempts >= ATTEMPTS {
            return if self.state == State::Open {
                self.abort(outside)
            } else {
                Fate::Failed(Errno::TIMEDOUT)
            };
        }
        self.attempts += 1;
        match self.state {
            State::Connecting => return Fate::Stays,
            State::Asked => self.first(SYN, outside),
            State::Answered => self.first(SYN | ACK, outside),
            State::Open if self.unacknowledged != self.next => self.rewind(),
            State::Open => {
                // The window is shut, or nothing was heard for long: a byte that the container has already makes it say
                // how things are (RFC 9293, 3.8.4).
                self.say(ACK, self.next.wrapping_sub(1), &[], outside);
            }
        }
        self.deadline = Some(outside.now + PATIENCE * (1 << self.attempts.min(7)));
        self.settle(outside)
    }

    /// Looks whether anything was heard within [`IDLE`]; asks, where nothing was.
    pub fn look<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        let quiet = self.state == State::Open && self.deadline.is_none();
        if quiet && outside.now.saturating_duration_since(self.heard) >= IDLE {
            self.late(outside)
        } else {
            Fate::Stays
        }
    }

    /// Ends the connection on both sides.
    pub fn abort<L: Link>(&mut self, outside: &mut Outside<'_, L>) -> Fate {
        self.say(RST | ACK, self.next, &[], outside);
        self.reset_socket();
        Fate::Over
    }

    /// Whoever is at the other end of the socket learns that this was no orderly end.
    pub fn reset_socket(&self) {
        super::socket::reset(&self.socket);
    }

    /// The next byte that is expected of the container.
    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// What is kept for the socket, and is free again when the connection is gone.
    pub fn kept(&self) -> usize {
        self.kept.len() + self.early.iter().map(|early| early.data.len()).sum::<usize>()
    }

    fn room(&self) -> u16 {
        let free = if self.kept.is_empty() { WINDOW } else { 0 };
        (if self.scaled { free >> SCALE } else { free }).min(u16::MAX.into()) as u16
    }

    fn first<L: Link>(&mut self, flags: u8, outside: &mut Outside<'_, L>) {
        let said = Said {
            flags,
            sequence: self.unacknowledged,
            // The window of a first segment is not scaled.
            window: WINDOW.min(u16::MAX.into()) as u16,
            largest: Some(self.largest_here()),
            scale: (self.scaled || self.state == State::Asked).then_some(SCALE),
            ..self.said(flags, self.unacknowledged)
        };
        let way = way(self.ends.remote.ip(), self.ends.container.ip());
        outside.link.send(&packet::tcp(&way, &said, 0, self.largest), &[]);
        self.told = (said.acknowledged, said.window);
        self.next = self.unacknowledged.wrapping_add(1);
        self.deadline = Some(outside.now + PATIENCE * (1 << self.attempts.min(7)));
    }

    fn say<L: Link>(&mut self, flags: u8, sequence: u32, data: &[u8], outside: &mut Outside<'_, L>) {
        let headers = self.headers(flags, sequence, data.len());
        outside.link.send(&headers, data);
    }

    fn headers(&mut self, flags: u8, sequence: u32, data: usize) -> packet::Headers {
        let said = self.said(flags, sequence);
        self.told = (said.acknowledged, said.window);
        self.repeat = false;
        packet::tcp(&way(self.ends.remote.ip(), self.ends.container.ip()), &said, data, self.largest)
    }

    fn said(&self, flags: u8, sequence: u32) -> Said {
        Said {
            from: self.ends.remote.port(),
            to: self.ends.container.port(),
            sequence,
            acknowledged: if flags & ACK == 0 { 0 } else { self.expected },
            flags,
            window: self.room(),
            largest: None,
            scale: None,
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_fd().as_raw_fd()
    }
}
