//! Blobs on their way in: from a byte on, continued after a broken connection, never more than announced
//! (distribution-spec, "Pulling blobs"; RFC 9110, section 14).

use std::cell::RefCell;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use isles_spec::image::Descriptor;
use isles_spec::{Digest, Reference};
use ureq::http::{HeaderValue, Method, header};

use crate::auth::Scope;
use crate::client::{Call, Repository};
use crate::http::{sentence, text_of};
use crate::{Client, Error, Result};

/// A connection that brings this much before it breaks counts as progress.
const PROGRESS: u64 = 256 << 10;
/// Bytes that are copied at once.
const COPY: usize = 256 << 10;

/// What the layers of one pull share.
#[derive(Default)]
pub(crate) struct Shared {
    /// Bytes that came over the network.
    pub fetched: AtomicU64,
    /// Another layer failed, so the rest is not worth fetching.
    pub stop: AtomicBool,
}

/// One blob that is being fetched, over as many connections as it takes.
pub(crate) struct Download<'a> {
    repository: &'a Repository<'a>,
    blob: &'a Descriptor,
    shared: &'a Shared,
    scope: Scope,
    object: String,
    /// Told about retries.
    notice: &'a dyn Fn(&str),
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    opened: bool,
    /// Where the last connection began.
    offset: u64,
    /// Tries since the last progress.
    attempt: u32,
    /// Why the last connection broke, or will not be tried again.
    cause: String,
    fatal: Option<Error>,
}

impl<'a> Download<'a> {
    pub fn new(
        repository: &'a Repository<'a>,
        blob: &'a Descriptor,
        shared: &'a Shared,
        notice: &'a dyn Fn(&str),
    ) -> Self {
        Download {
            repository,
            blob,
            shared,
            scope: Scope::of(&repository.name, "pull"),
            object: format!("blob {}", blob.digest),
            notice,
            state: RefCell::default(),
        }
    }

    /// Forgets what went wrong before: the next [`Download::open`] is a first one.
    pub fn afresh(&self) -> &Self {
        *self.state.borrow_mut() = State::default();
        self
    }

    /// The blob from `offset` on as one stream, over as many connections as it takes. What it fails with for good is
    /// an [`Error`] of this crate.
    pub fn stream(&self, offset: u64) -> Stream<'_> {
        Stream { download: self, incoming: None, at: offset }
    }

    /// Opens the blob at `offset`. Called again after a failure, it waits a little, and gives up after a
    /// number of tries that brought nothing.
    pub fn open(&self, offset: u64) -> Result<Incoming<'_>> {
        self.settle(offset)?;
        if offset == self.blob.size {
            return Ok(Incoming {
                download: self,
                reader: Box::new(io::empty()),
                skip: 0,
                left: 0,
                ended: true,
            });
        }
        let url = self.repository.url(&format!("blobs/{}", self.blob.digest))?;
        let mut call = Call::get(url, &self.scope, "pull", &self.object);
        if offset > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={offset}-"))
        {
            call.headers.insert(header::RANGE, range);
        }
        let response = self.repository.expect(call, &[200, 206])?;
        let mut skip = 0;
        let start = if response.status().as_u16() == 206 {
            let range = text_of(response.headers(), &header::CONTENT_RANGE).unwrap_or_default();
            let (start, total) = content_range(range)
                .filter(|(start, _)| *start == offset)
                .ok_or_else(|| self.odd(format!("asked for bytes from {offset}, it answers '{range}'")))?;
            if let Some(total) = total {
                self.expect_size(total)?;
            }
            start
        } else {
            // It does not do ranges: what is here already comes again.
            skip = offset;
            0
        };
        let length = text_of(response.headers(), &header::CONTENT_LENGTH).and_then(|t| t.parse::<u64>().ok());
        if let Some(length) = length {
            self.expect_size(start.saturating_add(length))?;
        }
        let reader = Box::new(response.into_body().into_reader());
        Ok(Incoming { download: self, reader, skip, left: self.blob.size - offset, ended: false })
    }

    /// Counts a try, waits before it, and says whether there is one.
    fn settle(&self, offset: u64) -> Result<()> {
        let mut state = self.state.borrow_mut();
        if let Some(fatal) = state.fatal.take() {
            return Err(fatal);
        }
        if offset > self.blob.size {
            return Err(self.odd(format!("the blob has {} bytes, {offset} are here", self.blob.size)));
        }
        if !std::mem::replace(&mut state.opened, true) {
            state.offset = offset;
            return Ok(());
        }
        if offset >= state.offset + PROGRESS {
            state.attempt = 0;
        }
        state.offset = offset;
        state.attempt += 1;
        let Some(wait) = self.repository.retry().wait(state.attempt, None) else {
            return Err(self.repository.broken(format!("fetching {}", self.object), state.cause.clone()));
        };
        (self.notice)(&format!("retry {}: {}", state.attempt, state.cause));
        drop(state);
        std::thread::sleep(wait);
        Ok(())
    }

    fn expect_size(&self, size: u64) -> Result<()> {
        if size == self.blob.size {
            return Ok(());
        }
        Err(self.odd(format!("{} has {size} bytes, its manifest says {}", self.object, self.blob.size)))
    }

    fn odd(&self, why: String) -> Error {
        Error::Protocol { host: self.repository.registry.clone(), why }
    }
}

/// The bytes of a blob from some offset on, over one connection. Ends exactly where the blob ends.
pub(crate) struct Incoming<'a> {
    download: &'a Download<'a>,
    reader: Box<dyn Read>,
    skip: u64,
    left: u64,
    ended: bool,
}

impl Incoming<'_> {
    fn fail(&self, e: io::Error) -> io::Error {
        self.download.state.borrow_mut().cause = sentence(&e);
        e
    }

    fn fatal(&self, error: Error) -> io::Error {
        let text = error.to_string();
        self.download.state.borrow_mut().fatal = Some(error);
        io::Error::other(text)
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let shared = self.download.shared;
        if buffer.is_empty() {
            return Ok(0);
        }
        if shared.stop.load(Ordering::Relaxed) {
            return Err(self.fatal(
                self.download
                    .repository
                    .broken("fetching several layers".into(), "another layer failed".into()),
            ));
        }
        while self.skip > 0 {
            let most = buffer.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            let n = self.reader.read(&mut buffer[..most]).map_err(|e| self.fail(e))?;
            if n == 0 {
                return Err(self.fail(io::ErrorKind::UnexpectedEof.into()));
            }
            self.skip -= n as u64;
            shared.fetched.fetch_add(n as u64, Ordering::Relaxed);
        }
        if self.left == 0 {
            // A body without a length must end here. Reading the end also frees the connection.
            if !std::mem::replace(&mut self.ended, true) && self.reader.read(&mut [0]).is_ok_and(|n| n > 0) {
                let host = self.download.repository.registry.clone();
                let (object, limit) = (self.download.object.clone(), self.download.blob.size);
                return Err(self.fatal(Error::TooLarge { host, object, limit }));
            }
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.reader.read(&mut buffer[..most]).map_err(|e| self.fail(e))?;
        if n == 0 {
            return Err(self.fail(io::ErrorKind::UnexpectedEof.into()));
        }
        self.left -= n as u64;
        shared.fetched.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A blob that comes over as many connections as it takes.
pub(crate) struct Stream<'a> {
    download: &'a Download<'a>,
    incoming: Option<Incoming<'a>>,
    at: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let incoming = match &mut self.incoming {
                Some(incoming) => incoming,
                None => self.incoming.insert(self.download.open(self.at).map_err(io::Error::other)?),
            };
            match incoming.read(buffer) {
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                // The download knows why, and whether it is worth another try.
                Err(_) => self.incoming = None,
            }
        }
    }
}

impl Client {
    /// The size of a blob of the reference's repository.
    pub fn blob_size(&self, reference: &Reference, digest: &Digest) -> Result<u64> {
        let repository = self.source(reference)?;
        let object = format!("blob {digest}");
        let scope = Scope::of(&repository.name, "pull");
        let url = repository.url(&format!("blobs/{digest}"))?;
        let call = Call::get(url, &scope, "pull", &object).method(Method::HEAD);
        let response = repository.expect(call, &[200])?;
        let size = text_of(response.headers(), &header::CONTENT_LENGTH).and_then(|t| t.parse::<u64>().ok());
        size.ok_or_else(|| Error::Protocol {
            host: repository.registry.clone(),
            why: format!("it does not say how large {object} is"),
        })
    }

    /// Fetches a blob of the reference's repository, of which `size` is known, from `offset` on into `out`, over as many
    /// connections as it takes. Whether the bytes have the digest is for the caller to check.
    pub fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        offset: u64,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        let repository = self.source(reference)?;
        let blob = Descriptor::new("application/octet-stream", digest.clone(), size);
        let shared = Shared::default();
        let download = Download::new(&repository, &blob, &shared, &|_| {});
        let mut stream = download.stream(offset);
        let mut buffer = vec![0; COPY];
        loop {
            let n = stream.read(&mut buffer).map_err(|e| repository.failed_to_fetch(&blob, e))?;
            if n == 0 {
                return Ok(());
            }
            out(&buffer[..n])
                .map_err(|e| repository.broken(format!("keeping blob {digest}"), e.to_string()))?;
        }
    }
}

impl Repository<'_> {
    /// What a [`Stream`] failed with.
    pub(crate) fn failed_to_fetch(&self, blob: &Descriptor, error: io::Error) -> Error {
        let other = |e: io::Error| self.broken(format!("fetching blob {}", blob.digest), sentence(&e));
        error.downcast::<Error>().unwrap_or_else(other)
    }

    /// A small blob, such as a configuration, whole and with its digest checked.
    pub(crate) fn small_blob(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let object = format!("blob {}", blob.digest);
        if blob.size > limit {
            return Err(Error::TooLarge { host: self.registry.clone(), object, limit });
        }
        let shared = Shared::default();
        let download = Download::new(self, blob, &shared, &|_| {});
        let mut bytes = Vec::new();
        loop {
            let mut incoming = download.open(bytes.len() as u64)?;
            if incoming.read_to_end(&mut bytes).is_ok() {
                break;
            }
        }
        let actual = crate::manifest::digest_of(blob.digest.algorithm(), &bytes);
        if actual != blob.digest {
            let (host, expected) = (self.registry.clone(), blob.digest.clone());
            return Err(Error::Mismatch { host, object, expected, actual });
        }
        Ok(bytes)
    }
}

/// Start and, where it is known, total of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, if total == "*" { None } else { Some(total.parse().ok()?) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-9/*", Some((0, None))),
            ("bytes */10", None),
            ("bytes 5-9/x", None),
            ("5-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }
}
