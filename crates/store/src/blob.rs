//! Blobs by digest, under `blobs/<algorithm>/<first two>/<hex>`.
//!
//! A blob becomes visible by one link or rename after its digest is known and its bytes are on disk, so a
//! visible blob never has a wrong digest, whatever happens to the process or the power.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use isles_spec::{Algorithm, Digest};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::error::At;
use crate::hash::{Hasher, digest_of};
use crate::{Error, Lease, Result, Store};

impl Store {
    /// Where a blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(blob_name(digest))
    }

    /// Whether a blob is here.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// The size of a blob in bytes, if it is here.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob_path(digest)).ok().map(|m| m.len())
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NoBlob { digest: digest.clone() },
            _ => Error::io("open", &path, e),
        })
    }

    /// Reads a blob that is a document (a manifest, an index, a configuration), bounded by
    /// [`Limits::document`](crate::Limits), and checks its digest.
    pub fn read_document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut file = self.open_blob(digest)?;
        let path = self.blob_path(digest);
        let size = file.metadata().at("read", &path)?.len();
        let limit = self.limits.document as u64;
        if size > limit {
            return Err(Error::Limit {
                object: digest.to_string(),
                what: "the document's size".into(),
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(size as usize + 1);
        file.read_to_end(&mut bytes).at("read", &path)?;
        let actual = digest_of(digest.algorithm(), &bytes);
        if actual != *digest {
            return Err(Error::damaged(format!("blob {digest}"), format!("it has the content of {actual}")));
        }
        Ok(bytes)
    }

    /// Stores bytes as a blob and returns their SHA-256 digest.
    pub fn put_bytes(&self, lease: &Lease, bytes: &[u8]) -> Result<Digest> {
        let digest = digest_of(Algorithm::Sha256, bytes);
        self.put_known(lease, &digest, bytes)?;
        Ok(digest)
    }

    /// Stores bytes that must have the given digest.
    pub fn put_expected(&self, lease: &Lease, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let actual = digest_of(digest.algorithm(), bytes);
        if actual != *digest {
            return Err(Error::WrongDigest {
                object: "the content".into(),
                expected: digest.clone(),
                actual,
            });
        }
        self.put_known(lease, digest, bytes)
    }

    fn put_known(&self, lease: &Lease, digest: &Digest, bytes: &[u8]) -> Result<()> {
        lease.hold(digest)?;
        if self.blob_size(digest) == Some(bytes.len() as u64) {
            return Ok(());
        }
        let mut file = self.unnamed()?;
        file.write(bytes)?;
        file.publish(digest)
    }

    /// A blob that is written piece by piece and hashed on the way.
    pub fn blob_writer(&self, lease: &Lease, algorithm: Algorithm) -> Result<BlobWriter> {
        debug_assert_eq!(lease.store().root, self.root);
        Ok(BlobWriter {
            unnamed: self.unnamed()?,
            hasher: Hasher::new(algorithm),
            size: 0,
            store: self.clone(),
        })
    }

    /// Removes a blob from sight. For content that turned out to be damaged.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<()> {
        crate::atomic::remove_file(&self.blob_path(digest))
    }

    /// The directory of a blob, created where missing.
    pub(crate) fn blob_dir(&self, digest: &Digest) -> Result<PathBuf> {
        self.dir(&format!("blobs/{}/{}", digest.algorithm().name(), &digest.hex()[..2]))
    }

    /// A file without a name on the store's file system, or one in `tmp/` where there is no such thing.
    pub(crate) fn unnamed(&self) -> Result<Unnamed> {
        let tmp = self.dir("tmp")?;
        match rustix::fs::open(&tmp, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o600)) {
            Ok(fd) => Ok(Unnamed { file: File::from(fd), path: None, store: self.clone() }),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
                let path = self.scratch("blob")?;
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .at("create", &path)?;
                Ok(Unnamed { file, path: Some(path), store: self.clone() })
            }
            Err(e) => Err(Error::io("create a file in", &tmp, e)),
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}/{}", digest.algorithm().name(), &digest.hex()[..2], digest.hex())
}

/// A file that is not visible until it is published under its digest.
#[derive(Debug)]
pub(crate) struct Unnamed {
    file: File,
    /// Set where the file system has no unnamed files.
    path: Option<PathBuf>,
    store: Store,
}

impl Unnamed {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).at("write a blob in", &self.store.root)
    }

    fn publish(mut self, digest: &Digest) -> Result<()> {
        let target = self.store.blob_dir(digest)?.join(digest.hex());
        self.file.sync_data().at("write to disk", &target)?;
        // A blob of the wrong length is damage that a power cut left; the good one takes its place.
        let good = self.file.metadata().at("write", &target)?.len();
        if fs::metadata(&target).is_ok_and(|m| m.len() != good) {
            crate::atomic::remove_file(&target)?;
        }
        let linked = match self.path.take() {
            Some(path) => {
                let renamed = fs::rename(&path, &target);
                let _ = fs::remove_file(&path);
                renamed
            }
            None => link_open_file(&self.file, &target),
        };
        match linked {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("write", &target, e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Gives a name to a file that has none (open(2), O_TMPFILE).
fn link_open_file(file: &File, target: &Path) -> io::Result<()> {
    let by_proc = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    match rustix::fs::linkat(CWD, by_proc, CWD, target, AtFlags::SYMLINK_FOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(rustix::fs::linkat(file, "", CWD, target, AtFlags::EMPTY_PATH)?),
        other => Ok(other?),
    }
}

/// Writes a blob and hashes it on the way. Dropped before [`BlobWriter::finish`], it leaves nothing.
pub struct BlobWriter {
    unnamed: Unnamed,
    hasher: Hasher,
    size: u64,
    store: Store,
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes the blob visible and returns its digest and size. With `expected`, another digest is an
    /// error and nothing becomes visible.
    pub fn finish(self, lease: &Lease, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let digest = self.hasher.finish();
        if let Some(expected) = expected.filter(|e| **e != digest) {
            return Err(Error::WrongDigest {
                object: "the content".into(),
                expected: expected.clone(),
                actual: digest,
            });
        }
        lease.hold(&digest)?;
        if self.store.blob_size(&digest) != Some(self.size) {
            self.unnamed.publish(&digest)?;
        }
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.unnamed.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
