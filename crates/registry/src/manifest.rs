//! Manifests and indexes: fetched, bounded, checked, and the one for a platform chosen
//! (distribution-spec, "Pulling manifests"; image-spec, manifest.md and image-index.md).

use isles_spec::image::{Descriptor, Index, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Platform, Reference};
use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};

use crate::auth::Scope;
use crate::client::{Call, Repository, object_name};
use crate::http::{read_bounded, sentence, text_of};
use crate::{Client, Error, Result};
pub(crate) use isles_store::digest_of_bytes as digest_of;

/// Registries must take manifests of 4 MiB (distribution-spec, "Pushing Manifests"); twice that is enough.
pub(crate) const MANIFEST_LIMIT: u64 = 8 << 20;
/// An index in an index in an index is more than anyone makes.
const INDEX_DEPTH: usize = 4;
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest or an index as the registry has it.
#[derive(Debug, Clone)]
pub struct Document {
    pub digest: Digest,
    pub media_type: String,
    /// The original bytes; the digest is over them.
    pub bytes: Vec<u8>,
}

/// What a name in a registry stands for on one platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the name itself stands for: the digest of the index, or of the manifest where there is none.
    pub target: Digest,
    pub manifest: Document,
    pub parsed: Manifest,
    /// The index that names the manifest, and what it says about its platform.
    pub index: Option<Document>,
    pub promised: Option<Platform>,
}

/// The members that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Client {
    /// What a name stands for in its registry now, without fetching it: digest, media type and size. This is
    /// what tells whether a local image is still the current one.
    pub fn head_manifest(&self, reference: &Reference) -> Result<Descriptor> {
        self.source(reference)?.head_manifest(reference)
    }

    /// Fetches the manifest or index that a name stands for, and checks its digest.
    pub fn manifest(&self, reference: &Reference) -> Result<Document> {
        self.source(reference)?.manifest(reference)
    }

    /// The platforms for which a name has an image; the host's where it stands for one image only.
    pub fn platforms(&self, reference: &Reference) -> Result<Vec<Platform>> {
        let found = self.manifest(reference)?;
        if !media_type::is_index(&found.media_type) {
            return Ok(vec![Platform::host()]);
        }
        let index: Index = serde_json::from_slice(&found.bytes).map_err(|e| Error::NotAnImage {
            object: object_name(reference),
            why: format!("its index is not valid: {e}"),
        })?;
        let said = index.manifests.into_iter().filter_map(|d| d.platform);
        Ok(said.filter(|p| p.os != "unknown").collect())
    }

    /// Fetches the manifest that a name stands for on a platform.
    pub fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Resolved> {
        self.source(reference)?.resolve(reference, platform)
    }
}

impl Repository<'_> {
    pub(crate) fn head_manifest(&self, reference: &Reference) -> Result<Descriptor> {
        let object = object_name(reference);
        let scope = Scope::of(&self.name, "pull");
        let call = manifest_call(self, reference, &scope, &object)?.method(Method::HEAD);
        let response = self.send(&call)?;
        let headers = response.headers();
        let digest = text_of(headers, &CONTENT_DIGEST).and_then(|t| t.parse().ok());
        let size = text_of(headers, &header::CONTENT_LENGTH).and_then(|t| t.parse().ok());
        match (response.status().as_u16(), digest) {
            (200, Some(digest)) => {
                Ok(Descriptor::new(&content_type(&response), digest, size.unwrap_or_default()))
            }
            // Registries that answer HEAD without a digest, or not at all, are asked for the document.
            (200 | 400 | 405, _) => {
                let found = self.manifest(reference)?;
                Ok(Descriptor::new(&found.media_type, found.digest, found.bytes.len() as u64))
            }
            _ => Err(self.refused(&call, response)),
        }
    }

    pub(crate) fn manifest(&self, reference: &Reference) -> Result<Document> {
        let object = object_name(reference);
        let scope = Scope::of(&self.name, "pull");
        let mut attempt = 0;
        loop {
            let call = manifest_call(self, reference, &scope, &object)?;
            let response = self.expect(call, &[200])?;
            let announced = content_type(&response);
            let said = text_of(response.headers(), &CONTENT_DIGEST).and_then(|t| t.parse::<Digest>().ok());
            let bytes = match read_bounded(response.into_body(), MANIFEST_LIMIT) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    let host = self.registry.clone();
                    return Err(Error::TooLarge { host, object, limit: MANIFEST_LIMIT });
                }
                Err(e) => {
                    attempt += 1;
                    let Some(wait) = self.retry().wait(attempt, None) else {
                        return Err(self.broken(format!("fetching {object}"), sentence(&e)));
                    };
                    std::thread::sleep(wait);
                    continue;
                }
            };
            // The name's own digest decides; a tag's document must at least be what the registry says it is.
            let expected = reference.digest().cloned().or(said);
            let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let digest = digest_of(algorithm, &bytes);
            if let Some(expected) = expected.filter(|e| *e != digest) {
                let host = self.registry.clone();
                return Err(Error::Mismatch { host, object, expected, actual: digest });
            }
            let media_type = kind_of(&object, &announced, &bytes)?;
            return Ok(Document { digest, media_type, bytes });
        }
    }

    pub(crate) fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Resolved> {
        let object = object_name(reference);
        let mut found = self.manifest(reference)?;
        let target = found.digest.clone();
        let mut index = None;
        let mut promised = None;
        for _ in 0..=INDEX_DEPTH {
            let odd = |e: serde_json::Error| Error::NotAnImage {
                object: object.clone(),
                why: format!("its manifest is not valid: {e}"),
            };
            if media_type::is_manifest(&found.media_type) {
                let parsed: Manifest = serde_json::from_slice(&found.bytes).map_err(odd)?;
                return Ok(Resolved { target, manifest: found, parsed, index, promised });
            }
            let parsed: Index = serde_json::from_slice(&found.bytes).map_err(odd)?;
            let chosen = choose(&parsed, platform).ok_or_else(|| Error::NoPlatform {
                object: object.clone(),
                wanted: platform.to_string(),
                available: platforms_of(&parsed),
            })?;
            promised = chosen.platform.clone().or(promised);
            let next = self.manifest(&reference.with_digest(chosen.digest.clone()))?;
            index = Some(std::mem::replace(&mut found, next));
        }
        Err(Error::NotAnImage {
            object,
            why: "its index holds an index that holds an index and so on".into(),
        })
    }
}

/// What kind of document these bytes are; one that could be read as two kinds is refused.
pub(crate) fn kind_of(object: &str, announced: &str, bytes: &[u8]) -> Result<String> {
    let odd = |why: String| Error::NotAnImage { object: object.to_owned(), why };
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|e| odd(format!("its manifest is not valid: {e}")))?;
    if SCHEMA_1.contains(&announced) || shape.schema_version == 1 || shape.fs_layers.is_some() {
        return Err(Error::Schema1 { object: object.to_owned() });
    }
    let looks_like_index = match (shape.manifests.is_some(), shape.layers.is_some()) {
        (true, true) => {
            return Err(odd("its manifest could also be read as an index".into()));
        }
        (index, _) => index,
    };
    let known = |t: &str| media_type::is_index(t) || media_type::is_manifest(t);
    let own = shape.media_type.as_deref();
    let kind = match own {
        Some(own) if known(announced) && own != announced => {
            return Err(odd(format!("it is announced as {announced} but calls itself {own}")));
        }
        Some(own) => own,
        None if known(announced) => announced,
        None if looks_like_index => media_type::OCI_INDEX,
        None => media_type::OCI_MANIFEST,
    };
    if !known(kind) {
        return Err(odd(format!("its media type is {}", crate::error::one_line(kind))));
    }
    if media_type::is_index(kind) != looks_like_index {
        return Err(odd(format!("its content is not of the type {kind}")));
    }
    Ok(kind.to_owned())
}

/// The entry of an index that serves a platform best. Entries that do not say their platform count only
/// where nothing else fits, as their configuration then decides.
pub(crate) fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let usable =
        |d: &&Descriptor| media_type::is_manifest(&d.media_type) || media_type::is_index(&d.media_type);
    let rank = |d: &&Descriptor| {
        let Some(have) = &d.platform else { return Some(100) };
        let have = Platform::new(&have.os, &have.architecture, have.variant.as_deref());
        let want = Platform::new(&wanted.os, &wanted.architecture, wanted.variant.as_deref());
        if have == want {
            return Some(0);
        }
        let level =
            |p: &Platform| p.variant.as_deref().and_then(|v| v.trim_start_matches('v').parse::<u32>().ok());
        match (level(&want), level(&have)) {
            // An ARM processor runs what was built for its predecessors; the nearest is best.
            (Some(w), Some(h))
                if want.architecture == "arm" && have.architecture == "arm" && want.os == have.os =>
            {
                (h < w).then_some(1 + w - h)
            }
            (_, h) if wanted.accepts(&have) => Some(20 + h.unwrap_or_default()),
            _ => None,
        }
    };
    index
        .manifests
        .iter()
        .filter(usable)
        .filter(|d| d.artifact_type.is_none())
        .filter_map(|d| rank(&d).map(|r| (r, d)))
        .min_by_key(|(r, _)| *r)
        .map(|(_, d)| d)
}

pub(crate) fn platforms_of(index: &Index) -> String {
    let mut names: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| crate::error::one_line(&p.to_string()))
        .collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(20);
    names.truncate(20);
    match (names.is_empty(), more) {
        (true, _) => "none".into(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

fn manifest_call<'a>(
    repository: &Repository<'_>,
    reference: &Reference,
    scope: &'a Scope,
    object: &'a str,
) -> Result<Call<'a>> {
    let url = repository.url(&format!("manifests/{}", manifest_name(reference)))?;
    let mut call = Call::get(url, scope, "pull", object);
    accept_all(&mut call.headers);
    Ok(call)
}

/// The digest where the name has one, else its tag.
pub(crate) fn manifest_name(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => digest.to_string(),
        None => reference.tag_or_default().unwrap_or(isles_spec::reference::DEFAULT_TAG).to_owned(),
    }
}

fn accept_all(headers: &mut HeaderMap) {
    let types = [
        media_type::OCI_INDEX,
        media_type::DOCKER_LIST,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST,
        "*/*;q=0.1",
    ];
    if let Ok(value) = HeaderValue::from_str(&types.join(", ")) {
        headers.insert(header::ACCEPT, value);
    }
}

fn content_type<T>(response: &Response<T>) -> String {
    let text = text_of(response.headers(), &header::CONTENT_TYPE).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_entry_for_a_platform() {
        let index = |platforms: &[&str]| {
            let entries = platforms.iter().enumerate().map(|(i, p)| {
                let digest = digest_of(Algorithm::Sha256, &[i as u8]);
                let mut d = Descriptor::new(media_type::OCI_MANIFEST, digest, 1);
                d.platform = (*p != "-").then(|| p.parse().unwrap());
                d
            });
            Index { media_type: None, ..Index::new(entries.collect()) }
        };
        for (have, wanted, chosen) in [
            (&["linux/arm64", "linux/amd64"][..], "linux/amd64", Some(1)),
            (&["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "linux/amd64", Some(2)),
            (&["linux/amd64/v3", "linux/amd64/v2"], "linux/amd64", Some(1)),
            (&["linux/amd64", "linux/amd64/v3"], "linux/amd64/v3", Some(1)),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Some(1)),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (&["linux/arm64/v8"], "linux/arm64", Some(0)),
            (&["windows/amd64", "unknown/unknown"], "linux/amd64", None),
            (&["-", "linux/amd64"], "linux/amd64", Some(1)),
            (&["-", "linux/arm64"], "linux/amd64", Some(0)),
            (&[], "linux/amd64", None),
        ] {
            let index = index(have);
            let found = choose(&index, &wanted.parse().unwrap());
            let expected = chosen.map(|i: usize| &index.manifests[i]);
            assert_eq!(found, expected, "{wanted} from {have:?}");
        }
        assert_eq!(platforms_of(&index(&["linux/arm64", "linux/amd64", "-"])), "linux/amd64, linux/arm64");
    }
}
