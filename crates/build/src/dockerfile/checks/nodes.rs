//! Checks of instructions as they are written, before anything is known of their meaning.

use std::collections::BTreeSet;

use super::config::Config;
use super::rules::{self, Rule};
use super::{Place, Report};
use crate::dockerfile::instruction::Recipe;
use crate::dockerfile::syntax::Node;

/// Names of stages that mean something else.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Goes through the instructions. Their meaning is looked at up to a line.
pub(super) fn written(report: &mut Report, nodes: &[Node], last_line: usize) {
    for node in nodes {
        if let Some(blank) = node.line.blank_line {
            let end = node.line.end_line;
            let place = Place { lines: (end, end), span: report.source.line_span(blank) };
            let hint = "take the blank line out; a line with # only may stand there".to_owned();
            let detail = "a blank line stands inside a continued instruction".to_owned();
            report.add_for_file(&rules::NO_EMPTY_CONTINUATION, place, detail, Some(hint));
        }
    }
    let file = report.config.clone();
    for node in nodes.iter().filter(|n| n.line.start_line <= last_line) {
        let config = file.with_comments(&node.comments);
        match node.name().as_str() {
            "FROM" => from(report, &config, node),
            "ARG" => {
                let names: Vec<&str> = node.args.iter().map(|a| name_of(a)).collect();
                description(report, &config, node, "ARG", &names);
            }
            "MAINTAINER" => report.add(
                &config,
                &rules::MAINTAINER_DEPRECATED,
                Place::of(node),
                "MAINTAINER is deprecated".to_owned(),
                Some("write LABEL org.opencontainers.image.authors=\"…\"".to_owned()),
            ),
            _ => {}
        }
    }
}

/// The name in `NAME[=default]`.
fn name_of(argument: &str) -> &str {
    argument.split('=').next().unwrap_or(argument)
}

fn from(report: &mut Report, config: &Config, node: &Node) {
    let [_, word, name, more @ ..] = node.args.as_slice() else { return };
    let mut warn =
        |rule: &'static Rule, place, detail, hint| report.add(config, rule, place, detail, Some(hint));
    let lower = name.to_lowercase();
    if name.text != lower && more.is_empty() {
        warn(
            &rules::STAGE_NAME_CASING,
            Place::of(node).at(name.span),
            format!("the name '{}' of the stage is not in lower case", name.text),
            format!("write {lower}"),
        );
    }
    let keyword = node.keyword.text.as_str();
    let wanted = match (keyword == keyword.to_lowercase(), keyword == keyword.to_uppercase()) {
        (true, _) => word.to_lowercase(),
        (_, true) => word.to_uppercase(),
        // That is another rule's business.
        _ => word.text.clone(),
    };
    if word.text != wanted {
        warn(
            &rules::FROM_AS_CASING,
            Place::of(node).at(word.span),
            format!("'{}' is not written as '{keyword}' is", word.text),
            format!("write {wanted}"),
        );
    }
    if more.is_empty() {
        description(report, config, node, "FROM", &[&lower]);
    }
}

/// The last comment above begins with one of the names.
fn description(report: &mut Report, config: &Config, node: &Node, keyword: &str, names: &[&str]) {
    let Some(comment) = node.comments.last().filter(|_| !names.is_empty()) else { return };
    if names.contains(&comment.split(' ').next().unwrap_or_default()) {
        return;
    }
    let name = if let [only] = names { only } else { "NAME" };
    report.add(
        config,
        &rules::INVALID_DEFINITION_DESCRIPTION,
        Place::of(node),
        format!("the comment above {keyword} does not begin with a name: # {name} DESCRIPTION"),
        Some("put a line with # only between, if it describes something else".to_owned()),
    );
}

/// Names of stages, and the case of keywords: the one that most of them have.
pub(super) fn names_and_casing(report: &mut Report, recipe: &Recipe) {
    let mut seen = BTreeSet::new();
    for stage in &recipe.stages {
        let Some(name) = stage.name.as_deref() else { continue };
        let place = Place::of(&stage.node).at(stage.node.args.last().map_or(stage.node.span, |a| a.span));
        if RESERVED.contains(&name) {
            let detail = format!("'{name}' as the name of a stage hides what it stands for otherwise");
            report.add_for_file(
                &rules::RESERVED_STAGE_NAME,
                place,
                detail,
                Some("take another name".to_owned()),
            );
        }
        if !seen.insert(name) {
            let detail = format!("the name '{name}' belongs to an earlier stage, too");
            let hint = "only the last of them can be meant; give each a name of its own".to_owned();
            report.add_for_file(&rules::DUPLICATE_STAGE_NAME, place, detail, Some(hint));
        }
    }
    let nodes =
        || recipe.stages.iter().flat_map(|s| std::iter::once(&s.node).chain(s.steps.iter().map(|s| &s.node)));
    let lower = nodes().filter(|n| n.keyword.text == n.keyword.to_lowercase()).count();
    let upper = nodes().filter(|n| n.keyword.text == n.keyword.to_uppercase()).count();
    let (kind, convert): (&str, fn(&str) -> String) =
        if lower > upper { ("lower", str::to_lowercase) } else { ("upper", str::to_uppercase) };
    let odd: Vec<Node> = nodes().filter(|n| n.keyword.text != convert(&n.keyword)).cloned().collect();
    for node in odd {
        let detail = format!("'{}' is not in {kind} case, as most keywords here are", node.keyword.text);
        let hint = format!("write {}", convert(&node.keyword));
        report.add_for_file(&rules::CONSISTENT_INSTRUCTION_CASING, Place::of(&node), detail, Some(hint));
    }
}
