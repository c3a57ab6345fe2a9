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
    sum == said
}

/// Unpacks an archive into the directory `destination`, a path without links.
///
/// As in BuildKit, links mean what they mean where the destination is `/`, what is in the way of an entry goes unless
/// both are directories, and `--chmod` is not for what archives bring.
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
        let name = clean(&entry.path);
        if name.as_os_str().is_empty() {
            continue;
        }
        refuse_whiteout(&name)?;
        let target = inside(upper, destination, &name)?;
        let parent = target.parent().unwrap_or(Path::new(""));
        upper.directory(parent, Access { mode: 0o755, uid: 0, gid: 0 })?;
        let access = Access {
            mode: entry.mode,
            uid: to.owner.map_or(entry.uid, |o| o.uid),
            gid: to.owner.map_or(entry.gid, |o| o.gid),
        };
        let device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
        if device && (to.ownership != Ownership::Root || entry.device == (0, 0)) {
            continue;
        }
        let first = match entry.kind {
            Kind::Hardlink => Some(inside(upper, destination, &clean(&entry.link))?),
            _ => None,
        };
        let same = first.as_ref() == Some(&target);
        match upper.kind(&target)? {
            None => {}
            Some(FileKind::Dir) if entry.kind == Kind::Dir => {}
            Some(_) if same => continue,
            Some(_) => upper.remove(&target)?,
        }
        match entry.kind {
            Kind::Dir => upper.copied_directory(&target, access, &xattrs(&entry), entry.mtime)?,
            Kind::Symlink => upper.symlink(&target, access, OsStr::from_bytes(&entry.link), entry.mtime)?,
            Kind::Hardlink => {
                let first = first.unwrap_or_default();
                if !upper.has(&first) && !upper.copy_up(&first)? {
                    let name = name.display();
                    return Err(bad(format!("'{name}' is a link to a file that is not before it")));
                }
                upper.link_to(&first, &target, access)?;
            }
            Kind::Fifo => upper.node(&target, FileKind::Fifo, (0, 0), access, entry.mtime)?,
            Kind::CharDevice => {
                upper.node(&target, FileKind::CharDevice, entry.device, access, entry.mtime)?
            }
            Kind::BlockDevice => {
                upper.node(&target, FileKind::BlockDevice, entry.device, access, entry.mtime)?
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

/// Where an entry of an archive goes: links on the way, also those that the archive brought, lead nowhere outside of
/// the destination. The last component is not followed.
fn inside(upper: &Upper<'_>, destination: &Path, name: &Path) -> Result<PathBuf> {
    let parent = name.parent().unwrap_or(Path::new(""));
    let kind = |path: &Path| upper.kind(&destination.join(path));
    let found = crate::tree::resolve(parent, &kind, &|path| upper.readlink(&destination.join(path)))?;
    Ok(destination.join(found).join(name.file_name().unwrap_or_default()))
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

/// A path below the destination: `..` goes up no further than that.
fn clean(path: &[u8]) -> PathBuf {
    let mut out = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}
