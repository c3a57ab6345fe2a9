//! The traps of the definition language, as warnings with a place.

use std::collections::HashSet;

use super::arguments::comment_with_argument;
use super::syntax::{Definition, FileCopy, Section, SectionKind, Stage};
use crate::position::{Diagnostic, SourceText, Span};

/// Warnings about a definition file that is otherwise right: `raw` as it is written, `definition` with its arguments
/// replaced.
pub fn check(source: &SourceText, raw: &Definition, definition: &Definition) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    if let Some(at) = source.text().find("\r\n") {
        out.push(
            source
                .at(
                    Span::new(at, at),
                    "the lines end as on Windows; they are read as if they ended in a newline",
                )
                .with_suggestion("convert the file with dos2unix"),
        );
    }
    for stage in &raw.stages {
        arguments_in_comments(source, stage, &mut out);
    }
    for stage in &definition.stages {
        header(source, stage, &mut out);
        environment_in_post(source, stage, &mut out);
        for (number, section) in stage.sections.iter().enumerate() {
            check_section(source, section, stage.sections.get(number + 1), &mut out);
        }
    }
    out
}

/// `curl http://x/#{{ TAG }}`: what stands behind a hash is left as it is, also where the shell sees no comment.
fn arguments_in_comments(source: &SourceText, stage: &Stage, out: &mut Vec<Diagnostic>) {
    let mut at = stage.span.start;
    for line in source.text()[stage.span.start..stage.span.end].split_inclusive('\n') {
        if let Some((hash, argument)) = comment_with_argument(line)
            && line[..hash].ends_with(|c: char| !c.is_whitespace())
        {
            let span = Span::new(at + argument.start, at + argument.end);
            out.push(
                source
                    .at(span, "behind a '#' nothing is replaced, even if it begins no comment")
                    .with_suggestion("put the value into a variable on a line of its own"),
            );
        }
        at += line.len();
    }
}

/// Variables that every script has, whatever `%environment` adds to them.
const ALWAYS: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "HOME", "PS1", "PWD"];

/// `%environment` counts when the image runs, and not in `%post`.
fn environment_in_post(source: &SourceText, stage: &Stage, out: &mut Vec<Diagnostic>) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let environment = stage.text(SectionKind::Environment).unwrap_or_default();
    let assigned = |line: &str| -> Option<String> {
        let line = line.trim_start();
        let (name, _) = line.strip_prefix("export ").unwrap_or(line).trim_start().split_once('=')?;
        (!name.is_empty() && name.chars().all(is_name)).then(|| name.to_owned())
    };
    let names: HashSet<String> = environment.lines().filter_map(assigned).collect();
    if names.is_empty() {
        return;
    }
    let mut own: HashSet<String> = HashSet::new();
    for section in stage.all(SectionKind::Post) {
        let mut at = section.body.span.start;
        for line in section.body.split_inclusive('\n') {
            let start = at;
            at += line.len();
            own.extend(line.split([';', '&', ' ']).filter_map(assigned));
            for (dollar, _) in line.match_indices('$') {
                let rest = &line[dollar + 1..];
                let rest = rest.strip_prefix('{').unwrap_or(rest);
                let name = rest.split(|c| !is_name(c)).next().unwrap_or_default();
                let escaped = line[..dollar].ends_with('\\');
                let usual = ALWAYS.contains(&name) || escaped;
                if !usual && names.contains(name) && own.insert(name.to_owned()) {
                    let span = Span::new(start + dollar, start + dollar + 1 + name.len());
                    out.push(
                        source
                            .at(span, format!("%environment, which sets {name}, does not count in %post"))
                            .with_suggestion("set it in %post, too; or move it to %arguments, as {{ NAME }}"),
                    );
                }
            }
        }
    }
}

fn header(source: &SourceText, stage: &Stage, out: &mut Vec<Diagnostic>) {
    for (number, field) in stage.header.iter().enumerate() {
        // `From: http://x/#y` loses what follows the hash.
        let end = field.value.span.end;
        if source.text().get(end..).is_some_and(|rest| rest.starts_with('#')) {
            out.push(
                source
                    .at(Span::new(end, end + 1), format!("'#' ends the value of '{}' here", field.key.text))
                    .with_suggestion("write %23 in a URL; put a blank before a comment"),
            );
        }
        if stage.header[..number].iter().any(|earlier| earlier.key.text == field.key.text) {
            out.push(
                source
                    .at(
                        field.key.span,
                        format!("'{}' stands here a second time; the last one counts", field.key.text),
                    )
                    .with_suggestion("leave out the other one"),
            );
        }
        if field.key.text == "includecmd" {
            out.push(source.at(field.key.span, "'includecmd' has no effect").with_suggestion("use %post"));
        }
    }
}

fn check_section(source: &SourceText, section: &Section, next: Option<&Section>, out: &mut Vec<Diagnostic>) {
    let name = section.kind.name();
    if let (Some(word), Some(next)) = (open_heredoc(&section.body), next) {
        out.push(
            source
                .at(next.name.span, format!("%{} begins inside the here-document '{word}'", next.kind.name()))
                .with_suggestion("a line that begins with % opens a section wherever it stands; use printf"),
        );
    }
    match section.kind {
        SectionKind::Setup | SectionKind::Pre => out.push(
            source
                .at(section.name.span, format!("%{name} runs on the host, not in the image"))
                .with_suggestion("use %files and %post where they do"),
        ),
        SectionKind::Post if section.body.trim_start().starts_with("#!") => out.push(
            source
                .at(section.body.span, "the #! line of %post has no effect")
                .with_suggestion("write %post -c SHELL"),
        ),
        SectionKind::Files | SectionKind::AppFiles => {
            section.copies().iter().for_each(|copy| check_copy(source, section.kind, copy, out));
        }
        SectionKind::Labels | SectionKind::AppLabels => labels(source, section, out),
        _ => {}
    }
}

fn check_copy(source: &SourceText, kind: SectionKind, copy: &FileCopy, out: &mut Vec<Diagnostic>) {
    if let Some(span) = copy.extra {
        out.push(
            source
                .at(span, "words after the destination are ignored")
                .with_suggestion("quote a path that has blanks; write one copy per line"),
        );
    }
    if copy.source.starts_with(['~', '$']) {
        out.push(
            source
                .at(copy.source.span, "no variable and no '~' is replaced in a path")
                .with_suggestion("write the path in full, or use {{ NAME }} and --build-arg"),
        );
    }
    let into = copy.destination.as_ref().filter(|_| kind == SectionKind::Files);
    if let Some(into) = into.filter(|into| !into.starts_with('/')) {
        out.push(
            source
                .at(into.span, format!("'{}' is taken from the root of the image", into.text))
                .with_suggestion(format!("write /{}", into.trim_start_matches("./"))),
        );
    }
}

/// `KEY=value` and `KEY<tab>value` are names without a value.
fn labels(source: &SourceText, section: &Section, out: &mut Vec<Diagnostic>) {
    let mut at = section.body.span.start;
    for line in section.body.split_inclusive('\n') {
        let text = line.trim();
        let start = at + (line.len() - line.trim_start().len());
        at += line.len();
        if !text.is_empty() && !text.starts_with('#') && !text.contains(' ') && text.contains(['=', '\t']) {
            out.push(
                source
                    .at(Span::new(start, start + text.len()), "the whole line is the name of a label")
                    .with_suggestion("put a space between name and value"),
            );
        }
    }
}

/// The delimiter of a here-document that the text opens and does not close.
fn open_heredoc(text: &str) -> Option<String> {
    let mut open: Option<(String, bool)> = None;
    for line in text.lines() {
        match &open {
            Some((word, tabs)) => {
                let candidate = if *tabs { line.trim_start_matches('\t') } else { line };
                if candidate == word {
                    open = None;
                }
            }
            None => open = heredoc_word(line),
        }
    }
    open.map(|(word, _)| word)
}

fn heredoc_word(line: &str) -> Option<(String, bool)> {
    let at = line.find("<<")?;
    if line[..at].trim_start().starts_with('#') {
        return None;
    }
    let rest = &line[at + 2..];
    let (tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(' ').trim_start_matches(['\'', '"', '\\']);
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let starts_well = word.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
    starts_well.then_some((word, tabs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traps_are_named_where_they_stand() {
        for (text, expected) in [
            ("From: http://x/y#z\n", [(2, "ends the value")].as_slice()),
            ("From: a\nFrom: b\n", &[(3, "second time")]),
            ("From: a\nIncludeCmd: yes\n", &[(3, "no effect")]),
            ("%setup\ntouch /x\n", &[(2, "on the host")]),
            ("%pre\ntouch /x\n", &[(2, "on the host")]),
            ("%post\n#!/bin/bash\n", &[(3, "no effect")]),
            ("%post\ncat <<EOF\n%test\nEOF\n", &[(4, "inside the here-document 'EOF'")]),
            ("%files\na /b c\n", &[(3, "ignored")]),
            ("%files\n$HOME/a /b\n~/x /c\n", &[(3, "no variable"), (4, "no variable")]),
            ("%files\na opt/b\n", &[(3, "from the root")]),
            ("%appfiles x\na opt/b\n", &[]),
            ("%labels\nA=b\nB c=d\n# e=f\n C\tx\n", &[(3, "whole line"), (6, "whole line")]),
            (
                "%arguments\nT=1\n%post\nx http://y/#{{ T }}\ny {{ T }} # {{ T }}\n",
                &[(5, "nothing is replaced")],
            ),
            (
                "%environment\nexport V=1\nW=2\nPATH=/x:$PATH\n%post\nx $V ${V} $PATH\nW=3; y $W\n",
                &[(7, "sets V")],
            ),
            ("%environment\nexport V=1\n%post\nprintf \\$V; V=2 sh -c 'echo $V'\n", &[]),
            ("%runscript\r\nx <<-E\n\ty\n\tE\n", &[(2, "as on Windows")]),
        ] {
            let text = format!("Bootstrap: docker\n{text}");
            let source = SourceText::new("x.def", text.as_bytes());
            let (_, warnings) = crate::definition::parse(source, &Default::default()).unwrap();
            let found: Vec<_> = warnings.iter().map(|w| (w.line, w.message.as_str())).collect();
            assert_eq!(found.len(), expected.len(), "{text}: {warnings:#?}");
            for ((line, message), (place, part)) in found.iter().zip(expected) {
                assert!(line == place && message.contains(part), "{text}: {warnings:#?}");
            }
        }
    }

    #[test]
    fn a_plain_file_has_no_warning() {
        let text = "Bootstrap: docker\nFrom: debian:12 # ok\n%post\ncat <<EOF\nhi\nEOF\necho $((1<<2))\n%test\ntrue\n";
        let source = SourceText::new("x.def", text.as_bytes());
        let (_, warnings) = crate::definition::parse(source, &Default::default()).unwrap();
        assert!(warnings.is_empty(), "{warnings:#?}");
    }
}
