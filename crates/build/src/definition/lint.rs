//! The traps of the definition language, as warnings with a place.

use super::syntax::{Definition, Section, SectionKind, Stage};
use crate::position::{Diagnostic, SourceText, Span};

/// Warnings about a definition file that is otherwise right.
pub fn check(source: &SourceText, definition: &Definition) -> Vec<Diagnostic> {
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
    for stage in &definition.stages {
        hash_in_header(source, stage, &mut out);
        for (number, section) in stage.sections.iter().enumerate() {
            check_section(source, section, stage.sections.get(number + 1), &mut out);
        }
    }
    out
}

/// `From: http://x/#y` loses what follows the hash.
fn hash_in_header(source: &SourceText, stage: &Stage, out: &mut Vec<Diagnostic>) {
    for field in &stage.header {
        let after = &source.text()[field.value.span.end.min(source.text().len())..];
        if after.starts_with('#') {
            let at = field.value.span.end;
            out.push(
                source
                    .at(Span::new(at, at + 1), format!("'#' ends the value of '{}' here", field.key.text))
                    .with_suggestion("write %23 in a URL; put a blank before a comment"),
            );
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
            for span in section.copies().iter().filter_map(|c| c.extra) {
                out.push(
                    source
                        .at(span, "words after the destination are ignored")
                        .with_suggestion("quote a path that has blanks; write one copy per line"),
                );
            }
        }
        _ => {}
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
        let text = "Bootstrap: docker\nFrom: http://x/y#z\n%setup\ntouch /x\n%post\n#!/bin/bash\ncat <<EOF\n%test\nEOF\n\
            %files\na b c\n%runscript\r\nx <<-E\n\ty\n\tE\n";
        let source = SourceText::new("x.def", text.as_bytes());
        let (_, warnings) = crate::definition::parse(source, &Default::default()).unwrap();
        let mut places: Vec<_> = warnings.iter().map(|w| w.line).collect();
        places.sort_unstable();
        assert_eq!(places, [2, 3, 6, 8, 11, 12], "{warnings:#?}");
    }

    #[test]
    fn a_plain_file_has_no_warning() {
        let text = "Bootstrap: docker\nFrom: debian:12 # ok\n%post\ncat <<EOF\nhi\nEOF\necho $((1<<2))\n%test\ntrue\n";
        let source = SourceText::new("x.def", text.as_bytes());
        let (_, warnings) = crate::definition::parse(source, &Default::default()).unwrap();
        assert!(warnings.is_empty(), "{warnings:#?}");
    }
}
