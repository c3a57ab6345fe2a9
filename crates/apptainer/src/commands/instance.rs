//! `apptainer instance start`, `run`, `stop`, `list` and `stats`

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::json;

use crate::action_flags::{BOOT, OF_ALL, OF_REGISTRY, RUNSCRIPT_TIMEOUT};
use crate::command::{Arity, Command, Context};
use crate::failure::{Failure, USAGE};
use crate::flag::Flag;
use crate::instance::{self, Record, Shelf, Watch};
use crate::instance_stats::{self, Usage};
use crate::launch::Launch;
use crate::script::Action;

static PID_FILE: Flag =
    Flag::text("pid-file", "path", "write the process ID to this file").env(&["PID_FILE"]);
static USER: Flag =
    Flag::text("user", "username", "the instances of this user (root only)").short('u').env(&["USER"]);
static JSON: Flag = Flag::switch("json", "print JSON").short('j').env(&["JSON"]);
static LOGS: Flag = Flag::switch("logs", "print where the output goes").short('l').env(&["LOGS"]);
static ALL_LIST: Flag = Flag::switch("all", "those of --sharens, too").short('a').env(&["ALL"]);
static ALL_STOP: Flag = Flag::switch("all", "stop all instances").short('a').env(&["ALL"]);
static FORCE: Flag = Flag::switch("force", "kill it at once").short('F').env(&["FORCE"]);
static SIGNAL: Flag =
    Flag::text("signal", "signal", "the signal that asks it to end").short('s').env(&["SIGNAL"]);
static TIMEOUT: Flag = Flag::number("timeout", "kill it when it has not ended in so many seconds").short('t');
static NO_STREAM: Flag = Flag::switch("no-stream", "print once instead of every second");

/// Seconds.
const PATIENCE: i64 = 10;

pub static COMMAND: Command = Command {
    usage: "instance",
    short: "Manage containers running as services",
    commands: &[&LIST, &RUN, &START, &STATS, &STOP],
    ..Command::EMPTY
};

static START: Command = Command {
    usage: "start [start options...] <container path> <instance name> [startscript args...]",
    short: "Start a named instance of the given container image",
    long: "Runs the image's startscript in the background; the instance stays when that has ended, until it is stopped.",
    examples: "apptainer instance start db.sif db\napptainer exec instance://db psql",
    flags: &[&OF_ALL, &OF_REGISTRY, &[&BOOT, &PID_FILE]],
    arity: Arity::AtLeast(2),
    run: |cx| start(cx, Action::Start),
    ..Command::EMPTY
};

static RUN: Command = Command {
    usage: "run [start options...] <container path> <instance name> [runscript args...]",
    short: "Run a named instance of the given container image",
    long: "As start, but with the image's runscript.",
    flags: &[&OF_ALL, &OF_REGISTRY, &[&BOOT, &PID_FILE, &RUNSCRIPT_TIMEOUT]],
    arity: Arity::AtLeast(2),
    run: |cx| start(cx, Action::Run),
    ..Command::EMPTY
};

static STOP: Command = Command {
    usage: "stop [stop options...] [instance]",
    short: "Stop a named instance of a given container image",
    examples: "apptainer instance stop 'web-*'\napptainer instance stop --all",
    flags: &[&[&USER, &ALL_STOP, &FORCE, &SIGNAL, &TIMEOUT]],
    arity: Arity::Between(0, 1),
    run: stop,
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list [list options...] [<instance name glob>]",
    short: "List all running and named Apptainer instances",
    flags: &[&[&USER, &JSON, &LOGS, &ALL_LIST]],
    arity: Arity::Between(0, 1),
    run: list,
    ..Command::EMPTY
};

static STATS: Command = Command {
    usage: "stats [stats options...] <instance name>",
    short: "Get stats for a named instance",
    flags: &[&[&USER, &JSON, &NO_STREAM]],
    arity: Arity::Exactly(1),
    run: stats,
    ..Command::EMPTY
};

fn start(cx: &Context<'_>, action: Action) -> Result<u8, Failure> {
    let [image, name, rest @ ..] = cx.arguments else { return Err(Failure::usage("no container is named")) };
    let mut launch = Launch::new(cx, action, rest)?;
    launch.settings.pid = true;
    launch.instance = Some(name);
    let record = instance::start(&launch, image, name, &Watch { started: &|_| {}, shared: false })?;
    if let Some(path) = cx.values.word(&PID_FILE) {
        fs::write(path, format!("{}\n", record.pid))
            .map_err(|e| Failure::because(format!("could not create pid file '{path}'"), &e))?;
    }
    cx.talk.verbose(&format!("you will find instance output here: {}", record.log_out.display()));
    cx.talk.verbose(&format!("you will find instance error here: {}", record.log_err.display()));
    cx.talk.info("instance started successfully");
    Ok(0)
}

/// Another user's instances are for root only.
fn user<'a>(cx: &'a Context<'_>, what: &str) -> Result<Option<&'a str>, Failure> {
    let user = cx.values.word(&USER);
    if user.is_some() && !rustix::process::geteuid().is_root() {
        return Err(Failure::new(format!("Only root user can {what} user's instances")));
    }
    Ok(user)
}

fn list(cx: &Context<'_>) -> Result<u8, Failure> {
    let shelf = Shelf::find(cx, user(cx, "list")?)?;
    if cx.values.is(&JSON) && cx.values.is(&LOGS) {
        return Err(Failure::new("more than one flags have been set"));
    }
    let pattern = cx.arguments.first().map_or("*", String::as_str);
    let mut found = shelf.list(pattern)?;
    found.retain(|record| !record.shared || cx.values.is(&ALL_LIST));
    if cx.values.is(&JSON) {
        let rows: Vec<_> = found.iter().map(as_json).collect();
        let text = serde_json::to_string_pretty(&json!({ "instances": rows }))
            .map_err(|e| Failure::because("cannot print the instances", &e))?;
        // As Go indents.
        cx.print(format!("{}\n", tabs(&text)))?;
        return Ok(0);
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    if cx.values.is(&LOGS) {
        rows.push(["INSTANCE NAME", "PID", "LOGS"].map(str::to_owned).into());
        for record in &found {
            let plain = |path: &Path| path.display().to_string().replace(char::is_control, "");
            let (err, out) = (plain(&record.log_err), plain(&record.log_out));
            rows.push(vec![record.name.clone(), record.pid.to_string(), err]);
            rows.push(vec![String::new(), String::new(), out]);
        }
    } else {
        rows.push(["INSTANCE NAME", "PID", "IP", "IMAGE"].map(str::to_owned).into());
        rows.extend(found.iter().map(|record| {
            vec![record.name.clone(), record.pid.to_string(), record.ip.clone(), record.image.clone()]
        }));
    }
    cx.print(table(&rows))?;
    Ok(0)
}

fn as_json(record: &Record) -> serde_json::Value {
    json!({
        "instance": record.name,
        "pid": record.pid,
        "img": record.image,
        "ip": record.ip,
        "logErrPath": record.log_err,
        "logOutPath": record.log_out,
    })
}

/// Two blanks of indentation are a tab.
fn tabs(text: &str) -> String {
    let line = |line: &str| {
        let depth = (line.len() - line.trim_start().len()) / 2;
        format!("{}{}", "\t".repeat(depth), line.trim_start())
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Columns with four blanks between them; the last is as long as it is.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(n, cell)| {
            if n + 1 == columns { cell.clone() } else { format!("{cell:<0$}", widths[n] + 4) }
        });
        format!("{}\n", cells.collect::<String>())
    };
    rows.iter().map(line).collect()
}

fn stop(cx: &Context<'_>) -> Result<u8, Failure> {
    let pattern = match cx.arguments.first() {
        Some(name) => name.as_str(),
        None if cx.values.is(&ALL_STOP) => "*",
        None => return Err(Failure::usage("invalid command")),
    };
    let shelf = Shelf::find(cx, user(cx, "stop")?)?;
    let found = shelf.list(pattern)?;
    if found.is_empty() {
        return Err(Failure::usage("no instance found"));
    }
    let signal = match cx.values.word(&SIGNAL) {
        _ if cx.values.is(&FORCE) => Signal::KILL,
        None => Signal::INT,
        Some(word) => signal(word)?,
    };
    let patience = cx.values.number(&TIMEOUT).unwrap_or(PATIENCE).max(0);
    for record in &found {
        cx.talk.info(&format!("Stopping {} instance of {} (PID={})", record.name, record.image, record.pid));
        shelf.signal(record.process, signal);
    }
    let until = std::time::Instant::now() + Duration::from_secs(patience.unsigned_abs());
    for record in &found {
        if !ended(record, until.saturating_duration_since(std::time::Instant::now())) {
            cx.talk.info(&format!(
                "Killing {} instance of {} (PID={}) (Timeout)",
                record.name, record.image, record.pid
            ));
            shelf.signal(record.process, Signal::KILL);
            ended(record, Duration::from_secs(PATIENCE.unsigned_abs()));
        }
        shelf.forget(&record.name);
    }
    Ok(0)
}

/// Waits for the process that stays with an instance. `false` where it is still there.
fn ended(record: &Record, patience: Duration) -> bool {
    let Some(pid) = Pid::from_raw(record.monitor.pid) else { return true };
    let Ok(monitor) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    if !record.monitor.lives() {
        return true;
    }
    let limit = Timespec::try_from(patience).ok();
    let mut fds = [PollFd::from_borrowed_fd(monitor.as_fd(), PollFlags::IN)];
    loop {
        match poll(&mut fds, limit.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return !record.monitor.lives(),
        }
    }
}

/// By name, with or without `SIG`, or by number.
fn signal(word: &str) -> Result<Signal, Failure> {
    let bad = || Failure::new(format!("Could not convert stop signal: '{word}' is not a signal"));
    let name = word.to_ascii_uppercase();
    let known = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("TERM", Signal::TERM),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("WINCH", Signal::WINCH),
    ];
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some((_, signal)) = known.iter().find(|(known, _)| *known == name) {
        return Ok(*signal);
    }
    word.parse::<i32>().ok().and_then(Signal::from_named_raw).ok_or_else(bad)
}

fn stats(cx: &Context<'_>) -> Result<u8, Failure> {
    let shelf = Shelf::find(cx, user(cx, "look at stats of")?)?;
    let record = shelf.get(&cx.arguments[0]).map_err(|failure| failure.with_code(USAGE))?;
    let json = cx.values.is(&JSON);
    let mut once = cx.values.is(&NO_STREAM);
    if json && !once {
        cx.talk.warning("JSON output is only available for a single timepoint (--no-stream)");
        once = true;
    }
    if !json {
        let text = format!("Stats for {} instance of {} (PID={})", record.name, record.image, record.pid);
        cx.talk.info(&text);
    }
    let mut before = instance_stats::usage(record.pid)?;
    loop {
        // Use of the processor is over the second that passes meanwhile, unless the instance ends in it.
        if !json && ended(&record, Duration::from_secs(1)) {
            return Ok(0);
        }
        let now = instance_stats::usage(record.pid)?;
        if json {
            cx.print(format!("{}\n", tabs(&instance_stats::as_json(&now))))?;
        } else {
            if !once {
                cx.print("\x1b[2J\x1b[H")?;
            }
            cx.print(table(&stats_rows(&record, &before, &now)))?;
        }
        if once {
            return Ok(0);
        }
        before = now;
    }
}

fn stats_rows(record: &Record, before: &Usage, now: &Usage) -> Vec<Vec<String>> {
    let heads = ["INSTANCE NAME", "CPU USAGE", "MEM USAGE / LIMIT", "MEM %", "BLOCK I/O", "PIDS"];
    let size = instance_stats::size;
    vec![
        heads.map(str::to_owned).into(),
        vec![
            record.name.clone(),
            format!("{:.2}%", now.cpu_percent_since(before)),
            format!("{} / {}", size(now.memory), size(now.memory_limit)),
            format!("{:.2}%", now.memory_percent()),
            format!("{} / {}", size(now.read), size(now.written)),
            now.processes.to_string(),
        ],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_indentation_are_gos() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["INSTANCE NAME", "PID", "IMAGE"]), row(["web", "12", "/x"])]);
        assert_eq!(text, "INSTANCE NAME    PID    IMAGE\nweb              12     /x\n");
        assert_eq!(tabs("{\n  \"a\": [\n    1\n  ]\n}"), "{\n\t\"a\": [\n\t\t1\n\t]\n}");
    }

    #[test]
    fn signals_by_name_and_number() {
        for (word, expected) in [("SIGTERM", Signal::TERM), ("usr1", Signal::USR1), ("9", Signal::KILL)] {
            assert_eq!(signal(word).unwrap(), expected, "{word}");
        }
        for bad in ["", "SIGMOON", "0", "999"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
