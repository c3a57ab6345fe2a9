//! `--filter KEY=VALUE`, and the patterns in it.

use std::str::FromStr;

use isles_spec::Error;

use crate::failure::Failure;

/// One condition on what is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub key: String,
    pub value: String,
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Filter { key: key.to_ascii_lowercase(), value: value.to_owned() })
            }
            _ => {
                Err(Error::new(format!("invalid filter '{text}'")).with_hint("a filter is written KEY=VALUE"))
            }
        }
    }
}

impl Filter {
    /// The failure of a filter that the command does not have.
    pub fn unknown(&self, known: &str) -> Failure {
        Failure::new(format!("unknown filter '{}'", self.key)).with_hint(format!("filters are {known}"))
    }

    /// The value as a truth.
    pub fn truth(&self) -> Result<bool, Failure> {
        match self.value.as_str() {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(true),
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
            other => Err(Failure::new(format!("filter '{}' is true or false, not '{other}'", self.key))),
        }
    }
}

/// Whether labels have `KEY` or `KEY=VALUE`.
pub fn has_label(labels: &std::collections::BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
        None => labels.contains_key(wanted),
    }
}

/// Shell patterns as docker's filters have them: `*` and `?` match within a path component, `[a-z]` one of a
/// set.
pub fn glob(pattern: &str, text: &str) -> bool {
    matches(pattern.as_bytes(), text.as_bytes())
}

fn matches(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // Where the last star was, and how far it has eaten.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            retry = Some((rest, text));
            pattern = rest;
            continue;
        }
        let step = match (pattern, text) {
            ([], []) => return true,
            ([b'?', p @ ..], [c, t @ ..]) if *c != b'/' => Some((p, t)),
            ([b'[', p @ ..], [c, t @ ..]) => set(p, *c).map(|p| (p, t)),
            ([b'\\', p, rest @ ..], [c, t @ ..]) if p == c => Some((rest, t)),
            ([p, rest @ ..], [c, t @ ..]) if p == c && !matches!(p, b'?' | b'\\') => Some((rest, t)),
            _ => None,
        };
        if let Some((p, t)) = step {
            (pattern, text) = (p, t);
            continue;
        }
        match retry {
            Some((p, [c, t @ ..])) if *c != b'/' => {
                (pattern, text) = (p, t);
                retry = Some((p, t));
            }
            _ => return false,
        }
    }
}

/// What follows a set that `c` is in.
fn set(pattern: &[u8], c: u8) -> Option<&[u8]> {
    let end = 1 + pattern.iter().skip(1).position(|b| *b == b']')?;
    let (inside, rest) = (&pattern[..end], &pattern[end + 1..]);
    let (negated, inside) = match inside {
        [b'^' | b'!', inside @ ..] => (true, inside),
        inside => (false, inside),
    };
    let mut found = false;
    let mut at = inside;
    loop {
        match at {
            [low, b'-', high, more @ ..] => {
                found |= (*low..=*high).contains(&c);
                at = more;
            }
            [one, more @ ..] => {
                found |= *one == c;
                at = more;
            }
            [] => break,
        }
    }
    (found != negated && c != b'/').then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("debian", "debian", true),
            ("deb*", "debian", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("*/*:1.*", "user/app:1.2", true),
            ("d?bian", "debian", true),
            ("[a-e]ebian", "debian", true),
            ("[^a-e]ebian", "debian", false),
            ("[]", "x", false),
            ("[", "[", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("*a*a*a*a*a*a*b", &"a".repeat(2000), false),
            ("", "", true),
            ("**x", "aax", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
