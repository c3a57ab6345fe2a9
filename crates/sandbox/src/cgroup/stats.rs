//! What a group has used.

use super::control::field;
use super::files;
use super::group::{Group, Member};

/// Bytes and operations on one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoStats {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Counters of a group; `None` where no controller counts it here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nanoseconds.
    pub cpu_total: Option<u64>,
    pub cpu_user: Option<u64>,
    pub cpu_system: Option<u64>,
    pub cpu_periods: Option<u64>,
    pub cpu_throttled_periods: Option<u64>,
    /// Nanoseconds.
    pub cpu_throttled: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    pub memory_peak: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Memory and swap on v1, swap alone on v2.
    pub swap: Option<u64>,
    /// Page cache that could go at once, which tools subtract from `memory`.
    pub memory_inactive_file: Option<u64>,
    /// All that the kernel counts, by its names.
    pub memory_details: Vec<(String, u64)>,
    pub oom_kills: u64,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    pub io: Vec<IoStats>,
}

/// Nanoseconds in a tick of v1's cpuacct.stat, which counts in USER_HZ.
const TICK: u64 = 10_000_000;

impl Group {
    /// Reads all counters that there are.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { oom_kills: self.oom_kills(), ..Stats::default() };
        if let Some(m) = &self.unified {
            stats.read_v2(m);
        }
        if let Some(m) = self.v1_member("cpuacct") {
            stats.cpu_total = number(m, "cpuacct.usage");
            let text = files::read(&m.dir, "cpuacct.stat").unwrap_or_default();
            stats.cpu_user = named(&text, "user").map(|t| t * TICK);
            stats.cpu_system = named(&text, "system").map(|t| t * TICK);
        }
        if let Some(m) = self.v1_member("cpu") {
            let text = files::read(&m.dir, "cpu.stat").unwrap_or_default();
            stats.cpu_periods = named(&text, "nr_periods");
            stats.cpu_throttled_periods = named(&text, "nr_throttled");
            stats.cpu_throttled = named(&text, "throttled_time");
        }
        if let Some(m) = self.v1_member("memory") {
            stats.memory = number(m, "memory.usage_in_bytes");
            stats.memory_peak = number(m, "memory.max_usage_in_bytes");
            // No limit is the largest multiple of a page.
            stats.memory_limit = number(m, "memory.limit_in_bytes").filter(|n| *n < i64::MAX as u64 - 0xffff);
            stats.swap = number(m, "memory.memsw.usage_in_bytes");
            stats.details(m, "total_inactive_file");
        }
        if let Some(m) = self.v1_member("pids") {
            stats.read_pids(m);
        }
        if let Some(m) = self.v1_member("blkio") {
            stats.read_blkio(m);
        }
        stats
    }
}

impl Stats {
    fn read_v2(&mut self, m: &Member) {
        let cpu = files::read(&m.dir, "cpu.stat").unwrap_or_default();
        let nanoseconds = |name| named(&cpu, name).map(|us| us * 1000);
        self.cpu_total = nanoseconds("usage_usec");
        self.cpu_user = nanoseconds("user_usec");
        self.cpu_system = nanoseconds("system_usec");
        self.cpu_periods = named(&cpu, "nr_periods");
        self.cpu_throttled_periods = named(&cpu, "nr_throttled");
        self.cpu_throttled = nanoseconds("throttled_usec");
        self.memory = number(m, "memory.current");
        self.memory_peak = number(m, "memory.peak");
        self.memory_limit = number(m, "memory.max");
        self.swap = number(m, "memory.swap.current");
        self.details(m, "inactive_file");
        self.read_pids(m);
        for line in files::read(&m.dir, "io.stat").unwrap_or_default().lines() {
            let mut parts = line.split(' ');
            let Some((major, minor)) = parts.next().and_then(device) else { continue };
            let mut io = IoStats { major, minor, ..IoStats::default() };
            for (key, value) in parts.filter_map(|p| p.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => io.read_bytes = value,
                    "wbytes" => io.write_bytes = value,
                    "rios" => io.reads = value,
                    "wios" => io.writes = value,
                    _ => {}
                }
            }
            self.io.push(io);
        }
    }

    fn read_pids(&mut self, m: &Member) {
        self.pids = number(m, "pids.current");
        self.pids_limit = number(m, "pids.max");
    }

    fn details(&mut self, m: &Member, inactive_file: &str) {
        let text = files::read(&m.dir, "memory.stat").unwrap_or_default();
        self.memory_inactive_file = named(&text, inactive_file);
        self.memory_details = text
            .lines()
            .filter_map(|l| l.split_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect();
    }

    fn read_blkio(&mut self, m: &Member) {
        for (file, bytes) in [
            ("blkio.throttle.io_service_bytes_recursive", true),
            ("blkio.throttle.io_serviced_recursive", false),
        ] {
            for line in files::read(&m.dir, file).unwrap_or_default().lines() {
                let parts: Vec<&str> = line.split(' ').collect();
                let [dev, operation, value] = parts[..] else { continue };
                let (Some((major, minor)), Ok(value)) = (device(dev), value.parse::<u64>()) else { continue };
                let at = self.io.iter().position(|io| (io.major, io.minor) == (major, minor));
                let at = at.unwrap_or_else(|| {
                    self.io.push(IoStats { major, minor, ..IoStats::default() });
                    self.io.len() - 1
                });
                match (operation, bytes) {
                    ("Read", true) => self.io[at].read_bytes = value,
                    ("Write", true) => self.io[at].write_bytes = value,
                    ("Read", false) => self.io[at].reads = value,
                    ("Write", false) => self.io[at].writes = value,
                    _ => {}
                }
            }
        }
    }
}

fn number(m: &Member, file: &str) -> Option<u64> {
    files::read(&m.dir, file).ok()?.trim().parse().ok()
}

fn named(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.parse().ok()
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
