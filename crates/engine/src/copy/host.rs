//! The side of a copy that is on the host, by the rules of docker-cp(1).

use std::ffi::OsStr;
use std::fs;
use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use isles_spec::Error as Spelling;
use isles_store::{Held, NewOwners, Placing};
use rustix::fs::{Mode, OFlags};

use super::{Thing, notes};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Whether a path names what is in a folder rather than the folder: its last part is a dot.
pub fn means_contents(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn folder(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::file("open", path, e))
}

/// Opens what is to be copied into a container.
pub fn open(path: &Path, follow: bool) -> Result<(Held, Thing)> {
    let look = |e| Error::file("look at", path, e);
    let through = follow || ends_with_slash(path) || means_contents(path);
    let found = if through { fs::metadata(path) } else { path.symlink_metadata() }.map_err(look)?;
    let real =
        if through { path.canonicalize().map_err(look)? } else { std::path::absolute(path).map_err(look)? };
    let named = path.file_name().map(OsStr::to_owned);
    let name = match named {
        // A link that is followed keeps its name.
        Some(name) => name,
        // `..` is called as what it leads to.
        None => path.canonicalize().map_err(look)?.file_name().map(OsStr::to_owned).unwrap_or_default(),
    };
    let thing =
        Thing { name: name.as_bytes().to_vec(), is_dir: found.is_dir(), contents: means_contents(path) };
    if found.is_dir() {
        return Ok((Held::Dir(folder(&real, OFlags::RDONLY)?), thing));
    }
    if ends_with_slash(path) {
        return Err(Spelling::new(format!("not a directory: {}", path.display()))
            .with_hint("leave out the slash")
            .into());
    }
    let parent = folder(real.parent().unwrap_or(Path::new("/")), OFlags::PATH)?;
    let name = real.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    Ok((Held::Leaf { parent, name }, thing))
}

/// Where something from a container goes: a folder that is there, a name in it, and whether a folder of that name stays as
/// it is.
fn place(thing: &Thing, to: &Path) -> Result<(PathBuf, Vec<u8>, bool)> {
    let refuse = |what: &str, hint: &str| {
        Error::from(Spelling::new(format!("{what}: {}", to.display())).with_hint(hint))
    };
    match fs::metadata(to) {
        Ok(found) if found.is_dir() => Ok(match thing.is_dir && (thing.contents || thing.name.is_empty()) {
            true => (to.to_owned(), Vec::new(), true),
            false => (to.to_owned(), thing.name.clone(), false),
        }),
        Ok(_) if thing.is_dir => {
            Err(refuse("cannot copy a directory to a file", "name a folder, or a place where nothing is yet"))
        }
        // The kernel says of a file with a slash behind it that it is no folder; see below.
        Ok(_) => {
            let real = to.canonicalize().map_err(|e| Error::file("look at", to, e))?;
            let name = real.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
            Ok((real.parent().unwrap_or(Path::new("/")).to_owned(), name, false))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if ends_with_slash(to) && !thing.is_dir {
                return Err(refuse(
                    "the destination directory must exist",
                    "leave out the slash to give the file this name",
                ));
            }
            let name = to
                .file_name()
                .ok_or_else(|| refuse("the destination has no name", "name a file or a folder"))?;
            let parent =
                to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok((parent.to_owned(), name.as_bytes().to_vec(), false))
        }
        Err(e) => Err(Error::file("copy to", to, e)),
    }
}

/// Unpacks what comes from a container. Links in it, and links that it finds, lead nowhere outside of the folder that it
/// goes to (CVE-2018-15664, moby/moby#52948).
pub fn receive(
    input: impl BufRead,
    thing: &Thing,
    to: &Path,
    keep_owners: bool,
    engine: &Engine,
) -> Result<Vec<String>> {
    let (into, prefix, keeps_top) = place(thing, to)?;
    let root = folder(&into, OFlags::RDONLY)?;
    let owners = if keep_owners { NewOwners::Archive } else { NewOwners::Own };
    let placing = Placing { prefix, replaces_top: true, keeps_top, owners };
    let store = engine.store();
    let skipped = isles_store::extract(input, root, &placing, store.ownership(), store.limits())?;
    Ok(notes(skipped.into_iter().map(|skipped| match skipped.path.as_str() {
        "" => skipped.what,
        path => format!("{path}: {}", skipped.what),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_docker_cp() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| PathBuf::from(format!("{}/{path}", dir.path().display()));
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let thing = |is_dir, contents| Thing { name: b"src".to_vec(), is_dir, contents };
        for (is_dir, contents, to, expected) in [
            (false, false, "new", Ok(("", "new", false))),
            (false, false, "new/", Err("must exist")),
            (false, false, "file", Ok(("", "file", false))),
            (false, false, "file/", Err("Not a directory")),
            (false, false, "link", Ok(("", "file", false))),
            (false, false, "folder", Ok(("folder", "src", false))),
            (false, false, "folder/", Ok(("folder/", "src", false))),
            (true, false, "new", Ok(("", "new", false))),
            (true, false, "new/", Ok(("", "new", false))),
            (true, true, "new", Ok(("", "new", false))),
            (true, false, "file", Err("directory to a file")),
            (true, false, "folder", Ok(("folder", "src", false))),
            (true, true, "folder", Ok(("folder", "", true))),
        ] {
            let found = place(&thing(is_dir, contents), &at(to));
            match (expected, found) {
                (Ok((folder, name, keeps)), Ok(found)) => {
                    let real = |path: &Path| path.canonicalize().unwrap();
                    assert_eq!(
                        (real(&found.0), &found.1[..], found.2),
                        (real(&at(folder)), name.as_bytes(), keeps),
                        "{to}"
                    );
                }
                (Err(word), Err(e)) => assert!(e.to_string().contains(word), "{to}: {e}"),
                (expected, found) => panic!("{to}: {expected:?}, {found:?}"),
            }
        }
        for (path, contents) in [(".", true), ("a/.", true), ("a/..", false), ("a", false), ("a.", false)] {
            assert_eq!(means_contents(Path::new(path)), contents, "{path}");
        }
    }
}
