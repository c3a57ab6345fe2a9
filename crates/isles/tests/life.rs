//! Containers in the background: started, looked at, ended and started again, as root, as an ordinary user and as one with
//! a range of IDs.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;

use world::{Said, Who, World, everyone};

/// `isles run -d [options] IMAGE [command]`: what comes before `--` are options. Returns the ID.
fn detached(world: &World, words: &[&str]) -> Said {
    let source = world.source();
    let at = words.iter().position(|word| *word == "--").unwrap();
    let line = [&["run", "-d"], &words[..at], &[source.as_str()], &words[at + 1..]].concat();
    world.isles(&line)
}

fn inspect(world: &World, name: &str) -> serde_json::Value {
    let text = world.isles(&["inspect", name]).fine();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[0].clone()
}

/// What `ps -a` says of a container.
fn state(world: &World, name: &str) -> String {
    let filter = format!("name={name}");
    world.isles(&["ps", "-a", "--filter", &filter, "--format", "{{.State}}"]).fine().trim().to_owned()
}

/// The folder of a container.
fn folder(world: &World, id: &str) -> PathBuf {
    world.path("state/containers").join(id.trim())
}

/// What is written down of a container.
fn written(world: &World, id: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder(world, id).join("state.json")).unwrap()).unwrap()
}

#[test]
fn it_runs_is_stopped_and_starts_again() {
    everyone(|world| {
        let id = detached(
            world,
            &["--name", "one", "--", "sh", "-c", "echo out; echo err >&2; echo x > /kept; exec sleep 1000"],
        )
        .fine();
        assert_eq!(id.trim().len(), 64);
        assert_eq!(state(world, "one"), "running");
        // It prints a moment after it has begun.
        while world.isles(&["logs", "one"]).err != "err\n" {}
        assert_eq!(world.isles(&["logs", "one"]).fine(), "out\n");
        world.isles(&["start", "one"]).fine();
        world.isles(&["rm", "one"]).fails(1, &["one", "running"]);
        // It does not listen to TERM, as a process 1 that has not asked for it.
        assert_eq!(world.isles(&["stop", "-t", "0", "one"]).fine(), "one\n");
        assert_eq!(state(world, "one"), "exited");
        assert_eq!(written(world, &id)["exit_code"], 137);
        assert_eq!(world.isles(&["wait", "one"]).fine(), "137\n");
        assert_eq!(world.isles(&["stop", "one"]).fine(), "one\n", "stopped is stopped");
        world.isles(&["kill", "one"]).fails(1, &["one is not running"]);
        world.isles(&["exec", "one", "true"]).fails(1, &["one is not running"]);
        world.isles(&["attach", "one"]).fails(1, &["one is not running"]);
        assert_eq!(world.isles(&["start", &id[..12]]).fine().trim(), &id[..12]);
        assert_eq!(
            world.isles(&["exec", "one", "cat", "/kept"]).fine(),
            "x\n",
            "what it wrote is there still"
        );
        while world.isles(&["logs", "one"]).err != "err\nerr\n" {}
        assert_eq!(world.isles(&["logs", "one"]).fine(), "out\nout\n");
        world.isles(&["rename", "one", "two"]).fine();
        assert_eq!(world.isles(&["restart", "-t", "0", "two"]).fine(), "two\n");
        assert_eq!(state(world, "two"), "running");
        assert_eq!(world.isles(&["rm", "-f", "two"]).fine(), "two\n");
        assert!(!folder(world, &id).exists());
        world.isles(&["logs", "two"]).fails(1, &["no such container: two"]);
    });
}

#[test]
fn what_cannot_be_started_leaves_nothing() {
    everyone(|world| {
        detached(world, &["--name", "one", "--", "/nowhere"]).fails(127, &["/nowhere"]);
        detached(world, &["--name", "one", "--", "/etc"]).fails(126, &["/etc"]);
        detached(world, &["--name", "one", "-w", "/etc/passwd", "--", "true"]).fails(125, &["/etc/passwd"]);
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
        // One that was made stays, and says why.
        let source = world.source();
        let id = world.isles(&["create", "--name", "one", &source, "/nowhere"]).fine();
        assert_eq!(state(world, "one"), "created");
        world.isles(&["start", "one"]).fails(1, &["/nowhere"]);
        assert_eq!(state(world, "one"), "exited");
        assert_eq!(written(world, &id)["exit_code"], 127);
        world.isles(&["create", "--name", "one", &source]).fails(1, &["already in use"]);
    });
}

#[test]
fn exit_codes_are_exact() {
    everyone(|world| {
        for (program, code) in [
            ("exit 0", "0"),
            ("exit 7", "7"),
            ("exit 255", "255"),
            ("kill -9 $$", "137"),
            ("trap 'exit 9' TERM; kill $$; sleep 9", "9"),
        ] {
            let id = detached(
                world,
                &["--", "sh", "-c", &format!("sh -c \"{}\"; exit $?", program.replace('$', "\\$"))],
            )
            .fine();
            assert_eq!(world.isles(&["wait", id.trim()]).fine().trim(), code, "{program}");
        }
        // One that removes itself, before anybody asks and while somebody waits.
        let id = detached(world, &["--rm", "--", "sh", "-c", "read x < /dev/null; exit 3"]).fine();
        let said = world.isles(&["wait", "--condition", "removed", id.trim()]);
        assert!(said.code == 1 && said.err.contains("no such container") || said.out == "3\n", "{said:?}");
        let id = detached(world, &["-i", "--rm", "--name", "in", "--", "cat"]).fine();
        let mut waits = world.command(["wait", "--condition", "removed", "in"]);
        let waits = waits.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(world.isles(&["kill", "in"]).fine(), "in\n");
        let said = Said::of(waits.wait_with_output().unwrap());
        // It may have begun to wait too late.
        assert!(said.out == "137\n" || said.err.contains("no such container"), "{said:?}");
        while folder(world, &id).exists() {}
        assert!(!folder(world, &id).exists());
    });
}

#[test]
fn no_exit_code_is_lost() {
    let Some(world) = World::new(if World::is_root() { Who::Root } else { Who::Ordinary }) else { return };
    world.isles(&["pull", "-q", &world.source()]);
    for number in 0..100u32 {
        let program = format!("exit {}", number % 200);
        let id = detached(&world, &["--", "sh", "-c", &program]).fine();
        let code = world.isles(&["wait", id.trim()]).fine();
        assert_eq!(code.trim(), (number % 200).to_string());
        world.isles(&["rm", id.trim()]).fine();
    }
    assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
}

#[test]
fn it_starts_again_as_its_policy_says() {
    everyone(|world| {
        let count = "n=$(cat /n 2>/dev/null); echo $((${n:-0} + 1)) > /n; echo run; exit 1";
        let id =
            detached(world, &["--name", "one", "--restart", "on-failure:2", "--", "sh", "-c", count]).fine();
        assert_eq!(world.isles(&["wait", "one"]).fine(), "1\n");
        assert_eq!(world.isles(&["logs", "one"]).out, "run\nrun\nrun\n", "once, and twice again");
        assert_eq!(written(world, &id)["restarts"], 2);
        // Who follows the log follows it over all of them.
        world.isles(&["start", "one"]).fine();
        assert_eq!(world.isles(&["logs", "-f", "one"]).out, "run\n".repeat(6));

        // One that was stopped while it waits for its next run does not start.
        let id = detached(world, &["--name", "two", "--restart", "always", "--", "false"]).fine();
        while written(world, &id)["restarts"].as_u64().unwrap_or(0) < 3 {
            std::thread::yield_now();
        }
        world.isles(&["stop", "two"]).fine();
        assert_eq!(state(world, "two"), "exited");
        let restarts = written(world, &id)["restarts"].clone();
        assert_eq!(world.isles(&["wait", "two"]).fine(), "1\n");
        assert_eq!(written(world, &id)["restarts"], restarts);
        // And it can be removed while it waits.
        let id = detached(world, &["--name", "three", "--restart", "unless-stopped", "--", "false"]).fine();
        world.isles(&["rm", "-f", "three"]).fine();
        assert!(!folder(world, &id).exists());
        // A success is none that is tried again.
        detached(world, &["--name", "four", "--restart", "on-failure", "--", "true"]).fine();
        assert_eq!(world.isles(&["wait", "four"]).fine(), "0\n");
        // With `run` in the foreground, the caller is attached to the first run.
        let source = world.source();
        let said = world.isles(&[
            "run",
            "--name",
            "five",
            "--restart",
            "on-failure:1",
            &source,
            "sh",
            "-c",
            "echo hi; exit 4",
        ]);
        assert_eq!((said.code, said.out.as_str()), (4, "hi\n"));
    });
}

#[test]
fn a_monitor_that_is_killed_takes_its_container_along() {
    everyone(|world| {
        let id = detached(world, &["--name", "one", "--restart", "always", "--", "sleep", "1000"]).fine();
        let state_of = written(world, &id);
        let monitor = state_of["monitor"][0].as_i64().unwrap() as i32;
        let program = state_of["pid"].as_i64().unwrap() as i32;
        let waits = world.command(["wait", "one"]).stdout(Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(monitor).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert_eq!(Said::of(waits.wait_with_output().unwrap()).fine(), "137\n");
        assert_eq!(state(world, "one"), "dead");
        while fs::read_to_string(format!("/proc/{program}/stat")).is_ok_and(|stat| !stat.contains(") Z")) {
            std::thread::yield_now();
        }
        world.isles(&["exec", "one", "true"]).fails(1, &["not running"]);
        // As after a reboot.
        assert_eq!(world.isles(&["start", "--all-restartable"]).fine().trim(), id.trim());
        assert_eq!(state(world, "one"), "running");
        world.isles(&["stop", "-t", "0", "one"]).fine();
        assert_eq!(
            world.isles(&["start", "--all-restartable"]).fine().trim(),
            id.trim(),
            "docker starts these, too"
        );
    });
}

#[test]
fn several_are_attached() {
    everyone(|world| {
        detached(
            world,
            &["-i", "--name", "one", "--", "sh", "-c", "while read line; do echo got $line; done; exit 5"],
        )
        .fine();
        let attach = |words: &[&str]| {
            world
                .command([&["attach"], words, &["one"]].concat())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let looks = attach(&["--no-stdin"]);
        let mut talks = attach(&[]);
        let mut stdin = talks.stdin.take().unwrap();
        stdin.write_all(b"a\n").unwrap();
        let mut first = [0u8; 6];
        talks.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(&first, b"got a\n");
        // Its end is not the program's: another may come.
        drop(stdin);
        let mut other = attach(&[]);
        other.stdin.as_mut().unwrap().write_all(b"b\n").unwrap();
        let mut next = [0u8; 6];
        other.stdout.as_mut().unwrap().read_exact(&mut next).unwrap();
        assert_eq!(&next, b"got b\n");
        world.isles(&["kill", "one"]).fine();
        for child in [talks, looks, other] {
            let said = Said::of(child.wait_with_output().unwrap());
            assert_eq!(said.code, 137, "{said:?}");
        }
        assert_eq!(world.isles(&["logs", "one"]).out, "got a\ngot b\n");
    });
}

#[test]
fn start_attached_sees_the_first_word() {
    everyone(|world| {
        let source = world.source();
        world
            .isles(&["create", "--name", "one", "-i", &source, "sh", "-c", "echo first; cat; exit 6"])
            .fine();
        for _ in 0..2 {
            let mut child = world
                .command(["start", "-ai", "one"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
            let said = Said::of(child.wait_with_output().unwrap());
            assert_eq!((said.code, said.out.as_str()), (6, "first\ntyped\n"));
        }
        world.isles(&["create", "--rm", "--name", "two", &source, "true"]).fine();
        assert_eq!(state(world, "two"), "created", "one that waits is no leftover");
        world.isles(&["start", "-a", "two"]).fine();
        assert_eq!(state(world, "two"), "");
    });
}

#[test]
fn commands_in_a_container() {
    everyone(|world| {
        detached(
            world,
            &["--name", "one", "-e", "A=1", "-w", "/tmp", "--hostname", "host1", "--", "sleep", "1000"],
        )
        .fine();
        let exec = |words: &[&str]| world.isles(&[&["exec"], words].concat());
        assert_eq!(
            exec(&["one", "sh", "-c", "echo $A $HOSTNAME $PWD $(hostname)"]).fine(),
            "1 host1 /tmp host1\n"
        );
        assert_eq!(exec(&["-e", "A=2", "-w", "/", "one", "sh", "-c", "echo $A $PWD"]).fine(), "2 /\n");
        match world.who {
            // There is one ID, which is root's.
            Who::Ordinary => exec(&["-u", "www", "one", "id"]).fails(1, &["33", "not mapped"]),
            _ => assert_eq!(exec(&["-u", "www", "one", "id", "-un"]).fine(), "www\n"),
        }
        exec(&["one", "sh", "-c", "exit 9"]).fails(9, &[]);
        exec(&["one", "/nowhere"]).fails(127, &["/nowhere"]);
        exec(&["one", "/etc"]).fails(126, &["/etc"]);
        exec(&["none", "true"]).fails(1, &["no such container"]);
        exec(&["-d", "one", "sh", "-c", "echo later > /tmp/made; sleep 1000"]).fine();
        while exec(&["one", "cat", "/tmp/made"]).out != "later\n" {}
        exec(&["-d", "one", "/nowhere"]).fails(127, &["/nowhere"]);
        let mut child = world
            .command(["exec", "-i", "one", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"in and out").unwrap();
        assert_eq!(Said::of(child.wait_with_output().unwrap()).fine(), "in and out");
        // What was started goes with the container.
        assert!(exec(&["one", "ps"]).fine().contains("sleep 1000"));
        world.isles(&["rm", "-f", "one"]).fine();
    });
}

#[test]
fn paused_ones_wait() {
    everyone(|world| {
        detached(
            world,
            &["--name", "one", "--", "sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.01; done"],
        )
        .fine();
        let said = world.isles(&["pause", "one"]);
        if said.code != 0 && world.who != Who::Root {
            println!("skip: {}", said.err.trim());
            assert!(said.err.contains("control group"), "{said:?}");
            return;
        }
        said.fine();
        assert_eq!(state(world, "one"), "paused");
        world.isles(&["pause", "one"]).fails(1, &["paused already"]);
        world.isles(&["exec", "one", "true"]).fails(1, &["paused"]);
        world.isles(&["unpause", "one"]).fine();
        assert_eq!(state(world, "one"), "running");
        world.isles(&["unpause", "one"]).fails(1, &["not paused"]);
        world.isles(&["pause", "one"]).fine();
        world.isles(&["stop", "one"]).fine();
        assert_eq!(world.isles(&["wait", "one"]).fine(), "4\n");
    });
}

#[test]
fn logs_as_they_are_asked_for() {
    everyone(|world| {
        let script = "seq 1 5; printf '\\377\\000bin\\n'; printf half; exit 0";
        let id = detached(world, &["--name", "one", "--", "sh", "-c", script]).fine();
        world.isles(&["wait", "one"]).fine();
        let raw = world.command(["logs", "one"]).output().unwrap().stdout;
        assert_eq!(raw, b"1\n2\n3\n4\n5\n\xff\0bin\nhalf");
        assert_eq!(world.isles(&["logs", "--tail", "0", "one"]).fine(), "");
        assert!(world.isles(&["logs", "-n", "3", "one"]).fine().starts_with("5\n"));
        assert_eq!(world.isles(&["logs", "--until", "1h", "one"]).fine(), "");
        assert!(world.isles(&["logs", "-t", "--since", "1h", "one"]).fine().starts_with("20"));
        world.isles(&["logs", "--since", "yesterday", "one"]).fails(1, &["'yesterday'"]);
        assert!(folder(world, &id).join("log").exists());
        detached(world, &["--log-driver", "none", "--name", "two", "--", "echo", "x"]).fine();
        world.isles(&["logs", "two"]).fails(1, &["keeps no log"]);
        let id = detached(world, &["--log-driver", "cri", "--name", "three", "--", "echo", "x"]).fine();
        world.isles(&["wait", "three"]).fine();
        assert!(fs::read_to_string(folder(world, &id).join("log")).unwrap().ends_with(" stdout F x\n"));
        // More than is kept, to one who follows and is slower than the program.
        detached(
            world,
            &["-i", "--log-opt", "max-size=1m", "--name", "four", "--", "sh", "-c", "read x; seq 1 20000"],
        )
        .fine();
        let follows = world.command(["logs", "-f", "four"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut attach =
            world.command(["attach", "four"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        attach.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let out = follows.wait_with_output().unwrap().stdout;
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 20000);
        assert!(out.ends_with(b"20000\n"));
        attach.wait().unwrap();
    });
}

/// How much goes through one stream: `ISLES_STREAM_BYTES`, by default what takes seconds.
fn stream_bytes() -> u64 {
    std::env::var("ISLES_STREAM_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(64 << 20)
}

/// The most memory that a process has had so far, in KiB.
fn peak(process: impl std::fmt::Display) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Reads so many bytes, which are the lines `0123…` that `yes` writes.
fn read_lines(from: &mut impl Read, bytes: u64) {
    const LINE: &[u8] = b"0123456789012345678901234567890\n";
    let (mut piece, mut sum) = (vec![0u8; 1 << 20], 0u64);
    while sum < bytes {
        let n = from.read(&mut piece).unwrap();
        assert_ne!(n, 0, "it ends after {sum} bytes");
        let expected = LINE.iter().cycle().skip((sum % 32) as usize);
        assert!(piece[..n].iter().zip(expected).all(|(is, should)| is == should), "behind {sum} bytes");
        sum += n as u64;
    }
    assert_eq!(sum, bytes);
}

/// Neither the monitor of a container nor who was given so many bytes by it has had much memory.
fn took_little_memory(world: &World, id: &str, caller: u32, bytes: u64) {
    let monitor = written(world, id)["monitor"][0].as_i64().unwrap();
    for (whose, peak) in [("the monitor", peak(monitor)), ("the caller", peak(caller))] {
        println!("{bytes} bytes: {whose} has had {peak} KiB at most");
        assert!(peak < 32 << 10, "{peak} KiB");
    }
}

#[test]
fn a_stream_through_attach_is_whole_and_takes_little_memory() {
    let Some(world) = World::new(if World::is_root() { Who::Root } else { Who::Ordinary }) else { return };
    let bytes = stream_bytes();
    let script = format!("read x; yes 0123456789012345678901234567890 | head -c {bytes}; read x");
    let id =
        detached(&world, &["-i", "--log-driver", "none", "--name", "one", "--", "sh", "-c", &script]).fine();
    let mut child =
        world.command(["attach", "one"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    read_lines(child.stdout.as_mut().unwrap(), bytes);
    took_little_memory(&world, &id, child.id(), bytes);
    stdin.write_all(b"end\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_log_that_is_followed_is_whole_and_takes_little_memory() {
    let Some(world) = World::new(if World::is_root() { Who::Root } else { Who::Ordinary }) else { return };
    let bytes = stream_bytes();
    let line = "0123456789012345678901234567890";
    let script = format!("echo {line}; read x; yes {line} | head -c {bytes}; read x");
    // Files are put aside, and removed, many times faster than they are read.
    let id = detached(&world, &["-i", "--name", "one", "--", "sh", "-c", &script]).fine();
    let mut child = world.command(["logs", "-f", "one"]).stdout(Stdio::piped()).spawn().unwrap();
    read_lines(child.stdout.as_mut().unwrap(), 32);
    let mut starts =
        world.command(["attach", "one"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = starts.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    read_lines(child.stdout.as_mut().unwrap(), bytes);
    took_little_memory(&world, &id, child.id(), bytes);
    stdin.write_all(b"end\n").unwrap();
    assert_eq!(starts.wait().unwrap().code(), Some(0));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn inspect_tells_what_became_of_it() {
    everyone(|world| {
        detached(world, &["--name", "one", "--restart", "on-failure:3", "--", "sh", "-c", "exit 0"]).fine();
        world.isles(&["wait", "one"]).fine();
        let found = inspect(world, "one");
        assert_eq!(found["State"]["Status"], "exited");
        assert_eq!(found["State"]["ExitCode"], 0);
    });
}

#[test]
fn names_are_found_without_looking_at_all() {
    everyone(|world| {
        let source = world.source();
        let links = || {
            let all = fs::read_dir(world.path("state/names")).map(|all| all.flatten().collect::<Vec<_>>());
            let names = all.unwrap_or_default().into_iter().map(|e| e.file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| name != ".complete").collect();
            names.sort();
            names
        };
        let made = world.isles(&["create", &source, "true"]).fine();
        let name = world.isles(&["inspect", "-f", "{{.Name}}", made.trim()]).fine();
        let name = name.trim().trim_start_matches('/');
        assert_eq!(world.isles(&["inspect", "-f", "{{.Id}}", name]).fine(), made, "by the name that it got");
        let one = world.isles(&["create", "--name", "one", &source, "true"]).fine();
        let two = world.isles(&["create", "--name", "two", &source, "true"]).fine();
        assert_eq!(links(), ["one", "two"]);
        world.isles(&["create", "--name", "one", &source, "true"]).fails(1, &["already in use", &one[..12]]);
        world.isles(&["rename", "two", "one"]).fails(1, &["already in use"]);
        world.isles(&["rename", "two", "three"]).fine();
        world.isles(&["inspect", "two"]).fails(1, &["two"]);
        assert_eq!(world.isles(&["inspect", "-f", "{{.Id}}", "three"]).fine(), two);
        // A link that leads nowhere, or to another one, is none.
        let link = |name: &str, id: &str| {
            let at = world.path("state/names").join(name);
            let _ = fs::remove_file(&at);
            std::os::unix::fs::symlink(id.trim(), at).unwrap();
        };
        link("four", &"f".repeat(64));
        link("five", &one);
        for name in ["four", "five"] {
            world.isles(&["inspect", name]).fails(1, &[name]);
            world.isles(&["create", "--name", name, &source, "true"]).fine();
            world.isles(&["inspect", name]).fine();
        }
        world.isles(&["run", "--rm", "--name", "six", &source, "true"]).fine();
        link("seven", &"f".repeat(64));
        world.isles(&["ps"]).fine();
        assert_eq!(links(), ["five", "four", "one", "three"]);
        // From before there were any.
        fs::remove_dir_all(world.path("state/names")).unwrap();
        assert_eq!(world.isles(&["inspect", "-f", "{{.Id}}", "three"]).fine(), two);
        world.isles(&["create", "--name", "three", &source, "true"]).fails(1, &["already in use"]);
        world.isles(&["create", "--name", "six", &source, "true"]).fine();
        assert_eq!(links(), ["five", "four", "one", "six", "three"]);
        world.isles(&["rm", "one", "three", "four", "five", "six", made.trim()]).fine();
        assert_eq!(links(), [""; 0]);
    });
}

#[test]
fn several_are_removed_at_once() {
    everyone(|world| {
        let names = ["one", "two", "three", "four"];
        for name in names {
            let script = "mkdir -p /kept/below; echo x > /kept/below/file; exec sleep 1000";
            detached(world, &["--name", name, "--", "sh", "-c", script]).fine();
        }
        world.isles(&["run", "--name", "five", &world.source(), "true"]).fine();
        let said = world.isles(&["rm", "one", "five"]);
        assert_eq!(said.out, "five\n");
        said.fails(1, &["one", "running"]);
        let said = world.isles(&[&["rm", "-f", "nobody"], &names[..]].concat()).fine();
        assert_eq!(said, "one\ntwo\nthree\nfour\n");
        // All that they wrote is gone when the command comes back.
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
        let left: Vec<_> = fs::read_dir(world.path("state/tmp")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn what_goes_along_with_a_log_is_printed_where_it_is_asked_for() {
    everyone(|world| {
        let options = ["--name", "one", "--label", "part=b c", "-e", "KEY=v", "-e", "OTHER=x"];
        let log = ["--log-opt", "labels=part,none", "--log-opt", "env=KEY", "--log-opt", "tag={{.Name}}"];
        let program = ["--", "sh", "-c", "echo out"];
        detached(world, &[&options[..], &log, &program].concat()).fine();
        world.isles(&["wait", "one"]).fine();
        assert_eq!(world.isles(&["logs", "one"]).fine(), "out\n");
        assert_eq!(world.isles(&["logs", "--details", "one"]).fine(), "KEY=v,part=b+c,tag=one out\n");
        let shown = inspect(world, "one")["HostConfig"]["LogConfig"]["Config"].clone();
        assert_eq!((shown["labels"].as_str(), shown["tag"].as_str()), (Some("part,none"), Some("{{.Name}}")));
        let cri = ["--log-driver", "cri", "--log-opt", "env=KEY", "--", "true"];
        detached(world, &cri).fails(125, &["cri"]);
    });
}

#[test]
fn whoever_of_it_the_kernel_kills_for_memory_is_told() {
    everyone(|world| {
        let script = "head -c 200000000 /dev/zero | tail -c 150000000 > /dev/null; exit 3";
        let options = ["--memory", "32m", "--name", "large", "--", "sh", "-c", script];
        let made = detached(world, &options);
        if made.code != 0 && made.err.contains("memory controller") {
            println!("skip: {:?} cannot limit memory here", world.who);
            return;
        }
        made.fine();
        assert_eq!(world.isles(&["wait", "large"]).fine(), "3\n");
        assert_eq!(inspect(world, "large")["State"]["OOMKilled"], true);
    });
}
