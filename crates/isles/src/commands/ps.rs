//! `isles ps`

use std::net::SocketAddr;
use std::path::Path;

use isles_engine::{Engine, Info, Status, Verdict};
use isles_spec::quantity::human_bytes;
use isles_spec::time::rfc3339_nanoseconds;
use isles_spec::{Mount, MountKind, NetworkMode, Port, Workload};
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
    /// Only the newest ones, whatever their state.
    #[arg(short = 'n', long, value_name = "NUMBER", allow_hyphen_values = true)]
    last: Option<i64>,
    /// Only the newest one, whatever its state.
    #[arg(short, long)]
    latest: bool,
    /// Show what they take on the disk.
    #[arg(short, long)]
    size: bool,
    /// Only those with: id=, name=, status=, label=KEY[=VALUE], ancestor=IMAGE, exited=CODE, health=STATUS, before=NAME,
    /// since=NAME, volume=NAME or PATH, network=NAME, publish=PORT[/udp], expose=PORT[/udp]. Of one kind any, of several
    /// kinds all have to hold; all labels have to.
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
    networks: String,
    mounts: String,
    local_volumes: String,
    size: String,
}

/// Lists the containers that are asked for.
pub fn cmd_ps(cx: &Context, args: &Args) -> Result<Code, Failure> {
    args.filter.iter().try_for_each(check)?;
    // Who asks for a state wants to see those in it.
    let all = args.all || args.filter.iter().any(|f| matches!(f.key.as_str(), "status" | "exited"));
    let engine = cx.engine()?;
    // What monitors left that were killed is nobody's container any more.
    engine.collect_all()?;
    let most = match (args.latest, args.last) {
        (true, _) => 1,
        (false, Some(number)) => usize::try_from(number).unwrap_or(usize::MAX),
        (false, None) => usize::MAX,
    };
    let all = all || most < usize::MAX;
    let known = Known::new(&engine, &args.filter)?;
    let size = |info: &Info| {
        let wanted = args.size.then(|| engine.store().container(&info.record.id).ok()).flatten();
        wanted.map(|container| human_bytes(container.disk_bytes())).unwrap_or_default()
    };
    let rows: Vec<Row> = engine
        .containers()?
        .iter()
        .filter(|info| !info.is_of_pod())
        .filter(|info| all || matches!(info.status, Status::Running | Status::Paused | Status::Restarting))
        .filter(|info| meets(&args.filter, info, &known))
        .take(most)
        .map(|info| row(info, args.no_trunc, size(info)))
        .collect();
    if args.quiet {
        for row in &rows {
            cx.ui.line(&row.id)?;
        }
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut headings = vec!["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
        headings.extend(args.size.then_some("SIZE"));
        let mut table = Table::new(&headings);
        for r in rows {
            let cells = [&r.id, &r.image, &r.command, &r.running_for, &r.status, &r.ports, &r.names];
            table.row(cells.into_iter().chain(args.size.then_some(&r.size)).cloned().collect());
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

/// How long ago a point in nanoseconds since 1970 was.
fn ago(nanoseconds: u64) -> String {
    age::duration(age::now().saturating_sub((nanoseconds / 1_000_000_000).cast_signed()))
}

fn row(info: &Info, whole: bool, size: String) -> Row {
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
        networks: networks(&record.workload.network).join(","),
        mounts: mounts(&record.workload).join(","),
        local_volumes: volumes(&record.workload).count().to_string(),
        size,
    }
}

/// The names of a container's networks.
fn networks(mode: &NetworkMode) -> Vec<String> {
    match mode {
        NetworkMode::Networks(uses) => uses.iter().map(|wanted| wanted.name.clone()).collect(),
        NetworkMode::None => vec!["none".to_owned()],
        NetworkMode::Host => vec!["host".to_owned()],
        _ => Vec::new(),
    }
}

fn volumes(workload: &Workload) -> impl Iterator<Item = &String> {
    workload.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Volume { name, .. } => name.as_ref(),
        _ => None,
    })
}

/// The names of volumes, and the folders of the host.
fn mounts(workload: &Workload) -> Vec<String> {
    let of = |mount: &Mount| match &mount.kind {
        MountKind::Volume { name, .. } => name.clone(),
        MountKind::Bind { source, .. } => Some(source.display().to_string()),
        _ => None,
    };
    workload.mounts.iter().filter_map(of).collect()
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

/// What conditions are about, beside the container itself: when others were made.
#[derive(Debug, Default)]
struct Known {
    created: Vec<(String, u64)>,
}

impl Known {
    fn new(engine: &Engine, filters: &[Filter]) -> Result<Known, Failure> {
        let mut known = Known::default();
        for filter in filters.iter().filter(|f| matches!(f.key.as_str(), "before" | "since")) {
            known.created.push((filter.value.clone(), engine.find(&filter.value)?.record.created));
        }
        Ok(known)
    }

    fn created(&self, name: &str) -> u64 {
        self.created.iter().find(|(known, _)| known == name).map_or(0, |(_, created)| *created)
    }
}

/// Whether a container meets the conditions: any of one kind, and one of each; but all labels.
fn meets(filters: &[Filter], info: &Info, known: &Known) -> bool {
    filters.iter().all(|filter| {
        let alike = filters.iter().filter(|other| other.key == filter.key);
        match filter.key.as_str() {
            "label" => accepts(filter, info, known),
            _ => alike.into_iter().any(|other| accepts(other, info, known)),
        }
    })
}

/// Whether a container meets a condition.
fn accepts(filter: &Filter, info: &Info, known: &Known) -> bool {
    let record = &info.record;
    let value = filter.value.as_str();
    match filter.key.as_str() {
        "id" => record.id.starts_with(value),
        "name" => record.name.contains(value.trim_start_matches('/')),
        "status" => status_word(info.status) == value,
        "label" => has_label(&record.workload.labels, value),
        "health" => info.health.as_ref().map_or("none", |health| health.status.name()) == value,
        "exited" => info.state.exit_code.is_some_and(|code| code.to_string() == value),
        "before" => record.created < known.created(value),
        "since" => record.created > known.created(value),
        "volume" => {
            let place = |mount: &Mount| mount.destination == Path::new(value);
            volumes(&record.workload).any(|name| name == value)
                || mounts(&record.workload).iter().any(|source| source == value)
                || record.workload.mounts.iter().any(place)
        }
        "network" => networks(&record.workload.network).iter().any(|name| name == value),
        "publish" | "expose" => {
            let asked = Port::parse(value).unwrap_or_default();
            let published = filter.key == "publish";
            let number = |port: &Port| if published { port.host } else { port.container };
            info.state
                .ports
                .iter()
                .any(|port| asked.iter().any(|a| (a.container, a.protocol) == (number(port), port.protocol)))
        }
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
        "publish" | "expose" => Ok(Port::parse(&filter.value).map(drop)?),
        "id" | "name" | "status" | "label" | "exited" | "ancestor" | "health" | "before" | "since" | "volume"
        | "network" => Ok(()),
        _ => Err(filter.unknown(
            "id, name, status, label, exited, ancestor, health, before, since, volume, network, publish and expose",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_are_refused() {
        for bad in ["color=red", "status=asleep", "exited=999", "exited=", "publish=x", "health=fine"] {
            assert!(check(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        check(&"label=a=b".parse().unwrap()).unwrap();
    }
}
