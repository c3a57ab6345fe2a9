//! What a monitor and those who are attached say to each other, over a socket of the container's folder: frames of one
//! byte that says what comes, three that are zero, and the length of what comes, big-endian. For output that is the form
//! in which docker's API has it (docker engine API, "Attach to a container").

use std::io::{self, Read, Write};

/// The socket's name in the container's folder.
pub const SOCKET: &str = "control";
/// No frame is longer.
pub const LONGEST: usize = 64 << 10;
pub const HEAD: usize = 8;

/// What a frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the monitor: standard input of the program; an empty frame is its end.
    Stdin = 0,
    /// From the monitor: what the program has printed.
    Stdout = 1,
    Stderr = 2,
    /// From the monitor, the last frame: the program has ended with the code that follows.
    Exit = 4,
    /// To the monitor: rows and columns of the terminal, two bytes each, big-endian.
    Resize = 5,
    /// To the monitor, the first frame: what is wanted, one byte of [`WANTS_INPUT`], [`WANTS_OUTPUT`] and [`OWNS`]. From
    /// the monitor, the answer: 1 where the program has a terminal.
    Hello = 6,
    /// To the monitor, the last frame: whoever says so goes, and the program goes on. Who goes without a word has hung up.
    LetGo = 7,
}

pub const WANTS_INPUT: u8 = 1;
pub const WANTS_OUTPUT: u8 = 2;
/// The program is theirs: it ends where they go without a word, as one in the foreground of a process that is killed.
pub const OWNS: u8 = 4;

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Stdin,
            1 => Kind::Stdout,
            2 => Kind::Stderr,
            4 => Kind::Exit,
            5 => Kind::Resize,
            6 => Kind::Hello,
            7 => Kind::LetGo,
            _ => return None,
        })
    }
}

/// The beginning of a frame.
pub fn head(kind: Kind, length: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = kind as u8;
    head[4..].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    head
}

/// Reads the beginning of a frame: what it is about, and how long it is.
///
/// # Errors
/// It is none of ours, or too long.
pub fn parse(head: [u8; HEAD]) -> io::Result<(Kind, usize)> {
    let [kind, 0, 0, 0, a, b, c, d] = head else { return Err(strange()) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    match Kind::of(kind) {
        Some(kind) if length <= LONGEST => Ok((kind, length)),
        _ => Err(strange()),
    }
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the other side says what nobody understands")
}

/// Writes a whole frame to a socket that waits.
pub fn send(mut to: impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    to.write_all(&[&head(kind, content.len()), content].concat())
}

/// Reads a whole frame from a socket that waits; `None` where it has ended.
pub fn receive(mut from: impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut begin = [0; HEAD];
    let mut have = 0;
    while have < HEAD {
        match from.read(&mut begin[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let (kind, length) = parse(begin)?;
    let mut content = vec![0; length];
    from.read_exact(&mut content)?;
    Ok(Some((kind, content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let mut wire = Vec::new();
        send(&mut wire, Kind::Stdout, b"hello").unwrap();
        send(&mut wire, Kind::Stdin, b"").unwrap();
        assert_eq!(wire[..13], *b"\x01\0\0\0\0\0\0\x05hello");
        let mut from = &wire[..];
        assert_eq!(receive(&mut from).unwrap(), Some((Kind::Stdout, b"hello".to_vec())));
        assert_eq!(receive(&mut from).unwrap(), Some((Kind::Stdin, Vec::new())));
        assert_eq!(receive(&mut from).unwrap(), None);
        assert!(receive(&wire[..10]).is_err() && receive(&wire[..3]).is_err());
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            [3, 0, 0, 0, 0, 0, 0, 0],
            [9, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 1, 0, 1],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse([1, 0, 0, 0, 0, 1, 0, 0]).unwrap(), (Kind::Stdout, 1 << 16));
    }
}
