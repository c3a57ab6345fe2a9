//! What leads from one step to the next: sources and how they are merged, `valueFrom`, `when`, and the parts of a scatter.
//!
//! Nothing here runs anything or knows who waits; [`crate::run`] does.

use std::sync::Arc;

use crate::expression::{Scope, Text};
use crate::files;
use crate::inputs;
use crate::model::{Link, LinkMerge, Origin, PickValue, ScatterMethod, Step, StepInput, Version};
use crate::needs::Needs;
use crate::value::{Map, Value};

/// Parts of one scatter.
const MOST_PARTS: usize = 10_000_000;
/// The inputs of a step: sources, then defaults.
pub(crate) fn step_inputs(
    step: &Step,
    value_of: impl Fn(Origin) -> Value,
    version: Version,
) -> Result<Map, String> {
    let mut map = Map::new();
    for input in &step.inputs {
        let mut value = if input.link.sources.is_empty() {
            Value::Null
        } else {
            linked(&input.link, &value_of).map_err(|e| format!("the input `{}`: {e}", input.name))?
        };
        if value.is_null()
            && let Some(default) = &input.default
        {
            value = files::normalized(default)?;
        }
        let value = inputs::loaded(&value, input.load_contents, input.load_listing, version)?;
        map.insert(input.name.clone(), value);
    }
    Ok(map)
}

/// What a link gives: one value, or several merged, of which some may be picked.
pub(crate) fn linked(link: &Link, value_of: impl Fn(Origin) -> Value) -> Result<Value, String> {
    let mut values: Vec<Value> = link.sources.iter().map(|(origin, _)| value_of(*origin)).collect();
    let merged = values.len() > 1 || (link.list && link.merge.is_some());
    let value = match (merged, link.merge) {
        (true, Some(LinkMerge::Flattened)) => {
            let mut all = Vec::new();
            for value in values {
                match value {
                    Value::Array(items) => all.extend(items.iter().cloned()),
                    one => all.push(one),
                }
            }
            Value::array(all)
        }
        (true, _) => Value::array(values),
        (false, _) => values.pop().unwrap_or(Value::Null),
    };
    let (Some(pick), Value::Array(items)) = (link.pick, &value) else { return Ok(value) };
    let mut some = items.iter().filter(|v| !v.is_null());
    match pick {
        PickValue::FirstNonNull => {
            some.next().cloned().ok_or_else(|| "all sources are null, and one must not be".into())
        }
        PickValue::TheOnlyNonNull => match (some.next(), some.next()) {
            (Some(one), None) => Ok(one.clone()),
            (None, _) => Err("all sources are null, and one must not be".into()),
            (Some(_), Some(_)) => Err("several sources are not null, and only one may be".into()),
        },
        PickValue::AllNonNull => Ok(Value::array(some.cloned().collect())),
    }
}

/// `valueFrom` of each input, all of which see the inputs as they were before.
pub(crate) fn with_values_from(inputs: &[StepInput], map: Map, needs: &Needs) -> Result<Map, String> {
    if inputs.iter().all(|input| input.value_from.is_none()) {
        return Ok(map);
    }
    let before = Value::map(map.clone());
    let null = Value::Null;
    let mut out = map;
    for input in inputs {
        let Some(text) = &input.value_from else { continue };
        let this = before.get(&input.name).unwrap_or(&null);
        let scope = Scope { inputs: &before, this, runtime: &null, js: needs.js() };
        let value = text.eval(scope).map_err(|e| format!("the input `{}`: {e}", input.name))?;
        out.insert(input.name.clone(), value);
    }
    Ok(out)
}

/// Whether a step runs: what `when` says.
pub(crate) fn goes(when: Option<&Text>, inputs: &Map, needs: &Needs) -> Result<bool, String> {
    let Some(text) = when else { return Ok(true) };
    let inputs = Value::map(inputs.clone());
    let scope = Scope { inputs: &inputs, this: &Value::Null, runtime: &Value::Null, js: needs.js() };
    match text.eval(scope).map_err(|e| format!("`when`: {e}"))? {
        Value::Bool(yes) => Ok(yes),
        other => Err(format!("`when` gives {}, and must give true or false", other.kind_name())),
    }
}

/// Outputs of a step that does not run.
pub(crate) fn skipped(step: &Step) -> Value {
    Value::map(step.outputs.iter().map(|output| (output.clone(), Value::Null)).collect())
}

/// Inputs of the next turn of a loop.
pub(crate) fn next_inputs(
    inputs: &[StepInput],
    step: &Step,
    before: &Map,
    last: &Value,
    needs: &Needs,
) -> Result<Map, String> {
    let mut map = before.clone();
    for input in inputs {
        let value = if input.link.sources.is_empty() {
            before.get(&input.name).cloned().unwrap_or(Value::Null)
        } else {
            linked(&input.link, |origin| match origin {
                Origin::Own(i) => {
                    let name = step.outputs.get(i).cloned().unwrap_or_default();
                    last.get(&name).cloned().unwrap_or(Value::Null)
                }
                _ => Value::Null,
            })?
        };
        let value = match (&input.default, value) {
            (Some(default), Value::Null) => default.clone(),
            (_, value) => value,
        };
        map.insert(input.name.clone(), value);
    }
    with_values_from(inputs, map, needs)
}

/// How many parts a scatter has.
pub(crate) fn parts(method: ScatterMethod, lists: &[(Arc<str>, Arc<Vec<Value>>)]) -> Result<usize, String> {
    let total = match method {
        ScatterMethod::Dot => {
            let first = lists.first().map_or(0, |(_, items)| items.len());
            if let Some((name, items)) = lists.iter().find(|(_, items)| items.len() != first) {
                return Err(format!(
                    "dotproduct needs lists of one length: `{}` has {first} items and `{name}` has {}",
                    lists[0].0,
                    items.len()
                ));
            }
            Some(first)
        }
        _ => lists.iter().try_fold(1usize, |n, (_, items)| n.checked_mul(items.len())),
    };
    match total {
        Some(total) if total <= MOST_PARTS => Ok(total),
        _ => Err(format!("the scatter would have more than {MOST_PARTS} parts")),
    }
}

/// The place in each list of a part.
pub(crate) fn places(
    method: ScatterMethod,
    lists: &[(Arc<str>, Arc<Vec<Value>>)],
    part: usize,
) -> Vec<usize> {
    if method == ScatterMethod::Dot {
        return vec![part; lists.len()];
    }
    let mut rest = part;
    let mut out = vec![0; lists.len()];
    for (place, (_, items)) in out.iter_mut().zip(lists).rev() {
        *place = rest % items.len();
        rest /= items.len();
    }
    out
}

/// Values in lists within lists.
pub(crate) fn nested(lengths: &[usize], values: &mut dyn Iterator<Item = Value>) -> Value {
    match lengths {
        [] => values.next().unwrap_or(Value::Null),
        [length, rest @ ..] => Value::array((0..*length).map(|_| nested(rest, values)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_places_of_scatters() {
        let list = |n: i64| Arc::new((0..n).map(Value::Int).collect::<Vec<_>>());
        let lists = vec![("a".into(), list(2)), ("b".into(), list(3))];
        assert!(parts(ScatterMethod::Dot, &lists).is_err());
        assert_eq!(parts(ScatterMethod::Flat, &lists), Ok(6));
        assert_eq!(places(ScatterMethod::Flat, &lists, 4), [1, 1]);
        let mut values = (0..6).map(Value::Int);
        let nested = nested(&[2, 3], &mut values);
        assert_eq!(nested.spaced_json(), "[[0, 1, 2], [3, 4, 5]]");
        let mut none = std::iter::empty();
        assert_eq!(super::nested(&[2, 0], &mut none).spaced_json(), "[[], []]");
        let big = list(100_000);
        let lists = vec![("a".into(), big.clone()), ("b".into(), big)];
        assert!(parts(ScatterMethod::Nested, &lists).is_err());
    }
}
