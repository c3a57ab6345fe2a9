//! Images that mke2fs makes of a folder, read back; and images that lie.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use isles_ext::{Error, FileType, Folder, Image, Inode, NewExt3, Result};

/// Bytes that no two places have alike.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn tree(root: &Path) {
    fs::create_dir_all(root.join("folder/deep")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("small"), "small\n").unwrap();
    // Direct pointers, and one and two levels of others where blocks have 1 KiB.
    fs::write(root.join("folder/large"), noise(700_001, 1)).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    for (at, seed) in [(0, 2), (300 << 10, 3), (40 << 20, 4)] {
        sparse.write_all_at(&noise(5000, seed), at).unwrap();
    }
    sparse.set_len((40 << 20) + 100_000).unwrap();
    symlink("../small", root.join("folder/short")).unwrap();
    symlink("x".repeat(59), root.join("folder/59")).unwrap();
    symlink("y".repeat(60), root.join("folder/60")).unwrap();
    symlink("z".repeat(900), root.join("folder/long")).unwrap();
    fs::hard_link(root.join("small"), root.join("folder/deep/twin")).unwrap();
    fs::set_permissions(root.join("folder/deep"), PermissionsExt::from_mode(0o2751)).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for n in 0..700 {
        fs::write(root.join(format!("many/{n:03}-{}", "n".repeat(n % 200))), n.to_string()).unwrap();
    }
}

/// An image of a folder; `None` where there is no mke2fs.
fn made(kind: &str, options: &[&str], root: &Path, at: &Path) -> Option<Image> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", kind, "-d"]).arg(root).args(options).arg(at).arg("64m");
    // Where ordinary users have it on no path.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let Ok(output) = command.output() else {
        println!("skip: mke2fs (package e2fsprogs) is missing");
        return None;
    };
    assert!(output.status.success(), "{kind} {options:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(open(at).unwrap())
}

fn open(at: &Path) -> Result<Image> {
    let file = File::open(at).unwrap();
    let size = file.metadata().unwrap().len();
    Image::open(file, 0, size)
}

fn walk(image: &Image) -> Result<BTreeMap<PathBuf, Inode>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(PathBuf::new(), image.root())];
    while let Some((path, number)) = todo.pop() {
        let inode = image.inode(number)?;
        if inode.file_type == FileType::Dir {
            image.read_dir(&inode, 0, &mut |entry| {
                todo.push((path.join(String::from_utf8_lossy(&entry.name).as_ref()), entry.inode));
                true
            })?;
        }
        // Folders that are in themselves end somewhere.
        if found.len() > 5000 || path.components().count() > 100 {
            break;
        }
        found.insert(path, inode);
    }
    Ok(found)
}

fn whole(image: &Image, inode: &Inode, piece: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut buffer = vec![0xaa; piece];
    loop {
        match image.read_at(inode, &mut buffer, out.len() as u64).unwrap() {
            0 => return out,
            n => out.extend_from_slice(&buffer[..n]),
        }
    }
}

#[test]
fn what_is_made_of_a_folder_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root);
    for (kind, options) in [
        ("ext2", &["-b", "1024"][..]),
        ("ext2", &["-b", "4096", "-r", "0"]),
        ("ext3", &["-b", "1024"]),
        ("ext3", &[]),
        ("ext4", &["-b", "1024"]),
        ("ext4", &[]),
        ("ext4", &["-O", "^64bit,^metadata_csum,bigalloc", "-I", "512"]),
        ("ext4", &["-O", "^dir_index,^filetype"]),
    ] {
        let at = dir.path().join("image");
        let Some(image) = made(kind, options, &root, &at) else { return };
        let found = walk(&image).unwrap_or_else(|e| panic!("{kind} {options:?}: {e}"));
        let mut expected = 0;
        let mut todo = vec![root.clone()];
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                expected += 1;
                let path = entry.unwrap().path();
                let meta = path.symlink_metadata().unwrap();
                let name = path.strip_prefix(&root).unwrap();
                let inode = &found[name];
                let what = format!("{kind} {options:?} {}", name.display());
                assert_eq!(inode.mode, meta.mode() & 0o7777, "{what}");
                assert_eq!((inode.uid, inode.gid), (meta.uid(), meta.gid()), "{what}");
                assert_eq!((inode.mtime, u64::from(inode.links)), (meta.mtime(), meta.nlink()), "{what}");
                if meta.is_dir() {
                    assert_eq!(inode.file_type, FileType::Dir, "{what}");
                    todo.push(path);
                } else if meta.is_symlink() {
                    let target = fs::read_link(&path).unwrap();
                    assert_eq!(
                        image.read_link(inode).unwrap(),
                        target.as_os_str().as_encoded_bytes(),
                        "{what}"
                    );
                } else {
                    let content = fs::read(&path).unwrap();
                    assert!(whole(&image, inode, 131_072) == content, "{what}");
                    assert!(content.len() > 8000 || whole(&image, inode, 777) == content, "{what}");
                }
            }
        }
        // And lost+found, and the root.
        assert_eq!(found.len(), expected + 2, "{kind} {options:?}");
        let walked: Vec<_> = image.walk().map(Result::unwrap).collect();
        let paths: Vec<&[u8]> = walked.iter().map(|w| w.path.as_slice()).collect();
        // A folder stands before what is in it, and names in order: as in the order of their parts.
        let parts = |path: &[u8]| path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert!(paths[0].is_empty() && paths[1..].is_sorted_by_key(|path| parts(path)), "{kind} {options:?}");
        assert_eq!(walked.len(), found.len());
        assert!(walked.iter().all(|w| found[Path::new(OsStr::from_bytes(&w.path))] == w.inode));
        assert_eq!(found[Path::new("small")].number, found[Path::new("folder/deep/twin")].number);
        let folder = image.inode(image.lookup(&found[Path::new("")], b"folder").unwrap().unwrap()).unwrap();
        assert_eq!(folder, found[Path::new("folder")]);
        assert_eq!(image.lookup(&folder, b"nothing").unwrap(), None);
        assert!(matches!(image.lookup(&found[Path::new("small")], b"x"), Err(Error::Kind { .. })));
        // From every cursor on, a listing is the rest of the whole one.
        let many = &found[Path::new("many")];
        let list = |cursor| {
            let mut all = Vec::new();
            image
                .read_dir(many, cursor, &mut |entry| {
                    all.push(entry);
                    true
                })
                .unwrap();
            all
        };
        let all = list(0);
        for at in [0, 1, 350, 699] {
            assert_eq!(list(all[at].next), all[at + 1..]);
        }
    }
}

#[test]
fn devices_and_attributes_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "x").unwrap();
    for (kind, inode_size) in [("ext3", "128"), ("ext3", "256"), ("ext4", "256")] {
        let at = dir.path().join("image");
        if made(kind, &["-I", inode_size], &root, &at).is_none() {
            return;
        }
        let value = "v".repeat(300);
        for request in [
            "mknod char c 1 3",
            "mknod block b 259 40000",
            "mknod gone c 0 0",
            "mknod pipe p",
            "ea_set file user.small value",
            "ea_set file trusted.overlay.opaque y",
            &format!("ea_set file security.large {value}"),
        ] {
            let mut command = Command::new("debugfs");
            command.args(["-w", "-R", request]).arg(&at).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
            assert!(command.output().unwrap().status.success(), "{request}");
        }
        let image = open(&at).unwrap();
        let found = walk(&image).unwrap();
        let of = |name: &str| (found[Path::new(name)].file_type, found[Path::new(name)].device);
        assert_eq!(of("char"), (FileType::CharDevice, (1, 3)));
        assert_eq!(of("block"), (FileType::BlockDevice, (259, 40_000)));
        assert_eq!(of("gone"), (FileType::CharDevice, (0, 0)));
        assert_eq!(of("pipe"), (FileType::Fifo, (0, 0)));
        let mut attributes = image.attributes(&found[Path::new("file")]).unwrap();
        attributes.sort();
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let expected = [
            pair("security.large", &value),
            pair("trusted.overlay.opaque", "y"),
            pair("user.small", "value"),
        ];
        assert_eq!(attributes, expected, "{kind} {inode_size}");
        assert!(image.attributes(&found[Path::new("pipe")]).unwrap().is_empty());
    }
}

/// What the maker of empty ones makes is read, too.
fn empty(at: &Path) -> Vec<u8> {
    let folders = ["upper", "upper/a", "work"].map(|path| Folder { path: path.to_owned(), mode: 0o755 });
    let file = File::options().read(true).write(true).create(true).truncate(true).open(at).unwrap();
    file.set_len(8 << 20).unwrap();
    let new = NewExt3 { owner: (1000, 1001), time: 1_600_000_000, uuid: [7; 16], folders: &folders };
    isles_ext::make(&file, 8 << 20, &new).unwrap();
    fs::read(at).unwrap()
}

#[test]
fn empty_ones_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    empty(&at);
    let found = walk(&open(&at).unwrap()).unwrap();
    let paths: Vec<&str> = found.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["", "lost+found", "upper", "upper/a", "work"]);
    let upper = &found[Path::new("upper")];
    assert_eq!((upper.uid, upper.gid, upper.mtime), (1000, 1001, 1_600_000_000));
}

#[test]
fn what_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("image");
    let good = empty(&at);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    for (bytes, said) in [
        (with(1024 + 56, &[0, 0]), "no superblock"),
        (with(1024 + 96, &[0x6]), "e2fsck"),
        (with(1024 + 96, &[0x2, 0, 1]), "encrypted"),
        (with(1024 + 96, &[0x2, 0x80]), "inside inodes"),
        (with(1024 + 96, &[0x2, 0, 0, 0x40]), "features 0x40000000"),
        (with(1024 + 24, &[60]), "1024 << 60"),
        (with(1024 + 4, &[0xff; 4]), "do not fit"),
        (with(1024 + 32, &[0; 4]), "groups are empty"),
        (with(1024 + 40, &[0; 4]), "groups are empty"),
        (with(1024 + 88, &[3, 0]), "3 bytes"),
        (good[..4 << 20].to_vec(), "do not fit"),
        (good[..100].to_vec(), "ends before"),
        (Vec::new(), "ends before"),
    ] {
        fs::write(&at, &bytes).unwrap();
        let error = open(&at).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains('\n'), "{said}: {error}");
    }
}

/// Asks an image everything that it has; what is wrong with it is an error and never more than that.
fn ask(image: &Image) {
    let mut buffer = vec![0; 100_000];
    for inode in walk(image).map(BTreeMap::into_values).into_iter().flatten() {
        let _ = image.attributes(&inode);
        let _ = image.read_link(&inode);
        for at in [0, 1 << 20, inode.size / 2, inode.size.saturating_sub(7), u64::MAX - 3] {
            let _ = image.read_at(&inode, &mut buffer, at);
        }
        let _ = image.read_dir(&inode, inode.size / 2, &mut |_| true);
    }
    let most = image.statistics().0;
    // Each takes some bytes of a folder's.
    assert!(image.walk().count() as u64 <= most / 8);
    for number in [0, 1, 5, 8, 11, u32::MAX] {
        let _ = image.inode(number);
    }
}

#[test]
fn images_that_lie_give_errors() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    tree(&root);
    let count = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(80u64);
    for kind in ["ext3", "ext4"] {
        let at = dir.path().join("image");
        if made(kind, &["-b", "1024", "-N", "1024"], &root, &at).is_none() {
            return;
        }
        let good = fs::read(&at).unwrap();
        // Of the data there is no harm in any change, and of metadata there is less than this.
        let used: Vec<usize> = (0..good.len() / 1024)
            .filter(|block| good[block * 1024..][..1024].iter().any(|b| *b != 0))
            .collect();
        let file = File::options().read(true).write(true).open(&at).unwrap();
        for seed in 1..=count {
            let random = noise(80, seed);
            let word = |n: usize| u64::from_le_bytes(random[8 * n..8 * n + 8].try_into().unwrap()) as usize;
            let mut places = Vec::new();
            for n in 0..=word(0) % 4 {
                // The first blocks, which all others hang on, more often than others.
                let among = if word(1) % 2 == 0 { used.len().min(300) } else { used.len() };
                let place = used[word(2 + 2 * n) % among] * 1024 + word(3 + 2 * n) % 1024;
                let byte = [0, 1, 0x7f, 0xff, random[n]][word(1 + n) % 5];
                file.write_all_at(&[byte], place as u64).unwrap();
                places.push(place);
            }
            if let Ok(image) = open(&at) {
                ask(&image);
            }
            for place in places {
                file.write_all_at(&good[place..=place], place as u64).unwrap();
            }
        }
    }
}
