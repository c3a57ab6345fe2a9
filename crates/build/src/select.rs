//! Which files a COPY, an ADD or `%files` takes, and their key: the digest of exactly those files.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use isles_spec::nearest::nearest;
use isles_store::FileKind;

use crate::digests::Digests;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::pattern::{Glob, Ignore, has_wildcard};
use crate::tree::{Meta, Tree, names};

/// Directories deeper than this are taken for a loop of links.
const DEPTH: usize = 400;

/// How files are looked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Left out of the whole source (`.dockerignore`).
    pub ignore: Ignore,
    /// Left out of each chosen directory (`--exclude`).
    pub exclude: Ignore,
    /// `**` reaches over directories, and the way to a file is kept (`--parents`).
    pub parents: bool,
    /// Links inside directories are followed (cp -L), rather than copied.
    pub follow: bool,
}

/// One file or directory that was chosen, with all below it.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The last component of what was asked for.
    pub name: OsString,
    /// Where it is below the source, without links and, with `--parents`, behind the pivot.
    pub way: PathBuf,
    pub directory: bool,
    /// Itself first, with an empty path, then what is below it, parents before children.
    pub items: Vec<Item>,
}

/// One file to copy.
#[derive(Debug, Clone)]
pub struct Item {
    /// Below the chosen directory.
    pub path: PathBuf,
    /// In the source, without links.
    pub source: PathBuf,
    pub meta: Meta,
    /// The target of a symbolic link.
    pub link: Option<OsString>,
}

/// Why nothing was chosen.
#[derive(Debug)]
pub struct Nothing {
    pub message: String,
    pub hint: Option<String>,
}

/// What came of a word.
pub type Selected = std::result::Result<Vec<Selection>, Nothing>;

/// The files that a word of COPY means.
pub fn select(tree: &Tree, word: &str, wish: &Wish) -> Result<Selected> {
    // With --parents the part before `/./` is not kept.
    let (pivot, word) = match word.split_once("/./").filter(|_| wish.parents) {
        Some((pivot, rest)) => (pivot, rest),
        None => ("", word),
    };
    let wildcard = has_wildcard(word);
    let several = has_wildcard(pivot);
    let mut starts: Vec<PathBuf> = Vec::new();
    if several {
        let plain = Wish { parents: false, ..wish.clone() };
        let mut places = Places { found: &mut starts, seen: HashSet::new() };
        expand(tree, PathBuf::new(), &words(pivot), &plain, &mut places, 0)?;
        starts.sort();
    } else {
        starts.push(names(Path::new(pivot)).iter().collect());
    }
    // Where something is, and how many components of that are not kept.
    let mut places: Vec<(PathBuf, usize)> = Vec::new();
    for start in starts {
        if !wildcard {
            let kept = start.components().count();
            places.push((start.join(word.trim_start_matches('/')), kept));
            continue;
        }
        let Some((from, _)) = tree.follow(&start)? else {
            if several {
                continue;
            }
            return Ok(Err(missing(tree, &start)?));
        };
        let (kept, mut found) = (from.components().count(), Vec::new());
        expand(tree, from, &words(word), wish, &mut Places { found: &mut found, seen: HashSet::new() }, 0)?;
        places.extend(found.into_iter().map(|place| (place, kept)));
    }
    places.sort();
    places.dedup();
    let mut out = Vec::new();
    for (place, kept) in places {
        match chosen(tree, &place, kept, wish)? {
            Ok(selection) => out.push(selection),
            Err(_) if wildcard || several => {}
            Err(nothing) => return Ok(Err(nothing)),
        }
    }
    Ok(Ok(out))
}

/// The components of a pattern.
fn words(pattern: &str) -> Vec<&str> {
    pattern.split('/').filter(|w| !matches!(*w, "" | ".")).collect()
}

/// Where a pattern leads.
struct Places<'p> {
    found: &'p mut Vec<PathBuf>,
    /// Directories with what is left of the pattern: several `**` come to the same place in many ways.
    seen: HashSet<(PathBuf, usize)>,
}

/// Follows a pattern component by component, so that only directories that may match are read.
fn expand(
    tree: &Tree,
    here: PathBuf,
    parts: &[&str],
    wish: &Wish,
    places: &mut Places<'_>,
    depth: usize,
) -> Result<()> {
    let Some((part, rest)) = parts.split_first() else {
        places.found.push(here);
        return Ok(());
    };
    if depth > DEPTH || !places.seen.insert((here.clone(), parts.len())) {
        return Ok(());
    }
    if !has_wildcard(part) {
        let next = if *part == ".." {
            here.parent().map(Path::to_owned).unwrap_or_default()
        } else {
            here.join(part)
        };
        return match tree.lstat(&next)? {
            Some(meta) if rest.is_empty() || meta.kind == FileKind::Dir => {
                expand(tree, next, rest, wish, places, depth + 1)
            }
            _ => Ok(()),
        };
    }
    if tree.lstat(&here)?.is_none_or(|m| m.kind != FileKind::Dir) {
        return Ok(());
    }
    let deep = wish.parents && *part == "**";
    if deep {
        // No directory at all is one of the possibilities.
        expand(tree, here.clone(), rest, wish, places, depth + 1)?;
    }
    let glob = Glob::new(part, false)
        .map_err(|why| isles_spec::Error::new(format!("invalid pattern '{part}': {why}")))?;
    for (name, meta) in tree.list(&here)? {
        let next = here.join(&name);
        if wish.ignore.is_left_out(&next) && !wish.ignore.may_return() {
            continue;
        }
        let directory = meta.kind == FileKind::Dir;
        if deep {
            if directory {
                expand(tree, next, parts, wish, places, depth + 1)?;
            } else if rest.is_empty() {
                places.found.push(next);
            }
        } else if (rest.is_empty() || directory) && glob.matches(&name.to_string_lossy()) {
            expand(tree, next, rest, wish, places, depth + 1)?;
        }
    }
    Ok(())
}

/// What is at one place, with everything below it.
fn chosen(
    tree: &Tree,
    place: &Path,
    pivot: usize,
    wish: &Wish,
) -> Result<std::result::Result<Selection, Nothing>> {
    let Some((source, meta)) = tree.follow(place)? else { return Ok(Err(missing(tree, place)?)) };
    let name = place.file_name().unwrap_or(OsStr::new("")).to_owned();
    let directory = meta.kind == FileKind::Dir;
    let ignored = wish.ignore.is_left_out(&source);
    let excluded = !directory && wish.exclude.is_left_out(Path::new(&name));
    let mut selection = Selection {
        way: names(place).into_iter().skip(pivot).filter(|n| n != "..").collect(),
        name,
        directory,
        items: Vec::new(),
    };
    if meta.kind == FileKind::Socket {
        return Ok(Err(Nothing {
            message: format!("'{}' is a socket, which an image cannot have", place.display()),
            hint: None,
        }));
    }
    if !excluded && (directory || !ignored) {
        selection.items.push(Item {
            path: PathBuf::new(),
            source: source.clone(),
            meta: meta.clone(),
            link: None,
        });
    }
    if directory {
        below(tree, &source, meta.inode, wish, &mut selection.items)?;
    }
    // Of a context that is left out as a whole, nothing is copied; that is no mistake in the recipe.
    let whole = source.as_os_str().is_empty();
    let nothing = if directory { ignored && !whole && selection.items.len() == 1 } else { ignored };
    if nothing {
        return Ok(Err(Nothing {
            message: format!("'{}' is left out by .dockerignore", place.display()),
            hint: Some("take it out of that file, or bring it back with a line that begins with '!'".into()),
        }));
    }
    Ok(Ok(selection))
}

/// A directory that is being read.
struct Reading {
    entries: std::vec::IntoIter<(OsString, Meta)>,
    source: PathBuf,
    path: PathBuf,
    inode: (u64, u64),
    /// It is left out, unless something below it is in again: how many items there were before it.
    before: Option<usize>,
}

/// Everything below a directory.
fn below(tree: &Tree, top: &Path, inode: (u64, u64), wish: &Wish, items: &mut Vec<Item>) -> Result<()> {
    let read = |source: PathBuf, path: PathBuf, inode, before| -> Result<Reading> {
        Ok(Reading { entries: tree.list(&source)?.into_iter(), source, path, inode, before })
    };
    let returns = wish.ignore.may_return() || wish.exclude.may_return();
    let mut reading = vec![read(top.to_owned(), PathBuf::new(), inode, None)?];
    while let Some(here) = reading.last_mut() {
        let Some((name, mut meta)) = here.entries.next() else {
            if let Some(before) = here.before.filter(|before| items.len() == before + 1) {
                items.truncate(before);
            }
            reading.pop();
            continue;
        };
        let mut from = here.source.join(&name);
        let to = here.path.join(&name);
        let left_out = wish.ignore.is_left_out(&from) || wish.exclude.is_left_out(&to);
        let mut link = None;
        if meta.kind == FileKind::Symlink && !left_out {
            if wish.follow {
                (from, meta) = tree.follow(&from)?.ok_or_else(|| leads_nowhere(&tree.place(&from)))?;
            } else {
                link = Some(tree.readlink(&from)?);
            }
        }
        match meta.kind {
            // An archive has no entry for a socket, so an image cannot have one.
            FileKind::Socket => {}
            FileKind::Dir if left_out && !returns => {}
            FileKind::Dir => {
                let inode = meta.inode;
                if reading.len() > DEPTH || (wish.follow && reading.iter().any(|r| r.inode == inode)) {
                    return Err(endless(&tree.place(&from)));
                }
                let before = left_out.then_some(items.len());
                items.push(Item { path: to.clone(), source: from.clone(), meta, link: None });
                reading.push(read(from, to, inode, before)?);
            }
            _ if left_out => {}
            _ => items.push(Item { path: to, source: from, meta, link }),
        }
    }
    Ok(())
}

fn leads_nowhere(place: &Path) -> Error {
    isles_spec::Error::new(format!("the link '{}' leads nowhere", place.display()))
        .with_hint(
            "links are followed below the folder of the recipe; name other files by their absolute path",
        )
        .into()
}

fn endless(place: &Path) -> Error {
    isles_spec::Error::new(format!(
        "'{}' is more than {DEPTH} directories deep, or leads to itself",
        place.display()
    ))
    .with_hint("does a symbolic link lead back to a directory above it?")
    .into()
}

/// What to say where nothing is.
fn missing(tree: &Tree, place: &Path) -> Result<Nothing> {
    let mut hint = None;
    let parent = place.parent().unwrap_or(Path::new(""));
    if let (Some(name), Some((dir, meta))) = (place.file_name(), tree.follow(parent)?) {
        if tree.lstat(&dir.join(name))?.is_some_and(|m| m.kind == FileKind::Symlink) {
            hint =
                Some("it is a symbolic link to something that is not there, or that is outside".to_owned());
        } else if meta.kind == FileKind::Dir {
            let there: Vec<String> =
                tree.list(&dir)?.into_iter().map(|(n, _)| n.to_string_lossy().into_owned()).collect();
            hint = nearest(&name.to_string_lossy(), there.iter().map(String::as_str))
                .map(|near| format!("did you mean '{}'?", parent.join(near).display()));
        }
    }
    let hint = hint.or_else(|| match tree {
        Tree::Folder(_) => Some(
            "paths begin at that folder, and nothing outside of it is copied; an earlier step's files are had with --from"
                .to_owned(),
        ),
        Tree::Layers(_) => None,
    });
    Ok(Nothing { message: format!("'{}' is not in {}", place.display(), tree.describe()), hint })
}

/// Adds to a key what the chosen files are: paths, kinds, modes, owners, attributes and data; not their times.
pub fn add_to_key(key: &mut Key, tree: &Tree, digests: &Digests, selections: &[Selection]) -> Result<()> {
    let read = |item: &&Item| item.link.is_none() && item.meta.kind == FileKind::File;
    let files: Vec<(&Path, &Meta)> = selections
        .iter()
        .flat_map(|s| s.items.iter().filter(read))
        .map(|item| (item.source.as_path(), &item.meta))
        .collect();
    let mut contents = digests.contents(tree, &files).into_iter();
    for selection in selections {
        key.add("name", selection.name.as_bytes());
        key.add("way", selection.way.as_os_str().as_bytes());
        // Names of one file are told apart from files of the same content.
        let mut inodes = std::collections::HashMap::new();
        for (number, item) in selection.items.iter().enumerate() {
            let meta = &item.meta;
            key.add("path", item.path.as_os_str().as_bytes());
            key.add("meta", format!("{:?} {:o} {}:{}", meta.kind, meta.mode, meta.uid, meta.gid));
            match (&item.link, meta.kind) {
                (Some(link), _) => key.add("link", link.as_bytes()),
                (None, FileKind::File | FileKind::Dir) => {
                    if meta.kind == FileKind::File && meta.links > 1 {
                        let first = *inodes.entry(meta.inode).or_insert(number);
                        key.add("same", (first as u64).to_le_bytes());
                    }
                    let known = if meta.kind == FileKind::File { contents.next().flatten() } else { None };
                    let content = match known {
                        Some(content) => content,
                        None => digests.content(tree, &item.source, meta)?,
                    };
                    key.add("content", content);
                }
                (None, _) => key.add("device", format!("{}:{}", meta.device.0, meta.device.1)),
            }
        }
        key.add("end", selection.items.len().to_le_bytes());
    }
    Ok(())
}

impl Nothing {
    /// As an error without a place.
    pub fn into_error(self) -> Error {
        let error = isles_spec::Error::new(self.message);
        match self.hint {
            Some(hint) => error.with_hint(hint).into(),
            None => error.into(),
        }
    }
}
