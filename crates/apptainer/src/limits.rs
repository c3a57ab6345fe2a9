//! Limits: the flags for them, and the file of `--apply-cgroups`, which is TOML with the names of the OCI's resources.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use isles_spec::quantity::{parse_bytes, parse_cpus};
use isles_spec::{BlockRate, BlockTraffic, BlockWeight, DeviceRule, Resources};
use serde::Deserialize;

use crate::action_flags as flags;
use crate::failure::Failure;
use crate::flag::Flag;
use crate::parse::Values;

const LARGEST: u64 = 1 << 20;

/// The limits that are asked for, by file and by flags; flags win.
pub fn resources(values: &Values) -> Result<Resources, Failure> {
    let mut out = match values.word(&flags::APPLY_CGROUPS) {
        Some(path) => read(Path::new(path))?,
        None => Resources::default(),
    };
    let bytes = |flag| values.word(flag).map(parse_bytes).transpose();
    out.memory = bytes(&flags::MEMORY)?.filter(|n| *n > 0).or(out.memory);
    out.memory_reservation = bytes(&flags::MEMORY_RESERVATION)?.filter(|n| *n > 0).or(out.memory_reservation);
    match values.word(&flags::MEMORY_SWAP) {
        None => {}
        Some("-1") => out.memory_swap = Some(-1),
        Some(text) => out.memory_swap = Some(i64::try_from(parse_bytes(text)?).unwrap_or(i64::MAX)),
    }
    out.nano_cpus = values.word(&flags::CPUS).map(parse_cpus).transpose()?.or(out.nano_cpus);
    let shares = values.number(&flags::CPU_SHARES).filter(|n| *n > 0);
    out.cpu_shares = shares.and_then(|n| u64::try_from(n).ok()).or(out.cpu_shares);
    let own = |flag, other: Option<String>| values.word(flag).map(str::to_owned).or(other);
    out.cpuset_cpus = own(&flags::CPUSET_CPUS, out.cpuset_cpus.take());
    out.cpuset_mems = own(&flags::CPUSET_MEMS, out.cpuset_mems.take());
    out.oom_kill_disable |= values.is(&flags::OOM_KILL_DISABLE);
    if let Some(weight) = values.number(&flags::BLKIO_WEIGHT).filter(|n| *n != 0) {
        out.block_weight = Some(BlockWeight::weight(weight).map_err(|e| of(e, &flags::BLKIO_WEIGHT))?);
    }
    for text in values.list(&flags::BLKIO_WEIGHT_DEVICE) {
        out.block_weights.push(BlockWeight::parse(text).map_err(|e| of(e, &flags::BLKIO_WEIGHT_DEVICE))?);
    }
    out.pids = values.number(&flags::PIDS_LIMIT).filter(|n| *n > 0).or(out.pids);
    Ok(out)
}

/// What is wrong, with the flag that it is wrong with.
fn of(error: isles_spec::Error, flag: &Flag) -> Failure {
    let failure = Failure::from(error);
    Failure { message: format!("--{}: {}", flag.name, failure.message), ..failure }
}

fn read(path: &Path) -> Result<Resources, Failure> {
    let what = || format!("cannot read the limits in '{}'", path.display());
    let bytes = File::open(path).and_then(|file| isles_store::read_bounded(file, LARGEST));
    let bytes = bytes.map_err(|e| Failure::because(what(), &e))?;
    let bytes = bytes.ok_or_else(|| Failure::new(format!("{}: the file is too large", what())))?;
    let text = String::from_utf8_lossy(&bytes);
    parse(&text).map_err(|why| Failure::new(format!("{}: {why}", what())))
}

/// The file, with the names of the OCI's resources. What Apptainer knows beside these is refused by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    memory: Memory,
    cpu: Cpu,
    pids: Pids,
    #[serde(rename = "blockIO")]
    block: Block,
    devices: Vec<DeviceRule>,
    #[serde(rename = "hugepageLimits")]
    huge_pages: Vec<HugePages>,
    unified: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Memory {
    limit: Option<i64>,
    reservation: Option<i64>,
    swap: Option<i64>,
    swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    disable_oom_killer: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cpu {
    shares: Option<u64>,
    quota: Option<i64>,
    period: Option<u64>,
    cpus: Option<String>,
    mems: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Pids {
    limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Block {
    weight: Option<i64>,
    weight_device: Vec<DeviceWeight>,
    throttle_read_bps_device: Vec<DeviceRate>,
    throttle_write_bps_device: Vec<DeviceRate>,
    #[serde(rename = "throttleReadIOPSDevice")]
    throttle_read_iops_device: Vec<DeviceRate>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    throttle_write_iops_device: Vec<DeviceRate>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceWeight {
    major: u32,
    minor: u32,
    weight: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceRate {
    major: u32,
    minor: u32,
    rate: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HugePages {
    #[serde(rename = "pageSize")]
    page_size: String,
    limit: u64,
}

/// Where the kernel has a block device by its numbers.
fn device(major: u32, minor: u32) -> PathBuf {
    format!("/dev/block/{major}:{minor}").into()
}

fn parse(text: &str) -> Result<Resources, String> {
    let wanted: Wanted = basic_toml::from_str(text).map_err(|e| e.to_string())?;
    let bytes = |name: &str, number: Option<i64>| match number {
        // As the OCI has it.
        None | Some(-1) => Ok(None),
        Some(number) => u64::try_from(number).map(Some).map_err(|_| format!("memory.{name} is negative")),
    };
    let weight = |number: i64| BlockWeight::weight(number).map_err(|e| e.to_string());
    let block = &wanted.block;
    let rates = [
        (BlockTraffic::ReadBytes, &block.throttle_read_bps_device),
        (BlockTraffic::WrittenBytes, &block.throttle_write_bps_device),
        (BlockTraffic::Reads, &block.throttle_read_iops_device),
        (BlockTraffic::Writes, &block.throttle_write_iops_device),
    ];
    let rate = |of: BlockTraffic, found: &DeviceRate| {
        if found.rate == 0 {
            return Err("a rate of a block device is 0".to_owned());
        }
        Ok(BlockRate { device: device(found.major, found.minor), of, rate: found.rate })
    };
    let weights = block.weight_device.iter().map(|found| {
        Ok(BlockWeight { device: device(found.major, found.minor), weight: weight(found.weight)? })
    });
    Ok(Resources {
        memory: bytes("limit", wanted.memory.limit)?,
        memory_reservation: bytes("reservation", wanted.memory.reservation)?,
        memory_swap: wanted.memory.swap,
        swappiness: wanted.memory.swappiness,
        oom_kill_disable: wanted.memory.disable_oom_killer,
        cpu_shares: wanted.cpu.shares,
        cpu_quota: wanted.cpu.quota,
        cpu_period: wanted.cpu.period,
        cpuset_cpus: wanted.cpu.cpus.filter(|list| !list.is_empty()),
        cpuset_mems: wanted.cpu.mems.filter(|list| !list.is_empty()),
        pids: wanted.pids.limit,
        block_weight: block.weight.map(weight).transpose()?,
        block_weights: weights.collect::<Result<_, String>>()?,
        block_rates: rates
            .iter()
            .flat_map(|(of, list)| list.iter().map(|found| rate(*of, found)))
            .collect::<Result<_, _>>()?,
        device_rules: wanted.devices,
        huge_pages: wanted.huge_pages.into_iter().map(|found| (found.page_size, found.limit)).collect(),
        unified: wanted.unified,
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_limits() {
        let text = "# note\n[memory]\n    limit = 1_024 # bytes\nswap = -1\n\n[cpu]\nshares = 512\ncpus = \"0-1\"\n[pids]\nlimit = 9\n[blockIO]\nweight = 500\n";
        let read = parse(text).unwrap();
        let expected = Resources {
            memory: Some(1024),
            memory_swap: Some(-1),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0-1".into()),
            pids: Some(9),
            block_weight: Some(500),
            ..Resources::default()
        };
        assert_eq!(read, expected);
        for (bad, word) in [
            ("limit = 1", "limit"),
            ("[memory]\nlimit = \"x\"", "line 2"),
            ("[memory]\nlimit = -2", "negative"),
            ("[memory]\ncolor = 1", "color"),
            ("[blockIO]\nweight = 9", "invalid weight 9"),
            ("[blockIO]\nleafWeight = 9", "leafWeight"),
            ("[[blockIO.throttleReadBpsDevice]]\nmajor = 8\nminor = 0\nrate = 0", "rate"),
            ("[network]\nclassID = 9", "network"),
            ("[memory]\ndisableOOMKiller = 1", "line 2"),
            ("[[devices]]\ntype = \"c\"", "allow"),
            ("[cpu]\ncpus = 0", "line 2"),
            ("[memory", "line 1"),
            ("[pids]\nlimit", "line 2"),
        ] {
            assert!(parse(bad).unwrap_err().contains(word), "{bad}: {}", parse(bad).unwrap_err());
        }
    }

    #[test]
    fn files_of_devices() {
        let text = "[[devices]]\naccess = \"rwm\"\nallow = false\ntype = \"c\"\nmajor = 1\nminor = 5\n\
                    [[devices]]\nallow = true\n\
                    [[blockIO.weightDevice]]\nmajor = 8\nminor = 0\nweight = 100\n\
                    [[blockIO.throttleWriteIOPSDevice]]\nmajor = 8\nminor = 16\nrate = 7\n\
                    [[hugepageLimits]]\npageSize = \"2MB\"\nlimit = 4\n\
                    [unified]\n\"memory.high\" = \"1G\"\n";
        let read = parse(text).unwrap();
        let rule =
            DeviceRule { allow: false, kind: 'c', major: Some(1), minor: Some(5), access: "rwm".into() };
        let every = DeviceRule { allow: true, kind: 'a', major: None, minor: None, access: String::new() };
        assert_eq!(read.device_rules, [rule, every]);
        assert_eq!(read.block_weights, [BlockWeight { device: "/dev/block/8:0".into(), weight: 100 }]);
        let rate = BlockRate { device: "/dev/block/8:16".into(), of: BlockTraffic::Writes, rate: 7 };
        assert_eq!(read.block_rates, [rate]);
        assert_eq!((read.huge_pages["2MB"], read.unified["memory.high"].as_str()), (4, "1G"));
    }

    #[test]
    fn flags_win() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("limits.toml");
        std::fs::write(&file, "[memory]\nlimit = 100\n[pids]\nlimit = 5\n").unwrap();
        let mut values = Values::default();
        for (flag, value) in [
            (&flags::APPLY_CGROUPS, file.to_str().unwrap()),
            (&flags::MEMORY, "64m"),
            (&flags::CPUS, "1.5"),
            (&flags::CPU_SHARES, "-1"),
            (&flags::BLKIO_WEIGHT, "0"),
        ] {
            values.set(flag, value).unwrap();
        }
        let out = resources(&values).unwrap();
        assert_eq!((out.memory, out.pids, out.nano_cpus), (Some(64 << 20), Some(5), Some(1_500_000_000)));
        assert_eq!(out.cpu_shares, None);
        values.set(&flags::OOM_KILL_DISABLE, "true").unwrap();
        values.set(&flags::BLKIO_WEIGHT, "500").unwrap();
        values.set(&flags::BLKIO_WEIGHT_DEVICE, "/dev/sda:10").unwrap();
        let out = resources(&values).unwrap();
        let device = BlockWeight { device: "/dev/sda".into(), weight: 10 };
        assert_eq!(
            (out.oom_kill_disable, out.block_weight, out.block_weights),
            (true, Some(500), vec![device])
        );
        for (flag, value) in [
            (&flags::BLKIO_WEIGHT, "5"),
            (&flags::BLKIO_WEIGHT_DEVICE, "/dev/sda"),
            (&flags::BLKIO_WEIGHT_DEVICE, "/dev/sda:x"),
            (&flags::BLKIO_WEIGHT_DEVICE, "/dev/sda:1001"),
        ] {
            let mut values = Values::default();
            values.set(flag, value).unwrap();
            let failure = resources(&values).unwrap_err();
            assert!(failure.message.contains(flag.name), "{value}");
        }
        let mut values = Values::default();
        values.set(&flags::APPLY_CGROUPS, "/nonexistent/x").unwrap();
        assert!(resources(&values).unwrap_err().line().contains("/nonexistent/x"));
    }
}
