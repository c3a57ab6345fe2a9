//! How long work reports what it does, without knowing who watches.

/// Receives the progress of pulls, pushes, unpacking and builds. Every method may be called from any
/// thread. Identifiers are given out by [`Progress::begin`].
pub trait Progress: Send + Sync {
    /// Work on `what` begins; `total` is in bytes where it is known.
    fn begin(&self, what: &str, total: Option<u64>) -> u64;
    /// `bytes` more are done.
    fn advance(&self, id: u64, bytes: u64);
    /// A word on the present state: `waiting`, `unpacking`, `retry 2: connection reset`.
    fn status(&self, id: u64, text: &str);
    /// The work is over; `text` says how (`done`, `already here`, `failed`).
    fn end(&self, id: u64, text: &str);
    /// A line of output that belongs to the work, as bytes from the program that made them.
    fn output(&self, id: u64, bytes: &[u8]);
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _what: &str, _total: Option<u64>) -> u64 {
        0
    }
    fn advance(&self, _id: u64, _bytes: u64) {}
    fn status(&self, _id: u64, _text: &str) {}
    fn end(&self, _id: u64, _text: &str) {}
    fn output(&self, _id: u64, _bytes: &[u8]) {}
}
