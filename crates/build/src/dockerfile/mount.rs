//! `RUN --mount=type=…,…`: comma-separated keys, with quotes as CSV has them.

use isles_spec::nearest::nearest;
use isles_spec::quantity::parse_bytes;

use crate::position::{Diagnostic, SourceText, Spanned};

/// What stands behind a mount of a RUN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountType {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl MountType {
    const NAMES: [(&'static str, MountType); 5] = [
        ("bind", MountType::Bind),
        ("cache", MountType::Cache),
        ("tmpfs", MountType::Tmpfs),
        ("secret", MountType::Secret),
        ("ssh", MountType::Ssh),
    ];

    pub fn name(self) -> &'static str {
        MountType::NAMES.iter().find(|(_, t)| *t == self).map_or("bind", |(n, _)| n)
    }
}

/// How several builds use one cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

/// One mount, with its variables expanded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunMount {
    pub kind: MountType,
    pub from: Option<String>,
    pub source: Option<String>,
    pub target: Option<String>,
    pub read_only: bool,
    pub id: Option<String>,
    pub sharing: Option<Sharing>,
    pub required: bool,
    /// Bytes, for tmpfs.
    pub size: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// The variable that receives a secret.
    pub env: Option<String>,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

/// Checks what can be checked before variables are known: the keys, and that `from` has no variable.
pub fn check(source: &SourceText, flag: &Spanned) -> Result<(), Diagnostic> {
    for field in fields(&flag.text).map_err(|why| source.at(flag.span, why))? {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        let key = key.to_ascii_lowercase();
        if !KEYS.contains(&key.as_str()) {
            return Err(unknown_key(source, flag, &key));
        }
        if key == "from" && value.contains('$') {
            return Err(source.at(flag.span, "'from' of a mount takes no variable").with_suggestion(
                "give the image a stage of its own (FROM $IMAGE AS name) and mount from that",
            ));
        }
    }
    Ok(())
}

fn unknown_key(source: &SourceText, flag: &Spanned, key: &str) -> Diagnostic {
    let error = source.at(flag.span, format!("a mount has no key '{key}'"));
    match nearest(key, KEYS) {
        Some(near) => error.with_suggestion(format!("did you mean '{near}'?")),
        None => error,
    }
}

/// Reads a mount; `expand` replaces variables in a value.
pub fn parse(
    source: &SourceText,
    flag: &Spanned,
    expand: &mut dyn FnMut(&str) -> Result<String, Diagnostic>,
) -> Result<RunMount, Diagnostic> {
    let bad = |message: String| source.at(flag.span, message);
    let mut mount = RunMount::default();
    let mut read_only: Option<bool> = None;
    for field in fields(&flag.text).map_err(|why| bad(why.to_owned()))? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(expand(value)?)),
            None => (field.to_ascii_lowercase(), None),
        };
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => read_only = Some(true),
                "readwrite" | "rw" => read_only = Some(false),
                "required" => mount.required = true,
                k if KEYS.contains(&k) => return Err(bad(format!("'{key}' of a mount needs a value"))),
                _ => return Err(unknown_key(source, flag, &key)),
            }
            continue;
        };
        let invalid = || bad(format!("invalid value '{value}' for '{key}' of a mount"));
        let flag_value = || go_bool(&value).ok_or_else(invalid);
        let id = || value.parse::<u32>().map(Some).map_err(|_| invalid());
        let text = Some(value.clone());
        match key.as_str() {
            "type" => {
                let wanted = value.to_ascii_lowercase();
                mount.kind =
                    MountType::NAMES.iter().find(|(n, _)| *n == wanted).map(|(_, t)| *t).ok_or_else(
                        || {
                            let error = bad(format!("no type of mount is called '{value}'"));
                            match nearest(&wanted, MountType::NAMES.map(|(n, _)| n)) {
                                Some(near) => error.with_suggestion(format!("did you mean {near}?")),
                                None => error.with_suggestion("known are bind, cache, tmpfs, secret and ssh"),
                            }
                        },
                    )?;
            }
            "from" => mount.from = text,
            "source" | "src" => mount.source = text,
            "target" | "dst" | "destination" => mount.target = text,
            "readonly" | "ro" => read_only = Some(flag_value()?),
            "readwrite" | "rw" => read_only = Some(!flag_value()?),
            "id" => mount.id = text,
            "required" => mount.required = flag_value()?,
            "sharing" => {
                mount.sharing = Some(match value.to_ascii_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(invalid().with_suggestion("it is shared, private or locked")),
                });
            }
            "size" => mount.size = Some(parse_bytes(&value).map_err(|_| invalid())?),
            "mode" => mount.mode = Some(u32::from_str_radix(&value, 8).map_err(|_| invalid())?),
            "uid" => mount.uid = id()?,
            "gid" => mount.gid = id()?,
            "env" => mount.env = text,
            _ => return Err(unknown_key(source, flag, &key)),
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
    validate(&mount).map_err(bad)?;
    Ok(mount)
}

fn validate(m: &RunMount) -> Result<(), String> {
    let kind = m.kind.name();
    let not = |given: bool, key: &str| match given {
        true => Err(format!("a {kind} mount has no '{key}'")),
        false => Ok(()),
    };
    let secret = matches!(m.kind, MountType::Secret | MountType::Ssh);
    let has_mode = secret || m.kind == MountType::Cache;
    not(m.mode.is_some() && !has_mode, "mode")?;
    not(m.uid.is_some() && !has_mode, "uid")?;
    not(m.gid.is_some() && !has_mode, "gid")?;
    not(m.required && !secret, "required")?;
    not(m.size.is_some() && m.kind != MountType::Tmpfs, "size")?;
    not(m.sharing.is_some() && m.kind != MountType::Cache, "sharing")?;
    not(m.env.is_some() && m.kind != MountType::Secret, "env")?;
    if m.kind == MountType::Secret {
        not(m.from.is_some(), "from")?;
        if m.source.is_none() && m.target.is_none() && m.id.is_none() {
            return Err("a secret mount needs an id or a target".into());
        }
        if m.source.is_some() && m.id.is_some() {
            return Err("a secret mount has either a source or an id".into());
        }
    }
    if m.target.is_none() && !secret {
        return Err(format!("a {kind} mount needs a target"));
    }
    Ok(())
}

/// The spellings that Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// One CSV record: fields between commas, a field in double quotes may hold commas and doubled quotes.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, &'static str> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        if let Some(mut quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            loop {
                let end = quoted.find('"').ok_or("a quoted field has no end")?;
                field.push_str(&quoted[..end]);
                quoted = &quoted[end + 1..];
                match quoted.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        quoted = more;
                    }
                    None => break,
                }
            }
            out.push(field);
            match quoted.strip_prefix(',') {
                Some(more) => rest = more,
                None if quoted.is_empty() => return Ok(out),
                None => return Err("text follows a quoted field"),
            }
        } else {
            let (field, more) = match rest.split_once(',') {
                Some((field, more)) => (field, Some(more)),
                None => (rest, None),
            };
            if field.contains('"') {
                return Err("a quote stands inside a field");
            }
            out.push(field.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Ok(out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Span;

    fn read(text: &str) -> Result<RunMount, Diagnostic> {
        let source = SourceText::new("Dockerfile", text.as_bytes());
        let flag = Spanned::new(text, Span::new(0, text.len()));
        check(&source, &flag)?;
        parse(&source, &flag, &mut |v| Ok(v.replace("$x", "X")))
    }

    #[test]
    fn mounts() {
        let bind = read("target=/src").unwrap();
        assert_eq!((bind.kind, bind.read_only), (MountType::Bind, true));
        let cache = read("type=cache,\"target=/a,b\",id=$x,sharing=locked,mode=0755,uid=1").unwrap();
        assert_eq!(cache.target.as_deref(), Some("/a,b"));
        assert_eq!((cache.id.as_deref(), cache.mode, cache.read_only), (Some("X"), Some(0o755), false));
        assert_eq!(read("type=tmpfs,target=/t,size=1m").unwrap().size, Some(1 << 20));
        assert!(!read("dst=/x,rw").unwrap().read_only);
        assert!(read("type=secret,id=k,required,env=K").unwrap().required);
        assert!(read("type=ssh").is_ok());
    }

    #[test]
    fn bad_mounts() {
        for (text, part) in [
            ("type=bnd,target=/x", "bnd"),
            ("type=bind", "target"),
            ("type=bind,target=/x,mode=0755", "mode"),
            ("type=cache,target=/x,size=1", "size"),
            ("type=tmpfs,target=/x,required", "required"),
            ("type=secret", "id or a target"),
            ("type=cache,target=/x,mode=9", "invalid value '9'"),
            ("target=/x,from=$y", "variable"),
            ("tagret=/x", "tagret"),
            ("target", "needs a value"),
            ("\"target=/x", "no end"),
            ("target=/x,ro=maybe", "maybe"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
