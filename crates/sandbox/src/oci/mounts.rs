//! Options of mounts as `config.json` spells them (config.md#linux-mount-options) in the words of the sandbox.

use std::path::Path;

use isles_spec::{IdMapping, Propagation};

use super::Result;
use super::config::{Config, Mount, invalid};
use crate::cgroup::Group;
use crate::setup::{self, MountFlags, MountSource};

/// What the options say together; later ones win.
#[derive(Debug, Default, PartialEq)]
struct Options {
    flags: MountFlags,
    propagation: Option<Propagation>,
    bind: bool,
    recursive_bind: bool,
    idmap: bool,
    /// What the file system itself understands: flags have an empty value.
    data: Vec<(String, String)>,
}

fn options(list: &[String]) -> Result<Options> {
    let mut o = Options::default();
    for option in list {
        let f = &mut o.flags;
        match option.as_str() {
            "bind" => o.bind = true,
            "rbind" => (o.bind, o.recursive_bind) = (true, true),
            "ro" => f.read_only = true,
            // A copy of a read-only mount stays so, as with mount(8); `rrw` insists.
            "rw" => (f.read_only, f.recursive_read_only) = (false, false),
            "rro" => (f.read_only, f.recursive_read_only, f.writable) = (true, true, false),
            "rrw" => {
                (f.read_only, f.recursive_read_only, f.writable, f.recursive) = (false, false, true, true)
            }
            "nosuid" => (f.nosuid, f.suid) = (true, false),
            "suid" => (f.nosuid, f.suid) = (false, true),
            "nodev" => (f.nodev, f.dev) = (true, false),
            "dev" => (f.nodev, f.dev) = (false, true),
            "noexec" => (f.noexec, f.exec) = (true, false),
            "exec" => (f.noexec, f.exec) = (false, true),
            "noatime" => (f.noatime, f.relatime, f.strictatime) = (true, false, false),
            "atime" | "norelatime" | "nostrictatime" => (f.noatime, f.strictatime) = (false, false),
            "relatime" => (f.noatime, f.relatime, f.strictatime) = (false, true, false),
            "strictatime" => (f.noatime, f.relatime, f.strictatime) = (false, false, true),
            "nodiratime" => (f.nodiratime, f.diratime) = (true, false),
            "diratime" => (f.nodiratime, f.diratime) = (false, true),
            "nosymfollow" => (f.nosymfollow, f.symfollow) = (true, false),
            "symfollow" => (f.nosymfollow, f.symfollow) = (false, true),
            "rnosuid" => (f.nosuid, f.suid, f.recursive) = (true, false, true),
            "rsuid" => (f.nosuid, f.suid, f.recursive) = (false, true, true),
            "rnodev" => (f.nodev, f.dev, f.recursive) = (true, false, true),
            "rdev" => (f.nodev, f.dev, f.recursive) = (false, true, true),
            "rnoexec" => (f.noexec, f.exec, f.recursive) = (true, false, true),
            "rexec" => (f.noexec, f.exec, f.recursive) = (false, true, true),
            "rnoatime" => (f.noatime, f.relatime, f.strictatime, f.recursive) = (true, false, false, true),
            "ratime" | "rnorelatime" | "rnostrictatime" => {
                (f.noatime, f.strictatime, f.relatime, f.recursive) = (false, false, true, true)
            }
            "rrelatime" => (f.noatime, f.relatime, f.strictatime, f.recursive) = (false, true, false, true),
            "rstrictatime" => {
                (f.noatime, f.relatime, f.strictatime, f.recursive) = (false, false, true, true)
            }
            "rnodiratime" => (f.nodiratime, f.diratime, f.recursive) = (true, false, true),
            "rdiratime" => (f.nodiratime, f.diratime, f.recursive) = (false, true, true),
            "rnosymfollow" => (f.nosymfollow, f.symfollow, f.recursive) = (true, false, true),
            "rsymfollow" => (f.nosymfollow, f.symfollow, f.recursive) = (false, true, true),
            "tmpcopyup" => f.copy_up = true,
            "idmap" | "ridmap" => o.idmap = true,
            // A new mount is all that there is; nothing is mounted again.
            "defaults" | "remount" | "nofail" | "loud" | "norecurse" => {}
            // Words of the file system that mount(8) turns into flags, with those that switch them off again.
            "sync" | "dirsync" | "lazytime" | "mand" | "silent" => {
                o.data.push((option.clone(), String::new()))
            }
            "async" | "nolazytime" | "nomand" | "iversion" | "noiversion" => {
                let plain = option.trim_start_matches("no");
                o.data.retain(|(name, _)| name != plain && !(option == "async" && name == "sync"));
            }
            other => match propagation(other) {
                Some(p) => o.propagation = Some(p),
                None if other.is_empty() => return Err(invalid("a mount has an empty option")),
                None => {
                    let (name, value) = other.split_once('=').unwrap_or((other, ""));
                    o.data.push((name.to_owned(), value.to_owned()));
                }
            },
        }
    }
    Ok(o)
}

/// A word of `rootfsPropagation` or of a mount's options.
pub(super) fn propagation(word: &str) -> Option<Propagation> {
    Some(match word {
        "unbindable" => Propagation::Unbindable,
        "runbindable" => Propagation::Runbindable,
        other => return Propagation::parse(other),
    })
}

pub(super) fn mappings(list: &[super::config::IdMapping]) -> Vec<IdMapping> {
    list.iter().map(|m| IdMapping { inside: m.container_id, outside: m.host_id, length: m.size }).collect()
}

/// One mount. Relative sources are below the bundle.
pub(super) fn plan(mount: &Mount, config: &Config, bundle: &Path) -> Result<setup::Mount> {
    let mut o = options(&mount.options)?;
    let destination = Path::new("/").join(&mount.destination);
    let bind = o.bind || mount.kind == "bind";
    let mapped = !mount.uid_mappings.is_empty();
    if !bind && (o.idmap || mapped) {
        return Err(invalid(format!("mount {} has ID mappings but is no bind mount", destination.display())));
    }
    if o.idmap && !mapped && config.linux.uid_mappings.is_empty() {
        return Err(invalid(format!(
            "mount {} has the option idmap, but neither it nor the container has mappings",
            destination.display()
        )));
    }
    let source = if bind {
        if mount.source.is_empty() {
            return Err(invalid(format!("bind mount {} has no source", destination.display())));
        }
        MountSource::Bind { source: bundle.join(&mount.source), recursive: o.recursive_bind }
    } else {
        match (mount.kind.as_str(), destination.to_str()) {
            ("proc", _) => MountSource::Proc,
            ("sysfs", _) => MountSource::Sysfs,
            ("mqueue", _) => MountSource::Mqueue,
            ("cgroup" | "cgroup2", _) => MountSource::Cgroup,
            ("tmpfs", Some("/dev")) => MountSource::Dev,
            ("devpts", Some("/dev/pts")) => MountSource::Devpts,
            ("", _) => return Err(invalid(format!("mount {} has no type", destination.display()))),
            (kind, _) => {
                let source = if mount.source.is_empty() { kind } else { &mount.source };
                MountSource::Filesystem {
                    kind: kind.to_owned(),
                    source: source.to_owned(),
                    options: std::mem::take(&mut o.data),
                }
            }
        }
    };
    let idmap = match (mapped, o.idmap) {
        (true, _) => Some((mappings(&mount.uid_mappings), mappings(&mount.gid_mappings))),
        (false, true) => Some((mappings(&config.linux.uid_mappings), mappings(&config.linux.gid_mappings))),
        _ => None,
    };
    Ok(setup::Mount {
        destination,
        source,
        flags: o.flags,
        propagation: o.propagation,
        idmap,
        optional: false,
    })
}

/// Shows a container that shares the host's cgroup namespace its own groups, and nothing of the others: in place of the
/// whole v1 hierarchies their folders that are its own. A v2 tree is shown as a whole, as runc and crun do.
pub(super) fn own_cgroups(planned: Vec<setup::Mount>, group: &Group) -> Vec<setup::Mount> {
    let hierarchies = group.v1_views();
    if hierarchies.is_empty() {
        return planned;
    }
    let mut out = Vec::with_capacity(planned.len());
    for mount in planned {
        if !matches!(mount.source, MountSource::Cgroup) {
            out.push(mount);
            continue;
        }
        let folder = setup::Mount {
            source: MountSource::Filesystem {
                kind: "tmpfs".into(),
                source: "tmpfs".into(),
                options: vec![("mode".into(), "755".into()), ("size".into(), "64k".into())],
            },
            // It must be written to until all are in their places, and holds nothing of worth.
            flags: MountFlags { read_only: false, ..mount.flags },
            ..mount.clone()
        };
        out.push(folder);
        out.extend(hierarchies.iter().map(|(name, path)| setup::Mount {
            destination: mount.destination.join(name),
            source: MountSource::Bind { source: path.clone(), recursive: false },
            ..mount.clone()
        }));
    }
    out
}

/// Every option that is understood, for `features`.
pub(super) const KNOWN: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Options {
        options(&words.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn words_become_flags() {
        let o = parse("rbind,rprivate,ro,nosuid,nodev,noexec");
        assert!(o.bind && o.recursive_bind && o.flags.read_only && o.flags.nosuid && o.flags.nodev);
        assert_eq!(o.propagation, Some(Propagation::Rprivate));
        let o = parse("noexec,exec,ro,rw");
        assert!(o.flags.exec && !o.flags.noexec && !o.flags.writable && !o.flags.read_only);
        let o = parse("rro,rnosuid");
        assert!(o.flags.recursive_read_only && o.flags.recursive && o.flags.nosuid);
        let o = parse("nosuid,size=65536k,mode=1777,sync,async");
        assert_eq!(o.data, [("size".into(), "65536k".into()), ("mode".into(), "1777".into())]);
        assert!(options(&[String::new()]).is_err());
        for word in KNOWN {
            assert!(parse(word).data.iter().all(|(name, _)| name == word), "{word}");
        }
    }

    #[test]
    fn mounts_that_make_no_sense() {
        let config = Config::default();
        for (text, word) in [
            (r#"{"destination":"/a","type":"bind"}"#, "no source"),
            (r#"{"destination":"/a","source":"b"}"#, "no type"),
            (r#"{"destination":"/a","type":"bind","source":"/b","options":["idmap"]}"#, "neither"),
            (r#"{"destination":"/a","type":"tmpfs","options":["idmap"]}"#, "no bind mount"),
        ] {
            let mount: Mount = serde_json::from_str(text).unwrap();
            let error = plan(&mount, &config, Path::new("/bundle")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mount: Mount =
            serde_json::from_str(r#"{"destination":"a","type":"none","source":"b","options":["bind"]}"#)
                .unwrap();
        let planned = plan(&mount, &config, Path::new("/bundle")).unwrap();
        assert_eq!(planned.destination, Path::new("/a"));
        assert!(
            matches!(planned.source, MountSource::Bind { source, .. } if source == Path::new("/bundle/b"))
        );
    }
}
