//! Buffers that travel from one thread to the next and back, so that a stream flows through several threads
//! with a fixed amount of memory and without copies.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The writing end. Dropping it ends the stream.
pub(crate) struct Source {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

/// The reading end. Dropping it makes the writer's [`Source::send`] fail.
pub(crate) struct Sink {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
}

/// A stream with `count` buffers of `size` bytes.
pub(crate) fn pipe(count: usize, size: usize) -> (Source, Sink) {
    let (full_sender, full) = sync_channel(count);
    let (empty, empty_receiver) = sync_channel(count);
    for _ in 0..count {
        // There is room for all of them, and the other end is alive.
        let _ = empty.try_send(vec![0; size]);
    }
    (
        Source { full: full_sender, empty: empty_receiver },
        Sink { full, empty, current: Vec::new(), position: 0 },
    )
}

/// The other end of a stream is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Source {
    /// A buffer to fill; waits until the reader has given one back. Its length is its size.
    pub(crate) fn buffer(&self) -> Result<Vec<u8>, Gone> {
        self.empty.recv().map_err(|_| Gone)
    }

    /// Sends the first `filled` bytes of a buffer.
    pub(crate) fn send(&self, mut buffer: Vec<u8>, filled: usize) -> Result<(), Gone> {
        buffer.truncate(filled);
        self.full.send(buffer).map_err(|_| Gone)
    }
}

impl BufRead for Sink {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.current.len() {
            let used = std::mem::take(&mut self.current);
            self.position = 0;
            if used.capacity() > 0 {
                let mut buffer = used;
                // Within its capacity; the bytes are overwritten before they are sent again.
                buffer.resize(buffer.capacity(), 0);
                // The writer may have ended already.
                let _ = self.empty.try_send(buffer);
            }
            match self.full.recv() {
                Ok(buffer) => self.current = buffer,
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, n: usize) {
        self.position += n;
        debug_assert!(self.position <= self.current.len());
    }
}

impl Read for Sink {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(out.len());
        out[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// Reads until the buffer is full or the stream ends.
pub(crate) fn read_full(input: &mut dyn Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match input.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
