//! When a container's health is looked at, and what comes of it: docker's rules (Dockerfile reference, HEALTHCHECK), without
//! a clock or a process of its own.

use std::time::Duration;

use isles_spec::image::Healthcheck;
use serde::{Deserialize, Serialize};

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u64 = 3;
/// So many of the last looks are kept, with so much of what each has printed.
const KEPT: usize = 5;
pub(crate) const OUTPUT: usize = 4 << 10;

/// The name of the file in the container's folder.
pub(crate) const FILE: &str = "health.json";

/// What is thought of a container, as docker's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl Verdict {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Starting => "starting",
            Verdict::Healthy => "healthy",
            Verdict::Unhealthy => "unhealthy",
        }
    }
}

/// What is known of a container's health, as `inspect` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    pub status: Verdict,
    pub failing_streak: u64,
    /// The last looks, the newest last.
    pub log: Vec<Look>,
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Look {
    /// RFC 3339.
    pub start: String,
    pub end: String,
    /// -1 where it was killed because it took too long.
    pub exit_code: i32,
    pub output: String,
}

/// How often is looked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checks {
    pub command: Vec<String>,
    pub timeout: Duration,
    interval: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u64,
    pub health: Health,
}

impl Checks {
    /// `None` where nothing is to be looked at.
    pub fn new(check: &Healthcheck) -> Option<Checks> {
        let words = check.test.as_slice();
        let command = match words.split_first()? {
            (kind, _) if kind == "NONE" => return None,
            (kind, command) if kind == "CMD" && !command.is_empty() => command.to_vec(),
            (kind, [line, ..]) if kind == "CMD-SHELL" => {
                ["/bin/sh", "-c", line].iter().map(|word| (*word).to_owned()).collect()
            }
            _ => return None,
        };
        let or = |nanos: u64, default| if nanos == 0 { default } else { Duration::from_nanos(nanos) };
        Some(Checks {
            command,
            timeout: or(check.timeout, TIMEOUT),
            interval: or(check.interval, INTERVAL),
            start_period: Duration::from_nanos(check.start_period),
            start_interval: or(check.start_interval, START_INTERVAL),
            retries: if check.retries == 0 { RETRIES } else { check.retries },
            health: Health::default(),
        })
    }

    /// The time from the end of a look, or from the start, to the next look. `age` is that of the container.
    pub fn wait(&self, age: Duration) -> Duration {
        let starts = self.health.status == Verdict::Starting && age < self.start_period;
        if starts { self.start_interval } else { self.interval }
    }

    /// Takes the outcome of a look into account, which began when the container had this age. `true` where the verdict is
    /// another one now.
    pub fn looked(&mut self, look: Look, age: Duration) -> bool {
        let before = self.health.status;
        if look.exit_code == 0 {
            self.health.failing_streak = 0;
            self.health.status = Verdict::Healthy;
        } else {
            let starts = before == Verdict::Starting && age < self.start_period;
            // While it starts, failures do not count.
            if !starts {
                self.health.failing_streak += 1;
                if self.health.failing_streak >= self.retries {
                    self.health.status = Verdict::Unhealthy;
                }
            }
        }
        self.health.log.push(look);
        if self.health.log.len() > KEPT {
            self.health.log.remove(0);
        }
        self.health.status != before
    }
}

/// What the caller says, over what the image says: each number that is given, and the test as a whole.
pub(crate) fn merged(own: Option<&Healthcheck>, image: Option<&Healthcheck>) -> Option<Healthcheck> {
    let Some(own) = own else { return image.cloned() };
    let image = image.cloned().unwrap_or_default();
    let or = |own: u64, image: u64| if own == 0 { image } else { own };
    Some(Healthcheck {
        test: if own.test.is_empty() { image.test } else { own.test.clone() },
        interval: or(own.interval, image.interval),
        timeout: or(own.timeout, image.timeout),
        start_period: or(own.start_period, image.start_period),
        start_interval: or(own.start_interval, image.start_interval),
        retries: or(own.retries, image.retries),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn look(exit_code: i32) -> Look {
        Look { start: String::new(), end: String::new(), exit_code, output: String::new() }
    }

    #[test]
    fn commands() {
        let command = |test: &str| {
            Checks::new(&Healthcheck { test: words(test), ..Healthcheck::default() })
                .map(|c| c.command.join(" "))
        };
        assert_eq!(command("CMD curl -f x").as_deref(), Some("curl -f x"));
        assert_eq!(command("CMD-SHELL true").as_deref(), Some("/bin/sh -c true"));
        for none in ["NONE", "CMD", "CMD-SHELL", "OTHER x"] {
            assert_eq!(command(none), None, "{none}");
        }
        assert_eq!(Checks::new(&Healthcheck::default()), None);
    }

    #[test]
    fn verdicts() {
        let check = Healthcheck {
            test: words("CMD true"),
            retries: 2,
            start_period: 10 * 1_000_000_000,
            start_interval: 1_000_000_000,
            interval: 7 * 1_000_000_000,
            ..Healthcheck::default()
        };
        let mut checks = Checks::new(&check).unwrap();
        assert_eq!(checks.wait(SECOND), SECOND);
        // While it starts, failures do not count, and a success ends the start.
        for _ in 0..5 {
            assert!(!checks.looked(look(1), SECOND));
        }
        assert_eq!((checks.health.status, checks.health.failing_streak), (Verdict::Starting, 0));
        assert!(!checks.looked(look(1), 11 * SECOND));
        assert_eq!(checks.wait(11 * SECOND), 7 * SECOND);
        assert!(checks.looked(look(0), 11 * SECOND));
        assert_eq!(checks.wait(SECOND), 7 * SECOND);
        assert!(!checks.looked(look(1), SECOND), "one failure is none");
        assert!(checks.looked(look(-1), SECOND));
        assert_eq!((checks.health.status, checks.health.failing_streak), (Verdict::Unhealthy, 2));
        assert!(!checks.looked(look(1), SECOND));
        assert!(checks.looked(look(0), SECOND));
        assert_eq!((checks.health.failing_streak, checks.health.log.len()), (0, 5));
    }

    #[test]
    fn the_caller_comes_before_the_image() {
        let image = Healthcheck { test: words("CMD a"), retries: 5, interval: 9, ..Healthcheck::default() };
        assert_eq!(merged(None, Some(&image)).unwrap(), image);
        let own = Healthcheck { interval: 3, ..Healthcheck::default() };
        let both = merged(Some(&own), Some(&image)).unwrap();
        assert_eq!((both.test, both.retries, both.interval), (words("CMD a"), 5, 3));
        let none = Healthcheck { test: words("NONE"), ..Healthcheck::default() };
        assert_eq!(merged(Some(&none), Some(&image)).unwrap().test, words("NONE"));
        assert_eq!(merged(None, None), None);
    }
}
