//! Groups on the machine that runs the tests, each under a name of its own.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// The machine's layout, where this process may make groups in it.
fn usable() -> Option<Layout> {
    let layout = Layout::detect().unwrap();
    let mount = layout.v2.as_ref().map(|u| &u.mount).or(layout.v1.first().map(|h| &h.mount));
    let writable = mount.is_some_and(|m| rustix::fs::access(m, rustix::fs::Access::WRITE_OK).is_ok());
    if !writable {
        println!("skip: no control groups that this user may change");
    }
    writable.then_some(layout)
}

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn create(layout: &Layout, limits: &Limits) -> (String, Group) {
    let path = name();
    let request = Request { path: &path, limits, accounting: false, best_effort: false };
    let (group, warnings) = Group::create(layout, &request).unwrap();
    assert!(warnings.is_empty());
    (path, group)
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

/// Kills, reaps and removes.
fn end(mut group: Group, mut child: Child) {
    group.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    let paths: Vec<_> = group.paths().collect();
    group.remove().unwrap();
    for path in paths {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn only_hierarchies_with_a_limit_are_entered() {
    let Some(layout) = usable() else { return };
    let Some(memory) = layout.hierarchy("memory").filter(|_| layout.hierarchy("pids").is_some()) else {
        println!("skip: memory and pids are not on cgroup v1 here");
        return;
    };
    let memory = memory.mount.clone();
    let limits = Limits { memory: Some(64 << 20), pids: Some(20), ..Limits::default() };
    let (path, mut group) = create(&layout, &limits);
    assert_eq!(group.v1.len(), 2, "{group:?}");
    assert!(group.needs_attach());
    let read = |file: &str| std::fs::read_to_string(memory.join("isles").join(&path).join(file)).unwrap();
    assert_eq!(read("memory.limit_in_bytes").trim(), (64 << 20).to_string());
    let child = sleeper();
    group.enter(child.id() as i32).unwrap();
    assert_eq!(group.processes().unwrap(), [child.id() as i32]);
    assert!(read("cgroup.procs").contains(&child.id().to_string()));
    let stats = group.stats();
    assert_eq!((stats.pids, stats.pids_limit, stats.memory_limit), (Some(1), Some(20), Some(64 << 20)));

    // A limit of a further controller brings its hierarchy in, with the processes that are there.
    let more = Limits { cpu_shares: Some(512), memory: Some(96 << 20), ..Limits::default() };
    group.update(&more, false).unwrap();
    assert_eq!(group.v1.len(), 3);
    assert_eq!(read("memory.limit_in_bytes").trim(), (96 << 20).to_string());
    let again = Group::open(&layout, &path).unwrap();
    assert_eq!(again.v1.len(), 3);
    assert_eq!(again.stats().memory_limit, Some(96 << 20));
    end(again, child);
}

#[test]
fn memory_and_swap_grow_and_shrink() {
    let Some(layout) = usable() else { return };
    let Some(memory) = layout.hierarchy("memory") else {
        println!("skip: memory is not on cgroup v1 here");
        return;
    };
    if !memory.mount.join("memory.memsw.limit_in_bytes").exists() {
        println!("skip: swap is not counted here");
        return;
    }
    let both =
        |mib: i64| Limits { memory: Some(mib << 20), memory_swap: Some(mib << 20), ..Limits::default() };
    let (_, mut group) = create(&layout, &both(32));
    for mib in [64, 16, 128] {
        group.update(&both(mib), false).unwrap();
        assert_eq!(group.stats().memory_limit, Some((mib as u64) << 20));
    }
    group.remove().unwrap();
}

#[test]
fn what_cannot_be_limited_is_named() {
    let Some(layout) = usable() else { return };
    let cases = [
        (Limits { net_priorities: vec![("lo".into(), 1)], ..Limits::default() }, "net_prio"),
        (
            Limits { unified: [("memory.nothing".into(), "1".into())].into(), ..Limits::default() },
            "memory.nothing",
        ),
        (Limits { unified: [("../x".into(), "1".into())].into(), ..Limits::default() }, "not a limit"),
        (Limits { unified: [("cgroup.kill".into(), "1".into())].into(), ..Limits::default() }, "not a limit"),
    ];
    for (limits, word) in cases {
        if word == "net_prio" && layout.hierarchy("net_prio").is_some() {
            continue;
        }
        let path = name();
        let mut request = Request { path: &path, limits: &limits, accounting: false, best_effort: false };
        let error = Group::create(&layout, &request).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(Group::open(&layout, &path).unwrap().is_absent(), "a failed creation left something");
        request.best_effort = true;
        let (group, warnings) = Group::create(&layout, &request).unwrap();
        assert_eq!(warnings.len(), 1);
        group.remove().unwrap();
    }
    for bad in ["", "/", "..", "a/../b", "/../etc", "a\nb"] {
        let request =
            Request { path: bad, limits: &Limits::default(), accounting: false, best_effort: false };
        assert!(matches!(Group::create(&layout, &request), Err(Error::Name(_))), "{bad}");
    }
}

/// The layout with its v1 half hidden, as a machine with cgroup v2 alone has it.
fn only_v2() -> Option<Layout> {
    let layout = usable()?;
    if layout.v2.is_none() {
        println!("skip: no cgroup v2 tree here");
        return None;
    }
    Some(Layout { v1: Vec::new(), v2: layout.v2 })
}

#[test]
fn v2_freezes_thaws_and_kills() {
    let Some(layout) = only_v2() else { return };
    let (_, mut group) = create(&layout, &Limits::default());
    assert!(!group.needs_attach());
    let child = sleeper();
    group.enter(child.id() as i32).unwrap();
    group.freeze().unwrap();
    assert!(group.is_frozen());
    group.thaw().unwrap();
    assert!(!group.is_frozen());
    group.freeze().unwrap();
    end(group, child);
}

#[test]
fn a_group_whose_processes_still_end_is_waited_for() {
    let Some(layout) = usable() else { return };
    for limits in [Limits::default(), Limits { pids: Some(100), ..Limits::default() }] {
        let (_, mut group) = create(&layout, &limits);
        let mut children: Vec<Child> = (0..30).map(|_| sleeper()).collect();
        children.iter().for_each(|c| group.enter(c.id() as i32).unwrap());
        let paths: Vec<_> = group.paths().collect();
        // rmdir(2) says EBUSY as long as one of them is there.
        assert_eq!(std::fs::remove_dir(&paths[0]).unwrap_err().raw_os_error(), Some(libc::EBUSY));
        group.kill().unwrap();
        group.remove().unwrap();
        assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
        for child in &mut children {
            child.wait().unwrap();
        }
    }
}

#[test]
fn v1_freezer_joins_on_demand() {
    let Some(mut layout) = usable() else { return };
    if layout.hierarchy("freezer").is_none() || layout.hierarchy("pids").is_none() {
        println!("skip: no v1 freezer here");
        return;
    }
    layout.v2 = None;
    let (_, mut group) = create(&layout, &Limits { pids: Some(10), ..Limits::default() });
    let child = sleeper();
    group.enter(child.id() as i32).unwrap();
    group.freeze().unwrap();
    assert!(group.is_frozen());
    group.thaw().unwrap();
    assert!(!group.is_frozen());
    end(group, child);
}

#[test]
fn v2_without_a_controller_says_so() {
    let Some(layout) = only_v2() else { return };
    let mount = &layout.v2.as_ref().unwrap().mount;
    let has = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap();
    if has.contains("memory") {
        println!("skip: the v2 tree has the memory controller");
        return;
    }
    let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
    let path = name();
    let request = Request { path: &path, limits: &limits, accounting: false, best_effort: false };
    let error = Group::create(&layout, &request).unwrap_err();
    assert_eq!(error.to_string(), "cannot limit memory: no memory controller here");
    assert!(error.hint().unwrap().contains("/proc/cgroups"));
    let swap = Limits { memory_swap: Some(1 << 20), ..Limits::default() };
    let request = Request { limits: &swap, ..request };
    assert!(Group::create(&layout, &request).unwrap_err().to_string().contains("needs a limit on memory"));
}

fn opens_null() -> bool {
    Command::new("cat").arg("/dev/null").stderr(std::process::Stdio::null()).status().unwrap().success()
}

/// Runs in a thread of its own that sits in the group, where the tree allows single threads; so in a child.
fn opens_in(group: &Group, device: &str) -> bool {
    let script = format!("read go; exec 2>/dev/null; exec 3<{device}");
    let mut child =
        Command::new("sh").args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    group.enter(child.id() as i32).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    child.wait().unwrap().success()
}

#[test]
fn devices_on_both_versions() {
    let Some(layout) = usable() else { return };
    assert!(opens_null());
    let v2 = only_v2();
    for layout in std::iter::once(layout.clone()).chain(v2) {
        let closed = vec![
            DeviceRule::all(false),
            DeviceRule::allow(DeviceKind::Char, Some(1), Some(5), Access::parse("r").unwrap()),
            DeviceRule::allow(DeviceKind::Char, Some(1), Some(3), Access::parse("w").unwrap()),
        ];
        let limits = Limits { devices: Some(closed), ..Limits::default() };
        let path = name();
        let request = Request { path: &path, limits: &limits, accounting: false, best_effort: false };
        let (mut group, _) = match Group::create(&layout, &request) {
            Ok(made) => made,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                println!("skip: this user may not load device programs");
                continue;
            }
            Err(e) => panic!("{e}"),
        };
        assert!(opens_in(&group, "/dev/zero"), "{} group", layout.kind());
        assert!(!opens_in(&group, "/dev/random"), "{} group", layout.kind());
        let open = Limits { devices: Some(vec![DeviceRule::all(true)]), ..Limits::default() };
        group.update(&open, false).unwrap();
        assert!(opens_in(&group, "/dev/random"), "{} group after an update", layout.kind());
        let default = Limits { devices: Some(DeviceRule::container()), ..Limits::default() };
        group.update(&default, false).unwrap();
        assert!(opens_in(&group, "/dev/random"), "{} group with the default", layout.kind());
        group.remove().unwrap();
    }
}

#[test]
fn leftovers_are_collected() {
    let Some(layout) = usable() else { return };
    let prefix = format!("left-{}-", std::process::id());
    let none = Limits::default();
    for part in ["dead", "alive"] {
        let path = format!("{prefix}{part}");
        let request = Request { path: &path, limits: &none, accounting: false, best_effort: false };
        Group::create(&layout, &request).unwrap();
    }
    let mut child = sleeper();
    Group::open(&layout, &format!("{prefix}dead")).unwrap().enter(child.id() as i32).unwrap();
    let removed = Group::collect(&layout, &prefix, &|n| n.ends_with("alive")).unwrap();
    assert_eq!(removed, [format!("{prefix}dead")]);
    child.wait().unwrap();
    Group::open(&layout, &format!("{prefix}alive")).unwrap().remove().unwrap();
}

#[test]
fn out_of_memory_is_counted_and_wakes_the_watcher() {
    let Some(layout) = usable() else { return };
    let limits = Limits { memory: Some(8 << 20), memory_swap: Some(8 << 20), ..Limits::default() };
    let path = name();
    let request = Request { path: &path, limits: &limits, accounting: false, best_effort: true };
    let (group, warnings) = Group::create(&layout, &request).unwrap();
    if !warnings.is_empty() {
        println!("skip: {}", warnings[0]);
        group.remove().unwrap();
        return;
    }
    let watch = group.watch_oom().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "read go; exec dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    group.enter(child.id() as i32).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    child.wait().unwrap();
    let mut fds = [rustix::event::PollFd::new(&watch.fd, watch.flags)];
    let patience = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&patience)), Ok(1));
    assert!(group.oom_kills() > 0);
    group.remove().unwrap();
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: not root, so no other user to become");
        return;
    }
    // SAFETY: the child changes its own identity, reports through its exit code and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            libc::setgroups(0, std::ptr::null());
            libc::setgid(4242);
            libc::setuid(4242);
        }
        let outcome = std::panic::catch_unwind(|| {
            let layout = Layout::detect().unwrap();
            let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
            let request = Request { path: "web", limits: &limits, accounting: false, best_effort: false };
            let error = Group::create(&layout, &request).unwrap_err();
            assert_eq!(error.to_string(), "cannot limit memory: no memory controller here");
            assert!(error.hint().unwrap().contains("delegated"));
            let (group, warnings) =
                Group::create(&layout, &Request { best_effort: true, ..request }).unwrap();
            assert!(group.is_absent());
            assert_eq!(warnings.len(), 1);
            let none = Limits { devices: Some(DeviceRule::container()), ..Limits::default() };
            let (group, _) = Group::create(&layout, &Request { limits: &none, ..request }).unwrap();
            assert!(group.unified_fd().is_none());
            group.remove().unwrap();
        });
        // SAFETY: leaves without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
}
