//! One container's control group: making it, finding it again, entering and changing it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::limits::{Limits, Write};
use super::{Error, Hierarchy, Layout, Result, devices, files};

/// What a new group is to be.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Below the place where this user may make groups; with a leading `/`, and for root only, below the
    /// top of every tree.
    pub path: &'a str,
    pub limits: &'a Limits,
    /// Count memory, processor time, processes and block I/O even where they are not limited.
    pub accounting: bool,
    /// Give in where a limit cannot be set, with a warning.
    pub best_effort: bool,
}

/// The directory of a group in one tree.
pub(super) struct Member {
    /// Empty for the v2 tree.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    /// Relative to the mount, without a leading `/`.
    pub path: String,
    pub dir: OwnedFd,
    /// How many of the path's last components were missing.
    made: usize,
}

impl Member {
    pub fn full_path(&self) -> PathBuf {
        self.mount.join(&self.path)
    }

    pub fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Io { operation, path: self.full_path(), source }
    }
}

/// A container's directories in the trees that it uses, held open.
pub struct Group {
    pub(super) v1: Vec<Member>,
    pub(super) unified: Option<Member>,
    pub(super) layout: Layout,
    path: String,
    privileged: bool,
    /// A program on the v2 directory decides about devices.
    program: bool,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.paths()).finish()
    }
}

impl Group {
    /// Makes the group and sets its limits. What had to be given up is in the second part, and only
    /// where the request is for best effort.
    pub fn create(layout: &Layout, request: &Request<'_>) -> Result<(Group, Vec<Error>)> {
        let mut group = Group::empty(layout, request.path)?;
        match group.fill(request) {
            Ok(warnings) => Ok((group, warnings)),
            Err(e) => {
                group.undo();
                Err(e)
            }
        }
    }

    /// Finds a group that was made before, by the same path and user. A group of which nothing is left is empty.
    pub fn open(layout: &Layout, path: &str) -> Result<Group> {
        let mut group = Group::empty(layout, path)?;
        for hierarchy in &layout.v1 {
            if let Some(member) = group.v1_place(hierarchy).and_then(|place| find(hierarchy, place)) {
                group.v1.push(member);
            }
        }
        if let Some((mount, parent)) = group.v2_place() {
            group.unified = find_at(&mount, parent);
        }
        Ok(group)
    }

    fn empty(layout: &Layout, path: &str) -> Result<Group> {
        let named = files::components(path).is_some_and(|c| !c.is_empty());
        if !named {
            return Err(Error::Name(path.to_owned()));
        }
        let privileged = layout
            .v2
            .iter()
            .map(|u| u.mount.as_path())
            .chain(layout.v1.iter().map(|h| h.mount.as_path()))
            .next()
            .is_some_and(|mount| rustix::fs::access(mount, rustix::fs::Access::WRITE_OK).is_ok());
        Ok(Group {
            v1: Vec::new(),
            unified: None,
            layout: layout.clone(),
            path: path.to_owned(),
            privileged,
            program: false,
        })
    }

    /// The descriptor for CLONE_INTO_CGROUP, where there is a v2 tree that this user may use.
    pub fn unified_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|m| m.dir.as_fd())
    }

    /// Whether a process that was born into [`Group::unified_fd`] must still be attached.
    pub fn needs_attach(&self) -> bool {
        !self.v1.is_empty()
    }

    /// The directories of the group.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.v1.iter().chain(&self.unified).map(Member::full_path)
    }

    /// The controllers and the path, below the mount, of every v1 directory; the v2 directory has none.
    pub fn memberships(&self) -> impl Iterator<Item = (&[String], PathBuf)> {
        self.v1.iter().chain(&self.unified).map(|m| (m.controllers.as_slice(), m.full_path()))
    }

    /// What a container of this group may see of the v1 hierarchies: their names and the folders that are the
    /// group's, or this process's where the group has none.
    pub fn v1_views(&self) -> Vec<(String, PathBuf)> {
        let view = |h: &Hierarchy| {
            let member = self.v1.iter().find(|m| m.controllers == h.controllers);
            let own = || h.mount.join(h.own.trim_start_matches('/'));
            let name = h.controllers.join(",");
            (
                name.strip_prefix("name=").unwrap_or(&name).to_owned(),
                member.map_or_else(own, Member::full_path),
            )
        };
        self.layout.v1.iter().map(view).collect()
    }

    /// Whether no directory of the group exists.
    pub fn is_absent(&self) -> bool {
        self.v1.is_empty() && self.unified.is_none()
    }

    /// Moves a process into the v1 directories; it is in the v2 one by birth.
    pub fn attach(&self, pid: i32) -> Result<()> {
        self.v1.iter().try_for_each(|m| enter(m, pid))
    }

    /// What a start needs to put its process into the group: the v2 directory to be born in, and the open
    /// `cgroup.procs` of every v1 directory.
    pub fn entry(&self) -> Result<crate::setup::CgroupEntry> {
        let v2 = match &self.unified {
            Some(m) => Some(m.dir.try_clone().map_err(|e| m.error("open", e))?),
            None => None,
        };
        let mut v1_procs = Vec::with_capacity(self.v1.len());
        for m in &self.v1 {
            let procs = files::open_file(&m.dir, "cgroup.procs", rustix::fs::OFlags::WRONLY);
            v1_procs.push(procs.map_err(|e| m.error("open", e))?);
        }
        Ok(crate::setup::CgroupEntry { v2, v1_procs })
    }

    /// Moves a process into all directories.
    pub fn enter(&self, pid: i32) -> Result<()> {
        self.unified.iter().chain(&self.v1).try_for_each(|m| enter(m, pid))
    }

    /// Changes the limits that are given; the others stay.
    pub fn update(&mut self, limits: &Limits, best_effort: bool) -> Result<Vec<Error>> {
        let request = Request { path: "", limits, accounting: false, best_effort };
        let known: Vec<i32> = self.processes()?;
        let before = self.v1.len();
        let mut warnings = Vec::new();
        self.join_hierarchies(&request, &mut warnings)?;
        for member in &self.v1[before..] {
            known.iter().try_for_each(|pid| enter(member, *pid))?;
        }
        self.apply(&request, &mut warnings)?;
        Ok(warnings)
    }

    fn fill(&mut self, request: &Request<'_>) -> Result<Vec<Error>> {
        let mut warnings = Vec::new();
        if let Some((mount, path)) = self.v2_place() {
            match make_at(&mount, &path, Vec::new(), false) {
                Ok(member) => self.unified = Some(member),
                // Without a group of its own the container only goes without limits, and those are asked for below.
                Err(e) if self.privileged => return Err(e),
                Err(_) => {}
            }
        }
        self.devices_by_program(request.limits);
        self.join_hierarchies(request, &mut warnings)?;
        self.apply(request, &mut warnings)?;
        Ok(warnings)
    }

    /// Lets a program on the v2 directory decide about devices, where that is wished for and the kernel can do it.
    fn devices_by_program(&mut self, limits: &Limits) {
        if let (true, true, Some(rules), Some(member)) =
            (limits.unified_devices, self.privileged, &limits.devices, &self.unified)
        {
            self.program = devices::attach(member.dir.as_fd(), rules).is_ok();
        }
    }

    /// Makes the directories in the v1 hierarchies that carry something that was asked for.
    fn join_hierarchies(&mut self, request: &Request<'_>, warnings: &mut Vec<Error>) -> Result<()> {
        let mut wanted: Vec<&str> = request.limits.v1().iter().map(|w| w.controller).collect();
        if request.limits.devices.is_some() && self.privileged && !self.program {
            wanted.push("devices");
        }
        if request.accounting {
            wanted.extend(["memory", "cpuacct", "pids", "blkio"]);
        }
        for hierarchy in self.layout.v1.clone() {
            let asked = hierarchy.controllers.iter().any(|c| wanted.contains(&c.as_str()));
            if !asked || self.v1.iter().any(|m| m.controllers == hierarchy.controllers) {
                continue;
            }
            match self.join(&hierarchy) {
                Ok(()) => {}
                // What was asked for is missed below, under its own name.
                Err(_) if !self.privileged => {}
                Err(e) if request.best_effort => warnings.push(e),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Makes the directory in one v1 hierarchy.
    pub(super) fn join(&mut self, hierarchy: &Hierarchy) -> Result<()> {
        let place = self.v1_place(hierarchy).ok_or_else(|| Error::Io {
            operation: "make",
            path: hierarchy.mount.clone(),
            source: io::ErrorKind::PermissionDenied.into(),
        })?;
        let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
        self.v1.push(make_at(&hierarchy.mount, &place, hierarchy.controllers.clone(), cpuset)?);
        Ok(())
    }

    /// The group's path below the mount of a v1 hierarchy, where this user may have one.
    fn v1_place(&self, hierarchy: &Hierarchy) -> Option<String> {
        if self.privileged {
            return Some(self.below("isles"));
        }
        let own = hierarchy.mount.join(hierarchy.own.trim_start_matches('/'));
        let allowed = rustix::fs::access(&own, rustix::fs::Access::WRITE_OK).is_ok();
        allowed.then(|| self.below(&hierarchy.own))
    }

    fn v2_place(&self) -> Option<(PathBuf, String)> {
        let (mount, parent) = self.layout.v2_parent(self.privileged)?;
        Some((mount, self.below(&parent)))
    }

    /// Where the group's directories are or would be.
    pub(super) fn places(&self) -> Vec<PathBuf> {
        let v1 = self.layout.v1.iter().filter_map(|h| Some(h.mount.join(self.v1_place(h)?)));
        v1.chain(self.v2_place().map(|(mount, path)| mount.join(path))).collect()
    }

    fn below(&self, parent: &str) -> String {
        let path = self.path.trim_matches('/');
        if self.privileged && self.path.starts_with('/') {
            return path.to_owned();
        }
        Path::new(parent.trim_matches('/')).join(path).to_string_lossy().into_owned()
    }

    /// Writes every limit to the tree that carries it.
    fn apply(&self, request: &Request<'_>, warnings: &mut Vec<Error>) -> Result<()> {
        let limits = request.limits;
        let mut done = |result: Result<()>| match result {
            Err(e) if request.best_effort => {
                warnings.push(e);
                Ok(())
            }
            other => other,
        };
        let mut v1 = limits.v1();
        self.order_memory(limits, &mut v1);
        for write in &v1 {
            if let Some(member) = self.v1_member(write.controller) {
                done(put(member, write))?;
            } else if self.layout.hierarchy(write.controller).is_some() || !has_v2_form(write) {
                done(Err(self.missing(write)))?;
            }
        }
        if limits.memory_swap.is_some_and(|s| s > 0)
            && limits.memory.is_none_or(|m| m > limits.memory_swap.unwrap_or(0))
            && self.layout.hierarchy("memory").is_none()
        {
            done(Err(Error::Value {
                limit: "swap",
                why: "the sum of memory and swap needs a limit on memory that is not above it".into(),
            }))?;
        }
        let v2: Vec<Write> = limits
            .v2()
            .into_iter()
            .filter(|w| self.layout.hierarchy(v1_name(w.controller)).is_none())
            .collect();
        for write in &v2 {
            done(self.put_v2(write))?;
        }
        for (file, value) in &limits.unified {
            done(self.put_unified(file, value))?;
        }
        if let Some(rules) = limits.devices.as_ref().filter(|_| self.privileged && !self.program) {
            done(self.put_devices(rules))?;
        }
        Ok(())
    }

    /// On v1 the limit of memory must never be above that of memory and swap, so growing starts with the latter.
    fn order_memory(&self, limits: &Limits, writes: &mut [Write]) {
        let (Some(memory), Some(_), Some(member)) =
            (limits.memory, limits.memory_swap, self.v1_member("memory"))
        else {
            return;
        };
        let current = files::read(&member.dir, "memory.memsw.limit_in_bytes").unwrap_or_default();
        let grows = current.trim().parse::<i64>().is_ok_and(|now| memory < 0 || memory > now);
        if grows && writes.len() >= 2 && writes[1].file == "memory.memsw.limit_in_bytes" {
            writes.swap(0, 1);
        }
    }

    pub(super) fn v1_member(&self, controller: &str) -> Option<&Member> {
        self.v1.iter().find(|m| m.controllers.iter().any(|c| c == controller))
    }

    fn put_v2(&self, write: &Write) -> Result<()> {
        let member = self.unified.as_ref().ok_or_else(|| self.missing(write))?;
        self.enable(member, write.controller).map_err(|_| self.missing(write))?;
        put(member, write)
    }

    fn put_unified(&self, file: &str, value: &str) -> Result<()> {
        let limit = "a file of cgroup v2";
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(Error::Value { limit, why: format!("'{file}' is not a limit") });
        }
        let controller = file.split('.').next().unwrap_or_default();
        let missing = || Error::NoFile { limit, file: file.to_owned() };
        let member = self.unified.as_ref().ok_or_else(missing)?;
        self.enable(member, controller).map_err(|_| missing())?;
        if !files::exists(&member.dir, file) {
            return Err(missing());
        }
        files::write(&member.dir, file, value).map_err(|source| Error::Refused {
            limit,
            value: value.to_owned(),
            path: member.full_path().join(file),
            source,
        })
    }

    fn put_devices(&self, rules: &[super::DeviceRule]) -> Result<()> {
        if let Some(member) = self.v1_member("devices") {
            for rule in rules {
                let (file, line) = rule.v1();
                files::write(&member.dir, file, &line).map_err(|source| Error::Refused {
                    limit: "devices",
                    value: line,
                    path: member.full_path().join(file),
                    source,
                })?;
            }
            return Ok(());
        }
        let member = self.unified.as_ref().ok_or_else(|| Error::NoController {
            limit: "devices",
            controller: "devices".into(),
            hint: "mount cgroup v2, or the devices hierarchy of v1".into(),
        })?;
        devices::attach(member.dir.as_fd(), rules).map_err(|e| member.error("set the devices of", e))
    }

    /// Hands a controller down from the top of the v2 tree to the group.
    fn enable(&self, member: &Member, controller: &str) -> io::Result<()> {
        let mut dir = files::open_mount(&member.mount)?;
        let names = files::components(&member.path).unwrap_or_default();
        let has = |text: &str| text.split_ascii_whitespace().any(|c| c == controller);
        for name in names {
            if !has(&files::read(&dir, "cgroup.subtree_control")?) {
                if !has(&files::read(&dir, "cgroup.controllers")?) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                files::write(&dir, "cgroup.subtree_control", &format!("+{controller}"))?;
            }
            dir = files::open_dir(&dir, name)?;
        }
        Ok(())
    }

    fn missing(&self, write: &Write) -> Error {
        let hint = match (self.layout.kind(), self.privileged) {
            ("none", _) => "no control groups are mounted: mount cgroup2 on /sys/fs/cgroup".to_owned(),
            (_, false) => format!(
                "as an ordinary user this needs cgroup v2 with the {} controller delegated (systemd: Delegate=yes, or \
                 a user session); run as root, or leave the limit out",
                write.controller
            ),
            _ => format!(
                "the kernel has it off or another tree holds it; see /proc/cgroups for '{}'",
                v1_name(write.controller)
            ),
        };
        Error::NoController { limit: write.limit, controller: write.controller.to_owned(), hint }
    }

    /// Removes what this group made, after a failure.
    fn undo(&mut self) {
        for member in self.v1.drain(..).chain(self.unified.take()) {
            let names = files::components(&member.path).unwrap_or_default();
            let Some(keep) = names.len().checked_sub(member.made) else { continue };
            for depth in (keep..names.len()).rev() {
                let parent = names[..depth].join("/");
                if let Ok(dir) = files::open_mount(&member.mount.join(parent)) {
                    let _ = files::remove_dir(&dir, names[depth]);
                }
            }
        }
    }
}

fn v1_name(controller: &str) -> &str {
    if controller == "io" { "blkio" } else { controller }
}

/// Whether cgroup v2 has a file for what this v1 write says.
fn has_v2_form(write: &Write) -> bool {
    !matches!(write.controller, "net_cls" | "net_prio")
        && !matches!(
            write.file.as_str(),
            "memory.swappiness"
                | "memory.oom_control"
                | "memory.kmem.tcp.limit_in_bytes"
                | "cpu.rt_period_us"
                | "cpu.rt_runtime_us"
        )
}

fn put(member: &Member, write: &Write) -> Result<()> {
    let (file, value) = match &write.or_else {
        Some((other, value)) if !files::exists(&member.dir, &write.file) => (other, value),
        _ => (&write.file, &write.value),
    };
    if !files::exists(&member.dir, file) {
        return Err(Error::NoFile { limit: write.limit, file: write.file.clone() });
    }
    files::write(&member.dir, file, value).map_err(|source| Error::Refused {
        limit: write.limit,
        value: value.clone(),
        path: member.full_path().join(file),
        source,
    })
}

fn enter(member: &Member, pid: i32) -> Result<()> {
    files::write(&member.dir, "cgroup.procs", &pid.to_string()).map_err(|e| member.error("enter", e))
}

fn find(hierarchy: &Hierarchy, place: String) -> Option<Member> {
    let mut member = find_at(&hierarchy.mount, place)?;
    member.controllers = hierarchy.controllers.clone();
    Some(member)
}

fn find_at(mount: &Path, path: String) -> Option<Member> {
    let mut dir = files::open_mount(mount).ok()?;
    for name in files::components(&path)? {
        dir = files::open_dir(&dir, name).ok()?;
    }
    Some(Member { controllers: Vec::new(), mount: mount.to_owned(), path, dir, made: 0 })
}

/// Makes a directory with all above it. A cpuset starts without processors, so it takes those of its parent.
fn make_at(mount: &Path, path: &str, controllers: Vec<String>, cpuset: bool) -> Result<Member> {
    let error = |source| Error::Io { operation: "make", path: mount.join(path), source };
    let mut dir = files::open_mount(mount).map_err(error)?;
    let mut made = 0;
    for name in files::components(path).ok_or_else(|| Error::Name(path.to_owned()))? {
        let (child, new) = files::make_dir(&dir, name).map_err(error)?;
        made += usize::from(new);
        if cpuset {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if files::read(&child, file).map_err(error)?.trim().is_empty() {
                    let inherited = files::read(&dir, file).map_err(error)?;
                    files::write(&child, file, inherited.trim()).map_err(error)?;
                }
            }
        }
        dir = child;
    }
    Ok(Member { controllers, mount: mount.to_owned(), path: path.to_owned(), dir, made })
}
