//! What a caller may say about the build of a definition file, beside what holds for every recipe.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use isles_sif::Sif;
use isles_spec::Mount;
use isles_spec::nearest::nearest;

use super::syntax::SectionKind;

/// Wishes about a definition file. The default is right for most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefinitionOptions {
    /// `NAME=VALUE` lines for `{{ NAME }}`; values that the caller names one by one count before them.
    pub argument_file: Option<PathBuf>,
    /// A value that nothing uses is a warning in place of an error.
    pub unused_arguments_warn: bool,
    /// Which sections count (`--section`).
    pub sections: Sections,
    /// The recipe is a specification in JSON (`--json`).
    pub json: bool,
    /// Begin with this folder, an image that was written by `sandbox`, in place of the bootstrap, and write the
    /// result back to it (`--update`).
    pub update: Option<PathBuf>,
    /// Write the image to this folder as well, as a tree of files.
    pub sandbox: Option<PathBuf>,
    /// Labels and help texts of the base are replaced by those of the recipe, and `sandbox` replaces what is there.
    pub force: bool,
    /// Whoever owns a file of the image may read and write it, and enter its folders (`--fix-perms`).
    pub fix_permissions: bool,
    /// `%pre` runs on the host, with all rights of the caller. Without this it is refused.
    pub host_scripts: bool,
    /// Files of the host that `%post` and `%test` see (`--bind`).
    pub mounts: Vec<Mount>,
    /// What else they see, which depends on the image that they run in (`--nv`).
    pub lender: Option<Lender>,
    /// The library that `Bootstrap: library` asks where the recipe names none, and the caller's token for it.
    pub library: Option<String>,
    pub library_token: Option<String>,
    /// The image whose `dnf`, `zypper` or `pacman` fills the root of the agents that need one, in place of the host's;
    /// `ISLES_TOOLS_IMAGE` where nothing is said.
    pub tools_image: Option<String>,
    /// The public keys for `Fingerprints`; those that Apptainer keeps where nothing is said.
    pub keyring: Option<PathBuf>,
    /// What opens a base that is encrypted.
    pub opener: Option<Opener>,
}

type Open = dyn Fn(&Sif) -> std::result::Result<Vec<u8>, String> + Send + Sync;

/// Finds the passphrase of an encrypted image file.
#[derive(Clone)]
pub struct Opener(Arc<Open>);

impl Opener {
    /// `open` gives the passphrase of a file, or says why there is none.
    pub fn new(
        open: impl Fn(&Sif) -> std::result::Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Opener {
        Opener(Arc::new(open))
    }

    pub(crate) fn open(&self, sif: &Sif) -> std::result::Result<Vec<u8>, String> {
        (self.0)(sif)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

impl PartialEq for Opener {
    fn eq(&self, other: &Opener) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Opener {}

/// Reads a file of an image, by its path there.
pub type ReadFile<'a> = dyn Fn(&str) -> Option<Vec<u8>> + 'a;
type Lend = dyn Fn(&ReadFile<'_>) -> Vec<Mount> + Send + Sync;

/// Decides what of the host is shown in an image, when it is known.
#[derive(Clone)]
pub struct Lender(Arc<Lend>);

impl Lender {
    pub fn new(lend: impl Fn(&ReadFile<'_>) -> Vec<Mount> + Send + Sync + 'static) -> Lender {
        Lender(Arc::new(lend))
    }

    pub fn lend(&self, read: &ReadFile<'_>) -> Vec<Mount> {
        (self.0)(read)
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lender")
    }
}

impl PartialEq for Lender {
    fn eq(&self, other: &Lender) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Lender {}

/// Which sections of a definition file count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sections {
    #[default]
    All,
    Only(BTreeSet<SectionKind>),
}

impl Sections {
    pub fn has(&self, kind: SectionKind) -> bool {
        match self {
            Sections::All => true,
            Sections::Only(kinds) => kinds.contains(&kind),
        }
    }
}

impl FromStr for Sections {
    type Err = isles_spec::Error;

    /// `all`, `none`, or names separated by commas.
    fn from_str(text: &str) -> Result<Self, isles_spec::Error> {
        let mut kinds = BTreeSet::new();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "all" => return Ok(Sections::All),
                "none" => {}
                _ => {
                    let name = word.trim_start_matches('%');
                    let kind = SectionKind::of(name).ok_or_else(|| {
                        let error = isles_spec::Error::new(format!("no section is called '{word}'"));
                        match nearest(name, SectionKind::names()) {
                            Some(near) => error.with_hint(format!("did you mean {near}?")),
                            None => error.with_hint("write names such as setup,post,files, or all, or none"),
                        }
                    })?;
                    kinds.insert(kind);
                }
            }
        }
        Ok(Sections::Only(kinds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SectionKind::{Files, Labels, Post};

    #[test]
    fn lists_of_sections() {
        for (text, kinds) in [
            ("all", None),
            ("post,all", None),
            ("none", Some(vec![])),
            ("", Some(vec![])),
            ("post, files", Some(vec![Files, Post])),
            ("%labels", Some(vec![Labels])),
        ] {
            let expected = kinds.map_or(Sections::All, |k| Sections::Only(k.into_iter().collect()));
            assert_eq!(text.parse::<Sections>().unwrap(), expected, "{text}");
        }
        let error = "pots".parse::<Sections>().unwrap_err();
        assert!(isles_spec::Hint::hint(&error).unwrap().contains("post"));
        assert!(!Sections::Only(BTreeSet::new()).has(Post) && Sections::All.has(Post));
    }
}
