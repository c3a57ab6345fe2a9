//! A client over TCP: its questions message by message, and the server that is asked what is not known here. One that says
//! nothing, or hangs up without an answer, is followed by the next one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};

use super::message::{self, Code, Question};
use super::resolver::{LONGEST, PATIENCE};
use super::upstreams::to;

/// A connection lives for so long.
const CONNECTION: Duration = Duration::from_secs(10);

/// A client, and what waits for it and for its server.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: OwnedFd,
    pub(super) upstream: Option<OwnedFd>,
    /// Which server that is, and what it was asked since it last said anything: the next one is, where it never does.
    server: usize,
    pub(super) asked: Vec<u8>,
    /// When it is not waited for any longer.
    pub(super) patience: Instant,
    /// From the client.
    got: Vec<u8>,
    pub(super) to_client: Vec<u8>,
    pub(super) to_upstream: Vec<u8>,
    pub(super) until: Instant,
    /// The client has no more to ask.
    pub(super) silent: bool,
    pub(super) ended: bool,
}

impl Connection {
    pub(super) fn new(client: OwnedFd) -> Connection {
        Connection {
            client,
            upstream: None,
            server: 0,
            asked: Vec::new(),
            patience: Instant::now(),
            got: Vec::new(),
            to_client: Vec::new(),
            to_upstream: Vec::new(),
            until: Instant::now() + CONNECTION,
            silent: false,
            ended: false,
        }
    }

    /// What a client asked that a server has to answer.
    pub(super) fn pass_on(&mut self, message: &[u8], servers: &[SocketAddr]) {
        self.patience = Instant::now() + 2 * PATIENCE;
        framed(&mut self.asked, message);
        framed(&mut self.to_upstream, message);
        if self.upstream.is_none() {
            self.call(servers);
        }
    }

    /// Passes on what there is, as far as it goes.
    pub(super) fn relay(&mut self, servers: &[SocketAddr]) {
        let mut buffer = [0u8; LONGEST];
        match recv(&self.client, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.silent = true,
            Ok((length, _)) => self.got.extend_from_slice(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.ended = true,
        }
        if let Some(upstream) = &self.upstream {
            let mut gone = false;
            match recv(upstream, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((length @ 1.., _)) => {
                    self.asked.clear();
                    self.to_client.extend_from_slice(&buffer[..length]);
                }
                Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => {}
                Ok((0, _)) | Err(_) => gone = true,
            }
            gone |= !drain(upstream, &mut self.to_upstream);
            if gone {
                self.upstream = None;
                // One that has said all that it was asked for may hang up.
                if !self.asked.is_empty() {
                    self.next_server(servers);
                }
            }
        }
        self.ended |= !drain(&self.client, &mut self.to_client);
        self.ended |= self.silent && self.to_client.is_empty() && self.upstream.is_none();
        // Nobody asks for so much at once.
        self.ended |= self.got.len() > 4 * LONGEST || self.asked.len() > 16 * LONGEST;
    }

    /// Sends what waits, as far as it goes. That the server is gone is seen when it is listened to.
    pub(super) fn send(&mut self) {
        if let Some(upstream) = &self.upstream {
            drain(upstream, &mut self.to_upstream);
        }
        self.ended |= !drain(&self.client, &mut self.to_client);
    }

    /// Asks the next one what the last one has not answered.
    pub(super) fn next_server(&mut self, servers: &[SocketAddr]) {
        self.upstream = None;
        self.server += 1;
        self.to_upstream.clone_from(&self.asked);
        self.call(servers);
    }

    /// Calls the server whose turn it is, or the next one that can be called; where none is left, says so.
    pub(super) fn call(&mut self, servers: &[SocketAddr]) {
        while let Some(server) = servers.get(self.server) {
            self.upstream = to(*server, SocketType::STREAM).ok();
            if self.upstream.is_some() {
                self.patience = Instant::now() + 2 * PATIENCE;
                return;
            }
            self.server += 1;
        }
        let mut asked = std::mem::take(&mut self.asked);
        while let Some(message) = message_of(&mut asked) {
            match Question::parse(&message) {
                Some(question) => {
                    let answer = question.answer(None, Code::ServerFailure, message::LONGEST);
                    framed(&mut self.to_client, &answer);
                }
                None => self.ended = true,
            }
        }
        self.to_upstream.clear();
        // They may be there again when it asks the next time.
        self.server = 0;
    }

    /// The next message that has come as a whole.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        message_of(&mut self.got)
    }
}

/// Takes the first whole message of a stream.
fn message_of(stream: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes(*stream.first_chunk::<2>()?));
    let message = stream.get(2..2 + length)?.to_vec();
    stream.drain(..2 + length);
    Some(message)
}

/// Sends what waits. `false` where nobody takes it.
fn drain(to: &OwnedFd, waits: &mut Vec<u8>) -> bool {
    while !waits.is_empty() {
        match send(to, waits, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => drop(waits.drain(..sent)),
            // A connection that is being made takes it later.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// A message over TCP has its length before it (RFC 1035, section 4.2.2).
pub(super) fn framed(out: &mut Vec<u8>, message: &[u8]) {
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}
