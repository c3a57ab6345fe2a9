//! Devices of `isles run`: by their paths, by the names that vendors give them (the Container Device Interface), and the
//! drivers of graphics processors.

use std::path::{Path, PathBuf};

use isles_engine::{Inside, cdi};
use isles_spec::{Device, Mount, MountKind, Workload};

use crate::failure::Failure;
use crate::ui::Ui;

/// glibc is the largest file of an image that is looked at.
const LARGEST: u64 = 64 << 20;

/// Whether a word is a vendor's name, `VENDOR/CLASS=NAME`, and not a path of the host.
pub fn is_name(word: &str) -> bool {
    !word.starts_with('/') && cdi::parts(word).is_ok()
}

/// Adds what vendors say that their devices bring: nodes, mounts and variables. Hooks are programs of the host that would
/// change the container, and are named in a warning instead of run.
///
/// # Errors
/// Nobody describes such a device, or it is described wrongly.
pub fn add_named(
    words: &[String],
    folders: &[PathBuf],
    workload: &mut Workload,
    ui: &Ui,
) -> Result<(), Failure> {
    let mut env = Vec::new();
    for name in words.iter().filter(|word| is_name(word)) {
        let found = cdi::find(name, folders)?.ok_or_else(|| {
            Failure::new(format!("no vendor describes the device '{name}'"))
                .with_hint("descriptions are files in /etc/cdi and /var/run/cdi; --device /dev/NAME is a device by its path")
        })?;
        for edits in &found {
            env.extend(edits.env.iter().cloned());
            for node in &edits.device_nodes {
                workload.devices.push(Device {
                    source: node.source().to_owned(),
                    destination: node.path.clone(),
                    permissions: node.permissions.clone().unwrap_or_else(|| "rwm".into()),
                });
            }
            workload.mounts.extend(edits.mounts.iter().map(cdi::Bind::mount));
            for hook in &edits.hooks {
                let what = hook.args.get(1).map_or(hook.path.as_str(), String::as_str);
                ui.warning(&format!("the hook '{what}' of device {name} is not run"));
            }
            for key in edits.rest.iter().filter(|(_, value)| !is_empty(value)).map(|(key, _)| key) {
                ui.warning(&format!("'{key}' of device {name} is not carried out"));
            }
        }
    }
    // Before the caller's own, which win.
    workload.env.splice(0..0, env);
    Ok(())
}

fn is_empty(value: &serde_json::Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Adds the host's drivers, as far as the image can use them. `env` are the image's own variables.
pub fn add_drivers(
    (nv, rocm): (bool, bool),
    image: &Inside,
    env: &[String],
    workload: &mut Workload,
    ui: &Ui,
) {
    let read = |path: &str| image.read(Path::new(path), LARGEST).ok().flatten();
    let lent = isles_apptainer::lend_drivers(nv, rocm, &read);
    lent.warnings.iter().for_each(|warning| ui.warning(warning));
    for mount in lent.mounts {
        match device(&mount) {
            // As a device, so that the container's control group lets it be opened.
            Some(device) => workload.devices.push(device),
            None => workload.mounts.push(mount),
        }
    }
    if lent.libraries {
        let name = "LD_LIBRARY_PATH=";
        let mut all = workload.env.iter().rev().chain(env.iter().rev());
        let before = all.find_map(|entry| entry.strip_prefix(name)).unwrap_or_default();
        let colon = if before.is_empty() { "" } else { ":" };
        workload.env.push(format!("{name}{before}{colon}{}", isles_apptainer::LIBRARIES));
    }
}

fn device(mount: &Mount) -> Option<Device> {
    let MountKind::Bind { source, .. } = &mount.kind else { return None };
    // Folders of devices, such as /dev/dri, are shown as they are.
    let is_node = mount.destination.starts_with("/dev") && !source.is_dir();
    let (source, destination) = (source.clone(), mount.destination.clone());
    is_node.then(|| Device { source, destination, permissions: "rwm".into() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const VENDOR: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/gpu","containerEdits":{"env":["ALL=1"]},
        "devices":[{"name":"0","containerEdits":{"env":["OWN=2"],
          "deviceNodes":[{"path":"/dev/g0","hostPath":"/dev/null","permissions":"rw"},{"path":"/dev/zero"}],
          "mounts":[{"hostPath":"/etc","containerPath":"/vendor","options":["ro"]}],
          "hooks":[{"hookName":"createContainer","path":"/usr/bin/x","args":["x","update-ldcache"]}]}}]}"#;

    #[test]
    fn names_of_vendors() {
        for (word, is) in [
            ("/dev/fuse", false),
            ("/dev/a:/dev/b:r", false),
            ("vendor.com/gpu=0", true),
            ("nvidia.com/gpu=all", true),
            ("gpu=0", false),
            ("dev/fuse", false),
        ] {
            assert_eq!(is_name(word), is, "{word}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vendor.json"), VENDOR).unwrap();
        let folders = [dir.path().to_owned()];
        let ui = Ui::new(true);
        let mut workload = Workload { env: vec!["OWN=caller".into()], ..Workload::default() };
        let words = ["/dev/full".to_owned(), "vendor.com/gpu=0".into()];
        add_named(&words, &folders, &mut workload, &ui).unwrap();
        assert_eq!(workload.env, ["OWN=2", "ALL=1", "OWN=caller"]);
        let nodes: Vec<_> = workload
            .devices
            .iter()
            .map(|d| format!("{} {} {}", d.source.display(), d.destination.display(), d.permissions))
            .collect();
        assert_eq!(nodes, ["/dev/null /dev/g0 rw", "/dev/zero /dev/zero rwm"]);
        assert!(workload.mounts[0].read_only && workload.mounts[0].destination == Path::new("/vendor"));
        let failure = add_named(&["vendor.com/gpu=7".into()], &folders, &mut workload, &ui).unwrap_err();
        assert!(failure.message.contains("'vendor.com/gpu=7'") && failure.hint.is_some());
    }
}
