//! The peers' servers and the trees that all contenders run: started here, on loopback, and ended here.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::measure::cpu_of;
use crate::Result;

/// Where large things are kept between runs.
pub fn cache() -> PathBuf {
    PathBuf::from("/var/tmp/isles-bench")
}

/// An ID without a name and without subuids.
pub const ORDINARY: u32 = 4242;

/// Runs a command that must succeed.
pub fn must(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        return Err(format!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A root file system of one static busybox.
pub fn busybox_tree(at: &Path) -> Result<()> {
    let fail = |e: std::io::Error| format!("{}: {e}", at.display());
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "var/tmp"] {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(at.join(dir)).map_err(fail)?;
    }
    fs::copy("/bin/busybox", at.join("bin/busybox")).map_err(|e| format!("busybox-static: {e}"))?;
    for applet in ["sh", "true", "echo", "cat", "ls", "id"] {
        let _ = fs::remove_file(at.join("bin").join(applet));
        symlink("busybox", at.join("bin").join(applet)).map_err(fail)?;
    }
    fs::write(at.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").map_err(fail)?;
    fs::write(at.join("etc/group"), "root:x:0:\n").map_err(fail)
}

/// A server that ends when this is dropped.
pub struct Server {
    child: Child,
}

impl Server {
    fn start(command: &mut Command, log: &Path) -> Result<Server> {
        let fail = |e: std::io::Error| format!("{}: {e}", log.display());
        let out = fs::File::create(log).map_err(fail)?;
        let err = out.try_clone().map_err(fail)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
        Ok(Server { child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: kill(2) on a child that has not been waited for cannot reach another process.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !ready() {
        if begin.elapsed() > Duration::from_secs(60) {
            return Err(format!("{what} did not start within a minute"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Docker's engine with a state of its own and without any network set-up.
pub struct Docker {
    server: Server,
    socket: PathBuf,
}

impl Docker {
    /// `runtimes`: further OCI runtimes, name and path.
    pub fn start(state: &Path, runtimes: &[(&str, &Path)]) -> Result<Docker> {
        Docker::start_on(None, state, runtimes)
    }

    /// With its bridge and its firewall, on a host of its own.
    pub fn start_with_bridge(host: &Host, state: &Path) -> Result<Docker> {
        Docker::start_on(Some(host), state, &[])
    }

    fn start_on(host: Option<&Host>, state: &Path, runtimes: &[(&str, &Path)]) -> Result<Docker> {
        fs::create_dir_all(state).map_err(|e| format!("{}: {e}", state.display()))?;
        let socket = state.join("docker.sock");
        let mut command = match host {
            Some(host) => host.command("/usr/sbin/dockerd"),
            None => {
                let mut command = Command::new("/usr/sbin/dockerd");
                command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
                command
            }
        };
        command
            .arg("--data-root")
            .arg(state.join("data"))
            .arg("--exec-root")
            .arg(state.join("exec"))
            .arg("--pidfile")
            .arg(state.join("docker.pid"))
            .arg("-H")
            .arg(format!("unix://{}", socket.display()))
            .arg("--storage-driver=overlay2");
        for (name, path) in runtimes {
            command.arg("--add-runtime").arg(format!("{name}={}", path.display()));
        }
        let server = Server::start(&mut command, &state.join("dockerd.log"))?;
        let docker = Docker { server, socket };
        wait_for("dockerd", || docker.command().arg("version").output().is_ok_and(|o| o.status.success()))?;
        Ok(docker)
    }

    /// The client, pointed at this engine.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        command
    }

    /// CPU seconds of the engine and of its containerd until now.
    pub fn cpu(&self) -> f64 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.server.pid()));
        let children = children.unwrap_or_default();
        cpu_of(self.server.pid())
            + children.split_whitespace().filter_map(|p| p.parse().ok()).map(cpu_of).sum::<f64>()
    }
}

/// A network namespace that plays the host's.
pub struct Host(std::process::Child);

impl Host {
    pub fn new() -> Result<Host> {
        let script = "/bin/busybox ip link set lo up && echo ready && exec sleep 100000";
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", script]).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("unshare: {e}"))?;
        let mut line = [0u8; 6];
        let out = child.stdout.as_mut().ok_or("unshare has no output")?;
        std::io::Read::read_exact(out, &mut line).map_err(|e| format!("unshare: {e}"))?;
        Ok(Host(child))
    }

    /// A command in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg("--").arg(program);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's docker-registry on a loopback port.
pub struct Registry {
    server: Server,
    pub address: String,
}

impl Registry {
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub fn start(state: &Path, port: u16) -> Result<Registry> {
        let fail = |e: std::io::Error| format!("{}: {e}", state.display());
        fs::create_dir_all(state.join("data")).map_err(fail)?;
        let address = format!("127.0.0.1:{port}");
        let config = state.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                state.join("data").display()
            ),
        )
        .map_err(fail)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let server = Server::start(&mut command, &state.join("registry.log"))?;
        wait_for("docker-registry", || TcpStream::connect(&address).is_ok())?;
        Ok(Registry { server, address })
    }
}
