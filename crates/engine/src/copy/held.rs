//! The root of a container that does not run, with all its mounts, in a process that waits before the container's program
//! and never becomes it.

use std::io::PipeWriter;

use isles_sandbox::identity::Identity;
use isles_sandbox::setup::Gate;
use isles_sandbox::{Child, Pending};
use isles_spec::image::ContainerConfig;
use isles_spec::{
    MountKind, NamespaceMode, NetworkMode, Resources, Root, RunAs, SeccompChoice, Security, Workload,
};
use isles_store::{Container, Image};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::hosts;
use crate::layers::Base;
use crate::plan::{Parts, plan};
use crate::record::Record;
use crate::run::Foreground;

/// The process, and the lock of its container, which nobody can start meanwhile.
pub struct Held {
    child: Child,
    /// Nothing ever comes through it, so the process never goes on.
    _gate: PipeWriter,
    _container: Container,
    _servers: Vec<std::sync::Arc<isles_fuse::Server<crate::file_image::FileImage>>>,
    _locks: Vec<std::fs::File>,
    _programs: Option<crate::overlay_programs::OverlayPrograms>,
}

impl Held {
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It waits, and has nothing to lose.
        drop(self.child.kill(rustix::process::Signal::KILL.as_raw()));
        drop(self.child.wait());
    }
}

impl Engine {
    /// The image that a container stands on, where it does.
    pub(crate) fn image_of(&self, record: &Record) -> Result<Option<Image>> {
        match &record.workload.root {
            Root::Image { manifest, .. } => Ok(Some(self.store.image(manifest)?)),
            Root::Directory(_) | Root::File(_) => Ok(None),
        }
    }

    /// Makes the root and the mounts of a container whose lock is held here.
    pub(super) fn hold(&self, container: Container, record: &Record) -> Result<Held> {
        let image = self.image_of(record)?;
        let workload = bare(&record.workload);
        let foreground = Foreground { image: image.as_ref(), ..Foreground::default() };
        let Base { prepared, root, view, read_only, untrusted, sources, servers, locks, programs, .. } =
            self.base(&container, &workload, &foreground)?;
        let extra = match workload.system.bare_etc {
            true => Vec::new(),
            false => hosts::of_container(&container, "", &workload, &view, None, None)?,
        };
        let default = ContainerConfig::default();
        let planned = plan(Parts {
            workload: &workload,
            image: image.as_ref().map_or(&default, |image| &image.config.config),
            identity: self.identity,
            prepared,
            root,
            read_only_root: read_only,
            untrusted_root: untrusted,
            view: &view,
            sources,
            hostname: "",
            pid_of: &|name| Err(Error::NoContainer(name.to_owned())),
            extra,
            terminal: None,
            interpreters: Vec::new(),
            warn: &|_| {},
        })?;
        if self.identity == Identity::Single {
            let process = &planned.setup.process;
            servers.iter().for_each(|image| image.file_system().belongs_to(process.uid, process.gid));
        }
        let failed = |e| Error::system("hold the container", e);
        let (gate_read, gate_write) = std::io::pipe().map_err(failed)?;
        let mut setup = planned.setup;
        setup.gate = Gate { before_exec: Some(gate_read.into()), open_to_owner: true, ..Gate::default() };
        let child = Pending::new(&setup)?.wait_before_exec()?;
        Ok(Held {
            child,
            _gate: gate_write,
            _container: container,
            _servers: servers,
            _locks: locks,
            _programs: programs,
        })
    }
}

/// The same container as far as files go, for nobody in particular.
fn bare(workload: &Workload) -> Workload {
    Workload {
        // It does not run, so it needs neither the right to it nor another container that does.
        command: vec!["/".to_owned()],
        entrypoint: Some(Vec::new()),
        user: Some("0:0".to_owned()),
        groups: Vec::new(),
        run_as: RunAs::Image,
        here: false,
        tty: false,
        interactive: false,
        init: false,
        init_stays: false,
        remove: false,
        working_dir: Some("/".into()),
        network: NetworkMode::Host,
        pid: NamespaceMode::Private,
        ipc: NamespaceMode::Private,
        uts: NamespaceMode::Private,
        cgroupns: NamespaceMode::Private,
        devices: Vec::new(),
        resources: Resources::default(),
        rlimits: Vec::new(),
        sysctls: Default::default(),
        security: Security { seccomp: SeccompChoice::Unconfined, ..Security::default() },
        // What programs serve is served for the container only.
        mounts: workload
            .mounts
            .iter()
            .filter(|m| !matches!(m.kind, MountKind::Fuse { .. }))
            .cloned()
            .collect(),
        ..workload.clone()
    }
}
