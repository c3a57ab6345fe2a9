//! The input object of a process: defaults, types, files.

use crate::files::{self, Ontology, Preparing, Wanted};
use crate::model::{Process, Version};
use crate::needs::Needs;
use crate::value::{Map, Value};

/// Fills in defaults, refuses what is of the wrong type, and leaves out what the process does not know.
///
/// # Errors
/// All inputs that are wrong, a line each.
pub fn complete(process: &Process, given: &Value) -> Result<Value, String> {
    let mut out = Map::new();
    let mut wrong = Vec::new();
    for input in &process.inputs {
        let value = given.get(&input.name).filter(|v| !v.is_null());
        let value = match (value, &input.default) {
            (Some(value), _) => value.clone(),
            (None, Some(default)) => default.clone(),
            (None, None) => Value::Null,
        };
        let value = match files::normalized(&value) {
            Ok(value) => value,
            Err(e) => {
                wrong.push(format!("`{}`: {e}", input.name));
                continue;
            }
        };
        if input.kind.matches(&value) {
            out.insert(input.name.clone(), value);
        } else {
            wrong.push(input.kind.explain(&value, &input.name));
        }
    }
    if wrong.is_empty() { Ok(Value::map(out)) } else { Err(wrong.join("\n")) }
}

/// Gives the files of complete inputs what their parameters ask for: contents, listings, secondary files, formats.
pub fn prepare(
    process: &Process,
    inputs: &Value,
    needs: &Needs,
    discover: bool,
    ontology: &Ontology,
    runtime: &Value,
) -> Result<Value, String> {
    let preparing = Preparing {
        inputs,
        runtime,
        js: needs.js(),
        version: process.version,
        discover,
        default_listing: needs.listing(),
        ontology,
    };
    let mut out = Map::new();
    for input in &process.inputs {
        let value = inputs.get(&input.name).unwrap_or(&Value::Null);
        let wanted = Wanted {
            secondary_files: &input.secondary_files,
            format: &input.format,
            load_contents: input.load_contents,
            listing: input.load_listing,
        };
        let value = if files::any(value) {
            preparing.prepare(value, &input.kind, wanted, &input.name)?
        } else {
            value.clone()
        };
        out.insert(input.name.clone(), value);
    }
    Ok(Value::map(out))
}

/// Contents and listings that an input of a step asks for.
pub fn loaded(
    value: &Value,
    load_contents: bool,
    listing: Option<crate::model::Listing>,
    version: Version,
) -> Result<Value, String> {
    if !load_contents && listing.is_none() {
        return Ok(value.clone());
    }
    let ontology = Ontology::default();
    let null = Value::Null;
    let preparing = Preparing {
        inputs: &null,
        runtime: &null,
        js: None,
        version,
        discover: false,
        default_listing: None,
        ontology: &ontology,
    };
    let wanted = Wanted { secondary_files: &[], format: &[], load_contents, listing };
    preparing.prepare(value, &crate::type_system::Type::Any, wanted, "the input")
}
