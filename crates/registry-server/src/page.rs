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
overflow-wrap:anywhere}pre{padding:.6rem .8rem;white-space:pre-wrap}nav{margin-bottom:1rem}h1{overflow-wrap:anywhere;\
margin:.5rem 0 1rem}h2{margin:1.6rem 0 .4rem;font-size:1.2rem}.dim{color:#5a6875}dl{display:grid;\
grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:1rem 0}dt{color:#5a6875}dd{margin:0;overflow-wrap:anywhere}\
td code{background:none;padding:0}td.n,td.l{white-space:nowrap}main{overflow-x:auto}\
@media(max-width:32rem){body{margin:1rem auto;font-size:15px}th,td{padding-right:.5rem}}\
@media(prefers-color-scheme:dark){body{color:#dbe3ea;background:#12181d}a{color:#7cb8f2}\
th,td{border-color:#2c363e}code,pre{background:#1d262d}.dim,dt{color:#93a1ad}}";

fn html(title: &str, body: &str) -> Reply {
    html_below(title, None, body)
}

/// A page with a way back to the repository that it is about.
fn html_below(title: &str, repository: Option<&str>, body: &str) -> Reply {
    let title = escaped(title);
    let above = match repository {
        Some(name) => format!(" / <a href=\"/r/{0}\">{0}</a>", escaped(name)),
        None => String::new(),
    };
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\
         <body><nav><a href=\"/\">All repositories</a>{above}</nav><main><h1>{title}</h1>{body}</main></body></html>"
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
    let count = if all.len() == 1 { "1 tag".to_owned() } else { format!("{} tags", all.len()) };
    let mut body = format!("<p class=\"dim\">{count}</p>");
    body.push_str(
        "<table><tr><th>Tag</th><th>Kind</th><th class=\"n\">Size</th><th>Digest</th><th>Pushed</th></tr>",
    );
    for tag in shown {
        let Some(digest) = hosted.tag(tag).map_err(|e| failed(&e))? else { continue };
        let Some(manifest) = hosted.manifest(&digest).map_err(|e| failed(&e))? else { continue };
        let pushed = hosted.tagged(tag).and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let pushed =
            pushed.map(|t| minute(&isles_spec::time::rfc3339(t.as_secs() as i64))).unwrap_or_default();
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
        return match manifest.manifests.len() {
            1 => "1 platform".into(),
            n => format!("{n} platforms"),
        };
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
    let whole = format!("{name}{separator}{within}");
    let title = if is_tag(within) { whole.clone() } else { format!("{name}@{}", digest.short()) };
    let place = escaped(&format!("{}/{whole}", host(asked)));
    let bytes = server.store.read_document(&digest).map_err(|e| failed(&e))?;
    let index = serde_json::from_slice::<Index>(&bytes).ok();
    let parsed = serde_json::from_slice::<Manifest>(&bytes).ok();
    let is_image = kind(&manifest) == "image" || index.is_some();
    let sif = manifest.artifact_type.as_deref() == Some(isles_registry::SIF_CONFIG);
    let mut body = match (sif, is_image) {
        (true, _) => format!("<pre>isles pull oras://{place}\napptainer pull oras://{place}</pre>"),
        (false, true) => format!("<pre>isles pull {place}\ndocker pull {place}</pre>"),
        (false, false) => format!("<pre>isles copy docker://{place} oci:DIR</pre>"),
    };
    let annotations = index.as_ref().map(|i| &i.annotations).or(parsed.as_ref().map(|m| &m.annotations));
    let annotated = |key: &str| annotations.and_then(|a| a.get(key));
    if let Some(text) = annotated("org.opencontainers.image.description") {
        let _ = write!(body, "<p>{}</p>", escaped(text));
    }
    let config = parsed.as_ref().and_then(|parsed| {
        hosted.blob(&parsed.config.digest)?;
        let bytes = server.store.read_document(&parsed.config.digest).ok()?;
        serde_json::from_slice::<ImageConfig>(&bytes).ok()
    });
    body.push_str("<dl>");
    fact(&mut body, "Digest", &format!("<code>{digest}</code>"));
    fact(&mut body, "Size", &human_bytes(size(hosted, &manifest)));
    if let Some(config) = &config {
        facts(&mut body, config);
    }
    fact(&mut body, "Type", &format!("<code>{}</code>", escaped(&manifest.media_type)));
    if let Some(kind) = manifest.artifact_type.as_deref().filter(|_| !is_image) {
        fact(&mut body, "Artefact", &format!("<code>{}</code>", escaped(kind)));
    }
    body.push_str("</dl>");
    if let Some(index) = &index {
        platforms(&mut body, hosted, index);
    } else if let Some(parsed) = &parsed {
        match &config {
            Some(config) if !config.history.is_empty() => history(&mut body, config, parsed),
            _ => layers(&mut body, parsed),
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
    Ok(html_below(&title, Some(name), &body))
}

/// A time of RFC 3339 to the minute, as people read it.
fn minute(time: &str) -> String {
    match (time.get(..16), time.ends_with('Z')) {
        (Some(begin), true) => format!("{} UTC", begin.replace('T', " ")),
        _ => time.to_owned(),
    }
}

fn fact(body: &mut String, name: &str, html: &str) {
    let _ = write!(body, "<dt>{name}</dt><dd>{html}</dd>");
}

/// What an image's configuration says of how it runs.
fn facts(body: &mut String, config: &ImageConfig) {
    let words = |words: &Vec<String>| format!("<code>{}</code>", escaped(&words.join(" ")));
    fact(body, "Platform", &escaped(&config.platform().to_string()));
    if let Some(created) = &config.created {
        fact(body, "Made", &escaped(&minute(created)));
    }
    if let Some(entrypoint) = config.config.entrypoint.as_ref().filter(|e| !e.is_empty()) {
        fact(body, "Entrypoint", &words(entrypoint));
    }
    if let Some(cmd) = config.config.cmd.as_ref().filter(|c| !c.is_empty()) {
        fact(body, "Command", &words(cmd));
    }
    for label in config.config.labels.iter().take(LINES) {
        fact(body, "Label", &format!("<code>{}={}</code>", escaped(label.0), escaped(label.1)));
    }
}

fn platforms(body: &mut String, hosted: &Hosted, index: &Index) {
    let name = hosted.name();
    body.push_str(
        "<h2>Platforms</h2><table><tr><th>Platform</th><th>Digest</th><th class=\"n\">Size</th></tr>",
    );
    for entry in index.manifests.iter().take(LINES) {
        let platform =
            entry.platform.as_ref().map(|p| escaped(&p.to_string())).unwrap_or_else(|| "any".into());
        // Of a mirror's index only what somebody asked for is here.
        let here = hosted.manifest(&entry.digest).ok().flatten();
        let size = here.map_or_else(|| "not here".into(), |m| human_bytes(size(hosted, &m)));
        let _ = write!(
            body,
            "<tr><td>{platform}</td><td><a href=\"/r/{name}@{}\"><code>{}</code></a></td>\
             <td class=\"n\">{size}</td></tr>",
            entry.digest,
            entry.digest.short()
        );
    }
    body.push_str("</table>");
}

fn layers(body: &mut String, manifest: &Manifest) {
    body.push_str("<h2>Content</h2><table><tr><th>Digest</th><th>Type</th><th class=\"n\">Size</th></tr>");
    for layer in manifest.layers.iter().take(LINES) {
        let title = layer.annotations.get("org.opencontainers.image.title");
        let _ = write!(
            body,
            "<tr><td><code>{}</code></td><td>{}</td><td class=\"n\">{}</td></tr>",
            layer.digest.short(),
            escaped(title.unwrap_or(&layer.media_type)),
            human_bytes(layer.size)
        );
    }
    body.push_str("</table>");
}

/// The steps of the recipe, each with the layer that it made.
fn history(body: &mut String, config: &ImageConfig, manifest: &Manifest) {
    body.push_str("<h2>Recipe</h2><table><tr><th>Step</th><th>Layer</th><th class=\"n\">Size</th></tr>");
    let mut layers = manifest.layers.iter();
    for step in config.history.iter().take(LINES) {
        let text = step.created_by.as_deref().or(step.comment.as_deref()).unwrap_or("unknown");
        let layer = if step.empty_layer { None } else { layers.next() };
        let _ = write!(
            body,
            "<tr><td><code>{}</code></td><td class=\"l\"><code>{}</code></td><td class=\"n\">{}</td></tr>",
            escaped(instruction(text)),
            layer.map_or("", |l| l.digest.short()),
            layer.map_or_else(String::new, |l| human_bytes(l.size))
        );
    }
    // Tools that squash leave fewer steps than layers.
    for layer in layers.take(LINES) {
        let _ = write!(
            body,
            "<tr><td class=\"dim\">not told</td><td class=\"l\"><code>{}</code></td><td class=\"n\">{}</td></tr>",
            layer.digest.short(),
            human_bytes(layer.size)
        );
    }
    body.push_str("</table>");
}

/// What a step says without what builders put around it.
fn instruction(text: &str) -> &str {
    let text = text.strip_prefix("/bin/sh -c #(nop)").unwrap_or(text).trim();
    text.strip_suffix("# buildkit").unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_times_as_people_read_them() {
        for (text, said) in [
            ("/bin/sh -c #(nop)  ENV A=b", "ENV A=b"),
            ("RUN /bin/sh -c make # buildkit", "RUN /bin/sh -c make"),
            ("/bin/sh -c make", "/bin/sh -c make"),
        ] {
            assert_eq!(instruction(text), said);
        }
        assert_eq!(minute("2026-11-20T12:00:01Z"), "2026-11-20 12:00 UTC");
        assert_eq!(minute("yesterday"), "yesterday");
    }

    #[test]
    fn strangers_words_stay_words() {
        assert_eq!(escaped("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
    }
}
