//! Words: quotes, escapes and variables as a POSIX shell has them, minus what Dockerfiles leave out.
//!
//! Forms: `$v ${v} ${v:-w} ${v-w} ${v:+w} ${v+w} ${v:?m} ${v?m} ${v#p} ${v##p} ${v%p} ${v%%p} ${v/p/r}
//! ${v//p/r}`. Patterns know `*`, `?` and the backslash. Reference: BuildKit's shell lexer at frontend
//! 1.26, by its fixtures and behaviour. Results, nesting and matching effort are bounded, because a
//! recipe may come from anyone.

use std::collections::BTreeSet;

use super::wildcards::{MAX_MATCH_STEPS, replace, trim};
use crate::position::{Diagnostic, SourceText, Span};

/// A word may grow by this many bytes by expansion.
pub const MAX_EXPANSION: usize = 1 << 20;
const MAX_DEPTH: usize = 64;

/// Why a word could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    #[error("missing {0}")]
    Unterminated(&'static str),
    #[error("bad substitution '{0}'")]
    BadSubstitution(String),
    #[error("unsupported modifier '{0}' in a substitution")]
    Modifier(String),
    #[error("{name}: {message}")]
    Required { name: String, message: String },
    #[error("invalid escape '\\{0}' in a pattern")]
    PatternEscape(char),
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("the text grows beyond {MAX_EXPANSION} bytes")]
    Size,
    #[error("the substitutions take too much work")]
    Effort,
}

impl WordError {
    /// The error at a place, with what can be done.
    pub fn at(&self, source: &SourceText, span: Span) -> Diagnostic {
        let place = source.at(span, self.to_string());
        let hint = match self {
            WordError::Unterminated(_) => "close it, or write the escape character before what opens it",
            WordError::BadSubstitution(_) => {
                "write ${NAME}; the escape character before $ makes it a plain one"
            }
            WordError::Modifier(_) => "write ${NAME:-WORD}, or :+ :? - + ? # ## % %% / // in place of :-",
            WordError::PatternEscape(_) => "in a pattern a backslash stands before one of * ? / } \\ only",
            WordError::Required { name, .. } => {
                return place.with_suggestion(format!(
                    "set {name} by ARG or ENV, or by --build-arg where an ARG declares it"
                ));
            }
            WordError::Depth | WordError::Size | WordError::Effort => return place,
        };
        place.with_suggestion(hint)
    }
}

/// What came of an expansion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The word as a whole.
    pub text: String,
    /// The words after splitting at unquoted blanks, those from variables included.
    pub words: Vec<String>,
    /// Variables that were looked up and are not set.
    pub unset: BTreeSet<String>,
    /// Variables that were looked up and are set.
    pub used: BTreeSet<String>,
    /// What it cost, in characters that were written or compared.
    pub effort: usize,
}

/// Gives the value of a variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How words are expanded.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    escape: char,
    env: Lookup<'a>,
    /// Keep quotes in the result.
    raw_quotes: bool,
    /// Keep escape characters in the result.
    raw_escapes: bool,
    /// Leave variables that are not set as they are written.
    keep_unset: bool,
    /// Quotes are ordinary characters.
    ignore_quotes: bool,
}

fn nothing(_: &str) -> Option<String> {
    None
}

impl<'a> Expander<'a> {
    /// Quotes and escapes are removed, variables replaced; those not set are empty.
    pub fn new(escape: char, env: Lookup<'a>) -> Self {
        Expander {
            escape,
            env,
            raw_quotes: false,
            raw_escapes: false,
            keep_unset: false,
            ignore_quotes: false,
        }
    }

    /// Splits, but changes nothing.
    pub fn raw(escape: char) -> Expander<'static> {
        Expander { raw_quotes: true, raw_escapes: true, ..Expander::unset_kept(escape) }
    }

    /// Removes escapes only.
    pub fn quotes_kept(escape: char) -> Expander<'static> {
        Expander { raw_quotes: true, ..Expander::unset_kept(escape) }
    }

    /// Removes quotes and escapes, but knows no variable and leaves all as they are written.
    pub fn unset_kept(escape: char) -> Expander<'static> {
        Expander { keep_unset: true, ..Expander::new(escape, &nothing) }
    }

    /// For the body of a here-document: quotes are ordinary characters, escapes stay.
    pub fn body(escape: char, env: Lookup<'a>) -> Self {
        Expander { ignore_quotes: true, raw_escapes: false, ..Expander::new(escape, env) }
    }

    /// The word as one text.
    pub fn text(&self, word: &str) -> Result<String, WordError> {
        self.expand(word).map(|e| e.text)
    }

    /// The word as words.
    pub fn words(&self, word: &str) -> Result<Vec<String>, WordError> {
        self.expand(word).map(|e| e.words)
    }

    /// The word as text and as words, with the variables that it met.
    pub fn expand(&self, word: &str) -> Result<Expansion, WordError> {
        let mut run = Run {
            how: *self,
            chars: word.chars().collect(),
            at: 0,
            raw_escapes: self.raw_escapes,
            depth: 0,
            limit: word.len() + MAX_EXPANSION,
            steps: 0,
            unset: BTreeSet::new(),
            used: BTreeSet::new(),
        };
        let (text, words) = run.until(None)?;
        let effort = run.steps + text.len();
        Ok(Expansion { text, words, unset: run.unset, used: run.used, effort })
    }
}

/// Words as they grow.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

struct Run<'a> {
    how: Expander<'a>,
    chars: Vec<char>,
    at: usize,
    raw_escapes: bool,
    depth: usize,
    /// The result may have this many bytes.
    limit: usize,
    /// What matching and nested substitutions took so far.
    steps: usize,
    unset: BTreeSet<String>,
    used: BTreeSet<String>,
}

impl Run<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Reads up to `stop`, which is taken, or to the end where there is none.
    fn until(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), WordError> {
        if self.depth >= MAX_DEPTH {
            return Err(WordError::Depth);
        }
        self.depth += 1;
        let mut text = String::new();
        let mut words = Words::default();
        let mut found_stop = stop.is_none();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.at += 1;
                found_stop = true;
                break;
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                }
                '\'' | '"' if !self.how.ignore_quotes => {
                    let value = if c == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    words.word.push_str(&value);
                    text.push_str(&value);
                }
                '<' => {
                    let opening = self.possible_heredoc();
                    words.word.push_str(&opening);
                    text.push_str(&opening);
                }
                _ if c == self.how.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        words.word.push(c);
                        text.push(c);
                    }
                    // An escape character at the very end stands for nothing.
                    let Some(next) = self.next() else { break };
                    words.word.push(next);
                    text.push(next);
                }
                _ => {
                    self.at += 1;
                    words.push(c);
                    text.push(c);
                }
            }
            if text.len() > self.limit {
                return Err(WordError::Size);
            }
        }
        self.depth -= 1;
        if found_stop { Ok((text, words.finish())) } else { Err(WordError::Unterminated(stop_name(stop))) }
    }

    /// Blanks after `<<` belong to the word that follows, as in `<< EOF`.
    fn possible_heredoc(&mut self) -> String {
        let start = self.at;
        self.at += 1;
        if self.peek() == Some('<') {
            self.at += 1;
            while matches!(self.peek(), Some('\t' | '\r' | ' ')) {
                self.at += 1;
            }
        }
        self.chars[start..self.at].iter().collect()
    }

    fn single_quoted(&mut self) -> Result<String, WordError> {
        let mut text = String::new();
        let open = self.next();
        if self.how.raw_quotes {
            text.extend(open);
        }
        loop {
            match self.next().ok_or(WordError::Unterminated("single quote"))? {
                '\'' => {
                    if self.how.raw_quotes {
                        text.push('\'');
                    }
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, WordError> {
        let mut text = String::new();
        let open = self.next();
        if self.how.raw_quotes {
            text.extend(open);
        }
        loop {
            match self.peek().ok_or(WordError::Unterminated("double quote"))? {
                '"' => {
                    self.at += 1;
                    if self.how.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                '$' => text.push_str(&self.dollar()?),
                c => {
                    self.at += 1;
                    let mut c = c;
                    if c == self.how.escape {
                        if self.raw_escapes {
                            text.push(c);
                        }
                        match self.peek() {
                            None => continue,
                            // Only these lose the escape character inside double quotes.
                            Some(n) if n == '"' || n == '$' || n == self.how.escape => {
                                self.at += 1;
                                c = n;
                            }
                            Some(_) if self.raw_escapes => continue,
                            Some(_) => {}
                        }
                    }
                    text.push(c);
                }
            }
            if text.len() > self.limit {
                return Err(WordError::Size);
            }
        }
    }

    /// A variable name, a run of digits, or one special character; empty where there is none.
    fn name(&mut self) -> String {
        let take = |run: &mut Self, ok: fn(char) -> bool| {
            let start = run.at;
            while run.peek().is_some_and(ok) {
                run.at += 1;
            }
            run.chars[start..run.at].iter().collect()
        };
        match self.peek() {
            Some(c) if c.is_numeric() => take(self, char::is_numeric),
            Some(c) if "@*#?-$!".contains(c) => {
                self.at += 1;
                c.to_string()
            }
            _ => take(self, |c| c.is_alphanumeric() || c == '_'),
        }
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = (self.how.env)(name);
        let seen = if value.is_some() { &mut self.used } else { &mut self.unset };
        seen.insert(name.to_owned());
        value
    }

    /// Reads up to `stop` with escapes kept or removed.
    fn operand(&mut self, stop: char, raw_escapes: bool) -> Result<String, WordError> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until(Some(stop));
        self.raw_escapes = before;
        let (text, _) = result?;
        self.steps += text.len();
        if self.steps > self.limit + MAX_MATCH_STEPS {
            return Err(WordError::Effort);
        }
        Ok(text)
    }

    fn dollar(&mut self) -> Result<String, WordError> {
        let start = self.at;
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(&name) {
                None if self.how.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.at += 1;
        let written =
            |run: &Self| run.chars[start..run.at.min(run.chars.len())].iter().take(80).collect::<String>();
        match self.peek() {
            None => return Err(WordError::Unterminated("'}'")),
            Some('{' | '}' | ':') => {
                self.at += 1;
                return Err(WordError::BadSubstitution(written(self)));
            }
            Some(_) => {}
        }
        let name = self.name();
        let mut modifier = self.next().ok_or(WordError::Unterminated("'}'"))?;
        let mut spelled = modifier.to_string();
        let null_is_unset = modifier == ':';
        if null_is_unset {
            modifier = self.next().ok_or(WordError::Unterminated("'}'"))?;
            spelled.push(modifier);
        }
        match modifier {
            '}' if !null_is_unset => Ok(match self.lookup(&name) {
                None if self.how.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            '+' | '-' | '?' | '#' | '%' => {
                let pattern = matches!(modifier, '#' | '%');
                let word = self.operand('}', pattern)?;
                let value = self.lookup(&name);
                if self.how.keep_unset && value.is_none() {
                    return Ok(format!("${{{name}{spelled}{word}}}"));
                }
                let given = value.clone().filter(|v| !(null_is_unset && v.is_empty()));
                match modifier {
                    '-' => Ok(given.unwrap_or(word)),
                    '+' => Ok(given.map(|_| word).unwrap_or_default()),
                    '?' => given.ok_or_else(|| WordError::Required {
                        name,
                        message: match (word.is_empty(), value.is_some()) {
                            (false, _) => word,
                            (true, false) => "is not set".to_owned(),
                            (true, true) => "is empty".to_owned(),
                        },
                    }),
                    _ if null_is_unset => Err(WordError::Modifier(spelled)),
                    _ => trim(&value.unwrap_or_default(), &word, modifier, &mut self.steps),
                }
            }
            '/' if !null_is_unset => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.operand('/', true)?;
                let replacement = self.operand('}', true)?;
                match self.lookup(&name) {
                    None if self.how.keep_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
                    value => {
                        let value = value.unwrap_or_default();
                        replace(&value, &pattern, &replacement, all, &mut self.steps)
                    }
                }
            }
            _ => Err(WordError::Modifier(spelled)),
        }
    }
}

fn stop_name(stop: Option<char>) -> &'static str {
    match stop {
        Some('/') => "'/' in ${}",
        _ => "'}'",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        Some(
            match name {
                "PWD" => "/home",
                "empty" => "",
                "path" => "a/b/c.tar.gz",
                "spaced" => " x  y ",
                "big" => return Some("x".repeat(100_000)),
                _ => return None,
            }
            .to_owned(),
        )
    }

    #[test]
    fn forms() {
        for (word, want) in [
            ("${path#*/}", "b/c.tar.gz"),
            ("${path##*/}", "c.tar.gz"),
            ("${path%.*}", "a/b/c.tar"),
            ("${path%%.*}", "a/b/c"),
            ("${path/b/X}", "a/X/c.tar.gz"),
            ("${path//\\//-}", "a-b-c.tar.gz"),
            ("${path//?/x}", "xxxxxxxxxxxx"),
            ("${path/nothing/x}", "a/b/c.tar.gz"),
            ("${path/*/x}", "x"),
            ("${path//./}", "a/b/ctargz"),
            ("${none#*}", ""),
            ("${empty:-d}${empty-d}", "d"),
            ("${PWD:+set}${none:+set}", "set"),
            ("\"${none:-a b}\"", "a b"),
            ("${none:-'a b'}", "a b"),
            ("a\\$b '$c' \"\\$d\"", "a$b $c $d"),
        ] {
            assert_eq!(Expander::new('\\', &env).text(word).as_deref(), Ok(want), "{word}");
        }
        let e = Expander::new('\\', &env).expand("$spaced\"$spaced\" $none").unwrap();
        assert_eq!(e.words, ["x", "y", " x  y "]);
        assert_eq!(e.unset.into_iter().collect::<Vec<_>>(), ["none"]);
    }

    #[test]
    fn errors_say_what_is_missing() {
        for (word, want) in [
            ("${PWD", "missing '}'"),
            ("${none:?}", "none: is not set"),
            ("${empty:?}", "empty: is empty"),
            ("${none?say so}", "none: say so"),
            ("${}", "bad substitution '${}'"),
            ("${PWD:=x}", "unsupported modifier ':=' in a substitution"),
            ("'x", "missing single quote"),
            ("${PWD/x}", "missing '/' in ${}"),
            ("${PWD#\\a}", "invalid escape '\\a' in a pattern"),
        ] {
            let error = Expander::new('\\', &env).text(word).unwrap_err();
            assert_eq!(error.to_string(), want, "{word}");
            let shown = error.at(&SourceText::new("Dockerfile", word.as_bytes()), Span::new(0, word.len()));
            assert!(shown.suggestion.is_some(), "{word}");
        }
    }

    #[test]
    fn other_modes() {
        assert_eq!(
            Expander::raw('\\').words("a 'b c' \"d\\\" $e\" f\\ g").unwrap(),
            ["a", "'b c'", "\"d\\\" $e\"", "f\\ g"]
        );
        assert_eq!(
            Expander::raw('\\').words("cat <<  'a b' x<y < z").unwrap(),
            ["cat", "<<  'a b'", "x<y", "<", "z"]
        );
        assert_eq!(Expander::quotes_kept('\\').text("a\\ 'b\\'").unwrap(), "a 'b\\'");
        assert_eq!(Expander::unset_kept('\\').text("'a'$b${c:-d}").unwrap(), "a$b${c:-d}");
        assert_eq!(Expander::body('\\', &env).text("it's \"$PWD\" \\$x").unwrap(), "it's \"/home\" $x");
        assert_eq!(Expander::new('`', &env).text("a`$b\\$PWD").unwrap(), "a$b\\/home");
    }

    #[test]
    fn hostile_words_are_bounded() {
        let deep = "${a:-".repeat(10_000);
        assert_eq!(Expander::new('\\', &env).text(&deep), Err(WordError::Depth));
        let large = "$big".repeat(20);
        assert_eq!(Expander::new('\\', &env).text(&large), Err(WordError::Size));
        let slow = format!("${{big//{}y/z}}", "*x".repeat(200));
        assert_eq!(Expander::new('\\', &env).text(&slow), Err(WordError::Effort));
    }
}
