//! Carries outputs out, one after the other.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use isles_registry::Client;
use isles_spec::image::Descriptor;
use isles_spec::{Progress, Reference};
use isles_squashfs::Compression as Packing;
use isles_store::{Compression, ExportFormat, LayoutPlace, Merged, Store};

use super::bundle::{Bundle, Made, bundle, statement};
use super::{Annotation, Destination, Encoding, Kind, Layers, Output, files};
use crate::error::{Error, Result};
use crate::options::Built;
use crate::sif::{SifOptions, write_sif};

/// What a caller wants of a result.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    pub outputs: &'a [Output],
    /// Names of images that have none by their output.
    pub names: &'a [Reference],
    pub annotations: &'a [Annotation],
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// The last image that was written: its manifest or index, as it is in the registry where it went there.
    pub image: Option<Descriptor>,
    /// The names that it got.
    pub names: Vec<Reference>,
}

/// Writes a result to all its outputs.
///
/// # Errors
/// What [`check`] says; and the first output that fails ends the work, while those before it are complete.
pub fn write(
    store: &Store,
    client: &Client,
    built: &Built,
    wanted: &Outputs<'_>,
    progress: &dyn Progress,
) -> Result<Written> {
    check(wanted, built.made.len())?;
    let mut written = Written::default();
    for output in wanted.outputs {
        // An output's own names go before those of the build.
        let names = if output.names.is_empty() { wanted.names } else { &output.names };
        let wanted = &Outputs { names, ..*wanted };
        let job = Job { store, client, built, wanted, progress };
        match &output.kind {
            Kind::Local { folder, split } => job.local(folder, *split)?,
            Kind::Nowhere => {}
            Kind::Tar(to) => job.tar(to)?,
            Kind::Sif(path) => written.image = Some(job.sif(path, &output.encoding)?),
            Kind::Docker(to) => written.image = Some(job.docker(to)?),
            Kind::Oci { to, folder } => written.image = Some(job.oci(to, *folder, &output.encoding)?),
            Kind::Image { names, push, by_digest } => {
                let names = if names.is_empty() { wanted.names } else { names };
                written.image = Some(job.image(names, *push, *by_digest, &output.encoding)?);
                written.names = names.iter().map(Reference::normalized).collect();
            }
        }
    }
    Ok(written)
}

/// What can be said of outputs before anything is built.
///
/// # Errors
/// They get in each other's way, or one of them cannot hold what is built.
pub fn check(wanted: &Outputs<'_>, platforms: usize) -> Result<()> {
    let wrong = |message: &str, hint: &str| Err(isles_spec::Error::new(message).with_hint(hint).into());
    if wanted.outputs.iter().filter(|o| o.is_stdout()).count() > 1 {
        return wrong("two outputs cannot both go to standard output", "give one of them dest=FILE");
    }
    for output in wanted.outputs {
        match &output.kind {
            Kind::Docker(_) if platforms > 1 => {
                return wrong(
                    "an archive for docker holds an image for one platform",
                    "type=oci holds several; or build for one platform at a time",
                );
            }
            Kind::Sif(_) if platforms > 1 => {
                return wrong(
                    "a SIF file holds an image for one platform",
                    "build for one platform at a time",
                );
            }
            Kind::Image { names, push: true, .. } if names.is_empty() && wanted.names.is_empty() => {
                return wrong("an image needs a name to be pushed", "name it with -t REGISTRY/NAME:TAG");
            }
            _ => {}
        }
    }
    Ok(())
}

struct Job<'a> {
    store: &'a Store,
    client: &'a Client,
    built: &'a Built,
    wanted: &'a Outputs<'a>,
    progress: &'a dyn Progress,
}

impl Job<'_> {
    fn made(&self) -> &[Made] {
        &self.built.made
    }

    fn bundle(&self, encoding: &Encoding) -> Result<Bundle> {
        let annotations = self.wanted.annotations;
        bundle(self.store, &self.built.lease, self.made(), encoding, annotations)
    }

    fn local(&self, folder: &Path, split: Option<bool>) -> Result<()> {
        let split = split.unwrap_or(self.made().len() > 1);
        for one in self.made() {
            let folder = if split { folder.join(folder_of(one)) } else { folder.to_owned() };
            let work = self.progress.begin(&format!("writing {}", folder.display()), None);
            let result = self.files(one, &folder);
            let left_out = match &result {
                Ok(n) if *n > 0 => format!("done, without {n} devices and sockets"),
                Ok(_) => "done".to_owned(),
                Err(_) => "failed".to_owned(),
            };
            self.progress.end(work, &left_out);
            result?;
        }
        Ok(())
    }

    fn files(&self, one: &Made, folder: &Path) -> Result<u64> {
        let view = Merged::open(&self.store.layers_of(&one.image)?, self.store.ownership())?;
        let left_out = files::write(&view, folder, self.built.epoch)?;
        for (name, text) in self.attested(one)? {
            let path = folder.join(name);
            into_file(&path, |out| out.write_all(&text).map_err(Error::io("write", &path)))?;
        }
        Ok(left_out)
    }

    /// What is attested, as files.
    fn attested(&self, one: &Made) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let mut image = one.image.descriptor(self.store);
        image.platform = Some(one.platform.clone());
        let text = |p| serde_json::to_vec_pretty(&statement(p, &image)).unwrap_or_default();
        Ok(one.attested.iter().map(|p| (p.file, text(p))).collect())
    }

    fn tar(&self, to: &Destination) -> Result<()> {
        let mut roots = Vec::new();
        for one in self.made() {
            let prefix = if self.made().len() > 1 { folder_of(one) } else { String::new() };
            roots.push((prefix, self.store.layers_of(&one.image)?));
        }
        let work = self.progress.begin("writing the files as an archive", None);
        let result = into(to, |out| Ok(self.store.write_roots(&roots, self.built.epoch, out)?));
        self.progress.end(work, if result.is_ok() { "done" } else { "failed" });
        result
    }

    fn docker(&self, to: &Destination) -> Result<Descriptor> {
        let Some(one) = self.made().first() else { return Err(Error::Stopped) };
        let names: Vec<_> = self.wanted.names.iter().map(Reference::normalized).collect();
        let images = [(one.image.clone(), names)];
        into(to, |out| {
            Ok(self.store.export_archive(&images, ExportFormat::DockerArchive, out, self.progress)?)
        })?;
        Ok(one.image.descriptor(self.store))
    }

    fn sif(&self, path: &Path, encoding: &Encoding) -> Result<Descriptor> {
        let Some(one) = self.made().first() else { return Err(Error::Stopped) };
        let level = encoding.level;
        let compression = match encoding.layers {
            Some(Layers::Plain) => Packing::None,
            Some(Layers::Compressed(Compression::Gzip)) => Packing::Gzip(level.unwrap_or(9)),
            None | Some(Layers::Compressed(Compression::Zstd)) => match level {
                Some(level) => Packing::Zstd(i32::try_from(level).unwrap_or(i32::MAX)),
                None => Packing::default(),
            },
        };
        let squashfs = isles_squashfs::Options { compression, ..Default::default() };
        let options = SifOptions { squashfs, latest: self.built.epoch, ..SifOptions::default() };
        let work = self.progress.begin(&format!("writing {}", path.display()), None);
        let result = write_sif(self.store, &one.image, &options, path);
        self.progress.end(work, if result.is_ok() { "done" } else { "failed" });
        result.map(|_| one.image.descriptor(self.store))
    }

    fn oci(&self, to: &Destination, folder: bool, encoding: &Encoding) -> Result<Descriptor> {
        let bundle = self.bundle(&portable(encoding))?;
        let mut roots = Vec::new();
        for name in self.wanted.names {
            let mut root = bundle.root.clone();
            let name = name.normalized();
            // The first is what podman and skopeo read, the second what containerd and Docker do.
            let tag = name.to_string();
            root.annotations.insert("org.opencontainers.image.ref.name".into(), tag.clone());
            root.annotations.insert("io.containerd.image.name".into(), tag);
            roots.push(root);
        }
        if roots.is_empty() {
            roots.push(bundle.root.clone());
        }
        match to {
            Destination::Path(path) if folder => {
                self.store.export_documents(&roots, LayoutPlace::Folder(path), self.progress)?;
            }
            to => into(to, |out| {
                Ok(self.store.export_documents(&roots, LayoutPlace::Archive(out), self.progress)?)
            })?,
        }
        Ok(bundle.root)
    }

    fn image(
        &self,
        names: &[Reference],
        push: bool,
        by_digest: bool,
        encoding: &Encoding,
    ) -> Result<Descriptor> {
        // What is attested of an image in a registry must be of the manifest there.
        let attested = self.made().iter().any(|m| !m.attested.is_empty());
        let encoding = if push || attested { portable(encoding) } else { encoding.clone() };
        let bundle = self.bundle(&encoding)?;
        if !by_digest {
            name(self.store, &bundle, names)?;
        }
        if !push {
            return Ok(bundle.root);
        }
        for name in names {
            let target = if by_digest { name.with_digest(bundle.root.digest.clone()) } else { name.clone() };
            self.client.push_document(self.store, &bundle.root, &target, self.progress)?;
        }
        Ok(bundle.root)
    }
}

/// Gives a result names in the store.
pub fn name(store: &Store, bundle: &Bundle, names: &[Reference]) -> Result<()> {
    for name in names {
        let name = name.normalized();
        // A name that stands as it should is not written again, which would wait for the disk.
        if store.lookup(&name)?.as_ref() != Some(&bundle.root.digest) {
            store.set_name(&name, &bundle.root.digest)?;
        }
    }
    Ok(())
}

/// Layers that were made here are plain in the store, and compressed wherever they travel.
fn portable(encoding: &Encoding) -> Encoding {
    let layers = encoding.layers.or(Some(Layers::Compressed(Compression::Gzip)));
    Encoding { layers, ..encoding.clone() }
}

fn folder_of(made: &Made) -> String {
    made.platform.to_string().replace('/', "_")
}

fn into(to: &Destination, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    match to {
        Destination::Path(path) => into_file(path, write),
        Destination::Stdout => {
            let out = io::stdout();
            if io::IsTerminal::is_terminal(&out) {
                let error = isles_spec::Error::new("an archive is not for the terminal");
                return Err(error.with_hint("add dest=FILE, or redirect standard output").into());
            }
            let mut out = BufWriter::new(out.lock());
            write(&mut out)?;
            out.flush().map_err(Error::io("write to", "standard output"))
        }
    }
}

/// Writes a file that appears when it is complete. What is there and no regular file, such as a pipe, is written
/// to as it is.
pub fn into_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let file = File::options().write(true).open(path).map_err(Error::io("open", path))?;
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        return out.flush().map_err(Error::io("write", path));
    }
    isles_sif::create_whole(path, 0o666, |file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush().map_err(Error::io("write", path))
    })
}
