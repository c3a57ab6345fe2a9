//! How often and how long to wait before another try: exponential back-off with jitter, and what the server
//! asks for in `Retry-After` (RFC 9110, section 10.2.3).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isles_spec::time::parse_date;

/// When to give up.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Tries after the first one.
    pub retries: u32,
    /// The longest wait before the first retry; it doubles each time.
    pub backoff: Duration,
    /// The longest single wait, also where the server asks for more.
    pub patience: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { retries: 5, backoff: Duration::from_millis(500), patience: Duration::from_secs(60) }
    }
}

impl Policy {
    /// How long to wait before retry number `n` (from 1) of a download; none when it is time to give up.
    pub fn wait_before(&self, n: u32) -> Option<Duration> {
        self.wait(n, None)
    }

    /// As [`Policy::wait_before`], where the server may have said how long.
    pub(crate) fn wait(&self, n: u32, asked: Option<Duration>) -> Option<Duration> {
        if n > self.retries {
            return None;
        }
        match asked {
            Some(asked) if asked > self.patience => None,
            Some(asked) => Some(asked),
            None => {
                let longest = self.backoff.saturating_mul(1 << (n - 1).min(16)).min(self.patience);
                Some(longest / 2 + (longest / 2).mul_f64(random()))
            }
        }
    }
}

/// Whether an answer with this status may be another one later.
pub(crate) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// From 0 to 1. Spreads clients; it is no secret.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The wait that a `Retry-After` value asks for: seconds, or a date.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = UNIX_EPOCH + Duration::from_secs(parse_date(value, &["GMT"])?);
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let p = Policy { retries: 4, ..Policy::default() };
        for (n, low, high) in [(1, 250, 500), (2, 500, 1000), (4, 2000, 4000)] {
            let wait = p.wait(n, None).unwrap().as_millis();
            assert!((low..=high).contains(&wait), "{n}: {wait}");
        }
        assert_eq!(p.wait(5, None), None);
        assert_eq!(p.wait(1, Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert_eq!(p.wait(1, Some(Duration::from_secs(3600))), None);
    }

    #[test]
    fn servers_say_when() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (value, seconds) in [
            ("3", Some(3)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
