//! `isles run` and its companions, as root and as an ordinary user.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::Stdio;

use rustix::process::Signal;
use world::{Running, Who, World, everyone, terminal};

#[test]
fn a_program_sees_its_own_world() {
    everyone(|world| {
        let script = "id -u; hostname; echo $$; pwd; echo $HOME; ls /dev/null /proc/self/stat /sys/class; \
                      grep -c . /proc/self/mounts >/dev/null; cat /etc/hostname";
        let out = world.run(&["-h", "isle", "--", "sh", "-c", script]).fine();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..5], ["0", "isle", "1", "/", "/root"], "{out}");
        assert_eq!(lines.last(), Some(&"isle"));
        // The image is as it was.
        world.run(&["touch", "/new"]).fine();
        world.run(&["ls", "/new"]).fails(1, &["/new"]);
    });
}

#[test]
fn exit_codes_are_dockers() {
    everyone(|world| {
        for (words, code, said) in [
            (&["true"][..], 0, ""),
            (&["sh", "-c", "exit 7"], 7, ""),
            (&["sh", "-c", "kill -9 $$; kill -9 1; exit 5"], 5, ""),
            (&["--init", "--", "sh", "-c", "kill -9 $$"], 137, ""),
            (&["nosuch"], 127, "no program 'nosuch'"),
            (&["slep", "1"], 127, "did you mean 'sleep'"),
            (&["/etc"], 126, "is a directory"),
            (&["/etc/passwd"], 126, "not executable"),
            (&["--network", "moon:x", "--", "true"], 125, "unknown mode 'moon:x'"),
            (&["--nosuch", "--", "true"], 125, "--nosuch"),
            (&["-v", "/nonexistent:relative", "--", "true"], 125, "absolute"),
            (&["--mount", "type=bind,source=/nonexistent/x,target=/x", "--", "true"], 125, "/nonexistent/x"),
            (&["-v", "data:/data:bogus", "--", "true"], 125, "invalid mode: bogus"),
            (&["-v", "C:\\data:/data", "--", "true"], 125, "Windows"),
            (&["-u", "nobody-here", "--", "true"], 125, "unable to find user nobody-here"),
            (&["-u", "4294967296", "--", "true"], 125, "invalid user"),
            (&["--cap-add", "FLY", "--", "true"], 125, "unknown capability 'FLY'"),
            (&["--security-opt", "seccomp=/nonexistent/p", "--", "true"], 125, "/nonexistent/p"),
            (&["-d", "--", "/nowhere"], 127, "/nowhere"),
            (&["--pid", "container:nosuch", "--", "true"], 125, "no such container: nosuch"),
        ] {
            world.run(words).fails(code, &[said]);
        }
        world.isles(&["run"]).fails(125, &["nothing to run"]);
        world.isles(&["run", "--pull", "never", "nosuch:image"]).fails(125, &["nosuch:image"]);
        world.isles(&["run", "./nosuch.def"]).fails(125, &["no recipe"]);
        world.isles(&["run", "--rootfs", "/nonexistent/root", "true"]).fails(125, &["/nonexistent/root"]);
    });
}

#[test]
fn a_failure_is_125_and_leaves_no_cidfile() {
    everyone(|world| {
        let state = world.path("state").display().to_string();
        world.isles(&["--root", &state, "run", "--pull", "never", "nosuch"]).fails(125, &["nosuch"]);
        world.isles(&["--root", &state, "run", "--red-only", "x"]).fails(125, &["--red-only", "--read-only"]);
        let cidfile = world.path("home/cid-of-none");
        let cid = cidfile.display().to_string();
        world.isles(&["run", "--cidfile", &cid, "--pull", "never", "nosuch"]).fails(125, &["nosuch"]);
        assert!(!cidfile.exists());
    });
}

#[test]
fn files_and_folders_are_not_mixed_up() {
    everyone(|world| {
        let file = "/etc/passwd:/etc";
        world.run(&["-v", file, "--", "true"]).fails(125, &["it is a file", "a folder there"]);
        world.run(&["-v", "/etc:/etc/group", "--", "true"]).fails(125, &["it is a folder", "a file there"]);
        let shadowed = ["-v", "/usr:/etc", "-v", "/usr:/etc/group", "--", "true"];
        assert!(!world.run(&shadowed).err.contains("the image has"));
    });
}

#[test]
fn the_last_limit_of_a_resource_counts() {
    everyone(|world| {
        let words = ["--ulimit", "nofile=100", "--ulimit", "nofile=200:300", "--", "sh", "-c"];
        let out = world.run(&[&words[..], &["ulimit -n; ulimit -Hn"]].concat()).fine();
        assert_eq!(out, "200\n300\n");
    });
}

#[test]
fn other_users_can_read_the_files_of_names_whatever_the_umask() {
    everyone(|world| {
        let mut command = world.run_command(&["-u", "www", "--", "cat", "/etc/hosts", "/etc/hostname"]);
        // SAFETY: umask(2) is safe between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
                Ok(())
            })
        };
        assert!(world::Said::of(command.output().unwrap()).fine().contains("localhost"));
    });
}

#[test]
fn odd_files_of_names_in_an_image_do_no_harm() {
    everyone(|world| {
        let tree = world.path("odd-names");
        world::busybox(&tree);
        symlink("/", tree.join("etc/hosts")).unwrap();
        symlink("/proc/self/fd/1", tree.join("etc/resolv.conf")).unwrap();
        fs::create_dir(tree.join("etc/hostname")).unwrap();
        world.image("odd-names-image", &tree, |config| config.config.user = "www".into());
        let source = format!("oci:{}", world.path("odd-names-image").display());
        let out = world.isles(&["run", "--rm", "-u", "", &source, "sh", "-c", "ls -d /bin; id -u"]).fine();
        assert_eq!(out, "/bin\n33\n", "an empty user is the image's");
    });
}

#[test]
fn without_home_there_is_still_no_crash() {
    everyone(|world| {
        let mut command = world.command(["images"]);
        command.env_remove("HOME").env_remove("ISLES_ROOT");
        let said = world::Said::of(command.output().unwrap());
        assert!(said.code >= 0, "{said:?}");
        let said = world::Said::of(world.run_command(&["true"]).env_remove("HOME").output().unwrap());
        said.fine();
    });
}

#[test]
fn programs_that_cannot_run_are_explained() {
    everyone(|world| {
        let tree = world.path("odd");
        world::busybox(&tree);
        let script = |name: &str, text: &[u8]| {
            let path = tree.join("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        };
        script("dos", b"#!/bin/sh\r\necho hi\r\n");
        script("python", b"#!/usr/bin/python9\n");
        script("empty", b"");
        script("text", b"hello\n");
        let mut arm = fs::read("/bin/busybox").unwrap();
        arm[18..20].copy_from_slice(&183u16.to_le_bytes());
        script("arm", &arm);
        world.image("odd-image", &tree, |_| {});
        let source = format!("oci:{}", world.path("odd-image").display());
        for (program, code, said) in [
            ("dos", 127, "carriage return"),
            ("python", 127, "'/usr/bin/python9'"),
            ("empty", 126, "is empty"),
            ("text", 126, "neither a binary nor a script"),
            ("arm", 126, "aarch64"),
        ] {
            world.isles(&["run", "--rm", &source, program]).fails(code, &[said]);
        }
    });
}

#[test]
fn input_output_and_its_end() {
    everyone(|world| {
        let big: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        assert_eq!(world.run_with_input(&["-i", "--", "wc", "-c"], &big).fine(), "1000000\n");
        assert_eq!(world.run_with_input(&["wc", "-c"], b"not asked for").fine(), "0\n");
        let said = world.run(&["sh", "-c", "echo out; echo err >&2"]);
        assert_eq!((said.out.as_str(), said.err.lines().last()), ("out\n", Some("err")));
        let out = world.run(&["sh", "-c", "head -c 3000000 /dev/zero"]).fine();
        assert_eq!(out.len(), 3_000_000);
    });
}

#[test]
fn the_environment_in_dockers_order() {
    everyone(|world| {
        let tree = world.path("env");
        world::busybox(&tree);
        world.image("env-image", &tree, |config| {
            let c = &mut config.config;
            c.env = vec!["A=image".into(), "B=image".into(), "PATH=/bin".into()];
            c.entrypoint = Some(vec!["env".into()]);
            c.working_dir = "/etc".into();
            c.user = "www".into();
        });
        let source = format!("oci:{}", world.path("env-image").display());
        let file = world.path("file.env");
        fs::write(&file, "# note\nB=file\nC=file\n").unwrap();
        let mut command = world.command(["run", "--rm", "--env-file"]);
        command.arg(&file).args(["-e", "C=option", "-e", "CALLER", "-e", "NOT_THERE"]).arg(&source);
        let said = world::Said::of(command.env("CALLER", "x").output().unwrap()).fine();
        for line in ["A=image", "B=file", "C=option", "CALLER=x", "PATH=/bin", "HOME=/var/www", "PWD=/etc"] {
            if line != "PWD=/etc" {
                assert!(said.lines().any(|l| l == line), "{line} is missing in {said}");
            }
        }
        assert!(!said.contains("NOT_THERE"));
        let words = ["run", "--rm", "--entrypoint", "sh", &source, "-c", "pwd; id -u; id -g"];
        assert_eq!(world.isles(&words).fine(), "/etc\n33\n33\n");
        let words = ["run", "--rm", "--entrypoint", "", &source];
        world.isles(&words).fails(125, &["no command"]);
    });
}

#[test]
fn mounts_show_what_they_should() {
    everyone(|world| {
        let data = world.path("home/data");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("file"), "seen\n").unwrap();
        world.give("home/data");
        let spec = |end: &str| format!("{}:{end}", data.display());
        let bind = |words: &[&str]| world.run(words);
        assert_eq!(
            bind(&["-v", &spec("/d"), "--", "sh", "-c", "cat /d/file; echo new > /d/new"]).fine(),
            "seen\n"
        );
        assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(data.join("new")).unwrap());
        assert_eq!(owner, world.uid(), "it is the caller's");
        bind(&["-v", &spec("/d:ro"), "--", "touch", "/d/x"]).fails(1, &["Read-only"]);
        // A source that is missing is made for -v.
        let made = world.path("home/made");
        bind(&["-v", &format!("{}:/m", made.display()), "--", "touch", "/m/x"]).fine();
        assert!(made.join("x").exists());
        // A link in the image leads nowhere outside.
        let tree = world.path("links");
        world::busybox(&tree);
        symlink("/../../../../etc", tree.join("escape")).unwrap();
        world.image("links-image", &tree, |_| {});
        let source = format!("oci:{}", world.path("links-image").display());
        let words = ["run", "--rm", "-v", &spec("/escape/data"), &source, "cat", "/etc/data/file"];
        assert_eq!(world.isles(&words).fine(), "seen\n");
        let out = bind(&[
            "--tmpfs",
            "/t:size=1m,mode=700",
            "--",
            "sh",
            "-c",
            "stat -c %a /t; dd if=/dev/zero of=/t/x bs=1M count=2 2>&1 | grep -o 'No space'",
        ]);
        assert_eq!(out.out, "700\nNo space\n", "{out:?}");
        let out = bind(&["--shm-size", "1m", "--", "sh", "-c", "grep /dev/shm /proc/mounts"]).fine();
        assert!(out.contains("size=1024k"), "{out}");
        bind(&["--read-only", "--", "touch", "/x"]).fails(1, &["Read-only"]);
        bind(&["--read-only", "--tmpfs", "/t", "--", "touch", "/t/x"]).fine();
        let out = bind(&[
            "--device",
            "/dev/null:/dev/other",
            "--",
            "sh",
            "-c",
            "echo x > /dev/other; stat -c %t:%T /dev/other",
        ]);
        assert_eq!(out.out, "1:3\n", "{out:?}");
    });
}

#[test]
fn privileges_are_dockers_defaults() {
    everyone(|world| {
        let script = "grep -E 'CapBnd|CapAmb|CapInh|NoNewPrivs|Seccomp:' /proc/self/status";
        let out = world.run(&["sh", "-c", script]).fine();
        let nnp = u8::from(world.who == Who::Ordinary);
        for line in [
            "CapBnd:\t00000000a80425fb",
            "CapAmb:\t0000000000000000",
            "CapInh:\t0000000000000000",
            "Seccomp:\t2",
            &format!("NoNewPrivs:\t{nnp}"),
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is missing in {out}");
        }
        let out = world.run(&["--cap-drop", "ALL", "--cap-add", "chown", "--", "sh", "-c", script]).fine();
        assert!(out.contains("CapBnd:\t0000000000000001"), "{out}");
        let out = world.run(&["--security-opt", "no-new-privileges", "--", "sh", "-c", script]).fine();
        assert!(out.contains("NoNewPrivs:\t1"), "{out}");
        // A kernel parameter, a masked file, and a new mount are out of reach.
        let script = "echo 1 > /proc/sys/kernel/panic; cat /proc/kcore | wc -c; mount -t tmpfs x /tmp; true";
        let said = world.run(&["sh", "-c", script]);
        assert_eq!(said.out, "0\n", "{said:?}");
        assert!(said.err.contains("Read-only") && said.err.contains("mount:"), "{said:?}");
        if world.who != Who::Ordinary {
            world.run(&["sh", "-c", "touch /x && chown 5:6 /x && test $(stat -c %u:%g /x) = 5:6"]).fine();
            return;
        }
        // With one ID owners can be changed in name only, and nothing fails for it.
        world.run(&["sh", "-c", "touch /x && chown 5:6 /x && mknod /y c 1 3"]).fine();
    });
}

#[test]
fn devices_are_out_of_reach_for_root_too() {
    if !World::is_root() {
        println!("skip: not root");
        return;
    }
    let Some(world) = World::new(Who::Root) else { return };
    // The disk of the host, whatever it is: the node can be made, but not opened.
    let script = "mknod /disk b $0 $1 && dd if=/disk of=/dev/null bs=1 count=1";
    let parts = fs::read_to_string("/proc/partitions").unwrap();
    let Some(line) = parts.lines().skip(2).find(|l| !l.trim().is_empty()) else {
        println!("skip: this machine has no disk");
        return;
    };
    let numbers: Vec<&str> = line.split_whitespace().take(2).collect();
    let name = line.split_whitespace().last().unwrap();
    world.run(&["sh", "-c", script, numbers[0], numbers[1]]).fails(1, &["not permitted"]);
    let device = fs::read_dir("/dev").unwrap().map(|e| e.unwrap().path()).find(|p| p.ends_with(name));
    match device.map(fs::File::open) {
        Some(Ok(_)) => {
            let words = ["--privileged", "--", "sh", "-c", script, numbers[0], numbers[1]];
            world.run(&words).fine();
        }
        _ => println!("skip: the disk cannot be opened outside of a container either"),
    }
}

#[test]
fn containers_stay_until_they_are_removed() {
    everyone(|world| {
        let source = world.source();
        let cidfile = world.path("home/cid");
        let cid = cidfile.display().to_string();
        let words =
            ["run", "--name", "one", "--label", "a=b", "--cidfile", &cid, &source, "sh", "-c", "exit 3"];
        world.isles(&words).fails(3, &[]);
        let id = fs::read_to_string(&cidfile).unwrap();
        assert_eq!(id.len(), 64);
        world.isles(&words).fails(125, &["home/cid"]);
        fs::remove_file(&cidfile).unwrap();
        world.isles(&words).fails(125, &["already in use by container", &id[..12]]);
        assert!(!cidfile.exists(), "there is no container that it could name");
        assert_eq!(world.isles(&["ps", "-q"]).fine(), "");
        let line = world.isles(&["ps", "-a", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Labels}}"]).fine();
        assert_eq!(line, format!("{} one exited a=b\n", &id[..12]));
        let filtered = world.isles(&["ps", "-aq", "--filter", "exited=3", "--filter", "label=a"]).fine();
        assert_eq!(filtered.trim(), &id[..12]);
        assert_eq!(world.isles(&["ps", "-aq", "--filter", "status=running"]).fine(), "");
        let seen =
            world.isles(&["inspect", "-f", "{{.State.ExitCode}} {{.Config.Labels.a}} {{.Name}}", "one"]);
        assert_eq!(seen.fine(), "3 b /one\n");
        world.isles(&["ps", "--filter", "color=red"]).fails(1, &["color"]);
        world.isles(&["rm", "nosuch"]).fails(1, &["no such container: nosuch"]);
        assert_eq!(world.isles(&["rm", &id[..8]]).fine().trim(), &id[..8]);
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
    });
}

#[test]
fn signals_reach_the_container() {
    everyone(|world| {
        let script = "trap 'echo got; exit 9' TERM; echo ready; while true; do sleep 0.1; done";
        let (mut run, line) = Running::start(&mut world.run_command(&["sh", "-c", script]));
        assert_eq!(line, "ready\n");
        run.signal(Signal::TERM);
        assert_eq!((run.rest().as_str(), run.code()), ("got\n", Some(9)));
        // A program that does not listen; three requests are enough.
        let script = "trap '' INT; echo ready; exec sleep 1000";
        let (mut run, _) = Running::start(&mut world.run_command(&["sh", "-c", script]));
        // Each on its own: signals that are waiting are counted once.
        while run.0.try_wait().unwrap().is_none() {
            run.signal(Signal::INT);
            std::thread::yield_now();
        }
        assert_eq!(run.code(), Some(137));
    });
}

#[test]
fn nothing_outlives_a_killed_run() {
    everyone(|world| {
        let source = world.source();
        let mut command = world.command(["run", "--rm", "--name", "gone", &source]);
        let script = "touch /written; echo ready; exec sleep 1000";
        let (mut run, line) = Running::start(command.args(["sh", "-c", script]));
        assert_eq!(line, "ready\n");
        assert_eq!(world.isles(&["ps", "--format", "{{.Names}} {{.State}}"]).fine(), "gone running\n");
        let id = world.isles(&["inspect", "-f", "{{.Id}}", "gone"]).fine();
        world.isles(&["rm", "gone"]).fails(1, &["it is running"]);
        run.0.kill().unwrap();
        // The pipe closes when the last process of the container is gone.
        assert_eq!(run.rest(), "");
        run.0.wait().unwrap();
        // Any command that looks collects what is left, and the name is free again.
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
        world.isles(&["run", "--rm", "--name", "gone", &source, "true"]).fine();
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
        let left: Vec<_> = fs::read_dir(world.path("state/containers"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".names")
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(fs::read_dir(world.path("state/tmp")).map_or(0, Iterator::count), 0);
        for tree in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/devices"] {
            let groups = fs::read_dir(format!("{tree}/isles")).into_iter().flatten();
            let names: Vec<String> = groups.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            assert!(!names.iter().any(|name| name.contains(&id[..32])), "{tree}: {names:?}");
        }
    });
}

#[test]
fn a_running_container_can_be_removed_by_force() {
    everyone(|world| {
        for remove in [true, false] {
            let source = world.source();
            let mut words = vec!["run", "--name", "busy"];
            words.extend(remove.then_some("--rm"));
            words.extend([source.as_str(), "sh", "-c", "echo ready; exec sleep 1000"]);
            let (mut run, _) = Running::start(&mut world.command(&words));
            world.isles(&["rm", "-f", "busy"]).fine();
            assert_eq!(run.code(), Some(137));
            assert_eq!(world.isles(&["ps", "-aq"]).fine(), "", "remove: {remove}");
        }
    });
}

#[test]
fn namespaces_can_be_shared() {
    everyone(|world| {
        let source = world.source();
        let words =
            ["run", "--rm", "--name", "first", "-h", "isle", "--network", "none", &source, "sh", "-c"];
        let mut command = world.command(words);
        let (mut first, _) = Running::start(command.arg("echo ready; exec sleep 1000"));
        let shared = ["--pid", "container:first", "--network", "container:first", "--", "sh", "-c"];
        let script = "ps | grep -c '[s]leep 1000'; ls /sys/class/net; test $$ != 1 && echo other";
        let out = world.run(&[&shared[..], &[script]].concat()).fine();
        assert_eq!(out, "1\nlo\nother\n");
        world.isles(&["rm", "-f", "first"]).fine();
        first.code();
        let here = fs::read_link("/proc/self/ns/uts").unwrap();
        let words = ["--uts", "host", "--", "sh", "-c", "ls -l /proc/self/ns/uts"];
        assert!(world.run(&words).fine().contains(here.to_str().unwrap()));
        let shared = ["--ipc", "host", "--cgroupns", "host", "--pid", "host", "--"];
        let script = "test -d /dev/shm && ls -l /proc/self/ns/ipc";
        let out = world.run(&[&shared[..], &["sh", "-c", script]].concat()).fine();
        assert!(out.contains(fs::read_link("/proc/self/ns/ipc").unwrap().to_str().unwrap()), "{out}");
        let words = ["--network", "none", "--", "sh", "-c", "ls /sys/class/net; cat /etc/resolv.conf"];
        let said = world.run(&words);
        assert_eq!(said.out, "lo\n", "{said:?}");
    });
}

#[test]
fn here_is_as_oneself() {
    everyone(|world| {
        let project = world.path("home/project");
        fs::create_dir(&project).unwrap();
        world.give("home/project");
        let source = world.source();
        let mut command = world.command(["run", "--here", &source, "sh", "-c"]);
        command.arg("id -u; pwd; echo $HOME; echo $MINE; touch made; cat ../note");
        fs::write(world.path("home/note"), "note\n").unwrap();
        command.current_dir(&project).env("MINE", "yes");
        let out = world::Said::of(command.output().unwrap()).fine();
        let uid = world.uid();
        let home = world.path("home");
        assert_eq!(out, format!("{uid}\n{}\n{}\nyes\nnote\n", project.display(), home.display()));
        assert!(project.join("made").exists());
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "", "--here implies --rm");
    });
}

#[test]
fn an_ordinary_user_can_keep_their_id() {
    everyone(|world| {
        let said =
            world.run(&["--userns", "keep-id", "--", "sh", "-c", "id -u; touch /mine; stat -c %u /mine"]);
        match world.who {
            Who::Root if World::is_root() => said.fails(125, &["keep-id"]),
            _ => assert_eq!(said.fine().lines().next(), Some(world.uid().to_string().as_str())),
        }
    });
}

#[test]
fn a_profile_that_never_comes_is_not_waited_for() {
    everyone(|world| {
        let fifo = world.path("home/profile");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        world.give("home/profile");
        let profile = format!("seccomp={}", fifo.display());
        world.run(&["--security-opt", &profile, "--", "true"]).fails(125, &["seccomp profile"]);
    });
}

#[test]
fn a_folder_is_changed_in_place() {
    everyone(|world| {
        let tree = world.path("home/tree");
        world::busybox(&tree);
        world.give("home/tree");
        let root = tree.display().to_string();
        world.isles(&["run", "--rm", "--rootfs", &root, "sh", "-c", "echo x > /written"]).fine();
        assert_eq!(fs::read_to_string(tree.join("written")).unwrap(), "x\n");
    });
}

#[test]
fn a_terminal_of_its_own_follows_the_callers() {
    everyone(|world| {
        let (master, slave) = terminal();
        let size = |rows, columns| rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size(33, 99)).unwrap();
        let script = "stty size; until stty size | grep -q '44 55'; do sleep 0.05; done; echo resized; \
                      read line; echo got $line; test -t 0 && test -t 2 && tty=yes; echo tty $tty; \
                      while read line; do echo got $line; done; echo end; exit 4";
        let mut command = world.run_command(&["-it", "--", "sh", "-c", script]);
        let copy = || Stdio::from(slave.try_clone().unwrap());
        let mut run = Running(command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap());
        let mut text = String::new();
        let mut file = fs::File::from(master.try_clone().unwrap());
        let mut until = |word: &str| -> () {
            let mut buffer = [0; 1024];
            while !text.contains(word) {
                let n = file.read(&mut buffer).unwrap();
                text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
            let at = text.find(word).unwrap() + word.len();
            text.drain(..at);
        };
        until("33 99");
        rustix::termios::tcsetwinsize(&master, size(44, 55)).unwrap();
        // Where it is not the controlling terminal, the kernel tells nobody.
        run.signal(Signal::WINCH);
        until("resized");
        let mut input = fs::File::from(master.try_clone().unwrap());
        input.write_all(b"hello\r").unwrap();
        until("got hello");
        until("tty yes");
        input.write_all(b"again\r").unwrap();
        until("got again");
        input.write_all(b"\x04").unwrap();
        until("end");
        assert_eq!(run.code(), Some(4));
        // The caller's terminal is as it was.
        let modes = rustix::termios::tcgetattr(&slave).unwrap().local_modes;
        assert!(modes.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO));
        // Without a terminal there is none to follow.
        world.run(&["-it", "--", "true"]).fails(125, &["not a terminal"]);
        let out = world.run(&["-t", "--", "stty", "size"]).fine();
        assert_eq!(out, "24 80\r\n");
    });
}

#[test]
fn what_is_typed_ahead_does_not_stop_what_is_said() {
    everyone(|world| {
        let (master, slave) = terminal();
        let script = "stty -echo; echo started; while read line; do seq 1 3000; \
                      if test \"$line\" = end; then echo finished; exit 3; fi; done";
        let mut command = world.run_command(&["-it", "--", "sh", "-c", script]);
        let copy = || Stdio::from(slave.try_clone().unwrap());
        let mut run = Running(command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap());
        drop((command, slave));
        let mut output = fs::File::from(master.try_clone().unwrap());
        let mut text = Vec::new();
        let mut until = |word: &[u8]| {
            let mut buffer = [0; 64 << 10];
            while !text.windows(word.len()).any(|w| w == word) {
                let n = output.read(&mut buffer).unwrap();
                text.drain(..text.len().saturating_sub(word.len()));
                text.extend_from_slice(&buffer[..n]);
            }
        };
        until(b"started");
        std::thread::scope(|scope| {
            scope.spawn(|| fs::File::from(master).write_all(&[&b"l\r".repeat(300)[..], b"end\r"].concat()));
            until(b"finished");
        });
        assert_eq!(run.code(), Some(3));
    });
}

#[test]
fn a_run_ends_with_its_terminal() {
    use std::os::unix::process::CommandExt;
    everyone(|world| {
        for options in [&[][..], &["-it"], &["--init"]] {
            let (master, slave) = terminal();
            let script = "echo started; exec sleep 1000";
            let mut command = world.run_command(&[options, &["--", "sh", "-c", script]].concat());
            let copy = || Stdio::from(slave.try_clone().unwrap());
            command.stdin(copy()).stdout(copy()).stderr(copy());
            // SAFETY: both calls are safe between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    rustix::process::setsid()?;
                    rustix::process::ioctl_tiocsctty(std::io::stdin())?;
                    Ok(())
                })
            };
            let mut run = Running(command.spawn().unwrap());
            drop((command, slave));
            let mut output = fs::File::from(master);
            let mut text = String::new();
            while !text.contains("started") {
                let mut buffer = [0; 1024];
                let n = output.read(&mut buffer).unwrap();
                text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
            drop(output);
            let code = run.code();
            assert!(matches!(code, Some(129 | 137)), "{options:?}: {code:?}");
        }
        // Nobody reads any more.
        let script = "while echo y; do true; done; exit 7";
        let (mut run, line) = Running::start(&mut world.run_command(&["-t", "--", "sh", "-c", script]));
        assert_eq!(line, "y\r\n");
        drop(run.0.stdout.take());
        assert!(run.code().is_some());
    });
}

#[test]
fn many_runs_at_once_and_none_hangs() {
    everyone(|world| {
        world.run(&["true"]).fine();
        let codes: Vec<i32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|n| {
                    scope.spawn(move || {
                        (0..12)
                            .map(|_| world.run(&["sh", "-c", &format!("exit {n}")]).code)
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        for (at, code) in codes.iter().enumerate() {
            assert_eq!(*code, at as i32 / 12);
        }
        assert_eq!(world.isles(&["ps", "-aq"]).fine(), "");
    });
}
