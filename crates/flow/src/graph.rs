//! A workflow as a graph, in the language of Graphviz and drawn as SVG.
//!
//! Drawn in layers from left to right: a node stands one layer behind the last that it waits for, and within its layer
//! near those that it is connected to (Sugiyama, Tagawa and Toda 1981, with medians).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use isles_spec::markup;
use serde::{Deserialize, Serialize};

/// What a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Input,
    Step,
    /// A step of which there are many.
    Scatter,
    /// A step that may not run.
    Conditional,
    Output,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// One name for one node.
    pub id: String,
    pub label: String,
    pub kind: Kind,
}

/// What happens before what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    pub name: String,
    pub nodes: Vec<Node>,
    /// Places in `nodes`, each pair once.
    pub edges: Vec<(usize, usize)>,
}

/// In units of SVG, which are pixels at first.
const CHARACTER: f64 = 7.4;
const HEIGHT: f64 = 30.0;
const GAP: f64 = 16.0;
const BETWEEN_LAYERS: f64 = 56.0;
const MARGIN: f64 = 12.0;
/// Of a label.
const MOST_CHARACTERS: usize = 40;
/// More nodes than a person can look at.
const MOST_NODES: usize = 5_000;
/// Sweeps over the layers; more change little.
const SWEEPS: usize = 8;

fn word(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Text for XML and HTML, without the characters that XML does not have.
pub fn escaped(text: &str) -> String {
    markup::escaped(&text.replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "\u{fffd}"))
}

struct Box {
    x: f64,
    y: f64,
    width: f64,
}

impl Graph {
    /// The graph in the language of Graphviz.
    pub fn dot(&self) -> String {
        let mut out = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", word(&self.name));
        for node in &self.nodes {
            let style = match node.kind {
                Kind::Input => ", shape=ellipse",
                Kind::Output => ", shape=ellipse, style=bold",
                Kind::Scatter => ", peripheries=2",
                Kind::Conditional => ", style=dashed",
                Kind::Step => "",
            };
            let _ = writeln!(out, "  {} [label={}{style}];", word(&node.id), word(&node.label));
        }
        for (from, to) in &self.edges {
            if let (Some(from), Some(to)) = (self.nodes.get(*from), self.nodes.get(*to)) {
                let _ = writeln!(out, "  {} -> {};", word(&from.id), word(&to.id));
            }
        }
        out.push_str("}\n");
        out
    }

    /// The graph as an SVG document. A node whose ID is in `classes` has that class beside the one of its kind.
    ///
    /// # Errors
    /// There is more than can be looked at.
    pub fn svg(&self, classes: &BTreeMap<String, &str>) -> Result<String, String> {
        if self.nodes.len() > MOST_NODES {
            return Err(format!("a graph of {} nodes is not drawn (at most {MOST_NODES})", self.nodes.len()));
        }
        let layers = self.layers();
        let boxes = self.places(&layers);
        let width = boxes.iter().map(|b| b.x + b.width).fold(0.0, f64::max) + MARGIN;
        let height = boxes.iter().map(|b| b.y + HEIGHT).fold(0.0, f64::max) + MARGIN;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n\
             <title>{}</title>\n<style>{STYLE}</style>\n\
             <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" \
             markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" class=\"tip\"/></marker></defs>\n",
            escaped(&self.name)
        );
        for (from, to) in &self.edges {
            let (Some(from), Some(to)) = (boxes.get(*from), boxes.get(*to)) else { continue };
            let (x1, y1) = (from.x + from.width, from.y + HEIGHT / 2.0);
            let (x2, y2) = (to.x, to.y + HEIGHT / 2.0);
            let bend = ((x2 - x1) / 2.0).max(20.0);
            let _ = writeln!(
                out,
                "<path class=\"edge\" marker-end=\"url(#tip)\" d=\"M{x1:.1} {y1:.1}C{:.1} {y1:.1} {:.1} {y2:.1} {x2:.1} {y2:.1}\"/>",
                x1 + bend,
                x2 - bend,
            );
        }
        for (node, place) in self.nodes.iter().zip(&boxes) {
            let (kind, radius) = match node.kind {
                Kind::Input => ("input", HEIGHT / 2.0),
                Kind::Output => ("output", HEIGHT / 2.0),
                Kind::Scatter => ("step scatter", 4.0),
                Kind::Conditional => ("step conditional", 4.0),
                Kind::Step => ("step", 4.0),
            };
            let class = classes.get(&node.id).copied().unwrap_or_default();
            let _ = writeln!(
                out,
                "<g class=\"{}\"><title>{}</title>",
                format!("{kind} {class}").trim(),
                escaped(&node.label)
            );
            if node.kind == Kind::Scatter {
                let _ = writeln!(
                    out,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\" rx=\"{radius}\"/>",
                    place.x + 4.0,
                    place.y + 4.0,
                    place.width
                );
            }
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\" rx=\"{radius}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></g>",
                place.x,
                place.y,
                place.width,
                place.x + place.width / 2.0,
                place.y + HEIGHT / 2.0 + 4.5,
                escaped(&shortened(&node.label)),
            );
        }
        out.push_str("</svg>\n");
        Ok(out)
    }

    /// Nodes layer by layer, each layer in the order in which it is drawn.
    fn layers(&self) -> Vec<Vec<usize>> {
        let count = self.nodes.len();
        let (mut before, mut after) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        for (from, to) in &self.edges {
            if *from < count && *to < count && from != to {
                after[*from].push(*to);
                before[*to].push(*from);
            }
        }
        let mut layer = vec![0usize; count];
        let mut waiting: Vec<usize> = before.iter().map(Vec::len).collect();
        let mut ready: Vec<usize> = (0..count).filter(|i| waiting[*i] == 0).collect();
        while let Some(node) = ready.pop() {
            for next in &after[node] {
                layer[*next] = layer[*next].max(layer[node] + 1);
                waiting[*next] -= 1;
                if waiting[*next] == 0 {
                    ready.push(*next);
                }
            }
        }
        let last = layer.iter().copied().max().unwrap_or(0);
        for (i, node) in self.nodes.iter().enumerate() {
            // Inputs stand just before the first that needs them, and outputs at the end.
            match node.kind {
                Kind::Input => {
                    let first = after[i].iter().map(|to| layer[*to]).min().unwrap_or(1);
                    layer[i] = first.saturating_sub(1);
                }
                Kind::Output => layer[i] = last,
                _ => {}
            }
        }
        let mut layers = vec![Vec::new(); last + 1];
        for (i, layer) in layer.iter().enumerate() {
            layers[*layer].push(i);
        }
        let mut place = vec![0.0; count];
        let number = |layers: &[Vec<usize>], place: &mut Vec<f64>| {
            for nodes in layers {
                let middle = nodes.len() as f64 / 2.0;
                nodes.iter().enumerate().for_each(|(at, node)| place[*node] = at as f64 - middle);
            }
        };
        number(&layers, &mut place);
        for sweep in 0..SWEEPS {
            let neighbours = if sweep % 2 == 0 { &before } else { &after };
            let order: Vec<usize> =
                if sweep % 2 == 0 { (0..=last).collect() } else { (0..=last).rev().collect() };
            for at in order {
                let mut nodes: Vec<(f64, usize)> = layers[at]
                    .iter()
                    .map(|node| (median(&neighbours[*node], &place).unwrap_or(place[*node]), *node))
                    .collect();
                nodes.sort_by(|a, b| a.0.total_cmp(&b.0));
                layers[at] = nodes.into_iter().map(|(_, node)| node).collect();
                number(&layers, &mut place);
            }
        }
        layers
    }

    fn places(&self, layers: &[Vec<usize>]) -> Vec<Box> {
        let widths: Vec<f64> = self
            .nodes
            .iter()
            .map(|node| shortened(&node.label).chars().count() as f64 * CHARACTER + 24.0)
            .collect();
        let mut boxes: Vec<Box> = widths.iter().map(|width| Box { x: 0.0, y: 0.0, width: *width }).collect();
        let tallest = layers.iter().map(Vec::len).max().unwrap_or(0);
        let mut x = MARGIN;
        for nodes in layers {
            let widest = nodes.iter().map(|node| widths[*node]).fold(0.0, f64::max);
            let mut y = MARGIN + (tallest - nodes.len()) as f64 * (HEIGHT + GAP) / 2.0;
            for node in nodes {
                boxes[*node].x = x + (widest - widths[*node]) / 2.0;
                boxes[*node].y = y;
                y += HEIGHT + GAP;
            }
            x += widest + BETWEEN_LAYERS;
        }
        boxes
    }
}

fn median(neighbours: &[usize], place: &[f64]) -> Option<f64> {
    let mut places: Vec<f64> = neighbours.iter().map(|node| place[*node]).collect();
    places.sort_by(f64::total_cmp);
    let middle = places.len() / 2;
    match places.len() {
        0 => None,
        n if n % 2 == 1 => Some(places[middle]),
        _ => Some((places[middle - 1] + places[middle]) / 2.0),
    }
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= MOST_CHARACTERS {
        return label.to_owned();
    }
    let mut text: String = label.chars().take(MOST_CHARACTERS - 1).collect();
    text.push('…');
    text
}

/// Colours that are told apart in both schemes, and in grey.
const STYLE: &str = "rect{fill:#f4f4f2;stroke:#666;stroke-width:1.2}text{fill:#1b1b1b}.edge{fill:none;stroke:#888;\
stroke-width:1.2}.tip{fill:#888}.input rect,.output rect{fill:#fff}.output rect{stroke-width:2}\
.conditional rect{stroke-dasharray:5 3}.done rect{fill:#d7efd9;stroke:#2e7d32}.failed rect{fill:#fbd9d6;stroke:#b3261e}\
.running rect{fill:#fff0c2;stroke:#a86a00}.reused rect{fill:#dce8fb;stroke:#2558a8}\
@media(prefers-color-scheme:dark){rect{fill:#2a2a2c;stroke:#999}text{fill:#eee}.input rect,.output rect{fill:#1c1c1e}\
.done rect{fill:#1d3b21}.failed rect{fill:#4d1f1c}.running rect{fill:#46380f}.reused rect{fill:#1c2d4d}}";

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(kinds: &[Kind], edges: &[(usize, usize)]) -> Graph {
        let node =
            |(i, kind): (usize, &Kind)| Node { id: format!("n{i}"), label: format!("a<{i}"), kind: *kind };
        let nodes = kinds.iter().enumerate().map(node).collect();
        Graph { name: "g \"1\"".into(), nodes, edges: edges.to_vec() }
    }

    #[test]
    fn nodes_stand_behind_what_they_wait_for() {
        use Kind::{Input, Output, Step};
        let graph = graph(
            &[Input, Step, Step, Step, Output, Input],
            &[(0, 1), (1, 2), (1, 3), (2, 4), (5, 2), (3, 2)],
        );
        let layers = graph.layers();
        let at = |node: usize| layers.iter().position(|l| l.contains(&node)).unwrap();
        assert_eq!([at(0), at(1), at(3), at(2), at(4)], [0, 1, 2, 3, 4]);
        assert_eq!(at(5), 2, "an input stands just before the first that needs it");
        assert_eq!(layers.iter().map(Vec::len).sum::<usize>(), 6);
    }

    #[test]
    fn drawings_escape_names_and_do_not_overlap() {
        use Kind::{Conditional, Scatter, Step};
        let graph = graph(&[Step, Scatter, Conditional, Step], &[(0, 1), (0, 2), (1, 3), (2, 3)]);
        let svg = graph.svg(&BTreeMap::from([("n1".to_owned(), "failed")])).unwrap();
        assert!(svg.contains("a&lt;1") && svg.contains("step scatter failed") && !svg.contains("a<1"));
        let layers = graph.layers();
        let boxes = graph.places(&layers);
        for nodes in &layers {
            for pair in nodes.windows(2) {
                assert!(boxes[pair[0]].y + HEIGHT < boxes[pair[1]].y);
            }
        }
        assert!(graph.dot().starts_with("digraph \"g \\\"1\\\"\" {"));
    }

    #[test]
    fn circles_and_nothing_at_all_are_drawn_too() {
        use Kind::Step;
        assert!(graph(&[Step, Step], &[(0, 1), (1, 0), (1, 1), (7, 9)]).svg(&BTreeMap::new()).is_ok());
        assert!(Graph::default().svg(&BTreeMap::new()).is_ok());
        let many = graph(&vec![Step; MOST_NODES + 1], &[]);
        assert!(many.svg(&BTreeMap::new()).is_err());
    }
}
