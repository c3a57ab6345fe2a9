//! `isles ps`

use std::net::SocketAddr;

use isles_engine::{Info, Status, Verdict};
use isles_spec::Port;
use isles_spec::time::rfc3339_nanoseconds;
use serde::Serialize;

use crate::commands::port::addresses;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::{Filter, has_label};
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// List containers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles ps -a\n  isles ps -a --filter status=exited --format '{{.ID}} {{.Names}}'"
)]
pub struct Args {
    /// Those that have ended, too.
    #[arg(short, long)]
    all: bool,
    /// Print only IDs.
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs and commands.
    #[arg(long)]
    no_trunc: bool,
    /// Only those with: id=, name=, status=, label=KEY[=VALUE], ancestor=IMAGE, exited=CODE, health=STATUS.
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: table, json, or a template such as '{{.Names}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// A container as scripts see it, with docker's names of fields.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    command: String,
    created_at: String,
    running_for: String,
    status: String,
    state: Status,
    names: String,
    labels: String,
    ports: String,
}

/// Lists the containers that are asked for.
pub fn cmd_ps(cx: &Context, args: &Args) -> Result<Code, Failure> {
    args.filter.iter().try_for_each(check)?;
    // Who asks for a state wants to see those in it.
    let all = args.all || args.filter.iter().any(|f| matches!(f.key.as_str(), "status" | "exited"));
    let engine = cx.engine()?;
    // What monitors left that were killed is nobody's container any more.
    engine.collect_all()?;
    let rows: Vec<Row> = engine
        .containers()?
        .iter()
        .filter(|info| all || matches!(info.status, Status::Running | Status::Paused | Status::Restarting))
        .filter(|info| args.filter.iter().all(|f| accepts(f, info)))
        .map(|info| row(info, args.no_trunc))
        .collect();
    if args.quiet {
        for row in &rows {
            cx.ui.line(&row.id)?;
        }
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table =
            Table::new(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
        for r in rows {
            let cells = [&r.id, &r.image, &r.command, &r.running_for, &r.status, &r.ports, &r.names];
            table.row(cells.map(Clone::clone).to_vec());
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

/// How long ago a point in nanoseconds since 1970 was.
fn ago(nanoseconds: u64) -> String {
    age::duration(age::now().saturating_sub((nanoseconds / 1_000_000_000).cast_signed()))
}

fn row(info: &Info, whole: bool) -> Row {
    let record = &info.record;
    let words = record.command.join(" ");
    let short = |text: &str, length: usize| {
        if whole || text.chars().count() <= length {
            text.to_owned()
        } else {
            text.chars().take(length - 1).chain(['…']).collect()
        }
    };
    let state = &info.state;
    let status = match info.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let since = ago(state.started.unwrap_or(record.created));
            match &info.health {
                Some(health) if health.status == Verdict::Starting => {
                    format!("Up {since} (health: starting)")
                }
                Some(health) => format!("Up {since} ({})", health.status.name()),
                None => format!("Up {since}"),
            }
        }
        Status::Paused => format!("Up {} (Paused)", ago(state.started.unwrap_or(record.created))),
        Status::Restarting => {
            let since = ago(state.finished.unwrap_or(record.created));
            format!("Restarting ({}) {since} ago", state.exit_code.unwrap_or_default())
        }
        Status::Exited => {
            let since = ago(state.finished.unwrap_or(record.created));
            format!("Exited ({}) {since} ago", state.exit_code.unwrap_or_default())
        }
        Status::Dead => "Dead".to_owned(),
    };
    let labels = record.workload.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    Row {
        id: if whole { record.id.clone() } else { record.id[..record.id.len().min(12)].to_owned() },
        image: record.image.clone(),
        command: format!("\"{}\"", short(&words.escape_debug().to_string(), 20)),
        created_at: rfc3339_nanoseconds(record.created),
        running_for: format!("{} ago", ago(record.created)),
        status,
        state: info.status,
        names: record.name.clone(),
        labels,
        ports: if info.is_running() { ports(&state.ports) } else { String::new() },
    }
}

/// `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`, as docker has it.
fn ports(ports: &[Port]) -> String {
    let shown = ports.iter().flat_map(|port| {
        addresses(port).into_iter().map(|address| {
            format!("{}->{}/{}", SocketAddr::new(address, port.host), port.container, port.protocol)
        })
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Whether a container meets a condition.
fn accepts(filter: &Filter, info: &Info) -> bool {
    let record = &info.record;
    let value = filter.value.as_str();
    match filter.key.as_str() {
        "id" => record.id.starts_with(value),
        "name" => record.name.contains(value.trim_start_matches('/')),
        "status" => status_word(info.status) == value,
        "label" => has_label(&record.workload.labels, value),
        "health" => info.health.as_ref().map_or("none", |health| health.status.name()) == value,
        "exited" => info.state.exit_code.is_some_and(|code| code.to_string() == value),
        _ => {
            let id = record.image_id.as_ref().map(|d| d.hex()).unwrap_or_default();
            record.image == value || id.starts_with(value.trim_start_matches("sha256:"))
        }
    }
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Restarting => "restarting",
        Status::Exited => "exited",
        Status::Dead => "dead",
    }
}

/// A filter that can never mean anything is an error, not an empty list.
fn check(filter: &Filter) -> Result<(), Failure> {
    let bad =
        |why: &str| Err(Failure::new(format!("invalid filter '{}={}': {why}", filter.key, filter.value)));
    match filter.key.as_str() {
        "status"
            if !["created", "running", "paused", "restarting", "exited", "dead"]
                .contains(&filter.value.as_str()) =>
        {
            bad("a status is created, running, paused, restarting, exited or dead")
        }
        "exited" if filter.value.parse::<u8>().is_err() => bad("an exit code is a number up to 255"),
        "health" if !["starting", "healthy", "unhealthy", "none"].contains(&filter.value.as_str()) => {
            bad("health is starting, healthy, unhealthy or none")
        }
        "id" | "name" | "status" | "label" | "exited" | "ancestor" | "health" => Ok(()),
        _ => Err(filter.unknown("id, name, status, label, exited, ancestor and health")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_are_refused() {
        for bad in ["color=red", "status=asleep", "exited=999", "exited="] {
            assert!(check(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        check(&"label=a=b".parse().unwrap()).unwrap();
    }
}
