//! What is done to containers that live: stop, kill, pause, rename, wait. Whoever asks does it: signals go through
//! descriptors of processes, and the end of a container is seen by its files changing, so its monitor has nothing to answer.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use isles_sandbox::cgroup::{Group, Layout};
use isles_spec::RestartPolicy;
use isles_store::Container;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::monitor::frames;
use crate::monitor::{PAUSED, RESTARTS, STOPPED, WAKE};
use crate::record::{Info, Record, Status, gone, info, now, process_start};
use crate::watch::Watch;

/// How long the end of a process that was killed may take.
const LAST: Duration = Duration::from_secs(10);

/// What is waited for: docker's conditions (docker engine API, "Wait for a container").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Condition {
    /// It does not run, now or later.
    #[default]
    NotRunning,
    /// It ends, also where it has not begun yet.
    NextExit,
    /// It is there no more.
    Removed,
}

impl Condition {
    /// Reads docker's word for it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Condition> {
        Ok(match text {
            "" | "not-running" => Condition::NotRunning,
            "next-exit" => Condition::NextExit,
            "removed" => Condition::Removed,
            _ => {
                return Err(isles_spec::Error::new(format!("invalid condition '{text}'"))
                    .with_hint("known are not-running, next-exit and removed")
                    .into());
            }
        })
    }
}

impl Engine {
    /// Asks a container to end by its stop signal, and kills it when it has not ended after a time: that of the caller,
    /// or its own; `None` inside for never. `false` where it did not run.
    pub fn stop(&self, name: &str, signal: Option<i32>, timeout: Option<Option<Duration>>) -> Result<bool> {
        let found = self.begun(name)?;
        let container = self.store.container(&found.record.id)?;
        if !matches!(found.status, Status::Running | Status::Paused | Status::Restarting) {
            // It is to stay so at the next boot as well.
            if found.status == Status::Dead {
                mark(&container, STOPPED)?;
            }
            return Ok(false);
        }
        mark(&container, STOPPED)?;
        let signal = signal.unwrap_or_else(|| found.record.stop_signal());
        let patience = timeout.unwrap_or_else(|| Some(found.record.stop_timeout()));
        let mut watch = watch(&container)?;
        match found.status {
            Status::Restarting => wake(&found)?,
            // A process that is kept from running cannot end either.
            Status::Paused => {
                send(&found, signal)?;
                self.thaw(&container)?;
            }
            _ => send(&found, signal)?,
        }
        self.note(&found.record, "kill", &[("signal", signal.to_string())]);
        let deadline = patience.map(|patience| Instant::now() + patience);
        if self.ends(&found, &mut watch, deadline)? {
            self.note(&found.record, "stop", &[]);
            return Ok(true);
        }
        self.note(&found.record, "kill", &[("signal", Signal::KILL.as_raw().to_string())]);
        send(&found, Signal::KILL.as_raw())?;
        if self.ends(&found, &mut watch, Some(Instant::now() + LAST))? {
            self.note(&found.record, "stop", &[]);
            return Ok(true);
        }
        Err(Error::impossible(format!("stopping container {name}"), "it does not end although it was killed"))
    }

    /// Stops a container, where it runs, and starts it. One that is removed when it ends stays. The process must have one
    /// thread.
    ///
    /// # Errors
    /// It does not end, or could not be started again.
    pub fn restart(
        &self,
        name: &str,
        signal: Option<i32>,
        timeout: Option<Option<Duration>>,
        warn: &dyn Fn(&str),
    ) -> Result<()> {
        let found = self.begun(name)?;
        let container = self.store.container(&found.record.id)?;
        mark(&container, RESTARTS)?;
        container.keep()?;
        let stopped = self.stop(&found.record.id, signal, timeout).and_then(|_| {
            // Its monitor has said that it ended, and lets go of it at once.
            self.store.container(&found.record.id)?.lock()?;
            Ok(())
        });
        let done = stopped.and_then(|()| self.start_container(&found.record.id, None, warn).map(drop));
        container.forget(RESTARTS)?;
        if done.is_ok() {
            self.note(&found.record, "restart", &[]);
        }
        done
    }

    /// Whether somebody stays with a container: it runs, or is about to.
    pub fn is_alive(&self, id: &str) -> bool {
        let Ok(container) = self.store.container(id) else { return false };
        // The monitor of one that has ended holds its lock until what was written is on the disk.
        let ended = || matches!(info(&container), Ok(Some(Info { status: Status::Exited, .. })));
        container.is_locked() && !ended()
    }

    /// The folder of a container, for what is kept there.
    pub fn folder_of(&self, id: &str) -> Result<std::path::PathBuf> {
        Ok(self.store.container(id)?.path().to_owned())
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, name: &str, signal: i32) -> Result<()> {
        let found = self.begun(name)?;
        let container = self.store.container(&found.record.id)?;
        if !matches!(found.status, Status::Running | Status::Paused) {
            return Err(Error::NotRunning(name.to_owned()));
        }
        // Who is told to end is not to begin again; other signals are the program's own business.
        if signal == Signal::KILL.as_raw() || signal == found.record.stop_signal() {
            mark(&container, STOPPED)?;
        }
        send(&found, signal)?;
        self.note(&found.record, "kill", &[("signal", signal.to_string())]);
        if found.status == Status::Paused && signal == Signal::KILL.as_raw() {
            self.thaw(&container)?;
        }
        Ok(())
    }

    /// Keeps all processes of a container from running.
    ///
    /// # Errors
    /// It does not run, or has no control group that could do it.
    pub fn pause(&self, name: &str) -> Result<()> {
        let found = self.begun(name)?;
        match found.status {
            Status::Running => {}
            Status::Paused => {
                return Err(Error::impossible(format!("pausing container {name}"), "it is paused already"));
            }
            _ => return Err(Error::NotRunning(name.to_owned())),
        }
        let container = self.store.container(&found.record.id)?;
        let mut group = self.group(&found.record.id)?;
        if group.is_absent() {
            return Err(Error::impossible(
                format!("pausing container {name}"),
                "it has no control group; an ordinary user needs one that was delegated, and cgroup v2",
            ));
        }
        mark(&container, PAUSED)?;
        if let Err(e) = group.freeze() {
            drop(container.forget(PAUSED));
            return Err(e.into());
        }
        self.note(&found.record, "pause", &[]);
        Ok(())
    }

    /// Lets the processes of a container go on.
    ///
    /// # Errors
    /// It is not paused.
    pub fn unpause(&self, name: &str) -> Result<()> {
        let found = self.find(name)?;
        if found.status != Status::Paused {
            return Err(Error::impossible(format!("unpausing container {name}"), "it is not paused"));
        }
        self.thaw(&self.store.container(&found.record.id)?)?;
        self.note(&found.record, "unpause", &[]);
        Ok(())
    }

    pub(crate) fn thaw(&self, container: &Container) -> Result<()> {
        let mut group = self.group(container.id())?;
        if !group.is_absent() {
            group.thaw()?;
        }
        Ok(container.forget(PAUSED)?)
    }

    pub(crate) fn group(&self, id: &str) -> Result<Group> {
        let layout = Layout::detect().map_err(|e| Error::system("look at the control groups", e))?;
        Ok(Group::open(&layout, &self.group_name(id))?)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is not possible, or another container has it.
    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        let new = new.strip_prefix('/').unwrap_or(new);
        let found = self.find(name)?;
        if found.record.name == new {
            return Err(isles_spec::Error::new(
                "renaming a container with the same name as its current name",
            )
            .with_hint("choose another name")
            .into());
        }
        let names = self.claim(new)?;
        let container = self.store.container(&found.record.id)?;
        let mut record = Record::load(&container)?.ok_or_else(|| Error::NoContainer(name.to_owned()))?;
        let old = record.clone();
        record.name = new.to_owned();
        record.workload.name = Some(new.to_owned());
        self.put_name(new, &record.id)?;
        record.save(&container)?;
        drop(names);
        self.forget_name(&old);
        self.note(&record, "rename", &[("oldName", format!("/{}", found.record.name))]);
        Ok(())
    }

    /// Gives a container another restart policy.
    pub fn set_restart_policy(&self, name: &str, policy: RestartPolicy) -> Result<()> {
        let found = self.find(name)?;
        let container = self.store.container(&found.record.id)?;
        let _names = self.store.lock_names()?;
        let mut record = Record::load(&container)?.ok_or_else(|| Error::NoContainer(name.to_owned()))?;
        if record.workload.remove && policy != RestartPolicy::No {
            return Err(isles_spec::Error::new(
                "a container that is removed when it ends cannot start again",
            )
            .with_hint("make it without --rm")
            .into());
        }
        record.workload.restart = policy;
        record.save(&container)?;
        if found.status == Status::Restarting {
            wake(&found)?;
        }
        Ok(())
    }

    /// Waits for a condition, and returns the exit code that goes with it. An end that comes at any time after the call is
    /// seen.
    ///
    /// # Errors
    /// There is no such container.
    pub fn wait(&self, name: &str, condition: Condition) -> Result<u8> {
        let id = self.begun(name)?.record.id;
        // Connected before anything is looked at: who has been let in is told the end, whatever becomes of the files. Of one
        // in the foreground, which lets nobody in, the events remember it.
        let line = self.connect(&id).ok();
        let told = |line: Option<&UnixStream>| line.and_then(told_exit).or_else(|| self.noted_end(&id));
        let looked = self.find(&id).and_then(|first| Ok((first, self.store.container(&id)?)));
        let (first, container) = match looked {
            Ok(found) => found,
            Err(e) => return told(line.as_ref()).ok_or(e),
        };
        let mut watch = match watch(&container) {
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(told(line.as_ref()).or(first.state.exit_code).unwrap_or(0));
            }
            other => other?,
        };
        let runs = |status| matches!(status, Status::Running | Status::Paused | Status::Restarting);
        let mut last = first.state.exit_code;
        // An end after this one counts.
        let seen = if runs(first.status) && first.status != Status::Restarting {
            None
        } else {
            first.state.finished
        };
        loop {
            // Looked at after the watch began, so that nothing falls between.
            let now = match self.look(&container)? {
                Some(now) => now,
                // With its folder went what it said of its end.
                None if runs(first.status) => {
                    // Who removes one that runs has killed it.
                    return Ok(told(line.as_ref()).or(last).unwrap_or(137));
                }
                None => return Ok(last.unwrap_or(0)),
            };
            last = now.state.exit_code.or(last);
            let ended = now.state.finished.is_some() && now.state.finished != seen;
            let died = now.status == Status::Dead;
            match condition {
                Condition::NotRunning if !runs(now.status) => {
                    let code = if died { 137 } else { now.state.exit_code.unwrap_or(0) };
                    return Ok(code);
                }
                Condition::NextExit if ended => return Ok(now.state.exit_code.unwrap_or(0)),
                Condition::NextExit if died && runs(first.status) => return Ok(137),
                _ => {}
            }
            watch.wait(None).map_err(|e| Error::system("wait for the container", e))?;
        }
    }

    /// Waits until a container has ended; `false` where it has not at the deadline.
    fn ends(&self, before: &Info, watch: &mut Watch, deadline: Option<Instant>) -> Result<bool> {
        let container = match self.store.container(&before.record.id) {
            Err(e) if gone(&e) => return Ok(true),
            other => other?,
        };
        loop {
            match self.look(&container)? {
                Some(now) if matches!(now.status, Status::Running | Status::Paused | Status::Restarting) => {}
                _ => return Ok(true),
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            watch.wait(left).map_err(|e| Error::system("wait for the container", e))?;
        }
    }

    /// `None` where the container is gone.
    fn look(&self, container: &Container) -> Result<Option<Info>> {
        match crate::record::info(container) {
            Err(Error::Store(e)) if gone(&e) => Ok(None),
            other => other,
        }
    }

    /// Starts, one after the other, what is to run after a reboot. `started` is told the name of each, and how it went.
    pub fn containers_to_restart(&self) -> Result<Vec<String>> {
        let mut all = self.containers()?;
        // The oldest first: others may need them.
        all.reverse();
        let wanted = |info: &Info| {
            let idle = matches!(info.status, Status::Exited | Status::Dead);
            let stopped =
                self.store.container(&info.record.id).is_ok_and(|c| c.path().join(STOPPED).exists());
            let exit_code = info.state.exit_code.filter(|_| !info.state.restarting);
            idle && info.state.detached
                && crate::monitor::at_boot(info.record.workload.restart, exit_code, stopped)
        };
        Ok(all.into_iter().filter(|info| wanted(info)).map(|info| info.record.id).collect())
    }
}

/// The exit code that a monitor tells those who are connected with it, at its end.
fn told_exit(mut line: &UnixStream) -> Option<u8> {
    loop {
        match frames::receive(&mut line).ok()?? {
            (frames::Kind::Exit, code) => return code.first().copied(),
            _ => continue,
        }
    }
}

fn watch(container: &Container) -> Result<Watch> {
    Watch::folder(container.path()).map_err(|e| Error::file("watch", container.path(), e))
}

pub(crate) fn mark(container: &Container, name: &str) -> Result<()> {
    match container.write_volatile(name, format!("{}\n", now()).as_bytes()) {
        Err(e) if gone(&e) => Ok(()),
        other => Ok(other?),
    }
}

/// Sends a signal to the container's first process, if it is there still.
fn send(info: &Info, signal: i32) -> Result<()> {
    send_to(info.state.pid.zip(info.state.pid_start), signal)
}

/// Tells a monitor that waits to look again.
pub(crate) fn wake(info: &Info) -> Result<()> {
    send_to(info.state.monitor, WAKE)
}

/// Sends a signal to a process, if it is still the one that began then.
pub(crate) fn send_to(process: Option<(i32, u64)>, signal: i32) -> Result<()> {
    let Some((number, start)) = process else { return Ok(()) };
    let Some(pid) = Pid::from_raw(number) else { return Ok(()) };
    let failed = |e| Error::system("send a signal to the container", e);
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(failed)?,
    };
    // The number may have been given away between the two looks, but not after the descriptor was opened.
    if process_start(number) != Some(start) {
        return Ok(());
    }
    let signal = signal_of(signal)?;
    match pidfd_send_signal(fd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

fn signal_of(number: i32) -> Result<Signal> {
    if !(1..=64).contains(&number) {
        return Err(isles_spec::Error::new(format!("invalid signal '{number}'"))
            .with_hint("write a name, such as TERM or SIGINT, or a number up to 64")
            .into());
    }
    // SAFETY: the number is one of the kernel's; those that the C library keeps for itself go to another program.
    Ok(unsafe { Signal::from_raw_unchecked(number) })
}
