//! Points in time as people read them: `3 days ago`.

use std::time::UNIX_EPOCH;

use isles_spec::time::parse_rfc3339;

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs().cast_signed())
}

/// How long ago something was, as docker says it; `N/A` where the time is not known.
pub fn ago(time: Option<&str>) -> String {
    match time.and_then(parse_rfc3339) {
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
