//! The caller's terminal while a container has one of its own: raw, and put back in the end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

/// A terminal in raw mode, until this is dropped.
pub struct Raw {
    fd: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes standard input raw, where it is a terminal.
    pub fn enter() -> Option<Raw> {
        let fd = io::stdin().as_fd().try_clone_to_owned().ok()?;
        let before = tcgetattr(&fd).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&fd, OptionalActions::Now, &raw).ok()?;
        Some(Raw { fd, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
    }
}

/// Rows and columns of the caller's terminal, by whichever standard stream is one; 24 × 80 without any.
pub fn size() -> (u16, u16) {
    let of = |fd: rustix::fd::BorrowedFd<'_>| tcgetwinsize(fd).ok().map(|s| (s.ws_row, s.ws_col));
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    of(stdin.as_fd())
        .or_else(|| of(stdout.as_fd()))
        .or_else(|| of(stderr.as_fd()))
        .filter(|(rows, columns)| *rows > 0 && *columns > 0)
        .unwrap_or((24, 80))
}

/// Whether one of the caller's standard streams is a terminal.
pub fn is_any() -> bool {
    isatty(io::stdin()) || isatty(io::stdout()) || isatty(io::stderr())
}

/// Gives a container's terminal the size of the caller's.
pub fn resize(master: impl AsFd) {
    let (rows, columns) = size();
    // A terminal that has just hung up has no size any more.
    let _ = tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
}

/// Whether this process has no terminal that controls it, as after that was closed.
pub fn is_gone() -> bool {
    std::fs::File::open("/dev/tty").is_err()
}

/// Whether standard input is a terminal.
pub fn stdin_is_one() -> bool {
    isatty(io::stdin())
}

/// Says that standard input is none.
pub fn is_none() -> crate::error::Error {
    isles_spec::Error::new("the input device is not a terminal")
        .with_hint("leave out -t when standard input comes from a file or a pipe")
        .into()
}
