//! Answers: status, headers and a body that is at hand or comes from a file, and errors as the specification has
//! them (distribution-spec, "Error Codes").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode, header};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;
use crate::mirror::Flight;
use crate::sendfile::Files;

/// Bytes that are read from a file at once.
const CHUNK: u64 = 256 << 10;

/// An answer, before it is known whether its body is wanted.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: ReplyBody,
    /// Of HEAD: what the body would have.
    pub length: Option<u64>,
}

/// What is sent after the headers.
#[derive(Debug)]
pub enum ReplyBody {
    Bytes(Bytes),
    /// These bytes of a file: where it begins, and how many.
    File(File, u64, u64),
    /// A blob that is still being fetched.
    Flight(Arc<Flight>),
}

impl Reply {
    pub fn new(status: u16) -> Reply {
        Reply {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: HeaderMap::new(),
            body: ReplyBody::Bytes(Bytes::new()),
            length: None,
        }
    }

    /// A header. A value that no header can have is left out.
    pub fn with(mut self, name: &'static str, value: impl AsRef<str>) -> Reply {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.append(HeaderName::from_static(name), value);
        }
        self
    }

    pub fn bytes(mut self, media_type: &str, bytes: impl Into<Bytes>) -> Reply {
        self.body = ReplyBody::Bytes(bytes.into());
        self.with("content-type", media_type)
    }

    pub fn json(self, value: &serde_json::Value) -> Reply {
        self.bytes("application/json", value.to_string())
    }

    pub fn file(mut self, file: File, from: u64, count: u64) -> Reply {
        self.body = ReplyBody::File(file, from, count);
        self
    }

    /// An error with its code and one line for people.
    pub fn error(status: u16, code: &str, message: impl AsRef<str>) -> Reply {
        let message = message.as_ref();
        Reply::new(status).json(&serde_json::json!({ "errors": [{ "code": code, "message": message }] }))
    }

    /// What goes to the client; no body for HEAD. `files` takes parts of files where the socket sends them itself.
    pub fn finish(self, head: bool, metrics: &Arc<Metrics>, files: Option<Arc<Files>>) -> Response<Outgoing> {
        let (size, content) = match self.body {
            ReplyBody::Bytes(bytes) => (bytes.len() as u64, Content::Bytes(Some(bytes))),
            ReplyBody::File(file, from, count) => (count, Content::file(file, from, count)),
            ReplyBody::Flight(flight) => (flight.size, Content::Flight { flight, at: 0, waiting: None }),
        };
        let content = if head { Content::Bytes(None) } else { content };
        let body = Outgoing { content, left: if head { 0 } else { size }, metrics: metrics.clone(), files };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let bodiless = self.status == StatusCode::NO_CONTENT || self.status == StatusCode::NOT_MODIFIED;
        if !bodiless {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from(self.length.unwrap_or(size)));
        }
        response
    }
}

/// The body of an answer on its way.
pub struct Outgoing {
    content: Content,
    left: u64,
    metrics: Arc<Metrics>,
    files: Option<Arc<Files>>,
}

enum Content {
    Bytes(Option<Bytes>),
    File { file: Arc<File>, at: u64, end: u64, reading: Option<JoinHandle<io::Result<Bytes>>> },
    Flight { flight: Arc<Flight>, at: u64, waiting: Option<Waiting> },
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

impl Content {
    fn file(file: File, from: u64, count: u64) -> Content {
        Content::File { file: Arc::new(file), at: from, end: from + count, reading: None }
    }
}

/// Buffers that nobody uses now: fresh memory costs more than what is read into it.
static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());
/// Buffers that are kept.
const POOLED: usize = 16;

/// Memory for a piece of a file, which goes back to the pool.
struct Buffer {
    bytes: Box<[u8]>,
    used: usize,
}

impl Buffer {
    fn take() -> Buffer {
        let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: pooled.unwrap_or_else(|| vec![0; CHUNK as usize].into()), used: 0 }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < POOLED {
            pool.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Begins to read the next bytes.
fn read_ahead(file: &Arc<File>, at: u64, end: u64) -> Option<JoinHandle<io::Result<Bytes>>> {
    let count = CHUNK.min(end - at) as usize;
    if count == 0 {
        return None;
    }
    let file = file.clone();
    Some(tokio::task::spawn_blocking(move || {
        let mut buffer = Buffer::take();
        file.read_exact_at(&mut buffer.bytes[..count], at)?;
        buffer.used = count;
        Ok(Bytes::from_owner(buffer))
    }))
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let bytes = match &mut this.content {
            Content::Bytes(bytes) => match bytes.take().filter(|b| !b.is_empty()) {
                Some(bytes) => bytes,
                None => return Poll::Ready(None),
            },
            Content::File { file, at, end, reading } => {
                let handed = match (&reading, &this.files) {
                    (None, Some(files)) => files.hand_over(file, *at, *end),
                    _ => None,
                };
                if let Some(placeholder) = handed {
                    *at += placeholder.len() as u64;
                    placeholder
                } else {
                    if reading.is_none() {
                        *reading = read_ahead(file, *at, *end);
                    }
                    let Some(job) = reading else { return Poll::Ready(None) };
                    let bytes = match ready!(Pin::new(job).poll(cx)) {
                        Ok(Ok(bytes)) => bytes,
                        Ok(Err(e)) => return Poll::Ready(Some(Err(e))),
                        Err(e) => return Poll::Ready(Some(Err(io::Error::other(e)))),
                    };
                    *at += bytes.len() as u64;
                    // The next ones are read while these are sent.
                    *reading = read_ahead(file, *at, *end);
                    bytes
                }
            }
            Content::Flight { flight, at, waiting } => {
                if *at >= flight.size {
                    return Poll::Ready(None);
                }
                let next = waiting.get_or_insert_with(|| Box::pin(flight.clone().next(*at)));
                let bytes = ready!(next.as_mut().poll(cx));
                *waiting = None;
                match bytes {
                    Ok(bytes) => {
                        *at += bytes.len() as u64;
                        bytes
                    }
                    Err(e) => return Poll::Ready(Some(Err(e))),
                }
            }
        };
        self.left = self.left.saturating_sub(bytes.len() as u64);
        self.metrics.sent(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
