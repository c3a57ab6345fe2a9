//! SIF files on their way in and out: as artifacts of a registry, and in a library.

#![allow(clippy::unwrap_used)]

mod fake;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{End, Fake, Reply, Request};
use isles_registry::retry::Policy;
use isles_registry::{Client, ClientOptions, Credentials, Library, LibraryName, SIF_CONFIG, SIF_LAYER};
use isles_spec::{Hint, Platform, Quiet, Reference};
use isles_store::{Ownership, Store};
use sha2::{Digest as _, Sha256};

fn options() -> ClientOptions {
    ClientOptions {
        credentials: Credentials::none(),
        retry: Policy { retries: 3, backoff: Duration::from_millis(2), patience: Duration::from_secs(5) },
        stall: Duration::from_millis(400),
        ..ClientOptions::default()
    }
}

fn hex(bytes: &[u8]) -> String {
    isles_spec::digest::hex(&Sha256::digest(bytes))
}

/// 300 kB that do not repeat.
fn sif() -> Vec<u8> {
    (0..75_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

struct Here {
    dir: tempfile::TempDir,
}

impl Here {
    fn new() -> Here {
        Here { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with something in it that must not be left over.
    fn target(&self) -> File {
        let path = self.path("fetched");
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn store(&self) -> Store {
        Store::open(self.path("store"), Ownership::Single).unwrap()
    }

    fn fetched(&self) -> Vec<u8> {
        std::fs::read(self.path("fetched")).unwrap()
    }
}

type Kept = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// A registry in memory, where `twist` answers some requests its own way.
fn registry(twist: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> (Fake, Kept) {
    let kept: Kept = Arc::default();
    let shelf = kept.clone();
    let fake = Fake::start(move |r| {
        if let Some(reply) = twist(r) {
            return reply;
        }
        let mut kept = shelf.lock().unwrap();
        let (path, query) = r.target.split_once('?').unwrap_or((&r.target, ""));
        let name = path.rsplit('/').next().unwrap().to_owned();
        match r.method.as_str() {
            "POST" => Reply::new(202, "").with("Location", "/v2/a/b/blobs/uploads/1"),
            "PUT" if path.contains("/uploads/") => {
                kept.insert(query.strip_prefix("digest=").unwrap().to_owned(), r.body.clone());
                Reply::new(201, "")
            }
            "PUT" => {
                kept.insert(name, r.body.clone());
                Reply::new(201, "")
            }
            _ => match kept.get(&name) {
                Some(bytes) => {
                    let from = r.range().unwrap_or(0);
                    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                    let status = if from > 0 { 206 } else { 200 };
                    Reply::new(status, &bytes[from..]).with("Content-Range", range)
                }
                None => Reply::new(404, ""),
            },
        }
    });
    (fake, kept)
}

#[test]
fn a_sif_file_goes_to_a_registry_and_comes_back() {
    let here = Here::new();
    let path = here.path("tools.sif");
    std::fs::write(&path, sif()).unwrap();
    let broken = Mutex::new(false);
    let digest = format!("sha256:{}", hex(&sif()));
    let file = digest.clone();
    let (fake, kept) = registry(move |r| {
        let first = r.method == "GET" && r.target.ends_with(&file);
        if first && !std::mem::replace(&mut *broken.lock().unwrap(), true) {
            return Some(Reply::new(200, sif()).cut(100_000, End::Reset));
        }
        None
    });
    let client = Client::new(options());
    let name = Reference::parse(&fake.name("a/b:1")).unwrap();
    let pushed = client.push_sif(&here.store(), &path, &name, &Quiet).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&kept.lock().unwrap()["1"]).unwrap();
    assert_eq!(manifest["config"]["mediaType"], SIF_CONFIG);
    assert_eq!(manifest["layers"][0]["mediaType"], SIF_LAYER);
    assert_eq!(manifest["layers"][0]["annotations"]["org.opencontainers.image.title"], "tools.sif");
    assert_eq!(kept.lock().unwrap()[&format!("sha256:{}", hex(b"{}"))], b"{}");
    // The connection breaks once, and the rest is fetched.
    let artifact = client.pull_sif(&name, &Platform::host(), &mut here.target(), &Quiet).unwrap();
    assert_eq!((&artifact.manifest, artifact.title()), (&pushed.digest, Some("tools.sif")));
    assert_eq!(here.fetched(), sif());
    let ranges: Vec<_> = fake.requests().iter().filter_map(Request::range).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    // Pushed again, nothing is sent.
    let before = fake.requests().len();
    client.push_sif(&here.store(), &path, &name, &Quiet).unwrap();
    let bodies: Vec<_> =
        fake.requests()[before..].iter().map(|r| r.body.len()).filter(|n| *n > 1000).collect();
    assert!(bodies.is_empty(), "{bodies:?}");
}

#[test]
fn what_is_no_sif_file_is_refused() {
    let manifest = |layers: &str| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x/y","digest":"sha256:{}","size":2}},"layers":[{layers}]}}"#,
            "a".repeat(64)
        )
    };
    let layer =
        |kind: &str, digest: &str| format!(r#"{{"mediaType":"{kind}","digest":"sha256:{digest}","size":3}}"#);
    let one = layer(SIF_LAYER, &hex(b"abc"));
    for (text, blob, part) in [
        (manifest(&layer("application/x-tar", &hex(b"abc"))), "abc", "not a SIF file"),
        (manifest(""), "abc", "not a SIF file"),
        (manifest(&format!("{one},{one}")), "abc", "several"),
        (manifest(&one), "abd", "has the digest"),
        (manifest(&one), "abcd", "bytes"),
        ("{".to_owned(), "abc", "not valid"),
    ] {
        let (fake, kept) = registry(|_| None);
        kept.lock().unwrap().insert("1".into(), text.into_bytes());
        kept.lock().unwrap().insert(format!("sha256:{}", hex(b"abc")), blob.into());
        let name = Reference::parse(&fake.name("a/b:1")).unwrap();
        let client = Client::new(options());
        let here = Here::new();
        let error = client.pull_sif(&name, &Platform::host(), &mut here.target(), &Quiet).unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

fn library_answer(data: &serde_json::Value) -> Reply {
    Reply::new(200, serde_json::json!({ "data": data }).to_string()).with("Content-Type", "application/json")
}

#[test]
fn an_image_of_a_library() {
    let store = Fake::start(|r| match r.range() {
        None => Reply::new(200, sif()).cut(100_000, End::Close),
        Some(from) => Reply::new(206, &sif()[from..]),
    });
    let behind = format!("http://{}/object", store.address);
    let fake = Fake::start(move |r| match r.target.as_str() {
        "/lib/v1/images/u/c/x:1?arch=amd64" => library_answer(&serde_json::json!({
            "id": "i", "hash": format!("sha256.{}", hex(&sif())), "size": sif().len(), "uploaded": true,
            "fingerprints": ["ABCD"], "arch": "amd64",
        })),
        "/lib/v1/imagefile/u/c/x:1?arch=amd64" => Reply::new(303, "").with("Location", behind.clone()),
        _ => Reply::new(404, r#"{"error":{"code":404,"message":"no such thing"}}"#),
    });
    let here = Here::new();
    let server = format!("http://{}/lib/", fake.address);
    let library = Library::new(&options(), &server, Some("secret")).unwrap();
    let name = LibraryName::parse("library://u/c/x:1").unwrap();
    let image = library.pull(&name, "amd64", &mut here.target(), &Quiet).unwrap();
    assert_eq!((image.fingerprints, image.size), (vec!["ABCD".to_owned()], sif().len() as u64));
    assert_eq!(here.fetched(), sif());
    assert!(fake.requests().iter().all(|r| r.header("authorization") == Some("BEARER secret")));
    assert!(store.requests().iter().all(|r| r.header("authorization").is_none()), "a token stays at home");
    let other = LibraryName::parse("u/c/y").unwrap();
    let error = library.pull(&other, "amd64", &mut here.target(), &Quiet).unwrap_err();
    assert!(error.to_string().contains("has no library://u/c/y:latest"), "{error}");
}

#[test]
fn a_library_that_lies_is_not_believed() {
    for (hash, size, uploaded, body, part) in [
        (hex(b"abd"), 3, true, "abc", "has the digest"),
        (hex(b"abc"), 2, true, "abc", "larger than 2"),
        (hex(b"abc"), 4, true, "abc", "ended too early"),
        (hex(b"abc"), 3, false, "abc", "never sent"),
    ] {
        let fake = Fake::start(move |r| {
            if r.target.starts_with("/v1/images/") {
                return library_answer(&serde_json::json!({
                    "hash": format!("sha256.{hash}"), "size": size, "uploaded": uploaded,
                }));
            }
            match r.range() {
                Some(_) => Reply::new(206, ""),
                None => Reply::new(200, body),
            }
        });
        let library = Library::new(&options(), &format!("http://{}", fake.address), None).unwrap();
        let here = Here::new();
        let name = LibraryName::parse("x").unwrap();
        let error = library.pull(&name, "amd64", &mut here.target(), &Quiet).unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    for (status, body, part) in [
        (401, "", "without signing in"),
        (403, r#"{"error":{"message":"not yours"}}"#, "not yours"),
        (400, r#"{"error":{"message":"odd name"}}"#, "odd name"),
        (200, "no json", "against the protocol"),
        (200, "{}", "no data"),
        (200, r#"{"data":{},"error":{"message":"both"}}"#, "both"),
    ] {
        let fake = Fake::start(move |_| Reply::new(status, body));
        let library = Library::new(&options(), &format!("http://{}", fake.address), None).unwrap();
        let error = library.find(&LibraryName::parse("x").unwrap(), "amd64").unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error} {:?}", error.hint());
    }
}

#[test]
fn an_image_goes_to_a_library() {
    let here = Here::new();
    let path = here.path("x.sif");
    std::fs::write(&path, sif()).unwrap();
    let fake = Fake::start(|r| {
        let path = r.target.split('?').next().unwrap();
        match (r.method.as_str(), path) {
            // The entity is there, the rest is not.
            ("GET", "/v1/entities/u") => library_answer(&serde_json::json!({ "id": "e1" })),
            ("POST", "/v1/collections") => library_answer(&serde_json::json!({ "id": "c1" })),
            ("POST", "/v1/containers") => library_answer(&serde_json::json!({ "id": "n1" })),
            ("POST", "/v1/images") => library_answer(&serde_json::json!({ "id": "i1" })),
            ("POST", "/v2/imagefile/i1") => library_answer(&serde_json::json!({ "uploadURL": "/upload" })),
            ("PUT", "/upload" | "/v2/imagefile/i1/_complete") => library_answer(&serde_json::json!({})),
            ("POST", "/v2/tags/n1") => library_answer(&serde_json::json!({ "latest": "i1" })),
            _ => Reply::new(404, ""),
        }
    });
    let library = Library::new(&options(), &format!("http://{}", fake.address), Some("t")).unwrap();
    let name = LibraryName::parse("library://u/c/x:1,2").unwrap();
    let image = library.push(Path::new(&path), &name, "amd64", "words", &Quiet).unwrap();
    assert_eq!((image.id.as_str(), image.uploaded), ("i1", true));
    let sent = |method: &str, path: &str| -> Vec<Vec<u8>> {
        let requests = fake.requests();
        requests.into_iter().filter(|r| r.method == method && r.target == path).map(|r| r.body).collect()
    };
    assert_eq!(sent("PUT", "/upload"), [sif()]);
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    assert_eq!(json(&sent("POST", "/v1/collections")[0])["entity"], "e1");
    assert_eq!(json(&sent("POST", "/v1/containers")[0])["collection"], "c1");
    assert_eq!(json(&sent("POST", "/v1/images")[0])["hash"], format!("sha256.{}", hex(&sif())));
    assert_eq!(json(&sent("POST", "/v2/imagefile/i1")[0])["filesize"], sif().len());
    let tags: Vec<_> = sent("POST", "/v2/tags/n1").iter().map(|t| json(t)["tag"].clone()).collect();
    assert_eq!(tags, ["1", "2"]);
    let short = LibraryName::parse("x").unwrap();
    assert!(library.push(Path::new(&path), &short, "amd64", "", &Quiet).is_err());
}
