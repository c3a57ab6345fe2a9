//! The hash functions behind digests.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use isles_spec::{Algorithm, Digest};
use sha2::{Digest as _, Sha256, Sha512};

const BUFFER: usize = 256 << 10;

/// A running hash.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest::from_bytes(Algorithm::Sha256, &h.finalize()),
            Hasher::Sha512(h) => Digest::from_bytes(Algorithm::Sha512, &h.finalize()),
        }
    }
}

/// Hashes and counts what passes, in either direction.
pub(crate) struct Hashed<T> {
    pub inner: T,
    pub hasher: Hasher,
    pub bytes: u64,
}

impl<T> Hashed<T> {
    pub(crate) fn new(inner: T, algorithm: Algorithm) -> Self {
        Hashed { inner, hasher: Hasher::new(algorithm), bytes: 0 }
    }

    fn passes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.passes(&out[..n]);
        Ok(n)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.passes(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The digest of bytes at hand.
pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

/// The digest and the size of what is left of a stream; `told` hears of the bytes as they pass.
pub(crate) fn digest_of_stream(
    input: &mut dyn Read,
    algorithm: Algorithm,
    buffer: &mut [u8],
    told: &mut dyn FnMut(u64),
) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new(algorithm);
    let mut size = 0;
    loop {
        match input.read(buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
                told(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The SHA-256 digest and the size of a whole file, which is at its beginning afterwards.
pub fn digest_of_file(file: &mut File) -> io::Result<(Digest, u64)> {
    file.rewind()?;
    let found = digest_of_stream(file, Algorithm::Sha256, &mut vec![0; BUFFER], &mut |_| {})?;
    file.rewind()?;
    Ok(found)
}
