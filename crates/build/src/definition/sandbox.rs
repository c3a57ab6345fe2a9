//! An image as a folder: what `--sandbox` and `--update` write.
//!
//! The tree is written beside its place and renamed, so a build that is interrupted leaves the old one as it was.

use std::io;
use std::path::Path;

use super::options::DefinitionOptions;
use crate::error::{Error, Result};
use crate::output::files;
use crate::snapshot::{Build, Snapshot};

/// Whether a folder may be written: before anything is done.
pub fn check(folder: &Path, options: &DefinitionOptions) -> Result<()> {
    let refused = |why: &str, hint: &str| -> Result<()> {
        Err(isles_spec::Error::new(format!("'{}' {why}", folder.display())).with_hint(hint).into())
    };
    match std::fs::symlink_metadata(folder) {
        Ok(_) if folder == Path::new("/") => refused("is no sandbox", "name a folder of its own"),
        Ok(found) if !found.is_dir() => {
            refused("is there, and is no folder", "remove it, or name another one")
        }
        Ok(_) if options.update.as_deref() == Some(folder) => Ok(()),
        Ok(_) if !options.force => refused("is there already", "--force writes it anew, --update adds to it"),
        // Nobody means these, whatever they say.
        Ok(_) if is_where_we_are(folder) => {
            refused("holds your home or the current folder, so it is not replaced", "name another one")
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", folder)(e)),
    }
}

fn is_where_we_are(folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    let here = std::env::current_dir().ok();
    let own = [isles_engine::home(), here].into_iter().flatten().filter_map(|path| path.canonicalize().ok());
    own.into_iter().any(|path| path.starts_with(&folder))
}

/// Writes the tree of a stage to a folder, in the place of what is there.
pub fn write(build: &Build<'_>, snapshot: &Snapshot, folder: &Path) -> Result<()> {
    let folder = std::path::absolute(folder).map_err(Error::io("find", folder))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = |what: &str| folder.with_file_name(format!(".{name}.{what}-{}", isles_store::random_name()));
    let new = beside("new");
    let work = build.progress.begin(&format!("writing '{}'", folder.display()), None);
    let written = (|| {
        std::fs::create_dir(&new).map_err(Error::io("create", &new))?;
        files::write_whole(&snapshot.view(build.store)?, &new, build.store.ownership())?;
        if !folder.exists() {
            return std::fs::rename(&new, &folder).map_err(Error::io("create", &folder));
        }
        let old = beside("old");
        std::fs::rename(&folder, &old).map_err(Error::io("replace", &folder))?;
        std::fs::rename(&new, &folder).map_err(Error::io("replace", &folder))?;
        Ok(isles_store::remove_tree(&old)?)
    })();
    if written.is_err() {
        let _ = isles_store::remove_tree(&new);
    }
    build.progress.end(work, if written.is_ok() { "done" } else { "failed" });
    written
}
