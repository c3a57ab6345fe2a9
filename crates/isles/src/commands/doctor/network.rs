//! A registry, and the mirror that Debian's packages come from.

use std::fs;
use std::path::Path;
use std::time::Duration;

use isles_registry::web::{Web, Wish};
use isles_registry::{Client, ClientOptions, Error, retry};
use isles_spec::{Hint, Reference};

use super::Finding;

/// A server that says nothing for so long is not there.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn findings(registry: Option<&str>, network: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(registry.map(reachable));
    findings.push(mirror(network));
    findings
}

fn options() -> ClientOptions {
    let retry = retry::Policy { retries: 0, ..retry::Policy::default() };
    ClientOptions { retry, stall: PATIENCE, ..ClientOptions::default() }
}

fn reachable(host: &str) -> Finding {
    const CHECK: &str = "registry";
    let name = match Reference::parse(&format!("{host}/isles/doctor")) {
        Ok(name) if name.registry() == host => name,
        _ => {
            return Finding::problem(CHECK, format!("'{host}' is not a registry"), "write HOST or HOST:PORT");
        }
    };
    match Client::new(options()).tags(&name) {
        // Whoever says that there is no such repository, or not for us, answers.
        Ok(_) | Err(Error::NotFound { .. } | Error::Unauthorized { .. } | Error::Denied { .. }) => {
            Finding::ok(CHECK, format!("{host} answers"))
        }
        Err(e) => {
            let cure =
                e.hint().unwrap_or_else(|| "check the name, the network and the proxy settings".into());
            Finding::problem(CHECK, e.to_string(), cure)
        }
    }
}

fn mirror(network: bool) -> Finding {
    const CHECK: &str = "Debian mirror";
    let Some(mirror) = configured(Path::new("/etc/apt")) else {
        return Finding::note(
            CHECK,
            "this machine's apt names none",
            "recipes that start from Debian name one (MirrorURL), or the command does (--mirror)",
        );
    };
    if !network {
        return Finding::ok(CHECK, format!("{mirror} (not asked; --network does)"));
    }
    let wish = Wish { within: Some(PATIENCE), ..Wish::default() };
    match Web::new(&options()).get(&format!("{}/dists/stable/Release", mirror.trim_end_matches('/')), wish) {
        Ok(answer) if answer.status < 500 => Finding::ok(CHECK, format!("{mirror} answers")),
        Ok(answer) => {
            Finding::note(CHECK, format!("{mirror} answers with status {}", answer.status), "try another")
        }
        Err(e) => {
            let cure = e.hint().unwrap_or_else(|| "check the network, or name another with --mirror".into());
            Finding::note(CHECK, e.to_string(), cure)
        }
    }
}

/// The first HTTP source that apt is set up for, in either of its formats (sources.list(5)).
fn configured(apt: &Path) -> Option<String> {
    let mut files = vec![apt.join("sources.list")];
    let parts = fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<_> = parts.map(|entry| entry.path()).collect();
    parts.sort();
    files.extend(parts);
    files.iter().find_map(|file| source(&fs::read_to_string(file).ok()?))
}

fn source(text: &str) -> Option<String> {
    let web = |word: &&str| word.starts_with("http://") || word.starts_with("https://");
    text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:")).find_map(|line| {
        // Not the part with security updates, which is no whole archive.
        let word = line.split_whitespace().find(web)?;
        (!word.contains("security")).then(|| word.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_apt() {
        for (text, expected) in [
            ("deb [arch=amd64] http://m.example/debian bookworm main", Some("http://m.example/debian")),
            ("# deb http://no.example x main\ndeb-src http://no.example x main\n", None),
            (
                "Types: deb\nURIs: https://m.example/debian\nSuites: trixie\n",
                Some("https://m.example/debian"),
            ),
            (
                "deb http://x.example/debian-security s main\ndeb http://m.example/d s main",
                Some("http://m.example/d"),
            ),
            ("deb file:/mnt x main", None),
        ] {
            assert_eq!(source(text).as_deref(), expected, "{text}");
        }
    }
}
