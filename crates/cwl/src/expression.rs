//! Parameter references and expressions in strings (CWL v1.2, "Parameter references", "Expressions").
//!
//! A [`Text`] is taken apart once, when its document is loaded. References are evaluated here; JavaScript is asked only
//! for what is more than a reference, or for a reference that leads nowhere where the process has JavaScript.

use std::sync::Arc;

use crate::js::{self, Library};
use crate::value::Value;

/// A string that may hold expressions.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// As it stands in the document.
    pub source: Arc<str>,
    parts: Parts,
}

#[derive(Debug, Clone, PartialEq)]
enum Parts {
    /// No expression in it.
    Plain,
    /// Nothing but one expression, so the value keeps its type.
    Lone(Part),
    Mixed(Vec<Part>),
    /// Brackets or quotes that nobody closes.
    Broken(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Literal(String),
    Expression(Expression),
}

/// `$(…)` or `${…}`.
#[derive(Debug, Clone, PartialEq)]
struct Expression {
    /// Without the dollar and the brackets.
    code: Arc<str>,
    /// `${…}`: the body of a function.
    body: bool,
    reference: Option<Reference>,
}

/// `inputs.file['size'][0]`, taken apart.
#[derive(Debug, Clone, PartialEq)]
struct Reference {
    root: Arc<str>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq)]
enum Segment {
    Field(Arc<str>),
    Index(usize),
}

/// How a backslash before an expression is read: by the version of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// v1.0 and v1.1: the character after it is kept, whatever it is.
    Old,
    /// v1.2: `\$(`, `\${` and `\\`; any other backslash is one.
    New,
}

/// What expressions know.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub inputs: &'a Value,
    pub this: &'a Value,
    pub runtime: &'a Value,
    /// Present where the process has InlineJavascriptRequirement.
    pub js: Option<&'a Library>,
}

/// An expression that failed: which, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{expression}: {message}")]
pub struct Failed {
    pub expression: String,
    pub message: String,
}

impl Text {
    /// Takes a string apart. Blanks around a lone expression are left out where `strip` says so, which is everywhere
    /// but in InitialWorkDirRequirement.
    pub fn parse(source: &str, escapes: Escapes, strip: bool) -> Text {
        Text { source: source.into(), parts: parts(source, escapes, strip) }
    }

    /// A string that is taken as it is.
    pub fn plain(source: &str) -> Text {
        Text { source: source.into(), parts: Parts::Plain }
    }

    pub fn is_plain(&self) -> bool {
        matches!(self.parts, Parts::Plain)
    }

    /// Whether this is one expression and nothing else.
    pub fn is_lone(&self) -> bool {
        matches!(self.parts, Parts::Lone(_))
    }

    /// What is wrong with it whatever the inputs: unbalanced brackets, and JavaScript where the process has none.
    pub fn check(&self, js: bool) -> Result<(), Failed> {
        let one = |e: &Expression| match &e.reference {
            None if !js => Err(Failed { expression: e.text(), message: NO_SCRIPT.into() }),
            _ => Ok(()),
        };
        match &self.parts {
            Parts::Plain => Ok(()),
            Parts::Broken(message) => {
                Err(Failed { expression: shortened(&self.source), message: message.clone() })
            }
            Parts::Lone(Part::Expression(e)) => one(e),
            Parts::Lone(_) => Ok(()),
            Parts::Mixed(parts) => parts.iter().try_for_each(|part| match part {
                Part::Expression(e) => one(e),
                Part::Literal(_) => Ok(()),
            }),
        }
    }

    /// The inputs that this names as `inputs.NAME`, as far as references tell.
    pub fn inputs(&self) -> Vec<&str> {
        let of = |part: &'_ Part| match part {
            Part::Expression(Expression { reference: Some(r), .. }) if &*r.root == "inputs" => {
                match r.segments.first() {
                    Some(Segment::Field(name)) => Some(name.clone()),
                    _ => None,
                }
            }
            _ => None,
        };
        let found: Vec<Arc<str>> = match &self.parts {
            Parts::Lone(part) => of(part).into_iter().collect(),
            Parts::Mixed(parts) => parts.iter().filter_map(of).collect(),
            _ => Vec::new(),
        };
        // Borrowed from the source, so the answer lives as long as this.
        found
            .iter()
            .filter_map(|name| self.source.find(&**name).map(|i| &self.source[i..i + name.len()]))
            .collect()
    }

    /// The value of this string.
    pub fn eval(&self, scope: Scope<'_>) -> Result<Value, Failed> {
        match &self.parts {
            Parts::Plain => Ok(Value::String(self.source.clone())),
            Parts::Lone(Part::Expression(e)) => e.eval(scope),
            Parts::Lone(Part::Literal(text)) => Ok(Value::from(text.as_str())),
            Parts::Broken(message) => {
                Err(Failed { expression: shortened(&self.source), message: message.clone() })
            }
            Parts::Mixed(parts) => {
                let mut out = String::new();
                for part in parts {
                    match part {
                        Part::Literal(text) => out.push_str(text),
                        Part::Expression(e) => match e.eval(scope)? {
                            Value::String(text) => out.push_str(&text),
                            other => out.push_str(&other.spaced_json()),
                        },
                    }
                }
                Ok(Value::from(out))
            }
        }
    }
}

const NO_SCRIPT: &str = "not a parameter reference, and JavaScript needs InlineJavascriptRequirement";

fn shortened(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((i, _)) => format!("{}…", &text[..i]),
        None => text.to_owned(),
    }
}

impl Expression {
    fn text(&self) -> String {
        let (open, close) = if self.body { ('{', '}') } else { ('(', ')') };
        shortened(&format!("${open}{}{close}", self.code))
    }

    fn eval(&self, scope: Scope<'_>) -> Result<Value, Failed> {
        let fail = |message: String| Failed { expression: self.text(), message };
        let found = match &self.reference {
            Some(reference) => reference.follow(scope),
            None => Err(NO_SCRIPT.to_owned()),
        };
        match (found, scope.js) {
            (Ok(value), _) => Ok(value),
            (Err(_), Some(library)) => js::evaluate(library, &self.code, self.body, scope).map_err(fail),
            (Err(message), None) => Err(fail(message)),
        }
    }
}

impl Reference {
    /// `symbol (.symbol | ['text'] | ["text"] | [number])*`, or nothing.
    fn parse(code: &str) -> Option<Reference> {
        let (root, mut rest) = symbol(code)?;
        let mut segments = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let (name, after) = symbol(after)?;
                segments.push(Segment::Field(name.into()));
                rest = after;
                continue;
            }
            let inner = rest.strip_prefix('[')?;
            if let Some(quote @ ('\'' | '"')) = inner.chars().next() {
                let mut text = String::new();
                let mut chars = inner[1..].char_indices();
                let end = loop {
                    match chars.next()? {
                        (_, '\\') => text.push(chars.next()?.1),
                        (i, c) if c == quote => break i,
                        (_, c) => text.push(c),
                    }
                };
                rest = inner[1 + end + 1..].strip_prefix(']')?;
                segments.push(Segment::Field(text.into()));
            } else {
                let end = inner.find(']')?;
                if end == 0 || !inner[..end].bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                segments.push(Segment::Index(inner[..end].parse().ok()?));
                rest = &inner[end + 1..];
            }
        }
        Some(Reference { root: root.into(), segments })
    }

    fn follow(&self, scope: Scope<'_>) -> Result<Value, String> {
        let mut value = match &*self.root {
            "inputs" => scope.inputs,
            "self" => scope.this,
            "runtime" => scope.runtime,
            "null" if self.segments.is_empty() => return Ok(Value::Null),
            other => return Err(format!("`{other}` is not defined: there are inputs, self and runtime")),
        };
        for (i, segment) in self.segments.iter().enumerate() {
            value = match (value, segment) {
                (Value::Map(map), Segment::Field(name)) => {
                    map.get(name).ok_or_else(|| format!("{} has no field `{name}`", self.up_to(i)))?
                }
                (Value::Array(items), Segment::Index(index)) => items.get(*index).ok_or_else(|| {
                    format!("{} has {} items, so [{index}] is beyond its end", self.up_to(i), items.len())
                })?,
                (Value::Array(items), Segment::Field(name))
                    if &**name == "length" && i + 1 == self.segments.len() =>
                {
                    return Ok(Value::Int(items.len() as i64));
                }
                (other, Segment::Field(name)) => {
                    return Err(format!(
                        "{} is {}, which has no field `{name}`",
                        self.up_to(i),
                        other.kind_name()
                    ));
                }
                (other, Segment::Index(_)) => {
                    return Err(format!("{} is {}, no array", self.up_to(i), other.kind_name()));
                }
            };
        }
        Ok(value.clone())
    }

    fn up_to(&self, segment: usize) -> String {
        let mut text = self.root.to_string();
        for segment in &self.segments[..segment] {
            match segment {
                Segment::Field(name) => text.push_str(&format!(".{name}")),
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }
}

/// One or more word characters at the beginning, and what comes after.
fn symbol(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn parts(source: &str, escapes: Escapes, strip: bool) -> Parts {
    if !source.contains("$(") && !source.contains("${") {
        return Parts::Plain;
    }
    let text = if strip { source.trim() } else { source };
    let bytes = text.as_bytes();
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut i = 0;
    let mut from = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if i + 1 < bytes.len() => {
                literal.push_str(&text[from..i]);
                let rest = &text[i + 1..];
                let next = rest.chars().next().map_or(0, char::len_utf8);
                match escapes {
                    Escapes::Old => literal.push_str(&rest[..next]),
                    Escapes::New if rest.starts_with("$(") || rest.starts_with("${") => {
                        literal.push_str(&rest[..2]);
                        i += 1;
                    }
                    Escapes::New if rest.starts_with('\\') => literal.push('\\'),
                    Escapes::New => literal.push_str(&text[i..i + 1 + next]),
                }
                i += 1 + next;
                from = i;
            }
            b'$' if matches!(bytes.get(i + 1), Some(b'(' | b'{')) => {
                let Some(end) = closing(bytes, i + 1) else {
                    return Parts::Broken("brackets or quotes of the expression are not closed".into());
                };
                literal.push_str(&text[from..i]);
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                let body = bytes[i + 1] == b'{';
                let code = &text[i + 2..end];
                let reference = if body { None } else { Reference::parse(code) };
                parts.push(Part::Expression(Expression { code: code.into(), body, reference }));
                i = end + 1;
                from = i;
            }
            _ => i += 1,
        }
    }
    literal.push_str(&text[from..]);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    match parts.len() {
        1 => Parts::Lone(parts.remove(0)),
        _ => Parts::Mixed(parts),
    }
}

/// The bracket that closes the one at `open`: quotes hide brackets, a backslash hides a quote.
fn closing(bytes: &[u8], open: usize) -> Option<usize> {
    let mut stack: Vec<u8> = Vec::new();
    let mut i = open;
    while i < bytes.len() {
        let b = bytes[i];
        match stack.last() {
            Some(quote @ (b'"' | b'\'')) => {
                if b == b'\\' {
                    i += 1;
                } else if b == *quote {
                    stack.pop();
                }
            }
            _ => match b {
                b'(' => stack.push(b')'),
                b'{' => stack.push(b'}'),
                b'"' | b'\'' => stack.push(b),
                b'\\' => i += 1,
                _ if stack.last() == Some(&b) => {
                    stack.pop();
                    if stack.is_empty() {
                        return Some(i);
                    }
                }
                _ => {}
            },
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Map;

    fn world() -> Value {
        let file: Map = [("size", Value::Int(3)), ("a b", "x".into())].into_iter().collect();
        let list = Value::array(vec!["p".into(), "q".into()]);
        let inputs: Map =
            [("f", Value::map(file)), ("list", list), ("none", Value::Null), ("t", "text".into())]
                .into_iter()
                .collect();
        Value::map(inputs)
    }

    fn eval(text: &str, escapes: Escapes) -> Result<Value, Failed> {
        let inputs = world();
        let null = Value::Null;
        Text::parse(text, escapes, true).eval(Scope {
            inputs: &inputs,
            this: &null,
            runtime: &null,
            js: None,
        })
    }

    #[test]
    fn references_are_followed_and_put_into_strings() {
        let table = [
            ("plain \\$x", Value::from("plain \\$x")),
            ("$(inputs.f.size)", Value::Int(3)),
            ("  $(inputs.f.size)\n", Value::Int(3)),
            ("$(inputs.f['a b'])", "x".into()),
            ("$(inputs[\"f\"].size)", Value::Int(3)),
            ("$(inputs.list[1])", "q".into()),
            ("$(inputs.list.length)", Value::Int(2)),
            ("$(null)", Value::Null),
            ("$(self)", Value::Null),
            ("a-$(inputs.f.size)-$(inputs.list)", "a-3-[\"p\", \"q\"]".into()),
            ("$(inputs.t)$(inputs.none)", "textnull".into()),
            ("\\$(inputs.t) $(inputs.t)", "$(inputs.t) text".into()),
            ("\\\\$(inputs.t)", "\\text".into()),
            ("\\n$(inputs.t)", "\\ntext".into()),
        ];
        for (text, value) in table {
            assert_eq!(eval(text, Escapes::New).unwrap(), value, "{text}");
        }
        assert_eq!(eval("\\n$(inputs.t)", Escapes::Old).unwrap(), "ntext".into());
    }

    #[test]
    fn what_leads_nowhere_is_an_error() {
        let table = [
            ("$(inputs.missing)", "no field `missing`"),
            ("$(inputs.list[2])", "beyond its end"),
            ("$(inputs.t.length)", "which has no field `length`"),
            ("$(null.x)", "`null` is not defined"),
            ("$(inputs.f.size + 1)", "needs InlineJavascriptRequirement"),
            ("${return 1;}", "needs InlineJavascriptRequirement"),
            ("$(inputs.f", "not closed"),
            ("$(\"a)", "not closed"),
        ];
        for (text, part) in table {
            let error = eval(text, Escapes::New).unwrap_err();
            assert!(error.message.contains(part), "{text}: {}", error.message);
        }
    }
}
