//! What containers in the background print, in files of the container's folder: written by its monitor ([`writer`]) and
//! read by anyone ([`reader`]). The newest entries are in `log`, older ones in `log.1`, `log.2`, …; an entry is a line of
//! the file in docker's JSON or in the form of Kubernetes' CRI, and a file holds whole entries only, but for the last one
//! of a monitor that was killed. Where the host's journal has the log ([`journal`]), there are no files.

mod about;
mod chain;
mod entry;
mod journal;
mod journal_reader;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use isles_spec::LogDriver;

use crate::record::Record;

pub use about::About;
pub use journal::{SOCKET as JOURNAL, is_there as has_journal};
pub use journal_reader::JournalReader;
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

/// The reading end of a log, wherever it is kept.
pub enum AnyReader<'a> {
    Files(LogReader<'a>),
    Journal(JournalReader<'a>),
}

impl<'a> AnyReader<'a> {
    /// Opens the log of a container, whose folder this is. `lives` says whether somebody may write more.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(
        record: &Record,
        folder: &Path,
        selection: Selection,
        lives: &'a dyn Fn() -> bool,
    ) -> io::Result<AnyReader<'a>> {
        Ok(match record.workload.log.driver {
            LogDriver::Journald => {
                AnyReader::Journal(JournalReader::open(&record.id, folder, selection, lives)?)
            }
            _ => AnyReader::Files(LogReader::open(folder, selection, lives)?),
        })
    }

    /// The next of the entries that have been read already; `None` where there is none, which says nothing about the end.
    pub fn next_ready(&mut self) -> io::Result<Option<&LogEntry>> {
        match self {
            AnyReader::Files(reader) => reader.next_ready(),
            AnyReader::Journal(reader) => reader.next_ready(),
        }
    }

    /// The next entry; `None` at the end, which for those who follow is when nobody writes any more.
    pub fn next_entry(&mut self) -> io::Result<Option<&LogEntry>> {
        match self {
            AnyReader::Files(reader) => reader.next_entry(),
            AnyReader::Journal(reader) => reader.next_entry(),
        }
    }
}
