//! `--annotation [TYPE[PLATFORM],…:]KEY=VALUE`: where an annotation goes (image-spec, annotations.md; the
//! spelling is buildx's).

use isles_spec::{Error as Spelling, Platform};

/// The documents that annotations stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Manifest,
    Index,
    /// What an index says of a manifest.
    ManifestDescriptor,
    /// What the list of an OCI layout says of the index.
    IndexDescriptor,
}

const PLACES: [(&str, Place); 4] = [
    ("manifest", Place::Manifest),
    ("index", Place::Index),
    ("manifest-descriptor", Place::ManifestDescriptor),
    ("index-descriptor", Place::IndexDescriptor),
];

/// A word on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    pub places: Vec<(Place, Option<Platform>)>,
    pub key: String,
    pub value: String,
}

impl Annotation {
    pub fn parse(text: &str) -> Result<Annotation, Spelling> {
        let wrong = |why: String| {
            Spelling::new(format!("invalid annotation '{text}': {why}"))
                .with_hint("write KEY=VALUE, or manifest:KEY=VALUE; also index, manifest-descriptor and index-descriptor")
        };
        let (left, value) = text.split_once('=').ok_or_else(|| wrong("it has no value".into()))?;
        let (places, key) = match left.split_once(':') {
            None => (vec![(Place::Manifest, None)], left),
            Some((places, key)) => {
                let places = places.split(',').map(|p| place(p).map_err(&wrong)).collect::<Result<_, _>>()?;
                (places, key)
            }
        };
        if key.is_empty() {
            return Err(wrong("it has no key".into()));
        }
        Ok(Annotation { places, key: key.to_owned(), value: value.to_owned() })
    }

    /// Whether it is meant for a document of this kind, on this platform.
    pub fn is_for(&self, wanted: Place, platform: Option<&Platform>) -> bool {
        self.places.iter().any(|(place, only)| {
            *place == wanted
                && match (only, platform) {
                    (None, _) => true,
                    (Some(only), Some(platform)) => only == platform,
                    (Some(_), None) => false,
                }
        })
    }
}

fn place(text: &str) -> Result<(Place, Option<Platform>), String> {
    let (name, platform) = match text.split_once('[') {
        None => (text, None),
        Some((name, rest)) => {
            let platform = rest.strip_suffix(']').ok_or("a '[' is not closed")?;
            (name, Some(platform.parse().map_err(|e: Spelling| e.to_string())?))
        }
    };
    let known = PLACES.iter().find(|(known, _)| *known == name);
    let (_, place) = known.ok_or_else(|| format!("there is no '{name}' to annotate"))?;
    Ok((*place, platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        for (text, places, key, value) in [
            ("a=b=c", vec![(Place::Manifest, None)], "a", "b=c"),
            ("index:a=", vec![(Place::Index, None)], "a", ""),
            (
                "manifest[linux/amd64],index-descriptor:org.x/y=1",
                vec![(Place::Manifest, Some(amd64.clone())), (Place::IndexDescriptor, None)],
                "org.x/y",
                "1",
            ),
        ] {
            let expected = Annotation { places, key: key.into(), value: value.into() };
            assert_eq!(Annotation::parse(text).unwrap(), expected, "{text}");
        }
        for bad in ["a", "=b", "index:=b", "layer:a=b", "manifest[x:a=b", "manifest[a/b/c/d/e]:a=b"] {
            assert!(Annotation::parse(bad).is_err(), "{bad}");
        }
        let annotation = Annotation::parse("manifest[linux/amd64]:a=b").unwrap();
        assert!(annotation.is_for(Place::Manifest, Some(&amd64)));
        assert!(!annotation.is_for(Place::Manifest, Some(&"linux/arm64".parse().unwrap())));
        assert!(!annotation.is_for(Place::Index, None));
    }
}
