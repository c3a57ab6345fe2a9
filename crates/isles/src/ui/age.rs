//! Points in time as people read them: `3 days ago`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 of a time in RFC 3339, as image configurations have it.
pub fn parse(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let bytes = text.as_bytes();
    let fixed = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if bytes.len() < 20
        || fixed.iter().any(|(i, c)| bytes[*i] != *c)
        || !matches!(bytes[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let fraction = text[19..].trim_start_matches('.').trim_start_matches(|c: char| c.is_ascii_digit());
    let offset = match fraction.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes =
                fraction.get(1..3)?.parse::<i64>().ok()? * 60 + fraction.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from the civil calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (m * 153 + 2) / 5 + day
        - 1
        - 719_468;
    Some(days * 86_400 + (hour * 60 + minute - offset) * 60 + second)
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed())
}

/// How long ago something was, as docker says it; `N/A` where the time is not known.
pub fn ago(time: Option<&str>) -> String {
    match time.and_then(parse) {
        Some(then) => format!("{} ago", duration(now().saturating_sub(then))),
        None => "N/A".into(),
    }
}

/// A number of seconds in the largest unit that fits.
pub fn duration(seconds: i64) -> String {
    let several = |n: i64, unit: &str| format!("{n} {unit}");
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => several(seconds, "seconds"),
        60..120 => "About a minute".into(),
        120..3600 => several(seconds / 60, "minutes"),
        3600..7200 => "About an hour".into(),
        7200..172_800 => several(seconds / 3600, "hours"),
        172_800..1_209_600 => several(seconds / 86_400, "days"),
        1_209_600..5_184_000 => several(seconds / 604_800, "weeks"),
        5_184_000..63_072_000 => several(seconds / 2_592_000, "months"),
        _ => several(seconds / 31_536_000, "years"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-03-01T00:00:00Z", Some(951_868_800)),
            ("2024-02-29T12:30:15.123456789Z", Some(1_709_209_815)),
            ("2024-02-29T14:30:15+02:00", Some(1_709_209_815)),
            ("2024-02-29T11:00:15-01:30", Some(1_709_209_815)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800)),
            ("2024-13-01T00:00:00Z", None),
            ("yesterday", None),
            ("2024-02-29T12:30:15", None),
            ("2024-02-29Té:30:15Zé", None),
        ] {
            assert_eq!(parse(text), seconds, "{text}");
        }
    }

    #[test]
    fn people_read_one_unit() {
        for (seconds, text) in [
            (-5, "Less than a second"),
            (45, "45 seconds"),
            (90, "About a minute"),
            (86_400, "24 hours"),
            (400_000, "4 days"),
            (3_000_000, "4 weeks"),
            (99_999_999, "3 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
