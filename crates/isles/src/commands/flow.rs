//! `isles flow`

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isles_flow::graph::Graph;
use isles_flow::history::History;
use isles_flow::record::{RunRow, State, StepRow, now};
use isles_flow::step::Executor;
use isles_flow::{guard, remote, report};
use isles_spec::quantity::human_bytes;
use serde_json::{Value, json};

use crate::commands::cwl::executor::Local;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Runs of workflows: what is under way and what was, their steps, logs and reports.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles flow ls
  isles flow show
  isles flow logs 3fa21c align
  isles flow resume 3fa21c
  isles flow report 3fa21c -o report.html")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List runs, the latest first.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Tell of a run and its steps.
    #[command(visible_alias = "inspect")]
    Show(ShowArgs),
    /// Print what steps said.
    Logs(LogsArgs),
    /// End runs that are under way.
    #[command(visible_alias = "stop")]
    Cancel(RunsArgs),
    /// Go on with a run that failed, was stopped, or was cut off: steps that are done are not done again.
    Resume(RunArgs),
    /// Forget runs: their records, logs and unfinished work. Outputs of runs that are done stay.
    Rm(RmArgs),
    /// Write a run as one HTML page: graph, timeline, and all that is known of each step.
    Report(ReportArgs),
    /// Draw a run's graph, with how far each step is.
    Graph(GraphArgs),
    /// Run steps that standard input asks for.
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// Kill the process groups that standard input named last.
    #[command(hide = true)]
    Guard(GuardArgs),
}

#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Print IDs only.
    #[arg(short, long)]
    quiet: bool,
    /// At most so many.
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// `table`, `json`, or a template of docker's kind.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The run: its ID, or the beginning of it [default: the latest].
    run: Option<String>,
    /// All steps, however many there are.
    #[arg(short, long)]
    all: bool,
    /// `table`, `json`, or a template of docker's kind.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct LogsArgs {
    /// The run: its ID, or the beginning of it [default: the latest].
    run: Option<String>,
    /// A step: its number, its name, or the end of its name [default: all].
    step: Option<String>,
    /// Go on as long as the step runs.
    #[arg(short, long, requires = "step")]
    follow: bool,
}

#[derive(Debug, clap::Args)]
struct RunsArgs {
    /// IDs of runs, or their beginnings.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The run: its ID, or the beginning of it [default: the latest].
    run: Option<String>,
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// IDs of runs, or their beginnings.
    #[arg(required_unless_present = "all", value_name = "RUN")]
    runs: Vec<String>,
    /// All that are not under way.
    #[arg(short, long, conflicts_with = "runs")]
    all: bool,
}

#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// The run: its ID, or the beginning of it [default: the latest].
    run: Option<String>,
    /// The file to write, `-` for standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct GraphArgs {
    /// The run: its ID, or the beginning of it [default: the latest].
    run: Option<String>,
    /// In the language of Graphviz instead of as SVG.
    #[arg(long)]
    dot: bool,
}

#[derive(Debug, clap::Args)]
struct WorkerArgs {
    /// Steps may be in containers.
    #[arg(long)]
    containers: bool,
}

#[derive(Debug, clap::Args)]
struct GuardArgs {
    /// Those that run now.
    groups: String,
}

fn failed(e: isles_flow::history::Error) -> Failure {
    use isles_flow::history::Error;
    let hint = match &e {
        Error::None(_) => Some("`isles flow ls` lists the runs that there are"),
        Error::Empty => Some("`isles cwl run` makes one"),
        Error::Several(..) => Some("give more of its ID"),
        Error::UnderWay(_) => Some("`isles flow cancel` ends it"),
        _ => None,
    };
    let message = e.to_string();
    Failure {
        causes: isles_spec::causes(&message, std::error::Error::source(&e)),
        hint: hint.map(str::to_owned),
        message,
        ..Failure::default()
    }
}

pub fn cmd_flow(cx: &Context, args: &Args) -> Result<Code, Failure> {
    if let Command::Worker(args) = &args.command {
        let executor: Arc<dyn Executor> =
            Arc::new(Local::new(cx, args.containers, true, isles_spec::PullPolicy::Missing)?);
        return match remote::serve(std::io::stdin(), std::io::stdout(), &executor) {
            Ok(()) => Ok(Code::SUCCESS),
            Err(e) => Err(Failure::because("cannot serve as a worker", &e)),
        };
    }
    if let Command::Guard(args) = &args.command {
        guard::serve(&args.groups, std::io::stdin().lock());
        return Ok(Code::SUCCESS);
    }
    let mut history = History::open(&cx.state_dir()?.join("flow")).map_err(failed)?;
    match &args.command {
        Command::Ls(args) => ls(cx, &history, args),
        Command::Show(args) => show(cx, &history, args),
        Command::Logs(args) => logs(cx, &history, args),
        Command::Cancel(args) => each(cx, &args.runs, |name| {
            let run = history.find(Some(name)).map_err(failed)?;
            history.cancel(&run).map_err(failed)?;
            Ok(run.id)
        }),
        Command::Resume(args) => resume(&history, args),
        Command::Rm(args) => {
            let runs = if args.all {
                let over = |run: &RunRow| run.state != State::Running;
                history.runs().map_err(failed)?.into_iter().filter(over).map(|run| run.id).collect()
            } else {
                args.runs.clone()
            };
            each(cx, &runs, |name| {
                let run = history.find(Some(name)).map_err(failed)?;
                history.remove(&run).map_err(failed)?;
                Ok(run.id)
            })
        }
        Command::Report(args) => {
            let run = history.find(args.run.as_deref()).map_err(failed)?;
            let page = report::html(&history, &run).map_err(failed)?;
            if args.output == Path::new("-") {
                cx.ui.bytes(page.as_bytes())?;
            } else {
                std::fs::write(&args.output, page)
                    .map_err(|e| Failure::because(format!("cannot write '{}'", args.output.display()), &e))?;
                cx.ui.note(&format!("the report is in {}", args.output.display()));
            }
            Ok(Code::SUCCESS)
        }
        Command::Worker(_) | Command::Guard(_) => Ok(Code::SUCCESS),
        Command::Graph(args) => {
            let run = history.find(args.run.as_deref()).map_err(failed)?;
            let graph: Graph = serde_json::from_str(&run.graph).map_err(|e| {
                Failure::because(format!("the graph of the run {} cannot be read", run.id), &e)
            })?;
            let text = if args.dot {
                graph.dot()
            } else {
                let steps = history.steps(&run).map_err(failed)?;
                graph.svg(&report::classes(&run, &steps)).map_err(Failure::new)?
            };
            cx.ui.bytes(text.as_bytes())?;
            Ok(Code::SUCCESS)
        }
    }
}

fn each(
    cx: &Context,
    names: &[String],
    mut what: impl FnMut(&str) -> Result<String, Failure>,
) -> Result<Code, Failure> {
    let mut code = Code::SUCCESS;
    for name in names {
        match what(name) {
            Ok(id) => cx.ui.line(&id)?,
            Err(failure) => {
                cx.ui.error(&failure);
                code = Code(1);
            }
        }
    }
    Ok(code)
}

fn took(began: i64, ended: Option<i64>, state: State) -> String {
    match (ended, state) {
        (Some(ended), _) => report::duration(ended - began),
        (None, State::Running) => report::duration(now() - began),
        _ => String::new(),
    }
}

fn ls(cx: &Context, history: &History, args: &LsArgs) -> Result<Code, Failure> {
    let mut runs = history.runs().map_err(failed)?;
    runs.truncate(args.last.unwrap_or(usize::MAX));
    if args.quiet {
        for run in &runs {
            cx.ui.line(&run.id)?;
        }
        return Ok(Code::SUCCESS);
    }
    let counts = history.counts().map_err(failed)?;
    let count = |id: &str, wanted: &[State]| -> u64 {
        counts.iter().filter(|(run, state, _)| run == id && wanted.contains(state)).map(|(_, _, n)| n).sum()
    };
    let rows: Vec<Value> = runs
        .iter()
        .map(|run| {
            json!({
                "ID": run.id,
                "Name": run.name,
                "Kind": run.kind,
                "State": run.state.name(),
                "Began": isles_spec::time::rfc3339(run.began.div_euclid(1000)),
                "Took": took(run.began, run.ended, run.state),
                "Done": count(&run.id, &[State::Done, State::Reused]),
                "Failed": count(&run.id, &[State::Failed]),
                "Message": run.message,
                "Outdir": run.outdir,
                "Command": run.command,
            })
        })
        .collect();
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["RUN", "NAME", "STATE", "STEPS", "BEGAN", "TOOK"]);
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        for row in rows {
            let steps = match row["Failed"].as_u64() {
                Some(n) if n > 0 => format!("{} done, {n} failed", row["Done"]),
                _ => format!("{} done", row["Done"]),
            };
            table.row(vec![
                text(row, "ID"),
                text(row, "Name"),
                text(row, "State"),
                steps,
                age::ago(row["Began"].as_str()),
                text(row, "Took"),
            ]);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

/// Steps that are shown without being asked for.
const SHOWN: usize = 60;

fn show(cx: &Context, history: &History, args: &ShowArgs) -> Result<Code, Failure> {
    let run = history.find(args.run.as_deref()).map_err(failed)?;
    let steps = history.steps(&run).map_err(failed)?;
    if !matches!(args.format, Format::Table) {
        let mut object =
            serde_json::to_value(&run).map_err(|e| Failure::because("cannot show the run", &e))?;
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
        for name in ["inputs", "outputs", "graph"] {
            if let Some(text) = object[name].as_str() {
                object[name] = parsed(text);
            }
        }
        object["steps"] = steps
            .iter()
            .map(|step| {
                let mut value = serde_json::to_value(step).unwrap_or_default();
                for name in ["inputs", "outputs"] {
                    if let Some(text) = value[name].as_str() {
                        value[name] = parsed(text);
                    }
                }
                value
            })
            .collect();
        object["work"] = history.work(&run).map(|work| work.display().to_string()).into();
        cx.ui.object(&args.format, &object)?;
        return Ok(Code::SUCCESS);
    }
    let mut text = format!("run      {}\nname     {}\nstate    {}\n", run.id, run.name, run.state.name());
    if let Some(message) = &run.message {
        text += &format!("why      {}\n", message.replace('\n', "\n         "));
    }
    let words: Vec<String> = run.command.iter().map(|word| report::quoted(word)).collect();
    text += &format!(
        "began    {}\ntook     {}\ncommand  {}\nfolder   {}\noutputs  {}\n\n",
        isles_spec::time::rfc3339(run.began.div_euclid(1000)),
        took(run.began, run.ended, run.state),
        words.join(" "),
        run.folder,
        run.outdir,
    );
    // The last of many, and all that went wrong.
    let skipped = if args.all { 0 } else { steps.len().saturating_sub(SHOWN) };
    let shown = steps
        .iter()
        .enumerate()
        .filter(|(i, step)| *i >= skipped || !matches!(step.state, Some(State::Done | State::Reused)));
    let mut table = Table::new(&["#", "STEP", "STATE", "EXIT", "TIME", "CPU", "MEMORY"]);
    for (_, step) in shown {
        let state = step.state.unwrap_or(State::Running);
        let ran = !step.command.is_empty() && step.exit.is_some();
        table.row(vec![
            step.number.to_string(),
            if step.attempt > 1 {
                format!("{} (attempt {})", step.name, step.attempt)
            } else {
                step.name.clone()
            },
            state.name().into(),
            step.exit.clone().unwrap_or_default(),
            took(step.began, step.ended, state),
            if ran { format!("{:.2}s", step.user_seconds + step.system_seconds) } else { String::new() },
            if ran { human_bytes(step.peak_kibibytes * 1024) } else { String::new() },
        ]);
    }
    text += &table.to_string();
    cx.ui.bytes(text.as_bytes())?;
    if skipped > 0 {
        cx.ui.note(&format!("{skipped} earlier steps are not shown unless they failed; --all shows them"));
    }
    Ok(Code::SUCCESS)
}

/// Steps by number, name, or the end of their name.
fn chosen<'s>(steps: &'s [StepRow], word: &str) -> Vec<&'s StepRow> {
    let number = word.parse::<u64>().ok();
    let plain = |name: &str| name.split_once('[').map_or(name, |(name, _)| name).to_owned();
    let fits = |step: &&StepRow| {
        Some(step.number) == number
            || step.name == word
            || step.name.ends_with(&format!("/{word}"))
            || plain(&step.name).ends_with(&format!("/{word}"))
    };
    steps.iter().filter(fits).collect()
}

fn logs(cx: &Context, history: &History, args: &LogsArgs) -> Result<Code, Failure> {
    let run = history.find(args.run.as_deref()).map_err(failed)?;
    let steps = history.steps(&run).map_err(failed)?;
    let chosen: Vec<&StepRow> = match &args.step {
        Some(word) => chosen(&steps, word),
        None => steps.iter().collect(),
    };
    if let (true, Some(word)) = (chosen.is_empty(), &args.step) {
        return Err(Failure::new(format!("the run {} has no step `{word}`", run.id))
            .with_hint(format!("`isles flow show {}` lists its steps", run.id)));
    }
    if args.follow {
        return match chosen.as_slice() {
            [step] => follow(cx, history, &run, step),
            _ => Err(Failure::new("several steps have this name, and one can be followed")
                .with_hint("give the number of the step")),
        };
    }
    let several = chosen.len() > 1;
    for step in chosen {
        let Ok(mut file) = File::open(history.log(&run, step)) else { continue };
        if several {
            cx.ui.line(&format!(
                "==> {} ({}) <==",
                step.name,
                step.state.unwrap_or(State::Running).name()
            ))?;
        }
        pass(cx, &mut file)?;
    }
    Ok(Code::SUCCESS)
}

/// Prints what is there.
fn pass(cx: &Context, file: &mut File) -> Result<(), Failure> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => cx.ui.bytes(&buffer[..n])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::because("cannot read the log", &e)),
        }
    }
}

fn follow(cx: &Context, history: &History, run: &RunRow, step: &StepRow) -> Result<Code, Failure> {
    const LOOK: Duration = Duration::from_millis(200);
    let path = history.log(run, step);
    let mut file = None;
    loop {
        // Looked at before the last reading, so that nothing is missed.
        let run = history.find(Some(&run.id)).map_err(failed)?;
        let steps = history.steps(&run).map_err(failed)?;
        let state = steps.iter().find(|other| other.number == step.number).and_then(|step| step.state);
        if file.is_none() {
            file = File::open(&path).ok();
        }
        if let Some(file) = &mut file {
            pass(cx, file)?;
        }
        if state != Some(State::Running) {
            return Ok(Code::SUCCESS);
        }
        std::thread::sleep(LOOK);
    }
}

fn resume(history: &History, args: &RunArgs) -> Result<Code, Failure> {
    let run = history.find(args.run.as_deref()).map_err(failed)?;
    let fail = |why: &str| Failure::new(format!("cannot go on with the run {}: {why}", run.id));
    match run.state {
        State::Running => return Err(fail("it is under way")),
        State::Done => {
            return Err(fail("it is done").with_hint("its command runs it again, with --cache faster"));
        }
        _ => {}
    }
    let mut words = run.command.clone();
    let place = words.windows(2).position(|pair| pair[0] == "cwl" && pair[1] == "run");
    let Some(place) = place else { return Err(fail("its command is not known")) };
    words.splice(place + 2..place + 2, ["--resume".to_owned(), run.id.clone()]);
    std::env::set_current_dir(&run.folder)
        .map_err(|e| Failure::because(format!("cannot go to the folder of the run, '{}'", run.folder), &e))?;
    std::io::stdout().flush().ok();
    let error = std::process::Command::new("/proc/self/exe").arg0("isles").args(&words[1..]).exec();
    Err(Failure::because("cannot start the run again", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_named_in_several_ways() {
        let step = |number, name: &str| StepRow { number, name: name.into(), ..StepRow::default() };
        let steps = [
            step(1, "main/align[0]"),
            step(2, "main/align[1]"),
            step(3, "main/sum"),
            step(4, "main/sub/sum"),
        ];
        for (word, expected) in [
            ("2", vec![2]),
            ("align", vec![1, 2]),
            ("align[1]", vec![2]),
            ("main/sum", vec![3]),
            ("sum", vec![3, 4]),
            ("sub/sum", vec![4]),
            ("lign", vec![]),
        ] {
            let found: Vec<u64> = chosen(&steps, word).iter().map(|step| step.number).collect();
            assert_eq!(found, expected, "{word}");
        }
    }
}
