//! Volumes: their names, and what the driver `local` may be told about where their files are (docker-volume-create(1)).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a volume is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeSpec {
    pub labels: BTreeMap<String, String>,
    /// `type`, `device` and `o`, as mount(8) has them.
    pub options: BTreeMap<String, String>,
}

/// Where the files of a volume are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// In the volume's own folder.
    Own,
    /// In a file or folder of the host.
    Bind { source: PathBuf, recursive: bool, flags: Vec<String> },
    /// In a file system that is mounted for each container: `tmpfs`, `ext4`, `nfs`.
    Mounted { kind: String, device: String, options: Vec<String>, flags: Vec<String> },
}

/// Options of mount(8) that are a mount's and not the file system's.
const FLAGS: [&str; 13] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "noatime",
    "relatime",
    "strictatime",
    "nodiratime",
    "defaults",
];

impl VolumeSpec {
    /// Reads the options.
    ///
    /// # Errors
    /// One of them is unknown, or does not go with the others.
    pub fn backing(&self) -> Result<Backing> {
        let bad = |why: String| {
            Error::new(format!("invalid options of a volume: {why}"))
                .with_hint("for example -o type=tmpfs -o device=tmpfs -o o=size=100m, or -o type=none -o o=bind -o device=/srv")
        };
        let mut options = self.options.iter();
        if let Some((key, _)) = options.find(|(key, _)| !matches!(key.as_str(), "type" | "device" | "o")) {
            let quota = if key == "size" { " (quotas are not supported)" } else { "" };
            return Err(bad(format!("'{key}' is none of type, device and o{quota}")));
        }
        let get = |key: &str| self.options.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let words: Vec<&str> = get("o").unwrap_or_default().split(',').filter(|o| !o.is_empty()).collect();
        let (flags, options): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| FLAGS.contains(word));
        let text = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let binds: Vec<&str> = options.iter().copied().filter(|o| matches!(*o, "bind" | "rbind")).collect();
        let device = get("device");
        match (get("type"), device) {
            (None, None) if words.is_empty() => Ok(Backing::Own),
            (None | Some("none" | "bind"), Some(device)) if !binds.is_empty() => {
                if let Some(other) = options.iter().find(|o| !matches!(**o, "bind" | "rbind")) {
                    return Err(bad(format!("'{other}' means nothing to a bind")));
                }
                if !device.starts_with('/') {
                    return Err(bad(format!("the device '{device}' is no absolute path")));
                }
                let recursive = binds.contains(&"rbind");
                Ok(Backing::Bind { source: device.into(), recursive, flags: text(flags) })
            }
            (Some("none" | "bind"), _) => Err(bad("a bind needs o=bind and the path as device".into())),
            (Some(kind), device) => {
                let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                if !kind.chars().all(known) {
                    return Err(bad(format!("'{kind}' is no type of file system")));
                }
                let device = match device {
                    Some(device) => device.to_owned(),
                    None if kind == "tmpfs" => "tmpfs".to_owned(),
                    None => return Err(bad(format!("the type {kind} needs a device"))),
                };
                Ok(Backing::Mounted { kind: kind.into(), device, options: text(options), flags: text(flags) })
            }
            (None, _) => Err(bad("a device needs a type, and o=… both of them".into())),
        }
    }
}

/// Whether a volume may be called so.
///
/// # Errors
/// It may not; the error says what names are made of.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let fine = (2..=255).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(plain);
    if fine {
        return Ok(());
    }
    if name.len() == 1 && name.bytes().all(plain) {
        return Err(Error::new(format!("the volume name '{name}' is too short")).with_hint(
            "a name has at least two letters or digits; a folder of the host is written ./data or /data",
        ));
    }
    Err(Error::new(format!(
        "'{name}' includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed"
    ))
    .with_hint("if you intended to pass a host directory, use an absolute path or begin with './'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing(options: &[(&str, &str)]) -> Result<Backing> {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        VolumeSpec { options, ..VolumeSpec::default() }.backing()
    }

    #[test]
    fn options_of_the_local_driver() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(backing(&[]).unwrap(), Backing::Own);
        assert_eq!(backing(&[("o", ""), ("type", "")]).unwrap(), Backing::Own);
        assert_eq!(
            backing(&[("type", "none"), ("o", "rbind,ro"), ("device", "/srv")]).unwrap(),
            Backing::Bind { source: "/srv".into(), recursive: true, flags: words(&["ro"]) }
        );
        assert_eq!(
            backing(&[("type", "tmpfs"), ("o", "size=1m,nosuid,uid=5")]).unwrap(),
            Backing::Mounted {
                kind: "tmpfs".into(),
                device: "tmpfs".into(),
                options: words(&["size=1m", "uid=5"]),
                flags: words(&["nosuid"]),
            }
        );
        for (options, word) in [
            (&[("size", "1g")][..], "quotas"),
            (&[("color", "red")], "'color'"),
            (&[("type", "none"), ("device", "/srv")], "o=bind"),
            (&[("o", "bind"), ("device", "srv")], "absolute"),
            (&[("o", "bind,size=5"), ("device", "/srv")], "'size=5'"),
            (&[("o", "bind")], "type"),
            (&[("type", "ext4")], "device"),
            (&[("type", "../x"), ("device", "y")], "'../x'"),
            (&[("device", "/dev/sda1")], "type"),
        ] {
            assert!(backing(options).unwrap_err().to_string().contains(word), "{options:?}");
        }
    }

    #[test]
    fn names() {
        for fine in ["ab", "my-data_1.x", &"a".repeat(255)] {
            check_name(fine).unwrap();
        }
        for bad in ["", "a", ".x", "-x", "a/b", "a b", "a:b", "ä1", &"a".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
