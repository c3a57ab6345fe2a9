//! Types of parameters as documents write them: shorthands, schemas, and names of SchemaDefRequirement.

use std::sync::Arc;

use super::{Fields, Loader, short};
use crate::document::{Diagnostic, nearest};
use crate::model::Version;
use crate::tree::{At, Kind, Node};
use crate::type_system::{ArrayType, EnumType, RecordField, RecordType, Type};

const PRIMITIVES: [&str; 10] =
    ["null", "boolean", "int", "long", "float", "double", "string", "File", "Directory", "Any"];
/// Types within types.
const DEEPEST: usize = 64;

/// What the place of a type allows beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Input,
    Output,
}

impl Loader {
    /// Takes down the named types of all processes in a document.
    pub(super) fn schema_defs(&mut self, node: &Node) {
        match node.get("$graph").map_or(node.as_seq(), Node::as_seq) {
            Some(items) => items.iter().for_each(|item| self.local_schema_defs(item)),
            None => self.local_schema_defs(node),
        }
    }

    /// Takes down the named types of one process.
    pub(super) fn local_schema_defs(&mut self, node: &Node) {
        for key in ["requirements", "hints"] {
            let Some(list) = node.get(key) else { continue };
            let types = match &list.kind {
                Kind::Seq(items) => items
                    .iter()
                    .find(|i| i.get("class").and_then(Node::as_str) == Some("SchemaDefRequirement"))
                    .and_then(|i| i.get("types")),
                Kind::Map(_) => list.get("SchemaDefRequirement").and_then(|i| i.get("types")),
                _ => None,
            };
            let Some(types) = types.and_then(Node::as_seq) else { continue };
            for one in types {
                self.name_type(one);
            }
        }
    }

    fn name_type(&mut self, node: &Node) {
        let Some(name) = node.get("name") else { return };
        let Some(text) = name.as_str() else { return };
        let fragment = text.rsplit('#').next().unwrap_or(text).to_owned();
        self.named.insert((name.at.file, fragment), node.clone());
        // Fields of a named record may be named as well.
        for field in node.get("fields").and_then(Node::as_seq).unwrap_or_default() {
            if let Some(inner) = field.get("type").filter(|t| t.get("name").is_some()) {
                self.name_type(inner);
            }
        }
    }

    /// A type.
    pub(crate) fn schema(&mut self, node: &Node, version: Version, side: Side) -> Option<Type> {
        self.schema_below(node, version, side, 0)
    }

    fn schema_below(&mut self, node: &Node, version: Version, side: Side, depth: usize) -> Option<Type> {
        if depth > DEEPEST {
            self.error(node.at, format!("types are nested more than {DEEPEST} deep"));
            return None;
        }
        match &node.kind {
            Kind::Str(text) => self.shorthand(text, node.at, version, side, depth),
            Kind::Seq(items) => {
                let types: Option<Vec<Type>> =
                    items.iter().map(|item| self.schema_below(item, version, side, depth + 1)).collect();
                let mut types = types?;
                if types.len() == 1 { types.pop() } else { Some(Type::union(types)) }
            }
            Kind::Map(_) => self.constructed(node, version, side, depth),
            Kind::Null => Some(Type::Null),
            _ => {
                self.error(node.at, format!("a type is needed, and this is {}", node.kind_name()));
                None
            }
        }
    }

    fn shorthand(&mut self, text: &str, at: At, version: Version, side: Side, depth: usize) -> Option<Type> {
        if let Some(inner) = text.strip_suffix('?') {
            return self.shorthand(inner, at, version, side, depth + 1).map(Type::optional);
        }
        if let Some(inner) = text.strip_suffix("[]") {
            if inner.ends_with("[]") && version < Version::V1_3 {
                self.push(
                    Diagnostic::new(
                        at,
                        format!("`{text}`: the shorthand for arrays of arrays needs CWL v1.3"),
                    )
                    .with_hint("write {type: array, items: …}"),
                );
            }
            return self.shorthand(inner, at, version, side, depth + 1).map(Type::array);
        }
        Some(match text {
            "null" => Type::Null,
            "boolean" => Type::Boolean,
            "int" => Type::Int,
            "long" => Type::Long,
            "float" => Type::Float,
            "double" => Type::Double,
            "string" => Type::String,
            "File" => Type::File,
            "Directory" => Type::Directory,
            "Any" => Type::Any,
            name => return self.named_type(name, at, version, side, depth),
        })
    }

    fn named_type(&mut self, name: &str, at: At, version: Version, side: Side, depth: usize) -> Option<Type> {
        let (file, fragment) = match name.split_once('#') {
            Some((path, fragment)) if !path.is_empty() => {
                let path = match self.documents.locate(path, at) {
                    Ok(path) => path,
                    Err(e) => {
                        self.push(e);
                        return None;
                    }
                };
                let file = match self.documents.read(&path, at) {
                    Ok((file, node)) => {
                        // A file of types may be named without being imported.
                        let items: Vec<Node> = match node.as_seq() {
                            Some(items) => items.to_vec(),
                            None => vec![(*node).clone()],
                        };
                        items.iter().for_each(|item| self.name_type(item));
                        file
                    }
                    Err(e) => {
                        self.push(e);
                        return None;
                    }
                };
                (file, fragment)
            }
            Some((_, fragment)) => (at.file, fragment),
            None => (at.file, name),
        };
        let key = (file, fragment.to_owned());
        let found = self.named.get_key_value(&key).or_else(|| {
            // The name as the process that defines it would write it, or one of an imported document.
            self.named
                .iter()
                .filter(|((_, other), _)| short(other) == short(fragment))
                .min_by_key(|((of, _), _)| u32::from(*of != file))
        });
        let Some((key, node)) = found.map(|(k, n)| (k.clone(), n.clone())) else {
            let names: Vec<&str> = self.named.keys().map(|(_, n)| short(n)).chain(PRIMITIVES).collect();
            let mut error = Diagnostic::new(at, format!("`{name}` is no type"));
            error.hint = Some(match nearest(short(fragment), names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}, and what SchemaDefRequirement defines", PRIMITIVES.join(", ")),
            });
            self.push(error);
            return None;
        };
        if self.named_loading.contains(&key) {
            self.error(at, format!("the type `{name}` holds itself"));
            return None;
        }
        self.named_loading.push(key);
        let found = self.schema_below(&node, version, side, depth + 1);
        self.named_loading.pop();
        found
    }

    fn constructed(&mut self, node: &Node, version: Version, side: Side, depth: usize) -> Option<Type> {
        let Some(kind) = node.get("type") else {
            self.push(
                Diagnostic::new(node.at, "a schema of a type needs a `type`")
                    .with_hint("array, enum or record"),
            );
            return None;
        };
        let binding_key = match side {
            Side::Input => "inputBinding",
            Side::Output => "outputBinding",
        };
        let common = ["type", "label", "doc", "name", binding_key];
        let with =
            |more: &[&'static str]| -> Vec<&'static str> { common.iter().chain(more).copied().collect() };
        match kind.as_str() {
            Some("array") => {
                let fields = self.fields(node, "an array type", &with(&["items", "inputBinding"]));
                let Some(items) = fields.get("items").or(node.get("items")) else {
                    self.error(node.at, "an array type needs `items`");
                    return None;
                };
                let items = self.schema_below(items, version, side, depth + 1)?;
                let binding = self.input_binding(fields, version, side);
                Some(Type::Array(Arc::new(ArrayType { items, binding })))
            }
            Some("enum") => {
                let fields = self.fields(node, "an enum type", &with(&["symbols", "inputBinding"]));
                let symbols = self.strings(fields.get("symbols"), "symbols");
                if symbols.is_empty() {
                    self.error(node.at, "an enum type needs `symbols`");
                }
                let symbols = symbols
                    .into_iter()
                    .map(|s| if s.contains('#') { short(&s).to_owned() } else { s })
                    .collect();
                let binding = self.input_binding(fields, version, side);
                Some(Type::Enum(Arc::new(EnumType { name: name_of(fields), symbols, binding })))
            }
            Some("record") => {
                let fields = self.fields(node, "a record type", &with(&["fields", "inputBinding"]));
                let mut out = Vec::new();
                for item in self.named_items(fields.get("fields"), "fields", "name", Some("type")) {
                    out.extend(self.record_field(&item, version, side, depth));
                }
                let binding = self.input_binding(fields, version, side);
                Some(Type::Record(Arc::new(RecordType { name: name_of(fields), fields: out, binding })))
            }
            _ => {
                let written = kind.as_str().unwrap_or_default();
                let mut error = Diagnostic::new(kind.at, "the `type` of a schema is array, enum or record");
                if PRIMITIVES.contains(&written) || kind.as_str().is_none() {
                    error = error.with_hint("write the type itself, without the mapping around it");
                }
                self.push(error);
                None
            }
        }
    }

    fn record_field(
        &mut self,
        item: &Node,
        version: Version,
        side: Side,
        depth: usize,
    ) -> Option<RecordField> {
        let mut allowed = vec!["name", "type", "label", "doc", "secondaryFiles", "streamable", "format"];
        match side {
            Side::Input => allowed.extend(["inputBinding", "loadContents", "loadListing"]),
            Side::Output => allowed.extend(["outputBinding", "inputBinding"]),
        }
        let fields = self.fields(item, "a field of a record", &allowed);
        let Some(name) = fields.get("name").and_then(Node::as_str) else {
            self.error(item.at, "a field of a record needs a `name`");
            return None;
        };
        let Some(kind) = fields.node.get("type") else {
            self.error(item.at, format!("the field `{}` needs a `type`", short(name)));
            return None;
        };
        let kind = self.schema_below(kind, version, side, depth + 1)?;
        let format = self.formats(fields.get("format"), version);
        let output = if side == Side::Output {
            fields.get("outputBinding").and_then(|n| self.output_binding(n, version))
        } else {
            None
        };
        let own_contents = fields.get("inputBinding").and_then(|b| b.get("loadContents"));
        Some(RecordField {
            name: short(name).into(),
            kind,
            binding: self.input_binding(fields, version, side),
            secondary_files: self.secondary_files(fields.get("secondaryFiles"), version),
            format,
            load_contents: self
                .boolean(fields.get("loadContents").or(own_contents), "loadContents")
                .unwrap_or(false),
            load_listing: self.listing(fields.get("loadListing")),
            output,
        })
    }

    fn input_binding(
        &mut self,
        fields: Fields<'_>,
        version: Version,
        side: Side,
    ) -> Option<crate::type_system::Binding> {
        match side {
            Side::Input => fields.get("inputBinding").and_then(|n| self.binding(n, version)),
            Side::Output => None,
        }
    }
}

fn name_of(fields: Fields<'_>) -> Option<String> {
    fields.get("name").and_then(Node::as_str).map(|name| short(name).to_owned())
}
