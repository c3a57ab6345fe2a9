//! `isles stats`

use std::collections::BTreeMap;
use std::time::Duration;

use isles_engine::{Engine, Info, Status, Usage};
use isles_spec::quantity::human_bytes;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Show what containers use: processor, memory, network, block devices.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles stats\n  isles stats --no-stream --format '{{.Name}} {{.MemUsage}}' web\n\nWithout a control group that counts it (an ordinary user's), memory and processor time are those of the processes that\nlive, and block devices are not counted."
)]
pub struct Args {
    /// Those that do not run, too.
    #[arg(short, long)]
    all: bool,
    /// Print once.
    #[arg(long)]
    no_stream: bool,
    /// Print whole IDs.
    #[arg(long)]
    no_trunc: bool,
    /// How to print: table, json, or a template such as '{{.CPUPerc}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Names or IDs; all where none is given.
    containers: Vec<String>,
}

/// With docker's names of fields.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    container: String,
    #[serde(rename = "ID")]
    id: String,
    name: String,
    #[serde(rename = "CPUPerc")]
    cpu: String,
    mem_usage: String,
    mem_perc: String,
    #[serde(rename = "NetIO")]
    net: String,
    #[serde(rename = "BlockIO")]
    block: String,
    #[serde(rename = "PIDs")]
    pids: String,
}

/// Docker takes two looks at least, a second apart.
const STEP: Duration = Duration::from_secs(1);

/// Prints them, again and again unless once is enough.
pub fn cmd_stats(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let mut before = looks(&engine, args)?;
    loop {
        std::thread::sleep(STEP);
        let now = looks(&engine, args)?;
        let rows: Vec<Row> = now
            .iter()
            .map(|(id, (name, usage))| row(id, name, *usage, before.get(id).and_then(|b| b.1), args.no_trunc))
            .collect();
        if !args.no_stream && args.format == Format::Table && rustix::termios::isatty(std::io::stdout()) {
            // To the top, and nothing below.
            cx.ui.bytes(b"\x1b[H\x1b[J")?;
        }
        cx.ui.rows(&args.format, &rows, |rows| {
            let mut table = Table::new(&[
                "CONTAINER ID",
                "NAME",
                "CPU %",
                "MEM USAGE / LIMIT",
                "MEM %",
                "NET I/O",
                "BLOCK I/O",
                "PIDS",
            ]);
            for r in rows {
                let cells = [&r.id, &r.name, &r.cpu, &r.mem_usage, &r.mem_perc, &r.net, &r.block, &r.pids];
                table.row(cells.map(Clone::clone).to_vec());
            }
            table
        })?;
        if args.no_stream {
            return Ok(Code::SUCCESS);
        }
        before = now;
    }
}

type Looks = BTreeMap<String, (String, Option<Usage>)>;

fn looks(engine: &Engine, args: &Args) -> Result<Looks, Failure> {
    let wanted: Vec<Info> = match args.containers.as_slice() {
        [] => engine.containers()?.into_iter().filter(|info| !info.is_of_pod()).collect(),
        names => names.iter().map(|name| engine.find(name)).collect::<Result<_, _>>()?,
    };
    let mut all = Looks::new();
    for info in wanted {
        let runs = matches!(info.status, Status::Running | Status::Paused);
        if runs || args.all || !args.containers.is_empty() {
            let usage = engine.usage(&info)?;
            all.insert(info.record.id, (info.record.name, usage));
        }
    }
    Ok(all)
}

fn row(id: &str, name: &str, usage: Option<Usage>, before: Option<Usage>, whole: bool) -> Row {
    let shown = if whole { id.to_owned() } else { id.chars().take(12).collect() };
    let usage_of = usage.unwrap_or_default();
    let both = |pair: Option<(u64, u64)>| {
        let (one, other) = pair.unwrap_or((0, 0));
        format!("{} / {}", human_bytes(one), human_bytes(other))
    };
    let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 * 100.0 };
    let cpu = match (usage, before) {
        (Some(usage), Some(before)) => {
            share(usage.cpu.saturating_sub(before.cpu), usage.time.saturating_sub(before.time))
        }
        _ => 0.0,
    };
    Row {
        container: shown.clone(),
        id: shown,
        name: name.to_owned(),
        cpu: format!("{cpu:.2}%"),
        mem_usage: format!("{} / {}", binary(usage_of.memory), binary(usage_of.memory_limit)),
        mem_perc: format!("{:.2}%", share(usage_of.memory, usage_of.memory_limit)),
        net: both(usage_of.network),
        block: both(usage_of.block),
        pids: usage_of.processes.to_string(),
    }
}

/// In powers of 1,024, as docker shows memory.
fn binary(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value >= 100.0 || unit == 0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_docker_does() {
        for (bytes, text) in
            [(0, "0B"), (512, "512B"), (1536, "1.5KiB"), (24 << 20, "24MiB"), (3_221_225_472, "3GiB")]
        {
            assert_eq!(binary(bytes), text);
        }
        let usage =
            Usage { time: 2_000, cpu: 1_500, memory: 10, memory_limit: 40, processes: 2, ..Usage::default() };
        let row = row(
            "0123456789abcdef",
            "web",
            Some(usage),
            Some(Usage { time: 1_000, cpu: 500, ..usage }),
            false,
        );
        assert_eq!(
            (row.id.as_str(), row.cpu.as_str(), row.mem_perc.as_str()),
            ("0123456789ab", "100.00%", "25.00%")
        );
    }
}
