//! What a thread of the pool does for a step.

use std::time::{Duration, Instant};

use isles_flow::pool::{Hold, Need};
use isles_flow::run::Doing;

use crate::expression::{Scope, Text};
use crate::files;
use crate::inputs;
use crate::model::{Process, Tool};
use crate::needs::{Allotted, Needs};
use crate::tool::{self, Failure, Job, Settings};
use crate::value::{Map, Value};

/// Does the work of a step, again where its failure is one of those that may pass.
pub(super) fn attempts(
    name: &str,
    need: Need,
    settings: &Settings,
    work: impl Fn(&Doing<'_>) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let mut attempt = 1;
    loop {
        let doing = settings.run.step(name, need, attempt);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&doing)))
            .unwrap_or_else(|_| Err(Failure::permanent("a bug of this program ended it")));
        doing.end(match &result {
            Ok(value) => Ok(settings.run.id().map(|_| value.spaced_json()).unwrap_or_default()),
            Err(failure) => Err(&failure.message),
        });
        let Err(failure) = &result else { return result };
        if attempt > settings.retries.times || !settings.retries.on.contains(&failure.kind) {
            return result;
        }
        let pause = Duration::from_secs(1 << (attempt - 1).min(6));
        settings.run.view().again(name, &failure.message, pause);
        let end = Instant::now() + pause;
        while Instant::now() < end {
            if isles_flow::step::stopping() {
                return result;
            }
            std::thread::sleep(Duration::from_millis(50).min(pause));
        }
        attempt += 1;
    }
}

#[expect(clippy::too_many_arguments, reason = "what the closure of the pool holds")]
pub(super) fn run_tool(
    process: &Process,
    tool: &Tool,
    given: &Value,
    needs: &Needs,
    settings: &Settings,
    top: bool,
    allotted: Allotted,
    (doing, hold): (&Doing<'_>, &Hold<'_>),
) -> Result<Value, Failure> {
    let inputs = inputs::complete(process, given)?;
    tool::run(&Job { process, tool, inputs: &inputs, needs, settings, discover: top, allotted, doing, hold })
}

pub(super) fn run_expression(
    process: &Process,
    text: &Text,
    given: &Value,
    needs: &Needs,
    settings: &Settings,
    top: bool,
) -> Result<Value, String> {
    let inputs = inputs::complete(process, given)?;
    let ontology = settings.ontologies.of(process);
    let runtime = Value::map(Map::new());
    let inputs = inputs::prepare(process, &inputs, needs, top, &ontology, &runtime)?;
    let scope = Scope { inputs: &inputs, this: &Value::Null, runtime: &runtime, js: needs.js() };
    let result = text.eval(scope).map_err(|e| e.to_string())?;
    let Some(result) = result.as_map() else {
        return Err(format!(
            "the expression gives {}, and must give an object with the outputs",
            result.kind_name()
        ));
    };
    let mut out = Map::new();
    for output in &process.outputs {
        let value = result.get(&output.name).cloned().unwrap_or(Value::Null);
        let value = files::normalized(&value).map_err(|e| format!("the output `{}`: {e}", output.name))?;
        if !output.kind.gives(&value) {
            return Err(format!("the output {}", output.kind.explain(&value, &output.name)));
        }
        out.insert(output.name.clone(), value);
    }
    Ok(Value::map(out))
}
