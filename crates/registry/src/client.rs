//! The client: one conversation with any number of registries, shared by threads.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use isles_spec::Reference;
use ureq::Body;
use ureq::http::{HeaderMap, Method, Response, Uri, header};

use crate::auth::{Auth, Place, Scope};
use crate::error::{Asked, SIGN_IN, refusal};
use crate::http::{Http, Payload, lock, permanent, protocol, read_bounded, text_of};
use crate::web::Web;
use crate::{Credentials, Error, Login, Registries, Result, location, retry, trust};

/// A refusal's text is for people.
const REFUSAL_LIMIT: u64 = 64 << 10;

/// How to speak to registries. [`ClientOptions::default`] is right for most.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Check certificates, and refuse plain HTTP except on loopback.
    pub tls_verify: bool,
    /// Registries (`host[:port]`) for which neither is demanded.
    pub insecure: Vec<String>,
    /// Folders with `<host[:port]>/*.crt`, in Docker's `certs.d` form.
    pub certificates: Vec<PathBuf>,
    /// Where registries and their mirrors are; `None`: as [`Registries::from_environment`] says.
    pub registries: Option<Registries>,
    /// Who we are.
    pub credentials: Credentials,
    /// How often and how long to try again.
    pub retry: retry::Policy,
    /// How long a connection may be silent before it counts as broken.
    pub stall: Duration,
    /// Connections at once in a pull or push.
    pub connections: usize,
    /// Others than the caller name registries, so none at a link-local address is connected to, by whatever name or
    /// redirect: clouds tell a machine its secrets there.
    pub guarded: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            tls_verify: true,
            insecure: Vec::new(),
            certificates: trust::usual_folders(),
            registries: None,
            credentials: Credentials::from_environment(),
            retry: retry::Policy::default(),
            stall: Duration::from_secs(60),
            connections: 6,
            guarded: false,
        }
    }
}

/// Speaks the distribution protocol. Cheap to make: nothing is read or connected before it is needed.
pub struct Client {
    http: Http,
    auth: Auth,
    bases: Mutex<HashMap<String, Uri>>,
    registries: OnceLock<Registries>,
    /// Which of several places has a name.
    chosen: Mutex<HashMap<Reference, Reference>>,
    pub(crate) options: ClientOptions,
}

/// One request to a registry.
pub(crate) struct Call<'a> {
    pub method: Method,
    pub url: Uri,
    pub headers: HeaderMap,
    pub payload: Payload<'a>,
    pub scope: &'a Scope,
    /// A verb and an object for errors.
    pub operation: &'static str,
    pub object: &'a str,
}

/// One repository of a registry, reached.
pub(crate) struct Repository<'c> {
    client: &'c Client,
    /// As references name it.
    pub registry: String,
    pub name: String,
    pub base: Uri,
}

impl Client {
    pub fn new(options: ClientOptions) -> Self {
        Client {
            http: Http::new(&options),
            auth: Auth::new(options.credentials.clone()),
            bases: Mutex::default(),
            registries: OnceLock::new(),
            chosen: Mutex::default(),
            options,
        }
    }

    /// Downloads from URLs that others wrote, with the same trust, proxies and patience; see [`Web::guarded`].
    pub fn web(&self) -> Web {
        Web::guarded(&self.options)
    }

    /// Checks a login with the registry (`docker.io`, `host:port`). What is worth keeping is kept by
    /// [`Credentials::save`].
    pub fn check_login(&self, registry: &str, login: &Login) -> Result<()> {
        let reference = any_in(registry)?;
        let dir = Credentials::fixed(login.clone());
        let client = Client::new(ClientOptions { credentials: dir, ..self.options.clone() });
        let repository = client.repository(&reference)?;
        let url = repository.url("")?;
        let scope = Scope::registry();
        repository.expect(Call::get(url, &scope, SIGN_IN, registry), &[200]).map(|_| ())
    }

    /// The repository of a reference, where it is changed.
    pub(crate) fn repository(&self, reference: &Reference) -> Result<Repository<'_>> {
        self.repository_at(&self.registries()?.location(reference)?)
    }

    /// The repository of a reference, where it is read: in the first mirror that has it, if there is one.
    pub(crate) fn source(&self, reference: &Reference) -> Result<Repository<'_>> {
        if let Some(place) = lock(&self.chosen).get(reference) {
            return self.repository_at(place);
        }
        let mut places = self.registries()?.sources(reference)?;
        let own = places.pop().unwrap_or_else(|| reference.clone());
        let has = |place: &Reference| {
            // A mirror that is away, refuses or lacks the name is passed over.
            self.repository_at(place).and_then(|mirror| mirror.head_manifest(place)).is_ok()
        };
        let place = places.into_iter().find(has).unwrap_or(own);
        lock(&self.chosen).insert(reference.clone(), place.clone());
        self.repository_at(&place)
    }

    fn registries(&self) -> Result<&Registries> {
        if let Some(registries) = self.registries.get() {
            return Ok(registries);
        }
        let registries = match &self.options.registries {
            Some(registries) => registries.clone(),
            None => Registries::from_environment()?,
        };
        self.http.also_insecure(registries.insecure());
        Ok(self.registries.get_or_init(|| registries))
    }

    /// The repository of a reference, with the registry's base URL. Asks a registry that may speak plain
    /// HTTP what it speaks, once.
    fn repository_at(&self, reference: &Reference) -> Result<Repository<'_>> {
        let authority = reference.endpoint();
        let known = lock(&self.bases).get(authority).cloned();
        let base = match known {
            Some(base) => base,
            None => {
                let insecure = self.http.is_insecure(authority, reference.is_loopback());
                let scheme = if !insecure || self.http.speaks_tls(authority)? { "https" } else { "http" };
                let base: Uri = format!("{scheme}://{authority}/").parse().map_err(|_| Error::Protocol {
                    host: authority.to_owned(),
                    why: "its name is not usable in a URL".into(),
                })?;
                lock(&self.bases).insert(authority.to_owned(), base.clone());
                base
            }
        };
        Ok(Repository {
            client: self,
            registry: reference.registry().to_owned(),
            name: reference.repository().to_owned(),
            base,
        })
    }
}

/// What a name is called in errors that name its registry anyway.
pub(crate) fn object_name(reference: &Reference) -> String {
    let name = reference.normalized().familiar();
    match name.strip_prefix(reference.registry()).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

/// A reference to something in a registry that a person named alone.
pub(crate) fn any_in(registry: &str) -> Result<Reference> {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    let named = host.contains(['.', ':']) || host == "localhost";
    if !named {
        return Err(isles_spec::Error::new(format!("'{registry}' is not a registry"))
            .with_hint("a registry is written host or host:port, for example docker.io")
            .into());
    }
    Ok(Reference::parse(&format!("{host}/x"))?)
}

impl<'a> Call<'a> {
    pub fn get(url: Uri, scope: &'a Scope, operation: &'static str, object: &'a str) -> Self {
        Call {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            payload: Payload::None,
            scope,
            operation,
            object,
        }
    }

    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }
}

impl<'c> Repository<'c> {
    /// `/v2/<name>/<rest>`, or `/v2/` where `rest` is empty.
    pub fn url(&self, rest: &str) -> Result<Uri> {
        let path = if rest.is_empty() { "/v2/".to_owned() } else { format!("/v2/{}/{rest}", self.name) };
        location::join(&self.base, &path).ok_or_else(|| protocol(&self.base, format!("no URL for {path}")))
    }

    /// A place that the registry named. Registries behind a proxy that ends TLS name themselves with `http`.
    pub fn place(&self, text: &str) -> Result<Uri> {
        let odd = || protocol(&self.base, format!("it names the place '{}'", crate::error::one_line(text)));
        let url = location::join(&self.base, text).ok_or_else(odd)?;
        if self.base.scheme_str() == Some("https") && url.scheme_str() == Some("http") {
            if url.host() != self.base.host() {
                return Err(odd());
            }
            return text.replacen("http://", "https://", 1).parse().map_err(|_| odd());
        }
        Ok(url)
    }

    /// Sends a request, signed as the registry wants it, again where that may help. The answer may have any
    /// status that is not worth another try.
    pub fn send(&self, call: &Call<'_>) -> Result<Response<Body>> {
        self.tries(call, &self.client.http.retry)
    }

    /// As [`Repository::send`] without another try: for content that would have to be sent again in whole.
    pub fn once(&self, call: &Call<'_>) -> Result<Response<Body>> {
        self.tries(call, &retry::Policy { retries: 0, ..self.client.http.retry.clone() })
    }

    fn tries(&self, call: &Call<'_>, policy: &retry::Policy) -> Result<Response<Body>> {
        let asked = self.asked(call, false);
        let place = Place { registry: &self.registry, base: &self.base, http: &self.client.http, asked };
        let auth = &self.client.auth;
        // Credentials are for the registry; a place elsewhere that it named gets none.
        let own = location::same_origin(&call.url, &self.base);
        let mut authorization = if own { auth.header(&place, call.scope)? } else { None };
        let mut challenged = 0;
        let mut attempt = 0;
        loop {
            let result = self.client.http.exchange(
                &call.method,
                &call.url,
                &call.headers,
                authorization.as_ref(),
                call.payload,
            );
            let (failure, asked_wait) = match result {
                Ok(response) => {
                    let status = response.status().as_u16();
                    // Twice: once to learn what is wanted, once to replace a token that ran out.
                    if status == 401 && own && challenged < 2 {
                        challenged += 1;
                        let better =
                            auth.answer(&place, call.scope, response.headers(), authorization.as_ref())?;
                        if better.is_some() {
                            authorization = better;
                            continue;
                        }
                    }
                    if !retry::is_transient(status) {
                        return Ok(response);
                    }
                    let wait = text_of(response.headers(), &header::RETRY_AFTER)
                        .and_then(|v| retry::retry_after(v, SystemTime::now()));
                    (permanent(self.refused(call, response)), wait)
                }
                Err(f) if f.transient => (f, None),
                Err(f) => return Err(f.error),
            };
            attempt += 1;
            match policy.wait(attempt, asked_wait) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure.error),
            }
        }
    }

    /// As [`Repository::send`], and any other status than these is an error.
    pub fn expect(&self, call: Call<'_>, statuses: &[u16]) -> Result<Response<Body>> {
        let response = self.send(&call)?;
        if statuses.contains(&response.status().as_u16()) {
            return Ok(response);
        }
        Err(self.refused(&call, response))
    }

    /// The repository itself as a name.
    pub fn reference(&self) -> Result<Reference> {
        Ok(Reference::parse(&format!("{}/{}", self.registry, self.name))?)
    }

    pub fn retry(&self) -> &retry::Policy {
        &self.client.http.retry
    }

    /// A conversation that broke for good.
    pub fn broken(&self, operation: String, cause: String) -> Error {
        Error::Broken { host: self.registry.clone(), operation, cause }
    }

    /// The error that an answer means.
    pub fn refused(&self, call: &Call<'_>, response: Response<Body>) -> Error {
        let status = response.status().as_u16();
        let wait = text_of(response.headers(), &header::RETRY_AFTER)
            .and_then(|v| retry::retry_after(v, SystemTime::now()));
        let body = read_bounded(response.into_body(), REFUSAL_LIMIT).ok().flatten().unwrap_or_default();
        let signed_in = self.client.auth.signed_in(&self.registry, call.scope);
        refusal(self.asked(call, signed_in), status, &body, wait)
    }

    fn asked<'b>(&'b self, call: &'b Call<'_>, signed_in: bool) -> Asked<'b> {
        Asked { host: &self.registry, operation: call.operation, object: call.object, signed_in }
    }
}
