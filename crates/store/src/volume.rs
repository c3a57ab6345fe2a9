//! Volumes: folders with a name that containers share and that outlive them, `volumes/<name>/`.
//!
//! A volume appears by one rename, with its record and its folder; it goes by one rename. Who uses it is not written here:
//! the records of containers say so. Whoever makes a container that uses volumes holds `volumes/.lock` shared until its
//! record is written, and whoever removes a volume holds it alone, so that neither misses the other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isles_spec::VolumeSpec;
use isles_spec::volume::check_name;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::error::At;
use crate::layer::to_json;
use crate::pack::{Packing, pack_folder};
use crate::unpack::unpack;
use crate::{Error, Merged, Result, Store};

const RECORD: &str = "volume.json";
const RECORD_LIMIT: u64 = 1 << 20;
/// Docker's name for the folder with the files.
const DATA: &str = "_data";
/// There until the volume has been used for the first time.
const FRESH: &str = "fresh";
/// What an image has for the volume, complete and on its way into it.
const FILLING: &str = "filling";
const BUFFER: usize = 256 << 10;

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub name: String,
    /// Nanoseconds since 1970.
    pub created: u64,
    pub spec: VolumeSpec,
    /// Nobody chose the name; it goes with the containers that use it, when they are removed with their volumes.
    #[serde(default)]
    pub anonymous: bool,
    /// The container that takes it along in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_with: Option<String>,
}

/// A volume that is here.
#[derive(Debug, Clone)]
pub struct Volume {
    pub record: VolumeRecord,
    path: PathBuf,
}

impl Store {
    /// Keeps volumes from being removed (`alone`: from being used by further containers) until the file is dropped.
    pub fn lock_volumes(&self, alone: bool) -> Result<File> {
        let path = self.dir("volumes")?.join(".lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        let how = if alone { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
        flock(&file, how).at("lock", &path)?;
        Ok(file)
    }

    /// Makes a volume. One of that name that is here already is given back as it is, and `false`.
    pub fn create_volume(&self, record: &VolumeRecord) -> Result<(Volume, bool)> {
        check_name(&record.name).map_err(|e| Error::document("the volume", e))?;
        let folder = self.dir("volumes")?;
        let target = folder.join(&record.name);
        if target.exists() {
            return Ok((self.volume(&record.name)?, false));
        }
        let work = self.scratch("volume")?;
        let make = |path: &Path, mode: u32| fs::DirBuilder::new().mode(mode).create(path).at("create", path);
        let result = (|| {
            make(&work, 0o700)?;
            let data = work.join(DATA);
            make(&data, 0o755)?;
            // Whatever the umask says.
            fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).at("set the mode of", &data)?;
            crate::atomic::replace(&work.join(RECORD), &to_json(record)?)?;
            fs::write(work.join(FRESH), "").at("write", &work)?;
            match fs::rename(&work, &target) {
                Ok(()) => Ok(true),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    Ok(false)
                }
                Err(e) => Err(Error::io("create the volume", &target, e)),
            }
        })();
        if !matches!(result, Ok(true)) {
            let _ = crate::remove::tree(&work);
        }
        let made = result?;
        crate::atomic::sync_parent(&target).at("write", &target)?;
        Ok((self.volume(&record.name)?, made))
    }

    /// Finds a volume by its whole name.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let missing = || Error::NoVolume { name: name.to_owned() };
        check_name(name).map_err(|_| missing())?;
        let path = self.root.join("volumes").join(name);
        let file = path.join(RECORD);
        let text = match crate::atomic::read_bounded(&file, RECORD_LIMIT) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(e) => return Err(Error::io("read", &file, e)),
        };
        let record =
            serde_json::from_slice(&text).map_err(|e| Error::damaged(format!("volume {name}"), e))?;
        Ok(Volume { record, path })
    }

    /// All volumes by name. One that is removed meanwhile is left out.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let mut names = crate::refs::names_in(&self.root.join("volumes"))?;
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            match self.volume(&name) {
                Err(Error::NoVolume { .. }) => {}
                volume => out.push(volume?),
            }
        }
        Ok(out)
    }

    /// Removes a volume and its files. Whether somebody uses it is for the caller to know, who holds the lock alone. The
    /// volume is out of sight at once; a crash while its files are deleted leaves that to [`Store::collect`].
    pub fn remove_volume(&self, volume: &Volume) -> Result<()> {
        self.discard_dir(&volume.path)
    }
}

impl Volume {
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The folder with the files.
    pub fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        crate::gc::disk_bytes(&self.path)
    }

    /// Whether nobody has used it yet, so that it may be filled.
    pub fn is_fresh(&self) -> bool {
        self.path.join(FRESH).exists()
    }

    /// Gives a volume that is empty what `view` has at `place`: files with owners, modes and attributes, and those of the
    /// folder itself. Comes back at once where the volume was used before. What a crash interrupts goes on at the next
    /// call, and nothing that somebody else put into the volume is replaced.
    pub fn fill(&self, store: &Store, view: &Merged, place: &Path) -> Result<()> {
        let fresh = self.path.join(FRESH);
        if !fresh.exists() {
            return Ok(());
        }
        let lock = File::open(&self.path).at("open", &self.path)?;
        flock(&lock, FlockOperation::LockExclusive).at("lock", &self.path)?;
        let (filling, data) = (self.path.join(FILLING), self.data());
        if !fresh.exists() {
            return Ok(());
        }
        if !filling.exists() {
            let used = fs::read_dir(&data).at("read", &data)?.next().is_some();
            if used {
                return crate::atomic::remove_file(&fresh);
            }
            let Ok(found) = view.stat(place) else { return Ok(()) };
            if found.kind != crate::FileKind::Dir {
                return Ok(());
            }
            let work = store.scratch("filling")?;
            fs::DirBuilder::new().mode(0o700).create(&work).at("create", &work)?;
            let copied =
                copy(view, place, &work, store).and_then(|()| fs::rename(&work, &filling).at("move", &work));
            if copied.is_err() {
                let _ = crate::remove::tree(&work);
            }
            copied?;
        }
        let mut moved = false;
        for entry in fs::read_dir(&filling).at("read", &filling)? {
            let entry = entry.at("read", &filling)?;
            moved = true;
            let to = data.join(entry.file_name());
            let how = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(rustix::fs::CWD, entry.path(), rustix::fs::CWD, &to, how) {
                Ok(()) => {}
                Err(rustix::io::Errno::EXIST) => crate::remove::tree(&entry.path())?,
                Err(e) => return Err(Error::io("fill the volume at", &to, e)),
            }
        }
        like(&filling, &data)?;
        crate::remove::tree(&filling)?;
        // A volume that has got nothing is still to be filled by another image.
        if moved { crate::atomic::remove_file(&fresh) } else { Ok(()) }
    }
}

/// Copies what a view has in the folder `from` to the empty folder `to`.
fn copy(view: &Merged, from: &Path, to: &Path, store: &Store) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(to, flags, Mode::empty()).at("open", to)?;
    let exclude = BTreeSet::new();
    let ownership = store.ownership();
    let what =
        Packing { ownership, upper: false, lowers: None, clamp_mtime: None, exclude: &exclude, live: false };
    let (read, write) = io::pipe().at("copy to", to)?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let out = BufWriter::with_capacity(BUFFER, write);
            let mut out = pack_folder(view, from, &what, out)?;
            out.flush().at("write to", to)
        });
        let input = BufReader::with_capacity(BUFFER, read);
        let unpacked = unpack(input, root, ownership, store.limits()).map(drop);
        let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Where this side gives up, the other one hears no more than that nobody reads.
        unpacked.map_err(|e| e.of(&format!("the copy of {}", from.display())))?;
        packed
    })
}

/// Gives a folder the owner, the mode and the attributes of another.
fn like(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (File::open(from).at("open", from)?, File::open(to).at("open", to)?);
    let (want, have) =
        (rustix::fs::fstat(&source).at("look at", from)?, rustix::fs::fstat(&target).at("look at", to)?);
    if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(want.st_uid), rustix::fs::Gid::from_raw(want.st_gid));
        rustix::fs::fchown(&target, Some(uid), Some(gid)).at("set the owner of", to)?;
    }
    for (name, value) in crate::xattr::list_fd(source.as_fd()).at("read the attributes of", from)? {
        match rustix::fs::fsetxattr(&target, name.as_slice(), &value, rustix::fs::XattrFlags::empty()) {
            Err(e) if !crate::xattr::is_refusal(e) => return Err(Error::io("set an attribute of", to, e)),
            _ => {}
        }
    }
    rustix::fs::fchmod(&target, rustix::fs::Mode::from(want.st_mode & 0o7777)).at("set the mode of", to)
}
