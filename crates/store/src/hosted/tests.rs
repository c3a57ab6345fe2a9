use std::io::Write;
use std::time::Duration;

use isles_spec::Algorithm;
use isles_spec::image::media_type;

use super::*;
use crate::Ownership;
use crate::hash::digest_of;

const OCI: &str = media_type::OCI_MANIFEST;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("s"), Ownership::Single).unwrap();
    (dir, store)
}

fn sha256(bytes: &[u8]) -> Digest {
    digest_of(Algorithm::Sha256, bytes)
}

fn push(hosted: &Hosted, bytes: &[u8]) -> Digest {
    let mut upload = hosted.start_upload(Algorithm::Sha256).unwrap();
    upload.write_all(bytes).unwrap();
    upload.finish(&sha256(bytes)).unwrap();
    sha256(bytes)
}

fn manifest(config: &Digest, layers: &[&Digest], more: &str) -> Vec<u8> {
    let part = |d: &Digest| format!(r#"{{"mediaType":"a/b","digest":"{d}","size":1}}"#);
    let layers: Vec<String> = layers.iter().map(|d| part(d)).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{},"layers":[{}]{more}}}"#,
        part(config),
        layers.join(",")
    )
    .into_bytes()
}

fn put(hosted: &Hosted, bytes: &[u8], tags: &[&str]) -> Digest {
    let digest = sha256(bytes);
    hosted.put_manifest(&NewManifest { bytes, media_type: OCI, digest: &digest, tags }).unwrap();
    digest
}

fn policy(dry_run: bool) -> HostedPolicy<'static> {
    HostedPolicy {
        grace: Duration::ZERO,
        uploads: Duration::from_secs(3600),
        untagged: &|_| Some(Duration::ZERO),
        expired: &|_, _| Vec::new(),
        dry_run,
    }
}

#[test]
fn names_of_repositories_and_tags() {
    let long = "a".repeat(255);
    for (name, fine) in [
        ("a", true),
        ("a/b/c", true),
        ("a.b_c__d-e---f", true),
        ("0/9", true),
        (long.as_str(), true),
        ("", false),
        ("A", false),
        ("a//b", false),
        ("/a", false),
        ("a/", false),
        ("a..b", false),
        ("a___b", false),
        ("a.-b", false),
        (".a", false),
        ("a-", false),
        ("a+b", false),
        ("ä", false),
        ("..", false),
        ("a/../b", false),
    ] {
        assert_eq!(is_repository_name(name), fine, "{name}");
    }
    assert!(!is_repository_name(&"a".repeat(256)));
    for (tag, fine) in [
        ("latest", true),
        ("1.0_x-Y", true),
        ("_", true),
        ("", false),
        (".a", false),
        ("-a", false),
        ("a/b", false),
        ("ä", false),
    ] {
        assert_eq!(is_tag(tag), fine, "{tag}");
    }
    assert!(is_tag(&"a".repeat(128)) && !is_tag(&"a".repeat(129)));
}

#[test]
fn an_upload_goes_on_with_or_without_its_hash() {
    let (_dir, store) = store();
    let hosted = store.hosted("a/b").unwrap();
    for (algorithm, keep) in [
        (Algorithm::Sha256, true),
        (Algorithm::Sha256, false),
        (Algorithm::Sha512, true),
        (Algorithm::Sha512, false),
    ] {
        let mut upload = hosted.start_upload(Algorithm::Sha256).unwrap();
        let id = upload.id().to_owned();
        upload.write_all(b"hello ").unwrap();
        assert!(matches!(hosted.resume_upload(&id, None), Err(Error::InUse { .. })));
        let hash = upload.pause();
        assert_eq!(hosted.upload_size(&id), Some(6));
        let mut upload = hosted.resume_upload(&id, hash.filter(|_| keep)).unwrap().unwrap();
        upload.write_all(b"world").unwrap();
        let digest = digest_of(algorithm, b"hello world");
        assert_eq!(upload.finish(&digest).unwrap(), 11);
        assert_eq!(hosted.blob(&digest), Some(11));
        assert_eq!(hosted.upload_size(&id), None);
        assert!(hosted.resume_upload(&id, None).unwrap().is_none());
    }
    // A hash of something else is not taken.
    let mut upload = hosted.start_upload(Algorithm::Sha256).unwrap();
    let id = upload.id().to_owned();
    upload.write_all(b"x").unwrap();
    drop(upload);
    let upload = hosted.resume_upload(&id, Some(RunningHash::new(Algorithm::Sha256))).unwrap().unwrap();
    assert_eq!(upload.finish(&sha256(b"x")).unwrap(), 1);
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let mut upload = hosted.start_upload(Algorithm::Sha256).unwrap();
    let id = upload.id().to_owned();
    upload.write_all(b"one").unwrap();
    assert!(matches!(upload.finish(&sha256(b"two")), Err(Error::WrongDigest { .. })));
    assert_eq!(hosted.upload_size(&id), None);
    assert_eq!(hosted.blob(&sha256(b"two")), None);
    assert!(!store.has_blob(&sha256(b"one")));
    for id in ["", "..", "../tags/x", &"g".repeat(32)] {
        assert_eq!(hosted.upload_size(id), None);
        assert!(!hosted.cancel_upload(id).unwrap());
    }
}

#[test]
fn blobs_belong_to_repositories() {
    let (_dir, store) = store();
    let (a, b) = (store.hosted("a").unwrap(), store.hosted("b").unwrap());
    let digest = push(&a, b"content");
    assert!(a.blob(&digest).is_some() && b.blob(&digest).is_none());
    assert!(b.open_blob(&digest).unwrap().is_none());
    assert_eq!(b.mount(&digest, &a).unwrap(), Some(7));
    assert!(b.mount(&sha256(b"other"), &a).unwrap().is_none());
    assert!(a.unlink_blob(&digest).unwrap() && !a.unlink_blob(&digest).unwrap());
    assert!(a.blob(&digest).is_none() && b.blob(&digest).is_some());
    assert_eq!(store.hosted_names().unwrap(), ["a", "b"]);
    let lease = store.lease().unwrap();
    let other = store.put_bytes(&lease, b"of an image").unwrap();
    assert!(a.blob(&other).is_none());
    assert_eq!(a.adopt(&other).unwrap(), Some(11));
    assert!(a.blob(&other).is_some());
    assert!(b.remove().unwrap() && !b.exists() && !b.remove().unwrap());
}

#[test]
fn manifests_that_a_registry_refuses() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let d = sha256(b"c");
    let part = format!(r#"{{"mediaType":"a/b","digest":"{d}","size":1}}"#);
    for (media, text) in [
        (OCI, "{".to_owned()),
        (OCI, "[]".to_owned()),
        (OCI, r#"{"schemaVersion":2}"#.to_owned()),
        (OCI, format!(r#"{{"schemaVersion":1,"config":{part},"layers":[]}}"#)),
        (OCI, r#"{"schemaVersion":2,"layers":[]}"#.to_owned()),
        (OCI, r#"{"schemaVersion":2,"manifests":[]}"#.to_owned()),
        (OCI, format!(r#"{{"schemaVersion":2,"config":{part},"layers":[],"manifests":[]}}"#)),
        (OCI, format!(r#"{{"schemaVersion":2,"mediaType":"x/y","config":{part},"layers":[]}}"#)),
        (
            OCI,
            r#"{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:1","size":1},"layers":[]}"#
                .to_owned(),
        ),
        (OCI, format!("{}{}", r#"{"schemaVersion":2,"annotations":"#, "[".repeat(100_000))),
        (media_type::OCI_INDEX, format!(r#"{{"schemaVersion":2,"config":{part},"layers":[]}}"#)),
        ("text/plain", format!(r#"{{"schemaVersion":2,"config":{part},"layers":[]}}"#)),
    ] {
        let digest = sha256(text.as_bytes());
        let new = NewManifest { bytes: text.as_bytes(), media_type: media, digest: &digest, tags: &["t"] };
        let refused = hosted.put_manifest(&new);
        assert!(matches!(refused, Err(Error::Document { .. })), "{media} {}: {refused:?}", text.len());
    }
    let large = vec![b' '; store.limits().document + 1];
    let new = NewManifest { bytes: &large, media_type: OCI, digest: &sha256(&large), tags: &[] };
    assert!(matches!(hosted.put_manifest(&new), Err(Error::Limit { .. })));
    let good = manifest(&d, &[], "");
    let new = NewManifest { bytes: &good, media_type: OCI, digest: &d, tags: &[] };
    assert!(matches!(hosted.put_manifest(&new), Err(Error::WrongDigest { .. })));
    assert!(hosted.tags().unwrap().is_empty() && hosted.manifests().unwrap().is_empty());
}

#[test]
fn tags_and_manifests_come_and_go() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let config = push(&hosted, b"{}");
    let bytes = manifest(&config, &[], "");
    let digest = put(&hosted, &bytes, &["b", "a", "B"]);
    assert_eq!(hosted.tags().unwrap(), ["B", "a", "b"]);
    assert_eq!(hosted.tag("a").unwrap(), Some(digest.clone()));
    assert_eq!(hosted.manifest(&digest).unwrap().unwrap().blobs, [config]);
    assert!(hosted.remove_tag("b").unwrap() && !hosted.remove_tag("b").unwrap());
    assert!(hosted.manifest(&digest).unwrap().is_some());
    assert!(hosted.remove_manifest(&digest).unwrap() && !hosted.remove_manifest(&digest).unwrap());
    assert!(hosted.tags().unwrap().is_empty());
    assert!(hosted.manifest(&digest).unwrap().is_none());
}

#[test]
fn referrers_by_subject_and_by_tag() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let config = push(&hosted, b"{}");
    let subject = sha256(b"not pushed yet");
    let about = |kind: &str| {
        manifest(
            &config,
            &[],
            &format!(r#","subject":{{"mediaType":"{OCI}","digest":"{subject}","size":1}}{kind}"#),
        )
    };
    let typed = put(&hosted, &about(r#","artifactType":"x/sbom","annotations":{"k":"v"}"#), &[]);
    let untyped = put(&hosted, &about(""), &[]);
    let found = hosted.referrers(&subject).unwrap();
    let of = |d: &Digest| found.iter().find(|f| f.digest == *d).unwrap().clone();
    assert_eq!(found.len(), 2);
    assert_eq!(of(&typed).artifact_type.as_deref(), Some("x/sbom"));
    assert_eq!(of(&typed).annotations["k"], "v");
    assert_eq!(of(&untyped).artifact_type.as_deref(), Some("a/b"));
    hosted.remove_manifest(&typed).unwrap();
    assert_eq!(hosted.referrers(&subject).unwrap().len(), 1);
    // A list that a client kept by the tag schema, from a time before the records.
    fs::remove_dir_all(hosted.dir.join("referrers")).unwrap();
    assert!(hosted.referrers(&subject).unwrap().is_empty());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"{OCI}","digest":"{untyped}","size":1}},
            {{"mediaType":"{OCI}","digest":"{}","size":1}}]}}"#,
        media_type::OCI_INDEX,
        sha256(b"elsewhere")
    );
    let digest = sha256(index.as_bytes());
    let tag = format!("sha256-{}", subject.hex());
    let tags = [tag.as_str()];
    let new = NewManifest {
        bytes: index.as_bytes(),
        media_type: media_type::OCI_INDEX,
        digest: &digest,
        tags: &tags,
    };
    hosted.put_manifest(&new).unwrap();
    assert_eq!(hosted.referrers(&subject).unwrap()[0].digest, untyped);
}

#[test]
fn collection_keeps_what_is_needed() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let (config, layer, stray) = (push(&hosted, b"{}"), push(&hosted, b"layer"), push(&hosted, b"stray"));
    let kept = put(&hosted, &manifest(&config, &[&layer], ""), &["keep"]);
    let lost_layer = push(&hosted, b"lost");
    let lost = put(&hosted, &manifest(&config, &[&lost_layer], ""), &[]);
    let subject = format!(r#","subject":{{"mediaType":"{OCI}","digest":"{kept}","size":1}}"#);
    let about = put(&hosted, &manifest(&config, &[], &subject), &[]);
    // Neither the store's own collection nor a young link's goes.
    store.prune(&crate::PruneOptions::default()).unwrap();
    assert!(store.has_blob(&stray) && store.has_blob(&lost));
    let hour = HostedPolicy { grace: Duration::from_secs(3600), ..policy(false) };
    assert_eq!(store.collect_hosted(&hour).unwrap(), HostedCollected::default());

    let would = store.collect_hosted(&policy(true)).unwrap();
    assert!(store.has_blob(&stray) && hosted.blob(&stray).is_some());
    let done = store.collect_hosted(&policy(false)).unwrap();
    assert_eq!((&would.manifests, would.links), (&done.manifests, done.links));
    assert_eq!(done.manifests, [format!("a@{lost}")]);
    assert_eq!(done.links, 2);
    assert!(done.freed > 0);
    for (digest, stays) in [
        (&config, true),
        (&layer, true),
        (&kept, true),
        (&about, true),
        (&stray, false),
        (&lost, false),
        (&lost_layer, false),
    ] {
        assert_eq!(store.has_blob(digest), stays, "{digest}");
    }
    let gone =
        HostedPolicy { expired: &|_, tags| tags.iter().map(|t| t.tag.clone()).collect(), ..policy(false) };
    let done = store.collect_hosted(&gone).unwrap();
    assert_eq!(done.tags, ["a:keep"]);
    assert!(!hosted.exists() && store.all_blobs().unwrap().is_empty());
}

#[test]
fn pulls_are_noted_by_the_hour_and_go_with_the_manifest() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let config = push(&hosted, b"{}");
    let digest = put(&hosted, &manifest(&config, &[], ""), &["t"]);
    assert_eq!(hosted.pulled(&digest), None);
    hosted.note_pull(&digest).unwrap();
    let note = hosted.dir.join("pulled").join(leaf(&digest));
    let back = |minutes: u64| {
        let time = SystemTime::now() - Duration::from_secs(minutes * 60);
        File::options().write(true).open(&note).unwrap().set_modified(time).unwrap();
        hosted.pulled(&digest).unwrap()
    };
    let recent = back(50);
    hosted.note_pull(&digest).unwrap();
    assert_eq!(hosted.pulled(&digest), Some(recent));
    let old = back(70);
    hosted.note_pull(&digest).unwrap();
    assert!(hosted.pulled(&digest).unwrap() > old);
    // Whoever decides about tags is told.
    let told = std::cell::RefCell::new(Vec::new());
    let expired = |_: &str, tags: &[HostedTag]| {
        told.borrow_mut().extend(tags.iter().map(|t| t.pulled));
        Vec::new()
    };
    store.collect_hosted(&HostedPolicy { expired: &expired, ..policy(true) }).unwrap();
    assert_eq!(*told.borrow(), [hosted.pulled(&digest)]);
    hosted.remove_manifest(&digest).unwrap();
    assert!(!note.exists());
}

#[test]
fn usage_counts() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let config = push(&hosted, b"{}");
    let bytes = manifest(&config, &[], "");
    put(&hosted, &bytes, &["t", "u"]);
    let mut upload = hosted.start_upload(Algorithm::Sha256).unwrap();
    upload.write_all(b"abc").unwrap();
    let expected = HostedUsage { tags: 2, manifests: 1, blobs: 1, bytes: 2 + bytes.len() as u64, uploads: 3 };
    assert_eq!(hosted.usage().unwrap(), expected);
}

#[test]
fn damage_is_found() {
    let (_dir, store) = store();
    let (a, b) = (store.hosted("a").unwrap(), store.hosted("b").unwrap());
    let (config, layer) = (push(&a, b"{}"), push(&a, b"layer"));
    b.mount(&layer, &a).unwrap();
    put(&a, &manifest(&config, &[&layer, &sha256(b"left out")], ""), &["t"]);
    let names = store.hosted_names().unwrap();
    let report = store.verify_hosted(&names).unwrap();
    assert_eq!((report.blobs, report.problems.len()), (3, 0));
    fs::write(store.blob_path(&layer), b"eayer").unwrap();
    fs::remove_file(store.blob_path(&config)).unwrap();
    let mut problems = store.verify_hosted(&names).unwrap().problems;
    problems.sort_by_key(|p| (p.0.clone(), p.2 == HostedProblem::Damaged));
    let s = str::to_owned;
    let expected = [
        (s("a"), config, HostedProblem::Missing),
        (s("a"), layer.clone(), HostedProblem::Damaged),
        (s("b"), layer, HostedProblem::Damaged),
    ];
    assert_eq!(problems, expected);
}

#[test]
fn offers_end_with_who_made_them() {
    let (_dir, store) = store();
    let (blob, other) = (sha256(b"blob"), sha256(b"other"));
    let offer = store.offer(std::slice::from_ref(&blob)).unwrap();
    assert!(store.is_offered(offer.id(), &blob).unwrap() && !store.is_offered(offer.id(), &other).unwrap());
    assert!(!store.is_offered("../version", &blob).unwrap());
    let id = offer.id().to_owned();
    drop(offer);
    assert!(!store.is_offered(&id, &blob).unwrap());
}

#[test]
fn of_many_who_bring_a_blob_at_once_one_is_credited() {
    let (_dir, store) = store();
    let hosted = store.hosted("a").unwrap();
    let users = ["alice", "bob", "carol", "dave"];
    let mut all = 0;
    for n in 0..200_u32 {
        let blob = push(&hosted, &n.to_le_bytes());
        all += 4;
        let begin = std::sync::Barrier::new(users.len());
        std::thread::scope(|scope| {
            for user in users {
                let (hosted, blob, begin) = (&hosted, &blob, &begin);
                scope.spawn(move || {
                    begin.wait();
                    hosted.credit(blob, user).unwrap();
                });
            }
        });
    }
    let credited: u64 = users.iter().map(|user| store.credited(user, None).unwrap()).sum();
    assert_eq!(credited, all);
}
