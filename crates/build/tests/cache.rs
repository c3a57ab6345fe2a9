//! What changes a layer's key and what does not.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use isles_build::BuildOptions;
use support::World;

const TEXT: &str = "FROM base AS one\nARG A=1\nENV E=1\nCOPY --chown=1 dir /dir\nFROM base\nCOPY --from=one /dir /got\nLABEL l=1\n";

fn world() -> World {
    let world = World::new();
    world.write("dir/f", "x").write("dir/sub/g", "y").write("other", "z");
    world
}

#[test]
fn a_second_build_makes_nothing() {
    let world = world();
    let first = world.build(TEXT).unwrap();
    assert!(!first.cached);
    let second = world.build(TEXT).unwrap();
    assert!(second.cached);
    assert_eq!(first.image.id(), second.image.id());
    assert_eq!(first.image.manifest_digest, second.image.manifest_digest);
    let anew =
        world.build_with("Dockerfile", TEXT, &BuildOptions { no_cache: true, ..world.options() }).unwrap();
    assert!(!anew.cached);
    assert_eq!(anew.image.config.rootfs, first.image.config.rootfs, "the same files give the same layers");
}

#[test]
fn stages_are_made_anew_by_name() {
    const TEXT: &str = "FROM scratch AS One\nCOPY other /\nFROM scratch AS two\nCOPY dir /\n\
                        FROM two\nCOPY --from=one /other /\n";
    let world = world();
    let steps = |filter: &[&str]| {
        let no_cache_filter = filter.iter().map(|f| f.to_string()).collect();
        let options = BuildOptions { no_cache_filter, every_step: true, ..world.options() };
        world.build_with("Dockerfile", TEXT, &options).unwrap().cached
    };
    assert!(!steps(&[]));
    assert!(steps(&[]));
    for (filter, cached) in
        [(&["one"][..], false), (&["none", "TWO"], false), (&["none"], true), (&["2"], true)]
    {
        assert_eq!(steps(filter), cached, "{filter:?}");
    }
}

#[test]
fn what_counts() {
    type Change = fn(&World);
    let touch = |w: &World| {
        let file = std::fs::File::options().write(true).open(w.context().join("dir/f")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    };
    for (what, change, cached) in [
        ("nothing", (|_| {}) as Change, true),
        ("a time", touch, true),
        (
            "a file that is not copied",
            |w| {
                w.write("other", "changed");
            },
            true,
        ),
        (
            "the same content again",
            |w| {
                w.write("dir/f", "x");
            },
            true,
        ),
        (
            "content",
            |w| {
                w.write("dir/f", "changed");
            },
            false,
        ),
        (
            "a new file",
            |w| {
                w.write("dir/new", "");
            },
            false,
        ),
        (
            "a mode",
            |w| {
                std::fs::set_permissions(w.context().join("dir/f"), std::fs::Permissions::from_mode(0o600))
                    .unwrap()
            },
            false,
        ),
        ("a name", |w| std::fs::rename(w.context().join("dir/f"), w.context().join("dir/h")).unwrap(), false),
        (
            "a kind",
            |w| {
                std::fs::remove_file(w.context().join("dir/f")).unwrap();
                std::os::unix::fs::symlink("x", w.context().join("dir/f")).unwrap();
            },
            false,
        ),
        ("a file that goes", |w| std::fs::remove_file(w.context().join("dir/sub/g")).unwrap(), false),
        (
            "an ignored file",
            |w| {
                w.write("dir/.swp", "").write("Dockerfile.dockerignore", "**/.swp");
            },
            true,
        ),
    ] {
        let world = world();
        world.build(TEXT).unwrap();
        change(&world);
        assert_eq!(world.build(TEXT).unwrap().cached, cached, "{what}");
    }
}

#[test]
fn what_counts_in_a_recipe() {
    for (what, from, to, cached) in [
        ("a comment", "FROM base\nCOPY", "FROM base\n# why\nCOPY", true),
        ("white space", "LABEL l=1", "LABEL   l=1", true),
        ("a label", "LABEL l=1", "LABEL l=2", true),
        ("an ARG that is not used", "ARG A=1", "ARG A=2", true),
        ("an owner", "--chown=1", "--chown=2", false),
        ("a destination", "/dir\nFROM", "/dirs/\nFROM", false),
        ("a mode", "--chown=1", "--chown=1 --chmod=700", false),
    ] {
        let world = world();
        world.build(TEXT).unwrap();
        let text = TEXT.replacen(from, to, 1);
        assert_ne!(text, TEXT);
        let built = world.build(&text);
        // A destination that moved is not where the second stage looks for it.
        assert_eq!(built.is_ok_and(|b| b.cached), cached, "{what}");
    }
}

#[test]
fn only_what_changed_is_made_again() {
    let world = world();
    if !world.can_run() {
        return;
    }
    let text = "FROM base\nRUN date +%N > /stamp; echo\nCOPY other /o\nRUN cat /o > /copy\n";
    let stamp = |world: &World| world.list(&world.image(text))["/stamp"].clone();
    let before = stamp(&world);
    world.write("other", "new");
    assert_eq!(stamp(&world), before, "what stands before the change stays");
    let list = world.list(&world.image(text));
    assert!(list["/copy"].contains("new"));
    // A step that runs again and gives the same does not disturb those after it.
    let text =
        "FROM base\nARG X\nRUN echo $X > /dev/null; echo same > /same\nRUN date +%N%N%N > /stamp; echo\n";
    let with = |x: &str| {
        let built = world.build_with("Dockerfile", text, &world.args(&[("X", x)])).unwrap();
        let same = world.list(&built.image);
        (same["/stamp"].clone(), built.cached)
    };
    let (one, _) = with("1");
    let (again, cached) = with("1");
    assert!(cached);
    assert_eq!(one, again);
}

#[test]
fn arguments_and_the_environment_count_for_run() {
    let world = world();
    if !world.can_run() {
        return;
    }
    let base = "FROM base\nARG A=1\nARG B\nENV E=1\nRUN echo $A > /out\n";
    for (what, text, args, cached) in [
        ("nothing", base.to_owned(), &[][..], true),
        ("the value of an ARG", base.to_owned(), &[("A", "2")], false),
        ("a default", base.replace("A=1", "A=2"), &[], false),
        ("the environment", base.replace("E=1", "E=2"), &[], false),
        ("a proxy", base.to_owned(), &[("HTTP_PROXY", "x")], true),
        ("an undeclared argument", base.to_owned(), &[("NOWHERE", "x")], true),
        ("the user", base.replace("RUN", "USER 1000\nRUN"), &[], false),
        ("the folder", base.replace("RUN", "WORKDIR /tmp\nRUN"), &[], false),
        ("the shell", base.replace("RUN", "SHELL [\"/bin/sh\", \"-ec\"]\nRUN"), &[], false),
        ("a label", base.replace("RUN", "LABEL a=b\nRUN"), &[], true),
        ("the network", base.replace("RUN ", "RUN --network=none "), &[], false),
    ] {
        let world = self::world();
        world.build(base).unwrap();
        let built = world.build_with("Dockerfile", &text, &world.args(args));
        assert_eq!(built.is_ok_and(|b| b.cached), cached, "{what}");
    }
}

#[test]
fn a_base_of_the_same_layers_keeps_the_cache() {
    let world = world();
    world.build(TEXT).unwrap();
    let store = world.engine.store();
    let lease = store.lease().unwrap();
    let base = store.resolve("base", None).unwrap();
    let mut config = base.config.clone();
    config.config.labels.insert("renewed".into(), "yes".into());
    store.assemble(&lease, &config, &base.manifest.layers, &["base".parse().unwrap()]).unwrap();
    let built = world.build(TEXT).unwrap();
    assert!(built.cached);
    assert_eq!(built.image.config.config.labels["renewed"], "yes");
}

#[test]
fn a_layer_that_is_gone_is_made_again() {
    let world = world();
    let first = world.build(TEXT).unwrap();
    let layers = world.engine.store().root().join("layers");
    for diff_id in &first.image.config.rootfs.diff_ids[1..] {
        let _ = std::fs::remove_file(world.engine.store().blob_path(diff_id));
        for entry in std::fs::read_dir(&layers).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with(diff_id.hex()) {
                isles_store::remove_tree(&path).unwrap();
            }
        }
    }
    let again = world.build(TEXT).unwrap();
    assert!(!again.cached);
    assert!(world.list(&again.image).contains_key("/got/f"));
}

#[test]
fn layers_depend_on_what_is_copied_and_not_on_when() {
    let world = world();
    let text = "FROM base\nWORKDIR /new/folder\nCOPY dir /also/new/\n";
    let rootfs = || {
        let options = BuildOptions { no_cache: true, ..world.options() };
        world.build_with("Dockerfile", text, &options).unwrap().image.config.rootfs
    };
    let first = rootfs();
    // Times in layers are whole seconds.
    let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    while SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() == second {
        std::thread::yield_now();
    }
    assert_eq!(rootfs(), first);
}

#[test]
fn a_layer_of_its_own_stays_when_the_base_changes() {
    let world = world();
    world.write("a", "x");
    let layers = |base: &str, flag: &str| {
        let image = world.image(&format!("FROM base\n{base}\nCOPY {flag} --chown=5:6 a /deep/er/\n"));
        image.config.rootfs.diff_ids.last().unwrap().clone()
    };
    let first = layers("COPY <<E /one\n1\nE", "--link");
    assert_eq!(layers("COPY <<E /one\n2\nE", "--link"), first);
    assert_eq!(layers("COPY <<E /deep\nfile\nE", "--link"), first, "it does not look at what is below");
    let built = world.build("FROM base\nCOPY <<E /one\n3\nE\nCOPY --link --chown=5:6 a /deep/er/\n").unwrap();
    assert!(!built.cached);
    assert!(world.build("FROM base\nCOPY <<E /deep\nfile\nE\nCOPY --chown=5:6 a /deep/er/\n").is_err());
}
