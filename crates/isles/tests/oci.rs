//! The OCI runtime on bundles, by its command line, as root and as an ordinary user.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bundle::{Bundle, id};
use serde_json::json;

fn both() -> impl Iterator<Item = Bundle> {
    [Bundle::root, Bundle::rootless].into_iter().filter_map(|make| make())
}

#[test]
fn a_life_from_create_to_delete() {
    for b in both() {
        let id = &id("life");
        b.script("echo program ran; readlink /proc/self/ns/pid > /dev/null; hostname");
        b.create(id, &["--pid-file", "pid"]).ok();
        let state = b.state(id);
        assert_eq!(state["status"], "created");
        assert_eq!(fs::read_to_string(b.path("pid")).unwrap(), state["pid"].to_string());
        assert_eq!(b.output(), "", "the program ran before start");
        b.create(id, &[]).fails("exists already");
        b.oci(&["delete", id]).fails("it is created");
        b.oci(&["start", id]).ok();
        b.await_end(id);
        assert_eq!(b.status(id), "stopped");
        assert_eq!(b.state(id)["pid"], 0);
        for (command, word) in
            [("start", "it is stopped"), ("kill", "it is stopped"), ("pause", "it is stopped")]
        {
            b.oci(&[command, id]).fails(word);
        }
        b.oci(&["delete", id]).ok();
        b.oci(&["state", id]).fails("does not exist");
        b.oci(&["delete", id]).fails("does not exist");
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn run_gives_the_programs_exit_code() {
    for b in both() {
        let id = &id("run");
        for (args, code) in [
            (json!(["sh", "-c", "exit 7"]), 7),
            (json!(["nosuch"]), 127),
            (json!(["/etc"]), 126),
            (json!(["/nosuch"]), 127),
        ] {
            b.edit(|c| c["process"]["args"] = args.clone());
            assert_eq!(b.oci(&["run", id]).code, code, "{args}");
            b.is_clean(id);
        }
    }
}

#[test]
fn signals_and_force() {
    for b in both() {
        let id = &id("signals");
        b.script("trap 'exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done");
        b.create(id, &[]).ok();
        b.oci(&["start", id]).ok();
        assert_eq!(b.status(id), "running");
        b.oci(&["delete", id]).fails("it is running");
        b.oci(&["kill", id, "NOSIGNAL"]).fails("unknown signal 'NOSIGNAL'");
        b.oci(&["kill", id, "0"]).ok();
        b.oci(&["kill", id, "SIGKILL"]).ok();
        b.await_end(id);
        assert_eq!(b.status(id), "stopped");
        b.oci(&["delete", id]).ok();
        b.create(id, &[]).ok();
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn what_the_program_finds() {
    for b in both() {
        let id = &id("finds");
        b.edit(|c| {
            c["process"]["args"] =
                json!(["sh", "-c",
                "pwd; echo $A; id -u; umask; hostname; grep -E 'NoNewPrivs|CapInh|CapEff' /proc/self/status;
                 mount | grep -c 'on /dev/pts '; wc -c < /proc/interrupts; ls /sys/firmware;
                 cat < /dev/null; mkdir /proc/sys/x 2>&1"]);
            c["process"]["env"] = json!(["PATH=/bin", "A=b c"]);
            c["process"]["cwd"] = json!("/made/by/create");
            c["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 0o27});
            c["root"]["readonly"] = json!(false);
        });
        let said = b.oci(&["run", id]);
        let lines: Vec<&str> = said.out.lines().collect();
        assert_eq!(lines[..5], ["/made/by/create", "b c", "0", "0027", "isles"], "{}", said.err);
        assert_eq!(lines[5], "CapInh:\t0000000000000000");
        assert_eq!(lines[6], "CapEff:\t0000000020000420");
        assert_eq!(lines[7], "NoNewPrivs:\t1");
        assert_eq!(lines[8], "1");
        assert_eq!(lines[9], "0", "a masked file is empty");
        assert!(lines[10].contains("mkdir"), "{lines:?}");
    }
}

#[test]
fn exec_joins_and_takes_no_more_than_the_container_has() {
    for b in both() {
        let id = &id("exec");
        b.script("sleep 1000");
        b.create(id, &[]).ok();
        b.oci(&["start", id]).ok();
        let said = b.oci(&[
            "exec", "--cwd", "/tmp", "--env", "X=1", id, "sh", "-c",
            "pwd; echo $X; hostname; grep -E 'CapInh|CapEff|NoNewPrivs' /proc/self/status; ls /proc | grep -c '^1$'; exit 5",
        ]);
        assert_eq!(said.code, 5, "{}", said.err);
        let lines: Vec<&str> = said.out.lines().collect();
        assert_eq!(
            lines,
            [
                "/tmp",
                "1",
                "isles",
                "CapInh:\t0000000000000000",
                "CapEff:\t0000000020000420",
                "NoNewPrivs:\t1",
                "1"
            ]
        );
        for (args, code, word) in [
            (&["exec", id, "nosuch"][..], 127, "no such file"),
            (&["exec", "--user", "1:x", id, "true"], 255, "invalid user"),
            (&["exec", "--cwd", "/nonexistent", id, "true"], 255, "/nonexistent"),
            (&["exec", "nosuch", "true"], 255, "does not exist"),
        ] {
            let said = b.oci(args).fails(word);
            if args[1] == id.as_str() {
                assert_eq!(said.code, code, "{args:?}");
            }
        }
        let ps = b.oci(&["ps", "--format", "json", id]);
        if bundle::is_root() && b.oci(&["exec", id, "id", "-u"]).ok().trim() == "0" && ps.out.trim() != "[]" {
            let pids: Vec<i64> = serde_json::from_str(&ps.out).unwrap();
            assert!(pids.contains(&b.state(id)["pid"].as_i64().unwrap()));
        }
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn exec_is_not_fooled_by_a_containers_proc() {
    let Some(b) = Bundle::root() else { return };
    let id = &id("fakeproc");
    b.edit(|c| {
        c["mounts"][0] = json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"});
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
        c["process"]["args"] = json!(["sh", "-c",
            "mkdir -p /proc/self/fd; for f in oom_score_adj uid_map; do echo untouched > /proc/self/$f; done; sleep 1000"]);
    });
    b.create(id, &[]).ok();
    b.oci(&["start", id]).ok();
    let process = json!({"args": ["sh", "-c", "cat /proc/self/oom_score_adj; sleep 1000"], "cwd": "/",
        "env": ["PATH=/bin"], "oomScoreAdj": 345});
    fs::write(b.path("process.json"), process.to_string()).unwrap();
    b.finish(b.command(&["exec", "--detach", "--pid-file", "pid", "--process", "process.json", id])).ok();
    let pid = fs::read_to_string(b.path("pid")).unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "345\n");
    assert_eq!(b.oci(&["exec", id, "cat", "/proc/self/oom_score_adj"]).ok(), "untouched\n");
    b.oci(&["delete", "--force", id]).ok();
    b.is_clean(id);
}

#[test]
fn our_own_program_is_out_of_reach() {
    for b in both() {
        let id = &id("own");
        // The user's own, as one that was installed without root is.
        let owner = b.status_owner();
        std::os::unix::fs::chown(b.path("isles-oci"), Some(owner), Some(owner)).unwrap();
        b.edit(|c| {
            // A script whose interpreter is whatever runs it.
            c["process"]["args"] =
                json!(["sh", "-c", "echo '#!/proc/self/exe' > /evil; chmod 755 /evil; sleep 1000"]);
            c["root"]["readonly"] = json!(false);
        });
        b.create(id, &[]).ok();
        // What waits here is still our program.
        let exe = fs::File::open(format!("/proc/{}/exe", b.state(id)["pid"]));
        if let Ok(exe) = exe {
            let read_only =
                rustix::fs::fstatvfs(&exe).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
            let sealed =
                rustix::fs::fcntl_get_seals(&exe).is_ok_and(|s| s.contains(rustix::fs::SealFlags::WRITE));
            assert!(read_only || sealed);
        }
        b.oci(&["start", id]).ok();
        let _ = b.oci(&["exec", id, "/evil"]);
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn hooks_in_order_each_in_its_place() {
    let Some(b) = Bundle::root() else { return };
    let id = &id("hooks");
    let log = b.path("rootfs/log");
    let outside = log.display().to_string();
    let hook = |name: &str, shell: &str, file: &str| {
        json!([{"path": shell, "args": ["sh", "-c",
            format!("read state; echo {name} $(hostname) $A $HOME $(echo $state | grep -o '\"status\":\"[a-z]*\"') >> {file}")],
            "env": ["PATH=/bin:/usr/bin", "A=only"]}])
    };
    b.edit(|c| {
        c["hooks"] = json!({
            "prestart": hook("prestart", "/bin/sh", &outside),
            "createRuntime": hook("createRuntime", "/bin/sh", &outside),
            "createContainer": hook("createContainer", "/bin/sh", &outside),
            "startContainer": hook("startContainer", "/bin/sh", "/log"),
            "poststart": hook("poststart", "/bin/sh", &outside),
            "poststop": hook("poststop", "/bin/sh", &outside),
        });
        c["process"]["args"] = json!(["sleep", "1000"]);
        c["root"]["readonly"] = json!(false);
    });
    let before = |expected: &[&str]| {
        let text = fs::read_to_string(&log).unwrap_or_default();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let line = |name: &str, host: &str, status: &str| format!("{name} {host} only \"status\":\"{status}\"");
    let mut expected = vec![
        line("prestart", &host, "created"),
        line("createRuntime", &host, "creating"),
        line("createContainer", "isles", "creating"),
    ];
    b.create(id, &[]).ok();
    before(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    b.oci(&["start", id]).ok();
    expected.push(line("startContainer", "isles", "created"));
    expected.push(line("poststart", &host, "running"));
    before(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    b.oci(&["delete", "--force", id]).ok();
    expected.push(line("poststop", &host, "stopped"));
    before(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    b.is_clean(id);
}

#[test]
fn a_hook_that_fails_leaves_nothing() {
    for b in both() {
        let id = &id("badhook");
        for stage in ["prestart", "createRuntime", "createContainer", "startContainer"] {
            b.edit(|c| {
                c["process"]["args"] = json!(["true"]);
                let script = "echo no network here >&2; exit 3";
                c["hooks"] = json!({stage: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
            });
            if stage == "startContainer" {
                b.create(id, &[]).ok();
                b.oci(&["start", id])
                    .fails("startContainer hook /bin/sh failed: exit code 3: no network here");
                assert_eq!(b.status(id), "stopped");
                b.oci(&["delete", id]).ok();
            } else {
                b.create(id, &[])
                    .fails(&format!("{stage} hook /bin/sh failed: exit code 3: no network here"));
            }
            b.is_clean(id);
        }
        b.edit(|c| {
            c["hooks"] = json!({"poststart": [{"path": "/bin/false"}], "poststop": [{"path": "/bin/false"}]})
        });
        let said = b.oci(&["--log", "log", "--log-format", "json", "run", id]);
        assert_eq!(said.code, 0, "{}", said.err);
        let log = fs::read_to_string(b.path("log")).unwrap();
        assert!(log.contains(r#""level":"warning","msg":"poststart hook"#), "{log}");
        assert!(log.contains("poststop hook"), "{log}");
    }
}

#[test]
fn limits_are_set_changed_and_frozen() {
    let Some(b) = Bundle::root() else { return };
    let id = &id("limits");
    b.edit(|c| {
        c["process"]["args"] = json!(["sleep", "1000"]);
        c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c["linux"]["resources"]["pids"] = json!({"limit": 17});
    });
    let created = b.create(id, &[]);
    if created.err.contains("controller") {
        println!("skip: {}", created.err);
        return;
    }
    created.ok();
    let read = |controller: &str, file: &str| {
        let v1 = format!("/sys/fs/cgroup/{controller}/isles/{id}/{file}");
        fs::read_to_string(v1).ok().map(|t| t.trim().to_owned())
    };
    if let Some(limit) = read("memory", "memory.limit_in_bytes") {
        assert_eq!(limit, (64 << 20).to_string());
        assert_eq!(read("pids", "pids.max").unwrap(), "17");
        b.oci(&["update", "--memory", "134217728", "--pids-limit", "18", id]).ok();
        assert_eq!(read("memory", "memory.limit_in_bytes").unwrap(), "134217728");
        assert_eq!(read("pids", "pids.max").unwrap(), "18");
        fs::write(b.path("more"), r#"{"pids":{"limit":19}}"#).unwrap();
        b.oci(&["update", "--resources", "more", id]).ok();
        assert_eq!(read("pids", "pids.max").unwrap(), "19");
    }
    b.oci(&["start", id]).ok();
    b.oci(&["resume", id]).fails("it is running");
    b.oci(&["pause", id]).ok();
    assert_eq!(b.status(id), "paused");
    b.oci(&["exec", id, "true"]).fails("it is paused");
    b.oci(&["resume", id]).ok();
    assert_eq!(b.status(id), "running");
    b.oci(&["pause", id]).ok();
    b.oci(&["delete", "--force", id]).ok();
    b.is_clean(id);
}

#[test]
fn an_ordinary_user_is_told_which_limit_is_missing() {
    let Some(b) = Bundle::rootless() else { return };
    b.edit(|c| c["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}}));
    let said = b.create(&id("nolimit"), &[]);
    if said.code == 0 {
        println!("skip: this user has a delegated control group");
        return;
    }
    said.fails("cannot limit memory: no memory controller here");
    b.is_clean(&id("nolimit"));
}

#[test]
fn names_and_paths_stay_in_their_bounds() {
    let Some(b) = Bundle::root().or_else(Bundle::rootless) else { return };
    for bad in ["../x", "a/b", "", ".x", "a b", &"x".repeat(300)] {
        b.create(bad, &["--"]).fails("");
        b.oci(&["state", "--", bad]).fails("invalid container ID");
    }
    b.edit(|c| c["linux"]["cgroupsPath"] = json!("/isles/../../etc"));
    b.create(&id("path"), &[]).fails("contains '..'");
    b.edit(|c| {
        c["linux"]["cgroupsPath"] = json!("");
        c["hooks"] = json!({"prestart": [{"path": "relative"}]});
    });
    b.create(&id("path"), &[]).fails("not absolute");
    // Annotations that other runtimes act upon: none names a file that is read, run or written.
    b.edit(|c| {
        c["hooks"] = json!({});
        c["process"]["args"] = json!(["true"]);
        let file = b.path("annotated").display().to_string();
        c["annotations"] = json!({
            "run.oci.hooks.stdout": file, "run.oci.seccomp.receiver": file, "run.oci.handler": "krun",
            "run.oci.seccomp_bpf_file": file, "module.wasm.image/variant": "compat", "io.katacontainers.x": file,
        });
    });
    b.oci(&["run", &id("path")]).ok();
    assert!(!b.path("annotated").exists());
}

#[test]
fn bad_bundles_are_named_and_leave_nothing() {
    let Some(b) = Bundle::root().or_else(Bundle::rootless) else { return };
    let id = &id("bad");
    let original = fs::read(b.path("config.json")).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value), word: &str| {
        b.edit(|c| {
            c["process"]["args"] = json!(["true"]);
            change(c);
        });
        b.create(id, &[]).fails(word);
        b.is_clean(id);
        fs::write(b.path("config.json"), &original).unwrap();
    };
    with(&|c| c["ociVersion"] = json!("2.0.0"), "ociVersion 2.0.0");
    with(&|c| c["root"]["path"] = json!("nothing"), "nothing");
    with(&|c| c["root"]["path"] = json!("config.json"), "not a folder");
    with(&|c| c["process"]["args"] = json!([]), "process.args is empty");
    with(&|c| c["process"]["args"] = json!(["nosuch"]), "cannot run 'nosuch': no such file or directory");
    with(&|c| c["process"]["cwd"] = json!("relative"), "process.cwd 'relative'");
    with(&|c| c["process"]["terminal"] = json!(true), "--console-socket");
    with(
        &|c| c["mounts"] = json!([{"destination": "/x", "type": "bind", "source": "/nonexistent/file"}]),
        "/nonexistent/file",
    );
    with(&|c| c["mounts"] = json!([{"destination": "/x", "type": "nofs", "source": "x"}]), "no such device");
    with(&|c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_FOO"}), "SCMP_ACT_FOO");
    with(&|c| c["linux"]["intelRdt"] = json!({"closID": "x"}), "linux.intelRdt");
    with(&|c| c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "mount"}]), "listed twice");
    for (file, word) in
        [(&b""[..], "EOF"), (b"{", "EOF"), (b"\xff\xfe", ""), (b"{\"ociVersion\":1}", "invalid")]
    {
        fs::write(b.path("config.json"), file).unwrap();
        b.create(id, &[]).fails(word);
        b.is_clean(id);
    }
    fs::remove_file(b.path("config.json")).unwrap();
    b.create(id, &[]).fails("config.json");
    fs::create_dir(b.path("config.json")).unwrap();
    b.create(id, &[]).fails("not a regular file");
    b.is_clean(id);
}

#[test]
fn odd_bundles_run() {
    for b in both() {
        let id = &id("odd");
        let original = fs::read(b.path("config.json")).unwrap();
        let with = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
            b.edit(change);
            let said = b.oci(&["run", id]);
            assert_eq!(said.out, expected, "{}", said.err);
            fs::write(b.path("config.json"), &original).unwrap();
            b.is_clean(id);
        };
        let run =
            |c: &mut serde_json::Value, script: &str| c["process"]["args"] = json!(["sh", "-c", script]);
        with(&|c| (run(c, "echo 1"), c["ociVersion"] = json!("1.99.3")).0, "1\n");
        with(&|c| (run(c, "echo 2"), c["root"]["path"] = json!("rootfs///")).0, "2\n");
        with(&|c| (run(c, "echo 3"), c["future"] = json!({"x": [1, 2]})).0, "3\n");
        // The same destination twice: the later one is on top.
        with(
            &|c| {
                run(c, "touch /twice/x; grep -c ' /twice ' /proc/self/mountinfo");
                for _ in 0..2 {
                    let mount = json!({"destination": "/twice", "type": "tmpfs", "source": "tmpfs"});
                    c["mounts"].as_array_mut().unwrap().push(mount);
                }
                c["root"]["readonly"] = json!(false);
            },
            "2\n",
        );
        let long = format!("L={}", "x".repeat(100_000));
        with(
            &|c| {
                run(c, "echo ${#L}");
                c["process"]["env"] = json!(["PATH=/bin", &long]);
            },
            "100000\n",
        );
    }
}

#[test]
fn too_long_an_environment_is_named() {
    for b in both() {
        b.edit(|c| {
            c["process"]["args"] = json!(["true"]);
            c["process"]["env"] = json!(["PATH=/bin", format!("L={}", "x".repeat(300 << 10))]);
        });
        b.oci(&["run", &id("e2big")]).fails("cannot run 'true': argument list too long");
        b.is_clean(&id("e2big"));
    }
}

#[test]
fn closed_streams_do_no_harm() {
    for b in both() {
        let id = &id("closed");
        b.edit(|c| {
            c["process"]["args"] =
                json!(["sh", "-c", "readlink /proc/self/fd/0 > /seen; ls /proc/self/fd | wc -l >> /seen"]);
            c["root"]["readonly"] = json!(false);
        });
        let runtime = b.command(&["run", id]);
        let line: Vec<String> = runtime.get_args().map(|a| format!("'{}'", a.to_str().unwrap())).collect();
        let mut shell = b.command(&[]);
        shell = {
            let mut sh = std::process::Command::new("sh");
            sh.arg("-c").arg(format!("exec timeout {} <&- >&- 2>&-", line.join(" ")));
            sh.current_dir(shell.get_current_dir().unwrap());
            if bundle::is_root() && b.status_owner() != 0 {
                std::os::unix::process::CommandExt::uid(&mut sh, bundle::NOBODY);
                std::os::unix::process::CommandExt::gid(&mut sh, bundle::NOBODY);
            }
            sh
        };
        assert!(shell.status().unwrap().success());
        let seen = fs::read_to_string(b.path("rootfs/seen")).unwrap();
        // 0, 1, 2 and the one that lists the folder.
        assert_eq!(seen, "/dev/null\n4\n");
    }
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    for b in both() {
        let id = &id("tty");
        let socket = std::os::unix::net::UnixListener::bind(b.path("console")).unwrap();
        fs::set_permissions(b.path("console"), fs::Permissions::from_mode(0o777)).unwrap();
        b.edit(|c| {
            c["process"]["terminal"] = json!(true);
            c["process"]["consoleSize"] = json!({"height": 24, "width": 100});
            c["process"]["args"] = json!(["sh", "-c", "tty; stty size"]);
        });
        b.create(id, &["--console-socket", "console"]).ok();
        let (peer, _) = socket.accept().unwrap();
        let mut name = [0; 64];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [std::io::IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&peer, &mut vectors, &mut control, rustix::net::RecvFlags::empty()).unwrap();
        let mut fds: Vec<std::os::fd::OwnedFd> = control
            .drain()
            .filter_map(|m| match m {
                rustix::net::RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
                _ => None,
            })
            .flatten()
            .collect();
        let master = fds.pop().unwrap();
        assert!(rustix::termios::isatty(master.as_fd()));
        b.oci(&["start", id]).ok();
        let mut text = Vec::new();
        let mut part = [0; 256];
        // The end of a terminal is an error.
        while let Ok(n) = rustix::io::read(&master, &mut part) {
            if n == 0 {
                break;
            }
            text.extend_from_slice(&part[..n]);
        }
        assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n24 100\r\n");
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn mounts_as_they_are_asked_for() {
    let Some(b) = Bundle::root() else { return };
    let id = &id("mounts");
    let outer = b.path("outer");
    fs::create_dir_all(outer.join("inner")).unwrap();
    let bind = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": "outer", "options": options});
    b.edit(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.extend([
            json!({"destination": "/outer", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=700"]}),
            bind("/ro", &["rbind", "ro"]),
            bind("/rro", &["rbind", "rro"]),
            bind("/strict", &["bind", "nosuid", "nodev", "noexec", "nosymfollow"]),
            bind("/slave", &["rbind", "rslave"]),
        ]);
        c["root"]["readonly"] = json!(false);
        c["process"]["args"] = json!(["sh", "-c",
            "stat -c %a /outer; touch /ro/x 2>&1 | grep -o Read-only; touch /rro/inner/x 2>&1 | grep -o Read-only;
             grep ' /strict ' /proc/self/mountinfo | grep -o 'nosuid,nodev,noexec.*nosymfollow' > /dev/null && echo strict;
             grep ' /slave ' /proc/self/mountinfo | grep -o 'master' || echo private"]);
    });
    let said = b.oci(&["run", id]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[..4], ["700", "Read-only", "Read-only", "strict"], "{}{}", said.out, said.err);
    b.is_clean(id);
}

#[test]
fn a_tmpfs_can_begin_with_what_the_image_has() {
    for b in both() {
        let id = &id("copyup");
        let data = b.path("rootfs/data");
        fs::create_dir_all(data.join("inner")).unwrap();
        fs::write(data.join("inner/file"), "content\n".repeat(100_000)).unwrap();
        fs::set_permissions(data.join("inner/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        std::os::unix::fs::symlink("inner/file", data.join("link")).unwrap();
        for n in 0..300 {
            fs::write(data.join(format!("a rather long name for file number {n}")), "").unwrap();
        }
        fs::set_permissions(&data, fs::Permissions::from_mode(0o2755)).unwrap();
        b.edit(|c| {
            c["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=4m", "nosuid"],
            }));
            c["process"]["args"] = json!(["sh", "-c",
                "ls /data | wc -l; stat -c %a /data /data/inner/file; readlink /data/link; wc -l < /data/link;
                 echo > /data/new"]);
        });
        assert_eq!(b.oci(&["run", id]).ok(), "302\n2755\n4755\ninner/file\n100000\n");
        assert!(!data.join("new").exists());
        b.is_clean(id);
    }
}

#[test]
fn ids_of_a_mount_can_be_mapped() {
    let Some(b) = Bundle::root() else { return };
    fs::create_dir(b.path("mapped")).unwrap();
    fs::write(b.path("mapped/file"), "").unwrap();
    let own = fs::metadata(b.path("mapped/file")).unwrap();
    b.edit(|c| {
        c["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/m", "type": "bind", "source": "mapped", "options": ["bind", "idmap"],
            "uidMappings": [{"containerID": own.uid(), "hostID": 1234, "size": 1}],
            "gidMappings": [{"containerID": own.gid(), "hostID": 5678, "size": 1}],
        }));
        c["root"]["readonly"] = json!(false);
        c["process"]["args"] = json!(["stat", "-c", "%u:%g", "/m/file"]);
    });
    let said = b.oci(&["run", &id("idmap")]);
    if said.err.contains("set the options of the mount") {
        println!("skip: {}", said.err);
        return;
    }
    assert_eq!(said.out, "1234:5678\n", "{}", said.err);
}

#[test]
fn control_groups_are_read_only_inside() {
    let Some(b) = Bundle::root() else { return };
    b.script(
        "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/x 2>/dev/null && echo made $d/x;
         echo x 2>/dev/null > $d/release_agent && echo agent $d; done; echo done",
    );
    assert_eq!(b.oci(&["run", &id("cgro")]).ok(), "done\n");
}

#[test]
fn kernel_parameters_clocks_and_devices() {
    let Some(b) = Bundle::root() else { return };
    b.edit(|c| {
        c["linux"]["sysctl"] = json!({"kernel.msgmax": "12345", "net.ipv4.ip_forward": "1"});
        c["linux"]["devices"] = json!([{"type": "c", "path": "/dev/mine", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}]);
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}});
        c["process"]["oomScoreAdj"] = json!(321);
        c["process"]["args"] = json!(["sh", "-c",
            "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj;
             stat -c '%a %u:%g %t:%T' /dev/mine; read up rest < /proc/uptime; echo ${#up}"]);
    });
    let said = b.oci(&["run", &id("kernel")]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[..4], ["12345", "1", "321", "640 7:8 1:5"], "{}{}", said.out, said.err);
    // Thirty years of up time have ten digits and two places.
    assert_eq!(lines[4], "13");
}

#[test]
fn filters_hold_and_listeners_are_handed_over() {
    for b in both() {
        let id = &id("seccomp");
        b.edit(|c| {
            c["process"]["args"] = json!(["sh", "-c", "mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status"]);
            c["process"]["noNewPrivileges"] = json!(false);
            c["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
            });
        });
        let said = b.oci(&["run", id]);
        assert!(said.out.contains("No space left"), "{}{}", said.out, said.err);
        assert!(said.out.contains("Seccomp:\t2"));

        let listener = std::os::unix::net::UnixListener::bind(b.path("agent")).unwrap();
        fs::set_permissions(b.path("agent"), fs::Permissions::from_mode(0o777)).unwrap();
        b.edit(|c| {
            c["linux"]["seccomp"]["syscalls"][0]["action"] = json!("SCMP_ACT_NOTIFY");
            c["linux"]["seccomp"]["listenerPath"] = json!(b.path("agent"));
            c["linux"]["seccomp"]["listenerMetadata"] = json!("for you");
        });
        b.create(id, &[]).ok();
        let (mut peer, _) = listener.accept().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut peer, &mut text).unwrap();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&state["metadata"], &state["fds"]), (&json!("for you"), &json!(["seccompFd"])));
        assert_eq!(state["pid"], b.state(id)["pid"]);
        b.oci(&["delete", "--force", id]).ok();
        b.edit(|c| c["linux"]["seccomp"]["listenerPath"] = json!(""));
        b.create(id, &[]).fails("listenerPath");
        b.is_clean(id);
    }
}

#[test]
fn descriptors_are_preserved_and_no_others() {
    for b in both() {
        b.edit(|c| {
            c["process"]["args"] = json!(["sh", "-c", "cat <&3; ls /proc/self/fd | wc -l"]);
        });
        fs::write(b.path("given"), "given\n").unwrap();
        let runtime = b.command(&["run", "--preserve-fds", "1", &id("fds")]);
        let line: Vec<String> = runtime.get_args().map(|a| format!("'{}'", a.to_str().unwrap())).collect();
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(format!("exec 3< given 7< given 9< given; exec timeout {}", line.join(" ")));
        shell.current_dir(b.path(""));
        if bundle::is_root() && b.status_owner() != 0 {
            std::os::unix::process::CommandExt::uid(&mut shell, bundle::NOBODY);
            std::os::unix::process::CommandExt::gid(&mut shell, bundle::NOBODY);
        }
        // 0, 1, 2, 3 and the one that lists the folder.
        assert_eq!(b.finish(shell).ok(), "given\n5\n");
    }
}

#[test]
fn one_of_two_that_create_the_same_wins() {
    for b in both() {
        let id = &id("race");
        b.script("sleep 1000");
        let mut children: Vec<_> = (0..4)
            .map(|_| {
                let mut command = b.command(&["create", id]);
                command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
                command.spawn().unwrap()
            })
            .collect();
        let won = children.iter_mut().filter_map(|c| c.wait().ok()).filter(|s| s.success()).count();
        assert_eq!(won, 1);
        assert_eq!(b.status(id), "created");
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn a_create_that_is_killed_leaves_nothing_in_the_way() {
    for b in both() {
        let id = &id("killed");
        // The hook's parent is the runtime.
        b.edit(|c| {
            c["process"]["args"] = json!(["true"]);
            c["hooks"] =
                json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"]}]});
        });
        assert_ne!(b.create(id, &[]).code, 0);
        b.oci(&["state", id]).fails("does not exist");
        b.edit(|c| c["hooks"] = json!({}));
        b.create(id, &[]).ok();
        b.oci(&["start", id]).ok();
        b.oci(&["delete", "--force", id]).ok();
        b.is_clean(id);
    }
}

#[test]
fn a_group_with_others_in_it_is_not_taken() {
    let Some(b) = Bundle::root() else { return };
    let name = id("shared");
    b.edit(|c| {
        c["process"]["args"] = json!(["sleep", "1000"]);
        c["linux"]["cgroupsPath"] = json!(format!("/isles/{name}"));
    });
    let (one, two) = (&id("shared-one"), &id("shared-two"));
    b.create(one, &[]).ok();
    b.create(two, &[]).fails("still has processes");
    assert_eq!(b.status(one), "created");
    b.oci(&["delete", "--force", one]).ok();
    b.is_clean(&name);
}

#[test]
fn many_mounts() {
    for b in both() {
        let id = &id("many");
        b.edit(|c| {
            let mounts = c["mounts"].as_array_mut().unwrap();
            mounts.extend((0..2000).map(|n| {
                json!({"destination": format!("/many/{n}"), "type": "bind", "source": "rootfs/etc", "options": ["bind", "ro"]})
            }));
            c["root"]["readonly"] = json!(false);
            c["process"]["args"] = json!(["grep", "-c", " /many/", "/proc/self/mountinfo"]);
        });
        assert_eq!(b.oci(&["run", id]).ok(), "2000\n");
        b.is_clean(id);
    }
}

#[test]
fn a_container_without_a_process_cannot_start() {
    let Some(b) = Bundle::root().or_else(Bundle::rootless) else { return };
    let id = &id("empty");
    b.edit(|c| drop(c.as_object_mut().unwrap().remove("process")));
    b.create(id, &[]).ok();
    assert_eq!(b.status(id), "created");
    b.oci(&["start", id]).fails("no process");
    b.oci(&["delete", "--force", id]).ok();
    b.is_clean(id);
}

#[test]
fn what_engines_ask_first() {
    let Some(b) = Bundle::root().or_else(Bundle::rootless) else { return };
    assert!(b.oci(&["--version"]).ok().contains("spec: 1."));
    let features: serde_json::Value = serde_json::from_str(&b.oci(&["features"]).ok()).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert_eq!(b.oci(&["--systemd-cgroup", "--log-format", "json", "list", "-q"]).ok(), "");
    assert_eq!(b.oci(&["list", "--format", "json"]).ok(), "[]\n");
}
