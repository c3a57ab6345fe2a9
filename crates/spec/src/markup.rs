//! Text in HTML and XML.

/// The text with what would be read as markup, or as the end of an attribute, as references.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_markup() {
        assert_eq!(escaped("a<b> & \"c\" 'd' \u{fc}"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; \u{fc}");
    }
}
