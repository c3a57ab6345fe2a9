//! What the processes of an instance use, from /proc: those in the PID namespace of its first process. So it needs no
//! control group, and nobody who makes one.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::failure::Failure;

/// The sum over all processes.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    at: Instant,
    /// Nanoseconds.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    pub memory_limit: u64,
    pub read: u64,
    pub written: u64,
    pub processes: u64,
}

impl Usage {
    pub fn cpu_percent_since(&self, before: &Usage) -> f64 {
        let passed = self.at.duration_since(before.at).as_nanos() as f64;
        if passed == 0.0 { 0.0 } else { self.cpu.saturating_sub(before.cpu) as f64 / passed * 100.0 }
    }

    pub fn memory_percent(&self) -> f64 {
        self.memory as f64 / self.memory_limit.max(1) as f64 * 100.0
    }
}

/// Looks at all processes that `first` has in its PID namespace.
pub fn usage(first: i32) -> Result<Usage, Failure> {
    let pids = isles_engine::in_namespace_of(first);
    if pids.is_empty() {
        return Err(Failure::new(format!("while getting stats for pid: there is no process {first}")));
    }
    let mut out = Usage {
        at: Instant::now(),
        cpu: 0,
        memory: 0,
        memory_limit: memory_of_host(),
        read: 0,
        written: 0,
        processes: 0,
    };
    for pid in pids {
        add(&Path::new("/proc").join(pid.to_string()), &mut out);
    }
    Ok(out)
}

/// A process that ends meanwhile adds nothing.
fn add(folder: &Path, out: &mut Usage) {
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let stat = read("stat");
    let Some((_, fields)) = stat.rsplit_once(") ") else { return };
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // utime and stime, in clock ticks (proc_pid_stat(5)).
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    out.cpu += (number(11) + number(12)) * tick;
    out.memory += number(21) * rustix::param::page_size() as u64;
    out.processes += 1;
    let io = read("io");
    let bytes = |key: &str| {
        io.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    out.read += bytes("read_bytes:");
    out.written += bytes("write_bytes:");
}

fn memory_of_host() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// In the shape of Apptainer's, as far as /proc tells.
pub fn as_json(usage: &Usage) -> String {
    let value = json!({
        "cpu_stats": { "cpu_usage": { "total_usage": usage.cpu } },
        "memory_stats": { "usage": { "usage": usage.memory, "limit": usage.memory_limit } },
        "pids_stats": { "current": usage.processes },
        "blkio_stats": { "io_service_bytes_recursive": [
            { "op": "read", "value": usage.read },
            { "op": "write", "value": usage.written },
        ] },
    });
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

/// As docker/go-units has it: `1.5MiB`.
pub fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = if size >= 100.0 {
        0
    } else if size >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{size:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let before = usage(std::process::id().cast_signed()).unwrap();
        assert!(before.memory > 0 && before.processes > 0 && before.memory_limit > before.memory);
        assert!(usage(i32::MAX).is_err());
        assert!(as_json(&before).contains("total_usage"));
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [(0, "0B"), (1024, "1KiB"), (1_572_864, "1.5MiB"), (123 << 30, "123GiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
