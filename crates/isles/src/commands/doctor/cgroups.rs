//! Control groups: which there are, and whether this user may make some.

use std::path::{Path, PathBuf};

use isles_sandbox::cgroup::{Group, Layout, Limits, Request};
use isles_spec::Hint;

use super::Finding;

/// What people limit.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];

pub fn findings() -> Vec<Finding> {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(e) => {
            return vec![Finding::note(
                "control groups",
                format!("cannot be read: {e}"),
                "mount /proc and /sys/fs/cgroup",
            )];
        }
    };
    let mut findings = vec![kind(&layout)];
    if layout.kind() != "none" {
        findings.push(delegation(&layout));
    }
    findings
}

fn kind(layout: &Layout) -> Finding {
    const CHECK: &str = "control groups";
    let unified = layout.v2.as_ref().map(|v2| enabled(&v2.mount, &v2.own)).unwrap_or_default();
    let has = |name: &str| layout.hierarchy(name).is_some() || unified.iter().any(|c| c == name);
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
    let words = match layout.kind() {
        "none" => {
            return Finding::note(
                CHECK,
                "there are none: nothing can be limited",
                "mount -t cgroup2 none /sys/fs/cgroup",
            );
        }
        "v1" => "version 1",
        "v2" => "version 2",
        _ => "versions 1 and 2 beside each other",
    };
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("{words}, with {}", CONTROLLERS.join(", ")));
    }
    Finding::note(
        CHECK,
        format!("{words}, without {}", missing.join(", ")),
        "these limits are refused by name; see `Delegate=` in systemd.resource-control(5), or the kernel's command line",
    )
}

/// The controllers of the v2 tree at a group, or at its mount where that cannot be read.
fn enabled(mount: &Path, own: &str) -> Vec<String> {
    let at = |dir: PathBuf| std::fs::read_to_string(dir.join("cgroup.controllers")).ok();
    let text = at(mount.join(own.trim_start_matches('/'))).or_else(|| at(mount.to_owned()));
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Makes a group and removes it.
fn delegation(layout: &Layout) -> Finding {
    const CHECK: &str = "own groups";
    let path = format!("isles-doctor-{}", std::process::id());
    let limits = Limits::default();
    let request = Request { path: &path, limits: &limits, accounting: false, best_effort: false };
    match Group::create(layout, &request).and_then(|(group, _)| {
        let made = !group.is_absent();
        group.remove().map(|()| made)
    }) {
        Ok(true) => Finding::ok(CHECK, "can be made, so limits work"),
        Ok(false) => Finding::note(
            CHECK,
            "this user has no part of the tree: containers run, but cannot be limited",
            "log in through systemd with delegation (`systemd-run --user --scope -p Delegate=yes`), or run as root",
        ),
        Err(e) => Finding::note(
            CHECK,
            format!("{e}"),
            e.hint().unwrap_or_else(|| "containers run, but cannot be limited".into()),
        ),
    }
}
