//! What the stages of a Dockerfile use: arguments, secrets, agents and caches.

use std::collections::{BTreeMap, BTreeSet};

use crate::dockerfile::instruction::Recipe;

/// An ARG as a target uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedArg {
    pub value: Option<String>,
    /// From the comment above.
    pub description: String,
    pub lines: (usize, usize),
    /// The ARGs in its default, where it stands before the first FROM.
    pub needs: BTreeSet<String>,
}

/// A secret or an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub id: String,
    pub required: bool,
    pub lines: (usize, usize),
}

/// What one stage uses by itself.
#[derive(Debug, Clone, Default)]
pub struct Used {
    /// The ARGs that it declares with a value of its own.
    pub args: BTreeMap<String, UsedArg>,
    /// The names of all that it uses, also of those before the first FROM.
    pub used: BTreeSet<String>,
    pub secrets: Vec<Wanted>,
    pub ssh: Vec<Wanted>,
    pub caches: Vec<Wanted>,
    /// The stages that it begins with or takes files from.
    pub from: Vec<usize>,
}

/// What was gone through.
#[derive(Debug)]
pub struct Stages {
    pub recipe: Recipe,
    pub target: usize,
    /// The ARGs before the first FROM.
    pub args: BTreeMap<String, UsedArg>,
    /// None for stages that were not gone through.
    pub used: Vec<Option<Used>>,
}

/// What a comment says of `name`: `# NAME DESCRIPTION`.
pub fn description(comments: &[String], name: &str) -> String {
    let mut of_it = comments.iter().filter_map(|c| c.strip_prefix(name)?.strip_prefix(' '));
    of_it.next().unwrap_or_default().to_owned()
}
