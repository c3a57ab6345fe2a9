//! The process of `config.json`, or of an exec, in the words of the sandbox; and names of signals.

use std::os::fd::OwnedFd;

use super::config::{self, invalid};
use super::{Error, Result};
use crate::capability::CapabilitySet;
use crate::seccomp::{self, Bpf};
use crate::setup;

/// What a process becomes, whether it starts a container or joins one.
pub(super) fn plan(
    process: &config::Process,
    linux: &config::Linux,
    seccomp: Vec<Bpf>,
    warn: &mut dyn FnMut(String),
) -> Result<setup::Process> {
    let capabilities = match &process.capabilities {
        Some(sets) => capabilities(sets, warn),
        None => setup::Capabilities::default(),
    };
    let mut rlimits = Vec::with_capacity(process.rlimits.len());
    for limit in &process.rlimits {
        let resource = crate::rlimit::from_oci(&limit.kind)
            .ok_or_else(|| invalid(format!("no resource limit is called '{}'", limit.kind)))?;
        // Engines write their defaults here as well as what a user wishes, and nobody can tell them apart.
        let (_, hard) = crate::sys::process::get_rlimit(resource).unwrap_or((u64::MAX, u64::MAX));
        if limit.hard > hard && !may_raise_limits() {
            warn(format!(
                "{} stays at {hard}: {} is above it and needs CAP_SYS_RESOURCE",
                limit.kind, limit.hard
            ));
        }
        rlimits.push(setup::Rlimit {
            resource,
            soft: limit.soft,
            hard: limit.hard,
            clamp: !may_raise_limits(),
        });
    }
    confinement(process)?;
    let bytes = |list: &[String]| list.iter().map(|s| s.clone().into_bytes()).collect();
    Ok(setup::Process {
        args: bytes(&process.args),
        env: bytes(&process.env),
        cwd: process.cwd.clone().into(),
        create_cwd: true,
        cwd_else: Vec::new(),
        keep_descriptors: false,
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids.clone(),
        umask: process.user.umask,
        capabilities,
        no_new_privileges: process.no_new_privileges,
        apparmor: Some(process.apparmor_profile.clone()).filter(|p| !p.is_empty() && p != "unconfined"),
        rlimits,
        oom_score_adj: process.oom_score_adj,
        seccomp,
        terminal: process.terminal.then(|| {
            let size = process.console_size.unwrap_or_default();
            (size.height, size.width)
        }),
        init: false,
        init_stays: false,
        new_session: true,
        scheduling: scheduling(process, linux)?,
    })
}

fn may_raise_limits() -> bool {
    let sys_resource = CapabilitySet::bit("SYS_RESOURCE").unwrap_or(0);
    crate::sys::process::capget().is_ok_and(|(effective, _, _)| CapabilitySet(effective).has(sys_resource))
}

/// The five sets; a name that no kernel knows is a warning, as the specification wants it.
fn capabilities(sets: &config::Capabilities, warn: &mut dyn FnMut(String)) -> setup::Capabilities {
    let mut set = |names: &[String]| {
        names.iter().fold(CapabilitySet::EMPTY, |set, name| match CapabilitySet::bit(name) {
            Some(bit) => set.with(bit),
            None => {
                warn(format!("no capability is called '{name}'"));
                set
            }
        })
    };
    setup::Capabilities {
        bounding: set(&sets.bounding),
        effective: set(&sets.effective),
        permitted: set(&sets.permitted),
        inheritable: set(&sets.inheritable),
        ambient: set(&sets.ambient),
    }
}

/// The capabilities that decide about the conditional parts of a seccomp profile.
pub(super) fn bounding(process: Option<&config::Process>) -> CapabilitySet {
    let names = process.and_then(|p| p.capabilities.as_ref()).map(|c| c.bounding.as_slice()).unwrap_or(&[]);
    names.iter().filter_map(|n| CapabilitySet::bit(n)).fold(CapabilitySet::EMPTY, CapabilitySet::with)
}

/// The filter of `linux.seccomp`.
pub(super) fn filter(config: &config::Config) -> Result<Vec<Bpf>> {
    let Some(section) = config.linux.seccomp.clone().filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let host = seccomp::Host::here(bounding(config.process.as_ref()))?;
    let profile = seccomp::Profile::from_value(section, &host)?;
    Ok(vec![seccomp::compile(&profile)?])
}

/// Mandatory access control that is asked for must exist.
fn confinement(process: &config::Process) -> Result<()> {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with(b"Y"));
    if !process.apparmor_profile.is_empty() && process.apparmor_profile != "unconfined" && !enabled {
        return Err(invalid(format!(
            "process.apparmorProfile '{}' cannot be applied: AppArmor is not available here",
            process.apparmor_profile
        )));
    }
    if !process.selinux_label.is_empty() {
        return Err(invalid(format!(
            "process.selinuxLabel '{}' cannot be applied: SELinux is not available here",
            process.selinux_label
        )));
    }
    Ok(())
}

fn scheduling(process: &config::Process, linux: &config::Linux) -> Result<setup::Scheduling> {
    let io_priority = match &process.io_priority {
        None => None,
        Some(wanted) => {
            let class = match wanted.class.as_str() {
                "IOPRIO_CLASS_RT" => 1,
                "IOPRIO_CLASS_BE" => 2,
                "IOPRIO_CLASS_IDLE" => 3,
                other => return Err(invalid(format!("no I/O class is called '{other}'"))),
            };
            let level = u8::try_from(wanted.priority)
                .ok()
                .filter(|l| *l < 8)
                .ok_or_else(|| invalid(format!("I/O priority {} is not between 0 and 7", wanted.priority)))?;
            Some((class, level))
        }
    };
    let policy = process.scheduler.as_ref().map(scheduler).transpose()?;
    let personality = match &linux.personality {
        None => None,
        Some(p) if !p.flags.is_empty() => return Err(invalid("linux.personality.flags is not supported")),
        Some(p) => Some(match p.domain.as_str() {
            "LINUX" => 0,
            "LINUX32" => 8,
            other => return Err(invalid(format!("no personality is called '{other}'"))),
        }),
    };
    Ok(setup::Scheduling { io_priority, policy, affinity: None, personality })
}

fn scheduler(wanted: &config::Scheduler) -> Result<setup::SchedulingPolicy> {
    const POLICIES: [&str; 7] =
        ["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"];
    const FLAGS: [&str; 7] = [
        "SCHED_FLAG_RESET_ON_FORK",
        "SCHED_FLAG_RECLAIM",
        "SCHED_FLAG_DL_OVERRUN",
        "SCHED_FLAG_KEEP_POLICY",
        "SCHED_FLAG_KEEP_PARAMS",
        "SCHED_FLAG_UTIL_CLAMP_MIN",
        "SCHED_FLAG_UTIL_CLAMP_MAX",
    ];
    let policy = POLICIES
        .iter()
        .position(|p| *p == wanted.policy)
        .ok_or_else(|| invalid(format!("no scheduling policy is called '{}'", wanted.policy)))?;
    let mut flags = 0;
    for flag in &wanted.flags {
        let bit = FLAGS
            .iter()
            .position(|f| f == flag)
            .ok_or_else(|| invalid(format!("no scheduling flag is called '{flag}'")))?;
        flags |= 1 << bit;
    }
    Ok(setup::SchedulingPolicy {
        policy: policy as u32,
        flags,
        nice: wanted.nice,
        priority: u32::try_from(wanted.priority)
            .map_err(|_| invalid(format!("scheduling priority {} is negative", wanted.priority)))?,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    })
}

/// A list of processors as `0-3,7`.
pub(super) fn cpu_list(text: &str) -> Result<Vec<u32>> {
    let bad = || invalid(format!("'{text}' is not a list of processors"));
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) =
            (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
        if last < first || last >= 1024 {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    if cpus.is_empty() { Err(bad()) } else { Ok(cpus) }
}

/// The caller's descriptors 3, 4, … that the program is to have as well.
pub(super) fn preserved(count: u32) -> Result<Vec<OwnedFd>> {
    (3..3 + count as i32)
        .map(|fd| {
            // SAFETY: the number is only borrowed for the call; a closed one is an error of fcntl(2).
            let copy = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
            copy.map_err(|source| Error::Io { operation: format!("preserve file descriptor {fd}"), source })
        })
        .collect()
}

/// A signal by name, with or without `SIG`, or by number.
pub fn parse_signal(text: &str) -> Result<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let unknown = || Error::Signal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    if let Some(index) = NAMES.iter().position(|n| *n == name) {
        return Ok(index as i32 + 1);
    }
    // The C library keeps the first two real-time signals for itself.
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(34),
        (Some(more), _) => more.strip_prefix('+').and_then(|n| n.parse::<i32>().ok()).map(|n| 34 + n),
        (_, Some("")) => Some(64),
        (_, Some(less)) => less.strip_prefix('-').and_then(|n| n.parse::<i32>().ok()).map(|n| 64 - n),
        _ => None,
    };
    real_time.filter(|n| (34..=64).contains(n)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("0", 0),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGIOT", 6),
            ("SYS", 31),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "SIG", "FOO", "-1", "65", "RTMIN+40", "RTMAX+1", "15x"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processor_lists() {
        assert_eq!(cpu_list("0-2,7").unwrap(), [0, 1, 2, 7]);
        for bad in ["", "a", "2-1", "1-", "5000", "0-4000000000"] {
            assert!(cpu_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_applied_is_named() {
        for (text, word) in [
            (r#"{"rlimits":[{"type":"RLIMIT_TEST","soft":1,"hard":1}]}"#, "RLIMIT_TEST"),
            (r#"{"apparmorProfile":"strict"}"#, "AppArmor"),
            (r#"{"selinuxLabel":"a:b:c"}"#, "SELinux"),
            (r#"{"ioPriority":{"class":"FAST","priority":1}}"#, "FAST"),
            (r#"{"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":9}}"#, "priority 9"),
            (r#"{"scheduler":{"policy":"SCHED_BEST"}}"#, "SCHED_BEST"),
            (r#"{"scheduler":{"policy":"SCHED_BATCH","flags":["X"]}}"#, "'X'"),
        ] {
            let process: config::Process = serde_json::from_str(text).unwrap();
            let error = plan(&process, &config::Linux::default(), vec![], &mut |_| {}).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let mut warnings = Vec::new();
        let process: config::Process =
            serde_json::from_str(r#"{"capabilities":{"bounding":["CAP_CHOWN","CAP_NOVEL"]}}"#).unwrap();
        let planned = plan(&process, &config::Linux::default(), vec![], &mut |w| warnings.push(w)).unwrap();
        assert_eq!(planned.capabilities.bounding, CapabilitySet(1));
        assert_eq!(warnings, ["no capability is called 'CAP_NOVEL'"]);
    }
}
