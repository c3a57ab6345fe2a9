//! Where the bytes of an image come from.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are read by position, by any number of threads at once: a file, or what becomes of one on the way
/// (what is decrypted).
pub trait Source: Debug + Send + Sync {
    /// Fills `out` with what begins at `at`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where there are not so many bytes.
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, out, at)
    }
}
