//! What containers in the background print, in files of the container's folder: written by its monitor ([`writer`]) and
//! read by anyone ([`reader`]). The newest entries are in `log`, older ones in `log.1`, `log.2`, …; an entry is a line of
//! the file in docker's JSON or in the form of Kubernetes' CRI, and a file holds whole entries only, but for the last one
//! of a monitor that was killed.

mod entry;
mod reader;
mod writer;

use std::path::{Path, PathBuf};

pub use reader::{LogEntry, LogReader, Selection};
pub(crate) use writer::Writer;

/// Which of its outputs a program wrote to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stream {
    #[default]
    Stdout,
    Stderr,
}

impl Stream {
    /// As logs call it.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The file with the newest entries (0), or older ones.
pub(crate) fn file(folder: &Path, number: u32) -> PathBuf {
    match number {
        0 => folder.join("log"),
        n => folder.join(format!("log.{n}")),
    }
}
