//! The access log: a JSON object a line. Credentials are never part of it.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::{Error, Result};

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTo {
    Nowhere,
    /// Standard output.
    Output,
    /// Appended to a file.
    File(PathBuf),
}

/// One answer.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    pub time: String,
    pub peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    pub milliseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<&'a str>,
    /// What else is worth knowing, such as a failed login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'a str>,
}

#[derive(Debug)]
pub struct Log(Option<Mutex<File>>);

impl Log {
    pub fn open(to: &LogTo) -> Result<Log> {
        let file = match to {
            LogTo::Nowhere => None,
            LogTo::Output => {
                let output = std::io::stdout();
                let copy = rustix::io::dup(&output).map_err(|e| Error::Io {
                    doing: "open",
                    object: "standard output".into(),
                    source: e.into(),
                })?;
                Some(File::from(copy))
            }
            LogTo::File(path) => {
                let file = File::options().append(true).create(true).open(path);
                Some(file.map_err(|e| Error::io("open", path, e))?)
            }
        };
        Ok(Log(file.map(Mutex::new)))
    }

    /// Writes a line at once, so that processes can share a file. A log that cannot be written stops nothing.
    pub fn write(&self, line: &Line<'_>) {
        let Some(file) = &self.0 else { return };
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
    }
}
