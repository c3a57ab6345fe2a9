//! Networks that need no rights on the host's: out of a container through the process that stays with it, and in by
//! published ports.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use world::{Who, World, everyone};

/// Where this program is in a container, and the word that makes it play a part there.
const INSIDE: &str = "/part";
const PART: &str = "ISLES_TEST_PART";

/// What programs in a container do: this test runs itself there, because no other program is known to be there.
#[test]
fn part() {
    let Ok(words) = std::env::var(PART) else { return };
    let words: Vec<&str> = words.split(' ').collect();
    match words[..] {
        // Answers one datagram after the other with where it came from.
        ["echo", address] => {
            let socket = UdpSocket::bind(address).unwrap();
            println!("ready");
            let mut buffer = [0; 65_536];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                let answer = [&buffer[..length], format!(" from {from}").as_bytes()].concat();
                socket.send_to(&answer, from).unwrap();
            }
        }
        // Tells everybody who connects what it has heard until then, and from where.
        ["serve", address] => {
            let listener = TcpListener::bind(address).unwrap();
            println!("ready");
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut said = Vec::new();
                connection.read_to_end(&mut said).unwrap();
                let peer = connection.peer_addr().unwrap().ip();
                connection.write_all(format!("{} from {peer}", said.len()).as_bytes()).unwrap();
            }
        }
        // Sends so many bytes and says what comes back.
        ["send", address, length] => {
            let mut connection = TcpStream::connect(address).unwrap();
            let data = vec![7u8; length.parse().unwrap()];
            connection.write_all(&data).unwrap();
            connection.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            println!("answer: {answer}");
        }
        ["ask", address] => {
            let local = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(local).unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.send(b"question").unwrap();
            let mut buffer = [0; 100];
            match socket.recv(&mut buffer) {
                Ok(length) => println!("answer: {}", String::from_utf8_lossy(&buffer[..length])),
                Err(e) => println!("answer: {}", e.kind()),
            }
        }
        // The same with so many bytes, and says how many came back before the words.
        ["ask", address, length] => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let data: Vec<u8> = (0..length.parse().unwrap()).map(|n: usize| b'a' + (n % 26) as u8).collect();
            socket.send(&data).unwrap();
            let mut buffer = [0; 65_536];
            match socket.recv(&mut buffer) {
                Ok(got) if buffer[..got].starts_with(&data) => println!("answer: {} bytes", data.len()),
                Ok(got) => println!("answer: {got} other bytes"),
                Err(e) => println!("answer: {}", e.kind()),
            }
        }
        ["mtu", address] => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(address).unwrap();
            println!("answer: {}", rustix::net::sockopt::ip_mtu(&socket).unwrap());
        }
        ["connect", address] => match TcpStream::connect(address) {
            Ok(_) => println!("answer: connected"),
            Err(e) => println!("answer: {:?}", e.kind()),
        },
        _ => panic!("{words:?}"),
    }
}

/// The words by which a container plays a part.
fn playing(world: &World, options: &[&str], part: &str) -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let copy = world.path("home/part");
    if !copy.exists() {
        std::fs::copy(program, &copy).unwrap();
    }
    let volume = format!("{}:{INSIDE}:ro", copy.display());
    let variable = format!("{PART}={part}");
    let words = ["-v", &volume, "-e", &variable];
    let program = ["--", INSIDE, "--exact", "part", "--nocapture"];
    options.iter().chain(&words).chain(&program).map(|word| (*word).to_owned()).collect()
}

fn plays(world: &World, options: &[&str], part: &str) -> String {
    let words = playing(world, options, part);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    answer(&world.run(&words).fine())
}

/// The same in a container that runs.
fn within(world: &World, name: &str, part: &str) -> String {
    let variable = format!("{PART}={part}");
    let words = ["exec", "-e", &variable, name, INSIDE, "--exact", "part", "--nocapture"];
    answer(&world.isles(&words).fine())
}

fn answer(out: &str) -> String {
    let answer = out.lines().find_map(|line| line.strip_prefix("answer: "));
    answer.unwrap_or_else(|| panic!("{out}")).to_owned()
}

/// A container in the background that plays a part, when it is ready.
fn stays(world: &World, name: &str, options: &[&str], part: &str) {
    let words = playing(world, options, part);
    let at = words.iter().position(|word| word == "--").unwrap();
    let source = world.source();
    let mut line = vec!["run", "-d", "--name", name];
    line.extend(words[..at].iter().map(String::as_str));
    line.push(&source);
    line.extend(words[at + 1..].iter().map(String::as_str));
    world.isles(&line).fine();
    ready(world, name, 1);
}

/// Waits until the program says so, in its run of that number.
fn ready(world: &World, name: &str, run: usize) {
    let mut follower =
        world.command(["logs", "-f", name]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let said = BufReader::new(follower.stdout.take().unwrap());
    let found = said.lines().map_while(Result::ok).filter(|line| line.contains("ready")).nth(run - 1);
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(found.is_some(), "{}", world.isles(&["logs", name]).err);
}

/// Where a port of a container is on the host.
fn place(world: &World, name: &str, port: &str) -> SocketAddr {
    world.isles(&["port", name, port]).fine().lines().next().unwrap().parse().unwrap()
}

fn heard(address: SocketAddr, said: &[u8]) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(said).unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

/// The options of a network of this kind, and the router's address in it.
const LOOPBACK: [&str; 2] = ["--network", "slirp4netns:allow_host_loopback=true"];

fn router(world: &World) -> IpAddr {
    let words = ["--network", "slirp4netns", "--", "sh", "-c", "grep host.containers.internal /etc/hosts"];
    world.run(&words).fine().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn what_an_ordinary_user_gets() {
    everyone(|world| {
        let words = ["-h", "isle", "--", "sh", "-c", "ls /sys/class/net; cat /etc/hosts /etc/resolv.conf"];
        let own = world.run(&[&["--network", "slirp4netns"], &words[..]].concat()).fine();
        for expected in ["eth0\n", "lo\n", "\tisle\n", "host.docker.internal host.containers.internal\n"] {
            assert!(own.contains(expected), "{own}");
        }
        assert!(own.lines().any(|line| line.starts_with("nameserver 10.0.")), "{own}");
        // Nobody had to ask for it; root's is the host's as before.
        let usual = world.run(&words).fine();
        assert_eq!(usual == own, world.who != Who::Root, "{usual}");
        let gateway =
            ["--add-host", "me:host-gateway", "--network", "slirp4netns", "--", "grep", "me$", "/etc/hosts"];
        assert_eq!(world.run(&gateway).fine(), format!("{}\tme\n", router(world)));
        let none = world.run(&["--network", "none", "--", "ls", "/sys/class/net"]).fine();
        assert_eq!(none, "lo\n");
    });
}

#[test]
fn a_container_reaches_what_it_may() {
    everyone(|world| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = router(world);
        // A download, and the other way round, at once.
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut writer = connection.try_clone().unwrap();
            let sender = std::thread::spawn(move || {
                writer.write_all(&vec![1; 20 << 20]).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut data = Vec::new();
            connection.read_to_end(&mut data).unwrap();
            sender.join().unwrap();
            data.len()
        });
        let answer = plays(world, &LOOPBACK, &format!("send {router}:{port} {}", 20 << 20));
        assert_eq!((answer.len(), server.join().unwrap()), (20 << 20, 20 << 20));

        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        echo.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let port = echo.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let (length, from) = echo.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"question");
            echo.send_to(b"42", from).unwrap();
        });
        assert_eq!(plays(world, &LOOPBACK, &format!("ask {router}:{port}")), "42");
        server.join().unwrap();

        // IPv6, to the router that stands for ::1.
        if let Ok(listener) = TcpListener::bind("[::1]:0") {
            let port = listener.local_addr().unwrap().port();
            let part = format!("connect [fd69:736c:6573::2]:{port}");
            assert_eq!(plays(world, &LOOPBACK, &part), "connected");
            // Not without being asked for, by no name.
            let closed = ["--network", "slirp4netns"];
            for address in [format!("[fd69:736c:6573::2]:{port}"), format!("[::1]:{port}")] {
                let answer = plays(world, &closed, &format!("connect {address}"));
                assert_ne!(answer, "connected", "{address}");
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in [format!("{router}:{port}"), format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")] {
            let answer = plays(world, &["--network", "slirp4netns"], &format!("connect {address}"));
            assert_eq!(answer, "ConnectionRefused", "{address}");
        }
    });
}

#[test]
fn ports_lead_into_a_container() {
    everyone(|world| {
        let options = ["--network", "slirp4netns", "-p", "127.0.0.1:0:80", "-p", "[::1]:0:80"];
        stays(world, "web", &options, "serve 0.0.0.0:80");
        let IpAddr::V4(router) = router(world) else { panic!() };
        let [a, b, c, _] = router.octets();
        let own = Ipv4Addr::new(a, b, c, 100);
        let shown = world.isles(&["port", "web"]).fine();
        let places: Vec<SocketAddr> =
            shown.lines().map(|line| line.strip_prefix("80/tcp -> ").unwrap().parse().unwrap()).collect();
        assert!(places.len() == 2 && places[0].is_ipv4() && places[1].is_ipv6(), "{shown}");
        // Who comes from the host's loopback looks like the container itself; one who comes by IPv6 gets to it, too.
        for place in &places {
            for length in [0, 100_000, 20_000_000] {
                assert_eq!(heard(*place, &vec![0; length]), format!("{length} from {own}"), "{place}");
            }
        }
        let shown = world.isles(&["ps", "--format", "{{.Ports}}"]).fine();
        assert_eq!(shown, format!("{}->80/tcp, {}->80/tcp\n", places[0], places[1]));
        // Taken is taken.
        let again = format!("{}:80", places[0]);
        world
            .run(&["--network", "slirp4netns", "-p", &again, "--", "true"])
            .fails(125, &[&format!("cannot publish port {}/tcp", places[0]), "hint: another program has it"]);
        world.isles(&["port", "web", "81"]).fails(1, &["no public port '81'"]);
        // It is there again after a restart, and gone with the container.
        world.isles(&["restart", "-t", "0", "web"]).fine();
        ready(world, "web", 2);
        let place = place(world, "web", "80/tcp");
        assert_eq!(heard(place, b"x"), format!("1 from {own}"));
        // Nobody listens any more, in a container that goes on.
        let options = ["--network", "slirp4netns", "-p", "127.0.0.1:0:81", "-p", "[::1]:0:81"];
        stays(world, "deaf", &options, "serve 0.0.0.0:80");
        for place in world.isles(&["port", "deaf"]).fine().lines() {
            let place: SocketAddr = place.strip_prefix("81/tcp -> ").unwrap().parse().unwrap();
            let mut connection = TcpStream::connect(place).unwrap();
            assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{place}");
        }
        world.isles(&["rm", "-f", "web", "deaf"]).fine();
        assert!(TcpStream::connect(place).is_err());
    });
}

#[test]
fn datagrams_come_in_and_go_back() {
    everyone(|world| {
        let options = ["--network", "slirp4netns", "-p", "127.0.0.1:0:53/udp"];
        stays(world, "names", &options, "echo 0.0.0.0:53");
        let place = place(world, "names", "53/udp");
        for said in ["one", "two"] {
            // Each from another port, and each gets its own answers.
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.connect(place).unwrap();
            socket.send(said.as_bytes()).unwrap();
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            let port = socket.local_addr().unwrap().port();
            let expected = format!("{said} from {}:{port}", router(world));
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), expected);
        }
    });
}

#[test]
fn what_cannot_be_published() {
    everyone(|world| {
        for (words, said) in [
            (&["-p", "x", "--", "true"][..], "invalid port 'x'"),
            (&["-p", "80/sctp", "--", "true"], "sctp"),
            (&["--network", "none", "-p", "8000:80", "--", "true"], "need a network of the container's own"),
            (&["--network", "host", "-p", "8000:80", "--", "true"], "need a network of the container's own"),
            (&["--network", "slirp4netns", "--ip", "10.0.2.7", "--", "true"], "addresses need a network"),
            (&["--network", "slirp4netns", "-p", "192.0.2.1:0:80", "--", "true"], "192.0.2.1"),
        ] {
            world.run(words).fails(125, &[said]);
        }
        if world.who != Who::Root {
            let words = ["--network", "slirp4netns", "-p", "127.0.0.1:1:80", "--", "true"];
            world.run(&words).fails(125, &["127.0.0.1:1/tcp", "ip_unprivileged_port_start"]);
        }
    });
}

/// One that was started without any network that it shares is asked for, and asks, as others are when it has joined one.
fn joins_late(world: &World) {
    let hosts = |name: &str| world.isles(&["exec", name, "cat", "/etc/hosts"]).fine();
    stays(world, "alone", &["-h", "lone"], "serve 0.0.0.0:80");
    let before = hosts("alone");
    world.isles(&["network", "connect", "bridge", "alone"]).fails(1, &["in it already"]);
    world.isles(&["network", "disconnect", "bridge", "alone"]).fails(1, &["of its own stands for it"]);
    world.isles(&["network", "create", "--subnet", "10.0.77.0/24", "near"]).fine();
    let second = ["network", "connect", "--ip", "10.0.77.9", "--alias", "late", "near", "alone"];
    world.isles(&second).fine();
    world.isles(&["network", "connect", "one", "alone"]).fine();
    for (network, name) in [("one", "alone"), ("near", "late"), ("near", "10.0.77.9"), ("bridge", "alone")] {
        let others = ["--network", network, "--network", "two"];
        assert!(plays(world, &others, &format!("send {name}:80 7")).starts_with("7 from "), "{network}");
    }
    assert!(within(world, "alone", "send web:80 7").starts_with("7 from "));
    assert!(world.isles(&["exec", "alone", "busybox", "nslookup", "web"]).fine().contains("web"));
    assert!(hosts("alone").contains("10.0.77.9\tlone\n"));
    // The host is reached by its own network as before.
    let host = world.isles(&["exec", "alone", "busybox", "nslookup", "host.docker.internal"]).fine();
    assert!(host.contains("host.docker.internal"), "{host}");
    for network in ["near", "one", "bridge"] {
        world.isles(&["network", "disconnect", network, "alone"]).fine();
    }
    assert_eq!(hosts("alone"), before);
    assert_ne!(plays(world, &["--network", "near"], "connect 10.0.77.9:80"), "connected");
    world.isles(&["rm", "-f", "alone"]).fine();

    // What it has for itself it cannot share while it runs; and nobody shares what is not its own.
    world.isles(&["network", "rm", "near"]).fine();
    stays(world, "alone", &[], "serve 0.0.0.0:80");
    let own = world.isles(&["exec", "alone", "busybox", "ip", "-4", "route"]).fine();
    let own = own.lines().find_map(|line| line.split(' ').next().filter(|word| word.contains('/'))).unwrap();
    world.isles(&["network", "create", "--subnet", own, "near"]).fine();
    world.isles(&["network", "connect", "near", "alone"]).fails(1, &["for itself", "stop it"]);
    assert_ne!(plays(world, &["--network", "one"], "connect alone:80"), "connected");
    world.isles(&["stop", "-t", "0", "alone"]).fine();
    world.isles(&["network", "connect", "near", "alone"]).fine();
    world.isles(&["start", "alone"]).fine();
    assert!(plays(world, &["--network", "near"], "send alone:80 7").starts_with("7 from "));
    world.isles(&["rm", "-f", "alone"]).fine();
    world.isles(&["network", "rm", "near"]).fine();
    for (network, why) in [("none", "--network none"), ("host", "of the host")] {
        world.isles(&["create", "--name", "other", "--network", network, &world.source(), "true"]).fine();
        world.isles(&["network", "connect", "one", "other"]).fails(1, &[why]);
        world.isles(&["rm", "other"]).fine();
    }
}

#[test]
fn containers_of_one_network_know_each_other() {
    everyone(|world| {
        if world.who == Who::Root {
            // Root's networks are bridges: tests of `networks`.
            return;
        }
        world.run(&["--network", "one", "--", "true"]).fails(125, &["network one not found"]);
        world.isles(&["network", "create", "one"]).fine();
        // There is one device for all networks.
        let of_one = "name=one,mac-address=02:42:00:00:00:01";
        let words = ["--network", of_one, "--network", "name=x,mac-address=02:42:00:00:00:02", "--", "true"];
        world.run(&words).fails(125, &["several MAC addresses"]);
        world.isles(&["network", "create", "--internal", "two"]).fine();
        let options = ["--network", "one", "--network-alias", "front", "-p", "127.0.0.1:0:80"];
        stays(world, "web", &options, "serve 0.0.0.0:80");
        stays(world, "echo", &["--network", "one"], "echo 0.0.0.0:53");
        let address = |name: &str, network: &str| {
            let template = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
            world.isles(&["inspect", "-f", &template, name]).fine().trim().to_owned()
        };
        let web = address("web", "one");
        for name in ["web", "front", &web] {
            let answer = plays(world, &["--network", "one"], &format!("send {name}:80 3000000"));
            let from: IpAddr = answer.strip_prefix("3000000 from ").unwrap().parse().unwrap();
            let same: Vec<&str> = web.rsplitn(3, '.').collect();
            assert!(from.to_string().starts_with(same[2]) && from.to_string() != web, "{answer}");
        }
        let answer = plays(world, &["--network", "one"], "ask echo:53");
        assert!(answer.starts_with("question from "), "{answer}");
        assert_eq!(plays(world, &["--network", "one"], "connect web:81"), "ConnectionRefused");
        // Frames find a device with another address.
        assert!(plays(world, &["--network", of_one], "send web:80 100000").starts_with("100000 from "));
        let words = ["--network", of_one, "--", "cat", "/sys/class/net/eth0/address"];
        assert_eq!(world.run(&words).fine(), "02:42:00:00:00:01\n");
        // A network with a smaller MTU: what is too long goes in parts, both ways.
        world.isles(&["network", "create", "--opt", "mtu=1400", "narrow"]).fine();
        let words = ["--network", "narrow", "--", "cat", "/sys/class/net/eth0/mtu"];
        assert_eq!(world.run(&words).fine(), "1400\n");
        stays(world, "near", &["--network", "narrow"], "serve 0.0.0.0:80");
        stays(world, "mirror", &["--network", "narrow"], "echo 0.0.0.0:53");
        assert!(plays(world, &["--network", "narrow"], "send near:80 3000000").starts_with("3000000 from "));
        for length in ["5", "1372", "1373", "30000"] {
            let answer = plays(world, &["--network", "narrow"], &format!("ask mirror:53 {length}"));
            assert_eq!(answer.split(' ').next(), Some(length), "{answer}");
        }
        // One that joins it while it runs cuts what goes there, and nothing else.
        world.isles(&["network", "connect", "narrow", "web"]).fine();
        assert_eq!(world.isles(&["exec", "web", "cat", "/sys/class/net/eth0/mtu"]).fine(), "65200\n");
        assert_eq!(
            [within(world, "web", "mtu near:80"), within(world, "web", "mtu echo:53")],
            ["1400", "65200"]
        );
        assert!(within(world, "web", "send near:80 3000000").starts_with("3000000 from "));
        assert_eq!(within(world, "web", "ask mirror:53 30000").split(' ').next(), Some("30000"));
        world.isles(&["rm", "-f", "near", "mirror"]).fine();
        world.isles(&["network", "disconnect", "narrow", "web"]).fine();
        world.isles(&["network", "rm", "narrow"]).fine();
        // What is published leads into it as before, and the host is known by its names.
        assert!(heard(place(world, "web", "80/tcp"), b"xy").starts_with("2 from "));
        let words = ["--network", "one", "--", "busybox", "nslookup", "host.docker.internal"];
        assert!(world.run(&words).fine().contains("host.docker.internal"));
        world.run(&["--network", "one", "--", "busybox", "ping", "-c", "1", "-W", "9", "web"]).fine();
        // A program may have the port of the resolver for itself.
        let script = "busybox nc -l -p 53 & busybox nslookup web";
        assert!(world.run(&["--network", "one", "--", "sh", "-c", script]).fine().contains(&web));

        world.isles(&["network", "create", "--ipv6", "six"]).fine();
        stays(world, "six", &["--network", "six"], "serve [::]:80");
        stays(world, "mirror", &["--network", "six"], "echo [::]:53");
        let template = "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}";
        let six = |name: &str| world.isles(&["inspect", "-f", template, name]).fine().trim().to_owned();
        let answer = plays(world, &["--network", "six"], &format!("send [{}]:80 100000", six("six")));
        assert!(answer.starts_with("100000 from f"), "{answer}");
        let answer = plays(world, &["--network", "six"], &format!("ask [{}]:53", six("mirror")));
        assert!(answer.starts_with("question from [f"), "{answer}");
        world.isles(&["rm", "-f", "six", "mirror"]).fine();
        world.isles(&["network", "rm", "six"]).fine();

        // Networks are apart, and one that is internal leads nowhere else.
        assert_ne!(world.run(&["--network", "two", "--", "busybox", "nslookup", "web"]).code, 0);
        for place in [format!("{web}:80"), "192.0.2.1:80".to_owned()] {
            let answer = plays(world, &["--network", "two"], &format!("connect {place}"));
            assert_ne!(answer, "connected", "{place}");
        }
        // Who is in both reaches both.
        let both = ["--network", "two", "--network", "one"];
        assert!(plays(world, &both, "send web:80 7").starts_with("7 from "));

        world.isles(&["network", "rm", "one"]).fails(1, &["web"]);
        // One that runs may join and leave: its device has the address, and whoever serves it knows of the others.
        let mac =
            ["network", "connect", "--mac-address", "02:42:00:00:00:07", "--alias", "late", "two", "web"];
        world.isles(&mac).fine();
        assert_eq!(
            world.isles(&["exec", "web", "cat", "/sys/class/net/eth0/address"]).fine(),
            "02:42:00:00:00:07\n"
        );
        let other = ["network", "connect", "--mac-address", "02:42:00:00:00:08", "bridge", "web"];
        world.isles(&other).fails(1, &["another MAC address"]);
        world.isles(&["network", "connect", "two", "web"]).fails(1, &["in it already"]);
        let second = address("web", "two");
        for name in ["web", "late", &second] {
            let answer = plays(world, &["--network", "two"], &format!("send {name}:80 70000"));
            assert!(answer.starts_with("70000 from "), "{name}: {answer}");
        }
        stays(world, "inner", &["--network", "two"], "serve 0.0.0.0:80");
        assert!(within(world, "web", "send inner:80 7").starts_with("7 from "));
        world.isles(&["network", "disconnect", "two", "web"]).fine();
        world.isles(&["network", "disconnect", "two", "web"]).fails(1, &["not in it"]);
        assert_ne!(plays(world, &["--network", "two"], &format!("connect {second}:80")), "connected");
        assert_ne!(world.run(&["--network", "two", "--", "busybox", "nslookup", "web"]).code, 0);
        assert_ne!(world.isles(&["exec", "web", "busybox", "nslookup", "inner"]).code, 0);
        assert!(plays(world, &["--network", "one"], "send web:80 7").starts_with("7 from "));
        world.isles(&["rm", "-f", "inner"]).fine();
        joins_late(world);
        // A container whose monitor was killed has no place any more, and its address is another's.
        let monitor = world.isles(&["inspect", "-f", "{{.State.Pid}}", "web"]).fine();
        let status = std::fs::read_to_string(format!("/proc/{}/status", monitor.trim())).unwrap();
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
        let parent = rustix::process::Pid::from_raw(parent).unwrap();
        rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
        world.isles(&["rm", "-f", "web", "echo"]).fine();
        assert_eq!(world.isles(&["network", "prune", "-f"]).fine(), "one\ntwo\n");
        let left = std::fs::read_dir(world.path("state/networks/endpoints")).unwrap().count();
        assert_eq!(left, 0);
    });
}
