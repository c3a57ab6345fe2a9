//! Stanzas of `Field: value` lines (deb822(5)), read in place: nothing is copied but what a caller keeps.

use memchr::{memchr, memmem};

/// The stanzas of a text, each without the empty lines around it.
pub fn stanzas(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches(['\n', '\r']);
            if rest.is_empty() {
                return None;
            }
            let end = memmem::find(rest.as_bytes(), b"\n\n").map_or(rest.len(), |at| at + 1);
            let (stanza, after) = rest.split_at(end);
            rest = after;
            let blank = stanza.lines().all(|line| line.trim().is_empty() || line.starts_with('#'));
            if !blank {
                return Some(stanza);
            }
        }
    })
}

/// The fields of a stanza in their order. A value has its continuation lines with the line breaks between
/// them; the blanks around the whole are cut off. Comment lines (`#`) are left out between fields.
pub fn fields(stanza: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = stanza;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let mut end = line_end(rest);
            // Lines that begin with a blank belong to the field before them.
            while matches!(rest.as_bytes().get(end), Some(b' ' | b'\t')) {
                end += line_end(&rest[end..]);
            }
            let (whole, after) = rest.split_at(end);
            rest = after;
            if whole.starts_with('#') {
                continue;
            }
            if let Some((name, value)) = whole.split_once(':') {
                return Some((name, value.trim()));
            }
        }
        None
    })
}

/// The value of a field, whose name is compared without regard to case.
pub fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    fields(stanza).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The length of the first line with its line break.
fn line_end(text: &str) -> usize {
    memchr(b'\n', text.as_bytes()).map_or(text.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_and_their_fields() {
        let text =
            "\n\nPackage: a\nVersion: 1\nDescription: short\n long: not a field\n .\n\n\n# c\n\nPackage: b";
        let all: Vec<_> = stanzas(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(field(all[0], "version"), Some("1"));
        assert_eq!(field(all[0], "Description"), Some("short\n long: not a field\n ."));
        assert_eq!(field(all[0], " long"), None);
        assert_eq!(field(all[1], "PACKAGE"), Some("b"));
        assert_eq!(field(all[1], "Version"), None);
        assert_eq!(fields(all[0]).count(), 3);
    }

    #[test]
    fn odd_text_is_survived() {
        for text in
            ["", "\n", ":", "no colon here", " leading blank", "A:", "A:\n", "A: 1\n# c: 2\nB: 3", "\r\n\r\n"]
        {
            for stanza in stanzas(text) {
                for (name, value) in fields(stanza) {
                    assert!(!name.contains('\n') && value.trim() == value);
                }
            }
        }
        assert_eq!(field("A: 1\n# c: 2\nB: 3", "B"), Some("3"));
        assert_eq!(field("A:\n x\n y\nB: 3", "A"), Some("x\n y"));
    }
}
