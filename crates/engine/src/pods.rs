//! Pods: containers that share namespaces with one of them, which runs no program and is only there to own them. A pod is that
//! container, by its name and ID; whoever names it as the owner is a member. There is nothing else that could be out of step.

use std::path::PathBuf;
use std::time::Duration;

use isles_spec::{NamespaceMode, NetworkMode, Pod, PodShares, Root, Workload};

use crate::control::Condition;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{Info, Status};
use crate::run::Foreground;

/// A pod, as a whole.
#[derive(Debug, Clone)]
pub struct PodInfo {
    pub owner: Info,
    pub shares: PodShares,
    /// Oldest first.
    pub members: Vec<Info>,
}

/// How a pod is, by Podman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodStatus {
    /// Nothing of it has run.
    Created,
    Running,
    Paused,
    /// Some of it runs, and some does not.
    Degraded,
    Exited,
}

impl PodStatus {
    pub fn name(self) -> &'static str {
        match self {
            PodStatus::Created => "Created",
            PodStatus::Running => "Running",
            PodStatus::Paused => "Paused",
            PodStatus::Degraded => "Degraded",
            PodStatus::Exited => "Exited",
        }
    }
}

impl PodInfo {
    /// The owner, and then the members.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Info> {
        std::iter::once(&self.owner).chain(&self.members)
    }

    pub fn status(&self) -> PodStatus {
        let count = |is: fn(&Info) -> bool| self.all().filter(|info| is(info)).count();
        let all = 1 + self.members.len();
        let lives = |info: &Info| info.is_running() || info.status == Status::Restarting;
        match count(lives) {
            0 if count(|info| info.status == Status::Created) == all => PodStatus::Created,
            0 => PodStatus::Exited,
            _ if count(|info| info.status == Status::Paused) == all => PodStatus::Paused,
            n if n == all => PodStatus::Running,
            _ => PodStatus::Degraded,
        }
    }
}

impl Engine {
    /// Makes a pod, and returns its ID. Of the workload, what is said of namespaces, network, names, labels and limits counts.
    ///
    /// # Errors
    /// The name is given, or what is wanted is not possible.
    pub fn create_pod(&self, workload: &Workload, shares: PodShares) -> Result<String> {
        let root = self.owner_root()?;
        let workload = Workload {
            root: Root::Directory(root),
            entrypoint: Some(Vec::new()),
            init: true,
            init_stays: true,
            pod: Some(Pod::Owner(shares)),
            // Whose network is not shared needs none.
            network: if shares.network { workload.network.clone() } else { NetworkMode::None },
            ..workload.clone()
        };
        self.create_container(&workload, &Foreground::default())
    }

    /// An empty folder: the root of a process that runs no program.
    fn owner_root(&self) -> Result<PathBuf> {
        let root = self.store.root().join("pod");
        std::fs::create_dir_all(&root).map_err(|e| Error::file("make", &root, e))?;
        Ok(root)
    }

    /// Lets a workload be a member of a pod: of its namespaces, those that are shared are the pod's.
    ///
    /// # Errors
    /// There is no pod of that name.
    pub fn join_pod(&self, name: &str, workload: &mut Workload) -> Result<()> {
        let pod = self.pod(name)?;
        let id = pod.owner.record.id;
        let owners = || NamespaceMode::Container(id.clone());
        if pod.shares.network {
            workload.network = NetworkMode::Container(id.clone());
        }
        if pod.shares.ipc {
            workload.ipc = owners();
        }
        if pod.shares.uts {
            workload.uts = owners();
        }
        if pod.shares.pid {
            workload.pid = owners();
        }
        workload.pod = Some(Pod::Member(id));
        Ok(())
    }

    /// All pods, newest first.
    pub fn pods(&self) -> Result<Vec<PodInfo>> {
        let all = self.containers()?;
        let owners = all.iter().filter_map(|info| match info.record.workload.pod {
            Some(Pod::Owner(shares)) => Some((info, shares)),
            _ => None,
        });
        let pods = owners.map(|(owner, shares)| {
            let is_member = |info: &&Info| {
                matches!(&info.record.workload.pod, Some(Pod::Member(id)) if *id == owner.record.id)
            };
            let members = all.iter().rev().filter(is_member).cloned().collect();
            PodInfo { owner: owner.clone(), shares, members }
        });
        Ok(pods.collect())
    }

    /// Finds a pod by its name, its ID, or the beginning of its ID.
    pub fn pod(&self, name: &str) -> Result<PodInfo> {
        let pods = self.pods()?;
        let exact = |pod: &&PodInfo| pod.owner.record.id == name || pod.owner.record.name == name;
        if let Some(found) = pods.iter().find(exact) {
            return Ok(found.clone());
        }
        let mut close =
            pods.into_iter().filter(|pod| !name.is_empty() && pod.owner.record.id.starts_with(name));
        match (close.next(), close.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            _ => Err(Error::NoPod(name.to_owned())),
        }
    }

    /// Sees to it that the owner of a member's namespaces runs.
    pub(crate) fn wake_pod(&self, workload: &Workload) -> Result<()> {
        if let Some(Pod::Member(id)) = &workload.pod
            && !self.find(id)?.is_running()
        {
            self.start_container(id, None, &|_| {})?;
        }
        Ok(())
    }

    /// Starts all containers of a pod, oldest first. The process must have one thread.
    ///
    /// # Errors
    /// The first of those that could not be started; the others are.
    pub fn start_pod(&self, name: &str, warn: &dyn Fn(&str)) -> Result<()> {
        first_error(self.pod(name)?.all().map(|info| self.start_container(&info.record.id, None, warn)))
    }

    /// Stops all containers of a pod, its own last.
    pub fn stop_pod(&self, name: &str, timeout: Option<Option<Duration>>) -> Result<()> {
        first_error(self.pod(name)?.all().rev().map(|info| self.stop(&info.record.id, None, timeout)))
    }

    /// Sends a signal to all containers of a pod that run; its own needs to know of none but KILL.
    pub fn kill_pod(&self, name: &str, signal: i32) -> Result<()> {
        let pod = self.pod(name)?;
        let own = (signal == libc::SIGKILL).then_some(&pod.owner);
        let running: Vec<&Info> = pod.members.iter().chain(own).filter(|info| info.is_running()).collect();
        let told = first_error(running.iter().map(|info| self.signal(&info.record.id, signal)));
        if told.is_ok() && signal == libc::SIGKILL {
            // Who starts one of them next is not to take it, or the pod, for one that runs.
            for info in running {
                self.wait(&info.record.id, Condition::NotRunning)?;
            }
        }
        told
    }

    /// Keeps all processes of a pod from running.
    pub fn pause_pod(&self, name: &str) -> Result<()> {
        let pod = self.pod(name)?;
        let running = pod.all().rev().filter(|info| info.status == Status::Running);
        first_error(running.map(|info| self.pause(&info.record.id)))
    }

    /// Lets them go on.
    pub fn unpause_pod(&self, name: &str) -> Result<()> {
        let pod = self.pod(name)?;
        let paused = pod.all().filter(|info| info.status == Status::Paused);
        first_error(paused.map(|info| self.unpause(&info.record.id)))
    }

    /// Removes a pod with all its containers. Returns its ID.
    ///
    /// # Errors
    /// Without `force`, a container other than its own runs.
    pub fn remove_pod(&self, name: &str, force: bool) -> Result<String> {
        let pod = self.pod(name)?;
        let id = pod.owner.record.id.clone();
        if !force && let Some(runs) = pod.members.iter().find(|info| info.is_running()) {
            return Err(Error::Running { name: runs.record.name.clone() });
        }
        first_error(pod.all().rev().map(|info| self.remove_found(info, &info.record.name, true)))?;
        Ok(id)
    }
}

/// Does all of it, and tells the first error.
fn first_error<T>(outcomes: impl Iterator<Item = Result<T>>) -> Result<()> {
    let mut first = Ok(());
    for outcome in outcomes {
        if let (Err(e), Ok(())) = (outcome, &first) {
            first = Err(e);
        }
    }
    first
}
