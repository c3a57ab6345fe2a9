//! Keys in PEM files, as openssl and cosign have them: RSA, ECDSA over P-256 and P-384, Ed25519
//! (RFC 7468, RFC 5208, RFC 5280, RFC 5915, RFC 8017, RFC 8410).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey};

use crate::{Error, Result};

pub(crate) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT_ID: u8 = 0x06;

/// The blocks of a PEM file: what each says it is, and its bytes.
pub fn blocks(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let Some((label, after)) = after.split_once("-----") else { break };
        let Some((body, after)) = after.split_once(&format!("-----END {label}-----")) else { break };
        // Headers stand where a key is encrypted in the old way; they are not base64.
        let encoded: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        found.push((label.to_owned(), STANDARD.decode(encoded).unwrap_or_default()));
        rest = after;
    }
    found
}

/// A reader of DER that refuses to run over the end (X.690).
pub(crate) struct Der<'a>(pub &'a [u8]);

impl<'a> Der<'a> {
    /// The next element of this kind.
    pub fn element(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&[found, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (found == tag).then_some(content)
    }
}

/// A key that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// An RSAPublicKey.
    Rsa(Vec<u8>),
    /// Uncompressed points.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl PublicKey {
    /// The key in a PEM file; `name` is what messages call the file.
    pub fn from_pem(text: &str, name: &str) -> Result<PublicKey> {
        let refused = |reason: &str| Error::refused("use the public key in", name, reason);
        for (label, bytes) in blocks(text) {
            let key = match label.as_str() {
                "PUBLIC KEY" => PublicKey::from_spki(&bytes),
                "RSA PUBLIC KEY" => Some(PublicKey::Rsa(bytes)),
                label if label.ends_with("PRIVATE KEY") => return Err(refused("it is a private key")),
                "CERTIFICATE" => return Err(refused("it is a certificate")),
                _ => continue,
            };
            return key.ok_or_else(|| refused("it is neither RSA, ECDSA over P-256 or P-384, nor Ed25519"));
        }
        Err(refused("there is none in PEM form"))
    }

    /// From a SubjectPublicKeyInfo.
    pub fn from_spki(bytes: &[u8]) -> Option<PublicKey> {
        let mut info = Der(Der(bytes).element(SEQUENCE)?);
        let mut algorithm = Der(info.element(SEQUENCE)?);
        let id = algorithm.element(OBJECT_ID)?;
        let (&unused, key) = info.element(BIT_STRING)?.split_first()?;
        let key = key.to_vec();
        match id {
            _ if unused != 0 => None,
            RSA => Some(PublicKey::Rsa(key)),
            ED25519 => Some(PublicKey::Ed25519(key)),
            EC => match algorithm.element(OBJECT_ID)? {
                P256 => Some(PublicKey::P256(key)),
                P384 => Some(PublicKey::P384(key)),
                _ => None,
            },
            _ => None,
        }
    }

    pub fn verifies(&self, message: &[u8], value: &[u8]) -> bool {
        let algorithms: &[&'static dyn signature::VerificationAlgorithm] = match self {
            PublicKey::Rsa(_) => &[&signature::RSA_PKCS1_2048_8192_SHA256],
            PublicKey::P256(_) => &[&signature::ECDSA_P256_SHA256_ASN1],
            PublicKey::P384(_) => &[&signature::ECDSA_P384_SHA256_ASN1, &signature::ECDSA_P384_SHA384_ASN1],
            PublicKey::Ed25519(_) => &[&signature::ED25519],
        };
        let (PublicKey::Rsa(key) | PublicKey::P256(key) | PublicKey::P384(key) | PublicKey::Ed25519(key)) =
            self;
        algorithms.iter().any(|a| UnparsedPublicKey::new(*a, key).verify(message, value).is_ok())
    }

    /// What a signature calls its key: the hash that `ssh-keygen -l` prints of it.
    pub fn id(&self) -> String {
        let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
        let curve = |name: &str, point: &[u8]| {
            [string(format!("ecdsa-sha2-{name}").as_bytes()), string(name.as_bytes()), string(point)].concat()
        };
        let wire = match self {
            PublicKey::Rsa(key) => {
                let mut parts = Der(Der(key).element(SEQUENCE).unwrap_or_default());
                let n = parts.element(INTEGER).unwrap_or_default();
                let e = parts.element(INTEGER).unwrap_or_default();
                [string(b"ssh-rsa"), string(e), string(n)].concat()
            }
            PublicKey::P256(point) => curve("nistp256", point),
            PublicKey::P384(point) => curve("nistp384", point),
            PublicKey::Ed25519(key) => [string(b"ssh-ed25519"), string(key)].concat(),
        };
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, &wire)))
    }
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A key that signs.
pub struct PrivateKey(Pair);

impl PrivateKey {
    /// The key in a PEM file; `name` is what messages call the file.
    pub fn from_pem(text: &str, name: &str) -> Result<PrivateKey> {
        let refused = |reason: &str| Error::refused("use the private key in", name, reason);
        if text.contains("ENCRYPTED") {
            return Err(refused("it is locked with a passphrase, which is not supported"));
        }
        for (label, bytes) in blocks(text) {
            let pair = match label.as_str() {
                "PRIVATE KEY" => pkcs8(&bytes),
                "RSA PRIVATE KEY" => RsaKeyPair::from_der(&bytes).ok().map(Pair::Rsa),
                "EC PRIVATE KEY" => sec1(&bytes),
                "PUBLIC KEY" | "RSA PUBLIC KEY" => return Err(refused("it is a public key")),
                _ => continue,
            };
            let unfit = "it is neither RSA of 2048 bits or more, ECDSA over P-256, nor Ed25519";
            return pair.map(PrivateKey).ok_or_else(|| refused(unfit));
        }
        Err(refused("there is none in PEM form"))
    }

    pub fn public(&self) -> PublicKey {
        match &self.0 {
            Pair::Rsa(pair) => PublicKey::Rsa(pair.public_key().as_ref().to_vec()),
            Pair::P256(pair) => PublicKey::P256(pair.public_key().as_ref().to_vec()),
            Pair::Ed25519(pair) => PublicKey::Ed25519(pair.public_key().as_ref().to_vec()),
        }
    }

    /// A signature over `message`, where the kernel gives the random numbers that it takes.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match &self.0 {
            Pair::Rsa(pair) => {
                let mut value = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut value).ok()?;
                Some(value)
            }
            Pair::P256(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Pair::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
        }
    }
}

fn pkcs8(bytes: &[u8]) -> Option<Pair> {
    let mut info = Der(Der(bytes).element(SEQUENCE)?);
    info.element(INTEGER)?;
    let mut algorithm = Der(info.element(SEQUENCE)?);
    match algorithm.element(OBJECT_ID)? {
        RSA => RsaKeyPair::from_pkcs8(bytes).ok().map(Pair::Rsa),
        ED25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).ok().map(Pair::Ed25519),
        EC if algorithm.element(OBJECT_ID)? == P256 => sec1(info.element(OCTET_STRING)?),
        _ => None,
    }
}

/// An ECPrivateKey, which must say what its public key is.
fn sec1(bytes: &[u8]) -> Option<Pair> {
    let mut parts = Der(Der(bytes).element(SEQUENCE)?);
    parts.element(INTEGER)?;
    let secret = parts.element(OCTET_STRING)?;
    let mut point = None;
    while let Some(tag) = parts.0.first().copied() {
        let content = parts.element(tag)?;
        if tag == 0xa1 {
            point = Der(content).element(BIT_STRING)?.get(1..);
        }
    }
    let random = SystemRandom::new();
    let algorithm = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, secret, point?, &random).ok().map(Pair::P256)
}
