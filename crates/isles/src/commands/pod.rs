//! `isles pod`

use std::io::{self, IsTerminal};

use isles_engine::{PodInfo, PodStatus, Status};
use isles_spec::time::rfc3339_nanoseconds;
use isles_spec::{PodShares, Workload};
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::each::each;
use crate::commands::kill::signal;
use crate::commands::run;
use crate::commands::stop::patience;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::{Filter, has_label};
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Containers that share a network and other namespaces, and come and go together.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles pod create --name shop -p 8080:80\n  isles run -d --pod shop --name db postgres:16\n  isles run -d --pod shop --name web localhost:5000/course/web    finds the database on its own localhost\n  isles pod ps\n  isles pod rm -f shop"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Create(Box<CreateArgs>),
    /// Start all containers of pods.
    Start(NamesArgs),
    /// Stop all containers of pods.
    Stop(StopArgs),
    /// Stop and start all containers of pods.
    Restart(StopArgs),
    /// Send a signal to all containers of pods.
    Kill(KillArgs),
    /// Keep all processes of pods from running.
    Pause(NamesArgs),
    /// Let them go on.
    Unpause(NamesArgs),
    /// Remove pods with all their containers.
    Rm(RmArgs),
    #[command(visible_aliases = ["ls", "list"])]
    Ps(PsArgs),
    /// Print all that is known of pods.
    Inspect(InspectArgs),
    /// Say by the exit code whether there is such a pod.
    Exists(ExistsArgs),
    /// Remove all pods of which nothing runs.
    Prune(PruneArgs),
}

/// Make a pod. Its containers are made by `isles run --pod` and `isles create --pod`.
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Its name, which is given once among pods and containers.
    #[arg(short, long)]
    name: Option<String>,
    /// What its containers share: net, ipc, uts and pid, with commas between, or none.
    #[arg(long, value_name = "NAMESPACES", default_value = "net,ipc,uts")]
    share: String,
    /// The name of its system [default: the pod's].
    #[arg(long)]
    hostname: Option<String>,
    /// Its network, as with `isles run`.
    #[arg(long, visible_alias = "net", value_name = "MODE")]
    network: Vec<String>,
    /// Let a port of the host lead to one of the pod: [ADDRESS:][PORT:]PORT[/udp].
    #[arg(short, long, value_name = "PORTS")]
    publish: Vec<String>,
    /// A further name for others in the network.
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// The IPv4 address in the network.
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// The IPv6 address in the network.
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// The address of the device.
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Ask this server for names.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Complete names with this domain.
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// An option of resolv.conf(5).
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Another name in /etc/hosts: NAME:ADDRESS.
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// A kernel parameter of the namespaces that are shared.
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Size of /dev/shm.
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// KEY=VALUE.
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct NamesArgs {
    /// Names or IDs of pods.
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct StopArgs {
    /// Seconds until they are killed; -1 for never [default: each container's own, or 10].
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<i64>,
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct KillArgs {
    /// The signal: a name or a number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// Kill what runs of it; what is not there need not be removed.
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

/// List pods.
#[derive(Debug, clap::Args)]
struct PsArgs {
    /// Print only IDs.
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs.
    #[arg(long)]
    no_trunc: bool,
    /// Only those with: id=, name=, status=, label=KEY[=VALUE].
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: table, json, or a template such as '{{.Name}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// How to print: json, or a template such as '{{.State}}'.
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ExistsArgs {
    #[arg(value_name = "POD")]
    pod: String,
}

#[derive(Debug, clap::Args)]
struct PruneArgs {
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

/// A pod as scripts see it, with Podman's names of fields.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    name: String,
    status: &'static str,
    created: String,
    created_at: String,
    labels: String,
    number_of_containers: usize,
}

/// Carries out a command.
pub fn cmd_pod(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let warn = |text: &str| cx.ui.warning(text);
    match &args.command {
        Command::Create(args) => create(cx, args),
        Command::Start(args) => each(cx, &args.pods, |name| engine.start_pod(name, &warn)),
        Command::Stop(args) => each(cx, &args.pods, |name| engine.stop_pod(name, patience(args.time))),
        Command::Restart(args) => each(cx, &args.pods, |name| {
            engine.stop_pod(name, patience(args.time))?;
            engine.start_pod(name, &warn)
        }),
        Command::Kill(args) => {
            let signal = signal(&args.signal)?;
            each(cx, &args.pods, |name| engine.kill_pod(name, signal))
        }
        Command::Pause(args) => each(cx, &args.pods, |name| engine.pause_pod(name)),
        Command::Unpause(args) => each(cx, &args.pods, |name| engine.unpause_pod(name)),
        Command::Rm(args) => {
            engine.collect_all()?;
            each(cx, &args.pods, |name| match engine.remove_pod(name, args.force) {
                Err(isles_engine::Error::NoPod(_)) if args.force => Ok(()),
                other => other.map(drop),
            })
        }
        Command::Ps(args) => ps(cx, args),
        Command::Inspect(args) => inspect(cx, args),
        Command::Exists(args) => match engine.pod(&args.pod) {
            Ok(_) => Ok(Code::SUCCESS),
            Err(isles_engine::Error::NoPod(_)) => Ok(Code(1)),
            Err(e) => Err(e.into()),
        },
        Command::Prune(args) => prune(cx, args),
    }
}

fn create(cx: &Context, args: &CreateArgs) -> Result<Code, Failure> {
    let shares = PodShares::parse(&args.share)?;
    let mut words = Vec::new();
    let several = [
        ("network", &args.network),
        ("publish", &args.publish),
        ("network-alias", &args.network_alias),
        ("dns", &args.dns),
        ("dns-search", &args.dns_search),
        ("dns-option", &args.dns_option),
        ("add-host", &args.add_host),
        ("sysctl", &args.sysctl),
        ("label", &args.label),
    ];
    for (name, values) in several {
        words.extend(values.iter().map(|value| format!("--{name}={value}")));
    }
    let one = [
        ("name", &args.name),
        ("hostname", &args.hostname),
        ("ip", &args.ip),
        ("ip6", &args.ip6),
        ("mac-address", &args.mac_address),
        ("shm-size", &args.shm_size),
    ];
    words.extend(one.iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?))));
    let given: Workload = run::workload_of(words)?;
    if !shares.network && (!given.ports.is_empty() || !args.network.is_empty()) {
        return Err(Failure::new("a pod that shares no network has no ports and no network")
            .with_hint("let --share name net, too"));
    }
    let hostname = given.hostname.clone().or_else(|| given.name.clone());
    let id = cx.engine()?.create_pod(&Workload { hostname, ..given }, shares)?;
    cx.ui.line(&id)?;
    Ok(Code::SUCCESS)
}

/// Whether a pod meets a condition.
fn accepts(filter: &Filter, pod: &PodInfo) -> Result<bool, Failure> {
    let (record, value) = (&pod.owner.record, filter.value.as_str());
    Ok(match filter.key.as_str() {
        "id" => record.id.contains(value),
        "name" => record.name.contains(value),
        "status" => pod.status().name().eq_ignore_ascii_case(value),
        "label" => has_label(&record.workload.labels, value),
        _ => return Err(filter.unknown("id, name, status and label")),
    })
}

fn ps(cx: &Context, args: &PsArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    engine.collect_all()?;
    let mut rows = Vec::new();
    for pod in engine.pods()? {
        let mut meets = true;
        for filter in &args.filter {
            meets &= accepts(filter, &pod)?;
        }
        if meets {
            rows.push(row(&pod, args.no_trunc));
        }
    }
    if args.quiet {
        rows.iter().try_for_each(|row| cx.ui.line(&row.id))?;
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["POD ID", "NAME", "STATUS", "CREATED", "# OF CONTAINERS"]);
        for r in rows {
            let number = r.number_of_containers.to_string();
            table.row(vec![r.id.clone(), r.name.clone(), r.status.to_owned(), r.created.clone(), number]);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

fn row(pod: &PodInfo, whole: bool) -> Row {
    let record = &pod.owner.record;
    let created = (record.created / 1_000_000_000).cast_signed();
    let labels = record.workload.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
    Row {
        id: if whole { record.id.clone() } else { record.id[..record.id.len().min(12)].to_owned() },
        name: record.name.clone(),
        status: pod.status().name(),
        created: format!("{} ago", age::duration(age::now().saturating_sub(created))),
        created_at: rfc3339_nanoseconds(record.created),
        labels: labels.join(","),
        // Its own counts, as Podman has it.
        number_of_containers: 1 + pod.members.len(),
    }
}

fn shown(pod: &PodInfo) -> Value {
    let record = &pod.owner.record;
    let shares = pod.shares;
    let shared = [("net", shares.network), ("ipc", shares.ipc), ("uts", shares.uts), ("pid", shares.pid)];
    let state = |status: Status| serde_json::to_value(status).unwrap_or_default();
    json!({
        "Id": record.id,
        "Name": record.name,
        "Created": rfc3339_nanoseconds(record.created),
        "State": pod.status().name(),
        "Hostname": record.workload.hostname.clone().unwrap_or_default(),
        "Labels": record.workload.labels,
        "SharedNamespaces":
            shared.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect::<Vec<_>>(),
        "InfraContainerID": record.id,
        "NumContainers": 1 + pod.members.len(),
        "Containers": pod
            .all()
            .map(|info| json!({
                "Id": info.record.id,
                "Name": info.record.name,
                "State": state(info.status),
            }))
            .collect::<Vec<_>>(),
    })
}

fn inspect(cx: &Context, args: &InspectArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let (mut all, mut code) = (Vec::new(), Code::SUCCESS);
    for name in &args.pods {
        match engine.pod(name) {
            Ok(pod) => all.push(shown(&pod)),
            Err(e) => {
                cx.ui.error(&e.into());
                code = Code(1);
            }
        }
    }
    cx.ui.bytes(args.format.rows(&all)?.as_bytes())?;
    Ok(code)
}

fn prune(cx: &Context, args: &PruneArgs) -> Result<Code, Failure> {
    let asks = !args.force && io::stdin().is_terminal();
    if asks && !cx.ui.confirmed("this removes all pods of which nothing runs")? {
        return Ok(Code(1));
    }
    let engine = cx.engine()?;
    engine.collect_all()?;
    for pod in engine.pods()? {
        if matches!(pod.status(), PodStatus::Exited | PodStatus::Created) {
            cx.ui.line(&engine.remove_pod(&pod.owner.record.id, false)?)?;
        }
    }
    Ok(Code::SUCCESS)
}
