//! Steps of the host end with this process, even where it is killed with SIGKILL: a small process beside it hears every
//! moment which process groups run, and kills those of the last word when it hears no more.
//!
//! It is started when a step has run for a while, so short runs have none. Steps in containers need none: the kernel ends
//! them with the thread that started them (PR_SET_PDEATHSIG).

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::step;

/// So often it is told, and so long a step runs before there is one.
const MOMENT: Duration = Duration::from_millis(500);
/// A line of its input: some thousands of groups.
const MOST: u64 = 1 << 20;

/// Watches over the steps of this process; `words` make this program the guard ([`serve`]).
pub fn start(words: &'static [&'static str]) {
    let watch = move || {
        let mut guard: Option<Child> = None;
        loop {
            std::thread::sleep(MOMENT);
            let groups = step::groups();
            if guard.is_none() && groups.is_empty() {
                continue;
            }
            let told: Vec<String> =
                groups.iter().filter_map(|group| Some(format!("{group}:{}", began(*group)?))).collect();
            let told = told.join(" ");
            if guard.is_none() {
                let mut command = Command::new("/proc/self/exe");
                command.arg0("isles").args(words).arg(&told);
                command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
                // Signals of the terminal are not for it.
                guard = command.process_group(0).current_dir("/").spawn().ok();
                if guard.is_none() {
                    return;
                }
                continue;
            }
            let input = guard.as_mut().and_then(|guard| guard.stdin.as_mut());
            if !input.is_some_and(|input| writeln!(input, "{told}").is_ok()) {
                return;
            }
        }
    };
    // Without it steps may outlive a process that is killed, and nothing else is different.
    let _ = std::thread::Builder::new().name("isles-guard".into()).stack_size(128 << 10).spawn(watch);
}

/// When a process began, in ticks since the machine did: with its number it is that of no other.
fn began(pid: i32) -> Option<u64> {
    let mut text = String::new();
    File::open(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?.read_to_string(&mut text).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Is the guard: reads who runs until nobody writes any more, and kills who was in the last line, or else in the first word.
pub fn serve(first: &str, mut input: impl BufRead) {
    let mut last = first.to_owned();
    loop {
        let mut line = String::new();
        match input.by_ref().take(MOST).read_line(&mut line) {
            Ok(n) if n > 0 && line.ends_with('\n') => last = line,
            _ => break,
        }
    }
    for word in last.split_whitespace() {
        let Some((group, time)) = word.split_once(':') else { continue };
        let (Ok(group), Ok(time)) = (group.parse::<i32>(), time.parse::<u64>()) else { continue };
        if began(group) == Some(time)
            && let Some(group) = Pid::from_raw(group).filter(|_| group > 1)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_named_last_is_killed_and_nobody_else() {
        let sleep = || Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let (mut named, mut before, mut other) = (sleep(), sleep(), sleep());
        let id = |child: &Child| child.id().cast_signed();
        let word = |child: &Child, more: u64| format!("{}:{}", id(child), began(id(child)).unwrap() + more);
        let lines = format!(
            "{}\n{} {} x 1:1 0:5\ntorn {}",
            word(&before, 0),
            word(&named, 0),
            word(&other, 1),
            word(&before, 0)
        );
        serve(&word(&before, 0), lines.as_bytes());
        assert!(!named.wait().unwrap().success());
        for child in [&mut before, &mut other] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
