//! dockerd takes our images and gives us its own: by archive and by registry, with the same IDs, and what both
//! say about an image is the same.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::process::{Child, Command, Stdio};

use serde_json::Value;
use shelf::*;

/// A daemon of its own, with overlay2 where that works.
struct Docker<'a> {
    shelf: &'a Shelf,
    daemon: Child,
}

impl Docker<'_> {
    fn start(shelf: &Shelf) -> Option<Docker<'_>> {
        if !rustix::process::geteuid().is_root() {
            println!("skip: dockerd needs root");
            return None;
        }
        for program in ["dockerd", "docker", "containerd"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("skip: {program} is not installed");
                return None;
            }
        }
        let log = std::fs::File::create(shelf.path("dockerd.log")).unwrap();
        let mut daemon = Command::new("dockerd");
        daemon.arg("--data-root").arg(shelf.path("data")).arg("--exec-root").arg(shelf.path("exec"));
        daemon.arg("--host").arg(format!("unix://{}", shelf.path("d.sock").display()));
        daemon.arg("--pidfile").arg(shelf.path("d.pid"));
        daemon.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"]);
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let docker = Docker { daemon: daemon.spawn().unwrap(), shelf };
        for _ in 0..200 {
            // The client itself waits for a daemon that has its socket but does not answer yet.
            if shelf.path("d.sock").exists() && docker.run(&["version"]).code == Some(0) {
                return Some(docker);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let log = std::fs::read_to_string(shelf.path("dockerd.log")).unwrap_or_default();
        println!("skip: dockerd does not start here: {}", log.lines().last().unwrap_or_default());
        None
    }

    fn run(&self, args: &[&str]) -> Said {
        let host = format!("unix://{}", self.shelf.path("d.sock").display());
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "100", "docker", "--host", &host]).args(args);
        Said::of(command.current_dir(self.shelf.path(".")).stdin(Stdio::null()).output().unwrap())
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

fn object(text: &str) -> Value {
    serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"))[0].take()
}

#[test]
fn dockerd_and_isles_have_the_same_images() {
    let shelf = both().remove(0);
    let layers = [
        tar(&[("bin/sh", &noise(300_000, 1)), ("etc/a", b"1")]),
        tar(&[("etc/hello", b"hello\n"), ("etc/.wh.a", b"")]),
    ];
    let image = layout(&shelf.path("layout"), "app:1", &layers);
    let id = image.id().to_string();
    shelf.isles(&["load", "-q", "-i", "oci:layout"]).fine();
    let Some(docker) = Docker::start(&shelf) else { return };

    // By archive.
    shelf.isles(&["save", "-o", "ours.tar", "app:1"]).fine();
    let said = docker.run(&["load", "-i", "ours.tar"]).fine();
    assert_eq!(said, "Loaded image: app:1\n");
    assert_eq!(docker.run(&["images", "-q", "--no-trunc"]).fine().trim(), id);
    docker.run(&["save", "-o", "theirs.tar", "app:1"]).fine();
    assert_eq!(shelf.isles_in("back", &["load", "-q", "-i", "theirs.tar"]).fine(), said);
    assert_eq!(shelf.isles_in("back", &["images", "-q", "--no-trunc"]).fine().trim(), id);
    assert_eq!(shelf.isles_in("back", &["verify", "--full"]).fine(), "");

    // What both say about it.
    let (theirs, ours) = (
        object(&docker.run(&["inspect", "app:1"]).fine()),
        object(&shelf.isles(&["inspect", "app:1"]).fine()),
    );
    for name in ["Id", "RepoTags", "Created", "Author", "Architecture", "Os", "RootFS", "Parent", "Comment"] {
        assert_eq!(ours[name], theirs[name], "{name}");
    }
    for (name, value) in theirs["Config"].as_object().unwrap() {
        assert_eq!(&ours["Config"][name], value, "Config.{name}");
    }
    for format in ["{{.Id}}", "{{.Architecture}}/{{.Os}}", "{{json .Config.Env}}", "{{json .RootFS.Layers}}"]
    {
        let args = ["inspect", "--format", format, "app:1"];
        assert_eq!(shelf.isles(&args).fine(), docker.run(&args).fine(), "{format}");
    }
    for args in [
        &["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"][..],
        &["images", "-q", "--no-trunc", "app"],
        &["images", "-q", "--filter", "label=color=blue"],
        &["images", "-q", "--filter", "dangling=true"],
        &["history", "-q", "app:1"],
        &["history", "--no-trunc", "--format", "{{.ID}}|{{.CreatedBy}}|{{.Comment}}", "app:1"],
        &["history", "--format", "{{.CreatedBy}}|{{.CreatedSince}}", "app:1"],
    ] {
        assert_eq!(shelf.isles(args).fine(), docker.run(args).fine(), "{args:?}");
    }
    let heads = |text: String| -> Vec<String> {
        let line = text.lines().next().unwrap_or_default().to_owned();
        line.split("  ").map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect()
    };
    for args in [&["images"][..], &["images", "--digests"], &["history", "app:1"]] {
        assert_eq!(heads(shelf.isles(args).fine()), heads(docker.run(args).fine()), "{args:?}");
    }

    // By registry, both ways.
    let Some(registry) = Registry::start(false) else { return };
    let ours = format!("{}/ours:1", registry.address);
    let theirs = format!("{}/theirs:1", registry.address);
    shelf.isles(&["push", "-q", "app:1", &ours]).fine();
    docker.run(&["rmi", "-f", "app:1"]).fine();
    docker.run(&["pull", "-q", &ours]).fine();
    assert_eq!(docker.run(&["images", "-q", "--no-trunc"]).fine().trim(), id);
    docker.run(&["tag", &ours, &theirs]).fine();
    docker.run(&["push", "-q", &theirs]).fine();
    shelf.isles_in("pulled", &["pull", "-q", &theirs]).fine();
    assert_eq!(shelf.isles_in("pulled", &["images", "-q", "--no-trunc"]).fine().trim(), id);
    let digest = |text: String| object(&text)["RepoDigests"].to_string();
    let seen = docker.run(&["inspect", &theirs]).fine();
    assert!(
        digest(seen).contains(
            digest(shelf.isles_in("pulled", &["inspect", &theirs]).fine()).trim_matches(['[', ']'])
        )
    );
}
