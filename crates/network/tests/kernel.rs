//! What the kernel makes of our messages, in network namespaces of the test's own.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use isles_network::firewall::{self, Published, Share, Zone};
use isles_network::netlink::message::{self, Batch};
use isles_network::netlink::nft::Transaction;
use isles_network::netlink::{Socket, route};
use isles_network::{Port, Subnet};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Does something in a network namespace of a thread's own, which plays the host. Skips where that takes rights.
fn as_host(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a network namespace without a user namespace");
        return;
    }
    thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes, and nothing relies on it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        loopback();
        test();
    })
    .join()
    .unwrap();
}

fn loopback() {
    let mut batch = Batch::new();
    route::up(&mut batch, 1);
    Socket::route().unwrap().apply(&batch).unwrap();
}

fn say(socket: &mut Socket, root: &str, zones: &[Zone], ports: &[Published], closed: bool) {
    firewall::say(socket, &Share { root, zones, ports, closed: [closed; 2] }).unwrap();
}

/// A thread in a network namespace of its own: a container that does what it is told.
struct Container {
    namespace: File,
    tasks: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Container {
    fn new() -> Container {
        let (tasks, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (out, namespace) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: as above.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            loopback();
            out.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            inbox.iter().for_each(|task| task());
        });
        Container { namespace: namespace.recv().unwrap(), tasks }
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (out, result) = mpsc::channel();
        self.tasks.send(Box::new(move || drop(out.send(task())))).unwrap();
        result.recv().expect("the task panicked")
    }

    /// Puts it on a bridge.
    fn connect(&self, device: &str, bridge: u32, addresses: &[(&str, u8)], gateways: &[&str]) {
        let inside =
            route::Inside { name: "eth0", mac: mac(addresses[0].0), namespace: self.namespace.as_fd() };
        route::add_pair(&mut Socket::route().unwrap(), device, bridge, None, true, &inside).unwrap();
        let addresses: Vec<(IpAddr, u8)> = addresses.iter().map(|(a, p)| (a.parse().unwrap(), *p)).collect();
        let gateways: Vec<IpAddr> = gateways.iter().map(|g| g.parse().unwrap()).collect();
        self.run(move || {
            let mut socket = Socket::route().unwrap();
            let index = route::index(&mut socket, "eth0").unwrap().unwrap();
            let mut batch = Batch::new();
            for (address, prefix) in addresses {
                route::address(&mut batch, index, address, prefix);
            }
            route::up(&mut batch, index);
            for gateway in gateways {
                route::default_route(&mut batch, index, gateway, None);
            }
            socket.apply(&batch).unwrap();
        });
    }

    /// A server that says who asks, until the listener is dropped with the namespace.
    fn serve(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("::", port)).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let peer = stream.peer_addr().unwrap().ip().to_canonical();
                    drop(stream.write_all(peer.to_string().as_bytes()));
                }
            });
            let socket = UdpSocket::bind(("::", port)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer));
                }
            });
        });
    }
}

fn mac(address: &str) -> [u8; 6] {
    let last = address.parse::<std::net::Ipv4Addr>().unwrap().octets();
    [2, 0x49, last[0], last[1], last[2], last[3]]
}

fn bridge(name: &str, addresses: &[(&str, u8)]) -> u32 {
    let mut socket = Socket::route().unwrap();
    let index = route::add_bridge(&mut socket, name, None, "").unwrap();
    let mut batch = Batch::new();
    for (address, prefix) in addresses {
        route::address(&mut batch, index, address.parse().unwrap(), *prefix);
    }
    route::up(&mut batch, index);
    socket.apply(&batch).unwrap();
    let set =
        |file: String, value: &str| std::fs::write(&file, value).unwrap_or_else(|e| panic!("{file}: {e}"));
    set("/proc/sys/net/ipv4/ip_forward".into(), "1");
    set("/proc/sys/net/ipv6/conf/all/forwarding".into(), "1");
    set(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1");
    index
}

/// How many queues a device was made with, to send and to receive (IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES).
fn queues(name: &str) -> (u32, u32) {
    let mut batch = Batch::new();
    batch.command(18, 0, |body| {
        body.fixed(&[0; 16]).text(3, name);
    });
    let answers = Socket::route().unwrap().ask(&batch).unwrap();
    let number = |kind: u16| {
        let found = message::attribute(&answers[0].body[16..], kind).unwrap();
        u32::from_ne_bytes(found.try_into().unwrap())
    };
    (number(31), number(32))
}

/// What the server at an address says; `None` where nothing comes through.
fn ask(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address.parse::<SocketAddr>().unwrap()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// As [`ask`], for what the firewall drops: that is not to be waited for.
fn is_dropped(address: &str) -> bool {
    let wait = std::time::Duration::from_millis(300);
    matches!(TcpStream::connect_timeout(&address.parse().unwrap(), wait), Err(e) if e.kind() == std::io::ErrorKind::TimedOut)
}

fn published(words: &str, targets: &[&str]) -> Vec<Published> {
    let ports = Port::parse(words).unwrap();
    let all = targets
        .iter()
        .flat_map(|target| ports.iter().map(|&port| Published { port, target: target.parse().unwrap() }));
    all.collect()
}

fn zone(bridge: &str, subnets: &[&str], internal: bool) -> Zone {
    let subnets = subnets.iter().map(|s| s.parse::<Subnet>().unwrap()).collect();
    Zone { bridge: bridge.into(), subnets, internal }
}

#[test]
fn devices_and_routes() {
    as_host(|| {
        let mut socket = Socket::route().unwrap();
        assert_eq!(route::index(&mut socket, "isles9").unwrap(), None);
        let made = bridge("isles9", &[("10.99.0.1", 24), ("fd00:99::1", 64)]);
        assert_eq!(route::index(&mut socket, "isles9").unwrap(), Some(made));
        assert_eq!(route::add_bridge(&mut socket, "isles9", None, "").unwrap(), made);
        let known = route::known(&mut socket).unwrap();
        for subnet in ["10.99.0.0/24", "fd00:99::/64"] {
            assert!(known.contains(&subnet.parse().unwrap()), "{subnet} in {known:?}");
        }
        let container = Container::new();
        container.connect(
            "veth-a",
            made,
            &[("10.99.0.2", 24), ("fd00:99::2", 64)],
            &["10.99.0.1", "fd00:99::1"],
        );
        // With one queue of each kind there are none that the kernel takes away again, for which it would wait.
        assert_eq!(queues("veth-a"), (1, 1));
        assert_eq!(container.run(|| queues("eth0")), (1, 1));
        let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(!addresses.contains("veth-a"), "the host's end speaks IPv6: {addresses}");
        container.serve(80);
        assert_eq!(ask("10.99.0.2:80").unwrap(), "10.99.0.1");
        assert_eq!(ask("[fd00:99::2]:80").unwrap(), "fd00:99::1");
        route::remove(&mut socket, "veth-a").unwrap();
        route::remove(&mut socket, "veth-a").unwrap();
        assert_eq!(route::index(&mut socket, "veth-a").unwrap(), None);
    });
}

#[test]
fn published_ports() {
    as_host(|| {
        let made = bridge("isles9", &[("10.99.0.1", 24), ("fd00:99::1", 64)]);
        let mut socket = Socket::netfilter().unwrap();
        assert!(!firewall::knows(&mut socket, "one").unwrap());
        let zones = [zone("isles9", &["10.99.0.0/24", "fd00:99::/64"], false)];
        say(&mut socket, "one", &zones, &[], false);
        // Another state directory has its own to say.
        assert!(
            firewall::knows(&mut socket, "one").unwrap() && !firewall::knows(&mut socket, "two").unwrap()
        );
        say(&mut socket, "two", &[zone("isles8", &["10.98.0.0/24"], false)], &[], false);
        assert!(firewall::knows(&mut socket, "two").unwrap());
        let server = Container::new();
        server.connect(
            "veth-a",
            made,
            &[("10.99.0.2", 24), ("fd00:99::2", 64)],
            &["10.99.0.1", "fd00:99::1"],
        );
        server.serve(80);
        let ports = published("8080:80", &["10.99.0.2", "fd00:99::2"]);
        firewall::publish(&mut socket, &ports).unwrap();
        let again = firewall::publish(&mut socket, &ports).unwrap_err();
        assert_eq!(again.errno(), Some(rustix::io::Errno::EXIST.raw_os_error()));
        firewall::publish(&mut socket, &published("8080:80/udp", &["10.99.0.2"])).unwrap();
        // From the host: over loopback and by its own addresses.
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "10.99.0.1");
        assert_eq!(ask("10.99.0.1:8080").unwrap(), "10.99.0.1");
        assert_eq!(ask("[fd00:99::1]:8080").unwrap(), "fd00:99::1");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.send_to(b"x", "127.0.0.1:8080").unwrap();
        let mut buffer = [0; 64];
        let (length, from) = udp.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.port()), (&b"10.99.0.1"[..], 8080));
        // From another container of the network, and from the server itself.
        let client = Container::new();
        client.connect("veth-b", made, &[("10.99.0.3", 24)], &["10.99.0.1"]);
        assert_eq!(client.run(|| ask("10.99.0.1:8080")).unwrap(), "10.99.0.1");
        assert_eq!(server.run(|| ask("10.99.0.1:8080")).unwrap(), "10.99.0.1");
        // From a neighbour of the host, whose address the server sees.
        let neighbour = Container::new();
        let wire = bridge("outside", &[("192.0.2.1", 24)]);
        neighbour.connect("veth-c", wire, &[("192.0.2.9", 24)], &["192.0.2.1"]);
        assert_eq!(neighbour.run(|| ask("192.0.2.1:8080")).unwrap(), "192.0.2.9");
        // But not past the published port, although the host forwards.
        assert!(neighbour.run(|| is_dropped("10.99.0.2:80")));
        // And a container's packets go out under the host's address.
        neighbour.serve(99);
        assert_eq!(server.run(|| ask("192.0.2.9:99")).unwrap(), "192.0.2.1");

        firewall::withdraw(&mut socket, &ports).unwrap();
        firewall::withdraw(&mut socket, &ports).unwrap();
        assert_eq!(ask("127.0.0.1:8080"), None);
        // As after somebody's flush; what is there already is no error.
        let mut flush = Transaction::new("isles");
        flush.delete_table();
        socket.apply(&flush.finish()).unwrap();
        assert!(!firewall::knows(&mut socket, "one").unwrap());
        for _ in 0..2 {
            say(&mut socket, "one", &zones, &ports, true);
        }
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "10.99.0.1");
    });
}

#[test]
fn a_table_of_an_earlier_version_is_replaced() {
    as_host(|| {
        let mut socket = Socket::netfilter().unwrap();
        let mut old = Transaction::new("isles");
        old.table();
        socket.apply(&old.finish()).unwrap();
        let zones = [zone("isles9", &["10.99.0.0/24"], false)];
        say(&mut socket, "one", &zones, &published("80:80", &["10.99.0.2"]), false);
        assert!(firewall::knows(&mut socket, "one").unwrap());
        firewall::add(&mut socket, &zones[0]).unwrap();
    });
}

#[test]
fn a_firewall_of_others_that_drops() {
    as_host(|| {
        let drops = || firewall::others_drop(&mut Socket::netfilter().unwrap()).unwrap();
        say(&mut Socket::netfilter().unwrap(), "one", &[], &[], true);
        assert!(!drops(), "what we drop of others is not it");
        let nft = |words: &str| {
            let said = std::process::Command::new("nft").arg(words).output();
            said.is_ok_and(|said| said.status.success())
        };
        if !nft("add table ip filter") {
            eprintln!("skip: there is no nft");
            return;
        }
        assert!(nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }"));
        assert!(!drops());
        assert!(nft("add chain ip filter FORWARD { policy drop; }"));
        assert!(drops());
    });
}

#[test]
fn networks_are_apart() {
    as_host(|| {
        let (a, b) = (bridge("isles1", &[("10.1.0.1", 24)]), bridge("isles2", &[("10.2.0.1", 24)]));
        let c = bridge("isles3", &[("10.3.0.1", 24)]);
        let outside = bridge("outside", &[("192.0.2.1", 24)]);
        let mut socket = Socket::netfilter().unwrap();
        say(&mut socket, "one", &[zone("isles1", &["10.1.0.0/24"], false)], &[], true);
        firewall::add(&mut socket, &zone("isles2", &["10.2.0.0/24"], false)).unwrap();
        firewall::add(&mut socket, &zone("isles3", &["10.3.0.0/24"], true)).unwrap();
        let one = |device: &str, bridge: u32, address: &str, gateway: &str| {
            let container = Container::new();
            container.connect(device, bridge, &[(address, 24)], &[gateway]);
            container.serve(80);
            container
        };
        let (in_a, in_b) = (one("va", a, "10.1.0.2", "10.1.0.1"), one("vb", b, "10.2.0.2", "10.2.0.1"));
        let (in_c, also_c) = (one("vc", c, "10.3.0.2", "10.3.0.1"), one("vd", c, "10.3.0.3", "10.3.0.1"));
        let _neighbour = one("ve", outside, "192.0.2.9", "192.0.2.1");
        assert!(in_a.run(|| is_dropped("10.2.0.2:80")) && in_b.run(|| is_dropped("10.1.0.2:80")));
        assert!(in_c.run(|| is_dropped("192.0.2.9:80")) && in_a.run(|| is_dropped("10.3.0.2:80")));
        assert_eq!(in_c.run(|| ask("10.3.0.3:80")).unwrap(), "10.3.0.2");
        assert_eq!(also_c.run(|| ask("10.3.0.2:80")).unwrap(), "10.3.0.3");
        // What another network's container publishes is for everybody who reaches the host.
        firewall::publish(&mut socket, &published("8080:80", &["10.2.0.2"])).unwrap();
        assert_eq!(in_a.run(|| ask("10.1.0.1:8080")).unwrap(), "10.2.0.1");
        firewall::remove(&mut socket, &zone("isles2", &["10.2.0.0/24"], false)).unwrap();
        firewall::remove(&mut socket, &zone("isles2", &["10.2.0.0/24"], false)).unwrap();
        firewall::add(&mut socket, &zone("isles2", &["10.2.0.0/24"], false)).unwrap();
    });
}
