//! Where in a recipe something stands, and how an error there is shown.
//!
//! Parsers keep byte spans into the text that they were given; a [`Diagnostic`] turns a span into file,
//! line, column and an excerpt with a caret, so that no later stage needs the parser to explain itself.

use std::fmt;
use std::sync::Arc;

use isles_spec::Hint;

/// So many characters of a long line are shown.
const EXCERPT: usize = 200;

/// A range of bytes in the text of a recipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    pub fn new(start: usize, end: usize) -> Self {
        Span { start, end: end.max(start) }
    }

    /// The smallest span that holds both.
    pub fn to(self, other: Span) -> Span {
        Span::new(self.start.min(other.start), self.end.max(other.end))
    }
}

/// A piece of text and where it stood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spanned {
    pub text: String,
    pub span: Span,
}

impl Spanned {
    pub fn new(text: impl Into<String>, span: Span) -> Self {
        Spanned { text: text.into(), span }
    }
}

impl std::ops::Deref for Spanned {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// The text of a recipe, with its name and the places where its lines begin.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceText {
    name: String,
    text: String,
    line_starts: Vec<usize>,
    /// Whether bytes that are not UTF-8 were replaced.
    lossy: bool,
}

impl SourceText {
    /// Text from bytes. Bytes that are not UTF-8 become U+FFFD, and [`SourceText::is_lossy`] says so:
    /// they do no harm in a comment, elsewhere the parsers refuse them.
    pub fn new(name: impl Into<String>, bytes: &[u8]) -> Arc<Self> {
        let text = String::from_utf8_lossy(bytes);
        let lossy = matches!(text, std::borrow::Cow::Owned(_));
        let text = text.into_owned();
        let mut line_starts = vec![0];
        line_starts.extend(text.match_indices('\n').map(|(i, _)| i + 1));
        Arc::new(SourceText { name: name.into(), text, line_starts, lossy })
    }

    /// The name as messages show it, usually the path as the caller wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn is_lossy(&self) -> bool {
        self.lossy
    }

    /// The line of a byte, from 1.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|s| *s <= offset)
    }

    /// The bytes of line `number` (from 1), without its end.
    pub fn line(&self, number: usize) -> &str {
        let start = self.line_starts.get(number.wrapping_sub(1)).copied().unwrap_or(self.text.len());
        let end = self.line_starts.get(number).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }

    /// The span of line `number` (from 1), without its end.
    pub fn line_span(&self, number: usize) -> Span {
        let start = self.line_starts.get(number.wrapping_sub(1)).copied().unwrap_or(self.text.len());
        Span::new(start, start + self.line(number).len())
    }

    /// A finding at `span`.
    pub fn at(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        // A span that ends in the middle of a character (a replaced byte) is widened, never sliced.
        let start = floor_boundary(&self.text, span.start);
        let line = self.line_of(start);
        let line_start = self.line_starts[line - 1];
        let excerpt = self.line(line);
        let column_end = floor_boundary(&self.text, span.end).min(line_start + excerpt.len()).max(start);
        let column = self.text[line_start..start].chars().count() + 1;
        let width = self.text[start..column_end].chars().count().max(1);
        let (excerpt, cut) = window(excerpt, column);
        Diagnostic {
            file: self.name.clone(),
            line,
            column,
            width,
            excerpt,
            cut,
            message: plain(&message.into()),
            suggestion: None,
        }
    }
}

/// Of a long line what is around a column, and how many columns the rest stands further left than in the line.
fn window(line: &str, column: usize) -> (String, usize) {
    if line.chars().nth(EXCERPT).is_none() {
        return (plain(line), 0);
    }
    let begin = column.saturating_sub(1 + EXCERPT / 2);
    let shown: String = line.chars().skip(begin).take(EXCERPT).collect();
    let more = if line.chars().nth(begin + EXCERPT).is_some() { "…" } else { "" };
    match begin {
        0 => (format!("{}{more}", plain(&shown)), 0),
        _ => (format!("…{}{more}", plain(&shown)), begin - 1),
    }
}

/// Without what a terminal would obey: a recipe may come from anyone.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// What is wrong at one place of a recipe, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// How many characters the caret underlines, at least 1.
    pub width: usize,
    /// The line of the recipe, or of a long one what is around the place.
    pub excerpt: String,
    /// So many columns further left than in the line the place is in the excerpt.
    pub cut: usize,
    pub message: String,
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// Adds what the reader can do.
    pub fn with_suggestion(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(plain(&suggestion.into()));
        self
    }

    /// The line of the recipe with a caret under the place, in two lines without a final newline.
    pub fn picture(&self) -> String {
        let number = self.line.to_string();
        let before = self.column.saturating_sub(1 + self.cut);
        let pad: String =
            self.excerpt.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let room = self.excerpt.chars().count().saturating_sub(before).max(1);
        let carets = "^".repeat(self.width.min(room));
        format!("{number} | {}\n{:width$} | {pad}{carets}", self.excerpt, "", width = number.len())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl std::error::Error for Diagnostic {}

impl Hint for Diagnostic {
    fn hint(&self) -> Option<String> {
        self.suggestion.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_file_line_and_column_and_points() {
        let text = SourceText::new("Dockerfile", "FROM a\nRUUN x é\r\n".as_bytes());
        let d = text.at(Span::new(7, 11), "unknown instruction 'RUUN'");
        assert_eq!(d.to_string(), "Dockerfile:2:1: unknown instruction 'RUUN'");
        assert_eq!(d.picture(), "2 | RUUN x é\n  | ^^^^");
        let after = text.at(Span::new(14, 16), "x");
        assert_eq!((after.line, after.column), (2, 8));
        assert_eq!(text.at(Span::new(15, 15), "x").column, 8, "inside a character");
        assert_eq!(text.at(Span::new(900, 999), "x").line, 3);
    }

    #[test]
    fn of_long_lines_the_place_is_shown() {
        let line = format!("RUN {}é[here]{}", "x".repeat(5000), "y".repeat(5000));
        let text = SourceText::new("Dockerfile", line.as_bytes());
        let at = line.find("[here]").unwrap();
        let d = text.at(Span::new(at, at + 6), "x");
        assert_eq!(d.column, 5006);
        let picture = d.picture();
        let [shown, carets] = picture.lines().collect::<Vec<_>>()[..] else { panic!("{picture}") };
        assert!(shown.starts_with("1 | …x") && shown.ends_with("y…"), "{picture}");
        let place = carets.chars().position(|c| c == '^').unwrap();
        let under: String = shown.chars().skip(place).take(6).collect();
        assert_eq!((under.as_str(), carets.matches('^').count()), ("[here]", 6), "{picture}");
        let first = text.at(Span::new(0, 3), "x").picture();
        assert!(first.starts_with("1 | RUN x") && first.ends_with("\n  | ^^^"), "{first}");
    }

    #[test]
    fn a_terminal_is_told_nothing() {
        let text = SourceText::new("Dockerfile", b"RU\x1b[31mN\tx\n");
        let d = text.at(Span::new(0, 3), "'RU\x1b[31mN'").with_suggestion("\x07");
        assert!(![d.to_string(), d.picture(), d.suggestion.unwrap()].concat().contains(['\x1b', '\x07']));
        assert_eq!(d.excerpt, "RU\u{fffd}[31mN\tx");
    }
}
