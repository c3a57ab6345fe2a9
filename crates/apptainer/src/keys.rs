//! Where keys are kept: `pgp-public` and `pgp-secret` below `~/.apptainer/keys`, binary keyrings that GnuPG reads too,
//! for nobody else's eyes; and `global-pgp-public` of the machine.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isles_openpgp::{Certificate, LIMIT};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::columns::{aligned, time};
use crate::failure::Failure;
use crate::variables;

const GLOBAL: &str = "/etc/apptainer";

/// One of the two kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Public,
    Secret,
}

/// A folder of keys.
#[derive(Debug, Clone)]
pub struct Keys {
    folder: PathBuf,
    is_global: bool,
}

/// The caller's own folder of settings: `APPTAINER_CONFIGDIR`, or `~/.apptainer`.
pub fn settings_folder() -> Result<PathBuf, Failure> {
    if let Some(folder) = variables::look("CONFIGDIR") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| {
        Failure::new("HOME is not set, so there is no folder for keys").with_hint("set APPTAINER_CONFIGDIR")
    })?;
    Ok(Path::new(&home).join(".apptainer"))
}

impl Keys {
    /// The caller's, in the folder that is named or in the usual one.
    pub fn own(folder: Option<&str>) -> Result<Keys, Failure> {
        let folder = match folder {
            Some(folder) => folder.into(),
            None => settings_folder()?.join("keys"),
        };
        Ok(Keys { folder, is_global: false })
    }

    /// The machine's, which everybody trusts. They are public ones.
    pub fn global() -> Keys {
        Keys { folder: GLOBAL.into(), is_global: true }
    }

    pub fn path(&self, part: Part) -> PathBuf {
        self.folder.join(match part {
            Part::Public if self.is_global => "global-pgp-public",
            Part::Public => "pgp-public",
            Part::Secret => "pgp-secret",
        })
    }

    /// All keys of one kind; none where there is no file.
    pub fn all(&self, part: Part) -> Result<Vec<Certificate>, Failure> {
        if self.is_global && part == Part::Secret {
            return Err(Failure::new("the machine's keyring holds no secret keys"));
        }
        let path = self.path(part);
        let failed = |e: io::Error| Failure::because(format!("cannot read {}", path.display()), &e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let bytes = isles_store::read_bounded(file, LIMIT as u64).map_err(failed)?;
        let bytes =
            bytes.ok_or_else(|| Failure::new(format!("{} is too large for a keyring", path.display())))?;
        Certificate::read(&bytes).map_err(|e| Failure::because(format!("cannot use {}", path.display()), &e))
    }

    /// Adds a key, and says whether it was not there before.
    pub fn add(&self, part: Part, key: &Certificate) -> Result<bool, Failure> {
        let _lock = lock(&self.folder)?;
        let mut all = self.all(part)?;
        if all.iter().any(|known| known.fingerprint() == key.fingerprint()) {
            return Ok(false);
        }
        all.push(key.clone());
        self.write(part, &all)?;
        Ok(true)
    }

    /// Removes the key with a fingerprint, and says whether it was there.
    pub fn remove(&self, part: Part, fingerprint: &str) -> Result<bool, Failure> {
        let _lock = lock(&self.folder)?;
        let wanted = fingerprint.trim_start_matches("0x").to_ascii_uppercase();
        let mut all = self.all(part)?;
        let before = all.len();
        all.retain(|key| name_of(key) != wanted);
        if all.len() == before {
            return Ok(false);
        }
        self.write(part, &all)?;
        Ok(true)
    }

    /// Replaces a keyring in one step: a crash leaves the old one or the new one.
    fn write(&self, part: Part, all: &[Certificate]) -> Result<(), Failure> {
        let path = self.path(part);
        let failed = |e: io::Error| Failure::because(format!("cannot write {}", path.display()), &e);
        let mode = if self.is_global { 0o644 } else { 0o600 };
        if !self.is_global {
            fs::set_permissions(&self.folder, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let beside = self.folder.join(format!(".new-{}", isles_store::random_name()));
        let bytes: Vec<u8> = all.iter().flat_map(Certificate::to_bytes).collect();
        let file = File::options().write(true).create_new(true).mode(mode).open(&beside);
        let written = file.and_then(|mut file| {
            file.write_all(&bytes)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_data()?;
            fs::rename(&beside, &path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written.map_err(failed)
    }
}

/// Makes a folder for its owner, and keeps others from changing what is in it until the file is dropped.
pub fn lock(folder: &Path) -> Result<File, Failure> {
    let failed = |e: io::Error| Failure::because(format!("cannot use the folder {}", folder.display()), &e);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let file = File::open(folder).map_err(failed)?;
    match flock(&file, FlockOperation::LockExclusive) {
        // A file system without locks, as NFS may be.
        Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(file),
        Err(e) => Err(failed(e.into())),
    }
}

/// The fingerprint, as people are shown it.
pub fn name_of(key: &Certificate) -> String {
    isles_sif::fingerprint_text(&key.fingerprint())
}

/// A list of keys, numbered.
pub fn listed(keys: &[Certificate]) -> String {
    let mut text = String::new();
    for (n, key) in keys.iter().enumerate() {
        let mut lines: Vec<Vec<String>> = Vec::new();
        let mut line = |name: &str, value: String| {
            let first = if lines.is_empty() { format!("{n})") } else { String::new() };
            lines.push(vec![first, name.to_owned(), value]);
        };
        for user in key.users() {
            line("User:", with_comment(&user));
        }
        line("Creation time:", time(key.created().cast_signed()));
        line("Fingerprint:", name_of(key));
        line("Length (in bits):", key.bits().to_string());
        text.push_str(&aligned(&lines, 2));
        text.push('\n');
    }
    text
}

/// Names are shown with the place of a comment, as Apptainer does: `Name (Comment) <address>`.
fn with_comment(user: &str) -> String {
    match user.split_once(" <") {
        Some((name, address)) if !name.ends_with(')') => format!("{name} () <{address}"),
        _ => user.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_lost_where_several_come_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::own(folder.path().to_str()).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let keys = keys.clone();
                scope.spawn(move || {
                    let key = Certificate::generate("A <a@example.org>", None, n).unwrap();
                    assert!(keys.add(Part::Public, &key.to_public()).unwrap());
                });
            }
        });
        assert_eq!(keys.all(Part::Public).unwrap().len(), 8);
    }

    #[test]
    fn keys_are_kept_for_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::own(folder.path().join("keys").to_str()).unwrap();
        assert!(keys.all(Part::Public).unwrap().is_empty());
        let key = Certificate::generate("A <a@example.org>", Some("secret"), 1_593_475_316).unwrap();
        assert!(keys.add(Part::Secret, &key).unwrap());
        assert!(keys.add(Part::Public, &key.to_public()).unwrap());
        assert!(!keys.add(Part::Public, &key.to_public()).unwrap(), "once is enough");
        for (path, mode) in [(keys.path(Part::Secret), 0o600), (folder.path().join("keys"), 0o700)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        let found = keys.all(Part::Secret).unwrap();
        assert!(found[0].open(Some("secret")).is_ok() && found[0].open(None).is_err());
        let name = name_of(&key);
        assert_eq!(
            listed(&keys.all(Part::Public).unwrap()),
            format!(
                "0)  User:              A () <a@example.org>\n    Creation time:     2020-06-30 00:01:56 +0000 UTC\n    \
                 Fingerprint:       {name}\n    Length (in bits):  256\n\n"
            )
        );
        assert!(!keys.remove(Part::Public, "00").unwrap());
        assert!(keys.remove(Part::Public, &format!("0x{}", name.to_lowercase())).unwrap());
        assert_eq!((keys.all(Part::Public).unwrap().len(), keys.all(Part::Secret).unwrap().len()), (0, 1));
    }
}
