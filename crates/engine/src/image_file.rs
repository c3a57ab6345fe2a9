//! Files with a file system in them: what they hold, by how they begin, and the part of the file that it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use isles_sif::{FileSystem, Object, Role, Sif};
use isles_spec::{FileSystemKind, ImageFile};

use crate::error::{Error, Result};

/// The superblock of ext2 and its heirs is 1024 bytes in; its magic number 56 bytes into that (ext4's `super.rst`).
const EXT_MAGIC_AT: usize = 1024 + 56;
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";
/// `SIF_MAGIC` follows the launch line of 32 bytes.
const SIF_MAGIC_AT: usize = 32;
const SIF_MAGIC: &[u8] = b"SIF_MAGIC\0";
const HEAD: usize = EXT_MAGIC_AT + EXT_MAGIC.len();

/// How a file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Sif,
    Bare(FileSystemKind),
}

/// Opens a file to look at and to mount: a pipe or a device of that name is not waited for.
pub fn open(path: &Path) -> Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(|e| Error::file("open the image", path, e))?;
    let found = file.metadata().map_err(|e| Error::file("look at the image", path, e))?;
    if !found.is_file() {
        return Err(Error::file("open the image", path, io::Error::other("it is no regular file")));
    }
    Ok(file)
}

/// What a file holds; `None` where it is nothing that can be mounted.
pub fn detect(path: &Path) -> Option<Form> {
    form(&open(path).ok()?).ok()?
}

/// What an open file holds.
pub fn form(file: &File) -> io::Result<Option<Form>> {
    let mut head = [0u8; HEAD];
    let mut have = 0;
    while have < HEAD {
        match file.read_at(&mut head[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let has = |at: usize, magic: &[u8]| head[at..].starts_with(magic);
    Ok(if has(SIF_MAGIC_AT, SIF_MAGIC) {
        Some(Form::Sif)
    } else if has(0, &SQUASHFS_MAGIC) {
        Some(Form::Bare(FileSystemKind::Squashfs))
    } else if has(EXT_MAGIC_AT, &EXT_MAGIC) {
        Some(Form::Bare(FileSystemKind::Ext))
    } else {
        None
    })
}

/// The file system in a file: all of it, or the primary partition of a SIF file.
pub fn find(path: &Path, file: &File) -> Result<ImageFile> {
    match form(file).map_err(|e| Error::file("read the image", path, e))? {
        Some(Form::Bare(kind)) => Ok(ImageFile { path: path.to_owned(), kind, offset: 0, size: None }),
        Some(Form::Sif) => {
            let copy = file.try_clone().map_err(|e| Error::file("read the image", path, e))?;
            primary(path, &Sif::from_file(copy, path.display().to_string())?)
        }
        None => Err(isles_spec::Error::new(format!("'{}' is no image", path.display()))
            .with_hint("files of SIF, squashfs and ext3 are known by how they begin")
            .into()),
    }
}

/// The partition of a SIF file that holds the root file system.
pub fn primary(path: &Path, sif: &Sif) -> Result<ImageFile> {
    let missing = || refused(path, "it has no partition with a root file system");
    partition(path, sif.primary().ok_or_else(missing)?)
}

/// The partitions of a SIF file that lie over its root, bottom first; none of any other file.
pub fn overlays(path: &Path, file: &File) -> Result<Vec<ImageFile>> {
    let failed = |e| Error::file("read the image", path, e);
    if form(file).map_err(failed)? != Some(Form::Sif) {
        return Ok(Vec::new());
    }
    let sif = Sif::from_file(file.try_clone().map_err(failed)?, path.display().to_string())?;
    let over = |object: &&Object| object.partition().is_some_and(|p| p.role == Role::Overlay);
    sif.objects().iter().filter(over).map(|object| partition(path, object)).collect()
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::impossible(format!("running '{}'", path.display()), reason)
}

fn partition(path: &Path, object: &Object) -> Result<ImageFile> {
    let found = object.partition().ok_or_else(|| refused(path, "its root file system is no partition"))?;
    let kind = match found.file_system {
        FileSystem::Squashfs => FileSystemKind::Squashfs,
        FileSystem::Ext3 => FileSystemKind::Ext,
        FileSystem::EncryptedSquashfs => FileSystemKind::LuksSquashfs,
        FileSystem::GocryptfsSquashfs => FileSystemKind::GocryptfsSquashfs,
        other => {
            let reason = format!("a file system of the kind '{}' is not supported", other.name());
            return Err(refused(path, &reason));
        }
    };
    Ok(ImageFile { path: path.to_owned(), kind, offset: object.offset, size: Some(object.size) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_how_they_begin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let at = |at: usize, magic: &[u8]| [vec![0; at], magic.to_vec()].concat();
        for (bytes, expected) in [
            (at(0, b"hsqs"), Some(Form::Bare(FileSystemKind::Squashfs))),
            (at(EXT_MAGIC_AT, &EXT_MAGIC), Some(Form::Bare(FileSystemKind::Ext))),
            (at(SIF_MAGIC_AT, SIF_MAGIC), Some(Form::Sif)),
            (at(0, b"hsq"), None),
            (at(EXT_MAGIC_AT, &EXT_MAGIC[..1]), None),
            (Vec::new(), None),
            (vec![b'x'; 5000], None),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(detect(&path), expected);
        }
        assert_eq!(detect(dir.path()), None);
        assert!(find(&path, &open(&path).unwrap()).is_err());
    }
}
