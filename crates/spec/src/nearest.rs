//! What somebody may have meant: the known word that is nearest to a misspelled one.

/// The known word nearest to `word`, where one is near enough to be meant: at most a third of its
/// letters, and no more than two, differ, and never all of them.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let letters = word.chars().count();
    let allowed = (letters / 3).clamp(1, 2).min(letters.saturating_sub(1));
    known
        .into_iter()
        .map(|k| (distance(&word, &k.to_ascii_lowercase()), k))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// How many letters have to change (optimal string alignment distance). `usize::MAX` where it would be more than
/// two for their lengths alone, or one of the words has more than 64 letters.
pub fn distance(a: &str, b: &str) -> usize {
    if a.len() > 256 || b.len() > 256 {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 2 || a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = a[i - 1] == b[j - 1];
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + usize::from(!same));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["RUN", "COPY", "ENTRYPOINT", "FROM", "A"];
        for (word, near) in [
            ("RNU", Some("RUN")),
            ("cpoy", Some("COPY")),
            ("ENTRYPONT", Some("ENTRYPOINT")),
            ("FORM", Some("FROM")),
            ("banana", None),
            ("", None),
            ("x", None),
            ("a", Some("A")),
        ] {
            assert_eq!(nearest(word, known), near, "{word}");
        }
        assert_eq!(distance("käse", "kase"), 1, "letters, not bytes");
        assert_eq!(distance(&"x".repeat(65), &"x".repeat(65)), usize::MAX);
    }
}
