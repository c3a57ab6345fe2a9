//! New RSA keys (RFC 8017, section 3; FIPS 186-5, appendix A.1.3): two primes that are far enough from each other, and the
//! numbers that OpenPGP keeps of them.
//!
//! Primes are 3 modulo 4, so one power in each round of Miller and Rabin's test tells (HAC, algorithm 4.24). `crypto-bigint` does
//! the powers; what else there is to count is done once for each key, by schoolbook.

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::Error;

/// The lengths in bits for which there are keys: those that `ring` signs with.
pub const LENGTHS: std::ops::RangeInclusive<u32> = 2048..=4096;
/// 65537, as everybody has it.
const EXPONENT: u32 = 0x1_0001;
/// What is divided by before the costly test.
const SMALL: u32 = 4000;
/// For random numbers of a thousand bits, far fewer would do (FIPS 186-5, table B.1).
const ROUNDS: usize = 16;
/// A generator of random numbers that gives no prime in so many is none.
const PATIENCE: usize = 200_000;

/// The numbers of a key, big-endian: p is the smaller prime, and u its inverse modulo q.
pub struct Numbers {
    pub n: Vec<u8>,
    pub e: Vec<u8>,
    pub d: Vec<u8>,
    pub p: Vec<u8>,
    pub q: Vec<u8>,
    pub u: Vec<u8>,
}

/// Makes a key of `bits` bits, which are a multiple of 64.
pub fn generate(bits: u32) -> Result<Numbers, Error> {
    let random = SystemRandom::new();
    let bytes = bits as usize / 16;
    let small = small_primes();
    let first = prime(bytes, &small, &random)?;
    let mut second = prime(bytes, &small, &random)?;
    // Close to each other they would be found (FIPS 186-5: their first 100 bits differ).
    while first[..13] == second[..13] {
        second = prime(bytes, &small, &random)?;
    }
    let (p, q) = if first < second { (first, second) } else { (second, first) };
    let (p_limbs, q_limbs) = (limbs(&p), limbs(&q));
    let n = product(&p_limbs, &q_limbs);
    // Both are odd, so no borrow goes further.
    let less_one = |number: &[u32]| {
        let mut less = number.to_vec();
        less[0] &= !1;
        less
    };
    let phi = product(&less_one(&p_limbs), &less_one(&q_limbs));
    let d = inverse_of_exponent(&phi);
    let two_less = |number: &[u8]| {
        // 3 modulo 4: no borrow either.
        let mut less = number.to_vec();
        let last = less.len() - 1;
        less[last] -= 2;
        less
    };
    let u = Modulus::new(&q).and_then(|modulus| modulus.power(&p, &two_less(&q))).ok_or(Error::Random)?;
    Ok(Numbers { n: big_endian(&n), e: EXPONENT.to_be_bytes()[1..].to_vec(), d: big_endian(&d), p, q, u })
}

/// A random prime with its two highest bits set, so that the product of two has all its bits; `e` has an inverse for it.
fn prime(bytes: usize, small: &[u32], random: &SystemRandom) -> Result<Vec<u8>, Error> {
    let mut number = vec![0; bytes];
    for _ in 0..PATIENCE {
        random.fill(&mut number).map_err(|_| Error::Random)?;
        number[0] |= 0xc0;
        number[bytes - 1] |= 3;
        let wide = limbs(&number);
        if small.iter().any(|prime| remainder(&wide, *prime) == 0) || remainder(&wide, EXPONENT) == 1 {
            continue;
        }
        if is_prime(&number, random)? {
            return Ok(number);
        }
    }
    Err(Error::Random)
}

/// Whether a number that is 3 modulo 4 is prime, as far as [`ROUNDS`] random witnesses tell.
fn is_prime(number: &[u8], random: &SystemRandom) -> Result<bool, Error> {
    let Some(modulus) = Modulus::new(number) else { return Ok(false) };
    // (n - 1) / 2
    let half: Vec<u8> =
        (0..number.len()).map(|at| number[at] >> 1 | if at == 0 { 0 } else { number[at - 1] << 7 }).collect();
    let mut minus_one = number.to_vec();
    minus_one[number.len() - 1] -= 1;
    let mut one = vec![0; number.len()];
    one[number.len() - 1] = 1;
    for _ in 0..ROUNDS {
        let mut witness = vec![0; number.len()];
        random.fill(&mut witness).map_err(|_| Error::Random)?;
        // Below the number, whose highest bit is set.
        witness[0] &= 0x7f;
        match modulus.power(&witness, &half) {
            Some(power) if power == one || power == minus_one => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// An odd number to count by.
struct Modulus {
    params: BoxedMontyParams,
    bytes: usize,
}

impl Modulus {
    fn new(number: &[u8]) -> Option<Modulus> {
        let wide = BoxedUint::from_be_slice(number, number.len() as u32 * 8).ok()?;
        let odd: Option<Odd<BoxedUint>> = Odd::new(wide).into();
        Some(Modulus { params: BoxedMontyParams::new(odd?), bytes: number.len() })
    }

    /// `base`, which is below it, to the power of `exponent`.
    fn power(&self, base: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
        let wide = |number: &[u8]| BoxedUint::from_be_slice(number, self.bytes as u32 * 8).ok();
        let power = BoxedMontyForm::new(wide(base)?, &self.params).pow(&wide(exponent)?);
        let power = power.retrieve().to_be_bytes();
        Some(power[power.len() - self.bytes..].to_vec())
    }
}

/// `e`'s inverse modulo phi: the k for which k * phi + 1 is a multiple of e is known from phi modulo e.
fn inverse_of_exponent(phi: &[u32]) -> Vec<u32> {
    let e = u64::from(EXPONENT);
    let rest = u64::from(remainder(phi, EXPONENT));
    // Fermat: e is prime.
    let (mut inverse, mut base, mut power) = (1, rest, e - 2);
    while power > 0 {
        if power & 1 == 1 {
            inverse = inverse * base % e;
        }
        base = base * base % e;
        power >>= 1;
    }
    let k = (e - inverse) as u32;
    let mut number = product(phi, &[k]);
    // phi is even, so there is no carry.
    number[0] |= 1;
    let mut rest = 0;
    for limb in number.iter_mut().rev() {
        let wide = rest << 32 | u64::from(*limb);
        *limb = (wide / e) as u32;
        rest = wide % e;
    }
    number
}

/// All primes below [`SMALL`] but 2.
fn small_primes() -> Vec<u32> {
    (3..SMALL)
        .step_by(2)
        .filter(|n| (3..).step_by(2).take_while(|d| d * d <= *n).all(|d| n % d != 0))
        .collect()
}

/// The lowest first.
fn limbs(number: &[u8]) -> Vec<u32> {
    number.rchunks(4).map(|bytes| bytes.iter().fold(0, |limb, byte| limb << 8 | u32::from(*byte))).collect()
}

/// Without zeros at its beginning.
fn big_endian(limbs: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect();
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}

fn product(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut out = vec![0; a.len() + b.len()];
    for (at, x) in a.iter().enumerate() {
        let mut carry = 0;
        for (further, y) in b.iter().enumerate() {
            let wide = u64::from(*x) * u64::from(*y) + u64::from(out[at + further]) + carry;
            out[at + further] = wide as u32;
            carry = wide >> 32;
        }
        out[at + b.len()] = carry as u32;
    }
    out
}

fn remainder(number: &[u32], by: u32) -> u32 {
    let by = u64::from(by);
    number.iter().rev().fold(0, |rest, limb| (rest << 32 | u64::from(*limb)) % by) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_others() {
        let random = SystemRandom::new();
        // 2^127 - 1 is prime and 3 modulo 4; a product and a Carmichael number of such a form are not.
        let mersenne: Vec<u8> = (u128::MAX >> 1).to_be_bytes().to_vec();
        assert!(is_prime(&mersenne, &random).unwrap());
        for composite in [((u128::MAX >> 1) - 8) | 3, 0xffff_ffff_ffff_ffff_0000_0000_0000_0003] {
            assert!(!is_prime(&composite.to_be_bytes(), &random).unwrap(), "{composite}");
        }
    }

    #[test]
    fn numbers() {
        let bytes = [1, 2, 3, 4, 5];
        assert_eq!(limbs(&bytes), [0x0203_0405, 1]);
        assert_eq!(big_endian(&limbs(&bytes)), bytes);
        let (a, b) = (0x1234_5678_9abc_u64, 0xfedc_ba98_u64);
        let wide = product(&limbs(&a.to_be_bytes()), &limbs(&b.to_be_bytes()));
        let expected = u128::from(a) * u128::from(b);
        let zeros = expected.leading_zeros() as usize / 8;
        assert_eq!(big_endian(&wide), expected.to_be_bytes()[zeros..]);
        assert_eq!(u128::from(remainder(&wide, 97)), expected % 97);
        assert_eq!(small_primes()[..4], [3, 5, 7, 11]);
        // e * d = 1 modulo phi.
        let phi = limbs(&(65_536u64 * 1_000_003 * 12).to_be_bytes());
        let d = inverse_of_exponent(&phi);
        let d = big_endian(&d).iter().fold(0u128, |d, byte| d << 8 | u128::from(*byte));
        assert_eq!(d * 65_537 % (65_536 * 1_000_003 * 12), 1);
    }
}
