//! Mounts and devices as Docker's options spell them: `-v`, `--mount`, `--tmpfs`, `--device`.

use std::path::{Component, Path, PathBuf};

use crate::quantity::parse_bytes;
use crate::{Device, Error, Mount, MountKind, Propagation, Result};

/// What `-v` and `--mount` share when they describe a bind mount.
struct BindOptions {
    read_only: bool,
    recursive: bool,
    recursive_read_only: bool,
    propagation: Propagation,
}

impl Default for BindOptions {
    fn default() -> Self {
        BindOptions {
            read_only: false,
            recursive: true,
            recursive_read_only: false,
            propagation: Propagation::default(),
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
            None => MountKind::Volume { name: None, copy_up },
            Some("") => return Err(bad("the source is empty")),
            Some(s) if s.starts_with(['/', '.', '~']) => {
                bind_kind(host_path(s, base, home).ok_or_else(|| bad("there is no home folder"))?, bind, true)
            }
            Some(name) => MountKind::Volume { name: Some(volume_name(name)?), copy_up },
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
                "volume-nocopy" => copy_up = !truth()?,
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
                    false,
                )
            }
            "volume" => MountKind::Volume {
                name: source.filter(|s| !s.is_empty()).map(volume_name).transpose()?,
                copy_up,
            },
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
                .with_hint("for example --device /dev/fuse or --device /dev/sda:/dev/xvdc:r")
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
    }
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

fn volume_name(name: &str) -> Result<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.len() >= 2
        && name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(plain)
    {
        return Ok(name.to_owned());
    }
    Err(Error::new(format!(
        "'{name}' includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed"
    ))
    .with_hint("if you intended to pass a host directory, use an absolute path or begin with './'"))
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
        let named = MountKind::Volume { name: Some("db".into()), copy_up: false };
        assert_eq!(volume("db:/var/lib:nocopy").unwrap().kind, named);
        for bad in
            ["", ":", "/a:b", "/a:/", "/a:/b:bogus", "a:b:c:d", ":/x", "a b:/x", "x:/y", "/a:/../", "-x:/y"]
        {
            assert!(volume(bad).is_err(), "{bad}");
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
