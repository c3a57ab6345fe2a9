//! `isles builder`: the build cache as a thing of its own.

mod cache;
mod df;
mod prune;

use std::time::Duration;

use isles_spec::time::rfc3339;
use isles_store::{CacheEntry, CacheKind};
use serde::Serialize;

use crate::commands::prune::moment;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;
use crate::ui::age::now;

/// Look at the build cache, shrink it, and carry cache mounts about.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles builder df
  isles builder prune --max-used-space 5g
  isles builder cache --help")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(alias = "du")]
    Df(df::DfArgs),
    Prune(prune::PruneArgs),
    #[command(subcommand)]
    Cache(cache::CacheCommand),
}

pub fn cmd_builder(cx: &Context, args: &Args) -> Result<Code, Failure> {
    match &args.command {
        Command::Df(args) => df::cmd_df(cx, args),
        Command::Prune(args) => prune::cmd_prune(cx, args),
        Command::Cache(command) => cache::cmd_cache(cx, command),
    }
}

/// Kinds of entries under the names that BuildKit has for them, where it has such.
const KINDS: [(CacheKind, &str); 4] = [
    (CacheKind::Record, "regular"),
    (CacheKind::Mount, "exec.cachemount"),
    (CacheKind::Download, "source.download"),
    (CacheKind::Memory, "internal"),
];

fn kind(entry: &CacheEntry) -> &'static str {
    KINDS.iter().find(|(kind, _)| *kind == entry.kind).map_or("internal", |(_, name)| name)
}

/// One line of a list.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Type")]
    kind: &'static str,
    description: String,
    size: String,
    bytes: u64,
    last_used_at: String,
    shared: bool,
    in_use: bool,
    reclaimable: bool,
}

impl Row {
    fn of(entry: &CacheEntry) -> Row {
        let used = entry.used.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Row {
            id: entry.id.clone(),
            kind: kind(entry),
            description: entry.about.clone(),
            size: isles_spec::quantity::human_bytes(entry.bytes),
            bytes: entry.bytes,
            last_used_at: rfc3339(used.as_secs().cast_signed()),
            shared: entry.shared,
            in_use: entry.in_use,
            reclaimable: !entry.in_use,
        }
    }
}

/// What filters say: how old an entry is at least, and everything else about it.
struct Conditions {
    older_than: Duration,
    others: Vec<Filter>,
}

impl Conditions {
    fn of(filters: &[Filter]) -> Result<Conditions, Failure> {
        let mut conditions = Conditions { older_than: Duration::ZERO, others: Vec::new() };
        for filter in filters {
            match filter.key.as_str() {
                "until" => {
                    let age = (now() - moment(&filter.value)?).max(0);
                    conditions.older_than = Duration::from_secs(u64::try_from(age).unwrap_or(0));
                }
                "type" if !KINDS.iter().any(|(_, name)| *name == filter.value) => {
                    let names = KINDS.map(|(_, name)| name).join(", ");
                    return Err(Failure::new(format!("unknown type '{}'", filter.value))
                        .with_hint(format!("types are {names}")));
                }
                "type" | "id" | "description" => conditions.others.push(filter.clone()),
                "inuse" | "shared" | "private" => {
                    filter.truth()?;
                    conditions.others.push(filter.clone());
                }
                _ => return Err(filter.unknown("until, type, id, description, inuse, shared and private")),
            }
        }
        Ok(conditions)
    }

    /// Whether an entry meets all but the age.
    fn meets(&self, entry: &CacheEntry) -> bool {
        self.others.iter().all(|filter| match filter.key.as_str() {
            "type" => kind(entry) == filter.value,
            "id" => entry.id.starts_with(&filter.value) || entry.about == filter.value,
            "description" => entry.about.contains(&filter.value),
            "inuse" => filter.truth().is_ok_and(|yes| yes == entry.in_use),
            "private" => filter.truth().is_ok_and(|yes| yes != entry.shared),
            _ => filter.truth().is_ok_and(|yes| yes == entry.shared),
        })
    }

    fn is_old(&self, entry: &CacheEntry) -> bool {
        self.older_than.is_zero() || entry.used.elapsed().is_ok_and(|age| age >= self.older_than)
    }

    fn is_empty(&self) -> bool {
        self.older_than.is_zero() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn filters() {
        let entry = CacheEntry {
            id: "abcd".into(),
            kind: CacheKind::Mount,
            about: "/root/.cache".into(),
            bytes: 1,
            used: SystemTime::now() - Duration::from_secs(3600),
            shared: false,
            in_use: true,
        };
        for (filters, expected) in [
            (&[][..], true),
            (&["type=exec.cachemount"], true),
            (&["type=regular"], false),
            (&["id=ab"], true),
            (&["id=/root/.cache"], true),
            (&["id=cd"], false),
            (&["description=cache"], true),
            (&["inuse=true", "shared=false"], true),
            (&["inuse=false"], false),
            (&["until=30m"], true),
            (&["until=24h"], false),
            (&["until=2020-01-01"], false),
            (&["private=true", "shared=false"], true),
            (&["private=false"], false),
        ] {
            let filters: Vec<Filter> = filters.iter().map(|f| f.parse().unwrap()).collect();
            let conditions = Conditions::of(&filters).unwrap();
            assert_eq!(conditions.meets(&entry) && conditions.is_old(&entry), expected, "{filters:?}");
        }
        for bad in ["color=red", "type=tape", "inuse=maybe", "until=yesterday"] {
            assert!(Conditions::of(&[bad.parse().unwrap()]).is_err(), "{bad}");
        }
    }
}
