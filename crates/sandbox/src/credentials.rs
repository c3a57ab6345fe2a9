//! Who the program is: its user, its groups, its capabilities, and the filter that it cannot take off again.

use std::os::fd::AsRawFd;

use crate::child::{At, Done, Ends};
use crate::error::Step;
use crate::plan::Plan;
use crate::sys::Errno;
use crate::sys::process as p;

/// Groups, user and capabilities: the bounding set first, while there is still the right to shrink it.
pub(crate) fn user(plan: &Plan<'_>) -> Done {
    let process = plan.process;
    let caps = &process.capabilities;
    // Those that are younger than this program as well: root of the container would get them back at exec.
    for bit in 0..=63u8 {
        if !caps.bounding.has(bit) {
            match p::prctl(libc::PR_CAPBSET_DROP, bit.into()) {
                Ok(()) => {}
                // The kernel has no more.
                Err(Errno(libc::EINVAL)) => break,
                Err(e) => return Err(e).at(Step::Capabilities),
            }
        }
    }
    p::prctl(libc::PR_SET_KEEPCAPS, 1).at(Step::Capabilities)?;
    // In a user namespace of one ID setgroups(2) is denied, and there is no group to give anyway.
    let own_only = process.groups.iter().all(|group| *group == process.gid);
    if !plan.maps_by_child && plan.may_set_groups() {
        match p::set_groups(&process.groups) {
            // The joined namespace was made without the right to it, like any that one ID is mapped in.
            Err(Errno(libc::EPERM)) if own_only && plan.joins_user() => {}
            other => other.at(Step::User)?,
        }
    } else if !own_only && !plan.maps_by_child {
        return Err(Errno(libc::EPERM)).at(Step::User);
    }
    p::set_gid(process.gid).at(Step::User)?;
    p::set_uid(process.uid).at(Step::User)?;
    p::prctl(libc::PR_SET_KEEPCAPS, 0).at(Step::Capabilities)?;
    // What the caller itself does not have cannot be given; asking for it would fail as a whole.
    let (_, have, _) = p::capget().at(Step::Capabilities)?;
    let known = have;
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, so that is kept in reserve until the filter is on.
    let reserve = if plan.filters_need_admin() { SYS_ADMIN & known } else { 0 };
    p::capset(caps.effective.0 & known, caps.permitted.0 & known | reserve, caps.inheritable.0 & known)
        .at(Step::Capabilities)?;
    let _ = p::prctl_ambient_clear();
    for bit in 0..=40u8 {
        if caps.ambient.has(bit) && caps.inheritable.has(bit) && known >> bit & 1 == 1 {
            p::raise_ambient(bit).at(Step::Capabilities)?;
        }
    }
    Ok(())
}

const SYS_ADMIN: u64 = 1 << 21;

pub(crate) fn filters(plan: &Plan<'_>, ends: &Ends) -> Done {
    if plan.filters_need_admin() {
        let (effective, permitted, inheritable) = p::capget().at(Step::Capabilities)?;
        p::capset(effective | SYS_ADMIN & permitted, permitted, inheritable).at(Step::Capabilities)?;
    }
    for (index, filter) in plan.process.seccomp.iter().enumerate() {
        if let Some(listener) = filter.install().map_err(Errno).at_index(Step::Seccomp, index)? {
            crate::terminal::send(ends.news, b's', listener.as_raw_fd()).at_index(Step::Seccomp, index)?;
        }
    }
    drop_reserve(plan)
}

/// Gives up what [`user`] kept for [`filters`].
pub(crate) fn drop_reserve(plan: &Plan<'_>) -> Done {
    if plan.filters_need_admin() {
        let caps = &plan.process.capabilities;
        let (_, permitted, _) = p::capget().at(Step::Capabilities)?;
        p::capset(caps.effective.0 & permitted, caps.permitted.0 & permitted, caps.inheritable.0 & permitted)
            .at(Step::Capabilities)?;
    }
    Ok(())
}
