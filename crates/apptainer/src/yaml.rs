//! As much of YAML as Apptainer's own settings (`remote.yaml`) are written in: mappings and sequences by indentation,
//! and words on one line. What goes beyond that is refused with its line, never guessed.

use serde_json::{Map, Value};

/// Deeper than this no settings are.
const DEPTH: usize = 16;

struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

/// Reads a document; one without content is `null`. `Err` says in which line something is not understood.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim_end();
        let trimmed = content.trim_start_matches(' ');
        if trimmed.is_empty() || trimmed.starts_with('#') || (lines.is_empty() && trimmed == "---") {
            continue;
        }
        if trimmed.starts_with('\t') {
            return Err(format!("line {number} is indented with a tab"));
        }
        lines.push(Line { number, indent: content.len() - trimmed.len(), text: trimmed });
    }
    let mut at = 0;
    if lines.is_empty() {
        return Ok(Value::Null);
    }
    let indent = lines[0].indent;
    let value = block(&mut lines, &mut at, indent, 0)?;
    match lines.get(at) {
        Some(line) => Err(format!("line {} is indented oddly", line.number)),
        None => Ok(value),
    }
}

/// The lines from `at` on that have this indentation or more.
fn block(lines: &mut [Line<'_>], at: &mut usize, indent: usize, depth: usize) -> Result<Value, String> {
    if depth > DEPTH {
        return Err(format!("line {} is nested too deeply", lines[*at].number));
    }
    let is_item = |line: &Line<'_>| line.text == "-" || line.text.starts_with("- ");
    if lines[*at].text == "{}" || lines[*at].text == "[]" {
        *at += 1;
        return scalar(lines[*at - 1].text, lines[*at - 1].number);
    }
    if is_item(&lines[*at]) {
        let mut list = Vec::new();
        while *at < lines.len() && lines[*at].indent == indent && is_item(&lines[*at]) {
            let line = &mut lines[*at];
            let rest = line.text[1..].trim_start();
            if rest.is_empty() {
                *at += 1;
                list.push(below(lines, at, indent, depth)?);
            } else if key_of(rest).is_some() {
                // The item begins in this line: as if it stood below, two further in.
                line.indent += line.text.len() - rest.len();
                line.text = rest;
                let inner = line.indent;
                list.push(block(lines, at, inner, depth + 1)?);
            } else {
                *at += 1;
                list.push(scalar(rest, lines[*at - 1].number)?);
            }
        }
        return Ok(Value::Array(list));
    }
    let mut map = Map::new();
    while *at < lines.len() && lines[*at].indent == indent && !is_item(&lines[*at]) {
        let (number, text) = (lines[*at].number, lines[*at].text);
        let (key, rest) = key_of(text).ok_or_else(|| format!("line {number} has no 'name: value'"))?;
        *at += 1;
        let value = if rest.is_empty() {
            // A sequence may stand as far out as its name.
            let is_list = lines.get(*at).is_some_and(|next| next.indent == indent && is_item(next));
            if is_list { block(lines, at, indent, depth + 1)? } else { below(lines, at, indent, depth)? }
        } else {
            scalar(rest, number)?
        };
        let key = match scalar(key, number)? {
            Value::String(key) => key,
            other => other.to_string(),
        };
        if map.insert(key, value).is_some() {
            return Err(format!("line {number} repeats a name"));
        }
    }
    Ok(Value::Object(map))
}

/// What is further in than `indent`; nothing is `null`.
fn below(lines: &mut [Line<'_>], at: &mut usize, indent: usize, depth: usize) -> Result<Value, String> {
    match lines.get(*at).map(|next| next.indent) {
        Some(inner) if inner > indent => block(lines, at, inner, depth + 1),
        _ => Ok(Value::Null),
    }
}

/// `name: value`, or `name:`.
fn key_of(text: &str) -> Option<(&str, &str)> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let end = text[1..].find(quote)? + 2;
        let rest = text[end..].strip_prefix(':')?;
        return (rest.is_empty() || rest.starts_with(' ')).then(|| (&text[..end], rest.trim_start()));
    }
    if let Some((key, rest)) = text.split_once(": ") {
        return Some((key, rest.trim_start()));
    }
    text.strip_suffix(':').map(|key| (key, ""))
}

fn scalar(text: &str, number: usize) -> Result<Value, String> {
    let odd = || format!("line {number} has a value that is not understood");
    if let Some(quoted) = text.strip_prefix('"') {
        let body = quoted.strip_suffix('"').ok_or_else(odd)?;
        return serde_json::from_str(&format!("\"{body}\"")).map_err(|_| odd());
    }
    if let Some(quoted) = text.strip_prefix('\'') {
        return Ok(Value::String(quoted.strip_suffix('\'').ok_or_else(odd)?.replace("''", "'")));
    }
    let text = text.split(" #").next().unwrap_or(text).trim_end();
    match text {
        "{}" => return Ok(Value::Object(Map::new())),
        "[]" => return Ok(Value::Array(Vec::new())),
        "true" => return Ok(Value::Bool(true)),
        "false" => return Ok(Value::Bool(false)),
        "null" | "~" | "" => return Ok(Value::Null),
        _ => {}
    }
    if text.starts_with(['{', '[', '&', '*', '!', '|', '>', '%', '@', '`']) {
        return Err(odd());
    }
    Ok(text.parse::<i64>().map_or_else(|_| Value::String(text.to_owned()), Value::from))
}

/// Writes a document that [`parse`] and every YAML reader understands.
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    put(value, 0, &mut text);
    text
}

fn put(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push_str(&format!("{:indent$}{}:", "", word(key)));
                nested(value, indent + 2, out);
            }
        }
        Value::Array(list) => {
            for value in list {
                let mut inner = String::new();
                match value {
                    Value::Object(map) if !map.is_empty() => put(value, indent + 2, &mut inner),
                    other => {
                        out.push_str(&format!("{:indent$}-", ""));
                        nested(other, indent + 2, out);
                        continue;
                    }
                }
                out.push_str(&format!("{:indent$}- {}", "", inner.trim_start()));
            }
        }
        other => out.push_str(&format!("{:indent$}{}\n", "", plain(other))),
    }
}

/// What stands behind a colon or a dash.
fn nested(value: &Value, indent: usize, out: &mut String) {
    let is_empty = |value: &Value| match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => {
            out.push('\n');
            put(value, indent, out);
        }
        other => out.push_str(&format!(" {}\n", plain(other))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// A word as it is where nobody could take it for something else, quoted otherwise.
fn word(text: &str) -> String {
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && !text.ends_with(':')
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off"
        );
    if is_plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_of_apptainer_are_read() {
        let text = "\
# made by apptainer
Active: Mine
Remotes:
  DefaultRemote:
    URI: cloud.apptainer.org
    System: true
    Keyservers:
    - URI: https://keys.openpgp.org
      Skip: false
      External: true
    -
      URI: 'https://other'
  Mine:
    URI: \"a # b\"
    Token: x # said
Credentials: []
";
        let value = parse(text).unwrap();
        assert_eq!(
            value,
            json!({
                "Active": "Mine",
                "Remotes": {
                    "DefaultRemote": {
                        "URI": "cloud.apptainer.org", "System": true,
                        "Keyservers": [
                            {"URI": "https://keys.openpgp.org", "Skip": false, "External": true},
                            {"URI": "https://other"},
                        ],
                    },
                    "Mine": {"URI": "a # b", "Token": "x"},
                },
                "Credentials": [],
            })
        );
        assert_eq!(parse(&write(&value)).unwrap(), value);
        assert_eq!(parse("# nothing\n").unwrap(), Value::Null);
        assert_eq!(parse("- a\n- 1\n- true\n").unwrap(), json!(["a", 1, true]));
    }

    #[test]
    fn what_goes_beyond_is_refused() {
        for (text, line) in [
            ("a: {b: c}\n", 1),
            ("a: |\n  text\n", 1),
            ("a: 1\n\tb: 2\n", 2),
            ("a: 1\n   b: 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: &x 1\n", 1),
            ("a: \"b\n", 1),
            ("word\n", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(&format!("line {line}")), "{text:?}: {error}");
        }
        assert!(parse(&(0..100).map(|n| format!("{:n$}a:\n", "")).collect::<String>()).is_err());
    }
}
