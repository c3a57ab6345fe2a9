//! What stands in the working folder before a tool begins (CWL v1.2, CommandLineTool, InitialWorkDirRequirement).

use std::path::{Component, Path, PathBuf};

use crate::expression::Scope;
use crate::files;
use crate::model::{Field, InitialEntry, InitialWorkDir};
use crate::stage::{Content, Plan};
use crate::value::Value;

/// Where what is listed stands.
pub(crate) struct WorkDir<'a> {
    /// The output folder, as the tool sees it.
    pub outdir: &'a Path,
    /// The container is required, so an entry may stand anywhere in it.
    pub required: bool,
    /// What is writable is changed where it is (InplaceUpdateRequirement).
    pub in_place: bool,
}

impl WorkDir<'_> {
    /// Adds what is listed to the plan.
    ///
    /// # Errors
    /// What is listed cannot be put anywhere, or not where it is to stand.
    pub fn fill(&self, dir: &InitialWorkDir, scope: Scope<'_>, plan: &mut Plan) -> Result<(), String> {
        match dir {
            InitialWorkDir::Text(text) => {
                let value = text.eval(scope).map_err(|e| e.to_string())?;
                match &value {
                    Value::Array(_) | Value::Null => self.value(&value, plan),
                    other if other.is_file() || other.is_directory() || other.get("entry").is_some() => {
                        self.value(&value, plan)
                    }
                    other => Err(format!("`listing` gives {}, and must give a list", other.kind_name())),
                }
            }
            InitialWorkDir::Entries(entries) => entries.iter().try_for_each(|entry| match entry {
                InitialEntry::Text(text) => {
                    let value = text.eval(scope).map_err(|e| e.to_string())?;
                    self.value(&value, plan)
                }
                InitialEntry::Object(value) => self.value(&files::normalized(value)?, plan),
                InitialEntry::Dirent { entry, name, writable, .. } => {
                    let name = match name {
                        Some(text) => match text.eval(scope).map_err(|e| e.to_string())? {
                            Value::String(name) => Some(name.to_string()),
                            Value::Null => None,
                            other => {
                                return Err(format!(
                                    "`entryname` gives {}, and must give a string",
                                    other.kind_name()
                                ));
                            }
                        },
                        None => None,
                    };
                    let value = entry.eval(scope).map_err(|e| e.to_string())?;
                    let value =
                        if matches!(entry, Field::Fixed(_)) { files::normalized(&value)? } else { value };
                    self.dirent(&value, name.as_deref(), *writable, plan)
                }
            }),
        }
    }

    /// What an expression gave: a File, a Directory, a Dirent, a list of them, or null.
    fn value(&self, value: &Value, plan: &mut Plan) -> Result<(), String> {
        match value {
            Value::Null => Ok(()),
            Value::Array(items) => items.iter().try_for_each(|item| self.value(item, plan)),
            Value::Map(_) if value.is_file() || value.is_directory() => self.object(value, None, false, plan),
            Value::Map(map) if map.contains("entry") => {
                let name = map.get("entryname").and_then(Value::as_str);
                let writable = map.get("writable").and_then(Value::as_bool).unwrap_or(false);
                self.dirent(map.get("entry").unwrap_or(&Value::Null), name, writable, plan)
            }
            other => Err(format!("an entry of `listing` cannot be {}", other.kind_name())),
        }
    }

    fn dirent(
        &self,
        value: &Value,
        name: Option<&str>,
        writable: bool,
        plan: &mut Plan,
    ) -> Result<(), String> {
        let all_files =
            |items: &[Value]| !items.is_empty() && items.iter().all(|v| v.is_file() || v.is_directory());
        match value {
            Value::Null => Ok(()),
            Value::Map(_) if value.is_file() || value.is_directory() => {
                self.object(value, name, writable, plan)
            }
            Value::Array(items) if all_files(items) && name.is_none() => {
                items.iter().try_for_each(|item| self.object(item, None, writable, plan))
            }
            other => {
                let text = match other {
                    Value::String(text) => text.to_string(),
                    other => other.spaced_json(),
                };
                let Some(name) = name else { return Err("a text in `listing` needs an `entryname`".into()) };
                let inside = self.place(name)?;
                plan.add(&inside, Content::Text(text))
            }
        }
    }

    fn object(
        &self,
        value: &Value,
        name: Option<&str>,
        writable: bool,
        plan: &mut Plan,
    ) -> Result<(), String> {
        let value = without_paths(value)?;
        let name = name.or(value.text("basename")).unwrap_or_default();
        let inside = self.place(name)?;
        plan.put(&value, &inside, writable, self.in_place)
    }

    /// Where an entry stands.
    fn place(&self, name: &str) -> Result<PathBuf, String> {
        let path = Path::new(name);
        if name.is_empty() || name.contains('\0') {
            return Err(format!("`entryname` is {name:?}, which is no name"));
        }
        if path.components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(format!("`entryname` is {name:?}, which leads out of the working folder"));
        }
        if path.is_absolute() {
            if !self.required {
                return Err(format!(
                    "`entryname` is {name:?}: a place outside of the working folder needs DockerRequirement among `requirements`"
                ));
            }
            return Ok(path.to_owned());
        }
        Ok(self.outdir.join(path.components().collect::<PathBuf>()))
    }
}

/// The object by its location: an expression saw it with the paths that it has as an input.
fn without_paths(value: &Value) -> Result<Value, String> {
    files::map_each(value, &mut |object| {
        let mut map = object.as_map().cloned().unwrap_or_default();
        if map.contains("location") {
            map.remove("path");
            map.remove("dirname");
        }
        for key in ["secondaryFiles", "listing"] {
            if let Some(inner) = map.get(key) {
                let inner = without_paths(inner)?;
                map.insert(key, inner);
            }
        }
        files::normalized(&Value::map(map))
    })
}
