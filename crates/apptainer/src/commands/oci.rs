//! `apptainer oci`: containers from OCI bundles, by the OCI runtime that `isles oci` is, for root.
//!
//! No process stays with a container. Its streams are those that `create` was called with, or, with `--log-path`, a log,
//! for which a process reads what comes until the container ends. So there is nobody whom `attach` could speak with.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use isles_sandbox::background::{Side, split};
use isles_sandbox::oci::{self, CreateOptions, ExecOptions, Runtime, config, state};
use isles_spec::time::rfc3339_nanoseconds;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;

static BUNDLE: Flag =
    Flag::text("bundle", "path", "specify the OCI bundle path (required)").short('b').env(&["BUNDLE"]);
static SYNC_SOCKET: Flag =
    Flag::text("sync-socket", "path", "write the state to this unix socket").short('s').env(&["SYNC_SOCKET"]);
static EMPTY_PROCESS: Flag = Flag::switch("empty-process", "").env(&["EMPTY_PROCESS"]).hidden();
static LOG_PATH: Flag = Flag::text("log-path", "path", "write what the container prints into this file")
    .short('l')
    .env(&["LOG_PATH"]);
static LOG_FORMAT: Flag =
    Flag::text("log-format", "format", "of that file: basic, kubernetes (default) or json")
        .env(&["LOG_FORMAT"]);
static PID_FILE: Flag = Flag::text("pid-file", "path", "specify the pid file").env(&["PID_FILE"]);
static SIGNAL: Flag = Flag::text("signal", "signal", "signal sent to the container (default SIGTERM)")
    .short('s')
    .env(&["SIGNAL"]);
static FORCE: Flag = Flag::switch("force", "kill container process with SIGKILL").short('f').env(&["FORCE"]);
static TIMEOUT: Flag = Flag::number("timeout", "timeout in second before killing container").short('t');
static FROM_FILE: Flag = Flag::text(
    "from-file",
    "path",
    "specify path to OCI JSON cgroups resource file ('-' to read from STDIN)",
)
.short('f')
.env(&["FROM_FILE"]);

static OF_CREATION: [&Flag; 6] = [&BUNDLE, &EMPTY_PROCESS, &LOG_FORMAT, &LOG_PATH, &PID_FILE, &SYNC_SOCKET];

/// A line of a log is cut where it is longer.
const LONGEST_LINE: u64 = 1 << 20;

pub static COMMAND: Command = Command {
    usage: "oci",
    short: "Manage OCI containers",
    long: "Containers from OCI bundles, as `isles oci` runs them: the same containers are known to both. For root.",
    commands: &[
        &ATTACH, &CREATE, &DELETE, &EXEC, &KILL, &MOUNT, &PAUSE, &RESUME, &RUN, &START, &STATE, &UMOUNT,
        &UPDATE,
    ],
    ..Command::EMPTY
};

static CREATE: Command = Command {
    usage: "create -b <bundle_path> [create options...] <container_ID>",
    short: "Create a container from a bundle directory",
    long: "The container has the streams of this command, unless --log-path names a file for its output.",
    examples: "apptainer oci create -b ~/bundle --log-path log mycontainer",
    flags: &[&OF_CREATION],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: create,
    ..Command::EMPTY
};

static RUN: Command = Command {
    usage: "run -b <bundle_path> [run options...] <container_ID>",
    short: "Create/start/attach/delete a container from a bundle directory",
    examples: "apptainer oci run -b ~/bundle mycontainer",
    flags: &[&OF_CREATION],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

static START: Command = Command {
    usage: "start <container_ID>",
    short: "Start container process",
    arity: Arity::Exactly(1),
    run: |cx| {
        let runtime = runtime(cx, "start")?;
        own_program()?;
        Ok(runtime.start(&cx.arguments[0]).map(|()| 0)?)
    },
    ..Command::EMPTY
};

static STATE: Command = Command {
    usage: "state <container_ID>",
    short: "Query state of a container",
    flags: &[&[&SYNC_SOCKET]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: print_state,
    ..Command::EMPTY
};

static KILL: Command = Command {
    usage: "kill [kill options...] <container_ID>",
    short: "Kill a container",
    examples: "apptainer oci kill mycontainer INT\napptainer oci kill -t 5 mycontainer",
    flags: &[&[&FORCE, &SIGNAL, &TIMEOUT]],
    arity: Arity::AtLeast(1),
    interspersed: true,
    run: kill,
    ..Command::EMPTY
};

static DELETE: Command = Command {
    usage: "delete <container_ID>",
    short: "Delete container",
    arity: Arity::Exactly(1),
    run: delete,
    ..Command::EMPTY
};

static EXEC: Command = Command {
    usage: "exec <container_ID> <command> <args>",
    short: "Execute a command within container",
    arity: Arity::AtLeast(2),
    run: exec,
    ..Command::EMPTY
};

static UPDATE: Command = Command {
    usage: "update [update options...] <container_ID>",
    short: "Update container cgroups resources",
    flags: &[&[&FROM_FILE]],
    arity: Arity::AtLeast(1),
    interspersed: true,
    run: update,
    ..Command::EMPTY
};

static PAUSE: Command = Command {
    usage: "pause <container_ID>",
    short: "Suspends all processes inside the container",
    arity: Arity::Exactly(1),
    run: |cx| Ok(runtime(cx, "pause")?.pause(&cx.arguments[0]).map(|()| 0)?),
    ..Command::EMPTY
};

static RESUME: Command = Command {
    usage: "resume <container_ID>",
    short: "Resumes all processes previously paused inside the container",
    arity: Arity::Exactly(1),
    run: |cx| Ok(runtime(cx, "resume")?.resume(&cx.arguments[0]).map(|()| 0)?),
    ..Command::EMPTY
};

static ATTACH: Command = Command {
    usage: "attach <container_ID>",
    short: "Not supported: nobody stays with a container who could pass its streams on",
    arity: Arity::Exactly(1),
    run: |_| {
        let instead = "`oci run` stays with the container; --log-path of `oci create` keeps what it prints";
        Err(Failure::unsupported("apptainer oci attach", instead))
    },
    ..Command::EMPTY
};

static MOUNT: Command = Command {
    usage: "mount <sif_image> <bundle_path>",
    short: "Not supported: no mount of this program outlives it",
    arity: Arity::Exactly(2),
    run: |_| no_mounts("mount"),
    ..Command::EMPTY
};

static UMOUNT: Command = Command {
    usage: "umount <bundle_path>",
    short: "Not supported: no mount of this program outlives it",
    arity: Arity::Exactly(1),
    run: |_| no_mounts("umount"),
    ..Command::EMPTY
};

fn no_mounts(what: &str) -> Result<u8, Failure> {
    let instead =
        "`apptainer build --sandbox BUNDLE/rootfs IMAGE` and `isles oci spec -b BUNDLE` make a bundle";
    Err(Failure::unsupported(format!("apptainer oci {what}"), instead))
}

/// The runtime, which is root's.
fn runtime<'a>(cx: &Context<'a>, command: &str) -> Result<Runtime, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(format!("\"apptainer oci {command}\" command requires root privileges"))
            .with_hint("`isles oci` runs bundles that are made for ordinary users"));
    }
    let talk = cx.talk;
    Ok(Runtime { root: Runtime::default_root(), warn: Box::new(move |text| talk.warning(text)) })
}

/// Containers outlive this process, and may wait for the moment when nobody runs its file any more.
fn own_program() -> Result<(), Failure> {
    isles_sandbox::protect_own_program()
        .map_err(|e| Failure::because("cannot keep this program out of the container's reach", &e))
}

fn options(cx: &Context<'_>) -> Result<CreateOptions, Failure> {
    for flag in [&EMPTY_PROCESS, &SYNC_SOCKET] {
        if cx.values.has(flag) && cx.values.text(flag) != Some("false") {
            let instead =
                "`isles pod create` makes a container without a program; `oci state` tells how one stands";
            return Err(Failure::unsupported(format!("--{}", flag.name), instead));
        }
    }
    let bundle = cx.values.word(&BUNDLE);
    let bundle = bundle.ok_or_else(|| Failure::usage("required flag(s) \"bundle\" not set"))?;
    Ok(CreateOptions {
        bundle: bundle.into(),
        pid_file: cx.values.word(&PID_FILE).map(Into::into),
        accounting: true,
        ..CreateOptions::default()
    })
}

fn create(cx: &Context<'_>) -> Result<u8, Failure> {
    let runtime = runtime(cx, "create")?;
    let options = options(cx)?;
    own_program()?;
    let log = Logged::begin(cx)?;
    let made = runtime.create(&cx.arguments[0], &options);
    drop(log);
    made?;
    Ok(0)
}

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let (runtime, id) = (runtime(cx, "run")?, &cx.arguments[0]);
    let options = options(cx)?;
    own_program()?;
    let log = Logged::begin(cx)?;
    let made = runtime.create(id, &options);
    drop(log);
    let mut child = made?;
    let code = runtime.start(id).map_err(Failure::from).and_then(|()| {
        oci::wait(&mut child).map_err(|e| Failure::because("cannot wait for the container", &e))
    });
    // It has ended, or is not wanted any more.
    let deleted = runtime.delete(id, true);
    let code = code?;
    deleted?;
    Ok(code)
}

fn print_state(cx: &Context<'_>) -> Result<u8, Failure> {
    let text = runtime(cx, "state")?.state(&cx.arguments[0])?;
    match cx.values.word(&SYNC_SOCKET) {
        None => cx.print(format!("{text}\n"))?,
        Some(path) => UnixStream::connect(path)
            .and_then(|mut socket| socket.write_all(text.as_bytes()))
            .map_err(|e| Failure::because(format!("cannot write the state to '{path}'"), &e))?,
    }
    Ok(0)
}

/// Process 1 and the status of a container.
fn stands(runtime: &Runtime, id: &str) -> Result<(i32, String), Failure> {
    let state: serde_json::Value = serde_json::from_str(&runtime.state(id)?)
        .map_err(|e| Failure::because("cannot read the state", &e))?;
    let pid = state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
    Ok((pid, state["status"].as_str().unwrap_or_default().to_owned()))
}

fn kill(cx: &Context<'_>) -> Result<u8, Failure> {
    let (runtime, id) = (runtime(cx, "kill")?, &cx.arguments[0]);
    let given = cx.arguments.get(1).map(String::as_str).filter(|word| !word.is_empty());
    let word = match given.or(cx.values.word(&SIGNAL)) {
        _ if cx.values.is(&FORCE) => "SIGKILL",
        Some(word) => word,
        None => "SIGTERM",
    };
    let signal = oci::parse_signal(word)?;
    let (pid, _) = stands(&runtime, id)?;
    // Held before the signal: the number may be another's afterwards.
    let held = Pid::from_raw(pid).filter(|_| pid > 1).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    runtime.kill(id, signal, false)?;
    let timeout = cx.values.number(&TIMEOUT).filter(|seconds| *seconds > 0);
    if let (Some(tv_sec), Some(Ok(held))) = (timeout, held) {
        let limit = Timespec { tv_sec, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(held.as_fd(), PollFlags::IN)];
        if matches!(poll(&mut fds, Some(&limit)), Ok(0)) {
            runtime.kill(id, oci::parse_signal("SIGKILL")?, false)?;
        }
    }
    Ok(0)
}

fn delete(cx: &Context<'_>) -> Result<u8, Failure> {
    let (runtime, id) = (runtime(cx, "delete")?, &cx.arguments[0]);
    // One whose program has not begun is ended as well.
    let created = stands(&runtime, id)?.1 == "created";
    Ok(runtime.delete(id, created).map(|()| 0)?)
}

fn exec(cx: &Context<'_>) -> Result<u8, Failure> {
    let [id, command @ ..] = cx.arguments else { return Err(Failure::usage("no container is named")) };
    let runtime = runtime(cx, "exec")?;
    own_program()?;
    let mut process = runtime.exec_process(id)?;
    process.args = command.to_vec();
    process.terminal = false;
    let mut child = runtime.exec(id, &ExecOptions { process, ..ExecOptions::default() })?;
    oci::wait(&mut child).map_err(|e| Failure::because("cannot wait for the process", &e))
}

fn update(cx: &Context<'_>) -> Result<u8, Failure> {
    let (runtime, id) = (runtime(cx, "update")?, &cx.arguments[0]);
    let path = cx.values.word(&FROM_FILE).ok_or_else(|| Failure::new("you must specify --from-file"))?;
    let failed = |e: io::Error| Failure::because(format!("cannot read '{path}'"), &e);
    let text = match path {
        "-" => {
            let mut text = Vec::new();
            io::stdin().take(config::MAX_BYTES).read_to_end(&mut text).map_err(failed)?;
            text
        }
        path => state::read_bounded(Path::new(path), config::MAX_BYTES).map_err(failed)?,
    };
    let resources: config::Resources = serde_json::from_slice(&text)
        .map_err(|e| Failure::because(format!("'{path}' holds no resources"), &e))?;
    let mut limits = oci::limits(&resources)?;
    // Devices are only changed by those who name some.
    if resources.devices.is_empty() {
        limits.devices = None;
    }
    Ok(runtime.update(id, &limits).map(|()| 0)?)
}

/// The form of a line in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Basic,
    Kubernetes,
    Json,
}

impl Form {
    fn parse(word: &str) -> Result<Form, Failure> {
        Ok(match word {
            "basic" => Form::Basic,
            "kubernetes" => Form::Kubernetes,
            "json" => Form::Json,
            other => {
                return Err(Failure::new(format!("log format {other} is not supported"))
                    .with_hint("there are basic, kubernetes and json"));
            }
        })
    }

    fn line(self, time: &str, stream: &str, text: &str) -> String {
        match self {
            Form::Basic => format!("{time} {stream} {text}\n"),
            Form::Kubernetes => format!("{time} {stream} F {text}\n"),
            Form::Json => format!("{}\n", serde_json::json!({ "time": time, "stream": stream, "log": text })),
        }
    }
}

/// While it lives, what this process prints goes into a log: a container that is made meanwhile has these streams.
struct Logged {
    streams: Option<(OwnedFd, OwnedFd)>,
}

impl Logged {
    fn begin(cx: &Context<'_>) -> Result<Logged, Failure> {
        let form = Form::parse(cx.values.word(&LOG_FORMAT).unwrap_or("kubernetes"))?;
        let Some(path) = cx.values.word(&LOG_PATH) else { return Ok(Logged { streams: None }) };
        let failed = |e: io::Error| Failure::because(format!("cannot write the log '{path}'"), &e);
        let file = File::options().append(true).create(true).mode(0o640).open(path).map_err(failed)?;
        let (out, to_out) = io::pipe().map_err(failed)?;
        let (err, to_err) = io::pipe().map_err(failed)?;
        let nowhere = File::options().write(true).open("/dev/null").map_err(failed)?;
        match split(&nowhere, &nowhere).map_err(failed)? {
            Side::Background(report) => {
                // Whoever waits for a report would wait for the end of the container.
                drop((report, to_out, to_err));
                std::thread::scope(|scope| {
                    scope.spawn(|| copy(out, "stdout", form, &file));
                    copy(err, "stderr", form, &file);
                });
                std::process::exit(0)
            }
            Side::Caller(_) => {
                let kept = |e: rustix::io::Errno| failed(e.into());
                let own = (
                    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(kept)?,
                    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).map_err(kept)?,
                );
                let logged = Logged { streams: Some(own) };
                rustix::stdio::dup2_stdout(&to_out).map_err(kept)?;
                rustix::stdio::dup2_stderr(&to_err).map_err(kept)?;
                Ok(logged)
            }
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if let Some((out, err)) = &self.streams {
            let _ = rustix::stdio::dup2_stdout(out);
            let _ = rustix::stdio::dup2_stderr(err);
        }
    }
}

/// Writes line after line, each at once, until nobody has the other end any more.
fn copy(from: impl Read, stream: &str, form: Form, to: &File) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        match (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let time = rfc3339_nanoseconds(u64::try_from(now).unwrap_or(u64::MAX));
        // A full disk ends the log, and not the container.
        let _ = (&*to).write_all(form.line(&time, stream, &text).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_logs() {
        for (word, expected) in [
            ("basic", "T stdout a \"b\"\n"),
            ("kubernetes", "T stdout F a \"b\"\n"),
            ("json", "{\"log\":\"a \\\"b\\\"\",\"stream\":\"stdout\",\"time\":\"T\"}\n"),
        ] {
            assert_eq!(Form::parse(word).unwrap().line("T", "stdout", "a \"b\""), expected);
        }
        assert!(Form::parse("moon").unwrap_err().message.contains("moon"));
    }
}
