//! Makes containers: a header with one slot, and the data behind it.
//!
//! cryptsetup leaves 16 MiB before the data, for slots that may come. Here it is 1 MiB, which three slots have room in.

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::header::{BINARY, CIPHER, MAGIC, SECOND_MAGIC, SMALLEST, STRIPES, at};
use crate::anti_forensic;
use crate::error::{Error, Result};
use crate::kdf::{Budget, Hash, Kdf, fill_random, random};
use crate::xts::{UNIT, Xts};

/// Bytes of the volume's key, which is two keys of AES-256.
const KEY: usize = 64;
/// Where the slot is, behind both copies of the header, and its bytes.
const AREA: u64 = 2 * SMALLEST;
const AREA_SIZE: u64 = (KEY * STRIPES).next_multiple_of(4096) as u64;
/// Where the data begins.
const DATA: u64 = 1 << 20;
/// As dm-crypt has them on any device.
const SECTOR: usize = UNIT as usize;
/// How much is encrypted at once.
const PIECE: usize = 1 << 20;
/// Iterations over keys that are as random as they are long: the fewest that cryptsetup takes.
const FEWEST: u32 = 1000;

/// How hard it is made to guess the passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// A person chose it: Argon2id with 64 MiB and three passes, the second choice of RFC 9106 (section 4).
    Passphrase,
    /// It is random and has 32 bytes or more: nobody guesses it.
    Random,
}

/// A container around what is read, as a reader.
pub struct Encrypting<R> {
    plain: R,
    xts: Xts,
    /// What was encrypted, or the header, and how much of it was given away.
    piece: Vec<u8>,
    given: usize,
    /// The number of the next sector.
    sector: u64,
    at_end: bool,
}

/// Encrypts what `plain` gives, up to its end. It is filled up with zeros to a whole sector.
pub fn encrypt<R: Read>(plain: R, passphrase: &[u8], strength: Strength) -> Result<Encrypting<R>> {
    let key: [u8; KEY] = random()?;
    let piece = header(&key, passphrase, strength)?;
    let xts = Xts::new(&key).ok_or(Error::Random)?;
    Ok(Encrypting { plain, xts, piece, given: 0, sector: 0, at_end: false })
}

impl<R: Read> Encrypting<R> {
    fn next(&mut self) -> io::Result<()> {
        self.piece.resize(PIECE, 0);
        self.given = 0;
        let mut filled = 0;
        while filled < PIECE && !self.at_end {
            match self.plain.read(&mut self.piece[filled..]) {
                Ok(0) => self.at_end = true,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let whole = filled.next_multiple_of(SECTOR);
        self.piece.truncate(whole);
        self.piece[filled..].fill(0);
        self.xts.encrypt(&mut self.piece, self.sector, SECTOR);
        self.sector += (whole / SECTOR) as u64;
        Ok(())
    }
}

impl<R: Read> Read for Encrypting<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.piece.len() && !self.at_end {
            self.next()?;
        }
        let n = out.len().min(self.piece.len() - self.given);
        out[..n].copy_from_slice(&self.piece[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

/// Everything before the data.
fn header(key: &[u8; KEY], passphrase: &[u8], strength: Strength) -> Result<Vec<u8>> {
    let salt = random::<32>()?.to_vec();
    let (kdf, described) = match strength {
        Strength::Random => (
            Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: FEWEST, salt: salt.clone() },
            json!({"type": "pbkdf2", "hash": "sha256", "iterations": FEWEST, "salt": STANDARD.encode(&salt)}),
        ),
        Strength::Passphrase => {
            let (passes, memory, lanes) = (3, 64 << 10, 4);
            let salt_text = STANDARD.encode(&salt);
            (
                Kdf::Argon2 { id: true, passes, memory, lanes, salt },
                json!({"type": "argon2id", "time": passes, "memory": memory, "cpus": lanes, "salt": salt_text}),
            )
        }
    };
    let mut budget = Budget::default();
    let mut area_key = [0; KEY];
    kdf.derive(passphrase, &mut area_key, &mut budget)?;
    let digest_salt = random::<32>()?;
    let digest_kdf = Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: FEWEST, salt: digest_salt.to_vec() };
    let mut digest = [0; 32];
    digest_kdf.derive(key, &mut digest, &mut budget)?;

    let document = json!({
        "keyslots": {"0": {
            "type": "luks2",
            "key_size": KEY,
            "af": {"type": "luks1", "stripes": STRIPES, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": AREA.to_string(),
                "size": AREA_SIZE.to_string(),
                "encryption": CIPHER,
                "key_size": KEY,
            },
            "kdf": described,
        }},
        "tokens": {},
        "segments": {"0": {
            "type": "crypt",
            "offset": DATA.to_string(),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": CIPHER,
            "sector_size": SECTOR,
        }},
        "digests": {"0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": FEWEST,
            "salt": STANDARD.encode(digest_salt),
            "digest": STANDARD.encode(digest),
        }},
        "config": {"json_size": (SMALLEST - BINARY as u64).to_string(), "keyslots_size": (DATA - AREA).to_string()},
    });
    let uuid = uuid()?;
    let mut out = vec![0; DATA as usize];
    for (offset, magic) in [(0, MAGIC), (SMALLEST, SECOND_MAGIC)] {
        let copy = &mut out[offset as usize..(offset + SMALLEST) as usize];
        put(copy, 0, magic);
        put(copy, at::VERSION, &2u16.to_be_bytes());
        put(copy, at::SIZE, &SMALLEST.to_be_bytes());
        put(copy, at::SEQUENCE, &1u64.to_be_bytes());
        put(copy, at::CHECKSUM_NAME, b"sha256");
        put(copy, at::SALT, &random::<64>()?);
        put(copy, at::UUID, uuid.as_bytes());
        put(copy, at::OFFSET, &offset.to_be_bytes());
        put(copy, BINARY, document.to_string().as_bytes());
        let checksum = Hash::Sha256.digest(&[copy]);
        put(copy, at::CHECKSUM, checksum.as_ref());
    }
    let stripes = &mut out[AREA as usize..AREA as usize + KEY * STRIPES];
    fill_random(stripes)?;
    anti_forensic::split(key, stripes, Hash::Sha256);
    let area = Xts::new(&area_key).ok_or(Error::Random)?;
    // The stripes fill whole sectors.
    area.encrypt(stripes, 0, SECTOR);
    Ok(out)
}

fn put(copy: &mut [u8], at: usize, bytes: &[u8]) {
    copy[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A random one (RFC 9562, section 5.4).
fn uuid() -> Result<String> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}
