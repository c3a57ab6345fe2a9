//! Control groups: limits, devices, freezing, killing and counting, on cgroup v1, v2 and the mix of both.
//!
//! The one idea is that a group is a set of directories held open: one in the v2 tree wherever there is
//! one (children are born into it, it freezes and kills), and on v1 only those that carry a limit
//! somebody asked for, because every v1 hierarchy costs a wait for the kernel's readers at each start. A limit
//! that cannot be set is an error that names the missing controller, or a warning where the caller gives in.
//!
//! Source: cgroups(7), the kernel's `admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

mod control;
mod devices;
mod files;
mod group;
mod layout;
mod limits;
mod stats;
#[cfg(test)]
mod tests;

pub use control::OomWatch;
pub use devices::{Access, DeviceKind, DeviceRule, device_program};
pub use group::{Group, Request};
pub use layout::{Hierarchy, Layout, Unified};
pub use limits::{Limits, Throttle, Weight};
pub use stats::{IoStats, Stats};

use std::io;
use std::path::PathBuf;

use isles_spec::Hint;

/// What can go wrong with control groups.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot limit {limit}: no {controller} controller here")]
    NoController { limit: &'static str, controller: String, hint: String },
    #[error("cannot limit {limit}: the kernel has no {file}")]
    NoFile { limit: &'static str, file: String },
    #[error("cannot set {limit} to '{value}' ({path}): {source}")]
    Refused { limit: &'static str, value: String, path: PathBuf, source: io::Error },
    #[error("cannot {operation} control group {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("invalid name of a control group '{0}'")]
    Name(String),
    #[error("invalid {limit}: {why}")]
    Value { limit: &'static str, why: String },
    #[error("control group {path} still has processes")]
    Busy { path: PathBuf },
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoController { hint, .. } => Some(hint.clone()),
            Error::NoFile { .. } => Some("the kernel was built or booted without it; leave the limit out".into()),
            Error::Refused { limit, source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                Some(format!("{limit} is below what is in use already, or a parent group does not allow it"))
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "this user has no part of the control group tree: log in through systemd with delegation, or run as root"
                    .into(),
            ),
            Error::Name(_) => Some("use a relative or absolute path without '..'".into()),
            _ => None,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;
