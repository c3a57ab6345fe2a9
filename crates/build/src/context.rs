//! The build context: a folder of the host, what `.dockerignore` leaves out of it, and what its files contain.

use std::path::PathBuf;

use isles_store::Store;

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
        Ok(Context { tree: Tree::Folder(Folder::open(folder)?), digests: Digests::of(store, &real), ignore })
    }

    /// Keeps what was learned of the files.
    pub fn save(&self) {
        self.digests.save();
    }
}

/// `<recipe>.dockerignore` goes before `.dockerignore` of the context.
fn ignore_of(recipe: &Found) -> Result<Ignore> {
    let mut own = recipe.file.as_os_str().to_owned();
    own.push(".dockerignore");
    // A recipe that is in no file has no neighbour either.
    let own = recipe.text.is_none().then(|| PathBuf::from(own));
    for path in own.into_iter().chain([recipe.context.join(".dockerignore")]) {
        let read = std::fs::File::open(&path).and_then(|file| isles_store::read_bounded(file, LIMIT));
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
