//! Documents with their references: `$import`, `$include`, `$mixin`, `$graph`, `$namespaces`
//! (Semantic Annotations for Linked Avro Data 1.2, "Document preprocessing").
//!
//! A node that was imported keeps its own file in its place, so what it names begins at its own folder.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use isles_spec::percent;

use crate::tree::{self, At, Entry, Kind, Node, Sources};
use crate::value::Value;
use crate::web::{Web, is_url};

/// Something wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub at: At,
    pub message: String,
    pub hint: Option<String>,
}

impl Diagnostic {
    pub fn new(at: At, message: impl Into<String>) -> Diagnostic {
        Diagnostic { at, message: message.into(), hint: None }
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }
}

/// Documents within documents.
const DEEPEST_IMPORT: usize = 50;
/// All documents of a run.
const MOST_DOCUMENTS: usize = 10_000;

/// The documents that were read, and their namespaces.
#[derive(Debug, Default)]
pub struct Documents {
    pub sources: Sources,
    whole: HashMap<u32, Arc<Node>>,
    namespaces: HashMap<u32, HashMap<String, String>>,
    /// Files being read now, outermost first.
    reading: Vec<PathBuf>,
    /// The folder that the user is in, for names in messages.
    here: PathBuf,
    /// The way to files of the web, where it may be gone.
    pub web: Option<Arc<Web>>,
}

impl Documents {
    pub fn new() -> Documents {
        Documents { here: std::env::current_dir().unwrap_or_default(), ..Documents::default() }
    }

    /// Reads a file with all that it imports. Files are read once.
    pub fn read(&mut self, path: &Path, from: At) -> Result<(u32, Arc<Node>), Diagnostic> {
        let path = clean(path);
        if self.reading.contains(&path) {
            let chain: Vec<String> = self.reading.iter().map(|p| self.shown(p)).collect();
            return Err(Diagnostic::new(from, format!("{} imports itself", self.shown(&path)))
                .with_hint(format!("by way of {}", chain.join(", "))));
        }
        let text = self.text_of(&path, from)?;
        let name = self.shown(&path);
        let file = self.sources.add(&name, &path, text);
        if let Some(node) = self.whole.get(&file) {
            return Ok((file, node.clone()));
        }
        let text = self.sources.get(file).map(|s| s.text.clone()).unwrap_or_default();
        let node = tree::parse(&text, file).map_err(|e| Diagnostic::new(e.at, e.message))?;
        self.note_namespaces(file, &node)?;
        self.reading.push(path);
        let node = self.resolve(node);
        self.reading.pop();
        let node = Arc::new(node?);
        self.whole.insert(file, node.clone());
        Ok((file, node))
    }

    /// A document that is not in a file: it stands in `folder`.
    pub fn read_text(
        &mut self,
        name: &str,
        folder: &Path,
        text: String,
    ) -> Result<(u32, Arc<Node>), Diagnostic> {
        let path = clean(&folder.join(name));
        let file = self.sources.add(name, &path, text.clone());
        let node = tree::parse(&text, file).map_err(|e| Diagnostic::new(e.at, e.message))?;
        self.note_namespaces(file, &node)?;
        let node = Arc::new(self.resolve(node)?);
        self.whole.insert(file, node.clone());
        Ok((file, node))
    }

    /// The whole document that a place is in.
    pub fn whole(&self, file: u32) -> Option<Arc<Node>> {
        self.whole.get(&file).cloned()
    }

    /// A path as the user would write it.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.here).unwrap_or(path).display().to_string()
    }

    fn text_of(&self, path: &Path, from: At) -> Result<String, Diagnostic> {
        let fail = |what: String| Diagnostic::new(from, what);
        if let Some(web) = &self.web {
            web.ensure(path).map_err(fail)?;
        }
        if self.sources.all().len() >= MOST_DOCUMENTS {
            return Err(fail(format!("more than {MOST_DOCUMENTS} documents")));
        }
        let file =
            std::fs::File::open(path).map_err(|e| fail(format!("cannot read {}: {e}", self.shown(path))))?;
        let kind = file.metadata().map_err(|e| fail(format!("cannot read {}: {e}", self.shown(path))))?;
        if !kind.is_file() {
            return Err(fail(format!("{} is no file", self.shown(path))));
        }
        let mut bytes = Vec::new();
        let read = file.take(tree::LONGEST + 1).read_to_end(&mut bytes);
        read.map_err(|e| fail(format!("cannot read {}: {e}", self.shown(path))))?;
        if bytes.len() as u64 > tree::LONGEST {
            return Err(fail(format!("{} is longer than {} MiB", self.shown(path), tree::LONGEST >> 20)));
        }
        String::from_utf8(bytes).map_err(|_| fail(format!("{} is not UTF-8", self.shown(path))))
    }

    fn note_namespaces(&mut self, file: u32, node: &Node) -> Result<(), Diagnostic> {
        let Some(entries) = node.get("$namespaces").and_then(Node::as_map) else { return Ok(()) };
        let mut found = HashMap::new();
        for entry in entries {
            let Some(iri) = entry.value.as_str() else {
                return Err(Diagnostic::new(entry.value.at, "a namespace is an IRI"));
            };
            found.insert(entry.key.to_string(), iri.to_owned());
        }
        self.namespaces.insert(file, found);
        Ok(())
    }

    /// `prefix:name` as an IRI, by the namespaces of its document. What has no such prefix stays as it is.
    pub fn expand(&self, text: &str, at: At) -> String {
        if let Some((prefix, rest)) = text.split_once(':')
            && let Some(iri) = self.namespaces.get(&at.file).and_then(|n| n.get(prefix))
        {
            return format!("{iri}{rest}");
        }
        match text.split_once(':') {
            Some(("cwltool", rest)) => format!("http://commonwl.org/cwltool#{rest}"),
            _ => text.to_owned(),
        }
    }

    /// The file that a reference names, without its fragment.
    ///
    /// # Errors
    /// Addresses of other schemes than `file`.
    pub fn locate(&self, reference: &str, at: At) -> Result<PathBuf, Diagnostic> {
        let reference = reference.split('#').next().unwrap_or_default();
        if let Some(path) = reference.strip_prefix("file://") {
            return Ok(clean(Path::new(&decoded(path))));
        }
        if let Some(web) = self.web.as_ref().filter(|_| is_url(reference)) {
            return web.place(reference).map_err(|e| Diagnostic::new(at, e));
        }
        if let Some((scheme, _)) = reference.split_once("://") {
            return Err(Diagnostic::new(
                at,
                format!("`{reference}` is not fetched: {scheme} addresses are refused"),
            )
            .with_hint("fetch the file, and name it by its path"));
        }
        let folder = self.sources.folder(at.file);
        let plain = clean(&folder.join(reference));
        if !plain.exists() {
            let unescaped = clean(&folder.join(decoded(reference)));
            if unescaped.exists() {
                return Ok(unescaped);
            }
        }
        Ok(plain)
    }

    fn resolve(&mut self, node: Node) -> Result<Node, Diagnostic> {
        let at = node.at;
        match node.kind {
            Kind::Seq(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items {
                    let imported = item.get("$import").is_some();
                    let item = self.resolve(item)?;
                    match item.kind {
                        Kind::Seq(more) if imported => out.extend(more),
                        kind => out.push(Node { kind, at: item.at }),
                    }
                }
                Ok(Node { kind: Kind::Seq(out), at })
            }
            Kind::Map(entries) => self.resolve_map(entries, at),
            _ => Ok(node),
        }
    }

    fn resolve_map(&mut self, entries: Vec<Entry>, at: At) -> Result<Node, Diagnostic> {
        if self.reading.len() > DEEPEST_IMPORT {
            return Err(Diagnostic::new(at, format!("imports are nested more than {DEEPEST_IMPORT} deep")));
        }
        let first = entries.first().map(|e| (e.key.to_string(), e.value.as_str().map(str::to_owned)));
        if let Some((key, Some(target))) = &first
            && entries.len() == 1
        {
            match key.as_str() {
                "$import" => {
                    let path = self.locate(target, at)?;
                    let (_, node) = self.read(&path, at)?;
                    return match target.split_once('#') {
                        Some((_, fragment)) => by_id(&node, fragment).cloned().ok_or_else(|| {
                            Diagnostic::new(
                                at,
                                format!("{} has nothing named `#{fragment}`", self.shown(&path)),
                            )
                        }),
                        None => Ok((*node).clone()),
                    };
                }
                "$include" => {
                    let path = self.locate(target, at)?;
                    return Ok(Node::string(&self.text_of(&path, at)?, at));
                }
                _ => {}
            }
        }
        let mixin =
            entries.iter().find(|e| &*e.key == "$mixin").and_then(|e| e.value.as_str().map(str::to_owned));
        let mut out: Vec<Entry> = Vec::with_capacity(entries.len());
        for entry in entries {
            if &*entry.key == "$mixin" && mixin.is_some() {
                continue;
            }
            let value = self.resolve(entry.value)?;
            out.push(Entry { key: entry.key, at: entry.at, value });
        }
        if let Some(target) = mixin {
            let path = self.locate(&target, at)?;
            let (_, node) = self.read(&path, at)?;
            let Some(more) = node.as_map() else {
                return Err(Diagnostic::new(at, format!("{} is no mapping", self.shown(&path))));
            };
            for entry in more {
                if !out.iter().any(|e| e.key == entry.key) {
                    out.push(entry.clone());
                }
            }
        }
        Ok(Node { kind: Kind::Map(out), at })
    }

    /// A value of a document in which Files and Directories are named from the folder of their document, and formats
    /// and classes are written out.
    pub fn value(&self, node: &Node) -> Value {
        match &node.kind {
            Kind::Seq(items) => Value::array(items.iter().map(|n| self.value(n)).collect()),
            Kind::Map(entries) => {
                let of_file = matches!(node.get("class").and_then(Node::as_str), Some("File" | "Directory"));
                let map = entries.iter().map(|e| {
                    let value = match (&*e.key, &e.value.kind) {
                        ("location" | "path", Kind::Str(text)) if of_file => {
                            self.location(text, e.value.at, &*e.key == "path")
                        }
                        ("format", Kind::Str(text)) if of_file => Value::from(self.expand(text, e.value.at)),
                        _ => self.value(&e.value),
                    };
                    let key = if &*e.key == "path" && of_file { "location".into() } else { e.key.clone() };
                    (key, value)
                });
                Value::map(map.collect())
            }
            _ => node.to_value(),
        }
    }

    /// A value whose formats are written out by the namespaces of another document.
    pub fn expanded(&self, value: &Value, at: At) -> Value {
        match value {
            Value::Array(items) => Value::array(items.iter().map(|item| self.expanded(item, at)).collect()),
            Value::Map(map) => {
                let file = value.is_file();
                let expand = |(key, item): (&str, &Value)| match (key, item) {
                    ("format", Value::String(text)) if file => {
                        (key.to_owned(), Value::from(self.expand(text, at)))
                    }
                    _ => (key.to_owned(), self.expanded(item, at)),
                };
                Value::map(map.iter().map(expand).collect())
            }
            other => other.clone(),
        }
    }

    fn location(&self, text: &str, at: At, path: bool) -> Value {
        if is_url(text)
            && let Some(web) = &self.web
        {
            // What cannot be had is told by whoever fetches, and refused where it is used.
            return Value::from(web.get(text).map_or_else(|_| text.to_owned(), |path| location_of(&path)));
        }
        if !path && (text.contains("://") || text.starts_with("_:")) {
            return Value::from(text);
        }
        let folder = self.sources.folder(at.file);
        let plain = clean(&folder.join(text));
        if let Some(web) = &self.web {
            let _ = web.ensure(&plain);
        }
        let found = if path || plain.exists() { plain } else { clean(&folder.join(decoded(text))) };
        Value::from(location_of(&found))
    }
}

/// A node of a document by its identifier: of `$graph`, or the whole document's own.
pub fn by_id<'n>(node: &'n Node, fragment: &str) -> Option<&'n Node> {
    let is = |node: &Node| {
        let id = node.get("id").or_else(|| node.get("name")).and_then(Node::as_str);
        id.is_some_and(|id| id.rsplit('#').next() == Some(fragment))
    };
    if is(node) {
        return Some(node);
    }
    let items = node.get("$graph").map_or(node.as_seq(), Node::as_seq)?;
    items.iter().find(|n| is(n))
}

/// A path without `.` and `..`, absolute; links are not followed.
pub fn clean(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut out = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// `file://` and the path, with what an IRI may not hold as `%XX`.
pub fn location_of(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    format!("file://{}", percent::encode(path.as_os_str().as_bytes(), BARE))
}

/// What of a path stands in an IRI as it is, beside the unreserved characters (RFC 3987, section 2.2).
const BARE: &[u8] = b"/:@!$&'()*+,;=";

/// A part of a path as an IRI has it.
pub fn encoded(text: &str) -> String {
    percent::encode(text, BARE)
}

/// Text with each `%XX` as its byte, where the result is UTF-8.
pub fn decoded(text: &str) -> String {
    String::from_utf8(percent::decode(text)).unwrap_or_else(|_| text.to_owned())
}

/// The path of a `file://` location.
pub fn path_of(location: &str) -> Option<PathBuf> {
    location.strip_prefix("file://").map(|path| PathBuf::from(decoded(path)))
}

/// The known word nearest to what was written, where one is near.
pub fn nearest<'w>(written: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let limit = written.chars().count() / 3 + 1;
    known
        .into_iter()
        .map(|word| (distance(written, word), word))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, word)| word)
}

fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().take(80).collect();
    let b: Vec<char> = b.to_lowercase().chars().take(80).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(files: &[(&str, &str)]) -> (tempfile::TempDir, Documents) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        (folder, Documents::new())
    }

    #[test]
    fn imports_begin_at_the_folder_of_their_own_document() {
        let (folder, mut documents) = documents(&[
            (
                "a.yml",
                "x: {$import: sub/b.yml}\nlist: [1, {$import: sub/list.yml}]\nt: {$include: sub/t.txt}\n",
            ),
            ("sub/b.yml", "y: {$import: c.yml}\nf: {class: File, location: data%20file}\n"),
            ("sub/c.yml", "z: 1\n"),
            ("sub/list.yml", "[2, 3]\n"),
            ("sub/t.txt", "text\n"),
            ("sub/data file", ""),
        ]);
        let (_, node) = documents.read(&folder.path().join("a.yml"), At::default()).unwrap();
        let x = node.get("x").unwrap();
        assert_eq!(x.get("y").unwrap().get("z").unwrap().kind, Kind::Int(1));
        assert_eq!(node.get("list").unwrap().as_seq().unwrap().len(), 3);
        assert_eq!(node.get("t").unwrap().as_str(), Some("text\n"));
        let file = documents.value(x.get("f").unwrap());
        let expected = location_of(&clean(&folder.path().join("sub/data file")));
        assert_eq!(file.text("location"), Some(expected.as_str()));
        assert!(expected.ends_with("/data%20file"));
    }

    #[test]
    fn mixins_are_overridden() {
        let (folder, mut documents) =
            documents(&[("a.yml", "$mixin: b.yml\nx: 1\n"), ("b.yml", "x: 2\ny: 3\n")]);
        let (_, node) = documents.read(&folder.path().join("a.yml"), At::default()).unwrap();
        assert_eq!(node.get("x").unwrap().kind, Kind::Int(1));
        assert_eq!(node.get("y").unwrap().kind, Kind::Int(3));
    }

    #[test]
    fn cycles_and_missing_files_are_told_with_their_place() {
        let (folder, mut documents) = documents(&[
            ("a.yml", "x:\n  - $import: b.yml\n"),
            ("b.yml", "{$import: a.yml}\n"),
            ("c.yml", "x: {$import: none.yml}\n"),
            ("d.yml", "x: {$import: 'http://example.org/x'}\n"),
        ]);
        let table = [("a.yml", "imports itself"), ("c.yml", "cannot read"), ("d.yml", "is not fetched")];
        for (name, part) in table {
            let error = documents.read(&folder.path().join(name), At::default()).unwrap_err();
            assert!(error.message.contains(part), "{}", error.message);
            assert!(error.at.line > 0);
        }
    }

    #[test]
    fn locations_and_paths_are_each_others_inverse() {
        for path in ["/a b/c#d", "/ü/%41", "/x?y=[1]", "/plain"] {
            assert_eq!(path_of(&location_of(Path::new(path))).unwrap(), Path::new(path));
        }
    }

    #[test]
    fn a_near_word_is_found_and_a_far_one_is_not() {
        assert_eq!(nearest("baseComand", ["baseCommand", "arguments"]), Some("baseCommand"));
        assert_eq!(nearest("zzz", ["baseCommand", "arguments"]), None);
    }
}
