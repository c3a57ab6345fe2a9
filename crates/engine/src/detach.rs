//! Keys that let go of a container: typed one after the other, they are for this program and not for the one in there.

use std::time::{Duration, Instant};

use crate::error::Result;

/// So long the first of the keys is kept from the program, while the next one may come: who types `ctrl-p` alone means the
/// shell's history.
const HOLD: Duration = Duration::from_millis(500);

/// Reads keys as docker writes them: letters, and `ctrl-` with a letter or one of `@^[,_`, with commas between.
///
/// # Errors
/// That is none.
pub(crate) fn parse(text: &str) -> Result<Vec<u8>> {
    let key = |word: &str| match word.as_bytes() {
        [only] => Some(*only),
        _ => match *word.strip_prefix("ctrl-")?.as_bytes() {
            [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
            [b'@'] => Some(0),
            [b'['] => Some(27),
            [b'\\'] => Some(28),
            [b']'] => Some(29),
            [b'^'] => Some(30),
            [b'_'] => Some(31),
            _ => None,
        },
    };
    let words = text.split(',').filter(|_| !text.is_empty());
    words.map(key).collect::<Option<Vec<u8>>>().ok_or_else(|| {
        isles_spec::Error::new(format!("invalid detach keys ({text})"))
            .with_hint("write letters and ctrl-LETTER with commas between, such as ctrl-p,ctrl-q")
            .into()
    })
}

/// What was typed of the keys.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: Vec<u8>,
    typed: usize,
    last: Instant,
}

impl Keys {
    /// Without any keys nothing lets go.
    pub fn new(keys: &[u8]) -> Keys {
        Keys { keys: keys.to_vec(), typed: 0, last: Instant::now() }
    }

    /// Takes what was typed, and gives what is the program's of it. `true` where the last key has come, after which the rest is
    /// nobody's.
    pub fn take(&mut self, typed: &[u8], now: Instant) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut out = self.late(now);
        for byte in typed {
            if *byte != self.keys[self.typed] {
                out.extend_from_slice(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if *byte != self.keys[self.typed] {
                out.push(*byte);
                continue;
            }
            self.typed += 1;
            self.last = now;
            if self.typed == self.keys.len() {
                self.typed = 0;
                return (out, true);
            }
        }
        (out, false)
    }

    /// When what was typed so far is the program's.
    pub fn deadline(&self) -> Option<Instant> {
        (self.typed > 0).then(|| self.last + HOLD)
    }

    /// Keys that the next one did not follow in time.
    pub fn late(&mut self, now: Instant) -> Vec<u8> {
        match self.deadline() {
            Some(end) if now >= end => self.keys[..std::mem::take(&mut self.typed)].to_vec(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", Some(vec![16, 17])),
            ("a", Some(vec![b'a'])),
            ("ctrl-@,x,ctrl-_", Some(vec![0, b'x', 31])),
            ("", Some(vec![])),
            ("ctrl-", None),
            ("ctrl-P", None),
            ("ab", None),
            ("a,,b", None),
        ] {
            assert_eq!(parse(text).ok(), keys, "{text}");
        }
    }

    #[test]
    fn keys_let_go() {
        let begin = Instant::now();
        let run = |keys: &[u8], pieces: &[(u64, &[u8])]| {
            let mut keys = Keys::new(keys);
            let mut out = Vec::new();
            for (at, piece) in pieces {
                let now = begin + Duration::from_millis(*at);
                out.extend(keys.late(now));
                let (text, let_go) = keys.take(piece, now);
                out.extend(text);
                if let_go {
                    return (out, true);
                }
            }
            (out, false)
        };
        const USUAL: &[u8] = b"\x10\x11";
        type Typed<'a> = &'a [(u64, &'a [u8])];
        let cases: [(&[u8], Typed<'_>, &[u8], bool); 11] = [
            (USUAL, &[(0, b"ab\x10\x11c")], b"ab", true),
            (USUAL, &[(0, b"a\x10"), (300, b"\x11")], b"a", true),
            (USUAL, &[(0, b"a\x10"), (1, b"b")], b"a\x10b", false),
            (USUAL, &[(0, b"\x10\x10\x11")], b"\x10", true),
            (USUAL, &[(0, b"\x11")], b"\x11", false),
            // Too slow.
            (USUAL, &[(0, b"\x10"), (500, b"\x11")], b"\x10\x11", false),
            (USUAL, &[(0, b"\x10"), (900, b"")], b"\x10", false),
            (USUAL, &[(0, b"\x10"), (400, b"")], b"", false),
            (b"x", &[(0, b"abxc")], b"ab", true),
            (b"aab", &[(0, b"aacaab")], b"aac", true),
            (b"", &[(0, b"\x10\x11")], b"\x10\x11", false),
        ];
        for (keys, pieces, out, let_go) in cases {
            assert_eq!(run(keys, pieces), (out.to_vec(), let_go), "{pieces:?}");
        }
    }
}
