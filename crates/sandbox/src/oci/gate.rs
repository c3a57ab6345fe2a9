//! The two FIFOs between `create`, which leaves a process waiting, and `start`, which lets it go on.
//!
//! Through one goes the byte that opens the gate; through the other the process says why its program does not run, or
//! nothing: the kernel closes it when the program begins.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};

use super::lifecycle::pidfd;
use super::state::{Folder, Record, Status};
use super::{Error, Result};

/// A FIFO that both `create`'s child and `start` open. Opened for both directions, so that neither waits for the other.
pub(super) fn make(path: &Path) -> Result<OwnedFd> {
    let error = |source| Error::State { operation: "make", path: path.to_owned(), source };
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|e| error(e.into()))?;
    // SAFETY: the path is terminated.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(error(io::Error::last_os_error()));
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(path).map_err(error)?;
    Ok(file.into())
}

/// Lets the process go on to its program.
pub(super) fn open(folder: &Folder, record: &Record) -> Result<()> {
    let fifo = folder.fifo();
    let error = |operation| {
        let path = fifo.clone();
        move |source| Error::State { operation, path, source }
    };
    let open = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
    let mut gate = open.map_err(|source| match source.raw_os_error() {
        // Nobody reads: the process has ended.
        Some(libc::ENXIO) => {
            Error::Status { operation: "start", id: record.id.clone(), status: Status::Stopped.name() }
        }
        _ => error("open")(source),
    })?;
    gate.write_all(b"g").map_err(error("open"))?;
    fs::remove_file(&fifo).map_err(error("remove"))
}

/// Opens the report, which must be done before the gate is opened: what is said into a FIFO that nobody has open is lost.
pub(super) fn open_report(folder: &Folder) -> Result<fs::File> {
    let path = folder.report();
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
    file.map_err(|source| Error::State { operation: "open", path, source })
}

/// Waits until the program runs, or says why it does not.
pub(super) fn await_program(
    folder: &Folder,
    mut report: fs::File,
    record: &Record,
    program: &str,
) -> Result<Option<crate::SpawnError>> {
    let path = folder.report();
    let error = |source| Error::State { operation: "read", path: path.clone(), source };
    // The process itself as well, which may end between the two.
    let process = pidfd(record.pid).ok();
    let mut said = [0; 16];
    loop {
        match io::Read::read(&mut report, &mut said) {
            // Closed without a word.
            Ok(0) => break,
            Ok(n) => return Ok(crate::late_failure(&said[..n], program)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(error(e)),
        }
        let mut fds = vec![PollFd::from_borrowed_fd(report.as_fd(), PollFlags::IN)];
        fds.extend(process.as_ref().map(|p| PollFd::from_borrowed_fd(p.as_fd(), PollFlags::IN)));
        let _ = rustix::event::poll(&mut fds, None);
    }
    let _ = fs::remove_file(&path);
    Ok(None)
}
