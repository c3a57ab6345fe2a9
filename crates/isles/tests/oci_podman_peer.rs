//! podman runs containers with our OCI runtime, in a storage of its own.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::os::unix::process::CommandExt;
use std::process::Command;

use bundle::{Bundle, Said};

struct Podman(Bundle);

impl Podman {
    fn new(bundle: Option<Bundle>) -> Option<Podman> {
        let bundle = bundle?;
        if Command::new("podman").arg("--version").output().is_err() {
            println!("skip: podman is not installed");
            return None;
        }
        for name in ["home", "xdg"] {
            let path = bundle.path(name);
            std::fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(path, Some(bundle.status_owner()), None).unwrap();
        }
        let podman = Podman(bundle);
        let tree = podman.0.path("tree.tar");
        let packed = Command::new("tar")
            .args(["--owner=0", "--group=0", "-C"])
            .arg(podman.0.path("rootfs"))
            .arg("-cf")
            .arg(&tree)
            .arg(".")
            .status();
        assert!(packed.unwrap().success());
        podman.run(&["import", "--quiet", tree.to_str().unwrap(), "bb"]).ok();
        Some(podman)
    }

    fn command(&self, args: &[&str]) -> Command {
        let at = |name: &str| self.0.path("podman").join(name);
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "100", "podman"]);
        command.arg("--root").arg(at("root")).arg("--runroot").arg(at("run")).arg("--tmpdir").arg(at("tmp"));
        command.args(["--cgroup-manager", "cgroupfs", "--storage-driver", "vfs", "--events-backend", "file"]);
        command.arg("--runtime").arg(self.0.path("isles-oci")).args(args);
        // conmon leaves a file where it was started when memory runs out.
        command.current_dir(self.0.path("home"));
        let user = self.0.status_owner();
        if user != 0 {
            command.env("HOME", self.0.path("home")).env("XDG_RUNTIME_DIR", self.0.path("xdg"));
        }
        if user != 0 && bundle::is_root() {
            command.uid(user).gid(user);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.0.finish(self.command(args))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        let _ = self.run(&["image", "rm", "--all", "--force"]);
    }
}

#[test]
fn podman_runs_containers() {
    let Some(p) = Podman::new(Bundle::root()) else { return };
    assert_eq!(p.run(&["run", "--rm", "--network", "none", "bb", "echo", "hello"]).ok(), "hello\n");
    for (args, code) in [
        (&["bb", "sh", "-c", "exit 7"][..], 7),
        (&["bb", "nosuch"], 127),
        (&["bb", "/etc"], 126),
        (&["--init", "bb", "sh", "-c", "kill -9 $$"], 137),
    ] {
        // podman's own init may be missing.
        if args[0] == "--init" && !std::path::Path::new("/usr/libexec/podman/catatonit").exists() {
            continue;
        }
        let mut all = vec!["run", "--rm", "--network", "none"];
        all.extend(args);
        assert_eq!(p.run(&all).code, code, "{args:?}");
    }
    let seen = p.run(&[
        "run", "--rm", "--network", "none", "--read-only", "--user", "1000:1001", "--cap-drop", "all", "--hostname",
        "isle", "--security-opt", "no-new-privileges", "bb", "sh", "-c",
        "id -u; id -g; hostname; touch /x 2>/dev/null || echo read-only; grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status",
    ]);
    assert_eq!(
        seen.ok(),
        "1000\n1001\nisle\nread-only\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    );
    let tty = p.run(&["run", "--rm", "-t", "--network", "none", "bb", "tty"]).ok();
    assert_eq!(tty.trim(), "/dev/pts/0");
}

#[test]
fn podman_rules_a_container() {
    let Some(p) = Podman::new(Bundle::root()) else { return };
    p.run(&[
        "run",
        "-d",
        "--name",
        "one",
        "--network",
        "none",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "bb",
        "sh",
        "-c",
        "echo up; trap 'echo bye; exit 3' TERM; while :; do sleep 1 & wait; done",
    ])
    .ok();
    assert_eq!(p.run(&["exec", "one", "sh", "-c", "echo in; exit 4"]).code, 4);
    assert_eq!(p.run(&["exec", "one", "nosuch"]).code, 127);
    assert_eq!(p.run(&["exec", "-t", "one", "tty"]).ok().trim(), "/dev/pts/0");
    let limit = p.run(&["exec", "one", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
    if limit.code == 0 {
        assert_eq!(limit.out.trim(), (64 << 20).to_string());
    }
    p.run(&["pause", "one"]).ok();
    let status =
        |p: &Podman| p.run(&["inspect", "one", "--format", "{{.State.Status}} {{.State.ExitCode}}"]).ok();
    assert_eq!(status(&p).trim(), "paused 0");
    p.run(&["unpause", "one"]).ok();
    p.run(&["stop", "--time", "20", "one"]).ok();
    assert_eq!(status(&p).trim(), "exited 3");
    assert_eq!(p.run(&["logs", "one"]).ok(), "up\nbye\n");
    p.run(&["start", "one"]).ok();
    p.run(&["kill", "--signal", "KILL", "one"]).ok();
    assert_eq!(p.run(&["wait", "one"]).ok().trim(), "137");
    p.run(&["rm", "one"]).ok();
}

#[test]
fn podman_runs_containers_for_an_ordinary_user() {
    let Some(p) = Podman::new(Bundle::rootless()) else { return };
    let said = p.run(&["run", "--rm", "--network", "none", "bb", "sh", "-c", "id -u; exit 7"]);
    if said.err.contains("newuidmap") || said.err.contains("cannot setup namespace") {
        println!("skip: podman does not run here without root: {}", said.err);
        return;
    }
    assert_eq!((said.code, said.out.as_str()), (7, "0\n"), "{}", said.err);
    p.run(&["run", "-d", "--name", "one", "--network", "none", "bb", "sleep", "1000"]).ok();
    assert_eq!(p.run(&["exec", "one", "sh", "-c", "echo in; exit 4"]).code, 4);
    assert_eq!(p.run(&["exec", "-t", "one", "tty"]).ok().trim(), "/dev/pts/0");
    assert!(p.run(&["top", "one"]).ok().contains("sleep 1000"));
    p.run(&["kill", "--signal", "KILL", "one"]).ok();
    assert_eq!(p.run(&["wait", "one"]).ok().trim(), "137");
    p.run(&["rm", "one"]).ok();
}

#[test]
fn podman_limits_and_counts() {
    let Some(p) = Podman::new(Bundle::root()) else { return };
    let quiet = ["run", "--rm", "--network", "none"];
    let run = |more: &[&str]| p.run(&[&quiet[..], more].concat());
    let eat = "x=x; while :; do x=$x$x$x$x; done";
    assert_eq!(run(&["--memory", "24m", "--memory-swap", "24m", "bb", "sh", "-c", eat]).code, 137);
    let forks = "i=0; while [ $i -lt 30 ]; do sleep 3 & i=$((i+1)); done; echo all";
    let said = run(&["--pids-limit", "10", "bb", "sh", "-c", forks]);
    assert!(said.code != 0 && said.err.contains("can't fork"), "{}{}", said.out, said.err);
    let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    assert_eq!(run(&["--cpus", "0.25", "bb", "sh", "-c", quota]).ok(), "25000\n");
    let cpus = run(&["--cpuset-cpus", "0", "bb", "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(cpus.ok(), "Cpus_allowed_list:\t0\n");

    let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000";
    p.run(&["run", "-d", "--name", "one", "--network", "none", "bb", "sh", "-c", busy]).ok();
    // The logs end with the container, so they are followed only as far as the line that is waited for.
    let follow = p.command(&["logs", "--follow", "one"]).stdout(std::process::Stdio::piped()).spawn();
    let mut follow = follow.unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(follow.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "done\n");
    let numbers = p.run(&["stats", "--no-stream", "--format", "json", "one"]).ok();
    let numbers: serde_json::Value = serde_json::from_str(&numbers).unwrap();
    let number = |name: &str| numbers[0][name].as_str().unwrap().to_owned();
    assert!(!number("mem_usage").starts_with("0B"), "{numbers}");
    assert_ne!(number("pids"), "0", "{numbers}");
    assert_ne!(number("cpu_time"), "0s", "{numbers}");
    p.run(&["rm", "--force", "--time", "0", "one"]).ok();
    let _ = follow.wait();
}

#[test]
fn podman_gives_a_terminal_that_changes_its_size() {
    let Some(p) = Podman::new(Bundle::root()) else { return };
    p.run(&["run", "-d", "--name", "one", "--network", "none", "bb", "sleep", "1000"]).ok();
    bundle::resizes(&p.0, p.command(&["exec", "-it", "one", "sh", "-c", bundle::WATCH_SIZE]));
}
