//! Runs a process: workflows as frames that wait for what they started, tools and expressions as work of the pool.
//!
//! One thread decides, and it never waits for a step. Scatters begin their parts as others end, so that ten thousand of
//! them are not ten thousand pieces of work in line.

mod repeat;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use isles_flow::pool::{Hold, Limits, Need, Pool};
use isles_flow::run::Doing;

use self::repeat::{LoopFrame, ScatterFrame};
use self::work::{attempts, run_expression, run_tool};
use crate::expression::Scope;
use crate::inputs;
use crate::links::{goes, linked, parts, skipped, step_inputs, with_values_from};
use crate::model::{Body, Origin, Process, Requirement, Workflow};
use crate::needs::Needs;
use crate::tool::{Failure, Settings};
use crate::value::{Map, Value};

/// How a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Nothing new begins after a failure.
    Stop,
    /// What does not depend on it is done.
    Continue,
}

/// Runs a process with an input object whose files are named by `location`. Requirements and hints that were `asked` for
/// beside it count before its own.
///
/// # Errors
/// The first failure, with the step that it came from.
pub fn run(
    process: &Arc<Process>,
    job: &Value,
    settings: &Arc<Settings>,
    asked: (&[Requirement], &[Requirement]),
    limits: Limits,
    on_error: OnError,
) -> Result<Value, Failure> {
    let (sender, receiver) = channel();
    let mut coordinator = Coordinator {
        pool: Pool::new(limits),
        settings: settings.clone(),
        frames: Vec::new(),
        free: Vec::new(),
        sender,
        receiver,
        arrived: VecDeque::new(),
        failure: None,
        in_flight: 0,
        on_error,
        answer: None,
    };
    // What the job asks for is said of the process, after what that says itself.
    let needs = Needs::default().within(None, Some(process), settings.patience).within(
        Some(asked),
        None,
        settings.patience,
    );
    let name = process.id.clone();
    coordinator.start(process, job.clone(), needs, Parent { frame: None, slot: 0 }, true, name);
    coordinator.serve();
    match (coordinator.failure, coordinator.answer) {
        (Some(failure), _) => Err(failure),
        (None, Some(answer)) => Ok(answer),
        (None, None) => Err(Failure::permanent("the run was stopped")),
    }
}

/// Who waits for a result.
#[derive(Debug, Clone, Copy)]
struct Parent {
    /// None is the caller of the whole run.
    frame: Option<usize>,
    slot: usize,
}

struct Done {
    parent: Parent,
    name: String,
    result: Result<Value, Failure>,
    /// It came out of the pool.
    of_pool: bool,
}

enum Frame {
    Workflow(WorkflowFrame),
    Scatter(ScatterFrame),
    Loop(LoopFrame),
}

struct WorkflowFrame {
    process: Arc<Process>,
    inputs: Value,
    needs: Arc<Needs>,
    name: String,
    parent: Parent,
    /// Of each step: how many others it waits for.
    waiting: Vec<usize>,
    /// Of each step: who waits for it.
    followers: Vec<Vec<usize>>,
    outputs: Vec<Option<Vec<Value>>>,
    /// Of each step, made when it starts.
    step_needs: Vec<Option<StepNeeds>>,
    left: usize,
}

/// What holds for a step itself, and for what it runs.
#[derive(Clone)]
struct StepNeeds {
    step: Arc<Needs>,
    process: Arc<Needs>,
}

struct Coordinator {
    pool: Pool,
    settings: Arc<Settings>,
    frames: Vec<Option<Frame>>,
    free: Vec<usize>,
    sender: Sender<Done>,
    receiver: Receiver<Done>,
    arrived: VecDeque<Done>,
    failure: Option<Failure>,
    in_flight: usize,
    on_error: OnError,
    answer: Option<Value>,
}

impl Coordinator {
    fn serve(&mut self) {
        loop {
            while let Some(done) = self.arrived.pop_front() {
                self.deliver(done);
            }
            if self.in_flight == 0 {
                return;
            }
            if self.stopped() {
                // What waits in line is forgotten; what runs is waited for.
                let before = self.pool.pending();
                self.pool.clear();
                let after = self.pool.pending();
                self.in_flight -= (before - after).min(self.in_flight);
                if self.in_flight == 0 {
                    return;
                }
            }
            let Ok(done) = self.receiver.recv() else { return };
            self.arrived.push_back(done);
        }
    }

    fn stopped(&self) -> bool {
        isles_flow::step::stopping() || (self.failure.is_some() && self.on_error == OnError::Stop)
    }

    fn add(&mut self, frame: Frame) -> usize {
        match self.free.pop() {
            Some(i) => {
                self.frames[i] = Some(frame);
                i
            }
            None => {
                self.frames.push(Some(frame));
                self.frames.len() - 1
            }
        }
    }

    fn remove(&mut self, frame: usize) {
        self.frames[frame] = None;
        self.free.push(frame);
    }

    fn workflow(&mut self, frame: usize) -> Option<&mut WorkflowFrame> {
        match self.frames.get_mut(frame) {
            Some(Some(Frame::Workflow(workflow))) => Some(workflow),
            _ => None,
        }
    }

    fn answer(&mut self, parent: Parent, name: String, result: Result<Value, Failure>) {
        self.arrived.push_back(Done { parent, name, result, of_pool: false });
    }

    /// Nothing comes of what `name` stands for.
    fn fail(&mut self, parent: Parent, name: String, message: &str) {
        let failure = Failure::permanent(format!("{name}: {message}"));
        self.answer(parent, name, Err(failure));
    }

    /// Begins a process. Its result is delivered to `parent`.
    fn start(
        &mut self,
        process: &Arc<Process>,
        given: Value,
        needs: Arc<Needs>,
        parent: Parent,
        top: bool,
        name: String,
    ) {
        if let Some(class) = needs.unknown() {
            let failure = Failure::unsupported(format!("{name}: the requirement {class} is not supported"));
            return self.answer(parent, name, Err(failure));
        }
        match &process.body {
            Body::Workflow(_) => self.start_workflow(process, &given, needs, parent, top, name),
            Body::Tool(_) => self.start_tool(process, given, needs, parent, top, name),
            Body::Expression(_) => self.start_expression(process, given, needs, parent, top, name),
            Body::Operation => {
                let failure = Failure::unsupported(format!(
                    "{name} is an Operation, which is a place for a process and cannot run"
                ));
                self.answer(parent, name, Err(failure));
            }
        }
    }

    fn start_tool(
        &mut self,
        process: &Arc<Process>,
        given: Value,
        needs: Arc<Needs>,
        parent: Parent,
        top: bool,
        name: String,
    ) {
        let null = Value::Null;
        let allotted = if needs.resources_are_computed() {
            inputs::complete(process, &given).and_then(|inputs| {
                let ontology = self.settings.ontologies.of(process);
                let inputs = inputs::prepare(process, &inputs, &needs, top, &ontology, &null)?;
                let scope = Scope { inputs: &inputs, this: &null, runtime: &null, js: needs.js() };
                needs.allotted(scope, process.version)
            })
        } else {
            needs.allotted(Scope { inputs: &null, this: &null, runtime: &null, js: None }, process.version)
        };
        let allotted = match allotted {
            Ok(allotted) => allotted,
            Err(message) => {
                return self.fail(parent, name, &message);
            }
        };
        let need = Need { cores: allotted.cores, mebibytes: allotted.ram.max(0) as u64 };
        let (process, settings) = (process.clone(), self.settings.clone());
        self.submit(need, parent, name, move |doing, hold| {
            let Body::Tool(tool) = &process.body else { return Err(Failure::permanent("no tool")) };
            run_tool(&process, tool, &given, &needs, &settings, top, allotted, (doing, hold))
        });
    }

    fn start_expression(
        &mut self,
        process: &Arc<Process>,
        given: Value,
        needs: Arc<Needs>,
        parent: Parent,
        top: bool,
        name: String,
    ) {
        let (process, settings) = (process.clone(), self.settings.clone());
        let need = Need { cores: 0.5, mebibytes: 0 };
        self.submit(need, parent, name, move |_, _| {
            let Body::Expression(text) = &process.body else {
                return Err(Failure::permanent("no expression"));
            };
            Ok(run_expression(&process, text, &given, &needs, &settings, top)?)
        });
    }

    fn submit(
        &mut self,
        need: Need,
        parent: Parent,
        name: String,
        work: impl Fn(&Doing<'_>, &Hold<'_>) -> Result<Value, Failure> + Send + 'static,
    ) {
        let sender = self.sender.clone();
        let (called, settings) = (name.clone(), self.settings.clone());
        let work = move |hold: &Hold<'_>| {
            let result = attempts(&called, need, &settings, |doing| work(doing, hold));
            // Nobody listens any more where the run was given up.
            let _ = sender.send(Done { parent, name: called, result, of_pool: true });
        };
        match self.pool.submit(need, Box::new(work)) {
            Ok(()) => self.in_flight += 1,
            Err(e) => self.answer(parent, name.clone(), Err(Failure::permanent(format!("{name}: {e}")))),
        }
    }

    fn start_workflow(
        &mut self,
        process: &Arc<Process>,
        given: &Value,
        needs: Arc<Needs>,
        parent: Parent,
        top: bool,
        name: String,
    ) {
        let Body::Workflow(workflow) = &process.body else { return };
        let ontology = self.settings.ontologies.of(process);
        let inputs = inputs::complete(process, given)
            .and_then(|inputs| inputs::prepare(process, &inputs, &needs, top, &ontology, &Value::Null));
        let inputs = match inputs {
            Ok(inputs) => inputs,
            Err(message) => {
                return self.fail(parent, name, &message);
            }
        };
        let count = workflow.steps.len();
        let mut waiting = vec![0; count];
        let mut followers = vec![Vec::new(); count];
        for (i, step) in workflow.steps.iter().enumerate() {
            let mut before: Vec<usize> = step
                .inputs
                .iter()
                .flat_map(|input| &input.link.sources)
                .filter_map(|(origin, _)| if let Origin::Step(s, _) = origin { Some(*s) } else { None })
                .collect();
            before.sort_unstable();
            before.dedup();
            waiting[i] = before.len();
            for s in before {
                followers[s].push(i);
            }
        }
        let ready: Vec<usize> = (0..count).filter(|i| waiting[*i] == 0).collect();
        let frame = WorkflowFrame {
            process: process.clone(),
            inputs,
            needs,
            name,
            parent,
            waiting,
            followers,
            outputs: vec![None; count],
            step_needs: vec![None; count],
            left: count,
        };
        let id = self.add(Frame::Workflow(frame));
        if count == 0 {
            return self.end_workflow(id);
        }
        for step in ready {
            self.start_step(id, step);
        }
    }

    fn start_step(&mut self, id: usize, place: usize) {
        if self.stopped() {
            return;
        }
        let patience = self.settings.patience;
        let Some(frame) = self.workflow(id) else { return };
        let process = frame.process.clone();
        let Body::Workflow(workflow) = &process.body else { return };
        let step = &workflow.steps[place];
        let name = format!("{}/{}", frame.name, step.id);
        let around = (&step.requirements[..], &step.hints[..]);
        let needs = StepNeeds {
            step: frame.needs.within(Some(around), None, patience),
            process: frame.needs.within(Some(around), Some(&step.run), patience),
        };
        frame.step_needs[place] = Some(needs);
        let parent = Parent { frame: Some(id), slot: place };
        let inputs = step_inputs(step, |origin| frame.origin(origin), process.version);
        let inputs = match inputs {
            Ok(inputs) => inputs,
            Err(message) => {
                return self.fail(parent, name, &message);
            }
        };
        if step.scatter.is_empty() {
            return self.start_part(id, place, inputs, parent, name);
        }
        let mut lists = Vec::new();
        for i in &step.scatter {
            let input = &step.inputs[*i].name;
            match inputs.get(input) {
                Some(Value::Array(items)) => lists.push((input.clone(), items.clone())),
                other => {
                    let kind = other.unwrap_or(&Value::Null).kind_name();
                    let failure = Failure::permanent(format!(
                        "{name}: `{input}` is scattered and must be an array, and is {kind}"
                    ));
                    return self.answer(parent, name, Err(failure));
                }
            }
        }
        let total = match parts(step.method, &lists) {
            Ok(total) => total,
            Err(message) => {
                return self.fail(parent, name, &message);
            }
        };
        let scatter = ScatterFrame {
            workflow: id,
            step: place,
            base: inputs,
            lists,
            total,
            next: 0,
            active: 0,
            results: vec![Value::Null; total],
            name,
            failed: false,
        };
        let scatter = self.add(Frame::Scatter(scatter));
        self.feed(scatter);
    }

    /// Begins a step, or one part of it: `valueFrom`, `when`, and what it runs.
    fn start_part(&mut self, id: usize, place: usize, inputs: Map, parent: Parent, name: String) {
        let Some(frame) = self.workflow(id) else { return };
        let process = frame.process.clone();
        let Some(needs) = frame.step_needs[place].clone() else { return };
        let Body::Workflow(workflow) = &process.body else { return };
        let step = &workflow.steps[place];
        let fail = |message: String| Err(Failure::permanent(format!("{name}: {message}")));
        let inputs = match with_values_from(&step.inputs, inputs, &needs.step) {
            Ok(inputs) => inputs,
            Err(message) => return self.answer(parent, name.clone(), fail(message)),
        };
        if step.again.is_some() {
            let frame = LoopFrame { parent, workflow: id, step: place, inputs, results: Vec::new(), name };
            let frame = self.add(Frame::Loop(frame));
            return self.iterate(frame, None);
        }
        match goes(step.when.as_ref(), &inputs, &needs.step) {
            Ok(true) => {}
            Ok(false) => return self.answer(parent, name, Ok(skipped(step))),
            Err(message) => return self.answer(parent, name.clone(), fail(message)),
        }
        let run = step.run.clone();
        self.start(&run, Value::map(inputs), needs.process, parent, false, name);
    }

    fn deliver(&mut self, done: Done) {
        let Done { parent, name, result, of_pool } = done;
        if of_pool {
            self.in_flight -= 1;
        }
        let result = match result {
            Ok(value) => Some(value),
            Err(mut failure) => {
                if of_pool {
                    failure.message = format!("{name}: {}", failure.message);
                }
                if self.failure.is_none() {
                    self.failure = Some(failure);
                }
                None
            }
        };
        let Some(id) = parent.frame else {
            self.answer = result;
            return;
        };
        let Some(Some(frame)) = self.frames.get_mut(id) else { return };
        match frame {
            Frame::Workflow(workflow) => {
                let Some(value) = result else { return };
                let Body::Workflow(body) = &workflow.process.body else { return };
                let step = &body.steps[parent.slot];
                let outputs =
                    step.outputs.iter().map(|o| value.get(o).cloned().unwrap_or(Value::Null)).collect();
                workflow.outputs[parent.slot] = Some(outputs);
                workflow.left -= 1;
                let mut ready = Vec::new();
                for follower in workflow.followers[parent.slot].clone() {
                    workflow.waiting[follower] -= 1;
                    if workflow.waiting[follower] == 0 {
                        ready.push(follower);
                    }
                }
                if workflow.left == 0 {
                    return self.end_workflow(id);
                }
                for step in ready {
                    self.start_step(id, step);
                }
            }
            Frame::Scatter(scatter) => {
                scatter.active -= 1;
                match result {
                    Some(value) => scatter.results[parent.slot] = value,
                    None => scatter.failed = true,
                }
                self.feed(id);
            }
            Frame::Loop(_) => match result {
                Some(value) => self.iterate(id, Some(value)),
                None => self.remove(id),
            },
        }
    }

    fn end_workflow(&mut self, id: usize) {
        let Some(frame) = self.workflow(id) else { return };
        let (parent, name, process) = (frame.parent, frame.name.clone(), frame.process.clone());
        let mut out = Map::new();
        let mut wrong = None;
        for output in &process.outputs {
            let value = match linked(&output.link, |origin| frame.origin(origin)) {
                Ok(value) => value,
                Err(message) => {
                    wrong = Some(format!("the output `{}`: {message}", output.name));
                    break;
                }
            };
            if !output.kind.gives(&value) {
                wrong = Some(format!("the output {}", output.kind.explain(&value, &output.name)));
                break;
            }
            out.insert(output.name.clone(), value);
        }
        self.remove(id);
        let result = match wrong {
            Some(message) => Err(Failure::permanent(format!("{name}: {message}"))),
            None => Ok(Value::map(out)),
        };
        self.answer(parent, name, result);
    }
}

impl WorkflowFrame {
    fn origin(&self, origin: Origin) -> Value {
        match origin {
            Origin::Input(i) => {
                let name = self.process.inputs.get(i).map(|input| input.name.clone()).unwrap_or_default();
                self.inputs.get(&name).cloned().unwrap_or(Value::Null)
            }
            Origin::Step(s, o) => {
                let outputs = self.outputs.get(s).and_then(Option::as_ref);
                outputs.and_then(|outputs| outputs.get(o)).cloned().unwrap_or(Value::Null)
            }
            Origin::Own(_) => Value::Null,
        }
    }
}

/// Whether a process has anything to do with containers, in any of its parts.
pub fn names_images(process: &Process) -> bool {
    let of = |list: &[Requirement]| list.iter().any(|r| matches!(r, Requirement::Docker(_)));
    of(&process.requirements)
        || of(&process.hints)
        || match &process.body {
            Body::Workflow(Workflow { steps }) => {
                steps.iter().any(|s| of(&s.requirements) || of(&s.hints) || names_images(&s.run))
            }
            _ => false,
        }
}
