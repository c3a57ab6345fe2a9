//! Many clients at once, slow ones, large pushes, and words that make no sense.
#![allow(clippy::unwrap_used)]

mod talk;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use isles_registry_server::Config;
use isles_spec::{Algorithm, Digest};
use sha2::{Digest as _, Sha256};
use talk::{OCI, Registry, manifest, receive, sha256};

#[test]
fn two_hundred_pulls_of_one_image() {
    let r = Registry::open();
    let layer: Vec<u8> = (0..400_000u32).map(|n| (n % 253) as u8).collect();
    r.image("a", "v1", &layer);
    let path = format!("/v2/a/blobs/{}", sha256(&layer));
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                r.ask("GET", "/v2/a/manifests/v1").is(200);
                assert!(r.ask("GET", &path).is(200).body == layer);
            });
        }
    });
}

/// What this process has needed at most, client and server, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn a_large_push_needs_little_memory() {
    // ISLES_PUSH_BYTES=5000000000 is the whole of what is promised.
    let size: u64 = std::env::var("ISLES_PUSH_BYTES").ok().and_then(|v| v.parse().ok()).unwrap_or(300 << 20);
    let r = Registry::open();
    let zeros = vec![0u8; 1 << 20];
    let parts =
        || (0..size).step_by(zeros.len()).map(|at| &zeros[..(size - at).min(zeros.len() as u64) as usize]);
    let mut hasher = Sha256::new();
    parts().for_each(|part| hasher.update(part));
    let digest = Digest::from_bytes(Algorithm::Sha256, &hasher.finalize());
    let begun = r.send("POST", "/v2/a/blobs/uploads/", &[], b"").is(202);
    let place = begun.header("location").to_owned();
    let mut stream = TcpStream::connect(&r.address).unwrap();
    let head = format!(
        "PUT {place}?digest={digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    parts().for_each(|part| stream.write_all(part).unwrap());
    receive(stream, false).is(201);
    assert!(peak() <= 64 << 10, "{} KiB", peak());
    // And out again.
    let mut stream = TcpStream::connect(&r.address).unwrap();
    write!(stream, "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let came = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    assert!(came > size && peak() <= 64 << 10, "{came} of {size}, {} KiB", peak());
}

#[test]
fn slow_clients_take_nothing_from_others() {
    let r = Registry::with(|_| Config { idle: Some(Duration::from_secs(1)), ..Config::default() });
    r.image("a", "v1", b"layer");
    let open = |text: &str| {
        let mut stream = TcpStream::connect(&r.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let begun = r.send("POST", "/v2/a/blobs/uploads/", &[], b"").is(202);
    let upload = begun.header("location").to_owned();
    let mut slow: Vec<TcpStream> = Vec::new();
    for _ in 0..200 {
        slow.push(open(""));
        slow.push(open("GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A"));
        slow.push(open("PUT /v2/a/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"));
    }
    slow.push(open(&format!("PATCH {upload} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")));
    for _ in 0..20 {
        r.ask("GET", "/v2/a/manifests/v1").is(200);
    }
    // Whoever says nothing more is hung up on.
    for mut stream in slow {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // What the last one had sent of a blob is there to go on with.
    let there = r.ask("GET", &upload).is(204);
    assert_eq!(there.header("range"), "0-2");
    let whole = format!("{upload}?digest={}", sha256(b"abcdef"));
    let headers = [("Content-Range", "3-5")];
    r.send("PATCH", &upload, &headers, b"def").is(202);
    r.send("PUT", &whole, &[], b"").is(201);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let r = Registry::open();
    r.image("a", "v1", b"layer");
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let digest = sha256(b"{}");
    for body in [
        deep.clone(),
        format!(r#"{{"schemaVersion":2,"config":{deep}}}"#),
        format!(r#"{{"schemaVersion":2,"annotations":{deep}}}"#),
        "{".repeat(100_000),
        "nul".into(),
        String::new(),
        r#"{"schemaVersion":"2"}"#.into(),
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{digest}","size":-1}},"layers":[]}}"#
        ),
        r#"{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:0","size":1},"layers":[]}"#.into(),
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"md5:{}","size":1}},"layers":[]}}"#,
            "0".repeat(32)
        ),
    ] {
        let refused = r.manifest("a", "bad", OCI, body.as_bytes());
        assert!((400..500).contains(&refused.status), "{} {}", refused.status, &body[..body.len().min(80)]);
    }
    for (method, path) in [
        ("GET", "/v2/A/manifests/x"),
        ("GET", "/v2/a..b/manifests/x"),
        ("GET", "/v2/../../etc/manifests/x"),
        ("GET", "/v2/a/blobs/sha256:zz"),
        ("GET", "/v2/a/blobs/sha256:"),
        ("GET", "/v2/a/blobs/..%2f..%2fetc%2fpasswd"),
        ("GET", "/v2/a/manifests/..%2f..%2fx"),
        ("GET", "/v2/a/manifests/-x"),
        ("GET", "/v2/a/blobs/uploads/../../../x"),
        ("GET", "/v2/a/blobs/uploads/0123456789abcdef0123456789abcdef"),
        ("PATCH", "/v2/a/blobs/uploads/..%2f..%2ftags"),
        ("POST", "/v2/a/blobs/uploads/?digest=sha256:12"),
        ("POST", "/v2/a/blobs/uploads/?mount=nothing&from=a"),
        ("GET", "/v2/a/referrers/nothing"),
        ("GET", "/v2/a/tags/list?n=-1"),
        ("GET", "/v2/_catalog?n=x"),
        ("DELETE", "/v2/a/manifests/sha256:00"),
    ] {
        let refused = r.ask(method, path);
        assert!((400..500).contains(&refused.status), "{method} {path}: {}", refused.status);
    }
    let long = "a/".repeat(5000);
    assert!((400..500).contains(&r.ask("GET", &format!("/v2/{long}x/manifests/y")).status));
    let begun = r.send("POST", "/v2/a/blobs/uploads/", &[], b"").is(202);
    let upload = begun.header("location").to_owned();
    for range in ["5-9", "0-", "9-0", "x", "-1-2", "0-99999999999999999999"] {
        let refused = r.send("PATCH", &upload, &[("Content-Range", range)], b"abc");
        assert!((400..500).contains(&refused.status), "{range}: {}", refused.status);
    }
    // Nothing of all this did any harm.
    r.ask("GET", "/v2/a/manifests/v1").is(200);
    let bytes = manifest(&digest, &[], "");
    r.manifest("a", "good", OCI, &bytes).is(201);
}
