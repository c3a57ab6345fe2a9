//! Between clone3 and exec nothing is allocated: another thread may have held the allocator's lock when the process
//! was made, and nobody would ever give it back.
#![allow(clippy::unwrap_used)]

mod busybox;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicI32, Ordering};

use busybox::*;
use isles_sandbox::setup::*;
use isles_sandbox::{ExitStatus, seccomp, spawn};

/// The process that may allocate; 0 for any.
static ALLOWED: AtomicI32 = AtomicI32::new(0);

struct Watched;

fn watch() {
    let allowed = ALLOWED.load(Ordering::Relaxed);
    // SAFETY: the calls have no preconditions.
    unsafe {
        if allowed != 0 && libc::getpid() != allowed {
            libc::_exit(77);
        }
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        watch();
        // SAFETY: the caller keeps the promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        watch();
        // SAFETY: the caller keeps the promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// A file system that nobody serves, which is fine as long as nobody looks at it.
fn served() -> Option<PreparedSource> {
    fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
    let (server, channel) = isles_sandbox::fuse::channel().unwrap();
    // Somebody has to be there who could receive.
    std::mem::forget(server);
    Some(PreparedSource::Fuse { channel, devices: 1 })
}

/// The fullest set-up: every step of a start has something to do.
fn full(root: &std::path::Path, dir: &std::path::Path) -> isles_sandbox::Setup {
    let (upper, work, data) = (dir.join("upper"), dir.join("work"), dir.join("data"));
    for dir in [&upper, &work, &data] {
        fs::create_dir_all(dir).unwrap();
    }
    let lowers = vec![root.to_owned()];
    let overlay =
        RootFs::Overlay { lowers, upper, work, volatile: true, userxattr: !is_root(), foreign: true };
    let mut s = setup(overlay, "exit 5", suitable());
    let memory = PreparedSource::Memory { size: Some(1 << 20), folders: vec!["inner".into()] };
    let folder = PreparedSource::Folder { of: dir.join("memory"), name: "inner".into() };
    for (name, source) in [("memory", Some(memory)), ("served", served()), ("folder", Some(folder))] {
        let Some(source) = source else { continue };
        let place = dir.join(name);
        fs::create_dir(&place).unwrap();
        s.prepared.push(Prepared { place, source, name: name.into() });
    }
    let inner = MountSource::Inside { place: dir.join("memory"), path: "/inner".into(), directory: true };
    s.mounts.push(Mount { optional: true, ..mount("/from/memory", inner) });
    s.mounts.push(Mount { optional: true, ..mount("/etc/passwd/below", MountSource::Proc) });
    s.read_only_root = true;
    s.domainname = Some("test".into());
    s.sysctls = vec![("kernel.shm_rmid_forced".into(), "1".into())];
    s.devices = vec![DeviceNode {
        path: "/dev/mine".into(),
        kind: libc::S_IFCHR,
        major: 1,
        minor: 5,
        mode: 0o666,
        uid: 0,
        gid: 0,
        source: Some("/dev/zero".into()),
    }];
    s.masked_paths.extend(["/etc".to_owned(), "/proc/timer_list".to_owned()]);
    let options = vec![("size".to_owned(), "8m".to_owned())];
    s.mounts.push(Mount {
        flags: MountFlags { copy_up: true, nosuid: true, ..Default::default() },
        ..mount("/bin", MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options })
    });
    s.mounts.push(mount("/made/on/the/way", MountSource::Bind { source: data, recursive: true }));
    s.mounts.push(mount("/sys/fs/cgroup", MountSource::Cgroup));
    s.namespaces.time = Some(TimeOffsets { monotonic: 1_000_000_000, boottime: 0 });
    s.process.umask = Some(0o27);
    s.process.oom_score_adj = Some(500);
    s.process.rlimits = vec![Rlimit { resource: libc::RLIMIT_CORE, soft: 0, hard: 0, clamp: true }];
    s.process.seccomp = vec![
        seccomp::compile(
            &seccomp::default_profile(isles_sandbox::capability::CapabilitySet::CONTAINER).unwrap(),
        )
        .unwrap(),
    ];
    s.process.scheduling.affinity = Some(vec![0]);
    s.process.create_cwd = true;
    s.process.cwd = "/dev/shm/made".into();
    s.new_keyring = true;
    s
}

#[test]
fn a_child_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = tree(dir.path()) else { return };
    let go = || {
        for (terminal, init) in [(None, false), (Some((24, 80)), true)] {
            // A volatile overlay is never mounted twice.
            let place = |name: &str| dir.path().join(format!("{name}-{init}-{}", is_root()));
            let mut s = full(&root, &place("good"));
            let mut broken = full(&root, &place("broken"));
            (s.process.terminal, s.process.init) = (terminal, init);
            ALLOWED.store(std::process::id() as i32, Ordering::Relaxed);
            let status = spawn(&s).map(|mut child| child.wait().unwrap());
            broken.process.args = vec![b"nosuch".to_vec()];
            let failed = spawn(&broken).map(drop);
            ALLOWED.store(0, Ordering::Relaxed);
            assert_eq!(status.unwrap_or_else(|e| panic!("{e}: {}", e.cause)), ExitStatus::Code(5));
            let failed = failed.unwrap_err();
            assert_eq!(failed.exit_code(), 127, "{failed}: {}", failed.cause);
        }
    };
    if is_root() {
        go();
    }
    as_ordinary_user(&[dir.path()], go);
}
