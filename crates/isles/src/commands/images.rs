//! `isles images`

use std::collections::HashSet;

use isles_spec::quantity::human_bytes;
use isles_spec::time::parse_rfc3339;
use isles_spec::{Digest, Reference};
use isles_store::{ImageSummary, Store};
use serde::Serialize;

use crate::commands::prune::moment;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::{Filter, glob, has_label};
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// List the images that are here.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles images
  isles images 'localhost:5000/*' --digests
  isles images --filter dangling=true -q")]
pub struct Args {
    /// Only images with this name; without a tag, with any. May have * and ?.
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// Accepted, as every image is listed anyway.
    #[arg(short, long)]
    all: bool,
    /// Print only the IDs.
    #[arg(short, long)]
    quiet: bool,
    /// Print IDs in full.
    #[arg(long)]
    no_trunc: bool,
    /// Show digests too.
    #[arg(long)]
    digests: bool,
    /// Only those for which this holds: reference=PATTERN, dangling=BOOL, label=KEY[=VALUE], before=IMAGE,
    /// since=IMAGE, until=24h or a time (made before it).
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: table, json, or a template such as '{{.Repository}}:{{.Tag}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// One name of an image, or an image without any.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    repository: String,
    tag: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    created_since: String,
    created_at: String,
    size: String,
    bytes: u64,
    platform: String,
}

const NONE: &str = "<none>";

pub fn cmd_images(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    let mut images = store.images()?;
    hide_other_forms(&mut images);
    for filter in &args.filter {
        apply(store, filter, &mut images)?;
    }
    if let Some(name) = &args.name {
        keep_names(&mut images, name);
    }
    if args.quiet || cx.ui.is_quiet() {
        let mut seen = HashSet::new();
        for image in images.iter().filter(|i| seen.insert(i.id.clone())) {
            cx.ui.line(&id(&image.id, args.no_trunc))?;
        }
        return Ok(Code::SUCCESS);
    }
    let rows: Vec<Row> = images
        .iter()
        .map(|image| rows(store, image, args.no_trunc))
        .collect::<Result<Vec<_>, Failure>>()?
        .into_iter()
        .flatten()
        .collect();
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut headings = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        if args.digests {
            headings.insert(2, "DIGEST");
        }
        let mut table = Table::new(&headings);
        for row in rows {
            let mut cells = vec![
                row.repository.clone(),
                row.tag.clone(),
                row.id.clone(),
                row.created_since.clone(),
                row.size.clone(),
            ];
            if args.digests {
                cells.insert(2, row.digest.clone());
            }
            table.row(cells);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

/// An ID as it is shown.
pub fn id(digest: &Digest, whole: bool) -> String {
    if whole { digest.to_string() } else { digest.short().to_owned() }
}

fn apply(store: &Store, filter: &Filter, images: &mut Vec<ImageSummary>) -> Result<(), Failure> {
    match filter.key.as_str() {
        "reference" => keep_names(images, &filter.value),
        "dangling" => {
            let dangling = filter.truth()?;
            images.retain(|i| i.references.is_empty() == dangling);
        }
        "label" => images.retain(|i| {
            // An image that cannot be read has no labels to show.
            store
                .image(&i.manifest_digest)
                .is_ok_and(|image| has_label(&image.config.config.labels, &filter.value))
        }),
        "before" | "since" => {
            let other = store.resolve(&filter.value, None)?.config.created;
            let other = other.as_deref().and_then(parse_rfc3339).unwrap_or(i64::MIN);
            images.retain(|i| {
                let own = i.created.as_deref().and_then(parse_rfc3339).unwrap_or(i64::MIN);
                if filter.key == "before" { own < other } else { own > other }
            });
        }
        "until" => {
            let before = moment(&filter.value)?;
            let made = |image: &ImageSummary| image.created.as_deref().and_then(parse_rfc3339);
            images.retain(|image| made(image).is_some_and(|made| made < before));
        }
        _ => return Err(filter.unknown("reference, dangling, label, before, since and until")),
    }
    Ok(())
}

/// Keeps the names that a pattern matches, and the images that have one.
/// The same image may be here under several manifests, for example with its layers compressed for a registry. Those
/// without a name are not shown beside one that has a name.
fn hide_other_forms(images: &mut Vec<ImageSummary>) {
    let named: HashSet<Digest> =
        images.iter().filter(|i| !i.references.is_empty()).map(|i| i.id.clone()).collect();
    images.retain(|image| !image.references.is_empty() || !named.contains(&image.id));
}

fn keep_names(images: &mut Vec<ImageSummary>, pattern: &str) {
    for image in images.iter_mut() {
        image.references.retain(|r| is_named(r, pattern));
    }
    images.retain(|i| !i.references.is_empty());
}

fn is_named(reference: &Reference, pattern: &str) -> bool {
    let full = format!("{}/{}", reference.registry(), reference.repository());
    let names = [reference.familiar_name(), full];
    names.iter().any(|name| {
        let tagged = reference.tag().map(|tag| format!("{name}:{tag}"));
        glob(pattern, name) || tagged.is_some_and(|tagged| glob(pattern, &tagged))
    })
}

fn rows(store: &Store, image: &ImageSummary, whole: bool) -> Result<Vec<Row>, Failure> {
    let row = |repository: String, tag: &str, digest: &Digest| Row {
        repository,
        tag: tag.to_owned(),
        digest: digest.to_string(),
        id: id(&image.id, whole),
        created_since: age::ago(image.created.as_deref()),
        created_at: image.created.clone().unwrap_or_default(),
        size: human_bytes(image.size),
        bytes: image.size,
        platform: image.platform.to_string(),
    };
    if image.references.is_empty() {
        return Ok(vec![row(NONE.into(), NONE, &image.manifest_digest)]);
    }
    let mut rows = Vec::new();
    for reference in &image.references {
        // Removed since the list was made: then the image's own.
        let target = store.lookup(reference)?.unwrap_or_else(|| image.manifest_digest.clone());
        rows.push(row(reference.familiar_name(), reference.tag().unwrap_or(NONE), &target));
    }
    Ok(rows)
}
