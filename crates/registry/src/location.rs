//! URLs as a registry names them: relative references (RFC 3986, section 4.2), origins, query parameters.

use ureq::http::Uri;

/// The absolute URL that `reference`, found in an answer of `base`, stands for.
pub(crate) fn join(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?.as_str();
    let text = if reference.contains("://") && !reference.starts_with(['/', '?']) {
        reference.to_owned()
    } else if let Some(rest) = reference.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}")
    } else if reference.starts_with('?') || reference.is_empty() {
        format!("{scheme}://{authority}{}{reference}", base.path())
    } else {
        let folder = base.path().rfind('/').map_or("/", |i| &base.path()[..=i]);
        format!("{scheme}://{authority}{folder}{reference}")
    };
    let url: Uri = text.parse().ok()?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    // A name and password in a URL would travel in the clear to wherever the text came from.
    let plain = url.authority().is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty());
    (known && plain).then_some(url)
}

/// Whether both URLs name the same scheme, host and port.
pub(crate) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| u.port_u16().or(if u.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |u: &Uri| u.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Whether the host of `url` is this machine.
pub(crate) fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `url` with one more query parameter.
pub(crate) fn with_query(url: &Uri, key: &str, value: &str) -> Option<Uri> {
    let separator = if url.query().is_some() { '&' } else { '?' };
    format!("{url}{separator}{key}={}", escape(value)).parse().ok()
}

/// Percent-encodes everything but unreserved characters and those that registries expect bare in a query
/// (`:` and `/` of scopes and digests).
pub(crate) fn escape(text: &str) -> String {
    isles_spec::percent::encode(text, b":/,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve_against_their_base() {
        let base: Uri = "https://r.example:5000/v2/a/b/tags/list?n=1".parse().unwrap();
        for (reference, url) in [
            ("https://x/y", Some("https://x/y")),
            ("//x/y", Some("https://x/y")),
            ("/v2/z?_state=%3D", Some("https://r.example:5000/v2/z?_state=%3D")),
            ("next", Some("https://r.example:5000/v2/a/b/tags/next")),
            ("?n=2", Some("https://r.example:5000/v2/a/b/tags/list?n=2")),
            ("/v2/z#part", Some("https://r.example:5000/v2/z")),
            ("ftp://x/y", None),
            ("file:///etc/passwd", None),
            ("https://user:secret@x/y", None),
            ("http://", None),
        ] {
            assert_eq!(join(&base, reference).map(|u| u.to_string()).as_deref(), url, "{reference}");
        }
    }

    #[test]
    fn origins_and_queries() {
        let u = |s: &str| s.parse::<Uri>().unwrap();
        assert!(same_origin(&u("https://A/x"), &u("https://a:443/y")));
        assert!(!same_origin(&u("https://a/x"), &u("http://a/x")));
        assert!(!same_origin(&u("https://a/x"), &u("https://a:444/x")));
        assert!(!same_origin(&u("https://a/x"), &u("https://a.b/x")));
        assert!(is_loopback(&u("http://[::1]:5/x")) && is_loopback(&u("http://127.1.2.3/")));
        assert!(!is_loopback(&u("http://localhost.evil/")));
        assert_eq!(
            with_query(&u("http://a/b?c=d"), "digest", "sha256:x y").unwrap().to_string(),
            "http://a/b?c=d&digest=sha256:x%20y"
        );
    }
}
