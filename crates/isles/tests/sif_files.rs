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
        shelf.isles(&["load", "-i", "oci:layout", "--tag", "x:1"]).fails(1, &["--tag is for SIF files"]);
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
