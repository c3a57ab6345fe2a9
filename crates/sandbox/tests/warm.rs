//! Programs that run one after the other in a warm sandbox.
#![allow(clippy::unwrap_used)]

mod busybox;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use busybox::*;
use isles_sandbox::setup::*;
use isles_sandbox::{ExitStatus, Setup, WarmKind, WarmSandbox};
use isles_spec::Propagation;

/// A container whose root is written in memory, as steps of workflows have it.
fn in_memory(root: &Path, dir: &Path, script: &str) -> Setup {
    let place = dir.join("place");
    fs::create_dir_all(&place).unwrap();
    let overlay = RootFs::Overlay {
        lowers: vec![root.to_owned()],
        upper: place.join("upper"),
        work: place.join("work"),
        volatile: false,
        userxattr: false,
        foreign: false,
    };
    let mut setup = setup(overlay, script, UserNs::Host);
    let folders = vec!["upper".to_owned(), "work".to_owned()];
    let source = PreparedSource::Memory { size: None, folders };
    setup.prepared = vec![Prepared { place, source, name: "memory".into() }];
    setup.mounts.push(Mount::new("/dev/shm", memory_at()));
    setup
}

/// Runs `body` where there are warm sandboxes, with an image, and a folder.
fn with_image(body: impl FnOnce(&Path, &Path)) {
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    body(&root, dir.path());
}

fn made(setup: &Setup) -> WarmSandbox {
    WarmSandbox::new(setup, WarmKind::of(setup).unwrap()).unwrap().unwrap()
}

fn fits(sandbox: &WarmSandbox, setup: &Setup) -> bool {
    WarmKind::of(setup).is_some_and(|kind| sandbox.fits(&kind))
}

/// What a script says in this sandbox.
fn say(sandbox: &Arc<WarmSandbox>, root: &Path, dir: &Path, script: &str) -> String {
    let mut setup = in_memory(root, dir, script);
    assert!(fits(sandbox, &setup));
    setup.warm = Some(sandbox.clone());
    let (status, output) = run(&mut setup);
    assert_eq!(status, ExitStatus::Code(0), "{script}: {output}");
    output
}

fn warm(root: &Path, dir: &Path) -> Arc<WarmSandbox> {
    let sandbox = Arc::new(made(&in_memory(root, dir, "true")));
    assert!(sandbox.is_clean());
    sandbox
}

#[test]
fn a_warm_sandbox_looks_like_any_other() {
    with_image(|root, dir| {
        let sandbox = warm(root, dir);
        let look = "hostname; id -u; ls / /.. /dev /dev/pts /dev/mqueue /sys/firmware /proc/self/fd; pwd
            test ! -s /proc/kcore; if echo 1 > /proc/sys/kernel/panic; then echo writable; fi 2>/dev/null
            while read s at kind rest; do echo mount $at $kind; done < /proc/self/mounts
            while read l; do case $l in *lo:*) echo loopback;; esac; done < /proc/net/dev; ls /sys/class/net; echo y > /dev/null
            while read k v; do case $k in Cap*|NoNew*|Seccomp:) echo $k $v;; esac; done < /proc/self/status; cat /proc/self/cgroup
            echo x > /tmp/x; cat /tmp/x";
        let (status, plain) = run(&mut in_memory(root, dir, look));
        assert_eq!(status, ExitStatus::Code(0), "{plain}");
        let output = say(&sandbox, root, dir, look);
        assert_eq!(sorted(&output), sorted(&plain));
        assert!(output.contains("isle") && output.contains("mount /sys/firmware tmpfs"), "{output}");
        assert!(output.contains("loopback") && !output.contains("writable"), "{output}");
    });
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn what_leaves_something_behind_is_noticed() {
    with_image(|root, dir| {
        for (what, script) in [
            ("a new file", "echo x > /x"),
            ("a new folder", "busybox mkdir /d"),
            ("terminals that nobody can open", "busybox chmod 0 /dev/pts/ptmx"),
            ("shared memory", "echo x > /dev/shm/x"),
            ("a message queue", "busybox touch /dev/mqueue/x"),
            ("a file that is gone", "busybox rm /bin/true"),
            ("a changed file", "busybox chmod 700 /bin/busybox"),
            ("another mode", "busybox chmod 700 /"),
            ("another owner", "busybox chown 7 /"),
            ("other times", "busybox touch -d @1 /tmp"),
            ("a file that was there for a moment", "echo > /x; busybox rm /x"),
            ("a place that was changed", "busybox chmod 700 /mine"),
        ] {
            let mut setup = in_memory(root, dir, script);
            setup.mounts.push(Mount::new("/mine/place", memory_at()));
            let sandbox = Arc::new(made(&setup));
            setup.warm = Some(sandbox.clone());
            let (status, output) = run(&mut setup);
            assert_eq!(status, ExitStatus::Code(0), "{what}: {output}");
            assert!(!sandbox.is_clean(), "{what}");
        }
        assert!(root.join("bin/true").exists());
    });
}

/// In a container only, where the test below runs it.
#[test]
fn make_ipc() {
    let Ok(kind) = std::env::var("MAKE") else {
        println!("skip: the test of System V IPC runs this in a container");
        return;
    };
    // SAFETY: the calls take numbers.
    let made = unsafe {
        match kind.as_str() {
            "shm" => libc::shmget(libc::IPC_PRIVATE, 4096, 0o600),
            "msg" => libc::msgget(libc::IPC_PRIVATE, 0o600),
            _ => libc::semget(libc::IPC_PRIVATE, 1, 0o600),
        }
    };
    assert!(made >= 0);
}

#[test]
fn what_is_left_of_system_v_ipc_is_noticed() {
    with_image(|root, dir| {
        for kind in ["shm", "msg", "sem"] {
            let script = format!("MAKE={kind} /self/test --exact make_ipc > /dev/null");
            let mut setup = in_memory(root, dir, &script);
            let program = std::env::current_exe().unwrap();
            let source = MountSource::Bind { source: program, recursive: false };
            setup.mounts.push(Mount::new("/self/test", source));
            let sandbox = Arc::new(made(&setup));
            setup.warm = Some(sandbox.clone());
            assert_eq!(run(&mut setup), (ExitStatus::Code(0), String::new()), "{kind}");
            assert!(!sandbox.is_clean(), "{kind}");
        }
    });
}

fn memory_at() -> MountSource {
    MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options: Vec::new() }
}

#[test]
fn what_leaves_nothing_behind_is_followed_by_others() {
    with_image(|root, dir| {
        let sandbox = warm(root, dir);
        for script in [
            "true",
            "cat /bin/busybox > /dev/null; ls / /dev /proc > /dev/null",
            "if echo s > /dev/file; then exit 1; fi 2> /dev/null",
            "if busybox rm /dev/null; then exit 1; fi 2> /dev/null",
            "if busybox hostname other; then exit 1; fi 2> /dev/null; test $(hostname) = isle",
            "(sleep 0.01; true) & wait",
        ] {
            assert_eq!(say(&sandbox, root, dir, script), "", "{script}");
            assert!(sandbox.is_clean(), "{script}");
        }
    });
}

#[test]
fn whoever_is_left_is_noticed_and_ends_with_the_sandbox() {
    with_image(|root, dir| {
        let sandbox = warm(root, dir);
        let mut setup = in_memory(root, dir, "sleep 1000 > /dev/null 2>&1 & exit 0");
        setup.warm = Some(sandbox.clone());
        assert_eq!(run(&mut setup).0, ExitStatus::Code(0));
        assert!(!sandbox.is_clean());
        drop(setup);
        // A pipe that it holds tells of its end.
        let (mut read, write) = std::io::pipe().unwrap();
        let mut setup = in_memory(root, dir, "sleep 1000 & exit 0");
        setup.stdio.stdout = Some(write.into());
        setup.warm = Some(sandbox.clone());
        let mut child = isles_sandbox::spawn(&setup).unwrap();
        child.wait().unwrap();
        drop((setup, sandbox));
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut read, &mut rest).unwrap();
        assert_eq!(rest, "");
    });
}

#[test]
fn binds_come_from_the_host() {
    with_image(|root, dir| {
        let source = dir.join("data");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("in"), "in\n").unwrap();
        let script = "cat /data/in; cat /staged/deep/file; echo out > /data/out; if echo > /ro/in; then exit 1; fi 2>/dev/null";
        let mut setup = in_memory(root, dir, script);
        let bind = |at: &str, source: PathBuf, read_only: bool| Mount {
            propagation: Some(Propagation::Private),
            flags: MountFlags { read_only, recursive: true, ..MountFlags::default() },
            ..Mount::new(at, MountSource::Bind { source, recursive: true })
        };
        setup.mounts.push(bind("/data", source.clone(), false));
        setup.mounts.push(bind("/ro", source.clone(), true));
        setup.mounts.push(Mount::new("/staged", memory_at()));
        setup.mounts.push(bind("/staged/deep/file", source.join("in"), true));
        let sandbox = Arc::new(made(&setup));
        setup.warm = Some(sandbox.clone());
        for _ in 0..2 {
            assert_eq!(run(&mut setup), (ExitStatus::Code(0), "in\nin\n".to_owned()));
            assert!(sandbox.is_clean());
        }
        assert_eq!(fs::read_to_string(source.join("out")).unwrap(), "out\n");
        // Below what is mounted anew each time, names may differ.
        setup.mounts.pop();
        setup.mounts.push(bind("/staged/other", source, true));
        assert!(fits(&sandbox, &setup));
    });
}

#[test]
fn what_does_not_fit() {
    with_image(|root, dir| {
        let sandbox = warm(root, dir);
        let other = dir.join("other");
        fs::create_dir(&other).unwrap();
        type Change = fn(&mut Setup, PathBuf);
        let changes: [(&str, Change); 9] = [
            ("other layers", |s, other| {
                let RootFs::Overlay { lowers, .. } = &mut s.root else { return };
                lowers.push(other);
            }),
            ("another root", |s, other| s.root = RootFs::Directory(other)),
            ("other options of /dev/shm", |s, _| s.mounts.last_mut().unwrap().flags.noexec = true),
            ("other masks", |s, _| s.masked_paths.push("/sys/kernel".into())),
            ("another name", |s, _| s.hostname = None),
            ("the host's network", |s, _| s.namespaces.network = Namespace::Host),
            ("a namespace of users", |s, _| s.namespaces.user = one_id()),
            ("what is shared with the host", |s, other| {
                let source = MountSource::Bind { source: other, recursive: true };
                s.mounts.push(Mount { propagation: Some(Propagation::Rshared), ..Mount::new("/o", source) });
            }),
            ("another place", |s, other| {
                let source = MountSource::Bind { source: other, recursive: true };
                s.mounts.push(Mount::new("/o", source));
            }),
        ];
        for (what, change) in changes {
            let mut setup = in_memory(root, dir, "true");
            assert!(fits(&sandbox, &setup), "{what}");
            change(&mut setup, other.clone());
            assert!(!fits(&sandbox, &setup), "{what}");
        }
    });
}

#[test]
fn nothing_starts_in_one_that_has_ended() {
    with_image(|root, dir| {
        let sandbox = std::thread::scope(|scope| scope.spawn(|| warm(root, dir)).join().unwrap());
        // It has ended with the thread that made it.
        let mut setup = in_memory(root, dir, "true");
        setup.warm = Some(sandbox);
        let failed = loop {
            match isles_sandbox::spawn(&setup) {
                Ok(mut child) => drop(child.wait()),
                Err(failed) => break failed,
            }
        };
        let of_sandbox = [isles_sandbox::Step::JoinNamespace, isles_sandbox::Step::Clone];
        assert!(of_sandbox.contains(&failed.step), "{failed}");
    });
}
