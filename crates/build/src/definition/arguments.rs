//! `{{ NAME }}` in definition files: textual, per stage, replaced before the text is read again.

use std::collections::{BTreeMap, BTreeSet};

use isles_spec::nearest::nearest;

use super::syntax::{self, Definition, SectionKind, Stage};
use crate::position::{Diagnostic, SourceText, Span};

/// A stage may grow to this many bytes by replacement.
const MAX_STAGE: usize = 16 << 20;

/// Values that the caller gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildArguments {
    /// From `--build-arg` and, below it, `--build-arg-file`.
    pub values: BTreeMap<String, String>,
    /// A value that no stage uses is an error, as in the reference; else it is ignored.
    pub strict: bool,
}

/// Replaces the arguments of each stage and reads the stages again.
pub fn resolve(
    source: &SourceText,
    raw: &Definition,
    arguments: &BuildArguments,
) -> Result<Definition, Diagnostic> {
    let mut used = BTreeSet::new();
    let mut definition = Definition::default();
    for stage in &raw.stages {
        let text = &source.text()[stage.span.start..stage.span.end];
        let defaults = defaults(source, stage)?;
        let (text, map) = replace(text, stage.span.start, |name| {
            if let Some(value) = arguments.values.get(name) {
                used.insert(name.to_owned());
                return Some(value.clone());
            }
            // A default may itself name arguments; they are replaced once.
            let value = defaults.get(name)?;
            let inner = |n: &str| {
                let given = arguments.values.get(n);
                if given.is_some() {
                    used.insert(n.to_owned());
                }
                given.or_else(|| defaults.get(n)).cloned()
            };
            Some(replace_once(value, inner))
        })
        .map_err(|missing| {
            let error =
                source.at(missing.span, format!("the build argument '{}' has no value", missing.name));
            match nearest(&missing.name, defaults.keys().chain(arguments.values.keys()).map(String::as_str)) {
                Some(near) => error.with_suggestion(format!("did you mean {{{{ {near} }}}}?")),
                None => error.with_suggestion(format!(
                    "pass --build-arg {}=VALUE, or give it a default in %arguments",
                    missing.name
                )),
            }
        })?;
        let place = |offset: usize| match map.partition_point(|(o, _, _)| *o <= offset) {
            0 => stage.span.start + offset,
            n => {
                let (out, file, len) = map[n - 1];
                file + (offset - out).min(len)
            }
        };
        let read = syntax::stage(source, &text, &place)?;
        definition.stages.push(Stage { span: stage.span, ..read });
    }
    if arguments.strict
        && let Some(unused) = arguments.values.keys().find(|k| !used.contains(*k))
    {
        return Err(source
            .at(Span::default(), format!("the build argument '{unused}' is used nowhere"))
            .with_suggestion(format!("write {{{{ {unused} }}}} where its value belongs, or leave it out")));
    }
    Ok(definition)
}

/// The `NAME=value` lines of `%arguments`.
fn defaults(source: &SourceText, stage: &Stage) -> Result<BTreeMap<String, String>, Diagnostic> {
    let mut out = BTreeMap::new();
    for section in stage.all(SectionKind::Arguments) {
        let mut at = section.body.span.start;
        for line in section.body.split_inclusive('\n') {
            let span = Span::new(at, at + line.trim_end().len());
            at += line.len();
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|(n, _)| is_name(n.trim())) else {
                return Err(source
                    .at(span, format!("'{line}' is no argument"))
                    .with_suggestion("write NAME=value, one per line"));
            };
            out.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    Ok(out)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

struct Missing {
    name: String,
    span: Span,
}

/// (offset in the new text, offset in the file, how many bytes run in step).
type Map = Vec<(usize, usize, usize)>;

fn replace(
    text: &str,
    base: usize,
    mut value: impl FnMut(&str) -> Option<String>,
) -> Result<(String, Map), Missing> {
    let mut out = String::with_capacity(text.len());
    let mut map = vec![(0, base, 0)];
    let mut at = base;
    for line in text.split_inclusive('\n') {
        let (live, comment) = line.split_at(comment_start(line));
        let mut rest = live;
        while let Some((before, name, after)) = next_argument(rest) {
            let start = at + (live.len() - rest.len()) + before.len();
            let length = rest.len() - before.len() - after.len();
            map.push((out.len(), start - before.len(), before.len()));
            out.push_str(before);
            map.push((out.len(), start, 0));
            out.push_str(
                &value(name).ok_or_else(|| Missing {
                    name: name.to_owned(),
                    span: Span::new(start, start + length),
                })?,
            );
            if out.len() > MAX_STAGE {
                return Err(Missing { name: name.to_owned(), span: Span::new(start, start + length) });
            }
            rest = after;
        }
        let start = at + live.len() - rest.len();
        map.push((out.len(), start, rest.len() + comment.len()));
        out.push_str(rest);
        out.push_str(comment);
        at += line.len();
    }
    Ok((out, map))
}

fn replace_once(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, name, after)) = next_argument(rest) {
        out.push_str(before);
        match value(name) {
            Some(v) => out.push_str(&v),
            None => out.push_str(&rest[before.len()..rest.len() - after.len()]),
        }
        rest = after;
    }
    out + rest
}

/// Where the comment of a line begins: at a `#` that is no `#!`.
fn comment_start(line: &str) -> usize {
    line.match_indices('#').find(|(i, _)| !line[i + 1..].starts_with('!')).map_or(line.len(), |(i, _)| i)
}

/// The first `{{ NAME }}`: what stands before it, its name, what stands after it.
fn next_argument(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(open) = text[from..].find("{{") {
        let open = from + open;
        let inner = &text[open + 2..];
        if let Some(close) = inner.find("}}") {
            let name = inner[..close].trim();
            if is_name(name) {
                return Some((&text[..open], name, &inner[close + 2..]));
            }
        }
        from = open + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_text(text: &str, given: &[(&str, &str)], strict: bool) -> Result<Definition, Diagnostic> {
        let source = SourceText::new("x.def", text.as_bytes());
        let raw = syntax::parse(&source)?;
        let values = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        resolve(&source, &raw, &BuildArguments { values, strict })
    }

    const TEXT: &str = "Bootstrap: docker\nFrom: debian:{{ TAG }}\n%arguments\nTAG=12\nNAME=n-{{TAG}}\n%post\n\
        echo {{NAME}} {{ X Y }} # {{ NOT }}\n#!/bin/{{ TAG }}\nfail here\n";

    #[test]
    fn values_come_from_the_caller_then_from_the_stage() {
        let d = resolve_text(TEXT, &[], true).unwrap();
        assert_eq!(d.stages[0].field("from").unwrap().text, "debian:12");
        assert_eq!(
            d.stages[0].text(SectionKind::Post).unwrap(),
            "echo n-12 {{ X Y }} # {{ NOT }}\n#!/bin/12\nfail here\n"
        );
        let d = resolve_text(TEXT, &[("TAG", "11")], true).unwrap();
        assert_eq!(d.stages[0].field("from").unwrap().text, "debian:11");
        assert!(d.stages[0].text(SectionKind::Post).unwrap().starts_with("echo n-11"));
    }

    #[test]
    fn places_are_those_of_the_file() {
        let d = resolve_text(TEXT, &[("TAG", "a-very-long-value")], true).unwrap();
        let span = d.stages[0].sections[1].name.span;
        assert_eq!(&TEXT[span.start..span.end], "%post");
        let error = resolve_text("Bootstrap: docker\nFrom: {{ A }}\n%bogus\n", &[("A", "looong")], true);
        assert!(error.unwrap_err().to_string().starts_with("x.def:3:1"));
    }

    #[test]
    fn missing_and_unused_values_are_errors() {
        let missing = resolve_text("Bootstrap: docker\nFrom: a:{{ TGA }}\n%arguments\nTAG=1\n", &[], true);
        let missing = missing.unwrap_err();
        assert!(missing.to_string().starts_with("x.def:2:9: "), "{missing}");
        assert!(missing.suggestion.unwrap().contains("TAG"));
        assert!(resolve_text(TEXT, &[("OTHER", "x")], true).is_err());
        assert!(resolve_text(TEXT, &[("OTHER", "x")], false).is_ok());
        // Defaults do not cross stages.
        let two = "Bootstrap: docker\nFrom: a\n%arguments\nA=1\nBootstrap: docker\nFrom: {{ A }}\n";
        assert!(resolve_text(two, &[], true).is_err());
        assert!(resolve_text("Bootstrap: docker\nFrom: x\n%arguments\nno\n", &[], true).is_err());
    }
}
