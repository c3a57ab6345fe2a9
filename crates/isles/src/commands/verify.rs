//! `isles verify`

use isles_spec::quantity::human_bytes;
use isles_store::{Cure, Depth, VerifyOptions};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::{Format, count};
use crate::ui::progress::Bars;
use crate::ui::table::Table;

/// Look for damage in the store: hash everything again, and compare unpacked layers with their archives.
///
/// The exit code is 1 where something is damaged or missing still.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles verify
  isles verify --full --repair")]
pub struct Args {
    /// Compare the content of every file, not only of every twentieth.
    #[arg(long)]
    full: bool,
    /// Only hash blobs; do not look at unpacked layers.
    #[arg(long, conflicts_with = "full")]
    blobs: bool,
    /// Unpack damaged layers again where their archive is good, and remove what else is damaged, so that the next
    /// pull fetches it.
    #[arg(long)]
    repair: bool,
    /// How to print: table, json, or a template such as '{{.Digest}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// One file in so many is read where not all are.
const SAMPLE: u32 = 20;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    digest: String,
    problem: String,
    images: Vec<String>,
    repair: &'static str,
}

pub fn cmd_verify(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let depth = match (args.full, args.blobs) {
        (true, _) => Depth::Full,
        (_, true) => Depth::Blobs,
        _ => Depth::Sampled(SAMPLE),
    };
    let bars = Bars::new(&cx.ui);
    let report = engine.store().verify(&VerifyOptions { depth, repair: args.repair }, &bars)?;
    drop(bars);
    let rows: Vec<Row> = report
        .problems
        .iter()
        .map(|problem| Row {
            digest: problem.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            problem: problem.what.clone(),
            images: problem.images.iter().map(|r| r.familiar()).collect(),
            repair: match problem.cure {
                Cure::None => "none",
                Cure::Removed => "removed",
                Cure::Restored => "restored",
            },
        })
        .collect();
    if args.format != Format::Table || !rows.is_empty() {
        cx.ui.rows(&args.format, &rows, |rows| {
            let mut table = Table::new(&["DIGEST", "IMAGES", "REPAIR", "PROBLEM"]);
            for row in rows {
                let short = row.digest.split_once(':').map_or("-", |(_, hex)| &hex[..12]);
                let images = if row.images.is_empty() { "-".into() } else { row.images.join(", ") };
                table.row(vec![short.into(), images, row.repair.into(), row.problem.clone()]);
            }
            table
        })?;
    }
    cx.ui.note(&format!(
        "checked {}, {} and {} ({}): {}",
        count(report.images, "image"),
        count(report.blobs, "blob"),
        count(report.layers, "layer"),
        human_bytes(report.bytes),
        match rows.len() {
            0 => "all is well".to_owned(),
            n => count(n as u64, "problem"),
        }
    ));
    if !args.repair && !rows.is_empty() {
        cx.ui.note("`isles verify --repair` mends or removes what is damaged; then pull the images again");
    }
    let left = report.problems.iter().any(|p| p.cure != Cure::Restored);
    Ok(if left { Code(1) } else { Code::SUCCESS })
}
