//! Build contexts that are not a folder of the host, and the time that a build may take from them.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use isles_build::BuildOptions;
use isles_build::elsewhere::{self, Fetched, Wanted};
use isles_spec::Quiet;
use isles_store::Image;
use isles_store::tar::{Entry, Kind, Writer};
use support::web::{Server, repository};
use support::{World, describe};

/// An archive of files, and of links where the text begins with an arrow; all of the same time.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, text) in files {
        let link = text.strip_prefix("-> ");
        let data = if link.is_some() { "" } else { text };
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: if link.is_some() { Kind::Symlink } else { Kind::File },
            link: link.unwrap_or_default().as_bytes().to_vec(),
            mode: 0o644,
            uid: 1234,
            size: data.len() as u64,
            mtime: (1_400_000_000, 0),
            ..Entry::default()
        };
        writer.begin(&entry).unwrap();
        writer.data(data.as_bytes()).unwrap();
    }
    writer.finish().unwrap()
}

fn build(world: &World, fetched: &Fetched, options: &BuildOptions) -> Image {
    let built = isles_build::build(&world.engine, &world.client, &fetched.found, options, &Quiet);
    built.unwrap_or_else(|e| panic!("{}", describe(&e))).image
}

fn fetch(
    world: &World,
    what: &str,
    wanted: Wanted<'_>,
    options: &BuildOptions,
) -> Result<Fetched, isles_build::Error> {
    elsewhere::fetch(&world.engine, &world.client, what, wanted, options, &Quiet)
}

#[test]
fn repositories_are_contexts() {
    let world = World::new();
    let folder = world.dir.path().join("served");
    std::fs::create_dir(&folder).unwrap();
    if repository(&folder).is_none() {
        println!("skip: there is no git on this machine");
        return;
    }
    let server = Server::of_folder(&folder);
    let url = format!("{}#v1", server.url("/repo.git"));
    let epoch = world.args(&[("SOURCE_DATE_EPOCH", "context")]);
    let fetched = fetch(&world, &url, Wanted::Usual, &epoch).unwrap();
    let image = build(&world, &fetched, &epoch);
    assert_eq!(world.list(&image)["/copied"], "644 0:0 \"one\"");
    assert_eq!(image.config.created.as_deref(), Some("2017-07-14T02:40:00Z"), "the time of the commit");
    let text = b"FROM base\nCOPY .git/HEAD /x\n";
    let options = world.args(&[("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "1")]);
    let fetched = fetch(&world, &url, Wanted::Text(text), &options).unwrap();
    assert!(world.list(&build(&world, &fetched, &options)).contains_key("/x"));
    let fetched =
        fetch(&world, &format!("{url}:sub"), Wanted::Text(b"FROM base\nCOPY deep/x /x\n"), &epoch).unwrap();
    assert!(world.list(&build(&world, &fetched, &epoch)).contains_key("/x"));
    let error = fetch(&world, &url, Wanted::Named(Path::new("other")), &epoch).map(drop).unwrap_err();
    assert!(error.to_string().contains("no recipe 'other'"), "{error}");
    let error = fetch(&world, &format!("{url}:sub"), Wanted::Usual, &epoch).map(drop).unwrap_err();
    assert_eq!(error.to_string(), format!("no recipe in '{}'", server.url("/repo.git")));
    // A stage may name a repository whose time is the build's.
    let text = format!(
        "ARG SOURCE_DATE_EPOCH=source\nFROM scratch AS source\nADD {} /\nFROM base\nCOPY --from=source /file /\n",
        server.url("/repo.git#v1")
    );
    assert_eq!(world.image(&text).config.created.as_deref(), Some("2017-07-14T02:40:00Z"));
    let kept = std::fs::read_dir(world.engine.store().root().join("cache/files")).map_or(0, |d| d.count());
    assert!(kept <= 2, "what is gone after the build is not remembered");
}

#[test]
fn archives_and_recipes_are_contexts() {
    let world = World::new();
    let plain = archive(&[
        ("Dockerfile", "FROM base\nCOPY . /all/\n"),
        ("own/recipe", "FROM base\nCOPY f /f\n"),
        ("own/recipe.dockerignore", "nothing\n"),
        (".dockerignore", "left\n"),
        ("f", "x"),
        ("left", "y"),
    ]);
    let packed = zstd::encode_all(&plain[..], 1).unwrap();
    let served = packed.clone();
    let server = Server::new(move |request| match request.path.as_str() {
        "/x.tar.zst" => (200, Vec::new(), served.clone()),
        "/recipe" => (200, Vec::new(), b"FROM base\nLABEL a=b\n".to_vec()),
        _ => (404, Vec::new(), Vec::new()),
    });
    let options = world.args(&[("SOURCE_DATE_EPOCH", "context")]);
    for fetched in [
        fetch(&world, &server.url("/x.tar.zst"), Wanted::Usual, &options).unwrap(),
        elsewhere::read(&world.engine, &plain[..], Wanted::Usual).unwrap(),
    ] {
        let image = build(&world, &fetched, &options);
        let list = world.list(&image);
        assert_eq!(list["/all/f"], "644 0:0 \"x\"");
        assert!(!list.contains_key("/all/left"));
        assert_eq!(image.config.created.as_deref(), Some("2014-05-13T16:53:20Z"));
    }
    let named = elsewhere::read(&world.engine, &plain[..], Wanted::Named(Path::new("own/recipe"))).unwrap();
    assert!(world.list(&build(&world, &named, &options)).contains_key("/f"));
    for fetched in [
        fetch(&world, &server.url("/recipe"), Wanted::Usual, &options).unwrap(),
        elsewhere::read(&world.engine, &b"FROM base\nLABEL a=b\n"[..], Wanted::Usual).unwrap(),
    ] {
        assert_eq!(build(&world, &fetched, &options).config.config.labels["a"], "b");
    }
    assert!(fetch(&world, &server.url("/nothing"), Wanted::Usual, &options).is_err());
}

#[test]
fn links_of_a_fetched_context_lead_nowhere_else() {
    let world = World::new();
    std::fs::write(world.dir.path().join("private"), "FROM base\nLABEL private=1\n").unwrap();
    let private = world.dir.path().join("private").display().to_string();
    let link = format!("-> {private}");
    for files in [
        &[("Dockerfile", link.as_str())][..],
        &[("Dockerfile", "-> ../../../../../../../../etc/passwd")],
        &[("d", "-> /"), ("d/Dockerfile", "FROM base\n"), ("e", "-> ../../.."), ("e/x", "y")],
    ] {
        match elsewhere::read(&world.engine, &archive(files)[..], Wanted::Usual) {
            // The archive's own files are written below its folder, whatever its links say.
            Ok(fetched) => drop(build(&world, &fetched, &world.options())),
            Err(e) => assert!(e.to_string().contains("no recipe"), "{e}"),
        }
    }
    assert!(!Path::new("/Dockerfile").exists());
    let ignore =
        archive(&[("Dockerfile", "FROM base\nCOPY . /all/\n"), (".dockerignore", &link), ("f", "x")]);
    let fetched = elsewhere::read(&world.engine, &ignore[..], Wanted::Usual).unwrap();
    assert!(world.list(&build(&world, &fetched, &world.options())).contains_key("/all/f"));
    for files in [&[("../x", "y")][..], &[("Dockerfile", "FROM base\n"), (".wh.x", "y")]] {
        assert!(elsewhere::read(&world.engine, &archive(files)[..], Wanted::Usual).is_err());
    }
}

#[test]
fn a_fetched_definition_sees_nothing_of_the_host() {
    let world = World::new();
    let private = world.dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::write(private.join("Dockerfile"), "FROM base\n").unwrap();
    let private = private.display().to_string();
    let link = format!("-> {private}");
    let options = world.options();
    let try_it = |text: &str| {
        let packed =
            archive(&[("x.def", text), ("f", "x"), ("out", &link), ("in/Dockerfile", "FROM base\n")]);
        let fetched = elsewhere::read(&world.engine, &packed[..], Wanted::Usual).unwrap();
        isles_build::build(&world.engine, &world.client, &fetched.found, &options, &Quiet)
            .map(drop)
            .map_err(|e| describe(&e))
    };
    for text in [
        "Bootstrap: scratch\n%setup\ntouch $SINGULARITY_ROOTFS/x\n".to_owned(),
        "Bootstrap: scratch\n%files\n/etc/passwd /x\n".to_owned(),
        "Bootstrap: scratch\n%files\nf /f\n\\/etc/passwd /x\n".to_owned(),
        "Bootstrap: scratch\n%files\n../../private /x\n".to_owned(),
        "Bootstrap: scratch\n%appfiles a\n/etc/passwd x\n".to_owned(),
        format!("Bootstrap: localimage\nFrom: {private}\n"),
        "Bootstrap: localimage\nFrom: out\n".to_owned(),
        format!("Bootstrap: localimage\nFrom: oci:{private}:tag\n"),
        format!("Bootstrap: oci\nFrom: {private}:tag\n"),
        format!("Bootstrap: dockerfile\nFrom: {private}\n"),
        format!("Bootstrap: dockerfile\nFrom: in\nFilename: {private}/Dockerfile\n"),
        "Bootstrap: dockerfile\nFrom: out\n".to_owned(),
        "Bootstrap: dnf\nMirrorURL: http://127.0.0.1:1\n".to_owned(),
        "Bootstrap: docker-daemon\nFrom: x\n".to_owned(),
    ] {
        let shown = try_it(&text).expect_err(&text);
        assert!(
            shown.contains("on the host, which a recipe that was fetched does not see"),
            "{text}: {shown}"
        );
        assert!(shown.contains("build it from its folder"), "{text}: {shown}");
    }
    for text in ["Bootstrap: scratch\n%files\nf /f\n", "Bootstrap: dockerfile\nFrom: in\n"] {
        try_it(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
}

#[test]
fn the_time_of_a_build() {
    let world = World::new();
    let packed = archive(&[("x", "y")]);
    let server = Server::new(move |request| match request.path.as_str() {
        "/dated" => (200, vec![("Last-Modified", "Fri, 14 Jul 2017 02:40:00 GMT".into())], b"x".to_vec()),
        "/x.tar" => (200, Vec::new(), packed.clone()),
        _ => (200, Vec::new(), b"x".to_vec()),
    });
    let stage = |add: &str| {
        format!(
            "ARG SOURCE_DATE_EPOCH=time\nFROM base AS me\nARG SOURCE_DATE_EPOCH\nLABEL e=$SOURCE_DATE_EPOCH\nFROM scratch AS Time\nARG U={}\n{add}\nFROM me\n",
            server.url("")
        )
    };
    for (text, given, created, label) in [
        ("FROM base\nARG SOURCE_DATE_EPOCH\nLABEL e=$SOURCE_DATE_EPOCH\n".to_owned(), Some("1400000000"), Some("2014-05-13T16:53:20Z"), "1400000000"),
        ("ARG SOURCE_DATE_EPOCH=1400000000\nFROM base\nARG SOURCE_DATE_EPOCH\nLABEL e=$SOURCE_DATE_EPOCH\n".to_owned(), None, Some("2014-05-13T16:53:20Z"), "1400000000"),
        ("ARG SOURCE_DATE_EPOCH=1\nFROM base\nARG SOURCE_DATE_EPOCH\nLABEL e=$SOURCE_DATE_EPOCH\n".to_owned(), Some("1400000000"), Some("2014-05-13T16:53:20Z"), "1400000000"),
        // A folder of the host has no time of its own.
        ("FROM base\nARG SOURCE_DATE_EPOCH\nLABEL e=$SOURCE_DATE_EPOCH\n".to_owned(), Some("context"), None, ""),
        (stage("ADD $U/dated /"), None, Some("2017-07-14T02:40:00Z"), "1500000000"),
        (stage("ADD $U/x.tar /"), None, Some("2014-05-13T16:53:20Z"), "1400000000"),
        (stage("ADD $U/undated /"), None, None, ""),
    ] {
        let options = match given {
            Some(value) => world.args(&[("SOURCE_DATE_EPOCH", value)]),
            None => world.options(),
        };
        let image = world.build_with("Dockerfile", &text, &options).unwrap_or_else(|e| panic!("{text}{}", describe(&e))).image;
        if let Some(created) = created {
            assert_eq!(image.config.created.as_deref(), Some(created), "{text}");
            assert!(image.config.history.iter().all(|h| h.created.as_deref() <= Some(created)), "{text}");
        } else {
            assert!(image.config.created.unwrap().as_str() > "2018", "{text}");
        }
        assert_eq!(image.config.config.labels["e"], label, "{text}");
    }
    for (text, part) in [
        (stage("COPY x /"), "has one ADD"),
        (stage("ADD x /"), "adds a URL or a repository"),
        (stage("ADD $U/a $U/b /"), "adds one thing"),
        (stage("ADD $U/a /\nADD $U/a /"), "has one ADD"),
        (stage(""), "has one ADD"),
        ("ARG SOURCE_DATE_EPOCH=me\nFROM base AS me\n".into(), "FROM scratch"),
        ("ARG SOURCE_DATE_EPOCH=soon\nFROM base AS me\n".into(), "invalid SOURCE_DATE_EPOCH 'soon'"),
    ] {
        let error = world.build(&text).expect_err(&text);
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}
