//! Names of images: small files `refs/<registry>/<repository>/<tag>` whose content is the digest of a
//! manifest or an index.
//!
//! A slash in a repository is written `+`, which no repository may contain; a digest reference has the file
//! name `@<digest>`. Every file name is thus as long as what it stands for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use isles_spec::{Digest, Reference};

use crate::error::At;
use crate::{Error, Result, Store};

impl Store {
    fn ref_path(&self, reference: &Reference) -> PathBuf {
        let leaf = match (reference.tag_or_default(), reference.digest()) {
            (_, Some(digest)) => format!("@{digest}"),
            (tag, None) => tag.unwrap_or_default().to_owned(),
        };
        self.root
            .join("refs")
            .join(reference.registry())
            .join(reference.repository().replace('/', "+"))
            .join(leaf)
    }

    /// What a name stands for: the digest of a manifest or an index.
    pub fn lookup(&self, reference: &Reference) -> Result<Option<Digest>> {
        let path = self.ref_path(reference);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|e| Error::damaged(path.display(), e)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// Lets a name stand for a manifest or an index.
    pub(crate) fn set_ref(&self, reference: &Reference, target: &Digest) -> Result<()> {
        let path = self.ref_path(reference);
        loop {
            if let Some(parent) = path.parent()
                && !parent.is_dir()
            {
                self.prepare()?;
                fs::create_dir_all(parent).at("create", parent)?;
            }
            match crate::atomic::replace(&path, format!("{target}\n").as_bytes()) {
                // Another process removed the last name beside it, and the empty folder with it.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                other => return other,
            }
        }
    }

    /// Forgets a name. Returns whether it was there.
    pub(crate) fn remove_ref(&self, reference: &Reference) -> Result<bool> {
        let path = self.ref_path(reference);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(e) => return Err(Error::io("remove", &path, e)),
        }
        // Empty folders go too; those that are not empty refuse by themselves.
        for parent in path.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(true)
    }

    /// All names and what they stand for, sorted.
    pub fn references(&self) -> Result<Vec<(Reference, Digest)>> {
        let mut out = Vec::new();
        for (reference, path) in self.reference_files()? {
            let target = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
            if let Some(target) = target {
                out.push((reference, target));
            }
        }
        out.sort();
        Ok(out)
    }

    /// All names and the files that say what they stand for.
    pub(crate) fn reference_files(&self) -> Result<Vec<(Reference, PathBuf)>> {
        let mut out = Vec::new();
        for registry in names_in(&self.root.join("refs"))? {
            let registry_dir = self.root.join("refs").join(&registry);
            for repository in names_in(&registry_dir)? {
                let dir = registry_dir.join(&repository);
                for leaf in names_in(&dir)? {
                    let separator = if leaf.starts_with('@') { "" } else { ":" };
                    let text = format!("{registry}/{}{separator}{leaf}", repository.replace('+', "/"));
                    // Temporary files of writers, and whatever else does not belong here, are no names.
                    let Ok(reference) = text.parse::<Reference>() else { continue };
                    out.push((reference, dir.join(&leaf)));
                }
            }
        }
        Ok(out)
    }
}

/// The names in a directory; none where it does not exist.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::io("read", dir, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.at("read", dir)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}
