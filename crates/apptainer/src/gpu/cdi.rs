//! `--device VENDOR/CLASS=NAME`: devices as the Container Device Interface describes them (CDI specification 0.8, in
//! JSON). Device nodes, mounts and variables are taken; hooks would be programs of the host that change the
//! container, and are named in a warning instead of run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use isles_spec::{Mount, MountKind, Propagation};
use serde::Deserialize;

/// Where the files are usually.
pub const USUAL_FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// A file of a large machine has some hundred kilobytes.
const LARGEST: u64 = 16 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    kind: String,
    devices: Vec<Device>,
    container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bound>,
    hooks: Vec<Hook>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Bound {
    host_path: PathBuf,
    container_path: PathBuf,
    options: Vec<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Hook {
    path: String,
    args: Vec<String>,
}

/// What devices bring into a container.
#[derive(Debug, Default)]
pub struct Injected {
    pub mounts: Vec<Mount>,
    pub env: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

/// Looks devices up in the files of `folders`; a later folder wins over an earlier one.
pub fn inject(names: &[String], folders: &[PathBuf]) -> Result<Injected, String> {
    let (specs, unread) = specs(folders)?;
    let mut out = Injected::default();
    for name in names {
        let (kind, device) = name
            .split_once('=')
            .filter(|(kind, device)| kind.contains('/') && !device.is_empty())
            .ok_or_else(|| format!("'{name}' is not a device name of the form VENDOR/CLASS=NAME"))?;
        let found = specs.iter().rev().filter(|spec| spec.kind == kind).find_map(|spec| {
            let device = spec.devices.iter().find(|known| known.name == device)?;
            Some((spec, device))
        });
        let Some((spec, device)) = found else {
            let hint = match unread.is_empty() {
                true => String::new(),
                false => format!("; files in YAML are not read: {}", unread.join(", ")),
            };
            return Err(format!("no CDI file describes the device '{name}'{hint}"));
        };
        for edits in [&spec.container_edits, &device.container_edits] {
            apply(edits, name, &mut out);
        }
    }
    Ok(out)
}

fn apply(edits: &Edits, name: &str, out: &mut Injected) {
    out.env.extend(edits.env.iter().filter_map(|entry| {
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    }));
    for node in &edits.device_nodes {
        let source = node.host_path.clone().filter(|path| path != Path::new("")).unwrap_or(node.path.clone());
        add(&mut out.mounts, bind(source, &node.path, false));
    }
    for bound in &edits.mounts {
        let read_only = bound.options.iter().any(|option| option == "ro");
        add(&mut out.mounts, bind(bound.host_path.clone(), &bound.container_path, read_only));
    }
    for hook in &edits.hooks {
        let what = hook.args.get(1).map_or(hook.path.as_str(), String::as_str);
        let warning = format!("The hook '{what}' of device {name} is not run");
        if !out.warnings.contains(&warning) {
            out.warnings.push(warning);
        }
    }
}

fn add(mounts: &mut Vec<Mount>, mount: Mount) {
    if !mounts.iter().any(|known| known.destination == mount.destination) {
        mounts.push(mount);
    }
}

fn bind(source: PathBuf, destination: &Path, read_only: bool) -> Mount {
    let kind = MountKind::Bind {
        source,
        recursive: true,
        create_source: false,
        propagation: Propagation::default(),
        recursive_read_only: false,
    };
    Mount { destination: destination.to_owned(), kind, read_only, optional: false }
}

/// All specifications in JSON, and the names of those that are not.
fn specs(folders: &[PathBuf]) -> Result<(Vec<Spec>, Vec<String>), String> {
    let (mut out, mut unread) = (Vec::new(), Vec::new());
    for folder in folders {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => out.push(read(&path)?),
                Some("yaml" | "yml") => unread.push(path.display().to_string()),
                _ => {}
            }
        }
    }
    Ok((out, unread))
}

fn read(path: &Path) -> Result<Spec, String> {
    let bytes = File::open(path).and_then(|file| isles_store::read_bounded(file, LARGEST));
    let bytes = bytes.map_err(|e| format!("cannot read the CDI file '{}': {e}", path.display()))?;
    let bytes = bytes.ok_or_else(|| format!("the CDI file '{}' is too large", path.display()))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| format!("the CDI file '{}' makes no sense: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VENDOR: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/gpu",
        "containerEdits":{"env":["ALL=1"],"hooks":[{"hookName":"createContainer","path":"/usr/bin/x","args":["x","update-ldcache"]}]},
        "devices":[
          {"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/g0","hostPath":"/dev/host0"},{"path":"/dev/ctl"}],
             "mounts":[{"hostPath":"/lib/a","containerPath":"/lib/b","options":["ro","bind"]}]}},
          {"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/g1"},{"path":"/dev/ctl"}],"env":["ONE=2"]}}]}"#;

    #[test]
    fn devices_are_described_in_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vendor.json"), VENDOR).unwrap();
        let folders = [dir.path().join("none"), dir.path().to_owned()];
        let names = ["vendor.com/gpu=0".to_owned(), "vendor.com/gpu=1".into()];
        let found = inject(&names, &folders).unwrap();
        let shown: Vec<String> = found
            .mounts
            .iter()
            .map(|mount| match &mount.kind {
                MountKind::Bind { source, .. } => {
                    format!("{} {} {}", source.display(), mount.destination.display(), mount.read_only)
                }
                _ => panic!(),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "/dev/host0 /dev/g0 false",
                "/dev/ctl /dev/ctl false",
                "/lib/a /lib/b true",
                "/dev/g1 /dev/g1 false"
            ]
        );
        assert!(
            found.env.contains(&("ONE".into(), "2".into()))
                && found.env.contains(&("ALL".into(), "1".into()))
        );
        assert_eq!(found.warnings.len(), 2);
        assert!(found.warnings[0].contains("update-ldcache"));
    }

    #[test]
    fn what_is_not_described_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vendor.json"), VENDOR).unwrap();
        fs::write(dir.path().join("other.yaml"), "").unwrap();
        let folders = [dir.path().to_owned()];
        for (name, word) in [
            ("vendor.com/gpu", "form"),
            ("vendor.com/gpu=", "form"),
            ("gpu=0", "form"),
            ("vendor.com/gpu=7", "'vendor.com/gpu=7'"),
            ("other.com/x=0", "other.yaml"),
        ] {
            let said = inject(&[name.to_owned()], &folders).unwrap_err();
            assert!(said.contains(word), "{name}: {said}");
        }
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        assert!(inject(&["a/b=c".to_owned()], &folders).unwrap_err().contains("bad.json"));
    }
}
