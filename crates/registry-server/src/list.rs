//! Lists: tags, repositories, and what refers to a manifest (distribution-spec, "Content Discovery").

use isles_spec::image::media_type;
use isles_store::Hosted;

use crate::access::Action;
use crate::blob::digest_of;
use crate::handle::{Asked, failed};
use crate::reply::Reply;
use crate::route::encoded;
use crate::server::Server;

/// Names in one answer, at most, and where the client does not say how many.
const PAGE: usize = 10_000;
/// Bytes of descriptors in one answer.
const REFERRERS: usize = 4 << 20;

/// A page of a sorted list: its names, and whether there are more.
fn page<'a>(asked: &Asked, names: &'a [String]) -> Result<(&'a [String], bool), Reply> {
    let count = match asked.query.get("n") {
        None => PAGE,
        Some(n) => n
            .parse::<usize>()
            .map_err(|_| Reply::error(400, "PAGINATION_NUMBER_INVALID", "n is not a number"))?
            .min(PAGE),
    };
    let from = match asked.query.get("last") {
        None => 0,
        Some(last) => names.partition_point(|name| name.as_str() <= last),
    };
    let rest = &names[from..];
    Ok((&rest[..count.min(rest.len())], count > 0 && rest.len() > count))
}

fn linked(reply: Reply, path: &str, shown: &[String], more: bool) -> Reply {
    match shown.last().filter(|_| more) {
        Some(last) => {
            let link = format!("<{path}?n={}&last={}>; rel=\"next\"", shown.len(), encoded(last));
            reply.with("link", link)
        }
        None => reply,
    }
}

pub fn tags(server: &Server, asked: &Asked, hosted: &Hosted) -> Result<Reply, Reply> {
    if !hosted.exists() {
        return Err(Reply::error(404, "NAME_UNKNOWN", format!("there is no repository '{}'", hosted.name())));
    }
    let key = format!("tags/{}", hosted.name());
    let all = server.list(&key, hosted.tags_changed(), &|| hosted.tags()).map_err(|e| failed(&e))?;
    let (shown, more) = page(asked, &all)?;
    let reply = Reply::new(200).json(&serde_json::json!({ "name": hosted.name(), "tags": shown }));
    Ok(linked(reply, &format!("/v2/{}/tags/list", hosted.name()), shown, more))
}

/// The repositories that whoever asks may pull from.
pub fn visible(server: &Server, asked: &Asked) -> Result<Vec<String>, Reply> {
    let store = &server.store;
    let all =
        server.list("catalog", store.hosted_changed(), &|| store.hosted_names()).map_err(|e| failed(&e))?;
    let user = asked.who.user.as_deref();
    Ok(all.iter().filter(|name| server.access.allows(user, name, Action::Pull)).cloned().collect())
}

pub fn catalog(server: &Server, asked: &Asked) -> Result<Reply, Reply> {
    let names = visible(server, asked)?;
    if names.is_empty()
        && server.passwords.is_some()
        && asked.who.user.is_none()
        && !server.access.anonymous_pull
    {
        return Err(crate::handle::forbidden(server, asked, None));
    }
    let (shown, more) = page(asked, &names)?;
    let reply = Reply::new(200).json(&serde_json::json!({ "repositories": shown }));
    Ok(linked(reply, "/v2/_catalog", shown, more))
}

pub fn referrers(asked: &Asked, hosted: &Hosted, digest: &str) -> Result<Reply, Reply> {
    let subject = digest_of(digest)?;
    let mut found = hosted.referrers(&subject).map_err(|e| failed(&e))?;
    let filter = asked.query.get("artifactType").filter(|t| !t.is_empty());
    if let Some(kind) = filter {
        found.retain(|d| d.artifact_type.as_deref() == Some(kind));
    }
    if let Some(last) = asked.query.get("last").and_then(|l| l.parse().ok()) {
        found.retain(|d| d.digest > last);
    }
    let mut bytes = 0;
    let mut shown = Vec::new();
    let mut next = None;
    for descriptor in &found {
        let value = serde_json::to_value(descriptor).unwrap_or_default();
        bytes += value.to_string().len();
        if bytes > REFERRERS && !shown.is_empty() {
            next = shown.len().checked_sub(1).map(|i| found[i].digest.to_string());
            break;
        }
        shown.push(value);
    }
    let document = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": shown,
    });
    let mut reply = Reply::new(200).bytes(media_type::OCI_INDEX, document.to_string());
    if filter.is_some() {
        reply = reply.with("oci-filters-applied", "artifactType");
    }
    if let Some(last) = next {
        let kind = filter.map(|k| format!("&artifactType={}", encoded(k))).unwrap_or_default();
        let path = format!("/v2/{}/referrers/{subject}", hosted.name());
        reply = reply.with("link", format!("<{path}?last={last}{kind}>; rel=\"next\""));
    }
    Ok(reply)
}
