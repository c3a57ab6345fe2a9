//! JavaScript: QuickJS with limits of time, memory and stack, and nothing of the host within its reach.
//!
//! Each thread keeps one context for each expression library. An expression is compiled in strict mode as a function, and
//! `inputs`, `self` and `runtime` are global; what names a way to the global object or to the objects that all expressions share
//! gets a context of its own, so no expression hears from another.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rquickjs::{Array, CatchResultExt, CaughtError, Context, Ctx, Function, Object, Runtime};

use crate::expression::Scope;
use crate::value::{Map, Value};

/// What one runtime may allocate.
const MEMORY: usize = 256 << 20;
const STACK: usize = 512 << 10;
/// Values within values of a result.
const DEEPEST: usize = 200;
/// Contexts that a thread keeps.
const MOST_CONTEXTS: usize = 16;

/// The expressions that stand before all others of a process, and how long each evaluation may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    pub scripts: Arc<Vec<String>>,
    pub patience: Duration,
}

/// A context in which the scripts of a library were run.
struct Prepared {
    scripts: Arc<Vec<String>>,
    context: Context,
}

struct Engine {
    runtime: Runtime,
    contexts: RefCell<HashMap<usize, Prepared>>,
}

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Engine {
    fn new() -> Result<Engine, String> {
        let runtime = Runtime::new().map_err(|e| format!("cannot start JavaScript: {e}"))?;
        runtime.set_memory_limit(MEMORY);
        runtime.set_max_stack_size(STACK);
        runtime.set_interrupt_handler(Some(Box::new(|| {
            DEADLINE.get().is_some_and(|end| Instant::now() >= end)
        })));
        Ok(Engine { runtime, contexts: RefCell::new(HashMap::new()) })
    }

    fn context(&self, library: &Library) -> Result<Context, String> {
        let context = Context::full(&self.runtime).map_err(|e| format!("cannot start JavaScript: {e}"))?;
        context.with(|ctx| -> Result<(), String> {
            for (i, script) in library.scripts.iter().enumerate() {
                let done: rquickjs::Result<()> = ctx.eval(script.as_bytes());
                done.catch(&ctx)
                    .map_err(|e| format!("expressionLib[{i}]: {}", thrown(e, library.patience)))?;
            }
            Ok(())
        })?;
        Ok(context)
    }
}

/// Whether the code names a way to what other expressions see.
fn reaches_out(code: &str) -> bool {
    [
        "this",
        "globalThis",
        "eval",
        "prototype",
        "__proto__",
        "constructor",
        "etPrototypeOf",
        "Function",
        "defineProperty",
        "assign",
    ]
    .iter()
    .any(|word| code.contains(word))
}

/// Evaluates an expression, or the body of a function.
///
/// # Errors
/// What JavaScript threw, or which limit it passed.
pub fn evaluate(library: &Library, code: &str, body: bool, scope: Scope<'_>) -> Result<Value, String> {
    ENGINE.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Engine::new()?);
        }
        let Some(engine) = slot.as_ref() else { return Err("no JavaScript".into()) };
        DEADLINE.set(Some(Instant::now() + library.patience));
        let result = in_context(engine, library, code, body, scope);
        DEADLINE.set(None);
        if matches!(&result, Err(message) if message.contains("out of memory")) {
            // What is left of it would be the next expression's trouble.
            *slot = None;
        }
        result
    })
}

fn in_context(
    engine: &Engine,
    library: &Library,
    code: &str,
    body: bool,
    scope: Scope<'_>,
) -> Result<Value, String> {
    if reaches_out(code) {
        return run(&engine.context(library)?, library, code, body, scope);
    }
    let key = if library.scripts.is_empty() { 0 } else { Arc::as_ptr(&library.scripts) as usize };
    let mut contexts = engine.contexts.borrow_mut();
    let stale =
        contexts.get(&key).is_some_and(|known| key != 0 && !Arc::ptr_eq(&known.scripts, &library.scripts));
    if stale || (!contexts.contains_key(&key) && contexts.len() >= MOST_CONTEXTS) {
        contexts.clear();
    }
    let known = match contexts.entry(key) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(free) => {
            free.insert(Prepared { scripts: library.scripts.clone(), context: engine.context(library)? })
        }
    };
    run(&known.context, library, code, body, scope)
}

fn run(
    context: &Context,
    library: &Library,
    code: &str,
    body: bool,
    scope: Scope<'_>,
) -> Result<Value, String> {
    context.with(|ctx| {
        let source = if body {
            format!("(function(){{\"use strict\";{code}\n}})")
        } else {
            format!("(function(){{\"use strict\";return ({code}\n);}})")
        };
        let call = || -> rquickjs::Result<rquickjs::Value<'_>> {
            // Global, so that functions of the library see them, too.
            let globals = ctx.globals();
            globals.set("inputs", to_js(&ctx, scope.inputs)?)?;
            globals.set("self", to_js(&ctx, scope.this)?)?;
            globals.set("runtime", to_js(&ctx, scope.runtime)?)?;
            let function: Function<'_> = ctx.eval(source)?;
            function.call(())
        };
        let result = call().catch(&ctx).map_err(|e| thrown(e, library.patience))?;
        from_js(result, 0)
    })
}

fn thrown(error: CaughtError<'_>, patience: Duration) -> String {
    let text = match &error {
        CaughtError::Exception(e) => {
            let message = e.message().unwrap_or_default();
            match e.as_object().get::<_, String>("name") {
                Ok(name) if !name.is_empty() => format!("{name}: {message}"),
                _ => message,
            }
        }
        CaughtError::Value(value) => match value.as_string().and_then(|s| s.to_string().ok()) {
            Some(text) => format!("threw {text:?}"),
            None => "threw a value that is no Error".into(),
        },
        CaughtError::Error(e) => e.to_string(),
    };
    if text.contains("interrupted") {
        return format!("took more than {} s", patience.as_secs());
    }
    text
}

fn to_js<'js>(ctx: &Ctx<'js>, value: &Value) -> rquickjs::Result<rquickjs::Value<'js>> {
    Ok(match value {
        Value::Null => rquickjs::Value::new_null(ctx.clone()),
        Value::Bool(b) => rquickjs::Value::new_bool(ctx.clone(), *b),
        Value::Int(n) => match i32::try_from(*n) {
            Ok(n) => rquickjs::Value::new_int(ctx.clone(), n),
            Err(_) => rquickjs::Value::new_float(ctx.clone(), *n as f64),
        },
        Value::Float(x) => rquickjs::Value::new_float(ctx.clone(), *x),
        Value::String(text) => rquickjs::String::from_str(ctx.clone(), text)?.into_value(),
        Value::Array(items) => {
            let array = Array::new(ctx.clone())?;
            for (i, item) in items.iter().enumerate() {
                array.set(i, to_js(ctx, item)?)?;
            }
            array.into_value()
        }
        Value::Map(map) => {
            let object = Object::new(ctx.clone())?;
            for (key, item) in map.iter() {
                object.set(key, to_js(ctx, item)?)?;
            }
            object.into_value()
        }
    })
}

fn from_js<'js>(value: rquickjs::Value<'js>, depth: usize) -> Result<Value, String> {
    if depth > DEEPEST {
        return Err(format!("the result is nested more than {DEEPEST} deep"));
    }
    let said = |e: rquickjs::Error| format!("the result cannot be read: {e}");
    if value.is_null() || value.is_undefined() {
        return Ok(Value::Null);
    }
    if let Some(b) = value.as_bool() {
        return Ok(Value::Bool(b));
    }
    if let Some(n) = value.as_int() {
        return Ok(Value::Int(n.into()));
    }
    if let Some(x) = value.as_float() {
        if !x.is_finite() {
            return Err(format!("the result holds {x}, which is no JSON"));
        }
        let whole = x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0;
        return Ok(if whole { Value::Int(x as i64) } else { Value::Float(x) });
    }
    if let Some(text) = value.as_string() {
        return text
            .to_string()
            .map(Value::from)
            .map_err(|_| "the result holds half a character (a lone surrogate)".into());
    }
    if value.is_function() {
        return Err("the result holds a function, which is no JSON".into());
    }
    if let Some(array) = value.as_array() {
        let mut items = Vec::with_capacity(array.len().min(1 << 16));
        for i in 0..array.len() {
            items.push(from_js(array.get(i).map_err(said)?, depth + 1)?);
        }
        return Ok(Value::array(items));
    }
    if let Some(object) = value.as_object() {
        // Dates and their like say themselves what they are in JSON.
        if let Ok(Some(to_json)) = object.get::<_, Option<Function<'js>>>("toJSON") {
            let plain: rquickjs::Value<'js> =
                to_json.call((rquickjs::function::This(object.clone()),)).map_err(said)?;
            return from_js(plain, depth + 1);
        }
        let mut map = Map::new();
        for entry in object.props::<String, rquickjs::Value<'js>>() {
            let (key, item) = entry.map_err(said)?;
            if item.is_undefined() {
                continue;
            }
            map.insert(key, from_js(item, depth + 1)?);
        }
        return Ok(Value::map(map));
    }
    Err(format!("the result holds {}, which is no JSON", value.type_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(scripts: &[&str], code: &str, body: bool) -> Result<Value, String> {
        let library = Library {
            scripts: Arc::new(scripts.iter().map(|s| (*s).to_owned()).collect()),
            patience: Duration::from_millis(300),
        };
        let inputs = Value::map([("n", Value::Int(4)), ("x", Value::Float(0.5))].into_iter().collect());
        let null = Value::Null;
        evaluate(&library, code, body, Scope { inputs: &inputs, this: &null, runtime: &null, js: None })
    }

    #[test]
    fn results_are_json() {
        let table: &[(&str, bool, Value)] = &[
            ("inputs.n / 2", false, Value::Int(2)),
            ("inputs.n * inputs.x + 0.25", false, Value::Float(2.25)),
            ("var a = 1; return {b: [a, null, 'x'], u: undefined};", true, {
                let list = Value::array(vec![Value::Int(1), Value::Null, "x".into()]);
                Value::map([("b", list)].into_iter().collect())
            }),
            ("undefined", false, Value::Null),
            ("new Date(0)", false, "1970-01-01T00:00:00.000Z".into()),
            ("{a: 1}", false, Value::map([("a", Value::Int(1))].into_iter().collect())),
            ("1 // a comment", false, Value::Int(1)),
            ("'\u{e9}\u{1f600}'", false, "\u{e9}\u{1f600}".into()),
            ("Math.pow(2, 52)", false, Value::Int(1 << 52)),
        ];
        for (code, body, value) in table {
            assert_eq!(eval(&[], code, *body).as_ref(), Ok(value), "{code}");
        }
        assert_eq!(
            eval(&["function f(x) { return x + k; }", "var k = 3;"], "f(2)", false),
            Ok(Value::Int(5))
        );
    }

    #[test]
    fn limits_hold_and_the_next_expression_works() {
        let table = [
            ("for (;;) {}", true, "took more than"),
            ("function f() { return f() + 1; } return f();", true, "stack"),
            ("var a = ['x']; for (;;) { a = a.concat(a); }", true, "out of memory"),
            ("return 'x'.repeat(1 << 29);", true, ""),
            ("/(a+)+$/.test('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab')", false, "took more than"),
            ("nothing.here", false, "ReferenceError"),
            ("throw new Error('no');", true, "Error: no"),
            ("throw 'text';", true, "text"),
            ("x = 1;", true, "ReferenceError"),
            ("1 +", false, "SyntaxError"),
            ("function() {}", false, "function"),
            ("0 / 0", false, "NaN"),
            ("'\\ud800'", false, "surrogate"),
            ("var a = []; a[0] = a; return a;", true, "deep"),
        ];
        for (code, body, part) in table {
            let message = eval(&[], code, body).unwrap_err();
            assert!(message.contains(part), "{code}: {message}");
            assert_eq!(eval(&[], "1 + 1", false), Ok(Value::Int(2)), "after {code}");
        }
    }

    #[test]
    fn nothing_of_the_host_is_in_reach_and_no_expression_hears_from_another() {
        for name in [
            "process",
            "require",
            "std",
            "os",
            "console",
            "fetch",
            "setTimeout",
            "scriptArgs",
            "print",
            "load",
        ] {
            assert_eq!(eval(&[], &format!("typeof {name}"), false), Ok("undefined".into()), "{name}");
        }
        for leak in [
            "globalThis.leak = 1; return 1;",
            "Array.prototype.leak = 1; return 1;",
            "(0, eval)('var leak = 1'); return 1;",
            "Function('return this')().leak = 1; return 1;",
            "[].constructor.leak = 1; return 1;",
            "({}).__proto__.leak = 1; return 1;",
        ] {
            let _ = eval(&[], leak, true);
            assert_eq!(
                eval(&[], "typeof leak + typeof [].leak + typeof ({}).leak", false),
                Ok("undefinedundefinedundefined".into()),
                "{leak}"
            );
        }
    }
}
