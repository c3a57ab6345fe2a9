//! A site's execution control list, `ecl.toml` beside its settings: which SIF files may run, by the folder that they are in
//! and by who signed them. Keys are those of the machine's keyring; of the caller's own word nothing is believed.
//!
//! Specification: the administrator's guide of Apptainer 1.4, "Execution Control List". Images that are no SIF files have
//! the directives `allow container …` of the settings.

use std::path::{Path, PathBuf};

use isles_sif::{Kinds, Selection, Sif, Trust};
use serde::Deserialize;

use crate::failure::Failure;
use crate::image::Image;
use crate::keys::{Keys, Part};
use crate::text_file;

const LIMIT: u64 = 1 << 20;

/// The rules that count.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlList {
    #[serde(default)]
    activated: bool,
    /// Signatures count that cover the data of objects only.
    #[serde(default, rename = "legacyinsecure")]
    legacy: bool,
    #[serde(default, rename = "execgroup")]
    groups: Vec<Group>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(default, rename = "tagname")]
    name: String,
    mode: Mode,
    /// The folder that it is for; for all others where it is empty.
    #[serde(default, rename = "dirpath")]
    folder: PathBuf,
    #[serde(default, rename = "keyfp")]
    keys: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// One of the keys has signed.
    Whitelist,
    /// All of them have.
    Whitestrict,
    /// None of them has.
    Blacklist,
}

impl ControlList {
    /// The list in a file, where one is there and counts.
    pub fn load(path: &Path) -> Result<Option<ControlList>, Failure> {
        const WHAT: &str = "while loading the execution control list";
        let Some(text) = text_file::read(path, LIMIT, WHAT)? else { return Ok(None) };
        let list = ControlList::parse(&text)
            .map_err(|why| Failure::new(format!("{WHAT} {}: {why}", path.display())))?;
        Ok(list.activated.then(|| ControlList { path: path.to_owned(), ..list }))
    }

    fn parse(text: &str) -> Result<ControlList, String> {
        let mut list: ControlList = basic_toml::from_str(text).map_err(|e| e.to_string())?;
        for at in 0..list.groups.len() {
            let (before, rest) = list.groups.split_at_mut(at);
            let group = &mut rest[0];
            let name = if group.name.is_empty() { format!("number {}", at + 1) } else { group.name.clone() };
            if before.iter().any(|other| other.folder == group.folder) {
                let folder = group.folder.display();
                return Err(format!("the group {name} is for the folder '{folder}', as another one is"));
            }
            if !group.folder.as_os_str().is_empty() && !group.folder.is_absolute() {
                return Err(format!("the dirpath of the group {name} is not an absolute path"));
            }
            for key in &mut group.keys {
                let digits = key.trim_start_matches("0x").to_ascii_uppercase();
                if digits.len() != 40 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(format!("'{key}' in the group {name} is no fingerprint of 40 digits"));
                }
                *key = digits;
            }
        }
        Ok(list)
    }

    /// Whether an image may run.
    ///
    /// # Errors
    /// It may not, or that cannot be found out.
    pub fn check(&self, image: &Image) -> Result<(), Failure> {
        match &image.file {
            Some(file) => {
                let copy = file.try_clone().map_err(|e| Failure::because("cannot look at the image", &e))?;
                let name =
                    std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy)))
                        .map_err(|e| Failure::because("cannot find out where the image is", &e))?;
                if !isles_engine::image_file::form(&copy)
                    .is_ok_and(|f| f == Some(isles_engine::image_file::Form::Sif))
                {
                    return Ok(());
                }
                let sif = Sif::from_file(copy, image.name.as_str())?;
                self.judge(&name, &|| self.signers(&sif))
            }
            // What comes from a registry would be a SIF file without signatures.
            None if image.store_image.is_some() => self.judge(Path::new(&image.name), &|| Ok(Vec::new())),
            None => Ok(()),
        }
    }

    fn judge(&self, path: &Path, signers: &dyn Fn() -> Result<Vec<String>, Failure>) -> Result<(), Failure> {
        let refused = |why: String| {
            Err(Failure::new(format!("while checking container image with ECL: {} {why}", path.display()))
                .with_hint(format!(
                    "the administrator of this machine has chosen so, in {}",
                    self.path.display()
                )))
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let of_folder = self.groups.iter().find(|group| group.folder == folder);
        let usual = || self.groups.iter().find(|group| group.folder.as_os_str().is_empty());
        let Some(group) = of_folder.or_else(usual) else {
            return refused("is in no folder that a group is for".to_owned());
        };
        let signers = signers()?;
        let has = |key: &String| signers.contains(key);
        let fine = match group.mode {
            Mode::Whitelist => group.keys.iter().any(has),
            Mode::Whitestrict => !group.keys.is_empty() && group.keys.iter().all(has),
            Mode::Blacklist => !group.keys.iter().any(has),
        };
        match (fine, group.mode) {
            (true, _) => Ok(()),
            (_, Mode::Whitelist) => refused("is not signed by a key of the list".to_owned()),
            (_, Mode::Whitestrict) => refused("is not signed by all keys of the list".to_owned()),
            (_, Mode::Blacklist) => refused("is signed by a key that is not allowed".to_owned()),
        }
    }

    /// The fingerprints of the machine's keys that have signed all of a file.
    fn signers(&self, sif: &Sif) -> Result<Vec<String>, Failure> {
        let certificates = Keys::global().all(Part::Public)?;
        let keys: Vec<_> = certificates.iter().flat_map(|c| c.keys().unwrap_or_default()).collect();
        let now = crate::commands::now();
        let trust = Trust { keyring: Some(&keys), keys: &[], now };
        let mut kinds = vec![Kinds::Usual];
        kinds.extend(self.legacy.then_some(Kinds::Legacy { all: false }));
        for kinds in kinds {
            let report = isles_sif::verify(sif, &Selection::default(), kinds, &trust)?;
            if report.problem.is_none() {
                return Ok(report.signers().iter().map(isles_sif::fingerprint_text).collect());
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "5994BE54C31CF1B5E1994F987C52CF6D055F072B";
    const B: &str = "7064B1D6EFF01B1262FED3F03581D99FE87EAFD1";

    #[test]
    fn who_may_run() {
        let text = format!(
            "activated = true\n[[execgroup]]\n tagname = \"one\"\n mode = \"whitelist\"\n dirpath = \"/a\"\n keyfp = [\"{A}\", \
             \"{B}\"]\n[[execgroup]]\n mode = \"whitestrict\"\n dirpath = \"/s\"\n keyfp = [\"0x{}\", \"{B}\"]\n\
             [[execgroup]]\n mode = \"blacklist\"\n keyfp = [\"{B}\"]\n",
            A.to_lowercase()
        );
        let list = ControlList::parse(&text).unwrap();
        for (path, signers, fine) in [
            ("/a/x.sif", &[A][..], true),
            ("/a/x.sif", &[], false),
            ("/a/x.sif", &["OTHER"], false),
            ("/s/x.sif", &[A], false),
            ("/s/x.sif", &[B, A], true),
            ("/a/b/x.sif", &[], true),
            ("/c/x.sif", &[A], true),
            ("/c/x.sif", &[A, B], false),
        ] {
            let signers = || Ok(signers.iter().map(|key| (*key).to_owned()).collect());
            assert_eq!(list.judge(Path::new(path), &signers).is_ok(), fine, "{path}");
        }
        let nobody = ControlList::parse("activated = true\nlegacyinsecure = false\n").unwrap();
        let said = nobody.judge(Path::new("/x.sif"), &|| Ok(vec![A.to_owned()])).unwrap_err();
        assert!(said.message.contains("/x.sif is in no folder"), "{said:?}");
    }

    #[test]
    fn lists_that_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ecl.toml");
        assert!(ControlList::load(&path).unwrap().is_none());
        for (text, counts) in [
            ("activated = false\n", false),
            ("# activated = true\n", false),
            ("activated = true # on\n", true),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(ControlList::load(&path).unwrap().is_some(), counts, "{text}");
        }
        for (text, word) in [
            ("activated = maybe", "ecl.toml"),
            ("activate = true", "activate"),
            ("[[execgroup]]\nmode = \"x\"", "whitestrict"),
            ("[[execgroup]]\nmode = \"blacklist\"\nkeyfp = [\"12\"]", "'12' in the group number 1"),
            ("[[execgroup]]\nmode = \"blacklist\"\ndirpath = \"a\"", "not an absolute path"),
            ("[[execgroup]]\nmode=\"blacklist\"\n[[execgroup]]\nmode=\"whitelist\"", "as another one is"),
        ] {
            std::fs::write(&path, text).unwrap();
            let said = ControlList::load(&path).unwrap_err().line();
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
