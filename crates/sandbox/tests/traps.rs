//! Known ways out of containers, and input that is wrong, each tried for real.
#![allow(clippy::unwrap_used)]

mod busybox;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use busybox::*;
use isles_sandbox::capability::CapabilitySet;
use isles_sandbox::setup::*;
use isles_sandbox::{ExitStatus, Step, spawn};
use isles_spec::IdMapping;

/// Runs `body` with a fresh root file system, as root where this is root, and as an ordinary user.
fn both(body: impl Fn(&Path, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let host = dir.path().join("host");
    fs::create_dir(&host).unwrap();
    if is_root() {
        body(&root, &host);
        fs::remove_dir_all(dir.path().join("host")).unwrap();
        fs::remove_dir_all(&root).unwrap();
        tree(dir.path()).unwrap();
        fs::create_dir(&host).unwrap();
    }
    as_ordinary_user(&[dir.path()], || body(&root, &host));
}

fn bind(source: &Path, destination: &str) -> Mount {
    mount(destination, MountSource::Bind { source: source.into(), recursive: true })
}

fn script(root: &Path, script: &str) -> isles_sandbox::Setup {
    setup(RootFs::Directory(root.into()), script, suitable())
}

#[test]
fn trap_1_a_link_in_the_image_never_leads_a_mount_out() {
    both(|root, host| {
        symlink(host, root.join("absolute")).unwrap();
        symlink("../../../../../../../../tmp", root.join("upward")).unwrap();
        fs::write(host.join("secret"), "host").unwrap();
        let before: Vec<_> = fs::read_dir(host).unwrap().map(|e| e.unwrap().file_name()).collect();
        let mut s = script(root, "cat /upward/in/file");
        let data = root.join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "inside").unwrap();
        s.mounts.push(bind(&data, "/upward/in"));
        let (status, output) = run(&mut s);
        assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "inside"));
        assert!(root.join("tmp/in").is_dir(), "made in the image's own /tmp");
        // An absolute link means a place in the image; nothing may be made through one that dangles there.
        let mut s = script(root, "true");
        s.mounts.push(bind(&data, "/absolute/in"));
        let _ = spawn(&s).map(|mut c| c.wait());
        let after: Vec<_> = fs::read_dir(host).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(before, after);
    });
}

#[test]
fn trap_2_proc_sys_and_dev_as_links_are_refused() {
    for name in ["proc", "sys", "dev"] {
        both(|root, host| {
            symlink(host, root.join(name)).unwrap();
            let e = spawn(&script(root, "true")).unwrap_err();
            assert_eq!(e.step, Step::MountPoint, "{name}: {e}");
            assert!(e.to_string().contains(name), "{e}");
            assert_eq!(fs::read_dir(host).unwrap().count(), 0);
        });
    }
}

#[test]
fn trap_1_nothing_is_won_by_changing_the_root_meanwhile() {
    use std::sync::atomic::{AtomicBool, Ordering};
    both(|root, host| {
        let end = AtomicBool::new(false);
        let source = root.join("tmp/source");
        fs::create_dir(&source).unwrap();
        let (place, link) = (root.join("place"), root.join("link"));
        fs::create_dir(&place).unwrap();
        symlink(host, &link).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let _ = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &place,
                        rustix::fs::CWD,
                        &link,
                        rustix::fs::RenameFlags::EXCHANGE,
                    );
                }
            });
            for _ in 0..100 {
                let mut s = script(root, "true");
                s.mounts.push(bind(&source, "/place/deep/er"));
                s.masked_paths.push("/place/deep".into());
                // It works or it fails, as the race has it.
                let _ = spawn(&s).map(|mut c| c.wait());
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(host).unwrap().count(), 0);
    });
}

#[test]
fn trap_2_files_in_the_place_of_folders_are_refused() {
    for name in ["proc", "sys", "dev"] {
        both(|root, _| {
            fs::write(root.join(name), "").unwrap();
            let e = spawn(&script(root, "true")).unwrap_err();
            assert_eq!((e.step, e.errno()), (Step::MountPoint, Some(libc::ENOTDIR)), "{name}: {e}");
        });
    }
}

#[test]
fn trap_2_a_console_of_the_images_own_dev_leads_nowhere() {
    both(|root, host| {
        // CVE-2025-52565: the image keeps its own /dev, and its console is a link.
        fs::create_dir_all(root.join("dev/pts")).unwrap();
        symlink(host.join("target"), root.join("dev/console")).unwrap();
        for exists in [false, true] {
            if exists {
                fs::write(host.join("target"), "untouched").unwrap();
            }
            let mut s = script(root, "true");
            s.mounts.retain(|m| !["/dev", "/dev/mqueue"].map(Path::new).contains(&m.destination.as_path()));
            s.process.terminal = Some((24, 80));
            let e = spawn(&s).unwrap_err();
            assert_eq!((e.step, e.errno()), (Step::Terminal, Some(libc::ELOOP)), "{e}");
            assert_eq!(fs::read(host.join("target")).unwrap_or_default().is_empty(), !exists);
        }
    });
}

#[test]
fn trap_2_dev_of_the_image_is_covered() {
    both(|root, host| {
        fs::create_dir(root.join("dev")).unwrap();
        for name in ["pts", "console", "null", "ptmx", "shm"] {
            symlink(host, root.join("dev").join(name)).unwrap();
        }
        let (status, output) =
            run(&mut script(root, "test -c /dev/null && test -d /dev/pts && echo x > /dev/null"));
        assert_eq!(status, ExitStatus::Code(0), "{output}");
        assert_eq!(fs::read_dir(host).unwrap().count(), 0);
    });
}

#[test]
fn trap_3_masks_use_the_hosts_null() {
    both(|root, _| {
        fs::write(root.join("etc/secret"), "secret").unwrap();
        fs::create_dir(root.join("hidden")).unwrap();
        fs::write(root.join("hidden/file"), "secret").unwrap();
        fs::create_dir(root.join("dev")).unwrap();
        fs::write(root.join("dev/null"), "planted").unwrap();
        let look = "cat /etc/secret; ls /hidden; if echo x > /hidden/new; then echo wrote; fi 2>/dev/null";
        let mut s = script(root, look);
        s.masked_paths = vec!["/etc/secret".into(), "/hidden".into()];
        let (_, output) = run(&mut s);
        assert_eq!(output, "");
        assert_eq!(fs::read_to_string(root.join("etc/secret")).unwrap(), "secret");
    });
}

/// Runs `body` in a mount namespace of its own, in a child, where this is root.
fn with_own_mounts(body: impl FnOnce()) {
    if !is_root() {
        println!("skip: not root");
        return;
    }
    // SAFETY: the child only runs the closure and leaves.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: the call takes a number.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            mount_at("", "/", libc::MS_REC | libc::MS_PRIVATE);
            body();
        }));
        std::process::exit(i32::from(ok.is_err()));
    }
    let mut status = 0;
    // SAFETY: the status lives.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0, "see above");
}

fn mount_at(source: &str, target: &str, flags: u64) {
    let c = |text: &str| std::ffi::CString::new(text).unwrap();
    let (from, to, kind) = (c(source), c(target), c(if source == "tmpfs" { "tmpfs" } else { "" }));
    // SAFETY: the strings are terminated and live.
    let done = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    assert_eq!(done, 0, "{source} on {target}: {}", std::io::Error::last_os_error());
}

#[test]
fn trap_3_a_null_that_is_none_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    with_own_mounts(|| {
        let file = dir.path().join("null");
        fs::write(&file, "").unwrap();
        mount_at(file.to_str().unwrap(), "/dev/null", libc::MS_BIND);
        let e = spawn(&script(&root, "true")).unwrap_err();
        assert_eq!((e.step, e.errno()), (Step::Mask, Some(libc::ENODEV)), "{e}");
    });
}

#[test]
fn trap_4_a_proc_that_is_none_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    with_own_mounts(|| {
        mount_at("tmpfs", "/proc", 0);
        let e = spawn(&script(&root, "true")).unwrap_err();
        assert_eq!(
            (e.step, e.object.as_str(), e.errno()),
            (Step::Prepare, "/proc", Some(libc::ENODEV)),
            "{e}"
        );
    });
}

#[test]
fn trap_4_kernel_parameters_go_past_what_covers_proc() {
    both(|root, host| {
        fs::create_dir_all(host.join("kernel")).unwrap();
        fs::write(host.join("kernel/shm_rmid_forced"), "0").unwrap();
        let mut s = script(root, "true");
        s.mounts.push(bind(host, "/proc/sys"));
        s.sysctls = vec![("kernel.shm_rmid_forced".into(), "1".into())];
        let _ = run(&mut s);
        assert_eq!(fs::read_to_string(host.join("kernel/shm_rmid_forced")).unwrap(), "0");
        let mut s = script(root, "cat /proc/sys/kernel/shm_rmid_forced");
        s.sysctls = vec![("kernel.shm_rmid_forced".into(), "1".into())];
        assert_eq!(run(&mut s).1, "1\n");
        for bad in ["", ".", "kernel..x", "kernel/../../x", "..", "kernel."] {
            let mut s = script(root, "true");
            s.sysctls = vec![(bad.into(), "1".into())];
            assert!(spawn(&s).is_err(), "{bad}");
        }
    });
}

#[test]
fn trap_5_no_descriptor_of_the_host_gets_in() {
    both(|root, host| {
        let open = fs::File::open(host).unwrap();
        // SAFETY: the calls take numbers. 57 is a descriptor that does not close on exec.
        unsafe { libc::dup3(open.as_raw_fd(), 57, 0) };
        let (_, output) = run(&mut script(root, "ls /proc/self/fd | tr '\\n' ' '"));
        // The fourth is the folder that ls reads.
        let (_, listed) = run(&mut script(root, "for f in /proc/self/fd/*; do echo ${f##*/}; done"));
        assert!(!listed.contains("57") && !output.contains("57"), "{listed}{output}");
        let mut s = script(root, "pwd");
        s.process.cwd = "/proc/self/fd/57".into();
        let e = spawn(&s).unwrap_err();
        assert_eq!(e.step, Step::WorkingDirectory, "CVE-2024-21626: {e}");
        // SAFETY: closes what was made above.
        unsafe { libc::close(57) };
    });
}

#[test]
fn trap_5_nor_into_a_process_that_joins() {
    both(|root, host| {
        let (wait, write) = std::io::pipe().unwrap();
        let mut first = script(root, "read line");
        first.stdio.stdin = Some(OwnedFd::from(wait));
        let mut container = spawn(&first).unwrap();
        drop(first);
        let open = fs::File::open(host).unwrap();
        // SAFETY: the call takes numbers.
        unsafe { libc::dup3(open.as_raw_fd(), 57, 0) };
        let mut second = script(root, "for f in /proc/self/fd/*; do echo ${f##*/}; done");
        second.namespaces = Namespaces::of_process(container.pid()).unwrap();
        second.hostname = None;
        let (_, listed) = run(&mut second);
        assert!(listed.contains("0\n1\n2\n") && !listed.contains("57"), "{listed}");
        for cwd in ["/proc/self/fd/57", "/proc/self/fd/57/.."] {
            second.process.cwd = cwd.into();
            let e = spawn(&second).unwrap_err();
            assert_eq!(e.step, Step::WorkingDirectory, "{cwd}: {e}");
        }
        // SAFETY: closes what was made above.
        unsafe { libc::close(57) };
        drop(write);
        container.wait().unwrap();
    });
}

#[test]
fn trap_6_nobody_looks_into_a_process_half_way_in() {
    both(|root, _| {
        let (gate, open) = std::io::pipe().unwrap();
        let mut s = script(root, "true");
        s.gate.before_exec = Some(gate.into());
        let mut child = isles_sandbox::Pending::new(&s).unwrap().wait_before_exec().unwrap();
        if !is_root() {
            let exe = format!("/proc/{}/exe", child.pid());
            assert_eq!(fs::File::open(exe).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        }
        std::io::Write::write_all(&mut &open, b"g").unwrap();
        drop(s);
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(0));
    });
}

#[test]
fn trap_6_our_own_program_cannot_be_opened_from_inside() {
    both(|root, _| {
        let mut s = script(root, "if cat /proc/1/exe > /dev/null; then echo open; fi 2>/dev/null; echo end");
        s.process.init = true;
        assert_eq!(run(&mut s).1, "end\n");
    });
}

#[test]
fn trap_9_nothing_is_inherited_but_what_was_given() {
    both(|root, _| {
        let (_, output) = run(&mut script(root, "grep ^Cap /proc/self/status"));
        for (set, value) in [
            ("CapInh", 0),
            ("CapPrm", 0xa804_25fbu64),
            ("CapEff", 0xa804_25fb),
            ("CapBnd", 0xa804_25fb),
            ("CapAmb", 0),
        ] {
            assert!(output.contains(&format!("{set}:\t{value:016x}")), "{output}");
        }
        let mut s = script(root, "grep CapEff /proc/self/status");
        s.process.capabilities = Capabilities::default();
        assert_eq!(run(&mut s).1, "CapEff:\t0000000000000000\n");
    });
}

#[test]
fn trap_13_read_only_holds_below() {
    both(|root, host| {
        let inner = host.join("inner");
        fs::create_dir(&inner).unwrap();
        let mut s = script(
            root,
            "for f in /ro/x /ro/inner/x; do if echo x > $f; then echo wrote $f; fi; done 2>/dev/null; echo end",
        );
        let mut outer = bind(host, "/ro");
        outer.flags.read_only = true;
        outer.flags.recursive_read_only = true;
        s.mounts.push(outer);
        assert_eq!(run(&mut s).1, "end\n");
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
    });
}

#[test]
fn trap_13_a_namespace_below_a_source_is_taken_along() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    with_own_mounts(|| {
        let (host, below) = (dir.path().join("host"), dir.path().join("host/net"));
        fs::create_dir(&host).unwrap();
        fs::write(&below, "").unwrap();
        mount_at("/proc/self/ns/net", below.to_str().unwrap(), libc::MS_BIND);
        let mut s = script(&root, "grep -c ' /ns/net nsfs' /proc/self/mounts");
        s.mounts.push(bind(&host, "/ns"));
        assert_eq!(run(&mut s).1, "1\n");
    });
}

#[test]
fn trap_13_mounts_of_the_container_stay_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    with_own_mounts(|| {
        // As systemd leaves it: everything is shared.
        mount_at("", "/", libc::MS_REC | libc::MS_SHARED);
        let host = dir.path().join("host");
        fs::create_dir(&host).unwrap();
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut s = script(&root, "mount -t tmpfs tmpfs /host; mount | grep -c ' /host '");
        s.process.capabilities = Capabilities::of(CapabilitySet::ALL);
        s.mounts.push(bind(&host, "/host"));
        assert_eq!(run(&mut s).1, "2\n");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        // On request they are the host's as well.
        s.mounts.last_mut().unwrap().propagation = Some(isles_spec::Propagation::Rshared);
        s.process.args[2] = b"mount -t tmpfs tmpfs /host".to_vec();
        assert_eq!(run(&mut s).0, ExitStatus::Code(0));
        let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(after.lines().count(), before.lines().count() + 1);
    });
}

#[test]
fn a_read_only_root_can_still_have_places_to_write() {
    both(|root, _| {
        let mut s =
            script(root, "if echo x > /x; then echo wrote; fi 2>/dev/null; echo y > /tmp/y; cat /tmp/y");
        s.read_only_root = true;
        let options = vec![("size".to_owned(), "64k".to_owned()), ("mode".to_owned(), "1777".to_owned())];
        s.mounts.push(mount(
            "/tmp",
            MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options },
        ));
        assert_eq!(run(&mut s).1, "y\n");
    });
}

#[test]
fn bad_limits_are_errors_and_defaults_give_in() {
    both(|root, _| {
        let mut s = script(root, "ulimit -n");
        let wild = Rlimit { resource: libc::RLIMIT_NOFILE, soft: 1 << 40, hard: 1 << 40, clamp: false };
        s.process.rlimits = vec![wild];
        let e = spawn(&s).unwrap_err();
        assert_eq!(e.step, Step::Rlimit);
        s.process.rlimits = vec![Rlimit { clamp: true, ..wild }];
        assert_eq!(run(&mut s).0, ExitStatus::Code(0));
    });
}

#[test]
fn bad_environment_of_300_kib_is_named() {
    both(|root, _| {
        let mut s = script(root, "true");
        s.process.env.push([b"BIG=".as_slice(), &vec![b'x'; 300 << 10]].concat());
        let e = spawn(&s).unwrap_err();
        assert_eq!((e.step, e.errno()), (Step::Exec, Some(libc::E2BIG)));
        s.process.env = vec![b"A\0B=1".to_vec()];
        assert_eq!(spawn(&s).unwrap_err().step, Step::Prepare);
    });
}

#[test]
fn bad_destinations() {
    both(|root, host| {
        let mut s = script(root, "cat /a/b/c/d");
        let file = host.join("file");
        fs::write(&file, "content").unwrap();
        s.mounts.push(bind(&file, "/a/b/c/d"));
        assert_eq!(run(&mut s).1, "content", "a missing file is made to bind to");
        let mut s = script(root, "cat /twice");
        let other = host.join("other");
        fs::write(&other, "second").unwrap();
        s.mounts.extend([bind(&file, "/twice"), bind(&other, "/twice")]);
        assert_eq!(run(&mut s).1, "second", "the last one wins");
        let mut s = script(root, "true");
        let mut outer = bind(host, "/ro");
        outer.flags.read_only = true;
        s.mounts.extend([outer, bind(host, "/ro/new/below")]);
        let e = spawn(&s).unwrap_err();
        assert_eq!((e.step, e.errno()), (Step::MountPoint, Some(libc::EROFS)));
        let mut s = script(root, "ls /x");
        s.mounts.push(bind(&file, "/etc"));
        assert_eq!(spawn(&s).unwrap_err().step, Step::Mount, "a file cannot cover a folder");
        let mut s = script(root, "echo fine");
        s.mounts.push(bind(host, "/../../../x/../y"));
        assert_eq!(run(&mut s).1, "fine\n");
        assert!(root.join("y").is_dir());
    });
}

#[test]
fn bad_roots() {
    both(|root, host| {
        let slash = format!("{}/", root.display());
        let mut s = setup(RootFs::Directory(slash.into()), "echo fine", suitable());
        assert_eq!(run(&mut s).1, "fine\n");
        let s = setup(RootFs::Directory(root.join("bin/busybox")), "true", suitable());
        assert_eq!(spawn(&s).unwrap_err().step, Step::Root);
        let s = setup(RootFs::Directory(host.into()), "true", suitable());
        assert_eq!(spawn(&s).unwrap_err().exit_code(), 127, "an empty root has no program");
    });
}

#[test]
fn bad_places_of_roots() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    with_own_mounts(|| {
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let root = root.to_str().unwrap();
        let fine = |place: &str, script: &str| {
            let (status, output) = run(&mut setup(RootFs::Directory(place.into()), script, UserNs::Host));
            assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "fine\n"), "{place}");
        };
        // A read-only root has places for mounts only where it brings them along.
        for folder in ["proc", "sys", "dev"] {
            fs::create_dir_all(Path::new(root).join(folder)).unwrap();
        }
        let shared = at("shared");
        mount_at(root, &shared, libc::MS_BIND);
        mount_at("", &shared, libc::MS_SHARED);
        fine(&shared, "echo fine");
        let read_only = at("readonly");
        mount_at(root, &read_only, libc::MS_BIND);
        mount_at("", &read_only, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY);
        fine(&read_only, "if echo x > /x; then echo wrote; fi 2>/dev/null; echo fine");
        let (upper, work, merged) = (at("upper"), at("work"), at("merged"));
        let options =
            std::ffi::CString::new(format!("lowerdir={root},upperdir={upper},workdir={work}")).unwrap();
        let target = std::ffi::CString::new(merged.as_str()).unwrap();
        // SAFETY: the strings are terminated and live.
        let done = unsafe {
            let kind = c"overlay".as_ptr();
            libc::mount(kind, target.as_ptr(), kind, 0, options.as_ptr().cast())
        };
        assert_eq!(done, 0);
        fine(&merged, "echo fine");
    });
}

#[test]
fn bad_numbers_of_layers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    if !is_root() {
        println!("skip: not root");
        return;
    }
    // Paths that are longer together than the page that mount(2) has for options.
    let long = "a-layer-with-a-name-as-long-as-the-digest-of-a-blob-is-".repeat(2);
    let layers: Vec<_> = (0..500).map(|i| dir.path().join(format!("{long}{i}"))).collect();
    for (i, layer) in layers.iter().enumerate() {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join(format!("file{i}")), "").unwrap();
    }
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    for dir in [&upper, &work] {
        fs::create_dir(dir).unwrap();
    }
    let overlay = |extra: &[std::path::PathBuf]| RootFs::Overlay {
        lowers: [std::slice::from_ref(&root), extra].concat(),
        upper: upper.clone(),
        work: work.clone(),
        volatile: true,
        userxattr: false,
        foreign: false,
    };
    let mut s = setup(overlay(&layers[..499]), "ls / | grep -c file", UserNs::Host);
    assert_eq!(run(&mut s).1, "499\n");
    let e = spawn(&setup(overlay(&layers), "true", UserNs::Host)).unwrap_err();
    assert_eq!(e.step, Step::Root);
    assert!(e.cause.to_string().contains("501 layers"), "{e}: {}", e.cause);
}

#[test]
fn bad_programs() {
    both(|root, _| {
        fs::write(root.join("bin/plain"), "text").unwrap();
        symlink("/nowhere", root.join("bin/dangling")).unwrap();
        for (program, code) in [
            ("plain", 126),
            ("/bin/plain", 126),
            ("/etc", 126),
            ("dangling", 127),
            ("/nosuch", 127),
            ("etc/nosuch", 127),
            ("", 127),
        ] {
            let mut s = script(root, "");
            s.process.args = vec![program.into()];
            let e = spawn(&s).unwrap_err();
            assert_eq!((e.step, e.exit_code()), (Step::Exec, code), "{program}");
        }
        let mut s = script(root, "");
        (s.process.cwd, s.process.args) = ("/bin".into(), vec![b"../bin/echo".to_vec(), b"fine".to_vec()]);
        assert_eq!(run(&mut s).1, "fine\n", "a relative path is below the working folder");
        s.process.args = vec![];
        assert_eq!(spawn(&s).unwrap_err().step, Step::Prepare);
    });
}

#[test]
fn bad_ids_that_are_not_mapped() {
    both(|root, _| {
        if is_root() {
            return;
        }
        let mut s = script(root, "true");
        s.process.uid = 7;
        let e = spawn(&s).unwrap_err();
        assert_eq!((e.step, e.exit_code()), (Step::User, 125));
        // Another ID can be the one that is mapped.
        let (uid, gid) = unsafe_ids();
        let one = |inside, outside| vec![IdMapping { inside, outside, length: 1 }];
        let user = UserNs::New { uids: one(1000, uid), gids: one(1000, gid) };
        let mut s = setup(RootFs::Directory(root.into()), "id -u; id -g", user);
        (s.process.uid, s.process.gid) = (1000, 1000);
        assert_eq!(run(&mut s).1, "1000\n1000\n");
    });
}

fn unsafe_ids() -> (u32, u32) {
    // SAFETY: no preconditions.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

#[test]
fn bad_working_directory() {
    both(|root, _| {
        let mut s = script(root, "pwd");
        s.process.cwd = "/srv/deep/down".into();
        assert_eq!(spawn(&s).unwrap_err().step, Step::WorkingDirectory);
        s.process.create_cwd = true;
        assert_eq!(run(&mut s).1, "/srv/deep/down\n");
        s.process.cwd = "/bin/busybox".into();
        assert_eq!(spawn(&s).unwrap_err().errno(), Some(libc::ENOTDIR));
    });
}

#[test]
fn closed_streams_become_null() {
    both(|root, _| {
        // A child of its own, because it closes its standard streams.
        let (mut read, write) = std::io::pipe().unwrap();
        let report = write.as_raw_fd();
        // SAFETY: the child only starts a container and leaves.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the calls take numbers.
            unsafe {
                for fd in 0..3 {
                    libc::close(fd);
                }
            }
            let mut s = script(root, "cat; echo lost; echo lost >&2; readlink /proc/self/fd/0 >&3");
            // SAFETY: the descriptor is open and owned by nobody else in this child.
            s.stdio.further = vec![unsafe {
                std::os::fd::FromRawFd::from_raw_fd(libc::fcntl(report, libc::F_DUPFD_CLOEXEC, 20))
            }];
            let code = spawn(&s).map_or(99, |mut c| c.wait().map_or(98, |s| s.code()));
            // SAFETY: leaves without running anything of the parent's.
            unsafe { libc::_exit(code.into()) };
        }
        drop(write);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut read, &mut text).unwrap();
        let mut status = 0;
        // SAFETY: the status lives.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!((status, text.as_str()), (0, "/dev/null\n"));
    });
}

#[test]
fn a_thousand_mounts() {
    both(|root, host| {
        let mut s = script(root, "grep -c /many/ /proc/self/mounts");
        for i in 0..1000 {
            s.mounts.push(bind(host, &format!("/many/{i}")));
        }
        assert_eq!(run(&mut s).1, "1000\n");
    });
}

#[test]
fn programs_that_end_at_once_are_noticed() {
    both(|root, _| {
        for i in 0..300u32 {
            let mut s = script(root, "");
            s.process.args = vec![b"true".to_vec()];
            s.process.init = i % 2 == 1;
            assert_eq!(spawn(&s).unwrap().wait().unwrap(), ExitStatus::Code(0));
        }
    });
}

#[test]
fn containers_run_in_a_user_namespace_of_somebody_elses() {
    both(|root, _| {
        if is_root() {
            return;
        }
        let (uid, gid) = unsafe_ids();
        // SAFETY: the child only runs a container in a namespace of its own and leaves.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the call takes numbers.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) }, 0);
            fs::write("/proc/self/setgroups", "deny").unwrap();
            fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
            fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
            let look = "id -u; test -c /dev/null; echo x > /tmp/x; grep -c . /proc/self/uid_map";
            let mut outputs = Vec::new();
            // The namespace as it is, and one below it.
            for user in [UserNs::Host, one_id()] {
                outputs.push(run(&mut setup(RootFs::Directory(root.into()), look, user)).1);
            }
            std::process::exit(if outputs == ["0\n1\n", "0\n1\n"] { 0 } else { 1 });
        }
        let mut status = 0;
        // SAFETY: the status lives.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0);
    });
}

#[test]
fn a_range_of_subuids_is_mapped_once_for_all_containers() {
    use isles_sandbox::identity::{self, Identity};
    if !["/usr/bin/newuidmap", "/etc/subuid", "/etc/subgid"].iter().all(|f| Path::new(f).exists()) {
        println!("skip: no newuidmap, or no /etc/subuid (package uidmap)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    // Owners of the image that one ID could not have.
    let owned =
        std::process::Command::new("chown").args(["-R", "200006:200007"]).arg(root.join("etc")).status();
    let owned = owned.unwrap().success();
    with_own_mounts(|| {
        assert!(owned);
        let ranges = dir.path().join("ranges");
        fs::write(&ranges, "4242:200000:65536\n").unwrap();
        let users = dir.path().join("users");
        fs::write(&users, "isle:x:4242:4242::/:/bin/sh\n").unwrap();
        for (file, over) in [(&ranges, "/etc/subuid"), (&ranges, "/etc/subgid"), (&users, "/etc/passwd")] {
            mount_at(file.to_str().unwrap(), over, libc::MS_BIND);
        }
        // The image is root's, who is not in the map, so the places for mounts are there beforehand.
        for folder in ["proc", "dev", "sys"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        // SAFETY: the calls take numbers.
        unsafe {
            libc::setgroups(0, std::ptr::null());
            libc::setgid(4242);
            libc::setuid(4242);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        identity::enter_mapped().unwrap();
        assert_eq!(identity::detect(), Identity::Mapped);
        for _ in 0..2 {
            let look = "id -u; stat -c %u:%g /etc; echo x > /tmp/x; cat /tmp/x; wc -l < /proc/self/uid_map";
            let mut s = setup(RootFs::Directory(root.clone()), look, UserNs::Host);
            let options = vec![("mode".to_owned(), "1777".to_owned())];
            s.mounts.push(mount(
                "/tmp",
                MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options },
            ));
            (s.process.uid, s.process.gid, s.process.groups) = (7, 8, vec![9]);
            assert_eq!(run(&mut s).1, "7\n7:8\nx\n2\n");
        }
    });
}

#[test]
fn the_tree_dies_with_its_starter() {
    both(|root, _| {
        let (mut read, write) = std::io::pipe().unwrap();
        // SAFETY: the child only starts a container and waits to be killed.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut s = script(root, "echo up; (sleep 1000 & wait) & sleep 1000");
            s.stdio.stdout = Some(OwnedFd::from(write));
            let running = spawn(&s);
            drop(s);
            let code = running.map_or(1, |mut c| c.wait().map_or(2, |_| 3));
            // SAFETY: leaves without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        drop(write);
        let mut up = [0; 3];
        std::io::Read::read_exact(&mut read, &mut up).unwrap();
        // SAFETY: the child is ours and has not been waited for.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        // The pipe ends when the last process of the container is gone.
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut read, &mut rest).unwrap();
        assert_eq!(rest, b"");
    });
}

#[test]
fn a_link_is_no_folder_of_a_foreign_overlay() {
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let at = |name: &str| dir.path().join(name);
    for name in ["real", "work", "elsewhere", "place"] {
        fs::create_dir(at(name)).unwrap();
    }
    std::os::unix::fs::symlink(at("elsewhere"), at("link")).unwrap();
    fs::write(at("real/file"), "").unwrap();
    for (upper, work, lower, refused) in [
        ("real", "work", "real", None),
        ("link", "work", "real", Some(Step::Root)),
        ("real", "link", "real", Some(Step::Root)),
        ("real", "work", "link", Some(Step::Image)),
    ] {
        let overlay = RootFs::Overlay {
            lowers: vec![root.clone()],
            upper: at(upper),
            work: at(work),
            volatile: false,
            userxattr: false,
            foreign: true,
        };
        let mut s = setup(overlay, "echo x > /written; ls /file", UserNs::Host);
        let source = PreparedSource::Folder { of: dir.path().to_owned(), name: lower.into() };
        s.prepared.push(Prepared { place: at("place"), source, name: "layer".into() });
        match refused {
            Some(step) => assert_eq!(spawn(&s).unwrap_err().step, step, "{upper} {work} {lower}"),
            None => assert_eq!(run(&mut s).1, "/file\n", "{upper} {work} {lower}"),
        }
    }
    assert!(at("real/written").exists());
    assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0);
}
