//! Whom TLS trusts: the host's certificate authorities, and those set up for one registry.
//!
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the host's bundle, as for OpenSSL. A folder
//! `certs.d/<host[:port]>/` adds authorities (`*.crt`) and a client certificate (`*.cert` with its `*.key`)
//! for one registry, as for Docker and podman.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, parse_pem};

use crate::{Error, Result};

/// Where systems keep their bundle: Debian and its kin, Fedora, openSUSE, older Red Hat, Alpine and BSD.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];
const FILE_LIMIT: u64 = 16 << 20;
/// A folder of authorities has hundreds of files at most.
const FILES_LIMIT: usize = 4096;

/// The authorities that this host trusts. Files that cannot be read or parsed are passed over, as the
/// connection's error then says what is missing.
pub(crate) fn host_authorities() -> Vec<Certificate<'static>> {
    let file = env::var_os("SSL_CERT_FILE").filter(|v| !v.is_empty());
    let dirs = env::var_os("SSL_CERT_DIR").filter(|v| !v.is_empty());
    let mut found = Vec::new();
    if file.is_none() && dirs.is_none() {
        for bundle in BUNDLES {
            found = certificates(Path::new(bundle));
            if !found.is_empty() {
                break;
            }
        }
        return found;
    }
    if let Some(file) = file {
        found.extend(certificates(Path::new(&file)));
    }
    for dir in dirs.iter().flat_map(|dirs| env::split_paths(dirs)) {
        for path in files_of(&dir) {
            found.extend(certificates(&path));
        }
    }
    found
}

/// The same as DER, for those who verify something else with them.
pub fn host_certificates() -> Vec<Vec<u8>> {
    host_authorities().iter().map(|certificate| certificate.der().to_vec()).collect()
}

/// What is set up for one registry.
pub(crate) struct Own {
    pub authorities: Vec<Certificate<'static>>,
    pub client: Option<ClientCert>,
}

/// The first of the folders that has something for `host` (with its port, if it has one).
pub(crate) fn for_registry(folders: &[PathBuf], host: &str) -> Result<Option<Own>> {
    for folder in folders {
        let dir = folder.join(host);
        let files = files_of(&dir);
        let mut own = Own { authorities: Vec::new(), client: None };
        for path in &files {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => own.authorities.extend(certificates(path)),
                Some("cert") => own.client = Some(client_certificate(path)?),
                _ => {}
            }
        }
        if !own.authorities.is_empty() || own.client.is_some() {
            return Ok(Some(own));
        }
    }
    Ok(None)
}

/// The folders that Docker and podman use.
pub(crate) fn usual_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["/etc/docker/certs.d", "/etc/containers/certs.d"].iter().map(PathBuf::from).collect();
    if let Some(home) = env::var_os("HOME").filter(|h| !h.is_empty()) {
        folders.insert(0, Path::new(&home).join(".config/containers/certs.d"));
    }
    folders
}

fn client_certificate(path: &Path) -> Result<ClientCert> {
    let failed = |path: &Path, cause: &str| Error::File {
        operation: "use",
        path: path.to_owned(),
        cause: cause.to_owned(),
        denied: false,
    };
    let key_path = path.with_extension("key");
    let chain = certificates(path);
    if chain.is_empty() {
        return Err(failed(path, "it holds no certificate"));
    }
    let key = read(&key_path)
        .and_then(|pem| PrivateKey::from_pem(&pem).ok())
        .ok_or_else(|| failed(&key_path, "it holds no private key"))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn certificates(path: &Path) -> Vec<Certificate<'static>> {
    let Some(pem) = read(path) else { return Vec::new() };
    parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .map(|entries| {
            entries.flatten().map(|e| e.path()).filter(|p| p.is_file()).take(FILES_LIMIT).collect()
        })
        .unwrap_or_default();
    paths.sort();
    paths
}
