//! `--device VENDOR/CLASS=NAME`: what devices bring, as the engine finds it in the files of their vendors. Device nodes,
//! mounts and variables are taken; hooks would be programs of the host that change the container, and are named in a
//! warning instead of run.

use std::path::PathBuf;

use isles_engine::cdi::{self, Edits};
use isles_spec::Mount;

/// What devices bring into a container.
#[derive(Debug, Default)]
pub struct Injected {
    pub mounts: Vec<Mount>,
    pub env: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

/// Looks devices up in the files of `folders`; a later folder wins over an earlier one.
pub fn inject(names: &[String], folders: &[PathBuf]) -> Result<Injected, isles_spec::Error> {
    let mut out = Injected::default();
    for name in names {
        let found = cdi::find(name, folders)?.ok_or_else(|| {
            isles_spec::Error::new(format!("no CDI file describes the device '{name}'"))
                .with_hint("files of vendors are looked for in /etc/cdi and /var/run/cdi, or in --cdi-dirs")
        })?;
        for edits in &found {
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
        add(&mut out.mounts, Mount::bind(node.source(), &node.path));
    }
    for bound in &edits.mounts {
        add(&mut out.mounts, bound.mount());
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

#[cfg(test)]
mod tests {
    use std::fs;

    use isles_spec::MountKind;

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
            ("vendor.com/gpu", "no name"),
            ("vendor.com/gpu=", "no name"),
            ("gpu=0", "no name"),
            ("vendor.com/gpu=7", "'vendor.com/gpu=7'"),
            ("other.com/x=0", "'other.com/x=0'"),
        ] {
            let said = inject(&[name.to_owned()], &folders).unwrap_err().to_string();
            assert!(said.contains(word), "{name}: {said}");
        }
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        assert!(inject(&["a/b=c".to_owned()], &folders).unwrap_err().to_string().contains("bad.json"));
    }
}
