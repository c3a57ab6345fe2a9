//! Acting on a whole group: its processes, freezing, killing, waiting for it to be empty, removing it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

use super::group::{Group, Member};
use super::{Error, Layout, Result, files};

/// How long freezing, killing and emptying may take before it is an error.
const PATIENCE: Duration = Duration::from_secs(10);

impl Group {
    /// The processes of the group and of the groups below it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(member) = self.unified.as_ref().or(self.v1.first()) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect(&member.dir, &mut pids).map_err(|e| member.error("read", e))?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops every process where it stands. Returns when all stand.
    pub fn freeze(&mut self) -> Result<()> {
        self.set_frozen(true)
    }

    pub fn thaw(&mut self) -> Result<()> {
        self.set_frozen(false)
    }

    pub fn is_frozen(&self) -> bool {
        let v2 = self.unified.as_ref().and_then(|m| files::read(&m.dir, "cgroup.freeze").ok());
        let v1 = self.v1_member("freezer").and_then(|m| files::read(&m.dir, "freezer.state").ok());
        v2.is_some_and(|s| s.trim() == "1") || v1.is_some_and(|s| s.trim() != "THAWED")
    }

    fn set_frozen(&mut self, frozen: bool) -> Result<()> {
        if let Some(member) = self.unified.as_ref().filter(|m| files::exists(&m.dir, "cgroup.freeze")) {
            let value = if frozen { "1" } else { "0" };
            let verb = if frozen { "freeze" } else { "thaw" };
            files::write(&member.dir, "cgroup.freeze", value).map_err(|e| member.error(verb, e))?;
            // An empty group is never reported as frozen.
            let reached =
                |text: &str| field(text, "frozen") == Some(value) || field(text, "populated") == Some("0");
            return await_events(member, reached);
        }
        if self.v1_member("freezer").is_none() {
            let hierarchy = self.layout.hierarchy("freezer").cloned().ok_or_else(|| Error::NoController {
                limit: "running",
                controller: "freezer".into(),
                hint: "mount cgroup v2, or the freezer hierarchy of v1".into(),
            })?;
            let pids = self.processes()?;
            self.join(&hierarchy)?;
            for pid in pids {
                // Those that ended meanwhile need no freezing.
                self.v1_member("freezer").map(|m| files::write(&m.dir, "cgroup.procs", &pid.to_string()));
            }
        }
        let Some(member) = self.v1_member("freezer") else { return Ok(()) };
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A process in the middle of fork can need a second request.
            files::write(&member.dir, "freezer.state", wanted).map_err(|e| member.error("freeze", e))?;
            let state = files::read(&member.dir, "freezer.state").map_err(|e| member.error("read", e))?;
            if state.trim() == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(member.error("freeze", io::ErrorKind::TimedOut.into()));
            }
            pause();
        }
    }

    /// Kills every process of the group, also those that are born meanwhile, and frozen ones.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(member) = self.unified.as_ref() {
            match files::write(&member.dir, "cgroup.kill", "1") {
                Ok(()) => return Ok(()),
                // Before Linux 5.14.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(member.error("kill", e)),
            }
        }
        let frozen = self.freeze().is_ok();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pids = self.processes()?;
            self.signal_each(&pids, libc::SIGKILL);
            if frozen {
                return self.thaw();
            }
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.busy());
            }
            pause();
        }
    }

    /// Sends a signal to every process of the group.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.signal_each(&self.processes()?, signal);
        Ok(())
    }

    fn signal_each(&self, pids: &[i32], signal: i32) {
        for pid in pids {
            // SAFETY: a plain system call; a process that is gone is no error here.
            unsafe { libc::kill(*pid, signal) };
        }
    }

    /// Removes the group, waiting for its processes to end; they must have been killed before.
    pub fn remove(mut self) -> Result<()> {
        // The v2 directory last: its events are what the others can wait for.
        let members: Vec<Member> =
            std::mem::take(&mut self.v1).into_iter().chain(self.unified.take()).collect();
        let deadline = Instant::now() + PATIENCE;
        for member in members {
            loop {
                match remove_tree(&member) {
                    Ok(()) => break,
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                        await_end(&member, deadline)
                    }
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                        return Err(Error::Busy { path: member.full_path() });
                    }
                    Err(e) => return Err(member.error("remove", e)),
                }
            }
        }
        Ok(())
    }

    fn busy(&self) -> Error {
        Error::Busy { path: self.paths().next().unwrap_or_default() }
    }

    /// Removes what a crash left: every group beside ours whose name begins with `prefix` and that `keep` does
    /// not know. Its processes are killed.
    pub fn collect(layout: &Layout, prefix: &str, keep: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let probe = Group::open(layout, "isles-probe-of-places")?;
        let mut names: Vec<String> = Vec::new();
        for parent in probe.parents() {
            let Ok(dir) = files::open_mount(&parent) else { continue };
            names.extend(files::child_dirs(&dir).unwrap_or_default());
        }
        names.sort_unstable();
        names.dedup();
        names.retain(|n| n.starts_with(prefix) && !keep(n));
        for name in &names {
            let mut group = Group::open(layout, name)?;
            group.kill()?;
            group.remove()?;
        }
        Ok(names)
    }

    /// A descriptor that becomes readable, or has an exception, when the group runs out of memory.
    pub fn watch_oom(&self) -> Result<OomWatch> {
        if let Some(member) = self.v1_member("memory") {
            let error = |e| member.error("watch", e);
            let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
                .map_err(|e| error(e.into()))?;
            let control =
                files::open_file(&member.dir, "memory.oom_control", OFlags::RDONLY).map_err(error)?;
            use std::os::fd::AsRawFd;
            let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
            files::write(&member.dir, "cgroup.event_control", &line).map_err(error)?;
            return Ok(OomWatch { fd: event, flags: PollFlags::IN });
        }
        let missing = || Error::NoController {
            limit: "memory",
            controller: "memory".into(),
            hint: "memory is only watched where it is limited or counted".into(),
        };
        let member = self.unified.as_ref().ok_or_else(missing)?;
        let fd = files::open_file(&member.dir, "memory.events", OFlags::RDONLY).map_err(|_| missing())?;
        Ok(OomWatch { fd, flags: PollFlags::PRI })
    }

    /// How many processes the kernel has killed because the group ran out of memory.
    pub fn oom_kills(&self) -> u64 {
        let text = match (self.v1_member("memory"), &self.unified) {
            (Some(m), _) => files::read(&m.dir, "memory.oom_control"),
            (None, Some(m)) => files::read(&m.dir, "memory.events"),
            _ => return 0,
        };
        text.ok().and_then(|t| field(&t, "oom_kill")?.parse().ok()).unwrap_or(0)
    }

    fn parents(&self) -> Vec<std::path::PathBuf> {
        self.places().into_iter().filter_map(|p| p.parent().map(Into::into)).collect()
    }
}

/// See [`Group::watch_oom`].
#[derive(Debug)]
pub struct OomWatch {
    pub fd: OwnedFd,
    /// What to poll for.
    pub flags: PollFlags,
}

/// The value of a `name value` line.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim)
}

fn collect(dir: impl AsFd, pids: &mut Vec<i32>) -> io::Result<()> {
    let listed = files::read(&dir, "cgroup.procs")?;
    pids.extend(listed.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    for name in files::child_dirs(&dir)? {
        if let Ok(child) = files::open_dir(&dir, &name) {
            // A group that vanishes meanwhile has no processes.
            let _ = collect(child, pids);
        }
    }
    Ok(())
}

fn remove_tree(member: &Member) -> io::Result<()> {
    fn below(dir: &OwnedFd) -> io::Result<()> {
        for name in files::child_dirs(dir)? {
            if let Ok(child) = files::open_dir(dir, &name) {
                below(&child)?;
                remove(dir, &name)?;
            }
        }
        Ok(())
    }
    fn remove(dir: &OwnedFd, name: &str) -> io::Result<()> {
        match files::remove_dir(dir, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
    match below(&member.dir) {
        // The directory itself is gone.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => return Ok(()),
        other => other?,
    }
    let path = member.full_path();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    match files::open_mount(parent) {
        Ok(parent) => remove(&parent, &name.to_string_lossy()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Waits until a v2 group's `cgroup.events` say what is wanted.
fn await_events(member: &Member, reached: impl Fn(&str) -> bool) -> Result<()> {
    let error = |e| member.error("watch", e);
    let deadline = Instant::now() + PATIENCE;
    let events = files::open_file(&member.dir, "cgroup.events", OFlags::RDONLY).map_err(error)?;
    loop {
        let mut text = [0u8; 256];
        let n = rustix::io::pread(&events, &mut text, 0).map_err(|e| error(e.into()))?;
        if reached(&String::from_utf8_lossy(&text[..n])) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(error(io::ErrorKind::TimedOut.into()));
        }
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        let _ = rustix::event::poll(&mut fds, Some(&timespec(left)));
    }
}

/// Waits until a process of the group ends, or until there is none.
fn await_end(member: &Member, deadline: Instant) {
    if member.controllers.is_empty() && files::exists(&member.dir, "cgroup.events") {
        let _ = await_events(member, |text| field(text, "populated") == Some("0"));
        return;
    }
    let mut pids = Vec::new();
    let _ = collect(&member.dir, &mut pids);
    for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
        let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timespec(left)));
    }
    // The last references to an empty v1 group go away without any event.
    pause();
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}
