//! What containers stand on stays, whoever tidies up beside them: as root, as an ordinary user, and as one with
//! subordinate IDs.
#![allow(clippy::unwrap_used)]

mod world;

use serde_json::Value;
use world::{Running, everyone};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn an_image_outlives_its_last_container() {
    everyone(|world| {
        world.isles(&["load", "-q", "-i", &world.source()]).fine();
        assert_eq!(world.isles(&["verify", "--full"]).fine(), "");
        world.isles(&["run", "--name", "kept", "test", "sh", "-c", "echo 1 > /written; rm /bin/dd"]).fine();
        world.isles(&["rmi", "test"]).fails(1, &["image 'test' is in use", "hint: a container stands on it"]);
        let rows = json_of(&world.isles(&["df", "--format", "json"]).fine());
        let containers = rows.as_array().unwrap().iter().find(|r| r["Type"] == "Containers").unwrap();
        assert_eq!(containers["Total"], 1);
        assert!(containers["ReclaimableBytes"].as_u64().unwrap() > 0, "{containers}");
        world.isles(&["prune", "-a"]).fine();
        assert_eq!(world.isles(&["images", "-q"]).fine().lines().count(), 1);
        assert_eq!(world.isles(&["verify", "--full"]).fine(), "", "the container has not touched the layers");

        let id = world.isles(&["ps", "-aq", "--no-trunc"]).fine();
        let would = world.isles(&["prune", "--containers", "--dry-run"]).fine();
        assert!(would.contains(&format!("container {id}")), "{would}");
        let gone = json_of(&world.isles(&["prune", "-a", "--containers", "--format", "json"]).fine());
        assert_eq!(gone["Containers"][0].as_str(), Some(id.trim()));
        assert_eq!(gone["Images"][0], "test:latest");
        for list in [&["ps", "-aq"][..], &["images", "-q"]] {
            assert_eq!(world.isles(list).fine(), "");
        }
    });
}

#[test]
fn what_runs_is_left_alone() {
    everyone(|world| {
        world.isles(&["load", "-q", "-i", &world.source()]).fine();
        let mut command =
            world.command(["run", "--rm", "-i", "test", "sh", "-c", "echo ready; cat; test -e /bin/sh"]);
        let (mut running, said) = Running::start(command.stdin(std::process::Stdio::piped()));
        assert_eq!(said.trim(), "ready");
        let tidied = world.isles(&["prune", "-a", "--containers"]).fine();
        assert_eq!(tidied, "Total reclaimed space: 0B\n");
        world.isles(&["rmi", "-f", "test"]).fine();
        world.isles(&["prune", "-a"]).fine();
        assert_eq!(world.isles(&["verify", "--full", "--repair"]).fine(), "");
        drop(running.0.stdin.take());
        assert_eq!(running.code(), Some(0), "its files were there to the end");
        world.isles(&["prune", "-a"]).fine();
        assert_eq!(world.isles(&["images", "-q"]).fine(), "");
    });
}

#[test]
fn dockers_groups_tidy_up_as_docker_does() {
    everyone(|world| {
        world.isles(&["load", "-q", "-i", &world.source()]).fine();
        let run = |name: &str, more: &[&str]| {
            let line = [&["container", "run", "--name", name], more, &["test", "true"]].concat();
            world.isles(&line).fine();
        };
        run("old", &["--label", "keep"]);
        run("plain", &[]);
        world.isles(&["container", "create", "--name", "new", "test"]).fine();
        world.isles(&["container", "run", "-d", "--name", "live", "test", "sleep", "100"]).fine();
        world.isles(&["network", "create", "idle"]).fine();
        let names = || {
            let out = world.isles(&["container", "ls", "-a", "--format", "{{.Names}}"]).fine();
            let mut names: Vec<String> = out.lines().map(str::to_owned).collect();
            names.sort();
            names
        };
        world
            .isles(&["container", "prune", "-f", "--filter", "color=red"])
            .fails(1, &["unknown filter 'color'"]);
        world.isles(&["container", "prune", "-f", "--filter", "until=soon"]).fails(1, &["'soon'"]);
        let young = world.isles(&["container", "prune", "-f", "--filter", "until=1h"]).fine();
        assert_eq!((young.as_str(), names().len()), ("Total reclaimed space: 0B\n", 4));
        world.isles(&["container", "prune", "-f", "--filter", "label!=keep"]).fine();
        assert_eq!(names(), ["live", "old"], "one that was never started goes, as with docker");
        run("plain", &[]);
        let said = world.isles(&["system", "prune", "-f"]).fine();
        assert_eq!(said.matches("container ").count(), 2, "{said}");
        assert!(said.contains("network idle\n"), "{said}");
        assert_eq!(names(), ["live"]);
        let info = json_of(&world.isles(&["system", "info", "--format", "json"]).fine());
        let numbers =
            ["Containers", "ContainersRunning", "ContainersStopped", "Images"].map(|name| &info[name]);
        assert_eq!(numbers, [1, 1, 0, 1], "{info}");
        assert!(info["NCPU"].as_u64() > Some(0) && info["MemTotal"].as_u64() > Some(1 << 20), "{info}");
        assert!(world.isles(&["info"]).fine().contains("Containers: 1 (1 running, 0 paused, 0 stopped)\n"));

        // Only what it says: a container is no image, and the other way round.
        world.isles(&["container", "inspect", "test"]).fails(1, &["test"]);
        world.isles(&["image", "inspect", "live"]).fails(1, &["live"]);
        world.isles(&["image", "inspect", "test"]).fine();
        world.isles(&["container", "run", "--nothing", "test"]).fails(125, &["--nothing"]);
        world
            .isles(&["container", "run", "--cpu-count", "1", "test"])
            .fails(125, &["docker's option --cpu-count"]);
        world.isles(&["image", "pull", "-a", "test"]).fails(2, &["docker's option -a", "name each tag"]);

        world.isles(&["container", "rm", "-f", "live"]).fine();
        world.isles(&["image", "prune", "-f"]).fine();
        assert_eq!(world.isles(&["image", "ls", "-q"]).fine().lines().count(), 1, "it has a name");
        world.isles(&["image", "prune", "-a", "-f"]).fine();
        assert_eq!(world.isles(&["image", "ls", "-q"]).fine(), "");
    });
}

#[test]
fn what_is_pruned_meets_dockers_filters() {
    // docker-container-prune(1) and its kin: what each command knows, beside what is nobody's.
    const KNOWN: [(&[&str], &[&str]); 7] = [
        (&["container", "prune"], &["until=1h", "label=a", "label=a=b", "label!=a", "label!=a=b"]),
        (&["image", "prune"], &["until=1h", "until=2020-01-01", "label=a", "label!=a=b"]),
        (&["network", "prune"], &["until=1h", "label=a", "label!=a=b"]),
        (&["volume", "prune"], &["label=a", "label!=a=b", "all=1"]),
        (&["system", "prune"], &["until=1577836800", "label=a", "label!=a=b"]),
        (
            &["builder", "prune"],
            &["until=1h", "id=a", "type=regular", "description=a", "inuse=true", "shared=false"],
        ),
        (&["prune"], &["until=1h", "label=a", "label!=a=b"]),
    ];
    everyone(|world| {
        for (command, filters) in KNOWN {
            let with = |filter: &str| world.isles(&[command, &["-f", "--filter", filter]].concat());
            filters.iter().for_each(|filter| drop(with(filter).fine()));
            with("color=red").fails(1, &["unknown filter 'color'", "hint: filters are "]);
            with("until=soon").fails(1, &["'soon'"]);
            if command[0] != "builder" {
                world
                    .isles(&[command, &["-f", "--filter", "until=1h", "--filter", "until=2h"]].concat())
                    .fails(1, &["more than one filter 'until'"]);
            }
        }
        world.isles(&["volume", "prune", "-a", "-f", "--filter", "all=1"]).fails(1, &["'all'"]);
        world.isles(&["volume", "update", "db", "--availability", "drain"]).fails(1, &["swarms"]);

        for name in ["keep", "goes"] {
            let label = format!("{name}=1");
            world.image(&format!("of-{name}"), &world.path("tree"), |config| {
                config.config.labels.insert(name.to_owned(), "1".to_owned());
            });
            let source = format!("oci:{}:latest", world.path(&format!("of-{name}")).display());
            world.isles(&["load", "-q", "-i", &source]).fine();
            world.isles(&["tag", "test", name]).fine();
            world.isles(&["rmi", "test"]).fine();
            world.isles(&["create", "--name", name, "--label", &label, name, "true"]).fine();
            world.isles(&["network", "create", "--label", &label, name]).fine();
            world.isles(&["volume", "create", "--label", &label]).fine();
        }
        let left = || {
            ["container", "network", "volume", "image"].map(|kind| {
                let all: &[&str] = if kind == "container" { &["-a"] } else { &[] };
                let of = |name: &str| {
                    let filter = format!("label={name}=1");
                    let line = [&[kind, "ls", "-q", "--filter", &filter], all].concat();
                    world.isles(&line).fine().lines().count()
                };
                (of("keep"), of("goes"))
            })
        };
        assert_eq!(left(), [(1, 1); 4]);
        let system = |filter: &str| {
            world.isles(&["system", "prune", "-a", "--volumes", "-f", "--filter", filter]).fine()
        };
        // All of it is young; the images do not say when they were made.
        system("until=1h");
        system("label=other");
        system("label=goes=2");
        assert_eq!(left(), [(1, 1); 4]);
        system("label!=keep");
        assert_eq!(left(), [(1, 0); 4]);
        world.isles(&["container", "prune", "-f", "--filter", "label=keep"]).fine();
        world.isles(&["network", "prune", "-f", "--filter", "label=keep"]).fine();
        world.isles(&["volume", "prune", "-f", "--filter", "label=keep"]).fine();
        world.isles(&["image", "prune", "-a", "-f", "--filter", "label=keep=1"]).fine();
        assert_eq!(left(), [(0, 0); 4]);
    });
}
