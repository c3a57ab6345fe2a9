//! What an image says of itself: the document that `inspect` shows, which a SIF file has as a JSON object so that nobody
//! needs to mount it. Its form is Apptainer's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of the JSON object with the document.
pub const INSPECTION: &str = "inspect-metadata.json";
/// The name of the JSON object with the configuration of the OCI image that a file was made from: the part of it that
/// says how containers start.
pub const OCI_CONFIG: &str = "oci-config.json";

type Texts = BTreeMap<String, String>;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub data: Data,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    pub attributes: Attributes,
}

/// What the image has; what it does not have is empty and left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub apps: BTreeMap<String, App>,
    /// The scripts that make the environment, by their paths.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: Texts,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Texts,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runscript: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub test: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub helpfile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deffile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub startscript: String,
}

/// The same of one app of the image (SCIF).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: Texts,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Texts,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runscript: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub startscript: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub test: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub helpfile: String,
}

/// A root file system, as far as it takes to look into it. Paths are absolute.
pub trait Root {
    /// A file of text of moderate size.
    fn text(&self, path: &str) -> Option<String>;
    /// The names in a folder, in any order; none where there is no folder.
    fn names(&self, path: &str) -> Vec<String>;
}

impl Default for Inspection {
    fn default() -> Self {
        Inspection { data: Data::default(), kind: "container".to_owned() }
    }
}

impl Inspection {
    /// Of a root file system.
    pub fn of(root: &dyn Root) -> Inspection {
        let whole = App::of(root, "/.singularity.d");
        let mut attributes = Attributes {
            apps: BTreeMap::new(),
            environment: whole.environment,
            labels: whole.labels,
            runscript: whole.runscript,
            test: whole.test,
            helpfile: whole.helpfile,
            deffile: trimmed(root.text("/.singularity.d/Singularity")),
            startscript: whole.startscript,
        };
        for name in root.names("/scif/apps") {
            let folder = format!("/scif/apps/{name}/scif");
            if !root.names(&folder).is_empty() {
                attributes.apps.insert(name, App::of(root, &folder));
            }
        }
        Inspection { data: Data { attributes }, ..Inspection::default() }
    }

    /// `None` for what is not such a document.
    pub fn from_json(bytes: &[u8]) -> Option<Inspection> {
        serde_json::from_slice(bytes).ok()
    }

    pub fn to_json(&self) -> Vec<u8> {
        // Strings only: there is nothing that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl App {
    fn of(root: &dyn Root, folder: &str) -> App {
        let text = |name: &str| trimmed(root.text(&format!("{folder}/{name}")));
        let labels = root.text(&format!("{folder}/labels.json"));
        let labels = labels.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let mut environment = Texts::new();
        for name in root.names(&format!("{folder}/env")) {
            let from_oci = name.starts_with("10-docker") && name.ends_with(".sh");
            if from_oci || name.starts_with('9') && name.ends_with("-environment.sh") {
                let path = format!("{folder}/env/{name}");
                if let Some(text) = root.text(&path) {
                    environment.insert(path, trimmed(Some(text)));
                }
            }
        }
        App {
            environment,
            labels,
            runscript: text("runscript"),
            startscript: text("startscript"),
            test: text("test"),
            helpfile: text("runscript.help"),
        }
    }
}

fn trimmed(text: Option<String>) -> String {
    text.unwrap_or_default().trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(Vec<(&'static str, &'static str)>);

    impl Root for Files {
        fn text(&self, path: &str) -> Option<String> {
            self.0.iter().find(|(known, _)| *known == path).map(|(_, text)| (*text).to_owned())
        }

        fn names(&self, path: &str) -> Vec<String> {
            let below = format!("{path}/");
            let names = self.0.iter().filter_map(|(known, _)| known.strip_prefix(&below)?.split('/').next());
            names.map(str::to_owned).collect()
        }
    }

    #[test]
    fn what_is_there_is_shown() {
        let files = Files(vec![
            ("/.singularity.d/Singularity", "bootstrap: scratch\n\n"),
            ("/.singularity.d/runscript", "#!/bin/sh\necho hi\n"),
            ("/.singularity.d/labels.json", r#"{"a":"b"}"#),
            ("/.singularity.d/env/01-base.sh", "#"),
            ("/.singularity.d/env/10-docker2singularity.sh", "export A=1\n"),
            ("/.singularity.d/env/90-environment.sh", "export B=2\n"),
            ("/scif/apps/foo/scif/runscript", "foo"),
            ("/scif/apps/bar/other", ""),
        ]);
        let text = String::from_utf8(Inspection::of(&files).to_json()).unwrap();
        assert_eq!(
            text,
            r##"{"data":{"attributes":{"apps":{"foo":{"runscript":"foo"}},"environment":{"/.singularity.d/env/10-docker2singularity.sh":"export A=1","/.singularity.d/env/90-environment.sh":"export B=2"},"labels":{"a":"b"},"runscript":"#!/bin/sh\necho hi","deffile":"bootstrap: scratch"}},"type":"container"}"##
        );
        assert_eq!(Inspection::from_json(text.as_bytes()), Some(Inspection::of(&files)));
        assert_eq!(Inspection::from_json(b"{}"), None);
    }
}
