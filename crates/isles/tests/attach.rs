//! Those who have a container's streams: several at once, on terminals, and how they let go of it.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use world::{Running, Session, World, everyone};

const ECHO: &str = "echo ready; while read line; do echo got $line; done; exit 5";

fn state(world: &World, name: &str) -> String {
    let filter = format!("name={name}");
    world.isles(&["ps", "-a", "--filter", &filter, "--format", "{{.State}}"]).fine().trim().to_owned()
}

/// `isles run --rm --name one [options] IMAGE sh -c SCRIPT`
fn run(world: &World, options: &[&str], script: &str) -> std::process::Command {
    world.run_command(&[options, &["--name", "one", "--", "sh", "-c", script]].concat())
}

#[test]
fn who_is_in_the_foreground_has_company() {
    everyone(|world| {
        let mut first = Session::start(&mut run(world, &["-it"], ECHO));
        first.until("ready");
        let mut second = Session::start(&mut world.command(["attach", "one"]));
        // Each hears what the other one types, and what comes of it.
        while !second_hears(&mut first, &mut second) {}
        second.types(b"b\r");
        first.until("got b");
        second.until("got b");
        assert_eq!(world.isles(&["ps", "-q"]).fine().lines().count(), 1);
        // The one goes, and then the other one, and it goes on.
        first.types(b"\x10\x11");
        assert_eq!(first.run.code(), Some(0));
        second.types(b"c\r");
        second.until("got c");
        second.types(b"\x10\x11");
        assert_eq!(second.run.code(), Some(0));
        assert_eq!(state(world, "one"), "running");
        let mut third = Session::start(&mut world.command(["attach", "--detach-keys", "x", "one"]));
        third.types(b"d\r");
        third.until("got d");
        third.types(b"\x10e\r");
        third.until("got \x10e");
        third.types(b"\x04");
        assert_eq!(third.run.code(), Some(5));
        assert_eq!(state(world, "one"), "", "it was to be removed at its end");
    });
}

/// Lets the one type, and says whether the other has heard it. Who has just been started may not be attached yet.
fn second_hears(first: &mut Session, second: &mut Session) -> bool {
    first.types(b"a\r");
    first.until("got a");
    second.hears("got a")
}

#[test]
fn it_ends_with_whoever_it_belongs_to() {
    everyone(|world| {
        // Process 1 that does not listen to HUP, that does, and one without a terminal.
        let listens = "trap 'exit 9' HUP; echo ready; while true; do sleep 0.1; done";
        for (options, script) in [
            (&["-it"][..], "echo ready; exec sleep 1000"),
            (&["-it"], listens),
            (&["-a", "stdout"], "echo ready; exec sleep 1000"),
        ] {
            let mut session = Session::start(&mut run(world, options, script));
            session.until("ready");
            assert_eq!(state(world, "one"), "running");
            let company = world.command(["attach", "--no-stdin", "one"]).stdout(Stdio::null()).spawn();
            session.run.0.kill().unwrap();
            session.run.code();
            let code = company.unwrap().wait().unwrap().code();
            assert!(matches!(code, Some(9 | 129 | 137 | 1)), "{options:?}: {code:?}");
            while world.isles(&["ps", "-aq"]).fine() != "" {}
        }
    });
}

#[test]
fn a_key_that_is_typed_alone_is_the_programs() {
    everyone(|world| {
        let script = "stty raw -echo; echo ready; dd bs=1 count=1 2>/dev/null | od -c; exit 4";
        let mut session = Session::start(&mut run(world, &["-it"], script));
        session.until("ready");
        session.types(b"\x10");
        session.until("020");
        assert_eq!(session.run.code(), Some(4));
    });
}

#[test]
fn streams_that_were_asked_for() {
    everyone(|world| {
        // A program that has the streams of its caller has none for others.
        let (mut plain, line) = Running::start(&mut run(world, &[], "echo ready; exec sleep 1000"));
        assert_eq!(line, "ready\n");
        world.isles(&["attach", "one"]).fails(1, &["attaching to container one is not possible", "--attach"]);
        world.isles(&["logs", "one"]).fails(1, &["reading the log of container one is not possible", "--rm"]);
        world.isles(&["rm", "-f", "one"]).fine();
        assert_eq!(plain.code(), Some(137));
        // One whose streams are asked for has some, and a log.
        let script = "echo out; echo err >&2; read line; echo $line; exit 6";
        for (streams, out, err) in [
            (&["-a", "stdout"][..], "out\ntyped\n", ""),
            (&["-a", "STDERR", "-a", "stdin"], "", "err\n"),
            (&["--attach", "stdout", "--attach", "stderr"], "out\ntyped\n", "err\n"),
            (&["--log-driver", "json-file"], "out\ntyped\n", "err\n"),
        ] {
            let mut command = run(world, &[&["-i"], streams].concat(), script);
            let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = child.spawn().unwrap();
            while world.isles(&["logs", "one"]).out != "out\n" {}
            let mut other = world.command(["attach", "one"]);
            let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            other.stdin.take().unwrap().write_all(b"typed\n").unwrap();
            let mut line = String::new();
            BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "typed\n");
            assert_eq!(other.wait().unwrap().code(), Some(6));
            drop(child.stdin.take());
            let said = world::Said::of(child.wait_with_output().unwrap());
            assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (6, out, err), "{streams:?}");
        }
        // Who sees nothing of it is told its ID.
        let mut command = run(world, &["-i", "-a", "stdin"], "read line; exit 7");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
        let said = world::Said::of(child.wait_with_output().unwrap());
        assert_eq!((said.code, said.out.trim().len()), (7, 64), "{said:?}");
        run(world, &["-d", "-a", "stdout"], "true")
            .output()
            .map(world::Said::of)
            .unwrap()
            .fails(125, &["--attach"]);
    });
}

#[test]
fn whoever_has_the_callers_streams_is_like_others_in_all_else() {
    const ENDS: &str = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.1; done";
    everyone(|world| {
        let json = |words: &[&str]| -> serde_json::Value {
            let out = world.isles(words).fine();
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{words:?}: {e}: {out}"))
        };
        let (mut plain, _) = Running::start(&mut run(world, &["--label", "kind=plain"], ENDS));
        world
            .isles(&["attach", "one"])
            .fails(1, &["attaching to container one is not possible", "without --rm", "-t"]);
        world.isles(&["logs", "one"]).fails(1, &["reading the log of container one is not possible"]);
        assert_eq!(
            world.isles(&["ps", "--filter", "label=kind=plain", "--format", "{{.Names}}"]).fine(),
            "one\n"
        );
        let found = json(&["inspect", "one"]);
        assert_eq!(
            (&found[0]["State"]["Running"], &found[0]["HostConfig"]["AutoRemove"]),
            (&true.into(), &true.into())
        );
        assert_eq!(world.isles(&["exec", "one", "sh", "-c", "echo in > /made; echo said; exit 4"]).code, 4);
        let mut session =
            Session::start(&mut world.command(["exec", "-it", "one", "sh", "-c", "echo ready; read x"]));
        session.until("ready");
        session.types(b"\r");
        assert_eq!(session.run.code(), Some(0));
        assert!(world.isles(&["top", "one"]).fine().contains("sleep 0.1"));
        let used = json(&["stats", "--no-stream", "--format", "json", "one"]);
        assert!(used[0]["PIDs"].as_str().or(used["PIDs"].as_str()).is_some(), "{used}");
        world.isles(&["cp", "one:/made", "made"]).fine();
        assert_eq!(std::fs::read_to_string(world.path("home/made")).unwrap(), "in\n");
        world.isles(&["cp", "made", "one:/again"]).fine();
        assert_eq!(world.isles(&["exec", "one", "cat", "/again"]).fine(), "in\n");
        assert!(world.isles(&["diff", "one"]).fine().contains("A /made\n"));
        assert!(world.isles(&["port", "one"]).fine().is_empty());
        world.isles(&["rename", "one", "two"]).fine();
        world.isles(&["commit", "two", "kept:1"]).fine();
        world.isles(&["export", "-o", "all.tar", "two"]).fine();
        world.isles(&["pause", "two"]).code.eq(&0).then(|| world.isles(&["unpause", "two"]).fine());
        let whose = format!("container={}", found[0]["Id"].as_str().unwrap());
        let events =
            ["events", "--since", "1", "--until", "0s", "--filter", &whose, "--format", "{{.Action}}"];
        let told = world.isles(&events).fine();
        assert!(told.starts_with("create\nstart\n") && told.contains("rename\n"), "{told}");

        // However it ends, whoever waits is told.
        let wait = world.command(["wait", "two"]).stdout(Stdio::piped()).spawn().unwrap();
        world.isles(&["stop", "two"]).fine();
        assert_eq!(plain.code(), Some(7));
        let said = world::Said::of(wait.wait_with_output().unwrap());
        assert!(said.out == "7\n" || said.err.contains("no such container"), "{said:?}");
        for (end, code) in
            [(&["kill", "-s", "TERM", "one"][..], 7), (&["kill", "one"], 137), (&["rm", "-f", "one"], 137)]
        {
            let (mut plain, _) = Running::start(&mut run(world, &[], ENDS));
            let id = world.isles(&["ps", "-q", "--no-trunc"]).fine();
            let mut waits = world.command(["wait", "one"]);
            let waits = waits.stdout(Stdio::piped()).spawn().unwrap();
            // It has what it waits with: a watch of the container's folder.
            while !world::watches(waits.id()) {}
            world.isles(end).fine();
            assert_eq!(plain.code(), Some(code), "{end:?}");
            assert_eq!(
                world::Said::of(waits.wait_with_output().unwrap()).fine(),
                format!("{code}\n"),
                "{end:?}"
            );
            let events = ["events", "--since", "1", "--until", "0s", "--filter", "event=die"];
            let whose = format!("container={}", id.trim());
            let events = [&events[..], &["--filter", &whose]].concat();
            let told = world.isles(&events).fine();
            assert!(told.contains(&format!("exitCode={code}")), "{told}");
            assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
        }
    });
}

#[test]
fn a_plain_run_that_is_kept_has_company_and_a_log() {
    everyone(|world| {
        let source = world.source();
        let script = "echo out; read line; echo $line; exit 6";
        let mut command = world.command(["run", "-i", source.as_str(), "sh", "-c", script]);
        let (mut plain, line) = Running::start(command.stdin(Stdio::piped()));
        assert_eq!(line, "out\n");
        let id = world.isles(&["ps", "-q"]).fine().trim().to_owned();
        let mut other = world.command(["attach", &id]);
        let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        other.stdin.take().unwrap().write_all(b"typed\n").unwrap();
        let said = world::Said::of(other.wait_with_output().unwrap());
        assert_eq!((said.code, said.out.as_str()), (6, "typed\n"), "{said:?}");
        assert_eq!(plain.code(), Some(6));
        assert_eq!(world.isles(&["logs", &id]).fine(), "out\ntyped\n");
        world.isles(&["rm", &id]).fine();
    });
}

#[test]
fn commands_are_let_go_of() {
    everyone(|world| {
        world.isles(&["run", "-d", "--name", "one", &world.source(), "sleep", "1000"]).fine();
        let exec = |script: &str| {
            let mut session = Session::start(&mut world.command(["exec", "-it", "one", "sh", "-c", script]));
            session.until("ready");
            session
        };
        // Its exit code, its terminal's size and what is typed are as without.
        let mut session = exec("test -t 0 && echo ready; read line; echo got $line; exit 3");
        session.types(b"text\r");
        session.until("got text");
        assert_eq!(session.run.code(), Some(3));
        // It goes on, also with what nobody reads.
        let script = "echo ready; until test -e /go; do :; done; seq 1 100000; touch /done; exec sleep 900";
        let mut begun = exec(script);
        begun.types(b"\x10\x11");
        assert_eq!(begun.run.code(), Some(0));
        world.isles(&["exec", "one", "touch", "/go"]).fine();
        while world.isles(&["exec", "one", "test", "-e", "/done"]).code != 0 {}
        while !world.isles(&["exec", "one", "ps"]).fine().contains("sleep 900") {}
        // A terminal that is closed takes it along.
        let gone = exec("echo ready; exec sleep 800");
        assert!(matches!(gone.hang_up(), Some(129 | 137)));
        assert!(!world.isles(&["exec", "one", "ps"]).fine().contains("sleep 800"));
        // And so does the end of whoever had it.
        let mut killed = exec("echo ready; exec sleep 700");
        killed.run.0.kill().unwrap();
        killed.run.code();
        while world.isles(&["exec", "one", "ps"]).fine().contains("sleep 700") {}
        let mut missing = Session::start(&mut world.command(["exec", "-it", "one", "/nowhere"]));
        assert_eq!(missing.run.code(), Some(127));
        missing.until("/nowhere");
        world.isles(&["exec", "-it", "--detach-keys", "ctrl-", "one", "true"]).fails(1, &["detach keys"]);
    });
}
