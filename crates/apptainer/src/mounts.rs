//! What of the host is shown in the container: what Apptainer shows by default, and what the caller binds.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isles_engine::image_file;
use isles_spec::{Mount, MountKind, NetworkMode, Writable};

use crate::action_flags as flags;
use crate::bind::{self, Bind};
use crate::contents::Contents;
use crate::environment::LIBS;
use crate::failure::Failure;
use crate::fusemount;
use crate::identity_files;
use crate::launch::Launch;
use crate::parse::Values;
use crate::place::{Home, isles_path};
use crate::talk::Talk;

/// Files of variables, of hosts and the like.
const LARGEST: u64 = 16 << 20;
const ONLY_LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// Folders of the system that are not mounted because the caller is in them.
const OF_SYSTEM: [&str; 10] =
    ["/", "/etc", "/bin", "/mnt", "/usr", "/var", "/opt", "/sbin", "/lib", "/lib64"];

/// All mounts of a container, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Shown {
    pub mounts: Vec<Mount>,
    /// Where the caller's binds begin: they come last, so that they can be inside of the others.
    binds_at: usize,
    /// Destinations of the caller's, for containers in the container.
    pub bound: Vec<String>,
    /// /dev of the host was bound although the rest is contained.
    pub whole_dev: bool,
    /// Libraries of the host are among them.
    pub libraries: bool,
}

impl Shown {
    /// Adds mounts that the caller's binds can still cover.
    pub fn add_below_binds(&mut self, mounts: Vec<Mount>) {
        let count = mounts.len();
        self.mounts.splice(self.binds_at..self.binds_at, mounts);
        self.binds_at += count;
    }
}

/// Decides all mounts.
pub fn shown(launch: &Launch<'_>, contents: &Contents, writable: &Writable) -> Result<Shown, Failure> {
    let mut out = Shown::default();
    host_files(launch, &mut out.mounts);
    temporary_and_home(launch, &mut out.mounts)?;
    let mut binds = all_binds(launch.cx.values, launch.place.cwd.as_deref())?;
    if !binds.is_empty() && !launch.settings.site.is("user bind control") {
        launch
            .cx
            .talk
            .warning("Ignoring user bind request: user bind control disabled by system administrator");
        binds.clear();
    }
    current_folder(launch, &binds, &mut out.mounts);
    names(launch, contents, writable, &mut out.mounts)?;
    out.binds_at = out.mounts.len();
    for bind in &parents_first(binds, &launch.cx.talk) {
        if bind.destination == Path::new("/dev") && bind.source == Path::new("/dev") {
            out.whole_dev = true;
            continue;
        }
        out.libraries |= bind.destination.starts_with(LIBS);
        if !bind.unnested {
            out.bound.push(bind.destination.to_string_lossy().into_owned());
        }
        out.mounts.push(of_bind(bind)?);
    }
    let served = launch.cx.values.list(&flags::FUSEMOUNT);
    if !served.is_empty() && !launch.settings.site.is("enable fusemount") {
        return Err(Failure::new("fusemount disabled by configuration 'enable fusemount = no'"));
    }
    // Last: nobody answers in them while others are made.
    for text in served {
        out.mounts.push(fusemount::parse(text)?);
    }
    Ok(out)
}

/// Binds as they are mounted: one into a folder after that folder's own, in whatever order they were given. Of two with
/// the same destination the first counts.
fn parents_first(binds: Vec<Bind>, talk: &Talk) -> Vec<Bind> {
    let mut out: Vec<Bind> = Vec::with_capacity(binds.len());
    for bind in binds {
        if out.iter().any(|known| known.destination == bind.destination) {
            let (source, destination) = (bind.source.display(), bind.destination.display());
            talk.warning(&format!(
                "While bind mounting '{source}:{destination}': destination is already in the mount point list"
            ));
        } else {
            out.push(bind);
        }
    }
    out.sort_by_key(|bind| bind.destination.components().count());
    out
}

/// A library that is lent under its own name (`--containlibs`).
pub fn library(path: &Path) -> Mount {
    let name = path.file_name().unwrap_or_default();
    Mount { read_only: true, ..Mount::bind(path, Path::new(LIBS).join(name)) }
}

/// A file of the caller's, of a bounded size.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = File::open(path).and_then(|file| isles_store::read_bounded(file, LARGEST))?;
    let bytes = bytes.ok_or_else(|| io::Error::other("it is too large"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn empty(destination: &Path, mode: u32, size: Option<u64>) -> Mount {
    let kind = MountKind::Tmpfs { size, mode: Some(mode), options: vec!["exec".into()] };
    Mount { destination: destination.to_owned(), kind, read_only: false, optional: false }
}

fn text_file(destination: &str, text: String) -> Mount {
    let kind = MountKind::File { text, mode: 0o644 };
    Mount { destination: destination.into(), kind, read_only: false, optional: true }
}

/// The time zone and the names of hosts.
fn host_files(launch: &Launch<'_>, out: &mut Vec<Mount>) {
    let settings = &launch.settings;
    for (source, path) in settings.site.bind_paths() {
        if settings.without(path) {
            continue;
        }
        // The engine knows the names of a network of the container's own.
        if path == "/etc/hosts" && settings.network.is_own() {
            continue;
        }
        // A network without connections has no other hosts.
        if path == "/etc/hosts" && settings.contain && settings.network.mode != NetworkMode::Host {
            out.push(text_file(path, ONLY_LOCALHOST.to_owned()));
        } else if let Ok(source) = fs::canonicalize(source) {
            out.push(Mount { optional: true, ..Mount::bind(&source, Path::new(path)) });
        }
    }
}

fn temporary_and_home(launch: &Launch<'_>, out: &mut Vec<Mount>) -> Result<(), Failure> {
    let (settings, place) = (&launch.settings, &launch.place);
    let workdir = launch
        .cx
        .values
        .word(&flags::WORKDIR)
        .map(|dir| absolute(place.cwd.as_deref(), Path::new(dir)))
        .transpose()?;
    let in_workdir = |name: &str, mode: u32, destination: &Path| -> Result<Mount, Failure> {
        match &workdir {
            Some(workdir) if !workdir.is_dir() => {
                Err(Failure::new(format!("the folder {} of --workdir does not exist", workdir.display()))
                    .with_hint("make it first"))
            }
            Some(workdir) => {
                let folder = workdir.join(name);
                make(&folder, mode)?;
                Ok(Mount::bind(&folder, destination))
            }
            None => Ok(empty(destination, mode, settings.site.session_size())),
        }
    };
    if !settings.without("tmp") {
        for (path, name) in [("/tmp", "tmp"), ("/var/tmp", "var_tmp")] {
            let path = Path::new(path);
            if settings.contain {
                out.push(in_workdir(name, 0o1777, path)?);
            } else if path.is_dir() {
                out.push(Mount::bind(path, path));
            }
        }
    }
    // After those, because a home may be in them.
    match &place.at_home {
        Home::OfImage => {}
        Home::Bound(source) => out.push(Mount::bind(source, &place.home)),
        Home::Empty if settings.contain => out.push(in_workdir("home", 0o700, &place.home)?),
        Home::Empty => out.push(empty(&place.home, 0o700, settings.site.session_size())),
    }
    for scratch in launch.cx.values.list(&flags::SCRATCH) {
        if !scratch.starts_with('/') {
            return Err(Failure::new(format!("the scratch folder '{scratch}' is not an absolute path")));
        }
        let destination = isles_path(Path::new(scratch));
        out.push(in_workdir(&format!("scratch{}", destination.display()), 0o750, &destination)?);
    }
    Ok(())
}

/// Makes a folder of `--workdir`, with those above it.
fn make(folder: &Path, mode: u32) -> Result<(), Failure> {
    if folder.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).and_then(|()| {
        // Whatever the umask says.
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))
    });
    made.map_err(|e| Failure::because(format!("failed to create {}", folder.display()), &e))
}

fn absolute(here: Option<&Path>, path: &Path) -> Result<PathBuf, Failure> {
    match (here, path.is_absolute()) {
        (_, true) => Ok(isles_path(path)),
        (Some(here), false) => Ok(isles_path(&here.join(path))),
        (None, false) => {
            Err(Failure::new(format!("'{}' is relative to a folder that is gone", path.display())))
        }
    }
}

/// The current folder, where it is not there with something else already.
fn current_folder(launch: &Launch<'_>, binds: &[Bind], out: &mut Vec<Mount>) {
    let settings = &launch.settings;
    let wanted = !settings.contain && !settings.without("cwd") && settings.site.is("user bind control");
    let Some(cwd) = launch.place.cwd.as_ref().filter(|_| wanted) else {
        return;
    };
    let real = fs::canonicalize(cwd).unwrap_or_else(|_| cwd.clone());
    for path in [cwd, &real] {
        let of_kernel = ["/sys", "/proc", "/dev"].iter().any(|folder| path.starts_with(folder));
        if of_kernel || OF_SYSTEM.iter().any(|folder| path == Path::new(folder)) {
            return;
        }
    }
    let covered = out.iter().any(|mount| cwd.starts_with(&mount.destination))
        || binds.iter().any(|bind| cwd.starts_with(&bind.destination));
    if !covered {
        out.push(Mount { optional: true, ..Mount::bind(&real, cwd) });
    }
}

/// Who is who, and how names of hosts are found.
fn names(
    launch: &Launch<'_>,
    contents: &Contents,
    writable: &Writable,
    out: &mut Vec<Mount>,
) -> Result<(), Failure> {
    let (cx, settings, caller) = (launch.cx, &launch.settings, &launch.caller);
    let wanted = |name: &str| settings.site.is(&format!("config {name}"));
    if !settings.without("/etc/resolv.conf") && wanted("resolv_conf") && !settings.network.is_own() {
        let text = match cx.values.word(&flags::DNS) {
            Some(servers) => Some(identity_files::resolv_conf(servers).map_err(Failure::new)?),
            None => read_text(Path::new("/etc/resolv.conf")).ok(),
        };
        out.extend(text.map(|text| text_file("/etc/resolv.conf", text)));
    }
    if let Some(name) = cx.values.word(&flags::HOSTNAME) {
        out.push(text_file("/etc/hostname", format!("{name}\n")));
    }
    let uid = if settings.fakeroot { 0 } else { settings.uid.unwrap_or(caller.uid) };
    // Root may change who is who, in a container that can be written to.
    if uid == 0 && *writable != Writable::Nowhere {
        return Ok(());
    }
    match contents.read_text("/etc/passwd") {
        _ if !wanted("passwd") => {}
        Some(image) => {
            let text = identity_files::passwd(&image, caller, uid, &launch.place.home);
            out.push(text_file("/etc/passwd", text));
        }
        None => cx.talk.warning("passwd file doesn't exist in container, not updating"),
    }
    match contents.read_text("/etc/group") {
        _ if !wanted("group") => {}
        Some(image) => {
            let groups = if settings.fakeroot { &[][..] } else { &caller.groups };
            out.push(text_file("/etc/group", identity_files::group(&image, caller, groups)));
        }
        None => cx.talk.warning("group file doesn't exist in container, not updating"),
    }
    Ok(())
}

/// The binds of `--bind` and `--mount`, with absolute paths; relative ones are of `here`.
pub fn all_binds(values: &Values, here: Option<&Path>) -> Result<Vec<Bind>, Failure> {
    let mut out = Vec::new();
    for word in values.list(&flags::BIND) {
        out.extend(bind::binds(word).map_err(|why| Failure::new(format!("while parsing bind path: {why}")))?);
    }
    for word in values.list(&flags::MOUNT) {
        let mounts = bind::mounts(word);
        out.extend(mounts.map_err(|why| Failure::new(format!("while parsing mount \"{word}\": {why}")))?);
    }
    for bind in &mut out {
        bind.source = absolute(here, &bind.source)?;
        bind.destination = absolute(here, &bind.destination)?;
        if bind.destination == Path::new("/") {
            return Err(Failure::new(format!("could not bind {} to /", bind.source.display()))
                .with_hint("name a place in the container"));
        }
    }
    Ok(out)
}

/// What the engine mounts for a bind.
pub fn of_bind(bind: &Bind) -> Result<Mount, Failure> {
    if bind.is_image() {
        return of_image(bind);
    }
    if let Err(e) = fs::metadata(&bind.source) {
        let source = bind.source.display();
        let what = format!("mount {source}->{} error: while mounting {source}", bind.destination.display());
        return Err(match e.kind() {
            io::ErrorKind::NotFound => Failure::new(format!("{what}: mount source {source} doesn't exist")),
            _ => Failure::because(what, &e),
        });
    }
    Ok(Mount { read_only: bind.read_only, ..Mount::bind(&bind.source, &bind.destination) })
}

/// A path of an image file, or of one of the objects of a SIF file.
fn of_image(bind: &Bind) -> Result<Mount, Failure> {
    let file = image_file::open(&bind.source)?;
    let image = match &bind.image_id {
        None => image_file::find(&bind.source, &file)?,
        Some(id) => {
            let number: u32 =
                id.parse().map_err(|_| Failure::new(format!("the object '{id}' is no number")))?;
            let sif = isles_sif::Sif::from_file(file, bind.source.display().to_string())
                .map_err(|e| Failure::because("while reading the image to bind", &e))?;
            let object =
                sif.object(number).map_err(|e| Failure::because("while reading the image to bind", &e))?;
            let file_system = object.partition().map(|partition| partition.file_system);
            let kind = match file_system {
                Some(isles_sif::FileSystem::Squashfs) => isles_spec::FileSystemKind::Squashfs,
                Some(isles_sif::FileSystem::Ext3) => isles_spec::FileSystemKind::Ext,
                _ => {
                    let path = bind.source.display();
                    return Err(Failure::unsupported(
                        format!("binding the object {number} of {path}"),
                        "objects with a file system of squashfs or ext3 can be bound",
                    ));
                }
            };
            let (offset, size) = (object.offset, Some(object.size));
            isles_spec::ImageFile { path: bind.source.clone(), kind, offset, size }
        }
    };
    let inside = bind.image_path.clone().unwrap_or_else(|| "/".into());
    let kind = MountKind::Image { image, inside };
    Ok(Mount { destination: bind.destination.clone(), kind, read_only: bind.read_only, optional: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::talk::Level;

    #[test]
    fn folders_are_bound_before_what_is_in_them() {
        let talk = Talk::new(Level::Fatal, false);
        for (words, order) in [
            (&["/a:/x/y", "/b:/x"][..], &["/b", "/a"][..]),
            (&["/a:/x", "/b:/x/y", "/c:/w"], &["/a", "/c", "/b"]),
            (&["/a:/x", "/b:/x", "/c:/x/"], &["/a"]),
        ] {
            let binds = words.iter().flat_map(|word| bind::binds(word).unwrap()).collect();
            let sources: Vec<_> = parents_first(binds, &talk).into_iter().map(|b| b.source).collect();
            assert_eq!(sources, order.iter().map(PathBuf::from).collect::<Vec<_>>(), "{words:?}");
        }
    }
}
