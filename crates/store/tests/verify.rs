//! Verification finds every kind of damage, says whose it is, and mends what can be mended here.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isles_spec::{Digest, Quiet};
use isles_store::tar::{Entry, Kind, Segment};
use isles_store::{CommitOptions, Cure, Depth, Problem, VerifyOptions};
use support::*;

#[test]
fn ordinary_user() {
    again_as_ordinary_user();
}

fn verify(home: &Home, depth: Depth, repair: bool) -> Vec<Problem> {
    home.store.verify(&VerifyOptions { depth, repair }, &Quiet).unwrap().problems
}

fn everything() -> Vec<u8> {
    let attributes = vec![(b"user.mine".to_vec(), b"1".to_vec())];
    let map = vec![Segment { offset: 4096, length: 5 }, Segment { offset: 8 << 30, length: 3 }];
    let size = (8 << 30) + 3;
    Tar::new()
        .dir("./", 0o755)
        .dir("etc", 0o755)
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .entry(Entry { xattrs: attributes, ..entry("etc/marked", Kind::File, 0o440) }, b"x")
        .entry(Entry { uid: 1000, gid: 33, ..entry("etc/owned", Kind::File, 0o4711) }, b"own")
        .entry(Entry { sparse: Some(map), size, ..entry("big", Kind::File, 0o644) }, b"helloend")
        .file("no/parent/here", "1")
        .hardlink("etc/second", "etc/passwd")
        .symlink("etc/link", "passwd")
        .entry(entry("pipe", Kind::Fifo, 0o600), b"")
        .dir("shut", 0)
        .file("shut/inside", "1")
        .file("twice", "1")
        .file("twice", "2")
        .file("usr/.wh.gone", "")
        .file("opt/.wh..wh..opq", "")
        .file("opt/new", "1")
        .done()
}

/// An image of three layers: an archive with everything, a gzip stream, and a folder that was moved in.
fn furnish(home: &Home) -> (Digest, Digest) {
    let lease = home.lease();
    let first = home.store.layer_from_tar(&lease, &mut &everything()[..]).unwrap();
    let tar = Tar::new().file("second", "content of the second layer").dir("d", 0o750).done();
    let blob = gzip(&tar);
    ingest(&home.store, &lease, &blob, &sha256(&tar)).unwrap();
    let second = isles_store::CommittedLayer {
        diff_id: sha256(&tar),
        size: tar.len() as u64,
        entries: 2,
        blob: descriptor(&blob),
    };
    let upper = home.store.scratch_dir().unwrap().join("upper");
    fs::create_dir_all(upper.join("made/here")).unwrap();
    fs::write(upper.join("made/here/now"), "third").unwrap();
    let third = home.store.commit_layer(&lease, &upper, &CommitOptions::default()).unwrap();
    let ids = (first.diff_id.clone(), second.diff_id.clone());
    image(&home.store, &lease, &[first, second, third], &["app:1", "app:2"], "1");
    ids
}

#[test]
fn a_sound_store_has_no_problems() {
    let home = Home::new();
    assert!(verify(&home, Depth::Full, true).is_empty(), "nothing is there yet");
    furnish(&home);
    for depth in [Depth::Blobs, Depth::Sampled(3), Depth::Sampled(0), Depth::Full] {
        let report = home.store.verify(&VerifyOptions { depth, repair: false }, &Quiet).unwrap();
        assert!(report.problems.is_empty(), "{depth:?}: {:?}", report.problems);
        assert_eq!((report.images, report.layers, report.blobs), (1, 3, 5));
        assert!(report.bytes > 0);
    }
    let left = fs::read_dir(home.store.root().join("tmp")).unwrap().flatten();
    let left: Vec<PathBuf> =
        left.flat_map(|w| fs::read_dir(w.path()).unwrap().flatten()).map(|e| e.path()).collect();
    assert_eq!(left.len(), 1, "only the folder that the test asked for: {left:?}");
}

/// Where a test does its damage.
struct Site<'a> {
    home: &'a Home,
    first: &'a Path,
    second: &'a Path,
}

#[test]
fn damage_is_found_and_mended() {
    type Damage = fn(&Site<'_>);
    fn flip_in(path: &Path) {
        let time = fs::metadata(path).unwrap().modified().unwrap();
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0u8];
        let at = file.metadata().unwrap().len() / 2;
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        file.set_modified(time).unwrap();
    }
    fn blob(site: &Site<'_>, digest: &Digest) -> PathBuf {
        site.home.store.blob_path(digest)
    }
    fn of_image(site: &Site<'_>) -> isles_store::Image {
        site.home.store.resolve("app:1", None).unwrap()
    }
    let cases: Vec<(&str, Damage, &str, Cure)> = vec![
        (
            "a bit of a layer's archive",
            |s| flip_in(&blob(s, &of_image(s).manifest.layers[1].digest)),
            "the blob has the content of sha256:",
            Cure::Removed,
        ),
        (
            "a bit of the configuration",
            |s| flip_in(&blob(s, of_image(s).id())),
            "the blob has the content of",
            Cure::Removed,
        ),
        (
            "a bit of the manifest",
            |s| flip_in(&blob(s, &of_image(s).manifest_digest)),
            "the blob has the content of",
            Cure::Removed,
        ),
        (
            "a blob cut short",
            |s| {
                let path = blob(s, &of_image(s).manifest.layers[0].digest);
                fs::File::options().write(true).open(path).unwrap().set_len(700).unwrap();
            },
            "the blob has the content of",
            Cure::Removed,
        ),
        (
            "the configuration is gone",
            |s| fs::remove_file(blob(s, of_image(s).id())).unwrap(),
            "the image's configuration is missing",
            Cure::None,
        ),
        (
            "an archive is gone",
            |s| fs::remove_file(blob(s, &of_image(s).manifest.layers[1].digest)).unwrap(),
            "the archive of layer sha256:",
            Cure::None,
        ),
        (
            "a changed file",
            |s| flip_in(&s.first.join("etc/passwd")),
            "'etc/passwd' has other content",
            Cure::Restored,
        ),
        (
            "a byte in a hole",
            |s| {
                let file = fs::File::options().write(true).open(s.first.join("big")).unwrap();
                let time = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(b"!", 5 << 30).unwrap();
                file.set_modified(time).unwrap();
            },
            "'big' has other content",
            Cure::Restored,
        ),
        (
            "a file that is shorter",
            |s| fs::write(s.first.join("twice"), "").unwrap(),
            "'twice' has 0 bytes, not 1",
            Cure::Restored,
        ),
        (
            "a missing file",
            |s| fs::remove_file(s.first.join("no/parent/here")).unwrap(),
            "'no/parent/here' is missing",
            Cure::Restored,
        ),
        (
            "a file too many",
            |s| fs::write(s.second.join("d/planted"), "x").unwrap(),
            "'d/planted' does not belong here",
            Cure::Restored,
        ),
        (
            "another mode",
            |s| fs::set_permissions(s.second.join("d"), fs::Permissions::from_mode(0o777)).unwrap(),
            "'d' has the mode 777, not 750",
            Cure::Restored,
        ),
        (
            "another target",
            |s| {
                fs::remove_file(s.first.join("etc/link")).unwrap();
                std::os::unix::fs::symlink("shadow", s.first.join("etc/link")).unwrap();
            },
            "'etc/link' points elsewhere",
            Cure::Restored,
        ),
        (
            "another owner",
            |s| {
                let file = fs::File::open(s.first.join("etc/marked")).unwrap();
                if is_root() {
                    std::os::unix::fs::fchown(&file, Some(7), None).unwrap();
                } else {
                    fs::set_permissions(s.first.join("etc/marked"), fs::Permissions::from_mode(0o640))
                        .unwrap();
                    isles_store::record_owner(&file, 7, 0).unwrap();
                    fs::set_permissions(s.first.join("etc/marked"), fs::Permissions::from_mode(0o440))
                        .unwrap();
                }
            },
            "'etc/marked'",
            Cure::Restored,
        ),
        (
            "an attribute",
            |s| {
                let file = fs::File::open(s.first.join("etc/passwd")).unwrap();
                let none = rustix::fs::XattrFlags::empty();
                rustix::fs::fsetxattr(&file, "user.more", b"1", none).unwrap();
            },
            "'etc/passwd' has another attribute user.more",
            Cure::Restored,
        ),
        (
            "a deleted file that came back",
            |s| {
                fs::remove_file(s.first.join("usr/gone")).unwrap();
                fs::write(s.first.join("usr/gone"), "x").unwrap();
            },
            "'usr/gone' is of another kind",
            Cure::Restored,
        ),
        (
            "a record that is cut short",
            |s| {
                let record = s.first.parent().unwrap().join("layer.json");
                fs::File::options().write(true).open(record).unwrap().set_len(20).unwrap();
            },
            "layer.json is not valid",
            Cure::Removed,
        ),
        (
            "a record that is empty",
            |s| fs::write(s.second.parent().unwrap().join("layer.json"), "").unwrap(),
            "layer.json is not valid",
            Cure::Removed,
        ),
        (
            "a layer without files",
            |s| isles_store::remove_tree(s.second).unwrap(),
            "the layer has no files",
            Cure::Restored,
        ),
        (
            "a power cut while the layer was written",
            |s| fs::write(s.second.parent().unwrap().join("fresh"), "another boot").unwrap(),
            "before the layer was on disk",
            Cure::Restored,
        ),
        (
            "the image's record",
            |s| {
                let records = fs::read_dir(s.home.store.root().join("images")).unwrap();
                records.flatten().for_each(|r| fs::write(r.path(), "{").unwrap());
            },
            "the image's record is damaged",
            Cure::Removed,
        ),
    ];
    for (name, damage, piece, cure) in cases {
        let home = Home::new();
        let (first, second) = furnish(&home);
        let image = home.store.resolve("app:1", None).unwrap();
        let saved: Vec<(PathBuf, Vec<u8>)> = [&image.manifest_digest, image.id()]
            .into_iter()
            .chain(image.manifest.layers.iter().map(|l| &l.digest))
            .map(|d| (home.store.blob_path(d), fs::read(home.store.blob_path(d)).unwrap()))
            .collect();
        let layer = |digest: &Digest| home.store.layer_path(digest).unwrap();
        damage(&Site { home: &home, first: &layer(&first), second: &layer(&second) });

        let found = verify(&home, Depth::Full, false);
        let [problem] = found.as_slice() else { panic!("{name}: {found:#?}") };
        assert!(problem.what.contains(piece), "{name}: {}", problem.what);
        assert_eq!(problem.cure, Cure::None, "{name}");
        let names: Vec<String> = problem.images.iter().map(|r| r.familiar()).collect();
        assert_eq!(names, ["app:1", "app:2"], "{name}");

        let found = verify(&home, Depth::Full, true);
        assert!(found.iter().any(|p| p.what.contains(piece) && p.cure == cure), "{name}: {found:#?}");
        if cure == Cure::Restored {
            assert!(verify(&home, Depth::Full, false).is_empty(), "{name}");
            continue;
        }
        // What a pull does next: it brings the blobs and the image again.
        let lease = home.lease();
        for (path, bytes) in &saved {
            assert!(!path.exists() || fs::read(path).unwrap() == *bytes, "{name}: {path:?}");
        }
        let (manifest, config) = (saved[0].1.clone(), saved[1].1.clone());
        home.store.put_bytes(&lease, &config).unwrap();
        for ((blob, diff_id), (_, bytes)) in
            image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids).zip(&saved[2..])
        {
            let mut open = |offset: u64| -> std::io::Result<Box<dyn std::io::Read + '_>> {
                Ok(Box::new(&bytes[offset as usize..]))
            };
            home.store.ingest_layer(&lease, blob, diff_id, &mut open, &Quiet).unwrap();
        }
        let refs = ["app:1".parse().unwrap(), "app:2".parse().unwrap()];
        let new = isles_store::NewImage { manifest: &manifest, refs: &refs, ..Default::default() };
        let again = home.store.put_image(&lease, &new).unwrap();
        assert!(home.store.is_whole(&again), "{name}");
        let found = verify(&home, Depth::Full, false);
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

#[test]
fn names_and_downloads() {
    let home = Home::new();
    furnish(&home);
    let content = b"a package";
    home.store.put_download(&sha256(content), &mut &content[..], 100).unwrap();
    let find = |name: &str| {
        let mut todo = vec![home.store.root().to_path_buf()];
        while let Some(path) = todo.pop() {
            if path.file_name().is_some_and(|n| n == name) && path.is_file() {
                return path;
            }
            todo.extend(fs::read_dir(path).into_iter().flatten().map(|e| e.unwrap().path()));
        }
        panic!("no {name}");
    };
    fs::write(find("1"), "sha256:short").unwrap();
    fs::write(find("2"), sha256(b"none").to_string()).unwrap();
    fs::write(find(sha256(content).hex()), "another").unwrap();
    let e = home.store.resolve("app:1", None).unwrap_err();
    assert!(isles_spec::Hint::hint(&e).is_some_and(|h| h.contains("verify --repair")), "{e}");
    for repair in [false, true] {
        let found = verify(&home, Depth::Blobs, repair);
        for piece in
            ["app/1 is damaged", "app:2 stands for an image that is not here", "the download has the content"]
        {
            let one = found.iter().find(|p| p.what.contains(piece));
            assert_eq!(one.map(|p| p.cure != Cure::None), Some(repair), "{piece}: {found:?}");
        }
        assert_eq!(found.len(), 3, "{found:?}");
    }
    assert!(verify(&home, Depth::Full, false).is_empty());
    assert!(home.store.download(&sha256(content)).unwrap().is_none());
}

#[test]
fn what_a_running_container_stands_on_stays() {
    let home = Home::new();
    let (first, _) = furnish(&home);
    let image = home.store.resolve("app:1", None).unwrap();
    let container =
        home.store.create_container("c1", std::slice::from_ref(&image.manifest_digest), false).unwrap();
    let path = home.store.layer_path(&first).unwrap();
    fs::write(path.join("twice"), "").unwrap();
    let found = verify(&home, Depth::Full, true);
    assert_eq!((found.len(), found[0].cure), (1, Cure::None), "{found:?}");
    assert!(found[0].what.contains("a running container uses it"), "{found:?}");
    assert!(path.join("etc/passwd").exists());
    drop(container);
    assert_eq!(verify(&home, Depth::Full, true)[0].cure, Cure::Restored);
}

#[test]
fn a_damaged_image_can_be_removed() {
    let home = Home::new();
    furnish(&home);
    let image = home.store.resolve("app:1", None).unwrap();
    fs::remove_file(home.store.blob_path(image.id())).unwrap();
    home.store.remove_image("app:2", false).unwrap();
    home.store.remove_image("app:1", false).unwrap();
    let usage = home.store.disk_usage().unwrap();
    assert_eq!((usage.images.count, usage.blobs.count, usage.layers.count), (0, 0, 0));
}
