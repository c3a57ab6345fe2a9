//! What a process needs once all around it is known: the nearest requirement counts, and any requirement before a hint.

use std::sync::Arc;
use std::time::Duration;

use crate::expression::{Failed, Scope};
use crate::js::Library;
use crate::model::{Docker, Field, InitialWorkDir, Listing, Process, Requirement, Resources, Version};
use crate::value::{Map, Value};

/// Requirements and hints of a process and of all that is around it, outermost first.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    requirements: Vec<Requirement>,
    hints: Vec<Requirement>,
    js: Option<Library>,
}

impl Needs {
    /// With what a step, and the process that it runs, say.
    pub fn within(
        &self,
        step: Option<(&[Requirement], &[Requirement])>,
        process: Option<&Process>,
        patience: Duration,
    ) -> Arc<Needs> {
        let mut needs = self.clone();
        if let Some((requirements, hints)) = step {
            needs.requirements.extend(requirements.iter().cloned());
            needs.hints.extend(hints.iter().cloned());
        }
        if let Some(process) = process {
            needs.requirements.extend(process.requirements.iter().cloned());
            needs.hints.extend(process.hints.iter().cloned());
        }
        needs.js = needs
            .find(|r| match r {
                Requirement::InlineJavascript(scripts) => Some(scripts.clone()),
                _ => None,
            })
            .map(|scripts| Library { scripts, patience });
        Arc::new(needs)
    }

    fn find<T>(&self, f: impl Fn(&Requirement) -> Option<T>) -> Option<T> {
        self.requirements.iter().rev().find_map(&f).or_else(|| self.hints.iter().rev().find_map(&f))
    }

    /// Requirements (not hints) that are not known here.
    pub fn unknown(&self) -> Option<&str> {
        self.requirements.iter().find_map(|r| match r {
            Requirement::Unknown(class, _) => Some(class.as_str()),
            _ => None,
        })
    }

    pub fn js(&self) -> Option<&Library> {
        self.js.as_ref()
    }

    /// The image, and whether it is required.
    pub fn docker(&self) -> Option<(Docker, bool)> {
        let of = |r: &Requirement| match r {
            Requirement::Docker(docker) => Some((**docker).clone()),
            _ => None,
        };
        match self.requirements.iter().rev().find_map(of) {
            Some(docker) => Some((docker, true)),
            None => self.hints.iter().rev().find_map(of).map(|docker| (docker, false)),
        }
    }

    pub fn initial_work_dir(&self) -> Option<&InitialWorkDir> {
        let of =
            |list: &'_ [Requirement]| list.iter().rposition(|r| matches!(r, Requirement::InitialWorkDir(_)));
        let found = match of(&self.requirements) {
            Some(i) => &self.requirements[i],
            None => &self.hints[of(&self.hints)?],
        };
        match found {
            Requirement::InitialWorkDir(dir) => Some(dir),
            _ => None,
        }
    }

    pub fn environment(&self, scope: Scope<'_>) -> Result<Vec<(String, String)>, String> {
        let Some(defs) = self.find(|r| match r {
            Requirement::EnvVar(defs) => Some(defs.clone()),
            _ => None,
        }) else {
            return Ok(Vec::new());
        };
        let mut out = Vec::with_capacity(defs.len());
        for (name, text) in defs {
            match text.eval(scope).map_err(|e| e.to_string())? {
                Value::String(value) if value.contains('\0') => {
                    return Err(format!("the variable {name} holds a null byte"));
                }
                Value::String(value) => out.push((name, value.to_string())),
                other => {
                    return Err(format!(
                        "the variable {name} is {}, and must be a string",
                        other.kind_name()
                    ));
                }
            }
        }
        Ok(out)
    }

    pub fn shell(&self) -> bool {
        self.find(|r| matches!(r, Requirement::ShellCommand).then_some(())).is_some()
    }

    pub fn listing(&self) -> Option<Listing> {
        self.find(|r| match r {
            Requirement::LoadListing(listing) => Some(*listing),
            _ => None,
        })
    }

    pub fn in_place(&self) -> bool {
        self.find(|r| match r {
            Requirement::InplaceUpdate(yes) => Some(*yes),
            _ => None,
        })
        .unwrap_or(false)
    }

    fn field(&self, f: impl Fn(&Requirement) -> Option<Field>) -> Option<Field> {
        self.find(f)
    }

    /// Whether the tool may use the network. Since v1.1 not, unless it says so.
    pub fn network(&self, scope: Scope<'_>) -> Result<bool, String> {
        let field = self.field(|r| match r {
            Requirement::NetworkAccess(field) => Some(field.clone()),
            _ => None,
        });
        flag(field, scope, "networkAccess", false)
    }

    /// Whether an earlier run of the same may stand for this one.
    pub fn reuse(&self, scope: Scope<'_>) -> Result<bool, String> {
        let field = self.field(|r| match r {
            Requirement::WorkReuse(field) => Some(field.clone()),
            _ => None,
        });
        flag(field, scope, "enableReuse", true)
    }

    /// The longest that the tool may run; none for ever.
    pub fn time_limit(&self, scope: Scope<'_>) -> Result<Option<Duration>, String> {
        let Some(field) = self.field(|r| match r {
            Requirement::ToolTimeLimit(field) => Some(field.clone()),
            _ => None,
        }) else {
            return Ok(None);
        };
        match field.eval(scope).map_err(|e| e.to_string())?.as_f64() {
            Some(0.0) => Ok(None),
            Some(seconds) if seconds > 0.0 => {
                Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
            }
            Some(seconds) => Err(format!("the time limit is {seconds} seconds, and cannot be negative")),
            None => Err("the time limit is no number".into()),
        }
    }

    /// Bytes of `/dev/shm`; those of every container where not given.
    pub fn shm_size(&self) -> Option<u64> {
        self.find(|r| match r {
            Requirement::ShmSize(bytes) => Some(*bytes),
            _ => None,
        })
    }

    /// Processes of MPIRequirement.
    pub fn processes(&self, scope: Scope<'_>) -> Result<Option<i64>, String> {
        let Some(field) = self.field(|r| match r {
            Requirement::Mpi(field) => Some(field.clone()),
            _ => None,
        }) else {
            return Ok(None);
        };
        match field.eval(scope).map_err(|e| e.to_string())? {
            Value::Int(n) if n >= 0 => Ok(Some(n)),
            other => Err(format!("`processes` gives {}, and must give an integer", other.kind_name())),
        }
    }

    fn resources(&self) -> Resources {
        self.find(|r| match r {
            Requirement::Resource(resources) => Some((**resources).clone()),
            _ => None,
        })
        .unwrap_or_default()
    }

    /// Whether the resources depend on the inputs.
    pub fn resources_are_computed(&self) -> bool {
        let r = self.resources();
        [
            r.cores_min,
            r.cores_max,
            r.ram_min,
            r.ram_max,
            r.tmpdir_min,
            r.tmpdir_max,
            r.outdir_min,
            r.outdir_max,
        ]
        .iter()
        .any(|f| matches!(f, Some(Field::Text(_))))
    }

    /// What the tool occupies.
    pub fn allotted(&self, scope: Scope<'_>, version: Version) -> Result<Allotted, String> {
        let r = self.resources();
        let amount = |field: &Option<Field>, name: &str| -> Result<Option<f64>, String> {
            let Some(field) = field else { return Ok(None) };
            match field.eval(scope).map_err(|e: Failed| e.to_string())? {
                Value::Null => Ok(None),
                value => match value.as_f64() {
                    Some(x) if x >= 0.0 => Ok(Some(x)),
                    Some(x) => Err(format!("`{name}` is {x}, and cannot be negative")),
                    None => Err(format!("`{name}` is {}, and must be a number", value.kind_name())),
                },
            }
        };
        let choose =
            |min: &Option<Field>, max: &Option<Field>, name: &str, usual: f64| -> Result<f64, String> {
                let (min, max) = (amount(min, &format!("{name}Min"))?, amount(max, &format!("{name}Max"))?);
                match (min, max) {
                    (Some(min), Some(max)) if min > max => {
                        Err(format!("`{name}Min` is {min}, which is more than `{name}Max`, {max}"))
                    }
                    (Some(min), _) => Ok(min),
                    (None, Some(max)) => Ok(max),
                    (None, None) => Ok(usual),
                }
            };
        let ram = if version == Version::V1_0 { 1024.0 } else { 256.0 };
        Ok(Allotted {
            cores: choose(&r.cores_min, &r.cores_max, "cores", 1.0)?,
            ram: choose(&r.ram_min, &r.ram_max, "ram", ram)?.ceil() as i64,
            tmpdir: choose(&r.tmpdir_min, &r.tmpdir_max, "tmpdir", 1024.0)?.ceil() as i64,
            outdir: choose(&r.outdir_min, &r.outdir_max, "outdir", 1024.0)?.ceil() as i64,
        })
    }
}

fn flag(field: Option<Field>, scope: Scope<'_>, name: &str, usual: bool) -> Result<bool, String> {
    let Some(field) = field else { return Ok(usual) };
    match field.eval(scope).map_err(|e| e.to_string())? {
        Value::Bool(b) => Ok(b),
        other => Err(format!("`{name}` gives {}, and must give true or false", other.kind_name())),
    }
}

/// What a tool was given: cores, and mebibytes of the rest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allotted {
    pub cores: f64,
    pub ram: i64,
    pub tmpdir: i64,
    pub outdir: i64,
}

impl Allotted {
    /// `runtime` of expressions.
    pub fn runtime(&self, outdir: &str, tmpdir: &str) -> Value {
        let map: Map = [
            ("outdir", Value::from(outdir)),
            ("tmpdir", tmpdir.into()),
            ("cores", Value::Int(self.cores.ceil() as i64)),
            ("ram", Value::Int(self.ram)),
            ("tmpdirSize", Value::Int(self.tmpdir)),
            ("outdirSize", Value::Int(self.outdir)),
        ]
        .into_iter()
        .collect();
        Value::map(map)
    }
}
