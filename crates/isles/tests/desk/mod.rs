//! A place where other people's programs find `singularity` and `apptainer` and a registry: a home, a PATH, and for an
//! ordinary user a mount namespace where he has a name and may open /dev/fuse, as on any desktop.
#![allow(dead_code, clippy::unwrap_used)]

pub mod cluster;

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Where `cargo xtask test` puts the clients that are written in Python, and the real Apptainer.
const PYTHON: &str = "/var/tmp/isles-peers/python";
pub const REAL: &str = "/var/tmp/isles-peers/apptainer/usr/bin";

const ORDINARY: u32 = 4242;

/// Becomes the ordinary user; `$0` is the folder with the files that are seen in /etc and the device.
const AS_ORDINARY: &str = "for f in passwd group subuid subgid; do \
                           [ ! -e $0/$f ] || mount --bind $0/$f /etc/$f || exit 99; done; \
                           mount --bind $0/fuse /dev/fuse || exit 99; \
                           exec setpriv --reuid 4242 --regid 4242 --clear-groups \"$@\"";

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Standard output of a command that had to succeed.
    #[track_caller]
    pub fn fine(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n--- stderr\n{}", self.out, self.err);
        self.out
    }
}

pub struct Desk {
    dir: tempfile::TempDir,
    pub ordinary: bool,
    registry: Option<(Child, String)>,
}

/// One as an ordinary user, and one as root where the tests are root.
pub fn both(test: impl Fn(&Desk)) {
    let root = rustix::process::geteuid().is_root();
    println!("as an ordinary user");
    test(&Desk::new(true));
    if root {
        println!("as root");
        test(&Desk::new(false));
    } else {
        println!("skip: not root, so only as the user who runs the tests");
    }
}

/// As [`both`], each with a registry of its own; not at all where there is none.
pub fn both_with_registry(test: impl Fn(&Desk)) {
    for ordinary in [true, false] {
        if !ordinary && !rustix::process::geteuid().is_root() {
            println!("skip: not root, so only as the user who runs the tests");
            continue;
        }
        let mut desk = Desk::new(ordinary);
        if !desk.with_registry() {
            return;
        }
        test(&desk);
    }
}

/// Whether a client is here; says so if not.
pub fn installed(program: &str) -> bool {
    let python = Path::new(PYTHON).join("bin").join(program);
    let system = ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(program).exists());
    let found = system || python.exists() || Path::new(program).exists();
    if !found {
        println!("skip: {program} is not installed");
    }
    found
}

impl Desk {
    /// `ordinary`: as an ordinary user, whoever runs the tests.
    pub fn new(ordinary: bool) -> Desk {
        let dir = tempfile::Builder::new().prefix("isles-desk-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let desk = Desk { dir, ordinary, registry: None };
        for name in ["bin", "home", "tmp"] {
            fs::create_dir(desk.path(name)).unwrap();
        }
        let program = desk.path("bin/isles");
        let built = env!("CARGO_BIN_EXE_isles");
        if fs::hard_link(built, &program).is_err() {
            fs::copy(built, &program).unwrap();
        }
        for name in ["singularity", "apptainer", "run-singularity"] {
            symlink("isles", desk.path("bin").join(name)).unwrap();
        }
        if desk.changes_user() {
            for (file, line) in [
                (
                    "passwd",
                    format!("student:x:{ORDINARY}:{ORDINARY}::{}:/bin/sh\n", desk.path("home").display()),
                ),
                ("group", format!("student:x:{ORDINARY}:\n")),
            ] {
                let known = fs::read_to_string(Path::new("/etc").join(file)).unwrap();
                fs::write(desk.path(file), known + &line).unwrap();
            }
            let mut device = Command::new("mknod");
            device.args(["-m", "666"]).arg(desk.path("fuse")).args(["c", "10", "229"]);
            assert!(device.status().unwrap().success());
            for name in ["home", "tmp"] {
                chown(desk.path(name), Some(ORDINARY), Some(ORDINARY)).unwrap();
            }
        }
        desk
    }

    /// Gives the ordinary user a range of subordinate IDs.
    pub fn with_range(&self) {
        for name in ["subuid", "subgid"] {
            fs::write(self.path(name), "student:300000:65536\n").unwrap();
        }
    }

    /// Whether the user may mount what a program serves; says so if not.
    pub fn opens_fuse(&self) -> bool {
        let opens = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
        if !opens {
            println!("skip: /dev/fuse is missing, or shut for this user");
        }
        opens
    }

    fn changes_user(&self) -> bool {
        self.ordinary && rustix::process::geteuid().is_root()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file in the home, which belongs to the user.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path("home").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        if self.changes_user() {
            let owned =
                Command::new("chown").args(["-R", "4242:4242"]).arg(self.path("home")).status().unwrap();
            assert!(owned.success());
        }
        path
    }

    /// A daemon's start: as whoever runs the tests, where the user has a name.
    pub fn daemon(&self, words: &[impl AsRef<OsStr>]) -> Command {
        if !self.changes_user() {
            return self.command(words);
        }
        let mut command = Command::new("unshare");
        let script = AS_ORDINARY.replace("exec setpriv --reuid 4242 --regid 4242 --clear-groups", "exec");
        command.args(["-m", "sh", "-c", &script]).arg(self.dir.path()).args(words);
        self.surround(command)
    }

    /// A program, as the user, in the home.
    pub fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let command = if self.changes_user() {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", AS_ORDINARY]).arg(self.dir.path());
            command.args(words);
            command
        } else {
            let mut command = Command::new("env");
            command.args(words);
            command
        };
        self.surround(command)
    }

    fn surround(&self, mut command: Command) -> Command {
        let path = format!("{}:{PYTHON}/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .current_dir(self.path("home"))
            .stdin(Stdio::null());
        if !self.ordinary {
            command.env("ISLES_ROOT", self.path("home/state"));
        }
        command
    }

    pub fn run(&self, words: &[impl AsRef<OsStr>]) -> Said {
        Said::of(self.command(words).output().unwrap())
    }

    /// A shell script, as the user.
    pub fn script(&self, text: &str) -> Said {
        self.run(&["sh", "-ec", text])
    }

    /// A registry on loopback, with what docker.io and ghcr.io stand for in its repositories `hub` and `ghcr`.
    /// False, with the reason, where none is installed.
    pub fn with_registry(&mut self) -> bool {
        if !installed("docker-registry") {
            return false;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = self.path("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
                 enabled: true\nhttp:\n  addr: {address}\n",
                self.path("registry").display()
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.registry = Some((child, address.clone()));
        while TcpStream::connect(&address).is_err() {
            std::thread::yield_now();
        }
        let rules: String = [("docker.io", "hub"), ("ghcr.io", "ghcr")]
            .iter()
            .map(|(prefix, place)| {
                format!(
                    "[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{address}/{place}\"\ninsecure = true\n"
                )
            })
            .collect();
        fs::write(self.path("registries.conf"), rules).unwrap();
        true
    }

    /// `127.0.0.1:port` of the registry.
    pub fn address(&self) -> &str {
        &self.registry.as_ref().unwrap().1
    }

    /// Builds an image of one static busybox and pushes it under these names.
    #[track_caller]
    pub fn busybox(&self, names: &[&str]) {
        let applets =
            "sh true false echo cat ls id env pwd wc sort tr head sed grep test sleep mkdir touch rm cp";
        self.file(
            "busybox/Dockerfile",
            format!(
                "FROM scratch\nCOPY busybox bash /bin/\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"for a in {applets}; do \
                 /bin/busybox ln -s busybox /bin/$a; done; mkdir -p /etc /usr /var /tmp; \
                 echo root:x:0:0::/root:/bin/sh > /etc/passwd; echo root:x:0: > /etc/group\"]\nCMD [\"sh\"]\n"
            ),
        );
        fs::copy("/bin/busybox", self.path("home/busybox/busybox")).unwrap();
        // Snakemake and Nextflow run nothing else; what they say to it is understood by busybox as well.
        let bash = self.file("busybox/bash", "#!/bin/busybox sh\nexec /bin/busybox sh \"$@\"\n");
        fs::set_permissions(bash, fs::Permissions::from_mode(0o755)).unwrap();
        self.run(&["isles", "build", "-q", "-t", "busybox:desk", "busybox"]).fine();
        for name in names {
            self.run(&["isles", "push", "-q", "busybox:desk", name]).fine();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.registry {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What was made in a user namespace may be unreadable for others, but not for its owner or root.
        let _ = isles_store::remove_tree(&self.path("home"));
    }
}
