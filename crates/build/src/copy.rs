//! Puts chosen files into a new layer, with the rules of Docker's COPY or of cp(1).
//!
//! COPY: a directory's content is merged into the destination, which keeps its own mode and owner; directories
//! below take those of the source. A file goes to the destination, or into it where that is a directory. Links
//! on the way to the destination are followed inside the image; a link at the place of a file is replaced.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use isles_store::{FileKind, Merged, Ownership};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::archive::{Packed, is_archive, unpack};
use crate::chmod::Chmod;
use crate::error::{Error, Result};
use crate::select::{Item, Selection};
use crate::tree::{Meta, Tree, Xattrs};
use crate::upper::{Access, Upper};

/// A user and a group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Where chosen files go, and as what.
#[derive(Debug, Clone)]
pub struct Placement {
    /// As written, made absolute. A slash at the end means a directory.
    pub destination: String,
    /// The destination must be a directory, because several files go there.
    pub several: bool,
    pub owner: Option<Owner>,
    pub chmod: Option<Chmod>,
    /// Keep the way to each file (`--parents`).
    pub parents: bool,
    /// As cp(1) does: a directory goes into a directory that exists, not its content.
    pub like_cp: bool,
    /// Archives are unpacked (ADD).
    pub unpack: bool,
    pub ownership: Ownership,
}

/// A file whose content stands in the recipe.
#[derive(Debug, Clone)]
pub struct Inline {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// A file that was fetched from a URL.
pub struct Download<'d> {
    pub url: &'d str,
    /// What it is called in a directory.
    pub name: &'d str,
    /// Seconds since 1970.
    pub mtime: i64,
    pub open: &'d dyn Fn() -> Result<File>,
}

impl Placement {
    /// Files as they are, one by one, below a place that is made where it is not there.
    pub fn plain(destination: impl Into<String>, ownership: Ownership) -> Placement {
        Placement {
            destination: destination.into(),
            several: false,
            owner: None,
            chmod: None,
            parents: false,
            like_cp: false,
            unpack: false,
            ownership,
        }
    }

    pub(crate) fn access(&self, meta: &Meta) -> Access {
        let directory = meta.kind == FileKind::Dir;
        Access {
            mode: self.chmod.as_ref().map_or(meta.mode, |c| c.apply(meta.mode, directory)),
            uid: self.owner.map_or(meta.uid, |o| o.uid),
            gid: self.owner.map_or(meta.gid, |o| o.gid),
        }
    }

    /// Of directories that are made because something goes into them. As in BuildKit a mode in figures is theirs,
    /// too.
    pub(crate) fn new_directory(&self) -> Access {
        let owner = self.owner.unwrap_or(Owner { uid: 0, gid: 0 });
        let mode = match self.chmod {
            Some(Chmod::Octal(mode)) => mode,
            _ => 0o755,
        };
        Access { mode, uid: owner.uid, gid: owner.gid }
    }

    fn wants_directory(&self) -> bool {
        self.several
            || self.destination.ends_with('/')
            || self.destination.ends_with("/.")
            || self.destination == "."
    }
}

/// Copies what was chosen from `tree`.
pub fn copy(upper: &mut Upper<'_>, tree: &Tree, selections: &[Selection], to: &Placement) -> Result<()> {
    // Where a wildcard fits nothing, nothing is made.
    if selections.is_empty() && !to.parents {
        return Ok(());
    }
    let destination = upper.resolve(Path::new(&to.destination))?;
    if let Some(newest) = selections.iter().flat_map(|s| &s.items).map(|item| item.meta.mtime).max() {
        upper.set_new_mtime(newest);
    }
    let before = upper.kind(&destination)?;
    let into = to.wants_directory() || before == Some(FileKind::Dir);
    let one_place = || -> Error {
        isles_spec::Error::new(format!("several files cannot all become '{}'", to.destination))
            .with_hint(format!("write {}/, with a slash at the end", to.destination))
            .into()
    };
    if into || to.parents {
        upper.directory(&destination, to.new_directory())?;
    } else if selections.len() > 1 && to.like_cp {
        return Err(one_place());
    }
    let mut taken = false;
    for selection in selections {
        let Some(first) = selection.items.first() else { continue };
        if to.parents {
            let target = parents(upper, tree, selection, &destination, to)?;
            copy_all(upper, tree, selection, &target, to, false)?;
        } else if selection.directory {
            let target =
                if to.like_cp && into { destination.join(&selection.name) } else { destination.clone() };
            let merge = !to.like_cp;
            if merge {
                upper.directory(&target, to.new_directory())?;
                // As in BuildKit it is as old as its source; but that of a checkout's top says nothing.
                if !first.source.as_os_str().is_empty() {
                    upper.set_mtime(&target, first.meta.mtime);
                }
            }
            copy_all(upper, tree, selection, &target, to, merge)?;
        } else {
            let packed =
                Packed { place: &tree.place(&first.source), open: &|| tree.open_file(&first.source) };
            if to.unpack && unpacked(upper, &packed, &destination, to)? {
                continue;
            }
            // Directories and archives that came before have made a directory of the destination.
            let into = into || upper.kind(&destination)? == Some(FileKind::Dir);
            if !into && to.like_cp && std::mem::replace(&mut taken, true) {
                return Err(one_place());
            }
            let target = if into { destination.join(&selection.name) } else { destination.clone() };
            one(upper, tree, first, &target, to)?;
        }
    }
    Ok(())
}

/// Unpacks a file if it is an archive.
fn unpacked(upper: &mut Upper<'_>, packed: &Packed<'_>, destination: &Path, to: &Placement) -> Result<bool> {
    if !is_archive(packed)? {
        return Ok(false);
    }
    upper.directory(destination, Access { mode: 0o755, ..to.new_directory() })?;
    unpack(upper, packed, destination, to)?;
    Ok(true)
}

/// Copies a file that was downloaded, which has no owner or mode of its own.
pub fn copy_download(upper: &mut Upper<'_>, file: &Download<'_>, to: &Placement) -> Result<()> {
    let destination = upper.resolve(Path::new(&to.destination))?;
    let packed = Packed { place: Path::new(file.url), open: file.open };
    if to.unpack && unpacked(upper, &packed, &destination, to)? {
        return Ok(());
    }
    let into = to.wants_directory() || upper.kind(&destination)? == Some(FileKind::Dir);
    let target = if into { destination.join(file.name) } else { destination };
    let mode = to.chmod.as_ref().map_or(0o600, |c| c.apply(0o600, false));
    upper.ensure_parents(&target, to.new_directory())?;
    refuse_whiteout(&target)?;
    let mut source = (file.open)()?;
    let access = Access { mode, ..to.new_directory() };
    upper.file(&target, access, &Xattrs::new(), (file.mtime, 0), &mut |to| {
        io::copy(&mut source, to).map(drop).map_err(Error::io("copy", file.url))
    })
}

/// Copies files that stand in the recipe.
pub fn copy_inline(upper: &mut Upper<'_>, files: &[Inline], to: &Placement, mtime: i64) -> Result<()> {
    let destination = upper.resolve(Path::new(&to.destination))?;
    let into = to.wants_directory() || upper.kind(&destination)? == Some(FileKind::Dir);
    for file in files {
        let target = if into { destination.join(&file.name) } else { destination.clone() };
        let plain = Access { mode: 0o644, ..to.new_directory() };
        let mode = to.chmod.as_ref().map_or(plain.mode, |c| c.apply(plain.mode, false));
        upper.ensure_parents(&target, to.new_directory())?;
        upper.bytes(&target, Access { mode, ..plain }, (mtime, 0), &file.bytes)?;
    }
    Ok(())
}

/// Makes the directories on the way to a file as they are in the source; says where the file goes.
fn parents(
    upper: &mut Upper<'_>,
    tree: &Tree,
    selection: &Selection,
    destination: &Path,
    to: &Placement,
) -> Result<PathBuf> {
    let Some(first) = selection.items.first() else { return Ok(destination.to_owned()) };
    let mut target = destination.to_owned();
    upper.directory(&target, to.new_directory())?;
    let way: Vec<_> = selection.way.iter().collect();
    // The way ends where the source does, unless links led there.
    let mut source = first.source.clone();
    let mut sources = Vec::new();
    for _ in 1..way.len() {
        source.pop();
        sources.push(source.clone());
    }
    sources.reverse();
    for (name, source) in way.iter().take(way.len().saturating_sub(1)).zip(sources) {
        target.push(name);
        match tree.lstat(&source)?.filter(|m| m.kind == FileKind::Dir) {
            Some(meta) => {
                upper.copied_directory(&target, to.access(&meta), &tree.xattrs(&source)?, meta.mtime)?
            }
            None => drop(upper.directory(&target, to.new_directory())?),
        }
    }
    if let Some(last) = way.last() {
        target.push(last);
    }
    Ok(target)
}

fn copy_all(
    upper: &mut Upper<'_>,
    tree: &Tree,
    selection: &Selection,
    target: &Path,
    to: &Placement,
    merge: bool,
) -> Result<()> {
    for item in &selection.items {
        if merge && item.path.as_os_str().is_empty() {
            continue;
        }
        let target =
            if item.path.as_os_str().is_empty() { target.to_owned() } else { target.join(&item.path) };
        one(upper, tree, item, &target, to)?;
    }
    Ok(())
}

/// Copies one file or makes one directory.
fn one(upper: &mut Upper<'_>, tree: &Tree, item: &Item, target: &Path, to: &Placement) -> Result<()> {
    let meta = &item.meta;
    let access = to.access(meta);
    refuse_whiteout(target)?;
    upper.ensure_parents(target, to.new_directory())?;
    match meta.kind {
        FileKind::Dir => upper.copied_directory(target, access, &tree.xattrs(&item.source)?, meta.mtime),
        FileKind::Symlink => {
            let link = match &item.link {
                Some(link) => link.clone(),
                None => tree.readlink(&item.source)?,
            };
            upper.symlink(target, access, &link, meta.mtime)
        }
        FileKind::File => {
            if meta.links > 1 && upper.hard_link(meta.inode, target, to.new_directory())? {
                return Ok(());
            }
            let mut source = tree.open_file(&item.source)?;
            let place = tree.place(&item.source);
            let xattrs = tree.xattrs(&item.source)?;
            upper.file(target, access, &xattrs, meta.mtime, &mut |file| {
                copy_data(&mut source, file, meta.size).map_err(Error::io("copy", &place))?;
                unchanged(&source, meta, &place)
            })?;
            if meta.links > 1 {
                upper.remember_link(meta.inode, target);
            }
            Ok(())
        }
        FileKind::Fifo => upper.node(target, meta.kind, (0, 0), access, meta.mtime),
        FileKind::CharDevice | FileKind::BlockDevice => {
            if to.ownership != Ownership::Root || meta.device == (0, 0) {
                return Err(isles_spec::Error::new(format!(
                    "cannot copy the device '{}'",
                    tree.place(&item.source).display()
                ))
                .with_hint("only root can make devices; --exclude or .dockerignore leaves it out")
                .into());
            }
            upper.node(target, meta.kind, meta.device, access, meta.mtime)
        }
        FileKind::Socket => Ok(()),
    }
}

/// A name that layers give another meaning cannot be in one (image-spec, layer.md, "Whiteouts").
pub(crate) fn refuse_whiteout(path: &Path) -> Result<()> {
    if path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".wh.")) {
        return Err(isles_spec::Error::new(format!("'{}' cannot be in an image", path.display()))
            .with_hint("in layers a name that begins with .wh. means that a file was removed; rename it")
            .into());
    }
    Ok(())
}

/// The cache knows the file by what was read before, so it must still be that.
fn unchanged(source: &File, meta: &Meta, place: &Path) -> Result<()> {
    let raw = rustix::fs::fstat(source).map_err(Error::io("look at", place))?;
    let now = (raw.st_size as u64, (raw.st_mtime, raw.st_mtime_nsec as u32));
    if now == (meta.size, meta.mtime) {
        return Ok(());
    }
    Err(isles_spec::Error::new(format!("'{}' changed while it was copied", place.display()))
        .with_hint("build again when nothing writes to it")
        .into())
}

/// Copies a file's data; holes stay holes.
fn copy_data(source: &mut File, target: &mut File, size: u64) -> io::Result<()> {
    let stored = rustix::fs::fstat(&*source)?.st_blocks as u64 * 512;
    if stored >= size {
        return io::copy(source, target).map(drop);
    }
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&*source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => {
                io::Seek::rewind(source)?;
                return io::copy(source, target).map(drop);
            }
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(&*source, SeekFrom::Hole(start))?;
        rustix::fs::seek(&*source, SeekFrom::Start(start))?;
        rustix::fs::seek(&*target, SeekFrom::Start(start))?;
        io::copy(&mut (&mut *source).take(end - start), target)?;
        at = end;
    }
    target.flush()?;
    target.set_len(size)
}

/// Finds `USER[:GROUP]` in the files of an image. A user by number without a group gets the group of the same
/// number.
pub fn owner(spec: &str, view: &Merged) -> Result<Owner> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let passwd = || read(view, "/etc/passwd");
    let (uid, own_group) = match number(user) {
        Some(uid) => (uid, uid),
        None if user.is_empty() => (0, 0),
        None => line(&passwd()?, user)
            .map(|f| (f[0], f[1]))
            .or_else(|| (user == "root").then_some((0, 0)))
            .ok_or_else(|| no_such("user", user))?,
    };
    let gid = match group {
        None => own_group,
        Some(group) => match number(group) {
            Some(gid) => gid,
            None => line(&read(view, "/etc/group")?, group)
                .map(|f| f[0])
                .or_else(|| (group == "root").then_some(0))
                .ok_or_else(|| no_such("group", group))?,
        },
    };
    Ok(Owner { uid, gid })
}

fn no_such(kind: &str, name: &str) -> Error {
    isles_spec::Error::new(format!("the image has no {kind} '{name}'"))
        .with_hint("make it in an earlier RUN, or write a number")
        .into()
}

/// Whether an owner is written in numbers, and so the same in every image.
pub fn is_numeric(spec: &str) -> bool {
    spec.split(':').all(|part| number(part).is_some())
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// The numbers behind the password of the line that begins with a name (passwd(5), group(5)).
fn line(text: &str, name: &str) -> Option<[u32; 2]> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let first = fields.nth(1)?.parse().ok()?;
        Some([first, fields.next().and_then(|f| f.parse().ok()).unwrap_or(first)])
    })
}

fn read(view: &Merged, path: &str) -> Result<String> {
    const LIMIT: u64 = 4 << 20;
    let Ok(file) = view.open_file(Path::new(path)) else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
