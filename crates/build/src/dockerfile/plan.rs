//! Which stages a build needs, and which one is meant by a name.

use isles_spec::nearest::nearest;

use super::instruction::{Instruction, Recipe};
use super::mount;
use super::scope::{Globals, Words};
use crate::error::Result;
use crate::position::{Diagnostic, Spanned};

/// What FROM, COPY --from and mounts take files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    Stage(usize),
    Image(String),
    Scratch,
    /// What the caller puts in a name's place, by its key.
    Context(String),
}

/// The key of what the caller puts in a name's place.
pub type Named<'n> = dyn Fn(&str) -> Option<String> + 'n;

/// The stages of a recipe as they refer to each other.
#[derive(Debug)]
pub struct Plan {
    /// What each stage begins with.
    pub bases: Vec<From>,
    pub target: usize,
    /// The stages that the target needs, itself last.
    pub needed: Vec<usize>,
}

/// Finds the target and what it needs.
pub fn plan(
    recipe: &Recipe,
    globals: &Globals,
    words: &Words<'_>,
    target: Option<&str>,
    named: &Named<'_>,
) -> Result<Plan> {
    let target = match target {
        None => recipe.stages.len() - 1,
        Some(name) => target_of(recipe, name)?,
    };
    let mut bases = Vec::with_capacity(recipe.stages.len());
    for (index, stage) in recipe.stages.iter().enumerate() {
        let name = words.expand(&stage.base, &|n| globals.lookup(n))?;
        if name.is_empty() {
            let error = recipe
                .source
                .at(stage.base.span, format!("'{}' is empty, so FROM names no image", stage.base.text));
            let near =
                nearest(stage.base.trim_start_matches(['$', '{']).trim_end_matches('}'), globals.names());
            return Err(match near {
                Some(near) => error.with_suggestion(format!("did you mean ${{{near}}}?")),
                None => error
                    .with_suggestion("only ARGs before the first FROM are known there; give it a default"),
            }
            .into());
        }
        let own = stage.name.as_deref().and_then(named);
        bases.push(if let Some(context) = own {
            From::Context(context)
        } else if name == "scratch" {
            From::Scratch
        } else if let Some(context) = named(&name) {
            From::Context(context)
        } else {
            match stage_of(recipe, &name, index) {
                Some(earlier) => From::Stage(earlier),
                None => From::Image(name),
            }
        });
    }
    let mut needed = vec![false; recipe.stages.len()];
    let mut todo = vec![target];
    while let Some(index) = todo.pop() {
        if std::mem::replace(&mut needed[index], true) {
            continue;
        }
        if let From::Stage(base) = bases[index] {
            todo.push(base);
        }
        if is_replaced(recipe, index, named) {
            continue;
        }
        for (from, _) in references(recipe, index) {
            if let Ok(From::Stage(other)) = source_of(recipe, &from, index, false, named) {
                todo.push(other);
            }
        }
    }
    let needed = needed.iter().enumerate().filter(|(_, n)| **n).map(|(i, _)| i).collect();
    Ok(Plan { bases, target, needed })
}

/// Whether the caller puts something in a stage's place, so that none of its steps counts.
pub fn is_replaced(recipe: &Recipe, index: usize, named: &Named<'_>) -> bool {
    recipe.stages[index].name.as_deref().and_then(named).is_some()
}

fn target_of(recipe: &Recipe, name: &str) -> Result<usize> {
    let lower = name.to_ascii_lowercase();
    let named = recipe.stages.iter().rposition(|s| s.name.as_deref() == Some(&lower));
    let numbered = || name.parse::<usize>().ok().filter(|n| *n < recipe.stages.len());
    named.or_else(numbered).ok_or_else(|| {
        let error = isles_spec::Error::new(format!("the recipe has no stage '{name}'"));
        let names: Vec<&str> = recipe.stages.iter().filter_map(|s| s.name.as_deref()).collect();
        match nearest(&lower, names.iter().copied()) {
            Some(near) => error.with_hint(format!("did you mean '{near}'?")),
            None if names.is_empty() => error.with_hint("none of its stages has a name"),
            None => error.with_hint(format!("its stages are {}", names.join(", "))),
        }
        .into()
    })
}

/// The last stage of a name before `before`.
fn stage_of(recipe: &Recipe, name: &str, before: usize) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    recipe.stages[..before].iter().rposition(|s| s.name.as_deref() == Some(&lower))
}

/// What a stage refers to without variables, besides its base.
fn references(recipe: &Recipe, index: usize) -> Vec<(Spanned, bool)> {
    let mut out = Vec::new();
    for step in &recipe.stages[index].steps {
        match &step.instruction {
            Instruction::Copy(copy) => out.extend(copy.from.clone().map(|f| (f, true))),
            Instruction::Run(run) => {
                for flag in &run.mounts {
                    let parsed = mount::parse(&recipe.source, flag, &mut |v| Ok(v.to_owned()));
                    if let Some(from) = parsed.ok().and_then(|m| m.from) {
                        out.push((Spanned::new(from, flag.span), false));
                    }
                }
            }
            _ => {}
        }
    }
    out
}

/// What `from` means in the stage `index`: an earlier stage by name or number, or an image. With `trigger` the
/// instruction comes from an image (ONBUILD), and stages of the recipe may be meant too.
pub fn source_of(
    recipe: &Recipe,
    from: &Spanned,
    index: usize,
    trigger: bool,
    named: &Named<'_>,
) -> std::result::Result<From, Diagnostic> {
    let place = if trigger { recipe.stages[index].base.span } else { from.span };
    if let Some(context) = named(from) {
        return Ok(From::Context(context));
    }
    if let Some(stage) = stage_of(recipe, from, index) {
        return Ok(From::Stage(stage));
    }
    if let Ok(number) = from.parse::<usize>() {
        return if number < index {
            Ok(From::Stage(number))
        } else {
            Err(recipe
                .source
                .at(place, format!("there is no stage {number} before this one"))
                .with_suggestion(match index {
                    0 => "stages are counted from 0, and this is the first".to_owned(),
                    n => format!("stages are counted from 0; the last before this one is {}", n - 1),
                }))
        };
    }
    let lower = from.to_ascii_lowercase();
    if let Some(later) = recipe.stages[index..].iter().position(|s| s.name.as_deref() == Some(&lower)) {
        let message = match later {
            0 => format!("the stage '{lower}' cannot take files from itself"),
            _ => format!("the stage '{lower}' comes later"),
        };
        return Err(recipe.source.at(place, message).with_suggestion("a stage sees those before it"));
    }
    if lower == "scratch" {
        return Ok(From::Scratch);
    }
    if from.contains('$') {
        return Err(recipe
            .source
            .at(place, format!("'{}' is taken as it is written, without variables", from.text))
            .with_suggestion(
                "give the image a stage of its own (FROM $IMAGE AS name) and take the files from that",
            ));
    }
    Ok(From::Image(from.text.clone()))
}

/// The stage whose name is near to that of an image that cannot be had.
pub fn near_stage(recipe: &Recipe, name: &str, index: usize) -> Option<String> {
    nearest(name, recipe.stages[..index].iter().filter_map(|s| s.name.as_deref())).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::SourceText;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    fn planned(text: &str, target: Option<&str>) -> Result<Plan> {
        let source = SourceText::new("Dockerfile", text.as_bytes());
        let recipe = crate::dockerfile::parse(source.clone())?;
        let warnings = Mutex::default();
        let words = Words { source: &source, escape: '\\', warnings: &warnings };
        let mut globals = Globals::new(&isles_spec::Platform::host(), "default", &BTreeMap::new());
        globals.declare(&words, &recipe.global_args)?;
        plan(&recipe, &globals, &words, target, &|_| None)
    }

    const TEXT: &str = "ARG V=12\nFROM debian:$V AS build\nRUN x\nFROM scratch AS unused\nFROM build AS test\n\
        FROM alpine AS Final\nCOPY --from=build /a /a\nRUN --mount=from=0,target=/x true\n";

    #[test]
    fn only_what_the_target_needs() {
        let p = planned(TEXT, None).unwrap();
        assert_eq!(p.needed, [0, 3]);
        assert_eq!(p.bases[0], From::Image("debian:12".into()));
        assert_eq!(p.bases[1], From::Scratch);
        assert_eq!(p.bases[2], From::Stage(0));
        assert_eq!(planned(TEXT, Some("TEST")).unwrap().needed, [0, 2]);
        assert_eq!(planned(TEXT, Some("1")).unwrap().needed, [1]);
        let error = planned(TEXT, Some("finale")).unwrap_err();
        assert_eq!(isles_spec::Hint::hint(&error).as_deref(), Some("did you mean 'final'?"));
        assert!(planned("FROM $NOTHING\n", None).unwrap_err().to_string().contains("names no image"));
    }

    #[test]
    fn names_that_the_caller_gives_a_meaning() {
        let source = SourceText::new("Dockerfile", TEXT.as_bytes());
        let recipe = crate::dockerfile::parse(source.clone()).unwrap();
        let warnings = Mutex::default();
        let words = Words { source: &source, escape: '\\', warnings: &warnings };
        let mut globals = Globals::new(&isles_spec::Platform::host(), "default", &BTreeMap::new());
        globals.declare(&words, &recipe.global_args).unwrap();
        let planned = |given: &str| {
            let named = |name: &str| (name == given).then(|| name.to_owned());
            let plan = plan(&recipe, &globals, &words, None, &named).unwrap();
            (plan.bases.clone(), plan.needed)
        };
        let (bases, needed) = planned("build");
        assert_eq!((&bases[0], &bases[2]), (&From::Context("build".into()), &From::Context("build".into())));
        assert_eq!(needed, [0, 3], "RUN --mount=from=0 counts stages");
        assert_eq!(planned("alpine").0[3], From::Context("alpine".into()));
        assert_eq!(planned("final").1, [3], "none of the steps counts");
        assert_eq!(planned("scratch").0[1], From::Scratch);
    }

    #[test]
    fn names_of_stages() {
        let source = SourceText::new("Dockerfile", b"FROM a AS one\nFROM b AS two\nFROM c AS three\n");
        let recipe = crate::dockerfile::parse(source).unwrap();
        let of =
            |name: &str| source_of(&recipe, &Spanned::new(name, Default::default()), 1, false, &|_| None);
        assert_eq!(of("ONE").unwrap(), From::Stage(0));
        assert_eq!(of("0").unwrap(), From::Stage(0));
        assert_eq!(of("busybox").unwrap(), From::Image("busybox".into()));
        for (name, part) in [
            ("two", "from itself"),
            ("three", "later"),
            ("1", "no stage 1"),
            ("7", "no stage 7"),
            ("$X", "without variables"),
        ] {
            assert!(of(name).unwrap_err().message.contains(part), "{name}");
        }
        assert_eq!(near_stage(&recipe, "oen", 1).as_deref(), Some("one"));
    }
}
