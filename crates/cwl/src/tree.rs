//! Documents as trees in which each node knows its place: YAML 1.2 and JSON by one parser.
//!
//! The scalars are those of YAML 1.2's core schema, with underscores in integers and binary ones, as the reference
//! runner reads them: `yes` and `on` are strings, `010` is ten, a date is a string.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle};

use crate::value::{Map, Value};

/// Nodes below nodes of one document; more is refused.
pub const DEEPEST: usize = 200;
/// Nodes that one document may have once its aliases are written out.
const MOST_NODES: usize = 4_000_000;
/// Bytes of one document.
pub const LONGEST: u64 = 64 << 20;

/// A place in a document: its number among the [`Sources`], its line and column from 1 (0: nowhere).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct At {
    pub file: u32,
    pub line: u32,
    pub column: u32,
}

/// A node and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub kind: Kind,
    pub at: At,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of a mapping, in the order of the document.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: Arc<str>,
    /// Of the key.
    pub at: At,
    pub value: Node,
}

impl Node {
    pub fn null(at: At) -> Node {
        Node { kind: Kind::Null, at }
    }

    pub fn string(text: &str, at: At) -> Node {
        Node { kind: Kind::Str(text.into()), at }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&[Entry]> {
        match &self.kind {
            Kind::Map(entries) => Some(entries),
            _ => None,
        }
    }

    pub fn as_seq(&self) -> Option<&[Node]> {
        match &self.kind {
            Kind::Seq(items) => Some(items),
            _ => None,
        }
    }

    /// A field of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.iter().find(|e| &*e.key == key).map(|e| &e.value)
    }

    /// What a reader calls this kind of node.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => "null",
            Kind::Bool(_) => "a boolean",
            Kind::Int(_) => "an integer",
            Kind::Float(_) => "a number",
            Kind::Str(_) => "a string",
            Kind::Seq(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// The value without its places.
    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Int(n) => Value::Int(*n),
            Kind::Float(x) => Value::Float(*x),
            Kind::Str(text) => Value::String(text.clone()),
            Kind::Seq(items) => Value::array(items.iter().map(Node::to_value).collect()),
            Kind::Map(entries) => {
                Value::map(entries.iter().map(|e| (e.key.clone(), e.value.to_value())).collect::<Map>())
            }
        }
    }
}

/// A document that was read.
#[derive(Debug)]
pub struct Source {
    /// As the user named it, for messages.
    pub name: String,
    /// The file, absolute, without `.` and `..`.
    pub path: PathBuf,
    pub text: String,
}

/// All documents of a run, in the order in which they were read.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
    known: HashMap<PathBuf, u32>,
}

impl Sources {
    /// Adds a document, or finds the number it has.
    pub fn add(&mut self, name: &str, path: &Path, text: String) -> u32 {
        if let Some(&number) = self.known.get(path) {
            return number;
        }
        let number = self.files.len() as u32;
        self.files.push(Source { name: name.to_owned(), path: path.to_owned(), text });
        self.known.insert(path.to_owned(), number);
        number
    }

    pub fn get(&self, file: u32) -> Option<&Source> {
        self.files.get(file as usize)
    }

    pub fn all(&self) -> &[Source] {
        &self.files
    }

    /// The folder that relative references of this document begin at.
    pub fn folder(&self, file: u32) -> &Path {
        self.get(file).and_then(|s| s.path.parent()).unwrap_or(Path::new("/"))
    }

    /// `name:line:column`, as compilers write it.
    pub fn place(&self, at: At) -> String {
        match self.get(at.file) {
            Some(source) if at.line > 0 => format!("{}:{}:{}", source.name, at.line, at.column),
            Some(source) => source.name.clone(),
            None => String::new(),
        }
    }

    /// The line of a place, without its end.
    pub fn line(&self, at: At) -> Option<&str> {
        self.get(at.file)?.text.lines().nth(at.line.checked_sub(1)? as usize)
    }
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub at: At,
    pub message: String,
}

/// Reads a text as one YAML document; `file` is its number. An empty text is null.
pub fn parse(text: &str, file: u32) -> Result<Node, Malformed> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder =
        Builder { anchors: HashMap::new(), nodes: 0, stack: Vec::new(), root: None, documents: 0 };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| {
            let mark = e.marker();
            let at = At { file, line: mark.line() as u32, column: mark.col() as u32 + 1 };
            Malformed { at, message: format!("not YAML: {}", describe(&e, text)) }
        })?;
        let at = At { file, line: span.start.line() as u32, column: span.start.col() as u32 + 1 };
        builder.event(event, at)?;
    }
    Ok(builder.root.unwrap_or(Node::null(At { file, line: 1, column: 1 })))
}

/// What the parser says, or what it has no words for: a nesting beyond its own bound, and what follows a value within
/// brackets, which is mostly the `[]` of a type.
fn describe(error: &granit_parser::ScanError, text: &str) -> String {
    const DEEP: usize = 32;
    let said = error.info().to_string();
    if !said.is_empty() {
        return said;
    }
    let depth = text.chars().take(error.marker().index()).fold(0usize, |depth, c| match c {
        '[' | '{' => depth + 1,
        ']' | '}' => depth.saturating_sub(1),
        _ => depth,
    });
    if depth > DEEP {
        return "nested too deep".to_owned();
    }
    "this does not belong here; within { } and [ ], a text with brackets or commas is put into quotes"
        .to_owned()
}

/// A collection that is not closed yet.
struct Open {
    kind: Collected,
    at: At,
    anchor: usize,
}

enum Collected {
    Seq(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(Arc<str>, At)>, merges: Vec<Node> },
}

struct Builder {
    anchors: HashMap<usize, Node>,
    nodes: usize,
    stack: Vec<Open>,
    root: Option<Node>,
    documents: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: At) -> Result<(), Malformed> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Malformed { at, message: "a second document in one file".into() });
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let tag = tag.as_deref().and_then(|t| t.core_suffix().map(str::to_owned));
                let kind = match tag.as_deref() {
                    Some("str") => Kind::Str(text.as_ref().into()),
                    _ if plain => scalar(&text),
                    _ => Kind::Str(text.as_ref().into()),
                };
                self.put(Node { kind, at }, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => self.open(Collected::Seq(Vec::new()), at, anchor)?,
            Event::MappingStart(_, anchor, _) => {
                self.open(Collected::Map { entries: Vec::new(), key: None, merges: Vec::new() }, at, anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.stack.pop() else { return Ok(()) };
                let kind = match open.kind {
                    Collected::Seq(items) => Kind::Seq(items),
                    Collected::Map { mut entries, merges, .. } => {
                        for merged in merges {
                            merge(&mut entries, merged)?;
                        }
                        Kind::Map(entries)
                    }
                };
                self.put(Node { kind, at: open.at }, open.anchor)?;
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Malformed { at, message: "an alias to a node that contains it".into() });
                };
                self.count(size(&node), at)?;
                self.put(node, 0)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, kind: Collected, at: At, anchor: usize) -> Result<(), Malformed> {
        if self.stack.len() >= DEEPEST {
            return Err(Malformed { at, message: format!("nested more than {DEEPEST} deep") });
        }
        self.stack.push(Open { kind, at, anchor });
        Ok(())
    }

    fn count(&mut self, nodes: usize, at: At) -> Result<(), Malformed> {
        self.nodes += nodes;
        if self.nodes > MOST_NODES {
            return Err(Malformed {
                at,
                message: format!("more than {MOST_NODES} nodes, aliases written out"),
            });
        }
        Ok(())
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), Malformed> {
        self.count(1, node.at)?;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.kind {
            Collected::Seq(items) => items.push(node),
            Collected::Map { entries, key, merges } => match key.take() {
                None => *key = Some((key_text(&node)?, node.at)),
                Some((key, _)) if &*key == "<<" => merges.push(node),
                Some((key, at)) => {
                    if entries.iter().any(|e| e.key == key) {
                        return Err(Malformed { at, message: format!("the key `{key}` is given twice") });
                    }
                    entries.push(Entry { key, at, value: node });
                }
            },
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    match &node.kind {
        Kind::Seq(items) => 1 + items.iter().map(size).sum::<usize>(),
        Kind::Map(entries) => 1 + entries.iter().map(|e| size(&e.value)).sum::<usize>(),
        _ => 1,
    }
}

fn key_text(node: &Node) -> Result<Arc<str>, Malformed> {
    Ok(match &node.kind {
        Kind::Str(text) => text.clone(),
        Kind::Null => "".into(),
        Kind::Bool(b) => b.to_string().into(),
        Kind::Int(n) => n.to_string().into(),
        Kind::Float(x) => x.to_string().into(),
        _ => return Err(Malformed { at: node.at, message: "a key must be a string".into() }),
    })
}

/// `<<: *other`: fields that are not given come from there.
fn merge(entries: &mut Vec<Entry>, from: Node) -> Result<(), Malformed> {
    match from.kind {
        Kind::Map(more) => {
            for entry in more {
                if !entries.iter().any(|e| e.key == entry.key) {
                    entries.push(entry);
                }
            }
            Ok(())
        }
        Kind::Seq(items) => items.into_iter().try_for_each(|item| merge(entries, item)),
        _ => Err(Malformed { at: from.at, message: "`<<` needs a mapping".into() }),
    }
}

/// A plain scalar by the core schema.
fn scalar(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" => return Kind::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Kind::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Kind::Float(f64::NAN),
        _ => {}
    }
    let first = text.as_bytes()[0];
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return Kind::Str(text.into());
    }
    if let Some(n) = integer(text) {
        return Kind::Int(n);
    }
    if is_float(text)
        && let Ok(x) = text.replace('_', "").parse::<f64>()
    {
        // `1.23e5` is written out as 123000, and `1.0` as it is.
        let whole = text.contains(['e', 'E']) && x.fract() == 0.0 && x.abs() < 1e15;
        return if whole { Kind::Int(x as i64) } else { Kind::Float(x) };
    }
    Kind::Str(text.into())
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        _ => (10, digits),
    };
    if !digits.as_bytes().first()?.is_ascii_alphanumeric() || digits.ends_with('_') {
        return None;
    }
    let clean: String = digits.chars().filter(|c| *c != '_').collect();
    if !clean.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from_str_radix(&clean, radix).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = usize::from(matches!(bytes[0], b'-' | b'+'));
    let digits = |i: &mut usize| {
        let from = *i;
        while *i < bytes.len() && (bytes[*i].is_ascii_digit() || bytes[*i] == b'_') {
            *i += 1;
        }
        *i > from
    };
    let whole = digits(&mut i);
    let mut fraction = false;
    if bytes.get(i) == Some(&b'.') {
        i += 1;
        fraction = digits(&mut i);
    }
    if !whole && !fraction {
        return false;
    }
    if matches!(bytes.get(i), Some(b'e' | b'E')) {
        i += 1;
        if matches!(bytes.get(i), Some(b'-' | b'+')) {
            i += 1;
        }
        if !digits(&mut i) {
            return false;
        }
    }
    i == bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_those_of_yaml_1_2() {
        let table: &[(&str, Kind)] = &[
            ("yes", Kind::Str("yes".into())),
            ("on", Kind::Str("on".into())),
            ("010", Kind::Int(10)),
            ("0o10", Kind::Int(8)),
            ("0x1F", Kind::Int(31)),
            ("0b11", Kind::Int(3)),
            ("1_000", Kind::Int(1000)),
            ("-7", Kind::Int(-7)),
            ("12:30:45", Kind::Str("12:30:45".into())),
            ("2001-01-01", Kind::Str("2001-01-01".into())),
            ("~", Kind::Null),
            ("4.2e42", Kind::Float(4.2e42)),
            ("1.", Kind::Float(1.0)),
            (".5", Kind::Float(0.5)),
            (".", Kind::Str(".".into())),
            ("-", Kind::Str("-".into())),
            ("-x", Kind::Str("-x".into())),
            ("9223372036854775807", Kind::Int(i64::MAX)),
            ("92233720368547758080", Kind::Float(92233720368547758080.0)),
            ("1.2.3", Kind::Str("1.2.3".into())),
        ];
        for (text, kind) in table {
            assert_eq!(&scalar(text), kind, "{text}");
        }
    }

    #[test]
    fn every_node_knows_its_place() {
        let node = parse("a: 1\nb:\n  - x\n  - {c: d}\n", 3).unwrap();
        let b = node.get("b").unwrap().as_seq().unwrap();
        assert_eq!(b[1].at, At { file: 3, line: 4, column: 5 });
        assert_eq!(b[1].get("c").unwrap().at, At { file: 3, line: 4, column: 9 });
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_place() {
        let deep = "[".repeat(10_000);
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        let table = [
            ("a: 1\na: 2\n", "the key `a` is given twice"),
            (deep.as_str(), "nest"),
            (bomb, "nodes, aliases written out"),
            ("a: &a [*a]", "alias"),
            ("a: [", "not YAML"),
            ("a: {b: File[]}", "a text with brackets or commas is put into quotes"),
            ("--- 1\n--- 2\n", "a second document"),
        ];
        for (text, part) in table {
            let error = parse(text, 0).unwrap_err();
            assert!(error.message.contains(part), "{} for {}", error.message, &text[..text.len().min(30)]);
        }
    }

    #[test]
    fn merge_keys_fill_in_what_is_missing() {
        let node = parse("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n", 0).unwrap();
        let y = node.get("y").unwrap();
        assert_eq!(y.get("a").unwrap().kind, Kind::Int(1));
        assert_eq!(y.get("b").unwrap().kind, Kind::Int(3));
    }
}
