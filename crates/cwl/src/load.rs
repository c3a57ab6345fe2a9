//! From documents to processes: fields, names and types of CommandLineTool, ExpressionTool, Workflow and Operation.
//!
//! Nothing stops at the first mistake: what is wrong is written down with its place, and the rest is looked at, too.

mod parts;
mod requirements;
mod schema;
mod workflow;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::{Diagnostic, Documents, by_id, clean, nearest};
use crate::expression::{Escapes, Text};
use crate::model::{Body, Field, Listing, Process, Tool, Version};
use crate::tree::{At, Entry, Kind, Node};
use crate::type_system::Type;
use crate::value::Value;

/// Processes within processes.
const DEEPEST_PROCESS: usize = 60;

/// What may be asked of the loader.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loading {
    /// v1.3 and the loop extension are understood.
    pub development: bool,
}

/// A document that was loaded, or what is wrong with it.
pub struct Loader {
    pub documents: Documents,
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    options: Loading,
    /// By file and fragment.
    known: HashMap<(u32, String), Arc<Process>>,
    loading: Vec<(u32, String)>,
    /// Named types: by file and fragment, as they stand in the document.
    named: HashMap<(u32, String), Node>,
    named_loading: Vec<(u32, String)>,
}

/// What a process inherits from the document around it.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    pub version: Option<Version>,
    /// A name for a process that has none.
    pub name: &'a str,
    pub depth: usize,
}

/// The fields of a mapping, each of which its kind knows.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'n> {
    pub node: &'n Node,
}

impl<'n> Fields<'n> {
    /// A field that is there and not null.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.node.get(key).filter(|n| !n.is_null())
    }
}

impl Loader {
    pub fn new(options: Loading) -> Loader {
        Loader {
            documents: Documents::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            options,
            known: HashMap::new(),
            loading: Vec::new(),
            named: HashMap::new(),
            named_loading: Vec::new(),
        }
    }

    /// Loads `FILE[#FRAGMENT]`. Nothing comes back where something is wrong; then it is among the errors.
    pub fn load(&mut self, path: &Path, fragment: Option<&str>) -> Option<Arc<Process>> {
        let nowhere = At { file: u32::MAX, line: 0, column: 0 };
        let (file, node) = match self.documents.read(path, nowhere) {
            Ok(read) => read,
            Err(e) => {
                self.errors.push(e);
                return None;
            }
        };
        self.load_node(file, node, fragment)
    }

    /// Loads the process of a document that was read.
    pub fn load_node(&mut self, file: u32, node: Arc<Node>, fragment: Option<&str>) -> Option<Arc<Process>> {
        self.schema_defs(&node);
        let process = self.entry(file, &node, fragment, None, 0)?;
        crate::check::process(self, &process);
        self.errors.is_empty().then_some(process)
    }

    pub(crate) fn error(&mut self, at: At, message: impl Into<String>) {
        self.push(Diagnostic::new(at, message));
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.errors.len() < 200 && !self.errors.contains(&diagnostic) {
            self.errors.push(diagnostic);
        }
    }

    pub(crate) fn warn(&mut self, at: At, message: impl Into<String>) {
        let diagnostic = Diagnostic::new(at, message);
        if self.warnings.len() < 200 && !self.warnings.contains(&diagnostic) {
            self.warnings.push(diagnostic);
        }
    }

    /// The process of a document that a fragment names; without one the only one, or `#main`.
    fn entry(
        &mut self,
        file: u32,
        node: &Arc<Node>,
        fragment: Option<&str>,
        outer: Option<Version>,
        depth: usize,
    ) -> Option<Arc<Process>> {
        let version = self.version(node, outer)?;
        let at = node.at;
        let packed = node.get("$graph").is_some() || node.as_seq().is_some();
        let (name, found) = match fragment {
            Some(fragment) => (fragment.to_owned(), by_id(node, fragment)),
            None if !packed => (String::new(), Some(&**node)),
            None => {
                let items = node.get("$graph").map_or(node.as_seq(), Node::as_seq).unwrap_or_default();
                match items {
                    [one] => ("main".to_owned(), Some(one)),
                    _ => ("main".to_owned(), by_id(node, "main")),
                }
            }
        };
        let Some(found) = found else {
            let names: Vec<String> = node
                .get("$graph")
                .and_then(Node::as_seq)
                .unwrap_or_default()
                .iter()
                .filter_map(|n| n.get("id").and_then(Node::as_str))
                .map(|id| format!("#{}", id.trim_start_matches('#')))
                .collect();
            let mut error = Diagnostic::new(at, format!("there is no process `#{name}` in this document"));
            if !names.is_empty() {
                error = error.with_hint(format!("it has {}", names.join(", ")));
            }
            self.push(error);
            return None;
        };
        let key = (file, name.clone());
        if let Some(process) = self.known.get(&key) {
            return Some(process.clone());
        }
        if self.loading.contains(&key) || depth > DEEPEST_PROCESS {
            self.error(found.at, "this process runs itself");
            return None;
        }
        let source = self.documents.sources.get(file);
        let stem = source.and_then(|s| s.path.file_name()).map(|n| n.to_string_lossy().into_owned());
        let shown = if name.is_empty() || name == "main" { stem.unwrap_or_default() } else { name };
        self.loading.push(key.clone());
        let around = Around { version: Some(version), name: &shown, depth };
        let process = self.process(found, around);
        self.loading.pop();
        let process = Arc::new(process?);
        self.known.insert(key, process.clone());
        Some(process)
    }

    fn version(&mut self, node: &Node, outer: Option<Version>) -> Option<Version> {
        let Some(written) = node.get("cwlVersion") else {
            if outer.is_none() {
                let mut error = Diagnostic::new(node.at, "`cwlVersion` is missing");
                if node.get("class").is_some() || node.get("$graph").is_some() {
                    error = error.with_hint("write `cwlVersion: v1.2` at the top");
                } else {
                    error.message = "this is no CWL document: it has no `cwlVersion`".into();
                }
                self.push(error);
            }
            return outer;
        };
        let version = match written.as_str() {
            Some("v1.0") => Version::V1_0,
            Some("v1.1") => Version::V1_1,
            Some("v1.2") => Version::V1_2,
            Some("v1.3" | "v1.3.0-dev1") if self.options.development => Version::V1_3,
            Some(other) => {
                let mut error =
                    Diagnostic::new(written.at, format!("version `{other}` of CWL is not supported"));
                error = error.with_hint("there are v1.0, v1.1 and v1.2, and v1.3 with --enable-dev");
                self.push(error);
                return None;
            }
            None => {
                self.error(
                    written.at,
                    format!("`cwlVersion` is {}, and must be a string", written.kind_name()),
                );
                return None;
            }
        };
        Some(version)
    }

    /// What `run` of a step names, or holds.
    pub(crate) fn run(&mut self, node: &Node, around: Around<'_>) -> Option<Arc<Process>> {
        let depth = around.depth + 1;
        if depth > DEEPEST_PROCESS {
            self.error(node.at, format!("processes are nested more than {DEEPEST_PROCESS} deep"));
            return None;
        }
        match &node.kind {
            Kind::Str(text) => {
                let (path, fragment) = match text.split_once('#') {
                    Some((path, fragment)) => (path, Some(fragment)),
                    None => (&**text, None),
                };
                if path.is_empty() {
                    let whole =
                        self.documents.whole(node.at.file).or_else(|| self.reading_whole(node.at.file))?;
                    return self.entry(node.at.file, &whole, fragment, around.version, depth);
                }
                let read =
                    self.documents.locate(text, node.at).and_then(|path| self.documents.read(&path, node.at));
                match read {
                    Ok((file, whole)) => {
                        self.schema_defs(&whole);
                        self.entry(file, &whole, fragment, around.version, depth)
                    }
                    Err(e) => {
                        self.push(e);
                        None
                    }
                }
            }
            Kind::Map(_) => {
                let version = self.version(node, around.version)?;
                let inner = Around { version: Some(version), name: around.name, depth };
                self.process(node, inner).map(Arc::new)
            }
            _ => {
                self.error(
                    node.at,
                    format!("`run` is {}, and must be a process or the name of one", node.kind_name()),
                );
                None
            }
        }
    }

    fn reading_whole(&mut self, file: u32) -> Option<Arc<Node>> {
        let path = self.documents.sources.get(file)?.path.clone();
        self.documents.read(&path, At::default()).ok().map(|(_, node)| node)
    }

    fn process(&mut self, node: &Node, around: Around<'_>) -> Option<Process> {
        let version = around.version?;
        let Some(class) = node.get("class") else {
            self.push(
                Diagnostic::new(node.at, "a process needs a `class`")
                    .with_hint("one of CommandLineTool, ExpressionTool, Workflow, Operation"),
            );
            return None;
        };
        const COMMON: [&str; 12] = [
            "id",
            "class",
            "cwlVersion",
            "label",
            "doc",
            "inputs",
            "outputs",
            "requirements",
            "hints",
            "intent",
            "name",
            "permanentFailCodes",
        ];
        let own: &[&str] = match class.as_str() {
            Some("CommandLineTool") => &[
                "baseCommand",
                "arguments",
                "stdin",
                "stdout",
                "stderr",
                "successCodes",
                "temporaryFailCodes",
                "permanentFailCodes",
            ],
            Some("Workflow") => &["steps"],
            Some("ExpressionTool") => &["expression"],
            Some("Operation") if version >= Version::V1_2 => &[],
            other => {
                let known = ["CommandLineTool", "ExpressionTool", "Workflow", "Operation"];
                let written = other.unwrap_or_default();
                let mut error = Diagnostic::new(
                    class.at,
                    format!("`{written}` is no class of processes of CWL {version}"),
                );
                if let Some(near) = nearest(written, known) {
                    error = error.with_hint(format!("did you mean {near}?"));
                }
                self.push(error);
                return None;
            }
        };
        let allowed: Vec<&str> = COMMON[..11].iter().chain(own).copied().collect();
        let fields = self.fields(node, class.as_str().unwrap_or_default(), &allowed);
        if version < Version::V1_2
            && let Some(intent) = fields.get("intent")
        {
            self.error(intent.at, format!("`intent` needs CWL v1.2, and this document is {version}"));
        }
        let id =
            fields.get("id").and_then(Node::as_str).map(|id| id.rsplit('#').next().unwrap_or(id).to_owned());
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| around.name.to_owned());
        let requirements = self.requirements(fields.get("requirements"), version, true);
        let mut hints = self.requirements(fields.get("hints"), version, false);
        if version == Version::V1_0 {
            requirements::upgrade_v1_0(&requirements, &mut hints);
        }
        self.local_schema_defs(node);
        let mut inputs =
            self.inputs(fields.get("inputs"), node, version, class.as_str() == Some("CommandLineTool"));
        let mut outputs = self.outputs(fields.get("outputs"), node, version);
        let schemas = self.schemas(node.at.file);
        let body = match class.as_str() {
            Some("CommandLineTool") => {
                let mut tool = self.tool(fields, version);
                parts::shorthands(self, fields, &id, &mut tool, &mut inputs, &mut outputs, version);
                Body::Tool(Box::new(tool))
            }
            Some("Workflow") => {
                let inner = Around { version: Some(version), name: &id, depth: around.depth };
                Body::Workflow(self.workflow(fields, inner, &id, &inputs, &mut outputs))
            }
            Some("ExpressionTool") => match fields.get("expression") {
                Some(expression) => {
                    Body::Expression(self.text(expression, version).unwrap_or(Text::plain("")))
                }
                None => {
                    self.error(node.at, "an ExpressionTool needs an `expression`");
                    return None;
                }
            },
            _ => Body::Operation,
        };
        for (name, at) in duplicates(inputs.iter().map(|i| (&i.name, i.at)))
            .into_iter()
            .chain(duplicates(outputs.iter().map(|o| (&o.name, o.at))))
        {
            self.error(at, format!("`{name}` is declared twice"));
        }
        Some(Process {
            id,
            at: node.at,
            version,
            label: fields.get("label").and_then(Node::as_str).map(str::to_owned),
            doc: fields.get("doc").and_then(doc),
            inputs,
            outputs,
            requirements,
            hints,
            body,
            schemas,
        })
    }

    fn schemas(&mut self, file: u32) -> Vec<PathBuf> {
        let Some(whole) = self.documents.whole(file) else { return Vec::new() };
        let Some(list) = whole.get("$schemas") else { return Vec::new() };
        let items: Vec<&Node> = list.as_seq().map_or_else(|| vec![list], |items| items.iter().collect());
        let mut out = Vec::new();
        for item in items {
            let Some(text) = item.as_str() else { continue };
            match self.documents.locate(text, item.at) {
                Ok(path) if path.exists() => out.push(clean(&path)),
                Ok(path) => {
                    self.warn(item.at, format!("the ontology {} is not there", self.documents.shown(&path)))
                }
                Err(e) => self.warnings.push(e),
            }
        }
        out
    }

    fn tool(&mut self, fields: Fields<'_>, version: Version) -> Tool {
        let base_command = self.strings(fields.get("baseCommand"), "baseCommand");
        let mut arguments = Vec::new();
        for item in fields.get("arguments").map(|n| self.list(n, "arguments")).unwrap_or_default() {
            match &item.kind {
                Kind::Str(_) => arguments.extend(self.text(item, version).map(crate::model::Argument::Text)),
                Kind::Map(_) => {
                    arguments.extend(self.binding(item, version).map(crate::model::Argument::Binding))
                }
                Kind::Int(_) | Kind::Float(_) if version >= Version::V1_0 => {
                    self.push(
                        Diagnostic::new(
                            item.at,
                            "an argument is a string or a binding, and this is a number",
                        )
                        .with_hint("put it in quotes"),
                    );
                }
                _ => self.error(
                    item.at,
                    format!("an argument is a string or a binding, and this is {}", item.kind_name()),
                ),
            }
        }
        let text = |loader: &mut Loader, key: &str| fields.get(key).and_then(|n| loader.text(n, version));
        let (stdin, stdout, stderr) = (text(self, "stdin"), text(self, "stdout"), text(self, "stderr"));
        let codes = |loader: &mut Loader, key: &str| match fields.get(key) {
            Some(node) => loader
                .list(node, key)
                .into_iter()
                .filter_map(|n| match n.kind {
                    Kind::Int(code) => Some(code),
                    _ => {
                        loader.error(n.at, format!("`{key}` holds integers, and this is {}", n.kind_name()));
                        None
                    }
                })
                .collect(),
            None => Vec::new(),
        };
        Tool {
            base_command,
            arguments,
            stdin,
            stdout,
            stderr,
            success_codes: codes(self, "successCodes"),
            temporary_fail_codes: codes(self, "temporaryFailCodes"),
            permanent_fail_codes: codes(self, "permanentFailCodes"),
        }
    }

    // The small parts of documents.

    /// The fields of a mapping; those that nobody knows are told, with the nearest that is known.
    pub(crate) fn fields<'n>(&mut self, node: &'n Node, what: &str, allowed: &[&str]) -> Fields<'n> {
        for entry in node.as_map().unwrap_or_default() {
            self.known_field(entry, what, allowed);
        }
        Fields { node }
    }

    fn known_field(&mut self, entry: &Entry, what: &str, allowed: &[&str]) {
        let key = &*entry.key;
        if allowed.contains(&key) || key.starts_with('$') || key.contains(':') || key.contains("#") {
            return;
        }
        let mut error = Diagnostic::new(entry.at, format!("`{key}` is no field of {what}"));
        error.hint = Some(match nearest(key, allowed.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("it has {}", allowed.join(", ")),
        });
        self.push(error);
    }

    /// A string that may hold expressions.
    pub(crate) fn text(&mut self, node: &Node, version: Version) -> Option<Text> {
        match node.as_str() {
            Some(text) => Some(Text::parse(text, escapes(version), true)),
            None => {
                self.error(
                    node.at,
                    format!("a string or an expression is needed, and this is {}", node.kind_name()),
                );
                None
            }
        }
    }

    /// Any value, which is an expression where it is a string that holds one.
    pub(crate) fn field(&mut self, node: &Node, version: Version) -> Field {
        match node.as_str() {
            Some(text) => {
                let text = Text::parse(text, escapes(version), true);
                if text.is_plain() { Field::Fixed(Value::String(text.source)) } else { Field::Text(text) }
            }
            None => Field::Fixed(self.documents.value(node)),
        }
    }

    pub(crate) fn boolean(&mut self, node: Option<&Node>, key: &str) -> Option<bool> {
        match node.map(|n| (&n.kind, n.at)) {
            Some((Kind::Bool(b), _)) => Some(*b),
            Some((_, at)) => {
                self.error(at, format!("`{key}` is true or false"));
                None
            }
            None => None,
        }
    }

    /// A list, of which one item may stand alone.
    pub(crate) fn list<'n>(&mut self, node: &'n Node, _key: &str) -> Vec<&'n Node> {
        match &node.kind {
            Kind::Seq(items) => items.iter().collect(),
            _ => vec![node],
        }
    }

    pub(crate) fn strings(&mut self, node: Option<&Node>, key: &str) -> Vec<String> {
        let Some(node) = node else { return Vec::new() };
        let mut out = Vec::new();
        for item in self.list(node, key) {
            match item.as_str() {
                Some(text) => out.push(text.to_owned()),
                None => {
                    self.error(item.at, format!("`{key}` holds strings, and this is {}", item.kind_name()))
                }
            }
        }
        out
    }

    pub(crate) fn listing(&mut self, node: Option<&Node>) -> Option<Listing> {
        let node = node?;
        match node.as_str() {
            Some("no_listing") => Some(Listing::No),
            Some("shallow_listing") => Some(Listing::Shallow),
            Some("deep_listing") => Some(Listing::Deep),
            _ => {
                self.error(node.at, "a listing is no_listing, shallow_listing or deep_listing");
                None
            }
        }
    }

    /// The items of a list, or of a mapping from names to them, each with its name where the mapping has one.
    /// In a mapping an item that is no mapping itself is the value of the field `predicate`.
    pub(crate) fn named_items(
        &mut self,
        node: Option<&Node>,
        what: &str,
        subject: &str,
        predicate: Option<&str>,
    ) -> Vec<Node> {
        let Some(node) = node else { return Vec::new() };
        match &node.kind {
            Kind::Seq(items) => items.clone(),
            Kind::Map(entries) => entries
                .iter()
                .map(|entry| {
                    let name = Entry {
                        key: subject.into(),
                        at: entry.at,
                        value: Node::string(&entry.key, entry.at),
                    };
                    let mut fields = vec![name];
                    match (&entry.value.kind, predicate) {
                        (Kind::Map(own), _) => {
                            fields.extend(own.iter().filter(|e| &*e.key != subject).cloned())
                        }
                        (Kind::Null, _) => {}
                        (_, Some(predicate)) => {
                            let value = entry.value.clone();
                            fields.push(Entry { key: predicate.into(), at: entry.at, value });
                        }
                        (_, None) => {
                            let kind = entry.value.kind_name();
                            self.error(
                                entry.value.at,
                                format!("an item of `{what}` is a mapping, and this is {kind}"),
                            );
                        }
                    }
                    Node { kind: Kind::Map(fields), at: entry.value.at }
                })
                .collect(),
            Kind::Null => Vec::new(),
            _ => {
                self.error(
                    node.at,
                    format!("`{what}` is {}, and must be a list or a mapping", node.kind_name()),
                );
                Vec::new()
            }
        }
    }
}

/// The last part of an identifier: `#main/step/name` is `name`.
pub(crate) fn short(id: &str) -> &str {
    let fragment = id.rsplit('#').next().unwrap_or(id);
    fragment.rsplit('/').next().unwrap_or(fragment)
}

pub(crate) fn escapes(version: Version) -> Escapes {
    if version >= Version::V1_2 { Escapes::New } else { Escapes::Old }
}

/// `doc` is a string, or a list of lines.
pub(crate) fn doc(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Str(text) => Some(text.to_string()),
        Kind::Seq(items) => Some(items.iter().filter_map(Node::as_str).collect::<Vec<_>>().join("\n")),
        _ => None,
    }
}

fn duplicates<'a>(names: impl Iterator<Item = (&'a Arc<str>, At)>) -> Vec<(String, At)> {
    let mut seen = std::collections::HashSet::new();
    names.filter(|(name, _)| !seen.insert((*name).clone())).map(|(name, at)| (name.to_string(), at)).collect()
}

impl Type {
    /// `T` or null.
    pub(crate) fn optional(self) -> Type {
        match self {
            Type::Union(types) if types.iter().any(|t| matches!(t, Type::Null)) => Type::Union(types),
            Type::Union(types) => {
                let mut all = vec![Type::Null];
                all.extend(types.iter().cloned());
                Type::union(all)
            }
            Type::Null => Type::Null,
            other => Type::union(vec![Type::Null, other]),
        }
    }
}
