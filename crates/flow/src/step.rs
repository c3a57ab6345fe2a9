//! One step: a program with its folder and its streams, run by an [`Executor`].

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

/// Where a step's program runs.
#[derive(Debug, Clone)]
pub enum Root {
    /// On the host, as any program of the user's.
    Host,
    /// In a container.
    Image(Container),
}

/// The container of a step.
#[derive(Debug, Clone)]
pub struct Container {
    /// What [`Executor::image`] gave.
    pub image: String,
    pub mounts: Vec<Mount>,
    /// Whether it has a network.
    pub network: bool,
    /// A folder, which need not be there, for what the program writes elsewhere than in its mounts. The caller removes it.
    pub scratch: PathBuf,
}

/// A file or folder of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub writable: bool,
}

/// A program to run.
#[derive(Debug)]
pub struct Step {
    pub root: Root,
    /// At least one word.
    pub argv: Vec<String>,
    /// All of the environment.
    pub env: Vec<(String, String)>,
    /// The working folder, as the program sees it.
    pub folder: PathBuf,
    /// Nothing is read where not given.
    pub stdin: Option<File>,
    /// Goes to this process's standard error where not given.
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    /// The longest that the program may run.
    pub limit: Option<Duration>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
    /// It ran longer than it may, and was killed.
    TimedOut,
}

/// Where images come from that a step names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    /// A name, pulled where it is not here.
    Name(String),
    /// An archive as `docker save` writes it, or any image file.
    File(PathBuf),
    /// The text of a Dockerfile.
    Dockerfile(String),
}

/// What runs steps. Threads run steps side by side.
pub trait Executor: Send + Sync {
    /// Makes an image ready, and gives what [`Container::image`] is then.
    ///
    /// # Errors
    /// It cannot be had: why, in one line.
    fn image(&self, source: &ImageSource) -> Result<String, String>;

    /// Runs a step to its end.
    ///
    /// # Errors
    /// It could not be started: why, in one line. A program that fails is no error.
    fn run(&self, step: Step) -> Result<Ended, String>;
}

/// Process groups that run, so that they end when the run does.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// First processes of containers that run.
static CONTAINERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Ends all steps that run, and lets no other begin.
pub fn stop_all() {
    STOPPING.store(true, Ordering::SeqCst);
    let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    for group in groups.iter() {
        if let Some(pid) = Pid::from_raw(*group) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
    let containers = CONTAINERS.lock().unwrap_or_else(PoisonError::into_inner);
    for pid in containers.iter() {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A container that runs, ended by [`stop_all`] as long as this is there.
pub struct Running(i32);

impl Running {
    /// Takes down a container by its first process, whose death is that of all others.
    pub fn container(pid: i32) -> Running {
        let mut containers = CONTAINERS.lock().unwrap_or_else(PoisonError::into_inner);
        containers.insert(pid);
        if stopping()
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
        Running(pid)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CONTAINERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Whether [`stop_all`] was called.
pub fn stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// Runs a step on the host.
///
/// # Errors
/// The program is not there or cannot be run.
pub fn on_host(step: Step) -> Result<Ended, String> {
    let Some((program, arguments)) = step.argv.split_first() else {
        return Err("there is no command".into());
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir(&step.folder).process_group(0);
    for (name, value) in &step.env {
        command.env(name, value);
    }
    let to_stderr = || std::io::stderr().try_clone_stdio();
    command.stdin(step.stdin.map_or_else(Stdio::null, Stdio::from));
    command.stdout(match step.stdout {
        Some(file) => Stdio::from(file),
        None => to_stderr(),
    });
    command.stderr(match step.stderr {
        Some(file) => Stdio::from(file),
        None => to_stderr(),
    });
    let mut child = {
        // Held until the group is known, so none escapes `stop_all`.
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        if stopping() {
            return Err("the run is being stopped".into());
        }
        let child = command.spawn().map_err(|e| cannot_start(program, &e))?;
        groups.insert(child.id() as i32);
        child
    };
    let pid = child.id() as i32;
    let mut timed_out = false;
    if let Some(limit) = step.limit {
        timed_out = !ends_within(pid, limit);
        if timed_out && let Some(group) = Pid::from_raw(pid) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    let status = child.wait();
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    groups.remove(&pid);
    drop(groups);
    let status = status.map_err(|e| format!("cannot wait for {program}: {e}"))?;
    if timed_out {
        return Ok(Ended::TimedOut);
    }
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    })
}

fn cannot_start(program: &str, error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(2) => format!("cannot start `{program}`: there is no such program (or its folder is not there)"),
        Some(7) => format!("cannot start `{program}`: its arguments are longer than the system allows"),
        _ => format!("cannot start `{program}`: {error}"),
    }
}

/// Whether a child ends within a time. It is not waited for.
fn ends_within(pid: i32, limit: Duration) -> bool {
    let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return true;
    };
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let wait =
            Timespec { tv_sec: left.as_secs().min(1 << 30) as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// This process's standard error, for a child.
trait CloneStdio {
    fn try_clone_stdio(&self) -> Stdio;
}

impl CloneStdio for std::io::Stderr {
    fn try_clone_stdio(&self) -> Stdio {
        use std::os::fd::AsFd;
        match self.as_fd().try_clone_to_owned() {
            Ok(fd) => Stdio::from(fd),
            Err(_) => Stdio::null(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(argv: &[&str]) -> Step {
        Step {
            root: Root::Host,
            argv: argv.iter().map(|w| (*w).to_owned()).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            folder: "/".into(),
            stdin: None,
            stdout: Some(File::options().write(true).open("/dev/null").unwrap()),
            stderr: Some(File::options().write(true).open("/dev/null").unwrap()),
            limit: None,
        }
    }

    #[test]
    fn how_steps_end() {
        assert_eq!(on_host(step(&["sh", "-c", "exit 3"])), Ok(Ended::Code(3)));
        assert_eq!(on_host(step(&["sh", "-c", "kill -9 $$"])), Ok(Ended::Signal(9)));
        let slow = Step { limit: Some(Duration::from_millis(50)), ..step(&["sh", "-c", "sleep 100 & wait"]) };
        assert_eq!(on_host(slow), Ok(Ended::TimedOut));
        assert!(on_host(step(&["no-such-program-at-all"])).unwrap_err().contains("no such program"));
        let long = "x".repeat(3 << 20);
        assert!(on_host(step(&["true", &long])).unwrap_err().contains("longer than the system allows"));
    }

    #[test]
    fn the_environment_is_what_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let out = Step { stdout: Some(File::create(&path).unwrap()), ..step(&["env"]) };
        assert_eq!(on_host(out), Ok(Ended::Code(0)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "PATH=/usr/bin:/bin\n");
    }
}
