//! What an image is encrypted with, and what opens it: a passphrase, or an RSA key, from where Apptainer takes them. The
//! flags come before the variables, and keys before passphrases.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use isles_build::definition::Opener;
use isles_sif::{Sif, UnwrappingKey, WrappingKey};
use isles_store::Secret;

use crate::action_flags::{PASSPHRASE, PEM_PATH};
use crate::command::Context;
use crate::failure::Failure;
use crate::{ask, text_file, variables};

const PEM_LIMIT: u64 = 64 << 10;
/// Behind `APPTAINER_` or `SINGULARITY_`.
const PEM_FILE: &str = "ENCRYPTION_PEM_PATH";
const PEM_TEXT: &str = "ENCRYPTION_PEM_DATA";
const BY_VARIABLE: &str = "ENCRYPTION_PASSPHRASE";

/// What somebody has given.
#[derive(Clone)]
enum Material {
    Passphrase(Vec<u8>),
    /// A key in PEM form, and what messages call it.
    Pem(String, String),
}

impl Material {
    fn of_file(path: &Path) -> Result<Material, Failure> {
        let text = text_file::read(path, PEM_LIMIT, "cannot read the key")?;
        let missing = || Failure::new(format!("Specified PEM file {} does not exist", path.display()));
        Ok(Material::Pem(text.ok_or_else(missing)?, path.display().to_string()))
    }

    /// What the flags say, in their order.
    fn of_flags(cx: &Context<'_>) -> Result<Option<Material>, Failure> {
        if let Some(path) = cx.values.word(&PEM_PATH) {
            return Material::of_file(Path::new(path)).map(Some);
        }
        if cx.values.is(&PASSPHRASE) {
            // What opens a base also closes what is built on it, and is asked for once.
            static TYPED: OnceLock<String> = OnceLock::new();
            let typed = match TYPED.get() {
                Some(typed) => typed.clone(),
                None => ask::secret("Enter encryption passphrase: ")?,
            };
            if typed.is_empty() {
                return Err(Failure::new("an empty passphrase opens and encrypts nothing"));
            }
            let typed = TYPED.get_or_init(|| typed).clone();
            return Ok(Some(Material::Passphrase(typed.into_bytes())));
        }
        Ok(None)
    }

    fn of_variables() -> Result<Option<Material>, Failure> {
        if let Some(path) = variables::look(PEM_FILE) {
            return Material::of_file(Path::new(&path)).map(Some);
        }
        if let Some(text) = variables::look(PEM_TEXT) {
            return Ok(Some(Material::Pem(text, format!("{}{PEM_TEXT}", variables::NEW))));
        }
        Ok(variables::look(BY_VARIABLE).map(|text| Material::Passphrase(text.into_bytes())))
    }

    /// The passphrase of an encrypted image.
    fn open(self, name: &str, file: &File) -> Result<Vec<u8>, Failure> {
        match self {
            Material::Passphrase(passphrase) => Ok(passphrase),
            Material::Pem(text, of) => {
                let key = UnwrappingKey::from_pem(&text, &of)?;
                let copy = file.try_clone();
                let copy = copy.map_err(|e| Failure::because(format!("cannot read '{name}'"), &e))?;
                let sif = Sif::from_file(copy, name)?;
                key.unwrap(&sif).map_err(|error| {
                    let what = format!("cannot decrypt {name}");
                    let hint = match error {
                        isles_sif::Error::Missing { .. } => {
                            "it was built with a passphrase: give that, with --passphrase or APPTAINER_ENCRYPTION_PASSPHRASE"
                        }
                        _ => "give the private key that belongs to the public one it was built with",
                    };
                    Failure::because(what, &error).with_hint(hint)
                })
            }
        }
    }
}

/// The passphrase of an encrypted image, by flags or variables. `name` is what messages call it.
pub fn passphrase(cx: &Context<'_>, name: &str, file: &File) -> Result<Vec<u8>, Failure> {
    let given = match Material::of_flags(cx)? {
        Some(given) => Some(given),
        None => Material::of_variables()?,
    };
    let given = given.ok_or_else(|| {
        Failure::new(format!("{name} is encrypted: required option --passphrase or --pem-path missing"))
            .with_hint(
                "APPTAINER_ENCRYPTION_PASSPHRASE, APPTAINER_ENCRYPTION_PEM_PATH and APPTAINER_ENCRYPTION_PEM_DATA stand for them",
            )
    })?;
    given.open(name, file)
}

/// What opens the base of a build, by flags or variables.
pub fn opener(cx: &Context<'_>) -> Result<Opener, Failure> {
    Ok(opening(Material::of_flags(cx)?))
}

/// The same by variables alone, for doors that have no such flags.
pub fn opener_by_variables() -> Opener {
    opening(None)
}

fn opening(given: Option<Material>) -> Opener {
    Opener::new(move |sif| {
        let given = match &given {
            Some(given) => Some(given.clone()),
            None => Material::of_variables().map_err(|failure| failure.line())?,
        };
        let given = given.ok_or("no passphrase and no key is given")?;
        given.open(sif.name(), sif.file()).map_err(|failure| failure.line())
    })
}

/// What a new image is encrypted with.
pub fn new_secret(cx: &Context<'_>) -> Result<Secret, Failure> {
    let given = match Material::of_flags(cx)? {
        Some(given) => Some(given),
        None => Material::of_variables()?,
    };
    match given {
        Some(Material::Passphrase(passphrase)) => Ok(Secret::Passphrase(passphrase)),
        Some(Material::Pem(text, of)) => {
            Ok(Secret::wrapped(&WrappingKey::from_pem(&text, &of)?)?)
        }
        None => Err(Failure::new("Missing encryption info: what is the image to be encrypted with?")
            .with_hint("add --passphrase or --pem-path, or set APPTAINER_ENCRYPTION_PASSPHRASE or APPTAINER_ENCRYPTION_PEM_PATH")),
    }
}

/// Whether the variables say what to encrypt with.
pub fn is_in_variables() -> bool {
    [PEM_FILE, PEM_TEXT, BY_VARIABLE].iter().any(|key| variables::look(key).is_some())
}

/// The same by variables alone, for doors that have no such flags; `None` where there are none.
pub fn passphrase_by_variables(name: &str, file: &File) -> Result<Option<Vec<u8>>, Failure> {
    Material::of_variables()?.map(|given| given.open(name, file)).transpose()
}
