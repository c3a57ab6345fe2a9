//! Workflows as graphs (DOT), as lists of files, and cut down to what some outputs need.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::document::location_of;
use crate::model::{Body, Link, Origin, Process, Step, Workflow};
use crate::tree::Sources;
use crate::value::{Map, Value};

fn word(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The graph of a process in the language of Graphviz: inputs, steps and outputs, and what is connected to what.
pub fn dot(process: &Process) -> String {
    let mut out = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", word(&process.id));
    for input in &process.inputs {
        let _ = writeln!(
            out,
            "  {} [label={}, shape=ellipse];",
            word(&format!("in/{}", input.name)),
            word(&input.name)
        );
    }
    for output in &process.outputs {
        let name = format!("out/{}", output.name);
        let _ = writeln!(out, "  {} [label={}, shape=ellipse, style=bold];", word(&name), word(&output.name));
    }
    let Body::Workflow(workflow) = &process.body else {
        let _ = writeln!(out, "  {};", word(&process.id));
        for input in &process.inputs {
            let _ = writeln!(out, "  {} -> {};", word(&format!("in/{}", input.name)), word(&process.id));
        }
        for output in &process.outputs {
            let _ = writeln!(out, "  {} -> {};", word(&process.id), word(&format!("out/{}", output.name)));
        }
        out.push_str("}\n");
        return out;
    };
    for step in &workflow.steps {
        let style = match (step.scatter.is_empty(), step.when.is_some()) {
            (false, _) => ", peripheries=2",
            (true, true) => ", style=dashed",
            (true, false) => "",
        };
        let _ = writeln!(out, "  {} [label={}{style}];", word(&format!("step/{}", step.id)), word(&step.id));
    }
    let mut edges = BTreeSet::new();
    let mut connect = |link: &Link, to: String| {
        for (origin, _) in &link.sources {
            let from = match origin {
                Origin::Input(i) => process.inputs.get(*i).map(|input| format!("in/{}", input.name)),
                Origin::Step(s, _) => workflow.steps.get(*s).map(|step| format!("step/{}", step.id)),
                Origin::Own(_) => None,
            };
            if let Some(from) = from {
                edges.insert((from, to.clone()));
            }
        }
    };
    for step in &workflow.steps {
        step.inputs.iter().for_each(|input| connect(&input.link, format!("step/{}", step.id)));
    }
    for output in &process.outputs {
        connect(&output.link, format!("out/{}", output.name));
    }
    for (from, to) in edges {
        let _ = writeln!(out, "  {} -> {};", word(&from), word(&to));
    }
    out.push_str("}\n");
    out
}

/// The documents that a process was loaded from, as a File with the others beside it.
pub fn dependencies(sources: &Sources) -> Value {
    let files = sources.all().iter().map(|source| {
        let map: Map = [("class", Value::from("File")), ("location", location_of(&source.path).into())]
            .into_iter()
            .collect();
        map
    });
    let mut files: Vec<Map> = files.collect();
    if files.is_empty() {
        return Value::Null;
    }
    let mut first = files.remove(0);
    if !files.is_empty() {
        first.insert("secondaryFiles", Value::array(files.into_iter().map(Value::map).collect()));
    }
    Value::map(first)
}

/// The workflow with only those outputs, or steps, that are named, and the steps that they need.
///
/// # Errors
/// There is no such output or step, or the process is no workflow.
pub fn only(process: &Process, targets: &[String]) -> Result<Arc<Process>, String> {
    let Body::Workflow(workflow) = &process.body else {
        return Err(format!("{} is no workflow, so no part of it can be chosen", process.id));
    };
    let mut wanted = vec![false; workflow.steps.len()];
    let mut open: Vec<usize> = Vec::new();
    let mut outputs = Vec::new();
    let sources = |link: &Link| -> Vec<usize> {
        let of = |(origin, _): &(Origin, _)| if let Origin::Step(s, _) = origin { Some(*s) } else { None };
        link.sources.iter().filter_map(of).collect()
    };
    for target in targets {
        if let Some(output) = process.outputs.iter().find(|o| &*o.name == target) {
            open.extend(sources(&output.link));
            outputs.push(output.clone());
        } else if let Some(i) = workflow.steps.iter().position(|s| &*s.id == target) {
            open.push(i);
        } else {
            return Err(format!("{} has neither an output nor a step `{target}`", process.id));
        }
    }
    while let Some(i) = open.pop() {
        if !std::mem::replace(&mut wanted[i], true) {
            open.extend(workflow.steps[i].inputs.iter().flat_map(|input| sources(&input.link)));
        }
    }
    // Sources are numbers of steps, and these change.
    let mut number = vec![0; wanted.len()];
    let mut next = 0;
    for (i, yes) in wanted.iter().enumerate() {
        number[i] = next;
        next += usize::from(*yes);
    }
    let moved = |link: &mut Link| {
        for (origin, _) in &mut link.sources {
            if let Origin::Step(s, _) = origin {
                *s = number[*s];
            }
        }
    };
    let mut steps: Vec<Step> =
        workflow.steps.iter().zip(&wanted).filter(|(_, yes)| **yes).map(|(step, _)| step.clone()).collect();
    steps.iter_mut().flat_map(|step| &mut step.inputs).for_each(|input| moved(&mut input.link));
    outputs.iter_mut().for_each(|output| moved(&mut output.link));
    Ok(Arc::new(Process { outputs, body: Body::Workflow(Workflow { steps }), ..process.clone() }))
}
