//! `isles history`

use isles_spec::quantity::human_bytes;
use isles_store::{Image, Store};
use serde::Serialize;

use crate::commands::images::id;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Show how an image came to be, newest step first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles history debian:12
  isles history --no-trunc --format '{{.CreatedBy}}' app")]
pub struct Args {
    /// The image, by name or ID.
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print only the IDs.
    #[arg(short, long)]
    quiet: bool,
    /// Print everything in full.
    #[arg(long)]
    no_trunc: bool,
    /// Sizes and dates for people; --human=false gives bytes and RFC 3339.
    #[arg(
        short = 'H',
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        hide_default_value = true,
        hide_possible_values = true
    )]
    human: bool,
    /// How to print: table, json, or a template such as '{{.CreatedBy}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    created_by: String,
    size: String,
    comment: String,
}

/// As many characters of a command as docker shows.
const COMMAND: usize = 45;

pub fn cmd_history(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let image = engine.store().resolve(&args.image, None)?;
    let rows = rows(engine.store(), &image, args);
    if args.quiet || cx.ui.is_quiet() {
        rows.iter().try_for_each(|row| cx.ui.line(&row.id))?;
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let created = if args.human { "CREATED" } else { "CREATED AT" };
        let mut table = Table::new(&["IMAGE", created, "CREATED BY", "SIZE", "COMMENT"]);
        for row in rows {
            let created = if args.human { &row.created_since } else { &row.created_at };
            table.row(vec![
                row.id.clone(),
                created.clone(),
                row.created_by.clone(),
                row.size.clone(),
                row.comment.clone(),
            ]);
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

fn rows(store: &Store, image: &Image, args: &Args) -> Vec<Row> {
    let mut layers = image.config.rootfs.diff_ids.iter();
    let mut history = image.config.history.clone();
    let told = history.iter().filter(|h| !h.empty_layer).count();
    // Layers that the history does not mention are shown all the same.
    history.resize_with(history.len() + layers.len().saturating_sub(told), Default::default);
    let mut rows: Vec<Row> = Vec::new();
    for step in history {
        let layer = if step.empty_layer { None } else { layers.next() };
        // A layer that is not unpacked here has no known size.
        let size = layer.map_or(Some(0), |d| store.layer_info(d).ok().map(|i| i.content));
        let text = |text: Option<String>| one_line(&text.unwrap_or_default());
        let mut command = text(step.created_by);
        if !args.no_trunc && command.chars().count() > COMMAND {
            command = command.chars().take(COMMAND - 1).chain(['…']).collect();
        }
        rows.push(Row {
            id: "<missing>".into(),
            created_since: age::ago(step.created.as_deref()),
            created_at: step.created.unwrap_or_default(),
            created_by: command,
            size: match size {
                Some(bytes) if args.human => human_bytes(bytes),
                Some(bytes) => bytes.to_string(),
                None => "?".into(),
            },
            comment: text(step.comment),
        });
    }
    if let Some(last) = rows.last_mut() {
        last.id = id(image.id(), args.no_trunc);
    }
    rows.reverse();
    rows
}

/// Commands come from strangers and may hold anything.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
