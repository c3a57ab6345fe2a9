//! Percent-encoding of URLs: bytes as `%XX` (RFC 3986, sections 2.1 and 2.3).
//!
//! Which characters stay bare differs from one part of a URL to another, and what to do about bytes that are no
//! UTF-8 from one reader to another; both are the caller's to say.

/// Encodes every byte but the unreserved characters and those in `bare`.
pub fn encode(text: impl AsRef<[u8]>, bare: &[u8]) -> String {
    let bytes = text.as_ref();
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (b.is_ascii() && bare.contains(&b)) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// The bytes that a text stands for. A `%` that begins no sequence stands for itself.
pub fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        match byte_of(after).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// As [`decode`]; nothing where a `%` begins no sequence.
pub fn decode_strict(text: &str) -> Option<Vec<u8>> {
    text.as_bytes().split(|b| *b == b'%').skip(1).all(|after| byte_of(after).is_some()).then(|| decode(text))
}

/// The byte of the two digits at the beginning. No sign: `from_str_radix` would take `+A`.
fn byte_of(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = digits else { return None };
    let digit = |b: u8| char::from(b).to_digit(16);
    Some((digit(*high)? * 16 + digit(*low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_sequences() {
        for (text, bare, encoded) in [
            ("aZ09-._~", "", "aZ09-._~"),
            ("a b/c:d", "", "a%20b%2Fc%3Ad"),
            ("a b/c:d", "/:", "a%20b/c:d"),
            ("100%", "", "100%25"),
            ("é\0", "", "%C3%A9%00"),
        ] {
            assert_eq!(encode(text, bare.as_bytes()), encoded);
            assert_eq!(decode(encoded), text.as_bytes());
            assert_eq!(decode_strict(encoded).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_sequence_stays_or_is_refused() {
        for (text, bytes) in [
            ("%", "%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
            ("%%41", "%A"),
            ("%+A", "%+A"),
            ("%4%31", "%41"),
            ("a%é", "a%é"),
        ] {
            assert_eq!(decode(text), bytes.as_bytes(), "{text}");
            assert_eq!(decode_strict(text), None, "{text}");
        }
        assert_eq!(decode_strict("%ff%C3"), Some(vec![0xff, 0xc3]));
    }
}
