//! Signing requests: Basic, and bearer tokens from the service that the registry names
//! (distribution's token specification, and its OAuth2 form for identity tokens).
//!
//! What a registry wants is learnt from its first 401; after that, requests carry a token from the start.
//! Threads share tokens: one asks, the others wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderValue, Method, Uri, header};

use crate::challenge::{self, Challenge};
use crate::error::{Asked, refusal};
use crate::http::{Http, Payload, lock, read_bounded};
use crate::{Credentials, Error, Login, Result, location};

const CLIENT_ID: &str = "isles";
const ANSWER_LIMIT: u64 = 1 << 20;
/// What a token without a word on its age is worth (token specification).
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// Longer than any client runs.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed this long before its end, so that it survives the way there.
const MARGIN: Duration = Duration::from_secs(10);

/// For what a request needs permission: repositories with actions, as the token specification writes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scope {
    /// The repository whose credentials count.
    pub repository: String,
    /// `repository:<name>:<actions>`, sorted.
    pub scopes: Vec<String>,
}

impl Scope {
    pub fn of(repository: &str, actions: &str) -> Self {
        Scope {
            repository: repository.to_owned(),
            scopes: vec![format!("repository:{repository}:{actions}")],
        }
    }

    /// The same with read access to another repository, for a mount.
    pub fn and_pull(mut self, other: &str) -> Self {
        self.add(format!("repository:{other}:pull"));
        self
    }

    /// No repository: only whether the registry knows us.
    pub fn registry() -> Self {
        Scope { repository: String::new(), scopes: Vec::new() }
    }

    /// The list of all repositories (distribution's token specification, "Resource Scope Grammar").
    pub fn catalog() -> Self {
        Scope { repository: String::new(), scopes: vec!["registry:catalog:*".into()] }
    }

    fn add(&mut self, scope: String) {
        if !scope.is_empty() && !self.scopes.contains(&scope) {
            self.scopes.push(scope);
            self.scopes.sort();
        }
    }
}

/// What is known about signing requests to all registries.
pub(crate) struct Auth {
    credentials: Credentials,
    registries: Mutex<HashMap<String, Arc<Mutex<Known>>>>,
}

#[derive(Default)]
struct Known {
    /// How the registry asked to be asked.
    challenge: Option<Challenge>,
    logins: HashMap<String, Option<Login>>,
    tokens: HashMap<Vec<String>, (String, Instant)>,
}

/// One registry as `Auth` sees it.
pub(crate) struct Place<'a> {
    /// As references name it (`docker.io`).
    pub registry: &'a str,
    /// Where its API is.
    pub base: &'a Uri,
    pub http: &'a Http,
    pub asked: Asked<'a>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Auth {
    pub fn new(credentials: Credentials) -> Self {
        Auth { credentials, registries: Mutex::default() }
    }

    /// The `Authorization` for a request, as far as it is known what the registry wants.
    pub fn header(&self, place: &Place<'_>, scope: &Scope) -> Result<Option<HeaderValue>> {
        let known = self.known(place.registry);
        let mut known = lock(&known);
        match known.challenge.clone() {
            None => Ok(None),
            Some(challenge) => self.sign(&mut known, place, &challenge, scope).map(Some),
        }
    }

    /// The `Authorization` that answers the challenges of a 401, after a request with `used`. None where
    /// there is nothing better to offer than what was refused.
    pub fn answer(
        &self,
        place: &Place<'_>,
        scope: &Scope,
        headers: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let asked = headers.get_all(header::WWW_AUTHENTICATE);
        let challenges = challenge::parse(asked.iter().filter_map(|v| v.to_str().ok()));
        let known = self.known(place.registry);
        let mut known = lock(&known);
        let bearer = challenges.iter().find(|c| matches!(c, Challenge::Bearer { .. }));
        let Some(challenge) = bearer.or(challenges.first()).cloned() else { return Ok(None) };
        let mut scope = scope.clone();
        if let Challenge::Bearer { scope: Some(wanted), .. } = &challenge {
            wanted.split(' ').for_each(|s| scope.add(s.to_owned()));
        }
        // Another thread may have got a new token since; otherwise the one that was refused is no good.
        let refused = |token: &str| used.is_some_and(|u| bearer_value(token).is_ok_and(|v| v == *u));
        known.tokens.retain(|_, (token, _)| !refused(token));
        known.challenge = Some(challenge.clone());
        if challenge == Challenge::Basic && self.login(&mut known, place, &scope)?.is_none() {
            known.challenge = None;
            return Ok(None);
        }
        let value = self.sign(&mut known, place, &challenge, &scope)?;
        Ok((Some(&value) != used).then_some(value))
    }

    /// Whether there are credentials for a repository.
    pub fn signed_in(&self, registry: &str, scope: &Scope) -> bool {
        lock(&self.known(registry)).logins.get(&scope.repository).is_some_and(Option::is_some)
    }

    fn known(&self, registry: &str) -> Arc<Mutex<Known>> {
        lock(&self.registries).entry(registry.to_owned()).or_default().clone()
    }

    fn login(&self, known: &mut Known, place: &Place<'_>, scope: &Scope) -> Result<Option<Login>> {
        if let Some(login) = known.logins.get(&scope.repository) {
            return Ok(login.clone());
        }
        let login = self.credentials.lookup(place.registry, &scope.repository)?;
        known.logins.insert(scope.repository.clone(), login.clone());
        Ok(login)
    }

    fn sign(
        &self,
        known: &mut Known,
        place: &Place<'_>,
        challenge: &Challenge,
        scope: &Scope,
    ) -> Result<HeaderValue> {
        let login = self.login(known, place, scope)?;
        match (challenge, login) {
            (_, Some(Login::Token(token))) => bearer_value(&token),
            (Challenge::Basic, Some(Login::Password { user, password })) => basic_value(&user, &password),
            (Challenge::Basic, _) => Err(refusal(Asked { signed_in: false, ..place.asked }, 401, b"", None)),
            (Challenge::Bearer { realm, service, .. }, login) => {
                if let Some((token, until)) = known.tokens.get(&scope.scopes)
                    && Instant::now() < *until
                {
                    return bearer_value(token);
                }
                let (token, life) = fetch(place, realm, service.as_deref(), &scope.scopes, login.as_ref())?;
                let value = bearer_value(&token)?;
                let until = Instant::now() + life.saturating_sub(MARGIN);
                known.tokens.insert(scope.scopes.clone(), (token, until));
                Ok(value)
            }
        }
    }
}

/// Gets a token from the registry's token service.
fn fetch(
    place: &Place<'_>,
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
    login: Option<&Login>,
) -> Result<(String, Duration)> {
    let realm = trusted_realm(place, realm)?;
    let mut headers = HeaderMap::new();
    let mut authorization = None;
    let mut form = Vec::new();
    let method = if let Some(Login::Identity(token)) = login {
        form.push(("grant_type", "refresh_token"));
        form.push(("refresh_token", token));
        form.push(("client_id", CLIENT_ID));
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        Method::POST
    } else {
        if let Some(Login::Password { user, password }) = login {
            authorization = Some(basic_value(user, password)?);
            form.push(("account", user));
        }
        Method::GET
    };
    form.extend(service.map(|s| ("service", s)));
    let joined = scopes.join(" ");
    if method == Method::POST {
        form.push(("scope", &joined));
    } else {
        form.extend(scopes.iter().map(|s| ("scope", s.as_str())));
    }
    let mut url = realm.clone();
    let mut body = String::new();
    for (key, value) in form {
        if method == Method::POST {
            let separator = if body.is_empty() { "" } else { "&" };
            body.push_str(&format!("{separator}{key}={}", location::escape(value)));
        } else {
            url =
                location::with_query(&url, key, value).ok_or_else(|| untrusted_realm(place, realm.path()))?;
        }
    }
    let payload = if body.is_empty() { Payload::None } else { Payload::Bytes(body.as_bytes()) };
    let mut attempt = 0;
    let response = loop {
        attempt += 1;
        let result = place.http.exchange(&method, &url, &headers, authorization.as_ref(), payload);
        let wait = place.http.retry.wait(attempt, None);
        match (result, wait) {
            (Ok(r), Some(wait)) if crate::retry::is_transient(r.status().as_u16()) => {
                std::thread::sleep(wait)
            }
            (Err(f), Some(wait)) if f.transient => std::thread::sleep(wait),
            (result, _) => break result?,
        }
    };
    let status = response.status().as_u16();
    let broken = |why: &str| Error::Protocol { host: place.asked.host.to_owned(), why: why.to_owned() };
    let text = read_bounded(response.into_body(), ANSWER_LIMIT)
        .map_err(|e| broken(&format!("its token service broke off: {}", crate::http::sentence(&e))))?
        .ok_or_else(|| broken("its token service answers with more than 1 MiB"))?;
    if status != 200 {
        // A token service says 400 or 403 where it means that it does not accept the login.
        let refused = login.is_some() && matches!(status, 400 | 401 | 403);
        let asked = Asked { signed_in: login.is_some(), ..place.asked };
        return Err(refusal(
            asked,
            if refused { 401 } else { status },
            if refused { b"" } else { &text },
            None,
        ));
    }
    let token: Token = serde_json::from_slice(&text)
        .map_err(|e| broken(&format!("its token service answers oddly: {e}")))?;
    let life = token.expires_in.map_or(SHORTEST_LIFE, Duration::from_secs).clamp(SHORTEST_LIFE, LONGEST_LIFE);
    let text = token.token.filter(|t| !t.is_empty()).or(token.access_token);
    let text = text.ok_or_else(|| broken("its token service gives no token"))?;
    Ok((text, life))
}

/// The token service's URL, if a password may be sent there: over TLS, or to the registry itself or this
/// machine where the registry is spoken to in plain HTTP already.
fn trusted_realm(place: &Place<'_>, realm: &str) -> Result<Uri> {
    let url = location::join(place.base, realm).ok_or_else(|| untrusted_realm(place, realm))?;
    let plain_registry = place.base.scheme_str() == Some("http");
    let near = location::same_origin(&url, place.base)
        || url.host() == place.base.host()
        || location::is_loopback(&url);
    if url.scheme_str() == Some("https") || (plain_registry && near) {
        return Ok(url);
    }
    Err(untrusted_realm(place, realm))
}

fn untrusted_realm(place: &Place<'_>, realm: &str) -> Error {
    Error::Protocol {
        host: place.asked.host.to_owned(),
        why: format!("its token service '{}' is not reached over TLS", crate::error::one_line(realm)),
    }
}

fn basic_value(user: &str, password: &str) -> Result<HeaderValue> {
    secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn bearer_value(token: &str) -> Result<HeaderValue> {
    secret(format!("Bearer {token}"))
}

fn secret(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| isles_spec::Error::new("a token holds characters that no header may hold"))?;
    value.set_sensitive(true);
    Ok(value)
}
