//! `--overlay`, `--writable` and `--writable-tmpfs`: where a container writes.

use std::path::Path;

use isles_engine::image_file;
use isles_spec::{FileSystemKind, Overlay, Root, Writable};

use crate::action_flags as flags;
use crate::failure::Failure;
use crate::image::Image;
use crate::parse::Values;
use crate::settings::Settings;

/// Where the root is written to, and the layers over it, bottom first.
pub fn of(settings: &Settings, values: &Values, image: &Image) -> Result<(Writable, Vec<Overlay>), Failure> {
    // Partitions of a SIF file lie over its root, below all others, and are written to with --writable only.
    let mut inside = match (&image.root, &image.file) {
        (Root::File(of), Some(file)) => image_file::overlays(&of.path, file)?,
        _ => Vec::new(),
    };
    let mut overlays = Vec::new();
    let mut written: Option<Writable> = None;
    let mut write = |to: Writable| match written.replace(to) {
        None => Ok(()),
        Some(_) => Err(Failure::new("you can't specify more than one writable overlay")
            .with_hint("add :ro to those that are only read")),
    };
    for word in values.list(&flags::OVERLAY) {
        let (path, read_only) = match word.rsplit_once(':') {
            Some((path, "ro")) => (Path::new(path), true),
            Some((path, "rw")) => (Path::new(path), false),
            _ => (Path::new(word.as_str()), false),
        };
        if path.is_dir() {
            if read_only {
                overlays.push(Overlay::Folder(path.to_owned()));
            } else {
                write(Writable::Folder(path.to_owned()))?;
            }
            continue;
        }
        let mut found = image_file::find(path, &image_file::open(path)?)?;
        // What is written to is opened by a path without links.
        found.path = path.canonicalize().unwrap_or(found.path);
        if !read_only && found.kind == FileSystemKind::Ext {
            write(Writable::File(found))?;
        } else {
            overlays.push(Overlay::File(found));
        }
    }
    if settings.writable {
        if written.is_some() || !overlays.is_empty() {
            return Err(Failure::new("--writable and --overlay exclude each other")
                .with_hint("write into the image, or over it"));
        }
        return match (&image.root, inside.pop()) {
            (Root::Directory(_), _) => Ok((Writable::Usual, overlays)),
            // As `overlay create` makes it.
            (Root::File(_), Some(last)) if last.kind == FileSystemKind::Ext => {
                Ok((Writable::File(last), inside.into_iter().map(Overlay::File).collect()))
            }
            _ => Err(Failure::new(format!("could not use {} for writing: it is read-only", image.name))
                .with_hint("make a folder of it with `apptainer build --sandbox`, or use --writable-tmpfs or --overlay")),
        };
    }
    let overlays = inside.into_iter().map(Overlay::File).chain(overlays).collect();
    Ok(match written {
        Some(_) if settings.writable_tmpfs => {
            return Err(Failure::new("--writable-tmpfs and a writable overlay exclude each other")
                .with_hint("add :ro to the overlay, or leave --writable-tmpfs out"));
        }
        Some(written) => (written, overlays),
        None if settings.writable_tmpfs => (Writable::Memory { size: None }, overlays),
        None => (Writable::Nowhere, overlays),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_words(
        words: &[&str],
        settings: &Settings,
        image: &Image,
    ) -> Result<(Writable, Vec<Overlay>), Failure> {
        let mut values = Values::default();
        for word in words {
            values.set(&flags::OVERLAY, word).unwrap();
        }
        of(settings, &values, image)
    }

    #[test]
    fn where_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let image = crate::image::on_disk(dir.path()).unwrap();
        let name = dir.path().to_str().unwrap();
        let read_only = format!("{name}:ro");
        let (usual, memory, writable) = (
            Settings::default(),
            Settings { writable_tmpfs: true, ..Settings::default() },
            Settings { writable: true, ..Settings::default() },
        );
        assert_eq!(of_words(&[], &usual, &image).unwrap(), (Writable::Nowhere, vec![]));
        assert_eq!(of_words(&[], &memory, &image).unwrap().0, Writable::Memory { size: None });
        assert_eq!(of_words(&[], &writable, &image).unwrap().0, Writable::Usual);
        assert_eq!(of_words(&[name], &usual, &image).unwrap(), (Writable::Folder(name.into()), vec![]));
        let both = of_words(&[&read_only, name], &usual, &image).unwrap();
        assert_eq!(both, (Writable::Folder(name.into()), vec![Overlay::Folder(name.into())]));
        for (words, settings) in [
            (&[name, name][..], &usual),
            (&[name], &memory),
            (&[name], &writable),
            (&["/nonexistent/overlay"], &usual),
        ] {
            assert!(of_words(words, settings, &image).is_err(), "{words:?}");
        }
    }
}
