//! Limits: the flags for them, and the file of `--apply-cgroups`, which is TOML with the names of the OCI's resources.

use std::fs::File;
use std::path::Path;

use isles_spec::quantity::{parse_bytes, parse_cpus};
use isles_spec::{BlockWeight, Resources};

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

/// Tables of numbers and strings: all of TOML that limits need.
fn parse(text: &str) -> Result<Resources, String> {
    let mut out = Resources::default();
    let mut table = String::new();
    for (number, line) in text.lines().enumerate() {
        let at = |why: &str| format!("line {}: {why}", number + 1);
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or_else(|| at("a table's name is not closed"))?;
            if name.starts_with('[') || !matches!(name, "memory" | "cpu" | "pids" | "blockIO") {
                return Err(at(&format!("limits of '{}' are not supported", name.trim_matches(['[', ']']))));
            }
            name.clone_into(&mut table);
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| at("it is no assignment"))?;
        let (key, value) = (key.trim(), value.trim());
        let word = || {
            let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            inner.map(str::to_owned).ok_or_else(|| at(&format!("{key} is no string")))
        };
        let number = || value.replace('_', "").parse::<i64>().map_err(|_| at(&format!("{key} is no number")));
        let positive = || u64::try_from(number()?).map_err(|_| at(&format!("{key} is negative")));
        match (table.as_str(), key) {
            ("memory", "limit") => out.memory = Some(positive()?),
            ("memory", "reservation") => out.memory_reservation = Some(positive()?),
            ("memory", "swap") => out.memory_swap = Some(number()?),
            ("memory", "disableOOMKiller") => {
                out.oom_kill_disable = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(at(&format!("{key} is neither true nor false"))),
                };
            }
            ("blockIO", "weight") => {
                let weight = BlockWeight::weight(number()?);
                out.block_weight = Some(weight.map_err(|_| at("a weight is between 10 and 1000"))?);
            }
            ("cpu", "shares") => out.cpu_shares = Some(positive()?),
            ("cpu", "quota") => out.cpu_quota = Some(number()?),
            ("cpu", "period") => out.cpu_period = Some(positive()?),
            ("cpu", "cpus") => out.cpuset_cpus = Some(word()?),
            ("cpu", "mems") => out.cpuset_mems = Some(word()?),
            ("pids", "limit") => out.pids = Some(number()?),
            ("", _) => return Err(at(&format!("the key {key} is in no table"))),
            (table, key) => return Err(at(&format!("the limit {table}.{key} is not supported"))),
        }
    }
    Ok(out)
}

fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..at],
            _ => {}
        }
    }
    line
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
            ("limit = 1", "no table"),
            ("[memory]\nlimit = x", "line 2: limit is no number"),
            ("[memory]\nlimit = -1", "negative"),
            ("[memory]\ncolor = 1", "memory.color"),
            ("[blockIO]\nweight = 9", "between 10 and 1000"),
            ("[blockIO]\nleafWeight = 9", "blockIO.leafWeight"),
            ("[network]\nclassID = 9", "network"),
            ("[memory]\ndisableOOMKiller = 1", "neither true"),
            ("[[devices]]", "devices"),
            ("[cpu]\ncpus = 0", "no string"),
            ("[memory", "not closed"),
            ("[pids]\nlimit", "no assignment"),
        ] {
            assert!(parse(bad).unwrap_err().contains(word), "{bad}: {}", parse(bad).unwrap_err());
        }
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
