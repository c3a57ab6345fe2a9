//! One request: who asks, whether they may, what they get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response};
use isles_store::{Error as StoreError, Hosted};

use crate::access::Action;
use crate::identity::{self, Who};
use crate::log::Line;
use crate::mirror::Fetched;
use crate::reply::{Outgoing, Reply};
use crate::route::{Query, Route};
use crate::sendfile::Files;
use crate::server::Server;
use crate::{blob, list, manifest, page, upload};

/// A request whose body has not been read.
pub struct Asked {
    pub method: Method,
    pub route: Route,
    pub query: Query,
    pub headers: HeaderMap,
    pub who: Who,
    /// `scheme://host[:port]`, as the client reaches this server.
    pub base: String,
}

impl Asked {
    /// A header's text.
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn is_read(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// What a method that an endpoint does not have is answered.
pub fn no_such_method() -> Reply {
    Reply::error(405, "UNSUPPORTED", "this cannot be done here")
}

/// The answer to a failure of the store's.
pub fn failed(error: &StoreError) -> Reply {
    let text = error.to_string();
    match error {
        e if e.is_full_disk() => Reply::error(507, "DENIED", "the registry's disk is full"),
        StoreError::Document { .. } => Reply::error(400, "MANIFEST_INVALID", text),
        StoreError::Limit { .. } => Reply::error(413, "SIZE_INVALID", text),
        StoreError::WrongDigest { .. } => Reply::error(400, "DIGEST_INVALID", text),
        StoreError::InUse { .. } => Reply::error(409, "BLOB_UPLOAD_INVALID", text).with("retry-after", "1"),
        // Its paths are nobody else's business.
        _ => {
            eprintln!("isles registry: {text}");
            Reply::error(500, "UNKNOWN", "the registry could not do this; who runs it sees why")
        }
    }
}

/// Does what blocks, such as reading files, on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Reply> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Reply::error(500, "UNKNOWN", "the registry could not do this"))
}

/// The next bytes of a body; nothing at its end.
pub async fn next_bytes(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(|f| f.into_data()) {
            Ok(Ok(data)) => return Some(Ok(data)),
            Ok(Err(_trailers)) => {}
            Err(e) => return Some(Err(e)),
        }
    }
}

/// A body that may have so many bytes.
pub async fn whole(mut body: Incoming, limit: usize) -> Result<Vec<u8>, Reply> {
    let too_large =
        || Reply::error(413, "SIZE_INVALID", format!("more than {limit} bytes are not taken here"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(body.size_hint().lower() as usize);
    while let Some(part) = next_bytes(&mut body).await {
        let part = part.map_err(|_| Reply::error(400, "SIZE_INVALID", "the body ended too early"))?;
        if bytes.len() + part.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// Answers a request, and notes that in the log and the metrics. `files` takes what goes out without TLS.
pub async fn answer(
    server: Arc<Server>,
    request: Request<Incoming>,
    peer: SocketAddr,
    files: Option<Arc<Files>>,
) -> Response<Outgoing> {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let path = parts.uri.path_and_query().map_or_else(String::new, |p| p.as_str().to_owned());
    let route = Route::of(parts.uri.path());
    let kind = route.kind();
    let base = base_of(&server, &parts.headers, parts.uri.authority().map(|a| a.as_str()), files.is_none());
    let agent = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut user = None;
    let mut note = None;
    let reply = match Query::of(parts.uri.query()) {
        None => Reply::error(400, "UNSUPPORTED", "the query is not valid"),
        Some(query) => match identity::identify(&server, &parts.headers, peer.ip()).await {
            Err(reply) => {
                note = Some("login failed");
                identity::challenge(&server, &base, reply, None)
            }
            Ok(who) => {
                user.clone_from(&who.user);
                let headers = parts.headers;
                let route = match (query.get("ns"), route.repository()) {
                    (Some(namespace), Some(name)) => match server.mirrors.here(namespace, name) {
                        Some(here) => route.of_repository(&here),
                        None => route,
                    },
                    _ => route,
                };
                let asked = Asked { method: parts.method.clone(), route, query, headers, who, base };
                dispatch(&server, asked, body).await
            }
        },
    };
    let reply = reply
        .with("docker-distribution-api-version", "registry/2.0")
        .with("x-content-type-options", "nosniff");
    let response = reply.finish(head, &server.metrics, files);
    let took = begun.elapsed();
    let status = response.status().as_u16();
    server.metrics.answered(kind, parts.method.as_str(), status, took);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    server.log.write(&Line {
        time: isles_spec::time::rfc3339_nanoseconds(now.as_nanos() as u64),
        peer: peer.to_string(),
        user: user.as_deref(),
        method: parts.method.as_str(),
        path: &path,
        status,
        bytes: hyper::body::Body::size_hint(response.body()).lower(),
        milliseconds: took.as_secs_f64() * 1e3,
        agent: agent.as_deref(),
        note,
    });
    response
}

/// As the client reaches this server.
fn base_of(server: &Server, headers: &HeaderMap, authority: Option<&str>, tls: bool) -> String {
    if let Some(url) = &server.config.url {
        return url.trim_end_matches('/').to_owned();
    }
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    // A name that a client made up ends in a header of its own answer.
    let plain = |host: &&str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b));
    let host = authority.or_else(|| text(header::HOST)).filter(plain).unwrap_or("localhost");
    format!("{}://{host}", if tls { "https" } else { "http" })
}

/// What one must be allowed for a request, beside the repository that its route names.
fn action_of(asked: &Asked) -> Action {
    match (&asked.route, &asked.method) {
        (Route::Uploads(_) | Route::Upload(..), _) => Action::Push,
        (_, &Method::PUT | &Method::POST | &Method::PATCH) => Action::Push,
        (_, &Method::DELETE) => Action::Delete,
        _ => Action::Pull,
    }
}

async fn dispatch(server: &Arc<Server>, asked: Asked, body: Incoming) -> Reply {
    if let Some(repository) = asked.route.repository() {
        let action = action_of(&asked);
        if !asked.who.may(&server.access, repository, action) {
            return forbidden(server, &asked, Some((repository, action)));
        }
    }
    let hosted = match asked.route.repository().map(|name| server.store.hosted(name)).transpose() {
        Ok(hosted) => hosted,
        Err(_) => return Reply::error(400, "NAME_INVALID", "this is no name of a repository"),
    };
    let mirrored = asked.route.repository().is_some_and(|name| server.mirrors.has(name));
    if mirrored && !asked.is_read() {
        return Reply::error(405, "UNSUPPORTED", "this repository is a mirror of another registry's");
    }
    let asked = Arc::new(asked);
    let done = match (&asked.route, hosted) {
        (Route::Uploads(_), Some(hosted)) => upload::begin(server, &asked, hosted, body).await,
        (Route::Upload(_, id), Some(hosted)) => upload::go_on(server, &asked, hosted, id, body).await,
        (Route::Manifest(..), Some(hosted)) if asked.method == Method::PUT => {
            manifest::put(server, &asked, hosted, body).await
        }
        (_, hosted) => {
            let (server, asked) = (server.clone(), asked.clone());
            blocking(move || without_body(&server, &asked, hosted)).await.and_then(|reply| reply)
        }
    };
    done.unwrap_or_else(|refusal| refusal)
}

/// The endpoints that read nothing of a body.
fn without_body(server: &Server, asked: &Asked, hosted: Option<Hosted>) -> Result<Reply, Reply> {
    if let Route::BadName(name) = &asked.route {
        return Err(Reply::error(400, "NAME_INVALID", format!("'{name}' is no name of a repository")));
    }
    let read = asked.is_read();
    if let (Some(hosted), true) = (&hosted, read) {
        match &asked.route {
            Route::Manifest(_, name) => server.mirrors.manifest(&server.store, hosted, name)?,
            Route::Blob(_, digest) => {
                if let Fetched::Coming(flight) = server.mirrors.blob(hosted, digest)?
                    && let Some(reply) = blob::coming(asked, digest, flight)
                {
                    return Ok(reply);
                }
            }
            _ => {}
        }
    }
    match (&asked.route, hosted) {
        (Route::Manifest(_, name), Some(hosted)) if read => manifest::get(server, asked, &hosted, name),
        (Route::Manifest(_, name), Some(hosted)) if asked.method == Method::DELETE => {
            manifest::delete(server, &hosted, name)
        }
        (Route::Blob(_, digest), Some(hosted)) if read => blob::get(asked, &hosted, digest),
        (Route::Blob(_, digest), Some(hosted)) if asked.method == Method::DELETE => {
            blob::delete(&hosted, digest)
        }
        (Route::Tags(_), Some(hosted)) if read => list::tags(server, asked, &hosted),
        (Route::Referrers(_, digest), Some(hosted)) if read => list::referrers(asked, &hosted, digest),
        (Route::Catalog, _) if read => list::catalog(server, asked),
        (Route::Base, _) if read => {
            // Clients ask here whether there are logins, and try theirs; who has none gets a token all the same.
            if server.passwords.is_some() && asked.headers.get(header::AUTHORIZATION).is_none() {
                return Err(forbidden(server, asked, None));
            }
            Ok(Reply::new(200).json(&serde_json::json!({})))
        }
        (Route::Token, _) if read => {
            let reply = identity::issue(server, &asked.who, &asked.query);
            Ok(if reply.status == 401 { identity::challenge_basic(reply, &asked.base) } else { reply })
        }
        (Route::Health, _) if read => Ok(Reply::new(200).bytes("text/plain; charset=utf-8", "ok\n")),
        (Route::Metrics, _) if read => {
            Ok(Reply::new(200).bytes("text/plain; version=0.0.4", server.metrics.text()))
        }
        (Route::Page(what), _) if read => page::show(server, asked, what.as_ref()),
        (Route::Nothing, _) => Err(Reply::error(404, "UNSUPPORTED", "there is nothing here")),
        _ => Err(no_such_method()),
    }
}

/// The answer to those who may not: 401 with the way to a login where that may help, 403 where it will not.
pub fn forbidden(server: &Server, asked: &Asked, wanted: Option<(&str, Action)>) -> Reply {
    let named = asked.who.user.as_deref();
    let hopeless = match wanted {
        Some((repository, action)) => named.is_some() && !server.access.allows(named, repository, action),
        None => false,
    };
    if hopeless || server.passwords.is_none() {
        return Reply::error(403, "DENIED", "you may not do this");
    }
    let reply = Reply::error(401, "UNAUTHORIZED", "this needs a login");
    if matches!(asked.route, Route::Page(_)) {
        return identity::challenge_basic(reply, &asked.base);
    }
    identity::challenge(server, &asked.base, reply, wanted)
}
