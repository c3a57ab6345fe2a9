//! Drivers of graphics processors, lent to containers on a machine that has none: a driver that was made up, in a mount
//! namespace where the loader's cache, /dev and /run tell of it.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use desk::{Desk, Said, both, installed};

/// Shows the driver in `$0` to what comes next.
const WITH_DRIVER: &str = "mount --bind $0/ld.so.cache /etc/ld.so.cache && mount --rbind $0/dev /dev && \
                           mount -t tmpfs none /run && mkdir /run/cdi /run/nvidia-persistenced && \
                           cp $0/vendor.json /run/cdi && : > /run/nvidia-persistenced/socket && exec \"$@\"";

/// Device files as a machine has them, and those of drivers, which are known ones by other names.
const DEVICES: &str = "cd $0/dev && mkdir pts shm dri && ln -s pts/ptmx ptmx && ln -s /proc/self/fd fd && \
                       for d in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 nvidia0:1:3 nvidiactl:1:5 \
                       nvidia-uvm:1:7 kfd:1:3 dri/renderD128:1:3 vendor0:1:5 fuse:10:229; do \
                       IFS=: read name major minor <<-EOT\n$d\nEOT\n\
                       mknod -m 666 $name c $major $minor || exit 1; done";

/// What a driver's library answers, and a program that asks it, as programs of CUDA and HIP do.
const LIBRARY: &str = "int driver_version(void) { return 12040; }\n";
const PROBE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        void *library = dlopen(argv[i], RTLD_NOW);
        int (*version)(void) = library ? (int (*)(void))dlsym(library, "driver_version") : 0;
        if (version) printf("%s %d\n", argv[i], version()); else printf("%s none\n", argv[i]);
    }
    return 0;
}
"#;

const VENDOR: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
    "containerEdits": {"env": ["VENDOR=all"], "mounts":
        [{"hostPath": "FOLDER/driver", "containerPath": "/opt/vendor", "options": ["ro", "bind"]}]},
    "devices": [{"name": "0", "containerEdits": {"env": ["GPU=zero"],
        "deviceNodes": [{"path": "/dev/vendor0"}, {"path": "/dev/other", "hostPath": "/dev/vendor0"}],
        "hooks": [{"hookName": "createContainer", "path": "/usr/bin/x", "args": ["x", "update-ldcache"]}]}}]}"#;

fn make(program: &str, words: &[&str]) {
    let said = Command::new(program).args(words).output().unwrap();
    assert!(said.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&said.stderr));
}

/// The driver, and the image `b.sif`, which is `busybox:desk` as well, with the program that asks for it.
fn with_driver(desk: &Desk) {
    let at = |name: &str| desk.path(name).to_str().unwrap().to_owned();
    for name in ["driver", "dev", "home/busybox/root/usr/bin", "home/busybox/root/opt"] {
        fs::create_dir_all(desk.path(name)).unwrap();
    }
    fs::write(desk.path("library.c"), LIBRARY).unwrap();
    for name in ["libcuda.so", "libnvidia-ml.so", "libamdhip64.so", "libother.so"] {
        let name_and_version = format!("{name}.1");
        let library = at(&format!("driver/{name_and_version}"));
        let soname = format!("-Wl,-soname,{name_and_version}");
        make("cc", &["-shared", "-fPIC", &soname, "-o", &library, &at("library.c")]);
    }
    std::os::unix::fs::symlink("libcuda.so.1", desk.path("driver/libcuda.so")).unwrap();
    fs::write(desk.path("ld.so.conf"), at("driver")).unwrap();
    make("/sbin/ldconfig", &["-X", "-C", &at("ld.so.cache"), "-f", &at("ld.so.conf")]);
    make("bash", &["-c", DEVICES, &at("")]);
    fs::write(desk.path("vendor.json"), VENDOR.replace("FOLDER", &at(""))).unwrap();
    for name in ["nvidia-smi", "rocminfo"] {
        let program = desk.path("bin").join(name);
        fs::write(&program, format!("#!/bin/sh\necho {name} of the host\n")).unwrap();
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    desk.file("probe.c", PROBE);
    make("cc", &["-o", &at("probe"), &at("home/probe.c"), "-ldl"]);
    // The program's own libraries, at their places.
    let needs = Said::of(Command::new("ldd").arg(desk.path("probe")).output().unwrap()).fine();
    let root = desk.path("home/busybox/root");
    for library in needs.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from) {
        let copy = root.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&library, copy).unwrap();
    }
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(desk.path("probe"), root.join("bin/probe")).unwrap();
    desk.busybox(&[]);
    desk.file("busybox/next.Dockerfile", "FROM busybox:desk\nCOPY root/ /\nENV LD_LIBRARY_PATH=/own\n");
    desk.run(&["isles", "build", "-q", "-t", "busybox:desk", "-f", "busybox/next.Dockerfile", "busybox"])
        .fine();
    desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
    desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
}

/// A line of a shell, where the driver is.
fn line(desk: &Desk, text: &str) -> Said {
    let plain = desk.command(&["sh", "-c", text]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_DRIVER]).arg(desk.path("")).arg(plain.get_program());
    command.args(plain.get_args()).env_clear().current_dir(plain.get_current_dir().unwrap());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Said::of(command.stdin(std::process::Stdio::null()).output().unwrap())
}

#[test]
fn drivers_and_devices_of_vendors_reach_containers() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: only root can show programs another /dev and another cache of the loader");
        return;
    }
    if !["cc", "ldd", "bash", "/bin/busybox", "/sbin/ldconfig"].iter().all(|program| installed(program)) {
        return;
    }
    both(|desk| {
        with_driver(desk);
        let asked = "probe libcuda.so.1 libcuda.so libnvidia-ml.so.1 libamdhip64.so.1 libother.so.1";
        let nvidia = "libcuda.so.1 12040\nlibcuda.so 12040\nlibnvidia-ml.so.1 12040\nlibamdhip64.so.1 none\n\
                      libother.so.1 none\n";
        let amd = "libcuda.so.1 none\nlibcuda.so none\nlibnvidia-ml.so.1 none\nlibamdhip64.so.1 12040\n\
                   libother.so.1 none\n";
        let none = amd.replace("12040", "none");
        let cdi = "echo $VENDOR $GPU; head -c 2 /dev/other | wc -c; test -c /dev/vendor0 && ls /opt/vendor | wc -l; \
                   touch /opt/vendor/x 2> /dev/null || echo read-only";
        let of_cdi = "all zero\n2\n5\nread-only\n";
        let nodes = "ls /dev /dev/dri 2> /dev/null | grep -e nvidia -e kfd -e render -e vendor";
        for (text, said) in [
            (format!("apptainer exec b.sif {asked}"), none.as_str()),
            (format!("apptainer exec --nv b.sif {asked}"), nvidia),
            (format!("apptainer exec --nv --cleanenv --contain b.sif {asked}"), nvidia),
            (format!("apptainer exec --rocm b.sif {asked}"), amd),
            (format!("APPTAINER_NV=1 apptainer exec b.sif {asked}"), nvidia),
            (format!("SINGULARITY_ROCM=true singularity exec b.sif {asked}"), amd),
            (format!("apptainer exec --nv --no-nv b.sif {asked}"), &none),
            (format!("apptainer exec --nv --unsquash b.sif {asked}"), nvidia),
            ("apptainer exec --nv b.sif nvidia-smi".into(), "nvidia-smi of the host\n"),
            ("apptainer exec --rocm b.sif rocminfo".into(), "rocminfo of the host\n"),
            ("apptainer exec --nv b.sif sh -c 'test -e /var/run/nvidia-persistenced/socket'".into(), ""),
            (format!("apptainer exec --contain b.sif sh -c '{nodes}' || true"), ""),
            (
                format!("apptainer exec --nv --contain b.sif sh -c '{nodes}'"),
                "nvidia-uvm\nnvidia0\nnvidiactl\n",
            ),
            (format!("apptainer exec --rocm --contain b.sif sh -c '{nodes}'"), "kfd\nrenderD128\n"),
            ("apptainer exec --nv --contain b.sif sh -c 'head -c 3 /dev/nvidiactl | wc -c'".into(), "3\n"),
            (
                format!(
                    "apptainer instance start --nv b.sif gpu 2> /dev/null && apptainer exec instance://gpu {asked}; \
                     apptainer instance stop gpu 2> /dev/null"
                ),
                nvidia,
            ),
            (format!("apptainer exec --contain --device vendor.com/gpu=0 b.sif sh -c '{cdi}'"), of_cdi),
            (
                format!(
                    "mkdir -p cdi && sed s,gpu,cpu, ../vendor.json > cdi/v.json && \
                     apptainer exec --contain --cdi-dirs $PWD/cdi --device 'vendor.com/cpu=*' b.sif sh -c '{cdi}'"
                ),
                of_cdi,
            ),
            (format!("isles run --rm busybox:desk {asked}"), &none),
            (format!("isles run --rm --nv busybox:desk {asked}"), nvidia),
            (format!("isles run --rm --rocm busybox:desk {asked}"), amd),
            (format!("isles run --rm --nv b.sif {asked}"), nvidia),
            ("isles run --rm --nv busybox:desk nvidia-smi".into(), "nvidia-smi of the host\n"),
            ("isles run --rm --nv busybox:desk sh -c 'echo ${LD_LIBRARY_PATH%%:*}'".into(), "/own\n"),
            (format!("isles run --rm --nv busybox:desk sh -c '{nodes}'"), "nvidia-uvm\nnvidia0\nnvidiactl\n"),
            (format!("isles run --rm --rocm busybox:desk sh -c '{nodes}'"), "kfd\nrenderD128\n"),
            ("isles run --rm --nv busybox:desk sh -c 'head -c 3 /dev/nvidiactl | wc -c'".into(), "3\n"),
            (format!("isles run --rm --device vendor.com/gpu=0 busybox:desk sh -c '{cdi}'"), of_cdi),
        ] {
            let answer = line(desk, &text);
            println!("{text}\n{answer:?}");
            assert_eq!(answer.code, Some(0), "{text}: {answer:?}");
            assert_eq!(answer.out, said, "{text}: {}", answer.err);
        }
        for (text, word) in [
            ("isles run --rm --device vendor.com/gpu=7 busybox:desk true", "'vendor.com/gpu=7'"),
            ("apptainer exec --device vendor.com/gpu=7 b.sif true", "'vendor.com/gpu=7'"),
            ("apptainer exec --device nothing b.sif true", "'nothing' is no name of a device"),
            ("apptainer exec --nvccli b.sif true", "--nvccli is not supported"),
        ] {
            let answer = line(desk, text);
            assert!(answer.code != Some(0) && answer.err.contains(word), "{text}: {answer:?}");
        }
        // What is not done is said.
        for text in [
            "isles run --rm --device vendor.com/gpu=0 busybox:desk true",
            "apptainer exec --device vendor.com/gpu=0 b.sif true",
        ] {
            assert!(line(desk, text).err.contains("'update-ldcache'"), "{text}");
        }
    });
}
