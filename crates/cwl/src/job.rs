//! The input object of a run: a job file, words of the command line made from the process, or both.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::{Documents, location_of, nearest};
use crate::model::{Parameter, Process};
use crate::outputs::from_json;
use crate::tree::{At, Node};
use crate::type_system::Type;
use crate::value::{Map, Value};

/// A job: inputs, and what it says beside them.
#[derive(Debug, Default)]
pub struct Order {
    pub inputs: Map,
    /// `cwl:requirements` and `cwl:hints`, as they stand in the file.
    pub requirements: Option<Node>,
    pub hints: Option<Node>,
    /// `cwl:overrides`.
    pub overrides: Option<Node>,
    /// `cwl:tool`: what is to be run.
    pub tool: Option<PathBuf>,
}

/// Reads a job file.
pub fn read(documents: &mut Documents, path: &Path) -> Result<Order, crate::document::Diagnostic> {
    let nowhere = At { file: u32::MAX, line: 0, column: 0 };
    let (_, node) = documents.read(path, nowhere)?;
    of_node(documents, &node)
}

/// The job that a document holds. An empty one has no inputs.
pub fn of_node(documents: &Documents, node: &Node) -> Result<Order, crate::document::Diagnostic> {
    let mut order = Order::default();
    if node.is_null() {
        return Ok(order);
    }
    let Some(entries) = node.as_map() else {
        let message = format!("a job is a mapping from inputs to values, and this is {}", node.kind_name());
        return Err(crate::document::Diagnostic::new(node.at, message));
    };
    for entry in entries {
        match &*entry.key {
            "cwl:requirements" | "https://w3id.org/cwl/cwl#requirements" => {
                order.requirements = Some(entry.value.clone())
            }
            "cwl:hints" => order.hints = Some(entry.value.clone()),
            "cwl:overrides" | "http://commonwl.org/cwltool#overrides" => {
                order.overrides = Some(entry.value.clone());
            }
            "cwl:tool" | "https://w3id.org/cwl/cwl#tool" => {
                if let Some(text) = entry.value.as_str() {
                    order.tool = Some(documents.locate(text, entry.value.at)?);
                }
            }
            key if key.starts_with('$') || key.starts_with("cwl:") => {}
            "id" => {
                order.inputs.insert("id", documents.value(&entry.value));
            }
            _ => order.inputs.insert(entry.key.clone(), documents.value(&entry.value)),
        }
    }
    Ok(order)
}

/// What the words after the process say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    pub job: Option<String>,
    pub help: bool,
    pub values: Vec<(String, String)>,
    /// Flags without a value.
    pub flags: Vec<String>,
}

/// Takes the words after the process apart: one that begins without a dash is the job file.
pub fn words(process: &Process, words: &[String]) -> Result<Words, String> {
    let mut out = Words::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let Some(flag) = word.strip_prefix("--") else {
            if word == "-h" {
                out.help = true;
                continue;
            }
            if out.job.is_some() || (word.starts_with('-') && word != "-") {
                return Err(format!(
                    "`{word}` is not understood: a job file is already given, and inputs are written --NAME VALUE"
                ));
            }
            out.job = Some(word.clone());
            continue;
        };
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name == "help" && !process.inputs.iter().any(|i| &*i.name == "help") {
            out.help = true;
            continue;
        }
        let Some(input) = process.inputs.iter().find(|i| &*i.name == name) else {
            let negated =
                name.strip_prefix("no-").and_then(|n| process.inputs.iter().find(|i| &*i.name == n));
            if let Some(input) = negated.filter(|i| is_flag(&i.kind)) {
                out.values.push((input.name.to_string(), "false".into()));
                continue;
            }
            let near = nearest(name, process.inputs.iter().map(|i| &*i.name));
            let hint = near.map(|n| format!("; did you mean --{n}?")).unwrap_or_default();
            return Err(format!("{} has no input `{name}`{hint}", process.id));
        };
        if is_flag(&input.kind) && given.is_none() {
            out.flags.push(name.to_owned());
            continue;
        }
        match given.or_else(|| rest.next().cloned()) {
            Some(value) => out.values.push((name.to_owned(), value)),
            None => return Err(format!("--{name} needs a value")),
        }
    }
    Ok(out)
}

fn is_flag(kind: &Type) -> bool {
    kind.alternatives().iter().all(|t| matches!(t, Type::Boolean | Type::Null))
}

/// Puts what the command line says into the inputs. Paths are relative to the current folder.
pub fn fill(process: &Process, words: &Words, inputs: &mut Map) -> Result<(), String> {
    for name in &words.flags {
        inputs.insert(name.as_str(), Value::Bool(true));
    }
    let mut fresh = std::collections::HashSet::new();
    for (name, text) in &words.values {
        let Some(input) = process.inputs.iter().find(|i| &*i.name == name.as_str()) else { continue };
        let list = input.kind.alternatives().into_iter().find_map(|t| match t {
            Type::Array(array) => Some(array),
            _ => None,
        });
        match list {
            Some(array) if !text.trim_start().starts_with('[') => {
                let item = value_of(&array.items, text).map_err(|e| format!("--{name}: {e}"))?;
                // Given again, it is one more item; the first takes the place of what the job has.
                let mut items = if fresh.insert(name.clone()) {
                    Vec::new()
                } else {
                    inputs.get(name).and_then(Value::as_array).unwrap_or_default().to_vec()
                };
                items.push(item);
                inputs.insert(name.as_str(), Value::array(items));
            }
            _ => inputs
                .insert(name.as_str(), value_of(&input.kind, text).map_err(|e| format!("--{name}: {e}"))?),
        }
    }
    Ok(())
}

/// A word as a value of a type: the first alternative that it can be.
fn value_of(kind: &Type, text: &str) -> Result<Value, String> {
    let alternatives = kind.alternatives();
    for one in &alternatives {
        let value = match one {
            Type::Int | Type::Long => text.parse().ok().map(Value::Int),
            Type::Float | Type::Double => text.parse().ok().filter(|x: &f64| x.is_finite()).map(Value::Float),
            Type::Boolean => text.parse().ok().map(Value::Bool),
            Type::File | Type::Directory => {
                let path = crate::document::clean(Path::new(text));
                let class = if matches!(one, Type::File) { "File" } else { "Directory" };
                let map: Map = [("class", Value::from(class)), ("location", location_of(&path).into())]
                    .into_iter()
                    .collect();
                Some(Value::map(map))
            }
            Type::Null => None,
            Type::String | Type::Any => Some(Value::from(text)),
            Type::Enum(of) => of.symbols.iter().any(|s| s == text).then(|| Value::from(text)),
            Type::Array(_) | Type::Record(_) => from_json(text).ok(),
            Type::Union(_) => None,
        };
        if let Some(value) = value.filter(|v| one.matches(v)) {
            return Ok(value);
        }
    }
    Err(format!("{text:?} is not {kind}"))
}

/// The manual of a process: its inputs as options.
pub fn help(process: &Process, command: &str) -> String {
    let mut out = String::new();
    if let Some(label) = &process.label {
        let _ = writeln!(out, "{label}\n");
    }
    if let Some(doc) = &process.doc {
        let _ = writeln!(out, "{}\n", doc.trim());
    }
    let _ = writeln!(out, "Usage: {command} [JOB] [INPUTS]\n\nInputs:");
    let shown: Vec<(String, &Arc<str>, &Parameter)> = process
        .inputs
        .iter()
        .map(|input| {
            let value =
                if is_flag(&input.kind) { String::new() } else { format!(" {}", placeholder(&input.kind)) };
            (format!("--{}{value}", input.name), &input.name, input)
        })
        .collect();
    let width = shown.iter().map(|(text, ..)| text.len()).max().unwrap_or(0).min(32);
    for (text, _, input) in &shown {
        let about = input
            .doc
            .as_ref()
            .or(input.label.as_ref())
            .map(|d| d.trim().replace('\n', " "))
            .unwrap_or_default();
        let more = match &input.default {
            Some(default) => format!(" [default: {}]", default.spaced_json()),
            None if input.kind.accepts_null() => String::new(),
            None => " [required]".into(),
        };
        let _ = writeln!(out, "  {text:width$}  {about}{more}");
    }
    out
}

fn placeholder(kind: &Type) -> String {
    let first = kind.alternatives().into_iter().find(|t| !matches!(t, Type::Null));
    match first {
        Some(Type::File) => "FILE".into(),
        Some(Type::Directory) => "DIR".into(),
        Some(Type::Array(array)) => format!("{}...", placeholder(&array.items)),
        Some(Type::Enum(of)) => of.symbols.join("|"),
        Some(Type::Record(_)) => "JSON".into(),
        Some(other) => other.to_string().to_uppercase(),
        None => "VALUE".into(),
    }
}

/// A job file to fill in: each input with an example of its type.
pub fn template(process: &Process) -> String {
    let mut out = String::new();
    for input in &process.inputs {
        let comment = match (&input.default, input.kind.accepts_null()) {
            (Some(_), _) => format!("  # {} (default)", input.kind),
            (None, true) => format!("  # {} (optional)", input.kind),
            (None, false) => format!("  # {}", input.kind),
        };
        let value = match &input.default {
            Some(default) => serde_json::to_string(default).unwrap_or_default(),
            None => example(&input.kind),
        };
        let _ = writeln!(out, "{}: {value}{comment}", input.name);
    }
    out
}

fn example(kind: &Type) -> String {
    match kind {
        Type::Null => "null".into(),
        Type::Boolean => "false".into(),
        Type::Int | Type::Long => "0".into(),
        Type::Float | Type::Double => "0.1".into(),
        Type::String | Type::Any => "\"a string\"".into(),
        Type::File => "{class: File, path: a/file/path}".into(),
        Type::Directory => "{class: Directory, path: a/directory/path}".into(),
        Type::Array(array) => format!("[{}]", example(&array.items)),
        Type::Enum(of) => of.symbols.first().cloned().unwrap_or_default(),
        Type::Record(record) => {
            let fields: Vec<String> =
                record.fields.iter().map(|f| format!("{}: {}", f.name, example(&f.kind))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        Type::Union(types) => types.iter().find(|t| !matches!(t, Type::Null)).map_or("null".into(), example),
    }
}
