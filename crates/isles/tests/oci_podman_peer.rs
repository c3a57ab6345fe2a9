//! podman runs containers with our OCI runtime, in a storage of its own.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::process::Command;

use bundle::{Bundle, Said};

struct Podman(Bundle);

impl Podman {
    fn new() -> Option<Podman> {
        let bundle = Bundle::root()?;
        if Command::new("podman").arg("--version").output().is_err() {
            println!("skip: podman is not installed");
            return None;
        }
        let podman = Podman(bundle);
        let tree = podman.0.path("tree.tar");
        let packed = Command::new("tar")
            .arg("-C")
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
    let Some(p) = Podman::new() else { return };
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
    let Some(p) = Podman::new() else { return };
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
