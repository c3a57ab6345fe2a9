//! `isles copy` between every two of its places, and with skopeo on either side.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::path::Path;

use isles_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use isles_spec::{Algorithm, Digest, Platform};
use serde_json::Value;
use shelf::{Said, Served, Shelf, both, layout, noise, tar};

fn put(dir: &Path, kind: &str, bytes: &[u8]) -> Descriptor {
    let digest = isles_store::digest_of_bytes(Algorithm::Sha256, bytes);
    let folder = dir.join("blobs/sha256");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(digest.hex()), bytes).unwrap();
    Descriptor::new(kind, digest, bytes.len() as u64)
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.into()),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: Default::default(),
    }
}

fn index(manifests: Vec<Descriptor>) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.into()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: Default::default(),
    }
}

/// Puts images for these platforms into a layout. Returns what an index says of them.
fn images_for(dir: &Path, platforms: &[&str]) -> Vec<Descriptor> {
    let mut entries = Vec::new();
    for (platform, seed) in platforms.iter().zip(1..) {
        let platform: Platform = platform.parse().unwrap();
        let plain = tar(&[("a", &noise(1 << 20, seed))]);
        let layer = put(dir, media_type::OCI_LAYER, &plain);
        let mut config = ImageConfig::empty(&platform);
        config.rootfs.diff_ids.push(layer.digest.clone());
        let config = put(dir, media_type::OCI_CONFIG, &json(&config));
        let mut entry = put(dir, media_type::OCI_MANIFEST, &json(&manifest(config, vec![layer])));
        entry.platform = Some(platform);
        entries.push(entry);
    }
    entries
}

fn finish(dir: &Path, roots: Vec<Descriptor>) {
    fs::write(dir.join("index.json"), json(&index(roots))).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn named(mut root: Descriptor, name: &str) -> Descriptor {
    root.annotations.insert("org.opencontainers.image.ref.name".into(), name.into());
    root
}

/// A layout with an image for two platforms called `lab`, a signature of the index, and a signature of that. Returns
/// the index and both signatures.
fn two_platforms(dir: &Path) -> (Descriptor, Vec<Descriptor>) {
    let entries = images_for(dir, &["linux/amd64", "linux/arm64"]);
    let root = put(dir, media_type::OCI_INDEX, &json(&index(entries)));
    let mut signatures = Vec::new();
    let mut subject = root.clone();
    for n in 0..2 {
        let config = put(dir, media_type::OCI_EMPTY, b"{}");
        let layer = put(dir, "application/octet-stream", format!("signature {n}").as_bytes());
        let mut signature = manifest(config, vec![layer]);
        signature.artifact_type = Some("application/x-signature".into());
        signature.subject = Some(subject.clone());
        let mut signed = put(dir, media_type::OCI_MANIFEST, &json(&signature));
        signed.artifact_type = signature.artifact_type;
        subject = Descriptor { artifact_type: None, ..signed.clone() };
        signatures.push(signed);
    }
    finish(dir, [&[named(root.clone(), "lab")], &signatures[..]].concat());
    (root, signatures)
}

/// A layout with an image for three platforms and an attestation of the first one, called `lab`, and a signature as
/// cosign lays it. Returns the index and the signature.
fn attested(dir: &Path) -> (Descriptor, Descriptor) {
    let mut entries = images_for(dir, &["linux/amd64", "linux/arm64", "linux/s390x"]);
    let config = put(dir, media_type::OCI_CONFIG, b"{}");
    let statement = put(dir, "application/vnd.in-toto+json", b"{\"_type\":\"statement\"}");
    let mut attestation = put(dir, media_type::OCI_MANIFEST, &json(&manifest(config, vec![statement])));
    attestation.platform = Some("unknown/unknown".parse().unwrap());
    for (key, value) in [("type", "attestation-manifest"), ("digest", &*entries[0].digest.to_string())] {
        attestation.annotations.insert(format!("vnd.docker.reference.{key}"), value.into());
    }
    entries.push(attestation);
    let root = put(dir, media_type::OCI_INDEX, &json(&index(entries)));
    let config = put(dir, media_type::OCI_CONFIG, b"{\"architecture\":\"\"}");
    let layer = put(dir, "application/vnd.dev.cosign.simplesigning.v1+json", b"{\"critical\":{}}");
    let signature = put(dir, media_type::OCI_MANIFEST, &json(&manifest(config, vec![layer])));
    let tag = format!("sha256-{}.sig", root.digest.hex());
    finish(dir, vec![named(root.clone(), "lab"), named(signature.clone(), &tag)]);
    (root, signature)
}

fn roots(dir: &Path) -> Vec<Digest> {
    let index: Index = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    index.manifests.into_iter().map(|d| d.digest).collect()
}

fn report(said: Said) -> Value {
    serde_json::from_str(&said.fine()).unwrap()
}

#[test]
fn all_platforms_and_what_refers_to_them_go_around() {
    for shelf in both() {
        let (a, b) = (Served::start(&shelf, "a", &[]), Served::start(&shelf, "b", &[]));
        let (root, signatures) = two_platforms(&shelf.path("layout"));
        let copy = |from: &str, to: &str| {
            report(shelf.isles(&["copy", "--all", "--referrers", "--format", "json", from, to]))
        };
        let (on_a, on_b) = (format!("docker://{}/lab:1", a.address), format!("docker://{}/x/y:2", b.address));
        let first = copy("oci:layout:lab", &on_a);
        assert_eq!(first["Digest"], root.digest.to_string());
        // Two layers, two configurations; two signatures with one configuration.
        assert_eq!((first["Copied"].as_u64(), first["Existing"].as_u64()), (Some(7), Some(1)), "{first}");
        assert_eq!(first["Referrers"].as_array().unwrap().len(), 2);
        copy(&on_a, &on_b);
        copy(&on_b, "oci-archive:lab.tar:again");
        copy("oci-archive:lab.tar:again", "oci:back:third");
        let expected: Vec<Digest> = [&root, &signatures[0], &signatures[1]].map(|d| d.digest.clone()).into();
        assert_eq!(roots(&shelf.path("back")), expected);
        let blobs = |dir: &str| {
            let mut names: Vec<_> = fs::read_dir(shelf.path(dir).join("blobs/sha256"))
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(blobs("layout"), blobs("back"));
        // Once more: nothing is sent.
        let again = copy(&on_a, &on_b);
        assert_eq!((again["Copied"].as_u64(), again["Bytes"].as_u64()), (Some(0), Some(0)), "{again}");
        // On one registry: mounted.
        let mounted = copy(&on_a, &format!("docker://{}/other:1", a.address));
        assert_eq!(
            (mounted["Copied"].as_u64(), mounted["Mounted"].as_u64()),
            (Some(0), Some(7)),
            "{mounted}"
        );
        // One platform only.
        let one = report(shelf.isles(&[
            "copy",
            "--platform",
            "linux/arm64",
            "--format",
            "json",
            &on_a,
            "oci:one:arm",
        ]));
        assert_eq!(one["MediaType"], media_type::OCI_MANIFEST);
        assert_eq!(blobs("one").len(), 3);
        shelf
            .isles(&["copy", "--platform", "linux/s390x", &on_a, "oci:none"])
            .fails(1, &["linux/s390x", "linux/arm64"]);
    }
}

#[test]
fn the_store_and_files_of_every_kind() {
    for shelf in both() {
        let server = Served::start(&shelf, "server", &[]);
        let image =
            layout(&shelf.path("layout"), "lab:1", &[tar(&[("a", &noise(1 << 20, 1))]), tar(&[("b", b"b")])]);
        let id = image.id().to_string();
        let name = format!("docker://{}/lab:1", server.address);
        let copy = |from: &str, to: &str| shelf.isles(&["copy", from, to]).fine();
        let has = |name: &str| {
            assert_eq!(shelf.isles(&["inspect", "--format", "{{.Id}}", name]).fine().trim(), id, "{name}");
        };
        copy("oci:layout:lab:1", "lab:1");
        has("lab:1");
        copy("lab:1", &name);
        copy(&name, "isles:from-registry:1");
        has("from-registry:1");
        copy("lab:1", "oci-archive:a.tar:x");
        copy("oci-archive:a.tar:x", "from-archive:1");
        has("from-archive:1");
        copy("lab:1", "oci:dir:x");
        copy("oci:dir:x", &name);
        copy(&name, "docker-archive:d.tar:lab:2");
        copy("docker-archive:d.tar:lab:2", "from-docker:1");
        has("from-docker:1");
        copy("lab:1", "docker-archive:e.tar:lab:3");
        copy("docker-archive:e.tar:lab:3", &format!("docker://{}/from-docker:1", server.address));
        copy(&format!("docker://{}/from-docker:1", server.address), "again:1");
        has("again:1");
        // SIF files are made of an image, and stay what they are on their way.
        copy("lab:1", "lab.sif");
        let oras = format!("oras://{}/sif:1", server.address);
        copy("lab.sif", &oras);
        copy(&oras, "back.sif");
        assert_eq!(fs::read(shelf.path("lab.sif")).unwrap(), fs::read(shelf.path("back.sif")).unwrap());
        copy("back.sif", "from-sif:1");
        copy(&name, "sif:straight.sif");
        // A digest for scripts.
        shelf.isles(&["copy", "--digestfile", "digest", &name, "oci:dir:y"]).fine();
        assert!(fs::read_to_string(shelf.path("digest")).unwrap().starts_with("sha256:"));
    }
}

#[test]
fn skopeo_reads_what_is_written_and_the_other_way_round() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    layout(&shelf.path("layout"), "lab:1", &[tar(&[("a", &noise(1 << 20, 1))]), tar(&[("b", b"b")])]);
    let skopeo = |args: &[&str]| shelf.peer("skopeo", args);
    let id = |image: &str| -> Option<String> {
        let said = skopeo(&["inspect", "--tls-verify=false", "--config", "--raw", image])?;
        Some(isles_store::digest_of_bytes(Algorithm::Sha256, said.fine().as_bytes()).to_string())
    };
    let Some(expected) = id("oci:layout") else { return };
    let by = |place: &str, who: &str| match place {
        "docker" => format!("docker://{}/{who}:1", server.address),
        "oci" => format!("oci:{who}-dir:one"),
        "oci-archive" => format!("oci-archive:{who}-oci.tar:one"),
        _ => format!("docker-archive:{who}-docker.tar:docker.io/library/lab:1"),
    };
    for place in ["docker", "oci", "oci-archive", "docker-archive"] {
        let theirs = by(place, "skopeo");
        skopeo(&["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "oci:layout", &theirs])
            .unwrap()
            .fine();
        for to in ["docker", "oci", "oci-archive", "docker-archive"] {
            let ours = by(to, &format!("{place}-{to}"));
            shelf.isles(&["copy", "-q", &theirs, &ours]).fine();
            assert_eq!(id(&ours).unwrap(), expected, "{theirs} {ours}");
            // Every byte is looked at.
            let dir = format!("dir:check-{place}-{to}");
            skopeo(&["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &ours, &dir])
                .unwrap()
                .fine();
        }
    }
}

#[test]
fn a_login_for_each_side() {
    let shelf = &both()[0];
    let users = shelf.path("users");
    fs::write(&users, "me:$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm\n").unwrap();
    let server = Served::start(shelf, "server", &["--htpasswd", users.to_str().unwrap()]);
    layout(&shelf.path("layout"), "lab:1", &[tar(&[("b", b"b")])]);
    let name = format!("docker://{}/lab:1", server.address);
    shelf.isles(&["copy", "oci:layout", &name]).fails(1, &["login"]);
    shelf.isles(&["copy", "--dest-creds", "me:secret", "oci:layout", &name]).fine();
    shelf.isles(&["copy", &name, "oci:back"]).fails(1, &["login"]);
    shelf.isles(&["copy", "--src-creds", "me:secret", &name, "oci:back"]).fine();
    shelf.isles(&["copy", "--src-creds", "me:secret", &name, "lab:1"]).fine();
}

fn damage(shelf: &Shelf, dir: &str) {
    let blobs = fs::read_dir(shelf.path(dir).join("blobs/sha256")).unwrap();
    let largest = blobs.map(|e| e.unwrap()).max_by_key(|e| e.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(largest.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest.path(), bytes).unwrap();
}

#[test]
fn what_is_wrong_is_said_and_nothing_wrong_arrives() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    layout(&shelf.path("layout"), "lab:1", &[tar(&[("a", &noise(1 << 20, 1))])]);
    damage(shelf, "layout");
    let name = format!("docker://{}/lab:1", server.address);
    for to in [&*name, "oci:out", "oci-archive:out.tar", "docker-archive:d.tar:a:1"] {
        shelf.isles(&["copy", "oci:layout", to]).fails(1, &["sha256:"]);
    }
    shelf.isles(&["copy", &name, "oci:x"]).fails(1, &["lab:1"]);
    assert!(!shelf.path("out.tar").exists() && !shelf.path("d.tar").exists());
    assert!(!shelf.path("out/index.json").exists());
    let left: Vec<_> = fs::read_dir(shelf.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().ends_with(".part")), "{left:?}");
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with(".new-")), "{left:?}");
    for (args, word) in [
        (&["oci:none", "oci:x"][..], "none"),
        (&["oci:layout:other", "oci:x"], "'other'"),
        (&["oci-archive:layout/index.json", "oci:x"], "index.json"),
        (&["nothing:1", "oci:x"], "nothing:1"),
        (&["--referrers", "lab:1", "oci:x"], "--referrers"),
        (&["--all", "oci:layout", "docker-archive:x.tar"], "one platform"),
        (&["oci:layout", "docker-daemon:x:1"], "docker load"),
    ] {
        shelf.isles(&[&["copy"], args].concat()).fails(1, &[word]);
    }
    shelf.isles(&["copy", "containers-storage:x", "oci:x"]).fails(2, &["podman save"]);
}

#[test]
fn an_index_of_some_platforms() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    let (root, _) = attested(&shelf.path("layout"));
    let whole = format!("docker://{}/lab:1", server.address);
    let copy = |platforms: &str, from: &str, to: &str| {
        report(shelf.isles(&["copy", "--platform", platforms, "--format", "json", from, to]))
    };
    shelf.isles(&["copy", "--all", "oci:layout:lab", &whole]).fine();
    let some = copy("linux/s390x,linux/amd64", &whole, "oci:some:x");
    assert_eq!(some["MediaType"], media_type::OCI_INDEX);
    assert_ne!(some["Digest"], root.digest.to_string());
    // Two images, and what is about one of them, in their order.
    assert_eq!(some["Manifests"], 4);
    let file = |dir: &str, digest: &Value| {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        fs::read(shelf.path(dir).join("blobs/sha256").join(hex)).unwrap()
    };
    let thin: Index = serde_json::from_slice(&file("some", &some["Digest"])).unwrap();
    let platforms: Vec<String> =
        thin.manifests.iter().map(|d| d.platform.clone().unwrap().to_string()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/s390x", "unknown/unknown"]);
    // The same choice is the same document, and goes anywhere; a choice of all is the index itself.
    let again =
        copy("linux/amd64,linux/s390x", "oci:layout:lab", &format!("docker://{}/some:1", server.address));
    assert_eq!(again["Digest"], some["Digest"]);
    let all = copy("linux/amd64,linux/arm64,linux/s390x", &whole, "oci:all:x");
    assert_eq!(all["Digest"], root.digest.to_string());
    for (args, words) in [
        (&["linux/amd64,linux/riscv64", &*whole, "oci:x"][..], &["linux/riscv64", "linux/arm64"][..]),
        (&["linux/amd64,linux/arm64", &whole, "docker-archive:x.tar:a:1"], &["one platform"]),
        (&["linux/amd64,linux/arm64", &whole, "lab:1"], &["several platforms"]),
        (&["linux/amd64,linux/arm64", "oci:layout:lab", "x.sif"], &["several platforms"]),
    ] {
        shelf.isles(&[&["copy", "--platform"], args].concat()).fails(1, words);
    }
    shelf.isles(&["copy", "--platform", "linux/amd64", &whole, "oci:one:x"]).fine();
    let one = ["copy", "--platform", "linux/amd64,linux/arm64", "oci:one:x", "oci:y"];
    shelf.isles(&one).fails(1, &["one platform only"]);
}

#[test]
fn signatures_under_tags_of_their_own_go_along() {
    for shelf in both() {
        let (a, b) = (Served::start(&shelf, "a", &[]), Served::start(&shelf, "b", &[]));
        let (root, signature) = attested(&shelf.path("layout"));
        let tag = format!("sha256-{}.sig", root.digest.hex());
        let (on_a, on_b) = (format!("docker://{}/lab:1", a.address), format!("docker://{}/x:2", b.address));
        let copy = |from: &str, to: &str| {
            let done = report(shelf.isles(&["copy", "--all", "--referrers", "--format", "json", from, to]));
            assert_eq!(done["Referrers"][0]["Digest"], signature.digest.to_string(), "{done}");
            assert_eq!(done["Referrers"][0]["Tag"], tag, "{done}");
        };
        // The signature is no second image of the layout.
        copy("oci:layout", &on_a);
        copy(&on_a, &on_b);
        copy(&on_b, "oci-archive:lab.tar:again");
        copy("oci-archive:lab.tar", "oci:back");
        let tags = shelf.isles(&["search", "-q", "--list-tags", &format!("{}/x", b.address)]).fine();
        assert_eq!(tags, format!("2\n{tag}\n"));
        assert_eq!(roots(&shelf.path("back")), [root.digest.clone(), signature.digest.clone()]);
        shelf.isles(&["load", "-q", "-i", "oci:back"]).fine();
        // Without --referrers it stays where it is.
        shelf.isles(&["copy", "--all", &on_a, "oci:bare"]).fine();
        assert_eq!(roots(&shelf.path("bare")), [root.digest]);
    }
}

#[test]
fn all_platforms_go_through_the_store_as_they_are() {
    for shelf in both() {
        let server = Served::start(&shelf, "server", &[]);
        let (root, _) = attested(&shelf.path("layout"));
        let name = format!("docker://{}/lab:1", server.address);
        let copy = |from: &str, to: &str| shelf.isles(&["copy", "-q", "--all", from, to]).fine();
        let digest = format!("{}\n", root.digest);
        assert_eq!(copy("oci:layout:lab", &name), digest);
        assert_eq!(copy("oci:layout:lab", "oci-archive:lab.tar:lab"), digest);
        for (from, to) in
            [(&*name, "one:1"), ("oci:layout:lab", "two:1"), ("oci-archive:lab.tar:lab", "three:1")]
        {
            assert_eq!(copy(from, to), digest, "{from}");
            // Nothing that it is made of goes with a collection.
            shelf.isles(&["prune", "-f"]).fine();
            assert_eq!(copy(to, &format!("oci:{to}-out:x")), digest, "{to}");
            // A push compresses layers, so the index is another one, of the same images and the attestation.
            let pushed = format!("docker://{}/from-{to}", server.address);
            copy(to, &pushed);
            let back = ["copy", "--all", "--format", "json", &pushed, &format!("oci:{to}-back:x")];
            assert_eq!(report(shelf.isles(&back))["Manifests"], 5, "{to}");
            let one = ["copy", "-q", "--platform", "linux/s390x", to, &format!("oci:{to}-one:x")];
            let expected = images_for(&shelf.path("scratch"), &["linux/amd64", "linux/arm64", "linux/s390x"]);
            assert_eq!(shelf.isles(&one).fine(), format!("{}\n", expected[2].digest), "{to}");
            shelf.isles(&["rmi", "-f", to]).fine();
        }
    }
}

/// Runs the program; what it needed at most, in KiB.
fn peak(shelf: &Shelf, args: &[&str]) -> u64 {
    let mut child = shelf.command_in("state", args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut status = 0;
    // SAFETY: a rusage is plain numbers, for which zeros are fine.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the process is a child that nobody else waits for, and both places outlive the call.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
    assert_eq!((waited, status), (child.id() as i32, 0), "{args:?}");
    // It is gone already, which the standard library cannot know.
    let _ = child.wait();
    usage.ru_maxrss as u64
}

#[test]
fn a_copy_of_any_size_needs_the_same_memory() {
    // ISLES_COPY_BYTES=5000000000 shows it with 5 GB.
    let size: u64 = std::env::var("ISLES_COPY_BYTES").ok().and_then(|v| v.parse().ok()).unwrap_or(300 << 20);
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    let layout = shelf.path("layout");
    // One layer, which is never in this test's own memory either.
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let file = fs::File::create(layout.join("layer")).unwrap();
    let mut writer = isles_store::tar::Writer::new(std::io::BufWriter::new(file));
    let entry = isles_store::tar::Entry {
        path: b"data".to_vec(),
        kind: isles_store::tar::Kind::File,
        mode: 0o644,
        size,
        ..Default::default()
    };
    writer.begin(&entry).unwrap();
    let piece = noise(1 << 20, 1);
    for at in (0..size).step_by(piece.len()) {
        writer.data(&piece[..(size - at).min(piece.len() as u64) as usize]).unwrap();
    }
    drop(writer.finish().unwrap().into_inner().unwrap());
    let mut file = fs::File::open(layout.join("layer")).unwrap();
    let (digest, bytes) = isles_store::digest_of_file(&mut file).unwrap();
    fs::rename(layout.join("layer"), layout.join("blobs/sha256").join(digest.hex())).unwrap();
    let mut config = ImageConfig::empty(&Platform::host());
    config.rootfs.diff_ids.push(digest.clone());
    let config = put(&layout, media_type::OCI_CONFIG, &json(&config));
    let layer = Descriptor::new(media_type::OCI_LAYER, digest, bytes);
    let root = put(&layout, media_type::OCI_MANIFEST, &json(&manifest(config, vec![layer])));
    finish(&layout, vec![named(root, "lab")]);
    let name = format!("docker://{}/lab:1", server.address);
    let other = format!("docker://{}/other:1", server.address);
    for (from, to) in [
        ("oci:layout", &*name),
        (&*name, "oci:back"),
        ("oci:layout", "oci-archive:lab.tar:x"),
        ("oci-archive:lab.tar", &*other),
        ("oci:layout", "docker-archive:lab-docker.tar:lab:1"),
        (&*name, "lab:1"),
        ("lab:1", "oci:stored"),
    ] {
        let kibibytes = peak(shelf, &["copy", "-q", from, to]);
        println!("{from} to {to}: {kibibytes} KiB for {size} bytes");
        assert!(kibibytes <= 64 << 10, "{from} to {to}: {kibibytes} KiB");
        for gone in ["back", "lab-docker.tar", "stored"] {
            let path = shelf.path(gone);
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}
