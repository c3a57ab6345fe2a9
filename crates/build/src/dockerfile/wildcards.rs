//! Patterns in substitutions: `*`, `?` and the backslash, matched in a bounded number of steps.

use super::words::{MAX_EXPANSION, WordError};

/// Steps that the pattern matches of one word may take.
pub const MAX_MATCH_STEPS: usize = 4_000_000;

/// A piece of a pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Piece {
    Char(char),
    /// `?`: any character but a line end.
    Any,
    /// `*`: any number of those.
    Star,
}

fn pieces(pattern: &str) -> Result<Vec<Piece>, WordError> {
    let mut out = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(match c {
            '*' if out.last() == Some(&Piece::Star) => continue,
            '*' => Piece::Star,
            '?' => Piece::Any,
            '\\' => match chars.next() {
                Some(c @ ('}' | '/' | '*' | '?' | '\\')) => Piece::Char(c),
                other => return Err(WordError::PatternEscape(other.unwrap_or(' '))),
            },
            c => Piece::Char(c),
        });
    }
    Ok(out)
}

/// Where a match of the whole pattern that begins at the first character may end: the shortest and the
/// longest. All positions are followed at once, so the effort is bounded by length times length.
fn match_ends(
    pattern: &[Piece],
    text: impl Iterator<Item = char>,
    steps: &mut usize,
) -> Result<Option<(usize, usize)>, WordError> {
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    let pass_stars = |at: &mut Vec<bool>| {
        for (i, p) in pattern.iter().enumerate() {
            at[i + 1] |= at[i] && *p == Piece::Star;
        }
    };
    pass_stars(&mut at);
    let mut found = at[pattern.len()].then_some((0, 0));
    for (read, c) in text.enumerate() {
        *steps += pattern.len() + 1;
        if *steps > MAX_MATCH_STEPS {
            return Err(WordError::Effort);
        }
        let mut next = vec![false; pattern.len() + 1];
        for (i, p) in pattern.iter().enumerate().filter(|(i, _)| at[*i]) {
            match p {
                Piece::Star if c != '\n' => next[i] = true,
                Piece::Any if c != '\n' => next[i + 1] = true,
                Piece::Char(p) if *p == c => next[i + 1] = true,
                _ => {}
            }
        }
        pass_stars(&mut next);
        at = next;
        if at[pattern.len()] {
            found = Some((found.map_or(read + 1, |(short, _)| short), read + 1));
        } else if !at.contains(&true) {
            break;
        }
    }
    Ok(found)
}

/// `${v#p}` and its kin: `side` is `#` or `%`, a doubled one stands at the start of `pattern`.
pub fn trim(value: &str, pattern: &str, side: char, steps: &mut usize) -> Result<String, WordError> {
    let (longest, pattern) = match pattern.strip_prefix(side) {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let mut pattern = pieces(pattern)?;
    let chars: Vec<char> = value.chars().collect();
    let ends = if side == '#' {
        match_ends(&pattern, chars.iter().copied(), steps)?
    } else {
        pattern.reverse();
        match_ends(&pattern, chars.iter().rev().copied(), steps)?
    };
    let Some((short, long)) = ends else { return Ok(value.to_owned()) };
    let cut = if longest { long } else { short };
    Ok(if side == '#' { chars[cut..].iter().collect() } else { chars[..chars.len() - cut].iter().collect() })
}

/// `${v/p/r}` and `${v//p/r}`: the first match, or all of them.
pub fn replace(
    value: &str,
    pattern: &str,
    replacement: &str,
    all: bool,
    steps: &mut usize,
) -> Result<String, WordError> {
    let pattern = pieces(pattern)?;
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    // An empty match right after a match does not count.
    let mut last_end = None;
    while at <= chars.len() {
        match match_ends(&pattern, chars[at..].iter().copied(), steps)? {
            Some((_, end)) if end > 0 || last_end != Some(at) => {
                out.push_str(replacement);
                if end == 0 {
                    out.extend(chars.get(at));
                    at += 1;
                } else {
                    at += end;
                    last_end = Some(at);
                }
                if !all {
                    out.extend(chars.get(at..).unwrap_or_default());
                    return Ok(out);
                }
            }
            _ => {
                out.extend(chars.get(at));
                at += 1;
            }
        }
        if out.len() > MAX_EXPANSION {
            return Err(WordError::Size);
        }
    }
    Ok(out)
}
