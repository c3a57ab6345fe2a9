//! SOURCE_DATE_EPOCH: the one time of everything that a build makes.
//!
//! It is a number of seconds, `context` (when the repository, file or archive that the build context was fetched
//! from was made), or the name of a stage that does nothing but ADD one file or repository from elsewhere, whose
//! time it then is. Who calls gives it, or an ARG before the first FROM has it as its default. Reference:
//! BuildKit's `dockerfile2llb/epoch.go`.

use std::sync::{Arc, Mutex};

use isles_engine::Engine;
use isles_registry::Client;
use isles_spec::{Platform, Progress};

use super::execute::place;
use super::instruction::{CopySource, Instruction, Recipe, Stage};
use super::scope::{Globals, Scope, Words};
use crate::error::Result;
use crate::fetch::{self, Remote};
use crate::git::{self, Git};
use crate::options::BuildOptions;
use crate::position::{SourceText, Span};
use crate::recipe::Found;
use crate::snapshot::{Build, Scratch};

const NAME: &str = "SOURCE_DATE_EPOCH";

/// What the caller says, with the time found out where it is not a number. Variables of the name then hold it in
/// seconds, or nothing.
pub fn resolve(
    engine: &Engine,
    client: &Client,
    found: &Found,
    source: &Arc<SourceText>,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<BuildOptions> {
    let mut options = options.clone();
    if options.source_date_epoch.is_some() {
        return Ok(options);
    }
    let given = options.build_args.get(NAME).cloned().or_else(|| std::env::var(NAME).ok());
    if given.is_none() && !source.text().contains(NAME) {
        return Ok(options);
    }
    // What is wrong with the recipe is said when it is carried out.
    let Ok(recipe) = super::parse(source.clone()) else { return Ok(options) };
    let warnings = Mutex::default();
    let words = Words { source, escape: recipe.escape, warnings: &warnings };
    let mut globals = Globals::new(&Platform::host(), "", &options.build_args);
    if globals.declare(&words, &recipe.global_args).is_err() {
        return Ok(options);
    }
    let declared = || globals.lookup(NAME).filter(|v| !v.is_empty());
    let Some(value) = given.or_else(declared) else { return Ok(options) };
    let stage =
        || recipe.stages.iter().find(|s| s.name.as_ref().is_some_and(|n| n.eq_ignore_ascii_case(&value)));
    let seconds = match (value.as_str(), value.parse::<i64>()) {
        ("", _) => None,
        (_, Ok(seconds)) => Some(seconds),
        ("context", _) => found.made,
        _ => match stage() {
            Some(stage) => {
                let lease = engine.store().lease()?;
                let build = Build::new(engine, client, &options, &lease, Platform::host(), progress);
                of_stage(&build, &recipe, &globals, &words, stage)
                    .map_err(|e| place(source, stage.node.span, e))?
            }
            None => {
                let span = recipe.global_args.iter().find(|a| a.name.text == NAME).map(|a| a.name.span);
                return Err(source
                    .at(span.unwrap_or_default(), format!("invalid {NAME} '{value}'"))
                    .with_suggestion("it is a number of seconds since 1970, context, or the name of a stage")
                    .into());
            }
        },
    };
    options.source_date_epoch = seconds;
    options.build_args.insert(NAME.to_owned(), seconds.map(|s| s.to_string()).unwrap_or_default());
    Ok(options)
}

/// The time of the one thing that a stage adds.
fn of_stage(
    build: &Build<'_>,
    recipe: &Recipe,
    globals: &Globals,
    words: &Words<'_>,
    stage: &Stage,
) -> Result<Option<i64>> {
    let bad = |span: Span, why: &str| recipe.source.at(span, format!("a stage for {NAME} {why}"));
    if words.expand(&stage.base, &|n| globals.lookup(n))? != "scratch" {
        return Err(bad(stage.base.span, "begins with FROM scratch").into());
    }
    let mut scope = Scope::default();
    let mut seen = None;
    for step in &stage.steps {
        match &step.instruction {
            Instruction::Arg(arguments) => {
                arguments.iter().try_for_each(|a| scope.declare(words, globals, &[], a))?;
            }
            Instruction::Add(add) if seen.is_none() => seen = Some((step.node.span, add, scope.clone())),
            _ => return Err(bad(step.node.span, "has one ADD, and nothing else but ARG").into()),
        }
    }
    let Some((span, add, scope)) = seen else {
        return Err(bad(stage.node.span, "has one ADD of a URL or a repository").into());
    };
    let [CopySource::Path(word)] = add.sources.as_slice() else {
        return Err(bad(span, "adds one thing").into());
    };
    let text = words.expand_in(word, &scope, &[])?;
    let checksum = add.checksum.as_ref().map(|c| words.expand_in(c, &scope, &[])).transpose()?;
    if let Some(repository) = git::parse(&text) {
        let repository = repository
            .and_then(|r| r.with_flags(checksum.as_deref(), None))
            .map_err(|why| recipe.source.at(word.span, why))?;
        let git = Git::new(build, &repository)?;
        let scratch = Scratch::new(build.store)?;
        let (_, made) = git.checkout(&git.find()?, &scratch.0)?;
        return Ok(Some(made));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let checksum = checksum.map(|c| c.parse()).transpose()?;
        let remote = Remote::find(build, &text, checksum.as_ref())?;
        let (file, mtime) = remote.open(build)?;
        return Ok(match mtime {
            0 => crate::archive::newest(&|| fetch::again(&file, &text)),
            mtime => Some(mtime),
        });
    }
    Err(bad(word.span, "adds a URL or a repository").into())
}
