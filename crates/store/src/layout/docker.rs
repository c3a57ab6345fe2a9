//! An image of a Docker archive as a manifest with compressed layers.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};

use flate2::GzBuilder;
use isles_spec::image::{Descriptor, ImageConfig, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Reference};

use super::files::{self, Files};
use super::{From, Held, Layout, LayoutBlob, Made, Span};
use crate::blob::Unnamed;
use crate::decompress::{Decoder, Encoding};
use crate::hash::{Hashed, Hasher, digest_of};
use crate::import::DockerImage;
use crate::layer::to_json;
use crate::{Error, Result, Store};

const BUFFER: usize = 256 << 10;

impl Store {
    /// Opens the one image of a Docker archive that goes by `name`, or is the only one. Its layers are compressed, the
    /// same layer always to the same bytes.
    pub fn open_docker_archive(&self, path: &std::path::Path, name: Option<&str>) -> Result<Layout> {
        let files = files::read(self, path)?;
        let object = path.display().to_string();
        let limit = self.limits.document;
        let list = files.document(b"manifest.json", limit)?.ok_or_else(|| Error::Archive {
            object: object.clone(),
            reason: "it has no manifest.json, so it is no Docker archive".into(),
        })?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&list).map_err(|e| Error::document("manifest.json", e))?;
        let image = choose(&images, name, &object)?;
        let missing = |file: &str| Error::document(&object, format!("it lacks the file '{file}'"));
        let span = files.find(&image.config).ok_or_else(|| missing(&image.config))?;
        let config = files.bytes(span, "the configuration", limit)?;
        let parsed: ImageConfig =
            serde_json::from_slice(&config).map_err(|e| Error::document(&image.config, e))?;
        let layers = image.layers.as_deref().unwrap_or_default();
        let diff_ids = &parsed.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let (l, d) = (layers.len(), diff_ids.len());
            return Err(Error::document(&image.config, format!("{l} layers, but {d} diff IDs")));
        }
        let mut made = HashMap::new();
        let mut blobs = HashMap::new();
        let mut descriptors: Vec<Descriptor> = Vec::new();
        let mut known: HashMap<&Digest, Descriptor> = HashMap::new();
        for (name, diff_id) in layers.iter().zip(diff_ids) {
            if let Some(same) = known.get(diff_id) {
                descriptors.push(same.clone());
                continue;
            }
            let span = files.find(name).ok_or_else(|| missing(name))?;
            let layer = self.packed(&files, span, diff_id)?;
            let descriptor = match layer {
                Packed::AsItIs(descriptor) => {
                    blobs.insert(descriptor.digest.clone(), span);
                    descriptor
                }
                Packed::Made(descriptor, file) => {
                    made.insert(descriptor.digest.clone(), Made::File(file, descriptor.size));
                    descriptor
                }
            };
            known.insert(diff_id, descriptor.clone());
            descriptors.push(descriptor);
        }
        let id = digest_of(Algorithm::Sha256, &config);
        let of_config = Descriptor::new(media_type::OCI_CONFIG, id.clone(), config.len() as u64);
        let manifest = to_json(&Manifest::new(of_config, descriptors))?;
        let digest = digest_of(Algorithm::Sha256, &manifest);
        let mut root = Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), manifest.len() as u64);
        root.platform = Some(parsed.platform());
        made.insert(id, Made::Bytes(config));
        made.insert(digest, Made::Bytes(manifest));
        Ok(Layout { object, roots: vec![root], from: From::Archive { file: files.file, blobs, made }, limit })
    }

    /// A layer of the archive, compressed, with its diff ID checked.
    fn packed(&self, files: &Files, span: Span, diff_id: &Digest) -> Result<Packed> {
        let object = || format!("the layer {diff_id}");
        let failed =
            |doing| move |source| Error::Io { doing, object: format!("the layer {diff_id}"), source };
        let mut start = [0; 8];
        let seen = crate::pipe::read_full(&mut part(files, span), &mut start).map_err(failed("read"))?;
        let encoding = Encoding::of(&start[..seen]);
        let mut plain = Hasher::new(diff_id.algorithm());
        let mut buffer = vec![0; BUFFER];
        let limit = self.limits.layer_bytes;
        let mut size = 0;
        let mut pass = |from: &mut dyn Read, out: &mut dyn FnMut(&[u8]) -> Result<()>| -> Result<()> {
            loop {
                let n = crate::pipe::read_full(from, &mut buffer).map_err(failed("read"))?;
                if n == 0 {
                    return Ok(());
                }
                size += n as u64;
                if size > limit {
                    let what = "its size".to_owned();
                    return Err(Error::Limit { object: object(), what, limit });
                }
                out(&buffer[..n])?;
            }
        };
        let packed = if encoding == Encoding::Plain {
            let file = self.unnamed()?;
            let out = Hashed::new(file.file(), Algorithm::Sha256);
            let mut encoder = GzBuilder::new().write(out, flate2::Compression::default());
            pass(&mut part(files, span), &mut |bytes| {
                plain.update(bytes);
                encoder.write_all(bytes).map_err(failed("compress"))
            })?;
            let out = encoder.finish().map_err(failed("compress"))?;
            let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, out.hasher.finish(), out.bytes);
            Packed::Made(descriptor, file)
        } else {
            let kind = match encoding {
                Encoding::Gzip => media_type::OCI_LAYER_GZIP,
                Encoding::Zstd => media_type::OCI_LAYER_ZSTD,
                _ => {
                    let what = "its compression".to_owned();
                    return Err(Error::Unsupported { object: object(), what });
                }
            };
            let mut whole = Hashed::new(part(files, span), Algorithm::Sha256);
            let mut decoder =
                Decoder::new(BufReader::with_capacity(BUFFER, &mut whole)).map_err(failed("decompress"))?;
            pass(&mut decoder, &mut |bytes| {
                plain.update(bytes);
                Ok(())
            })?;
            drop(decoder);
            // What follows the compressed stream is part of the blob.
            std::io::copy(&mut whole, &mut std::io::sink()).map_err(failed("read"))?;
            Packed::AsItIs(Descriptor::new(kind, whole.hasher.finish(), span.size))
        };
        match plain.finish() {
            actual if actual == *diff_id => Ok(packed),
            actual => Err(Error::WrongDigest { object: object(), expected: diff_id.clone(), actual }),
        }
    }
}

enum Packed {
    AsItIs(Descriptor),
    Made(Descriptor, Unnamed),
}

fn part(files: &Files, span: Span) -> LayoutBlob<'_> {
    LayoutBlob { file: Held::Lent(&files.file), at: span.at, end: span.at + span.size }
}

/// The image with a name or an ID; without a word, the only one.
fn choose<'a>(images: &'a [DockerImage], name: Option<&str>, object: &str) -> Result<&'a DockerImage> {
    let is = |image: &&DockerImage| match name {
        None => true,
        Some(name) => {
            let tags = image.repo_tags.iter().flatten();
            let goes = |tag: &String| tag.parse::<Reference>().is_ok_and(|t| t.goes_by(name)) || tag == name;
            tags.into_iter().any(goes) || image.config.contains(name.trim_start_matches("sha256:"))
        }
    };
    let found: Vec<&DockerImage> = images.iter().filter(is).collect();
    match (found.as_slice(), name) {
        ([one], _) => Ok(one),
        ([], Some(name)) => Err(Error::document(object, format!("it has no image '{name}'"))),
        (several, _) => {
            let reason = format!("it has {} images; name one of them", several.len());
            Err(Error::document(object, reason))
        }
    }
}
