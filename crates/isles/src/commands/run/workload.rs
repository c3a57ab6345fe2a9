//! What the options of `isles run` mean: each of them as a part of the workload, or refused with what to write instead.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use isles_spec::image::Healthcheck;
use isles_spec::quantity::{parse_bytes, parse_cpus, parse_duration};
use isles_spec::{
    BlockRate, BlockTraffic, BlockWeight, Device, Dns, Error as Spelling, LogOptions, Mount, NamespaceMode,
    Port, Resources, RestartPolicy, Rlimit, SeccompChoice, Security, UserNamespace, Workload,
};

use super::Args;
use super::environment::{environment, for_each_line};
use super::network::network;
use crate::devices;
use crate::failure::Failure;
use crate::root;

/// The workload that words of `isles run` describe, for commands that take some of them.
pub fn workload_of(words: Vec<String>) -> Result<Workload, Failure> {
    #[derive(clap::Parser)]
    #[command(no_binary_name = true)]
    struct Words {
        #[command(flatten)]
        args: Args,
    }
    match <Words as clap::Parser>::try_parse_from(words) {
        Ok(words) => workload(&words.args),
        Err(e) => Err(Failure::new(e.to_string().trim().trim_start_matches("error: ").to_owned())),
    }
}

/// As with docker, an option with an empty value is one that was left out: scripts write `--name "$NAME"`.
pub(super) fn given(value: Option<&String>) -> Option<String> {
    value.filter(|text| !text.is_empty()).cloned()
}

pub(super) fn path(value: Option<&OsString>) -> Option<&Path> {
    value.filter(|text| !text.is_empty()).map(Path::new)
}

/// The workload that the options describe, without its root and command.
pub(super) fn workload(args: &Args) -> Result<Workload, Failure> {
    let here = std::env::current_dir().map_err(|e| Failure::because("cannot find the current folder", &e))?;
    let home = isles_engine::home();
    let mut mounts = Vec::new();
    for text in &args.volume {
        mounts.push(Mount::parse_volume(text, &here, home.as_deref())?);
    }
    for text in &args.mount {
        mounts.push(Mount::parse_mount(text, &here, home.as_deref())?);
    }
    for text in &args.tmpfs {
        mounts.push(Mount::parse_tmpfs(text)?);
    }
    let entrypoint = args.entrypoint.as_ref().map(|words| match words.as_str() {
        "" => Vec::new(),
        word => vec![word.to_owned()],
    });
    let (overlays, writable) = root::overlays(&args.overlay, args.writable_tmpfs)?;
    Ok(Workload {
        name: given(args.name.as_ref()),
        entrypoint,
        env: environment(args)?,
        working_dir: match (path(args.workdir.as_ref()), args.here) {
            (Some(dir), _) if !dir.is_absolute() => {
                return Err(Spelling::new(format!(
                    "the working directory '{}' is not absolute",
                    dir.display()
                ))
                .with_hint("give the whole path in the container, such as /work")
                .into());
            }
            (Some(dir), _) => Some(dir.to_owned()),
            (None, true) => Some(here),
            (None, false) => None,
        },
        user: given(args.user.as_ref()),
        groups: args.group_add.clone(),
        hostname: given(args.hostname.as_ref()).as_deref().map(host_name).transpose()?,
        tty: args.tty,
        interactive: args.interactive || args.here,
        remove: args.rm || args.here,
        init: args.init,
        read_only: args.read_only,
        mounts,
        image_volumes: true,
        devices: (args.device.iter().filter(|word| !devices::is_name(word)))
            .map(|word| Device::parse(word))
            .collect::<Result<_, _>>()?,
        resources: resources(args)?,
        rlimits: args.ulimit.iter().map(|l| Rlimit::parse(l)).collect::<Result<_, _>>()?,
        shm_size: args.shm_size.as_deref().map(parse_bytes).transpose()?,
        network: network(args)?,
        ports: ports(args)?,
        dns: Dns {
            servers: args.dns.clone(),
            search: args.dns_search.clone(),
            options: args.dns_option.clone(),
        },
        pid: namespace("pid", args.pid.as_deref(), true)?,
        ipc: namespace("ipc", args.ipc.as_deref(), true)?,
        uts: namespace("uts", args.uts.as_deref(), false)?,
        cgroupns: namespace("cgroupns", args.cgroupns.as_deref(), false)?,
        userns: match args.userns.as_deref() {
            None | Some("" | "private" | "auto") => UserNamespace::Auto,
            Some("host") => UserNamespace::Host,
            Some("keep-id") => UserNamespace::KeepId,
            Some(other) => return Err(unknown("userns", other, "private, host or keep-id")),
        },
        security: security(args)?,
        sysctls: pairs(&args.sysctl, "kernel parameter")?.into_iter().collect(),
        extra_hosts: args.add_host.clone(),
        stop_signal: given(args.stop_signal.as_ref()).map(stop_signal).transpose()?,
        stop_timeout: args.stop_timeout,
        restart: restart(args)?,
        health: health(args)?,
        log: LogOptions::parse(given(args.log_driver.as_ref()).as_deref(), &args.log_opt)?,
        labels: labels(args)?,
        platform: given(args.platform.as_ref()).as_deref().map(str::parse).transpose()?,
        here: args.here,
        overlays,
        writable,
        image_mount: root::image_mount(given(args.image_mount.as_ref()))?,
        ..Workload::default()
    })
}

fn health(args: &Args) -> Result<Option<Healthcheck>, Failure> {
    let nanos = |text: &Option<String>| -> Result<u64, Failure> {
        let time = text.as_deref().filter(|text| !text.is_empty()).map(parse_duration).transpose()?;
        match time {
            // As docker has it: what is shorter is a mistake of units.
            Some(time) if !time.is_zero() && time < Duration::from_millis(1) => {
                Err(Failure::new("a time of health checks is at least 1ms")
                    .with_hint("write a unit, such as 30s"))
            }
            time => Ok(time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))),
        }
    };
    let test = match (&args.health_cmd, args.no_healthcheck) {
        (Some(_), true) => {
            return Err(
                Failure::new("--no-healthcheck conflicts with --health-cmd").with_hint("give one of them")
            );
        }
        (None, true) => vec!["NONE".to_owned()],
        (Some(line), false) if !line.is_empty() => vec!["CMD-SHELL".to_owned(), line.clone()],
        _ => Vec::new(),
    };
    let own = Healthcheck {
        test,
        interval: nanos(&args.health_interval)?,
        timeout: nanos(&args.health_timeout)?,
        start_period: nanos(&args.health_start_period)?,
        start_interval: nanos(&args.health_start_interval)?,
        retries: args.health_retries.unwrap_or(0),
    };
    Ok((own != Healthcheck::default()).then_some(own))
}

pub(super) fn restart(args: &Args) -> Result<RestartPolicy, Failure> {
    let policy = RestartPolicy::parse(given(args.restart.as_ref()).as_deref().unwrap_or_default())?;
    if policy != RestartPolicy::No && (args.rm || args.here) {
        return Err(Failure::new("a container that is removed when it ends cannot start again")
            .with_hint("leave out --rm, or --restart"));
    }
    Ok(policy)
}

fn stop_signal(name: String) -> Result<String, Failure> {
    match isles_sandbox::oci::parse_signal(&name) {
        Ok(1..) => Ok(name),
        _ => Err(Spelling::new(format!("invalid signal '{name}'"))
            .with_hint("write a name, such as TERM or SIGINT, or a number up to 64")
            .into()),
    }
}

/// As docker has it, those of files come first, so an option counts for more.
fn labels(args: &Args) -> Result<BTreeMap<String, String>, Failure> {
    let mut lines = Vec::new();
    for path in &args.label_file {
        for_each_line(path, "labels", |_, line| {
            lines.push(line.trim_end().to_owned());
            Ok(())
        })?;
    }
    lines.iter().chain(&args.label).map(|text| label(text)).collect()
}

pub(super) fn all_gpus(text: &str) -> Result<(), Spelling> {
    match text {
        "all" => Ok(()),
        _ => Err(Spelling::new(format!("unknown graphics processors '{text}'"))
            .with_hint("write all, or name some with --device nvidia.com/gpu=0")),
    }
}

fn label(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => {
            Err(Spelling::new(format!("invalid label '{text}'")).with_hint("write KEY=VALUE, or KEY").into())
        }
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    }
}

/// sethostname(2) takes up to 64 bytes.
fn host_name(name: &str) -> Result<String, Failure> {
    let fine = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if fine {
        return Ok(name.to_owned());
    }
    Err(Spelling::new(format!("invalid host name '{name}'"))
        .with_hint("a host name has up to 64 letters, digits, '-' and '.'")
        .into())
}

fn resources(args: &Args) -> Result<Resources, Failure> {
    /// Docker's own floor; below it nothing starts.
    const LEAST_MEMORY: u64 = 6 << 20;
    let memory = args.memory.as_deref().map(parse_bytes).transpose()?.filter(|bytes| *bytes > 0);
    if let Some(bytes) = memory.filter(|bytes| *bytes < LEAST_MEMORY) {
        return Err(Spelling::new(format!("a memory limit of {bytes} bytes is too small"))
            .with_hint("the least is 6m")
            .into());
    }
    let memory_swap = match args.memory_swap.as_deref() {
        None => None,
        Some("-1") => Some(-1),
        Some(text) => Some(i64::try_from(parse_bytes(text)?).unwrap_or(i64::MAX)),
    };
    if memory_swap.is_some() && memory.is_none() {
        return Err(Failure::new("--memory-swap needs --memory")
            .with_hint("it is the sum of memory and swap, so say how much of it is memory"));
    }
    let quota = args.cpu_quota.filter(|quota| *quota > 0);
    if args.cpus.is_some() && (quota.is_some() || args.cpu_period.is_some()) {
        return Err(Failure::new("--cpus conflicts with --cpu-period and --cpu-quota")
            .with_hint("--cpus 1.5 is a quota of 150000 in a period of 100000"));
    }
    if let Some(period) = args.cpu_period.filter(|period| !(1000..=1_000_000).contains(period)) {
        return Err(Failure::new(format!("invalid --cpu-period {period}"))
            .with_hint("it is between 1000 and 1000000 microseconds"));
    }
    if let Some(quota) = quota.filter(|quota| *quota < 1000) {
        return Err(Failure::new(format!("invalid --cpu-quota {quota}"))
            .with_hint("it is at least 1000 microseconds, or -1"));
    }
    let swappiness = args.memory_swappiness.filter(|number| *number != -1);
    if let Some(number) = swappiness.filter(|number| !(0..=100).contains(number)) {
        return Err(Failure::new(format!("invalid --memory-swappiness {number}"))
            .with_hint("it is between 0 and 100, or -1 for what the host has"));
    }
    let mut block_rates = Vec::new();
    for (of, rates) in [
        (BlockTraffic::ReadBytes, &args.device_read_bps),
        (BlockTraffic::WrittenBytes, &args.device_write_bps),
        (BlockTraffic::Reads, &args.device_read_iops),
        (BlockTraffic::Writes, &args.device_write_iops),
    ] {
        for text in rates {
            block_rates.push(BlockRate::parse(of, text)?);
        }
    }
    Ok(Resources {
        memory,
        memory_swap,
        memory_reservation: (args.memory_reservation.as_deref().map(parse_bytes).transpose()?)
            .filter(|n| *n > 0),
        cpu_period: args.cpu_period,
        cpu_quota: quota,
        nano_cpus: args.cpus.as_deref().map(parse_cpus).transpose()?,
        cpu_shares: args.cpu_shares,
        cpuset_cpus: given(args.cpuset_cpus.as_ref()),
        cpuset_mems: given(args.cpuset_mems.as_ref()),
        // Docker takes 0 and -1 for "no limit".
        pids: args.pids_limit.filter(|n| *n > 0),
        oom_score_adj: args.oom_score_adj,
        swappiness: swappiness.map(i64::unsigned_abs),
        oom_kill_disable: args.oom_kill_disable,
        // Docker takes 0 for "as all others".
        block_weight: args.blkio_weight.filter(|n| *n != 0).map(BlockWeight::weight).transpose()?,
        block_weights: (args.blkio_weight_device.iter())
            .map(|text| BlockWeight::parse(text))
            .collect::<Result<_, _>>()?,
        block_rates,
        device_rules: Vec::new(),
        huge_pages: BTreeMap::new(),
        unified: BTreeMap::new(),
        best_effort: args.best_effort,
    })
}

pub(super) fn unknown(option: &str, value: &str, known: &str) -> Failure {
    Spelling::new(format!("unknown mode '{value}' for --{option}"))
        .with_hint(format!("known are {known}"))
        .into()
}

fn ports(args: &Args) -> Result<Vec<Port>, Failure> {
    let mut all = Vec::new();
    for words in &args.publish {
        all.extend(Port::parse(words)?);
    }
    Ok(all)
}

/// The ports that an image exposes and the caller named, on free ones of the host.
pub(super) fn exposed<'a>(
    words: impl Iterator<Item = &'a String>,
    known: &[Port],
) -> Result<Vec<Port>, Failure> {
    let mut all: Vec<Port> = Vec::new();
    for words in words {
        for port in Port::parse(words)? {
            let same = |other: &Port| (other.container, other.protocol) == (port.container, port.protocol);
            if !known.iter().chain(&all).any(same) {
                all.push(Port { host: 0, ..port });
            }
        }
    }
    Ok(all)
}

fn namespace(option: &str, mode: Option<&str>, shared: bool) -> Result<NamespaceMode, Failure> {
    Ok(match mode {
        None | Some("" | "private" | "shareable") => NamespaceMode::Private,
        Some("host") => NamespaceMode::Host,
        Some(other) => match other.split_once(':') {
            Some(("container", name)) if shared && !name.is_empty() => {
                NamespaceMode::Container(name.to_owned())
            }
            Some(("ns", path)) if !path.is_empty() => NamespaceMode::Path(path.into()),
            _ if shared => return Err(unknown(option, other, "private, host and container:NAME")),
            _ => return Err(unknown(option, other, "private and host")),
        },
    })
}

fn security(args: &Args) -> Result<Security, Failure> {
    let mut out = Security {
        privileged: args.privileged,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        ..Security::default()
    };
    for option in &args.security_opt {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => out.no_new_privileges = Some(true),
            ("no-new-privileges", "false") => out.no_new_privileges = Some(false),
            ("seccomp", "unconfined") => out.seccomp = SeccompChoice::Unconfined,
            ("seccomp", "builtin") => out.seccomp = SeccompChoice::Default,
            ("seccomp", file) if !file.is_empty() => out.seccomp = SeccompChoice::Profile(file.into()),
            ("systempaths", "unconfined") => out.unmask_system_paths = true,
            // There is nothing to switch off: neither is used.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => {
                return Err(Spelling::new(format!("unknown security option '{option}'"))
                    .with_hint("known are seccomp=FILE, seccomp=unconfined, no-new-privileges and systempaths=unconfined")
                    .into());
            }
        }
    }
    Ok(out)
}

fn pairs(list: &[String], what: &str) -> Result<Vec<(String, String)>, Failure> {
    list.iter()
        .map(|text| {
            let (name, value) =
                text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                    Failure::new(format!("invalid {what} '{text}'")).with_hint("write NAME=VALUE")
                })?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use isles_spec::NetworkMode;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Workload, Failure> {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        workload(&Line::try_parse_from(words).unwrap().args)
    }

    #[test]
    fn options_become_a_workload() {
        let w = parse(
            "-it --rm -e A=1 -w /w -u 5 --memory 64m --cpus 1.5 --pids-limit -1 --network none x ls -la",
        )
        .unwrap();
        assert!(w.tty && w.interactive && w.remove);
        assert_eq!((w.resources.memory, w.resources.nano_cpus), (Some(64 << 20), Some(1_500_000_000)));
        assert_eq!(w.resources.pids, None);
        assert_eq!(w.network, NetworkMode::None);
        let w = parse("--entrypoint= --security-opt no-new-privileges --security-opt seccomp=/p.json --pid container:a x").unwrap();
        assert_eq!(w.entrypoint, Some(vec![]));
        assert_eq!(w.security.no_new_privileges, Some(true));
        assert_eq!(w.security.seccomp, SeccompChoice::Profile("/p.json".into()));
        assert_eq!(w.pid, NamespaceMode::Container("a".into()));
        let w = parse("-v /a:/b:ro --mount type=tmpfs,target=/t --tmpfs /u:size=1m --device /dev/null x")
            .unwrap();
        assert_eq!((w.mounts.len(), w.devices.len()), (3, 1));
    }

    #[test]
    fn options_that_are_refused_say_why() {
        for (line, word) in [
            ("--restart sometimes x", "'sometimes'"),
            ("--restart always --rm x", "cannot start again"),
            ("--log-driver fluentd x", "'fluentd'"),
            ("--log-opt max-size=1 x", "64k"),
            ("-p 80:x x", "'80:x'"),
            ("-p 80 --network host x", "network of the container's own"),
            ("--ip 10.0.0.2 --network none x", "network of the container's own"),
            ("--network one --network host x", "'host'"),
            ("--network one --network one x", "twice"),
            ("--network pod:x x", "'pod:x'"),
            ("--network one --network container:x x", "'container:…'"),
            ("--network one:ip=x x", "'ip=x'"),
            ("--network name=host,ip=10.0.0.2 x", "'name=host,ip=10.0.0.2'"),
            ("--network one:ip=10.0.0.2 --ip 10.0.0.3 x", "two addresses"),
            ("--network one:mac=02:00:00:00:00:01 --mac-address 02:00:00:00:00:02 x", "twice"),
            ("--network one --network name=one,alias=x x", "twice"),
            ("--link db x", "links"),
            ("--mac-address 01:00:00:00:00:01 x", "'01:00:00:00:00:01'"),
            ("--pid nowhere x", "'nowhere'"),
            ("--uts container:a x", "'container:a'"),
            ("--memory 1k x", "too small"),
            ("--memory-swap 1g x", "--memory"),
            ("--cpus 0 x", "CPUs"),
            ("--cpus 1 --cpu-quota 50000 x", "--cpus"),
            ("--cpu-period 7 x", "7"),
            ("--cpu-quota 7 x", "7"),
            ("--memory-reservation much x", "'much'"),
            ("--label-file /nonexistent/labels x", "/nonexistent/labels"),
            ("--security-opt magic x", "'magic'"),
            ("-e =1 x", "'=1'"),
            ("--env-file /nonexistent/env x", "/nonexistent/env"),
            ("-h a/b x", "'a/b'"),
            ("-w rel x", "'rel'"),
            ("--ulimit nofile x", "'nofile'"),
            ("--sysctl a x", "'a'"),
            ("--userns moon x", "'moon'"),
            ("--stop-signal FOO x", "'FOO'"),
            ("--label =x x", "'=x'"),
            ("--image-mount loop x", "'loop'"),
        ] {
            let failure = parse(line).unwrap_err();
            assert!(failure.message.contains(word), "{line}: {}", failure.message);
            assert!(failure.hint.is_some() || !failure.causes.is_empty(), "{line}");
        }
    }

    #[test]
    fn the_last_word_counts_and_an_empty_one_is_none() {
        let empty = ["--name=", "-w=", "-u=", "--hostname=", "--cidfile=", "--platform=", "--stop-signal="];
        let w = parse(&format!("--rm --rm --memory 1g --memory 64m {} x", empty.join(" "))).unwrap();
        assert_eq!(w.resources.memory, Some(64 << 20));
        assert_eq!((w.name, w.user, w.hostname, w.working_dir), (None, None, None, None));
        assert_eq!((w.platform, w.stop_signal), (None, None));
        let w = parse("-e NOT_SET_ANYWHERE_7 --stop-signal SIGINT x").unwrap();
        assert_eq!(w.env, ["NOT_SET_ANYWHERE_7"], "takes the image's away");
        assert_eq!(w.stop_signal.as_deref(), Some("SIGINT"));
        assert!(Line::try_parse_from(["run", "--red-only", "x"]).is_err(), "no SOURCE begins so");
        let words = Line::try_parse_from(["run", "x", "ls", "--rm"]).unwrap().args.words;
        assert_eq!(words, ["x", "ls", "--rm"]);
    }
}
