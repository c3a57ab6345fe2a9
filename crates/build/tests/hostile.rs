//! Recipes and contexts that are made to be a burden.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{World, describe};

/// Far more than any of these needs, also on a machine that is busy.
const BOUND: Duration = Duration::from_secs(60);

fn bounded<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    result
}

#[test]
fn instructions_without_end() {
    let world = World::new();
    let many = |count: usize| format!("FROM scratch\n{}", "LABEL a=b\n".repeat(count));
    let error = bounded(|| world.build(&many(100_000)).unwrap_err());
    assert!(error.to_string().contains("more than the 20000 instructions"), "{error}");
    let image = bounded(|| world.image(&many(10_000)));
    assert_eq!(image.config.history.len(), 10_000);
    let chain: String = (1..200).map(|i| format!("ENV A{i}=$A{}$A{}\n", i - 1, i - 1)).collect();
    let error = bounded(|| world.build(&format!("FROM scratch\nENV A0=x\n{chain}")).unwrap_err());
    assert!(describe(&error).contains("Dockerfile:"), "{error}");
}

#[test]
fn stages_without_end() {
    let world = World::new();
    let mut chain = "FROM scratch AS s0\n".to_owned();
    for i in 1..1000 {
        chain.push_str(&format!("FROM s{} AS s{i}\nLABEL l{i}=x\n", i - 1));
    }
    assert_eq!(bounded(|| world.image(&chain)).config.config.labels.len(), 999);
    // Each begins with the next one, and the last with the first.
    let circle: String = (0..1000).map(|i| format!("FROM s{} AS s{i}\n", (i + 1) % 1000)).collect();
    let error = bounded(|| world.build(&circle).unwrap_err());
    assert!(error.to_string().contains("Dockerfile:"), "{error}");
    let same: String = "FROM scratch AS a\n".to_owned() + &"FROM a AS a\nLABEL x=y\n".repeat(999);
    bounded(|| world.image(&same));
    let copies: String =
        (1..1000).map(|i| format!("FROM scratch AS s{i}\nCOPY --from=s{} / /\n", i - 1)).collect();
    bounded(|| world.image(&format!("FROM scratch AS s0\n{copies}")));
}

#[test]
fn globs_that_explode() {
    let world = World::new();
    let deep = "a/".repeat(60);
    world.write(&format!("{deep}y"), "x");
    for pattern in [
        "**/".repeat(60) + "y",
        "**/a/".repeat(25) + "y",
        "*a*a*a*a*a*a*a*a*a*a*a*".to_owned(),
        "[a-z]*/".repeat(50),
    ] {
        let error = bounded(|| world.build(&format!("FROM scratch\nCOPY --parents {pattern} /x/\n")));
        assert!(error.is_ok(), "{pattern}: {}", describe(&error.unwrap_err()));
    }
    let list = world.list(&world.image(&format!("FROM scratch\nCOPY --parents {}y /x/\n", "**/".repeat(60))));
    assert!(list.contains_key(&format!("/x/{deep}y")));
    let patterns: String = (0..300).map(|i| format!("**/{}x{i}*\n!**/keep{i}\n", "*a".repeat(20))).collect();
    world.write("Dockerfile.dockerignore", &patterns);
    bounded(|| world.image("FROM scratch\nCOPY . /x/\n"));
}

#[test]
fn contexts_that_lead_round_and_wait() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let context = world.context();
    world.write("d/f", "x");
    symlink("..", context.join("d/up")).unwrap();
    symlink("self", context.join("d/self")).unwrap();
    symlink("two", context.join("d/one")).unwrap();
    symlink("one", context.join("d/two")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, context.join("d/fifo"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    let list = bounded(|| world.list(&world.image("FROM scratch\nCOPY d /d/\n")));
    assert_eq!(list["/d/up"], "-> ..");
    assert_eq!(list["/d/self"], "-> self");
    assert!(list["/d/fifo"].contains("Fifo"));
    for source in ["d/self", "d/one/x", "d/self/*"] {
        let error = bounded(|| world.build(&format!("FROM scratch\nCOPY {source} /x/\n")));
        if let Err(e) = error {
            assert!(e.to_string().contains("Dockerfile:2:"), "{source}: {e}");
        }
    }
    // Patterns that would have to be waited for.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        context.join(".dockerignore"),
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .unwrap();
    let error = bounded(|| world.build("FROM scratch\nCOPY d /d/\n").unwrap_err());
    assert!(error.to_string().contains(".dockerignore"), "{error}");
}
