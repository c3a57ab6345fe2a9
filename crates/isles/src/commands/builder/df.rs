//! `isles builder df`

use isles_spec::quantity::human_bytes;

use super::{Conditions, Row};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::Filter;
use crate::ui::age;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// List what the build cache holds, the most recently used first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles builder df
  isles builder df --filter type=exec.cachemount
  isles builder df --format json --filter until=24h

SIZE is what goes with an entry: what an image needs too is not in it. Images are in `isles df`.")]
pub struct DfArgs {
    /// Only until=24h or a time (not used since), type=regular|exec.cachemount|source.download|internal, id=ID,
    /// description=TEXT, inuse=BOOL, shared=BOOL or private=BOOL.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Show whole IDs and descriptions.
    #[arg(long, alias = "verbose")]
    no_trunc: bool,
    /// How to print: table, json, or a template such as '{{.ID}} {{.Size}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// A description is cut to this many characters.
const DESCRIPTION: usize = 60;

pub fn cmd_df(cx: &Context, args: &DfArgs) -> Result<Code, Failure> {
    let conditions = Conditions::of(&args.filter)?;
    let engine = cx.engine()?;
    let mut entries = engine.store().cache_entries()?;
    entries.retain(|entry| conditions.meets(entry) && conditions.is_old(entry));
    let rows: Vec<Row> = entries.iter().map(Row::of).collect();
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(&["ID", "TYPE", "SIZE", "SHARED", "LAST USED", "DESCRIPTION"]);
        for row in rows {
            let short = |text: &str, most: usize| -> String {
                if args.no_trunc { text.to_owned() } else { text.chars().take(most).collect() }
            };
            table.row(vec![
                short(&row.id, 12),
                row.kind.into(),
                row.size.clone(),
                row.shared.to_string(),
                if row.in_use { "in use".into() } else { age::ago(Some(&row.last_used_at)) },
                short(&row.description, DESCRIPTION),
            ]);
        }
        table
    })?;
    if args.format == Format::Table {
        let total: u64 = rows.iter().map(|r| r.bytes).sum();
        let free: u64 = rows.iter().filter(|r| r.reclaimable).map(|r| r.bytes).sum();
        cx.ui.line(&format!("Reclaimable: {}", human_bytes(free)))?;
        cx.ui.line(&format!("Total: {}", human_bytes(total)))?;
    }
    Ok(Code::SUCCESS)
}
