//! Manifests and indexes of a repository, and what refers to them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use isles_spec::Digest;
use isles_spec::image::{Descriptor, media_type};
use serde::{Deserialize, Serialize};

use super::{Hosted, SMALL, digest_of_leaf, leaf, remove};
use crate::hash::digest_of;
use crate::layer::to_json;
use crate::refs::names_in;
use crate::{Error, Result};

/// What a repository knows of a manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostedManifest {
    /// As it was pushed, and as it is served.
    pub media_type: String,
    /// Bytes of the document.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// What kind of thing it is: its own `artifactType`, or the type of its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Configuration and layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Digest>,
    /// The manifests of an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Digest>,
    /// Bytes of the blobs, as the document says.
    #[serde(default)]
    pub blob_bytes: u64,
}

/// A manifest that is to become part of a repository.
#[derive(Debug, Clone, Copy)]
pub struct NewManifest<'a> {
    pub bytes: &'a [u8],
    /// As announced by who pushes it.
    pub media_type: &'a str,
    /// By which it shall be known.
    pub digest: &'a Digest,
    pub tags: &'a [&'a str],
}

/// The members of a manifest or an index that a registry looks at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Part>,
    #[serde(default)]
    layers: Option<Vec<Part>>,
    #[serde(default)]
    manifests: Option<Vec<Part>>,
    #[serde(default)]
    subject: Option<Part>,
    #[serde(default, deserialize_with = "isles_spec::null_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
}

impl Hosted {
    pub(super) fn manifest_record(&self, digest: &Digest) -> PathBuf {
        self.dir.join("manifests").join(leaf(digest))
    }

    fn referrers_dir(&self, subject: &Digest) -> PathBuf {
        self.dir.join("referrers").join(leaf(subject))
    }

    /// What is known of a manifest that this repository has.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<HostedManifest>> {
        let path = self.manifest_record(digest);
        match crate::atomic::read_bounded(&path, SMALL) {
            Ok(text) => {
                let record = serde_json::from_slice(&text).map_err(|e| Error::damaged(path.display(), e))?;
                // A damaged document may have been taken away; then the manifest is gone until it is pushed again.
                Ok(self.store.has_blob(digest).then_some(record))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// All manifests, in no order.
    pub fn manifests(&self) -> Result<Vec<Digest>> {
        Ok(names_in(&self.dir.join("manifests"))?.iter().filter_map(|n| digest_of_leaf(n)).collect())
    }

    /// Keeps a manifest, with the names it gets. What it names need not be here. The document is checked as far as
    /// a registry has to understand it; when this returns it survives a power cut.
    pub fn put_manifest(&self, new: &NewManifest<'_>) -> Result<HostedManifest> {
        let object = || format!("the manifest {}", new.digest);
        let limit = self.store.limits.document;
        if new.bytes.len() > limit {
            return Err(Error::Limit {
                object: object(),
                what: "the document's size".into(),
                limit: limit as u64,
            });
        }
        let actual = digest_of(new.digest.algorithm(), new.bytes);
        if actual != *new.digest {
            return Err(Error::WrongDigest { object: object(), expected: new.digest.clone(), actual });
        }
        let shape: Shape = serde_json::from_slice(new.bytes).map_err(|e| Error::document(object(), e))?;
        let record = record(&object(), new, &shape)?;
        {
            // The record first: what has one is not collected.
            let _shared = self.store.share()?;
            self.folder("manifests")?;
            crate::atomic::replace(&self.manifest_record(new.digest), &to_json(&record)?)?;
        }
        let lease = self.store.lease()?;
        self.store.put_expected(&lease, new.digest, new.bytes)?;
        if let Some(subject) = &record.subject {
            let mut descriptor = Descriptor::new(new.media_type, new.digest.clone(), record.size);
            descriptor.annotations = shape.annotations;
            descriptor.artifact_type = match media_type::is_index(new.media_type) {
                true => shape.artifact_type,
                false => record.artifact_type.clone(),
            };
            let relative = self.referrers_dir(subject);
            let relative = relative.strip_prefix(&self.dir).unwrap_or(&relative);
            let folder = self.folder(&relative.to_string_lossy())?;
            crate::atomic::replace(&folder.join(leaf(new.digest)), &to_json(&descriptor)?)?;
        }
        new.tags.iter().try_for_each(|tag| self.set_tag(tag, new.digest))?;
        Ok(record)
    }

    /// Takes a manifest away, with the tags that stand for it. Returns whether it was there.
    pub fn remove_manifest(&self, digest: &Digest) -> Result<bool> {
        let Some(record) = self.manifest(digest)? else { return remove(&self.manifest_record(digest)) };
        for tag in self.tags()? {
            if self.tag(&tag)?.as_ref() == Some(digest) {
                self.remove_tag(&tag)?;
            }
        }
        if let Some(subject) = &record.subject {
            remove(&self.referrers_dir(subject).join(leaf(digest)))?;
        }
        remove(&self.dir.join("pulled").join(leaf(digest)))?;
        remove(&self.manifest_record(digest))
    }

    /// The descriptors of what has `subject` as its subject, sorted by digest: what was pushed as such, and what
    /// clients of registries without referrers listed under the subject's tag (distribution-spec, "Referrers Tag
    /// Schema").
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let dir = self.referrers_dir(subject);
        let mut found: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for name in names_in(&dir)? {
            let path = dir.join(&name);
            let Some(digest) = digest_of_leaf(&name) else { continue };
            let Ok(text) = crate::atomic::read_bounded(&path, SMALL) else { continue };
            let descriptor = serde_json::from_slice(&text).map_err(|e| Error::damaged(path.display(), e))?;
            // One that was taken away by a process that died before it was done.
            if self.manifest_record(&digest).exists() {
                found.insert(digest, descriptor);
            }
        }
        let tag = format!("{}-{}", subject.algorithm().name(), &subject.hex()[..64]);
        if let Some(listed) = self.tag(&tag)?
            && let Ok(bytes) = self.store.read_document(&listed)
            && let Ok(index) = serde_json::from_slice::<isles_spec::image::Index>(&bytes)
        {
            for descriptor in index.manifests {
                let ours = self.manifest(&descriptor.digest)?;
                if ours.is_some_and(|m| m.subject.as_ref() == Some(subject)) {
                    found.entry(descriptor.digest.clone()).or_insert(descriptor);
                }
            }
        }
        Ok(found.into_values().collect())
    }
}

/// What is written down of a manifest; refuses what is neither a manifest nor an index, or could be read as both.
fn record(object: &str, new: &NewManifest<'_>, shape: &Shape) -> Result<HostedManifest> {
    let odd = |why: String| Err(Error::document(object, why));
    if shape.schema_version != 2 {
        return odd(format!("its schema version is {}, not 2", shape.schema_version));
    }
    if let Some(own) = shape.media_type.as_deref().filter(|own| *own != new.media_type) {
        return odd(format!("it is announced as {} but calls itself {own}", new.media_type));
    }
    let index = media_type::is_index(new.media_type);
    if !index && !media_type::is_manifest(new.media_type) {
        return odd(format!("its media type is {}", new.media_type));
    }
    let looks_like_index = shape.manifests.is_some();
    let looks_like_manifest = shape.config.is_some() || shape.layers.is_some();
    if looks_like_index == looks_like_manifest || looks_like_index != index {
        return odd(format!("its content is not of the type {}", new.media_type));
    }
    if !index && shape.config.is_none() {
        return odd("it names no configuration".into());
    }
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    let mut blob_bytes = 0u64;
    for part in shape.config.iter().chain(shape.layers.iter().flatten()) {
        if blobs.insert(part.digest.clone()) {
            blob_bytes = blob_bytes.saturating_add(part.size);
        }
    }
    let of_config = shape.config.as_ref().map(|c| c.media_type.clone());
    Ok(HostedManifest {
        media_type: new.media_type.to_owned(),
        size: new.bytes.len() as u64,
        subject: shape.subject.as_ref().map(|s| s.digest.clone()),
        artifact_type: shape.artifact_type.clone().filter(|t| !t.is_empty()).or(of_config),
        blobs: blobs.into_iter().collect(),
        manifests: shape.manifests.iter().flatten().map(|m| m.digest.clone()).collect(),
        blob_bytes,
    })
}
