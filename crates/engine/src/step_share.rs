//! What the steps of one process use one after the other instead of making it anew: a network namespace in which there is
//! nothing, half of what a start costs, and a control group that bounds nothing but devices.
//!
//! Neither leads from one step to the next: a namespace is given to a step when no process is in it any more, and without
//! CAP_NET_ADMIN nobody leaves anything there; the group knows no other rule than that of every container.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use isles_sandbox::Setup;
use isles_sandbox::cgroup::Limits;

use crate::engine::Engine;
use crate::error::Result;
use crate::start::Fence;

/// Namespaces that are kept; more steps at once make more, which go with them.
const MOST_NETWORKS: usize = 64;

/// Shared by the threads that run steps.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    networks: Mutex<Vec<OwnedFd>>,
    group: Mutex<Option<(Limits, Fence)>>,
}

impl Shared {
    /// A network namespace without a process.
    pub(crate) fn network(&self) -> Option<OwnedFd> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Gives one back when the last process in it has ended.
    pub(crate) fn give_back(&self, network: OwnedFd) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if networks.len() < MOST_NETWORKS {
            networks.push(network);
        }
    }

    /// Puts a step that is to begin into the group for steps that have no limits of their own.
    pub(crate) fn admit(&self, engine: &Engine, limits: &Limits, setup: &mut Setup) -> Result<()> {
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if group.as_ref().is_none_or(|(known, _)| known != limits) {
            // Steps that run in another one stay there; it is removed when the last of them has ended.
            let fence = Fence::new(&engine.step_group_name()?, limits, false, &mut |_| {})?;
            *group = Some((limits.clone(), fence));
        }
        match group.as_ref() {
            Some((_, fence)) => fence.admit(setup),
            None => Ok(()),
        }
    }
}

/// The network namespace of a process that runs.
pub(crate) fn network_of(pid: i32) -> Option<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/net")).ok().map(OwnedFd::from)
}
