//! Where a tool sees its files: a plan of places, made before anything is put there.
//!
//! A File and its secondary files share a folder of their own. Paths *inside* are those that the tool sees; without a
//! container they are the host's own.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::files;
use crate::value::{Map, Value};

/// What stands at a place.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A file or folder of this machine, not to be changed.
    Shared(PathBuf),
    /// A copy of it, which may be changed.
    Copy(PathBuf),
    /// Itself, and changes are meant to stay (InplaceUpdateRequirement).
    Own(PathBuf),
    /// A text.
    Text(String),
    /// An empty folder.
    Folder,
}

/// One place.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// As the tool sees it.
    pub inside: PathBuf,
    pub content: Content,
}

/// Places of a tool's files.
#[derive(Debug, Default)]
pub struct Plan {
    pub items: Vec<Item>,
    /// Folder of inputs, inside.
    base: PathBuf,
    next: usize,
    /// By location, for entries of the working folder that are inputs.
    places: HashMap<String, PathBuf>,
}

impl Plan {
    pub fn new(base: &Path) -> Plan {
        Plan { base: base.to_owned(), ..Plan::default() }
    }

    /// The value with a `path` for each File and Directory, all of which are put into the plan.
    pub fn inputs(&mut self, value: &Value) -> Result<Value, String> {
        files::map_each(value, &mut |object| {
            let folder = self.base.join(self.next.to_string());
            self.next += 1;
            self.place(object, &folder, false)
        })
    }

    fn place(&mut self, object: &Value, folder: &Path, below_shared: bool) -> Result<Value, String> {
        let mut map = object.as_map().cloned().unwrap_or_default();
        let basename = object.text("basename").unwrap_or_default().to_owned();
        files::check_basename(&basename)?;
        let inside = folder.join(&basename);
        let host = files::local_path(object);
        if let Some(location) = object.text("location") {
            self.places.entry(location.to_owned()).or_insert_with(|| inside.clone());
        }
        // What is below a shared folder under its own name is there already.
        if !below_shared {
            let content = match (&host, object.is_file()) {
                (Some(host), _) => Content::Shared(host.clone()),
                (None, true) => Content::Text(object.text("contents").unwrap_or_default().to_owned()),
                (None, false) => Content::Folder,
            };
            self.items.push(Item { inside: inside.clone(), content });
        }
        map.insert("path", text_of(&inside)?.into());
        if object.is_file() {
            map.insert("dirname", text_of(folder)?.into());
        }
        if let Some(Value::Array(list)) = map.get("secondaryFiles").cloned() {
            let placed: Vec<Value> =
                list.iter().map(|one| self.place(one, folder, false)).collect::<Result<_, String>>()?;
            map.insert("secondaryFiles", Value::array(placed));
        }
        if let Some(Value::Array(list)) = map.get("listing").cloned() {
            let mut placed = Vec::with_capacity(list.len());
            for one in list.iter() {
                let own = match (&host, files::local_path(one)) {
                    (Some(folder), Some(path)) => {
                        path.parent() == Some(folder)
                            && path.file_name().and_then(|n| n.to_str()) == one.text("basename")
                    }
                    _ => false,
                };
                placed.push(self.place(one, &inside, own)?);
            }
            map.insert("listing", Value::array(placed));
        }
        Ok(Value::map(map))
    }

    /// Puts a File or Directory at a place of the working folder, and gives it as it is seen there.
    pub fn put(
        &mut self,
        object: &Value,
        inside: &Path,
        writable: bool,
        in_place: bool,
    ) -> Result<(), String> {
        let host = files::local_path(object);
        if let Some(location) = object.text("location") {
            self.places.insert(location.to_owned(), inside.to_owned());
        }
        let content = match (&host, object.is_file()) {
            (Some(host), _) if writable && in_place => Content::Own(host.clone()),
            (Some(host), _) if writable => Content::Copy(host.clone()),
            (Some(host), _) => Content::Shared(host.clone()),
            (None, true) => Content::Text(object.text("contents").unwrap_or_default().to_owned()),
            (None, false) => Content::Folder,
        };
        self.add(inside, content)?;
        let folder = inside.parent().unwrap_or(Path::new("/")).to_owned();
        for one in object.get("secondaryFiles").and_then(Value::as_array).unwrap_or_default() {
            let name = one.text("basename").unwrap_or_default();
            files::check_basename(name)?;
            self.put(one, &folder.join(name), writable, in_place)?;
        }
        if host.is_none() {
            for one in object.get("listing").and_then(Value::as_array).unwrap_or_default() {
                let name = one.text("basename").unwrap_or_default();
                files::check_basename(name)?;
                self.put(one, &inside.join(name), writable, in_place)?;
            }
        }
        Ok(())
    }

    /// Puts something at a place. Two things at one place are refused, unless they are the same.
    pub fn add(&mut self, inside: &Path, content: Content) -> Result<(), String> {
        if let Some(item) = self.items.iter().find(|item| item.inside == inside) {
            if item.content == content {
                return Ok(());
            }
            return Err(format!("two entries want to be {}", inside.display()));
        }
        self.items.push(Item { inside: inside.to_owned(), content });
        Ok(())
    }

    /// The value with the paths that its Files and Directories have by now.
    pub fn renamed(&self, value: &Value) -> Result<Value, String> {
        files::map_each(value, &mut |object| self.renamed_object(object))
    }

    fn renamed_object(&self, object: &Value) -> Result<Value, String> {
        let mut map = object.as_map().cloned().unwrap_or_default();
        let place = object.text("location").and_then(|l| self.places.get(l));
        if let Some(place) = place
            && object.text("path").is_some_and(|path| Path::new(path) != place)
        {
            self.rename(&mut map, place)?;
        }
        for key in ["secondaryFiles", "listing"] {
            if let Some(Value::Array(list)) = map.get(key).cloned() {
                let inner: Vec<Value> =
                    list.iter().map(|one| self.renamed_object(one)).collect::<Result<_, _>>()?;
                map.insert(key, Value::array(inner));
            }
        }
        Ok(Value::map(map))
    }

    fn rename(&self, map: &mut Map, place: &Path) -> Result<(), String> {
        let name = place.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        map.insert("path", text_of(place)?.into());
        map.insert("basename", name.as_str().into());
        if map.get("class").and_then(Value::as_str) == Some("File") {
            let folder = place.parent().unwrap_or(Path::new("/"));
            map.insert("dirname", text_of(folder)?.into());
            let (root, extension) = files::split_extension(&name);
            map.insert("nameroot", root.into());
            map.insert("nameext", extension.into());
        }
        Ok(())
    }
}

fn text_of(path: &Path) -> Result<String, String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("the path {} is no UTF-8", path.display())),
    }
}

/// Two views of the same files: where a path inside is on the host.
#[derive(Debug, Default, Clone)]
pub struct Views {
    /// The deepest first.
    pairs: Vec<(PathBuf, PathBuf)>,
}

impl Views {
    pub fn add(&mut self, inside: &Path, host: &Path) {
        let depth = inside.components().count();
        let at =
            self.pairs.iter().position(|(p, _)| p.components().count() <= depth).unwrap_or(self.pairs.len());
        self.pairs.insert(at, (inside.to_owned(), host.to_owned()));
    }

    /// Where a path inside is on the host, if it is below anything that the tool was given. No link is followed.
    pub fn host_of(&self, inside: &Path) -> Option<PathBuf> {
        self.pairs.iter().find_map(|(from, to)| {
            let rest = inside.strip_prefix(from).ok()?;
            Some(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) })
        })
    }

    /// Follows a path inside to what it stands for on the host, link by link, as the tool itself would.
    ///
    /// # Errors
    /// A link that leads to nothing the tool was given, or nowhere, or in circles.
    pub fn follow(&self, inside: &Path) -> Result<PathBuf, String> {
        let mut hops = 0;
        let mut done = PathBuf::from("/");
        let mut open: Vec<PathBuf> = parts(inside);
        open.reverse();
        while let Some(part) = open.pop() {
            if part.as_os_str() == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            // Above what the tool was given there are no links of its own.
            let Some(host) = self.host_of(&next) else {
                done = next;
                continue;
            };
            // A staged place may itself stand for a file that the host reaches through links of its own.
            let staged = self.pairs.iter().any(|(from, to)| *from == next && *to != next);
            let link = if staged { None } else { std::fs::read_link(&host).ok() };
            match link {
                Some(target) => {
                    hops += 1;
                    if hops > 40 {
                        return Err(format!("{} leads in circles", inside.display()));
                    }
                    let absolute = target.is_absolute();
                    let mut more = parts(&target);
                    more.reverse();
                    open.extend(more);
                    if absolute {
                        done = PathBuf::from("/");
                    }
                }
                None => done = next,
            }
        }
        match self.host_of(&done) {
            Some(host) if host.symlink_metadata().is_ok() => Ok(host),
            Some(_) => Err(format!("{} leads to {}, which is not there", inside.display(), done.display())),
            None => Err(format!(
                "{} leads out of the folders of the tool, to {}",
                inside.display(),
                done.display()
            )),
        }
    }
}

fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            _ => None,
        })
        .collect()
}

/// Makes a place on the host: a link to what is shared, a copy, a text, a folder.
pub fn make(host: &Path, content: &Content) -> Result<(), String> {
    let fail = |what: &str, e: std::io::Error| format!("cannot {what} {}: {e}", host.display());
    if let Some(folder) = host.parent() {
        std::fs::create_dir_all(folder).map_err(|e| fail("make the folder of", e))?;
    }
    match content {
        Content::Shared(source) | Content::Own(source) => {
            std::os::unix::fs::symlink(source, host).map_err(|e| fail("make the link", e))
        }
        Content::Copy(source) => copy(source, host),
        Content::Text(text) => std::fs::write(host, text).map_err(|e| fail("write", e)),
        Content::Folder => std::fs::create_dir_all(host).map_err(|e| fail("make the folder", e)),
    }
}

/// Copies a file or a folder with all that is in it; blocks are shared where the file system can. Links stay links.
/// What is copied may be written by its owner.
pub fn copy(source: &Path, target: &Path) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("cannot copy {} to {}: {e}", source.display(), target.display());
    let kind = std::fs::metadata(source).map_err(fail)?;
    if kind.is_dir() {
        std::fs::create_dir_all(target).map_err(fail)?;
        for entry in std::fs::read_dir(source).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let to = target.join(entry.file_name());
            let inner = entry.file_type().map_err(fail)?;
            if inner.is_symlink() {
                let link = std::fs::read_link(entry.path()).map_err(fail)?;
                // A link that leads out of the folder would lead elsewhere from its new place.
                if link.is_relative() && entry.path().exists() {
                    std::os::unix::fs::symlink(link, to).map_err(fail)?;
                } else if entry.path().exists() {
                    copy(&entry.path(), &to)?;
                }
            } else if inner.is_dir() || inner.is_file() {
                copy(&entry.path(), &to)?;
            }
        }
        return Ok(());
    }
    if !kind.is_file() {
        return Err(format!("{} is neither a file nor a folder", source.display()));
    }
    copy_file(source, target).map_err(fail)?;
    let mode = kind.permissions().mode() | 0o600;
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(mode & 0o7777)).map_err(fail)
}

fn copy_file(source: &Path, target: &Path) -> std::io::Result<()> {
    use std::os::fd::AsFd;
    let from = std::fs::File::open(source)?;
    let to = std::fs::File::create(target)?;
    if rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).is_ok() {
        return Ok(());
    }
    // Falls back from copy_file_range(2) to sendfile and to reads by itself.
    std::io::copy(&mut &from, &mut &to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(location: &str, more: &[(&str, Value)]) -> Value {
        let mut map: Map =
            [("class", Value::from("File")), ("location", location.into())].into_iter().collect();
        for (key, value) in more {
            map.insert(*key, value.clone());
        }
        files::normalized(&Value::map(map)).unwrap()
    }

    #[test]
    fn a_file_and_its_secondary_files_share_a_folder() {
        let index = file("file:///other/a.bai", &[]);
        let bam = file("file:///data/a.bam", &[("secondaryFiles", Value::array(vec![index]))]);
        let mut plan = Plan::new(Path::new("/in"));
        let placed = plan.inputs(&Value::array(vec![bam, file("file:///data2/a.bam", &[])])).unwrap();
        let items = placed.as_array().unwrap();
        assert_eq!(items[0].text("path"), Some("/in/0/a.bam"));
        assert_eq!(items[1].text("path"), Some("/in/1/a.bam"));
        let second = &items[0].get("secondaryFiles").unwrap().as_array().unwrap()[0];
        assert_eq!(second.text("path"), Some("/in/0/a.bai"));
        assert_eq!(plan.items.len(), 3);
    }

    #[test]
    fn what_is_renamed_in_the_working_folder_is_found_there() {
        let mut plan = Plan::new(Path::new("/in"));
        let one = file("file:///data/a.txt", &[]);
        let placed = plan.inputs(&one).unwrap();
        plan.put(&one, Path::new("/out/b.md"), true, false).unwrap();
        let renamed = plan.renamed(&placed).unwrap();
        assert_eq!(renamed.text("path"), Some("/out/b.md"));
        assert_eq!(renamed.text("nameext"), Some(".md"));
        assert!(plan.put(&file("file:///x", &[]), Path::new("/out/b.md"), false, false).is_err());
    }

    #[test]
    fn links_are_followed_as_the_tool_would_and_never_out() {
        let folder = tempfile::tempdir().unwrap();
        let (out, data) = (folder.path().join("out"), folder.path().join("data"));
        std::fs::create_dir_all(out.join("sub")).unwrap();
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("x"), "").unwrap();
        std::fs::write(out.join("real"), "").unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, out.join(name)).unwrap();
        link("/in/0/x", "input");
        link("real", "own");
        link("/work/sub/../real", "absolute");
        link("/etc/passwd", "out");
        link("../../../../../etc/passwd", "up");
        link("loop", "loop");
        link("nowhere", "nowhere");
        let mut views = Views::default();
        views.add(Path::new("/work"), &out);
        views.add(Path::new("/in/0/x"), &data.join("x"));
        let follow = |name: &str| views.follow(&Path::new("/work").join(name));
        assert_eq!(follow("input").unwrap(), data.join("x"));
        assert_eq!(follow("own").unwrap(), out.join("real"));
        assert_eq!(follow("absolute").unwrap(), out.join("real"));
        for name in ["out", "up", "loop", "nowhere"] {
            assert!(follow(name).is_err(), "{name}");
        }
    }
}
