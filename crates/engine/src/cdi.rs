//! Devices by the names that vendors give them, `VENDOR/CLASS=NAME`, and what each brings into a container.
//!
//! Specification: the Container Device Interface (CNCF TAG Runtime), 0.3 to 1.0. Files are JSON or YAML, which
//! `nvidia-ctk cdi generate` writes. What is to be done with what a device brings is for whoever asks to decide.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use isles_spec::{Error, Mount};
use serde::Deserialize;

/// Where vendors and programs leave their files; what is in the later one counts.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// A file of a large machine has some hundred kilobytes.
const LIMIT: u64 = 16 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    kind: String,
    devices: Vec<Named>,
    container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    name: String,
    container_edits: Edits,
}

/// What a device brings.
#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// `NAME=VALUE`
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub mounts: Vec<Bind>,
    /// Programs of the host that would change the container.
    pub hooks: Vec<Hook>,
    /// What there is besides.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// In the container.
    pub path: PathBuf,
    /// On the host, where it is another; see [`Node::source`].
    pub host_path: Option<PathBuf>,
    /// Of `rwm`; all where nothing is said.
    pub permissions: Option<String>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bind {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub options: Vec<String>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    pub path: String,
    pub args: Vec<String>,
}

impl Node {
    /// The node on the host.
    pub fn source(&self) -> &Path {
        self.host_path.as_deref().filter(|path| *path != Path::new("")).unwrap_or(&self.path)
    }
}

impl Bind {
    /// What is mounted in the container.
    pub fn mount(&self) -> Mount {
        let read_only = self.options.iter().any(|option| option == "ro");
        Mount { read_only, ..Mount::bind(&self.host_path, &self.container_path) }
    }
}

/// Vendor and class, and the name of a device of theirs.
///
/// # Errors
/// It is not of the form `VENDOR/CLASS=NAME`.
pub fn parts(name: &str) -> Result<(&str, &str), Error> {
    name.split_once('=').filter(|(kind, device)| kind.contains('/') && !device.is_empty()).ok_or_else(|| {
        Error::new(format!("'{name}' is no name of a device")).with_hint("write VENDOR/CLASS=NAME")
    })
}

/// What a device brings, and what comes with every device of its file; `None` where no file describes it. The name
/// `*` stands for all devices of a file.
///
/// # Errors
/// The name is none, or a file makes no sense.
pub fn find(name: &str, folders: &[PathBuf]) -> Result<Option<Vec<Edits>>, Error> {
    let (kind, wanted) = parts(name)?;
    let mut found = None;
    for file in files(folders)? {
        let spec = read(&file)?;
        if spec.kind != kind {
            continue;
        }
        let chosen = spec.devices.into_iter().filter(|device| wanted == "*" || device.name == wanted);
        let mut edits: Vec<Edits> = chosen.map(|device| device.container_edits).collect();
        if !edits.is_empty() {
            edits.push(spec.container_edits);
            found = Some(edits);
        }
    }
    Ok(found)
}

/// The files of folders, in order.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut out = Vec::new();
    for folder in folders {
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| Error::new(format!("cannot list '{}': {e}", folder.display())))?,
        };
        let mut here: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        here.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml"));
        here.sort();
        out.extend(here);
    }
    Ok(out)
}

fn read(path: &Path) -> Result<Spec, Error> {
    let odd = |why: String| Error::new(format!("the CDI file '{}' makes no sense: {why}", path.display()));
    let bytes = File::open(path).and_then(|file| isles_store::read_bounded(file, LIMIT));
    let bytes =
        bytes.map_err(|e| Error::new(format!("cannot read the CDI file '{}': {e}", path.display())))?;
    let bytes = bytes.ok_or_else(|| odd("it is too large".to_owned()))?;
    match path.extension().is_some_and(|e| e == "json") {
        true => serde_json::from_slice(&bytes).map_err(|e| odd(e.to_string())),
        // A file of comments only is none, and no error.
        false => serde_yaml_ng::from_slice::<Option<Spec>>(&bytes)
            .map(Option::unwrap_or_default)
            .map_err(|e| odd(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"cdiVersion": "0.6.0", "kind": "v.com/gpu", "devices": [
        {"name": "0", "containerEdits": {"env": ["A=1"], "deviceNodes":
            [{"path": "/dev/x", "hostPath": "/dev/null", "permissions": "rw"}, {"path": "/dev/y"}]}},
        {"name": "1", "containerEdits": {"hooks": [{"hookName": "x", "path": "/x", "args": ["x", "y"]}]}}],
        "containerEdits": {"env": ["ALL=1"], "intelRdt": {},
            "mounts": [{"hostPath": "/lib", "containerPath": "/lib", "options": ["ro", "rbind"]}]}}"#;
    /// As `nvidia-ctk` writes it, and in ways that people do.
    const YAML: &str = "---\ncdiVersion: 0.5.0\ncontainerEdits:\n  hooks:\n  - args:\n    - nvidia-ctk\n    - hook\n    \
        - create-symlinks\n    - --link\n    - libcuda.so.1::/usr/lib/libcuda.so\n    hookName: createContainer\n    \
        path: /usr/bin/nvidia-ctk\n  mounts:\n  - containerPath: /run/s\n    hostPath: /run/s\n    options: [ro, nosuid]\n\
        devices:\n- containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n  name: \"0\"\n\
        - {name: all, containerEdits: {env: [\"B=2\"]}}\nkind: nvidia.com/gpu\n";

    #[test]
    fn descriptions_in_both_languages() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("none"), dir.path().to_owned()];
        std::fs::write(dir.path().join("v.json"), JSON).unwrap();
        std::fs::write(dir.path().join("n.yaml"), YAML).unwrap();
        std::fs::write(dir.path().join("empty.yml"), "# nothing\n").unwrap();
        std::fs::write(dir.path().join("other.txt"), "{").unwrap();
        let [device, all] = &find("v.com/gpu=0", &folders).unwrap().unwrap()[..] else { panic!() };
        assert_eq!((&device.env, &all.env), (&vec!["A=1".to_owned()], &vec!["ALL=1".to_owned()]));
        let sources: Vec<&Path> = device.device_nodes.iter().map(Node::source).collect();
        assert_eq!(sources, [Path::new("/dev/null"), Path::new("/dev/y")]);
        assert!(all.mounts[0].mount().read_only && all.rest.contains_key("intelRdt"));
        assert_eq!(find("v.com/gpu=*", &folders).unwrap().unwrap().len(), 3);
        assert_eq!(find("v.com/gpu=7", &folders).unwrap(), None);
        let [device, all] = &find("nvidia.com/gpu=0", &folders).unwrap().unwrap()[..] else { panic!() };
        assert_eq!(device.device_nodes[0].path, Path::new("/dev/nvidia0"));
        assert_eq!(all.hooks[0].args[4], "libcuda.so.1::/usr/lib/libcuda.so");
        assert!(all.mounts[0].mount().read_only);
        assert_eq!(find("nvidia.com/gpu=all", &folders).unwrap().unwrap()[0].env, ["B=2"]);
        // What a later folder says counts.
        let later = tempfile::tempdir().unwrap();
        std::fs::write(later.path().join("v.json"), JSON.replace("A=1", "A=2")).unwrap();
        let folders = [folders[1].clone(), later.path().to_owned()];
        assert_eq!(find("v.com/gpu=0", &folders).unwrap().unwrap()[0].env, ["A=2"]);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for name in ["v.com/gpu", "v.com/gpu=", "gpu=0", ""] {
            assert!(parts(name).is_err(), "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_owned()];
        let bomb: String = std::iter::once("a0: &a0 [x, x]\n".to_owned())
            .chain((1..40).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}]\n", n - 1)))
            .collect();
        for (name, text) in [
            ("a.json", "{".to_owned()),
            ("a.yaml", "kind: [".to_owned()),
            ("a.yaml", "[".repeat(100_000)),
            ("a.yaml", "kind: {a: b}".to_owned()),
            ("a.yaml", "\u{0}".to_owned()),
            ("a.yaml", bomb + "kind: *a39\n"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let said = find("a/b=c", &folders).unwrap_err().to_string();
            assert!(said.contains(&format!("{name}' makes no sense")), "{said}");
            std::fs::remove_file(path).unwrap();
        }
    }
}
