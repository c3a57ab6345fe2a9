//! The key of an encrypted partition, in an object of its own that only whoever has an RSA key can read: RSAES-OAEP with
//! SHA-256 (RFC 8017, section 7.1), as Apptainer has it in a message in PEM form. A key that is too long for one
//! message is cut into several, one after the other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

use crate::descriptor::{Extra, Kind, Link, MessageFormat, MessageKind};
use crate::pem::{BIT_STRING, Der, INTEGER, OBJECT_ID, OCTET_STRING, RSA, SEQUENCE, blocks};
use crate::read::Sif;
use crate::{Error, Result};

/// Bytes of a SHA-256.
const HASH: usize = 32;
/// Bytes of a modulus: what a message leaves room in, and what nobody waits for.
const SMALLEST: usize = 128;
const LARGEST: usize = 1024;
/// Shorter ones are read, but nothing is given to them.
const SMALLEST_TO_WRAP: usize = 256;
/// A message is some hundred bytes.
const LONGEST_MESSAGE: u64 = 64 << 10;

/// A number to count by, as long as RSA keys are.
struct Modulus {
    bytes: Vec<u8>,
    params: BoxedMontyParams,
}

impl Modulus {
    fn new(bytes: &[u8]) -> Option<Modulus> {
        let bytes = unsigned(bytes);
        if !(SMALLEST..=LARGEST).contains(&bytes.len()) {
            return None;
        }
        let number = BoxedUint::from_be_slice(bytes, bytes.len() as u32 * 8).ok()?;
        let odd: Option<Odd<BoxedUint>> = Odd::new(number).into();
        Some(Modulus { bytes: bytes.to_vec(), params: BoxedMontyParams::new(odd?) })
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    /// `base` to the power of `exponent`; the time it takes tells nothing of either. `None` where `base` is no number
    /// below the modulus.
    fn power(&self, base: &[u8], exponent: &BoxedUint) -> Option<Vec<u8>> {
        if base.len() != self.len() || base >= self.bytes.as_slice() {
            return None;
        }
        let base = BoxedUint::from_be_slice(base, self.len() as u32 * 8).ok()?;
        let power = BoxedMontyForm::new(base, &self.params).pow(exponent).retrieve().to_be_bytes();
        Some(power[power.len() - self.len()..].to_vec())
    }
}

/// Without the zeros that a positive number begins with in DER.
fn unsigned(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|b| **b == 0).count()..]
}

fn exponent(bytes: &[u8]) -> Option<BoxedUint> {
    let bytes = unsigned(bytes);
    if bytes.is_empty() || bytes.len() > LARGEST {
        return None;
    }
    BoxedUint::from_be_slice(bytes, bytes.len() as u32 * 8).ok()
}

/// The private RSA key that a partition's key is unwrapped with.
pub struct UnwrappingKey {
    modulus: Modulus,
    exponent: BoxedUint,
}

impl std::fmt::Debug for UnwrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnwrappingKey of {} bytes", self.modulus.len())
    }
}

impl UnwrappingKey {
    /// The key in a PEM file; `name` is what messages call the file.
    pub fn from_pem(text: &str, name: &str) -> Result<UnwrappingKey> {
        let refused = |reason: &str| Error::refused("use the private key in", name, reason);
        if text.contains("ENCRYPTED") {
            return Err(refused("it is locked with a passphrase, which is not supported"));
        }
        for (label, bytes) in blocks(text) {
            let key = match label.as_str() {
                "RSA PRIVATE KEY" => UnwrappingKey::from_pkcs1(&bytes),
                "PRIVATE KEY" => pkcs8(&bytes).and_then(UnwrappingKey::from_pkcs1),
                "PUBLIC KEY" | "RSA PUBLIC KEY" => {
                    return Err(refused("it is a public key, which encrypts; the private one decrypts"));
                }
                _ => continue,
            };
            return key.ok_or_else(|| refused("it is no RSA key of 1024 to 8192 bits"));
        }
        Err(refused("there is none in PEM form"))
    }

    /// From an RSAPrivateKey (RFC 8017, A.1.2).
    fn from_pkcs1(bytes: &[u8]) -> Option<UnwrappingKey> {
        let mut parts = Der(Der(bytes).element(SEQUENCE)?);
        parts.element(INTEGER)?;
        let modulus = Modulus::new(parts.element(INTEGER)?)?;
        parts.element(INTEGER)?;
        Some(UnwrappingKey { modulus, exponent: exponent(parts.element(INTEGER)?)? })
    }

    /// The key of the primary partition.
    ///
    /// # Errors
    /// [`Error::Missing`] where the file has none for an RSA key: it was encrypted with a passphrase.
    pub fn unwrap(&self, sif: &Sif) -> Result<Vec<u8>> {
        let missing = || Error::Missing {
            object: sif.name().to_owned(),
            what: "key of its root file system for an RSA key".to_owned(),
        };
        let primary = sif.primary().ok_or_else(missing)?;
        let is_for = |extra: &Extra| {
            let (format, kind) = (MessageFormat::Pem, MessageKind::RsaOaep);
            *extra == Extra::CryptoMessage { format, kind }
        };
        let object = sif
            .of_kind(Kind::CryptoMessage)
            .find(|object| object.link == Link::Object(primary.id) && is_for(&object.extra))
            .ok_or_else(missing)?;
        let text = sif.read(object, LONGEST_MESSAGE)?;
        let malformed = || Error::malformed(sif.name(), "the key of its root file system is no message");
        let (_, message) =
            blocks(&String::from_utf8_lossy(&text)).into_iter().next().ok_or_else(malformed)?;
        let wrapped = Der(&message).element(OCTET_STRING).ok_or_else(malformed)?;
        self.open(wrapped).ok_or_else(|| {
            Error::refused("decrypt the key of", sif.name(), "it was encrypted for another RSA key")
        })
    }

    fn open(&self, wrapped: &[u8]) -> Option<Vec<u8>> {
        let size = self.modulus.len();
        if wrapped.is_empty() || !wrapped.len().is_multiple_of(size) {
            return None;
        }
        let mut key = Vec::new();
        for part in wrapped.chunks_exact(size) {
            let mut padded = self.modulus.power(part, &self.exponent)?;
            let (first, rest) = padded.split_first_mut()?;
            let (seed, data) = rest.split_at_mut_checked(HASH)?;
            mask(seed, data);
            mask(data, seed);
            let (hash, text) = data.split_at_checked(HASH)?;
            let start = text.iter().position(|b| *b != 0)?;
            if *first != 0 || hash != Sha256::digest([]).as_slice() || text[start] != 1 {
                return None;
            }
            key.extend_from_slice(&text[start + 1..]);
        }
        Some(key)
    }
}

/// The RSA key from a PrivateKeyInfo (RFC 5208).
fn pkcs8(bytes: &[u8]) -> Option<&[u8]> {
    let mut info = Der(Der(bytes).element(SEQUENCE)?);
    info.element(INTEGER)?;
    let id = Der(info.element(SEQUENCE)?).element(OBJECT_ID)?;
    (id == RSA).then(|| info.element(OCTET_STRING))?
}

/// The public RSA key that a partition's key is wrapped for.
pub struct WrappingKey {
    modulus: Modulus,
    exponent: BoxedUint,
}

impl std::fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WrappingKey of {} bytes", self.modulus.len())
    }
}

impl WrappingKey {
    /// The key in a PEM file; `name` is what messages call the file.
    pub fn from_pem(text: &str, name: &str) -> Result<WrappingKey> {
        let refused = |reason: &str| Error::refused("use the public key in", name, reason);
        for (label, bytes) in blocks(text) {
            let key = match label.as_str() {
                "RSA PUBLIC KEY" => WrappingKey::from_pkcs1(&bytes),
                "PUBLIC KEY" => spki(&bytes).and_then(WrappingKey::from_pkcs1),
                label if label.ends_with("PRIVATE KEY") => {
                    return Err(refused("it is a private key, which decrypts; the public one encrypts"));
                }
                "CERTIFICATE" => return Err(refused("it is a certificate")),
                _ => continue,
            };
            return key.ok_or_else(|| refused("it is no RSA key of 2048 to 8192 bits"));
        }
        Err(refused("there is none in PEM form"))
    }

    /// From an RSAPublicKey (RFC 8017, A.1.1).
    fn from_pkcs1(bytes: &[u8]) -> Option<WrappingKey> {
        let mut parts = Der(Der(bytes).element(SEQUENCE)?);
        let modulus = Modulus::new(parts.element(INTEGER)?).filter(|m| m.len() >= SMALLEST_TO_WRAP)?;
        Some(WrappingKey { modulus, exponent: exponent(parts.element(INTEGER)?)? })
    }

    /// The message that has the key in it; `None` where the kernel gives no random numbers.
    pub fn wrap(&self, key: &[u8]) -> Option<String> {
        let size = self.modulus.len();
        let mut wrapped = Vec::new();
        for text in key.chunks(size - 2 * HASH - 2) {
            let mut padded = vec![0; size];
            let (seed, data) = padded[1..].split_at_mut(HASH);
            SystemRandom::new().fill(seed).ok()?;
            data[..HASH].copy_from_slice(&Sha256::digest([]));
            let start = data.len() - text.len();
            data[start - 1] = 1;
            data[start..].copy_from_slice(text);
            mask(data, seed);
            mask(seed, data);
            wrapped.extend(self.modulus.power(&padded, &self.exponent)?);
        }
        Some(pem(&octet_string(&wrapped)))
    }
}

/// In DER: a length takes as few bytes as it can (X.690, 10.1).
fn octet_string(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = match content.len() {
        0..0x80 => &length[length.len() - 1..],
        _ => unsigned(&length),
    };
    let long = [0x80 | length.len() as u8];
    let head: &[u8] = if content.len() < 0x80 { &[] } else { &long };
    [&[OCTET_STRING], head, length, content].concat()
}

/// The RSA key from a SubjectPublicKeyInfo (RFC 5280).
fn spki(bytes: &[u8]) -> Option<&[u8]> {
    let mut info = Der(Der(bytes).element(SEQUENCE)?);
    let id = Der(info.element(SEQUENCE)?).element(OBJECT_ID)?;
    let (unused, key) = info.element(BIT_STRING)?.split_first()?;
    (id == RSA && *unused == 0).then_some(key)
}

/// MGF1 with SHA-256 (RFC 8017, B.2.1), laid over `data`.
fn mask(data: &mut [u8], seed: &[u8]) {
    for (n, part) in data.chunks_mut(HASH).enumerate() {
        let hash = Sha256::new().chain_update(seed).chain_update((n as u32).to_be_bytes()).finalize();
        part.iter_mut().zip(hash).for_each(|(byte, with)| *byte ^= with);
    }
}

/// A block of PEM, of the label that Apptainer gives such messages (RFC 7468).
fn pem(bytes: &[u8]) -> String {
    const LINE: usize = 64;
    let encoded = STANDARD.encode(bytes);
    let lines: Vec<&str> =
        (0..encoded.len()).step_by(LINE).map(|at| &encoded[at..(at + LINE).min(encoded.len())]).collect();
    format!("-----BEGIN MESSAGE-----\n{}\n-----END MESSAGE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of `openssl genrsa`, in the forms that it writes.
    const PRIVATE_PKCS8: &str = include_str!("../tests/keys/rsa.pem");
    const PRIVATE_PKCS1: &str = include_str!("../tests/keys/rsa-pkcs1.pem");
    const PUBLIC_SPKI: &str = include_str!("../tests/keys/rsa-public.pem");
    const PUBLIC_PKCS1: &str = include_str!("../tests/keys/rsa-public-pkcs1.pem");
    /// 64 bytes of `k`, encrypted with `openssl pkeyutl -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256`.
    const WRAPPED: &[u8] = include_bytes!("../tests/keys/wrapped");

    #[test]
    fn keys_are_wrapped_and_unwrapped() {
        for private in [PRIVATE_PKCS1, PRIVATE_PKCS8] {
            let private = UnwrappingKey::from_pem(private, "x").unwrap();
            assert_eq!(private.open(WRAPPED).unwrap(), [b'k'; 64]);
            for public in [PUBLIC_PKCS1, PUBLIC_SPKI] {
                let public = WrappingKey::from_pem(public, "x").unwrap();
                for length in [0, 1, 64, 190, 191, 500] {
                    let key: Vec<u8> = (0..length).map(|n| n as u8).collect();
                    let (label, message) = blocks(&public.wrap(&key).unwrap()).remove(0);
                    assert_eq!(label, "MESSAGE");
                    let wrapped = Der(&message).element(OCTET_STRING).unwrap();
                    // Of nothing there is no message.
                    let expected = (length > 0).then_some(key);
                    assert_eq!(private.open(wrapped), expected, "{length}");
                }
            }
            for at in [0, 1, 100, 255] {
                let mut changed = WRAPPED.to_vec();
                changed[at] ^= 1;
                assert_eq!(private.open(&changed), None, "{at}");
            }
            assert_eq!(private.open(&WRAPPED[..255]), None);
            assert_eq!(private.open(&[0xff; 256]), None, "no number below the modulus");
        }
    }

    #[test]
    fn keys_that_are_refused() {
        for (text, word) in [
            (PUBLIC_SPKI, "it is a public key"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", "locked with a passphrase"),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "no RSA key"),
            ("", "none in PEM form"),
        ] {
            let error = UnwrappingKey::from_pem(text, "k.pem").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("k.pem"), "{error}");
        }
        for (text, word) in [
            (PRIVATE_PKCS1, "it is a private key"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no RSA key"),
            ("text", "none in PEM form"),
        ] {
            let error = WrappingKey::from_pem(text, "k.pem").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("k.pem"), "{error}");
        }
    }
}
