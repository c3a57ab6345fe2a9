//! From the command line to the exit of `true` in a container: Isles beside bubblewrap, crun, runc, podman and
//! docker, as root and as an ordinary user.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::Isles;
use super::measure::{Case, Outcome, interleave};
use super::peers::{Docker, ORDINARY, busybox_tree, cache, must};
use super::report::{Section, at_most, bound, contenders, faster, promises};
use crate::Result;

const ROUNDS: usize = 40;
const SLOW_ROUNDS: usize = 8;

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("start");
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("tree");
    busybox_tree(&tree)?;
    let tar = work.join("context/tree.tar");
    fs::create_dir_all(work.join("context")).map_err(|e| e.to_string())?;
    must(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."))?;
    fs::write(work.join("context/Dockerfile"), "FROM scratch\nADD tree.tar /\nCMD [\"true\"]\n")
        .map_err(|e| e.to_string())?;

    let root = work.join("isles-root");
    must(isles.command(&root).args(["build", "-q", "-t", "bench"]).arg(work.join("context")))?;
    let home = work.join("home");
    fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    chown(&home, Some(ORDINARY), Some(ORDINARY)).map_err(|e| e.to_string())?;
    must(
        ordinary(isles.command(&home.join("isles")), &home)
            .args(["build", "-q", "-t", "bench"])
            .arg(work.join("context")),
    )?;

    let as_root = || {
        let mut c = isles.command(&root);
        c.args(["run", "--rm", "--network", "none", "bench", "true"]);
        c
    };
    let bwrap = || {
        let mut c = Command::new("bwrap");
        c.args(["--unshare-all", "--bind"])
            .arg(&tree)
            .args(["/", "--proc", "/proc", "--dev", "/dev", "true"]);
        c
    };
    let floor = || {
        let mut c = Command::new("/bin/busybox");
        c.arg("true");
        c
    };
    let roots = interleave(
        vec![
            Case::command("busybox true, no container", floor),
            Case::command("isles run", as_root),
            Case::command("bwrap --unshare-all", bwrap),
        ],
        ROUNDS,
    )?;
    let users = interleave(
        vec![
            Case::command("isles run", || {
                let mut c = ordinary(isles.command(&home.join("isles")), &home);
                c.args(["run", "--rm", "--network", "none", "bench", "true"]);
                c
            }),
            Case::command("bwrap --unshare-all", || ordinary(bwrap(), &home)),
        ],
        ROUNDS,
    )?;

    let (bundles, engines) = beside_engines(&work, &tree, &tar, &as_root)?;

    let mut text = String::from(
        "An image of one static busybox is in the store; `true` runs with all namespaces, docker's capabilities, \
         masks and seccomp profile over an overlay. bubblewrap sets up namespaces only.\n\nAs root:\n\n",
    );
    text += &contenders(&roots, "isles run");
    text += "\nAs an ordinary user without subuids:\n\n";
    text += &contenders(&users, "isles run");
    text += "\nOCI runtimes on a bundle with the configuration that docker writes, cgroup v2 layout:\n\n";
    text += &contenders(&bundles, "isles run");
    text += "\nEngines, `run --rm --network none`:\n\n";
    text += &contenders(&engines, "isles run");
    let mut rows = Vec::new();
    rows.extend(at_most(&roots, "isles run", "bwrap --unshare-all", 1.5));
    rows.extend(at_most(&users, "isles run", "bwrap --unshare-all", 2.0).map(|mut r| {
        r.what += ", as an ordinary user";
        r
    }));
    rows.extend(faster(&bundles, "isles run", "crun run", 3.0));
    rows.extend(faster(&bundles, "isles run", "runc run", 5.0));
    rows.extend(faster(&engines, "isles run", "docker run", 25.0));
    rows.extend(faster(&engines, "isles run", "podman run", 15.0));
    let peak = roots.iter().filter(|o| o.name == "isles run").map(Outcome::peak).max().unwrap_or(0);
    rows.push(bound("peak memory of `isles run`", peak as f64 / 1024.0, 8.0, "MiB"));
    text += &promises(&rows);
    Ok(Section { name: "start", title: "Starting a container", text })
}

/// The same command as an ordinary user.
pub fn ordinary(mut command: Command, home: &Path) -> Command {
    command.uid(ORDINARY).gid(ORDINARY).env("HOME", home).env_remove("XDG_RUNTIME_DIR").current_dir("/");
    command
}

fn beside_engines(
    work: &Path,
    tree: &Path,
    tar: &Path,
    isles: &dyn Fn() -> Command,
) -> Result<(Vec<Outcome>, Vec<Outcome>)> {
    let captured = work.join("captured.json");
    let wrapper = work.join("capture-runtime");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nprevious=\nfor word; do\n  [ \"$previous\" = --bundle ] && cp \"$word/config.json\" {}\n  previous=$word\ndone\nexec runc \"$@\"\n",
            captured.display()
        ),
    )
    .and_then(|()| fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)))
    .map_err(|e| format!("{}: {e}", wrapper.display()))?;
    let docker = Docker::start(&work.join("docker"), &[("capture", &wrapper)])?;
    must(docker.command().arg("import").arg(tar).arg("bench"))?;
    must(docker.command().args([
        "run",
        "--rm",
        "--network",
        "none",
        "--runtime",
        "capture",
        "bench",
        "true",
    ]))?;

    let bundle = work.join("bundle");
    write_bundle(&captured, &bundle, tree)?;
    let v2 = V2Layout::new()?;
    let oci = |runtime: &'static str| {
        let (bundle, state, v2) = (bundle.clone(), work.join(format!("{runtime}-state")), &v2);
        move || {
            let mut c = v2.inside(Command::new(runtime));
            c.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle).arg("bench");
            c
        }
    };
    let bundles = interleave(
        vec![
            Case::command("isles run", || v2.inside(isles())),
            Case::command("crun run", oci("crun")),
            Case::command("runc run", oci("runc")),
        ],
        ROUNDS / 2,
    )?;

    let podman = |args: &[&str]| {
        let mut c = Command::new("podman");
        c.arg("--root").arg(work.join("podman")).arg("--runroot").arg(work.join("podman-run"));
        c.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--storage-driver", "overlay"])
            .args(args);
        c
    };
    must(podman(&["import", "-q"]).arg(tar).arg("bench"))?;
    let engines = interleave(
        vec![
            Case::command("isles run", isles),
            Case::command("docker run", || {
                let mut c = docker.command();
                c.args(["run", "--rm", "--network", "none", "bench", "true"]);
                c
            }),
            Case::command("podman run", || {
                // Its default limits are above what a process without CAP_SYS_RESOURCE may set.
                let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
                let mut c = podman(&["run", "--rm", "--network", "none"]);
                c.args(limits).args(["localhost/bench", "true"]);
                c
            }),
        ],
        SLOW_ROUNDS,
    )?;
    Ok((bundles, engines))
}

/// A bundle from what docker gave its runtime, without what only docker can serve: its hooks, its mounts from
/// its own state, the path of its network namespace and of its cgroup.
fn write_bundle(captured: &Path, bundle: &Path, tree: &Path) -> Result<()> {
    let text = fs::read_to_string(captured).map_err(|e| format!("{}: {e}", captured.display()))?;
    let mut config: Value =
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", captured.display()))?;
    config["root"] = json!({ "path": tree, "readonly": false });
    config["process"]["args"] = json!(["true"]);
    config["process"]["terminal"] = json!(false);
    if let Some(process) = config["process"].as_object_mut() {
        process.remove("rlimits");
    }
    if let Some(top) = config.as_object_mut() {
        top.remove("hooks");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|m| m["type"] != "bind");
    }
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.insert("cgroupsPath".into(), json!("/isles-bench"));
        linux.remove("resources");
        linux.remove("sysctl");
    }
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        for namespace in namespaces.iter_mut().filter_map(Value::as_object_mut) {
            namespace.remove("path");
        }
    }
    let path = bundle.join("config.json");
    fs::create_dir_all(bundle)
        .and_then(|()| fs::write(&path, config.to_string()))
        .map_err(|e| format!("{}: {e}", path.display()))
}

/// A mount namespace in which /sys/fs/cgroup is cgroup v2 alone, because crun refuses a hybrid layout.
struct V2Layout {
    holder: Child,
    namespace: OwnedFd,
}

impl V2Layout {
    fn new() -> Result<V2Layout> {
        let script = "if [ -d /sys/fs/cgroup/unified ]; then mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup || exit 1; fi; echo ready; exec sleep 100000";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let mut line = String::new();
        if let Some(out) = holder.stdout.take() {
            let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line);
        }
        if line.trim() != "ready" {
            return Err("could not make a cgroup v2 layout".into());
        }
        let path = PathBuf::from(format!("/proc/{}/ns/mnt", holder.id()));
        let namespace = fs::File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?.into();
        Ok(V2Layout { holder, namespace })
    }

    fn inside(&self, mut command: Command) -> Command {
        let fd = self.namespace.as_raw_fd();
        // SAFETY: setns(2) is async-signal-safe, and the descriptor outlives the command.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(fd, libc::CLONE_NEWNS) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        command
    }
}

impl Drop for V2Layout {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
