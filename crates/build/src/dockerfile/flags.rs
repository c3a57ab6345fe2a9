//! The flags of an instruction (`--from=x`), checked against those that the instruction has.

use isles_spec::nearest::nearest;

use super::syntax::Node;
use crate::position::{Diagnostic, SourceText, Spanned};

/// What kind of value a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// May be given several times.
    List,
    /// Nothing, `true` or `false`.
    Bool,
}

/// The flags that were given, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    given: Vec<(String, Spanned)>,
}

impl Flags {
    /// Checks the flags of `node` against `known`.
    pub fn parse(source: &SourceText, node: &Node, known: &[(&str, Kind)]) -> Result<Flags, Diagnostic> {
        let mut flags = Flags::default();
        for flag in &node.flags {
            let text = flag.text.strip_prefix("--").unwrap_or(&flag.text);
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            let Some((_, kind)) = known.iter().find(|(k, _)| *k == name) else {
                let error = source.at(flag.span, format!("{} has no flag --{name}", node.name()));
                return Err(match nearest(name, known.iter().map(|(k, _)| *k)) {
                    Some(near) => error.with_suggestion(format!("did you mean --{near}?")),
                    None if known.is_empty() => error,
                    None => {
                        let all: Vec<String> = known.iter().map(|(k, _)| format!("--{k}")).collect();
                        error.with_suggestion(format!("{} knows {}", node.name(), all.join(", ")))
                    }
                });
            };
            if *kind != Kind::List && flags.given.iter().any(|(n, _)| n == name) {
                return Err(source.at(flag.span, format!("the flag --{name} stands here a second time")));
            }
            let value = match (kind, value) {
                (Kind::Bool, None | Some("")) => "true".to_owned(),
                (Kind::Bool, Some(v)) => match v.to_ascii_lowercase().as_str() {
                    b @ ("true" | "false") => b.to_owned(),
                    _ => {
                        return Err(source.at(flag.span, format!("--{name} takes true or false, not '{v}'")));
                    }
                },
                (_, None) => {
                    return Err(source
                        .at(flag.span, format!("--{name} needs a value"))
                        .with_suggestion(format!("write --{name}=VALUE")));
                }
                (_, Some(v)) => v.to_owned(),
            };
            flags.given.push((name.to_owned(), Spanned::new(value, flag.span)));
        }
        Ok(flags)
    }

    /// The value of a flag, where it was given and is not empty.
    pub fn text(&self, name: &str) -> Option<Spanned> {
        self.given.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.clone())
    }

    /// All values of a flag.
    pub fn list(&self, name: &str) -> Vec<Spanned> {
        self.given.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    pub fn bool(&self, name: &str) -> bool {
        self.given.iter().any(|(n, v)| n == name && v.text == "true")
    }

    /// Where a flag stands, if it was given.
    pub fn find(&self, name: &str) -> Option<&Spanned> {
        self.given.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
}
