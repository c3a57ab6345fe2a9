//! Where a copy comes from: a registry or a layout, of which documents and blobs are had one by one.

use std::collections::HashSet;
use std::io::Read;

use isles_spec::image::{Descriptor, Index, media_type};
use isles_spec::{Digest, Platform, Reference};
use isles_store::Layout;

use super::{CopyFrom, DEPTH, Platforms};
use crate::blob::{Download, Shared};
use crate::client::Repository;
use crate::hash::Verified;
use crate::manifest::{Document, MANIFEST_LIMIT, choose, digest_of, kind_of, platforms_of};
use crate::{Client, Error, Result};

/// What BuildKit says of an attestation: the digest of the manifest beside it that it is about.
const ABOUT: &str = "vnd.docker.reference.digest";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub enum Source<'a> {
    Registry(&'a Client, Repository<'a>, &'a Reference),
    Layout(&'a Layout, &'a Descriptor),
}

pub type Opened<'o> = &'o dyn Fn(u64) -> Result<Box<dyn Read + 'o>>;

impl<'a> Source<'a> {
    pub fn of(from: CopyFrom<'a>) -> Result<Source<'a>> {
        Ok(match from {
            CopyFrom::Registry(client, reference) => {
                Source::Registry(client, client.source(reference)?, reference)
            }
            CopyFrom::Layout(layout, root) => Source::Layout(layout, root),
        })
    }

    /// What messages call it.
    pub fn object(&self) -> String {
        match self {
            Source::Registry(_, _, reference) => crate::client::object_name(reference),
            Source::Layout(_, root) => root.digest.to_string(),
        }
    }

    pub fn connections(&self) -> usize {
        match self {
            Source::Registry(client, ..) => client.options.connections,
            Source::Layout(..) => 1,
        }
    }

    pub fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        match self {
            Source::Registry(_, repository, reference) => {
                repository.manifest(&reference.with_digest(descriptor.digest.clone()))
            }
            Source::Layout(layout, _) => {
                let bytes = layout.document(&descriptor.digest)?;
                let media_type = kind_of(&descriptor.digest.to_string(), &descriptor.media_type, &bytes)?;
                Ok(Document { digest: descriptor.digest.clone(), media_type, bytes })
            }
        }
    }

    /// What the name stands for, of these platforms.
    pub fn chosen(&self, platforms: &Platforms) -> Result<Document> {
        let found = match self {
            Source::Registry(_, repository, reference) => repository.manifest(reference)?,
            Source::Layout(_, root) => self.document(root)?,
        };
        match platforms {
            Platforms::All => Ok(found),
            Platforms::One(platform) => self.image(found, platform),
            Platforms::These(platforms) => self.thinned(found, platforms),
        }
    }

    /// The image for one platform.
    fn image(&self, mut found: Document, platform: &Platform) -> Result<Document> {
        for _ in 0..=DEPTH {
            if !media_type::is_index(&found.media_type) {
                return Ok(found);
            }
            let index = self.index(&found)?;
            let entry = choose(&index, platform).ok_or_else(|| self.lacks(&index, platform))?;
            found = self.document(entry)?;
        }
        Err(too_deep(self))
    }

    /// The index with the images for these platforms only, and with what says that it is about one of them. It is
    /// another document, with another digest, unless nothing was left out.
    fn thinned(&self, found: Document, platforms: &[Platform]) -> Result<Document> {
        let odd = |why: String| Error::NotAnImage { object: self.object(), why };
        if !media_type::is_index(&found.media_type) {
            return Err(odd(
                "it has an image for one platform only, so there are no several to choose".into()
            ));
        }
        let index = self.index(&found)?;
        let mut kept: HashSet<String> = HashSet::new();
        for platform in platforms {
            let entry = choose(&index, platform).ok_or_else(|| self.lacks(&index, platform))?;
            kept.insert(entry.digest.to_string());
        }
        let mut document: serde_json::Value =
            serde_json::from_slice(&found.bytes).map_err(|e| odd(format!("its index is not valid: {e}")))?;
        let entries = document.get_mut("manifests").and_then(|m| m.as_array_mut());
        let entries = entries.ok_or_else(|| odd("its index is not valid: it has no manifests".into()))?;
        let before = entries.len();
        entries.retain(|entry| {
            let said = |text: Option<&serde_json::Value>| {
                text.and_then(|t| t.as_str()).is_some_and(|digest| kept.contains(digest))
            };
            said(entry.get("digest")) || said(entry.get("annotations").and_then(|a| a.get(ABOUT)))
        });
        if entries.len() == before {
            return Ok(found);
        }
        let bytes = document.to_string().into_bytes();
        let digest = digest_of(found.digest.algorithm(), &bytes);
        Ok(Document { digest, media_type: found.media_type, bytes })
    }

    fn lacks(&self, index: &Index, platform: &Platform) -> Error {
        Error::NoPlatform {
            object: self.object(),
            wanted: platform.to_string(),
            available: platforms_of(index),
        }
    }

    /// What another tag of the source stands for, where it has that.
    pub fn tagged(&self, tag: &str) -> Result<Option<Document>> {
        match self {
            Source::Registry(_, repository, _) => {
                match repository.manifest(&repository.reference()?.with_tag(tag)?) {
                    Ok(found) => Ok(Some(found)),
                    Err(Error::NotFound { .. }) => Ok(None),
                    Err(e) => Err(e),
                }
            }
            Source::Layout(layout, _) => {
                let named = |d: &&Descriptor| d.annotations.get(REF_NAME).is_some_and(|name| name == tag);
                layout.roots().iter().find(named).map(|root| self.document(root)).transpose()
            }
        }
    }

    pub fn index(&self, document: &Document) -> Result<Index> {
        serde_json::from_slice(&document.bytes).map_err(|e| Error::NotAnImage {
            object: self.object(),
            why: format!("its index is not valid: {e}"),
        })
    }

    /// A small blob whole.
    pub fn small(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        match self {
            Source::Registry(_, repository, _) => repository.small_blob(blob, MANIFEST_LIMIT),
            Source::Layout(layout, _) => Ok(layout.document(&blob.digest)?),
        }
    }

    /// Lends a blob for reading from any offset on, checked as far as it passes.
    pub fn with_blob(&self, blob: &Descriptor, work: &mut dyn FnMut(Opened<'_>) -> Result<()>) -> Result<()> {
        match self {
            Source::Registry(_, repository, _) => {
                let shared = Shared::default();
                let download = Download::new(repository, blob, &shared, &|_| {});
                work(&|offset| {
                    let stream = download.afresh().stream(offset);
                    Ok(Box::new(Verified::new(stream, blob, &repository.registry, offset)))
                })
            }
            Source::Layout(layout, _) => work(&|offset| {
                let part = layout.blob(&blob.digest, offset)?;
                Ok(Box::new(Verified::new(part, blob, "the layout", offset)))
            }),
        }
    }

    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let layout = match self {
            Source::Registry(_, repository, _) => return repository.referrers(subject),
            Source::Layout(layout, _) => layout,
        };
        let mut found = Vec::new();
        for root in layout.roots() {
            let document = self.document(root)?;
            let about = Subject::of(&document.bytes);
            if about.subject.is_some_and(|s| s.digest == *subject) {
                let mut root = root.clone();
                root.annotations.remove(REF_NAME);
                root.artifact_type = root.artifact_type.or(about.artifact_type);
                found.push(root);
            }
        }
        Ok(found)
    }
}

/// What a manifest or an index says it is about.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    #[serde(default)]
    pub subject: Option<Descriptor>,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
}

impl Subject {
    pub fn of(document: &[u8]) -> Subject {
        let mut found: Subject = serde_json::from_slice(document).unwrap_or_default();
        found.artifact_type = found.artifact_type.or(found.config.as_ref().map(|c| c.media_type.clone()));
        found
    }
}

pub fn too_deep(source: &Source<'_>) -> Error {
    let why = "its index holds an index that holds an index and so on".into();
    Error::NotAnImage { object: source.object(), why }
}
