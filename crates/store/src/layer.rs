//! Unpacked layers, one folder per diff ID: `root/` is the tree with overlay markers, `layer.json` says what
//! it is made of.
//!
//! A folder appears by one rename when its tree is complete. Until the image that brought it is recorded its
//! data may not be on disk; a marker with the kernel's boot ID says so, and after a power cut the folder is
//! made anew.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use isles_spec::image::Descriptor;
use isles_spec::{Digest, Progress};
use serde::{Deserialize, Serialize};

use crate::error::At;
use crate::{Error, Image, Lease, Result, Store};

const RECORD_LIMIT: u64 = 16 << 20;

/// What is known about an unpacked layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerInfo {
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    pub size: u64,
    /// Bytes of all regular files.
    pub content: u64,
    pub entries: u64,
    /// Blobs that hold this layer, compressed or not. They may have been removed since.
    #[serde(default)]
    pub blobs: Vec<Descriptor>,
    /// The layer hides everything below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
    /// The tree was not unpacked but moved in where it had been made, so its times are finer, or later, than
    /// those in the archive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
    /// What the layer has and this process could not make, such as devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// An entry, or a part of one, that was left out when a layer was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The path in the layer; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What was left out and why, for people.
    pub what: String,
}

impl Store {
    /// The folder of a layer, whether or not it exists.
    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}{}", diff_id.hex(), self.ownership.flavour()))
    }

    /// The unpacked tree of a layer, as a lower directory of an overlay mount.
    pub fn layer_path(&self, diff_id: &Digest) -> Result<PathBuf> {
        let path = self.layer_dir(diff_id).join("root");
        if path.is_dir() { Ok(path) } else { Err(Error::NoLayer { diff_id: diff_id.clone() }) }
    }

    /// The trees of layers in the order given, base first. A layer that comes again counts where it comes last: it
    /// shows there all that it would show below, and overlay takes no folder twice.
    pub fn layer_paths<'d>(
        &self,
        diff_ids: impl DoubleEndedIterator<Item = &'d Digest>,
    ) -> Result<Vec<PathBuf>> {
        let mut seen = HashSet::new();
        let mut paths: Vec<PathBuf> =
            diff_ids.rev().filter(|d| seen.insert(*d)).map(|d| self.layer_path(d)).collect::<Result<_>>()?;
        paths.reverse();
        Ok(paths)
    }

    /// Whether a layer is unpacked here and trustworthy.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        let dir = self.layer_dir(diff_id);
        dir.join("layer.json").exists() && self.is_settled(&dir)
    }

    /// What is known about an unpacked layer.
    pub fn layer_info(&self, diff_id: &Digest) -> Result<LayerInfo> {
        let path = self.layer_dir(diff_id).join("layer.json");
        let text = match crate::atomic::read_bounded(&path, RECORD_LIMIT) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoLayer { diff_id: diff_id.clone() });
            }
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        serde_json::from_slice(&text).map_err(|e| Error::damaged(path.display(), e))
    }

    /// A blob of this layer that is in the store, preferring one with the given media type or digest.
    pub fn blob_of_layer(&self, diff_id: &Digest, prefer: Option<&Digest>) -> Result<Option<Descriptor>> {
        let info = self.layer_info(diff_id)?;
        let here = |d: &&Descriptor| self.blob_size(&d.digest) == Some(d.size);
        let preferred = info.blobs.iter().filter(here).find(|d| prefer.is_none_or(|p| d.digest == *p));
        Ok(preferred.or_else(|| info.blobs.iter().find(here)).cloned())
    }

    /// Remembers that `blob` holds the layer too, so that a push need not compress again.
    pub fn remember_blob(&self, diff_id: &Digest, blob: &Descriptor) -> Result<()> {
        let mut info = self.layer_info(diff_id)?;
        if info.blobs.iter().any(|b| b.digest == blob.digest) {
            return Ok(());
        }
        info.blobs.push(Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size));
        let path = self.layer_dir(diff_id).join("layer.json");
        crate::atomic::replace(&path, &to_json(&info)?)
    }

    /// Unpacks again, from blobs in the store, those layers of an image that are not unpacked here for this
    /// process's kind of ownership.
    pub fn ensure_layers(&self, lease: &Lease, image: &Image, progress: &dyn Progress) -> Result<()> {
        for (diff_id, blob) in image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers) {
            lease.hold(diff_id)?;
            if !self.has_layer(diff_id) {
                let blob_digest = blob.digest.clone();
                let mut open = |offset: u64| -> io::Result<Box<dyn io::Read>> {
                    use std::io::Seek;
                    let mut file = self.open_blob(&blob_digest).map_err(io::Error::other)?;
                    file.seek(io::SeekFrom::Start(offset))?;
                    Ok(Box::new(file))
                };
                self.ingest_layer(lease, blob, diff_id, &mut open, progress)?;
            }
        }
        Ok(())
    }

    /// Puts a complete tree in its place. `work` is a folder in `tmp/` with `root/` in it. Where another
    /// process was faster, its folder stays and ours goes.
    pub(crate) fn place_layer(&self, work: &Path, info: &LayerInfo) -> Result<()> {
        self.dir("layers")?;
        let target = self.layer_dir(&info.diff_id);
        let record = work.join("layer.json");
        fs::write(&record, to_json(info)?).at("write", &record)?;
        let marker = work.join("fresh");
        fs::write(&marker, boot_id()).at("write", &marker)?;
        loop {
            match fs::rename(work, &target) {
                Ok(()) => return Ok(()),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    if target.join("layer.json").exists() && self.is_settled(&target) {
                        return crate::remove::tree(work);
                    }
                    self.discard_dir(&target)?;
                }
                Err(e) => return Err(Error::io("put the layer in place at", &target, e)),
            }
        }
    }

    /// Whether a folder's data is on disk, or at least in the memory of the running kernel.
    pub(crate) fn is_settled(&self, dir: &Path) -> bool {
        match fs::read_to_string(dir.join("fresh")) {
            Ok(boot) => boot == boot_id(),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Makes layers survive a power cut; one wait for the disk serves all of them.
    pub(crate) fn settle(&self, diff_ids: &[Digest]) -> Result<()> {
        let fresh: Vec<PathBuf> =
            diff_ids.iter().map(|d| self.layer_dir(d).join("fresh")).filter(|p| p.exists()).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        self.sync()?;
        fresh.iter().try_for_each(|marker| crate::atomic::remove_file(marker))
    }
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::document("a record", e))
}

/// Tells one run of the kernel from the next.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
