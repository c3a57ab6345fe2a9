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
pub(crate) fn record_owner(fd: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    fsetxattr(fd, OWNER, format!("{uid}:{gid}").as_bytes(), XattrFlags::empty())
}

/// The owner that a file's attribute tells.
pub(crate) fn parse_owner(value: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = std::str::from_utf8(value).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}
