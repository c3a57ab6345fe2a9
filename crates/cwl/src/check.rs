//! What can be known of a process before it runs: expressions without their language, connections that never fit,
//! inputs that nobody gives, and steps that wait for each other.

use crate::document::Diagnostic;
use crate::expression::Text;
use crate::load::Loader;
use crate::model::{
    Argument, Body, Field, InitialEntry, InitialWorkDir, Link, LinkMerge, Origin, PickValue, Process,
    Requirement, ScatterMethod, Step, Workflow,
};
use crate::tree::At;
use crate::type_system::{Fit, Type, fit};

/// What a process inherits from the workflows around it.
#[derive(Clone, Copy, Default)]
struct Inherited {
    js: bool,
    scatter: bool,
    subworkflow: bool,
    multiple: bool,
    step_expression: bool,
}

impl Inherited {
    fn with(mut self, requirements: &[Requirement], hints: &[Requirement]) -> Inherited {
        for one in requirements.iter().chain(hints) {
            match one {
                Requirement::InlineJavascript(_) => self.js = true,
                Requirement::Scatter => self.scatter = true,
                Requirement::Subworkflow => self.subworkflow = true,
                Requirement::MultipleInput => self.multiple = true,
                Requirement::StepInputExpression => self.step_expression = true,
                _ => {}
            }
        }
        self
    }
}

/// Looks a whole process over, with all that it runs.
pub(crate) fn process(loader: &mut Loader, process: &Process) {
    look(loader, process, Inherited::default());
}

fn look(loader: &mut Loader, process: &Process, around: Inherited) {
    let known = around.with(&process.requirements, &process.hints);
    let mut text = |text: &Text, at: At| {
        if let Err(failed) = text.check(known.js) {
            let error = Diagnostic::new(at, format!("`{}` is {}", failed.expression, failed.message));
            loader.push(error);
        }
    };
    for output in &process.outputs {
        if let Some(binding) = &output.binding {
            binding.glob.iter().for_each(|g| text(g, output.at));
            binding.output_eval.iter().for_each(|e| text(e, output.at));
        }
        output.secondary_files.iter().for_each(|s| text(&s.pattern, output.at));
    }
    for input in &process.inputs {
        input.binding.iter().filter_map(|b| b.value_from.as_ref()).for_each(|t| text(t, input.at));
        input.secondary_files.iter().for_each(|s| text(&s.pattern, input.at));
    }
    match &process.body {
        Body::Tool(tool) => {
            for argument in &tool.arguments {
                match argument {
                    Argument::Text(t) => text(t, process.at),
                    Argument::Binding(b) => b.value_from.iter().for_each(|t| text(t, process.at)),
                }
            }
            [&tool.stdin, &tool.stdout, &tool.stderr].into_iter().flatten().for_each(|t| text(t, process.at));
            for requirement in process.requirements.iter().chain(&process.hints) {
                match requirement {
                    Requirement::EnvVar(defs) => defs.iter().for_each(|(_, t)| text(t, process.at)),
                    Requirement::InitialWorkDir(InitialWorkDir::Text(t)) => text(t, process.at),
                    Requirement::InitialWorkDir(InitialWorkDir::Entries(entries)) => {
                        for entry in entries {
                            match entry {
                                InitialEntry::Text(t)
                                | InitialEntry::Dirent { entry: Field::Text(t), .. } => {
                                    text(t, process.at);
                                }
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        Body::Expression(expression) => text(expression, process.at),
        Body::Workflow(workflow) => {
            for step in &workflow.steps {
                let here = known.with(&step.requirements, &step.hints);
                if let Some(when) = &step.when
                    && let Err(failed) = when.check(here.js)
                {
                    let message = format!("`{}` is {}", failed.expression, failed.message);
                    loader.error(step.at, message);
                }
                for input in &step.inputs {
                    if let Some(value_from) = &input.value_from
                        && let Err(failed) = value_from.check(here.js)
                    {
                        let message = format!("`{}` is {}", failed.expression, failed.message);
                        loader.error(input.at, message);
                    }
                }
                features(loader, step, here);
                look(loader, &step.run, here);
            }
            links(loader, process, workflow);
            cycles(loader, workflow);
        }
        Body::Operation => {}
    }
}

/// Features of workflows that have to be asked for.
fn features(loader: &mut Loader, step: &Step, known: Inherited) {
    let mut need = |yes: bool, what: &str, requirement: &str, at: At| {
        if yes {
            loader.push(
                Diagnostic::new(at, format!("the step `{}` {what}, which needs {requirement}", step.id))
                    .with_hint(format!("add `{requirement}: {{}}` to `requirements` of the workflow")),
            );
        }
    };
    need(!step.scatter.is_empty() && !known.scatter, "scatters", "ScatterFeatureRequirement", step.at);
    let nested = matches!(step.run.body, Body::Workflow(_));
    need(nested && !known.subworkflow, "runs a workflow", "SubworkflowFeatureRequirement", step.at);
    for input in &step.inputs {
        let several = input.link.sources.len() > 1;
        need(
            several && !known.multiple,
            "has several sources for an input",
            "MultipleInputFeatureRequirement",
            input.at,
        );
        let computed = input.value_from.is_some();
        need(
            computed && !known.step_expression,
            "has `valueFrom`",
            "StepInputExpressionRequirement",
            input.at,
        );
    }
}

/// What a source gives.
fn given(process: &Process, workflow: &Workflow, origin: Origin) -> Option<Type> {
    match origin {
        Origin::Input(i) => {
            let input = process.inputs.get(i)?;
            let has_default = input.default.as_ref().is_some_and(|d| !d.is_null());
            Some(if has_default { without_null(&input.kind) } else { input.kind.clone() })
        }
        Origin::Step(s, o) => {
            let step = workflow.steps.get(s)?;
            let name = step.outputs.get(o)?;
            let mut kind = step.run.outputs.iter().find(|out| out.name == *name)?.kind.clone();
            if step.again.is_some() {
                return Some(Type::Any);
            }
            if step.when.is_some() {
                kind = kind.optional();
            }
            let depth = match (step.scatter.len(), step.method) {
                (0, _) => 0,
                (n, ScatterMethod::Nested) => n,
                _ => 1,
            };
            for _ in 0..depth {
                kind = Type::array(kind);
            }
            Some(kind)
        }
        Origin::Own(_) => None,
    }
}

fn without_null(kind: &Type) -> Type {
    let mut rest: Vec<Type> =
        kind.alternatives().into_iter().filter(|t| !matches!(t, Type::Null)).cloned().collect();
    match (rest.len(), rest.pop()) {
        (0, _) | (_, None) => kind.clone(),
        (1, Some(one)) => one,
        (_, Some(last)) => {
            rest.push(last);
            Type::union(rest)
        }
    }
}

/// What a link gives, all sources merged; nothing where that cannot be said.
fn linked(process: &Process, workflow: &Workflow, link: &Link) -> Option<Type> {
    let mut kinds = Vec::new();
    for (origin, _) in &link.sources {
        kinds.push(given(process, workflow, *origin)?);
    }
    let merged = link.list && (kinds.len() > 1 || link.merge.is_some());
    let mut kind = if merged {
        let items: Vec<Type> = match link.merge {
            Some(LinkMerge::Flattened) => kinds
                .iter()
                .flat_map(|k| {
                    k.alternatives()
                        .into_iter()
                        .flat_map(|t| match t {
                            Type::Array(array) => vec![array.items.clone()],
                            other => vec![other.clone()],
                        })
                        .collect::<Vec<_>>()
                })
                .collect(),
            _ => kinds,
        };
        Type::array(Type::union(items))
    } else {
        kinds.pop()?
    };
    if let Some(pick) = link.pick {
        let items = match &kind {
            Type::Array(array) => array.items.clone(),
            // A null in the place of the list, or none at all.
            _ => return None,
        };
        let some = without_null(&items);
        kind = match pick {
            PickValue::AllNonNull => Type::array(some),
            _ => some,
        };
    }
    Some(kind)
}

fn links(loader: &mut Loader, process: &Process, workflow: &Workflow) {
    for step in &workflow.steps {
        for (i, input) in step.inputs.iter().enumerate() {
            if input.value_from.is_some() || input.link.sources.is_empty() {
                continue;
            }
            let Some(parameter) = step.run.inputs.iter().find(|p| p.name == input.name) else { continue };
            let Some(mut source) = linked(process, workflow, &input.link) else { continue };
            let mut sink = parameter.kind.clone();
            if parameter.default.is_some() || input.default.is_some() {
                sink = sink.optional();
            }
            if step.scatter.contains(&i) {
                sink = Type::array(sink);
                if input.default.is_some() {
                    source = without_null(&source);
                }
            }
            if fit(&source, &sink) == Fit::Never {
                let message = format!(
                    "the input `{}` of the step `{}` is {sink}, and its source gives {source}",
                    input.name, step.id
                );
                loader.error(input.at, message);
            }
        }
        for parameter in &step.run.inputs {
            let optional = parameter.kind.accepts_null() || parameter.default.is_some();
            if !optional && !step.inputs.iter().any(|i| i.name == parameter.name) {
                loader.error(
                    step.at,
                    format!(
                        "the step `{}` does not give the input `{}`, which has no default",
                        step.id, parameter.name
                    ),
                );
            }
            if let Some(input) = step.inputs.iter().find(|i| i.name == parameter.name)
                && !optional
                && input.link.sources.is_empty()
                && input.default.is_none()
                && input.value_from.is_none()
                && step.again.is_none()
            {
                loader.error(
                    input.at,
                    format!(
                        "the input `{}` of the step `{}` has no source, no default and no `valueFrom`",
                        input.name, step.id
                    ),
                );
            }
        }
    }
    for output in &process.outputs {
        if output.link.sources.is_empty() {
            continue;
        }
        let Some(source) = linked(process, workflow, &output.link) else { continue };
        if fit(&source, &output.kind) == Fit::Never {
            loader.error(
                output.at,
                format!("the output `{}` is {}, and its source gives {source}", output.name, output.kind),
            );
        }
    }
}

/// Steps that wait for each other never run.
fn cycles(loader: &mut Loader, workflow: &Workflow) {
    let needs = |step: &Step| -> Vec<usize> {
        let sources = step.inputs.iter().flat_map(|i| &i.link.sources);
        sources
            .filter_map(|(origin, _)| if let Origin::Step(s, _) = origin { Some(*s) } else { None })
            .collect()
    };
    let mut done = vec![false; workflow.steps.len()];
    loop {
        let mut changed = false;
        for (i, step) in workflow.steps.iter().enumerate() {
            if !done[i] && needs(step).iter().all(|n| done.get(*n).copied().unwrap_or(true)) {
                done[i] = true;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let stuck: Vec<&Step> =
        workflow.steps.iter().zip(&done).filter(|(_, done)| !**done).map(|(s, _)| s).collect();
    if let Some(first) = stuck.first() {
        let names: Vec<&str> = stuck.iter().map(|s| &*s.id).collect();
        loader.error(first.at, format!("these steps wait for each other: {}", names.join(", ")));
    }
}
