//! The base images of a recipe come from a registry: when it is asked, and when it is not.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;

use shelf::*;

/// Puts an image of one file into the registry. Returns the diff ID of its layer.
fn publish(shelf: &Shelf, registry: &Registry, name: &str, file: &str, text: &str) -> String {
    let name = format!("{}/{name}", registry.address);
    let at = shelf.path(&format!("layout-{}", text));
    let image = layout(&at, &name, &[tar(&[(file, text.as_bytes())])]);
    shelf.share(at.file_name().unwrap().to_str().unwrap());
    shelf.isles_in("maker", &["load", "-i", &format!("oci:{}", at.display())]).fine();
    shelf.isles_in("maker", &["push", &name]).fine();
    image.config.rootfs.diff_ids[0].to_string()
}

/// A stage that nobody needs begins with an image that nobody has.
const DOCKERFILE: &str = "\
FROM HERE/nowhere:1 AS unneeded
COPY f /
FROM HERE/tools:1 AS tools
LABEL a=b
FROM HERE/base:1
COPY --from=tools /tool /
COPY --from=HERE/files:1 /file /
";
const DEFINITION: &str = "\
Bootstrap: docker
From: HERE/nowhere:1
Stage: unneeded

Bootstrap: docker
From: HERE/tools:1
Stage: tools

Bootstrap: docker
From: HERE/base:1
Stage: final

%files from tools
    /tool
";

#[test]
fn when_base_images_are_pulled() {
    for shelf in both() {
        for (file, recipe) in [("Dockerfile", DOCKERFILE), ("image.def", DEFINITION)] {
            let Some(registry) = Registry::start(false) else { return };
            let first = publish(&shelf, &registry, "base:1", "version", "one");
            publish(&shelf, &registry, "tools:1", "tool", "tool");
            publish(&shelf, &registry, "files:1", "file", "file");
            fs::write(shelf.path("f"), "x").unwrap();
            let text = recipe.replace("HERE", &registry.address);
            fs::write(shelf.path(file), &text).unwrap();
            let state = format!("of-{file}");
            let isles = |words: &[&str]| shelf.isles_in(&state, words);
            let build = |more: &[&str]| isles(&[&["build", "-t", "made", "-f", file], more, &["."]].concat());
            let layers = || isles(&["inspect", "-f", "{{json .RootFS.Layers}}", "made"]).fine();
            let names = |what: &str| format!("{}/{what}", registry.address);

            // Nothing is here, and what may not be fetched is not.
            let said = isles(&["run", "--rm", "--pull", "never", file]);
            said.fails(125, &["no image", &names("")]);
            assert_eq!(isles(&["images", "-q"]).fine(), "");

            // What is needed is fetched, and nothing else.
            let id = build(&[]).fine();
            assert!(layers().contains(&first), "{}", layers());
            let said = build(&["--target", "unneeded"]);
            said.fails(1, &["nowhere", &format!("{file}:")]);

            // What is here is good enough, unless the registry is to be asked.
            let second = publish(&shelf, &registry, "base:1", "version", "two");
            let again = build(&[]);
            assert_eq!((again.out.as_str(), again.err.as_str()), (id.as_str(), "nothing changed\n"));
            let newer = build(&["--pull"]).fine();
            assert_ne!(newer, id);
            assert!(layers().contains(&second) && !layers().contains(&first), "{}", layers());
            assert_eq!(build(&["--pull"]).fine(), newer);

            // Without the registry.
            let gone = registry.address.clone();
            drop(registry);
            let again = build(&[]);
            assert_eq!((again.out.as_str(), again.err.as_str()), (newer.as_str(), "nothing changed\n"));
            build(&["--pull"]).fails(1, &[&format!("cannot reach {gone}"), &format!("{file}:")]);
            assert_eq!(build(&["--pull=newer"]).fine(), newer);
            // There is no program in it, which is found out after the image was found.
            let said = isles(&["run", "--rm", "--pull", "newer", &format!("{gone}/base:1"), "/nothing"]);
            said.fails(127, &[&format!("cannot reach {gone}"), "using the image that is here", "/nothing"]);
            let said = isles(&["run", "--rm", "--pull", "newer", &format!("{gone}/other:1"), "/nothing"]);
            said.fails(125, &[&format!("cannot reach {gone}"), "not here either"]);
            assert!(build(&["--no-cache"]).fine().starts_with("sha256:"));
        }
    }
}

#[test]
fn a_check_fetches_no_image() {
    for shelf in both() {
        let Some(registry) = Registry::start(false) else { return };
        publish(&shelf, &registry, "base:1", "version", "one");
        let check = |text: &str| {
            fs::write(shelf.path("Dockerfile"), text.replace("HERE", &registry.address)).unwrap();
            shelf.isles_in("checks", &["build", "--check", "-f", "Dockerfile", "."])
        };
        assert_eq!(check("FROM HERE/base:1\nCOPY f /\n").fine(), "");
        // That the variable is not set is known from the image's configuration.
        let said = check("FROM HERE/base:1\nCOPY $nope$PATH /\n");
        assert!(said.out.contains("UndefinedVar: the variable $nope is not set"), "{}{}", said.out, said.err);
        said.fails(1, &["1 warning"]);
        let said = check("FROM HERE/none:1\nCOPY $nope /\n");
        assert!(said.err.contains("/none:1' cannot be looked at"), "{}", said.err);
        assert_eq!(shelf.isles_in("checks", &["images", "-q"]).fine(), "");
    }
}
