//! Progress of pulls and builds on standard error: a bar per piece of work on a terminal, plain lines
//! elsewhere, nothing when quiet; or one JSON object a line, for programs.
//!
//! ```text
//! {"event":"start","id":1,"name":"[1/2] RUN make","total":null,"time":"2026-01-02T03:04:05.6Z"}
//! {"event":"output","id":1,"text":"cc -c main.c\n"}
//! {"event":"status","id":1,"text":"retry 1: connection reset"}
//! {"event":"done","id":1,"name":"[1/2] RUN make","result":"done","cached":false,"bytes":0,"seconds":1.204}
//! ```
//!
//! `id` is the same in all events of one piece of work, `total` and `bytes` count what is moved, `result` is
//! `done`, `cached`, `failed`, or says more. Output is as the program wrote it, with bytes that are no UTF-8
//! replaced.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use isles_spec::Progress;
use isles_spec::quantity::human_bytes;
use isles_spec::time::rfc3339_nanoseconds;
use serde_json::json;

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
    Json,
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
    began: Instant,
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

    /// One JSON object for each event (`--progress json`).
    pub fn json(ui: &Ui) -> Self {
        let mode = if ui.is_quiet() { Mode::Silent } else { Mode::Json };
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
pub(super) fn erase(lines: usize) -> Vec<u8> {
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
pub(super) fn put(text: &[u8]) {
    let _ = io::stderr().lock().write_all(text);
}

/// One line of JSON.
fn event(event: &serde_json::Value) {
    put(format!("{event}\n").as_bytes());
}

fn output(id: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        event(&json!({ "event": "output", "id": id, "text": String::from_utf8_lossy(bytes) }));
    }
}

/// How much was moved, and how long it took where something was done.
fn details(bytes: u64, result: &str, seconds: f64) -> String {
    let size = (bytes > 0).then(|| human_bytes(bytes));
    let time = matches!(result, "done" | "failed").then(|| format!("{seconds:.1}s"));
    let both: Vec<String> = size.into_iter().chain(time).collect();
    if both.is_empty() { String::new() } else { format!(" ({})", both.join(", ")) }
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
        let seconds = self.began.elapsed().as_secs();
        let time = if seconds > 0 { format!("{seconds}s") } else { String::new() };
        let words = [amount, self.status.clone(), time];
        let words: Vec<_> = words.iter().map(String::as_str).filter(|w| !w.is_empty()).collect();
        let line = format!("{what:<40} {}", words.join(" "));
        line.trim_end().chars().filter(|c| !c.is_control()).collect()
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, total: Option<u64>) -> u64 {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let what = what.to_owned();
        if self.mode == Mode::Json {
            let now = UNIX_EPOCH.elapsed().unwrap_or_default();
            let time = rfc3339_nanoseconds(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
            event(&json!({ "event": "start", "id": id, "name": what, "total": total, "time": time }));
        }
        let (status, partial, began) = (String::new(), Vec::new(), Instant::now());
        state.work.insert(id, Work { what, total, done: 0, status, partial, began });
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
        if self.mode == Mode::Json {
            event(&json!({ "event": "status", "id": id, "text": text }));
        }
        self.redraw(&mut state);
    }

    fn end(&self, id: u64, text: &str) {
        let mut state = self.state();
        let Some(work) = state.work.remove(&id) else { return };
        if self.mode == Mode::Silent {
            return;
        }
        let seconds = work.began.elapsed().as_secs_f64();
        if self.mode == Mode::Json {
            output(id, &work.partial);
            event(&json!({
                "event": "done",
                "id": id,
                "name": work.what,
                "result": text,
                "cached": text == "cached",
                "bytes": work.done,
                "seconds": (seconds * 1000.0).round() / 1000.0,
            }));
            return;
        }
        if !work.partial.is_empty() {
            self.above(&mut state, &work.partial);
        }
        self.above(
            &mut state,
            format!("{}: {text}{}", work.what, details(work.done, text, seconds)).as_bytes(),
        );
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
        if self.mode == Mode::Json {
            return output(id, &whole);
        }
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
            began: Instant::now(),
        };
        assert!(work.bar().contains("[============            ]"), "{}", work.bar());
        work.done = 500;
        assert!(work.bar().contains("[========================]"), "{}", work.bar());
        for (bytes, result, expected) in [
            (0, "cached", ""),
            (0, "done", " (1.2s)"),
            (2_000_000, "done", " (2MB, 1.2s)"),
            (2_000_000, "already here", " (2MB)"),
            (0, "failed", " (1.2s)"),
        ] {
            assert_eq!(details(bytes, result, 1.234), expected, "{result}");
        }
        work.status = "\x1b[2J".into();
        assert!(!work.bar().contains('\x1b'), "a registry cannot write to the terminal");
    }
}
