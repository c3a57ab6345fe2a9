//! A further process in a container that runs, as the container's own are: with its environment, user, rights and limits,
//! as far as nothing else is asked for.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use isles_sandbox::background::{Side, split};
use isles_sandbox::signals::Signals;
use isles_spec::image::ContainerConfig;
use isles_spec::{Hint, Workload};

use crate::attach::{Parted, Wishes, greet, stay};
use crate::background::{REPORT_LIMIT, Report, Target, said, started};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{Record, Status};
use crate::run::Foreground;
use crate::start::null;
use crate::step::Exit;
use crate::{monitor, terminal};

/// What is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exec {
    pub command: Vec<String>,
    pub interactive: bool,
    pub tty: bool,
    /// `NAME=value`, over those of the container.
    pub env: Vec<String>,
    pub working_dir: Option<PathBuf>,
    pub user: Option<String>,
    pub privileged: bool,
    /// Keys that let go of it, as in [`Wishes`]; for those that have a terminal and the caller's input.
    pub detach_keys: Vec<u8>,
}

impl Engine {
    /// Runs a process in a container on the caller's standard streams until it ends. The process must have one thread.
    ///
    /// # Errors
    /// The container does not run, or the program could not be started.
    pub fn exec(&self, name: &str, exec: &Exec, warn: &dyn Fn(&str)) -> Result<Exit> {
        if exec.tty && exec.interactive && !terminal::stdin_is_one() {
            return Err(terminal::is_none());
        }
        let (target, record, workload) = self.to_join(name, exec)?;
        self.note_exec(&record, "exec_create", exec, &[]);
        if exec.tty && exec.interactive && !exec.detach_keys.is_empty() {
            return self.exec_behind(target, &record, &workload, exec, warn);
        }
        let began = |_| self.note_exec(&record, "exec_start", exec, &[]);
        let foreground = Foreground { warn, started: &began, ..Foreground::default() };
        let exit = self.run_in_group(target, &workload, &foreground, Some(&self.group_name(&record.id)))?;
        self.note_exec(&record, "exec_die", exec, &[("exitCode", exit.code().to_string())]);
        Ok(exit)
    }

    /// Lets the process have a monitor of its own, which stays where the caller lets go of it. Who hangs up takes it along.
    fn exec_behind(
        &self,
        target: Target,
        record: &Record,
        workload: &Workload,
        exec: &Exec,
        warn: &dyn Fn(&str),
    ) -> Result<Exit> {
        let failed = |e| Error::system("start a process in the background", e);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let wishes = Wishes { foreground: true, ..Wishes::all(true, exec.detach_keys.clone()) };
        greet(&ours, &wishes)?;
        let size = terminal::size();
        io::stdout().flush().and_then(|()| io::stderr().flush()).map_err(failed)?;
        let stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3);
        let stderr = File::from(stderr.map_err(|e| failed(e.into()))?);
        match split(&File::from(null()?), &stderr).map_err(failed)? {
            Side::Caller(reports) => {
                drop((theirs, stderr));
                let mut text = Vec::new();
                File::from(reports).take(REPORT_LIMIT).read_to_end(&mut text).map_err(failed)?;
                let process = started(&text)?.process;
                let whom = format!("a command in container {}", record.name);
                Ok(match stay(ours, &wishes, Some((process.pid, process.began)), true, &whom)? {
                    Parted::Ended(code) => Exit::Code(code),
                    Parted::LetGo => Exit::Code(0),
                })
            }
            Side::Background(reports) => {
                drop((ours, stderr));
                let mut reports = File::from(reports);
                let mut report = |what: &Report| {
                    if let Ok(text) = serde_json::to_vec(what) {
                        // Where nobody listens any more, nobody is at the other end of its streams either.
                        let _ = reports.write_all(&text);
                    }
                };
                let foreground = Foreground { warn, ..Foreground::default() };
                let group = self.group_name(&record.id);
                let begun =
                    Signals::block().map_err(|e| Error::system("wait for signals", e)).and_then(|signals| {
                        Ok((signals, self.start_in_group(target, workload, &foreground, Some(&group), size)?))
                    });
                let (signals, child) = match begun {
                    Ok(begun) => begun,
                    Err(e) => {
                        let (message, hint, exit_code) = (said(&e), e.hint(), e.exit_code());
                        report(&Report::Failed { message, hint, exit_code });
                        std::process::exit(exit_code.into())
                    }
                };
                self.note_exec(record, "exec_start", exec, &[]);
                let (id, monitor) = (record.id.clone(), std::process::id().cast_signed());
                report(&Report::Runs { id, pid: child.pid(), monitor });
                drop(reports);
                // It may stay for long, and what the caller has is the caller's.
                let _ = null().map(|null| rustix::stdio::dup2_stderr(&null));
                let code = monitor::with_terminal(child, theirs, &signals);
                self.note_exec(record, "exec_die", exec, &[("exitCode", code.to_string())]);
                std::process::exit(code.into())
            }
        }
    }

    /// Starts a process in a container, and comes back when it runs. The process must have one thread.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub fn exec_detached(&self, name: &str, exec: &Exec) -> Result<()> {
        let (target, record, workload) = self.to_join(name, exec)?;
        let failed = |e| Error::system("start a process in the background", e);
        io::stdout().flush().and_then(|()| io::stderr().flush()).map_err(failed)?;
        let nowhere = File::from(null()?);
        match split(&nowhere, &nowhere).map_err(failed)? {
            Side::Caller(reports) => {
                let mut text = Vec::new();
                File::from(reports).take(REPORT_LIMIT).read_to_end(&mut text).map_err(failed)?;
                started(&text).map(drop)
            }
            Side::Background(reports) => {
                let reports = std::cell::Cell::new(Some(File::from(reports)));
                let report = |what: &Report| {
                    // Whoever listened may be gone, and the process goes on.
                    if let (Some(mut file), Ok(text)) = (reports.take(), serde_json::to_vec(what)) {
                        let _ = file.write_all(&text);
                    }
                };
                let monitor = std::process::id().cast_signed();
                let began = |pid: i32| {
                    report(&Report::Runs { id: record.id.clone(), pid, monitor });
                    self.note_exec(&record, "exec_start", exec, &[]);
                };
                let foreground = Foreground { started: &began, ..Foreground::default() };
                let group = self.group_name(&record.id);
                let code = match self.run_in_group(target, &workload, &foreground, Some(&group)) {
                    Ok(exit) => exit.code(),
                    Err(e) => {
                        let (message, hint, exit_code) = (said(&e), e.hint(), e.exit_code());
                        report(&Report::Failed { message, hint, exit_code });
                        exit_code
                    }
                };
                std::process::exit(code.into())
            }
        }
    }

    fn note_exec(&self, record: &Record, action: &str, exec: &Exec, more: &[(&str, String)]) {
        match action {
            "exec_die" => self.note(record, action, more),
            _ => self.note(record, &format!("{action}: {}", exec.command.join(" ")), more),
        }
    }

    fn to_join(&self, name: &str, exec: &Exec) -> Result<(Target, Record, Workload)> {
        let found = self.begun(name)?;
        match found.status {
            Status::Running => {}
            Status::Paused => {
                return Err(Error::impossible(
                    format!("running a command in container {name}"),
                    "it is paused; 'isles unpause' lets it go on",
                ));
            }
            _ => return Err(Error::NotRunning(name.to_owned())),
        }
        let (Some(pid), Some(began)) = (found.state.pid, found.state.pid_start) else {
            return Err(Error::NotRunning(name.to_owned()));
        };
        let image = self.image_of(&found.record)?;
        let default = ContainerConfig::default();
        let config = image.as_ref().map_or(&default, |image| &image.config.config);
        let workload = workload(&found.record, config, exec);
        Ok((Target { pid, began }, found.record, workload))
    }
}

/// The process that joins, as if it were all of a container.
fn workload(record: &Record, image: &ContainerConfig, exec: &Exec) -> Workload {
    let own = &record.workload;
    let hostname = own.hostname.clone().unwrap_or_else(|| record.id.chars().take(12).collect());
    let mut env = vec![format!("HOSTNAME={hostname}")];
    env.extend(image.env.iter().chain(&own.env).chain(&exec.env).cloned());
    let user = exec.user.clone().or_else(|| own.user.clone());
    let mut security = own.security.clone();
    security.privileged |= exec.privileged;
    Workload {
        command: exec.command.clone(),
        entrypoint: Some(Vec::new()),
        env,
        user: user.or_else(|| Some(image.user.clone()).filter(|user| !user.is_empty())),
        working_dir: exec.working_dir.clone().or_else(|| {
            let of_image = (!image.working_dir.is_empty()).then(|| PathBuf::from(&image.working_dir));
            own.working_dir.clone().or(of_image)
        }),
        tty: exec.tty,
        interactive: exec.interactive,
        security,
        groups: own.groups.clone(),
        rlimits: own.rlimits.clone(),
        run_as: own.run_as,
        root: own.root.clone(),
        userns: own.userns.clone(),
        ..Workload::default()
    }
}
