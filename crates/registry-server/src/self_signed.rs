//! A certificate that the server makes for itself (RFC 5280): ECDSA on P-256, for ten years, no authority,
//! since rustls takes none for a server. Clients trust it by its file.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::server::write_secret;
use crate::{Error, Result};

const YEARS: u64 = 10;
// Object identifiers, as DER has them.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// The files of the certificate for these names, made where they are missing, for other names, or unreadable.
pub fn ensure(root: &Path, names: &[String]) -> Result<(PathBuf, PathBuf)> {
    let mut all: Vec<String> = names.to_vec();
    for usual in ["localhost", "127.0.0.1", "::1"] {
        if !all.iter().any(|n| n == usual) {
            all.push(usual.to_owned());
        }
    }
    // Other names are other files, so that no process takes a certificate away from another.
    let digest = isles_store::digest_of_bytes(isles_spec::Algorithm::Sha256, all.join("\n").as_bytes());
    let folder = root.join("registry-tls");
    let (cert, key) =
        (folder.join(format!("{}.crt", digest.short())), folder.join(format!("{}.key", digest.short())));
    if cert.exists() && key.exists() {
        return Ok((cert, key));
    }
    let odd = |_| Error::config("the certificate", "a key could not be made");
    let random = SystemRandom::new();
    // A key that is there already is kept: another process may be between the two files.
    let fresh = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).map_err(odd)?;
    write_secret(&key, pem("PRIVATE KEY", fresh.as_ref()).as_bytes())?;
    let text = std::fs::read(&key).map_err(|e| Error::io("read", &key, e))?;
    let secret = {
        use rustls_pki_types::pem::PemObject;
        rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|e| Error::config(key.display(), e))?
    };
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, secret.secret_pkcs8_der(), &random)
        .map_err(|e| Error::config(key.display(), e))?;
    let made = certificate(&pair, &all, &random).map_err(odd)?;
    write_secret(&cert, pem("CERTIFICATE", &made).as_bytes())?;
    Ok((cert, key))
}

/// The SHA-256 of a certificate, as people compare it.
pub fn fingerprint(certificate: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    digest.as_ref().iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(":")
}

fn pem(label: &str, bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// An element of DER: its tag, its length, its parts.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = vec![tag];
    if length < 128 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let first = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1);
        out.push(0x80 | (bytes.len() - first) as u8);
        out.extend(&bytes[first..]);
    }
    parts.iter().for_each(|p| out.extend(*p));
    out
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, parts)
}

fn oid(bytes: &[u8]) -> Vec<u8> {
    der(0x06, &[bytes])
}

/// A time in seconds since 1970 (RFC 5280, section 4.1.2.5): two digits of the year before 2050, four from then on.
fn time(seconds: u64) -> Vec<u8> {
    let text = isles_spec::time::rfc3339(seconds as i64);
    let digits: String = text.chars().filter(char::is_ascii_digit).take(14).collect();
    if digits.as_str() < "2050" {
        der(0x17, &[format!("{}Z", &digits[2..]).as_bytes()])
    } else {
        der(0x18, &[format!("{digits}Z").as_bytes()])
    }
}

fn certificate(
    pair: &EcdsaKeyPair,
    names: &[String],
    random: &SystemRandom,
) -> std::result::Result<Vec<u8>, ring::error::Unspecified> {
    let mut serial = [0; 16];
    random.fill(&mut serial)?;
    // Positive, and without a leading zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    let algorithm = sequence(&[&oid(ECDSA_WITH_SHA256)]);
    let title = names.first().map_or("localhost", String::as_str);
    let title: String = format!("isles registry {title}").chars().take(64).collect();
    let name = sequence(&[&der(0x31, &[&sequence(&[&oid(COMMON_NAME), &der(0x0c, &[title.as_bytes()])])])]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let validity = sequence(&[&time(now - 3600), &time(now + YEARS * 365 * 86400)]);
    let key = sequence(&[
        &sequence(&[&oid(EC_PUBLIC_KEY), &oid(P256)]),
        &der(0x03, &[&[0], pair.public_key().as_ref()]),
    ]);
    let alternatives: Vec<Vec<u8>> = names
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => der(0x87, &[&ip.octets()]),
            Ok(IpAddr::V6(ip)) => der(0x87, &[&ip.octets()]),
            Err(_) => der(0x82, &[name.as_bytes()]),
        })
        .collect();
    let alternatives: Vec<&[u8]> = alternatives.iter().map(Vec::as_slice).collect();
    let extensions = der(
        0xa3,
        &[&sequence(&[
            &sequence(&[&oid(SUBJECT_ALT_NAME), &der(0x04, &[&sequence(&alternatives)])]),
            &sequence(&[&oid(EXTENDED_KEY_USAGE), &der(0x04, &[&sequence(&[&oid(SERVER_AUTH)])])]),
        ])],
    );
    let body = sequence(&[
        &der(0xa0, &[&der(0x02, &[&[2]])]),
        &der(0x02, &[&serial]),
        &algorithm,
        &name,
        &validity,
        &name,
        &key,
        &extensions,
    ]);
    let signature = pair.sign(random, &body)?;
    Ok(sequence(&[&body, &algorithm, &der(0x03, &[&[0], signature.as_ref()])]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        assert_eq!(der(4, &[&[1, 2]]), [4, 2, 1, 2]);
        assert_eq!(der(4, &[&[0; 200]])[..3], [4, 0x81, 200]);
        assert_eq!(der(4, &[&[0; 300]])[..4], [4, 0x82, 1, 44]);
    }

    #[test]
    fn times() {
        assert_eq!(time(0), [&[0x17, 13], &b"700101000000Z"[..]].concat());
        assert_eq!(time(2_524_608_000), [&[0x18, 15], &b"20500101000000Z"[..]].concat());
    }

    #[test]
    fn the_same_certificate_again() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["lab.example".to_owned(), "10.0.0.1".to_owned()];
        let first = ensure(dir.path(), &names).unwrap();
        let bytes = std::fs::read(&first.0).unwrap();
        assert_eq!(ensure(dir.path(), &names).unwrap(), first);
        assert_eq!(std::fs::read(&first.0).unwrap(), bytes);
        assert_ne!(ensure(dir.path(), &names[..1]).unwrap(), first);
        let config = crate::config::TlsConfig::Files { cert: first.0, key: first.1 };
        crate::tls::Tls::open(&config, dir.path()).unwrap();
    }
}
