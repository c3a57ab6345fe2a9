//! A container in the background: a process of its own is its monitor, as [`crate::run`] has it, and writes to files.

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::fs::File;
use std::io::{self, Read, Write};

use isles_sandbox::background::{Side, split};
use isles_spec::{Hint, Workload};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{living_since, process_start};
use crate::run::Foreground;

/// A report has a message, a hint and a few numbers.
pub(crate) const REPORT_LIMIT: u64 = 1 << 20;

/// A process that runs, and cannot be taken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub pid: i32,
    /// When it began, in clock ticks since boot (proc_pid_stat(5)).
    pub began: u64,
}

impl Target {
    /// `None` where there is no such process.
    pub fn of(pid: i32) -> Option<Target> {
        Some(Target { pid, began: process_start(pid)? })
    }

    /// Whether it still runs: one that has ended, and that its parent has not asked after, does not.
    pub fn lives(self) -> bool {
        living_since(self.pid) == Some(self.began)
    }
}

/// A container that was started in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub id: String,
    /// The container's first process, whose namespaces can be joined ([`Engine::run_in`]).
    pub process: Target,
    /// The process that stays with it. When it ends, the container does.
    pub monitor: Target,
}

/// What the monitor tells the process that started it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Runs { id: String, pid: i32, monitor: i32 },
    Failed { message: String, hint: Option<String>, exit_code: u8 },
}

impl Engine {
    /// Starts a container whose monitor is a new process, and comes back when its program runs. Its output, and what the
    /// monitor has to say, goes to the two files. The process must have one thread.
    ///
    /// # Errors
    /// As [`Engine::run`]; nothing of the container is left then.
    pub fn start(
        &self,
        workload: &Workload,
        foreground: &Foreground<'_>,
        stdout: &File,
        stderr: &File,
    ) -> Result<Started> {
        let failed = |e| Error::system("start a process in the background", e);
        // What waits to be written would be written by both.
        io::stdout().flush().and_then(|()| io::stderr().flush()).map_err(failed)?;
        match split(stdout, stderr).map_err(failed)? {
            Side::Caller(reports) => {
                let mut text = Vec::new();
                File::from(reports).take(REPORT_LIMIT).read_to_end(&mut text).map_err(failed)?;
                started(&text)
            }
            Side::Background(reports) => {
                let code = self.stay_behind(workload, foreground, File::from(reports));
                std::process::exit(code.into())
            }
        }
    }

    /// Runs the container as its monitor, and reports once. Returns the exit code of the monitor.
    fn stay_behind(&self, workload: &Workload, foreground: &Foreground<'_>, reports: File) -> u8 {
        let reports = Cell::new(Some(reports));
        let report = |what: &Report| {
            // Whoever listened may be gone, and the container goes on; closed, it ends the caller's wait.
            if let (Some(mut file), Ok(text)) = (reports.take(), serde_json::to_vec(what)) {
                let _ = file.write_all(&text);
            }
        };
        let id = RefCell::new(String::new());
        let created = |new: &str| {
            *id.borrow_mut() = new.to_owned();
            (foreground.created)(new)
        };
        let monitor = std::process::id().cast_signed();
        let began = |pid: i32| {
            report(&Report::Runs { id: id.borrow().clone(), pid, monitor });
            (foreground.started)(pid);
        };
        match self.run(workload, &Foreground { created: &created, started: &began, ..*foreground }) {
            Ok(exit) => exit.code(),
            Err(e) => {
                let exit_code = e.exit_code();
                let message = said(&e);
                (foreground.warn)(&message);
                report(&Report::Failed { message, hint: e.hint(), exit_code });
                exit_code
            }
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

pub(crate) fn started(report: &[u8]) -> Result<Started> {
    let silent = || io::Error::other("it ended without a word");
    let failed = |e| Error::system("start a process in the background", e);
    match serde_json::from_slice(report).map_err(|_| failed(silent()))? {
        Report::Runs { id, pid, monitor } => {
            // One that has ended meanwhile cannot be joined any more, but it was started.
            let target = |pid| Target::of(pid).unwrap_or(Target { pid, began: 0 });
            Ok(Started { id, process: target(pid), monitor: target(monitor) })
        }
        Report::Failed { message, hint, exit_code } => Err(Error::Background { message, hint, exit_code }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let text = |report| serde_json::to_vec(&report).unwrap();
        let pid = std::process::id().cast_signed();
        let found = started(&text(Report::Runs { id: "a".into(), pid, monitor: pid })).unwrap();
        assert!(found.process.lives() && found.monitor == found.process);
        assert!(!Target { began: 1, ..found.process }.lives());
        let failed = Report::Failed { message: "no".into(), hint: Some("do".into()), exit_code: 127 };
        let error = started(&text(failed)).unwrap_err();
        assert_eq!(
            (said(&error).as_str(), error.hint().as_deref(), error.exit_code()),
            ("no", Some("do"), 127)
        );
        assert!(started(b"").unwrap_err().to_string().contains("without a word"));
    }
}
