//! The container library's protocol: `library://ENTITY/COLLECTION/CONTAINER:TAG`.
//!
//! A library keeps SIF files by name and architecture. The answers are objects `{"data": …, "error": …}`; the file
//! itself is behind `/v1/imagefile/NAME`, which usually redirects to a store of objects elsewhere. Reference: Sylabs'
//! scs-library-client, version 1.4, by its requests.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::SystemTime;

use isles_spec::{Algorithm, Digest, Progress};
use serde::{Deserialize, Serialize};
use ureq::Body;
use ureq::http::{HeaderMap, HeaderValue, Method, Response, Uri, header};

use crate::http::{Http, Payload, authority_of, protocol, read_bounded, sentence, text_of};
use crate::location::escape;
use crate::oras::{Checked, digest_of, open};
use crate::{ClientOptions, Error, Result, location, retry};

/// Answers about images are small.
const ANSWER_LIMIT: u64 = 4 << 20;
/// Files whose size the library does not tell have at most this many bytes, and no other has more.
const FILE_LIMIT: u64 = 64 << 30;
const BUFFER: usize = 128 << 10;

/// A library, as one user speaks to it.
pub struct Library {
    http: Http,
    base: Uri,
    token: Option<HeaderValue>,
}

/// What an image is called: `[library://][HOST/][ENTITY/][COLLECTION/]CONTAINER[:TAG[,TAG…]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryName {
    /// A library of its own, where four parts are named.
    pub host: Option<String>,
    /// `entity/collection/container`, or fewer parts, for which the library has defaults.
    pub path: String,
    pub tags: Vec<String>,
}

/// An image in a library.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LibraryImage {
    pub id: String,
    /// `sha256.` and the digest of the file, in hexadecimal.
    pub hash: String,
    pub description: String,
    pub size: u64,
    pub uploaded: bool,
    pub arch: Option<String>,
    pub signed: Option<bool>,
    pub fingerprints: Vec<String>,
    pub tags: Vec<String>,
}

impl LibraryImage {
    /// The digest of the file.
    pub fn digest(&self) -> Option<Digest> {
        self.hash.strip_prefix("sha256.").and_then(|hex| format!("sha256:{hex}").parse().ok())
    }
}

/// What a search found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LibraryMatch {
    #[serde(alias = "entityName")]
    pub entity: String,
    #[serde(alias = "collectionName")]
    pub collection: String,
    #[serde(alias = "containerName")]
    pub container: String,
    pub description: String,
    pub tags: Vec<String>,
    pub fingerprints: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Matches {
    image: Vec<LibraryMatch>,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    error: Option<Refusal>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
}

/// A folder of a library: an entity, a collection or a container.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Folder {
    id: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Place {
    #[serde(alias = "uploadURL")]
    upload_url: String,
}

impl LibraryName {
    /// Reads a name.
    ///
    /// # Errors
    /// A part is missing or has characters that no library takes.
    pub fn parse(text: &str) -> Result<LibraryName> {
        let odd = |why: &str| -> Error {
            isles_spec::Error::new(format!(
                "'{}' is no name of a library: {why}",
                crate::error::one_line(text)
            ))
            .with_hint("write library://ENTITY/COLLECTION/CONTAINER:TAG")
            .into()
        };
        let name = text.strip_prefix("library:").unwrap_or(text);
        let name = name.strip_prefix("//").unwrap_or(name).trim_start_matches('/');
        let (host, name) = match name.split_once('/') {
            Some((host, rest)) if rest.split('/').count() == 3 => (Some(host.to_owned()), rest),
            _ => (None, name),
        };
        let (path, tags) = match name.split_once(':') {
            Some((path, tags)) => (path, tags.split(',').map(str::to_owned).collect()),
            None => (name, vec!["latest".to_owned()]),
        };
        let plain = |word: &str| {
            !word.is_empty()
                && !matches!(word, "." | "..")
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
        };
        if path.split('/').count() > 3 {
            return Err(odd("it has too many parts"));
        }
        if !path.split('/').all(plain) || !tags.iter().all(|tag: &String| plain(tag)) {
            return Err(odd("it has an empty part or an odd character"));
        }
        Ok(LibraryName { host, path: path.to_owned(), tags })
    }

    /// The path of the image, with its first tag.
    fn image(&self) -> String {
        format!("{}:{}", self.path, self.tags.first().map_or("latest", String::as_str))
    }
}

impl std::fmt::Display for LibraryName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host.as_ref().map(|h| format!("{h}/")).unwrap_or_default();
        write!(f, "library://{host}{}:{}", self.path, self.tags.join(","))
    }
}

/// How many bytes may come of a file that is said to have `size`, which is 0 where nothing is said.
fn limit_of(size: u64) -> u64 {
    if size > 0 { size.min(FILE_LIMIT) } else { FILE_LIMIT }
}

/// The URL that paths of a library begin with.
fn base_of(server: &str) -> Option<Uri> {
    let text = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    format!("{}/", text.trim_end_matches('/')).parse().ok()
}

impl Library {
    /// A library at a URL, such as `https://library.sylabs.io`, with the token of a user where there is one. Plain HTTP
    /// is spoken where the URL says so, and a token goes over it to this machine only.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(options: &ClientOptions, server: &str, token: Option<&str>) -> Result<Library> {
        let odd = |why: &str| -> Error {
            isles_spec::Error::new(format!("'{}' is no library: {why}", crate::error::one_line(server)))
                .with_hint("a library is named by a URL, for example https://library.sylabs.io")
                .into()
        };
        let base = base_of(server).ok_or_else(|| odd("it is no URL"))?;
        let http = Http::new(options);
        match base.scheme_str() {
            Some("https") => {}
            Some("http")
                if token.is_none()
                    || http.is_insecure(&authority_of(&base), location::is_loopback(&base)) => {}
            Some("http") => return Err(odd("a token does not go over plain HTTP")),
            _ => return Err(odd("it is neither http:// nor https://")),
        }
        let token = match token {
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("BEARER {}", token.trim()))
                    .map_err(|_| odd("its token has characters that no header may have"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Library { http, base, token })
    }

    /// Whether two names of libraries mean the same server: the same scheme, host and port.
    pub fn is_same_server(one: &str, other: &str) -> bool {
        matches!((base_of(one), base_of(other)), (Some(a), Some(b)) if location::same_origin(&a, &b))
    }

    /// The host of the server, with its port where it has one.
    pub fn host(&self) -> String {
        authority_of(&self.base)
    }

    /// What the library has under a name for an architecture (`amd64`).
    pub fn find(&self, name: &LibraryName, architecture: &str) -> Result<LibraryImage> {
        let path = format!("v1/images/{}", name.image());
        let found: Option<LibraryImage> = self.ask(&path, &[("arch", architecture)])?;
        found.ok_or_else(|| self.nothing(name))
    }

    /// Writes the file of an image into `file`, from its beginning, and checks it where the library tells its digest.
    /// Nothing of the file may be used where this fails.
    pub fn pull(
        &self,
        name: &LibraryName,
        architecture: &str,
        file: &mut File,
        progress: &dyn Progress,
    ) -> Result<LibraryImage> {
        let image = self.find(name, architecture)?;
        if !image.uploaded {
            return Err(isles_spec::Error::new(format!("the file of {name} was never sent"))
                .with_hint("whoever pushed it was interrupted; ask for another push")
                .into());
        }
        let id = progress.begin(&name.to_string(), (image.size > 0).then_some(image.size));
        let fetched = self.fetch(name, architecture, file, image.size, &|n| progress.advance(id, n));
        progress.end(id, if fetched.is_ok() { "done" } else { "failed" });
        let actual = fetched?;
        match image.digest() {
            Some(expected) if expected != actual => Err(Error::Mismatch {
                host: authority_of(&self.base),
                object: name.to_string(),
                expected,
                actual,
            }),
            _ => Ok(image),
        }
    }

    fn fetch(
        &self,
        name: &LibraryName,
        architecture: &str,
        file: &mut File,
        size: u64,
        advance: &dyn Fn(u64),
    ) -> Result<Digest> {
        let url = self.url(&format!("v1/imagefile/{}", name.image()), &[("arch", architecture)])?;
        let host = authority_of(&self.base);
        let mut into = Checked::new(file, Algorithm::Sha256)?;
        let mut buffer = vec![0; BUFFER];
        let mut attempt = 0;
        let limit = limit_of(size);
        loop {
            let begun = into.written;
            let mut headers = HeaderMap::new();
            if begun > 0
                && let Ok(range) = HeaderValue::try_from(format!("bytes={begun}-"))
            {
                headers.insert(header::RANGE, range);
            }
            let response = self.send(&Method::GET, &url, &headers, Payload::None)?;
            // What does not do ranges begins again.
            let mut skip = match response.status().as_u16() {
                200 => begun,
                206 => 0,
                404 => return Err(self.nothing(name)),
                _ => return Err(self.refused("pull", &name.to_string(), response)),
            };
            let mut body = response.into_body().into_reader();
            let broken = loop {
                match body.read(&mut buffer) {
                    Ok(0) if size > 0 && into.written < size => break "it ended too early".to_owned(),
                    Ok(0) => return Ok(into.digest()),
                    Ok(n) => {
                        let old = usize::try_from(skip).unwrap_or(usize::MAX).min(n);
                        skip -= old as u64;
                        if into.written + (n - old) as u64 > limit {
                            return Err(Error::TooLarge { host, object: name.to_string(), limit });
                        }
                        into.write(&buffer[old..n])?;
                        advance((n - old) as u64);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => break sentence(&e),
                }
            };
            attempt = if into.written > begun { 1 } else { attempt + 1 };
            match self.http.retry.wait(attempt, None) {
                Some(wait) => std::thread::sleep(wait),
                None => {
                    return Err(Error::Broken { host, operation: format!("fetching {name}"), cause: broken });
                }
            }
        }
    }

    /// Sends a SIF file under a name, which needs all its parts, and gives it the tags of the name. The folders of the
    /// name are made where they are missing.
    pub fn push(
        &self,
        path: &Path,
        name: &LibraryName,
        architecture: &str,
        description: &str,
        progress: &dyn Progress,
    ) -> Result<LibraryImage> {
        let parts: Vec<&str> = name.path.split('/').collect();
        let [entity, collection, container] = parts[..] else {
            return Err(isles_spec::Error::new(format!("{name} is no name to push to"))
                .with_hint("write all parts: library://ENTITY/COLLECTION/CONTAINER:TAG")
                .into());
        };
        let mut file = open(path)?;
        let (digest, size) = digest_of(&mut file, path)?;
        let entity_id = self.folder("entities", entity, entity, None)?;
        let at = format!("{entity}/{collection}");
        let collection_id = self.folder("collections", &at, collection, Some(("entity", &entity_id)))?;
        let at = format!("{at}/{container}");
        let container_id = self.folder("containers", &at, container, Some(("collection", &collection_id)))?;
        let hash = format!("sha256.{}", digest.hex());
        let known: Option<LibraryImage> =
            self.ask(&format!("v1/images/{at}:{hash}"), &[("arch", architecture)])?;
        let mut image = match known {
            Some(image) => image,
            None => {
                let new = serde_json::json!({
                    "hash": hash, "description": description, "container": container_id,
                });
                self.tell("v1/images", &new)?
            }
        };
        let id = progress.begin(&name.to_string(), Some(size));
        let sent = if image.uploaded {
            Ok("already there")
        } else {
            self.upload(&image.id, &file, path, &digest, size).map(|()| "pushed")
        };
        progress.end(id, sent.as_ref().map_or("failed", |how| how));
        sent?;
        image.uploaded = true;
        for tag in &name.tags {
            let new = serde_json::json!({ "arch": architecture, "tag": tag, "imageID": image.id });
            let path = format!("v2/tags/{container_id}");
            let _: serde_json::Value = self.tell(&path, &new)?;
        }
        Ok(image)
    }

    /// The images for an architecture whose names have a word in them.
    pub fn search(&self, word: &str, architecture: &str, signed: bool) -> Result<Vec<LibraryMatch>> {
        let mut query = vec![("value", word), ("arch", architecture)];
        if signed {
            query.push(("signed", "true"));
        }
        Ok(self.ask::<Matches>("v1/search", &query)?.unwrap_or_default().image)
    }

    /// Removes an image for an architecture. Says whether it was there.
    pub fn delete(&self, name: &LibraryName, architecture: &str) -> Result<bool> {
        let path = format!("v1/images/{}", name.image());
        let url = self.url(&path, &[("arch", architecture)])?;
        let response = self.send(&Method::DELETE, &url, &HeaderMap::new(), Payload::None)?;
        match response.status().as_u16() {
            200 | 202 | 204 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refused("delete", &path, response)),
        }
    }

    /// The ID of a folder, made where it is missing.
    fn folder(&self, kind: &str, path: &str, name: &str, above: Option<(&str, &str)>) -> Result<String> {
        if let Some(folder) = self.ask::<Folder>(&format!("v1/{kind}/{path}"), &[])? {
            return Ok(folder.id);
        }
        let mut new = serde_json::json!({ "name": name, "description": "No description" });
        if let Some((above, id)) = above {
            new[above] = id.into();
        }
        Ok(self.tell::<Folder>(&format!("v1/{kind}"), &new)?.id)
    }

    /// Sends the file: to the place that the library names, and says when it is there.
    fn upload(&self, image: &str, file: &File, path: &Path, digest: &Digest, size: u64) -> Result<()> {
        let at = format!("v2/imagefile/{image}");
        let new = serde_json::json!({ "filesize": size, "sha256sum": digest.hex() });
        let place: Place = self.tell(&at, &new)?;
        let odd = || protocol(&self.base, "it names no place to send the file to".into());
        let url = location::join(&self.base, &place.upload_url)
            .filter(|_| !place.upload_url.is_empty())
            .ok_or_else(odd)?;
        let again = || -> io::Result<Box<dyn Read + '_>> {
            let mut file = file.try_clone()?;
            file.rewind()?;
            Ok(Box::new(file.take(size)))
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if let Ok(sum) = HeaderValue::try_from(digest.hex()) {
            headers.insert("x-amz-content-sha256", sum);
        }
        let payload = Payload::Stream { size, open: &again };
        let response = self.send(&Method::PUT, &url, &headers, payload)?;
        if !matches!(response.status().as_u16(), 200 | 201 | 204) {
            return Err(self.refused("push", &path.display().to_string(), response));
        }
        let done = self.url(&format!("{at}/_complete"), &[])?;
        let response = self.send(&Method::PUT, &done, &json(), Payload::Bytes(b"{}"))?;
        match response.status().as_u16() {
            200..=299 => Ok(()),
            _ => Err(self.refused("push", &path.display().to_string(), response)),
        }
    }

    /// What is at a path; `None` where nothing is.
    fn ask<T: serde::de::DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<Option<T>> {
        let response = self.send(&Method::GET, &self.url(path, query)?, &HeaderMap::new(), Payload::None)?;
        match response.status().as_u16() {
            200 => self.answer(response).map(Some),
            404 => Ok(None),
            _ => Err(self.refused("look for", path, response)),
        }
    }

    /// Makes something at a path.
    fn tell<T: serde::de::DeserializeOwned>(&self, path: &str, new: &serde_json::Value) -> Result<T> {
        let body = new.to_string();
        let url = self.url(path, &[])?;
        let response = self.send(&Method::POST, &url, &json(), Payload::Bytes(body.as_bytes()))?;
        match response.status().as_u16() {
            200 | 201 => self.answer(response),
            _ => Err(self.refused("push", path, response)),
        }
    }

    fn answer<T: serde::de::DeserializeOwned>(&self, response: Response<Body>) -> Result<T> {
        let odd = |why: String| protocol(&self.base, why);
        let bytes = read_bounded(response.into_body(), ANSWER_LIMIT)
            .map_err(|e| odd(sentence(&e)))?
            .ok_or_else(|| odd(format!("its answer has more than {ANSWER_LIMIT} bytes")))?;
        let answer: Answer<T> = serde_json::from_slice(&bytes).map_err(|e| odd(e.to_string()))?;
        match (answer.data, answer.error) {
            (Some(data), None) => Ok(data),
            (_, Some(refusal)) => Err(odd(crate::error::one_line(&refusal.message))),
            (None, None) => Err(odd("its answer holds no data".into())),
        }
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Uri> {
        let query: Vec<String> = query.iter().map(|(k, v)| format!("{k}={}", escape(v))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let text = format!("{}{path}{mark}{}", self.base, query.join("&"));
        text.parse().map_err(|_| protocol(&self.base, format!("no URL for {path}")))
    }

    /// Sends a request, again where that may help. A token stays with the library.
    fn send(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        payload: Payload<'_>,
    ) -> Result<Response<Body>> {
        let token = self.token.as_ref().filter(|_| location::same_origin(url, &self.base));
        let mut attempt = 0;
        loop {
            let (failure, asked) = match self.http.exchange(method, url, headers, token, payload) {
                Ok(response) if !retry::is_transient(response.status().as_u16()) => return Ok(response),
                Ok(response) => {
                    let asked = text_of(response.headers(), &header::RETRY_AFTER)
                        .and_then(|v| retry::retry_after(v, SystemTime::now()));
                    (self.refused("answer", url.path(), response), asked)
                }
                Err(failure) if failure.transient => (failure.error, None),
                Err(failure) => return Err(failure.error),
            };
            attempt += 1;
            match self.http.retry.wait(attempt, asked) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure),
            }
        }
    }

    fn nothing(&self, name: &LibraryName) -> Error {
        Error::NotFound { host: authority_of(&self.base), object: name.to_string() }
    }

    fn refused(&self, operation: &'static str, object: &str, response: Response<Body>) -> Error {
        let (host, object) = (authority_of(&self.base), object.to_owned());
        let status = response.status();
        let body = read_bounded(response.into_body(), ANSWER_LIMIT).ok().flatten().unwrap_or_default();
        let said = serde_json::from_slice::<Answer<serde::de::IgnoredAny>>(&body).ok().and_then(|a| a.error);
        let message = said.map(|r| crate::error::one_line(&r.message)).filter(|m| !m.is_empty());
        let message = message.or_else(|| status.canonical_reason().map(str::to_owned)).unwrap_or_default();
        match status.as_u16() {
            401 => Error::Unauthorized { host, operation, object, signed_in: self.token.is_some() },
            403 => Error::Denied { host, operation, object, message },
            status => Error::Refused { host, operation, object, status, message },
        }
    }
}

fn json() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_no_known_size_have_a_limit() {
        for (size, limit) in [(0, FILE_LIMIT), (5, 5), (u64::MAX, FILE_LIMIT)] {
            assert_eq!(limit_of(size), limit, "{size}");
        }
    }

    #[test]
    fn names() {
        for (text, host, path, tags) in [
            ("library://alpine", None, "alpine", "latest"),
            ("library:alpine:3.1", None, "alpine", "3.1"),
            ("library://u/c/x:1,2", None, "u/c/x", "1,2"),
            ("library:///u/c/x", None, "u/c/x", "latest"),
            ("h.example:443/u/c/x:sha256.ab", Some("h.example:443"), "u/c/x", "sha256.ab"),
        ] {
            let name = LibraryName::parse(text).unwrap();
            assert_eq!((name.host.as_deref(), name.path.as_str()), (host, path), "{text}");
            assert_eq!(name.tags.join(","), tags, "{text}");
        }
        for text in ["", "library://", "a//b", "a/../b", "a:", "a:b,", "a b", "h/a/b/c/d", "a?x=1", "a#b"] {
            assert!(LibraryName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn servers() {
        let options = ClientOptions { credentials: crate::Credentials::none(), ..ClientOptions::default() };
        for (server, token, fine) in [
            ("https://library.example", Some("t"), true),
            ("library.example", None, true),
            ("http://127.0.0.1:8080", Some("t"), true),
            ("http://library.example", None, true),
            ("http://library.example", Some("t"), false),
            ("ftp://library.example", None, false),
            ("https://library.example", Some("a\nb"), false),
            ("", None, false),
        ] {
            assert_eq!(Library::new(&options, server, token).is_ok(), fine, "{server}");
        }
    }

    #[test]
    fn names_of_the_same_server() {
        for (other, same) in [
            ("https://library.example", true),
            ("Library.example/", true),
            ("https://library.example:443/v1", true),
            ("http://library.example", false),
            ("https://library.example:8443", false),
            ("https://library.example.org", false),
            ("https://library.example@other.example", false),
            ("", false),
        ] {
            assert_eq!(Library::is_same_server("https://library.example/", other), same, "{other}");
        }
    }
}
