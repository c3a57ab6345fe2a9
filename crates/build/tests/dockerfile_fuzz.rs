//! Dockerfiles and `.dockerignore` from anyone: no input panics, and each takes a bounded time. The inputs are
//! changed at random, but the same every time. `ISLES_FUZZ` is how many each test tries (20,000 where it is not set).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isles_build::dockerfile::checks::{self, Checked, Look};
use isles_build::dockerfile::words::Expander;
use isles_build::dockerfile::{outline, syntax};
use isles_build::pattern::{Glob, Ignore};
use isles_build::position::SourceText;
use isles_spec::Platform;
use isles_spec::image::ImageConfig;

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one<'t, T: ?Sized>(&mut self, list: &[&'t T]) -> &'t T {
        list[self.below(list.len())]
    }
}

/// What the languages are made of.
const PIECES: [&[u8]; 64] = [
    b"\n",
    b"\\\n",
    b"`\n",
    b"\\",
    b"`",
    b"'",
    b"\"",
    b"$",
    b"${",
    b"}",
    b"${a:-",
    b"${a:?",
    b"${a#",
    b"${a%%*",
    b"${a//?/",
    b"${a/",
    b"<<",
    b"<<E",
    b"<<-'E'",
    b"\nE\n",
    b"[\"",
    b"\"]",
    b"[",
    b"{",
    b"#",
    b"# check=skip=all\n",
    b"# escape=`\n",
    b"# syntax=x\n",
    b"FROM a AS b\n",
    b"FROM b\n",
    b"from $a\n",
    b"ARG a=",
    b"ENV a=$a$a\n",
    b"ENV a b\n",
    b"LABEL ",
    b"COPY --from=",
    b"COPY --chown=$a a /\n",
    b"ADD ",
    b"RUN --mount=",
    b"type=cache,target=",
    b"type=secret,id=$a",
    b"ONBUILD ",
    b"ONBUILD COPY $x /\n",
    b"HEALTHCHECK CMD ",
    b"HEALTHCHECK NONE\n",
    b"EXPOSE 1-65535/TCP ",
    b":",
    b"/",
    b"=",
    b",",
    b"--",
    b"--platform=$TARGETPLATFORM ",
    b"SHELL [\"x\"]\n",
    b"STOPSIGNAL ",
    b"WORKDIR x\n",
    b"CMD a\n",
    b"\0",
    b"\xff",
    b"\xc3",
    "\u{feff}".as_bytes(),
    "é한".as_bytes(),
    b"\r\n",
    b"\t",
    b" ",
];

/// One to five changes: bytes, pieces, parts of itself or of another input.
fn changed(random: &mut Random, input: &[u8], other: &[u8], pieces: &[&'static [u8]]) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=random.below(5) {
        let at = random.below(out.len() + 1);
        let end = at + random.below((out.len() - at + 1).min(60));
        match random.below(6) {
            0 if at < out.len() => out[at] = random.next() as u8,
            1 => drop(out.drain(at..end)),
            2 => {
                let part = out[at..end].to_vec();
                let to = random.below(out.len() + 1);
                out.splice(to..to, part);
            }
            3 => {
                let from = random.below(other.len() + 1);
                let part = &other[from..(from + random.below(80)).min(other.len())];
                out.splice(at..end, part.iter().copied());
            }
            _ => drop(out.splice(at..at, random.one(pieces).iter().copied())),
        }
    }
    out.truncate(4000);
    out
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "# escape=`\n# check=error=true\nARG V=1\n# a it\nFROM x:${V:-2} AS a\nRUN --mount=type=secret,id=k a `\n  b\n",
        "FROM a AS b\nARG A=1 B=${A%x}\nENV C=\"$A $B\" D='e'\nLABEL a b\nCOPY --from=b --chown=$A <<E <<-'F' /\n$A\nE\n\tx\n\tF\n\
         ONBUILD RUN <<E\nq\nE\nFROM b\nEXPOSE 80/TCP 1:2\nHEALTHCHECK --retries=1 CMD x\nCMD [\"a\"]\nCMD b\nVOLUME /a [\"/b\"]\n",
        "FROM --platform=$TARGETPLATFORM scratch as X\nWORKDIR a\nUSER $u\nSTOPSIGNAL 9\nSHELL [\"s\"]\nENTRYPOINT a\nMAINTAINER m\nADD a b c/\n",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    let root = std::env::var_os("ISLES_CONFORMANCE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance"))
    });
    for part in ["testfiles", "testfiles-negative"] {
        let Ok(entries) = std::fs::read_dir(root.join("dockerfile/parser").join(part)) else { continue };
        let mut paths: Vec<_> = entries.map(|e| e.unwrap().path().join("Dockerfile")).collect();
        paths.sort();
        seeds.extend(paths.iter().map(|p| std::fs::read(p).unwrap()).filter(|bytes| bytes.len() < 2000));
    }
    seeds
}

fn base(_: &str, platform: &Platform) -> Option<ImageConfig> {
    let mut image = ImageConfig::empty(platform);
    image.config.env = vec!["PATH=/bin".into(), "a=b".into()];
    image.config.on_build = vec!["COPY $x /".into()];
    Some(image)
}

/// Everything that may be done with a Dockerfile before it is built.
fn look(bytes: &[u8], ignore: &Ignore) -> Checked {
    let source = SourceText::new("Dockerfile", bytes);
    if let Ok(tree) = syntax::parse(source.clone()) {
        tree.dump();
    }
    let platform: Platform = "linux/amd64".parse().unwrap();
    let build_args = BTreeMap::from([("V".to_owned(), "3".to_owned())]);
    let checked = checks::check(
        &source,
        &Look {
            platform: &platform,
            build_args: &build_args,
            target: None,
            all_stages: true,
            ignore,
            named: &|_| None,
            base: &base,
        },
    );
    checked.findings.iter().for_each(|f| drop(f.place.picture()));
    drop(checked.error.as_ref().and_then(|e| e.picture()));
    if let Some(stages) = &checked.stages {
        outline::targets(&stages.recipe);
        outline::outline(stages);
    }
    outline::findings(&checked);
    checked
}

fn rounds() -> usize {
    std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

#[test]
fn dockerfiles_at_random() {
    let seeds = seeds();
    let ignore = Ignore::read("x\n**/y*\n[a-c]*\n").unwrap();
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut fine, mut odd) = (0, 0);
    for round in 0..rounds() {
        let list: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
        let (one, other) = (random.one(&list), random.one(&list));
        let bytes = changed(&mut random, one, other, &PIECES);
        let start = Instant::now();
        let checked = look(&bytes, &ignore);
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(5),
            "round {round} took {took:?}: {}",
            String::from_utf8_lossy(&bytes)
        );
        fine += usize::from(checked.error.is_none());
        odd += usize::from(!checked.findings.is_empty());
    }
    // The changes leave some inputs right; else nothing deep was tried.
    assert!(fine > rounds() / 20 && odd > rounds() / 20, "{fine} right, {odd} odd");
}

#[test]
fn words_at_random() {
    let seeds = ["a${b:-c}d", "'a' \"b$c\" \\$d", "${a//b/c}${a#*x}", "${a:?${b:+c}}", "<< E\\ f"];
    let seeds: Vec<&[u8]> = seeds.iter().map(|s| s.as_bytes()).collect();
    let env = |name: &str| (name.len() % 2 == 1).then(|| "val/ue.x*?\\".to_owned());
    let mut random = Random(0x0bad_cafe_dead_beef);
    let mut fine = 0;
    for _ in 0..rounds() {
        let (one, other) = (random.one(&seeds), random.one(&seeds));
        let bytes = changed(&mut random, one, other, &PIECES);
        let word = String::from_utf8_lossy(&bytes);
        for escape in ['\\', '`'] {
            fine += usize::from(Expander::new(escape, &env).expand(&word).is_ok());
            // Whatever is kept as it was is the input.
            if let Ok(text) = Expander::raw(escape).text(&word)
                && !word.contains(['$', '\\', '`'])
            {
                assert_eq!(text, word);
            }
            let _ = Expander::quotes_kept(escape).words(&word);
            let _ = Expander::unset_kept(escape).words(&word);
            let _ = Expander::body(escape, &env).text(&word);
        }
    }
    assert!(fine > rounds() / 4, "{fine}");
}

#[test]
fn patterns_at_random() {
    const PIECES: [&[u8]; 16] = [
        b"*",
        b"**",
        b"**/",
        b"/",
        b"!",
        b"\n",
        b"[",
        b"]",
        b"[^a-",
        b"\\",
        b"?",
        b"..",
        b".",
        b"#",
        b" ",
        "é".as_bytes(),
    ];
    let seeds: Vec<&[u8]> = vec![b"a/**/b\n!c*\n", b"# x\n[a-z]?.md\n", b"**/node_modules/\n!**/keep"];
    let paths = ["a", "a/b/c.md", "node_modules/x/keep", "é/ü", ""];
    let mut random = Random(0x5eed_5eed_5eed_5eed);
    let mut out = 0;
    for _ in 0..rounds() {
        let (one, other) = (random.one(&seeds), random.one(&seeds));
        let bytes = changed(&mut random, one, other, &PIECES);
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(ignore) = Ignore::read(&text) {
            out += paths.iter().filter(|p| ignore.is_left_out(Path::new(p))).count();
            ignore.leaves_out_all();
        }
        for deep in [false, true] {
            if let Ok(glob) = Glob::new(text.lines().next().unwrap_or(""), deep) {
                out += paths.iter().filter(|p| glob.matches(p)).count();
            }
        }
    }
    assert!(out > rounds() / 4, "{out}");
}

#[test]
fn hostile_files_end_soon() {
    let many = |text: &str, times: usize| text.repeat(times);
    let stages: String = (0..3000).map(|i| format!("FROM a AS s{i}\n")).collect();
    let chain: String = (1..9000).map(|i| format!("FROM s{} AS s{i}\nENV e{i}=1\n", i - 1)).collect();
    let copies: String = (0..3000).map(|i| format!("COPY --from=s{} /a /\n", i / 2)).collect();
    let globals: String = (1..9000).map(|i| format!("ARG a{i}=$a{}\n", i - 1)).collect();
    let heredocs: String = (0..900).map(|i| format!("<<h{i} ")).collect();
    let bodies: String = (0..900).map(|i| format!("text\nh{i}\n")).collect();
    let list: Vec<(&str, String, Option<&str>)> = vec![
        ("a long line", format!("FROM a\nRUN {}\n", many("x", 70_000)), Some("65535")),
        ("10⁵ instructions", format!("FROM a\n{}", many("RUN x\n", 100_000)), Some("instructions")),
        ("20,000 odd instructions", format!("FROM a\n{}", many("ENV $x y\n", 19_990)), None),
        ("words that are all odd", format!("FROM a\nCOPY {} /\n", many("$x \\\n", 60_000)), None),
        ("nested variables", format!("FROM a\nENV v={}\n", many("${q:-", 13_000)), Some("nested")),
        ("nested and closed", format!("FROM a\nENV v={}x{}\n", many("${q:-", 60), many("}", 60)), None),
        ("doubling", format!("FROM a\nENV v=xxxxxxxxxx\n{}", many("ENV v=$v$v\n", 19_000)), Some("grows")),
        (
            "a large value again and again",
            format!("FROM a\nENV v={}\n{}", many("x", 60_000), many("LABEL l=$v$v$v\n", 19_000)),
            Some("too much work"),
        ),
        (
            "patterns",
            format!(
                "FROM a\nENV v={}\n{}",
                many("x", 2000),
                many(&format!("LABEL l=${{v//{}y/z}}\n", many("*x", 900)), 1000)
            ),
            Some("too much work"),
        ),
        (
            "patterns before FROM",
            format!(
                "ARG v={}\n{}FROM a\n",
                many("x", 2000),
                many(&format!("ARG l=${{v//{}y/z}}\n", many("*x", 100)), 9000)
            ),
            Some("too much work"),
        ),
        ("a continuation of 1 MiB", format!("FROM a\nRUN {}x\n", many("word \\\n", 150_000)), None),
        ("blank lines inside", format!("FROM a\nRUN a \\\n{}b\n", many("\n", 300_000)), None),
        (
            "comments",
            format!("FROM a\n{}ARG {}\n", many("# x y\n", 60_000), many("a=1 ", 15_000)),
            Some("too much work"),
        ),
        ("stages", format!("{stages}{copies}"), None),
        ("stages of stages", format!("FROM a AS s0\n{chain}"), Some("too much work")),
        ("ARGs of ARGs", format!("ARG a0=1\n{globals}FROM a\nARG a8999\n"), None),
        ("here-documents", format!("FROM a\nCOPY {heredocs}/\n{bodies}"), None),
        (
            "too many here-documents",
            format!("FROM a\nCOPY {}/\n{}", many("<<h ", 1001), many("h\n", 1001)),
            Some("here-documents"),
        ),
        ("ports", format!("FROM a\n{}", many("EXPOSE 1-65535 2-65535 3-65535\n", 19_000)), None),
        (
            "triggers",
            format!("FROM a AS s0\n{}{}", many("ONBUILD LABEL a=b\n", 9000), many("FROM s0\n", 9000)),
            Some("too much work"),
        ),
        ("triggers of triggers", many("ONBUILD ", 8000), Some("ONBUILD")),
        ("brackets", format!("FROM a\nCMD {}\n", many("[", 60_000)), None),
        ("flags", format!("FROM a\nCOPY {} a /\n", many("--exclude=x ", 5000)), None),
        ("mounts", format!("FROM a\nRUN {} a\n", many("--mount=target=/x,type=cache,id=$a ", 1800)), None),
        ("quotes", format!("FROM a\nENV a={}\n", many("\"'", 30_000)), None),
        ("NUL bytes", format!("FROM a\nLABEL a={}\nRUN [\"a\\u0000\"]\n", many("\0", 1000)), Some("NUL")),
        (
            "near names",
            format!("FROM a\nENV {}\nCOPY {}/\n", many("abcdefgh=1 ", 5000), many("$abcdefgi ", 6000)),
            None,
        ),
    ];
    let ignore = Ignore::default();
    for (name, text, error) in list {
        let start = Instant::now();
        let checked = look(text.as_bytes(), &ignore);
        let took = start.elapsed();
        println!("{name}: {took:?}, {} + {} findings", checked.findings.len(), checked.left_out);
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
        let shown = checked.error.map(|e| e.to_string());
        match error {
            None => assert_eq!(shown, None, "{name}"),
            Some(part) => assert!(shown.as_deref().is_some_and(|s| s.contains(part)), "{name}: {shown:?}"),
        }
    }
    let bytes = [b"FROM a\nLABEL a=".as_slice(), &[0xff, 0xfe], b"\n"].concat();
    assert!(look(&bytes, &ignore).error.unwrap().to_string().contains("not UTF-8"));
    for (name, text) in [
        ("many patterns", many("*a*b*c\n", 100_000)),
        ("long patterns", many(&format!("{}b\n", many("*a", 1900)), 200)),
    ] {
        let ignore = Ignore::read(&text).unwrap();
        let start = Instant::now();
        let copies = format!("FROM a\n{}", many(&format!("COPY {} /\n", many("a", 1000)), 1000));
        assert!(look(copies.as_bytes(), &ignore).error.is_some(), "{name}");
        assert!(start.elapsed() < Duration::from_secs(20), "{name} took {:?}", start.elapsed());
    }
}
