//! What definition files give.

#![allow(clippy::unwrap_used)]

mod support;

use isles_build::BuildOptions;
use support::{World, describe};

fn build(world: &World, text: &str) -> isles_store::Image {
    match world.build_with("x.def", text, &world.options()) {
        Ok(built) => built.image,
        Err(e) => panic!("{text}\n{}", describe(&e)),
    }
}

#[test]
fn sections_become_files_and_configuration() {
    let world = World::new();
    world.write("f", "x").write("dir/a", "a").write("dir/sub/b", "b");
    std::os::unix::fs::symlink("a", world.context().join("dir/link")).unwrap();
    world.write("dir/.hidden", "h").write("globs/a1", "1").write("globs/b*", "2");
    let text = "Bootstrap: docker\nFrom: base\n%files\nf /opt/\nf /opt/named\ndir /new\ndir /open\ndir/* /glob/\nf\n\
        globs/[!b]*\n'globs/b\\*' \"/a b\"\nf link/../up\n\
        %environment\nexport E=from-recipe\n%runscript\necho run \"$@\"\n%labels\nAuthor Ann B\n%help\nHelp!\n%startscript\nx\n";
    let image = build(&world, text);
    let list = world.list(&image);
    for (path, part) in [
        ("/opt/f", "x"),
        ("/opt/named", "x"),
        // A directory that is not there becomes the copy; into one that is there goes the directory itself.
        ("/new/a", "a"),
        ("/open/dir/sub/b", "b"),
        // Links are followed.
        ("/open/dir/link", "\"a\""),
        ("/glob/sub/b", "b"),
        ("/new/.hidden", "h"),
        ("/f", "x"),
        // Without a destination every file keeps its path.
        ("/globs/a1", "1"),
        ("/a b", "2"),
        // Links on the way are the image's.
        ("/data/up", "x"),
        ("/.singularity.d/runscript", "#!/bin/sh\\necho run"),
        ("/.singularity.d/env/90-environment.sh", "from-recipe"),
        ("/.singularity.d/labels.json", "Ann B"),
        ("/.singularity.d/runscript.help", "Help!"),
        ("/.singularity.d/startscript", "x"),
        ("/.singularity.d/Singularity", "Bootstrap: docker"),
        ("/singularity", "-> .singularity.d/runscript"),
    ] {
        assert!(list.get(path).is_some_and(|l| l.contains(part)), "{path}: {:?}", list.get(path));
    }
    for path in ["/glob/.hidden", "/globs/b*", "/.build.labels"] {
        assert!(!list.contains_key(path), "{path}");
    }
    let config = &image.config.config;
    assert_eq!(config.entrypoint.as_ref().unwrap(), &["/.singularity.d/actions/run"]);
    assert_eq!(config.cmd, None);
    assert_eq!(config.labels["Author"], "Ann B");
    let again = world.build_with("x.def", text, &world.options()).unwrap();
    assert!(again.cached);
    assert_eq!(again.image.id(), image.id());
}

#[test]
fn an_image_without_a_script_starts_as_before() {
    let world = World::new();
    let image = build(&world, "Bootstrap: docker\nFrom: base\n%labels\nA b\n");
    assert_eq!(image.config.config.cmd.as_ref().unwrap(), &["sh"]);
    assert!(world.list(&image)["/.singularity.d/runscript"].contains("set -- 'sh'"));
}

#[test]
fn stages_and_arguments() {
    let world = World::new();
    world.write("f", "x");
    let text = "Bootstrap: docker\nFrom: {{ BASE }}\nStage: one\n%arguments\nBASE=base\n%files\nf /built\n\
        Bootstrap: scratch\n%files from one\n/built /in/\n";
    let list = world.list(&build(&world, text));
    assert!(list["/in/built"].contains('x'));
    assert!(!list.contains_key("/etc/passwd"));
    // Links lead nowhere but into the stage that has them.
    let text = "Bootstrap: docker\nFrom: base\nStage: one\nBootstrap: docker\nFrom: base\n\
        %files from one\n/data/tofile /got\n/data /copy\n/etc/passwd /link/../up\n";
    let list = world.list(&build(&world, text));
    assert!(list["/got"].contains("old") && list["/data/up"].contains("root"));
    assert_eq!(list["/copy/tofile"], "-> ../../../../data/file");
    let text = "Bootstrap: docker\nFrom: {{ BASE }}\nStage: one\n%arguments\nBASE=base\n%files\nf /built\n\
        Bootstrap: scratch\n%files from one\n/built /in/\n";
    let error = world.build_with("x.def", text, &world.args(&[("BASE", "missing-image")])).unwrap_err();
    assert!(describe(&error).contains("x.def:2:7: no image 'missing-image'"), "{}", describe(&error));
    let first = BuildOptions { target: Some("one".into()), ..world.options() };
    assert!(world.list(&world.build_with("x.def", text, &first).unwrap().image).contains_key("/built"));
}

#[test]
fn images_on_disk() {
    let world = World::new();
    let store = world.engine.store();
    let base = store.resolve("base", None).unwrap();
    let name = isles_spec::Reference::parse("saved").unwrap();
    store.tag(&base, &name).unwrap();
    let archive = std::fs::File::create(world.context().join("image.tar")).unwrap();
    let mut archive = std::io::BufWriter::new(archive);
    store
        .export_archive(
            &[(base.clone(), vec![name])],
            isles_store::ExportFormat::DockerArchive,
            &mut archive,
            &isles_spec::Quiet,
        )
        .unwrap();
    drop(archive);
    let root = world.context().join("rootfs/etc");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("from-folder"), "x").unwrap();
    for (header, path) in [
        ("Bootstrap: docker-archive\nFrom: image.tar\n", "/etc/passwd"),
        ("Bootstrap: localimage\nFrom: image.tar\n", "/etc/passwd"),
        ("Bootstrap: localimage\nFrom: docker-archive:image.tar\n", "/etc/passwd"),
        ("Bootstrap: localimage\nFrom: rootfs\n", "/etc/from-folder"),
    ] {
        assert!(world.list(&build(&world, header)).contains_key(path), "{header}");
        assert!(world.build_with("x.def", header, &world.options()).unwrap().cached, "{header}");
    }
    // By a name and an ID of the store, too.
    for from in ["saved", &base.id().to_string()] {
        let header = format!("Bootstrap: localimage\nFrom: {from}\n");
        assert!(world.list(&build(&world, &header)).contains_key("/etc/passwd"), "{header}");
    }
    let mut ext = vec![0; 2048];
    ext[1080..1082].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(world.context().join("x.img"), ext).unwrap();
    let error = world.build_with("x.def", "Bootstrap: localimage\nFrom: x.img\n", &world.options());
    let shown = describe(&error.unwrap_err());
    assert!(shown.contains("x.def:2:7: ") && shown.contains("the ext image"), "{shown}");
}

#[test]
fn what_is_refused() {
    let world = World::new();
    world.write("f", "x");
    std::os::unix::fs::symlink("/etc/passwd", world.context().join("out")).unwrap();
    std::fs::create_dir(world.context().join("loop")).unwrap();
    std::os::unix::fs::symlink(".", world.context().join("loop/again")).unwrap();
    for (text, place, part) in [
        ("Bootstrap: docekr\nFrom: x\n", "1:12", "did you mean docker?"),
        ("Bootstrap: dnf\n", "1:12", "needs MirrorURL"),
        ("Bootstrap: busybox\n", "1:12", "needs MirrorURL"),
        ("Bootstrap: shub\nFrom: x\n", "1:12", "the service is gone"),
        ("Bootstrap: library\n", "1:12", "needs From"),
        ("Bootstrap: library\nFrom: a b\n", "2:7", "no name of a library"),
        ("Bootstrap: oras\nFrom: \"x\"\n", "2:7", ""),
        ("Bootstrap: localimage\nFrom: f\nFingerprints: 12\n", "3:15", "40 hexadecimal"),
        ("Bootstrap: dockerfile\nFrom: .\nFrontend: gateway.v0\n", "3:11", "gateway.v0"),
        ("Bootstrap: docker\n", "1:12", "needs From"),
        ("Bootstrap: debootstrap\n", "1:12", "OSVersion"),
        ("Bootstrap: localimage\nFrom: nothing\n", "2:7", "no image at"),
        ("Bootstrap: scratch\n%pre\ntouch /x\n", "2:1", "%pre"),
        ("Bootstrap: scratch\n%apprun ../x\ny\n", "2:9", "no name for an app"),
        ("Bootstrap: scratch\n%post -c\ny\n", "2:7", "names no program"),
        ("Bootstrap: scratch\n%files of b\nx /x\n", "2:8", "no meaning"),
        ("Bootstrap: scratch\n%files\nff /x\n", "3:1", "'ff' is not in"),
        ("Bootstrap: scratch\n%files\nout /x\n", "3:1", "outside"),
        ("Bootstrap: scratch\n%files\nloop /x\n", "3:1", "leads to itself"),
        ("Bootstrap: scratch\n%files\nn* /x\n", "3:1", "fits no file"),
        ("Bootstrap: scratch\nStage: a\n%files from b\nx /x\n", "3:8", "no stage is called 'b'"),
        ("Bootstrap: scratch\nStage: a\n%files from a\nx /x\n", "3:8", "from itself"),
    ] {
        let shown = describe(&world.build_with("x.def", text, &world.options()).expect_err(text));
        assert!(shown.contains(&format!("x.def:{place}: ")) && shown.contains(part), "{text}: {shown}");
    }
}

#[test]
fn post_and_test_run() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let text = "Bootstrap: docker\nFrom: base\n%post\necho 'export P=post' >> $APPTAINER_ENVIRONMENT\n\
        echo 'Built yes' >> \"$SINGULARITY_LABELS\"\nid > /id; cat /proc/sys/kernel/random/uuid > /stamp\necho $BASE > /base; env > /env\n\
        %post\necho second > /second\n%test\ntest -e /id\ntest \"$P\" = post\n%runscript\necho $P\n";
    let image = build(&world, text);
    let list = world.list(&image);
    assert!(list["/id"].contains("uid=0"), "{:?}", list["/id"]);
    assert!(list["/base"].contains('1') && list["/second"].contains("second"));
    assert!(!list["/env"].contains("CARGO"), "nothing of the caller's environment");
    assert_eq!(image.config.config.labels["Built"], "yes");
    // Another runscript runs nothing again.
    let stamp = list["/stamp"].clone();
    let list = world.list(&build(&world, &text.replace("echo $P", "echo other")));
    assert_eq!(list["/stamp"], stamp);
    let error = world.build_with("x.def", &format!("{text}%test\nfalse\n"), &world.options()).unwrap_err();
    assert!(error.to_string().contains("%test' failed with exit code 1"), "{error}");
    let skipped = BuildOptions { no_test: true, ..world.options() };
    assert!(world.build_with("x.def", &format!("{text}%test\nfalse\n"), &skipped).is_ok());
    let error =
        world.build_with("x.def", "Bootstrap: docker\nFrom: base\n%post\nfalse\ntrue\n", &world.options());
    let shown = describe(&error.unwrap_err());
    assert!(
        shown.contains("x.def:3: '%post' failed with exit code 1") && shown.contains("+ false"),
        "{shown}"
    );
    build(&world, "Bootstrap: docker\nFrom: base\n%post -c /bin/cat\nnot a shell script\n");
}
