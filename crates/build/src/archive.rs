//! ADD of an archive: recognised by its content, unpacked into the destination as if the image were `/`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use isles_store::tar::{BLOCK, Entry, Kind, ReadLimits, Reader, Segment};
use isles_store::{FileKind, Ownership};

use crate::copy::{Placement, refuse_whiteout};
use crate::debian::compression::decoder;
use crate::error::{Error, Result};
use crate::tree::Xattrs;
use crate::upper::{Access, Upper};

const BUFFER: usize = 256 << 10;
/// Entries of one archive.
const ENTRIES: u64 = 5_000_000;

/// A file that may be an archive.
pub struct Packed<'p> {
    /// What messages call it.
    pub place: &'p Path,
    /// Opens it at its beginning.
    pub open: &'p dyn Fn() -> Result<File>,
}

/// Whether a file is a tar archive, also a compressed one.
pub fn is_archive(packed: &Packed<'_>) -> Result<bool> {
    let mut block = Vec::with_capacity(BLOCK);
    // What cannot be decompressed is a file like others.
    let Ok(stream) = decoder(BufReader::with_capacity(BUFFER, (packed.open)()?)) else {
        return Ok(false);
    };
    let whole = stream.take(BLOCK as u64).read_to_end(&mut block).is_ok() && block.len() == BLOCK;
    Ok(whole && has_checksum(&block))
}

/// When the newest file of an archive last changed (seconds since 1970); nothing where it is no archive.
pub fn newest(open: &dyn Fn() -> Result<File>) -> Option<i64> {
    let stream = decoder(BufReader::with_capacity(BUFFER, open().ok()?)).ok()?;
    let limits = ReadLimits { entries: ENTRIES, ..ReadLimits::default() };
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, stream), limits);
    let (mut entry, mut newest) = (Entry::default(), None);
    while reader.next(&mut entry).ok()? {
        if entry.kind == Kind::File {
            newest = newest.max(Some(entry.mtime.0));
        }
    }
    newest
}

/// The checksum of a tar header is the sum of its bytes, with its own field as blanks (POSIX.1-2024, pax).
fn has_checksum(block: &[u8]) -> bool {
    let field: String =
        block[148..156].iter().map(|b| char::from(*b)).filter(|c| ('0'..='7').contains(c)).collect();
    let Ok(said) = u32::from_str_radix(&field, 8) else { return false };
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    sum == said && block[0] != 0
}

/// Unpacks an archive into the directory `destination`, a path without links.
pub fn unpack(upper: &mut Upper<'_>, packed: &Packed<'_>, destination: &Path, to: &Placement) -> Result<()> {
    let place = packed.place;
    let bad = |reason: String| -> Error {
        isles_spec::Error::new(format!("cannot unpack '{}': {reason}", place.display())).into()
    };
    let stream =
        decoder(BufReader::with_capacity(BUFFER, (packed.open)()?)).map_err(Error::io("read", place))?;
    let limits = ReadLimits { entries: ENTRIES, ..ReadLimits::default() };
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER, stream), limits);
    let mut entry = Entry::default();
    while reader.next(&mut entry).map_err(|e| bad(e.to_string()))? {
        let name = clean(&entry.path).ok_or_else(|| {
            bad(format!("its entry '{}' leads outside", String::from_utf8_lossy(&entry.path)))
        })?;
        if name.as_os_str().is_empty() {
            continue;
        }
        refuse_whiteout(&name)?;
        // Links on the way mean what they mean in the image, also those that the archive brought.
        let parent = upper.resolve(&destination.join(name.parent().unwrap_or(Path::new(""))))?;
        upper.directory(&parent, Access { mode: 0o755, uid: 0, gid: 0 })?;
        let mut target = parent.join(name.file_name().unwrap_or_default());
        let mode = to.chmod.as_ref().map_or(entry.mode, |c| c.apply(entry.mode, entry.kind == Kind::Dir));
        let access = Access {
            mode,
            uid: to.owner.map_or(entry.uid, |o| o.uid),
            gid: to.owner.map_or(entry.gid, |o| o.gid),
        };
        match entry.kind {
            Kind::Dir => {
                // A link to a directory stays one, as where /lib leads to /usr/lib.
                if upper.kind(&target)? == Some(FileKind::Symlink) {
                    target = upper.resolve(&target)?;
                }
                upper.copied_directory(&target, access, &xattrs(&entry), entry.mtime)?;
            }
            Kind::Symlink => upper.symlink(&target, access, OsStr::from_bytes(&entry.link), entry.mtime)?,
            Kind::Hardlink => {
                let first = clean(&entry.link)
                    .ok_or_else(|| bad(format!("the link '{}' leads outside", name.display())))?;
                let parent = upper.resolve(&destination.join(first.parent().unwrap_or(Path::new(""))))?;
                let first = parent.join(first.file_name().unwrap_or_default());
                if !upper.has(&first) {
                    return Err(bad(format!(
                        "'{}' is a link to a file that is not before it",
                        name.display()
                    )));
                }
                upper.link_to(&first, &target, access)?;
            }
            Kind::Fifo => upper.node(&target, FileKind::Fifo, (0, 0), access, entry.mtime)?,
            Kind::CharDevice | Kind::BlockDevice => {
                if to.ownership == Ownership::Root && entry.device != (0, 0) {
                    let kind = if entry.kind == Kind::CharDevice {
                        FileKind::CharDevice
                    } else {
                        FileKind::BlockDevice
                    };
                    upper.node(&target, kind, entry.device, access, entry.mtime)?;
                }
            }
            Kind::File => {
                let (sparse, size) = (entry.sparse.take(), entry.size);
                upper.file(&target, access, &xattrs(&entry), entry.mtime, &mut |file| {
                    data(&mut reader, file, sparse.as_deref(), size).map_err(&bad)
                })?;
            }
        }
    }
    Ok(())
}

/// Writes the data of a file, with its holes.
fn data<R: std::io::BufRead>(
    reader: &mut Reader<R>,
    file: &mut File,
    sparse: Option<&[Segment]>,
    size: u64,
) -> std::result::Result<(), String> {
    let whole = [Segment { offset: 0, length: size }];
    for segment in sparse.unwrap_or(&whole) {
        file.seek(SeekFrom::Start(segment.offset)).map_err(|e| e.to_string())?;
        let mut left = segment.length;
        while left > 0 {
            let slice = reader.data().map_err(|e| e.to_string())?;
            if slice.is_empty() {
                return Err("a file has less data than it says".into());
            }
            let n = slice.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all(&slice[..n]).map_err(|e| e.to_string())?;
            reader.consume(n);
            left -= n as u64;
        }
    }
    file.set_len(size).map_err(|e| e.to_string())
}

fn xattrs(entry: &Entry) -> Xattrs {
    let wanted = |name: &[u8]| {
        let own = name.starts_with(b"user.overlay.") || name.starts_with(b"user.isles.");
        name == b"security.capability" || (name.starts_with(b"user.") && !own)
    };
    let wanted = entry.xattrs.iter().filter(|(name, _)| wanted(name));
    wanted.map(|(name, value)| (OsStr::from_bytes(name).to_owned(), value.clone())).collect()
}

/// A path without `.` and leading slashes; none where it has a `..`.
fn clean(path: &[u8]) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => return None,
            _ => {}
        }
    }
    Some(out)
}
