//! The user-mode stack against sockets of the loopback: the test plays the container's kernel, packet by packet.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use isles_network::user::inside::{Ipv4Net, Ipv6Net, MAC, MTU, Plan, ROUTER};
use isles_network::user::neighbour;
use isles_network::user::packet::{self, ACK, FIN, Frame, Headers, RST, SYN, Said, Way};
use isles_network::user::rules::Rules;
use isles_network::user::rules::Shared;
use isles_network::user::stack::Stack;
use isles_network::user::{Kind, Link};
use rustix::event::epoll::{self, CreateFlags};

/// What was sent to the container, in turn.
#[derive(Debug, Default)]
struct Wire(Vec<Vec<u8>>);

impl Link for Wire {
    fn send(&mut self, headers: &Headers, data: &[u8]) {
        self.0.push([&headers[..], data].concat());
    }

    fn belongs_to(&mut self, _: [u8; 6]) {}
}

fn plan() -> Plan {
    Plan {
        v4: Ipv4Net { container: [10, 0, 2, 100].into(), router: [10, 0, 2, 2].into() },
        v6: Some(Ipv6Net { container: "fd69::64".parse().unwrap(), router: "fd69::2".parse().unwrap() }),
        mac: MAC,
        mtu: MTU,
    }
}

/// What a segment to the container said.
#[derive(Debug, Clone)]
struct Heard {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    data: Vec<u8>,
}

/// The container's side of one connection.
struct Guest {
    stack: Stack<Wire>,
    now: Instant,
    own: SocketAddr,
    remote: SocketAddr,
    next: u32,
    expected: u32,
    window: u16,
}

impl Guest {
    fn new(remote: SocketAddr) -> Guest {
        let waiting = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let own: IpAddr = if remote.is_ipv4() { [10, 0, 2, 100].into() } else { "fd69::64".parse().unwrap() };
        Guest {
            stack: Stack::new(Wire::default(), Rules::new(plan(), true), waiting),
            now: Instant::now(),
            own: (own, 4000).into(),
            remote,
            next: 1000,
            expected: 0,
            window: 60_000,
        }
    }

    /// A container in a network with another one.
    fn shared(own: &str, remote: &str, folders: Vec<(IpAddr, PathBuf)>) -> Guest {
        let (own, remote): (SocketAddr, SocketAddr) = (own.parse().unwrap(), remote.parse().unwrap());
        let shared = Shared {
            network: "n".to_owned(),
            subnet: "10.7.0.0/24".parse().unwrap(),
            own: own.ip(),
            gateway: [10, 7, 0, 1].into(),
        };
        let find = move |_: &str, address: IpAddr| {
            folders.iter().find(|(of, _)| *of == address).map(|(_, folder)| folder.clone())
        };
        let rules = Rules::new(plan(), false).with_shared(vec![shared], true, Box::new(find));
        let waiting = epoll::create(CreateFlags::CLOEXEC).unwrap();
        Guest { stack: Stack::new(Wire::default(), rules, waiting), own, remote, ..Guest::new(remote) }
    }

    fn way(&self) -> Way {
        Way { from: self.own.ip(), to: self.remote.ip(), device: ROUTER, router: MAC }
    }

    /// Sends a segment that begins at a certain byte.
    fn send_at(&mut self, sequence: u32, flags: u8, data: &[u8]) {
        let said = Said {
            from: self.own.port(),
            to: self.remote.port(),
            sequence,
            acknowledged: if flags & ACK != 0 { self.expected } else { 0 },
            flags,
            window: self.window,
            largest: (flags & SYN != 0).then_some(1460),
            scale: None,
        };
        let headers = packet::tcp(&self.way(), &said, data.len(), 1460);
        self.stack.frame(&[&headers[..], data].concat(), self.now);
        self.stack.settle(self.now);
    }

    fn send(&mut self, flags: u8, data: &[u8]) {
        let at = self.next;
        self.next += data.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.send_at(at, flags, data);
    }

    fn datagram(&mut self, data: &[u8]) {
        let headers =
            packet::udp(&self.way(), self.own.port(), self.remote.port(), data.len(), MTU as usize, 0);
        self.stack.frame(&[&headers[..], data].concat(), self.now);
    }

    /// The next packet that came, after all that the sockets have to say.
    fn packet(&mut self) -> Vec<u8> {
        while self.stack.link.0.is_empty() {
            assert!(self.turn(), "nothing comes");
        }
        self.stack.link.0.remove(0)
    }

    /// Waits for sockets, and lets the stack see to them; `false` where none stirs for long.
    fn turn(&mut self) -> bool {
        let mut events = Vec::with_capacity(16);
        let long = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        let room = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(self.stack.waiting(), room, Some(&long)).unwrap();
        for event in &events {
            self.stack.stirred(event.data.u64(), self.now);
        }
        self.stack.settle(self.now);
        !events.is_empty()
    }

    fn heard(&mut self) -> Heard {
        let bytes = self.packet();
        let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!("{bytes:?}") };
        assert_eq!((ip.source, ip.destination, ip.protocol), (self.remote.ip(), self.own.ip(), packet::TCP));
        let said = packet::segment(ip.payload).unwrap();
        assert_eq!((said.source, said.destination), (self.remote.port(), self.own.port()));
        Heard {
            sequence: said.sequence,
            acknowledged: said.acknowledged,
            flags: said.flags,
            window: said.window,
            data: said.data.to_vec(),
        }
    }

    fn connect(&mut self) {
        self.send(SYN, &[]);
        let answer = self.heard();
        assert_eq!((answer.flags, answer.acknowledged), (SYN | ACK, self.next));
        self.expected = answer.sequence.wrapping_add(1);
        self.send(ACK, &[]);
    }

    /// Reads until the connection has said so much, acknowledging all of it.
    fn read(&mut self, length: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < length {
            let heard = self.heard();
            assert_eq!(heard.sequence, self.expected);
            if heard.data.is_empty() {
                continue;
            }
            data.extend_from_slice(&heard.data);
            self.expected = self.expected.wrapping_add(heard.data.len() as u32);
            self.send(ACK, &[]);
        }
        data
    }

    fn until(&mut self, flag: u8) -> Heard {
        loop {
            let heard = self.heard();
            if heard.flags & flag != 0 {
                return heard;
            }
        }
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
        self.stack.tick(self.now);
    }
}

fn router(port: u16) -> SocketAddr {
    ([10, 0, 2, 2], port).into()
}

/// A connection between a container and a listener of the loopback.
fn connected(ipv6: bool) -> (Guest, TcpStream) {
    let listener = TcpListener::bind(if ipv6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
    let port = listener.local_addr().unwrap().port();
    let remote = if ipv6 { SocketAddr::new("fd69::2".parse().unwrap(), port) } else { router(port) };
    let mut guest = Guest::new(remote);
    guest.connect();
    let (server, _) = listener.accept().unwrap();
    (guest, server)
}

#[test]
fn data_goes_both_ways_and_each_end_closes_for_itself() {
    for ipv6 in [false, true] {
        let (mut guest, mut server) = connected(ipv6);
        guest.send(ACK, b"hello ");
        assert_eq!(guest.heard().acknowledged, guest.next);
        guest.send(ACK | FIN, b"there");
        assert_eq!(guest.heard().acknowledged, guest.next);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello there");
        // The other half stays open.
        let large: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let sent = large.clone();
        let writer = std::thread::spawn(move || {
            server.write_all(&sent).unwrap();
            server.shutdown(std::net::Shutdown::Write).unwrap();
            server
        });
        assert_eq!(guest.read(large.len()), large);
        let end = guest.until(FIN);
        assert_eq!((end.flags & FIN, end.sequence), (FIN, guest.expected));
        assert_eq!(guest.stack.len(), 1);
        guest.expected = guest.expected.wrapping_add(1);
        guest.send(ACK, &[]);
        assert!(guest.stack.is_empty());
        drop(writer.join().unwrap());
    }
}

#[test]
fn what_is_lost_or_out_of_turn_arrives_once() {
    let (mut guest, mut server) = connected(false);
    let at = guest.next;
    guest.send_at(at + 3, ACK, b"def");
    assert_eq!(guest.heard().acknowledged, at, "said at once, so that three make the container repeat");
    guest.send_at(at + 6, ACK | FIN, b"g");
    guest.send_at(at, ACK, b"abc");
    guest.send_at(at + 1, ACK, b"bcde");
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abcdefg");
    guest.next = at + 8;
    while guest.heard().acknowledged != guest.next {}

    // What is not acknowledged is sent again, later and later; what arrives in part, from there.
    server.write_all(b"0123456789").unwrap();
    let first = guest.until(packet::PSH);
    assert_eq!(first.data, b"0123456789");
    guest.later(Duration::from_millis(300));
    assert_eq!(guest.until(packet::PSH).data, b"0123456789");
    guest.expected = guest.expected.wrapping_add(4);
    guest.send(ACK, &[]);
    guest.later(Duration::from_secs(1));
    assert_eq!(guest.until(packet::PSH).data, b"456789");
    // Three times the same acknowledgement means that something is missing.
    for _ in 0..4 {
        guest.send(ACK, &[]);
    }
    assert_eq!(guest.until(packet::PSH).data, b"456789");
    // Nobody answers: given up, on both sides.
    for _ in 0..12 {
        guest.later(Duration::from_secs(60));
    }
    guest.until(RST);
    assert!(guest.stack.is_empty());
    assert!(server.write(&[0]).is_err());
}

#[test]
fn a_shut_window_is_asked_about_and_obeyed() {
    let (mut guest, mut server) = connected(false);
    guest.window = 0;
    guest.send(ACK, &[]);
    server.write_all(b"later").unwrap();
    assert!(guest.turn());
    assert!(guest.stack.link.0.is_empty());
    guest.later(Duration::from_secs(1));
    let question = guest.heard();
    assert!(question.data.is_empty() && question.sequence == guest.expected.wrapping_sub(1));
    guest.window = 3;
    guest.send(ACK, &[]);
    assert_eq!(guest.until(packet::PSH).data, b"lat");
    guest.expected = guest.expected.wrapping_add(3);
    guest.send(ACK, &[]);
    assert_eq!(guest.until(packet::PSH).data, b"er");
}

#[test]
fn a_slow_reader_shuts_our_window() {
    let (mut guest, mut server) = connected(false);
    let block = vec![7u8; 32 << 10];
    let mut sent = 0usize;
    // The window says when the socket takes no more; all until then has been taken.
    loop {
        guest.send(ACK, &block);
        sent += block.len();
        let heard = guest.heard();
        assert_eq!(heard.acknowledged, guest.next);
        if heard.window == 0 {
            break;
        }
        assert!(sent < 64 << 20);
    }
    let reader = std::thread::spawn(move || {
        let mut data = Vec::new();
        server.read_to_end(&mut data).unwrap();
        data.len()
    });
    while guest.heard().window == 0 {}
    guest.send(ACK | FIN, b"!");
    assert_eq!(guest.until(FIN).flags & FIN, FIN);
    assert_eq!(reader.join().unwrap(), sent + 1);
}

#[test]
fn resets_go_through() {
    let (mut guest, mut server) = connected(false);
    guest.send(RST | ACK, &[]);
    assert!(guest.stack.is_empty());
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    // One that does not know where the connection is has no say.
    let (mut guest, server) = connected(false);
    let at = guest.next;
    guest.send_at(at + 5, RST, &[]);
    assert_eq!(guest.stack.len(), 1);
    // A server that closes with something unread resets.
    guest.send(ACK, b"unread");
    drop(server);
    let end = guest.until(RST);
    assert_eq!(end.flags, RST | ACK);
    assert!(guest.stack.is_empty());
}

#[test]
fn what_is_not_to_be_had_is_said_so() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new(router(free));
    guest.send(SYN, &[]);
    let refused = guest.heard();
    assert_eq!((refused.flags, refused.acknowledged), (RST | ACK, guest.next));
    // A segment of a connection that is not known.
    guest.send_at(5, ACK, b"x");
    assert_eq!(guest.heard().flags, RST);
    guest.send_at(5, RST, &[]);

    for (remote, v6) in
        [("127.0.0.1:80", false), ("10.0.2.9:80", false), ("[::1]:80", true), ("[::ffff:127.0.0.1]:80", true)]
    {
        let mut guest = Guest::new(remote.parse().unwrap());
        for tcp in [true, false] {
            if tcp {
                guest.send(SYN, &[])
            } else {
                guest.datagram(b"x")
            }
            let bytes = guest.packet();
            let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
            let expected = if v6 { (packet::ICMPV6, 1, 1) } else { (packet::ICMP, 3, 13) };
            assert_eq!((ip.protocol, ip.payload[0], ip.payload[1]), expected, "{remote}");
            if tcp {
                // Without the number of the segment, the container's kernel would not believe it.
                assert!(ip.payload.ends_with(&(guest.next - 1).to_be_bytes()));
            }
            assert!(guest.stack.is_empty());
        }
    }
}

#[test]
fn datagrams() {
    for ipv6 in [false, true] {
        let server = UdpSocket::bind(if ipv6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
        let port = server.local_addr().unwrap().port();
        let remote = if ipv6 { SocketAddr::new("fd69::2".parse().unwrap(), port) } else { router(port) };
        let mut guest = Guest::new(remote);
        for question in [&b""[..], b"one", &[9; 60_000]] {
            guest.datagram(question);
            let mut buffer = vec![0; 65_536];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], question);
            server.send_to(&buffer[..length], from).unwrap();
            let bytes = guest.packet();
            let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
            assert_eq!((ip.source, ip.destination), (guest.remote.ip(), guest.own.ip()));
            assert_eq!(packet::datagram(ip.payload), Some((port, 4000, question)));
        }
        // Several that the container's kernel left together.
        let headers = packet::udp(&guest.way(), 4000, port, 5, MTU as usize, 0);
        let mut together = [&headers[..], b"aabbc"].concat();
        together[1] = 5;
        together[4..6].copy_from_slice(&2u16.to_ne_bytes());
        guest.stack.frame(&together, guest.now);
        for expected in [&b"aa"[..], b"bb", b"c"] {
            let mut buffer = [0; 10];
            let length = server.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
        assert_eq!(guest.stack.len(), 1);
        // Nobody there any more.
        drop(server);
        guest.datagram(b"x");
        let bytes = guest.packet();
        let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
        let expected = if ipv6 { (1, 4) } else { (3, 3) };
        assert_eq!((ip.payload[0], ip.payload[1]), expected);
        assert_eq!(ip.source, guest.remote.ip());
        // Forgotten when it was quiet for long.
        guest.later(Duration::from_secs(200));
        assert!(guest.stack.is_empty());
    }
}

#[test]
fn published_ports_keep_the_source_address() {
    for (peer, seen) in [("192.0.2.7:999", "192.0.2.7:999"), ("127.0.0.1:999", "10.0.2.2:999")] {
        let mut guest = Guest::new(seen.parse().unwrap());
        guest.own.set_port(80);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let (own, now) = (guest.own, guest.now);
        guest.stack.link.0.clear();
        guest.stack.accepted(accepted.into(), peer.parse().unwrap(), own, now);
        let first = guest.heard();
        assert_eq!(first.flags, SYN);
        guest.expected = first.sequence.wrapping_add(1);
        guest.send(SYN | ACK, &[]);
        assert_eq!(guest.heard().flags, ACK);
        client.write_all(b"GET").unwrap();
        assert_eq!(guest.read(3), b"GET");
        guest.send(ACK, b"200");
        let mut answer = [0; 3];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"200");
        // Nobody listens in the container: the next one is told.
        let (accepted, mut client) = {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0, client)
        };
        accepted.set_nonblocking(true).unwrap();
        guest.stack.link.0.clear();
        guest.stack.accepted(accepted.into(), "192.0.2.8:5".parse().unwrap(), own, now);
        guest.remote = "192.0.2.8:5".parse().unwrap();
        let first = guest.until(SYN);
        guest.expected = first.sequence.wrapping_add(1);
        guest.send_at(0, RST | ACK, &[]);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// The container may still know an earlier connection between the same ends (TIME-WAIT).
#[test]
fn an_old_connection_is_not_in_the_way_of_a_new_one() {
    let mut guest = Guest::new("192.0.2.7:999".parse().unwrap());
    guest.own.set_port(80);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    accepted.set_nonblocking(true).unwrap();
    let (own, remote, now) = (guest.own, guest.remote, guest.now);
    guest.stack.accepted(accepted.into(), remote, own, now);
    let first = guest.heard();
    guest.expected = first.sequence.wrapping_sub(77_777);
    guest.send(ACK, &[]);
    let reset = guest.heard();
    assert_eq!((reset.flags, reset.sequence), (RST, guest.expected));
    let again = guest.heard();
    assert_eq!((again.flags, again.sequence), (SYN, first.sequence));
    guest.expected = again.sequence.wrapping_add(1);
    guest.send(SYN | ACK, &[]);
    client.write_all(b"x").unwrap();
    assert_eq!(guest.until(packet::PSH).data, b"x");
}

#[test]
fn containers_of_one_network_reach_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let folders = |names: &[&str]| -> Vec<(IpAddr, PathBuf)> {
        names.iter().map(|name| (name.parse().unwrap(), dir.path().to_owned())).collect()
    };
    let hears = neighbour::hear(dir.path(), Kind::Stream).unwrap();
    let mut a = Guest::shared("10.7.0.2:4000", "10.7.0.3:80", folders(&["10.7.0.3"]));
    let mut b = Guest::shared("10.7.0.3:80", "10.7.0.2:4000", Vec::new());
    let introduce = |b: &mut Guest, socket, kind| {
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        b.stack.introduced(socket, kind, b.now);
    };
    a.send(SYN, &[]);
    introduce(&mut b, rustix::net::accept(&hears).unwrap(), Kind::Stream);
    let asked = b.heard();
    assert_eq!(asked.flags, SYN);
    assert!(a.stack.link.0.is_empty(), "it is not connected before the other one has taken it");
    b.expected = asked.sequence.wrapping_add(1);
    b.send(SYN | ACK, &[]);
    let taken = a.heard();
    assert_eq!(taken.flags, SYN | ACK);
    a.expected = taken.sequence.wrapping_add(1);
    a.send(ACK, b"hello");
    assert_eq!(b.read(5), b"hello");
    let large = vec![5; 300_000];
    for piece in large.chunks(20_000) {
        b.send(ACK, piece);
    }
    let mut got = Vec::new();
    while got.len() < large.len() {
        let next = a.read(1);
        got.extend(next);
        b.stack.settle(b.now);
        // What its socket did not take goes when there is room.
        while b.stack.link.0.len() > 100 {
            b.stack.link.0.remove(0);
        }
        if a.stack.link.0.is_empty() && got.len() < large.len() {
            b.turn();
        }
    }
    assert_eq!(got, large);
    a.send(ACK | FIN, &[]);
    assert_eq!(b.until(FIN).flags & FIN, FIN);

    // Nobody listens.
    let mut a = Guest::shared("10.7.0.2:4000", "10.7.0.3:81", folders(&["10.7.0.3"]));
    let mut b = Guest::shared("10.7.0.3:81", "10.7.0.2:4000", Vec::new());
    a.send(SYN, &[]);
    introduce(&mut b, rustix::net::accept(&hears).unwrap(), Kind::Stream);
    b.expected = b.heard().sequence.wrapping_add(1);
    b.send_at(0, RST | ACK, &[]);
    assert!(b.stack.is_empty());
    assert_eq!(a.heard().flags, RST | ACK);

    // Datagrams, and the answers to them.
    let hears = neighbour::hear(dir.path(), Kind::Datagrams).unwrap();
    for round in [&b"first"[..], b"second"] {
        a.datagram(round);
        if round == b"first" {
            introduce(&mut b, rustix::net::accept(&hears).unwrap(), Kind::Datagrams);
        }
        let bytes = b.packet();
        let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
        assert_eq!((ip.source, packet::datagram(ip.payload)), (a.own.ip(), Some((4000, 81, round))));
        b.datagram(b"answer");
        let bytes = a.packet();
        let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
        assert_eq!((ip.source, packet::datagram(ip.payload)), (b.own.ip(), Some((81, 4000, &b"answer"[..]))));
    }

    // When the one is gone, the other forgets, and hears nothing that was not said.
    drop(a);
    while !b.stack.is_empty() {
        b.turn();
    }
    assert!(b.stack.link.0.is_empty());

    // Who is not in the network is not believed, and nobody speaks for another.
    for (from, to) in
        [("10.8.0.2:1", "10.7.0.3:81"), ("10.7.0.2:1", "10.7.0.9:81"), ("10.7.0.3:1", "10.7.0.3:81")]
    {
        let said = neighbour::Introduction { from: from.parse().unwrap(), to: to.parse().unwrap() };
        let hears = neighbour::hear(dir.path(), Kind::Stream).unwrap();
        let other = neighbour::ask(dir.path(), Kind::Stream, &said).unwrap();
        let before = b.stack.len();
        introduce(&mut b, rustix::net::accept(&hears).unwrap(), Kind::Stream);
        b.turn();
        assert!(b.stack.len() == before && b.stack.link.0.is_empty(), "{from} {to}");
        drop(other);
    }
    let mut spoofed = Guest::shared("10.7.0.2:4000", "10.7.0.3:81", folders(&["10.7.0.3"]));
    spoofed.own = "10.7.0.5:4000".parse().unwrap();
    spoofed.send(SYN, &[]);
    assert!(spoofed.stack.is_empty() && spoofed.stack.link.0.is_empty());
    // One that is not there, and the world, which is not to be reached from this network.
    for remote in ["10.7.0.4:80", "192.0.2.1:80"] {
        let mut guest = Guest::shared("10.7.0.2:4000", remote, folders(&["10.7.0.3"]));
        guest.send(SYN, &[]);
        let bytes = guest.packet();
        let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
        assert_eq!((ip.protocol, ip.payload[0]), (packet::ICMP, 3), "{remote}");
    }
}

#[test]
fn neighbours_and_pings_of_the_router() {
    let mut guest = Guest::new(router(1));
    let headers = packet::icmp(&guest.way(), 8, 0, [0, 1, 0, 2], b"data");
    guest.stack.frame(&[&headers[..], b"data"].concat(), guest.now);
    let bytes = guest.packet();
    let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { panic!() };
    assert_eq!((ip.payload[0], &ip.payload[4..]), (0, &b"\0\x01\0\x02data"[..]));
    // Where the router is, by IPv6; nothing is said of the container's own address.
    for (asked, answered) in [("fd69::2", true), ("fd69::77", true), ("fd69::64", false)] {
        let asked: std::net::Ipv6Addr = asked.parse().unwrap();
        let way =
            Way { from: "fd69::64".parse().unwrap(), to: "ff02::1:ff00:2".parse().unwrap(), ..guest.way() };
        let headers = packet::icmp(&way, 135, 0, [0; 4], &asked.octets());
        guest.stack.frame(&[&headers[..], &asked.octets()].concat(), guest.now);
        assert_eq!(guest.stack.link.0.pop().is_some(), answered, "{asked}");
    }
}

#[test]
fn no_packet_makes_the_stack_panic_or_grow_without_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ports = [listener.local_addr().unwrap().port(), echo.local_addr().unwrap().port(), 9];
    let rounds: u64 = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let mut guest = Guest::new(router(ports[0]));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    guest.connect();
    for _ in 0..rounds {
        guest.own.set_port(4000 + random(3) as u16);
        guest.remote = router(ports[random(3) as usize]);
        let data = vec![random(256) as u8; random(100) as usize];
        let said = Said {
            from: guest.own.port(),
            to: guest.remote.port(),
            // Mostly near to what is expected.
            sequence: guest.next.wrapping_add(random(40) as u32).wrapping_sub(20),
            acknowledged: guest.expected.wrapping_add(random(40) as u32).wrapping_sub(20),
            flags: [SYN, ACK, ACK | FIN, SYN | ACK, ACK, ACK, RST, random(256) as u8][random(8) as usize],
            window: random(65_536) as u16,
            largest: (random(2) == 0).then_some(random(65_536) as u16),
            scale: (random(2) == 0).then_some(random(256) as u8),
        };
        let mut bytes = match random(4) {
            0 => packet::udp(&guest.way(), said.from, said.to, data.len(), MTU as usize, 0).to_vec(),
            1 => packet::icmp(&guest.way(), random(140) as u8, 0, [1; 4], &data).to_vec(),
            _ => packet::tcp(&guest.way(), &said, data.len(), 1460).to_vec(),
        };
        bytes.extend_from_slice(&data);
        for _ in 0..random(4) {
            let at = random(bytes.len() as u64) as usize;
            bytes[at] = random(256) as u8;
        }
        bytes.truncate(random(2 * bytes.len() as u64) as usize);
        guest.stack.frame(&bytes, guest.now);
        if random(16) == 0 {
            guest.now += Duration::from_millis(random(2000));
            guest.stack.tick(guest.now);
        }
        guest.stack.settle(guest.now);
        guest.stack.link.0.clear();
        assert!(guest.stack.len() <= 8192);
    }
    // It works as before.
    guest.remote = router(ports[0]);
    guest.own.set_port(5000);
    guest.send(SYN, &[]);
    loop {
        let bytes = guest.packet();
        let Some(Frame::Ip(ip)) = packet::frame(&bytes) else { continue };
        if let Some(said) = packet::segment(ip.payload)
            && (ip.protocol, said.destination) == (packet::TCP, 5000)
        {
            assert_eq!((said.flags, said.acknowledged), (SYN | ACK, guest.next));
            break;
        }
    }
}
