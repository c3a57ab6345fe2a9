//! A run as one HTML page that needs nothing else: what came of it, its graph, when each step ran, and all that is known
//! of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use isles_spec::time::rfc3339;

use crate::graph::{Graph, escaped};
use crate::history::{History, Result};
use crate::record::{RunRow, State, StepRow, now};

/// So much of the end of a step's log is shown.
const LOG: u64 = 16 << 10;
/// Steps that are told in full; of more, only those that did not go well.
const FULL: usize = 2_000;
/// Rows of the timeline.
const ROWS: usize = 400;

/// How far each node of the graph is, by the steps that stand for it.
pub fn classes(run: &RunRow, steps: &[StepRow]) -> BTreeMap<String, &'static str> {
    let mut last: BTreeMap<&str, State> = BTreeMap::new();
    for step in steps {
        last.insert(&step.name, step.state.unwrap_or(State::Running));
    }
    let mut classes: BTreeMap<String, &'static str> = BTreeMap::new();
    for (name, state) in last {
        let node = match name.strip_prefix(&run.name).and_then(|rest| rest.strip_prefix('/')) {
            None => run.name.clone(),
            Some(rest) => {
                let id = rest.split('/').next().unwrap_or_default();
                let id = id.split_once('[').map_or(id, |(id, _)| id);
                format!("step/{id}")
            }
        };
        let class = match state {
            State::Done => "done",
            State::Reused => "reused",
            State::Running => "running",
            State::Failed | State::Stopped | State::Interrupted => "failed",
        };
        let weight = |class: &str| ["reused", "done", "running", "failed"].iter().position(|c| *c == class);
        let known = classes.entry(node).or_insert(class);
        if weight(class) > weight(known) {
            *known = class;
        }
    }
    classes
}

/// Seconds as people read them.
pub fn duration(milliseconds: i64) -> String {
    let seconds = milliseconds.max(0) / 1000;
    match seconds {
        0..10 => format!("{:.2} s", milliseconds.max(0) as f64 / 1000.0),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn memory(kibibytes: u64) -> String {
    match kibibytes {
        0 => String::new(),
        1..1024 => format!("{kibibytes} KiB"),
        1024..1_048_576 => format!("{:.1} MiB", kibibytes as f64 / 1024.0),
        _ => format!("{:.2} GiB", kibibytes as f64 / 1_048_576.0),
    }
}

fn time(milliseconds: i64) -> String {
    rfc3339(milliseconds.div_euclid(1000)).replace('T', " ").replace('Z', " UTC")
}

/// The page.
///
/// # Errors
/// The records cannot be read.
pub fn html(history: &History, run: &RunRow) -> Result<String> {
    let steps = history.steps(run)?;
    let ended = run.ended.unwrap_or_else(|| {
        let last = steps.iter().filter_map(|step| step.ended).max();
        if run.state == State::Running { now() } else { last.unwrap_or(run.began) }
    });
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name} · {state}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>{name}</h1><span class=\"state {state}\">{state}</span></header>\n",
        name = escaped(&run.name),
        state = run.state.name(),
    );
    if let Some(message) = &run.message {
        let _ = writeln!(out, "<p class=\"message\">{}</p>", escaped(message));
    }
    summary(&mut out, run, &steps, ended);
    if let Ok(graph) = serde_json::from_str::<Graph>(&run.graph) {
        out.push_str("<h2>Graph</h2>\n<div class=\"wide\">\n");
        match graph.svg(&classes(run, &steps)) {
            Ok(svg) => out.push_str(&svg),
            Err(why) => drop(writeln!(out, "<p>{}</p>", escaped(&why))),
        }
        out.push_str("</div>\n");
    }
    timeline(&mut out, &steps, run.began, ended);
    table(&mut out, &steps);
    details(&mut out, history, run, &steps);
    for (title, text) in [("Inputs", Some(&run.inputs)), ("Outputs", run.outputs.as_ref())] {
        if let Some(text) = text {
            let _ = writeln!(out, "<h2>{title}</h2>\n<pre>{}</pre>", escaped(&pretty(text)));
        }
    }
    out.push_str("</body>\n</html>\n");
    Ok(out)
}

fn summary(out: &mut String, run: &RunRow, steps: &[StepRow], ended: i64) {
    let cpu: f64 = steps.iter().map(|step| step.user_seconds + step.system_seconds).sum();
    let peak = steps.iter().map(|step| step.peak_kibibytes).max().unwrap_or(0);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for step in steps {
        *counts.entry(step.state.unwrap_or(State::Running).name()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let rows = [
        ("Run", run.id.clone()),
        ("Began", time(run.began)),
        ("Took", duration(ended - run.began)),
        ("Steps", counts.join(", ")),
        ("Processor time", duration((cpu * 1000.0) as i64)),
        ("Largest step", memory(peak)),
        ("Command", run.command.join(" ")),
        ("In", run.folder.clone()),
        ("Outputs in", run.outdir.clone()),
    ];
    out.push_str("<dl>\n");
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escaped(value));
    }
    out.push_str("</dl>\n");
}

fn timeline(out: &mut String, steps: &[StepRow], began: i64, ended: i64) {
    const WIDTH: f64 = 900.0;
    const LABEL: f64 = 260.0;
    const ROW: f64 = 18.0;
    if steps.is_empty() {
        return;
    }
    let span = (ended - began).max(1) as f64;
    let shown = &steps[..steps.len().min(ROWS)];
    let height = shown.len() as f64 * ROW + 24.0;
    let _ = writeln!(
        out,
        "<h2>Timeline</h2>\n<div class=\"wide\"><svg class=\"timeline\" width=\"{:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"11\" role=\"img\">",
        LABEL + WIDTH + 20.0,
        LABEL + WIDTH + 20.0,
    );
    for i in 0..=4 {
        let x = LABEL + WIDTH * f64::from(i) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{:.1}\" class=\"rule\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 18.0,
            height - 5.0,
            duration((span * f64::from(i) / 4.0) as i64),
        );
    }
    for (i, step) in shown.iter().enumerate() {
        let y = i as f64 * ROW;
        let end = step.ended.unwrap_or(ended);
        let x = LABEL + WIDTH * ((step.began - began).max(0) as f64 / span).min(1.0);
        let width =
            (WIDTH * ((end - step.began).max(0) as f64 / span)).clamp(1.5, (LABEL + WIDTH - x).max(1.5));
        let name: String = step.name.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
        let _ = writeln!(
            out,
            "<g class=\"{}\"><title>{}: {}</title><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"12\" rx=\"2\"/></g>",
            class(step),
            escaped(&step.name),
            duration(end - step.began),
            LABEL - 8.0,
            y + 13.0,
            escaped(&name),
            y + 3.0,
        );
    }
    out.push_str("</svg></div>\n");
    if steps.len() > ROWS {
        let _ = writeln!(out, "<p>{} more steps are not in the timeline.</p>", steps.len() - ROWS);
    }
}

fn class(step: &StepRow) -> &'static str {
    match step.state.unwrap_or(State::Running) {
        State::Done => "done",
        State::Reused => "reused",
        State::Running => "running",
        _ => "failed",
    }
}

fn table(out: &mut String, steps: &[StepRow]) {
    out.push_str(
        "<h2>Steps</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>#</th><th>Step</th><th>State</th><th>Exit</th>\
         <th class=\"n\">Time</th><th class=\"n\">Processor</th><th class=\"n\">Memory</th><th class=\"n\">Asked for</th>\
         </tr></thead>\n<tbody>\n",
    );
    for step in told(steps) {
        let took = step.ended.map(|ended| duration(ended - step.began)).unwrap_or_default();
        let cpu = step.user_seconds + step.system_seconds;
        let attempt = if step.attempt > 1 { format!(" (attempt {})", step.attempt) } else { String::new() };
        let _ = writeln!(
            out,
            "<tr class=\"{}\"><td>{number}</td><td><a href=\"#s{number}\">{}</a>{attempt}</td><td>{}</td><td>{}</td>\
             <td class=\"n\">{took}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{} × {} MiB</td></tr>",
            class(step),
            escaped(&step.name),
            step.state.unwrap_or(State::Running).name(),
            escaped(step.exit.as_deref().unwrap_or_default()),
            duration((cpu * 1000.0) as i64),
            memory(step.peak_kibibytes),
            step.cores,
            step.mebibytes,
            number = step.number,
        );
    }
    out.push_str("</tbody></table></div>\n");
    if steps.len() > FULL {
        let _ = writeln!(out, "<p>Of {} steps, only those are told that did not go well.</p>", steps.len());
    }
}

fn told(steps: &[StepRow]) -> impl Iterator<Item = &StepRow> {
    let all = steps.len() <= FULL;
    steps.iter().filter(move |step| all || !matches!(step.state, Some(State::Done | State::Reused)))
}

fn details(out: &mut String, history: &History, run: &RunRow, steps: &[StepRow]) {
    for step in told(steps) {
        let open = if step.state == Some(State::Failed) { " open" } else { "" };
        let _ = writeln!(
            out,
            "<details id=\"s{}\" class=\"{}\"{open}><summary>{} · {}</summary>",
            step.number,
            class(step),
            escaped(&step.name),
            step.state.unwrap_or(State::Running).name(),
        );
        if let Some(message) = &step.message {
            let _ = writeln!(out, "<p class=\"message\">{}</p>", escaped(message));
        }
        let image = step.image.as_deref().map(|image| format!("Image: {image}\n")).unwrap_or_default();
        if !step.command.is_empty() {
            let words: Vec<String> = step.command.iter().map(|word| quoted(word)).collect();
            let _ = writeln!(out, "<pre>{}{}</pre>", escaped(&image), escaped(&words.join(" ")));
        }
        if step.log {
            let text = end_of(&history.log(run, step));
            let _ = writeln!(out, "<h3>Said</h3><pre>{}</pre>", escaped(&text));
        }
        for (title, text) in [("Inputs", &step.inputs), ("Outputs", &step.outputs)] {
            if let Some(text) = text {
                let _ = writeln!(out, "<h3>{title}</h3><pre>{}</pre>", escaped(&pretty(text)));
            }
        }
        out.push_str("</details>\n");
    }
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn pretty(text: &str) -> String {
    let value: std::result::Result<serde_json::Value, _> = serde_json::from_str(text);
    value.ok().and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.to_owned())
}

/// The end of a log.
fn end_of(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(LOG);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(if from > 0 { format!("… {from} bytes before …\n{text}") } else { text })
    };
    read().unwrap_or_else(|e| format!("(the log cannot be read: {e})"))
}

const STYLE: &str = ":root{color-scheme:light dark;--line:#d5d5d2;--soft:#f4f4f2;--text:#1b1b1b;--muted:#5c5c5c;\
--done:#2e7d32;--failed:#b3261e;--running:#a86a00;--reused:#2558a8}@media(prefers-color-scheme:dark){:root{--line:#3b3b3f;\
--soft:#232325;--text:#ececec;--muted:#a5a5a5;--done:#7cc47f;--failed:#f2867d;--running:#e0b040;--reused:#8ab4f0}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);max-width:76rem;margin:2rem auto;padding:0 1.2rem}\
header{display:flex;align-items:center;gap:1rem;flex-wrap:wrap}h1{font-size:1.6rem;margin:0;overflow-wrap:anywhere}\
h2{font-size:1.15rem;margin:2rem 0 .6rem}h3{font-size:.9rem;margin:.8rem 0 .2rem;color:var(--muted)}\
.state{border:1.5px solid;border-radius:1rem;padding:.05rem .8rem;font-weight:600}.state.done,.state.reused{color:var(--done)}\
.state.failed,.state.stopped,.state.interrupted{color:var(--failed)}.state.running{color:var(--running)}\
.message{color:var(--failed);overflow-wrap:anywhere;white-space:pre-wrap}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:1rem 0}dt{color:var(--muted)}\
dd{margin:0;overflow-wrap:anywhere}.wide{overflow-x:auto}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.25rem .7rem .25rem 0;\
border-bottom:1px solid var(--line)}th{color:var(--muted);font-weight:500}.n{text-align:right}\
tr.failed td:nth-child(3){color:var(--failed);font-weight:600}tr.done td:nth-child(3){color:var(--done)}\
tr.running td:nth-child(3){color:var(--running)}tr.reused td:nth-child(3){color:var(--reused)}a{color:inherit}\
details{border:1px solid var(--line);border-radius:6px;margin:.4rem 0;padding:.35rem .8rem}summary{cursor:pointer}\
details.failed{border-color:var(--failed)}pre{background:var(--soft);padding:.6rem .8rem;border-radius:6px;overflow-x:auto;\
font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere;max-height:30rem;overflow-y:auto}\
.timeline rect{stroke:none}.timeline .rule{stroke:var(--line)}.timeline text{fill:var(--muted)}\
.timeline .done rect{fill:var(--done)}.timeline .failed rect{fill:var(--failed)}.timeline .running rect{fill:var(--running)}\
.timeline .reused rect{fill:var(--reused)}";

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, state: State) -> StepRow {
        StepRow { name: name.into(), state: Some(state), ..StepRow::default() }
    }

    #[test]
    fn nodes_take_the_worst_of_their_steps_and_the_last_attempt_counts() {
        let run = RunRow {
            id: String::new(),
            kind: "cwl".into(),
            name: "main".into(),
            state: State::Failed,
            began: 0,
            ended: None,
            pid: 0,
            command: Vec::new(),
            folder: String::new(),
            outdir: String::new(),
            digest: String::new(),
            inputs: "{}".into(),
            outputs: None,
            message: None,
            graph: String::new(),
        };
        let steps = [
            step("main/a[0]", State::Done),
            step("main/a[1]", State::Failed),
            step("main/b", State::Failed),
            step("main/b", State::Done),
            step("main/sub/inner", State::Reused),
        ];
        let classes = classes(&run, &steps);
        let found: Vec<(&str, &str)> = classes.iter().map(|(node, class)| (node.as_str(), *class)).collect();
        assert_eq!(found, [("step/a", "failed"), ("step/b", "done"), ("step/sub", "reused")]);
    }

    #[test]
    fn words_of_shells_and_sizes() {
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a-b/c.d"), "a-b/c.d");
        assert_eq!(memory(2048), "2.0 MiB");
        assert_eq!(duration(61_000), "1 min 01 s");
    }
}
