//! Physical lines into logical ones: parser directives, comments, continuations, here-document bodies.
//!
//! A logical line is the text of one instruction with its continuations joined. It remembers where each
//! of its bytes came from, so that everything cut out of it later still has a place in the file.
//! Reference: the Dockerfile frontend 1.26 of BuildKit, by its behaviour.

use std::sync::Arc;

use crate::position::{Diagnostic, SourceText, Span, Spanned};

/// One physical line may have this many bytes, as in the reference.
pub const MAX_LINE: usize = 65_535;

/// A `# name=value` line at the top of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    pub value: Spanned,
}

/// A logical line: its text, and from which places of the file its parts were taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogicalLine {
    pub text: String,
    /// (offset in `text`, offset in the file), ascending.
    parts: Vec<(usize, usize)>,
    /// First and last physical line, from 1.
    pub start_line: usize,
    pub end_line: usize,
    /// Comments above, without `#`, trimmed. As in the reference a comment without text parts them from what
    /// stands before it, a blank line does not, and an indented comment keeps its `#`.
    pub comments: Vec<String>,
    /// The first blank line that a continuation was followed by.
    pub blank_line: Option<usize>,
}

impl LogicalLine {
    /// Where the bytes `start..end` of the text stand in the file.
    pub fn span(&self, start: usize, end: usize) -> Span {
        let place = |offset: usize| match self.parts.partition_point(|(o, _)| *o <= offset) {
            0 => 0,
            n => self.parts[n - 1].1 + (offset - self.parts[n - 1].0),
        };
        if end > start {
            Span::new(place(start), place(end - 1) + 1)
        } else {
            Span::new(place(start), place(start))
        }
    }

    /// The whole of the text in the file.
    pub fn whole(&self) -> Span {
        self.span(0, self.text.len())
    }

    fn push(&mut self, text: &str, at: usize) {
        self.parts.push((self.text.len(), at));
        self.text.push_str(text);
    }

    /// A logical line that is the rest of another one from `start` on.
    pub fn rest(&self, start: usize) -> LogicalLine {
        let mut parts = vec![(0, self.span(start, start).start)];
        parts.extend(self.parts.iter().filter(|(o, _)| *o > start).map(|(o, f)| (o - start, *f)));
        LogicalLine { text: self.text[start..].to_owned(), parts, comments: Vec::new(), ..*self }
    }

    /// The line without white space at both ends.
    pub fn trimmed(&self) -> LogicalLine {
        let start = self.text.len() - self.text.trim_start().len();
        let mut line = self.rest(start);
        line.text.truncate(line.text.trim_end().len());
        line
    }
}

/// Reads logical lines one after another. Here-document bodies are taken by [`Lines::heredoc`] between
/// two calls of [`Lines::next`], because only the caller knows whether a line opens one.
pub struct Lines {
    source: Arc<SourceText>,
    /// The number of the last physical line read.
    current: usize,
    offset: usize,
    pub directives: Vec<Directive>,
    directives_over: bool,
    pub escape: char,
    comments: Vec<String>,
}

impl Lines {
    pub fn new(source: Arc<SourceText>) -> Self {
        Lines {
            source,
            current: 0,
            offset: 0,
            directives: Vec::new(),
            directives_over: false,
            escape: '\\',
            comments: Vec::new(),
        }
    }

    /// How many physical lines were read.
    pub fn line_number(&self) -> usize {
        self.current
    }

    /// The next physical line with its end, and where it begins.
    fn physical(&mut self) -> Result<Option<(String, usize)>, Diagnostic> {
        let text = &self.source.text()[self.offset..];
        if text.is_empty() {
            return Ok(None);
        }
        let mut at = self.offset;
        let end = text.find('\n').map_or(text.len(), |i| i + 1);
        let mut line = &text[..end];
        self.offset += end;
        self.current += 1;
        if line.trim_end_matches('\n').len() > MAX_LINE {
            let span = self.source.line_span(self.current);
            return Err(self
                .source
                .at(span, format!("the line has more than the {MAX_LINE} bytes that are allowed"))
                .with_suggestion("break it with a continuation, or put the text into a file and COPY it"));
        }
        if self.current == 1 && line.starts_with('\u{feff}') {
            line = &line['\u{feff}'.len_utf8()..];
            at += '\u{feff}'.len_utf8();
        }
        Ok(Some((line.to_owned(), at)))
    }

    /// The next instruction, or `None` at the end of the file.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<LogicalLine>, Diagnostic> {
        while let Some((raw, at)) = self.physical()? {
            let body = raw.trim_end_matches(['\n', '\r']);
            let stripped = body.trim_start();
            let at = at + (body.len() - stripped.len());
            let is_directive = self.directive(stripped, at)?;
            if let Some(comment) = stripped.strip_prefix('#') {
                if !is_directive {
                    let indented = stripped.len() < body.len();
                    self.comment(if indented { stripped } else { comment });
                }
                continue;
            }
            let (text, mut more) = self.cut_continuation(stripped);
            if !more && text.is_empty() {
                continue;
            }
            let mut line = LogicalLine {
                start_line: self.current,
                comments: std::mem::take(&mut self.comments),
                ..Default::default()
            };
            line.push(text, at);
            while more {
                let Some((raw, at)) = self.physical()? else { break };
                let body = raw.trim_end_matches(['\n', '\r']);
                let stripped = body.trim_start();
                if stripped.starts_with('#') {
                    continue;
                }
                if stripped.is_empty() {
                    line.blank_line.get_or_insert(self.current);
                    continue;
                }
                let (text, again) = self.cut_continuation(body);
                line.push(text, at);
                more = again;
            }
            line.end_line = self.current;
            if self.source.is_lossy()
                && let Some(bad) = line.text.find('\u{fffd}')
            {
                return Err(self
                    .source
                    .at(line.span(bad, bad + 3), "the instruction has bytes that are not UTF-8")
                    .with_suggestion("save the file as UTF-8"));
            }
            return Ok(Some(line));
        }
        Ok(None)
    }

    fn comment(&mut self, text: &str) {
        match text.trim() {
            "" => self.comments.clear(),
            text => self.comments.push(text.to_owned()),
        }
    }

    /// The body of a here-document that ends at a line which is exactly `delimiter` (leading tabs aside
    /// where `strip_tabs`). `None`: the file ended first.
    pub fn heredoc(&mut self, delimiter: &str, strip_tabs: bool) -> Result<Option<Spanned>, Diagnostic> {
        let start = self.offset;
        let mut text = String::new();
        let mut end = start;
        while let Some((raw, _)) = self.physical()? {
            let bare = raw.trim_end_matches(['\n', '\r']);
            let candidate = if strip_tabs { bare.trim_start_matches('\t') } else { bare };
            if candidate == delimiter {
                return Ok(Some(Spanned::new(text, Span::new(start, end))));
            }
            if self.source.is_lossy() && raw.contains('\u{fffd}') {
                let span = self.source.line_span(self.current);
                return Err(self
                    .source
                    .at(span, "the here-document has bytes that are not UTF-8")
                    .with_suggestion("save the file as UTF-8"));
            }
            text.push_str(&raw);
            end = self.offset;
        }
        Ok(None)
    }

    /// Cuts the escape character and the blanks after it off the end of a line that goes on. Two escape
    /// characters in a row do not continue a line.
    fn cut_continuation<'t>(&self, line: &'t str) -> (&'t str, bool) {
        let blank = line.trim_end_matches([' ', '\t']);
        match blank.strip_suffix(self.escape) {
            Some(head) if !head.ends_with(self.escape) => (head, true),
            _ => (line, false),
        }
    }

    /// Takes a parser directive. Anything else ends the directives for good.
    fn directive(&mut self, line: &str, at: usize) -> Result<bool, Diagnostic> {
        if self.directives_over {
            return Ok(false);
        }
        let Some((name, value, value_at)) = split_directive(line, "#") else {
            self.directives_over = true;
            return Ok(false);
        };
        let span = Span::new(at + value_at, at + value_at + value.len());
        if self.directives.iter().any(|d| d.name == name) {
            let whole = Span::new(at, at + line.len());
            return Err(self
                .source
                .at(whole, format!("the parser directive '{name}' stands here a second time"))
                .with_suggestion("take one of them out"));
        }
        if name == "escape" {
            self.escape = match value {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    return Err(self
                        .source
                        .at(span, format!("invalid escape character '{value}'"))
                        .with_suggestion("only \\ and ` are allowed"));
                }
            };
        }
        self.directives.push(Directive { name, value: Spanned::new(value, span) });
        Ok(true)
    }
}

/// `# name = value` into its parts: lower-case name, value, and where the value begins.
fn split_directive<'t>(line: &'t str, comment: &str) -> Option<(String, &'t str, usize)> {
    let rest = line.strip_prefix(comment)?.trim_start();
    let equals = rest.find('=')?;
    let name = rest[..equals].trim_end();
    let mut letters = name.chars();
    let word =
        letters.next().is_some_and(|c| c.is_ascii_alphabetic()) && letters.all(|c| c.is_ascii_alphanumeric());
    let name = name.to_ascii_lowercase();
    let after = &rest[equals + 1..];
    // Blanks alone are a value, too: the reference takes the first of them.
    let value = match after.trim() {
        "" => &after[..after.chars().next().map_or(0, char::len_utf8)],
        value => value,
    };
    if !word || value.is_empty() || !matches!(name.as_str(), "syntax" | "escape" | "check") {
        return None;
    }
    let at = value.as_ptr() as usize - line.as_ptr() as usize;
    Some((name, value, at))
}

/// The frontend that a file asks for: `# syntax=`, `// syntax=` or `{"syntax": …}`, also after a `#!`
/// line.
pub fn requested_syntax(text: &str) -> Option<String> {
    let text = after_shebang(text);
    if let Some(found) = ["#", "//"].iter().find_map(|comment| directive_in(text, "syntax", comment)) {
        return Some(found.to_owned());
    }
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value.get("syntax")?.as_str().map(str::to_owned)
}

/// The options of `# check=…` at the top of a file, up to the first blank; also after a `#!` line, where the
/// other directives have no effect.
pub fn requested_checks(text: &str) -> Option<&str> {
    directive_in(after_shebang(text), "check", "#")
}

/// The options of a comment `check=…` above an instruction.
pub fn checks_of_comment(comment: &str) -> Option<&str> {
    directive_in(comment, "check", "")
}

fn after_shebang(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.strip_prefix("#!") {
        Some(rest) => rest.split_once('\n').map_or("", |(_, after)| after),
        None => text,
    }
}

fn directive_in<'t>(text: &'t str, wanted: &str, comment: &str) -> Option<&'t str> {
    for line in text.lines() {
        let (name, value, _) = split_directive(line, comment)?;
        if name == wanted {
            return value.split(' ').next();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(input: &str) -> Result<Vec<String>, Diagnostic> {
        let mut lines = Lines::new(SourceText::new("Dockerfile", input.as_bytes()));
        let mut out = Vec::new();
        while let Some(line) = lines.next()? {
            out.push(line.text);
        }
        Ok(out)
    }

    #[test]
    fn continuations() {
        for (input, expected) in [
            ("RUN a \\\n  b", vec!["RUN a   b"]),
            ("RUN a \\ \t\nb", vec!["RUN a b"]),
            ("RUN a \\\\\nb", vec!["RUN a \\\\", "b"]),
            ("RUN a \\\n# c\n\n  # d\nb", vec!["RUN a b"]),
            ("RUN a \\\r\nb\r\n", vec!["RUN a b"]),
            ("# escape=`\nRUN a `\nb\\\nc", vec!["RUN a b\\", "c"]),
            ("\u{feff}FROM a", vec!["FROM a"]),
            ("\\\nFROM a", vec!["FROM a"]),
            ("RUN a \\", vec!["RUN a "]),
            ("  # x\n\t\nRUN a # not a comment", vec!["RUN a # not a comment"]),
        ] {
            assert_eq!(texts(input).unwrap(), expected, "{input:?}");
        }
    }

    #[test]
    fn joined_text_still_knows_its_place() {
        let source = SourceText::new("Dockerfile", b"FROM x\nRUN a \\\n  bcd e\n");
        let mut lines = Lines::new(source.clone());
        lines.next().unwrap();
        let line = lines.next().unwrap().unwrap();
        let at = line.text.find("bcd").unwrap();
        let span = line.span(at, at + 3);
        assert_eq!(&source.text()[span.start..span.end], "bcd");
        assert_eq!((line.start_line, line.end_line), (2, 3));
        let rest = line.rest(4);
        let at = rest.text.find("bcd").unwrap();
        assert_eq!(rest.span(at, at + 3), span);
    }

    #[test]
    fn directives_end_at_the_first_other_line() {
        let count = |input: &str| {
            let mut lines = Lines::new(SourceText::new("Dockerfile", input.as_bytes()));
            lines.next().map(|_| (lines.directives.len(), lines.escape))
        };
        assert_eq!(count("# syntax=a\n#ESCAPE = `\n# check=skip=all\nFROM a").unwrap(), (3, '`'));
        assert_eq!(count("# hello\n# escape=`\nFROM a").unwrap(), (0, '\\'));
        assert_eq!(count("\n# escape=`\nFROM a").unwrap(), (0, '\\'));
        assert_eq!(count("# unknown=1\n# escape=`\nFROM a").unwrap(), (0, '\\'));
        assert!(count("# escape= \nFROM a").is_err());
        assert_eq!(count("# escape=\n# syntax=x\nFROM a").unwrap(), (0, '\\'));
        assert!(count("# escape=x\nFROM a").unwrap_err().to_string().contains("escape"));
        assert!(count("# escape=`\n# escape=\\\nFROM a").is_err());
    }

    #[test]
    fn comments_belong_to_the_instruction_below() {
        for (input, want) in [
            ("# a b\n#c\nFROM x", vec!["a b", "c"]),
            ("# a\n#\n# b\nFROM x", vec!["b"]),
            ("# a\n\nFROM x", vec!["a"]),
            ("  # a\nFROM x", vec!["# a"]),
            ("# syntax=y\n# a\nFROM x", vec!["a"]),
            ("FROM \\\n# inside\nx", vec![]),
        ] {
            let mut lines = Lines::new(SourceText::new("Dockerfile", input.as_bytes()));
            assert_eq!(lines.next().unwrap().unwrap().comments, want, "{input:?}");
            assert!(lines.comments.is_empty(), "{input:?}");
        }
    }

    #[test]
    fn checks_are_asked_for_at_the_top_and_above_an_instruction() {
        for (text, want) in [
            ("# check=skip=all\nFROM a", Some("skip=all")),
            ("#!/bin/x\n#CHECK = skip=A;error=true rest\n", Some("skip=A;error=true")),
            ("# syntax=x\n# check=error=true\n", Some("error=true")),
            ("# other\n# check=skip=all\n", None),
            ("// check=skip=all\n", None),
        ] {
            assert_eq!(requested_checks(text), want, "{text}");
        }
        assert_eq!(checks_of_comment("check=skip=A // why"), Some("skip=A"));
        assert_eq!(checks_of_comment("# check=skip=A"), None);
        assert_eq!(checks_of_comment("see check=skip=A"), None);
    }

    #[test]
    fn the_frontend_may_be_asked_for_in_three_ways() {
        for (text, want) in [
            ("# syntax=docker/dockerfile:1\nFROM a", Some("docker/dockerfile:1")),
            ("#!/usr/bin/env x\n# syntax = a:b --flag\n", Some("a:b")),
            ("// syntax=a\n", Some("a")),
            ("{\"syntax\": \"a\"}", Some("a")),
            ("FROM a\n# syntax=b", None),
            ("", None),
        ] {
            assert_eq!(requested_syntax(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn odd_bytes_and_long_lines_are_named() {
        let parse = |bytes: &[u8]| {
            let mut lines = Lines::new(SourceText::new("Dockerfile", bytes));
            while lines.next()?.is_some() {}
            Ok::<(), Diagnostic>(())
        };
        assert!(parse(b"# caf\xe9\nFROM a\n").is_ok());
        assert!(parse(b"FROM a\nRUN caf\xe9\n").unwrap_err().to_string().starts_with("Dockerfile:2:8:"));
        let long = format!("FROM a\nRUN {}\n", "x".repeat(MAX_LINE));
        assert!(parse(long.as_bytes()).unwrap_err().to_string().contains("65535"));
    }
}
