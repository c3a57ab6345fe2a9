//! A step that runs a program over the layers of a stage, and the layer that comes of it.
//!
//! Mounts of a step show files that do not become part of the image. Where their place did not exist it is made
//! in the upper directory, as are those of /proc, /etc/resolv.conf and the like; none of that is committed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use isles_engine::{Step, StepNames, StepOutput, StepRoot};
use isles_spec::{Device, Digest, Mount, MountKind, NetworkMode};
use isles_store::{CacheLock, CacheMount, CommitOptions, CommittedLayer, Merged, Ownership, Store};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::copy::{Owner, Placement, copy};
use crate::device::Asked;
use crate::digests::Digests;
use crate::dockerfile::mount::Sharing;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::options::{BuildOptions, SecretSource};
use crate::secret::Secret;
use crate::select::{Selection, add_to_key};
use crate::snapshot::{Build, Scratch, Snapshot};
use crate::ssh::{Agent, Forward};
use crate::tree::{Folder, Tree, is_absent, resolve};
use crate::upper::Upper;

/// What every container gets at these places, whether or not the image has them.
const GIVEN: [&str; 6] = ["/proc", "/sys", "/dev", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];
/// Scripts are shown to a step here, in /dev, which is not the image's.
pub const SCRIPTS: &str = "/dev/pipes";

/// A program to run.
#[derive(Default)]
pub struct RunStep<'t> {
    pub argv: Vec<String>,
    pub env: Vec<String>,
    /// Variables that are not part of the key: proxies.
    pub passing_env: Vec<String>,
    pub working_dir: PathBuf,
    pub user: String,
    pub network: NetworkMode,
    pub privileged: bool,
    pub devices: Vec<Asked>,
    pub hostname: Option<String>,
    pub mounts: Vec<StepMount<'t>>,
    /// A file to run: its name below [`SCRIPTS`], and its text.
    pub script: Option<(String, String)>,
    /// File and line, and the command as people wrote it, for errors.
    pub place: String,
    pub command: String,
}

/// Something that a step sees beside its image.
pub enum StepMount<'t> {
    /// Files of the build context or of another stage. Changes to them are thrown away.
    Bind {
        target: PathBuf,
        tree: &'t Tree,
        digests: &'t Digests,
        files: Vec<Selection>,
        read_only: bool,
    },
    /// A folder that stays from build to build.
    Cache {
        target: PathBuf,
        id: String,
        /// Caches of one ID that begin differently, or as somebody else's, are different ones (as in BuildKit).
        base: Option<Digest>,
        read_only: bool,
        sharing: Sharing,
        mode: u32,
        owner: Owner,
        /// What it begins with.
        initial: Option<(&'t Tree, Vec<Selection>)>,
        /// The part of it that is shown. Nobody else has the cache meanwhile, so no link can come between.
        part: Option<PathBuf>,
    },
    Tmpfs {
        target: PathBuf,
        size: Option<u64>,
    },
    /// Something of the host, as it is. Of it only the place counts for what the step gives.
    Host(Mount),
    Secret {
        target: Option<PathBuf>,
        variable: Option<String>,
        source: SecretSource,
        mode: u32,
        owner: Owner,
    },
    /// The socket of an agent: that of these sources, where they are given.
    Ssh {
        target: PathBuf,
        sources: Option<&'t [PathBuf]>,
        mode: u32,
        owner: Owner,
    },
}

impl RunStep<'_> {
    /// The key of the step on these layers.
    pub fn key(&self, build: &Build<'_>, snapshot: &Snapshot) -> Result<Digest> {
        let mut key = snapshot
            .key("run", build)
            .with_list("argv", &self.argv)
            .with_list("env", &self.env)
            .with("working dir", self.working_dir.as_os_str().as_encoded_bytes())
            .with("user", &self.user)
            .with("network", format!("{:?}", self.network))
            .with("privileged", [u8::from(self.privileged)])
            .with("hostname", self.hostname.as_deref().unwrap_or_default())
            .with_list("devices", self.devices.iter().map(|d| &d.name));
        if let Some((name, text)) = &self.script {
            key = key.with("script", name).with("text", text);
        }
        let BuildOptions { extra_hosts, shm_size, rlimits, .. } = build.options;
        if !extra_hosts.is_empty() {
            key = key.with_list("extra hosts", extra_hosts);
        }
        if let Some(size) = shm_size {
            key = key.with("shm size", size.to_le_bytes());
        }
        if !rlimits.is_empty() {
            key = key.with_list("rlimits", rlimits.iter().map(|l| format!("{l:?}")));
        }
        for mount in &self.mounts {
            mount.add_to(&mut key)?;
        }
        Ok(key.finish())
    }

    /// Runs the step and commits what it wrote.
    pub fn run(&self, build: &Build<'_>, snapshot: &Snapshot, work: u64) -> Result<CommittedLayer> {
        let interpreter = isles_engine::foreign::interpreter(&snapshot.config.platform())?;
        let store = build.store;
        let lowers = snapshot.lowers(store)?;
        let view = Merged::open(&lowers, store.ownership())?;
        let scratch = Scratch::new(store)?;
        let (upper, overlay_work) = (scratch.folder("upper")?, scratch.folder("work")?);
        like_root(&upper, &view, store.ownership())?;
        let mut prepared = Prepared::default();
        self.lock_caches(store, &mut prepared)?;
        for device in &self.devices {
            let Some(edits) = crate::device::find(device)? else { continue };
            prepared.devices.extend(edits.devices);
            prepared.env.extend(edits.env);
            prepared.mounts.extend(edits.mounts);
        }
        for (number, mount) in self.mounts.iter().enumerate() {
            mount.prepare(build, &scratch, number, &mut prepared)?;
        }
        if let Some((name, text)) = &self.script {
            let file = scratch.0.join("script");
            write_script(&file, text)?;
            prepared.mounts.push(bind(Path::new(SCRIPTS).join(name), file, true));
        }
        let mut stubs = Vec::new();
        for target in prepared.mounts.iter().map(|m| m.destination.as_path()).chain(GIVEN.map(Path::new)) {
            stubs.extend(stub(&view, target)?);
        }
        let mut step = Step::new(
            StepRoot::Layers { lowers: &lowers, upper: &upper, work: &overlay_work },
            self.argv.clone(),
        );
        step.interpreter = interpreter;
        step.env = self.env.iter().chain(&self.passing_env).cloned().collect();
        for (name, value) in prepared.env.iter().filter_map(|e| e.split_once('=')) {
            crate::dockerfile::scope::set(&mut step.env, name, value);
        }
        step.working_dir = self.working_dir.clone();
        step.user = self.user.clone();
        step.mounts = std::mem::take(&mut prepared.mounts);
        step.network = self.network.clone();
        step.privileged = self.privileged;
        step.devices = std::mem::take(&mut prepared.devices);
        step.hostname = self.hostname.clone();
        step.names = Some(StepNames { folder: &scratch.0, extra: &build.options.extra_hosts });
        step.host_ca |= build.options.host_ca;
        step.shm_size = build.options.shm_size;
        step.rlimits = build.options.rlimits.clone();
        let outcome = build.engine.run_step(&step, StepOutput { progress: build.progress, id: work })?;
        if !outcome.exit.success() {
            return Err(Error::step(self.place.clone(), &self.command, &outcome, build.options.quiet));
        }
        let mut exclude = left_over(&upper, &stubs)?;
        exclude.extend(only_touched(&upper, &view, &exclude, store.ownership())?);
        let options = CommitOptions { clamp_mtime: build.epoch, exclude, lowers, live: false };
        Ok(store.commit_layer(build.lease, &upper, &options)?)
    }

    /// Locks the caches that others are waited for: each once, and all steps in the same order, so that none waits
    /// for a step that waits for it.
    fn lock_caches(&self, store: &Store, out: &mut Prepared) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for mount in &self.mounts {
            let StepMount::Cache { id, base, sharing, part, .. } = mount else { continue };
            let which = crate::cache_mounts::which(id, base.as_ref());
            let sharing = if part.is_some() { Sharing::Locked } else { *sharing };
            if sharing != Sharing::Private && wanted.get(&which) != Some(&Sharing::Locked) {
                wanted.insert(which, sharing);
            }
        }
        for (which, sharing) in wanted {
            let cache = cache_mount(store, &which, sharing)?;
            out.caches.insert(which, cache);
        }
        Ok(())
    }
}

/// What a step's mounts come to.
#[derive(Default)]
struct Prepared {
    mounts: Vec<Mount>,
    env: Vec<String>,
    devices: Vec<Device>,
    /// Cache folders, locked while the step runs: those by ID that the step may use twice, and its own.
    caches: BTreeMap<String, CacheMount>,
    private: Vec<CacheMount>,
    /// Secrets in memory, which go when the step is over.
    secrets: Vec<Secret>,
    /// Sockets that are closed when the step is over.
    agents: Vec<Forward>,
}

impl StepMount<'_> {
    fn add_to(&self, key: &mut Key) -> Result<()> {
        match self {
            StepMount::Bind { target, tree, digests, files, read_only } => {
                key.add("bind", target.as_os_str().as_encoded_bytes());
                key.add("read only", [u8::from(*read_only)]);
                add_to_key(key, tree, digests, files)?;
            }
            // What a cache holds, and a secret, must not change what a step gives.
            StepMount::Cache { target, id, base, .. } => {
                let id = crate::cache_mounts::which(id, base.as_ref());
                key.add("cache", target.as_os_str().as_encoded_bytes());
                key.add("id", id);
            }
            StepMount::Tmpfs { target, .. } => key.add("tmpfs", target.as_os_str().as_encoded_bytes()),
            StepMount::Host(mount) => key.add("host", mount.destination.as_os_str().as_encoded_bytes()),
            StepMount::Secret { target, variable, .. } => {
                key.add("secret", target.as_ref().map_or(&b""[..], |t| t.as_os_str().as_encoded_bytes()));
                key.add("variable", variable.as_deref().unwrap_or_default());
            }
            StepMount::Ssh { target, .. } => key.add("ssh", target.as_os_str().as_encoded_bytes()),
        }
        Ok(())
    }

    fn prepare(&self, build: &Build<'_>, scratch: &Scratch, number: usize, out: &mut Prepared) -> Result<()> {
        match self {
            StepMount::Bind { target, tree, files, read_only, .. } => {
                let folder = scratch.folder(&format!("mount{number}"))?;
                let source = materialise(build, tree, files, &folder)?;
                out.mounts.push(bind(target.clone(), source, *read_only));
            }
            StepMount::Cache { target, id, base, read_only, sharing, mode, owner, initial, part } => {
                let shared = *sharing != Sharing::Private || part.is_some();
                let which = crate::cache_mounts::which(id, base.as_ref());
                let cache = match out.caches.get(&which).filter(|_| shared) {
                    Some(cache) => cache,
                    None => {
                        out.private.push(cache_mount(build.store, &which, *sharing)?);
                        &out.private[out.private.len() - 1]
                    }
                };
                if !cache.folder.exists() {
                    fill_cache(build, scratch, number, &cache.folder, initial.as_ref(), *mode, *owner)?;
                }
                cache.describe(id);
                let shown = match part {
                    Some(part) => part_of(&cache.folder, part)?,
                    None => cache.folder.clone(),
                };
                out.mounts.push(bind(target.clone(), shown, *read_only));
            }
            StepMount::Tmpfs { target, size } => out.mounts.push(Mount {
                destination: target.clone(),
                kind: MountKind::Tmpfs { size: *size, mode: None, options: Vec::new() },
                read_only: false,
                optional: false,
            }),
            StepMount::Host(mount) => out.mounts.push(mount.clone()),
            StepMount::Secret { target, variable, source, mode, owner } => {
                let bytes = source.read()?;
                if let Some(variable) = variable {
                    out.env.push(format!("{variable}={}", String::from_utf8_lossy(&bytes)));
                }
                if let Some(target) = target {
                    let secret = Secret::new(&bytes)?;
                    give(secret.file(), *mode, *owner, build.store.ownership())?;
                    out.mounts.push(bind(target.clone(), secret.file().to_owned(), true));
                    out.secrets.push(secret);
                }
            }
            StepMount::Ssh { sources: None, .. } => {}
            StepMount::Ssh { target, sources: Some(sources), mode, owner } => {
                let agent = Forward::new(Agent::of(sources)?)?;
                give(agent.socket(), *mode, *owner, build.store.ownership())?;
                out.mounts.push(bind(target.clone(), agent.socket().to_owned(), false));
                out.agents.push(agent);
            }
        }
        Ok(())
    }
}

/// Writes a file that can be run.
pub fn write_script(file: &Path, text: &str) -> Result<()> {
    write_file(file, text, 0o755)
}

fn write_file(file: &Path, text: &str, mode: u32) -> Result<()> {
    std::fs::write(file, text).map_err(Error::io("write", file))?;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", file))
}

/// Copies files into a folder, so that the step sees them as they would be in an image. Says where they are.
fn materialise(build: &Build<'_>, tree: &Tree, files: &[Selection], folder: &Path) -> Result<PathBuf> {
    let ownership = build.store.ownership();
    let nothing = Merged::open(&[], ownership)?;
    let mut upper = Upper::new(folder, &nothing, ownership)?;
    copy(&mut upper, tree, files, &Placement::plain("/source", ownership))?;
    Ok(upper.finish()?.join("source"))
}

/// The cache mount of an ID.
fn cache_mount(store: &Store, id: &str, sharing: Sharing) -> Result<CacheMount> {
    let lock = match sharing {
        Sharing::Shared => CacheLock::Shared,
        Sharing::Locked => CacheLock::Exclusive,
        Sharing::Private => CacheLock::IfFree,
    };
    let mut number = 0u64;
    loop {
        match store.cache_mount(&crate::cache_mounts::name(id, number), lock)? {
            Some(mount) => return Ok(mount),
            // Somebody uses this one, so a private one is another.
            None => number += 1,
        }
    }
}

/// A folder or file in a cache, whose links lead nowhere else.
fn part_of(folder: &Path, part: &Path) -> Result<PathBuf> {
    let tree = Tree::Folder(Folder::open(folder)?);
    match tree.follow(part)? {
        Some((found, _)) => Ok(folder.join(found)),
        None => Err(isles_spec::Error::new(format!("the cache has no '{}'", part.display()))
            .with_hint("'source' of a cache mount is a path in the cache; an earlier step has to make it")
            .into()),
    }
}

/// Makes the folder of a cache mount.
fn fill_cache(
    build: &Build<'_>,
    scratch: &Scratch,
    number: usize,
    folder: &Path,
    initial: Option<&(&Tree, Vec<Selection>)>,
    mode: u32,
    owner: Owner,
) -> Result<()> {
    let base = scratch.folder(&format!("mount{number}"))?;
    let made = match initial {
        Some((tree, files)) => materialise(build, tree, files, &base)?,
        None => {
            let made = base.join("source");
            std::fs::create_dir(&made).map_err(Error::io("create", &made))?;
            made
        }
    };
    give(&made, mode, owner, build.store.ownership())?;
    match std::fs::rename(&made, folder) {
        // Another build was faster.
        Err(_) if folder.exists() => Ok(()),
        other => other.map_err(Error::io("create", folder)),
    }
}

/// Sets mode and owner of something that only we have.
fn give(path: &Path, mode: u32, owner: Owner, ownership: Ownership) -> Result<()> {
    if ownership.keeps_owners() {
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
            .map_err(Error::io("set the owner of", path))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", path))
}

fn bind(destination: PathBuf, source: PathBuf, read_only: bool) -> Mount {
    Mount { destination, kind: MountKind::bind(source, false), read_only, optional: false }
}

/// Gives the root of an upper directory what the root below has, since it is the one that shows.
pub fn like_root(upper: &Path, view: &Merged, ownership: Ownership) -> Result<()> {
    let stat = view.lstat(Path::new("/"))?;
    give(upper, stat.mode, Owner { uid: stat.uid, gid: stat.gid }, ownership)
}

/// The paths that have to be made for something at `target` to be mounted, topmost first.
fn stub(view: &Merged, target: &Path) -> Result<Vec<PathBuf>> {
    let kind = |path: &Path| match view.lstat(path) {
        Ok(stat) => Ok(Some(stat.kind)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(Error::from(e)),
    };
    let place = resolve(target, &kind, &|path| Ok(view.readlink(path)?.into()))?;
    let mut missing = Vec::new();
    for path in place.ancestors().filter(|p| !p.as_os_str().is_empty()) {
        if kind(path)?.is_some() {
            break;
        }
        missing.push(path.to_owned());
    }
    missing.reverse();
    Ok(missing)
}

/// Those of the paths that hold nothing but what was made for mounts. The last of each list is the place of a
/// mount itself.
fn left_over(upper: &Path, stubs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(upper, flags, Mode::empty()).map_err(Error::io("open", upper))?;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut paths: Vec<&PathBuf> = stubs.iter().collect();
    // Deeper ones first, so that a directory is looked at when all below it is known.
    paths.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    paths.dedup();
    let mut out: Vec<PathBuf> = Vec::new();
    for path in paths {
        let kind =
            openat2(&root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), how)
                .and_then(|fd| rustix::fs::fstat(&fd))
                .map(|raw| (rustix::fs::FileType::from_raw_mode(raw.st_mode), raw.st_size));
        let stale = match kind {
            Ok((rustix::fs::FileType::Directory, _)) => {
                let fd = openat2(&root, path, flags, Mode::empty(), how).map_err(Error::io("open", path))?;
                let mut stale = true;
                for entry in rustix::fs::Dir::read_from(&fd).map_err(Error::io("read", path))? {
                    let entry = entry.map_err(Error::io("read", path))?;
                    let name = entry.file_name().to_bytes();
                    let child = path.join(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
                    stale &= matches!(name, b"." | b"..") || out.contains(&child);
                }
                stale
            }
            Ok((rustix::fs::FileType::RegularFile, 0)) => true,
            // The step itself has made something else of it.
            Ok(_) | Err(_) => false,
        };
        if stale {
            out.push(path.clone());
        }
    }
    Ok(out)
}

/// The directories of the layers below that a step changed in nothing but their time, when the places of mounts were
/// made in them.
fn only_touched(
    upper: &Path,
    view: &Merged,
    places: &[PathBuf],
    ownership: Ownership,
) -> Result<Vec<PathBuf>> {
    let above = Merged::open(&[upper.to_owned()], ownership)?;
    let mut out: Vec<PathBuf> = Vec::new();
    for directory in places.iter().filter_map(|p| p.parent()).filter(|p| !p.as_os_str().is_empty()) {
        if places.iter().chain(&out).any(|known| known == directory) {
            continue;
        }
        let (Ok(now), Ok(before)) = (above.lstat(directory), view.lstat(directory)) else { continue };
        let access = |s: &isles_store::Stat| (s.kind, s.mode, s.uid, s.gid);
        if access(&now) != access(&before) || above.xattrs(directory)? != view.xattrs(directory)? {
            continue;
        }
        // Whiteouts, which the view does not show, are changes too.
        let folder = upper.join(directory);
        let mut untouched = true;
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let name = entry.map_err(Error::io("read", &folder))?.file_name();
            untouched &= places.contains(&directory.join(name));
        }
        if untouched {
            out.push(directory.to_owned());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_mounts_vanish_and_what_a_step_made_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        std::fs::create_dir_all(lower.join("etc")).unwrap();
        std::os::unix::fs::symlink("../run/resolv.conf", lower.join("etc/resolv.conf")).unwrap();
        let view = Merged::open(&[lower], Ownership::Single).unwrap();
        let mut stubs = Vec::new();
        for target in ["/proc", "/etc/hosts", "/etc/resolv.conf", "/root/.cache/pip", "/var/kept", "/etc"] {
            stubs.extend(stub(&view, Path::new(target)).unwrap());
        }
        assert!(!stubs.contains(&PathBuf::from("etc")), "it is in the layers below");
        for path in ["proc", "etc", "run", "root/.cache/pip", "var/kept"] {
            std::fs::create_dir_all(upper.join(path)).unwrap();
        }
        for path in ["etc/hosts", "run/resolv.conf", "root/own"] {
            std::fs::write(upper.join(path), "").unwrap();
        }
        std::fs::write(upper.join("var/kept/file"), "x").unwrap();
        let mut gone = left_over(&upper, &stubs).unwrap();
        gone.sort();
        let expected = ["etc/hosts", "proc", "root/.cache", "root/.cache/pip", "run", "run/resolv.conf"];
        assert_eq!(gone, expected.map(PathBuf::from));
        // A step may put a link in the place; it is not followed.
        std::fs::remove_dir_all(upper.join("proc")).unwrap();
        std::os::unix::fs::symlink("/etc", upper.join("proc")).unwrap();
        assert!(!left_over(&upper, &stubs).unwrap().contains(&PathBuf::from("proc")));
    }
}
