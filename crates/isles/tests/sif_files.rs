//! `isles save`, `load` and `push` with SIF files.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;

use shelf::*;

#[test]
fn images_become_files_and_files_images() {
    let registry = Registry::start(false);
    for (n, shelf) in both().into_iter().enumerate() {
        let layers = [tar(&[("bin/sh", &noise(200_000, 1)), ("etc/a", b"a")]), tar(&[("etc/.wh.a", b"")])];
        layout(&shelf.path("layout"), "app:1", &layers);
        shelf.share("layout");
        shelf.isles(&["load", "-i", "oci:layout"]).fine();
        for format in ["sif", "oci-sif"] {
            shelf.isles(&["save", "--format", format, "-o", "app.sif", "app:1"]).fine();
            shelf.isles(&["save", "--format", format, "-o", "again.sif", "app:1"]).fine();
            let file = fs::read(shelf.path("app.sif")).unwrap();
            assert!(file == fs::read(shelf.path("again.sif")).unwrap(), "{format}: the same bytes each time");
            let said = shelf.isles(&["load", "-i", "app.sif", "--tag", "back:1"]).fine();
            assert_eq!(said, "Loaded image: back:1\n");
            // In a store that knows nothing of it, too.
            let said = shelf.isles_in("other", &["load", "-i", "app.sif"]).fine();
            let id = shelf.isles(&["inspect", "--format", "{{.Id}}", "back:1"]).fine();
            assert_eq!(said, format!("Loaded image ID: {id}"), "{format}");
        }
        shelf
            .isles(&["save", "--format", "sif", "app:1"])
            .fails(1, &["cannot be written to standard output"]);
        shelf
            .isles(&["save", "--format", "sif", "-o", "x.sif", "app:1", "back:1"])
            .fails(1, &["one image, not 2"]);
        shelf
            .isles(&["load", "-i", "oci:layout", "--tag", "x:1"])
            .fails(1, &["--tag is for files of SIF, squashfs and ext3"]);
        let mut bytes = fs::read(shelf.path("app.sif")).unwrap();
        bytes.truncate(40_000);
        fs::write(shelf.path("short.sif"), bytes).unwrap();
        shelf.share("short.sif");
        shelf
            .isles(&["load", "-i", "short.sif"])
            .fails(1, &["reaches beyond the end of the file", "damaged"]);
        shelf.isles(&["push", "app.sif"]).fails(1, &["has no name of its own"]);
        if let Some(registry) = &registry {
            let name = format!("{}/sif{n}/app:1", registry.address);
            shelf.isles(&["push", "app.sif", &name]).fine();
            shelf.isles_in("third", &["pull", &name]).fine();
        }
    }
}

#[test]
fn files_travel_as_they_are() {
    let Some(registry) = Registry::start(false) else { return };
    for (n, shelf) in both().into_iter().enumerate() {
        layout(&shelf.path("layout"), "app:1", &[tar(&[("bin/sh", &noise(200_000, 1))])]);
        shelf.share("layout");
        shelf.isles(&["load", "-i", "oci:layout"]).fine();
        shelf.isles(&["save", "--format", "sif", "-o", "app.sif", "app:1"]).fine();
        let file = fs::read(shelf.path("app.sif")).unwrap();
        let name = format!("{}/as-it-is{n}/app:1", registry.address);
        let address = format!("oras://{name}");

        shelf.isles(&["push", "app.sif", &address]).fine();
        let said = shelf.isles_in("other", &["pull", "-o", "back.sif", &address]).fine();
        assert_eq!(said, "back.sif\n");
        assert!(fs::read(shelf.path("back.sif")).unwrap() == file, "the same file");
        // In the store it is an image under its name.
        assert_eq!(shelf.isles_in("other", &["pull", &address]).fine(), format!("{name}\n"));
        let id = |state: &str, name: &str| shelf.isles_in(state, &["inspect", "-f", "{{.Id}}", name]).fine();
        shelf.isles(&["load", "-i", "app.sif", "--tag", "back:1"]).fine();
        assert_eq!(id("other", &name), id("state", "back:1"));
        shelf.isles_in("other", &["pull", "--policy", "never", &address]).fine();
        // Of an image of the store the same file goes.
        let address = format!("{address}b");
        shelf.isles(&["push", "app:1", &address]).fine();
        shelf.isles(&["pull", "-o", "back.sif", &address]).fine();
        assert!(fs::read(shelf.path("back.sif")).unwrap() == file, "the same file");
        // An image of layers becomes a file.
        let layers = format!("{}/layers{n}/app:1", registry.address);
        shelf.isles(&["push", "app:1", &layers]).fine();
        shelf.isles_in("third", &["pull", "-q", "-o", "made.sif", &layers]).fine();
        shelf.isles(&["inspect", "--type", "file", "made.sif"]).fine();

        shelf.isles(&["pull", &format!("oras://{layers}")]).fails(1, &["is not a SIF file"]);
        shelf.isles(&["pull", "-o", "x.sif", &layers, &layers]).fails(1, &["one image, not 2"]);
        shelf.isles(&["pull", "library://a//b"]).fails(2, &["empty part"]);
        let unsigned = ["push", "app.sif", "library://a/b/app:1"];
        shelf.isles(&unsigned).fails(1, &["Unable to upload container", "apptainer sign"]);
    }
}

#[test]
fn libraries_give_files() {
    let library = Liar::start();
    let arch = isles_spec::Platform::host().architecture;
    for shelf in both() {
        layout(&shelf.path("layout"), "app:1", &[tar(&[("bin/sh", b"sh")])]);
        shelf.share("layout");
        shelf.isles(&["load", "-i", "oci:layout"]).fine();
        shelf.isles(&["save", "--format", "sif", "-o", "app.sif", "app:1"]).fine();
        let file = fs::read(shelf.path("app.sif")).unwrap();
        let about = format!(r#"{{"data":{{"id":"1","uploaded":true,"size":{}}}}}"#, file.len());
        library.say(&format!("/v1/images/a/b/app:1?arch={arch}"), 200, "application/json", about.as_bytes());
        library.say(&format!("/v1/imagefile/a/b/app:1?arch={arch}"), 200, "application/octet-stream", &file);
        let address = format!("library://{}/a/b/app:1", library.address);
        shelf.isles(&["pull", "--tls-verify=false", "-o", "back.sif", &address]).fine();
        assert!(fs::read(shelf.path("back.sif")).unwrap() == file);
        let said = shelf.isles(&["pull", "--tls-verify=false", &address]).fine();
        assert_eq!(said, format!("{}/a/b/app:1\n", library.address));
        shelf.isles(&["pull", "--tls-verify=false", "--policy", "never", &address]).fine();
        let gone = format!("library://{}/a/b/other:1", library.address);
        shelf.isles(&["pull", "--tls-verify=false", "-o", "x.sif", &gone]).fails(1, &["a/b/other:1"]);
        assert!(!shelf.path("x.sif").exists());
    }
}

#[test]
fn builds_give_files() {
    for shelf in both() {
        fs::write(shelf.path("Dockerfile"), "FROM scratch\nCOPY f /\nLABEL a=b\n").unwrap();
        fs::write(shelf.path("f"), "text").unwrap();
        shelf.isles(&["build", "one.sif", "."]).fine();
        shelf.isles(&["build", "two.sif"]).fine();
        shelf.isles(&["build", "-o", "type=sif,dest=three.sif", "-t", "kept", "-o", "tree", "."]).fine();
        let read = |name: &str| fs::read(shelf.path(name)).unwrap();
        assert!(read("one.sif") == read("two.sif") && read("one.sif") == read("three.sif"));
        assert!(shelf.path("tree/f").exists());
        let option = "type=sif,dest=gzip.sif,compression=gzip";
        shelf.isles(&["build", "-o", option, "."]).fine();
        assert!(read("gzip.sif") != read("one.sif"));
        // A name beside the file is a name here, too.
        shelf.isles(&["build", "-t", "named:1", "one.sif", "Dockerfile"]).fine();
        shelf.isles(&["inspect", "--type", "image", "named:1"]).fine();
        shelf
            .isles(&["build", "one", "Dockerfile"])
            .fails(1, &["'one' is no name of a SIF file", "ends in .sif"]);
        shelf
            .isles(&["build", "--platform", "linux/amd64,linux/arm64", "-o", option, "."])
            .fails(1, &["a SIF file holds an image for one platform"]);

        let label = shelf.isles(&["inspect", "-f", "{{.Config.Labels.a}} {{.Signed}}", "one.sif"]).fine();
        assert_eq!(label, "b false\n");
        let whole = shelf.isles(&["inspect", "one.sif"]).fine();
        let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
        let kinds: Vec<_> = whole[0]["Objects"].as_array().unwrap().iter().map(|o| &o["Role"]).collect();
        assert!(kinds.iter().any(|role| *role != &serde_json::Value::Null), "{whole}");
        assert_eq!(whole[0]["Architecture"], isles_spec::Platform::host().architecture.as_str());
        shelf.isles(&["inspect", "Dockerfile"]).fails(1, &["Dockerfile"]);
        shelf.isles(&["inspect", "none.sif"]).fails(1, &["none.sif"]);
    }
}
