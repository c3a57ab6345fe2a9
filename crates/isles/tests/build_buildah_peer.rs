//! buildah builds the same Dockerfile: the same files, the same configuration.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each copy has a place of its own, so that one build shows them all.
const DOCKERFILE: &str = r#"ARG BASE=scratch
FROM ${BASE} AS first
ADD base.tar /
COPY a.txt /c1/new
COPY a.txt /open
COPY a.txt /c2/y/
COPY *.txt /c3/
COPY dir /c4
COPY dir/ /c5/
COPY dir/* /c6/
COPY dir/sub /c7/deep/er/
COPY ln /c8
COPY dir/inner /c9
COPY a.txt /link/
COPY b.txt /lib/x
COPY --chown=app:staff dir /c10
COPY --chown=7:8 a.txt /c11/d/
COPY --chmod=600 dir /c12
ADD x.tar /c13/
ADD --chown=1:2 a.txt b.txt /c14/
WORKDIR /c15/x
COPY a.txt .
WORKDIR y
COPY . all/
USER app
WORKDIR /c16
FROM scratch
ARG V=1
COPY --from=first / /
COPY --from=0 /c10 /d1
ENV A=1 B="two words" C=$V
ENV A=2 D=$A
WORKDIR /c1
LABEL k=v "two words"='x y'
EXPOSE 80 53/udp
VOLUME /v
STOPSIGNAL SIGINT
USER app:staff
CMD echo hi
ENTRYPOINT ["/bin/echo", "e"]
"#;

struct World(tempfile::TempDir);

impl World {
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        let context = world.path("context");
        std::fs::create_dir_all(context.join("dir/sub")).unwrap();
        for (path, text, mode) in [
            ("a.txt", "a", 0o640),
            ("b.txt", "b", 0o644),
            ("dir/one", "1", 0o755),
            ("dir/sub/two", "2", 0o600),
        ] {
            std::fs::write(context.join(path), text).unwrap();
            std::fs::set_permissions(context.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for (path, mode) in [("dir", 0o750), ("dir/sub", 0o700)] {
            std::fs::set_permissions(context.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink("a.txt", context.join("ln")).unwrap();
        std::os::unix::fs::symlink("one", context.join("dir/inner")).unwrap();
        std::fs::write(context.join("ignored"), "x").unwrap();
        std::fs::write(context.join(".dockerignore"), "*gnored\nDockerfile\n*.tar\n!x.tar\n!base.tar\n")
            .unwrap();
        std::fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
        let base = world.path("base");
        for path in ["etc", "usr/lib", "data/real", "open"] {
            std::fs::create_dir_all(base.join(path)).unwrap();
        }
        std::fs::set_permissions(base.join("open"), std::fs::Permissions::from_mode(0o775)).unwrap();
        std::fs::write(base.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
            .unwrap();
        std::fs::write(base.join("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
        std::os::unix::fs::symlink("/data/real", base.join("link")).unwrap();
        std::os::unix::fs::symlink("usr/lib", base.join("lib")).unwrap();
        // An entry for the top is left out: docker ignores it, buildah does not.
        for (archive, tree, names) in [
            ("base.tar", &base, &["etc", "usr", "data", "open", "link", "lib"][..]),
            ("x.tar", &context.join("dir"), &["one", "sub", "inner"]),
        ] {
            let archive = context.join(archive);
            let made = Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(archive).args(names).status();
            assert!(made.unwrap().success());
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, command: &mut Command) -> String {
        let out = command
            .env("ISLES_ROOT", self.path("state"))
            .env("BUILDAH_ISOLATION", "chroot")
            .output()
            .unwrap();
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn isles(&self, args: &[&str]) -> String {
        self.run(Command::new(env!("CARGO_BIN_EXE_isles")).args(args))
    }

    fn buildah(&self, args: &[&str]) -> String {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.path("buildah")).arg("--runroot").arg(self.path("run"));
        self.run(command.args(["--storage-driver", "vfs"]).args(args))
    }

    /// All files of an image, and its configuration.
    fn look(&self, image: &str) -> (BTreeSet<String>, serde_json::Value) {
        let container = self.buildah(&["from", "--pull-never", image]);
        let root = self.buildah(&["mount", &container]);
        let mut files = BTreeSet::new();
        walk(Path::new(&root), Path::new(&root), &mut files);
        let inspected = self.buildah(&["inspect", "--type", "image", image]);
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        self.buildah(&["rm", &container]);
        (files, inspected["OCIv1"]["config"].clone())
    }
}

fn walk(root: &Path, at: &Path, out: &mut BTreeSet<String>) {
    use std::os::unix::fs::MetadataExt;
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let m = path.symlink_metadata().unwrap();
        let what = if m.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if m.is_file() {
            std::fs::read_to_string(&path).unwrap()
        } else {
            "dir".into()
        };
        let shown = path.strip_prefix(root).unwrap().display();
        out.insert(format!("{shown} {:o} {}:{} {what:?}", m.mode(), m.uid(), m.gid()));
        if m.is_dir() {
            walk(root, &path, out);
        }
    }
}

#[test]
fn buildah_gives_the_same_image() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: buildah needs root here");
        return;
    }
    if Command::new("buildah").arg("--version").output().is_err() {
        println!("skip: buildah is not installed");
        return;
    }
    let world = World::new();
    let context = world.path("context");
    let archive = world.path("ours.tar");
    world.isles(&["build", "-q", "-t", "ours:1", context.to_str().unwrap()]);
    world.isles(&["save", "-o", archive.to_str().unwrap(), "ours:1"]);
    let ours = world.buildah(&["pull", "-q", &format!("docker-archive:{}", archive.display())]);
    world.buildah(&[
        "bud",
        "-q",
        "--format=docker",
        "--layers=false",
        "-t",
        "theirs",
        context.to_str().unwrap(),
    ]);
    let (our_files, our_config) = world.look(&ours);
    let (their_files, their_config) = world.look("localhost/theirs");
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    // BuildKit gives the mode of --chmod to the folders that it makes as well; buildah does not.
    assert_eq!(only(&our_files, &their_files), ["c12 40600 0:0 \"dir\""]);
    assert_eq!(only(&their_files, &our_files), ["c12 40755 0:0 \"dir\""]);
    assert!(our_files.len() > 60, "{}", our_files.len());
    for member in ["User", "ExposedPorts", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "StopSignal"] {
        assert_eq!(our_config[member], their_config[member], "{member}");
    }
    for (name, value) in [("k", "v"), ("two words", "x y")] {
        assert_eq!(our_config["Labels"][name], value);
        assert_eq!(their_config["Labels"][name], value);
    }
    // Both set PATH; the rest is the same and in the same order.
    let variables = |config: &serde_json::Value| {
        let list = config["Env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned());
        list.filter(|v| !v.starts_with("PATH=")).collect::<Vec<_>>()
    };
    assert_eq!(variables(&our_config), variables(&their_config));
}

/// Whether a peer that needs root can run.
fn usable(program: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skip: {program} needs root here");
        return false;
    }
    if Command::new(program).arg("--version").output().is_err() {
        println!("skip: {program} is not installed");
        return false;
    }
    true
}

const SHELL: &str = "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"for a in sh cat rm \
                     echo ls; do /bin/busybox ln -s busybox /bin/$a; done; echo 1 > /one; echo 2 > /two\"]\n\
                     RUN rm /one\nENV A=\"x y\"\nCMD echo $A; cat /two\n";

/// A context with a busybox and a Dockerfile; gives its path.
fn context_of(world: &World, name: &str, dockerfile: &str) -> String {
    let context = world.path(name);
    std::fs::create_dir_all(&context).unwrap();
    std::fs::copy("/bin/busybox", context.join("busybox")).unwrap();
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    context.display().to_string()
}

#[test]
fn each_builds_on_the_images_of_the_other() {
    if !usable("buildah") || !Path::new("/bin/busybox").exists() {
        return;
    }
    let world = World::new();
    let more = "FROM BASE\nRUN test -e /one && exit 1; echo 3 > /three; rm /two\nCMD echo $A; ls -d /th*\n";
    let base = context_of(&world, "shell", SHELL);
    let says = "x y\n/three";
    for (format, transport) in [("docker", "docker-archive"), ("oci", "oci-archive"), ("oci", "oci")] {
        world.buildah(&["bud", "-q", "--format", format, "-t", "shell", &base]);
        let at = world.path(&format!("theirs-{format}-{transport}")).display().to_string();
        world.buildah(&[
            "push",
            "-q",
            "localhost/shell",
            &format!("{transport}:{at}:docker.io/library/shell:1"),
        ]);
        let source = if transport == "oci" { format!("oci:{at}") } else { at };
        world.isles(&["load", "-q", "-i", &source]);
        let context = context_of(&world, "more", &more.replace("BASE", "shell:1"));
        world.isles(&["build", "-q", "-t", "more:1", &context]);
        assert_eq!(world.isles(&["run", "--rm", "more:1"]), says, "{format} {transport}");
        world.isles(&["rmi", "-f", "more:1", "shell:1"]);
    }

    // The other way round, and podman runs what comes of it.
    world.isles(&["build", "-q", "-t", "shell:1", &base]);
    for format in ["docker-archive", "oci-archive"] {
        let at = world.path(&format!("ours-{format}")).display().to_string();
        world.isles(&["save", "--format", format, "-o", &at, "shell:1"]);
        let id = world.buildah(&["pull", "-q", &format!("{format}:{at}")]);
        let context = context_of(&world, "more", &more.replace("BASE", &id));
        let made = world.buildah(&["bud", "-q", "--format=docker", "-t", "more", &context]);
        if !usable("podman") || !usable("runc") {
            continue;
        }
        for (image, command, says) in [
            (&id, "echo $A; cat /two; test -e /one || echo gone", "x y\n2\ngone"),
            (&made, "echo $A; ls -d /th*", says),
        ] {
            let mut podman = Command::new("podman");
            podman.arg("--root").arg(world.path("buildah")).arg("--runroot").arg(world.path("run"));
            podman.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]);
            podman.args(["--runtime=runc", "run", "--rm", "--network=none"]);
            // Its own limits are higher than root may set in some containers.
            podman.args([
                "--ulimit=nofile=1024:1024",
                "--ulimit=nproc=1024:1024",
                image,
                "sh",
                "-c",
                command,
            ]);
            assert_eq!(world.run(&mut podman), says, "{format}");
        }
    }
}
