//! Files of the web: fetched once in a run, into a folder where each lies at the path of its URL, so that what a document
//! names relatively lies beside it.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::document::{decoded, encoded};

/// Writes what a URL leads to into a file that is not there yet.
pub type Fetch = dyn Fn(&str, &Path) -> Result<(), String> + Send + Sync;

/// The folder, and the way to the web.
pub struct Web {
    folder: PathBuf,
    fetch: Box<Fetch>,
    /// Of this run.
    fetched: Mutex<HashSet<PathBuf>>,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Web").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Whether a reference is one to the web.
pub fn is_url(reference: &str) -> bool {
    reference.starts_with("http://") || reference.starts_with("https://")
}

impl Web {
    /// `folder` is absolute, and may keep what earlier runs fetched.
    pub fn new(folder: PathBuf, fetch: Box<Fetch>) -> Web {
        Web { folder, fetch, fetched: Mutex::default() }
    }

    /// Where the file of a URL lies; it need not be there.
    ///
    /// # Errors
    /// The URL names no file.
    pub fn place(&self, url: &str) -> Result<PathBuf, String> {
        let whole = url.split('#').next().unwrap_or_default();
        let wrong = || format!("`{url}` names no file of the web");
        let (scheme, rest) = whole.split_once("://").ok_or_else(wrong)?;
        let (address, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
        let mut path = self.folder.join(scheme);
        for (i, part) in address.split('/').enumerate() {
            let part = decoded(part);
            let plain = Path::new(&part).components().all(|c| matches!(c, Component::Normal(_)));
            if part.contains(['/', '\0']) || !plain || (i == 0 && part.is_empty()) {
                return Err(wrong());
            }
            if !part.is_empty() {
                path.push(part);
            }
        }
        if address.ends_with('/') || !address.contains('/') {
            return Err(wrong());
        }
        if let Some(query) = query {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push("?");
            name.push(query.replace('/', "%2F"));
            path.set_file_name(name);
        }
        Ok(path)
    }

    /// The URL of a path in the folder.
    pub fn url_of(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.folder).ok()?.to_str()?;
        let (scheme, rest) = rest.split_once('/')?;
        let (address, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
        let parts: Vec<String> = address.split('/').map(encoded).collect();
        let query = query.map(|query| format!("?{}", query.replace("%2F", "/"))).unwrap_or_default();
        Some(format!("{scheme}://{}{query}", parts.join("/")))
    }

    /// Fetches a URL, unless this run has done so, and gives the file. One that did not change keeps its times, so it is
    /// known again.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn get(&self, url: &str) -> Result<PathBuf, String> {
        let path = self.place(url)?;
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        if fetched.contains(&path) {
            return Ok(path);
        }
        let fail = |e: std::io::Error| format!("cannot keep {url}: {e}");
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(fail)?;
        let beside = folder.join(format!(".{}-{}", std::process::id(), fetched.len()));
        let done = (self.fetch)(url.split('#').next().unwrap_or_default(), &beside).and_then(|()| {
            if same(&beside, &path).map_err(fail)? {
                Ok(())
            } else {
                std::fs::rename(&beside, &path).map_err(fail)
            }
        });
        let _ = std::fs::remove_file(&beside);
        done?;
        fetched.insert(path.clone());
        Ok(path)
    }

    /// Fetches what lies at a path in the folder, as a document of the web named it relatively. Others are left alone.
    pub fn ensure(&self, path: &Path) -> Result<(), String> {
        match self.url_of(path) {
            Some(url) => self.get(&url).map(drop),
            None => Ok(()),
        }
    }
}

/// Whether two files hold the same.
fn same(one: &Path, other: &Path) -> std::io::Result<bool> {
    use std::io::{BufRead, BufReader};
    let length =
        |path: &Path| path.symlink_metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len());
    if length(one).is_none() || length(one) != length(other) {
        return Ok(false);
    }
    let open = |path: &Path| std::fs::File::open(path).map(|file| BufReader::with_capacity(64 << 10, file));
    let (mut one, mut other) = (open(one)?, open(other)?);
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let n = a.len().min(b.len());
        if n == 0 || a[..n] != b[..n] {
            return Ok(n == 0 && a.len() == b.len());
        }
        one.consume(n);
        other.consume(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn urls_have_places_below_the_folder_and_back() {
        let web = Web::new("/w".into(), Box::new(|_, _| Ok(())));
        for (url, place) in [
            ("http://h:80/a/b.cwl#main", "/w/http/h:80/a/b.cwl"),
            ("https://h/a%20b/c?x=1/2", "/w/https/h/a b/c?x=1%2F2"),
        ] {
            let path = web.place(url).unwrap();
            assert_eq!(path, Path::new(place));
            assert_eq!(web.url_of(&path).unwrap(), url.split('#').next().unwrap());
        }
        for url in [
            "http://h",
            "http://h/",
            "http://h/../x",
            "http://h/a/..",
            "http:///x",
            "http://h/%2e%2e/x",
            "http://h/a%2fb",
        ] {
            assert!(web.place(url).is_err(), "{url}");
        }
        assert_eq!(web.url_of(Path::new("/other/x")), None);
    }

    #[test]
    fn a_file_is_fetched_once_and_keeps_its_time_where_it_did_not_change() {
        let folder = tempfile::tempdir().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let run = |text: &'static str| {
            let count = count.clone();
            let web = Web::new(
                folder.path().to_owned(),
                Box::new(move |_, path| {
                    count.fetch_add(1, Ordering::SeqCst);
                    std::fs::write(path, text).map_err(|e| e.to_string())
                }),
            );
            let path = web.get("http://h/x").unwrap();
            assert_eq!(web.get("http://h/x#part").unwrap(), path);
            web.ensure(&path).unwrap();
            (std::fs::read_to_string(&path).unwrap(), path.metadata().unwrap().modified().unwrap())
        };
        let first = run("one");
        assert_eq!(run("one"), first);
        assert_eq!(run("two").0, "two");
        assert_eq!(count.load(Ordering::SeqCst), 3);
        assert_eq!(std::fs::read_dir(folder.path().join("http/h")).unwrap().count(), 1);
        let broken = Web::new(folder.path().to_owned(), Box::new(|_, _| Err("no way".into())));
        assert_eq!(broken.get("http://h/y").unwrap_err(), "no way");
    }
}
