//! `linux.resources` and `linux.cgroupsPath` in the words of our control groups.

use super::config::{DeviceRule, Resources};
use super::{Result, config::invalid};
use crate::cgroup::{self, Access, DeviceKind, Limits, Throttle, Weight};

/// The limits, with the devices that every container may use allowed after the configuration's own rules.
pub fn limits(resources: &Resources) -> Result<Limits> {
    let (memory, cpu, io) = (&resources.memory, &resources.cpu, &resources.block_io);
    let throttles = |list: &[super::config::ThrottleDevice]| {
        list.iter().map(|t| Throttle { major: t.major, minor: t.minor, rate: t.rate }).collect()
    };
    let mut rules = Vec::with_capacity(resources.devices.len() + 12);
    for rule in &resources.devices {
        rules.push(device_rule(rule)?);
    }
    rules.extend(cgroup::DeviceRule::container().into_iter().filter(|r| r.allow));
    let text = |s: &String| Some(s.clone()).filter(|s| !s.is_empty());
    Ok(Limits {
        memory: memory.limit,
        memory_swap: memory.swap,
        memory_reservation: memory.reservation,
        memory_tcp: memory.kernel_tcp,
        // Engines write -1, as an unsigned number, for "as the host has it".
        swappiness: memory.swappiness.filter(|n| *n <= 200),
        disable_oom_killer: memory.disable_oom_killer.unwrap_or(false),
        cpu_shares: cpu.shares,
        cpu_quota: cpu.quota,
        cpu_period: cpu.period,
        cpu_burst: cpu.burst,
        cpu_realtime_runtime: cpu.realtime_runtime,
        cpu_realtime_period: cpu.realtime_period,
        cpu_idle: cpu.idle,
        cpuset_cpus: text(&cpu.cpus),
        cpuset_mems: text(&cpu.mems),
        pids: resources.pids.as_ref().and_then(|p| p.limit),
        io_weight: io.weight,
        io_weights: io
            .weight_device
            .iter()
            .filter_map(|w| Some(Weight { major: w.major, minor: w.minor, weight: w.weight? }))
            .collect(),
        read_bps: throttles(&io.throttle_read_bps_device),
        write_bps: throttles(&io.throttle_write_bps_device),
        read_iops: throttles(&io.throttle_read_iops_device),
        write_iops: throttles(&io.throttle_write_iops_device),
        hugetlb: resources.hugepage_limits.iter().map(|h| (h.page_size.clone(), h.limit)).collect(),
        net_class: resources.network.class_id,
        net_priorities: resources.network.priorities.iter().map(|p| (p.name.clone(), p.priority)).collect(),
        rdma: resources
            .rdma
            .iter()
            .map(|(device, r)| (device.clone(), r.hca_handles, r.hca_objects))
            .collect(),
        unified: resources.unified.clone(),
        devices: Some(rules),
        unified_devices: false,
    })
}

fn device_rule(rule: &DeviceRule) -> Result<cgroup::DeviceRule> {
    let kind = match rule.kind.as_str() {
        "" | "a" => None,
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Char),
        other => return Err(invalid(format!("device type '{other}' in linux.resources.devices"))),
    };
    let access = Access::parse(&rule.access).ok_or_else(|| {
        invalid(format!("access '{}' in linux.resources.devices is not made of r, w and m", rule.access))
    })?;
    // -1 stands for every number.
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| invalid(format!("device number {n}"))),
    };
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    Ok(cgroup::DeviceRule { allow: rule.allow, kind, major, minor, access })
}

/// Where the container's group is to be: `cgroupsPath`, or a place of its own. The form of systemd's driver,
/// `slice:prefix:name`, becomes the folders that systemd would make.
pub fn group_path(cgroups_path: &str, id: &str) -> String {
    let parts: Vec<&str> = cgroups_path.split(':').collect();
    match parts[..] {
        [""] => id.to_owned(),
        [slice, prefix, name] => {
            let unit = if name.ends_with(".slice") {
                name.to_owned()
            } else if prefix.is_empty() {
                format!("{name}.scope")
            } else {
                format!("{prefix}-{name}.scope")
            };
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            format!("/{}/{unit}", expand_slice(slice))
        }
        _ => cgroups_path.to_owned(),
    }
}

/// `a-b.slice` is the folder `a.slice/a-b.slice` (systemd.slice(5)).
fn expand_slice(slice: &str) -> String {
    let Some(stem) = slice.strip_suffix(".slice") else { return slice.to_owned() };
    let mut path = Vec::new();
    let mut prefix = String::new();
    for part in stem.split('-').filter(|p| !p.is_empty()) {
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    path.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_groups() {
        for (given, path) in [
            ("", "web"),
            ("/docker/abc", "/docker/abc"),
            ("mine/abc", "mine/abc"),
            ("user.slice:libpod:abc", "/user.slice/libpod-abc.scope"),
            ("machine-a-b.slice::abc", "/machine.slice/machine-a.slice/machine-a-b.slice/abc.scope"),
            (":docker:abc", "/system.slice/docker-abc.scope"),
        ] {
            assert_eq!(group_path(given, "web"), path);
        }
    }

    #[test]
    fn resources_become_limits() {
        let resources: Resources = serde_json::from_str(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":-1,"access":"r"}],
                "memory":{"limit":1000,"swap":-1,"swappiness":18446744073709551615},
                "cpu":{"shares":5,"quota":-1,"cpus":"0"},"pids":{"limit":0},
                "blockIO":{"weight":10,"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":5}]},
                "network":{"classID":1,"priorities":[{"name":"lo","priority":2}]},
                "hugepageLimits":[{"pageSize":"2MB","limit":4}],"unified":{"memory.high":"5"}}"#,
        )
        .unwrap();
        let l = limits(&resources).unwrap();
        assert_eq!((l.memory, l.memory_swap, l.swappiness), (Some(1000), Some(-1), None));
        assert_eq!(l.read_iops[0].rate, 5);
        let rules = l.devices.unwrap();
        assert_eq!(rules[0], cgroup::DeviceRule::all(false));
        assert_eq!((rules[1].major, rules[1].minor), (Some(10), None));
        for bad in [r#"{"type":"x"}"#, r#"{"access":"rx"}"#, r#"{"type":"c","major":-2}"#] {
            let one = format!(r#"{{"devices":[{bad}]}}"#);
            assert!(limits(&serde_json::from_str(&one).unwrap()).is_err(), "{bad}");
        }
    }
}
