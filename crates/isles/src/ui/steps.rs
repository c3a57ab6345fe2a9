//! Steps of a workflow as they go on: on a terminal a few lines that change below what steps say, elsewhere a line for
//! each beginning and end.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isles_flow::record::State;
use isles_flow::run::View;

use super::Ui;
use super::progress::{erase, put};

/// The terminal is drawn again at most, and on a quiet run at least, this often.
const REDRAW: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(500);
/// Steps that are shown by name.
const LINES: usize = 8;

/// Shows the steps of a run.
pub struct Steps {
    ui: Ui,
    terminal: bool,
    state: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    running: BTreeMap<u64, (String, Instant)>,
    done: u64,
    reused: u64,
    failed: u64,
    began: Option<Instant>,
    drawn: usize,
    last: Option<Instant>,
    /// Output of a step ended without a line end.
    mid_line: bool,
    over: bool,
}

impl Steps {
    pub fn new(ui: Ui) -> Arc<Steps> {
        let terminal = !ui.is_quiet()
            && io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let steps = Arc::new(Steps { ui, terminal, state: Mutex::default() });
        steps.state().began = Some(Instant::now());
        steps
    }

    /// Lets times go on where nothing happens. Threads may be made from here on.
    pub fn tick(self: &Arc<Steps>) {
        if !self.terminal {
            return;
        }
        let steps = Arc::downgrade(self);
        // Without it times stand still until something happens.
        let _ =
            std::thread::Builder::new().name("isles-view".into()).stack_size(128 << 10).spawn(move || {
                loop {
                    std::thread::sleep(TICK);
                    let Some(steps) = steps.upgrade() else { return };
                    let mut shown = steps.state();
                    if shown.over {
                        return;
                    }
                    steps.draw(&mut shown, b"", true);
                }
            });
    }

    /// Takes the changing lines away, for good.
    pub fn over(&self) {
        let mut shown = self.state();
        shown.over = true;
        if self.terminal {
            put(&erase(shown.drawn));
            shown.drawn = 0;
        }
    }

    fn state(&self) -> MutexGuard<'_, Shown> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `text` above the changing lines.
    fn draw(&self, shown: &mut Shown, text: &[u8], now: bool) {
        if !self.terminal || shown.over {
            return put(text);
        }
        if text.is_empty() && !now && shown.last.is_some_and(|last| last.elapsed() < REDRAW) {
            return;
        }
        let mut out = erase(shown.drawn);
        if !text.is_empty() {
            out.extend_from_slice(text);
            shown.mid_line = !text.ends_with(b"\n");
        }
        if shown.mid_line {
            // The next output begins on a line of its own, as the changing lines stand below it.
            out.push(b'\n');
            shown.mid_line = false;
        }
        let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col));
        let lines = lines(shown);
        for line in &lines {
            out.extend(line.chars().take(columns.max(20) - 1).collect::<String>().into_bytes());
            out.push(b'\n');
        }
        shown.drawn = lines.len();
        shown.last = Some(Instant::now());
        put(&out);
    }

    fn line(&self, shown: &mut Shown, text: &str) {
        if self.ui.is_quiet() {
            return;
        }
        let clean: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        self.draw(shown, format!("{clean}\n").as_bytes(), false);
    }
}

fn lines(shown: &Shown) -> Vec<String> {
    if shown.running.is_empty() && shown.done + shown.failed + shown.reused == 0 {
        return Vec::new();
    }
    let clean = |name: &str| name.chars().filter(|c| !c.is_control()).collect::<String>();
    let mut lines: Vec<String> = shown
        .running
        .values()
        .take(LINES)
        .map(|(name, began)| format!("  {:<50} {}", clean(name), time(began.elapsed())))
        .collect();
    if shown.running.len() > LINES {
        lines.push(format!("  and {} more", shown.running.len() - LINES));
    }
    let mut words = vec![format!("{} running", shown.running.len()), format!("{} done", shown.done)];
    if shown.reused > 0 {
        words.push(format!("{} done before", shown.reused));
    }
    if shown.failed > 0 {
        words.push(format!("{} failed", shown.failed));
    }
    let elapsed = shown.began.map_or(Duration::ZERO, |began| began.elapsed());
    lines.push(format!("{} · {}", words.join(" · "), time(elapsed)));
    lines
}

/// A time as people say it.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

impl View for Steps {
    fn begins(&self, number: u64, name: &str) {
        let mut shown = self.state();
        shown.running.insert(number, (name.to_owned(), Instant::now()));
        if self.terminal {
            self.draw(&mut shown, b"", false);
        } else {
            self.line(&mut shown, &format!("{name} begins"));
        }
    }

    fn talks(&self, _number: u64, bytes: &[u8]) {
        let mut shown = self.state();
        self.draw(&mut shown, bytes, false);
    }

    fn ends(&self, number: u64, name: &str, state: State) {
        let mut shown = self.state();
        let took = shown.running.remove(&number).map_or(Duration::ZERO, |(_, began)| began.elapsed());
        match state {
            State::Done => shown.done += 1,
            State::Reused => shown.reused += 1,
            _ => shown.failed += 1,
        }
        if self.terminal && matches!(state, State::Done | State::Reused) {
            return self.draw(&mut shown, b"", false);
        }
        let said = match state {
            State::Done => format!("{name} is done ({})", time(took)),
            State::Reused => format!("{name} was done before"),
            other => format!("{name} {} ({})", other.name(), time(took)),
        };
        self.line(&mut shown, &said);
    }

    fn again(&self, name: &str, why: &str, pause: Duration) {
        let mut shown = self.state();
        self.line(&mut shown, &format!("{name} is tried again in {}: {why}", time(pause)));
    }

    fn warns(&self, text: &str) {
        self.over();
        self.ui.warning(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown() {
        let mut shown = Shown::default();
        assert!(lines(&shown).is_empty());
        for i in 0..10 {
            shown.running.insert(i, (format!("main/a[{i}]\x1b[2J"), Instant::now()));
        }
        shown.failed = 2;
        let lines = lines(&shown);
        assert_eq!(lines.len(), LINES + 2);
        assert!(lines[0].starts_with("  main/a[0][2J "), "a name cannot write to the terminal");
        assert!(lines[LINES].contains("and 2 more"));
        assert!(lines[LINES + 1].starts_with("10 running · 0 done · 2 failed"));
        for (seconds, text) in [(1, "1.0s"), (59, "59s"), (61, "1m01s"), (7260, "2h01m")] {
            assert_eq!(time(Duration::from_secs(seconds)), text);
        }
    }
}
