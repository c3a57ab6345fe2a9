//! Finding the recipe that a path means: a Dockerfile, a Containerfile, a definition file, or a folder
//! that holds exactly one.

use std::io::Read;
use std::path::{Path, PathBuf};

use isles_spec::Error as SpecError;
use isles_store::read_bounded;

use crate::error::{Error, Result};

/// Which language a recipe is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Dockerfile,
    Definition,
}

/// A recipe and the files around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is, or what messages call it.
    pub file: PathBuf,
    /// What it says, where it is not in a file.
    pub text: Option<Vec<u8>>,
    pub language: Language,
    /// The folder that COPY and `%files` start from.
    pub context: PathBuf,
    /// The context was fetched ([`crate::elsewhere`]), and the file is named by its path there. No link leads out.
    pub fetched: bool,
    /// When what the context was fetched from was made (seconds since 1970); nothing for a folder of the host.
    pub made: Option<i64>,
}

impl Found {
    /// The bytes of the recipe.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.text.clone().map_or_else(|| read(&self.file), Ok)
    }
}

/// Recipes may have this many bytes.
pub const MAX_RECIPE: u64 = 4 << 20;

/// The language that the name of a file tells.
pub fn language_of(path: &Path) -> Option<Language> {
    let name = path.file_name()?.to_str()?;
    let dockerfile = |stem: &str| {
        name == stem
            || name
                .strip_prefix(stem)
                .is_some_and(|rest| rest.starts_with('.') && !rest.ends_with(".dockerignore"))
            || name.strip_suffix(stem).is_some_and(|head| head.ends_with('.'))
    };
    if name.ends_with(".def") || name == "Singularity" || name == "Apptainer" {
        Some(Language::Definition)
    } else if dockerfile("Dockerfile") || dockerfile("Containerfile") || name.ends_with(".dockerfile") {
        Some(Language::Dockerfile)
    } else {
        None
    }
}

/// Whether `path` is a recipe or a folder that holds one. Never an error: what cannot be read is none.
pub fn is_recipe(path: &Path) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path)
            .is_ok_and(|entries| entries.flatten().any(|e| in_folder(&e.path()) && e.path().is_file()));
    }
    path.is_file() && language_of(path).is_some()
}

/// In a folder only these are looked for.
fn in_folder(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    matches!(name, "Dockerfile" | "Containerfile" | "Singularity" | "Apptainer") || name.ends_with(".def")
}

/// The recipe that `path` means.
///
/// # Errors
/// Nothing is there, or a folder holds several and none is named after the others' rule: a single
/// `Dockerfile` beside a `Containerfile` or a definition file is ambiguous.
pub fn find(path: &Path) -> Result<Found> {
    let metadata = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(isles_spec::Error::new(format!("no recipe at '{}'", path.display()))
                .with_hint(
                    "name a Dockerfile, a Containerfile or something.def, or a folder with one of them",
                )
                .into());
        }
        found => found.map_err(Error::io("find the recipe", path))?,
    };
    if !metadata.is_dir() {
        let language = match language_of(path) {
            Some(language) => language,
            None => guess(&read(path)?),
        };
        let context = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        return Ok(Found {
            file: path.to_owned(),
            text: None,
            language,
            context,
            fetched: false,
            made: None,
        });
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?.path();
        if in_folder(&entry) && entry.is_file() {
            found.push(entry);
        }
    }
    // As BuildKit has it, the name in small letters will do where there is no other.
    let small = path.join("dockerfile");
    if found.is_empty() && small.is_file() {
        found.push(small);
    }
    found.sort();
    match found.as_slice() {
        [] => Err(SpecError::new(format!("no recipe in '{}'", path.display()))
            .with_hint("a recipe is called Dockerfile, Containerfile, or something.def")
            .into()),
        [file] => Ok(Found {
            language: language_of(file).unwrap_or(Language::Dockerfile),
            file: file.clone(),
            text: None,
            context: path.to_owned(),
            fetched: false,
            made: None,
        }),
        several => {
            let names: Vec<_> =
                several.iter().filter_map(|f| f.file_name()).map(|n| n.to_string_lossy()).collect();
            Err(SpecError::new(format!("'{}' holds several recipes: {}", path.display(), names.join(", ")))
                .with_hint(format!("name the one you mean, for example -f {}", several[0].display()))
                .into())
        }
    }
}

/// A recipe that comes from `input`, which messages call `name`, in either language.
pub fn read_from(input: impl Read, name: &str, context: &Path) -> Result<Found> {
    let text = bounded(input, Path::new(name))?;
    let language = guess(&text);
    Ok(Found {
        file: name.into(),
        language,
        text: Some(text),
        context: context.to_owned(),
        fetched: false,
        made: None,
    })
}

/// The language of a recipe whose name does not tell, by its first words.
fn guess(bytes: &[u8]) -> Language {
    let text = String::from_utf8_lossy(bytes);
    let first = text
        .lines()
        .map(str::trim)
        .find(|l| !l.is_empty() && !l.starts_with('#'))
        .unwrap_or("")
        .to_ascii_lowercase();
    // In JSON only a definition is written.
    if first.starts_with("bootstrap:") || first.starts_with(['%', '{', '[']) {
        Language::Definition
    } else {
        Language::Dockerfile
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    bounded(std::fs::File::open(path).map_err(Error::io("open", path))?, path)
}

fn bounded(input: impl Read, path: &Path) -> Result<Vec<u8>> {
    let bytes = read_bounded(input, MAX_RECIPE).map_err(Error::io("read", path))?;
    bytes.ok_or_else(|| {
        let message = format!("'{}' is larger than a recipe may be ({MAX_RECIPE} bytes)", path.display());
        SpecError::new(message).with_hint("is this really a recipe?").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_language() {
        for (name, language) in [
            ("Dockerfile", Some(Language::Dockerfile)),
            ("Dockerfile.dev", Some(Language::Dockerfile)),
            ("dev.Dockerfile", Some(Language::Dockerfile)),
            ("x.dockerfile", Some(Language::Dockerfile)),
            ("Containerfile", Some(Language::Dockerfile)),
            ("Dockerfile.dockerignore", None),
            ("x.def", Some(Language::Definition)),
            ("Singularity", Some(Language::Definition)),
            ("README", None),
        ] {
            assert_eq!(language_of(Path::new(name)), language, "{name}");
        }
    }

    #[test]
    fn folders_hold_exactly_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).unwrap_err().to_string().contains("no recipe"));
        assert!(!is_recipe(dir.path()));
        std::fs::write(dir.path().join("dockerfile"), "FROM scratch\n").unwrap();
        assert_eq!(find(dir.path()).unwrap().file, dir.path().join("dockerfile"));
        std::fs::write(dir.path().join("x.def"), "Bootstrap: scratch\n").unwrap();
        assert_eq!(find(dir.path()).unwrap().language, Language::Definition);
        assert!(is_recipe(dir.path()));
        std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\n").unwrap();
        let error = find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("Dockerfile, x.def"), "{error}");
        std::fs::write(dir.path().join("odd"), "# c\nbootstrap: docker\n").unwrap();
        for (text, language) in [
            ("{\"header\": {}}", Language::Definition),
            ("%post\nx\n", Language::Definition),
            ("from scratch\n", Language::Dockerfile),
        ] {
            std::fs::write(dir.path().join("odd2"), text).unwrap();
            assert_eq!(find(&dir.path().join("odd2")).unwrap().language, language, "{text}");
        }
        let odd = find(&dir.path().join("odd")).unwrap();
        assert_eq!((odd.language, odd.context), (Language::Definition, dir.path().to_owned()));
        assert!(find(&dir.path().join("none")).is_err());
    }
}
