//! One HTTP exchange: the right agent for a URL (trust, proxy, keep-alive pool), redirects that carry no
//! credentials elsewhere, and what is worth another try.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustls::CertificateError;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, Proxy, SendBody};

use crate::guard::{Guarded, LinkLocal};
use crate::proxy::Proxies;
use crate::{Error, Result, location, retry, trust};

/// Distribution registries redirect once, sometimes twice.
const REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A plain HTTP server answers a TLS greeting at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Registries that keep blobs elsewhere hash and copy a large one before they answer its last request.
const DIGESTION: Duration = Duration::from_secs(15 * 60);
/// One read of the socket; larger gains nothing, smaller costs system calls.
const INPUT_BUFFER: usize = 128 << 10;
const OUTPUT_BUFFER: usize = 128 << 10;
const IDLE_CONNECTIONS: usize = 16;
const USER_AGENT: &str = concat!("isles/", env!("CARGO_PKG_VERSION"));

/// How an agent treats TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Tls {
    /// Only plain HTTP goes through this agent.
    Unused,
    Host,
    Unverified,
    /// With what is set up for one registry.
    Own(String),
}

/// Everything that is needed to speak HTTP, shared by all threads of a client.
pub(crate) struct Http {
    agents: Mutex<HashMap<(Tls, Option<String>), Agent>>,
    own: Mutex<HashMap<String, Option<Arc<trust::Own>>>>,
    authorities: OnceLock<Vec<Certificate<'static>>>,
    proxies: Proxies,
    certificate_folders: Vec<PathBuf>,
    insecure: Mutex<Vec<String>>,
    all_insecure: bool,
    stall: Duration,
    pub retry: retry::Policy,
    /// Connect to no link-local address.
    pub guarded: bool,
}

/// A body that can be sent again when the first try fails.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    Stream { size: u64, open: &'a dyn Fn() -> io::Result<Box<dyn Read + 'a>> },
}

/// Why an exchange gave no answer.
pub(crate) struct Failure {
    pub error: Error,
    /// The same request may succeed later.
    pub transient: bool,
    /// The server speaks something that is not TLS.
    pub not_tls: bool,
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Error {
        f.error
    }
}

impl Http {
    pub fn new(options: &crate::ClientOptions) -> Self {
        Http {
            agents: Mutex::default(),
            own: Mutex::default(),
            authorities: OnceLock::new(),
            proxies: Proxies::from_environment(),
            certificate_folders: options.certificates.clone(),
            insecure: Mutex::new(options.insecure.clone()),
            all_insecure: !options.tls_verify,
            stall: options.stall,
            retry: options.retry.clone(),
            guarded: options.guarded,
        }
    }

    /// Whether a registry may be spoken to without a trusted certificate, or in plain HTTP.
    pub fn is_insecure(&self, authority: &str, loopback: bool) -> bool {
        loopback
            || self.all_insecure
            || lock(&self.insecure).iter().any(|i| i.eq_ignore_ascii_case(authority))
    }

    /// Adds to the registries (`host[:port]`) of which neither is demanded.
    pub fn also_insecure<'a>(&self, authorities: impl Iterator<Item = &'a str>) {
        lock(&self.insecure).extend(authorities.map(str::to_owned));
    }

    /// Whether a registry that may be insecure speaks TLS. Asks it.
    pub fn speaks_tls(&self, authority: &str) -> Result<bool> {
        let url: Uri = format!("https://{authority}/v2/").parse().map_err(|e| Error::Protocol {
            host: authority.to_owned(),
            why: format!("its name is not usable in a URL: {e}"),
        })?;
        let agent = self.agent(&url)?;
        let request = agent.get(url.clone()).config().timeout_connect(Some(PROBE_TIMEOUT)).build();
        match request.call() {
            Ok(_) => Ok(true),
            Err(e) => match failure(&url, "connecting", e) {
                f if f.not_tls || f.transient => Ok(false),
                f => Err(f.error),
            },
        }
    }

    /// Sends a request and follows redirects of GET and HEAD. `authorization` and `secrets` stay with the
    /// origin of `url`.
    pub fn exchange(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        payload: Payload<'_>,
    ) -> std::result::Result<Response<Body>, Failure> {
        self.exchange_within(method, url, headers, authorization, payload, None)
    }

    /// As [`Http::exchange`]; `within` bounds the time until an answer begins, with its redirects.
    pub fn exchange_within(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        payload: Payload<'_>,
        within: Option<Duration>,
    ) -> std::result::Result<Response<Body>, Failure> {
        let mut target = url.clone();
        for _ in 0..=REDIRECTS {
            let mut request = Request::builder().method(method).uri(&target);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(value) = authorization.filter(|_| location::same_origin(url, &target)) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let response = self.send(request, &target, payload, within)?;
            let follows = matches!(*method, Method::GET | Method::HEAD);
            if !follows || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            target = self.redirect(&target, &response)?;
        }
        Err(permanent(protocol(url, format!("more than {REDIRECTS} redirects"))))
    }

    fn redirect(&self, from: &Uri, response: &Response<Body>) -> std::result::Result<Uri, Failure> {
        let place = text_of(response.headers(), &header::LOCATION).unwrap_or_default();
        let to = location::join(from, place).ok_or_else(|| {
            permanent(protocol(from, format!("it redirects to '{}'", crate::error::one_line(place))))
        })?;
        let downgrade = from.scheme_str() == Some("https") && to.scheme_str() == Some("http");
        let authority = to.authority().map_or("", |a| a.as_str());
        if downgrade && !self.is_insecure(authority, false) {
            return Err(permanent(protocol(from, format!("it redirects to plain HTTP at {authority}"))));
        }
        Ok(to)
    }

    fn send(
        &self,
        request: ureq::http::request::Builder,
        url: &Uri,
        payload: Payload<'_>,
        within: Option<Duration>,
    ) -> std::result::Result<Response<Body>, Failure> {
        let agent = self.agent(url).map_err(permanent)?;
        let malformed = |e: ureq::http::Error| permanent(protocol(url, e.to_string()));
        let sent = match payload {
            Payload::None => {
                let request = request.body(()).map_err(malformed)?;
                match within {
                    None => agent.run(request),
                    Some(_) => agent.run(
                        agent
                            .configure_request(request)
                            .timeout_connect(within)
                            .timeout_recv_response(within)
                            .build(),
                    ),
                }
            }
            Payload::Bytes(bytes) => agent.run(request.body(bytes).map_err(malformed)?),
            Payload::Stream { size, open } => {
                let mut reader = open().map_err(|e| {
                    permanent(Error::Broken {
                        host: authority_of(url),
                        operation: "reading what to send".into(),
                        cause: e.to_string(),
                    })
                })?;
                let request = request.header(header::CONTENT_LENGTH, size);
                let request = request.body(SendBody::from_reader(&mut reader)).map_err(malformed)?;
                let patience = Some(self.stall.max(DIGESTION));
                agent.run(agent.configure_request(request).timeout_per_read(patience).build())
            }
        };
        sent.map_err(|e| failure(url, "waiting for its answer", e))
    }

    /// The agent for a URL, made when first needed.
    fn agent(&self, url: &Uri) -> Result<Agent> {
        let authority = url.authority().map_or("", |a| a.as_str());
        let proxy = self.proxies.for_url(url);
        let tls = if url.scheme_str() != Some("https") {
            Tls::Unused
        } else if self.is_insecure(authority, location::is_loopback(url)) {
            Tls::Unverified
        } else if self.own(authority)?.is_some() {
            Tls::Own(authority.to_owned())
        } else {
            Tls::Host
        };
        let key = (tls, proxy.map(str::to_owned));
        if let Some(agent) = lock(&self.agents).get(&key) {
            return Ok(agent.clone());
        }
        let agent = self.make_agent(&key.0, proxy)?;
        Ok(lock(&self.agents).entry(key).or_insert(agent).clone())
    }

    fn own(&self, authority: &str) -> Result<Option<Arc<trust::Own>>> {
        if let Some(known) = lock(&self.own).get(authority) {
            return Ok(known.clone());
        }
        let found = trust::for_registry(&self.certificate_folders, authority)?.map(Arc::new);
        lock(&self.own).insert(authority.to_owned(), found.clone());
        Ok(found)
    }

    fn make_agent(&self, tls: &Tls, proxy: Option<&str>) -> Result<Agent> {
        let proxy = proxy
            .map(|text| {
                Proxy::new(text).map_err(|_| Error::Unreachable {
                    host: "the proxy".into(),
                    cause: "its address cannot be understood".into(),
                    hint: Some("check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY".into()),
                })
            })
            .transpose()?;
        let mut authorities = Vec::new();
        let mut client = None;
        if let Tls::Own(authority) = tls
            && let Some(own) = self.own(authority)?
        {
            authorities.extend(own.authorities.iter().cloned());
            client = own.client.clone();
        }
        if matches!(tls, Tls::Host | Tls::Own(_)) {
            authorities.extend(self.authorities.get_or_init(trust::host_authorities).iter().cloned());
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(authorities)))
            .client_cert(client)
            .disable_verification(*tls == Tls::Unverified)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(USER_AGENT)
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(self.stall))
            .timeout_per_write(Some(self.stall))
            .input_buffer_size(INPUT_BUFFER)
            .output_buffer_size(OUTPUT_BUFFER)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .build();
        Ok(match self.guarded {
            true => Agent::with_parts(config, DefaultConnector::default(), Guarded::default()),
            false => config.new_agent(),
        })
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A header as text.
pub(crate) fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Reads a body of at most `limit` bytes; none where it is longer.
pub(crate) fn read_bounded(body: Body, limit: u64) -> io::Result<Option<Vec<u8>>> {
    isles_store::read_bounded(body.into_reader(), limit)
}

pub(crate) fn authority_of(url: &Uri) -> String {
    url.authority().map_or_else(String::new, |a| a.to_string())
}

pub(crate) fn protocol(url: &Uri, why: String) -> Error {
    Error::Protocol { host: authority_of(url), why }
}

pub(crate) fn permanent(error: Error) -> Failure {
    Failure { error, transient: false, not_tls: false }
}

/// What a failed exchange with the host of `url` means.
pub(crate) fn failure(url: &Uri, operation: &str, error: ureq::Error) -> Failure {
    let host = authority_of(url);
    let unreachable = |cause: String, hint: &str| {
        permanent(Error::Unreachable { host: host.clone(), cause, hint: Some(hint.to_owned()) })
    };
    let broken = |cause: String| Failure {
        error: Error::Broken { host: host.clone(), operation: operation.to_owned(), cause },
        transient: true,
        not_tls: false,
    };
    match error {
        ureq::Error::Io(e) => {
            if let Some(tls) = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return tls_failure(host, tls);
            }
            if let Some(refused) = e.get_ref().and_then(|inner| inner.downcast_ref::<LinkLocal>()) {
                return permanent(refused.at(&host).into());
            }
            match e.kind() {
                io::ErrorKind::ConnectionRefused => {
                    unreachable("connection refused".into(), "check the name and the port, and that it runs")
                }
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    unreachable(e.to_string(), "check the network of this machine")
                }
                _ if e.to_string().contains("failed to lookup address") => {
                    unreachable("its name does not resolve".into(), "check the name, the network and DNS")
                }
                _ => broken(sentence(&e)),
            }
        }
        ureq::Error::Rustls(e) => tls_failure(host, &e),
        ureq::Error::HostNotFound => {
            unreachable("its name does not resolve".into(), "check the name, the network and DNS")
        }
        ureq::Error::ConnectProxyFailed(why) => unreachable(
            format!("the proxy refused: {}", crate::error::one_line(&why)),
            "check HTTPS_PROXY, or put the host into NO_PROXY",
        ),
        ureq::Error::Timeout(_) => broken("no answer in time".into()),
        ureq::Error::ConnectionFailed => broken("no connection".into()),
        ureq::Error::Protocol(e) => {
            Failure { error: protocol(url, e.to_string()), transient: false, not_tls: true }
        }
        e => permanent(protocol(url, e.to_string())),
    }
}

/// The innermost cause in words.
pub(crate) fn sentence(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "it ended too early".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no data in time".into(),
        _ => {
            let inner = e.get_ref().and_then(|i| i.source()).map(ToString::to_string);
            crate::error::one_line(&inner.unwrap_or_else(|| e.to_string()))
        }
    }
}

fn tls_failure(host: String, e: &rustls::Error) -> Failure {
    use rustls::Error as Tls;
    if matches!(e, Tls::InvalidMessage(_)) {
        return Failure {
            error: Error::Unreachable {
                host,
                cause: "it does not speak TLS".into(),
                hint: Some("for a registry of your own without TLS, say --tls-verify=false".into()),
            },
            transient: false,
            not_tls: true,
        };
    }
    let (cause, intercepted) = match e {
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => {
            ("its certificate is signed by an authority that this machine does not know".to_owned(), true)
        }
        Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            ("its certificate has expired".to_owned(), false)
        }
        Tls::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => ("its certificate is not valid yet".to_owned(), false),
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => ("its certificate is for another name".to_owned(), false),
        other => (crate::error::one_line(&other.to_string()), false),
    };
    permanent(Error::Untrusted { host, cause, intercepted })
}
