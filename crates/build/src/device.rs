//! `RUN --device`: devices of the host by their path, or by the names that vendors give them.
//!
//! What a device needs beyond nodes, variables and mounts is refused by name.

use std::path::{Path, PathBuf};

use isles_engine::cdi;
use isles_spec::{Device, Error as SpecError, Mount};

use crate::dockerfile::mount::fields;
use crate::error::Result;

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

/// What a device means on this host; `None` where it is not here and need not be.
///
/// # Errors
/// It is not here and is required, or it needs what cannot be given.
pub fn find(asked: &Asked) -> Result<Option<Edits>> {
    within(&cdi::FOLDERS.map(PathBuf::from), asked)
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
    cdi::parts(name).map_err(|_| {
        SpecError::new(format!("'{name}' is no name of a device"))
            .with_hint("write a path below /dev, or VENDOR/CLASS=NAME")
    })?;
    let Some(found) = cdi::find(name, folders)? else {
        return missing("no vendor describes it in /etc/cdi or /var/run/cdi".into(), "check its name");
    };
    let mut edits = Edits::default();
    for change in &found {
        add(&mut edits, change, name)?;
    }
    Ok(Some(edits))
}

fn add(edits: &mut Edits, change: &cdi::Edits, name: &str) -> Result<()> {
    let empty = |v: &serde_json::Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    let rest = change.rest.iter().find(|(_, value)| !empty(value)).map(|(key, _)| key.as_str());
    if let Some(key) = rest.or((!change.hooks.is_empty()).then_some("hooks")) {
        return Err(
            SpecError::new(format!("the device '{name}' needs '{key}', which builds do not have")).into()
        );
    }
    edits.env.extend(change.env.iter().cloned());
    for node in &change.device_nodes {
        let (source, permissions) = (node.source().to_owned(), node.permissions.clone());
        edits.devices.push(device(node.path.clone(), Some(source), permissions));
    }
    edits.mounts.extend(change.mounts.iter().map(cdi::Bind::mount));
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
        let yaml = "kind: w/x\ndevices:\n- name: all\n  containerEdits:\n    env: [W=1]\n";
        std::fs::write(dir.path().join("w.yaml"), yaml).unwrap();
        assert_eq!(within(&folders, &asked("w/x=all,required")).unwrap().unwrap().env, ["W=1"]);
        std::fs::write(dir.path().join("bad.json"), "[").unwrap();
        assert!(within(&folders, &asked("w/x=0")).is_err());
    }
}
