//! File name patterns: glob(3) by bytes, and a walk that never leaves its folder.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Whether a name matches a pattern of one component: `*`, `?`, `[…]`, a backslash before any character. A leading dot
/// must be written.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    run(pattern, name)
}

/// A pattern that matches this name and no other.
pub fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '*' | '?' | '[' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Without recursion: only the last star is ever tried again, so this takes no more than the product of both lengths.
fn run(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match class(&pattern[p..], name[n]) {
                Some((true, length)) => Some(p + length),
                Some((false, _)) => None,
                None => (name[n] == b'[').then_some(p + 1),
            },
            Some(b'\\') if p + 1 < pattern.len() => (pattern[p + 1] == name[n]).then_some(p + 2),
            Some(b) => (*b == name[n]).then_some(p + 1),
            None => None,
        };
        match (step, star) {
            (Some(next), _) => {
                n += if pattern[p] == b'?' { one_character(&name[n..]) } else { 1 };
                p = next;
            }
            (None, Some((after, from))) => {
                let from = from + 1;
                star = Some((after, from));
                p = after;
                n = from;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

/// Bytes of the character that a text begins with; one where it is no UTF-8.
fn one_character(text: &[u8]) -> usize {
    let length = match text[0] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    length.min(text.len())
}

/// `[…]`: whether a byte is in it, and how long it is; nothing where it is not closed.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let mut i = 1;
    let negated = matches!(pattern.get(i), Some(b'!' | b'^'));
    if negated {
        i += 1;
    }
    let first = i;
    let mut found = false;
    loop {
        let b = *pattern.get(i)?;
        if b == b']' && i > first {
            return Some((found != negated, i + 1));
        }
        if b == b'[' && pattern.get(i + 1) == Some(&b':') {
            let end = pattern[i + 2..].windows(2).position(|w| w == b":]")?;
            found |= posix(&pattern[i + 2..i + 2 + end], byte);
            i += end + 4;
            continue;
        }
        if pattern.get(i + 1) == Some(&b'-') && pattern.get(i + 2).is_some_and(|c| *c != b']') {
            found |= (b..=pattern[i + 2]).contains(&byte);
            i += 3;
            continue;
        }
        found |= b == byte;
        i += 1;
    }
}

fn posix(name: &[u8], byte: u8) -> bool {
    match name {
        b"alpha" => byte.is_ascii_alphabetic(),
        b"digit" => byte.is_ascii_digit(),
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"upper" => byte.is_ascii_uppercase(),
        b"lower" => byte.is_ascii_lowercase(),
        b"space" => byte.is_ascii_whitespace(),
        b"punct" => byte.is_ascii_punctuation(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        _ => false,
    }
}

fn magic(part: &[u8]) -> bool {
    part.iter().any(|b| b"*?[\\".contains(b))
}

/// What below `root` matches a relative pattern, sorted by bytes. Links are followed only as the last component's own
/// name: a folder that is a link is entered where `enter` gives the folder it stands for.
///
/// # Errors
/// A pattern with `..`, or a folder that cannot be read.
pub fn walk(
    root: &Path,
    pattern: &str,
    enter: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<Vec<PathBuf>, String> {
    let parts: Vec<&str> = pattern.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("the pattern {pattern:?} leads out of the output folder"));
    }
    let mut found = vec![PathBuf::new()];
    for (i, part) in parts.iter().enumerate() {
        let mut next = Vec::new();
        for base in &found {
            let shown = root.join(base);
            let folder = if i == 0 { Some(shown) } else { folder_of(&shown, enter) };
            let Some(folder) = folder else { continue };
            if !magic(part.as_bytes()) {
                if folder.join(part).symlink_metadata().is_ok() {
                    next.push(base.join(part));
                }
                continue;
            }
            let entries =
                std::fs::read_dir(&folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
            for entry in entries {
                let name: OsString =
                    entry.map_err(|e| format!("cannot list {}: {e}", folder.display()))?.file_name();
                if matches(part.as_bytes(), name.as_bytes()) {
                    next.push(base.join(&name));
                }
            }
        }
        found = next;
    }
    let mut paths: Vec<Vec<u8>> = found.into_iter().map(|p| p.into_os_string().into_vec()).collect();
    paths.sort();
    Ok(paths.into_iter().map(|p| root.join(OsStr::from_bytes(&p))).collect())
}

fn folder_of(path: &Path, enter: &dyn Fn(&Path) -> Option<PathBuf>) -> Option<PathBuf> {
    let kind = path.symlink_metadata().ok()?;
    if kind.is_dir() {
        return Some(path.to_owned());
    }
    if kind.is_symlink() { enter(path).filter(|p| p.is_dir()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_patterns() {
        let table = [
            ("*.txt", "a.txt", true),
            ("*.txt", ".txt", false),
            (".*", ".txt", true),
            ("a?c", "abc", true),
            ("a?c", "a\u{fc}c", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("[[:digit:]]", "7", true),
            ("[", "[", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("", "", true),
            ("*", "", true),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_escaped_name_matches_itself_alone() {
        for name in ["a[1].txt", "*", "what?", "back\\slash", "plain"] {
            assert!(matches(escaped(name).as_bytes(), name.as_bytes()), "{name}");
            assert!(!matches(escaped(name).as_bytes(), b"a1.txt"), "{name}");
        }
    }

    #[test]
    fn many_stars_take_no_longer_than_both_lengths() {
        let pattern = "*a".repeat(2000);
        let name = "a".repeat(1999) + "b";
        assert!(!matches(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn a_walk_stays_below_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        for name in ["b.txt", "a.txt", "d/c.txt", "d/e/f.txt"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let none = |_: &Path| None;
        let names = |pattern: &str| -> Vec<String> {
            let found = walk(root, pattern, &none).unwrap();
            found.iter().map(|p| p.strip_prefix(root).unwrap().display().to_string()).collect()
        };
        assert_eq!(names("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(names("*/*.txt"), ["d/c.txt"]);
        assert_eq!(names("d/e/f.txt"), ["d/e/f.txt"]);
        assert_eq!(names("link/passwd"), [""; 0]);
        assert_eq!(names("."), [""]);
        assert!(walk(root, "../*", &none).is_err());
    }
}
