//! Key servers: public keys by fingerprint, by name, and sent there (HKP, draft-gallagher-openpgp-hkp, which keeps what
//! draft-shaw-openpgp-hkp-00 said).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::Body;
use ureq::http::{HeaderMap, HeaderValue, Method, Response, Uri, header};

use crate::client::ClientOptions;
use crate::http::{Http, Payload, authority_of, protocol, read_bounded, sentence};
use crate::location::escape;
use crate::{Error, Result, retry};

/// Keys and lists of them may have this many bytes.
const LIMIT: u64 = 4 << 20;
/// Where servers listen that are named without a port, in plain HTTP.
const PORT: u16 = 11371;

/// A key server. Cheap to make.
pub struct KeyServer {
    http: Http,
    base: Uri,
    authorization: Option<HeaderValue>,
}

impl KeyServer {
    /// A server at a URL such as `https://keys.openpgp.org`, `hkp://` and `hkps://` included.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(options: &ClientOptions, server: &str) -> Result<KeyServer> {
        let odd = || -> Error {
            isles_spec::Error::new(format!("'{}' is no key server", crate::error::one_line(server)))
                .with_hint("a key server is named by a URL, for example https://keys.openpgp.org")
                .into()
        };
        let (server, whole) = (server.trim_end_matches('/'), server);
        let text = match whole.split_once("://").map(|(scheme, rest)| (scheme, rest.trim_end_matches('/'))) {
            Some(("hkps", rest)) => format!("https://{rest}"),
            Some(("hkp", rest)) if has_port(rest) => format!("http://{rest}"),
            Some(("hkp", rest)) => format!("http://{rest}:{PORT}"),
            Some(("http" | "https", _)) => server.to_owned(),
            Some(_) => return Err(odd()),
            None => format!("https://{server}"),
        };
        let base: Uri = format!("{text}/").parse().map_err(|_| odd())?;
        if base.host().is_none_or(str::is_empty) {
            return Err(odd());
        }
        Ok(KeyServer { http: Http::new(options), base, authorization: None })
    }

    /// With a login: what stands in the header `Authorization`, which no other server gets to see.
    ///
    /// # Errors
    /// It cannot stand in a header.
    pub fn with_authorization(mut self, authorization: &str) -> Result<KeyServer> {
        let mut value = HeaderValue::from_str(authorization).map_err(|_| {
            protocol(&self.base, "the login for it has characters that no header can have".to_owned())
        })?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// What stands in that header for a name and a password, or for a token, which has no name.
    pub fn authorization(user: &str, password: &str) -> String {
        match user {
            "" => format!("Bearer {password}"),
            _ => format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
        }
    }

    /// Whether the server takes the login.
    ///
    /// # Errors
    /// It refuses it, or does not answer.
    pub fn check_login(&self) -> Result<()> {
        let url = self.url("")?;
        let none = HeaderMap::new();
        let response =
            self.http.exchange(&Method::GET, &url, &none, self.authorization.as_ref(), Payload::None)?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(self.refused("take", response)),
        }
    }

    /// The host, for messages.
    pub fn host(&self) -> String {
        authority_of(&self.base)
    }

    /// The armored key with this fingerprint or key ID, in hexadecimal.
    pub fn get(&self, fingerprint: &str) -> Result<Option<Vec<u8>>> {
        self.lookup(&format!("op=get&options=mr&exact=on&search=0x{}", escape(fingerprint)))
    }

    /// The list of keys that go with a text, in the form for machines.
    pub fn index(&self, text: &str) -> Result<Option<String>> {
        let list = self.lookup(&format!("op=index&options=mr&fingerprint=on&search={}", escape(text)))?;
        Ok(list.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Sends an armored key, and gives what the server says to it.
    pub fn add(&self, key: &str) -> Result<String> {
        let body = format!("keytext={}", escape(key));
        let mut headers = HeaderMap::new();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, form);
        let url = self.url("pks/add")?;
        // It is not sent twice: a server may have taken it in spite of a broken answer.
        let response = self.http.exchange(
            &Method::POST,
            &url,
            &headers,
            self.authorization.as_ref(),
            Payload::Bytes(body.as_bytes()),
        )?;
        match response.status().as_u16() {
            200..=299 => {
                let text = self.body(response)?;
                Ok(crate::error::one_line(&String::from_utf8_lossy(&text)).trim().to_owned())
            }
            _ => Err(self.refused("push", response)),
        }
    }

    fn lookup(&self, query: &str) -> Result<Option<Vec<u8>>> {
        let url = self.url(&format!("pks/lookup?{query}"))?;
        let mut attempt = 0;
        loop {
            let failure = match self.http.exchange(
                &Method::GET,
                &url,
                &HeaderMap::new(),
                self.authorization.as_ref(),
                Payload::None,
            ) {
                Ok(response) if response.status() == 200 => return self.body(response).map(Some),
                Ok(response) if response.status() == 404 => return Ok(None),
                Ok(response) => {
                    let may_pass = retry::is_transient(response.status().as_u16());
                    let error = self.refused("look for", response);
                    if !may_pass {
                        return Err(error);
                    }
                    error
                }
                Err(failure) if failure.transient => failure.error,
                Err(failure) => return Err(failure.error),
            };
            attempt += 1;
            match self.http.retry.wait(attempt, None) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure),
            }
        }
    }

    fn url(&self, path: &str) -> Result<Uri> {
        let text = format!("{}{path}", self.base);
        text.parse().map_err(|_| protocol(&self.base, format!("no URL for {path}")))
    }

    fn body(&self, response: Response<Body>) -> Result<Vec<u8>> {
        read_bounded(response.into_body(), LIMIT)
            .map_err(|e| protocol(&self.base, sentence(&e)))?
            .ok_or_else(|| protocol(&self.base, format!("its answer has more than {LIMIT} bytes")))
    }

    fn refused(&self, operation: &'static str, response: Response<Body>) -> Error {
        let status = response.status();
        let said = read_bounded(response.into_body(), LIMIT).ok().flatten().unwrap_or_default();
        let said = crate::error::one_line(&String::from_utf8_lossy(&said)).trim().to_owned();
        let reason = status.canonical_reason().unwrap_or_default().to_owned();
        let message = if said.is_empty() || said.len() > 200 { reason } else { said };
        let object = if operation == "take" { "the login" } else { "a key" }.to_owned();
        let host = self.host();
        Error::Refused { host, operation, object, status: status.as_u16(), message }
    }
}

/// Whether an authority names a port: behind the last colon, where that is not part of an IPv6 address.
fn has_port(rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for (text, base) in [
            ("https://keys.openpgp.org", "https://keys.openpgp.org/"),
            ("hkps://keys.openpgp.org/", "https://keys.openpgp.org/"),
            ("hkp://pgp.example", "http://pgp.example:11371/"),
            ("hkp://pgp.example:80", "http://pgp.example:80/"),
            ("keys.openpgp.org", "https://keys.openpgp.org/"),
            ("http://127.0.0.1:1/a", "http://127.0.0.1:1/a/"),
        ] {
            assert_eq!(KeyServer::new(&ClientOptions::default(), text).unwrap().base.to_string(), base);
        }
        for text in ["ftp://a", "", "https://", "a b"] {
            assert!(KeyServer::new(&ClientOptions::default(), text).is_err(), "{text}");
        }
    }
}
