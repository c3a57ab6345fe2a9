//! `isles builder`, and caches that go from one builder to another.
#![allow(clippy::unwrap_used)]

mod shelf;
mod world;

use std::fs;
use std::path::Path;

use serde_json::Value;
use shelf::Registry;
use world::{Said, World, everyone};

/// A state with the image `test`, and a folder with a recipe.
fn prepare(world: &World, state: &str, dockerfile: &str) {
    let context = world.path("home/context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    fs::write(context.join("f"), "text").unwrap();
    // The layer is the same whenever it is made.
    let file = fs::File::options().write(true).open(context.join("f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
    world.give("home/context");
    isles(world, state, &["load", "-q", "-i", &world.source()]).fine();
}

fn isles(world: &World, state: &str, words: &[&str]) -> Said {
    let root = world.path("home").join(state);
    let root = root.to_str().unwrap().to_owned();
    world.isles(&[&["--root", root.as_str()], words].concat())
}

/// The list that a command prints as JSON.
fn rows(said: Said) -> Vec<Value> {
    serde_json::from_str(&said.fine()).unwrap()
}

fn out(world: &World, state: &str, image: &str) -> String {
    isles(world, state, &["run", "--rm", image, "cat", "/out"]).fine()
}

#[test]
fn cache_mounts_and_records() {
    everyone(|world| {
        let text = "FROM test\nRUN --mount=type=cache,target=/kept,id=mine echo x >> /kept/log; cat /kept/log > /out\n";
        prepare(world, "one", text);
        let build = |state: &str, more: &[&str]| {
            isles(world, state, &[&["build", "-q", "-t", "made"], more, &["context"]].concat()).fine()
        };
        build("one", &[]);
        assert_eq!(out(world, "one", "made"), "x\n");
        let listed = rows(isles(world, "one", &["builder", "df", "--format", "json"]));
        let of = |kind: &str| listed.iter().filter(|r| r["Type"] == kind).collect::<Vec<_>>();
        let [mount] = of("exec.cachemount")[..] else { panic!("{listed:?}") };
        assert_eq!((&mount["Description"], &mount["InUse"]), (&"mine".into(), &false.into()));
        assert!(mount["Bytes"].as_u64().unwrap() >= 4096, "{mount}");
        let step = of("regular").into_iter().find(|r| r["Description"].as_str().unwrap().contains("RUN"));
        assert_eq!(step.unwrap()["Shared"], true, "an image stands on it");
        let table = isles(world, "one", &["builder", "df", "--filter", "type=exec.cachemount"]).fine();
        assert!(table.contains("mine") && !table.contains("RUN") && table.contains("\nTotal: "), "{table}");

        // What it holds goes to another machine.
        isles(world, "one", &["builder", "cache", "export", "mine", "kept.tar"]).fine();
        isles(world, "one", &["builder", "cache", "export", "nobodys", "x"]).fails(1, &["'nobodys'"]);
        prepare(world, "two", text);
        isles(world, "two", &["builder", "cache", "import", "mine", "kept.tar"]).fine();
        build("two", &[]);
        assert_eq!(out(world, "two", "made"), "x\nx\n");
        let short = &mount["ID"].as_str().unwrap()[..12];
        isles(world, "two", &["builder", "cache", "export", short, "again.tar"]).fine();
        fs::write(world.path("home/bad.tar"), "no archive at all, but long enough to be looked at").unwrap();
        isles(world, "two", &["builder", "cache", "import", "mine", "bad.tar"]).fails(1, &["archive"]);
        build("two", &["--no-cache"]);
        assert_eq!(out(world, "two", "made"), "x\nx\nx\n", "a bad archive changes nothing");

        // Nothing is young enough to go, then the mounts go, then everything.
        let prune = |more: &[&str]| isles(world, "two", &[&["builder", "prune", "-f"], more].concat()).fine();
        assert_eq!(prune(&["--filter", "until=1h"]), "Total reclaimed space: 0B\n");
        assert_eq!(prune(&[]), "Total reclaimed space: 0B\n", "it is within its budget");
        let would = prune(&["--filter", "type=exec.cachemount", "--dry-run"]);
        assert!(would.contains("exec.cachemount mine: ") && would.contains("Would reclaim: "), "{would}");
        let went = prune(&["--filter", "type=exec.cachemount"]);
        assert!(went.contains("exec.cachemount mine: "), "{went}");
        assert!(isles(world, "two", &["build", "context"]).err.contains("nothing changed"));
        let went = prune(&["--all"]);
        assert!(went.contains(" regular "), "{went}");
        assert_eq!(rows(isles(world, "two", &["builder", "df", "--format", "json"])), Vec::<Value>::new());
        assert_eq!(out(world, "two", "made"), "x\nx\nx\n", "the image stays");
        build("two", &[]);
        assert_eq!(out(world, "two", "made"), "x\n", "the step ran again, on an empty mount");
        isles(world, "two", &["builder", "prune", "--filter", "color=red"]).fails(1, &["'color'"]);
    });
}

#[test]
fn the_least_recently_used_goes_first() {
    everyone(|world| {
        prepare(
            world,
            "one",
            "FROM test\nRUN dd if=/dev/zero of=/big bs=1k count=3000\nRUN echo 1 > /small\n",
        );
        isles(world, "one", &["build", "-q", "context"]).fine();
        fs::write(
            world.path("home/context/Dockerfile"),
            "FROM test\nRUN dd if=/dev/zero of=/other bs=1k count=3000\n",
        )
        .unwrap();
        isles(world, "one", &["build", "-q", "context"]).fine();
        // Images without a name do not hold their layers.
        isles(world, "one", &["prune", "-f"]).fine();
        let went = isles(world, "one", &["builder", "prune", "--max-used-space", "8m"]).fine();
        assert!(went.contains("/big") && !went.contains("/other"), "{went}");
        let left = isles(world, "one", &["builder", "df", "--no-trunc"]).fine();
        assert!(left.contains("/other") && !left.contains("/big"), "{left}");
    });
}

#[test]
fn a_damaged_cache_costs_its_steps_only() {
    everyone(|world| {
        prepare(world, "one", "FROM test\nCOPY f /f\nRUN cat /f > /out\n");
        let cache = world.path("home/cache").display().to_string();
        let (to, from) = (format!("type=local,dest={cache}"), format!("type=local,src={cache}"));
        isles(world, "one", &["build", "-q", "--cache-to", &to, "context"]).fine();
        // Of the blobs of layers one is changed, and one goes.
        let blobs = world.path("home/cache/blobs/sha256");
        let gzip = |path: &Path| fs::read(path).unwrap().starts_with(&[0x1f, 0x8b]);
        let mut layers: Vec<_> = fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).collect();
        layers.retain(|path| gzip(path));
        let [first, second] = layers.as_slice() else { panic!("{layers:?}") };
        let mut bytes = fs::read(first).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(first, bytes).unwrap();
        fs::remove_file(second).unwrap();
        prepare(world, "two", "FROM test\nCOPY f /f\nRUN cat /f > /out\n");
        let said = isles(world, "two", &["build", "-t", "made", "--cache-from", &from, "context"]);
        assert_eq!(said.err.matches("a layer of the imported cache: left out").count(), 2, "{said:?}");
        said.fine();
        assert_eq!(out(world, "two", "made"), "text");
        isles(world, "two", &["verify"]).fine();
    });
}

/// Files below a folder that hold these bytes.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let (mut todo, mut out) = (vec![folder.to_owned()], Vec::new());
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|w| w == text.as_bytes()) {
                out.push(path.display().to_string());
            }
        }
    }
    out
}

#[test]
fn a_secret_is_nowhere() {
    everyone(|world| {
        let text = "FROM test\nRUN --mount=type=secret,id=word --mount=type=secret,id=word,env=WORD \
                    test -n \"$WORD\" && wc -c < /run/secrets/word > /out\n";
        prepare(world, "one", text);
        let secret = "s3cr3t-of-the-test-6d1f";
        fs::write(world.path("home/word"), secret).unwrap();
        world.give("home/word");
        let cache = format!("type=local,dest={}", world.path("home/cache").display());
        let words = [
            "build",
            "-t",
            "made",
            "--secret",
            "id=word,src=word",
            "--cache-to",
            &cache,
            "--metadata-file",
            "meta",
            "--progress",
            "plain",
            "-o",
            "type=oci,dest=layout,tar=false,compression=uncompressed",
            "--load",
            "context",
        ];
        let said = isles(world, "one", &words);
        assert!(!said.out.contains(secret) && !said.err.contains(secret), "{said:?}");
        said.fine();
        assert_eq!(out(world, "one", "made").trim(), secret.len().to_string());
        fs::remove_file(world.path("home/word")).unwrap();
        assert_eq!(holding(&world.path("home"), secret), Vec::<String>::new());
        // The search finds what is there.
        fs::write(world.path("home/there"), secret).unwrap();
        assert_eq!(holding(&world.path("home"), secret).len(), 1);
    });
}

/// Steps whose output nobody can guess: who has the same has it from a cache.
const UNIQUE: &str = "\
FROM test AS tools
RUN cat /proc/sys/kernel/random/uuid > /tool
FROM test
COPY f /f
COPY --from=tools /tool /tool
RUN cat /tool /proc/sys/kernel/random/uuid > /out
";

#[test]
fn a_cache_goes_to_another_builder() {
    let Some(registry) = Registry::start(false) else { return };
    everyone(|world| {
        let here = |name: &str| format!("{}/{name}:{:?}", registry.address, world.who).to_lowercase();
        let folder = world.path("home/cache").display().to_string();
        for (to, from, all) in [
            (format!("type=local,dest={folder},mode=max"), format!("type=local,src={folder}"), true),
            (
                format!("type=local,dest={folder},tag=least,compression=zstd"),
                format!("type=local,src={folder},tag=least"),
                false,
            ),
            (format!("type=registry,ref={},mode=max", here("max")), here("max"), true),
            (
                format!("type=registry,ref={}", here("min")),
                format!("type=registry,ref={}", here("min")),
                false,
            ),
            ("type=inline".to_owned(), here("made"), false),
        ] {
            for state in ["one", "two"] {
                let _ = isles_store::remove_tree(&world.path("home").join(state));
                prepare(world, state, UNIQUE);
            }
            let name = here("made");
            let build = |state: &str, more: &[&str]| {
                isles(
                    world,
                    state,
                    &[&["build", "--progress", "plain", "-t", &name], more, &["context"]].concat(),
                )
            };
            build("one", &["--cache-to", &to, "--push"]).fine();
            let made = out(world, "one", &name);
            let said = build("two", &["--cache-from", &from]);
            // Without the stage's own layers the first RUN is run again, and COPY gives another layer.
            if all {
                let mut steps = said.err.lines().filter(|l| l.starts_with('['));
                assert!(steps.all(|l| l.ends_with(": cached")), "{to}: {said:?}");
                assert_eq!(out(world, "two", &name), made, "{to}");
                let again = build("two", &[]);
                assert!(again.err.contains("nothing changed"), "{to}: {again:?}");
            } else {
                assert!(said.err.contains("COPY f /f: cached"), "{to}: {said:?}");
            }
            said.fine();
        }
        // What cannot be had is no failure; another stage's image without a cache is said.
        let nothing = format!("type=local,src={folder},tag=none");
        let said = isles(
            world,
            "two",
            &["build", "--cache-from", &nothing, "--cache-from", &here("none"), "context"],
        );
        assert!(said.err.contains("has no cache 'none'") && said.err.contains("left out"), "{said:?}");
        said.fine();
        isles(world, "two", &["build", "--cache-to", "type=gha", "context"]).fails(2, &["gha"]);
    });
}

#[test]
fn progress_for_programs() {
    everyone(|world| {
        prepare(world, "one", "FROM test\nCOPY f /f\nRUN echo first; printf second; exit 0\n");
        let build = |more: &[&str]| {
            let words = [&["build", "--progress", "json"], more, &["context"]].concat();
            let said = isles(world, "one", &words);
            let lines: Vec<Value> = said.err.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
            (said, lines)
        };
        let (said, events) = build(&[]);
        assert_eq!(said.err.lines().count(), events.len(), "{said:?}");
        said.fine();
        let of = |events: &[Value], name: &str, what: &str| {
            let is = |e: &&Value| e["event"] == what && e["name"].as_str().is_some_and(|n| n.contains(name));
            events.iter().find(is).cloned().unwrap_or_else(|| panic!("no {what} of {name} in {events:?}"))
        };
        let (start, done) = (of(&events, "RUN", "start"), of(&events, "RUN", "done"));
        assert_eq!(start["id"], done["id"]);
        assert!(start["time"].as_str().unwrap().ends_with('Z') && done["seconds"].as_f64().unwrap() > 0.0);
        assert_eq!((&done["result"], &done["cached"]), (&"done".into(), &false.into()));
        let text: String = events
            .iter()
            .filter(|e| e["event"] == "output" && e["id"] == done["id"])
            .map(|e| e["text"].as_str().unwrap())
            .collect();
        assert_eq!(text, "first\nsecond");
        let (said, events) = build(&[]);
        said.fine();
        assert_eq!(of(&events, "COPY", "done")["cached"], true);
        assert_eq!(of(&events, "RUN", "done")["cached"], true);
        // The output of a step that fails is shown, whatever is shown otherwise.
        fs::write(world.path("home/context/Dockerfile"), "FROM test\nRUN echo why; false\n").unwrap();
        for (shown, words) in
            [("quiet", &["why"][..]), ("plain", &["why", ": failed ("]), ("json", &["why", "\"failed\""])]
        {
            isles(world, "one", &["build", "--progress", shown, "context"]).fails(1, words);
        }
    });
}
