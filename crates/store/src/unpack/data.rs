//! What files hold, from an archive into a file.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::tar::{self, Reader};

/// What an entry holds, into a file that is empty.
pub(super) fn copy_data<R: BufRead>(fd: &OwnedFd, reader: &mut Reader<R>) -> Result<(), tar::Error> {
    loop {
        let slice = reader.data()?;
        if slice.is_empty() {
            return Ok(());
        }
        let n = write_some(fd, slice)?;
        reader.consume(n);
    }
}

/// The same, where the archive has only the parts of it that are not holes.
pub(super) fn copy_sparse<R: BufRead>(
    fd: &OwnedFd,
    map: &[tar::Segment],
    size: u64,
    reader: &mut Reader<R>,
) -> Result<(), tar::Error> {
    let io = |e: Errno| tar::Error::Io(e.into());
    rustix::fs::ftruncate(fd, size).map_err(io)?;
    for segment in map {
        rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(segment.offset)).map_err(io)?;
        let mut left = segment.length;
        while left > 0 {
            let slice = reader.data()?;
            if slice.is_empty() {
                return Err(tar::Error::Malformed("a sparse file is cut short".into()));
            }
            let take = slice.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = write_some(fd, &slice[..take])?;
            reader.consume(n);
            left -= n as u64;
        }
    }
    Ok(())
}

fn write_some(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, tar::Error> {
    loop {
        match rustix::io::write(fd, bytes) {
            Ok(n) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(e) => return Err(tar::Error::Io(e.into())),
        }
    }
}
