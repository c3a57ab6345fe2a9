//! Files of any kind in a registry, as oras and Helm lay them: a layer for each file, as it is, with its name as its
//! title (image-spec, "Guidelines for Artifact Usage").

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use isles_spec::image::{Descriptor, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Progress, Reference};
use isles_store::NewFile;

use crate::blob::{Download, Shared};
use crate::client::object_name;
use crate::hash::Verified;
use crate::manifest::digest_of;
use crate::oras::{digest_of as digest_of_file, failed, open};
use crate::push::Pushed;
use crate::upload::{Nearby, Sender};
use crate::{Client, Error, Result};

const TITLE: &str = "org.opencontainers.image.title";
const EMPTY: &[u8] = b"{}";
const BUFFER: usize = 256 << 10;

/// Files that become one artefact.
#[derive(Debug, Clone, Default)]
pub struct NewArtifact {
    /// What kind of thing it is; with a configuration of its own its type may say it.
    pub artifact_type: Option<String>,
    /// A file with a configuration, and its media type.
    pub config: Option<(PathBuf, String)>,
    /// Files with their media types.
    pub files: Vec<(PathBuf, String)>,
    pub annotations: BTreeMap<String, String>,
}

impl Client {
    /// Sends files as one artefact called `target`.
    pub fn push_artifact(
        &self,
        new: &NewArtifact,
        target: &Reference,
        progress: &dyn Progress,
    ) -> Result<Pushed> {
        let target = target.normalized();
        let repository = self.repository(&target)?;
        let sender = Sender::new(&repository, progress);
        let mut layers = Vec::new();
        for (path, kind) in &new.files {
            let mut layer = send(&sender, path, kind)?;
            if let Some(title) = path.file_name() {
                layer.annotations.insert(TITLE.to_owned(), title.to_string_lossy().into_owned());
            }
            layers.push(layer);
        }
        let config = match &new.config {
            Some((path, kind)) => send(&sender, path, kind)?,
            None => {
                let digest = digest_of(Algorithm::Sha256, EMPTY);
                let config = Descriptor::new(media_type::OCI_EMPTY, digest, EMPTY.len() as u64);
                sender.blob(&config, &|| Ok(Nearby::default()), &|offset| {
                    Ok(Box::new(EMPTY.get(offset as usize..).unwrap_or_default()))
                })?;
                config
            }
        };
        let manifest = Manifest {
            artifact_type: new.artifact_type.clone(),
            annotations: new.annotations.clone(),
            ..Manifest::new(config, layers)
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|e| Error::NotAnImage { object: object_name(&target), why: e.to_string() })?;
        let sent = sender.document(media_type::OCI_MANIFEST, &bytes, &target)?;
        Ok(sender.counts.pushed(sent))
    }

    /// Writes the files of an artefact into a folder, each whole or not at all. Returns their paths.
    pub fn pull_artifact(
        &self,
        reference: &Reference,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>> {
        let reference = reference.normalized();
        let object = object_name(&reference);
        let repository = self.source(&reference)?;
        let document = repository.manifest(&reference)?;
        let odd = |why: String| Error::NotAnImage { object: object.clone(), why };
        if media_type::is_index(&document.media_type) {
            return Err(odd("it is an index; name one of its manifests by digest".into()));
        }
        let manifest: Manifest = serde_json::from_slice(&document.bytes)
            .map_err(|e| odd(format!("its manifest is not valid: {e}")))?;
        let mut names: Vec<&str> = Vec::new();
        for layer in &manifest.layers {
            let title = layer.annotations.get(TITLE).map(String::as_str);
            let name = title.ok_or_else(|| odd(format!("its part {} has no name", layer.digest)))?;
            // A name is a stranger's word, and never leads out of the folder.
            let plain = !name.is_empty()
                && !matches!(name, "." | "..")
                && !name.contains('/')
                && !name.chars().any(char::is_control);
            if !plain || names.contains(&name) {
                let name = crate::error::one_line(name);
                return Err(odd(format!("'{name}' is no name for one of its files")));
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err(odd("it has no files".into()));
        }
        fs::create_dir_all(dir).map_err(|e| failed("create", dir, &e))?;
        let mut paths = Vec::new();
        for (layer, name) in manifest.layers.iter().zip(names) {
            let path = dir.join(name);
            let id = progress.begin(name, Some(layer.size));
            let shared = Shared::default();
            let download = Download::new(&repository, layer, &shared, &|_| {});
            let mut stream = Verified::new(download.stream(0), layer, &repository.registry, 0);
            let done = written(&path, &mut stream, &|n| progress.advance(id, n));
            progress.end(id, if done.is_ok() { "done" } else { "failed" });
            done?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// Sends a file. Returns what its manifest says of it.
fn send(sender: &Sender<'_>, path: &Path, kind: &str) -> Result<Descriptor> {
    let mut file = open(path)?;
    let (digest, size): (Digest, u64) = digest_of_file(&mut file, path)?;
    let blob = Descriptor::new(kind, digest, size);
    sender.blob(&blob, &|| Ok(Nearby::default()), &|offset| {
        let mut file = open(path)?;
        file.seek(SeekFrom::Start(offset)).map_err(|e| failed("read", path, &e))?;
        Ok(Box::new(file))
    })?;
    Ok(blob)
}

/// Writes a file that has its name when it is whole.
fn written(path: &Path, from: &mut dyn Read, told: &dyn Fn(u64)) -> Result<()> {
    let mut file = NewFile::create(path, 0o666).map_err(|e| failed("create", path, &e))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer);
        let n = read.map_err(|e| e.downcast::<Error>().unwrap_or_else(|e| failed("fetch", path, &e)))?;
        if n == 0 {
            return file.keep().map_err(|e| failed("write", path, &e));
        }
        file.write_all(&buffer[..n]).map_err(|e| failed("write", path, &e))?;
        told(n as u64);
    }
}
