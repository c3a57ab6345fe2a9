//! Interleaved measuring: a round runs every case once, so that a busy moment hits all of them alike.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use crate::Result;

/// What one run cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Seconds from start to exit.
    pub wall: f64,
    /// User and system seconds of the process and of the children it waited for, and of the servers
    /// that worked for it where the case counts them.
    pub cpu: f64,
    /// Peak resident memory of the largest process, in KiB.
    pub peak: u64,
}

/// One contender.
pub struct Case<'a> {
    pub name: String,
    run: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

impl<'a> Case<'a> {
    /// A case whose run prepares and measures itself.
    pub fn new(name: &str, run: impl FnMut() -> Result<Sample> + 'a) -> Self {
        Case { name: name.to_owned(), run: Box::new(run) }
    }

    /// A case that is one command.
    pub fn command(name: &str, make: impl Fn() -> Command + 'a) -> Self {
        Case::new(name, move || timed(&mut make()))
    }
}

/// What the rounds of one case come to.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub name: String,
    pub samples: Vec<Sample>,
}

impl Outcome {
    pub fn wall(&self) -> f64 {
        median(self.samples.iter().map(|s| s.wall))
    }

    pub fn least_wall(&self) -> f64 {
        self.samples.iter().map(|s| s.wall).fold(f64::INFINITY, f64::min)
    }

    pub fn cpu(&self) -> f64 {
        median(self.samples.iter().map(|s| s.cpu))
    }

    pub fn peak(&self) -> u64 {
        self.samples.iter().map(|s| s.peak).max().unwrap_or(0)
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Runs every case once to warm up, then `rounds` times in turn. A case that fails to warm up is left out and
/// named; one that fails later ends the measurement.
pub fn interleave(mut cases: Vec<Case<'_>>, rounds: usize) -> Result<Vec<Outcome>> {
    cases.retain_mut(|case| match (case.run)() {
        Ok(_) => true,
        Err(e) => {
            eprintln!("bench: {} is left out: {e}", case.name);
            false
        }
    });
    let mut outcomes: Vec<Outcome> =
        cases.iter().map(|c| Outcome { name: c.name.clone(), samples: Vec::new() }).collect();
    for _ in 0..rounds {
        for (case, outcome) in cases.iter_mut().zip(&mut outcomes) {
            outcome.samples.push((case.run)().map_err(|e| format!("{}: {e}", case.name))?);
        }
    }
    Ok(outcomes)
}

/// Runs a command to its end; an exit code other than 0 is an error.
pub fn timed(command: &mut Command) -> Result<Sample> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        // Reading to the end keeps a talkative child from blocking; what it said matters only on failure.
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut pipe, &mut bytes);
        stderr = String::from_utf8_lossy(&bytes).into_owned();
    }
    let mut status = 0;
    // SAFETY: rusage is plain data for which all zeroes is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals, and the child has not been waited for by anyone else.
    let pid = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) };
    let wall = begin.elapsed().as_secs_f64();
    if pid < 0 {
        return Err(format!("wait4: {}", std::io::Error::last_os_error()));
    }
    let status = ExitStatus::from_raw(status);
    if !status.success() {
        let tail: Vec<&str> = stderr.lines().rev().take(4).collect();
        return Err(format!(
            "{:?} ended with {status}: {}",
            command.get_program(),
            tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
        ));
    }
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    Ok(Sample { wall, cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime), peak: usage.ru_maxrss as u64 })
}

/// CPU seconds that a running process and the children it waited for have used until now
/// (proc_pid_stat(5), fields 14 to 17).
pub fn cpu_of(pid: u32) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let Some((_, after_name)) = stat.rsplit_once(") ") else { return 0.0 };
    let ticks: f64 =
        after_name.split(' ').skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum();
    // SAFETY: sysconf(3) with a known name has no preconditions.
    ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }

    #[test]
    fn a_failing_command_is_an_error_with_its_words() {
        let error = timed(Command::new("sh").args(["-c", "echo sorry >&2; exit 3"])).unwrap_err();
        assert!(error.contains("sorry"), "{error}");
    }
}
