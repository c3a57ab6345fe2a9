//! Images in files and folders of the host, whatever their format: what `Bootstrap: localimage` begins with, and
//! what `library` and `oras` have fetched.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use isles_sif::{FileSystem, Kinds, Sif, Trust};
use isles_spec::Digest;
use isles_store::{BuildRecord, Image, SifSource};

use super::tree::{RUN, below};
use crate::error::{Error, Result};
use crate::images;
use crate::key::Key;
use crate::snapshot::{Build, Scratch, Snapshot};

const SQUASHFS: &[u8; 4] = b"hsqs";
/// Before version 3 an image began with this, so that a shell could start it.
const LAUNCH: &[u8; 31] = b"#!/usr/bin/env run-singularity\n";
/// The magic number of ext2 to ext4, and where it stands.
const EXT: ([u8; 2], u64) = ([0x53, 0xef], 1024 + 56);
/// Keyrings may have this many bytes.
const KEYRING_LIMIT: u64 = 32 << 20;

/// What a stage begins with.
pub struct Base {
    pub snapshot: Snapshot,
    /// Its configuration is that of an OCI image, and has something to say about how it runs.
    pub oci: bool,
}

/// Who must have signed an image.
#[derive(Debug, Clone, Default)]
pub struct Signers {
    /// All of these, by the fingerprints of their primary keys.
    pub fingerprints: Vec<[u8; 20]>,
    /// Public keys; those that Apptainer keeps where none is named.
    pub keyring: Option<PathBuf>,
}

impl Signers {
    /// Reads `Fingerprints:`, a list with commas.
    pub fn parse(text: &str) -> std::result::Result<Vec<[u8; 20]>, String> {
        let one = |word: &str| {
            let hex: String = word.chars().filter(|c| !c.is_whitespace()).collect();
            isles_spec::digest::from_hex(&hex).ok_or_else(|| {
                format!("'{}' is no fingerprint, which has 40 hexadecimal digits", word.trim())
            })
        };
        text.split(',').filter(|word| !word.trim().is_empty()).map(one).collect()
    }
}

/// What an image in a file or a folder of the host gives: a folder with a tree of files, an OCI layout, an archive of
/// Docker's or of the OCI's, a file of SIF, SquashFS or ext3. `select` chooses one of several in an archive.
///
/// # Errors
/// Nothing is there, it is none of these, or it is not signed by all of `signers`.
pub fn base_of_local_image(
    build: &Build<'_>,
    path: &Path,
    select: Option<&str>,
    signers: &Signers,
) -> Result<Base> {
    let metadata = std::fs::metadata(path).map_err(Error::io("find the image", path))?;
    let unsigned = |what: &str| -> Result<Base> {
        Err(isles_spec::Error::new(format!("'{}' is {what}, which nobody can sign", path.display()))
            .with_hint("only a SIF file has signatures; leave Fingerprints out")
            .into())
    };
    let wants_signatures = !signers.fingerprints.is_empty();
    if metadata.is_dir() {
        if wants_signatures {
            return unsigned("a folder");
        }
        if path.join("oci-layout").exists() {
            return of_oci(build, path, select);
        }
        return tree(build, images::of_folder(build, path)?);
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let name = path.display().to_string();
    let m = &metadata;
    let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()].map(|n| n.to_string()).join(" ");
    let known = Known { name: &name, stamp: format!("{} {} {} {times}", m.dev(), m.ino(), m.size()) };
    if isles_sif::is_sif(&file).map_err(Error::io("read", path))? {
        return of_sif(build, file, &known, signers);
    }
    if wants_signatures {
        return unsigned("no SIF file");
    }
    let starts = |at: u64, mark: &[u8]| {
        let mut bytes = vec![0; mark.len()];
        file.read_exact_at(&mut bytes, at).is_ok() && bytes == mark
    };
    let start = if starts(0, LAUNCH) { LAUNCH.len() as u64 } else { 0 };
    if starts(0, SQUASHFS) {
        return known.import(build, SifSource::Squashfs(&file, &name));
    }
    if starts(EXT.1, &EXT.0) {
        return known.import(build, SifSource::Ext(&file, &name));
    }
    let is_ext = !starts(start, SQUASHFS) && starts(start + EXT.1, &EXT.0);
    if is_ext || starts(start, SQUASHFS) {
        return without_launch_line(build, file, start, is_ext, &known);
    }
    of_oci(build, path, select)
}

/// An image of Singularity 2, which a shell could start.
fn without_launch_line(
    build: &Build<'_>,
    mut file: File,
    start: u64,
    is_ext: bool,
    known: &Known<'_>,
) -> Result<Base> {
    if let Some(base) = known.base(build)? {
        return Ok(base);
    }
    let scratch = Scratch::new(build.store)?;
    let path = scratch.0.join("image");
    let mut options = File::options();
    let image = options.read(true).write(true).create_new(true).open(&path);
    let mut image = image.map_err(Error::io("create", &path))?;
    file.seek(SeekFrom::Start(start)).map_err(Error::io("read", known.name))?;
    std::io::copy(&mut file, &mut image).map_err(Error::io("copy", known.name))?;
    let source =
        if is_ext { SifSource::Ext(&image, known.name) } else { SifSource::Squashfs(&image, known.name) };
    known.import(build, source)
}

fn of_oci(build: &Build<'_>, path: &Path, select: Option<&str>) -> Result<Base> {
    let image = images::on_disk(build, path, select)?;
    Ok(Base { snapshot: images::base(&image, &build.platform), oci: true })
}

/// What tells one image file from another.
pub struct Known<'k> {
    /// What messages call it.
    pub name: &'k str,
    /// Other content has another one: a digest, or the identity and the times of a file.
    pub stamp: String,
}

impl Known<'_> {
    fn key(&self) -> Digest {
        Key::new("image file").with("stamp", &self.stamp).finish()
    }

    /// What the file gave before, where it was here.
    pub fn base(&self, build: &Build<'_>) -> Result<Option<Base>> {
        let record = build.store.build_record(build.lease, &self.key())?;
        match record.as_ref().and_then(|record| record.holds.first()) {
            Some(manifest) if build.store.has_image(manifest) => {
                of_image(build, build.store.image(manifest)?).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What the file gives.
    fn import(&self, build: &Build<'_>, source: SifSource<'_>) -> Result<Base> {
        if let Some(base) = self.base(build)? {
            return Ok(base);
        }
        build.note_work();
        let image = build.store.import_sif(build.lease, source, &[], build.progress)?;
        let holds = vec![image.manifest_digest.clone()];
        build.store.put_build_record(&self.key(), &BuildRecord { holds, value: serde_json::Value::Null })?;
        of_image(build, image)
    }
}

fn of_image(build: &Build<'_>, image: Image) -> Result<Base> {
    let image = images::hold(build, image)?;
    let mut snapshot = images::base(&image, &build.platform);
    let start = &mut snapshot.config.config.entrypoint;
    // Of what is built every image has the script that reads the environment first.
    if start.as_ref().is_some_and(|words| *words == [below("runscript")]) {
        *start = Some(vec![RUN.to_owned()]);
    }
    Ok(Base { snapshot, oci: true })
}

/// The image in a SIF file: a root file system, or an OCI image.
pub fn of_sif(build: &Build<'_>, file: File, known: &Known<'_>, signers: &Signers) -> Result<Base> {
    let name = known.name;
    let sif = Sif::from_file(file, name).map_err(unreadable)?;
    if !signers.fingerprints.is_empty() {
        verify(&sif, name, signers)?;
    }
    let partition = sif.primary().and_then(|object| object.partition());
    let architecture = partition.map_or("unknown", |p| p.arch.name());
    if architecture != "unknown" && architecture != build.platform.architecture {
        let wanted = &build.platform.architecture;
        return Err(isles_spec::Error::new(format!("'{name}' is for {architecture}, not for {wanted}"))
            .with_hint("build for its architecture with --platform, or take another image")
            .into());
    }
    let encrypted = partition.is_some_and(|partition| {
        matches!(partition.file_system, FileSystem::EncryptedSquashfs | FileSystem::GocryptfsSquashfs)
    });
    if !encrypted {
        return known.import(build, SifSource::Sif(&sif));
    }
    let closed = |why: &str| {
        isles_spec::Error::new(format!("'{name}' is encrypted: {why}"))
            .with_hint("APPTAINER_ENCRYPTION_PASSPHRASE and APPTAINER_ENCRYPTION_PEM_PATH open it")
    };
    let opener = build.options.definition.opener.as_ref();
    let passphrase = opener.map(|opener| opener.open(&sif));
    let passphrase = passphrase.unwrap_or_else(|| Err("nothing opens it here".to_owned()));
    let passphrase = passphrase.map_err(|why| closed(&why))?;
    // Nothing remembers what came out of it, so it is opened in each build.
    build.note_work();
    let source = SifSource::Encrypted(&sif, &passphrase);
    of_image(build, build.store.import_sif(build.lease, source, &[], build.progress)?)
}

/// A tree of files that may start by its runscript.
fn tree(build: &Build<'_>, mut snapshot: Snapshot) -> Result<Base> {
    if snapshot.view(build.store)?.exists(Path::new(&below("runscript"))) {
        snapshot.config.config.entrypoint = Some(vec![RUN.to_owned()]);
    }
    Ok(Base { snapshot, oci: false })
}

/// Whether everybody who should has signed all of the file.
fn verify(sif: &Sif, name: &str, signers: &Signers) -> Result<()> {
    let keyring = match &signers.keyring {
        Some(path) => path.clone(),
        None => {
            let own = ["APPTAINER_CONFIGDIR", "SINGULARITY_CONFIGDIR"].iter().find_map(|name| {
                std::env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from)
            });
            let folder = own.or_else(|| Some(isles_engine::home()?.join(".apptainer"))).ok_or_else(|| {
                isles_spec::Error::new("the home folder of the caller, where keys are, is not known")
                    .with_hint("set HOME, or APPTAINER_CONFIGDIR")
            })?;
            folder.join("keys/pgp-public")
        }
    };
    let file = File::open(&keyring).map_err(Error::io("open the public keys", &keyring))?;
    let bytes = isles_store::read_bounded(file, KEYRING_LIMIT).map_err(Error::io("read", &keyring))?;
    let keys = bytes.as_deref().map(isles_openpgp::keyring).transpose().ok().flatten().ok_or_else(|| {
        isles_spec::Error::new(format!("'{}' is no keyring", keyring.display()))
            .with_hint("a keyring holds public keys in OpenPGP's form")
    })?;
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
    let trust = Trust { keyring: Some(&keys), keys: &[], now };
    let report = isles_sif::verify(sif, &Default::default(), Kinds::Usual, &trust).map_err(unreadable)?;
    let refused = |why: String| -> Error {
        isles_spec::Error::new(format!("'{name}' is not signed as Fingerprints demands: {why}"))
            .with_hint(format!("the keys that are trusted are in '{}'", keyring.display()))
            .into()
    };
    let problem = report.problem.clone().or_else(|| report.checked.iter().find_map(|c| c.problem.clone()));
    if let Some(problem) = problem {
        return Err(refused(problem.to_string()));
    }
    let by = report.signers();
    match signers.fingerprints.iter().find(|wanted| !by.contains(wanted)) {
        Some(missing) => Err(refused(format!("{} did not sign it", isles_sif::fingerprint_text(missing)))),
        None => Ok(()),
    }
}

fn unreadable(error: isles_sif::Error) -> Error {
    isles_spec::Error::new(error.to_string())
        .with_hint("the file may be damaged; fetch or build it again")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_fingerprints() {
        let hex = "0123456789abcdef0123456789ABCDEF01234567";
        assert_eq!(Signers::parse(&format!(" {hex} ,")).unwrap()[0][..3], [0x01, 0x23, 0x45]);
        assert_eq!(Signers::parse(&format!("{hex},{}", hex.replace("01", " 01"))).unwrap().len(), 2);
        for bad in ["12AB", &hex[1..], &format!("{}zz", &hex[2..])] {
            assert!(Signers::parse(bad).unwrap_err().contains("40 hexadecimal"), "{bad}");
        }
    }
}
