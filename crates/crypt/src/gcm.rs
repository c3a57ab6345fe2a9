//! AES-256-GCM with initial values of 16 bytes (NIST SP 800-38D), which gocryptfs has and `ring` has not.

use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes256, Block};
use ghash::GHash;
use ghash::universal_hash::UniversalHash as _;

/// Bytes of a tag, and of an initial value.
pub(crate) const TAG: usize = 16;
const GROUP: usize = 32;

#[derive(Clone)]
pub(crate) struct Gcm {
    aes: Aes256,
    hash: GHash,
}

impl std::fmt::Debug for Gcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gcm")
    }
}

impl Gcm {
    pub fn new(key: &[u8; 32]) -> Gcm {
        let aes = Aes256::new(key.into());
        let mut h = Block::default();
        aes.encrypt_block(&mut h);
        Gcm { aes, hash: GHash::new(&h) }
    }

    /// Decrypts in place; whether this is what was encrypted.
    #[must_use]
    pub fn open(&self, nonce: &[u8; 16], about: &[u8], data: &mut [u8], tag: &[u8; TAG]) -> bool {
        let start = self.start(nonce);
        // It tells whoever tries at most which file they have damaged, but costs nothing.
        let differs = self.tag(&start, about, data).iter().zip(tag).fold(0, |all, (a, b)| all | a ^ b);
        if differs != 0 {
            return false;
        }
        self.stream(&start, data);
        true
    }

    /// Encrypts in place.
    pub fn seal(&self, nonce: &[u8; 16], about: &[u8], data: &mut [u8]) -> [u8; TAG] {
        let start = self.start(nonce);
        self.stream(&start, data);
        self.tag(&start, about, data)
    }

    /// The first counter block (7.1, step 2, for values that have not 96 bits).
    fn start(&self, nonce: &[u8; 16]) -> Block {
        let mut hash = self.hash.clone();
        let mut length = Block::default();
        length[8..].copy_from_slice(&128u64.to_be_bytes());
        hash.update(&[(*nonce).into(), length]);
        hash.finalize()
    }

    fn tag(&self, start: &Block, about: &[u8], data: &[u8]) -> [u8; TAG] {
        let mut hash = self.hash.clone();
        hash.update_padded(about);
        hash.update_padded(data);
        let mut lengths = Block::default();
        lengths[..8].copy_from_slice(&(about.len() as u64 * 8).to_be_bytes());
        lengths[8..].copy_from_slice(&(data.len() as u64 * 8).to_be_bytes());
        hash.update(&[lengths]);
        let mut mask = *start;
        self.aes.encrypt_block(&mut mask);
        let tag: [u8; TAG] = hash.finalize().into();
        std::array::from_fn(|n| tag[n] ^ mask[n])
    }

    fn stream(&self, start: &Block, data: &mut [u8]) {
        let mut counter = u32::from_be_bytes([start[12], start[13], start[14], start[15]]);
        for part in data.chunks_mut(GROUP * 16) {
            let mut keys = [*start; GROUP];
            for key in &mut keys {
                counter = counter.wrapping_add(1);
                key[12..].copy_from_slice(&counter.to_be_bytes());
            }
            let keys = &mut keys[..part.len().div_ceil(16)];
            self.aes.encrypt_blocks(keys);
            for (bytes, key) in part.chunks_mut(16).zip(keys) {
                bytes.iter_mut().zip(key.iter()).for_each(|(byte, key)| *byte ^= key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with Python's `cryptography`: key, initial value, what is said about it, text, result with its tag.
    #[test]
    fn what_others_encrypt() {
        let gcm = Gcm::new(&std::array::from_fn(|n| n as u8));
        let nonce = std::array::from_fn(|n| 100 + n as u8);
        for (about, length, ends) in CASES {
            let plain: Vec<u8> = (0..*length).map(|n| (n % 251) as u8).collect();
            let mut data = plain.clone();
            let tag = gcm.seal(&nonce, about.as_bytes(), &mut data);
            let text: String = tag.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(text, *ends, "{length} bytes");
            assert!(gcm.open(&nonce, about.as_bytes(), &mut data, &tag));
            assert_eq!(data, plain);
            let mut wrong = tag;
            wrong[15] ^= 1;
            assert!(!gcm.open(&nonce, about.as_bytes(), &mut data, &wrong));
            assert!(!gcm.open(&nonce, b"other", &mut data, &tag));
        }
    }

    const CASES: &[(&str, usize, &str)] = &[
        ("", 0, "8cdb05afd6965abaee9c833e43d04b1c"),
        ("about", 1, "702cd5875d0157fb9a45b48d5c3b6530"),
        ("some words about it", 16, "5664db695cc650609e203f8e66118202"),
        ("x", 4096, "19d54601bcf99f73688ca1d7c281c7a5"),
        ("", 4097, "6e1002bdade16a0f3efe2020f5c3285a"),
    ];
}
