//! Build contexts that are not a folder of the host: a repository of git, a file behind a URL, a stream. An archive
//! is unpacked, and what is none is the recipe itself.
//!
//! Their files are strange to us: the recipe in them is read below their folder, whatever links say.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use isles_engine::Engine;
use isles_registry::Client;
use isles_spec::{Error as SpecError, Platform, Progress};
use isles_store::Merged;

use crate::archive::{Packed, is_archive, newest, unpack};
use crate::attest::Dependency;
use crate::copy::{Owner, Placement};
use crate::error::{Error, Result};
use crate::fetch::{self, Remote};
use crate::git::{self, Git, Repository};
use crate::options::BuildOptions;
use crate::recipe::{self, Found, MAX_RECIPE};
use crate::snapshot::{Build, Scratch};
use crate::tree::{Folder, Tree};
use crate::upper::Upper;

/// A stream may have this many bytes.
const LIMIT: u64 = 64 << 30;

/// A recipe and the files around it, which go when this is dropped.
pub struct Fetched {
    pub found: Found,
    _scratch: Scratch,
}

/// Which recipe is meant.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'w> {
    /// The one that the context has under a usual name.
    Usual,
    /// By its path in the context.
    Named(&'w Path),
    /// Its text, which comes from elsewhere.
    Text(&'w [u8]),
}

/// Whether a text names a build context that has to be fetched.
pub fn is_elsewhere(text: &str) -> bool {
    let remote =
        text.starts_with("http://") || text.starts_with("https://") || git::parse_context(text).is_some();
    remote && !Path::new(text).exists()
}

/// Fetches a build context.
///
/// # Errors
/// It cannot be fetched, or has no recipe.
pub fn fetch(
    engine: &Engine,
    client: &Client,
    what: &str,
    recipe: Wanted<'_>,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Fetched> {
    let repository = git::parse_context(what).transpose().map_err(SpecError::new)?;
    let options = lending(options, repository.as_ref());
    let lease = engine.store().lease()?;
    let build = Build::new(engine, client, &options, &lease, Platform::host(), progress);
    match repository {
        Some(repository) => of_repository(&build, repository, recipe),
        None => of_url(&build, what, recipe),
    }
}

/// Fetches the files of a named context. They go when the second part is dropped.
///
/// # Errors
/// They cannot be fetched.
pub fn files(build: &Build<'_>, what: &str) -> Result<(PathBuf, Scratch)> {
    let Some(repository) = git::parse_context(what).transpose().map_err(SpecError::new)? else {
        let remote = Remote::find(build, what, None)?;
        build.depends_on(Dependency::file(&remote));
        let (stream, _) = remote.open(build)?;
        let scratch = Scratch::new(build.store)?;
        if let Some(folder) = unpacked(build.store, &scratch, what, &|| fetch::again(&stream, what))? {
            return Ok((folder, scratch));
        }
        // What is no archive is the only file.
        let folder = scratch.folder("context")?;
        let path = folder.join(&remote.name);
        let mut stream = fetch::again(&stream, what)?;
        let copied = File::create(&path).and_then(|mut to| std::io::copy(&mut stream, &mut to));
        copied.map_err(Error::io("write", &path))?;
        return Ok((folder, scratch));
    };
    let options = lending(build.options, Some(&repository));
    let (engine, client, platform) = (build.engine, build.client, build.platform.clone());
    let lender = Build::new(engine, client, &options, build.lease, platform, build.progress);
    let (folder, _, scratch, dependency) = checkout(&lender, repository)?;
    build.depends_on(dependency);
    Ok((folder, scratch))
}

/// Who names a repository lends their own keys to fetch it, as docker's client does.
fn lending(options: &BuildOptions, repository: Option<&Repository>) -> BuildOptions {
    let mut options = options.clone();
    if repository.is_some_and(|r| r.ssh)
        && options.ssh.is_empty()
        && let Some(socket) = std::env::var_os("SSH_AUTH_SOCK")
    {
        options.ssh.insert("default".into(), vec![socket.into()]);
    }
    options
}

/// The build context that comes from `input`: an archive of it, or the recipe alone.
pub fn read(engine: &Engine, input: impl Read, recipe: Wanted<'_>) -> Result<Fetched> {
    const NAME: &str = "standard input";
    let store = engine.store();
    let (_, stream) = store.add_download(NAME, &mut { input }, LIMIT)?;
    let scratch = Scratch::new(store)?;
    let open = || fetch::again(&stream, NAME);
    match unpacked(store, &scratch, NAME, &open)? {
        Some(folder) => in_folder(scratch, &folder, NAME, recipe, newest(&open)),
        None => alone(scratch, stream, NAME, None),
    }
}

fn of_repository(build: &Build<'_>, repository: Repository, recipe: Wanted<'_>) -> Result<Fetched> {
    let shown = repository.shown();
    let (folder, made, scratch, _) = checkout(build, repository)?;
    in_folder(scratch, &folder, &shown, recipe, Some(made))
}

/// The files of a repository, and when they were made.
fn checkout(build: &Build<'_>, mut repository: Repository) -> Result<(PathBuf, i64, Scratch, Dependency)> {
    let keep =
        build.options.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").map(|v| v != "0" && v != "false");
    repository.keep_git_dir = repository.keep_git_dir.or(keep);
    let scratch = Scratch::new(build.store)?;
    let work = build.progress.begin(&format!("fetching {}", repository.shown()), None);
    let checkout = Git::of_caller(build, &repository).and_then(|git| {
        let found = git.find()?;
        Ok((git.checkout(&found, &scratch.0)?, Dependency::repository(&repository, &found)))
    });
    build.progress.end(work, if checkout.is_ok() { "done" } else { "failed" });
    let ((folder, made), dependency) = checkout?;
    Ok((folder, made, scratch, dependency))
}

fn of_url(build: &Build<'_>, url: &str, recipe: Wanted<'_>) -> Result<Fetched> {
    let remote = Remote::find(build, url, None)?;
    let (stream, mtime) = remote.open(build)?;
    let scratch = Scratch::new(build.store)?;
    let open = || fetch::again(&stream, url);
    let said = Some(mtime).filter(|m| *m != 0);
    match unpacked(build.store, &scratch, url, &open)? {
        Some(folder) => in_folder(scratch, &folder, url, recipe, said.or_else(|| newest(&open))),
        None => alone(scratch, stream, &remote.name, said),
    }
}

/// The folder of an archive's files, if it is one.
fn unpacked(
    store: &isles_store::Store,
    scratch: &Scratch,
    name: &str,
    open: &dyn Fn() -> Result<File>,
) -> Result<Option<PathBuf>> {
    let packed = Packed { place: Path::new(name), open };
    if !is_archive(&packed)? {
        return Ok(None);
    }
    let folder = scratch.folder("context")?;
    let nothing = Merged::open(&[], store.ownership())?;
    let mut upper = Upper::new(&folder, &nothing, store.ownership())?;
    let plain = Placement::plain("/", store.ownership());
    let to = Placement { owner: Some(Owner { uid: 0, gid: 0 }), unpack: true, ..plain };
    unpack(&mut upper, &packed, Path::new(""), &to)?;
    upper.finish().map(Some)
}

/// A recipe and nothing beside it.
fn alone(scratch: Scratch, mut stream: File, name: &str, made: Option<i64>) -> Result<Fetched> {
    stream.rewind().map_err(Error::io("read", name))?;
    let context = scratch.folder("context")?;
    let found = recipe::read_from(stream, name, &context)?;
    Ok(Fetched { found: Found { fetched: true, made, ..found }, _scratch: scratch })
}

/// The recipe in a fetched folder, by its name there.
fn in_folder(
    scratch: Scratch,
    folder: &Path,
    what: &str,
    recipe: Wanted<'_>,
    made: Option<i64>,
) -> Result<Fetched> {
    let name = match recipe {
        Wanted::Named(file) => file.to_owned(),
        Wanted::Text(text) => {
            let found = recipe::read_from(text, "standard input", folder)?;
            return Ok(Fetched { found: Found { fetched: true, made, ..found }, _scratch: scratch });
        }
        Wanted::Usual => {
            // The folder is ours, and says nothing to whoever named the context.
            let named = |e: Error| -> Error {
                let error = SpecError::new(e.to_string().replace(&folder.display().to_string(), what));
                match isles_spec::Hint::hint(&e) {
                    Some(hint) => error.with_hint(hint).into(),
                    None => error.into(),
                }
            };
            let found = recipe::find(folder).map_err(named)?.file;
            found.strip_prefix(folder).map(Path::to_owned).unwrap_or(found)
        }
    };
    let tree = Tree::Folder(Folder::open(folder)?);
    let place = tree.follow(&name)?.map(|(place, _)| place).ok_or_else(|| {
        SpecError::new(format!("the build context has no recipe '{}'", name.display()))
            .with_hint("-f names the recipe by its path in the context")
    })?;
    let bytes =
        isles_store::read_bounded(tree.open_file(&place)?, MAX_RECIPE).map_err(Error::io("read", &name))?;
    let bytes = bytes
        .ok_or_else(|| SpecError::new(format!("'{}' is larger than a recipe may be", name.display())))?;
    let read = recipe::read_from(&bytes[..], "recipe", folder)?;
    let language = recipe::language_of(&name).unwrap_or(read.language);
    Ok(Fetched { found: Found { file: name, language, fetched: true, made, ..read }, _scratch: scratch })
}
