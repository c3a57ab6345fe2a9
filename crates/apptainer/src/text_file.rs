//! Files of text that others write and that are read whole: settings, lists, tables of users.
//!
//! One idea: no more is read than such a file may have, and what is no text is refused, not guessed at, since some of
//! these files are written back.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::failure::Failure;

/// The text of a file of at most `limit` bytes, or nothing where there is no such file; `what` was wanted of it.
pub fn read(path: &Path, limit: u64, what: &str) -> Result<Option<String>, Failure> {
    let odd = |why: &str| Failure::new(format!("{what} {}: {why}", path.display()));
    let bytes = match File::open(path).and_then(|file| isles_store::read_bounded(file, limit)) {
        Ok(bytes) => bytes.ok_or_else(|| odd(&format!("it is too large (more than {limit} bytes)")))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::because(format!("{what} {}", path.display()), &e)),
    };
    String::from_utf8(bytes).map(Some).map_err(|_| odd("it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read(&path, 4, "cannot read").unwrap(), None);
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4, "cannot read").unwrap().as_deref(), Some("four"));
        let name = path.display();
        let line = |limit| read(&path, limit, "cannot read").unwrap_err().line();
        assert_eq!(line(3), format!("cannot read {name}: it is too large (more than 3 bytes)"));
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(line(4), format!("cannot read {name}: it is not UTF-8"));
        let failed = read(dir.path(), 4, "cannot read").unwrap_err().line();
        assert!(failed.starts_with(&format!("cannot read {}: ", dir.path().display())), "{failed}");
    }
}
