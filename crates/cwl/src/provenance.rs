//! `--provenance`: a run as a research object, in a folder that is a bag.
//!
//! ```text
//! bagit.txt, bag-info.txt, manifest-sha1.txt, tagmanifest-sha1.txt    RFC 8493
//! ro-crate-metadata.json                     RO-Crate 1.1, profile Workflow Run Crate 0.5
//! workflow/packed.cwl, primary-job.json, primary-output.json
//! metadata/provenance/primary.cwlprov.json   PROV-JSON: what each step used and made
//! data/ab/abcd…                              inputs and outputs by their SHA-1, as CWLProv 0.6 has them
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use isles_flow::record::{RunRow, StepRow};
use isles_spec::digest::hex;
use isles_spec::time::rfc3339_nanoseconds;
use ring::digest::SHA1_FOR_LEGACY_USE_ONLY as SHA1;
use serde_json::{Value as Json, json};

use crate::document::path_of;
use crate::model::Process;
use crate::outputs::digest_of_file;
use crate::value::Value;

/// What is told of a run.
pub struct Told<'a> {
    pub process: &'a Process,
    /// [`crate::pack::pack`] of it.
    pub packed: &'a Value,
    pub inputs: &'a Value,
    pub outputs: &'a Value,
    pub run: &'a RunRow,
    pub steps: &'a [StepRow],
    /// Of this program.
    pub version: &'a str,
}

struct Bag {
    folder: PathBuf,
    /// SHA-1 of the files of `data`, by their path in the bag.
    payload: BTreeMap<String, String>,
    bytes: u64,
    /// The same of all other files.
    tags: BTreeMap<String, String>,
    /// By location.
    known: BTreeMap<String, String>,
}

/// Writes the research object into a new or empty folder.
///
/// # Errors
/// There is something in the folder, or a file cannot be read or written.
pub fn write(folder: &Path, told: &Told<'_>) -> Result<(), String> {
    let fail = |e: io::Error| format!("cannot write the research object {}: {e}", folder.display());
    std::fs::create_dir_all(folder).map_err(fail)?;
    if std::fs::read_dir(folder).map_err(fail)?.next().is_some() {
        return Err(format!("{} is not empty, and a research object begins with nothing", folder.display()));
    }
    let mut bag = Bag {
        folder: folder.to_owned(),
        payload: BTreeMap::new(),
        bytes: 0,
        tags: BTreeMap::new(),
        known: BTreeMap::new(),
    };
    let json_of = |value: &Value| serde_json::from_str::<Json>(&value.spaced_json()).unwrap_or_default();
    let (inputs, outputs) = (bag.kept(&json_of(told.inputs))?, bag.kept(&json_of(told.outputs))?);
    bag.tag("workflow/packed.cwl", &told.packed.pretty_json())?;
    bag.tag("workflow/primary-job.json", &pretty(&inputs))?;
    bag.tag("workflow/primary-output.json", &pretty(&outputs))?;
    let prov = prov(told, &bag, &inputs, &outputs);
    bag.tag("metadata/provenance/primary.cwlprov.json", &pretty(&prov))?;
    bag.tag("ro-crate-metadata.json", &pretty(&crate_of(told, &inputs, &outputs)))?;
    bag.tag("bagit.txt", "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n")?;
    let info = format!(
        "Bag-Software-Agent: isles {}\nBagging-Date: {}\nExternal-Identifier: urn:isles:run:{}\nPayload-Oxum: {}.{}\n",
        told.version,
        &time(told.run.ended.unwrap_or(told.run.began))[..10],
        told.run.id,
        bag.bytes,
        bag.payload.len()
    );
    bag.tag("bag-info.txt", &info)?;
    let lines = |files: &BTreeMap<String, String>| -> String {
        files
            .iter()
            .map(|(path, sum)| format!("{sum}  {}\n", path.replace('%', "%25").replace('\n', "%0A")))
            .collect()
    };
    let manifest = lines(&bag.payload);
    bag.tag("manifest-sha1.txt", &manifest)?;
    let tags = lines(&bag.tags);
    std::fs::write(folder.join("tagmanifest-sha1.txt"), tags).map_err(fail)
}

fn pretty(value: &Json) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// A time of the record as RFC 3339.
fn time(milliseconds: i64) -> String {
    rfc3339_nanoseconds(u64::try_from(milliseconds).unwrap_or(0).saturating_mul(1_000_000))
}

fn is_file(object: &Json) -> bool {
    object["class"] == "File"
}

impl Bag {
    fn path(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.map_err(|e| format!("cannot make the folder of {}: {e}", path.display()))?;
        Ok(path)
    }

    fn tag(&mut self, name: &str, text: &str) -> Result<(), String> {
        let path = self.path(name)?;
        std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let sum = hex(ring::digest::digest(&SHA1, text.as_bytes()).as_ref());
        self.tags.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Puts a file into the bag, and gives its SHA-1.
    fn keep(&mut self, path: &Path) -> Result<String, String> {
        let sum = digest_of_file(path, &SHA1)?;
        let name = format!("data/{}/{sum}", &sum[..2]);
        if !self.payload.contains_key(&name) {
            let place = self.path(&name)?;
            let fail = |e: io::Error| format!("cannot copy {} into the research object: {e}", path.display());
            let (mut from, mut to) = (File::open(path).map_err(fail)?, File::create(&place).map_err(fail)?);
            self.bytes += io::copy(&mut from, &mut to).map_err(fail)?;
            self.payload.insert(name, sum.clone());
        }
        Ok(sum)
    }

    /// The value with its files named by their places in the bag, as seen from `workflow/`.
    fn kept(&mut self, value: &Json) -> Result<Json, String> {
        match value {
            Json::Array(items) => {
                Ok(Json::Array(items.iter().map(|item| self.kept(item)).collect::<Result<_, _>>()?))
            }
            Json::Object(map) => {
                let mut out = serde_json::Map::new();
                for (key, item) in map {
                    if !(is_file(value) && matches!(key.as_str(), "path" | "dirname")) {
                        out.insert(key.clone(), self.kept(item)?);
                    }
                }
                let location = value["location"].as_str();
                if is_file(value) {
                    if let Some(path) = location.and_then(path_of) {
                        let sum = self.keep(&path)?;
                        out.insert("location".into(), format!("../data/{}/{sum}", &sum[..2]).into());
                        out.insert("checksum".into(), format!("sha1${sum}").into());
                        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                        out.entry("basename").or_insert(name.into());
                        self.known.insert(location.unwrap_or_default().to_owned(), sum);
                    }
                } else if value["class"] == "Directory" {
                    out.remove("location");
                    out.remove("path");
                }
                Ok(Json::Object(out))
            }
            other => Ok(other.clone()),
        }
    }
}

/// SHA-1 of all files in a value.
fn sums(value: &Json, known: &BTreeMap<String, String>, into: &mut BTreeSet<String>) {
    match value {
        Json::Array(items) => items.iter().for_each(|item| sums(item, known, into)),
        Json::Object(map) => {
            if is_file(value) {
                let written =
                    value["checksum"].as_str().and_then(|sum| sum.strip_prefix("sha1$")).map(str::to_owned);
                let of_bag = || value["location"].as_str().and_then(|location| known.get(location)).cloned();
                into.extend(written.or_else(of_bag));
            }
            map.values().for_each(|item| sums(item, known, into));
        }
        _ => {}
    }
}

/// What was used by what, and what came of it (W3C PROV-JSON).
fn prov(told: &Told<'_>, bag: &Bag, inputs: &Json, outputs: &Json) -> Json {
    let mut entities = serde_json::Map::new();
    let mut activities = serde_json::Map::new();
    let (mut used, mut made, mut with, mut started) =
        (serde_json::Map::new(), serde_json::Map::new(), serde_json::Map::new(), serde_json::Map::new());
    let mut relate = |activity: &str, value: &Json, inputs: bool| {
        let mut found = BTreeSet::new();
        sums(value, &bag.known, &mut found);
        for sum in found {
            let entity = format!("data:{sum}");
            entities.entry(entity.clone()).or_insert(json!({ "prov:type": "wf4ever:File" }));
            let relation = json!({ "prov:activity": activity, "prov:entity": entity });
            let list = if inputs { &mut used } else { &mut made };
            list.insert(format!("_:{}{}", if inputs { "u" } else { "g" }, list.len()), relation);
        }
    };
    let mut activity = |id: &str, name: &str, began: i64, ended: Option<i64>, kind: &str| {
        let mut about = json!({ "prov:label": name, "prov:startTime": time(began), "prov:type": kind });
        if let Some(ended) = ended {
            about["prov:endTime"] = time(ended).into();
        }
        activities.insert(id.to_owned(), about);
        with.insert(format!("_:a{}", with.len()), json!({ "prov:activity": id, "prov:agent": "id:engine" }));
    };
    activity("id:run", &told.run.name, told.run.began, told.run.ended, "wfprov:WorkflowRun");
    relate("id:run", inputs, true);
    relate("id:run", outputs, false);
    for step in told.steps {
        let id = format!("id:step-{}", step.number);
        activity(&id, &step.name, step.began, step.ended, "wfprov:ProcessRun");
        started.insert(
            format!("_:s{}", started.len()),
            json!({ "prov:activity": id, "prov:starter": "id:run" }),
        );
        let parsed =
            |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Json>(text).ok());
        if let Some(value) = parsed(&step.inputs) {
            relate(&id, &value, true);
        }
        if let Some(value) = parsed(&step.outputs) {
            relate(&id, &value, false);
        }
    }
    json!({
        "prefix": {
            "id": format!("urn:isles:run:{}:", told.run.id),
            "data": "urn:hash::sha1:",
            "wfprov": "http://purl.org/wf4ever/wfprov#",
            "wf4ever": "http://purl.org/wf4ever/wf4ever#",
        },
        "agent": { "id:engine": { "prov:type": "wfprov:WorkflowEngine", "prov:label": format!("isles {}", told.version) } },
        "entity": entities,
        "activity": activities,
        "used": used,
        "wasGeneratedBy": made,
        "wasAssociatedWith": with,
        "wasStartedBy": started,
    })
}

/// The crate: what was run, with what, and what came of it.
fn crate_of(told: &Told<'_>, inputs: &Json, outputs: &Json) -> Json {
    let workflow = "workflow/packed.cwl";
    let mut graph: Vec<Json> = Vec::new();
    let mut parts = vec![json!({ "@id": workflow })];
    let mut files: BTreeMap<String, Json> = BTreeMap::new();
    let mut parameters = |names: Vec<(&str, String, bool)>,
                          side: &str,
                          values: &Json,
                          graph: &mut Vec<Json>| {
        let (mut formal, mut actual) = (Vec::new(), Vec::new());
        for (name, kind, required) in names {
            let id = format!("#{side}/{name}");
            graph.push(json!({
                "@id": id, "@type": "FormalParameter", "name": name, "additionalType": kind, "valueRequired": required,
                "conformsTo": { "@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE" },
            }));
            formal.push(json!({ "@id": id }));
            let value = &values[name];
            let mut found = Vec::new();
            files_in(value, &mut found);
            if found.is_empty() && !value.is_null() {
                let own = format!("#{side}-value/{name}");
                let text = if value.is_array() || value.is_object() {
                    value.to_string().into()
                } else {
                    value.clone()
                };
                graph.push(json!({
                    "@id": own, "@type": "PropertyValue", "name": name, "value": text, "exampleOfWork": { "@id": id },
                }));
                actual.push(json!({ "@id": own }));
            }
            for file in found {
                let path = file["location"].as_str().unwrap_or_default().trim_start_matches("../").to_owned();
                let entry = files.entry(path.clone()).or_insert_with(|| {
                    json!({
                        "@id": path, "@type": "File", "name": file["basename"], "alternateName": file["basename"],
                        "sha1": file["checksum"].as_str().unwrap_or_default().trim_start_matches("sha1$"),
                        "exampleOfWork": [],
                    })
                });
                if let Some(works) = entry["exampleOfWork"].as_array_mut() {
                    works.push(json!({ "@id": id }));
                }
                actual.push(json!({ "@id": path }));
            }
        }
        (formal, actual)
    };
    let names = told.process.inputs.iter();
    let of_inputs =
        names.map(|i| (&*i.name, schema_org(&i.kind.to_string()), !i.kind.accepts_null())).collect();
    let (inputs_formal, objects) = parameters(of_inputs, "input", inputs, &mut graph);
    let names = told.process.outputs.iter();
    let of_outputs = names.map(|o| (&*o.name, schema_org(&o.kind.to_string()), true)).collect();
    let (outputs_formal, results) = parameters(of_outputs, "output", outputs, &mut graph);
    parts.extend(files.keys().map(|path| json!({ "@id": path })));
    graph.extend(files.into_values());
    let profiles = [
        "https://w3id.org/ro/wfrun/process/0.5",
        "https://w3id.org/ro/wfrun/workflow/0.5",
        "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
    ];
    for profile in profiles {
        graph.push(json!({ "@id": profile, "@type": "CreativeWork", "name": profile }));
    }
    let ids = |list: &[&str]| list.iter().map(|id| json!({ "@id": id })).collect::<Vec<_>>();
    let description = told.process.doc.clone().unwrap_or_else(|| format!("A run of {}", told.run.name));
    let mut all = vec![
        json!({
            "@id": "ro-crate-metadata.json", "@type": "CreativeWork", "about": { "@id": "./" },
            "conformsTo": ids(&["https://w3id.org/ro/crate/1.1", "https://w3id.org/workflowhub/workflow-ro-crate/1.0"]),
        }),
        json!({
            "@id": "./", "@type": "Dataset", "name": format!("Run {} of {}", told.run.id, told.run.name),
            "description": description, "datePublished": time(told.run.ended.unwrap_or(told.run.began)),
            "license": "The license of what it holds is that of its authors",
            "conformsTo": ids(&profiles), "hasPart": parts, "mainEntity": { "@id": workflow },
            "mentions": [{ "@id": "#run" }],
        }),
        json!({
            "@id": workflow, "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"], "name": told.run.name,
            "programmingLanguage": { "@id": "https://w3id.org/workflowhub/workflow-ro-crate#cwl" },
            "input": inputs_formal, "output": outputs_formal,
        }),
        json!({
            "@id": "https://w3id.org/workflowhub/workflow-ro-crate#cwl", "@type": "ComputerLanguage",
            "name": "Common Workflow Language", "alternateName": "CWL", "identifier": { "@id": "https://w3id.org/cwl/" },
            "url": { "@id": "https://www.commonwl.org/" }, "version": told.process.version.to_string(),
        }),
        json!({
            "@id": "#run", "@type": "CreateAction", "name": format!("Run of {}", told.run.name),
            "startTime": time(told.run.began), "endTime": time(told.run.ended.unwrap_or(told.run.began)),
            "actionStatus": { "@id": "http://schema.org/CompletedActionStatus" },
            "instrument": { "@id": workflow }, "object": objects, "result": results, "agent": { "@id": "#engine" },
        }),
        json!({
            "@id": "#engine", "@type": "SoftwareApplication", "name": "isles", "softwareVersion": told.version,
        }),
    ];
    all.append(&mut graph);
    json!({ "@context": ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"], "@graph": all })
}

fn files_in<'v>(value: &'v Json, found: &mut Vec<&'v Json>) {
    match value {
        Json::Array(items) => items.iter().for_each(|item| files_in(item, found)),
        Json::Object(map) => {
            if is_file(value)
                && value["location"].as_str().is_some_and(|location| location.starts_with("../data/"))
            {
                found.push(value);
            }
            map.values().for_each(|item| files_in(item, found));
        }
        _ => {}
    }
}

/// A type of CWL as the vocabulary of the profile calls it.
fn schema_org(kind: &str) -> String {
    let plain = kind.trim_end_matches('?').trim_end_matches("[]");
    match plain {
        "File" => "File",
        "Directory" => "Dataset",
        "boolean" => "Boolean",
        "int" | "long" => "Integer",
        "float" | "double" => "Float",
        "string" => "Text",
        _ => "PropertyValue",
    }
    .to_owned()
}
