//! Tokens that the server issues and reads itself: JSON Web Tokens signed with HMAC-SHA-256 (RFC 7519), in the flow
//! that Docker's clients know (distribution, "Token Authentication Specification").
//!
//! The key is a file of the store, so every server process over one store takes the tokens of the others.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::access::Action;

/// Seconds for which a token holds.
pub const LIFE: u64 = 300;
/// Characters of a token that are looked at.
const LIMIT: usize = 64 << 10;
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user; nobody in particular where missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    pub iat: u64,
    /// What may be done, by repository.
    pub access: BTreeMap<String, Vec<String>>,
}

impl Claims {
    pub fn allows(&self, repository: &str, action: Action) -> bool {
        self.access.get(repository).is_some_and(|actions| actions.iter().any(|a| a == action.name()))
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

/// Signs and reads tokens.
#[derive(Debug)]
pub struct Tokens(hmac::Key);

impl Tokens {
    pub fn new(secret: &[u8]) -> Tokens {
        Tokens(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    pub fn issue(&self, claims: &Claims) -> String {
        let body = serde_json::to_vec(claims).unwrap_or_default();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(body));
        let signature = hmac::sign(&self.0, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// What a token says, if it is one of ours and still holds.
    pub fn read(&self, token: &str) -> Option<Claims> {
        if token.len() > LIMIT {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.0, signed.as_bytes(), &signature).ok()?;
        let (header, body) = signed.split_once('.')?;
        if URL_SAFE_NO_PAD.decode(header).ok()? != HEADER.as_bytes() {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
        (claims.exp > now()).then_some(claims)
    }
}

/// Reads a scope such as `repository:course/app:pull,push`. Nothing for other kinds of things.
pub fn scope(text: &str) -> Option<(&str, Vec<Action>)> {
    let (name, actions) = text.strip_prefix("repository:")?.rsplit_once(':')?;
    let mut wanted: Vec<Action> = Vec::new();
    for action in actions.split(',') {
        match action {
            "*" => wanted.extend([Action::Pull, Action::Push, Action::Delete]),
            other => wanted.extend(Action::of(other)),
        }
    }
    isles_store::is_repository_name(name).then_some((name, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_is_read() {
        let tokens = Tokens::new(&[7; 32]);
        let access = BTreeMap::from([("a/b".to_owned(), vec!["pull".to_owned()])]);
        let claims = Claims { sub: Some("me".into()), exp: now() + 60, iat: now(), access };
        let token = tokens.issue(&claims);
        assert_eq!(tokens.read(&token), Some(claims.clone()));
        assert!(claims.allows("a/b", Action::Pull) && !claims.allows("a/b", Action::Push));
        assert!(!claims.allows("a", Action::Pull));
        assert_eq!(Tokens::new(&[8; 32]).read(&token), None);
        assert_eq!(tokens.read(&tokens.issue(&Claims { exp: now() - 1, ..claims.clone() })), None);
        let (head, rest) = token.split_once('.').unwrap();
        let (body, signature) = rest.split_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for bad in [
            String::new(),
            ".".into(),
            "..".into(),
            format!("{none}.{body}."),
            format!("{none}.{body}.{signature}"),
            format!("{head}.{body}"),
            format!("{head}.{body}."),
            format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode("{}")),
            format!("{token}x"),
        ] {
            assert_eq!(tokens.read(&bad), None, "{bad}");
        }
    }

    #[test]
    fn scopes() {
        use Action::{Delete, Pull, Push};
        for (text, read) in [
            ("repository:a/b:pull,push", Some(("a/b", vec![Pull, Push]))),
            ("repository:a:*", Some(("a", vec![Pull, Push, Delete]))),
            ("repository:a:fly", Some(("a", vec![]))),
            ("repository:A:pull", None),
            ("registry:catalog:*", None),
            ("repository:a", None),
            ("", None),
        ] {
            assert_eq!(scope(text), read, "{text}");
        }
    }
}
