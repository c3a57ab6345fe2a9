//! Blobs: whole, in part, or only whether they are here (distribution-spec, "Pulling blobs").

use std::sync::Arc;

use hyper::{Method, header};
use isles_spec::Digest;
use isles_store::Hosted;

use crate::handle::{Asked, failed};
use crate::mirror::Flight;
use crate::reply::{Reply, ReplyBody};

/// Reads a digest of a path or a query.
pub fn digest_of(text: &str) -> Result<Digest, Reply> {
    text.parse().map_err(|e: isles_spec::Error| Reply::error(400, "DIGEST_INVALID", e.to_string()))
}

pub fn unknown(digest: &Digest) -> Reply {
    Reply::error(404, "BLOB_UNKNOWN", format!("there is no blob {digest} in this repository"))
}

/// Which bytes are wanted.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From the first to the last, both included.
    Part(u64, u64),
    /// Nothing that there is.
    Beyond,
}

/// Reads a `Range` header (RFC 9110, section 14). Several ranges at once, and units that nobody knows, mean all.
fn wanted(range: Option<&str>, size: u64) -> Wanted {
    let Some((unit, range)) = range.and_then(|r| r.split_once('=')) else { return Wanted::All };
    if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
        return Wanted::All;
    }
    let Some((first, last)) = range.trim().split_once('-') else { return Wanted::All };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // What does not fit is beyond any end.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let end = size.saturating_sub(1);
    match (number(first), number(last)) {
        (None, Some(0)) if first.is_empty() => Wanted::Beyond,
        (None, Some(_)) if first.is_empty() && size == 0 => Wanted::Beyond,
        (None, Some(count)) if first.is_empty() => Wanted::Part(size.saturating_sub(count), end),
        (Some(first), _) if first >= size => Wanted::Beyond,
        (Some(first), None) if last.is_empty() => Wanted::Part(first, end),
        (Some(first), Some(last)) if last < first => Wanted::Beyond,
        (Some(first), Some(last)) => Wanted::Part(first, last.min(end)),
        _ => Wanted::All,
    }
}

/// Whether a client has this already, by its `If-None-Match`.
pub fn is_known(asked: &Asked, digest: &Digest) -> bool {
    let tags = asked.header(header::IF_NONE_MATCH).unwrap_or_default();
    tags.split(',').map(|t| t.trim().trim_start_matches("W/")).any(|t| t == "*" || t == etag(digest))
}

pub fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// The answer with a blob that a mirror is fetching. Nothing where it was waited for, as for a part of it.
pub fn coming(asked: &Asked, digest: &str, flight: Arc<Flight>) -> Option<Reply> {
    let digest = digest.parse::<Digest>().ok()?;
    let part = asked.header(header::RANGE).is_some() || asked.header(header::IF_NONE_MATCH).is_some();
    if part && asked.method != Method::HEAD {
        flight.wait();
        return None;
    }
    let mut reply = Reply::new(200)
        .with("docker-content-digest", digest.to_string())
        .with("etag", etag(&digest))
        .with("cache-control", "max-age=31536000")
        .with("accept-ranges", "bytes")
        .with("content-type", "application/octet-stream");
    reply.length = Some(flight.size);
    reply.body = ReplyBody::Flight(flight);
    Some(reply)
}

pub fn get(asked: &Asked, hosted: &Hosted, digest: &str) -> Result<Reply, Reply> {
    let digest = digest_of(digest)?;
    let named = |status: u16| {
        Reply::new(status)
            .with("docker-content-digest", digest.to_string())
            .with("etag", etag(&digest))
            .with("cache-control", "max-age=31536000")
            .with("accept-ranges", "bytes")
            .with("content-type", "application/octet-stream")
    };
    if asked.method == Method::HEAD {
        // Who hears that it is here will leave it out of a push.
        let size = hosted.promise_blob(&digest).map_err(|e| failed(&e))?;
        let mut reply = named(200);
        reply.length = Some(size.ok_or_else(|| unknown(&digest))?);
        return Ok(reply);
    }
    let file = hosted.open_blob(&digest).map_err(|e| failed(&e))?.ok_or_else(|| unknown(&digest))?;
    let size = file.metadata().map_err(|_| unknown(&digest))?.len();
    if is_known(asked, &digest) {
        return Ok(named(304));
    }
    // A condition on another state of what never changes can only be for another thing.
    let same = asked.header(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag(&digest));
    match wanted(asked.header(header::RANGE).filter(|_| same), size) {
        Wanted::All => Ok(named(200).file(file, 0, size)),
        Wanted::Part(first, last) => Ok(named(206)
            .with("content-range", format!("bytes {first}-{last}/{size}"))
            .file(file, first, last - first + 1)),
        Wanted::Beyond => Err(Reply::error(416, "RANGE_INVALID", "there are no such bytes")
            .with("content-range", format!("bytes */{size}"))),
    }
}

pub fn delete(hosted: &Hosted, digest: &str) -> Result<Reply, Reply> {
    let digest = digest_of(digest)?;
    match hosted.unlink_blob(&digest).map_err(|e| failed(&e))? {
        true => Ok(Reply::new(202).with("docker-content-digest", digest.to_string())),
        false => Err(unknown(&digest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Wanted::{All, Beyond, Part};
        for (range, size, expected) in [
            (None, 10, All),
            (Some("bytes=0-0"), 10, Part(0, 0)),
            (Some("bytes=2-5"), 10, Part(2, 5)),
            (Some("bytes=2-"), 10, Part(2, 9)),
            (Some("bytes=-3"), 10, Part(7, 9)),
            (Some("bytes=-30"), 10, Part(0, 9)),
            (Some("bytes=5-99999999999999999999999"), 10, Part(5, 9)),
            (Some("Bytes = 1-2"), 10, Part(1, 2)),
            (Some("bytes=10-"), 10, Beyond),
            (Some("bytes=5-2"), 10, Beyond),
            (Some("bytes=-0"), 10, Beyond),
            (Some("bytes=0-"), 0, Beyond),
            (Some("bytes=-1"), 0, Beyond),
            (Some("bytes=1-2,4-5"), 10, All),
            (Some("lines=1-2"), 10, All),
            (Some("bytes=a-b"), 10, All),
            (Some("bytes=-"), 10, All),
            (Some("bytes"), 10, All),
        ] {
            assert_eq!(wanted(range, size), expected, "{range:?} {size}");
        }
    }
}
