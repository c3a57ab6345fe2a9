//! Pages for people: repositories, tags, what an image is made of and how to get it. Without scripts.

use std::fmt::Write;

use isles_spec::Digest;
use isles_spec::image::{ImageConfig, Index, Manifest, media_type};
use isles_spec::markup::escaped;
use isles_spec::quantity::human_bytes;
use isles_store::{Hosted, HostedManifest, is_tag};

use crate::handle::{Asked, failed};
use crate::list;
use crate::reply::Reply;
use crate::route::encoded;
use crate::server::Server;

/// Lines of a list on one page.
const LINES: usize = 200;
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1b2733;background:#fff}a{color:#0b5cad}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #dde3e8;vertical-align:top}\
td.n,th.n{text-align:right}code,pre{font:14px/1.4 ui-monospace,monospace;background:#f2f5f7;padding:.1rem .3rem;\
overflow-wrap:anywhere}pre{padding:.6rem .8rem;overflow-x:auto}nav{margin-bottom:1rem}.dim{color:#5a6875}\
@media(prefers-color-scheme:dark){body{color:#dbe3ea;background:#12181d}a{color:#7cb8f2}\
th,td{border-color:#2c363e}code,pre{background:#1d262d}.dim{color:#93a1ad}}";

fn html(title: &str, body: &str) -> Reply {
    let title = escaped(title);
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\
         <body><nav><a href=\"/\">All repositories</a></nav><main><h1>{title}</h1>{body}</main></body></html>"
    );
    // Names and annotations are strangers' words; should one get past, it still runs nothing.
    Reply::new(200)
        .with("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'")
        .bytes("text/html; charset=utf-8", page)
}

pub fn show(server: &Server, asked: &Asked, what: Option<&(String, Option<String>)>) -> Result<Reply, Reply> {
    let Some((name, within)) = what else { return repositories(server, asked) };
    let hosted = server.store.hosted(name).map_err(|e| failed(&e))?;
    if !hosted.exists() {
        return Err(missing(name));
    }
    match within {
        None => tags(asked, &hosted),
        Some(within) => image(server, asked, &hosted, within),
    }
}

fn missing(name: &str) -> Reply {
    let mut reply =
        html("Not here", &format!("<p>There is no <code>{}</code> in this registry.</p>", escaped(name)));
    reply.status = hyper::StatusCode::NOT_FOUND;
    reply
}

/// The lines of a list that a page shows, and the link to the next ones.
fn lines<'a>(asked: &Asked, names: &'a [String], path: &str) -> (&'a [String], String) {
    let from = asked.query.get("last").map_or(0, |last| names.partition_point(|n| n.as_str() <= last));
    let rest = &names[from..];
    let shown = &rest[..rest.len().min(LINES)];
    let more = match shown.last().filter(|_| rest.len() > LINES) {
        Some(last) => format!("<p><a href=\"{path}?last={}\">More</a></p>", encoded(last)),
        None => String::new(),
    };
    (shown, more)
}

fn repositories(server: &Server, asked: &Asked) -> Result<Reply, Reply> {
    let names = list::visible(server, asked)?;
    if names.is_empty()
        && server.passwords.is_some()
        && asked.who.user.is_none()
        && !server.access.anonymous_pull
    {
        return Err(crate::handle::forbidden(server, asked, None));
    }
    let (shown, more) = lines(asked, &names, "/");
    if names.is_empty() {
        let host = host(asked);
        let body = format!(
            "<p>Nothing has been pushed yet.</p><pre>isles push IMAGE {}/NAME:TAG</pre>",
            escaped(host)
        );
        return Ok(html("Repositories", &body));
    }
    let mut body =
        "<table><tr><th>Repository</th><th class=\"n\">Tags</th><th class=\"n\">Size</th></tr>".to_owned();
    for name in shown {
        let usage = server.store.hosted(name).and_then(|h| h.usage()).map_err(|e| failed(&e))?;
        let _ = write!(
            body,
            "<tr><td><a href=\"/r/{name}\">{name}</a></td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            usage.tags,
            human_bytes(usage.bytes)
        );
    }
    body.push_str("</table>");
    body.push_str(&more);
    Ok(html("Repositories", &body))
}

fn host(asked: &Asked) -> &str {
    asked.base.split_once("://").map_or(&asked.base, |(_, host)| host)
}

fn tags(asked: &Asked, hosted: &Hosted) -> Result<Reply, Reply> {
    let name = hosted.name();
    let all = hosted.tags().map_err(|e| failed(&e))?;
    let (shown, more) = lines(asked, &all, &format!("/r/{name}"));
    let mut body = format!("<p class=\"dim\">{} tags</p>", all.len());
    body.push_str(
        "<table><tr><th>Tag</th><th>Kind</th><th class=\"n\">Size</th><th>Digest</th><th>Pushed</th></tr>",
    );
    for tag in shown {
        let Some(digest) = hosted.tag(tag).map_err(|e| failed(&e))? else { continue };
        let Some(manifest) = hosted.manifest(&digest).map_err(|e| failed(&e))? else { continue };
        let pushed = hosted.tagged(tag).and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let pushed = pushed.map(|t| isles_spec::time::rfc3339(t.as_secs() as i64)).unwrap_or_default();
        let _ = write!(
            body,
            "<tr><td><a href=\"/r/{name}:{tag}\">{tag}</a></td><td>{}</td><td class=\"n\">{}</td>\
             <td><code>{}</code></td><td class=\"dim\">{pushed}</td></tr>",
            kind(&manifest),
            human_bytes(size(hosted, &manifest)),
            digest.short(),
        );
    }
    body.push_str("</table>");
    body.push_str(&more);
    Ok(html(name, &body))
}

fn kind(manifest: &HostedManifest) -> String {
    if media_type::is_index(&manifest.media_type) {
        return format!("index of {}", manifest.manifests.len());
    }
    match manifest.artifact_type.as_deref() {
        None | Some(media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) => "image".into(),
        Some(other) => escaped(other),
    }
}

/// Bytes of what a manifest names, for an index of all its images that are here.
fn size(hosted: &Hosted, manifest: &HostedManifest) -> u64 {
    let of = |d: &Digest| hosted.manifest(d).ok().flatten().map_or(0, |m| m.blob_bytes);
    manifest.blob_bytes.saturating_add(manifest.manifests.iter().take(LINES).map(of).sum())
}

fn image(server: &Server, asked: &Asked, hosted: &Hosted, within: &str) -> Result<Reply, Reply> {
    let name = hosted.name();
    let digest = if is_tag(within) {
        hosted.tag(within).map_err(|e| failed(&e))?.ok_or_else(|| missing(within))?
    } else {
        within.parse().map_err(|_| missing(within))?
    };
    let manifest = hosted.manifest(&digest).map_err(|e| failed(&e))?.ok_or_else(|| missing(within))?;
    let separator = if is_tag(within) { ":" } else { "@" };
    let title = format!("{name}{separator}{within}");
    let place = escaped(&format!("{}/{title}", host(asked)));
    let sif = manifest.artifact_type.as_deref() == Some(isles_registry::SIF_CONFIG);
    let mut body = match sif {
        true => format!("<pre>isles pull oras://{place}\napptainer pull oras://{place}</pre>"),
        false => format!("<pre>isles pull {place}\ndocker pull {place}</pre>"),
    };
    let _ = write!(
        body,
        "<p>Digest <code>{digest}</code><br>Type <code>{}</code><br>Size {}</p>",
        escaped(&manifest.media_type),
        human_bytes(size(hosted, &manifest))
    );
    let bytes = server.store.read_document(&digest).map_err(|e| failed(&e))?;
    if let Ok(index) = serde_json::from_slice::<Index>(&bytes) {
        platforms(&mut body, name, &index);
    } else if let Ok(parsed) = serde_json::from_slice::<Manifest>(&bytes) {
        layers(&mut body, &parsed);
        let config = hosted.blob(&parsed.config.digest).and_then(|_| {
            let bytes = server.store.read_document(&parsed.config.digest).ok()?;
            serde_json::from_slice::<ImageConfig>(&bytes).ok()
        });
        if let Some(config) = config {
            history(&mut body, &config);
        }
    }
    let about = hosted.referrers(&digest).map_err(|e| failed(&e))?;
    if !about.is_empty() {
        body.push_str("<h2>About this</h2><table><tr><th>Kind</th><th>Digest</th></tr>");
        for d in about.iter().take(LINES) {
            let kind = escaped(d.artifact_type.as_deref().unwrap_or(&d.media_type));
            let _ = write!(
                body,
                "<tr><td>{kind}</td><td><a href=\"/r/{name}@{}\"><code>{}</code></a></td></tr>",
                d.digest,
                d.digest.short()
            );
        }
        body.push_str("</table>");
    }
    Ok(html(&title, &body))
}

fn platforms(body: &mut String, name: &str, index: &Index) {
    body.push_str("<h2>Platforms</h2><table><tr><th>Platform</th><th>Digest</th></tr>");
    for entry in index.manifests.iter().take(LINES) {
        let platform =
            entry.platform.as_ref().map(|p| escaped(&p.to_string())).unwrap_or_else(|| "any".into());
        let _ = write!(
            body,
            "<tr><td>{platform}</td><td><a href=\"/r/{name}@{}\"><code>{}</code></a></td></tr>",
            entry.digest,
            entry.digest.short()
        );
    }
    body.push_str("</table>");
}

fn layers(body: &mut String, manifest: &Manifest) {
    body.push_str("<h2>Layers</h2><table><tr><th>Digest</th><th>Type</th><th class=\"n\">Size</th></tr>");
    for layer in manifest.layers.iter().take(LINES) {
        let _ = write!(
            body,
            "<tr><td><code>{}</code></td><td>{}</td><td class=\"n\">{}</td></tr>",
            layer.digest.short(),
            escaped(&layer.media_type),
            human_bytes(layer.size)
        );
    }
    body.push_str("</table>");
}

fn history(body: &mut String, config: &ImageConfig) {
    let _ = write!(body, "<p>Platform {}", escaped(&config.platform().to_string()));
    if let Some(created) = &config.created {
        let _ = write!(body, "<br>Made {}", escaped(created));
    }
    body.push_str("</p>");
    if config.history.is_empty() {
        return;
    }
    body.push_str("<h2>Recipe</h2><ol>");
    for step in config.history.iter().take(LINES) {
        let text = step.created_by.as_deref().or(step.comment.as_deref()).unwrap_or("unknown");
        let _ = write!(body, "<li><code>{}</code></li>", escaped(text));
    }
    body.push_str("</ol>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_words_stay_words() {
        assert_eq!(escaped("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
    }
}
