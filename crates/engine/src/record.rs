//! What is written down about a container, and what can be said of it from that: `config.json` and `state.json` in its
//! folder, and the lock, which tells whether its monitor lives.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use isles_sandbox::cgroup::{Group, Layout};
use isles_spec::image::Healthcheck;
use isles_spec::{Digest, Pod, Port, Workload};
use isles_store::{Container, Remains};
use serde::{Deserialize, Serialize};

use crate::control::{send_to, wake};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::health::{Checks, FILE as HEALTH, Health};
use crate::monitor::{DOOMED, PAUSED, STOPPED};
use crate::start::Fence;

const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
/// What names of steps' control groups have before the process that runs them.
const STEP: &str = "step-";

/// A container as it was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: String,
    /// The image ID, where it stands on an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<Digest>,
    /// The image as the caller named it, or the folder.
    pub image: String,
    /// The words of the process.
    pub command: Vec<String>,
    /// How its health is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Healthcheck>,
    /// The signal by which the image says that it is to be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_stop_signal: Option<String>,
    /// Nanoseconds since 1970.
    pub created: u64,
    pub workload: Workload,
}

/// What became of it so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub pid: Option<i32>,
    /// When the process began, in clock ticks since boot, so that a later process of the same number is not taken
    /// for it (proc_pid_stat(5)).
    pub pid_start: Option<u64>,
    /// The process that stays with it, and when that began.
    pub monitor: Option<(i32, u64)>,
    /// Nanoseconds since 1970.
    pub started: Option<u64>,
    pub finished: Option<u64>,
    pub exit_code: Option<u8>,
    /// The kernel killed some of its processes because its memory was used up.
    pub out_of_memory: bool,
    /// How often its monitor has started it again.
    pub restarts: u32,
    /// It has ended, and its monitor waits to start it again.
    pub restarting: bool,
    /// Its monitor is a process of its own, to which others can attach.
    pub detached: bool,
    /// Why it could not be started.
    pub error: String,
    /// The published ports, as they are on the host.
    pub ports: Vec<Port>,
}

/// The stages of a container's life, by Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Created,
    Running,
    /// Its processes are kept from running.
    Paused,
    /// It has ended, and will be started again.
    Restarting,
    Exited,
    /// Its monitor died; the process died with it, and nobody saw how.
    Dead,
}

/// A container and its state.
#[derive(Debug, Clone)]
pub struct Info {
    pub record: Record,
    pub state: State,
    pub status: Status,
    /// Where it is looked at.
    pub health: Option<Health>,
}

impl Info {
    /// Whether it only owns the namespaces of a pod.
    pub fn is_of_pod(&self) -> bool {
        matches!(self.record.workload.pod, Some(Pod::Owner(_)))
    }

    /// Whether there are processes of it, be they kept from running or not.
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running | Status::Paused)
    }
}

/// Nanoseconds since 1970, for people to read and for files to be told apart by: it jumps, so nothing waits by it.
#[allow(clippy::disallowed_methods)]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// How long ago a process began that began so many ticks after the boot, whatever became of the clock since.
pub(crate) fn age(start: u64) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
    now.saturating_sub(Duration::from_millis(start * (1000 / crate::usage::TICKS)))
}

impl Record {
    /// `None` where the folder has no record yet, or not any more.
    pub(crate) fn load(container: &Container) -> Result<Option<Record>> {
        let Some(text) = container.read(CONFIG)? else { return Ok(None) };
        let bad = |source| Error::BadState { id: container.id().to_owned(), source };
        serde_json::from_slice(&text).map(Some).map_err(bad)
    }

    /// The signal that asks it to end.
    pub fn stop_signal(&self) -> i32 {
        let name = self.workload.stop_signal.as_deref().or(self.image_stop_signal.as_deref());
        name.and_then(|name| isles_sandbox::oci::parse_signal(name).ok()).unwrap_or(libc::SIGTERM)
    }

    /// How long it has to end by itself.
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.workload.stop_timeout.unwrap_or(10))
    }

    pub(crate) fn save(&self, container: &Container) -> Result<()> {
        Ok(container.write_volatile(CONFIG, &json(self)?)?)
    }
}

impl State {
    /// The first state where nothing was written yet.
    pub(crate) fn load(container: &Container) -> Result<State> {
        let Some(text) = container.read(STATE)? else { return Ok(State::default()) };
        let bad = |source| Error::BadState { id: container.id().to_owned(), source };
        serde_json::from_slice(&text).map_err(bad)
    }

    pub(crate) fn save(&self, container: &Container) -> Result<()> {
        Ok(container.write_volatile(STATE, &json(self)?)?)
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::system("write down the container", std::io::Error::other(e)))
}

/// When a process began; `None` where it is gone.
pub fn process_start(pid: i32) -> Option<u64> {
    process(pid).map(|(began, _)| began)
}

/// When a process began that has not ended: a zombie is only there for its parent to hear how it did.
pub fn living_since(pid: i32) -> Option<u64> {
    process(pid).and_then(|(began, has_ended)| (!has_ended).then_some(began))
}

/// When a process began, and whether it has ended.
fn process(pid: i32) -> Option<(u64, bool)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; after it come the state and numbers, and the start is the 22nd field.
    let rest = stat.rsplit_once(')')?.1.trim_start();
    Some((rest.split_whitespace().nth(19)?.parse().ok()?, rest.starts_with(['Z', 'X'])))
}

/// The monitor of some container that runs now.
pub(crate) fn some_monitor(store: &isles_store::Store) -> Option<i32> {
    store.containers().ok()?.iter().find_map(|id| {
        let text = store.container(id).ok()?.read(STATE).ok()??;
        let (pid, start) = serde_json::from_slice::<State>(&text).ok()?.monitor?;
        (process_start(pid) == Some(start)).then_some(pid)
    })
}

impl Engine {
    /// All containers, newest first. One that vanishes meanwhile, or cannot be read, is left out.
    pub fn containers(&self) -> Result<Vec<Info>> {
        let mut all: Vec<Info> = self
            .store
            .containers()?
            .iter()
            .filter_map(|id| info(&self.store.container(id).ok()?).ok().flatten())
            .collect();
        all.sort_by(|a, b| {
            b.record.created.cmp(&a.record.created).then_with(|| a.record.id.cmp(&b.record.id))
        });
        Ok(all)
    }

    /// Removes a container and what it wrote; with `force` it is killed first where it runs. Returns its ID.
    pub fn remove(&self, name: &str, force: bool) -> Result<String> {
        let (id, remains) = self.set_aside(name, force)?;
        remains.delete()?;
        Ok(id)
    }

    /// As [`Engine::remove`], without deleting what it wrote.
    pub(crate) fn set_aside(&self, name: &str, force: bool) -> Result<(String, Remains)> {
        let found = self.find(name)?;
        if let Some(Pod::Owner(_)) = found.record.workload.pod {
            return Err(Error::IsPod { name: name.to_owned(), doing: "removed" });
        }
        self.set_found_aside(&found, name, force)
    }

    /// Kills those of the containers that run, and waits for none of them: the kernel takes many apart at once in the time
    /// that it takes for one. Whoever removes them then tells what went wrong.
    pub fn doom(&self, names: &[String]) {
        for name in names {
            let Ok(found) = self.find(name) else { continue };
            let is_pod = matches!(found.record.workload.pod, Some(Pod::Owner(_)));
            if found.status != Status::Running || is_pod {
                continue;
            }
            let Ok(container) = self.store.container(&found.record.id) else { continue };
            if doom(&container).is_ok() {
                let _ = send_to(found.state.pid.zip(found.state.pid_start), libc::SIGKILL);
            }
        }
    }

    /// As [`Engine::remove`], whatever it is.
    pub(crate) fn remove_found(&self, found: &Info, name: &str, force: bool) -> Result<String> {
        let (id, remains) = self.set_found_aside(found, name, force)?;
        remains.delete()?;
        Ok(id)
    }

    fn set_found_aside(&self, found: &Info, name: &str, force: bool) -> Result<(String, Remains)> {
        let id = found.record.id.clone();
        let nothing = |id| Ok((id, Remains::default()));
        let mut container = match self.store.container(&id) {
            Err(e) if gone(&e) => return nothing(id),
            other => other?,
        };
        match container.try_lock() {
            Ok(true) => {}
            // Its monitor has written down its end, and is about to let go of it.
            Ok(false) if found.status == Status::Exited && !force => match container.lock() {
                Err(e) if gone(&e) => return nothing(id),
                other => other?,
            },
            Ok(false) if force => {
                if !self.end(&mut container)? {
                    return nothing(id);
                }
            }
            Ok(false) => return Err(Error::Running { name: name.to_owned() }),
            Err(e) if gone(&e) => return nothing(id),
            Err(e) => return Err(e.into()),
        }
        Fence::leftover(&self.group_name(&id))?.remove()?;
        self.release_networks(&id)?;
        self.note(&found.record, "destroy", &[]);
        let remains = match container.set_aside() {
            Err(e) if gone(&e) => Remains::default(),
            other => other?,
        };
        self.forget_name(&found.record);
        Ok((id, remains))
    }

    /// Kills a running container until its monitor lets go of the lock: it sees the end, and writes it down or removes the
    /// container, in which case this is `false`. A program that is just being started has no number yet.
    fn end(&self, container: &mut Container) -> Result<bool> {
        const PAUSE: Duration = Duration::from_millis(5);
        const LOOKS: u32 = 20;
        /// A monitor that has not let go after this time is stopped, or hangs.
        const PATIENCE: Duration = Duration::from_secs(10);
        let begin = Instant::now();
        doom(container)?;
        loop {
            let mut program = None;
            match info(container) {
                Ok(Some(found)) => {
                    let state = &found.state;
                    program = state.pid.zip(state.pid_start);
                    match found.status {
                        Status::Restarting => wake(&found)?,
                        Status::Paused => self.thaw(container)?,
                        _ => {}
                    }
                    send_to(program, libc::SIGKILL)?;
                    if begin.elapsed() > PATIENCE {
                        send_to(state.monitor, libc::SIGKILL)?;
                    }
                }
                Ok(None) => {}
                Err(Error::Store(e)) if gone(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
            match container.try_lock() {
                Ok(true) => return Ok(true),
                Ok(false) => {
                    // Its monitor lets go of it before it ends itself.
                    await_end(program, PAUSE);
                    for _ in 0..LOOKS {
                        match container.try_lock() {
                            Ok(false) => await_monitor(container, PAUSE / LOOKS),
                            _ => break,
                        }
                    }
                }
                Err(e) if gone(&e) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Removes what dead monitors left behind. Returns the IDs of the containers.
    pub fn collect(&self) -> Result<Vec<String>> {
        let removed = self.store.collect()?;
        for id in &removed {
            Fence::leftover(&self.group_name(id))?.remove()?;
        }
        if !removed.is_empty() {
            self.collect_volumes()?;
            self.collect_networks()?;
        }
        Ok(removed)
    }

    /// As [`Engine::collect`], and looks for control groups that no container and no step of a build has any more.
    pub fn collect_all(&self) -> Result<Vec<String>> {
        let removed = self.collect()?;
        self.collect_names()?;
        self.collect_volumes()?;
        self.collect_networks()?;
        let layout = Layout::detect().map_err(|e| Error::system("look at the control groups", e))?;
        let prefix = self.group_name("");
        let alive = |all: &[String], id: &str| {
            // They are sorted, and whoever begins with the ID stands together.
            let begin = all.partition_point(|c| c.as_str() < id);
            let mut same = all[begin..].iter().take_while(|c| c.starts_with(id));
            same.any(|c| self.store.container(c).is_ok_and(|container| container.is_locked()))
        };
        let listed = || {
            let mut all = self.store.containers()?;
            all.sort();
            Ok::<_, isles_store::Error>(all)
        };
        let known = std::cell::OnceCell::new();
        // A container is there, and locked, before its group is: one that is not known is looked for once more, after the
        // groups were listed.
        let living = |id: &str| {
            let known: &Vec<String> = known.get_or_init(|| listed().unwrap_or_default());
            // Not known is not dead.
            alive(known, id) || listed().map_or(true, |now| alive(&now, id))
        };
        Group::collect(&layout, &prefix, &|name: &str| {
            let id = name.strip_prefix(&prefix).unwrap_or(name);
            match id.strip_prefix(STEP) {
                Some(step) => process_of_step(step, pid_namespace())
                    .is_none_or(|(pid, start)| process_start(pid) == Some(start)),
                None => living(id),
            }
        })?;
        Ok(removed)
    }

    /// The name of a control group for a step of a build, which lasts as long as this process at most.
    pub(crate) fn step_group_name(&self) -> Result<String> {
        let pid = std::process::id().cast_signed();
        let start = process_start(pid).unwrap_or_default();
        let (prefix, space, id) = (self.group_name(""), pid_namespace(), crate::name::id()?);
        Ok(format!("{prefix}{STEP}{space}-{pid}-{start}-{}", &id[..16]))
    }

    /// A container whose start, where one is under way, has been written down: what its program says may be heard before.
    pub(crate) fn begun(&self, name: &str) -> Result<Info> {
        const PAUSE: Duration = Duration::from_millis(1);
        /// A monitor that has not written it after this time is stopped, or hangs.
        const PATIENCE: Duration = Duration::from_secs(10);
        let begin = Instant::now();
        loop {
            let found = self.find(name)?;
            let locked =
                || self.store.container(&found.record.id).is_ok_and(|container| container.is_locked());
            let under_way = found.status == Status::Created && locked();
            if !under_way || begin.elapsed() > PATIENCE {
                return Ok(found);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The process 1 of a running container.
    pub(crate) fn pid_of(&self, name: &str) -> Result<i32> {
        let found = self.begun(name)?;
        let alive = |pid: &i32| process_start(*pid).is_some_and(|start| Some(start) == found.state.pid_start);
        found
            .state
            .pid
            .filter(alive)
            .ok_or_else(|| Error::impossible(format!("joining container {name}"), "it is not running"))
    }

    /// The name of a container's control group: of this store only, because others collect beside us.
    pub(crate) fn group_name(&self, id: &str) -> String {
        // A path may mean another folder in another mount namespace.
        let (device, number) =
            std::fs::metadata(self.store.root()).map_or((0, 0), |found| (found.dev(), found.ino()));
        let path = self.store.root().as_os_str().as_encoded_bytes();
        let parts = [path, &device.to_le_bytes(), &number.to_le_bytes()];
        let store = isles_store::Store::cache_key(parts);
        format!("isles-{}-{}", &store.hex()[..8], &id[..id.len().min(32)])
    }
}

/// Whether an error says that the container vanished meanwhile.
pub(crate) fn gone(error: &isles_store::Error) -> bool {
    match error {
        isles_store::Error::NoContainer { .. } => true,
        isles_store::Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Waits until a container's monitor has ended, for this time at most. By its descriptor: closing a watch of files costs the
/// kernel's readers' time (SRCU), some 20 ms.
fn await_monitor(container: &Container, time: Duration) {
    let monitor = State::load(container).ok().and_then(|state| state.monitor);
    if !await_end(monitor, time) {
        std::thread::sleep(time.min(PAUSE_WITHOUT));
    }
}

/// Waits until a process has ended, for this time at most. `false` where it is not there.
fn await_end(process: Option<(i32, u64)>, time: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let process = process.filter(|(pid, start)| process_start(*pid) == Some(*start));
    let open = |(pid, _)| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
    let Some(pidfd) = process.and_then(open) else { return false };
    let timeout = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
    true
}

/// Says that a container is about to be killed and removed, for its monitor.
fn doom(container: &Container) -> Result<()> {
    match container.write_volatile(STOPPED, format!("{}\n{DOOMED}\n", now()).as_bytes()) {
        Err(e) if gone(&e) => Ok(()),
        other => Ok(other?),
    }
}

/// Between two looks, where nobody is known whose end could be waited for.
const PAUSE_WITHOUT: Duration = Duration::from_millis(1);

/// The process that `NAMESPACE-PID-START-…` names; `None` where it is of another PID namespace, and cannot be looked at.
fn process_of_step(name: &str, namespace: u64) -> Option<(i32, u64)> {
    let mut parts = name.split('-');
    let own = parts.next()?.parse() == Ok(namespace);
    let process = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    own.then_some(process)
}

/// The PID namespace in which this process counts.
fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino())
}

/// `None` where the folder has no record yet, or not any more.
pub(crate) fn info(container: &Container) -> Result<Option<Info>> {
    let Some(record) = Record::load(container)? else { return Ok(None) };
    // The lock first: a container that ends in between is then taken for one that still runs, not for a dead one.
    let locked = container.is_locked();
    let state = State::load(container)?;
    // Removed in between, it is not one that has not been started.
    if state.pid.is_none() && state.exit_code.is_none() && !container.path().exists() {
        return Ok(None);
    }
    let is = |mark: &str| container.path().join(mark).exists();
    let status = match (&state, locked) {
        (State { restarting: true, .. }, true) => Status::Restarting,
        // Nobody is there to start it again.
        (State { restarting: true, .. }, false) => Status::Dead,
        (State { exit_code: Some(_), .. }, _) => Status::Exited,
        (State { pid: Some(_), .. }, true) if is(PAUSED) => Status::Paused,
        (State { pid: Some(_), .. }, true) => Status::Running,
        (State { pid: Some(_), .. }, false) => Status::Dead,
        (_, true) => Status::Created,
        (_, false) if record.workload.remove && is("ephemeral") => Status::Dead,
        (_, false) => Status::Created,
    };
    let looked_at = record.health.is_some() && state.detached;
    let health = match looked_at.then(|| container.read(HEALTH)).transpose()?.flatten() {
        Some(text) => serde_json::from_slice(&text).ok(),
        // Its monitor is about to look for the first time.
        None => record.health.as_ref().filter(|_| looked_at).and_then(Checks::new).map(|_| Health::default()),
    };
    Ok(Some(Info { record, state, status, health }))
}
