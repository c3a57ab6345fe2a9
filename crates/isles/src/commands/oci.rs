//! `isles oci`, also as `isles-oci`: an OCI runtime with runc's command line.
//!
//! Engines call this, so what they pass is accepted as they pass it: options before and after the command, options
//! that mean nothing here, and a log that they read for the reason of a failure.

use std::io::Read;
use std::path::PathBuf;

use clap::Subcommand;
use isles_sandbox::cgroup::Limits;
use isles_sandbox::oci::{self, CreateOptions, ExecOptions, Runtime, Status, config, state};

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Run containers from OCI bundles, for engines that expect runc.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = false, arg_required_else_help = true)]
pub struct Args {
    /// Where containers are remembered [default: /run/isles-oci for root].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Write warnings and errors here as well.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    #[arg(long, value_name = "LEVEL", hide = true)]
    log_level: Option<String>,
    /// Accepted; groups are made in the file system, where systemd would make them.
    #[arg(long)]
    systemd_cgroup: bool,
    #[arg(long, hide = true)]
    debug: bool,
    #[arg(long, value_name = "MODE", hide = true)]
    rootless: Option<String>,
    #[arg(long, value_name = "FILE", hide = true)]
    criu: Option<PathBuf>,
    /// Print the version.
    #[arg(short = 'v', long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container: everything is set up, its program waits for start.
    Create(Create),
    /// Run the program of a created container.
    Start { id: String },
    /// Create a container, run its program, and wait for its end.
    Run {
        #[command(flatten)]
        create: Create,
        /// Do not wait.
        #[arg(short, long)]
        detach: bool,
        /// Leave the container where it ended.
        #[arg(long)]
        keep: bool,
    },
    /// Print the state of a container.
    State { id: String },
    /// List containers.
    List {
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
        /// Print only the IDs.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Send a signal to a container.
    Kill {
        id: String,
        #[arg(default_value = "TERM")]
        signal: String,
        /// To all its processes.
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a container that has ended.
    Delete {
        id: String,
        /// Kill it first where it runs.
        #[arg(short, long)]
        force: bool,
    },
    /// Run a further program in a container.
    Exec(Box<Exec>),
    /// Freeze a container.
    Pause { id: String },
    /// Let a frozen container go on.
    Resume { id: String },
    /// List the processes of a container.
    Ps {
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
        id: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        options: Vec<String>,
    },
    /// Change the limits of a container.
    Update(Box<Update>),
    /// Print what this runtime can do.
    Features,
    /// Write a config.json to begin with.
    Spec {
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
        /// For an ordinary user.
        #[arg(long)]
        rootless: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    id: String,
    /// The folder with config.json.
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Write the process ID there.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A socket that takes the terminal.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Give the program this many descriptors beyond the standard streams.
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted; pivot_root(2) works on every root that is not the kernel's initial one.
    #[arg(long)]
    no_pivot: bool,
    /// Share the caller's session keyring.
    #[arg(long)]
    no_new_keyring: bool,
}

impl Create {
    /// With `accounting` for engines; whoever runs a container by hand asks its groups for nothing.
    fn options(&self, accounting: bool) -> CreateOptions {
        CreateOptions {
            accounting,
            bundle: self.bundle.clone(),
            pid_file: self.pid_file.clone(),
            console_socket: self.console_socket.clone(),
            preserve_fds: self.preserve_fds,
            no_new_keyring: self.no_new_keyring,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Exec {
    /// A file with the whole process as in config.json.
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    #[arg(short, long)]
    tty: bool,
    /// uid[:gid].
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// A capability to have besides those of the container.
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    #[arg(long)]
    no_new_privs: bool,
    /// Do not wait for the end.
    #[arg(short, long)]
    detach: bool,
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    #[arg(long)]
    ignore_paused: bool,
    /// A group below the container's.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Update {
    id: String,
    /// A file with linux.resources, - for standard input.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Bytes.
    #[arg(long)]
    memory: Option<i64>,
    #[arg(long)]
    memory_reservation: Option<i64>,
    #[arg(long)]
    memory_swap: Option<i64>,
    #[arg(long)]
    cpu_period: Option<u64>,
    #[arg(long)]
    cpu_quota: Option<i64>,
    #[arg(long)]
    cpu_share: Option<u64>,
    #[arg(long)]
    cpuset_cpus: Option<String>,
    #[arg(long)]
    cpuset_mems: Option<String>,
    #[arg(long)]
    pids_limit: Option<i64>,
    #[arg(long)]
    blkio_weight: Option<u16>,
}

pub fn cmd_oci(cx: &Context, args: &Args) -> Result<Code, Failure> {
    if args.version {
        // Engines look for these two lines.
        cx.ui.line(&format!("isles-oci version {}", env!("CARGO_PKG_VERSION")))?;
        cx.ui.line("spec: 1.3.0")?;
        return Ok(Code::SUCCESS);
    }
    let Some(command) = &args.command else { return Ok(Code::SUCCESS) };
    // The containers of these outlive us, and may wait for the moment when nobody runs our file any more.
    if matches!(command, Command::Create(_) | Command::Start { .. } | Command::Run { .. } | Command::Exec(_))
    {
        isles_sandbox::protect_own_program()
            .map_err(|e| Failure::because("cannot keep this program out of the container's reach", &e))?;
    }
    let log = args.log.clone();
    let json = args.log_format == "json";
    // What a further process runs with was said at the container's creation.
    let quiet = matches!(command, Command::Exec(_));
    let runtime = Runtime {
        root: match &args.root {
            Some(root) => std::path::absolute(root)
                .map_err(|e| Failure::because(format!("cannot use {}", root.display()), &e))?,
            None => Runtime::default_root(),
        },
        warn: Box::new(move |text| match &log {
            Some(file) => write_log(file, json, "warning", text),
            None if quiet => {}
            None => eprintln!("warning: {text}"),
        }),
    };
    let outcome = run(cx, &runtime, command);
    if let (Err(failure), Some(file)) = (&outcome, &args.log) {
        let text = std::iter::once(&failure.message).chain(&failure.causes).cloned().collect::<Vec<_>>();
        write_log(file, json, "error", &text.join(": "));
    }
    outcome
}

fn run(cx: &Context, runtime: &Runtime, command: &Command) -> Result<Code, Failure> {
    match command {
        Command::Create(create) => {
            runtime.create(&create.id, &create.options(true))?;
        }
        Command::Start { id } => runtime.start(id)?,
        Command::Run { create, detach, keep } => return foreground(runtime, create, *detach, *keep),
        Command::State { id } => cx.ui.line(&runtime.state(id)?)?,
        Command::List { format, quiet } => list(cx, runtime, format == "json", *quiet)?,
        Command::Kill { id, signal, all } => runtime.kill(id, oci::parse_signal(signal)?, *all)?,
        Command::Delete { id, force } => runtime.delete(id, *force)?,
        Command::Exec(exec) => return cmd_exec(runtime, exec),
        Command::Pause { id } => runtime.pause(id)?,
        Command::Resume { id } => runtime.resume(id)?,
        Command::Ps { format, id, .. } => ps(cx, &runtime.processes(id)?, format == "json")?,
        Command::Update(update) => runtime.update(&update.id, &limits(update)?)?,
        Command::Features => cx.ui.line(&format!("{:#}", oci::features()))?,
        Command::Spec { bundle, rootless } => {
            let ids = rootless.then(own_ids);
            let file = bundle.join("config.json");
            if file.exists() {
                return Err(Failure::new(format!("{} exists already", file.display())));
            }
            std::fs::write(&file, format!("{:#}\n", oci::spec(ids)))
                .map_err(|e| Failure::because(format!("cannot write {}", file.display()), &e))?;
        }
    }
    Ok(Code::SUCCESS)
}

fn foreground(runtime: &Runtime, create: &Create, detach: bool, keep: bool) -> Result<Code, Failure> {
    // 126 and 127 as shells have them, where it is the program that cannot be run.
    let failed = |error: oci::Error| {
        let code = if let oci::Error::Spawn { error } = &error { error.exit_code() } else { 1 };
        Failure::from(error).with_code(code)
    };
    let mut child = runtime.create(&create.id, &create.options(false)).map_err(failed)?;
    if let Err(error) = runtime.start(&create.id) {
        runtime.delete(&create.id, true)?;
        return Err(failed(error));
    }
    if detach {
        return Ok(Code::SUCCESS);
    }
    let code = oci::wait(&mut child).map_err(|e| Failure::because("cannot wait for the container", &e))?;
    if !keep {
        runtime.delete(&create.id, true)?;
    }
    Ok(Code(code))
}

fn cmd_exec(runtime: &Runtime, exec: &Exec) -> Result<Code, Failure> {
    let process = match &exec.process {
        Some(file) => {
            let text = state::read_bounded(file, config::MAX_BYTES)
                .map_err(|e| Failure::because(format!("cannot read {}", file.display()), &e))?;
            serde_json::from_slice(&text)
                .map_err(|e| Failure::because(format!("{} is not a process", file.display()), &e))?
        }
        None => {
            let mut process = runtime.exec_process(&exec.id)?;
            process.args = exec.command.clone();
            process.terminal = exec.tty;
            process.env.extend(exec.env.iter().cloned());
            process.no_new_privileges |= exec.no_new_privs;
            if let Some(cwd) = &exec.cwd {
                process.cwd = cwd.clone();
            }
            if let Some(user) = &exec.user {
                (process.user.uid, process.user.gid) = ids(user)?;
                process.user.additional_gids.clear();
            }
            process.user.additional_gids.extend(&exec.additional_gids);
            if !exec.cap.is_empty() {
                let sets = process.capabilities.get_or_insert_default();
                for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
                    set.extend(exec.cap.iter().cloned());
                }
            }
            process
        }
    };
    let options = ExecOptions {
        process,
        pid_file: exec.pid_file.clone(),
        console_socket: exec.console_socket.clone(),
        preserve_fds: exec.preserve_fds,
        ignore_paused: exec.ignore_paused,
        cgroup: exec.cgroup.clone(),
    };
    let mut child = runtime.exec(&exec.id, &options).map_err(|e| {
        let code = if let oci::Error::Spawn { error } = &e { error.exit_code() } else { 255 };
        // runc's own failures end with 255, which engines tell from the program's codes.
        Failure::from(e).with_code(if code == 125 { 255 } else { code })
    })?;
    if exec.detach {
        return Ok(Code::SUCCESS);
    }
    let code = oci::wait(&mut child).map_err(|e| Failure::because("cannot wait for the process", &e))?;
    Ok(Code(code))
}

/// Strictly `uid` or `uid:gid`: names are for engines to look up (CVE-2026-30892).
fn ids(text: &str) -> Result<(u32, u32), Failure> {
    let bad = || Failure::new(format!("invalid user '{text}'")).with_hint("write uid or uid:gid, as numbers");
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u32>().ok().filter(|n| digits && *n != u32::MAX).ok_or_else(bad)
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => Ok((number(text)?, 0)),
    }
}

fn limits(update: &Update) -> Result<Limits, Failure> {
    if let Some(file) = &update.resources {
        let text = if file.as_os_str() == "-" {
            let mut text = Vec::new();
            std::io::stdin()
                .take(config::MAX_BYTES)
                .read_to_end(&mut text)
                .map_err(|e| Failure::because("cannot read standard input", &e))?;
            text
        } else {
            state::read_bounded(file, config::MAX_BYTES)
                .map_err(|e| Failure::because(format!("cannot read {}", file.display()), &e))?
        };
        let resources: config::Resources =
            serde_json::from_slice(&text).map_err(|e| Failure::because("the resources are not valid", &e))?;
        let mut limits = oci::limits(&resources)?;
        // Devices are only changed by those who name some.
        if resources.devices.is_empty() {
            limits.devices = None;
        }
        return Ok(limits);
    }
    Ok(Limits {
        memory: update.memory,
        memory_reservation: update.memory_reservation,
        memory_swap: update.memory_swap,
        cpu_period: update.cpu_period,
        cpu_quota: update.cpu_quota,
        cpu_shares: update.cpu_share,
        cpuset_cpus: update.cpuset_cpus.clone(),
        cpuset_mems: update.cpuset_mems.clone(),
        pids: update.pids_limit,
        io_weight: update.blkio_weight,
        ..Limits::default()
    })
}

fn list(cx: &Context, runtime: &Runtime, json: bool, quiet: bool) -> Result<(), Failure> {
    let all = runtime.list()?;
    if json {
        let entries: Vec<serde_json::Value> = all
            .iter()
            .map(|(r, status)| {
                serde_json::json!({
                    "ociVersion": r.oci_version, "id": r.id, "status": status.name(), "bundle": r.bundle,
                    "pid": if *status == Status::Stopped { 0 } else { r.pid }, "rootfs": r.rootfs,
                    "created": r.created, "owner": r.owner, "annotations": r.annotations,
                })
            })
            .collect();
        cx.ui.line(&serde_json::Value::from(entries).to_string())?;
        return Ok(());
    }
    if !quiet {
        cx.ui.line(&format!("{:<24} {:>8} {:<8} {:<32} BUNDLE", "ID", "PID", "STATUS", "CREATED"))?;
    }
    for (r, status) in all {
        if quiet {
            cx.ui.line(&r.id)?;
            continue;
        }
        let pid = if status == Status::Stopped { 0 } else { r.pid };
        let line = format!("{:<24} {pid:>8} {:<8} {:<32} ", r.id, status.name(), r.created);
        cx.ui.line(&(line + &r.bundle.display().to_string()))?;
    }
    Ok(())
}

fn ps(cx: &Context, pids: &[i32], json: bool) -> Result<(), Failure> {
    if json {
        cx.ui.line(&serde_json::json!(pids).to_string())?;
        return Ok(());
    }
    cx.ui.line("     PID COMMAND")?;
    for pid in pids {
        // One that has ended meanwhile has no command line.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        cx.ui.line(&format!("{pid:>8} {}", command.trim().escape_default()))?;
    }
    Ok(())
}

fn own_ids() -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    // The owner of one's own process folder is who one is.
    std::fs::metadata("/proc/self").map_or((0, 0), |m| (m.uid(), m.gid()))
}

/// Appends a line as logrus writes it, which is what engines parse.
fn write_log(file: &std::path::Path, json: bool, level: &str, text: &str) {
    let line = if json {
        serde_json::json!({"level": level, "msg": text, "time": oci::now()}).to_string()
    } else {
        format!("time=\"{}\" level={level} msg={text:?}", oci::now())
    };
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
    // A log that cannot be written must not hide the failure itself, which goes to standard error as well.
    let _ = opened.and_then(|mut f| std::io::Write::write_all(&mut f, format!("{line}\n").as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_and_nothing_else() {
        assert_eq!(ids("1000").unwrap(), (1000, 0));
        assert_eq!(ids("1000:7").unwrap(), (1000, 7));
        for bad in ["", ":", "1:", ":1", "-1", "+1", "4294967295", "4294967296", "1:2:3", "1:x", "root", " 1"]
        {
            assert!(ids(bad).is_err(), "{bad}");
        }
    }
}
