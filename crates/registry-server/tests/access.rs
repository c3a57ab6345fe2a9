//! Who may do what: passwords, tokens, rules, quotas, tags that never change, TLS.
#![allow(clippy::unwrap_used)]

mod talk;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isles_registry_server::{Action, Collect, Config, Quota, Retention, Rule, TlsConfig};
use talk::{Answer, OCI, Registry, manifest, sha256};

/// As `htpasswd -nbB -C 4` prints it for the password "secret".
const HASH: &str = "$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm";

fn users(dir: &Path, names: &[&str]) -> Option<std::path::PathBuf> {
    let path = dir.join("users");
    let lines: Vec<String> = names.iter().map(|n| format!("{n}:{HASH}\n")).collect();
    std::fs::write(&path, lines.concat()).unwrap();
    Some(path)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn with(r: &Registry, authorization: &str, method: &str, path: &str) -> Answer {
    r.send(method, path, &[("Authorization", authorization)], b"")
}

fn rule(repositories: &str, users: &[&str], allow: &[Action]) -> Rule {
    Rule {
        repositories: repositories.into(),
        users: users.iter().map(|u| (*u).to_owned()).collect(),
        allow: allow.to_vec(),
    }
}

/// The token that the challenge of an answer leads to.
fn token(r: &Registry, challenge: &Answer, authorization: Option<&str>) -> String {
    let header = challenge.header("www-authenticate").strip_prefix("Bearer ").unwrap();
    let field = |name: &str| {
        let rest = header.split_once(&format!("{name}=\""));
        rest.map(|(_, rest)| rest.split('"').next().unwrap().to_owned())
    };
    let realm = field("realm").unwrap();
    assert_eq!(realm, format!("http://{}/v2/token", r.address));
    let scope = field("scope").map(|s| format!("&scope={s}")).unwrap_or_default();
    let path = format!("/v2/token?service={}{scope}", field("service").unwrap());
    let headers: Vec<(&str, &str)> = authorization.iter().map(|a| ("Authorization", *a)).collect();
    let answer = r.send("GET", &path, &headers, b"").is(200).json();
    assert_eq!(answer["token"], answer["access_token"]);
    format!("Bearer {}", answer["token"].as_str().unwrap())
}

#[test]
fn a_login_as_docker_does_it() {
    let r = Registry::with(|dir| Config { htpasswd: users(dir, &["me"]), ..Config::default() });
    let me = basic("me", "secret");
    let asked = r.ask("GET", "/v2/").is(401);
    assert_eq!(asked.code(), "UNAUTHORIZED");
    let bearer = token(&r, &asked, Some(&me));
    with(&r, &bearer, "GET", "/v2/").is(200);
    // Basic alone is as good.
    with(&r, &me, "GET", "/v2/").is(200);
    // A token is for what was asked, and no more.
    let asked = r.ask("POST", "/v2/a/blobs/uploads/").is(401);
    let push = token(&r, &asked, Some(&me));
    with(&r, &push, "POST", "/v2/a/blobs/uploads/").is(202);
    with(&r, &push, "POST", "/v2/b/blobs/uploads/").is(401);
    with(&r, &push, "DELETE", &format!("/v2/a/blobs/{}", sha256(b"x"))).is(401);
    with(&r, &bearer, "POST", "/v2/a/blobs/uploads/").is(401);
    // Of nobody, there is a token that is good for nothing.
    let nobody = token(&r, &asked, None);
    with(&r, &nobody, "POST", "/v2/a/blobs/uploads/").is(401);
    with(&r, "Bearer x.y.z", "GET", "/v2/").is(401);
    with(&r, "Digest x", "GET", "/v2/").is(401);
    with(&r, "nothing", "GET", "/v2/").is(401);
    r.ask("POST", "/v2/token").is(405);
    // Health and metrics are nobody's secret; pages are.
    r.ask("GET", "/healthz").is(200);
    assert!(r.ask("GET", "/").is(401).header("www-authenticate").starts_with("Basic "));
    with(&r, &me, "GET", "/").is(200);
    r.ask("GET", "/v2/_catalog").is(401);
}

#[test]
fn a_wrong_password_is_refused_and_noted() {
    let r = Registry::with(|dir| Config { htpasswd: users(dir, &["me"]), ..Config::default() });
    with(&r, &basic("me", "wrong"), "GET", "/v2/").is(401);
    let log = std::fs::read_to_string(r.dir.path().join("log")).unwrap();
    assert!(log.contains("\"note\":\"login failed\"") && !log.contains("wrong"), "{log}");
    let metrics = String::from_utf8(r.ask("GET", "/metrics").body).unwrap();
    assert!(metrics.contains("isles_registry_failed_logins_total 1"));
}

#[test]
fn rules_for_repositories() {
    use Action::{Delete, Pull, Push};
    let r = Registry::with(|dir| Config {
        htpasswd: users(dir, &["ann", "bob"]),
        groups: BTreeMap::from([("staff".into(), vec!["ann".into()])]),
        access: vec![
            rule("course/**", &["anonymous"], &[Pull]),
            rule("**", &["@staff"], &[Pull, Push, Delete]),
            rule("home/{user}/**", &["*"], &[Pull, Push]),
        ],
        ..Config::default()
    });
    let (ann, bob) = (basic("ann", "secret"), basic("bob", "secret"));
    let push = |who: &str, repository: &str| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(b"data"));
        r.send("POST", &path, &[("Authorization", who)], b"data")
    };
    push(&ann, "course/lab").is(201);
    push(&ann, "exam").is(201);
    assert_eq!(push(&bob, "course/lab").is(403).code(), "DENIED");
    push(&bob, "home/bob/x").is(201);
    push(&bob, "home/ann/x").is(403);
    let blob = |repository: &str| format!("/v2/{repository}/blobs/{}", sha256(b"data"));
    r.ask("GET", &blob("course/lab")).is(200);
    r.ask("GET", &blob("exam")).is(401);
    with(&r, &bob, "GET", &blob("exam")).is(403);
    with(&r, &bob, "GET", &blob("home/bob/x")).is(200);
    with(&r, &bob, "DELETE", &blob("home/bob/x")).is(403);
    // What one may not pull, one does not get by mounting.
    let mount = |from: &str| {
        let path = format!("/v2/home/bob/y/blobs/uploads/?mount={}{from}", sha256(b"data"));
        with(&r, &bob, "POST", &path).status
    };
    r.blob_as(&ann, "exam", b"secret exam");
    let secret = format!("/v2/home/bob/y/blobs/uploads/?mount={}", sha256(b"secret exam"));
    with(&r, &bob, "POST", &secret).is(202);
    with(&r, &bob, "POST", &format!("{secret}&from=exam")).is(202);
    assert_eq!(mount("&from=course/lab"), 201);
    // The catalogue lists what one may pull.
    let catalog = |who: Option<&str>| {
        let headers: Vec<(&str, &str)> = who.iter().map(|w| ("Authorization", *w)).collect();
        r.send("GET", "/v2/_catalog", &headers, b"").is(200).json()["repositories"].clone()
    };
    assert_eq!(catalog(None), serde_json::json!(["course/lab"]));
    assert_eq!(catalog(Some(&bob)), serde_json::json!(["course/lab", "home/bob/x", "home/bob/y"]));
    // A token has what the rules allow of what was asked.
    let asked = r.ask("POST", "/v2/exam/blobs/uploads/").is(401);
    let of_bob = token(&r, &asked, Some(&bob));
    with(&r, &of_bob, "POST", "/v2/exam/blobs/uploads/").is(403);
}

#[test]
fn everybody_may_pull() {
    let r = Registry::with(|dir| Config {
        htpasswd: users(dir, &["me"]),
        anonymous_pull: true,
        ..Config::default()
    });
    let digest = r.blob_as(&basic("me", "secret"), "a", b"data");
    // Whoever asks here tries a login; a token of nobody's is as good.
    let asked = r.ask("GET", "/v2/").is(401);
    let nobody = token(&r, &asked, None);
    with(&r, &nobody, "GET", "/v2/").is(200);
    r.ask("GET", &format!("/v2/a/blobs/{digest}")).is(200);
    r.ask("HEAD", &format!("/v2/a/blobs/{digest}")).is(200);
    r.ask("POST", "/v2/a/blobs/uploads/").is(401);
    assert_eq!(r.ask("GET", "/v2/_catalog").is(200).json()["repositories"], serde_json::json!(["a"]));
}

#[test]
fn tags_that_never_change() {
    let rules = vec![Retention { tags: Some("v*".into()), immutable: true, ..Retention::default() }];
    let r = Registry::with(|_| Config { retention: rules, ..Config::default() });
    let config = sha256(b"{}");
    let (one, two) = (manifest(&config, &[], ""), manifest(&config, &[], r#","annotations":{"n":"2"}"#));
    r.manifest("a", "v1", OCI, &one).is(201);
    r.manifest("a", "v1", OCI, &one).is(201);
    assert_eq!(r.manifest("a", "v1", OCI, &two).is(409).code(), "DENIED");
    r.manifest("a", "latest", OCI, &one).is(201);
    r.manifest("a", "latest", OCI, &two).is(201);
    r.ask("DELETE", "/v2/a/manifests/v1").is(405);
    r.ask("DELETE", &format!("/v2/a/manifests/{}", sha256(&one))).is(405);
    r.ask("DELETE", &format!("/v2/a/manifests/{}", sha256(&two))).is(202);
    assert_eq!(r.ask("GET", "/v2/a/manifests/v1").is(200).body, one);
}

#[test]
fn quotas() {
    let quota = Quota { repository: Some(10), total: Some(15), user: None };
    let r = Registry::with(|_| Config { quota, ..Config::default() });
    let push = |repository: &str, bytes: &[u8]| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(bytes));
        r.send("POST", &path, &[], bytes)
    };
    // What is larger than all that may be is not taken to its end, and nothing of it stays.
    let begun = r.ask("POST", "/v2/d/blobs/uploads/").is(202);
    r.send("PATCH", begun.header("location"), &[], &[b'x'; 11]).is(403);
    r.ask("GET", begun.header("location")).is(404);
    push("a", b"12345678").is(201);
    assert_eq!(push("a", b"abc").is(403).code(), "DENIED");
    push("a", b"ab").is(201);
    push("b", b"abcdefgh").is(403);
    push("b", b"vwxyz").is(201);
    assert_eq!(push("c", b"!").is(403).code(), "DENIED");
    assert_eq!(push("d", &[b'x'; 100]).is(403).code(), "DENIED");
    // What is here takes no more when it is sent again, and its size in each repository that mounts it.
    push("a", b"12345678").is(201);
    let mount = |to: &str, bytes: &[u8]| {
        r.ask("POST", &format!("/v2/{to}/blobs/uploads/?mount={}&from=a", sha256(bytes)))
    };
    mount("b", b"ab").is(201);
    assert_eq!(mount("b", b"12345678").is(403).code(), "DENIED");
    mount("c", b"12345678").is(201);
    assert_eq!(r.manifest("c", "1", OCI, &manifest(&sha256(b"ab"), &[], "")).is(403).code(), "DENIED");
}

/// Uploads that nobody finishes do not fill the disk.
#[test]
fn unfinished_uploads_keep_within_quotas() {
    for (quota, spread) in [
        (Quota { repository: Some(10), ..Quota::default() }, false),
        (Quota { total: Some(10), ..Quota::default() }, true),
    ] {
        let r = Registry::with(|_| Config { quota, ..Config::default() });
        let begin = |repository: &str| {
            let begun = r.ask("POST", &format!("/v2/{repository}/blobs/uploads/")).is(202);
            begun.header("location").to_owned()
        };
        let (left, other) = (begin("a"), begin(if spread { "b" } else { "a" }));
        let id = left.rsplit('/').next().unwrap();
        // As if so much had come, in parts that were taken each.
        let file = r.store().root().join("registry/a/uploads").join(id);
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.set_len(65 << 20).unwrap();
        let refused = r.send("PATCH", &other, &[], b"abc").is(403);
        assert_eq!(refused.code(), "DENIED");
        assert!(String::from_utf8_lossy(&refused.body).contains("unfinished"), "{refused:?}");
        r.ask("DELETE", &left).is(204);
        r.send("PATCH", &other, &[], b"abc").is(202);
        r.send("PUT", &format!("{other}?digest={}", sha256(b"abc")), &[], b"").is(201);
    }
}

/// Uploads that have all come are closed at the same time, on two servers: as many are taken as there is room for.
#[test]
fn pushes_at_the_same_time_keep_within_quotas() {
    const PUSHES: usize = 24;
    for (quota, spread) in [
        (Quota { repository: Some(10 << 10), ..Quota::default() }, false),
        (Quota { user: Some(10 << 10), ..Quota::default() }, true),
        (Quota { total: Some(10 << 10), ..Quota::default() }, true),
    ] {
        let htpasswd = |dir: &Path| users(dir, &["ann"]);
        let r = Registry::with(|dir| Config { quota, htpasswd: htpasswd(dir), ..Config::default() });
        let twin = r.twin_with(Config { quota, htpasswd: htpasswd(r.dir.path()), ..Config::default() });
        let login = basic("ann", "secret");
        let headers = [("Authorization", login.as_str())];
        let blobs: Vec<Vec<u8>> = (0..PUSHES).map(|n| vec![n as u8; 1 << 10]).collect();
        let mut uploads = Vec::new();
        for (n, blob) in blobs.iter().enumerate() {
            let repository = if spread { format!("r{n}") } else { "r".into() };
            let begun = r.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &headers, b"").is(202);
            r.send("PATCH", begun.header("location"), &headers, blob).is(202);
            uploads.push(format!("{}?digest={}", begun.header("location"), sha256(blob)));
        }
        let all_ready = std::sync::Barrier::new(PUSHES);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let (all_ready, headers) = (&all_ready, &headers);
            let close = |(n, upload): (usize, &String)| {
                let (upload, address) = (upload.clone(), if n % 2 == 0 { &r.address } else { &twin });
                scope.spawn(move || {
                    all_ready.wait();
                    talk::send(address, "PUT", &upload, headers, b"").status
                })
            };
            let closed: Vec<_> = uploads.iter().enumerate().map(close).collect();
            closed.into_iter().map(|c| c.join().unwrap()).collect()
        });
        let taken = statuses.iter().filter(|s| **s == 201).count();
        assert_eq!(taken, 10, "{quota:?} {statuses:?}");
        assert!(statuses.iter().all(|s| matches!(s, 201 | 403)), "{statuses:?}");
        assert_eq!(r.store().hosted_bytes(None).unwrap(), 10 << 10);
        // What was refused is not kept either.
        let left: u64 = r
            .store()
            .hosted_names()
            .unwrap()
            .iter()
            .map(|n| r.store().hosted(n).unwrap().usage().unwrap().uploads)
            .sum();
        assert_eq!(left, 0);
    }
}

#[test]
fn a_user_may_bring_so_much() {
    let quota = Quota { user: Some(10), ..Quota::default() };
    let r =
        Registry::with(|dir| Config { quota, htpasswd: users(dir, &["ann", "bob"]), ..Config::default() });
    let push = |user: &str, repository: &str, bytes: &[u8]| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(bytes));
        r.send("POST", &path, &[("Authorization", &basic(user, "secret"))], bytes)
    };
    push("ann", "a", b"12345678").is(201);
    // The same in another repository is no second time.
    push("ann", "b", b"12345678").is(201);
    let refused = push("ann", "c", b"abc").is(403);
    assert!(String::from_utf8_lossy(&refused.body).contains("'ann'"), "{refused:?}");
    push("bob", "c", b"abc").is(201);
    push("ann", "c", b"ab").is(201);
    push("ann", "c", b"!").is(403);
}

#[test]
fn what_nothing_needs_goes_while_the_server_serves() {
    let zero = Some(std::time::Duration::ZERO);
    let every = Some(std::time::Duration::from_millis(50));
    let collect = Collect { every, grace: zero };
    let rule =
        Retention { tags: Some("ci-*".into()), keep_last: Some(1), untagged: zero, ..Retention::default() };
    let r = Registry::with(|_| Config { collect, retention: vec![rule], ..Config::default() });
    // Under a lease of its own grace nothing may go in the midst of a push: the image is there in the end.
    let kept = r.store().hosted("a").unwrap();
    for n in 0..3 {
        let layer = format!("layer {n}");
        // A blob without a manifest may be gone before its manifest comes; a client then pushes it again.
        while r.ask("GET", &format!("/v2/a/manifests/ci-{n}")).status != 200 {
            let (config, blob) = (r.blob("a", b"{}"), r.blob("a", layer.as_bytes()));
            r.manifest("a", &format!("ci-{n}"), OCI, &manifest(&config, &[&blob], "")).is(201);
        }
    }
    // The last tag stays; the others go, and their layers with them.
    while kept.tags().unwrap().len() > 1 || kept.blobs().unwrap().contains(&sha256(b"layer 0")) {
        std::thread::yield_now();
    }
    assert_eq!(kept.tags().unwrap(), ["ci-2"]);
    r.ask("GET", "/v2/a/manifests/ci-2").is(200);
    r.ask("GET", &format!("/v2/a/blobs/{}", sha256(b"layer 0"))).is(404);
}

#[test]
fn what_is_asked_for_stays() {
    let days = |n: u64| std::time::Duration::from_secs(n * 86400);
    let rules = [Retention { unpulled: Some(days(30)), ..Retention::default() }];
    let r = Registry::open();
    let long_ago = |path: &str| {
        let file =
            std::fs::File::options().write(true).open(r.dir.path().join("store/registry/a").join(path));
        file.unwrap().set_modified(std::time::SystemTime::now() - days(60)).unwrap();
    };
    let mut digests = BTreeMap::new();
    for tag in ["asked", "known", "never", "pulled"] {
        digests.insert(tag, r.image("a", tag, tag.as_bytes()));
        long_ago(&format!("tags/{tag}"));
    }
    r.ask("GET", "/v2/a/manifests/pulled").is(200);
    r.ask("HEAD", "/v2/a/manifests/asked").is(200);
    let known = format!("\"{}\"", digests["known"]);
    r.send("GET", "/v2/a/manifests/known", &[("If-None-Match", &known)], b"").is(304);
    let gone = || isles_registry_server::collect(&r.store(), &rules, false, None, false).unwrap().tags;
    assert_eq!(gone(), ["a:never"]);
    long_ago(&format!("pulled/{}", digests["pulled"].to_string().replace(':', "-")));
    assert_eq!(gone(), ["a:pulled"]);
    r.ask("GET", "/v2/a/manifests/asked").is(200);
}

#[test]
fn tls_with_a_certificate_that_changes() {
    let pair = |dir: &Path, name: &str| {
        let store = isles_store::Store::open(dir.join(name), isles_store::Ownership::Single).unwrap();
        let (told, ready) = std::sync::mpsc::channel();
        let config = Config {
            listen: vec!["127.0.0.1:0".into()],
            tls: Some(TlsConfig::SelfSigned { names: vec![format!("{name}.example")] }),
            ..Config::default()
        };
        let server =
            isles_registry_server::Server::new(store, config, &isles_registry_server::LogTo::Nowhere);
        std::thread::spawn(move || {
            let told = std::sync::Mutex::new(told);
            server.unwrap().serve(&|url, print| {
                told.lock().unwrap().send((url.to_owned(), print.unwrap().fingerprint.to_owned())).unwrap();
            })
        });
        let (url, print) = ready.recv().unwrap();
        assert_eq!(print.len(), 95);
        let file = |kind: &str| {
            let all = std::fs::read_dir(dir.join(name).join("registry-tls")).unwrap();
            all.map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == kind)).unwrap()
        };
        (url.strip_prefix("https://").unwrap().to_owned(), file("crt"), file("key"))
    };
    let dir = tempfile::tempdir().unwrap();
    let (address, cert, key) = pair(dir.path(), "one");
    assert!(secure(&address, "one.example", &cert).unwrap().contains(" 200 "));
    assert!(secure(&address, "localhost", &cert).unwrap().contains(" 200 "));
    assert!(secure(&address, "two.example", &cert).is_err());
    let (_, other, other_key) = pair(dir.path(), "two");
    assert!(secure(&address, "one.example", &other).is_err());
    std::fs::copy(other_key, &key).unwrap();
    std::fs::copy(&other, &cert).unwrap();
    // The files are looked at now and then.
    while secure(&address, "two.example", &other).is_err() {
        std::thread::yield_now();
    }
}

/// The first line of the answer to a request over TLS, with this certificate alone trusted.
fn secure(address: &str, name: &str, cert: &Path) -> Result<String, std::io::Error> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(client, TcpStream::connect(address)?);
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
