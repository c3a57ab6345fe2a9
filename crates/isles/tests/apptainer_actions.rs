//! `apptainer exec`, `run`, `shell` and `test`, as root and as ordinary users: command lines and what comes of them, as Apptainer
//! 1.4 has them.
#![allow(clippy::unwrap_used)]

mod apptainer;
mod world;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use apptainer::{apptainer, sandbox, say, with};
use world::{Said, Who, World, everyone};

#[test]
fn exit_codes_and_words_are_apptainers() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let t = tree.as_str();
        for (words, code, said) in [
            (&["exec", t, "true"][..], 0, ""),
            (&["exec", t, "sh", "-c", "exit 7"], 7, ""),
            (&["exec", t, "sh", "-c", "kill -9 $$"], -9, ""),
            (&["exec", "--pid", t, "sh", "-c", "kill -15 $$"], 143, ""),
            (&["exec", t, "nosuch"], 255, "FATAL:   \"nosuch\": executable file not found in $PATH\n"),
            (&["exec", t, "/nosuch"], 255, "FATAL:   stat /nosuch: no such file or directory\n"),
            (&["exec", t, "/etc/passwd"], 255, "FATAL:   /etc/passwd: permission denied\n"),
            (&["exec", "/nonexistent.sif", "true"], 255, "FATAL:   could not open image /nonexistent.sif"),
            (&["exec", "/etc/hostname", "true"], 255, "image format not recognized"),
            (&["exec", "-B", "/nonexistent", t, "true"], 255, "mount source /nonexistent doesn't exist"),
            (&["exec", "-B", "/etc:/x:rx", t, "true"], 255, "rx is not a valid bind option"),
            (
                &["exec", "--pwd", "/nonexistent", t, "true"],
                255,
                "FATAL:   cannot enter the working directory",
            ),
            (&["exec", "--nosuch", t, "true"], 1, "Error for command \"exec\": unknown flag: --nosuch\n"),
            (&["exec", "-y", t, "true"], 1, "unknown shorthand flag: 'y' in -y"),
            (&["exec", t], 1, "requires at least 2 arg(s), only received 1"),
            (&["exec", "--contain=maybe", t, "true"], 1, "invalid argument \"maybe\""),
            (&["nosuch"], 1, "Error: unknown command \"nosuch\" for \"apptainer\""),
            (&["execc"], 1, "Did you mean this?\n\texec"),
            (&[], 1, "Usage:"),
            (&["run", t], 0, ""),
            (&["run", "--app", "nosuch", t], 1, "ERROR:   no runscript for contained app: nosuch"),
            (&["test", t], 7, ""),
            (&["exec", "--fusemount", "x /y", t, "true"], 255, "unknown prefix x"),
            (&["exec", "--network", "macvlan", t, "true"], 255, "the network 'macvlan' is not supported"),
            (&["exec", "--nvccli", t, "true"], 255, "--nvccli is not supported"),
            (&["exec", "--overlay", "/nonexistent/o", t, "true"], 255, "/nonexistent/o"),
            (&["exec", "shub://a/b", "true"], 255, "shub:// is not supported"),
            (&["exec", "instance://nosuch", "true"], 255, "no instance found with name nosuch"),
            (&["exec", "--home", "a:b:c", t, "true"], 255, "incorrect number of elements: 3"),
            (&["exec", "--dns", "moon", t, "true"], 255, "'moon' is not an IP address"),
        ] {
            say(world, words).fails(code, &[said]);
        }
    });
}

/// Where the scripts of an image are known, no shell runs before the program; nothing else tells the difference.
#[test]
fn known_scripts_give_what_a_shell_would() {
    everyone(|world| {
        let tree = sandbox(world);
        for (name, text) in isles_build::definition::OWN_SCRIPTS {
            fs::write(tree.join(".singularity.d/env").join(name), text).unwrap();
        }
        let t = tree.display().to_string();
        /// Options, and variables of the caller.
        type Line<'l> = (&'l [&'l str], &'l [(&'l str, &'l str)]);
        let lines: [Line<'_>; 6] = [
            (&[], &[("OCI", "host"), ("OTHER", "host")]),
            (&["--cleanenv"], &[("OTHER", "host"), ("LANG", "xx")]),
            (&["--env", "OCI=line,B=x y"], &[("LD_LIBRARY_PATH", "/host")]),
            (&["--env", "OCI=$HOME"], &[]),
            (&[], &[("APPTAINERENV_PREPEND_PATH", "/first"), ("SINGULARITYENV_LD_LIBRARY_PATH", "/lib2")]),
            (&[], &[("APPTAINERENV_PATH", "/only"), ("PS1", "host"), ("APPTAINERENV_OWN", "")]),
        ];
        let all = || {
            lines.map(|(options, variables)| {
                let words = [&["exec"], options, &[t.as_str(), "/bin/env"]].concat();
                let said = with(world, variables, &words).fine();
                let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
                // What busybox's shell counts for itself.
                lines.retain(|line| !line.starts_with("SHLVL="));
                lines.sort_unstable();
                lines
            })
        };
        let known = all();
        assert!(known[0].contains(&"OCI=image".to_owned()), "{known:?}");
        fs::write(tree.join(".singularity.d/env/01-base.sh"), ":\n").unwrap();
        assert_eq!(known, all());
        fs::remove_file(tree.join(".singularity.d/env/01-base.sh")).unwrap();
        // A shell that cannot run is not missed, where none is needed.
        fs::remove_file(tree.join("bin/sh")).unwrap();
        fs::write(tree.join("bin/sh"), "#!/nonexistent\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(tree.join("bin/sh"), mode).unwrap();
        say(world, &["exec", &t, "true"]).fine();
        say(world, &["exec", "--env", "A=$B", &t, "true"]).fails(255, &[]);
    });
}

#[test]
fn what_is_printed() {
    everyone(|world| {
        if !world.home_is_own() {
            return;
        }
        let tree = sandbox(world).display().to_string();
        let t = tree.as_str();
        let home = world.path("home").display().to_string();
        let uid = world.uid();
        // The user with the range has no home of their own.
        let own_home = if world.who == Who::Ranged {
            "/nowhere".to_owned()
        } else if uid == 0 {
            "/root".to_owned()
        } else {
            home.clone()
        };
        let environment = "echo $FROM_IMAGE $OCI $PATH $HOME $APPTAINER_NAME $SINGULARITY_NAME";
        let sh = |script| ["sh", "-c", script];
        // What of the container's own /tmp is there only to mount the caller's folder in it.
        let folder = world.path("");
        let first = folder.strip_prefix("/tmp").ok().and_then(|path| path.iter().next());
        let above = first.map_or("isles-world".into(), |name| name.to_string_lossy().into_owned());
        let only_own = format!("ls -A /tmp | grep -vxF -e '{above}'; ls -A $HOME | grep -v proc; pwd");
        let no_tmp = format!("ls -A /tmp | grep -vcxF -e '{above}'; true");
        let path = "/own:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin";
        for (options, command, out) in [
            (&[][..], sh("id -u"), format!("{uid}\n")),
            (&[], sh("pwd"), format!("{home}\n")),
            (&[], sh(environment), format!("yes image {path} {own_home} tree tree\n")),
            (&["--pwd", "/etc"], sh("pwd"), "/etc\n".into()),
            (&["--cwd=/tmp"], sh("pwd"), "/tmp\n".into()),
            (&["-c"], sh(&only_own), format!("{own_home}\n")),
            (
                &["-B", "/etc:/mnt/deep:ro"],
                sh("test -f /mnt/deep/passwd && ! touch /mnt/deep/x 2>/dev/null; echo $APPTAINER_BIND"),
                "/mnt/deep\n".into(),
            ),
            (
                &["--mount", "type=bind,src=/etc,dst=/mnt/x,ro"],
                sh("test -f /mnt/x/passwd; echo $?"),
                "0\n".into(),
            ),
            (&["--env", "A=1,B=2", "--env", "C=x,y"], sh("echo $A $B $C"), "1 2 x,y\n".into()),
            (&["--writable-tmpfs"], sh("echo hi > /new && cat /new"), "hi\n".into()),
            (&[], sh("touch /new 2>/dev/null; echo $?"), "1\n".into()),
            (&["--hostname", "isle"], sh("hostname; cat /etc/hostname"), "isle\nisle\n".into()),
            (&["--dns", "1.2.3.4"], sh("cat /etc/resolv.conf"), "nameserver 1.2.3.4\n".into()),
            (&["--fakeroot"], sh("id -u; echo $HOME"), "0\n/root\n".into()),
            (&["--pid", "--no-init"], sh("echo $$"), "1\n".into()),
            (&["-C"], sh("echo $$ $TERM"), "2\n".into()),
            (&["--home", "/etc:/h"], sh("echo $HOME; test -f /h/passwd; echo $?"), "/h\n0\n".into()),
            (&["--net", "--network", "none"], sh("grep -c : /proc/net/dev"), "1\n".into()),
            (&["--no-mount", "tmp"], sh(&no_tmp), "0\n".into()),
            (&["--app", "tool"], sh("echo $APPTAINER_APPNAME"), "tool\n".into()),
            (&["--compat"], sh("umask; echo new > /x; cat /x"), "0022\nnew\n".into()),
            (&["--memory", "0", "--pids-limit", "0"], sh("echo fine"), "fine\n".into()),
        ] {
            if out.contains("/nowhere") {
                continue;
            }
            let words: Vec<&str> =
                ["exec"].iter().chain(options).copied().chain([t]).chain(command).collect();
            let said = say(world, &words);
            assert_eq!((said.code, said.out.as_str()), (0, out.as_str()), "{words:?}: {}", said.err);
        }
        assert_eq!(say(world, &["run", t, "a b", "c"]).fine(), "run: a b c\n");
        assert_eq!(say(world, &["run", "--app", "tool", t]).fine(), "tool\n");
        assert_eq!(say(world, &["run-help", t]).fine(), "the help\n");
        assert_eq!(say(world, &["version"]).fine(), "1.4.5\n");
        assert_eq!(say(world, &["--version"]).fine(), "apptainer version 1.4.5\n");
        // As the host has them, and with the caller among them.
        let passwd = say(world, &["exec", t, "cat", "/etc/passwd"]).fine();
        assert!(passwd.contains(&format!(":x:{uid}:")) && passwd.contains("www:x:33:"), "{passwd}");
    });
}

#[test]
fn variables_go_in_and_out_of_both_families() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let show = ["exec", &tree, "sh", "-c", "echo $X $OCI"];
        for (variables, out, said) in [
            (&[("X", "host")][..], "host image\n", ""),
            (&[("APPTAINERENV_X", "$(echo pwn)")], "pwn image\n", ""),
            (
                &[("SINGULARITYENV_X", "old")],
                "old image\n",
                "INFO:    Environment variable SINGULARITYENV_X is set, but APPTAINERENV_X is preferred\n",
            ),
            (
                &[("SINGULARITYENV_X", "old"), ("APPTAINERENV_X", "new")],
                "new image\n",
                "WARNING: SINGULARITYENV_X and APPTAINERENV_X have different values, using the latter\n",
            ),
            (&[("OCI", "host"), ("X", "1")], "1 image\n", ""),
            (&[("APPTAINERENV_OCI", "own"), ("X", "1")], "1 own\n", ""),
            (&[("APPTAINER_NO_EVAL", "1"), ("APPTAINERENV_X", "$(echo pwn)")], "$(echo pwn) image\n", ""),
            (&[("APPTAINER_CLEANENV", "true"), ("X", "host")], "image\n", ""),
            (
                &[("SINGULARITY_CLEANENV", "1"), ("APPTAINER_CLEANENV", "0"), ("X", "host")],
                "host image\n",
                "different values",
            ),
            (
                &[("APPTAINERENV_HOME", "/evil"), ("X", "1")],
                "1 image\n",
                "Overriding HOME environment variable",
            ),
        ] {
            let got = with(world, variables, &show);
            assert_eq!((got.code, got.out.as_str()), (0, out), "{variables:?}: {}", got.err);
            assert!(got.err.contains(said), "{variables:?}: {}", got.err);
        }
        // The user with the range has no home of their own.
        let said =
            |said: Said| said.err.replace("WARNING: Skipping impossible home directory mount to '/'\n", "");
        let quiet = ["-q", "exec", &tree, "sh", "-c", "echo $X"];
        assert_eq!(said(with(world, &[("SINGULARITYENV_X", "old")], &quiet)), "");
        let both = [("SINGULARITYENV_X", "old"), ("APPTAINERENV_X", "new")];
        let silent = ["--silent", "exec", &tree, "sh", "-c", "echo $X"];
        assert_eq!(said(with(world, &both, &silent)), "");
        let path = ["exec", &tree, "sh", "-c", "echo $PATH"];
        let paths = [("APPTAINERENV_PREPEND_PATH", "/first"), ("SINGULARITYENV_APPEND_PATH", "/last")];
        let out = with(world, &paths, &path).fine();
        assert!(out.starts_with("/first:/own:/bin:") && out.ends_with(":/last\n"), "{out}");
        assert_eq!(with(world, &[("APPTAINERENV_PATH", "/bin")], &path).fine(), "/bin\n");
        // By variable and by flag; both add.
        let binds = with(
            world,
            &[("SINGULARITY_BIND", "/etc:/a"), ("APPTAINER_BINDPATH", "/etc:/b")],
            &["exec", "-B", "/etc:/c", &tree, "ls", "/a/passwd", "/b/passwd", "/c/passwd"],
        );
        assert_eq!(binds.fine(), "/a/passwd\n/b/passwd\n/c/passwd\n");
        let file = world.path("home/env");
        fs::write(&file, "# note\nX='a b'\nif true; then OCI=$X; fi\n").unwrap();
        let words = ["exec", "--env-file", file.to_str().unwrap(), &tree, "sh", "-c", "echo $X $OCI"];
        assert_eq!(say(world, &words).fine(), "a b a b\n");
    });
}

/// As cwltool and Galaxy call it (`cwltool/singularity.py`, `galaxy/tool_util/deps/container_classes.py`).
#[test]
fn command_lines_of_cwltool_and_galaxy() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let home = world.path("home").display().to_string();
        let work = world.path("home/work");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("script.sh"), "echo in $PWD with $HOME and $VAR; cat input; echo out > result\n")
            .unwrap();
        fs::write(world.path("home/input"), "data\n").unwrap();
        world.give("home");
        let work = work.display().to_string();
        let at_home = format!("{home}:{home}");
        let bind = format!("{work}:{work}");
        let galaxy = with(
            world,
            &[("SINGULARITYENV_VAR", "v")],
            &[
                "-s",
                "exec",
                "--contain",
                "--pwd",
                &work,
                "--cleanenv",
                "--ipc",
                "--pid",
                "--no-mount",
                "tmp",
                "-B",
                &bind,
                "-B",
                &format!("{home}/input:{work}/input:ro"),
                "--home",
                &at_home,
                &tree,
                "/bin/sh",
                &format!("{work}/script.sh"),
            ],
        );
        assert_eq!(
            (galaxy.out.as_str(), galaxy.err.as_str()),
            (&*format!("in {work} with {home} and v\ndata\n"), "")
        );
        assert_eq!(fs::read_to_string(world.path("home/work/result")).unwrap(), "out\n");

        let outdir = format!("{work}:/var/spool/cwl");
        let input = format!("{home}/input:/var/lib/cwl/input:ro");
        let cwltool = with(
            world,
            &[("SINGULARITYENV_VAR", "a\\$b"), ("APPTAINERENV_VAR", "x $y")],
            &[
                "--quiet",
                "run",
                "--contain",
                "--ipc",
                "--cleanenv",
                "--no-eval",
                "--userns",
                "--pid",
                "--home",
                &outdir,
                "--bind",
                &input,
                "--pwd",
                "/var/spool/cwl",
                "--net",
                "--network",
                "none",
                &tree,
                "cat",
                "/var/lib/cwl/input",
            ],
        );
        assert_eq!(cwltool.out, "run: cat /var/lib/cwl/input\n", "{}", cwltool.err);
        let version = say(world, &["--version"]).fine();
        let (name, number) = version.trim().split_once(" version ").unwrap();
        assert_eq!(name, "apptainer");
        assert!(number.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    });
}

#[test]
fn names_of_the_program() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        for (name, words, out) in [
            ("singularity", &["--version"][..], "apptainer version 1.4.5\n"),
            ("apptainer", &["exec", &tree, "echo", "-n", "x"], "x"),
            ("run-singularity", &[&tree, "a"], "run: a\n"),
        ] {
            let link = world.path("home").join(name);
            symlink(world.path("isles"), &link).unwrap();
            let mut command = world.command(words);
            if world.who == Who::Ranged {
                println!("skip: {name} is started by a shell for {:?}", world.who);
                continue;
            }
            let mut named = Command::new(&link);
            named.args(words).env_clear().envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
            named.current_dir(world.path("home"));
            if World::is_root() && world.who == Who::Ordinary {
                std::os::unix::process::CommandExt::uid(&mut named, world.uid());
                std::os::unix::process::CommandExt::gid(&mut named, world.uid());
            }
            command.stdin(Stdio::null());
            assert_eq!(Said::of(named.output().unwrap()).fine(), out, "{name}");
        }
    });
}

#[test]
fn images_of_a_store_run_as_docker_made_them() {
    everyone(|world| {
        let tree = world.path("oci-tree");
        world::busybox(&tree);
        world.image("app", &tree, |config| {
            config.config.entrypoint = Some(vec!["echo".into(), "entry $HOME".into()]);
            config.config.cmd = Some(vec!["cmd".into()]);
            config.config.env = vec!["PATH=/bin:/own".into(), "OCI=image".into()];
        });
        let source = format!("oci:{}:latest", world.path("app").display());
        for (words, out) in [
            (&["run", &source][..], "entry $HOME cmd\n"),
            (&["run", &source, "a", "b"], "entry $HOME a b\n"),
            (
                &["exec", &source, "sh", "-c", "echo $OCI $PATH"],
                "image /bin:/own:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin\n",
            ),
            (&["exec", "--env", "X=$(echo y)", &source, "sh", "-c", "echo $X $OCI"], "y image\n"),
            (&["exec", "--no-eval", "--env", "X=$(echo y)", &source, "sh", "-c", "echo $X"], "$(echo y)\n"),
        ] {
            let said = say(world, words);
            assert_eq!((said.code, said.out.as_str()), (0, out), "{words:?}: {}", said.err);
        }
        say(world, &["exec", &source, "nosuch"])
            .fails(255, &["FATAL:   \"nosuch\": executable file not found in $PATH"]);
    });
}

#[test]
fn an_image_without_a_shell_and_without_passwd() {
    everyone(|world| {
        let tree = world.path("home/bare");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy("/bin/busybox", tree.join("bin/echo")).unwrap();
        world.give("home");
        let t = tree.display().to_string();
        let said = with(world, &[("APPTAINERENV_X", "$(no shell)")], &["exec", &t, "echo", "hi"]);
        assert_eq!((said.code, said.out.as_str()), (0, "hi\n"), "{}", said.err);
        assert!(
            said.err.contains("WARNING: passwd file doesn't exist in container, not updating\n"),
            "{}",
            said.err
        );
        say(world, &["shell", &t]).fails(255, &["/bin/sh does not exist in container"]);
        say(world, &["run", &t]).fails(1, &["No runscript"]);
    });
}

#[test]
fn a_current_folder_that_is_gone() {
    everyone(|world| {
        if !world.home_is_own() {
            return;
        }
        let tree = sandbox(world).display().to_string();
        let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" apptainer exec \"$1\" pwd";
        let mut command = apptainer(world, &[]);
        let program = world.path("isles");
        let env: Vec<_> =
            command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
        if world.who == Who::Ranged {
            println!("skip: as {:?} it is like as an ordinary user", world.who);
            return;
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-c", script])
            .arg(&program)
            .arg(&tree)
            .env_clear()
            .envs(env)
            .current_dir(world.path("home"));
        if World::is_root() && world.who == Who::Ordinary {
            std::os::unix::process::CommandExt::uid(&mut shell, world.uid());
            std::os::unix::process::CommandExt::gid(&mut shell, world.uid());
        }
        command.stdin(Stdio::null());
        let said = Said::of(shell.output().unwrap());
        let home = if world.uid() == 0 {
            "/root\n".to_owned()
        } else {
            format!("{}\n", world.path("home").display())
        };
        assert_eq!((said.code, said.out), (0, home));
        assert!(said.err.contains("WARNING: can't determine current working directory"), "{}", said.err);
    });
}

#[test]
fn writing_goes_where_it_is_said() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let overlay = world.path("home/over");
        fs::create_dir(&overlay).unwrap();
        world.give("home");
        let over = overlay.display().to_string();
        say(world, &["exec", "--overlay", &over, &tree, "sh", "-c", "echo kept > /new"]).fine();
        assert_eq!(
            say(world, &["exec", "--overlay", &format!("{over}:ro"), &tree, "cat", "/new"]).fine(),
            "kept\n"
        );
        say(world, &["exec", &tree, "cat", "/new"]).fails(1, &["/new"]);
        say(world, &["exec", "--writable", &tree, "touch", "/in-the-image"]).fine();
        assert!(world.path("home/tree/in-the-image").exists());
        let workdir = world.path("home/wd");
        fs::create_dir(&workdir).unwrap();
        world.give("home");
        let script = "echo 1 > /tmp/a; echo 2 > /var/tmp/b; echo 3 > /scratch/c";
        let words =
            ["exec", "-c", "-W", workdir.to_str().unwrap(), "-S", "/scratch", &tree, "sh", "-c", script];
        say(world, &words).fine();
        for (path, text) in [("tmp/a", "1\n"), ("var_tmp/b", "2\n"), ("scratch/scratch/c", "3\n")] {
            assert_eq!(fs::read_to_string(workdir.join(path)).unwrap(), text);
        }
    });
}

#[test]
fn a_shell_reads_what_it_is_given() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let mut command = apptainer(world, &["shell", &tree]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"echo $PS1 in $SHELL; exit 3\n")
            .unwrap();
        let said = Said::of(child.wait_with_output().unwrap());
        assert_eq!((said.code, said.out.as_str()), (3, "Apptainer> in /bin/sh\n"), "{}", said.err);
    });
}

#[test]
fn build_makes_files_and_folders() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let recipe = world.path("home/tool.def");
        let text = format!(
            "Bootstrap: localimage\nFrom: {tree}\n%environment\nexport BUILT={{{{ WHAT }}}}\n%runscript\nexec echo built \"$@\"\n%test\ntest -x /bin/sh\n"
        );
        fs::write(&recipe, text).unwrap();
        world.give("home");
        let recipe = recipe.display().to_string();
        let sif = world.path("home/tool.sif").display().to_string();
        let folder = world.path("home/tool").display().to_string();
        let built = say(world, &["build", "--build-arg", "WHAT=it", &sif, &recipe]);
        assert!(
            built.code == 0 && built.err.contains(&format!("INFO:    Build complete: {sif}\n")),
            "{built:?}"
        );
        assert_eq!(say(world, &["-q", "run", &sif, "x"]).fine(), "built x\n");
        assert_eq!(
            say(world, &["-q", "exec", &sif, "sh", "-c", "echo $BUILT $APPTAINER_NAME"]).fine(),
            "it tool.sif\n"
        );
        say(world, &["build", &sif, &recipe])
            .fails(255, &["already exists. Use --force if you want to overwrite it"]);
        say(world, &["build", "--update", &sif, &recipe]).fails(255, &["only sandbox update is supported"]);
        say(world, &["build", &sif]).fails(1, &["accepts 2 arg(s), received 1"]);
        say(world, &["build", "-F", &sif, "/nonexistent.def"])
            .fails(255, &["unable to open file /nonexistent.def"]);
        say(world, &["-q", "build", "--sandbox", &folder, &sif]).fine();
        assert_eq!(say(world, &["run", &folder, "y"]).fine(), "built y\n");
        let oci = world.source();
        say(world, &["-q", "build", "--force", &sif, &oci]).fine();
        assert_eq!(say(world, &["-q", "exec", &sif, "echo", "from oci"]).fine(), "from oci\n");
    });
}

#[test]
fn settings_of_a_site_count() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let data = world.path("home/data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("f"), "of the site\n").unwrap();
        let conf = world.path("home/site.conf").display().to_string();
        let write = |text: &str| {
            fs::write(&conf, text).unwrap();
            world.give("home");
        };
        write(&format!(
            "# BIND PATH: [STRING]\nbind path = {}:/site\nmount tmp = no\nmount home = no\nuser bind control = no\n\
             config passwd = no\nmount dev = minimal\n",
            data.display()
        ));
        let run = |words: &[&str]| say(world, &[&["-c", &conf, "exec"], words].concat());
        let bind = format!("{}:/mine", data.display());
        let script = "cat /site/f; ls -d /mine /dev/kmsg /dev/null 2>/dev/null; ls /tmp | wc -l; \
                      grep -c . /etc/passwd";
        let image = fs::read_to_string(format!("{tree}/etc/passwd")).unwrap();
        let said = run(&["-B", &bind, &tree, "sh", "-c", script]);
        assert!(said.err.contains("WARNING: Ignoring user bind request"), "{said:?}");
        let lines = image.lines().filter(|line| !line.is_empty()).count();
        assert_eq!(said.fine(), format!("of the site\n/dev/null\n0\n{lines}\n"));

        write("allow container dir = no\nallow pid ns = no\n");
        let said = run(&["--pid", &tree, "true"]);
        match world.who {
            Who::Root => assert_eq!(said.code, 0, "{said:?}"),
            _ => {
                said.fails(255, &["disallows users from running sandbox based containers"]);
            }
        }
        write("mount home = perhaps\n");
        run(&[&tree, "true"]).fails(255, &["site.conf: line 1", "yes or no"]);
        run(&["--help"]).fine();

        let config = |words: &[&str]| say(world, &[&["-c", &conf, "config", "global"], words].concat());
        write("# kept\nmount home = no\n");
        config(&["--set", "bind path", "/a,/b"]).fine();
        config(&["--unset", "bind path", "/a"]).fine();
        config(&["--set", "mount home", "yes"]).fine();
        let said = config(&["--set", "max loop devices", "8"]);
        assert!(said.err.contains("'max loop devices' has no effect here"), "{said:?}");
        let text = "# kept\nbind path = /b\nmount home = yes\nmax loop devices = 8\n";
        assert_eq!(fs::read_to_string(&conf).unwrap(), text);
        assert_eq!(config(&["--get", "bind path"]).fine(), "/b\n");
        assert_eq!(config(&["--get", "mount tmp"]).fine(), "yes\n");
        config(&["--reset", "bind path"]).fine();
        assert_eq!(config(&["--get", "bind path"]).fine(), "/etc/localtime,/etc/hosts\n");
        config(&["--set", "mount hone", "no"])
            .fails(255, &["not a valid configuration directive", "mount home"]);
        config(&["--set", "mount home", "no way"]).fails(255, &["it takes yes or no"]);
        config(&["mount home"]).fails(1, &["--set, --unset, --get or --reset"]);
    });
}
