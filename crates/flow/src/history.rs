//! Runs as others see them: what is written down, and what is true by now.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::record::{self, DATABASE, RunRow, State, StepRow};

/// Why something cannot be had from the records.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the records of runs in {place}")]
    Database { place: PathBuf, source: record::Error },
    #[error("there is no run `{0}`")]
    None(String),
    #[error("there is no run yet")]
    Empty,
    #[error("`{0}` is the beginning of several runs: {1}")]
    Several(String, String),
    #[error("the run {0} is under way")]
    UnderWay(String),
    #[error("the run {0} is not under way: it is {1}")]
    Over(String, &'static str),
    #[error("cannot {doing} {path}")]
    File { doing: &'static str, path: PathBuf, source: io::Error },
}

pub type Result<T> = std::result::Result<T, Error>;

/// The records of a folder.
pub struct History {
    place: PathBuf,
    /// None where nothing was ever written.
    database: Option<Connection>,
}

impl History {
    /// Opens what there is.
    ///
    /// # Errors
    /// The database cannot be read, or is another version's.
    pub fn open(place: &Path) -> Result<History> {
        let database = if place.join(DATABASE).exists() {
            let opened = record::open(place);
            Some(opened.map_err(|source| Error::Database { place: place.to_owned(), source })?)
        } else {
            None
        };
        Ok(History { place: place.to_owned(), database })
    }

    fn ask<T: Default>(&self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let Some(database) = &self.database else { return Ok(T::default()) };
        ask(database).map_err(|e| Error::Database { place: self.place.clone(), source: e.into() })
    }

    /// All runs, the latest first.
    pub fn runs(&self) -> Result<Vec<RunRow>> {
        let mut runs = self.ask(|database| record::read_runs(database, ""))?;
        runs.iter_mut().for_each(|run| self.look(run));
        Ok(runs)
    }

    /// How many steps of each run are in which state.
    pub fn counts(&self) -> Result<Vec<(String, State, u64)>> {
        self.ask(record::count_steps)
    }

    /// The run whose ID begins so; without, the latest.
    pub fn find(&self, prefix: Option<&str>) -> Result<RunRow> {
        let mut runs = self.ask(|database| record::read_runs(database, prefix.unwrap_or_default()))?;
        let Some(prefix) = prefix else {
            let mut run = runs.into_iter().next().ok_or(Error::Empty)?;
            self.look(&mut run);
            return Ok(run);
        };
        if let Some(exact) = runs.iter().position(|run| run.id == prefix) {
            runs = vec![runs.swap_remove(exact)];
        }
        if runs.len() > 1 {
            let ids: Vec<&str> = runs.iter().take(5).map(|run| run.id.as_str()).collect();
            return Err(Error::Several(prefix.into(), ids.join(", ")));
        }
        let mut run = runs.pop().ok_or_else(|| Error::None(prefix.into()))?;
        self.look(&mut run);
        Ok(run)
    }

    pub fn steps(&self, run: &RunRow) -> Result<Vec<StepRow>> {
        let mut steps = self.ask(|database| record::read_steps(database, &run.id))?;
        if run.state != State::Running {
            for step in steps.iter_mut().filter(|step| step.state == Some(State::Running)) {
                step.state = Some(State::Interrupted);
            }
        }
        Ok(steps)
    }

    pub fn log(&self, run: &RunRow, step: &StepRow) -> PathBuf {
        self.place.join(&run.id).join("logs").join(step.number.to_string())
    }

    /// The folder of unfinished work, if there is one.
    pub fn work(&self, run: &RunRow) -> Option<PathBuf> {
        Some(self.place.join(&run.id).join("work")).filter(|work| work.exists())
    }

    /// A run is under way as long as somebody holds its lock.
    fn look(&self, run: &mut RunRow) {
        if run.state == State::Running && !self.held(&run.id) {
            run.state = State::Interrupted;
        }
    }

    fn held(&self, id: &str) -> bool {
        let Ok(lock) = File::options().write(true).open(self.place.join(id).join("lock")) else {
            return false;
        };
        // Shared, so that two who look do not take each other for the run.
        flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// The folder with all that a run left.
    pub fn folder(&self, run: &RunRow) -> PathBuf {
        self.place.join(&run.id)
    }

    /// Asks the process of a run to end it.
    ///
    /// # Errors
    /// It is not under way, or belongs to somebody else.
    pub fn cancel(&self, run: &RunRow) -> Result<()> {
        let over = || Error::Over(run.id.clone(), run.state.name());
        if run.state != State::Running {
            return Err(over());
        }
        let fail = |e: rustix::io::Errno| Error::File {
            doing: "end the process of the run",
            path: run.pid.to_string().into(),
            source: e.into(),
        };
        let pid = i32::try_from(run.pid).ok().and_then(Pid::from_raw).ok_or_else(over)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(fail)?;
        // The lock is held still, so the number was that of the process that holds it.
        if !self.held(&run.id) {
            return Err(over());
        }
        pidfd_send_signal(&process, Signal::TERM).map_err(fail)
    }

    /// Forgets a run: its record, its logs and its work.
    ///
    /// # Errors
    /// It is under way, or a folder cannot be removed.
    pub fn remove(&mut self, run: &RunRow) -> Result<()> {
        let folder = self.place.join(&run.id);
        let lock = File::options().write(true).open(folder.join("lock"));
        if let Ok(lock) = &lock
            && flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            return Err(Error::UnderWay(run.id.clone()));
        }
        if let Err(source) = remove(&folder) {
            return Err(Error::File { doing: "remove", path: folder, source });
        }
        if let Some(database) = &mut self.database {
            record::remove_run(database, &run.id)
                .map_err(|e| Error::Database { place: self.place.clone(), source: e.into() })?;
        }
        Ok(())
    }
}

/// Removes a folder, even where a step took its own right to do so.
pub fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(folder);
            std::fs::remove_dir_all(folder)
        }
        other => other,
    }
}

fn open_up(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if !path.symlink_metadata().is_ok_and(|kind| kind.is_dir()) {
        return;
    }
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        open_up(&entry.path());
    }
}
