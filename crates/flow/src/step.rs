//! One step: a program with its folder and its streams, run by an [`Executor`].

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use isles_sandbox::beside::Usage;
use isles_sandbox::beside::{self, End};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::attend;
use crate::pool::Need;

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
    /// The folder that what is mounted for this step alone is in, if anything is: it has nothing else.
    pub staged: PathBuf,
    /// Whether it has a network.
    pub network: bool,
    /// A folder, which need not be there, that all steps of a run have. The caller removes it at the end.
    pub shared: PathBuf,
    /// One of this step alone, which need not be there, for what the program writes elsewhere than in its mounts. The caller
    /// removes it. Where none is given, that is kept in memory.
    pub scratch: Option<PathBuf>,
    pub bounds: Bounds,
}

/// What a step may take, where that is enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processors.
    pub cores: Option<f64>,
    /// Bytes of `/dev/shm`.
    #[serde(default)]
    pub shm: Option<u64>,
}

/// A file or folder of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What is not given is handed on as it comes.
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    /// The longest that the program may run.
    pub limit: Option<Duration>,
    /// What it was given of the machine's.
    pub need: Need,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    Code(i32),
    Signal(i32),
    /// It ran longer than it may, and was killed.
    TimedOut,
    /// The machine that ran it is not heard of any more.
    Lost,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub ended: Ended,
    pub usage: Usage,
}

/// Where images come from that a step names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageSource {
    /// A name, pulled where it is not here.
    Name(String),
    /// An archive as `docker save` writes it, or any image file.
    File(PathBuf),
    /// The text of a Dockerfile.
    Dockerfile(String),
    /// An archive of a root file system: a file, or its URL.
    Import(String),
}

/// What runs steps. Threads run steps side by side.
pub trait Executor: Send + Sync {
    /// Makes an image ready, and gives what [`Container::image`] is then.
    ///
    /// # Errors
    /// It cannot be had: why, in one line.
    fn image(&self, source: &ImageSource) -> Result<String, String>;

    /// Runs a step to its end. What it writes to streams that are not given is handed to `talk`.
    ///
    /// # Errors
    /// It could not be started: why, in one line. A program that fails is no error.
    fn run(&self, step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String>;
}

/// What runs: a negative number is a process group, another the first process of a container.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
static STOPPING: AtomicBool = AtomicBool::new(false);

fn end(number: i32) {
    let (group, pid) = (number < 0, Pid::from_raw(number.abs()));
    let Some(pid) = pid else { return };
    let _ = if group { kill_process_group(pid, Signal::KILL) } else { kill_process(pid, Signal::KILL) };
}

/// Ends all steps that run, and each that begins from now on.
pub fn stop_all() {
    STOPPING.store(true, Ordering::SeqCst);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|number| end(*number));
}

/// Process groups of the host that steps run in.
pub fn groups() -> Vec<i32> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.iter().filter(|number| **number < 0).map(|number| -number).collect()
}

/// A step that runs, ended by [`stop_all`] as long as this is there.
pub struct Running(i32);

impl Running {
    /// Takes down a container by its first process, whose death is that of all others.
    pub fn container(pid: i32) -> Running {
        Running::of(pid)
    }

    /// Takes down a process group.
    pub fn group(pid: i32) -> Running {
        Running::of(-pid)
    }

    fn of(number: i32) -> Running {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(number);
        // Looked at under the lock, so whoever stops everything sees this one, or is seen here.
        if stopping() {
            end(number);
        }
        Running(number)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
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
pub fn on_host(step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
    let Some(name) = step.argv.first() else { return Err("there is no command".into()) };
    let fail = |e: std::io::Error| cannot_start(name, &e);
    let text = |text: &str| CString::new(text).map_err(|_| format!("{text:?} holds a null byte"));
    let path = program(name, &step.env, &step.folder);
    let argv = step.argv.iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?;
    let env = step
        .env
        .iter()
        .map(|(name, value)| text(&format!("{name}={value}")))
        .collect::<Result<Vec<_>, _>>()?;
    let folder =
        CString::new(step.folder.into_os_string().into_vec()).map_err(|_| "the folder holds a null byte")?;
    let path = CString::new(path.into_os_string().into_vec()).map_err(|_| "the program holds a null byte")?;
    let null = match &step.stdin {
        Some(_) => None,
        None => Some(File::open("/dev/null").map_err(fail)?),
    };
    let (heard, said) = match (&step.stdout, &step.stderr) {
        (Some(_), Some(_)) => (None, None),
        _ => {
            let (heard, said) = attend::pipe().map_err(fail)?;
            (Some(heard), Some(said))
        }
    };
    // All three are there: whatever is not given is null, or the pipe.
    let streams = [
        step.stdin.as_ref().or(null.as_ref()).map(AsFd::as_fd),
        step.stdout.as_ref().map(AsFd::as_fd).or(said.as_ref().map(AsFd::as_fd)),
        step.stderr.as_ref().map(AsFd::as_fd).or(said.as_ref().map(AsFd::as_fd)),
    ];
    let [Some(stdin), Some(stdout), Some(stderr)] = streams else {
        return Err(format!("cannot start `{name}`: it has no streams"));
    };
    let plan = beside::Program {
        path: &path,
        argv: &argv,
        env: &env,
        folder: &folder,
        streams: [stdin, stdout, stderr],
    };
    let pid = beside::start(&plan).map_err(fail)?;
    drop(said);
    let running = Running::group(pid);
    let (mut timed_out, mut attended) = (false, false);
    if (heard.is_some() || step.limit.is_some())
        && let Some(process) = Pid::from_raw(pid)
        && let Ok(fd) = pidfd_open(process, PidfdFlags::empty())
    {
        timed_out = !attend::attend(fd.as_fd(), heard, step.limit, talk);
        attended = true;
    }
    // Its descendants end with it, as in a container. Its number is its own until it is waited for.
    let ended = attended || beside::await_end(pid).is_ok();
    if ended && let Some(group) = Pid::from_raw(pid) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let ended = beside::wait(pid);
    drop(running);
    let (end, usage) = ended.map_err(|e| format!("cannot wait for {name}: {e}"))?;
    let ended = match end {
        _ if timed_out => Ended::TimedOut,
        End::Code(code) => Ended::Code(code),
        End::Signal(signal) => Ended::Signal(signal),
    };
    Ok(Outcome { ended, usage })
}

/// The file of a program: where it has no slash, the first in PATH that can be executed. Where there is none, a path that
/// is not there, so that the start says so.
fn program(name: &str, env: &[(String, String)], folder: &Path) -> PathBuf {
    if name.contains('/') {
        return folder.join(name);
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or("/usr/bin:/bin", |(_, value)| value);
    let candidates = path
        .split(':')
        .map(|dir| if dir.is_empty() { folder.join(name) } else { folder.join(dir).join(name) });
    let runs =
        |file: &PathBuf| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && !file.is_dir();
    candidates.clone().find(runs).unwrap_or_else(|| Path::new("/nonexistent").join(name))
}

fn cannot_start(program: &str, error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(2) => format!(
            "cannot start `{program}`: there is no such program (or its interpreter or folder is not there)"
        ),
        Some(7) => format!("cannot start `{program}`: its arguments are longer than the system allows"),
        _ => format!("cannot start `{program}`: {error}"),
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
            need: Need { cores: 1.0, mebibytes: 0 },
        }
    }

    fn ended(step: Step) -> Result<Ended, String> {
        on_host(step, &mut |_| ()).map(|outcome| outcome.ended)
    }

    #[test]
    fn how_steps_end() {
        assert_eq!(ended(step(&["sh", "-c", "exit 3"])), Ok(Ended::Code(3)));
        assert_eq!(ended(step(&["sh", "-c", "kill -9 $$"])), Ok(Ended::Signal(9)));
        let slow = Step { limit: Some(Duration::from_millis(50)), ..step(&["sh", "-c", "sleep 100 & wait"]) };
        assert_eq!(ended(slow), Ok(Ended::TimedOut));
        assert!(ended(step(&["no-such-program-at-all"])).unwrap_err().contains("no such program"));
        let long = "x".repeat(3 << 20);
        assert!(ended(step(&["true", &long])).unwrap_err().contains("longer than the system allows"));
    }

    #[test]
    fn what_a_step_says_is_handed_on_and_its_descendants_are_not_waited_for() {
        let script = "echo out; echo err >&2; seq 1 100000; sleep 1000 & echo $! >&2; echo last";
        let quiet = Step { stdout: None, stderr: None, ..step(&["sh", "-c", script]) };
        let mut said = Vec::new();
        let outcome = on_host(quiet, &mut |bytes| said.extend_from_slice(bytes)).unwrap();
        assert_eq!(outcome.ended, Ended::Code(0));
        assert!(outcome.usage.peak_kibibytes > 0);
        let text = String::from_utf8(said).unwrap();
        assert!(text.starts_with("out\nerr\n1\n2\n") && text.ends_with("\nlast\n"), "{}", text.len());
        let left = text.lines().rev().nth(1).unwrap();
        // It has been killed; the kernel may take a moment.
        let lives = || {
            let state = std::fs::read_to_string(format!("/proc/{left}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        while lives() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn descendants_end_also_where_all_streams_are_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let out = Step {
            stdout: Some(File::create(&path).unwrap()),
            ..step(&["sh", "-c", "sleep 1000 & echo $!"])
        };
        assert_eq!(ended(out), Ok(Ended::Code(0)));
        let left = std::fs::read_to_string(&path).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", left.trim())).unwrap_or_default();
        while !state().is_empty() && !state().contains(") Z ") {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_environment_is_what_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let out = Step { stdout: Some(File::create(&path).unwrap()), ..step(&["env"]) };
        assert_eq!(ended(out), Ok(Ended::Code(0)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "PATH=/usr/bin:/bin\n");
    }
}
