//! The reference frontend's own fixtures: equal trees, equal words. They are data beside the project;
//! where they are absent the tests say so and pass.

use std::path::PathBuf;

use isles_build::dockerfile::syntax;
use isles_build::dockerfile::words::{Expander, Lookup};
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
        assert_eq!(tree.dump(), want, "{}", dir.display());
        seen += 1;
    }
    assert!(seen >= 33, "only {seen} fixtures");
}

#[test]
fn bad_files_are_refused() {
    let Some(dir) = fixtures("parser/testfiles-negative") else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let dir = entry.unwrap().path();
        let text = std::fs::read(dir.join("Dockerfile")).unwrap();
        let error =
            syntax::parse(SourceText::new("Dockerfile", &text)).expect_err(&dir.display().to_string());
        assert!(error.line >= 1 && error.column >= 1, "{error}");
        seen += 1;
    }
    assert!(seen >= 4, "only {seen} fixtures");
}

/// One table for both platforms (letters of variables count on Unix only) and both escape characters.
#[test]
fn variables_expand_equally() {
    let Some(path) = fixtures("shell/envVarTest") else { return };
    let unix = |name: &str| {
        let value = match name {
            "PWD" => "/home",
            "SHELL" => "bash",
            "KOREAN" => "한국어",
            "NULL" => "",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let windows = |name: &str| unix(&name.to_uppercase());
    let text = std::fs::read_to_string(path).unwrap();
    let mut seen = [0; 3];
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [platform, word, want] = columns[..] else { panic!("line {}: {line}", number + 1) };
        let platforms: &[(usize, Lookup<'_>)] = match platform {
            "A" => &[(0, &unix), (1, &windows)],
            "U" => &[(0, &unix)],
            "W" => &[(1, &windows)],
            other => panic!("line {}: {other}", number + 1),
        };
        for (index, env) in platforms {
            for escape in ['\\', '`'] {
                let swap = |text: &str| text.replace('\\', &escape.to_string());
                let got = Expander::new(escape, env).text(&swap(word));
                match got {
                    Ok(text) => assert_eq!(text, swap(want), "line {}: {word} ({escape})", number + 1),
                    Err(e) => assert_eq!(want, "error", "line {}: {word} ({escape}): {e}", number + 1),
                }
                seen[if escape == '`' { 2 } else { *index }] += 1;
            }
        }
    }
    assert!(seen.iter().all(|s| *s >= 180), "only {seen:?} words");
}

#[test]
fn words_split_equally() {
    let Some(path) = fixtures("shell/wordsTest") else { return };
    let mut set: Vec<(String, String)> = Vec::new();
    let mut seen = 0;
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
        seen += 1;
    }
    assert!(seen >= 20, "only {seen} lines");
}

/// What the two tables do not have: patterns, required variables, and which variables were met.
#[test]
fn patterns_and_what_they_meet() {
    let env = |name: &str| {
        let value = match name {
            "file" => "lib/a.b.tar.gz",
            "odd" => "[x]{y}^$.*?|\\z",
            "stars" => "q***rr*",
            "url" => "ftp://h/ftp://p",
            "dot" => ".",
            "any" => "/?./",
            "empty" => "",
            _ => return None,
        };
        Some(value.to_owned())
    };
    for (word, want, unset) in [
        ("${file#*.}", Some("b.tar.gz"), ""),
        ("${file##*.}", Some("gz"), ""),
        ("${file%.*}", Some("lib/a.b.tar"), ""),
        ("${file%%.*}", Some("lib/a"), ""),
        ("${file#}${file##}${file%}", Some("lib/a.b.tar.gzlib/a.b.tar.gzlib/a.b.tar.gz"), ""),
        ("${file%%$empty}", Some("lib/a.b.tar.gz"), ""),
        ("${file#none}", Some("lib/a.b.tar.gz"), ""),
        ("${odd#[x]{y\\}^$.\\*\\?|\\\\}", Some("z"), ""),
        ("${stars%\\*}", Some("q***rr"), ""),
        ("${stars%%\\**}", Some("q"), ""),
        ("${stars%%\\**\\*}", Some("q"), ""),
        ("${stars#?\\*?}", Some("*rr*"), ""),
        ("${file/$dot/_} ${file//$dot/_}", Some("lib/a_b.tar.gz lib/a_b_tar_gz"), ""),
        ("${file/$any/X}", Some("lib/a.b.tar.gz"), ""),
        ("${url/ftp:\\/\\//http://}", Some("http://h/ftp://p"), ""),
        ("${url//\\//\\/}", Some("ftp:\\/\\/h\\/ftp:\\/\\/p"), ""),
        ("${file/$empty/X}", Some("Xlib/a.b.tar.gz"), ""),
        ("${file///}", Some("lib/a.b.tar.gz"), ""),
        ("${none///}${none#x}${none/a/b}", Some(""), "none"),
        ("${none-a}${none:-b}${none+c}${none:+d}", Some("ab"), "none"),
        ("${empty-a}${empty:-b}${empty+c}${empty:+d}${empty?e}", Some("bc"), ""),
        ("${file:-$other}", Some("lib/a.b.tar.gz"), "other"),
        ("${none?}", None, ""),
        ("${empty:?why}", None, ""),
        ("${file=x}", None, ""),
        ("${file:#x}", None, ""),
        ("${file:%%}", None, ""),
        ("${file//x}", None, ""),
        ("${file//}", None, ""),
        ("${file#\\x}", None, ""),
    ] {
        let got = Expander::new('\\', &env).expand(word);
        assert_eq!(got.as_ref().ok().map(|e| e.text.as_str()), want, "{word}: {got:?}");
        if let Ok(met) = got {
            assert_eq!(met.unset.into_iter().collect::<Vec<_>>().join(" "), unset, "{word}");
            assert!(met.used.iter().all(|n| env(n).is_some()), "{word}");
        }
    }
}

/// From which line to which an instruction reaches, as in the reference's test of line numbers.
#[test]
fn instructions_know_their_lines() {
    let text = "# ESCAPE=\\\n\n\n\nFROM a\n\n\n# c\n\n\nENV P \\\n/go\n\n\n\n# d\nRUN a \\\n\t&& b \\\n\n\n    && c \\\n\n && d\n\n\n\
        COPY <<A <<B /\n1\nA\n\n2\nB\nRUN x \\\n# inside\n  <<-E\n\tq\n\tE\nUSER u\n";
    let tree = syntax::parse(SourceText::new("Dockerfile", text.as_bytes())).unwrap();
    let lines: Vec<_> = tree.nodes.iter().map(|n| (n.line.start_line, n.line.end_line, n.end_line)).collect();
    assert_eq!(lines, [(5, 5, 5), (11, 12, 12), (17, 23, 23), (26, 26, 31), (32, 34, 36), (37, 37, 37)]);
    assert_eq!(tree.nodes[2].line.blank_line, Some(19));
}
