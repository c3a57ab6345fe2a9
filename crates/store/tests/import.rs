//! Images from files and into files: what is taken, what is refused, and that IDs stay.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use isles_spec::image::{Descriptor, ImageConfig, Index, media_type};
use isles_spec::{Digest, Platform, Quiet, Reference};
use isles_store::{Error, ExportFormat, Image, Imported, NewImage};
use serde_json::{Value, json};
use support::*;

#[test]
fn ordinary_user() {
    again_as_ordinary_user();
}

/// An OCI layout in a folder, written blob by blob.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Layout {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout(dir)
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        fs::write(self.0.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    }

    fn document(&self, kind: &str, value: &Value) -> Value {
        let mut descriptor = self.blob(value.to_string().as_bytes());
        descriptor["mediaType"] = json!(kind);
        descriptor
    }

    /// An image of one small layer, with changes to its documents.
    fn image(&self, change: impl Fn(&mut Value, &mut Value)) -> Value {
        let tar = Tar::new().file("a", "1").done();
        let mut layer = self.blob(&tar);
        layer["mediaType"] = json!(media_type::OCI_LAYER);
        let host = Platform::host();
        let mut config = json!({"architecture": host.architecture, "os": host.os,
            "rootfs": {"type": "layers", "diff_ids": [sha256(&tar)]}, "x.unknown": {"kept": true}});
        let mut manifest =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [layer]});
        change(&mut config, &mut manifest);
        if manifest["config"].is_null() {
            manifest["config"] = self.document(media_type::OCI_CONFIG, &config);
        }
        self.document(media_type::OCI_MANIFEST, &manifest)
    }

    fn index(&self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        self.document(media_type::OCI_INDEX, &index)
    }

    fn import(&self, home: &Home, manifests: &[Value]) -> Result<Vec<Imported>, Error> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.0.path().join("index.json"), index.to_string()).unwrap();
        home.store.import_oci_dir(&home.lease(), self.0.path(), None, &Quiet)
    }
}

/// Remembers what was said at the end of each piece of work.
#[derive(Default)]
struct Said(std::sync::Mutex<Vec<String>>);

impl isles_spec::Progress for Said {
    fn begin(&self, _: &str, _: Option<u64>) -> u64 {
        0
    }
    fn advance(&self, _: u64, _: u64) {}
    fn status(&self, _: u64, _: &str) {}
    fn end(&self, _: u64, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn output(&self, _: u64, _: &[u8]) {}
}

#[test]
fn nothing_is_said_of_what_is_here() {
    let home = Home::new();
    let layout = Layout::new();
    let index = json!({"schemaVersion": 2, "manifests": [layout.image(|_, _| {})]});
    fs::write(layout.0.path().join("index.json"), index.to_string()).unwrap();
    for expected in [&["done"][..], &[]] {
        let said = Said::default();
        home.store.import_oci_dir(&home.lease(), layout.0.path(), None, &said).unwrap();
        assert_eq!(*said.0.lock().unwrap(), expected);
    }
}

#[test]
fn whose_the_path_is_that_cannot_be_read() {
    use isles_spec::Hint;
    use std::os::unix::fs::PermissionsExt;
    if is_root() {
        println!("skip: root may read everything");
        return;
    }
    let layout = Layout::new();
    let index = json!({"schemaVersion": 2, "manifests": [layout.image(|_, _| {})]});
    fs::write(layout.0.path().join("index.json"), index.to_string()).unwrap();
    let deny = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (denied, opened) in [("", 0o700), ("oci-layout", 0o600), ("index.json", 0o600), ("blobs", 0o700)] {
        let home = Home::new();
        let path = layout.0.path().join(denied);
        deny(&path, 0);
        let error = home.store.import_oci_dir(&home.lease(), layout.0.path(), None, &Quiet).unwrap_err();
        deny(&path, opened);
        let hint = error.hint().unwrap();
        assert!(
            matches!(error, Error::Denied { .. }) && !hint.contains("store"),
            "{denied}: {error}: {hint}"
        );
        let shown = path.display().to_string();
        assert!(error.to_string().contains(shown.trim_end_matches('/')), "{denied}: {error}");
    }
    let home = Home::new();
    home.lease();
    deny(&home.store.root().join("leases"), 0);
    let error = home.store.lease().unwrap_err();
    deny(&home.store.root().join("leases"), 0o700);
    assert!(error.hint().unwrap().contains("the store belongs to another user"), "{error}");
}

#[test]
fn documents_that_are_refused() {
    type Make = fn(&Layout) -> Vec<Value>;
    let cases: Vec<(&str, Make, &str)> = vec![
        (
            "more layers than diff IDs",
            |l| vec![l.image(|_, m| m["layers"] = json!([m["layers"][0], m["layers"][0]]))],
            "2 layers, but 1 diff IDs",
        ),
        (
            "another content than the diff ID says",
            |l| vec![l.image(|c, _| c["rootfs"]["diff_ids"][0] = json!(sha256(b"x")))],
            "has digest",
        ),
        (
            "a layer that is larger than announced",
            |l| vec![l.image(|_, m| m["layers"][0]["size"] = json!(5))],
            "bytes, expected 5",
        ),
        (
            "600 layers",
            |l| {
                vec![l.image(|c, m| {
                    m["layers"] = json!(vec![m["layers"][0].clone(); 600]);
                    c["rootfs"]["diff_ids"] = json!(vec![c["rootfs"]["diff_ids"][0].clone(); 600]);
                })]
            },
            "the number of layers exceeds the limit of 500",
        ),
        (
            "a platform that the index denies",
            |l| {
                let mut image = l.image(|c, _| c["architecture"] = json!("s390x"));
                image["platform"] = json!({"os": "linux", "architecture": "amd64"});
                vec![l.index(&[image])]
            },
            "is for linux/s390x, but its index says linux/amd64",
        ),
        (
            "indexes within indexes",
            |l| vec![(0..6).fold(l.image(|_, _| {}), |inner, _| l.index(&[inner]))],
            "the nesting of indexes exceeds the limit of 4",
        ),
        (
            "a manifest that is announced as an index",
            |l| {
                let mut image = l.image(|_, _| {});
                image["mediaType"] = json!(media_type::OCI_INDEX);
                vec![image]
            },
            "is not valid",
        ),
        (
            "a manifest of another type than announced",
            |l| {
                let mut image = l.image(|_, _| {});
                image["mediaType"] = json!(media_type::DOCKER_MANIFEST);
                vec![image]
            },
            "differs from what it was announced as",
        ),
        (
            "an unknown type",
            |l| {
                let mut image = l.image(|_, m| m["mediaType"] = json!("text/plain"));
                image["mediaType"] = json!("text/plain");
                vec![image]
            },
            "text/plain is not supported",
        ),
        (
            "JSON of a thousand levels",
            |l| {
                let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
                let config = format!(
                    r#"{{"architecture":"x","os":"x","rootfs":{{"type":"layers","diff_ids":[]}},"y":{deep}}}"#
                );
                vec![l.image(|_, m| {
                    m["config"] = l.blob(config.as_bytes());
                    m["config"]["mediaType"] = json!(media_type::OCI_CONFIG);
                })]
            },
            "recursion limit",
        ),
        (
            "a configuration of 9 MB",
            |l| vec![l.image(|c, _| c["filler"] = json!("x".repeat(9 << 20)))],
            "exceeds the limit of 8388608",
        ),
        (
            "a manifest that is not there",
            |_| vec![json!({"mediaType": media_type::OCI_MANIFEST, "digest": sha256(b"none"), "size": 1})],
            "is not in the local store",
        ),
        (
            "a digest that is none",
            |_| vec![json!({"mediaType": "x", "digest": "sha256:abc", "size": 1})],
            "invalid digest",
        ),
        (
            "a digest that leads elsewhere",
            |_| vec![json!({"mediaType": "x", "digest": "sha256:../../../etc/passwd", "size": 1})],
            "invalid digest",
        ),
        (
            "a foreign layer whose URL would be asked",
            |l| {
                vec![l.image(|_, m| {
                    m["layers"][0]["digest"] = json!(sha256(b"elsewhere"));
                    m["layers"][0]["urls"] = json!(["http://127.0.0.1:1/layer"]);
                })]
            },
            "is not in the local store",
        ),
        ("nothing", |_| Vec::new(), "it names no image"),
    ];
    for (name, make, piece) in cases {
        let home = Home::new();
        let layout = Layout::new();
        let e = layout.import(&home, &make(&layout)).unwrap_err();
        assert!(e.to_string().contains(piece), "{name}: {e}");
        assert!(home.store.images().unwrap().is_empty(), "{name}");
        home.store.prune(&Default::default()).unwrap();
        assert_eq!(home.store.disk_usage().unwrap(), Default::default(), "{name}: nothing is left");
    }
}

#[test]
fn blobs_that_lie_are_refused() {
    let home = Home::new();
    let layout = Layout::new();
    let image = layout.image(|_, _| {});
    let blobs = layout.0.path().join("blobs/sha256");
    for entry in fs::read_dir(&blobs).unwrap().map(Result::unwrap) {
        let good = fs::read(entry.path()).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(entry.path(), bad).unwrap();
        let e = layout.import(&home, std::slice::from_ref(&image)).unwrap_err();
        assert!(matches!(e, Error::WrongDigest { .. }), "{e}");
        fs::write(entry.path(), good).unwrap();
        // A link to outside is no blob.
        let aside = layout.0.path().join("aside");
        fs::rename(entry.path(), &aside).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", entry.path()).unwrap();
        layout.import(&home, std::slice::from_ref(&image)).unwrap_err();
        fs::remove_file(entry.path()).unwrap();
        fs::rename(&aside, entry.path()).unwrap();
    }
    layout.import(&home, &[image]).unwrap();
}

#[test]
fn documents_that_are_taken() {
    let home = Home::new();
    let layout = Layout::new();
    let large = layout.image(|c, _| c["filler"] = json!("x".repeat(5 << 20)));
    let mut other = layout.image(|c, _| c["architecture"] = json!("riscv64"));
    other["platform"] = json!({"os": "linux", "architecture": "riscv64"});
    let mut own = layout.image(|_, _| {});
    let host = Platform::host();
    own["platform"] = json!({"os": host.os, "architecture": host.architecture});
    let mut attestation = layout.image(|c, _| c["architecture"] = json!("unknown"));
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut index = layout.index(&[own, other, attestation]);
    index["annotations"] = json!({"org.opencontainers.image.ref.name": "docker.io/library/both:1"});
    let images = layout.import(&home, &[large, index]).unwrap();
    assert_eq!(images.len(), 3);
    // The configuration keeps what nobody knows.
    let kept = images.iter().all(|(image, _)| image.config.rest.contains_key("x.unknown"));
    assert!(kept);
    let of = |platform: &str| home.store.resolve("both:1", Some(&platform.parse().unwrap()));
    assert_eq!(of("linux/riscv64").unwrap().config.architecture, "riscv64");
    assert_eq!(home.store.resolve("both:1", None).unwrap().config.platform(), Platform::host());
    assert!(matches!(of("linux/s390x"), Err(Error::OtherPlatform { .. })));
}

/// Two images that share a layer, one with two names.
fn furnish(home: &Home) -> Vec<(Image, Vec<Reference>)> {
    let lease = home.lease();
    let base = small_layer(&home.store, &lease, "base", "1");
    let (one, two) =
        (small_layer(&home.store, &lease, "one", "1"), small_layer(&home.store, &lease, "two", "2"));
    let names = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect::<Vec<Reference>>();
    let first = image(&home.store, &lease, &[base.clone(), one], &["app:1", "example.org/app:1"], "1");
    let second = image(&home.store, &lease, &[base, two], &["app:2"], "2");
    vec![(first, names(&["app:1", "example.org/app:1"])), (second, names(&["app:2"]))]
}

#[test]
fn there_and_back() {
    let home = Home::new();
    let images = furnish(&home);
    let ids: Vec<Digest> = images.iter().map(|(image, _)| image.id().clone()).collect();
    for format in [ExportFormat::OciArchive, ExportFormat::DockerArchive] {
        let mut archive = Vec::new();
        home.store.export_archive(&images, format, &mut archive, &Quiet).unwrap();
        let mut again = Vec::new();
        home.store.export_archive(&images, format, &mut again, &Quiet).unwrap();
        assert!(archive == again, "{format:?}: the same images give the same archive");
        for (name, bytes) in [("plain", archive.clone()), ("gzip", gzip(&archive)), ("zstd", zstd(&archive))]
        {
            let other = Home::new();
            let read = other.store.import_archive(&other.lease(), &mut &bytes[..], &Quiet).unwrap();
            let found: Vec<Digest> = read.iter().map(|(image, _)| image.id().clone()).collect();
            assert_eq!(found, ids, "{format:?} {name}");
            for name in ["app:1", "example.org/app:1", "app:2"] {
                assert!(ids.contains(other.store.resolve(name, None).unwrap().id()), "{name}");
            }
            assert_eq!(other.store.disk_usage().unwrap().layers.count, 3);
        }
        // Cut short anywhere, nothing comes of it.
        for keep in [0, 700, archive.len() / 3, archive.len() * 2 / 3] {
            let other = Home::new();
            other.store.import_archive(&other.lease(), &mut &archive[..keep], &Quiet).unwrap_err();
            assert!(other.store.images().unwrap().is_empty());
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("layout");
    home.store.export_oci_dir(&images[..1], &place, &Quiet).unwrap();
    home.store.export_oci_dir(&images[1..], &place, &Quiet).unwrap();
    let other = Home::new();
    let only = other.store.import_oci_dir(&other.lease(), &place, Some("app:2"), &Quiet);
    assert!(only.is_ok_and(|o| o.len() == 1 && o[0].0.id() == &ids[1]));
    let none = other.store.import_oci_dir(&other.lease(), &place, Some("app:9"), &Quiet).unwrap_err();
    assert!(matches!(none, Error::NoImage { .. }), "{none}");
    assert_eq!(other.store.import_oci_dir(&other.lease(), &place, None, &Quiet).unwrap().len(), 2);
}

/// As Docker wrote them before it wrote OCI layouts: a folder for each layer, and links to those that images share.
#[test]
fn archives_of_older_dockers() {
    let tar = Tar::new().file("a", "1").done();
    let mut config = ImageConfig::empty(&Platform::host());
    config.rootfs.diff_ids = vec![sha256(&tar), sha256(&tar)];
    let config = serde_json::to_vec(&config).unwrap();
    let id = sha256(&config);
    let list = json!([{"Config": format!("{}.json", id.hex()), "RepoTags": ["old:1", "old:2"],
        "Layers": ["one/layer.tar", "two/layer.tar"]}])
    .to_string();
    let build = |link: &str| {
        let archive = Tar::new()
            .dir("one", 0o755)
            .file("one/VERSION", "1.0")
            .entry(entry("one/layer.tar", isles_store::tar::Kind::File, 0o644), &tar)
            .symlink("two/layer.tar", link)
            .entry(entry(&format!("{}.json", id.hex()), isles_store::tar::Kind::File, 0o644), &config);
        archive.file("manifest.json", &list).file("repositories", "{}").done()
    };
    let home = Home::new();
    let read = home.store.import_archive(&home.lease(), &mut &build("../one/layer.tar")[..], &Quiet).unwrap();
    assert_eq!((read.len(), read[0].0.id()), (1, &id));
    assert_eq!(home.store.resolve("old:2", None).unwrap().id(), &id);
    for link in ["../../etc/passwd", "/etc/passwd", "layer.tar", "../three/layer.tar"] {
        let home = Home::new();
        let e = home.store.import_archive(&home.lease(), &mut &build(link)[..], &Quiet).unwrap_err();
        assert!(e.to_string().contains("is not in the archive"), "{link}: {e}");
    }
    let bare = Tar::new().file("repositories", "{}").file("x/layer.tar", "").done();
    let e = Home::new();
    let e = e.store.import_archive(&e.lease(), &mut &bare[..], &Quiet).unwrap_err();
    assert!(e.to_string().contains("Docker before 1.10"), "{e}");
}

#[test]
fn names_say_what_they_stand_for() {
    let home = Home::new();
    let images = furnish(&home);
    let id = images[0].0.id().hex();
    let names = [
        "app:1".to_owned(),
        "docker.io/library/app:1".to_owned(),
        id.to_owned(),
        format!("sha256:{id}"),
        id[..12].to_owned(),
        format!("app@{}", images[0].0.manifest_digest),
    ];
    for name in names {
        assert_eq!(home.store.resolve(&name, None).unwrap().id().hex(), id, "{name}");
    }
    for name in ["app", "app:3", "other:1", "abc", "sha256:", "", "..", "App"] {
        assert!(home.store.resolve(name, None).is_err(), "{name}");
    }
    // Names that are a tag in one place and a folder in another.
    let image = &images[0].0;
    for name in ["a:1", "a/b:1", "a/b/c:1", "a_b:1", "localhost:5000/a/b:1", "a/b.c:latest"] {
        home.store.tag(image, &name.parse().unwrap()).unwrap();
    }
    for name in ["a:1", "a/b:1", "a/b/c:1", "a_b:1", "localhost:5000/a/b:1", "a/b.c"] {
        assert_eq!(home.store.resolve(name, None).unwrap().id(), image.id(), "{name}");
        assert!(home.store.untag(&name.parse().unwrap()).unwrap(), "{name}");
        assert!(!home.store.untag(&name.parse().unwrap()).unwrap(), "{name}");
    }
    assert_eq!(home.store.references().unwrap().len(), 3);
    let pinned = format!("app@{}", sha256(b"another")).parse().unwrap();
    let bytes = home.store.read_document(&image.manifest_digest).unwrap();
    let new = NewImage { manifest: &bytes, refs: &[pinned], ..NewImage::default() };
    let e = home.store.put_image(&home.lease(), &new).unwrap_err();
    assert!(matches!(e, Error::WrongDigest { .. }), "{e}");
}

#[test]
fn a_store_of_the_future_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("version"), "2\n").unwrap();
    let e = isles_store::Store::open(dir.path(), ownership()).unwrap_err();
    assert!(matches!(e, Error::Version { .. }), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// What an index of a layout on disk is, for readers who want to know: the types are public.
#[test]
fn layouts_are_read_back_as_written() {
    let home = Home::new();
    let images = furnish(&home);
    let dir = tempfile::tempdir().unwrap();
    home.store.export_oci_dir(&images, dir.path(), &Quiet).unwrap();
    let index: Index = serde_json::from_slice(&fs::read(dir.path().join("index.json")).unwrap()).unwrap();
    let names: Vec<&str> = index
        .manifests
        .iter()
        .map(|d: &Descriptor| d.annotations["org.opencontainers.image.ref.name"].as_str())
        .collect();
    assert_eq!(names, ["docker.io/library/app:1", "example.org/app:1", "docker.io/library/app:2"]);
    assert!(Path::new(dir.path()).join("oci-layout").exists());
}
