//! `isles prune`

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use isles_engine::{Engine, Info, Status};
use isles_flow::history::History;
use isles_flow::record::State;
use isles_network::state::DEFAULT;
use isles_spec::quantity::{human_bytes, parse_bytes};
use isles_spec::time::parse_rfc3339;
use isles_store::{ImageSummary, PruneOptions, Pruned, Store, Volume, disk_bytes};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;
use crate::ui::age::now;
use crate::ui::format::{Format, count};

mod conditions;

pub use conditions::{Conditions, moment};

/// Remove what is not needed: images without a name, content without an image, and build cache above its budget.
///
/// Nothing that a container, a running command or a named image needs goes, whatever else runs meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles prune --dry-run
  isles prune -a --filter until=168h
  isles prune -f --keep-storage 5g")]
pub struct Args {
    /// Also images that have a name but no container, and the whole build cache.
    #[arg(short, long)]
    all: bool,
    /// Also containers that have ended.
    #[arg(long)]
    containers: bool,
    /// Also networks that no container is in.
    #[arg(long)]
    networks: bool,
    /// Also volumes that nobody named and no container has.
    #[arg(long)]
    volumes: bool,
    /// Also what is left of workflow runs that are over: records, logs, and work that could be gone on with.
    #[arg(long)]
    runs: bool,
    /// So much of the build cache and of downloads stays, last used first [default: 20g or a tenth of the disk,
    /// whichever is less; with -a nothing].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    keep_storage: Option<u64>,
    /// Only what meets until=24h or a time (made, or in caches used, before it), label=KEY[=VALUE] and label!=KEY[=VALUE].
    /// Build cache and runs have no labels.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// How to print: table, json, or a template such as '{{.SpaceReclaimed}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Images and what they consist of, and nothing else (`isles image prune`).
    #[arg(skip)]
    images_only: bool,
    /// Of containers also those that have not been started yet (`isles system prune`).
    #[arg(skip)]
    waiting: bool,
}

impl Args {
    /// What `isles image prune` means.
    pub fn of_images(all: bool, filter: &[Filter], force: bool) -> Args {
        Args { images_only: true, ..Args::of_system(all, false, filter, force).without_others() }
    }

    /// What `isles system prune` means.
    pub fn of_system(all: bool, volumes: bool, filter: &[Filter], force: bool) -> Args {
        Args {
            all,
            containers: true,
            networks: true,
            volumes,
            runs: false,
            keep_storage: None,
            filter: filter.to_vec(),
            force,
            dry_run: false,
            format: Format::Table,
            images_only: false,
            waiting: true,
        }
    }

    fn without_others(self) -> Args {
        Args { containers: false, networks: false, ..self }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome {
    images: Vec<String>,
    containers: Vec<String>,
    networks: Vec<String>,
    volumes: Vec<String>,
    runs: Vec<String>,
    layers: Vec<String>,
    blobs: Vec<String>,
    build_records: usize,
    downloads: usize,
    cache_mounts: usize,
    memories: usize,
    space_reclaimed: u64,
    dry_run: bool,
}

pub fn cmd_prune(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let conditions = Conditions::of(&args.filter)?;
    let grace = conditions.before.map_or(0, |before| (now() - before).max(0));
    let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    let engine = cx.engine()?;
    let store = engine.store();
    if !args.force && !args.dry_run && io::stdin().is_terminal() && !confirmed(cx, args)? {
        return Ok(Code(1));
    }
    let which = Ended { conditions: &conditions, waiting: args.waiting };
    let (containers, of_containers) =
        if args.containers { ended(&engine, &which, args.dry_run)? } else { Default::default() };
    if !args.dry_run {
        engine.collect_all()?;
        isles_build::remove_dead_secrets();
    }
    let networks =
        if args.networks { idle_networks(&engine, &conditions, args.dry_run)? } else { Vec::new() };
    let (volumes, of_volumes) =
        if args.volumes { volumes(&engine, &conditions, args.dry_run)? } else { Default::default() };
    let (runs, of_runs) = match args.runs && conditions.met_without_labels() {
        true => runs(cx, grace, args.dry_run)?,
        false => Default::default(),
    };
    let may_go = |image: &ImageSummary| is_meant(store, image, &conditions);
    let mut pruned = store.prune(&PruneOptions {
        all_images: args.all,
        may_go: Some(&may_go),
        cache: !args.images_only && conditions.met_without_labels(),
        cache_budget: args.keep_storage.unwrap_or_else(|| if args.all { 0 } else { store.cache_budget() }),
        grace,
        dry_run: args.dry_run,
    })?;
    pruned.freed += of_containers + of_volumes + of_runs;
    report(cx, args, pruned, Removed { containers, networks, volumes, runs })?;
    Ok(Code::SUCCESS)
}

fn is_meant(store: &Store, image: &ImageSummary, conditions: &Conditions<'_>) -> bool {
    let made = image.created.as_deref().and_then(parse_rfc3339);
    if conditions.are_without_labels() {
        return conditions.met(made, &BTreeMap::new());
    }
    // Nobody can have meant the labels of one that cannot be read.
    let read = store.image(&image.manifest_digest);
    read.is_ok_and(|image| conditions.met(made, &image.config.config.labels))
}

fn confirmed(cx: &Context, args: &Args) -> Result<bool, Failure> {
    let mut what =
        vec![if args.all { "all images without a container" } else { "all images without a name" }];
    if args.containers {
        what.push("all containers that have ended");
    }
    if args.networks {
        what.push("all networks that no container is in");
    }
    if args.volumes {
        what.push("all volumes without a name and a container");
    }
    if args.runs {
        what.push("what is left of all workflow runs that are over");
    }
    if !args.images_only {
        what.push(if args.all { "all build cache" } else { "build cache above its budget" });
    }
    cx.ui.confirmed(&format!("this removes {}", what.join(", ")))
}

/// Which containers that do not run are meant.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    pub conditions: &'a Conditions<'a>,
    /// Those as well that have not been started yet.
    pub waiting: bool,
}

impl Ended<'_> {
    fn has(&self, info: &Info) -> bool {
        let idle = match info.status {
            Status::Exited | Status::Dead => true,
            Status::Created => self.waiting,
            Status::Running | Status::Paused | Status::Restarting => false,
        };
        let (made, workload) = (seconds(info.record.created), &info.record.workload);
        // Those of pods are members of a whole.
        idle && workload.pod.is_none() && self.conditions.met(Some(made), &workload.labels)
    }
}

/// Removes containers that do not run. Returns their IDs and what they took.
pub fn ended(engine: &Engine, which: &Ended<'_>, dry_run: bool) -> Result<(Vec<String>, u64), Failure> {
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for info in engine.containers()? {
        if !which.has(&info) {
            continue;
        }
        let id = info.record.id;
        // Gone since it was listed.
        let Ok(container) = engine.store().container(&id) else { continue };
        let size = container.disk_bytes();
        match if dry_run { Ok(id) } else { engine.remove(&id, false) } {
            Ok(id) => {
                ids.push(id);
                bytes += size;
            }
            // Started again since it was listed.
            Err(isles_engine::Error::Running { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok((ids, bytes))
}

fn seconds(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX)
}

/// Removes networks that no container is in. Returns their names.
pub fn idle_networks(
    engine: &Engine,
    conditions: &Conditions<'_>,
    dry_run: bool,
) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    let places = engine.places()?;
    for network in engine.networks()? {
        let used = places.iter().any(|(_, of)| of.endpoints.iter().any(|place| place.id == network.id));
        let made = seconds(network.created);
        if network.name == DEFAULT || used || !conditions.met(Some(made), &network.labels) {
            continue;
        }
        // One that somebody has taken meanwhile stays.
        if dry_run || engine.remove_network(&network.id).is_ok() {
            names.push(network.name);
        }
    }
    Ok(names)
}

/// Removes volumes that nobody named and no container has. Returns their names and what they took.
fn volumes(
    engine: &Engine,
    conditions: &Conditions<'_>,
    dry_run: bool,
) -> Result<(Vec<String>, u64), Failure> {
    let meant = |volume: &Volume| Engine::is_anonymous(volume) && is_meant_volume(volume, conditions);
    if !dry_run {
        return Ok(engine.prune_volumes(&meant)?);
    }
    let users = engine.users_of_volumes()?;
    let idle = engine.store().volumes()?.into_iter();
    let idle: Vec<_> = idle.filter(|volume| meant(volume) && !users.contains_key(volume.name())).collect();
    let bytes = idle.iter().map(|volume| volume.disk_bytes()).sum();
    Ok((idle.into_iter().map(|volume| volume.record.name).collect(), bytes))
}

/// Whether a volume meets the conditions.
pub fn is_meant_volume(volume: &Volume, conditions: &Conditions<'_>) -> bool {
    conditions.met(Some(seconds(volume.record.created)), &volume.record.spec.labels)
}

/// Forgets workflow runs that ended longer ago than `grace`. Returns their IDs and what they took.
fn runs(cx: &Context, grace: Duration, dry_run: bool) -> Result<(Vec<String>, u64), Failure> {
    let failed = |e| Failure::because("cannot remove the runs", &e);
    let mut history = History::open(&cx.state_dir()?.join("flow")).map_err(failed)?;
    let before = isles_flow::record::now() - i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for run in history.runs().map_err(failed)? {
        if run.state == State::Running || run.ended.unwrap_or(run.began) > before {
            continue;
        }
        let size = disk_bytes(&history.folder(&run));
        match if dry_run { Ok(()) } else { history.remove(&run) } {
            Ok(()) => {
                bytes += size;
                ids.push(run.id);
            }
            // Somebody goes on with it since it was listed.
            Err(isles_flow::history::Error::UnderWay(_)) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok((ids, bytes))
}

/// Names and IDs of what was removed.
struct Removed {
    containers: Vec<String>,
    networks: Vec<String>,
    volumes: Vec<String>,
    runs: Vec<String>,
}

fn report(cx: &Context, args: &Args, pruned: Pruned, removed: Removed) -> Result<(), Failure> {
    let texts = |digests: &[isles_spec::Digest]| digests.iter().map(ToString::to_string).collect();
    let outcome = Outcome {
        layers: texts(&pruned.layers),
        blobs: texts(&pruned.blobs),
        images: pruned.images,
        containers: removed.containers,
        networks: removed.networks,
        volumes: removed.volumes,
        runs: removed.runs,
        build_records: pruned.build_records,
        downloads: pruned.downloads,
        cache_mounts: pruned.cache_mounts,
        memories: pruned.memories,
        space_reclaimed: pruned.freed,
        dry_run: args.dry_run,
    };
    if args.format != Format::Table {
        return cx.ui.object(&args.format, &outcome);
    }
    for (kind, names) in [
        ("image", &outcome.images),
        ("container", &outcome.containers),
        ("network", &outcome.networks),
        ("volume", &outcome.volumes),
        ("run", &outcome.runs),
    ] {
        names.iter().try_for_each(|name| cx.ui.line(&format!("{kind} {name}")))?;
    }
    for (n, thing) in [
        (outcome.layers.len(), "layer"),
        (outcome.blobs.len(), "blob"),
        (outcome.build_records, "build record"),
        (outcome.downloads, "download"),
        (outcome.cache_mounts, "cache mount"),
        (outcome.memories, "cache file"),
    ] {
        if n > 0 {
            cx.ui.line(&count(n as u64, thing))?;
        }
    }
    let verb = if args.dry_run { "Would reclaim" } else { "Total reclaimed space" };
    cx.ui.line(&format!("{verb}: {}", human_bytes(outcome.space_reclaimed)))
}
