//! Progress of pulls and builds on standard error: a bar per piece of work on a terminal, plain lines
//! elsewhere, nothing when quiet.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isles_spec::Progress;
use isles_spec::quantity::human_bytes;

use super::Ui;

/// A terminal is redrawn at most this often.
const REDRAW: Duration = Duration::from_millis(80);

/// Shows what long work does.
pub struct Bars {
    mode: Mode,
    state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines,
    Terminal,
}

#[derive(Default)]
struct State {
    next: u64,
    work: BTreeMap<u64, Work>,
    /// Lines of bars now on the terminal, which the next drawing goes back over.
    drawn: usize,
    last: Option<Instant>,
}

struct Work {
    what: String,
    total: Option<u64>,
    done: u64,
    status: String,
    /// Output without a line end yet.
    partial: Vec<u8>,
}

impl Bars {
    pub fn new(ui: &Ui) -> Self {
        let mode = if ui.is_quiet() {
            Mode::Silent
        } else if io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb") {
            Mode::Terminal
        } else {
            Mode::Lines
        };
        Bars { mode, state: Mutex::default() }
    }

    /// Plain lines, whatever standard error is (`--progress plain`).
    pub fn plain(ui: &Ui) -> Self {
        let mode = if ui.is_quiet() { Mode::Silent } else { Mode::Lines };
        Bars { mode, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bars off the terminal, writes `line` and draws them again below it.
    fn above(&self, state: &mut State, line: &[u8]) {
        let mut text = erase(state.drawn);
        text.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            text.push(b'\n');
        }
        state.drawn = 0;
        if self.mode == Mode::Terminal {
            draw(state, &mut text);
        }
        put(&text);
    }

    fn redraw(&self, state: &mut State) {
        if self.mode != Mode::Terminal || state.last.is_some_and(|last| last.elapsed() < REDRAW) {
            return;
        }
        let mut text = erase(state.drawn);
        draw(state, &mut text);
        put(&text);
    }
}

/// Moves the cursor up over `lines` and clears from there.
fn erase(lines: usize) -> Vec<u8> {
    if lines == 0 { Vec::new() } else { format!("\x1b[{lines}A\x1b[J").into_bytes() }
}

fn draw(state: &mut State, text: &mut Vec<u8>) {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    // A line that wraps would count as two when the cursor goes back.
    let width = if columns == 0 { 80 } else { columns };
    for work in state.work.values() {
        text.extend(work.bar().chars().take(width).collect::<String>().into_bytes());
        text.push(b'\n');
    }
    state.drawn = state.work.len();
    state.last = Some(Instant::now());
}

/// Progress that cannot be shown is not worth a failure.
fn put(text: &[u8]) {
    let _ = io::stderr().lock().write_all(text);
}

impl Work {
    fn bar(&self) -> String {
        const WIDTH: u64 = 24;
        let what: String = self.what.chars().take(40).collect();
        let amount = match self.total {
            Some(total) if total > 0 => {
                let filled = self.done.min(total).saturating_mul(WIDTH) / total;
                let bar: String = (0..WIDTH).map(|i| if i < filled { '=' } else { ' ' }).collect();
                format!("[{bar}] {} of {}", human_bytes(self.done), human_bytes(total))
            }
            _ if self.done > 0 => human_bytes(self.done),
            _ => String::new(),
        };
        let line = format!("{what:<40} {amount} {}", self.status);
        line.trim_end().chars().filter(|c| !c.is_control()).collect()
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, total: Option<u64>) -> u64 {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let what = what.to_owned();
        state.work.insert(id, Work { what, total, done: 0, status: String::new(), partial: Vec::new() });
        self.redraw(&mut state);
        id
    }

    fn advance(&self, id: u64, bytes: u64) {
        let mut state = self.state();
        if let Some(work) = state.work.get_mut(&id) {
            work.done += bytes;
        }
        self.redraw(&mut state);
    }

    fn status(&self, id: u64, text: &str) {
        let mut state = self.state();
        if let Some(work) = state.work.get_mut(&id) {
            work.status = text.to_owned();
        }
        self.redraw(&mut state);
    }

    fn end(&self, id: u64, text: &str) {
        let mut state = self.state();
        let Some(work) = state.work.remove(&id) else { return };
        if self.mode == Mode::Silent {
            return;
        }
        if !work.partial.is_empty() {
            self.above(&mut state, &work.partial);
        }
        let size = if work.done > 0 { format!(" ({})", human_bytes(work.done)) } else { String::new() };
        self.above(&mut state, format!("{}: {text}{size}", work.what).as_bytes());
    }

    fn output(&self, id: u64, bytes: &[u8]) {
        if self.mode == Mode::Silent {
            return;
        }
        let mut state = self.state();
        let Some(work) = state.work.get_mut(&id) else { return };
        work.partial.extend_from_slice(bytes);
        let Some(end) = work.partial.iter().rposition(|b| *b == b'\n') else { return };
        let whole: Vec<u8> = work.partial.drain(..=end).collect();
        self.above(&mut state, &whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_how_far_it_is() {
        let mut work = Work {
            what: "layer".into(),
            total: Some(100),
            done: 50,
            status: "unpacking".into(),
            partial: Vec::new(),
        };
        assert!(work.bar().contains("[============            ]"), "{}", work.bar());
        work.done = 500;
        assert!(work.bar().contains("[========================]"), "{}", work.bar());
        work.status = "\x1b[2J".into();
        assert!(!work.bar().contains('\x1b'), "a registry cannot write to the terminal");
    }
}
