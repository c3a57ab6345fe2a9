//! Processes that `apptainer` starts: signals for them, terminals, ranks of parallel jobs, and instances.
#![allow(clippy::unwrap_used)]

mod apptainer;
mod world;

use std::fs;
use std::process::{Command, Stdio};

use apptainer::{apptainer, sandbox, say, with};
use rustix::process::Signal;
use world::{Running, Said, Who, everyone};

#[test]
fn signals_are_handed_on_and_a_killed_launcher_leaves_nothing() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let script = "trap 'echo got it; exit 5' TERM; echo up; while :; do sleep 0.01; done";
        let (mut running, line) = Running::start(&mut apptainer(world, &["exec", &tree, "sh", "-c", script]));
        assert_eq!(line, "up\n");
        if world.who != Who::Ranged {
            running.signal(Signal::TERM);
            assert_eq!(running.rest(), "got it\n");
            assert_eq!(running.code(), Some(5));
        }
        drop(running);
        let (mut killed, line) =
            Running::start(&mut apptainer(world, &["exec", &tree, "sh", "-c", "echo up; exec sleep 1000"]));
        assert_eq!(line, "up\n");
        killed.signal(Signal::KILL);
        killed.code();
        // The pipe closes when the last process of the container is gone.
        assert_eq!(killed.rest(), "");
        let next = say(world, &["exec", &tree, "true"]);
        assert_eq!(next.code, 0);
        let left = fs::read_dir(world.path("state/containers")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "the next command collects what was left: {}", next.err);
    });
}

/// What ranks of an MPI program need: descriptors, variables, shared memory, and one user namespace for all.
#[test]
fn ranks_of_mpi() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let variables =
            [("PMI_RANK", "3"), ("PMIX_RANK", "4"), ("SLURM_PROCID", "5"), ("OMPI_COMM_WORLD_RANK", "6")];
        let show = "echo $PMI_RANK $PMIX_RANK $SLURM_PROCID $OMPI_COMM_WORLD_RANK";
        let plain = ["exec", &tree, "sh", "-c", show];
        assert_eq!(with(world, &variables, &plain).fine(), "3 4 5 6\n");
        let clean = ["exec", "--cleanenv", &tree, "sh", "-c", show];
        assert_eq!(with(world, &variables, &clean).fine(), "\n");
        let mpi = ["exec", "--cleanenv", "--mpi", &tree, "sh", "-c", show];
        assert_eq!(with(world, &variables, &mpi).fine(), "3 4 5 6\n");
        assert_eq!(say(world, &["exec", &tree, "sh", "-c", "ls -id /dev/shm/. | wc -l"]).fine(), "1\n");
        if world.who == Who::Ranged {
            println!("skip: the shell that starts it as {:?} closes descriptors", world.who);
            return;
        }
        // A descriptor as PMI-1 has one: beyond the streams, without close-on-exec.
        let (mut read, write) = std::io::pipe().unwrap();
        let mut command = apptainer(world, &["exec", &tree, "sh", "-c", "echo rank >&9"]);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&write);
        // SAFETY: dup2(2) is safe between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
                rustix::io::dup2(
                    std::os::fd::BorrowedFd::borrow_raw(fd),
                    &mut std::mem::ManuallyDrop::new(
                        <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(9),
                    ),
                )?;
                Ok(())
            })
        };
        let said = Said::of(command.output().unwrap());
        drop(write);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut read, &mut text).unwrap();
        assert_eq!((said.code, text.as_str()), (0, "rank\n"), "{}", said.err);
    });
}

#[test]
fn ranks_share_a_container() {
    everyone(|world| {
        if world.who == Who::Ranged {
            println!("skip: as {:?} every command has another parent", world.who);
            return;
        }
        let tree = sandbox(world).display().to_string();
        let namespaces = "stat -L -c %i /proc/self/ns/user /proc/self/ns/mnt";
        // Alone it starts and ends a container; two at once are in the same one.
        let rank = |script: &str| {
            let mut command = apptainer(world, &["exec", "--sharens", &tree, "sh", "-c", script]);
            command.stdin(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let (mut first, one) = Running::start(&mut rank(&format!("{namespaces} | sort | head -n 1; cat")));
        let (mut second, two) = Running::start(&mut rank(&format!("{namespaces} | sort | head -n 1; cat")));
        assert_eq!(one, two);
        assert_ne!(one, "");
        let list = say(world, &["instance", "list", "--all"]).fine();
        assert!(list.contains("sharens-"), "{list}");
        assert!(!say(world, &["instance", "list"]).fine().contains("sharens-"));
        for rank in [&mut first, &mut second] {
            drop(rank.0.stdin.take());
            assert_eq!(rank.code(), Some(0));
        }
        assert!(!say(world, &["instance", "list", "--all"]).fine().contains("sharens-"));
    });
}

/// Without a flag: as the variables of their launcher say.
#[test]
fn ranks_of_one_job_share_a_user_namespace() {
    everyone(|world| {
        if world.who == Who::Ranged {
            println!("skip: the shell that starts it as {:?} makes a user namespace for each", world.who);
            return;
        }
        let tree = sandbox(world).display().to_string();
        let job = |name: &str| format!("{name}-{}-{:?}", std::process::id(), world.who);
        let start = |job: &str| {
            let script = "echo $(stat -L -c %i /proc/self/ns/user /proc/self/ns/mnt); cat";
            let mut command = apptainer(world, &["exec", &tree, "sh", "-c", script]);
            command.env("PMI_RANK", "0").env("PMI_SIZE", "2").env("PMI_JOBID", job);
            command.stdin(Stdio::piped()).stderr(Stdio::piped());
            let (rank, line) = Running::start(&mut command);
            let (user, mount) = line.trim().split_once(' ').unwrap();
            (rank, user.to_owned(), mount.to_owned())
        };
        let (first, user, mount) = start(&job("a"));
        let (mut second, same, own) = start(&job("a"));
        assert_eq!(user, same);
        assert_ne!(mount, own);
        let (mut other, another, _) = start(&job("b"));
        assert_eq!(another == user, world.who == Who::Root);
        // Whoever made it may be gone.
        first.signal(Signal::KILL);
        let (mut third, same, _) = start(&job("a"));
        assert_eq!(user, same);
        for rank in [&mut second, &mut third, &mut other] {
            drop(rank.0.stdin.take());
            assert_eq!(rank.code(), Some(0));
        }
        let left = fs::read_dir("/dev/shm").unwrap().flatten();
        let left: Vec<_> =
            left.filter(|file| file.file_name().to_string_lossy().contains(&job("a"))).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn instances_live_until_they_are_stopped() {
    everyone(|world| {
        if world.who == Who::Ranged {
            println!("skip: as {:?} the files of instances are of the mount namespace that ends", world.who);
            return;
        }
        let tree = sandbox(world).display().to_string();
        let start = say(world, &["instance", "start", &tree, "web", "a", "b"]);
        assert_eq!((start.code, start.err.as_str()), (0, "INFO:    instance started successfully\n"));
        say(world, &["instance", "start", &tree, "web"])
            .fails(255, &["FATAL:   instance web already exists"]);
        say(world, &["instance", "start", &tree, "a/b"]).fails(255, &["a/b is not a valid instance name"]);
        let listed: serde_json::Value =
            serde_json::from_str(&say(world, &["instance", "list", "-j"]).fine()).unwrap();
        let found = &listed["instances"][0];
        assert_eq!((found["instance"].as_str(), found["img"].as_str()), (Some("web"), Some(tree.as_str())));
        assert!(found["pid"].as_i64().unwrap() > 1);
        let table = say(world, &["instance", "list", "w*"]).fine();
        assert!(table.starts_with("INSTANCE NAME    PID") && table.contains("web    "), "{table}");
        assert!(!say(world, &["instance", "list", "x*"]).fine().contains("web"));
        let inside = [
            "exec",
            "instance://web",
            "sh",
            "-c",
            "echo $APPTAINER_NAME $FROM_IMAGE; id -u; cat /proc/1/comm",
        ];
        let out = say(world, &inside).fine();
        assert!(out.starts_with(&format!("tree yes\n{}\n", world.uid())), "{out}");
        assert_eq!(say(world, &["run", "instance://web", "x"]).fine(), "run: x\n");
        say(world, &["exec", "instance://web", "nosuch"]).fails(255, &["executable file not found"]);
        let stats = say(world, &["instance", "stats", "--json", "--no-stream", "web"]).fine();
        assert!(stats.contains("\"current\": "), "{stats}");
        let log = fs::read_to_string(found["logOutPath"].as_str().unwrap()).unwrap();
        assert_eq!(log, "start: a b\n");
        let stop = say(world, &["instance", "stop", "web"]);
        assert!(stop.code == 0 && stop.err.starts_with("INFO:    Stopping web instance of "), "{stop:?}");
        say(world, &["instance", "stop", "web"]).fails(1, &["Error for command \"stop\": no instance found"]);
        say(world, &["exec", "instance://web", "true"]).fails(255, &["no instance found with name web"]);
        assert!(!say(world, &["instance", "list"]).fine().contains("web"));
        // One that failed leaves its name to others.
        say(world, &["instance", "start", "/nonexistent.sif", "again"]).fails(255, &["/nonexistent.sif"]);
        say(world, &["instance", "start", &tree, "again"]).fine();
        say(world, &["instance", "stop", "--force", "--all"]).fine();
    });
}

/// The rest of [`a_container_types_nothing_on_the_terminal`], in the container.
#[test]
fn in_a_container_on_a_terminal() {
    if std::env::var_os("ISLES_TEST_TYPES").is_none() {
        return;
    }
    // SAFETY: it is made of numbers.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    let text = *b"x\0";
    // The second one with bits that the kernel does not look at.
    for (name, request) in [("types", libc::TIOCSTI), ("hides", libc::TIOCSTI | 1 << 40), ("pastes", 0x541c)]
    {
        // SAFETY: the requests read one byte of `text`.
        let done = unsafe { libc::ioctl(0, request, text.as_ptr()) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        println!("{name}: {done} {errno:?}");
    }
    // SAFETY: the request writes a winsize.
    println!("looks: {}", unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) });
}

/// What is typed on the caller's terminal is typed by the caller.
#[test]
fn a_container_types_nothing_on_the_terminal() {
    everyone(|world| {
        let tree = sandbox(world).display().to_string();
        let program = world.path("home/program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        world.give("home");
        let bind = format!("{}:/program", program.display());
        let test = ["/program", "--exact", "in_a_container_on_a_terminal", "--nocapture"];
        let words = [&["exec", "--env", "ISLES_TEST_TYPES=1", "-B", &bind, &tree][..], &test].concat();
        let mut session = world::Session::start(&mut apptainer(world, &words));
        for line in
            ["types: -1 Some(1)", "hides: -1 Some(1)", "pastes: -1 Some(1)", "looks: 0", "test result: ok"]
        {
            session.until(line);
        }
        assert_eq!(session.run.code(), Some(0));
        // Whoever has no terminal has no filter either.
        let status = ["exec", &tree, "grep", "Seccomp:", "/proc/self/status"];
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
        if !own.ends_with('0') {
            println!("skip: this process has a filter itself");
            return;
        }
        let mut alone = Command::new("setsid");
        let plain = apptainer(world, &status);
        alone.args(["-w".as_ref(), plain.get_program()]).args(plain.get_args());
        alone.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if world.who == Who::Root {
            assert_eq!(Said::of(alone.output().unwrap()).fine(), format!("{own}\n"));
        }
    });
}
