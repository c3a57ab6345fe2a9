//! `isles search`

use isles_registry_server::fits;
use isles_spec::Reference;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;
use crate::ui::format::Format;
use crate::ui::table::Table;

/// Search the list of a registry's repositories.
///
/// TERM is a part of a name, or a pattern: * stands for any characters but a slash, ** for any, ? for one. Without one, everything is listed. With --list-tags TERM is the
/// name of a repository, whose tags are listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles search localhost:5000/lab
  isles search localhost:5000/
  isles search --filter 'tag=v1*' registry.example/course/*
  isles search --list-tags localhost:5000/course/lab")]
pub struct Args {
    #[arg(value_name = "[REGISTRY/]TERM")]
    term: String,
    /// List at most so many.
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only what fits: name=PATTERN, tag=PATTERN (some tag of the repository fits).
    #[arg(short, long, value_name = "KEY=PATTERN")]
    filter: Vec<Filter>,
    /// List the tags of the repository that TERM names.
    #[arg(long)]
    list_tags: bool,
    /// Print only names.
    #[arg(short, long)]
    quiet: bool,
    /// How to print: table, json, or a template such as '{{.Name}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Accepted; names are never cut.
    #[arg(long, hide = true)]
    no_trunc: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone)]
enum Filter {
    Name(String),
    Tag(String),
}

impl std::str::FromStr for Filter {
    type Err = isles_spec::Error;

    fn from_str(text: &str) -> isles_spec::Result<Filter> {
        match text.split_once('=') {
            Some(("name", pattern)) => Ok(Filter::Name(pattern.to_owned())),
            Some(("tag", pattern)) => Ok(Filter::Tag(pattern.to_owned())),
            Some(("stars" | "is-official" | "is-automated", _)) => {
                Err(isles_spec::Error::new(format!("'{text}' is not known of a registry's repositories"))
                    .with_hint("stars and the like are of Docker Hub's own search; known are name and tag"))
            }
            _ => Err(isles_spec::Error::new(format!("invalid filter '{text}'"))
                .with_hint("a filter is written name=PATTERN or tag=PATTERN")),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    /// With the registry, as `isles pull` takes it.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

pub fn cmd_search(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let (registry, term) = split(&args.term)?;
    let client = args.connection.client();
    let limit = args.limit as usize;
    let mut rows = Vec::new();
    if args.list_tags {
        let name: Reference = format!("{registry}/{term}").parse()?;
        let fits = |tag: &String| args.filter.iter().all(|f| f.tag_fits(tag));
        let tags = client.tags(&name)?.into_iter().filter(fits).take(limit);
        rows.extend(tags.map(|tag| Row { name: format!("{registry}/{term}"), tag: Some(tag) }));
    } else {
        let tagged = args.filter.iter().any(|f| matches!(f, Filter::Tag(_)));
        let wanted = |name: &str| {
            found(term, name)
                && args.filter.iter().all(|f| match f {
                    Filter::Name(pattern) => fits(pattern, name),
                    Filter::Tag(_) => true,
                })
        };
        let most = if tagged { usize::MAX } else { limit };
        for name in client.repositories(registry, most, &wanted)? {
            let name = format!("{registry}/{name}");
            if tagged {
                let tags = client.tags(&name.parse()?)?;
                if !tags.iter().any(|tag| args.filter.iter().all(|f| f.tag_fits(tag))) {
                    continue;
                }
            }
            rows.push(Row { name, tag: None });
            if rows.len() >= limit {
                break;
            }
        }
    }
    if args.quiet {
        for row in &rows {
            cx.ui.line(row.tag.as_ref().unwrap_or(&row.name))?;
        }
        return Ok(Code::SUCCESS);
    }
    cx.ui.rows(&args.format, &rows, |rows| {
        let mut table = Table::new(if args.list_tags { &["NAME", "TAG"] } else { &["NAME"] });
        for row in rows {
            table.row([Some(row.name.clone()), row.tag.clone()].into_iter().flatten().collect());
        }
        table
    })?;
    Ok(Code::SUCCESS)
}

impl Filter {
    fn tag_fits(&self, tag: &str) -> bool {
        match self {
            Filter::Tag(pattern) => fits(pattern, tag),
            Filter::Name(_) => true,
        }
    }
}

/// The registry and what is searched for.
fn split(text: &str) -> Result<(&str, &str), Failure> {
    let text = text.strip_prefix("docker://").unwrap_or(text);
    let (host, rest) = text.split_once('/').unwrap_or((text, ""));
    if host.contains(['.', ':']) || host == "localhost" {
        return Ok((host, rest));
    }
    Err(Failure::new(format!("'{text}' names no registry")).with_hint(
        "Docker Hub does not list its repositories; search another one: isles search REGISTRY/TERM",
    ))
}

/// Whether a name has the term in it, or fits it as a pattern.
fn found(term: &str, name: &str) -> bool {
    let term = term.to_ascii_lowercase();
    if term.contains(['*', '?']) { fits(&term, name) } else { name.contains(&term) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms() {
        for (term, name, yes) in [
            ("", "a/b", true),
            ("lab", "course/lab", true),
            ("LAB", "course/lab", true),
            ("lab", "course", false),
            ("course/*", "course/lab", true),
            ("**lab?", "course/lab1", true),
            ("*lab?", "course/lab1", false),
        ] {
            assert_eq!(found(term, name), yes, "{term} {name}");
        }
        assert_eq!(split("localhost:5000/lab").unwrap(), ("localhost:5000", "lab"));
        assert_eq!(split("docker://r.example").unwrap(), ("r.example", ""));
        assert!(split("debian").is_err());
    }
}
