//! `apptainer cache …`: what was fetched and kept, so that it need not be fetched again. Files are below the caller's
//! cache folder; images of layers are in the store of Isles.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isles_store::PruneOptions;

use crate::ask;
use crate::columns::time;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::settings_folder;
use crate::variables;

/// Folders of files, and the blobs of the store.
const KINDS: [&str; 7] = ["library", "oci-tmp", "shub", "oras", "net", "ipfs", "blob"];

static TYPE: Flag =
    Flag::words("type", "kind", "only these kinds: library, oci-tmp, shub, oras, net, blob, all").short('T');
static VERBOSE: Flag = Flag::switch("verbose", "list each file").short('v');
static DAYS: Flag = Flag::number("days", "only what is older than so many days").short('D');
static DRY_RUN: Flag = Flag::switch("dry-run", "only say what would go").short('n');
static FORCE: Flag = Flag::switch("force", "do not ask").short('f');

pub static COMMAND: Command =
    Command { usage: "cache", short: "Manage the local cache", commands: &[&CLEAN, &LIST], ..Command::EMPTY };

static LIST: Command = Command {
    usage: "list [list options...]",
    short: "List what is in the cache",
    examples: "apptainer cache list\napptainer cache list --type=oras",
    flags: &[&[&TYPE, &VERBOSE]],
    arity: Arity::Exactly(0),
    run: list,
    ..Command::EMPTY
};

static CLEAN: Command = Command {
    usage: "clean [clean options...]",
    short: "Remove what is in the cache",
    long: "Files go, and of the store of Isles what no image, container or build needs. Images that have a name stay:\n\
           `isles rmi` and `isles prune -a` remove them.",
    examples: "apptainer cache clean --force\napptainer cache clean --days 7",
    flags: &[&[&DAYS, &DRY_RUN, &FORCE, &TYPE]],
    arity: Arity::Exactly(0),
    run: clean,
    ..Command::EMPTY
};

/// A file of the cache.
struct Kept {
    kind: &'static str,
    name: String,
    path: PathBuf,
    size: u64,
    /// Seconds since 1970.
    changed: u64,
}

fn folder() -> Result<PathBuf, Failure> {
    match variables::look("CACHEDIR") {
        Some(folder) => Ok(folder.into()),
        None => Ok(settings_folder()?.join("cache")),
    }
}

/// The kinds that the flag names.
fn kinds(cx: &Context<'_>) -> Result<Vec<&'static str>, Failure> {
    let asked = cx.values.list(&TYPE);
    if asked.is_empty() || asked.iter().any(|kind| kind == "all") {
        return Ok(KINDS.to_vec());
    }
    let known = |kind: &String| {
        let name = match kind.as_str() {
            "blobs" => "blob",
            "oci" => "oci-tmp",
            other => other,
        };
        let found = KINDS.iter().copied().find(|known| *known == name);
        found.ok_or_else(|| {
            Failure::new(format!("invalid cache type: {kind}"))
                .with_hint(format!("known are {}", KINDS.join(", ")))
        })
    };
    asked.iter().map(known).collect()
}

/// The files of these kinds, by their names. Folders that are not there have none.
fn files(kinds: &[&'static str]) -> Result<Vec<Kept>, Failure> {
    let folder = folder()?;
    let mut all = BTreeMap::new();
    for kind in kinds {
        for entry in fs::read_dir(folder.join(kind)).into_iter().flatten().flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            let changed = stat.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let kept = Kept {
                kind,
                name: entry.file_name().to_string_lossy().into_owned(),
                path: entry.path(),
                size: stat.len(),
                changed: changed.map_or(0, |since| since.as_secs()),
            };
            if stat.is_file() {
                all.insert((*kind, kept.name.clone()), kept);
            }
        }
    }
    Ok(all.into_values().collect())
}

fn list(cx: &Context<'_>) -> Result<u8, Failure> {
    let kinds = kinds(cx)?;
    let files = files(&kinds)?;
    let mut out = String::new();
    if cx.values.is(&VERBOSE) {
        let line = |name: &str, date: &str, size: &str, kind: &str| {
            format!("{name:<24} {date:<22} {size:<16} {kind}\n")
        };
        out.push_str(&line("NAME", "DATE CREATED", "SIZE", "TYPE"));
        for kept in &files {
            let name: String = kept.name.chars().take(22).collect();
            let date = time(kept.changed.cast_signed());
            out.push_str(&line(&name, date.get(..19).unwrap_or(&date), &size(kept.size), kept.kind));
        }
        out.push('\n');
    }
    let space: u64 = files.iter().map(|kept| kept.size).sum();
    let mut total = space;
    let mut parts = Vec::new();
    if kinds.iter().any(|kind| *kind != "blob") {
        parts.push(format!("{} container file(s) using {}", files.len(), size(space)));
    }
    if kinds.contains(&"blob") {
        let usage = cx.engine()?.store().disk_usage()?.blobs;
        parts.push(format!("{} oci blob file(s) using {}", usage.count, size(usage.bytes)));
        total += usage.bytes;
    }
    cx.print(format!(
        "{out}There are {} of space\nTotal space used: {}\n",
        parts.join(" and "),
        size(total)
    ))?;
    Ok(0)
}

fn clean(cx: &Context<'_>) -> Result<u8, Failure> {
    let dry = cx.values.is(&DRY_RUN);
    let days = cx.values.number(&DAYS).unwrap_or(0);
    let days = u64::try_from(days).map_err(|_| Failure::new(format!("--days {days} is in the future")))?;
    let kinds = kinds(cx)?;
    if dry {
        cx.print("User requested a dry run. Not actually deleting any data!\n")?;
    } else if !cx.values.is(&FORCE) {
        let question = "This will delete everything in your cache (containers from all sources and OCI blobs).\n\
                        Hint: You can see exactly what would be deleted by canceling and using the --dry-run option.\n\
                        Do you want to continue? [y/N] ";
        if !ask::yes(question)? {
            cx.talk.info("Handle cleanup canceled");
            return Ok(0);
        }
    }
    let age = Duration::from_secs(days.saturating_mul(86_400));
    let latest =
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(age).as_secs();
    for kept in files(&kinds)?.into_iter().filter(|kept| days == 0 || kept.changed < latest) {
        cx.print(format!("Removing {} cache entry: {}\n", kept.kind, kept.name))?;
        if !dry {
            let removed = fs::remove_file(&kept.path);
            removed.map_err(|e| Failure::because(format!("cannot remove {}", kept.path.display()), &e))?;
        }
    }
    if kinds.contains(&"blob") {
        let options = PruneOptions { cache: true, dry_run: dry, grace: age, ..PruneOptions::default() };
        let pruned = cx.engine()?.store().prune(&options)?;
        for blob in &pruned.blobs {
            cx.print(format!("Removing blob cache entry: {}\n", blob.hex()))?;
        }
        if pruned.freed > 0 {
            cx.talk.info(&format!("{} of the store of Isles", size(pruned.freed)));
        }
    }
    Ok(0)
}

/// `12.34 MiB`
fn size(bytes: u64) -> String {
    let (unit, factor) = match bytes {
        ..0x10_0000 => ("KiB", 1u64 << 10),
        0x10_0000..0x4000_0000 => ("MiB", 1 << 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 1 << 30),
        _ => ("TiB", 1 << 40),
    };
    format!("{:.2} {unit}", bytes as f64 / factor as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(0, "0.00 KiB"), (1 << 20, "1.00 MiB"), (3 << 29, "1.50 GiB"), (1 << 41, "2.00 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
