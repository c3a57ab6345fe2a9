//! Dates as Release files write them, `Sat, 11 Jul 2026 10:16:37 UTC` (RFC 2822 with zones in words).

/// Seconds since 1970 of such a date.
pub fn parse(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, clock, zone] = words[..] else { return None };
    if !matches!(zone, "UTC" | "GMT" | "+0000" | "Z") {
        return None;
    }
    let day: u64 = day.parse().ok().filter(|d| (1..=31).contains(d))?;
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let year: u64 = year.parse().ok().filter(|y| (1970..10_000).contains(y))?;
    let clock: Vec<u64> = clock.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // The year begins in March, so that the leap day is its last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", Some(0)),
            ("Sat, 11 Jul 2026 10:16:37 UTC", Some(1_783_764_997)),
            ("Tue, 29 Feb 2000 12:00:00 +0000", Some(951_825_600)),
            ("Sat, 9 Aug 2025 09:16:30 GMT", Some(1_754_730_990)),
            ("Sat, 32 Aug 2025 09:16:30 GMT", None),
            ("Sat, 9 Aug 2025 24:16:30 GMT", None),
            ("Sat, 9 Aug 2025 09:16:30 CET", None),
            ("2025-08-09", None),
            ("", None),
        ] {
            assert_eq!(super::parse(text), seconds, "{text}");
        }
    }
}
