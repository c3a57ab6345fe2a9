//! A layer out of a folder: what a container wrote, or any tree; or out of an archive as it is.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use isles_spec::image::{Descriptor, media_type};
use isles_spec::{Algorithm, Digest};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::At;
use crate::pack::{Packed, Packing, pack};
use crate::{BlobWriter, Error, LayerInfo, Lease, Merged, Result, Store};

/// How a folder becomes a layer.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Later modification times become this one (seconds since 1970; `SOURCE_DATE_EPOCH`).
    pub clamp_mtime: Option<i64>,
    /// The layers below an upper directory, base first. Needed where overlay recorded renames or changes of
    /// metadata only (`redirect_dir`, `metacopy`).
    pub lowers: Vec<PathBuf>,
    /// Paths below the folder that do not become part of the layer, with all below them.
    pub exclude: Vec<PathBuf>,
    /// The folder changes meanwhile.
    pub live: bool,
}

/// A layer that was made here.
#[derive(Debug, Clone)]
pub struct CommittedLayer {
    /// The digest of the uncompressed archive, which is also the digest of its blob.
    pub diff_id: Digest,
    /// Bytes of the archive.
    pub size: u64,
    pub entries: u64,
    /// The uncompressed blob, as manifests refer to it.
    pub blob: Descriptor,
}

impl Store {
    /// Makes a layer of an overlay's upper directory. The folder moves into the store (it is gone afterwards)
    /// and its content is also written as an uncompressed blob. The same content gives the same digest.
    pub fn commit_layer(
        &self,
        lease: &Lease,
        upper: &Path,
        options: &CommitOptions,
    ) -> Result<CommittedLayer> {
        self.layer_by_moving(lease, upper, options, true)
    }

    /// Makes a layer of a folder anywhere, which stays as it is.
    pub fn layer_from_tree(
        &self,
        lease: &Lease,
        tree: &Path,
        options: &CommitOptions,
    ) -> Result<CommittedLayer> {
        let archived = self.archive_tree(lease, tree, options, false);
        let (layer, _) = archived.map_err(|e| e.or_outside(&self.root))?;
        if self.has_layer(&layer.diff_id) {
            return self.known(layer);
        }
        let work = self.work_dir()?;
        let result = self.unpack_blob(&layer, &work);
        self.finish(layer, &work, result)
    }

    /// Makes a layer of an overlay's upper directory, which stays as it is: a container goes on writing to it.
    pub fn layer_from_upper(
        &self,
        lease: &Lease,
        upper: &Path,
        options: &CommitOptions,
    ) -> Result<CommittedLayer> {
        let (layer, _) = self.archive_tree(lease, upper, options, true)?;
        if self.has_layer(&layer.diff_id) {
            return self.known(layer);
        }
        let work = self.work_dir()?;
        let result = self.unpack_blob(&layer, &work);
        self.finish(layer, &work, result)
    }

    /// Makes a layer of a folder in the store's `tmp/` (see [`Store::scratch_dir`]) by moving it, as
    /// [`Store::commit_layer`] does, but without reading overlay's markers: the folder is a plain tree.
    pub fn layer_from_scratch(
        &self,
        lease: &Lease,
        tree: &Path,
        options: &CommitOptions,
    ) -> Result<CommittedLayer> {
        self.layer_by_moving(lease, tree, options, false)
    }

    /// Makes a layer of a folder by moving it; of an overlay's upper directory where `upper`.
    fn layer_by_moving(
        &self,
        lease: &Lease,
        tree: &Path,
        options: &CommitOptions,
        upper: bool,
    ) -> Result<CommittedLayer> {
        let (layer, packed) = self.archive_tree(lease, tree, options, upper)?;
        if self.has_layer(&layer.diff_id) {
            crate::remove::tree(tree)?;
            return self.known(layer);
        }
        let work = self.work_dir()?;
        let root = work.join("root");
        let result = (|| {
            if packed.relocated {
                // The folder means what it should on these lowers only; the archive means it anywhere.
                self.unpack_blob(&layer, &work)?;
                return crate::remove::tree(tree);
            }
            match fs::rename(tree, &root) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                    self.unpack_blob(&layer, &work)?;
                    return crate::remove::tree(tree);
                }
                Err(e) => return Err(Error::io("move", tree, e)),
            }
            for path in &packed.left_out {
                remove_quietly(&root.join(std::ffi::OsStr::from_bytes(path)))?;
            }
            // What is copied from the layer, or over it, has the times that the archive has.
            if let Some(seconds) = options.clamp_mtime {
                let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                for path in &packed.later {
                    let path = root.join(std::ffi::OsStr::from_bytes(path));
                    match rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW) {
                        // A directory may have been left out after all.
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(e) => return Err(Error::io("set the time of", &path, io::Error::from(e))),
                    }
                }
            }
            self.place_layer(&work, &info(&layer, &packed))
        })();
        self.finish(layer, &work, result)
    }

    /// Makes a layer of an uncompressed tar stream, kept byte for byte.
    pub fn layer_from_tar(&self, lease: &Lease, tar: &mut dyn Read) -> Result<CommittedLayer> {
        let work = self.work_dir()?;
        let mut blob = self.blob_writer(lease, Algorithm::Sha256)?;
        let result = (|| {
            let unpacked = crate::ingest::unpack_plain(self, &work, tar, |bytes| {
                blob.write_all(bytes).at("write a blob in", self.root())
            })?;
            let layer = self.committed(lease, blob, unpacked.entries)?;
            if !self.has_layer(&layer.diff_id) {
                let info = LayerInfo {
                    diff_id: layer.diff_id.clone(),
                    size: layer.size,
                    content: unpacked.content,
                    entries: unpacked.entries,
                    blobs: vec![layer.blob.clone()],
                    opaque: unpacked.opaque,
                    moved: false,
                    skipped: unpacked.skipped,
                };
                self.place_layer(&work, &info)?;
            }
            Ok(layer)
        })();
        match result {
            Ok(layer) => {
                if work.exists() {
                    crate::remove::tree(&work)?;
                }
                self.known(layer)
            }
            Err(e) => {
                let _ = crate::remove::tree(&work);
                Err(e)
            }
        }
    }

    /// Writes what a stack of layers shows, base first, as one tar stream; the uppermost may change meanwhile.
    pub fn write_root(&self, layers: &[PathBuf], out: &mut dyn Write) -> Result<()> {
        self.write_views(&[(String::new(), layers.to_vec())], None, true, out)
    }

    /// Writes what stacks of layers show, each base first, as one tar stream: the root file systems of images,
    /// each below a folder of its own, or at the top where the name of the folder is empty.
    pub fn write_roots(
        &self,
        roots: &[(String, Vec<PathBuf>)],
        clamp_mtime: Option<i64>,
        out: &mut dyn Write,
    ) -> Result<()> {
        self.write_views(roots, clamp_mtime, false, out)
    }

    fn write_views(
        &self,
        roots: &[(String, Vec<PathBuf>)],
        clamp_mtime: Option<i64>,
        live: bool,
        out: &mut dyn Write,
    ) -> Result<()> {
        let (exclude, ownership) = (BTreeSet::new(), self.ownership);
        let what = Packing { ownership, upper: false, lowers: None, clamp_mtime, exclude: &exclude, live };
        let mut views = Vec::new();
        for (folder, layers) in roots {
            views.push((folder.as_str(), Merged::open(layers, self.ownership)?));
        }
        let out = crate::pack::pack_views(&views, &what, BufWriter::with_capacity(64 << 10, out))?;
        let written = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|out| out.flush());
        written.map_err(|source| Error::Io { doing: "write", object: "the archive".into(), source })
    }

    /// A fresh folder on the store's file system, for a tree that becomes a layer. Whoever asks removes it,
    /// or [`Store::collect`] does when that process is gone.
    pub fn scratch_dir(&self) -> Result<PathBuf> {
        self.work_dir()
    }

    fn work_dir(&self) -> Result<PathBuf> {
        let work = self.scratch("layer")?;
        fs::DirBuilder::new().mode(0o700).create(&work).at("create", &work)?;
        Ok(work)
    }

    fn archive_tree(
        &self,
        lease: &Lease,
        tree: &Path,
        options: &CommitOptions,
        upper: bool,
    ) -> Result<(CommittedLayer, Packed)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = rustix::fs::open(tree, flags, Mode::empty()).at("open", tree)?;
        let mut exclude = BTreeSet::new();
        for path in &options.exclude {
            let mut clean = Vec::new();
            crate::dirs::clean(path.as_os_str().as_bytes(), &mut clean)
                .map_err(|reason| Error::document(path.display(), reason))?;
            exclude.insert(clean);
        }
        let lowers = if upper && !options.lowers.is_empty() {
            Some(Merged::open(&options.lowers, self.ownership)?)
        } else {
            None
        };
        let what = Packing {
            ownership: self.ownership,
            upper,
            lowers: lowers.as_ref(),
            clamp_mtime: options.clamp_mtime,
            exclude: &exclude,
            live: options.live,
        };
        let out = BufWriter::with_capacity(64 << 10, self.blob_writer(lease, Algorithm::Sha256)?);
        let (packed, out) = pack(root, &what, out)?;
        let blob = out.into_inner().map_err(|e| Error::io("write a blob in", self.root(), e.into_error()))?;
        let layer = self.committed(lease, blob, packed.entries)?;
        Ok((layer, packed))
    }

    fn committed(&self, lease: &Lease, blob: BlobWriter, entries: u64) -> Result<CommittedLayer> {
        let (diff_id, size) = blob.finish(lease, None)?;
        let blob = Descriptor::new(media_type::OCI_LAYER, diff_id.clone(), size);
        Ok(CommittedLayer { diff_id, size, entries, blob })
    }

    fn unpack_blob(&self, layer: &CommittedLayer, work: &Path) -> Result<()> {
        let mut file = self.open_blob(&layer.diff_id)?;
        let unpacked = crate::ingest::unpack_plain(self, work, &mut file, |_| Ok(()))?;
        let info = LayerInfo {
            diff_id: layer.diff_id.clone(),
            size: layer.size,
            content: unpacked.content,
            entries: unpacked.entries,
            blobs: vec![layer.blob.clone()],
            opaque: unpacked.opaque,
            moved: false,
            skipped: unpacked.skipped,
        };
        self.place_layer(work, &info)
    }

    fn finish(&self, layer: CommittedLayer, work: &Path, result: Result<()>) -> Result<CommittedLayer> {
        match result {
            Ok(()) => self.known(layer),
            Err(e) => {
                let _ = crate::remove::tree(work);
                Err(e)
            }
        }
    }

    /// A layer that was here before may not know its uncompressed blob.
    fn known(&self, layer: CommittedLayer) -> Result<CommittedLayer> {
        self.remember_blob(&layer.diff_id, &layer.blob)?;
        Ok(layer)
    }
}

fn info(layer: &CommittedLayer, packed: &Packed) -> LayerInfo {
    LayerInfo {
        diff_id: layer.diff_id.clone(),
        size: layer.size,
        content: packed.content,
        entries: packed.entries,
        blobs: vec![layer.blob.clone()],
        opaque: packed.opaque,
        moved: true,
        skipped: Vec::new(),
    }
}

/// Deletes a tree, and leaves the directory that it was in as old as it was.
fn remove_quietly(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return crate::remove::tree(path) };
    // An outer one may have gone already.
    let before = match rustix::fs::lstat(parent) {
        Ok(before) => before,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::io("look at", parent, io::Error::from(e))),
    };
    crate::remove::tree(path)?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(before.st_atime as i64, before.st_atime_nsec as _),
        last_modification: time(before.st_mtime as i64, before.st_mtime_nsec as _),
    };
    rustix::fs::utimensat(CWD, parent, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| Error::io("set the time of", parent, io::Error::from(e)))
}
