//! `isles oci` on hosts that are not like this one: with other control groups, and inside containers.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::fs;

use bundle::{Bundle, id};
use serde_json::json;

/// Runs a shell script around the runtime, in a mount namespace of its own: `"$@"` is `isles-oci … run ID`.
fn on_another_host(b: &Bundle, unshare: &[&str], script: &str, id: &str) -> bundle::Said {
    let runtime = b.command(&["run", id]);
    let mut command = std::process::Command::new("unshare");
    command.args(unshare).args(["--mount", "--propagation", "private", "sh", "-ec"]);
    command.arg(format!("{script}\nexec \"$@\"")).args(["sh", "timeout"]).args(runtime.get_args());
    command.current_dir(b.path(""));
    if bundle::is_root() && b.status_owner() != 0 {
        std::os::unix::process::CommandExt::uid(&mut command, bundle::NOBODY);
        std::os::unix::process::CommandExt::gid(&mut command, bundle::NOBODY);
    }
    b.finish(command)
}

#[test]
fn hosts_with_other_control_groups() {
    let Some(b) = Bundle::root() else { return };
    let id = &id("host");
    let take_away = "umount --lazy --recursive /sys/fs/cgroup";
    let v2 = format!("{take_away}; mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    let only_unified = "umount --lazy /sys/fs/cgroup/unified 2>/dev/null || true";
    b.script("echo fine; mkdir /sys/fs/cgroup/x 2>/dev/null || echo fast");
    for (host, script) in [("none", take_away), ("v2", &v2), ("v1", only_unified)] {
        b.edit(|c| c["linux"]["resources"] = json!(null));
        assert_eq!(on_another_host(&b, &[], script, id).ok(), "fine\nfast\n", "{host}");
        b.is_clean(id);
    }
    b.edit(|c| c["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}}));
    on_another_host(&b, &[], take_away, id).fails("no memory controller here");
    b.is_clean(id);
    // Devices need no controller on v2.
    b.edit(|c| {
        let rule = |allow: bool, more: serde_json::Value| {
            let mut rule = json!({"allow": allow, "access": "rwm"});
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule
        };
        c["linux"]["resources"] =
            json!({"devices": [rule(false, json!({})), rule(true, json!({"type": "c", "major": 10, "minor": 229}))]});
        c["linux"]["devices"] = json!([
            {"type": "c", "path": "/dev/kmsg", "major": 1, "minor": 11, "fileMode": 0o666},
        ]);
        c["process"]["args"] = json!(["sh", "-c", "head -c 0 /dev/null && echo null; head -c 0 /dev/kmsg 2>/dev/null || echo denied"]);
    });
    assert_eq!(on_another_host(&b, &[], &v2, id).ok(), "null\ndenied\n");
    b.is_clean(id);
}

#[test]
fn hosts_that_are_containers() {
    let Some(b) = Bundle::rootless() else { return };
    let id = &id("nested");
    b.script("id -u; test -c /dev/null && echo null; echo x > /tmp/x; test $$ = 1 && echo first");
    b.edit(|c| {
        c["linux"]["resources"] = json!(null);
        c["root"]["readonly"] = json!(false);
        let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        (c["linux"]["uidMappings"], c["linux"]["gidMappings"]) = (map.clone(), map);
    });
    let inside = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    assert_eq!(on_another_host(&b, &inside, "", id).ok(), "0\nnull\nfirst\n");
    // Where parts of every /proc are hidden, the kernel allows no other one.
    let inside = &inside[..2];
    if fs::read_to_string("/proc/self/mountinfo").unwrap().matches(" - proc ").count() > 1 {
        println!("skip: this host has more than one /proc");
        return;
    }
    let said = on_another_host(&b, inside, "mount --bind /dev/null /proc/cpuinfo", id);
    assert_ne!(said.code, 0);
    said.fails("cannot mount '/proc'").fails("PID namespace");
    b.edit(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
        c["process"]["args"] = json!(["sh", "-c", "echo fine; test -e /proc/self/stat && echo proc"]);
    });
    assert_eq!(on_another_host(&b, inside, "mount --bind /dev/null /proc/cpuinfo", id).ok(), "fine\nproc\n");
}

#[test]
fn containers_in_a_container() {
    let Some(b) = Bundle::root() else { return };
    let id = &id("inner");
    let inner = b.path("rootfs/inner");
    fs::create_dir_all(inner.join("rootfs/bin")).unwrap();
    for name in ["rootfs/bin/busybox", "isles-oci"] {
        let from = if name == "isles-oci" { b.path(name) } else { b.path("rootfs/bin/busybox") };
        assert!(std::process::Command::new("cp").arg(from).arg(inner.join(name)).status().unwrap().success());
    }
    std::os::unix::fs::symlink("busybox", inner.join("rootfs/bin/sh")).unwrap();
    b.edit(|c| {
        c["process"]["args"] = json!(["sh", "-ec",
            "cd /inner; ./isles-oci spec; sed -i 's/\"terminal\": true/\"terminal\": false/; s/\"sh\"/\"sh\", \"-c\", \"echo in $((6*7)); exit 3\"/' config.json
             ./isles-oci --root /tmp/state run inner || echo $?"]);
        let all = json!(["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL",
            "CAP_NET_ADMIN", "CAP_AUDIT_WRITE", "CAP_NET_BIND_SERVICE", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]);
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set] = all.clone();
        }
        c["root"]["readonly"] = json!(false);
        (c["linux"]["maskedPaths"], c["linux"]["readonlyPaths"]) = (json!([]), json!([]));
        for mount in c["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/sys/fs/cgroup" {
                mount["options"].as_array_mut().unwrap().retain(|o| o != "ro");
            }
        }
    });
    assert_eq!(b.oci(&["run", id]).ok(), "in 42\n3\n");
    b.is_clean(id);
}
