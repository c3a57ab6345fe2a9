//! The file systems that a root and other mounts are made of: images and memory, each at a folder of the host where only
//! the container sees it.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use isles_spec::IdMapping;

use crate::error::{SpawnError, Step};
use crate::plan::{c, contains, text};
use crate::setup::{Prepared, PreparedSource, UserNs};
use crate::sys::{self, mount as m};

pub(crate) struct PlannedPrepared {
    pub place: CString,
    pub source: PlannedPreparedSource,
}

pub(crate) enum PlannedPreparedSource {
    Mount(RawFd),
    Fuse(FuseMount),
    Folder { of: CString, name: CString },
    Memory { size: Option<CString>, folders: Vec<CString> },
}

/// Who may ask, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FuseAccess {
    /// Everybody, as far as the modes of files allow, and only to read.
    Image,
    Program {
        for_all: bool,
    },
}

pub(crate) struct FuseMount {
    pub access: FuseAccess,
    pub channel: RawFd,
    pub devices: u32,
    /// `/dev/fuse`, opened here where the user namespace is the same: the container's control group may not let its
    /// processes open any device but its own.
    pub opened: Vec<OwnedFd>,
    pub options: Vec<(CString, CString)>,
}

/// Makes it flat.
pub(crate) fn plan(prepared: &Prepared, user: &UserNs) -> Result<PlannedPrepared, SpawnError> {
    let source = match &prepared.source {
        PreparedSource::Mount(fd) => PlannedPreparedSource::Mount(fd.as_raw_fd()),
        PreparedSource::Fuse { .. } | PreparedSource::FuseProgram { .. } => {
            let (channel, devices, access) = match &prepared.source {
                PreparedSource::FuseProgram { channel, for_all } => {
                    (channel, 1, FuseAccess::Program { for_all: *for_all })
                }
                PreparedSource::Fuse { channel, devices } => (channel, *devices, FuseAccess::Image),
                _ => return Err(SpawnError::value("mount", &prepared.name)),
            };
            // Somebody has to be the owner: root, where there is one in the user namespace.
            let owner = |map: &[IdMapping]| match map.first() {
                Some(first) if !contains(map, 0) => first.inside,
                _ => 0,
            };
            let (uid, gid) = match user {
                UserNs::New { uids, gids } => (owner(uids), owner(gids)),
                // SAFETY: geteuid(2) and getegid(2) have no preconditions and cannot fail.
                _ => unsafe { (libc::geteuid(), libc::getegid()) },
            };
            let option = |key: &str, value: &str| Ok((text(key)?, text(value)?));
            let options = vec![
                option("source", &prepared.name.replace(',', "_"))?,
                option("rootmode", "40000")?,
                option("user_id", &uid.to_string())?,
                option("group_id", &gid.to_string())?,
            ];
            let opened = match user {
                UserNs::Host => (0..devices).map(|_| open_fuse(&prepared.name)).collect::<Result<_, _>>()?,
                _ => Vec::new(),
            };
            let channel = channel.as_raw_fd();
            PlannedPreparedSource::Fuse(FuseMount { channel, devices, access, opened, options })
        }
        PreparedSource::Folder { of, name } => {
            PlannedPreparedSource::Folder { of: c(of)?, name: text(name)? }
        }
        PreparedSource::Memory { size, folders } => PlannedPreparedSource::Memory {
            size: size.map(|bytes| text(&bytes.to_string())).transpose()?,
            folders: folders.iter().map(|name| text(name)).collect::<Result<_, _>>()?,
        },
    };
    Ok(PlannedPrepared { place: c(&prepared.place)?, source })
}

fn open_fuse(name: &str) -> Result<OwnedFd, SpawnError> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    let failed = |cause| SpawnError { step: Step::Image, object: name.to_owned(), cause };
    device.map(OwnedFd::from).map_err(failed)
}

/// Mounts it. Runs between clone3 and exec.
pub(crate) fn mount(prepared: &PlannedPrepared) -> sys::Result<()> {
    let place = sys::open(&prepared.place, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    match &prepared.source {
        PlannedPreparedSource::Mount(mount) => m::attach_raw(*mount, place.0),
        PlannedPreparedSource::Fuse(fuse) => m::attach(&crate::fuse::mount(fuse)?, place.0),
        PlannedPreparedSource::Folder { of, name } => {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let of = sys::open(of, flags, 0)?;
            let folder = sys::open_in_root_no_links(of.0, name, flags, 0)?;
            m::attach(&m::clone_tree(folder.0, c"", false)?, place.0)
        }
        PlannedPreparedSource::Memory { size, folders } => {
            let context = m::fsopen_named(c"tmpfs")?;
            if let Some(size) = size {
                m::set_string(&context, c"size", size)?;
            }
            m::set_string(&context, c"mode", c"755")?;
            let mount = m::create(&context, m::ATTR_NOSUID | m::ATTR_NODEV)?;
            for folder in folders {
                sys::mkdirat(mount.0, folder, 0o755)?;
            }
            m::attach(&mount, place.0)
        }
    }
}
