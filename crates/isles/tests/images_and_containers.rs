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
