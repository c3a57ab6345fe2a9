//! Networks of root's, each test on a host of its own: a network namespace.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use world::{Running, Said, Who, World};

/// A world with a host of its own; `None`, with a printed reason, where there can be none.
fn apart() -> Option<World> {
    if !World::is_root() {
        println!("skip: bridges are root's to make");
        return None;
    }
    let world = World::new(Who::Root)?.with_own_network();
    world.isles(&["pull", "-q", &world.source()]);
    Some(world)
}

/// `isles run -d [options] IMAGE sh -c SCRIPT`.
fn detached(world: &World, options: &[&str], script: &str) -> Said {
    let source = world.source();
    world.isles(&[&["run", "-d"], options, &[source.as_str(), "sh", "-c", script]].concat())
}

/// A container that serves its name over HTTP.
fn server(world: &World, name: &str, options: &[&str]) {
    let script =
        format!("mkdir /www; echo i am {name} > /www/index.html; exec busybox httpd -f -p 80 -h /www");
    detached(world, &[&["--name", name], options].concat(), &script).fine();
    await_server(world, name);
}

fn await_server(world: &World, name: &str) {
    // It listens a moment after it has begun.
    while !world
        .isles(&["exec", name, "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1/"])
        .out
        .contains(name)
    {}
}

fn host(world: &World, words: &[&str]) -> Said {
    Said::of(world.host_command(words).output().unwrap())
}

fn fetched_by_host(world: &World, url: &str) -> Said {
    host(world, &["/bin/busybox", "wget", "-q", "-O", "-", url])
}

/// What the largest packet has that a container sends to an address.
fn mtu(world: &World, name: &str, address: &'static str) -> u32 {
    let pid = world.isles(&["inspect", "-f", "{{.State.Pid}}", name]).fine();
    let namespace = fs::File::open(format!("/proc/{}/ns/net", pid.trim())).unwrap();
    let enters = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((address, 9)).unwrap();
        rustix::net::sockopt::ip_mtu(&socket).unwrap()
    };
    std::thread::spawn(enters).join().unwrap()
}

fn run(world: &World, network: &str, words: &[&str]) -> Said {
    let source = world.source();
    world.isles(&[&["run", "--rm", "--network", network, &source], words].concat())
}

fn address(world: &World, name: &str, network: &str) -> String {
    let template = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
    world.isles(&["inspect", "-f", &template, name]).fine().trim().to_owned()
}

/// What the engine and the kernel have of networks and containers, beside the networks themselves.
fn left(world: &World) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(world.path("state/networks/endpoints")).unwrap() {
        all.push(entry.unwrap().file_name().into_string().unwrap());
    }
    for network in fs::read_dir(world.path("state/networks/addresses")).unwrap() {
        for entry in fs::read_dir(network.unwrap().path()).unwrap() {
            all.push(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    // The kernel takes a namespace apart in its own time.
    while host(world, &["/bin/busybox", "ip", "-o", "link"]).fine().contains(": iv") {}
    all
}

#[test]
fn names_lead_to_containers_of_the_same_network() {
    let Some(world) = apart() else { return };
    world.isles(&["network", "create", "one"]).fine();
    world.isles(&["network", "create", "two"]).fine();
    server(&world, "web", &["--network", "one", "--network-alias", "front"]);
    server(&world, "other", &["--network", "two"]);
    for name in ["web", "front", "web.one"] {
        let url = format!("http://{name}/");
        assert_eq!(run(&world, "one", &["busybox", "wget", "-q", "-O", "-", &url]).fine(), "i am web\n");
    }
    let said = run(&world, "one", &["busybox", "nslookup", "other"]);
    assert_ne!(said.code, 0, "{said:?}");
    // Nor by its address: networks are apart.
    let far = address(&world, "other", "two");
    run(&world, "one", &["busybox", "ping", "-c", "1", "-W", "1", &far]).fails(1, &[]);
    run(&world, "two", &["busybox", "ping", "-c", "1", "-W", "9", &far]).fine();
    // A program can have the port of the resolver for itself.
    let script = "busybox nc -l -p 53 & busybox wget -q -O - http://web/";
    assert_eq!(run(&world, "one", &["sh", "-c", script]).fine(), "i am web\n");
    // Who is in both finds both, and who comes later as well.
    world.isles(&["network", "connect", "--alias", "bridgehead", "one", "other"]).fine();
    assert_eq!(
        run(&world, "one", &["busybox", "wget", "-q", "-O", "-", "http://bridgehead/"]).fine(),
        "i am other\n"
    );
    world.isles(&["network", "disconnect", "one", "other"]).fine();
    assert_ne!(run(&world, "one", &["busybox", "nslookup", "other"]).code, 0);
    world.isles(&["network", "disconnect", "one", "other"]).fails(1, &["not in it"]);
    world.isles(&["network", "rm", "one"]).fails(1, &["active endpoints", "web"]);
    world.isles(&["rm", "-f", "web", "other"]).fine();
    assert_eq!(world.isles(&["network", "prune", "-f"]).fine(), "one\ntwo\n");
    assert_eq!(left(&world), [""; 0]);
}

#[test]
fn published_ports_lead_to_the_container() {
    let Some(world) = apart() else { return };
    server(&world, "web", &["-p", "8080:80", "-p", "127.0.0.1:8081:80"]);
    assert_eq!(world.isles(&["port", "web", "80"]).fine(), "0.0.0.0:8080\n127.0.0.1:8081\n");
    for url in ["http://127.0.0.1:8080/", "http://127.0.0.1:8081/"] {
        assert_eq!(fetched_by_host(&world, url).fine(), "i am web\n", "{url}");
    }
    // From another container, by way of the host.
    let gateway = "http://host.docker.internal:8080/";
    assert_eq!(run(&world, "bridge", &["busybox", "wget", "-q", "-O", "-", gateway]).fine(), "i am web\n");
    // And from the container itself.
    let own = world.isles(&["exec", "web", "busybox", "wget", "-q", "-O", "-", gateway]);
    assert_eq!(own.fine(), "i am web\n");
    let said = detached(&world, &["-p", "8080:80"], "true");
    said.fails(125, &["8080", "already allocated", "web"]);
    assert_eq!(world.isles(&["ps", "-aq"]).fine().lines().count(), 1, "nothing of it is left");
    // A program of the host's cannot take it either.
    let bind = "import socket; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('0.0.0.0', 8080))";
    host(&world, &["python3", "-c", bind]).fails(1, &["in use"]);
    // A free one is chosen, and found again.
    server(&world, "any", &["-p", "80"]);
    let line = world.isles(&["port", "any", "80/tcp"]).fine();
    let port = line.lines().next().unwrap().rsplit(':').next().unwrap();
    assert_eq!(fetched_by_host(&world, &format!("http://127.0.0.1:{port}/")).fine(), "i am any\n");
    // After a stop the port is free, and after a start it leads there again.
    world.isles(&["stop", "-t", "0", "web"]).fine();
    assert_ne!(fetched_by_host(&world, "http://127.0.0.1:8080/").code, 0);
    world.isles(&["start", "web"]).fine();
    while fetched_by_host(&world, "http://127.0.0.1:8080/").out != "i am web\n" {}
    world.isles(&["rm", "-f", "web", "any"]).fine();
    assert_eq!(left(&world), [""; 0]);
}

#[test]
fn low_ports_take_no_rights_unless_the_user_says_otherwise() {
    let Some(world) = apart() else { return };
    world.isles(&["network", "create", "one"]).fine();
    let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    for (options, start) in [
        (&["--network", "bridge"][..], "0\n"),
        (&["--network", "one"], "0\n"),
        (&["--network", "bridge", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1000"], "1000\n"),
        (&["--network", "none"], "1024\n"),
    ] {
        let source = world.source();
        let said = world.isles(&[&["run", "--rm"], options, &[source.as_str(), "cat", file]].concat());
        assert_eq!(said.fine(), start, "{options:?}");
    }
}

#[test]
fn udp_and_ipv6() {
    let Some(world) = apart() else { return };
    if !fs::exists("/proc/sys/net/ipv6").unwrap() {
        println!("skip: this kernel has no IPv6");
        return;
    }
    world
        .isles(&["network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "six"])
        .fine();
    let options =
        ["--name", "echo", "--network", "six", "--ip", "10.77.0.9", "--ip6", "fd77::9", "-p", "7007:7/udp"];
    detached(&world, &options, "exec sleep 1000").fine();
    assert_eq!(address(&world, "echo", "six"), "10.77.0.9");
    // The image has no program for that: one of the host's in the container's network.
    let pid = world.isles(&["inspect", "-f", "{{.State.Pid}}", "echo"]).fine();
    let answers = "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 7)); \
                   print('ready', flush=True); m, a = s.recvfrom(99); s.sendto(m, a); m, a = s.recvfrom(99); s.sendto(m, a)";
    let mut command = Command::new("nsenter");
    command.args(["-t", pid.trim(), "-n", "python3", "-c", answers]);
    let (_echo, ready) = Running::start(&mut command);
    assert_eq!(ready, "ready\n");
    for (family, at) in [("AF_INET", "('127.0.0.1', 7007)"), ("AF_INET6", "('fd77::9', 7)")] {
        let talk = format!(
            "import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.settimeout(5); \
             s.sendto(b'hello', {at}); print(s.recv(99))"
        );
        assert_eq!(host(&world, &["python3", "-c", &talk]).fine(), "b'hello'\n", "{at}");
    }
    let at_loopback = ["--network", "six", "-p", "[::1]:7008:7/udp", "--", "true"];
    world.run(&at_loopback).fails(125, &["no answer to [::1]", "127.0.0.1"]);
    server(&world, "web", &["--network", "six", "-p", "7009:80"]);
    // From the host's own address of IPv6 the kernel leads nobody into a container, and where that has IPv4 only nobody who
    // comes by IPv6: whoever stays with it passes them on.
    server(&world, "four", &["--network", "bridge", "-p", "7010:80", "-p", "[::1]:7011:80"]);
    for (place, want) in [
        ("127.0.0.1:7009", "i am web\n"),
        ("[::1]:7009", "i am web\n"),
        ("127.0.0.1:7010", "i am four\n"),
        ("[::1]:7010", "i am four\n"),
        ("[::1]:7011", "i am four\n"),
        // Once more, now that somebody passes on.
        ("[::1]:7010", "i am four\n"),
    ] {
        assert_eq!(fetched_by_host(&world, &format!("http://{place}/")).fine(), want, "{place}");
    }
    // The port is still nobody else's, and free at once when the container is gone.
    world.run(&["-p", "7010:80", "--", "true"]).fails(125, &["7010", "container four"]);
    world.isles(&["restart", "-t", "0", "four"]).fine();
    await_server(&world, "four");
    assert_eq!(fetched_by_host(&world, "http://[::1]:7010/").fine(), "i am four\n");
    world.isles(&["rm", "-f", "four"]).fine();
    world.run(&["-p", "7010:80", "--", "true"]).fine();
    // Nothing leads into a network that leads nowhere.
    world.isles(&["network", "create", "--internal", "shut"]).fine();
    server(&world, "inner", &["--network", "shut", "-p", "7012:80"]);
    let refused = "import socket\ntry: socket.create_connection(('::1', 7012), 9)\nexcept ConnectionRefusedError: print('no')";
    assert_eq!(host(&world, &["python3", "-c", refused]).fine(), "no\n");
    let said = run(&world, "six", &["busybox", "nslookup", "-type=aaaa", "web"]).fine();
    assert!(said.contains("fd77::"), "{said}");
    let shown = world.isles(&["network", "inspect", "-f", "{{.EnableIPv6}}", "six"]).fine();
    assert_eq!(shown, "true\n");
}

#[test]
fn internal_networks_are_closed() {
    let Some(world) = apart() else { return };
    world.isles(&["network", "create", "--internal", "closed"]).fine();
    server(&world, "web", &["--network", "closed"]);
    assert_eq!(
        run(&world, "closed", &["busybox", "wget", "-q", "-O", "-", "http://web/"]).fine(),
        "i am web\n"
    );
    let routes = run(&world, "closed", &["busybox", "ip", "route"]).fine();
    assert!(!routes.contains("default"), "{routes}");
}

#[test]
fn nothing_is_left_behind_by_a_monitor_that_is_killed() {
    let Some(world) = apart() else { return };
    server(&world, "web", &["-p", "8080:80"]);
    let id = world.isles(&["ps", "-q", "--no-trunc"]).fine();
    let state = fs::read(world.path("state/containers").join(id.trim()).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let monitor = rustix::process::Pid::from_raw(state["monitor"][0].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    while world.isles(&["ps", "-a", "--format", "{{.State}}"]).fine() != "dead\n" {}
    // The next command collects them: that one may have looked before the end, and listed after it.
    world.isles(&["ps"]).fine();
    assert_eq!(left(&world), [""; 0]);
    server(&world, "next", &["-p", "8080:80"]);
    assert_eq!(fetched_by_host(&world, "http://127.0.0.1:8080/").fine(), "i am next\n");
}

#[test]
fn a_flushed_firewall_is_said_again() {
    let Some(world) = apart() else { return };
    server(&world, "web", &["-p", "8080:80"]);
    let rules = || host(&world, &["/usr/sbin/nft", "list table inet isles"]);
    let led_by_rules = rules().fine();
    assert!(led_by_rules.contains("8080"), "{led_by_rules}");
    host(&world, &["/usr/sbin/nft", "flush ruleset"]).fine();
    assert_ne!(rules().code, 0, "it is gone");
    // The socket that keeps the port still leads there.
    assert_eq!(fetched_by_host(&world, "http://127.0.0.1:8080/").fine(), "i am web\n");
    run(&world, "bridge", &["true"]).fine();
    assert_eq!(rules().fine(), led_by_rules);
    assert_eq!(fetched_by_host(&world, "http://127.0.0.1:8080/").fine(), "i am web\n");
}

#[test]
fn the_usual_networks_are_listed_before_their_first_use() {
    let Some(world) = apart() else { return };
    let ls = |words: &[&str]| {
        world.isles(&[&["network", "ls", "--format", "{{.Name}} {{.Driver}}"], words].concat()).fine()
    };
    assert_eq!(ls(&[]), "bridge bridge\nhost host\nnone null\n");
    world.isles(&["network", "create", "one"]).fine();
    assert_eq!(ls(&["--filter", "type=custom"]), "one bridge\n");
    assert_eq!(ls(&["--filter", "driver=null"]), "none null\n");
    let id = world.isles(&["network", "inspect", "-f", "{{.Id}}", "bridge"]).fine();
    let known = host(&world, &["/bin/busybox", "ip", "-o", "link"]).fine();
    assert!(!known.contains(&id[..12]), "the kernel has nothing of it yet: {known}");
    assert_eq!(world.isles(&["network", "inspect", "-f", "{{.Driver}}", "host"]).fine(), "host\n");
    run(&world, "bridge", &["true"]).fine();
    assert_eq!(world.isles(&["network", "inspect", "-f", "{{.Id}}", "bridge"]).fine(), id);
}

#[test]
fn what_is_wanted_of_a_network_stands_with_its_name() {
    let Some(world) = apart() else { return };
    world.isles(&["network", "create", "--subnet", "10.5.0.0/24", "one"]).fine();
    world.isles(&["network", "create", "--subnet", "10.6.0.0/24", "two"]).fine();
    let options = [
        "--name",
        "web",
        "--network",
        "one:ip=10.5.0.9,alias=first,mac=02:00:00:00:00:09",
        "--network",
        "name=two,ip=10.6.0.9,alias=second,mac-address=02:00:00:00:00:0a",
    ];
    detached(&world, &options, "exec sleep 1000").fine();
    assert_eq!(
        (address(&world, "web", "one"), address(&world, "web", "two")),
        ("10.5.0.9".into(), "10.6.0.9".into())
    );
    let links = world.isles(&["exec", "web", "busybox", "ip", "link"]).fine();
    assert!(links.contains("02:00:00:00:00:09") && links.contains("02:00:00:00:00:0a"), "{links}");
    for (network, alias, found) in [("one", "first", "10.5.0.9"), ("two", "second", "10.6.0.9")] {
        assert!(run(&world, network, &["busybox", "nslookup", alias]).fine().contains(found), "{alias}");
    }
    // Those who join later may say so as well.
    detached(&world, &["--name", "late", "--network", "one"], "exec sleep 1000").fine();
    world.isles(&["network", "connect", "--mac-address", "02:00:00:00:00:0b", "two", "late"]).fine();
    let links = world.isles(&["exec", "late", "busybox", "ip", "link"]).fine();
    assert!(links.contains("02:00:00:00:00:0b"), "{links}");
    // What stays in the network may be long, what leaves it is as long as on any wire.
    assert_eq!([mtu(&world, "late", "10.5.0.1"), mtu(&world, "late", "192.0.2.1")], [65_535, 1500]);
    // An address, the network's MTU, and the name that it has there.
    let narrow = ["network", "create", "--subnet", "10.77.3.0/24", "--opt", "mtu=1400", "narrow"];
    world.isles(&narrow).fine();
    world.isles(&["network", "connect", "--ip", "10.77.3.9", "narrow", "late"]).fine();
    assert_eq!(mtu(&world, "late", "10.77.3.1"), 1400);
    let script = "cat /sys/class/net/eth2/mtu; busybox ip address show dev eth2; cat /etc/hosts";
    let seen = world.isles(&["exec", "late", "sh", "-c", script]).fine();
    let id: String = world.isles(&["ps", "-q", "--filter", "name=late"]).fine();
    let name = format!("10.77.3.9\t{}\n", id.trim());
    assert!(seen.starts_with("1400\n") && seen.contains("10.77.3.9/24") && seen.contains(&name), "{seen}");
    world.isles(&["network", "disconnect", "narrow", "late"]).fine();
    assert!(!world.isles(&["exec", "late", "cat", "/etc/hosts"]).fine().contains("10.77.3.9"));
    world.isles(&["network", "rm", "narrow"]).fine();
    world.isles(&["network", "disconnect", "--force", "two", "late"]).fine();
    // What is left of one that is gone: its folder went without its place.
    let id = world.isles(&["inspect", "-f", "{{.Id}}", "late"]).fine();
    let kept = world.path("state/networks/endpoints").join(format!("{}.json", id.trim()));
    let places = fs::read(&kept).unwrap();
    world.isles(&["rm", "-f", "late"]).fine();
    fs::write(&kept, places).unwrap();
    world.isles(&["network", "disconnect", "-f", "one", "late"]).fine();
    assert!(!kept.exists());
}

#[test]
fn what_is_not_possible_is_said() {
    let Some(world) = apart() else { return };
    world.isles(&["network", "create", "--subnet", "10.5.0.0/24", "one"]).fine();
    for (words, code, said) in [
        (&["network", "create", "one"][..], 1, "already exists"),
        (&["network", "create", "host"], 1, "'host'"),
        (&["network", "create", "-d", "overlay", "x1"], 1, "'overlay'"),
        (&["network", "create", "--subnet", "10.5.0.0/16", "x1"], 1, "overlaps"),
        (&["network", "create", "--subnet", "10.6.0.0/24", "--gateway", "10.7.0.1", "x1"], 1, "10.7.0.1"),
        (&["network", "create", "-o", "mtu=9", "x1"], 1, "'9'"),
        (&["network", "create", "-o", "color=red", "x1"], 1, "'color'"),
        (&["network", "rm", "none-such"], 1, "network none-such not found"),
        (&["network", "rm", "bridge"], 1, "bridge"),
        (&["network", "rm", "host"], 1, "engine's own"),
        (&["network", "connect", "host", "nobody"], 1, "has no members"),
        (&["network", "connect", "--link", "db", "one", "nobody"], 1, "links"),
        (&["network", "connect", "--mac-address", "1:2", "one", "nobody"], 1, "'1:2'"),
        (&["network", "disconnect", "one", "nobody"], 1, "nobody"),
        (&["network", "disconnect", "-f", "one", "nobody"], 1, "nobody"),
        (&["network", "inspect", "none-such"], 1, "none-such"),
        (&["network", "ls", "--filter", "color=red"], 1, "color"),
    ] {
        world.isles(words).fails(code, &[said]);
    }
    let source = world.source();
    for (options, said) in [
        (&["--network", "none-such"][..], "none-such"),
        // What was taken before is given back.
        (&["--network", "one", "--network", "none-such"], "none-such"),
        (&["--network", "one", "--ip", "10.9.0.1"], "10.9.0.1"),
        (&["--network", "one", "--ip", "10.5.0.1"], "10.5.0.1"),
    ] {
        let words = [&["run", "--rm"], options, &[source.as_str(), "true"]].concat();
        world.isles(&words).fails(125, &[said]);
    }
    // Who shares the network of another, has none, or one that nobody shares, joins none: running or not, as with docker.
    detached(&world, &["--name", "base", "--network", "one"], "exec sleep 1000").fine();
    for (mode, said) in [
        ("host", "network of the host"),
        ("none", "--network none"),
        ("container:base", "another container"),
        ("slirp4netns", "nobody shares"),
    ] {
        world.isles(&["create", "--name", "idle", "--network", mode, &source, "true"]).fine();
        detached(&world, &["--name", "lives", "--network", mode], "exec sleep 1000").fine();
        for name in ["idle", "lives"] {
            world.isles(&["network", "connect", "one", name]).fails(1, &[said]);
        }
        world.isles(&["rm", "-f", "idle", "lives"]).fine();
    }
    world.isles(&["rm", "-f", "base"]).fine();
    assert_eq!(left(&world), [""; 0]);
}

#[test]
fn input_goes_to_a_container_with_a_network() {
    let Some(world) = apart() else { return };
    let source = world.source();
    let mut child = world
        .command(["run", "-i", "--rm", "--network", "bridge", &source, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    assert_eq!(Said::of(child.wait_with_output().unwrap()).fine(), "typed\n");
}

#[test]
fn the_usual_network_is_a_bridge() {
    let Some(world) = apart() else { return };
    let source = world.source();
    let addresses = |options: &[&str]| {
        let words = [&["run", "--rm"], options, &[&source, "busybox", "ip", "-o", "addr"]].concat();
        world.isles(&words).fine()
    };
    assert!(addresses(&[]).contains("inet 172."), "{}", addresses(&[]));
    assert!(addresses(&["--network", "slirp4netns"]).contains("inet 10.0."));
    let of_host = world.isles(&["run", "--rm", "--network", "host", &source, "busybox", "ip", "-o", "addr"]);
    assert!(of_host.fine().contains(": isl"));
    let mut said = world.command(["run", "--rm", &source, "busybox", "ip", "-o", "link"]);
    assert!(!Said::of(said.env("ISLES_NETWORK", "none").output().unwrap()).fine().contains("eth0"));
    // Where another program's firewall drops what is forwarded, the network is one that needs nothing to be.
    host(&world, &["/usr/sbin/nft", "add table ip filter"]).fine();
    let chain = "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    host(&world, &["/usr/sbin/nft", chain]).fine();
    assert!(addresses(&[]).contains("inet 10.0."));
    server(&world, "web", &["-p", "8080:80"]);
    assert_eq!(fetched_by_host(&world, "http://127.0.0.1:8080/").fine(), "i am web\n");
}

#[test]
fn a_network_that_was_made_by_half_is_finished() {
    let Some(world) = apart() else { return };
    let answers = || run(&world, "one", &["busybox", "wget", "-q", "-O", "-", "http://web/"]).fine();
    world.isles(&["network", "create", "one"]).fine();
    server(&world, "web", &["--network", "one", "-p", "8080:80"]);
    assert_eq!(answers(), "i am web\n");
    world.isles(&["rm", "-f", "web"]).fine();
    let links = host(&world, &["/bin/busybox", "ip", "-o", "link"]).fine();
    let bridge = links.split([' ', ':']).find(|word| word.starts_with("isl")).unwrap();
    // Killed between making the device and all else: it is there, without an address, and down.
    for words in [&["ip", "addr", "flush", "dev", bridge][..], &["ip", "link", "set", bridge, "down"]] {
        host(&world, &[&["/bin/busybox"], words].concat()).fine();
    }
    server(&world, "web", &["--network", "one", "-p", "8080:80"]);
    assert_eq!(answers(), "i am web\n");
    assert_eq!(fetched_by_host(&world, "http://127.0.0.1:8080/").fine(), "i am web\n");
    world.isles(&["rm", "-f", "web"]).fine();
    // Removed by somebody, while the firewall knows of it still.
    host(&world, &["/bin/busybox", "ip", "link", "del", bridge]).fine();
    server(&world, "web", &["--network", "one", "-p", "8080:80"]);
    assert_eq!(answers(), "i am web\n");
    assert_eq!(fetched_by_host(&world, "http://127.0.0.1:8080/").fine(), "i am web\n");
}

#[test]
fn a_port_is_free_when_its_container_is_removed() {
    let Some(world) = apart() else { return };
    for _ in 0..20 {
        detached(&world, &["--name", "web", "-p", "8080:80"], "exec busybox sleep 1000").fine();
        world.isles(&["rm", "-f", "web"]).fine();
    }
}

#[test]
fn state_directories_share_the_firewall() {
    let Some(world) = apart() else { return };
    let (own, other) = (world.path("state"), world.path("other"));
    let (own, other, source) = (own.to_str().unwrap(), other.to_str().unwrap(), world.source());
    let script = "mkdir /www; echo $0 > /www/index.html; exec busybox httpd -f -p 80 -h /www";
    let serve = |root: &str, name: &str, port: &str| {
        let words = ["--root", root, "run", "-d", "-p", port, &source, "sh", "-c", script, name];
        world.isles(&words).fine().trim().to_owned()
    };
    let fetched = |port: u16| {
        // It listens a moment after it has begun.
        for _ in 0..500 {
            let said = fetched_by_host(&world, &format!("http://127.0.0.1:{port}/"));
            if said.code == 0 {
                return said.out;
            }
        }
        String::new()
    };
    let first = serve(own, "first", "8080:80");
    let second = serve(other, "second", "8081:80");
    assert_eq!((fetched(8080).as_str(), fetched(8081).as_str()), ("first\n", "second\n"));
    // Each says its own again.
    host(&world, &["/usr/sbin/nft", "delete table inet isles"]).fine();
    let third = serve(other, "third", "8082:80");
    assert_eq!((fetched(8081).as_str(), fetched(8082).as_str()), ("second\n", "third\n"));
    let fourth = serve(own, "fourth", "8083:80");
    assert_eq!((fetched(8080).as_str(), fetched(8083).as_str()), ("first\n", "fourth\n"));
    world.isles(&["--root", other, "rm", "-f", &second, &third]).fine();
    world.isles(&["rm", "-f", &first, &fourth]).fine();
}

#[test]
fn who_leaves_its_first_network_goes_out_by_the_next() {
    let Some(world) = apart() else { return };
    for name in ["one", "two"] {
        world.isles(&["network", "create", name]).fine();
    }
    server(&world, "web", &["--network", "one", "--network", "two", "-p", "8080:80"]);
    let url = "http://127.0.0.1:8080/";
    assert_eq!(fetched_by_host(&world, url).fine(), "i am web\n");
    world.isles(&["network", "disconnect", "one", "web"]).fine();
    assert_eq!(fetched_by_host(&world, url).fine(), "i am web\n");
    let routes = || world.isles(&["exec", "web", "busybox", "ip", "route"]).fine();
    assert!(routes().contains("default via"), "{}", routes());
    // And one that had none at all has it again.
    world.isles(&["network", "disconnect", "two", "web"]).fine();
    assert!(!routes().contains("default via"), "{}", routes());
    world.isles(&["network", "connect", "one", "web"]).fine();
    assert!(routes().contains("default via"), "{}", routes());
    assert_eq!(fetched_by_host(&world, url).fine(), "i am web\n");
    world.isles(&["rm", "-f", "web"]).fine();
    assert_eq!(left(&world), [""; 0]);
}

#[test]
fn networks_of_a_deleted_store_go_with_the_next_network() {
    let Some(world) = apart() else { return };
    let create = |store: &str, name: &str| {
        let root = world.path(store);
        world.isles(&["--root", root.to_str().unwrap(), "network", "create", name]).fine();
    };
    let bridges = || {
        let text = host(&world, &["/bin/busybox", "ip", "-o", "link"]).fine();
        let names = text.lines().filter_map(|line| line.split(": ").nth(1));
        let mut names: Vec<String> =
            names.filter(|name| name.starts_with("isl")).map(str::to_owned).collect();
        names.sort();
        names
    };
    create("gone", "gone");
    let gone = bridges();
    create("kept", "kept");
    let both = bridges();
    assert_eq!((gone.len(), both.len()), (1, 2));
    // One that somebody is in stays, whatever became of its store.
    fs::remove_dir_all(world.path("gone")).unwrap();
    host(&world, &["/bin/busybox", "ip", "link", "add", "in-it", "type", "veth"]).fine();
    host(&world, &["/bin/busybox", "ip", "link", "set", "in-it", "master", &gone[0]]).fine();
    create("state", "first");
    assert!(bridges().contains(&gone[0]));
    host(&world, &["/bin/busybox", "ip", "link", "del", "in-it"]).fine();
    create("state", "second");
    let left = bridges();
    assert!(!left.contains(&gone[0]) && both.iter().all(|name| *name == gone[0] || left.contains(name)));
    let table = host(&world, &["nft", "list", "table", "inet", "isles"]).fine();
    assert!(!table.contains(&gone[0]) && left.iter().all(|name| table.contains(name.as_str())), "{table}");
}

/// What looks for neighbours and routers of IPv6 goes to every port of a bridge.
#[test]
fn where_there_is_no_ipv6_nobody_speaks_it() {
    let Some(world) = apart() else { return };
    world.isles(&["network", "create", "four"]).fine();
    world.isles(&["network", "create", "--ipv6", "six"]).fine();
    let own = ["busybox", "ip", "-6", "-o", "address", "show", "dev", "eth0"];
    assert_eq!(run(&world, "four", &own).fine(), "");
    assert_eq!(run(&world, "six", &own).fine().lines().count(), 2, "a given one, and that of the link");
    for network in ["four", "six"] {
        detached(&world, &["--network", network], "exec sleep 100").fine();
    }
    let all = host(&world, &["/bin/busybox", "ip", "-6", "-o", "address"]).fine();
    assert!(
        !all.contains(": iv") && host(&world, &["/bin/busybox", "ip", "-o", "link"]).fine().contains(": iv")
    );
}
