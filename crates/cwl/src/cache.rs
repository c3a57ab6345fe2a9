//! Steps that were done before: a tool with the same command, image, environment, files and limits need not run again.
//!
//! An entry is a folder named by the SHA-256 of everything that the tool could see: `out` is the output folder as the tool
//! left it, `object.json` its output object. It is made beside, by a run that holds a lock, and gets its name in one
//! rename when all is there; so a run that was killed, or a machine that stopped, leaves whole entries, and folders that
//! the next run removes. A tool that failed leaves nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use isles_spec::digest::hex;
use rustix::fs::{FlockOperation, flock};

use crate::document::{location_of, path_of};
use crate::files;
use crate::model::{Field, Output, OutputBinding};
use crate::outputs::{self, digest_of_file, from_json};
use crate::stage::{Content, Plan};
use crate::tool;
use crate::value::{Map, Value};

/// Changes when the same key would mean something else.
const FORM: &str = "isles step 1";

/// A folder of entries.
pub struct Cache {
    folder: PathBuf,
    /// Of this run: where entries are made.
    work: PathBuf,
    _lock: File,
    next: AtomicU64,
    /// By device, inode, size and times.
    digests: Mutex<HashMap<[i64; 7], String>>,
}

/// Everything that a tool can see, on its way to a key.
pub struct Key {
    context: ring::digest::Context,
    /// Paths that differ in each run, and what stands for them.
    places: Vec<(String, &'static str)>,
}

impl Cache {
    /// Opens a cache, and removes what runs that are no more left unfinished.
    ///
    /// # Errors
    /// The folder cannot be made, or not written to.
    pub fn open(folder: &Path) -> Result<Cache, String> {
        let fail = |e: std::io::Error| format!("cannot use the cache {}: {e}", folder.display());
        let folder = std::path::absolute(folder).map_err(fail)?;
        let runs = folder.join("runs");
        std::fs::create_dir_all(&runs).map_err(fail)?;
        for entry in std::fs::read_dir(&runs).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let Ok(lock) = File::open(path.join("lock")) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = tool::remove(&path);
            }
        }
        let work = loop {
            let mut random = [0u8; 8];
            File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).map_err(fail)?;
            let work = runs.join(format!("{:016x}", u64::from_le_bytes(random)));
            match std::fs::create_dir(&work) {
                Ok(()) => break work,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(fail(e)),
            }
        };
        let lock = File::create(work.join("lock")).map_err(fail)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| fail(e.into()))?;
        Ok(Cache { folder, work, _lock: lock, next: AtomicU64::new(0), digests: Mutex::default() })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder in which an entry can be made.
    pub fn begin(&self) -> Result<PathBuf, String> {
        let path = self.work.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(path)
    }

    /// The output object of an entry, if there is one and its files are all there.
    pub fn find(&self, key: &str) -> Option<Value> {
        let entry = self.folder.join(key);
        let text = std::fs::read_to_string(entry.join("object.json")).ok()?;
        let object = self.moved(&from_json(&text).ok()?, Path::new("/entry"), &entry);
        outputs::whole(&object).then_some(object)
    }

    /// Gives what was made in `begun` the name of its key, and the object as it is then.
    pub fn keep(&self, key: &str, begun: &Path, object: &Value) -> Result<Value, String> {
        let entry = self.folder.join(key);
        let fail = |e: std::io::Error| format!("cannot write the entry {}: {e}", entry.display());
        let written = self.moved(object, begun, Path::new("/entry"));
        std::fs::write(begun.join("object.json"), written.pretty_json()).map_err(fail)?;
        // A file that a power cut tore is known by its checksum; of folders there is none, so they are on the disk before
        // the entry has its name.
        let mut unchecked = false;
        files::each(object, &mut |file| unchecked |= file.text("checksum").is_none());
        if unchecked {
            let folder = File::open(begun).map_err(fail)?;
            rustix::fs::syncfs(&folder).map_err(|e| fail(e.into()))?;
        }
        match std::fs::rename(begun, &entry) {
            Ok(()) => Ok(self.moved(object, begun, &entry)),
            // Another run was faster, or an old entry is not whole any more.
            Err(_) => match self.find(key) {
                Some(object) => Ok(object),
                None => {
                    tool::remove(&entry).map_err(fail)?;
                    std::fs::rename(begun, &entry).map_err(fail)?;
                    Ok(self.moved(object, begun, &entry))
                }
            },
        }
    }

    /// The object with its files below `to` instead of `from`.
    fn moved(&self, object: &Value, from: &Path, to: &Path) -> Value {
        match object {
            Value::Array(items) => {
                Value::array(items.iter().map(|item| self.moved(item, from, to)).collect())
            }
            Value::Map(map) => {
                let of_file = object.is_file() || object.is_directory();
                let entries = map.iter().map(|(key, item)| {
                    let place = item.as_str().filter(|_| of_file && key == "location").and_then(path_of);
                    let value = match place.as_ref().and_then(|p| p.strip_prefix(from).ok()) {
                        Some(rest) => Value::from(location_of(&to.join(rest))),
                        None => self.moved(item, from, to),
                    };
                    (key.to_owned(), value)
                });
                Value::map(entries.collect())
            }
            other => other.clone(),
        }
    }

    /// The SHA-256 of a file; of a folder, that of all names, kinds and digests in it.
    fn digest(&self, path: &Path) -> Result<String, String> {
        let fail = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
        let kind = std::fs::metadata(path).map_err(fail)?;
        if kind.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(path)
                .map_err(fail)?
                .map(|entry| entry.map(|e| e.file_name()))
                .collect::<Result<_, _>>()
                .map_err(fail)?;
            names.sort();
            let mut context = ring::digest::Context::new(&ring::digest::SHA256);
            for name in names {
                context.update(name.as_encoded_bytes());
                context.update(b"\0");
                let inner = path.join(&name);
                let digest = match std::fs::metadata(&inner) {
                    Ok(_) => self.digest(&inner)?,
                    Err(_) => "nothing".into(),
                };
                context.update(digest.as_bytes());
            }
            return Ok(format!("folder {}", hex(context.finish().as_ref())));
        }
        if !kind.is_file() {
            return Err(format!("{} is neither a file nor a folder", path.display()));
        }
        let number = |n: u64| n as i64;
        let identity = [
            number(kind.dev()),
            number(kind.ino()),
            number(kind.len()),
            kind.mtime(),
            kind.mtime_nsec(),
            kind.ctime(),
            kind.ctime_nsec(),
        ];
        if let Some(digest) = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&identity) {
            return Ok(digest.clone());
        }
        let executable = kind.mode() & 0o111 != 0;
        let digest = format!("file {executable} {}", digest_of_file(path, &ring::digest::SHA256)?);
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, digest.clone());
        Ok(digest)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = tool::remove(&self.work);
    }
}

impl Key {
    /// `places` are paths of this run alone, with names that stand for them.
    pub fn new(mut places: Vec<(String, &'static str)>) -> Key {
        // A path may begin with another one.
        places.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(FORM.as_bytes());
        Key { context, places }
    }

    /// Adds a text by the name of what it is.
    pub fn add(&mut self, what: &str, text: &str) {
        let mut text = text.to_owned();
        for (path, name) in &self.places {
            if text.contains(path.as_str()) {
                text = text.replace(path.as_str(), name);
            }
        }
        self.context.update(format!("\n{what} {} ", text.len()).as_bytes());
        self.context.update(text.as_bytes());
    }

    /// Adds a value in which Files and Directories stand for their names alone: what is in them is added by
    /// [`Key::plan`].
    pub fn value(&mut self, what: &str, value: &Value) {
        let text = without_locations(value).spaced_json();
        self.add(what, &text);
    }

    /// Adds what lies where.
    pub fn plan(&mut self, cache: &Cache, plan: &Plan) -> Result<(), String> {
        let mut lines = Vec::with_capacity(plan.items.len());
        for item in &plan.items {
            let content = match &item.content {
                Content::Shared(path) => format!("shared {}", cache.digest(path)?),
                Content::Copy(path) | Content::Own(path) => format!("copy {}", cache.digest(path)?),
                Content::Text(text) => format!("text {text:?}"),
                Content::Folder => "folder".into(),
            };
            lines.push(format!("{} {content}", item.inside.display()));
        }
        lines.sort();
        for line in lines {
            self.add("item", &line);
        }
        Ok(())
    }

    /// Adds what is made of the tool's files afterwards.
    pub fn outputs(&mut self, outputs: &[Output]) {
        let field = |field: &Field| match field {
            Field::Fixed(value) => value.spaced_json(),
            Field::Text(text) => format!("= {}", text.source),
        };
        let binding = |binding: &OutputBinding| {
            let globs: Vec<&str> = binding.glob.iter().map(|g| &*g.source).collect();
            let eval = binding.output_eval.as_ref().map(|e| &*e.source);
            format!(
                "{globs:?} {} {} {:?} {eval:?}",
                binding.literal, binding.load_contents, binding.load_listing
            )
        };
        for output in outputs {
            self.add("output", &format!("{} {}", output.name, output.kind));
            self.add("record", &crate::type_system::bindings_of(&output.kind, &binding));
            self.add("binding", &output.binding.as_ref().map(binding).unwrap_or_default());
            for one in &output.secondary_files {
                self.add(
                    "secondary",
                    &format!("{} {:?}", one.pattern.source, one.required.as_ref().map(field)),
                );
            }
            self.add("format", &output.format.as_ref().map(field).unwrap_or_default());
        }
    }

    pub fn finish(self) -> String {
        hex(self.context.finish().as_ref())
    }
}

fn without_locations(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::array(items.iter().map(without_locations).collect()),
        Value::Map(map) => {
            let of_file = value.is_file() || value.is_directory();
            let kept = map.iter().filter(|(key, _)| !(of_file && matches!(*key, "location" | "checksum")));
            Value::map(kept.map(|(key, item)| (key.to_owned(), without_locations(item))).collect::<Map>())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cache: &Cache, key: &str, text: &str) -> Value {
        let begun = cache.begin().unwrap();
        std::fs::create_dir(begun.join("out")).unwrap();
        std::fs::write(begun.join("out/f"), text).unwrap();
        let object = crate::outputs::with_checksums(&files::file_object(&begun.join("out/f"))).unwrap();
        cache.keep(key, &begun, &object).unwrap()
    }

    #[test]
    fn entries_are_found_again_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        assert_eq!(cache.find("k"), None);
        let kept = entry(&cache, "k", "text");
        assert_eq!(cache.find("k"), Some(kept.clone()));
        assert!(files::local_path(&kept).unwrap().starts_with(folder.path().join("k/out")));
        // Made by two at once: the first stays.
        entry(&cache, "k", "text");
        assert_eq!(cache.find("k"), Some(kept.clone()));
        for torn in ["longer text", "tex\0"] {
            std::fs::write(files::local_path(&kept).unwrap(), torn).unwrap();
            assert_eq!(cache.find("k"), None);
            entry(&cache, "k", "text");
            assert!(cache.find("k").is_some());
        }
    }

    #[test]
    fn what_a_dead_run_left_is_removed_and_what_a_living_one_has_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let living = Cache::open(folder.path()).unwrap();
        let begun = living.begin().unwrap();
        let dead = folder.path().join("runs/dead");
        std::fs::create_dir_all(dead.join("0/out")).unwrap();
        std::fs::write(dead.join("lock"), "").unwrap();
        let _other = Cache::open(folder.path()).unwrap();
        assert!(begun.exists());
        assert!(!dead.exists());
    }

    #[test]
    fn keys_depend_on_what_is_seen_and_not_on_where_the_run_is() {
        let key = |place: &str, text: &str| {
            let mut key = Key::new(vec![(place.to_owned(), "OUT")]);
            key.add("argv", text);
            key.finish()
        };
        assert_eq!(key("/tmp/1.out", "cp x /tmp/1.out/y"), key("/tmp/2.out", "cp x /tmp/2.out/y"));
        assert_ne!(key("/tmp/1.out", "cp x"), key("/tmp/1.out", "cp y"));
    }
}
