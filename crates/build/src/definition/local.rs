//! Images in files and folders of the host, whatever their format: what `Bootstrap: localimage` begins with, and
//! what `library` and `oras` have fetched.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use isles_sif::{FileSystem, Kinds, Sif, Trust};
use isles_spec::Digest;
use isles_squashfs::Image as Squashfs;

use super::tree::{RUN, below};
use crate::error::{Error, Result};
use crate::images;
use crate::key::Key;
use crate::snapshot::{Build, Snapshot, Step};

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
            let mut out = [0; 20];
            if hex.len() != 40 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("'{}' is no fingerprint, which has 40 hexadecimal digits", word.trim()));
            }
            for (byte, at) in out.iter_mut().zip((0..40).step_by(2)) {
                *byte = u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_default();
            }
            Ok(out)
        };
        text.split(',').filter(|word| !word.trim().is_empty()).map(one).collect()
    }
}

/// What an image in a file or a folder of the host gives: a folder with a tree of files, an OCI layout, an archive of
/// Docker's or of the OCI's, a SIF file or a SquashFS image. `select` chooses one of several in an archive.
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
    if starts(start, SQUASHFS) {
        return of_squashfs(build, &Place { file: &file, start, len: metadata.size() - start }, &known);
    }
    if starts(start + EXT.1, &EXT.0) {
        return Err(isles_spec::Error::new(format!(
            "'{}' is an ext3 image, which is not read",
            path.display()
        ))
        .with_hint("mount it and name the folder, or make a SIF file of it with `apptainer build`")
        .into());
    }
    of_oci(build, path, select)
}

fn of_oci(build: &Build<'_>, path: &Path, select: Option<&str>) -> Result<Base> {
    let image = images::on_disk(build, path, select)?;
    Ok(Base { snapshot: images::base(&image, &build.platform), oci: true })
}

/// What tells one image from another.
pub struct Known<'k> {
    /// What messages and the history call it.
    pub name: &'k str,
    /// Other content has another one: a digest, or the identity and the times of a file.
    pub stamp: String,
}

impl Known<'_> {
    fn key(&self) -> Digest {
        Key::new("squashfs").with("stamp", &self.stamp).finish()
    }

    fn title(&self) -> String {
        format!("unpacking '{}'", self.name)
    }

    fn created_by(&self) -> String {
        format!("Bootstrap: {}", self.name)
    }

    /// What the image gave before, where it was here.
    pub fn base(&self, build: &Build<'_>) -> Result<Option<Base>> {
        let mut snapshot = images::scratch(&build.platform);
        if !build.add_known(&mut snapshot, &self.title(), &self.key(), &self.created_by())? {
            return Ok(None);
        }
        tree(build, snapshot).map(Some)
    }
}

/// The root file system of a SIF file.
pub fn of_sif(build: &Build<'_>, file: File, known: &Known<'_>, signers: &Signers) -> Result<Base> {
    let name = known.name;
    let sif = Sif::from_file(file, name).map_err(unreadable)?;
    if !signers.fingerprints.is_empty() {
        verify(&sif, name, signers)?;
    }
    let refuse = |what: String, hint: &str| -> Result<Base> {
        Err(isles_spec::Error::new(format!("'{name}' {what}")).with_hint(hint).into())
    };
    let Some(object) = sif.primary() else {
        return refuse(
            "has no root file system".into(),
            "a SIF file that holds an OCI image is read by `skopeo` or `singularity`; save it as oci-archive",
        );
    };
    let partition = object.partition();
    let file_system = partition.map_or(FileSystem::Other(0), |p| p.file_system);
    if file_system != FileSystem::Squashfs {
        return refuse(
            format!("has a root file system of the kind {}, which is not read", file_system.name()),
            "an encrypted image is opened, and another kind converted, by `apptainer build NEW.sif OLD.sif`",
        );
    }
    let architecture = partition.map_or("unknown", |p| p.arch.name());
    if architecture != "unknown" && architecture != build.platform.architecture {
        return refuse(
            format!("is for {architecture}, not for {}", build.platform.architecture),
            "build for its architecture with --platform, or take another image",
        );
    }
    of_squashfs(build, &Place { file: sif.file(), start: object.offset, len: object.size }, known)
}

/// The bytes of an image in a file.
struct Place<'p> {
    file: &'p File,
    start: u64,
    len: u64,
}

fn of_squashfs(build: &Build<'_>, place: &Place<'_>, known: &Known<'_>) -> Result<Base> {
    let name = known.name;
    let mut snapshot = images::scratch(&build.platform);
    let title = known.title();
    let step = Step { title: &title, key: known.key(), shortcut: None, created_by: known.created_by() };
    build.add(&mut snapshot, step, |_, _| {
        let file = place.file.try_clone().map_err(Error::io("open", name))?;
        let image = Squashfs::open(file, place.start, place.len).map_err(|e| {
            isles_spec::Error::new(format!("cannot read the file system in '{name}': {e}"))
                .with_hint("the file may be damaged; fetch or build it again")
        })?;
        crate::squash::layer(build.store, &build.lease, &image, name)
    })?;
    tree(build, snapshot)
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
            let home = isles_engine::home().ok_or_else(|| {
                isles_spec::Error::new("the home folder of the caller, where keys are, is not known")
                    .with_hint("set HOME")
            })?;
            home.join(".apptainer/keys/pgp-public")
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
