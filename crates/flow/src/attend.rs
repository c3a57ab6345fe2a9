//! Waiting for a process while what it writes is handed on.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

/// A read of a pipe, which is also all that a pipe holds unless somebody made it bigger.
const PIECE: usize = 64 << 10;

/// A pipe: the end to read from, which never waits, and the one to be written to.
///
/// # Errors
/// There are no descriptors left.
pub fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    Ok((reader, writer))
}

/// Waits until a process has ended, and hands on what comes out of `pipe` until then; says whether it ended within
/// `limit`. It is neither killed nor reaped. Whoever else holds the pipe is not waited for.
pub fn attend(
    process: BorrowedFd<'_>,
    pipe: Option<OwnedFd>,
    limit: Option<Duration>,
    talk: &mut dyn FnMut(&[u8]),
) -> bool {
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut pipe = pipe.map(File::from);
    // Made when there is something to read: most programs say nothing.
    let mut buffer = Vec::new();
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let wait = left.map(|left| Timespec {
            tv_sec: left.as_secs().min(1 << 30).cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::from_borrowed_fd(process, PollFlags::IN)];
        fds.extend(pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, wait.as_ref()) {
            Ok(0) if left.is_some_and(|left| left.as_secs() < 1 << 30) => return false,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Nothing can be waited for; the caller waits for the process in any case.
            Err(_) => return true,
        }
        let ended = !fds[0].revents().is_empty();
        let of_pipe = fds.get(1).map_or(PollFlags::empty(), PollFd::revents);
        drop(fds);
        if !of_pipe.is_empty()
            && let Some(from) = &mut pipe
        {
            // All writers may be gone, and what they wrote still be there.
            let passed = of_pipe.contains(PollFlags::IN).then(|| pass(from, &mut buffer, talk));
            if passed.is_none_or(|n| n == Some(0)) {
                pipe = None;
            }
        }
        if ended {
            // What it wrote last. Twice what fits, so that one who goes on writing is not read for ever.
            for _ in 0..2 {
                let Some(from) = &mut pipe else { break };
                let waits = rustix::io::ioctl_fionread(&*from).is_ok_and(|n| n > 0);
                if !waits || pass(from, &mut buffer, talk).is_none_or(|n| n == 0) {
                    break;
                }
            }
            return true;
        }
    }
}

/// Hands on one piece, and says how long it was: nothing at the end of the pipe, and `None` where there is nothing yet.
fn pass(from: &mut File, buffer: &mut Vec<u8>, talk: &mut dyn FnMut(&[u8])) -> Option<usize> {
    buffer.resize(PIECE, 0);
    match from.read(buffer) {
        Ok(n) => {
            if n > 0 {
                talk(&buffer[..n]);
            }
            Some(n)
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
        Err(_) => Some(0),
    }
}
