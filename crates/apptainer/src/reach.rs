//! How registries, libraries and other servers are reached, as the flags and variables of a command want it.

use std::fs::File;
use std::io::{Read, Write};

use isles_registry::web::{Web, Wish};
use isles_registry::{Client, ClientOptions, Credentials, Daemon, Library, LibraryName, Login};
use isles_spec::Progress;

use crate::action_flags as flags;
use crate::ask;
use crate::command::Context;
use crate::failure::Failure;
use crate::remotes::Remotes;
use crate::talk::{Level, Talk};
use crate::variables;

/// What is fetched has at most this many bytes.
const LARGEST: u64 = 64 << 30;

/// What `scheme:rest` says; the slashes before the rest are gone. `None` for what has no scheme.
pub fn split(uri: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = uri.split_once(':')?;
    let is_word = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_word.then(|| (scheme, rest.strip_prefix("//").unwrap_or(rest)))
}

/// A client of registries.
pub fn client(cx: &Context<'_>) -> Result<Client, Failure> {
    Ok(Client::new(options(cx)?))
}

pub fn options(cx: &Context<'_>) -> Result<ClientOptions, Failure> {
    let values = cx.values;
    let tls_verify = !(values.is(&flags::NO_HTTPS) || values.is(&flags::NOHTTPS));
    let mut options = ClientOptions { tls_verify, ..ClientOptions::default() };
    if let Some(path) = values.word(&flags::AUTHFILE) {
        options.credentials = Credentials::file(path);
    }
    let (name, word) = (values.word(&flags::DOCKER_USERNAME), values.word(&flags::DOCKER_PASSWORD));
    if name.is_some() || word.is_some() {
        let (user, password) = (name.unwrap_or_default().to_owned(), word.unwrap_or_default().to_owned());
        options.credentials = Credentials::fixed(Login::Password { user, password });
    }
    if values.is(&flags::DOCKER_LOGIN) {
        let user = ask::line("Enter Docker Username: ")?;
        let password = ask::secret("Enter Docker Password: ")?;
        if user.is_empty() || password.is_empty() {
            return Err(Failure::new("--docker-login needs a name and a password"));
        }
        options.credentials = Credentials::fixed(Login::Password { user, password });
    }
    Ok(options)
}

/// Writes what is behind a URL into a file, all of it.
pub fn download(cx: &Context<'_>, url: &str, file: &mut File) -> Result<(), Failure> {
    fetch_file(&options(cx)?, url, file)
}

/// The same for whoever has no flags of Apptainer's.
pub fn fetch_file(options: &ClientOptions, url: &str, file: &mut File) -> Result<(), Failure> {
    // The caller named the server, and that may send us anywhere.
    let answer = Web::guarded(options).get(url, Wish::default())?;
    if answer.status != 200 {
        return Err(Failure::new(format!("'{url}' is not served: the server answers {}", answer.status)));
    }
    let expected = answer.length;
    receive(url, answer.reader(), expected, file, LARGEST)
}

fn receive(
    url: &str,
    body: impl Read,
    expected: Option<u64>,
    into: &mut impl Write,
    limit: u64,
) -> Result<(), Failure> {
    let too_large = || {
        Failure::new(format!("'{url}' is larger than a file may be"))
            .with_hint(format!("{} GiB are allowed", LARGEST >> 30))
    };
    if expected.is_some_and(|expected| expected > limit) {
        return Err(too_large());
    }
    let copied = std::io::copy(&mut body.take(limit.saturating_add(1)), into)
        .map_err(|e| Failure::because(format!("cannot fetch '{url}'"), &e))?;
    match expected {
        _ if copied > limit => Err(too_large()),
        Some(expected) if expected != copied => {
            Err(Failure::new(format!("'{url}' ended after {copied} of {expected} bytes"))
                .with_hint("try again"))
        }
        _ => Ok(()),
    }
}

/// The docker daemon that is named, or the usual one.
pub fn daemon(cx: &Context<'_>) -> Result<Daemon, Failure> {
    match cx.values.word(&flags::DOCKER_HOST) {
        Some(host) => Ok(Daemon::at(host.strip_prefix("unix://").unwrap_or(host))),
        None => Ok(Daemon::from_environment()?),
    }
}

/// The library that a name is of: that of its host, the one that is named, that of the variable, or that of the endpoint
/// in use.
pub fn library(
    cx: &Context<'_>,
    name: Option<&LibraryName>,
    named: Option<&str>,
) -> Result<Library, Failure> {
    let plain = cx.values.is(&flags::NO_HTTPS) || cx.values.is(&flags::NOHTTPS);
    library_of(&options(cx)?, plain, name, named)
}

/// The same for whoever has no flags of Apptainer's; `plain` speaks HTTP without TLS with the host of a name.
///
/// # Errors
/// No library is known, or two are named.
pub fn library_of(
    options: &ClientOptions,
    plain: bool,
    name: Option<&LibraryName>,
    named: Option<&str>,
) -> Result<Library, Failure> {
    let host = name.and_then(|name| name.host.as_deref());
    if named.is_some() && host.is_some() {
        let text = "Conflicting arguments; do not use --library with a library URI containing host name";
        return Err(Failure::new(text));
    }
    let scheme = if plain { "http" } else { "https" };
    let own = host.map(|host| format!("{scheme}://{host}"));
    let (set, token) = (variables::look("LIBRARY"), variables::look("LIBRARY_TOKEN"));
    if let Some(server) = own {
        let token = token.filter(|_| is_configured(&server, set.as_deref(), &of_remote));
        return Ok(Library::new(options, &server, token.as_deref())?);
    }
    if let Some(server) = named.map(str::to_owned).or(set) {
        return Ok(Library::new(options, &server, token.as_deref())?);
    }
    let remotes = Remotes::load()?;
    let (name, remote) = remotes.chosen(None)?;
    let services = remote.services()?;
    let server = services.uri("libraryAPI").ok_or_else(|| {
        Failure::new(format!("the endpoint {name} has no library")).with_hint(
            "name one with --library or APPTAINER_LIBRARY, or by its host: library://HOST/ENTITY/…",
        )
    })?;
    let token = Some(remote.token.as_str()).filter(|token| !token.is_empty());
    Ok(Library::new(options, server, token)?)
}

/// The library and the token for it that variables name: `APPTAINER_LIBRARY`, `APPTAINER_LIBRARY_TOKEN`.
pub fn library_settings() -> (Option<String>, Option<String>) {
    (variables::look("LIBRARY"), variables::look("LIBRARY_TOKEN"))
}

/// Whether the caller's settings speak of this server: what only the name of an image names may be anybody's, and gets
/// no token.
fn is_configured(server: &str, set: Option<&str>, remote: &dyn Fn() -> Option<String>) -> bool {
    let same = |other: &str| Library::is_same_server(server, other);
    set.is_some_and(same) || remote().is_some_and(|other| same(&other))
}

/// The library of the endpoint in use.
fn of_remote() -> Option<String> {
    let remotes = Remotes::load().ok()?;
    let (_, remote) = remotes.chosen(None).ok()?;
    remote.services().ok()?.uri("libraryAPI").map(str::to_owned)
}

/// Progress as lines, where the caller wants to hear of it.
#[derive(Debug, Clone, Copy)]
pub struct Steps(pub Talk);

impl Progress for Steps {
    fn begin(&self, what: &str, _total: Option<u64>) -> u64 {
        self.0.verbose(what);
        0
    }

    fn advance(&self, _id: u64, _bytes: u64) {}

    fn status(&self, _id: u64, text: &str) {
        self.0.debug(text);
    }

    fn end(&self, _id: u64, text: &str) {
        self.0.debug(text);
    }

    fn output(&self, _id: u64, bytes: &[u8]) {
        if self.0.level() >= Level::Info {
            // Nothing can be done where even standard error is closed.
            let _ = std::io::stderr().lock().write_all(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_have_an_end() {
        let get = |body: &mut dyn Read, expected| receive("u", body, expected, &mut std::io::sink(), 8);
        for (body, expected, fine) in [
            (&b"12345678"[..], None, true),
            (&b"12345678"[..], Some(8), true),
            (&b"1234567"[..], Some(8), false),
            (&b""[..], Some(9), false),
            (&b"123456789"[..], None, false),
        ] {
            assert_eq!(get(&mut &*body, expected).is_ok(), fine, "{body:?} {expected:?}");
        }
        assert!(get(&mut std::io::repeat(1), None).unwrap_err().message.contains("larger"));
    }

    #[test]
    fn a_token_is_for_servers_of_the_settings() {
        let (none, remote) = (|| None, || Some("https://lib.example.org/v1".to_owned()));
        for (server, set, fine) in [
            ("https://evil.example", None, false),
            ("https://evil.example", Some("https://own.example"), false),
            ("https://own.example", Some("https://own.example/"), true),
            ("https://own.example", Some("own.example:443"), true),
            ("http://own.example", Some("https://own.example"), false),
            ("https://own.example:8443", Some("https://own.example"), false),
        ] {
            assert_eq!(is_configured(server, set, &none), fine, "{server} {set:?}");
        }
        assert!(is_configured("https://lib.example.org", None, &remote));
        assert!(!is_configured("https://lib.example.com", None, &remote));
    }

    #[test]
    fn schemes() {
        for (uri, parts) in [
            ("docker://debian:12", Some(("docker", "debian:12"))),
            ("oci-archive:/a.tar", Some(("oci-archive", "/a.tar"))),
            ("library://a/b/c:1", Some(("library", "a/b/c:1"))),
            ("image.sif", None),
            ("./a:b", None),
        ] {
            assert_eq!(split(uri), parts, "{uri}");
        }
    }
}
