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

    fn resolver(&self, container: &str, upstreams: Vec<SocketAddr>) -> (Resolver, SocketAddr, SocketAddr) {
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
