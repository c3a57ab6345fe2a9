//! The form that an output gives a result: manifests with their layers encoded and annotated, attestations beside
//! them, and an index over all where one manifest is not enough.
//!
//! Attestations are laid out as BuildKit does (docs/attestations/attestation-storage.md): a manifest for the
//! platform `unknown/unknown`, whose descriptor names the image that it is about.

use std::collections::BTreeMap;

use isles_spec::image::{Descriptor, Index, Manifest, media_type};
use isles_spec::{Digest, Platform};
use isles_store::{Image, Lease, NewImage, Store};
use serde_json::{Value, json};

use super::annotation::{Annotation, Place};
use super::{Encoding, Layers};
use crate::error::Result;

const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v0.1";

/// What a build made for one platform.
#[derive(Debug, Clone)]
pub struct Made {
    pub platform: Platform,
    pub image: Image,
    /// What is attested of it.
    pub attested: Vec<Predicate>,
}

/// Something that is said of an image.
#[derive(Debug, Clone)]
pub struct Predicate {
    pub kind: String,
    /// What the file of it is called beside exported files.
    pub file: &'static str,
    pub body: Value,
}

/// A result in the form of one output.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The index, or the only manifest.
    pub root: Descriptor,
    pub images: Vec<(Platform, Image)>,
}

/// Gives a result its form.
pub fn bundle(
    store: &Store,
    lease: &Lease,
    made: &[Made],
    encoding: &Encoding,
    annotations: &[Annotation],
) -> Result<Bundle> {
    let several = made.len() > 1 || made.iter().any(|m| !m.attested.is_empty());
    if !several
        && let Some(lost) = annotations
            .iter()
            .find(|a| a.is_for(Place::Index, None) || a.is_for(Place::IndexDescriptor, None))
    {
        let message = format!("the annotation '{}' is for an index, and this image needs none", lost.key);
        let hint = "an index is made for several platforms, and for attestations";
        return Err(isles_spec::Error::new(message).with_hint(hint).into());
    }
    let mut images = Vec::new();
    let mut entries = Vec::new();
    let mut attestations = Vec::new();
    for one in made {
        let words = words(annotations, Place::Manifest, Some(&one.platform));
        let image = encoded(store, lease, &one.image, encoding, words)?;
        let mut entry = image.descriptor(store);
        entry.platform = Some(one.platform.clone());
        entry.annotations.extend(self::words(annotations, Place::ManifestDescriptor, Some(&one.platform)));
        if !one.attested.is_empty() {
            attestations.push(attestation(store, lease, &entry, &one.attested)?);
        }
        entries.push(entry);
        images.push((one.platform.clone(), image));
    }
    if let (false, [entry]) = (several, entries.as_slice()) {
        return Ok(Bundle { root: entry.clone(), images });
    }
    entries.extend(attestations);
    let index = Index {
        media_type: Some(
            if encoding.docker_types { media_type::DOCKER_LIST } else { media_type::OCI_INDEX }.into(),
        ),
        annotations: words(annotations, Place::Index, None),
        ..Index::new(entries)
    };
    let mut root = store.put_index_of(lease, &index)?;
    root.annotations = words(annotations, Place::IndexDescriptor, None);
    Ok(Bundle { root, images })
}

fn words(annotations: &[Annotation], place: Place, platform: Option<&Platform>) -> BTreeMap<String, String> {
    let meant = annotations.iter().filter(|a| a.is_for(place, platform));
    meant.map(|a| (a.key.clone(), a.value.clone())).collect()
}

/// An image with its layers in an encoding. The image itself, where nothing is to change.
fn encoded(
    store: &Store,
    lease: &Lease,
    image: &Image,
    encoding: &Encoding,
    annotations: BTreeMap<String, String>,
) -> Result<Image> {
    let mut manifest = image.manifest.clone();
    for (layer, diff_id) in manifest.layers.iter_mut().zip(&image.config.rootfs.diff_ids) {
        let plain = matches!(layer.media_type.as_str(), media_type::OCI_LAYER | media_type::DOCKER_LAYER);
        let here = store.blob_size(&layer.digest) == Some(layer.size);
        let wanted = encoding.layers.filter(|_| plain || encoding.force);
        if let Some(wanted) = wanted {
            let (kind, level) = match wanted {
                Layers::Plain => (None, None),
                Layers::Compressed(kind) => (Some(kind), encoding.level),
            };
            *layer = store.layer_encoded(lease, diff_id, kind, level)?;
        } else if !here && let Some(blob) = store.blob_of_layer(diff_id, None)? {
            *layer = blob;
        }
    }
    if manifest.layers == image.manifest.layers && annotations.is_empty() && !encoding.docker_types {
        return Ok(image.clone());
    }
    manifest.annotations.extend(annotations);
    for layer in &mut manifest.layers {
        layer.media_type = media_type::layer(&layer.media_type, encoding.docker_types).to_owned();
    }
    let (own, config) = if encoding.docker_types {
        (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
    } else {
        (media_type::OCI_MANIFEST, media_type::OCI_CONFIG)
    };
    manifest.media_type = Some(own.into());
    manifest.config.media_type = config.into();
    let bytes = serde_json::to_vec(&manifest).map_err(unwritable)?;
    Ok(store.put_image(lease, &NewImage { manifest: &bytes, ..NewImage::default() })?)
}

/// A manifest of statements about an image, as an index names it.
fn attestation(store: &Store, lease: &Lease, image: &Descriptor, said: &[Predicate]) -> Result<Descriptor> {
    let mut layers = Vec::new();
    for predicate in said {
        let bytes = serde_json::to_vec(&statement(predicate, image)).map_err(unwritable)?;
        let digest = store.put_bytes(lease, &bytes)?;
        let mut layer = Descriptor::new(IN_TOTO, digest, bytes.len() as u64);
        layer.annotations.insert("in-toto.io/predicate-type".into(), predicate.kind.clone());
        layers.push(layer);
    }
    let diff_ids: Vec<&Digest> = layers.iter().map(|l| &l.digest).collect();
    let config = json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec(&config).map_err(unwritable)?;
    let digest = store.put_bytes(lease, &config)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.into()),
        artifact_type: None,
        config: Descriptor::new(media_type::OCI_CONFIG, digest, config.len() as u64),
        layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    let mut entry = store.put_artefact(lease, &manifest)?;
    entry.platform = Some(Platform::new("unknown", "unknown", None));
    entry.annotations.insert("vnd.docker.reference.digest".into(), image.digest.to_string());
    entry.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
    Ok(entry)
}

/// An in-toto statement (github.com/in-toto/attestation, spec/v0.1).
pub fn statement(predicate: &Predicate, image: &Descriptor) -> Value {
    let platform = image.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    json!({
        "_type": STATEMENT,
        "predicateType": predicate.kind,
        "subject": [{
            "name": format!("image for {platform}"),
            "digest": { image.digest.algorithm().name(): image.digest.hex() },
        }],
        "predicate": predicate.body,
    })
}

fn unwritable(e: serde_json::Error) -> crate::Error {
    isles_spec::Error::new(format!("cannot write a document of the image: {e}")).into()
}
