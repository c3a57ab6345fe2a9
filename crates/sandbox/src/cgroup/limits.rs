//! Limits, and which files of which controller carry them on v1 and on v2.
//!
//! Everything is turned into a list of writes first, so that the translation is plain data.

use std::collections::BTreeMap;

use isles_spec::Resources;

use super::DeviceRule;

/// A weight or a rate of one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    pub major: u64,
    pub minor: u64,
    pub weight: u16,
}

/// A ceiling for one block device, bytes or operations per second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    pub major: u64,
    pub minor: u64,
    pub rate: u64,
}

/// Everything that a group can be held to; nothing is set where a member is `None` or empty. Values are
/// those of cgroup v1 and the OCI (config-linux.md#control-groups); -1 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<i64>,
    /// Memory plus swap, bytes.
    pub memory_swap: Option<i64>,
    pub memory_reservation: Option<i64>,
    /// Buffers of TCP, bytes; only on v1.
    pub memory_tcp: Option<i64>,
    /// 0 to 100.
    pub swappiness: Option<u64>,
    pub disable_oom_killer: bool,
    pub cpu_shares: Option<u64>,
    /// Microseconds.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpu_burst: Option<u64>,
    pub cpu_realtime_runtime: Option<i64>,
    pub cpu_realtime_period: Option<u64>,
    pub cpu_idle: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids: Option<i64>,
    pub io_weight: Option<u16>,
    pub io_weights: Vec<Weight>,
    pub read_bps: Vec<Throttle>,
    pub write_bps: Vec<Throttle>,
    pub read_iops: Vec<Throttle>,
    pub write_iops: Vec<Throttle>,
    /// Page size as the kernel writes it (`2MB`) and bytes.
    pub hugetlb: Vec<(String, u64)>,
    pub net_class: Option<u32>,
    /// Interface and priority.
    pub net_priorities: Vec<(String, u32)>,
    /// Device, handles, objects.
    pub rdma: Vec<(String, Option<u32>, Option<u32>)>,
    /// Files of cgroup v2 by name.
    pub unified: BTreeMap<String, String>,
    /// `None` leaves devices alone.
    pub devices: Option<Vec<DeviceRule>>,
    /// Where there is a v2 tree, its program decides about devices, also on a host with a v1 hierarchy for them: to
    /// enter that means to wait for the kernel's readers at each start.
    pub unified_devices: bool,
}

impl From<&Resources> for Limits {
    fn from(r: &Resources) -> Limits {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (quota, period) = match r.nano_cpus {
            // A period of 100 ms, as Docker has it; the quota is at least the kernel's smallest, 1 ms.
            Some(nano) => (Some(signed(nano / 10_000).max(1000)), Some(100_000)),
            None => (r.cpu_quota, r.cpu_period),
        };
        Limits {
            memory: r.memory.map(signed),
            memory_swap: r.memory_swap,
            memory_reservation: r.memory_reservation.map(signed),
            cpu_shares: r.cpu_shares,
            cpu_quota: quota,
            cpu_period: period,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
            pids: r.pids,
            swappiness: r.swappiness,
            disable_oom_killer: r.oom_kill_disable,
            io_weight: r.block_weight,
            hugetlb: r.huge_pages.iter().map(|(size, bytes)| (size.clone(), *bytes)).collect(),
            unified: r.unified.clone(),
            ..Limits::default()
        }
    }
}

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    /// What the caller knows it by.
    pub limit: &'static str,
    /// A file that older or newer kernels have instead.
    pub or_else: Option<(String, String)>,
}

impl Write {
    fn new(controller: &'static str, limit: &'static str, file: &str, value: impl ToString) -> Write {
        Write { controller, file: file.to_owned(), value: value.to_string(), limit, or_else: None }
    }

    fn or_else(mut self, file: &str, value: impl ToString) -> Write {
        self.or_else = Some((file.to_owned(), value.to_string()));
        self
    }
}

impl Limits {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// The writes for cgroup v1, without devices.
    pub(super) fn v1(&self) -> Vec<Write> {
        let mut out = Vec::new();
        // Both may shrink or grow; the group knows in which order, see Group::update.
        if let Some(bytes) = self.memory.filter(|b| *b != 0) {
            out.push(Write::new("memory", "memory", "memory.limit_in_bytes", bytes));
        }
        if let Some(bytes) = self.memory_swap.filter(|b| *b != 0) {
            out.push(Write::new("memory", "swap", "memory.memsw.limit_in_bytes", bytes));
        }
        if let Some(bytes) = self.memory_reservation.filter(|b| *b != 0) {
            out.push(Write::new("memory", "memory reservation", "memory.soft_limit_in_bytes", bytes));
        }
        if let Some(bytes) = self.memory_tcp.filter(|b| *b != 0) {
            out.push(Write::new("memory", "memory of TCP", "memory.kmem.tcp.limit_in_bytes", bytes));
        }
        if let Some(value) = self.swappiness {
            out.push(Write::new("memory", "swappiness", "memory.swappiness", value));
        }
        if self.disable_oom_killer {
            out.push(Write::new("memory", "the OOM killer", "memory.oom_control", 1));
        }
        if let Some(shares) = self.cpu_shares.filter(|s| *s != 0) {
            out.push(Write::new("cpu", "CPU shares", "cpu.shares", shares));
        }
        if let Some(period) = self.cpu_period.filter(|p| *p != 0) {
            out.push(Write::new("cpu", "CPU period", "cpu.cfs_period_us", period));
        }
        if let Some(quota) = self.cpu_quota.filter(|q| *q != 0) {
            out.push(Write::new("cpu", "CPU quota", "cpu.cfs_quota_us", quota));
        }
        if let Some(burst) = self.cpu_burst {
            out.push(Write::new("cpu", "CPU burst", "cpu.cfs_burst_us", burst));
        }
        if let Some(period) = self.cpu_realtime_period.filter(|p| *p != 0) {
            out.push(Write::new("cpu", "real-time period", "cpu.rt_period_us", period));
        }
        if let Some(runtime) = self.cpu_realtime_runtime.filter(|r| *r != 0) {
            out.push(Write::new("cpu", "real-time runtime", "cpu.rt_runtime_us", runtime));
        }
        if let Some(idle) = self.cpu_idle {
            out.push(Write::new("cpu", "CPU idle", "cpu.idle", idle));
        }
        self.cpuset(&mut out);
        if let Some(pids) = self.pids.filter(|p| *p != 0) {
            out.push(Write::new("pids", "processes", "pids.max", max(pids)));
        }
        if let Some(weight) = self.io_weight.filter(|w| *w != 0) {
            out.push(
                Write::new("blkio", "block I/O weight", "blkio.weight", weight)
                    .or_else("blkio.bfq.weight", weight),
            );
        }
        for w in &self.io_weights {
            let line = format!("{}:{} {}", w.major, w.minor, w.weight);
            out.push(
                Write::new("blkio", "block I/O weight", "blkio.weight_device", &line)
                    .or_else("blkio.bfq.weight_device", &line),
            );
        }
        for (list, limit, file) in [
            (&self.read_bps, "read rate", "blkio.throttle.read_bps_device"),
            (&self.write_bps, "write rate", "blkio.throttle.write_bps_device"),
            (&self.read_iops, "read operations", "blkio.throttle.read_iops_device"),
            (&self.write_iops, "write operations", "blkio.throttle.write_iops_device"),
        ] {
            for t in list {
                out.push(Write::new("blkio", limit, file, format!("{}:{} {}", t.major, t.minor, t.rate)));
            }
        }
        for (size, bytes) in &self.hugetlb {
            out.push(Write::new("hugetlb", "huge pages", &format!("hugetlb.{size}.limit_in_bytes"), bytes));
        }
        if let Some(class) = self.net_class.filter(|c| *c != 0) {
            out.push(Write::new("net_cls", "network class", "net_cls.classid", class));
        }
        for (interface, priority) in &self.net_priorities {
            let line = format!("{interface} {priority}");
            out.push(Write::new("net_prio", "network priorities", "net_prio.ifpriomap", line));
        }
        self.rdma(&mut out);
        out
    }

    /// The writes for cgroup v2, without devices and the caller's own files.
    pub(super) fn v2(&self) -> Vec<Write> {
        let mut out = Vec::new();
        if let Some(bytes) = self.memory.filter(|b| *b != 0) {
            out.push(Write::new("memory", "memory", "memory.max", max(bytes)));
        }
        match (self.memory_swap.filter(|s| *s != 0), self.memory) {
            (Some(-1), _) => out.push(Write::new("memory", "swap", "memory.swap.max", "max")),
            (Some(total), Some(memory)) if memory > 0 && total >= memory => {
                out.push(Write::new("memory", "swap", "memory.swap.max", total - memory));
            }
            // Without a memory limit the sum says nothing about swap alone; Group::check has refused it.
            _ => {}
        }
        if let Some(bytes) = self.memory_reservation.filter(|b| *b != 0) {
            out.push(Write::new("memory", "memory reservation", "memory.low", max(bytes)));
        }
        if let Some(shares) = self.cpu_shares.filter(|s| *s != 0) {
            out.push(Write::new("cpu", "CPU shares", "cpu.weight", cpu_weight(shares)));
        }
        if self.cpu_quota.is_some_and(|q| q != 0) || self.cpu_period.is_some_and(|p| p != 0) {
            let quota = self.cpu_quota.filter(|q| *q > 0).map_or("max".to_owned(), |q| q.to_string());
            let period = self.cpu_period.filter(|p| *p != 0).unwrap_or(100_000);
            out.push(Write::new("cpu", "CPU quota", "cpu.max", format!("{quota} {period}")));
        }
        if let Some(burst) = self.cpu_burst {
            out.push(Write::new("cpu", "CPU burst", "cpu.max.burst", burst));
        }
        if let Some(idle) = self.cpu_idle {
            out.push(Write::new("cpu", "CPU idle", "cpu.idle", idle));
        }
        self.cpuset(&mut out);
        if let Some(pids) = self.pids.filter(|p| *p != 0) {
            out.push(Write::new("pids", "processes", "pids.max", max(pids)));
        }
        if let Some(weight) = self.io_weight.filter(|w| *w != 0) {
            out.push(
                Write::new("io", "block I/O weight", "io.bfq.weight", weight)
                    .or_else("io.weight", format!("default {}", io_weight(weight))),
            );
        }
        for w in &self.io_weights {
            out.push(
                Write::new(
                    "io",
                    "block I/O weight",
                    "io.bfq.weight",
                    format!("{}:{} {}", w.major, w.minor, w.weight),
                )
                .or_else("io.weight", format!("{}:{} {}", w.major, w.minor, io_weight(w.weight))),
            );
        }
        for (list, limit, key) in [
            (&self.read_bps, "read rate", "rbps"),
            (&self.write_bps, "write rate", "wbps"),
            (&self.read_iops, "read operations", "riops"),
            (&self.write_iops, "write operations", "wiops"),
        ] {
            for t in list {
                let rate = if t.rate == 0 { "max".to_owned() } else { t.rate.to_string() };
                out.push(Write::new("io", limit, "io.max", format!("{}:{} {key}={rate}", t.major, t.minor)));
            }
        }
        for (size, bytes) in &self.hugetlb {
            out.push(Write::new("hugetlb", "huge pages", &format!("hugetlb.{size}.max"), bytes));
        }
        self.rdma(&mut out);
        out
    }

    fn cpuset(&self, out: &mut Vec<Write>) {
        for (list, limit, file) in [
            (&self.cpuset_cpus, "processors", "cpuset.cpus"),
            (&self.cpuset_mems, "memory nodes", "cpuset.mems"),
        ] {
            if let Some(list) = list.as_deref().filter(|l| !l.is_empty()) {
                out.push(Write::new("cpuset", limit, file, list));
            }
        }
    }

    fn rdma(&self, out: &mut Vec<Write>) {
        for (device, handles, objects) in &self.rdma {
            let number = |n: &Option<u32>| n.map_or("max".to_owned(), |n| n.to_string());
            let line = format!("{device} hca_handle={} hca_object={}", number(handles), number(objects));
            out.push(Write::new("rdma", "RDMA", "rdma.max", line));
        }
    }
}

fn max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// 2..262144 of v1 onto 1..10000 of v2, as systemd, runc and crun agree.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// 10..1000 of v1 onto 1..10000 of v2.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(writes: Vec<Write>) -> Vec<String> {
        writes.into_iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    #[test]
    fn the_same_limits_on_both_versions() {
        let limits = Limits {
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            memory_reservation: Some(32 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpuset_cpus: Some("0-1".into()),
            pids: Some(-1),
            io_weight: Some(500),
            read_bps: vec![Throttle { major: 8, minor: 0, rate: 1000 }],
            hugetlb: vec![("2MB".into(), 4 << 20)],
            ..Limits::default()
        };
        assert_eq!(
            lines(limits.v1()),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=100663296",
                "memory.soft_limit_in_bytes=33554432",
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1",
                "pids.max=max",
                "blkio.weight=500",
                "blkio.throttle.read_bps_device=8:0 1000",
                "hugetlb.2MB.limit_in_bytes=4194304",
            ]
        );
        assert_eq!(
            lines(limits.v2()),
            [
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "memory.low=33554432",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "pids.max=max",
                "io.bfq.weight=500",
                "io.max=8:0 rbps=1000",
                "hugetlb.2MB.max=4194304",
            ]
        );
    }

    #[test]
    fn workload_resources() {
        let resources = Resources { nano_cpus: Some(1_500_000_000), pids: Some(9), ..Resources::default() };
        let limits = Limits::from(&resources);
        assert_eq!(
            (limits.cpu_quota, limits.cpu_period, limits.pids),
            (Some(150_000), Some(100_000), Some(9))
        );
        assert!(Limits::from(&Resources::default()).is_empty());
        assert_eq!(cpu_weight(2), 1);
        assert_eq!(cpu_weight(262_144), 10_000);
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}
