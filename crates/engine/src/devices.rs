//! Devices of the host in a container: the nodes that are made, and what the control group allows.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use isles_sandbox::cgroup::{Access, DeviceKind, DeviceRule, Limits, Throttle, Weight};
use isles_sandbox::setup::DeviceNode;
use isles_spec::{BlockRate, BlockTraffic, BlockWeight, Resources, Workload};

use crate::error::{Error, Result};
use crate::view::absolute;

/// Nodes to make, and what the control group allows.
pub fn devices(workload: &Workload) -> Result<(Vec<DeviceNode>, Vec<DeviceRule>)> {
    let mut nodes = Vec::new();
    let mut rules = DeviceRule::container();
    for device in &workload.devices {
        let wish = || format!("the device '{}'", device.source.display());
        let found = std::fs::metadata(&device.source)
            .map_err(|e| Error::file("use the device", &device.source, e))?;
        let access = Access::parse(&device.permissions).ok_or_else(|| {
            isles_spec::Error::new(format!("invalid permissions '{}' of a device", device.permissions))
                .with_hint("they are made of r, w and m")
        })?;
        let before = nodes.len();
        if found.is_dir() {
            device_folder(&device.source, &device.destination, 0, &mut nodes)?;
        } else {
            nodes.extend(node(&device.source, &device.destination, &found));
        }
        if nodes.len() == before {
            return Err(Error::impossible(wish(), "it is no device, and no folder that holds any"));
        }
        rules.extend(nodes[before..].iter().map(|node| {
            let kind = if node.kind == libc::S_IFBLK { DeviceKind::Block } else { DeviceKind::Char };
            DeviceRule::allow(kind, Some(node.major), Some(node.minor), access)
        }));
    }
    if workload.security.privileged {
        device_folder(Path::new("/dev"), Path::new("/dev"), 0, &mut nodes)?;
        // The container has these in any case.
        let own = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];
        nodes.retain(|n| !own.iter().any(|name| n.path == Path::new("/dev").join(name)));
    }
    Ok((nodes, rules))
}

fn device_folder(from: &Path, to: &Path, depth: u32, nodes: &mut Vec<DeviceNode>) -> Result<()> {
    const DEEPEST: u32 = 8;
    let entries = std::fs::read_dir(from).map_err(|e| Error::file("list", from, e))?;
    for entry in entries.flatten() {
        let (source, destination) = (entry.path(), to.join(entry.file_name()));
        let Ok(found) = std::fs::symlink_metadata(&source) else { continue };
        if found.is_dir() {
            let own =
                ["pts", "shm", "mqueue", "fd"].iter().any(|name| source == Path::new("/dev").join(name));
            if !own && depth < DEEPEST {
                device_folder(&source, &destination, depth + 1, nodes)?;
            }
        } else {
            nodes.extend(node(&source, &destination, &found));
        }
    }
    Ok(())
}

fn node(source: &Path, destination: &Path, found: &std::fs::Metadata) -> Option<DeviceNode> {
    let kind = found.file_type();
    let kind = if kind.is_char_device() {
        libc::S_IFCHR
    } else if kind.is_block_device() {
        libc::S_IFBLK
    } else {
        return None;
    };
    Some(DeviceNode {
        path: absolute(destination),
        kind,
        major: libc::major(found.rdev()),
        minor: libc::minor(found.rdev()),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        source: Some(source.to_owned()),
    })
}

/// The rules for devices that the caller has.
pub fn device_rules(wanted: &Resources) -> Result<Vec<DeviceRule>> {
    let rule = |rule: &isles_spec::DeviceRule| {
        let bad = |what: &str| {
            isles_spec::Error::new(format!("invalid rule for devices: {what}"))
                .with_hint("its type is a, b, c or u, its access some of r, w and m, and numbers are positive, or -1 for all")
        };
        let kind = match rule.kind {
            'a' => None,
            'b' => Some(DeviceKind::Block),
            'c' | 'u' => Some(DeviceKind::Char),
            other => return Err(bad(&format!("the type '{other}'"))),
        };
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| bad(&format!("the number {number}"))),
        };
        let access = if rule.access.is_empty() { Some(Access::ALL) } else { Access::parse(&rule.access) };
        let access = access.ok_or_else(|| bad(&format!("the access '{}'", rule.access)))?;
        let (major, minor) = (number(rule.major)?, number(rule.minor)?);
        Ok(DeviceRule { allow: rule.allow, kind, major, minor, access })
    };
    Ok(wanted.device_rules.iter().map(rule).collect::<std::result::Result<_, isles_spec::Error>>()?)
}

/// Adds what is asked for of block devices to the limits, by the devices' numbers.
pub fn block_limits(wanted: &Resources, limits: &mut Limits) -> Result<()> {
    for BlockWeight { device, weight } in &wanted.block_weights {
        let (major, minor) = block_device(device)?;
        limits.io_weights.push(Weight { major, minor, weight: *weight });
    }
    for BlockRate { device, of, rate } in &wanted.block_rates {
        let (major, minor) = block_device(device)?;
        let list = match of {
            BlockTraffic::ReadBytes => &mut limits.read_bps,
            BlockTraffic::WrittenBytes => &mut limits.write_bps,
            BlockTraffic::Reads => &mut limits.read_iops,
            BlockTraffic::Writes => &mut limits.write_iops,
        };
        list.push(Throttle { major, minor, rate: *rate });
    }
    Ok(())
}

/// The numbers of a block device.
fn block_device(path: &Path) -> Result<(u64, u64)> {
    let failed = |e: io::Error| Error::file("limit what goes to the device", path, e);
    let found = fs::metadata(path).map_err(failed)?;
    if !found.file_type().is_block_device() {
        return Err(failed(io::Error::other("it is no block device")));
    }
    Ok((rustix::fs::major(found.rdev()).into(), rustix::fs::minor(found.rdev()).into()))
}
