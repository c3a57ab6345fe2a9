//! Which proxy stands between this machine and a URL: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and
//! `NO_PROXY`, in either case, with the rules that Go programs such as Docker follow
//! (golang.org/x/net/http/httpproxy).

use std::net::IpAddr;

use ureq::http::Uri;

use crate::location;

/// The proxies of an environment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    except: Vec<String>,
}

impl Proxies {
    pub fn from_environment() -> Self {
        Proxies::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            get(name).or_else(|| get(&name.to_ascii_lowercase())).filter(|v| !v.trim().is_empty())
        };
        let all = either("ALL_PROXY");
        let except = either("NO_PROXY").unwrap_or_default();
        Proxies {
            http: either("HTTP_PROXY").or_else(|| all.clone()),
            https: either("HTTPS_PROXY").or(all),
            except: except
                .split(',')
                .map(|e| e.trim().to_ascii_lowercase())
                .filter(|e| !e.is_empty())
                .collect(),
        }
    }

    /// The proxy for `url`. This machine itself is never reached through one.
    pub fn for_url(&self, url: &Uri) -> Option<&str> {
        let proxy = if url.scheme_str() == Some("https") { &self.https } else { &self.http };
        let proxy = proxy.as_deref()?;
        (!location::is_loopback(url) && !self.except.iter().any(|e| matches(e, url))).then_some(proxy)
    }
}

fn matches(entry: &str, url: &Uri) -> bool {
    if entry == "*" {
        return true;
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    if let Ok(address) = host.parse::<IpAddr>() {
        if let Some((network, bits)) = entry.split_once('/') {
            return in_network(address, network, bits);
        }
        if let Ok(other) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
            return other == address;
        }
    }
    let entry = match entry.rsplit_once(':') {
        Some((name, wanted)) if wanted.bytes().all(|b| b.is_ascii_digit()) => {
            if wanted.parse() != Ok(port) {
                return false;
            }
            name
        }
        _ => entry,
    };
    let entry = entry.trim_start_matches('*');
    match entry.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => host == entry || host.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.')),
    }
}

fn in_network(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let same = |a: u128, b: u128, width: u32| bits <= width && (bits == 0 || (a ^ b) >> (width - bits) == 0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => same(a.to_bits().into(), n.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => same(a.to_bits(), n.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_follow_go() {
        for (except, url, direct) in [
            ("r.example", "https://r.example/v2/", true),
            ("r.example", "https://a.r.example/", true),
            ("r.example", "https://other.example/", false),
            ("r.example", "https://evilr.example/", false),
            (".r.example", "https://r.example/", false),
            ("*.r.example", "https://a.r.example/", true),
            ("r.example:5000", "https://r.example:5000/", true),
            ("r.example:5000", "https://r.example/", false),
            ("10.0.0.0/8", "http://10.1.2.3:5000/", true),
            ("10.0.0.0/8", "http://11.1.2.3/", false),
            ("10.0.0.0/33", "http://10.1.2.3/", false),
            ("fd00::/8", "http://[fd00::1]:5000/", true),
            ("10.1.2.3", "http://10.1.2.3/", true),
            ("*", "https://any.example/", true),
            ("", "https://any.example/", false),
            ("", "http://127.0.0.1:5000/", true),
            ("", "http://localhost:5000/", true),
        ] {
            let variables = |name: &str| match name {
                "HTTPS_PROXY" => Some("http://s:1".to_owned()),
                "http_proxy" => Some("http://p:2".to_owned()),
                "NO_PROXY" => Some(format!("unrelated, {except}")),
                _ => None,
            };
            let proxies = Proxies::from_variables(variables);
            let found = proxies.for_url(&url.parse().unwrap());
            let proxy = if url.starts_with("https") { "http://s:1" } else { "http://p:2" };
            assert_eq!(found, (!direct).then_some(proxy), "{except} {url}");
        }
    }
}
