//! When a container that has ended starts again, and after which time: as docker's restart manager has it.

use std::time::Duration;

use isles_spec::RestartPolicy;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// Who has run for so long begins anew with the first delay.
const LONG_RUN: Duration = Duration::from_secs(10);

/// How a container's last run went.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub exit_code: u8,
    pub lasted: Duration,
    /// How often it was started again before.
    pub restarts: u32,
    /// The delay before this run; zero for the first one.
    pub delay: Duration,
    /// Somebody asked for its end.
    pub stopped: bool,
}

/// The delay before the next run; `None` where there is none.
pub fn next(policy: RestartPolicy, run: Run) -> Option<Duration> {
    let again = match policy {
        _ if run.stopped => false,
        RestartPolicy::No => false,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        RestartPolicy::OnFailure { max_retries } => {
            run.exit_code != 0 && max_retries.is_none_or(|most| run.restarts < most)
        }
    };
    let delay = match run.delay {
        _ if run.lasted >= LONG_RUN => FIRST,
        Duration::ZERO => FIRST,
        before => (before * 2).min(LONGEST),
    };
    again.then_some(delay)
}

/// Whether a container that nobody stays with any more, as after a reboot, is to be started again.
pub fn at_boot(policy: RestartPolicy, exit_code: Option<u8>, stopped: bool) -> bool {
    match policy {
        RestartPolicy::No => false,
        // Docker's daemon starts these when it starts, also those that were stopped by hand.
        RestartPolicy::Always => true,
        RestartPolicy::UnlessStopped => !stopped,
        // It was running when the machine went down, or failed.
        RestartPolicy::OnFailure { .. } => !stopped && exit_code != Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestartPolicy::{Always, No, OnFailure, UnlessStopped};

    #[test]
    fn policies() {
        let run = |exit_code, restarts, stopped| Run {
            exit_code,
            restarts,
            stopped,
            lasted: Duration::ZERO,
            delay: Duration::ZERO,
        };
        let failing = OnFailure { max_retries: None };
        let thrice = OnFailure { max_retries: Some(3) };
        for (policy, run, again) in [
            (No, run(1, 0, false), false),
            (Always, run(0, 99, false), true),
            (Always, run(0, 0, true), false),
            (UnlessStopped, run(1, 0, false), true),
            (UnlessStopped, run(1, 0, true), false),
            (failing, run(0, 0, false), false),
            (failing, run(1, 999, false), true),
            (thrice, run(1, 2, false), true),
            (thrice, run(1, 3, false), false),
        ] {
            assert_eq!(next(policy, run).is_some(), again, "{policy:?} {run:?}");
        }
    }

    #[test]
    fn delays_double() {
        let mut delay = Duration::ZERO;
        let mut seen = Vec::new();
        for restarts in 0..12 {
            let run = Run { exit_code: 1, lasted: Duration::from_secs(1), restarts, delay, stopped: false };
            delay = next(Always, run).unwrap();
            seen.push(delay.as_millis());
        }
        assert_eq!(seen, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        let run = Run { exit_code: 1, lasted: LONG_RUN, restarts: 12, delay, stopped: false };
        assert_eq!(next(Always, run), Some(FIRST));
    }

    #[test]
    fn after_a_reboot() {
        let failing = OnFailure { max_retries: Some(1) };
        for (policy, exit_code, stopped, again) in [
            (No, None, false, false),
            (Always, Some(0), true, true),
            (UnlessStopped, None, false, true),
            (UnlessStopped, Some(0), true, false),
            (failing, None, false, true),
            (failing, Some(0), false, false),
            (failing, Some(1), true, false),
        ] {
            assert_eq!(at_boot(policy, exit_code, stopped), again, "{policy:?}");
        }
    }
}
