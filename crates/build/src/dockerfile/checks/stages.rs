//! Goes through the stages as a build would, with the variables at each place, and builds nothing.
//!
//! On the way it notes what the stages use: arguments, secrets, agents and caches, for the outline of a target.
//! Where a base image cannot be had its variables are not known, and nothing is said of those that seem to be
//! missing. The effort is bounded, because a recipe may come from anyone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use isles_spec::nearest::nearest;
use isles_spec::{Platform, Reference};

use super::config::Config;
use super::rules;
use super::{Look, Place, Report};
use crate::dockerfile::instruction::{
    self, Argument, CopyInstruction, CopySource, Instruction, Recipe, Step,
};
use crate::dockerfile::mount::{self, MountType};
use crate::dockerfile::plan::{self, From, Plan};
use crate::dockerfile::ports;
use crate::dockerfile::scope::{Globals, Words};
use crate::dockerfile::syntax::{Node, parse_trigger};
use crate::dockerfile::words::{Expander, Expansion};
use crate::error::Error;
use crate::images::DEFAULT_PATH;
use crate::position::{Diagnostic, SourceText, Span, Spanned};

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
/// They are options of the builder and never variables.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
/// Words as parts of names that hold secrets, and words that tell that they do not.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const NO_SECRET: [&str; 3] = ["public", "file", "version"];
/// So many characters may be written and compared in all.
const MAX_EFFORT: usize = 20_000_000;
/// What it costs to read an instruction again.
const EFFORT_OF_TRIGGER: usize = 1000;
/// So many near names are looked for, each among so many.
const MAX_HINTS: usize = 100;
const MAX_KNOWN: usize = 256;

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

/// The ARGs before the first FROM.
#[derive(Debug, Clone, Default)]
struct Top {
    env: BTreeMap<String, String>,
    args: BTreeMap<String, UsedArg>,
}

/// What is known at one place of a stage.
#[derive(Debug, Clone, Default)]
struct State {
    env: BTreeMap<String, String>,
    declared: BTreeSet<String>,
    /// A WORKDIR stands here or in a stage below.
    workdir: bool,
    /// The shell is not the usual one.
    shell: bool,
    /// The base image's variables are among those above.
    known: bool,
    /// ONBUILD, for stages that begin with this one.
    triggers: Vec<String>,
}

/// Instructions of which only the last one counts.
#[derive(Debug, Default)]
struct Once {
    cmd: Option<Place>,
    entrypoint: Option<Place>,
    healthcheck: Option<Place>,
}

/// Where an instruction stands, and which rules hold there.
struct Here<'h> {
    place: Place,
    config: Cow<'h, Config>,
    source: &'h SourceText,
    escape: char,
    /// It comes from the base.
    trigger: bool,
    stage: usize,
}

struct Walk<'a> {
    look: &'a Look<'a>,
    report: &'a mut Report,
    recipe: &'a Recipe,
    top: &'a Top,
    effort: Effort,
    hints: usize,
}

/// How many characters were written and compared.
struct Effort(usize);

impl Effort {
    fn spend(&mut self, effort: usize, source: &SourceText, span: Span) -> Result<(), Diagnostic> {
        self.0 += effort;
        if self.0 > MAX_EFFORT {
            let message = "the variables up to here take too much work";
            return Err(source.at(span, message).with_suggestion("is this really a recipe?"));
        }
        Ok(())
    }
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
    let mut effort = Effort(0);
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

/// No stage may begin with what can be neither a stage nor an image, whether it is needed or not.
fn names_of_images(recipe: &Recipe, plan: &Plan) -> Result<(), Diagnostic> {
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
fn plan_of(recipe: &Recipe, globals: &Globals, look: &Look<'_>) -> Result<Plan, Error> {
    let warnings = Mutex::default();
    let words = Words { source: &recipe.source, escape: recipe.escape, warnings: &warnings };
    let mut globals = globals.clone();
    globals.declare(&words, &recipe.global_args)?;
    plan::plan(recipe, &globals, &words, look.target, look.named)
}

fn top(
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

/// What a comment says of `name`: `# NAME DESCRIPTION`.
pub fn description(comments: &[String], name: &str) -> String {
    let mut of_it = comments.iter().filter_map(|c| c.strip_prefix(name)?.strip_prefix(' '));
    of_it.next().unwrap_or_default().to_owned()
}

/// FROM has to name an image where nobody gives a build argument.
fn default_names(report: &mut Report, recipe: &Recipe, plain: &Top, effort: &mut Effort) {
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

impl Walk<'_> {
    /// Expands a word by the given variables.
    fn expand(
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

    fn spend(&mut self, effort: usize, span: Span) -> Result<(), Diagnostic> {
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
    fn word(&mut self, here: &Here<'_>, state: &State, word: &Spanned) -> Result<String, Diagnostic> {
        let span = here.span(word.span);
        let expansion = self.expand(&state.env, word, here.escape, span)?;
        self.unset(here, state, span, &expansion.unset);
        Ok(expansion.text)
    }

    fn unset(&mut self, here: &Here<'_>, state: &State, span: Span, unset: &BTreeSet<String>) {
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

    fn step(
        &mut self,
        here: &Here<'_>,
        step: &Step,
        state: &mut State,
        once: &mut Once,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        let keyword = &step.node.keyword.text;
        match &step.instruction {
            Instruction::Env(pairs) => {
                let pairs = self.pairs(here, state, &step.node, pairs)?;
                for (name, value) in pairs {
                    self.secret(here, "ENV", &name);
                    state.env.insert(name, value);
                }
            }
            Instruction::Label(pairs) => drop(self.pairs(here, state, &step.node, pairs)?),
            Instruction::Arg(arguments) => {
                for argument in arguments {
                    self.argument(here, &step.node, state, argument, own)?;
                }
            }
            Instruction::Cmd(command) => {
                self.once(here, keyword, &mut once.cmd);
                self.json(here, keyword, command.shell, state);
            }
            Instruction::Entrypoint(command) => {
                self.once(here, keyword, &mut once.entrypoint);
                self.json(here, keyword, command.shell, state);
            }
            Instruction::Healthcheck(_) => self.once(here, keyword, &mut once.healthcheck),
            Instruction::Copy(copy) => self.copy(here, step, copy, state, own)?,
            Instruction::Add(add) => self.copy(here, step, add, state, own)?,
            Instruction::Run(run) => {
                for flag in &run.mounts {
                    self.mount(here, state, flag, own)?;
                }
            }
            Instruction::Workdir(word) => {
                let path = self.word(here, state, word)?;
                if !state.workdir && !path.starts_with('/') {
                    let detail = format!("'{path}' is relative, and no WORKDIR stands before it");
                    let hint = format!("write /{path}, if that is meant");
                    let place = here.place.at(here.span(word.span));
                    self.report.add(&here.config, &rules::WORKDIR_RELATIVE_PATH, place, detail, Some(hint));
                }
                state.workdir = true;
            }
            Instruction::Shell(words) => state.shell = !words.is_empty(),
            Instruction::Expose(words) => {
                for word in words {
                    let span = here.span(word.span);
                    for port in self.expand(&state.env, word, here.escape, span)?.words {
                        self.port(here, span, &port)?;
                    }
                }
            }
            Instruction::Volume(words) => {
                for word in words {
                    self.word(here, state, word)?;
                }
            }
            Instruction::User(word) => drop(self.word(here, state, word)?),
            Instruction::StopSignal(word) => {
                let signal = self.word(here, state, word)?;
                if !ports::is_signal(&signal) {
                    let error =
                        self.report.source.at(here.span(word.span), format!("'{signal}' is no signal"));
                    return Err(
                        error.with_suggestion("write a name such as SIGTERM or a number from 1 to 64")
                    );
                }
            }
            Instruction::Onbuild(text) => state.triggers.push(text.clone()),
            Instruction::Maintainer(_) => {}
        }
        Ok(())
    }

    /// Names and values of ENV and LABEL.
    fn pairs(
        &mut self,
        here: &Here<'_>,
        state: &State,
        node: &Node,
        pairs: &[(Spanned, Spanned)],
    ) -> Result<Vec<(String, String)>, Diagnostic> {
        let mut out = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            out.push((self.word(here, state, name)?, self.word(here, state, value)?));
        }
        // Only the form with blanks has no separator, and it has one pair.
        if let [name, value, separator] = node.args.as_slice()
            && separator.is_empty()
        {
            let keyword = &node.keyword.text;
            let place = here.place.at(here.span(name.span));
            let detail = format!("a blank stands between name and value of {keyword}, not '='");
            let quote = if value.contains(char::is_whitespace) && !value.contains('"') { "\"" } else { "" };
            let hint = format!("write {keyword} {}={quote}{}{quote}", name.text, value.text);
            self.report.add(&here.config, &rules::LEGACY_KEY_VALUE_FORMAT, place, detail, Some(hint));
        }
        Ok(out)
    }

    fn secret(&mut self, here: &Here<'_>, keyword: &str, name: &str) {
        let has = |words: &[&str]| name.split('_').any(|p| words.iter().any(|w| p.eq_ignore_ascii_case(w)));
        if has(&SECRET) && !has(&NO_SECRET) {
            let detail =
                format!("{keyword} '{name}' seems to hold a secret, which becomes part of the image");
            let hint = "use RUN --mount=type=secret".to_owned();
            self.report.add(&here.config, &rules::SECRETS_USED_IN_ARG_OR_ENV, here.place, detail, Some(hint));
        }
    }

    fn argument(
        &mut self,
        here: &Here<'_>,
        node: &Node,
        state: &mut State,
        argument: &Argument,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        let name = &argument.name.text;
        self.secret(here, "ARG", name);
        let (value, inherited) = match (self.look.build_args.get(name), &argument.default) {
            (Some(given), _) => (Some(given.clone()), false),
            (None, Some(default)) => (Some(self.word(here, state, default)?), false),
            (None, None) => {
                let global = self.top.env.get(name).cloned();
                let inherited = global.is_some();
                (global, inherited)
            }
        };
        if let Some(value) = &value
            && !NO_VARIABLES.contains(&name.as_str())
        {
            state.env.insert(name.clone(), value.clone());
        }
        if !inherited {
            self.spend(node.comments.len(), here.place.span)?;
            let description = description(&node.comments, name);
            let lines = here.place.lines;
            own.args.insert(name.clone(), UsedArg { value, description, lines, needs: BTreeSet::new() });
        }
        own.used.insert(name.clone());
        state.declared.insert(name.clone());
        Ok(())
    }

    /// An instruction of which only the last one of a stage counts: the one before is what is superfluous.
    fn once(&mut self, here: &Here<'_>, keyword: &str, before: &mut Option<Place>) {
        if let Some(place) = before.replace(here.place) {
            let detail = format!("{keyword} stands again below, and only the last one counts");
            let hint = "take this one out".to_owned();
            self.report.add(
                &here.config,
                &rules::MULTIPLE_INSTRUCTIONS_DISALLOWED,
                place,
                detail,
                Some(hint),
            );
        }
    }

    fn json(&mut self, here: &Here<'_>, keyword: &str, shell: bool, state: &State) {
        if shell && !state.shell {
            let detail =
                format!("{keyword} runs in a shell, which gets the signals that the program should get");
            let hint = format!(
                "write {keyword} [\"PROGRAM\", \"ARGUMENT\"], or SHELL before it if a shell is meant"
            );
            self.report.add(&here.config, &rules::JSON_ARGS_RECOMMENDED, here.place, detail, Some(hint));
        }
    }

    fn copy(
        &mut self,
        here: &Here<'_>,
        step: &Step,
        copy: &CopyInstruction,
        state: &State,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        for flag in [&copy.chown, &copy.chmod, &copy.checksum].into_iter().flatten() {
            self.word(here, state, flag)?;
        }
        let mut paths = Vec::new();
        for source in &copy.sources {
            if let CopySource::Path(word) = source {
                paths.push((self.word(here, state, word)?, word.span));
            }
        }
        self.word(here, state, &copy.destination)?;
        for source in &copy.sources {
            if let CopySource::Inline(inline) = source
                && inline.expand
            {
                let span = here.span(inline.body.span);
                let lookup = |n: &str| state.env.get(n).cloned();
                let expansion = Expander::body('\\', &lookup)
                    .expand(&inline.body)
                    .map_err(|e| e.at(&self.recipe.source, span))?;
                self.spend(expansion.effort, span)?;
                self.unset(here, state, span, &expansion.unset);
            }
        }
        match &copy.from {
            Some(from) => self.source(here, from, own)?,
            None => {
                for (path, span) in paths {
                    self.spend(self.look.ignore.effort(&path), here.span(span))?;
                    self.ignored(here, &step.node, &path, span);
                }
            }
        }
        Ok(())
    }

    /// A stage that files come from.
    fn source(&mut self, here: &Here<'_>, from: &Spanned, own: &mut Used) -> Result<(), Diagnostic> {
        match plan::source_of(self.recipe, from, here.stage, here.trigger, self.look.named) {
            Ok(From::Stage(stage)) => own.from.push(stage),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Copying what `.dockerignore` leaves out cannot work. Where it takes something back in, nothing is said.
    fn ignored(&mut self, here: &Here<'_>, node: &Node, path: &str, span: Span) {
        let ignore = self.look.ignore;
        if ignore.is_empty() || ignore.may_return() || path.contains("://") || path.starts_with("git@") {
            return;
        }
        let rooted = path.starts_with('/');
        let clean = crate::pattern::clean(path);
        if clean.is_empty() && !ignore.leaves_out_all() {
            return;
        }
        let shown = match (rooted, clean.is_empty()) {
            (true, _) => format!("/{clean}"),
            (false, true) => ".".to_owned(),
            (false, false) => clean,
        };
        if ignore.is_left_out(std::path::Path::new(&shown)) {
            let detail = format!("{} takes '{shown}', which .dockerignore leaves out", node.name());
            let place = here.place.at(here.span(span));
            let hint = "take the pattern out of .dockerignore, or add !PATH to it".to_owned();
            self.report.add(&here.config, &rules::COPY_IGNORED_FILE, place, detail, Some(hint));
        }
    }

    fn mount(
        &mut self,
        here: &Here<'_>,
        state: &State,
        flag: &Spanned,
        own: &mut Used,
    ) -> Result<(), Diagnostic> {
        let span = here.span(flag.span);
        let mut unset = Vec::new();
        let mut effort = 0;
        let lookup = |n: &str| state.env.get(n).cloned();
        let mut expand = |value: &str| {
            let e = Expander::new(here.escape, &lookup)
                .expand(value)
                .map_err(|e| e.at(here.source, flag.span))?;
            unset.push(e.unset);
            effort += e.effort;
            Ok(e.text)
        };
        let parsed = mount::parse(here.source, flag, &mut expand);
        self.spend(effort, span)?;
        for names in &unset {
            self.unset(here, state, span, names);
        }
        let mount = parsed.map_err(|e| match here.trigger {
            true => Diagnostic { suggestion: e.suggestion, ..self.report.source.at(span, e.message) },
            false => e,
        })?;
        let lines = here.place.lines;
        let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let note = |list: &mut Vec<Wanted>, id: String, required: bool| {
            if !list.iter().any(|w| w.id == id) {
                list.push(Wanted { id, required, lines });
            }
        };
        let given = |text: Option<String>| text.filter(|t| !t.is_empty());
        match mount.kind {
            MountType::Secret => {
                let id =
                    given(mount.source).or(given(mount.id)).or_else(|| mount.target.as_deref().map(last));
                note(&mut own.secrets, id.unwrap_or_default(), mount.required);
            }
            MountType::Ssh => {
                note(&mut own.ssh, given(mount.id).unwrap_or_else(|| "default".into()), mount.required)
            }
            MountType::Cache => {
                let id = given(mount.id).or(mount.target).unwrap_or_default();
                note(&mut own.caches, id, false);
            }
            MountType::Bind | MountType::Tmpfs => {}
        }
        match mount.from {
            Some(from) => self.source(here, &Spanned::new(from, flag.span), own),
            None => Ok(()),
        }
    }

    /// One word of EXPOSE, after variables.
    fn port(&mut self, here: &Here<'_>, span: Span, text: &str) -> Result<(), Diagnostic> {
        let (before, port) = text.rsplit_once(':').map_or((None, text), |(b, p)| (Some(b), p));
        let (numbers, protocol) = port.split_once('/').unwrap_or((port, ""));
        let place = here.place.at(span);
        let known = ["", "tcp", "udp", "sctp"].contains(&protocol.to_lowercase().as_str());
        if known && protocol != protocol.to_lowercase() {
            let detail = format!("the protocol of '{text}' is not in lower case");
            let hint = format!("write {numbers}/{}", protocol.to_lowercase());
            self.report.add(&here.config, &rules::EXPOSE_PROTO_CASING, place, detail, Some(hint));
        }
        if known && before.is_some_and(|b| !b.is_empty()) {
            let detail = format!("'{text}' has an address or a port of the host, which mean nothing here");
            let hint = format!("write {port}; isles run -p publishes it");
            self.report.add(&here.config, &rules::EXPOSE_INVALID_FORMAT, place, detail, Some(hint));
        }
        // A wide range is tried at its ends, not written out.
        let slash = if protocol.is_empty() { String::new() } else { format!("/{protocol}") };
        let ends = match numbers.split_once('-') {
            Some((first, last)) if first.parse::<u16>().ok() <= last.parse::<u16>().ok() => {
                vec![format!("{first}{slash}"), format!("{last}{slash}")]
            }
            _ => vec![format!("{numbers}{slash}")],
        };
        for end in ends {
            ports::parse(&end).map_err(|why| self.report.source.at(span, why))?;
        }
        Ok(())
    }
}

impl Here<'_> {
    /// Where something is shown: in the recipe, and not in an instruction of the base.
    fn span(&self, own: Span) -> Span {
        if self.trigger { self.place.span } else { own }
    }
}
