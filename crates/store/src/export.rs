//! Images into files that Docker, podman and skopeo read: OCI layouts (image-spec, image-layout.md) and
//! archives that are a Docker archive and an OCI layout at once.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use isles_spec::image::{Descriptor, Index, Manifest, media_type};
use isles_spec::{Digest, Progress, Reference};
use serde::Serialize;

use crate::error::At;
use crate::hash::{Hasher, digest_of};
use crate::layer::to_json;
use crate::tar::{Entry, Kind, Writer};
use crate::{Error, Image, LayoutWriter, Result, Store};

const BUFFER: usize = 256 << 10;
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_LIMIT: u64 = 64 << 20;
/// An index of indexes of indexes is more than anyone makes.
const DOCUMENT_DEPTH: usize = 4;
/// What podman and skopeo read names from (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The formats that images are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A tar file with an OCI layout, layers as they are in the store; what podman, skopeo and Docker 25 and
    /// later read.
    OciArchive,
    /// A tar file that every Docker reads, and that is an OCI layout too; layers uncompressed.
    DockerArchive,
}

/// Where an OCI layout goes.
pub enum LayoutPlace<'a> {
    /// A folder, which is created where missing. What else is in it stays.
    Folder(&'a Path),
    /// A tar stream.
    Archive(&'a mut dyn Write),
}

/// One image of Docker's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub config: String,
    pub repo_tags: Vec<String>,
    pub layers: Vec<String>,
}

/// A manifest that can be written: every blob it names is at hand.
struct Portable {
    bytes: Vec<u8>,
    media_type: String,
    manifest: Manifest,
}

impl Store {
    /// Writes images, with names, as one archive.
    pub fn export_archive(
        &self,
        images: &[(Image, Vec<Reference>)],
        format: ExportFormat,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut archive = Archive::new(out)?;
        let id = progress.begin("writing the archive", None);
        let mut index = Index::new(Vec::new());
        let mut docker = Vec::new();
        for (image, names) in images {
            let portable = match format {
                ExportFormat::OciArchive => self.portable(image)?,
                ExportFormat::DockerArchive => self.uncompressed(image)?,
            };
            let config = self.read_document(image.id())?;
            archive.blob_bytes(image.id(), &config)?;
            for (layer, diff_id) in portable.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
                if archive.written.contains(&layer.digest) {
                    continue;
                }
                let mut data: Box<dyn Read> = match format {
                    ExportFormat::OciArchive => Box::new(self.open_blob(&layer.digest)?),
                    ExportFormat::DockerArchive => self.open_layer_tar(diff_id)?,
                };
                archive.blob(&layer.digest, layer.size, &mut *data, &mut |n| progress.advance(id, n))?;
            }
            let digest = digest_of(image.manifest_digest.algorithm(), &portable.bytes);
            archive.blob_bytes(&digest, &portable.bytes)?;
            let descriptor = Descriptor::new(&portable.media_type, digest, portable.bytes.len() as u64);
            add(&mut index, &descriptor, image, names);
            docker.push(DockerImage {
                config: blob_name(image.id()),
                repo_tags: tags(names),
                layers: portable.manifest.layers.iter().map(|l| blob_name(&l.digest)).collect(),
            });
        }
        archive.bytes("index.json", &to_json(&index)?)?;
        if format == ExportFormat::DockerArchive {
            archive.bytes("manifest.json", &to_json(&docker)?)?;
        }
        archive.writer.finish().map_err(written)?.flush().map_err(written)?;
        progress.end(id, "written");
        Ok(())
    }

    /// Adds images to an OCI layout folder, which is created where missing. A name that the layout has
    /// already moves to the new image.
    pub fn export_oci_dir(
        &self,
        images: &[(Image, Vec<Reference>)],
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.write_layout(images, dir, progress).map_err(|e| e.or_outside(&self.root))
    }

    fn write_layout(
        &self,
        images: &[(Image, Vec<Reference>)],
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        layout_in(dir, progress, |index, id| {
            for (image, names) in images {
                let portable = self.portable(image)?;
                let config = self.read_document(image.id())?;
                blob_into(dir, image.id(), &mut &config[..])?;
                for layer in &portable.manifest.layers {
                    blob_into(dir, &layer.digest, &mut self.open_blob(&layer.digest)?)?;
                    progress.advance(id, layer.size);
                }
                let digest = digest_of(image.manifest_digest.algorithm(), &portable.bytes);
                blob_into(dir, &digest, &mut &portable.bytes[..])?;
                let descriptor = Descriptor::new(&portable.media_type, digest, portable.bytes.len() as u64);
                add(index, &descriptor, image, names);
            }
            Ok(())
        })
    }

    /// Writes an image into a layout that holds nothing else new. Returns what the layout lists.
    pub fn write_image(
        &self,
        image: &Image,
        name: Option<&str>,
        writer: LayoutWriter,
        progress: &dyn Progress,
    ) -> Result<Descriptor> {
        let portable = self.portable(image)?;
        let id = progress.begin("writing the layout", None);
        for layer in &portable.manifest.layers {
            if !writer.has(&layer.digest) {
                writer.blob(layer, &mut self.open_blob(&layer.digest)?)?;
                progress.advance(id, layer.size);
            }
        }
        let config = self.read_document(image.id())?;
        if !writer.has(image.id()) {
            let config_type = &portable.manifest.config.media_type;
            let descriptor = Descriptor::new(config_type, image.id().clone(), config.len() as u64);
            writer.blob(&descriptor, &mut &config[..])?;
        }
        let digest = digest_of(image.manifest_digest.algorithm(), &portable.bytes);
        let mut root = Descriptor::new(&portable.media_type, digest, portable.bytes.len() as u64);
        if !writer.has(&root.digest) {
            writer.blob(&root, &mut &portable.bytes[..])?;
        }
        root.platform = Some(image.config.platform());
        let root = finish_layout(writer, root, name)?;
        progress.end(id, "written");
        Ok(root)
    }

    /// Writes a document with everything that it names into a layout that holds nothing else new.
    pub fn write_document(
        &self,
        document: &Descriptor,
        name: Option<&str>,
        writer: LayoutWriter,
        progress: &dyn Progress,
    ) -> Result<Descriptor> {
        let mut parts = Vec::new();
        self.parts_of(document, &mut HashSet::new(), &mut parts, 0)?;
        let id = progress.begin("writing the layout", None);
        for part in &parts {
            if !writer.has(&part.digest) {
                writer.blob(part, &mut self.open_blob(&part.digest)?)?;
                progress.advance(id, part.size);
            }
        }
        let root = finish_layout(writer, document.clone(), name)?;
        progress.end(id, "written");
        Ok(root)
    }

    /// Writes manifests and indexes, each with everything that it names, as an OCI layout. The descriptors
    /// stand in its `index.json` as they are.
    pub fn export_documents(
        &self,
        roots: &[Descriptor],
        place: LayoutPlace<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut parts = Vec::new();
        let mut seen = HashSet::new();
        for root in roots {
            self.parts_of(root, &mut seen, &mut parts, 0)?;
        }
        match place {
            LayoutPlace::Folder(dir) => {
                self.documents_into(roots, &parts, dir, progress).map_err(|e| e.or_outside(&self.root))
            }
            LayoutPlace::Archive(out) => {
                let mut archive = Archive::new(out)?;
                let id = progress.begin("writing the archive", None);
                for part in &parts {
                    let mut data = self.open_blob(&part.digest)?;
                    archive.blob(&part.digest, part.size, &mut data, &mut |n| progress.advance(id, n))?;
                }
                let index = Index::new(roots.to_vec());
                archive.bytes("index.json", &to_json(&index)?)?;
                archive.writer.finish().map_err(written)?.flush().map_err(written)?;
                progress.end(id, "written");
                Ok(())
            }
        }
    }

    fn documents_into(
        &self,
        roots: &[Descriptor],
        parts: &[Descriptor],
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        layout_in(dir, progress, |index, id| {
            for part in parts {
                blob_into(dir, &part.digest, &mut self.open_blob(&part.digest)?)?;
                progress.advance(id, part.size);
            }
            roots.iter().for_each(|root| list_in(index, root));
            Ok(())
        })
    }

    /// A document and all blobs that it names, once each, what is named before what names it.
    fn parts_of(
        &self,
        document: &Descriptor,
        seen: &mut HashSet<Digest>,
        out: &mut Vec<Descriptor>,
        depth: usize,
    ) -> Result<()> {
        if depth > DOCUMENT_DEPTH {
            let what = "the depth of indexes".to_owned();
            let object = document.digest.to_string();
            return Err(Error::Limit { object, what, limit: DOCUMENT_DEPTH as u64 });
        }
        if !seen.insert(document.digest.clone()) {
            return Ok(());
        }
        let bytes = self.read_document(&document.digest)?;
        if media_type::is_index(&document.media_type) {
            let index: Index =
                serde_json::from_slice(&bytes).map_err(|e| Error::document(&document.digest, e))?;
            for entry in &index.manifests {
                self.parts_of(entry, seen, out, depth + 1)?;
            }
        } else {
            let manifest: Manifest =
                serde_json::from_slice(&bytes).map_err(|e| Error::document(&document.digest, e))?;
            for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                if seen.insert(blob.digest.clone()) {
                    out.push(blob.clone());
                }
            }
        }
        let size = bytes.len() as u64;
        out.push(Descriptor::new(&document.media_type, document.digest.clone(), size));
        Ok(())
    }

    /// The image's own manifest where all its blobs are here; else one with the blobs that are. The image ID
    /// is the same either way.
    fn portable(&self, image: &Image) -> Result<Portable> {
        let mut manifest = image.manifest.clone();
        let mut own = true;
        for (layer, diff_id) in manifest.layers.iter_mut().zip(&image.config.rootfs.diff_ids) {
            if self.blob_size(&layer.digest) == Some(layer.size) {
                continue;
            }
            let here = self.blob_of_layer(diff_id, None)?;
            *layer = here.ok_or_else(|| Error::NoBlob { digest: layer.digest.clone() })?;
            own = false;
        }
        if own {
            let bytes = self.read_document(&image.manifest_digest)?;
            return Ok(Portable { bytes, media_type: image.manifest_media_type.clone(), manifest });
        }
        rewritten(manifest)
    }

    /// The image with its layers as plain archives.
    fn uncompressed(&self, image: &Image) -> Result<Portable> {
        let mut manifest = image.manifest.clone();
        for (layer, diff_id) in manifest.layers.iter_mut().zip(&image.config.rootfs.diff_ids) {
            *layer = Descriptor::new(media_type::OCI_LAYER, diff_id.clone(), self.layer_info(diff_id)?.size);
        }
        rewritten(manifest)
    }
}

/// Copies a blob into a layout, checking it on the way.
pub(crate) fn blob_into(dir: &Path, digest: &Digest, data: &mut dyn Read) -> Result<()> {
    let path = dir.join(blob_name(digest));
    if path.exists() {
        return Ok(());
    }
    let folder = dir.join("blobs").join(digest.algorithm().name());
    fs::create_dir_all(&folder).at("create", &folder)?;
    let temporary = folder.join(format!(".new-{}", crate::atomic::random_name()));
    let result = (|| {
        let mut file = fs::File::create_new(&temporary).at("create", &temporary)?;
        copy_checked(digest, data, |bytes| file.write_all(bytes).at("write", &temporary))?;
        file.sync_data().at("write", &temporary)?;
        fs::rename(&temporary, &path).at("write", &path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn rewritten(mut manifest: Manifest) -> Result<Portable> {
    manifest.media_type = Some(media_type::OCI_MANIFEST.into());
    manifest.config.media_type = media_type::OCI_CONFIG.into();
    Ok(Portable { bytes: to_json(&manifest)?, media_type: media_type::OCI_MANIFEST.into(), manifest })
}

/// An archive being written, in which every blob stands once.
pub(crate) struct Archive<W> {
    pub writer: Writer<W>,
    pub written: HashSet<Digest>,
}

impl<W: Write> Archive<W> {
    /// Begins an archive that holds an OCI layout.
    pub fn new(out: W) -> Result<Self> {
        let mut archive = Archive { writer: Writer::new(out), written: HashSet::new() };
        archive.bytes("oci-layout", LAYOUT)?;
        archive.folder("blobs")?;
        archive.folder("blobs/sha256")?;
        Ok(archive)
    }

    /// skopeo gives folders that an archive only implies to root, and fails where it is not root.
    fn folder(&mut self, name: &str) -> Result<()> {
        let path = name.as_bytes().to_vec();
        let entry = Entry { path, kind: Kind::Dir, mode: 0o755, ..Entry::default() };
        self.writer.begin(&entry).map_err(written)
    }

    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name, bytes.len() as u64)?;
        self.writer.data(bytes).map_err(written)
    }

    pub fn blob_bytes(&mut self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if self.written.insert(digest.clone()) { self.bytes(&blob_name(digest), bytes) } else { Ok(()) }
    }

    pub fn blob(
        &mut self,
        digest: &Digest,
        size: u64,
        data: &mut dyn Read,
        done: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.written.insert(digest.clone());
        self.begin(&blob_name(digest), size)?;
        let writer = &mut self.writer;
        copy_checked(digest, data, |bytes| {
            done(bytes.len() as u64);
            writer.data(bytes).map_err(written)
        })?;
        match self.writer.remaining() {
            0 => Ok(()),
            missing => Err(Error::WrongSize {
                object: format!("blob {digest}"),
                expected: size,
                actual: size - missing,
            }),
        }
    }

    fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        let path = name.as_bytes().to_vec();
        let entry = Entry { path, kind: Kind::File, mode: 0o644, size, ..Entry::default() };
        self.writer.begin(&entry).map_err(written)
    }
}

/// Copies content that must have a digest.
fn copy_checked(
    digest: &Digest,
    data: &mut dyn Read,
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let object = || format!("blob {digest}");
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = crate::pipe::read_full(data, &mut buffer).map_err(|source| Error::Io {
            doing: "read",
            object: object(),
            source,
        })?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        out(&buffer[..n])?;
    }
    let actual = hasher.finish();
    if actual == *digest {
        return Ok(());
    }
    Err(Error::WrongDigest { object: object(), expected: digest.clone(), actual })
}

/// Lists an image under each of its names, or once without any.
fn add(index: &mut Index, manifest: &Descriptor, image: &Image, names: &[Reference]) {
    let named: Vec<String> =
        names.iter().filter(|n| n.digest().is_none()).map(|n| n.normalized().to_string()).collect();
    let is = |d: &Descriptor, name: &String| d.annotations.get(REF_NAME) == Some(name);
    index.manifests.retain(|d| !named.iter().any(|n| is(d, n)));
    let mut descriptor = manifest.clone();
    descriptor.platform = Some(image.config.platform());
    if named.is_empty() {
        if !index.manifests.iter().any(|d| d.digest == descriptor.digest) {
            index.manifests.push(descriptor);
        }
        return;
    }
    for name in named {
        let mut descriptor = descriptor.clone();
        name_it(&mut descriptor, &name);
        index.manifests.push(descriptor);
    }
}

/// Ends a layout that is for one document. Returns what it lists.
fn finish_layout(writer: LayoutWriter, mut root: Descriptor, name: Option<&str>) -> Result<Descriptor> {
    if let Some(name) = name {
        root.annotations.insert(REF_NAME.into(), name.to_owned());
    }
    writer.finish(std::slice::from_ref(&root))?;
    Ok(root)
}

/// Gives an entry of an index a whole name.
pub(crate) fn name_it(entry: &mut Descriptor, name: &str) {
    // The first is what podman and skopeo read, the second what containerd and Docker do.
    entry.annotations.insert(REF_NAME.into(), name.to_owned());
    entry.annotations.insert("io.containerd.image.name".into(), name.to_owned());
}

/// Lists a document in the index of a layout, in place of what had its name.
pub(crate) fn list_in(index: &mut Index, root: &Descriptor) {
    let name = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
    let replaced = |d: &Descriptor| match name(root) {
        Some(own) => name(d).as_ref() == Some(&own),
        None => d.digest == root.digest && name(d).is_none(),
    };
    index.manifests.retain(|d| !replaced(d));
    index.manifests.push(root.clone());
}

/// Adds to the OCI layout in a folder, which is made where there is none: its index changes when all else is there.
pub(crate) fn layout_in(
    dir: &Path,
    progress: &dyn Progress,
    fill: impl FnOnce(&mut Index, u64) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(dir).at("create", dir)?;
    let index_path = dir.join("index.json");
    let mut index = read_index(&index_path)?;
    let id = progress.begin("writing the layout", None);
    fill(&mut index, id)?;
    crate::atomic::replace(&dir.join("oci-layout"), LAYOUT)?;
    crate::atomic::replace(&index_path, &to_json(&index)?)?;
    progress.end(id, "written");
    Ok(())
}

/// The list of a layout that may be there.
fn read_index(path: &Path) -> Result<Index> {
    match crate::atomic::read_bounded(path, INDEX_LIMIT) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::document(path.display(), e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index::new(Vec::new())),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Names as Docker's list has them.
pub(crate) fn tags(names: &[Reference]) -> Vec<String> {
    names.iter().filter(|n| n.digest().is_none()).map(|n| n.normalized().familiar()).collect()
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn written(source: io::Error) -> Error {
    Error::Io { doing: "write", object: "the archive".into(), source }
}
