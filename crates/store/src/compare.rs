//! A layer's tree beside the archive it came from.
//!
//! The archive is unpacked once more, without the data of its files, so that every rule of unpacking holds
//! here too; then both trees are walked side by side. What files hold is compared by fingerprint.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use isles_spec::Digest;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, readlinkat, statat};
use rustix::io::Errno;

use crate::content::{Contents, of_file};
use crate::decompress::Decoder;
use crate::error::At;
use crate::hash::Hashed;
use crate::merged::{Walkable, open_readable};
use crate::tar::display;
use crate::{Error, LayerInfo, Result, Store, xattr};

const BUFFER: usize = 256 << 10;
/// Differences that are named.
const NAMED: usize = 3;
/// As deep as trees are packed.
const DEPTH: usize = 400;

/// What a comparison found.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// The first few.
    pub differences: Vec<String>,
    pub count: u64,
    /// Bytes read, of the archive and of files.
    pub bytes: u64,
}

impl Compared {
    /// One line, or nothing where the trees are the same.
    pub(crate) fn summary(&self) -> Option<String> {
        let more = self.count - self.differences.len() as u64;
        match (self.count, more) {
            (0, _) => None,
            (_, 0) => Some(self.differences.join("; ")),
            _ => Some(format!("{}; and {more} more differences", self.differences.join("; "))),
        }
    }
}

impl Store {
    /// Compares an unpacked layer with the blob that holds its archive: everything about every entry, and the
    /// content of one file in `every` (none where it is zero).
    pub(crate) fn compare_layer(&self, info: &LayerInfo, blob: &Digest, every: u32) -> Result<Compared> {
        let work = self.scratch("compare")?;
        fs::DirBuilder::new().mode(0o700).create(&work).at("create", &work)?;
        let result = self.compare_in(&work, info, blob, every);
        let removed = crate::remove::tree(&work);
        let compared = result?;
        removed?;
        Ok(compared)
    }

    fn compare_in(&self, work: &Path, info: &LayerInfo, blob: &Digest, every: u32) -> Result<Compared> {
        let object = format!("layer {}", info.diff_id);
        let path = work.join("root");
        let root = crate::ingest::make_root(&path)?;
        let skeleton = rustix::io::fcntl_dupfd_cloexec(&root, 0).at("open", &path)?;
        let decoder = Decoder::new(BufReader::with_capacity(BUFFER, self.open_blob(blob)?))
            .map_err(|e| Error::Archive { object: object.clone(), reason: e.to_string() })?;
        let hashed = Hashed::new(decoder, info.diff_id.algorithm());
        let random = u32::from_str_radix(&crate::atomic::random_name()[..6], 16).unwrap_or(0);
        let (contents, mut rest) = crate::unpack::unpack_skeleton(
            BufReader::with_capacity(BUFFER, hashed),
            root,
            self.ownership,
            &self.limits,
            Contents::new(every, random),
        )
        .map_err(|e| e.of(&object))?;
        loop {
            let n = rest
                .fill_buf()
                .map_err(|e| Error::Archive { object: object.clone(), reason: e.to_string() })?
                .len();
            if n == 0 {
                break;
            }
            rest.consume(n);
        }
        let hashed = rest.into_inner();
        let mut comparison = Comparison {
            contents,
            moved: info.moved,
            out: Compared { bytes: hashed.bytes, ..Compared::default() },
        };
        let actual = hashed.hasher.finish();
        if actual != info.diff_id {
            comparison.differ(b"", format!("its archive has the content of {actual}"));
            return Ok(comparison.out);
        }
        let place = self.layer_dir(&info.diff_id).join("root");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let tree = rustix::fs::open(&place, flags, Mode::empty()).at("open", &place)?;
        let stats = [&tree, &skeleton].map(rustix::fs::fstat);
        if let [Ok(real), Ok(wanted)] = stats {
            comparison.attributes(&real, &wanted, b"");
        }
        comparison.xattrs(
            &crate::sys::proc_path(tree.as_fd()).into_bytes(),
            &crate::sys::proc_path(skeleton.as_fd()).into_bytes(),
            true,
            b"",
        );
        comparison.dirs(&tree, &skeleton, b"", 0);
        Ok(comparison.out)
    }
}

struct Comparison {
    contents: Contents,
    moved: bool,
    out: Compared,
}

impl Comparison {
    fn differ(&mut self, path: &[u8], what: impl std::fmt::Display) {
        self.out.count += 1;
        if self.out.differences.len() < NAMED {
            let text = if path.is_empty() { what.to_string() } else { format!("'{}' {what}", display(path)) };
            self.out.differences.push(text);
        }
    }

    fn dirs(&mut self, real: &OwnedFd, wanted: &OwnedFd, path: &[u8], depth: usize) {
        let (have, want) = match (names(real), names(wanted)) {
            (Ok(have), Ok(want)) => (have, want),
            (Err(e), _) | (_, Err(e)) => return self.unreadable(path, e),
        };
        for name in have.union(&want) {
            let child = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            match (have.contains(name), want.contains(name)) {
                (true, true) => self.entry(real, wanted, name, &child, depth),
                (false, _) => self.differ(&child, "is missing"),
                (_, false) => self.differ(&child, "does not belong here"),
            }
        }
    }

    fn entry(&mut self, real: &OwnedFd, wanted: &OwnedFd, name: &[u8], path: &[u8], depth: usize) {
        let stats = [real, wanted].map(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
        let (have, want) = match stats {
            [Ok(have), Ok(want)] => (have, want),
            [Err(e), _] | [_, Err(e)] => return self.unreadable(path, e),
        };
        let kinds = [&have, &want].map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kinds[0] != kinds[1] {
            return self.differ(path, "is of another kind");
        }
        if matches!(kinds[0], FileType::CharacterDevice | FileType::BlockDevice) {
            if have.st_rdev != want.st_rdev {
                return self.differ(path, "is another device");
            }
            if have.st_rdev == 0 {
                // A deletion has no attributes worth a look.
                return;
            }
        }
        self.attributes(&have, &want, path);
        let with_xattrs = matches!(kinds[0], FileType::RegularFile | FileType::Directory);
        if with_xattrs {
            let [real, wanted] = [real, wanted].map(|dir| crate::sys::proc_child(dir.as_fd(), name));
            self.xattrs(&real, &wanted, false, path);
        }
        match kinds[0] {
            FileType::Symlink => {
                let targets = [real, wanted].map(|dir| readlinkat(dir, name, Vec::new()));
                match targets {
                    [Ok(have), Ok(want)] if have == want => {}
                    [Err(e), _] | [_, Err(e)] => self.unreadable(path, e),
                    _ => self.differ(path, "points elsewhere"),
                }
            }
            FileType::Directory if depth < DEPTH => {
                let open = |dir, stat: &rustix::fs::Stat| Walkable::open(dir, name, stat.st_mode);
                match (open(real, &have), open(wanted, &want)) {
                    (Ok(have), Ok(want)) => self.dirs(&have.fd, &want.fd, path, depth + 1),
                    (Err(e), _) | (_, Err(e)) => self.unreadable(path, e),
                }
            }
            FileType::RegularFile => self.content(real, name, want.st_ino, path),
            _ => {}
        }
    }

    fn attributes(&mut self, have: &rustix::fs::Stat, want: &rustix::fs::Stat, path: &[u8]) {
        if have.st_mode != want.st_mode {
            let modes = [have, want].map(|stat| stat.st_mode & 0o7777);
            self.differ(path, format!("has the mode {:o}, not {:o}", modes[0], modes[1]));
        }
        if (have.st_uid, have.st_gid) != (want.st_uid, want.st_gid) {
            let [have, want] = [have, want].map(|stat| format!("{}:{}", stat.st_uid, stat.st_gid));
            self.differ(path, format!("belongs to {have}, not to {want}"));
        }
        let regular = FileType::from_raw_mode(want.st_mode) == FileType::RegularFile;
        if regular && have.st_size != want.st_size {
            self.differ(path, format!("has {} bytes, not {}", have.st_size, want.st_size));
        }
        if self.moved || path.is_empty() {
            return;
        }
        if (have.st_mtime, have.st_mtime_nsec) != (want.st_mtime, want.st_mtime_nsec) {
            self.differ(path, "has another time of change");
        }
        if regular && have.st_nlink != want.st_nlink {
            self.differ(path, format!("has {} names, not {}", have.st_nlink, want.st_nlink));
        }
    }

    fn xattrs(&mut self, real: &[u8], wanted: &[u8], follow: bool, path: &[u8]) {
        let kept = |place: &[u8]| -> rustix::io::Result<BTreeSet<(Vec<u8>, Vec<u8>)>> {
            // One call tells that there is none, which is so for almost every file.
            if !follow && matches!(rustix::fs::llistxattr_query(place), Ok(0)) {
                return Ok(BTreeSet::new());
            }
            let all = xattr::list(place, follow)?;
            Ok(all.into_iter().filter(|(name, value)| counts(name, value)).collect())
        };
        match (kept(real), kept(wanted)) {
            (Ok(have), Ok(want)) if have == want => {}
            // Overlay marks new directories as opaque where nothing is below them either way.
            (Ok(have), Ok(want))
                if self.moved && have.is_superset(&want) && have.difference(&want).all(is_opaque) => {}
            (Ok(have), Ok(want)) => {
                let name = have.symmetric_difference(&want).next().map(|(name, _)| display(name));
                self.differ(path, format!("has another attribute {}", name.unwrap_or_default()));
            }
            (Err(e), _) | (_, Err(e)) => self.unreadable(path, e),
        }
    }

    fn content(&mut self, dir: &OwnedFd, name: &[u8], inode: u64, path: &[u8]) {
        let Some(expected) = self.contents.expected(inode).copied() else { return };
        match open_readable(dir, name).and_then(of_file) {
            Ok((actual, bytes)) => {
                self.out.bytes += bytes;
                if actual != expected {
                    self.differ(path, "has other content");
                }
            }
            Err(e) => self.unreadable(path, e),
        }
    }

    fn unreadable(&mut self, path: &[u8], e: Errno) {
        self.differ(path, format!("cannot be read: {}", io::Error::from(e)));
    }
}

/// Whether an attribute belongs to the layer, rather than to overlay's bookkeeping.
fn counts(name: &[u8], value: &[u8]) -> bool {
    xattr::exported(name)
        || name == xattr::OWNER.as_bytes()
        || (name.ends_with(b".overlay.opaque") && value == b"y")
}

fn is_opaque((name, _): &(Vec<u8>, Vec<u8>)) -> bool {
    name.ends_with(b".overlay.opaque")
}

fn names(dir: &OwnedFd) -> rustix::io::Result<BTreeSet<Vec<u8>>> {
    let mut out = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            out.insert(name.to_vec());
        }
    }
    Ok(out)
}
