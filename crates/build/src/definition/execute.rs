//! Carries a definition file out: stage after stage, section after section.
//!
//! The order is the language's: the bootstrap, files from other stages, files from the host, `%post`. What only
//! matters when the image runs comes last, as a layer of its own, so a changed `%runscript` runs nothing again.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isles_engine::{Step, StepOutput, StepRoot};
use isles_spec::nearest::nearest;
use isles_store::{FileKind, Merged};

use super::BuildArguments;
use super::bootstrap::bootstrap;
use super::syntax::{Definition, Section, SectionKind, Stage};
use super::tree::{self, Entry};
use super::{labels, scripts};
use crate::context::Context;
use crate::copy::{Owner, Placement, copy};
use crate::dockerfile::execute::place;
use crate::error::{Error, Result};
use crate::images::DEFAULT_PATH;
use crate::position::{Diagnostic, SourceText, Span};
use crate::recipe::Found;
use crate::run::{RunStep, SCRIPTS};
use crate::select::{Selection, Wish, add_to_key, select};
use crate::snapshot::{Build, Scratch, Snapshot, commit};
use crate::stages::Stages;
use crate::tree::{Folder, Tree};
use crate::upper::{Access, Upper};

/// Files of `/.singularity.d` that are read back may have this many bytes.
const LIMIT: u64 = 1 << 20;

/// A definition file being carried out: what its stages share.
struct Recipe<'a> {
    build: &'a Build<'a>,
    definition: &'a Definition,
    source: &'a SourceText,
    context: &'a Context,
    folder: &'a Path,
    target: usize,
}

/// Reads a definition file and carries it out.
pub fn execute(
    build: &Build<'_>,
    found: &Found,
    source: Arc<SourceText>,
) -> Result<(Snapshot, Vec<Diagnostic>)> {
    let arguments = BuildArguments { values: build.options.build_args.clone(), strict: true };
    let (definition, warnings) = super::parse(source.clone(), &arguments)?;
    let target = target(build, &definition, &source)?;
    definition.stages.iter().try_for_each(|stage| refuse(&source, stage))?;
    let needed = needed(&definition, &source, target)?;
    let context = Context::open(build.store, found)?;
    let folder = found.context.as_path();
    let recipe =
        Recipe { build, definition: &definition, source: &source, context: &context, folder, target };
    let result = crate::stages::build(definition.stages.len(), &needed, &|index, stages| {
        stage(&recipe, index, stages)
    });
    context.save();
    let mut snapshot = (*result?).clone();
    snapshot.config.config.labels.extend(build.options.labels.clone());
    Ok((snapshot, warnings))
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
fn refuse(source: &SourceText, stage: &Stage) -> Result<()> {
    for section in &stage.sections {
        let (why, hint) = match section.kind {
            SectionKind::Setup | SectionKind::Pre => (
                "would run on the host with all rights of whoever builds, so it is not supported",
                "use %files to bring files in, and %post for what is done with them",
            ),
            SectionKind::AppInstall
            | SectionKind::AppLabels
            | SectionKind::AppEnv
            | SectionKind::AppHelp
            | SectionKind::AppRun
            | SectionKind::AppTest
            | SectionKind::AppStart
            | SectionKind::AppFiles => ("is not supported yet", "apps come in a later version"),
            _ => continue,
        };
        let error = source.at(section.name.span, format!("%{} {why}", section.kind.name()));
        return Err(error.with_suggestion(hint).into());
    }
    Ok(())
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
    let mut snapshot = bootstrap(recipe.build, recipe.source, stage, recipe.folder)?;
    skeleton(recipe, &mut snapshot)?;
    // Files of other stages come first, wherever their sections stand.
    for section in stage.all(SectionKind::Files) {
        if let Some(other) = stage_of(recipe.definition, recipe.source, section, index)? {
            let other = stages.get(other)?;
            let layers: Vec<_> = other.layers.iter().map(|l| l.diff_id.to_string()).collect();
            let tree = Tree::Layers(other.view(recipe.build.store)?);
            files(recipe, &mut snapshot, section, Some((&tree, &layers)))?;
        }
    }
    for section in stage.all(SectionKind::Files).filter(|s| s.from_stage().is_none()) {
        files(recipe, &mut snapshot, section, None)?;
    }
    post(recipe, stage, &mut snapshot)?;
    // Earlier stages only lend their files.
    if index == recipe.target {
        metadata(recipe, stage, &mut snapshot)?;
        test(recipe, stage, &snapshot)?;
    }
    Ok(snapshot)
}

/// Adds a layer of small files.
fn write(build: &Build<'_>, snapshot: &mut Snapshot, title: &str, entries: &[Entry]) -> Result<()> {
    let mut key = snapshot.key("files of the recipe", build);
    for entry in entries {
        match entry {
            Entry::Folder { path, mode } => {
                key.add("folder", path);
                key.add("mode", mode.to_le_bytes());
            }
            Entry::File { path, mode, text } => {
                key.add("file", path);
                key.add("mode", mode.to_le_bytes());
                key.add("text", text);
            }
            Entry::Link { path, target } => {
                key.add("link", path);
                key.add("target", target);
            }
        }
    }
    let step =
        crate::snapshot::Step { title, key: key.finish(), shortcut: None, created_by: title.to_owned() };
    build.add(snapshot, step, |snapshot, _| {
        let scratch = Scratch::new(build.store)?;
        let folder = scratch.folder("upper")?;
        let view = snapshot.view(build.store)?;
        let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
        let root = |mode| Access { mode, uid: 0, gid: 0 };
        let now = (build.seconds(), 0);
        for entry in entries {
            match entry {
                Entry::Folder { path, mode } => {
                    let path = upper.resolve(Path::new(path))?;
                    if upper.kind(&path)?.is_none() {
                        upper.directory(&path, root(*mode))?;
                    }
                }
                Entry::File { path, mode, text } => {
                    let path = upper.resolve(Path::new(path))?;
                    upper.ensure_parents(&path, root(0o755))?;
                    upper.bytes(&path, root(*mode), now, text.as_bytes())?;
                }
                Entry::Link { path, target } => {
                    let path = PathBuf::from(path.trim_start_matches('/'));
                    if upper.kind(&path)?.is_some() {
                        continue;
                    }
                    upper.symlink(&path, root(0o777), target.as_ref(), now)?;
                }
            }
        }
        commit(build, upper)
    })
}

/// `/.singularity.d`, unless the base brought it.
fn skeleton(recipe: &Recipe<'_>, snapshot: &mut Snapshot) -> Result<()> {
    if snapshot.view(recipe.build.store)?.exists(Path::new(tree::RUN)) {
        return Ok(());
    }
    write(recipe.build, snapshot, "preparing /.singularity.d", &tree::skeleton())
}

/// One line of `%files`, found.
struct Copy<'t> {
    tree: &'t Tree,
    selections: Vec<Selection>,
    destination: String,
}

fn files(
    recipe: &Recipe<'_>,
    snapshot: &mut Snapshot,
    section: &Section,
    other: Option<(&Tree, &Vec<String>)>,
) -> Result<()> {
    let (build, source) = (recipe.build, recipe.source);
    let lines = section.copies();
    if lines.is_empty() {
        return Ok(());
    }
    let title = format!("%files {}", section.arguments.text).trim_end().to_owned();
    let base_key = |kind: &str, snapshot: &Snapshot| {
        snapshot.key(kind, build).with_list(
            "destinations",
            lines.iter().map(|l| l.destination.as_ref().unwrap_or(&l.source).text.as_str()),
        )
    };
    let shortcut = other.map(|(_, layers)| {
        base_key("files of layers", snapshot)
            .with_list("source layers", layers)
            .with_list("sources", lines.iter().map(|l| l.source.text.as_str()))
            .finish()
    });
    if let Some(shortcut) = &shortcut
        && build.add_known(snapshot, &title, shortcut, &title)?
    {
        return Ok(());
    }
    // Absolute paths are the host's, others are below the folder of the recipe.
    let host = Tree::Folder(Folder::open(Path::new("/"))?);
    let mut copies = Vec::new();
    for line in &lines {
        let absolute = line.source.starts_with('/');
        let tree = match other {
            Some((tree, _)) => tree,
            None if absolute => &host,
            None => &recipe.context.tree,
        };
        let wish = Wish { follow: other.is_none(), ..Wish::default() };
        let selections = select(tree, &line.source, &wish)
            .and_then(|found| found.map_err(|nothing| nothing.into_error()))
            .map_err(|e| place(source, line.source.span, e))?;
        if selections.is_empty() {
            return Err(source.at(line.source.span, format!("'{}' fits no file", line.source.text)).into());
        }
        let destination = line.destination.as_ref().unwrap_or(&line.source);
        copies.push(Copy {
            tree,
            selections,
            destination: format!("/{}", destination.trim_start_matches('/')),
        });
    }
    let mut key = base_key("files", snapshot);
    for copy in &copies {
        let digests = if other.is_some() { &build.layer_digests } else { &recipe.context.digests };
        add_to_key(&mut key, copy.tree, digests, &copy.selections)?;
    }
    let step =
        crate::snapshot::Step { title: &title, key: key.finish(), shortcut, created_by: title.clone() };
    build
        .add(snapshot, step, |snapshot, _| {
            let scratch = Scratch::new(build.store)?;
            let folder = scratch.folder("upper")?;
            let view = snapshot.view(build.store)?;
            let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
            for one in &copies {
                let to = Placement {
                    destination: one.destination.clone(),
                    several: one.selections.len() > 1,
                    owner: Some(Owner { uid: 0, gid: 0 }),
                    chmod: None,
                    parents: false,
                    like_cp: true,
                    unpack: false,
                    ownership: build.store.ownership(),
                };
                copy(&mut upper, one.tree, &one.selections, &to)?;
            }
            commit(build, upper)
        })
        .map_err(|e| place(source, section.name.span, e))
}

/// Runs `%post`.
fn post(recipe: &Recipe<'_>, stage: &Stage, snapshot: &mut Snapshot) -> Result<()> {
    let (build, source) = (recipe.build, recipe.source);
    let Some(text) = stage.text(SectionKind::Post).filter(|t| !t.trim().is_empty()) else { return Ok(()) };
    let first = stage.all(SectionKind::Post).next();
    let arguments = first.map(|s| s.arguments.text.clone()).unwrap_or_default();
    let arguments = arguments.split('#').next().unwrap_or_default();
    let mut words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let interpreter = match words.first().map(String::as_str) {
        Some("-c") if words.len() > 1 => words.split_off(1),
        _ => vec!["/bin/sh".into(), "-ex".into()],
    };
    let mut argv = interpreter;
    argv.push(format!("{SCRIPTS}/post"));
    let mut env = snapshot.config.config.env.clone();
    for name in ["APPTAINER", "SINGULARITY"] {
        env.push(format!("{name}_ENVIRONMENT={}", tree::POST_ENVIRONMENT));
        env.push(format!("{name}_LABELS={}", tree::POST_LABELS));
    }
    let span = stage.place(SectionKind::Post).unwrap_or_default();
    let line = source.line_of(span.start);
    let program = RunStep {
        argv,
        env,
        working_dir: "/".into(),
        network: build.options.network.clone(),
        script: Some(("post".into(), text)),
        place: format!("{}:{line}", source.name()),
        command: "%post".into(),
        ..RunStep::default()
    };
    let key = program.key(build, snapshot)?;
    let step = crate::snapshot::Step { title: "%post", key, shortcut: None, created_by: "%post".into() };
    build
        .add(snapshot, step, |snapshot, work| program.run(build, snapshot, work))
        .map_err(|e| place(source, span, e))
}

/// What matters when the image runs: scripts, labels, help, and the configuration.
fn metadata(recipe: &Recipe<'_>, stage: &Stage, snapshot: &mut Snapshot) -> Result<()> {
    let view = snapshot.view(recipe.build.store)?;
    let section = |kind| stage.text(kind).filter(|t: &String| !t.trim().is_empty());
    let at = |name: &str| format!("{}/{name}", tree::ROOT);
    let has_run = view.exists(Path::new(&at("runscript")));
    let mut entries = Vec::new();
    if !snapshot.config.config.env.iter().all(|e| e == DEFAULT_PATH) {
        entries.push(Entry::script(
            at("env/10-docker2singularity.sh"),
            scripts::image_environment(&snapshot.config.config.env),
        ));
    }
    let environment = section(SectionKind::Environment);
    entries.extend(
        environment
            .as_deref()
            .map(|body| Entry::script(at("env/90-environment.sh"), format!("#!/bin/sh\n{body}"))),
    );
    let runscript = section(SectionKind::Runscript);
    match &runscript {
        Some(body) => entries.push(Entry::script(at("runscript"), scripts::of_section("", body))),
        None if has_run => {}
        None => entries.push(Entry::script(at("runscript"), scripts::of_command(&snapshot.config.config))),
    }
    for (kind, name) in [(SectionKind::Startscript, "startscript"), (SectionKind::Test, "test")] {
        entries.extend(section(kind).map(|body| Entry::script(at(name), scripts::of_section("", &body))));
    }
    entries.extend(section(SectionKind::Help).map(|body| Entry::text(at("runscript.help"), body)));
    entries.push(Entry::text(at("Singularity"), recipe.source.text()));
    let mut all = base_labels(&view);
    all.extend(snapshot.config.config.labels.clone());
    all.extend(labels::of_section(&read(&view, tree::POST_LABELS)));
    all.extend(section(SectionKind::Labels).iter().flat_map(|body| labels::of_section(body)));
    entries.push(Entry::text(at("labels.json"), labels::file(&all)));
    let post_environment = read(&view, tree::POST_ENVIRONMENT).trim() != "#!/bin/sh";
    snapshot.config.config.labels = all;
    // An image that was started by its own entrypoint still is, unless the recipe has something to say.
    if runscript.is_some() || environment.is_some() || post_environment || has_run {
        snapshot.config.config.entrypoint = Some(vec![tree::RUN.to_owned()]);
        snapshot.config.config.cmd = None;
    }
    write(recipe.build, snapshot, "writing /.singularity.d", &entries)
}

/// The labels that a base of the same kind brings.
fn base_labels(view: &Merged) -> BTreeMap<String, String> {
    let text = read(view, &format!("{}/labels.json", tree::ROOT));
    let mut labels: BTreeMap<String, String> = serde_json::from_str(&text).unwrap_or_default();
    labels.retain(|name, _| !labels::is_of_build(name));
    labels
}

/// A small file of the image; empty where there is none.
fn read(view: &Merged, path: &str) -> String {
    let path = Path::new(path);
    if !view.stat(path).is_ok_and(|s| s.kind == FileKind::File) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match view.open_file(path).map(|f| f.take(LIMIT).read_to_end(&mut bytes)) {
        Ok(Ok(_)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    }
}

/// Runs `%test` in the finished image. What it writes is thrown away; that it passed is remembered.
fn test(recipe: &Recipe<'_>, stage: &Stage, snapshot: &Snapshot) -> Result<()> {
    let (build, source) = (recipe.build, recipe.source);
    let wanted = stage.text(SectionKind::Test).is_some_and(|t| !t.trim().is_empty());
    if build.options.no_test || !wanted {
        return Ok(());
    }
    let key = snapshot.key("test", build).with_list("env", &snapshot.config.config.env).finish();
    if !build.options.no_cache && build.store.build_record(&build.lease, &key)?.is_some() {
        return Ok(());
    }
    build.note_work();
    let lowers = snapshot.lowers(build.store)?;
    let scratch = Scratch::new(build.store)?;
    let (upper, work_folder) = (scratch.folder("upper")?, scratch.folder("work")?);
    let root = StepRoot::Layers { lowers: &lowers, upper: &upper, work: &work_folder };
    let mut step = Step::new(root, vec![format!("{}/actions/test", tree::ROOT)]);
    step.env = snapshot.config.config.env.clone();
    step.network = build.options.network.clone();
    step.host_ca |= build.options.host_ca;
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
    let place = format!("{}:{}", source.name(), source.line_of(span.start));
    Err(Error::step(place, "%test", &outcome, build.options.quiet))
}
