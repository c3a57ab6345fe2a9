//! Folders of a run: one for what steps need while they run, and one for what they make.

use std::path::{Path, PathBuf};

use isles_cwl::model::{Body, Process};
use isles_cwl::tool::{self, Settings};
use isles_flow::run::Run;

use crate::failure::Failure;

/// Makes a folder whose name begins as it is asked.
fn folder_at(prefix: Option<&str>) -> Result<PathBuf, Failure> {
    let prefix = match prefix {
        Some(prefix) => prefix.to_owned(),
        None => format!("{}/isles-cwl-", std::env::temp_dir().display()),
    };
    let prefix = std::path::absolute(&prefix).map_or(prefix, |p| p.display().to_string());
    for n in 0..10_000u32 {
        let path = PathBuf::from(format!("{prefix}{}-{n}", std::process::id()));
        match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(Failure::because(format!("cannot make the folder '{}'", path.display()), &e));
            }
        }
    }
    Err(Failure::new(format!("there is no free name at '{prefix}'")))
}

/// The folder in which steps have what they need while they run; gone at the end.
pub struct Scratch {
    pub path: PathBuf,
    keep: bool,
}

impl Scratch {
    pub fn new(prefix: Option<&str>, keep: bool) -> Result<Scratch, Failure> {
        Ok(Scratch { path: folder_at(prefix)?, keep })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = tool::remove(&self.path);
        }
    }
}

/// The folder in which steps have their outputs.
pub struct Outs {
    pub path: PathBuf,
    keep: bool,
    /// It is a part of the run's record, so it can be gone on with.
    of_run: bool,
    /// The first number of a step's folder.
    pub first: u64,
}

impl Outs {
    pub fn new(prefix: Option<&str>, keep: bool, run: &Run) -> Result<Outs, Failure> {
        if let (None, Some(path)) = (prefix, run.work()) {
            let first = first_free(&path)
                .map_err(|e| Failure::because(format!("cannot use the folder '{}'", path.display()), &e))?;
            return Ok(Outs { path, keep, of_run: true, first });
        }
        Ok(Outs { path: folder_at(prefix)?, keep, of_run: false, first: 0 })
    }

    /// After a run that did not get done: what is finished of a workflow stays. Says how to go on.
    pub fn left(self, process: &Process, settings: &Settings) -> Option<String> {
        let id = settings.run.id().map(str::to_owned);
        let is_workflow = matches!(process.body, Body::Workflow(_));
        let finished = std::fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_some());
        let goes_on = self.of_run && is_workflow && finished;
        if !goes_on {
            self.remove();
        }
        let id = id.filter(|_| is_workflow)?;
        Some(if goes_on {
            format!(
                "`isles flow resume {id}` goes on with what is missing; `isles flow show {id}` shows its steps"
            )
        } else {
            format!("`isles flow show {id}` shows its steps")
        })
    }

    pub fn remove(self) {
        if !self.keep {
            let _ = tool::remove(&self.path);
        }
    }
}

/// The first number that no folder of a step has.
fn first_free(work: &Path) -> std::io::Result<u64> {
    let mut first = 0;
    for entry in std::fs::read_dir(work)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.split_once('.')?.0.parse::<u64>().ok());
        first = first.max(number.map_or(0, |n| n + 1));
    }
    Ok(first)
}
