//! Mounts and devices as Docker's options spell them: `-v`, `--mount`, `--tmpfs`, `--device`.

use std::path::{Component, Path, PathBuf};

use crate::quantity::parse_bytes;
use crate::volume::{VolumeSpec, check_name};
use crate::{Device, Error, IdMapping, Mount, MountKind, Owners, Propagation, Result};

/// What `-v` and `--mount` share when they describe a bind mount.
struct BindOptions {
    read_only: bool,
    recursive: bool,
    recursive_read_only: bool,
    propagation: Propagation,
    owners: Owners,
}

impl Default for BindOptions {
    fn default() -> Self {
        BindOptions {
            read_only: false,
            recursive: true,
            recursive_read_only: false,
            propagation: Propagation::default(),
            owners: Owners::default(),
        }
    }
}

impl Propagation {
    /// The word that [`Propagation::parse`] reads; the unbindable ones have mount(8)'s.
    pub fn word(self) -> &'static str {
        match self {
            Propagation::Private => "private",
            Propagation::Rprivate => "rprivate",
            Propagation::Slave => "slave",
            Propagation::Rslave => "rslave",
            Propagation::Shared => "shared",
            Propagation::Rshared => "rshared",
            Propagation::Unbindable => "unbindable",
            Propagation::Runbindable => "runbindable",
        }
    }
}

impl Owners {
    /// Reads `idmap`, or `idmap=uids=DISK-INSIDE-COUNT[#…];gids=…` as podman has it. `None` where it is neither.
    fn parse_idmap(text: &str) -> Option<Owners> {
        let Some((_, rest)) = text.split_once('=') else {
            return (text == "idmap").then_some(Owners::Swapped);
        };
        let (mut uids, mut gids) = (Vec::new(), Vec::new());
        for part in rest.split(';') {
            let (key, ranges) = part.split_once('=')?;
            let list = match key {
                "uids" => &mut uids,
                "gids" => &mut gids,
                _ => return None,
            };
            for range in ranges.split('#') {
                let numbers: Option<Vec<u32>> = range.split('-').map(|n| n.parse().ok()).collect();
                let [inside, outside, length] = numbers?[..] else { return None };
                inside.checked_add(length)?;
                outside.checked_add(length)?;
                if length == 0 {
                    return None;
                }
                list.push(IdMapping { inside, outside, length });
            }
        }
        (!uids.is_empty() && !gids.is_empty()).then_some(Owners::Mapped { uids, gids })
    }
}

impl MountKind {
    /// A volume as it is, with what the image has at its place where it is empty.
    pub fn volume(name: Option<String>) -> MountKind {
        MountKind::Volume {
            name,
            copy_up: true,
            subpath: None,
            owners: Owners::default(),
            make: VolumeSpec::default(),
        }
    }
}

impl Propagation {
    /// As mount(8) spells those that docker knows.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "private" => Propagation::Private,
            "rprivate" => Propagation::Rprivate,
            "slave" => Propagation::Slave,
            "rslave" => Propagation::Rslave,
            "shared" => Propagation::Shared,
            "rshared" => Propagation::Rshared,
            _ => return None,
        })
    }
}

impl MountKind {
    /// A file or folder of the host, which has to be there; with all that is mounted below it, or without.
    pub fn bind(source: impl Into<PathBuf>, recursive: bool) -> MountKind {
        MountKind::Bind {
            source: source.into(),
            recursive,
            create_source: false,
            propagation: Propagation::default(),
            recursive_read_only: false,
            owners: Owners::default(),
        }
    }
}

impl Mount {
    /// A file or folder of the host in the container. With all that is mounted below it, because in a user namespace
    /// nothing else is allowed.
    pub fn bind(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Mount {
        let kind = MountKind::bind(source, true);
        Mount { destination: destination.into(), kind, read_only: false, optional: false }
    }

    /// Reads `[SOURCE:]DESTINATION[:OPTIONS]` as docker's `-v` has it. A source that begins with `/`,
    /// `.` or `~` is a path of the host (relative to `base`; `~` is `home`), any other is the name of a
    /// volume. A missing host folder is made.
    pub fn parse_volume(text: &str, base: &Path, home: Option<&Path>) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(format!("invalid volume specification '{text}': {why}"))
                .with_hint("write SOURCE:DESTINATION or SOURCE:DESTINATION:ro, for example -v ./data:/data")
        };
        let parts: Vec<&str> = text.split(':').collect();
        if let [drive, path, ..] = parts[..]
            && parts.len() > 2
            && drive.len() == 1
            && drive.starts_with(|c: char| c.is_ascii_alphabetic())
            && path.starts_with(['/', '\\'])
        {
            return Err(bad("a volume's name has at least two letters, and drives are for Windows"));
        }
        let (source, destination, options) = match parts[..] {
            [destination] => (None, destination, ""),
            [source, destination] => (Some(source), destination, ""),
            [source, destination, options] => (Some(source), destination, options),
            _ => return Err(bad("it has too many colons")),
        };
        let destination = destination_path(destination).map_err(|why| bad(&why))?;
        let mut bind = BindOptions::default();
        let mut copy_up = true;
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option {
                "ro" | "readonly" => bind.read_only = true,
                "rw" => bind.read_only = false,
                "rro" => (bind.read_only, bind.recursive_read_only) = (true, true),
                "nocopy" => copy_up = false,
                "bind" => bind.recursive = false,
                "rbind" => bind.recursive = true,
                "U" => bind.owners = Owners::Given,
                map if map == "idmap" || map.starts_with("idmap=") => {
                    bind.owners = Owners::parse_idmap(map)
                        .ok_or_else(|| bad("write idmap, or idmap=uids=0-1000-1;gids=0-1000-1"))?;
                }
                // Labels of SELinux and hints for virtual machines of other systems: no effect here.
                "z" | "Z" | "consistent" | "cached" | "delegated" => {}
                other => {
                    bind.propagation =
                        Propagation::parse(other).ok_or_else(|| bad(&format!("invalid mode: {other}")))?;
                }
            }
        }
        let read_only = bind.read_only;
        let kind = match source {
            None => volume_kind(None, copy_up, bind),
            Some("") => return Err(bad("the source is empty")),
            Some(s) if s.starts_with(['/', '.', '~']) => {
                bind_kind(host_path(s, base, home).ok_or_else(|| bad("there is no home folder"))?, bind, true)
            }
            Some(name) => {
                check_name(name)?;
                volume_kind(Some(name.to_owned()), copy_up, bind)
            }
        };
        Ok(Mount { destination, kind, read_only, optional: false })
    }

    /// Reads `type=bind,source=…,target=…[,…]` as docker's `--mount` has it. A missing host path is an
    /// error when the container starts.
    pub fn parse_mount(text: &str, base: &Path, home: Option<&Path>) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(format!("invalid argument '{text}' for --mount: {why}"))
                .with_hint("for example --mount type=bind,source=/data,target=/data,readonly")
        };
        let (mut kind, mut source, mut target) = ("volume", None, None);
        let mut bind = BindOptions::default();
        let (mut copy_up, mut size, mut mode) = (true, None, None);
        let (mut create_source, mut sub, mut make) = (false, None, VolumeSpec::default());
        let fields = fields(text);
        for field in &fields {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (field.as_str(), None),
            };
            let truth = || match value {
                None | Some("true" | "1") => Ok(true),
                Some("false" | "0") => Ok(false),
                Some(v) => Err(bad(&format!("invalid value for {key}: {v}"))),
            };
            let word =
                || value.ok_or_else(|| bad(&format!("invalid field '{field}' must be a key=value pair")));
            match key {
                "type" => kind = word()?,
                "source" | "src" => source = Some(word()?),
                "target" | "dst" | "destination" => target = Some(word()?),
                "readonly" | "ro" => bind.read_only = truth()?,
                "bind-propagation" => {
                    let p = word()?;
                    bind.propagation =
                        Propagation::parse(p).ok_or_else(|| bad(&format!("invalid propagation: {p}")))?;
                }
                "bind-nonrecursive" => bind.recursive = !truth()?,
                "bind-recursive" => match word()? {
                    "enabled" | "writable" => {}
                    "disabled" => bind.recursive = false,
                    "readonly" => bind.recursive_read_only = true,
                    v => return Err(bad(&format!("invalid value for bind-recursive: {v}"))),
                },
                "bind-create-src" => create_source = truth()?,
                "idmap" => {
                    bind.owners = Owners::parse_idmap(field)
                        .ok_or_else(|| bad("write idmap, or idmap=uids=0-1000-1;gids=0-1000-1"))?;
                }
                "U" | "chown" if truth()? => bind.owners = Owners::Given,
                "U" | "chown" => {}
                "volume-nocopy" => copy_up = !truth()?,
                "volume-subpath" => sub = Some(subpath(word()?).map_err(|why| bad(&why))?),
                "volume-driver" if matches!(word()?, "local" | "") => {}
                "volume-driver" => return Err(bad("the only driver of volumes is 'local'")),
                "volume-label" => {
                    let (key, value) = word()?.split_once('=').unwrap_or((word()?, ""));
                    make.labels.insert(key.to_owned(), value.to_owned());
                }
                "volume-opt" => {
                    let (key, value) =
                        word()?.split_once('=').ok_or_else(|| bad("volume-opt is KEY=VALUE"))?;
                    make.options.insert(key.to_owned(), value.to_owned());
                }
                "tmpfs-size" => size = Some(parse_bytes(word()?)?),
                "tmpfs-mode" => {
                    mode = Some(octal(word()?).ok_or_else(|| bad("invalid value for tmpfs-mode"))?)
                }
                "consistency" => {}
                _ => return Err(bad(&format!("unexpected key '{key}' in '{field}'"))),
            }
        }
        let target = target.filter(|t| !t.is_empty()).ok_or_else(|| bad("target is required"))?;
        let destination = destination_path(target).map_err(|why| bad(&why))?;
        if bind.recursive_read_only && !bind.read_only {
            return Err(bad("bind-recursive=readonly needs readonly"));
        }
        let read_only = bind.read_only;
        let kind = match kind {
            "bind" => {
                let source = source.filter(|s| !s.is_empty()).ok_or_else(|| bad("source is required"))?;
                bind_kind(
                    host_path(source, base, home).ok_or_else(|| bad("there is no home folder"))?,
                    bind,
                    create_source,
                )
            }
            "volume" => {
                let name = source.filter(|s| !s.is_empty());
                name.map(check_name).transpose()?;
                make.backing()?;
                MountKind::Volume {
                    name: name.map(str::to_owned),
                    copy_up,
                    subpath: sub,
                    owners: bind.owners,
                    make,
                }
            }
            "tmpfs" if source.is_none() => MountKind::Tmpfs { size, mode, options: Vec::new() },
            "tmpfs" => return Err(bad("a tmpfs has no source")),
            other => return Err(bad(&format!("invalid mount type: {other}"))),
        };
        Ok(Mount { destination, kind, read_only, optional: false })
    }

    /// Reads `DESTINATION[:OPTIONS]` as docker's `--tmpfs` has it.
    pub fn parse_tmpfs(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(format!("invalid tmpfs '{text}': {why}"))
                .with_hint("for example --tmpfs /tmp:size=64m,mode=1777")
        };
        let (destination, rest) = text.split_once(':').unwrap_or((text, ""));
        let destination = destination_path(destination).map_err(|why| bad(&why))?;
        let (mut size, mut mode, mut read_only, mut options) = (None, None, false, Vec::new());
        for option in rest.split(',').filter(|o| !o.is_empty()) {
            match option.split_once('=') {
                Some(("size", value)) => size = Some(parse_bytes(value)?),
                Some(("mode", value)) => {
                    mode = Some(octal(value).ok_or_else(|| bad("mode is an octal number"))?);
                }
                Some(("uid" | "gid" | "nr_inodes" | "nr_blocks", v))
                    if !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()) =>
                {
                    options.push(option.to_owned());
                }
                None if option == "ro" => read_only = true,
                None if option == "rw" => read_only = false,
                None if matches!(
                    option,
                    "exec"
                        | "noexec"
                        | "suid"
                        | "nosuid"
                        | "dev"
                        | "nodev"
                        | "noatime"
                        | "relatime"
                        | "strictatime"
                ) =>
                {
                    options.push(option.to_owned());
                }
                _ => return Err(bad(&format!("invalid tmpfs option [\"{option}\"]"))),
            }
        }
        let kind = MountKind::Tmpfs { size, mode, options };
        Ok(Mount { destination, kind, read_only, optional: false })
    }
}

impl Device {
    /// Reads `HOST[:CONTAINER][:PERMISSIONS]` as docker's `--device` has it.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(format!("invalid device specification '{text}': {why}"))
                .with_hint("for example --device /dev/fuse, --device /dev/sda:/dev/xvdc:r or --device vendor.com/class=name")
        };
        let permissions =
            |s: &str| !s.is_empty() && s.len() <= 3 && s.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'));
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, mode) = match parts[..] {
            [source] => (source, source, "rwm"),
            [source, mode] if permissions(mode) => (source, source, mode),
            [source, destination] => (source, destination, "rwm"),
            [source, destination, mode] if permissions(mode) => (source, destination, mode),
            [_, _, mode] => return Err(bad(&format!("invalid mode '{mode}'"))),
            _ => return Err(bad("it has too many colons")),
        };
        if !source.starts_with('/') {
            return Err(bad("the device is an absolute path"));
        }
        Ok(Device {
            source: source.into(),
            destination: destination_path(destination).map_err(|why| bad(&why))?,
            permissions: mode.to_owned(),
        })
    }
}

fn bind_kind(source: PathBuf, options: BindOptions, create_source: bool) -> MountKind {
    MountKind::Bind {
        source,
        recursive: options.recursive,
        create_source,
        propagation: options.propagation,
        recursive_read_only: options.recursive_read_only,
        owners: options.owners,
    }
}

fn volume_kind(name: Option<String>, copy_up: bool, options: BindOptions) -> MountKind {
    MountKind::Volume { name, copy_up, subpath: None, owners: options.owners, make: VolumeSpec::default() }
}

/// A path below the top of a volume.
fn subpath(text: &str) -> std::result::Result<PathBuf, String> {
    let path = Path::new(text);
    let below = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if text.is_empty() || !below {
        return Err(format!("the subpath '{text}' is no path below the volume"));
    }
    Ok(path.to_owned())
}

/// An absolute path below the root, without `.` and `..`.
fn destination_path(text: &str) -> std::result::Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("invalid mount path: '{text}' mount path must be absolute"));
    }
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean == Path::new("/") {
        return Err("invalid specification: destination can't be '/'".into());
    }
    Ok(clean)
}

fn host_path(text: &str, base: &Path, home: Option<&Path>) -> Option<PathBuf> {
    let path = match text.strip_prefix('~') {
        Some("") => home?.to_owned(),
        Some(rest) if rest.starts_with('/') => home?.join(rest.trim_start_matches('/')),
        _ => base.join(text),
    };
    // `./x` and `.` read better in messages without the dots; `..` may cross a link and stays.
    Some(path.components().collect())
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok().filter(|m| *m <= 0o7777)
}

/// The fields of a line of comma-separated values; a field in double quotes may have commas.
fn fields(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => {
                if let Some(last) = out.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Result<Mount> {
        Mount::parse_volume(text, Path::new("/base"), Some(Path::new("/home/u")))
    }

    fn mount(text: &str) -> Result<Mount> {
        Mount::parse_mount(text, Path::new("/base"), None)
    }

    #[test]
    fn volumes() {
        for (text, source, destination, read_only) in [
            ("/a:/b", "/a", "/b", false),
            ("/a:/b:ro", "/a", "/b", true),
            ("./a:/b/../c/:rw", "/base/a", "/c", false),
            (".:/w", "/base", "/w", false),
            ("~:/h", "/home/u", "/h", false),
            ("~/x:/h:ro,z,rslave", "/home/u/x", "/h", true),
        ] {
            let m = volume(text).unwrap();
            let MountKind::Bind { source: s, create_source, .. } = &m.kind else { panic!("{text}") };
            assert_eq!((s.as_path(), m.destination.as_path()), (Path::new(source), Path::new(destination)));
            assert!(*create_source);
            assert_eq!(m.read_only, read_only, "{text}");
        }
        assert!(matches!(volume("/data").unwrap().kind, MountKind::Volume { name: None, .. }));
        let MountKind::Volume { name, copy_up, .. } = volume("db:/var/lib:nocopy").unwrap().kind else {
            panic!("a volume")
        };
        assert_eq!((name.as_deref(), copy_up), (Some("db"), false));
        for bad in
            ["", ":", "/a:b", "/a:/", "/a:/b:bogus", "a:b:c:d", ":/x", "a b:/x", "x:/y", "/a:/../", "-x:/y"]
        {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whose_files_they_are() {
        let owners = |text: &str| match volume(text).map(|m| m.kind) {
            Ok(MountKind::Bind { owners, .. } | MountKind::Volume { owners, .. }) => Some(owners),
            _ => None,
        };
        assert_eq!(owners("/a:/b"), Some(Owners::Kept));
        assert_eq!(owners("/a:/b:ro,idmap"), Some(Owners::Swapped));
        assert_eq!(owners("data:/b:U"), Some(Owners::Given));
        let map = |inside, outside, length| IdMapping { inside, outside, length };
        assert_eq!(
            owners("/a:/b:idmap=uids=0-1-10#10-11-10;gids=0-100-10"),
            Some(Owners::Mapped { uids: vec![map(0, 1, 10), map(10, 11, 10)], gids: vec![map(0, 100, 10)] })
        );
        for bad in [
            "idmap=",
            "idmap=uids=0-1-1",
            "idmap=uids=0-1-0;gids=0-1-1",
            "idmap=uids=1;gids=0-1-1",
            "idmap=uids=0-4294967295-2;gids=0-1-1",
            "idmaps",
        ] {
            assert_eq!(owners(&format!("/a:/b:{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn parts_of_volumes() {
        let MountKind::Volume { name, subpath, make, .. } = mount(
            "type=volume,src=db,dst=/d,volume-subpath=a/b,volume-label=x=y,volume-opt=type=tmpfs,\"volume-opt=o=size=1m,ro\"",
        )
        .unwrap()
        .kind
        else {
            panic!("a volume")
        };
        assert_eq!((name.as_deref(), subpath.as_deref()), (Some("db"), Some(Path::new("a/b"))));
        assert_eq!((make.labels["x"].as_str(), make.options["o"].as_str()), ("y", "size=1m,ro"));
        for bad in [
            "volume-subpath=../x",
            "volume-subpath=/etc",
            "volume-subpath=",
            "volume-driver=nfs",
            "volume-opt=color=red",
            "volume-opt=x",
        ] {
            assert!(mount(&format!("type=volume,src=db,dst=/d,{bad}")).is_err(), "{bad}");
        }
        for windows in ["C:\\data:/data", "c:/data:/data", "C:\\a:D:\\b"] {
            assert!(volume(windows).unwrap_err().to_string().contains("Windows"), "{windows}");
        }
    }

    #[test]
    fn mounts() {
        let m = mount("type=bind,source=/a,target=/b,readonly,bind-propagation=rshared").unwrap();
        assert!(m.read_only);
        assert!(matches!(
            m.kind,
            MountKind::Bind { create_source: false, propagation: Propagation::Rshared, recursive: true, .. }
        ));
        assert!(matches!(mount("type=bind,\"src=/a,b\",dst=/c").unwrap().kind,
            MountKind::Bind { source, .. } if source == Path::new("/a,b")));
        assert_eq!(
            mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap().kind,
            MountKind::Tmpfs { size: Some(1 << 20), mode: Some(0o700), options: vec![] }
        );
        for bad in [
            "",
            "type=bind",
            "type=bind,target=/x",
            "type=bind,source=,target=/x",
            "type=odd,target=/x",
            "target=x",
            "type=tmpfs,source=/a,target=/x",
            "bogus=1,target=/x",
            "type=bind,src=/a,dst=/b,ro=maybe",
            "type=tmpfs,target=/t,tmpfs-mode=9",
            "readonly=true,target",
            "type=bind,src=/a,dst=/b,bind-recursive=readonly",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tmpfs() {
        let m = Mount::parse_tmpfs("/run:size=64m,mode=755,noexec,uid=5,ro").unwrap();
        assert!(m.read_only);
        assert_eq!(
            m.kind,
            MountKind::Tmpfs {
                size: Some(64 << 20),
                mode: Some(0o755),
                options: vec!["noexec".into(), "uid=5".into()]
            }
        );
        for bad in ["", "run", "/", "/run:bogus", "/run:size=", "/run:uid=x", "/run:mode=99999"] {
            assert!(Mount::parse_tmpfs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices() {
        for (text, destination, permissions) in [
            ("/dev/fuse", "/dev/fuse", "rwm"),
            ("/dev/fuse:r", "/dev/fuse", "r"),
            ("/dev/sda:/dev/xvdc", "/dev/xvdc", "rwm"),
            ("/dev/sda:/dev/xvdc:rw", "/dev/xvdc", "rw"),
        ] {
            let device = Device::parse(text).unwrap();
            assert_eq!(
                (device.destination.as_path(), &*device.permissions),
                (Path::new(destination), permissions)
            );
        }
        for bad in ["", "fuse", "/dev/a:/dev/b:x", "/dev/a:b", "/dev/a:/b:r:w"] {
            assert!(Device::parse(bad).is_err(), "{bad}");
        }
    }
}
