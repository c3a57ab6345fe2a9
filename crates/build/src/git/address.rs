//! What a text says of a repository: where it is, what of it is wanted, and what it must be.
//!
//! Forms: BuildKit's `dfgitutil`, which has the fragment `#ref:subdir` and queries. Whatever could become an option
//! of git or ssh, or a second reference, is refused here.

use std::path::Path;

use crate::fetch::decode;

/// Commits, abbreviated, need this many digits to mean something.
const PREFIX: usize = 4;

/// A repository and what of it is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repository {
    /// What git is given.
    pub remote: String,
    pub host: String,
    pub ssh: bool,
    /// A branch, a tag, a full name below `refs/`, or a commit.
    pub reference: Option<String>,
    /// A directory in the repository, without links, `.` and `..`.
    pub subdir: String,
    /// The commit, or the first digits of it, that it must be.
    pub checksum: Option<String>,
    pub keep_git_dir: Option<bool>,
    pub no_submodules: bool,
    /// Files have the time of the checkout.
    pub times_of_checkout: bool,
    /// The checksum is the commit; what the reference says now does not matter.
    pub by_commit: bool,
}

/// The address of a repository, if a text is one.
///
/// # Errors
/// It is one, and something in it is wrong.
pub fn parse(text: &str) -> Option<std::result::Result<Repository, String>> {
    let (address, fragment) = match text.split_once('#') {
        Some((address, fragment)) => (address, fragment),
        None => (text, ""),
    };
    let (address, query) = address.split_once('?').unwrap_or((address, ""));
    let mut repository = Repository { remote: address.to_owned(), ..Repository::default() };
    let fragment = match address.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" if !decode(path).ends_with(".git") => return None,
                "ssh" => repository.ssh = true,
                "http" | "https" | "git" => {}
                _ => return None,
            }
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
            if user.starts_with('-') {
                return Some(Err(format!("'{user}' is no user")));
            }
            repository.host = host_of(host);
            decode(fragment)
        }
        None => {
            let (user, rest) = address.split_once('@')?;
            let (host, _) = rest.split_once(':')?;
            let plain = |t: &str, more: &str| {
                !t.is_empty() && t.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || more.contains(c))
            };
            if !plain(user, "_") || !plain(host, ".") {
                return None;
            }
            if user.starts_with('-') {
                return Some(Err(format!("'{user}' is no user")));
            }
            (repository.host, repository.ssh) = (host.to_owned(), true);
            fragment.to_owned()
        }
    };
    Some(repository.with(&fragment, query))
}

/// As [`parse`], and `github.com/user/repository` too, which may be the context of a build.
pub fn parse_context(text: &str) -> Option<std::result::Result<Repository, String>> {
    match text.starts_with("github.com/") {
        true => {
            let whole = format!("https://{text}");
            let address = whole.split(['#', '?']).next().unwrap_or(&whole);
            let rest = &whole[address.len()..];
            match address.ends_with(".git") {
                true => parse(&whole),
                false => parse(&format!("{address}.git{rest}")),
            }
        }
        false => parse(text),
    }
}

/// A host without its port and brackets.
pub fn host_of(host: &str) -> String {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address.to_owned(),
        None => host.split(':').next().unwrap_or(host).to_owned(),
    }
}

/// The host that an address of git leads to.
///
/// # Errors
/// It is none of those that are asked.
pub fn host_in(url: &str) -> std::result::Result<String, isles_spec::Error> {
    let no = || {
        isles_spec::Error::new(format!(
            "'{}' is not allowed as the address of a submodule",
            url.escape_default()
        ))
        .with_hint("?submodules=false leaves them out")
    };
    let authority = match url.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?', '#', '\\']).next().unwrap_or_default(),
        // HOST:PATH, as ssh has it.
        None => url
            .split_once(':')
            .map(|(host, path)| if path.starts_with(':') { "" } else { host })
            .ok_or_else(no)?,
    };
    let host = host_of(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
    if host.is_empty() { Err(no()) } else { Ok(host) }
}

impl Repository {
    /// Adds what the fragment and the query say.
    fn with(mut self, fragment: &str, query: &str) -> std::result::Result<Repository, String> {
        if self.host.is_empty() || self.host.starts_with('-') {
            return Err(format!("'{}' names no host", self.remote));
        }
        if self.remote.chars().any(char::is_control) {
            return Err("the address has a control character".into());
        }
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut reference = Some(reference.to_owned()).filter(|r| !r.is_empty());
        let mut subdir = Some(clean(subdir)).filter(|s| !s.is_empty());
        let mut refer = |wanted: String| match &reference {
            Some(other) if *other != wanted => {
                Err(format!("it asks for '{other}' and for '{wanted}' at the same time"))
            }
            _ => {
                reference = Some(wanted);
                Ok(())
            }
        };
        let full = |name: &str, kind: &str| match name.starts_with(kind) {
            true => name.to_owned(),
            false => format!("{kind}{name}"),
        };
        let (mut tag, mut branch) = (None, None);
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) => (decode(key), Some(decode(&value.replace('+', " ")))),
                None => (decode(pair), None),
            };
            if seen.contains(&key) {
                return Err(format!("the query '{key}' stands there twice"));
            }
            let value = value.filter(|v| !v.is_empty());
            let yes = || match value.as_deref() {
                None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
                Some(other) => Err(format!("the query '{key}' is true or false, not '{other}'")),
            };
            let text = || value.clone().ok_or_else(|| format!("the query '{key}' has no value"));
            match key.as_str() {
                "ref" => refer(text()?)?,
                "tag" => tag = Some(full(&text()?, "refs/tags/")),
                "branch" => branch = Some(full(&text()?, "refs/heads/")),
                "subdir" => {
                    let wanted = clean(&text()?);
                    if subdir.as_ref().is_some_and(|other| *other != wanted) {
                        return Err("it asks for two directories at the same time".into());
                    }
                    subdir = Some(wanted);
                }
                "checksum" | "commit" => self.checksum = Some(text()?),
                "keep-git-dir" => self.keep_git_dir = Some(yes()?),
                "submodules" => self.no_submodules = !yes()?,
                "fetch-by-commit" => self.by_commit = yes()?,
                "mtime" => {
                    self.times_of_checkout = match text()?.as_str() {
                        "checkout" => true,
                        "commit" => false,
                        other => {
                            return Err(format!("the query 'mtime' is checkout or commit, not '{other}'"));
                        }
                    }
                }
                _ => return Err(format!("a repository has no query '{key}'")),
            }
            seen.push(key);
        }
        match (tag, branch) {
            (Some(_), Some(_)) => return Err("it asks for a tag and for a branch at the same time".into()),
            (Some(one), None) | (None, Some(one)) => refer(one)?,
            (None, None) => {}
        }
        if let Some(bad) = reference.as_ref().filter(|r| !is_reference(r)) {
            return Err(format!("'{bad}' is no branch, tag or commit"));
        }
        (self.reference, self.subdir) = (reference, subdir.unwrap_or_default());
        if let Some(checksum) = &self.checksum {
            check_commit(checksum)?;
        }
        Ok(self)
    }

    /// Adds what the flags of ADD say.
    pub fn with_flags(
        mut self,
        checksum: Option<&str>,
        keep_git_dir: Option<bool>,
    ) -> std::result::Result<Repository, String> {
        if let Some(checksum) = checksum {
            check_commit(checksum)?;
            if self.checksum.as_ref().is_some_and(|other| other != checksum) {
                return Err("the checksum in the address is another one".into());
            }
            self.checksum = Some(checksum.to_owned());
        }
        match (keep_git_dir, self.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                return Err("the flag --keep-git-dir and the address say different things".into());
            }
            (flag, query) => self.keep_git_dir = query.or(flag),
        }
        Ok(self)
    }

    pub fn keeps_git_dir(&self) -> bool {
        self.keep_git_dir == Some(true) && self.subdir.is_empty()
    }

    /// What the files depend on beside the commit.
    pub fn key(&self, key: &mut crate::key::Key) {
        key.add("subdir", &self.subdir);
        key.add("flags", [u8::from(self.no_submodules), u8::from(self.keeps_git_dir())]);
        if self.keeps_git_dir() {
            key.add("remote", &self.remote);
            key.add("reference", self.reference.as_deref().unwrap_or_default());
        }
        // The files of submodules come from where their addresses lead from this one.
        if !self.no_submodules {
            key.add("base", &self.remote);
        }
    }

    /// The address without a password, for messages and `.git/config`.
    pub fn shown(&self) -> String {
        match self.remote.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                match authority.rsplit_once('@').map(|(user, host)| (user.split_once(':'), host)) {
                    Some((Some((user, _)), host)) => format!("{scheme}://{user}:xxxxx@{host}/{path}"),
                    _ => self.remote.clone(),
                }
            }
            None => self.remote.clone(),
        }
    }
}

/// A path below a root: `.` and `..` resolved, no slash at either end.
fn clean(path: &str) -> String {
    crate::dockerfile::execute::absolute(Path::new("/"), path).trim_matches('/').to_owned()
}

fn check_commit(text: &str) -> std::result::Result<(), String> {
    let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match hex && (PREFIX..=64).contains(&text.len()) {
        true => Ok(()),
        false => Err(format!("'{text}' is no commit; write at least {PREFIX} of its hexadecimal digits")),
    }
}

pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The rules of git-check-ref-format(1), which also leave no room for options and second references.
pub fn is_reference(text: &str) -> bool {
    !text.starts_with(['-', '/', '.'])
        && !text.ends_with(['/', '.'])
        && !text.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c))
        && !["..", "//", "@{", "/."].iter().any(|bad| text.contains(bad))
        && text != "@"
        && !text.split('/').any(|part| part.ends_with(".lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Repository {
        parse(text).unwrap().unwrap()
    }

    #[test]
    fn addresses() {
        for (text, remote, reference, subdir) in [
            ("https://h/a.git", "https://h/a.git", None, ""),
            ("https://h/a.git#v1", "https://h/a.git", Some("v1"), ""),
            ("https://h/a.git#v1:sub/dir", "https://h/a.git", Some("v1"), "sub/dir"),
            ("https://h/a.git#:sub", "https://h/a.git", None, "sub"),
            ("https://h/a.git#:/../sub/./x", "https://h/a.git", None, "sub/x"),
            ("https://h/a.git?ref=v1&subdir=x", "https://h/a.git", Some("v1"), "x"),
            ("https://h/a.git?tag=v1", "https://h/a.git", Some("refs/tags/v1"), ""),
            ("https://h/a.git?branch=b%2Fc", "https://h/a.git", Some("refs/heads/b/c"), ""),
            ("git://h/a", "git://h/a", None, ""),
            ("ssh://git@h:22/a", "ssh://git@h:22/a", None, ""),
            ("git@h:a/b.git#main", "git@h:a/b.git", Some("main"), ""),
        ] {
            let r = read(text);
            assert_eq!(
                (r.remote.as_str(), r.reference.as_deref(), r.subdir.as_str()),
                (remote, reference, subdir),
                "{text}"
            );
        }
        let r = read("https://h/a.git?checksum=abcdef12&keep-git-dir&submodules=false&mtime=checkout");
        assert_eq!(
            (r.checksum.as_deref(), r.keep_git_dir, r.no_submodules),
            (Some("abcdef12"), Some(true), true)
        );
        assert!(r.times_of_checkout && r.keeps_git_dir());
        assert!(!read("https://h/a.git?keep-git-dir=1#:sub").keeps_git_dir());
        let r = parse_context("github.com/a/b#main").unwrap().unwrap();
        assert_eq!((r.remote.as_str(), r.reference.as_deref()), ("https://github.com/a/b.git", Some("main")));
        assert_eq!(read("https://me:secret@h/a.git").shown(), "https://me:xxxxx@h/a.git");
    }

    #[test]
    fn what_is_no_repository() {
        for text in [
            "a",
            "./a.git",
            "https://h/a.tar.gz",
            "file:///a.git",
            "ext::sh -c x",
            "a/b@c:d",
            "ftp://h/a.git",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("github.com/a/b.git"), None, "that is a folder of the context");
    }

    #[test]
    fn hostile_addresses() {
        for text in [
            "ssh://-oProxyCommand=x/a",
            "git://-h/a",
            "ssh://-u@h/a",
            "https:///a.git",
            "-x@h:a.git",
            "https://h/a.git#--upload-pack=x",
            "https://h/a.git#-x",
            "https://h/a.git#a..b",
            "https://h/a.git?ref=a%3Ab",
            "https://h/a.git?ref=+a",
            "https://h/a.git?ref=a&tag=b",
            "https://h/a.git?branch=a&tag=b",
            "https://h/a.git?ref=a&ref=a",
            "https://h/a.git?ref",
            "https://h/a.git?color=red",
            "https://h/a.git?submodules=maybe",
            "https://h/a.git?mtime=now",
            "https://h/a.git?commit=xyz",
            "https://h/a.git?commit=abc",
            "https://h/a.git#v1\nx",
        ] {
            assert!(parse(text).is_some_and(|r| r.is_err()), "{text}: {:?}", parse(text));
        }
        assert!(read("https://h/a.git").with_flags(Some("sha256:00"), None).is_err());
        assert!(read("https://h/a.git?commit=abcd").with_flags(Some("abce"), None).is_err());
        assert!(read("https://h/a.git?keep-git-dir=0").with_flags(None, Some(true)).is_err());
    }
}
