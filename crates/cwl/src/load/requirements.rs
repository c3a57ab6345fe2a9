//! `requirements` and `hints`.

use std::sync::Arc;

use super::Loader;
use crate::document::{Diagnostic, nearest};
use crate::expression::Text;
use crate::model::{
    Docker, Field, InitialEntry, InitialWorkDir, Listing, Requirement, Resources, SoftwarePackage, Version,
};
use crate::tree::{Kind, Node};
use crate::value::Value;

/// Classes with the version that brought them.
const KNOWN: [(&str, Version); 20] = [
    ("InlineJavascriptRequirement", Version::V1_0),
    ("SchemaDefRequirement", Version::V1_0),
    ("DockerRequirement", Version::V1_0),
    ("SoftwareRequirement", Version::V1_0),
    ("InitialWorkDirRequirement", Version::V1_0),
    ("EnvVarRequirement", Version::V1_0),
    ("ShellCommandRequirement", Version::V1_0),
    ("ResourceRequirement", Version::V1_0),
    ("SubworkflowFeatureRequirement", Version::V1_0),
    ("ScatterFeatureRequirement", Version::V1_0),
    ("MultipleInputFeatureRequirement", Version::V1_0),
    ("StepInputExpressionRequirement", Version::V1_0),
    ("WorkReuse", Version::V1_1),
    ("NetworkAccess", Version::V1_1),
    ("InplaceUpdateRequirement", Version::V1_1),
    ("ToolTimeLimit", Version::V1_1),
    ("LoadListingRequirement", Version::V1_1),
    ("MPIRequirement", Version::V1_0),
    ("Secrets", Version::V1_0),
    ("ShmSize", Version::V1_0),
];

/// What v1.0 gave every process without being asked: the network, and full listings.
pub(super) fn upgrade_v1_0(requirements: &[Requirement], hints: &mut Vec<Requirement>) {
    let has = |f: fn(&Requirement) -> bool| requirements.iter().any(f);
    if !has(|r| matches!(r, Requirement::NetworkAccess(_)))
        && !hints.iter().any(|r| matches!(r, Requirement::NetworkAccess(_)))
    {
        hints.push(Requirement::NetworkAccess(Field::Fixed(Value::Bool(true))));
    }
    if !has(|r| matches!(r, Requirement::LoadListing(_)))
        && !hints.iter().any(|r| matches!(r, Requirement::LoadListing(_)))
    {
        hints.push(Requirement::LoadListing(Listing::Deep));
    }
}

impl Loader {
    /// Requirements that a job brings (`cwl:requirements`, `cwl:hints`).
    pub fn outer_requirements(&mut self, node: &Node, version: Version, required: bool) -> Vec<Requirement> {
        self.requirements(Some(node), version, required)
    }

    pub(super) fn requirements(
        &mut self,
        node: Option<&Node>,
        version: Version,
        required: bool,
    ) -> Vec<Requirement> {
        let what = if required { "requirements" } else { "hints" };
        let mut out = Vec::new();
        for item in self.named_items(node, what, "class", None) {
            let Some(class) = item.get("class").and_then(Node::as_str) else {
                if required || item.as_map().is_none() {
                    self.error(item.at, format!("an item of `{what}` needs a `class`"));
                }
                continue;
            };
            let full = self.documents.expand(class, item.at);
            out.extend(self.requirement(&item, &full, version, required));
        }
        out
    }

    fn requirement(
        &mut self,
        item: &Node,
        class: &str,
        version: Version,
        required: bool,
    ) -> Option<Requirement> {
        const EXTENSION: &str = "http://commonwl.org/cwltool#";
        let name = match class.strip_prefix(EXTENSION) {
            // Names of the extension that later versions made their own.
            Some("TimeLimit") => "ToolTimeLimit",
            Some(
                name
                @ ("WorkReuse" | "NetworkAccess" | "InplaceUpdateRequirement" | "LoadListingRequirement"),
            ) => name,
            Some(name @ ("MPIRequirement" | "Secrets" | "ShmSize")) => name,
            Some(_) => return Some(Requirement::Unknown(class.to_owned(), item.at)),
            None => class.rsplit('#').next().unwrap_or(class),
        };
        let of_extension = class.starts_with(EXTENSION);
        let Some((_, since)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            if required && !class.contains(':') {
                let mut error =
                    Diagnostic::new(item.at, format!("`{name}` is no requirement of CWL {version}"));
                if let Some(near) = nearest(name, KNOWN.iter().map(|(known, _)| *known)) {
                    error = error.with_hint(format!("did you mean {near}?"));
                    self.push(error);
                    return None;
                }
            }
            return Some(Requirement::Unknown(name.to_owned(), item.at));
        };
        if version < *since && !of_extension {
            if required {
                self.error(item.at, format!("`{name}` needs CWL {since}, and this document is {version}"));
            }
            return None;
        }
        let fields = |loader: &mut Loader, allowed: &[&str]| {
            let mut all = vec!["class"];
            all.extend(allowed);
            if required || KNOWN.iter().any(|(known, _)| *known == name) {
                loader.fields(item, name, &all);
            }
        };
        let get = |key: &str| item.get(key).filter(|n| !n.is_null());
        Some(match name {
            "InlineJavascriptRequirement" => {
                fields(self, &["expressionLib"]);
                Requirement::InlineJavascript(Arc::new(self.strings(get("expressionLib"), "expressionLib")))
            }
            "SchemaDefRequirement" => {
                fields(self, &["types"]);
                Requirement::SchemaDef
            }
            "DockerRequirement" => {
                let allowed = [
                    "dockerPull",
                    "dockerLoad",
                    "dockerFile",
                    "dockerImport",
                    "dockerImageId",
                    "dockerOutputDirectory",
                ];
                fields(self, &allowed);
                self.docker(item)
            }
            "SoftwareRequirement" => {
                fields(self, &["packages"]);
                let mut packages = Vec::new();
                for package in self.named_items(get("packages"), "packages", "package", Some("specs")) {
                    let Some(name) = package.get("package").and_then(Node::as_str) else {
                        self.error(package.at, "a package needs a name (`package`)");
                        continue;
                    };
                    let versions = self.strings(package.get("version").filter(|n| !n.is_null()), "version");
                    packages.push(SoftwarePackage { name: name.to_owned(), versions });
                }
                Requirement::Software(packages)
            }
            "InitialWorkDirRequirement" => {
                fields(self, &["listing"]);
                let Some(listing) = get("listing") else {
                    self.error(item.at, "InitialWorkDirRequirement needs a `listing`");
                    return None;
                };
                Requirement::InitialWorkDir(self.initial_work_dir(listing, version)?)
            }
            "EnvVarRequirement" => {
                fields(self, &["envDef"]);
                let mut out = Vec::new();
                for def in self.named_items(get("envDef"), "envDef", "envName", Some("envValue")) {
                    let (Some(name), Some(value)) =
                        (def.get("envName").and_then(Node::as_str), def.get("envValue"))
                    else {
                        self.error(def.at, "a variable needs `envName` and `envValue`");
                        continue;
                    };
                    if name.is_empty() || name.contains(['=', '\0']) {
                        self.error(def.at, format!("`{name}` is no name of a variable"));
                        continue;
                    }
                    if let Some(text) = self.text(value, version) {
                        out.push((name.to_owned(), text));
                    }
                }
                Requirement::EnvVar(out)
            }
            "ShellCommandRequirement" => {
                fields(self, &[]);
                Requirement::ShellCommand
            }
            "ResourceRequirement" => {
                let allowed = [
                    "coresMin",
                    "coresMax",
                    "ramMin",
                    "ramMax",
                    "tmpdirMin",
                    "tmpdirMax",
                    "outdirMin",
                    "outdirMax",
                ];
                fields(self, &allowed);
                let bound = |loader: &mut Loader, key: &str| {
                    let node = get(key)?;
                    let whole_only = version < Version::V1_2;
                    match node.kind {
                        Kind::Float(_) if whole_only => {
                            loader.error(
                                node.at,
                                format!(
                                    "`{key}` with a fraction needs CWL v1.2, and this document is {version}"
                                ),
                            );
                            None
                        }
                        Kind::Int(_) | Kind::Float(_) | Kind::Str(_) => Some(loader.field(node, version)),
                        _ => {
                            loader.error(
                                node.at,
                                format!(
                                    "`{key}` is {}, and must be a number or an expression",
                                    node.kind_name()
                                ),
                            );
                            None
                        }
                    }
                };
                Requirement::Resource(Box::new(Resources {
                    cores_min: bound(self, "coresMin"),
                    cores_max: bound(self, "coresMax"),
                    ram_min: bound(self, "ramMin"),
                    ram_max: bound(self, "ramMax"),
                    tmpdir_min: bound(self, "tmpdirMin"),
                    tmpdir_max: bound(self, "tmpdirMax"),
                    outdir_min: bound(self, "outdirMin"),
                    outdir_max: bound(self, "outdirMax"),
                }))
            }
            "SubworkflowFeatureRequirement" => Requirement::Subworkflow,
            "ScatterFeatureRequirement" => Requirement::Scatter,
            "MultipleInputFeatureRequirement" => Requirement::MultipleInput,
            "StepInputExpressionRequirement" => Requirement::StepInputExpression,
            "WorkReuse" => {
                fields(self, &["enableReuse"]);
                Requirement::WorkReuse(
                    get("enableReuse").map_or(Field::Fixed(Value::Bool(true)), |n| self.field(n, version)),
                )
            }
            "NetworkAccess" => {
                fields(self, &["networkAccess"]);
                Requirement::NetworkAccess(
                    get("networkAccess").map_or(Field::Fixed(Value::Bool(true)), |n| self.field(n, version)),
                )
            }
            "InplaceUpdateRequirement" => {
                fields(self, &["inplaceUpdate"]);
                Requirement::InplaceUpdate(
                    self.boolean(get("inplaceUpdate"), "inplaceUpdate").unwrap_or(false),
                )
            }
            "ToolTimeLimit" => {
                fields(self, &["timelimit"]);
                let Some(limit) = get("timelimit") else {
                    self.error(item.at, "ToolTimeLimit needs a `timelimit`");
                    return None;
                };
                Requirement::ToolTimeLimit(self.field(limit, version))
            }
            "LoadListingRequirement" => {
                fields(self, &["loadListing"]);
                Requirement::LoadListing(self.listing(get("loadListing")).unwrap_or(Listing::No))
            }
            "Secrets" => {
                fields(self, &["secrets"]);
                let names = self.strings(get("secrets"), "secrets");
                let plain = |name: String| name.rsplit(['/', '#']).next().unwrap_or_default().to_owned();
                Requirement::Secrets(names.into_iter().map(plain).collect())
            }
            "ShmSize" => {
                fields(self, &["shmSize"]);
                let size = get("shmSize").and_then(Node::as_str).map(isles_spec::quantity::parse_bytes);
                match size {
                    Some(Ok(bytes)) => Requirement::ShmSize(bytes),
                    Some(Err(e)) => {
                        self.error(item.at, format!("`shmSize`: {e}"));
                        return None;
                    }
                    None => {
                        self.error(item.at, "ShmSize needs a `shmSize` such as 128m");
                        return None;
                    }
                }
            }
            _ => {
                fields(self, &["processes"]);
                let Some(processes) = get("processes") else {
                    self.error(item.at, "MPIRequirement needs `processes`");
                    return None;
                };
                Requirement::Mpi(self.field(processes, version))
            }
        })
    }

    fn docker(&mut self, item: &Node) -> Requirement {
        let text = |loader: &mut Loader, key: &str| {
            let node = item.get(key).filter(|n| !n.is_null())?;
            match node.as_str() {
                Some(text) => Some(text.to_owned()),
                None => {
                    loader.error(node.at, format!("`{key}` is {}, and must be a string", node.kind_name()));
                    None
                }
            }
        };
        let load = text(self, "dockerLoad").and_then(|path| match self.documents.locate(&path, item.at) {
            Ok(path) => Some(path),
            Err(e) => {
                self.push(e);
                None
            }
        });
        let file = item.get("dockerFile").filter(|n| !n.is_null());
        Requirement::Docker(Box::new(Docker {
            pull: text(self, "dockerPull"),
            load,
            file: file.and_then(|n| Some((n.as_str()?.to_owned(), n.at))),
            import: text(self, "dockerImport"),
            image_id: text(self, "dockerImageId"),
            output_directory: text(self, "dockerOutputDirectory"),
        }))
    }

    fn initial_work_dir(&mut self, listing: &Node, version: Version) -> Option<InitialWorkDir> {
        let items = match &listing.kind {
            Kind::Str(_) => return self.text(listing, version).map(InitialWorkDir::Text),
            Kind::Seq(items) => items.clone(),
            // Names to what stands in them.
            Kind::Map(_) if listing.get("class").is_none() && listing.get("entry").is_none() => {
                self.named_items(Some(listing), "listing", "entryname", Some("entry"))
            }
            _ => vec![listing.clone()],
        };
        let mut entries = Vec::new();
        for item in items {
            match &item.kind {
                Kind::Str(_) => entries.extend(self.text(&item, version).map(InitialEntry::Text)),
                Kind::Null => {}
                Kind::Map(_) if item.get("class").is_some() => {
                    entries.push(InitialEntry::Object(self.documents.value(&item)));
                }
                Kind::Map(_) => {
                    let fields = self.fields(&item, "a Dirent", &["entry", "entryname", "writable"]);
                    let Some(entry) = item.get("entry") else {
                        self.error(item.at, "a Dirent needs an `entry`");
                        continue;
                    };
                    let entry = match entry.as_str() {
                        Some(text) => Field::Text(Text::parse(text, super::escapes(version), false)),
                        None => Field::Fixed(self.documents.value(entry)),
                    };
                    let name = fields.get("entryname").and_then(|n| self.text(n, version));
                    let writable = self.boolean(fields.get("writable"), "writable").unwrap_or(false);
                    entries.push(InitialEntry::Dirent { entry, name, writable, at: item.at });
                }
                // Files and Directories within the list, as expressions give them.
                Kind::Seq(_) => entries.push(InitialEntry::Object(self.documents.value(&item))),
                _ => self.error(item.at, format!("an entry of `listing` cannot be {}", item.kind_name())),
            }
        }
        Some(InitialWorkDir::Entries(entries))
    }
}
