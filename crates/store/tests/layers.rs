//! Layers from streams, from folders, and on top of each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use isles_spec::{Digest, Quiet};
use isles_store::tar::{Entry, Kind};
use isles_store::{CommitOptions, Depth, Error, Limits, Merged, VerifyOptions};
use support::*;

#[test]
fn ordinary_user() {
    again_as_ordinary_user();
}

fn sample() -> Vec<u8> {
    let big: String = (0..60_000u32).map(|n| format!("{n} ")).collect();
    Tar::new().file("a", &big).dir("d", 0o755).file("d/b", "2").done()
}

#[test]
fn every_compression_gives_the_same_layer() {
    let tar = sample();
    let diff_id = sha256(&tar);
    let (left, right) = tar.split_at(tar.len() / 3);
    let empty = gzip(b"");
    for (name, blob) in [
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("gzip members in a row", [gzip(left), gzip(right)].concat()),
        ("an empty member between", [gzip(left), empty.clone(), gzip(right), empty].concat()),
        ("zstd", zstd(&tar)),
        ("zstd frames in a row", [zstd(left), zstd(right)].concat()),
        (
            "a skippable frame before",
            [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&tar)].concat(),
        ),
    ] {
        let home = Home::new();
        let lease = home.lease();
        let done = ingest(&home.store, &lease, &blob, &diff_id).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!done.reused, "{name}");
        assert_eq!(home.store.layer_info(&diff_id).unwrap().size, tar.len() as u64, "{name}");
        assert!(
            tree(&home.store.layer_path(&diff_id).unwrap()).ends_with("d dir 755\nd/b 644 2\n"),
            "{name}"
        );
        assert_eq!(fs::read(home.store.blob_path(&sha256(&blob))).unwrap(), blob, "{name}");
        // The same layer in another compression is not fetched.
        let other = gzip(&[&tar[..], b""].concat());
        let again = ingest(&home.store, &lease, &[other, gzip(b"")].concat(), &diff_id).unwrap();
        assert!(again.reused && again.blob.digest == sha256(&blob), "{name}");
        let mut out = Vec::new();
        home.store.open_layer_tar(&diff_id).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, tar, "{name}");
    }
}

#[test]
fn a_stream_that_is_not_what_was_promised() {
    let tar = sample();
    let blob = gzip(&tar);
    let flipped = {
        let mut bytes = blob.clone();
        bytes[blob.len() / 2] ^= 1;
        bytes
    };
    // What is promised: digest and size of the blob, digest of the content; and what comes.
    let other = sha256(b"other");
    let noise = gzip(&b"no archive".repeat(300));
    for (name, digest, size, diff_id, stream, piece) in [
        ("another blob", &sha256(&blob), blob.len(), &sha256(&tar), &flipped, "has digest"),
        ("another content", &sha256(&blob), blob.len(), &other, &blob, "the content of layer"),
        ("a stream that is longer", &sha256(&blob), blob.len() - 9, &sha256(&tar), &blob, "bytes, expected"),
        ("a stream that ends early", &sha256(&blob), blob.len() + 9, &sha256(&tar), &blob, "bytes, expected"),
        ("no archive", &sha256(&noise), noise.len(), &other, &noise, "is not a valid archive"),
    ] {
        let home = Home::new();
        let mut promised = descriptor(&blob);
        (promised.digest, promised.size) = (digest.clone(), size as u64);
        let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
            Ok(Box::new(&stream[stream.len().min(offset as usize)..]))
        };
        let e = home.store.ingest_layer(&home.lease(), &promised, diff_id, &mut open, &Quiet).unwrap_err();
        assert!(e.to_string().contains(piece), "{name}: {e}");
        assert!(
            !home.store.has_layer(diff_id)
                && (name == "no archive" || name == "another content" || !home.store.has_blob(digest)),
            "{name}"
        );
        home.store.prune(&Default::default()).unwrap();
        assert_eq!(home.store.disk_usage().unwrap(), Default::default(), "{name}: nothing is left");
    }
}

#[test]
fn bombs_are_stopped() {
    let zeros = vec![0u8; 40 << 20];
    let mut tar =
        Tar::new().entry(Entry { size: zeros.len() as u64, ..entry("z", Kind::File, 0o644) }, &zeros).done();
    let (small, diff_id) = (gzip(&tar), sha256(&tar));
    let home = Home::new();
    let store = home.store.clone().with_limits(Limits { layer_bytes: 10 << 20, ..Limits::default() });
    let e = ingest(&store, &home.lease(), &small, &diff_id).unwrap_err();
    assert!(e.to_string().contains("the uncompressed size exceeds the limit of 10485760"), "{e}");
    // A file that claims more than there is.
    tar.truncate(1024);
    let e = ingest(&home.store, &home.lease(), &gzip(&tar), &sha256(&tar)).unwrap_err();
    assert!(matches!(e, Error::Archive { .. }), "{e}");
    assert!(fs::read_dir(home.store.root().join("layers")).map_or(0, |d| d.count()) == 0);
}

/// Breaks off after so many bytes, again and again.
#[test]
fn a_broken_stream_is_continued() {
    let tar = sample();
    let blob = gzip(&tar);
    let home = Home::new();
    let lease = home.lease();
    let tries = AtomicUsize::new(0);
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
        if tries.fetch_add(1, Ordering::Relaxed) == 3 {
            return Err(io::Error::other("the cable is gone"));
        }
        let rest = &blob[offset as usize..];
        Ok(Box::new(rest.take(20_000).chain(Broken)))
    };
    let promised = descriptor(&blob);
    let e = home.store.ingest_layer(&lease, &promised, &sha256(&tar), &mut open, &Quiet).unwrap_err();
    assert!(e.to_string().contains("the cable is gone"), "{e}");
    let partial: u64 = fs::read_dir(home.store.root().join("partial"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(partial, 60_000);
    // The next try takes it up where it broke.
    let mut first = None;
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
        first.get_or_insert(offset);
        Ok(Box::new(&blob[offset as usize..]))
    };
    home.store.ingest_layer(&lease, &promised, &sha256(&tar), &mut open, &Quiet).unwrap();
    assert_eq!(first, Some(60_000));
    // A partial blob that was damaged meanwhile costs one more try, not a failure.
    let home = Home::new();
    let partial = home.store.root().join("partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join(format!("sha256-{}", promised.digest.hex())), vec![7; 5000]).unwrap();
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> { Ok(Box::new(&blob[offset as usize..])) };
    home.store.ingest_layer(&home.lease(), &promised, &sha256(&tar), &mut open, &Quiet).unwrap();
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn many_threads_want_one_layer() {
    let tar = sample();
    let blob = gzip(&tar);
    let home = Home::new();
    let fetched = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
                    fetched.fetch_add(1, Ordering::Relaxed);
                    Ok(Box::new(&blob[offset as usize..]))
                };
                let lease = home.lease();
                home.store
                    .ingest_layer(&lease, &descriptor(&blob), &sha256(&tar), &mut open, &Quiet)
                    .unwrap();
            });
        }
    });
    assert_eq!(fetched.into_inner(), 1);
    let left = fs::read_dir(home.store.root().join("partial")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_layer_from_before_a_power_cut_is_made_anew() {
    let tar = sample();
    let blob = gzip(&tar);
    let home = Home::new();
    let lease = home.lease();
    ingest(&home.store, &lease, &blob, &sha256(&tar)).unwrap();
    let path = home.store.layer_path(&sha256(&tar)).unwrap();
    fs::write(path.parent().unwrap().join("fresh"), "an earlier boot").unwrap();
    fs::write(path.join("d/b"), "").unwrap();
    assert!(!home.store.has_layer(&sha256(&tar)));
    assert!(!ingest(&home.store, &lease, &blob, &sha256(&tar)).unwrap().reused);
    assert_eq!(fs::read_to_string(path.join("d/b")).unwrap(), "2");
}

fn view(home: &Home, tars: Vec<Tar>) -> Merged {
    let lease = home.lease();
    let layers: Vec<_> =
        tars.into_iter().map(|t| home.store.layer_from_tar(&lease, &mut &t.done()[..]).unwrap()).collect();
    let image = image(&home.store, &lease, &layers, &["x"], "1");
    Merged::open(&home.store.layers_of(&image).unwrap(), ownership()).unwrap()
}

#[test]
fn layers_on_top_of_each_other() {
    let home = Home::new();
    let view = view(
        &home,
        vec![
            Tar::new()
                .dir("d", 0o700)
                .file("d/kept", "1")
                .file("d/gone", "1")
                .file("d/changed", "1")
                .dir("o", 0o755)
                .file("o/hidden", "1")
                .file("f", "file")
                .dir("t", 0o755)
                .file("t/below", "1")
                .symlink("l", "d")
                .file("hard", "1")
                .hardlink("link", "hard"),
            Tar::new()
                .dir("d", 0o751)
                .file("d/.wh.gone", "")
                .file("d/changed", "2")
                .file("o/.wh..wh..opq", "")
                .file("o/new", "2")
                .dir("f", 0o755)
                .file("f/now", "a directory")
                .file("t", "a file now")
                .file(".wh.hard", ""),
            Tar::new().dir("d", 0o751).file("d/gone", "back").file("other", "3"),
        ],
    );
    let text = |path: &str| {
        let mut text = String::new();
        view.open_file(Path::new(path)).map(|mut f| f.read_to_string(&mut text).unwrap()).ok().map(|_| text)
    };
    for (path, expected) in [
        ("d/kept", Some("1")),
        ("d/gone", Some("back")),
        ("d/changed", Some("2")),
        ("l/changed", Some("2")),
        ("o/hidden", None),
        ("o/new", Some("2")),
        ("f/now", Some("a directory")),
        ("t", Some("a file now")),
        ("t/below", None),
        ("hard", None),
        ("link", Some("1")),
        ("../../d/kept", Some("1")),
    ] {
        assert_eq!(text(path).as_deref(), expected, "{path}");
    }
    let mode = view.lstat(Path::new("d")).unwrap().mode;
    assert_eq!(mode, 0o751, "a directory is as the topmost layer has it");
    let names: Vec<_> = view.read_dir(Path::new("d")).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["changed", "gone", "kept"]);
    assert!(!view.exists(Path::new("o/hidden")));
}

/// What a container wrote becomes a layer, and that layer unpacked is what the container saw.
#[test]
fn what_a_container_wrote_becomes_a_layer() {
    let home = Home::new();
    let lease = home.lease();
    let upper = home.store.scratch_dir().unwrap().join("upper");
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    fs::create_dir_all(upper.join("d/deep")).unwrap();
    fs::set_permissions(upper.join("d"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::write(upper.join("d/deep/f"), "1").unwrap();
    fs::hard_link(upper.join("d/deep/f"), upper.join("hard")).unwrap();
    std::os::unix::fs::symlink("/d", upper.join("link")).unwrap();
    set(&upper.join("hard"), "user.note", b"kept");
    let prefix = if is_root() { "trusted.overlay." } else { "user.overlay." };
    fs::create_dir(upper.join("opaque")).unwrap();
    set(&upper.join("opaque"), &format!("{prefix}opaque"), b"y");
    set(&upper.join("opaque"), &format!("{prefix}origin"), b"x");
    let deleted = rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("deleted"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    );
    deleted.unwrap();
    let socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 64 << 20).unwrap();
    // VFS_CAP_REVISION_2, cap_net_raw+ep.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    if is_root() {
        set(&upper.join("d/deep/f"), "security.capability", &capability);
        std::os::unix::fs::lchown(upper.join("d/deep"), Some(1000), Some(33)).unwrap();
    } else {
        isles_store::record_owner(fs::File::open(upper.join("d/deep")).unwrap(), 1000, 33).unwrap();
    }
    fs::create_dir(upper.join("proc")).unwrap();
    fs::write(upper.join("proc/left out"), "").unwrap();
    let options = CommitOptions {
        exclude: vec!["/proc".into()],
        clamp_mtime: Some(1_700_000_000),
        lowers: Vec::new(),
        live: false,
    };
    let layer = home.store.commit_layer(&lease, &upper, &options).unwrap();
    drop(socket);
    assert!(!upper.exists(), "it has moved");

    // Elsewhere, from the archive.
    let mut archive = Vec::new();
    home.store.open_layer_tar(&layer.diff_id).unwrap().read_to_end(&mut archive).unwrap();
    assert!(archive.len() < 100_000, "holes are not written: {}", archive.len());
    let other = Home::new();
    let again = other.store.layer_from_tar(&other.lease(), &mut &archive[..]).unwrap();
    assert_eq!(again.diff_id, layer.diff_id);
    let (here, there) =
        (home.store.layer_path(&layer.diff_id).unwrap(), other.store.layer_path(&layer.diff_id).unwrap());
    let expected = "d dir 2750\nd/deep dir 755\nd/deep/f 644 1\ndeleted deleted\nhard 644 1\nlink -> /d\n\
                    opaque dir 755 opaque\nsparse 644 67108867 bytes\n";
    let umask_free = |text: String| text.replace("664", "644").replace("775", "755");
    assert_eq!(umask_free(tree(&here)), expected);
    assert_eq!(umask_free(tree(&there)), expected);
    for root in [&here, &there] {
        assert_eq!(fs::metadata(root.join("hard")).unwrap().nlink(), 2);
        assert!(fs::metadata(root.join("sparse")).unwrap().blocks() < 100);
        let get = |path: &str, name: &str| {
            let mut value = [0u8; 64];
            rustix::fs::getxattr(root.join(path), name, &mut value[..]).ok().map(|n| value[..n].to_vec())
        };
        assert_eq!(get("hard", "user.note").as_deref(), Some(&b"kept"[..]));
        if is_root() {
            assert_eq!(get("hard", "security.capability").as_deref(), Some(&capability[..]));
        }
        let view = Merged::open(&[root.to_path_buf()], ownership()).unwrap();
        let stat = view.lstat(Path::new("d/deep")).unwrap();
        assert_eq!((stat.uid, stat.gid), (1000, 33));
        assert!(view.lstat(Path::new("d")).unwrap().mtime.0 <= i64::from(u32::MAX));
    }
    assert!(fs::metadata(there.join("d/deep/f")).unwrap().mtime() <= 1_700_000_000);
    for home in [&home, &other] {
        let whole = VerifyOptions { depth: Depth::Full, repair: false };
        let report = home.store.verify(&whole, &Quiet).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
}

#[test]
fn the_same_tree_gives_the_same_digest() {
    let make = |home: &Home, names: &[&str]| -> Digest {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), *name).unwrap();
        }
        let options = CommitOptions { clamp_mtime: Some(1_000_000), ..CommitOptions::default() };
        home.store.layer_from_tree(&home.lease(), dir.path(), &options).unwrap().diff_id
    };
    let (one, two) = (Home::new(), Home::new());
    assert_eq!(make(&one, &["b/c", "a", "b/d"]), make(&two, &["a", "b/d", "b/c"]));
    assert_ne!(make(&one, &["a"]), make(&one, &["b"]));
}

#[test]
fn a_folder_that_shuts_out_its_owner_is_packed() {
    let home = Home::new();
    let upper = home.store.scratch_dir().unwrap().join("upper");
    fs::create_dir_all(upper.join("shut/in")).unwrap();
    fs::write(upper.join("shut/in/f"), "1").unwrap();
    fs::set_permissions(upper.join("shut/in/f"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(upper.join("shut/in"), fs::Permissions::from_mode(0o200)).unwrap();
    fs::set_permissions(upper.join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
    let layer = home.store.commit_layer(&home.lease(), &upper, &CommitOptions::default()).unwrap();
    let mut archive = Vec::new();
    home.store.open_layer_tar(&layer.diff_id).unwrap().read_to_end(&mut archive).unwrap();
    let mode = fs::metadata(home.store.layer_path(&layer.diff_id).unwrap().join("shut")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0, "and is shut again");
    let other = Home::new();
    let tree = other.unpack(&archive).unwrap();
    assert!(tree.starts_with("shut dir 0\n") && tree.contains("shut/in dir 200\nshut/in/f 0 "), "{tree}");
}

#[test]
fn a_layer_in_the_encoding_that_is_asked_for() {
    use isles_store::Compression::{Gzip, Zstd};
    let home = Home::new();
    let lease = home.lease();
    let tar = sample();
    let diff_id = sha256(&tar);
    ingest(&home.store, &lease, &gzip(&tar), &diff_id).unwrap();
    let fetched = sha256(&gzip(&tar));
    let encoded = |kind, level| home.store.layer_encoded(&lease, &diff_id, kind, level).unwrap();
    assert_eq!(encoded(Some(Gzip), None).digest, fetched, "it is here so");
    let plain = encoded(None, None);
    assert_eq!((plain.digest, plain.size), (diff_id.clone(), tar.len() as u64));
    let zstd = encoded(Some(Zstd), None);
    assert_eq!(encoded(Some(Zstd), None), zstd, "it was made once");
    let (fast, small) = (encoded(Some(Gzip), Some(1)), encoded(Some(Gzip), Some(9)));
    assert!(small.size < fast.size, "{} {}", small.size, fast.size);
    assert!(encoded(Some(Zstd), Some(22)).size < zstd.size);
    for (blob, kind) in [(&zstd, "zstd"), (&fast, "gzip"), (&small, "gzip")] {
        assert!(blob.media_type.ends_with(kind), "{}", blob.media_type);
        let other = Home::new();
        let bytes = fs::read(home.store.blob_path(&blob.digest)).unwrap();
        ingest(&other.store, &other.lease(), &bytes, &diff_id).unwrap();
    }
}
