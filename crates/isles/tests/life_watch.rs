//! What is seen of containers in the background: health, events, what they use; and what is changed about them.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use world::{Said, Who, World, everyone};

/// `isles run -d --name NAME [options] IMAGE sh -c SCRIPT`.
fn detached(world: &World, name: &str, options: &[&str], script: &str) -> Said {
    let source = world.source();
    world.isles(&[&["run", "-d", "--name", name], options, &[source.as_str(), "sh", "-c", script]].concat())
}

fn inspect(world: &World, name: &str) -> serde_json::Value {
    serde_json::from_str::<serde_json::Value>(&world.isles(&["inspect", name]).fine()).unwrap()[0].clone()
}

/// Waits until its health is this.
fn until(world: &World, name: &str, verdict: &str) -> serde_json::Value {
    loop {
        let health = inspect(world, name)["State"]["Health"].clone();
        if health["Status"] == verdict {
            return health;
        }
    }
}

#[test]
fn health_is_looked_at() {
    everyone(|world| {
        let options =
            ["--health-cmd", "echo looked; cat /good", "--health-interval", "30ms", "--health-retries", "2"];
        detached(world, "one", &options, "echo yes > /good; exec sleep 1000").fine();
        let health = until(world, "one", "healthy");
        assert_eq!(health["Log"][0]["ExitCode"], 0);
        assert_eq!(health["Log"][0]["Output"], "looked\nyes\n");
        let shown = world.isles(&["ps", "--filter", "health=healthy", "--format", "{{.Status}}"]).fine();
        assert!(shown.ends_with("(healthy)\n"), "{shown}");
        world.isles(&["exec", "one", "rm", "/good"]).fine();
        let health = until(world, "one", "unhealthy");
        assert!(health["FailingStreak"].as_u64().unwrap() >= 2, "{health}");
        let last = health["Log"].as_array().unwrap().last().unwrap().clone();
        assert!(last["ExitCode"] == 1 && last["Output"].as_str().unwrap().contains("/good"), "{last}");
        let events =
            world.isles(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]).fine();
        assert!(events.contains("health_status: healthy\n") && events.contains("health_status: unhealthy\n"));
        // One that takes too long is killed, with what it has started.
        let options = [
            "--health-cmd",
            "sleep 777 & sleep 777",
            "--health-interval",
            "30ms",
            "--health-timeout",
            "100ms",
        ];
        detached(world, "two", &options, "exec sleep 1000").fine();
        let health = loop {
            let health = inspect(world, "two")["State"]["Health"].clone();
            if health["Log"].as_array().is_some_and(|log| log.len() > 1) {
                break health;
            }
        };
        assert_eq!(health["Log"][0]["ExitCode"], -1);
        assert!(health["Log"][0]["Output"].as_str().unwrap().contains("exceeded timeout"));
        world.isles(&["stop", "-t", "0", "two"]).fine();
        // What the image says counts where the caller says nothing else, and nothing where nothing is wanted.
        detached(world, "three", &["--no-healthcheck"], "exec sleep 1000").fine();
        assert_eq!(inspect(world, "three")["State"]["Health"], serde_json::Value::Null);
        detached(world, "four", &["--health-cmd", "true", "--no-healthcheck"], "true")
            .fails(125, &["conflicts"]);
        detached(world, "four", &["--health-interval", "5"], "true").fails(125, &["'5'"]);
    });
}

#[test]
fn events_are_told_as_they_happen_and_later() {
    everyone(|world| {
        world.isles(&["run", "--rm", "--name", "before", &world.source(), "true"]).fine();
        let mut live = world
            .command(["events", "--filter", "container=one", "--format", "{{.Action}}"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(live.stdout.take().unwrap()).lines();
        // Whether it listens by now is not to be seen: it is told of the first start, or of a later one.
        let first = std::thread::spawn(move || (lines.next().unwrap().unwrap(), lines));
        let mut rounds = 0;
        while !first.is_finished() {
            detached(world, "one", &["--label", "a=b"], "exit 3").fine();
            world.isles(&["wait", "one"]).fine();
            world.isles(&["rm", "one"]).fine();
            rounds += 1;
            assert!(rounds < 1000);
        }
        let (action, _lines) = first.join().unwrap();
        assert!(["create", "start", "die", "destroy"].contains(&action.as_str()), "{action}");
        live.kill().unwrap();
        live.wait().unwrap();
        let read = |words: &[&str]| {
            world.isles(&[&["events", "--since", "1h", "--until", "0s"], words].concat()).fine()
        };
        let all = read(&["--filter", "container=before", "--format", "{{.Action}}"]);
        assert_eq!(all, "create\nstart\ndie\ndestroy\n");
        let json = read(&["--filter", "event=die", "--filter", "label=a=b", "--format", "json"]);
        let event: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(event["Actor"]["Attributes"]["exitCode"], "3");
        assert_eq!((&event["Type"], &event["status"]), (&"container".into(), &"die".into()));
        assert!(read(&["--filter", "container=one"]).contains(" container create "));
        world.isles(&["events", "--filter", "color=red"]).fails(1, &["color"]);
        assert_eq!(world.isles(&["events", "--until", "0s"]).fine(), "");
    });
}

#[test]
fn what_they_use() {
    everyone(|world| {
        detached(world, "busy", &["--network", "none"], "while :; do :; done").fine();
        let json = world.isles(&["stats", "--no-stream", "--format", "json", "busy"]).fine();
        let row = serde_json::from_str::<serde_json::Value>(&json).unwrap()[0].clone();
        assert_eq!(row["Name"], "busy");
        let cpu: f64 = row["CPUPerc"].as_str().unwrap().trim_end_matches('%').parse().unwrap();
        assert!(cpu > 5.0, "{row}");
        assert!(row["MemUsage"].as_str().unwrap().contains("iB / "), "{row}");
        let table = world.isles(&["stats", "--no-stream"]).fine();
        assert!(table.starts_with("CONTAINER ID") && table.contains("busy"), "{table}");
        let top = world.isles(&["top", "busy", "-o", "pid,args"]).fine();
        assert!(top.starts_with("PID") && top.contains("while :"), "{top}");
        assert!(world.isles(&["top", "busy"]).fine().starts_with("USER"));
        // Nobody in the container has started it, and an ordinary user has no control group that would tell.
        world.isles(&["exec", "-d", "busy", "sleep", "4321"]).fine();
        let shown = || world.isles(&["top", "busy", "-o", "args"]).fine();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !shown().contains("sleep 4321") {
            assert!(std::time::Instant::now() < end, "{}", shown());
        }
        world.isles(&["top", "busy", "-o", "color"]).fails(1, &["'color'"]);
        world.isles(&["stop", "-t", "0", "busy"]).fine();
        world.isles(&["top", "busy"]).fails(1, &["not running"]);
        world.isles(&["stats", "--no-stream", "none"]).fails(1, &["no such container"]);
    });
}

#[test]
fn limits_and_policies_are_changed() {
    everyone(|world| {
        detached(world, "one", &["--restart", "always"], "exec sleep 1000").fine();
        world.isles(&["update", "one"]).fails(1, &["nothing to change"]);
        world.isles(&["update", "--restart", "sometimes", "one"]).fails(1, &["'sometimes'"]);
        world.isles(&["update", "--restart", "no", "one"]).fine();
        assert_eq!(inspect(world, "one")["HostConfig"]["RestartPolicy"]["Name"], "no");
        // The monitor goes by the new policy.
        world.isles(&["exec", "one", "sh", "-c", "kill -9 1; true"]);
        let state = inspect(world, "one");
        let pid = state["State"]["Pid"].as_i64().unwrap() as i32;
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        assert_eq!(world.isles(&["wait", "one"]).fine(), "137\n");
        assert_eq!(inspect(world, "one")["State"]["Status"], "exited");
        world.isles(&["start", "one"]).fine();
        let said = world.isles(&["update", "--pids-limit", "55", "one"]);
        if world.who != Who::Root && said.code != 0 {
            println!("skip: {}", said.err.trim());
            return;
        }
        said.fine();
        assert_eq!(inspect(world, "one")["HostConfig"]["PidsLimit"], 55);
    });
}

#[test]
fn containers_are_found_by_what_they_are() {
    everyone(|world| {
        let sleeps = "exec sleep 1000";
        detached(world, "one", &["--network", "none", "--label", "a=1", "-v", "data:/data"], sleeps).fine();
        detached(world, "two", &["--network", "none", "--label", "a=2", "--label", "b"], sleeps).fine();
        detached(world, "three", &["--network", "host", "--label", "a=1"], "exit 3").fine();
        world.isles(&["wait", "three"]).fine();
        let found = |words: &[&str]| {
            let line = [&["ps", "--format", "{{.Names}}"], words].concat();
            world.isles(&line).fine().lines().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        for (words, expected) in [
            (&[][..], "two one"),
            (&["-a"], "three two one"),
            (&["-l"], "three"),
            (&["-n", "2"], "three two"),
            (&["-a", "--filter", "label=a=1"], "three one"),
            (&["-a", "--filter", "label=a=2", "--filter", "label=b"], "two"),
            (&["-a", "--filter", "label=a=1", "--filter", "label=b"], ""),
            (&["-a", "--filter", "name=one", "--filter", "name=two"], "two one"),
            (&["--filter", "volume=data"], "one"),
            (&["--filter", "volume=/data"], "one"),
            (&["-a", "--filter", "network=host"], "three"),
            (&["-a", "--filter", "before=two"], "one"),
            (&["-a", "--filter", "since=two"], "three"),
            (&["--filter", "exited=3"], "three"),
            (&["--filter", "status=exited", "--filter", "status=running"], "three two one"),
            (&["--filter", "publish=80"], ""),
        ] {
            assert_eq!(found(words), expected, "{words:?}");
        }
        assert!(world.isles(&["ps", "-s"]).fine().lines().next().unwrap().ends_with("SIZE"));
        world.isles(&["ps", "--filter", "before=none"]).fails(1, &["no such container"]);
        let unit = world.isles(&["generate", "systemd"]).fine();
        assert!(unit.contains("start --all-restartable") && unit.contains("[Install]"), "{unit}");
    });
}
