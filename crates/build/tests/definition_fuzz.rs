//! The parser of definition files over files that went wrong: a kept corpus, changed at random, but the same every
//! time. `ISLES_FUZZ` is how many files are tried (8,000 where it is not set).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use isles_build::definition::{BuildArguments, json, parse, syntax};
use isles_build::position::{Diagnostic, SourceText};

/// Numbers that look random (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % limit.max(1)
    }
}

/// What definition files are made of.
const PIECES: [&str; 38] = [
    "Bootstrap: ",
    "bootstrap:",
    "From: ",
    "Stage: x\n",
    "%",
    "%post",
    "%files",
    "%files from ",
    "%post -c ",
    "%setup\n",
    "%appinstall ",
    "%labels\n",
    "%arguments\n",
    "{{",
    "}}",
    "{{ A }}",
    "A=1\n",
    "#",
    "#!",
    "\\",
    "\\n\\\n",
    "\n",
    "\r\n",
    "\t",
    " ",
    ":",
    "\"",
    "'",
    "*",
    "[!",
    "\u{feff}",
    "\u{fffd}",
    "é",
    "\0",
    "otherurl9: x\n",
    "<<EOF\n",
    "EOF\n",
    "{{{{",
];

fn change(text: &mut Vec<u8>, corpus: &[Vec<u8>], numbers: &mut Numbers) {
    let at = numbers.below(text.len() + 1);
    let piece = PIECES[numbers.below(PIECES.len())].as_bytes();
    match numbers.below(8) {
        0 if at < text.len() => text[at] ^= 1 << numbers.below(8),
        1 => drop(text.splice(at..at, piece.iter().copied())),
        2 => {
            let end = (at + numbers.below(40)).min(text.len());
            text.drain(at..end);
        }
        3 => {
            let end = (at + numbers.below(200)).min(text.len());
            let again = text[at..end].to_vec();
            let to = numbers.below(text.len() + 1);
            text.splice(to..to, again);
        }
        4 => {
            let other = &corpus[numbers.below(corpus.len())];
            let from = numbers.below(other.len() + 1);
            text.truncate(at);
            text.extend_from_slice(&other[from..]);
        }
        5 => {
            let end = (at + piece.len()).min(text.len());
            text.splice(at..end, piece.iter().copied());
        }
        6 => text.truncate(at),
        _ => {
            let n = numbers.below(60);
            text.splice(at..at, piece.repeat(n));
        }
    }
    text.truncate(64 << 10);
}

/// A finding must be showable, and its place in the file.
fn shown(finding: &Diagnostic, source: &SourceText) {
    assert!(finding.line >= 1 && finding.line <= source.line_of(usize::MAX), "{finding}");
    assert!(finding.column >= 1 && !finding.message.is_empty());
    assert!(finding.picture().contains('^'), "{finding}");
}

fn read(bytes: &[u8], arguments: &BuildArguments) {
    let source = SourceText::new("x.def", bytes);
    match parse(source.clone(), arguments) {
        Err(error) => shown(&error, &source),
        Ok((definition, warnings)) => {
            warnings.iter().for_each(|warning| shown(warning, &source));
            assert!(!definition.stages.is_empty());
            for stage in &definition.stages {
                for section in &stage.sections {
                    shown(&source.at(section.name.span, "x"), &source);
                    for copy in section.copies() {
                        shown(&source.at(copy.source.span, "x"), &source);
                    }
                }
            }
            // As JSON it is the same definition; some lines JSON can have and the language cannot.
            let text = SourceText::new("x.json", definition.to_json().as_bytes());
            if let Ok(again) = json::to_text(&text)
                && let Ok(again) = syntax::parse(&again)
            {
                assert_eq!(again.stages.len(), definition.stages.len(), "{}", source.text());
            }
        }
    }
}

#[test]
fn files_that_went_wrong_are_errors() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/definition");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(corpus.len() >= 10);
    let values =
        BTreeMap::from([("A".to_owned(), "a%\nb".to_owned()), ("B".to_owned(), "{{ A }}".to_owned())]);
    let arguments = [BuildArguments::default(), BuildArguments { values, strict: false }];
    for text in &corpus {
        arguments.iter().for_each(|arguments| read(text, arguments));
    }
    let rounds = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(8_000);
    let mut numbers = Numbers(0x15_1e5);
    for round in 0..rounds {
        let mut text = corpus[numbers.below(corpus.len())].clone();
        for _ in 0..=numbers.below(6) {
            change(&mut text, &corpus, &mut numbers);
        }
        read(&text, &arguments[round % 2]);
    }
}

#[test]
fn growth_is_bounded() {
    // Each argument is as long as the stage may be, and there are many of them.
    let values = BTreeMap::from([("A".to_owned(), "x".repeat(1 << 20))]);
    let text = format!("Bootstrap: docker\nFrom: a\n%post\n{}\n", "{{ A }}".repeat(100));
    let source = SourceText::new("x.def", text.as_bytes());
    let error = parse(source, &BuildArguments { values, strict: true }).unwrap_err();
    assert!(error.line == 4 && error.message.contains("longer than"), "{error}");
    // As many stages and sections as fit are read in no time.
    for line in ["Bootstrap: scratch\n", "%post\n", "%files\na b\n", "%apprun x\n", "%apprun x y\n#{{ A }}\n"]
    {
        let text = format!("Bootstrap: scratch\n{}", line.repeat((1 << 20) / line.len()));
        parse(SourceText::new("x.def", text.as_bytes()), &BuildArguments::default()).unwrap();
    }
}
