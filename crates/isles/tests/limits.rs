//! Limits of containers: they hold, or are refused by name.
#![allow(clippy::unwrap_used)]

mod apptainer;
mod world;

use std::fs;
use std::path::Path;

use world::{Said, Who, World, everyone};

#[test]
fn limits_work_or_are_refused_by_name() {
    everyone(|world| {
        let out = world.run(&["--ulimit", "nofile=64:128", "--", "sh", "-c", "ulimit -n; ulimit -Hn"]).fine();
        assert_eq!(out, "64\n128\n");
        let said = world.run(&[
            "--pids-limit",
            "4",
            "--",
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait",
        ]);
        if world.who != Who::Root {
            if said.code == 125 {
                assert!(said.err.contains("pids"), "{said:?}");
                let words = ["--pids-limit", "4", "--best-effort", "--", "true"];
                let said = world.run(&words);
                assert!(said.code == 0 && said.err.contains("warning:"), "{said:?}");
            }
            return;
        }
        assert!(said.err.contains("fork"), "{said:?}");
        let eat = "dd if=/dev/zero of=/dev/null bs=100M count=1";
        let said = world.run(&["--memory", "16m", "--memory-swap", "16m", "--", "sh", "-c", eat]);
        assert!(said.code != 0, "{said:?}");
        let said = world.run(&[
            "--memory",
            "16m",
            "--memory-swap",
            "16m",
            "--",
            "dd",
            "if=/dev/zero",
            "of=/dev/null",
            "bs=100M",
            "count=1",
        ]);
        assert_eq!(said.code, 137, "{said:?}");
        assert!(said.err.contains("more memory than its limit"), "{said:?}");
        world.run(&["--cpuset-cpus", "4000", "--", "true"]).fails(125, &["4000"]);
        world.run(&["--cpus", "0.5", "--", "true"]).fine();
    });
}

/// `--apply-cgroups` of `apptainer`.
#[test]
fn a_file_of_limits_has_rules_for_devices() {
    everyone(|world| {
        let tree = apptainer::sandbox(world).display().to_string();
        let file = world.path("home/limits.toml").display().to_string();
        let run = |text: &str, command: &[&str]| {
            fs::write(&file, text).unwrap();
            apptainer::say(world, &[&["exec", "--apply-cgroups", &file, &tree], command].concat())
        };
        let dd = |device: &'static str| ["dd", device, "of=/dev/null", "bs=1", "count=1"];
        let deny = "[[devices]]\nallow = false\ntype = \"c\"\nmajor = 1\nminor = 5\naccess = \"rwm\"\n";
        if world.who == Who::Root {
            run(deny, &dd("if=/dev/zero")).fails(1, &["Operation not permitted"]);
            run(deny, &dd("if=/dev/urandom")).fine();
            let first = "[[devices]]\nallow = false\n";
            run(&format!("{first}[[devices]]\nallow = true\ntype = \"c\"\nmajor = 1\n"), &dd("if=/dev/zero"))
                .fine();
        } else {
            run(deny, &["true"]).fails(255, &["rules for devices is not possible here"]);
        }
        for (text, word) in [
            ("[[devices]]\nallow = true\ntype = \"x\"\n", "the type 'x'"),
            ("[[devices]]\nallow = true\naccess = \"q\"\n", "the access 'q'"),
            ("[network]\nclassID = 1\n", "network"),
        ] {
            run(text, &["true"]).fails(255, &[word]);
        }
    });
}

/// A disk of this machine, and its numbers as the kernel writes them.
fn disk() -> Option<(String, String)> {
    let all = fs::read_dir("/sys/block").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut disks = all.filter(|name| !name.starts_with("loop") && !name.starts_with("zram"));
    let name = disks.find(|name| Path::new("/dev").join(name).exists())?;
    let numbers = fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
    Some((format!("/dev/{name}"), numbers.trim().to_owned()))
}

fn detached(world: &World, name: &str, options: &[&str]) -> Said {
    let stays = ["--name", name, "--", "sleep", "1000"];
    world.run(&[&["-d"], options, &stays].concat())
}

/// A file of a container's control group: that of a controller of cgroup v1, or of v2 where none is named.
fn in_group(world: &World, name: &str, controller: &str, file: &str) -> Option<String> {
    let pid = world.isles(&["inspect", "-f", "{{.State.Pid}}", name]).fine();
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).unwrap();
    let path = groups.lines().find_map(|line| {
        let (of, path) = line.split_once(':')?.1.split_once(':')?;
        (of == controller).then_some(path)
    });
    fs::read_to_string(format!("/sys/fs/cgroup/{controller}{}/{file}", path?)).ok()
}

#[test]
fn block_devices_are_bounded() {
    everyone(|world| {
        for (option, value) in [
            ("--device-write-bps", "/dev/sda"),
            ("--device-read-iops", "sda:1"),
            ("--blkio-weight-device", "/dev/sda:1"),
            ("--blkio-weight", "5"),
            ("--memory-swappiness", "101"),
        ] {
            world.run(&[option, value, "--", "true"]).fails(125, &[value]);
        }
        world
            .run(&["--device-read-bps", "/dev/null:1mb", "--", "true"])
            .fails(125, &["/dev/null", "no block"]);
        if world.who != Who::Root {
            return;
        }
        let Some((device, numbers)) = disk() else {
            println!("skip: there is no disk");
            return;
        };
        let (bytes, often) = (format!("{device}:1mb"), format!("{device}:500"));
        let said = detached(world, "disk", &["--device-write-bps", &bytes, "--device-read-iops", &often]);
        if said.code == 125 {
            assert!(said.err.contains("controller"), "{said:?}");
            println!("skip: {}", said.err.trim());
            return;
        }
        let of_v1 = ["write_bps", "read_iops"].map(|what| format!("blkio.throttle.{what}_device"));
        let limits = match of_v1.map(|file| in_group(world, "disk", "blkio", &file)) {
            [Some(bytes), Some(often)] => bytes + &often,
            _ => in_group(world, "disk", "", "io.max").unwrap(),
        };
        world.isles(&["rm", "-f", "disk"]).fine();
        for expected in [&numbers[..], "1048576", "500"] {
            assert!(limits.contains(expected), "{limits}");
        }
    });
}

#[test]
fn what_cgroup_v1_alone_has() {
    everyone(|world| {
        if world.who != Who::Root {
            return;
        }
        let words = ["--memory-swappiness", "10", "--oom-kill-disable"];
        let said = detached(world, "old", &words);
        if Path::new("/sys/fs/cgroup/memory").is_dir() {
            said.fine();
            let read = |file| in_group(world, "old", "memory", file).unwrap();
            let (swappiness, killer) = (read("memory.swappiness"), read("memory.oom_control"));
            world.isles(&["rm", "-f", "old"]).fine();
            assert_eq!(swappiness, "10\n");
            assert!(killer.contains("oom_kill_disable 1"), "{killer}");
        } else {
            said.fails(125, &["cgroup v2"]);
            let said = world.run(&[&words[..], &["--best-effort", "--", "true"]].concat());
            assert!(said.code == 0 && said.err.matches("cgroup v2").count() == 2, "{said:?}");
        }
    });
}
