//! Files that change in one step: written beside their place, then renamed into it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::Result;
use crate::error::At;

/// Sixteen random hexadecimal characters, for names that nobody else uses.
pub fn random_name() -> String {
    let mut bytes = [0u8; 8];
    // The kernel's generator never fails for so few bytes once it is seeded; the process ID and the
    // clock tell processes apart should it be missing.
    if getrandom(&mut bytes[..], GetRandomFlags::empty()).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = now.map(|d| d.as_nanos() as u64).unwrap_or_default();
        bytes = (nanos ^ (u64::from(std::process::id()) << 40)).to_le_bytes();
    }
    format!("{:016x}", u64::from_le_bytes(bytes))
}

/// Replaces the file at `path` by one with `content`, so that a reader, or a crash, sees the old or the
/// new one. When this returns the new one survives a power cut. The directory must exist.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path);
    let result = write_new(&temporary, content, true).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.and_then(|()| sync_parent(path)).at("write", path)
}

/// Makes a new name in a directory survive a power cut.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    match File::open(parent).and_then(|dir| dir.sync_all()) {
        // Some file systems cannot, and need not; and the directory may be gone again, with what is in it.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => Ok(()),
        other => other,
    }
}

/// As [`replace`], without waiting for the disk: after a power cut the file may be the old one or empty.
/// For state that does not outlive the machine's run anyway.
pub(crate) fn replace_volatile(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path);
    let result = write_new(&temporary, content, false).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.at("write", path)
}

fn temporary_beside(path: &Path) -> std::path::PathBuf {
    path.with_file_name(format!(".new-{}", random_name()))
}

fn write_new(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    if durable { file.sync_data() } else { Ok(()) }
}

/// Reads a file that may not be larger than `limit`.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes"));
    crate::read_bounded(File::open(path)?, limit)?.ok_or_else(too_large)
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(crate::Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
