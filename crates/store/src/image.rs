//! Images: a manifest, a configuration and layers, kept by their original bytes.
//!
//! The blobs hold the documents; `images/<algorithm>-<hex>` is a small record whose presence says that the
//! image is complete and on disk. The image ID is the digest of the configuration.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use isles_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::layer::to_json;
use crate::{Error, Lease, Result, Store};

const RECORD_LIMIT: u64 = 1 << 20;
/// Fewer characters of an ID than this are taken for a name.
const SHORTEST_ID: usize = 4;

/// An image that is complete in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the manifest's bytes.
    pub manifest_digest: Digest,
    pub manifest_media_type: String,
    pub manifest: Manifest,
    pub config: ImageConfig,
    /// How many of the lowest layers are hidden by an opaque one above them.
    hidden: usize,
}

impl Image {
    /// The image ID: the digest of the configuration.
    pub fn id(&self) -> &Digest {
        &self.manifest.config.digest
    }

    /// The descriptor of the manifest.
    pub fn descriptor(&self, store: &Store) -> Descriptor {
        let size = store.blob_size(&self.manifest_digest).unwrap_or_default();
        Descriptor::new(&self.manifest_media_type, self.manifest_digest.clone(), size)
    }
}

/// What makes an image out of blobs and layers that are in the store already.
#[derive(Debug, Clone, Default)]
pub struct NewImage<'a> {
    /// The manifest's original bytes.
    pub manifest: &'a [u8],
    /// As the registry or the index named it; the manifest's own `mediaType` otherwise.
    pub media_type: Option<&'a str>,
    /// The index through which the manifest was found. The names then stand for the index, and its word on
    /// the platform must agree with the configuration.
    pub index: Option<&'a [u8]>,
    /// Names for the image. A name with a digest must have the digest of the manifest or of the index.
    pub refs: &'a [Reference],
}

/// One line of a list of images.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    /// The image ID.
    pub id: Digest,
    pub manifest_digest: Digest,
    /// Names that stand for it, sorted.
    pub references: Vec<Reference>,
    pub platform: Platform,
    /// As the configuration says (RFC 3339).
    pub created: Option<String>,
    /// Bytes of all layers, uncompressed.
    pub size: u64,
    pub layers: Vec<Digest>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    manifest: Digest,
    media_type: String,
    config: Digest,
    platform: Platform,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    size: u64,
    layers: Vec<Digest>,
    #[serde(default, skip_serializing_if = "is_zero")]
    hidden: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Store {
    fn record_of(&self, manifest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}-{}", manifest.algorithm().name(), manifest.hex()))
    }

    /// Records an image whose configuration blob and unpacked layers are here, and gives it names. When this
    /// returns the image survives a power cut.
    pub fn put_image(&self, lease: &Lease, new: &NewImage<'_>) -> Result<Image> {
        let manifest_digest = digest_for(new, new.manifest);
        self.bounded("manifest", new.manifest)?;
        let manifest: Manifest =
            serde_json::from_slice(new.manifest).map_err(|e| Error::document("the manifest", e))?;
        let kind = new.media_type.or(manifest.media_type.as_deref()).unwrap_or(media_type::OCI_MANIFEST);
        if !media_type::is_manifest(kind) {
            return Err(Error::Unsupported {
                object: manifest_digest.to_string(),
                what: format!("media type {kind}"),
            });
        }
        if manifest.media_type.as_deref().is_some_and(|own| own != kind) {
            return Err(Error::document(
                &manifest_digest,
                "its media type differs from what it was announced as",
            ));
        }
        let config_bytes = self.read_document(&manifest.config.digest)?;
        let config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(|e| Error::document(&manifest.config.digest, e))?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let reason = format!(
                "{} layers, but {} diff IDs in the configuration",
                manifest.layers.len(),
                diff_ids.len()
            );
            return Err(Error::document(&manifest_digest, reason));
        }
        if diff_ids.len() > self.limits.layers {
            let limit = self.limits.layers as u64;
            return Err(Error::Limit {
                object: manifest_digest.to_string(),
                what: "the number of layers".into(),
                limit,
            });
        }
        let mut record = Record {
            manifest: manifest_digest.clone(),
            media_type: kind.to_owned(),
            config: manifest.config.digest.clone(),
            platform: config.platform(),
            created: config.created.clone(),
            size: 0,
            layers: diff_ids.clone(),
            hidden: 0,
        };
        for (i, diff_id) in diff_ids.iter().enumerate() {
            lease.hold(diff_id)?;
            if !self.has_layer(diff_id) {
                return Err(Error::NoLayer { diff_id: diff_id.clone() });
            }
            let info = self.layer_info(diff_id)?;
            record.size += info.size;
            if info.opaque {
                record.hidden = i;
            }
        }
        let mut target = manifest_digest.clone();
        if let Some(bytes) = new.index {
            target = self.put_index(lease, bytes, &manifest_digest, &record.platform, new)?;
        }
        for digest in new.refs.iter().filter_map(Reference::digest) {
            if *digest != manifest_digest && *digest != target {
                return Err(Error::WrongDigest {
                    object: "the image".into(),
                    expected: digest.clone(),
                    actual: manifest_digest,
                });
            }
        }
        self.put_expected(lease, &manifest_digest, new.manifest)?;
        self.settle(diff_ids)?;
        self.dir("images")?;
        {
            let _shared = self.share()?;
            crate::atomic::replace(&self.record_of(&manifest_digest), &to_json(&record)?)?;
            for reference in new.refs {
                let of_manifest = reference.digest() == Some(&manifest_digest);
                self.set_ref(reference, if of_manifest { &manifest_digest } else { &target })?;
            }
        }
        Ok(Image {
            manifest_digest,
            manifest_media_type: record.media_type,
            manifest,
            config,
            hidden: record.hidden,
        })
    }

    /// Keeps an index and checks what it says about one of its manifests.
    fn put_index(
        &self,
        lease: &Lease,
        bytes: &[u8],
        manifest: &Digest,
        actual: &Platform,
        new: &NewImage<'_>,
    ) -> Result<Digest> {
        self.bounded("index", bytes)?;
        let digest = digest_for(new, bytes);
        let index: Index = serde_json::from_slice(bytes).map_err(|e| Error::document("the index", e))?;
        let Some(entry) = index.manifests.iter().find(|d| d.digest == *manifest) else {
            return Err(Error::document(&digest, format!("the index does not name the manifest {manifest}")));
        };
        if let Some(promised) = &entry.platform
            && !promised.accepts(actual)
        {
            return Err(Error::PlatformConfusion {
                image: manifest.clone(),
                promised: promised.clone(),
                actual: actual.clone(),
            });
        }
        self.put_expected(lease, &digest, bytes)?;
        Ok(digest)
    }

    fn bounded(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let limit = self.limits.document;
        if bytes.len() <= limit {
            return Ok(());
        }
        Err(Error::Limit { object: format!("the {what}"), what: "its size".into(), limit: limit as u64 })
    }

    /// Makes an image from a configuration and the blobs of its layers, base first, whose diff IDs the
    /// configuration lists. Writes both documents (OCI media types).
    pub fn assemble(
        &self,
        lease: &Lease,
        config: &ImageConfig,
        layers: &[Descriptor],
        refs: &[Reference],
    ) -> Result<Image> {
        let config_bytes = to_json(config)?;
        let config_digest = self.put_bytes(lease, &config_bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: Descriptor::new(media_type::OCI_CONFIG, config_digest, config_bytes.len() as u64),
            layers: layers.to_vec(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let manifest = to_json(&manifest)?;
        self.put_image(lease, &NewImage { manifest: &manifest, refs, ..NewImage::default() })
    }

    /// Keeps a manifest that is no image (an attestation, a cache) and whose blobs are here. It stays as long as
    /// a lease, a build record, or an index with a name needs it.
    pub fn put_artefact(&self, lease: &Lease, manifest: &Manifest) -> Result<Descriptor> {
        self.put_document(lease, manifest, manifest.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST))
    }

    /// Keeps an index of manifests that are here.
    pub fn put_index_of(&self, lease: &Lease, index: &Index) -> Result<Descriptor> {
        self.put_document(lease, index, index.media_type.as_deref().unwrap_or(media_type::OCI_INDEX))
    }

    /// Makes a name stand for an image or an index that is here and that a lease holds.
    pub fn set_name(&self, reference: &Reference, target: &Digest) -> Result<()> {
        if reference.digest().is_some() {
            return Err(Error::document(reference.familiar(), "a digest is not a name that can be given"));
        }
        let _shared = self.share()?;
        if !self.has_image(target) && !self.has_blob(target) {
            return Err(Error::NoImage { name: target.to_string() });
        }
        self.set_ref(reference, target)
    }

    fn put_document<T: Serialize>(&self, lease: &Lease, document: &T, kind: &str) -> Result<Descriptor> {
        let bytes = to_json(document)?;
        self.bounded("document", &bytes)?;
        let digest = self.put_bytes(lease, &bytes)?;
        Ok(Descriptor::new(kind, digest, bytes.len() as u64))
    }

    /// Whether the image with this manifest is complete here.
    pub fn has_image(&self, manifest: &Digest) -> bool {
        self.record_of(manifest).exists()
    }

    /// The image with this manifest.
    pub fn image(&self, manifest: &Digest) -> Result<Image> {
        let record = self.read_record(manifest)?;
        let bytes = self.read_document(manifest)?;
        let parsed: Manifest = serde_json::from_slice(&bytes).map_err(|e| Error::document(manifest, e))?;
        let config = self.read_document(&parsed.config.digest)?;
        Ok(Image {
            manifest_digest: manifest.clone(),
            manifest_media_type: record.media_type,
            config: serde_json::from_slice(&config).map_err(|e| Error::document(&parsed.config.digest, e))?,
            manifest: parsed,
            hidden: record.hidden,
        })
    }

    fn read_record(&self, manifest: &Digest) -> Result<Record> {
        let path = self.record_of(manifest);
        match crate::atomic::read_bounded(&path, RECORD_LIMIT) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::damaged(path.display(), e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoImage { name: manifest.to_string() })
            }
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// The manifests of all images that have a record, readable or not.
    pub(crate) fn recorded(&self) -> Result<Vec<Digest>> {
        let names = crate::refs::names_in(&self.root.join("images"))?;
        Ok(names.iter().filter_map(|name| name.replacen('-', ":", 1).parse().ok()).collect())
    }

    /// Configuration and layers of an image, as its record has them, which needs none of its blobs.
    pub(crate) fn parts_recorded(&self, manifest: &Digest) -> Result<(Digest, Vec<Digest>)> {
        self.read_record(manifest).map(|record| (record.config, record.layers))
    }

    fn records(&self) -> Result<Vec<Record>> {
        let mut out = Vec::new();
        for digest in self.recorded()? {
            match self.read_record(&digest) {
                Ok(record) => out.push(record),
                // Removed by another process since the directory was read.
                Err(Error::NoImage { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Finds an image as people name it: a reference, an image ID or manifest digest with or without
    /// `sha256:`, or the beginning of an ID (four characters or more). Where the name covers several
    /// platforms, `platform` chooses; without it, the host's, or the only one that is here.
    pub fn resolve(&self, name: &str, platform: Option<&Platform>) -> Result<Image> {
        let bare = name.strip_prefix("sha256:").unwrap_or(name);
        let hex = !bare.is_empty() && bare.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let whole = hex && bare.len() == Algorithm::Sha256.hex_len();
        if !whole && let Ok(reference) = name.parse::<Reference>() {
            match self.resolve_reference(&reference, platform) {
                Err(Error::NoImage { .. }) if hex => {}
                other => return other,
            }
        }
        if !hex || bare.len() < SHORTEST_ID {
            return Err(Error::NoImage { name: name.to_owned() });
        }
        let mut ids: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        for record in self.records()? {
            if record.config.hex().starts_with(bare) || record.manifest.hex() == bare {
                ids.entry(record.config).or_default().push(record.manifest);
            }
        }
        match ids.len() {
            0 => Err(Error::NoImage { name: name.to_owned() }),
            1 => {
                let manifests: Vec<Digest> = ids.into_values().flatten().collect();
                self.choose(name, &manifests, platform)
            }
            _ => Err(Error::Ambiguous {
                name: name.to_owned(),
                candidates: ids.keys().map(|id| id.hex()[..bare.len().max(12)].to_owned()).collect(),
            }),
        }
    }

    /// Finds an image by a reference.
    pub fn resolve_reference(&self, reference: &Reference, platform: Option<&Platform>) -> Result<Image> {
        let name = reference.familiar();
        let target = match (self.lookup(reference)?, reference.digest()) {
            (Some(target), _) => target,
            // A digest says it all, whatever name it came by.
            (None, Some(digest)) if self.has_image(digest) || self.has_blob(digest) => digest.clone(),
            (None, _) => return Err(Error::NoImage { name }),
        };
        if self.has_image(&target) {
            return self.choose(&name, &[target], platform);
        }
        let manifests = self.manifests_of_index(&target)?;
        if manifests.is_empty() {
            return Err(Error::NoImage { name });
        }
        self.choose(&name, &manifests, platform)
    }

    /// The manifests of an index whose images are here. None where the index itself is not here, or is no index:
    /// the manifest of an image that is just being removed.
    pub(crate) fn manifests_of_index(&self, index: &Digest) -> Result<Vec<Digest>> {
        let bytes = match self.read_document(index) {
            Err(Error::NoBlob { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { return Ok(Vec::new()) };
        let here = index.manifests.into_iter().map(|d| d.digest).filter(|d| self.has_image(d));
        Ok(here.collect())
    }

    fn choose(&self, name: &str, manifests: &[Digest], platform: Option<&Platform>) -> Result<Image> {
        if let ([only], None) = (manifests, platform) {
            return self.image(only);
        }
        let records = manifests.iter().map(|m| self.read_record(m)).collect::<Result<Vec<_>>>()?;
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        if let Some(found) = records.iter().find(|r| wanted.accepts(&r.platform)) {
            return self.image(&found.manifest);
        }
        if let (None, [only]) = (platform, records.as_slice()) {
            return self.image(&only.manifest);
        }
        let have = records.iter().map(|r| r.platform.to_string()).collect();
        Err(Error::OtherPlatform { name: name.to_owned(), wanted: wanted.to_string(), have })
    }

    /// All images with their names, newest first.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for (reference, target) in self.references()? {
            if self.has_image(&target) {
                names.entry(target).or_default().push(reference);
            } else {
                // A damaged index leads nowhere; the list of the others is worth having.
                for manifest in self.manifests_of_index(&target).unwrap_or_default() {
                    names.entry(manifest).or_default().push(reference.clone());
                }
            }
        }
        let mut out: Vec<ImageSummary> = self
            .records()?
            .into_iter()
            .map(|r| ImageSummary {
                references: names.remove(&r.manifest).unwrap_or_default(),
                id: r.config,
                manifest_digest: r.manifest,
                platform: r.platform,
                created: r.created,
                size: r.size,
                layers: r.layers,
            })
            .collect();
        out.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.manifest_digest.cmp(&b.manifest_digest)));
        Ok(out)
    }

    /// The mountable root of an image: lower directories, base first.
    pub fn layers_of(&self, image: &Image) -> Result<Vec<PathBuf>> {
        self.layer_paths(image.config.rootfs.diff_ids.iter().skip(image.hidden))
    }

    /// Gives an image another name; a name that stood for another image moves.
    pub fn tag(&self, image: &Image, reference: &Reference) -> Result<()> {
        if reference.digest().is_some() {
            return Err(Error::document(reference.familiar(), "a digest is not a name that can be given"));
        }
        let _shared = self.share()?;
        if !self.has_image(&image.manifest_digest) {
            return Err(Error::NoImage { name: image.manifest_digest.to_string() });
        }
        self.set_ref(reference, &image.manifest_digest)
    }

    /// Takes a name away. Returns whether it was there. The image stays until it is collected.
    pub fn untag(&self, reference: &Reference) -> Result<bool> {
        self.remove_ref(reference)
    }

    /// Forgets the record of an image; its blobs and layers stay until they are collected.
    pub(crate) fn remove_record(&self, manifest: &Digest) -> Result<()> {
        crate::atomic::remove_file(&self.record_of(manifest))
    }
}

/// The digest of a document, by the algorithm of the name that asked for it.
fn digest_for(new: &NewImage<'_>, bytes: &[u8]) -> Digest {
    let sha512 = new.refs.iter().filter_map(Reference::digest).find(|d| d.algorithm() == Algorithm::Sha512);
    if let Some(asked) = sha512 {
        let digest = crate::hash::digest_of(Algorithm::Sha512, bytes);
        if digest == *asked {
            return digest;
        }
    }
    crate::hash::digest_of(Algorithm::Sha256, bytes)
}
