//! scrypt (RFC 7914), on the PBKDF2 of `ring`.

use std::num::NonZeroU32;

use ring::pbkdf2::{self, PBKDF2_HMAC_SHA256};

use crate::error::{Error, Result, damaged};

/// Words of a block of Salsa20.
const WORDS: usize = 16;

/// Bytes of memory that it takes.
pub(crate) fn memory(n: u64, r: u32, p: u32) -> Result<u64> {
    if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
        return damaged("parameters of scrypt that cannot be");
    }
    Ok(n.saturating_add(p.into()).saturating_mul(u64::from(r) * 128))
}

/// Fills `out`. The caller has seen to it that the memory is bounded.
pub(crate) fn derive(passphrase: &[u8], salt: &[u8], n: u64, r: u32, p: u32, out: &mut [u8]) -> Result<()> {
    memory(n, r, p)?;
    let (n, width) = (usize::try_from(n).map_err(|_| Error::Memory)?, r as usize * 2 * WORDS);
    let words = n.checked_mul(width).ok_or(Error::Memory)?;
    let mut table = Vec::new();
    table.try_reserve_exact(words).map_err(|_| Error::Memory)?;
    table.resize(words, 0u32);
    let mut block = vec![0u8; width * 4 * p as usize];
    pbkdf2::derive(PBKDF2_HMAC_SHA256, NonZeroU32::MIN, salt, passphrase, &mut block);
    for part in block.chunks_exact_mut(width * 4) {
        let mut state: Vec<u32> =
            part.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        mix(&mut state, &mut table, n);
        part.chunks_exact_mut(4).zip(&state).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    }
    pbkdf2::derive(PBKDF2_HMAC_SHA256, NonZeroU32::MIN, &block, passphrase, out);
    Ok(())
}

/// scryptROMix (section 5).
fn mix(state: &mut [u32], table: &mut [u32], n: usize) {
    let width = state.len();
    let mut other = vec![0; width];
    for row in table.chunks_exact_mut(width) {
        row.copy_from_slice(state);
        block_mix(state, &mut other);
        state.copy_from_slice(&other);
    }
    for _ in 0..n {
        // n is a power of two, and no larger than memory is.
        let row = state[width - WORDS] as usize & (n - 1);
        state.iter_mut().zip(&table[row * width..]).for_each(|(word, with)| *word ^= with);
        block_mix(state, &mut other);
        state.copy_from_slice(&other);
    }
}

/// scryptBlockMix (section 4).
fn block_mix(from: &[u32], to: &mut [u32]) {
    let mut x = [0; WORDS];
    x.copy_from_slice(&from[from.len() - WORDS..]);
    let half = from.len() / 2;
    for (n, block) in from.chunks_exact(WORDS).enumerate() {
        x.iter_mut().zip(block).for_each(|(word, with)| *word ^= with);
        salsa(&mut x);
        let at = n / 2 * WORDS + n % 2 * half;
        to[at..at + WORDS].copy_from_slice(&x);
    }
}

/// Salsa20/8 (section 3).
fn salsa(block: &mut [u32; WORDS]) {
    let mut x = *block;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        x[b] ^= x[a].wrapping_add(x[d]).rotate_left(7);
        x[c] ^= x[b].wrapping_add(x[a]).rotate_left(9);
        x[d] ^= x[c].wrapping_add(x[b]).rotate_left(13);
        x[a] ^= x[d].wrapping_add(x[c]).rotate_left(18);
    };
    for _ in 0..4 {
        for n in 0..4 {
            // Columns from the diagonal on, then rows.
            let at = |step: usize| (n * 5 + step * 4) % WORDS;
            quarter(at(0), at(1), at(2), at(3));
        }
        for n in 0..4 {
            let at = |step: usize| n * 4 + (n + step) % 4;
            quarter(at(0), at(1), at(2), at(3));
        }
    }
    block.iter_mut().zip(x).for_each(|(word, add)| *word = word.wrapping_add(add));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 12 of the RFC.
    #[test]
    fn vectors_of_the_standard() {
        for (passphrase, salt, n, r, p, begins) in [
            ("", "", 16, 1, 1, "77d6576238657b203b19ca42c18a0497f16b4844e3074ae8dfdffa3fede21442"),
            (
                "password",
                "NaCl",
                1024,
                8,
                16,
                "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162",
            ),
        ] {
            let mut out = [0; 64];
            derive(passphrase.as_bytes(), salt.as_bytes(), n, r, p, &mut out).unwrap();
            let text: String = out[..32].iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(text, begins);
        }
    }
}
