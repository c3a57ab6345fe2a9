//! The loop of others lends a few descriptors to it: whoever polls for a container asks [`Resolver::awaits`] what to wait for,
//! and says what came.
//!
//! Everything is bounded: so many questions wait for the host's servers, so many connections are open, for so long.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, recv, recvfrom, send, sendto};

use super::connection::{Connection, framed};
use super::message::{self, Answer, Code, Question};
use super::sockets::Sockets;
use super::upstreams::{Upstreams, to};
use crate::state::{Networks, Places};

/// By these names a container finds the host.
const HOST: [&str; 3] = ["host.docker.internal", "host.containers.internal", "gateway.docker.internal"];
/// A server that has not answered after this time is not waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(900);
const MOST_WAITING: usize = 128;
const MOST_CONNECTIONS: usize = 16;
/// No message over UDP is longer.
pub(super) const LONGEST: usize = 4096;

/// Answers the questions of one container.
#[derive(Debug)]
pub struct Resolver {
    sockets: Sockets,
    /// The folder with what is written down of networks.
    root: PathBuf,
    container: String,
    upstreams: Upstreams,
    known: Option<Known>,
    waiting: Vec<Waiting>,
    connections: Vec<Connection>,
}

/// What is known of others, as of a time.
#[derive(Debug)]
struct Known {
    changed: SystemTime,
    names: Vec<(String, Vec<IpAddr>)>,
    gateways: Vec<IpAddr>,
}

/// A question that a server of the host was asked.
#[derive(Debug)]
struct Waiting {
    socket: Option<OwnedFd>,
    client: SocketAddr,
    message: Vec<u8>,
    id: u16,
    /// Which server was asked.
    server: Option<usize>,
    until: Instant,
    /// It has its answer, or will have none.
    done: bool,
}

/// Something to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Udp,
    Tcp,
    Waiting(usize),
    Client(usize),
    Upstream(usize),
}

impl Resolver {
    pub fn new(sockets: Sockets, root: &Path, container: &str, upstreams: Upstreams) -> Resolver {
        Resolver {
            sockets,
            root: root.to_owned(),
            container: container.to_owned(),
            upstreams,
            known: None,
            waiting: Vec::new(),
            connections: Vec::new(),
        }
    }

    /// The sockets that were lent to it.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// What to wait for.
    pub fn awaits(&self) -> Vec<(Token, BorrowedFd<'_>, PollFlags)> {
        let mut all = vec![(Token::Udp, self.sockets.udp.as_fd(), PollFlags::IN)];
        if self.connections.len() < MOST_CONNECTIONS {
            all.push((Token::Tcp, self.sockets.tcp.as_fd(), PollFlags::IN));
        }
        for (number, waiting) in self.waiting.iter().enumerate() {
            if let Some(socket) = &waiting.socket {
                all.push((Token::Waiting(number), socket.as_fd(), PollFlags::IN));
            }
        }
        for (number, connection) in self.connections.iter().enumerate() {
            let wants = |waits: &[u8], other: &[u8]| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::OUT, !waits.is_empty());
                // What one side has not taken yet is enough.
                flags.set(PollFlags::IN, other.len() < 2 * LONGEST);
                flags
            };
            let mut flags = wants(&connection.to_client, &connection.to_upstream);
            flags.set(PollFlags::IN, flags.contains(PollFlags::IN) && !connection.silent);
            all.push((Token::Client(number), connection.client.as_fd(), flags));
            if let Some(upstream) = &connection.upstream {
                let flags = wants(&connection.to_upstream, &connection.to_client);
                all.push((Token::Upstream(number), upstream.as_fd(), flags));
            }
        }
        all
    }

    /// When it wants to be called again, whatever came until then.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        let connections = self.connections.iter().map(|connection| match connection.asked.is_empty() {
            true => connection.until,
            false => connection.until.min(connection.patience),
        });
        waiting.chain(connections).min()
    }

    /// Does what can be done, after a wait. The numbers in tokens are those of the last [`Resolver::awaits`].
    pub fn advance(&mut self, ready: &[Token]) {
        // New ones come behind the known ones, so the numbers hold until the end.
        for token in ready {
            match token {
                Token::Udp => self.questions(),
                Token::Tcp => self.welcome(),
                Token::Waiting(number) => self.answered(*number),
                Token::Client(number) | Token::Upstream(number) => self.hear(*number),
            }
        }
        let now = Instant::now();
        for number in 0..self.waiting.len() {
            if !self.waiting[number].done && self.waiting[number].until <= now {
                self.ask_next(number);
            }
        }
        for connection in &mut self.connections {
            if !connection.asked.is_empty() && connection.patience <= now {
                connection.next_server(&self.upstreams.all);
            }
        }
        self.waiting.retain(|waiting| !waiting.done);
        self.connections.retain(|connection| !connection.ended && connection.until > now);
    }

    fn questions(&mut self) {
        let mut buffer = [0u8; LONGEST];
        // A flood must not keep whoever polls from everything else.
        for _ in 0..64 {
            let (length, from) = match recvfrom(&self.sockets.udp, &mut buffer, RecvFlags::empty()) {
                Ok((length, _, Some(from))) => (length, from),
                _ => return,
            };
            let Ok(client) = SocketAddr::try_from(from) else { continue };
            let message = &buffer[..length];
            let Some(question) = Question::parse(message) else {
                // Others than the usual ones are for the host's servers.
                if let Some(id) = message.first_chunk::<2>() {
                    self.forward(message.to_vec(), u16::from_be_bytes(*id), client);
                }
                continue;
            };
            match self.answer(&question) {
                Some(answer) => {
                    let longest = question.longest.min(LONGEST);
                    self.reply(&question.answer(Some(&answer), Code::Fine, longest), client);
                }
                None => self.forward(message.to_vec(), question.id, client),
            }
        }
    }

    fn reply(&self, message: &[u8], client: SocketAddr) {
        // Who asks again gets it then.
        let _ = sendto(&self.sockets.udp, message, SendFlags::empty(), &client);
    }

    fn forward(&mut self, message: Vec<u8>, id: u16, client: SocketAddr) {
        let alive = self.waiting.iter().filter(|waiting| !waiting.done).count();
        if alive >= MOST_WAITING {
            // It stays in its place until nobody counts on the numbers any more.
            if let Some(oldest) = self.waiting.iter_mut().find(|waiting| !waiting.done) {
                oldest.done = true;
                oldest.socket = None;
            }
        }
        self.upstreams.refresh();
        let number = self.waiting.len();
        let until = Instant::now();
        let waiting = Waiting { socket: None, client, message, id, server: None, until, done: false };
        self.waiting.push(waiting);
        self.ask_next(number);
    }

    fn ask(&self, server: usize, message: &[u8]) -> io::Result<OwnedFd> {
        let address = self.upstreams.all.get(server).ok_or(io::ErrorKind::NotFound)?;
        let socket = to(*address, SocketType::DGRAM)?;
        send(&socket, message, SendFlags::empty())?;
        Ok(socket)
    }

    /// Asks the first server or the next one, or says that none has answered.
    fn ask_next(&mut self, number: usize) {
        loop {
            let server = self.waiting[number].server.map_or(0, |server| server + 1);
            self.waiting[number].server = Some(server);
            if server >= self.upstreams.all.len() {
                let waiting = &mut self.waiting[number];
                waiting.done = true;
                let (message, client) = (std::mem::take(&mut waiting.message), waiting.client);
                if let Some(question) = Question::parse(&message) {
                    self.reply(&question.answer(None, Code::ServerFailure, LONGEST), client);
                }
                return;
            }
            if let Ok(socket) = self.ask(server, &self.waiting[number].message) {
                let waiting = &mut self.waiting[number];
                waiting.socket = Some(socket);
                waiting.until = Instant::now() + PATIENCE;
                return;
            }
        }
    }

    fn answered(&mut self, number: usize) {
        let Some(waiting) = self.waiting.get(number) else { return };
        let Some(socket) = &waiting.socket else { return };
        let mut buffer = [0u8; LONGEST];
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            // Connected, so it comes from whom was asked.
            Ok((length, _)) if buffer[..length].first_chunk::<2>() == Some(&waiting.id.to_be_bytes()) => {
                let client = waiting.client;
                self.reply(&buffer[..length], client);
                self.waiting[number].done = true;
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody is there.
            Err(_) => self.waiting[number].until = Instant::now(),
        }
    }

    fn welcome(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while self.connections.len() < MOST_CONNECTIONS {
            let Ok(client) = accept_with(&self.sockets.tcp, flags) else { return };
            self.connections.push(Connection::new(client));
        }
    }

    /// What a client over TCP asks, message by message.
    fn hear(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        connection.relay(&self.upstreams.all);
        while let Some(message) = self.connections[number].next() {
            let question = Question::parse(&message);
            let answer = question.as_ref().and_then(|question| Some((question, self.answer(question)?)));
            if answer.is_none() {
                self.upstreams.refresh();
            }
            let connection = &mut self.connections[number];
            match answer {
                Some((question, answer)) => {
                    let answer = question.answer(Some(&answer), Code::Fine, message::LONGEST);
                    framed(&mut connection.to_client, &answer);
                }
                None => connection.pass_on(&message, &self.upstreams.all),
            }
        }
        self.connections[number].send();
    }

    /// What is known here; `None` for what others have to say.
    fn answer(&mut self, question: &Question) -> Option<Answer> {
        self.refresh();
        let known = self.known.as_ref()?;
        if let Some(address) = question.reverse() {
            let found = known.names.iter().find(|(_, addresses)| addresses.contains(&address));
            return found.map(|(name, _)| Answer::Name(name.clone()));
        }
        if HOST.contains(&question.name.as_str()) && !known.gateways.is_empty() {
            return Some(Answer::Addresses(known.gateways.clone()));
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (name, own) in &known.names {
            if *name == question.name {
                addresses.extend(own);
            }
        }
        addresses.dedup();
        (!addresses.is_empty()).then_some(Answer::Addresses(addresses))
    }

    /// Looks at what is written down, where that has changed.
    fn refresh(&mut self) {
        let changed = std::fs::metadata(self.root.join("endpoints")).and_then(|found| found.modified());
        let Ok(changed) = changed else {
            self.known = None;
            return;
        };
        // A change within the clock's step of the last look would be missed.
        let sure = SystemTime::now().duration_since(changed).is_ok_and(|age| age > Duration::from_millis(50));
        if sure && self.known.as_ref().is_some_and(|known| known.changed == changed) {
            return;
        }
        let Ok(all) = Networks::all_places(&self.root) else { return };
        let own = all.iter().find(|(id, _)| *id == self.container).map(|(_, places)| places.clone());
        let Some(own) = own else {
            self.known = None;
            return;
        };
        self.known = Some(Known {
            changed,
            names: names(&all, &own),
            gateways: own.endpoints.first().map(|first| first.gateways.clone()).unwrap_or_default(),
        });
    }
}

/// The names of all that are in a network with somebody, the container's own name first.
fn names(all: &[(String, Places)], own: &Places) -> Vec<(String, Vec<IpAddr>)> {
    let mut out = Vec::new();
    for (id, places) in all {
        for endpoint in &places.endpoints {
            if !own.endpoints.iter().any(|other| other.id == endpoint.id) {
                continue;
            }
            let addresses: Vec<IpAddr> = endpoint.addresses.iter().map(|(address, _)| *address).collect();
            let short: String = id.chars().take(12).collect();
            for name in std::iter::once(&places.name).chain(std::iter::once(&short)).chain(&endpoint.aliases)
            {
                let name = name.to_ascii_lowercase();
                out.push((format!("{name}.{}", endpoint.network.to_ascii_lowercase()), addresses.clone()));
                out.push((name, addresses.clone()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
