//! Patterns of paths: what `.dockerignore` and `--exclude` leave out, and the wildcards of COPY.
//!
//! Both are matched by following all possibilities at once, so that no pattern takes longer than its length
//! times that of the path. References: the matcher that docker and BuildKit share (`.dockerignore`), Go's
//! `path/filepath.Match` (wildcards).

use std::path::Path;

/// One piece of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Char(char),
    /// `?`: any character of a name.
    Any,
    /// `*`: any number of those.
    Star,
    /// `**/`, or `**` before something else: any number of whole directories.
    Directories,
    /// `**` at the end, or at the start of what is plain otherwise: anything.
    Anything,
    /// `[a-z]`, negated by `^`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A pattern that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    pieces: Vec<Piece>,
}

impl Glob {
    /// Reads a pattern. With `deep`, `**` reaches over directories.
    ///
    /// # Errors
    /// A bracket has no end, or an escape character stands last.
    pub fn new(pattern: &str, deep: bool) -> Result<Glob, &'static str> {
        let mut pieces = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' if deep && chars.next_if_eq(&'*').is_some() => {
                    let slash = chars.next_if_eq(&'/').is_some();
                    // At the start of a pattern that is plain otherwise it is about the end of the path.
                    let suffix = pieces.is_empty() && !slash && !chars.clone().any(|c| "*?[]\\".contains(c));
                    match chars.peek() {
                        None => Piece::Anything,
                        Some(_) if suffix => Piece::Anything,
                        Some(_) => Piece::Directories,
                    }
                }
                '*' => Piece::Star,
                '?' => Piece::Any,
                '\\' => Piece::Char(chars.next().ok_or("it ends in an escape character")?),
                '[' => class(&mut chars)?,
                c => Piece::Char(c),
            });
        }
        Ok(Glob { pieces })
    }

    /// Whether the whole of `text` fits.
    pub fn matches(&self, text: &str) -> bool {
        self.read(text, false)
    }

    /// Whether a path fits, or a directory above it.
    pub fn matches_above(&self, path: &str) -> bool {
        self.read(path, true)
    }

    /// Follows all possibilities through `text`; with `above` it is enough that one ends before a slash.
    fn read(&self, text: &str, above: bool) -> bool {
        let count = self.pieces.len();
        // `at[i]`: the pieces before `i` fit what was read. `within[i]`: piece `i` is a `**/` in the middle of a
        // directory's name.
        let (mut at, mut next) = (vec![false; count + 1], vec![false; count + 1]);
        let (mut within, mut next_within) = (vec![false; count], vec![false; count]);
        at[0] = true;
        self.skip_empty(&mut at);
        for c in text.chars() {
            if above && c == '/' && at[count] {
                return true;
            }
            next.fill(false);
            next_within.fill(false);
            for (i, piece) in self.pieces.iter().enumerate() {
                if !at[i] && !within[i] {
                    continue;
                }
                match piece {
                    Piece::Char(p) => next[i + 1] |= *p == c,
                    Piece::Any => next[i + 1] |= c != '/',
                    Piece::Star => next[i] |= c != '/',
                    Piece::Anything => next[i] = true,
                    Piece::Directories => {
                        next_within[i] = true;
                        next[i + 1] |= c == '/';
                    }
                    Piece::Class { negated, ranges } => {
                        let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                        next[i + 1] |= c != '/' && inside != *negated;
                    }
                }
            }
            self.skip_empty(&mut next);
            std::mem::swap(&mut at, &mut next);
            std::mem::swap(&mut within, &mut next_within);
            if !at.contains(&true) && !within.contains(&true) {
                return false;
            }
        }
        at[count]
    }

    /// Pieces that may stand for nothing.
    fn skip_empty(&self, at: &mut [bool]) {
        for (i, piece) in self.pieces.iter().enumerate() {
            at[i + 1] |= at[i] && matches!(piece, Piece::Star | Piece::Anything | Piece::Directories);
        }
    }
}

/// What stands between brackets; the opening one is read.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Piece, &'static str> {
    const OPEN: &str = "a bracket has no end";
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let mut one = || match chars.next().ok_or(OPEN)? {
            '\\' => chars.next().ok_or(OPEN),
            c => Ok(c),
        };
        let low = one()?;
        if low == ']' && !ranges.is_empty() {
            return Ok(Piece::Class { negated, ranges });
        }
        let high = match chars.next_if_eq(&'-') {
            None => low,
            Some(_) => match chars.next().ok_or(OPEN)? {
                '\\' => chars.next().ok_or(OPEN)?,
                c => c,
            },
        };
        ranges.push((low, high));
    }
}

/// A pattern may have this many bytes (`PATH_MAX` of Linux).
const MAX_PATTERN: usize = 4096;

/// Whether a word has a wildcard.
pub fn has_wildcard(word: &str) -> bool {
    word.contains(['*', '?', '[', '\\'])
}

/// Paths that are left out: patterns in order, of which the last that fits decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    glob: Glob,
    /// `!`: what fits is in again.
    back: bool,
}

impl Ignore {
    /// Reads the text of a `.dockerignore`.
    ///
    /// # Errors
    /// The line, from 1, and what is wrong there.
    pub fn read(text: &str) -> Result<Ignore, (usize, &'static str)> {
        let mut ignore = Ignore::default();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (number, line) in text.lines().enumerate() {
            // Only in the first column does '#' begin a comment.
            if !line.starts_with('#') {
                ignore.add(line).map_err(|why| (number + 1, why))?;
            }
        }
        Ok(ignore)
    }

    /// Adds one pattern.
    pub fn add(&mut self, line: &str) -> Result<(), &'static str> {
        let line = line.trim();
        if line.is_empty() {
            return Ok(());
        }
        if line.strip_prefix('!').is_some_and(|rest| rest.trim_matches([' ', '\t', '/']).is_empty()) {
            return Err("a '!' has no pattern");
        }
        let (mut back, pattern) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, line),
        };
        let cleaned = clean(clean(pattern).trim());
        // As in docker's matcher blanks before a slash at the end do not count, and a '!' after one at the
        // start does.
        let mut pattern = cleaned.trim();
        if let Some(rest) = pattern.strip_prefix('!').filter(|_| !back) {
            (back, pattern) = (true, rest);
        }
        if pattern.is_empty() {
            return Ok(());
        }
        if pattern.len() > MAX_PATTERN {
            return Err("it is longer than a path may be (4096 bytes)");
        }
        self.rules.push(Rule { glob: Glob::new(pattern, true)?, back });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether something below a directory that is left out may be in again, so that it must be looked into.
    pub fn may_return(&self) -> bool {
        self.rules.iter().any(|r| r.back)
    }

    /// About what it costs to match a path, at most.
    pub fn effort(&self, path: &str) -> usize {
        let pieces: usize = self.rules.iter().map(|r| r.glob.pieces.len()).sum();
        8 * self.rules.len() + pieces * (path.len() + 1) / 4
    }

    /// Whether a pattern leaves out all there is at the top.
    pub fn leaves_out_all(&self) -> bool {
        let all = [vec![Piece::Star], vec![Piece::Anything], vec![Piece::Directories, Piece::Star]];
        self.rules.iter().any(|r| !r.back && all.contains(&r.glob.pieces))
    }

    /// Whether a path is left out, by itself or with a directory above it.
    pub fn is_left_out(&self, path: &Path) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        let text = path.to_string_lossy();
        let mut out = false;
        for rule in &self.rules {
            if rule.back == out && rule.glob.matches_above(&text) {
                out = !rule.back;
            }
        }
        out
    }
}

/// A pattern without `.`, `..` where it can be resolved, and needless slashes.
pub fn clean(pattern: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if out.last().is_some_and(|l| *l != "..") => {
                out.pop();
            }
            // Above the root is the root; what is above a relative path fits nothing.
            ".." if pattern.starts_with('/') => {}
            part => out.push(part),
        }
    }
    out.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a/b.txt", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[]a]", "]", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("**", "ab", true),
            ("", "", true),
            ("*", "", true),
            ("é*", "école", true),
        ] {
            assert_eq!(Glob::new(pattern, false).unwrap().matches(text), expected, "{pattern} {text}");
        }
        assert!(Glob::new("[a", false).is_err());
        assert!(Glob::new("a\\", false).is_err());
    }

    #[test]
    fn hostile_patterns_are_bounded() {
        let glob = Glob::new(&"*a".repeat(200), false).unwrap();
        assert!(!glob.matches(&"a".repeat(199)));
        let glob = Glob::new(&"**/".repeat(100), true).unwrap();
        assert!(glob.matches(&"a/".repeat(500)));
    }

    #[test]
    fn dockerignore() {
        for (text, path, out) in [
            ("node_modules", "node_modules", true),
            ("node_modules", "node_modules/x/y", true),
            ("node_modules", "a/node_modules", false),
            ("**/node_modules", "a/b/node_modules/x", true),
            ("**/node_modules", "node_modules", true),
            ("/x", "x", true),
            ("x/", "x/y", true),
            ("./x/../y", "y", true),
            ("*.md", "a.md", true),
            ("*.md", "d/a.md", false),
            ("**/*.md", "d/e/a.md", true),
            ("*", "anything", true),
            ("*\n!keep", "keep", false),
            ("*\n!keep", "keep/below", false),
            ("*\n!keep\nkeep/secret", "keep/secret", true),
            ("!keep\n*", "keep", true),
            ("# no\n x # y", "x # y", true),
            (" # not a comment", "# not a comment", true),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a**z", "a/b/z", true),
            ("/../x", "x", true),
            ("../x", "x", false),
            ("a**z", "abz", false),
            ("a***z", "a/b/cz", true),
            ("**.md", "a/b.md", true),
            ("**.m?", "a/b.md", false),
            ("a/ /", "a", true),
            ("../a", "a", false),
            ("/../a", "a", true),
            ("a /", "a", true),
            ("x*\n/!xy", "xy", false),
            ("", "x", false),
            (".", "x", false),
            ("\u{feff}x", "x", true),
        ] {
            assert_eq!(Ignore::read(text).unwrap().is_left_out(Path::new(path)), out, "{text:?} {path}");
        }
        for (text, all) in [
            ("*", true),
            ("a\n**/", true),
            ("**/a", false),
            ("**", true),
            ("/**/*", true),
            (".*", false),
            ("!*", false),
        ] {
            assert_eq!(Ignore::read(text).unwrap().leaves_out_all(), all, "{text}");
        }
        assert_eq!(Ignore::read("a\n!"), Err((2, "a '!' has no pattern")));
        assert!(Ignore::read("!/").is_err() && Ignore::read("!.\n./\n/").is_ok());
        assert!(Ignore::read("[").is_err());
        assert!(Ignore::read(&"x".repeat(MAX_PATTERN + 1)).is_err());
    }
}
