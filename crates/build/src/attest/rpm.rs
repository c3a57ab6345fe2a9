//! Packages of rpm: headers in a table of SQLite (`rpmdb.sqlite`), or in rpm's own file of slots and blobs (`Packages.db`,
//! "ndb"). The older database of Berkeley (`Packages`) is not read.
//!
//! Format: rpm's "Header" (rpm.org/docs, "RPM V4 Package format"): counts of entries and bytes, entries of tag, type,
//! offset and count, all big-endian, and a store of data.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use isles_store::{FileKind, Merged};
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use super::packages::{Distribution, Package, url};
use crate::error::{Error, Result};

/// Databases of full distributions have some 200 MB.
const LIMIT: u64 = 1 << 30;
/// A header lists all files of a package; that of a kernel has some 2 MB.
const LARGEST: usize = 64 << 20;

const FOLDERS: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];

/// What is installed by the databases of a tree.
///
/// # Errors
/// There is one that is not read, or is damaged.
pub fn installed(view: &Merged, distribution: &Distribution) -> Result<Vec<Package>> {
    let mut out = Vec::new();
    for folder in FOLDERS {
        for (name, read) in [("rpmdb.sqlite", sqlite as Reader), ("Packages.db", ndb), ("Packages", bdb)] {
            let path = Path::new(folder).join(name);
            let Ok(stat) = view.stat(&path) else { continue };
            if stat.kind != FileKind::File || stat.size == 0 {
                continue;
            }
            let place = path.display().to_string();
            let failed = |why: String| -> Error {
                let message = format!("cannot attest the packages of an image with '{place}': {why}");
                isles_spec::Error::new(message).with_hint("build it without --sbom").into()
            };
            if stat.size > LIMIT {
                return Err(failed("it is too large".to_owned()));
            }
            // What is written there last is not in the database itself.
            let log = Path::new(folder).join("rpmdb.sqlite-wal");
            if name == "rpmdb.sqlite" && view.stat(&log).is_ok_and(|stat| stat.size > 0) {
                return Err(failed("its last changes are in rpmdb.sqlite-wal".to_owned()));
            }
            for header in read(view.open_file(&path)?).map_err(&failed)? {
                let package = package(&header, distribution, &place);
                out.extend(package.map_err(|why| failed(format!("a package of it is damaged: {why}")))?);
            }
        }
    }
    Ok(out)
}

type Reader = fn(File) -> std::result::Result<Vec<Vec<u8>>, String>;

/// The headers in a database of SQLite. It is an image's, so nothing in it gets to run, and what it holds has bounds.
fn sqlite(file: File) -> std::result::Result<Vec<Vec<u8>>, String> {
    let text = |e: rusqlite::Error| match e {
        rusqlite::Error::QueryReturnedNoRows => "it has no table of packages".to_owned(),
        other => other.to_string(),
    };
    // By its descriptor, and as one that never changes: no lock and no log is looked for beside it.
    let uri = format!("file:/proc/self/fd/{}?mode=ro&immutable=1", file.as_raw_fd());
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(uri, flags).map_err(text)?;
    database.pragma_update(None, "trusted_schema", false).map_err(text)?;
    database.pragma_update(None, "cell_size_check", true).map_err(text)?;
    database.set_limit(Limit::SQLITE_LIMIT_LENGTH, LARGEST as i32).map_err(text)?;
    let kind: String = database
        .query_row("SELECT type FROM sqlite_schema WHERE name = 'Packages'", [], |row| row.get(0))
        .map_err(text)?;
    if kind != "table" {
        return Err(format!("its Packages is a {kind}, and no table"));
    }
    let mut query = database.prepare("SELECT blob FROM Packages ORDER BY hnum").map_err(text)?;
    let rows = query.query_map([], |row| row.get::<_, Vec<u8>>(0)).map_err(text)?;
    let mut out = Vec::new();
    let mut sum = 0;
    for row in rows {
        let row = row.map_err(text)?;
        sum += row.len() as u64;
        if sum > LIMIT {
            return Err("it is too large".to_owned());
        }
        out.push(row);
    }
    Ok(out)
}

/// The headers in a database of slots (rpm's `lib/backend/ndb/rpmpkg.c`): little-endian words; pages of slots first, each
/// with the place of a blob in units of 16 bytes.
fn ndb(file: File) -> std::result::Result<Vec<Vec<u8>>, String> {
    const UNIT: usize = 16;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    let damaged = || "it is damaged".to_owned();
    if bytes.get(..4) != Some(b"RpmP") || word(4) != Some(0) {
        return Err("it is of a format that is not known".to_owned());
    }
    let pages = word(12).ok_or_else(damaged)? as usize;
    let end = pages.checked_mul(4096).filter(|end| *end <= bytes.len()).ok_or_else(damaged)?;
    let mut out = Vec::new();
    // The header takes the place of two slots.
    for slot in (2 * UNIT..end).step_by(UNIT) {
        if bytes.get(slot..slot + 4) != Some(b"Slot") {
            return Err(damaged());
        }
        let (index, at) = (word(slot + 4).ok_or_else(damaged)?, word(slot + 8).ok_or_else(damaged)? as usize);
        if at == 0 {
            continue;
        }
        let blob = at.checked_mul(UNIT).ok_or_else(damaged)?;
        let head = bytes.get(blob..blob + UNIT).ok_or_else(damaged)?;
        let length = word(blob + 12).ok_or_else(damaged)? as usize;
        if &head[..4] != b"BlbS" || word(blob + 4) != Some(index) || length > LARGEST {
            return Err(damaged());
        }
        let data = bytes.get(blob + UNIT..blob + UNIT + length).ok_or_else(damaged)?;
        out.push((index, data.to_vec()));
    }
    out.sort_by_key(|(index, _)| *index);
    Ok(out.into_iter().map(|(_, data)| data).collect())
}

fn bdb(_: File) -> std::result::Result<Vec<Vec<u8>>, String> {
    Err("rpm's database of Berkeley is not read".to_owned())
}

/// The tags of a header that say what a package is (rpm's `rpmtag.h`).
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const VENDOR: u32 = 1011;
const LICENSE: u32 = 1014;
const ARCH: u32 = 1022;

/// The package of a header; none for a key that signs packages, which rpm keeps among them.
fn package(
    header: &[u8],
    distribution: &Distribution,
    place: &str,
) -> std::result::Result<Option<Package>, &'static str> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(header.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    let entries = word(0).ok_or("it has no header")? as usize;
    let store =
        entries.checked_mul(16).and_then(|size| size.checked_add(8)).ok_or("its index is too long")?;
    if store > header.len() {
        return Err("its index is too long");
    }
    let find = |tag: u32, kinds: &[u32]| -> Option<usize> {
        let entry = (0..entries).map(|n| 8 + 16 * n).find(|at| word(*at) == Some(tag))?;
        kinds.contains(&word(entry + 4)?).then_some(())?;
        store.checked_add(word(entry + 8)? as usize)
    };
    // A string, or one that there is in several languages.
    let text = |tag: u32| -> Option<String> {
        let rest = header.get(find(tag, &[6, 9])?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
            .filter(|text| !text.is_empty() && text != "(none)")
    };
    let name = text(NAME).ok_or("it has no name")?;
    if name == "gpg-pubkey" {
        return Ok(None);
    }
    let version = text(VERSION).ok_or("it has no version")?;
    let release = text(RELEASE).ok_or("it has no release")?;
    let epoch = find(EPOCH, &[4]).and_then(word).map(|epoch| epoch.to_string());
    let id = distribution.id.as_deref().unwrap_or("rpm");
    let system = distribution.version.as_ref().map(|version| format!("{id}-{version}"));
    let arch = text(ARCH);
    let qualifiers: Vec<(&str, &str)> = [
        arch.as_deref().map(|arch| ("arch", arch)),
        epoch.as_deref().map(|epoch| ("epoch", epoch)),
        system.as_deref().map(|system| ("distro", system)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let plain = format!("{version}-{release}");
    Ok(Some(Package {
        kind: "rpm",
        url: url("rpm", Some(id), &name, &plain, &qualifiers),
        version: epoch.as_ref().map_or_else(|| plain.clone(), |epoch| format!("{epoch}:{plain}")),
        name,
        license: text(LICENSE),
        supplier: text(VENDOR),
        place: place.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A header with these strings, and an epoch.
    fn header(texts: &[(u32, &str)], epoch: Option<u32>) -> Vec<u8> {
        let (mut index, mut store) = (Vec::new(), Vec::<u8>::new());
        let mut entry = |tag: u32, kind: u32, data: &[u8]| {
            for word in [tag, kind, store.len() as u32, 1] {
                index.extend(word.to_be_bytes());
            }
            store.extend(data);
        };
        if let Some(epoch) = epoch {
            entry(EPOCH, 4, &epoch.to_be_bytes());
        }
        for (tag, text) in texts {
            entry(*tag, 6, format!("{text}\0").as_bytes());
        }
        let mut out = Vec::new();
        out.extend((index.len() as u32 / 16).to_be_bytes());
        out.extend((store.len() as u32).to_be_bytes());
        out.extend(index);
        out.extend(store);
        out
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    fn bash() -> Vec<u8> {
        let texts =
            [(NAME, "bash"), (VERSION, "5.1.8"), (RELEASE, "9.el9"), (LICENSE, "GPLv3+"), (ARCH, "x86_64")];
        header(&texts, Some(2))
    }

    #[test]
    fn headers() {
        let rocky = Distribution { id: Some("rocky".into()), version: Some("9.3".into()) };
        let found = package(&bash(), &rocky, "/db").unwrap().unwrap();
        assert_eq!(found.url, "pkg:rpm/rocky/bash@5.1.8-9.el9?arch=x86_64&epoch=2&distro=rocky-9.3");
        assert_eq!((found.version.as_str(), found.license.as_deref()), ("2:5.1.8-9.el9", Some("GPLv3+")));
        let key = header(&[(NAME, "gpg-pubkey"), (VERSION, "1"), (RELEASE, "2")], None);
        assert_eq!(package(&key, &rocky, "/db"), Ok(None));
        for bytes in [&b""[..], &[0xff; 64], &header(&[(NAME, "x")], None), &bash()[..40]] {
            assert!(package(bytes, &rocky, "/db").is_err());
        }
        // Whatever is changed, nothing is read beyond the end.
        let good = bash();
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = package(&bytes, &rocky, "/db");
            }
        }
    }

    #[test]
    fn databases_of_slots() {
        let blob = bash();
        let mut bytes = vec![0; 4096];
        let words = |bytes: &mut [u8], at: usize, magic: &[u8; 4], rest: [u32; 3]| {
            bytes[at..at + 4].copy_from_slice(magic);
            for (n, word) in rest.iter().enumerate() {
                bytes[at + 4 + 4 * n..at + 8 + 4 * n].copy_from_slice(&word.to_le_bytes());
            }
        };
        words(&mut bytes, 0, b"RpmP", [0, 7, 1]);
        for slot in (32..4096).step_by(16) {
            words(&mut bytes, slot, b"Slot", [0, 0, 0]);
        }
        words(&mut bytes, 32, b"Slot", [3, 256, 9]);
        bytes.resize(4096 + 16, 0);
        words(&mut bytes, 4096, b"BlbS", [3, 1, blob.len() as u32]);
        bytes.extend(&blob);
        assert_eq!(ndb(file(&bytes)).unwrap(), std::slice::from_ref(&blob));
        for (at, value) in [(0, b'x'), (14, 9), (32, b'x'), (43, 9), (4096, b'x'), (4111, 9)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert!(ndb(file(&bytes)).is_err(), "{at}");
        }
        assert!(ndb(file(&bytes[..2000])).is_err());
    }

    #[test]
    fn databases_of_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpmdb.sqlite");
        let made = |text: &str| {
            let _ = std::fs::remove_file(&path);
            let database = Connection::open(&path).unwrap();
            database.execute_batch(text).unwrap();
            database
        };
        let database = made("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)");
        database.execute("INSERT INTO Packages (blob) VALUES (?1)", [bash()]).unwrap();
        drop(database);
        assert_eq!(sqlite(File::open(&path).unwrap()).unwrap(), [bash()]);
        drop(made("CREATE VIEW Packages AS SELECT 1 AS hnum, randomblob(9) AS blob"));
        assert!(sqlite(File::open(&path).unwrap()).unwrap_err().contains("is a view"));
        drop(made("CREATE TABLE x (y)"));
        assert!(sqlite(File::open(&path).unwrap()).is_err());
        assert!(sqlite(file(b"x")).is_err());
    }
}
