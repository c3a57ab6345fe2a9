//! Which endpoint a request is for (distribution-spec, "Endpoints"), and its query.

use isles_spec::percent::{decode_strict, encode};
use isles_store::{is_repository_name, is_tag};

/// What a path leads to. Parts that are not valid are kept as they came, for the answer to say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Base,
    /// `/v2/token`
    Token,
    Catalog,
    Tags(String),
    Manifest(String, String),
    Blob(String, String),
    Uploads(String),
    Upload(String, String),
    Referrers(String, String),
    Health,
    Metrics,
    /// A page for people: the repository, if any, and the tag or digest in it.
    Page(Option<(String, Option<String>)>),
    /// A path of the API whose repository has no valid name.
    BadName(String),
    Nothing,
}

impl Route {
    /// The endpoint of a path as it stands in the request.
    pub fn of(path: &str) -> Route {
        let Some(path) = decoded(path, false) else { return Route::Nothing };
        match path.as_str() {
            "/" | "" => return Route::Page(None),
            "/v2" | "/v2/" => return Route::Base,
            "/v2/token" => return Route::Token,
            "/v2/_catalog" => return Route::Catalog,
            "/healthz" => return Route::Health,
            "/metrics" => return Route::Metrics,
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/r/") {
            return page(rest);
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return Route::Nothing };
        let Some((name, route)) = api(rest) else { return Route::Nothing };
        if is_repository_name(name) { route } else { Route::BadName(name.to_owned()) }
    }

    /// The repository that the request is about.
    pub fn repository(&self) -> Option<&str> {
        match self {
            Route::Tags(name)
            | Route::Manifest(name, _)
            | Route::Blob(name, _)
            | Route::Uploads(name)
            | Route::Upload(name, _)
            | Route::Referrers(name, _)
            | Route::Page(Some((name, _))) => Some(name),
            _ => None,
        }
    }

    /// The same endpoint of another repository.
    pub fn of_repository(self, name: &str) -> Route {
        let name = name.to_owned();
        match self {
            Route::Tags(_) => Route::Tags(name),
            Route::Manifest(_, what) => Route::Manifest(name, what),
            Route::Blob(_, what) => Route::Blob(name, what),
            Route::Referrers(_, what) => Route::Referrers(name, what),
            other => other,
        }
    }

    /// A word for the log and the metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Route::Base => "base",
            Route::Token => "token",
            Route::Catalog => "catalog",
            Route::Tags(_) => "tags",
            Route::Manifest(..) => "manifest",
            Route::Blob(..) => "blob",
            Route::Uploads(_) | Route::Upload(..) => "upload",
            Route::Referrers(..) => "referrers",
            Route::Health => "health",
            Route::Metrics => "metrics",
            Route::Page(_) => "page",
            Route::BadName(_) | Route::Nothing => "none",
        }
    }
}

/// The endpoint below `/v2/`, read from its end, since names have slashes.
fn api(rest: &str) -> Option<(&str, Route)> {
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some((name, Route::Tags(name.to_owned())));
    }
    if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
        return Some((name, Route::Uploads(name.to_owned())));
    }
    let (before, last) = rest.rsplit_once('/')?;
    if let Some(name) = before.strip_suffix("/blobs/uploads") {
        return Some((name, Route::Upload(name.to_owned(), last.to_owned())));
    }
    let (name, kind) = before.rsplit_once('/')?;
    let route = match kind {
        "manifests" => Route::Manifest(name.to_owned(), last.to_owned()),
        "blobs" => Route::Blob(name.to_owned(), last.to_owned()),
        "referrers" => Route::Referrers(name.to_owned(), last.to_owned()),
        _ => return None,
    };
    Some((name, route))
}

fn page(rest: &str) -> Route {
    let rest = rest.trim_end_matches('/');
    let (name, what) = match rest.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => match rest.rsplit_once(':') {
            Some((name, tag)) if is_tag(tag) => (name, Some(tag)),
            _ => (rest, None),
        },
    };
    if !is_repository_name(name) {
        return Route::Nothing;
    }
    Route::Page(Some((name.to_owned(), what.map(str::to_owned))))
}

/// Text whose `%` sequences are replaced; nothing where that is no UTF-8 or has control characters.
fn decoded(text: &str, plus: bool) -> Option<String> {
    let bytes = if plus { decode_strict(&text.replace('+', " ")) } else { decode_strict(text) };
    String::from_utf8(bytes?).ok().filter(|t| !t.chars().any(char::is_control))
}

/// The parameters of a query, in their order.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`. Nothing where a sequence is not valid.
    pub fn of(text: Option<&str>) -> Option<Query> {
        let mut pairs = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decoded(key, true)?, decoded(value, true)?));
        }
        Some(Query(pairs))
    }

    /// The first value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// Text as part of a query.
pub fn encoded(text: &str) -> String {
    encode(text, b"/:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let s = str::to_owned;
        for (path, route) in [
            ("/v2", Route::Base),
            ("/v2/", Route::Base),
            ("/v2/_catalog", Route::Catalog),
            ("/v2/a/tags/list", Route::Tags(s("a"))),
            ("/v2/a/b/tags/list", Route::Tags(s("a/b"))),
            ("/v2/tags/list/tags/list", Route::Tags(s("tags/list"))),
            ("/v2/a/manifests/1.0", Route::Manifest(s("a"), s("1.0"))),
            ("/v2/a/b/manifests/sha256:00", Route::Manifest(s("a/b"), s("sha256:00"))),
            ("/v2/a/manifests/sha256%3A00", Route::Manifest(s("a"), s("sha256:00"))),
            ("/v2/manifests/manifests/x", Route::Manifest(s("manifests"), s("x"))),
            ("/v2/a/blobs/x", Route::Blob(s("a"), s("x"))),
            ("/v2/a/blobs/uploads", Route::Uploads(s("a"))),
            ("/v2/a/blobs/uploads/", Route::Uploads(s("a"))),
            ("/v2/a/blobs/uploads/id", Route::Upload(s("a"), s("id"))),
            ("/v2/a/referrers/x", Route::Referrers(s("a"), s("x"))),
            ("/v2/A/manifests/x", Route::BadName(s("A"))),
            ("/v2/../manifests/x", Route::BadName(s(".."))),
            ("/v2/a%2Fb/tags/list", Route::Tags(s("a/b"))),
            ("/v2/a/other/x", Route::Nothing),
            ("/v2/a%zz/tags/list", Route::Nothing),
            ("/v2/a%00/tags/list", Route::Nothing),
            ("/v2/manifests/x", Route::Nothing),
            ("/", Route::Page(None)),
            ("/r/a/b", Route::Page(Some((s("a/b"), None)))),
            ("/r/a/b:1", Route::Page(Some((s("a/b"), Some(s("1")))))),
            ("/r/a@sha256:0", Route::Page(Some((s("a"), Some(s("sha256:0")))))),
            ("/r/../etc", Route::Nothing),
            ("/x", Route::Nothing),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::of(Some("n=2&last=a%2Fb+c&tag=1&tag=2&flag")).unwrap();
        assert_eq!(query.get("n"), Some("2"));
        assert_eq!(query.get("last"), Some("a/b c"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((query.get("flag"), query.get("no")), (Some(""), None));
        assert!(Query::of(Some("a=%")).is_none() && Query::of(None).is_some());
        assert_eq!(encoded("a b&c/d"), "a%20b%26c/d");
    }
}
