//! A certificate that may sign code, as `verify --certificate` takes it: its key counts if a chain leads from it to an
//! authority (RFC 5280).

use std::fs;
use std::path::Path;

use isles_sif::{PublicKey, pem_blocks};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::failure::Failure;

/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// The key of the certificate in `path`, which must be for signing code where it says what it is for; `between` and `roots` are files with certificates.
pub fn key_of(path: &Path, between: Option<&Path>, roots: Option<&Path>) -> Result<PublicKey, Failure> {
    let name = path.display();
    let bad = |why: String| Failure::new(format!("Failed to load certificate: {name} {why}"));
    let all = read(path)?;
    let first = all.first().ok_or_else(|| bad("holds no certificate".to_owned()))?;
    let between = between.map(read).transpose()?.unwrap_or_default();
    let roots = match roots {
        Some(roots) => read(roots)?,
        None => isles_registry::host_certificates().into_iter().map(CertificateDer::from).collect(),
    };
    let anchors: Vec<TrustAnchor<'_>> =
        roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let certificate = EndEntityCert::try_from(first).map_err(|e| bad(format!("is malformed ({e})")))?;
    let usage = KeyUsage::required_if_present(CODE_SIGNING);
    let chain = certificate.verify_for_usage(
        ALL_VERIFICATION_ALGS,
        &anchors,
        &between,
        UnixTime::now(),
        usage,
        None,
        None,
    );
    chain.map_err(|e| {
        Failure::new(format!("Failed to verify container: {name} is not a trusted certificate for signing code: {e}"))
            .with_hint("name the authority with --certificate-roots, and what is between with --certificate-intermediates")
    })?;
    let key = PublicKey::from_spki(&certificate.subject_public_key_info());
    key.ok_or_else(|| bad("has a key that is neither RSA, ECDSA over P-256 or P-384, nor Ed25519".to_owned()))
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|e| Failure::because(format!("cannot read {}", path.display()), &e))?;
    let blocks = pem_blocks(&text).into_iter().filter(|(label, _)| label == "CERTIFICATE");
    Ok(blocks.map(|(_, bytes)| CertificateDer::from(bytes)).collect())
}
