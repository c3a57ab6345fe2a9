//! Manifests and indexes by tag and by digest (distribution-spec, "Pulling manifests", "Pushing Manifests").

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header;
use isles_spec::image::media_type;
use isles_spec::{Algorithm, Digest};
use isles_store::{Hosted, NewManifest, is_tag};

use crate::blob::{digest_of, etag, is_known};
use crate::handle::{Asked, blocking, failed, whole};
use crate::quota;
use crate::reply::Reply;
use crate::retention;
use crate::route::{Route, encoded};
use crate::server::Server;

/// Tags that one push may give.
const MOST_TAGS: usize = 100;

fn unknown(name: &str) -> Reply {
    Reply::error(404, "MANIFEST_UNKNOWN", format!("there is no manifest '{name}' in this repository"))
}

/// What a tag or a digest stands for.
fn target(hosted: &Hosted, name: &str) -> Result<Digest, Reply> {
    if name.contains(':') {
        return digest_of(name);
    }
    if !is_tag(name) {
        return Err(unknown(name));
    }
    hosted.tag(name).map_err(|e| failed(&e))?.ok_or_else(|| unknown(name))
}

pub fn get(server: &Server, asked: &Asked, hosted: &Hosted, name: &str) -> Result<Reply, Reply> {
    let digest = target(hosted, name)?;
    let manifest = hosted.manifest(&digest).map_err(|e| failed(&e))?.ok_or_else(|| unknown(name))?;
    let reply = |status: u16| {
        Reply::new(status).with("docker-content-digest", digest.to_string()).with("etag", etag(&digest))
    };
    // Retention may ask for it; a disk that is full is no reason not to serve. Whoever only asks whether a tag still
    // stands for what they have uses it no less: so do clusters, day by day.
    let _ = hosted.note_pull(&digest);
    if is_known(asked, &digest) {
        return Ok(reply(304));
    }
    // A document that was damaged on the disk is not handed on.
    let bytes = server.store.read_document(&digest).map_err(|e| failed(&e))?;
    Ok(reply(200).bytes(&manifest.media_type, bytes))
}

pub fn delete(server: &Server, hosted: &Hosted, name: &str) -> Result<Reply, Reply> {
    let fixed = |tag: &str| {
        Reply::error(405, "UNSUPPORTED", format!("the tag '{tag}' is immutable here and cannot be removed"))
    };
    if !name.contains(':') {
        if retention::is_immutable(&server.config.retention, hosted.name(), name) {
            return Err(fixed(name));
        }
        let there = is_tag(name) && hosted.remove_tag(name).map_err(|e| failed(&e))?;
        return if there { Ok(Reply::new(202)) } else { Err(unknown(name)) };
    }
    let digest = digest_of(name)?;
    if retention::has_immutable(&server.config.retention) {
        for tag in hosted.tags().map_err(|e| failed(&e))? {
            let stands = hosted.tag(&tag).map_err(|e| failed(&e))?.as_ref() == Some(&digest);
            if stands && retention::is_immutable(&server.config.retention, hosted.name(), &tag) {
                return Err(fixed(&tag));
            }
        }
    }
    match hosted.remove_manifest(&digest).map_err(|e| failed(&e))? {
        true => Ok(Reply::new(202).with("docker-content-digest", digest.to_string())),
        false => Err(unknown(name)),
    }
}

pub async fn put(
    server: &Arc<Server>,
    asked: &Arc<Asked>,
    hosted: Hosted,
    body: Incoming,
) -> Result<Reply, Reply> {
    let bytes = whole(body, server.store.limits().document).await?;
    let (server, asked) = (server.clone(), asked.clone());
    blocking(move || keep(&server, &asked, &hosted, &bytes)).await?
}

fn keep(server: &Server, asked: &Asked, hosted: &Hosted, bytes: &[u8]) -> Result<Reply, Reply> {
    let Route::Manifest(_, name) = &asked.route else { return Err(unknown("")) };
    let mut tags: Vec<&str> = asked.query.all("tag").collect();
    let digest = if name.contains(':') {
        digest_of(name)?
    } else {
        if !tags.is_empty() {
            return Err(Reply::error(400, "UNSUPPORTED", "tags in the query need a digest in the path"));
        }
        tags.push(name);
        isles_store::digest_of_bytes(Algorithm::Sha256, bytes)
    };
    if let Some(bad) = tags.iter().find(|t| !is_tag(t)) {
        return Err(Reply::error(400, "TAG_INVALID", format!("'{bad}' is no tag")));
    }
    if tags.len() > MOST_TAGS {
        return Err(Reply::error(
            414,
            "UNSUPPORTED",
            format!("more than {MOST_TAGS} tags are not taken at once"),
        ));
    }
    let announced = asked.header(header::CONTENT_TYPE).unwrap_or_default();
    let announced = announced.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let own = || media_type_of(bytes).unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
    // Some clients announce nothing in particular.
    let announced = match announced.as_str() {
        "" | "application/json" | "application/octet-stream" => own(),
        _ => announced,
    };
    // Between the look at a tag and its change nobody else changes one.
    let _alone = hosted.lock_tags().map_err(|e| failed(&e))?;
    for tag in &tags {
        let before = hosted.tag(tag).map_err(|e| failed(&e))?;
        check_conditions(asked, before.as_ref())?;
        let changes = before.is_some_and(|b| b != digest);
        if changes && retention::is_immutable(&server.config.retention, hosted.name(), tag) {
            let text = format!("the tag '{tag}' is immutable here and stands for another manifest");
            return Err(Reply::error(409, "DENIED", text));
        }
    }
    let new = NewManifest { bytes, media_type: &announced, digest: &digest, tags: &tags };
    let kept = quota::within(server, hosted, None, &digest, bytes.len() as u64, || {
        hosted.put_manifest(&new).map_err(|e| failed(&e))
    })?;
    let mut reply = Reply::new(201)
        .with("location", format!("/v2/{}/manifests/{digest}", hosted.name()))
        .with("docker-content-digest", digest.to_string())
        .with("etag", etag(&digest));
    if let Some(subject) = &kept.subject {
        reply = reply.with("oci-subject", subject.to_string());
    }
    if name.contains(':') {
        for tag in &tags {
            reply = reply.with("oci-tag", encoded(tag));
        }
    }
    Ok(reply)
}

/// `If-Match` and `If-None-Match` of a push, against what the tag stands for now.
fn check_conditions(asked: &Asked, before: Option<&Digest>) -> Result<(), Reply> {
    let stands = |list: &str| {
        list.split(',').map(str::trim).any(|t| match before {
            Some(digest) => t == "*" || t == etag(digest),
            None => false,
        })
    };
    let met = asked.header(header::IF_MATCH).is_none_or(stands)
        && asked.header(header::IF_NONE_MATCH).is_none_or(|list| !stands(list));
    if met { Ok(()) } else { Err(Reply::error(412, "DENIED", "the tag stands for something else by now")) }
}

/// What a document says of itself.
fn media_type_of(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let own: Own = serde_json::from_slice(bytes).ok()?;
    let index = own.manifests.map(|_| media_type::OCI_INDEX.to_owned());
    own.media_type.or(index)
}
