//! AES in the mode XTS (IEEE 1619), as dm-crypt's `aes-xts-plain64` has it: the tweak of a sector is its number, which
//! counts units of 512 bytes however large sectors are.

use aes::cipher::{Array, BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes128, Aes256, Block};

/// What the numbers of sectors count.
pub(crate) const UNIT: u64 = 512;
const BLOCK: usize = 16;
/// So many blocks go through the processor at once.
const GROUP: usize = 32;

#[derive(Clone)]
enum Aes {
    Of128(Aes128),
    Of256(Aes256),
}

impl Aes {
    fn new(key: &[u8]) -> Option<Aes> {
        match key.len() {
            16 => Some(Aes::Of128(Aes128::new_from_slice(key).ok()?)),
            32 => Some(Aes::Of256(Aes256::new_from_slice(key).ok()?)),
            _ => None,
        }
    }

    fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::Of128(aes) => aes.encrypt_blocks(blocks),
            Aes::Of256(aes) => aes.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::Of128(aes) => aes.decrypt_blocks(blocks),
            Aes::Of256(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// Both keys of XTS.
#[derive(Clone)]
pub(crate) struct Xts {
    data: Aes,
    tweak: Aes,
}

impl std::fmt::Debug for Xts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Xts")
    }
}

impl Xts {
    /// `key` is both keys, one after the other: 32 or 64 bytes.
    pub fn new(key: &[u8]) -> Option<Xts> {
        let (data, tweak) = key.split_at(key.len() / 2);
        Some(Xts { data: Aes::new(data)?, tweak: Aes::new(tweak)? })
    }

    /// Decrypts whole sectors of `size` bytes, the first of which has the number `first`.
    pub fn decrypt(&self, data: &mut [u8], first: u64, size: usize) {
        self.each(data, first, size, |blocks| self.data.decrypt(blocks));
    }

    pub fn encrypt(&self, data: &mut [u8], first: u64, size: usize) {
        self.each(data, first, size, |blocks| self.data.encrypt(blocks));
    }

    fn each(&self, data: &mut [u8], first: u64, size: usize, turn: impl Fn(&mut [Block])) {
        let step = size as u64 / UNIT;
        let mut number = first;
        for sector in data.chunks_exact_mut(size) {
            let mut start = Block::default();
            start[..8].copy_from_slice(&number.to_le_bytes());
            self.tweak.encrypt(std::slice::from_mut(&mut start));
            let mut tweak = u128::from_le_bytes(start.into());
            let (blocks, _) = Array::slice_as_chunks_mut(sector);
            for group in blocks.chunks_mut(GROUP) {
                let mut tweaks = [0u128; GROUP];
                for (block, own) in group.iter_mut().zip(&mut tweaks) {
                    *own = tweak;
                    xor(block, tweak);
                    tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
                }
                turn(group);
                for (block, own) in group.iter_mut().zip(&tweaks) {
                    xor(block, *own);
                }
            }
            number = number.wrapping_add(step);
        }
    }
}

fn xor(block: &mut Block, with: u128) {
    let bytes: [u8; BLOCK] = (*block).into();
    *block = (u128::from_le_bytes(bytes) ^ with).to_le_bytes().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors 1, 2 and 10 of IEEE 1619-2007, annex B; the last one has keys of 256 bits and a sector of 512 bytes.
    #[test]
    fn vectors_of_the_standard() {
        let text: Vec<u8> = (0..512).map(|n| n as u8).collect();
        let keys = [
            (vec![0; 32], 0, vec![0; 32], "917cf69ebd68b2ec9b9fe9a3eadda692"),
            (
                [[0x11; 16], [0x22; 16]].concat(),
                0x33_3333_3333,
                vec![0x44; 32],
                "c454185e6a16936e39334038acef838b",
            ),
            (
                [
                    hex("2718281828459045235360287471352662497757247093699959574966967627"),
                    hex("3141592653589793238462643383279502884197169399375105820974944592"),
                ]
                .concat(),
                0xff,
                text,
                "1c3b3a102f770386e4836c99e370cf9b",
            ),
        ];
        for (key, number, plain, begins) in keys {
            let xts = Xts::new(&key).unwrap();
            let mut data = plain.clone();
            xts.encrypt(&mut data, number, plain.len());
            assert_eq!(data[..16], hex(begins), "{number:x}");
            xts.decrypt(&mut data, number, plain.len());
            assert_eq!(data, plain);
        }
        assert!(Xts::new(&[0; 48]).is_none() && Xts::new(&[]).is_none());
    }

    #[test]
    fn sectors_of_any_size_count_units() {
        let xts = Xts::new(&[7; 64]).unwrap();
        let mut both = vec![1; 8192];
        xts.encrypt(&mut both, 8, 4096);
        let mut second = vec![1; 4096];
        xts.encrypt(&mut second, 16, 4096);
        assert_eq!(both[4096..], second);
        let mut small = vec![1; 1024];
        xts.encrypt(&mut small, 8, 512);
        assert!(small[..512] == both[..512] && small[512..] != both[512..1024]);
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }
}
