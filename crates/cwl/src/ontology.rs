//! The part of ontologies that formats need: what is a kind of what (`rdfs:subClassOf`, `owl:equivalentClass`) in RDF/XML
//! and Turtle. Everything else in such a file is passed over.

use std::path::{Path, PathBuf};

use crate::files::Ontology;

/// Bytes of one file.
const LONGEST: u64 = 256 << 20;
const SUB: &str = "http://www.w3.org/2000/01/rdf-schema#subClassOf";
const EQUIVALENT: &str = "http://www.w3.org/2002/07/owl#equivalentClass";

/// Reads files; one that cannot be read adds nothing.
pub fn read(paths: &[PathBuf]) -> Ontology {
    let mut ontology = Ontology::default();
    for path in paths {
        let short = std::fs::metadata(path).is_ok_and(|m| m.len() <= LONGEST);
        let Some(text) = short.then(|| std::fs::read_to_string(path).ok()).flatten() else { continue };
        if is_xml(path, &text) {
            of_xml(&text, &mut ontology);
        } else {
            of_turtle(&text, &mut ontology);
        }
    }
    ontology
}

fn is_xml(path: &Path, text: &str) -> bool {
    let by_name = path.extension().is_some_and(|e| e == "owl" || e == "rdf" || e == "xml");
    by_name && text.trim_start().starts_with('<') || text.trim_start().starts_with("<?xml")
}

/// `<owl:Class rdf:about="A"> … <rdfs:subClassOf rdf:resource="B"/>`, with entities of the document type.
fn of_xml(text: &str, ontology: &mut Ontology) {
    let mut entities: Vec<(&str, &str)> = Vec::new();
    for part in text.split("<!ENTITY").skip(1) {
        let mut words = part.trim_start().splitn(2, char::is_whitespace);
        if let (Some(name), Some(rest)) = (words.next(), words.next())
            && let Some(value) = rest.split('"').nth(1)
        {
            entities.push((name, value));
        }
    }
    let expand = |value: &str| {
        let mut out = value.to_owned();
        for (name, replacement) in &entities {
            out = out.replace(&format!("&{name};"), replacement);
        }
        out
    };
    let mut subjects: Vec<(String, Option<String>)> = Vec::new();
    for tag in text.split('<').skip(1) {
        let Some((inner, _)) = tag.split_once('>') else { continue };
        let name =
            inner.trim_start_matches('/').split([' ', '\n', '\t', '\r', '/']).next().unwrap_or_default();
        let attribute = |wanted: &str| {
            let at = inner.find(wanted)?;
            inner[at + wanted.len()..].split(['"', '\'']).nth(1).map(expand)
        };
        if inner.starts_with('/') {
            if subjects.last().is_some_and(|(open, _)| open == name) {
                subjects.pop();
            }
            continue;
        }
        let empty = inner.ends_with('/');
        let relation = name.ends_with(":subClassOf") || name.ends_with(":equivalentClass");
        if relation {
            if let (Some((_, Some(subject))), Some(object)) = (subjects.last(), attribute("rdf:resource=")) {
                ontology.add(subject, &object);
                if name.ends_with(":equivalentClass") {
                    ontology.add(&object, subject);
                }
            }
            if !empty {
                subjects.push((name.to_owned(), None));
            }
            continue;
        }
        if (name.ends_with(":Class") || name.ends_with(":Description")) && !empty {
            subjects.push((name.to_owned(), attribute("rdf:about=")));
        }
    }
}

/// Triples of Turtle: prefixes, IRIs, `a`, lists of predicates and objects. Literals and blank nodes are passed over.
fn of_turtle(text: &str, ontology: &mut Ontology) {
    let mut prefixes: Vec<(String, String)> = Vec::new();
    let tokens = tokens(text);
    let mut statement: Vec<&str> = Vec::new();
    for token in &tokens {
        if token == "." {
            sentence(&statement, &mut prefixes, ontology);
            statement.clear();
        } else {
            statement.push(token);
        }
    }
}

fn sentence(words: &[&str], prefixes: &mut Vec<(String, String)>, ontology: &mut Ontology) {
    if let ["@prefix" | "PREFIX" | "prefix", name, iri, ..] = words {
        prefixes.push((name.trim_end_matches(':').to_owned(), iri.trim_matches(['<', '>']).to_owned()));
        return;
    }
    let full = |word: &str| -> Option<String> {
        if let Some(iri) = word.strip_prefix('<') {
            return Some(iri.trim_end_matches('>').to_owned());
        }
        let (prefix, rest) = word.split_once(':')?;
        let (_, iri) = prefixes.iter().find(|(name, _)| name == prefix)?;
        Some(format!("{iri}{rest}"))
    };
    let Some(subject) = words.first().and_then(|w| full(w)) else { return };
    for part in words[1..].split(|w| *w == ";") {
        let Some((predicate, objects)) = part.split_first() else { continue };
        let Some(predicate) = full(predicate) else { continue };
        for object in objects.iter().filter(|w| **w != ",").filter_map(|w| full(w)) {
            if predicate == SUB || predicate == EQUIVALENT {
                ontology.add(&subject, &object);
            }
            if predicate == EQUIVALENT {
                ontology.add(&object, &subject);
            }
        }
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
        } else if c == '#' {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        } else if c == '<' {
            let end = rest.find('>').map_or(rest.len(), |i| i + 1);
            out.push(rest[..end].to_owned());
            rest = &rest[end..];
        } else if c == '"' || c == '\'' {
            let triple = &rest[..rest.len().min(3)];
            let quote = if triple == "\"\"\"" || triple == "'''" { triple } else { &rest[..1] };
            let mut i = quote.len();
            while i < rest.len() && !rest[i..].starts_with(quote) {
                i += rest[i..].chars().next().map_or(1, |c| if c == '\\' { 2 } else { c.len_utf8() });
            }
            let end = rest.len().min(i + quote.len());
            out.push("\"\"".into());
            let mut end = end;
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            rest = &rest[end..];
        } else if matches!(c, ';' | ',' | '[' | ']' | '(' | ')') {
            out.push(c.to_string());
            rest = &rest[1..];
        } else {
            let end = rest.find(|c: char| {
                c.is_whitespace() || matches!(c, ';' | ',' | '[' | ']' | '(' | ')' | '<' | '"')
            });
            let mut word = &rest[..end.unwrap_or(rest.len())];
            if word.len() > 1 && word.ends_with('.') {
                word = &word[..word.len() - 1];
            }
            out.push(word.to_owned());
            rest = &rest[word.len()..];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_and_turtle_say_the_same() {
        let xml = r#"<?xml version="1.0"?><!DOCTYPE r [<!ENTITY e "http://e/">]><rdf:RDF>
            <owl:Class rdf:about="&e;a"><rdfs:label>x</rdfs:label><rdfs:subClassOf rdf:resource="http://e/b"/></owl:Class>
            <owl:Class rdf:about="http://e/b"><rdfs:subClassOf><owl:Restriction>
              <owl:onProperty rdf:resource="http://e/x"/></owl:Restriction></rdfs:subClassOf>
              <rdfs:subClassOf rdf:resource="http://e/c"/></owl:Class></rdf:RDF>"#;
        let turtle = "@prefix e: <http://e/> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .\n# x\n\
            e:a a e:z ; rdfs:label \"a . b\"@en ; rdfs:subClassOf e:b .\n<http://e/b> rdfs:subClassOf e:q, e:c.\n";
        let (mut one, mut two) = (Ontology::default(), Ontology::default());
        of_xml(xml, &mut one);
        of_turtle(turtle, &mut two);
        for ontology in [one, two] {
            assert!(ontology.is_a("http://e/a", "http://e/c"));
            assert!(!ontology.is_a("http://e/c", "http://e/a"));
            assert!(!ontology.is_a("http://e/a", "http://e/x"));
        }
    }
}
