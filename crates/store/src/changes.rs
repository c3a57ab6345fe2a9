//! What a container wrote, name by name: its upper directory beside the layers below (overlayfs.rst).

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, statat};

use crate::error::At;
use crate::merged::{FileKind, Merged, Walkable, from_raw};
use crate::{Ownership, Result, xattr};

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Changed,
    Added,
    Deleted,
}

/// Walks the upper directory of a container over the view of its layers. Paths of `exclude`, and all below them, are left
/// out. Sorted by path; folders count as changed where something in them is, or their mode or owner.
pub fn changes(
    upper: &Path,
    lowers: &Merged,
    ownership: Ownership,
    exclude: &[PathBuf],
) -> Result<Vec<(PathBuf, Change)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(upper, flags, Mode::empty()).at("open", upper)?;
    let exclude = exclude.iter().map(PathBuf::as_path).collect();
    let mut walk = Walk { lowers, ownership, exclude, out: Vec::new() };
    walk.folder(&root, Path::new(""), true)?;
    walk.out.sort();
    Ok(walk.out.into_iter().map(|(path, change)| (Path::new("/").join(path), change)).collect())
}

struct Walk<'a> {
    lowers: &'a Merged,
    ownership: Ownership,
    exclude: BTreeSet<&'a Path>,
    out: Vec<(PathBuf, Change)>,
}

impl Walk<'_> {
    /// The names of a folder; `below` says whether the folder of that path in the layers shows through.
    fn folder(&mut self, folder: &OwnedFd, path: &Path, below: bool) -> Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(folder).at("read", path)? {
            let name = entry.at("read", path)?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                names.insert(name);
            }
        }
        for name in &names {
            let child = path.join(std::ffi::OsStr::from_bytes(name));
            if !self.exclude.contains(child.as_path()) {
                self.entry(folder, name, child, below)?;
            }
        }
        Ok(names)
    }

    fn entry(&mut self, folder: &OwnedFd, name: &[u8], path: PathBuf, below: bool) -> Result<()> {
        let raw = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A container that runs goes on meanwhile.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            raw => raw.at("look at", &path)?,
        };
        let kind = FileType::from_raw_mode(raw.st_mode);
        let lower = if below { self.lowers.lstat(&path).ok() } else { None };
        if kind == FileType::CharacterDevice && raw.st_rdev == 0 {
            if lower.is_some() {
                self.out.push((path, Change::Deleted));
            }
            return Ok(());
        }
        if kind != FileType::Directory {
            let change = if lower.is_some() { Change::Changed } else { Change::Added };
            self.out.push((path, change));
            return Ok(());
        }
        let opened = Walkable::open(folder, name, raw.st_mode).at("open", &path)?;
        let attributes = xattr::list_fd(&opened.fd).at("read the attributes of", &path)?;
        let lower = match lower {
            Some(lower) if lower.kind == FileKind::Dir => lower,
            // A folder in the place of a file is a change of that name.
            other => {
                let change = if other.is_some() { Change::Changed } else { Change::Added };
                self.out.push((path.clone(), change));
                return self.folder(&opened.fd, &path, false).map(drop);
            }
        };
        let opaque =
            attributes.iter().any(|(name, value)| name.ends_with(b".overlay.opaque") && value == b"y");
        let before = self.out.len();
        let names = self.folder(&opened.fd, &path, !opaque)?;
        if opaque {
            let hidden = self.lowers.read_dir(&path)?.into_iter().map(|entry| entry.name.into_vec());
            for name in hidden.filter(|name| !names.contains(name)) {
                self.out.push((path.join(std::ffi::OsStr::from_bytes(&name)), Change::Deleted));
            }
        }
        let owner = attributes.iter().find(|(name, _)| name == xattr::OWNER.as_bytes());
        let own = from_raw(&raw, owner.and_then(|(_, value)| xattr::parse_owner(value)), self.ownership);
        if self.out.len() > before || (own.mode, own.uid, own.gid) != (lower.mode, lower.uid, lower.gid) {
            self.out.push((path, Change::Changed));
        }
        Ok(())
    }
}

/// Of these places, at which something was to be mounted, those that a container's upper directory has only because of
/// that: folders with nothing else in them and empty files, with the folders above that were made for them.
pub fn left_by_mounts(upper: &Path, lowers: &Merged, places: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut stubs = BTreeSet::new();
    for place in places {
        // Where the place is a link, or below one, it is what that leads to.
        let real = place.ancestors().find_map(|above| {
            let rest = place.strip_prefix(above).ok()?;
            lowers.canonical(above).ok().map(|real| real.join(rest))
        });
        let Some(real) = real else { continue };
        let missing = real.ancestors().filter(|path| !path.as_os_str().is_empty());
        stubs.extend(missing.take_while(|path| lowers.lstat(path).is_err()).map(Path::to_owned));
    }
    let alone = Merged::open(&[upper.to_owned()], Ownership::Root)?;
    let mut out: BTreeSet<PathBuf> = BTreeSet::new();
    // Deeper ones first, so that a folder is looked at when all below it is known.
    for path in stubs.iter().rev() {
        let Ok(found) = alone.lstat(path) else { continue };
        let empty = match found.kind {
            FileKind::Dir => alone.read_dir(path)?.iter().all(|entry| out.contains(&path.join(&entry.name))),
            FileKind::File => found.size == 0,
            _ => false,
        };
        if empty {
            out.insert(path.clone());
        }
    }
    Ok(out.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_a_container_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        for path in ["same", "etc", "var/gone"] {
            fs::create_dir_all(lower.join(path)).unwrap();
        }
        for path in ["same/x", "etc/passwd", "etc/old", "kind"] {
            fs::write(lower.join(path), "x").unwrap();
        }
        for path in ["same", "etc", "new/deep", "kind", "proc", "var"] {
            fs::create_dir_all(upper.join(path)).unwrap();
        }
        for path in ["etc/passwd", "new/deep/f", "etc/hosts"] {
            fs::write(upper.join(path), "").unwrap();
        }
        let whiteout = |path: &str| {
            let (mode, kind) = (Mode::empty(), FileType::CharacterDevice);
            rustix::fs::mknodat(rustix::fs::CWD, upper.join(path), kind, mode, 0)
        };
        // Also without root, since Linux 5.8.
        if whiteout("etc/old").is_err() || whiteout("var/gone").is_err() || whiteout("never").is_err() {
            println!("skip: whiteouts cannot be made here");
            return;
        }
        let view = Merged::open(&[lower], Ownership::Single).unwrap();
        let places = ["/proc", "/etc/hosts", "/new/deep", "/etc"].map(PathBuf::from);
        let left = left_by_mounts(&upper, &view, &places).unwrap();
        assert_eq!(left, ["etc/hosts", "proc"].map(PathBuf::from));
        let found = changes(&upper, &view, Ownership::Single, &left).unwrap();
        let found: Vec<String> =
            found.iter().map(|(path, change)| format!("{change:?} {}", path.display())).collect();
        let expected = [
            "Changed /etc",
            "Deleted /etc/old",
            "Changed /etc/passwd",
            "Changed /kind",
            "Added /new",
            "Added /new/deep",
            "Added /new/deep/f",
            "Changed /var",
            "Deleted /var/gone",
        ];
        assert_eq!(found, expected);
    }
}
