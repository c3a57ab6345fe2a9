//! `isles network`: networks of containers, as a thing of their own.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::net::IpAddr;

use isles_engine::{Engine, Mode, network_modes};
use isles_network::Subnet;
use isles_network::state::{DEFAULT, Network, Places, Wish};
use isles_spec::time::rfc3339_nanoseconds;
use isles_spec::{NetworkUse, parse_mac};
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::prune::{Conditions, idle_networks};
use crate::commands::run::NO_LINKS;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::{Filter, has_label};
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Make, list and remove networks: bridges whose containers reach each other, and are apart from all others.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles network create course
  isles run -d --network course --name db postgres:16
  isles network create --subnet 10.5.0.0/16 --gateway 10.5.0.1 --ipv6 lab
  isles network create --internal closed
  isles network connect course web
  isles network prune")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Create(CreateArgs),
    #[command(alias = "list")]
    Ls(LsArgs),
    Inspect(InspectArgs),
    #[command(alias = "remove")]
    Rm(RmArgs),
    Connect(ConnectArgs),
    Disconnect(DisconnectArgs),
    Prune(PruneArgs),
}

/// Make a network.
#[derive(Debug, clap::Args)]
struct CreateArgs {
    name: String,
    /// The only driver is bridge.
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// Its addresses; one that nobody has use for where not given. A second one of the other kind is for IPv6.
    #[arg(long, value_name = "ADDRESS/BITS")]
    subnet: Vec<Subnet>,
    /// The host's address in the subnet at the same place [default: the first].
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Give addresses from this part of the subnet at the same place.
    #[arg(long, value_name = "ADDRESS/BITS")]
    ip_range: Vec<Subnet>,
    /// Addresses of IPv6, too.
    #[arg(long)]
    ipv6: bool,
    /// Its containers reach nobody outside.
    #[arg(long)]
    internal: bool,
    /// Add a label.
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// An option of the driver: com.docker.network.driver.mtu=1400, or mtu=1400.
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    opt: Vec<String>,
}

/// List networks.
#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Print only IDs.
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs.
    #[arg(long)]
    no_trunc: bool,
    /// Only those with: name=PART, id=PART, label=KEY[=VALUE], driver=NAME, type=builtin or custom, dangling=BOOL (no
    /// container is in them).
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: table, json, or a template such as '{{.Name}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// Show everything about networks.
#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// How to print: json, or a template such as '{{.Id}}'.
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Remove networks that no container is in.
#[derive(Debug, clap::Args)]
struct RmArgs {
    /// What is not there need not be removed.
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// Let a container be in a further network.
#[derive(Debug, clap::Args)]
struct ConnectArgs {
    /// A further name for others in the network.
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Its IPv4 address.
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Its IPv6 address.
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<IpAddr>,
    /// The address of its device: 02:42:ac:11:00:02.
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    link: Vec<String>,
    network: String,
    container: String,
}

/// Take a container out of a network.
#[derive(Debug, clap::Args)]
struct DisconnectArgs {
    /// Also what is left in the network of a container that is gone.
    #[arg(short, long)]
    force: bool,
    network: String,
    container: String,
}

/// Remove all networks that no container is in.
#[derive(Debug, clap::Args)]
struct PruneArgs {
    /// Only those with: until=24h or a time (made before it), label=KEY[=VALUE], label!=KEY[=VALUE].
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

/// A network as scripts see it, with docker's names of fields.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    driver: &'static str,
    scope: &'static str,
    #[serde(rename = "IPv6")]
    ipv6: String,
    internal: String,
    labels: String,
    created_at: String,
}

pub fn cmd_network(cx: &Context, args: &Args) -> Result<Code, Failure> {
    match &args.command {
        Command::Create(args) => create(cx, args),
        Command::Ls(args) => ls(cx, args),
        Command::Inspect(args) => inspect(cx, args),
        Command::Rm(args) => rm(cx, args),
        Command::Connect(args) => connect(cx, args),
        Command::Disconnect(args) => {
            cx.engine()?.disconnect_network(&args.network, &args.container, args.force)?;
            Ok(Code::SUCCESS)
        }
        Command::Prune(args) => prune(cx, args),
    }
}

fn create(cx: &Context, args: &CreateArgs) -> Result<Code, Failure> {
    const MTU: [&str; 2] = ["mtu", "com.docker.network.driver.mtu"];
    if args.driver != "bridge" {
        return Err(Failure::new(format!("unknown network driver '{}'", args.driver))
            .with_hint("the only driver is bridge"));
    }
    if args.gateway.len() > args.subnet.len() || args.ip_range.len() > args.subnet.len() {
        return Err(Failure::new("a gateway or a range has no subnet").with_hint("give a --subnet for each"));
    }
    let pools = args.subnet.iter().map(|subnet| {
        // They belong to the subnet that they are in, wherever they stand.
        let gateway = args.gateway.iter().find(|gateway| subnet.contains(**gateway));
        let range = args.ip_range.iter().find(|range| subnet.contains(range.first()));
        (Some(*subnet), gateway.copied(), range.copied())
    });
    let pools: Vec<_> = pools.collect();
    let strays =
        args.gateway.iter().find(|gateway| !args.subnet.iter().any(|subnet| subnet.contains(**gateway)));
    if let Some(stray) = strays {
        return Err(Failure::new(format!("the gateway {stray} is in no subnet"))
            .with_hint("a gateway is an address of its subnet"));
    }
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    let options: BTreeMap<String, String> = args.opt.iter().map(pair).collect();
    let mut mtu = None;
    for (key, value) in &options {
        if MTU.contains(&key.as_str()) {
            let number = value.parse().ok().filter(|mtu| (1280..=65535).contains(mtu));
            mtu = Some(number.ok_or_else(|| {
                Failure::new(format!("invalid MTU '{value}'")).with_hint("it is a number from 1280 to 65535")
            })?);
        } else {
            return Err(
                Failure::new(format!("unknown network option '{key}'")).with_hint("known is mtu=NUMBER")
            );
        }
    }
    let wish = Wish {
        ipv6: args.ipv6 || args.subnet.iter().any(|subnet| subnet.is_ipv6()),
        pools,
        internal: args.internal,
        mtu,
        labels: args.label.iter().map(pair).collect(),
        options,
    };
    let network = cx.engine()?.create_network(&args.name, &wish)?;
    cx.ui.line(&network.id)?;
    Ok(Code::SUCCESS)
}

/// What there is to know of a network for a condition.
struct Listed<'a> {
    name: &'a str,
    id: &'a str,
    driver: &'a str,
    labels: &'a BTreeMap<String, String>,
    users: usize,
}

impl<'a> Listed<'a> {
    fn of(network: &'a Network, users: usize) -> Listed<'a> {
        Listed { name: &network.name, id: &network.id, driver: "bridge", labels: &network.labels, users }
    }
}

/// Whether a network meets a condition.
fn accepts(filter: &Filter, network: &Listed<'_>) -> Result<bool, Failure> {
    let value = filter.value.as_str();
    let users = network.users;
    let builtin = network.driver != "bridge" || network.name == DEFAULT;
    Ok(match filter.key.as_str() {
        "name" => network.name.contains(value),
        "id" => network.id.contains(value),
        "label" => has_label(network.labels, value),
        "label!" => !has_label(network.labels, value),
        "driver" => value == network.driver,
        "scope" => value == "local",
        "type" => match value {
            "builtin" => builtin,
            "custom" => !builtin,
            _ => {
                return Err(Failure::new(format!("invalid filter 'type={value}'"))
                    .with_hint("write builtin or custom"));
            }
        },
        // Those of the engine's own cannot be removed.
        "dangling" if builtin => value != "true" && value != "1",
        "dangling" => match value {
            "true" | "1" => users == 0,
            "false" | "0" => users > 0,
            _ => {
                return Err(Failure::new(format!("invalid filter 'dangling={value}'"))
                    .with_hint("write true or false"));
            }
        },
        _ => return Err(filter.unknown("name, id, label, driver, scope, type and dangling")),
    })
}

fn users(all: &[(String, Places)], network: &Network) -> usize {
    all.iter().filter(|(_, places)| places.endpoints.iter().any(|endpoint| endpoint.id == network.id)).count()
}

fn ls(cx: &Context, args: &LsArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let places = engine.places()?;
    let mut rows = Vec::new();
    for network in engine.networks()? {
        let mut wanted = true;
        for filter in &args.filter {
            wanted &= accepts(filter, &Listed::of(&network, users(&places, &network)))?;
        }
        if wanted {
            rows.push(row(&network, args.no_trunc));
        }
    }
    for mode in network_modes() {
        let nothing = BTreeMap::new();
        let listed =
            Listed { name: mode.name, id: &mode.id, driver: mode.driver, labels: &nothing, users: 0 };
        let mut wanted = true;
        for filter in &args.filter {
            wanted &= accepts(filter, &listed)?;
        }
        if wanted {
            rows.push(row_of_mode(&mode, args.no_trunc));
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if args.quiet {
        for row in &rows {
            cx.ui.line(&row.id)?;
        }
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"]);
        for r in rows {
            table.row(vec![r.id.clone(), r.name.clone(), r.driver.to_owned(), r.scope.to_owned()]);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

fn row(network: &Network, whole: bool) -> Row {
    let labels = network.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    Row {
        id: if whole { network.id.clone() } else { network.id.chars().take(12).collect() },
        name: network.name.clone(),
        driver: "bridge",
        scope: "local",
        ipv6: has_ipv6(network).to_string(),
        internal: network.internal.to_string(),
        labels,
        created_at: rfc3339_nanoseconds(network.created),
    }
}

fn row_of_mode(mode: &Mode, whole: bool) -> Row {
    Row {
        id: if whole { mode.id.clone() } else { mode.id.chars().take(12).collect() },
        name: mode.name.to_owned(),
        driver: mode.driver,
        scope: "local",
        ipv6: "false".to_owned(),
        internal: "false".to_owned(),
        labels: String::new(),
        created_at: rfc3339_nanoseconds(0),
    }
}

/// A mode as `docker network inspect` shows it.
fn shown_mode(mode: &Mode) -> Value {
    json!({
        "Name": mode.name,
        "Id": mode.id,
        "Created": rfc3339_nanoseconds(0),
        "Scope": "local",
        "Driver": mode.driver,
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": {}, "Config": [] },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "Containers": {},
        "Options": {},
        "Labels": {},
    })
}

fn has_ipv6(network: &Network) -> bool {
    network.pools.iter().any(|pool| pool.subnet.is_ipv6())
}

/// A network as `docker network inspect` shows it.
pub fn shown(engine: &Engine, name: &str) -> Result<Value, Failure> {
    if let Some(mode) =
        network_modes().iter().find(|mode| mode.name == name || name.len() >= 12 && mode.id.starts_with(name))
    {
        return Ok(shown_mode(mode));
    }
    let network = engine.network(name)?;
    let mut containers = serde_json::Map::new();
    for (id, places) in engine.places()? {
        let Some(endpoint) = places.endpoints.iter().find(|endpoint| endpoint.id == network.id) else {
            continue;
        };
        let address = |ipv6: bool| {
            let found = endpoint.addresses.iter().find(|(address, _)| address.is_ipv6() == ipv6);
            found.map(|(address, prefix)| format!("{address}/{prefix}")).unwrap_or_default()
        };
        containers.insert(
            id,
            json!({
                "Name": places.name,
                "MacAddress": endpoint.mac.map(|byte| format!("{byte:02x}")).join(":"),
                "IPv4Address": address(false),
                "IPv6Address": address(true),
            }),
        );
    }
    let pools: Vec<Value> = network
        .pools
        .iter()
        .map(|pool| {
            let mut shown = json!({ "Subnet": pool.subnet.to_string(), "Gateway": pool.gateway.to_string() });
            if let Some(range) = pool.range {
                shown["IPRange"] = json!(range.to_string());
            }
            shown
        })
        .collect();
    Ok(json!({
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339_nanoseconds(network.created),
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": network.pools.iter().any(|pool| !pool.subnet.is_ipv6()),
        "EnableIPv6": has_ipv6(&network),
        "IPAM": { "Driver": "default", "Options": {}, "Config": pools },
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "Containers": containers,
        "Options": network.options,
        "Labels": network.labels,
    }))
}

fn inspect(cx: &Context, args: &InspectArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let mut all = Vec::new();
    let mut code = Code::SUCCESS;
    for name in &args.names {
        match shown(&engine, name) {
            Ok(found) => all.push(found),
            Err(failure) => {
                cx.ui.error(&failure);
                code = Code(1);
            }
        }
    }
    cx.ui.bytes(args.format.rows(&all)?.as_bytes())?;
    Ok(code)
}

fn rm(cx: &Context, args: &RmArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let mut code = Code::SUCCESS;
    for name in &args.names {
        match engine.remove_network(name) {
            Ok(_) => cx.ui.line(name)?,
            Err(isles_engine::Error::NoNetwork(_)) if args.force => {}
            Err(e) => {
                cx.ui.error(&e.into());
                code = Code(1);
            }
        }
    }
    Ok(code)
}

fn connect(cx: &Context, args: &ConnectArgs) -> Result<Code, Failure> {
    if !args.link.is_empty() {
        return Err(Failure::new(NO_LINKS.0).with_hint(NO_LINKS.1));
    }
    let wanted = NetworkUse {
        name: args.network.clone(),
        aliases: args.alias.clone(),
        addresses: args.ip.into_iter().chain(args.ip6).collect(),
        mac: args.mac_address.as_deref().map(parse_mac).transpose()?,
    };
    cx.engine()?.connect_network(&args.container, &wanted)?;
    Ok(Code::SUCCESS)
}

fn prune(cx: &Context, args: &PruneArgs) -> Result<Code, Failure> {
    let conditions = Conditions::of(&args.filter)?;
    let engine = cx.engine()?;
    engine.collect_all()?;
    let asks = !args.force && io::stdin().is_terminal();
    if asks && !cx.ui.confirmed("this removes all networks that no container is in")? {
        return Ok(Code(1));
    }
    idle_networks(&engine, &conditions, false)?.iter().try_for_each(|name| cx.ui.line(name))?;
    Ok(Code::SUCCESS)
}
