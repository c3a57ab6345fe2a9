//! OCI bundles with a busybox in them, and the runtime's command line over them.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// An ordinary user without any subordinate IDs.
pub const NOBODY: u32 = 4242;

pub struct Bundle {
    dir: tempfile::TempDir,
    /// Who runs the runtime; `None` is the tests' own user.
    user: Option<u32>,
}

#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// What a command said that had to succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// What a command said that had to fail.
    #[track_caller]
    pub fn fails(self, word: &str) -> Said {
        assert_ne!(self.code, 0, "{}", self.out);
        assert!(self.err.contains(word), "{}", self.err);
        self
    }
}

pub fn is_root() -> bool {
    // The owner of one's own process folder is who one is.
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

impl Bundle {
    /// For root; `None`, with the reason printed, where that cannot be tested.
    pub fn root() -> Option<Bundle> {
        if !is_root() {
            println!("skip: not root");
            return None;
        }
        Bundle::made(None)
    }

    /// For an ordinary user with one ID.
    pub fn rootless() -> Option<Bundle> {
        Bundle::made(if is_root() { Some(NOBODY) } else { None })
    }

    fn made(user: Option<u32>) -> Option<Bundle> {
        if !Path::new("/bin/busybox").exists() {
            println!("skip: /bin/busybox is not installed (package busybox-static)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        open(dir.path());
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
            open(&rootfs.join(name));
        }
        open(&rootfs);
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        let applets = [
            "sh", "true", "false", "echo", "cat", "ls", "id", "mount", "hostname", "grep", "sleep", "env",
            "mkdir", "touch", "stat", "readlink", "kill", "tty", "stty", "wc", "ps", "pwd", "date", "umask",
        ];
        for applet in applets {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        // By another process: a program that a sibling thread's child has inherited open for writing cannot be run.
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_isles")).arg(dir.path().join("isles-oci")).status();
        assert!(copied.unwrap().success());
        let bundle = Bundle { dir, user };
        let mut spec = Command::new(bundle.path("isles-oci"));
        spec.args(["spec", "--bundle"]).arg(bundle.dir.path());
        if user.is_some() || !is_root() {
            spec.arg("--rootless");
        }
        if let Some(user) = user {
            spec.uid(user).gid(user);
        }
        assert!(spec.status().unwrap().success());
        bundle.edit(|c| c["process"]["terminal"] = json!(false));
        Some(bundle)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes config.json.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let file = self.path("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        fs::write(file, config.to_string()).unwrap();
    }

    /// Lets the container run a shell script.
    pub fn script(&self, text: &str) {
        self.edit(|c| c["process"]["args"] = json!(["sh", "-c", text]));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        // Nothing that goes wrong may hold up the tests.
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60"]).arg(self.path("isles-oci")).arg("--root").arg(self.path("state"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs the runtime. Its output goes through files: a container inherits it and outlives the command.
    pub fn oci(&self, args: &[&str]) -> Said {
        self.finish(self.command(args))
    }

    pub fn finish(&self, mut command: Command) -> Said {
        let stream = |name: &str| {
            let file = tempfile::Builder::new().prefix(name).tempfile_in(self.dir.path()).unwrap();
            (file.reopen().unwrap(), file)
        };
        let ((out_file, out), (err_file, err)) = (stream("out"), stream("err"));
        let status = command.stdout(out_file).stderr(err_file).status().unwrap();
        let text =
            |f: &tempfile::NamedTempFile| String::from_utf8_lossy(&fs::read(f.path()).unwrap()).into_owned();
        Said { code: status.code().unwrap_or(-1), out: text(&out), err: text(&err) }
    }

    /// Creates, with the container's output in a file of the bundle.
    pub fn create(&self, id: &str, more: &[&str]) -> Said {
        let mut args = vec!["create"];
        args.extend(more);
        args.push(id);
        let mut command = self.command(&args);
        let output = File::create(self.path("output")).unwrap();
        let errors = File::create(self.path("errors")).unwrap();
        let status = command.stdout(output).stderr(errors).status().unwrap();
        Said {
            code: status.code().unwrap_or(-1),
            out: String::new(),
            err: fs::read_to_string(self.path("errors")).unwrap(),
        }
    }

    pub fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap()
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.oci(&["state", id]).ok()).unwrap()
    }

    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of the container's process.
    pub fn await_end(&self, id: &str) {
        let pid = self.state(id)["pid"].as_i64().unwrap();
        let Some(pid) = rustix::process::Pid::from_raw(pid as i32) else { return };
        let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&patience)), Ok(1), "the container does not end");
    }

    /// Whether nothing is remembered and no control group is left.
    #[track_caller]
    pub fn is_clean(&self, id: &str) {
        let left: Vec<_> = fs::read_dir(self.path("state")).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            assert!(!entry.path().join("isles").join(id).exists(), "{:?}", entry.path());
        }
    }
}

/// Waits for two sizes of its terminal and says when it has them. Clients set even the first one after the start.
pub const WATCH_SIZE: &str = "for size in '20 70' '40 100'; do
    until [ \"$(stty size 2>/dev/null)\" = \"$size\" ]; do sleep 0.05; done; echo \"<$size>\"; done; exit 6";

/// Runs `client`, which runs [`WATCH_SIZE`] in a container with a terminal, in a terminal that changes its size.
pub fn resizes(bundle: &Bundle, client: Command) {
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"));
    let line: Vec<String> =
        std::iter::once(client.get_program()).chain(client.get_args()).map(quoted).collect();
    // In a group of its own, as timeout(1) would have it, the client could not read from the terminal.
    let line = line.join(" ").replacen("'timeout'", "'timeout' --foreground", 1);
    let inner = format!("tty > pts; stty rows 20 cols 70; exec {line}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command"]).arg(inner).arg("/dev/null");
    script.current_dir(bundle.path("")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let mut output = std::io::BufReader::new(script.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line.trim(), "<20 70>");
    let pts = fs::read_to_string(bundle.path("pts")).unwrap();
    // At once, not rows and columns after each other as stty(1) does: of two messages that conmon 2.1 reads together
    // it takes the first twice.
    let size = rustix::termios::Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal = rustix::fs::open(pts.trim(), flags, rustix::fs::Mode::empty()).unwrap();
    rustix::termios::tcsetwinsize(terminal, size).unwrap();
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line.trim(), "<40 100>");
    assert_eq!(script.wait().unwrap().code(), Some(6));
}

/// A name that no other test has.
pub fn id(name: &str) -> String {
    format!("t{}-{name}", std::process::id())
}

impl Bundle {
    /// The user who runs the runtime.
    pub fn status_owner(&self) -> u32 {
        self.user.unwrap_or_else(|| std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()))
    }
}
