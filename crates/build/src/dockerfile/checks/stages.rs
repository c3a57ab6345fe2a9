//! Goes through the stages as a build would, with the variables at each place, and builds nothing.
//!
//! On the way it notes what the stages use: arguments, secrets, agents and caches, for the outline of a target.
//! Where a base image cannot be had its variables are not known, and nothing is said of those that seem to be
//! missing. The effort is bounded, because a recipe may come from anyone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use isles_spec::Platform;
use isles_spec::nearest::nearest;

use super::config::Config;
use super::rules;
use super::steps::{Here, Once};
use super::top::{Effort, Top, default_names, names_of_images, plan_of, top};
use super::used::{Stages, Used};
use super::{Look, Place, Report};
use crate::dockerfile::instruction::{self, Recipe, Step};
use crate::dockerfile::plan::{From, Plan};
use crate::dockerfile::scope::Globals;
use crate::dockerfile::syntax::{Node, parse_trigger};
use crate::dockerfile::words::{Expander, Expansion};
use crate::error::Error;
use crate::images::DEFAULT_PATH;
use crate::position::{Diagnostic, Span, Spanned};

/// They are options of the builder and never variables.
pub(super) const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
/// What it costs to read an instruction again.
const EFFORT_OF_TRIGGER: usize = 1000;
/// So many near names are looked for, each among so many.
const MAX_HINTS: usize = 100;
const MAX_KNOWN: usize = 256;

/// What is known at one place of a stage.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub env: BTreeMap<String, String>,
    pub declared: BTreeSet<String>,
    /// A WORKDIR stands here or in a stage below.
    pub workdir: bool,
    /// The shell is not the usual one.
    pub shell: bool,
    /// The base image's variables are among those above.
    pub known: bool,
    /// ONBUILD, for stages that begin with this one.
    pub triggers: Vec<String>,
}

/// The way through the stages.
pub(super) struct Walk<'a> {
    pub look: &'a Look<'a>,
    pub report: &'a mut Report,
    pub recipe: &'a Recipe,
    pub top: &'a Top,
    effort: Effort,
    hints: usize,
}

/// Goes through the stages of a recipe, whose instructions are `nodes`.
pub(super) fn go_through(
    report: &mut Report,
    look: &Look<'_>,
    recipe: &Recipe,
    nodes: &[Node],
) -> Result<Stages, Error> {
    let last_name = recipe.stages.last().and_then(|s| s.name.as_deref());
    let target = look.target.or(last_name).unwrap_or("default");
    let globals = Globals::new(look.platform, target, look.build_args);
    let heads: Vec<&Node> = nodes.iter().take_while(|n| n.name() != "FROM").collect();
    let mut effort = Effort::default();
    if let Ok(plain) = top(recipe, &heads, &globals, &BTreeMap::new(), &mut effort) {
        default_names(report, recipe, &plain, &mut effort);
    }
    let top = top(recipe, &heads, &globals, look.build_args, &mut effort)?;
    let mut walk = Walk { look, report, recipe, top: &top, effort, hints: 0 };
    let mut used = Vec::new();
    for stage in &recipe.stages {
        used.push(walk.from(stage)?);
    }
    let plan = plan_of(recipe, &globals, look)?;
    names_of_images(recipe, &plan)?;
    let mut states: Vec<Option<State>> = vec![None; recipe.stages.len()];
    let mut out: Vec<Option<Used>> = vec![None; recipe.stages.len()];
    for (index, names) in used.into_iter().enumerate() {
        if !look.all_stages && plan.needed.binary_search(&index).is_err() {
            continue;
        }
        let mut own = Used { used: names, ..Used::default() };
        let state = walk.stage(index, &plan, &states, &mut own)?;
        states[index] = Some(state);
        out[index] = Some(own);
    }
    Ok(Stages { recipe: recipe.clone(), target: plan.target, args: top.args, used: out })
}

impl Walk<'_> {
    /// Expands a word by the given variables.
    pub(super) fn expand(
        &mut self,
        env: &BTreeMap<String, String>,
        word: &str,
        escape: char,
        span: Span,
    ) -> Result<Expansion, Diagnostic> {
        let lookup = |n: &str| env.get(n).cloned();
        let expansion =
            Expander::new(escape, &lookup).expand(word).map_err(|e| e.at(&self.recipe.source, span))?;
        self.spend(expansion.effort, span)?;
        Ok(expansion)
    }

    pub(super) fn spend(&mut self, effort: usize, span: Span) -> Result<(), Diagnostic> {
        self.effort.spend(effort, &self.recipe.source, span)
    }

    /// `did you mean …?`, for the first findings.
    fn near<'n>(
        &mut self,
        name: &str,
        known: impl Iterator<Item = &'n String>,
        mark: &str,
    ) -> Option<String> {
        self.hints += 1;
        if self.hints > MAX_HINTS {
            return None;
        }
        let near = nearest(name, known.take(MAX_KNOWN).map(String::as_str))?;
        Some(format!("did you mean {mark}{near}?"))
    }

    /// A FROM by itself. Gives the names of the ARGs that it uses.
    fn from(&mut self, stage: &instruction::Stage) -> Result<BTreeSet<String>, Diagnostic> {
        let config = self.report.config.clone();
        let config = config.with_comments(&stage.node.comments);
        let place = Place::of(&stage.node);
        let env = &self.top.env;
        let base = self.expand(env, &stage.base, self.recipe.escape, stage.base.span)?;
        self.undeclared(&config, place.at(stage.base.span), &base);
        let mut used = base.used;
        let Some(platform) = &stage.platform else { return Ok(used) };
        let found = self.expand(env, platform, self.recipe.escape, platform.span)?;
        let place = place.at(platform.span);
        self.undeclared(&config, place, &found);
        let target = env.get("TARGETPLATFORM");
        let only_target = found.used.len() == 1 && found.used.contains("TARGETPLATFORM");
        if only_target && found.unset.is_empty() && target == Some(&found.text) {
            let detail = format!("--platform={} is what FROM takes anyway", platform.text);
            let hint = "leave --platform out".to_owned();
            self.report.add(&config, &rules::REDUNDANT_TARGET_PLATFORM, place, detail, Some(hint));
        }
        let error = |e: isles_spec::Error| {
            let hint = isles_spec::Hint::hint(&e);
            let error = self.report.source.at(platform.span, e.to_string());
            match found.unset.iter().find_map(|n| nearest(n, env.keys().map(String::as_str))) {
                Some(near) => error.with_suggestion(format!("did you mean ${near}?")),
                None => Diagnostic { suggestion: hint, ..error },
            }
        };
        let parsed: Platform = found.text.parse().map_err(error)?;
        if found.used.is_empty() && found.unset.is_empty() {
            let name = stage.name.as_deref().unwrap_or_default();
            if !name.contains(&parsed.os) && !name.contains(&parsed.architecture) {
                let detail = format!("the platform of FROM is always {}", found.text);
                let hint = "use $BUILDPLATFORM or leave it to --platform of the build; \
                            a stage for one platform may have it in its name";
                let rule = &rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED;
                self.report.add(&config, rule, place, detail, Some(hint.to_owned()));
            }
        }
        used.extend(found.used);
        Ok(used)
    }

    fn undeclared(&mut self, config: &Config, place: Place, expansion: &Expansion) {
        let top = self.top;
        for name in expansion.unset.iter().filter(|n| !top.args.contains_key(*n)) {
            let detail = format!("the variable {name} in FROM is not declared");
            let hint = self.near(name, top.args.keys().chain(top.env.keys()), "");
            let hint = hint.or_else(|| Some(format!("write ARG {name} before the first FROM")));
            self.report.add(config, &rules::UNDEFINED_ARG_IN_FROM, place, detail, hint);
        }
    }

    /// A stage from its base to its last instruction.
    fn stage(
        &mut self,
        index: usize,
        plan: &Plan,
        states: &[Option<State>],
        own: &mut Used,
    ) -> Result<State, Diagnostic> {
        let recipe = self.recipe;
        let stage = &recipe.stages[index];
        let mut state = match &plan.bases[index] {
            From::Scratch => State { known: true, ..State::default() },
            From::Image(name) => self.base_image(stage, name)?,
            // What the caller puts there is not looked at.
            From::Context(_) => State::default(),
            From::Stage(base) => {
                own.from.push(*base);
                states.get(*base).cloned().flatten().unwrap_or_default()
            }
        };
        if let Some((name, value)) = DEFAULT_PATH.split_once('=') {
            state.env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let variables: usize = state.env.iter().map(|(n, v)| n.len() + v.len() + 64).sum();
        let triggers: usize = state.triggers.iter().map(|t| t.len() + EFFORT_OF_TRIGGER).sum();
        self.spend(variables + triggers + 64 * state.declared.len(), stage.node.span)?;
        let mut once = Once::default();
        let file = self.report.config.clone();
        let place = Place::of(&stage.node).at(stage.base.span);
        let triggers = std::mem::take(&mut state.triggers);
        // As in the reference, those of stages that the target does not need are not looked at.
        let needed = plan.needed.binary_search(&index).is_ok();
        for text in triggers.into_iter().filter(|_| needed) {
            let lost = |e: Diagnostic| {
                let error = recipe.source.at(place.span, format!("ONBUILD of the base: {}", e.message));
                Diagnostic { suggestion: e.suggestion, ..error }
            };
            let tree = parse_trigger("ONBUILD", &text).map_err(lost)?;
            for node in tree.nodes {
                let instruction = instruction::instruction(&tree.source, &node).map_err(lost)?;
                let here = Here {
                    place,
                    config: Cow::Borrowed(&file),
                    source: &tree.source,
                    escape: tree.escape,
                    trigger: true,
                    stage: index,
                };
                self.step(&here, &Step { instruction, node }, &mut state, &mut once, own)?;
            }
        }
        for step in &stage.steps {
            let here = Here {
                place: Place::of(&step.node),
                config: file.with_comments(&step.node.comments),
                source: &recipe.source,
                escape: recipe.escape,
                trigger: false,
                stage: index,
            };
            self.step(&here, step, &mut state, &mut once, own)?;
        }
        Ok(state)
    }

    /// What a stage knows that begins with an image.
    fn base_image(&mut self, stage: &instruction::Stage, name: &str) -> Result<State, Diagnostic> {
        let platform = match &stage.platform {
            None => self.look.platform.clone(),
            Some(word) => {
                let env = &self.top.env;
                let text = self.expand(env, word, self.recipe.escape, word.span)?.text;
                // That it can be read was seen before.
                text.parse().unwrap_or_else(|_| self.look.platform.clone())
            }
        };
        let Some(image) = (self.look.base)(name, &platform) else { return Ok(State::default()) };
        let has = image.platform();
        if !has.os.is_empty() && (has.os != platform.os || has.architecture != platform.architecture) {
            let detail = format!("the image '{name}' is for {has}, the build is for {platform}");
            let place = Place::of(&stage.node).at(stage.base.span);
            let hint = "name an image for that platform, or build with --platform".to_owned();
            self.report.add_for_file(&rules::INVALID_BASE_IMAGE_PLATFORM, place, detail, Some(hint));
        }
        let env = image.config.env.iter().map(|e| e.split_once('=').unwrap_or((e, "")));
        Ok(State {
            env: env.map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            shell: image.config.shell.as_ref().is_some_and(|s| !s.is_empty()),
            known: true,
            triggers: image.config.on_build,
            ..State::default()
        })
    }

    /// Expands a word of an instruction and notes the variables that are not set.
    pub(super) fn word(
        &mut self,
        here: &Here<'_>,
        state: &State,
        word: &Spanned,
    ) -> Result<String, Diagnostic> {
        let span = here.span(word.span);
        let expansion = self.expand(&state.env, word, here.escape, span)?;
        self.unset(here, state, span, &expansion.unset);
        Ok(expansion.text)
    }

    pub(super) fn unset(&mut self, here: &Here<'_>, state: &State, span: Span, unset: &BTreeSet<String>) {
        if !state.known {
            return;
        }
        for name in unset {
            if state.declared.contains(name) || NO_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let detail = format!("the variable ${name} is not set");
            let hint = self.near(name, state.env.keys(), "$");
            self.report.add(&here.config, &rules::UNDEFINED_VAR, here.place.at(span), detail, hint);
        }
    }
}
