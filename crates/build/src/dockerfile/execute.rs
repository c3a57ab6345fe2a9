//! Carries a Dockerfile out: stage after stage, instruction after instruction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use isles_spec::Platform;

use super::checks::{self, Checked};
use super::history;
use super::instruction::{self, CommandLine, Instruction, Recipe, Step};
use super::lines::requested_syntax;
use super::plan::{self, From, Plan};
use super::scope::{self, Globals, Scope, Words};
use super::syntax::parse_trigger;
use crate::context::Context;
use crate::digests::Digests;
use crate::error::{Error, Result};
use crate::images;
use crate::named::NamedContext;
use crate::options::BuildOptions;
use crate::pattern::Ignore;
use crate::position::{Diagnostic, SourceText, Span, Spanned};
use crate::recipe::Found;
use crate::snapshot::{Build, Scratch, Snapshot};
use crate::stages::Stages;
use crate::tree::Tree;
use crate::upper::{Access, Upper};

/// The shell of commands in shell form, where SHELL says no other.
pub const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Titles of steps are cut to this many characters.
const TITLE: usize = 120;

/// What a stage gives to later ones.
#[derive(Debug)]
pub struct Outcome {
    pub snapshot: Snapshot,
    scope: Scope,
}

/// A Dockerfile being carried out: what all its stages share.
pub struct Dockerfile<'a> {
    pub build: &'a Build<'a>,
    pub recipe: &'a Recipe,
    pub globals: &'a Globals,
    pub context: &'a Context,
    plan: &'a Plan,
    /// Folders with names of their own, as they are asked for.
    named: Mutex<BTreeMap<String, Opened>>,
    warnings: &'a Mutex<Vec<Diagnostic>>,
}

/// A folder with a name of its own.
struct Opened {
    context: Arc<Context>,
    /// Its files, where they were fetched.
    _scratch: Option<Scratch>,
}

/// A stage being carried out.
pub struct Stage<'a, 's> {
    pub file: &'a Dockerfile<'a>,
    stages: &'a Stages<'s, Outcome>,
    index: usize,
    pub snapshot: Snapshot,
    pub scope: Scope,
    /// A CMD stands in this stage itself.
    has_cmd: bool,
    number: usize,
    total: usize,
}

/// Where an instruction stands: in the recipe, or in an image that it begins with.
#[derive(Clone)]
pub struct Origin {
    pub source: Arc<SourceText>,
    pub escape: char,
    /// It comes from an image's ONBUILD.
    pub trigger: bool,
}

/// Reads a Dockerfile and carries it out. Gives the target's stage, and what is odd about the recipe.
pub fn execute(
    build: &Build<'_>,
    found: &Found,
    source: Arc<SourceText>,
) -> Result<(Snapshot, Vec<Diagnostic>)> {
    // A file in another language says so before it makes no sense in this one.
    refuse_other_frontends(&source, build.options)?;
    let recipe = super::parse(source.clone())?;
    let warnings = Mutex::default();
    let words = Words { source: &source, escape: recipe.escape, warnings: &warnings };
    let last = recipe.stages.last().and_then(|s| s.name.as_deref());
    let target_stage = build.options.target.as_deref().or(last).unwrap_or("default");
    let mut globals = Globals::new(&build.platform, target_stage, &build.options.build_args);
    globals.declare(&words, &recipe.global_args)?;
    let plan = plan::plan(&recipe, &globals, &words, build.options.target.as_deref(), &|n| build.named(n))?;
    let context = Context::open(build.store, found)?;
    let file = Dockerfile {
        build,
        recipe: &recipe,
        globals: &globals,
        context: &context,
        plan: &plan,
        named: Mutex::default(),
        warnings: &warnings,
    };
    // Where findings are errors they come before the work.
    let early =
        checks::is_strict(&source, &build.options.build_args)?.then(|| crate::check::of_build(&file, true));
    if let Some(refusal) = early.as_ref().and_then(Checked::refusal) {
        return Err(refusal.into());
    }
    let result =
        crate::stages::build(recipe.stages.len(), &plan.needed, &|index, stages| stage(&file, index, stages));
    context.save();
    file.named.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|o| o.context.save());
    let outcome = result?;
    let mut snapshot = match Arc::try_unwrap(outcome) {
        Ok(outcome) => outcome.snapshot,
        Err(shared) => shared.snapshot.clone(),
    };
    let labels = build.options.labels.iter().map(|(n, v)| (n.clone(), v.clone()));
    snapshot.config.config.labels.extend(labels);
    warn_of_unused(&recipe, &globals, &words);
    let checked = early.unwrap_or_else(|| crate::check::of_build(&file, false));
    let mut found: Vec<Diagnostic> = checked.findings.into_iter().map(|f| f.place).collect();
    found.extend(warnings.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok((snapshot, found))
}

/// Our own frontend stands for Docker's, whatever version is asked for; another language is refused.
fn refuse_other_frontends(source: &SourceText, options: &BuildOptions) -> Result<()> {
    // The caller's word goes before the file's.
    let given = options.build_args.get("BUILDKIT_SYNTAX").cloned();
    let Some(asked) = given.or_else(|| requested_syntax(source.text())) else { return Ok(()) };
    let name = asked.split_whitespace().next().unwrap_or_default();
    if name.is_empty() || is_docker_frontend(name) {
        return Ok(());
    }
    let start = source.text().find(&asked).unwrap_or_default();
    let end = if source.text()[start..].starts_with(&asked) { start + asked.len() } else { start };
    Err(source
        .at(Span::new(start, end), format!("the frontend '{asked}' is not known"))
        .with_suggestion(
            "only the language of docker/dockerfile is; take the line out if the file is written in it",
        )
        .into())
}

/// Whether an image is Docker's frontend, of any version, in Docker's registry or in one that mirrors it.
fn is_docker_frontend(name: &str) -> bool {
    let name = name.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        // A colon before a slash is that of a port.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    ["docker/dockerfile", "docker/dockerfile-upstream", "docker/dockerfile-experimental"].iter().any(|own| {
        let registry = name.strip_suffix(own);
        registry.is_some_and(|registry| registry.is_empty() || is_registry(registry))
    })
}

/// `HOST/` or `HOST/PATH/`, where a host has a dot or a port, or is `localhost`.
fn is_registry(prefix: &str) -> bool {
    let host = prefix.split('/').next().unwrap_or_default();
    prefix.ends_with('/') && (host == "localhost" || host.contains(['.', ':']))
}

fn warn_of_unused(recipe: &Recipe, globals: &Globals, words: &Words<'_>) {
    let mut declared = BTreeSet::new();
    for step in recipe.stages.iter().flat_map(|s| &s.steps) {
        if let Instruction::Arg(arguments) = &step.instruction {
            declared.extend(arguments.iter().map(|a| a.name.text.clone()));
        }
    }
    for name in globals.unused(&declared) {
        let span = recipe.stages.last().map(|s| s.node.span).unwrap_or_default();
        let warning = recipe.source.at(span, format!("no ARG declares the build argument '{name}'"));
        words.warn(match isles_spec::nearest::nearest(name, declared.iter().map(String::as_str)) {
            Some(near) => warning.with_suggestion(format!("did you mean '{near}'?")),
            None => warning,
        });
    }
}

/// Gives an error a place, where it has none.
pub fn place(source: &SourceText, span: Span, error: Error) -> Error {
    match error {
        Error::Recipe(_) | Error::At { .. } | Error::StepFailed { .. } | Error::Stopped => error,
        other => Error::At { place: Box::new(source.at(span, other.to_string())), source: Box::new(other) },
    }
}

fn stage<'s>(file: &Dockerfile<'_>, index: usize, stages: &Stages<'s, Outcome>) -> Result<Outcome> {
    let written = &file.recipe.stages[index];
    let source = &file.recipe.source;
    let words = file.words(source, file.recipe.escape);
    let platform = match &written.platform {
        None => file.build.platform.clone(),
        Some(word) => {
            let text = words.expand(word, &|n| file.globals.lookup(n))?;
            text.parse().map_err(|e: isles_spec::Error| place(source, word.span, e.into()))?
        }
    };
    let (mut snapshot, scope) = match &file.plan.bases[index] {
        From::Scratch => (images::scratch(&platform), Scope::default()),
        From::Stage(base) => {
            let base = stages.get(*base)?;
            (base.snapshot.clone(), base.scope.clone())
        }
        From::Image(name) => {
            let image = file.image(name, &platform, (index, index > 0), source, written.base.span)?;
            (images::base(&image, &platform), Scope::default())
        }
        From::Context(key) => {
            let base = file.context_as_base(key, &platform);
            (base.map_err(|e| place(source, written.base.span, e))?, Scope::default())
        }
    };
    snapshot.renewed = file.build.options.renews(written.name.as_deref());
    let config = &mut snapshot.config.config;
    if scope::get(&config.env, "PATH").is_none() {
        config.env.push(images::DEFAULT_PATH.to_owned());
    }
    if !config.working_dir.is_empty() {
        config.working_dir = folder(&absolute(Path::new("/"), &config.working_dir));
    }
    if plan::is_replaced(file.recipe, index, &|n| file.build.named(n)) {
        return Ok(Outcome { snapshot, scope });
    }
    let mut stage = Stage {
        file,
        stages,
        index,
        has_cmd: false,
        snapshot,
        scope,
        number: 0,
        total: written.steps.iter().filter(|s| makes_layer(&s.instruction)).count(),
    };
    // Triggers of the base run first, and are not handed on.
    for (number, text) in std::mem::take(&mut stage.snapshot.config.config.on_build).iter().enumerate() {
        stage.trigger(number, text)?;
    }
    let origin = Origin { source: source.clone(), escape: file.recipe.escape, trigger: false };
    for step in &written.steps {
        stage.step(&origin, step)?;
    }
    Ok(Outcome { snapshot: stage.snapshot, scope: stage.scope })
}

fn makes_layer(instruction: &Instruction) -> bool {
    use Instruction::{Add, Copy, Run, Workdir};
    matches!(instruction, Add(_) | Copy(_) | Run(_) | Workdir(_))
}

/// Neither a registry nor a tag stands in it.
fn is_word(name: &str) -> bool {
    !name.contains(['/', ':', '@', '.'])
}

impl Dockerfile<'_> {
    pub fn words<'w>(&'w self, source: &'w SourceText, escape: char) -> Words<'w> {
        Words { source, escape, warnings: self.warnings }
    }

    /// A base image, or one to copy from. `stage` is the stage that wants it, and whether one before could have been meant.
    fn image(
        &self,
        name: &str,
        platform: &Platform,
        stage: (usize, bool),
        source: &SourceText,
        span: Span,
    ) -> Result<isles_store::Image> {
        images::named_or_other(self.build, name, platform).map_err(|e| {
            let here = !matches!(e, Error::Registry(_) | Error::Store(isles_store::Error::NoImage { .. }));
            match plan::near_stage(self.recipe, name, stage.0) {
                Some(near) => {
                    let place = source
                        .at(span, e.to_string())
                        .with_suggestion(format!("did you mean the stage '{near}'?"));
                    Error::At { place: Box::new(place), source: Box::new(e) }
                }
                // A word alone is rather meant for a stage.
                None if stage.1 && is_word(name) && !here => {
                    let place = source.at(span, e.to_string()).with_suggestion(format!(
                        "no stage before this one is called '{name}', so it was taken for an image"
                    ));
                    Error::At { place: Box::new(place), source: Box::new(e) }
                }
                None => place(source, span, e),
            }
        })
    }
}

impl Dockerfile<'_> {
    /// What the caller puts in a name's place, to take files from.
    fn context_as_files(&self, key: &str, platform: &Platform) -> Result<Other> {
        let build = self.build;
        match build.options.contexts.get(key) {
            None => Err(isles_spec::Error::new(format!("no context is named '{key}'")).into()),
            Some(given @ (NamedContext::Folder(_) | NamedContext::Elsewhere(_))) => {
                let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(opened) = named.get(key) {
                    return Ok(Other::Folder(opened.context.clone()));
                }
                let (folder, scratch) = match given {
                    NamedContext::Elsewhere(what) => {
                        let (folder, scratch) = crate::elsewhere::files(build, what)?;
                        (folder, Some(scratch))
                    }
                    NamedContext::Folder(folder) => (folder.clone(), None),
                    NamedContext::Image(_) | NamedContext::Layout { .. } => return Err(Error::Stopped),
                };
                let context = Arc::new(Context::named(build.store, &folder)?);
                named.insert(key.to_owned(), Opened { context: context.clone(), _scratch: scratch });
                Ok(Other::Folder(context))
            }
            Some(NamedContext::Image(name)) if name == "scratch" => {
                Other::layers(build, &images::scratch(platform))
            }
            Some(NamedContext::Image(name)) => {
                Other::layers(build, &Snapshot::of_image(&images::named_or_other(build, name, platform)?))
            }
            Some(NamedContext::Layout { path, tag }) => {
                Other::layers(build, &Snapshot::of_image(&images::on_disk(build, path, tag.as_deref())?))
            }
        }
    }

    /// What the caller puts in a name's place, to begin a stage with.
    fn context_as_base(&self, key: &str, platform: &Platform) -> Result<Snapshot> {
        let build = self.build;
        match build.options.contexts.get(key) {
            Some(NamedContext::Image(name)) if name == "scratch" => Ok(images::scratch(platform)),
            Some(NamedContext::Image(name)) => {
                Ok(images::base(&images::named_or_other(build, name, platform)?, platform))
            }
            Some(NamedContext::Layout { path, tag }) => {
                Ok(images::base(&images::on_disk(build, path, tag.as_deref())?, platform))
            }
            None | Some(NamedContext::Folder(_) | NamedContext::Elsewhere(_)) => {
                match self.context_as_files(key, platform)? {
                    Other::Folder(context) => images::of_context(build, &context, key, platform),
                    Other::Layers(..) => Err(Error::Stopped),
                }
            }
        }
    }
}

/// What files are taken from, besides the build context.
pub enum Other {
    /// Layers, and their diff IDs.
    Layers(Tree, Vec<String>),
    Folder(Arc<Context>),
}

impl Other {
    fn layers(build: &Build<'_>, snapshot: &Snapshot) -> Result<Other> {
        let layers = snapshot.layers.iter().map(|l| l.diff_id.to_string()).collect();
        Ok(Other::Layers(Tree::Layers(snapshot.view(build.store)?), layers))
    }

    pub fn tree(&self) -> &Tree {
        match self {
            Other::Layers(tree, _) => tree,
            Other::Folder(context) => &context.tree,
        }
    }

    pub fn digests<'o>(&'o self, build: &'o Build<'_>) -> &'o Digests {
        match self {
            Other::Layers(..) => &build.layer_digests,
            Other::Folder(context) => &context.digests,
        }
    }

    /// What is not to be taken.
    pub fn ignore(&self) -> Ignore {
        match self {
            Other::Layers(..) => Ignore::default(),
            Other::Folder(context) => context.ignore.clone(),
        }
    }

    /// The diff IDs of layers.
    pub fn diff_ids(&self) -> Option<&[String]> {
        match self {
            Other::Layers(_, diff_ids) => Some(diff_ids),
            Other::Folder(_) => None,
        }
    }
}

impl Stage<'_, '_> {
    pub fn env(&self) -> &[String] {
        &self.snapshot.config.config.env
    }

    /// Expands a word with the variables of this place.
    pub fn expand(&self, origin: &Origin, word: &Spanned) -> Result<String> {
        Ok(self.file.words(&origin.source, origin.escape).expand_in(word, &self.scope, self.env())?)
    }

    fn shell(&self) -> Vec<String> {
        self.snapshot.config.config.shell.clone().unwrap_or_else(|| SHELL.map(str::to_owned).to_vec())
    }

    /// A command as it is run: in shell form, by the shell.
    pub fn argv(&self, command: &CommandLine) -> Vec<String> {
        if command.shell { [self.shell(), command.words.clone()].concat() } else { command.words.clone() }
    }

    pub fn working_dir(&self) -> PathBuf {
        let dir = &self.snapshot.config.config.working_dir;
        Path::new("/").join(dir)
    }

    /// What the progress calls a step.
    pub fn title(&mut self, step: &Step) -> String {
        self.number += 1;
        let name = match &self.file.recipe.stages[self.index].name {
            Some(name) => format!("{name} "),
            None if self.file.plan.needed.len() > 1 => format!("stage-{} ", self.index),
            None => String::new(),
        };
        let text: String = step.node.line.text.split_whitespace().collect::<Vec<_>>().join(" ");
        let cut: String = text.chars().take(TITLE).collect();
        let dots = if cut.len() < text.len() { "…" } else { "" };
        let label = &self.file.build.label;
        format!("[{label}{name}{}/{}] {cut}{dots}", self.number, self.total.max(self.number))
    }

    /// Another stage, image or named context as a source of files.
    pub fn other(&self, origin: &Origin, from: &Spanned) -> Result<Other> {
        let build = self.file.build;
        let named = |name: &str| build.named(name);
        let source = plan::source_of(self.file.recipe, from, self.index, origin.trigger, &named)?;
        let snapshot = match source {
            From::Stage(stage) => self.stages.get(stage)?.snapshot.clone(),
            From::Image(name) => {
                let image =
                    self.file.image(&name, &build.platform, (self.index, true), &origin.source, from.span)?;
                Snapshot::of_image(&image)
            }
            From::Scratch => Snapshot::empty(&build.platform),
            From::Context(key) => {
                let context = self.file.context_as_files(&key, &build.platform);
                return context.map_err(|e| place(&origin.source, from.span, e));
            }
        };
        Other::layers(build, &snapshot)
    }

    /// Carries out an ONBUILD of the base.
    fn trigger(&mut self, number: usize, text: &str) -> Result<()> {
        let base = self.file.recipe.stages[self.index].base.text.clone();
        let tree = parse_trigger(&format!("ONBUILD {} of {base}", number + 1), text)?;
        let origin = Origin { source: tree.source.clone(), escape: tree.escape, trigger: true };
        if let Some(second) = tree.nodes.get(1) {
            return Err(origin.source.at(second.span, "an ONBUILD of an image holds one instruction").into());
        }
        for node in tree.nodes {
            let instruction = instruction::instruction(&origin.source, &node)?;
            if matches!(instruction, Instruction::Onbuild(_)) {
                return Err(origin.source.at(node.span, "ONBUILD cannot trigger ONBUILD").into());
            }
            self.step(&origin, &Step { instruction, node })?;
        }
        Ok(())
    }

    fn step(&mut self, origin: &Origin, step: &Step) -> Result<()> {
        let source = origin.source.clone();
        self.instruction(origin, step).map_err(|e| place(&source, step.node.span, e))
    }

    fn instruction(&mut self, origin: &Origin, step: &Step) -> Result<()> {
        match &step.instruction {
            Instruction::Run(run) => return self.run(origin, step, run),
            Instruction::Copy(copy) => return self.copy(origin, step, copy, false),
            Instruction::Add(add) => return self.copy(origin, step, add, true),
            Instruction::Workdir(word) => return self.workdir(origin, step, word),
            Instruction::Arg(arguments) => {
                let mut written = Vec::new();
                for argument in arguments {
                    let words = self.file.words(&origin.source, origin.escape);
                    self.scope.declare(
                        &words,
                        self.file.globals,
                        &self.snapshot.config.config.env,
                        argument,
                    )?;
                    let name = &argument.name.text;
                    written.push(match self.scope.value(name) {
                        Some(value) => format!("{name}={value}"),
                        None => name.clone(),
                    });
                }
                self.snapshot.note(format!("ARG {}", written.join(" ")));
            }
            Instruction::Env(pairs) => {
                let pairs = self.pairs(origin, pairs)?;
                for (name, value) in &pairs {
                    scope::set(&mut self.snapshot.config.config.env, name, value);
                }
                self.snapshot.note(history::pairs("ENV", &pairs));
            }
            Instruction::Label(pairs) => {
                let pairs = self.pairs(origin, pairs)?;
                self.snapshot.config.config.labels.extend(pairs.iter().cloned());
                self.snapshot.note(history::pairs("LABEL", &pairs));
            }
            Instruction::Cmd(command) => {
                let argv = self.argv(command);
                self.snapshot.note(history::quoted("CMD", &argv));
                self.snapshot.config.config.cmd = Some(argv);
                self.snapshot.config.config.args_escaped = true;
                self.has_cmd = true;
            }
            Instruction::Entrypoint(command) => {
                let argv = self.argv(command);
                self.snapshot.note(history::quoted("ENTRYPOINT", &argv));
                self.snapshot.config.config.entrypoint = Some(argv);
                // A command of the base was meant for the base's entrypoint.
                if !self.has_cmd {
                    self.snapshot.config.config.cmd = None;
                }
            }
            Instruction::Shell(words) => {
                self.snapshot.note(history::listed("SHELL", words));
                self.snapshot.config.config.shell = Some(words.clone());
            }
            Instruction::Expose(words) => {
                let mut ports = Vec::new();
                // BuildKit sorts them as they are written.
                let mut words: Vec<_> = words.iter().collect();
                words.sort_by(|a, b| a.text.cmp(&b.text));
                for word in words {
                    let split = self.file.words(&origin.source, origin.escape).split(
                        word,
                        &self.scope,
                        self.env(),
                    )?;
                    for text in split {
                        ports.extend(
                            super::ports::parse(&text).map_err(|why| origin.source.at(word.span, why))?,
                        );
                    }
                }
                self.snapshot.note(history::listed("EXPOSE", &ports));
                let exposed = &mut self.snapshot.config.config.exposed_ports;
                exposed.extend(ports.into_iter().map(|p| (p, Default::default())));
            }
            Instruction::Volume(words) => {
                let mut volumes = Vec::new();
                for word in words {
                    volumes.push(self.expand(origin, word)?);
                    if volumes.last().is_some_and(|v| v.trim().is_empty()) {
                        return Err(origin.source.at(word.span, "VOLUME takes no empty path").into());
                    }
                }
                self.snapshot.note(history::listed("VOLUME", &volumes));
                let known = &mut self.snapshot.config.config.volumes;
                known.extend(volumes.into_iter().map(|v| (v, Default::default())));
            }
            Instruction::User(word) => {
                let user = self.expand(origin, word)?;
                self.snapshot.note(format!("USER {user}"));
                self.snapshot.config.config.user = user;
            }
            Instruction::StopSignal(word) => {
                let signal = self.expand(origin, word)?;
                if !super::ports::is_signal(&signal) {
                    return Err(origin
                        .source
                        .at(word.span, format!("'{signal}' is no signal"))
                        .with_suggestion("write a name such as SIGTERM or a number from 1 to 64")
                        .into());
                }
                self.snapshot.note(format!("STOPSIGNAL {signal}"));
                self.snapshot.config.config.stop_signal = Some(signal);
            }
            Instruction::Healthcheck(check) => {
                self.snapshot.note(history::healthcheck(check));
                self.snapshot.config.config.healthcheck = Some(check.clone());
            }
            // As BuildKit, without an entry in the history.
            Instruction::Onbuild(text) => self.snapshot.config.config.on_build.push(text.clone()),
            Instruction::Maintainer(name) => {
                self.snapshot.note(format!("MAINTAINER {}", name.text));
                self.snapshot.config.author = Some(name.text.clone());
            }
        }
        Ok(())
    }

    /// Names and values, all expanded with the environment as it was before the instruction.
    fn pairs(&self, origin: &Origin, pairs: &[(Spanned, Spanned)]) -> Result<Vec<(String, String)>> {
        let one = |(name, value): &(Spanned, Spanned)| {
            Ok((self.expand(origin, name)?, self.expand(origin, value)?))
        };
        pairs.iter().map(one).collect()
    }

    fn workdir(&mut self, origin: &Origin, step: &Step, word: &Spanned) -> Result<()> {
        let text = self.expand(origin, word)?;
        let shown = folder(&absolute(&self.working_dir(), &text));
        // An absolute path is kept as it is written, as BuildKit does; only the folder that is made has a plain name.
        let kept = if text.starts_with('/') { text } else { shown.clone() };
        let created_by = format!("WORKDIR {kept}");
        self.snapshot.config.config.working_dir = kept.clone();
        if kept == "/" {
            self.snapshot.note(created_by);
            return Ok(());
        }
        let build = self.file.build;
        let user = self.snapshot.config.config.user.clone();
        let key = self.snapshot.key("workdir", build).with("path", &shown).with("user", &user).finish();
        let title = self.title(step);
        let step = crate::snapshot::Step { title: &title, key, shortcut: None, created_by };
        build.add(&mut self.snapshot, step, |snapshot, _| {
            let scratch = Scratch::new(build.store)?;
            let folder = scratch.folder("upper")?;
            let view = snapshot.view(build.store)?;
            let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
            let path = upper.resolve(Path::new(&shown))?;
            if upper.kind(&path)? != Some(isles_store::FileKind::Dir) {
                let owner = crate::copy::owner(&user, &view)?;
                upper.directory(&path, Access { mode: 0o755, uid: owner.uid, gid: owner.gid })?;
            }
            crate::snapshot::commit(build, upper)
        })
    }
}

/// A path without a slash at its end.
pub fn folder(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    }
}

/// A path from the root on, as text: `.` and `..` are resolved, a slash at the end stays.
pub fn absolute(working_dir: &Path, path: &str) -> String {
    let whole =
        format!("{}/{path}", if path.starts_with('/') { "".into() } else { working_dir.to_string_lossy() });
    let mut out: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(out.pop()),
            part => out.push(part),
        }
    }
    let directory =
        path.is_empty() || path.ends_with('/') || path == "." || path == ".." || path.ends_with("/.");
    match (out.is_empty(), directory) {
        (true, _) => "/".to_owned(),
        (false, true) => format!("/{}/", out.join("/")),
        (false, false) => format!("/{}", out.join("/")),
    }
}
