//! Clocks that jump, and those of a machine that has been up for long: containers go on as if nothing had happened.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::process::Stdio;

use world::{Said, Who, World, everyone};

/// `isles run -d [options] IMAGE [command]`: what comes before `--` are options.
fn detached(world: &World, words: &[&str]) -> Said {
    let source = world.source();
    let at = words.iter().position(|word| *word == "--").unwrap();
    world.isles(&[&["run", "-d"], &words[..at], &[source.as_str()], &words[at + 1..]].concat())
}

/// Changes a time that is written down in a container's state, as a clock that has jumped by then would have.
fn jump(world: &World, id: &str, field: &str, nanoseconds: i64) {
    let path = world.path("state/containers").join(id.trim()).join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let time = state[field].as_u64().unwrap().checked_add_signed(nanoseconds).unwrap();
    state[field] = time.into();
    let aside = path.with_extension("aside");
    fs::write(&aside, serde_json::to_vec(&state).unwrap()).unwrap();
    fs::rename(aside, path).unwrap();
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    const YEAR: i64 = 365 * 24 * 3600 * 1_000_000_000;
    everyone(|world| {
        for by in [YEAR, -YEAR] {
            let id = detached(
                world,
                &[
                    "--name",
                    "one",
                    "--restart",
                    "on-failure:2",
                    "--",
                    "sh",
                    "-c",
                    "until test -e /go; do sleep 0.05; done; exit 3",
                ],
            )
            .fine();
            jump(world, &id, "started", by);
            let waits = world.command(["wait", "one"]).stdout(Stdio::piped()).spawn().unwrap();
            assert_eq!(
                world.isles(&["ps", "--filter", "name=one", "--format", "{{.State}}"]).fine(),
                "running\n"
            );
            world.isles(&["exec", "one", "touch", "/go"]).fine();
            // Its delays are short ones still, and it gives up after two of them.
            assert_eq!(Said::of(waits.wait_with_output().unwrap()).out, "3\n");
            let restarts = world.isles(&["inspect", "-f", "{{.RestartCount}}", "one"]).fine();
            assert_eq!(restarts, "2\n");
            // An end that seems to be long ago, or to come, is none that is waited for.
            jump(world, &id, "finished", by);
            assert_eq!(world.isles(&["wait", "one"]).fine(), "3\n");
            world.isles(&["rm", "one"]).fine();
            // Health and the patience of `stop` go by no clock on a wall either.
            let looks = ["--health-cmd", "true", "--health-interval", "50ms", "--name", "two"];
            let id = detached(world, &[&looks[..], &["--", "sleep", "1000"]].concat()).fine();
            jump(world, &id, "started", by);
            let health = || world.isles(&["inspect", "-f", "{{.State.Health.Status}}", "two"]).fine();
            while health() != "healthy\n" {}
            assert_eq!(world.isles(&["stop", "-t", "1", "two"]).fine(), "two\n");
            let code = world.isles(&["inspect", "-f", "{{.State.ExitCode}}", "two"]).fine();
            assert_eq!(code, "137\n");
            world.isles(&["rm", "two"]).fine();
        }
    });
}

#[test]
fn a_machine_that_has_been_up_for_years() {
    let Some(world) = World::new(Who::Root).filter(|_| World::is_root()) else { return };
    let source = world.source();
    // Its clocks since boot are in a namespace of their own (time_namespaces(7)); whoever looks from outside has others.
    let later = |words: &[&str]| {
        let isles = world.command(words);
        let mut command = std::process::Command::new("unshare");
        command.args(["--time", "--boottime", "300000000", "--monotonic", "300000000"]);
        command.arg(isles.get_program()).args(isles.get_args());
        command.env_clear().envs(isles.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Said::of(command.stdin(Stdio::null()).output().unwrap())
    };
    if later(&["version"]).code != 0 {
        println!("skip: no time namespaces here");
        return;
    }
    let looks = ["--health-cmd", "true", "--health-interval", "50ms", "--restart", "on-failure:1"];
    let run = [&["run", "-d", "--name", "one"], &looks[..], &[&source, "sh", "-c", "sleep 1000"]].concat();
    later(&run).fine();
    while later(&["inspect", "-f", "{{.State.Health.Status}}", "one"]).fine() != "healthy\n" {}
    assert_eq!(later(&["ps", "--format", "{{.State}}"]).fine(), "running\n");
    assert_eq!(later(&["stop", "-t", "1", "one"]).fine(), "one\n");
    assert_eq!(later(&["start", "one"]).fine(), "one\n");
    assert_eq!(later(&["rm", "-f", "one"]).fine(), "one\n");
}
