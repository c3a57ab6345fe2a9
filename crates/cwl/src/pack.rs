//! `--pack`: a process with all that it runs as one document, in which nothing leads to another file but inputs do.
//!
//! Imports and includes are in their places already when a document has been read. What is left are the processes that
//! steps run by name: they stand beside each other in `$graph`, `main` first, and names within a process stay as they are.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::document::{Diagnostic, Documents, by_id, location_of};
use crate::model::{Body, Process};
use crate::tree::{At, Entry, Kind, Node};
use crate::value::{Map, Value};

/// More processes than a person writes.
const MOST: usize = 10_000;

struct Packer<'d> {
    documents: &'d mut Documents,
    /// By file and fragment: the name in the graph.
    names: HashMap<(PathBuf, Option<String>), String>,
    graph: Vec<(String, Node)>,
    namespaces: Map,
    schemas: Vec<Value>,
    version: Option<String>,
}

/// Packs the process of a document.
///
/// # Errors
/// A document cannot be read, or is of another version than the first.
pub fn pack(
    documents: &mut Documents,
    path: &std::path::Path,
    fragment: Option<&str>,
) -> Result<Value, Diagnostic> {
    let mut packer = Packer {
        documents,
        names: HashMap::new(),
        graph: Vec::new(),
        namespaces: Map::new(),
        schemas: Vec::new(),
        version: None,
    };
    let nowhere = At { file: u32::MAX, line: 0, column: 0 };
    packer.process(path.to_owned(), fragment.map(str::to_owned), nowhere)?;
    let Packer { documents, graph, namespaces, schemas, version, .. } = packer;
    let graph = graph.into_iter().map(|(name, node)| {
        let value = documents.value(&node);
        let mut map = Map::new();
        map.insert("id", name.into());
        for (key, item) in value.as_map().into_iter().flat_map(Map::iter) {
            if !matches!(key, "id" | "cwlVersion" | "$namespaces" | "$schemas" | "$graph") {
                map.insert(key, item.clone());
            }
        }
        Value::map(map)
    });
    let graph = Value::array(graph.collect());
    let mut out = Map::new();
    out.insert("cwlVersion", version.unwrap_or_default().into());
    if !namespaces.is_empty() {
        out.insert("$namespaces", Value::map(namespaces));
    }
    if !schemas.is_empty() {
        out.insert("$schemas", Value::array(schemas));
    }
    out.insert("$graph", graph);
    Ok(Value::map(out))
}

/// A packed workflow without the steps and outputs that a part of it ([`crate::draw::only`]) has not, and without processes
/// that nothing in it runs.
pub fn reduced(packed: &Value, part: &Process) -> Value {
    let Body::Workflow(workflow) = &part.body else { return packed.clone() };
    let Some(graph) = packed.get("$graph").and_then(Value::as_array) else { return packed.clone() };
    let outputs: Vec<&str> = part.outputs.iter().map(|output| &*output.name).collect();
    let steps: Vec<&str> = workflow.steps.iter().map(|step| &*step.id).collect();
    let mut graph = graph.to_vec();
    if let Some(main) = graph.first_mut().and_then(Value::as_map_mut) {
        for (key, names) in [("outputs", &outputs), ("steps", &steps)] {
            if let Some(value) = main.get_mut(key) {
                *value = chosen(value, names);
            }
        }
    }
    // Whoever is run is named by a `run: '#name'`.
    let mut wanted = vec![false; graph.len()];
    let mut open = vec![0];
    while let Some(i) = open.pop() {
        if !std::mem::replace(&mut wanted[i], true) {
            let mut named = Vec::new();
            runs(&graph[i], &mut named);
            let plain = |name: &str| name.trim_start_matches('#').to_owned();
            let of = |name: &String| {
                let id = |process: &Value| process.get("id").and_then(Value::as_str).map(plain);
                graph.iter().position(|process| id(process) == Some(plain(name)))
            };
            open.extend(named.iter().filter_map(of));
        }
    }
    let graph = graph.into_iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(process, _)| process);
    let mut out = packed.as_map().cloned().unwrap_or_default();
    out.insert("$graph", Value::array(graph.collect()));
    Value::map(out)
}

/// The entries of a list or a map of named things that have one of the names.
fn chosen(value: &Value, names: &[&str]) -> Value {
    let is = |id: &str| names.contains(&id.rsplit(['/', '#']).next().unwrap_or(id));
    match (value.as_map(), value.as_array()) {
        (Some(map), _) => {
            let kept = map.iter().filter(|(key, _)| is(key));
            Value::map(kept.map(|(key, value)| (key, value.clone())).collect())
        }
        (_, Some(list)) => {
            let kept = list.iter().filter(|item| item.get("id").and_then(Value::as_str).is_some_and(is));
            Value::array(kept.cloned().collect())
        }
        _ => value.clone(),
    }
}

/// The names of what a process runs.
fn runs(value: &Value, names: &mut Vec<String>) {
    if let Some(map) = value.as_map() {
        for (key, value) in map.iter() {
            match (key, value.as_str()) {
                ("run", Some(name)) => names.push(name.to_owned()),
                _ => runs(value, names),
            }
        }
    }
    value.as_array().into_iter().flatten().for_each(|item| runs(item, names));
}

impl Packer<'_> {
    /// Takes a process in, and gives its name.
    fn process(&mut self, path: PathBuf, fragment: Option<String>, from: At) -> Result<String, Diagnostic> {
        let key = (path.clone(), fragment.clone());
        if let Some(name) = self.names.get(&key) {
            return Ok(name.clone());
        }
        if self.graph.len() >= MOST {
            return Err(Diagnostic::new(from, format!("more than {MOST} processes")));
        }
        let (file, whole) = self.documents.read(&path, from)?;
        let wanted = fragment.as_deref().or(whole.get("$graph").map(|_| "main"));
        let node = match wanted {
            Some(wanted) => by_id(&whole, wanted).ok_or_else(|| {
                Diagnostic::new(from, format!("{} has nothing named `#{wanted}`", path.display()))
            })?,
            None => &whole,
        }
        .clone();
        let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let base = if self.graph.is_empty() { "main".to_owned() } else { fragment.unwrap_or(own) };
        let taken = |name: &str| self.graph.iter().any(|(known, _)| known == name);
        let name = (1..).map(|n| if n == 1 { base.clone() } else { format!("{base}_{n}") });
        let name = name.into_iter().find(|name| !taken(name)).unwrap_or_default();
        self.names.insert(key, name.clone());
        // Its place, before those that it runs.
        let place = self.graph.len();
        self.graph.push((name.clone(), Node::null(node.at)));
        self.head(&whole, file)?;
        let node = self.steps(node, &path)?;
        self.graph[place].1 = node;
        Ok(name)
    }

    /// Version, namespaces and ontologies of a document.
    fn head(&mut self, whole: &Node, file: u32) -> Result<(), Diagnostic> {
        let own = whole.get("cwlVersion").and_then(|node| Some((node.as_str()?.to_owned(), node.at)));
        match (&self.version, own) {
            (None, Some((version, _))) => self.version = Some(version),
            (Some(first), Some((version, at))) if *first != version => {
                return Err(Diagnostic::new(
                    at,
                    format!("one document cannot be both {first} and {version}"),
                )
                .with_hint("only processes of one version can be packed"));
            }
            _ => {}
        }
        for entry in whole.get("$namespaces").and_then(Node::as_map).unwrap_or_default() {
            self.namespaces.insert(entry.key.clone(), entry.value.to_value());
        }
        let schemas = whole.get("$schemas");
        let one = schemas.into_iter().filter(|node| node.as_str().is_some());
        for item in schemas.and_then(Node::as_seq).unwrap_or_default().iter().chain(one) {
            let Some(text) = item.as_str() else { continue };
            let at = At { file, ..item.at };
            let location = Value::from(location_of(&self.documents.locate(text, at)?));
            if !self.schemas.contains(&location) {
                self.schemas.push(location);
            }
        }
        Ok(())
    }

    /// The process with names of the graph in the place of those of files.
    fn steps(&mut self, mut node: Node, path: &std::path::Path) -> Result<Node, Diagnostic> {
        let Kind::Map(entries) = &mut node.kind else { return Ok(node) };
        for entry in entries.iter_mut().filter(|entry| &*entry.key == "steps") {
            match &mut entry.value.kind {
                Kind::Seq(items) => {
                    for item in items {
                        self.step(item, path)?;
                    }
                }
                Kind::Map(items) => {
                    for item in items {
                        self.step(&mut item.value, path)?;
                    }
                }
                _ => {}
            }
        }
        Ok(node)
    }

    fn step(&mut self, step: &mut Node, path: &std::path::Path) -> Result<(), Diagnostic> {
        let Kind::Map(entries) = &mut step.kind else { return Ok(()) };
        for Entry { value, .. } in entries.iter_mut().filter(|entry| &*entry.key == "run") {
            let Some(text) = value.as_str().map(str::to_owned) else {
                // One that stands in the step itself.
                *value = self.steps(value.clone(), path)?;
                continue;
            };
            let (file, fragment) =
                text.split_once('#').map_or((&*text, None), |(f, name)| (f, Some(name.to_owned())));
            let target =
                if file.is_empty() { path.to_owned() } else { self.documents.locate(file, value.at)? };
            let name = self.process(target, fragment.filter(|name| !name.is_empty()), value.at)?;
            *value = Node::string(&format!("#{name}"), value.at);
        }
        Ok(())
    }
}
