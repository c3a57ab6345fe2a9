//! Carries a definition file out: stage after stage, section after section.
//!
//! The order is the language's: `%pre`, the bootstrap, files from other stages, `%setup`, files from the host, apps,
//! `%post`. What only matters when the image runs comes last, as a layer of its own, so a changed `%runscript` runs
//! nothing again.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use isles_engine::{Step, StepOutput, StepRoot};
use isles_spec::Mount;
use isles_spec::nearest::nearest;
use isles_spec::time::parse_rfc3339;

use super::bootstrap::bootstrap;
use super::files::{Other, files};
use super::host::{HostScript, interpreter};
use super::local::Base;
use super::metadata::metadata;
use super::syntax::{Definition, Section, SectionKind, Stage, without_escapes};
use super::tree::{self, Entry};
use super::{BuildArguments, apps, json, permissions, sandbox};
use crate::context::Context;
use crate::dockerfile::execute::place;
use crate::error::{Error, Result};
use crate::position::{Diagnostic, SourceText, Span};
use crate::recipe::Found;
use crate::run::{RunStep, SCRIPTS, StepMount};
use crate::snapshot::{Build, Scratch, Snapshot};
use crate::stages::Stages;
use crate::tree::Tree;

/// So much of the end of what `%pre` writes is kept for the message when it fails.
const TAIL: usize = 16 << 10;

/// A definition file being carried out: what its stages share.
pub struct Recipe<'a> {
    pub build: &'a Build<'a>,
    pub source: &'a SourceText,
    pub context: &'a Context,
    definition: &'a Definition,
    found: &'a Found,
    target: usize,
    warnings: &'a Mutex<Vec<Diagnostic>>,
}

impl Recipe<'_> {
    /// Notes something that is odd.
    pub fn warn(&self, at: Option<Span>, message: &str, suggestion: &str) {
        let warning = self.source.at(at.unwrap_or_default(), message).with_suggestion(suggestion);
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    /// Whether the caller wants sections of a kind.
    fn wants(&self, kind: SectionKind) -> bool {
        self.build.options.definition.sections.has(kind)
    }

    /// File and line of something, for errors of steps.
    fn line(&self, span: Span) -> String {
        format!("{}:{}", self.source.name(), self.source.line_of(span.start))
    }
}

/// Reads a definition file and carries it out.
pub fn execute(
    build: &Build<'_>,
    found: &Found,
    source: Arc<SourceText>,
) -> Result<(Snapshot, Vec<Diagnostic>)> {
    let options = &build.options.definition;
    let source = if options.json || json::is_json(source.text()) { json::to_text(&source)? } else { source };
    let arguments = BuildArguments::of(&build.options.build_args, options)?;
    let (definition, warnings) = super::parse(source.clone(), &arguments)?;
    let target = target(build, &definition, &source)?;
    if found.fetched {
        definition.stages.iter().try_for_each(|stage| strange(build, &source, stage))?;
    }
    definition.stages.iter().try_for_each(|stage| refuse(build, &source, stage))?;
    let needed = needed(&definition, &source, target)?;
    let result = options.sandbox.as_ref().or(options.update.as_ref());
    if let Some(folder) = result {
        sandbox::check(folder, options)?;
    }
    let context = Context::open(build.store, found)?;
    let warnings = Mutex::new(warnings);
    let recipe = Recipe {
        build,
        definition: &definition,
        source: &source,
        context: &context,
        found,
        target,
        warnings: &warnings,
    };
    let made = crate::stages::build(definition.stages.len(), &needed, &|index, stages| {
        stage(&recipe, index, stages)
    });
    context.save();
    let mut snapshot = (*made?).clone();
    snapshot.config.config.labels.extend(build.options.labels.clone());
    if let Some(folder) = result {
        sandbox::write(build, &snapshot, folder)?;
    }
    Ok((snapshot, warnings.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

fn target(build: &Build<'_>, definition: &Definition, source: &SourceText) -> Result<usize> {
    let Some(name) = &build.options.target else { return Ok(definition.stages.len() - 1) };
    stage_named(definition, name).ok_or_else(|| {
        let error = source.at(Span::default(), format!("no stage is called '{name}'"));
        suggest_stage(error, definition, name).into()
    })
}

fn stage_named(definition: &Definition, name: &str) -> Option<usize> {
    definition.stages.iter().position(|s| s.name().is_some_and(|n| n.text == name))
}

fn suggest_stage(error: Diagnostic, definition: &Definition, name: &str) -> Diagnostic {
    let names = || definition.stages.iter().filter_map(|s| s.name().map(|n| n.text.as_str()));
    match nearest(name, names()) {
        Some(near) => error.with_suggestion(format!("did you mean '{near}'?")),
        None => error.with_suggestion("a stage gets a name by 'Stage: NAME' in its header"),
    }
}

/// What is not carried out is refused before anything is done.
fn refuse(build: &Build<'_>, source: &SourceText, stage: &Stage) -> Result<()> {
    apps::check(source, stage)?;
    for section in &stage.sections {
        match section.kind {
            SectionKind::Pre if !build.options.definition.host_scripts && !section.body.trim().is_empty() => {
                return Err(source
                    .at(section.name.span, "%pre would run on the host with all rights of whoever builds")
                    .with_suggestion(
                        "use %setup, which can write nothing but the image; `isles build --host-scripts` runs \
                         it, and so does `apptainer build` as root",
                    )
                    .into());
            }
            SectionKind::Files if section.from_stage().is_none() && section.words().next().is_some() => {
                return Err(source
                    .at(section.arguments.span, "these words have no meaning beside %files")
                    .with_suggestion("write '%files from STAGE', or '%files' alone")
                    .into());
            }
            SectionKind::Post | SectionKind::Setup | SectionKind::Pre => {
                interpreter(section.words()).map_err(|why| {
                    source
                        .at(section.arguments.span, why)
                        .with_suggestion(format!("write %{} -c PROGRAM", section.kind.name()))
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whoever wrote a recipe that was fetched gets nothing of this host: neither its programs nor its files.
fn strange(build: &Build<'_>, source: &SourceText, stage: &Stage) -> Result<()> {
    for section in &stage.sections {
        let is_host = match section.kind {
            SectionKind::Pre | SectionKind::Setup => !section.body.trim().is_empty(),
            _ => false,
        };
        if is_host && build.options.definition.sections.has(section.kind) {
            return Err(of_host(source, section.name.span, &format!("%{} runs", section.kind.name())));
        }
        let is_copy = match section.kind {
            SectionKind::Files => section.from_stage().is_none(),
            kind => kind == SectionKind::AppFiles,
        };
        for line in section.copies().iter().filter(|_| is_copy) {
            let path = without_escapes(&line.source);
            if path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(of_host(source, line.source.span, &format!("'{path}' is")));
            }
        }
    }
    Ok(())
}

/// The refusal of something that `what` on the host.
pub fn of_host(source: &SourceText, span: Span, what: &str) -> Error {
    source
        .at(span, format!("{what} on the host, which a recipe that was fetched does not see"))
        .with_suggestion("fetch it, look at it, and build it from its folder")
        .into()
}

/// The stages that one needs, itself last.
fn needed(definition: &Definition, source: &SourceText, target: usize) -> Result<Vec<usize>> {
    let mut needed = vec![false; target + 1];
    let mut todo = vec![target];
    while let Some(index) = todo.pop() {
        if std::mem::replace(&mut needed[index], true) {
            continue;
        }
        for section in definition.stages[index].all(SectionKind::Files) {
            todo.extend(stage_of(definition, source, section, index)?);
        }
    }
    Ok((0..=target).filter(|i| needed[*i]).collect())
}

/// The stage that a `%files from` means.
fn stage_of(
    definition: &Definition,
    source: &SourceText,
    section: &Section,
    index: usize,
) -> Result<Option<usize>> {
    let Some(name) = section.from_stage() else { return Ok(None) };
    let span = section.arguments.span;
    match stage_named(definition, name) {
        Some(earlier) if earlier < index => Ok(Some(earlier)),
        Some(same) if same == index => {
            Err(source.at(span, format!("the stage '{name}' cannot take files from itself")).into())
        }
        Some(_) => Err(source
            .at(span, format!("the stage '{name}' comes later"))
            .with_suggestion("a stage sees those before it")
            .into()),
        None => {
            let error = source.at(span, format!("no stage is called '{name}'"));
            Err(suggest_stage(error, definition, name).into())
        }
    }
}

fn stage<'s>(recipe: &Recipe<'_>, index: usize, stages: &Stages<'s, Snapshot>) -> Result<Snapshot> {
    let stage = &recipe.definition.stages[index];
    let is_target = index == recipe.target;
    pre(recipe, stage)?;
    let update = recipe.build.options.definition.update.as_ref().filter(|_| is_target);
    let base = match update {
        Some(folder) => super::local::base_of_local_image(recipe.build, folder, None, &Default::default())?,
        None => bootstrap(recipe.build, recipe.source, stage, recipe.found, recipe.warnings)?,
    };
    let Base { mut snapshot, oci } = base;
    snapshot.renewed = recipe.build.options.renews(stage.name().map(|name| name.text.as_str()));
    skeleton(recipe, &mut snapshot, oci)?;
    if recipe.wants(SectionKind::Files) {
        for section in stage.all(SectionKind::Files) {
            // Files of other stages come first, wherever their sections stand.
            if let Some(other) = stage_of(recipe.definition, recipe.source, section, index)? {
                let other = stages.get(other)?;
                let layers = other.layers.iter().map(|l| l.diff_id.to_string()).collect();
                let other = Other { tree: Tree::Layers(other.view(recipe.build.store)?), layers };
                files(recipe, &mut snapshot, section, Some(&other))?;
            }
        }
    }
    setup(recipe, stage, &mut snapshot)?;
    if recipe.wants(SectionKind::Files) {
        for section in stage.all(SectionKind::Files).filter(|s| s.from_stage().is_none()) {
            files(recipe, &mut snapshot, section, None)?;
        }
    }
    let apps = apps::before_post(stage);
    if !apps.is_empty() {
        tree::write(recipe.build, &mut snapshot, "preparing /scif", &apps, &[])?;
    }
    for section in stage.all(SectionKind::AppFiles) {
        files(recipe, &mut snapshot, section, None)?;
    }
    post(recipe, stage, &mut snapshot)?;
    // Earlier stages only lend their files.
    if is_target {
        metadata(recipe, stage, &mut snapshot)?;
        if recipe.build.options.definition.fix_permissions {
            permissions::fix(recipe.build, &mut snapshot)?;
        }
        test(recipe, stage, &snapshot)?;
    }
    Ok(snapshot)
}

/// `/.singularity.d`, where the base did not bring it.
fn skeleton(recipe: &Recipe<'_>, snapshot: &mut Snapshot, oci: bool) -> Result<()> {
    let view = snapshot.view(recipe.build.store)?;
    let has = |path: &str| view.lstat(Path::new(path)).is_ok();
    let mut entries = tree::skeleton();
    entries.retain(|entry| !has(entry.path()));
    if oci {
        entries.extend(tree::of_config(&snapshot.config.config));
    } else if !has(&tree::below("runscript")) {
        let text = super::scripts::of_command(&snapshot.config.config);
        entries.push(Entry::script(tree::below("runscript"), text));
    }
    if entries.is_empty() {
        return Ok(());
    }
    tree::write(recipe.build, snapshot, "preparing /.singularity.d", &entries, &[])
}

/// The text of a section's script, with the program for it, where the caller wants it and it says something.
fn script<'s>(recipe: &Recipe<'_>, stage: &'s Stage, kind: SectionKind) -> Option<(String, &'s Section)> {
    let text = stage.text(kind).filter(|t| recipe.wants(kind) && !t.trim().is_empty())?;
    // Words beside the name count for all of the text; the last ones do.
    let section = stage.all(kind).filter(|s| !s.arguments.is_empty()).last();
    Some((text, section.or_else(|| stage.all(kind).next())?))
}

fn program(recipe: &Recipe<'_>, section: &Section) -> Result<Vec<String>> {
    Ok(interpreter(section.words()).map_err(|why| recipe.source.at(section.arguments.span, why))?)
}

/// Runs `%pre`, on the host and with the caller's rights: nobody comes here who has not asked for it.
fn pre(recipe: &Recipe<'_>, stage: &Stage) -> Result<()> {
    let Some((text, section)) = script(recipe, stage, SectionKind::Pre) else { return Ok(()) };
    let build = recipe.build;
    let scratch = Scratch::new(build.store)?;
    let file = scratch.0.join("pre");
    crate::run::write_script(&file, &text)?;
    let argv = program(recipe, section)?;
    build.note_work();
    let work = build.progress.begin("%pre", None);
    let mut tail = Vec::new();
    let ran = (|| -> std::io::Result<ExitStatus> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).arg(&file).current_dir(&recipe.found.context).stdin(Stdio::null());
        let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // Its ends of the pipe go with it.
        drop(command);
        let mut buffer = [0; 8 << 10];
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                n => {
                    build.progress.output(work, &buffer[..n]);
                    tail.extend_from_slice(&buffer[..n]);
                    tail.drain(..tail.len().saturating_sub(TAIL));
                }
            }
        }
        child.wait()
    })();
    let passed = ran.as_ref().is_ok_and(ExitStatus::success);
    build.progress.end(work, if passed { "done" } else { "failed" });
    let span = section.name.span;
    let status =
        ran.map_err(Error::io("run %pre with", &argv[0])).map_err(|e| place(recipe.source, span, e))?;
    if passed {
        return Ok(());
    }
    Err(Error::StepFailed {
        place: recipe.line(span),
        command: "%pre".into(),
        code: status.code().map_or(128, |code| code as u8),
        tail: if build.options.quiet { String::from_utf8_lossy(&tail).into_owned() } else { String::new() },
        hint: None,
    })
}

/// Runs `%setup`, which sees the host and can write the image only. What it reads of the host is not known, so it
/// runs in every build; where it writes the same as before, later sections are found.
fn setup(recipe: &Recipe<'_>, stage: &Stage, snapshot: &mut Snapshot) -> Result<()> {
    let Some((text, section)) = script(recipe, stage, SectionKind::Setup) else { return Ok(()) };
    let build = recipe.build;
    let script = HostScript {
        command: "%setup",
        place: recipe.line(section.name.span),
        interpreter: program(recipe, section)?,
        text: &text,
        env: Vec::new(),
        tools: None,
        folder: &recipe.found.context,
        network: build.options.network.clone(),
        clamp: snapshot.created.as_deref().and_then(parse_rfc3339),
    };
    build.note_work();
    let work = build.progress.begin("%setup", None);
    let made = script.run(build, snapshot, work);
    build.progress.end(work, if made.is_ok() { "done" } else { "failed" });
    let made = made.map_err(|e| place(recipe.source, section.name.span, e))?;
    let created = snapshot.created.clone().unwrap_or_else(|| build.now());
    let layer = crate::snapshot::Layer { diff_id: made.diff_id, blob: made.blob };
    snapshot.push_layer(layer, &created, "%setup".into());
    Ok(())
}

/// Runs `%post`, and what the apps install.
fn post(recipe: &Recipe<'_>, stage: &Stage, snapshot: &mut Snapshot) -> Result<()> {
    let found = script(recipe, stage, SectionKind::Post);
    let install = apps::install(stage);
    let span = stage.place(SectionKind::Post).or_else(|| stage.place(SectionKind::AppInstall));
    let span = span.unwrap_or_default();
    let Some((text, section)) = found else {
        if install.is_empty() {
            return Ok(());
        }
        return run(
            recipe,
            snapshot,
            "%appinstall",
            span,
            interpreter([].into_iter()).unwrap_or_default(),
            install,
        );
    };
    let argv = program(recipe, section)?;
    // The apps' scripts are the shell's, whatever the language of %post.
    let name = Path::new(&argv[0]).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.ends_with("sh") || install.is_empty() {
        return run(recipe, snapshot, "%post", span, argv, text + &install);
    }
    run(recipe, snapshot, "%post", span, argv, text)?;
    run(recipe, snapshot, "%appinstall", span, interpreter([].into_iter()).unwrap_or_default(), install)
}

/// What `%post` and `%test` see of the host.
fn of_caller(build: &Build<'_>, snapshot: &Snapshot) -> Result<Vec<Mount>> {
    /// glibc is the largest file that is looked at.
    const LARGEST: u64 = 64 << 20;
    let options = &build.options.definition;
    let mut mounts = options.mounts.clone();
    if let Some(lender) = &options.lender {
        let tree = Tree::Layers(snapshot.view(build.store)?);
        let Tree::Layers(view) = &tree else { return Ok(mounts) };
        let read = |path: &str| {
            let (path, _) = tree.follow(Path::new(path)).ok()??;
            isles_store::read_bounded(view.open_file(&path).ok()?, LARGEST).ok()?
        };
        mounts.extend(lender.lend(&read));
    }
    Ok(mounts)
}

/// Runs a script in the image, as a layer.
fn run(
    recipe: &Recipe<'_>,
    snapshot: &mut Snapshot,
    title: &str,
    span: Span,
    mut argv: Vec<String>,
    text: String,
) -> Result<()> {
    let build = recipe.build;
    argv.push(format!("{SCRIPTS}/post"));
    let view = snapshot.view(build.store)?;
    if view.exists(Path::new("/bin/sh")) {
        // As Apptainer has it: files are their group's, too, and the base's own environment is in force.
        let own = tree::starts_by_its_runscript(&snapshot.config.config);
        let action = if own { "exec /.singularity.d/actions/exec \"$@\"" } else { "exec \"$@\"" };
        let shell = ["/bin/sh", "-c", &format!("umask 0002\n{action}"), "post"].map(str::to_owned);
        argv = shell.into_iter().chain(argv).collect();
    }
    let mut env = snapshot.config.config.env.clone();
    for name in ["APPTAINER", "SINGULARITY"] {
        env.push(format!("{name}_ENVIRONMENT={}", tree::POST_ENVIRONMENT));
        env.push(format!("{name}_LABELS={}", tree::POST_LABELS));
    }
    let program = RunStep {
        argv,
        env,
        working_dir: "/".into(),
        network: build.options.network.clone(),
        mounts: of_caller(build, snapshot)?.into_iter().map(StepMount::Host).collect(),
        script: Some(("post".into(), text)),
        place: recipe.line(span),
        command: title.to_owned(),
        ..RunStep::default()
    };
    let key = program.key(build, snapshot)?;
    let step = crate::snapshot::Step { title, key, shortcut: None, created_by: title.to_owned() };
    build
        .add(snapshot, step, |snapshot, work| program.run(build, snapshot, work))
        .map_err(|e| place(recipe.source, span, e))
}

/// Runs `%test` in the finished image. What it writes is thrown away; that it passed is remembered.
fn test(recipe: &Recipe<'_>, stage: &Stage, snapshot: &Snapshot) -> Result<()> {
    let (build, source) = (recipe.build, recipe.source);
    if build.options.no_test || script(recipe, stage, SectionKind::Test).is_none() {
        return Ok(());
    }
    let key = snapshot.key("test", build).with_list("env", &snapshot.config.config.env).finish();
    if !build.options.no_cache && build.store.build_record(build.lease, &key)?.is_some() {
        return Ok(());
    }
    build.note_work();
    let lowers = snapshot.lowers(build.store)?;
    let scratch = Scratch::new(build.store)?;
    let (upper, work_folder) = (scratch.folder("upper")?, scratch.folder("work")?);
    let root = StepRoot::Layers { lowers: &lowers, upper: &upper, work: &work_folder };
    let mut step = Step::new(root, vec![format!("{}/actions/test", tree::ROOT)]);
    step.env = snapshot.config.config.env.clone();
    step.interpreter = isles_engine::foreign::interpreter(&snapshot.config.platform())?;
    step.network = build.options.network.clone();
    step.mounts = of_caller(build, snapshot)?;
    step.host_ca |= build.options.host_ca;
    step.shm_size = build.options.shm_size;
    step.rlimits = build.options.rlimits.clone();
    let work = build.progress.begin("%test", None);
    let ran = build.engine.run_step(&step, StepOutput { progress: build.progress, id: work });
    let passed = ran.as_ref().is_ok_and(|o| o.exit.success());
    build.progress.end(work, if passed { "done" } else { "failed" });
    let span = stage.place(SectionKind::Test).unwrap_or_default();
    let outcome = ran.map_err(|e| place(source, span, e.into()))?;
    if passed {
        let record = isles_store::BuildRecord { holds: Vec::new(), value: serde_json::Value::Bool(true) };
        return Ok(build.store.put_build_record(&key, &record)?);
    }
    Err(Error::step(recipe.line(span), "%test", &outcome, build.options.quiet))
}
