//! What can go wrong with images at rest: the operation, the object, the cause.

use std::io;
use std::path::Path;

use isles_spec::{Digest, Hint, Platform};
use rustix::io::Errno;

/// The result of store operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that store operations fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; `doing` is a verb phrase, `object` what it was done to.
    #[error("cannot {doing} {object}: {source}")]
    Io { doing: &'static str, object: String, source: io::Error },
    /// The same, where it refused access to something of the caller's, outside of the store.
    #[error("cannot {doing} {object}: {source}")]
    Denied { doing: &'static str, object: String, source: io::Error },
    /// The stream that a layer comes from failed and could not be continued.
    #[error("cannot fetch {digest}: {source}")]
    Fetch { digest: Digest, source: io::Error },
    #[error("no image '{name}' in the local store")]
    NoImage { name: String },
    #[error("'{name}' is ambiguous: it could be {}", candidates.join(", "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("image '{name}' is here for {}, not for {wanted}", have.join(", "))]
    OtherPlatform { name: String, wanted: String, have: Vec<String> },
    /// An index promised one platform and the configuration behind it is for another.
    #[error("image {image} is for {actual}, but its index says {promised}")]
    PlatformConfusion { image: Digest, promised: Platform, actual: Platform },
    #[error("blob {digest} is not in the local store")]
    NoBlob { digest: Digest },
    #[error("layer {diff_id} is not in the local store")]
    NoLayer { diff_id: Digest },
    #[error("no container '{id}'")]
    NoContainer { id: String },
    #[error("no volume '{name}'")]
    NoVolume { name: String },
    #[error("{what} '{name}' exists already")]
    Exists { what: &'static str, name: String },
    #[error("{what} '{name}' is in use")]
    InUse { what: &'static str, name: String },
    #[error("image '{name}' has several names")]
    SeveralNames { name: String },
    #[error("{object} has digest {actual}, expected {expected}")]
    WrongDigest { object: String, expected: Digest, actual: Digest },
    #[error("{object} has {actual} bytes, expected {expected}")]
    WrongSize { object: String, expected: u64, actual: u64 },
    /// The content of an archive or layer is malformed or forbidden; `entry` may be empty.
    #[error("{object} is not a valid archive: {reason}")]
    Archive { object: String, reason: String },
    /// A bound that protects against hostile input was reached.
    #[error("{object}: {what} exceeds the limit of {limit}")]
    Limit { object: String, what: String, limit: u64 },
    /// A manifest, index, configuration or record does not say what it must.
    #[error("{object} is not valid: {reason}")]
    Document { object: String, reason: String },
    /// Something of the store's own is not as it was written.
    #[error("{object} is damaged: {reason}")]
    Damaged { object: String, reason: String },
    /// Something valid that this store does not handle.
    #[error("{object}: {what} is not supported")]
    Unsupported { object: String, what: String },
    #[error(transparent)]
    Sif(#[from] isles_sif::Error),
    /// The file system in `object`, or one that was to be made there.
    #[error("{object}: {source}")]
    Squashfs { object: String, source: isles_squashfs::Error },
    #[error("{object}: {source}")]
    Ext { object: String, source: isles_ext::Error },
    #[error("cannot encrypt {object}")]
    Crypt { object: String, source: isles_crypt::Error },
    #[error("the store at {root} has version {found}, this program knows {known}")]
    Version { root: String, found: String, known: u32 },
}

impl Error {
    /// An operating system error with the path it happened on.
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Error::Io { doing, object: path.display().to_string(), source: source.into() }
    }

    /// What an operation that reads or writes elsewhere too failed with: tells the store's own paths from others.
    pub(crate) fn or_outside(self, root: &Path) -> Self {
        match self {
            Error::Io { doing, object, source }
                if source.kind() == io::ErrorKind::PermissionDenied
                    && !Path::new(&object).starts_with(root) =>
            {
                Error::Denied { doing, object, source }
            }
            other => other,
        }
    }

    pub(crate) fn document(object: impl ToString, reason: impl ToString) -> Self {
        Error::Document { object: object.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn damaged(object: impl ToString, reason: impl ToString) -> Self {
        Error::Damaged { object: object.to_string(), reason: reason.to_string() }
    }

    /// Whether the disk or the quota is full.
    pub fn is_full_disk(&self) -> bool {
        let (Error::Io { source, .. } | Error::Fetch { source, .. }) = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            e if e.is_full_disk() => {
                "free some space, for example with `isles prune`; nothing that was complete is lost".into()
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "the store belongs to another user; choose your own with --root or ISLES_ROOT".into()
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                "nothing can be written there; choose another place with --root or ISLES_ROOT".into()
            }
            Error::Io { doing: "lock", source, .. } if lacks_locks(source) => {
                "this file system keeps no locks, on which all state depends; choose a folder on another one with --root \
                 or ISLES_ROOT"
                    .into()
            }
            Error::Denied { .. } => "check the owner and the permissions of the path and of the folders above it".into(),
            Error::NoImage { name } => {
                format!("fetch it with `isles pull {name}`; `isles images` lists what is here")
            }
            Error::Ambiguous { .. } => "give more characters of the ID, or a name".into(),
            Error::OtherPlatform { name, wanted, .. } => {
                format!("fetch it with `isles pull --platform {wanted} {name}`")
            }
            Error::NoBlob { .. } | Error::NoLayer { .. } => {
                "pull the image again; `isles verify` finds out what else is missing".into()
            }
            Error::InUse { what: "image", .. } => {
                "a container stands on it, or a command works with it: remove that first (`isles ps -a`, `isles rm`), \
                 or take only the name away with -f"
                    .into()
            }
            Error::SeveralNames { .. } => {
                "remove it name by name, or all of them with -f".into()
            }
            Error::NoContainer { .. } => "`isles ps -a` lists the containers".into(),
            Error::NoVolume { .. } => "`isles volume ls` lists the volumes".into(),
            Error::WrongDigest { .. } | Error::WrongSize { .. } => {
                "the content was damaged or changed on its way; try again, or fetch it from another place"
                    .into()
            }
            Error::Damaged { .. } => {
                "`isles verify --repair` finds and removes what is damaged; then pull the image again".into()
            }
            Error::Limit { .. } => "the limit protects against hostile images".into(),
            Error::Sif(e) => return e.hint(),
            Error::Version { .. } => "use the version of isles that made the store, or another --root".into(),
            _ => return None,
        };
        Some(hint)
    }
}

/// What flock(2) fails with where a file system has no locks, as some of a network.
fn lacks_locks(e: &io::Error) -> bool {
    [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS]
        .iter()
        .any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

/// Shortens `result.map_err(|e| Error::io(doing, path, e))`.
pub(crate) trait At<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(doing, path, e))
    }
}
