//! What the store's tests share: a store of one's own, archives from lines of code, trees as text.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use isles_spec::image::{Descriptor, ImageConfig, media_type};
use isles_spec::{Algorithm, Digest, Platform, Quiet};
use isles_store::tar::{Entry, Kind, Writer};
use isles_store::{CommittedLayer, Image, Lease, Ownership, Store};

/// The ordinary user that tests become when root runs them; no such user need exist.
pub const USER: u32 = 4242;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn ownership() -> Ownership {
    if is_root() { Ownership::Root } else { Ownership::Single }
}

/// A store in a folder that goes away.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Home {
    pub fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), ownership()).unwrap();
        Home { dir, store }
    }

    pub fn lease(&self) -> Lease {
        self.store.lease().unwrap()
    }

    /// Unpacks an archive and gives its tree as text.
    pub fn unpack(&self, tar: &[u8]) -> Result<String, isles_store::Error> {
        let layer = self.store.layer_from_tar(&self.lease(), &mut &tar[..])?;
        Ok(tree(&self.store.layer_path(&layer.diff_id)?))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Trees with modes that stop an ordinary user stop tempfile too.
        open_up(self.dir.path());
    }
}

pub fn open_up(path: &Path) {
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
            todo.extend(fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
}

/// Runs every test of this program again as an ordinary user. Call it from a test named `ordinary_user`.
pub fn again_as_ordinary_user() {
    use std::os::unix::process::CommandExt;
    if !is_root() {
        println!("skip: this is an ordinary user already");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).unwrap();
    let output = std::process::Command::new(&program)
        .args(["--skip", "ordinary_user"])
        .uid(USER)
        .gid(USER)
        .current_dir(&home)
        .env_clear()
        .env("TMPDIR", &home)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "as uid {USER}:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("running 0 tests"), "{text}");
}

/// An archive, entry by entry.
pub struct Tar(pub Writer<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(Writer::new(Vec::new()))
    }

    pub fn entry(mut self, entry: Entry, data: &[u8]) -> Tar {
        let entry = Entry { size: if entry.size == 0 { data.len() as u64 } else { entry.size }, ..entry };
        self.0.begin(&entry).unwrap();
        self.0.data(data).unwrap();
        self
    }

    pub fn file(self, path: &str, data: &str) -> Tar {
        self.entry(entry(path, Kind::File, 0o644), data.as_bytes())
    }

    pub fn mode(self, path: &str, mode: u32, data: &str) -> Tar {
        self.entry(entry(path, Kind::File, mode), data.as_bytes())
    }

    pub fn dir(self, path: &str, mode: u32) -> Tar {
        self.entry(entry(path, Kind::Dir, mode), b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(Entry { link: target.into(), ..entry(path, Kind::Symlink, 0o777) }, b"")
    }

    pub fn hardlink(self, path: &str, target: &str) -> Tar {
        self.entry(Entry { link: target.into(), ..entry(path, Kind::Hardlink, 0o644) }, b"")
    }

    pub fn done(self) -> Vec<u8> {
        self.0.finish().unwrap()
    }
}

pub fn entry(path: &str, kind: Kind, mode: u32) -> Entry {
    Entry { path: path.into(), kind, mode, mtime: (1_600_000_000, 0), ..Entry::default() }
}

/// A tree as sorted lines: path, kind, mode, and content or target. Owners that are not the caller's, times
/// that are not those of [`entry`] and attributes are not shown; markers are.
pub fn tree(root: &Path) -> String {
    let mut lines = BTreeMap::new();
    walk(root, "", &mut lines);
    lines.into_iter().map(|(path, what)| format!("{path} {what}\n")).collect()
}

fn walk(dir: &Path, prefix: &str, lines: &mut BTreeMap<String, String>) {
    let mode = fs::metadata(dir).unwrap().permissions();
    if !is_root() && mode.mode() & 0o500 != 0o500 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    for item in fs::read_dir(dir).unwrap() {
        let item = item.unwrap();
        let name = item.file_name();
        let path = format!("{prefix}{}", name.to_string_lossy());
        let meta = fs::symlink_metadata(item.path()).unwrap();
        let mode = meta.mode() & 0o7777;
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            let opaque = is_opaque(&item.path());
            format!("dir {mode:o}{}", if opaque { " opaque" } else { "" })
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(item.path()).unwrap().display())
        } else if kind.is_char_device() && meta.rdev() == 0 {
            "deleted".to_owned()
        } else if kind.is_char_device() {
            format!("char {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
        } else if kind.is_fifo() {
            format!("fifo {mode:o}")
        } else {
            let text = fs::read(item.path()).unwrap_or_else(|_| b"?".to_vec());
            let text = if text.len() > 40 {
                format!("{} bytes", text.len())
            } else {
                String::from_utf8_lossy(&text).into_owned()
            };
            format!("{mode:o} {text}")
        };
        lines.insert(path.clone(), what);
        if kind.is_dir() {
            walk(&item.path(), &format!("{path}/"), lines);
        }
    }
}

pub fn is_opaque(path: &Path) -> bool {
    let name = if is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    let mut value = [0u8; 8];
    matches!(rustix::fs::lgetxattr(path, name, &mut value[..]), Ok(1) if value[0] == b'y')
}

pub fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_bytes(Algorithm::Sha256, &sha2::Sha256::digest(bytes))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub fn descriptor(blob: &[u8]) -> Descriptor {
    Descriptor::new(media_type::OCI_LAYER_GZIP, sha256(blob), blob.len() as u64)
}

/// Ingests a blob from memory.
pub fn ingest(
    store: &Store,
    lease: &Lease,
    blob: &[u8],
    diff_id: &Digest,
) -> Result<isles_store::Ingested, isles_store::Error> {
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> { Ok(Box::new(&blob[offset as usize..])) };
    store.ingest_layer(lease, &descriptor(blob), diff_id, &mut open, &Quiet)
}

/// An image of layers that the store made.
pub fn image(store: &Store, lease: &Lease, layers: &[CommittedLayer], names: &[&str], mark: &str) -> Image {
    let mut config = ImageConfig::empty(&Platform::host());
    config.rootfs.diff_ids = layers.iter().map(|l| l.diff_id.clone()).collect();
    config.created = Some(mark.to_owned());
    let blobs: Vec<Descriptor> = layers.iter().map(|l| l.blob.clone()).collect();
    let refs: Vec<_> = names.iter().map(|n| n.parse().unwrap()).collect();
    store.assemble(lease, &config, &blobs, &refs).unwrap()
}

/// A layer of one file.
pub fn small_layer(store: &Store, lease: &Lease, path: &str, content: &str) -> CommittedLayer {
    store.layer_from_tar(lease, &mut &Tar::new().file(path, content).done()[..]).unwrap()
}
