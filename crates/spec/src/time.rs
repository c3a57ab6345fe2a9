//! Points in time as documents write them: RFC 3339, and the dates of HTTP and of Debian's archives.
//!
//! The calendar is the Gregorian one, computed in years that begin with March, so that the leap day is the last
//! of its year (Hinnant, "chrono-compatible low-level date algorithms").

/// A time in UTC, from seconds since 1970: `2024-02-29T12:00:00Z`.
pub fn rfc3339(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A time in UTC, from nanoseconds since 1970, with as many decimals as it needs.
pub fn rfc3339_nanoseconds(nanoseconds: u64) -> String {
    let whole = rfc3339((nanoseconds / 1_000_000_000).cast_signed());
    match nanoseconds % 1_000_000_000 {
        0 => whole,
        fraction => {
            let decimals = format!("{fraction:09}");
            format!("{}.{}Z", whole.trim_end_matches('Z'), decimals.trim_end_matches('0'))
        }
    }
}

/// Seconds since 1970 of a time in RFC 3339, in whatever zone; decimals are cut off.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let bytes = text.as_bytes();
    let fixed = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if bytes.len() < 20
        || fixed.iter().any(|(i, c)| bytes[*i] != *c)
        || !matches!(bytes[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let date = days(number(0..4)?, number(5..7)?, number(8..10)?)?;
    let clock = seconds(number(11..13)?, number(14..16)?, number(17..19)?)?;
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
    Some(date * 86_400 + clock - offset * 60)
}

/// Nanoseconds since 1970 of a time in RFC 3339; `None` also before 1970.
pub fn parse_rfc3339_nanoseconds(text: &str) -> Option<u64> {
    let seconds = u64::try_from(parse_rfc3339(text)?).ok()?;
    let digits = text.get(19..)?.strip_prefix('.').unwrap_or_default();
    let digits = digits.bytes().take_while(u8::is_ascii_digit).take(9);
    let (fraction, scale) = digits.fold((0, 1_000_000_000), |(sum, scale), digit| {
        (sum + u64::from(digit - b'0') * (scale / 10), scale / 10)
    });
    debug_assert!(scale >= 1);
    seconds.checked_mul(1_000_000_000)?.checked_add(fraction)
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 2822 with the zone in words), in
/// one of the zones that mean UTC where it stands. HTTP knows `GMT` only (RFC 9110, section 5.6.7).
pub fn parse_date(text: &str, zones: &[&str]) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, clock, zone] = words[..] else { return None };
    if !zones.contains(&zone) {
        return None;
    }
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let month = MONTHS.iter().position(|m| *m == month)? as i64 + 1;
    let year = number(year).filter(|y| (1970..10_000).contains(y))?;
    let clock: Vec<i64> = clock.split(':').map(number).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    u64::try_from(days(year, month, number(day)?)? * 86_400 + seconds(hour, minute, second)?).ok()
}

/// Days from 1970 on.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    Some(y * 365 + leap_days + (m * 153 + 2) / 5 + day - 1 - 719_468)
}

/// Seconds from midnight on.
fn seconds(hour: i64, minute: i64, second: i64) -> Option<i64> {
    let fine = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    fine.then_some(hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_come_back() {
        for time in [0, 1, 999_999_999, 1_000_000_000, 1_764_165_600_123_456_789, 1_764_165_600_100_000_000] {
            assert_eq!(parse_rfc3339_nanoseconds(&rfc3339_nanoseconds(time)), Some(time));
        }
        assert_eq!(parse_rfc3339_nanoseconds("1970-01-01T01:00:00.5+01:00"), Some(500_000_000));
        assert_eq!(parse_rfc3339_nanoseconds("1970-01-01T00:00:00.12345678999Z"), Some(123_456_789));
        for bad in ["", "1969-12-31T23:59:59Z", "1970-01-01", "1970-01-01T00:00:00.x"] {
            assert_eq!(parse_rfc3339_nanoseconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_written_and_read() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_208_000, "2024-02-29T12:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-62_135_596_800, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
            assert_eq!(parse_rfc3339(text), Some(seconds));
        }
    }

    #[test]
    fn decimals_are_as_many_as_it_takes() {
        for (seconds, fraction, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_709_209_815, 120_000_000, "2024-02-29T12:30:15.12Z"),
            (4_107_542_399, 1, "2100-02-28T23:59:59.000000001Z"),
        ] {
            assert_eq!(rfc3339_nanoseconds(seconds * 1_000_000_000 + fraction), text);
        }
    }

    #[test]
    fn times_of_others() {
        for (text, seconds) in [
            ("2024-02-29T12:30:15.123456789Z", Some(1_709_209_815)),
            ("2024-02-29T14:30:15+02:00", Some(1_709_209_815)),
            ("2024-02-29T11:00:15-01:30", Some(1_709_209_815)),
            ("2024-13-01T00:00:00Z", None),
            ("2024-01-01T24:00:00Z", None),
            ("yesterday", None),
            ("2024-02-29T12:30:15", None),
            ("2024-02-29Té:30:15Zé", None),
        ] {
            assert_eq!(parse_rfc3339(text), seconds, "{text}");
        }
    }

    #[test]
    fn dates() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sat, 11 Jul 2026 10:16:37 UTC", Some(1_783_764_997)),
            ("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000)),
            ("Sat, 9 Aug 2025 09:16:30 GMT", Some(1_754_730_990)),
            ("Sat, 32 Aug 2025 09:16:30 GMT", None),
            ("Sat, 9 Aug 2025 24:16:30 GMT", None),
            ("Sat, 9 Aug 2025 09:16:30 CET", None),
            ("Sat, 9 Aug 1969 09:16:30 GMT", None),
            ("Sat, -9 Aug 2025 09:16:30 GMT", None),
            ("2025-08-09", None),
            ("", None),
        ] {
            assert_eq!(parse_date(text, &["GMT", "UTC"]), seconds, "{text}");
        }
        assert_eq!(parse_date("Sat, 9 Aug 2025 09:16:30 UTC", &["GMT"]), None);
    }
}
