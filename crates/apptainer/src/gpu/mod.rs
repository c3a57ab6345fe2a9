//! `--nv` and `--rocm`: libraries, programs and devices of the host's driver, lent to the container.
//!
//! What a driver consists of is a list of names, as `nvliblist.conf` has them: libraries by the beginning of their
//! names, programs, and absolute paths. Libraries are looked up in the loader's cache, and shown in
//! `/.singularity.d/libs` under every name that programs ask for. One that needs a newer glibc than the image has is
//! left out, with a warning that names it, because it would break the program rather than help it.

pub mod cdi;
pub mod elf;
pub mod ld_cache;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use isles_spec::Mount;

use crate::environment::LIBS;
use elf::{Library, Version};

const LIBS32: &str = "/.singularity.d/libs32";
/// A list and a cache may have this many bytes.
const LARGEST: u64 = 16 << 20;

/// One maker's driver.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    /// As messages call it.
    pub name: &'static str,
    /// The file that replaces the list below.
    list_file: &'static str,
    list: &'static [&'static str],
}

pub const NVIDIA: Driver = Driver {
    name: "nv",
    list_file: "nvliblist.conf",
    list: &[
        "nvidia-smi",
        "nvidia-debugdump",
        "nvidia-persistenced",
        "nvidia-cuda-mps-control",
        "nvidia-cuda-mps-server",
        "libcuda.so",
        "libcudadebugger.so",
        "libEGL_nvidia.so",
        "libEGL.so",
        "libGLdispatch.so",
        "libGLESv1_CM_nvidia.so",
        "libGLESv1_CM.so",
        "libGLESv2_nvidia.so",
        "libGLESv2.so",
        "libGL.so",
        "libGLX_nvidia.so",
        "libGLX.so",
        "libglx.so",
        "libnvcuvid.so",
        "libnvidia-",
        "libnvoptix.so",
        "libOpenCL.so",
        "libOpenGL.so",
        "libvdpau_nvidia.so",
        "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        "/usr/share/vulkan/icd.d/nvidia_icd.json",
        "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
        "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
        "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
        "/usr/share/nvidia/nvoptix.bin",
    ],
};

pub const ROCM: Driver = Driver {
    name: "rocm",
    list_file: "rocmliblist.conf",
    list: &[
        "rocm-smi",
        "rocminfo",
        "libamd_comgr.so",
        "libamdhip64.so",
        "libamdocl64.so",
        "libcltrace.so",
        "libdrm.so",
        "libdrm_amdgpu.so",
        "libhsa-runtime64.so",
        "libnuma.so",
        "libOpenCL.so",
        "libpci.so",
        "librocr_debug_agent64.so",
    ],
};

/// What a container is lent, and what there is to say about it.
#[derive(Debug, Default)]
pub struct Lent {
    pub mounts: Vec<Mount>,
    pub libraries: bool,
    pub warnings: Vec<String>,
}

/// Where the host is looked at; in tests a folder with a made-up driver.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    pub root: &'a Path,
    /// Folders of programs.
    pub path: &'a str,
}

impl Host<'_> {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        File::open(self.at(path)).and_then(|file| isles_store::read_bounded(file, LARGEST)).ok()?
    }
}

impl Driver {
    /// Finds the driver of the host. `glibc` is the version of the image, where it has one; with `compat32` libraries
    /// for 32 bits are lent, too; under `contain` devices as well, since /dev is not the host's then.
    pub fn lend(&self, host: Host<'_>, glibc: Option<Version>, compat32: bool, contain: bool) -> Lent {
        let mut out = Lent::default();
        let list = self.list(host);
        let known = host.read("/etc/ld.so.cache").map(|bytes| ld_cache::parse(&bytes)).unwrap_or_default();
        let mut taken = BTreeSet::new();
        for name in list.iter().filter(|name| is_library(name)) {
            let found = known.iter().filter(|known| known.name.starts_with(name.as_str()));
            for known in found {
                self.lend_library(host, known, glibc, compat32, &mut taken, &mut out);
            }
        }
        let mut files = 0;
        for name in list.iter().filter(|name| !is_library(name)) {
            if let Some((source, destination)) = file(host, name) {
                files += 1;
                out.mounts.push(lent(&source, &destination));
            }
        }
        if !out.libraries {
            let warning = format!("Could not find any {} libraries on this host!", self.name);
            out.warnings.push(warning);
        }
        if files == 0 && list.iter().any(|name| !is_library(name)) {
            out.warnings.push(format!("Could not find any {} files on this host!", self.name));
        }
        out.mounts.extend(self.sockets(host));
        if contain {
            out.mounts.extend(self.devices(host).iter().map(|device| device_mount(host, device)));
        }
        out
    }

    fn lend_library(
        &self,
        host: Host<'_>,
        known: &ld_cache::Known,
        glibc: Option<Version>,
        compat32: bool,
        taken: &mut BTreeSet<PathBuf>,
        out: &mut Lent,
    ) {
        let path = host.at(&known.path.to_string_lossy());
        let Some(library) = File::open(&path).ok().and_then(|file| elf::library(&file)) else { return };
        let own = (library.machine, library.wide) == elf::own_machine();
        let folder = match (own, is_32_bit_sibling(&library)) {
            (true, _) => LIBS,
            (false, true) if compat32 => LIBS32,
            _ => return,
        };
        if let (Some(needs), Some(has)) = (library.needs, glibc)
            && own
            && needs > has
        {
            out.warnings.push(format!(
                "Not lending {}: it needs glibc {}.{}, and the image has {}.{}",
                known.path.display(),
                needs.0,
                needs.1,
                has.0,
                has.1
            ));
            return;
        }
        out.libraries |= own;
        // Programs that load a library by hand ask for the name without a version, which is a link beside it.
        let plain = known.name.find(".so").map(|at| &known.name[..at + 3]);
        let beside = plain.and_then(|plain| {
            let link = path.parent()?.join(plain);
            let same = fs::canonicalize(&link).ok()? == fs::canonicalize(&path).ok()?;
            same.then_some(plain)
        });
        for name in [Some(known.name.as_str()), beside].into_iter().flatten() {
            let destination = Path::new(folder).join(name);
            if taken.insert(destination.clone()) {
                out.mounts.push(lent(&path, &destination));
            }
        }
    }

    /// The list of names: a file of the administrator's, or ours.
    fn list(&self, host: Host<'_>) -> Vec<String> {
        let folders = ["/etc/apptainer", "/usr/local/etc/apptainer", "/etc/singularity"];
        let file = folders.iter().find_map(|folder| host.read(&format!("{folder}/{}", self.list_file)));
        match file {
            Some(bytes) => String::from_utf8_lossy(&bytes)
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned)
                .collect(),
            None => self.list.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// Sockets by which programs of the driver speak with its services.
    fn sockets(&self, host: Host<'_>) -> Vec<Mount> {
        let path = "/var/run/nvidia-persistenced/socket";
        let there = self.name == NVIDIA.name && host.at(path).exists();
        there.then(|| lent(&host.at(path), Path::new(path))).into_iter().collect()
    }

    /// Device files that the driver's libraries open.
    fn devices(&self, host: Host<'_>) -> Vec<String> {
        if self.name == ROCM.name {
            let usual = ["/dev/kfd", "/dev/dri"];
            return usual.iter().filter(|path| host.at(path).exists()).map(|p| (*p).to_owned()).collect();
        }
        let mut out: Vec<String> = names(&host.at("/dev"))
            .into_iter()
            .filter(|name| {
                let rest = name.strip_prefix("nvidia");
                rest.is_some_and(|rest| {
                    matches!(rest, "ctl" | "-uvm" | "-uvm-tools" | "-modeset" | "-caps")
                        || !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())
                })
            })
            .map(|name| format!("/dev/{name}"))
            .collect();
        out.sort();
        out
    }
}

/// What the drivers of this host lend to an image of which `read` reads files, for whoever has no flags of Apptainer's.
pub fn lend_drivers(nv: bool, rocm: bool, read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Lent {
    let path = std::env::var("PATH").unwrap_or_default();
    let host = Host { root: Path::new("/"), path: &path };
    let (glibc, mut out) = (glibc_of(read), Lent::default());
    for (_, driver) in [(nv, NVIDIA), (rocm, ROCM)].into_iter().filter(|(wanted, _)| *wanted) {
        let lent = driver.lend(host, glibc, false, true);
        out.libraries |= lent.libraries;
        out.mounts.extend(lent.mounts);
        out.warnings.extend(lent.warnings);
    }
    out
}

/// Devices of Intel's Gaudi accelerators (`--intel-hpu`).
pub fn intel_devices(host: Host<'_>) -> Vec<Mount> {
    let usual = ["/dev/accel", "/dev/infiniband"];
    let mut devices: Vec<String> =
        usual.iter().filter(|path| host.at(path).exists()).map(|path| (*path).to_owned()).collect();
    let more = names(&host.at("/dev")).into_iter().filter(|name| name.starts_with("hl"));
    devices.extend(more.map(|name| format!("/dev/{name}")));
    devices.sort();
    devices.iter().map(|device| device_mount(host, device)).collect()
}

/// The newest glibc that an image has, of which `read` reads files.
pub fn glibc_of(read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Option<Version> {
    let (machine, wide) = elf::own_machine();
    let name = elf::machine_name(machine, wide);
    let triple = match name {
        "amd64" => "x86_64-linux-gnu",
        "arm64" => "aarch64-linux-gnu",
        "ppc64le" => "powerpc64le-linux-gnu",
        "s390x" => "s390x-linux-gnu",
        "riscv64" => "riscv64-linux-gnu",
        _ => "i386-linux-gnu",
    };
    let usual = [format!("/lib/{triple}/libc.so.6"), "/lib64/libc.so.6".into(), "/lib/libc.so.6".into()];
    usual.iter().find_map(|path| elf::library_in(&read(path)?)?.provides)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn is_library(name: &str) -> bool {
    !name.starts_with('/') && (name.ends_with(".so") || name.starts_with("lib"))
}

fn is_32_bit_sibling(library: &Library) -> bool {
    matches!((elf::own_machine().0, library.machine, library.wide), (62, 3, false) | (183, 40, false))
}

/// A program of PATH, shown in /usr/bin, or a file at its own place.
fn file(host: Host<'_>, name: &str) -> Option<(PathBuf, PathBuf)> {
    if name.starts_with('/') {
        let path = host.at(name);
        return path.is_file().then(|| (path, PathBuf::from(name)));
    }
    let folders = host.path.split(':').filter(|folder| folder.starts_with('/'));
    let path = folders.map(|folder| host.at(&format!("{folder}/{name}"))).find(|path| path.is_file())?;
    Some((path, Path::new("/usr/bin").join(name)))
}

/// A read-only bind of a file of the driver. It is no error where it cannot be: an image has its own ideas of /usr.
fn lent(source: &Path, destination: &Path) -> Mount {
    let source = fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
    Mount { read_only: true, optional: true, ..Mount::bind(source, destination) }
}

fn device_mount(host: Host<'_>, device: &str) -> Mount {
    Mount::bind(host.at(device), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with a driver in it: a cache, libraries, a program and devices.
    fn host(libraries: &[(&str, &str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let at = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, bytes).unwrap();
        };
        let entries: Vec<(&str, &str)> = libraries.iter().map(|(name, path, _)| (*name, *path)).collect();
        write("/etc/ld.so.cache", &ld_cache::made(&entries));
        for (_, path, bytes) in libraries {
            write(path, bytes);
        }
        for path in
            ["/opt/bin/nvidia-smi", "/dev/nvidia0", "/dev/nvidia12", "/dev/nvidiactl", "/dev/nvidia-x"]
        {
            write(path, b"");
        }
        write("/dev/kfd", b"");
        dir
    }

    fn destinations(lent: &Lent) -> Vec<&str> {
        lent.mounts.iter().map(|mount| mount.destination.to_str().unwrap()).collect()
    }

    #[test]
    fn a_driver_is_found_by_names_and_machine() {
        let own = elf::own_machine().0;
        let good = elf::made::library(own, "GLIBC_2.17", false);
        let new = elf::made::library(own, "GLIBC_2.38", false);
        let other = elf::made::library(if own == 62 { 183 } else { 62 }, "GLIBC_2.17", false);
        let mut narrow = elf::made::library(if own == 62 { 3 } else { 40 }, "GLIBC_2.2", false);
        narrow[4] = 1;
        let dir = host(&[
            ("libcuda.so.1", "/usr/lib/libcuda.so.1", &good),
            ("libcuda.so.1", "/usr/lib32/libcuda.so.1", &narrow),
            ("libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.1", &new),
            ("libnvidia-tls.so.5", "/usr/lib/libnvidia-tls.so.5", &other),
            ("libc.so.6", "/usr/lib/libc.so.6", &good),
            ("libGL.so.1", "/usr/lib/libGL.so.1", b"no library"),
        ]);
        std::os::unix::fs::symlink("libcuda.so.1", dir.path().join("usr/lib/libcuda.so")).unwrap();
        let here = Host { root: dir.path(), path: "/usr/bin:/opt/bin" };
        let lent = NVIDIA.lend(here, Some((2, 36)), false, false);
        assert_eq!(
            destinations(&lent),
            ["/.singularity.d/libs/libcuda.so.1", "/.singularity.d/libs/libcuda.so", "/usr/bin/nvidia-smi"]
        );
        assert!(lent.libraries);
        let [warning] = &lent.warnings[..] else { panic!("{:?}", lent.warnings) };
        for word in ["libnvidia-ml.so.1", "2.38", "2.36"] {
            assert!(warning.contains(word), "{warning}");
        }
        let all = NVIDIA.lend(here, None, true, true);
        assert!(all.warnings.is_empty(), "an image without glibc decides by itself: {:?}", all.warnings);
        for destination in [
            "/.singularity.d/libs/libnvidia-ml.so.1",
            "/.singularity.d/libs32/libcuda.so.1",
            "/dev/nvidia0",
            "/dev/nvidia12",
            "/dev/nvidiactl",
        ] {
            assert!(destinations(&all).contains(&destination), "{destination}");
        }
        assert!(!destinations(&all).contains(&"/dev/nvidia-x"));
    }

    #[test]
    fn a_host_without_a_driver_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let lent = ROCM.lend(Host { root: dir.path(), path: "/usr/bin" }, None, false, true);
        assert!(lent.mounts.is_empty() && !lent.libraries);
        assert_eq!(
            lent.warnings,
            [
                "Could not find any rocm libraries on this host!",
                "Could not find any rocm files on this host!"
            ]
        );
    }

    #[test]
    fn an_administrators_list_replaces_ours() {
        let own = elf::made::library(elf::own_machine().0, "GLIBC_2.17", false);
        let dir = host(&[
            ("libodd.so.1", "/usr/lib/libodd.so.1", &own),
            ("libcuda.so.1", "/usr/lib/libcuda.so.1", &own),
        ]);
        fs::create_dir_all(dir.path().join("etc/apptainer")).unwrap();
        fs::write(dir.path().join("etc/apptainer/nvliblist.conf"), "# note\nlibodd.so\n/etc/ld.so.cache\n")
            .unwrap();
        let lent = NVIDIA.lend(Host { root: dir.path(), path: "" }, None, false, false);
        assert_eq!(destinations(&lent), ["/.singularity.d/libs/libodd.so.1", "/etc/ld.so.cache"]);
    }
}
