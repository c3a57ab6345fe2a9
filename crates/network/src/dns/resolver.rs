//! The loop of others lends a few descriptors to it: whoever polls for a container asks [`Resolver::awaits`] what to wait for,
//! and says what came.
//!
//! Everything is bounded: so many questions wait for the host's servers, so many connections are open, for so long.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use isles_sandbox::network::Entered;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect, getsockname,
    listen, recv, recvfrom, send, sendto, socket_with,
};

use super::message::{self, Answer, Code, Question};
use crate::error::{Error, Result};
use crate::firewall::{self, Published};
use crate::netlink::Socket;
use crate::place::within;
use crate::port::{Port, Protocol};
use crate::state::{Networks, Places};

/// Whom a container asks.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
const PORT: u16 = 53;
/// By these names a container finds the host.
const HOST: [&str; 3] = ["host.docker.internal", "host.containers.internal", "gateway.docker.internal"];
/// Servers of the host beyond these are never asked (resolv.conf(5)).
const MOST_SERVERS: usize = 3;
/// A server that has not answered after this time is not waited for.
const PATIENCE: Duration = Duration::from_millis(900);
const MOST_WAITING: usize = 128;
const MOST_CONNECTIONS: usize = 16;
/// A connection lives for so long.
const CONNECTION: Duration = Duration::from_secs(10);
/// No message over UDP is longer.
const LONGEST: usize = 4096;

/// The sockets in a container's network namespace.
#[derive(Debug)]
pub struct Sockets {
    pub udp: OwnedFd,
    pub tcp: OwnedFd,
}

impl Sockets {
    /// Makes them, and lets the port 53 of [`ADDRESS`] lead to them, so that a program of the container can have that port.
    pub fn open(namespace: BorrowedFd<'_>) -> Result<Sockets> {
        within(namespace, || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let any = SocketAddr::new(ADDRESS, 0);
            let udp = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
            bind(&udp, &any)?;
            let tcp = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            bind(&tcp, &any)?;
            listen(&tcp, 16)?;
            let sockets = Sockets { udp, tcp };
            let ports = redirections(&sockets)?;
            let mut rules = Socket::netfilter()?;
            firewall::redirect(&mut rules, &ports)?;
            Ok(sockets)
        })
        .map_err(|e| Error::system("serve names to the container", e))
    }
}

impl Sockets {
    /// The same in the namespace that a process has entered for its owner. Where there is no firewall for him, the port is
    /// taken by the sockets themselves.
    pub fn of_entered(entered: &Entered) -> Result<Sockets> {
        let open = |port: u16| -> io::Result<Sockets> {
            let of = |kind: i32| -> io::Result<OwnedFd> {
                let socket = entered.socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK, 0)?;
                bind(&socket, &SocketAddr::new(ADDRESS, port))?;
                Ok(socket)
            };
            let sockets = Sockets { udp: of(libc::SOCK_DGRAM)?, tcp: of(libc::SOCK_STREAM)? };
            listen(&sockets.tcp, 16)?;
            Ok(sockets)
        };
        let with_firewall = || -> io::Result<Sockets> {
            let sockets = open(0)?;
            let rules = entered.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?;
            firewall::redirect(&mut Socket::opened(rules), &redirections(&sockets)?)?;
            Ok(sockets)
        };
        with_firewall().or_else(|_| open(PORT)).map_err(|e| Error::system("serve names to the container", e))
    }
}

/// What leads from the port 53 to the sockets.
fn redirections(sockets: &Sockets) -> io::Result<Vec<Published>> {
    let mut ports = Vec::with_capacity(2);
    for (socket, protocol) in [(&sockets.udp, Protocol::Udp), (&sockets.tcp, Protocol::Tcp)] {
        let bound: SocketAddr = getsockname(socket)?.try_into()?;
        let port = Port { address: Some(ADDRESS), host: PORT, container: bound.port(), protocol };
        ports.push(Published { port, target: ADDRESS });
    }
    Ok(ports)
}

/// The servers that are asked what is not known here.
#[derive(Debug, Clone)]
pub struct Upstreams {
    all: Vec<SocketAddr>,
    /// The file that names them, and when it was changed last.
    of: Option<(PathBuf, Option<SystemTime>)>,
}

impl Upstreams {
    pub fn given(all: Vec<SocketAddr>) -> Upstreams {
        Upstreams { all, of: None }
    }

    /// Those that a resolv.conf(5) names: now, and whenever it changes.
    pub fn of_file(path: &Path) -> Upstreams {
        let mut upstreams = Upstreams { all: Vec::new(), of: Some((path.to_owned(), None)) };
        upstreams.refresh();
        upstreams
    }

    fn refresh(&mut self) {
        let Some((path, changed)) = &mut self.of else { return };
        let found = std::fs::metadata(&*path).and_then(|found| found.modified()).ok();
        if found.is_some() && *changed != found {
            *changed = found;
            self.all = servers(&std::fs::read_to_string(&*path).unwrap_or_default());
        }
    }
}

fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let words = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = words.filter_map(|word| word.trim().parse::<IpAddr>().ok());
    addresses.take(MOST_SERVERS).map(|address| SocketAddr::new(address, PORT)).collect()
}

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

/// A client over TCP.
#[derive(Debug)]
struct Connection {
    client: OwnedFd,
    upstream: Option<OwnedFd>,
    /// Which server that is, and what it was asked since it last said anything: the next one is, where it never does.
    server: usize,
    asked: Vec<u8>,
    /// When it is not waited for any longer.
    patience: Instant,
    /// From the client.
    got: Vec<u8>,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
    until: Instant,
    /// The client has no more to ask.
    silent: bool,
    ended: bool,
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
            self.connections.push(Connection {
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
            });
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
                None => {
                    connection.patience = Instant::now() + 2 * PATIENCE;
                    framed(&mut connection.asked, &message);
                    framed(&mut connection.to_upstream, &message);
                    if connection.upstream.is_none() {
                        connection.call(&self.upstreams.all);
                    }
                }
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

impl Connection {
    /// Passes on what there is, as far as it goes.
    fn relay(&mut self, servers: &[SocketAddr]) {
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
    fn send(&mut self) {
        if let Some(upstream) = &self.upstream {
            drain(upstream, &mut self.to_upstream);
        }
        self.ended |= !drain(&self.client, &mut self.to_client);
    }

    /// Asks the next one what the last one has not answered.
    fn next_server(&mut self, servers: &[SocketAddr]) {
        self.upstream = None;
        self.server += 1;
        self.to_upstream.clone_from(&self.asked);
        self.call(servers);
    }

    /// Calls the server whose turn it is, or the next one that can be called; where none is left, says so.
    fn call(&mut self, servers: &[SocketAddr]) {
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
    fn next(&mut self) -> Option<Vec<u8>> {
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
fn framed(out: &mut Vec<u8>, message: &[u8]) {
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

/// A socket to a server, connected or about to be.
fn to(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::message::{A, AAAA, PTR};
    use super::*;
    use crate::state::{Endpoint, Wish};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            out.push(label.len() as u8);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out
    }

    struct Host {
        dir: tempfile::TempDir,
        networks: Networks,
    }

    impl Host {
        fn new() -> Host {
            let dir = tempfile::tempdir().unwrap();
            let networks = Networks::open(dir.path()).unwrap();
            networks.create("one", ID, 1, &Wish::default(), &[]).unwrap();
            networks.create("two", &ID.replace('0', "f"), 1, &Wish::default(), &[]).unwrap();
            Host { dir, networks }
        }

        fn place(&self, container: &str, name: &str, network: &str, aliases: &[&str]) -> IpAddr {
            let network = Networks::find(self.dir.path(), network).unwrap().unwrap();
            let addresses = self.networks.give(&network, container, &[]).unwrap();
            let endpoint = Endpoint {
                network: network.name.clone(),
                id: network.id.clone(),
                device: "d".into(),
                mac: [2; 6],
                addresses: addresses.clone(),
                gateways: network.pools.iter().map(|pool| pool.gateway).collect(),
                aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            };
            let places = Places { name: name.into(), endpoints: vec![endpoint], ports: vec![] };
            self.networks.put(container, &places).unwrap();
            addresses[0].0
        }

        fn resolver(
            &self,
            container: &str,
            upstreams: Vec<SocketAddr>,
        ) -> (Resolver, SocketAddr, SocketAddr) {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            udp.set_nonblocking(true).unwrap();
            let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            tcp.set_nonblocking(true).unwrap();
            let at = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
            let sockets = Sockets { udp: udp.into(), tcp: tcp.into() };
            let upstreams = Upstreams::given(upstreams);
            (Resolver::new(sockets, self.dir.path(), container, upstreams), at.0, at.1)
        }
    }

    /// Lets it work until `done` says so.
    fn turn(resolver: &mut Resolver, mut done: impl FnMut() -> bool) {
        while !done() {
            let ready: Vec<Token> = {
                let awaits = resolver.awaits();
                let mut fds: Vec<rustix::event::PollFd<'_>> = awaits
                    .iter()
                    .map(|(_, fd, flags)| rustix::event::PollFd::from_borrowed_fd(*fd, *flags))
                    .collect();
                let step = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                rustix::event::poll(&mut fds, Some(&step)).unwrap();
                awaits
                    .iter()
                    .zip(&fds)
                    .filter(|(_, fd)| !fd.revents().is_empty())
                    .map(|((t, ..), _)| *t)
                    .collect()
            };
            resolver.advance(&ready);
        }
    }

    fn ask(resolver: &mut Resolver, at: SocketAddr, message: &[u8]) -> Vec<u8> {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        client.send_to(message, at).unwrap();
        let (mut buffer, mut length) = ([0u8; 512], 0);
        turn(resolver, || match client.recv(&mut buffer) {
            Ok(n) => {
                length = n;
                true
            }
            Err(_) => false,
        });
        buffer[..length].to_vec()
    }

    #[test]
    fn names_of_others_in_the_same_network() {
        let host = Host::new();
        host.place("aaaaaaaaaaaaaaaa", "web", "one", &["www", "front"]);
        let db = host.place("bbbbbbbbbbbbbbbb", "DB", "one", &[]);
        host.place("cccccccccccccccc", "far", "two", &[]);
        let (mut resolver, at, _) = host.resolver("aaaaaaaaaaaaaaaa", Vec::new());
        let IpAddr::V4(expected) = db else { panic!() };
        for name in ["db", "Db", "db.one", "bbbbbbbbbbbb"] {
            let reply = ask(&mut resolver, at, &question(name, A));
            assert_eq!((reply[3] & 15, reply[7]), (0, 1), "{name}");
            assert!(reply.ends_with(&expected.octets()), "{name}");
        }
        let reply = ask(&mut resolver, at, &question("db", AAAA));
        assert_eq!((reply[3] & 15, reply[7]), (0, 0), "there is none, and the name is there");
        for name in ["www", "front", "host.docker.internal"] {
            assert_eq!(ask(&mut resolver, at, &question(name, A))[7], 1, "{name}");
        }
        // Nobody else knows them: there are no servers.
        for name in ["far", "nobody", "db.two"] {
            assert_eq!(ask(&mut resolver, at, &question(name, A))[3] & 15, 2, "{name}");
        }
        let [a, b, c, d] = expected.octets();
        let reply = ask(&mut resolver, at, &question(&format!("{d}.{c}.{b}.{a}.in-addr.arpa"), PTR));
        assert!(reply.ends_with(b"\x02db\x03one\x00"), "{reply:?}");
        // Who goes and comes again is known by the new address at once.
        for _ in 0..20 {
            host.networks.release("bbbbbbbbbbbbbbbb").unwrap();
            assert_eq!(ask(&mut resolver, at, &question("db", A))[3] & 15, 2);
            let IpAddr::V4(now) = host.place("bbbbbbbbbbbbbbbb", "db", "one", &[]) else { panic!() };
            assert!(ask(&mut resolver, at, &question("db", A)).ends_with(&now.octets()));
        }
    }

    #[test]
    fn other_questions_go_to_the_first_server_that_answers() {
        let host = Host::new();
        host.place("aaaaaaaaaaaaaaaa", "web", "one", &[]);
        // One that says nothing, one that is not there, and one that answers.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let upstreams = vec![silent.local_addr().unwrap(), gone, server.local_addr().unwrap()];
        let (mut resolver, at, _) = host.resolver("aaaaaaaaaaaaaaaa", upstreams);
        let answers = std::thread::spawn(move || {
            let mut buffer = [0u8; 512];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            // Another one's answer comes first.
            server.send_to(&[9, 9, 0x80, 0], from).unwrap();
            buffer[2] |= 0x80;
            server.send_to(&buffer[..length], from).unwrap();
        });
        let message = question("example.org", A);
        let reply = ask(&mut resolver, at, &message);
        assert_eq!(reply[2], message[2] | 0x80);
        assert_eq!(reply[12..], message[12..]);
        answers.join().unwrap();
        assert!(resolver.waiting.is_empty());
    }

    #[test]
    fn over_tcp_as_well() {
        use std::io::{Read, Write};
        let host = Host::new();
        let IpAddr::V4(own) = host.place("aaaaaaaaaaaaaaaa", "web", "one", &[]) else { panic!() };
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // One that nobody serves, one that hangs up without an answer, and one that never says anything.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let rude = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let upstreams = [&rude, &silent, &server].map(|listener| listener.local_addr().unwrap());
        let upstreams = [vec![gone], upstreams.to_vec()].concat();
        let hangs_up = std::thread::spawn(move || drop(rude.accept().unwrap()));
        let (mut resolver, _, at) = host.resolver("aaaaaaaaaaaaaaaa", upstreams);
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut length = [0u8; 2];
            stream.read_exact(&mut length).unwrap();
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message).unwrap();
            message[2] |= 0x80;
            stream.write_all(&[&length[..], &message].concat()).unwrap();
        });
        let client = std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(at).unwrap();
            let mut replies = Vec::new();
            for name in ["web", "example.org"] {
                let message = question(name, A);
                // In two pieces.
                stream.write_all(&(message.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&message).unwrap();
                let mut length = [0u8; 2];
                stream.read_exact(&mut length).unwrap();
                let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut reply).unwrap();
                replies.push(reply);
            }
            replies
        });
        turn(&mut resolver, || client.is_finished());
        let replies = client.join().unwrap();
        assert!(replies[0].ends_with(&own.octets()));
        assert_eq!(replies[1][2] & 0x80, 0x80);
        answers.join().unwrap();
        hangs_up.join().unwrap();
        let mut rounds = 0;
        turn(&mut resolver, || {
            rounds += 1;
            rounds > 3
        });
        assert!(resolver.connections.is_empty(), "{:?}", resolver.connections);
    }

    #[test]
    fn without_any_server_tcp_says_so() {
        use std::io::{Read, Write};
        let host = Host::new();
        host.place("aaaaaaaaaaaaaaaa", "web", "one", &[]);
        let (mut resolver, _, at) = host.resolver("aaaaaaaaaaaaaaaa", Vec::new());
        let client = std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(at).unwrap();
            let message = question("example.org", A);
            stream.write_all(&(message.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&message).unwrap();
            let mut reply = [0u8; 14];
            stream.read_exact(&mut reply).unwrap();
            reply[5] & 15
        });
        turn(&mut resolver, || client.is_finished());
        assert_eq!(client.join().unwrap(), 2);
    }

    #[test]
    fn more_questions_than_are_waited_for() {
        let host = Host::new();
        host.place("aaaaaaaaaaaaaaaa", "web", "one", &[]);
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (mut resolver, at, _) = host.resolver("aaaaaaaaaaaaaaaa", vec![silent.local_addr().unwrap()]);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..3 * MOST_WAITING {
            client.send_to(&question(&format!("n{number}.example.org"), A), at).unwrap();
            if number % 32 == 0 {
                resolver.advance(&[Token::Udp]);
            }
        }
        resolver.advance(&[Token::Udp]);
        resolver.advance(&[]);
        assert!(resolver.waiting.len() <= MOST_WAITING && !resolver.waiting.is_empty());
        // The last ones are those that are waited for.
        let last = Question::parse(&resolver.waiting.last().unwrap().message).unwrap();
        let first = Question::parse(&resolver.waiting[0].message).unwrap();
        assert!(last.name > "n".into() && first.name != "n0.example.org", "{} {}", first.name, last.name);
    }

    #[test]
    fn servers_of_the_host_may_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 10.0.0.1\n").unwrap();
        let mut upstreams = Upstreams::of_file(&file);
        assert_eq!(upstreams.all, ["10.0.0.1:53".parse().unwrap()]);
        std::fs::write(&file, "nameserver 10.0.0.2\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(2);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        upstreams.refresh();
        assert_eq!(upstreams.all, ["10.0.0.2:53".parse().unwrap()]);
        // While it is being written anew, those that are known will do.
        std::fs::remove_file(&file).unwrap();
        upstreams.refresh();
        assert_eq!(upstreams.all.len(), 1);
    }

    #[test]
    fn servers_of_the_host() {
        let text = "# x\nnameserver 127.0.0.53\n nameserver fd00::1\nnameserver bad\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n";
        let shown: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.53:53", "[fd00::1]:53", "1.1.1.1:53"]);
    }
}
