//! Known ways out of containers, and input that is wrong, each tried for real.

mod busybox;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use busybox::*;
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
