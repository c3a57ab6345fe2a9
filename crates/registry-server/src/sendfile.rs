//! Files that go to a plain socket without passing through this process (sendfile(2)).
//!
//! One idea: hyper writes the answers, and what it is given of a file is a placeholder, a slice of a region that
//! nobody reads. The stream under hyper knows the region by its address and sends as many bytes of the file that was
//! handed over with the slice. So heads, lengths, limits and the order of answers are hyper's as ever.
//!
//! hyper keeps the slices of a body apart where a stream can write several at once; should it ever copy them, the
//! stream refuses to go on before a byte of the copy is sent ([`Sending`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The placeholder: address space that is never written, and thus no memory.
static REGION: LazyLock<&'static [u8]> = LazyLock::new(|| Vec::leak(vec![0; MOST as usize]));
/// Bytes that are handed over at once.
const MOST: u64 = 1 << 20;
/// What is shorter is read and written as ever.
const LEAST: u64 = 64 << 10;

fn is_placeholder(slice: &[u8]) -> bool {
    REGION.as_ptr_range().contains(&slice.as_ptr())
}

/// A part of a file that is to be sent.
#[derive(Debug)]
struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

/// The parts of files that one connection is to send, in the order of their placeholders.
#[derive(Debug, Default)]
pub struct Files(Mutex<VecDeque<Part>>);

impl Files {
    fn parts(&self) -> MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the next bytes of a file over, and gives what stands for them. Nothing where they are few, or not in
    /// memory: a thread that serves others must not wait for a disk.
    pub fn hand_over(&self, file: &Arc<File>, at: u64, end: u64) -> Option<Bytes> {
        let count = MOST.min(end.saturating_sub(at));
        if count < LEAST || !is_cached(file, at) || !is_cached(file, at + count - 1) {
            return None;
        }
        self.parts().push_back(Part { file: file.clone(), at, left: count });
        Some(Bytes::from_static(&REGION[..count as usize]))
    }
}

/// Whether a byte of a file can be read without waiting. File systems that cannot tell count as slow.
fn is_cached(file: &File, at: u64) -> bool {
    let mut byte = [0];
    preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) == Ok(1)
}

/// A socket that sends parts of files where it is given their placeholders.
#[derive(Debug)]
pub struct Sending {
    stream: TcpStream,
    files: Arc<Files>,
}

impl Sending {
    pub fn new(stream: TcpStream, files: Arc<Files>) -> Sending {
        Sending { stream, files }
    }

    /// Sends of the first part at most so many bytes.
    fn poll_send(&self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let mut parts = self.files.parts();
            let part = parts.front_mut().ok_or_else(|| io::Error::other("no file for a placeholder"))?;
            let count = part.left.min(most as u64) as usize;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                Ok(rustix::fs::sendfile(&self.stream, &part.file, Some(&mut part.at), count)?)
            });
            match sent {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // The length was promised: the connection cannot go on.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(sent) => {
                    part.left -= sent as u64;
                    if part.left == 0 {
                        parts.pop_front();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Refuses what can only be a copy of a placeholder: as many zeros while a file waits. (Zeros that a client has
    /// coming from an answer before the file's may be taken for that; it asks again.)
    fn check(&self, plain: &[io::IoSlice<'_>]) -> io::Result<()> {
        let zeros = &REGION[..LEAST as usize];
        match plain.iter().any(|s| s.ends_with(zeros)) && !self.files.parts().is_empty() {
            true => Err(io::Error::other("a placeholder was copied")),
            false => Ok(()),
        }
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Sending {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let begin = slices.iter().take_while(|s| s.is_empty()).count();
        let slices = &slices[begin..];
        let plain = slices.iter().take_while(|s| !is_placeholder(s)).count();
        match slices.first() {
            Some(first) if plain == 0 => self.poll_send(cx, first.len()),
            _ => {
                let plain = &slices[..plain];
                self.check(plain)?;
                Pin::new(&mut self.stream).poll_write_vectored(cx, plain)
            }
        }
    }

    /// hyper copies nothing together for a stream that says so.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;

    use super::*;

    fn content(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n / 7 % 251) as u8).collect()
    }

    /// A file that was just written, and so is in memory.
    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    /// Writes slices to a socket until all are sent, or one fails.
    async fn write(stream: &mut Sending, slices: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<&[u8]> = slices.to_vec();
        while let Some(first) = slices.first() {
            if first.is_empty() {
                slices.remove(0);
                continue;
            }
            let all: Vec<_> = slices.iter().map(|s| io::IoSlice::new(s)).collect();
            let write = |cx: &mut Context<'_>| Pin::new(&mut *stream).poll_write_vectored(cx, &all);
            let mut sent = std::future::poll_fn(write).await?;
            for slice in &mut slices {
                let n = sent.min(slice.len());
                *slice = &slice[n..];
                sent -= n;
            }
        }
        Ok(())
    }

    /// What a client receives of what is written, and whether that came to its end.
    fn exchange(files: &Arc<Files>, slices: &[&[u8]]) -> (Vec<u8>, io::Result<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                // A connection that is cut has what came before.
                let _ = Client::connect(address).unwrap().read_to_end(&mut all);
                all
            });
            let mut stream = Sending::new(listener.accept().await.unwrap().0, files.clone());
            let written = write(&mut stream, slices).await;
            drop(stream);
            (reader.join().unwrap(), written)
        })
    }

    #[test]
    fn parts_of_files_come_in_order_between_other_bytes() {
        let bytes = content(3 << 20);
        let (files, file) = (Arc::<Files>::default(), file(&bytes));
        let end = bytes.len() as u64;
        let Some(first) = files.hand_over(&file, 5, end) else {
            eprintln!("skipped: the file system of temporary files cannot tell what is in memory");
            return;
        };
        let second = files.hand_over(&file, 100, 100 + LEAST).unwrap();
        let (got, written) = exchange(&files, &[b"head", &first, b"middle", &second, b"end"]);
        written.unwrap();
        let mut expected = b"head".to_vec();
        expected.extend_from_slice(&bytes[5..5 + MOST as usize]);
        expected.extend_from_slice(b"middle");
        expected.extend_from_slice(&bytes[100..100 + LEAST as usize]);
        expected.extend_from_slice(b"end");
        assert!(got == expected);
        assert!(files.hand_over(&file, 0, LEAST - 1).is_none());
        assert!(files.hand_over(&file, end, end).is_none());
    }

    #[test]
    fn a_copied_placeholder_and_a_file_that_shrank_end_the_connection() {
        let bytes = content(1 << 20);
        let (files, whole) = (Arc::<Files>::default(), file(&bytes));
        let Some(placeholder) = files.hand_over(&whole, 0, LEAST) else {
            eprintln!("skipped: the file system of temporary files cannot tell what is in memory");
            return;
        };
        let copy = [b"head".to_vec(), placeholder.to_vec()].concat();
        let (got, written) = exchange(&files, &[&copy]);
        assert_eq!((got.len(), written.unwrap_err().to_string().as_str()), (0, "a placeholder was copied"));

        let (files, short) = (Arc::<Files>::default(), file(&bytes));
        let placeholder = files.hand_over(&short, 0, MOST).unwrap();
        short.set_len(1000).unwrap();
        let (got, written) = exchange(&files, &[b"head", &placeholder]);
        assert_eq!((got.len(), written.unwrap_err().kind()), (1004, io::ErrorKind::UnexpectedEof));

        let (got, written) = exchange(&Arc::default(), &[&placeholder]);
        assert!(got.is_empty() && written.is_err());
    }
}
