//! The side of a copy that is in the container: all of it happens in the child, and every path is one of the container's.

use std::io::{BufReader, BufWriter, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use isles_spec::Error as Spelling;
use isles_store::{Held, Limits, Merged, NewOwners, Ownership, Placing};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::{BUFFER, Incoming, PathStat, Report, notes};
use crate::error::{Error, Result};
use crate::user::User;
use crate::view::View;

/// As the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;

/// Something in the container.
pub struct Found {
    pub held: Held,
    pub stat: PathStat,
    /// The path that leads there, with no link at its end.
    pub path: Vec<u8>,
}

/// Opens a path with the container's root as `/`.
fn open(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN means that a rename elsewhere made the answer doubtful.
        match openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The folder above and the last name of a path; a path that ends with `/`, `.` or `..` has none.
fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    match name {
        b"" | b"." | b".." => (path, None),
        name => (parent, Some(name)),
    }
}

/// Finds what a path leads to. With `follow` a link at its end stands for what it leads to.
pub fn find(root: &OwnedFd, path: &[u8], follow: bool) -> Result<Found> {
    let found = resolve(root, path, follow).map_err(|e| failed("find", path, e))?;
    let (Held::Dir(folder) | Held::Leaf { parent: folder, .. }) = &found.held;
    refuse_kernels(folder, path)?;
    Ok(found)
}

/// What the kernel shows in /proc and /sys are no files of the container's.
fn refuse_kernels(folder: &OwnedFd, path: &[u8]) -> Result<()> {
    if !isles_store::is_kernels(folder) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(path);
    Err(Spelling::new(format!("'{shown}' in the container is the kernel's, and no file"))
        .with_hint("a program in the container can read it: `isles exec CONTAINER cat …`")
        .into())
}

fn resolve(root: &OwnedFd, path: &[u8], follow: bool) -> rustix::io::Result<Found> {
    let readable = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut path = path.to_vec();
    let mut links = 0;
    loop {
        let (above, Some(name)) = split(&path) else {
            let folder = open(root, &path, readable)?;
            let raw = rustix::fs::fstat(&folder)?;
            let trimmed: Vec<&[u8]> =
                path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
            let name = trimmed.last().filter(|name| **name != b"..").copied().unwrap_or_default();
            return Ok(Found {
                stat: stat(name, &raw, None),
                held: Held::Dir(folder),
                path: trimmed.join(&b'/'),
            });
        };
        let parent = open(root, above, OFlags::PATH | OFlags::DIRECTORY)?;
        let raw = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(raw.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(&parent, name, Vec::new())?.into_bytes();
                if !follow {
                    let stat = stat(name, &raw, Some(PathBuf::from(std::ffi::OsString::from_vec(target))));
                    return Ok(Found { stat, held: Held::Leaf { parent, name: name.to_vec() }, path });
                }
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP);
                }
                path = if target.starts_with(b"/") { target } else { [above, b"/", &target[..]].concat() };
            }
            FileType::Directory => {
                // Of the name in that folder: neither a link that took its place, nor another folder.
                let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let flags = readable | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let folder = openat2(&parent, name, flags, Mode::empty(), how)?;
                return Ok(Found { stat: stat(name, &raw, None), held: Held::Dir(folder), path });
            }
            _ => {
                let stat = stat(name, &raw, None);
                return Ok(Found { stat, held: Held::Leaf { parent, name: name.to_vec() }, path });
            }
        }
    }
}

// On other processors some of these fields are narrower.
#[allow(clippy::unnecessary_cast)]
fn stat(name: &[u8], raw: &Stat, link_target: Option<PathBuf>) -> PathStat {
    PathStat {
        name: String::from_utf8_lossy(name).into_owned(),
        size: raw.st_size as u64,
        mode: raw.st_mode,
        mtime: (raw.st_mtime as i64, raw.st_mtime_nsec as u32),
        link_target,
    }
}

/// Writes what was found as an archive, in which it has this name; where none is given, its own.
pub fn send(found: &Found, name: Option<&[u8]>, ownership: Ownership, data: &UnixStream) -> Result<Report> {
    let own = if found.stat.name.is_empty() { "." } else { &found.stat.name };
    let name = name.unwrap_or(own.as_bytes());
    let (mut out, left_out) =
        isles_store::write_archive(&found.held, name, ownership, BufWriter::with_capacity(BUFFER, data))?;
    out.flush().map_err(|e| Error::system("send the archive", e))?;
    drop(out);
    drop(data.shutdown(Shutdown::Write));
    let names = left_out.iter().map(|path| String::from_utf8_lossy(path).into_owned());
    Ok(Report::Done { left_out: notes(names) })
}

/// Decides where something goes, by docker-cp(1).
pub fn place(root: &OwnedFd, incoming: &Incoming, ownership: Ownership) -> Result<(Placing, PathStat)> {
    let shown = String::from_utf8_lossy(&incoming.to).into_owned();
    let refuse =
        |what: &str, hint: &str| Error::from(Spelling::new(format!("{what}: {shown}")).with_hint(hint));
    let wants_folder = split(&incoming.to).1.is_none();
    let owners = match &incoming.owner {
        Some(spec) => {
            let view = View::from(Merged::open(&[PathBuf::from("/")], ownership)?);
            let user = User::resolve(spec, &[], &view)?;
            NewOwners::All(user.uid, user.gid)
        }
        None => NewOwners::Archive,
    };
    let placing = |path: Vec<u8>, replaces_top: bool, keeps_top: bool| {
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
        Placing { prefix: parts.join(&b'/'), replaces_top, keeps_top, owners }
    };
    // As docker does, and unlike `find`: the last link is followed, and a slash behind a file is looked at afterwards.
    let trimmed = if wants_folder && incoming.to.ends_with(b"/") {
        incoming.to.iter().rposition(|b| *b != b'/').map_or(&incoming.to[..], |last| &incoming.to[..=last])
    } else {
        &incoming.to[..]
    };
    let found = match resolve(root, trimmed, true) {
        Ok(found) => {
            let (Held::Dir(folder) | Held::Leaf { parent: folder, .. }) = &found.held;
            refuse_kernels(folder, &incoming.to)?;
            Some(found)
        }
        Err(Errno::NOENT) => None,
        Err(e) => return Err(failed("find", &incoming.to, e)),
    };
    match (&incoming.what, found) {
        (None, Some(found)) if found.stat.is_dir() => Ok((placing(found.path, false, true), found.stat)),
        (None, _) => Err(refuse(
            "the destination of an archive must be a folder that is there",
            "make it first, for example with `isles exec`",
        )),
        (Some(thing), Some(found)) if found.stat.is_dir() => {
            if thing.is_dir && (thing.contents || thing.name.is_empty()) {
                return Ok((placing(found.path, true, true), found.stat));
            }
            let path = [&found.path[..], b"/", &thing.name].concat();
            Ok((placing(path, true, false), found.stat))
        }
        (Some(thing), Some(_)) if thing.is_dir => {
            Err(refuse("cannot copy a directory to a file", "name a folder, or a place where nothing is yet"))
        }
        (Some(_), Some(_)) if wants_folder => {
            Err(refuse("not a directory", "leave out the slash to replace the file"))
        }
        (Some(_), Some(found)) => Ok((placing(found.path, true, false), found.stat)),
        (Some(thing), None) if wants_folder && !thing.is_dir => Err(refuse(
            "the destination directory must exist",
            "leave out the slash to give the file this name",
        )),
        (Some(_), None) => {
            let (above, name) = split(trimmed);
            let parent =
                open(root, above, OFlags::PATH | OFlags::DIRECTORY).map_err(|e| failed("find", above, e))?;
            refuse_kernels(&parent, &incoming.to)?;
            let raw = rustix::fs::fstat(&parent).map_err(|e| failed("look at", above, e))?;
            Ok((placing(trimmed.to_vec(), true, false), stat(name.unwrap_or_default(), &raw, None)))
        }
    }
}

/// Unpacks the archive that comes.
pub fn take(
    root: OwnedFd,
    placing: &Placing,
    ownership: Ownership,
    limits: &Limits,
    data: &UnixStream,
) -> Result<Report> {
    let mut input = BufReader::with_capacity(BUFFER, data);
    let skipped = isles_store::extract(&mut input, root, placing, ownership, limits)?;
    // Whoever sends has not ended before all of it is read.
    std::io::copy(&mut input, &mut std::io::sink()).map_err(|e| Error::system("read the archive", e))?;
    let names = skipped.into_iter().map(|skipped| match skipped.path.as_str() {
        "" => skipped.what,
        path => format!("{path}: {}", skipped.what),
    });
    Ok(Report::Done { left_out: notes(names) })
}

fn failed(doing: &'static str, path: &[u8], errno: Errno) -> Error {
    let shown = String::from_utf8_lossy(path);
    let why = match errno {
        Errno::LOOP => "it goes through a link of /proc, or through too many links".to_owned(),
        other => std::io::Error::from(other).to_string(),
    };
    Spelling::new(format!("cannot {doing} '{shown}' in the container: {why}"))
        .with_hint("paths begin at the root of the container")
        .into()
}
