//! An image as a folder: what `--sandbox` and `--update` write.
//!
//! The tree is written beside its place and renamed, so a build that is interrupted leaves the old one as it was.
//! Every file is made through a descriptor of the folder that it is in; nothing in the image leads outside.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged, Ownership, Stat};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, linkat, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::options::DefinitionOptions;
use crate::error::{Error, Result};
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
        tree(&snapshot.view(build.store)?, &new, build.store.ownership())?;
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

/// A folder that is being written, and what it gets when nothing more goes into it.
struct Open {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
    names: std::vec::IntoIter<std::ffi::OsString>,
}

/// Writes all files of a view below a folder that exists.
fn tree(view: &Merged, to: &Path, ownership: Ownership) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(to, flags, Mode::empty()).map_err(Error::io("open", to))?;
    // The first name of files that have several.
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let open = |fd, path: PathBuf| -> Result<Open> {
        let names: Vec<_> = view.read_dir(&path)?.into_iter().map(|entry| entry.name).collect();
        Ok(Open { fd, stat: view.lstat(&path)?, path, names: names.into_iter() })
    };
    let top = root.try_clone().map_err(Error::io("open", to))?;
    let mut stack = vec![open(top, PathBuf::new())?];
    while let Some(here) = stack.last_mut() {
        let Some(name) = here.names.next() else {
            if let Some(done) = stack.pop() {
                let shown = to.join(&done.path);
                attributes(view, &done.path, &done.fd, &done.stat, ownership, &shown)?;
            }
            continue;
        };
        let path = here.path.join(&name);
        let shown = to.join(&path);
        let stat = view.lstat(&path)?;
        match stat.kind {
            FileKind::Dir => {
                mkdirat(&here.fd, &name, Mode::RWXU).map_err(Error::io("create", &shown))?;
                let fd = openat(&here.fd, &name, flags, Mode::empty()).map_err(Error::io("open", &shown))?;
                stack.push(open(fd, path)?);
                continue;
            }
            FileKind::File => {
                if stat.links > 1 {
                    if let Some(first) = links.get(&stat.inode) {
                        linkat(&root, first, &here.fd, &name, AtFlags::empty())
                            .map_err(Error::io("link", &shown))?;
                        continue;
                    }
                    links.insert(stat.inode, path.clone());
                }
                let create =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&here.fd, &name, create, Mode::RUSR | Mode::WUSR)
                    .map_err(Error::io("create", &shown))?;
                let mut file = File::from(fd);
                io::copy(&mut view.open_file(&path)?, &mut file).map_err(Error::io("write", &shown))?;
                attributes(view, &path, &OwnedFd::from(file), &stat, ownership, &shown)?;
            }
            FileKind::Symlink => {
                symlinkat(view.readlink(&path)?, &here.fd, &name).map_err(Error::io("create", &shown))?;
                leaf(&here.fd, &name, &stat, ownership, &shown)?;
            }
            FileKind::Fifo | FileKind::CharDevice | FileKind::BlockDevice => {
                let (kind, number) = match stat.kind {
                    FileKind::CharDevice => (FileType::CharacterDevice, stat.device),
                    FileKind::BlockDevice => (FileType::BlockDevice, stat.device),
                    _ => (FileType::Fifo, (0, 0)),
                };
                let device = rustix::fs::makedev(number.0, number.1);
                match mknodat(&here.fd, &name, kind, mode(&stat, ownership), device) {
                    Ok(()) => leaf(&here.fd, &name, &stat, ownership, &shown)?,
                    // Only root can make devices, and every runtime brings its own.
                    Err(Errno::PERM) if kind != FileType::Fifo => {}
                    Err(e) => return Err(Error::io("create", &shown)(e)),
                }
            }
            FileKind::Socket => {}
        }
    }
    Ok(())
}

/// Owner, attributes, mode and time of something that is open.
fn attributes(
    view: &Merged,
    path: &Path,
    fd: &OwnedFd,
    stat: &Stat,
    ownership: Ownership,
    shown: &Path,
) -> Result<()> {
    if ownership.keeps_owners() {
        fchown(fd, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))
            .map_err(Error::io("set the owner of", shown))?;
    }
    for (name, value) in view.xattrs(path)? {
        match fsetxattr(fd, name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(Error::io("set an attribute of", shown)(e)),
        }
    }
    fchmod(fd, mode(stat, ownership)).map_err(Error::io("set the mode of", shown))?;
    rustix::fs::futimens(fd, &times(stat)).map_err(Error::io("set the time of", shown))
}

/// The mode of something. Where all files become the caller's, none runs with the rights of its owner.
fn mode(stat: &Stat, ownership: Ownership) -> Mode {
    Mode::from(match (ownership.keeps_owners(), stat.kind) {
        (true, _) => stat.mode,
        (false, FileKind::Dir) => stat.mode & 0o1777,
        (false, _) => stat.mode & 0o777,
    })
}

/// Owner and time of what cannot be opened.
fn leaf(
    parent: impl AsFd,
    name: &std::ffi::OsStr,
    stat: &Stat,
    ownership: Ownership,
    shown: &Path,
) -> Result<()> {
    if ownership.keeps_owners() {
        let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
        chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::io("set the owner of", shown))?;
    }
    utimensat(&parent, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(Error::io("set the time of", shown))
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.mtime.0, tv_nsec: stat.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nothing_runs_as_its_new_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, to) = (dir.path().join("layer"), dir.path().join("to"));
        std::fs::create_dir_all(layer.join("d")).unwrap();
        std::fs::write(layer.join("f"), "x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for (name, bits) in [("f", 0o6755), ("d", 0o7775)] {
            std::fs::set_permissions(layer.join(name), std::fs::Permissions::from_mode(bits)).unwrap();
            assert_eq!(mode(&layer.join(name)), bits);
        }
        let view = Merged::open(&[layer], Ownership::Single).unwrap();
        std::fs::create_dir(&to).unwrap();
        tree(&view, &to, Ownership::Single).unwrap();
        assert_eq!((mode(&to.join("f")), mode(&to.join("d"))), (0o755, 0o1775));
    }
}
