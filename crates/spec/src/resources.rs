//! Limits: of a container as a whole (cgroups(7)), and of each of its processes (setrlimit(2)).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::quantity::parse_bytes;
use crate::{Error, Result};

/// Limits; none is set where a field is `None`. A limit that the host cannot apply is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Memory plus swap in bytes; -1 for no limit on swap.
    pub memory_swap: Option<i64>,
    /// Bytes below which memory is not reclaimed first.
    pub memory_reservation: Option<u64>,
    /// Billionths of a processor.
    pub nano_cpus: Option<u64>,
    /// Relative weight as cgroup v1 has it, 2 to 262144.
    pub cpu_shares: Option<u64>,
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    /// A list as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Processes and threads; -1 for no limit.
    pub pids: Option<i64>,
    pub oom_score_adj: Option<i32>,
    /// How readily memory is swapped out, 0 to 100, which cgroup v1 alone has.
    pub swappiness: Option<u64>,
    /// Processes wait for memory instead of being killed, which cgroup v1 alone has.
    pub oom_kill_disable: bool,
    /// Relative weight of what is read from and written to block devices, 10 to 1000.
    pub block_weight: Option<u16>,
    /// The same for one of them.
    pub block_weights: Vec<BlockWeight>,
    pub block_rates: Vec<BlockRate>,
    /// Which devices may be opened, beyond what is usual; of two rules for one device the later counts. Only root's can have such.
    pub device_rules: Vec<DeviceRule>,
    /// Bytes in huge pages, by their size as the kernel writes it (`2MB`).
    pub huge_pages: BTreeMap<String, u64>,
    /// Files of cgroup v2 by their names.
    pub unified: BTreeMap<String, String>,
    /// Give in where a controller is missing, with a warning, rather than fail.
    pub best_effort: bool,
}

impl Resources {
    /// Whether any limit is asked for.
    pub fn is_empty(&self) -> bool {
        let Resources { oom_score_adj: _, best_effort: _, .. } = self;
        *self
            == Resources {
                oom_score_adj: self.oom_score_adj,
                best_effort: self.best_effort,
                ..Resources::default()
            }
    }
}

/// A rule for devices (runtime-spec config-linux.md#allowed-device-list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    pub allow: bool,
    /// `b` for block devices, `c` or `u` for others, `a` for all.
    #[serde(default = "DeviceRule::all", rename = "type")]
    pub kind: char,
    /// Every number where there is none.
    #[serde(default)]
    pub major: Option<i64>,
    #[serde(default)]
    pub minor: Option<i64>,
    /// Some of `r`, `w` and `m` for making a node; all of them where there is nothing.
    #[serde(default)]
    pub access: String,
}

impl DeviceRule {
    fn all() -> char {
        'a'
    }
}

/// The weight of a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockWeight {
    pub device: PathBuf,
    pub weight: u16,
}

impl BlockWeight {
    /// The weights that there are.
    const WEIGHTS: std::ops::RangeInclusive<i64> = 10..=1000;

    /// Whether a number is a weight.
    ///
    /// # Errors
    /// It is not.
    pub fn weight(number: i64) -> Result<u16> {
        let known = u16::try_from(number).ok().filter(|_| BlockWeight::WEIGHTS.contains(&number));
        known.ok_or_else(|| {
            Error::new(format!("invalid weight {number} of block devices"))
                .with_hint("a weight is between 10 and 1000")
        })
    }

    /// Reads `PATH:WEIGHT` as docker's `--blkio-weight-device` has it.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn parse(text: &str) -> Result<Self> {
        let odd = || {
            Error::new(format!("invalid weight '{text}' of a block device"))
                .with_hint("write the path of the device and its weight, 10 to 1000: /dev/sda:500")
        };
        let (device, weight) =
            text.rsplit_once(':').filter(|(path, _)| path.starts_with('/')).ok_or_else(odd)?;
        let weight = weight.parse().ok().and_then(|n| BlockWeight::weight(n).ok()).ok_or_else(odd)?;
        Ok(BlockWeight { device: device.into(), weight })
    }
}

/// The most that goes to or comes from a block device of the host, each second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRate {
    pub device: PathBuf,
    pub of: BlockTraffic,
    pub rate: u64,
}

/// What is counted at a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockTraffic {
    ReadBytes,
    WrittenBytes,
    Reads,
    Writes,
}

impl BlockRate {
    /// Reads `PATH:RATE` as docker's `--device-read-bps` and the like have it; bytes may have a unit.
    ///
    /// # Errors
    /// It is not of that form, or the rate is zero.
    pub fn parse(of: BlockTraffic, text: &str) -> Result<Self> {
        let bytes = matches!(of, BlockTraffic::ReadBytes | BlockTraffic::WrittenBytes);
        let odd = || {
            let example = if bytes { "/dev/sda:10mb" } else { "/dev/sda:1000" };
            Error::new(format!("invalid rate '{text}' of a block device"))
                .with_hint(format!("write the path of the device and what it may do in a second: {example}"))
        };
        let (device, rate) =
            text.rsplit_once(':').filter(|(path, _)| path.starts_with('/')).ok_or_else(odd)?;
        let rate = if bytes { parse_bytes(rate).ok() } else { rate.parse().ok() };
        let rate = rate.filter(|rate| *rate > 0).ok_or_else(odd)?;
        Ok(BlockRate { device: device.into(), of, rate })
    }
}

/// A resource limit of setrlimit(2): `nofile=1024:2048`. `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Lower case, without `RLIMIT_`: `nofile`, `nproc`, `memlock`.
    pub name: String,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

impl Rlimit {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];

    /// Reads `NAME=SOFT[:HARD]` as docker's `--ulimit` has it; -1 and `unlimited` mean no limit.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(format!("invalid ulimit '{text}': {why}"))
                .with_hint("write NAME=SOFT or NAME=SOFT:HARD, for example nofile=1024:2048")
        };
        let (name, values) = text.split_once('=').ok_or_else(|| bad("it has no '='"))?;
        if !Rlimit::NAMES.contains(&name) {
            return Err(bad("no limit has that name"));
        }
        let value = |s: &str| match s {
            "-1" | "unlimited" => Ok(None),
            n => n.parse::<u64>().map(Some).map_err(|_| bad("a limit is a number, -1 or 'unlimited'")),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (value(soft)?, value(hard)?),
            None => (value(values)?, value(values)?),
        };
        if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
            return Err(bad("the soft limit is above the hard limit"));
        }
        Ok(Rlimit { name: name.to_owned(), soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        let r = Rlimit::parse("nofile=1024:2048").unwrap();
        assert_eq!((r.soft, r.hard), (Some(1024), Some(2048)));
        assert_eq!(Rlimit::parse("core=-1").unwrap().hard, None);
        for bad in ["", "nofile", "nofile=", "nofile=2:1", "bogus=1", "nofile=x", "nofile=-1:5"] {
            assert!(Rlimit::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_limit_is_empty() {
        assert!(Resources::default().is_empty());
        assert!(Resources { oom_score_adj: Some(1), ..Default::default() }.is_empty());
        assert!(!Resources { pids: Some(5), ..Default::default() }.is_empty());
    }

    #[test]
    fn block_devices() {
        let weight = BlockWeight::parse("/dev/disk/by-path/a:b:500").unwrap();
        assert_eq!((weight.device.to_str(), weight.weight), (Some("/dev/disk/by-path/a:b"), 500));
        for bad in ["", "/dev/sda", "sda:500", "/dev/sda:9", "/dev/sda:1001", "/dev/sda:x", ":500"] {
            assert!(BlockWeight::parse(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
        let rate = |of, text| BlockRate::parse(of, text).map(|rate| rate.rate).ok();
        assert_eq!(rate(BlockTraffic::ReadBytes, "/dev/sda:1mb"), Some(1 << 20));
        assert_eq!(rate(BlockTraffic::Writes, "/dev/sda:100"), Some(100));
        for bad in ["", "/dev/sda", "sda:1", "/dev/sda:0", "/dev/sda:-1", "/dev/sda:x"] {
            for of in [BlockTraffic::WrittenBytes, BlockTraffic::Reads] {
                assert_eq!(rate(of, bad), None, "{bad}");
            }
        }
        assert_eq!(rate(BlockTraffic::Reads, "/dev/sda:1mb"), None);
    }
}
