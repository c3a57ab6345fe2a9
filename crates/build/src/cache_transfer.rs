//! Caches of other builders: what `--cache-to` writes and `--cache-from` reads.
//!
//! The format is BuildKit's (`application/vnd.buildkit.cacheconfig.v0`): a manifest of layers, and as its
//! configuration a list of records that lead from keys to layers. Keys are those of this program, so BuildKit
//! reads such a cache without finding its own steps in it, and the other way round. An imported layer is fetched
//! when a step has its key, not before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isles_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use isles_spec::{Digest, Error as Spelling, Platform, Reference};
use isles_store::{Compression, Image, LayoutPlace};
use serde::{Deserialize, Serialize};

use crate::dockerfile::mount::fields;
use crate::error::{Error, Result};
use crate::output::{Encoding, Layers};
use crate::snapshot::{Build, Noted};

/// What BuildKit calls the configuration of a cache.
const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// The member of an image's configuration that holds an inline cache.
const INLINE: &str = "moby.buildkit.cache.v0";
/// Documents of caches are not larger than this.
const LIMIT: u64 = 64 << 20;

/// One `--cache-from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSource {
    Registry(Reference),
    Local { folder: PathBuf, tag: String, digest: Option<Digest> },
}

/// One `--cache-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTarget {
    pub place: CachePlace,
    /// Also the layers of stages that are not part of the image.
    pub max: bool,
    pub encoding: Encoding,
    /// A failure ends nothing.
    pub ignore_error: bool,
}

/// Where a cache goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// Into the image itself.
    Inline,
    Registry(Reference),
    Local {
        folder: PathBuf,
        tag: String,
    },
}

/// What a spelling comes to.
type Spelled<T> = std::result::Result<T, Spelling>;

/// Kinds of other builders, which need services of theirs.
const FOREIGN: [&str; 3] = ["gha", "s3", "azblob"];

fn pairs(text: &str) -> Spelled<(String, BTreeMap<String, String>)> {
    let fields = fields(text).map_err(Spelling::new)?;
    if let [only] = fields.as_slice()
        && !only.contains('=')
    {
        return Ok(("registry".into(), BTreeMap::from([("ref".to_owned(), only.clone())])));
    }
    let mut pairs = BTreeMap::new();
    for field in &fields {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| Spelling::new(format!("'{field}' of a cache is no KEY=VALUE")))?;
        pairs.insert(key.to_ascii_lowercase(), value.to_owned());
    }
    let kind = pairs.remove("type").ok_or_else(|| {
        Spelling::new(format!("the cache '{text}' has no type"))
            .with_hint("write type=local|registry|inline,…")
    })?;
    if FOREIGN.contains(&kind.as_str()) {
        return Err(Spelling::new(format!("caches of type {kind} are not supported"))
            .with_hint("type=registry,ref=NAME keeps a cache in a registry, type=local with dest=FOLDER or src=FOLDER in a folder"));
    }
    Ok((kind, pairs))
}

fn take(pairs: &mut BTreeMap<String, String>, kind: &str, key: &str) -> Spelled<String> {
    let value = pairs.remove(key).filter(|v| !v.is_empty());
    value.ok_or_else(|| Spelling::new(format!("a cache of type {kind} needs {key}=…")))
}

fn finished(kind: &str, pairs: &BTreeMap<String, String>) -> Spelled<()> {
    match pairs.keys().next() {
        None => Ok(()),
        Some(key) => Err(Spelling::new(format!("a cache of type {kind} has no '{key}' here"))),
    }
}

impl CacheSource {
    /// `type=registry,ref=NAME`, `type=local,src=FOLDER[,tag=TAG][,digest=DIGEST]`, or a name.
    pub fn parse(text: &str) -> Spelled<CacheSource> {
        let (kind, mut pairs) = pairs(text)?;
        let source = match kind.as_str() {
            "registry" => CacheSource::Registry(take(&mut pairs, &kind, "ref")?.parse()?),
            "local" => CacheSource::Local {
                folder: take(&mut pairs, &kind, "src")?.into(),
                tag: pairs.remove("tag").unwrap_or_else(|| "latest".into()),
                digest: pairs.remove("digest").map(|d| d.parse()).transpose()?,
            },
            _ => {
                return Err(Spelling::new(format!("a cache cannot come from type '{kind}'")).with_hint(
                    "known are local and registry; an image with an inline cache is of type registry",
                ));
            }
        };
        finished(&kind, &pairs)?;
        Ok(source)
    }
}

impl CacheTarget {
    /// `type=registry,ref=NAME`, `type=local,dest=FOLDER[,tag=TAG]`, `type=inline`, with `mode=min|max`.
    pub fn parse(text: &str) -> Spelled<CacheTarget> {
        let (kind, mut pairs) = pairs(text)?;
        let place = match kind.as_str() {
            "inline" => CachePlace::Inline,
            "registry" => CachePlace::Registry(take(&mut pairs, &kind, "ref")?.parse()?),
            "local" => CachePlace::Local {
                folder: take(&mut pairs, &kind, "dest")?.into(),
                tag: pairs.remove("tag").unwrap_or_else(|| "latest".into()),
            },
            _ => {
                return Err(Spelling::new(format!("a cache cannot go to type '{kind}'"))
                    .with_hint("known are local, registry and inline"));
            }
        };
        let mut truth = |key: &str, usual: bool| match pairs.remove(key).as_deref() {
            None => Ok(usual),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(Spelling::new(format!("{key} of a cache is true or false, not '{other}'"))),
        };
        let ignore_error = truth("ignore-error", false)?;
        let force = truth("force-compression", false)?;
        if !truth("image-manifest", true)? || !truth("oci-mediatypes", true)? {
            return Err(Spelling::new("a cache is an OCI manifest here")
                .with_hint("take image-manifest=false and oci-mediatypes=false out"));
        }
        let max = match pairs.remove("mode").as_deref() {
            None | Some("min") => false,
            Some("max") if place == CachePlace::Inline => {
                return Err(Spelling::new("an inline cache has the layers of the image only")
                    .with_hint("mode=max is for type=local and type=registry"));
            }
            Some("max") => true,
            Some(other) => {
                return Err(Spelling::new(format!("mode of a cache is min or max, not '{other}'")));
            }
        };
        let layers = match pairs.remove("compression").as_deref() {
            None | Some("gzip") => Layers::Compressed(Compression::Gzip),
            Some("zstd") => Layers::Compressed(Compression::Zstd),
            Some("uncompressed") => Layers::Plain,
            Some(other) => {
                return Err(Spelling::new(format!(
                    "compression is uncompressed, gzip or zstd, not '{other}'"
                )));
            }
        };
        let level = pairs.remove("compression-level");
        let level =
            level.map(|l| l.parse().map_err(|_| Spelling::new(format!("'{l}' is no level of compression"))));
        let encoding =
            Encoding { layers: Some(layers), level: level.transpose()?, force, docker_types: false };
        finished(&kind, &pairs)?;
        Ok(CacheTarget { place, max, encoding, ignore_error })
    }
}

/// BuildKit's document (cache/remotecache/v1/types).
#[derive(Debug, Default, Serialize, Deserialize)]
struct CacheConfig {
    #[serde(default)]
    layers: Vec<CacheLayer>,
    #[serde(default)]
    records: Vec<CacheRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CacheLayer {
    blob: Digest,
    /// The layer below; -1 for none, and BuildKit leaves 0 out.
    #[serde(default)]
    parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<LayerAnnotations>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerAnnotations {
    #[serde(default)]
    media_type: String,
    #[serde(default, rename = "diffID")]
    diff_id: Option<Digest>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    created_at: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CacheRecord {
    digest: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    results: Vec<CacheResult>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheResult {
    #[serde(default)]
    layer: usize,
    #[serde(default)]
    created_at: Option<String>,
}

/// A layer of another builder's cache.
#[derive(Debug, Clone)]
pub struct Imported {
    pub diff_id: Digest,
    pub created: String,
    blob: Descriptor,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    Registry(Reference),
    Folder(PathBuf),
}

/// What other builders' caches have.
#[derive(Debug, Default)]
pub struct Transfer {
    imported: HashMap<Digest, Imported>,
}

impl Transfer {
    /// Reads the lists of all sources. One that cannot be had is said, and does without.
    pub fn read(build: &Build<'_>, sources: &[CacheSource]) -> Transfer {
        let mut transfer = Transfer::default();
        for source in sources {
            let (name, read) = match source {
                CacheSource::Registry(name) => (name.familiar(), transfer.registry(build, name)),
                CacheSource::Local { folder, tag, digest } => (
                    folder.display().to_string(),
                    transfer.local(folder, tag, digest.as_ref(), &build.platform),
                ),
            };
            let work = build.progress.begin(&format!("importing the cache of {name}"), None);
            match read {
                Ok(records) => build.progress.end(work, &format!("{records} records")),
                Err(e) => build.progress.end(work, &format!("left out, {e}")),
            }
        }
        transfer
    }

    pub fn find(&self, key: &Digest) -> Option<&Imported> {
        self.imported.get(key)
    }

    fn registry(&mut self, build: &Build<'_>, name: &Reference) -> Result<usize> {
        let found = build.client.resolve(name, &build.platform)?;
        let config = build.client.document_blob(name, &found.parsed.config, LIMIT)?;
        self.add(&found.parsed, &config, &Origin::Registry(name.clone()))
    }

    fn local(
        &mut self,
        folder: &Path,
        tag: &str,
        digest: Option<&Digest>,
        platform: &Platform,
    ) -> Result<usize> {
        let document = |digest: &Digest| {
            let bytes = read(&blob_path(folder, digest))?;
            let actual = isles_store::Store::digest_of(digest.algorithm(), &bytes);
            if actual == *digest {
                return Ok(bytes);
            }
            Err(Error::from(Spelling::new(format!("the blob {digest} of '{}' is damaged", folder.display()))))
        };
        let index = folder.join("index.json");
        let index: Index = parsed(&read(&index)?, &index.display().to_string())?;
        let named = |d: &&Descriptor| match digest {
            Some(digest) => d.digest == *digest,
            None => d.annotations.get("org.opencontainers.image.ref.name").is_some_and(|n| n == tag),
        };
        let missing = || Spelling::new(format!("'{}' has no cache '{tag}'", folder.display()));
        let mut entry = index.manifests.iter().find(named).cloned().ok_or_else(missing)?;
        if media_type::is_index(&entry.media_type) {
            let inner: Index = parsed(&document(&entry.digest)?, "the index of the cache")?;
            let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| platform.accepts(p));
            entry = inner.manifests.iter().find(fits).cloned().ok_or_else(missing)?;
        }
        let manifest: Manifest = parsed(&document(&entry.digest)?, "the manifest of the cache")?;
        let config = document(&manifest.config.digest)?;
        self.add(&manifest, &config, &Origin::Folder(folder.to_owned()))
    }

    /// Takes the records of a cache, or of an image with an inline one.
    fn add(&mut self, manifest: &Manifest, config: &[u8], origin: &Origin) -> Result<usize> {
        let blobs: HashMap<&Digest, &Descriptor> = manifest.layers.iter().map(|l| (&l.digest, l)).collect();
        let (cache, diff_ids) = if manifest.config.media_type == CACHE_CONFIG {
            (parsed::<CacheConfig>(config, "the cache's list")?, HashMap::new())
        } else {
            let image: ImageConfig = parsed(config, "the image's configuration")?;
            let inline = image.rest.get(INLINE).and_then(|v| v.as_str());
            let inline = inline.ok_or_else(|| Spelling::new("it is an image without a cache"))?;
            let bytes = STANDARD.decode(inline).map_err(|_| Spelling::new("its inline cache is damaged"))?;
            let diff_ids: HashMap<Digest, Digest> =
                manifest.layers.iter().map(|l| l.digest.clone()).zip(image.rootfs.diff_ids).collect();
            let mut cache: CacheConfig = parsed(&bytes, "the inline cache")?;
            // An inline cache counts the layers of its image, which may have been compressed since.
            for (layer, blob) in cache.layers.iter_mut().zip(&manifest.layers) {
                layer.blob = blob.digest.clone();
            }
            (cache, diff_ids)
        };
        let mut records = 0;
        for record in &cache.records {
            let Some(result) = record.results.first() else { continue };
            let Some(layer) = cache.layers.get(result.layer) else { continue };
            let Some(blob) = blobs.get(&layer.blob) else { continue };
            let said = layer.annotations.as_ref();
            let Some(diff_id) = diff_ids.get(&layer.blob).or_else(|| said?.diff_id.as_ref()) else {
                continue;
            };
            let created = result.created_at.clone().or_else(|| said?.created_at.clone());
            let imported = Imported {
                diff_id: diff_id.clone(),
                created: created.unwrap_or_else(|| isles_spec::time::rfc3339(0)),
                blob: Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size),
                origin: origin.clone(),
            };
            self.imported.entry(record.digest.clone()).or_insert(imported);
            records += 1;
        }
        Ok(records)
    }
}

impl Imported {
    /// Brings the layer into the store. Nothing where it cannot be had: the step is then run.
    pub fn fetch(&self, build: &Build<'_>) -> Result<Option<Descriptor>> {
        let (store, lease, progress) = (build.store, build.lease, build.progress);
        build.note_work();
        let fetched = match &self.origin {
            Origin::Registry(name) => build
                .client
                .fetch_layer(store, lease, name, &self.blob, &self.diff_id, progress)
                .map_err(Error::from),
            Origin::Folder(folder) => {
                let path = blob_path(folder, &self.blob.digest);
                let mut open = |offset: u64| -> io::Result<Box<dyn Read>> {
                    let mut file = File::open(&path)?;
                    file.seek(SeekFrom::Start(offset))?;
                    Ok(Box::new(file))
                };
                store.ingest_layer(lease, &self.blob, &self.diff_id, &mut open, progress).map_err(Error::from)
            }
        };
        match fetched {
            Ok(layer) => Ok(Some(layer.blob)),
            // What is wrong here is wrong for the step too.
            Err(Error::Store(e @ isles_store::Error::Io { .. })) => Err(Error::Store(e)),
            Err(e) => {
                let work = progress.begin("a layer of the imported cache", None);
                progress.end(work, &format!("left out, {e}"));
                Ok(None)
            }
        }
    }
}

fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let bytes = isles_store::read_bounded(file, LIMIT).map_err(Error::io("read", path))?;
    bytes.ok_or_else(|| {
        Spelling::new(format!("'{}' is larger than a cache's document may be", path.display())).into()
    })
}

fn parsed<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Spelling::new(format!("{what} cannot be read: {e}")).into())
}

/// The list of records for layers that are numbered by their diff IDs.
fn config(layers: Vec<CacheLayer>, numbers: &HashMap<Digest, usize>, noted: &[Noted]) -> CacheConfig {
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    for step in noted {
        let Some(&layer) = numbers.get(&step.diff_id) else { continue };
        for key in step.keys.iter().filter(|k| seen.insert((*k).clone())) {
            let results = vec![CacheResult { layer, created_at: Some(step.created.clone()) }];
            records.push(CacheRecord { digest: key.clone(), results });
        }
    }
    CacheConfig { layers, records }
}

/// An inline cache for an image with these layers, as a member of its configuration.
pub fn inline(build: &Build<'_>, snapshot_layers: &[crate::snapshot::Layer]) -> (String, serde_json::Value) {
    let mut numbers = HashMap::new();
    let mut layers = Vec::new();
    for (number, layer) in snapshot_layers.iter().enumerate() {
        numbers.insert(layer.diff_id.clone(), number);
        let parent = i64::try_from(number).unwrap_or(i64::MAX) - 1;
        layers.push(CacheLayer { blob: layer.blob.digest.clone(), parent, annotations: None });
    }
    let noted = build.noted.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = serde_json::to_vec(&config(layers, &numbers, &noted)).unwrap_or_default();
    (INLINE.to_owned(), STANDARD.encode(bytes).into())
}

/// Writes a cache of what builds noted.
pub fn write(build: &Build<'_>, target: &CacheTarget, noted: &[Noted], images: &[&Image]) -> Result<()> {
    let name = match &target.place {
        CachePlace::Inline => return Ok(()),
        CachePlace::Registry(name) => name.familiar(),
        CachePlace::Local { folder, .. } => folder.display().to_string(),
    };
    let work = build.progress.begin(&format!("exporting the cache to {name}"), None);
    let written = place(build, target, noted, images);
    match written {
        Ok(()) => build.progress.end(work, "done"),
        Err(e) if target.ignore_error => build.progress.end(work, &format!("failed, {e}")),
        Err(e) => {
            build.progress.end(work, "failed");
            return Err(e);
        }
    }
    Ok(())
}

fn place(build: &Build<'_>, target: &CacheTarget, noted: &[Noted], images: &[&Image]) -> Result<()> {
    let (store, lease) = (build.store, build.lease);
    let wanted: HashSet<&Digest> = images.iter().flat_map(|i| &i.config.rootfs.diff_ids).collect();
    let mut numbers: HashMap<Digest, usize> = HashMap::new();
    let (mut layers, mut blobs) = (Vec::new(), Vec::new());
    for step in noted {
        if numbers.contains_key(&step.diff_id) || !(target.max || wanted.contains(&step.diff_id)) {
            continue;
        }
        let (kind, level) = match target.encoding.layers {
            Some(Layers::Compressed(kind)) => (Some(kind), target.encoding.level),
            _ => (None, None),
        };
        let known = store.layer_info(&step.diff_id)?.blobs.into_iter().find(|b| b.digest != step.diff_id);
        let blob =
            match known.filter(|b| !target.encoding.force && kind.is_some() && store.has_blob(&b.digest)) {
                Some(blob) => blob,
                None => store.layer_encoded(lease, &step.diff_id, kind, level)?,
            };
        let parent = step.below.iter().rev().find_map(|below| numbers.get(below));
        layers.push(CacheLayer {
            blob: blob.digest.clone(),
            parent: parent.map_or(-1, |n| i64::try_from(*n).unwrap_or(-1)),
            annotations: Some(LayerAnnotations {
                media_type: blob.media_type.clone(),
                diff_id: Some(step.diff_id.clone()),
                size: blob.size,
                created_at: Some(step.created.clone()),
            }),
        });
        let mut described = Descriptor::new(&blob.media_type, blob.digest, blob.size);
        // How containerd finds the diff ID of a layer without its image.
        described.annotations.insert("containerd.io/uncompressed".into(), step.diff_id.to_string());
        blobs.push(described);
        numbers.insert(step.diff_id.clone(), numbers.len());
    }
    let config = serde_json::to_vec(&config(layers, &numbers, noted)).unwrap_or_default();
    let digest = store.put_bytes(lease, &config)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.into()),
        artifact_type: None,
        config: Descriptor::new(CACHE_CONFIG, digest, config.len() as u64),
        layers: blobs,
        subject: None,
        annotations: BTreeMap::new(),
    };
    let mut root = store.put_artefact(lease, &manifest)?;
    match &target.place {
        CachePlace::Inline => {}
        CachePlace::Registry(name) => drop(build.client.push_document(store, &root, name, build.progress)?),
        CachePlace::Local { folder, tag } => {
            root.annotations.insert("org.opencontainers.image.ref.name".into(), tag.clone());
            store.export_documents(&[root], LayoutPlace::Folder(folder), build.progress)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let reference = |r: &str| r.parse::<Reference>().unwrap();
        for (text, expected) in [
            ("host/cache:1", CacheSource::Registry(reference("host/cache:1"))),
            ("type=registry,ref=host/cache", CacheSource::Registry(reference("host/cache"))),
            (
                "type=local,src=dir",
                CacheSource::Local { folder: "dir".into(), tag: "latest".into(), digest: None },
            ),
            (
                "type=local,src=dir,tag=x",
                CacheSource::Local { folder: "dir".into(), tag: "x".into(), digest: None },
            ),
        ] {
            assert_eq!(CacheSource::parse(text).unwrap(), expected, "{text}");
        }
        for (text, place, max) in [
            ("type=inline", CachePlace::Inline, false),
            ("host/cache", CachePlace::Registry(reference("host/cache")), false),
            (
                "type=registry,ref=a/b,mode=max,image-manifest=true",
                CachePlace::Registry(reference("a/b")),
                true,
            ),
            (
                "type=local,dest=d,mode=min,compression=zstd,compression-level=3",
                CachePlace::Local { folder: "d".into(), tag: "latest".into() },
                false,
            ),
        ] {
            let target = CacheTarget::parse(text).unwrap();
            assert_eq!((target.place, target.max), (place, max), "{text}");
        }
        for (text, why) in [
            ("type=gha", "gha"),
            ("type=s3,bucket=x", "s3"),
            ("type=tape", "tape"),
            ("src=x", "no type"),
            ("type=local", "needs"),
            ("type=registry,ref=", "ref=…"),
            ("type=registry,ref=a,color=red", "color"),
        ] {
            let error = CacheSource::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (text, why) in [
            ("type=inline,mode=max", "inline"),
            ("type=local,dest=x,mode=most", "most"),
            ("type=local,dest=x,compression=lzma", "lzma"),
            ("type=local,dest=x,image-manifest=false", "OCI manifest"),
            ("type=local,dest=x,ignore-error=perhaps", "perhaps"),
        ] {
            let error = CacheTarget::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn odd_lists_are_no_trouble() {
        let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64)).parse::<Digest>().unwrap();
        let manifest = Manifest {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            config: Descriptor::new(CACHE_CONFIG, digest('0'), 2),
            layers: vec![Descriptor::new(media_type::OCI_LAYER_GZIP, digest('a'), 1)],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let origin = Origin::Folder("x".into());
        let layer = format!(
            r#"{{"blob":"{}","parent":-1,"annotations":{{"diffID":"{}"}}}}"#,
            digest('a'),
            digest('b')
        );
        let key = digest('c');
        for (text, found) in [
            ("{}".to_owned(), Some(0)),
            ("[".into(), None),
            (
                format!(
                    r#"{{"layers":[{layer}],"records":[{{"digest":"{key}","results":[{{"layer":0}}]}}]}}"#
                ),
                Some(1),
            ),
            // As BuildKit writes it, which leaves 0 out.
            (format!(r#"{{"layers":[{layer}],"records":[{{"digest":"{key}","results":[{{}}]}}]}}"#), Some(1)),
            (
                format!(
                    r#"{{"layers":[{layer}],"records":[{{"digest":"{key}","results":[{{"layer":7}}]}}]}}"#
                ),
                Some(0),
            ),
            (
                format!(
                    r#"{{"layers":[{layer}],"records":[{{"digest":"{key}","inputs":[[{{"link":0}}]]}}]}}"#
                ),
                Some(0),
            ),
            (
                format!(
                    r#"{{"layers":[{{"blob":"{key}"}}],"records":[{{"digest":"{key}","results":[{{}}]}}]}}"#
                ),
                Some(0),
            ),
        ] {
            let mut transfer = Transfer::default();
            assert_eq!(transfer.add(&manifest, text.as_bytes(), &origin).ok(), found, "{text}");
            assert_eq!(transfer.find(&key).is_some(), found == Some(1), "{text}");
        }
    }
}
