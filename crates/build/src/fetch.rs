//! Files that a recipe names by their URL.
//!
//! What was fetched is kept by its digest, and that digest goes into the key of a step: a server that says that
//! nothing changed, or that gives the same bytes again, leaves the layer as it is. Where the recipe says the
//! checksum, nobody is asked before the file is needed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

use isles_registry::web::{Answer, Validator, Wish};
use isles_spec::{Digest, Error as SpecError, Progress};
use isles_store::Memory;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::error::{Error, Result};
use crate::snapshot::Build;

/// What a download may come to; servers exist that never end.
#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: u64,
    time: Duration,
}

const LIMITS: Limits = Limits { bytes: 64 << 30, time: Duration::from_secs(2 * 3600) };
/// The name of a file whose URL ends in no name, as BuildKit has it.
const UNNAMED: &str = "__unnamed__";

/// A file on the web, known by its content.
#[derive(Debug, Clone)]
pub struct Remote {
    pub url: String,
    /// What it is called in a directory.
    pub name: String,
    pub digest: Digest,
}

/// What was behind a URL when it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    digest: Digest,
    etag: Option<String>,
    last_modified: Option<String>,
    /// Seconds since 1970; 0 where the server does not say.
    mtime: i64,
}

impl Remote {
    /// What is behind a URL now, or what the recipe says is there.
    ///
    /// # Errors
    /// The server cannot be asked, has no such file, or gives too much.
    pub fn find(build: &Build<'_>, url: &str, checksum: Option<&Digest>) -> Result<Remote> {
        let name = name_of(url);
        let digest = match checksum {
            Some(digest) => digest.clone(),
            None => ask(build, url)?.digest,
        };
        Ok(Remote { url: url.to_owned(), name, digest })
    }

    /// The file, and when it last changed (seconds since 1970; 0 where nobody says).
    pub fn open(&self, build: &Build<'_>) -> Result<(File, i64)> {
        let known = kept(build, &self.url).filter(|kept| kept.digest == self.digest);
        if let (Some(known), Some(file)) = (known, build.store.download(&self.digest)?) {
            return Ok((file, known.mtime));
        }
        let now = ask(build, &self.url)?;
        if now.digest != self.digest {
            return Err(SpecError::new(format!(
                "'{}' has the digest {}, not {}",
                self.url, now.digest, self.digest
            ))
            .with_hint("the file changed at its place, or somebody changed it on the way")
            .into());
        }
        let file = build.store.download(&self.digest)?.ok_or_else(|| gone(&self.url))?;
        Ok((file, now.mtime))
    }
}

/// A handle of its own on an open file, at its beginning.
pub fn again(file: &File, url: &str) -> Result<File> {
    let mut file = file.try_clone().map_err(Error::io("open", url))?;
    file.rewind().map_err(Error::io("read", url))?;
    Ok(file)
}

fn gone(url: &str) -> Error {
    SpecError::new(format!("what was fetched from '{url}' is gone again"))
        .with_hint("does something empty the cache at the same time?")
        .into()
}

/// Where the state of a URL is remembered.
fn memory(url: &str) -> String {
    isles_spec::digest::hex(&sha2::Sha256::digest(url.as_bytes()))
}

fn kept(build: &Build<'_>, url: &str) -> Option<Kept> {
    let bytes = build.store.remembered(Memory::Urls, &memory(url)).ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// Asks a server for a file, which it need not send again where it did not change.
fn ask(build: &Build<'_>, url: &str) -> Result<Kept> {
    // Steps of stages side by side may want the same.
    let _turn = build.turn(&crate::key::Key::new("url").with("url", url).finish());
    let known = match kept(build, url) {
        Some(kept) if !build.options.no_cache && build.store.download(&kept.digest)?.is_some() => Some(kept),
        _ => None,
    };
    let validator = known
        .as_ref()
        .map(|kept| Validator { etag: kept.etag.clone(), last_modified: kept.last_modified.clone() });
    let authorization = authorization(build, url)?;
    let wish = Wish { known: validator.as_ref(), authorization: authorization.as_deref(), ..Wish::default() };
    let web = build.client.web();
    let mut answer = web.get(url, wish).map_err(|e| match (&e, kept(build, url)) {
        (isles_registry::Error::Unreachable { .. }, Some(old)) => SpecError::new(format!(
            "{e}; '{url}' was fetched before, and nobody can say whether that is still what it holds"
        ))
        .with_hint(format!("--checksum={} takes what is here, without asking", old.digest))
        .into(),
        _ => Error::from(e),
    })?;
    if let (304, Some(known)) = (answer.status, known) {
        return Ok(known);
    }
    build.note_work();
    let work = build.progress.begin(&format!("downloading {url}"), answer.length);
    let mut attempt = 0;
    let kept = loop {
        if answer.status != 200 {
            break Err(refusal(url, answer.status));
        }
        let received = receive(build, url, answer, LIMITS, work);
        let broken = match &received {
            // The server's stream ended, not ours.
            Err(Error::Store(isles_store::Error::Io { object, .. })) => object == url,
            _ => false,
        };
        attempt += 1;
        match web.retry().wait_before(attempt).filter(|_| broken) {
            Some(wait) => std::thread::sleep(wait),
            None => break received,
        }
        build.progress.status(work, &format!("retry {attempt}"));
        match web.get(url, Wish { known: None, ..wish }) {
            Ok(again) => answer = again,
            Err(e) => break Err(e.into()),
        }
    };
    build.progress.end(work, if kept.is_ok() { "done" } else { "failed" });
    let kept = kept?;
    let json = serde_json::to_vec(&kept).unwrap_or_default();
    build.store.remember(Memory::Urls, &memory(url), &json)?;
    Ok(kept)
}

fn refusal(url: &str, status: u16) -> Error {
    SpecError::new(format!("cannot fetch '{url}': the server answers {status}"))
        .with_hint(match status {
            401 | 403 => "pass --secret id=HTTP_AUTH_TOKEN_HOST,src=FILE, with the host's name and a token",
            _ => "check the spelling of the URL",
        })
        .into()
}

/// A token or header that the caller gives for the host, as BuildKit names them.
fn authorization(build: &Build<'_>, url: &str) -> Result<Option<String>> {
    let authority =
        url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let host = crate::git::host_of(authority.rsplit('@').next().unwrap_or(authority));
    for (name, kind) in [("HTTP_AUTH_HEADER_", ""), ("HTTP_AUTH_TOKEN_", "Bearer ")] {
        if let Some(source) = build.options.secrets.get(&format!("{name}{host}")) {
            if !crate::git::is_safe(url, &host) {
                return Err(crate::git::in_the_clear(&format!("{name}{host}"), url));
            }
            let secret = source.read()?;
            return Ok(Some(format!("{kind}{}", String::from_utf8_lossy(&secret).trim())));
        }
    }
    Ok(None)
}

fn receive(build: &Build<'_>, url: &str, answer: Answer, limits: Limits, work: u64) -> Result<Kept> {
    if answer.length.is_some_and(|length| length > limits.bytes) {
        return Err(too_much(url, "is larger than a file may be"));
    }
    let Validator { etag, last_modified } = answer.validator.clone();
    let mtime = answer.last_modified().unwrap_or(0);
    let mut body =
        Bounded { inner: answer.reader(), end: Instant::now() + limits.time, progress: build.progress, work };
    let (digest, _) = match build.store.add_download(url, &mut body, limits.bytes) {
        Err(isles_store::Error::Limit { .. }) => {
            return Err(too_much(url, "is larger than a file may be"));
        }
        Err(isles_store::Error::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
            return Err(too_much(url, "does not come to an end"));
        }
        other => other?,
    };
    Ok(Kept { digest, etag, last_modified, mtime })
}

fn too_much(url: &str, why: &str) -> Error {
    let Limits { bytes, time } = LIMITS;
    SpecError::new(format!("'{url}' {why}"))
        .with_hint(format!("{} GiB and {} hours are allowed", bytes >> 30, time.as_secs() / 3600))
        .into()
}

/// A body that must end before some time.
struct Bounded<'p, R> {
    inner: R,
    end: Instant,
    progress: &'p dyn Progress,
    work: u64,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let n = self.inner.read(buffer)?;
        self.progress.advance(self.work, n as u64);
        Ok(n)
    }
}

/// The name of a file from its URL: the last part of the path.
pub fn name_of(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    let path = decode(path);
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => UNNAMED.to_owned(),
        Some(name) if name.contains('\0') => UNNAMED.to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// Text with `%41` and the like resolved (RFC 3986, section 2.1).
pub fn decode(text: &str) -> String {
    String::from_utf8_lossy(&isles_spec::percent::decode(text)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        for (url, name) in [
            ("http://a/b/c.txt", "c.txt"),
            ("https://a:8/c%20d?x=/y#z", "c d"),
            ("http://a/b/", "b"),
            ("http://a/", UNNAMED),
            ("http://a", UNNAMED),
            ("http://a?x=/y", UNNAMED),
            ("http://a/b/..", UNNAMED),
            ("http://a/b%2F..%2Fc", "c"),
            ("http://a/x%00y", UNNAMED),
            ("http://a/50%", "50%"),
        ] {
            assert_eq!(name_of(url), name, "{url}");
        }
    }

    #[test]
    fn a_body_that_never_ends_is_left() {
        let end = Instant::now() + Duration::from_millis(20);
        let mut body = Bounded { inner: io::repeat(1), end, progress: &isles_spec::Quiet, work: 0 };
        let error = io::copy(&mut body, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
