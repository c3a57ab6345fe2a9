//! TLS with certificates that are read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsConfig;
use crate::{Error, Result, self_signed};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

type Stamps = (Option<SystemTime>, Option<SystemTime>);

/// A certificate that the server has made for itself.
#[derive(Debug, Clone, Copy)]
pub struct OwnCertificate<'a> {
    /// Its SHA-256, as people compare it.
    pub fingerprint: &'a str,
    /// By which clients trust it.
    pub file: &'a Path,
}

/// What greets TLS clients.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    fingerprint: Option<String>,
    state: Mutex<State>,
}

struct State {
    acceptor: TlsAcceptor,
    stamps: Stamps,
    looked: Instant,
}

impl Tls {
    /// Reads the certificate, or makes one below `root`.
    pub fn open(config: &TlsConfig, root: &Path) -> Result<Tls> {
        let (cert, key, own) = match config {
            TlsConfig::Files { cert, key } => (cert.clone(), key.clone(), false),
            TlsConfig::SelfSigned { names } => {
                let (cert, key) = self_signed::ensure(root, names)?;
                (cert, key, true)
            }
        };
        let stamps = stamps(&cert, &key);
        let (acceptor, first) = read(&cert, &key)?;
        let fingerprint = own.then(|| self_signed::fingerprint(&first));
        let state = Mutex::new(State { acceptor, stamps, looked: Instant::now() });
        Ok(Tls { cert, key, fingerprint, state })
    }

    /// The certificate, where it was made here.
    pub fn own(&self) -> Option<OwnCertificate<'_>> {
        self.fingerprint.as_deref().map(|fingerprint| OwnCertificate { fingerprint, file: &self.cert })
    }

    /// What greets the next client. Files that cannot be read, such as half of a new pair, leave the old ones.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let now = stamps(&self.cert, &self.key);
            if now != state.stamps
                && let Ok((acceptor, _)) = read(&self.cert, &self.key)
            {
                state.acceptor = acceptor;
                state.stamps = now;
            }
        }
        state.acceptor.clone()
    }
}

fn stamps(cert: &Path, key: &Path) -> Stamps {
    let of = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    (of(cert), of(key))
}

fn read(cert: &Path, key: &Path) -> Result<(TlsAcceptor, Vec<u8>)> {
    let bad = |path: &Path, e: &dyn std::fmt::Display| Error::config(path.display(), e.to_string());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).map_err(|e| bad(cert, &e))?;
    let first = chain.first().ok_or_else(|| bad(cert, &"it has no certificate"))?.to_vec();
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(cert, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| bad(cert, &e))?;
    Ok((TlsAcceptor::from(Arc::new(config)), first))
}
