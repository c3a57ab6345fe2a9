//! What containers wrote: `isles diff`, `commit` and `export`, and `import`, which is the way back.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use world::{Running, Said, Who, World, everyone};

const SCRIPT: &str = "echo new > /etc/new; rm /etc/group; echo changed >> /etc/passwd; mkdir -p /made/deep; \
                      echo x > /made/deep/x; echo in the volume > /data/v; rm -r /root; mkdir /root; \
                      chown 33:33 /made; echo mem > /mem/x";

fn container(world: &World, name: &str, options: &[&str], script: &str) {
    let source = world.source();
    let fixed = ["-v", "data:/data", "--tmpfs", "/mem", "-e", "GIVEN=1", "--label", "of=me"];
    let words = [&["run", "--name", name], &fixed[..], options, &[&source, "sh", "-c", script]].concat();
    world.isles(&words).fine();
}

#[test]
fn differences_are_what_the_container_did() {
    everyone(|world| {
        container(world, "one", &[], SCRIPT);
        let expected =
            "C /etc\nD /etc/group\nA /etc/new\nC /etc/passwd\nA /made\nA /made/deep\nA /made/deep/x\n";
        assert_eq!(world.isles(&["diff", "one"]).fine(), expected);
        let json = world.isles(&["diff", "--format", "{{.Kind}}{{.Path}}", "one"]).fine();
        assert!(json.contains("D/etc/group\n"), "{json}");
        container(world, "none", &[], "cat /etc/passwd");
        assert_eq!(world.isles(&["diff", "none"]).fine(), "");
        world.isles(&["diff", "nobody"]).fails(1, &["no such container: nobody"]);
        let source = world.source();
        world.isles(&["run", "--name", "memory", "--writable-tmpfs", &source, "true"]).fine();
        world.isles(&["diff", "memory"]).fails(1, &["memory", "in place or into memory"]);
        let words = ["run", "--name", "live", &source, "sh", "-c", "touch /now; echo ready; exec sleep 1000"];
        let (_run, _) = Running::start(&mut world.command(words));
        assert_eq!(world.isles(&["diff", "live"]).fine(), "A /now\n");
    });
}

#[test]
fn a_commit_is_an_image_of_what_was_written() {
    everyone(|world| {
        container(world, "one", &[], SCRIPT);
        let commit = |words: &[&str]| world.isles(&[&["commit"], words].concat());
        let id = commit(&[
            "-a",
            "me",
            "-m",
            "a word",
            "-c",
            "ENV ADDED=$GIVEN-2",
            "-c",
            "CMD [\"sh\", \"-c\", \"echo by default\"]",
            "one",
            "kept:1",
        ])
        .fine();
        assert!(id.starts_with("sha256:"));
        let show = |format: &str| world.isles(&["inspect", "-f", format, "kept:1"]).fine();
        assert_eq!(show("{{.Id}}"), id);
        assert_eq!(show("{{.Author}}|{{.Comment}}|{{.Config.Labels.of}}"), "me|a word|me\n");
        let env = show("{{json .Config.Env}}");
        assert!(env.contains("GIVEN=1") && env.contains("ADDED=1-2"), "{env}");
        let look = "cat /etc/new; test -e /etc/group || echo no group; ls /root /data /mem; stat -c %u /made; cat /made/deep/x";
        let owner = if world.who == Who::Ordinary || !World::is_root() { 0 } else { 33 };
        let expected = format!("new\nno group\n/data:\n\n/mem:\n\n/root:\n{owner}\nx\n");
        let words = ["run", "--rm", "-v", "/data", "--tmpfs", "/mem", "kept:1", "sh", "-c", look];
        let said = world.isles(&words).fine();
        let lines = |text: &str| {
            let mut l: Vec<String> = text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
            l.sort();
            l
        };
        assert_eq!(lines(&said), lines(&expected));
        assert_eq!(world.isles(&["run", "--rm", "kept:1"]).fine(), "by default\n");
        // Places of mounts are no part of it.
        let said = world.isles(&["run", "--rm", "kept:1", "ls", "/"]).fine();
        assert!(!said.contains("data") && !said.contains("mem"), "{said}");
        // The container is as it was, and another commit has the same layer.
        let again = commit(&["one"]).fine();
        let layers = |image: &str| world.isles(&["inspect", "-f", "{{json .RootFS.Layers}}", image]).fine();
        assert_eq!(layers(again.trim()), layers("kept:1"));
        assert_eq!(world.isles(&["verify"]).code, 0);
        for (change, word) in [("RUN x", "RUN"), ("BOGUS", "BOGUS"), ("FROM x", "FROM")] {
            commit(&["-c", change, "one", "bad"]).fails(1, &[word]);
        }
        commit(&["nobody"]).fails(1, &["nobody"]);
        let tree = world.path("rootfs");
        world::busybox(&tree);
        let owned = Command::new("chown").arg("-R").arg(format!("{0}:{0}", world.uid())).arg(&tree).status();
        assert!(owned.unwrap().success() || !World::is_root());
        let root = tree.display().to_string();
        world.isles(&["run", "--name", "folder", "--rootfs", &root, "true"]).fine();
        commit(&["folder"]).fails(1, &["folder", "no image"]);
    });
}

#[test]
fn a_container_that_runs_can_be_committed() {
    everyone(|world| {
        let source = world.source();
        let script = "echo ready; while true; do echo x >> /log; /bin/busybox usleep 100; done";
        let words = ["run", "--rm", "--name", "live", &source, "sh", "-c", script];
        let (mut run, _) = Running::start(&mut world.command(words));
        for pause in ["--pause", "--pause=false"] {
            let said = world.isles(&["commit", pause, "live", "snap"]);
            assert_eq!(said.code, 0, "{said:?}");
            let frozen = world.who == Who::Root || pause == "--pause=false";
            assert!(frozen || said.err.contains("goes on while"), "{said:?}");
        }
        world.isles(&["run", "--rm", "snap", "test", "-s", "/log"]).fine();
        // It goes on afterwards.
        assert!(run.0.try_wait().unwrap().is_none());
        world.isles(&["run", "--rm", "--pid", "container:live", &source, "kill", "-9", "1"]);
        run.signal(rustix::process::Signal::KILL);
    });
}

#[test]
fn one_in_the_background_is_looked_into_while_it_runs() {
    everyone(|world| {
        let source = world.source();
        let script = "echo one > /made; rm /etc/group; while true; do echo x >> /grows; sleep 0.01; done";
        world.isles(&["run", "-d", "--name", "live", &source, "sh", "-c", script]).fine();
        let state = || world.isles(&["inspect", "-f", "{{.State.Status}}", "live"]).fine();
        while !world.isles(&["diff", "live"]).fine().contains("A /grows") {}
        let differences = world.isles(&["diff", "live"]).fine();
        assert!(differences.contains("A /made\n") && differences.contains("D /etc/group\n"), "{differences}");
        std::fs::write(world.path("home/given"), "given\n").unwrap();
        world.isles(&["cp", "given", "live:/given"]).fine();
        world.isles(&["cp", "live:/made", "taken"]).fine();
        assert_eq!(std::fs::read_to_string(world.path("home/taken")).unwrap(), "one\n");
        for pause in ["--pause", "--pause=false"] {
            world.isles(&["commit", pause, "live", "snap"]).fine();
            assert_eq!(state(), "running\n", "{pause}");
            let made =
                world.isles(&["run", "--rm", "--network", "none", "snap", "cat", "/made", "/given"]).fine();
            assert_eq!(made, "one\ngiven\n", "{pause}");
        }
        // It goes on after that.
        let size = || world.isles(&["exec", "live", "stat", "-c", "%s", "/grows"]).fine();
        let before = size();
        while size() == before {}
        world.isles(&["rm", "-f", "live"]).fine();
    });
}

#[test]
fn a_container_goes_on_when_its_commit_is_killed() {
    everyone(|world| {
        let source = world.source();
        let script = "dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null; echo ready; i=0; \
                      while true; do i=$((i+1)); echo $i > /new; /bin/busybox mv /new /count; done";
        let words = ["run", "--rm", "--name", "live", &source, "sh", "-c", script];
        let (_run, _) = Running::start(&mut world.command(words));
        let count = || {
            let said = world.isles(&["cp", "live:/count", "count"]);
            let text = fs::read_to_string(world.path("home/count")).unwrap_or_default();
            if said.code == 0 { text.trim().parse().unwrap_or(0u64) } else { 0 }
        };
        for round in 0..8u32 {
            let mut command = world.command(["commit", "live", "snap"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Another moment in each round.
            (0..round * 2000).for_each(|_| std::thread::yield_now());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let before = count();
        assert!((0..1000).any(|_| count() > before), "it stands still at {before}");
    });
}

#[test]
fn an_export_is_what_the_container_showed_and_imports_again() {
    everyone(|world| {
        container(world, "one", &[], SCRIPT);
        world.isles(&["export", "-o", "one.tar", "one"]).fine();
        let mut tar = Command::new("tar");
        tar.args(["tv", "--numeric-owner", "-f"]).arg(world.path("home/one.tar"));
        let listed = Said::of(tar.output().unwrap()).fine();
        let has = |path: &str| listed.lines().any(|line| line.ends_with(&format!(" {path}")));
        for path in ["etc/new", "made/deep/x", "bin/busybox", "data/"] {
            assert!(has(path), "{path} is missing in {listed}");
        }
        for path in ["etc/group", "data/v", "mem/x"] {
            assert!(!has(path), "{path} is in {listed}");
        }
        let source = world.source();
        let words = ["import", "-m", "flat", "-c", "CMD [\"cat\", \"/etc/new\"]", "one.tar", "flat:1"];
        let id = world.isles(&words).fine();
        assert_eq!(
            world.isles(&["inspect", "-f", "{{.Id}} {{.Comment}}", "flat:1"]).fine(),
            format!("{} flat\n", id.trim())
        );
        assert_eq!(world.isles(&["run", "--rm", "flat:1"]).fine(), "new\n");
        // Through a pipe, compressed, and from a server.
        let packed = Command::new("gzip").arg("-c").arg(world.path("home/one.tar")).output().unwrap().stdout;
        let mut command = world.command(["import", "-", "piped"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&packed).unwrap();
        Said::of(child.wait_with_output().unwrap()).fine();
        assert_eq!(world.isles(&["run", "--rm", "piped", "cat", "/etc/new"]).fine(), "new\n");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/root.tar.gz", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", packed.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&packed)).unwrap();
        });
        world.isles(&["import", &url, "fetched"]).fine();
        server.join().unwrap();
        assert_eq!(world.isles(&["run", "--rm", "fetched", "cat", "/etc/new"]).fine(), "new\n");
        fs::write(world.path("home/bad.tar"), "no archive, however long it may be").unwrap();
        world.isles(&["import", "bad.tar"]).fails(1, &["archive"]);
        world.isles(&["import", "nosuch.tar"]).fails(1, &["nosuch.tar"]);
        world.isles(&["import", "-c", "RUN x", "one.tar"]).fails(1, &["RUN"]);
        let words = ["run", "--name", "live", &source, "sh", "-c", "touch /now; echo ready; exec sleep 1000"];
        let (_run, _) = Running::start(&mut world.command(words));
        world.isles(&["export", "-o", "live.tar", "live"]).fine();
        let listed = Command::new("tar").arg("tf").arg(world.path("home/live.tar")).output().unwrap();
        assert!(Said::of(listed).fine().lines().any(|line| line == "now"));
        world.isles(&["export", "nobody"]).fails(1, &["nobody"]);
    });
}
