//! `isles diff`

use isles_store::Change;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;
use crate::ui::table::Table;

/// List what a container added (A), changed (C) and deleted (D) in its root file system.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles diff web
  isles diff --format '{{.Path}}' web")]
pub struct Args {
    /// How to print: table, json, or a template such as '{{.Path}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// The container, by name or ID.
    #[arg(value_name = "CONTAINER")]
    container: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    kind: &'static str,
    path: String,
}

pub fn cmd_diff(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let rows: Vec<Row> = cx
        .engine()?
        .changes(&args.container)?
        .into_iter()
        .map(|(path, change)| Row {
            kind: match change {
                Change::Changed => "C",
                Change::Added => "A",
                Change::Deleted => "D",
            },
            path: path.display().to_string(),
        })
        .collect();
    if args.format == Format::Table {
        // As docker, without headings.
        rows.iter().try_for_each(|row| cx.ui.line(&format!("{} {}", row.kind, row.path)))?;
    } else {
        cx.ui.rows(&args.format, &rows, |_| Table::new(&[]))?;
    }
    Ok(Code::SUCCESS)
}
