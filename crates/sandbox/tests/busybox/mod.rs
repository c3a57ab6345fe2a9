//! A root file system of one static busybox, and a set-up as the engine makes it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use isles_sandbox::setup::*;
use isles_sandbox::{ExitStatus, Setup, spawn};
use isles_spec::IdMapping;

/// A root file system of one static busybox, or the reason why there is none.
pub fn tree(at: &Path) -> Option<PathBuf> {
    if !Path::new("/bin/busybox").exists() {
        println!("skip: /bin/busybox is not installed (package busybox-static)");
        return None;
    }
    let root = at.join("root");
    for dir in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    // By another process: a program that a sibling thread's child has open for writing cannot be run.
    let copied = std::process::Command::new("cp").arg("/bin/busybox").arg(root.join("bin/busybox")).status();
    assert!(copied.unwrap().success());
    for applet in [
        "sh", "true", "echo", "cat", "ls", "id", "mount", "hostname", "grep", "test", "stat", "kill", "sleep",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
    Some(root)
}

pub fn mount(destination: &str, source: MountSource) -> Mount {
    Mount::new(destination, source)
}

pub fn setup(root: RootFs, script: &str, user: UserNs) -> Setup {
    let mut setup = Setup::new(root, &["sh", "-ec", script]);
    setup.namespaces.user = user;
    setup.hostname = Some("isle".into());
    setup.process.env = vec![b"PATH=/bin".to_vec()];
    setup.masked_paths = vec!["/proc/kcore".into(), "/sys/firmware".into(), "/proc/nothing-here".into()];
    setup.read_only_paths = vec!["/proc/sys".into()];
    setup
}

pub fn run(setup: &mut Setup) -> (ExitStatus, String) {
    let (mut read, write) = std::io::pipe().unwrap();
    setup.stdio.stdout = Some(OwnedFd::from(write.try_clone().unwrap()));
    setup.stdio.stderr = Some(OwnedFd::from(write));
    let mut child = spawn(setup).unwrap_or_else(|e| panic!("{e}: {}", e.cause));
    setup.stdio = Stdio::default();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut read, &mut text).unwrap();
    (child.wait().unwrap(), text)
}

pub fn is_root() -> bool {
    isles_sandbox::identity::detect() == isles_sandbox::identity::Identity::Root
}

/// Runs `go` as an ordinary user without subuids, in a child, when this is root; else as it is.
pub fn as_ordinary_user(own: &[&Path], go: impl FnOnce()) {
    if !is_root() {
        return go();
    }
    let owned = std::process::Command::new("chown").args(["-R", "4242:4242"]).args(own).status();
    assert!(owned.unwrap().success());
    in_child(|| {
        // SAFETY: the calls take numbers.
        unsafe {
            libc::setgroups(0, std::ptr::null());
            libc::setgid(4242);
            libc::setuid(4242);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        go();
    });
}

/// Runs `go` in a process of its own.
pub fn in_child(go: impl FnOnce()) {
    // SAFETY: the child only runs the closure and leaves.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(go)).is_ok();
        std::process::exit(i32::from(!ok));
    }
    let mut status = 0;
    // SAFETY: the status lives.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0, "the part in another process failed, see above");
}

/// A user namespace whose root is the caller.
pub fn one_id() -> UserNs {
    // SAFETY: no preconditions.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let one = |outside| vec![IdMapping { inside: 0, outside, length: 1 }];
    UserNs::New { uids: one(uid), gids: one(gid) }
}

/// The user namespace that suits the caller.
pub fn suitable() -> UserNs {
    if is_root() { UserNs::Host } else { one_id() }
}
