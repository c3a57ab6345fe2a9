//! File and Directory objects: names, contents, listings, secondary files, formats.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::document::{decoded, location_of, path_of};
use crate::expression::{Failed, Scope};
use crate::model::{Field, Listing, Version};
use crate::type_system::{SecondaryFile, Type};
use crate::value::{Map, Value};

/// What loadContents reads.
pub const MOST_CONTENTS: usize = 64 << 10;
/// Entries of one listing.
const MOST_ENTRIES: usize = 1_000_000;

/// Files and Directories of a value, in order.
pub fn each(value: &Value, f: &mut dyn FnMut(&Value)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| each(item, f)),
        Value::Map(_) if value.is_file() || value.is_directory() => {
            f(value);
            for key in ["secondaryFiles", "listing"] {
                if let Some(inner) = value.get(key) {
                    each(inner, f);
                }
            }
        }
        Value::Map(map) => map.iter().for_each(|(_, item)| each(item, f)),
        _ => {}
    }
}

/// Whether there is any File or Directory in a value.
pub fn any(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(any),
        Value::Map(map) => value.is_file() || value.is_directory() || map.iter().any(|(_, item)| any(item)),
        _ => false,
    }
}

/// The value with each outermost File and Directory replaced by what `f` makes of it.
pub fn map_each<E>(value: &Value, f: &mut dyn FnMut(&Value) -> Result<Value, E>) -> Result<Value, E> {
    match value {
        Value::Array(items) if items.iter().any(any) => {
            Ok(Value::array(items.iter().map(|item| map_each(item, f)).collect::<Result<_, E>>()?))
        }
        Value::Map(_) if value.is_file() || value.is_directory() => f(value),
        Value::Map(map) if any(value) => {
            let mut out = Map::new();
            for (key, item) in map.iter() {
                out.insert(key, map_each(item, f)?);
            }
            Ok(Value::map(out))
        }
        other => Ok(other.clone()),
    }
}

/// A name for a literal that no other literal of this process has.
fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("_:{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Splits a name before its last extension; a leading dot begins no extension.
pub fn split_extension(basename: &str) -> (&str, &str) {
    let skipped = basename.len() - basename.trim_start_matches('.').len();
    match basename[skipped..].rfind('.') {
        Some(i) => basename.split_at(skipped + i),
        None => (basename, ""),
    }
}

/// Checks a name of one entry of a folder: nothing that leads elsewhere.
pub fn check_basename(name: &str) -> Result<(), String> {
    let wrong = match name {
        "" => "is empty",
        "." | ".." => "leads to another folder",
        _ if name.contains('/') => "holds a `/`",
        _ if name.contains('\0') => "holds a null byte",
        _ if name.len() > 255 => "is longer than 255 bytes",
        _ => return Ok(()),
    };
    Err(format!("the basename {name:?} {wrong}"))
}

/// Gives each File and Directory its `location` and `basename`, whatever of `path`, `location` and `contents` it came
/// with. What the paths are relative to is the caller's matter: relative ones are refused.
///
/// # Errors
/// A File without any of these, a scheme that is not read, a name that leads elsewhere.
pub fn normalized(value: &Value) -> Result<Value, String> {
    map_each(value, &mut |object| normalized_object(object))
}

fn normalized_object(object: &Value) -> Result<Value, String> {
    let mut map = object.as_map().cloned().unwrap_or_default();
    let file = object.is_file();
    let path = map.remove("path");
    map.remove("dirname");
    let location = match (map.get("location").and_then(Value::as_str), path.as_ref().and_then(Value::as_str))
    {
        (Some(location), _) => Some(location.to_owned()),
        (None, Some(path)) if path.contains("://") => Some(path.to_owned()),
        (None, Some(path)) => Some(location_of(Path::new(path))),
        (None, None) => None,
    };
    let location = match location {
        Some(location) if location.starts_with("file://") => location.trim_end_matches('/').to_owned(),
        Some(location) if location.starts_with("_:") => location,
        Some(location) if location.starts_with('/') => location_of(Path::new(&location)),
        Some(location) if location.contains("://") => {
            return Err(format!(
                "{location} cannot be had: files of this machine are read, and http(s) ones fetched"
            ));
        }
        Some(location) => return Err(format!("the location {location:?} is relative")),
        None if file && map.contains("contents") => fresh(),
        None if !file && map.contains("listing") => fresh(),
        None if file => return Err("a File needs a `location`, a `path` or `contents`".into()),
        None => return Err("a Directory needs a `location`, a `path` or a `listing`".into()),
    };
    let literal = location.starts_with("_:");
    if file
        && literal
        && let Some(contents) = map.get("contents")
        && contents.as_str().is_none()
    {
        return Err(format!("the `contents` of a File is {}, and must be a string", contents.kind_name()));
    }
    let basename = match map.get("basename").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None if literal => format!("literal{}", &location[2..]),
        None => decoded(location.rsplit('/').next().unwrap_or_default()),
    };
    check_basename(&basename)?;
    if file {
        let (root, extension) = split_extension(&basename);
        map.insert("nameroot", root.into());
        map.insert("nameext", extension.into());
    }
    map.insert("location", location.into());
    map.insert("basename", basename.into());
    for key in ["secondaryFiles", "listing"] {
        if let Some(inner) = map.get(key) {
            let inner = normalized(inner)?;
            map.insert(key, inner);
        }
    }
    Ok(Value::map(map))
}

/// The path of a File or Directory on this machine; none for a literal.
pub fn local_path(object: &Value) -> Option<PathBuf> {
    path_of(object.text("location")?)
}

/// A File object for a file of this machine.
pub fn file_object(path: &Path) -> Value {
    let basename = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (root, extension) = split_extension(&basename);
    let map: Map = [
        ("class", Value::from("File")),
        ("location", location_of(path).into()),
        ("basename", basename.as_str().into()),
        ("nameroot", root.into()),
        ("nameext", extension.into()),
    ]
    .into_iter()
    .collect();
    Value::map(map)
}

/// A Directory object for a folder of this machine.
pub fn directory_object(path: &Path) -> Value {
    let basename = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let map: Map = [
        ("class", Value::from("Directory")),
        ("location", location_of(path).into()),
        ("basename", basename.into()),
    ]
    .into_iter()
    .collect();
    Value::map(map)
}

/// The text of a file, as loadContents gives it.
///
/// # Errors
/// The file cannot be read, is no text, or is longer than 64 KiB (before v1.2 the rest was left out).
pub fn contents(path: &Path, version: Version) -> Result<String, String> {
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let mut bytes = Vec::new();
    file.take(MOST_CONTENTS as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("cannot read {shown}: {e}"))?;
    if bytes.len() > MOST_CONTENTS {
        if version >= Version::V1_2 {
            return Err(format!("{shown} is longer than 64 KiB, which is the most that loadContents reads"));
        }
        bytes.truncate(MOST_CONTENTS);
        while let Err(e) = std::str::from_utf8(&bytes) {
            if e.error_len().is_some() {
                break;
            }
            bytes.truncate(e.valid_up_to());
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("{shown} is no UTF-8 text, so loadContents cannot give it"))
}

/// The entries of a folder as objects, by name; names that are no UTF-8 are refused.
pub fn listing(path: &Path, deep: bool) -> Result<Value, String> {
    let mut budget = MOST_ENTRIES;
    listing_within(path, deep, &mut budget)
}

fn listing_within(path: &Path, deep: bool, budget: &mut usize) -> Result<Value, String> {
    let shown = path.display();
    let fail = |e: std::io::Error| format!("cannot list {shown}: {e}");
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        *budget =
            budget.checked_sub(1).ok_or_else(|| format!("{shown} has more than {MOST_ENTRIES} entries"))?;
        entries.push(entry.map_err(fail)?.path());
    }
    entries.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut out = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.file_name().and_then(|n| n.to_str()).is_none() {
            return Err(format!("the name of {} is no UTF-8", entry.display()));
        }
        match std::fs::metadata(&entry) {
            Ok(kind) if kind.is_dir() => {
                let mut object = directory_object(&entry);
                if deep && let Some(map) = object.as_map_mut() {
                    map.insert("listing", listing_within(&entry, true, budget)?);
                }
                out.push(object);
            }
            Ok(kind) if kind.is_file() => {
                let mut object = file_object(&entry);
                if let Some(map) = object.as_map_mut() {
                    map.insert("size", Value::Int(kind.len() as i64));
                }
                out.push(object);
            }
            // Sockets, devices and links that lead nowhere are no data.
            _ => {}
        }
    }
    Ok(Value::array(out))
}

/// The name of a secondary file by a pattern: each `^` takes one extension away, the rest is appended.
pub fn secondary_name(basename: &str, pattern: &str) -> String {
    let mut name = basename;
    let mut rest = pattern;
    while let Some(after) = rest.strip_prefix('^') {
        rest = after;
        name = match name.rfind('.') {
            Some(i) if i > 0 => &name[..i],
            _ => name,
        };
    }
    format!("{name}{rest}")
}

/// Which formats are kinds of which others, as ontologies say.
#[derive(Debug, Default, Clone)]
pub struct Ontology {
    above: BTreeMap<String, Vec<String>>,
}

impl Ontology {
    /// Adds `sub` below `sup`.
    pub fn add(&mut self, sub: &str, sup: &str) {
        self.above.entry(sub.to_owned()).or_default().push(sup.to_owned());
    }

    /// Whether a format is the other one, or a kind of it.
    pub fn is_a(&self, format: &str, wanted: &str) -> bool {
        let mut seen = std::collections::BTreeSet::new();
        let mut open = vec![format];
        while let Some(one) = open.pop() {
            if one == wanted {
                return true;
            }
            if seen.insert(one) {
                open.extend(self.above.get(one).into_iter().flatten().map(String::as_str));
            }
        }
        false
    }
}

/// What a parameter, or a field of a record, says of its files.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub secondary_files: &'a [SecondaryFile],
    pub format: &'a [Field],
    pub load_contents: bool,
    pub listing: Option<Listing>,
}

/// What is known when files are prepared.
pub struct Preparing<'a> {
    pub inputs: &'a Value,
    pub runtime: &'a Value,
    pub js: Option<&'a crate::js::Library>,
    pub version: Version,
    /// Secondary files that are not listed are looked for beside their file.
    pub discover: bool,
    pub default_listing: Option<Listing>,
    pub ontology: &'a Ontology,
}

impl Preparing<'_> {
    fn scope<'s>(&'s self, this: &'s Value) -> Scope<'s> {
        Scope { inputs: self.inputs, this, runtime: self.runtime, js: self.js }
    }

    /// The value with all that the parameter asks of its Files and Directories.
    pub fn prepare(
        &self,
        value: &Value,
        kind: &Type,
        wanted: Wanted<'_>,
        name: &str,
    ) -> Result<Value, String> {
        match value {
            Value::Array(items) => {
                if !items.iter().any(any) {
                    return Ok(value.clone());
                }
                let inner = match kind.of(value) {
                    Some(Type::Array(array)) => array.items.clone(),
                    _ => Type::Any,
                };
                let mut out = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    out.push(self.prepare(item, &inner, wanted, &format!("{name}[{i}]"))?);
                }
                Ok(Value::array(out))
            }
            Value::Map(_) if value.is_file() => self.file(value, wanted, name),
            Value::Map(_) if value.is_directory() => self.directory(value, wanted),
            Value::Map(map) => {
                let Some(Type::Record(record)) = kind.of(value) else { return Ok(value.clone()) };
                let mut out = (**map).clone();
                for field in &record.fields {
                    let Some(inner) = map.get(&field.name) else { continue };
                    let wanted = Wanted {
                        secondary_files: &field.secondary_files,
                        format: &field.format,
                        load_contents: field.load_contents,
                        listing: field.load_listing,
                    };
                    let inner =
                        self.prepare(inner, &field.kind, wanted, &format!("{name}.{}", field.name))?;
                    out.insert(field.name.clone(), inner);
                }
                Ok(Value::map(out))
            }
            other => Ok(other.clone()),
        }
    }

    fn file(&self, value: &Value, wanted: Wanted<'_>, name: &str) -> Result<Value, String> {
        let mut map = value.as_map().cloned().unwrap_or_default();
        if let Some(path) = local_path(value) {
            let shown = path.display();
            let kind = std::fs::metadata(&path).map_err(|e| format!("`{name}`: cannot read {shown}: {e}"))?;
            if kind.is_dir() {
                return Err(format!("`{name}`: {shown} is a folder, and must be a file"));
            }
            map.insert("size", Value::Int(kind.len() as i64));
            if wanted.load_contents && !map.contains("contents") {
                map.insert("contents", contents(&path, self.version)?.into());
            }
        } else if let Some(text) = map.get("contents").and_then(Value::as_str) {
            let size = Value::Int(text.len() as i64);
            map.insert("size", size);
        }
        let mut value = Value::map(map);
        if !wanted.format.is_empty() {
            self.check_format(&value, wanted.format, name)?;
        }
        if !wanted.secondary_files.is_empty() {
            value = self.with_secondary_files(&value, wanted.secondary_files, true, name)?;
        }
        Ok(value)
    }

    fn directory(&self, value: &Value, wanted: Wanted<'_>) -> Result<Value, String> {
        let mut map = value.as_map().cloned().unwrap_or_default();
        let Some(path) = local_path(value) else { return sized(value) };
        match wanted.listing.or(self.default_listing).unwrap_or(Listing::No) {
            Listing::No => {
                if !path.is_dir() {
                    return Err(format!("{} is no folder", path.display()));
                }
                map.remove("listing");
            }
            Listing::Shallow => map.insert("listing", listing(&path, false)?),
            Listing::Deep => map.insert("listing", listing(&path, true)?),
        }
        Ok(Value::map(map))
    }

    fn check_format(&self, value: &Value, allowed: &[Field], name: &str) -> Result<(), String> {
        let mut wanted = Vec::new();
        for field in allowed {
            match field.eval(self.scope(value)).map_err(|e: Failed| e.to_string())? {
                Value::String(text) => wanted.push(text.to_string()),
                Value::Array(items) => {
                    wanted.extend(items.iter().filter_map(Value::as_str).map(str::to_owned))
                }
                Value::Null => {}
                other => {
                    return Err(format!("`{name}`: a format is a string, and this is {}", other.kind_name()));
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let Some(format) = value.text("format") else {
            return Err(format!("`{name}` has no format, and must have {}", wanted.join(" or ")));
        };
        if wanted.iter().any(|w| self.ontology.is_a(format, w)) {
            return Ok(());
        }
        Err(format!("`{name}` has the format {format}, and must have {}", wanted.join(" or ")))
    }

    /// The file with its secondary files; those that it lists already are not looked for.
    pub fn with_secondary_files(
        &self,
        value: &Value,
        patterns: &[SecondaryFile],
        required_by_default: bool,
        name: &str,
    ) -> Result<Value, String> {
        let mut map = value.as_map().cloned().unwrap_or_default();
        let mut listed: Vec<Value> =
            map.get("secondaryFiles").and_then(Value::as_array).unwrap_or_default().to_vec();
        let basename = value.text("basename").unwrap_or_default().to_owned();
        for one in patterns {
            let required = match &one.required {
                Some(field) => match field.eval(self.scope(value)).map_err(|e| e.to_string())? {
                    Value::Bool(b) => b,
                    Value::Null => false,
                    other => {
                        return Err(format!(
                            "`{name}`: `required` is {}, and must be true or false",
                            other.kind_name()
                        ));
                    }
                },
                None => required_by_default,
            };
            let found = if one.pattern.is_plain() {
                Value::from(secondary_name(&basename, &one.pattern.source))
            } else {
                one.pattern.eval(self.scope(value)).map_err(|e| e.to_string())?
            };
            let items = match found {
                Value::Array(items) => items.to_vec(),
                Value::Null => continue,
                one => vec![one],
            };
            for item in items {
                self.add_secondary(value, &mut listed, item, required, name)?;
            }
        }
        if !listed.is_empty() {
            map.insert("secondaryFiles", Value::array(listed));
        }
        Ok(Value::map(map))
    }

    fn add_secondary(
        &self,
        primary: &Value,
        listed: &mut Vec<Value>,
        item: Value,
        required: bool,
        name: &str,
    ) -> Result<(), String> {
        let object = match &item {
            Value::Null => return Ok(()),
            Value::String(text) => {
                check_basename(text).map_err(|e| format!("`{name}`: {e}"))?;
                if listed.iter().any(|l| l.text("basename") == Some(text)) {
                    return Ok(());
                }
                let path = local_path(primary).and_then(|p| Some(p.parent()?.join(&**text)));
                let Some(path) = path.filter(|p| self.discover && p.exists()) else {
                    if required {
                        return Err(format!(
                            "`{name}`: the secondary file {text} of {} is missing",
                            primary.text("basename").unwrap_or_default()
                        ));
                    }
                    return Ok(());
                };
                if path.is_dir() { directory_object(&path) } else { file_object(&path) }
            }
            Value::Map(_) if item.is_file() || item.is_directory() => normalized(&item)?,
            other => return Err(format!("`{name}`: a secondary file cannot be {}", other.kind_name())),
        };
        if !listed.iter().any(|l| l.text("basename") == object.text("basename")) {
            listed.push(object);
        }
        Ok(())
    }
}

/// The sizes of files within a literal Directory.
fn sized(value: &Value) -> Result<Value, String> {
    let mut map = value.as_map().cloned().unwrap_or_default();
    if value.is_file() && !map.contains("size") {
        let size = match (local_path(value), map.get("contents").and_then(Value::as_str)) {
            (Some(path), _) => {
                std::fs::metadata(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?.len()
            }
            (None, Some(text)) => text.len() as u64,
            (None, None) => return Ok(value.clone()),
        };
        map.insert("size", Value::Int(size as i64));
    }
    if let Some(Value::Array(items)) = map.get("listing").cloned() {
        map.insert("listing", Value::array(items.iter().map(sized).collect::<Result<_, _>>()?));
    }
    Ok(Value::map(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secondary_files() {
        let table = [
            ("a.bam", ".bai", "a.bam.bai"),
            ("a.bam", "^.bai", "a.bai"),
            ("a.tar.gz", "^^.txt", "a.txt"),
            ("noext", "^.idx", "noext.idx"),
        ];
        for (name, pattern, expected) in table {
            assert_eq!(secondary_name(name, pattern), expected);
        }
    }

    #[test]
    fn extensions() {
        let table =
            [("a.b.c", "a.b", ".c"), (".bashrc", ".bashrc", ""), ("x", "x", ""), ("..a.b", "..a", ".b")];
        for (name, root, extension) in table {
            assert_eq!(split_extension(name), (root, extension));
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0b"] {
            assert!(check_basename(name).is_err(), "{name:?}");
            let map: Map =
                [("class", Value::from("File")), ("contents", "x".into()), ("basename", name.into())]
                    .into_iter()
                    .collect();
            assert!(normalized(&Value::map(map)).is_err(), "{name:?}");
        }
        for name in ["-rf", "a b", "new\nline", "ü"] {
            assert!(check_basename(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_format_is_found_above() {
        let mut ontology = Ontology::default();
        ontology.add("a", "b");
        ontology.add("b", "c");
        ontology.add("c", "a");
        assert!(ontology.is_a("a", "c"));
        assert!(!ontology.is_a("a", "d"));
    }
}
