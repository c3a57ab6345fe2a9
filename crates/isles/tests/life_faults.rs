//! Whoever takes part in the life of a container is killed at any moment: the caller, the monitor, the program. Whatever that
//! leaves is gone after the next command.
//!
//! `ISLES_FAULTS=500` kills so often; by default it is a few times.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use world::{Said, Who, World};

fn times(usual: u32) -> u32 {
    std::env::var("ISLES_FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Numbers that nobody foresees, and that can be had again.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("ISLES_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
        println!("ISLES_SEED={seed}");
        Dice(seed)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn kill(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// What the machine has of a world: processes, mounts, control groups, devices, elements of the firewall, folders.
fn leftovers(world: &World) -> BTreeSet<String> {
    let state = world.path("state").into_os_string().into_string().unwrap();
    let mut all = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Ok(pid) = name.parse::<u32>() else { continue };
        if pid == std::process::id() {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let mark = mark(world);
        if line.contains(&state) || line.contains(&mark) {
            all.insert(format!("process {pid} {line}"));
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|l| l.contains(&state)) {
        all.insert(format!("mount {line}"));
    }
    for name in ["containers", "leases", "tmp"] {
        let Ok(entries) = fs::read_dir(format!("{state}/{name}")) else { continue };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir() || name != "containers") {
            all.insert(format!("folder {}", entry.path().display()));
        }
    }
    for name in ["endpoints", "addresses"] {
        let found =
            Command::new("find").arg(format!("{state}/networks/{name}")).args(["-type", "f"]).output();
        let text = String::from_utf8_lossy(&found.unwrap().stdout).into_owned();
        all.extend(text.lines().map(|line| format!("place {line}")));
    }
    if world.who == Who::Root {
        let ip = world.host_command(&["/bin/busybox", "ip", "-o", "link"]).output().unwrap();
        let text = String::from_utf8_lossy(&ip.stdout).into_owned();
        all.extend(text.lines().filter(|l| l.contains(": iv")).map(|line| format!("device {line}")));
        let nft =
            world.host_command(&["/usr/sbin/nft", "list", "map", "inet", "isles", "anywhere4"]).output();
        let text = String::from_utf8_lossy(&nft.unwrap().stdout).into_owned();
        all.extend(
            text.lines()
                .filter(|l| l.contains(" : ") && !l.contains("type"))
                .map(|line| format!("element {line}")),
        );
    }
    let groups =
        Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name"]).arg(group(world)).output();
    let text = String::from_utf8_lossy(&groups.unwrap().stdout).into_owned();
    all.extend(text.lines().map(|line| format!("group {line}")));
    all
}

/// The names of the world's control groups.
fn group(world: &World) -> String {
    let path = world.path("state");
    let found = fs::metadata(&path).unwrap();
    let (device, number) =
        (std::os::unix::fs::MetadataExt::dev(&found), std::os::unix::fs::MetadataExt::ino(&found));
    let parts = [path.as_os_str().as_encoded_bytes(), &device.to_le_bytes(), &number.to_le_bytes()];
    format!("isles-{}-*", &isles_store::Store::cache_key(parts).hex()[..8])
}

/// By which the programs of a world are known.
fn mark(world: &World) -> String {
    let name = world.path("state").parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    format!("mark-{name}")
}

/// Waits for the kernel, which takes namespaces apart in its own time.
fn nothing_is_left(world: &World, what: &str) {
    let begin = Instant::now();
    loop {
        let left = leftovers(world);
        if left.is_empty() {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}: after {what}: {left:#?}", world.who);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn state(world: &World, name: &str) -> serde_json::Value {
    let id = world.isles(&["inspect", "-f", "{{.Id}}", name]).out;
    let file = world.path("state/containers").join(id.trim()).join("state.json");
    serde_json::from_slice(&fs::read(file).unwrap_or_default()).unwrap_or_default()
}

fn begin(world: &World, words: &[&str]) -> Child {
    let mut command = world.command(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn faults(who: Who, usual: u32) {
    let Some(world) = World::new(who) else { return };
    let world = if who == Who::Root && World::is_root() { world.with_own_network() } else { world };
    let source = world.source();
    world.run(&["true"]).fine();
    world.isles(&["network", "create", "side"]).fine();
    let mut dice = Dice::new();
    let mark = mark(&world);
    let script = format!("trap 'exit 0' TERM; echo {mark}; while :; do busybox sleep 100 & wait; done");
    let port = if who == Who::Root { "8080:80" } else { "127.0.0.1::80" };
    for round in 0..times(usual) {
        world.isles(&["run", "-d", "--name", "one", "-p", port, &source, "sh", "-c", &script, &mark]).fine();
        let operations: [&[&str]; 10] = [
            &["create", "--name", "two", &source, "true", &mark],
            &["run", "-d", "--name", "two", &source, "sh", "-c", &script, &mark],
            &["run", "--rm", "--name", "two", &source, "sh", "-c", ":", &mark],
            &["exec", "one", "sh", "-c", "busybox usleep 3000", &mark],
            &["stop", "-t", "1", "one"],
            &["restart", "-t", "1", "one"],
            &["rm", "-f", "one"],
            &["kill", "one"],
            &["network", "connect", "--alias", "x", "side", "one"],
            &["network", "disconnect", "side", "one"],
        ];
        let words = operations[dice.roll(operations.len() as u64) as usize];
        if words[..2] == ["network", "disconnect"] {
            world.isles(&["network", "connect", "side", "one"]).fine();
        }
        let before = state(&world, "one");
        let mut client = begin(&world, words);
        std::thread::sleep(Duration::from_micros(dice.roll(30_000)));
        let victim = dice.roll(3);
        let number = |value: &serde_json::Value| value.as_i64().map(|pid| pid as i32);
        let victim = match victim {
            0 => Some(client.id().cast_signed()),
            1 => number(&before["monitor"][0]),
            _ => number(&before["pid"]),
        };
        victim.into_iter().for_each(kill);
        let what = format!("round {round}: {words:?}, killed {victim:?} of {before}");
        // Whoever waits for something hears of the end, whatever happened to it.
        let begin = Instant::now();
        while client.try_wait().unwrap().is_none() {
            if begin.elapsed() > Duration::from_secs(30) {
                kill(client.id().cast_signed());
                panic!("{who:?}: hangs: {what}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let all = world.isles(&["ps", "-aq", "--no-trunc"]).fine();
        let words: Vec<&str> = ["rm", "-f"].into_iter().chain(all.lines()).collect();
        if words.len() > 2 {
            let said = world.isles(&words);
            assert_eq!(said.code, 0, "{what}: {said:?}");
        }
        nothing_is_left(&world, &what);
    }
}

#[test]
fn killed_at_any_moment_as_root() {
    if World::is_root() {
        faults(Who::Root, 20);
    } else {
        println!("skip: not root");
    }
}

#[test]
fn killed_at_any_moment_as_an_ordinary_user() {
    faults(Who::Ordinary, 20);
}

#[test]
fn no_exit_code_is_lost() {
    // 10,000 with ISLES_FAULTS=10000.
    let Some(world) = World::new(Who::Root) else { return };
    let source = world.source();
    world.run(&["true"]).fine();
    for number in 0..times(25) {
        let code = (number % 126).to_string();
        let script = format!("exit {code}");
        let id = world.isles(&["run", "-d", &source, "sh", "-c", &script]).fine();
        assert_eq!(world.isles(&["wait", id.trim()]).fine().trim(), code, "{number}");
        world.isles(&["rm", id.trim()]).fine();
        let said: Said = world.isles(&["run", "--rm", &source, "sh", "-c", &script]);
        assert_eq!(said.code.to_string(), code, "{number}");
    }
}

#[test]
fn a_full_disk_loses_nothing_but_lines_of_logs() {
    if !World::is_root() {
        println!("skip: only root can make a small disk");
        return;
    }
    let Some(world) = World::new(Who::Root) else { return };
    // Everything on a disk of its own, which nobody else sees.
    let script = r#"
        set -u
        mkdir disk && mount -t tmpfs -o size=24m none disk || exit 99
        export ISLES_ROOT=$PWD/disk/state ISLES_NETWORK=host
        "$1" run --rm "$2" true || exit 1
        # It prints more than fits, and goes on all the same.
        print='busybox yes 0123456789 | busybox head -c 30000000; echo ready > /proc/1/fd/2; busybox sleep 0.3; exit 7'
        "$1" run -d --name loud --log-opt max-size=1g "$2" sh -c "$print" > /dev/null || exit 2
        test "$("$1" wait loud)" = 7 || exit 3
        "$1" logs loud 2> /dev/null | sort -u > lines || exit 4
        # What is lost begins and ends anywhere in a line, so there may be pieces of it, and nothing else.
        grep -qx 0123456789 lines || exit 5
        while read -r line; do
            case 0123456789 in *"$line"*) ;; *) exit 5 ;; esac
        done < lines
        # Nothing more can be made, and nothing is left of what could not.
        dd if=/dev/zero of=disk/filler bs=4k 2> /dev/null
        for command in "run --rm" "run -d" "create"; do
            "$1" $command --name other "$2" sh -c 'echo x' > /dev/null 2> said && exit 6
            grep -q 'No space left on device' said || exit 7
        done
        test "$("$1" ps -a --format '{{.Names}} {{.State}}')" = "loud exited" || exit 8
        "$1" start loud 2> said && exit 9
        grep -q 'No space left on device' said || exit 10
        test "$("$1" ps -a --format '{{.Names}}')" = "loud" || exit 11
        "$1" rm loud || exit 12
        rm disk/filler
        test "$("$1" run --rm "$2" echo again)" = again || exit 13
        test "$(ls -A disk/state/leases disk/state/tmp | grep -v : | grep .)" = "" || exit 14
    "#;
    let program = world.path("isles");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(program).arg(world.source());
    let said = Said::of(command.current_dir(world.path("home")).output().unwrap());
    if said.code == 99 {
        println!("skip: no tmpfs can be mounted here: {}", said.err);
        return;
    }
    said.fine();
}
