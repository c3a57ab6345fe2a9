//! What stands before the first FROM, and what the FROMs make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use isles_spec::Reference;

use super::used::{UsedArg, description};
use super::{Look, Place, Report, rules};
use crate::dockerfile::instruction::{self, Argument, Instruction, Recipe};
use crate::dockerfile::plan::{self, From, Plan};
use crate::dockerfile::scope::{Globals, Words};
use crate::dockerfile::syntax::Node;
use crate::dockerfile::words::Expander;
use crate::error::Error;
use crate::position::{Diagnostic, SourceText, Span};

/// Variables that every stage may declare, and FROM may use.
const PLATFORM_ARGS: [&str; 11] = [
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
];

/// So many characters may be written and compared in all.
const MAX_EFFORT: usize = 20_000_000;

/// The ARGs before the first FROM.
#[derive(Debug, Clone, Default)]
pub(super) struct Top {
    pub env: BTreeMap<String, String>,
    pub args: BTreeMap<String, UsedArg>,
}

/// How many characters were written and compared.
#[derive(Default)]
pub(super) struct Effort(usize);

impl Effort {
    pub fn spend(&mut self, effort: usize, source: &SourceText, span: Span) -> Result<(), Diagnostic> {
        self.0 += effort;
        if self.0 > MAX_EFFORT {
            let message = "the variables up to here take too much work";
            return Err(source.at(span, message).with_suggestion("is this really a recipe?"));
        }
        Ok(())
    }
}

/// No stage may begin with what can be neither a stage nor an image, whether it is needed or not.
pub(super) fn names_of_images(recipe: &Recipe, plan: &Plan) -> Result<(), Diagnostic> {
    for (index, (stage, base)) in recipe.stages.iter().zip(&plan.bases).enumerate() {
        let From::Image(name) = base else { continue };
        let id = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let Some(error) = name.parse::<Reference>().err().filter(|_| !id) else { continue };
        let place = recipe.source.at(stage.base.span, error.to_string());
        return Err(match plan::near_stage(recipe, name, index) {
            Some(near) => place.with_suggestion(format!("did you mean the stage '{near}'?")),
            None => Diagnostic { suggestion: isles_spec::Hint::hint(&error), ..place },
        });
    }
    Ok(())
}

/// What each stage begins with, and which are needed. What is odd on the way is found elsewhere.
pub(super) fn plan_of(recipe: &Recipe, globals: &Globals, look: &Look<'_>) -> Result<Plan, Error> {
    let warnings = Mutex::default();
    let words = Words { source: &recipe.source, escape: recipe.escape, warnings: &warnings };
    let mut globals = globals.clone();
    globals.declare(&words, &recipe.global_args)?;
    plan::plan(recipe, &globals, &words, look.target, look.named)
}

/// Reads the ARGs of the instructions `heads`.
pub(super) fn top(
    recipe: &Recipe,
    heads: &[&Node],
    globals: &Globals,
    build_args: &BTreeMap<String, String>,
    effort: &mut Effort,
) -> Result<Top, Diagnostic> {
    let mut top = Top::default();
    for name in PLATFORM_ARGS {
        top.env.extend(globals.lookup(name).map(|value| (name.to_owned(), value)));
    }
    for node in heads {
        let Instruction::Arg(arguments) = instruction::instruction(&recipe.source, node)? else { continue };
        for Argument { name, default } in &arguments {
            let mut needs = BTreeSet::new();
            let value = match (build_args.get(&name.text), default) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => None,
                (None, Some(default)) => {
                    let lookup = |n: &str| top.env.get(n).cloned();
                    let e = Expander::new(recipe.escape, &lookup)
                        .expand(default)
                        .map_err(|e| e.at(&recipe.source, default.span))?;
                    effort.spend(e.effort, &recipe.source, default.span)?;
                    needs = e.used;
                    if needs.remove(&name.text)
                        && let Some(old) = top.args.get(&name.text)
                    {
                        effort.spend(64 * old.needs.len(), &recipe.source, default.span)?;
                        needs.extend(old.needs.iter().cloned());
                    }
                    Some(e.text)
                }
            };
            if let Some(value) = &value {
                top.env.insert(name.text.clone(), value.clone());
            }
            let lines = Place::of(node).lines;
            effort.spend(node.comments.len(), &recipe.source, name.span)?;
            let description = description(&node.comments, name);
            top.args.insert(name.text.clone(), UsedArg { value, description, lines, needs });
        }
    }
    Ok(top)
}

/// FROM has to name an image where nobody gives a build argument.
pub(super) fn default_names(report: &mut Report, recipe: &Recipe, plain: &Top, effort: &mut Effort) {
    for stage in &recipe.stages {
        let lookup = |n: &str| plain.env.get(n).cloned();
        let Ok(e) = Expander::new(recipe.escape, &lookup).expand(&stage.base) else { return };
        if effort.spend(e.effort, &recipe.source, stage.base.span).is_err() {
            return;
        }
        let name = e.text;
        if name.parse::<Reference>().is_ok() {
            continue;
        }
        let place = Place::of(&stage.node).at(stage.base.span);
        let (detail, hint) = if stage.base.contains('$') {
            let is =
                if name.is_empty() { "empty".to_owned() } else { format!("'{name}', which names no image") };
            (
                format!("without build arguments {} is {is}", stage.base.text),
                "give the ARGs before the first FROM defaults".to_owned(),
            )
        } else {
            (format!("'{name}' names no image"), "names of images are in lower case".to_owned())
        };
        report.add_for_file(&rules::INVALID_DEFAULT_ARG_IN_FROM, place, detail, Some(hint));
    }
}
