//! A digest of a file's content that does not depend on where its holes are: over the blocks that are not
//! zero, each with its place. A file of many TiB with little in it costs little.

use std::collections::HashMap;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::tar::{self, Entry, Reader};

const BLOCK: usize = 4096;
const BUFFER: usize = 128 << 10;

/// The digest of one content.
pub(crate) type Fingerprint = [u8; 32];

struct Blocks {
    hasher: Sha256,
    block: Box<[u8; BLOCK]>,
    /// Which block is being filled.
    number: u64,
}

impl Blocks {
    fn new() -> Self {
        Blocks { hasher: Sha256::new(), block: Box::new([0; BLOCK]), number: 0 }
    }

    /// Takes bytes at a place that is not before the last one.
    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let number = offset / BLOCK as u64;
            if number != self.number {
                self.flush();
                self.number = number;
            }
            let inside = (offset % BLOCK as u64) as usize;
            let n = bytes.len().min(BLOCK - inside);
            self.block[inside..inside + n].copy_from_slice(&bytes[..n]);
            offset += n as u64;
            bytes = &bytes[n..];
        }
    }

    fn flush(&mut self) {
        if self.block.iter().any(|b| *b != 0) {
            self.hasher.update(self.number.to_le_bytes());
            self.hasher.update(&self.block[..]);
            self.block.fill(0);
        }
    }

    fn finish(mut self) -> Fingerprint {
        self.flush();
        self.hasher.finalize().into()
    }
}

/// What files should hold, by inode, for one file in so many.
pub(crate) struct Contents {
    /// One means all, zero none.
    every: u32,
    seen: u32,
    expected: HashMap<u64, Fingerprint>,
}

impl Contents {
    /// `start` chooses which of `every` files are looked at.
    pub(crate) fn new(every: u32, start: u32) -> Self {
        Contents { every, seen: start.checked_rem(every).unwrap_or(0), expected: HashMap::new() }
    }

    /// Gives a file its size instead of its data, and remembers what the data is.
    pub(crate) fn skeleton<R: BufRead>(
        &mut self,
        fd: &OwnedFd,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), tar::Error> {
        let io = |e: Errno| tar::Error::Io(e.into());
        rustix::fs::ftruncate(fd, entry.size).map_err(io)?;
        let inode = rustix::fs::fstat(fd).map_err(io)?.st_ino;
        // An earlier entry of the same name may have had this inode.
        self.expected.remove(&inode);
        if self.every == 0 {
            return Ok(());
        }
        self.seen = (self.seen + 1) % self.every;
        if self.seen != 0 {
            return Ok(());
        }
        let mut blocks = Blocks::new();
        match &entry.sparse {
            None => read_into(&mut blocks, 0, u64::MAX, reader)?,
            Some(map) => {
                for segment in map {
                    read_into(&mut blocks, segment.offset, segment.length, reader)?;
                }
            }
        }
        self.expected.insert(inode, blocks.finish());
        Ok(())
    }

    /// What the file with this inode of the skeleton should hold, if that is looked at.
    pub(crate) fn expected(&self, inode: u64) -> Option<&Fingerprint> {
        self.expected.get(&inode)
    }
}

fn read_into<R: BufRead>(
    blocks: &mut Blocks,
    mut offset: u64,
    mut left: u64,
    reader: &mut Reader<R>,
) -> Result<(), tar::Error> {
    while left > 0 {
        let slice = reader.data()?;
        if slice.is_empty() {
            break;
        }
        let n = slice.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        blocks.write(offset, &slice[..n]);
        reader.consume(n);
        offset += n as u64;
        left -= n as u64;
    }
    Ok(())
}

/// What a file holds, and how many bytes were read for that.
pub(crate) fn of_file(fd: impl AsFd) -> rustix::io::Result<(Fingerprint, u64)> {
    let mut blocks = Blocks::new();
    let mut buffer = vec![0; BUFFER];
    let (mut at, mut read) = (0, 0);
    loop {
        let start = match rustix::fs::seek(fd.as_fd(), SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // No way to find holes here.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e),
        };
        let end = match rustix::fs::seek(fd.as_fd(), SeekFrom::Hole(start)) {
            Ok(end) => end,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => u64::MAX,
            Err(e) => return Err(e),
        };
        at = start;
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
            match rustix::io::pread(fd.as_fd(), &mut buffer[..room], at) {
                Ok(0) => return Ok((blocks.finish(), read)),
                Ok(n) => {
                    blocks.write(at, &buffer[..n]);
                    at += n as u64;
                    read += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok((blocks.finish(), read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_make_no_difference() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            std::fs::File::options().read(true).write(true).create_new(true).open(path).unwrap()
        };
        let (full, sparse, other) = (open("full"), open("sparse"), open("other"));
        full.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        for file in [&full, &sparse, &other] {
            file.write_all_at(b"x", 70_000).unwrap();
            file.write_all_at(b"end", (1 << 20) - 3).unwrap();
        }
        other.write_all_at(b"y", 300_000).unwrap();
        let of = |file: &std::fs::File| of_file(file).unwrap().0;
        assert_eq!(of(&full), of(&sparse));
        assert_ne!(of(&full), of(&other));
        let mut pieces = Blocks::new();
        pieces.write(70_000, b"x");
        pieces.write((1 << 20) - 3, b"e");
        pieces.write((1 << 20) - 2, b"nd");
        assert_eq!(pieces.finish(), of(&full));
        assert_eq!(of(&open("empty")), Blocks::new().finish());
    }
}
