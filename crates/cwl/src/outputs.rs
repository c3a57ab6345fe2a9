//! What a tool made: patterns, `outputEval`, `cwl.output.json`, checksums.

use std::io::Read;
use std::path::{Path, PathBuf};

use isles_spec::digest::hex;

use crate::document::{decoded, location_of};
use crate::expression::Scope;
use crate::files;
use crate::glob;
use crate::model::{Field, Listing, OutputBinding, Process, Version};
use crate::stage::Views;
use crate::type_system::{SecondaryFile, Type};
use crate::value::{Map, Value};

/// Bytes of `cwl.output.json`.
const LONGEST_JSON: u64 = 64 << 20;

/// What is known when outputs are collected.
pub struct Collecting<'a> {
    /// As the tool saw them.
    pub inputs: &'a Value,
    /// With the exit code.
    pub runtime: &'a Value,
    pub js: Option<&'a crate::js::Library>,
    pub version: Version,
    pub views: &'a Views,
    pub outdir: &'a Path,
    pub outdir_inside: &'a Path,
    pub default_listing: Option<Listing>,
    pub checksums: bool,
}

/// What an output, or a field of one, says.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    kind: &'a Type,
    binding: Option<&'a OutputBinding>,
    secondary_files: &'a [SecondaryFile],
    format: Option<&'a Field>,
    name: &'a str,
}

impl Collecting<'_> {
    fn scope<'s>(&'s self, this: &'s Value) -> Scope<'s> {
        Scope { inputs: self.inputs, this, runtime: self.runtime, js: self.js }
    }

    /// The output object of a tool that ended well.
    ///
    /// # Errors
    /// Something that must be there is not, is of another type, or lies outside of the output folder.
    pub fn collect(&self, process: &Process) -> Result<Value, String> {
        let mut out = Map::new();
        let written = self.outdir.join("cwl.output.json");
        if written.symlink_metadata().is_ok() {
            let object = self.written_object(&written)?;
            for output in &process.outputs {
                let value = object.get(&output.name).cloned().unwrap_or(Value::Null);
                out.insert(output.name.clone(), self.owned(&value)?);
            }
        } else {
            for output in &process.outputs {
                let wanted = Wanted {
                    kind: &output.kind,
                    binding: output.binding.as_ref(),
                    secondary_files: &output.secondary_files,
                    format: output.format.as_ref(),
                    name: &output.name,
                };
                out.insert(output.name.clone(), self.value(wanted)?);
            }
        }
        for output in &process.outputs {
            let value = out.get(&output.name).unwrap_or(&Value::Null);
            if !output.kind.gives(value) {
                return Err(format!("the output {}", output.kind.explain(value, &output.name)));
            }
        }
        let out = Value::map(out);
        if self.checksums { with_checksums(&out) } else { Ok(out) }
    }

    fn written_object(&self, path: &Path) -> Result<Value, String> {
        let inside = self.outdir_inside.join("cwl.output.json");
        let real = self.views.follow(&inside)?;
        let file = std::fs::File::open(&real).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let mut text = String::new();
        file.take(LONGEST_JSON + 1)
            .read_to_string(&mut text)
            .map_err(|e| format!("cannot read cwl.output.json: {e}"))?;
        if text.len() as u64 > LONGEST_JSON {
            return Err(format!("cwl.output.json is longer than {} MiB", LONGEST_JSON >> 20));
        }
        let value = from_json(&text).map_err(|e| format!("cwl.output.json is no JSON: {e}"))?;
        if value.as_map().is_none() {
            return Err(format!("cwl.output.json holds {}, and must hold an object", value.kind_name()));
        }
        Ok(value)
    }

    fn value(&self, wanted: Wanted<'_>) -> Result<Value, String> {
        let name = wanted.name;
        let Some(binding) = wanted.binding else {
            // A record may say for each of its fields where it comes from.
            let record = wanted.kind.alternatives().into_iter().find_map(|t| match t {
                Type::Record(record) => Some(record),
                _ => None,
            });
            let Some(record) = record else { return Ok(Value::Null) };
            let mut map = Map::new();
            for field in &record.fields {
                let inner = Wanted {
                    kind: &field.kind,
                    binding: field.output.as_ref(),
                    secondary_files: &field.secondary_files,
                    format: field.format.first(),
                    name: &field.name,
                };
                map.insert(field.name.clone(), self.value(inner)?);
            }
            return Ok(Value::map(map));
        };
        let (patterns, found) = self.globbed(binding, name)?;
        let mut value = Value::array(found);
        let computed = binding.output_eval.is_some();
        if let Some(text) = &binding.output_eval {
            let result = text.eval(self.scope(&value)).map_err(|e| format!("the output `{name}`: {e}"))?;
            value = self.owned(&result).map_err(|e| format!("the output `{name}`: {e}"))?;
        }
        let alternatives = wanted.kind.alternatives();
        let single = alternatives.iter().any(|t| matches!(t, Type::File | Type::Directory))
            && !alternatives.iter().any(|t| matches!(t, Type::Array(_)));
        if let Value::Array(items) = &value
            && (single
                || (!computed && !alternatives.iter().any(|t| matches!(t, Type::Array(_) | Type::Any))))
        {
            value = match &items[..] {
                [] if wanted.kind.accepts_null() || !single => Value::Null,
                [] => {
                    return Err(format!(
                        "the output `{name}` is missing: nothing matches {}",
                        if patterns.is_empty() { "(no pattern)".to_owned() } else { patterns.join(", ") }
                    ));
                }
                [one] => one.clone(),
                many => {
                    return Err(format!(
                        "the output `{name}` is one {}, and {} match {}",
                        wanted.kind,
                        many.len(),
                        patterns.join(", ")
                    ));
                }
            };
        }
        if let Value::Array(items) = &value
            && items.is_empty()
            && !wanted.kind.matches(&value)
            && wanted.kind.accepts_null()
        {
            value = Value::Null;
        }
        if !wanted.secondary_files.is_empty() {
            value = files::map_each(&value, &mut |object| {
                self.with_secondary(object, wanted.secondary_files, name)
            })?;
        }
        if let Some(format) = wanted.format {
            value = files::map_each(&value, &mut |object| {
                let mut map = object.as_map().cloned().unwrap_or_default();
                if object.is_file() {
                    let format = format.eval(self.scope(object)).map_err(|e| e.to_string())?;
                    map.insert("format", format);
                }
                Ok::<_, String>(Value::map(map))
            })?;
        }
        self.owned(&value).map_err(|e| format!("the output `{name}`: {e}"))
    }

    /// What the patterns match, in the order of the patterns.
    fn globbed(&self, binding: &OutputBinding, name: &str) -> Result<(Vec<String>, Vec<Value>), String> {
        let mut patterns = Vec::new();
        let mut found = Vec::new();
        for text in &binding.glob {
            let value =
                text.eval(self.scope(&Value::Null)).map_err(|e| format!("the output `{name}`: {e}"))?;
            let mut add = |value: &Value| match value {
                Value::String(text) => {
                    patterns.push(if binding.literal { glob::escaped(text) } else { text.to_string() });
                    Ok(())
                }
                // Files and Directories stand for themselves.
                Value::Map(_) if value.is_file() || value.is_directory() => {
                    found.push(self.owned(value)?);
                    Ok(())
                }
                Value::Null => Ok(()),
                other => Err(format!("the output `{name}`: a pattern cannot be {}", other.kind_name())),
            };
            match &value {
                Value::Array(items) => items.iter().try_for_each(&mut add)?,
                one => add(one)?,
            }
        }
        for pattern in &patterns {
            let relative = match Path::new(pattern).strip_prefix(self.outdir_inside) {
                Ok(rest) => rest.to_str().unwrap_or_default().to_owned(),
                Err(_) if pattern.starts_with('/') => {
                    return Err(format!(
                        "the output `{name}`: the pattern {pattern:?} is outside of the output folder"
                    ));
                }
                Err(_) => pattern.clone(),
            };
            let enter = |path: &Path| {
                let inside = self.inside_of(path)?;
                self.views.follow(&inside).ok()
            };
            let matched = glob::walk(self.outdir, &relative, &enter)
                .map_err(|e| format!("the output `{name}`: {e}"))?;
            for path in matched {
                found.push(self.object(&path, binding).map_err(|e| format!("the output `{name}`: {e}"))?);
            }
        }
        Ok((patterns, found))
    }

    fn inside_of(&self, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(self.outdir).ok()?;
        Some(if rest.as_os_str().is_empty() {
            self.outdir_inside.to_owned()
        } else {
            self.outdir_inside.join(rest)
        })
    }

    /// The object of a match below the output folder.
    fn object(&self, path: &Path, binding: &OutputBinding) -> Result<Value, String> {
        let Some(inside) = self.inside_of(path) else {
            return Err(format!("{} is outside of the output folder", path.display()));
        };
        let Some(inside_text) = inside.to_str() else {
            return Err(format!("the name of {} is no UTF-8", inside.display()));
        };
        let real = self.views.follow(&inside)?;
        let kind = std::fs::metadata(&real).map_err(|e| format!("cannot read {}: {e}", inside.display()))?;
        let basename = inside.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let mut map: Map = [
            ("class", Value::from(if kind.is_dir() { "Directory" } else { "File" })),
            ("location", location_of(&real).into()),
            ("path", inside_text.into()),
            ("basename", basename.into()),
        ]
        .into_iter()
        .collect();
        if kind.is_dir() {
            match binding.load_listing.or(self.default_listing).unwrap_or(Listing::No) {
                Listing::No => {}
                Listing::Shallow => map.insert("listing", files::listing(&real, false)?),
                Listing::Deep => map.insert("listing", files::listing(&real, true)?),
            }
            return Ok(Value::map(map));
        }
        if !kind.is_file() {
            return Err(format!("{} is neither a file nor a folder", inside.display()));
        }
        let (root, extension) = files::split_extension(basename);
        map.insert("nameroot", root.into());
        map.insert("nameext", extension.into());
        map.insert("size", Value::Int(kind.len() as i64));
        if binding.load_contents {
            map.insert("contents", files::contents(&real, self.version)?.into());
        }
        if self.checksums {
            map.insert("checksum", checksum(&real)?.into());
        }
        Ok(Value::map(map))
    }

    fn with_secondary(
        &self,
        object: &Value,
        patterns: &[SecondaryFile],
        name: &str,
    ) -> Result<Value, String> {
        if !object.is_file() {
            return Ok(object.clone());
        }
        let mut map = object.as_map().cloned().unwrap_or_default();
        let mut listed: Vec<Value> =
            map.get("secondaryFiles").and_then(Value::as_array).unwrap_or_default().to_vec();
        let basename = object.text("basename").unwrap_or_default();
        let folder = object.text("path").map(Path::new).and_then(Path::parent).unwrap_or(self.outdir_inside);
        for one in patterns {
            let required = match &one.required {
                Some(field) => {
                    let value = field.eval(self.scope(object)).map_err(|e| e.to_string())?;
                    value.as_bool().unwrap_or(false)
                }
                None => false,
            };
            let value = if one.pattern.is_plain() {
                Value::from(files::secondary_name(basename, &one.pattern.source))
            } else {
                one.pattern.eval(self.scope(object)).map_err(|e| e.to_string())?
            };
            let items = match value {
                Value::Array(items) => items.to_vec(),
                Value::Null => continue,
                one => vec![one],
            };
            for item in items {
                let found = match &item {
                    Value::String(text) => {
                        files::check_basename(text)?;
                        let inside = folder.join(&**text);
                        match self.views.follow(&inside) {
                            Ok(real) => {
                                let mut found = if real.is_dir() {
                                    files::directory_object(&real)
                                } else {
                                    files::file_object(&real)
                                };
                                if let Some(map) = found.as_map_mut() {
                                    map.insert("basename", text.to_string().into());
                                    map.insert("path", inside.to_string_lossy().into_owned().into());
                                }
                                Some(found)
                            }
                            Err(_) if !required => None,
                            Err(e) => {
                                return Err(format!(
                                    "the output `{name}`: the secondary file {text} is missing: {e}"
                                ));
                            }
                        }
                    }
                    Value::Map(_) => Some(self.owned(&item)?),
                    Value::Null => None,
                    other => {
                        return Err(format!(
                            "the output `{name}`: a secondary file cannot be {}",
                            other.kind_name()
                        ));
                    }
                };
                if let Some(found) = found
                    && !listed.iter().any(|l| l.text("basename") == found.text("basename"))
                {
                    listed.push(found);
                }
            }
        }
        if !listed.is_empty() {
            map.insert("secondaryFiles", Value::array(listed));
        }
        Ok(Value::map(map))
    }

    /// The value with each File and Directory named by its place on the host, which must be one that the tool made or was
    /// given.
    fn owned(&self, value: &Value) -> Result<Value, String> {
        files::map_each(value, &mut |object| self.owned_object(object))
    }

    fn owned_object(&self, object: &Value) -> Result<Value, String> {
        let mut map = object.as_map().cloned().unwrap_or_default();
        let path = map.remove("path");
        let path = path.as_ref().and_then(Value::as_str);
        let location = map.get("location").and_then(Value::as_str).map(str::to_owned);
        let inside = match (&location, path) {
            (Some(location), _) if location.starts_with("_:") => None,
            // A place on the host that was made here, or an input.
            (Some(location), _) if self.knows(location) => None,
            (_, Some(path)) => Some(path.to_owned()),
            (Some(location), None) => {
                Some(location.strip_prefix("file://").map_or_else(|| location.clone(), decoded))
            }
            (None, None) => None,
        };
        if let Some(inside) = inside {
            if inside.contains("://") {
                return Err(format!("{inside} is not fetched: only files of the tool are outputs"));
            }
            let full = self.outdir_inside.join(&inside);
            let real = self.views.follow(&full)?;
            if !map.contains("basename") {
                let name = full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                map.insert("basename", name.into());
            }
            map.insert("location", location_of(&real).into());
        }
        for key in ["secondaryFiles", "listing"] {
            if let Some(inner) = map.get(key) {
                let inner = self.owned(inner)?;
                map.insert(key, inner);
            }
        }
        let object = files::normalized(&Value::map(map))?;
        let Some(host) = files::local_path(&object) else { return Ok(object) };
        let kind = std::fs::metadata(&host).map_err(|e| format!("cannot read {}: {e}", host.display()))?;
        if kind.is_dir() != object.is_directory() {
            let is = if kind.is_dir() { "a folder" } else { "a file" };
            return Err(format!(
                "{} is {is}, and is called a {}",
                host.display(),
                object.class().unwrap_or_default()
            ));
        }
        let mut map = object.as_map().cloned().unwrap_or_default();
        if kind.is_file() {
            map.insert("size", Value::Int(kind.len() as i64));
        }
        Ok(Value::map(map))
    }

    /// Whether a location is one of those that the tool made or was given, as the host names it.
    fn knows(&self, location: &str) -> bool {
        let Some(path) = crate::document::path_of(location) else { return false };
        if path.starts_with(self.outdir) {
            return !path.components().any(|c| matches!(c, std::path::Component::ParentDir)) && path.exists();
        }
        let mut known = false;
        files::each(self.inputs, &mut |object| {
            known |= object
                .text("location")
                .and_then(crate::document::path_of)
                .is_some_and(|p| path.starts_with(p));
        });
        known && path.exists()
    }
}

/// `sha1$` and the SHA-1 of a file.
pub fn checksum(path: &Path) -> Result<String, String> {
    Ok(format!("sha1${}", digest_of_file(path, &ring::digest::SHA1_FOR_LEGACY_USE_ONLY)?))
}

/// The digest of a file, in hexadecimal.
pub(crate) fn digest_of_file(
    path: &Path,
    algorithm: &'static ring::digest::Algorithm,
) -> Result<String, String> {
    let fail = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut context = ring::digest::Context::new(algorithm);
    let mut buffer = [0u8; 32 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(context.finish().as_ref())),
            Ok(n) => context.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
}

/// The value with a checksum and a size for each File, in listings and secondary files, too.
pub fn with_checksums(value: &Value) -> Result<Value, String> {
    files::map_each(value, &mut checked_object)
}

fn checked_object(object: &Value) -> Result<Value, String> {
    let mut map = object.as_map().cloned().unwrap_or_default();
    if object.is_file() && !map.contains("checksum") {
        match (files::local_path(object), map.get("contents").and_then(Value::as_str)) {
            (Some(path), _) => {
                let size = std::fs::metadata(&path)
                    .map_err(|e| format!("cannot read {}: {e}", path.display()))?
                    .len();
                map.insert("checksum", checksum(&path)?.into());
                map.insert("size", Value::Int(size as i64));
            }
            (None, Some(text)) => {
                let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
                let size = Value::Int(text.len() as i64);
                map.insert("checksum", format!("sha1${}", hex(digest.as_ref())).into());
                map.insert("size", size);
            }
            _ => {}
        }
    }
    for key in ["secondaryFiles", "listing"] {
        if let Some(inner) = map.get(key) {
            let inner = with_checksums(inner)?;
            map.insert(key, inner);
        }
    }
    Ok(Value::map(map))
}

/// Whether all files of an output object are there, as long as it says, and as their checksums say.
pub fn whole(object: &Value) -> bool {
    let mut whole = true;
    files::each(object, &mut |file| {
        let size = file.get("size").and_then(Value::as_f64);
        whole &= match (files::local_path(file), size) {
            (Some(path), Some(size)) if file.is_file() => {
                let as_long = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() as f64 == size);
                let written = file.text("checksum");
                as_long && written.is_none_or(|sum| checksum(&path).is_ok_and(|own| own == sum))
            }
            (Some(path), _) => path.exists(),
            (None, _) => true,
        };
    });
    whole
}

/// A JSON text as a value; fields keep their order.
pub fn from_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}
