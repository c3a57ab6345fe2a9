//! Which archive serves a suite: what the caller says, or what the machine's own apt is set up for
//! (sources.list(5), one-line and deb822 style).

use std::fs;
use std::path::{Path, PathBuf};

use super::control::{field, stanzas};

/// A place that packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Without a slash at the end.
    pub url: String,
    pub suites: Vec<String>,
    pub components: Vec<String>,
    /// The keyring that signs it, where the entry names a file.
    pub signed_by: Option<PathBuf>,
}

/// The entries of the apt configuration below `root`, in its order.
pub fn of_host(root: &Path) -> Vec<Source> {
    let apt = root.join("etc/apt");
    let mut sources = Vec::new();
    if let Some(text) = read(&apt.join("sources.list")) {
        sources.extend(parse_lines(&text));
    }
    let mut files: Vec<PathBuf> = match fs::read_dir(apt.join("sources.list.d")) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    for file in files {
        let Some(text) = read(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => sources.extend(parse_lines(&text)),
            Some("sources") => sources.extend(parse_stanzas(&text)),
            _ => {}
        }
    }
    sources
}

fn read(path: &Path) -> Option<String> {
    let small = fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= 1 << 20);
    if small { fs::read_to_string(path).ok() } else { None }
}

/// `deb [option=value …] URL SUITE COMPONENT…`
fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else { continue };
        let mut rest = rest.trim_start();
        let mut signed_by = None;
        if let Some(options) = rest.strip_prefix('[') {
            let Some((options, after)) = options.split_once(']') else { continue };
            signed_by = options.split_ascii_whitespace().find_map(|o| o.strip_prefix("signed-by="));
            rest = after;
        }
        let mut words = rest.split_ascii_whitespace();
        let (Some(url), Some(suite)) = (words.next(), words.next()) else { continue };
        sources.extend(source(url, vec![suite.to_owned()], words.map(str::to_owned).collect(), signed_by));
    }
    sources
}

fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in stanzas(text) {
        let words = |name| -> Vec<String> {
            field(stanza, name)
                .unwrap_or_default()
                .lines()
                .filter(|line| !line.starts_with('#'))
                .flat_map(str::split_ascii_whitespace)
                .map(str::to_owned)
                .collect()
        };
        let disabled = field(stanza, "Enabled").is_some_and(|v| matches!(v, "no" | "false" | "0"));
        if disabled || !words("Types").iter().any(|t| t == "deb") {
            continue;
        }
        let signed_by = field(stanza, "Signed-By");
        for url in words("URIs") {
            sources.extend(source(&url, words("Suites"), words("Components"), signed_by));
        }
    }
    sources
}

fn source(
    url: &str,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<&str>,
) -> Option<Source> {
    // Other methods (cdrom, mirror lists, tor) are not spoken here.
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return None;
    }
    let signed_by = signed_by.filter(|s| s.starts_with('/') && !s.contains('\n')).map(PathBuf::from);
    Some(Source { url: url.trim_end_matches('/').to_owned(), suites, components, signed_by })
}

/// The entry to use for `suite`: one that names it, else one whose archive has suites of that family (an
/// archive serves several releases; those for security or updates alone do not have the base).
pub fn choose<'a>(sources: &'a [Source], suite: &str) -> Option<&'a Source> {
    let has_main = |s: &&Source| s.components.iter().any(|c| c == "main");
    let exact = sources.iter().filter(has_main).find(|s| s.suites.iter().any(|x| x == suite));
    if exact.is_some() {
        return exact;
    }
    let base = |s: &&Source| s.suites.iter().any(|x| !x.contains(['-', '/']));
    let wanted = suite.split_once('-').map_or("", |(_, kind)| kind);
    if wanted.starts_with("security") {
        return sources.iter().filter(has_main).find(|s| s.suites.iter().any(|x| x.ends_with("-security")));
    }
    sources.iter().filter(has_main).find(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("etc/apt/sources.list.d");
        fs::create_dir_all(&parts).unwrap();
        fs::write(
            dir.path().join("etc/apt/sources.list"),
            "# deb http://commented.example/debian x main\n\
             deb-src http://src.example/debian bookworm main\n\
             deb cdrom:[x]/ bookworm main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ bookworm main contrib # note\n",
        )
        .unwrap();
        fs::write(
            parts.join("a.sources"),
            "Types: deb deb-src\n# note\nURIs: https://n.example/debian https://o.example/debian\n\
             Suites: trixie trixie-updates\nComponents: main\nSigned-By:\n -----BEGIN\n\n\
             Enabled: no\nTypes: deb\nURIs: http://off.example/\nSuites: x\nComponents: main\n",
        )
        .unwrap();
        fs::write(parts.join("b.list.disabled"), "deb http://no.example/ x main\n").unwrap();
        fs::write(
            parts.join("s.list"),
            "deb http://s.example/sec bookworm-security main\ndeb http://f.example ./\n",
        )
        .unwrap();
        let all = of_host(dir.path());
        let urls: Vec<_> = all.iter().map(|s| s.url.as_str()).collect();
        assert_eq!(
            urls,
            [
                "http://m.example/debian",
                "https://n.example/debian",
                "https://o.example/debian",
                "http://s.example/sec",
                "http://f.example"
            ]
        );
        assert_eq!(all[0].signed_by, Some("/k.gpg".into()));
        assert_eq!(all[0].components, ["main", "contrib"]);
        assert_eq!(all[1].signed_by, None);
        for (suite, url) in [
            ("bookworm", "http://m.example/debian"),
            ("trixie-updates", "https://n.example/debian"),
            ("bullseye", "http://m.example/debian"),
            ("trixie-security", "http://s.example/sec"),
        ] {
            assert_eq!(choose(&all, suite).map(|s| s.url.as_str()), Some(url), "{suite}");
        }
        assert_eq!(choose(&[], "bookworm"), None);
        assert!(of_host(Path::new("/nonexistent")).is_empty());
    }
}
