//! `BENCHMARKS.md`: one section a benchmark, replaced when that benchmark runs again.

use std::fmt::Write as _;
use std::fs;

use super::measure::Outcome;
use crate::{Result, workspace};

/// One line of a table, with what is promised of it.
pub struct Row {
    pub what: String,
    pub value: String,
    pub promise: String,
}

/// A section as it stands in the file.
pub struct Section {
    pub name: &'static str,
    pub title: &'static str,
    pub text: String,
}

/// A table of the contenders: median and least wall time, CPU, and how many times ours the others take.
pub fn contenders(outcomes: &[Outcome], ours: &str) -> String {
    let base = outcomes.iter().find(|o| o.name == ours);
    let mut text = String::from("| | median | least | CPU | against ours |\n|---|---|---|---|---|\n");
    for o in outcomes {
        let ratio = match base {
            Some(b) if b.name != o.name => format!("{:.2} ×", o.wall() / b.wall()),
            _ => String::from("1"),
        };
        let name = if o.name == ours { format!("**{}**", o.name) } else { o.name.clone() };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {ratio} |",
            seconds(o.wall()),
            seconds(o.least_wall()),
            seconds(o.cpu())
        );
    }
    text
}

/// A table of promises and what was measured.
pub fn promises(rows: &[Row]) -> String {
    let mut text = String::from("\n| promise | measured | |\n|---|---|---|\n");
    for row in rows {
        let _ = writeln!(text, "| {} | {} | {} |", row.what, row.value, row.promise);
    }
    text
}

/// A promise of the form "at most so many times the peer".
pub fn at_most(outcomes: &[Outcome], ours: &str, peer: &str, times: f64) -> Option<Row> {
    let find = |name: &str| outcomes.iter().find(|o| o.name == name);
    let ratio = find(ours)?.wall() / find(peer)?.wall();
    Some(Row {
        what: format!("{ours}: at most {times} × {peer}"),
        value: format!("{ratio:.2} ×"),
        promise: verdict(ratio <= times),
    })
}

/// A promise of the form "so many times faster than the peer".
pub fn faster(outcomes: &[Outcome], ours: &str, peer: &str, times: f64) -> Option<Row> {
    let find = |name: &str| outcomes.iter().find(|o| o.name == name);
    let ratio = find(peer)?.wall() / find(ours)?.wall();
    Some(Row {
        what: format!("{ours}: at least {times} × faster than {peer}"),
        value: format!("{ratio:.1} ×"),
        promise: verdict(ratio >= times),
    })
}

/// A promise of a bound.
pub fn bound(what: &str, value: f64, limit: f64, unit: &str) -> Row {
    Row {
        what: format!("{what}: at most {limit} {unit}"),
        value: format!("{value:.2} {unit}"),
        promise: verdict(value <= limit),
    }
}

fn verdict(kept: bool) -> String {
    String::from(if kept { "kept" } else { "**missed**" })
}

/// A time with a unit that suits it.
pub fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.2} ms", s * 1e3) } else { format!("{s:.2} s") }
}

/// Puts the sections into the file, in place of those of the same name.
pub fn write(sections: &[Section]) -> Result<()> {
    let path = workspace().join("BENCHMARKS.md");
    let mut text = fs::read_to_string(&path).unwrap_or_else(|_| {
        String::from(
            "# Benchmarks\n\nWritten by `cargo xtask bench`. In each section all contenders ran in turn, again and \
             again, in the same run;\nthe median of the rounds is given. Compare only inside a section: the clock of \
             a virtual machine drifts.\n",
        )
    });
    for section in sections {
        let open = format!("<!-- bench {} -->\n", section.name);
        let close = format!("<!-- end {} -->\n", section.name);
        let body = format!("{open}## {}\n\n{}\n{close}", section.title, section.text.trim_end());
        match (text.find(&open), text.find(&close)) {
            (Some(a), Some(b)) if a < b => text.replace_range(a..b + close.len(), &body),
            _ => {
                text.push('\n');
                text.push_str(&body);
            }
        }
    }
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}
