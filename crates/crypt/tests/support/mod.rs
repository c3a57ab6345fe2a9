//! What the tests have in common.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use isles_squashfs::Source;

/// Bytes that no two places have alike.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A program of the host, by its name; says so where it is missing.
pub fn program(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("skip: {name} is missing");
    }
    found
}

/// Runs a program with something to read; it has to succeed.
pub fn run(command: &mut Command, input: &[u8]) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

/// Reads in pieces of all sizes, at all kinds of places, and compares.
pub fn same(volume: &dyn Source, plain: &[u8]) {
    let len = plain.len();
    for (at, n) in [
        (0, len),
        (0, 1),
        (0, 512),
        (1, 511),
        (511, 2),
        (4095, 2),
        (4096, 4096),
        (5000, 70_000),
        (len - 1, 1),
        (len - 5000, 5000),
        (len, 0),
    ] {
        let mut out = vec![0; n];
        volume.read_exact_at(&mut out, at as u64).unwrap();
        assert!(out == plain[at..at + n], "{n} bytes at {at}");
    }
    for (at, n) in [(len, 1), (len - 1, 2), (usize::MAX, 1)] {
        let e = volume.read_exact_at(&mut vec![0; n], at as u64).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

/// A file without a name that holds this.
pub fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}
