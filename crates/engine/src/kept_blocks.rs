//! Blocks of image files that were decompressed once, in the store's cache: a program that starts again from the same image
//! reads what it read before.
//!
//! They belong to one file, as it was (device, inode, size and times), and to one run of the kernel, so a power cut leaves
//! nothing that is believed. Only blocks of plain images are written: what is encrypted must not lie open. The file is
//! this user's alone, in the store, where whoever could change it could change layers as well.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use isles_store::{Memory, Store, boot_id};

use crate::file_image::FileImage;
use crate::record::now;

/// Bytes for all images; each has some 8 MiB at most.
const BUDGET: u64 = 256 << 20;
/// A file that was changed so lately may be changed again within what its times can tell.
const YOUNG: Duration = Duration::from_secs(2);

/// An image's place in the cache, and what it must be like to be believed.
#[derive(Debug)]
pub struct Label {
    name: String,
    text: String,
}

impl Label {
    /// That of an image in a file; `None` where its times tell too little.
    fn of(file: &File, offset: u64, size: u64, now: u64) -> Option<Label> {
        let found = file.metadata().ok()?;
        let changed = found.ctime().checked_mul(1_000_000_000)?.checked_add(found.ctime_nsec())?;
        let age = now.checked_sub(u64::try_from(changed).ok()?)?;
        let old = age > YOUNG.as_nanos() as u64;
        let boot = boot_id();
        if !old || boot.is_empty() {
            return None;
        }
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        let text = format!(
            "{} {:?} {:?} {offset} {size}",
            boot.trim_end(),
            [found.dev(), found.ino(), found.len()],
            times
        );
        Some(Label { name: format!("{:x}-{:x}-{offset:x}", found.dev(), found.ino()), text })
    }
}

/// Takes an image's blocks from the cache, where they are there.
pub fn recall(store: &Store, image: &FileImage, file: &File, offset: u64, size: u64) {
    recall_at(now(), store, image, file, offset, size);
}

fn recall_at(now: u64, store: &Store, image: &FileImage, file: &File, offset: u64, size: u64) {
    let Some(squashfs) = image.plain_squashfs() else { return };
    let Some(label) = Label::of(file, offset, size, now) else { return };
    if let Some(kept) = store.remembered_file(Memory::Blocks, &label.name) {
        squashfs.recall_blocks(kept, label.text.as_bytes());
    }
    image.set_label(label);
}

/// Puts what was needed of an image into the cache, if that is worth it. It only spares time, so whatever goes wrong leaves
/// it undone.
pub fn remember(store: &Store, image: &FileImage) {
    let (Some(squashfs), Some(label)) = (image.plain_squashfs(), image.label()) else { return };
    if squashfs.has_blocks_to_keep() {
        let text = label.text.as_bytes();
        let written = store.remember_by(Memory::Blocks, &label.name, |file| squashfs.keep_blocks(file, text));
        if written.is_ok() {
            drop(store.shrink_memory(Memory::Blocks, BUDGET));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_fuse::FileSystem;
    use isles_spec::FileSystemKind;
    use isles_squashfs::{Folder, Options};
    use isles_store::Ownership;
    use std::fs;
    use std::path::Path;

    /// An image with one file.
    fn image(dir: &Path, content: &[u8]) -> File {
        let (tree, path) = (dir.join("tree"), dir.join("image"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), content).unwrap();
        let mut out = File::create(&path).unwrap();
        let mut folder = Folder::open(&tree).unwrap();
        isles_squashfs::write(&mut folder, &mut out, &Options::default()).unwrap();
        File::open(&path).unwrap()
    }

    fn open(file: &File) -> FileImage {
        let size = file.metadata().unwrap().len();
        let file = file.try_clone().unwrap();
        FileImage::open(FileSystemKind::Squashfs, file, 0, size, Path::new("image"), None).unwrap()
    }

    /// Reads the file in pieces, as the kernel does, and says whether it was worth remembering.
    fn read(image: &FileImage) -> (Vec<u8>, bool) {
        let file = image.lookup(image.root(), b"file").unwrap();
        let mut content = vec![0; image.attributes(file).unwrap().size as usize];
        for (n, piece) in content.chunks_mut(32 << 10).enumerate() {
            assert_eq!(image.read(file, (n * (32 << 10)) as u64, piece).unwrap(), piece.len());
        }
        (content, image.plain_squashfs().unwrap().has_blocks_to_keep())
    }

    #[test]
    fn blocks_are_remembered_for_the_same_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), Ownership::Single).unwrap();
        let later = now() + 3600 * 1_000_000_000;
        let recall = |image: &FileImage, file: &File, now: u64| {
            recall_at(now, &store, image, file, 0, file.metadata().unwrap().len());
        };
        let content =
            |seed: u32| (0..200_000u32).flat_map(|n| (n / 5 + seed).to_le_bytes()).collect::<Vec<u8>>();
        let folder = store.root().join("cache/blocks");

        // A file that has just changed may change again without showing it.
        let file = image(dir.path(), &content(1));
        let young = open(&file);
        recall(&young, &file, now());
        assert_eq!(read(&young), (content(1), true));
        remember(&store, &young);
        assert!(!folder.exists());

        for (round, fresh) in [true, false].into_iter().enumerate() {
            let opened = open(&file);
            recall(&opened, &file, later);
            assert_eq!(read(&opened), (content(1), fresh), "round {round}");
            remember(&store, &opened);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        }

        // The same file with other content.
        let file = image(dir.path(), &content(2));
        let changed = open(&file);
        recall(&changed, &file, later);
        assert_eq!(read(&changed), (content(2), true));

        // Somebody else may write to what is remembered.
        let kept = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        remember(&store, &changed);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        for (mode, fresh) in [(0o600, false), (0o620, true), (0o602, true)] {
            fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            let opened = open(&file);
            recall(&opened, &file, later);
            assert_eq!(read(&opened), (content(2), fresh), "{mode:o}");
        }
    }

    #[test]
    fn what_is_encrypted_is_not_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), Ownership::Single).unwrap();
        let later = now() + 3600 * 1_000_000_000;
        let file = image(dir.path(), &[vec![1; 400_000], vec![2; 400_000]].concat());
        let secret = open(&file).pretend_encrypted();
        recall_at(later, &store, &secret, &file, 0, file.metadata().unwrap().len());
        let inode = secret.lookup(secret.root(), b"file").unwrap();
        secret.read(inode, 0, &mut vec![0; 700_000]).unwrap();
        remember(&store, &secret);
        assert!(secret.plain_squashfs().is_none() && secret.label().is_none());
        assert!(!store.root().join("cache/blocks").exists());
    }
}
