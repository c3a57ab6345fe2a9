//! Objects that are about to become part of a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use crate::descriptor::{Draft, Extra, FileSystem, Kind, LENGTH, Link, NAME_LENGTH, Partition, Role};
use crate::header::Arch;
use crate::{Error, Result};

/// Partitions begin where a page does, so that they can be mounted and mapped.
const PARTITION_ALIGNMENT: u64 = 4096;

/// The group of everything that is not said to be elsewhere.
const FIRST_GROUP: u32 = 1;

/// One object and where its bytes come from.
pub struct NewObject<'a> {
    pub kind: Kind,
    /// 0 for none.
    pub group: u32,
    pub link: Link,
    /// The object begins at a multiple of this; 0 and 1 are the same.
    pub alignment: u64,
    /// 128 bytes at most.
    pub name: String,
    /// Seconds since 1970, where it is not the time of the file or of its change.
    pub time: Option<i64>,
    /// That of OCI objects is computed while they are written.
    pub extra: Extra,
    pub data: Box<dyn Read + 'a>,
}

impl<'a> NewObject<'a> {
    /// An object of the first group, without a name.
    pub fn new(kind: Kind, data: impl Read + 'a) -> NewObject<'a> {
        let alignment = if kind == Kind::Partition { PARTITION_ALIGNMENT } else { 0 };
        NewObject {
            kind,
            group: FIRST_GROUP,
            link: Link::None,
            alignment,
            name: String::new(),
            time: None,
            extra: Extra::None,
            data: Box::new(data),
        }
    }

    pub fn partition(file_system: FileSystem, role: Role, arch: Arch, data: impl Read + 'a) -> NewObject<'a> {
        let extra = Extra::Partition(Partition { file_system, role, arch });
        NewObject { extra, ..NewObject::new(Kind::Partition, data) }
    }

    /// A JSON document that readers find by its name.
    pub fn json(name: &str, data: impl Read + 'a) -> NewObject<'a> {
        NewObject { name: name.to_owned(), ..NewObject::new(Kind::Json, data) }
    }

    /// The architecture, where this is the partition with the root file system.
    pub(crate) fn primary_arch(&self) -> Option<Arch> {
        match &self.extra {
            Extra::Partition(partition) if partition.role == Role::Primary => Some(partition.arch),
            _ => None,
        }
    }
}

/// An object whose bytes are in the file and whose descriptor is not yet.
pub(crate) struct Written {
    pub descriptor: [u8; LENGTH],
    /// The first byte behind it.
    pub end: u64,
}

/// Copies an object's bytes into `file`, at `from` or at the next place that fits its alignment.
pub(crate) fn write(
    file: &File,
    object_name: &str,
    new: NewObject<'_>,
    id: u32,
    from: u64,
    time: i64,
) -> Result<Written> {
    let refused = |reason: &str| Error::refused("add an object to", object_name, reason);
    if new.name.len() > NAME_LENGTH {
        return Err(refused(&format!("its name has more than {NAME_LENGTH} bytes")));
    }
    if new.group > 0x0fff_ffff || matches!(new.link, Link::Object(n) | Link::Group(n) if n > 0x0fff_ffff) {
        return Err(refused("the numbers of groups and links end at 268435455"));
    }
    if (new.kind == Kind::Partition) != matches!(new.extra, Extra::Partition(_)) {
        return Err(refused("a partition, and nothing else, has a file system, a role and an architecture"));
    }
    let offset = from.checked_next_multiple_of(new.alignment.max(1)).filter(|at| i64::try_from(*at).is_ok());
    let offset = offset.ok_or_else(|| refused("no place is left that is aligned so"))?;
    let is_oci = matches!(new.kind, Kind::OciRootIndex | Kind::OciBlob);
    let mut hash = is_oci.then(Sha256::new);
    let mut data = new.data;
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0u64;
    loop {
        let n = match data.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                return Err(Error::io("read what is to be added to", object_name, source));
            }
        };
        file.write_all_at(&buffer[..n], offset + size).map_err(|e| Error::io("write", object_name, e))?;
        if let Some(hash) = &mut hash {
            hash.update(&buffer[..n]);
        }
        size += n as u64;
    }
    let extra = match hash {
        Some(hash) => Extra::OciDigest(format!("sha256:{}", isles_spec::digest::hex(&hash.finalize()))),
        None => new.extra,
    };
    let draft = Draft {
        kind: new.kind,
        id,
        group: new.group,
        link: new.link,
        offset,
        size,
        padded_size: offset - from + size,
        time: new.time.unwrap_or(time),
        name: new.name.as_bytes(),
        extra: extra.encode().ok_or_else(|| refused("what describes it is too long"))?,
    };
    Ok(Written { descriptor: draft.encode(), end: offset + size })
}
