//! Places that are hard to live in: a full disk, one that nothing may be run from, a home that is not there or cannot be
//! written to, a file system without locks; and several at once, and ends by kill -9, with pulls, builds and SIF files.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use desk::{Desk, Said, both, both_with_registry, installed};

/// How a file system comes to a folder before a line is run, as root in a mount namespace; `$0` is the home.
const SMALL: &str = "mount -t tmpfs -o size=12m,mode=0777 none $0/place";
const NOEXEC: &str = "mount -t tmpfs -o noexec,mode=0777 none $0/place";
const READ_ONLY: &str = "mount --bind $0 $0 && mount -o remount,ro,bind $0";

/// A line of a shell, after a mount that only root can make.
fn after(desk: &Desk, mount: &str, text: &str) -> Said {
    let plain = desk.command(&["sh", "-c", text]);
    let mut command = Command::new("unshare");
    let script = format!("({mount}) || exit 98; cd $0; exec \"$@\"");
    command.args(["-m", "sh", "-c", &script]).arg(desk.path("home")).arg(plain.get_program());
    command.args(plain.get_args()).env_clear().current_dir(plain.get_current_dir().unwrap());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Said::of(command.stdin(Stdio::null()).output().unwrap())
}

fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skip: only root can mount what makes a place hard");
    }
    root && installed("/bin/busybox")
}

/// An image in the home as an archive, a SIF file and a folder, and a place for file systems.
fn lay_out(desk: &Desk) {
    desk.busybox(&[]);
    desk.file("place/.keep", "");
    desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
    desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
}

/// Each line is tried with no room, fails with words that say so, and works when there is room again; nothing of it stays
/// behind, and what was there before is whole.
#[test]
fn on_a_full_disk() {
    if !can_mount() {
        return;
    }
    both(|desk| {
        lay_out(desk);
        desk.file("Dockerfile", "FROM busybox:desk\nCOPY busybox/busybox /more\nRUN echo x > /x\n");
        for (line, result) in [
            ("isles load -q -i $HOME/b.tar", "isles run --rm busybox:desk echo fine"),
            ("isles build -q -t new $HOME", "isles run --rm new cat /x | sed s/x/fine/"),
            ("isles build -q --no-cache -o type=oci,dest=o.tar $HOME", "test -s o.tar && echo fine"),
            (
                "apptainer -q build --force out.sif docker-archive:$HOME/b.tar",
                "apptainer exec out.sif echo fine",
            ),
            ("isles build -q out.sif $HOME", "apptainer exec out.sif echo fine"),
            (
                "isles save -o s.tar $(isles load -q -i $HOME/b.tar | sed 's/.*: //')",
                "tar tf s.tar > /dev/null && echo fine",
            ),
            (
                "apptainer -q build --force --sandbox t docker-archive:$HOME/b.tar",
                "apptainer exec t echo fine",
            ),
        ] {
            let before =
                if line.contains("build") && line.contains("$HOME") && !line.contains("docker-archive") {
                    "isles load -q -i $HOME/b.tar > /dev/null; "
                } else {
                    ""
                };
            let text = format!(
                "cd place; export ISLES_ROOT=$PWD/state; isles images > /dev/null; {before}\
                 dd if=/dev/zero of=filler bs=4k 2> /dev/null; truncate -s -300k filler; {line} > /dev/null; echo $?; \
                 ls *.sif *.tar t 2> /dev/null; rm filler; isles verify > /dev/null || echo damaged; \
                 ({line}) > /dev/null 2> err || cat err; {result}; isles verify > /dev/null || echo damaged"
            );
            let said = after(desk, SMALL, &text);
            println!("{line}: {said:?}");
            let (code, rest) = said.out.split_once('\n').unwrap();
            assert_ne!(code, "0", "{line}: {said:?}");
            assert_eq!(rest, "fine\n", "{line}: {said:?}");
            assert!(said.err.contains("No space left on device"), "{line}: {said:?}");
        }
    });
}

/// A container's own file systems are what its programs run from, not those that its layers are kept on.
#[test]
fn where_nothing_may_be_run() {
    if !can_mount() {
        return;
    }
    both(|desk| {
        lay_out(desk);
        for line in [
            "isles load -q -i $HOME/b.tar > /dev/null; isles run --rm busybox:desk echo fine",
            "isles load -q -i $HOME/b.tar > /dev/null; printf 'FROM busybox:desk\\nRUN echo x > /x\\n' > Dockerfile; \
             isles build -q -t x . > /dev/null && isles run --rm x echo fine",
            "cp $HOME/b.sif . && apptainer exec b.sif echo fine",
            "cp $HOME/b.sif . && apptainer exec --unsquash b.sif echo fine",
        ] {
            let said = after(desk, NOEXEC, &format!("cd place; export ISLES_ROOT=$PWD/state; {line}"));
            println!("{line}: {said:?}");
            assert!(said.out == "fine\n" || said.err.contains("noexec"), "{line}: {said:?}");
        }
    });
}

#[test]
fn without_a_home() {
    if !can_mount() {
        return;
    }
    both(|desk| {
        lay_out(desk);
        let other = "ISLES_ROOT=$TMPDIR/other";
        for (line, fine) in [
            // What needs no state has none.
            ("apptainer exec b.sif echo fine".to_owned(), true),
            ("env -u HOME apptainer exec b.sif echo fine".to_owned(), true),
            ("env HOME=/nowhere apptainer exec b.sif echo fine".to_owned(), true),
            ("apptainer inspect b.sif > /dev/null && echo fine".to_owned(), true),
            ("apptainer sif list b.sif > /dev/null && echo fine".to_owned(), true),
            ("isles run --rm b.sif echo fine".to_owned(), false),
            ("isles images > /dev/null && echo fine".to_owned(), true),
            (
                format!(
                    "{other} isles load -q -i b.tar > /dev/null; {other} isles run --rm busybox:desk echo fine"
                ),
                true,
            ),
            (format!("env -u HOME {other} isles run --rm b.sif echo fine"), true),
            (
                format!(
                    "cd $TMPDIR; {other} apptainer -q build n.sif docker-archive:$HOME/b.tar && {other} apptainer exec n.sif echo fine"
                ),
                true,
            ),
        ] {
            // Root's state is elsewhere.
            let line =
                if desk.ordinary || line.contains("ISLES_ROOT") { line } else { format!("{other} {line}") };
            let said = after(desk, READ_ONLY, &line);
            println!("{line}: {said:?}");
            if fine || !desk.ordinary {
                assert_eq!((said.code, said.out.as_str()), (Some(0), "fine\n"), "{line}: {said:?}");
            } else {
                assert_ne!(said.code, Some(0), "{line}: {said:?}");
                assert!(said.err.contains("ISLES_ROOT"), "{line}: {said:?}");
            }
        }
    });
}

/// As on a file system of a network that keeps no locks: flock(2) fails there, which a filter of system calls imitates.
/// Nothing is done without the locks that all the state depends on, and what has none works.
#[test]
fn without_locks() {
    if !installed("/bin/busybox") {
        return;
    }
    let desk = Desk::new(true);
    lay_out(&desk);
    for (errno, name) in
        [(libc::ENOLCK, "ENOLCK"), (libc::EOPNOTSUPP, "EOPNOTSUPP"), (libc::ENOSYS, "ENOSYS")]
    {
        for (line, fine) in [
            ("isles run --rm busybox:desk true", false),
            ("isles load -q -i b.tar", false),
            ("isles build -q -t x busybox", false),
            ("apptainer inspect b.sif", true),
            ("apptainer key list", true),
        ] {
            let mut command = desk.command(&["sh", "-c", line]);
            // SAFETY: the filter is made of constants, and both calls are safe between fork and exec.
            unsafe { command.pre_exec(move || refuse_flock(errno)) };
            let said = Said::of(command.output().unwrap());
            assert_eq!(said.code == Some(0), fine, "{name} {line}: {said:?}");
            assert!(
                fine || said.err.contains("locks") && said.err.contains("ISLES_ROOT"),
                "{name} {line}: {said:?}"
            );
        }
    }
}

/// Lets flock(2) fail in this process and all that come from it.
fn refuse_flock(errno: i32) -> std::io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_flock as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points to `program`, which outlives the call.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn several_at_once() {
    if !installed("/bin/busybox") {
        return;
    }
    both_with_registry(|desk| {
        let name = format!("{}/hub/library/busybox:1.30.1", desk.address());
        desk.busybox(&[&name]);
        desk.file("Dockerfile", "FROM busybox:1.30.1\nRUN echo made > /made\nCOPY Dockerfile /\n");
        desk.run(&["mkdir", "one"]).fine();
        for (line, result) in [
            (
                "ISLES_ROOT=$PWD/a isles pull -q busybox:1.30.1",
                "ISLES_ROOT=$PWD/a isles run --rm busybox:1.30.1 echo fine",
            ),
            (
                "ISLES_ROOT=$PWD/b isles build -q -t same .",
                "ISLES_ROOT=$PWD/b isles run --rm same cat /made | sed s/made/fine/",
            ),
            (
                "ISLES_ROOT=$PWD/c apptainer pull --force one/p.sif docker://busybox:1.30.1",
                "apptainer exec one/p.sif echo fine",
            ),
            ("ISLES_ROOT=$PWD/d isles build -q one/b.sif .", "apptainer exec one/b.sif echo fine"),
            ("ISLES_ROOT=$PWD/e isles run --rm busybox:1.30.1 true", "echo fine"),
        ] {
            let children: Vec<_> = (0..6)
                .map(|_| {
                    let mut command = desk.command(&["sh", "-c", line]);
                    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
                })
                .collect();
            for child in children {
                let said = Said::of(child.wait_with_output().unwrap());
                assert_eq!(said.code, Some(0), "{line}: {said:?}");
            }
            assert_eq!(desk.script(result).fine(), "fine\n", "{line}");
            let state = line.split_whitespace().next().unwrap();
            desk.script(&format!("{state} isles verify")).fine();
        }
        assert_eq!(desk.script("ls one").fine(), "b.sif\np.sif\n");
    });
}

/// Killed after each fifth of the time that it takes (`ISLES_FAULTS=n` makes n parts of it): what was to be written is not there or whole, the state is in
/// order, and the same line works afterwards.
#[test]
fn killed_at_any_time() {
    let parts: u32 = std::env::var("ISLES_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    if !installed("/bin/busybox") {
        return;
    }
    both(|desk| {
        lay_out(desk);
        desk.file("Dockerfile", "FROM busybox:desk\nRUN seq 1 20000 > /made || echo > /made\nCOPY b.tar /\n");
        for (line, file) in [
            ("exec isles load -q -i b.tar", None),
            ("exec isles build -q -t killed .", None),
            ("exec isles build -q made.sif .", Some("made.sif")),
            ("exec apptainer -q build --force again.sif docker-archive:b.tar", Some("again.sif")),
            ("exec isles save -o made.tar busybox:desk", Some("made.tar")),
        ] {
            let state = "ISLES_ROOT=$PWD/killed; export ISLES_ROOT; ";
            let prepare = format!("{state} isles load -q -i b.tar > /dev/null");
            let script = format!("{state}{line} > /dev/null");
            let clear =
                "chmod -R u+rwx killed 2> /dev/null || true; rm -rf killed made.sif again.sif made.tar";
            let fresh = || {
                desk.script(clear).fine();
                if !line.contains(" load ") {
                    desk.script(&prepare).fine();
                }
            };
            fresh();
            let begun = Instant::now();
            desk.script(&script).fine();
            let whole = begun.elapsed();
            for part in 1..parts {
                fresh();
                let begun = Instant::now();
                let mut child = desk.command(&["sh", "-c", &script]).stderr(Stdio::null()).spawn().unwrap();
                while begun.elapsed() < whole * part / parts && child.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_micros(200));
                }
                let _ = child.kill();
                child.wait().unwrap();
                if let Some(file) = file.filter(|file| desk.path("home").join(file).exists()) {
                    let look = if file.ends_with("tar") {
                        format!("tar tf {file}")
                    } else {
                        format!("apptainer exec {file} true")
                    };
                    desk.script(&look).fine();
                }
                let said = desk.script(&format!("{state} isles verify"));
                assert_eq!(said.code, Some(0), "{line}, part {part}: {said:?}");
                desk.script(&script).fine();
                // A file has a second name for a moment only, before it takes the place of another.
                let names = fs::read_dir(desk.path("home")).unwrap().flatten();
                let left: Vec<_> = names
                    .map(|entry| entry.file_name().into_string().unwrap())
                    .filter(|name| {
                        name.starts_with(".new-")
                            || file.is_some_and(|file| name != file && name.contains(file))
                    })
                    .collect();
                assert!(left.len() <= 1, "{line}, part {part}: {left:?}");
            }
            fresh();
        }
    });
}
