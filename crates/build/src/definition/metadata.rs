//! What a recipe leaves in the image for those who run it: scripts, environment, labels, help, itself; and the
//! configuration that follows from them.

use std::io::Read;
use std::path::Path;

use isles_spec::time::parse_rfc3339;
use isles_store::{FileKind, Merged};

use super::apps;
use super::execute::Recipe;
use super::labels::{self, Labels, Origin};
use super::scripts;
use super::syntax::{SectionKind, Stage};
use super::tree::{Entry, POST_ENVIRONMENT, POST_LABELS, RUN, below, starts_by_its_runscript, write};
use crate::error::Result;
use crate::snapshot::Snapshot;

/// Files of `/.singularity.d` that are read back may have this many bytes.
const LIMIT: u64 = 1 << 20;
const EMPTY: &str = "#!/bin/sh";

/// Writes it all as one layer, and changes the configuration.
pub fn metadata(recipe: &Recipe<'_>, stage: &Stage, snapshot: &mut Snapshot) -> Result<()> {
    let view = snapshot.view(recipe.build.store)?;
    let options = &recipe.build.options.definition;
    let section = |kind| stage.text(kind).filter(|t| options.sections.has(kind) && !t.trim().is_empty());
    let words = |kind| stage.all(kind).last().map(|s| s.arguments.text.clone()).unwrap_or_default();
    let mut entries = Vec::new();
    let environment = section(SectionKind::Environment);
    if let Some(body) = &environment {
        // That of the base counts before it, and so does what %post has written there.
        let before = read(&view, &below("env/90-environment.sh"));
        let before = if before.trim().is_empty() { format!("{EMPTY}\n") } else { before };
        let end = if before.ends_with('\n') { "" } else { "\n" };
        entries.push(Entry::script(below("env/90-environment.sh"), format!("{before}{end}{body}")));
    }
    for (kind, name) in [
        (SectionKind::Runscript, "runscript"),
        (SectionKind::Startscript, "startscript"),
        (SectionKind::Test, "test"),
    ] {
        let script = section(kind).map(|body| scripts::of_section(&words(kind), &body));
        entries.extend(script.map(|text| Entry::script(below(name), text)));
    }
    let help = section(SectionKind::Help);
    let help_of_base = view.exists(Path::new(&below("runscript.help")));
    if let Some(text) = &help {
        if help_of_base && !options.force {
            recipe.warn(stage.place(SectionKind::Help), "the base has a help text, which stays", FORCE);
        } else {
            entries.push(Entry::text(below("runscript.help"), text.clone()));
        }
    }
    entries.extend(history(&view));
    entries.push(Entry::text(below("Singularity"), recipe.source.text()));
    entries.extend(apps::metadata(stage, &read(&view, &below(apps::EXPORTS))));
    let own = labels(recipe, stage, snapshot, &view);
    let origin = Origin {
        header: match options.update.is_some() && !options.force {
            true => Labels::new(),
            false => stage.header.iter().map(|f| (f.key.text.clone(), f.value.text.clone())).collect(),
        },
        built: built(recipe, snapshot),
    };
    let mut all = labels::of_build(&origin, &snapshot.config.platform(), help.is_some() || help_of_base);
    all.extend(own.clone());
    entries.push(Entry::text(below("labels.json"), labels::file(&all)));
    let config = &mut snapshot.config.config;
    config.labels = own;
    // An image that was started by its own entrypoint still is, unless the recipe has something to say.
    let said = !matches!(read(&view, POST_ENVIRONMENT).trim(), "" | EMPTY)
        || environment.is_some()
        || section(SectionKind::Runscript).is_some()
        || !apps::names(stage).is_empty();
    if said && !starts_by_its_runscript(config) {
        config.entrypoint = Some(vec![RUN.to_owned()]);
        config.cmd = None;
    }
    write(recipe.build, snapshot, "writing /.singularity.d", &entries, &[POST_LABELS])
}

const FORCE: &str = "--force puts that of the recipe in its place";

/// The labels of the image: those of the base, of `%post` and of `%labels`. Nothing that is there is replaced unless
/// the caller says so.
fn labels(recipe: &Recipe<'_>, stage: &Stage, snapshot: &Snapshot, view: &Merged) -> Labels {
    let options = &recipe.build.options.definition;
    let mut out: Labels = serde_json::from_str(&read(view, &below("labels.json"))).unwrap_or_default();
    out.extend(snapshot.config.config.labels.clone());
    out.retain(|name, _| !labels::is_of_build(name));
    out.extend(labels::of_section(&read(view, POST_LABELS)));
    if !options.sections.has(SectionKind::Labels) {
        return out;
    }
    let mut new = Labels::new();
    for section in stage.all(SectionKind::Labels) {
        new.extend(labels::of_section(&section.body));
    }
    for (name, value) in new {
        match out.get(&name) {
            Some(old) if *old != value && !options.force => {
                let message =
                    format!("the image has the label '{}' already, which stays", name.escape_default());
                recipe.warn(stage.place(SectionKind::Labels), &message, FORCE);
            }
            _ => drop(out.insert(name, value)),
        }
    }
    out
}

/// When the image was built: when the last layer below was made, so that the same layers give the same image.
fn built(recipe: &Recipe<'_>, snapshot: &Snapshot) -> i64 {
    let made = || snapshot.created.as_deref().and_then(parse_rfc3339);
    recipe.build.epoch.or_else(made).unwrap_or_else(|| recipe.build.seconds())
}

/// The recipe of the base goes where the recipes of earlier builds are.
fn history(view: &Merged) -> Option<Entry> {
    let text = read(view, &below("Singularity"));
    if text.is_empty() {
        return None;
    }
    let folder = below("bootstrap_history");
    let number = view.read_dir(Path::new(&folder)).map_or(0, |entries| entries.len());
    Some(Entry::text(format!("{folder}/Apptainer{number}"), text))
}

/// A small file of the image; empty where there is none.
pub fn read(view: &Merged, path: &str) -> String {
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
