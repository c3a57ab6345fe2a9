//! The commands of a container's life (runtime.md#operations), each from the lock to the answer.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::config::{self, Config};
use super::hooks::{self, Place};
use super::state::{Folder, Record, Status, process_start, read_bounded};
use super::{Error, Result, bundle, console, gate, mounts, process, resources};
use crate::cgroup::{Group, Layout, Limits, Request};
use crate::setup::Gate;
use crate::spawn::{Child, Pending};

/// The runtime over one folder of containers.
pub struct Runtime {
    /// Where containers are remembered.
    pub root: PathBuf,
    /// Takes what is worth saying but no reason to stop.
    pub warn: Box<dyn Fn(&str)>,
}

/// What `create` is told besides the bundle.
#[derive(Debug, Default, Clone)]
pub struct CreateOptions {
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    /// A unix socket that takes the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: u32,
    pub no_new_keyring: bool,
    /// Count what the container uses even where it is not limited: engines read that from its groups by themselves.
    pub accounting: bool,
}

/// What `exec` is told.
#[derive(Debug, Default, Clone)]
pub struct ExecOptions {
    /// The process; [`Runtime::exec_process`] makes one of single options.
    pub process: config::Process,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub preserve_fds: u32,
    pub ignore_paused: bool,
    /// Below the container's control group.
    pub cgroup: Option<String>,
}

impl Runtime {
    /// The folder that is used where none is named: `/run/isles-oci` for root, else below `XDG_RUNTIME_DIR`. Root of
    /// a user namespace is an ordinary user, as engines without root run us, unless nothing says where its files go.
    pub fn default_root() -> PathBuf {
        let uid = rustix::process::geteuid();
        let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
        match own {
            Some(dir) if !crate::identity::is_real_root() => PathBuf::from(dir).join("isles-oci"),
            _ if uid.is_root() => "/run/isles-oci".into(),
            _ => std::env::temp_dir().join(format!("isles-oci-{}", uid.as_raw())),
        }
    }

    fn folder(&self, id: &str) -> Result<Folder> {
        Folder::new(&self.root, id)
    }

    fn load(&self, id: &str) -> Result<(Folder, Record)> {
        let folder = self.folder(id)?;
        let record = folder.load()?;
        Ok((folder, record))
    }

    /// Creates a container: its process is set up and waits for [`Runtime::start`].
    pub fn create(&self, id: &str, options: &CreateOptions) -> Result<Child> {
        let bundle = options.bundle.canonicalize().map_err(|source| Error::State {
            operation: "find the bundle",
            path: options.bundle.clone(),
            source,
        })?;
        let path = bundle.join("config.json");
        let text = read_bounded(&path, config::MAX_BYTES).map_err(|source| Error::State {
            operation: "read",
            path,
            source,
        })?;
        let config = Config::parse(&text)?;
        check_console(config.process.as_ref(), options.console_socket.as_deref())?;
        let folder = self.folder(id)?;
        let _lock = folder.create()?;
        // What a create that was killed left waiting, if anything, waits in its group.
        if let Ok(old) = saved_config(&folder) {
            clear(Group::open(&layout()?, &resources::group_path(&old.linux.cgroups_path, id))?)?;
        }
        folder.write("config.json", &text)?;
        let made = self.create_locked(&folder, &config, &bundle, options);
        if made.is_err() {
            folder.remove()?;
        }
        made
    }

    fn create_locked(
        &self,
        folder: &Folder,
        config: &Config,
        bundle: &Path,
        options: &CreateOptions,
    ) -> Result<Child> {
        let mut setup = bundle::plan(config, bundle, &mut |w| (self.warn)(&w))?;
        let mut record = Record {
            oci_version: config.oci_version.clone(),
            id: folder.id().to_owned(),
            pid: 0,
            pid_start: 0,
            bundle: bundle.to_owned(),
            rootfs: bundle::rootfs(config, bundle)?,
            created: now(),
            owner: rustix::process::getuid().as_raw().to_string(),
            cgroup: resources::group_path(&config.linux.cgroups_path, folder.id()),
            annotations: config.annotations.clone(),
        };
        let limits = match &config.linux.resources {
            Some(r) => resources::limits(r)?,
            None => Limits::default(),
        };
        let layout = layout()?;
        let request = Request {
            path: &record.cgroup,
            limits: &limits,
            accounting: options.accounting,
            best_effort: false,
        };
        let (group, _) = Group::create(&layout, &request)?;
        // The group is killed as a whole in the end, so nobody else may be in it.
        if !group.processes()?.is_empty() {
            let path = group.paths().next().unwrap_or_default();
            return Err(crate::cgroup::Error::Busy { path }.into());
        }
        let result = self.start_process(folder, config, &mut record, &mut setup, &group, options);
        if let Err(error) = &result {
            // Whoever was told of the container is told of its end (runtime.md#lifecycle, step 12).
            if record.pid != 0 {
                let state = state_json(&record, Status::Stopped);
                if let Err(e) = hooks::run("poststop", &config.hooks.poststop, &state, Place::Runtime) {
                    (self.warn)(&e.to_string());
                }
            }
            if let Err(e) = clear(group) {
                (self.warn)(&format!("after '{error}': {e}"));
            }
        }
        result
    }

    fn start_process(
        &self,
        folder: &Folder,
        config: &Config,
        record: &mut Record,
        setup: &mut crate::Setup,
        group: &Group,
        options: &CreateOptions,
    ) -> Result<Child> {
        let hooks = &config.hooks;
        let early = !hooks.prestart.is_empty()
            || !hooks.create_runtime.is_empty()
            || !hooks.create_container.is_empty();
        setup.cgroup = group.entry()?;
        if matches!(setup.namespaces.cgroup, crate::setup::Namespace::Host) {
            setup.mounts = mounts::own_cgroups(std::mem::take(&mut setup.mounts), group);
        }
        setup.stdio.further = process::preserved(options.preserve_fds)?;
        setup.new_keyring = !options.no_new_keyring;
        setup.gate = Gate {
            before_root: early,
            before_exec: Some(gate::make(&folder.fifo())?),
            // Root may join it in any case.
            open_to_owner: !(rustix::process::geteuid().is_root()
                || hooks.create_container.is_empty() && hooks.start_container.is_empty()),
            // Engines know from an error of create, not of start, that a command was not found.
            check_program: config.process.is_some(),
            late_report: Some(gate::make(&folder.report())?),
        };
        let mut pending = Pending::new(setup)?;
        record.pid = pending.pid();
        record.pid_start = process_start(record.pid).unwrap_or(0);
        if early {
            pending.wait_before_root()?;
            // Prestart hooks are older than the status "creating".
            let created = state_json(record, Status::Created);
            hooks::run("prestart", &hooks.prestart, &created, Place::Runtime)?;
            let state = state_json(record, Status::Creating);
            hooks::run("createRuntime", &hooks.create_runtime, &state, Place::Runtime)?;
            if !hooks.create_container.is_empty() {
                let pidfd = pidfd(record.pid)?;
                let place = Place::Container(&pidfd, hooks::others_namespaces(record.pid));
                hooks::run("createContainer", &hooks.create_container, &state, place)?;
            }
            pending.proceed()?;
        }
        let mut child = pending.wait_before_exec()?;
        let finish = |child: &mut Child| -> Result<()> {
            hand_over_terminal(child, options.console_socket.as_deref())?;
            hand_over_listener(config, record, child.seccomp_listener.take())?;
            if let Some(path) = &options.pid_file {
                write_pid_file(path, record.pid)?;
            }
            folder.save(record)
        };
        if let Err(error) = finish(&mut child) {
            let _ = child.kill(libc::SIGKILL);
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }

    /// Lets a created container's program run.
    pub fn start(&self, id: &str) -> Result<()> {
        let folder = self.folder(id)?;
        let _lock = folder.lock()?;
        let record = folder.load()?;
        expect(&folder, &record, "start", &[Status::Created])?;
        let config = saved_config(&folder)?;
        if config.process.is_none() {
            return Err(config::invalid("there is no process to start"));
        }
        let state = state_json(&record, Status::Created);
        if !config.hooks.start_container.is_empty() {
            let pidfd = pidfd(record.pid)?;
            let place = Place::Container(&pidfd, hooks::others_namespaces(record.pid));
            let ran = hooks::run("startContainer", &config.hooks.start_container, &state, place);
            if let Err(error) = ran {
                kill_and_wait(&record)?;
                let state = state_json(&record, Status::Stopped);
                self.warn_of(hooks::run("poststop", &config.hooks.poststop, &state, Place::Runtime));
                return Err(error);
            }
        }
        let report = gate::open_report(&folder)?;
        gate::open(&folder, &record)?;
        let program = config.process.as_ref().and_then(|p| p.args.first()).cloned().unwrap_or_default();
        if let Some(error) = gate::await_program(&folder, report, &record, &program)? {
            let state = state_json(&record, Status::Stopped);
            self.warn_of(hooks::run("poststop", &config.hooks.poststop, &state, Place::Runtime));
            return Err(error.into());
        }
        let state = state_json(&record, Status::Running);
        self.warn_of(hooks::run("poststart", &config.hooks.poststart, &state, Place::Runtime));
        Ok(())
    }

    fn warn_of(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            (self.warn)(&error.to_string());
        }
    }

    /// The container's state as JSON (runtime.md#state).
    pub fn state(&self, id: &str) -> Result<String> {
        let (folder, record) = self.load(id)?;
        Ok(state_json(&record, status(&folder, &record)?))
    }

    /// All containers with their states.
    pub fn list(&self) -> Result<Vec<(Record, Status)>> {
        let mut out = Vec::new();
        for folder in Folder::all(&self.root) {
            match folder.load() {
                Ok(record) => {
                    let status = status(&folder, &record)?;
                    out.push((record, status));
                }
                // Deleted meanwhile.
                Err(Error::NotFound(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Sends a signal to the container's process 1, or to all its processes.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let (folder, record) = self.load(id)?;
        let status = status(&folder, &record)?;
        if all {
            return Ok(Group::open(&layout()?, &record.cgroup)?.signal(signal)?);
        }
        if matches!(status, Status::Stopped | Status::Creating) {
            return Err(Error::Status { operation: "kill", id: id.to_owned(), status: status.name() });
        }
        // A container without a PID namespace of its own does not end with its first process.
        if signal == libc::SIGKILL && !saved_config(&folder)?.has_namespace("pid") {
            return Ok(Group::open(&layout()?, &record.cgroup)?.signal(signal)?);
        }
        send_signal(&record, signal)
    }

    /// Removes a container that has ended; by force also one that runs. By force, one that is not there is no error.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        let folder = self.folder(id)?;
        let _lock = match folder.lock() {
            Err(Error::NotFound(_)) if force => return Ok(()),
            other => other?,
        };
        let record = folder.load()?;
        let status = status(&folder, &record)?;
        if status != Status::Stopped && !force {
            return Err(Error::Status { operation: "delete", id: id.to_owned(), status: status.name() });
        }
        kill_and_wait(&record)?;
        clear(Group::open(&layout()?, &record.cgroup)?)?;
        let config = saved_config(&folder);
        folder.remove()?;
        let state = state_json(&record, Status::Stopped);
        match config {
            Ok(config) => {
                self.warn_of(hooks::run("poststop", &config.hooks.poststop, &state, Place::Runtime));
            }
            Err(e) => (self.warn)(&e.to_string()),
        }
        Ok(())
    }

    /// Freezes all processes.
    pub fn pause(&self, id: &str) -> Result<()> {
        let folder = self.folder(id)?;
        let _lock = folder.lock()?;
        let record = folder.load()?;
        expect(&folder, &record, "pause", &[Status::Created, Status::Running])?;
        Ok(Group::open(&layout()?, &record.cgroup)?.freeze()?)
    }

    /// Lets a paused container go on.
    pub fn resume(&self, id: &str) -> Result<()> {
        let folder = self.folder(id)?;
        let _lock = folder.lock()?;
        let record = folder.load()?;
        expect(&folder, &record, "resume", &[Status::Paused])?;
        Ok(Group::open(&layout()?, &record.cgroup)?.thaw()?)
    }

    /// The processes of the container, as the host counts them.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>> {
        let (_, record) = self.load(id)?;
        Ok(Group::open(&layout()?, &record.cgroup)?.processes()?)
    }

    /// What the container has used.
    pub fn stats(&self, id: &str) -> Result<crate::cgroup::Stats> {
        let (_, record) = self.load(id)?;
        Ok(Group::open(&layout()?, &record.cgroup)?.stats())
    }

    /// Changes limits; those that are not given stay.
    pub fn update(&self, id: &str, limits: &Limits) -> Result<()> {
        let folder = self.folder(id)?;
        let _lock = folder.lock()?;
        let record = folder.load()?;
        expect(&folder, &record, "update", &[Status::Created, Status::Running, Status::Paused])?;
        Group::open(&layout()?, &record.cgroup)?.update(limits, false)?;
        Ok(())
    }

    /// The process of a container, to be changed and given to [`Runtime::exec`].
    pub fn exec_process(&self, id: &str) -> Result<config::Process> {
        let (folder, _) = self.load(id)?;
        Ok(saved_config(&folder)?.process.unwrap_or_default())
    }

    /// Starts a further process in a running container.
    pub fn exec(&self, id: &str, options: &ExecOptions) -> Result<Child> {
        let (folder, record) = self.load(id)?;
        let allowed: &[Status] = if options.ignore_paused {
            &[Status::Created, Status::Running, Status::Paused]
        } else {
            &[Status::Created, Status::Running]
        };
        expect(&folder, &record, "exec in", allowed)?;
        options.process.check()?;
        check_console(Some(&options.process), options.console_socket.as_deref())?;
        let config = saved_config(&folder)?;
        let mut setup = bundle::join(&config, record.pid, &options.process, &mut |w| (self.warn)(&w))?;
        let path = match &options.cgroup {
            Some(below) => format!("{}/{below}", record.cgroup),
            None => record.cgroup.clone(),
        };
        setup.cgroup = Group::open(&layout()?, &path)?.entry()?;
        setup.stdio.further = process::preserved(options.preserve_fds)?;
        let mut child = crate::spawn(&setup)?;
        let finish = |child: &mut Child| -> Result<()> {
            hand_over_terminal(child, options.console_socket.as_deref())?;
            hand_over_listener(&config, &record, child.seccomp_listener.take())?;
            match &options.pid_file {
                Some(path) => write_pid_file(path, child.pid()),
                None => Ok(()),
            }
        };
        if let Err(error) = finish(&mut child) {
            let _ = child.kill(libc::SIGKILL);
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }
}

fn layout() -> Result<Layout> {
    Layout::detect().map_err(|source| Error::Io { operation: "find the control groups".into(), source })
}

fn saved_config(folder: &Folder) -> Result<Config> {
    Config::parse(&folder.read("config.json", config::MAX_BYTES)?)
}

/// The status, with paused containers told from running ones.
fn status(folder: &Folder, record: &Record) -> Result<Status> {
    let status = record.status(folder);
    if matches!(status, Status::Running | Status::Created)
        && Group::open(&layout()?, &record.cgroup)?.is_frozen()
    {
        return Ok(Status::Paused);
    }
    Ok(status)
}

fn expect(folder: &Folder, record: &Record, operation: &'static str, allowed: &[Status]) -> Result<()> {
    let status = status(folder, record)?;
    if allowed.contains(&status) {
        return Ok(());
    }
    Err(Error::Status { operation, id: record.id.clone(), status: status.name() })
}

/// Kills everything in a group and removes it.
fn clear(mut group: Group) -> Result<()> {
    if group.is_absent() {
        return Ok(());
    }
    group.kill()?;
    Ok(group.remove()?)
}

pub(super) fn pidfd(pid: i32) -> Result<OwnedFd> {
    let gone =
        || Error::Io { operation: format!("find process {pid}"), source: io::ErrorKind::NotFound.into() };
    let pid = Pid::from_raw(pid).ok_or_else(gone)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())
}

/// Through a descriptor, with a look at the start time in between: never a stranger with the same number.
fn send_signal(record: &Record, signal: i32) -> Result<()> {
    let fd = pidfd(record.pid)?;
    if !record.is_alive() {
        return Err(Error::Status { operation: "kill", id: record.id.clone(), status: "stopped" });
    }
    // SAFETY: the call takes numbers, and the signal information may be null.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, 0usize, 0) };
    if answer == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(Error::Io { operation: format!("send signal {signal} to container '{}'", record.id), source })
}

fn kill_and_wait(record: &Record) -> Result<()> {
    if !record.is_alive() {
        return Ok(());
    }
    let Ok(fd) = pidfd(record.pid) else { return Ok(()) };
    // A frozen process dies only when it is let go.
    let mut group = Group::open(&layout()?, &record.cgroup)?;
    match send_signal(record, libc::SIGKILL) {
        Ok(()) | Err(Error::Status { .. }) => {}
        Err(e) => return Err(e),
    }
    if group.is_frozen() {
        group.thaw()?;
    }
    loop {
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => continue,
            _ => return Ok(()),
        }
    }
}

fn check_console(process: Option<&config::Process>, socket: Option<&Path>) -> Result<()> {
    match (process.is_some_and(|p| p.terminal), socket) {
        (true, None) => {
            Err(config::invalid("process.terminal needs --console-socket to hand the terminal to"))
        }
        (false, Some(_)) => Err(config::invalid("--console-socket needs process.terminal")),
        _ => Ok(()),
    }
}

fn hand_over_terminal(child: &mut Child, socket: Option<&Path>) -> Result<()> {
    let (Some(terminal), Some(socket)) = (child.terminal.take(), socket) else { return Ok(()) };
    console::send(socket, b"/dev/ptmx", &[terminal.as_fd()]).map_err(|source| Error::State {
        operation: "send the terminal to",
        path: socket.to_owned(),
        source,
    })
}

/// The listener of a notifying filter goes to the agent at `listenerPath` (config-linux.md#seccomp).
fn hand_over_listener(config: &Config, record: &Record, listener: Option<OwnedFd>) -> Result<()> {
    let Some(fd) = listener else { return Ok(()) };
    let member = |name: &str| {
        let value = config.linux.seccomp.as_ref().and_then(|s| s.get(name));
        value.and_then(|v| v.as_str()).unwrap_or_default().to_owned()
    };
    let path = PathBuf::from(member("listenerPath"));
    if path.as_os_str().is_empty() {
        return Err(config::invalid("SCMP_ACT_NOTIFY is used, but linux.seccomp.listenerPath is not set"));
    }
    let state: serde_json::Value =
        serde_json::from_str(&state_json(record, Status::Creating)).unwrap_or_default();
    let message = serde_json::json!({
        "ociVersion": record.oci_version,
        "fds": ["seccompFd"],
        "pid": record.pid,
        "metadata": member("listenerMetadata"),
        "state": state,
    });
    console::send(&path, message.to_string().as_bytes(), &[fd.as_fd()]).map_err(|source| Error::State {
        operation: "send the seccomp listener to",
        path,
        source,
    })
}

/// Replaced by rename, so that whoever waits for it never reads half a number.
fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let error = |source| Error::State { operation: "write", path: path.to_owned(), source };
    let name = path.file_name().ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
    let temporary = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    fs::write(&temporary, pid.to_string()).and_then(|()| fs::rename(&temporary, path)).map_err(error)
}

fn state_json(record: &Record, status: Status) -> String {
    let pid = if status == Status::Stopped { 0 } else { record.pid };
    serde_json::json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status.name(),
        "pid": pid,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": record.owner,
        "annotations": record.annotations,
    })
    .to_string()
}

/// The time in RFC 3339.
pub fn now() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    isles_spec::time::rfc3339_nanoseconds(u64::try_from(now.as_nanos()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_needs_somebody_to_take_it() {
        let process = config::Process { terminal: true, ..config::Process::default() };
        assert!(check_console(Some(&process), None).is_err());
        assert!(check_console(None, Some(Path::new("/x"))).is_err());
        assert!(check_console(Some(&process), Some(Path::new("/x"))).is_ok());
    }
}
