//! A registry that serves another one's images and keeps them.
#![allow(clippy::unwrap_used)]

mod talk;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isles_registry_server::{Config, MirrorConfig};
use isles_spec::Digest;
use talk::{INDEX, OCI, Registry, manifest, receive, sha256};

/// As `htpasswd -nbB -C 4` prints it for the password "secret".
const HASH: &str = "$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm";

/// An upstream that can stop in the midst of a blob, and that can be rate-limited.
struct Slow {
    address: String,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, (String, Vec<u8>)>,
    /// Requests so far, with their ranges.
    asked: Vec<String>,
    /// Bytes of blobs that go out before it waits.
    most: Option<usize>,
    limited: bool,
    /// Nothing is answered at all.
    silent: bool,
}

impl Slow {
    fn start() -> Slow {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || Slow::answer(stream, &shared));
            }
        });
        Slow { address, state }
    }

    /// An image of one layer called `a:v1`.
    fn image(&self, layer: &[u8]) -> Digest {
        let bytes = manifest(&sha256(b"{}"), &[&sha256(layer)], "");
        let digest = sha256(&bytes);
        self.change(|s| {
            for name in ["v1", &digest.to_string()] {
                s.answers.insert(format!("/v2/a/manifests/{name}"), (OCI.into(), bytes.clone()));
            }
            let kind = "application/octet-stream".to_owned();
            s.answers.insert(format!("/v2/a/blobs/{}", sha256(layer)), (kind, layer.to_vec()));
        });
        digest
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.0.lock().unwrap());
        self.state.1.notify_all();
    }

    fn asked(&self, word: &str) -> Vec<String> {
        let state = self.state.0.lock().unwrap();
        state.asked.iter().filter(|line| line.contains(word)).cloned().collect()
    }

    fn answer(mut stream: TcpStream, shared: &(Mutex<State>, Condvar)) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let Some(Ok(first)) = lines.next() else { return };
        let mut range = None;
        for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                range = value.trim_end_matches('-').parse::<usize>().ok();
            }
        }
        let (method, path) = first.split_once(' ').unwrap();
        let path = path.split(' ').next().unwrap().to_owned();
        let state = {
            let mut state = shared.0.lock().unwrap();
            state.asked.push(format!("{method} {path} {range:?}"));
            shared.1.wait_while(state, |s| s.silent).unwrap()
        };
        let known = state.answers.get(&path).cloned();
        let limited = state.limited;
        drop(state);
        let (status, kind, body) = match known {
            _ if path == "/v2/" => (200, "application/json".into(), b"{}".to_vec()),
            _ if limited => (429, "application/json".into(), b"{}".to_vec()),
            Some((kind, body)) => (if range.is_some() { 206 } else { 200 }, kind, body),
            None => (404, "application/json".into(), b"{}".to_vec()),
        };
        let from = range.unwrap_or(0).min(body.len());
        let mut head = format!("HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nConnection: close\r\n");
        if limited {
            head += "Retry-After: 3600\r\n";
        }
        if status == 206 {
            head += &format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len() - from);
        let _ = stream.write_all(head.as_bytes());
        if method != "HEAD" {
            let mut at = from;
            while at < body.len() {
                let state = shared.0.lock().unwrap();
                let blob = path.contains("/blobs/");
                let may = |s: &State| s.most.filter(|_| blob).unwrap_or(usize::MAX).min(body.len());
                let state = shared.1.wait_while(state, |s| may(s) <= at).unwrap();
                let end = may(&state);
                drop(state);
                if stream.write_all(&body[at..end]).is_err() {
                    return;
                }
                at = end;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 1]);
    }
}

fn mirror_with(upstream: &str, more: MirrorConfig) -> Registry {
    let mirror = MirrorConfig { prefix: "up".into(), upstream: upstream.into(), ..more };
    Registry::with(|_| Config { mirror: vec![mirror], ..Config::default() })
}

/// Asks for a blob and reads its first bytes.
fn begin(address: &str, path: &str, count: usize) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut byte = [0];
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    let mut first = vec![0; count];
    stream.read_exact(&mut first).unwrap();
    (stream, first)
}

#[test]
fn a_blob_is_served_while_it_comes() {
    let upstream = Slow::start();
    let layer: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    upstream.image(&layer);
    upstream.change(|s| s.most = Some(1_000_000));
    let r = mirror_with(&upstream.address, MirrorConfig::default());
    r.ask("GET", "/v2/up/a/manifests/v1").is(200);
    let path = format!("/v2/up/a/blobs/{}", sha256(&layer));
    // The upstream holds the rest back, and two clients have what came.
    let (mut one, first) = begin(&r.address, &path, 1_000_000);
    assert_eq!(first, layer[..1_000_000]);
    let (mut two, first) = begin(&r.address, &path, 500_000);
    assert_eq!(first, layer[..500_000]);
    // Asked about, it is there already.
    assert_eq!(r.ask("HEAD", &path).is(200).header("content-length"), "3000000");
    upstream.change(|s| s.most = None);
    for (stream, from) in [(&mut one, 1_000_000), (&mut two, 500_000)] {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest == layer[from..]);
    }
    assert_eq!(upstream.asked("GET /v2/a/blobs/").len(), 1);
    let part = r.send("GET", &path, &[("Range", "bytes=5-9")], b"").is(206);
    assert_eq!(part.body, layer[5..10]);
}

#[test]
fn a_wrong_blob_never_arrives_whole() {
    let upstream = Slow::start();
    let layer = vec![1u8; 100_000];
    upstream.image(&layer);
    let path = format!("/v2/a/blobs/{}", sha256(&layer));
    upstream.change(|s| s.answers.get_mut(&path).unwrap().1[50] = 2);
    let r = mirror_with(&upstream.address, MirrorConfig::default());
    r.ask("GET", "/v2/up/a/manifests/v1").is(200);
    let mut stream = TcpStream::connect(&r.address).unwrap();
    let blob = format!("/v2/up/a/blobs/{}", sha256(&layer));
    write!(stream, "GET {blob} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut came = Vec::new();
    let _ = stream.read_to_end(&mut came);
    let body = came.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| came.len() - at - 4);
    assert!(body < layer.len(), "{body}");
}

#[test]
fn what_a_killed_server_had_is_not_fetched_again() {
    let upstream = Slow::start();
    let layer = vec![3u8; 100_000];
    upstream.image(&layer);
    let r = mirror_with(&upstream.address, MirrorConfig::default());
    r.ask("GET", "/v2/up/a/manifests/v1").is(200);
    {
        let hosted = r.store().hosted("up/a").unwrap();
        hosted.fetching(&sha256(&layer)).unwrap().write_all(&layer[..60_000]).unwrap();
    }
    let path = format!("/v2/up/a/blobs/{}", sha256(&layer));
    assert!(r.ask("GET", &path).is(200).body == layer);
    assert_eq!(upstream.asked("GET /v2/a/blobs/").len(), 1);
    assert!(upstream.asked("GET /v2/a/blobs/")[0].ends_with("Some(60000)"));
}

#[test]
fn two_processes_fetch_a_blob_once() {
    let upstream = Slow::start();
    let layer = vec![4u8; 200_000];
    upstream.image(&layer);
    upstream.change(|s| s.most = Some(1000));
    let r = mirror_with(&upstream.address, MirrorConfig::default());
    r.ask("GET", "/v2/up/a/manifests/v1").is(200);
    let path = format!("/v2/up/a/blobs/{}", sha256(&layer));
    let (mut first, _) = begin(&r.address, &path, 1000);
    // Another server over the same store, which knows nothing of the first one's memory.
    let mirror =
        MirrorConfig { prefix: "up".into(), upstream: upstream.address.clone(), ..Default::default() };
    let other = r.twin_with(Config { mirror: vec![mirror], ..Config::default() });
    let (told, begun) = std::sync::mpsc::channel();
    let asking = std::thread::spawn({
        let path = path.clone();
        move || {
            let mut stream = TcpStream::connect(&other).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            told.send(()).unwrap();
            receive(stream, false)
        }
    });
    begun.recv().unwrap();
    upstream.change(|s| s.most = None);
    assert!(asking.join().unwrap().is(200).body == layer);
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    assert_eq!(upstream.asked("GET /v2/a/blobs/").len(), 1);
}

#[test]
fn an_older_answer_is_served_when_the_upstream_is_limited_silent_or_gone() {
    let upstream = Slow::start();
    let digest = upstream.image(b"layer");
    let fresh = Some(std::time::Duration::ZERO);
    let ask = |change: fn(&mut State)| {
        upstream.change(|s| (s.limited, s.silent) = (false, false));
        let r = mirror_with(&upstream.address, MirrorConfig { fresh, ..MirrorConfig::default() });
        r.ask("GET", "/v2/up/a/manifests/v1").is(200);
        upstream.change(change);
        let got = r.ask("GET", "/v2/up/a/manifests/v1").is(200);
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        r
    };
    let r = ask(|s| s.limited = true);
    // What is not here is not to be had now, and the upstream is left alone.
    for _ in 0..3 {
        let refused = r.ask("GET", "/v2/up/a/manifests/v2").is(429);
        assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("TOOMANYREQUESTS", "3600"));
    }
    assert!(upstream.asked("/manifests/v2").len() <= 2, "{:?}", upstream.asked("/manifests/v2"));
    ask(|s| s.silent = true);
    upstream.change(|s| s.silent = false);
    let gone = mirror_with("127.0.0.1:1", MirrorConfig::default());
    gone.ask("GET", "/v2/up/a/manifests/v1").is(502);
}

#[test]
fn a_login_of_the_mirror_is_for_its_users_only() {
    let htpasswd = |dir: &std::path::Path| {
        let path = dir.join("users");
        let lines: Vec<String> = ["ann", "bob", "up"].iter().map(|n| format!("{n}:{HASH}\n")).collect();
        std::fs::write(&path, lines.concat()).unwrap();
        Some(path)
    };
    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:secret")));
    let upstream = Registry::with(|dir| Config { htpasswd: htpasswd(dir), ..Config::default() });
    let login = basic("up");
    let layer = upstream.blob_as(&login, "a", b"paid");
    let config = upstream.blob_as(&login, "a", b"{}");
    let bytes = manifest(&config, &[&layer], "");
    let headers = [("Authorization", &*login), ("Content-Type", OCI)];
    upstream.send("PUT", "/v2/a/manifests/v1", &headers, &bytes).is(201);
    let r = Registry::with(|dir| {
        let password = dir.join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let mirror = MirrorConfig {
            prefix: "paid".into(),
            upstream: upstream.address.clone(),
            username: Some("up".into()),
            password_file: Some(password),
            users: vec!["ann".into()],
            ..MirrorConfig::default()
        };
        Config { mirror: vec![mirror], htpasswd: htpasswd(dir), anonymous_pull: true, ..Config::default() }
    });
    let blob = format!("/v2/paid/a/blobs/{layer}");
    let get = |user: &str, path: &str| r.send("GET", path, &[("Authorization", &basic(user))], b"");
    get("bob", "/v2/paid/a/manifests/v1").is(403);
    r.ask("GET", "/v2/paid/a/manifests/v1").is(401);
    get("ann", "/v2/paid/a/manifests/v1").is(200);
    assert_eq!(get("ann", &blob).is(200).body, b"paid");
    // Now that it is here it is still theirs alone: straight, by its list, and by a mount.
    get("bob", &blob).is(403);
    r.ask("GET", &blob).is(401);
    assert_eq!(get("bob", "/v2/_catalog").is(200).json()["repositories"], serde_json::json!([]));
    let mount = format!("/v2/own/blobs/uploads/?mount={layer}&from=paid/a");
    let bob = basic("bob");
    r.send("POST", &mount, &[("Authorization", &bob)], b"").is(202);
    r.send("POST", &format!("/v2/own/blobs/uploads/?mount={layer}"), &[("Authorization", &bob)], b"").is(202);
}

#[test]
fn what_only_the_store_has_is_not_given() {
    let upstream = Slow::start();
    upstream.image(b"somebody's own");
    let path = format!("/v2/a/blobs/{}", sha256(b"somebody's own"));
    upstream.change(|s| drop(s.answers.remove(&path)));
    let r = mirror_with(&upstream.address, MirrorConfig::default());
    r.blob("private", b"somebody's own");
    r.ask("GET", "/v2/up/a/manifests/v1").is(200);
    r.ask("GET", &format!("/v2/up/a/blobs/{}", sha256(b"somebody's own"))).is(404);
}

#[test]
fn the_registry_that_containerd_means() {
    let upstream = Registry::open();
    upstream.image("a/b", "v1", b"layer");
    let r = mirror_with(&upstream.address, MirrorConfig::default());
    let ns = |name: &str| format!("?ns={name}");
    r.ask("GET", &format!("/v2/a/b/manifests/v1{}", ns(&upstream.address))).is(200);
    let blob = format!("/v2/a/b/blobs/{}{}", sha256(b"layer"), ns(&upstream.address));
    assert_eq!(r.ask("GET", &blob).is(200).body, b"layer");
    r.ask("GET", &format!("/v2/a/b/manifests/v1{}", ns("ghcr.io"))).is(404);
    r.ask("GET", "/v2/a/b/manifests/v1").is(404);
}

#[test]
fn nothing_is_fetched_for_other_platforms() {
    let upstream = Registry::open();
    let mut entries = Vec::new();
    let mut digests = Vec::new();
    for arch in ["amd64", "arm64"] {
        let config = upstream.blob("a", format!("{{\"architecture\":\"{arch}\"}}").as_bytes());
        let bytes = manifest(&config, &[], "");
        let digest = sha256(&bytes);
        upstream.manifest("a", &digest.to_string(), OCI, &bytes).is(201);
        entries.push(format!(
            r#"{{"mediaType":"{OCI}","digest":"{digest}","size":{},"platform":{{"os":"linux","architecture":"{arch}"}}}}"#,
            bytes.len()
        ));
        digests.push(digest);
    }
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, entries.join(","));
    upstream.manifest("a", "v1", INDEX, index.as_bytes()).is(201);
    let platforms = vec!["linux/amd64".parse().unwrap()];
    let r = mirror_with(&upstream.address, MirrorConfig { platforms, ..MirrorConfig::default() });
    r.ask("GET", "/v2/up/a/manifests/v1").is(200);
    r.ask("GET", &format!("/v2/up/a/manifests/{}", digests[0])).is(200);
    r.ask("GET", &format!("/v2/up/a/manifests/{}", digests[1])).is(404);
}

fn mirror_of(upstream: &Registry, fresh: u64) -> Registry {
    let mirror = MirrorConfig {
        prefix: "up".into(),
        upstream: upstream.address.clone(),
        fresh: Some(std::time::Duration::from_secs(fresh)),
        ..MirrorConfig::default()
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
