//! What can go wrong with a container: the operation, its object and the cause.

use std::io;
use std::path::{Path, PathBuf};

use isles_spec::Hint;
use isles_spec::error::Error as Spelling;

/// A result of the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error(transparent)]
    Spelling(#[from] Spelling),
    #[error(transparent)]
    Store(#[from] isles_store::Error),
    #[error(transparent)]
    Sif(#[from] isles_sif::Error),
    #[error("cannot use the image {}: {source}", path.display())]
    Squashfs { path: PathBuf, source: isles_squashfs::Error },
    #[error("cannot use the image {}: {source}", path.display())]
    Ext { path: PathBuf, source: isles_ext::Error },
    #[error("cannot decrypt the image {}: {source}", path.display())]
    Crypt { path: PathBuf, source: isles_crypt::Error },
    #[error("the image {} is encrypted, and no passphrase or key for it is given", path.display())]
    Encrypted { path: PathBuf },
    /// What a process said that was to run in the background, before it ran.
    #[error("{message}")]
    Background { message: String, hint: Option<String>, exit_code: u8 },
    #[error(transparent)]
    Cgroup(#[from] isles_sandbox::cgroup::Error),
    #[error(transparent)]
    Spawn(#[from] isles_sandbox::SpawnError),
    /// The program could not be run; the exit code is 126 or 127 as docker-run(1) has it.
    #[error("{reason}")]
    Program { reason: String, hint: Option<String>, exit_code: u8 },
    #[error(transparent)]
    Network(#[from] isles_network::Error),
    #[error("network {0} not found")]
    NoNetwork(String),
    #[error("no such container: {0}")]
    NoContainer(String),
    #[error("no such pod: {0}")]
    NoPod(String),
    #[error("{name} is a pod, and is {doing} as one")]
    IsPod { name: String, doing: &'static str },
    #[error("'{0}' is the beginning of several container IDs")]
    Ambiguous(String),
    #[error("the container name \"/{name}\" is already in use by container \"{id}\"")]
    NameInUse { name: String, id: String },
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error(
        "{doing} container {name} is not possible: its program has the streams of the command that runs it"
    )]
    HasNoStreams { name: String, doing: &'static str },
    #[error("cannot remove container {name}: it is running")]
    Running { name: String },
    #[error("remove {name}: volume is in use - [{}]", users.join(", "))]
    VolumeInUse { name: String, users: Vec<String> },
    #[error("a volume named {0} already exists with different options")]
    VolumeDiffers(String),
    #[error("cannot use '{}' of volume {volume}: {source}", path.display())]
    SubPath { volume: String, path: PathBuf, source: io::Error },
    #[error("the state of container {id} is not readable: {source}")]
    BadState { id: String, source: serde_json::Error },
    #[error("no command specified")]
    NoCommand,
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("{0} is larger than {1} bytes")]
    TooLarge(PathBuf, u64),
    #[error("cannot publish port {port} of the host: {source}")]
    Port { port: String, source: io::Error },
    #[error("{wish} is not possible here: {reason}")]
    Impossible { wish: String, reason: String },
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Error::File { action, path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(crate) fn system(action: &'static str, source: impl Into<io::Error>) -> Self {
        Error::System { action, source: source.into() }
    }

    pub(crate) fn impossible(wish: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Impossible { wish: wish.into(), reason: reason.into() }
    }
}

impl Error {
    /// 127 when the program is not there, 126 when it cannot be run, 125 otherwise (docker-run(1)).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Program { exit_code, .. } | Error::Background { exit_code, .. } => *exit_code,
            Error::Spawn(e) => e.exit_code(),
            _ => 125,
        }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Spelling(e) => e.hint(),
            Error::Network(e) => e.hint(),
            Error::NoNetwork(name) => Some(format!(
                "'isles network create {name}' makes it; 'isles network ls' lists those that there are"
            )),
            Error::Store(e) => e.hint(),
            Error::Cgroup(e) => e.hint(),
            Error::Spawn(e) => e.hint(),
            Error::Program { hint, .. } | Error::Background { hint, .. } => hint.clone(),
            Error::NoContainer(_) => Some("'isles ps -a' lists the containers".into()),
            Error::NoPod(_) => Some("'isles pod ps' lists the pods".into()),
            Error::IsPod { name, .. } => Some(format!("say 'isles pod rm {name}'")),
            Error::Ambiguous(_) => Some("write more of the ID, or the name".into()),
            Error::NameInUse { name, .. } => {
                Some(format!("choose another name, or remove that container with 'isles rm {name}'"))
            }
            Error::VolumeInUse { .. } => {
                Some("remove these containers first; 'isles ps -a' lists them".into())
            }
            Error::VolumeDiffers(_) => Some("choose another name, or remove that volume first".into()),
            Error::SubPath { .. } => {
                Some("the path has to be in the volume already; links lead nowhere outside of it".into())
            }
            Error::NotRunning(_) => {
                Some("'isles start' starts it; 'isles ps -a' shows what became of it".into())
            }
            Error::HasNoStreams { .. } => Some(
                "streams for several, and a log, have those that were started without --rm, or with -t, -d, --log-driver or --attach"
                    .into(),
            ),
            Error::Running { .. } => Some("add --force to kill it first".into()),
            Error::Port { source, .. } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "ports below net.ipv4.ip_unprivileged_port_start (1024) are root's; choose a higher one"
                        .into()
                }
                io::ErrorKind::AddrInUse => {
                    "another program has it; choose another one, or 0 for one that is free".into()
                }
                _ => "the address has to be one of the host's".into(),
            }),
            Error::Crypt { source: isles_crypt::Error::Passphrase, .. } => Some(
                "give the passphrase that it was built with; one that was built for an RSA key opens with the private key"
                    .into(),
            ),
            Error::Encrypted { .. } => Some(
                "set APPTAINER_ENCRYPTION_PASSPHRASE, or APPTAINER_ENCRYPTION_PEM_PATH to the private RSA key; `apptainer run` takes --passphrase and --pem-path"
                    .into(),
            ),
            Error::NoCommand => Some("the image names no command, so say which one to run".into()),
            Error::NoUser(_) | Error::NoGroup(_) => {
                Some("the user and group are looked up in the image; numbers need no entry there".into())
            }
            _ => None,
        }
    }
}
