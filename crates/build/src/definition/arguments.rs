//! `{{ NAME }}` in definition files: textual, per stage, replaced before the text is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use isles_spec::nearest::nearest;

use super::options::DefinitionOptions;
use super::syntax::{self, Definition, SectionKind, Stage};
use crate::error::Error;
use crate::position::{Diagnostic, SourceText, Span};

/// A stage may grow to this many bytes by replacement.
const MAX_STAGE: usize = 16 << 20;

/// A file of values may have this many bytes.
const MAX_FILE: u64 = 1 << 20;

/// Values that the caller gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildArguments {
    /// From `--build-arg` and, below it, `--build-arg-file`.
    pub values: BTreeMap<String, String>,
    /// A value that no stage uses is an error, as in the reference; else it is a warning.
    pub strict: bool,
}

impl BuildArguments {
    /// What a caller says, with the file that it names.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it is no `NAME=VALUE`.
    pub fn of(values: &BTreeMap<String, String>, options: &DefinitionOptions) -> Result<Self, Error> {
        let mut all = match &options.argument_file {
            Some(path) => read_file(path)?,
            None => BTreeMap::new(),
        };
        all.extend(values.clone());
        Ok(BuildArguments { values: all, strict: !options.unused_arguments_warn })
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let bytes = isles_store::read_bounded(file, MAX_FILE).map_err(Error::io("read", path))?;
    let bytes = bytes.ok_or_else(|| {
        isles_spec::Error::new(format!("'{}' is larger than {MAX_FILE} bytes", path.display()))
            .with_hint("a file of build arguments has NAME=VALUE lines")
    })?;
    let source = SourceText::new(path.display().to_string(), &bytes);
    let mut values = BTreeMap::new();
    for (number, line) in source.text().lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) =
            assignment(line).ok_or_else(|| not_assigned(&source, source.line_span(number + 1), line))?;
        values.insert(name.to_owned(), value.to_owned());
    }
    Ok(values)
}

/// `NAME=value`
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    is_name(name.trim()).then(|| (name.trim(), value.trim()))
}

fn not_assigned(source: &SourceText, span: Span, line: &str) -> Diagnostic {
    source.at(span, format!("'{line}' is no argument")).with_suggestion("write NAME=value, one per line")
}

/// Replaces the arguments of each stage and reads the stages again.
pub fn resolve(
    source: &SourceText,
    raw: &Definition,
    arguments: &BuildArguments,
) -> Result<(Definition, Vec<Diagnostic>), Diagnostic> {
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
        .map_err(|failed| {
            let missing = match failed {
                Failed::Missing(missing) => missing,
                Failed::TooLong(span) => {
                    return source
                        .at(span, format!("with its arguments the stage is longer than {MAX_STAGE} bytes"))
                        .with_suggestion("put long texts into files of their own, and use %files");
                }
            };
            let error =
                source.at(missing.span, format!("the build argument '{}' has no value", missing.name));
            let elsewhere = raw.stages.iter().any(|other| {
                other.span != stage.span && self::defaults(source, other).is_ok_and(|d| d.contains_key(&missing.name))
            });
            match nearest(&missing.name, defaults.keys().chain(arguments.values.keys()).map(String::as_str)) {
                _ if elsewhere => error.with_suggestion(
                    "the default of another stage does not count here; repeat it in the %arguments of this one",
                ),
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
    let unused = arguments.values.keys().filter(|k| !used.contains(*k)).map(|unused| {
        source
            .at(Span::default(), format!("the build argument '{unused}' is used nowhere"))
            .with_suggestion(format!("write {{{{ {unused} }}}} where its value belongs, or leave it out"))
    });
    let mut odd: Vec<Diagnostic> = unused.collect();
    if arguments.strict && !odd.is_empty() {
        return Err(odd.remove(0));
    }
    for (name, _) in arguments.values.iter().filter(|(_, value)| value.contains('\n')) {
        odd.push(
            source.at(Span::default(), format!("the value of '{name}' has several lines")).with_suggestion(
                "it is put into the text as it is, where a line that begins with % is a section",
            ),
        );
    }
    Ok((definition, odd))
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
            let (name, value) = assignment(line).ok_or_else(|| not_assigned(source, span, line))?;
            out.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(out)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

struct Missing {
    name: String,
    span: Span,
}

/// Why arguments cannot be replaced.
enum Failed {
    Missing(Missing),
    TooLong(Span),
}

/// (offset in the new text, offset in the file, how many bytes run in step).
type Map = Vec<(usize, usize, usize)>;

fn replace(
    text: &str,
    base: usize,
    mut value: impl FnMut(&str) -> Option<String>,
) -> Result<(String, Map), Failed> {
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
            out.push_str(&value(name).ok_or_else(|| {
                Failed::Missing(Missing { name: name.to_owned(), span: Span::new(start, start + length) })
            })?);
            if out.len() > MAX_STAGE {
                return Err(Failed::TooLong(Span::new(start, start + length)));
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

/// Where the comment of a line begins, and an argument in it that is left alone.
pub fn comment_with_argument(line: &str) -> Option<(usize, std::ops::Range<usize>)> {
    let hash = comment_start(line);
    let (before, _, after) = next_argument(&line[hash..])?;
    Some((hash, hash + before.len()..line.len() - after.len()))
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
        resolve(&source, &raw, &BuildArguments { values, strict }).map(|(definition, _)| definition)
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
    fn values_of_several_lines_are_odd() {
        let source = SourceText::new("x.def", TEXT.as_bytes());
        let values = BTreeMap::from([("TAG".to_owned(), "1\n%post\nrm -rf /".to_owned())]);
        let raw = syntax::parse(&source).unwrap();
        let (_, odd) = resolve(&source, &raw, &BuildArguments { values, strict: true }).unwrap();
        assert!(odd.len() == 1 && odd[0].message.contains("'TAG' has several lines"), "{odd:?}");
    }

    #[test]
    fn values_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arguments");
        let options = DefinitionOptions { argument_file: Some(path.clone()), ..Default::default() };
        std::fs::write(&path, "# words\n\nA = 1\nB=x = y \r\n").unwrap();
        let given = BTreeMap::from([("A".to_owned(), "own".to_owned())]);
        let all = BuildArguments::of(&given, &options).unwrap();
        assert_eq!(all.values, BTreeMap::from([("A".into(), "own".into()), ("B".into(), "x = y".into())]));
        std::fs::write(&path, "A=1\nno words\n").unwrap();
        let error = BuildArguments::of(&given, &options).unwrap_err().to_string();
        assert!(error.ends_with("arguments:2:1: 'no words' is no argument"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(BuildArguments::of(&given, &options).is_err());
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
        let error = resolve_text(two, &[], true).unwrap_err();
        assert!(error.suggestion.unwrap().contains("another stage"));
        assert!(resolve_text("Bootstrap: docker\nFrom: x\n%arguments\nno\n", &[], true).is_err());
    }
}
