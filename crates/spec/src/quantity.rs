//! Amounts as Docker spells them: bytes (`512m`, `2GiB`), processors (`1.5`), durations (`1m30s`).

use std::time::Duration;

use crate::{Error, Result};

/// Bytes from `b k m g t p` suffixes, each optionally followed by `b` or `ib`; all are powers of 1,024,
/// as in docker's `units.RAMInBytes`. A fraction is allowed (`1.5g`).
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || {
        Error::new(format!("invalid size '{text}'"))
            .with_hint("a size is a number with an optional b, k, m, g or t, for example 512m")
    };
    let t = text.trim().to_ascii_lowercase();
    let split = t.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(t.len());
    let (number, suffix) = t.split_at(split);
    let power = match suffix.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(bad()),
    };
    let unit = 1024u64.pow(power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(bad);
    }
    let value: f64 = number.parse().map_err(|_| bad())?;
    let bytes = value * unit as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(bad()) }
}

/// Processors as nano-CPUs from a decimal (`0.5` is 500,000,000). Never zero or negative.
pub fn parse_cpus(text: &str) -> Result<u64> {
    let bad = || {
        Error::new(format!("invalid number of CPUs '{text}'"))
            .with_hint("write a positive decimal, for example --cpus 1.5")
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if text.is_empty() || text == "." || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(bad());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let nanos: u64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    let total = whole.checked_mul(1_000_000_000).and_then(|w| w.checked_add(nanos)).ok_or_else(bad)?;
    if total == 0 { Err(bad()) } else { Ok(total) }
}

/// A duration in Go's spelling: `300ms`, `1.5h`, `1m30s`; a bare `0` is allowed.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || {
        Error::new(format!("invalid duration '{text}'"))
            .with_hint("write a number with a unit (ns, us, ms, s, m, h), for example 1m30s")
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(bad());
    }
    let mut seconds = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += number * unit;
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// Bytes as a person reads them, in powers of 1,000 as `docker images` shows (`157MB`, `1.42GB`).
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    // Three significant digits, without trailing zeros.
    let decimals = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let mut text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + UNITS[unit]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("1b", 1),
            ("1k", 1 << 10),
            ("2KB", 2 << 10),
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("2GiB", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1..5g", "99999999999999999999", "99999999p", "nan", "1e3"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus() {
        assert_eq!(parse_cpus("0.5").unwrap(), 500_000_000);
        assert_eq!(parse_cpus("2").unwrap(), 2_000_000_000);
        assert_eq!(parse_cpus(".25").unwrap(), 250_000_000);
        for bad in ["", ".", "0", "0.0", "-1", "1e3", "inf", "0.0000000001"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("300ms").unwrap(), Duration::from_millis(300));
        assert_eq!(parse_duration("0").unwrap(), Duration::ZERO);
        for bad in ["", "5", "s", "1d", "-1s", "1.5.2s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn people_read_three_digits() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1000, "1kB"), (157_400_000, "157MB"), (1_420_000_000, "1.42GB")]
        {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
