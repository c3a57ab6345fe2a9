//! From a passphrase to a key: PBKDF2, Argon2 and scrypt, none of which may cost more than a person would wait for.
//!
//! What it costs stands in the file, which anybody may have made. So it is added up before anything is computed
//! ([`Budget`]); what cryptsetup and gocryptfs choose by themselves is well below.

use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Params, Version};
use ring::hkdf;
use ring::pbkdf2;

use crate::error::{Error, Result, unsupported};
use crate::scrypt;

/// KiB that one key may take. cryptsetup takes 1 GiB where the machine has it.
const MOST_MEMORY: u64 = 2 << 20;
/// KiB times passes, over all keys that are tried: some half a minute.
const MOST_FILLED: u64 = 64 << 20;
/// Iterations of PBKDF2, over all keys that are tried.
const MOST_ITERATIONS: u64 = 100_000_000;
const MOST_LANES: u32 = 64;

/// A hash function by its name in a LUKS2 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub fn named(name: &str) -> Result<Hash> {
        Ok(match name {
            "sha1" => Hash::Sha1,
            "sha256" => Hash::Sha256,
            "sha384" => Hash::Sha384,
            "sha512" => Hash::Sha512,
            other => return unsupported(format!("the hash function '{other}'")),
        })
    }

    pub fn digest(self, parts: &[&[u8]]) -> ring::digest::Digest {
        let mut context = ring::digest::Context::new(match self {
            Hash::Sha1 => &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => &ring::digest::SHA256,
            Hash::Sha384 => &ring::digest::SHA384,
            Hash::Sha512 => &ring::digest::SHA512,
        });
        parts.iter().for_each(|part| context.update(part));
        context.finish()
    }
}

/// What opening one thing may still cost.
#[derive(Debug)]
pub(crate) struct Budget {
    filled: u64,
    iterations: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { filled: MOST_FILLED, iterations: MOST_ITERATIONS }
    }
}

impl Budget {
    fn fill(&mut self, kib: u64, passes: u64) -> Result<()> {
        let too_much = |what: String, limit: String| -> Result<()> { Err(Error::Excessive { what, limit }) };
        if kib > MOST_MEMORY {
            return too_much(format!("{} MiB of memory", kib >> 10), format!("{} MiB", MOST_MEMORY >> 10));
        }
        match self.filled.checked_sub(kib.saturating_mul(passes)) {
            Some(rest) => self.filled = rest,
            None => {
                let what = format!("{passes} passes over {} MiB of memory", kib >> 10);
                return too_much(what, format!("{} GiB in all", MOST_FILLED >> 20));
            }
        }
        Ok(())
    }

    fn iterate(&mut self, times: u64) -> Result<()> {
        match self.iterations.checked_sub(times) {
            Some(rest) => self.iterations = rest,
            None => {
                let limit = format!("{MOST_ITERATIONS} in all");
                return Err(Error::Excessive { what: format!("{times} iterations"), limit });
            }
        }
        Ok(())
    }
}

/// A function that makes keys, and all that it needs beside the passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        iterations: u32,
        salt: Vec<u8>,
    },
    /// `id` for Argon2id, else Argon2i. `memory` is in KiB.
    Argon2 {
        id: bool,
        passes: u32,
        memory: u32,
        lanes: u32,
        salt: Vec<u8>,
    },
    /// `n` is a power of two.
    Scrypt {
        n: u64,
        r: u32,
        p: u32,
        salt: Vec<u8>,
    },
}

impl Kdf {
    /// Fills `out` with the key of a passphrase.
    pub fn derive(&self, passphrase: &[u8], out: &mut [u8], budget: &mut Budget) -> Result<()> {
        match self {
            Kdf::Pbkdf2 { hash, iterations, salt } => {
                budget.iterate((*iterations).into())?;
                let iterations = NonZeroU32::new(*iterations)
                    .ok_or_else(|| Error::Damaged { what: "PBKDF2 without iterations".into() })?;
                let algorithm = match hash {
                    Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
                    Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
                    Hash::Sha384 => pbkdf2::PBKDF2_HMAC_SHA384,
                    Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
                };
                pbkdf2::derive(algorithm, iterations, salt, passphrase, out);
                Ok(())
            }
            Kdf::Argon2 { id, passes, memory, lanes, salt } => {
                let wrong = |e: argon2::Error| Error::Damaged { what: format!("parameters of Argon2: {e}") };
                budget.fill((*memory).into(), (*passes).into())?;
                if *lanes > MOST_LANES {
                    let limit = MOST_LANES.to_string();
                    return Err(Error::Excessive { what: format!("{lanes} threads"), limit });
                }
                let params = Params::new(*memory, *passes, *lanes, Some(out.len())).map_err(wrong)?;
                let algorithm = if *id { Algorithm::Argon2id } else { Algorithm::Argon2i };
                Argon2::new(algorithm, Version::V0x13, params)
                    .hash_password_into(passphrase, salt, out)
                    .map_err(|e| if e == argon2::Error::OutOfMemory { Error::Memory } else { wrong(e) })
            }
            Kdf::Scrypt { n, r, p, salt } => {
                budget.fill(scrypt::memory(*n, *r, *p)? >> 10, (*p).into())?;
                scrypt::derive(passphrase, salt, *n, *r, *p, out)
            }
        }
    }
}

/// A key of another key, by HKDF with SHA-256 and no salt (RFC 5869).
pub(crate) fn hkdf(key: &[u8], purpose: &str) -> [u8; 32] {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]);
    let mut out = [0; 32];
    let purpose = [purpose.as_bytes()];
    let made = salt.extract(key).expand(&purpose, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut out));
    debug_assert!(made.is_ok(), "as long as the hash");
    out
}

/// Random bytes of the kernel's.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// A passphrase that nobody guesses, of 64 hexadecimal digits: other programs read one as a line of text.
pub fn random_passphrase() -> Result<Vec<u8>> {
    let bytes: [u8; 32] = random()?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into_bytes())
}

pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    use ring::rand::SecureRandom as _;
    ring::rand::SystemRandom::new().fill(bytes).map_err(|_| Error::Random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excessive(kdf: &Kdf) -> bool {
        matches!(kdf.derive(b"x", &mut [0; 32], &mut Budget::default()), Err(Error::Excessive { .. }))
    }

    #[test]
    fn what_would_take_too_much_is_not_begun() {
        let salt = vec![0; 32];
        let argon =
            |passes, memory, lanes| Kdf::Argon2 { id: true, passes, memory, lanes, salt: salt.clone() };
        for (passes, memory, lanes) in
            [(1, u32::MAX, 1), (1, 3 << 20, 4), (u32::MAX, 64, 1), (100, 1 << 20, 4), (1, 8 * 100, 100)]
        {
            assert!(excessive(&argon(passes, memory, lanes)), "{passes} {memory} {lanes}");
        }
        let hash = Hash::Sha256;
        assert!(excessive(&Kdf::Pbkdf2 { hash, iterations: u32::MAX, salt: salt.clone() }));
        for (n, r, p) in [(1 << 40, 8, 1), (1 << 20, 1 << 20, 1), (1 << 16, 8, 1 << 24)] {
            assert!(excessive(&Kdf::Scrypt { n, r, p, salt: salt.clone() }), "{n} {r} {p}");
        }
        // Many keys are no way around it.
        let mut budget = Budget::default();
        let slow = Kdf::Pbkdf2 { hash, iterations: 1000, salt };
        let tries = (0..).take_while(|_| budget.iterate(10_000_000).is_ok()).count();
        assert_eq!(tries, 10);
        assert!(slow.derive(b"x", &mut [0; 32], &mut budget).is_err());
    }

    #[test]
    fn parameters_that_cannot_be_are_no_panic() {
        let argon = |passes, memory, lanes, salt: &[u8]| Kdf::Argon2 {
            id: false,
            passes,
            memory,
            lanes,
            salt: salt.to_vec(),
        };
        for kdf in [
            argon(0, 64, 1, &[0; 16]),
            argon(1, 0, 1, &[0; 16]),
            argon(1, 64, 0, &[0; 16]),
            argon(1, 16, 16, &[0; 16]),
            argon(1, 64, 1, &[]),
            Kdf::Pbkdf2 { hash: Hash::Sha1, iterations: 0, salt: Vec::new() },
            Kdf::Scrypt { n: 0, r: 8, p: 1, salt: Vec::new() },
            Kdf::Scrypt { n: 1000, r: 8, p: 1, salt: Vec::new() },
            Kdf::Scrypt { n: 1024, r: 0, p: 1, salt: Vec::new() },
            Kdf::Scrypt { n: 1024, r: 8, p: 0, salt: Vec::new() },
        ] {
            let made = kdf.derive(b"x", &mut [0; 32], &mut Budget::default());
            assert!(matches!(made, Err(Error::Damaged { .. })), "{kdf:?}: {made:?}");
        }
    }
}
