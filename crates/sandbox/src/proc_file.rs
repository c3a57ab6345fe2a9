//! Files of /proc, whose size nobody knows before they are read: with room enough for one read and the end.

use std::fs::File;
use std::io::{self, Read};

const ROOM: usize = 16 << 10;

/// The whole text of a file of /proc.
pub(crate) fn read(path: &str) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut text = vec![0; ROOM];
    let mut length = 0;
    loop {
        if length == text.len() {
            text.resize(2 * length, 0);
        }
        match file.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    text.truncate(length);
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn long_files_are_read_to_their_end() {
        let whole = || std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        // It changes whenever somebody loads a program into the kernel.
        assert!((0..100).any(|_| super::read("/proc/kallsyms").unwrap_or_default() == whole()));
        assert_eq!(
            super::read("/proc/self/uid_map").unwrap(),
            std::fs::read_to_string("/proc/self/uid_map").unwrap()
        );
        assert!(super::read("/proc/self/nosuch").is_err());
    }
}
