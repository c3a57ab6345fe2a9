//! Who we are to a registry: Docker's `config.json`, podman's `auth.json` and credential helpers.
//!
//! Files are read in this order, the first that knows the registry wins: `$REGISTRY_AUTH_FILE`, Docker's
//! `config.json` (`$DOCKER_CONFIG` or `~/.docker`), then podman's `auth.json` (`$XDG_RUNTIME_DIR/containers`,
//! `$XDG_CONFIG_HOME/containers` or `~/.config/containers`). Signing in writes Docker's file, or asks the
//! helper that it names, so that other clients share it.
//! Formats: docker/cli `cli/config`, containers-auth.json(5), docker-credential-helpers.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::credential_helper::Helper;
use crate::{Error, Result};

/// Docker Hub's key in these files.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const FILE_LIMIT: u64 = 4 << 20;

/// What signs a request.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password or access token.
    Password { user: String, password: String },
    /// A refresh token that the registry's token service gave at sign-in.
    Identity(String),
    /// A bearer token that is used as it is.
    Token(String),
}

/// Secrets do not belong in a log.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Login::Password { user, .. } => write!(f, "Password({user})"),
            Login::Identity(_) => f.write_str("Identity"),
            Login::Token(_) => f.write_str("Token"),
        }
    }
}

/// The files that hold credentials, first choice first. The first one that is Docker's is written to.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    files: Vec<PathBuf>,
    write_to: Option<PathBuf>,
    /// Used for every registry, before any file.
    fixed: Option<Login>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    auths: Map<String, Value>,
    #[serde(rename = "credHelpers")]
    helpers: std::collections::BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity: String,
    #[serde(rename = "registrytoken")]
    token: String,
}

impl Credentials {
    /// No credentials at all: every request is anonymous.
    pub fn none() -> Self {
        Credentials::default()
    }

    /// Only this file, in Docker's or podman's format. It need not exist.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Credentials { files: vec![path.clone()], write_to: Some(path), fixed: None }
    }

    /// This login for every registry.
    pub fn fixed(login: Login) -> Self {
        Credentials { fixed: Some(login), ..Credentials::default() }
    }

    /// The files of the user whose environment this process has.
    pub fn from_environment() -> Self {
        let path = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let docker = path("DOCKER_CONFIG")
            .or_else(|| home.as_ref().map(|h| h.join(".docker")))
            .map(|d| d.join("config.json"));
        let chosen = path("REGISTRY_AUTH_FILE");
        let runtime = path("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json"));
        let config = path("XDG_CONFIG_HOME")
            .or_else(|| home.as_ref().map(|h| h.join(".config")))
            .map(|d| d.join("containers/auth.json"));
        let write_to = chosen.clone().or_else(|| docker.clone());
        let files = [chosen, docker, runtime, config].into_iter().flatten().collect();
        Credentials { files, write_to, fixed: None }
    }

    /// The login for a repository of a registry (`docker.io`, `host:port`), if there is one.
    pub fn lookup(&self, registry: &str, repository: &str) -> Result<Option<Login>> {
        if self.fixed.is_some() {
            return Ok(self.fixed.clone());
        }
        for path in &self.files {
            let Some(config) = config(path)? else { continue };
            if let Some(login) = config.lookup(registry, repository, path)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// The registries that the files know, in alphabetic order and as people name them.
    pub fn registries(&self) -> Result<Vec<String>> {
        let mut all = std::collections::BTreeSet::new();
        for path in &self.files {
            let Some(config) = config(path)? else { continue };
            all.extend(config.auths.keys().chain(config.helpers.keys()).map(|key| normal(key).to_string()));
        }
        Ok(all.into_iter().collect())
    }

    /// Keeps a login: with the helper that the file names for the registry, else in the file. Returns what
    /// keeps it now, for people.
    pub fn save(&self, registry: &str, login: &Login) -> Result<String> {
        let path = self.writable()?;
        let mut document = read_document(&path)?;
        let key = key_of(registry);
        if let Some(helper) = helper_in(&document, registry) {
            helper.store(key, login)?;
            // Docker lists the registry all the same, so that it knows whom to ask about.
            section(&mut document, "auths").insert(key.to_owned(), json!({}));
            write(&path, &document)?;
            return Ok(format!("the credential helper {}", helper.name()));
        }
        let entry = match login {
            Login::Password { user, password } => {
                json!({"auth": STANDARD.encode(format!("{user}:{password}"))})
            }
            Login::Identity(token) => json!({"auth": STANDARD.encode("<token>:"), "identitytoken": token}),
            Login::Token(token) => json!({"registrytoken": token}),
        };
        section(&mut document, "auths").insert(key.to_owned(), entry);
        write(&path, &document)?;
        Ok(path.display().to_string())
    }

    /// Forgets the login for a registry. Returns whether there was one.
    pub fn erase(&self, registry: &str) -> Result<bool> {
        let path = self.writable()?;
        let mut document = read_document(&path)?;
        let mut erased = false;
        if let Some(helper) = helper_in(&document, registry) {
            erased = helper.get(key_of(registry))?.is_some();
            if erased {
                helper.erase(key_of(registry))?;
            }
        }
        let auths = section(&mut document, "auths");
        let keys: Vec<String> = auths.keys().filter(|k| normal(k) == normal(registry)).cloned().collect();
        for key in &keys {
            auths.remove(key);
        }
        if !keys.is_empty() {
            write(&path, &document)?;
        }
        Ok(erased || !keys.is_empty())
    }

    fn writable(&self) -> Result<PathBuf> {
        let path = self.write_to.clone().ok_or_else(|| Error::File {
            operation: "find",
            path: "config.json".into(),
            cause: "neither HOME nor DOCKER_CONFIG is set".into(),
            denied: false,
        })?;
        // A link, as people keep their settings elsewhere, stays a link.
        Ok(fs::canonicalize(&path).unwrap_or(path))
    }
}

impl ConfigFile {
    fn lookup(&self, registry: &str, repository: &str, path: &Path) -> Result<Option<Login>> {
        let host = normal(registry);
        if let Some(name) = self.helpers.iter().find(|(k, _)| normal(k) == host).map(|(_, name)| name) {
            return Helper::new(name)?.get(key_of(registry));
        }
        if let Some(name) = self.store.as_deref().filter(|n| !n.is_empty())
            && let Some(login) = Helper::new(name)?.get(key_of(registry))?
        {
            return Ok(Some(login));
        }
        // podman's keys may go down to the repository; the longest match wins.
        let mut scope = format!("{host}/{repository}");
        loop {
            for (_, value) in self.auths.iter().filter(|(key, _)| normal(key) == scope) {
                if let Some(login) = login_of(value, path)? {
                    return Ok(Some(login));
                }
            }
            match scope.rfind('/') {
                Some(slash) => scope.truncate(slash),
                None => return Ok(None),
            }
        }
    }
}

/// The login in one entry of `auths`; none where the entry is empty.
fn login_of(value: &Value, path: &Path) -> Result<Option<Login>> {
    let entry: Entry = serde_json::from_value(value.clone()).map_err(|e| unreadable(path, e))?;
    if !entry.token.is_empty() {
        return Ok(Some(Login::Token(entry.token)));
    }
    if !entry.identity.is_empty() {
        return Ok(Some(Login::Identity(entry.identity)));
    }
    if !entry.username.is_empty() {
        return Ok(Some(Login::Password { user: entry.username, password: entry.password }));
    }
    if entry.auth.is_empty() {
        return Ok(None);
    }
    let text = STANDARD
        .decode(entry.auth.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| unreadable(path, "an 'auth' member is not base64 of name:password"))?;
    let (user, password) = text
        .split_once(':')
        .ok_or_else(|| unreadable(path, "an 'auth' member has no colon between name and password"))?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Login::Password { user: user.to_owned(), password }))
}

/// What these files and helpers call a registry.
fn key_of(registry: &str) -> &str {
    if normal(registry) == "docker.io" { HUB_KEY } else { registry }
}

/// The many spellings of one registry become one.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let (host, path) = bare.split_once('/').map_or((bare, None), |(h, p)| (h, Some(p)));
    let host = host.to_ascii_lowercase();
    let host = match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    path.map_or_else(|| host.to_owned(), |p| format!("{host}/{p}"))
}

fn helper_in(document: &Map<String, Value>, registry: &str) -> Option<Helper> {
    let config: ConfigFile = serde_json::from_value(Value::Object(document.clone())).ok()?;
    let host = normal(registry);
    let own = config.helpers.iter().find(|(k, _)| normal(k) == host).map(|(_, name)| name.clone());
    let name = own.or(config.store).filter(|n| !n.is_empty())?;
    Helper::new(&name).ok()
}

fn section<'a>(document: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = document.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

fn unreadable(path: &Path, cause: impl ToString) -> Error {
    Error::File { operation: "understand", path: path.to_owned(), cause: cause.to_string(), denied: false }
}

fn failed(operation: &'static str, path: &Path, e: &io::Error) -> Error {
    let denied = e.kind() == io::ErrorKind::PermissionDenied;
    Error::File { operation, path: path.to_owned(), cause: e.to_string(), denied }
}

/// What a file of logins says; `None` where it is not there.
fn config(path: &Path) -> Result<Option<ConfigFile>> {
    let text = match read(path) {
        // A file of another user, as after `sudo -u`, is not ours to use.
        Err(Error::File { denied: true, .. }) => None,
        other => other?,
    };
    text.map(|text| serde_json::from_slice(&text).map_err(|e| unreadable(path, e))).transpose()
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(failed("read", path, &e)),
    };
    let text = isles_store::read_bounded(file, FILE_LIMIT).map_err(|e| failed("read", path, &e))?;
    let text = text.ok_or_else(|| unreadable(path, "it is larger than 4 MiB"))?;
    // podman leaves an empty file behind, which means the same as none.
    Ok((!text.iter().all(u8::is_ascii_whitespace)).then_some(text))
}

fn read_document(path: &Path) -> Result<Map<String, Value>> {
    match read(path)? {
        Some(text) => serde_json::from_slice(&text).map_err(|e| unreadable(path, e)),
        None => Ok(Map::new()),
    }
}

/// Replaces the file by one that only its owner can read.
fn write(path: &Path, document: &Map<String, Value>) -> Result<()> {
    let failed = |e: io::Error| failed("write", path, &e);
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let temporary = parent.join(format!(".config.json.{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let text = serde_json::to_vec_pretty(document).map_err(|e| failed(e.into()))?;
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut f| f.write_all(&text).and_then(|()| f.write_all(b"\n")).and_then(|()| f.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, text).unwrap();
        (dir, Credentials::file(path))
    }

    fn password(user: &str, password: &str) -> Login {
        Login::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn spellings_of_registries() {
        let auth = STANDARD.encode("me:se:cret");
        for (key, registry, repository, found) in [
            ("https://index.docker.io/v1/", "docker.io", "library/debian", true),
            ("docker.io", "docker.io", "library/debian", true),
            ("registry-1.docker.io", "docker.io", "a/b", true),
            ("https://r.example/v2/", "r.example", "a", true),
            ("r.example", "r.example", "a/b/c", true),
            ("r.example/a", "r.example", "a/b/c", true),
            ("r.example/a/b/c", "r.example", "a/b/c", true),
            ("r.example/x", "r.example", "a/b/c", false),
            ("r.example:5000", "r.example", "a", false),
            ("evil-r.example", "r.example", "a", false),
        ] {
            let (_dir, c) = with(&format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#));
            let expected = found.then(|| password("me", "se:cret"));
            assert_eq!(c.lookup(registry, repository).unwrap(), expected, "{key}");
        }
    }

    #[test]
    fn entries_of_all_kinds() {
        for (entry, login) in [
            (r#"{"username":"a","password":"b"}"#, Some(password("a", "b"))),
            (r#"{"auth":"PHRva2VuPjo=","identitytoken":"t"}"#, Some(Login::Identity("t".into()))),
            (r#"{"registrytoken":"t"}"#, Some(Login::Token("t".into()))),
            ("{}", None),
        ] {
            let (_dir, c) = with(&format!(r#"{{"auths":{{"h":{entry}}}}}"#));
            assert_eq!(c.lookup("h", "x").unwrap(), login, "{entry}");
        }
        for bad in [r#"{"auths":{"h":{"auth":"%%"}}}"#, r#"{"auths":{"h":{"auth":"YWI="}}}"#, "{", "3"] {
            let (_dir, c) = with(bad);
            assert!(c.lookup("h", "x").is_err(), "{bad}");
        }
        let (_dir, c) = with("");
        assert_eq!(c.lookup("h", "x").unwrap(), None);
    }

    #[test]
    fn signing_in_and_out_keeps_the_rest() {
        let (dir, c) = with(r#"{"HttpHeaders":{"a":"b"},"auths":{"https://h/v1/":{"auth":"YTpi"}}}"#);
        c.save("docker.io", &password("u", "p")).unwrap();
        assert_eq!(c.lookup("docker.io", "library/x").unwrap(), Some(password("u", "p")));
        assert!(c.erase("h").unwrap());
        assert!(!c.erase("h").unwrap());
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        assert!(text.contains("HttpHeaders") && text.contains(HUB_KEY) && !text.contains("https://h/"));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(dir.path().join("config.json")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
