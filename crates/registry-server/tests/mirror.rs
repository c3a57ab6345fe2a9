//! A registry that serves another one's images and keeps them.
#![allow(clippy::unwrap_used)]

mod talk;

use isles_registry_server::{Config, MirrorConfig};
use talk::{OCI, Registry, manifest, sha256};

fn mirror_of(upstream: &Registry, fresh: u64) -> Registry {
    let mirror = MirrorConfig {
        prefix: "up".into(),
        upstream: upstream.address.clone(),
        fresh: Some(std::time::Duration::from_secs(fresh)),
        offline: false,
    };
    Registry::with(|_| Config { mirror: vec![mirror], ..Config::default() })
}

/// How many requests of a kind a registry has answered so far.
fn answered(r: &Registry, kind: &str, method: &str) -> u64 {
    let text = String::from_utf8(r.ask("GET", "/metrics").is(200).body).unwrap();
    let wanted = format!("endpoint=\"{kind}\",method=\"{method}\"");
    text.lines()
        .filter(|l| l.contains(&wanted))
        .filter_map(|l| l.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

#[test]
fn what_is_asked_for_is_fetched_once() {
    let upstream = Registry::open();
    let digest = upstream.image("a/b", "v1", b"layer");
    let r = mirror_of(&upstream, 3600);
    let layer = format!("/v2/up/a/b/blobs/{}", sha256(b"layer"));
    // A blob that no manifest here names is nobody's to ask for.
    r.ask("GET", &layer).is(404);
    for _ in 0..2 {
        let got = r.ask("GET", "/v2/up/a/b/manifests/v1").is(200);
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        r.ask("GET", &format!("/v2/up/a/b/manifests/{digest}")).is(200);
    }
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(r.ask("GET", &layer).is(200).body, b"layer"));
        }
    });
    assert_eq!(answered(&upstream, "manifest", "GET"), 1);
    assert_eq!(answered(&upstream, "blob", "GET"), 1);
    assert_eq!(r.ask("GET", "/v2/up/a/b/tags/list").is(200).json()["tags"], serde_json::json!(["v1"]));
}

#[test]
fn tags_follow_and_outlive_the_upstream() {
    let upstream = Registry::open();
    upstream.image("a", "v1", b"one");
    let r = mirror_of(&upstream, 0);
    let before = r.ask("GET", "/v2/up/a/manifests/v1").is(200).body;
    assert_eq!(r.ask("GET", "/v2/up/a/manifests/v1").is(200).body, before);
    assert_eq!(answered(&upstream, "manifest", "GET"), 1, "what has not changed is only asked about");
    upstream.image("a", "v1", b"two");
    let after = r.ask("GET", "/v2/up/a/manifests/v1").is(200).body;
    assert_ne!(after, before);
    // The upstream forgets it; whoever asks here still gets it.
    upstream.ask("DELETE", "/v2/a/manifests/v1").is(202);
    assert_eq!(r.ask("GET", "/v2/up/a/manifests/v1").is(200).body, after);
}

#[test]
fn what_there_is_not_and_what_may_not_be_done() {
    let upstream = Registry::open();
    upstream.image("a", "v1", b"one");
    let r = mirror_of(&upstream, 3600);
    for _ in 0..3 {
        r.ask("GET", "/v2/up/a/manifests/none").is(404);
    }
    let asked = answered(&upstream, "manifest", "GET") + answered(&upstream, "manifest", "HEAD");
    assert_eq!(asked, 1, "what is missing is not asked for again at once");
    let bytes = manifest(&sha256(b"{}"), &[], "");
    assert_eq!(r.manifest("up/a", "v1", OCI, &bytes).is(405).code(), "UNSUPPORTED");
    r.ask("POST", "/v2/up/a/blobs/uploads/").is(405);
    r.manifest("own", "v1", OCI, &bytes).is(201);
}
