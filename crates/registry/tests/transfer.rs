//! Images on their way in and out while the network and the registry do their worst.

#![allow(clippy::unwrap_used)]

mod fake;
mod sample;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{End, Fake, Reply, Request};
use isles_registry::retry::Policy;
use isles_registry::{Client, ClientOptions, Credentials, Error, Pulled};
use isles_spec::image::media_type;
use isles_spec::{Digest, Platform, Quiet, Reference};
use isles_store::{Ownership, Store};
use sample::{Packing, Sample, index, noise, sha256, tar};

struct Here {
    _dir: tempfile::TempDir,
    store: Store,
    client: Client,
}

fn here() -> Here {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Ownership::Single).unwrap();
    let client = Client::new(ClientOptions {
        credentials: Credentials::none(),
        retry: Policy { retries: 4, backoff: Duration::from_millis(2), patience: Duration::from_secs(5) },
        stall: Duration::from_millis(400),
        ..ClientOptions::default()
    });
    Here { _dir: dir, store, client }
}

impl Here {
    fn pull(&self, fake: &Fake) -> Result<Pulled, Error> {
        self.pull_as(fake, "a/b:1")
    }

    fn pull_as(&self, fake: &Fake, name: &str) -> Result<Pulled, Error> {
        let reference = Reference::parse(&fake.name(name)).unwrap();
        self.client.pull(&self.store, &reference, &Platform::host(), &Quiet)
    }

    fn is_empty(&self) -> bool {
        self.store.references().unwrap().is_empty() && self.store.images().unwrap().is_empty()
    }
}

fn is_layer(r: &Request, sample: &Sample) -> bool {
    sample.layers.iter().any(|l| r.target.ends_with(l))
}

#[test]
fn an_image_arrives_whole() {
    let sample = Sample::small();
    let fake = Fake::start(sample.clone().serving(|_| None));
    let here = here();
    let pulled = here.pull(&fake).unwrap();
    assert_eq!(pulled.image.manifest_digest.to_string(), sample.digest);
    assert_eq!(pulled.image.id().to_string(), sample.id);
    assert_eq!((pulled.layers_fetched, pulled.layers_reused, pulled.up_to_date), (2, 0, false));
    let bytes: usize = sample.layers.iter().map(|l| sample.blobs[l].len()).sum();
    assert_eq!(pulled.bytes, bytes as u64);
    let layers = here.store.layers_of(&pulled.image).unwrap();
    assert_eq!(std::fs::read(layers[0].join("etc/hello")).unwrap(), b"hello\n");

    // Nothing but a question is sent when the image is the current one.
    let before = fake.requests().len();
    let again = here.pull(&fake).unwrap();
    assert!(again.up_to_date && again.bytes == 0);
    assert_eq!(fake.requests()[before..].iter().map(|r| r.method.as_str()).collect::<Vec<_>>(), ["HEAD"]);
    // With a digest not even that.
    let pinned = Reference::parse(&fake.name("a/b")).unwrap().with_digest(sample.digest.parse().unwrap());
    here.client.pull(&here.store, &pinned, &Platform::host(), &Quiet).unwrap();
    let before = fake.requests().len();
    assert!(here.client.pull(&here.store, &pinned, &Platform::host(), &Quiet).unwrap().up_to_date);
    assert_eq!(fake.requests().len(), before);
}

#[test]
fn a_moved_tag_brings_only_what_is_new() {
    let first = Sample::small();
    let base = tar(&[("etc/hello", b"hello\n")]);
    let second = Sample::new(&[base.clone(), tar(&[("new", b"new")])], &Platform::host(), Packing::Gzip);
    let moved = Arc::new(AtomicUsize::new(0));
    let (now, pair) = (moved.clone(), [first.clone(), second.clone()]);
    let fake = Fake::start(move |r| pair[now.load(Ordering::SeqCst)].answer(r));
    let here = here();
    here.pull(&fake).unwrap();
    moved.store(1, Ordering::SeqCst);
    let pulled = here.pull(&fake).unwrap();
    assert_eq!(pulled.image.manifest_digest.to_string(), second.digest);
    assert_eq!((pulled.layers_fetched, pulled.layers_reused), (1, 1));

    // The same layer in another compression is not fetched.
    let plain = Sample::new(&[base], &Platform::host(), Packing::Plain);
    let blob = plain.layers[0].clone();
    let fake = Fake::start(plain.serving(|_| None));
    let pulled = here.pull(&fake).unwrap();
    assert_eq!((pulled.layers_fetched, pulled.layers_reused, pulled.bytes), (0, 1, 0));
    assert!(fake.requests().iter().all(|r| !r.target.ends_with(&blob)));
}

#[test]
fn a_broken_layer_goes_on_where_it_broke() {
    for end in [End::Close, End::Reset, End::Silence] {
        let sample = Sample::large(3_000_000, 7);
        let size = sample.blobs[&sample.layers[0]].len();
        let tries = Arc::new(AtomicUsize::new(0));
        let whole = sample.clone();
        let fake = Fake::start(sample.clone().serving(move |r| {
            let layer = is_layer(r, &whole);
            (layer && tries.fetch_add(1, Ordering::SeqCst) < 3).then(|| whole.answer(r).cut(700_000, end))
        }));
        let here = here();
        let pulled = here.pull(&fake).unwrap_or_else(|e| panic!("{end:?}: {e}"));
        assert_eq!(pulled.image.id().to_string(), sample.id);
        let ranges: Vec<usize> = fake.requests().iter().filter_map(Request::range).collect();
        assert_eq!(ranges.len(), 3, "{end:?}");
        assert!(ranges[0] > 0 && ranges.is_sorted(), "{ranges:?}");
        // A reset may take bytes with it that were under way; nothing that arrived is asked for twice.
        assert!(pulled.bytes <= size as u64, "{} of {size}", pulled.bytes);
    }
}

#[test]
fn a_registry_without_ranges_sends_again() {
    let sample = Sample::large(1_000_000, 8);
    let tries = Arc::new(AtomicUsize::new(0));
    let whole = sample.clone();
    let fake = Fake::start(sample.clone().serving(move |r| {
        let bytes = || whole.blobs[&whole.layers[0]].clone();
        is_layer(r, &whole).then(|| match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(200, bytes()).cut(500_000, End::Close),
            _ => Reply::new(200, bytes()),
        })
    }));
    assert_eq!(here().pull(&fake).unwrap().image.id().to_string(), sample.id);
}

#[test]
fn another_process_goes_on_with_what_is_here() {
    let sample = Sample::large(4_000_000, 9);
    let whole = sample.clone();
    let broken = Fake::start(sample.clone().serving(move |r| {
        let first = is_layer(r, &whole) && r.range().is_none();
        let never = is_layer(r, &whole) && r.range().is_some();
        match () {
            () if first => Some(whole.answer(r).cut(3_000_000, End::Close)),
            () if never => Some(Reply::new(404, "")),
            () => None,
        }
    }));
    let here = here();
    assert!(here.pull(&broken).is_err());
    assert!(here.is_empty());
    let fake = Fake::start(sample.clone().serving(|_| None));
    let client = Client::new(ClientOptions { credentials: Credentials::none(), ..Default::default() });
    let reference = Reference::parse(&fake.name("a/b:1")).unwrap();
    let pulled = client.pull(&here.store, &reference, &Platform::host(), &Quiet).unwrap();
    assert_eq!(pulled.image.id().to_string(), sample.id);
    assert!(pulled.bytes < 2_000_000, "{} bytes again", pulled.bytes);
}

/// Tells a copy of this program what to pull, and where to.
const CHILD: &str = "ISLES_TEST_PULL";

#[test]
fn a_killed_pull_leaves_nothing_broken() {
    if let Ok(text) = std::env::var(CHILD) {
        let (dir, name) = text.split_once('=').unwrap();
        let store = Store::open(dir, Ownership::Single).unwrap();
        let client = Client::new(ClientOptions { credentials: Credentials::none(), ..Default::default() });
        let pulled = client.pull(&store, &Reference::parse(name).unwrap(), &Platform::host(), &Quiet);
        panic!("the pull was to last: {pulled:?}");
    }
    let sample = Sample::large(6_000_000, 13);
    let size = sample.blobs[&sample.layers[0]].len();
    let here = here();
    for part in [1, 2, 3] {
        let (told, heard) = std::sync::mpsc::channel();
        let whole = sample.clone();
        let fake = Fake::start(sample.clone().serving(move |r| {
            is_layer(r, &whole).then(|| {
                let _ = told.send(());
                // The rest never comes.
                let from = r.range().unwrap_or_default();
                whole.answer(r).cut(size * part / 4 - from.min(size * part / 4), End::Silence)
            })
        }));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_pull_leaves_nothing_broken"])
            .env(CHILD, format!("{}={}", here.store.root().display(), fake.name("a/b:1")))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        heard.recv().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(here.is_empty());
        assert!(!here.store.has_blob(&sample.layers[0].parse().unwrap()));
    }
    let fake = Fake::start(sample.clone().serving(|_| None));
    let pulled = here.pull(&fake).unwrap();
    assert_eq!(pulled.image.id().to_string(), sample.id);
    assert_eq!(std::fs::read_dir(here.store.root().join("partial")).map_or(0, Iterator::count), 0);
}

#[test]
fn wrong_content_is_refused_and_leaves_nothing() {
    let sample = Sample::large(500_000, 10);
    let other = Sample::large(500_000, 11).blobs.into_values().max_by_key(Vec::len).unwrap();
    let size = sample.blobs[&sample.layers[0]].len();
    let mut forged = other;
    forged.resize(size, 0);
    for (what, reply) in [
        ("other bytes", Reply::new(200, forged)),
        ("a length that is too large", Reply { length: Some(size + 1), ..Reply::new(200, vec![0; size]) }),
        ("a length that is too small", Reply::new(200, vec![0; size - 1])),
        ("no end", Reply { length: None, end: End::Endless, ..Reply::new(200, "") }),
        ("nothing", Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#)),
        ("no right", Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)),
        ("silence", Reply::new(200, vec![0; size]).cut(0, End::Silence)),
    ] {
        let whole = sample.clone();
        let fake = Fake::start(sample.clone().serving(move |r| is_layer(r, &whole).then(|| reply.clone())));
        let here = here();
        // Silence, too, comes to an end.
        let e = here.pull(&fake).expect_err(what);
        assert!(here.is_empty(), "{what}: {e}");
        assert!(!here.store.has_blob(&sample.layers[0].parse().unwrap()), "{what}");
        // Afterwards all is well.
        let fake = Fake::start(sample.clone().serving(|_| None));
        here.pull(&fake).unwrap_or_else(|e| panic!("after {what}: {e}"));
    }
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let tars: Vec<Vec<u8>> = (0..4).map(|i| tar(&[("data", &noise(400_000, i))])).collect();
    let sample = Sample::new(&tars, &Platform::host(), Packing::Gzip);
    let fake = Fake::start(sample.clone().serving(|_| None));
    let here = here();
    std::thread::scope(|scope| {
        let pulls = [scope.spawn(|| here.pull(&fake)), scope.spawn(|| here.pull_as(&fake, "a/b:2"))];
        let pulled = pulls.map(|p| p.join().unwrap().unwrap());
        assert_eq!(pulled.iter().map(|p| p.layers_fetched).sum::<usize>(), 4);
    });
    let layers = fake.requests().iter().filter(|r| is_layer(r, &sample)).count();
    assert_eq!(layers, 4);
    assert_eq!(here.store.references().unwrap().len(), 2);
}

#[test]
fn one_bad_layer_stops_the_others() {
    let tars: Vec<Vec<u8>> = (0..8).map(|i| tar(&[("data", &noise(300_000, i))])).collect();
    let sample = Sample::new(&tars, &Platform::host(), Packing::Gzip);
    let bad = sample.layers[3].clone();
    let fake =
        Fake::start(sample.clone().serving(move |r| r.target.ends_with(&bad).then(|| Reply::new(404, ""))));
    let here = here();
    let e = here.pull(&fake).unwrap_err();
    assert!(e.to_string().contains(&sample.layers[3]), "{e}");
    assert!(here.is_empty());
}

#[test]
fn configurations_must_fit() {
    let arm: Platform = "linux/arm64".parse().unwrap();
    let other = Sample::new(&[tar(&[("x", b"x")])], &arm, Packing::Gzip);
    let fake = Fake::start(other.clone().serving(|_| None));
    let here = here();
    let e = here.pull(&fake).unwrap_err();
    assert!(e.to_string().ends_with("is for linux/arm64, not for linux/amd64"), "{e}");
    let reference = Reference::parse(&fake.name("a/b:1")).unwrap();
    here.client.pull(&here.store, &reference, &arm, &Quiet).unwrap();

    // An index that lies about its images.
    let host = Platform::host().to_string();
    let lie = index(&[(media_type::OCI_MANIFEST, &other.digest, other.manifest.len(), Some(&host))]);
    let truth = other.clone();
    let fake = Fake::start(move |r| {
        let tag = r.target.ends_with("/1");
        if tag { Reply::new(200, lie.clone()) } else { truth.answer(r) }
    });
    let e = here.pull(&fake).unwrap_err();
    assert!(e.to_string().contains("its index says linux/amd64, its configuration says linux/arm64"), "{e}");

    // Fewer layers than the configuration speaks of.
    let mut sample = Sample::small();
    let text = String::from_utf8(sample.manifest.clone()).unwrap();
    let start = text.find("\"layers\"").unwrap();
    sample.manifest = format!("{}\"layers\":[]}}", &text[..start]).into_bytes();
    sample.digest = sha256(&sample.manifest);
    let fake = Fake::start(sample.serving(|_| None));
    let e = here.pull(&fake).unwrap_err();
    assert!(e.to_string().contains("it has 0 layers, its configuration speaks of 2"), "{e}");
}

/// A registry that takes uploads, as the specification says, into memory.
#[derive(Default)]
struct Receiver {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    manifests: Mutex<HashMap<String, (String, Vec<u8>)>>,
    ids: AtomicUsize,
}

impl Receiver {
    fn answer(&self, r: &Request) -> Reply {
        let (path, query) = r.target.split_once('?').unwrap_or((&r.target, ""));
        let digest = query.split('&').find_map(|p| p.strip_prefix("digest="));
        let mount = query.split('&').find_map(|p| p.strip_prefix("mount="));
        if let Some((_, id)) = path.split_once("/blobs/uploads/") {
            let mut uploads = self.uploads.lock().unwrap();
            let here = |id: &str| format!("/v2/a/b/blobs/uploads/{id}");
            return match r.method.as_str() {
                "POST" => {
                    if mount.is_some_and(|m| self.blobs.lock().unwrap().contains_key(m)) {
                        return Reply::new(201, "");
                    }
                    let id = self.ids.fetch_add(1, Ordering::SeqCst).to_string();
                    uploads.insert(id.clone(), Vec::new());
                    Reply::new(202, "").with("Location", here(&id))
                }
                "GET" => {
                    let Some(have) = uploads.get(id) else { return Reply::new(404, "") };
                    let last = have.len().saturating_sub(1);
                    Reply::new(204, "").with("Location", here(id)).with("Range", format!("0-{last}"))
                }
                "PATCH" | "PUT" => {
                    let Some(have) = uploads.get_mut(id) else { return Reply::new(404, "") };
                    if let Some(range) = r.header("content-range")
                        && range.split('-').next() != Some(&have.len().to_string())
                    {
                        return Reply::new(416, "");
                    }
                    have.extend_from_slice(&r.body);
                    let Some(digest) = digest else {
                        return Reply::new(202, "").with("Location", here(id));
                    };
                    let bytes = uploads.remove(id).unwrap();
                    if sha256(&bytes) != digest {
                        return Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                    }
                    self.blobs.lock().unwrap().insert(digest.to_owned(), bytes);
                    Reply::new(201, "")
                }
                _ => Reply::new(405, ""),
            };
        }
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return match self.blobs.lock().unwrap().get(digest) {
                Some(bytes) => Reply::new(200, bytes.clone()),
                None => Reply::new(404, ""),
            };
        }
        if let Some((_, name)) = path.split_once("/manifests/")
            && r.method == "PUT"
        {
            let kind = r.header("content-type").unwrap().to_owned();
            self.manifests.lock().unwrap().insert(name.to_owned(), (kind, r.body.clone()));
            return Reply::new(201, "").with("Docker-Content-Digest", sha256(&r.body));
        }
        Reply::new(404, "")
    }
}

/// Pulls a sample into a fresh store, under `127.0.0.1:port/a/b:1`.
fn filled(sample: &Sample) -> (Here, String) {
    let fake = Fake::start(sample.clone().serving(|_| None));
    let here = here();
    here.pull(&fake).unwrap();
    (here, fake.name("a/b:1"))
}

fn push(here: &Here, name: &str, fake: &Fake) -> Result<isles_registry::Pushed, Error> {
    let target = Reference::parse(&fake.name("a/b:new")).unwrap();
    here.client.push(&here.store, name, None, &target, &Quiet)
}

#[test]
fn an_image_leaves_as_it_came() {
    for packing in [Packing::Gzip, Packing::Docker] {
        let tars = [tar(&[("etc/hello", b"hello\n")]), tar(&[("x", b"y")])];
        let sample = Sample::new(&tars, &Platform::host(), packing);
        let (here, name) = filled(&sample);
        let receiver = Arc::new(Receiver::default());
        let inner = receiver.clone();
        let fake = Fake::start(move |r| inner.answer(r));
        let pushed = push(&here, &name, &fake).unwrap();
        assert_eq!(pushed.target.digest.to_string(), sample.digest);
        assert_eq!((pushed.uploaded, pushed.existing, pushed.mounted), (3, 0, 0));
        let manifests = receiver.manifests.lock().unwrap();
        assert_eq!(manifests["new"], (sample.manifest_type.to_owned(), sample.manifest.clone()));
        assert_eq!(*receiver.blobs.lock().unwrap(), sample.blobs);
        drop(manifests);
        let again = push(&here, &name, &fake).unwrap();
        assert_eq!((again.uploaded, again.existing, again.bytes), (0, 3, 0));
    }
}

#[test]
fn plain_layers_are_compressed_once() {
    let sample = Sample::new(&[tar(&[("data", &[b'a'; 100_000])])], &Platform::host(), Packing::Plain);
    let (here, name) = filled(&sample);
    let receiver = Arc::new(Receiver::default());
    let inner = receiver.clone();
    let fake = Fake::start(move |r| inner.answer(r));
    let pushed = push(&here, &name, &fake).unwrap();
    assert_ne!(pushed.target.digest.to_string(), sample.digest);
    assert!(pushed.bytes < 5000, "{} bytes", pushed.bytes);
    let manifest: isles_spec::image::Manifest =
        serde_json::from_slice(&receiver.manifests.lock().unwrap()["new"].1).unwrap();
    assert_eq!(manifest.layers[0].media_type, media_type::OCI_LAYER_GZIP);
    assert_eq!(manifest.config.digest.to_string(), sample.id, "the image ID stays");
    let again = push(&here, &name, &fake).unwrap();
    assert_eq!(again.target.digest, pushed.target.digest);
    assert_eq!(again.uploaded, 0);
}

#[test]
fn a_layer_that_is_here_in_another_compression_is_sent_so() {
    let base = tar(&[("etc/hello", b"hello\n")]);
    let first = Sample::new(std::slice::from_ref(&base), &Platform::host(), Packing::Docker);
    let (here, _) = filled(&first);
    let second = Sample::new(&[tar(&[("b", b"b")]), base], &Platform::host(), Packing::Gzip);
    let mut other = second.clone();
    // As if another tool had compressed the same layer.
    let plain = Sample::new(
        &[tar(&[("b", b"b")]), tar(&[("etc/hello", b"hello\n")])],
        &Platform::host(),
        Packing::Plain,
    );
    let zipped = [
        sample::gzip_better(&plain.blobs[&plain.layers[0]]),
        sample::gzip_better(&plain.blobs[&plain.layers[1]]),
    ];
    let mut text = String::from_utf8(second.manifest.clone()).unwrap();
    for (old, new) in second.layers.iter().zip(&zipped) {
        text = text
            .replace(old, &sha256(new))
            .replace(&format!("\"size\":{}", second.blobs[old].len()), &format!("\"size\":{}", new.len()));
        other.blobs.insert(sha256(new), new.clone());
    }
    other.manifest = text.into_bytes();
    other.digest = sha256(&other.manifest);
    let fake = Fake::start(other.clone().serving(|_| None));
    let pulled = here.pull(&fake).unwrap();
    assert_eq!((pulled.layers_fetched, pulled.layers_reused), (1, 1));
    let receiver = Arc::new(Receiver::default());
    let inner = receiver.clone();
    let target = Fake::start(move |r| inner.answer(r));
    let pushed = push(&here, &fake.name("a/b:1"), &target).unwrap();
    assert_eq!(pushed.uploaded, 3);
    let manifests = receiver.manifests.lock().unwrap();
    let manifest: isles_spec::image::Manifest = serde_json::from_slice(&manifests["new"].1).unwrap();
    assert_eq!(manifest.config.digest.to_string(), other.id);
    assert_eq!(manifest.layers[1].digest.to_string(), first.layers[0]);
    assert!(manifest.layers.iter().all(|l| l.media_type == media_type::OCI_LAYER_GZIP));
}

#[test]
fn an_upload_goes_on_where_it_broke() {
    let sample = Sample::large(2_000_000, 12);
    let (here, name) = filled(&sample);
    let receiver = Arc::new(Receiver::default());
    let (inner, broken) = (receiver.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |r| {
        // The first large upload is kept in part and answered by hanging up.
        if r.method == "PUT" && r.body.len() > 1_000_000 && broken.fetch_add(1, Ordering::SeqCst) == 0 {
            let id = r.target.split("/uploads/").nth(1).unwrap().split('?').next().unwrap().to_owned();
            inner.uploads.lock().unwrap().insert(id, r.body[..900_000].to_vec());
            return Reply::new(201, "").cut(0, End::NoAnswer);
        }
        inner.answer(r)
    });
    let pushed = push(&here, &name, &fake).unwrap();
    assert_eq!(pushed.uploaded, 2);
    assert_eq!(receiver.blobs.lock().unwrap()[&sample.layers[0]], sample.blobs[&sample.layers[0]]);
    let patch = fake.requests().into_iter().find(|r| r.method == "PATCH").unwrap();
    assert!(patch.header("content-range").unwrap().starts_with("900000-"));
}

#[test]
fn an_upload_waits_as_long_as_the_registry_says() {
    for (asked, fine) in [("0", true), ("3600", false)] {
        let sample = Sample::large(200_000, 13);
        let (here, name) = filled(&sample);
        let receiver = Arc::new(Receiver::default());
        let (inner, refused) = (receiver.clone(), AtomicUsize::new(0));
        let fake = Fake::start(move |r| {
            if r.method == "PUT" && r.body.len() > 100_000 && refused.fetch_add(1, Ordering::SeqCst) == 0 {
                return Reply::new(429, "").with("Retry-After", asked);
            }
            inner.answer(r)
        });
        match push(&here, &name, &fake) {
            Ok(pushed) => assert!(fine && pushed.uploaded == 2),
            Err(Error::TooManyRequests { retry_after, .. }) => {
                assert!(!fine && retry_after.is_some_and(|wait| wait.as_secs() == 3600));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_copy_goes_on_where_its_source_broke() {
    let sample = Sample::large(2_000_000, 14);
    let (inner, broken) = (sample.clone(), AtomicUsize::new(0));
    let source = Fake::start(move |r| {
        let reply = inner.answer(r);
        if is_layer(r, &inner) && r.method == "GET" && broken.fetch_add(1, Ordering::SeqCst) == 0 {
            return reply.cut(1_000_000, End::Reset);
        }
        reply
    });
    let receiver = Arc::new(Receiver::default());
    let inner = receiver.clone();
    let target = Fake::start(move |r| inner.answer(r));
    let here = here();
    let (from, to) = (source.name("a/b:1"), target.name("new:1"));
    let (from, to) = (Reference::parse(&from).unwrap(), Reference::parse(&to).unwrap());
    let copied = isles_registry::copy(
        isles_registry::CopyFrom::Registry(&here.client, &from),
        isles_registry::CopyTo::Registry(&here.client, &to),
        &isles_registry::CopyOptions::default(),
        &Quiet,
    )
    .unwrap();
    assert_eq!(copied.target.digest.to_string(), sample.digest);
    assert_eq!(receiver.blobs.lock().unwrap()[&sample.layers[0]], sample.blobs[&sample.layers[0]]);
    assert!(source.requests().iter().any(|r| is_layer(r, &sample) && r.range().is_some_and(|at| at > 0)));
}

#[test]
fn a_sibling_repository_lends_its_blobs() {
    let sample = Sample::small();
    let receiver = Arc::new(Receiver::default());
    receiver.blobs.lock().unwrap().extend(sample.blobs.clone());
    let (inner, whole) = (receiver.clone(), sample.clone());
    let fake = Fake::start(move |r| match r.target.as_str() {
        t if t.contains("/a/b/blobs/sha256") => Reply::new(404, ""),
        t if t.contains("/sibling/") => whole.answer(r),
        _ => inner.answer(r),
    });
    let here = here();
    here.pull_as(&fake, "sibling/x:1").unwrap();
    let pushed = push(&here, &fake.name("sibling/x:1"), &fake).unwrap();
    assert_eq!((pushed.mounted, pushed.uploaded, pushed.bytes), (3, 0, 0));
    assert!(fake.requests().iter().any(|r| r.target.contains("from=sibling/x")));
}

#[test]
fn an_index_is_pushed_whole_where_all_of_it_is_here() {
    let arm: Platform = "linux/arm64".parse().unwrap();
    let samples = [Sample::small(), Sample::new(&[tar(&[("arm", b"x")])], &arm, Packing::Gzip)];
    let host = Platform::host().to_string();
    let top = index(&[
        (media_type::OCI_MANIFEST, &samples[0].digest, samples[0].manifest.len(), Some(&host)),
        (media_type::OCI_MANIFEST, &samples[1].digest, samples[1].manifest.len(), Some("linux/arm64")),
    ]);
    let (pair, body) = (samples.clone(), top.clone());
    let source = Fake::start(move |r| {
        let found = pair.iter().find(|s| {
            r.target.ends_with(&s.digest) || {
                let digest = r.target.rsplit('/').next().unwrap();
                r.target.contains("/blobs/") && s.blobs.contains_key(digest)
            }
        });
        found.map_or_else(|| Reply::new(200, body.clone()), |s| s.answer(r))
    });
    let here = here();
    here.pull(&source).unwrap();
    let receiver = Arc::new(Receiver::default());
    let inner = receiver.clone();
    let fake = Fake::start(move |r| inner.answer(r));
    let name = source.name("a/b:1");
    // With one platform here, that one is pushed.
    let pushed = push(&here, &name, &fake).unwrap();
    assert_eq!(pushed.target.digest.to_string(), samples[0].digest);
    let reference = Reference::parse(&name).unwrap();
    here.client.pull(&here.store, &reference, &arm, &Quiet).unwrap();
    let pushed = push(&here, &name, &fake).unwrap();
    assert_eq!(pushed.target.digest, sha256(&top).parse::<Digest>().unwrap());
    let manifests = receiver.manifests.lock().unwrap();
    assert_eq!(manifests["new"], (media_type::OCI_INDEX.to_owned(), top));
    assert!(samples.iter().all(|s| manifests.contains_key(&s.digest)));
}
