//! What is remembered of a container between commands: one folder each below the runtime's root.
//!
//! `state.json` is replaced by rename, `lock` is held with flock(2) by whoever changes something, `config.json`
//! is the bundle's as it was at creation (later changes have no effect), and `exec.fifo` exists from creation
//! until start. A folder without `state.json` is what a killed `create` left; the next one takes it over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// The most that `state.json` may have; it is our own, so more is damage.
const MAX_STATE: u64 = 1 << 20;

/// How a container stands (runtime.md#state, with `paused` as runc has it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// What `state.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub oci_version: String,
    pub id: String,
    /// Process 1 of the container as the host counts; 0 while there is none.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, so that a later process with that number is not taken for ours.
    pub pid_start: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    pub owner: String,
    /// Path of the control group, as [`cgroup::Group::open`](crate::cgroup::Group::open) wants it.
    pub cgroup: String,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// The folder of one container.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    id: String,
}

/// The right to change a container, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Refuses names that could be paths or options: `[A-Za-z0-9_+-][A-Za-z0-9_+.-]*`, at most 1,024 bytes.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-');
    let good =
        id.len() <= 1024 && id.bytes().next().is_some_and(plain) && id.bytes().all(|b| plain(b) || b == b'.');
    if good { Ok(()) } else { Err(Error::Id(id.escape_default().to_string())) }
}

impl Folder {
    /// The folder of `id` below `root`; nothing is looked at yet.
    pub fn new(root: &Path, id: &str) -> Result<Folder> {
        check_id(id)?;
        // File names end at 255 bytes; longer names of containers are legal, but cannot be kept.
        if id.len() > 255 {
            return Err(Error::Id(id.to_owned()));
        }
        Ok(Folder { path: root.join(id), id: id.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn fifo(&self) -> PathBuf {
        self.path.join("exec.fifo")
    }

    /// Where the process says after the gate why its program does not run.
    pub fn report(&self) -> PathBuf {
        self.path.join("exec.report")
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::State { operation, path: self.path.clone(), source }
    }

    /// Makes the folder for a new container and locks it.
    ///
    /// # Errors
    /// [`Error::Exists`] where a container has that name.
    pub fn create(&self) -> Result<Lock> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let private = |path: &Path, recursive: bool| {
            fs::DirBuilder::new().mode(0o711).recursive(recursive).create(path)
        };
        private(parent, true).map_err(|e| self.error("make", e))?;
        // In a folder for temporary files somebody else may have been faster.
        let owner =
            std::os::unix::fs::MetadataExt::uid(&fs::metadata(parent).map_err(|e| self.error("find", e))?);
        let user = rustix::process::geteuid();
        if !user.is_root() && owner != user.as_raw() {
            let theirs =
                io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to user {owner}"));
            return Err(Error::State { operation: "use", path: parent.to_owned(), source: theirs });
        }
        match private(&self.path, false) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(self.error("make", e)),
        }
        let lock = self.try_lock()?.ok_or_else(|| Error::Exists(self.id.clone()))?;
        if self.path.join("state.json").exists() {
            return Err(Error::Exists(self.id.clone()));
        }
        // What a killed create left has no process: that died with its parent.
        let _ = fs::remove_file(self.fifo());
        let _ = fs::remove_file(self.report());
        Ok(lock)
    }

    fn lock_file(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(self.path.join("lock"))
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => Error::NotFound(self.id.clone()),
                _ => self.error("lock", e),
            })
    }

    /// Waits for the right to change the container.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such container (any more).
    pub fn lock(&self) -> Result<Lock> {
        if !self.path.join("state.json").exists() {
            return Err(Error::NotFound(self.id.clone()));
        }
        let file = self.lock_file()?;
        rustix::fs::flock(file.as_fd(), FlockOperation::LockExclusive)
            .map_err(|e| self.error("lock", e.into()))?;
        if !self.path.join("state.json").exists() {
            return Err(Error::NotFound(self.id.clone()));
        }
        Ok(Lock { _file: file })
    }

    fn try_lock(&self) -> Result<Option<Lock>> {
        let file = self.lock_file()?;
        match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(self.error("lock", e.into())),
        }
    }

    /// Writes a file of the folder so that a reader sees the old or the new one.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let temporary = self.path.join(format!(".{name}.new"));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&temporary)?;
            file.write_all(content)?;
            fs::rename(&temporary, self.path.join(name))
        };
        write().map_err(|e| self.error("write", e))
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).map_err(|e| self.error("write", e.into()))?;
        self.write("state.json", &text)
    }

    /// # Errors
    /// [`Error::NotFound`] where there is no such container.
    pub fn load(&self) -> Result<Record> {
        let text = self.read("state.json", MAX_STATE)?;
        serde_json::from_slice(&text).map_err(|e| self.error("read", e.into()))
    }

    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        read_bounded(&self.path.join(name), most).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NotFound(self.id.clone()),
            _ => self.error("read", e),
        })
    }

    /// Forgets the container.
    pub fn remove(&self) -> Result<()> {
        // The record goes first: without it the rest is a leftover that the next create takes over.
        for name in ["state.json", "exec.fifo"] {
            match fs::remove_file(self.path.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.error("remove", e)),
                _ => {}
            }
        }
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error("remove", e)),
            _ => Ok(()),
        }
    }

    /// All containers below a root, by name.
    pub fn all(root: &Path) -> Vec<Folder> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let mut folders: Vec<Folder> = entries
            .filter_map(|e| Folder::new(root, e.file_name().to_str()?).ok())
            .filter(|f| f.path.join("state.json").exists())
            .collect();
        folders.sort_by(|a, b| a.id.cmp(&b.id));
        folders
    }
}

/// Reads a regular file of at most so many bytes.
pub fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    // Not blocking: a FIFO in its place must not stop us.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if meta.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {most} bytes")));
    }
    let mut content = Vec::with_capacity(meta.len() as usize + 1);
    file.take(most + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// When a process started, in ticks since boot; `None` where there is no such process or it has ended.
pub fn process_start(pid: i32) -> Option<u64> {
    let text = crate::proc_file::read(&format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let rest = text.get(text.rfind(')')? + 2..)?;
    let fields: Vec<&str> = rest.split(' ').collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

impl Record {
    /// Whether process 1 of the container still runs.
    pub fn is_alive(&self) -> bool {
        self.pid > 0 && process_start(self.pid) == Some(self.pid_start)
    }

    /// Without looking whether it is frozen.
    pub fn status(&self, folder: &Folder) -> Status {
        if self.pid == 0 {
            Status::Creating
        } else if !self.is_alive() {
            Status::Stopped
        } else if folder.fifo().exists() {
            Status::Created
        } else {
            Status::Running
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            oci_version: "1.0.0".into(),
            id: id.into(),
            pid: std::process::id() as i32,
            pid_start: process_start(std::process::id() as i32).unwrap(),
            bundle: "/b".into(),
            rootfs: "/b/r".into(),
            created: String::new(),
            owner: String::new(),
            cgroup: "x".into(),
            annotations: Default::default(),
        }
    }

    #[test]
    fn names() {
        for good in ["a", "web-1", "_x", "+x", "-x", "a.b", &"a".repeat(1024)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in
            ["", ".", "..", ".hidden", "a/b", "/a", "../a", "a b", "a\0", "ä", "a\n", &"a".repeat(1025)]
        {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_container_per_name() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), "one").unwrap();
        assert!(matches!(folder.lock(), Err(Error::NotFound(_))));
        let lock = folder.create().unwrap();
        assert!(matches!(folder.create(), Err(Error::Exists(_))), "while another creates it");
        drop(lock);
        // The first creation was killed: nothing of it counts.
        let lock = folder.create().unwrap();
        folder.save(&record("one")).unwrap();
        drop(lock);
        assert!(matches!(folder.create(), Err(Error::Exists(_))));
        assert_eq!(folder.load().unwrap().status(&folder), Status::Running);
        assert_eq!(Folder::all(dir.path()).len(), 1);
        let _lock = folder.lock().unwrap();
        folder.remove().unwrap();
        assert!(matches!(folder.load(), Err(Error::NotFound(_))));
    }

    #[test]
    fn a_recycled_pid_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), "one").unwrap();
        let mut old = record("one");
        old.pid_start -= 1;
        assert_eq!(old.status(&folder), Status::Stopped);
        old.pid = 0;
        assert_eq!(old.status(&folder), Status::Creating);
    }

    #[test]
    fn odd_files_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read_bounded(&fifo, 10).is_err());
        assert!(read_bounded(dir.path(), 10).is_err());
        let file = dir.path().join("file");
        fs::write(&file, [0; 11]).unwrap();
        assert!(read_bounded(&file, 10).is_err());
        assert_eq!(read_bounded(&file, 11).unwrap().len(), 11);
    }
}
