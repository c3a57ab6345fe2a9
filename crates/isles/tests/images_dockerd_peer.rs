//! dockerd takes our images and gives us its own: by archive and by registry, with the same IDs, and what both
//! say about an image is the same.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::process::{Child, Command, Stdio};

use serde_json::Value;
use shelf::*;

/// A daemon of its own, with overlay2 where that works.
struct Docker<'a> {
    shelf: &'a Shelf,
    daemon: Child,
}

impl Docker<'_> {
    fn start(shelf: &Shelf) -> Option<Docker<'_>> {
        Docker::start_with(shelf, &[])
    }

    fn start_with<'s>(shelf: &'s Shelf, more: &[&str]) -> Option<Docker<'s>> {
        if !rustix::process::geteuid().is_root() {
            println!("skip: dockerd needs root");
            return None;
        }
        for program in ["dockerd", "docker", "containerd"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("skip: {program} is not installed");
                return None;
            }
        }
        let log = std::fs::File::create(shelf.path("dockerd.log")).unwrap();
        let mut daemon = Command::new("dockerd");
        daemon.arg("--data-root").arg(shelf.path("data")).arg("--exec-root").arg(shelf.path("exec"));
        daemon.arg("--host").arg(format!("unix://{}", shelf.path("d.sock").display()));
        daemon.arg("--pidfile").arg(shelf.path("d.pid"));
        daemon.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"]);
        daemon.args(more);
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let docker = Docker { daemon: daemon.spawn().unwrap(), shelf };
        for _ in 0..200 {
            // The client itself waits for a daemon that has its socket but does not answer yet.
            if shelf.path("d.sock").exists() && docker.run(&["version"]).code == Some(0) {
                return Some(docker);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let log = std::fs::read_to_string(shelf.path("dockerd.log")).unwrap_or_default();
        println!("skip: dockerd does not start here: {}", log.lines().last().unwrap_or_default());
        None
    }

    fn run(&self, args: &[&str]) -> Said {
        let host = format!("unix://{}", self.shelf.path("d.sock").display());
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "100", "docker", "--host", &host]).args(args);
        command.env("DOCKER_BUILDKIT", "0");
        Said::of(command.current_dir(self.shelf.path(".")).stdin(Stdio::null()).output().unwrap())
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

fn object(text: &str) -> Value {
    serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"))[0].take()
}

#[test]
fn dockerd_pulls_through_our_mirror() {
    let shelf = both().remove(0);
    let upstream = Served::start(&shelf, "upstream", &[]);
    // What dockerd takes for Docker Hub is the upstream, by way of the mirror.
    let mirror = Served::start(&shelf, "mirror", &["--mirror", &upstream.address]);
    let url = format!("http://{}", mirror.address);
    let Some(docker) = Docker::start_with(&shelf, &["--registry-mirror", &url]) else { return };
    let image = layout(&shelf.path("layout"), "app:1", &[tar(&[("a", &noise(300_000, 1))])]);
    let name = format!("docker://{}/library/isles-test-app:1", upstream.address);
    shelf.isles(&["copy", "-q", "oci:layout", &name]).fine();
    docker.run(&["pull", "-q", "isles-test-app:1"]).fine();
    assert_eq!(docker.run(&["images", "-q", "--no-trunc"]).fine().trim(), image.id().to_string());
    // The upstream goes; what the mirror has is still to be had.
    drop(upstream);
    docker.run(&["rmi", "-f", "isles-test-app:1"]).fine();
    docker.run(&["pull", "-q", "isles-test-app:1"]).fine();
    assert_eq!(docker.run(&["images", "-q", "--no-trunc"]).fine().trim(), image.id().to_string());
}

#[test]
fn dockerd_and_isles_have_the_same_images() {
    let shelf = both().remove(0);
    let layers = [
        tar(&[("bin/sh", &noise(300_000, 1)), ("etc/a", b"1")]),
        tar(&[("etc/hello", b"hello\n"), ("etc/.wh.a", b"")]),
    ];
    let image = layout(&shelf.path("layout"), "app:1", &layers);
    let id = image.id().to_string();
    shelf.isles(&["load", "-q", "-i", "oci:layout"]).fine();
    let Some(docker) = Docker::start(&shelf) else { return };

    // By archive.
    shelf.isles(&["save", "-o", "ours.tar", "app:1"]).fine();
    let said = docker.run(&["load", "-i", "ours.tar"]).fine();
    assert_eq!(said, "Loaded image: app:1\n");
    assert_eq!(docker.run(&["images", "-q", "--no-trunc"]).fine().trim(), id);
    docker.run(&["save", "-o", "theirs.tar", "app:1"]).fine();
    assert_eq!(shelf.isles_in("back", &["load", "-q", "-i", "theirs.tar"]).fine(), said);
    assert_eq!(shelf.isles_in("back", &["images", "-q", "--no-trunc"]).fine().trim(), id);
    assert_eq!(shelf.isles_in("back", &["verify", "--full"]).fine(), "");

    // What both say about it.
    let (theirs, ours) = (
        object(&docker.run(&["inspect", "app:1"]).fine()),
        object(&shelf.isles(&["inspect", "app:1"]).fine()),
    );
    for name in ["Id", "RepoTags", "Created", "Author", "Architecture", "Os", "RootFS", "Parent", "Comment"] {
        assert_eq!(ours[name], theirs[name], "{name}");
    }
    for (name, value) in theirs["Config"].as_object().unwrap() {
        assert_eq!(&ours["Config"][name], value, "Config.{name}");
    }
    for format in ["{{.Id}}", "{{.Architecture}}/{{.Os}}", "{{json .Config.Env}}", "{{json .RootFS.Layers}}"]
    {
        let args = ["inspect", "--format", format, "app:1"];
        assert_eq!(shelf.isles(&args).fine(), docker.run(&args).fine(), "{format}");
    }
    for args in [
        &["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"][..],
        &["images", "-q", "--no-trunc", "app"],
        &["images", "-q", "--filter", "label=color=blue"],
        &["images", "-q", "--filter", "dangling=true"],
        &["history", "-q", "app:1"],
        &["history", "--no-trunc", "--format", "{{.ID}}|{{.CreatedBy}}|{{.Comment}}", "app:1"],
        &["history", "--format", "{{.CreatedBy}}|{{.CreatedSince}}", "app:1"],
    ] {
        assert_eq!(shelf.isles(args).fine(), docker.run(args).fine(), "{args:?}");
    }
    let heads = |text: String| -> Vec<String> {
        let line = text.lines().next().unwrap_or_default().to_owned();
        line.split("  ").map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect()
    };
    for args in [&["images"][..], &["images", "--digests"], &["history", "app:1"]] {
        assert_eq!(heads(shelf.isles(args).fine()), heads(docker.run(args).fine()), "{args:?}");
    }

    // By registry, both ways.
    let Some(registry) = Registry::start(false) else { return };
    let ours = format!("{}/ours:1", registry.address);
    let theirs = format!("{}/theirs:1", registry.address);
    shelf.isles(&["push", "-q", "app:1", &ours]).fine();
    docker.run(&["rmi", "-f", "app:1"]).fine();
    docker.run(&["pull", "-q", &ours]).fine();
    assert_eq!(docker.run(&["images", "-q", "--no-trunc"]).fine().trim(), id);
    docker.run(&["tag", &ours, &theirs]).fine();
    docker.run(&["push", "-q", &theirs]).fine();
    shelf.isles_in("pulled", &["pull", "-q", &theirs]).fine();
    assert_eq!(shelf.isles_in("pulled", &["images", "-q", "--no-trunc"]).fine().trim(), id);
    let digest = |text: String| object(&text)["RepoDigests"].to_string();
    let seen = docker.run(&["inspect", &theirs]).fine();
    assert!(
        digest(seen).contains(
            digest(shelf.isles_in("pulled", &["inspect", &theirs]).fine()).trim_matches(['[', ']'])
        )
    );
}

/// Layers, metadata and a trigger of the builder that makes a container for each instruction.
const CLASSIC: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "ln", "-s", "busybox", "/bin/sh"]
RUN for a in cat echo env grep id ls mkdir rm stat; do /bin/busybox ln -s busybox /bin/$a; done
RUN mkdir -p /data/sub /etc && echo app:x:7:8::/:/bin/sh > /etc/passwd && echo one > /data/one && echo two > /data/two
RUN rm /data/one && mkdir /opaque && echo a > /opaque/a
RUN rm -r /opaque && mkdir /opaque && echo b > /opaque/b
ENV A=1 B="x y"
WORKDIR /data
VOLUME /vol
USER app
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat two; ls /opaque; id -u; echo $B"]
ONBUILD COPY --chown=7:8 new /data/new
"#;

#[test]
fn images_of_dockers_classic_builder_are_bases() {
    let shelf = both().remove(0);
    if !std::path::Path::new("/bin/busybox").exists() {
        println!("skip: /bin/busybox is not installed");
        return;
    }
    let Some(docker) = Docker::start(&shelf) else { return };
    let file = |name: &str, text: &str| {
        std::fs::create_dir_all(shelf.path(name).parent().unwrap()).unwrap();
        std::fs::write(shelf.path(name), text).unwrap();
    };
    file("classic/Dockerfile", CLASSIC);
    std::fs::copy("/bin/busybox", shelf.path("classic/busybox")).unwrap();
    docker.run(&["build", "-q", "--network", "none", "-t", "classic:1", "classic"]).fine();
    let runs = "two\nb\n7\nx y\n";
    assert_eq!(docker.run(&["run", "--rm", "--network", "none", "classic:1"]).fine(), runs);

    // By archive and by registry, it runs here, and is a base here.
    docker.run(&["save", "-o", "classic.tar", "classic:1"]).fine();
    shelf.isles(&["load", "-q", "-i", "classic.tar"]).fine();
    assert_eq!(shelf.isles(&["run", "--rm", "classic:1"]).fine(), runs);
    let mut bases = vec!["classic:1".to_owned()];
    let registry = Registry::start(false);
    if let Some(registry) = &registry {
        let name = format!("{}/classic:1", registry.address);
        docker.run(&["tag", "classic:1", &name]).fine();
        docker.run(&["push", "-q", &name]).fine();
        bases.push(name);
    }
    file("ours/new", "new\n");
    for base in &bases {
        file(
            "ours/Dockerfile",
            &format!(
                "FROM {base}\nRUN test \"$(id -u)$PWD$A\" = 7/data1 && echo more > /data/two || true\nCMD [\"cat new; ls\"]\n"
            ),
        );
        // The data belong to root: the user of the base cannot change them.
        shelf.isles(&["build", "-q", "-t", "ours:1", "ours"]).fine();
        let listed = "new\nnew\nsub\ntwo\n";
        assert_eq!(shelf.isles(&["run", "--rm", "ours:1"]).fine(), listed, "{base}");

        // And back: dockerd runs it, and builds on it.
        shelf.isles(&["save", "-o", "ours.tar", "ours:1"]).fine();
        docker.run(&["load", "-i", "ours.tar"]).fine();
        assert_eq!(docker.run(&["run", "--rm", "--network", "none", "ours:1"]).fine(), listed, "{base}");
        file("on/Dockerfile", "FROM ours:1\nUSER 0\nRUN rm /data/new\nCMD [\"ls; echo $A\"]\n");
        docker.run(&["build", "-q", "--network", "none", "-t", "on:1", "on"]).fine();
        assert_eq!(docker.run(&["run", "--rm", "--network", "none", "on:1"]).fine(), "sub\ntwo\n1\n");
        let layers = |text: String| object(&text)["RootFS"]["Layers"].as_array().unwrap().clone();
        let (classic, ours) = (
            layers(docker.run(&["inspect", "classic:1"]).fine()),
            layers(shelf.isles(&["inspect", "ours:1"]).fine()),
        );
        assert_eq!(ours[..classic.len()], classic, "the layers of the base are its own");
    }
}

#[test]
fn dockerd_pulls_from_and_pushes_to_our_registry() {
    use std::io::{BufRead, BufReader};
    let shelf = both().remove(0);
    let Some(docker) = Docker::start(&shelf) else { return };
    layout(&shelf.path("layout"), "app:1", &[tar(&[("etc/a", &noise(300_000, 1))])]);
    shelf.isles(&["load", "-q", "-i", "oci:layout"]).fine();
    // As `htpasswd -nbB me secret` prints it.
    let users = "me:$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm\n";
    std::fs::write(shelf.path("users"), users).unwrap();
    let serve = ["registry", "serve", "--listen", "127.0.0.1:0", "--htpasswd", "users"];
    let mut server = shelf.command_in("server", &serve).stderr(Stdio::piped()).spawn().unwrap();
    let line = BufReader::new(server.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    let address = line.split_once("http://").unwrap().1;
    shelf.isles(&["login", "-u", "me", "-p", "secret", address]).fine();
    let name = format!("{address}/course/app:1");
    shelf.isles(&["push", "app:1", &name]).fine();
    assert_ne!(docker.run(&["pull", &name]).code, Some(0));
    assert_ne!(docker.run(&["--config", "d", "login", "-u", "me", "-p", "wrong", address]).code, Some(0));
    docker.run(&["--config", "d", "login", "-u", "me", "-p", "secret", address]).fine();
    docker.run(&["--config", "d", "pull", &name]).fine();
    let id = shelf.isles(&["images", "-q", "--no-trunc", "app:1"]).fine();
    assert_eq!(docker.run(&["images", "-q", "--no-trunc", &name]).fine(), id);
    let other = format!("{address}/of/docker:2");
    docker.run(&["tag", &name, &other]).fine();
    docker.run(&["--config", "d", "push", &other]).fine();
    shelf.isles_in("back", &["pull", &other]).fine();
    assert_eq!(shelf.isles_in("back", &["images", "-q", "--no-trunc"]).fine(), id);
    let _ = server.kill();
    let _ = server.wait();
}
