//! Images that mksquashfs made.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use isles_squashfs::{Codec, Image, Limits};
use support::*;

/// Makes an image and compares it with its folder.
fn check(folder: &Path, want: &Tree, options: &[&str]) -> Image {
    let image = folder.with_extension("squashfs");
    let _ = std::fs::remove_file(&image);
    run(Command::new("mksquashfs").arg(folder).arg(&image).args(["-no-progress", "-quiet"]).args(options));
    let opened = open(&image);
    assert_same(&of_image(&opened), want, &format!("mksquashfs {options:?}"));
    opened
}

#[test]
fn trees_of_mksquashfs_are_as_their_folders() {
    if !has("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    std::fs::create_dir(&folder).unwrap();
    everything(&folder);
    let want = of_folder(&folder);
    // The lowest levels, because it is mksquashfs that takes most of the time.
    for (codec, block_size, options) in [
        (Codec::Gzip, 128 << 10, &["-Xcompression-level", "1"][..]),
        (Codec::Gzip, 4096, &["-b", "4096", "-Xcompression-level", "1"]),
        (Codec::Gzip, 128 << 10, &["-noI", "-noD", "-noF", "-noX", "-noId"]),
        (Codec::Gzip, 128 << 10, &["-noD", "-noF"]),
        (Codec::Xz, 128 << 10, &[]),
        (Codec::Xz, 1 << 20, &["-Xbcj", "x86", "-b", "1M"]),
        (Codec::Zstd, 128 << 10, &["-Xcompression-level", "1"]),
        (Codec::Zstd, 1 << 20, &["-Xcompression-level", "1", "-b", "1M"]),
        (Codec::Zstd, 128 << 10, &["-Xcompression-level", "1", "-no-fragments"]),
        (Codec::Zstd, 64 << 10, &["-Xcompression-level", "1", "-always-use-fragments", "-b", "64K"]),
        (Codec::Zstd, 128 << 10, &["-Xcompression-level", "1", "-noI", "-noId"]),
        (Codec::Zstd, 128 << 10, &["-Xcompression-level", "1", "-no-exports", "-no-duplicates"]),
        (Codec::Zstd, 128 << 10, &["-Xcompression-level", "1", "-no-sparse", "-nopad"]),
    ] {
        let image = check(&folder, &want, &[&["-comp", codec.name()], options].concat());
        let statistics = image.statistics();
        assert_eq!((statistics.codec, statistics.block_size), (codec, block_size));
        assert_eq!(statistics.exportable, !options.contains(&"-no-exports"));
        for walked in image.walk() {
            let inode = walked.unwrap().inode;
            let found = image.by_number(inode.number).unwrap();
            assert_eq!(found, statistics.exportable.then_some(inode.reference));
        }
    }
    let bare = want.clone().into_iter().map(|(name, mut facts)| {
        facts.xattrs.clear();
        (name, facts)
    });
    check(&folder, &bare.collect(), &["-no-xattrs"]);
}

#[test]
fn images_of_tar2sqfs_are_as_their_folders() {
    if !has("tar2sqfs") || !has("tar") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    std::fs::create_dir(&folder).unwrap();
    everything(&folder);
    let mut want = of_folder(&folder);
    // No archive has sockets.
    want.remove("sub/socket");
    let archive = dir.path().join("tar");
    let attributes = ["--xattrs", "--xattrs-include=*", "--sparse", "--format=pax"];
    run(Command::new("tar").args(attributes).arg("-C").arg(dir.path()).arg("-cf").arg(&archive).arg("tree"));
    for codec in ["gzip", "xz", "zstd"] {
        let path = dir.path().join("image");
        let options = ["-q", "-f", "-j", "2", "--root-becomes", "tree", "-c", codec];
        let archive = File::open(&archive).unwrap();
        run(Command::new("tar2sqfs").args(options).arg(&path).stdin(archive));
        assert_same(&of_image(&open(&path)), &want, &format!("tar2sqfs: {codec}"));
    }
}

#[test]
fn compressors_that_are_not_read_are_named() {
    if !has("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "hello").unwrap();
    for name in ["lz4", "lzo"] {
        let path = dir.path().join(name);
        run(Command::new("mksquashfs").arg(&folder).arg(&path).args(["-quiet", "-comp", name]));
        let file = File::open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        let error = Image::open(file, 0, len).unwrap_err().to_string();
        assert_eq!(error, format!("the squashfs image uses {name} compression, which is not supported"));
    }
}

#[test]
fn listings_go_on_at_every_cursor_and_images_lie_anywhere() {
    if !has("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    std::fs::create_dir(&folder).unwrap();
    let names: Vec<String> = (0..800).map(|n| format!("{:05}-{}", n * 7, "x".repeat(n % 90))).collect();
    for name in &names {
        std::fs::write(folder.join(name), name).unwrap();
    }
    let path = dir.path().join("image");
    // The image is in the middle of a file, as in a SIF.
    std::fs::write(&path, [7; 5000]).unwrap();
    run(Command::new("mksquashfs").args([&folder, &path]).args(["-quiet", "-offset", "4096", "-noappend"]));
    let file = File::open(&path).unwrap();
    let len = file.metadata().unwrap().len() - 4096;
    // With so little memory nothing stays in the cache for long.
    let image = Image::open_with(file, 4096, len, Limits { cache: 64 << 10 }).unwrap();
    let root = image.inode(image.root()).unwrap();
    let all: Vec<_> = image.read_dir(&root, 0).unwrap().map(|e| e.unwrap()).collect();
    let listed: Vec<_> = all.iter().map(|e| String::from_utf8(e.name.clone()).unwrap()).collect();
    assert_eq!(listed, names);
    for jump in [1, 617] {
        for n in 0..all.len() {
            let n = n * jump % all.len();
            let rest = image.read_dir(&root, all[n].next).unwrap().next().map(|e| e.unwrap());
            assert_eq!(rest.as_ref(), all.get(n + 1), "behind entry {n}");
            assert_eq!(image.lookup(&root, &all[n].name).unwrap().as_ref(), Some(&all[n]));
        }
    }
    for absent in [&b""[..], b"0", b"00007", b"00007-y", b"99999", b".", b"..", &[b'x'; 300]] {
        assert_eq!(image.lookup(&root, absent).unwrap(), None);
    }
}

#[test]
fn threads_share_an_image() {
    if !has("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    std::fs::create_dir(&folder).unwrap();
    everything(&folder);
    let want = of_folder(&folder);
    let image = check(&folder, &want, &["-comp", "zstd"]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_same(&of_image(&image), &want, "from one of four threads"));
        }
    });
}

#[test]
fn blocks_that_were_kept_are_taken_from_there() {
    if !has("mksquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    std::fs::create_dir(&folder).unwrap();
    everything(&folder);
    let large: Vec<u8> = (0..1_000_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
    std::fs::write(folder.join("large"), &large).unwrap();
    let want = of_folder(&folder);
    for codec in ["gzip", "zstd", "xz"] {
        let path = dir.path().join(codec);
        let options = ["-quiet", "-noappend", "-comp", codec];
        run(Command::new("mksquashfs").args([&folder, &path]).args(options));
        let open = || {
            let file = File::open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            Image::open(file, 0, len).unwrap()
        };
        let read = |image: &Image, skip: usize| {
            let large = image.lookup(&image.inode(image.root()).unwrap(), b"large").unwrap().unwrap();
            let mut part = [0; 5000];
            image.read_at(&image.inode(large.inode).unwrap(), &mut part, skip as u64).unwrap();
            part
        };
        let keep = |image: &Image, name: &str| {
            let path = dir.path().join(name);
            image.keep_blocks(&mut File::create(&path).unwrap(), b"label").unwrap();
            path
        };
        let image = open();
        assert!(!image.has_blocks_to_keep());
        for skip in (0..4_000_000 - 200_000).step_by(300_000) {
            assert_eq!(read(&image, skip)[..], large[skip..skip + 5000], "{codec}");
        }
        assert!(image.has_blocks_to_keep());
        let first = keep(&image, "first");
        // The image is gone but for its superblock: what is answered now comes from the other file.
        let bytes = std::fs::read(&path).unwrap();
        let mut broken = vec![0xff; bytes.len()];
        broken[..96].copy_from_slice(&bytes[..96]);
        // The tables are found by their indices, which are not compressed.
        let tables = bytes.len().saturating_sub(8192);
        broken[tables..].copy_from_slice(&bytes[tables..]);
        let again = open();
        assert!(!again.recall_blocks(File::open(&first).unwrap(), b"another"));
        assert!(again.recall_blocks(File::open(&first).unwrap(), b"label"));
        std::fs::write(&path, &broken).unwrap();
        assert_eq!(read(&again, 600_000)[..], large[600_000..605_000], "{codec}");
        assert!(!again.has_blocks_to_keep());
        // What is read beside it is as it ever was, and both are kept in the end.
        std::fs::write(&path, &bytes).unwrap();
        assert_same(&of_image(&again), &want, codec);
        let both = keep(&again, "both");
        assert!(both.metadata().unwrap().len() > first.metadata().unwrap().len());
        let third = open();
        assert!(third.recall_blocks(File::open(&both).unwrap(), b"label"));
        assert_same(&of_image(&third), &want, codec);
        // Bytes of any kind give an error or an answer, and no harm.
        let good = std::fs::read(&both).unwrap();
        for n in 0..60usize {
            let mut bad = good.clone();
            bad[n * 97 % 4096.min(good.len())] ^= (n % 255) as u8 + 1;
            std::fs::write(&both, &bad).unwrap();
            let image = open();
            image.recall_blocks(File::open(&both).unwrap(), b"label");
            for skip in [0, 131_072, 1_000_000] {
                if let Ok(Some(large)) =
                    image.inode(image.root()).and_then(|root| image.lookup(&root, b"large"))
                {
                    let found = image.inode(large.inode);
                    let _ = found.and_then(|inode| image.read_at(&inode, &mut [0; 9000], skip));
                }
            }
        }
    }
}
