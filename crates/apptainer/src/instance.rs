//! Instances: containers in the background that have a name.
//!
//! Each has a file below `~/.apptainer/instances/app/HOST/USER/NAME`, with Apptainer's fields and two of ours, which tell
//! the processes from later ones of the same number; output goes to `…/logs/HOST/USER/NAME.out` and `.err`. A file whose
//! instance has ended is removed by whoever finds it. The names of an instance are found by a glob, as with Apptainer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use isles_engine::{Engine, Foreground, Started, Target};
use isles_spec::{NetworkMode, Workload};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::caller::Caller;
use crate::command::Context;
use crate::contents::Contents;
use crate::failure::Failure;
use crate::image;
use crate::launch::{Launch, not_started};

/// A record has a kilobyte.
const LARGEST: u64 = 1 << 20;

/// What is remembered of an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The first process of the container.
    pub pid: i32,
    /// The process that stays with it.
    pub ppid: i32,
    pub name: String,
    pub user: String,
    pub image: String,
    #[serde(default)]
    config: String,
    pub userns: bool,
    pub cgroup: bool,
    #[serde(default)]
    pub ip: String,
    #[serde(rename = "logErrPath")]
    pub log_err: PathBuf,
    #[serde(rename = "logOutPath")]
    pub log_out: PathBuf,
    #[serde(default)]
    checkpoint: String,
    #[serde(default, rename = "sharensMode")]
    pub shared: bool,
    pub process: Target,
    pub monitor: Target,
    /// What the programs of its image are started with.
    #[serde(default)]
    fakeroot: bool,
}

/// Where the records and logs of a user are.
pub struct Shelf {
    instances: PathBuf,
    /// `HOST/USER`
    below: PathBuf,
    /// The user whose it is, where root looks at what another has written. Nothing of it is believed or changed then:
    /// its links lead nowhere, and a process is an instance only where it is that user's.
    other: Option<u32>,
}

impl Shelf {
    pub fn of(config_dir: &Path, user: &str) -> Shelf {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Shelf { instances: config_dir.join("instances"), below: Path::new(&host).join(user), other: None }
    }

    /// That of the caller, or, for root, of another user.
    pub fn find(cx: &Context<'_>, user: Option<&str>) -> Result<Shelf, Failure> {
        let Some(user) = user else { return Ok(Shelf::of(&cx.config_dir()?, &Caller::find().name)) };
        let (uid, home) =
            Caller::named(user).ok_or_else(|| Failure::new(format!("no user named {user} found")))?;
        Ok(Shelf { other: Some(uid), ..Shelf::of(&home.join(".apptainer"), user) })
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.instances.join("app").join(&self.below).join(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder(name).join(format!("{name}.json"))
    }

    fn log(&self, name: &str, kind: &str) -> PathBuf {
        self.instances.join("logs").join(&self.below).join(format!("{name}.{kind}"))
    }

    /// Those whose names match and that run; the files of others are removed.
    pub fn list(&self, pattern: &str) -> Result<Vec<Record>, Failure> {
        let failed = |e: rustix::io::Errno| {
            Failure::because(format!("cannot read '{}'", self.folder("").display()), &io::Error::from(e))
        };
        let folder = match self.open(&Path::new("app").join(&self.below), OFlags::DIRECTORY) {
            Ok(folder) => folder,
            Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in Dir::new(folder).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().to_str().ok().map(str::to_owned));
        }
        names.retain(|name| check_name(name).is_ok() && matches(pattern, name));
        names.sort();
        let mut out = Vec::new();
        for name in names {
            match self.read(&name) {
                Some(record) if self.runs(&record) => out.push(record),
                Some(_) => self.forget(&name),
                None => {}
            }
        }
        Ok(out)
    }

    /// The instance of exactly this name.
    pub fn get(&self, name: &str) -> Result<Record, Failure> {
        check_name(name)?;
        match self.read(name).filter(|record| self.runs(record)) {
            Some(record) => Ok(record),
            None => Err(Failure::new(format!("no instance found with name {name}"))
                .with_hint("`apptainer instance list` shows those that run")),
        }
    }

    fn runs(&self, record: &Record) -> bool {
        let theirs = |process: Target| !process.lives() || self.may_signal(process);
        record.monitor.lives() && theirs(record.monitor) && theirs(record.process)
    }

    fn may_signal(&self, process: Target) -> bool {
        process.pid > 1 && self.other.is_none_or(|user| user_of(process.pid) == Some(user))
    }

    /// Sends a signal to a process of an instance; one that has ended meanwhile needs none.
    pub fn signal(&self, process: Target, signal: Signal) {
        signal_if(process, signal, || self.may_signal(process));
    }

    /// Opens what is below the shelf, through no link.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let shelf = openat(CWD, &self.instances, folder, Mode::empty())?;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&shelf, path, flags, Mode::empty(), how)
    }

    fn read(&self, name: &str) -> Option<Record> {
        let path = Path::new("app").join(&self.below).join(name).join(format!("{name}.json"));
        // A pipe is opened at once, too.
        let file = File::from(self.open(&path, OFlags::NOFOLLOW | OFlags::NONBLOCK).ok()?);
        let about = file.metadata().ok()?;
        if !about.is_file() || self.other.is_some_and(|user| about.uid() != user) {
            return None;
        }
        let mut record: Record =
            serde_json::from_slice(&isles_store::read_bounded(file, LARGEST).ok()??).ok()?;
        // What says which process it is counts, and not what stands beside it for others.
        name.clone_into(&mut record.name);
        (record.pid, record.ppid) = (record.process.pid, record.monitor.pid);
        record.image.retain(|c| !c.is_control());
        record.ip.retain(|c| !c.is_control());
        (record.pid > 1 && record.ppid > 1).then_some(record)
    }

    /// Removes the file of an instance; that of another user's is left to them.
    pub fn forget(&self, name: &str) {
        let above = Path::new("app").join(&self.below);
        if self.other.is_some() || check_name(name).is_err() {
            return;
        }
        if let Ok(folder) = self.open(&above.join(name), OFlags::PATH | OFlags::DIRECTORY) {
            let _ = unlinkat(&folder, format!("{name}.json"), AtFlags::empty());
        }
        if let Ok(above) = self.open(&above, OFlags::PATH | OFlags::DIRECTORY) {
            let _ = unlinkat(&above, name, AtFlags::REMOVEDIR);
        }
    }

    /// Reserves a name, by the folder of its record: two that start at once cannot both have it.
    fn reserve(&self, name: &str) -> Result<(), Failure> {
        check_name(name)?;
        let taken = || Failure::new(format!("instance {name} already exists"));
        if self.read(name).is_some_and(|record| self.runs(&record)) {
            return Err(taken());
        }
        self.forget(name);
        let above = self.folder("");
        private_folders(&above)?;
        match fs::DirBuilder::new().mode(0o700).create(self.folder(name)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(taken()),
            Err(e) => Err(Failure::because(format!("cannot remember the instance {name}"), &e)),
        }
    }

    /// The files of output and errors, to be added to.
    fn logs(&self, name: &str) -> Result<(File, File), Failure> {
        let open = |kind: &str| -> Result<File, Failure> {
            let path = self.log(name, kind);
            private_folders(path.parent().unwrap_or(Path::new("/")))?;
            // Not through a link that somebody left there.
            let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
            let opened =
                File::options().append(true).create(true).mode(0o644).custom_flags(flags).open(&path);
            opened.map_err(|e| {
                Failure::because(format!("failed to create instance log file {}", path.display()), &e)
            })
        };
        Ok((open("out")?, open("err")?))
    }

    fn write(&self, record: &Record) -> Result<(), Failure> {
        let place = self.file(&record.name);
        let failed = |e: &dyn std::error::Error| {
            Failure::new(format!("failed to write instance file {}: {e}", place.display()))
        };
        let text = serde_json::to_vec(record).map_err(|e| failed(&e))?;
        let unfinished = self.folder(&record.name).join(format!(".{}", isles_store::random_name()));
        let written = File::options().write(true).create_new(true).mode(0o644).open(&unfinished).and_then(
            |mut file| {
                file.write_all(&text)?;
                fs::rename(&unfinished, &place)
            },
        );
        written.map_err(|e| failed(&e))
    }
}

fn private_folders(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| Failure::because(format!("cannot make the folder '{}'", path.display()), &e))
}

/// Letters, digits, `.`, `_` and `-`.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !name.is_empty() && name.bytes().all(fine) && name != "." && name != ".." {
        return Ok(());
    }
    Err(Failure::new(format!("{name} is not a valid instance name"))
        .with_hint("it has letters, digits, '.', '_' and '-'"))
}

/// glob(7) with `*` and `?`.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where the last star was, and what of the name it has taken.
    let (mut at, mut on, mut star) = (0, 0, None);
    while on < n.len() {
        match p.get(at) {
            Some('*') => {
                star = Some((at, on));
                at += 1;
            }
            Some(c) if *c == '?' || *c == n[on] => {
                at += 1;
                on += 1;
            }
            _ => match &mut star {
                Some((place, taken)) => {
                    *taken += 1;
                    (at, on) = (*place + 1, *taken);
                }
                None => return false,
            },
        }
    }
    p[at..].iter().all(|c| *c == '*')
}

/// What the program around wants to know of a start.
pub struct Watch<'a> {
    /// Told the first process of the container, by the process that stays with it.
    pub started: &'a dyn Fn(i32),
    pub shared: bool,
}

/// Starts an instance, and comes back when its first program runs.
pub fn start(launch: &Launch<'_>, image: &str, name: &str, watch: &Watch<'_>) -> Result<Record, Failure> {
    let cx = launch.cx;
    let shelf = Shelf::find(cx, None)?;
    if image.starts_with("instance://") {
        return Err(Failure::new("starting an instance from another is not allowed"));
    }
    shelf.reserve(name)?;
    let record = started(launch, image, name, &shelf, watch);
    if record.is_err() {
        shelf.forget(name);
    }
    record
}

fn started(
    launch: &Launch<'_>,
    image: &str,
    name: &str,
    shelf: &Shelf,
    watch: &Watch<'_>,
) -> Result<Record, Failure> {
    let engine = launch.engine()?;
    let image = image::acquire(launch.cx, &engine, image)?;
    let (out, err) = shelf.logs(name)?;
    let contents = Contents::open(&engine, &image)?;
    let mut workload =
        Workload { interactive: false, init_stays: true, ..launch.workload(&image, &contents)? };
    if launch.settings.boot {
        (workload.init, workload.init_stays) = (false, false);
    }
    if watch.shared {
        // Those who share it run their programs in it; by itself it is only there.
        workload.command = ["/bin/sh", "-c", ":"].map(str::to_owned).into();
    }
    let foreground = Foreground {
        image: image.store_image.as_ref(),
        file: image.file.as_ref(),
        inside: Some(contents.inside()),
        started: watch.started,
        warn: &|text| launch.warn(text),
        ..Foreground::default()
    };
    let Started { process, monitor, id } =
        engine.start(&workload, &foreground, &out, &err).map_err(|e| not_started(e, &workload))?;
    let record = Record {
        pid: process.pid,
        ppid: monitor.pid,
        name: name.to_owned(),
        user: launch.caller.name.clone(),
        image: image.name.clone(),
        config: String::new(),
        userns: launch.caller.uid != 0 || launch.settings.userns,
        cgroup: false,
        ip: address(&engine, &id, &workload.network),
        log_err: shelf.log(name, "err"),
        log_out: shelf.log(name, "out"),
        checkpoint: String::new(),
        shared: watch.shared,
        process,
        monitor,
        fakeroot: launch.settings.fakeroot,
    };
    // Nobody could find it without its file.
    shelf.write(&record).inspect_err(|_| kill(monitor, Signal::KILL))?;
    Ok(record)
}

/// The address of an instance by which others reach it, where it has one of its own.
fn address(engine: &Engine, id: &str, network: &NetworkMode) -> String {
    if *network == NetworkMode::None {
        return "127.0.0.1".to_owned();
    }
    // One that has ended meanwhile has none any more.
    let places = engine.places_of(id).ok().flatten();
    let first = places.and_then(|places| places.endpoints.first()?.addresses.first().copied());
    first.map(|(address, _)| address.to_string()).unwrap_or_default()
}

/// Runs a program in an instance.
pub fn join(launch: &Launch<'_>, name: &str) -> Result<u8, Failure> {
    let record = Shelf::find(launch.cx, None)?.get(name)?;
    in_instance(launch, &record)
}

/// The same, where the instance is known.
pub fn in_instance(launch: &Launch<'_>, record: &Record) -> Result<u8, Failure> {
    if !crate::limits::resources(launch.cx.values)?.is_empty() {
        launch.cx.talk.warning(
            "Resource limits & cgroups configuration are only applied to instances at instance start.",
        );
    }
    let engine = launch.cx.engine_single()?;
    let root = PathBuf::from(format!("/proc/{}/root", record.pid));
    let mut image = image::of_folder(root, record.image.clone());
    let contents = Contents::open(&engine, &image)?;
    image.name.clone_from(&record.image);
    let workload = launch.workload_inside(&image, &contents, record.fakeroot)?;
    let foreground = Foreground { warn: &|text| launch.warn(text), ..Foreground::default() };
    let exit = engine.run_in(record.process, &workload, &foreground);
    let exit = exit.map_err(|e| not_started(e, &workload))?;
    drop((contents, image, engine));
    Ok(exit.pass_on())
}

/// Sends a signal; one that has ended meanwhile needs none.
pub fn kill(process: Target, signal: Signal) {
    signal_if(process, signal, || true);
}

/// The process is held while it is looked at, so that none that has its number later gets the signal.
fn signal_if(process: Target, signal: Signal, fine: impl FnOnce() -> bool) {
    let Some(pid) = Pid::from_raw(process.pid).filter(|_| process.pid > 1) else { return };
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if process.lives() && fine() {
        let _ = pidfd_send_signal(held, signal);
    }
}

/// The real user ID of a process: who may send it signals.
fn user_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(name: &str, process: Target) -> Record {
        Record {
            pid: process.pid,
            ppid: process.pid,
            name: name.into(),
            user: "me".into(),
            image: "/x.sif".into(),
            config: String::new(),
            userns: true,
            cgroup: false,
            ip: String::new(),
            log_err: "/e".into(),
            log_out: "/o".into(),
            checkpoint: String::new(),
            shared: false,
            process,
            monitor: process,
            fakeroot: false,
        }
    }

    #[test]
    fn names_are_given_once_while_their_instance_lives() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::of(dir.path(), "me");
        assert!(shelf.list("*").unwrap().is_empty());
        let own = Target::of(std::process::id().cast_signed()).unwrap();
        for (name, process) in [("web", own), ("web-2", own), ("gone", Target { began: 1, ..own })] {
            shelf.reserve(name).unwrap();
            shelf.write(&record(name, process)).unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            shelf.list(pattern).unwrap().into_iter().map(|record| record.name).collect()
        };
        assert_eq!(names("*"), ["web", "web-2"]);
        assert_eq!(names("web-?"), ["web-2"]);
        assert!(shelf.reserve("web").unwrap_err().message.contains("already exists"));
        assert!(shelf.reserve("gone").is_ok());
        assert!(shelf.get("gone").is_err() && shelf.get("web").is_ok());
        let mode = fs::metadata(dir.path().join("instances")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let text = fs::read_to_string(shelf.file("web")).unwrap();
        for field in ["\"pid\":", "\"ppid\":", "\"logErrPath\":\"/e\"", "\"sharensMode\":false"] {
            assert!(text.contains(field), "{field}: {text}");
        }
    }

    #[test]
    fn what_another_user_wrote_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let own = Target::of(std::process::id().cast_signed()).unwrap();
        let shelf = Shelf::of(dir.path(), "me");
        let (uid, other) = (rustix::process::geteuid().as_raw(), "someone");
        for (name, record) in [
            ("fine", record("fine", own)),
            // The number beside the process, and the name, are not what counts.
            ("number", Record { pid: -1, ..record("../../x", own) }),
            ("odd", Record { image: "a\x1b[2Jb".into(), ip: "\r1".into(), ..record("odd", own) }),
            ("all", record("all", Target { pid: -1, ..own })),
            ("gone", record("gone", Target { began: 1, ..own })),
        ] {
            shelf.reserve(name).unwrap();
            fs::write(shelf.file(name), serde_json::to_vec(&record).unwrap()).unwrap();
        }
        for name in ["link", "pipe"] {
            shelf.reserve(name).unwrap();
        }
        std::os::unix::fs::symlink(shelf.file("fine"), shelf.file("link")).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, shelf.file("pipe"), pipe, Mode::from_raw_mode(0o600), 0).unwrap();
        std::os::unix::fs::symlink(shelf.folder("fine"), shelf.folder("folder")).unwrap();

        let theirs = |user| Shelf { other: Some(user), ..Shelf::of(dir.path(), "me") };
        let found = theirs(uid).list("*").unwrap();
        let names: Vec<_> = found.iter().map(|r| (r.name.as_str(), r.pid, r.image.as_str())).collect();
        let image = "/x.sif";
        assert_eq!(names, [("fine", own.pid, image), ("number", own.pid, image), ("odd", own.pid, "a[2Jb")]);
        assert!(theirs(uid).get("gone").is_err() && shelf.file("gone").exists(), "it is left to {other}");
        assert!(theirs(uid + 1).list("*").unwrap().is_empty(), "the files are not {other}'s");
        assert!(shelf.get("link").is_err() && shelf.get("folder").is_err());
        assert_eq!(shelf.list("*").unwrap().len(), 3);
        assert!(!shelf.file("gone").exists());
        assert_eq!(user_of(own.pid), Some(rustix::process::getuid().as_raw()));
        assert!(!theirs(uid + 1).may_signal(own) && theirs(uid).may_signal(own));
    }

    #[test]
    fn names_and_globs() {
        for bad in ["", "a/b", "..", "a b", "ü"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("web-1.2_x").is_ok());
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "x", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("*b*b", "abab", true),
            ("a?", "ab", true),
            ("a?", "a", false),
            ("ab", "abc", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
