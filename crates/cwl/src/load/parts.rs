//! Inputs, outputs and their bindings.

use std::sync::Arc;

use super::schema::Side;
use super::{Fields, Loader, doc, escapes, short};
use crate::document::Diagnostic;
use crate::expression::Text;
use crate::model::{Field, Link, Output, OutputBinding, Parameter, Tool, Version};
use crate::tree::{Entry, Kind, Node};
use crate::type_system::{Binding, SecondaryFile, Type};
use crate::value::Value;

impl Loader {
    pub(super) fn inputs(
        &mut self,
        node: Option<&Node>,
        process: &Node,
        version: Version,
        tool: bool,
    ) -> Vec<Parameter> {
        if process.get("inputs").is_none() {
            self.push(
                Diagnostic::new(process.at, "`inputs` is missing")
                    .with_hint("write `inputs: []` where there are none"),
            );
        }
        let mut out = Vec::new();
        for item in self.named_items(node, "inputs", "id", Some("type")) {
            out.extend(self.parameter(&item, version, tool));
        }
        out
    }

    fn parameter(&mut self, item: &Node, version: Version, tool: bool) -> Option<Parameter> {
        let allowed = [
            "id",
            "type",
            "label",
            "doc",
            "secondaryFiles",
            "streamable",
            "format",
            "loadContents",
            "loadListing",
            "default",
            "inputBinding",
            "name",
        ];
        let fields = self.fields(item, "an input", &allowed);
        let name = self.name(fields, "an input")?;
        let kind = match item.get("type") {
            Some(kind) if kind.as_str() == Some("stdin") => Some(Type::File),
            Some(kind) => self.schema(kind, version, Side::Input),
            None => {
                self.error(item.at, format!("the input `{name}` needs a `type`"));
                None
            }
        };
        let load_contents = fields.get("loadContents");
        if version < Version::V1_1 {
            for key in ["loadContents", "loadListing"] {
                if let Some(node) = fields.get(key) {
                    self.error(
                        node.at,
                        format!("`{key}` of an input needs CWL v1.1, and this document is {version}"),
                    );
                }
            }
        }
        let binding = fields.get("inputBinding");
        let bound_contents = binding.and_then(|b| b.get("loadContents"));
        let format = self.formats(fields.get("format"), version);
        Some(Parameter {
            name,
            at: item.at,
            label: fields.get("label").and_then(Node::as_str).map(str::to_owned),
            doc: fields.get("doc").and_then(doc),
            kind: kind?,
            default: item.get("default").map(|n| self.documents.value(n)),
            binding: binding.filter(|_| tool).and_then(|n| self.binding(n, version)),
            secondary_files: self.secondary_files(fields.get("secondaryFiles"), version),
            format,
            load_contents: self.boolean(load_contents.or(bound_contents), "loadContents").unwrap_or(false),
            load_listing: self.listing(fields.get("loadListing")),
            streamable: self.boolean(fields.get("streamable"), "streamable").unwrap_or(false),
        })
    }

    pub(super) fn outputs(&mut self, node: Option<&Node>, process: &Node, version: Version) -> Vec<Output> {
        if process.get("outputs").is_none() {
            self.push(
                Diagnostic::new(process.at, "`outputs` is missing")
                    .with_hint("write `outputs: []` where there are none"),
            );
        }
        let mut out = Vec::new();
        for item in self.named_items(node, "outputs", "id", Some("type")) {
            out.extend(self.output(&item, version));
        }
        out
    }

    fn output(&mut self, item: &Node, version: Version) -> Option<Output> {
        let allowed = [
            "id",
            "type",
            "label",
            "doc",
            "secondaryFiles",
            "streamable",
            "format",
            "outputBinding",
            "outputSource",
            "linkMerge",
            "pickValue",
            "name",
        ];
        let fields = self.fields(item, "an output", &allowed);
        let name = self.name(fields, "an output")?;
        let kind = match item.get("type") {
            Some(kind) if matches!(kind.as_str(), Some("stdout" | "stderr")) => Some(Type::File),
            Some(kind) => self.schema(kind, version, Side::Output),
            None => {
                self.error(item.at, format!("the output `{name}` needs a `type`"));
                None
            }
        };
        let format = fields.get("format").map(|n| self.format(n, version));
        Some(Output {
            name,
            at: item.at,
            label: fields.get("label").and_then(Node::as_str).map(str::to_owned),
            doc: fields.get("doc").and_then(doc),
            kind: kind?,
            binding: fields.get("outputBinding").and_then(|n| self.output_binding(n, version)),
            secondary_files: self.secondary_files(fields.get("secondaryFiles"), version),
            format,
            link: Link::default(),
        })
    }

    fn name(&mut self, fields: Fields<'_>, what: &str) -> Option<Arc<str>> {
        match fields.get("id").or(fields.get("name")).and_then(Node::as_str) {
            Some(id) if !short(id).is_empty() => Some(short(id).into()),
            _ => {
                self.error(fields.node.at, format!("{what} needs an `id`"));
                None
            }
        }
    }

    pub(super) fn binding(&mut self, node: &Node, version: Version) -> Option<Binding> {
        if node.as_map().is_none() {
            self.error(node.at, format!("a binding is a mapping, and this is {}", node.kind_name()));
            return None;
        }
        let allowed =
            ["position", "prefix", "separate", "itemSeparator", "valueFrom", "shellQuote", "loadContents"];
        let fields = self.fields(node, "a binding", &allowed);
        let text = |loader: &mut Loader, key: &str| match fields.get(key) {
            Some(node) => match node.as_str() {
                Some(text) => Some(text.to_owned()),
                None => {
                    loader.error(node.at, format!("`{key}` is {}, and must be a string", node.kind_name()));
                    None
                }
            },
            None => None,
        };
        let prefix = text(self, "prefix");
        let item_separator = text(self, "itemSeparator");
        let position = fields.get("position").map(|n| {
            let field = self.field(n, version);
            match &field {
                Field::Fixed(Value::Int(_)) => {}
                Field::Text(_) if version >= Version::V1_1 => {}
                _ => self.error(n.at, "`position` is an integer, or from v1.1 on an expression"),
            }
            field
        });
        Some(Binding {
            position,
            prefix,
            separate: self.boolean(fields.get("separate"), "separate"),
            item_separator,
            value_from: fields.get("valueFrom").and_then(|n| self.text(n, version)),
            shell_quote: self.boolean(fields.get("shellQuote"), "shellQuote"),
        })
    }

    pub(super) fn output_binding(&mut self, node: &Node, version: Version) -> Option<OutputBinding> {
        if node.as_map().is_none() {
            self.error(node.at, format!("an outputBinding is a mapping, and this is {}", node.kind_name()));
            return None;
        }
        let fields =
            self.fields(node, "an outputBinding", &["glob", "loadContents", "loadListing", "outputEval"]);
        let mut glob = Vec::new();
        for item in fields.get("glob").map(|n| self.list(n, "glob")).unwrap_or_default() {
            glob.extend(self.text(item, version));
        }
        Some(OutputBinding {
            literal: false,
            glob,
            load_contents: self.boolean(fields.get("loadContents"), "loadContents").unwrap_or(false),
            load_listing: self.listing(fields.get("loadListing")),
            output_eval: fields.get("outputEval").and_then(|n| self.text(n, version)),
        })
    }

    pub(super) fn secondary_files(&mut self, node: Option<&Node>, version: Version) -> Vec<SecondaryFile> {
        let Some(node) = node else { return Vec::new() };
        let mut out = Vec::new();
        for item in self.list(node, "secondaryFiles") {
            match &item.kind {
                Kind::Str(text) => {
                    let text = Text::parse(text, escapes(version), true);
                    let optional = text.is_plain() && text.source.ends_with('?') && version >= Version::V1_1;
                    if optional {
                        let pattern = Text::plain(&text.source[..text.source.len() - 1]);
                        out.push(SecondaryFile { pattern, required: Some(Field::Fixed(Value::Bool(false))) });
                    } else {
                        out.push(SecondaryFile { pattern: text, required: None });
                    }
                }
                Kind::Map(_) if version >= Version::V1_1 => {
                    let fields = self.fields(item, "a secondary file", &["pattern", "required"]);
                    let Some(pattern) = fields.get("pattern") else {
                        self.error(item.at, "a secondary file needs a `pattern`");
                        continue;
                    };
                    let required = fields.get("required").map(|n| self.field(n, version));
                    let Some(mut text) = self.text(pattern, version) else { continue };
                    let mut required = required;
                    if text.is_plain() && text.source.ends_with('?') {
                        text = Text::plain(&text.source[..text.source.len() - 1]);
                        required = required.or(Some(Field::Fixed(Value::Bool(false))));
                    }
                    out.push(SecondaryFile { pattern: text, required });
                }
                Kind::Map(_) => {
                    self.push(
                        Diagnostic::new(
                            item.at,
                            format!(
                                "`pattern` of a secondary file needs CWL v1.1, and this document is {version}"
                            ),
                        )
                        .with_hint("write the pattern as a string, or change `cwlVersion`"),
                    );
                }
                _ => self.error(
                    item.at,
                    format!("a secondary file is a pattern, and this is {}", item.kind_name()),
                ),
            }
        }
        out
    }

    /// Formats of an input: names or expressions.
    pub(super) fn formats(&mut self, node: Option<&Node>, version: Version) -> Vec<Field> {
        let Some(node) = node else { return Vec::new() };
        self.list(node, "format").into_iter().map(|n| self.format(n, version)).collect()
    }

    fn format(&mut self, node: &Node, version: Version) -> Field {
        match self.field(node, version) {
            Field::Fixed(Value::String(text)) => Field::Fixed(self.documents.expand(&text, node.at).into()),
            other => other,
        }
    }
}

/// `type: stdout`, `stderr` and `stdin`: what they stand for.
pub(super) fn shorthands(
    loader: &mut Loader,
    fields: Fields<'_>,
    id: &str,
    tool: &mut Tool,
    inputs: &mut [Parameter],
    outputs: &mut [Output],
    version: Version,
) {
    let is = |list: &str, name: &str, what: &str| {
        let Some(node) = fields.get(list) else { return false };
        let of = |item: &Node| item.get("type").or(Some(item)).and_then(Node::as_str) == Some(what);
        match &node.kind {
            Kind::Map(entries) => entries.iter().any(|e: &Entry| short(&e.key) == name && of(&e.value)),
            Kind::Seq(items) => items.iter().any(|item| {
                item.get("id").and_then(Node::as_str).is_some_and(|id| short(id) == name)
                    && item.get("type").and_then(Node::as_str) == Some(what)
            }),
            _ => false,
        }
    };
    for output in outputs.iter_mut() {
        for (what, stream) in [("stdout", &mut tool.stdout), ("stderr", &mut tool.stderr)] {
            if !is("outputs", &output.name, what) {
                continue;
            }
            if output.binding.is_some() {
                loader.error(
                    output.at,
                    format!("the output `{}` is {what}, and cannot have an outputBinding", output.name),
                );
            }
            let name = stream.get_or_insert_with(|| {
                // A name that no tool makes by itself, and the same in each run.
                let hash = fingerprint(&[id, &output.name, what]);
                Text::plain(&format!("{hash:016x}.{what}"))
            });
            output.binding =
                Some(OutputBinding { glob: vec![name.clone()], literal: true, ..OutputBinding::default() });
        }
    }
    for input in inputs.iter() {
        if !is("inputs", &input.name, "stdin") {
            continue;
        }
        if tool.stdin.is_some() || input.binding.is_some() {
            loader.error(input.at, format!("the input `{}` is stdin, so nothing else may be", input.name));
        }
        tool.stdin =
            Some(Text::parse(&format!("$(inputs[\"{}\"].path)", input.name), escapes(version), true));
    }
}

/// FNV-1a over parts.
fn fingerprint(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for b in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}
