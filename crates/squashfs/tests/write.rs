//! Images that this crate wrote, as it reads them itself and as others do.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::{Cursor, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use isles_squashfs::{Compression, FileType, Folder, Fragments, Node, Options, write};
use support::*;

fn variants() -> Vec<(&'static str, Options)> {
    let with = |change: fn(&mut Options)| {
        let mut options = Options { made: 1_700_000_000, ..Options::default() };
        change(&mut options);
        options
    };
    vec![
        ("as it is by default", with(|_| {})),
        ("gzip", with(|o| o.compression = Compression::Gzip(6))),
        ("gzip as mksquashfs", with(|o| o.compression = Compression::Gzip(9))),
        (
            "zstd 9, blocks of a mebibyte",
            with(|o| (o.compression, o.block_size) = (Compression::Zstd(9), 1 << 20)),
        ),
        ("nothing compressed", with(|o| o.compression = Compression::None)),
        ("blocks of a page", with(|o| o.block_size = 4096)),
        ("no fragments", with(|o| o.fragments = Fragments::Never)),
        ("fragments for all", with(|o| (o.fragments, o.block_size) = (Fragments::Always, 64 << 10))),
        ("copies stay copies", with(|o| (o.deduplicate, o.exportable) = (false, false))),
    ]
}

fn write_folder(folder: &Path, path: &Path, options: &Options) -> u64 {
    let mut out = File::create(path).unwrap();
    let written = write(&mut Folder::open(folder).unwrap(), &mut out, options).unwrap();
    assert_eq!(out.metadata().unwrap().len(), written.bytes);
    assert_eq!(out.stream_position().unwrap(), written.bytes);
    assert_eq!(written.bytes % 4096, 0);
    written.bytes
}

#[test]
fn images_have_what_the_folder_has() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    fs::create_dir(&folder).unwrap();
    everything(&folder);
    let want = of_folder(&folder);
    for (what, options) in variants() {
        let path = dir.path().join("image");
        write_folder(&folder, &path, &options);
        let image = open(&path);
        assert_same(&of_image(&image), &want, what);
        let statistics = image.statistics();
        assert_eq!((statistics.made, statistics.exportable), (1_700_000_000, options.exportable), "{what}");
        for walked in image.walk() {
            let inode = walked.unwrap().inode;
            let found = image.by_number(inode.number).unwrap();
            assert_eq!(found, options.exportable.then_some(inode.reference), "{what}");
        }
    }
}

#[test]
fn unsquashfs_reads_them() {
    if !has("unsquashfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    fs::create_dir(&folder).unwrap();
    everything(&folder);
    let mut want = of_folder(&folder);
    if !is_root() {
        // Only root gets those bits of unsquashfs.
        want.values_mut().for_each(|facts| facts.mode &= 0o1777);
    }
    for (what, options) in variants() {
        let path = dir.path().join("image");
        write_folder(&folder, &path, &options);
        let out = dir.path().join("out");
        run(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&out).arg(&path));
        assert_same(&of_folder(&out), &want, &format!("unsquashfs: {what}"));
        fs::remove_dir_all(&out).unwrap();
        let summary = run(Command::new("unsquashfs").arg("-s").arg(&path));
        assert!(summary.contains(&format!("Block size {}", options.block_size)), "{summary}");
    }
}

#[test]
fn linux_mounts_them() {
    if !is_root() {
        println!("skip: only root mounts squashfs");
        return;
    }
    if !has("unshare") || !has("mount") {
        return;
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    if !known.contains("squashfs") || !Path::new("/dev/loop-control").exists() {
        println!("skip: no squashfs or no loop devices here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    let mount_point = dir.path().join("mnt");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&mount_point).unwrap();
    everything(&folder);
    let want = of_folder(&folder);
    for (what, options) in variants() {
        let path = dir.path().join("image");
        write_folder(&folder, &path, &options);
        let out = dir.path().join("out");
        // The mount is gone with its namespace.
        let script = r#"mount -t squashfs -o loop,ro "$1" "$2" && cp -a "$2" "$3" && stat -f -c %c "$2""#;
        let inodes = run(Command::new("unshare").args(["-m", "sh", "-c", script, "sh"]).args([
            &path,
            &mount_point,
            &out,
        ]));
        assert_same(&of_folder(&out), &want, &format!("Linux: {what}"));
        assert_eq!(inodes.trim(), open(&path).statistics().inodes.to_string(), "{what}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn the_number_of_threads_and_the_place_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    fs::create_dir(&folder).unwrap();
    everything(&folder);
    for compression in [Compression::Gzip(6), Compression::Zstd(3), Compression::Zstd(9)] {
        let mut first: Option<Vec<u8>> = None;
        for (threads, place) in [(1, 0), (2, 0), (7, 12_288)] {
            let options = Options { compression, threads, block_size: 16 << 10, ..Options::default() };
            let mut out = Cursor::new(vec![7; place]);
            out.seek(SeekFrom::End(0)).unwrap();
            let written = write(&mut Folder::open(&folder).unwrap(), &mut out, &options).unwrap();
            let bytes = out.into_inner().split_off(place);
            assert_eq!(bytes.len() as u64, written.bytes);
            let first = first.get_or_insert(bytes.clone());
            assert!(*first == bytes, "{compression:?} by {threads} threads at {place}");
        }
    }
}

#[test]
fn copies_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = |name: &str, make: &dyn Fn(&Path), options: &Options| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        make(&folder);
        let size = write_folder(&folder, &dir.path().join("image"), options);
        let written =
            write(&mut Folder::open(&folder).unwrap(), &mut Cursor::new(Vec::new()), options).unwrap();
        (size, written.duplicates)
    };
    let options = Options::default();
    let data = noise(3 << 20, 1);
    let (one, none) = sizes("one", &|dir| fs::write(dir.join("a"), &data).unwrap(), &options);
    assert!(one > 3 << 20);
    assert_eq!(none, 0);
    let copies = |dir: &Path| {
        for name in ["a", "b", "c"] {
            fs::write(dir.join(name), &data).unwrap();
            fs::write(dir.join(format!("small-{name}")), &data[..5000]).unwrap();
        }
        // As large, and another.
        fs::write(dir.join("d"), vec![1; 3 << 20]).unwrap();
    };
    let (three, duplicates) = sizes("three", &copies, &options);
    assert!(three < one + 16384, "{three} bytes instead of {one}");
    assert_eq!(duplicates, 4);
    let (all, duplicates) = sizes("all", &copies, &Options { deduplicate: false, ..options.clone() });
    assert!(all > 9 << 20);
    assert_eq!(duplicates, 0);
}

#[test]
fn files_may_be_larger_than_four_gib() {
    // Of zeros, so that there is little to do.
    let size = (4 << 30) + 5000;
    let mut tree = Made::default();
    tree.file("hole", b"");
    tree.nodes.get_mut("hole").unwrap().size = size;
    let bytes = tree.bytes(&Options { block_size: 1 << 20, ..Options::default() });
    assert!(bytes.len() <= 8192, "{} bytes for nothing", bytes.len());
    let image = in_file(&bytes).unwrap();
    let inode = image.inode(resolve(&image, b"hole")).unwrap();
    assert_eq!((inode.size, inode.sparse), (size, size));
    let mut end = [1; 6000];
    assert_eq!(image.read_at(&inode, &mut end, size - 5500).unwrap(), 5500);
    assert!(end[..5500].iter().all(|b| *b == 0) && end[5500] == 1);
}

#[test]
fn large_files_are_read_from_anywhere() {
    let data: Vec<u8> = [text(9_000_000, 1), vec![0; 20_000_000], noise(9_000_000, 2)].concat();
    let mut tree = Made::default();
    tree.file("big", &data);
    let options = Options { block_size: 4096, ..Options::default() };
    let image = tree.image(&options);
    let inode = image.inode(resolve(&image, b"big")).unwrap();
    let mut out = vec![0; 10_000];
    for n in 0..2000u64 {
        let at = (n * 7_919_777) as usize % data.len();
        let got = image.read_at(&inode, &mut out, at as u64).unwrap();
        assert!(out[..got] == data[at..(at + 10_000).min(data.len())], "at {at}");
    }
    assert_eq!(read(&image, &inode, 131_072), data);
}

#[test]
fn metadata_is_what_the_tree_and_the_options_say() {
    let mut tree = Made::default();
    tree.file("file", b"hello");
    let node = |tree: &mut Made, name: &str, file_type, change: fn(&mut Node)| {
        let mut node = Node::new(name, file_type, 0o6751);
        change(&mut node);
        tree.nodes.insert(name.into(), node);
    };
    node(&mut tree, "old", FileType::Fifo, |n| n.mtime = -5);
    node(&mut tree, "new", FileType::Socket, |n| n.mtime = 1 << 40);
    node(&mut tree, "char", FileType::CharDevice, |n| n.device = (0xfff, 0xf_ffff));
    node(&mut tree, "block", FileType::BlockDevice, |n| n.device = (259, 256));
    node(&mut tree, "link", FileType::Symlink, |n| n.target = b"x".repeat(4095));
    node(&mut tree, "owned", FileType::Dir, |n| (n.uid, n.gid) = (u32::MAX, 70_000));
    node(&mut tree, "attributes", FileType::CharDevice, |n| {
        n.xattrs = vec![
            (b"user.z".to_vec(), vec![1; 65536]),
            (b"security.capability".to_vec(), vec![1, 0, 0, 2]),
            (b"trusted.a".to_vec(), Vec::new()),
        ];
    });
    let image = tree.image(&Options::default());
    let facts = of_image(&image);
    let times = |facts: &Tree| ["old", "new", "file"].map(|name| facts[name].mtime);
    assert_eq!(times(&facts), [0, i64::from(u32::MAX), 0]);
    assert_eq!([facts["char"].device, facts["block"].device], [(0xfff, 0xf_ffff), (259, 256)]);
    assert_eq!(facts["link"].target.len(), 4095);
    assert_eq!(facts["owned"].owner, (u32::MAX, 70_000));
    assert!(facts.iter().all(|(name, facts)| matches!(&**name, "" | "file") || facts.mode == 0o6751));
    let inode = image.inode(resolve(&image, b"attributes")).unwrap();
    let names: Vec<_> = image.xattrs(&inode).unwrap().into_iter().map(|(n, v)| (n, v.len())).collect();
    let want = [("security.capability", 4), ("trusted.a", 0), ("user.z", 65536)];
    assert_eq!(names, want.map(|(name, len)| (name.as_bytes().to_vec(), len)));
    assert_eq!(image.inode(image.root()).unwrap().nlink, 3);

    let strict = Options { owner: Some((0, 0)), latest: Some(1000), xattrs: false, ..Options::default() };
    let facts = of_image(&tree.image(&strict));
    assert_eq!(times(&facts), [0, 1000, 0]);
    assert!(facts.values().all(|f| f.owner == (0, 0) && f.xattrs.is_empty()));
}

#[test]
fn what_no_image_can_say_is_refused_by_name() {
    type Change = fn(&mut Made);
    let node = |name: &str| Node::new(name, FileType::File, 0o644);
    let cases: [(&str, Change, &str); 12] = [
        ("empty", |t| t.child("", FileType::File, |_| {}), "'d/' does not fit"),
        (
            "dots",
            |t| t.child("..", FileType::Dir, |_| {}),
            "'d/..' does not fit into a squashfs image: no file can have this name",
        ),
        ("slash", |t| t.child("a/b", FileType::File, |_| {}), "no file can have this name"),
        ("nul", |t| t.child("a\0b", FileType::File, |_| {}), "no file can have this name"),
        ("long", |t| t.child(&"n".repeat(256), FileType::File, |_| {}), "its name has more than 255 bytes"),
        (
            "twice",
            |t| (0..2).for_each(|_| t.child("x", FileType::Fifo, |_| {})),
            "'d/x' does not fit into a squashfs image: the name is there twice",
        ),
        (
            "target",
            |t| t.child("x", FileType::Symlink, |_| {}),
            "the target of the symbolic link is not a path",
        ),
        (
            "device",
            |t| t.child("x", FileType::CharDevice, |n| n.device = (4096, 0)),
            "its device number is too large",
        ),
        (
            "acl",
            |t| {
                t.child("x", FileType::Fifo, |n| {
                    n.xattrs = vec![(b"system.posix_acl_access".to_vec(), vec![])]
                })
            },
            "squashfs has no room for the attribute 'system.posix_acl_access'",
        ),
        (
            "value",
            |t| t.child("x", FileType::Fifo, |n| n.xattrs = vec![(b"user.x".to_vec(), vec![0; 65537])]),
            "its attribute 'user.x' is too large",
        ),
        (
            "types",
            |t| {
                t.child("x", FileType::Fifo, |n| n.link = Some((1, 1)));
                t.child("y", FileType::Socket, |n| n.link = Some((1, 1)))
            },
            "'d/y' does not fit into a squashfs image: another name of the same file is of another type",
        ),
        (
            "shorter",
            |t| t.child("x", FileType::File, |n| n.size = 10),
            "cannot read 'd/x': it became shorter while it was read",
        ),
    ];
    for (what, change, want) in cases {
        let mut tree = Made::default();
        tree.nodes.insert("d".into(), Node::new("d", FileType::Dir, 0o755));
        change(&mut tree);
        let error = write(&mut tree, &mut Cursor::new(Vec::new()), &Options::default()).unwrap_err();
        assert!(error.to_string().contains(want), "{what}: {error}");
    }
    let mut tree = Made::default();
    tree.nodes.insert("x".into(), node("x"));
    for (change, want) in [
        (Options { block_size: 5000, ..Options::default() }, "blocks of 5000 bytes"),
        (Options { block_size: 2 << 20, ..Options::default() }, "blocks of 2097152 bytes"),
        (
            Options { compression: Compression::Gzip(0), ..Options::default() },
            "gzip level 0; it must be from 1 to 9",
        ),
        (Options { compression: Compression::Zstd(23), ..Options::default() }, "zstd level 23"),
    ] {
        let error = write(&mut tree, &mut Cursor::new(Vec::new()), &change).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn deep_and_wide_trees() {
    let mut tree = Made::default();
    let mut path = String::new();
    for _ in 0..300 {
        path.push_str(if path.is_empty() { "d" } else { "/d" });
        tree.nodes.insert(path.clone(), Node::new("d", FileType::Dir, 0o755));
    }
    // Some twenty blocks of names, so with an index; as many inodes, so in many runs.
    for n in 0..4000 {
        let name = format!("d/{n:08}-{}", "y".repeat(n % 40));
        tree.nodes.insert(name.clone(), Node::new(&name[2..], FileType::Socket, 0o600));
    }
    let image = tree.image(&Options { compression: Compression::Gzip(1), ..Options::default() });
    let facts = of_image(&image);
    assert_eq!(facts.len(), tree.nodes.len() + 1);
    assert!(tree.nodes.keys().all(|name| facts.contains_key(name)));
}

#[test]
fn paths_lead_through_links() {
    let mut tree = Made::default();
    tree.file("etc/os-release", b"isle");
    let link = |tree: &mut Made, path: &str, target: &str| {
        let mut node = Node::new(path.rsplit('/').next().unwrap(), FileType::Symlink, 0o777);
        node.target = target.into();
        tree.nodes.insert(path.into(), node);
    };
    tree.nodes.insert("etc".into(), Node::new("etc", FileType::Dir, 0o755));
    link(&mut tree, "absolute", "/etc/os-release");
    link(&mut tree, "etc/relative", "../etc/./os-release");
    link(&mut tree, "outside", "../../../etc");
    link(&mut tree, "twice", "outside/relative");
    link(&mut tree, "dangling", "etc/nothing");
    link(&mut tree, "loop", "etc/../loop");
    link(&mut tree, "growing", "growing/growing/growing/growing");
    let image = tree.image(&Options::default());
    for (path, follow, want) in [
        ("etc/os-release", true, Some("isle")),
        ("/etc//os-release", true, Some("isle")),
        ("../etc/../../etc/os-release", true, Some("isle")),
        ("absolute", true, Some("isle")),
        ("etc/relative", true, Some("isle")),
        ("outside/os-release", false, Some("isle")),
        ("twice", true, Some("isle")),
        ("dangling", true, None),
        ("etc/os-release/more", true, None),
        ("etc/os-release/..", true, None),
        ("nothing", false, None),
    ] {
        let found = image.find(path.as_bytes(), follow).unwrap();
        let content = found.map(|inode| String::from_utf8(image.read_all(&inode, 10).unwrap()).unwrap());
        assert_eq!(content.as_deref(), want, "{path}");
    }
    let types = |path: &str| image.find(path.as_bytes(), false).unwrap().map(|inode| inode.file_type);
    assert_eq!(
        ["", "/", "..", "loop"].map(types),
        [FileType::Dir, FileType::Dir, FileType::Dir, FileType::Symlink].map(Some)
    );
    for path in ["loop", "growing"] {
        let error = image.find(path.as_bytes(), true).unwrap_err().to_string();
        assert_eq!(error, format!("'{path}' leads through too many symbolic links"));
    }
    let inode = image.find(b"etc/os-release", true).unwrap().unwrap();
    let error = image.read_all(&inode, 3).unwrap_err().to_string();
    assert_eq!(error, format!("inode {} has 4 bytes; 3 are the most here", inode.number));
}
