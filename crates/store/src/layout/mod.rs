//! OCI layouts and Docker archives read at any place, without taking anything of them into the store: what a copy to
//! somewhere else needs.
//!
//! An archive is gone through once, and only where its files lie is kept. One that is compressed as a whole, and plain
//! layers of a Docker archive, which nobody wants in a registry as they are, are written into files without a name.
//!
//! Specifications: image-spec, image-layout.md; the archives of `docker save`.

mod docker;
mod files;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use isles_spec::Digest;
use isles_spec::image::{Descriptor, Index};
use rustix::fs::{Mode, OFlags};

use crate::blob::Unnamed;
use crate::error::At;
use crate::hash::digest_of;
use crate::import::{blob_digest, bounded, is_attached, is_called, open_in_layout};
use crate::{Error, Result, Store};

pub use write::{DockerArchiveWriter, LayoutWriter};

/// Images in a folder or an archive.
pub struct Layout {
    object: String,
    /// What the layout lists: manifests and indexes.
    roots: Vec<Descriptor>,
    from: From,
    limit: usize,
}

enum From {
    Folder(OwnedFd),
    Archive {
        file: File,
        blobs: HashMap<Digest, Span>,
        /// What was made of what is in the archive.
        made: HashMap<Digest, Made>,
    },
}

/// A part of a file.
#[derive(Debug, Clone, Copy)]
struct Span {
    at: u64,
    size: u64,
}

enum Made {
    Bytes(Vec<u8>),
    File(Unnamed, u64),
}

/// The bytes of a blob from some offset on.
pub struct LayoutBlob<'a> {
    file: Held<'a>,
    at: u64,
    end: u64,
}

enum Held<'a> {
    Own(File),
    Lent(&'a File),
    Bytes(&'a [u8]),
}

impl Store {
    /// Opens the OCI layout in a folder.
    pub fn open_layout(&self, dir: &Path) -> Result<Layout> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir, flags, Mode::empty()).at("open", dir)?;
        let read = |name: &str| -> Result<Vec<u8>> {
            let file = crate::sys::open_in_root(fd.as_fd(), name.as_bytes(), OFlags::RDONLY, false)
                .at("open", &dir.join(name))?;
            bounded(File::from(file), self.limits.document, name)
        };
        let no_layout =
            || Error::document(dir.display(), "it has no file oci-layout, so it is no image layout");
        read("oci-layout").map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => no_layout(),
            other => other,
        })?;
        let index = read("index.json")?;
        let index: Index = serde_json::from_slice(&index).map_err(|e| Error::document("index.json", e))?;
        let object = dir.display().to_string();
        Ok(Layout { object, roots: index.manifests, from: From::Folder(fd), limit: self.limits.document })
    }

    /// Opens an archive that holds an OCI layout.
    pub fn open_oci_archive(&self, path: &Path) -> Result<Layout> {
        let files = files::read(self, path)?;
        let object = path.display().to_string();
        let Some(index) = files.document(b"index.json", self.limits.document)? else {
            return Err(Error::Archive {
                object,
                reason: "it has no index.json, so it is no OCI archive".into(),
            });
        };
        let index: Index = serde_json::from_slice(&index).map_err(|e| Error::document("index.json", e))?;
        let blobs = files.spans.iter().filter_map(|(path, span)| Some((blob_digest(path)?, *span))).collect();
        let from = From::Archive { file: files.file, blobs, made: HashMap::new() };
        Ok(Layout { object, roots: index.manifests, from, limit: self.limits.document })
    }
}

impl Layout {
    /// What the layout lists.
    pub fn roots(&self) -> &[Descriptor] {
        &self.roots
    }

    /// The manifest or index with a name, a tag or a digest; without one, the only one that there is. What is listed
    /// because it refers to another one is not counted.
    pub fn select(&self, name: Option<&str>) -> Result<Descriptor> {
        let mut found: Vec<&Descriptor> = match name {
            Some(name) => self.roots.iter().filter(|d| is_called(d, name)).collect(),
            None => self.roots.iter().filter(|d| d.artifact_type.is_none() && !is_attached(d)).collect(),
        };
        found.dedup_by(|a, b| a.digest == b.digest);
        match (found.as_slice(), name) {
            ([one], _) => Ok((*one).clone()),
            ([], Some(name)) => Err(Error::document(&self.object, format!("it has no image '{name}'"))),
            ([], None) => Err(Error::document(&self.object, "it names no image")),
            (several, _) => {
                let reason = format!("it has {} images; name one of them", several.len());
                Err(Error::document(&self.object, reason))
            }
        }
    }

    /// A document, with its digest checked.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut blob = self.blob(digest, 0)?;
        let object = digest.to_string();
        if blob.end.saturating_sub(blob.at) > self.limit as u64 {
            let what = "the document's size".to_owned();
            return Err(Error::Limit { object, what, limit: self.limit as u64 });
        }
        let mut bytes = Vec::new();
        let read = blob.read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { doing: "read", object: object.clone(), source })?;
        match digest_of(digest.algorithm(), &bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(Error::WrongDigest { object, expected: digest.clone(), actual }),
        }
    }

    /// A blob from `offset` on. Its digest is for the reader to check.
    pub fn blob(&self, digest: &Digest, offset: u64) -> Result<LayoutBlob<'_>> {
        let absent = || Error::document(&self.object, format!("it lacks the blob {digest}"));
        match &self.from {
            From::Folder(fd) => {
                let file = open_in_layout(fd, Path::new(&self.object), digest).map_err(|e| match e {
                    Error::NoBlob { .. } => absent(),
                    other => other,
                })?;
                let end = file.metadata().at("read", Path::new(&self.object))?.len();
                Ok(LayoutBlob { file: Held::Own(file), at: offset, end })
            }
            From::Archive { file, blobs, made } => match (made.get(digest), blobs.get(digest)) {
                (Some(Made::Bytes(bytes)), _) => {
                    Ok(LayoutBlob { file: Held::Bytes(bytes), at: offset, end: bytes.len() as u64 })
                }
                (Some(Made::File(file, size)), _) => {
                    Ok(LayoutBlob { file: Held::Lent(file.file()), at: offset, end: *size })
                }
                (None, Some(span)) => {
                    let at = span.at.saturating_add(offset);
                    Ok(LayoutBlob { file: Held::Lent(file), at, end: span.at + span.size })
                }
                (None, None) => Err(absent()),
            },
        }
    }
}

impl Read for LayoutBlob<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = out.len().min(left);
        let out = &mut out[..most];
        let n = match &self.file {
            Held::Own(file) => file.read_at(out, self.at)?,
            Held::Lent(file) => file.read_at(out, self.at)?,
            Held::Bytes(bytes) => {
                let from = usize::try_from(self.at).unwrap_or(usize::MAX);
                bytes.get(from..).unwrap_or_default().read(out)?
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}
