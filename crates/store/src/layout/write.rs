//! OCI layouts and Docker archives that are written blob by blob.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use isles_sif::NewFile;
use isles_spec::image::{Descriptor, Index, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Quiet, Reference};

use crate::blob::Unnamed;
use crate::decompress::Decoder;
use crate::error::At;
use crate::export::{Archive, DockerImage, blob_into, layout_in, list_in, tags};
use crate::hash::{Hashed, digest_of};
use crate::layer::to_json;
use crate::{Error, Result, Store};

const BUFFER: usize = 256 << 10;

/// An OCI layout that is being written. Blobs come in any order, from several threads.
pub struct LayoutWriter(Place);

enum Place {
    Folder(PathBuf),
    Archive(Mutex<Archive<BufWriter<NewFile>>>),
}

fn begun(path: &Path) -> Result<Archive<BufWriter<NewFile>>> {
    if path.file_name().is_none() {
        return Err(Error::document(path.display(), "it is no name of a file"));
    }
    let file = NewFile::create(path, 0o666).at("create", path)?;
    Archive::new(BufWriter::with_capacity(BUFFER, file))
}

fn ended(archive: Archive<BufWriter<NewFile>>) -> Result<()> {
    let path = archive.writer.output().get_ref().path().to_owned();
    let out = archive.writer.finish().at("write", &path)?;
    out.into_inner().map_err(|e| e.into_error()).at("write", &path)?.keep().at("write", &path)
}

impl LayoutWriter {
    /// Adds to the layout in a folder, which is made where there is none.
    pub fn folder(dir: &Path) -> Result<LayoutWriter> {
        fs::create_dir_all(dir).at("create", dir)?;
        Ok(LayoutWriter(Place::Folder(dir.to_owned())))
    }

    /// A new archive.
    pub fn archive(path: &Path) -> Result<LayoutWriter> {
        Ok(LayoutWriter(Place::Archive(Mutex::new(begun(path)?))))
    }

    /// Whether blobs are written one after the other.
    pub fn is_serial(&self) -> bool {
        matches!(self.0, Place::Archive(_))
    }

    /// Whether a blob is there.
    pub fn has(&self, digest: &Digest) -> bool {
        match &self.0 {
            Place::Folder(dir) => dir.join(crate::export::blob_name(digest)).exists(),
            Place::Archive(archive) => lock(archive).written.contains(digest),
        }
    }

    /// Writes a blob, and checks its size and its digest.
    pub fn blob(&self, blob: &Descriptor, data: &mut dyn Read) -> Result<()> {
        match &self.0 {
            Place::Folder(dir) => {
                // One byte more tells of a blob that is longer than announced.
                let mut data = data.take(blob.size.saturating_add(1));
                blob_into(dir, &blob.digest, &mut data)
            }
            Place::Archive(archive) => lock(archive).blob(&blob.digest, blob.size, data, &mut |_| {}),
        }
    }

    /// Lists what the layout is for, each replacing what had its name before, and ends the writing.
    pub fn finish(self, roots: &[Descriptor]) -> Result<()> {
        match self.0 {
            Place::Folder(dir) => layout_in(&dir, &Quiet, |index, _| {
                roots.iter().for_each(|root| list_in(index, root));
                Ok(())
            }),
            Place::Archive(archive) => {
                let mut archive = archive.into_inner().unwrap_or_else(PoisonError::into_inner);
                let mut index = Index::new(Vec::new());
                roots.iter().for_each(|root| list_in(&mut index, root));
                archive.bytes("index.json", &to_json(&index)?)?;
                ended(archive)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An archive for `docker load` that is being written: one image, its layers without compression. It is an OCI layout
/// as well.
pub struct DockerArchiveWriter<'a> {
    store: &'a Store,
    archive: Archive<BufWriter<NewFile>>,
    layers: Vec<Descriptor>,
}

impl<'a> DockerArchiveWriter<'a> {
    pub fn new(store: &'a Store, path: &Path) -> Result<DockerArchiveWriter<'a>> {
        Ok(DockerArchiveWriter { store, archive: begun(path)?, layers: Vec::new() })
    }

    /// Writes the next layer, base first, from its blob in whatever compression; checks the blob and what is in it.
    pub fn layer(&mut self, blob: &Descriptor, diff_id: &Digest, data: &mut dyn Read) -> Result<()> {
        if let Some(same) = self.layers.iter().find(|l| l.digest == *diff_id) {
            self.layers.push(same.clone());
            return Ok(());
        }
        let object = format!("the layer {}", blob.digest);
        let failed = |doing| {
            let object = object.clone();
            move |source| Error::Io { doing, object, source }
        };
        // An archive says the size of a file before the file, so the plain layer goes aside first.
        let mut aside = self.store.unnamed()?;
        let mut hashed = Hashed::new(data, blob.digest.algorithm());
        let limit = self.store.limits.layer_bytes;
        let mut size = 0;
        {
            let mut decoder =
                Decoder::new(BufReader::with_capacity(BUFFER, &mut hashed)).map_err(failed("decompress"))?;
            let mut buffer = vec![0; BUFFER];
            loop {
                let n = crate::pipe::read_full(&mut decoder, &mut buffer).map_err(failed("decompress"))?;
                if n == 0 {
                    break;
                }
                size += n as u64;
                if size > limit {
                    let what = "its size".to_owned();
                    return Err(Error::Limit { object, what, limit });
                }
                aside.write(&buffer[..n])?;
            }
        }
        // What follows the compressed stream is part of the blob.
        std::io::copy(&mut hashed, &mut std::io::sink()).map_err(failed("read"))?;
        let actual = hashed.hasher.finish();
        if actual != blob.digest {
            return Err(Error::WrongDigest { object, expected: blob.digest.clone(), actual });
        }
        let mut plain = rewound(&aside, &object)?;
        self.archive.blob(diff_id, size, &mut plain, &mut |_| {})?;
        self.layers.push(Descriptor::new(media_type::OCI_LAYER, diff_id.clone(), size));
        Ok(())
    }

    /// Writes the configuration and the lists, and ends the writing.
    pub fn finish(mut self, config: &[u8], names: &[Reference]) -> Result<()> {
        let id = digest_of(Algorithm::Sha256, config);
        self.archive.blob_bytes(&id, config)?;
        let config = Descriptor::new(media_type::OCI_CONFIG, id.clone(), config.len() as u64);
        let manifest = Manifest::new(config, self.layers);
        let bytes = to_json(&manifest)?;
        let digest = digest_of(Algorithm::Sha256, &bytes);
        self.archive.blob_bytes(&digest, &bytes)?;
        let root = Descriptor::new(media_type::OCI_MANIFEST, digest, bytes.len() as u64);
        let mut index = Index::new(Vec::new());
        match names {
            [] => list_in(&mut index, &root),
            names => names.iter().for_each(|name| {
                let mut named = root.clone();
                crate::export::name_it(&mut named, &name.normalized().to_string());
                list_in(&mut index, &named);
            }),
        }
        self.archive.bytes("index.json", &to_json(&index)?)?;
        let list = [DockerImage {
            config: crate::export::blob_name(&id),
            repo_tags: tags(names),
            layers: manifest.layers.iter().map(|l| crate::export::blob_name(&l.digest)).collect(),
        }];
        self.archive.bytes("manifest.json", &to_json(&list)?)?;
        ended(self.archive)
    }
}

fn rewound(file: &Unnamed, object: &str) -> Result<File> {
    let mut file = file.file().try_clone().at("read", Path::new(object))?;
    file.rewind().at("read", Path::new(object))?;
    Ok(file)
}
