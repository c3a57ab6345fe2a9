//! Patterns for names: `*` stands for any characters but a slash, `**` for any, `?` for one.

/// Whether a name fits a pattern.
pub fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // Where the last star of each kind was, and how much of the name it has taken: enough to go back to.
    let (mut p, mut n) = (0, 0);
    let mut one: Option<(usize, usize)> = None;
    let mut many: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            // `**/` also stands for nothing at all.
            if pattern.get(p) == Some(&b'/') && fits_bytes(&pattern[p + 1..], &name[n..]) {
                return true;
            }
            many = Some((p, n));
            one = None;
            continue;
        }
        match (pattern.get(p), name.get(n)) {
            (Some(b'*'), _) => {
                p += 1;
                one = Some((p, n));
                continue;
            }
            (Some(b'?'), Some(c)) if *c != b'/' => {
                (p, n) = (p + 1, n + 1);
                continue;
            }
            (Some(a), Some(b)) if a == b && !matches!(a, b'?' | b'*') => {
                (p, n) = (p + 1, n + 1);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match (one, many) {
            (Some((at, taken)), _) if name.get(taken).is_some_and(|c| *c != b'/') => {
                (p, n) = (at, taken + 1);
                one = Some((at, n));
            }
            (_, Some((at, taken))) if taken < name.len() => {
                (p, n) = (at, taken + 1);
                many = Some((at, n));
                one = None;
            }
            _ => return false,
        }
    }
}

fn fits_bytes(pattern: &[u8], name: &[u8]) -> bool {
    match (std::str::from_utf8(pattern), std::str::from_utf8(name)) {
        (Ok(pattern), Ok(name)) => fits(pattern, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, yes) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "abc", true),
            ("*", "a/b", false),
            ("**", "a/b/c", true),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("**/x", "a/b/x", true),
            ("**/x", "x", true),
            ("a/**/x", "a/x", true),
            ("a/**/x", "a/b/c/x", true),
            ("a/**/x", "a/b/c/y", false),
            ("v?.*", "v1.20", true),
            ("*-rc*", "1.0-rc1", true),
            ("*a*b", "xaybzb", true),
            ("*a*b", "xaybz", false),
            ("?", "", false),
            ("?", "/", false),
        ] {
            assert_eq!(fits(pattern, name), yes, "{pattern} {name}");
        }
    }
}
