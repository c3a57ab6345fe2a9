//! What archives become when they are unpacked as layers: the semantics of image-spec's layer.md, and what
//! hostile or odd archives do not achieve.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use isles_store::Limits;
use isles_store::tar::{Entry, Kind, Segment};
use support::*;

#[test]
fn ordinary_user() {
    again_as_ordinary_user();
}

/// Archive and tree, or a piece of the error.
fn check(cases: Vec<(&str, Tar, Result<&str, &str>)>) {
    for (name, tar, expected) in cases {
        let home = Home::new();
        let got = home.unpack(&tar.done());
        match (got, expected) {
            (Ok(tree), Ok(lines)) => {
                let lines: String =
                    lines.lines().map(|l| format!("{}\n", l.trim())).filter(|l| l != "\n").collect();
                let tree: String = tree.lines().map(|l| format!("{}\n", l.trim_end())).collect();
                assert_eq!(tree, lines, "{name}");
            }
            (Err(e), Err(piece)) => assert!(e.to_string().contains(piece), "{name}: {e}"),
            (got, expected) => panic!("{name}: {got:?}, expected {expected:?}"),
        }
        assert_eq!(leftovers(&home), Vec::<String>::new(), "{name}");
    }
}

fn leftovers(home: &Home) -> Vec<String> {
    let mut out = Vec::new();
    for worker in fs::read_dir(home.store.root().join("tmp")).into_iter().flatten().flatten() {
        out.extend(
            fs::read_dir(worker.path())
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path().display().to_string()),
        );
    }
    out
}

#[test]
fn whiteouts() {
    check(vec![
        (
            "of a file below",
            Tar::new().dir("d/", 0o755).file("d/.wh.gone", ""),
            Ok("d dir 755\nd/gone deleted"),
        ),
        ("without the directory", Tar::new().file("d/.wh.gone", ""), Ok("d dir 755\nd/gone deleted")),
        (
            "of a file of this layer, before it",
            Tar::new().file(".wh.x", "").file("x", "new"),
            Ok("x 644 new"),
        ),
        ("of a file of this layer, after it", Tar::new().file("x", "new").file(".wh.x", ""), Ok("x 644 new")),
        (
            "of a directory of this layer, before it",
            Tar::new().file(".wh.d", "").dir("d", 0o755).file("d/x", "1"),
            Ok("d dir 755 opaque\nd/x 644 1"),
        ),
        (
            "of a directory of this layer, after it",
            Tar::new().dir("d", 0o755).file("d/x", "1").file(".wh.d", ""),
            Ok("d dir 755 opaque\nd/x 644 1"),
        ),
        (
            "of a directory that comes without an entry",
            Tar::new().file(".wh.d", "").file("d/x", "1"),
            Ok("d dir 755 opaque\nd/x 644 1"),
        ),
        (
            "opaque before the children",
            Tar::new().dir("d", 0o755).file("d/.wh..wh..opq", "").file("d/x", "1"),
            Ok("d dir 755 opaque\nd/x 644 1"),
        ),
        (
            "opaque after the children",
            Tar::new().dir("d", 0o755).file("d/x", "1").file("d/.wh..wh..opq", ""),
            Ok("d dir 755 opaque\nd/x 644 1"),
        ),
        (
            "opaque before the directory",
            Tar::new().file("d/.wh..wh..opq", "").file("d/x", "1").dir("d", 0o700),
            Ok("d dir 700 opaque\nd/x 644 1"),
        ),
        (
            "of AUFS itself",
            Tar::new().dir(".wh..wh.plnk", 0o700).file(".wh..wh.plnk/1.2", "").file(".wh..wh.aufs", ""),
            Ok(""),
        ),
        ("of a whole tree made twice", Tar::new().file(".wh.x", "").file(".wh.x", ""), Ok("x deleted")),
        ("without a name", Tar::new().file(".wh.", ""), Err("does not name a file")),
        ("of the parent", Tar::new().file("d/.wh...", ""), Err("does not name a file")),
        ("of itself", Tar::new().file("d/.wh..", ""), Err("does not name a file")),
        ("as a directory", Tar::new().file(".wh.d/x", ""), Err("marked as deleted")),
        ("empty layer", Tar::new(), Ok("")),
    ]);
}

#[test]
fn an_opaque_root_hides_the_layers_below() {
    let home = Home::new();
    let lease = home.lease();
    let below = small_layer(&home.store, &lease, "old", "1");
    let tar = Tar::new().file("new", "2").file(".wh..wh..opq", "").done();
    let above = home.store.layer_from_tar(&lease, &mut &tar[..]).unwrap();
    let image = image(&home.store, &lease, &[below, above.clone()], &["x"], "1");
    assert_eq!(home.store.layers_of(&image).unwrap(), [home.store.layer_path(&above.diff_id).unwrap()]);
}

#[test]
fn links() {
    check(vec![
        (
            "hard links in a chain",
            Tar::new().file("a", "1").hardlink("b", "a").hardlink("d/c", "b"),
            Ok("a 644 1\nb 644 1\nd dir 755\nd/c 644 1"),
        ),
        (
            "to an absolute path, from the root of the layer",
            Tar::new().file("a", "1").hardlink("b", "/a"),
            Ok("a 644 1\nb 644 1"),
        ),
        ("hard link to itself", Tar::new().file("a", "1").hardlink("a", "./a"), Ok("a 644 1")),
        (
            "hard link twice",
            Tar::new().file("a", "1").hardlink("b", "a").hardlink("b", "a"),
            Ok("a 644 1\nb 644 1"),
        ),
        (
            "hard link to nothing",
            Tar::new().hardlink("b", "a"),
            Err("'b': it is a link to 'a', which is not in the layer"),
        ),
        ("hard link outside", Tar::new().hardlink("b", "../../etc/passwd"), Err("'..'")),
        (
            "hard link to the machine's file",
            Tar::new().hardlink("b", "/etc/passwd"),
            Err("which is not in the layer"),
        ),
        (
            "hard link to a deleted file",
            Tar::new().file(".wh.a", "").hardlink("b", "a"),
            Err("which is deleted"),
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d", 0o755).hardlink("b", "d"),
            Err("link to a directory"),
        ),
        (
            "hard link through a symbolic link that leads outside",
            Tar::new().symlink("l", "/etc").hardlink("b", "l/passwd"),
            Err("not in the layer"),
        ),
        (
            "hard link to a symbolic link",
            Tar::new().symlink("l", "x").hardlink("b", "l"),
            Ok("b -> x\nl -> x"),
        ),
        (
            "hard link over its own parent",
            Tar::new().file("d/a", "1").hardlink("d", "d/a"),
            Err("not in the layer"),
        ),
        (
            "a symbolic link as parent is followed inside",
            Tar::new().dir("real", 0o755).symlink("l", "/real").file("l/x", "1"),
            Ok("l -> /real\nreal dir 755\nreal/x 644 1"),
        ),
        (
            "a symbolic link that leads up and out stays inside",
            Tar::new().symlink("l", "../../../../real").file("l/x", "1"),
            Ok("l -> ../../../../real\nreal dir 755\nreal/x 644 1"),
        ),
        (
            "a link to nowhere as parent",
            Tar::new().symlink("l", "a/b").file("l/x", "1"),
            Ok("a dir 755\na/b dir 755\na/b/x 644 1\nl -> a/b"),
        ),
        (
            "links in a circle as parent",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "1"),
            Err("not a directory"),
        ),
        (
            "a parent that becomes a directory and a link again",
            Tar::new()
                .dir("one", 0o755)
                .symlink("p", "one")
                .file("p/1", "1")
                .dir("p", 0o755)
                .file("p/2", "2")
                .symlink("p", "one")
                .file("p/3", "3"),
            Ok("one dir 755\none/1 644 1\none/3 644 3\np -> one"),
        ),
        (
            "a directory that becomes a link leaves nothing behind",
            Tar::new().file("d/x", "1").dir("e", 0o755).symlink("d", "e").file("d/y", "2"),
            Ok("d -> e\ne dir 755\ne/y 644 2"),
        ),
        (
            "a file as parent",
            Tar::new().file("f", "1").file("f/x", "2"),
            Err("below something that is not a directory"),
        ),
        ("a link without a target", Tar::new().symlink("l", ""), Err("no target")),
        (
            "a file through a link of the same name",
            Tar::new().symlink("x", "/etc/passwd").file("x", "mine"),
            Ok("x 644 mine"),
        ),
    ]);
}

#[test]
fn the_later_of_two_entries_counts() {
    check(vec![
        ("files", Tar::new().file("a", "1").file("a", "2"), Ok("a 644 2")),
        (
            "a file of two names",
            Tar::new().file("a", "1").hardlink("b", "a").file("a", "2"),
            Ok("a 644 2\nb 644 1"),
        ),
        (
            "file, then directory",
            Tar::new().file("a", "1").dir("a", 0o755).file("a/x", "2"),
            Ok("a dir 755\na/x 644 2"),
        ),
        ("directory, then file", Tar::new().dir("a", 0o755).file("a/b/c", "2").file("a", "1"), Ok("a 644 1")),
        (
            "directories",
            Tar::new().dir("a", 0o755).file("a/x", "1").dir("a", 0o700),
            Ok("a dir 700\na/x 644 1"),
        ),
        (
            "a directory that shuts, then opens",
            Tar::new().dir("a", 0).dir("a", 0o750).file("a/x", "1"),
            Ok("a dir 750\na/x 644 1"),
        ),
        (
            "a fifo over a file",
            Tar::new().file("a", "1").entry(entry("a", Kind::Fifo, 0o600), b""),
            Ok("a fifo 600"),
        ),
    ]);
}

#[test]
fn names_and_modes() {
    let long = "n".repeat(200);
    let deep = format!("{}/x", vec!["d"; 1500].join("/"));
    check(vec![
        (
            "dots and slashes",
            Tar::new().dir("./", 0o755).file("./a//b/./c", "1"),
            Ok("a dir 755\na/b dir 755\na/b/c 644 1"),
        ),
        ("absolute", Tar::new().file("/a", "1"), Ok("a 644 1")),
        ("up", Tar::new().file("a/../../x", "1"), Err("'..'")),
        ("up at the end", Tar::new().dir("a/..", 0o755), Err("'..'")),
        ("the root as a file", Tar::new().file("./", ""), Ok("")),
        ("the root as a link", Tar::new().symlink(".", "/etc"), Err("not a directory")),
        ("long", Tar::new().file(&long, "1"), Ok(&format!("{long} 644 1"))),
        (
            "setuid and all bits",
            Tar::new().mode("a", 0o6755, "1").dir("t", 0o1777).dir("g", 0o2755).file("g/x", "1"),
            Ok("a 6755 1\ng dir 2755\ng/x 644 1\nt dir 1777"),
        ),
        (
            "writable for all, whatever the umask",
            Tar::new().mode("a", 0o666, "").dir("d", 0o777),
            Ok("a 666\nd dir 777"),
        ),
        (
            "a directory without any permission, filled",
            Tar::new().dir("d", 0).file("d/x", "1"),
            Ok("d dir 0\nd/x 644 1"),
        ),
        ("read-only file", Tar::new().mode("a", 0o444, "1"), Ok("a 444 1")),
    ]);
    // As the program has it: as many descriptors as this user may have.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).unwrap();
    let home = Home::new();
    let tar = Tar::new().file(&deep, "1").done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    assert!(home.store.layer_path(&layer.diff_id).unwrap().join(&deep).exists());
    // More directories than can be open at once are deleted all the same.
    let pruned = home.store.prune(&Default::default()).unwrap();
    assert_eq!(pruned.layers, [layer.diff_id]);
    assert!(
        home.unpack(&Tar::new().file(&"p/".repeat(3000), "1").done())
            .is_err_and(|e| e.to_string().contains("limit of 4096"))
    );
}

#[test]
fn names_that_are_not_text() {
    let home = Home::new();
    let odd = Entry { path: b"\xff\xfe\n/\x01".to_vec(), ..entry("", Kind::File, 0o644) };
    let long = Entry {
        path: [b"\xe9".repeat(120), b"/".to_vec(), b"\xe8".repeat(130)].concat(),
        ..entry("", Kind::File, 0o600)
    };
    let tar = Tar::new().entry(odd, b"1").entry(long, b"2").done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    let root = home.store.layer_path(&layer.diff_id).unwrap();
    use std::os::unix::ffi::OsStrExt;
    let at = |bytes: &[u8]| fs::read(root.join(std::ffi::OsStr::from_bytes(bytes))).unwrap();
    assert_eq!(at(b"\xff\xfe\n/\x01"), b"1");
    assert_eq!(at(&[b"\xe9".repeat(120), b"/".to_vec(), b"\xe8".repeat(130)].concat()), b"2");
}

#[test]
fn times_to_the_nanosecond() {
    let home = Home::new();
    let at = |path: &str, kind, mtime| Entry { mtime, ..entry(path, kind, 0o755) };
    let tar = Tar::new()
        .entry(at("d", Kind::Dir, (1_500_000_000, 123_456_789)), b"")
        .entry(at("d/f", Kind::File, (1_234_567_890, 1)), b"x")
        .entry(Entry { link: b"f".to_vec(), ..at("d/l", Kind::Symlink, (7, 0)) }, b"")
        .entry(at("old", Kind::File, (-5, 500_000_000)), b"")
        .file("d/late", "1")
        .file("no/parent", "1")
        .done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    let root = home.store.layer_path(&layer.diff_id).unwrap();
    let time = |path: &str| {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    assert_eq!(time("d"), (1_500_000_000, 123_456_789));
    assert_eq!(time("d/f"), (1_234_567_890, 1));
    assert_eq!(time("d/l"), (7, 0));
    assert_eq!(time("old"), (-5, 500_000_000));
    assert_eq!(time("no"), (0, 0), "a directory that the archive does not mention has no time of today");
}

#[test]
fn owners() {
    let home = Home::new();
    let of = |path: &str, kind, uid, gid| Entry { uid, gid, ..entry(path, kind, 0o755) };
    let tar = Tar::new()
        .entry(of("root", Kind::File, 0, 0), b"")
        .entry(of("f", Kind::File, 1000, 33), b"x")
        .entry(of("d", Kind::Dir, 42, 0), b"")
        .entry(of("huge", Kind::File, 3_000_000_000, 4_294_967_294), b"")
        .entry(Entry { mode: 0o4755, ..of("setuid", Kind::File, 5, 6) }, b"")
        .entry(Entry { mode: 0o400, ..of("readonly", Kind::File, 5, 6) }, b"")
        .done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    let root = home.store.layer_path(&layer.diff_id).unwrap();
    let view = isles_store::Merged::open(std::slice::from_ref(&root), ownership()).unwrap();
    for (path, uid, gid, mode) in [
        ("root", 0, 0, 0o755),
        ("f", 1000, 33, 0o755),
        ("d", 42, 0, 0o755),
        ("huge", 3_000_000_000, 4_294_967_294, 0o755),
        ("setuid", 5, 6, 0o4755),
        ("readonly", 5, 6, 0o400),
    ] {
        let stat = view.lstat(path.as_ref()).unwrap();
        assert_eq!((stat.uid, stat.gid, stat.mode), (uid, gid, mode), "{path}");
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        if !is_root() {
            let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            assert_eq!((meta.uid(), meta.gid()), own, "{path}");
        }
    }
    let none = Tar::new().entry(of("f", Kind::File, u32::MAX, 0), b"").done();
    assert!(home.unpack(&none).unwrap_err().to_string().contains("uid 4294967295"));
}

#[test]
fn extended_attributes() {
    let home = Home::new();
    // VFS_CAP_REVISION_2, cap_net_raw+ep.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs: Vec<(Vec<u8>, Vec<u8>)> = [
        ("user.mine", &b"1\n=2"[..]),
        ("security.capability", &capability),
        ("trusted.overlay.opaque", b"y"),
        ("trusted.overlay.redirect", b"/etc"),
        ("user.overlay.opaque", b"y"),
        ("user.overlay.metacopy", b""),
        ("user.isles.owner", b"0:0"),
        ("security.selinux", b"system_u"),
        ("security.unknown", b"x"),
    ]
    .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
    .into();
    let tar = Tar::new()
        .entry(Entry { xattrs: xattrs.clone(), ..entry("f", Kind::File, 0o555) }, b"x")
        .entry(Entry { xattrs: xattrs.clone(), ..entry("d", Kind::Dir, 0o555) }, b"")
        .entry(Entry { xattrs, link: b"f".to_vec(), ..entry("l", Kind::Symlink, 0o777) }, b"")
        .done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    let root = home.store.layer_path(&layer.diff_id).unwrap();
    let get = |path: &str, name: &str| {
        let mut value = [0u8; 64];
        rustix::fs::lgetxattr(root.join(path), name, &mut value[..]).ok().map(|n| value[..n].to_vec())
    };
    for path in ["f", "d"] {
        assert_eq!(get(path, "user.mine").as_deref(), Some(&b"1\n=2"[..]), "{path}");
        for name in ["overlay.opaque", "overlay.redirect", "overlay.metacopy", "isles.owner"] {
            assert_eq!(get(path, &format!("user.{name}")), None, "{path} {name}");
            assert_eq!(get(path, &format!("trusted.{name}")), None, "{path} {name}");
        }
    }
    let skipped = home.store.layer_info(&layer.diff_id).unwrap().skipped;
    let noted = |path: &str, what: &str| skipped.iter().any(|s| s.path == path && s.what.contains(what));
    assert!(noted("f", "security.unknown"), "{skipped:?}");
    if is_root() {
        assert_eq!(get("f", "security.capability").as_deref(), Some(&capability[..]));
    } else {
        assert!(noted("f", "security.capability"), "{skipped:?}");
    }
    assert!(noted("l", "user.mine"), "links have no such attributes: {skipped:?}");
}

#[test]
fn devices() {
    let home = Home::new();
    let device = |path: &str, kind, device| Entry { device, ..entry(path, kind, 0o660) };
    let tar = Tar::new()
        .entry(device("null", Kind::CharDevice, (1, 3)), b"")
        .entry(device("disk", Kind::BlockDevice, (8, 0)), b"")
        .entry(device("trick", Kind::CharDevice, (0, 0)), b"")
        .hardlink("also", "null")
        .entry(entry("pipe", Kind::Fifo, 0o666), b"")
        .done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    let text = tree(&home.store.layer_path(&layer.diff_id).unwrap());
    let skipped = home.store.layer_info(&layer.diff_id).unwrap().skipped;
    let noted = |path: &str| skipped.iter().any(|s| s.path == path);
    assert!(noted("trick"), "{skipped:?}");
    assert!(text.contains("pipe fifo 666"), "{text}");
    if is_root() && text.contains("null") {
        assert!(text.contains("null char 1:3"), "{text}");
    } else {
        assert!(noted("null") && noted("disk") && noted("also"), "{skipped:?}");
        assert!(skipped.iter().any(|s| s.what.contains("1:3")), "{skipped:?}");
    }
}

#[test]
fn sparse_files() {
    let home = Home::new();
    let size = 9 << 30;
    let map = vec![
        Segment { offset: 4096, length: 5 },
        Segment { offset: 8 << 30, length: 3 },
        Segment { offset: size, length: 0 },
    ];
    let tar = Tar::new()
        .entry(Entry { sparse: Some(map), size, ..entry("big", Kind::File, 0o644) }, b"helloend")
        .file("after", "1")
        .done();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar[..]).unwrap();
    let root = home.store.layer_path(&layer.diff_id).unwrap();
    let meta = fs::metadata(root.join("big")).unwrap();
    assert_eq!(meta.len(), size);
    assert!(meta.blocks() * 512 < 1 << 20, "{}", meta.blocks());
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(root.join("big")).unwrap();
    let mut data = [0u8; 8];
    file.read_exact_at(&mut data, 4094).unwrap();
    assert_eq!(&data, b"\0\0hello\0");
    file.read_exact_at(&mut data[..4], 8 << 30).unwrap();
    assert_eq!(&data[..4], b"end\0");
    assert_eq!(fs::read(root.join("after")).unwrap(), b"1");
}

/// GNU tar writes all the forms that old images have; the reader must agree with it about each.
#[test]
fn archives_of_gnu_tar() {
    let Ok(version) = std::process::Command::new("tar").arg("--version").output() else {
        println!("skip: no tar program");
        return;
    };
    if !String::from_utf8_lossy(&version.stdout).contains("GNU tar") {
        println!("skip: tar is not GNU tar");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let deep = source.path().join("d".repeat(90)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(200)), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), source.path().join("link")).unwrap();
    fs::hard_link(deep.join("f".repeat(200)), source.path().join("hard")).unwrap();
    let sparse = fs::File::create(source.path().join("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    for i in 0..60u64 {
        sparse.write_all_at(b"data", i * 1_000_000).unwrap();
    }
    sparse.set_len(70_000_000).unwrap();
    for args in [
        &["--format=gnu", "--sparse"][..],
        &["--format=gnu"],
        &["--format=oldgnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--mtime=2020-01-01", "--pax-option=globexthdr.name=g,mtime=12"],
    ] {
        let output = std::process::Command::new("tar")
            .args(args)
            .args(["-C", source.path().to_str().unwrap(), "-cf", "-", "."])
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let home = Home::new();
        let layer = home.store.layer_from_tar(&home.lease(), &mut &output.stdout[..]).unwrap();
        let root = home.store.layer_path(&layer.diff_id).unwrap();
        let same = std::process::Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(source.path())
            .arg(&root)
            .output()
            .unwrap();
        assert!(same.status.success(), "{args:?}: {}", String::from_utf8_lossy(&same.stdout));
        let name = deep.join("f".repeat(200));
        let meta = fs::metadata(root.join(name.strip_prefix(source.path()).unwrap())).unwrap();
        assert_eq!(meta.nlink(), 2, "{args:?}");
        if args.contains(&"--sparse") {
            let blocks = fs::metadata(root.join("sparse")).unwrap().blocks();
            assert!(blocks * 512 < 2_000_000, "{args:?}: {blocks} blocks");
        }
        if args.iter().any(|a| a.contains("mtime=12")) {
            assert_eq!(fs::metadata(root.join("hard")).unwrap().mtime(), 12, "{args:?}");
        }
    }
}

#[test]
fn ends_of_archives() {
    let whole = Tar::new().file("a", "1").done();
    let bare = &whole[..whole.len() - 1024];
    let with = |tail: &[u8]| [bare, tail].concat();
    let zero = [0u8; 512];
    for (name, tar, fine) in [
        ("no zero block", bare.to_vec(), true),
        ("one zero block", with(&zero), true),
        ("two zero blocks", with(&[zero, zero].concat()), true),
        ("many zero blocks", with(&zero.repeat(40)), true),
        ("garbage behind the end", with(&[&zero[..], &zero, b"garbage"].concat()), true),
        ("another archive behind the end", with(&[&zero[..], &zero, &whole].concat()), true),
        ("a header behind one zero block", with(&[&zero[..], &whole].concat()), false),
        ("half a zero block", with(&zero[..100]), false),
        ("cut in the padding", bare[..bare.len() - 10].to_vec(), false),
        ("cut in the data", bare[..512].to_vec(), false),
        ("cut in the header", bare[..300].to_vec(), false),
        ("nothing", Vec::new(), true),
        ("noise", b"this is no archive, however long it may be".repeat(30), false),
    ] {
        let got = Home::new().unpack(&tar);
        match got {
            Ok(tree) => assert!(fine && (tree == "a 644 1\n" || tar.is_empty()), "{name}: {tree}"),
            Err(e) => assert!(!fine, "{name}: {e}"),
        }
    }
}

#[test]
fn limits_are_named() {
    let entries = (0..30).fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), ""));
    let attribute = |n: usize| vec![(b"user.a".to_vec(), vec![b'x'; n])];
    for (tar, piece) in [
        (entries, "number of entries exceeds the limit of 20"),
        (Tar::new().file(&"p".repeat(120), ""), "length of a path exceeds the limit of 100"),
        (Tar::new().symlink("l", &"p".repeat(120)), "length of a link's target exceeds the limit of 100"),
        (
            Tar::new().entry(Entry { xattrs: attribute(600), ..entry("f", Kind::File, 0o644) }, b""),
            "extended attributes of an entry exceeds the limit of 500",
        ),
        (
            Tar::new().entry(Entry { xattrs: attribute(3000), ..entry("f", Kind::File, 0o644) }, b""),
            "size of a pax header exceeds the limit of 1000",
        ),
        (Tar::new().file("f", &"x".repeat(40_000)), "its size exceeds the limit of 30000"),
    ] {
        let home = Home::new();
        let limits = Limits {
            entries: 20,
            path: 100,
            xattrs: 500,
            pax: 1000,
            layer_bytes: 30_000,
            ..Limits::default()
        };
        let store = home.store.clone().with_limits(limits);
        let e = store.layer_from_tar(&home.lease(), &mut &tar.done()[..]).unwrap_err();
        assert!(e.to_string().contains(piece), "{e}");
    }
}

#[test]
fn a_hundred_thousand_entries() {
    // Mostly further names of few files, which cost less than new ones.
    let mut tar = Tar::new();
    for d in 0..100 {
        tar = tar.dir(&format!("d{d}"), 0o755).file(&format!("d{d}/f0"), "x");
        for f in 1..999 {
            tar = tar.hardlink(&format!("d{d}/f{f}"), &format!("d{d}/f0"));
        }
    }
    let home = Home::new();
    let layer = home.store.layer_from_tar(&home.lease(), &mut &tar.done()[..]).unwrap();
    assert_eq!(layer.entries, 100_000);
    let root = home.store.layer_path(&layer.diff_id).unwrap();
    assert_eq!(fs::read_dir(root.join("d99")).unwrap().count(), 999);
}
