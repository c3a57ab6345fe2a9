//! Whose the files of a mount are: mounts on which two users change places, and files that are given to one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use isles_sandbox::identity::Identity;
use isles_sandbox::setup::UserNs;
use isles_spec::{IdMapping, Owners};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, openat, statat};

use crate::error::{Error, Result};

/// The maps of an idmapped mount, users and groups.
pub type Maps = (Vec<IdMapping>, Vec<IdMapping>);

/// Directories deeper than this would use up the descriptors of an ordinary process.
const DEPTH: usize = 400;

/// Does for `source` what `wish` says, for a container whose user has these IDs. Returns the maps that its mount needs.
pub fn of_mount(
    wish: &Owners,
    source: &Path,
    (uid, gid): (u32, u32),
    namespace: &UserNs,
    identity: Identity,
) -> Result<Option<Maps>> {
    // With one ID whatever the container writes is the caller's, and the other way round.
    if *wish == Owners::Kept || identity == Identity::Single {
        return match wish {
            Owners::Mapped { .. } => Err(needs_root(source)),
            _ => Ok(None),
        };
    }
    match wish {
        Owners::Kept => Ok(None),
        Owners::Mapped { .. } if identity != Identity::Root => Err(needs_root(source)),
        Owners::Mapped { uids, gids } => Ok(Some((uids.clone(), gids.clone()))),
        Owners::Swapped => {
            let found = std::fs::metadata(source).map_err(|e| Error::file("look at", source, e))?;
            let maps = (
                swap(found.uid(), outside(namespace, uid, true)),
                swap(found.gid(), outside(namespace, gid, false)),
            );
            if maps.0.len() == 1 && maps.1.len() == 1 {
                return Ok(None);
            }
            if identity == Identity::Root { Ok(Some(maps)) } else { Err(needs_root(source)) }
        }
        Owners::Given => {
            let (uid, gid) = (outside(namespace, uid, true), outside(namespace, gid, false));
            give(source, uid, gid).map_err(|e| Error::file("change the owner of", source, e))?;
            Ok(None)
        }
    }
}

fn needs_root(source: &Path) -> Error {
    Error::impossible(
        format!("mapping the owners of '{}'", source.display()),
        "only root may; with --userns keep-id files belong to the caller inside and outside",
    )
}

/// The ID that one of the container has for this process.
fn outside(namespace: &UserNs, id: u32, user: bool) -> u32 {
    let UserNs::New { uids, gids } = namespace else { return id };
    let maps = if user { uids } else { gids };
    let line = maps.iter().find(|m| id >= m.inside && id - m.inside < m.length);
    line.map_or(id, |m| m.outside + (id - m.inside))
}

/// All IDs as they are, but for two that change places.
fn swap(one: u32, other: u32) -> Vec<IdMapping> {
    let line = |inside, outside, length| IdMapping { inside, outside, length };
    let (low, high) = (one.min(other), one.max(other));
    if low == high {
        return vec![line(0, 0, u32::MAX)];
    }
    let mut out = vec![
        line(0, 0, low),
        line(low, high, 1),
        line(low + 1, low + 1, high - low - 1),
        line(high, low, 1),
        line(high.saturating_add(1), high.saturating_add(1), u32::MAX - high - 1),
    ];
    out.retain(|line| line.length > 0);
    out
}

/// Gives a file, or a folder with all in it, to a user. Links are given themselves, and lead nowhere.
fn give(path: &Path, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let top = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(&top, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&top)?.st_mode) == FileType::Directory {
        let folder = openat(&top, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        all_below(folder.as_fd(), owner, 0)?;
    }
    Ok(())
}

fn all_below(
    folder: BorrowedFd<'_>,
    owner: (Option<Uid>, Option<Gid>),
    depth: usize,
) -> rustix::io::Result<()> {
    if depth > DEPTH {
        return Err(rustix::io::Errno::LOOP);
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let differs = owner.0.is_some_and(|uid| uid.as_raw() != found.st_uid)
            || owner.1.is_some_and(|gid| gid.as_raw() != found.st_gid);
        if differs {
            chownat(folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner: OwnedFd = openat(folder, name, flags, Mode::empty())?;
            all_below(inner.as_fd(), owner, depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_users_change_places() {
        for (one, other) in [(1000, 0), (0, 1000), (5, 6), (u32::MAX - 1, 0), (7, 7)] {
            let map = swap(one, other);
            let appears = |id: u32| {
                let line = map.iter().find(|m| id >= m.inside && id - m.inside < m.length).unwrap();
                line.outside + (id - line.inside)
            };
            assert_eq!((appears(one), appears(other)), (other, one));
            for id in [3, 999, 1001, 65534] {
                assert_eq!(appears(id), id, "{one} {other}");
            }
            let total: u64 = map.iter().map(|m| u64::from(m.length)).sum();
            assert_eq!(total, u64::from(u32::MAX));
        }
    }

    #[test]
    fn ids_of_the_container_are_translated() {
        let line = |inside, outside, length| IdMapping { inside, outside, length };
        let namespace = UserNs::New { uids: vec![line(0, 1, 5), line(5, 0, 1)], gids: vec![line(0, 0, 9)] };
        assert_eq!((outside(&namespace, 5, true), outside(&namespace, 2, true)), (0, 3));
        assert_eq!(outside(&namespace, 5, false), 5);
        assert_eq!(outside(&UserNs::Host, 5, true), 5);
    }
}
