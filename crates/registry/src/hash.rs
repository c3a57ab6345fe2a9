//! Blobs that are checked as they pass.

use std::io::{self, Read};

use isles_spec::image::Descriptor;
use isles_store::Hasher;

use crate::Error;

/// A blob that passes: it has the size that was announced and, where it passes whole, its digest. The last bytes of a
/// wrong one do not come through, so whoever takes it never has it whole.
pub(crate) struct Verified<'a, R> {
    inner: R,
    blob: &'a Descriptor,
    /// Who has it.
    host: &'a str,
    hash: Option<Hasher>,
    left: u64,
}

impl<'a, R> Verified<'a, R> {
    /// `inner` begins at `offset` of the blob.
    pub fn new(inner: R, blob: &'a Descriptor, host: &'a str, offset: u64) -> Verified<'a, R> {
        let hash = (offset == 0).then(|| Hasher::new(blob.digest.algorithm()));
        Verified { inner, blob, host, hash, left: blob.size.saturating_sub(offset) }
    }
}

impl<R: Read> Read for Verified<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let object = || format!("blob {}", self.blob.digest);
        let most = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most > 0 {
            let n = self.inner.read(&mut out[..most])?;
            if n == 0 {
                let (expected, actual) = (self.blob.size, self.blob.size - self.left);
                let error = isles_store::Error::WrongSize { object: object(), expected, actual };
                return Err(io::Error::other(Error::from(error)));
            }
            self.left -= n as u64;
            if let Some(hash) = &mut self.hash {
                hash.update(&out[..n]);
            }
            if self.left > 0 {
                return Ok(n);
            }
            self.check()?;
            return Ok(n);
        }
        self.check().map(|()| 0)
    }
}

impl<R> Verified<'_, R> {
    fn check(&mut self) -> io::Result<()> {
        let Some(hash) = self.hash.take() else { return Ok(()) };
        let (actual, expected) = (hash.finish(), self.blob.digest.clone());
        if actual == expected {
            return Ok(());
        }
        let (host, object) = (self.host.to_owned(), format!("blob {expected}"));
        Err(io::Error::other(Error::Mismatch { host, object, expected, actual }))
    }
}

#[cfg(test)]
mod tests {
    use isles_spec::Algorithm;
    use isles_store::digest_of_bytes as digest_of;

    use super::*;

    #[test]
    fn wrong_blobs_do_not_come_through_whole() {
        let content = vec![7u8; 100_000];
        let digest = digest_of(Algorithm::Sha256, &content);
        let read = |content: &[u8], size: u64, offset: u64| {
            let blob = Descriptor::new("x", digest.clone(), size);
            let mut out = Vec::new();
            let result = Verified::new(content, &blob, "r", offset).read_to_end(&mut out);
            (result.map_err(|e| e.to_string()), out.len())
        };
        assert_eq!(read(&content, 100_000, 0), (Ok(100_000), 100_000));
        assert_eq!(read(&content[10..], 100_000, 10), (Ok(99_990), 99_990));
        let (result, came) = read(&content[1..], 100_000, 0);
        assert!(result.unwrap_err().contains("99999 bytes") && came < 100_000);
        let mut other = content.clone();
        other[5] = 8;
        let (result, came) = read(&other, 100_000, 0);
        assert!(result.unwrap_err().contains("digest") && came < 100_000);
        let (result, came) = read(&content, 99_999, 0);
        assert!(result.is_err() && came < 99_999, "longer than announced");
    }
}
