//! containerd pulls through our mirror: it names the registry that it means in the parameter `ns`.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::process::{Child, Command, Stdio};

use shelf::*;

/// A containerd of its own, without the plugins that touch the machine.
struct Containerd<'a> {
    shelf: &'a Shelf,
    daemon: Child,
}

impl Containerd<'_> {
    fn start(shelf: &Shelf) -> Option<Containerd<'_>> {
        if !rustix::process::geteuid().is_root() {
            println!("skip: containerd needs root");
            return None;
        }
        for program in ["containerd", "ctr"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("skip: {program} is not installed");
                return None;
            }
        }
        let path = |name: &str| shelf.path(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"{}\"\n",
            path("root"),
            path("run"),
            path("c.sock"),
        );
        fs::write(shelf.path("containerd.toml"), config).unwrap();
        let log = fs::File::create(shelf.path("containerd.log")).unwrap();
        let mut daemon = Command::new("containerd");
        daemon.arg("--config").arg(shelf.path("containerd.toml"));
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let containerd = Containerd { daemon: daemon.spawn().unwrap(), shelf };
        for _ in 0..200 {
            if containerd.ctr(&["version"]).code == Some(0) {
                return Some(containerd);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let log = fs::read_to_string(shelf.path("containerd.log")).unwrap_or_default();
        println!("skip: containerd does not start here: {}", log.lines().last().unwrap_or_default());
        None
    }

    fn ctr(&self, args: &[&str]) -> Said {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60", "ctr", "--address"]).arg(self.shelf.path("c.sock")).args(args);
        Said::of(command.stdin(Stdio::null()).output().unwrap())
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

#[test]
fn containerd_pulls_through_our_mirror() {
    let shelf = both().remove(0);
    let Some(containerd) = Containerd::start(&shelf) else { return };
    let upstream = Served::start(&shelf, "upstream", &[]);
    // By the path alone the mirror could not tell which registry is meant.
    let mirror = Served::start(&shelf, "mirror", &["--mirror", &format!("up={}", upstream.address)]);
    let hosts = shelf.path("hosts").join(&upstream.address);
    fs::create_dir_all(&hosts).unwrap();
    let only_the_mirror = format!(
        "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        mirror.address
    );
    fs::write(hosts.join("hosts.toml"), only_the_mirror).unwrap();
    let image = layout(&shelf.path("layout"), "app:1", &[tar(&[("a", &noise(300_000, 1))])]);
    shelf.isles(&["copy", "-q", "oci:layout", &format!("docker://{}/course/app:1", upstream.address)]).fine();
    let name = format!("{}/course/app:1", upstream.address);
    let dir = shelf.path("hosts").display().to_string();
    let pull = || {
        containerd.ctr(&["images", "pull", "--hosts-dir", &dir, "--snapshotter", "native", &name]).fine();
        let listed = containerd.ctr(&["content", "ls", "-q"]).fine();
        assert!(listed.contains(&image.manifest.config.digest.to_string()), "{listed}");
        for layer in &image.manifest.layers {
            assert!(listed.contains(&layer.digest.to_string()), "{listed}");
        }
    };
    pull();
    let kept = shelf.isles_in("mirror", &["registry", "ls", "-q"]).fine();
    assert_eq!(kept, "up/course/app\n");
    // The upstream goes; what the mirror has is still to be had.
    drop(upstream);
    containerd.ctr(&["images", "rm", "--sync", &name]).fine();
    assert_eq!(containerd.ctr(&["content", "ls", "-q"]).fine(), "");
    pull();
}
