//! The conversation itself against a registry that misbehaves: names, manifests, tokens, redirects, waits.

#![allow(clippy::unwrap_used)]

mod fake;
mod sample;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fake::{End, Fake, Reply, Request};
use isles_registry::retry::Policy;
use isles_registry::{Client, ClientOptions, Credentials, Error, Login};
use isles_spec::image::media_type;
use isles_spec::{Hint, Platform, Reference};
use sample::{Sample, index, sha256};

fn options() -> ClientOptions {
    ClientOptions {
        credentials: Credentials::none(),
        retry: Policy { retries: 3, backoff: Duration::from_millis(2), patience: Duration::from_secs(5) },
        stall: Duration::from_millis(300),
        ..ClientOptions::default()
    }
}

fn client() -> Client {
    Client::new(options())
}

fn with_login(user: &str, password: &str) -> Client {
    let login = Login::Password { user: user.into(), password: password.into() };
    Client::new(ClientOptions { credentials: Credentials::fixed(login), ..options() })
}

fn name(fake: &Fake) -> Reference {
    Reference::parse(&fake.name("a/b:1")).unwrap()
}

fn resolve(fake: &Fake) -> Result<isles_registry::Resolved, Error> {
    client().resolve(&name(fake), &"linux/amd64".parse().unwrap())
}

/// Requests that a person would count: without those that find out whether the server speaks TLS.
fn asked(fake: &Fake) -> Vec<Request> {
    fake.requests()
}

#[test]
fn a_manifest_keeps_its_bytes() {
    let sample = Sample::small();
    let (bytes, digest) = (sample.manifest.clone(), sample.digest.clone());
    let fake = Fake::start(sample.serving(|_| None));
    let found = client().manifest(&name(&fake)).unwrap();
    assert_eq!(found.bytes, bytes);
    assert_eq!(found.digest.to_string(), digest);
    assert_eq!(found.media_type, media_type::OCI_MANIFEST);
    let head = client().head_manifest(&name(&fake)).unwrap();
    assert_eq!((head.digest.to_string(), head.size), (digest, bytes.len() as u64));
    let accept = asked(&fake)[0].header("accept").unwrap().to_owned();
    for kind in [
        media_type::OCI_INDEX,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_LIST,
        media_type::DOCKER_MANIFEST,
    ] {
        assert!(accept.contains(kind), "{accept}");
    }
    assert!(asked(&fake).iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn a_head_without_a_digest_is_asked_again() {
    let sample = Sample::small();
    let digest = sample.digest.clone();
    let fake = Fake::start(sample.serving(|r| (r.method == "HEAD").then(|| Reply::new(200, ""))));
    assert_eq!(client().head_manifest(&name(&fake)).unwrap().digest.to_string(), digest);
}

#[test]
fn documents_that_are_no_images() {
    let deep = format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let deep_layers =
        format!(r#"{{"schemaVersion":2,"config":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let oci = media_type::OCI_MANIFEST;
    for (kind, body, message) in [
        (oci, "nonsense".into(), "is not an image: its manifest is not valid"),
        (oci, r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "is kept in the old schema 1 format"),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "{}".into(),
            "is kept in the old schema 1 format",
        ),
        (oci, r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#.into(), "could also be read as an index"),
        (
            oci,
            format!(r#"{{"schemaVersion":2,"mediaType":"{}","layers":[]}}"#, media_type::DOCKER_MANIFEST),
            "calls itself",
        ),
        (oci, r#"{"schemaVersion":2,"manifests":[]}"#.into(), "its content is not of the type"),
        (
            "text/plain",
            r#"{"schemaVersion":2,"mediaType":"application/x"}"#.into(),
            "its media type is application/x",
        ),
        (oci, deep, "is not an image"),
        (oci, deep_layers, "is not an image"),
        (oci, r#"{"schemaVersion":2,"layers":[]}"#.into(), "is not an image"),
    ] {
        let body: String = body;
        let fake = Fake::start(move |_| Reply::new(200, body.clone()).with("Content-Type", kind));
        let e = resolve(&fake).unwrap_err();
        assert!(e.to_string().contains(message), "{e}");
        assert!(!e.to_string().contains('\n') && e.to_string().len() < 500, "{e}");
    }
}

#[test]
fn the_size_of_a_manifest_is_bounded() {
    let mut sample = Sample::small();
    let padded = |n: usize| {
        let text = String::from_utf8(Sample::small().manifest).unwrap();
        text.replacen('{', &format!(r#"{{ "annotations": {{"x":"{}"}},"#, "y".repeat(n)), 1).into_bytes()
    };
    sample.manifest = padded(4 << 20);
    sample.digest = sha256(&sample.manifest);
    let fake = Fake::start(sample.clone().serving(|_| None));
    assert!(resolve(&fake).is_ok(), "registries may hold manifests of 4 MiB");
    sample.manifest = padded(8 << 20);
    sample.digest = sha256(&sample.manifest);
    let fake = Fake::start(sample.serving(|_| None));
    assert!(matches!(resolve(&fake), Err(Error::TooLarge { .. })));
    let fake = Fake::start(|_| Reply { length: None, end: End::Endless, ..Reply::new(200, "") });
    assert!(matches!(resolve(&fake), Err(Error::TooLarge { .. })));
}

#[test]
fn digests_are_checked() {
    let sample = Sample::small();
    let digest = sample.digest.clone();
    let other = sample.manifest.iter().map(|b| if *b == b'2' { b'3' } else { *b }).collect::<Vec<u8>>();
    let changed = other.clone();
    let fake = Fake::start(move |_| Reply::new(200, changed.clone()));
    let pinned = name(&fake).with_digest(digest.parse().unwrap());
    assert!(matches!(client().manifest(&pinned), Err(Error::Mismatch { .. })));
    // A tag's document must be what the registry's own header says.
    let fake = Fake::start(move |_| Reply::new(200, other.clone()).with("Docker-Content-Digest", &digest));
    let e = client().manifest(&name(&fake)).unwrap_err();
    assert!(matches!(e, Error::Mismatch { .. }), "{e}");
    assert!(e.hint().is_some());
}

#[test]
fn an_index_leads_to_the_platform() {
    let arm: Platform = "linux/arm64".parse().unwrap();
    let samples = [Sample::small(), Sample::new(&[], &arm, sample::Packing::Gzip)];
    let entries = |confused: bool| {
        let names = if confused { ["linux/arm64", "linux/amd64"] } else { ["linux/amd64", "linux/arm64"] };
        index(&[
            (media_type::OCI_MANIFEST, &samples[0].digest, samples[0].manifest.len(), Some(names[0])),
            (media_type::OCI_MANIFEST, &samples[1].digest, samples[1].manifest.len(), Some(names[1])),
        ])
    };
    let top = entries(false);
    let pair = samples.clone();
    let fake = Fake::start(move |r| {
        let has =
            |s: &&Sample| std::iter::once(&s.digest).chain(s.blobs.keys()).any(|d| r.target.ends_with(d));
        let known = pair.iter().find(has);
        let top = || Reply::new(200, top.clone()).with("Content-Type", media_type::OCI_INDEX);
        known.map_or_else(top, |s| s.answer(r))
    });
    let found = client().resolve(&name(&fake), &arm).unwrap();
    assert_eq!(found.manifest.digest.to_string(), samples[1].digest);
    assert_eq!(client().image_config(&name(&fake), &arm).unwrap().platform(), arm);
    assert_eq!(found.index.unwrap().digest, found.target);
    let e = client().resolve(&name(&fake), &"linux/s390x".parse().unwrap()).unwrap_err();
    assert!(e.to_string().ends_with("no image for linux/s390x; it has linux/amd64, linux/arm64"), "{e}");
}

#[test]
fn indexes_of_indexes_end() {
    let fake = Fake::start(|r| {
        // Every index holds the next one; their number is in the tag or found by digest.
        let deep = |n: usize| {
            let mut bytes = Sample::small().manifest;
            let mut kind = media_type::OCI_MANIFEST;
            let mut all = vec![bytes.clone()];
            for _ in 0..n {
                bytes = index(&[(kind, &sha256(&bytes), bytes.len(), Some("linux/amd64"))]);
                kind = media_type::OCI_INDEX;
                all.push(bytes.clone());
            }
            all
        };
        let wanted = r.target.rsplit('/').next().unwrap_or_default().to_owned();
        let body = match wanted.strip_prefix("depth-") {
            Some(n) => deep(n.parse().unwrap()).pop().unwrap(),
            None => deep(9).into_iter().find(|b| sha256(b) == wanted).unwrap_or_default(),
        };
        Reply::new(200, body)
    });
    let at = |n: u32| {
        let reference = Reference::parse(&fake.name(&format!("a:depth-{n}"))).unwrap();
        client().resolve(&reference, &"linux/amd64".parse().unwrap())
    };
    assert!(at(2).is_ok());
    assert!(matches!(at(9), Err(Error::NotAnImage { .. })));
}

/// A registry with a token service beside it that knows one user.
fn token_registry(lifetime: u64) -> Fake {
    let sample = Sample::small();
    let issued = Arc::new(AtomicUsize::new(0));
    Fake::start(move |r| {
        if let Some(query) = r.target.strip_prefix("/token?") {
            if r.header("authorization").is_some_and(|a| a != "Basic bWU6c2VjcmV0") {
                return Reply::new(401, "{}");
            }
            assert!(query.contains("service=here") && query.contains("scope=repository:a/b:pull"), "{query}");
            let n = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, format!(r#"{{"token":"t{n}","expires_in":{lifetime}}}"#));
        }
        let newest = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        if r.header("authorization") == Some(&newest) {
            return sample.answer(r);
        }
        let host = r.header("host").unwrap();
        let challenge =
            format!(r#"Bearer realm="http://{host}/token",service="here",scope="repository:a/b:pull""#);
        Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#).with("WWW-Authenticate", challenge)
    })
}

#[test]
fn a_token_is_asked_for_once() {
    let fake = token_registry(300);
    let client = with_login("me", "secret");
    for _ in 0..3 {
        client.manifest(&name(&fake)).unwrap();
    }
    let tokens: Vec<Request> = asked(&fake).into_iter().filter(|r| r.target.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert!(tokens[0].target.contains("account=me"));
    assert_eq!(tokens[0].header("authorization"), Some("Basic bWU6c2VjcmV0"));
    // One refused request to learn the way, then three that know it.
    assert_eq!(asked(&fake).iter().filter(|r| r.target.contains("/manifests/")).count(), 4);
}

#[test]
fn without_a_login_the_token_is_anonymous() {
    let fake = token_registry(300);
    client().manifest(&name(&fake)).unwrap();
    let token = asked(&fake).into_iter().find(|r| r.target.starts_with("/token")).unwrap();
    assert_eq!(token.header("authorization"), None);
}

#[test]
fn a_wrong_password_is_named() {
    let fake = token_registry(300);
    let e = with_login("me", "wrong").manifest(&name(&fake)).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { signed_in: true, .. }), "{e}");
    let registry = fake.address.to_string();
    assert!(e.hint().unwrap().contains(&format!("isles login {registry}")));
    let e = with_login("me", "wrong")
        .check_login(&registry, &Login::Password { user: "me".into(), password: "wrong".into() });
    assert!(matches!(e, Err(Error::Unauthorized { .. })), "{e:?}");
}

#[test]
fn a_refused_token_is_replaced() {
    // The registry forgets the token after the first answer.
    let sample = Sample::small();
    let issued = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    let fake = Fake::start(move |r| {
        if r.target.starts_with("/token") {
            let n = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, format!(r#"{{"access_token":"t{n}","expires_in":3600}}"#));
        }
        let good = format!("Bearer t{}", served.load(Ordering::SeqCst) + 1);
        if r.header("authorization") == Some(&good) {
            served.fetch_add(1, Ordering::SeqCst);
            return sample.answer(r);
        }
        Reply::new(401, "").with("WWW-Authenticate", r#"Bearer realm="/token""#)
    });
    let client = client();
    client.manifest(&name(&fake)).unwrap();
    client.manifest(&name(&fake)).unwrap();
}

#[test]
fn basic_and_identity_logins() {
    let sample = Sample::small();
    let fake = Fake::start(move |r| match r.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => sample.answer(r),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"),
    });
    with_login("me", "secret").manifest(&name(&fake)).unwrap();
    let e = client().manifest(&name(&fake)).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { signed_in: false, .. }), "{e}");
    let e = with_login("me", "wrong").manifest(&name(&fake)).unwrap_err();
    assert!(matches!(e, Error::Unauthorized { signed_in: true, .. }), "{e}");

    let sample = Sample::small();
    let fake = Fake::start(move |r| {
        if r.target == "/token" {
            let body = String::from_utf8(r.body.clone()).unwrap();
            assert_eq!(r.method, "POST");
            assert!(body.contains("grant_type=refresh_token&refresh_token=id%26t"), "{body}");
            return Reply::new(200, r#"{"access_token":"good"}"#);
        }
        match r.header("authorization") {
            Some("Bearer good") => sample.answer(r),
            _ => Reply::new(401, "").with("WWW-Authenticate", r#"Bearer realm="/token""#),
        }
    });
    let credentials = Credentials::fixed(Login::Identity("id&t".into()));
    Client::new(ClientOptions { credentials, ..options() }).manifest(&name(&fake)).unwrap();
}

#[test]
fn a_password_goes_to_no_plain_stranger() {
    for realm in ["http://stranger.invalid/token", "http://10.255.255.1/token", "ftp://127.0.0.1/x"] {
        let challenge = format!(r#"Bearer realm="{realm}""#);
        let fake = Fake::start(move |_| Reply::new(401, "").with("WWW-Authenticate", &challenge));
        let e = with_login("me", "secret").manifest(&name(&fake)).unwrap_err();
        assert!(e.to_string().contains("is not reached over TLS"), "{e}");
    }
}

#[test]
fn a_redirect_carries_no_credentials_elsewhere() {
    let sample = Sample::small();
    let store = Fake::start(sample.clone().serving(|_| None));
    let there = store.address;
    let fake = Fake::start(move |r| match (r.header("authorization"), r.target.as_str()) {
        (Some("Basic bWU6c2VjcmV0"), "/moved") => {
            sample.answer(&Request { target: "/v2/a/b/manifests/1".into(), ..r.clone() })
        }
        (Some("Basic bWU6c2VjcmV0"), "/v2/a/b/manifests/here") => {
            Reply::new(307, "").with("Location", "/moved")
        }
        (Some("Basic bWU6c2VjcmV0"), _) => {
            Reply::new(307, "").with("Location", format!("http://{there}/v2/a/b/manifests/1?sig=x"))
        }
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic"),
    });
    let client = with_login("me", "secret");
    client.manifest(&name(&fake)).unwrap();
    assert_eq!(store.requests().len(), 1);
    assert!(store.requests().iter().all(|r| r.header("authorization").is_none()));
    // Within the registry they stay.
    client.manifest(&Reference::parse(&fake.name("a/b:here")).unwrap()).unwrap();
}

#[test]
fn redirects_end() {
    let fake = Fake::start(|_| Reply::new(302, "").with("Location", "/again"));
    assert!(resolve(&fake).unwrap_err().to_string().contains("redirects"));
    for place in ["", "file:///etc/passwd", "http://a:b@c/"] {
        let fake = Fake::start(move |_| Reply::new(302, "").with("Location", place));
        assert!(resolve(&fake).is_err(), "{place}");
    }
}

#[test]
fn a_busy_registry_is_asked_again_when_it_says() {
    for status in [429, 503] {
        let tries = Arc::new(AtomicUsize::new(0));
        let fake = Fake::start(Sample::small().serving(move |_| {
            (tries.fetch_add(1, Ordering::SeqCst) < 2)
                .then(|| Reply::new(status, "").with("Retry-After", "0"))
        }));
        assert!(resolve(&fake).is_ok());
    }
    // An hour is longer than anyone waits.
    let fake = Fake::start(|_| {
        Reply::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#)
            .with("Retry-After", "3600")
    });
    let e = resolve(&fake).unwrap_err();
    assert_eq!(asked(&fake).len(), 1);
    assert!(e.to_string().ends_with("takes no more requests for now: slow down"), "{e}");
    assert!(e.hint().unwrap().contains("3600 seconds"));
    // One that stays busy is given up on.
    let fake = Fake::start(|_| Reply::new(500, ""));
    assert!(matches!(resolve(&fake), Err(Error::Refused { status: 500, .. })));
    assert_eq!(asked(&fake).len(), 4);
}

#[test]
fn broken_connections_are_tried_again() {
    for end in [End::Close, End::Reset, End::Silence] {
        let tries = Arc::new(AtomicUsize::new(0));
        let sample = Sample::small();
        let whole = sample.clone();
        let fake = Fake::start(sample.serving(move |r| {
            (tries.fetch_add(1, Ordering::SeqCst) < 2).then(|| whole.answer(r).cut(20, end))
        }));
        resolve(&fake).unwrap_or_else(|e| panic!("{end:?}: {e}"));
    }
    let fake = Fake::start(|_| Reply::new(200, "x").cut(0, End::Silence));
    assert!(matches!(resolve(&fake), Err(Error::Broken { .. })));
}

#[test]
fn nobody_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = Reference::parse(&format!("{address}/x")).unwrap();
    let e = client().manifest(&reference).unwrap_err();
    assert_eq!(e.to_string(), format!("cannot reach {address}: connection refused"));
    let reference = Reference::parse("no-such-host.invalid/x").unwrap();
    let e = client().manifest(&reference).unwrap_err();
    assert!(matches!(e, Error::Unreachable { .. }), "{e}");
}

/// Tells a copy of this program that its environment has a proxy.
const CHILD: &str = "ISLES_TEST_PROXIED";

#[test]
fn a_proxy_is_used_where_there_is_one() {
    if std::env::var_os(CHILD).is_some() {
        let insecure = vec!["registry.invalid:5000".to_owned()];
        let client = Client::new(ClientOptions { insecure, ..options() });
        let far = Reference::parse("registry.invalid:5000/a/b:1").unwrap();
        client.manifest(&far).unwrap();
        let excepted = Reference::parse("direct.invalid/a/b:1").unwrap();
        assert!(matches!(client.manifest(&excepted), Err(Error::Unreachable { .. })));
        return;
    }
    let fake = Fake::start(Sample::small().serving(|_| None));
    let proxy = format!("http://{}", fake.address);
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_proxy_is_used_where_there_is_one"])
        .env(CHILD, "1")
        .env("HTTP_PROXY", &proxy)
        .env("HTTPS_PROXY", &proxy)
        .env("NO_PROXY", "direct.invalid")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let asked = asked(&fake);
    assert!(asked.iter().any(|r| r.method == "CONNECT" && r.target == "registry.invalid:5000"));
    assert!(asked.iter().any(|r| r.target == "/v2/a/b/manifests/1"));
    assert!(asked.iter().all(|r| !r.target.contains("direct.invalid")));
}

#[test]
fn tags_come_in_pages_and_go() {
    let fake = Fake::start(|r| match (r.method.as_str(), r.target.as_str()) {
        ("GET", "/v2/a/b/tags/list?n=1000") => Reply::new(200, r#"{"name":"a/b","tags":["1","2"]}"#)
            .with("Link", r#"</v2/a/b/tags/list?n=1000&last=2>; rel="next""#),
        ("GET", "/v2/a/b/tags/list?n=1000&last=2") => Reply::new(200, r#"{"tags":["3"]}"#),
        ("DELETE", "/v2/a/b/manifests/1") => Reply::new(202, ""),
        ("DELETE", "/v2/a/b/manifests/2") => Reply::new(405, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#),
        _ => Reply::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#),
    });
    assert_eq!(client().tags(&name(&fake)).unwrap(), ["1", "2", "3"]);
    client().delete(&name(&fake)).unwrap();
    let e = client().delete(&Reference::parse(&fake.name("a/b:2")).unwrap()).unwrap_err();
    assert!(e.to_string().contains("by digest only"), "{e}");
    let other = Reference::parse(&fake.name("c:1")).unwrap();
    assert!(matches!(client().tags(&other), Err(Error::NotFound { .. })));
    assert!(matches!(client().delete(&other), Err(Error::NotFound { .. })));
    let endless = Fake::start(|r| Reply::new(200, "{}").with("Link", format!("<{}>; rel=next", r.target)));
    assert!(client().tags(&name(&endless)).is_err());
}

#[test]
fn a_name_is_pulled_from_the_first_mirror_that_has_it() {
    let sample = Sample::small();
    let bytes = sample.manifest.clone();
    let lacks = Fake::start(|_| Reply::new(404, ""));
    let has = Fake::start(sample.serving(|_| None));
    let (lacks_at, has_at) = (lacks.name("none"), has.name("hub"));
    let registries = |text: &str| Some(isles_registry::Registries::parse(text).unwrap());
    let rules = format!(
        "[[registry]]\nlocation = \"nowhere.invalid\"\n[[registry.mirror]]\nlocation = \"{}\"\n\
         [[registry.mirror]]\nlocation = \"{}\"\n",
        lacks_at.trim_end_matches(":1"),
        has_at.trim_end_matches(":1"),
    );
    let client = Client::new(ClientOptions { registries: registries(&rules), ..options() });
    let reference = Reference::parse("nowhere.invalid/a/b:1").unwrap();
    assert_eq!(client.manifest(&reference).unwrap().bytes, bytes);
    assert_eq!(client.manifest(&reference).unwrap().bytes, bytes);
    let paths: Vec<String> = asked(&has).into_iter().map(|r| format!("{} {}", r.method, r.target)).collect();
    assert_eq!(paths.iter().filter(|p| p.starts_with("HEAD")).count(), 1, "{paths:?}");
    assert!(paths.iter().all(|p| p.ends_with("/v2/hub/a/b/manifests/1")), "{paths:?}");
    assert!(asked(&lacks).iter().all(|r| r.method == "HEAD"));

    let blocked = registries("[[registry]]\nprefix = \"nowhere.invalid\"\nblocked = true\n");
    let client = Client::new(ClientOptions { registries: blocked, ..options() });
    assert!(matches!(client.manifest(&reference), Err(Error::Blocked { .. })));
}
