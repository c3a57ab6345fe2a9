//! Installs what the tests' real clients and the benchmarks' peers need, with the system's package manager.

use std::path::Path;
use std::process::{Command, Stdio};

/// A Debian package and a file that is there once it is installed.
pub struct Package {
    pub name: &'static str,
    pub file: &'static str,
}

/// What the tests use.
pub const FOR_TESTS: &[Package] = &[
    Package { name: "busybox-static", file: "/bin/busybox" },
    Package { name: "skopeo", file: "/usr/bin/skopeo" },
    Package { name: "podman", file: "/usr/bin/podman" },
    Package { name: "crun", file: "/usr/bin/crun" },
    Package { name: "runc", file: "/usr/sbin/runc" },
    Package { name: "buildah", file: "/usr/bin/buildah" },
    Package { name: "umoci", file: "/usr/bin/umoci" },
    Package { name: "docker.io", file: "/usr/sbin/dockerd" },
    Package { name: "docker-registry", file: "/usr/bin/docker-registry" },
    Package { name: "nftables", file: "/usr/sbin/nft" },
    Package { name: "uidmap", file: "/usr/bin/newuidmap" },
    Package { name: "libseccomp-dev", file: "/usr/include/seccomp.h" },
    Package { name: "debian-archive-keyring", file: "/usr/share/keyrings/debian-archive-keyring.gpg" },
    Package { name: "ca-certificates", file: "/etc/ssl/certs/ca-certificates.crt" },
    Package { name: "xz-utils", file: "/usr/bin/xz" },
    Package { name: "zstd", file: "/usr/bin/zstd" },
    Package { name: "squashfs-tools", file: "/usr/bin/mksquashfs" },
    Package { name: "e2fsprogs", file: "/sbin/mkfs.ext3" },
    Package { name: "fuse2fs", file: "/usr/bin/fuse2fs" },
    Package { name: "fuse-overlayfs", file: "/usr/bin/fuse-overlayfs" },
    Package { name: "python3-venv", file: "/usr/lib/python3.11/ensurepip/__init__.py" },
    Package { name: "patchelf", file: "/usr/bin/patchelf" },
    Package { name: "gnupg", file: "/usr/bin/gpg" },
    Package { name: "openmpi-bin", file: "/usr/bin/mpirun" },
    Package { name: "libopenmpi-dev", file: "/usr/bin/mpicc" },
    Package { name: "slurmd", file: "/usr/sbin/slurmd" },
    Package { name: "slurmctld", file: "/usr/sbin/slurmctld" },
    Package { name: "slurm-client", file: "/usr/bin/srun" },
    Package { name: "munge", file: "/usr/sbin/munged" },
    Package { name: "git", file: "/usr/bin/git" },
    Package { name: "bzip2", file: "/usr/bin/bzip2" },
    Package { name: "cryptsetup-bin", file: "/usr/sbin/cryptsetup" },
    Package { name: "gocryptfs", file: "/usr/bin/gocryptfs" },
    Package { name: "chromium", file: "/usr/bin/chromium" },
    Package { name: "qemu-user-static", file: "/usr/bin/qemu-aarch64-static" },
];

/// What only the benchmarks use.
pub const FOR_BENCH: &[Package] = &[
    Package { name: "bubblewrap", file: "/usr/bin/bwrap" },
    Package { name: "debootstrap", file: "/usr/sbin/debootstrap" },
    Package { name: "mmdebstrap", file: "/usr/bin/mmdebstrap" },
    Package { name: "strace", file: "/usr/bin/strace" },
    Package { name: "iperf3", file: "/usr/bin/iperf3" },
    Package { name: "passt", file: "/usr/bin/pasta" },
    Package { name: "slirp4netns", file: "/usr/bin/slirp4netns" },
];

/// Installs those that are missing. Where that cannot be done, says which and goes on: the tests that
/// need them print why they skip.
pub fn ensure(lists: &[&[Package]]) {
    let missing: Vec<&str> = lists
        .iter()
        .flat_map(|list| list.iter())
        .filter(|p| !Path::new(p.file).exists())
        .map(|p| p.name)
        .collect();
    if missing.is_empty() {
        return;
    }
    eprintln!("xtask: installing {}", missing.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        eprintln!(
            "xtask: this system has no apt-get; the tests that need these programs will say that they skip"
        );
        return;
    }
    // SAFETY: geteuid(2) has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let apt = |args: &[&str]| {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.args(["-n", "apt-get"]);
        }
        command
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    apt(&["update", "-q"]);
    let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
    args.extend(&missing);
    if apt(&args) {
        return;
    }
    // One package that this release lacks must not keep the others away.
    for name in &missing {
        if !apt(&["install", "-y", "-q", "--no-install-recommends", name]) {
            eprintln!(
                "xtask: could not install {name}{}; the tests that need it will say that they skip",
                if root { "" } else { " (not root, and sudo asks for a password)" }
            );
        }
    }
}
