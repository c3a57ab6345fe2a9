//! The build context: a folder of the host, what `.dockerignore` leaves out of it, and what its files contain.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use isles_store::Store;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::digests::Digests;
use crate::error::{Error, Result};
use crate::pattern::Ignore;
use crate::position::SourceText;
use crate::recipe::{Found, Language};
use crate::tree::{Folder, Tree};

/// A `.dockerignore` may have this many bytes.
const LIMIT: u64 = 1 << 20;

/// A build context.
#[derive(Debug)]
pub struct Context {
    pub tree: Tree,
    pub digests: Digests,
    pub ignore: Ignore,
    /// It will be there for the next build too.
    stays: bool,
}

impl Context {
    /// Opens the context of a recipe. Nothing in it is read but `.dockerignore`.
    pub fn open(store: &Store, found: &Found) -> Result<Context> {
        let folder = &found.context;
        let real = folder.canonicalize().map_err(Error::io("open the build context", folder))?;
        let ignore = match found.language {
            Language::Dockerfile => ignore_of(found)?,
            Language::Definition => Ignore::default(),
        };
        let tree = Tree::Folder(Folder::open(folder)?);
        let stays = !real.starts_with(store.root());
        Ok(Context { tree, digests: Digests::of(store, &real), ignore, stays })
    }

    /// Opens a folder that has a name of its own. What its `.dockerignore` names is not in it.
    pub fn named(store: &Store, folder: &Path) -> Result<Context> {
        let real = folder.canonicalize().map_err(Error::io("open the named context", folder))?;
        let ignore = ignore_in([folder.join(".dockerignore")], &|path| File::open(path))?;
        let tree = Tree::Folder(Folder::open(folder)?);
        Ok(Context { tree, digests: Digests::of(store, &real), ignore, stays: true })
    }

    /// Keeps what was learned of the files.
    pub fn save(&self) {
        if self.stays {
            self.digests.save();
        }
    }
}

/// `<recipe>.dockerignore` goes before `.dockerignore` of the context.
pub fn ignore_of(recipe: &Found) -> Result<Ignore> {
    let file = match recipe.fetched {
        true => recipe.context.join(&recipe.file),
        false => recipe.file.clone(),
    };
    let mut own = file.into_os_string();
    own.push(".dockerignore");
    // A recipe that is in no file has no neighbour either.
    let own = (recipe.fetched || recipe.text.is_none()).then(|| PathBuf::from(own));
    let files = own.into_iter().chain([recipe.context.join(".dockerignore")]);
    ignore_in(files, &|path| open(path, recipe))
}

/// What the first file that exists leaves out.
fn ignore_in(
    files: impl IntoIterator<Item = PathBuf>,
    open: &dyn Fn(&Path) -> io::Result<File>,
) -> Result<Ignore> {
    for path in files {
        let read = open(&path).and_then(|file| isles_store::read_bounded(file, LIMIT));
        let text = match read {
            Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Ok(None) => {
                let message =
                    format!("'{}' has more than the {LIMIT} bytes that are allowed", path.display());
                return Err(isles_spec::Error::new(message).into());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        return Ignore::read(&text).map_err(|(line, why)| {
            let source = SourceText::new(path.display().to_string(), text.as_bytes());
            source.at(source.line_span(line), why).into()
        });
    }
    Ok(Ignore::default())
}

/// Opens a file of patterns, and nothing that could keep us waiting. In a context that was fetched no link leads
/// out of it.
fn open(path: &Path, recipe: &Found) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = match (recipe.fetched, path.strip_prefix(&recipe.context)) {
        (true, Ok(below)) => {
            let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            openat2(File::open(&recipe.context)?, below, flags, Mode::empty(), how)?
        }
        _ => rustix::fs::open(path, flags, Mode::empty())?,
    };
    let file = File::from(opened);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}
