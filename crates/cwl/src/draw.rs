//! Workflows as graphs (DOT), as lists of files, and cut down to what some outputs need.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use isles_flow::graph::{Graph, Kind, Node};

use crate::document::location_of;
use crate::files;
use crate::model::{Body, Link, Origin, Output, Parameter, Process, Step, Workflow};
use crate::tree::Sources;
use crate::type_system::Type;
use crate::value::{Map, Value};

/// Inputs, steps and outputs of a process, and what is connected to what.
pub fn graph(process: &Process) -> Graph {
    let mut graph = Graph { name: process.id.clone(), ..Graph::default() };
    let mut node = |id: String, label: &str, kind| {
        graph.nodes.push(Node { id, label: label.to_owned(), kind });
        graph.nodes.len() - 1
    };
    let inputs: Vec<usize> =
        process.inputs.iter().map(|i| node(format!("in/{}", i.name), &i.name, Kind::Input)).collect();
    let outputs: Vec<usize> =
        process.outputs.iter().map(|o| node(format!("out/{}", o.name), &o.name, Kind::Output)).collect();
    let mut edges = BTreeSet::new();
    if let Body::Workflow(workflow) = &process.body {
        let kind = |step: &Step| match (step.scatter.is_empty(), step.when.is_some()) {
            (false, _) => Kind::Scatter,
            (true, true) => Kind::Conditional,
            (true, false) => Kind::Step,
        };
        let steps: Vec<usize> =
            workflow.steps.iter().map(|s| node(format!("step/{}", s.id), &s.id, kind(s))).collect();
        let mut connect = |link: &Link, to: usize| {
            for (origin, _) in &link.sources {
                let from = match origin {
                    Origin::Input(i) => inputs.get(*i),
                    Origin::Step(s, _) => steps.get(*s),
                    Origin::Own(_) => None,
                };
                edges.extend(from.map(|from| (*from, to)));
            }
        };
        for (step, at) in workflow.steps.iter().zip(&steps) {
            step.inputs.iter().for_each(|input| connect(&input.link, *at));
        }
        for (output, at) in process.outputs.iter().zip(&outputs) {
            connect(&output.link, *at);
        }
    } else {
        let own = node(process.id.clone(), &process.id, Kind::Step);
        edges.extend(inputs.iter().map(|input| (*input, own)));
        edges.extend(outputs.iter().map(|output| (own, *output)));
    }
    graph.edges = edges.into_iter().collect();
    graph
}

/// The documents that a process was loaded from, as a File with the others beside it.
pub fn dependencies(sources: &Sources, base: Option<&Path>) -> Value {
    let files = sources.all().iter().map(|source| {
        let location = within(&location_of(&source.path), base);
        [("class", Value::from("File")), ("location", location.into())].into_iter().collect::<Map>()
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

/// The files and folders that a job names, in the same form.
pub fn input_dependencies(job: &Value, base: Option<&Path>) -> Value {
    let mut found = Vec::new();
    files::each(job, &mut |file| {
        let text = |key: &str| file.get(key).and_then(Value::as_str);
        if let (Some(class), Some(location)) = (text("class"), text("location").or(text("path"))) {
            let location = match location.starts_with('/') {
                true => location_of(Path::new(location)),
                false => location.to_owned(),
            };
            let location = within(&location, base);
            found.push([("class", Value::from(class)), ("location", location.into())].into_iter().collect());
        }
    });
    let mut map: Map = [("class", Value::from("File"))].into_iter().collect();
    map.insert("secondaryFiles", Value::array(found.into_iter().map(Value::map).collect()));
    Value::map(map)
}

/// A location below a folder is named from there.
fn within(location: &str, base: Option<&Path>) -> String {
    let Some(base) = base else { return location.to_owned() };
    let folder = format!("{}/", location_of(base).trim_end_matches('/'));
    location.strip_prefix(&folder).unwrap_or(location).to_owned()
}

/// What [`only`] may be asked for, by kind, as the reference runner lists it.
pub fn targets(process: &Process) -> Value {
    let names = |names: Vec<&str>| Value::array(names.into_iter().map(Value::from).collect());
    let mut map = Map::default();
    map.insert("outputs", names(process.outputs.iter().map(|output| &*output.name).collect()));
    map.insert("inputs", names(process.inputs.iter().map(|input| &*input.name).collect()));
    if let Body::Workflow(workflow) = &process.body {
        map.insert("steps", names(workflow.steps.iter().map(|step| &*step.id).collect()));
    }
    Value::map(map)
}

/// A step of a workflow as a workflow of its own: what the step takes are its inputs, and what it gives its outputs.
///
/// # Errors
/// There is no such step, or the process is no workflow.
pub fn single_step(process: &Process, name: &str) -> Result<Arc<Process>, String> {
    let mut step = step_of(process, name)?.clone();
    let mut inputs = Vec::new();
    let scattered = step.scatter.clone();
    for (i, input) in step.inputs.iter_mut().enumerate() {
        // Where nothing is given there, nothing is missing here.
        if input.link.sources.is_empty() && input.default.is_none() {
            continue;
        }
        let of_process =
            step.run.inputs.iter().find(|other| other.name == input.name).map(|other| other.kind.clone());
        inputs.push(Parameter {
            name: input.name.clone(),
            at: input.at,
            label: None,
            doc: None,
            // What it becomes on its way is not what it is here.
            kind: of_process
                .filter(|_| input.value_from.is_none() && !scattered.contains(&i))
                .unwrap_or(Type::Any),
            default: input.default.clone(),
            binding: None,
            secondary_files: Vec::new(),
            format: Vec::new(),
            load_contents: false,
            load_listing: None,
            streamable: false,
        });
        let place = inputs.len() - 1;
        input.link = Link { sources: vec![(Origin::Input(place), input.at)], ..Link::default() };
    }
    let outputs = step.outputs.iter().enumerate().map(|(i, output)| Output {
        name: output.clone(),
        at: step.at,
        label: None,
        doc: None,
        kind: Type::Union(Arc::new(vec![Type::Null, Type::Any])),
        binding: None,
        secondary_files: Vec::new(),
        format: None,
        link: Link { sources: vec![(Origin::Step(0, i), step.at)], ..Link::default() },
    });
    let outputs = outputs.collect();
    Ok(Arc::new(Process {
        inputs,
        outputs,
        body: Body::Workflow(Workflow { steps: vec![step] }),
        ..process.clone()
    }))
}

/// What a step of a workflow runs.
///
/// # Errors
/// As those of [`single_step`].
pub fn single_process(process: &Process, name: &str) -> Result<Arc<Process>, String> {
    Ok(step_of(process, name)?.run.clone())
}

fn step_of<'p>(process: &'p Process, name: &str) -> Result<&'p Step, String> {
    let Body::Workflow(workflow) = &process.body else {
        return Err(format!("{} is no workflow, so it has no steps", process.id));
    };
    let name = name.rsplit(['#', '/']).next().unwrap_or(name);
    workflow.steps.iter().find(|step| &*step.id == name).ok_or_else(|| {
        let near = crate::document::nearest(name, workflow.steps.iter().map(|step| &*step.id));
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        format!("{} has no step `{name}`{hint}", process.id)
    })
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
