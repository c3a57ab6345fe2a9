//! `--fix-perms`: whoever owns a file of an image may read and write it, and enter its folders. Images from elsewhere
//! have folders that only root can look into, which are in the way when such a tree is copied or removed.

use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged};

use crate::error::{Error, Result};
use crate::snapshot::{Build, Scratch, Snapshot, Step, commit};
use crate::tree::Xattrs;
use crate::upper::{Access, Upper};

/// Adds a layer with the files that have too few permissions.
pub fn fix(build: &Build<'_>, snapshot: &mut Snapshot) -> Result<()> {
    let key = snapshot.key("permissions", build).finish();
    let title = "fixing permissions";
    let step = Step { title, key, shortcut: None, created_by: title.to_owned() };
    build.add(snapshot, step, |snapshot, _| {
        let scratch = Scratch::new(build.store)?;
        let folder = scratch.folder("upper")?;
        let view = snapshot.view(build.store)?;
        let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let stat = view.lstat(&path)?;
            let wanted = match stat.kind {
                FileKind::Dir => 0o700,
                FileKind::File => 0o600,
                _ => continue,
            };
            if stat.mode & wanted != wanted {
                let access = Access { mode: stat.mode | wanted, uid: stat.uid, gid: stat.gid };
                again(&mut upper, &view, &path, stat.kind, access, stat.mtime)?;
            }
            if stat.kind == FileKind::Dir {
                todo.extend(view.read_dir(&path)?.into_iter().map(|entry| path.join(entry.name)));
            }
        }
        commit(build, upper)
    })
}

/// Writes a file or a folder once more.
fn again(
    upper: &mut Upper<'_>,
    view: &Merged,
    path: &Path,
    kind: FileKind,
    access: Access,
    mtime: (i64, u32),
) -> Result<()> {
    let xattrs: Xattrs = view.xattrs(path)?.into_iter().collect();
    if kind == FileKind::Dir {
        return upper.copied_directory(path, access, &xattrs, mtime);
    }
    let mut source = view.open_file(path)?;
    upper.file(path, access, &xattrs, mtime, &mut |file| {
        std::io::copy(&mut source, file).map(drop).map_err(Error::io("copy", path))
    })
}
