//! Workflows: steps, and what is connected to what.

use std::sync::Arc;

use super::{Around, Fields, Loader, short};
use crate::document::{Diagnostic, nearest};
use crate::expression::Text;
use crate::model::{
    Again, Link, LinkMerge, Origin, Output, Parameter, PickValue, Requirement, ScatterMethod, Step,
    StepInput, Version, Workflow,
};
use crate::tree::{At, Entry, Kind, Node};

/// Names that a source may lead to.
struct Names<'a> {
    inputs: &'a [Parameter],
    /// Steps with their outputs.
    steps: Vec<(String, Vec<Arc<str>>)>,
}

impl Names<'_> {
    fn find(&self, text: &str) -> Option<Origin> {
        let fragment = text.rsplit('#').next().unwrap_or(text);
        let mut parts = fragment.rsplit('/');
        let last = parts.next()?;
        if let Some(step) = parts.next()
            && let Some(i) = self.steps.iter().position(|(id, _)| id == step)
            && let Some(o) = self.steps[i].1.iter().position(|out| &**out == last)
        {
            return Some(Origin::Step(i, o));
        }
        self.inputs.iter().position(|input| &*input.name == last).map(Origin::Input)
    }

    fn all(&self) -> Vec<String> {
        let inputs = self.inputs.iter().map(|i| i.name.to_string());
        let outputs =
            self.steps.iter().flat_map(|(id, outs)| outs.iter().map(move |out| format!("{id}/{out}")));
        inputs.chain(outputs).collect()
    }
}

impl Loader {
    pub(super) fn workflow(
        &mut self,
        fields: Fields<'_>,
        around: Around<'_>,
        id: &str,
        inputs: &[Parameter],
        outputs: &mut [Output],
    ) -> Workflow {
        let _ = id;
        let version = around.version.unwrap_or(Version::V1_2);
        if fields.node.get("steps").is_none() {
            self.push(
                Diagnostic::new(fields.node.at, "`steps` is missing")
                    .with_hint("write `steps: []` where there are none"),
            );
        }
        let nodes = self.named_items(fields.get("steps"), "steps", "id", None);
        let mut names = Names { inputs, steps: Vec::new() };
        for node in &nodes {
            let id = node.get("id").and_then(Node::as_str).map(short).unwrap_or_default().to_owned();
            let outs = self.step_outputs(node);
            if !id.is_empty() && names.steps.iter().any(|(other, _)| *other == id) {
                self.error(node.at, format!("the step `{id}` is declared twice"));
            }
            names.steps.push((id, outs));
        }
        let mut steps = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            steps.extend(self.step(node, i, around, version, &names));
        }
        // Sources are numbers of steps, so a step that is missing would shift them.
        if steps.len() != nodes.len() {
            return Workflow::default();
        }
        let items = self.named_outputs(fields.get("outputs"));
        for output in outputs.iter_mut() {
            let Some(item) = items.iter().find(|(name, _)| *name == *output.name).map(|(_, item)| item)
            else {
                continue;
            };
            output.link = self.link(item, "outputSource", &names, version);
        }
        Workflow { steps }
    }

    fn named_outputs(&mut self, node: Option<&Node>) -> Vec<(String, Node)> {
        let before = self.errors.len();
        let items = self.named_items(node, "outputs", "id", Some("type"));
        // Said already, when the outputs were read.
        self.errors.truncate(before);
        items
            .into_iter()
            .filter_map(|item| Some((short(item.get("id").and_then(Node::as_str)?).to_owned(), item)))
            .collect()
    }

    fn step_outputs(&mut self, node: &Node) -> Vec<Arc<str>> {
        let Some(out) = node.get("out") else {
            self.push(
                Diagnostic::new(node.at, "a step needs `out`")
                    .with_hint("write `out: []` where there are none"),
            );
            return Vec::new();
        };
        let mut names = Vec::new();
        for item in self.list(out, "out") {
            match item.as_str().or_else(|| item.get("id").and_then(Node::as_str)) {
                Some(name) => names.push(short(name).into()),
                None if item.is_null() => {}
                None => self.error(item.at, "an item of `out` is a name"),
            }
        }
        names
    }

    fn step(
        &mut self,
        node: &Node,
        place: usize,
        around: Around<'_>,
        version: Version,
        names: &Names<'_>,
    ) -> Option<Step> {
        let allowed = [
            "id",
            "in",
            "out",
            "run",
            "scatter",
            "scatterMethod",
            "when",
            "label",
            "doc",
            "requirements",
            "hints",
            "loop",
            "outputMethod",
            "name",
        ];
        let fields = self.fields(node, "a step", &allowed);
        let id: Arc<str> = names.steps[place].0.as_str().into();
        if id.is_empty() {
            self.error(node.at, "a step needs an `id`");
        }
        if version < Version::V1_2
            && let Some(when) = fields.get("when")
        {
            self.error(when.at, format!("`when` needs CWL v1.2, and this document is {version}"));
        }
        for key in ["loop", "outputMethod"] {
            if version < Version::V1_3
                && let Some(node) = fields.get(key)
            {
                self.error(node.at, format!("`{key}` needs CWL v1.3, and this document is {version}"));
            }
        }
        if node.get("in").is_none() {
            self.push(
                Diagnostic::new(node.at, format!("the step `{id}` needs `in`"))
                    .with_hint("write `in: []` where there is none"),
            );
        }
        let mut inputs = Vec::new();
        for item in self.named_items(fields.get("in"), "in", "id", Some("source")) {
            inputs.extend(self.step_input(&item, "source", names, version));
        }
        let run = match fields.get("run") {
            Some(run) => self.run(run, Around { name: &id, ..around }),
            None => {
                self.error(node.at, format!("the step `{id}` needs `run`"));
                None
            }
        };
        let mut scatter = Vec::new();
        for item in fields.get("scatter").map(|n| self.list(n, "scatter")).unwrap_or_default() {
            let name = item.as_str().map(short).unwrap_or_default();
            match inputs.iter().position(|i: &StepInput| &*i.name == name) {
                Some(i) => scatter.push(i),
                None => {
                    let mut error = Diagnostic::new(
                        item.at,
                        format!("`{name}` is no input of the step `{id}`, so it cannot be scattered"),
                    );
                    if let Some(near) = nearest(name, inputs.iter().map(|i| &*i.name)) {
                        error = error.with_hint(format!("did you mean `{near}`?"));
                    }
                    self.push(error);
                }
            }
        }
        let method = match fields.get("scatterMethod").map(|n| (n.as_str(), n.at)) {
            Some((Some("dotproduct"), _)) => ScatterMethod::Dot,
            Some((Some("nested_crossproduct"), _)) => ScatterMethod::Nested,
            Some((Some("flat_crossproduct"), _)) => ScatterMethod::Flat,
            Some((_, at)) => {
                self.error(at, "`scatterMethod` is dotproduct, nested_crossproduct or flat_crossproduct");
                ScatterMethod::Dot
            }
            None => {
                if scatter.len() > 1 {
                    self.push(
                        Diagnostic::new(
                            node.at,
                            format!(
                                "the step `{id}` scatters over several inputs, which needs `scatterMethod`"
                            ),
                        )
                        .with_hint("dotproduct, nested_crossproduct or flat_crossproduct"),
                    );
                }
                ScatterMethod::Dot
            }
        };
        let mut requirements = self.requirements(fields.get("requirements"), version, true);
        let hints = self.requirements(fields.get("hints"), version, false);
        let mut when = fields.get("when").and_then(|n| self.text(n, version));
        let again = self.again(fields, &mut when, &mut requirements, names, place, version);
        let run = run?;
        let outputs = names.steps[place].1.clone();
        for out in &outputs {
            if !run.outputs.iter().any(|o| o.name == *out) {
                let at = fields.get("out").map_or(node.at, |n| n.at);
                let mut error = Diagnostic::new(
                    at,
                    format!("the step `{id}` has no output `{out}`: what it runs does not give it"),
                );
                if let Some(near) = nearest(out, run.outputs.iter().map(|o| &*o.name)) {
                    error = error.with_hint(format!("did you mean `{near}`?"));
                }
                self.push(error);
            }
        }
        Some(Step {
            id,
            at: node.at,
            label: fields.get("label").and_then(Node::as_str).map(str::to_owned),
            inputs,
            outputs,
            run,
            scatter,
            method,
            when,
            requirements,
            hints,
            again,
        })
    }

    /// A loop: of v1.3, or the extension `cwltool:Loop`.
    fn again(
        &mut self,
        fields: Fields<'_>,
        when: &mut Option<Text>,
        requirements: &mut Vec<Requirement>,
        names: &Names<'_>,
        place: usize,
        version: Version,
    ) -> Option<Again> {
        const EXTENSION: &str = "http://commonwl.org/cwltool#Loop";
        let extension = requirements
            .iter()
            .position(|r| matches!(r, Requirement::Unknown(class, _) if class == EXTENSION));
        let (node, source_key) = match extension {
            Some(i) if self.options.development => {
                requirements.remove(i);
                let list = fields.get("requirements")?;
                let item = match &list.kind {
                    Kind::Map(entries) => entries.iter().find(|e| e.key.ends_with("Loop")).map(|e| &e.value),
                    Kind::Seq(items) => items
                        .iter()
                        .find(|i| i.get("class").and_then(Node::as_str).is_some_and(|c| c.ends_with("Loop"))),
                    _ => None,
                }?;
                *when = item.get("loopWhen").and_then(|n| self.text(n, version));
                (item, "loopSource")
            }
            Some(_) => return None,
            None => {
                fields.get("loop")?;
                (fields.node, "outputSource")
            }
        };
        let all = match node.get("outputMethod").map(|n| (n.as_str(), n.at)) {
            Some((Some("all" | "all_iterations"), _)) => true,
            Some((Some("last" | "last_iteration"), _)) | None => false,
            Some((_, at)) => {
                self.error(at, "`outputMethod` is last_iteration or all_iterations");
                false
            }
        };
        let mut inputs = Vec::new();
        for item in self.named_items(node.get("loop"), "loop", "id", Some(source_key)) {
            // A source is an output of the step itself.
            let own: Vec<Arc<str>> = names.steps[place].1.clone();
            let mut local = item.clone();
            let mut link = Link::default();
            if let Kind::Map(entries) = &mut local.kind
                && let Some(i) = entries.iter().position(|e| &*e.key == source_key)
            {
                let entry: Entry = entries.remove(i);
                link.list = entry.value.as_seq().is_some();
                for source in self.list(&entry.value, source_key) {
                    let name = source.as_str().map(short).unwrap_or_default();
                    match own.iter().position(|out| &**out == name) {
                        Some(out) => link.sources.push((Origin::Own(out), source.at)),
                        None => self.error(source.at, format!("`{name}` is no output of this step")),
                    }
                }
            }
            if let Some(mut input) = self.step_input(&local, "source", names, version) {
                link.merge = input.link.merge;
                link.pick = input.link.pick;
                input.link = link;
                inputs.push(input);
            }
        }
        if when.is_none() {
            self.error(fields.node.at, "a loop needs `when`, or it never ends");
        }
        Some(Again { inputs, all })
    }

    fn step_input(
        &mut self,
        item: &Node,
        source_key: &str,
        names: &Names<'_>,
        version: Version,
    ) -> Option<StepInput> {
        let allowed = [
            "id",
            source_key,
            "linkMerge",
            "pickValue",
            "default",
            "valueFrom",
            "loadContents",
            "loadListing",
            "label",
            "name",
            "doc",
        ];
        let fields = self.fields(item, "an input of a step", &allowed);
        let Some(name) = fields.get("id").and_then(Node::as_str) else {
            self.error(item.at, "an input of a step needs an `id`");
            return None;
        };
        Some(StepInput {
            name: short(name).into(),
            at: item.at,
            link: self.link(item, source_key, names, version),
            default: item.get("default").map(|n| self.documents.value(n)),
            value_from: fields.get("valueFrom").and_then(|n| self.text(n, version)),
            load_contents: self.boolean(fields.get("loadContents"), "loadContents").unwrap_or(false),
            load_listing: self.listing(fields.get("loadListing")),
        })
    }

    fn link(&mut self, item: &Node, source_key: &str, names: &Names<'_>, version: Version) -> Link {
        let mut link = Link::default();
        if let Some(node) = item.get(source_key).filter(|n| !n.is_null()) {
            link.list = node.as_seq().is_some();
            for source in self.list(node, source_key) {
                let text = source.as_str().unwrap_or_default();
                match names.find(text) {
                    Some(origin) => link.sources.push((origin, source.at)),
                    None => self.unknown_source(text, source.at, names),
                }
            }
        }
        link.merge = match item.get("linkMerge").filter(|n| !n.is_null()).map(|n| (n.as_str(), n.at)) {
            Some((Some("merge_nested"), _)) => Some(LinkMerge::Nested),
            Some((Some("merge_flattened"), _)) => Some(LinkMerge::Flattened),
            Some((_, at)) => {
                self.error(at, "`linkMerge` is merge_nested or merge_flattened");
                None
            }
            None => None,
        };
        link.pick = match item.get("pickValue").filter(|n| !n.is_null()).map(|n| (n.as_str(), n.at)) {
            Some((_, at)) if version < Version::V1_2 => {
                self.error(at, format!("`pickValue` needs CWL v1.2, and this document is {version}"));
                None
            }
            Some((Some("first_non_null"), _)) => Some(PickValue::FirstNonNull),
            Some((Some("the_only_non_null"), _)) => Some(PickValue::TheOnlyNonNull),
            Some((Some("all_non_null"), _)) => Some(PickValue::AllNonNull),
            Some((_, at)) => {
                self.error(at, "`pickValue` is first_non_null, the_only_non_null or all_non_null");
                None
            }
            None => None,
        };
        link
    }

    fn unknown_source(&mut self, text: &str, at: At, names: &Names<'_>) {
        let all = names.all();
        let mut error = Diagnostic::new(
            at,
            format!("`{text}` is neither an input of the workflow nor an output of a step"),
        );
        if let Some(near) = nearest(text.trim_start_matches('#'), all.iter().map(String::as_str)) {
            error = error.with_hint(format!("did you mean `{near}`?"));
        } else if all.len() < 20 {
            error = error.with_hint(format!("there are {}", all.join(", ")));
        }
        self.push(error);
    }
}
