//! `--net`, `--network` and `--network-args` of `apptainer`: root's containers on a bridge, others' by the process that stays
//! with them.
#![allow(clippy::unwrap_used)]

mod apptainer;
mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use apptainer::{apptainer, sandbox, say};
use world::{Said, Who, World, everyone};

/// Serves its name over HTTP, and says when it listens.
const SERVE: &str = "mkdir -p /tmp/www; echo i am $0 > /tmp/www/index.html; busybox httpd -p 80 -h /tmp/www || exit; \
                     while ! busybox wget -q -O /dev/null http://127.0.0.1/ 2>/dev/null; do :; done; echo ready; exec busybox sleep 1000";

#[test]
fn roots_networks_are_bridges() {
    if !World::is_root() {
        println!("skip: bridges are root's to make");
        return;
    }
    let Some(world) = World::new(Who::Root).map(World::with_own_network) else { return };
    let tree = sandbox(&world);
    let t = tree.to_str().unwrap();
    let server = [
        "--containall",
        "--net",
        "--network-args",
        "portmap=8080:80/tcp",
        "--writable-tmpfs",
        t,
        "sh",
        "-c",
        SERVE,
        "one",
    ];
    let (_server, line) = world::Running::start(&mut apptainer(&world, &[&["exec"], &server[..]].concat()));
    assert_eq!(line, "ready\n");
    let fetch = |url: &str| {
        Said::of(world.host_command(&["/bin/busybox", "wget", "-q", "-O", "-", url]).output().unwrap())
    };
    // A port of the host's that leads to it, also from the host itself.
    assert_eq!(fetch("http://127.0.0.1:8080/").fine(), "i am one\n");
    say(&world, &["exec", "--network", "ptp", "--network-args", "portmap=8080:80/tcp", t, "true"])
        .fails(255, &["8080"]);

    fs::write(tree.join(".singularity.d/startscript"), format!("#!/bin/sh\nexec sh -c '{SERVE}' web\n"))
        .unwrap();
    say(&world, &["instance", "start", "--containall", "--writable-tmpfs", "--net", t, "web"]).fine();
    let listed = say(&world, &["instance", "list", "-j"]).fine();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let address: Ipv4Addr = listed["instances"][0]["ip"].as_str().unwrap().parse().unwrap();
    // Others of the network reach it by the address that the list tells; its own name is in its hosts(5).
    let url = format!("http://{address}/");
    let ask = |network: &[&str]| {
        let script = format!("while ! busybox wget -q -O - {url}; do :; done");
        let words = [&["exec", "--contain"], network, &[t, "sh", "-c", &script]].concat();
        say(&world, &words).fine()
    };
    assert_eq!(ask(&["--net"]), "i am web\n");
    assert_eq!(ask(&["--network", "fakeroot", "--fakeroot"]), "i am web\n");
    let hosts = say(&world, &["exec", "instance://web", "cat", "/etc/hosts"]).fine();
    assert!(hosts.contains(&address.to_string()), "{hosts}");

    // Networks of others' making, addresses of the caller's choice, servers of names.
    world.isles(&["network", "create", "--subnet", "10.77.1.0/24", "lab"]).fine();
    let chosen = [
        "exec",
        "--network",
        "lab",
        "--network-args",
        "IP=10.77.1.9;MAC=02:00:00:00:00:09",
        "--dns",
        "10.77.1.1",
    ];
    let shown = "busybox ip -4 -o addr show dev eth0; busybox ip link show dev eth0; cat /etc/resolv.conf";
    let said = say(&world, &[&chosen[..], &[t, "sh", "-c", shown]].concat()).fine();
    for word in ["10.77.1.9/24", "02:00:00:00:00:09", "nameserver 127.0.0.11"] {
        assert!(said.contains(word), "{word} in {said}");
    }
    say(&world, &["exec", "--network", "lab", "--network-args", "IP=10.78.0.9", t, "true"])
        .fails(255, &["10.78.0.9"]);
    say(&world, &["exec", "--network", "nosuch", t, "true"])
        .fails(255, &["network nosuch not found", "isles network create nosuch"]);
    say(&world, &["instance", "stop", "--all"]).fine();
}

#[test]
fn an_instance_boots_by_its_own_init() {
    if !World::is_root() {
        println!("skip: only root's instances have an init of their own");
        return;
    }
    let Some(world) = World::new(Who::Root).map(World::with_own_network) else { return };
    let tree = sandbox(&world);
    let t = tree.to_str().unwrap();
    say(&world, &["instance", "start", "--boot", t, "sys"]).fails(255, &["/sbin/init"]);
    fs::create_dir_all(tree.join("sbin")).unwrap();
    let init = tree.join("sbin/init");
    fs::write(&init, "#!/bin/sh\necho pid $$ of $(hostname)\ntrap 'exit 0' INT\nwhile :; do sleep 1; done\n")
        .unwrap();
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    say(&world, &["instance", "start", "--boot", t, "sys"]).fine();
    let listed: serde_json::Value =
        serde_json::from_str(&say(&world, &["instance", "list", "-j"]).fine()).unwrap();
    let found = &listed["instances"][0];
    assert!(found["ip"].as_str().unwrap().parse::<Ipv4Addr>().is_ok(), "{listed}");
    let log = found["logOutPath"].as_str().unwrap();
    while fs::read_to_string(log).unwrap() != "pid 1 of sys\n" {}
    let bounds = say(&world, &["exec", "instance://sys", "grep", "CapBnd", "/proc/1/status"]).fine();
    let bounds = u64::from_str_radix(bounds.split_whitespace().last().unwrap(), 16).unwrap();
    // CAP_SYS_BOOT and CAP_SYS_RAWIO.
    assert_eq!(bounds & (1 << 22 | 1 << 17), 0, "{bounds:x}");
    say(&world, &["instance", "stop", "sys"]).fine();
    assert_eq!(say(&world, &["instance", "list", "-j"]).fine().matches("pid").count(), 0);
}

#[test]
fn others_have_networks_without_rights() {
    everyone(|world| {
        if world.who == Who::Root {
            return;
        }
        let tree = sandbox(world).display().to_string();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let ports = format!("portmap={free}:80/tcp");
        for options in
            [&["--net", "--containall"][..], &["--fakeroot", "--net"], &["--network", "ptp", "--pid"]]
        {
            let words = [
                &["exec", "--contain", "--network-args", &ports, "--no-mount", "home"],
                options,
                &["--writable-tmpfs", &tree, "sh", "-c", SERVE, "mine"],
            ]
            .concat();
            let mut command = apptainer(world, &words);
            let (mut server, line) = world::Running::start(&mut command);
            assert_eq!(line, "ready\n", "{options:?}");
            let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, free)).unwrap();
            connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("i am mine\n"), "{options:?}: {answer}");
            // As whoever presses ctrl-c.
            server.signal(rustix::process::Signal::KILL);
            server.code();
        }
        // Names are asked for where somebody answers.
        let said = say(world, &["exec", "--net", &tree, "cat", "/etc/resolv.conf"]).fine();
        assert!(said.contains("nameserver 10.0."), "{said}");
    });
}
