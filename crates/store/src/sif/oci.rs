//! OCI-SIF: a SIF file whose objects are an OCI index and the blobs that it names. Layers may be archives, as
//! everywhere, or squashfs images of one layer each (SingularityCE 4).

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use isles_sif::{Extra, Kind, NewObject, NewSif, Object, Sif};
use isles_spec::image::{Descriptor, History, ImageConfig, Index, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Quiet, Reference};

use super::archive::Meaning;
use super::export::{NewSifImage, SifMade, squashed};
use super::file_tree::FileTree;
use super::tree::Overlaid;
use crate::error::At;
use crate::hash::{Hasher, digest_of, digest_of_file};
use crate::layer::to_json;
use crate::{Error, Image, Lease, Merged, NewImage, Result, Store};

const SQUASHFS_LAYER: &str = "application/vnd.sylabs.image.layer.v1.squashfs";

impl Store {
    /// Makes an OCI-SIF file at `path`, in place of what may be there: the image's configuration, and its root file
    /// system as one layer, which SingularityCE mounts as it is.
    pub fn export_oci_sif(&self, image: &Image, new: &NewSifImage<'_>, path: &Path) -> Result<SifMade> {
        let merged = Merged::open(&self.layers_of(image)?, self.ownership())?;
        let mut tree = Overlaid::new(&merged, new.added, new.latest.unwrap_or(0));
        let (mut root, written) = squashed(&mut tree, new, path)?;
        let (digest, _) = digest_of_file(&mut root).at("read", path)?;
        let mut config = image.config.clone();
        config.rootfs.diff_ids = vec![digest.clone()];
        config.history = vec![History { created_by: Some("SIF".into()), ..History::default() }];
        let config_bytes = to_json(&config)?;
        let described = |kind: &str, bytes: &[u8]| {
            Descriptor::new(kind, digest_of(Algorithm::Sha256, bytes), bytes.len() as u64)
        };
        let manifest = to_json(&Manifest::new(
            described(media_type::OCI_CONFIG, &config_bytes),
            vec![Descriptor::new(SQUASHFS_LAYER, digest, written.bytes)],
        ))?;
        let mut entry = described(media_type::OCI_MANIFEST, &manifest);
        entry.platform = Some(config.platform());
        let index = to_json(&Index::new(vec![entry]))?;
        let layer = NewObject::new(Kind::OciBlob, BufReader::with_capacity(1 << 20, root));
        let objects = vec![
            NewObject { alignment: 4096, ..layer },
            NewObject::new(Kind::OciBlob, config_bytes.as_slice()),
            NewObject::new(Kind::OciBlob, manifest.as_slice()),
            NewObject::new(Kind::OciRootIndex, index.as_slice()),
        ];
        NewSif { uuid: new.uuid, ..NewSif::new(objects) }.create(path)?;
        Ok(SifMade { root: written.bytes, files: written.inodes })
    }

    pub(super) fn import_oci_sif(&self, lease: &Lease, sif: &Sif, refs: &[Reference]) -> Result<Image> {
        let root = sif.of_kind(Kind::OciRootIndex).next().ok_or_else(|| super::import::no_root(sif))?;
        let limit = self.limits().document as u64;
        let index: Index = serde_json::from_slice(&sif.read(root, limit)?)
            .map_err(|e| Error::document(format!("the index in {}", sif.name()), e))?;
        let [described] = index.manifests.as_slice() else {
            let reason = format!("its index names {} images, and one is read", index.manifests.len());
            return Err(Error::document(sif.name(), reason));
        };
        let bytes = self.document_in(sif, &described.digest)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| Error::document(&described.digest, e))?;
        let config_bytes = self.document_in(sif, &manifest.config.digest)?;
        let mut config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(|e| Error::document(&manifest.config.digest, e))?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let reason = "it has not as many layers as diff IDs";
            return Err(Error::document(&described.digest, reason));
        }
        let mut layers = Vec::with_capacity(manifest.layers.len());
        let mut is_same = true;
        for (n, layer) in manifest.layers.iter().enumerate() {
            let object = blob_in(sif, &layer.digest)?;
            if layer.media_type == SQUASHFS_LAYER {
                self.check_blob(sif, object, &layer.digest)?;
                let image = FileTree::squashfs(sif.file(), object.offset, object.size, sif.name())?;
                let made = self.layer_of_tree(lease, &image, object.size, Meaning::Layer, sif.name())?;
                config.rootfs.diff_ids[n] = made.diff_id;
                layers.push(made.blob);
                is_same = false;
            } else {
                let mut open = |offset: u64| -> std::io::Result<Box<dyn Read + '_>> {
                    let mut data = sif.reader(object);
                    data.seek(SeekFrom::Start(offset))?;
                    Ok(Box::new(data))
                };
                self.ingest_layer(lease, layer, &config.rootfs.diff_ids[n], &mut open, &Quiet)?;
                layers.push(layer.clone());
            }
        }
        if !is_same {
            return self.assemble(lease, &config, &layers, refs);
        }
        self.put_expected(lease, &manifest.config.digest, &config_bytes)?;
        let media_type = Some(described.media_type.as_str()).filter(|kind| media_type::is_manifest(kind));
        self.put_image(lease, &NewImage { manifest: &bytes, media_type, refs, ..NewImage::default() })
    }

    /// A small blob in the file, checked.
    fn document_in(&self, sif: &Sif, digest: &Digest) -> Result<Vec<u8>> {
        let object = blob_in(sif, digest)?;
        self.check_blob(sif, object, digest)?;
        Ok(sif.read(object, self.limits().document as u64)?)
    }

    fn check_blob(&self, sif: &Sif, object: &Object, expected: &Digest) -> Result<()> {
        let mut hasher = Hasher::new(expected.algorithm());
        let mut data = sif.reader(object);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = data.read(&mut buffer);
            match n.map_err(|source| Error::Io { doing: "read", object: sif.name().to_owned(), source })? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let actual = hasher.finish();
        if actual == *expected {
            return Ok(());
        }
        let object = format!("object {} of {}", object.id, sif.name());
        Err(Error::WrongDigest { object, expected: expected.clone(), actual })
    }
}

fn blob_in<'a>(sif: &'a Sif, digest: &Digest) -> Result<&'a Object> {
    let wanted = digest.to_string();
    let found = sif.of_kind(Kind::OciBlob).find(|o| matches!(&o.extra, Extra::OciDigest(d) if *d == wanted));
    found.ok_or_else(|| Error::document(sif.name(), format!("blob {digest} is not in it")))
}
