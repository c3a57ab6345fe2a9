//! Logs in the journal of a host: a real systemd-journald in a mount namespace of the test's own.
#![allow(clippy::unwrap_used)]

mod world;

use std::path::Path;
use std::process::{Command, Stdio};

use world::{Running, Said, Who, World};

const JOURNALD: &str = "/lib/systemd/systemd-journald";
/// A host with nothing in /run but what the journal needs. It goes on in the foreground.
const HOST: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal && \
    printf '[Journal]\\nStorage=volatile\\nRateLimitIntervalSec=0\\nForwardToSyslog=no\\nAudit=no\\n' > /run/journald.conf && \
    mkdir -p /run/systemd/journald.conf.d && mv /run/journald.conf /run/systemd/journald.conf.d/test.conf && \
    $1 & until test -S /run/systemd/journal/socket; do :; done; echo ready; wait";

struct Host {
    journal: Running,
}

impl Host {
    fn start() -> Option<Host> {
        if !World::is_root() || !Path::new(JOURNALD).exists() || !Path::new("/usr/bin/journalctl").exists() {
            println!("skip: not root, or no systemd-journald");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-c",
            HOST,
            "sh",
            JOURNALD,
        ]);
        let (journal, line) = Running::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
        assert_eq!(line, "ready\n");
        Some(Host { journal })
    }

    /// A command of the program's there.
    fn command(&self, world: &World, words: &[&str]) -> Command {
        // The namespaces are those of the child of unshare.
        let pid = self.journal.0.id();
        let list = format!("/proc/{pid}/task/{pid}/children");
        let child = std::fs::read_to_string(list).unwrap().split_whitespace().next().unwrap().to_owned();
        let inner = world.command(words);
        let mut command = Command::new("nsenter");
        command.args(["-t", &child, "-m", "-p"]).arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::null());
        command
    }

    fn isles(&self, world: &World, words: &[&str]) -> Said {
        Said::of(self.command(world, words).output().unwrap())
    }
}

#[test]
fn the_journal_has_the_log() {
    let Some(host) = Host::start() else { return };
    let Some(world) = World::new(Who::Root) else { return };
    let source = world.source();
    let isles = |words: &[&str]| host.isles(&world, words);
    // Long lines, bytes that are no text, a part of a line, and both streams.
    let script =
        "echo out; echo err >&2; seq -s x 1 9000; echo; busybox printf '\\377\\001\\n'; echo -n part";
    let log = ["--log-driver", "journald", "--log-opt", "tag={{.Name}}", "--log-opt", "labels=part"];
    let run =
        [&["run", "-d", "--name", "one", "--label", "part=b"], &log[..], &[&source, "sh", "-c", script]];
    let id = isles(&run.concat()).fine();
    isles(&["wait", "one"]).fine();
    let logs = host.command(&world, &["logs", "one"]).output().unwrap();
    let long: Vec<String> = (1..=9000).map(|number: u32| number.to_string()).collect();
    let expected = [b"out\n", long.join("x").as_bytes(), b"\n\n\xff\x01\npart"].concat();
    assert_eq!(
        (String::from_utf8_lossy(&logs.stdout), logs.stderr.as_slice()),
        (String::from_utf8_lossy(&expected), &b"err\n"[..])
    );
    assert_eq!(isles(&["logs", "-n", "1", "--details", "one"]).fine(), "PART=b part");
    assert!(isles(&["logs", "--until", "2020-01-01", "one"]).fine().is_empty());
    assert!(isles(&["logs", "-t", "--since", "1h", "one"]).fine().starts_with("20"));
    // The names are docker's, so whoever looks for them finds them.
    let pid = host.journal.0.id();
    let list = format!("/proc/{pid}/task/{pid}/children");
    let child = std::fs::read_to_string(list).unwrap();
    let mut journalctl = Command::new("nsenter");
    journalctl.args([
        "-t",
        child.trim(),
        "-m",
        "journalctl",
        "-q",
        "-o",
        "json",
        "CONTAINER_NAME=one",
        "PRIORITY=3",
    ]);
    let found: serde_json::Value = serde_json::from_slice(&journalctl.output().unwrap().stdout).unwrap();
    for (name, value) in [
        ("MESSAGE", "err"),
        ("CONTAINER_ID", &id[..12]),
        ("CONTAINER_ID_FULL", id.trim()),
        ("CONTAINER_TAG", "one"),
        ("SYSLOG_IDENTIFIER", "one"),
        ("PART", "b"),
    ] {
        assert_eq!(found[name], value, "{name}");
    }
    assert!(!world.path("state/containers").join(id.trim()).join("log").exists());
}

#[test]
fn who_follows_the_journal_hears_all_and_the_end() {
    let Some(host) = Host::start() else { return };
    let Some(world) = World::new(Who::Root) else { return };
    let source = world.source();
    let script =
        "for n in 1 2 3; do echo $n; done; until test -e /go; do sleep 0.01; done; seq 4 500; echo -n end";
    let run = ["run", "-d", "--name", "one", "--log-driver", "journald", &source, "sh", "-c", script];
    host.isles(&world, &run).fine();
    let (mut follows, first) = Running::start(&mut host.command(&world, &["logs", "-f", "one"]));
    assert_eq!(first, "1\n");
    host.isles(&world, &["exec", "one", "touch", "/go"]).fine();
    let code = host.isles(&world, &["wait", "one"]).fine();
    assert_eq!(code, "0\n");
    let text = follows.rest();
    // The first line, and what was read with it, is the reader's that `start` has dropped.
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(numbers.last(), Some(&500), "{text}");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{text}");
    assert!(text.ends_with("end"), "{text}");
    assert_eq!(follows.code(), Some(0));
}

#[test]
fn without_a_journal_it_is_refused() {
    let Some(world) = World::new(Who::Ordinary) else { return };
    if Path::new("/run/systemd/journal/socket").exists() {
        println!("skip: this host has a journal");
        return;
    }
    let said = world.run(&["-d", "--log-driver", "journald", "--", "true"]);
    said.fails(125, &["journald", "/run/systemd/journal/socket"]);
}
