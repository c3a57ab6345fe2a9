//! Containers as people on clusters run them: as the caller, in the host's namespaces, with the host's files; in the
//! background, and joined. The engine wants a process with one thread, so this is a program of its own.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use isles_engine::{Engine, Exit, Foreground, Target, image_file};
use isles_spec::{
    CapabilityBase, ImageMount, Mount, MountKind, NamespaceMode, NetworkMode, Overlay, Propagation, Root,
    RunAs, SeccompChoice, Security, SystemFiles, SystemMount, UserNamespace, Workload, Writable,
};

type Test = (&'static str, fn(&Place));

const TESTS: [Test; 6] = [
    ("the_caller_runs_on_the_host_with_another_root", the_caller_runs_on_the_host_with_another_root),
    ("what_is_open_and_set_stays_so_where_asked", what_is_open_and_set_stays_so_where_asked),
    ("optional_mounts_are_left_out_with_a_warning", optional_mounts_are_left_out_with_a_warning),
    ("files_are_written_and_taken_from_images", files_are_written_and_taken_from_images),
    ("a_container_in_the_background_is_joined", a_container_in_the_background_is_joined),
    ("a_start_in_the_background_that_fails_says_why", a_start_in_the_background_that_fails_says_why),
];

const APPLETS: [&str; 13] =
    ["sh", "true", "cat", "id", "ls", "stat", "grep", "readlink", "sleep", "touch", "env", "hostname", "wc"];

/// As the harness of the usual tests, as far as cargo and nextest need it.
fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|w| w == "--list") {
        if !words.iter().any(|w| w == "--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let filter = words.iter().find(|w| !w.starts_with('-'));
    for (name, test) in TESTS {
        if filter.is_none_or(|wanted| name.contains(wanted.as_str())) {
            println!("{name}");
            apart(|| run(test, None));
            if rustix::process::geteuid().is_root() {
                apart(|| run(test, Some(4242)));
            }
        }
    }
}

/// In a process of its own, because a test changes what it is.
fn apart(test: impl FnOnce()) {
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).is_err());
        std::process::exit(code);
    }
    let mut status = 0;
    // SAFETY: the child is this process's own and the status lives.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
}

struct Place {
    dir: tempfile::TempDir,
    engine: Engine,
    image: Option<PathBuf>,
}

fn run(test: fn(&Place), uid: Option<u32>) {
    if !Path::new("/bin/busybox").exists() {
        println!("skip: /bin/busybox is not installed (package busybox-static)");
        return;
    }
    let dir = tempfile::Builder::new().prefix("isles-native-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let tree = dir.path().join("tree");
    for name in ["bin", "etc"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    APPLETS.iter().for_each(|applet| symlink("busybox", tree.join("bin").join(applet)).unwrap());
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    let image = dir.path().join("image.sqfs");
    let options = ["-quiet", "-no-progress", "-all-root"];
    let made = Command::new("mksquashfs").arg(&tree).arg(&image).args(options).output();
    let image = made.is_ok_and(|out| out.status.success()).then_some(image);
    if let Some(uid) = uid {
        println!("as {uid}");
        become_user(dir.path(), uid);
    }
    let fuse = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if image.is_none() || !fuse {
        println!(
            "skip: no image, because mksquashfs or /dev/fuse is missing or shut; a folder serves instead"
        );
    }
    let engine = Engine::open_single(dir.path().join("state")).unwrap();
    test(&Place { engine, image: image.filter(|_| fuse), dir });
}

/// An ordinary user, where everybody may open /dev/fuse.
fn become_user(dir: &Path, uid: u32) {
    let own = Command::new("chown").args(["-R", &format!("{uid}:{uid}")]).arg(dir).status().unwrap();
    assert!(own.success());
    // SAFETY: this process has one thread, and a mount namespace of its own changes nothing that it relies on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    let script = "mknod -m 666 $0 c 10 229 && mount --make-rprivate / && mount --bind $0 /dev/fuse";
    // Where that is not possible, there is no image.
    let _ = Command::new("sh").args(["-c", script]).arg(dir.join("fuse")).status();
    // SAFETY: the calls take numbers; this process has one thread.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(uid), 0);
        assert_eq!(libc::setuid(uid), 0);
        // The change of user has made /proc/self root's.
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The host with another root.
    fn native(&self, script: &str) -> Workload {
        let root = match &self.image {
            Some(image) => Root::File(image_file::find(image, &image_file::open(image).unwrap()).unwrap()),
            None => Root::Directory(self.path("tree")),
        };
        let is_root = rustix::process::geteuid().is_root();
        Workload {
            root,
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".into(), "A=1".into()],
            writable: Writable::Nowhere,
            image_mount: ImageMount::Fuse,
            run_as: RunAs::Caller,
            system: SystemFiles {
                dev: SystemMount::Host,
                proc: SystemMount::Host,
                sys: SystemMount::Host,
                bare_etc: true,
            },
            bare_env: true,
            keep_session: true,
            remove: true,
            interactive: true,
            userns: if is_root { UserNamespace::Auto } else { UserNamespace::KeepId },
            network: NetworkMode::Host,
            pid: NamespaceMode::Host,
            ipc: NamespaceMode::Host,
            uts: NamespaceMode::Host,
            cgroupns: NamespaceMode::Host,
            security: Security {
                capabilities: CapabilityBase::None,
                no_new_privileges: Some(true),
                seccomp: SeccompChoice::Unconfined,
                unmask_system_paths: true,
                ..Security::default()
            },
            ..Workload::default()
        }
    }

    /// Runs it in a process of its own, and says what it wrote and how it ended.
    fn says(&self, workload: &Workload) -> (String, i32) {
        self.says_with(|foreground| self.engine.run(workload, foreground))
    }

    fn says_with(&self, run: impl FnOnce(&Foreground<'_>) -> isles_engine::Result<Exit>) -> (String, i32) {
        let mut file = tempfile::tempfile().unwrap();
        // SAFETY: this process has one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: dup2(2) of numbers has no memory effects.
            unsafe {
                libc::dup2(file.as_raw_fd(), 1);
                libc::dup2(file.as_raw_fd(), 2);
            }
            let warn = |text: &str| eprintln!("warning: {text}");
            let code = match run(&Foreground { warn: &warn, ..Foreground::default() }) {
                Ok(exit) => exit.code(),
                Err(e) => {
                    eprintln!("error: {e}: {:?}", std::error::Error::source(&e).map(ToString::to_string));
                    255
                }
            };
            std::process::exit(code.into());
        }
        let mut status = 0;
        // SAFETY: the child is this process's own and the status lives.
        unsafe { libc::waitpid(child, &mut status, 0) };
        let mut said = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut said).unwrap();
        (said, libc::WEXITSTATUS(status))
    }
}

fn mount(destination: &str, kind: MountKind) -> Mount {
    Mount { destination: destination.into(), kind, read_only: false, optional: false }
}

fn bind(source: &Path, destination: &str) -> Mount {
    let kind = MountKind::Bind {
        source: source.to_owned(),
        recursive: true,
        create_source: false,
        propagation: Propagation::Rprivate,
        recursive_read_only: false,
        owners: Default::default(),
    };
    mount(destination, kind)
}

fn ends(target: Target, end: impl FnOnce()) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let process = pidfd_open(Pid::from_raw(target.pid).unwrap(), PidfdFlags::empty()).unwrap();
    end();
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).unwrap(), 1);
}

fn the_caller_runs_on_the_host_with_another_root(place: &Place) {
    let home = place.path("home");
    fs::create_dir(&home).unwrap();
    let mut workload = place.native(
        "id -u; id -g; readlink /proc/self/ns/pid; readlink /proc/self/ns/net; env | grep ^A=; pwd; echo x > file; \
         touch /new 2>/dev/null; echo $?; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; \
         test -c /dev/null && exit 7",
    );
    workload.mounts = vec![bind(&home, "/some/where/home")];
    workload.working_dir = Some("/some/where/home".into());
    let (said, code) = place.says(&workload);
    let link = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let none = "0000000000000000";
    let expected = format!(
        "{uid}\n{gid}\n{}\n{}\nA=1\n/some/where/home\n1\nCapEff:\t{none}\nCapBnd:\t{none}\nNoNewPrivs:\t1\n",
        link("pid"),
        link("net"),
    );
    assert_eq!((said, code), (expected, 7));
    assert_eq!(fs::read_to_string(home.join("file")).unwrap(), "x\n");
    // Where there is no such folder the next is taken; without a next it is an error.
    workload.command[2] = "pwd".into();
    workload.existing_working_dir = true;
    workload.working_dir = Some("/nowhere".into());
    workload.working_dir_else = vec!["/neither".into(), "/etc".into()];
    assert_eq!(place.says(&workload), ("/etc\n".into(), 0));
    workload.working_dir_else.clear();
    let (said, code) = place.says(&workload);
    assert!(code == 255 && said.contains("/nowhere"), "{said}");
    // The same as root, who for an ordinary user is root of a user namespace.
    workload.working_dir = None;
    workload.run_as = RunAs::Image;
    workload.user = Some("0:0".into());
    workload.userns = UserNamespace::Auto;
    workload.writable = Writable::Memory { size: Some(1 << 20) };
    workload.command[2] = "id -u; stat -c %u /bin/busybox; echo y > /new && cat /new".into();
    assert_eq!(place.says(&workload), ("0\n0\ny\n".into(), 0));
}

fn what_is_open_and_set_stays_so_where_asked(place: &Place) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    // SAFETY: umask(2) cannot fail and takes a number.
    unsafe { libc::umask(0o077) };
    let mut workload = place.native(&format!("umask; echo through >&{}", write.as_raw_fd()));
    workload.keep_descriptors = true;
    workload.keep_umask = true;
    assert_eq!(place.says(&workload), ("0077\n".into(), 0));
    workload.keep_umask = false;
    workload.keep_descriptors = false;
    let (said, code) = place.says(&workload);
    assert!(said.starts_with("0022\n") && code != 0, "{said}");
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through\n");
}

fn optional_mounts_are_left_out_with_a_warning(place: &Place) {
    let mut workload = place.native("ls /etc");
    workload.mounts =
        vec![bind(Path::new("/nonexistent/source"), "/a"), bind(&place.path("tree/etc"), "/etc/passwd")];
    workload.mounts.iter_mut().for_each(|mount| mount.optional = true);
    let (said, code) = place.says(&workload);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("warning: /a is not mounted") && said.contains("/nonexistent/source"), "{said}");
    assert!(said.contains("warning: /etc/passwd is not mounted") && said.ends_with("passwd\n"), "{said}");
    // One that fails only in the container: below a file there is no place.
    workload.mounts = vec![bind(&place.path("tree/etc"), "/etc/passwd/below")];
    workload.mounts[0].optional = true;
    let (said, code) = place.says(&workload);
    assert!(code == 0 && said.contains("warning: ") && said.contains("/etc/passwd/below"), "{said}");
    workload.mounts[0].optional = false;
    let (said, code) = place.says(&workload);
    assert!(code == 255 && said.contains("/etc/passwd/below"), "{said}");
}

fn files_are_written_and_taken_from_images(place: &Place) {
    let mut workload = place.native("cat /etc/passwd; stat -c %a /etc/passwd");
    let text = "me:x:1:1:::\n";
    workload.mounts = vec![mount("/etc/passwd", MountKind::File { text: text.into(), mode: 0o444 })];
    assert_eq!(place.says(&workload), (format!("{text}444\n"), 0));
    let Root::File(image) = workload.root.clone() else { return };
    let of_image =
        |to: &str, inside: &str| mount(to, MountKind::Image { image: image.clone(), inside: inside.into() });
    workload.mounts = vec![of_image("/image/file", "/etc/passwd"), of_image("/image/folder", "/")];
    workload.overlays = vec![Overlay::File(image.clone())];
    workload.command[2] = "cat /image/file; ls /image/folder".into();
    assert_eq!(place.says(&workload), ("root:x:0:0:root:/root:/bin/sh\nbin\netc\n".into(), 0));
    workload.mounts = vec![of_image("/x", "/nothing")];
    let (said, code) = place.says(&workload);
    assert!(code == 255 && said.contains("the image has nothing there"), "{said}");
}

fn a_container_in_the_background_is_joined(place: &Place) {
    let log = |name: &str| File::options().create(true).append(true).open(place.path(name)).unwrap();
    let mut workload = place.native("echo begun; echo to stderr >&2; exec sleep 1000");
    workload.init = true;
    workload.uts = NamespaceMode::Private;
    workload.hostname = Some("instance".into());
    workload.pid = NamespaceMode::Private;
    workload.system.proc = SystemMount::New;
    let (out, err) = (log("out"), log("err"));
    let started = place.engine.start(&workload, &Foreground::default(), &out, &err).unwrap();
    assert!(started.process.lives() && started.monitor.lives());
    assert_ne!(started.monitor.pid, std::process::id().cast_signed());
    let mut joining = place.native("hostname; id -u; pwd; wc -l < passwd; test -d /proc/1 && exit 5");
    joining.working_dir = Some("/etc".into());
    let uid = rustix::process::geteuid().as_raw();
    let joined = place.says_with(|foreground| place.engine.run_in(started.process, &joining, foreground));
    assert_eq!(joined, (format!("instance\n{uid}\n/etc\n1\n"), 5));
    // It may be joined before it says anything.
    let said = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    while said("out").is_empty() || said("err").is_empty() {
        std::thread::yield_now();
    }
    // With its monitor everything goes.
    let monitor = rustix::process::Pid::from_raw(started.monitor.pid).unwrap();
    ends(started.process, || {
        rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    });
    assert_eq!([said("out"), said("err")], ["begun\n", "to stderr\n"]);
    let other = Target { began: 1, ..Target::of(std::process::id().cast_signed()).unwrap() };
    let (said, code) = place.says_with(|foreground| place.engine.run_in(other, &joining, foreground));
    assert!(code == 255 && said.contains("it has ended"), "{said}");
}

fn a_start_in_the_background_that_fails_says_why(place: &Place) {
    let log = File::options().create(true).append(true).open(place.path("log")).unwrap();
    let mut workload = place.native("true");
    workload.command = vec!["nosuch".into()];
    let error = place.engine.start(&workload, &Foreground::default(), &log, &log).unwrap_err();
    assert!(error.to_string().contains("no program 'nosuch'"), "{error}");
    assert_eq!(error.exit_code(), 127);
    assert!(place.engine.containers().unwrap().is_empty());
}
