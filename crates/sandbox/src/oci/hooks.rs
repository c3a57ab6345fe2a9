//! Programs that the configuration wants to run at points of a container's life (config.md#posix-platform-hooks).
//!
//! A hook sees only the environment that its own entry gives, reads the container's state on its standard input, and is
//! killed when its time is over. What it writes to standard error is in our error when it fails.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::config::Hook;
use super::{Error, Result};

/// How much of a hook's standard error is kept for the message.
const MAX_STDERR: u64 = 16 << 10;

/// Whose namespaces a hook runs in.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    Runtime,
    /// Those of the process behind this descriptor that the flags of setns(2) name.
    Container(&'a OwnedFd, i32),
}

/// The namespaces of a process that are others than ours, as flags of setns(2). One's own user namespace cannot be
/// joined, and the host's others only by those who rule over them. A PID namespace would hold only for children.
pub fn others_namespaces(pid: i32) -> i32 {
    let kinds = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("uts", libc::CLONE_NEWUTS),
        ("ipc", libc::CLONE_NEWIPC),
        ("net", libc::CLONE_NEWNET),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    let name = |who: &str, kind: &str| std::fs::read_link(format!("/proc/{who}/ns/{kind}")).ok();
    kinds
        .iter()
        .filter(|(kind, _)| name(&pid.to_string(), kind) != name("self", kind))
        .fold(0, |all, k| all | k.1)
}

/// Runs hooks one after the other; the first that fails ends it.
pub fn run(stage: &'static str, hooks: &[Hook], state: &str, place: Place<'_>) -> Result<()> {
    hooks.iter().try_for_each(|hook| one(stage, hook, state, place))
}

fn one(stage: &'static str, hook: &Hook, state: &str, place: Place<'_>) -> Result<()> {
    let failed = |why: String| Error::Hook { stage, path: hook.path.clone(), why };
    // Files instead of pipes: neither a hook that does not read nor one that leaves children behind can block us.
    let input = memory(state.as_bytes()).map_err(|e| failed(e.to_string()))?;
    let mut errors = memory(b"").map_err(|e| failed(e.to_string()))?;
    let stderr = errors.try_clone().map_err(|e| failed(e.to_string()))?;

    let mut command = Command::new(&hook.path);
    command.env_clear().stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::from(stderr));
    if let [name, args @ ..] = &hook.args[..] {
        command.arg0(name).args(args);
    }
    for variable in &hook.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    if let Place::Container(pidfd, flags) = place {
        let fd = pidfd.as_raw_fd();
        let enter = move || {
            // SAFETY: a plain system call on numbers.
            if flags == 0 || unsafe { libc::setns(fd, flags) } == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        };
        // SAFETY: the closure only makes system calls.
        unsafe { command.pre_exec(enter) };
    }
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let limit = hook.timeout.and_then(|t| u64::try_from(t).ok()).map(Duration::from_secs);
    let ended = wait(&mut child, limit).map_err(|e| failed(e.to_string()))?;
    let why = match ended {
        Some(status) if status.success() => return Ok(()),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        },
        None => format!("it ran longer than its timeout of {} s", hook.timeout.unwrap_or(0)),
    };
    let mut said = Vec::new();
    let _ = errors.rewind();
    let _ = errors.take(MAX_STDERR).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    Err(failed(if said.is_empty() { why } else { format!("{why}: {said}") }))
}

fn memory(content: &[u8]) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("isles-hook", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Waits; `None` where it had to be killed because its time was over.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    if let (Some(limit), Some(pid)) = (limit, Pid::from_raw(child.id() as i32)) {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        let ready = loop {
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => continue,
                other => break other?,
            }
        };
        if ready == 0 {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
    child.wait().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["A=1".into(), "B".into()],
            timeout: None,
        }
    }

    fn outcome(hook: Hook) -> Result<()> {
        run("prestart", &[hook], r#"{"id":"x"}"#, Place::Runtime)
    }

    #[test]
    fn a_hook_sees_the_state_and_its_own_environment_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let script = format!("{{ cat; echo; env; }} > {}", file.display());
        outcome(hook(&script)).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(r#"{"id":"x"}"#));
        // The shell itself adds PWD and the like.
        let own: Vec<&str> =
            lines.filter(|l| !["PWD=", "SHLVL=", "_="].iter().any(|p| l.starts_with(p))).collect();
        assert_eq!(own, ["A=1", "B="]);
    }

    #[test]
    fn what_went_wrong_is_told() {
        for (script, words) in
            [("echo no network >&2; exit 3", "exit code 3: no network"), ("kill -9 $$", "killed by signal 9")]
        {
            let error = outcome(hook(script)).unwrap_err().to_string();
            assert!(error.contains("prestart hook /bin/sh"), "{error}");
            assert!(error.contains(words), "{error}");
        }
        let missing = Hook { path: "/nonexistent/hook".into(), ..Hook::default() };
        assert!(outcome(missing).unwrap_err().to_string().contains("No such file"));
    }

    #[test]
    fn a_hook_has_its_time() {
        let slow = Hook { timeout: Some(1), ..hook("exec sleep 1000") };
        assert!(outcome(slow).unwrap_err().to_string().contains("longer than its timeout of 1 s"));
        // A child that it leaves behind with its streams open does not hold us.
        outcome(hook("sleep 20 & exit 0")).unwrap();
    }
}
