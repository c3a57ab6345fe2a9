//! `isles volume`: named volumes, as a thing of their own.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use isles_engine::{Engine, mountpoint};
use isles_spec::VolumeSpec;
use isles_spec::quantity::human_bytes;
use isles_spec::time::rfc3339_nanoseconds;
use isles_store::{Store, Volume};
use serde::Serialize;
use serde_json::Value;

use crate::commands::prune::{Conditions, is_meant_volume};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::{Filter, glob, has_label};
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Make, list and remove volumes: folders with a name that containers share and that outlive them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles volume create db
  isles run --rm -v db:/var/lib/db debian:12 ls /var/lib/db
  isles volume create -d local -o type=tmpfs -o device=tmpfs -o o=size=64m scratch
  isles volume ls --filter dangling=true
  isles volume prune")]
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
    Prune(PruneArgs),
    #[command(hide = true)]
    Update(UpdateArgs),
}

/// Make a volume; one of that name that is there already stays as it is.
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Its name; made up where not given.
    name: Option<String>,
    /// The only driver is local.
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// Add a label.
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Where its files are: type=, device= and o=, as mount(8) has them. A file system is mounted for each container.
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    opt: Vec<String>,
}

/// List volumes.
#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Print only names.
    #[arg(short, long)]
    quiet: bool,
    /// Only those with: name=PART, label=KEY[=VALUE], driver=local, dangling=BOOL (no container has them).
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: table, json, or a template such as '{{.Name}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// Show everything about volumes.
#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// How to print: json, or a template such as '{{.Mountpoint}}'.
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

/// Remove volumes that no container has.
#[derive(Debug, clap::Args)]
struct RmArgs {
    /// What is not there need not be removed.
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

/// Remove volumes that no container has: those that nobody named.
#[derive(Debug, clap::Args)]
struct PruneArgs {
    /// Those with a name, too.
    #[arg(short, long)]
    all: bool,
    /// Only those with: until=24h or a time (made before it), label=KEY[=VALUE], label!=KEY[=VALUE]; all=true is --all.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

/// Not here: it is for volumes of swarms.
#[derive(Debug, clap::Args)]
struct UpdateArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
    _words: Vec<String>,
}

pub fn cmd_volume(cx: &Context, args: &Args) -> Result<Code, Failure> {
    match &args.command {
        Command::Create(args) => create(cx, args),
        Command::Ls(args) => ls(cx, args),
        Command::Inspect(args) => inspect(cx, args),
        Command::Rm(args) => rm(cx, args),
        Command::Prune(args) => prune(cx, args),
        Command::Update(_) => Err(update()),
    }
}

fn create(cx: &Context, args: &CreateArgs) -> Result<Code, Failure> {
    if args.driver != "local" {
        return Err(Failure::new(format!("there is no driver of volumes called '{}'", args.driver))
            .with_hint("the only one is 'local'; -o type=nfs and the like mount other file systems"));
    }
    let mut spec = VolumeSpec::default();
    for label in &args.label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        if key.is_empty() {
            return Err(Failure::new(format!("invalid label '{label}'")).with_hint("write KEY=VALUE, or KEY"));
        }
        spec.labels.insert(key.to_owned(), value.to_owned());
    }
    for option in &args.opt {
        let (key, value) = option.split_once('=').ok_or_else(|| {
            Failure::new(format!("invalid option '{option}'")).with_hint("write KEY=VALUE: type=tmpfs")
        })?;
        spec.options.insert(key.to_owned(), value.to_owned());
    }
    let name = args.name.as_deref().filter(|name| !name.is_empty());
    let volume = cx.engine()?.create_volume(name, &spec)?;
    cx.ui.line(volume.name())?;
    Ok(Code::SUCCESS)
}

/// A volume as scripts see it, with docker's names of fields.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    driver: &'static str,
    name: String,
    mountpoint: String,
    labels: String,
    scope: &'static str,
    /// How many containers have it.
    links: usize,
}

fn ls(cx: &Context, args: &LsArgs) -> Result<Code, Failure> {
    for filter in &args.filter {
        match filter.key.as_str() {
            "name" | "label" | "driver" => {}
            "dangling" => drop(filter.truth()?),
            _ => return Err(filter.unknown("name, label, driver and dangling")),
        }
    }
    let engine = cx.engine()?;
    engine.collect_all()?;
    let users = engine.users_of_volumes()?;
    let accepts = |volume: &Volume, filter: &Filter| match filter.key.as_str() {
        "name" => volume.name().contains(&filter.value) || glob(&filter.value, volume.name()),
        "label" => has_label(&volume.record.spec.labels, &filter.value),
        "driver" => filter.value == "local",
        _ => filter.truth().is_ok_and(|dangling| dangling != users.contains_key(volume.name())),
    };
    let rows: Vec<Row> = engine
        .store()
        .volumes()?
        .iter()
        .filter(|volume| args.filter.iter().all(|filter| accepts(volume, filter)))
        .map(|volume| Row {
            driver: "local",
            name: volume.name().to_owned(),
            mountpoint: mountpoint(volume).display().to_string(),
            labels: pairs(&volume.record.spec.labels),
            scope: "local",
            links: users.get(volume.name()).map_or(0, Vec::len),
        })
        .collect();
    if args.quiet {
        rows.iter().try_for_each(|row| cx.ui.line(&row.name))?;
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["DRIVER", "VOLUME NAME"]);
        rows.iter().for_each(|row| table.row(vec![row.driver.into(), row.name.clone()]));
        table
    })?;
    Ok(Code::SUCCESS)
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// A volume as `docker volume inspect` shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    created_at: String,
    driver: &'static str,
    labels: BTreeMap<String, String>,
    mountpoint: String,
    name: String,
    options: Option<BTreeMap<String, String>>,
    scope: &'static str,
}

fn inspect(cx: &Context, args: &InspectArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let (mut found, mut code) = (Vec::new(), Code::SUCCESS);
    for name in &args.names {
        match shown(engine.store(), name) {
            Ok(volume) => found.push(volume),
            Err(failure) => {
                cx.ui.error(&failure);
                code = Code(1);
            }
        }
    }
    cx.ui.bytes(args.format.rows(&found)?.as_bytes())?;
    Ok(code)
}

/// A volume as JSON.
pub fn shown(store: &Store, name: &str) -> Result<Value, Failure> {
    let volume = store.volume(name)?;
    let shown = Shown {
        created_at: rfc3339_nanoseconds(volume.record.created),
        driver: "local",
        mountpoint: mountpoint(&volume).display().to_string(),
        labels: volume.record.spec.labels,
        name: volume.record.name,
        options: Some(volume.record.spec.options).filter(|options| !options.is_empty()),
        scope: "local",
    };
    serde_json::to_value(shown).map_err(|e| Failure::because("cannot write the volume as JSON", &e))
}

fn rm(cx: &Context, args: &RmArgs) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    engine.collect_all()?;
    let mut code = Code::SUCCESS;
    for name in &args.names {
        match engine.remove_volume(name) {
            Ok(()) => cx.ui.line(name)?,
            Err(isles_engine::Error::Store(isles_store::Error::NoVolume { .. })) if args.force => {}
            Err(e) => {
                cx.ui.error(&e.into());
                code = Code(1);
            }
        }
    }
    Ok(code)
}

fn prune(cx: &Context, args: &PruneArgs) -> Result<Code, Failure> {
    let (all, filters) = everything(args)?;
    let conditions = Conditions::of(&filters)?;
    let what = if all { "all volumes" } else { "all volumes without a name" };
    let asks = !args.force && io::stdin().is_terminal();
    if asks && !cx.ui.confirmed(&format!("this removes {what} that no container has"))? {
        return Ok(Code(1));
    }
    let engine = cx.engine()?;
    engine.collect_all()?;
    let meant =
        |volume: &Volume| (all || Engine::is_anonymous(volume)) && is_meant_volume(volume, &conditions);
    let (removed, bytes) = engine.prune_volumes(&meant)?;
    removed.iter().try_for_each(|name| cx.ui.line(name))?;
    cx.ui.line(&format!("Total reclaimed space: {}", human_bytes(bytes)))?;
    Ok(Code::SUCCESS)
}

/// Whether volumes with a name go as well, which docker's filter `all` says, too; and the other filters.
fn everything(args: &PruneArgs) -> Result<(bool, Vec<Filter>), Failure> {
    let (of_all, others): (Vec<Filter>, Vec<Filter>) =
        args.filter.iter().cloned().partition(|filter| filter.key == "all");
    match of_all.as_slice() {
        [] => Ok((args.all, others)),
        [filter] if !args.all => Ok((filter.truth()?, others)),
        _ => Err(Failure::new("--all and a filter 'all' say the same").with_hint("give one of them")),
    }
}

/// What `isles volume update` says: docker changes volumes of swarms only.
fn update() -> Failure {
    Failure::new("a volume cannot be changed")
        .with_hint("docker has this for volumes of swarms, which there are none of here; make another one with 'isles volume create'")
}
