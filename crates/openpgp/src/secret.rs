//! Secret keys: opened with their passphrase, locked with one, and signed with (RFC 9580, sections 3.7, 5.5.3, 5.2.4).

use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};

use crate::Error;
use crate::bytes::{Bytes, Malformed, integer, left_pad};
use crate::cleartext;
use crate::key::{ED25519_OID, Fingerprint, Key};
use crate::signature::TYPE_TEXT;

/// How keys are locked here: AES-256, under a passphrase that is hashed with SHA-256, 16 MiB of it.
const AES256: u8 = 9;
const SHA256: u8 = 8;
const COUNT: u8 = 0xe0;
const BLOCK: usize = 16;

/// How many numbers follow the public ones, by algorithm.
fn secret_numbers(algorithm: u8) -> usize {
    if matches!(algorithm, 1..=3) { 4 } else { 1 }
}

/// Where the public part of a key's packet ends; `None` for algorithms that are not known.
pub fn public_length(body: &[u8]) -> Option<usize> {
    let mut bytes = Bytes(body);
    let walked: Result<Option<()>, Malformed> = (|| {
        if bytes.byte()? != 4 {
            return Ok(None);
        }
        bytes.u32()?;
        let algorithm = bytes.byte()?;
        if matches!(algorithm, 18 | 19 | 22) {
            let length = usize::from(bytes.byte()?);
            bytes.take(length)?;
        }
        let (numbers, plain) = match algorithm {
            1..=3 => (2, 0),
            16 => (3, 0),
            17 => (4, 0),
            18 | 19 | 22 => (1, 0),
            25 | 27 => (0, 32),
            _ => return Ok(None),
        };
        for _ in 0..numbers {
            bytes.integer()?;
        }
        bytes.take(plain)?;
        if algorithm == 18 {
            let length = usize::from(bytes.byte()?);
            bytes.take(length)?;
        }
        Ok(Some(()))
    })();
    walked.ok().flatten()?;
    Some(body.len() - bytes.0.len())
}

/// The size of a public key's main number.
pub fn bits(public: &[u8]) -> usize {
    match public.get(5) {
        Some(18 | 19 | 22 | 25 | 27) => 256,
        _ => public.get(6..8).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]]))),
    }
}

/// Whether the secret part of a packet's body is encrypted.
pub fn is_locked(body: &[u8]) -> bool {
    public_length(body).and_then(|at| body.get(at)).is_some_and(|usage| *usage != 0)
}

/// The body of a packet with a new key.
pub fn ed25519(seed: &[u8; 32], now: u64) -> Result<Vec<u8>, Error> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| Error::Random)?;
    let mut body = vec![4];
    body.extend_from_slice(&(now as u32).to_be_bytes());
    body.push(22);
    body.push(ED25519_OID.len() as u8);
    body.extend_from_slice(ED25519_OID);
    body.extend(integer(&[&[0x40], pair.public_key().as_ref()].concat()));
    let secret = integer(seed);
    let checksum = sum(&secret);
    body.push(0);
    body.extend(secret);
    body.extend_from_slice(&checksum);
    Ok(body)
}

/// The same with an RSA key of `bits` bits.
pub fn rsa(bits: u32, now: u64) -> Result<Vec<u8>, Error> {
    let numbers = crate::rsa::generate(bits)?;
    let mut body = vec![4];
    body.extend_from_slice(&(now as u32).to_be_bytes());
    body.push(1);
    body.extend(integer(&numbers.n));
    body.extend(integer(&numbers.e));
    let secret = [&numbers.d, &numbers.p, &numbers.q, &numbers.u].map(|number| integer(number)).concat();
    let checksum = sum(&secret);
    body.push(0);
    body.extend(secret);
    body.extend_from_slice(&checksum);
    Ok(body)
}

fn sum(bytes: &[u8]) -> [u8; 2] {
    bytes.iter().fold(0u16, |sum, b| sum.wrapping_add(u16::from(*b))).to_be_bytes()
}

/// The same body with its secret part in the open.
pub fn unlock(body: &[u8], passphrase: Option<&str>) -> Result<Vec<u8>, Error> {
    let unsupported = || Error::Unsupported("the algorithm of the key".to_owned());
    let at = public_length(body).ok_or_else(unsupported)?;
    let mut bytes = Bytes(&body[at..]);
    let usage = bytes.byte()?;
    if usage == 0 {
        return Ok(body.to_vec());
    }
    if !matches!(usage, 254 | 255) {
        return Err(Error::Unsupported(format!("a key that is locked in way {usage}")));
    }
    let cipher = bytes.byte()?;
    let derivation = Derivation::parse(&mut bytes)?;
    let key_length = key_length(cipher)?;
    let passphrase = passphrase.ok_or(Error::Locked)?;
    let vector: [u8; BLOCK] = bytes.array()?;
    let key = derivation.key(passphrase.as_bytes(), key_length)?;
    let plain = cfb(&key, vector, bytes.0, false)?;
    let check = if usage == 254 { 20 } else { 2 };
    let (secret, claimed) = plain.split_at(plain.len().checked_sub(check).ok_or(Error::WrongPassphrase)?);
    let is_right = match usage {
        254 => digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, secret).as_ref() == claimed,
        _ => sum(secret) == *claimed,
    };
    if !is_right {
        return Err(Error::WrongPassphrase);
    }
    let mut open = body[..at].to_vec();
    open.push(0);
    open.extend_from_slice(secret);
    open.extend_from_slice(&sum(secret));
    Ok(open)
}

/// Encrypts the secret part of a body that has it in the open.
pub fn lock(open: &[u8], passphrase: &str) -> Result<Vec<u8>, Error> {
    let at = public_length(open).ok_or(Error::NoSecret)?;
    let secret = open.get(at + 1..open.len().saturating_sub(2)).ok_or(Error::NoSecret)?;
    let mut random = [0; 8 + BLOCK];
    SystemRandom::new().fill(&mut random).map_err(|_| Error::Random)?;
    let (salt, vector) = random.split_at(8);
    let derivation = Derivation { hash: SHA256, salt: salt.to_vec(), octets: octets(COUNT) };
    let key = derivation.key(passphrase.as_bytes(), 32)?;
    let check = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, secret);
    let plain = [secret, check.as_ref()].concat();
    let mut start = [0; BLOCK];
    start.copy_from_slice(vector);
    let mut body = open[..at].to_vec();
    body.extend_from_slice(&[254, AES256, 3, SHA256]);
    body.extend_from_slice(salt);
    body.push(COUNT);
    body.extend_from_slice(vector);
    body.extend(cfb(&key, start, &plain, true)?);
    Ok(body)
}

fn key_length(cipher: u8) -> Result<usize, Error> {
    match cipher {
        7 => Ok(16),
        8 => Ok(24),
        AES256 => Ok(32),
        other => {
            Err(Error::Unsupported(format!("a key that is locked with cipher {other}, which is not AES,")))
        }
    }
}

/// How a passphrase becomes a key.
struct Derivation {
    hash: u8,
    salt: Vec<u8>,
    /// So many bytes of salt and passphrase, over and over, are hashed; both once at least.
    octets: usize,
}

fn octets(coded: u8) -> usize {
    (16 + usize::from(coded & 15)) << ((coded >> 4) + 6)
}

impl Derivation {
    fn parse(bytes: &mut Bytes<'_>) -> Result<Derivation, Error> {
        let kind = bytes.byte()?;
        let hash = bytes.byte()?;
        Ok(match kind {
            0 => Derivation { hash, salt: Vec::new(), octets: 0 },
            1 => Derivation { hash, salt: bytes.take(8)?.to_vec(), octets: 0 },
            3 => Derivation { hash, salt: bytes.take(8)?.to_vec(), octets: octets(bytes.byte()?) },
            101 => return Err(Error::NoSecret),
            other => return Err(Error::Unsupported(format!("a passphrase that is hashed in way {other}"))),
        })
    }

    fn key(&self, passphrase: &[u8], length: usize) -> Result<Vec<u8>, Error> {
        let algorithm = match self.hash {
            2 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            8 => &digest::SHA256,
            9 => &digest::SHA384,
            10 => &digest::SHA512,
            other => {
                return Err(Error::Unsupported(format!("a passphrase that is hashed with function {other}")));
            }
        };
        let unit = [self.salt.as_slice(), passphrase].concat();
        let total = self.octets.max(unit.len());
        let mut key = Vec::new();
        let mut round = 0;
        while key.len() < length {
            let mut context = digest::Context::new(algorithm);
            context.update(&vec![0; round]);
            let mut left = total;
            // Long pieces, because each has a cost of its own.
            let piece = unit.repeat((64 << 10) / unit.len().max(1) + 1);
            while left > 0 {
                let n = left.min(piece.len());
                context.update(&piece[..n]);
                left -= n;
            }
            key.extend_from_slice(context.finish().as_ref());
            round += 1;
        }
        key.truncate(length);
        Ok(key)
    }
}

/// Encrypts a block in place.
type Cipher = Box<dyn Fn(&mut [u8; BLOCK])>;

/// AES in cipher feedback mode, both ways.
fn cfb(key: &[u8], vector: [u8; BLOCK], data: &[u8], encrypt: bool) -> Result<Vec<u8>, Error> {
    let wrong = |_| Error::Unsupported("a key of this length".to_owned());
    let cipher: Cipher = match key.len() {
        16 => {
            let aes = aes::Aes128::new_from_slice(key).map_err(wrong)?;
            Box::new(move |block| aes.encrypt_block(block.into()))
        }
        24 => {
            let aes = aes::Aes192::new_from_slice(key).map_err(wrong)?;
            Box::new(move |block| aes.encrypt_block(block.into()))
        }
        _ => {
            let aes = aes::Aes256::new_from_slice(key).map_err(wrong)?;
            Box::new(move |block| aes.encrypt_block(block.into()))
        }
    };
    let mut feedback = vector;
    let mut out = Vec::with_capacity(data.len());
    for chunk in data.chunks(BLOCK) {
        cipher(&mut feedback);
        let start = out.len();
        out.extend(chunk.iter().zip(feedback).map(|(byte, mask)| byte ^ mask));
        let coded = if encrypt { &out[start..] } else { chunk };
        feedback[..coded.len()].copy_from_slice(coded);
    }
    Ok(out)
}

enum Pair {
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A secret key that is open.
pub struct SigningKey {
    pair: Pair,
    algorithm: u8,
    pub fingerprint: Fingerprint,
}

impl SigningKey {
    /// From the body of a secret key's packet.
    pub(crate) fn open(body: &[u8], passphrase: Option<&str>) -> Result<SigningKey, Error> {
        let open = unlock(body, passphrase)?;
        let at = public_length(&open).ok_or(Error::NoSecret)?;
        let public = &open[..at];
        let Some(key) = Key::parse(public)? else {
            let algorithm = public.get(5).copied().unwrap_or(0);
            return Err(Error::Unsupported(format!("signing with keys of algorithm {algorithm}")));
        };
        let algorithm = public[5];
        let mut bytes = Bytes(&open[at + 1..]);
        let pair = if algorithm == 27 {
            ed25519_pair(bytes.take(32)?, &key)?
        } else {
            let mut numbers = Vec::new();
            for _ in 0..secret_numbers(algorithm) {
                numbers.push(bytes.integer()?);
            }
            match numbers.as_slice() {
                [seed] => ed25519_pair(&left_pad(seed, 32).ok_or(Malformed("its seed is too long"))?, &key)?,
                [d, p, q, u] => rsa_pair(&key, d, p, q, u)?,
                _ => return Err(Error::NoSecret),
            }
        };
        Ok(SigningKey { pair, algorithm, fingerprint: key.fingerprint })
    }

    /// The body of a signature packet over `data`, with facts beyond who signed and when (`now`, seconds since 1970):
    /// each is a subpacket's type and content.
    pub(crate) fn sign(&self, kind: u8, facts: &[&[u8]], data: &[u8], now: u64) -> Vec<u8> {
        let mut area = Vec::new();
        let mut put = |tag: u8, content: &[u8]| {
            area.push(content.len() as u8 + 1);
            area.push(tag);
            area.extend_from_slice(content);
        };
        put(0x80 | 2, &(now as u32).to_be_bytes());
        put(0x80 | 16, &self.fingerprint[12..]);
        put(33, &[&[4], self.fingerprint.as_slice()].concat());
        for fact in facts {
            put(fact[0], &fact[1..]);
        }
        let mut hashed = vec![4, kind, self.algorithm, SHA256];
        hashed.extend_from_slice(&(area.len() as u16).to_be_bytes());
        hashed.extend(area);
        let mut message = [data, &hashed, &[4, 0xff]].concat();
        message.extend_from_slice(&(hashed.len() as u32).to_be_bytes());
        let hash = digest::digest(&digest::SHA256, &message);
        let mut body = hashed;
        body.extend_from_slice(&[0, 0]);
        body.extend_from_slice(&hash.as_ref()[..2]);
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut value = vec![0; pair.public().modulus_len()];
                // It fails for buffers of the wrong length only.
                let _ = pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &message, &mut value);
                body.extend(integer(&value));
            }
            Pair::Ed25519(pair) => {
                let value = pair.sign(hash.as_ref());
                let (r, s) = value.as_ref().split_at(32);
                if self.algorithm == 27 {
                    body.extend_from_slice(value.as_ref());
                } else {
                    body.extend(integer(r));
                    body.extend(integer(s));
                }
            }
        }
        body
    }

    /// A text with this key's signature below it. Its lines end with LF and have no blanks before that.
    pub fn clear_sign(&self, text: &str, now: u64) -> String {
        cleartext::compose(text, "SHA256", |canonical| {
            crate::bytes::packet(crate::key::TAG_SIGNATURE, &self.sign(TYPE_TEXT, &[], canonical, now))
        })
    }
}

fn ed25519_pair(seed: &[u8], key: &Key) -> Result<Pair, Error> {
    let public = match &key.material {
        crate::key::Material::Ed25519(public) => public,
        crate::key::Material::Rsa { .. } => return Err(Malformed("its parts are of two algorithms").into()),
    };
    let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public);
    Ok(Pair::Ed25519(pair.map_err(|_| Malformed("its secret part is not of its public part"))?))
}

fn rsa_pair(key: &Key, d: &[u8], p: &[u8], q: &[u8], u: &[u8]) -> Result<Pair, Error> {
    let crate::key::Material::Rsa { n, e } = &key.material else {
        return Err(Malformed("its parts are of two algorithms").into());
    };
    // OpenPGP's p is the smaller prime and u its inverse; ring wants them the other way round.
    let (d_mod_q, d_mod_p) = (remainder(d, &minus_one(q)), remainder(d, &minus_one(p)));
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p: q,
        q: p,
        dP: &d_mod_q,
        dQ: &d_mod_p,
        qInv: u,
    };
    let pair = RsaKeyPair::from_components(&components);
    Ok(Pair::Rsa(pair.map_err(|e| Error::Unsupported(format!("this RSA key ({e})")))?))
}

/// An odd number less one.
fn minus_one(number: &[u8]) -> Vec<u8> {
    let mut less = number.to_vec();
    if let Some(last) = less.last_mut() {
        *last &= 0xfe;
    }
    less
}

/// `number` modulo `modulus`, both big-endian, bit by bit: it is done twice in the life of a key.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    let width = modulus.len() + 1;
    let modulus = left_pad(modulus, width).unwrap_or_default();
    let mut rest = vec![0u8; width];
    for byte in number {
        for bit in (0..8).rev() {
            let mut carry = byte >> bit & 1;
            for digit in rest.iter_mut().rev() {
                (*digit, carry) = (*digit << 1 | carry, *digit >> 7);
            }
            if rest >= modulus {
                let mut borrow = 0;
                for (digit, less) in rest.iter_mut().zip(&modulus).rev() {
                    let difference = i16::from(*digit) - i16::from(*less) - borrow;
                    borrow = i16::from(difference < 0);
                    *digit = difference.rem_euclid(256) as u8;
                }
            }
        }
    }
    let zeros = rest.iter().take_while(|b| **b == 0).count();
    rest[zeros..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_right() {
        for (a, b) in
            [(0u64, 7u64), (6, 7), (7, 7), (u64::MAX, 3), (u64::MAX, 0xffff_ffff), (1 << 63, 0x1_0001)]
        {
            let bytes = |n: u64| {
                let all = n.to_be_bytes();
                all[all.iter().take_while(|b| **b == 0).count()..].to_vec()
            };
            assert_eq!(remainder(&bytes(a), &bytes(b)), bytes(a % b), "{a} mod {b}");
        }
    }

    #[test]
    fn aes_in_cipher_feedback_mode() {
        // NIST SP 800-38A, F.3.13 and F.3.17, the first two blocks.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap()).collect()
        };
        let vector: [u8; 16] = std::array::from_fn(|i| i as u8);
        let plain = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        for (key, coded) in [
            (
                "2b7e151628aed2a6abf7158809cf4f3c",
                "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b",
            ),
            (
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "dc7e84bfda79164b7ecd8486985d386039ffed143b28b1c832113c6331e5407b",
            ),
        ] {
            assert_eq!(cfb(&hex(key), vector, &plain, true).unwrap(), hex(coded));
            assert_eq!(cfb(&hex(key), vector, &hex(coded), false).unwrap(), plain);
        }
    }

    #[test]
    fn a_locked_key_opens_with_its_passphrase_only() {
        let open = ed25519(&[7; 32], 1).unwrap();
        let locked = lock(&open, "open sesame").unwrap();
        assert!(is_locked(&locked) && !is_locked(&open));
        assert_eq!(unlock(&locked, Some("open sesame")).unwrap(), open);
        assert!(matches!(unlock(&locked, Some("open")), Err(Error::WrongPassphrase)));
        assert!(matches!(unlock(&locked, None), Err(Error::Locked)));
    }
}
