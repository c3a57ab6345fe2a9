//! `apptainer exec` and `run` of images in a registry: docker:// from the store, oras:// from the cache.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;

use isles_store::tar::{Entry, Kind, Writer};
use shelf::*;

/// A layer of programs.
fn programs(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, data) in files {
        let (path, size) = (path.as_bytes().to_vec(), data.len() as u64);
        writer.begin(&Entry { path, kind: Kind::File, mode: 0o755, size, ..Entry::default() }).unwrap();
        writer.data(data).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn images_of_a_registry_run() {
    let Some(registry) = Registry::start(false) else { return };
    let Ok(busybox) = fs::read("/bin/busybox") else {
        println!("skip: /bin/busybox is not installed (package busybox-static)");
        return;
    };
    for (n, shelf) in both().into_iter().enumerate() {
        let apptainer = |args: &[&str]| shelf.isles(&[&["apptainer"], args].concat());
        let passwd = b"root:x:0:0::/root:/bin/sh\n".as_slice();
        let layer = programs(&[
            ("bin/sh", &busybox),
            ("bin/cat", &busybox),
            ("etc/passwd", passwd),
            ("etc/group", b"root:x:0:\n"),
        ]);
        layout(&shelf.path("layout"), "app:1", &[layer]);
        shelf.share("layout");
        apptainer(&["pull", "app.sif", "oci:layout:app:1"]).fine();
        let place = format!("{}/run{n}", registry.address);
        let (docker, oras) = (format!("docker://{place}/image:1"), format!("oras://{place}/app:1"));
        apptainer(&["push", "app.sif", &docker]).fine();
        apptainer(&["push", "app.sif", &oras]).fine();
        apptainer(&["exec", "--disable-cache", &docker, "sh", "-c", ":"]).fine();
        assert!(!shelf.isles(&["images"]).fine().contains("/image"), "it is not kept");
        let said = apptainer(&["exec", &docker, "cat", "/etc/group"]);
        assert!(said.out.starts_with("root:x:0:\n"), "{said:?}");
        let again = apptainer(&["exec", &docker, "sh", "-c", "echo $APPTAINER_NAME"]);
        assert!(again.err.contains("INFO:    Using cached image\n"), "{again:?}");
        assert_eq!(again.fine(), "image:1\n");
        for said in [
            apptainer(&["exec", &oras, "sh", "-c", "echo first"]),
            apptainer(&["exec", "--disable-cache", &oras, "sh", "-c", "echo second"]),
        ] {
            assert!(!said.err.contains("Using cached SIF image"), "{said:?}");
            said.fine();
        }
        let cached = apptainer(&["exec", &oras, "sh", "-c", "echo third"]);
        assert!(cached.err.contains("INFO:    Using cached SIF image\n"), "{cached:?}");
        assert_eq!(cached.fine(), "third\n");
        // A further tag, and folders in the place of files.
        apptainer(&["tag", &oras, "latest"]).fine();
        apptainer(&["tag", &format!("docker://{place}/app:1"), "x"])
            .fails(255, &["Unsupported transport type: docker"]);
        apptainer(&["tag", &oras, "no tag"]).fails(255, &["no tag"]);
        apptainer(&["tag", &format!("oras://{place}/app:nosuch"), "x"]).fails(255, &["Unable to tag image"]);
        apptainer(&["pull", "tagged.sif", &format!("oras://{place}/app:latest")]).fine();
        assert_eq!(fs::read(shelf.path("tagged.sif")).unwrap(), fs::read(shelf.path("app.sif")).unwrap());
        for (name, uri) in [("d", &docker), ("o", &oras)] {
            apptainer(&["pull", "--sandbox", name, uri]).fine();
            assert_eq!(
                apptainer(&["exec", name, "sh", "-c", "echo in $APPTAINER_NAME"]).fine(),
                format!("in {name}\n")
            );
            apptainer(&["pull", "--sandbox", name, uri]).fails(255, &["will not overwrite"]);
            apptainer(&["pull", "--sandbox", "--force", name, uri]).fine();
        }
        fs::create_dir(shelf.path("own")).unwrap();
        fs::write(shelf.path("own/file"), "").unwrap();
        apptainer(&["pull", "--sandbox", "--force", "own", &oras]).fails(255, &["and no sandbox"]);
        for (uri, words) in [
            (format!("docker://{place}/nosuch:1"), &["FATAL:   Unable to handle docker://", "nosuch"][..]),
            (format!("oras://{place}/image:1"), &["FATAL:   Unable to handle oras://", "not a SIF file"]),
            ("oci-archive:/nonexistent.tar".into(), &["/nonexistent.tar"]),
            ("ipfs://x".into(), &["ipfs:// is not supported"]),
        ] {
            apptainer(&["exec", &uri, "true"]).fails(255, words);
        }
    }
}
