//! `--format`: a table, JSON, or a template with fields (`{{.Name}}\t{{.ID}}`), the part of Go's
//! text/template that people use with docker in scripts.

use std::str::FromStr;

use isles_spec::Error;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// How data is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    Table,
    Json,
    Template(Template),
}

/// Text with fields between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The names from the top; none is the whole object. `json` says how it is written.
    Field {
        path: Vec<String>,
        json: bool,
    },
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "table" => Ok(Format::Table),
            "json" => Ok(Format::Json),
            t if t.contains("{{") => t.parse().map(Format::Template),
            t => Err(Error::new(format!("unknown format '{t}'"))
                .with_hint("known are table, json, and templates such as '{{.ID}}'")),
        }
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::new(format!("invalid template '{text}': {why}"))
                .with_hint("a field is written {{.Name}}, {{.Outer.Inner}} or {{json .Name}}")
        };
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(unescape(before)));
            }
            let (action, after) = after.split_once("}}").ok_or_else(|| bad("'{{' has no '}}'"))?;
            let action = action.trim();
            let (json, field) = match action.strip_prefix("json ") {
                Some(field) => (true, field.trim()),
                None => (false, action),
            };
            let names = field.strip_prefix('.').ok_or_else(|| bad("only fields and json are known"))?;
            let path: Vec<String> = names.split('.').filter(|n| !n.is_empty()).map(str::to_owned).collect();
            let plain = |n: &String| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !path.iter().all(plain) {
                return Err(bad("only fields and json are known"));
            }
            parts.push(Part::Field { path, json });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(unescape(rest)));
        }
        Ok(Template(parts))
    }
}

/// A shell does not turn `\t` into a tab between single quotes, so the template does.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

impl Format {
    /// One object and a line end.
    pub fn object<T: Serialize>(&self, object: &T) -> Result<String, Failure> {
        let value = to_value(object)?;
        match self {
            Format::Template(template) => Ok(template.render(&value)? + "\n"),
            Format::Table | Format::Json => Ok(format!("{value:#}\n")),
        }
    }

    /// Several objects: a JSON list, or a line for each.
    pub fn rows<T: Serialize>(&self, rows: &[T]) -> Result<String, Failure> {
        match self {
            Format::Template(template) => rows.iter().try_fold(String::new(), |mut text, row| {
                text += &template.render(&to_value(row)?)?;
                text.push('\n');
                Ok(text)
            }),
            Format::Table | Format::Json => Ok(format!("{:#}\n", to_value(&rows)?)),
        }
    }
}

/// A number of things, in words: `1 image`, `3 images`.
pub fn count(n: u64, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

fn to_value<T: Serialize>(object: &T) -> Result<Value, Failure> {
    serde_json::to_value(object).map_err(|e| Failure::because("cannot write the result as JSON", &e))
}

impl Template {
    fn render(&self, object: &Value) -> Result<String, Failure> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out += text,
                Part::Field { path, json } => {
                    let mut value = object;
                    for name in path {
                        value = value.get(name).ok_or_else(|| {
                            let known: Vec<&str> =
                                value.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
                            Failure::new(format!("the template names a field '{name}' that is not there"))
                                .with_hint(format!("fields are {}", known.join(", ")))
                        })?;
                    }
                    match value {
                        Value::String(text) if !json => out += text,
                        Value::Null if !json => {}
                        other => out += &other.to_string(),
                    }
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates() {
        let object = json!({"ID": "abc", "Size": 3, "State": {"ExitCode": 1}, "None": null});
        for (template, expected) in [
            ("{{.ID}}", "abc\n"),
            ("{{ .ID }}\\t{{.Size}}", "abc\t3\n"),
            ("{{.State.ExitCode}}!", "1!\n"),
            ("{{json .ID}}", "\"abc\"\n"),
            ("{{json .State}}", "{\"ExitCode\":1}\n"),
            ("[{{.None}}]", "[]\n"),
        ] {
            let format: Format = template.parse().unwrap();
            assert_eq!(format.object(&object).unwrap(), expected, "{template}");
        }
        assert!("{{.Nope}}".parse::<Format>().unwrap().object(&object).is_err());
        for bad in ["x", "{{.ID", "{{range .}}", "{{ID}}", "{{.a b}}"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }
}
