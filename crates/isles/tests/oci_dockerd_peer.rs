//! dockerd, with its containerd, runs containers with our OCI runtime: a daemon of its own, on its own socket.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::process::{Child, Command, Stdio};

use bundle::{Bundle, Said};

struct Docker {
    bundle: Bundle,
    daemon: Child,
}

impl Docker {
    fn new() -> Option<Docker> {
        let bundle = Bundle::root()?;
        for program in ["dockerd", "docker", "containerd"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("skip: {program} is not installed");
                return None;
            }
        }
        let mut runtime = std::ffi::OsString::from("isles=");
        runtime.push(bundle.path("isles-oci"));
        let mut socket = std::ffi::OsString::from("unix://");
        socket.push(bundle.path("docker.sock"));
        let log = std::fs::File::create(bundle.path("dockerd.log")).unwrap();
        let mut daemon = Command::new("dockerd");
        daemon.arg("--data-root").arg(bundle.path("data")).arg("--exec-root").arg(bundle.path("exec"));
        daemon.arg("--host").arg(&socket).arg("--pidfile").arg(bundle.path("dockerd.pid"));
        daemon.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"]);
        daemon.args(["--default-runtime", "isles"]).arg("--add-runtime").arg(runtime);
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let docker = Docker { daemon: daemon.spawn().unwrap(), bundle };
        let mut started = false;
        for _ in 0..200 {
            // The client itself waits for a daemon that has its socket but does not answer yet.
            started = docker.bundle.path("docker.sock").exists() && docker.run(&["version"]).code == 0;
            if started {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        if !started {
            let log = std::fs::read_to_string(docker.bundle.path("dockerd.log")).unwrap_or_default();
            println!("skip: dockerd does not start here: {}", log.lines().last().unwrap_or_default());
            return None;
        }
        let tree = docker.bundle.path("tree.tar");
        let rootfs = docker.bundle.path("rootfs");
        let packed = Command::new("tar").arg("-C").arg(rootfs).arg("-cf").arg(&tree).arg(".").status();
        assert!(packed.unwrap().success());
        docker.run(&["import", tree.to_str().unwrap(), "bb"]).ok();
        Some(docker)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut socket = std::ffi::OsString::from("unix://");
        socket.push(self.bundle.path("docker.sock"));
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "100", "docker", "--host"]).arg(socket).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.bundle.finish(self.command(args))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let ids = self.run(&["ps", "--all", "--quiet"]).out;
        for id in ids.lines() {
            let _ = self.run(&["rm", "--force", id]);
        }
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

#[test]
fn dockerd_runs_containers() {
    let Some(d) = Docker::new() else { return };
    assert_eq!(d.run(&["run", "--rm", "--network", "none", "bb", "echo", "hello"]).ok(), "hello\n");
    for (args, code) in [
        (&["bb", "sh", "-c", "exit 7"][..], 7),
        (&["bb", "nosuch"], 127),
        (&["bb", "/etc"], 126),
        (&["--privileged", "bb", "sh", "-c", "mkdir /sys/kernel/x || exit 8"], 8),
    ] {
        let mut all = vec!["run", "--rm", "--network", "none"];
        all.extend(args);
        assert_eq!(d.run(&all).code, code, "{args:?}");
    }
    let seen = d.run(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        "5:6",
        "--group-add",
        "7",
        "--tmpfs",
        "/t:size=1m",
        "--shm-size",
        "1m",
        "--ulimit",
        "nofile=512",
        "--oom-score-adj",
        "500",
        "bb",
        "sh",
        "-c",
        "id -u; id -G; ulimit -n; cat /proc/self/oom_score_adj; grep -E 'CapBnd|Seccomp:' /proc/self/status;
         grep -c ' /t tmpfs\\| /dev/shm tmpfs' /proc/mounts; mkdir /proc/sys/x 2>&1 | grep -c 'can.t create'",
    ]);
    assert_eq!(seen.ok(), "5\n6 7\n512\n500\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n2\n1\n");
    assert_eq!(d.run(&["run", "--rm", "-t", "--network", "none", "bb", "tty"]).ok().trim(), "/dev/pts/0");

    d.run(&[
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
    assert_eq!(d.run(&["exec", "one", "sh", "-c", "echo in; exit 4"]).code, 4);
    assert_eq!(d.run(&["exec", "-t", "one", "tty"]).ok().trim(), "/dev/pts/0");
    let limit = |d: &Docker| d.run(&["exec", "one", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
    if limit(&d).code == 0 {
        assert_eq!(limit(&d).out.trim(), (64 << 20).to_string());
        d.run(&["update", "--memory", "128m", "--memory-swap", "256m", "one"]).ok();
        assert_eq!(limit(&d).out.trim(), (128 << 20).to_string());
    }
    bundle::resizes(&d.bundle, d.command(&["exec", "-it", "one", "sh", "-c", bundle::WATCH_SIZE]));
    let numbers = d.run(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one"]).ok();
    assert!(!numbers.starts_with("0B") && numbers.trim().ends_with(" 2"), "{numbers}");
    let eat = "x=x; while :; do x=$x$x$x$x; done";
    let limited = ["run", "--name", "two", "--network", "none", "--memory", "24m", "--memory-swap", "24m"];
    assert_eq!(d.run(&[&limited[..], &["bb", "sh", "-c", eat]].concat()).code, 137);
    assert_eq!(d.run(&["inspect", "two", "--format", "{{.State.OOMKilled}}"]).ok(), "true\n");
    let status =
        |d: &Docker| d.run(&["inspect", "one", "--format", "{{.State.Status}} {{.State.ExitCode}}"]).ok();
    d.run(&["pause", "one"]).ok();
    assert_eq!(status(&d).trim(), "paused 0");
    d.run(&["unpause", "one"]).ok();
    assert!(d.run(&["top", "one"]).ok().contains("echo up"));
    d.run(&["stop", "--time", "20", "one"]).ok();
    assert_eq!(status(&d).trim(), "exited 3");
    assert_eq!(d.run(&["logs", "one"]).ok(), "up\nbye\n");
    d.run(&["start", "one"]).ok();
    d.run(&["kill", "one"]).ok();
    assert_eq!(d.run(&["wait", "one"]).ok().trim(), "137");
    d.run(&["rm", "one"]).ok();
}
