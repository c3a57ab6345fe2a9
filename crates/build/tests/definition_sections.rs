//! What the sections of definition files do: on the host, in the image, for apps, and what is done again.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use isles_build::BuildOptions;
use isles_build::definition::DefinitionOptions;
use support::{World, describe};

fn with(world: &World, definition: DefinitionOptions) -> BuildOptions {
    BuildOptions { definition, ..world.options() }
}

fn build(world: &World, text: &str, definition: DefinitionOptions) -> isles_build::Built {
    match world.build_with("x.def", text, &with(world, definition)) {
        Ok(built) => built,
        Err(e) => panic!("{text}\n{}", describe(&e)),
    }
}

fn default(world: &World, text: &str) -> isles_store::Image {
    build(world, text, DefinitionOptions::default()).image
}

#[test]
fn setup_sees_the_host_and_writes_the_image_only() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    world.write("own", "from the host");
    let context = world.context().display().to_string();
    // Everything that could be written to is tried; what must not be possible leaves a mark in the image.
    let text = format!(
        "Bootstrap: docker\nFrom: base\n%setup\n\
         cp {context}/own own2 2>/dev/null && touch $APPTAINER_ROOTFS/broken\n\
         for place in / /etc /tmp /var/tmp /usr /root {context} \"$HOME\" /var; do\n\
         \x20   if ( : > \"$place/isles-was-here\" ) 2>/dev/null; then echo \"$place\" >> $APPTAINER_ROOTFS/broken; fi\n\
         done\n\
         ( : >> {context}/own ) 2>/dev/null && touch $APPTAINER_ROOTFS/broken\n\
         rm -f {context}/own 2>/dev/null && touch $APPTAINER_ROOTFS/broken\n\
         mount -o remount,rw / 2>/dev/null && touch $APPTAINER_ROOTFS/broken\n\
         mount -o remount,rw,bind {context} 2>/dev/null && touch $APPTAINER_ROOTFS/broken\n\
         test -e /run/docker.sock && touch $APPTAINER_ROOTFS/broken\n\
         test \"$SINGULARITY_ROOTFS\" = \"$APPTAINER_ROOTFS\"\n\
         cat own > $APPTAINER_ROOTFS/data/file\n\
         rm $APPTAINER_ROOTFS/etc/group\n\
         mkdir $APPTAINER_ROOTFS/new\n\
         %post\ncat /data/file > /seen; cat /proc/sys/kernel/random/uuid > /stamp\n"
    );
    let first = default(&world, &text);
    let list = world.list(&first);
    assert!(!list.contains_key("/broken"), "{:?}", list.get("/broken"));
    assert!(list["/data/file"].contains("from the host") && list["/seen"].contains("from the host"));
    assert!(list.contains_key("/new") && !list.contains_key("/etc/group"));
    assert_eq!(std::fs::read_to_string(world.context().join("own")).unwrap(), "from the host");
    for place in ["/", "/etc", "/tmp", "/usr"] {
        assert!(!Path::new(place).join("isles-was-here").exists(), "{place}");
    }
    // It runs again, and what it writes is the same, so that %post does not.
    assert_eq!(world.list(&default(&world, &text))["/stamp"], list["/stamp"]);
    world.write("own", "changed");
    let again = world.list(&default(&world, &text));
    assert!(again["/seen"].contains("changed") && again["/stamp"] != list["/stamp"]);
    let error = world.build_with("x.def", "Bootstrap: docker\nFrom: base\n%setup\nfalse\n", &world.options());
    let shown = describe(&error.unwrap_err());
    assert!(shown.contains("x.def:3") && shown.contains("%setup' failed with exit code 1"), "{shown}");
}

#[test]
fn pre_runs_for_those_who_ask_for_it() {
    let world = World::new();
    let allowed = || DefinitionOptions { host_scripts: true, ..DefinitionOptions::default() };
    let text = "Bootstrap: docker\nFrom: base\n%pre\necho yes > made\n%files\nmade /\n";
    let list = world.list(&build(&world, text, allowed()).image);
    assert!(list["/made"].contains("yes"));
    let failed = "Bootstrap: docker\nFrom: base\n%pre\necho words; exit 3\n";
    let error = world.build_with("x.def", failed, &with(&world, allowed())).unwrap_err();
    assert!(
        error.to_string().contains("%pre' failed with exit code 3") && error.to_string().contains("words")
    );
    // An empty one is no reason to refuse.
    default(&world, "Bootstrap: docker\nFrom: base\n%pre\n\n");
}

#[test]
fn a_changed_runscript_runs_nothing_again() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    // Each run of %post leaves another stamp.
    let text = |post: &str, run: &str| {
        format!(
            "Bootstrap: docker\nFrom: base\n%files\nf /f\n%post\n{post}\ncat /proc/sys/kernel/random/uuid > /stamp\n\
             %environment\nexport A=1\n%apprun a\necho {run}\n%appinstall a\ncat /proc/sys/kernel/random/uuid > app-stamp\n\
             %labels\nL {run}\n%help\n{run}\n%test\ntrue {run}\n%runscript\necho {run}\n"
        )
    };
    world.write("f", "1");
    let stamps = |post: &str, run: &str| {
        let list = world.list(&default(&world, &text(post, run)));
        assert!(list["/.singularity.d/runscript"].contains(run));
        (list["/stamp"].clone(), list["/scif/apps/a/app-stamp"].clone())
    };
    let first = stamps("true", "one");
    assert_eq!(stamps("true", "two"), first);
    assert_eq!(stamps("true", "one"), first);
    assert_ne!(stamps("echo", "one"), first);
    world.write("f", "2");
    assert_ne!(stamps("true", "one"), first);
    world.write("f", "1");
    assert_eq!(stamps("true", "one"), first, "what was made before is found");
    let anew = BuildOptions { no_cache: true, ..world.options() };
    let list = world.list(&world.build_with("x.def", &text("true", "one"), &anew).unwrap().image);
    assert_ne!(list["/stamp"], first.0);
}

#[test]
fn apps_have_a_tree_of_their_own() {
    let world = World::new();
    world.write("tool", "t").write("more/x", "x");
    let text = "Bootstrap: docker\nFrom: base\n%apprun one\nexec tool \"$@\"\n%appfiles one\ntool bin/tool\nmore\n\
        %appenv one\nONE=1\n%applabels one\nVersion 1\n%apphelp one\nwords\n%apptest one\ntrue\n%appstart one\nx\n\
        %apprun two\n#!/bin/env two\n";
    let list = world.list(&default(&world, text));
    for (path, part) in [
        ("/scif/apps/one/bin/tool", "\"t\""),
        ("/scif/apps/one/more/x", "x"),
        ("/scif/apps/one/lib", "dir"),
        ("/scif/data/one/input", "dir"),
        ("/scif/data/one/output", "dir"),
        ("/scif/apps/one/scif/env/01-base.sh", "SCIF_APPNAME='one'"),
        ("/scif/apps/one/scif/env/90-environment.sh", "ONE=1"),
        ("/scif/apps/one/scif/labels.json", "SCIF_APP_NAME"),
        ("/scif/apps/one/scif/runscript", "755 0:0 \"#!/bin/sh\\nexec tool"),
        ("/scif/apps/one/scif/runscript.help", "words"),
        ("/scif/apps/one/scif/test", "true"),
        ("/scif/apps/one/scif/startscript", "x"),
        ("/scif/apps/two/scif/runscript", "#!/bin/env two"),
    ] {
        assert!(list.get(path).is_some_and(|l| l.contains(part)), "{path}: {:?}", list.get(path));
    }
    assert!(list.contains_key("/.singularity.d/env/94-appsbase.sh"));
    if !world.can_run() {
        return;
    }
    let text = "Bootstrap: docker\nFrom: base\n%post\nFROM_POST=1\n\
        %appinstall a\npwd > here; echo $SCIF_APPDATA $FROM_POST > bin/data\n%appenv a\nexport A=of-app\n\
        %apprun a\necho run $A $SCIF_APPNAME $PATH \"$@\"\n%apptest a\nexit 7\n\
        %test\nout=$(SINGULARITY_APPNAME=a /.singularity.d/actions/run x)\n\
        test \"$out\" = 'run of-app a /scif/apps/a/bin:/scif/apps/a:/bin x'\n\
        APPTAINER_APPNAME=a /.singularity.d/actions/test || test $? = 7\n\
        APPTAINER_APPNAME=b /.singularity.d/actions/run 2>/dev/null || test $? = 1\n\
        /.singularity.d/actions/exec sh -c 'test \"$SCIF_APPROOT_a\" = /scif/apps/a'\n\
        test -x \"$SCIF_APPRUN_a\"\n";
    let list = world.list(&default(&world, text));
    assert!(list["/scif/apps/a/here"].contains("/scif/apps/a"));
    assert!(list["/scif/apps/a/bin/data"].contains("/scif/data/a 1"), "%post and %appinstall are one script");
}

#[test]
fn labels_and_help_of_the_base_stay() {
    let world = World::new();
    let first = "Bootstrap: docker\nFrom: base\n%labels\nA one\nB one\n%help\nfirst\n%environment\nexport A=1\n\
        %runscript\necho first\n";
    let name: isles_spec::Reference = "first".parse().unwrap();
    let tagged = BuildOptions { tags: vec![name], ..world.options() };
    world.build_with("x.def", first, &tagged).unwrap();
    let second = "Bootstrap: localimage\nFrom: first\nStage: final\n%labels\nA two\nC two\nB one\n%help\nsecond\n\
        %environment\nexport B=1\n";
    let built = build(&world, second, DefinitionOptions::default());
    let messages: Vec<_> = built.warnings.iter().map(|w| (w.line, w.message.as_str())).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages.iter().any(|(line, text)| *line == 8 && text.contains("help text")), "{messages:?}");
    assert!(messages.iter().any(|(line, text)| *line == 4 && text.contains("'A'")), "{messages:?}");
    let labels = |image: &isles_store::Image| image.config.config.labels.clone();
    assert_eq!(labels(&built.image)["A"], "one");
    assert_eq!((&*labels(&built.image)["B"], &*labels(&built.image)["C"]), ("one", "two"));
    let file = |image: &isles_store::Image| {
        let mut text = String::new();
        let mut file = world.view(image).open_file(Path::new("/.singularity.d/labels.json")).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text).unwrap()
    };
    let all = file(&built.image);
    assert_eq!(all["org.label-schema.usage.singularity.deffile.bootstrap"], "localimage");
    assert_eq!(all["org.label-schema.usage.singularity.deffile.stage"], "final");
    assert_eq!(all["org.label-schema.schema-version"], "1.0");
    assert_eq!(all["org.label-schema.usage"], "/.singularity.d/runscript.help");
    assert!(all["org.label-schema.build-date"].as_str().unwrap().ends_with("_UTC"));
    let list = world.list(&built.image);
    assert!(list["/.singularity.d/runscript.help"].contains("first"));
    assert!(list["/.singularity.d/runscript"].contains("echo first"), "the base's own");
    let environment = &list["/.singularity.d/env/90-environment.sh"];
    assert!(environment.contains("export A=1\\nexport B=1"), "{environment}");
    assert!(list["/.singularity.d/bootstrap_history/Apptainer0"].contains("From: base"));
    let forced = build(&world, second, DefinitionOptions { force: true, ..DefinitionOptions::default() });
    assert!(forced.warnings.is_empty());
    assert_eq!(labels(&forced.image)["A"], "two");
    assert!(world.list(&forced.image)["/.singularity.d/runscript.help"].contains("second"));
}

#[test]
fn only_the_sections_that_are_wanted() {
    let world = World::new();
    world.write("f", "x");
    let text = "Bootstrap: docker\nFrom: base\n%files\nf /f\n%environment\nexport A=1\n%runscript\nx\n\
        %labels\nA b\n%help\nwords\n";
    for (sections, files, environment, run, labels, help) in [
        ("all", true, true, true, true, true),
        ("none", false, false, false, false, false),
        ("files,labels", true, false, false, true, false),
        ("environment,runscript,help", false, true, true, false, true),
    ] {
        let options =
            DefinitionOptions { sections: sections.parse().unwrap(), ..DefinitionOptions::default() };
        let image = build(&world, text, options).image;
        let list = world.list(&image);
        let has = |path: &str, part: &str| list.get(path).is_some_and(|l| l.contains(part));
        assert_eq!(has("/f", "x"), files, "{sections}");
        assert_eq!(has("/.singularity.d/env/90-environment.sh", "export A=1"), environment, "{sections}");
        assert_eq!(has("/.singularity.d/runscript", "x\\n"), run, "{sections}");
        assert_eq!(image.config.config.labels.contains_key("A"), labels, "{sections}");
        assert_eq!(has("/.singularity.d/runscript.help", "words"), help, "{sections}");
    }
}

#[test]
fn a_sandbox_is_written_and_updated() {
    let world = World::new();
    world.write("f", "x");
    let folder = world.dir.path().join("sandbox");
    let sandbox = |force| DefinitionOptions { sandbox: Some(folder.clone()), force, ..Default::default() };
    let text = "Bootstrap: docker\nFrom: base\n%files\nf /opt/f\n%runscript\necho first\n";
    build(&world, text, sandbox(false));
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    assert_eq!((read("opt/f"), read("data/file")), ("x".to_owned(), "old".to_owned()));
    assert_eq!(std::fs::read_link(folder.join("link")).unwrap(), Path::new("/data/real"));
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| std::fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("open"), mode("opt/f")), (0o1777, 0o775, 0o644));
    // What is there is not replaced by accident.
    let again = world.build_with("x.def", text, &with(&world, sandbox(false))).unwrap_err();
    assert!(describe(&again).contains("is there already"), "{}", describe(&again));
    std::fs::write(folder.join("opt/own"), "kept").unwrap();
    let update = DefinitionOptions { update: Some(folder.clone()), ..Default::default() };
    world.write("g", "y");
    build(&world, "Bootstrap: docker\nFrom: nothing-like-this\n%files\ng /opt/g\n%labels\nU yes\n", update);
    assert_eq!((read("opt/f"), read("opt/g"), read("opt/own")), ("x".into(), "y".into(), "kept".into()));
    assert!(read(".singularity.d/runscript").contains("echo first"));
    assert!(read(".singularity.d/labels.json").contains("\"U\": \"yes\""));
    build(&world, text, sandbox(true));
    assert!(!folder.join("opt/own").exists(), "--force writes it anew");
    let others: Vec<_> = std::fs::read_dir(world.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    // What --force replaces is a folder, and not the one that the caller is in.
    std::fs::write(world.dir.path().join("thesis"), "x").unwrap();
    let here = std::env::current_dir().unwrap();
    for (folder, part) in [
        (world.dir.path().join("thesis"), "is no folder"),
        (here.parent().unwrap().to_owned(), "the current folder"),
        (here, "the current folder"),
    ] {
        let options = DefinitionOptions { sandbox: Some(folder), force: true, ..Default::default() };
        let error = world.build_with("x.def", text, &with(&world, options)).unwrap_err();
        assert!(describe(&error).contains(part), "{}", describe(&error));
    }
}

#[test]
fn permissions_are_fixed_where_they_are_in_the_way() {
    let world = World::new();
    let tree = world.context().join("tree/locked");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("secret"), "s").unwrap();
    use std::os::unix::fs::PermissionsExt;
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(&tree.join("secret"), 0o044);
    chmod(&tree, 0o555);
    let text = "Bootstrap: scratch\n%files\ntree /tree\n";
    let list = |fix_permissions| {
        let options = DefinitionOptions { fix_permissions, ..Default::default() };
        let built = world.build_with("x.def", text, &with(&world, options));
        built.map(|built| world.list(&built.image))
    };
    if rustix::process::geteuid().is_root() {
        let before = list(false).unwrap();
        assert!(
            before["/tree/locked"].starts_with("555") && before["/tree/locked/secret"].starts_with("44 ")
        );
        let after = list(true).unwrap();
        assert!(after["/tree/locked"].starts_with("755"), "{:?}", after["/tree/locked"]);
        assert!(
            after["/tree/locked/secret"].starts_with("644 0:0 \"s\""),
            "{:?}",
            after["/tree/locked/secret"]
        );
    } else {
        println!("skip: not root, so the file without permissions cannot be read");
        chmod(&tree.join("secret"), 0o444);
        let after = list(true).unwrap();
        assert!(after["/tree/locked"].starts_with("755"), "{:?}", after["/tree/locked"]);
    }
    chmod(&tree, 0o755);
}

#[test]
fn a_specification_in_json() {
    let world = World::new();
    world.write("f", "x");
    let text = r#"{"header":{"bootstrap":"docker","from":"base"},"imageData":{"labels":{"A":"b"},
        "imageScripts":{"runScript":{"script":"echo hi"}}},
        "buildData":{"files":[{"args":"","files":[{"source":"f","destination":"/a b"}]}]}}"#;
    let json = DefinitionOptions { json: true, ..DefinitionOptions::default() };
    let list = world.list(&build(&world, text, json.clone()).image);
    assert!(list["/a b"].contains('x') && list["/.singularity.d/runscript"].contains("echo hi"));
    let error = world.build_with("x.def", "Bootstrap: docker\n", &with(&world, json)).unwrap_err();
    assert!(error.to_string().contains("x.def:1:1: it is no definition in JSON"), "{error}");
}

#[test]
fn arguments_of_the_caller() {
    let world = World::new();
    world.write("values", "BASE=base\nUNUSED=x\n");
    let text = "Bootstrap: docker\nFrom: {{ BASE }}\n";
    let file = Some(world.context().join("values"));
    let strict = DefinitionOptions { argument_file: file.clone(), ..Default::default() };
    let error = world.build_with("x.def", text, &with(&world, strict)).unwrap_err();
    assert!(error.to_string().contains("'UNUSED' is used nowhere"), "{error}");
    let lax = DefinitionOptions { argument_file: file, unused_arguments_warn: true, ..Default::default() };
    let built = build(&world, text, lax);
    assert!(built.warnings[0].message.contains("UNUSED"), "{:?}", built.warnings);
}

#[test]
fn folders_of_the_host_are_seen_where_the_caller_binds_them() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    world.write("data/f", "of the host");
    let mount = isles_spec::Mount::parse_volume(
        &format!("{}:/mnt/in:ro", world.context().join("data").display()),
        Path::new("/"),
        None,
    )
    .unwrap();
    let options = DefinitionOptions { mounts: vec![mount], ..DefinitionOptions::default() };
    let text = "Bootstrap: docker\nFrom: base\n%post\ncat /mnt/in/f > /copy\n%test\ntest -e /mnt/in/f\n";
    let list = world.list(&build(&world, text, options).image);
    assert!(list["/copy"].contains("of the host"));
    assert!(!list.contains_key("/mnt"), "the place of a mount is no part of the image");
}

#[test]
fn post_has_the_environment_of_its_base() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let first = "Bootstrap: docker\nFrom: base\n%environment\nexport FROM_BASE=yes\n%post\n\
        echo 'export LATER=1' >> $APPTAINER_ENVIRONMENT\necho 'Key of post' >> $APPTAINER_LABELS\n";
    let tagged = BuildOptions { tags: vec!["first".parse().unwrap()], ..world.options() };
    let image = world.build_with("x.def", first, &tagged).unwrap().image;
    assert_eq!(image.config.config.labels["Key"], "of post");
    assert!(!world.list(&image).contains_key("/.build.labels"), "it is read and removed");
    let second = "Bootstrap: docker\nFrom: first\n%post\necho $FROM_BASE $LATER > /seen; touch /mine\n";
    let list = world.list(&default(&world, second));
    assert!(list["/seen"].contains("yes 1"), "{:?}", list["/seen"]);
    assert!(list["/mine"].starts_with("664"), "files are their group's, too: {:?}", list["/mine"]);
}

/// What other builders have got wrong, by the number of the issue in hpcng/singularity or apptainer/apptainer.
#[test]
fn what_went_wrong_elsewhere() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let base = "Bootstrap: docker\nFrom: base\n";
    // 4969: the places of mounts may be links that lead nowhere.
    let text = format!(
        "{base}%setup\nrm $APPTAINER_ROOTFS/etc/hosts $APPTAINER_ROOTFS/etc/resolv.conf\n\
         ln -s /a/fake/path $APPTAINER_ROOTFS/etc/resolv.conf\nln -s /a/fake/path $APPTAINER_ROOTFS/etc/hosts\n\
         %post\necho fine > /made\n"
    );
    let list = world.list(&default(&world, &text));
    assert!(list["/made"].contains("fine") && list["/etc/hosts"] == "-> /a/fake/path");
    // 1097: a folder that the skeleton needs may be a link.
    let text = format!(
        "{base}%setup\nmv $APPTAINER_ROOTFS/var/tmp $APPTAINER_ROOTFS/var/old\n\
         ln -s ../tmp $APPTAINER_ROOTFS/var/tmp\n%post\ntouch /var/tmp/x\n"
    );
    assert_eq!(world.list(&default(&world, &text))["/var/tmp"], "-> ../tmp");
    // 2607 and 4583: links between stages stay links.
    let text = format!(
        "{base}Stage: one\n%post\ntouch /bar\nmkdir -p /foo /copy\n/bin/busybox ln -s ../bar /foo/bar\n\
         /bin/busybox ln -s /foo/bar /copy/file\n{base}%files from one\n/foo\n/copy\n"
    );
    let list = world.list(&default(&world, &text));
    assert_eq!((&*list["/foo/bar"], &*list["/copy/file"]), ("-> ../bar", "-> /foo/bar"));
    // 4820: apps are installed in order, and see each other.
    let text = format!(
        "{base}%appinstall hdf5\necho done > done.hdf5\n%appinstall med\ncat /scif/apps/hdf5/done.hdf5 > done.med\n"
    );
    assert!(world.list(&default(&world, &text))["/scif/apps/med/done.med"].contains("done"));
    // 4967: a program with arguments for %post.
    let text = format!("{base}%post -c /bin/busybox sh\ncat /proc/$$/cmdline > /said\n");
    assert!(world.list(&default(&world, &text))["/said"].starts_with("664 0:0 \"/bin/busybox\\0sh\\0/dev"));
    // 304: an environment that changes the folder.
    let text = format!("{base}%environment\ncd /usr\n%post\npwd > /here\n%test\ntrue\n%runscript\npwd\n");
    assert!(world.list(&default(&world, &text))["/here"].contains("\"/\\n\""));
}
