//! `isles df`

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use isles_flow::history::History;
use isles_flow::record::State;
use isles_spec::Digest;
use isles_spec::quantity::human_bytes;
use isles_store::{DiskUsage, PruneOptions, Store, UsageLine, disk_bytes};
use serde::Serialize;

use crate::commands::images::id;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Show what images, containers and caches take on disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles df
  isles df -v")]
pub struct Args {
    /// Show every image and container.
    #[arg(short, long)]
    verbose: bool,
    /// How to print: table, json, or a template such as '{{.Type}}: {{.Size}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "Type")]
    kind: &'static str,
    total: u64,
    size: String,
    reclaimable: String,
    bytes: u64,
    reclaimable_bytes: u64,
}

pub fn cmd_df(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    let usage = store.disk_usage()?;
    let users = engine.users_of_volumes()?;
    let idle = store.volumes()?.into_iter().filter(|volume| !users.contains_key(volume.name()));
    let reclaimable = idle.map(|volume| volume.disk_bytes()).sum();
    let volumes = UsageLine { reclaimable, ..usage.volumes };
    let mut rows = rows(store, &usage, volumes)?;
    rows.extend(runs(cx)?);
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["TYPE", "TOTAL", "SIZE", "RECLAIMABLE"]);
        for row in rows {
            let percent = match row.reclaimable_bytes.saturating_mul(100).checked_div(row.bytes) {
                Some(percent) => format!("{} ({}%)", row.reclaimable, percent.min(100)),
                None => row.reclaimable.clone(),
            };
            table.row(vec![row.kind.into(), row.total.to_string(), row.size.clone(), percent]);
        }
        table
    })?;
    if args.verbose && args.format == Format::Table {
        cx.ui.line("")?;
        cx.ui.bytes(images(store)?.to_string().as_bytes())?;
        cx.ui.line("")?;
        cx.ui.bytes(containers(store)?.to_string().as_bytes())?;
    }
    Ok(Code::SUCCESS)
}

fn rows(store: &Store, usage: &DiskUsage, volumes: UsageLine) -> Result<Vec<Row>, Failure> {
    let unused = PruneOptions { all_images: true, dry_run: true, ..PruneOptions::default() };
    // What no image needs is neither an image's nor in a cache.
    let loose = usage.blobs.reclaimable + usage.layers.reclaimable + usage.leftovers;
    let freed = store.prune(&unused)?.freed.saturating_sub(loose);
    let images = UsageLine { reclaimable: freed.min(usage.images.bytes), ..usage.images };
    let leftovers = UsageLine { count: 0, bytes: loose, reclaimable: loose };
    let mut rows = Vec::new();
    for (kind, line) in [
        ("Images", images),
        ("Registry", usage.served),
        ("Containers", usage.containers),
        ("Local Volumes", volumes),
        ("Build Cache", usage.build_cache),
        ("Downloads", usage.downloads),
        ("Leftovers", leftovers),
    ] {
        let unusual = matches!(kind, "Leftovers" | "Registry");
        if unusual && line.bytes == 0 && line.count == 0 {
            continue;
        }
        rows.push(Row {
            kind,
            total: line.count,
            size: human_bytes(line.bytes),
            reclaimable: human_bytes(line.reclaimable),
            bytes: line.bytes,
            reclaimable_bytes: line.reclaimable,
        });
    }
    Ok(rows)
}

/// What runs of workflows left: their records, and steps that are not done again.
fn runs(cx: &Context) -> Result<Option<Row>, Failure> {
    let state = cx.state_dir()?;
    let place = state.join("flow");
    if !place.exists() {
        return Ok(None);
    }
    let history = History::open(&place).map_err(|e| Failure::because("cannot look at the runs", &e))?;
    let runs = history.runs().map_err(|e| Failure::because("cannot look at the runs", &e))?;
    let over: HashSet<PathBuf> =
        runs.iter().filter(|run| run.state != State::Running).map(|run| history.folder(run)).collect();
    let mut bytes = disk_bytes(&state.join("cache/steps")) + disk_bytes(&state.join("cache/web"));
    let mut reclaimable = 0;
    // What is removed meanwhile takes nothing.
    for entry in std::fs::read_dir(&place).into_iter().flatten().flatten() {
        let size = disk_bytes(&entry.path());
        bytes += size;
        reclaimable += if over.contains(&entry.path()) { size } else { 0 };
    }
    Ok(Some(Row {
        kind: "Workflow Runs",
        total: runs.len() as u64,
        size: human_bytes(bytes),
        reclaimable: human_bytes(reclaimable),
        bytes,
        reclaimable_bytes: reclaimable,
    }))
}

/// Every image with what it shares with others.
fn images(store: &Store) -> Result<Table, Failure> {
    let images = store.images()?;
    let mut users: HashMap<&Digest, usize> = HashMap::new();
    for image in &images {
        image.layers.iter().for_each(|layer| *users.entry(layer).or_default() += 1);
    }
    let headings = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE"];
    let mut table = Table::new(&headings);
    for image in &images {
        let size = |layer: &&Digest| store.layer_info(layer).map(|i| i.size).unwrap_or_default();
        let shared: u64 = image.layers.iter().filter(|l| users[l] > 1).map(|l| size(&l)).sum();
        let name = image.references.first();
        table.row(vec![
            name.map_or_else(|| "<none>".into(), |n| n.familiar_name()),
            name.and_then(|n| n.tag()).unwrap_or("<none>").to_owned(),
            id(&image.id, false),
            age::ago(image.created.as_deref()),
            human_bytes(image.size),
            human_bytes(shared),
            human_bytes(image.size.saturating_sub(shared)),
        ]);
    }
    Ok(table)
}

fn containers(store: &Store) -> Result<Table, Failure> {
    let mut table = Table::new(&["CONTAINER ID", "RUNNING", "SIZE"]);
    for container in store.containers()? {
        // Removed since it was listed.
        let Ok(container) = store.container(&container) else { continue };
        let short: String = container.id().chars().take(12).collect();
        let running = if container.is_locked() { "yes" } else { "no" };
        table.row(vec![short, running.into(), human_bytes(container.disk_bytes())]);
    }
    Ok(table)
}
