//! The syntax tree: one node per instruction, with flags and arguments split but nothing expanded.
//!
//! The tree is lossless in the sense that matters to tools: every word has its span in the source text,
//! which is kept beside the nodes, comments included. [`Tree::dump`] writes the S-expressions by which
//! the reference frontend's fixtures describe their result.

use std::sync::Arc;

use super::lines::{Directive, Lines, LogicalLine, MAX_LINE};
use super::words::Expander;
use crate::position::{Diagnostic, SourceText, Span, Spanned};

/// A file may have this many instructions. The reference has no limit of its own, but each stage of a
/// build costs memory, and no recipe that a person wrote comes near.
pub const MAX_INSTRUCTIONS: usize = 20_000;
/// One instruction may open this many here-documents.
pub const MAX_HEREDOCS: usize = 1000;

/// A parsed Dockerfile.
#[derive(Debug, Clone)]
pub struct Tree {
    pub source: Arc<SourceText>,
    pub directives: Vec<Directive>,
    pub escape: char,
    pub nodes: Vec<Node>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The keyword as written.
    pub keyword: Spanned,
    /// Words that begin with `--`, quotes and escapes removed.
    pub flags: Vec<Spanned>,
    /// What the arguments mean depends on the instruction: `ENV` and `LABEL` give name, value and the
    /// separator (`=` or nothing) in turn; shell forms give one word.
    pub args: Vec<Spanned>,
    /// The instruction inside an `ONBUILD`.
    pub child: Option<Box<Node>>,
    /// The arguments were a JSON array of strings.
    pub json: bool,
    /// The logical line, continuations joined.
    pub line: LogicalLine,
    pub heredocs: Vec<Heredoc>,
    pub span: Span,
    /// The last physical line, from 1, here-documents included.
    pub end_line: usize,
    /// The comments above; none inside an `ONBUILD`.
    pub comments: Vec<String>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    pub file_descriptor: u32,
    /// Whether variables in the body are expanded (the delimiter was not quoted).
    pub expand: bool,
    /// Whether leading tabs are removed (`<<-`).
    pub strip_tabs: bool,
    pub body: Spanned,
}

impl Heredoc {
    /// The body as its reader gets it.
    pub fn content(&self) -> String {
        if !self.strip_tabs {
            return self.body.text.clone();
        }
        self.body.split_inclusive('\n').map(|l| l.trim_start_matches('\t')).collect()
    }
}

/// Reads a Dockerfile.
pub fn parse(source: Arc<SourceText>) -> Result<Tree, Diagnostic> {
    let mut lines = Lines::new(source.clone());
    let mut nodes = Vec::new();
    while let Some(line) = lines.next()? {
        if line.text.trim().is_empty() {
            let span = source.line_span(line.start_line);
            return Err(source
                .at(span, "the continuation has no instruction")
                .with_suggestion("take the line out"));
        }
        if nodes.len() >= MAX_INSTRUCTIONS {
            return Err(source.at(
                line.whole(),
                format!("the file has more than the {MAX_INSTRUCTIONS} instructions that are allowed"),
            ));
        }
        let mut node = node(&source, &line, lines.escape, 0)?;
        node.comments.clone_from(&line.comments);
        if node.may_have_heredocs() {
            let opened = heredocs(&line);
            if opened.len() > MAX_HEREDOCS {
                return Err(source.at(
                    line.whole(),
                    format!(
                        "the instruction opens more than the {MAX_HEREDOCS} here-documents that are allowed"
                    ),
                ));
            }
            for mut heredoc in opened {
                heredoc.body = lines.heredoc(&heredoc.name, heredoc.strip_tabs)?.ok_or_else(|| {
                    source
                        .at(heredoc.body.span, format!("the here-document '{}' has no end", heredoc.name))
                        .with_suggestion(format!("write {} alone on a line after its text", heredoc.name))
                })?;
                node.heredocs.push(heredoc);
            }
            node.end_line = lines.line_number();
        }
        nodes.push(node);
    }
    if nodes.is_empty() {
        return Err(source
            .at(source.line_span(lines.line_number()), "the file has no instructions")
            .with_suggestion("a Dockerfile begins with FROM and the name of an image"));
    }
    Ok(Tree { source, directives: lines.directives, escape: lines.escape, nodes })
}

/// Reads one instruction from text that stands in no file, such as an ONBUILD trigger of an image.
pub fn parse_trigger(name: &str, text: &str) -> Result<Tree, Diagnostic> {
    parse(SourceText::new(name, text.as_bytes()))
}

/// White space between the words of an instruction.
fn blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn node(source: &SourceText, line: &LogicalLine, escape: char, depth: usize) -> Result<Node, Diagnostic> {
    let line = line.trimmed();
    let text = line.text.as_str();
    let keyword_end = text.find(blank).unwrap_or(text.len());
    let keyword = Spanned::new(&text[..keyword_end], line.span(0, keyword_end));
    let after = &text[keyword_end..];
    let args_start = keyword_end + (after.len() - after.trim_start_matches(blank).len());
    let (flags, rest_start) = flags(&line, args_start, escape);
    let rest_start = rest_start + (text[rest_start..].len() - text[rest_start..].trim_start().len());
    let mut args = Arguments { source, line: &line, start: rest_start, escape, keyword: &keyword };
    let mut node = Node {
        flags,
        args: Vec::new(),
        child: None,
        json: false,
        heredocs: Vec::new(),
        span: line.whole(),
        end_line: line.end_line,
        comments: Vec::new(),
        keyword: keyword.clone(),
        line: line.clone(),
    };
    match keyword.to_ascii_lowercase().as_str() {
        "add" | "copy" | "volume" => match args.json(0)? {
            Some(list) => (node.args, node.json) = (list, true),
            None => node.args = args.blank_separated(),
        },
        "cmd" | "entrypoint" | "run" | "shell" => (node.args, node.json) = args.command(0)?,
        "healthcheck" => (node.args, node.json) = args.healthcheck()?,
        "env" | "label" => node.args = args.pairs()?,
        "arg" => node.args = args.quoted_words(),
        "expose" | "from" => node.args = args.blank_separated(),
        "maintainer" | "stopsignal" | "user" | "workdir" => node.args = args.whole(),
        "onbuild" if rest_start < text.len() => {
            if depth > 8 {
                return Err(source.at(line.whole(), "ONBUILD inside ONBUILD inside ONBUILD…"));
            }
            node.child = Some(Box::new(self::node(source, &line.rest(rest_start), escape, depth + 1)?));
        }
        "onbuild" => {}
        // Of an instruction that there is not, the arguments are not looked at; the reference's tree has this.
        _ => node.args = vec![Spanned::default()],
    }
    Ok(node)
}

/// Takes the leading words that begin with `--`; says where the rest begins. A bare `--` ends them.
fn flags(line: &LogicalLine, start: usize, escape: char) -> (Vec<Spanned>, usize) {
    let text = &line.text;
    let mut found = Vec::new();
    let mut at = start;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if !text[at..].starts_with("--") {
            return (found, at);
        }
        let mut word = String::new();
        let mut quote = None;
        let mut chars = text[at..].char_indices();
        let mut end = text.len();
        while let Some((i, c)) = chars.next() {
            match quote {
                None if c.is_whitespace() => {
                    end = at + i;
                    break;
                }
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(q) if c == q => quote = None,
                _ if c == escape => word.extend(chars.next().map(|(_, c)| c)),
                _ => word.push(c),
            }
        }
        if word == "--" {
            return (found, end);
        }
        found.push(Spanned::new(word, line.span(at, end)));
        at = end;
    }
}

/// The part of an instruction after keyword and flags.
struct Arguments<'a> {
    source: &'a SourceText,
    line: &'a LogicalLine,
    start: usize,
    escape: char,
    keyword: &'a Spanned,
}

impl Arguments<'_> {
    fn rest(&self) -> &str {
        &self.line.text[self.start..]
    }

    fn spanned(&self, start: usize, end: usize) -> Spanned {
        Spanned::new(&self.line.text[start..end], self.line.span(start, end))
    }

    fn whole(&self) -> Vec<Spanned> {
        if self.rest().is_empty() { Vec::new() } else { vec![self.spanned(self.start, self.line.text.len())] }
    }

    fn blank_separated(&self) -> Vec<Spanned> {
        let mut out = Vec::new();
        let mut at = self.start;
        for word in self.rest().split(blank) {
            if !word.is_empty() {
                out.push(self.spanned(at, at + word.len()));
            }
            at += word.len() + 1;
        }
        out
    }

    /// A JSON array of strings from `skip` bytes on; `None` where it is none, an error where it is an
    /// array of something else.
    fn json(&self, skip: usize) -> Result<Option<Vec<Spanned>>, Diagnostic> {
        let text = self.rest()[skip..].trim_start();
        if !text.starts_with('[') {
            return Ok(None);
        }
        let Ok(serde_json::Value::Array(values)) = serde_json::from_str(text) else { return Ok(None) };
        let start = self.line.text.len() - text.len();
        let span = self.line.span(start, self.line.text.len());
        let words = values.into_iter().map(|v| match v {
            serde_json::Value::String(s) => Ok(Spanned::new(s, span)),
            _ => Err(self
                .source
                .at(span, "a JSON array here may hold strings only")
                .with_suggestion("put every word in double quotes")),
        });
        words.collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// The exec form, or else the whole text as one word.
    fn command(&self, skip: usize) -> Result<(Vec<Spanned>, bool), Diagnostic> {
        if let Some(list) = self.json(skip)? {
            return Ok((list, true));
        }
        let start = self.start + skip;
        if start >= self.line.text.len() {
            return Ok((Vec::new(), false));
        }
        Ok((vec![self.spanned(start, self.line.text.len())], false))
    }

    fn healthcheck(&self) -> Result<(Vec<Spanned>, bool), Diagnostic> {
        let rest = self.rest();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        if end == 0 {
            return Ok((Vec::new(), false));
        }
        let next = end + (rest[end..].len() - rest[end..].trim_start().len());
        let mut out = vec![self.spanned(self.start, self.start + end)];
        let (command, json) = self.command(next)?;
        out.extend(command);
        Ok((out, json))
    }

    /// Words that may hold quoted and escaped blanks; quotes and escapes stay, for the expansion.
    fn quoted_words(&self) -> Vec<Spanned> {
        let mut out = Vec::new();
        let mut word = String::new();
        let mut begin: Option<usize> = None;
        let mut quote: Option<char> = None;
        let rest = self.rest();
        let mut chars = rest.char_indices().peekable();
        while let Some((i, c)) = chars.next() {
            if quote.is_none() && c.is_whitespace() {
                if let Some(b) = begin.take() {
                    out.push(Spanned::new(
                        std::mem::take(&mut word),
                        self.line.span(self.start + b, self.start + i),
                    ));
                }
                continue;
            }
            begin.get_or_insert(i);
            match quote {
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(q) if c == q => quote = None,
                // Nothing is escaped between single quotes; an escape character at the very end is dropped.
                _ if c == self.escape && quote != Some('\'') => {
                    let Some((_, next)) = chars.next() else { continue };
                    word.push(c);
                    word.push(next);
                    continue;
                }
                _ => {}
            }
            word.push(c);
        }
        if let Some(b) = begin
            && !word.is_empty()
        {
            out.push(Spanned::new(word, self.line.span(self.start + b, self.line.text.len())));
        }
        out
    }

    /// `name=value …`, or the old form `name value with blanks`.
    fn pairs(&mut self) -> Result<Vec<Spanned>, Diagnostic> {
        let words = self.quoted_words();
        let Some(first) = words.first() else { return Ok(words) };
        let keyword = self.keyword.to_ascii_uppercase();
        if !first.contains('=') {
            let rest = self.rest();
            let Some(end) = rest.find(blank) else {
                return Err(self
                    .source
                    .at(first.span, format!("{keyword} {} has no value", first.text))
                    .with_suggestion(format!("write {keyword} {}=value", first.text)));
            };
            let value = end + (rest[end..].len() - rest[end..].trim_start_matches(blank).len());
            return Ok(vec![
                self.spanned(self.start, self.start + end),
                self.spanned(self.start + value, self.line.text.len()),
                Spanned::default(),
            ]);
        }
        let mut out = Vec::with_capacity(words.len() * 3);
        for word in words {
            let Some((name, value)) = word.text.split_once('=') else {
                return Err(self
                    .source
                    .at(word.span, format!("'{}' has no '='", word.text))
                    .with_suggestion(format!(
                        "{keyword} takes name=value pairs; put a value with blanks in double quotes"
                    )));
            };
            let middle = (word.span.start + name.len()).min(word.span.end);
            out.push(Spanned::new(name, Span::new(word.span.start, middle)));
            out.push(Spanned::new(value, Span::new((middle + 1).min(word.span.end), word.span.end)));
            out.push(Spanned::new("=", Span::new(middle, (middle + 1).min(word.span.end))));
        }
        Ok(out)
    }
}

impl Node {
    /// The keyword in upper case.
    pub fn name(&self) -> String {
        self.keyword.to_ascii_uppercase()
    }

    fn may_have_heredocs(&self) -> bool {
        let inner = self.child.as_deref().unwrap_or(self);
        matches!(inner.name().as_str(), "RUN" | "COPY" | "ADD") && !inner.json
    }

    fn dump_into(&self, out: &mut String) {
        out.push('(');
        out.push_str(&self.keyword.to_ascii_lowercase());
        if !self.flags.is_empty() {
            let flags: Vec<String> = self.flags.iter().map(|f| quote(f)).collect();
            out.push_str(&format!(" [{}]", flags.join(" ")));
        }
        for arg in &self.args {
            out.push(' ');
            out.push_str(&quote(arg));
        }
        if let Some(child) = &self.child {
            out.push(' ');
            child.dump_into(out);
        }
        out.push(')');
    }
}

impl Tree {
    /// The tree as S-expressions, one line per instruction.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for node in &self.nodes {
            node.dump_into(&mut out);
            out.push('\n');
        }
        out
    }
}

/// A string in double quotes, escaped as Go's `strconv.Quote` does.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if !c.is_ascii() && !is_printable(c) => match c as u32 {
                n @ ..=0xffff => out.push_str(&format!("\\u{n:04x}")),
                n => out.push_str(&format!("\\U{n:08x}")),
            },
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What Go calls so: letters, marks, numbers, punctuation and symbols.
fn is_printable(c: char) -> bool {
    // Only at the start of a text are combining marks escaped.
    !format!("a{c}").escape_debug().to_string().contains('\\')
}

/// The here-documents that a line opens, in order, with empty bodies.
fn heredocs(line: &LogicalLine) -> Vec<Heredoc> {
    if !line.text.contains("<<") {
        return Vec::new();
    }
    // A line whose quotes do not match is the shell's business; it opens no here-document for us.
    let Ok(words) = Expander::raw('\\').words(&line.text) else { return Vec::new() };
    words.iter().filter_map(|w| heredoc(w, line.whole())).collect()
}

/// A word such as `3<<-"EOF"`.
pub fn heredoc(word: &str, span: Span) -> Option<Heredoc> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = word[digits..].strip_prefix("<<")?;
    let (strip_tabs, delimiter) = match rest.strip_prefix('-') {
        Some(d) => (true, d),
        None => (false, rest),
    };
    let delimiter = delimiter.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if delimiter.is_empty() || delimiter.contains('<') || delimiter.len() > MAX_LINE {
        return None;
    }
    let raw = Expander::quotes_kept('\\').words(delimiter).ok()?;
    let plain = Expander::unset_kept('\\').words(delimiter).ok()?;
    let ([raw], [name]) = (raw.as_slice(), plain.as_slice()) else { return None };
    // An escaped letter is no quote, although a shell would take it for one.
    let quotes = |text: &str| text.chars().filter(|c| matches!(c, '\'' | '"')).count();
    Some(Heredoc {
        name: name.clone(),
        file_descriptor: word[..digits].parse().unwrap_or(0),
        expand: quotes(raw) == quotes(name),
        strip_tabs,
        body: Spanned::new("", span),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Result<Tree, Diagnostic> {
        parse(SourceText::new("Dockerfile", text.as_bytes()))
    }

    #[test]
    fn trees() {
        for (text, dump) in [
            ("FROM a AS b", r#"(from "a" "AS" "b")"#),
            ("copy --from=x --chown='a b' -- --y z", r#"(copy ["--from=x" "--chown=a b"] "--y" "z")"#),
            ("ENV a b  c ", r#"(env "a" "b  c" "")"#),
            ("ENV a=\"b c\" d='e' f=g\\ h", r#"(env "a" "\"b c\"" "=" "d" "'e'" "=" "f" "g\\ h" "=")"#),
            ("ARG a=\"1 2\" b", r#"(arg "a=\"1 2\"" "b")"#),
            ("RUN", "(run)"),
            ("RUN [\"a\", \"b\"]", r#"(run "a" "b")"#),
            ("RUN [ -f x ]", r#"(run "[ -f x ]")"#),
            (
                "ONBUILD HEALTHCHECK --retries=1 CMD x y",
                r#"(onbuild (healthcheck ["--retries=1"] "CMD" "x y"))"#,
            ),
            ("EXPOSE 80\t443/tcp", r#"(expose "80" "443/tcp")"#),
        ] {
            assert_eq!(tree(text).unwrap().dump().trim_end(), dump, "{text}");
        }
    }

    #[test]
    fn heredocs_are_taken_in_order() {
        let t = tree(
            "FROM a\nRUN <<A cat 3<<-\"B\" # x\nin $a\nA\n\t\tin b\n\tB\nCOPY <<'X Y' /f\nq\nX Y\nUSER u\n",
        )
        .unwrap();
        let run = &t.nodes[1];
        assert_eq!(run.heredocs.len(), 2);
        assert_eq!((run.heredocs[0].name.as_str(), run.heredocs[0].expand), ("A", true));
        assert_eq!(run.heredocs[0].content(), "in $a\n");
        assert_eq!((run.heredocs[1].name.as_str(), run.heredocs[1].expand), ("B", false));
        assert_eq!((run.heredocs[1].content().as_str(), run.heredocs[1].file_descriptor), ("in b\n", 3));
        assert_eq!(t.nodes[2].heredocs[0].name, "X Y");
        assert_eq!(t.nodes[3].name(), "USER");
        assert_eq!((run.line.start_line, run.line.end_line, run.end_line), (2, 2, 6));
        let none = tree("FROM a\nRUN echo '<<A' \"$((1<<2))\" <<<word\nRUN [\"<<A\"]\n").unwrap();
        assert!(none.nodes.iter().all(|n| n.heredocs.is_empty()));
        let open = tree("FROM a\nRUN <<EOF\nx\n").unwrap_err();
        assert!(open.to_string().starts_with("Dockerfile:2:"), "{open}");
    }

    #[test]
    fn heredoc_delimiters() {
        for (word, want) in [
            ("<<EOF", Some(("EOF", 0, true, false))),
            ("3<<-EOF", Some(("EOF", 3, true, true))),
            ("<<eo'f'", Some(("eof", 0, false, false))),
            ("<<eo\\'f", Some(("eo'f", 0, true, false))),
            ("<<'e'o\\'f", Some(("eo'f", 0, false, false))),
            ("<<'one two'", Some(("one two", 0, false, false))),
            ("<<\\EOF", Some(("EOF", 0, true, false))),
            ("<<$EOF", Some(("$EOF", 0, true, false))),
            ("<<  EOF", Some(("EOF", 0, true, false))),
            ("<< -x", Some(("-x", 0, true, false))),
            ("<<file.txt", Some(("file.txt", 0, true, false))),
            ("<<", None),
            ("<<-", None),
            ("<<<x", None),
            ("a<<x", None),
            ("\"<<x\"", None),
        ] {
            let got = heredoc(word, Span::default());
            let got = got.as_ref().map(|h| (h.name.as_str(), h.file_descriptor, h.expand, h.strip_tabs));
            assert_eq!(got, want, "{word}");
        }
        let t = tree("FROM a\nRUN <<  EOF  > foo\nx\nEOF\nRUN cat << 'A' <<- B\ny\nA\n").unwrap();
        assert_eq!(t.nodes[1].heredocs[0].body.text, "x\n");
        let names: Vec<_> = t.nodes[2].heredocs.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["A"], "nothing may stand between <<- and its word");
    }

    #[test]
    fn flags_know_the_escape_character() {
        let t = tree("# escape=`\nFROM --platform=a\\b` c x\n").unwrap();
        assert_eq!(t.dump().trim_end(), r#"(from ["--platform=a\\b c"] "x")"#);
    }

    #[test]
    fn words_have_places() {
        let t = tree("FROM a\nCOPY --from=b x \\\n   yy /z\n").unwrap();
        let yy = &t.nodes[1].args[1];
        assert_eq!(&t.source.text()[yy.span.start..yy.span.end], "yy");
        let flag = &t.nodes[1].flags[0];
        assert_eq!(&t.source.text()[flag.span.start..flag.span.end], "--from=b");
    }

    #[test]
    fn bad_input_is_an_error_with_a_place() {
        for text in ["", "# only\n", "ENV PATH", "ENV a=b c", "CMD [\"a\", [\"b\"]]", "CMD [1]"] {
            assert!(tree(text).is_err(), "{text}");
        }
        let many = "RUN x\n".repeat(MAX_INSTRUCTIONS + 1);
        assert!(tree(&many).unwrap_err().message.contains("instructions"));
        assert!(tree(&"ONBUILD ".repeat(5000)).is_err());
    }
}
