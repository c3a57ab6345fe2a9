//! Starts of real processes, as root and as an ordinary user.

mod busybox;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use busybox::*;
use isles_sandbox::setup::*;
use isles_sandbox::{ExitStatus, spawn};
use isles_spec::IdMapping;

const LOOK: &str = "test $$ = 1; hostname; id -u; grep -q ' / overlay\\| / ext4\\| / ' /proc/self/mounts; ls /dev; echo x > /tmp/x; cat /tmp/x
    test ! -s /proc/kcore; echo seen; if echo 1 > /proc/sys/kernel/panic; then echo writable; fi 2>/dev/null; grep NoNewPrivs /proc/self/status";

fn look(output: &str) {
    for wanted in ["isle\n", "0\n", "null", "ptmx", "x\n", "seen", "NoNewPrivs:\t1"] {
        assert!(output.contains(wanted), "{wanted:?} in {output}");
    }
    assert!(!output.contains("writable"), "{output}");
}

#[test]
fn a_shell_sees_its_own_world() {
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let overlay = RootFs::Overlay {
        lowers: vec![root.clone()],
        upper: upper.clone(),
        work,
        volatile: true,
        userxattr: false,
        foreign: false,
    };
    let (status, output) = run(&mut setup(overlay, LOOK, UserNs::Host));
    look(&output);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    assert!(upper.join("tmp/x").exists() && !root.join("tmp/x").exists());
    let (status, _) = run(&mut setup(RootFs::Directory(root.clone()), "exit 7", UserNs::Host));
    assert_eq!(status, ExitStatus::Code(7));
    let (status, _) = run(&mut setup(RootFs::Directory(root), "kill -9 $$; true", UserNs::Host));
    assert_eq!(status, ExitStatus::Code(0), "process 1 cannot kill itself");
}

#[test]
fn an_ordinary_user_needs_one_id() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    as_ordinary_user(&[&root, &upper, &work], || {
        let overlay = RootFs::Overlay {
            lowers: vec![root.clone()],
            upper: upper.clone(),
            work: work.clone(),
            volatile: true,
            userxattr: true,
            foreign: false,
        };
        let (status, output) = run(&mut setup(overlay, LOOK, one_id()));
        look(&output);
        assert_eq!(status, ExitStatus::Code(0), "{output}");
    });
}

#[test]
fn a_failed_start_names_step_and_object() {
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let mut s = setup(RootFs::Directory(root.clone()), "", UserNs::Host);
    s.process.args = vec![b"nosuch".to_vec()];
    let e = spawn(&s).unwrap_err();
    assert_eq!((e.exit_code(), e.to_string().as_str()), (127, "cannot run 'nosuch'"));
    s.process.args = vec![b"/etc".to_vec()];
    assert_eq!(spawn(&s).unwrap_err().exit_code(), 126);
    s.process.args = vec![b"true".to_vec()];
    s.process.cwd = "/nosuch".into();
    assert_eq!(spawn(&s).unwrap_err().to_string(), "cannot enter the working directory '/nosuch'");
    let mut s = setup(RootFs::Directory(root.join("gone")), "", UserNs::Host);
    assert_eq!(spawn(&s).unwrap_err().exit_code(), 125);
    s = setup(RootFs::Directory(root), "", UserNs::Host);
    s.mounts.push(mount("/x", MountSource::Bind { source: "/nosuch".into(), recursive: true }));
    assert!(spawn(&s).unwrap_err().to_string().contains("/nosuch"));
}

#[test]
fn another_process_joins_a_container() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let mut first = setup(RootFs::Directory(root.clone()), "read wait", UserNs::Host);
    let (read, write) = std::io::pipe().unwrap();
    first.stdio.stdin = Some(OwnedFd::from(read));
    let mut container = spawn(&first).unwrap();
    drop(first);
    let script = "hostname; id -u; test -e /proc/1/stat; test $$ != 1; echo /proc/[0-9]*";
    let mut second = setup(RootFs::Directory(root), script, UserNs::Host);
    second.namespaces = Namespaces::of_process(container.pid()).unwrap();
    second.hostname = None;
    let (status, output) = run(&mut second);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    assert!(output.starts_with("isle\n0\n/proc/1 "), "{output}");
    second.process.terminal = Some((33, 99));
    second.process.args = ["sh", "-c", "test -t 0 && exit 5"].map(|s| s.as_bytes().to_vec()).to_vec();
    let mut joined = spawn(&second).unwrap();
    assert!(joined.terminal.is_some());
    assert_eq!(joined.wait().unwrap(), ExitStatus::Code(5));
    drop(write);
    assert_eq!(container.wait().unwrap(), ExitStatus::Code(1));
}

#[test]
fn a_terminal_has_its_size_before_the_program_starts() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    if !is_root() {
        println!("skip: not root");
        return;
    }
    symlink("busybox", root.join("bin/stty")).unwrap();
    let mut s = setup(RootFs::Directory(root), "stty size; test -c /dev/console; test -t 2", UserNs::Host);
    s.process.terminal = Some((33, 99));
    let mut child = spawn(&s).unwrap();
    let mut master = fs::File::from(child.terminal.take().unwrap());
    assert_eq!(child.wait().unwrap(), ExitStatus::Code(0));
    let mut text = Vec::new();
    // The end of a terminal is an error (EIO), after all that was written.
    let _ = std::io::Read::read_to_end(&mut master, &mut text);
    assert_eq!(String::from_utf8_lossy(&text), "33 99\r\n");
}

#[test]
fn an_init_that_stays_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let left_behind = "(trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done) & exit 5";
    let mut s = setup(RootFs::Directory(root), left_behind, UserNs::Host);
    (s.process.init, s.process.init_stays) = (true, true);
    let (read, write) = std::io::pipe().unwrap();
    s.stdio.stdout = Some(write.into());
    let mut child = spawn(&s).unwrap();
    drop(s);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(read), &mut line).unwrap();
    assert_eq!(line, "up\n");
    child.kill(libc::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap(), ExitStatus::Code(0));
}

#[test]
fn an_init_reaps_and_keeps_the_code() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let mut s = setup(RootFs::Directory(root.clone()), "test $$ != 1; (sleep 0.1 &) ; exit 9", UserNs::Host);
    s.process.init = true;
    assert_eq!(run(&mut s).0, ExitStatus::Code(9));
    let mut s = setup(RootFs::Directory(root), "kill -15 $$", UserNs::Host);
    s.process.init = true;
    assert_eq!(run(&mut s).0, ExitStatus::Code(128 + 15));
}

#[test]
fn a_mount_shows_other_owners() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    if !is_root() {
        println!("skip: not root");
        return;
    }
    let host = dir.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "").unwrap();
    let mut s = setup(RootFs::Directory(root), "stat -c %u:%g /data/file; echo x > /data/new", UserNs::Host);
    let map = vec![IdMapping { inside: 0, outside: 1000, length: 1 }];
    s.mounts.push(Mount {
        idmap: Some((map.clone(), map)),
        ..mount("/data", MountSource::Bind { source: host, recursive: false })
    });
    let (_, output) = run(&mut s);
    if output.is_empty() {
        println!("skip: the file system of the test does not support idmapped mounts");
        return;
    }
    assert!(output.starts_with("1000:1000\n"), "{output}");
}

#[test]
fn an_older_kernel_changes_mounts_one_by_one() {
    use isles_sandbox::capability::CapabilitySet;
    use isles_sandbox::seccomp::{Action, Arch, Host, Profile, Rule, compile};
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let host = dir.path().join("host");
    fs::create_dir(&host).unwrap();
    if Arch::native().is_none() {
        println!("skip: no table of system calls for this processor");
        return;
    }
    // The rest of this process does without the call, as before Linux 5.12.
    let arch = Host::here(CapabilitySet::ALL).unwrap().arch;
    let mut profile = Profile::new(arch, Action::Allow);
    let missing = Action::Errno(libc::ENOSYS as u16);
    profile.rules.push(Rule { names: vec!["mount_setattr".into()], action: missing, conditions: vec![] });
    let filter = compile(&profile).unwrap();
    let run_without = || {
        // SAFETY: the call takes numbers.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        filter.install().unwrap();
        let script = "grep -E ' /proc/sys | /data ' /proc/self/mounts; echo x > /data/x || true; echo x > /proc/sys/kernel/panic || true";
        let mut s = setup(RootFs::Directory(root.clone()), script, suitable());
        let source = |recursive| MountSource::Bind { source: host.clone(), recursive };
        let read_only = MountFlags { read_only: true, nosuid: true, ..MountFlags::default() };
        s.mounts.push(Mount { flags: read_only, ..mount("/data", source(false)) });
        let (status, output) = run(&mut s);
        assert_eq!(status, ExitStatus::Code(0), "{output}");
        for line in output.lines().filter(|l| l.contains(" /proc/sys ") || l.contains(" /data ")) {
            assert!(line.contains(" ro,"), "{output}");
        }
        assert!(output.contains(" /data ") && output.matches("Read-only").count() == 2, "{output}");
        // What is below cannot be made read-only, so nothing pretends that it is.
        let all = MountFlags { read_only: true, recursive_read_only: true, ..MountFlags::default() };
        s.mounts.pop();
        s.mounts.push(Mount { flags: all, ..mount("/data", source(true)) });
        assert!(spawn(&s).unwrap_err().to_string().contains("/data"));
    };
    if is_root() {
        // In a child: a filter stays.
        in_child(run_without);
    }
    as_ordinary_user(&[&root, &host], run_without);
}

/// The store is in the home folder mostly, and the home folder is mounted in the container.
#[test]
fn a_folder_around_the_root_is_shown_without_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let host = dir.path().to_owned();
    fs::write(host.join("file"), "of the host").unwrap();
    let name = root.file_name().unwrap().to_str().unwrap().to_owned();
    let check = || {
        let script = format!("cat /data/file; ls /data/{name}/proc; grep -c ' /data' /proc/self/mounts");
        let mut s = setup(RootFs::Directory(root.clone()), &script, suitable());
        s.mounts.push(mount("/data", MountSource::Bind { source: host.clone(), recursive: true }));
        let (status, output) = run(&mut s);
        assert_eq!((status, output.as_str()), (ExitStatus::Code(0), "of the host1\n"));
    };
    fs::create_dir_all(root.join("proc")).unwrap();
    fs::create_dir_all(root.join("data")).unwrap();
    if is_root() {
        check();
    }
    as_ordinary_user(&[&root, &host], check);
}

#[test]
fn a_sealed_mount_takes_places_and_then_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let host = dir.path().join("host");
    for folder in [&host, &root.join("home"), &root.join("proc"), &root.join("dev"), &root.join("sys")] {
        fs::create_dir_all(folder).unwrap();
    }
    let check = || {
        let script = "echo x > /home/me/deep/x && cat /home/me/deep/x; mkdir /home/you || stat -c %a /home";
        let mut s = setup(RootFs::Directory(root.clone()), script, suitable());
        s.read_only_root = true;
        let source = MountSource::Filesystem {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            options: vec![("mode".into(), "750".into())],
        };
        let flags = MountFlags { sealed: true, ..MountFlags::default() };
        s.mounts.push(Mount { flags, ..mount("/home", source) });
        let bind = MountSource::Bind { source: host.clone(), recursive: true };
        s.mounts.push(mount("/home/me/deep", bind));
        let (status, output) = run(&mut s);
        assert_eq!(status, ExitStatus::Code(0), "{output}");
        assert!(
            output.contains("x\n") && output.contains("Read-only") && output.ends_with("750\n"),
            "{output}"
        );
    };
    if is_root() {
        check();
    }
    fs::write(host.join("x"), "").unwrap();
    as_ordinary_user(&[&root, &host], check);
}
