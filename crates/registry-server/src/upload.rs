//! Blobs on their way in (distribution-spec, "Pushing blobs"): begun, mounted, sent in parts, closed, cancelled.
//!
//! What comes is gathered into large pieces; while one is hashed and written by a thread that may block, the next
//! one is gathered. A client that goes away leaves what had come, and goes on with it.

use std::io::Write as _;
use std::sync::Arc;

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::{Method, header};
use isles_spec::Algorithm;
use isles_spec::quantity::human_bytes;
use isles_store::{Hosted, Upload};
use tokio::task::JoinHandle;

use crate::access::Action;
use crate::blob::digest_of;
use crate::handle::{Asked, blocking, failed, next_bytes, no_such_method};
use crate::quota;
use crate::reply::Reply;
use crate::server::Server;

/// Bytes of a piece.
const PIECE: usize = 1 << 20;
/// Repositories that are asked for a blob whose mounting names none.
const MOST_ASKED: usize = 1000;

fn unknown(id: &str) -> Reply {
    Reply::error(404, "BLOB_UPLOAD_UNKNOWN", format!("there is no upload '{id}'"))
}

fn place(hosted: &Hosted, id: &str) -> String {
    format!("/v2/{}/blobs/uploads/{id}", hosted.name())
}

/// The answer while an upload goes on. The range of nothing at all is `0-0`, as clients of Docker's have it.
fn going_on(status: u16, hosted: &Hosted, id: &str, size: u64) -> Reply {
    Reply::new(status)
        .with("location", place(hosted, id))
        .with("range", format!("0-{}", size.saturating_sub(1)))
        .with("docker-upload-uuid", id)
}

fn created(hosted: &Hosted, digest: &str) -> Reply {
    Reply::new(201)
        .with("location", format!("/v2/{}/blobs/{digest}", hosted.name()))
        .with("docker-content-digest", digest)
}

/// `POST /v2/<name>/blobs/uploads/`
pub async fn begin(
    server: &Arc<Server>,
    asked: &Arc<Asked>,
    hosted: Hosted,
    body: Incoming,
) -> Result<Reply, Reply> {
    if asked.method != Method::POST {
        return Err(no_such_method());
    }
    let algorithm = match asked.query.get("digest-algorithm") {
        None | Some("sha256") => Algorithm::Sha256,
        Some("sha512") => Algorithm::Sha512,
        Some(other) => {
            let text = format!("the algorithm '{other}' is neither sha256 nor sha512");
            return Err(Reply::error(400, "DIGEST_INVALID", text));
        }
    };
    let digest = asked.query.get("digest").map(digest_of).transpose()?;
    let algorithm = digest.as_ref().map_or(algorithm, |d| d.algorithm());
    let (shared, question, here) = (server.clone(), asked.clone(), hosted.clone());
    let mounted = blocking(move || mount(&shared, &question, &here)).await??;
    if let Some(reply) = mounted {
        return Ok(reply);
    }
    let (shared, question, here, named) = (server.clone(), asked.clone(), hosted.clone(), digest.clone());
    let upload = blocking(move || {
        quota::room_for_more(&shared, &here, question.who.user.as_deref(), named.as_ref())?;
        here.start_upload(algorithm).map_err(|e| failed(&e))
    })
    .await??;
    let Some(digest) = digest else {
        let id = upload.id().to_owned();
        if let Some(hash) = upload.pause() {
            server.keep_hash(&id, hash);
        }
        return Ok(going_on(202, &hosted, &id, 0));
    };
    let (id, user) = (upload.id().to_owned(), asked.who.user.as_deref());
    match receive(server, &hosted, user, upload, body).await {
        (Some(upload), Ok(())) => finish(server, asked, hosted, upload, &digest.to_string()).await,
        (_, result) => {
            // Nobody has heard of this upload, so nobody can go on with it.
            let cancelled = blocking(move || hosted.cancel_upload(&id)).await;
            drop(cancelled);
            Err(result.err().unwrap_or_else(|| unknown("")))
        }
    }
}

/// Mounts a blob, where that is asked for and can be done.
fn mount(server: &Server, asked: &Asked, hosted: &Hosted) -> Result<Option<Reply>, Reply> {
    let Some(digest) = asked.query.get("mount") else { return Ok(None) };
    let digest = digest_of(digest)?;
    let done = || Ok(Some(created(hosted, &digest.to_string())));
    // It counts in each repository that has it, but only those bring something who send it.
    let within = |size: u64, add: &dyn Fn() -> isles_store::Result<Option<u64>>| {
        quota::within(server, hosted, None, &digest, size, || Ok(add().map_err(|e| failed(&e))?.is_some()))
    };
    let from = |name: &str| -> Result<bool, Reply> {
        if !asked.who.may(&server.access, name, Action::Pull) {
            return Ok(false);
        }
        let Ok(source) = server.store.hosted(name) else { return Ok(false) };
        source.blob(&digest).map_or(Ok(false), |size| within(size, &|| hosted.mount(&digest, &source)))
    };
    if let Some(offer) = asked.query.get("offer")
        && server.store.is_offered(offer, &digest).map_err(|e| failed(&e))?
        && let Some(size) = server.store.blob_size(&digest)
        && within(size, &|| hosted.adopt(&digest))?
    {
        return done();
    }
    match asked.query.get("from") {
        Some(name) if from(name)? => done(),
        Some(_) => Ok(None),
        None => {
            if !server.store.has_blob(&digest) {
                return Ok(None);
            }
            let names = server.store.hosted_names().map_err(|e| failed(&e))?;
            for name in names.iter().take(MOST_ASKED) {
                if from(name)? {
                    return done();
                }
            }
            Ok(None)
        }
    }
}

/// `GET`, `PATCH`, `PUT` and `DELETE` of an upload.
pub async fn go_on(
    server: &Arc<Server>,
    asked: &Arc<Asked>,
    hosted: Hosted,
    id: &str,
    body: Incoming,
) -> Result<Reply, Reply> {
    let user = asked.who.user.as_deref();
    match asked.method {
        Method::GET | Method::HEAD => {
            let size = hosted.upload_size(id).ok_or_else(|| unknown(id))?;
            Ok(going_on(204, &hosted, id, size))
        }
        Method::DELETE => {
            drop(server.take_hash(id));
            match hosted.cancel_upload(id).map_err(|e| failed(&e))? {
                true => Ok(Reply::new(204)),
                false => Err(unknown(id)),
            }
        }
        Method::PATCH => {
            let upload = resume(server, asked, &hosted, id, &body).await?;
            let (upload, result) = receive(server, &hosted, user, upload, body).await;
            let size = upload.as_ref().map(Upload::size);
            if let Some(hash) = upload.and_then(Upload::pause) {
                server.keep_hash(id, hash);
            }
            result?;
            Ok(going_on(202, &hosted, id, size.unwrap_or_default()))
        }
        Method::PUT => {
            let digest = asked.query.get("digest").ok_or_else(|| {
                Reply::error(400, "DIGEST_INVALID", "an upload is closed with the digest of the blob")
            })?;
            let digest = digest_of(digest)?.to_string();
            let upload = resume(server, asked, &hosted, id, &body).await?;
            match receive(server, &hosted, user, upload, body).await {
                (Some(upload), Ok(())) => finish(server, asked, hosted, upload, &digest).await,
                (upload, result) => {
                    if let Some(hash) = upload.and_then(Upload::pause) {
                        server.keep_hash(id, hash);
                    }
                    Err(result.err().unwrap_or_else(|| unknown(id)))
                }
            }
        }
        _ => Err(no_such_method()),
    }
}

/// Opens an upload for what a request brings, which must go on where it is.
async fn resume(
    server: &Arc<Server>,
    asked: &Asked,
    hosted: &Hosted,
    id: &str,
    body: &Incoming,
) -> Result<Upload, Reply> {
    let (here, name, hash) = (hosted.clone(), id.to_owned(), server.take_hash(id));
    let opened = blocking(move || here.resume_upload(&name, hash)).await?.map_err(|e| failed(&e))?;
    let upload = opened.ok_or_else(|| unknown(id))?;
    let Some(range) = asked.header(header::CONTENT_RANGE) else { return Ok(upload) };
    let odd = || {
        let text = format!("this upload goes on at byte {}", upload.size());
        let mut reply = Reply::error(416, "BLOB_UPLOAD_INVALID", text);
        reply.headers.extend(going_on(416, hosted, id, upload.size()).headers);
        reply
    };
    let Some((first, last)) = range_of(range) else {
        let hash = upload.pause();
        if let Some(hash) = hash {
            server.keep_hash(id, hash);
        }
        return Err(Reply::error(400, "BLOB_UPLOAD_INVALID", "Content-Range is written FIRST-LAST"));
    };
    if first != upload.size() || last < first {
        let reply = odd();
        if let Some(hash) = upload.pause() {
            server.keep_hash(id, hash);
        }
        return Err(reply);
    }
    if body.size_hint().exact().is_some_and(|length| length != last - first + 1) {
        if let Some(hash) = upload.pause() {
            server.keep_hash(id, hash);
        }
        return Err(Reply::error(400, "SIZE_INVALID", "Content-Length and Content-Range differ"));
    }
    Ok(upload)
}

/// Reads `0-9`, and the form of RFC 9110 that some clients send, `bytes 0-9/10`.
fn range_of(text: &str) -> Option<(u64, u64)> {
    let text = text.trim();
    let text = text.strip_prefix("bytes ").or_else(|| text.strip_prefix("bytes=")).unwrap_or(text);
    let text = text.split('/').next()?;
    let (first, last) = text.split_once('-')?;
    let number = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse().ok()).flatten();
    Some((number(first)?, number(last)?))
}

type Writing = JoinHandle<(Upload, std::io::Result<()>)>;

/// Hashes and writes pieces on a thread that may block.
fn write(mut upload: Upload, pieces: Vec<Bytes>) -> Writing {
    tokio::task::spawn_blocking(move || {
        let result = pieces.iter().try_for_each(|piece| upload.write_all(piece));
        (upload, result)
    })
}

/// Takes what a request brings. Returns the upload, unless a thread was lost, and whether all of it came.
async fn receive(
    server: &Arc<Server>,
    hosted: &Hosted,
    user: Option<&str>,
    upload: Upload,
    mut body: Incoming,
) -> (Option<Upload>, Result<(), Reply>) {
    let limit = quota::most(server, user).unwrap_or(u64::MAX);
    let mut came = upload.size();
    let mut next_look = came;
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut gathered = 0;
    let mut result = Ok(());
    let mut writing = tokio::task::spawn_blocking(move || (upload, Ok(())));
    loop {
        let part = next_bytes(&mut body).await;
        match part {
            Some(Ok(bytes)) => {
                server.metrics.received(bytes.len() as u64);
                came += bytes.len() as u64;
                if came > next_look && limit < u64::MAX {
                    next_look = came + quota::LOOK;
                    let (shared, here) = (server.clone(), hosted.clone());
                    let room = blocking(move || quota::room_for_unfinished(&shared, &here)).await;
                    if let Err(refused) = room.and_then(|room| room) {
                        return (writing.await.ok().map(|(upload, _)| upload), Err(refused));
                    }
                }
                if came > limit {
                    let text = format!("nothing of more than {} is taken here", human_bytes(limit));
                    let refused = Reply::error(403, "DENIED", text);
                    if let Ok((upload, _)) = writing.await {
                        let _ = upload.discard();
                    }
                    return (None, Err(refused));
                }
                gathered += bytes.len();
                pieces.push(bytes);
                if gathered < PIECE {
                    continue;
                }
            }
            Some(Err(_)) => {
                result = Err(Reply::error(400, "SIZE_INVALID", "the body ended too early"));
            }
            None => {}
        }
        let ended = gathered < PIECE;
        match writing.await {
            Ok((upload, Ok(()))) => writing = write(upload, std::mem::take(&mut pieces)),
            Ok((upload, Err(e))) => return (Some(upload), Err(not_written(&e))),
            Err(_) => return (None, Err(Reply::error(500, "UNKNOWN", "the registry could not do this"))),
        }
        gathered = 0;
        if ended {
            break;
        }
    }
    match writing.await {
        Ok((upload, Ok(()))) => (Some(upload), result),
        Ok((upload, Err(e))) => (Some(upload), Err(not_written(&e))),
        Err(_) => (None, Err(Reply::error(500, "UNKNOWN", "the registry could not do this"))),
    }
}

fn not_written(error: &std::io::Error) -> Reply {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => Reply::error(507, "DENIED", "the registry's disk is full"),
        _ => {
            eprintln!("isles registry: cannot write an upload: {error}");
            Reply::error(500, "UNKNOWN", "the registry could not write this; who runs it sees why")
        }
    }
}

async fn finish(
    server: &Arc<Server>,
    asked: &Arc<Asked>,
    hosted: Hosted,
    upload: Upload,
    digest: &str,
) -> Result<Reply, Reply> {
    let expected = digest_of(digest)?;
    let (shared, question, here) = (server.clone(), asked.clone(), hosted.clone());
    blocking(move || {
        let user = question.who.user.as_deref();
        let id = upload.id().to_owned();
        let whole = upload.whole(&expected).map_err(|e| failed(&e))?;
        let kept = quota::within(&shared, &here, user, &expected, whole.size(), || {
            whole.link().map_err(|e| failed(&e))?;
            user.map_or(Ok(()), |user| here.credit(&expected, user)).map_err(|e| failed(&e))
        });
        if kept.as_ref().is_err_and(|refusal| refusal.status == 403) {
            // For what there is no room there will be none soon; who tries later sends it once more.
            let _ = here.cancel_upload(&id);
        }
        kept
    })
    .await??;
    Ok(created(&hosted, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_parts() {
        for (text, expected) in [
            ("0-9", Some((0, 9))),
            (" 10-19 ", Some((10, 19))),
            ("bytes 0-9/10", Some((0, 9))),
            ("bytes=0-9", Some((0, 9))),
            ("9", None),
            ("-9", None),
            ("0-", None),
            ("+0-9", None),
            ("a-b", None),
            ("0-99999999999999999999", None),
        ] {
            assert_eq!(range_of(text), expected, "{text}");
        }
    }
}
