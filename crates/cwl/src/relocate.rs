//! Outputs of a whole run, put into the folder that the user named.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::document::location_of;
use crate::files;
use crate::stage;
use crate::value::{Map, Value};

/// What is done with files that the run made itself. Those of others are copied in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    Move,
    Copy,
    /// They stay where they are.
    Leave,
}

/// Puts all Files and Directories of an output object into `folder`; what lies below one of `own` is the run's own. Two of
/// one name get `_2`, `_3`, … before their extension.
///
/// # Errors
/// A file cannot be moved or copied. What was put into the folder before stays.
pub fn outputs(value: &Value, folder: &Path, own: &[&Path], taking: Taking) -> Result<Value, String> {
    let value = unlisted(value)?;
    if taking == Taking::Leave {
        return crate::outputs::with_checksums(&listed(&value)?);
    }
    let mut counts: HashMap<PathBuf, usize> = HashMap::new();
    files::each(&value, &mut |object| {
        if let Some(path) = files::local_path(object) {
            *counts.entry(path).or_default() += 1;
        }
    });
    // A folder that holds another output is taken last, so nothing is missing in it.
    let mut mover =
        Mover { own, taking, counts, taken: HashSet::new(), next: HashMap::new(), placed: HashMap::new() };
    std::fs::create_dir_all(folder)
        .map_err(|e| format!("cannot make the folder {}: {e}", folder.display()))?;
    let value = files::map_each(&value, &mut |object| mover.object(object, folder))?;
    crate::outputs::with_checksums(&listed(&value)?)
}

/// Without listings of folders that exist: they are made anew from what there is in the end.
fn unlisted(value: &Value) -> Result<Value, String> {
    files::map_each(value, &mut |object| {
        let mut map = object.as_map().cloned().unwrap_or_default();
        if object.is_directory() && files::local_path(object).is_some() {
            map.remove("listing");
        }
        if let Some(inner) = map.get("secondaryFiles") {
            let inner = unlisted(inner)?;
            map.insert("secondaryFiles", inner);
        }
        Ok(Value::map(map))
    })
}

/// With the whole listing of each folder.
fn listed(value: &Value) -> Result<Value, String> {
    files::map_each(value, &mut |object| {
        let mut map = object.as_map().cloned().unwrap_or_default();
        if object.is_directory()
            && let Some(path) = files::local_path(object)
        {
            let listing = files::listing(&path, true)?;
            let listing = files::map_each(&listing, &mut |inner| Ok::<_, String>(with_path(inner)))?;
            map.insert("listing", listing);
        }
        if let Some(inner) = map.get("secondaryFiles") {
            let inner = listed(inner)?;
            map.insert("secondaryFiles", inner);
        }
        Ok(with_path(&Value::map(map)))
    })
}

fn with_path(object: &Value) -> Value {
    let mut map = object.as_map().cloned().unwrap_or_default();
    if let Some(path) = files::local_path(object).and_then(|p| p.to_str().map(str::to_owned)) {
        map.insert("path", path.into());
    }
    for key in ["listing", "secondaryFiles"] {
        if let Some(Value::Array(items)) = map.get(key).cloned() {
            map.insert(key, Value::array(items.iter().map(with_path).collect()));
        }
    }
    Value::map(map)
}

struct Mover<'a> {
    own: &'a [&'a Path],
    taking: Taking,
    /// How often each path is an output.
    counts: HashMap<PathBuf, usize>,
    /// Places that are given.
    taken: HashSet<PathBuf>,
    /// The number to try next for a name that is taken.
    next: HashMap<PathBuf, usize>,
    /// What was put where.
    placed: HashMap<(PathBuf, PathBuf), PathBuf>,
}

impl Mover<'_> {
    fn object(&mut self, object: &Value, folder: &Path) -> Result<Value, String> {
        let mut map: Map = object.as_map().cloned().unwrap_or_default();
        let basename = object.text("basename").unwrap_or_default().to_owned();
        files::check_basename(&basename)?;
        let source = files::local_path(object);
        let key = source.clone().map(|source| (source, folder.join(&basename)));
        let target = match key.as_ref().and_then(|key| self.placed.get(key)) {
            Some(target) => target.clone(),
            None => {
                let target = self.free(folder, &basename);
                self.put(object, source.as_deref(), &target)?;
                if let Some(key) = key {
                    self.placed.insert(key, target.clone());
                }
                target
            }
        };
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        map.insert("location", location_of(&target).into());
        map.insert("basename", name.as_str().into());
        if object.is_file() {
            let (root, extension) = files::split_extension(&name);
            map.insert("nameroot", root.into());
            map.insert("nameext", extension.into());
            map.remove("contents");
        }
        if let Some(Value::Array(items)) = map.get("secondaryFiles").cloned() {
            let moved: Vec<Value> =
                items.iter().map(|one| self.object(one, folder)).collect::<Result<_, _>>()?;
            map.insert("secondaryFiles", Value::array(moved));
        }
        if source.is_none()
            && let Some(Value::Array(items)) = map.get("listing").cloned()
        {
            items.iter().try_for_each(|one| self.object(one, &target).map(|_| ()))?;
        }
        Ok(Value::map(map))
    }

    fn free(&mut self, folder: &Path, basename: &str) -> PathBuf {
        let (root, extension) = files::split_extension(basename);
        let first = folder.join(basename);
        if self.taken.insert(first.clone()) {
            return first;
        }
        // Where the last of that name left off, so that thousands of them take no longer than their number.
        let mut n = self.next.get(&first).copied().unwrap_or(2);
        loop {
            let target = folder.join(format!("{root}_{n}{extension}"));
            n += 1;
            if self.taken.insert(target.clone()) {
                self.next.insert(first, n);
                return target;
            }
        }
    }

    fn put(&mut self, object: &Value, source: Option<&Path>, target: &Path) -> Result<(), String> {
        let fail = |e: std::io::Error| format!("cannot write {}: {e}", target.display());
        let Some(source) = source else {
            if object.is_file() {
                clear(target).map_err(fail)?;
                return std::fs::write(target, object.text("contents").unwrap_or_default()).map_err(fail);
            }
            return std::fs::create_dir_all(target).map_err(fail);
        };
        if source == target {
            return Ok(());
        }
        let own = self.own.iter().any(|own| source.starts_with(own));
        let once = self.counts.get(source).copied().unwrap_or(1) == 1;
        clear(target).map_err(fail)?;
        if own && once && self.taking == Taking::Move && std::fs::rename(source, target).is_ok() {
            return Ok(());
        }
        stage::copy(source, target)
    }
}

/// Makes way for an output: a file of the same name is replaced, a folder is not.
fn clear(target: &Path) -> std::io::Result<()> {
    match target.symlink_metadata() {
        Ok(kind) if kind.is_dir() => Ok(()),
        Ok(_) => std::fs::remove_file(target),
        Err(_) => Ok(()),
    }
}
