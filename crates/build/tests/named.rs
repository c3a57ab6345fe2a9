//! Named contexts in the places where a recipe uses names.

#![allow(clippy::unwrap_used)]

mod support;

use isles_build::BuildOptions;
use isles_build::named::NamedContexts;
use isles_spec::Quiet;
use isles_store::ExportFormat;
use support::World;

#[test]
fn a_context_takes_the_place_of_a_stage_and_of_an_image() {
    let world = World::new();
    let folder = world.dir.path().join("more");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    for (path, text) in [("a", "A"), ("sub/b", "B"), ("left-out", "x"), (".dockerignore", "left-out\n")] {
        std::fs::write(folder.join(path), text).unwrap();
    }
    // Another image, as an OCI layout.
    let other = world.image("FROM base\nCOPY --from=base /etc/group /marker\n");
    let layout = world.dir.path().join("layout");
    let store = world.engine.store();
    store.export_oci_dir(&[(other.clone(), vec!["other:1".parse().unwrap()])], &layout, &Quiet).unwrap();
    let mut archive = Vec::new();
    store
        .export_archive(&[(other.clone(), Vec::new())], ExportFormat::OciArchive, &mut archive, &Quiet)
        .unwrap();
    let named = |value: String, text: &str| {
        let contexts = NamedContexts::parse([format!("ctx={value}")]).unwrap();
        world.build_with("Dockerfile", text, &BuildOptions { contexts, ..world.options() })
    };
    let more = || folder.display().to_string();
    let files = |text: &str| {
        let image = named(more(), text).unwrap_or_else(|e| panic!("{text}: {}", support::describe(&e))).image;
        world.list(&image).into_keys().collect::<Vec<_>>()
    };
    for (text, expected) in [
        ("FROM scratch\nCOPY --from=ctx / /\n", &["/.dockerignore", "/a", "/sub", "/sub/b"][..]),
        ("FROM scratch\nCOPY --from=ctx sub/b /x\n", &["/x"]),
        ("FROM scratch\nCOPY --from=CTX:latest a /x\n", &["/x"]),
        ("FROM ctx\n", &["/.dockerignore", "/a", "/sub", "/sub/b"]),
        // The stage is not built: it could not be.
        ("FROM nowhere AS ctx\nCOPY none /\nFROM scratch\nCOPY --from=ctx a /y\n", &["/y"]),
        ("FROM nowhere AS ctx\nCOPY none /\nFROM scratch\nCOPY --from=0 a /y\n", &["/y"]),
        (
            "FROM nowhere AS ctx\nFROM ctx\nCOPY --from=ctx a /y\n",
            &["/.dockerignore", "/a", "/sub", "/sub/b", "/y"],
        ),
    ] {
        assert_eq!(files(text), expected, "{text}");
    }
    // Nothing, in the place of an image.
    let nothing = named("docker-image://scratch".into(), "FROM ctx\nCOPY Dockerfile /only\n").unwrap();
    assert_eq!(world.list(&nothing.image).into_keys().collect::<Vec<_>>(), ["/only"]);
    let error = named("docker-image://scratch".into(), "FROM scratch\nCOPY --from=ctx /x /\n").unwrap_err();
    assert!(error.to_string().contains("'x' is not in"), "{error}");
    let text = "FROM scratch\nCOPY --from=ctx a /\n";
    assert!(!named(more(), text).unwrap().cached);
    assert!(named(more(), text).unwrap().cached);
    std::fs::write(folder.join("a"), "changed").unwrap();
    assert!(!named(more(), text).unwrap().cached, "a file changed");
    // Images, by name and from a layout.
    for value in [
        "docker-image://base".to_owned(),
        format!("oci-layout://{}:1", layout.display()),
        format!("oci-layout://{}", layout.display()),
    ] {
        let built = named(value.clone(), "FROM ctx\nCOPY --from=ctx /etc/passwd /got\n").unwrap();
        assert!(world.list(&built.image).contains_key("/got"), "{value}");
        assert_eq!(world.list(&built.image).contains_key("/marker"), value.starts_with("oci"), "{value}");
    }
    for (value, text, why) in [
        (format!("{}/none", more()), "FROM scratch\nCOPY --from=ctx a /\n", "named context"),
        (more(), "FROM scratch\nCOPY --from=ctx none /\n", "none"),
        ("docker-image://nowhere:1".into(), "FROM ctx\n", "nowhere"),
        ("oci-layout:///none".into(), "FROM ctx\n", "/none"),
    ] {
        let error = named(value, text).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.to_string().contains("Dockerfile:"), "{error}");
    }
}

#[test]
fn a_mount_of_a_context() {
    let world = World::new();
    if support::busybox().is_none() {
        println!("skip: no static busybox");
        return;
    }
    let folder = world.dir.path().join("more");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a"), "A").unwrap();
    let contexts = NamedContexts::parse([format!("ctx={}", folder.display())]).unwrap();
    let options = BuildOptions { contexts, ..world.options() };
    let text = "FROM base\nRUN --mount=from=ctx,target=/m --mount=type=cache,target=/c,from=ctx cat /m/a /c/a > /got\n";
    let built = world.build_with("Dockerfile", text, &options).unwrap();
    assert!(world.list(&built.image)["/got"].contains("AA"), "{:?}", world.list(&built.image));
}
