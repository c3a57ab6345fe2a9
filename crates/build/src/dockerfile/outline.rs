//! What a target takes from its caller (arguments, secrets, agents, caches), which targets a file has, and what
//! the checks found: as documents with the members that `docker buildx build --call` prints as JSON.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::checks::Checked;
use super::checks::used::{Stages, Used, Wanted, description};
use super::instruction::Recipe;
use crate::position::SourceText;

/// Lines of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Location {
    /// One for each line.
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Range {
    start: Line,
    end: Line,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    line: usize,
}

impl Location {
    fn of((first, last): (usize, usize)) -> Location {
        let range = |line| Range { start: Line { line }, end: Line { line } };
        Location { ranges: (first..=last.max(first)).map(range).collect() }
    }

    /// The first line, from 1.
    pub fn line(&self) -> usize {
        self.ranges.first().map_or(1, |r| r.start.line)
    }
}

/// What a target takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outline {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Arg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Named>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Named>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache: Vec<Cache>,
    /// The recipe, in Base64.
    sources: [String; 1],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arg {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub location: Location,
}

/// A secret, or an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    pub name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    pub location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cache {
    #[serde(rename = "ID")]
    pub id: String,
    pub location: Location,
}

/// The stages that a caller may name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Targets {
    pub targets: Vec<Target>,
    sources: [String; 1],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub base: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    pub location: Location,
}

/// What the checks found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    pub warnings: Vec<Warning>,
    sources: [Source; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildError>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    pub rule_name: &'static str,
    pub description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    pub detail: String,
    pub location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildError {
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Source {
    filename: String,
    language: &'static str,
    data: String,
}

fn encoded(source: &SourceText) -> String {
    BASE64.encode(source.text())
}

/// What the target of the stages takes, from all stages that it needs, by line. Of two ARGs of a name that of the
/// nearest stage is shown.
pub fn outline(stages: &Stages) -> Outline {
    let mut args = Args { stages, found: Vec::new(), names: BTreeSet::new(), followed: BTreeSet::new() };
    let [mut secrets, mut ssh, mut caches] = [Gathered::default(), Gathered::default(), Gathered::default()];
    let mut todo = vec![stages.target];
    let mut visited = BTreeSet::new();
    while let Some(index) = todo.pop() {
        let Some(used) = stages.used.get(index).and_then(Option::as_ref).filter(|_| visited.insert(index))
        else {
            continue;
        };
        args.add(used);
        secrets.add(&used.secrets);
        ssh.add(&used.ssh);
        caches.add(&used.caches);
        todo.extend(used.from.iter().rev());
    }
    let mut args = args.found;
    args.sort_by_key(|a| a.location.line());
    let stage = &stages.recipe.stages[stages.target];
    let name = stage.name.clone().unwrap_or_default();
    let cache = |w: &Wanted| Cache { id: w.id.clone(), location: Location::of(w.lines) };
    Outline {
        description: description(&stage.node.comments, &name),
        name,
        args,
        secrets: secrets.named(),
        ssh: ssh.named(),
        cache: caches.by_line().into_iter().map(cache).collect(),
        sources: [encoded(&stages.recipe.source)],
    }
}

/// ARGs as they are found, from the target on.
struct Args<'s> {
    stages: &'s Stages,
    found: Vec<Arg>,
    names: BTreeSet<&'s str>,
    /// Of these before the first FROM it is known what their defaults need.
    followed: BTreeSet<&'s str>,
}

impl<'s> Args<'s> {
    /// The ARGs that a stage uses, with those that their defaults need.
    fn add(&mut self, used: &'s Used) {
        let mut todo: Vec<&String> = used.used.iter().collect();
        while let Some(name) = todo.pop() {
            let own = used.args.get_key_value(name);
            let Some((name, arg)) = own.or_else(|| self.stages.args.get_key_value(name)) else { continue };
            if own.is_none() && !self.followed.insert(name) {
                continue;
            }
            if self.names.insert(name) {
                self.found.push(Arg {
                    name: name.clone(),
                    description: arg.description.clone(),
                    value: arg.value.clone().unwrap_or_default(),
                    location: Location::of(arg.lines),
                });
            }
            todo.extend(arg.needs.iter());
        }
    }
}

/// Secrets, agents or caches, each once.
#[derive(Default)]
struct Gathered<'s> {
    list: Vec<&'s Wanted>,
    ids: BTreeSet<&'s str>,
}

impl<'s> Gathered<'s> {
    fn add(&mut self, more: &'s [Wanted]) {
        let ids = &mut self.ids;
        self.list.extend(more.iter().filter(|w| ids.insert(&w.id)));
    }

    fn by_line(mut self) -> Vec<&'s Wanted> {
        self.list.sort_by_key(|w| w.lines.0);
        self.list
    }

    fn named(self) -> Vec<Named> {
        let named =
            |w: &Wanted| Named { name: w.id.clone(), required: w.required, location: Location::of(w.lines) };
        self.by_line().into_iter().map(named).collect()
    }
}

/// The targets of a file, in its order. Nothing is expanded.
pub fn targets(recipe: &Recipe) -> Targets {
    let last = recipe.stages.len().saturating_sub(1);
    let target = |(index, stage): (usize, &super::Stage)| {
        let name = stage.name.clone().unwrap_or_default();
        Target {
            description: if name.is_empty() {
                name.clone()
            } else {
                description(&stage.node.comments, &name)
            },
            name,
            default: index == last,
            base: stage.base.text.clone(),
            platform: stage.platform.as_ref().map(|p| p.text.clone()).unwrap_or_default(),
            location: Location::of((stage.node.line.start_line, stage.node.end_line)),
        }
    };
    Targets {
        targets: recipe.stages.iter().enumerate().map(target).collect(),
        sources: [encoded(&recipe.source)],
    }
}

/// What the checks found, as a document.
pub fn findings(checked: &Checked) -> Findings {
    let warnings = checked.findings.iter().map(|f| Warning {
        rule_name: f.rule.name,
        description: f.rule.description,
        url: f.rule.url(),
        detail: f.detail.clone(),
        location: Location::of(f.lines),
    });
    let refusal = checked.refusal().map(|refusal| (refusal.to_string(), Some(refusal.line)));
    let error = checked.error.as_ref().map(|error| (error.to_string(), error.line())).or(refusal);
    let error = error
        .map(|(message, line)| BuildError { message, location: line.map(|line| Location::of((line, line))) });
    Findings {
        warnings: warnings.collect(),
        sources: [Source {
            filename: checked.source.name().to_owned(),
            language: "Dockerfile",
            data: encoded(&checked.source),
        }],
        error,
    }
}
