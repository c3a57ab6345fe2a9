//! Pods: containers that share namespaces, and come and go together.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;

use world::{Said, Who, World};

fn everybody() -> Vec<World> {
    let root =
        World::new(Who::Root).map(|world| if World::is_root() { world.with_own_network() } else { world });
    let others: &[Who] = if World::is_root() { &[Who::Ordinary, Who::Ranged] } else { &[] };
    if others.is_empty() {
        println!("skip: not root, so only as the user who runs the tests");
    }
    let worlds = [root].into_iter().chain(others.iter().map(|who| World::new(*who)));
    let worlds: Vec<World> = worlds.into_iter().flatten().collect();
    for world in &worlds {
        world.isles(&["pull", "-q", &world.source()]);
    }
    worlds
}

/// `isles run [options] IMAGE sh -c SCRIPT`.
fn run(world: &World, options: &[&str], script: &str) -> Said {
    let source = world.source();
    world.isles(&[&["run"], options, &[source.as_str(), "sh", "-c", script]].concat())
}

/// A container of a pod that serves its name over HTTP.
fn server(world: &World, pod: &str, name: &str) {
    let script =
        format!("mkdir /www; echo i am {name} > /www/index.html; exec busybox httpd -f -p 80 -h /www");
    run(world, &["-d", "--pod", pod, "--name", name], &script).fine();
    // It listens a moment after it has begun.
    while !world
        .isles(&["exec", name, "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1/"])
        .out
        .contains(name)
    {}
}

fn status(world: &World, pod: &str) -> String {
    world.isles(&["pod", "inspect", "-f", "{{.State}} {{.NumContainers}}", pod]).fine().trim().to_owned()
}

#[test]
fn containers_of_a_pod_share_its_namespaces() {
    for world in everybody() {
        let who = world.who;
        let id = world.isles(&["pod", "create", "--name", "shop", "-l", "course=1"]).fine();
        assert_eq!(status(&world, "shop"), "Created 1", "{who:?}");
        server(&world, "shop", "web");
        assert_eq!(status(&world, "shop"), "Running 2", "{who:?}");
        let look = "busybox wget -q -O - http://127.0.0.1/; busybox hostname; cat /etc/hostname";
        let said = run(&world, &["--rm", "--pod", "shop"], look);
        assert_eq!(said.fine(), "i am web\nshop\nshop\n", "{who:?}");
        // Of the namespaces, those that are shared and no others.
        let names = ["net", "ipc", "uts", "pid"];
        let script = names.map(|name| format!("readlink /proc/self/ns/{name};")).concat();
        let a = run(&world, &["--rm", "--pod", "shop"], &script).fine();
        let b = world.isles(&["exec", "web", "sh", "-c", &script]).fine();
        let same: Vec<bool> = a.lines().zip(b.lines()).map(|(a, b)| a == b).collect();
        assert_eq!(same, [true, true, true, false], "{who:?}");
        // The pod is no container of its own among the others.
        assert_eq!(world.isles(&["ps", "-a", "--format", "{{.Names}}"]).fine(), "web\n");
        assert_eq!(world.isles(&["pod", "ps", "-q", "--no-trunc"]).fine(), id);
        assert_eq!(world.isles(&["pod", "ps", "-q", "--filter", "label=course=2"]).fine(), "");
        world.isles(&["rm", "-f", "shop"]).fails(1, &["is a pod", "isles pod rm shop"]);
        // All of it, and as one.
        world.isles(&["pod", "stop", "-t", "0", "shop"]).fine();
        assert_eq!(status(&world, "shop"), "Exited 2", "{who:?}");
        world.isles(&["pod", "start", "shop"]).fine();
        assert_eq!(status(&world, "shop"), "Running 2", "{who:?}");
        world.isles(&["kill", "web"]).fine();
        world.isles(&["wait", "web"]).fine();
        assert_eq!(status(&world, "shop"), "Degraded 2", "{who:?}");
        // Who is started wakes what it needs.
        world.isles(&["pod", "kill", "shop"]).fine();
        world.isles(&["start", "web"]).fine();
        assert_eq!(status(&world, "shop"), "Running 2", "{who:?}");
        world.isles(&["pod", "rm", "shop"]).fails(1, &["web", "running"]);
        world.isles(&["pod", "rm", "-f", "shop"]).fine();
        let entries = fs::read_dir(world.path("state/containers")).unwrap();
        assert_eq!(entries.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 0, "{who:?}");
        world.isles(&["pod", "exists", "shop"]).fails(1, &[]);
        world.isles(&["pod", "rm", "shop"]).fails(1, &["no such pod"]);
        world.isles(&["pod", "rm", "-f", "shop"]).fine();
    }
}

#[test]
fn a_pod_with_one_process_tree() {
    for world in everybody() {
        world.isles(&["pod", "create", "--name", "tree", "--share", "pid"]).fine();
        run(&world, &["-d", "--pod", "tree", "--name", "sleeper"], "exec busybox sleep 12345").fine();
        let said = run(&world, &["--rm", "--pod", "tree"], "busybox ps -o args");
        assert!(said.fine().contains("sleep 12345"), "{:?}", world.who);
        // Its process 1 reaps what is left behind.
        let orphan = "(busybox sleep 0.01 &) ; exec busybox true";
        run(&world, &["--rm", "--pod", "tree"], orphan).fine();
        let zombies = "until ! busybox ps -o stat,args | busybox grep -q '^Z'; do :; done";
        run(&world, &["--rm", "--pod", "tree"], zombies).fine();
        world.isles(&["pod", "stop", "-t", "0", "tree"]).fine();
        assert_eq!(status(&world, "tree"), "Exited 2", "{:?}", world.who);
        assert_eq!(world.isles(&["pod", "prune", "-f"]).fine().lines().count(), 1);
    }
}

#[test]
fn a_network_and_its_names_are_the_pods() {
    for world in everybody() {
        let who = world.who;
        world.isles(&["network", "create", "lab"]).fine();
        let words = ["pod", "create", "--name", "shop", "--network", "lab", "--add-host", "db:10.9.8.7"];
        world.isles(&words).fine();
        server(&world, "shop", "web");
        let script = "busybox wget -q -O - http://shop/";
        assert_eq!(run(&world, &["--rm", "--network", "lab"], script).fine(), "i am web\n", "{who:?}");
        let script = "busybox grep -w db /etc/hosts; busybox nslookup shop > /dev/null && echo found";
        let said = run(&world, &["--rm", "--pod", "shop"], script);
        assert_eq!(said.fine(), "10.9.8.7\tdb\nfound\n", "{who:?}");
        for (options, word) in [
            (&["--network", "host"][..], "--network"),
            (&["-p", "80"], "--publish"),
            (&["--hostname", "x"], "--hostname"),
            (&["--dns", "1.1.1.1"], "--dns"),
        ] {
            let options = [&["--rm", "--pod", "shop"], options].concat();
            run(&world, &options, "true").fails(125, &[word, "isles pod create"]);
        }
        run(&world, &["--rm", "--pod", "nowhere"], "true").fails(125, &["no such pod", "nowhere"]);
        world.isles(&["pod", "create", "--name", "web"]).fails(1, &["already in use"]);
        world.isles(&["pod", "create", "--share", "mnt"]).fails(1, &["mnt", "net, ipc"]);
        world.isles(&["pod", "create", "--share", "ipc", "-p", "80"]).fails(1, &["no network"]);
        // One that is made with its first container.
        run(&world, &["-d", "--pod", "new:other", "--name", "first"], "exec busybox sleep 1000").fine();
        assert_eq!(status(&world, "other"), "Running 2", "{who:?}");
        world.isles(&["pod", "pause", "other"]);
        world.isles(&["pod", "unpause", "other"]);
        world.isles(&["pod", "rm", "-f", "shop", "other"]).fine();
        world.isles(&["network", "rm", "lab"]).fine();
    }
}

#[test]
fn a_port_of_a_pod() {
    let Some(world) = World::new(Who::Ordinary) else { return };
    world.isles(&["pull", "-q", &world.source()]);
    world.isles(&["pod", "create", "--name", "shop", "-p", "127.0.0.1::80"]).fine();
    server(&world, "shop", "web");
    let at = world.isles(&["port", "shop", "80"]).fine();
    let fetched = std::process::Command::new("/bin/busybox")
        .args(["wget", "-q", "-O", "-", &format!("http://{}/", at.trim())])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&fetched.stdout), "i am web\n");
    world.isles(&["pod", "rm", "-f", "shop"]).fine();
}
