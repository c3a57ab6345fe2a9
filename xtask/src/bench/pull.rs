//! Pulling a real image of three gzip layers (some 700 MB unpacked) from a registry on loopback.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::Isles;
use super::measure::{Case, Outcome, Sample, interleave, timed};
use super::peers::{Docker, ORDINARY, Registry, cache, must};
use super::report::{Row, Section, at_most, bound, contenders, promises};
use super::start::ordinary;
use crate::Result;

const ROUNDS: usize = 3;
const PORT: u16 = 5203;
const PACKAGES: &str = "python3,python3-numpy,python3-pip,gcc,g++,make,git";

pub fn run(isles: &Isles) -> Result<Section> {
    let layout = image()?;
    let work = cache().join("pull");
    let _ = fs::remove_dir_all(&work);
    let registry = Registry::start(&work.join("registry"), PORT)?;
    let name = format!("{}/bench:gz", registry.address);
    must(
        Command::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:gz", layout.display()))
            .arg(format!("docker://{name}")),
    )?;
    let docker = Docker::start(&work.join("docker"), &[])?;
    let root = work.join("isles");
    let roots = interleave(
        vec![
            Case::new("isles pull", || {
                let _ = fs::remove_dir_all(&root);
                timed(isles.command(&root).args(["pull", "-q", &name]))
            }),
            Case::new("docker pull", || {
                let _ = docker.command().args(["rmi", "-f", &name]).output();
                let before = docker.cpu();
                let client = timed(docker.command().args(["pull", "-q", &name]))?;
                Ok(Sample { cpu: client.cpu + docker.cpu() - before, ..client })
            }),
        ],
        ROUNDS,
    )?;

    let mut text = String::from(
        "Debian minbase, then Python with NumPy and a C++ toolchain, then 12,000 small files: three gzip layers. The \
         engine's and containerd's CPU count as docker's. Every pull starts from an empty store.\n\nAs root:\n\n",
    );
    text += &contenders(&roots, "isles pull");
    let mut rows: Vec<Row> = at_most(&roots, "isles pull", "docker pull", 0.5).into_iter().collect();
    let cpu = |o: &[Outcome], name: &str| o.iter().find(|o| o.name == name).map(Outcome::cpu);
    if let (Some(ours), Some(theirs)) = (cpu(&roots, "isles pull"), cpu(&roots, "docker pull")) {
        rows.push(bound("CPU of `isles pull` over docker's", ours / theirs, 0.45, "×"));
    }
    let peak = roots.iter().filter(|o| o.name == "isles pull").map(Outcome::peak).max().unwrap_or(0);
    rows.push(bound("peak memory of `isles pull`", peak as f64 / 1024.0, 64.0, "MiB"));

    let home = work.join("home");
    fs::create_dir_all(&home)
        .and_then(|()| chown(&home, Some(ORDINARY), Some(ORDINARY)))
        .map_err(|e| e.to_string())?;
    let user = User::make(&work)?;
    let users = interleave(
        vec![
            Case::new("isles pull", || {
                let _ = fs::remove_dir_all(home.join("isles"));
                timed(ordinary(isles.command(&home.join("isles")), &home).args(["pull", "-q", &name]))
            }),
            Case::new("podman pull", || {
                let _ = user.podman().args(["rmi", "-f", &name]).output();
                timed(user.podman().args(["pull", "-q", "--tls-verify=false", &name]))
            }),
        ],
        ROUNDS,
    )?;
    text += "\nAs an ordinary user (Isles without subuids, podman with):\n\n";
    text += &contenders(&users, "isles pull");
    rows.extend(at_most(&users, "isles pull", "podman pull", 0.5).map(|mut r| {
        r.what += ", rootless";
        r
    }));
    text += &promises(&rows);
    drop(user);
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "pull", title: "Pulling an image", text })
}

/// A user with subuids for podman, made for the run and removed after it.
struct User {
    home: PathBuf,
}

impl User {
    const NAME: &'static str = "islesbench";
    const ID: u32 = 4243;

    fn make(work: &Path) -> Result<User> {
        let home = work.join("podman-home");
        let id = User::ID.to_string();
        must(Command::new("useradd").args(["-m", "-u", &id, "-d"]).arg(&home).arg(User::NAME))?;
        Ok(User { home })
    }

    fn podman(&self) -> Command {
        let mut c = Command::new("podman");
        c.uid(User::ID).gid(User::ID).env("HOME", &self.home).env("USER", User::NAME).current_dir(&self.home);
        c.env_remove("XDG_RUNTIME_DIR").args(["--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        c
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.podman().args(["system", "migrate"]).output();
        let _ = Command::new("userdel").arg(User::NAME).output();
    }
}

/// An OCI layout with the image, made once and kept.
fn image() -> Result<PathBuf> {
    let layout = cache().join("debian-image");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    eprintln!("bench: making the image (once)");
    let work = cache().join("debian-image.work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(work.join("small/srv/small")).map_err(|e| e.to_string())?;
    let sh = |script: &str| must(Command::new("sh").current_dir(&work).args(["-ec", script]));
    must(Command::new("mmdebstrap").args(["--variant=minbase", "bookworm"]).arg(work.join("base.tar")))?;
    must(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), "bookworm"])
            .arg(work.join("full.tar")),
    )?;
    // The second layer is what the larger tree has beyond the smaller one.
    sh("tar -tf base.tar | sort > base.list; tar -tf full.tar | sort > full.list
        comm -13 base.list full.list | grep -v '/$' > more.list
        mkdir full && tar -C full -xf full.tar
        tar -C full --numeric-owner --no-recursion -cf tools.tar -T more.list")?;
    sh("i=0; while [ $i -lt 12000 ]; do echo $i; i=$((i+1)); done | \
        awk '{f=sprintf(\"small/srv/small/m%05d.py\",$1); for(j=0;j<160;j++) printf \"def f_%d_%d(x): return x * %d + %d\\n\",$1,j,$1,j > f; close(f)}'
        tar -C small --numeric-owner --owner=0 --group=0 -cf small.tar srv")?;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|e| e.to_string())?;
    let store = |file: &Path| -> Result<(String, u64)> {
        let sum = must(Command::new("sha256sum").arg(file))?;
        let hex = sum.split(' ').next().unwrap_or_default().to_owned();
        let size = fs::copy(file, blobs.join(&hex)).map_err(|e| e.to_string())?;
        Ok((format!("sha256:{hex}"), size))
    };
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for name in ["base", "tools", "small"] {
        let tar = work.join(format!("{name}.tar"));
        let sum = must(Command::new("sha256sum").arg(&tar))?;
        diff_ids.push(format!("sha256:{}", sum.split(' ').next().unwrap_or_default()));
        sh(&format!("gzip -n {name}.tar"))?;
        let (digest, size) = store(&work.join(format!("{name}.tar.gz")))?;
        layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}));
    }
    let write = |name: &str, value: serde_json::Value| -> Result<(String, u64)> {
        let path = work.join(name);
        fs::write(&path, value.to_string()).map_err(|e| e.to_string())?;
        store(&path)
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let (config, config_size) = write(
        "config.json",
        json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}),
    )?;
    let (manifest, manifest_size) = write(
        "manifest.json",
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size}, "layers": layers}),
    )?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(|e| e.to_string())?;
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest, "size": manifest_size, "annotations": {"org.opencontainers.image.ref.name": "gz"}}]});
    fs::write(layout.join("index.json"), index.to_string()).map_err(|e| e.to_string())?;
    let _ = fs::remove_dir_all(&work);
    Ok(layout)
}
