//! The examples of the project, as a person runs them: from a recipe to a running program, with packages from the
//! machine's own Debian mirror.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::path::{Path, PathBuf};

use world::{Said, Who, World};

fn example(world: &World, name: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    let to = world.path("home").join(name);
    // The ordinary user may not be able to reach the folder of the project.
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    world.give("home");
    to
}

/// Why a first bootstrap cannot work on this machine, if it cannot.
fn no_mirror(said: &Said) -> Option<String> {
    if !Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        return Some("no Debian keyring on this machine (package debian-archive-keyring)".into());
    }
    let unreachable = ["no mirror", "cannot reach", "does not resolve"].iter().any(|w| said.err.contains(w));
    (said.code == 125 && unreachable).then(|| said.err.clone())
}

/// As root, where this is root, and as an ordinary user with one ID.
fn both(test: impl Fn(&World)) {
    for who in [Who::Root, Who::Ordinary] {
        if who == Who::Root && !World::is_root() {
            println!("skip: not root, so only as the user who runs the tests");
            continue;
        }
        println!("as {who:?}");
        let Some(world) = World::new(who) else { return };
        test(&world);
    }
}

#[test]
fn bootstrap_hello() {
    both(|world| {
        let folder = example(world, "hello");
        let recipe = folder.join("hello.def").display().to_string();
        let said = world.isles(&["run", "--rm", &recipe]);
        if let Some(reason) = no_mirror(&said) {
            println!("skip: {reason}");
            return;
        }
        assert_eq!(said.fine(), "Hello, World!\n");
        // With nothing changed nothing is said, and nothing is done.
        let said = world.isles(&["run", "--rm", &recipe]);
        assert_eq!((said.out.as_str(), said.err.as_str(), said.code), ("Hello, World!\n", "", 0));
        // Only what was changed is done again.
        let text = fs::read_to_string(&recipe).unwrap().replace("Hello, World!", "Hello again!");
        fs::write(&recipe, text).unwrap();
        let said = world.isles(&["run", "--rm", &recipe]);
        assert_eq!(said.out, "Hello again!\n");
        assert!(!said.err.contains("configuring"), "{said:?}");
        // The same as a Dockerfile, on an image of ours.
        let dockerfile = folder.join("Dockerfile").display().to_string();
        world.isles(&["build", "-t", "course/hello", &recipe]).fine();
        let words = ["run", "--rm", "--build-arg", "BASE=course/hello", "--entrypoint", "", &dockerfile];
        // CMD of the Dockerfile, which an entrypoint of the caller's would leave out.
        world.isles(&words).fails(125, &["no command"]);
        let words = ["run", "--rm", "--build-arg", "BASE=course/hello", &dockerfile];
        assert_eq!(world.isles(&words).fine(), "Hello again!\n", "the entrypoint of the base is in force");
        // A Debian that works: everything configured, and more can be installed.
        let suite = "debian://bookworm";
        assert_eq!(world.isles(&["run", "--rm", suite, "dpkg", "--audit"]).fine(), "");
        let script = "apt-get update -q >/dev/null && apt-get install -y -q hello >/dev/null 2>&1 && hello";
        let out = world.isles(&["run", "--rm", suite, "sh", "-c", script]).fine();
        assert_eq!(out, "Hello, world!\n");
    });
}

#[test]
fn bootstrap_is_reproducible() {
    if !World::is_root() {
        println!("skip: not root");
        return;
    }
    let Some(world) = World::new(Who::Root) else { return };
    let id = |store: &str| {
        let at = world.path(store).display().to_string();
        let words =
            ["--root", &at, "-q", "run", "--rm", "debian://bookworm?include=make", "make", "--version"];
        let said = world.isles(&words);
        if let Some(reason) = no_mirror(&said) {
            println!("skip: {reason}");
            return String::new();
        }
        assert!(said.fine().starts_with("GNU Make"));
        let ids = world.isles(&["--root", &at, "images", "-aq", "--no-trunc"]).fine();
        assert_eq!(ids.lines().count(), 1, "{ids}");
        ids
    };
    let (one, other) = (id("one"), id("other"));
    assert_eq!(one, other, "two stores on the same state of the archive");
}

#[test]
fn bootstrap_halcon_ranks_the_wines() {
    both(|world| {
        let recipe = example(world, "halcon").join("halcon.def").display().to_string();
        let said = world.isles(&["run", "--rm", "--host-ca", &recipe]);
        let unreachable = ["Temporary failure in name resolution", "NewConnectionError"];
        if said.code == 125 && unreachable.iter().any(|word| said.err.contains(word)) {
            println!("skip: the Python package index cannot be reached");
            return;
        }
        if let Some(reason) = no_mirror(&said) {
            println!("skip: {reason}");
            return;
        }
        let out = said.fine();
        let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.first().map(Vec::as_slice), Some(&["Ranking", "Identifier", "Score"][..]), "{out}");
        let nearest = ["wine1", "wine2", "wine3"];
        assert!(rows[1..4].iter().all(|row| nearest.contains(&row[1]) && row[2] == "0"), "{out}");
        let published = [
            ("wine21", "2.77663e-05"),
            ("wine30", "0.000629879"),
            ("wine23", "0.00252617"),
            ("wine49", "0.00318536"),
            ("wine57", "0.00456123"),
        ];
        for (row, (name, score)) in rows[4..].iter().zip(published) {
            assert_eq!((row[1], row[2]), (name, score), "{out}");
        }
        // The host's authorities were lent, not given.
        let script = "ls /dev/ca-certificates.crt; env | grep -c CERT";
        let said: Said = world.isles(&["run", "--rm", "--entrypoint", "sh", &recipe, "-c", script]);
        assert_eq!(said.out, "0\n", "{said:?}");
        // Another table, as an argument.
        let words = ["run", "--rm", &recipe, "/nonexistent.csv"];
        world.isles(&words).fails(1, &["/nonexistent.csv"]);
    });
}
