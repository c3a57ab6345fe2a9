//! What is attested of an image: the packages in it (SBOM) and how it came to be (provenance).

mod apk;
mod dpkg;
mod node;
mod packages;
mod provenance;
mod python;
mod rpm;
mod spdx;

use isles_spec::Error as Spelling;
use isles_store::Image;

pub(crate) use provenance::{Dependency, Told};

use crate::dockerfile::mount::fields;
use crate::error::Result;
use crate::output::Predicate;
use crate::snapshot::Build;

/// What a caller wants attested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attest {
    pub sbom: bool,
    pub provenance: Option<Provenance>,
}

/// How much a provenance tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Also the recipe, and the values of build arguments.
    pub max: bool,
    /// Who built it, as an address.
    pub builder: String,
}

impl Attest {
    /// Adds what `--attest type=sbom` or `--attest type=provenance,mode=max` asks for.
    pub fn add(&mut self, text: &str) -> std::result::Result<(), Spelling> {
        let wrong = |why: String| {
            Spelling::new(format!("invalid attestation '{text}': {why}"))
                .with_hint("write type=sbom, or type=provenance,mode=min|max")
        };
        let mut kind = None;
        let (mut provenance, mut disabled) = (Provenance::default(), false);
        for field in fields(text).map_err(|why| wrong(why.to_owned()))? {
            match field.split_once('=') {
                Some(("type", value)) => kind = Some(value.to_owned()),
                Some(("mode", "min")) => provenance.max = false,
                Some(("mode", "max")) => provenance.max = true,
                Some(("mode", other)) => return Err(wrong(format!("mode is min or max, not '{other}'"))),
                Some(("builder-id", value)) => provenance.builder = value.to_owned(),
                Some(("version", "v1")) => {}
                Some(("version", other)) => {
                    return Err(wrong(format!("provenance is written as SLSA v1, not '{other}'")));
                }
                Some(("disabled", "true")) => disabled = true,
                Some(("disabled", "false")) => {}
                Some(("generator", _)) => {
                    return Err(wrong(
                        "generators are not supported; packages are read by the build itself".into(),
                    ));
                }
                _ => return Err(wrong(format!("'{field}' is no part of it"))),
            }
        }
        match kind.as_deref() {
            Some("sbom") if provenance == Provenance::default() => self.sbom = !disabled,
            Some("sbom") => return Err(wrong("mode and builder-id are for provenance".into())),
            Some("provenance") => self.provenance = (!disabled).then_some(provenance),
            Some(other) => return Err(wrong(format!("unknown type '{other}'"))),
            None => return Err(wrong("it has no type".into())),
        }
        Ok(())
    }

    /// What `--sbom=VALUE` and `--provenance=VALUE` stand for in `--attest`.
    pub fn short(kind: &str, value: &str) -> String {
        match value {
            "" | "true" => format!("type={kind}"),
            "false" => format!("type={kind},disabled=true"),
            more => format!("type={kind},{more}"),
        }
    }
}

/// Everything that is attested of an image.
pub(crate) fn predicates(build: &Build<'_>, image: &Image, told: &Told<'_>) -> Result<Vec<Predicate>> {
    let wanted = &build.options.attest;
    let mut predicates = Vec::new();
    if wanted.sbom {
        predicates.push(spdx::predicate(build, image)?);
    }
    if let Some(provenance) = &wanted.provenance {
        predicates.push(provenance::predicate(build, provenance, told));
    }
    Ok(predicates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let provenance = |max, builder: &str| Some(Provenance { max, builder: builder.into() });
        for (texts, expected) in [
            (&["type=sbom"][..], Attest { sbom: true, provenance: None }),
            (&["type=sbom", "type=sbom,disabled=true"], Attest::default()),
            (&["type=provenance"], Attest { sbom: false, provenance: provenance(false, "") }),
            (
                &["type=provenance,mode=max,builder-id=https://x/y,version=v1", "type=sbom,disabled=false"],
                Attest { sbom: true, provenance: provenance(true, "https://x/y") },
            ),
            (&["type=provenance,mode=max", "type=provenance,disabled=true"], Attest::default()),
        ] {
            let mut attest = Attest::default();
            texts.iter().for_each(|t| attest.add(t).unwrap());
            assert_eq!(attest, expected, "{texts:?}");
        }
        for (text, why) in [
            ("mode=max", "no type"),
            ("type=tape", "tape"),
            ("type=provenance,mode=most", "most"),
            ("type=provenance,version=v0.2", "v0.2"),
            ("type=sbom,generator=x", "generators"),
            ("type=sbom,mode=max", "provenance"),
            ("sbom", "'sbom'"),
        ] {
            let error = Attest::default().add(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(Attest::short("sbom", "true"), "type=sbom");
        assert_eq!(Attest::short("provenance", "mode=max"), "type=provenance,mode=max");
        assert_eq!(Attest::short("provenance", "false"), "type=provenance,disabled=true");
    }
}
