//! One blob, or one document, on its way into a repository: left out where it is there, mounted from a sibling, else
//! uploaded, and after a broken connection continued from where the registry has it (distribution-spec, "Push").

use std::cell::RefCell;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use isles_spec::image::Descriptor;
use isles_spec::{Digest, Progress, Reference};
use isles_store::Offer;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use crate::auth::Scope;
use crate::client::{Call, Repository, object_name};
use crate::http::{Payload, text_of};
use crate::manifest::{digest_of, manifest_name};
use crate::push::Pushed;
use crate::{Error, Result, location};

/// What a registry that lists referrers says of a manifest with a subject.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// What was done to blobs so far.
#[derive(Default)]
pub(crate) struct Counts {
    pub uploaded: AtomicU64,
    pub mounted: AtomicU64,
    pub existing: AtomicU64,
    pub bytes: AtomicU64,
    /// A part failed, so the rest is not worth sending.
    pub stop: AtomicBool,
}

impl Counts {
    pub fn pushed(&self, target: Descriptor) -> Pushed {
        let number = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Pushed {
            target,
            uploaded: number(&self.uploaded) as usize,
            mounted: number(&self.mounted) as usize,
            existing: number(&self.existing) as usize,
            bytes: number(&self.bytes),
        }
    }
}

/// The bytes of a blob from some offset on.
pub(crate) type Open<'a> = &'a dyn Fn(u64) -> Result<Box<dyn Read + 'a>>;

/// What is known of where a blob may be had without sending it.
#[derive(Default)]
pub(crate) struct Nearby<'a> {
    /// Repositories of the same registry that should have it.
    pub siblings: &'a [String],
    pub offer: Option<Offer>,
}

/// Sends to one repository; shared by threads.
pub(crate) struct Sender<'a> {
    pub repository: &'a Repository<'a>,
    pub progress: &'a dyn Progress,
    pub counts: Counts,
}

impl<'s> Sender<'s> {
    pub fn new(repository: &'s Repository<'s>, progress: &'s dyn Progress) -> Sender<'s> {
        Sender { repository, progress, counts: Counts::default() }
    }

    /// Sees to it that the registry has a blob. `nearby` is asked when it has not, and `open` when it must be sent.
    pub fn blob<'a>(
        &self,
        blob: &Descriptor,
        nearby: &dyn Fn() -> Result<Nearby<'a>>,
        open: Open<'_>,
    ) -> Result<()> {
        let id = self.progress.begin(blob.digest.short(), Some(blob.size));
        let result = self.bring(blob, nearby, open, id);
        self.progress.end(id, result.as_ref().map_or("failed", |how| how));
        result.map(|_| ())
    }

    fn bring<'a>(
        &self,
        blob: &Descriptor,
        nearby: &dyn Fn() -> Result<Nearby<'a>>,
        open: Open<'_>,
        id: u64,
    ) -> Result<&'static str> {
        let object = format!("blob {}", blob.digest);
        let scope = Scope::of(&self.repository.name, "pull,push");
        let url = self.repository.url(&format!("blobs/{}", blob.digest))?;
        let call = Call::get(url, &scope, "push", &object).method(Method::HEAD);
        let response = self.repository.send(&call)?;
        match response.status().as_u16() {
            200 => {
                self.counts.existing.fetch_add(1, Ordering::Relaxed);
                return Ok("already there");
            }
            401 => return Err(self.repository.refused(&call, response)),
            // Stores that the question was redirected to may refuse it. The upload then says more.
            _ => {}
        }
        let mut session = None;
        let nearby = nearby()?;
        let offer = nearby.offer.as_ref();
        let mut sources: Vec<Option<&str>> = nearby.siblings.iter().map(|name| Some(name.as_str())).collect();
        if sources.is_empty() && offer.is_some() {
            sources.push(None);
        }
        for source in sources {
            match self.mount(blob, source, offer, &object)? {
                Mounted::Yes => {
                    self.counts.mounted.fetch_add(1, Ordering::Relaxed);
                    return Ok("mounted");
                }
                Mounted::Upload(place) => session = Some(place),
                Mounted::No => {}
            }
            if session.is_some() {
                break;
            }
        }
        self.upload(blob, session, &object, &scope, open, id)?;
        self.counts.uploaded.fetch_add(1, Ordering::Relaxed);
        Ok("pushed")
    }

    /// Asks the registry to take the blob from a sibling repository, or by an offer, which registries that know of
    /// none pass over. It may begin an upload instead.
    fn mount(
        &self,
        blob: &Descriptor,
        source: Option<&str>,
        offer: Option<&Offer>,
        object: &str,
    ) -> Result<Mounted> {
        let mut scope = Scope::of(&self.repository.name, "pull,push");
        let url = self.repository.url("blobs/uploads/")?;
        let mut url = location::with_query(&url, "mount", &blob.digest.to_string());
        if let Some(name) = source {
            scope = scope.and_pull(name);
            url = url.and_then(|u| location::with_query(&u, "from", name));
        }
        if let Some(offer) = offer {
            url = url.and_then(|u| location::with_query(&u, "offer", offer.id()));
        }
        let Some(url) = url else { return Ok(Mounted::No) };
        let call = Call { payload: Payload::Bytes(b""), ..Call::get(url, &scope, "push", object) };
        match self.repository.send(&call.method(Method::POST)) {
            Ok(r) if r.status() == 201 => Ok(Mounted::Yes),
            Ok(r) if r.status() == 202 => Ok(Mounted::Upload(self.session(r.headers())?)),
            // No right to the other repository, or no mounts here: the blob is sent.
            Ok(_) | Err(Error::Unauthorized { .. } | Error::Denied { .. }) => Ok(Mounted::No),
            Err(e) => Err(e),
        }
    }

    fn session(&self, headers: &HeaderMap) -> Result<Uri> {
        self.repository.place(text_of(headers, &header::LOCATION).unwrap_or_default())
    }

    /// Sends a blob. After a broken connection the registry is asked how much has arrived.
    fn upload(
        &self,
        blob: &Descriptor,
        session: Option<Uri>,
        object: &str,
        scope: &Scope,
        open: Open<'_>,
        id: u64,
    ) -> Result<()> {
        let counter = AtomicU64::new(0);
        let source = RefCell::new(None);
        let mut session = session;
        let mut sent = 0;
        let mut attempt = 0;
        loop {
            let place = match session.take() {
                Some(place) => place,
                None => {
                    sent = 0;
                    self.start(object, scope)?
                }
            };
            let outcome = self.send(
                open,
                blob,
                &place,
                sent,
                object,
                scope,
                &|n| {
                    // A repeated part is no progress.
                    let now = counter.load(Ordering::Relaxed);
                    if n > now {
                        counter.store(n, Ordering::Relaxed);
                        self.counts.bytes.fetch_add(n - now, Ordering::Relaxed);
                        self.progress.advance(id, n - now);
                    }
                },
                &source,
            );
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            // Whatever the bytes come from has tried again by itself.
            if let Some(error) = source.take() {
                return Err(error);
            }
            let passing = match &error {
                Error::Broken { .. } | Error::TooManyRequests { .. } => true,
                Error::Refused { status, .. } => crate::retry::is_transient(*status),
                _ => false,
            };
            if !passing || self.counts.stop.load(Ordering::Relaxed) {
                return Err(error);
            }
            attempt += 1;
            let asked = match &error {
                Error::TooManyRequests { retry_after, .. } => *retry_after,
                _ => None,
            };
            let Some(wait) = self.repository.retry().wait(attempt, asked) else { return Err(error) };
            self.progress.status(id, &format!("retry {attempt}: {error}"));
            std::thread::sleep(wait);
            if let Some((next, offset)) = self.arrived(&place, object, scope)
                && offset <= blob.size
            {
                if offset > sent {
                    attempt = 0;
                }
                (session, sent) = (Some(next), offset);
            }
        }
    }

    fn start(&self, object: &str, scope: &Scope) -> Result<Uri> {
        let url = self.repository.url("blobs/uploads/")?;
        let call = Call { payload: Payload::Bytes(b""), ..Call::get(url, scope, "push", object) };
        let response = self.repository.expect(call.method(Method::POST), &[202])?;
        self.session(response.headers())
    }

    /// How many bytes of an upload the registry has, and where to go on; none where it forgot.
    fn arrived(&self, place: &Uri, object: &str, scope: &Scope) -> Option<(Uri, u64)> {
        let call = Call::get(place.clone(), scope, "push", object);
        let response = self.repository.expect(call, &[204]).ok()?;
        let (_, last) = text_of(response.headers(), &header::RANGE)?.split_once('-')?;
        let next = self.session(response.headers()).unwrap_or_else(|_| place.clone());
        // `0-0` stands for nothing as well as for one byte; nothing is the safe reading.
        let last: u64 = last.trim().parse().ok()?;
        Some((next, if last == 0 { 0 } else { last + 1 }))
    }

    /// Sends the bytes from `offset` on and completes the upload: in one request where it is the whole blob.
    #[allow(clippy::too_many_arguments)]
    fn send(
        &self,
        open: Open<'_>,
        blob: &Descriptor,
        place: &Uri,
        offset: u64,
        object: &str,
        scope: &Scope,
        sent: &dyn Fn(u64),
        source: &RefCell<Option<Error>>,
    ) -> Result<()> {
        let outgoing = || -> io::Result<Box<dyn Read + '_>> {
            let rest = open(offset).map_err(|e| {
                let text = io::Error::other(e.to_string());
                source.replace(Some(e));
                text
            })?;
            let rest = rest.take(blob.size - offset);
            Ok(Box::new(Outgoing { rest, done: offset, object, sent, stop: &self.counts.stop, source }))
        };
        let octets = HeaderValue::from_static("application/octet-stream");
        let mut place = place.clone();
        let payload = Payload::Stream { size: blob.size - offset, open: &outgoing };
        let whole = offset == 0;
        if !whole && offset < blob.size {
            let mut call = Call { payload, ..Call::get(place, scope, "push", object) }.method(Method::PATCH);
            call.headers.insert(header::CONTENT_TYPE, octets.clone());
            let range = format!("{offset}-{}", blob.size - 1);
            if let Ok(range) = HeaderValue::try_from(range) {
                call.headers.insert(header::CONTENT_RANGE, range);
            }
            let response = self.repository.once(&call)?;
            if !matches!(response.status().as_u16(), 201 | 202) {
                return Err(self.repository.refused(&call, response));
            }
            place = self.session(response.headers())?;
        }
        let url = location::with_query(&place, "digest", &blob.digest.to_string()).ok_or_else(|| {
            Error::Protocol {
                host: self.repository.registry.clone(),
                why: "it names no place to send to".into(),
            }
        })?;
        let payload = if whole { payload } else { Payload::Bytes(b"") };
        let mut call = Call { payload, ..Call::get(url, scope, "push", object) }.method(Method::PUT);
        call.headers.insert(header::CONTENT_TYPE, octets);
        let response = self.repository.once(&call)?;
        match response.status().as_u16() {
            201 | 204 => Ok(()),
            _ => Err(self.repository.refused(&call, response)),
        }
    }

    /// Sends a manifest or an index under a name.
    pub fn document(&self, kind: &str, bytes: &[u8], target: &Reference) -> Result<Descriptor> {
        self.document_about(kind, bytes, target).map(|(sent, _)| sent)
    }

    /// As [`Sender::document`]; tells also whether the registry has seen what the document is about, so that it lists
    /// it there by itself.
    pub fn document_about(&self, kind: &str, bytes: &[u8], target: &Reference) -> Result<(Descriptor, bool)> {
        let object = object_name(target);
        let scope = Scope::of(&self.repository.name, "pull,push");
        let url = self.repository.url(&format!("manifests/{}", manifest_name(target)))?;
        let call = Call { payload: Payload::Bytes(bytes), ..Call::get(url, &scope, "push", &object) };
        let mut call = call.method(Method::PUT);
        if let Ok(kind) = HeaderValue::from_str(kind) {
            call.headers.insert(header::CONTENT_TYPE, kind);
        }
        let response = self.repository.expect(call, &[200, 201, 202])?;
        let said = text_of(response.headers(), &crate::manifest::CONTENT_DIGEST);
        let said = said.and_then(|t| t.parse::<Digest>().ok());
        let algorithm =
            target.digest().or(said.as_ref()).map_or(isles_spec::Algorithm::Sha256, Digest::algorithm);
        let digest = digest_of(algorithm, bytes);
        if let Some(actual) = said.filter(|d| *d != digest) {
            let host = self.repository.registry.clone();
            return Err(Error::Mismatch { host, object, expected: digest, actual });
        }
        let listed = response.headers().contains_key(SUBJECT);
        Ok((Descriptor::new(kind, digest, bytes.len() as u64), listed))
    }
}

enum Mounted {
    Yes,
    Upload(Uri),
    No,
}

/// A blob on its way out: counts, and breaks off when another part failed.
struct Outgoing<'a> {
    rest: io::Take<Box<dyn Read + 'a>>,
    done: u64,
    object: &'a str,
    sent: &'a dyn Fn(u64),
    stop: &'a AtomicBool,
    /// Why the bytes ended.
    source: &'a RefCell<Option<Error>>,
}

impl Read for Outgoing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another part of the image failed"));
        }
        let n = self.rest.read(buffer).map_err(|e| {
            let text = io::Error::other(e.to_string());
            let error = e.downcast::<Error>().unwrap_or_else(|source| {
                isles_store::Error::Io { doing: "read", object: self.object.to_owned(), source }.into()
            });
            self.source.replace(Some(error));
            text
        })?;
        self.done += n as u64;
        (self.sent)(self.done);
        Ok(n)
    }
}
