//! Connections from the host's own loopback to a published port: passed on to a socket of the kernel's that belongs to the
//! container's network namespace, from where it reaches the container's own address over the loopback there.
//!
//! The address that such a client has means nothing in the container, so nothing is lost by it: the container sees its own
//! address instead, with the client's port where that is free. What is said moves from one socket to the other by splice(2),
//! without being copied. A pipe is needed only for as long as a socket does not take what is in it, so a few are enough for
//! thousands of connections; where all of them are in use, data stays in its socket until it was copied from there.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendFlags, Shutdown, bind, connect, getpeername, getsockname, recv, send, shutdown, sockopt,
};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::socket::reset;

/// The first number that an end of a connection is waited for with; each has two.
pub const FIRST_RELAYED: u64 = 1 << 48;

/// What is moved at once, and in one turn.
const PIECE: usize = 512 << 10;
const TURN: usize = 4 << 20;
/// The same of what was said last.
const LAST: usize = 64 << 20;
/// So many pipes at once, of which so many are kept when nobody needs them.
const PIPES: usize = 32;
const IDLE_PIPES: usize = 2;
/// A pipe's room, in bytes of its pages; what an ordinary user may have of all pipes is 64 MiB (pipe(7)).
const ROOM: usize = 256 << 10;

/// Makes a socket of TCP in the container's network namespace, of IPv6 or not.
pub type Sockets<'a> = Box<dyn FnMut(bool) -> io::Result<OwnedFd> + 'a>;

/// The end of the client, and the one inside.
const CLIENT: usize = 0;
const INSIDE: usize = 1;

/// All connections that are passed on.
pub struct Relay<'a> {
    sockets: Sockets<'a>,
    waiting: OwnedFd,
    pairs: Vec<Option<Box<Pair>>>,
    free: Vec<usize>,
    /// So many connections at most.
    most: usize,
    pipes: Pipes,
    /// Ends of connections whose turn was over before all was said.
    unsettled: Vec<(usize, usize)>,
}

/// A connection. What one end says is on its way to the other.
#[derive(Debug)]
struct Pair {
    ends: [OwnedFd; 2],
    ways: [Way; 2],
    peer: SocketAddr,
    connected: bool,
    /// Where it is tried when nobody listens at the first place.
    next: Option<SocketAddr>,
}

/// One way of a connection.
#[derive(Debug, Default)]
struct Way {
    /// With what was taken from the one end and not by the other.
    pipe: Option<Pipe>,
    held: usize,
    /// The end to which it leads has no room.
    blocked: bool,
    ended: bool,
    shut: bool,
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Its turn is over, but there may be more.
    Unsettled,
    Broken,
}

impl<'a> Relay<'a> {
    /// At most so many connections (`most`), whose ends are waited for in `waiting`.
    pub fn new(sockets: Sockets<'a>, waiting: OwnedFd, most: usize) -> Relay<'a> {
        let (pairs, free, unsettled) = (Vec::new(), Vec::new(), Vec::new());
        Relay { sockets, waiting, pairs, free, most, pipes: Pipes::default(), unsettled }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.pairs.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many descriptors they have.
    pub fn descriptors(&self) -> usize {
        2 * (self.len() + self.pipes.made)
    }

    /// Passes on a connection of `peer` to the first of the places at which somebody listens; where nobody does, it is
    /// reset.
    ///
    /// # Errors
    /// It is given back where this cannot be: there are too many, or there is no such socket or no way from it.
    pub fn open(
        &mut self,
        client: OwnedFd,
        peer: SocketAddr,
        places: [Option<SocketAddr>; 2],
    ) -> Result<(), OwnedFd> {
        let [Some(place), next] = places else { return Err(client) };
        if self.len() >= self.most {
            return Err(client);
        }
        let Ok(inside) = self.inside(peer, place) else { return Err(client) };
        self.keep(client, inside, peer, next)
    }

    /// A socket that is being connected.
    fn inside(&mut self, peer: SocketAddr, place: SocketAddr) -> io::Result<OwnedFd> {
        let socket = (self.sockets)(place.is_ipv6())?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        // The client's own port, which it has not used a moment ago. So ports that were used can be used again at once, too: the
        // kernel spares those that it chooses itself for a minute. A socket is never to be connected with itself.
        if peer.port() != place.port() {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            // Where it is another's in the container, the kernel chooses one.
            let _ = bind(&socket, &SocketAddr::new(place.ip(), peer.port()));
        }
        match connect(&socket, &place) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(errno) => Err(errno.into()),
        }
    }

    fn keep(
        &mut self,
        client: OwnedFd,
        inside: OwnedFd,
        peer: SocketAddr,
        next: Option<SocketAddr>,
    ) -> Result<(), OwnedFd> {
        // Who writes little at a time has a reason.
        for end in [&client, &inside] {
            let _ = sockopt::set_tcp_nodelay(end, true);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let waits = self.wait(index, CLIENT, &client).and_then(|()| self.wait(index, INSIDE, &inside));
        if waits.is_err() {
            // Closing a socket ends that it is waited for; the client's may live on.
            let _ = epoll::delete(&self.waiting, &client);
            self.free.push(index);
            return Err(client);
        }
        let ways = [Way::default(), Way::default()];
        self.pairs[index] =
            Some(Box::new(Pair { ends: [client, inside], ways, peer, connected: false, next }));
        Ok(())
    }

    fn wait(&self, index: usize, end: usize, socket: &OwnedFd) -> Result<(), Errno> {
        let token = EventData::new_u64(FIRST_RELAYED + (2 * index + end) as u64);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.waiting, socket, token, flags)
    }

    /// Something has happened to the end that is waited for with `token`.
    pub fn stirred(&mut self, token: u64, flags: EventFlags) {
        let Ok(number) = usize::try_from(token - FIRST_RELAYED) else { return };
        let (index, end) = (number / 2, number % 2);
        let Some(Some(pair)) = self.pairs.get_mut(index) else { return };
        if !pair.connected {
            match pair.outcome() {
                Ok(false) => {}
                Ok(true) => {
                    pair.connected = true;
                    self.pass(index, CLIENT);
                    self.pass(index, INSIDE);
                }
                Err(Errno::CONNREFUSED) => self.ask_again(index),
                Err(_) => self.remove(index, true),
            }
            return;
        }
        if flags.contains(EventFlags::ERR) && sockopt::socket_error(&pair.ends[end]) != Ok(Ok(())) {
            return self.remove(index, true);
        }
        // What has room again gets what is there for it.
        if flags.intersects(EventFlags::OUT | EventFlags::HUP) && pair.ways[1 - end].blocked {
            self.pass(index, 1 - end);
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            self.pass(index, end);
        }
    }

    /// Nobody listens where it was tried.
    fn ask_again(&mut self, index: usize) {
        let Some(Some(pair)) = self.pairs.get_mut(index) else { return };
        let (peer, next) = (pair.peer, pair.next.take());
        let inside = next.and_then(|place| self.inside(peer, place).ok());
        let Some(inside) = inside else { return self.remove(index, true) };
        let _ = sockopt::set_tcp_nodelay(&inside, true);
        let waits = self.wait(index, INSIDE, &inside).is_ok();
        if let Some(Some(pair)) = self.pairs.get_mut(index) {
            pair.ends[INSIDE] = inside;
        }
        if !waits {
            self.remove(index, true);
        }
    }

    /// Gives those their turn who had more to say.
    pub fn settle(&mut self) {
        for (index, end) in std::mem::take(&mut self.unsettled) {
            self.pass(index, end);
        }
    }

    /// Whether somebody has more to say, of whom nothing is heard.
    pub fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Passes on what an end has said.
    fn pass(&mut self, index: usize, end: usize) {
        let Some(Some(pair)) = self.pairs.get_mut(index) else { return };
        match pair.pass(end, &mut self.pipes, TURN) {
            Fate::Broken => self.remove(index, true),
            Fate::Stays if pair.ways.iter().all(|way| way.shut) => self.remove(index, false),
            Fate::Stays => {}
            Fate::Unsettled => self.unsettled.push((index, end)),
        }
    }

    /// Ends a connection. Both ends are told where it was no orderly end.
    fn remove(&mut self, index: usize, broken: bool) {
        let Some(pair) = self.pairs.get_mut(index).and_then(Option::take) else { return };
        self.free.push(index);
        self.unsettled.retain(|(of, _)| *of != index);
        if broken {
            pair.ends.iter().for_each(reset);
        }
        for way in pair.ways {
            self.pipes.back(way);
        }
    }
}

impl Drop for Relay<'_> {
    /// The container has ended: what it has said last still arrives, as far as there is room for it. Who does not get all
    /// of it learns that.
    fn drop(&mut self) {
        for mut pair in std::mem::take(&mut self.pairs).into_iter().flatten() {
            let lost = !pair.connected
                || pair.pass(INSIDE, &mut self.pipes, LAST) != Fate::Stays
                || !pair.ways[INSIDE].shut;
            if lost {
                reset(&pair.ends[CLIENT]);
            }
            for way in std::mem::take(&mut pair.ways) {
                self.pipes.back(way);
            }
        }
    }
}

impl Pair {
    /// Whether the socket inside is connected by now; or why it never will be.
    fn outcome(&self) -> Result<bool, Errno> {
        let inside = &self.ends[INSIDE];
        sockopt::socket_error(inside)??;
        match (getsockname(inside), getpeername(inside)) {
            // Nobody listens at a port that the kernel has just given to this very socket.
            (Ok(own), Ok(Some(peer))) if own == peer => Err(Errno::CONNREFUSED),
            (Ok(_), Ok(Some(_))) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Passes on what an end has said, about as much as `most`.
    fn pass(&mut self, end: usize, pipes: &mut Pipes, most: usize) -> Fate {
        let (from, to) = (&self.ends[end], &self.ends[1 - end]);
        let way = &mut self.ways[end];
        if way.pipe.is_none() {
            way.pipe = pipes.take();
        }
        way.blocked = false;
        let mut moved = 0;
        let fate = loop {
            match way.step(from, to, &mut pipes.scratch) {
                Ok(0) => break Fate::Stays,
                Ok(n) => moved += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Fate::Stays,
                Err(_) => break Fate::Broken,
            }
            if moved >= most {
                break Fate::Unsettled;
            }
        };
        if way.held == 0 {
            pipes.give(way.pipe.take());
        }
        fate
    }
}

impl Way {
    /// Moves a piece; how long it was, or 0 where nothing more is to be done.
    fn step(&mut self, from: &OwnedFd, to: &OwnedFd, scratch: &mut Vec<u8>) -> Result<usize, Errno> {
        let flags = SpliceFlags::NONBLOCK;
        if self.held > 0
            && let Some(pipe) = &self.pipe
        {
            let taken = splice(&pipe.out, None, to, None, self.held, flags);
            self.blocked = taken == Err(Errno::AGAIN);
            self.held -= taken?;
            // What is left has its turn before anything new.
            return Ok(1);
        }
        if self.ended {
            if !self.shut {
                self.shut = true;
                // One that is gone already need not be told.
                let _ = shutdown(to, Shutdown::Write);
            }
            return Ok(0);
        }
        let Some(pipe) = &self.pipe else { return self.copy(from, to, scratch) };
        let taken = splice(from, None, &pipe.into, None, PIECE, flags)?;
        self.held = taken;
        self.ended = taken == 0;
        Ok(taken.max(1))
    }

    /// The same without a pipe: what the one socket did not take stays in the other.
    fn copy(&mut self, from: &OwnedFd, to: &OwnedFd, scratch: &mut Vec<u8>) -> Result<usize, Errno> {
        scratch.resize(64 << 10, 0);
        let (length, _) = recv(from, &mut scratch[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        if length == 0 {
            self.ended = true;
            return Ok(1);
        }
        let sent = send(to, &scratch[..length], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        self.blocked = sent == Err(Errno::AGAIN);
        let sent = sent?;
        // TCP copies none of what is thrown away.
        let (_, gone) = recv(from, &mut scratch[..sent], RecvFlags::TRUNC | RecvFlags::DONTWAIT)?;
        if gone == sent { Ok(sent) } else { Err(Errno::CONNRESET) }
    }
}

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// Pipes that nobody needs, and how many there are in all.
#[derive(Debug, Default)]
struct Pipes {
    idle: Vec<Pipe>,
    made: usize,
    /// For those who get none.
    scratch: Vec<u8>,
}

impl Pipes {
    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.made >= PIPES {
            return None;
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Who has too much of them already has it smaller.
        let _ = fcntl_setpipe_size(&into, ROOM);
        self.made += 1;
        Some(Pipe { out, into })
    }

    fn give(&mut self, pipe: Option<Pipe>) {
        let Some(pipe) = pipe else { return };
        if self.idle.len() < IDLE_PIPES {
            self.idle.push(pipe);
        } else {
            self.made -= 1;
        }
    }

    /// Takes back what a way had that is over. A pipe with something in it is of no use to others.
    fn back(&mut self, way: Way) {
        if way.held == 0 {
            self.give(way.pipe);
        } else {
            self.made -= usize::from(way.pipe.is_some());
        }
    }
}
