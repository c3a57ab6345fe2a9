//! A step that runs many times: scattered over lists, or as long as a condition holds (the loops of CWL v1.3).

use std::sync::Arc;

use super::{Coordinator, Frame, Parent};
use crate::links::{goes, nested, next_inputs, places};
use crate::model::{Body, ScatterMethod};
use crate::value::{Map, Value};

/// Iterations of a loop.
const MOST_ITERATIONS: usize = 1_000_000;

pub(super) struct ScatterFrame {
    pub workflow: usize,
    pub step: usize,
    /// Inputs of the step, before any part of it.
    pub base: Map,
    /// Scattered inputs with their items.
    pub lists: Vec<(Arc<str>, Arc<Vec<Value>>)>,
    pub total: usize,
    pub next: usize,
    pub active: usize,
    pub results: Vec<Value>,
    pub name: String,
    pub failed: bool,
}

pub(super) struct LoopFrame {
    pub parent: Parent,
    pub workflow: usize,
    pub step: usize,
    pub inputs: Map,
    pub results: Vec<Value>,
    pub name: String,
}

impl Coordinator {
    /// Begins parts of a scatter, as many as are worth having in line.
    pub(super) fn feed(&mut self, id: usize) {
        let most = (self.pool.limits().cores as usize * 4).clamp(16, 1024);
        loop {
            if self.stopped() {
                return;
            }
            let Some(Some(Frame::Scatter(scatter))) = self.frames.get_mut(id) else { return };
            if scatter.next == scatter.total || scatter.active >= most {
                break;
            }
            let i = scatter.next;
            scatter.next += 1;
            scatter.active += 1;
            let mut inputs = scatter.base.clone();
            let (workflow, step, name) = (scatter.workflow, scatter.step, format!("{}[{i}]", scatter.name));
            let lists = scatter.lists.clone();
            let method = match self.workflow(workflow).map(|w| w.process.clone()) {
                Some(process) => match &process.body {
                    Body::Workflow(w) => w.steps[step].method,
                    _ => return,
                },
                None => return,
            };
            for ((input, items), at) in lists.iter().zip(places(method, &lists, i)) {
                inputs.insert(input.clone(), items[at].clone());
            }
            self.start_part(workflow, step, inputs, Parent { frame: Some(id), slot: i }, name);
        }
        let Some(Some(Frame::Scatter(scatter))) = self.frames.get(id) else { return };
        if scatter.active == 0 && scatter.next == scatter.total {
            self.end_scatter(id);
        }
    }

    fn end_scatter(&mut self, id: usize) {
        let Some(Some(Frame::Scatter(scatter))) = self.frames.get_mut(id) else { return };
        let (workflow, place, name) = (scatter.workflow, scatter.step, scatter.name.clone());
        let results = std::mem::take(&mut scatter.results);
        let lengths: Vec<usize> = scatter.lists.iter().map(|(_, items)| items.len()).collect();
        let failed = scatter.failed;
        self.remove(id);
        if failed {
            // Its failure is known; who waits for the step waits for ever.
            return;
        }
        let Some(process) = self.workflow(workflow).map(|w| w.process.clone()) else { return };
        let Body::Workflow(body) = &process.body else { return };
        let step = &body.steps[place];
        let mut out = Map::new();
        for output in &step.outputs {
            let values: Vec<Value> =
                results.iter().map(|r| r.get(output).cloned().unwrap_or(Value::Null)).collect();
            let value = match step.method {
                ScatterMethod::Nested => nested(&lengths, &mut values.into_iter()),
                _ => Value::array(values),
            };
            out.insert(output.clone(), value);
        }
        self.answer(Parent { frame: Some(workflow), slot: place }, name, Ok(Value::map(out)));
    }

    /// One more turn of a loop, after the outputs of the last.
    pub(super) fn iterate(&mut self, id: usize, last: Option<Value>) {
        let Some(Some(Frame::Loop(frame))) = self.frames.get_mut(id) else { return };
        let (workflow_id, place, parent, name) =
            (frame.workflow, frame.step, frame.parent, frame.name.clone());
        let Some(workflow) = self.workflow(workflow_id) else { return };
        let process = workflow.process.clone();
        let Some(needs) = workflow.step_needs[place].clone() else { return };
        let Body::Workflow(workflow) = &process.body else { return };
        let step = &workflow.steps[place];
        let Some(again) = &step.again else { return };
        let Some(Some(Frame::Loop(frame))) = self.frames.get_mut(id) else { return };
        let mut wrong = None;
        if let Some(last) = last {
            match next_inputs(&again.inputs, step, &frame.inputs, &last, &needs.step) {
                Ok(inputs) => frame.inputs = inputs,
                Err(message) => wrong = Some(message),
            }
            frame.results.push(last);
        }
        if frame.results.len() >= MOST_ITERATIONS {
            wrong = Some(format!("it was repeated {MOST_ITERATIONS} times"));
        }
        let inputs = frame.inputs.clone();
        let turn = frame.results.len();
        let more = match wrong {
            Some(message) => Err(message),
            None => goes(step.when.as_ref(), &inputs, &needs.step),
        };
        match more {
            Ok(true) => {
                let run = step.run.clone();
                let inner = Parent { frame: Some(id), slot: turn };
                self.start(&run, Value::map(inputs), needs.process, inner, false, format!("{name}({turn})"));
            }
            Ok(false) => {
                let Some(Some(Frame::Loop(frame))) = self.frames.get_mut(id) else { return };
                let results = std::mem::take(&mut frame.results);
                let mut out = Map::new();
                for output in &step.outputs {
                    let mut values = results.iter().map(|r| r.get(output).cloned().unwrap_or(Value::Null));
                    let value = if again.all {
                        Value::array(values.collect())
                    } else {
                        values.next_back().unwrap_or(Value::Null)
                    };
                    out.insert(output.clone(), value);
                }
                self.remove(id);
                self.answer(parent, name, Ok(Value::map(out)));
            }
            Err(message) => {
                self.remove(id);
                self.fail(parent, name, &message);
            }
        }
    }
}
