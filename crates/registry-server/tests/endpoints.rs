//! Every endpoint of the distribution specification, said byte by byte.
#![allow(clippy::unwrap_used)]

mod talk;

use std::io::{Read, Write};

use isles_spec::Algorithm;
use talk::{INDEX, OCI, Registry, manifest, send, sha256};

#[test]
fn the_base_says_that_this_is_a_registry() {
    let r = Registry::open();
    let answer = r.ask("GET", "/v2/").is(200);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
    r.ask("GET", "/v2").is(200);
    r.ask("GET", "/nothing").is(404);
    r.ask("POST", "/v2/").is(405);
    assert_eq!(r.ask("GET", "/healthz").is(200).body, b"ok\n");
    r.ask("GET", "/v2/UP/tags/list").is(400);
    r.ask("GET", "/v2/a/tags/list?n=%zz").is(400);
    let metrics = String::from_utf8(r.ask("GET", "/metrics").is(200).body).unwrap();
    assert!(
        metrics.contains("isles_registry_requests_total{endpoint=\"base\",method=\"GET\",status=\"200\"} 2")
    );
}

#[test]
fn a_blob_in_one_request_and_in_two() {
    let r = Registry::open();
    let digest = r.blob("a/b", b"one");
    let path = format!("/v2/a/b/blobs/{digest}");
    let answer = r.ask("GET", &path).is(200);
    assert_eq!(
        (answer.body.as_slice(), answer.header("docker-content-digest")),
        (&b"one"[..], digest.to_string().as_str())
    );
    let head = r.ask("HEAD", &path).is(200);
    assert_eq!(head.header("content-length"), "3");

    let begun = r.ask("POST", "/v2/a/b/blobs/uploads/").is(202);
    assert_eq!((begun.header("range"), begun.header("docker-upload-uuid").len()), ("0-0", 32));
    let two = sha256(b"two");
    let closed = r.send("PUT", &format!("{}?digest={two}", begun.header("location")), &[], b"two").is(201);
    assert_eq!(closed.header("location"), format!("/v2/a/b/blobs/{two}"));
    assert_eq!(r.ask("GET", closed.header("location")).is(200).body, b"two");

    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = isles_store::digest_of_bytes(algorithm, b"");
        r.ask("POST", &format!("/v2/a/b/blobs/uploads/?digest={digest}")).is(201);
        assert_eq!(r.ask("GET", &format!("/v2/a/b/blobs/{digest}")).is(200).body, b"");
    }
    assert_eq!(r.ask("GET", &format!("/v2/a/b/blobs/{}", sha256(b"x"))).is(404).code(), "BLOB_UNKNOWN");
    r.ask("HEAD", &format!("/v2/a/b/blobs/{}", sha256(b"x"))).is(404);
    assert_eq!(r.ask("GET", "/v2/a/b/blobs/sha256:1").is(400).code(), "DIGEST_INVALID");
    r.ask("GET", "/v2/a/b/blobs/md5:d41d8cd98f00b204e9800998ecf8427e").is(400);
    r.ask("GET", &format!("/v2/other/blobs/{digest}")).is(404);
}

#[test]
fn large_blobs_follow_each_other_on_a_connection() {
    let r = Registry::open();
    let bytes: Vec<u8> = (0..(3 << 20) + 12_345).map(|n: u32| (n / 3 % 251) as u8).collect();
    let zeros = vec![0; 300 << 10];
    let (large, empty) = (r.blob("a", &bytes), r.blob("a", &zeros));
    let path = format!("/v2/a/blobs/{large}");
    assert!(r.ask("GET", &path).is(200).body == bytes);
    assert!(r.ask("GET", &format!("/v2/a/blobs/{empty}")).is(200).body == zeros);
    r.ask("HEAD", &path).is(200);
    let last = bytes.len() - 1;
    for (first, end) in [(0, 70_000), (1, last), (last - 65_536, last), (1 << 20, (1 << 20) + 65_535)] {
        let range = format!("bytes={first}-{end}");
        let answer = r.send("GET", &path, &[("Range", &range)], b"").is(206);
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{end}/{}", bytes.len()));
        assert!(answer.body == bytes[first..=end], "{range}");
    }
    // All asked for before anything is read.
    let get =
        |range: &str, end: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n{end}\r\n");
    let mut stream = std::net::TcpStream::connect(&r.address).unwrap();
    let ranges = [(0, last), (7, 9), (100, last - 1), (0, 65_535), (3, last)];
    for (n, (first, end)) in ranges.iter().enumerate() {
        let close = if n + 1 == ranges.len() { "Connection: close\r\n" } else { "" };
        stream.write_all(get(&format!("bytes={first}-{end}"), close).as_bytes()).unwrap();
    }
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let mut rest = all.as_slice();
    for (first, end) in ranges {
        let head = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert!(rest.starts_with(b"HTTP/1.1 206"), "{}", String::from_utf8_lossy(&rest[..head]));
        let body = &rest[head..=head + end - first];
        assert!(body == &bytes[first..=end], "{first}-{end}");
        rest = &rest[head + body.len()..];
    }
    assert!(rest.is_empty());
}

#[test]
fn a_blob_in_parts() {
    let r = Registry::open();
    let place =
        r.ask("POST", "/v2/a/blobs/uploads/?digest-algorithm=sha512").is(202).header("location").to_owned();
    let part = |range: &str, bytes: &[u8]| r.send("PATCH", &place, &[("Content-Range", range)], bytes);
    assert_eq!(part("0-4", b"hello").is(202).header("range"), "0-4");
    // Out of order, twice, with a hole, of another length, and of no form at all.
    for (range, status) in [("0-4", 416), ("6-9", 416), ("3-6", 416), ("5-9", 400), ("x", 400), ("9-5", 416)]
    {
        part(range, b"1234").is(status);
    }
    assert_eq!(part("0-3", b"1234").is(416).header("range"), "0-4");
    let status = r.ask("GET", &place).is(204);
    assert_eq!((status.header("range"), status.header("location")), ("0-4", place.as_str()));
    // Without a range it is a stream.
    let chunked = [("Transfer-Encoding", "chunked")];
    r.send("PATCH", &place, &chunked, b"3\r\n wo\r\n3\r\nrld\r\n0\r\n\r\n").is(202);
    assert_eq!(r.ask("GET", &place).is(204).header("range"), "0-10");
    let digest = isles_store::digest_of_bytes(Algorithm::Sha512, b"hello world!");
    let close = format!("{place}?digest={digest}");
    r.send("PUT", &close, &[("Content-Range", "3-3")], b"!").is(416);
    r.send("PUT", &place, &[], b"").is(400);
    r.send("PUT", &close, &[("Content-Range", "11-11")], b"!").is(201);
    assert_eq!(r.ask("GET", &format!("/v2/a/blobs/{digest}")).is(200).body, b"hello world!");
    assert_eq!(r.ask("GET", &place).is(404).code(), "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn an_upload_that_is_given_up_or_wrong() {
    let r = Registry::open();
    let place = r.ask("POST", "/v2/a/blobs/uploads/").is(202).header("location").to_owned();
    r.send("PATCH", &place, &[], b"x").is(202);
    r.ask("DELETE", &place).is(204);
    for method in ["GET", "PATCH", "DELETE"] {
        r.ask(method, &place).is(404);
    }
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", sha256(b"y"));
    assert_eq!(r.send("POST", &wrong, &[], b"x").is(400).code(), "DIGEST_INVALID");
    r.ask("POST", "/v2/a/blobs/uploads/?digest=sha256:1").is(400);
    r.ask("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5").is(400);
    r.ask("GET", "/v2/a/blobs/uploads/").is(405);
    r.ask("GET", "/v2/a/blobs/uploads/..").is(404);
    assert!(r.store().hosted("a").unwrap().blobs().unwrap().is_empty());
}

#[test]
fn a_body_that_breaks_off_is_continued_by_another_server() {
    use std::io::Write;
    let r = Registry::open();
    let place = r.ask("POST", "/v2/a/blobs/uploads/").is(202).header("location").to_owned();
    let mut stream = std::net::TcpStream::connect(&r.address).unwrap();
    let head = format!("PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello");
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    drop(stream);
    let twin = r.twin();
    // The other server may still be noticing that its client went away.
    let patched = loop {
        let at = send(&twin, "GET", &place, &[], b"").is(204).header("range").to_owned();
        let begin = if at == "0-4" { 5 } else { 0 };
        let rest = &b"hello world"[begin..];
        let range = format!("{begin}-10");
        let answer = send(&twin, "PATCH", &place, &[("Content-Range", &range)], rest);
        if !matches!(answer.status, 409 | 416) {
            break answer;
        }
        std::thread::yield_now();
    };
    patched.is(202);
    let digest = sha256(b"hello world");
    r.ask("PUT", &format!("{place}?digest={digest}")).is(201);
    assert_eq!(send(&twin, "GET", &format!("/v2/a/blobs/{digest}"), &[], b"").is(200).body, b"hello world");
}

#[test]
fn blobs_in_part_and_on_condition() {
    let r = Registry::open();
    let digest = r.blob("a", b"0123456789");
    let path = format!("/v2/a/blobs/{digest}");
    let etag = format!("\"{digest}\"");
    for (header, value, status, body) in [
        ("Range", "bytes=2-4", 206, "234"),
        ("Range", "bytes=7-", 206, "789"),
        ("Range", "bytes=-2", 206, "89"),
        ("Range", "bytes=0-99", 206, "0123456789"),
        ("Range", "bytes=a", 200, "0123456789"),
        ("If-None-Match", etag.as_str(), 304, ""),
        ("If-None-Match", "\"other\"", 200, "0123456789"),
    ] {
        let answer = r.send("GET", &path, &[(header, value)], b"").is(status);
        assert_eq!(answer.body, body.as_bytes(), "{value}");
    }
    let part = r.send("GET", &path, &[("Range", "bytes=2-4")], b"");
    assert_eq!(part.header("content-range"), "bytes 2-4/10");
    let beyond = r.send("GET", &path, &[("Range", "bytes=10-")], b"").is(416);
    assert_eq!(beyond.header("content-range"), "bytes */10");
    let other = [("Range", "bytes=2-4"), ("If-Range", "\"other\"")];
    r.send("GET", &path, &other, b"").is(200);
}

#[test]
fn a_blob_of_another_repository() {
    let r = Registry::open();
    let digest = r.blob("a", b"shared");
    let mounted = r.ask("POST", &format!("/v2/b/blobs/uploads/?mount={digest}&from=a")).is(201);
    assert_eq!(mounted.header("location"), format!("/v2/b/blobs/{digest}"));
    r.ask("POST", &format!("/v2/c/blobs/uploads/?mount={digest}")).is(201);
    r.ask("POST", &format!("/v2/d/blobs/uploads/?mount={digest}&from=none")).is(202);
    r.ask("POST", &format!("/v2/d/blobs/uploads/?mount={}&from=a", sha256(b"no"))).is(202);
    r.ask("POST", "/v2/d/blobs/uploads/?mount=x").is(400);
    r.ask("DELETE", &format!("/v2/a/blobs/{digest}")).is(202);
    r.ask("DELETE", &format!("/v2/a/blobs/{digest}")).is(404);
    r.ask("GET", &format!("/v2/a/blobs/{digest}")).is(404);
    assert_eq!(r.ask("GET", &format!("/v2/b/blobs/{digest}")).is(200).body, b"shared");
    // What is in the store only, nobody gets by its digest.
    let store = r.store();
    let lease = store.lease().unwrap();
    let private = store.put_bytes(&lease, b"private").unwrap();
    r.ask("POST", &format!("/v2/b/blobs/uploads/?mount={private}")).is(202);
    r.ask("GET", &format!("/v2/b/blobs/{private}")).is(404);
    let offer = store.offer(std::slice::from_ref(&private)).unwrap();
    r.ask("POST", &format!("/v2/b/blobs/uploads/?mount={private}&offer={}", offer.id())).is(201);
}

#[test]
fn manifests_by_tag_and_by_digest() {
    let r = Registry::open();
    let (config, layer) = (r.blob("a", b"{}"), r.blob("a", b"layer"));
    let bytes = manifest(&config, &[&layer], "");
    let digest = sha256(&bytes);
    let put = r.manifest("a", "v1", OCI, &bytes).is(201);
    assert_eq!(put.header("docker-content-digest"), digest.to_string());
    assert_eq!(put.header("location"), format!("/v2/a/manifests/{digest}"));
    for name in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/a/manifests/{name}");
        let got = r.ask("GET", &path).is(200);
        assert_eq!((got.body.as_slice(), got.header("content-type")), (bytes.as_slice(), OCI));
        let head = r.ask("HEAD", &path).is(200);
        assert_eq!(head.header("content-length"), bytes.len().to_string());
        let known = format!("\"{digest}\"");
        r.send("GET", &path, &[("If-None-Match", &known)], b"").is(304);
    }
    r.manifest("a", &sha256(b"other").to_string(), OCI, &bytes).is(400);
    let tagged = r.manifest("a", &format!("{digest}?tag=v2&tag=v3"), OCI, &bytes).is(201);
    assert_eq!(tagged.header("oci-tag"), "v2, v3");
    r.manifest("a", "v1?tag=v2", OCI, &bytes).is(400);
    r.manifest("a", &format!("{digest}?tag=.no"), OCI, &bytes).is(400);
    let sha512 = isles_store::digest_of_bytes(Algorithm::Sha512, &bytes);
    r.manifest("a", &sha512.to_string(), OCI, &bytes).is(201);
    assert_eq!(
        r.ask("GET", &format!("/v2/a/manifests/{sha512}")).is(200).header("docker-content-digest"),
        sha512.to_string()
    );

    for name in ["none", "sha256:1", ".bad"] {
        let status = if name.contains(':') { 400 } else { 404 };
        r.ask("GET", &format!("/v2/a/manifests/{name}")).is(status);
        r.ask("DELETE", &format!("/v2/a/manifests/{name}")).is(status);
    }
    r.ask("DELETE", "/v2/a/manifests/v2").is(202);
    r.ask("GET", "/v2/a/manifests/v2").is(404);
    r.ask("GET", "/v2/a/manifests/v1").is(200);
    r.ask("DELETE", &format!("/v2/a/manifests/{digest}")).is(202);
    for name in ["v1", "v3", &digest.to_string()] {
        r.ask("GET", &format!("/v2/a/manifests/{name}")).is(404);
    }
    r.ask("DELETE", &format!("/v2/a/manifests/{digest}")).is(404);
    r.ask("POST", "/v2/a/manifests/v1").is(405);
}

#[test]
fn docker_types_and_types_that_are_not_announced() {
    let r = Registry::open();
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let part = format!(r#"{{"mediaType":"a/b","digest":"{}","size":2}}"#, sha256(b"{}"));
    for (kind, text) in [
        (docker, format!(r#"{{"schemaVersion":2,"mediaType":"{docker}","config":{part},"layers":[]}}"#)),
        (list, format!(r#"{{"schemaVersion":2,"mediaType":"{list}","manifests":[]}}"#)),
        (INDEX, r#"{"schemaVersion":2,"manifests":[]}"#.to_owned()),
        (OCI, format!(r#"{{"schemaVersion":2,"config":{part},"layers":[]}}"#)),
    ] {
        for announced in [kind, &format!("{kind}; charset=utf-8"), "application/json"] {
            r.manifest("a", "t", announced, text.as_bytes()).is(201);
            assert_eq!(r.ask("GET", "/v2/a/manifests/t").is(200).header("content-type"), kind);
        }
    }
    for (kind, text) in [
        (docker, "{}".to_owned()),
        (OCI, "not json".to_owned()),
        (OCI, format!(r#"{{"schemaVersion":2,"mediaType":"{docker}","config":{part},"layers":[]}}"#)),
        ("text/html", format!(r#"{{"schemaVersion":2,"config":{part},"layers":[]}}"#)),
        (OCI, format!("{}{}", "[".repeat(200_000), "]".repeat(200_000))),
    ] {
        assert_eq!(r.manifest("a", "bad", kind, text.as_bytes()).is(400).code(), "MANIFEST_INVALID");
    }
    r.ask("GET", "/v2/a/manifests/bad").is(404);
}

#[test]
fn manifests_may_be_large_but_not_that_large() {
    let r = Registry::open();
    let config = sha256(b"{}");
    let pad = |n: usize| manifest(&config, &[], &format!(r#","annotations":{{"x":"{}"}}"#, "x".repeat(n)));
    r.manifest("a", "large", OCI, &pad(4 << 20)).is(201);
    let too_large = pad(100 << 20);
    assert_eq!(r.manifest("a", "huge", OCI, &too_large).is(413).code(), "SIZE_INVALID");
    // A length that is not said in advance is bounded too.
    let mut chunked = format!("{:x}\r\n", 9 << 20).into_bytes();
    chunked.extend(&too_large[..9 << 20]);
    chunked.extend(b"\r\n0\r\n\r\n");
    let headers = [("Transfer-Encoding", "chunked"), ("Content-Type", OCI)];
    r.send("PUT", "/v2/a/manifests/huge", &headers, &chunked).is(413);
}

#[test]
fn pushes_on_condition() {
    let r = Registry::open();
    let config = sha256(b"{}");
    let (one, two) = (manifest(&config, &[], ""), manifest(&config, &[], r#","annotations":{"n":"2"}"#));
    let put = |bytes: &[u8], name: &str, value: &str| {
        r.send("PUT", "/v2/a/manifests/t", &[("Content-Type", OCI), (name, value)], bytes)
    };
    let etag = |bytes: &[u8]| format!("\"{}\"", sha256(bytes));
    put(&one, "If-Match", "*").is(412);
    put(&one, "If-None-Match", "*").is(201);
    put(&two, "If-None-Match", "*").is(412);
    put(&two, "If-Match", &etag(&two)).is(412);
    put(&two, "If-Match", &etag(&one)).is(201);
    put(&one, "If-Match", &etag(&one)).is(412);
}

#[test]
fn lists_in_pages() {
    let r = Registry::open();
    r.ask("GET", "/v2/a/tags/list").is(404);
    let bytes = manifest(&sha256(b"{}"), &[], "");
    let digest = sha256(&bytes);
    r.manifest("a", &format!("{digest}?tag=b&tag=B&tag=a&tag=1.0&tag=c_d"), OCI, &bytes).is(201);
    let tags = |query: &str| {
        let answer = r.ask("GET", &format!("/v2/a/tags/list{query}")).is(200);
        let tags: Vec<String> = serde_json::from_value(answer.json()["tags"].clone()).unwrap();
        (tags.join(" "), answer.headers.get("link").cloned())
    };
    assert_eq!(tags(""), ("1.0 B a b c_d".into(), None));
    assert_eq!(tags("?n=2"), ("1.0 B".into(), Some("</v2/a/tags/list?n=2&last=B>; rel=\"next\"".into())));
    assert_eq!(tags("?n=2&last=B").0, "a b");
    assert_eq!(tags("?n=2&last=b"), ("c_d".into(), None));
    assert_eq!(tags("?n=5"), ("1.0 B a b c_d".into(), None));
    assert_eq!(tags("?n=0"), (String::new(), None));
    assert_eq!(tags("?last=Z").0, "a b c_d");
    assert_eq!(tags("?n=99999999").0, "1.0 B a b c_d");
    r.ask("GET", "/v2/a/tags/list?n=x").is(400);
    r.ask("GET", "/v2/a/tags/list?n=-1").is(400);
    r.manifest("a", "zz", OCI, &bytes).is(201);
    assert!(tags("").0.ends_with("zz"), "a new tag is seen at once");

    for name in ["c/x", "b"] {
        r.manifest(name, "t", OCI, &bytes).is(201);
    }
    let catalog = |query: &str| r.ask("GET", &format!("/v2/_catalog{query}")).is(200);
    assert_eq!(catalog("").json()["repositories"], serde_json::json!(["a", "b", "c/x"]));
    assert_eq!(catalog("?n=1").header("link"), "</v2/_catalog?n=1&last=a>; rel=\"next\"");
    assert_eq!(catalog("?n=2&last=b").json()["repositories"], serde_json::json!(["c/x"]));
}

#[test]
fn what_refers_to_a_manifest() {
    let r = Registry::open();
    let subject = r.image("a", "v1", b"layer");
    let about = |kind: &str| {
        let more = format!(
            r#","artifactType":"{kind}","annotations":{{"for":"{kind}"}},"subject":{{"mediaType":"{OCI}","digest":"{subject}","size":1}}"#
        );
        manifest(&sha256(b"{}"), &[], &more)
    };
    for kind in ["x/sbom", "x/signature"] {
        let bytes = about(kind);
        let put = r.manifest("a", &sha256(&bytes).to_string(), OCI, &bytes).is(201);
        assert_eq!(put.header("oci-subject"), subject.to_string());
    }
    let path = format!("/v2/a/referrers/{subject}");
    let all = r.ask("GET", &path).is(200);
    assert_eq!(all.header("content-type"), INDEX);
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    let filtered = r.ask("GET", &format!("{path}?artifactType=x%2Fsbom")).is(200);
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let found = filtered.json()["manifests"].as_array().unwrap().clone();
    assert_eq!((found.len(), found[0]["annotations"]["for"].as_str()), (1, Some("x/sbom")));
    r.ask("DELETE", &format!("/v2/a/manifests/{}", sha256(&about("x/sbom")))).is(202);
    assert_eq!(r.ask("GET", &path).json()["manifests"].as_array().unwrap().len(), 1);
    // Nothing refers to what was never here, which is no error.
    let none = r.ask("GET", &format!("/v2/nobody/referrers/{subject}")).is(200);
    assert_eq!(none.json()["manifests"], serde_json::json!([]));
    assert_eq!(r.ask("GET", "/v2/a/referrers/x").is(400).code(), "DIGEST_INVALID");
}

#[test]
fn pages_for_people() {
    let r = Registry::open();
    let text = |path: &str, status: u16| {
        let answer = r.ask("GET", path).is(status);
        assert!(answer.header("content-security-policy").contains("default-src 'none'"));
        String::from_utf8(answer.body).unwrap()
    };
    assert!(text("/", 200).contains("Nothing has been pushed yet"));
    let digest = r.image("course/lab", "v1", b"layer");
    let (config, layer) = (
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"RUN <script>alert(1)</script>"}]}"#,
        sha256(b"layer"),
    );
    let config = r.blob("course/lab", config.as_bytes());
    r.manifest("course/lab", "v2", OCI, &manifest(&config, &[&layer], "")).is(201);
    assert!(text("/", 200).contains("<a href=\"/r/course/lab\">course/lab</a>"));
    assert!(text("/r/course/lab", 200).contains("/r/course/lab:v1"));
    let page = text("/r/course/lab:v2", 200);
    assert!(page.contains(&format!("isles copy docker://{}/course/lab:v2", r.address)));
    assert!(page.contains("RUN &lt;script&gt;alert(1)") && !page.contains("<script>"));
    assert!(text(&format!("/r/course/lab@{digest}"), 200).contains(&digest.to_string()));
    text("/r/none", 404);
    text("/r/course/lab:none", 404);
}

#[test]
fn what_a_client_may_not_say() {
    use std::io::{Read, Write};
    let r = Registry::open();
    for bytes in [
        &b"GET /v2/ HTTP/9.9\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /v2/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /v2/a/manifests/t HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ] {
        let mut stream = std::net::TcpStream::connect(&r.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
    }
    let mut large = String::from("GET /v2/ HTTP/1.1\r\nHost: x\r\n");
    (0..10_000).for_each(|n| large.push_str(&format!("X-{n}: {}\r\n", "y".repeat(100))));
    let mut stream = std::net::TcpStream::connect(&r.address).unwrap();
    let _ = stream.write_all(format!("{large}\r\n").as_bytes());
    let _ = stream.read_to_end(&mut Vec::new());
    r.ask("GET", "/v2/").is(200);
}

#[test]
fn everything_is_in_the_log_but_secrets() {
    let r = Registry::open();
    r.send("GET", "/v2/a/tags/list", &[("Authorization", "Basic c2VjcmV0OnNlY3JldA==")], b"").is(404);
    let log = std::fs::read_to_string(r.dir.path().join("log")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((line["method"].as_str(), line["status"].as_u64()), (Some("GET"), Some(404)));
    assert_eq!(line["path"], "/v2/a/tags/list");
    assert!(!log.contains("c2VjcmV0"));
}
