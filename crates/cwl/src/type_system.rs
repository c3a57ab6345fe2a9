//! The types of parameters, and which values are of them.

use std::sync::Arc;

use crate::expression::Text;
use crate::model::{Field, Listing, OutputBinding};
use crate::value::Value;

/// A type.
#[derive(Debug, Clone)]
pub enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    String,
    File,
    Directory,
    Any,
    Array(Arc<ArrayType>),
    Enum(Arc<EnumType>),
    Record(Arc<RecordType>),
    Union(Arc<Vec<Type>>),
}

#[derive(Debug, Clone)]
pub struct ArrayType {
    pub items: Type,
    pub binding: Option<Binding>,
}

#[derive(Debug, Clone)]
pub struct EnumType {
    pub name: Option<String>,
    pub symbols: Vec<String>,
    pub binding: Option<Binding>,
}

#[derive(Debug, Clone)]
pub struct RecordType {
    pub name: Option<String>,
    pub fields: Vec<RecordField>,
    pub binding: Option<Binding>,
}

#[derive(Debug, Clone)]
pub struct RecordField {
    pub name: Arc<str>,
    pub kind: Type,
    pub binding: Option<Binding>,
    pub secondary_files: Vec<SecondaryFile>,
    pub format: Vec<Field>,
    pub load_contents: bool,
    pub load_listing: Option<Listing>,
    /// Of an output.
    pub output: Option<OutputBinding>,
}

/// CommandLineBinding: how a value becomes arguments.
#[derive(Debug, Clone, Default)]
pub struct Binding {
    pub position: Option<Field>,
    pub prefix: Option<String>,
    pub separate: Option<bool>,
    pub item_separator: Option<String>,
    pub value_from: Option<Text>,
    pub shell_quote: Option<bool>,
}

/// A file that goes with another one.
#[derive(Debug, Clone)]
pub struct SecondaryFile {
    pub pattern: Text,
    /// By default inputs need theirs and outputs do not.
    pub required: Option<Field>,
}

impl Type {
    pub fn array(items: Type) -> Type {
        Type::Array(Arc::new(ArrayType { items, binding: None }))
    }

    pub fn union(types: Vec<Type>) -> Type {
        Type::Union(Arc::new(types))
    }

    /// The alternatives: itself, where it is no union.
    pub fn alternatives(&self) -> Vec<&Type> {
        match self {
            Type::Union(types) => types.iter().flat_map(Type::alternatives).collect(),
            other => vec![other],
        }
    }

    pub fn accepts_null(&self) -> bool {
        self.alternatives().iter().any(|t| matches!(t, Type::Null))
    }

    /// Whether a value is of this type. `Any` is anything but null.
    pub fn matches(&self, value: &Value) -> bool {
        match self {
            Type::Null => value.is_null(),
            Type::Boolean => matches!(value, Value::Bool(_)),
            Type::Int => matches!(value, Value::Int(n) if i32::try_from(*n).is_ok()),
            Type::Long => matches!(value, Value::Int(_)),
            Type::Float | Type::Double => matches!(value, Value::Int(_) | Value::Float(_)),
            Type::String => matches!(value, Value::String(_)),
            Type::File => value.is_file(),
            Type::Directory => value.is_directory(),
            Type::Any => !value.is_null(),
            Type::Array(array) => {
                value.as_array().is_some_and(|items| items.iter().all(|v| array.items.matches(v)))
            }
            Type::Enum(of) => value.as_str().is_some_and(|text| of.symbols.iter().any(|s| s == text)),
            Type::Record(record) => value.as_map().is_some_and(|map| {
                record.fields.iter().all(|f| f.kind.matches(map.get(&f.name).unwrap_or(&Value::Null)))
            }),
            Type::Union(types) => types.iter().any(|t| t.matches(value)),
        }
    }

    /// Whether an output may be this value: `Any` may be null there.
    pub fn gives(&self, value: &Value) -> bool {
        self.matches(value) || (value.is_null() && self.alternatives().iter().any(|t| matches!(t, Type::Any)))
    }

    /// The alternative that a value is of.
    pub fn of(&self, value: &Value) -> Option<&Type> {
        self.alternatives().into_iter().find(|t| t.matches(value))
    }

    /// Why a value is not of this type, at the deepest place that tells.
    pub fn explain(&self, value: &Value, name: &str) -> String {
        match (self, value) {
            (Type::Array(array), Value::Array(items)) => {
                if let Some((i, item)) = items.iter().enumerate().find(|(_, v)| !array.items.matches(v)) {
                    return array.items.explain(item, &format!("{name}[{i}]"));
                }
            }
            (Type::Record(record), Value::Map(map)) if !value.is_file() && !value.is_directory() => {
                let wrong =
                    record.fields.iter().find(|f| !f.kind.matches(map.get(&f.name).unwrap_or(&Value::Null)));
                if let Some(field) = wrong {
                    let inner = map.get(&field.name).unwrap_or(&Value::Null);
                    return field.kind.explain(inner, &format!("{name}.{}", field.name));
                }
            }
            (Type::Union(_), _) => {
                // One alternative of the value's own shape says more than all of them.
                let shaped: Vec<&Type> = self
                    .alternatives()
                    .into_iter()
                    .filter(|t| match value {
                        Value::Array(_) => matches!(t, Type::Array(_)),
                        Value::Map(_) => matches!(t, Type::Record(_)),
                        _ => false,
                    })
                    .collect();
                if let [one] = shaped[..] {
                    return one.explain(value, name);
                }
            }
            _ => {}
        }
        let shown = match value {
            Value::Null => "is missing".to_owned(),
            Value::String(_) | Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
                let text: String = value.spaced_json().chars().take(60).collect();
                format!("is {text}")
            }
            other => format!("is {}", other.kind_name()),
        };
        format!("`{name}` {shown}, and must be {self}")
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Null => f.write_str("null"),
            Type::Boolean => f.write_str("boolean"),
            Type::Int => f.write_str("int"),
            Type::Long => f.write_str("long"),
            Type::Float => f.write_str("float"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::File => f.write_str("File"),
            Type::Directory => f.write_str("Directory"),
            Type::Any => f.write_str("Any"),
            Type::Array(array) => match &array.items {
                items @ Type::Union(_) => write!(f, "({items})[]"),
                items => write!(f, "{items}[]"),
            },
            Type::Enum(of) => write!(f, "one of {}", of.symbols.join(", ")),
            Type::Record(record) => match &record.name {
                Some(name) => write!(f, "record {name}"),
                None => {
                    let names: Vec<&str> = record.fields.iter().map(|f| &*f.name).collect();
                    write!(f, "record {{{}}}", names.join(", "))
                }
            },
            Type::Union(types) => {
                if let [Type::Null, one] | [one, Type::Null] = &types[..] {
                    return write!(f, "{one}?");
                }
                for (i, one) in types.iter().enumerate() {
                    if i > 0 {
                        f.write_str(" | ")?;
                    }
                    write!(f, "{one}")?;
                }
                Ok(())
            }
        }
    }
}

/// What the fields of records in a type say of where they come from.
pub(crate) fn bindings_of(kind: &Type, show: &dyn Fn(&OutputBinding) -> String) -> String {
    let mut out = String::new();
    for one in kind.alternatives() {
        match one {
            Type::Record(record) => {
                for field in &record.fields {
                    let own = field.output.as_ref().map(show).unwrap_or_default();
                    out.push_str(&format!("{} {own} {}; ", field.name, bindings_of(&field.kind, show)));
                }
            }
            Type::Array(array) => out.push_str(&bindings_of(&array.items, show)),
            _ => {}
        }
    }
    out
}

/// Whether values of a source can be those of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// None is.
    Never,
    /// Some are: it is found out when the workflow runs.
    Perhaps,
    /// Each is.
    Always,
}

/// Whether what a source gives can be given to a sink. Types that differ in a number's width fit.
pub fn fit(source: &Type, sink: &Type) -> Fit {
    let sinks = sink.alternatives();
    let sources = source.alternatives();
    let mut best = Fit::Never;
    let mut worst = Fit::Always;
    for one in sources {
        let found = sinks.iter().map(|sink| fit_one(one, sink)).max().unwrap_or(Fit::Never);
        best = best.max(found);
        worst = worst.min(found);
    }
    match (best, worst) {
        (Fit::Never, _) => Fit::Never,
        (_, Fit::Always) => Fit::Always,
        _ => Fit::Perhaps,
    }
}

fn fit_one(source: &Type, sink: &Type) -> Fit {
    use Type::*;
    let always = |yes: bool| if yes { Fit::Always } else { Fit::Never };
    match (source, sink) {
        (Any, _) => Fit::Perhaps,
        (Null, Any) => Fit::Never,
        (_, Any) => Fit::Always,
        (Null, Null) | (Boolean, Boolean) | (String, String) | (File, File) | (Directory, Directory) => {
            Fit::Always
        }
        (Int | Long, Int | Long | Float | Double) => Fit::Always,
        (Float | Double, Float | Double) => Fit::Always,
        (Float | Double, Int | Long) => Fit::Perhaps,
        (Enum(_), String) => Fit::Always,
        (String, Enum(_)) => Fit::Perhaps,
        (Enum(a), Enum(b)) => {
            let common = a.symbols.iter().filter(|s| b.symbols.contains(s)).count();
            match common {
                0 => Fit::Never,
                n if n == a.symbols.len() => Fit::Always,
                _ => Fit::Perhaps,
            }
        }
        (Array(a), Array(b)) => match fit(&a.items, &b.items) {
            // An empty list is of both.
            Fit::Never => Fit::Never,
            other => other,
        },
        (Record(a), Record(b)) => {
            let mut worst = Fit::Always;
            for field in &b.fields {
                let found = match a.fields.iter().find(|f| f.name == field.name) {
                    Some(given) => fit(&given.kind, &field.kind),
                    None => always(field.kind.accepts_null()),
                };
                worst = worst.min(found);
            }
            worst
        }
        _ => Fit::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_into_what() {
        let optional = |t: Type| Type::union(vec![Type::Null, t]);
        let table = [
            (Type::Int, Type::Long, Fit::Always),
            (Type::Int, Type::Double, Fit::Always),
            (Type::String, Type::Int, Fit::Never),
            (optional(Type::String), Type::String, Fit::Perhaps),
            (Type::String, optional(Type::String), Fit::Always),
            (Type::Any, Type::File, Fit::Perhaps),
            (Type::File, Type::Any, Fit::Always),
            (Type::array(Type::Int), Type::array(Type::String), Fit::Never),
            (Type::array(Type::Int), Type::Int, Fit::Never),
        ];
        for (source, sink, expected) in table {
            assert_eq!(fit(&source, &sink), expected, "{source} into {sink}");
        }
    }

    #[test]
    fn any_is_not_null_and_an_int_has_32_bits() {
        assert!(!Type::Any.matches(&Value::Null));
        assert!(!Type::Int.matches(&Value::Int(1 << 40)));
        assert!(Type::Long.matches(&Value::Int(1 << 40)));
        assert!(Type::Double.matches(&Value::Int(1)));
    }

    #[test]
    fn what_is_wrong_is_told_at_its_deepest_place() {
        let list = Type::array(Type::Int);
        let value = Value::array(vec![Value::Int(1), "x".into()]);
        assert_eq!(list.explain(&value, "numbers"), "`numbers[1]` is \"x\", and must be int");
        assert_eq!(Type::File.explain(&Value::Null, "f"), "`f` is missing, and must be File");
    }
}
