//! Who asks: nobody in particular, a user with a password, or the bearer of a token of ours. Wrong passwords are
//! answered ever more slowly.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderMap};

use crate::access::{Access, Action};
use crate::reply::Reply;
use crate::route::Query;
use crate::server::Server;
use crate::token::{self, Claims};

/// The wait after the first wrong password from an address; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// After so long without another one, an address begins anew.
const FORGIVEN: Duration = Duration::from_secs(300);
const MOST_ADDRESSES: usize = 10_000;
/// Passwords that are checked at once: bcrypt keeps a processor busy.
const CHECKS: usize = 2;

/// Who asks, and what the token in hand says.
#[derive(Debug, Clone, Default)]
pub struct Who {
    pub user: Option<String>,
    claims: Option<Claims>,
}

impl Who {
    /// Whether the rules, and the token where there is one, allow this.
    pub fn may(&self, access: &Access, repository: &str, action: Action) -> bool {
        access.allows(self.user.as_deref(), repository, action)
            && self.claims.as_ref().is_none_or(|c| c.allows(repository, action))
    }
}

/// Failed logins by address, and how many checks run.
#[derive(Debug)]
pub struct Logins {
    failed: Mutex<HashMap<IpAddr, (u32, Instant)>>,
    checks: tokio::sync::Semaphore,
}

impl Default for Logins {
    fn default() -> Self {
        Logins { failed: Mutex::default(), checks: tokio::sync::Semaphore::new(CHECKS) }
    }
}

impl Logins {
    /// Notes a failure. Returns how long its answer waits.
    fn fail(&self, peer: IpAddr) -> Duration {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= MOST_ADDRESSES {
            failed.retain(|_, (_, at)| at.elapsed() < FORGIVEN);
        }
        let (count, at) = failed.entry(peer).or_insert((0, Instant::now()));
        if at.elapsed() >= FORGIVEN {
            *count = 0;
        }
        *count += 1;
        *at = Instant::now();
        FIRST_WAIT.saturating_mul(1 << (*count - 1).min(8)).min(LONGEST_WAIT)
    }
}

/// A name and password of `Authorization: Basic`.
fn basic(value: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Who sent these headers; an answer where they are not who they say.
pub async fn identify(server: &Arc<Server>, headers: &HeaderMap, peer: IpAddr) -> Result<Who, Reply> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Who::default()) };
    let Some(passwords) = &server.passwords else {
        // Nobody has a name here; whatever clients keep for this address is as good as nothing.
        return Ok(Who::default());
    };
    let refused = || Reply::error(401, "UNAUTHORIZED", "the name or the password is wrong");
    let (scheme, rest) = value.to_str().ok().and_then(|v| v.split_once(' ')).ok_or_else(refused)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        let claims = server.tokens.read(rest.trim());
        let claims =
            claims.ok_or_else(|| Reply::error(401, "UNAUTHORIZED", "the token does not hold any more"))?;
        return Ok(Who { user: claims.sub.clone(), claims: Some(claims) });
    }
    let (user, password) = match scheme.eq_ignore_ascii_case("basic") {
        true => basic(rest).ok_or_else(refused)?,
        false => return Err(Reply::error(401, "UNAUTHORIZED", "only Basic and Bearer are known here")),
    };
    let right = {
        let _turn = server.logins.checks.acquire().await;
        let (passwords, name) = (passwords.clone(), user.clone());
        tokio::task::spawn_blocking(move || passwords.check(&name, &password)).await.unwrap_or(false)
    };
    if right {
        return Ok(Who { user: Some(user), claims: None });
    }
    server.metrics.failed_login();
    tokio::time::sleep(server.logins.fail(peer)).await;
    Err(refused())
}

/// An answer that says how to become somebody who may do this.
pub fn challenge(server: &Server, base: &str, reply: Reply, wanted: Option<(&str, Action)>) -> Reply {
    if server.passwords.is_none() {
        return reply;
    }
    let service = base.split_once("://").map_or(base, |(_, host)| host);
    let mut value = format!("Bearer realm=\"{base}/v2/token\",service=\"{service}\"");
    if let Some((repository, action)) = wanted {
        let actions = match action {
            Action::Push => "pull,push",
            other => other.name(),
        };
        value.push_str(&format!(",scope=\"repository:{repository}:{actions}\""));
    }
    reply.with("www-authenticate", value)
}

/// An answer that asks people's browsers, and clients that want a token, for a name and a password.
pub fn challenge_basic(reply: Reply, base: &str) -> Reply {
    reply.with("www-authenticate", format!("Basic realm=\"{base}\""))
}

/// Answers `GET /v2/token`: what of the wanted scopes the user may have, signed.
pub fn issue(server: &Server, who: &Who, query: &Query) -> Reply {
    if server.passwords.is_some() && who.user.is_none() && query.get("account").is_some() {
        return Reply::error(401, "UNAUTHORIZED", "a login needs a name and a password");
    }
    let mut claims = Claims {
        sub: who.user.clone(),
        iat: token::now(),
        exp: token::now() + token::LIFE,
        access: Default::default(),
    };
    for (repository, actions) in query.all("scope").flat_map(|s| s.split(' ')).filter_map(token::scope) {
        let allowed: Vec<String> = actions
            .into_iter()
            .filter(|a| who.may(&server.access, repository, *a))
            .map(|a| a.name().to_owned())
            .collect();
        claims.access.entry(repository.to_owned()).or_default().extend(allowed);
    }
    let text = server.tokens.issue(&claims);
    let issued = isles_spec::time::rfc3339(claims.iat as i64);
    Reply::new(200).with("cache-control", "no-store").json(&serde_json::json!({
        "token": text, "access_token": text, "expires_in": token::LIFE, "issued_at": issued,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_for_each_address() {
        let logins = Logins::default();
        let (a, b): (IpAddr, IpAddr) = ([1, 2, 3, 4].into(), [5, 6, 7, 8].into());
        let waits: Vec<u64> = (0..6).map(|_| logins.fail(a).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 16]);
        assert_eq!(logins.fail(b).as_secs(), 1);
    }

    #[test]
    fn names_and_passwords() {
        let of = |text: &str| basic(&STANDARD.encode(text));
        assert_eq!(of("me:a:b"), Some(("me".into(), "a:b".into())));
        assert_eq!(of("me"), None);
        assert_eq!(basic("§"), None);
    }
}
