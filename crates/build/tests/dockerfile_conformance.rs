//! The reference frontend's own fixtures: equal trees, equal words. They are data beside the project;
//! where they are absent the tests say so and pass.

use std::path::PathBuf;

use isles_build::dockerfile::{syntax, words::Expander};
use isles_build::position::SourceText;

fn fixtures(part: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ISLES_CONFORMANCE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance"))
    });
    let path = root.join("dockerfile").join(part);
    if path.exists() {
        return Some(path);
    }
    println!("skip: {} is not there", path.display());
    None
}

#[test]
fn trees_are_equal() {
    let Some(dir) = fixtures("parser/testfiles") else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let dir = entry.unwrap().path();
        let text = std::fs::read(dir.join("Dockerfile")).unwrap();
        let want = std::fs::read_to_string(dir.join("result")).unwrap();
        let tree = syntax::parse(SourceText::new("Dockerfile", &text))
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert_eq!(tree.dump().trim(), want.trim(), "{}", dir.display());
        seen += 1;
    }
    assert!(seen >= 33, "only {seen} fixtures");
}

#[test]
fn bad_files_are_refused() {
    let Some(dir) = fixtures("parser/testfiles-negative") else { return };
    for entry in std::fs::read_dir(dir).unwrap() {
        let dir = entry.unwrap().path();
        let text = std::fs::read(dir.join("Dockerfile")).unwrap();
        assert!(syntax::parse(SourceText::new("Dockerfile", &text)).is_err(), "{}", dir.display());
    }
}

#[test]
fn variables_expand_equally() {
    let Some(path) = fixtures("shell/envVarTest") else { return };
    let env = |name: &str| {
        let value = match name {
            "PWD" => "/home",
            "SHELL" => "bash",
            "KOREAN" => "한국어",
            "NULL" => "",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let text = std::fs::read_to_string(path).unwrap();
    let mut seen = 0;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let mut columns = line.split('|');
        let platform = columns.next().unwrap().trim();
        let (word, want) = (columns.next().unwrap().trim(), columns.next().unwrap_or("").trim());
        if platform == "W" {
            continue;
        }
        let got = Expander::new('\\', &env).text(word);
        match got {
            Ok(text) => assert_eq!(text, want, "line {}: {word}", number + 1),
            Err(e) => assert_eq!(want, "error", "line {}: {word}: {e}", number + 1),
        }
        seen += 1;
    }
    assert!(seen > 150, "only {seen} lines");
}

#[test]
fn words_split_equally() {
    let Some(path) = fixtures("shell/wordsTest") else { return };
    let mut set: Vec<(String, String)> = Vec::new();
    for (number, line) in std::fs::read_to_string(path).unwrap().lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        if let Some(pair) = line.strip_prefix("ENV ") {
            let (name, value) = pair.trim_start().split_once('=').unwrap();
            set.push((name.to_owned(), value.to_owned()));
            continue;
        }
        let (word, want) = line.split_once('|').unwrap();
        let (word, want) = (word.trim(), want.trim_start());
        let env = |name: &str| set.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        match Expander::new('\\', &env).words(word) {
            Ok(words) => assert_eq!(words, want.split(',').collect::<Vec<_>>(), "line {}", number + 1),
            Err(e) => assert_eq!(want.trim(), "error", "line {}: {e}", number + 1),
        }
    }
}
