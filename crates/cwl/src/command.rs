//! The command line of a tool (CWL CommandLineTool, "Input binding").
//!
//! Each binding gets a key: the position at each level that leads to it, with the index of a list or the name of a field
//! after it. Sorted by their keys they are the command line.

use crate::expression::{Failed, Scope};
use crate::model::{Argument, Field, Process, Tool};
use crate::type_system::{Binding, Type};
use crate::value::Value;

/// A part of the key. Numbers come before names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(i64),
    Name(String),
}

/// Arguments that belong together.
struct Bound {
    key: Vec<Part>,
    words: Vec<String>,
    quote: bool,
}

/// What is wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Expression(#[from] Failed),
    #[error("{0}")]
    Wrong(String),
}

/// What bindings see.
#[derive(Clone, Copy)]
pub struct Building<'a> {
    pub inputs: &'a Value,
    pub runtime: &'a Value,
    pub js: Option<&'a crate::js::Library>,
    pub shell: bool,
}

impl Building<'_> {
    fn scope<'s>(&'s self, this: &'s Value) -> Scope<'s> {
        Scope { inputs: self.inputs, this, runtime: self.runtime, js: self.js }
    }
}

/// The words of the command; with ShellCommandRequirement the shell and one script.
pub fn line(process: &Process, tool: &Tool, building: Building<'_>) -> Result<Vec<String>, Error> {
    let mut bound = Vec::new();
    for (i, argument) in tool.arguments.iter().enumerate() {
        let mut key = vec![Part::Number(0), Part::Number(i as i64)];
        match argument {
            Argument::Text(text) => {
                let value = text.eval(building.scope(&Value::Null))?;
                let words = words(&Binding::default(), &value, false)?;
                bound.push(Bound { key, words, quote: true });
            }
            Argument::Binding(binding) => {
                key[0] = Part::Number(position(binding, &Value::Null, building)?);
                let value = match &binding.value_from {
                    Some(text) => text.eval(building.scope(&Value::Null))?,
                    None => Value::Null,
                };
                let words = words(binding, &value, true)?;
                bound.push(Bound { key, words, quote: binding.shell_quote.unwrap_or(true) });
            }
        }
    }
    for input in &process.inputs {
        let value = building.inputs.get(&input.name).unwrap_or(&Value::Null);
        collect(&input.kind, input.binding.as_ref(), value, &[], &input.name, building, &mut bound)?;
    }
    bound.sort_by(|a, b| a.key.cmp(&b.key));
    let quote = |word: &str| if building.shell { quoted(word) } else { word.to_owned() };
    let mut out: Vec<String> = tool.base_command.iter().map(|word| quote(word)).collect();
    for one in bound {
        if one.quote {
            out.extend(one.words.iter().map(|word| quote(word)));
        } else {
            out.extend(one.words);
        }
    }
    if building.shell {
        out = vec!["/bin/sh".into(), "-c".into(), out.join(" ")];
    }
    if let Some(word) = out.iter().find(|word| word.contains('\0')) {
        return Err(Error::Wrong(format!("the argument {word:?} holds a null byte")));
    }
    Ok(out)
}

fn position(binding: &Binding, value: &Value, building: Building<'_>) -> Result<i64, Error> {
    let found = match &binding.position {
        None => return Ok(0),
        Some(Field::Fixed(value)) => value.clone(),
        Some(Field::Text(text)) => text.eval(building.scope(value))?,
    };
    match found {
        Value::Int(n) => Ok(n),
        Value::Null => Ok(0),
        other => Err(Error::Wrong(format!(
            "`position` gives {}, and must give an integer or null",
            other.kind_name()
        ))),
    }
}

fn collect(
    kind: &Type,
    binding: Option<&Binding>,
    value: &Value,
    above: &[Part],
    name: &str,
    building: Building<'_>,
    out: &mut Vec<Bound>,
) -> Result<(), Error> {
    if value.is_null() {
        return Ok(());
    }
    let mut key = above.to_vec();
    let mut separated = false;
    if let Some(binding) = binding {
        key.push(Part::Number(position(binding, value, building)?));
        key.push(Part::Name(name.to_owned()));
        let computed = match &binding.value_from {
            Some(text) => Some(text.eval(building.scope(value))?),
            None => None,
        };
        let words = words(binding, computed.as_ref().unwrap_or(value), computed.is_some())?;
        out.push(Bound { key: key.clone(), words, quote: binding.shell_quote.unwrap_or(true) });
        if computed.is_some() {
            // The value is replaced, with all that is in it.
            return Ok(());
        }
        separated = binding.item_separator.is_some();
    }
    match (kind.of(value).unwrap_or(kind), value) {
        (Type::Array(array), Value::Array(items)) => {
            let own = array.binding.as_ref();
            // A list that is bound itself gives its items one by one, unless they are joined.
            let plain = Binding::default();
            let of_items = match (own, binding) {
                (Some(own), _) => Some(own),
                (None, Some(_)) if !separated => Some(&plain),
                _ => None,
            };
            for (i, item) in items.iter().enumerate() {
                let mut key = key.clone();
                if binding.is_none()
                    && let Some(own) = own
                {
                    key.push(Part::Number(position(own, item, building)?));
                    key.push(Part::Name(name.to_owned()));
                }
                key.push(Part::Number(i as i64));
                // Items that are lists or records bind themselves.
                collect(&array.items, of_items, item, &key, name, building, out)?;
            }
        }
        (Type::Record(record), Value::Map(map)) => {
            if binding.is_none()
                && let Some(own) = &record.binding
            {
                key.push(Part::Number(position(own, value, building)?));
                key.push(Part::Name(name.to_owned()));
                let words = words(own, value, false)?;
                out.push(Bound { key: key.clone(), words, quote: own.shell_quote.unwrap_or(true) });
            }
            for field in &record.fields {
                let inner = map.get(&field.name).unwrap_or(&Value::Null);
                collect(&field.kind, field.binding.as_ref(), inner, &key, &field.name, building, out)?;
            }
        }
        (Type::Enum(of), Value::String(_)) if binding.is_none() => {
            if let Some(own) = &of.binding {
                key.push(Part::Number(position(own, value, building)?));
                key.push(Part::Name(name.to_owned()));
                let computed = match &own.value_from {
                    Some(text) => Some(text.eval(building.scope(value))?),
                    None => None,
                };
                let words = words(own, computed.as_ref().unwrap_or(value), computed.is_some())?;
                out.push(Bound { key, words, quote: own.shell_quote.unwrap_or(true) });
            }
        }
        _ => {}
    }
    Ok(())
}

/// The words that one binding gives for a value.
fn words(binding: &Binding, value: &Value, computed: bool) -> Result<Vec<String>, Error> {
    let separate = binding.separate.unwrap_or(true);
    let prefix = binding.prefix.as_deref();
    if prefix.is_none() && !separate {
        return Err(Error::Wrong("`separate: false` needs a `prefix`".into()));
    }
    let alone = || prefix.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let text = match value {
        Value::Null | Value::Bool(false) => return Ok(Vec::new()),
        Value::Bool(true) => return Ok(alone()),
        Value::Array(items) if items.is_empty() => return Ok(Vec::new()),
        Value::Array(items) => match &binding.item_separator {
            Some(separator) => items.iter().map(text_of).collect::<Result<Vec<_>, _>>()?.join(separator),
            None if computed => {
                let mut out = alone();
                for item in items.iter() {
                    out.push(text_of(item)?);
                }
                return Ok(out);
            }
            None => return Ok(alone()),
        },
        Value::Map(_) if !value.is_file() && !value.is_directory() => return Ok(alone()),
        other => text_of(other)?,
    };
    Ok(match prefix {
        Some(prefix) if separate => vec![prefix.to_owned(), text],
        Some(prefix) => vec![format!("{prefix}{text}")],
        None => vec![text],
    })
}

fn text_of(value: &Value) -> Result<String, Error> {
    if value.is_file() || value.is_directory() {
        return match value.text("path") {
            Some(path) => Ok(path.to_owned()),
            None => Err(Error::Wrong(format!(
                "the {} {} is not an input of this tool, so it has no path",
                value.class().unwrap_or_default(),
                value.text("basename").unwrap_or_default()
            ))),
        };
    }
    Ok(value.argument())
}

/// A word for the shell, in quotes where it needs them.
pub fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"@%+=:,./-_".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\"'\"'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_one_binding() {
        let with = |prefix: Option<&str>, separate: Option<bool>, separator: Option<&str>| Binding {
            prefix: prefix.map(str::to_owned),
            separate,
            item_separator: separator.map(str::to_owned),
            ..Binding::default()
        };
        let list = Value::array(vec![Value::Int(1), Value::Int(2)]);
        let table: &[(Binding, Value, &[&str])] = &[
            (with(None, None, None), "x y".into(), &["x y"]),
            (with(Some("-a"), None, None), "x".into(), &["-a", "x"]),
            (with(Some("-a="), Some(false), None), "x".into(), &["-a=x"]),
            (with(Some("-a"), None, None), Value::Bool(true), &["-a"]),
            (with(Some("-a"), None, None), Value::Bool(false), &[]),
            (with(None, None, None), Value::Bool(true), &[]),
            (with(Some("-a"), None, Some(",")), list.clone(), &["-a", "1,2"]),
            (with(Some("-a"), None, None), list, &["-a"]),
            (with(Some("-a"), None, None), Value::array(Vec::new()), &[]),
            (with(Some("-a"), None, Some(",")), Value::array(Vec::new()), &[]),
        ];
        for (binding, value, expected) in table {
            assert_eq!(&words(binding, value, false).unwrap(), expected);
        }
        assert!(words(&with(None, Some(false), None), &"x".into(), false).is_err());
    }

    #[test]
    fn words_for_the_shell() {
        for (word, expected) in
            [("a", "a"), ("a b", "'a b'"), ("", "''"), ("it's", "'it'\"'\"'s'"), ("$(x)", "'$(x)'")]
        {
            assert_eq!(quoted(word), expected);
        }
    }
}
