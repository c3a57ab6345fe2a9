//! `isles events`

use isles_engine::Event;
use isles_spec::time::rfc3339_nanoseconds;

use crate::commands::logs::time;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::filter::{Filter, has_label};
use crate::ui::format::Format;

/// Print what happens to containers, as it happens.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles events\n  isles events --since 10m --until 0s --filter event=die\n  isles events --format json --filter container=web\n\nTimes are RFC 3339, seconds since 1970 with decimals, or a duration such as 1h30m before now."
)]
pub struct Args {
    /// Begin with what has happened since then.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End with what happens until then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only those with: event=ACTION, container=NAME, image=NAME, label=KEY[=VALUE], type=container.
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: json, or a template such as '{{.Action}}'.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

/// Prints them, one a line.
pub fn cmd_events(cx: &Context, args: &Args) -> Result<Code, Failure> {
    for filter in &args.filter {
        if !matches!(filter.key.as_str(), "event" | "container" | "image" | "label" | "type") {
            return Err(filter.unknown("event, container, image, label and type"));
        }
    }
    let now = isles_engine::now();
    let at = |text: &Option<String>| text.as_deref().map(|text| time(text, now)).transpose();
    let (since, until) = (at(&args.since)?, at(&args.until)?);
    let engine = cx.engine()?;
    let mut failure = None;
    engine.events(since, until, &mut |event| {
        if !wanted(&args.filter, event) {
            return true;
        }
        let line = match &args.format {
            // One a line, so that programs can read them as they come.
            Some(Format::Json) => serde_json::to_string(event)
                .map_err(|e| Failure::because("cannot write the event as JSON", &e)),
            Some(format) => format.object(event).map(|text| text.trim_end().to_owned()),
            None => Ok(shown(event)),
        };
        match line.and_then(|line| cx.ui.line(&line)) {
            Ok(()) => true,
            Err(e) => {
                failure = Some(e);
                false
            }
        }
    })?;
    failure.map_or(Ok(Code::SUCCESS), Err)
}

/// Those of one kind are alternatives, as docker has it; those of different kinds have to hold together.
fn wanted(filters: &[Filter], event: &Event) -> bool {
    let holds = |filter: &Filter| {
        let value = filter.value.as_str();
        let attribute = |name: &str| event.actor.attributes.get(name).map(String::as_str);
        match filter.key.as_str() {
            // Some have details behind the word: `exec_create: ls`.
            "event" => event.action == value || event.action.split(':').next() == Some(value),
            "container" => event.id.starts_with(value) || attribute("name") == Some(value),
            "image" => attribute("image") == Some(value),
            "type" => event.kind == value,
            _ => has_label(&event.actor.attributes, value),
        }
    };
    let kinds: std::collections::BTreeSet<&str> = filters.iter().map(|filter| filter.key.as_str()).collect();
    kinds.iter().all(|kind| filters.iter().filter(|filter| filter.key == **kind).any(holds))
}

/// As docker prints it: time, kind, action, ID, attributes.
fn shown(event: &Event) -> String {
    let attributes: Vec<String> =
        event.actor.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!(
        "{} {} {} {} ({})",
        rfc3339_nanoseconds(event.time_nano),
        event.kind,
        event.action,
        event.actor.id,
        attributes.join(", ")
    )
}
