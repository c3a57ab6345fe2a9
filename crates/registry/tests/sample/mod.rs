//! Images made in a test: layers as tar files, and the documents around them.

// Every test program uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use isles_spec::image::media_type;
use isles_spec::{Digest, Platform};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::fake::{Reply, Request};

pub fn sha256(bytes: &[u8]) -> String {
    Digest::sha256(&Sha256::digest(bytes).into()).to_string()
}

/// A tar file with these regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The same as another tool would write it.
pub fn gzip_better(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::GzBuilder::new().filename("layer.tar").write(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// An image with all its blobs by digest.
#[derive(Clone)]
pub struct Sample {
    pub blobs: HashMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub manifest_type: &'static str,
    pub digest: String,
    pub id: String,
    pub layers: Vec<String>,
    pub diff_ids: Vec<String>,
}

/// How the layers of a sample are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Gzip,
    Plain,
    /// Docker's media types, gzip.
    Docker,
}

impl Sample {
    /// An image for `platform` whose layers are these tar files.
    pub fn new(tars: &[Vec<u8>], platform: &Platform, packing: Packing) -> Sample {
        let mut blobs = HashMap::new();
        let (mut layers, mut diff_ids, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        let (layer_type, config_type, manifest_type) = match packing {
            Packing::Gzip => (media_type::OCI_LAYER_GZIP, media_type::OCI_CONFIG, media_type::OCI_MANIFEST),
            Packing::Plain => (media_type::OCI_LAYER, media_type::OCI_CONFIG, media_type::OCI_MANIFEST),
            Packing::Docker => {
                (media_type::DOCKER_LAYER_GZIP, media_type::DOCKER_CONFIG, media_type::DOCKER_MANIFEST)
            }
        };
        for tar in tars {
            let bytes = if packing == Packing::Plain { tar.clone() } else { gzip(tar) };
            let digest = sha256(&bytes);
            entries.push(json!({"mediaType": layer_type, "digest": digest, "size": bytes.len()}));
            diff_ids.push(sha256(tar));
            layers.push(digest.clone());
            blobs.insert(digest, bytes);
        }
        let config = json!({"architecture": platform.architecture, "os": platform.os,
            "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let id = sha256(&config);
        // Odd spacing shows whether the original bytes are kept.
        let manifest = format!(
            "{{ \"schemaVersion\": 2,\n  \"mediaType\": \"{manifest_type}\",\n  \"config\": {},\n  \"layers\": {} }}\n",
            json!({"mediaType": config_type, "digest": id, "size": config.len()}),
            Value::Array(entries)
        );
        blobs.insert(id.clone(), config);
        let manifest = manifest.into_bytes();
        let digest = sha256(&manifest);
        Sample { blobs, manifest, manifest_type, digest, id, layers, diff_ids }
    }

    /// Two small layers for this machine.
    pub fn small() -> Sample {
        let tars = [tar(&[("etc/hello", b"hello\n")]), tar(&[("usr/bin/x", b"#!/bin/sh\n")])];
        Sample::new(&tars, &Platform::host(), Packing::Gzip)
    }

    /// One layer of `size` bytes that do not compress.
    pub fn large(size: usize, seed: u64) -> Sample {
        Sample::new(&[tar(&[("data", &noise(size, seed))])], &Platform::host(), Packing::Gzip)
    }

    /// The answer of a decent registry to a request for this image under any name and tag.
    pub fn answer(&self, request: &Request) -> Reply {
        let path = request.target.split('?').next().unwrap_or_default();
        if let Some((_, name)) = path.split_once("/manifests/") {
            if name.starts_with("sha256:") && name != self.digest {
                return Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
            }
            return Reply::new(200, self.manifest.clone())
                .with("Content-Type", self.manifest_type)
                .with("Docker-Content-Digest", &self.digest);
        }
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return match (self.blobs.get(digest), request.range()) {
                (Some(bytes), None) => Reply::new(200, bytes.clone()),
                (Some(bytes), Some(start)) => Reply::new(206, &bytes[start..])
                    .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
                (None, _) => Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
            };
        }
        if path == "/v2/" { Reply::new(200, "{}") } else { Reply::new(404, "") }
    }

    /// A handler that answers with `fault` where it gives something, else decently.
    pub fn serving(
        self,
        fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
        let sample = Arc::new(self);
        move |request| fault(request).unwrap_or_else(|| sample.answer(request))
    }

    /// Writes an OCI layout folder with the image under a tag.
    pub fn write_layout(&self, dir: &Path, tag: &str) {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in self.blobs.iter().chain([(&self.digest, &self.manifest)]) {
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        }
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": self.manifest_type,
            "digest": self.digest, "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag}}]});
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    }
}

impl Sample {
    /// Writes the folder that skopeo calls `dir:`, which takes Docker's media types too.
    pub fn write_dir(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(dir.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        }
        std::fs::write(dir.join("manifest.json"), &self.manifest).unwrap();
        std::fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    }
}

/// An index of these entries: (media type, digest, size, platform).
pub fn index(entries: &[(&str, &str, usize, Option<&str>)]) -> Vec<u8> {
    let mut out = String::new();
    for (i, (kind, digest, size, platform)) in entries.iter().enumerate() {
        let mut entry = json!({"mediaType": kind, "digest": digest, "size": size});
        if let Some(platform) = platform {
            entry["platform"] = serde_json::to_value(platform.parse::<Platform>().unwrap()).unwrap();
        }
        let comma = if i > 0 { "," } else { "" };
        write!(out, "{comma}{entry}").unwrap();
    }
    format!("{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"manifests\":[{out}]}}", media_type::OCI_INDEX)
        .into_bytes()
}
