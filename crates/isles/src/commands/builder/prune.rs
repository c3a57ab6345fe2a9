//! `isles builder prune`

use std::io::{self, IsTerminal};

use isles_spec::quantity::{human_bytes, parse_bytes};
use isles_store::{CacheEntry, Shrinking};
use serde::Serialize;

use super::{Conditions, Row};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;
use crate::ui::format::Format;

/// Shrink the build cache, the least recently used first.
///
/// Without more it shrinks to its budget: 20 GB, or a tenth of the disk where that is less. Builds do the same by
/// themselves once an hour at most. What an image, a container or a running build needs stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles builder prune --dry-run
  isles builder prune --all
  isles builder prune --filter until=168h --filter type=exec.cachemount
  isles builder prune --max-used-space 5g")]
pub struct PruneArgs {
    /// Everything that is not in use.
    #[arg(short, long)]
    all: bool,
    /// Only until=24h or a time (not used since), type=regular|exec.cachemount|source.download|internal, id=ID,
    /// description=TEXT, shared=BOOL or private=BOOL.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// So much of the cache may stay, last used first [default: the budget; with --all or --filter nothing].
    #[arg(long, alias = "keep-storage", value_name = "SIZE", value_parser = parse_bytes)]
    max_used_space: Option<u64>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// How to print: table, json, or a template such as '{{.SpaceReclaimed}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome {
    entries: Vec<Row>,
    space_reclaimed: u64,
    dry_run: bool,
}

pub fn cmd_prune(cx: &Context, args: &PruneArgs) -> Result<Code, Failure> {
    let conditions = Conditions::of(&args.filter)?;
    let engine = cx.engine()?;
    let store = engine.store();
    let everything = args.all || !conditions.is_empty();
    if !args.force
        && !args.dry_run
        && args.all
        && io::stdin().is_terminal()
        && !cx.ui.confirmed("this removes all build cache")?
    {
        return Ok(Code(1));
    }
    let may_go = |entry: &CacheEntry| conditions.meets(entry);
    let wanted = Shrinking {
        budget: args.max_used_space.unwrap_or_else(|| if everything { 0 } else { store.cache_budget() }),
        older_than: conditions.older_than,
        may_go: Some(&may_go),
        dry_run: args.dry_run,
    };
    let (gone, freed) = store.shrink_caches(&wanted)?;
    let outcome = Outcome {
        entries: gone.iter().map(Row::of).collect(),
        space_reclaimed: freed,
        dry_run: args.dry_run,
    };
    if args.format != Format::Table {
        cx.ui.object(&args.format, &outcome)?;
        return Ok(Code::SUCCESS);
    }
    for row in &outcome.entries {
        let id: String = row.id.chars().take(12).collect();
        cx.ui.line(&format!("{id} {} {}: {}", row.kind, row.description, row.size))?;
    }
    let verb = if args.dry_run { "Would reclaim" } else { "Total reclaimed space" };
    cx.ui.line(&format!("{verb}: {}", human_bytes(freed)))?;
    Ok(Code::SUCCESS)
}
