//! Which extended attributes go into layers and come out of them, and the ones that the store itself uses.

use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fsetxattr};
use rustix::io::Errno;

use crate::Ownership;

/// The true owner of a file that belongs to the caller, `uid:gid`.
pub(crate) const OWNER: &str = "user.isles.owner";
/// Everything under this prefix is the store's own.
const OWN_PREFIX: &[u8] = b"user.isles.";
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// What becomes of an attribute that an archive brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Set,
    /// Not for archives to say; left out without a word.
    Drop,
    /// Left out, and the user is told.
    Note,
}

/// What to do with an attribute from an archive that nobody vouches for.
pub(crate) fn fate(name: &[u8], ownership: Ownership) -> Fate {
    let of = |prefix: &[u8]| name.starts_with(prefix);
    // Overlay's markers would let a layer hide or redirect files of the layers below, or outside.
    if of(b"trusted.overlay.") || of(b"user.overlay.") || of(OWN_PREFIX) {
        return Fate::Drop;
    }
    // Labels of the machine that made the archive mean nothing here.
    if of(b"security.selinux") || of(b"security.ima") || of(b"security.evm") || of(b"security.SMACK64") {
        return Fate::Drop;
    }
    if of(b"user.") || of(b"system.posix_acl_") || name == CAPABILITY {
        return Fate::Set;
    }
    if of(b"trusted.") && ownership == Ownership::Root {
        return Fate::Set;
    }
    Fate::Note
}

/// Whether an attribute of a file in a layer or an upper directory belongs in an archive.
pub(crate) fn exported(name: &[u8]) -> bool {
    fate(name, Ownership::Root) == Fate::Set
}

/// The value to set: file capabilities that name a user namespace's root are made plain inside one, where
/// the kernel adds the right one itself (capabilities(7), "Namespaced file capabilities").
pub(crate) fn value_for<'a>(
    name: &[u8],
    value: &'a [u8],
    ownership: Ownership,
) -> std::borrow::Cow<'a, [u8]> {
    const REVISION_3: u32 = 0x0300_0000;
    const REVISION_2: u32 = 0x0200_0000;
    if name == CAPABILITY && ownership == Ownership::Mapped && value.len() == 24 {
        let magic = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        if magic & 0xff00_0000 == REVISION_3 {
            let mut plain = value[..20].to_vec();
            plain[..4].copy_from_slice(&((magic & 0x00ff_ffff) | REVISION_2).to_le_bytes());
            return plain.into();
        }
    }
    value.into()
}

/// Whether a failure to set an attribute means that it cannot be had here, rather than that something broke.
pub(crate) fn is_refusal(e: Errno) -> bool {
    matches!(e, Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL)
}

/// Keeps the true owner of a file with the file.
pub fn record_owner(fd: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    fsetxattr(fd, OWNER, format!("{uid}:{gid}").as_bytes(), XattrFlags::empty())
}

/// The owner that a file's attribute tells.
pub(crate) fn parse_owner(value: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = std::str::from_utf8(value).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// All extended attributes of a file by path, with their values. With `follow` a link is followed, which is
/// meant for `/proc/self/fd/N`.
pub(crate) fn list(path: &[u8], follow: bool) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = sized(|buffer| {
        if follow { rustix::fs::listxattr(path, buffer) } else { rustix::fs::llistxattr(path, buffer) }
    });
    let names = match names {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    read_values(&names, |name, buffer| {
        if follow {
            rustix::fs::getxattr(path, name, buffer)
        } else {
            rustix::fs::lgetxattr(path, name, buffer)
        }
    })
}

/// All extended attributes of an open file.
pub(crate) fn list_fd(fd: impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match sized(|buffer| rustix::fs::flistxattr(fd.as_fd(), buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    read_values(&names, |name, buffer| rustix::fs::fgetxattr(fd.as_fd(), name, buffer))
}

fn read_values(
    names: &[u8],
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut out = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        match sized(|buffer| get(name, buffer)) {
            Ok(value) => out.push((name.to_vec(), value)),
            // Gone since it was listed, or not for us to read.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// Calls with a larger buffer until the answer fits; nothing is larger than 64 KiB (xattr(7)).
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0u8; 256];
    match call(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; 64 << 10];
    let n = call(&mut large)?;
    large.truncate(n);
    Ok(large)
}
