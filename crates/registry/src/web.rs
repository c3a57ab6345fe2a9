//! Plain downloads over HTTP, with the same trust, proxies and patience as for registries: a package archive,
//! a file that a recipe names by its URL.

use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use ureq::{Body, BodyReader};

use crate::client::ClientOptions;
use crate::error::one_line;
use crate::http::{Http, Payload, text_of};
use crate::{Error, Result, retry};

/// Downloads files. Cheap to make, shared by threads; connections are kept for the next request.
pub struct Web {
    http: Http,
}

/// What is asked for, beside the URL.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Leave out the bytes before this one, where the server can.
    pub from: u64,
    /// An `ETag` or `Last-Modified` value of an earlier answer: the server may say that nothing changed.
    pub known: Option<&'a Validator>,
    /// Do not try again, and give up after this time.
    pub within: Option<Duration>,
    /// The `Authorization` header, which stays with the origin of the URL.
    pub authorization: Option<&'a str>,
}

/// What tells one state of a file from another (RFC 9110, section 8.8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validator {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// An answer with a status that is not worth another try.
pub struct Answer {
    /// 200 with a body from the beginning, 206 with one from the byte asked for, 304 where nothing changed,
    /// or why there is none (404 and the like).
    pub status: u16,
    /// Bytes of the body, where the server says so.
    pub length: Option<u64>,
    pub validator: Validator,
    body: Body,
}

impl Answer {
    /// When the file last changed, where the server says so (seconds since 1970).
    pub fn last_modified(&self) -> Option<i64> {
        let date = isles_spec::time::parse_date(self.validator.last_modified.as_deref()?, &["GMT"])?;
        i64::try_from(date).ok()
    }

    /// The body. Bound what is read of it.
    pub fn reader(self) -> BodyReader<'static> {
        self.body.into_reader()
    }

    /// The body, of at most `limit` bytes; none where it is longer.
    pub fn bytes(self, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
        isles_store::read_bounded(self.reader(), limit)
    }
}

impl Web {
    pub fn new(options: &ClientOptions) -> Self {
        Web { http: Http::new(options) }
    }

    /// For URLs that others wrote: no link-local address is connected to, by whatever name or redirect, since
    /// clouds tell a machine its secrets there.
    pub fn guarded(options: &ClientOptions) -> Self {
        let mut http = Http::new(options);
        http.guarded = true;
        Web { http }
    }

    /// Asks for a file. Redirects are followed; what fails for the moment is tried again.
    pub fn get(&self, url: &str, wish: Wish<'_>) -> Result<Answer> {
        let odd = || -> Error {
            isles_spec::Error::new(format!("'{}' is not a URL to download from", one_line(url)))
                .with_hint("write it as http:// or https://, a host and a path")
                .into()
        };
        let uri: Uri = url.parse().map_err(|_| odd())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(odd());
        }
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        if wish.from > 0 {
            set(header::RANGE, &format!("bytes={}-", wish.from));
        }
        if let Some(known) = wish.known {
            if let Some(etag) = &known.etag {
                set(header::IF_NONE_MATCH, etag);
            }
            if let Some(date) = &known.last_modified {
                set(header::IF_MODIFIED_SINCE, date);
            }
        }
        let authorization = match wish.authorization.map(HeaderValue::try_from).transpose() {
            Ok(authorization) => authorization,
            Err(_) => {
                return Err(isles_spec::Error::new(
                    "the authorization has characters that no header may have",
                )
                .into());
            }
        };
        let mut attempt = 0;
        loop {
            let sent = self.http.exchange_within(
                &Method::GET,
                &uri,
                &headers,
                authorization.as_ref(),
                Payload::None,
                wish.within,
            );
            let (failure, asked) = match sent {
                Ok(response) => {
                    let status = response.status().as_u16();
                    if !retry::is_transient(status) {
                        let text = |name| text_of(response.headers(), &name).map(str::to_owned);
                        let validator = Validator {
                            etag: text(header::ETAG),
                            last_modified: text(header::LAST_MODIFIED),
                        };
                        let length = text(header::CONTENT_LENGTH).and_then(|t| t.parse().ok());
                        return Ok(Answer { status, length, validator, body: response.into_body() });
                    }
                    let asked = text_of(response.headers(), &header::RETRY_AFTER)
                        .and_then(|v| retry::retry_after(v, SystemTime::now()));
                    let host = crate::http::authority_of(&uri);
                    let message =
                        response.status().canonical_reason().unwrap_or("no reason given").to_owned();
                    let (operation, object) = ("fetch", uri.path().to_owned());
                    (Error::Refused { host, operation, object, status, message }, asked)
                }
                Err(failure) if failure.transient => (failure.error, None),
                Err(failure) => return Err(failure.error),
            };
            attempt += 1;
            let wait = if wish.within.is_some() { None } else { self.http.retry.wait(attempt, asked) };
            match wait {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure),
            }
        }
    }

    /// How often and how long to try again.
    pub fn retry(&self) -> &retry::Policy {
        &self.http.retry
    }
}
