//! `cargo xtask conformance oci`: the validation programs of opencontainers/runtime-tools against our OCI runtime.
//!
//! The suite is not part of the project: `ISLES_RUNTIME_TOOLS` names a checkout in which `make runtimetest
//! validation-executables` was run. A program is clean when it ends with 0 and no assertion of it failed.
//!
//! Some programs assume v1 hierarchies that few machines still mount. Where the kernel has them, they are mounted for
//! these programs alone, in a mount namespace that ends with them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, workspace};

/// Programs that cannot be clean, whatever the runtime does, with the reason.
const UNFAIR: [(&str, &str); 18] = [
    ("delete_resources", "compares the addresses, not the values, of the limit of processes"),
    ("linux_cgroups_blkio", "needs a block device 8:0"),
    (
        "linux_cgroups_hugetlb",
        "needs the v1 hierarchy hugetlb, which the kernel does not have or cgroup v2 holds",
    ),
    ("linux_cgroups_memory", "sets the limit of kernel memory, which Linux 5.16 took away"),
    (
        "linux_cgroups_network",
        "needs the v1 hierarchies net_cls and net_prio, which the kernel does not have",
    ),
    ("linux_cgroups_pids", "compares the addresses, not the values, of the limit of processes"),
    ("linux_cgroups_relative_blkio", "needs a block device 8:0"),
    (
        "linux_cgroups_relative_hugetlb",
        "needs the v1 hierarchy hugetlb, which the kernel does not have or cgroup v2 holds",
    ),
    ("linux_cgroups_relative_memory", "sets the limit of kernel memory, which Linux 5.16 took away"),
    (
        "linux_cgroups_relative_network",
        "needs the v1 hierarchies net_cls and net_prio, which the kernel does not have",
    ),
    ("linux_cgroups_relative_pids", "compares the addresses, not the values, of the limit of processes"),
    ("linux_process_apparmor_profile", "needs AppArmor, and a profile of that name"),
    ("misc_props", "starts a program that it did not put into the bundle"),
    ("pidfile", "kills a container whose program has ended, which other programs want to be an error"),
    ("process_capabilities", "needs all capabilities, CAP_SYS_RESOURCE among them"),
    ("process_capabilities_fail", "wants an error where the specification since 1.0.3 wants a warning"),
    ("process_rlimits", "built with Go 1.19 or later it raises its own limit before it looks at it"),
    ("start", "wants no error from the start of a container without a process"),
];

/// The programs that want hierarchies which may not be mounted.
const OLD_HIERARCHIES: [&str; 4] = [
    "linux_cgroups_hugetlb",
    "linux_cgroups_network",
    "linux_cgroups_relative_hugetlb",
    "linux_cgroups_relative_network",
];

/// Runs its arguments with those hierarchies beside the mounted ones. The tree of mounts is built elsewhere and moved
/// into place, because /sys/fs/cgroup itself is the host's. In the end the kernel gets the controllers back, which takes
/// until the last groups are gone: unmounted while one still goes, a hierarchy stays, and cgroup v2 would miss it.
const WITH_OLD_HIERARCHIES: &str = r#"
at=$(mktemp -d) && mount -t tmpfs -o mode=755 tmpfs "$at" || exit 99
for from in $(awk '$5 ~ "^/sys/fs/cgroup/" { print $5 }' /proc/self/mountinfo); do
    to="$at/${from#/sys/fs/cgroup/}"
    mkdir -p "$to" && mount --bind "$from" "$to" || exit 99
done
added=
for name in hugetlb net_cls net_prio; do
    [ -e "$at/$name" ] && continue
    mkdir "$at/$name"
    if mount -t cgroup -o "$name" cgroup "$at/$name" 2>/dev/null; then added="$added $name"; else rmdir "$at/$name"; fi
done
mount --move "$at" /sys/fs/cgroup && rmdir "$at" || exit 99
"$@"
code=$?
for name in $added; do
    for try in 1 2 3 4 5 6 7 8 9 10; do
        find "/sys/fs/cgroup/$name" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
        umount "/sys/fs/cgroup/$name"
        # The kernel gives it up behind our back.
        sleep 0.2
        grep -q "^$name[[:space:]]0[[:space:]]" /proc/cgroups && break
        mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" || break
    done
done
exit $code
"#;

/// Runs all programs, or those that are named.
pub fn run(names: &[String]) -> Result<()> {
    let Some(tools) = std::env::var_os("ISLES_RUNTIME_TOOLS").map(PathBuf::from) else {
        println!("skip: ISLES_RUNTIME_TOOLS does not name a built checkout of opencontainers/runtime-tools");
        return Ok(());
    };
    let scratch = std::env::temp_dir().join(format!("isles-conformance-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(|e| format!("cannot make {}: {e}", scratch.display()))?;
    let outcome = runtime(&scratch).and_then(|runtime| programs(&tools, names, &runtime));
    // What is left of a failed clean-up is in the system's folder for temporary files.
    let _ = std::fs::remove_dir_all(&scratch);
    outcome
}

/// The program under the name by which it is an OCI runtime.
fn runtime(scratch: &Path) -> Result<PathBuf> {
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--package", "isles", "--message-format", "json"])
        .current_dir(workspace())
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !built.status.success() {
        return Err(format!("isles does not build: {}", String::from_utf8_lossy(&built.stderr)));
    }
    let messages = String::from_utf8_lossy(&built.stdout);
    let executable = messages
        .lines()
        .filter_map(|line| line.split_once("\"executable\":\"")?.1.split_once('"'))
        .map(|(path, _)| path.to_owned())
        .next_back()
        .ok_or("cargo did not say where the program is")?;
    let link = scratch.join("isles-oci");
    std::os::unix::fs::symlink(&executable, &link).map_err(|e| format!("cannot link {executable}: {e}"))?;
    Ok(link)
}

fn programs(tools: &Path, names: &[String], runtime: &Path) -> Result<()> {
    let folder = tools.join("validation");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
    let mut all: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| folder.join(name).join(format!("{name}.t")).exists())
        .filter(|name| names.is_empty() || names.contains(name))
        .collect();
    all.sort();
    if all.is_empty() {
        return Err(format!(
            "{} has no programs: run 'make runtimetest validation-executables' there",
            folder.display()
        ));
    }
    let (mut clean, mut unexpected) = (0, Vec::new());
    for name in &all {
        let program = folder.join(name).join(format!("{name}.t"));
        let mut command = if OLD_HIERARCHIES.contains(&name.as_str()) {
            let mut shell = Command::new("unshare");
            shell.args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                WITH_OLD_HIERARCHIES,
                "sh",
                "timeout",
            ]);
            shell
        } else {
            Command::new("timeout")
        };
        let output = command
            .args(["-k", "1", "120"])
            .arg(program)
            .current_dir(tools)
            .env("RUNTIME", runtime)
            .output()
            .map_err(|e| format!("cannot run {name}: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let failed = text.lines().filter(|l| l.starts_with("not ok")).count();
        if output.status.success() && failed == 0 {
            clean += 1;
            continue;
        }
        let reason = UNFAIR.iter().find(|(unfair, _)| unfair == name).map(|(_, reason)| *reason);
        println!("{name}: {failed} failed, {}: {}", output.status, reason.unwrap_or("not expected"));
        if reason.is_none() {
            unexpected.push(name.as_str());
        }
    }
    println!("{clean} of {} programs are clean", all.len());
    if unexpected.is_empty() { Ok(()) } else { Err(format!("not clean: {}", unexpected.join(", "))) }
}
