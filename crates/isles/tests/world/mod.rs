//! A place to run the program in: a state directory of its own, and an image of one static busybox.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use isles_spec::image::ImageConfig;
use isles_spec::{Platform, Reference};
use isles_store::{CommitOptions, Ownership, Store};

/// Who runs the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Root,
    /// A user without any subordinate IDs.
    Ordinary,
    /// A user with a range of subordinate IDs, in a mount namespace where /etc tells of them.
    Ranged,
}

const ORDINARY: u32 = 4242;
const RANGED: u32 = 4244;

/// Becomes the user with the range: its files of /etc are in the folder `$0`.
const AS_RANGED: &str = "for f in passwd subuid subgid; do mount --bind $0/$f /etc/$f || exit 99; done; \
                         exec setpriv --reuid 4244 --regid 4244 --clear-groups \"$@\"";

pub const APPLETS: [&str; 30] = [
    "sh", "true", "false", "echo", "cat", "ls", "id", "mount", "hostname", "grep", "test", "stat", "kill",
    "sleep", "touch", "chown", "env", "pwd", "wc", "dd", "stty", "ps", "mkdir", "rm", "head", "tail", "seq",
    "mknod", "sort", "od",
];

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Said {
        use std::os::unix::process::ExitStatusExt;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0));
        Said { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// Standard output of a command that had to succeed.
    #[track_caller]
    pub fn fine(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// A command that had to fail with this code, and says these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "'{word}' is missing in {self:?}");
        }
    }
}

/// A run in the background, which ends with the test.
pub struct Running(pub Child);

impl Running {
    /// Starts it and waits for the first line of its output.
    pub fn start(command: &mut Command) -> (Running, String) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (Running(child), line)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    /// What was not read yet, up to the end.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct World {
    dir: tempfile::TempDir,
    pub who: Who,
    program: PathBuf,
    /// Whose network namespace is the host's of this world.
    host: Option<Running>,
}

/// Runs a test as root, where this is root, as an ordinary user, and as one with subordinate IDs.
pub fn everyone(test: impl Fn(&World)) {
    if !World::is_root() {
        println!("skip: not root, so only as the user who runs the tests");
        World::new(Who::Ordinary).iter().for_each(test);
        return;
    }
    for who in [Who::Root, Who::Ordinary, Who::Ranged] {
        if who == Who::Ranged && !Path::new("/usr/bin/newuidmap").exists() {
            println!("skip: newuidmap is not installed (package uidmap)");
            continue;
        }
        println!("as {who:?}");
        World::new(who).iter().for_each(&test);
    }
}

impl World {
    pub fn is_root() -> bool {
        isles_sandbox::identity::detect() == isles_sandbox::identity::Identity::Root
    }

    /// Whether HOME is what the ordinary user's home is taken to be: who has one in /etc/passwd has that one.
    pub fn home_is_own(&self) -> bool {
        let own = World::is_root() || self.who != Who::Ordinary;
        if !own {
            println!("skip: this user may have another home than the test's");
        }
        own
    }

    /// A world with the image `oci:IMAGE` in it; `None`, with a printed reason, where it cannot be made.
    pub fn new(who: Who) -> Option<World> {
        if !Path::new("/bin/busybox").exists() {
            println!("skip: /bin/busybox is not installed (package busybox-static)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("isles-world-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The ordinary user may not be able to reach the folder that the program was built in.
        let program = dir.path().join("isles");
        let built = env!("CARGO_BIN_EXE_isles");
        if fs::hard_link(built, &program).is_err() {
            fs::copy(built, &program).unwrap();
        }
        let world = World { who, dir, program, host: None };
        if who == Who::Ranged {
            world.tell_of_range();
        }
        let tree = world.path("tree");
        busybox(&tree);
        world.image("oci", &tree, |config| config.config.cmd = Some(vec!["sh".into()]));
        for name in ["home", "state"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        world.give("home");
        world.give("state");
        Some(world)
    }

    /// Lets all commands run in a network namespace of this world's own, which plays the host's. For root only.
    pub fn with_own_network(mut self) -> World {
        let script = "/bin/busybox ip link set lo up && echo ready && exec sleep 10000";
        let mut command = Command::new("unshare");
        let (host, line) = Running::start(command.args(["-n", "sh", "-c", script]));
        assert_eq!(line, "ready\n");
        self.host = Some(host);
        self
    }

    /// A command of the host's in that namespace.
    pub fn host_command(&self, words: &[&str]) -> Command {
        let pid = self.host.as_ref().unwrap().0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n"]).args(words).stdin(Stdio::null());
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The image, as a SOURCE.
    pub fn source(&self) -> String {
        format!("oci:{}:latest", self.path("oci").display())
    }

    /// The user ID of whoever runs the program.
    pub fn uid(&self) -> u32 {
        match self.who {
            Who::Ordinary if World::is_root() => ORDINARY,
            Who::Ranged => RANGED,
            _ => rustix::process::geteuid().as_raw(),
        }
    }

    /// Makes a folder, with all in it, belong to whoever runs the program.
    pub fn give(&self, name: &str) {
        let owner = format!("{0}:{0}", self.uid());
        let given = Command::new("chown").args(["-R", &owner]).arg(self.path(name)).status().unwrap();
        assert!(given.success() || !World::is_root());
    }

    fn tell_of_range(&self) {
        let write = |name: &str, text: &str| fs::write(self.path(name), text).unwrap();
        let known = fs::read_to_string("/etc/passwd").unwrap();
        write("passwd", &format!("{known}ranged:x:{RANGED}:{RANGED}::/:/bin/sh\n"));
        write("subuid", "ranged:200000:65536\n");
        write("subgid", "ranged:200000:65536\n");
    }

    /// Writes an OCI layout with one image of one tree.
    pub fn image(&self, name: &str, tree: &Path, change: impl FnOnce(&mut ImageConfig)) {
        let ownership = if World::is_root() { Ownership::Root } else { Ownership::Single };
        let store = Store::open(self.path("maker"), ownership).unwrap();
        let lease = store.lease().unwrap();
        let layer = store.layer_from_tree(&lease, tree, &CommitOptions::default()).unwrap();
        let mut config = ImageConfig::empty(&Platform::host());
        config.rootfs.diff_ids.push(layer.diff_id.clone());
        change(&mut config);
        let reference = Reference::parse("test:latest").unwrap();
        let image = store.assemble(&lease, &config, &[layer.blob], std::slice::from_ref(&reference)).unwrap();
        let at = self.path(name);
        store.export_oci_dir(&[(image, vec![reference])], &at, &isles_spec::Quiet).unwrap();
        let readable = Command::new("chmod").args(["-R", "a+rX"]).arg(&at).status().unwrap();
        assert!(readable.success());
    }

    /// The program with nothing but a state directory, a home and a PATH.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = if self.who == Who::Ranged {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", AS_RANGED]).arg(self.dir.path()).arg(&self.program);
            command
        } else if self.host.is_some() {
            self.host_command(&[self.program.to_str().unwrap()])
        } else {
            Command::new(&self.program)
        };
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("ISLES_ROOT", self.path("state"))
            .current_dir(self.path("home"))
            .stdin(Stdio::null());
        // A bridge would stay in the machine's own network behind the test.
        if self.host.is_none() && self.uid() == 0 {
            command.env("ISLES_NETWORK", "host");
        }
        if self.who == Who::Ordinary && World::is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    pub fn isles(&self, words: &[&str]) -> Said {
        Said::of(self.command(words).output().unwrap())
    }

    /// `isles run --rm [options] IMAGE [command]`: what comes before `--` are options.
    pub fn run(&self, words: &[&str]) -> Said {
        Said::of(self.run_command(words).output().unwrap())
    }

    pub fn run_command(&self, words: &[&str]) -> Command {
        let source = self.source();
        let at = words.iter().position(|w| *w == "--");
        let (options, command) = match at {
            Some(at) => (&words[..at], &words[at + 1..]),
            None => (&words[..0], words),
        };
        let words = ["run", "--rm"].iter().chain(options).copied().chain([source.as_str()]);
        self.command(words.chain(command.iter().copied()))
    }

    /// The same with bytes on standard input.
    pub fn run_with_input(&self, words: &[&str], input: &[u8]) -> Said {
        let mut command = self.run_command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A container that does not read it is no failure.
        let _ = child.stdin.take().unwrap().write_all(input);
        Said::of(child.wait_with_output().unwrap())
    }
}

/// Whether a process waits for changes of files: it has a queue of inotify(7).
pub fn watches(pid: u32) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let leads = |entry: fs::DirEntry| fs::read_link(entry.path());
    open.flat_map(leads).any(|target| target.as_os_str() == "anon_inode:inotify")
}

impl Drop for World {
    fn drop(&mut self) {
        // Those in the background go on else, without their files.
        if fs::read_dir(self.path("state/containers")).is_ok_and(|mut list| list.next().is_some()) {
            let all = self.isles(&["ps", "-aq", "--no-trunc"]).out;
            let words: Vec<&str> = ["rm", "-f"].into_iter().chain(all.lines()).collect();
            if words.len() > 2 {
                self.isles(&words);
            }
            let pods = self.isles(&["pod", "ps", "-q"]).out;
            let words: Vec<&str> = ["pod", "rm", "-f"].into_iter().chain(pods.lines()).collect();
            if words.len() > 3 {
                self.isles(&words);
            }
        }
        // What was made in a user namespace may be unreadable for others, but not for its owner or root.
        let _ = isles_store::remove_tree(&self.path("state"));
    }
}

/// A command on a terminal of this test's.
pub struct Session {
    pub run: Running,
    master: fs::File,
    text: String,
}

impl Session {
    pub fn start(command: &mut Command) -> Session {
        let (master, slave) = terminal();
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
        let run = Running(command.spawn().unwrap());
        // What the command has of the other side is to be all that there is of it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Session { run, master: master.into(), text: String::new() }
    }

    pub fn types(&self, bytes: &[u8]) {
        (&self.master).write_all(bytes).unwrap();
    }

    /// Waits until a word is printed. What came before it is dropped.
    #[track_caller]
    pub fn until(&mut self, word: &str) {
        let mut buffer = [0; 1024];
        loop {
            if let Some(at) = self.text.find(word) {
                self.text.drain(..at + word.len());
                return;
            }
            match self.master.read(&mut buffer) {
                Ok(n @ 1..) => self.text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                end => panic!("'{word}' never came, but {:?} and {end:?}", self.text),
            }
        }
    }

    /// Whether a word is among what is printed within a tenth of a second.
    pub fn hears(&mut self, word: &str) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        while !self.text.contains(word) {
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            if poll(&mut fds, Some(&SOON)).unwrap() == 0 {
                return false;
            }
            let mut buffer = [0; 1024];
            let n = self.master.read(&mut buffer).unwrap();
            self.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        true
    }

    /// Closes the terminal, as a window that is closed, and waits for the command.
    pub fn hang_up(self) -> Option<i32> {
        let Session { mut run, master, .. } = self;
        drop(master);
        run.code()
    }
}

/// A root file system of one static busybox.
pub fn busybox(tree: &Path) {
    for name in ["bin", "etc", "tmp", "root"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    let copied = Command::new("cp").arg("/bin/busybox").arg(tree.join("bin/busybox")).status().unwrap();
    assert!(copied.success());
    for applet in APPLETS {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n")
        .unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\nwww:x:33:\nadm:x:4:www\n").unwrap();
}

/// A terminal pair: the master and the path of the other side.
pub fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (master, slave.into())
}
