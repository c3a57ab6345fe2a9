//! What the steps of one process use one after the other instead of making it anew: sandboxes that stay warm; for those that
//! have none, a network namespace in which there is nothing; and a control group that bounds nothing but devices.
//!
//! None of them leads from one step to the next. A sandbox or a namespace is given to a step when no process of another is in
//! it any more; a sandbox only when it is as it was before the first one, and in a network without CAP_NET_ADMIN
//! nobody leaves anything. The group knows no other rule than that of every container.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isles_sandbox::cgroup::Limits;
use isles_sandbox::{Setup, WarmKind, WarmSandbox};

use crate::engine::Engine;
use crate::error::Result;
use crate::start::Fence;

/// Namespaces, and sandboxes, that are kept; more steps at once make more, which go with them.
const MOST: usize = 64;

/// Shared by the threads that run steps.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    networks: Mutex<Vec<OwnedFd>>,
    sandboxes: Mutex<Sandboxes>,
    group: Mutex<Option<(Limits, Fence)>>,
    /// To a thread that lets go of the mount namespaces of steps that have ended.
    left: Mutex<Option<SyncSender<OwnedFd>>>,
}

#[derive(Debug, Default)]
struct Sandboxes {
    free: Vec<Arc<WarmSandbox>>,
    /// None can be made here, or they are of no use.
    impossible: bool,
    /// How many were not clean, one after the other.
    spoiled: u32,
}

/// Steps one after the other that leave something behind: more will, and a new sandbox for each takes longer than none.
const SPOILED: u32 = 8;

impl Shared {
    /// A network namespace without a process.
    pub(crate) fn network(&self) -> Option<OwnedFd> {
        lock(&self.networks).pop()
    }

    /// Gives one back when the last process in it has ended.
    pub(crate) fn give_back(&self, network: OwnedFd) {
        let mut networks = lock(&self.networks);
        if networks.len() < MOST {
            networks.push(network);
        }
    }

    /// A warm sandbox for a step. `None` where there can be none: it starts as others do then.
    pub(crate) fn warm(&self, setup: &Setup) -> Option<Arc<WarmSandbox>> {
        let kind = WarmKind::of(setup)?;
        let mut sandboxes = lock(&self.sandboxes);
        if sandboxes.impossible {
            return None;
        }
        if let Some(free) = sandboxes.free.iter().position(|sandbox| sandbox.fits(&kind)) {
            return Some(sandboxes.free.remove(free));
        }
        drop(sandboxes);
        match WarmSandbox::new(setup, kind) {
            Ok(made) => made.map(Arc::new),
            // What is wrong with the step itself is said when it starts.
            Err(_) => {
                lock(&self.sandboxes).impossible = true;
                None
            }
        }
    }

    /// Gives one back when the first process of the step has ended. One that is not as it was ends now, and with it all that
    /// the step has left running. Of too many, the one that was not asked for longest goes.
    pub(crate) fn give_warm_back(&self, sandbox: Arc<WarmSandbox>) {
        let is_clean = sandbox.is_clean();
        let mut sandboxes = lock(&self.sandboxes);
        if !is_clean {
            sandboxes.spoiled += 1;
            sandboxes.impossible |= sandboxes.spoiled >= SPOILED;
            drop(sandboxes);
            return drop(sandbox);
        }
        sandboxes.spoiled = 0;
        let oldest = (sandboxes.free.len() >= MOST).then(|| sandboxes.free.remove(0));
        sandboxes.free.push(sandbox);
        drop(sandboxes);
        drop(oldest);
    }

    /// Lets go of the mount namespace of a step that has ended, on another thread where that has not too many: it takes
    /// as long as the rest of the end, and nobody need wait for it.
    pub(crate) fn let_go(&self, namespace: OwnedFd) {
        let mut left = lock(&self.left);
        let sender = left.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::sync_channel(MOST);
            let work = move || receiver.into_iter().for_each(drop::<OwnedFd>);
            // Without the thread, whoever sends hears that nobody receives.
            let _ = std::thread::Builder::new().name("isles-unmount".to_owned()).spawn(work);
            sender
        });
        if let Err(TrySendError::Full(namespace) | TrySendError::Disconnected(namespace)) =
            sender.try_send(namespace)
        {
            drop(left);
            drop(namespace);
        }
    }

    /// Puts a step that is to begin into the group for steps that have no limits of their own.
    pub(crate) fn admit(&self, engine: &Engine, limits: &Limits, setup: &mut Setup) -> Result<()> {
        let mut group = lock(&self.group);
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

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The network namespace of a process that runs.
pub(crate) fn network_of(pid: i32) -> Option<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/net")).ok().map(OwnedFd::from)
}
