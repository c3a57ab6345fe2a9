//! A key spread over many stripes, all of which it takes to have it again: so it is gone when a part of them is
//! overwritten (LUKS On-Disk Format 1.2.3, section 2.4).

use crate::kdf::Hash;

/// Puts a key of `length` bytes together again.
pub(crate) fn merge(stripes: &[u8], length: usize, hash: Hash) -> Vec<u8> {
    let mut key = vec![0; length];
    let mut rest = stripes.chunks_exact(length).peekable();
    while let Some(stripe) = rest.next() {
        key.iter_mut().zip(stripe).for_each(|(byte, with)| *byte ^= with);
        if rest.peek().is_some() {
            diffuse(&mut key, hash);
        }
    }
    key
}

/// Makes the last stripe what it takes to have the key; all before it are random.
pub(crate) fn split(key: &[u8], stripes: &mut [u8], hash: Hash) {
    let mut state = vec![0; key.len()];
    let last = stripes.len() - key.len();
    for stripe in stripes[..last].chunks_exact(key.len()) {
        state.iter_mut().zip(stripe).for_each(|(byte, with)| *byte ^= with);
        diffuse(&mut state, hash);
    }
    let parts = state.iter().zip(key).map(|(a, b)| a ^ b);
    stripes[last..].iter_mut().zip(parts).for_each(|(to, byte)| *to = byte);
}

fn diffuse(state: &mut [u8], hash: Hash) {
    let size = hash.digest(&[]).as_ref().len();
    for (n, part) in state.chunks_mut(size).enumerate() {
        let digest = hash.digest(&[&(n as u32).to_be_bytes(), part]);
        part.copy_from_slice(&digest.as_ref()[..part.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_had_from_all_stripes_only() {
        for (hash, length) in [(Hash::Sha256, 64), (Hash::Sha512, 64), (Hash::Sha1, 32)] {
            let key: Vec<u8> = (0..length).collect();
            let length = key.len();
            let mut stripes: Vec<u8> = (0..length * 50).map(|n| (n * 7 % 251) as u8).collect();
            split(&key, &mut stripes, hash);
            assert_eq!(merge(&stripes, length, hash), key);
            stripes[3] ^= 1;
            assert_ne!(merge(&stripes, length, hash), key);
        }
    }
}
