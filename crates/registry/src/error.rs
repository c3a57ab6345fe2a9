//! What can go wrong between this machine and a registry, said in words.
//!
//! A registry answers with `{"errors":[{code,message,detail}]}` (distribution-spec, "Error Codes"); the
//! codes that a person can act on become variants of their own, the rest keeps the registry's words.

use std::path::PathBuf;
use std::time::Duration;

use isles_spec::{Digest, Hint};
use serde::Deserialize;

/// A result whose error is a [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The operation whose refusal means that the login is wrong.
pub(crate) const SIGN_IN: &str = "sign in to";

/// Why a conversation with a registry failed. Every message names the object; the host stands in it where
/// the object alone does not say it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach {host}: {cause}")]
    Unreachable { host: String, cause: String, hint: Option<String> },
    #[error("cannot trust {host}: {cause}")]
    Untrusted { host: String, cause: String, intercepted: bool },
    #[error("the connection to {host} broke while {operation}: {cause}")]
    Broken { host: String, operation: String, cause: String },
    #[error("{}", unauthorized(host, operation, object, *signed_in))]
    Unauthorized { host: String, operation: &'static str, object: String, signed_in: bool },
    #[error("{host} denies us to {operation} {object}: {message}")]
    Denied { host: String, operation: &'static str, object: String, message: String },
    #[error("{host} does not list its repositories")]
    NoCatalog { host: String },
    #[error("{host} has no {object}")]
    NotFound { host: String, object: String },
    #[error("{host} takes no more requests for now: {message}")]
    TooManyRequests { host: String, message: String, retry_after: Option<Duration> },
    #[error("{host} refused to {operation} {object}: {message} (status {status})")]
    Refused { host: String, operation: &'static str, object: String, status: u16, message: String },
    #[error("{host} answered against the protocol: {why}")]
    Protocol { host: String, why: String },
    #[error("{object} from {host} has the digest {actual}, not {expected}")]
    Mismatch { host: String, object: String, expected: Digest, actual: Digest },
    #[error("{object} from {host} is larger than {limit} bytes")]
    TooLarge { host: String, object: String, limit: u64 },
    #[error("{object} is kept in the old schema 1 format")]
    Schema1 { object: String },
    #[error("{object} has no image for {wanted}; it has {available}")]
    NoPlatform { object: String, wanted: String, available: String },
    #[error("{object} is for {found}, not for {wanted}")]
    WrongPlatform { object: String, wanted: String, found: String },
    #[error("{object} is not an image: {why}")]
    NotAnImage { object: String, why: String },
    #[error("cannot {operation} {}: {cause}", path.display())]
    File { operation: &'static str, path: PathBuf, cause: String, denied: bool },
    #[error("cannot use {}: {why}", path.display())]
    Configuration { path: PathBuf, why: String },
    #[error("{object} is blocked: registries.conf allows nothing from {prefix}")]
    Blocked { object: String, prefix: String },
    #[error("the credential helper {helper} failed: {cause}")]
    Helper { helper: String, cause: String },
    #[error(transparent)]
    Name(#[from] isles_spec::Error),
    #[error(transparent)]
    Store(Box<isles_store::Error>),
}

impl From<isles_store::Error> for Error {
    fn from(e: isles_store::Error) -> Self {
        Error::Store(Box::new(e))
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Unreachable { hint, .. } => return hint.clone(),
            Error::Untrusted { intercepted: true, host, .. } => format!(
                "if this network inspects TLS, put its certificate authority (PEM, *.crt) into \
                 /usr/local/share/ca-certificates and run update-ca-certificates, or name the file in SSL_CERT_FILE; \
                 for {host} alone, put it into /etc/docker/certs.d/{host}/; a machine without any authorities needs the \
                 package ca-certificates"
            ),
            Error::Untrusted { .. } => {
                "check the name and the clock; --tls-verify=false skips the check for a registry of your own"
                    .into()
            }
            Error::Broken { .. } => "try again: what has arrived is kept and the rest is fetched".into(),
            Error::Unauthorized { operation: SIGN_IN, .. } => {
                "check both; many registries want an access token in place of the password".into()
            }
            Error::Unauthorized { host, signed_in: false, operation: "push", .. } => {
                format!("sign in first, with: isles login {host}")
            }
            Error::Unauthorized { host, signed_in: false, .. } => {
                format!("check the name; if the repository is private, sign in with: isles login {host}")
            }
            Error::Unauthorized { host, .. } => {
                format!("check the name; sign in again, or as someone else, with: isles login {host}")
            }
            Error::Denied { host, .. } => {
                format!(
                    "check the name, and that the account you signed in with (isles login {host}) may do this"
                )
            }
            Error::NotFound { .. } => "check the spelling of the name and the tag".into(),
            Error::NoCatalog { .. } => {
                "many registries that are open to everybody do not; look on the registry's own page".into()
            }
            Error::TooManyRequests { retry_after: Some(wait), .. } => {
                format!("try again in {} seconds; signing in usually raises the limit", wait.as_secs().max(1))
            }
            Error::TooManyRequests { host, .. } => {
                format!("wait, or sign in for a higher limit: isles login {host}")
            }
            Error::Schema1 { .. } => {
                "registries and tools have dropped it; push the image again with a current tool".into()
            }
            Error::NoPlatform { .. } => "name one of them with --platform".into(),
            Error::WrongPlatform { found, .. } => format!("to use it all the same, say --platform {found}"),
            Error::Mismatch { .. } => {
                "the content was changed on its way or in the registry; nothing of it was kept".into()
            }
            Error::Helper { helper, .. } => {
                format!("run it by hand to see why, or remove {helper} from Docker's config.json")
            }
            Error::Name(e) => return e.hint(),
            Error::Store(e) => return e.hint(),
            _ => return None,
        })
    }
}

fn unauthorized(host: &str, operation: &str, object: &str, signed_in: bool) -> String {
    match (operation, signed_in) {
        (SIGN_IN, _) => format!("{host} does not accept this name and password"),
        (_, true) => {
            format!("{host} does not let us {operation} {object} with the login that is stored for it")
        }
        (_, false) => format!("{host} does not let us {operation} {object} without signing in"),
    }
}

/// The body of a registry's refusal. Everything in it is optional in practice.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusals {
    errors: Vec<Refusal>,
    /// Token services and GitLab write `details` or `message` at the top.
    details: Option<String>,
    message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: String,
    message: String,
}

/// What was asked of whom, to name it in an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub host: &'a str,
    /// A verb: `pull`, `push`, `delete`, `list`.
    pub operation: &'static str,
    /// `debian:12`, `blob sha256:…`.
    pub object: &'a str,
    pub signed_in: bool,
}

/// The error that a response with `status` and `body` means.
pub(crate) fn refusal(asked: Asked<'_>, status: u16, body: &[u8], retry_after: Option<Duration>) -> Error {
    let said: Refusals = serde_json::from_slice(body).unwrap_or_default();
    let first = said.errors.first();
    let code = first.map(|e| e.code.to_ascii_uppercase()).unwrap_or_default();
    let message = first
        .map(|e| if e.message.is_empty() { e.code.clone() } else { e.message.clone() })
        .or(said.details)
        .or(said.message)
        .map(|m| one_line(&m))
        .filter(|m| !m.is_empty())
        .unwrap_or_else(|| reason(status).to_owned());
    let host = asked.host.to_owned();
    let object = asked.object.to_owned();
    let operation = asked.operation;
    match (status, code.as_str()) {
        (429, _) | (_, "TOOMANYREQUESTS") => Error::TooManyRequests { host, message, retry_after },
        (401, _) | (_, "UNAUTHORIZED") => {
            Error::Unauthorized { host, operation, object, signed_in: asked.signed_in }
        }
        (403, _) | (_, "DENIED") => Error::Denied { host, operation, object, message },
        (404, _) if operation == "pull" || operation == "list" || operation == "delete" => {
            Error::NotFound { host, object }
        }
        _ => Error::Refused { host, operation, object, status, message },
    }
}

/// Untrusted words become one line of bounded length without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "it calls the request malformed",
        405 => "it does not offer this operation",
        413 => "it calls the content too large",
        416 => "it cannot serve this range",
        500..=599 => "the server has a problem of its own",
        _ => "it gives no reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked<'_> =
        Asked { host: "r.example", operation: "pull", object: "app:1", signed_in: false };

    #[test]
    fn refusals_become_words() {
        let json = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"m\nx"}}]}}"#);
        for (status, body, message) in [
            (401, json("UNAUTHORIZED"), "r.example does not let us pull app:1 without signing in"),
            (403, json("DENIED"), "r.example denies us to pull app:1: m x"),
            (404, json("MANIFEST_UNKNOWN"), "r.example has no app:1"),
            (404, json("NAME_UNKNOWN"), "r.example has no app:1"),
            (404, "<html>".to_owned(), "r.example has no app:1"),
            (429, json("TOOMANYREQUESTS"), "r.example takes no more requests for now: m x"),
            (
                500,
                String::new(),
                "r.example refused to pull app:1: the server has a problem of its own (status 500)",
            ),
            (400, r#"{"details":"odd"}"#.to_owned(), "r.example refused to pull app:1: odd (status 400)"),
        ] {
            assert_eq!(refusal(ASKED, status, body.as_bytes(), None).to_string(), message);
        }
    }

    #[test]
    fn hints_say_what_to_do() {
        let e = refusal(ASKED, 401, b"", None);
        assert!(e.hint().is_some_and(|h| h.contains("isles login r.example")), "{e}");
        let e = refusal(ASKED, 429, b"", Some(Duration::from_secs(7)));
        assert!(e.hint().is_some_and(|h| h.contains("7 seconds")));
    }
}
