//! `RUN --device`: devices of the host by their path, or by the names that vendors give them.
//!
//! Specification: the Container Device Interface (CNCF TAG Runtime), 1.0. Its files are read where they are JSON;
//! what a device needs beyond nodes, variables and mounts is refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use isles_spec::{Device, Error as SpecError, Mount, MountKind, Propagation};
use serde::Deserialize;

use crate::dockerfile::mount::fields;
use crate::error::{Error, Result};

/// Where vendors and programs leave their files; what is in the later one counts.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// One file may have this many bytes.
const LIMIT: u64 = 16 << 20;

/// A device as an instruction asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    /// Where it is missing the step fails; others go on without it.
    pub required: bool,
}

/// What a step gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    pub devices: Vec<Device>,
    pub env: Vec<String>,
    pub mounts: Vec<Mount>,
}

impl std::str::FromStr for Asked {
    type Err = String;

    /// `[name=]NAME[,required[=BOOL]]`
    fn from_str(text: &str) -> std::result::Result<Asked, String> {
        let (mut name, mut required) = (None, false);
        for field in fields(text)? {
            match field.split_once('=') {
                Some(("required", "true" | "1")) | None if field.starts_with("required") => required = true,
                Some(("required", "false" | "0")) => required = false,
                Some(("required", value)) => {
                    return Err(format!("'required' is true or false, not '{value}'"));
                }
                Some(("name", value)) if name.is_none() => name = Some(value.to_owned()),
                // The name itself may hold a '='.
                _ if name.is_none() => name = Some(field),
                _ => return Err(format!("a device has no key '{field}'")),
            }
        }
        match name.filter(|n| !n.is_empty()) {
            Some(name) => Ok(Asked { name, required }),
            None => Err("a device needs a name".into()),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    kind: String,
    devices: Vec<Named>,
    container_edits: Change,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    name: String,
    container_edits: Change,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Change {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    permissions: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bind {
    host_path: PathBuf,
    container_path: PathBuf,
    options: Vec<String>,
}

/// What a device means on this host; `None` where it is not here and need not be.
///
/// # Errors
/// It is not here and is required, or it needs what cannot be given.
pub fn find(asked: &Asked) -> Result<Option<Edits>> {
    within(&FOLDERS.map(PathBuf::from), asked)
}

fn within(folders: &[PathBuf], asked: &Asked) -> Result<Option<Edits>> {
    let name = &asked.name;
    let missing = |why: String, hint: &str| match asked.required {
        true => Err(SpecError::new(format!("the device '{name}' is not here: {why}")).with_hint(hint).into()),
        false => Ok(None),
    };
    if name.starts_with('/') {
        return match Path::new(name).exists() {
            true => Ok(Some(Edits { devices: vec![device(name.into(), None, None)], ..Edits::default() })),
            false => {
                missing("nothing is at this path".into(), "check the path, and the driver of the device")
            }
        };
    }
    let Some((kind, wanted)) = name.split_once('=').filter(|(kind, _)| kind.contains('/')) else {
        return Err(SpecError::new(format!("'{name}' is no name of a device"))
            .with_hint("write a path below /dev, or VENDOR/CLASS=NAME")
            .into());
    };
    let mut found = None;
    let mut unread = None;
    for file in files(folders)? {
        if file.extension().is_some_and(|e| e != "json") {
            unread = Some(file);
            continue;
        }
        let spec = read(&file)?;
        if spec.kind != kind {
            continue;
        }
        let mut edits = Edits::default();
        let mut any = false;
        for one in spec.devices.iter().filter(|d| wanted == "*" || d.name == wanted) {
            any = true;
            add(&mut edits, &one.container_edits, name)?;
        }
        if any {
            add(&mut edits, &spec.container_edits, name)?;
            found = Some(edits);
        }
    }
    match (found, unread) {
        (Some(edits), _) => Ok(Some(edits)),
        (None, None) => {
            missing("no vendor describes it in /etc/cdi or /var/run/cdi".into(), "check its name")
        }
        (None, Some(file)) => missing(
            format!("'{}' may describe it, and is not JSON", file.display()),
            "have the file written as JSON, as `nvidia-ctk cdi generate --format=json` does",
        ),
    }
}

/// The description files of folders, in order.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for folder in folders {
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(Error::io("list", folder))?,
        };
        let mut here: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        here.retain(|p| p.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml"));
        here.sort();
        out.extend(here);
    }
    Ok(out)
}

fn read(file: &Path) -> Result<Spec> {
    let bytes = std::fs::File::open(file)
        .and_then(|f| isles_store::read_bounded(f, LIMIT))
        .map_err(Error::io("read", file))?
        .unwrap_or_default();
    serde_json::from_slice(&bytes)
        .map_err(|e| SpecError::new(format!("'{}' does not describe devices: {e}", file.display())).into())
}

fn add(edits: &mut Edits, change: &Change, name: &str) -> Result<()> {
    let empty = |v: &serde_json::Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    if let Some((key, _)) = change.rest.iter().find(|(_, value)| !empty(value)) {
        return Err(
            SpecError::new(format!("the device '{name}' needs '{key}', which builds do not have")).into()
        );
    }
    edits.env.extend(change.env.iter().cloned());
    for node in &change.device_nodes {
        edits.devices.push(device(node.path.clone(), node.host_path.clone(), node.permissions.clone()));
    }
    for bind in &change.mounts {
        edits.mounts.push(Mount {
            destination: bind.container_path.clone(),
            kind: MountKind::Bind {
                source: bind.host_path.clone(),
                recursive: bind.options.iter().any(|o| o == "rbind"),
                create_source: false,
                propagation: Propagation::default(),
                recursive_read_only: false,
            },
            read_only: bind.options.iter().any(|o| o == "ro"),
            optional: false,
        });
    }
    Ok(())
}

fn device(path: PathBuf, host: Option<PathBuf>, permissions: Option<String>) -> Device {
    Device {
        source: host.unwrap_or_else(|| path.clone()),
        destination: path,
        permissions: permissions.unwrap_or_else(|| "rwm".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Asked {
        text.parse().unwrap()
    }

    #[test]
    fn words() {
        assert_eq!(asked("/dev/fuse"), Asked { name: "/dev/fuse".into(), required: false });
        assert_eq!(asked("a.b/gpu=0,required"), Asked { name: "a.b/gpu=0".into(), required: true });
        assert_eq!(asked("name=a/b=c,required=false"), Asked { name: "a/b=c".into(), required: false });
        assert!(asked("required=true,a/b=c").required);
        for bad in ["", "required", "a,b", "a/b=c,required=maybe", "name=a,name=b", "\"a"] {
            assert!(bad.parse::<Asked>().is_err(), "{bad}");
        }
    }

    #[test]
    fn descriptions() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("none"), dir.path().to_owned()];
        let spec = r#"{"cdiVersion": "0.6.0", "kind": "v.com/gpu", "devices": [
            {"name": "0", "containerEdits": {"env": ["A=1"], "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "permissions": "rw"}]}},
            {"name": "1", "containerEdits": {"hooks": [{"hookName": "x", "path": "/x"}]}}],
            "containerEdits": {"env": ["ALL=1"], "hooks": [],
                "mounts": [{"hostPath": "/lib", "containerPath": "/lib", "options": ["ro", "rbind"]}]}}"#;
        std::fs::write(dir.path().join("v.json"), spec).unwrap();
        let edits = within(&folders, &asked("v.com/gpu=0")).unwrap().unwrap();
        assert_eq!(edits.env, ["A=1", "ALL=1"]);
        assert_eq!(
            edits.devices,
            [Device { source: "/dev/null".into(), destination: "/dev/x".into(), permissions: "rw".into() }]
        );
        assert!(edits.mounts[0].read_only);
        assert!(within(&folders, &asked("v.com/gpu=*")).unwrap_err().to_string().contains("'hooks'"));
        assert_eq!(within(&folders, &asked("v.com/gpu=7")).unwrap(), None);
        assert!(
            within(&folders, &asked("v.com/gpu=7,required"))
                .unwrap_err()
                .to_string()
                .contains("'v.com/gpu=7' is not here")
        );
        assert!(within(&folders, &asked("gpu")).is_err());
        std::fs::write(dir.path().join("w.yaml"), "kind: w/x").unwrap();
        assert!(within(&folders, &asked("w/x=0,required")).unwrap_err().to_string().contains("w.yaml"));
        std::fs::write(dir.path().join("bad.json"), "[").unwrap();
        assert!(within(&folders, &asked("w/x=0")).is_err());
    }
}
