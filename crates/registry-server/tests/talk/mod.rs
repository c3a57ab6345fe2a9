//! A server in this process on a port of its own, and a client that says exactly what it is told to.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use isles_registry_server::{Config, LogTo, Server};
use isles_spec::{Algorithm, Digest};
use isles_store::{Ownership, Store};

pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub struct Registry {
    pub dir: tempfile::TempDir,
    pub address: String,
}

pub fn store(dir: &Path) -> Store {
    Store::open(dir.join("store"), Ownership::Single).unwrap()
}

impl Registry {
    /// One that everybody may change.
    pub fn open() -> Registry {
        Registry::with(|_| Config::default())
    }

    /// One as the configuration says; files for it go into the folder.
    pub fn with(config: impl FnOnce(&Path) -> Config) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { listen: vec!["127.0.0.1:0".into()], ..config(dir.path()) };
        let address = serve(store(dir.path()), config, &LogTo::File(dir.path().join("log")));
        Registry { dir, address }
    }

    /// Another server over the same store.
    pub fn twin(&self) -> String {
        self.twin_with(Config::default())
    }

    pub fn twin_with(&self, config: Config) -> String {
        let config = Config { listen: vec!["127.0.0.1:0".into()], ..config };
        serve(store(self.dir.path()), config, &LogTo::Nowhere)
    }

    pub fn store(&self) -> Store {
        store(self.dir.path())
    }

    pub fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, &[], b"")
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        send(&self.address, method, path, headers, body)
    }

    /// Pushes a blob in one request.
    pub fn blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.send("POST", &path, &[], bytes).is(201);
        digest
    }

    pub fn blob_as(&self, authorization: &str, repository: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.send("POST", &path, &[("Authorization", authorization)], bytes).is(201);
        digest
    }

    pub fn manifest(&self, repository: &str, name: &str, kind: &str, bytes: &[u8]) -> Answer {
        let path = format!("/v2/{repository}/manifests/{name}");
        self.send("PUT", &path, &[("Content-Type", kind)], bytes)
    }

    /// Pushes an image of one small layer. Returns the digest of its manifest.
    pub fn image(&self, repository: &str, tag: &str, layer: &[u8]) -> Digest {
        let (config, layer) = (self.blob(repository, b"{}"), self.blob(repository, layer));
        let bytes = manifest(&config, &[&layer], "");
        self.manifest(repository, tag, OCI, &bytes).is(201);
        sha256(&bytes)
    }
}

/// Serves on a thread that ends with the process.
fn serve(store: Store, config: Config, log: &LogTo) -> String {
    let server = Server::new(store, config, log).unwrap();
    let (told, ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let told = std::sync::Mutex::new(told);
        server.serve(&|url, _| drop(told.lock().unwrap().send(url.to_owned()))).unwrap();
    });
    let url = ready.recv().unwrap();
    url.split_once("://").unwrap().1.to_owned()
}

pub fn sha256(bytes: &[u8]) -> Digest {
    isles_store::digest_of_bytes(Algorithm::Sha256, bytes)
}

pub fn manifest(config: &Digest, layers: &[&Digest], more: &str) -> Vec<u8> {
    let part = |d: &Digest| format!(r#"{{"mediaType":"a/b","digest":"{d}","size":1}}"#);
    let layers: Vec<String> = layers.iter().map(|d| part(d)).collect();
    let config = part(config);
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":[{}]{more}}}"#,
        layers.join(",")
    )
    .into_bytes()
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub fn is(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{} {self:?}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of an error.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

/// One request on a connection of its own.
pub fn send(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let own = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !own("content-length") && !own("transfer-encoding") && (!body.is_empty() || method != "GET") {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
    // A server that has heard enough answers before all is sent.
    let _ = stream.write_all(body);
    receive(stream, method == "HEAD")
}

pub fn receive(stream: TcpStream, head: bool) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in '{line}'")).parse().unwrap();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        headers
            .entry(name.to_ascii_lowercase())
            .and_modify(|all: &mut String| all.push_str(&format!(", {value}")))
            .or_insert_with(|| value.to_owned());
    }
    let mut body = Vec::new();
    if !head {
        reader.read_to_end(&mut body).unwrap();
        if let Some(length) = headers.get("content-length") {
            assert_eq!(body.len(), length.parse::<usize>().unwrap());
        }
    }
    Answer { status, headers, body }
}
