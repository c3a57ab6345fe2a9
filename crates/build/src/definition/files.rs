//! `%files` and `%appfiles`: copies from the host with the rules of `cp -fLr`, or from another stage.

use std::path::Path;

use super::apps;
use super::execute::Recipe;
use super::syntax::{FileCopy, Section, without_escapes};
use crate::copy::{Owner, Placement, copy};
use crate::dockerfile::execute::place;
use crate::error::{Error, Result};
use crate::pattern::has_wildcard;
use crate::select::{Selection, Wish, add_to_key, select};
use crate::snapshot::{Scratch, Snapshot, Step, commit};
use crate::tree::{Folder, Tree};
use crate::upper::Upper;

/// A stage that files come from, and its layers.
pub struct Other {
    pub tree: Tree,
    pub layers: Vec<String>,
}

/// One copy, with what was found for it.
struct Copy<'t> {
    tree: &'t Tree,
    selections: Vec<Selection>,
    destination: String,
}

/// Copies what the lines of a section name.
pub fn files(
    recipe: &Recipe<'_>,
    snapshot: &mut Snapshot,
    section: &Section,
    other: Option<&Other>,
) -> Result<()> {
    let (build, source) = (recipe.build, recipe.source);
    let lines = section.copies();
    if lines.is_empty() {
        return Ok(());
    }
    let title = format!("%{} {}", section.kind.name(), section.arguments.text).trim_end().to_owned();
    let destinations: Vec<Option<String>> = lines.iter().map(|line| destination(section, line)).collect();
    let base_key = |kind: &str, snapshot: &Snapshot| {
        let destinations = destinations.iter().map(|d| d.as_deref().unwrap_or_default());
        snapshot.key(kind, build).with_list("destinations", destinations)
    };
    let shortcut = other.map(|other| {
        base_key("files of layers", snapshot)
            .with_list("source layers", &other.layers)
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
    for (line, destination) in lines.iter().zip(destinations.iter().cloned()) {
        let tree = match other {
            Some(other) => &other.tree,
            None if line.source.starts_with('/') => &host,
            None => &recipe.context.tree,
        };
        copies.extend(
            found(tree, line, destination, other.is_none())
                .map_err(|e| place(source, line.source.span, e))?,
        );
    }
    let mut key = base_key("files", snapshot);
    for copy in &copies {
        let digests = if other.is_some() { &build.layer_digests } else { &recipe.context.digests };
        add_to_key(&mut key, copy.tree, digests, &copy.selections)?;
    }
    let step = Step { title: &title, key: key.finish(), shortcut, created_by: title.clone() };
    build
        .add(snapshot, step, |snapshot, _| {
            let scratch = Scratch::new(build.store)?;
            let folder = scratch.folder("upper")?;
            let view = snapshot.view(build.store)?;
            let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
            for one in &copies {
                let to = Placement {
                    several: one.selections.len() > 1,
                    owner: Some(Owner { uid: 0, gid: 0 }),
                    like_cp: true,
                    ..Placement::plain(&one.destination, build.store.ownership())
                };
                copy(&mut upper, one.tree, &one.selections, &to)?;
            }
            commit(build, upper)
        })
        .map_err(|e| place(source, section.name.span, e))
}

/// Where a line copies to; `None` where each file keeps its path. Apps have a root of their own.
fn destination(section: &Section, line: &FileCopy) -> Option<String> {
    let named = line.destination.as_ref().map(|d| d.text.as_str());
    match section.app() {
        Some(app) => {
            let own = without_escapes(&line.source);
            Some(format!("{}/{}", apps::root(app), named.unwrap_or(&own).trim_start_matches('/')))
        }
        None => named.map(|to| format!("/{}", to.trim_start_matches('/'))),
    }
}

fn found<'t>(
    tree: &'t Tree,
    line: &FileCopy,
    destination: Option<String>,
    from_host: bool,
) -> Result<Vec<Copy<'t>>> {
    let wish = Wish { follow: from_host, ..Wish::default() };
    // The shell writes `[!a]` for what the other patterns write `[^a]`.
    let word = line.source.replace("[!", "[^");
    let mut selections = select(tree, &word, &wish)?.map_err(|nothing| {
        let error = nothing.into_error();
        match &error {
            Error::Request(e) if line.source.contains(['~', '$']) => isles_spec::Error::new(e.to_string())
                .with_hint("no variable and no '~' is replaced in a path; write it in full")
                .into(),
            _ => error,
        }
    })?;
    selections.retain(|selection| !is_hidden(&word, &selection.way));
    if selections.is_empty() {
        return Err(isles_spec::Error::new(format!("'{}' fits no file", line.source.text)).into());
    }
    let Some(destination) = destination else {
        let own = |selection: Selection| {
            let path = if has_wildcard(&word) {
                selection.way.to_string_lossy().into_owned()
            } else {
                word.trim_end_matches('/').to_owned()
            };
            let destination = format!("/{}", path.trim_start_matches('/'));
            Copy { tree, selections: vec![selection], destination }
        };
        return Ok(selections.into_iter().map(own).collect());
    };
    Ok(vec![Copy { tree, selections, destination }])
}

/// As the shell has it, a name that begins with a dot fits only a pattern that does.
fn is_hidden(pattern: &str, way: &Path) -> bool {
    let parts = pattern.split('/').filter(|part| !matches!(*part, "" | "." | ".."));
    parts.zip(way.iter()).any(|(part, name)| {
        has_wildcard(part) && !part.starts_with(['.', '\\']) && name.as_encoded_bytes().starts_with(b".")
    })
}
