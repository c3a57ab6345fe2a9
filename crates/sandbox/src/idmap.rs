//! User namespaces that exist only for their maps, which an idmapped mount takes (mount_setattr(2)).

use std::fs::File;
use std::os::fd::OwnedFd;

use isles_spec::IdMapping;

use crate::error::{SpawnError, Step};
use crate::plan::map_text;
use crate::sys::process::{self as p, Side};
use crate::sys::{self, Errno};

/// A user namespace with these maps. A child holds it just long enough for its file to be opened.
pub(crate) fn namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, SpawnError> {
    let fail = |Errno(e)| SpawnError::new(Step::MapIds, "", e);
    let (hold_read, hold_write) = sys::pipe().map_err(fail)?;
    match p::clone3(libc::CLONE_NEWUSER as u64, None).map_err(fail)? {
        Side::Child => {
            // SAFETY: close(2) of a number has no memory effects; the child never drops its owner.
            unsafe { libc::close(hold_write.0) };
            let _ = sys::read(hold_read.0, &mut [0]);
            p::exit(0)
        }
        Side::Parent { pid, pidfd: _ } => {
            let write =
                |file: &str, map: &[IdMapping]| std::fs::write(format!("/proc/{pid}/{file}"), map_text(map));
            let opened = write("uid_map", uids)
                .and_then(|()| write("gid_map", gids))
                .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
            drop(hold_write);
            // SAFETY: the child is this process's own; its status is not wanted.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
            opened.map(OwnedFd::from).map_err(|cause| SpawnError {
                step: Step::MapIds,
                object: String::from_utf8_lossy(&map_text(uids)).trim().replace('\n', ", "),
                cause,
            })
        }
    }
}
