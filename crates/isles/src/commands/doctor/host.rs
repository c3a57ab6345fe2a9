//! The kernel, what this process may do, and the clock.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isles_sandbox::capability::CapabilitySet;
use isles_sandbox::identity::is_real_root;

use super::Finding;

/// 2024-01-01. No machine that runs this program has an earlier day.
const EARLIEST: u64 = 1_704_067_200;
/// The clock may be so far behind what others wrote without harm.
const TOLERANCE: Duration = Duration::from_secs(24 * 3600);
/// What root needs to set up a container as root.
const NEEDED: [&str; 9] = [
    "CAP_SYS_ADMIN",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETFCAP",
];

pub fn findings() -> Vec<Finding> {
    vec![kernel(), user(), capabilities(), seccomp(), clock()]
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let machine = uname.machine().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!("Linux {release} on {machine}");
    match version {
        (0..=4, _) | (5, 0..=10) => Finding::note(
            "kernel",
            text,
            "5.11 or later lets ordinary users mount overlays; older ones run as root only",
        ),
        _ => Finding::ok("kernel", text),
    }
}

fn user() -> Finding {
    let uid = rustix::process::geteuid().as_raw();
    let text = match (is_real_root(), uid) {
        (true, _) => "root".to_owned(),
        (false, 0) => "root of a user namespace".to_owned(),
        (false, uid) => format!("an ordinary user, with the ID {uid}"),
    };
    Finding::ok("user", text)
}

/// A field of this process's status (proc_pid_status(5)).
fn status(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn capabilities() -> Finding {
    const CHECK: &str = "capabilities";
    let Some(have) = status("CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok()) else {
        return Finding::note(CHECK, "cannot be read", "mount /proc");
    };
    let have = CapabilitySet(have);
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| CapabilitySet::bit(name).is_some_and(|bit| !have.has(bit)))
        .collect();
    let locked = status("NoNewPrivs").as_deref() == Some("1");
    match (is_real_root(), missing.is_empty()) {
        (true, false) => Finding::note(
            CHECK,
            format!("root without {}", missing.join(", ")),
            "containers are then made as an ordinary user makes them; start this program with more rights",
        ),
        (true, true) => Finding::ok(CHECK, "all that is needed"),
        (false, _) if locked => Finding::note(
            CHECK,
            "this process cannot gain rights (no_new_privs), so newuidmap does not work",
            "start from a session without no_new_privs to use subordinate IDs",
        ),
        (false, _) => Finding::ok(CHECK, "none are needed: a user namespace gives them"),
    }
}

fn seccomp() -> Finding {
    const CHECK: &str = "seccomp";
    let Ok(actions) = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") else {
        return Finding::problem(
            CHECK,
            "the kernel has no system call filters",
            "use a kernel with CONFIG_SECCOMP_FILTER, or run with --security-opt seccomp=unconfined",
        );
    };
    let under = if status("Seccomp").as_deref() == Some("2") {
        "; this process is itself under a filter, which containers inherit"
    } else {
        ""
    };
    Finding::ok(
        CHECK,
        format!("filters with {}{under}", actions.split_whitespace().collect::<Vec<_>>().join(", ")),
    )
}

fn clock() -> Finding {
    const CHECK: &str = "clock";
    const CURE: &str = "set it, for example with `timedatectl set-ntp true`; certificates depend on it";
    let now = SystemTime::now();
    if now < UNIX_EPOCH + Duration::from_secs(EARLIEST) {
        return Finding::note(CHECK, "it shows a time before 2024", CURE);
    }
    // What was written after now shows that the clock has been set back.
    let written = ["/proc/self/exe", "/etc", "/var/lib/dpkg/status", "/var/log/wtmp", "/etc/resolv.conf"];
    for path in written {
        let Ok(time) = fs::metadata(path).and_then(|m| m.modified()) else { continue };
        if time.duration_since(now).is_ok_and(|ahead| ahead > TOLERANCE) {
            return Finding::note(
                CHECK,
                format!("it is behind: {path} was changed after the time it shows"),
                CURE,
            );
        }
    }
    Finding::ok(CHECK, "plausible")
}
