//! Files into containers and out of them, as archives, whether they run or not.
//!
//! A child of this process goes into the container's mount namespace ([`isles_sandbox::visit`]) and reads or writes an archive
//! there; this process is the other side of it and never touches a path of the container. Where the container does not
//! run, its root and mounts are made as they would be for its program, and held while the copy lasts. Nothing of the
//! container runs, and nothing is mounted in one that does (CVE-2019-14271, CVE-2026-41567, CVE-2026-41568,
//! CVE-2026-42306); paths there are resolved by the kernel with the container's root as `/`, at the moment of use
//! (CVE-2018-15664).

mod held;
mod host;
mod inside;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use isles_sandbox::visit::visitor;
use isles_spec::Error as Spelling;
use serde::{Deserialize, Serialize};

use crate::background::Target;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{Info, Status};
use held::Held;

/// One report of the child has a message, or the names of what was left out.
const REPORT_LIMIT: u64 = 16 << 20;
const BUFFER: usize = 256 << 10;
/// The name in an archive that stands for whatever a thing is to be called at the other side.
const PLACED: &[u8] = b"x";
/// How many names of things that were left out are told.
const NOTES: usize = 20;

/// What a path in a container leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// The last name of the path.
    pub name: String,
    pub size: u64,
    /// As stat(2) has it, with the kind of file.
    pub mode: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Where a link leads, as it is written in it.
    pub link_target: Option<PathBuf>,
}

impl PathStat {
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

/// How things are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Into a container: all belongs to its user. Out of it: to whom it belongs there.
    pub archive: bool,
    /// A link stands for what it leads to.
    pub follow: bool,
}

/// Where a copy comes from that goes into a container.
pub enum From<'a> {
    Path(&'a Path),
    /// A tar archive.
    Archive(&'a mut dyn Read),
}

/// Where a copy goes that comes out of a container.
pub enum To<'a> {
    Path(&'a Path),
    /// As a tar archive.
    Archive(&'a mut dyn Write),
}

/// What is about to go into a container.
#[derive(Debug, Clone)]
struct Incoming {
    to: Vec<u8>,
    /// `None` for an archive.
    what: Option<Thing>,
    /// The container's user, whom all is to belong to.
    owner: Option<String>,
}

/// A file or a folder that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thing {
    /// Its last name; empty for the root.
    name: Vec<u8>,
    is_dir: bool,
    /// What is in it is meant, and not itself.
    contents: bool,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Found(PathStat),
    Done { left_out: Vec<String> },
    Failed { message: String, hint: Option<String> },
}

impl Engine {
    /// What a path of a container leads to; a link at its end is not followed.
    pub fn stat_path(&self, container: &str, path: &Path) -> Result<PathStat> {
        let wanted = path.as_os_str().as_bytes().to_vec();
        let mut visit = self.visit(container, move |root, _, _| {
            inside::find(&root, &wanted, false).map(|found| found.stat).map(Report::Found)
        })?;
        visit.found()
    }

    /// Copies a file or folder out of a container. Returns the names of what is not copied: sockets, and what this process
    /// may not make.
    pub fn copy_out(
        &self,
        container: &str,
        path: &Path,
        to: To<'_>,
        options: CopyOptions,
    ) -> Result<Vec<String>> {
        let wanted = path.as_os_str().as_bytes().to_vec();
        let thing = |stat: &PathStat| Thing {
            name: stat.name.as_bytes().to_vec(),
            is_dir: stat.is_dir(),
            contents: host::means_contents(path),
        };
        let ownership = self.store.ownership();
        let placed = matches!(to, To::Path(_));
        let mut visit = self.visit(container, move |root, data, reports| {
            let found = inside::find(&root, &wanted, options.follow)?;
            reports.say(&Report::Found(found.stat.clone()))?;
            inside::send(&found, placed.then_some(PLACED), ownership, data)
        })?;
        let found = visit.found()?;
        let mut left_out = match to {
            To::Archive(out) => {
                let copied = std::io::copy(&mut visit.data, out).and_then(|_| out.flush());
                copied.map_err(|e| Error::system("write the archive", e))?;
                Vec::new()
            }
            To::Path(to) => {
                let input = BufReader::with_capacity(BUFFER, &visit.data);
                host::receive(input, &thing(&found), to, options.archive, self)?
            }
        };
        left_out.extend(visit.done()?);
        Ok(left_out)
    }

    /// Copies a file or folder, or what is in an archive, into a container. Returns the names of what is not copied.
    pub fn copy_in(
        &self,
        container: &str,
        from: From<'_>,
        to: &Path,
        options: CopyOptions,
    ) -> Result<Vec<String>> {
        let source = match &from {
            From::Path(path) => Some(host::open(path, options.follow)?),
            From::Archive(_) => None,
        };
        let owner = if options.archive { Some(self.user_of(&self.find(container)?)?) } else { None };
        let incoming = Incoming {
            to: to.as_os_str().as_bytes().to_vec(),
            what: source.as_ref().map(|(_, thing)| thing.clone()),
            owner,
        };
        let (ownership, limits) = (self.store.ownership(), self.store.limits().clone());
        let mut visit = self.visit(container, move |root, data, reports| {
            let (placing, stat) = inside::place(&root, &incoming, ownership)?;
            reports.say(&Report::Found(stat))?;
            inside::take(root, &placing, ownership, &limits, data)
        })?;
        visit.found()?;
        let sent = match (source, from) {
            (Some((held, _)), _) => {
                let out = BufWriter::with_capacity(BUFFER, &visit.data);
                let written = isles_store::write_archive(&held, PLACED, ownership, out);
                written.map_err(Error::from).and_then(|(mut out, left_out)| {
                    out.flush().map_err(|e| Error::system("send the archive", e))?;
                    Ok(left_out.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect())
                })
            }
            (None, From::Archive(input)) => {
                let copied = std::io::copy(input, &mut visit.data);
                copied.map(|_| Vec::new()).map_err(|e| Error::system("send the archive", e))
            }
            (None, From::Path(_)) => Ok(Vec::new()),
        };
        // What ends the archive, also for a child that shares this end.
        drop(visit.data.shutdown(Shutdown::Write));
        // Where the child gave up, its word says more than that nobody reads.
        let done = visit.done();
        let mut left_out: Vec<String> = if done.is_err() { Vec::new() } else { sent? };
        left_out.extend(done?);
        Ok(left_out)
    }

    /// The user of a container as it was asked for, or as its image has it.
    fn user_of(&self, info: &Info) -> Result<String> {
        let workload = &info.record.workload;
        let named = workload.user.clone().filter(|user| !user.is_empty());
        let of_image = || Some(self.image_of(&info.record).ok()??.config.config.user);
        Ok(named.or_else(of_image).unwrap_or_default())
    }

    /// Sends a child into a container to do some work there.
    fn visit(
        &self,
        name: &str,
        work: impl FnOnce(std::os::fd::OwnedFd, &UnixStream, &mut Reports) -> Result<Report>,
    ) -> Result<Visit> {
        let failed = |e| Error::system("look into the container", e);
        let info = self.find(name)?;
        let (data, their_data) = UnixStream::pair().map_err(failed)?;
        let (reports, their_reports) = std::io::pipe().map_err(failed)?;
        let mut visitor = visitor(move |root| {
            let mut reports = Reports(their_reports);
            let report = work(root, &their_data, &mut reports).unwrap_or_else(|e| {
                use isles_spec::Hint;
                Report::Failed { message: e.to_string(), hint: e.hint() }
            });
            // It may be waiting for data that nobody reads.
            drop(their_data.shutdown(Shutdown::Both));
            u8::from(reports.say(&report).is_err())
        })
        .map_err(failed)?;
        let mut container = self.store.container(&info.record.id)?;
        // Where its monitor has written down its end, it is about to let go of it.
        let ended = |id: &str| self.find(id).is_ok_and(|found| found.status == Status::Exited);
        let idle = container.try_lock()? || (ended(&info.record.id) && container.lock().is_ok());
        let held = if idle { Some(self.hold(container, &info.record)?) } else { None };
        let pid = match &held {
            Some(held) => held.pid(),
            None => self.pid_of(&info.record.id)?,
        };
        let go = |visitor: &mut isles_sandbox::visit::Visitor, pid: i32| {
            let target = Target::of(pid).ok_or_else(|| std::io::Error::from_raw_os_error(libc_esrch()))?;
            visitor.send(pid, || target.lives())
        };
        let mut gone = go(&mut visitor, pid);
        if let Err(e) = &gone
            && e.kind() == std::io::ErrorKind::PermissionDenied
            && let Some(program) = crate::join::program_of(pid)
        {
            gone = go(&mut visitor, program.pid);
        }
        gone.map_err(|e| Error::impossible(format!("looking into container {name}"), e.to_string()))?;
        Ok(Visit {
            visitor: Some(visitor),
            data,
            reports: BufReader::new(File::from(std::os::fd::OwnedFd::from(reports))),
            _held: held,
        })
    }
}

fn libc_esrch() -> i32 {
    rustix::io::Errno::SRCH.raw_os_error()
}

/// A child in a container, and what it says.
struct Visit {
    visitor: Option<isles_sandbox::visit::Visitor>,
    data: UnixStream,
    reports: BufReader<File>,
    _held: Option<Held>,
}

impl Visit {
    fn report(&mut self) -> Result<Report> {
        let failed = |e| Error::system("copy", e);
        let mut line = String::new();
        (&mut self.reports).take(REPORT_LIMIT).read_line(&mut line).map_err(failed)?;
        let silent = || failed(std::io::Error::other("the process in the container ended without a word"));
        match serde_json::from_str(&line).map_err(|_| silent())? {
            Report::Failed { message, hint } => Err(said(message, hint)),
            other => Ok(other),
        }
    }

    fn found(&mut self) -> Result<PathStat> {
        match self.report()? {
            Report::Found(stat) => Ok(stat),
            _ => Err(Error::system(
                "copy",
                std::io::Error::other("the process in the container said something odd"),
            )),
        }
    }

    /// Waits for the end of the work.
    fn done(&mut self) -> Result<Vec<String>> {
        let report = self.report()?;
        if let Some(visitor) = self.visitor.take() {
            visitor.wait().map_err(|e| Error::system("copy", e))?;
        }
        match report {
            Report::Done { left_out } => Ok(left_out),
            _ => Ok(Vec::new()),
        }
    }
}

fn said(message: String, hint: Option<String>) -> Error {
    let error = Spelling::new(message);
    match hint {
        Some(hint) => error.with_hint(hint).into(),
        None => error.into(),
    }
}

/// Where the child says what it found.
struct Reports(std::io::PipeWriter);

impl Reports {
    fn say(&mut self, report: &Report) -> Result<()> {
        let mut line =
            serde_json::to_vec(report).map_err(|e| Error::system("report", std::io::Error::other(e)))?;
        line.push(b'\n');
        self.0.write_all(&line).map_err(|e| Error::system("report", e))
    }
}

/// The names of things that are not copied, as many as one reads.
fn notes(names: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = names.len().saturating_sub(NOTES);
    let mut out: Vec<String> = names.take(NOTES).collect();
    if more > 0 {
        out.push(format!("and {more} more"));
    }
    out
}
