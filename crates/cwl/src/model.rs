//! Processes as they are after loading: every name resolved, every string taken apart.

use std::path::PathBuf;
use std::sync::Arc;

use crate::expression::{Failed, Scope, Text};
use crate::tree::At;
use crate::type_system::{Binding, SecondaryFile, Type};
use crate::value::Value;

/// The version of the language that a document is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1_0,
    V1_1,
    V1_2,
    V1_3,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Version::V1_0 => "v1.0",
            Version::V1_1 => "v1.1",
            Version::V1_2 => "v1.2",
            Version::V1_3 => "v1.3",
        })
    }
}

/// A value of a document that may be an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    Fixed(Value),
    Text(Text),
}

impl Field {
    pub fn eval(&self, scope: Scope<'_>) -> Result<Value, Failed> {
        match self {
            Field::Fixed(value) => Ok(value.clone()),
            Field::Text(text) => text.eval(scope),
        }
    }
}

/// How deep the listing of a Directory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    No,
    Shallow,
    Deep,
}

/// Anything that runs.
#[derive(Debug, Clone)]
pub struct Process {
    /// The fragment of its identifier, or its file's name.
    pub id: String,
    pub at: At,
    pub version: Version,
    pub label: Option<String>,
    pub doc: Option<String>,
    pub inputs: Vec<Parameter>,
    pub outputs: Vec<Output>,
    pub requirements: Vec<Requirement>,
    pub hints: Vec<Requirement>,
    pub body: Body,
    /// Ontologies that formats are looked up in.
    pub schemas: Vec<PathBuf>,
}

impl Process {
    pub fn class(&self) -> &'static str {
        match self.body {
            Body::Tool(_) => "CommandLineTool",
            Body::Workflow(_) => "Workflow",
            Body::Expression(_) => "ExpressionTool",
            Body::Operation => "Operation",
        }
    }
}

#[derive(Debug, Clone)]
pub enum Body {
    Tool(Box<Tool>),
    Workflow(Workflow),
    Expression(Text),
    Operation,
}

/// An input of a process.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub name: Arc<str>,
    pub at: At,
    pub label: Option<String>,
    pub doc: Option<String>,
    pub kind: Type,
    pub default: Option<Value>,
    pub binding: Option<Binding>,
    pub secondary_files: Vec<SecondaryFile>,
    pub format: Vec<Field>,
    pub load_contents: bool,
    pub load_listing: Option<Listing>,
    pub streamable: bool,
}

/// An output of a process.
#[derive(Debug, Clone)]
pub struct Output {
    pub name: Arc<str>,
    pub at: At,
    pub label: Option<String>,
    pub doc: Option<String>,
    pub kind: Type,
    pub binding: Option<OutputBinding>,
    pub secondary_files: Vec<SecondaryFile>,
    pub format: Option<Field>,
    /// Of a workflow: where it comes from.
    pub link: Link,
}

#[derive(Debug, Clone, Default)]
pub struct OutputBinding {
    pub glob: Vec<Text>,
    /// They are names, and not patterns.
    pub literal: bool,
    pub load_contents: bool,
    pub load_listing: Option<Listing>,
    pub output_eval: Option<Text>,
}

#[derive(Debug, Clone)]
pub struct Tool {
    pub base_command: Vec<String>,
    pub arguments: Vec<Argument>,
    pub stdin: Option<Text>,
    pub stdout: Option<Text>,
    pub stderr: Option<Text>,
    pub success_codes: Vec<i64>,
    pub temporary_fail_codes: Vec<i64>,
    pub permanent_fail_codes: Vec<i64>,
}

#[derive(Debug, Clone)]
pub enum Argument {
    Text(Text),
    Binding(Binding),
}

#[derive(Debug, Clone, Default)]
pub struct Workflow {
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub id: Arc<str>,
    pub at: At,
    pub label: Option<String>,
    pub inputs: Vec<StepInput>,
    pub outputs: Vec<Arc<str>>,
    pub run: Arc<Process>,
    /// Places in `inputs`.
    pub scatter: Vec<usize>,
    pub method: ScatterMethod,
    pub when: Option<Text>,
    pub requirements: Vec<Requirement>,
    pub hints: Vec<Requirement>,
    /// The step is run again with new inputs while `when` holds (v1.3).
    pub again: Option<Again>,
}

/// The loop of a step (v1.3 and the extension `cwltool:Loop`).
#[derive(Debug, Clone)]
pub struct Again {
    pub inputs: Vec<StepInput>,
    /// All iterations' outputs, or the last one's.
    pub all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScatterMethod {
    Dot,
    Nested,
    Flat,
}

/// Where a value of a workflow comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An input of the workflow.
    Input(usize),
    /// An output of a step.
    Step(usize, usize),
    /// An output of the step itself, in a loop.
    Own(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkMerge {
    Nested,
    Flattened,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickValue {
    FirstNonNull,
    TheOnlyNonNull,
    AllNonNull,
}

/// What is connected to an input of a step or an output of a workflow.
#[derive(Debug, Clone, Default)]
pub struct Link {
    pub sources: Vec<(Origin, At)>,
    /// Written as a list, so even one source is merged.
    pub list: bool,
    pub merge: Option<LinkMerge>,
    pub pick: Option<PickValue>,
}

#[derive(Debug, Clone)]
pub struct StepInput {
    pub name: Arc<str>,
    pub at: At,
    pub link: Link,
    pub default: Option<Value>,
    pub value_from: Option<Text>,
    pub load_contents: bool,
    pub load_listing: Option<Listing>,
}

/// What a process needs, or would like.
#[derive(Debug, Clone)]
pub enum Requirement {
    InlineJavascript(Arc<Vec<String>>),
    SchemaDef,
    Docker(Box<Docker>),
    Software(Vec<SoftwarePackage>),
    InitialWorkDir(InitialWorkDir),
    EnvVar(Vec<(String, Text)>),
    ShellCommand,
    Resource(Box<Resources>),
    WorkReuse(Field),
    NetworkAccess(Field),
    InplaceUpdate(bool),
    ToolTimeLimit(Field),
    LoadListing(Listing),
    Subworkflow,
    Scatter,
    MultipleInput,
    StepInputExpression,
    Mpi(Field),
    /// Inputs whose values are written down nowhere (`cwltool:Secrets`).
    Secrets(Vec<String>),
    /// Bytes of `/dev/shm` (`cwltool:ShmSize`).
    ShmSize(u64),
    /// Something that is not known here.
    Unknown(String, At),
}

#[derive(Debug, Clone, Default)]
pub struct Docker {
    pub pull: Option<String>,
    pub load: Option<PathBuf>,
    /// The text of a Dockerfile, and where it stands.
    pub file: Option<(String, At)>,
    pub import: Option<String>,
    pub image_id: Option<String>,
    pub output_directory: Option<String>,
}

#[derive(Debug, Clone)]
pub struct SoftwarePackage {
    pub name: String,
    pub versions: Vec<String>,
}

#[derive(Debug, Clone)]
pub enum InitialWorkDir {
    /// One expression that gives the list.
    Text(Text),
    Entries(Vec<InitialEntry>),
}

#[derive(Debug, Clone)]
pub enum InitialEntry {
    Text(Text),
    /// A File or Directory written out, or null.
    Object(Value),
    Dirent {
        entry: Field,
        name: Option<Text>,
        writable: bool,
        at: At,
    },
}

/// Bounds of ResourceRequirement, as they are written.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    pub cores_min: Option<Field>,
    pub cores_max: Option<Field>,
    pub ram_min: Option<Field>,
    pub ram_max: Option<Field>,
    pub tmpdir_min: Option<Field>,
    pub tmpdir_max: Option<Field>,
    pub outdir_min: Option<Field>,
    pub outdir_max: Option<Field>,
}
