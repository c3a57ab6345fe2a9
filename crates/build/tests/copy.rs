//! COPY and ADD: which files, where to, and as whose.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};

use support::World;

fn world() -> World {
    let world = World::new();
    world.write("a.txt", "a").write("b.txt", "b").write("dir/one", "1").write("dir/sub/two", "2");
    let context = world.context();
    for (path, mode) in
        [("a.txt", 0o640), ("b.txt", 0o644), ("dir", 0o750), ("dir/sub", 0o700), ("dir/one", 0o644)]
    {
        std::fs::set_permissions(context.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::set_permissions(context.join("dir/sub/two"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("a.txt", context.join("ln")).unwrap();
    symlink("one", context.join("dir/inner")).unwrap();
    world.write("nest/data/real/f", "n");
    for (path, mode) in [("nest/data", 0o711), ("nest/data/real", 0o700), ("nest/data/real/f", 0o644)] {
        std::fs::set_permissions(context.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::create_dir_all(context.join("odd")).unwrap();
    symlink("no/where", context.join("odd/dangling")).unwrap();
    symlink("../../etc", context.join("odd/up")).unwrap();
    std::fs::create_dir(context.join("empty")).unwrap();
    world
}

/// What an instruction changes: the lines of the new image that the base does not have.
fn changes(world: &World, instruction: &str) -> BTreeMap<String, String> {
    let before = world.list(&world.image("FROM base\n"));
    let after = world.list(&world.image(&format!("FROM base\n{instruction}\n")));
    for path in before.keys() {
        assert!(after.contains_key(path), "{instruction} took {path} away");
    }
    after.into_iter().filter(|(path, line)| before.get(path) != Some(line)).collect()
}

#[test]
fn where_files_go() {
    let world = world();
    for (instruction, expected) in [
        ("COPY a.txt /new", &[("/new", "640 0:0 \"a\"")][..]),
        ("COPY a.txt /open", &[("/open/a.txt", "640 0:0 \"a\"")]),
        ("COPY a.txt /open/", &[("/open/a.txt", "640 0:0 \"a\"")]),
        (
            "COPY a.txt /x/y/",
            &[("/x", "755 0:0 dir"), ("/x/y", "755 0:0 dir"), ("/x/y/a.txt", "640 0:0 \"a\"")],
        ),
        ("COPY a.txt /x/y", &[("/x", "755 0:0 dir"), ("/x/y", "640 0:0 \"a\"")]),
        ("COPY a.txt b.txt /open/", &[("/open/a.txt", "640 0:0 \"a\""), ("/open/b.txt", "644 0:0 \"b\"")]),
        ("COPY *.txt /open/", &[("/open/a.txt", "640 0:0 \"a\""), ("/open/b.txt", "644 0:0 \"b\"")]),
        ("COPY [\"a.txt\", \"/with blank\"]", &[("/with blank", "640 0:0 \"a\"")]),
        // The content of a directory, not itself; those below it keep their modes.
        (
            "COPY dir /open",
            &[
                ("/open/inner", "-> one"),
                ("/open/one", "644 0:0 \"1\""),
                ("/open/sub", "700 0:0 dir"),
                ("/open/sub/two", "4755 0:0 \"2\""),
            ],
        ),
        ("COPY dir/sub /made/", &[("/made", "755 0:0 dir"), ("/made/two", "4755 0:0 \"2\"")]),
        // A link that is named is followed, one that is found stays.
        ("COPY ln /new", &[("/new", "640 0:0 \"a\"")]),
        ("COPY dir/inner /new", &[("/new", "644 0:0 \"1\"")]),
        // Links on the way to the destination are followed inside the image.
        ("COPY a.txt /link/", &[("/data/real/a.txt", "640 0:0 \"a\"")]),
        ("COPY a.txt /lib/x", &[("/usr/lib/x", "640 0:0 \"a\"")]),
        ("COPY a.txt /data/tofile", &[("/data/file", "640 0:0 \"a\"")]),
        ("COPY --link a.txt /new/", &[("/new", "755 0:0 dir"), ("/new/a.txt", "640 0:0 \"a\"")]),
        ("COPY --chmod=600 a.txt /new", &[("/new", "600 0:0 \"a\"")]),
        ("COPY --chmod=u=rwX,go=rX dir/sub /open/", &[("/open/two", "755 0:0 \"2\"")]),
        (
            "COPY --parents dir/sub/two /open/",
            &[
                ("/open/dir", "750 0:0 dir"),
                ("/open/dir/sub", "700 0:0 dir"),
                ("/open/dir/sub/two", "4755 0:0 \"2\""),
            ],
        ),
        (
            "COPY --parents dir/./sub/two /open/",
            &[("/open/sub", "700 0:0 dir"), ("/open/sub/two", "4755 0:0 \"2\"")],
        ),
        (
            "COPY --parents ./**/two /open/",
            &[
                ("/open/dir", "750 0:0 dir"),
                ("/open/dir/sub", "700 0:0 dir"),
                ("/open/dir/sub/two", "4755 0:0 \"2\""),
            ],
        ),
        ("COPY --exclude=sub --exclude=inner dir /open/", &[("/open/one", "644 0:0 \"1\"")]),
        ("COPY --exclude=a* *.txt /open/", &[("/open/b.txt", "644 0:0 \"b\"")]),
        ("WORKDIR /open\nCOPY a.txt .", &[("/open/a.txt", "640 0:0 \"a\"")]),
        ("WORKDIR /open\nCOPY a.txt ../up", &[("/up", "640 0:0 \"a\"")]),
        ("COPY <<EOF /new\nhi $BASE\nEOF", &[("/new", "644 0:0 \"hi 1\\n\"")]),
        (
            "COPY <<'EOF' <<other /open/\n$BASE\nEOF\nx\nother",
            &[("/open/EOF", "644 0:0 \"$BASE\\n\""), ("/open/other", "644 0:0 \"x\\n\"")],
        ),
        ("COPY nothing* /open/", &[]),
        // All of them, one after the other.
        ("COPY *.txt /x", &[("/x", "644 0:0 \"b\"")]),
        // What the image has below the destination takes mode and owner of the source; the destination keeps its own.
        (
            "COPY nest /",
            &[("/data", "711 0:0 dir"), ("/data/real", "700 0:0 dir"), ("/data/real/f", "644 0:0 \"n\"")],
        ),
        ("COPY nest/data/ /data", &[("/data/real", "700 0:0 dir"), ("/data/real/f", "644 0:0 \"n\"")]),
        // A layer of its own knows no links of the image.
        ("COPY --link a.txt /link/", &[("/link", "755 0:0 dir"), ("/link/a.txt", "640 0:0 \"a\"")]),
        ("COPY --link --chown=5:6 a.txt /new/", &[("/new", "755 5:6 dir"), ("/new/a.txt", "640 5:6 \"a\"")]),
        ("COPY --chmod=0711 dir/sub /open/", &[("/open/two", "711 0:0 \"2\"")]),
        (
            "COPY --chmod=0700 nest/data /open/",
            &[("/open/real", "700 0:0 dir"), ("/open/real/f", "700 0:0 \"n\"")],
        ),
        ("COPY empty /new", &[("/new", "755 0:0 dir")]),
        ("COPY empty/ /new/", &[("/new", "755 0:0 dir")]),
        ("COPY odd /open/", &[("/open/dangling", "-> no/where"), ("/open/up", "-> ../../etc")]),
        (
            "COPY --parents a.txt dir/one /open/",
            &[
                ("/open/a.txt", "640 0:0 \"a\""),
                ("/open/dir", "750 0:0 dir"),
                ("/open/dir/one", "644 0:0 \"1\""),
            ],
        ),
        ("COPY --parents no*/where /open/", &[]),
        (
            "COPY --parents dir/./*/two /open/",
            &[("/open/sub", "700 0:0 dir"), ("/open/sub/two", "4755 0:0 \"2\"")],
        ),
        (
            "COPY --parents nest/./data /open/",
            &[
                ("/open/data", "711 0:0 dir"),
                ("/open/data/real", "700 0:0 dir"),
                ("/open/data/real/f", "644 0:0 \"n\""),
            ],
        ),
        ("WORKDIR /open\nENV empty=\nCOPY a.txt $empty", &[("/open/a.txt", "640 0:0 \"a\"")]),
        (
            "WORKDIR /open\nENV empty=\nCOPY --link a.txt $empty",
            &[("/open", "755 0:0 dir"), ("/open/a.txt", "640 0:0 \"a\"")],
        ),
        ("WORKDIR /open\nCOPY --link a.txt .", &[("/open", "755 0:0 dir"), ("/open/a.txt", "640 0:0 \"a\"")]),
        // Directories that are made have a mode in figures, too, and no other.
        (
            "COPY --chmod=770 a.txt /p/q/f",
            &[("/p", "770 0:0 dir"), ("/p/q", "770 0:0 dir"), ("/p/q/f", "770 0:0 \"a\"")],
        ),
        ("COPY --chmod=go= a.txt /p/f", &[("/p", "755 0:0 dir"), ("/p/f", "600 0:0 \"a\"")]),
        ("COPY --chmod=0 a.txt /new", &[("/new", "0 0:0 \"a\"")]),
        // Several directories become one, whether or not a slash says so.
        (
            "COPY dir/su* nest/dat* /new/",
            &[
                ("/new", "755 0:0 dir"),
                ("/new/real", "700 0:0 dir"),
                ("/new/real/f", "644 0:0 \"n\""),
                ("/new/two", "4755 0:0 \"2\""),
            ],
        ),
        (
            "COPY ne*t /new",
            &[
                ("/new", "755 0:0 dir"),
                ("/new/data", "711 0:0 dir"),
                ("/new/data/real", "700 0:0 dir"),
                ("/new/data/real/f", "644 0:0 \"n\""),
            ],
        ),
        ("COPY --exclude=* [dn]* /new", &[("/new", "755 0:0 dir")]),
        ("COPY no*thing /made/new/", &[]),
        ("COPY <<EOF /x/q\n\\\nEOF", &[("/x", "755 0:0 dir"), ("/x/q", "644 0:0 \"\\n\"")]),
        ("COPY <<EOF /new\n\\\\\nEOF", &[("/new", "644 0:0 \"\\\\\\n\"")]),
        ("COPY <<EOF /new\n\\$\nEOF", &[("/new", "644 0:0 \"$\\n\"")]),
        ("COPY <<\"EOF\" /new\n\\\nEOF", &[("/new", "644 0:0 \"\\\\\\n\"")]),
        ("COPY <<\"EOF\" /new\n\\$\nEOF", &[("/new", "644 0:0 \"\\\\$\\n\"")]),
        // Patterns of --exclude are those of .dockerignore, from each source on.
        ("COPY --exclude=** --exclude=!one dir /open/", &[("/open/one", "644 0:0 \"1\"")]),
        (
            "COPY --exclude=**/two --exclude=inner dir /open/",
            &[("/open/one", "644 0:0 \"1\""), ("/open/sub", "700 0:0 dir")],
        ),
        ("COPY --exclude=dir/one --exclude=sub --exclude=in* dir /open/", &[("/open/one", "644 0:0 \"1\"")]),
        // Quotes in a here-document are text.
        (
            "COPY <<EOF /new\n\"$BASE\" '$BASE' \\$BASE ${NO:-x}\nEOF",
            &[("/new", "644 0:0 \"\\\"1\\\" '1' $BASE x\\n\"")],
        ),
        ("COPY <<-EOF /new\n\t\ttabs\n\tEOF", &[("/new", "644 0:0 \"tabs\\n\"")]),
        ("COPY --chmod=755 --chown=app <<EOF /new\n#!\nEOF", &[("/new", "755 1000:1001 \"#!\\n\"")]),
        ("ARG D=/open\nENV F=a\nCOPY $F.txt ${D}/x", &[("/open/x", "640 0:0 \"a\"")]),
    ] {
        let changes = changes(&world, instruction);
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(p, l)| ((*p).to_owned(), (*l).to_owned())).collect();
        assert_eq!(changes, expected, "{instruction}");
    }
}

#[test]
fn whose_files_are() {
    let world = world();
    for (instruction, owner) in [
        ("COPY --chown=app a.txt /new", "1000:1001"),
        ("COPY --chown=app:staff a.txt /new", "1000:50"),
        ("COPY --chown=7 a.txt /new", "7:7"),
        ("COPY --chown=7:staff a.txt /new", "7:50"),
        ("COPY --chown=:staff a.txt /new", "0:50"),
        ("ARG WHO=app\nCOPY --chown=$WHO a.txt /new", "1000:1001"),
    ] {
        let changes = changes(&world, instruction);
        assert_eq!(changes["/new"], format!("640 {owner} \"a\""), "{instruction}");
    }
    // Directories that are made belong to the same; those that were there keep theirs.
    let changes = changes(&world, "COPY --chown=7:8 a.txt /open/deep/");
    assert_eq!(changes["/open/deep"], "755 7:8 dir");
    assert!(!changes.contains_key("/open"));
}

#[test]
fn from_other_stages() {
    let world = world();
    let head = "FROM base AS one\nCOPY --chown=65:66 dir /made\n";
    let list = world.list(&world.image(&format!("{head}FROM base\nCOPY --from=one /made /got/\n")));
    assert_eq!(list["/got"], "755 0:0 dir");
    assert_eq!(list["/got/one"], "644 65:66 \"1\"", "the owner goes along");
    assert_eq!(list["/got/inner"], "-> one");
    let list = world.list(
        &world
            .image(&format!("{head}FROM scratch\nCOPY --from=0 /made/o* /\nCOPY --from=base /lib/ /lib/\n")),
    );
    assert_eq!(list["/one"], "644 65:66 \"1\"");
    // An image by name is a source too, and its links are followed.
    let list = world.list(&world.image("FROM scratch\nCOPY --from=base /data/tofile /link /x/\n"));
    assert_eq!(list.keys().map(String::as_str).collect::<Vec<_>>(), ["/x", "/x/tofile"]);
    assert_eq!(list["/x/tofile"], "644 0:0 \"old\"");
}

/// The cases of BuildKit's own tests of --parents.
#[test]
fn the_way_is_kept() {
    let world = world();
    for path in ["a/b/c/d/foo", "a/b/c/d/e/bay", "a/b2/c/d/e/bar", "a/b/c2/d/e/baz", "a/b/c2/d/e2/baz"] {
        world.write(&format!("test/{path}"), "");
    }
    symlink("b", world.context().join("test/a/ln")).unwrap();
    for (words, there, missing) in [
        ("/test/a/b/./c/d", &["c/d/e", "c/d/foo"][..], &["a", "e", "test"][..]),
        ("/test/a/b/c/d/.", &["test/a/b/c/d/e", "test/a/b/c/d/foo"], &["e"]),
        ("./test/a/b/c/d", &["test/a/b/c/d/e", "test/a/b/c/d/foo"], &["e"]),
        ("/test/a/./b/./c", &["b/c/d/e", "b/c/d/foo"], &["c", "a"]),
        ("/test/a/./*/c", &["b/c/d/e", "b2/c/d/e/bar"], &["c"]),
        ("/test/a/b*/./c/**/e", &["c/d/e", "c/d/e/bay", "c/d/e/bar"], &["b", "e", "c/d/foo"]),
        (
            "/test/a/b/c*/./d/**/baz /test/a/b*/./c/**/bar",
            &["d/e/baz", "d/e2/baz", "c/d/e/bar"],
            &["d/e/bay", "c2"],
        ),
        ("/test/a/b2*/no", &[""], &["a", "test"]),
        ("/test/a/b/./c3*", &[""], &["a", "c3"]),
        ("test/a/ln/./c/d/*", &["c/d/foo", "c/d/e/bay"], &["d", "test"]),
        ("test/no*/./c", &[""], &["c"]),
    ] {
        let list = world.list(&world.image(&format!("FROM scratch\nCOPY --parents {words} /out/\n")));
        let has = |path: &&str| list.contains_key(format!("/out/{path}").trim_end_matches('/'));
        assert!(there.iter().all(has), "{words}: {list:#?}");
        assert!(!missing.iter().any(has), "{words}: {list:#?}");
    }
    assert!(world.build("FROM scratch\nCOPY --parents test/no/./c /out/\n").is_err());
}

#[test]
fn files_with_two_names_stay_one() {
    let world = world();
    std::fs::create_dir(world.context().join("hard")).unwrap();
    std::fs::write(world.context().join("hard/a"), "same").unwrap();
    std::fs::hard_link(world.context().join("hard/a"), world.context().join("hard/b")).unwrap();
    let image = world.image("FROM scratch\nCOPY hard /\n");
    let view = world.view(&image);
    let inode = |p: &str| view.lstat(std::path::Path::new(p)).unwrap().inode;
    assert_eq!(inode("/a"), inode("/b"));
}

#[test]
fn times_and_holes_are_kept() {
    let world = world();
    let path = world.context().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 0);
    file.set_modified(time).unwrap();
    let image = world.image("FROM scratch\nCOPY sparse /\n");
    let view = world.view(&image);
    let copied = view.open_file(std::path::Path::new("/sparse")).unwrap();
    let metadata = copied.metadata().unwrap();
    assert_eq!(metadata.modified().unwrap(), time);
    assert_eq!(metadata.len(), 64 << 20);
    use std::os::unix::fs::MetadataExt;
    assert!(metadata.blocks() < 1000, "it has {} blocks", metadata.blocks());
}

#[test]
fn what_is_refused() {
    let world = world();
    symlink("/etc/passwd", world.context().join("out")).unwrap();
    symlink("../../../../../../etc/passwd", world.context().join("up")).unwrap();
    symlink("nowhere", world.context().join("dangling")).unwrap();
    world.write("clash/dir/etc/passwd/x", "y").write("clash/file/data", "y");
    world.write("ignored", "x").write(".wh.x", "y").write("Dockerfile.dockerignore", "ignored\n!nothing\n");
    for (instruction, place, part, hint) in [
        ("COPY a.tx /", "2:6", "'a.tx' is not in", "a.txt"),
        ("COPY nothing-like-it /", "2:6", "'nothing-like-it' is not in", "paths begin at that folder"),
        ("COPY --from=tools a /", "2:6", "'tools'", "no stage before this one is called 'tools'"),
        ("COPY dir/onee /", "2:6", "'dir/onee' is not in", "dir/one"),
        ("COPY out /", "2:6", "'out' is not in", "symbolic link"),
        ("COPY up /", "2:6", "'up' is not in", "symbolic link"),
        ("COPY dangling /", "2:6", "not in", "symbolic link"),
        ("COPY ignored /", "2:6", "left out by .dockerignore", "!"),
        ("COPY a.txt b.txt /x", "2:18", "directory", "/x/"),
        ("COPY dir /data/file", "2:1", "not a directory", "RUN"),
        ("COPY dir /etc/passwd/", "2:1", "not a directory", ""),
        ("COPY clash/dir /", "2:1", "not a directory", "RUN"),
        ("COPY clash/file /", "2:1", "is a directory", "RUN"),
        ("COPY --parents no/where /x/", "2:16", "not in", ""),
        ("COPY --chmod=77777 a.txt /", "2:6", "invalid mode", "755"),
        ("COPY --chmod=u=rwx,,g=q a.txt /", "2:6", "invalid mode", "755"),
        ("COPY --exclude=[ a.txt /", "2:6", "invalid pattern", ""),
        ("COPY --chown=nobody a.txt /", "2:1", "no user 'nobody'", "RUN"),
        ("COPY --chown=0:nobody a.txt /", "2:1", "no group 'nobody'", ""),
        ("COPY --chmod=u+q a.txt /", "2:6", "invalid mode", "755"),
        ("COPY .wh.x /", "2:1", "cannot be in an image", "rename"),
        ("COPY [b /", "2:6", "bracket", ""),
        ("COPY --from=one a /", "2:6", "no image 'one'", ""),
        ("COPY --from=5 a /", "2:6", "no stage 5", "first"),
    ] {
        let error = world.build(&format!("FROM base\n{instruction}\n")).expect_err(instruction);
        let text = support::describe(&error);
        assert!(text.contains(&format!("Dockerfile:{place}: ")), "{instruction}: {text}");
        assert!(text.contains(part), "{instruction}: {text}");
        assert!(text.split("hint: ").nth(1).unwrap().contains(hint), "{instruction}: {text}");
    }
}

/// What comes where something else is: a file or a link takes the place of a file or a link, folders are merged, and
/// what would make a folder go is refused, as BuildKit refuses it. With --link the new layer has no idea of what it
/// hides.
#[test]
fn what_is_there_already() {
    let world = world();
    let base = "FROM base\nRUN ln -s /data/real /open/ln && echo old > /open/f && mkdir /open/d && echo kept > /open/d/old\n";
    if !world.can_run() {
        return;
    }
    symlink("f", world.context().join("ln2")).unwrap();
    world
        .write("file-over-dir/d", "new")
        .write("dir-over-file/f/x", "new")
        .write("dir-over-link/ln/x", "new");
    world.write("file-over-link/ln", "new").write("file-over-file/f", "new").write("dir-over-dir/d/x", "new");
    for name in ["d", "f", "ln"] {
        let folder = world.context().join(format!("link-over-{name}"));
        std::fs::create_dir(&folder).unwrap();
        symlink("elsewhere", folder.join(name)).unwrap();
    }
    for (name, path, plain, link) in [
        ("file-over-file", "/open/f", Some("\"new\""), "\"new\""),
        ("file-over-link", "/open/ln", Some("\"new\""), "\"new\""),
        ("file-over-dir", "/open/d", None, "\"new\""),
        ("link-over-f", "/open/f", Some("-> elsewhere"), "-> elsewhere"),
        ("link-over-ln", "/open/ln", Some("-> elsewhere"), "-> elsewhere"),
        ("link-over-d", "/open/d", None, "-> elsewhere"),
        ("dir-over-file", "/open/f/x", None, "\"new\""),
        ("dir-over-link", "/open/ln/x", None, "\"new\""),
        ("dir-over-dir", "/open/d/x", Some("\"new\""), "\"new\""),
    ] {
        let text = |flag: &str| format!("{base}COPY {flag}{name} /open/\n");
        match plain {
            Some(expected) => {
                let all = world.list(&world.image(&text("")));
                assert!(all[path].ends_with(expected), "{name}: {}", all[path]);
                assert!(all.contains_key("/open/d/old"), "{name}");
            }
            None => {
                let said = support::describe(&world.build(&text("")).unwrap_err());
                assert!(said.contains("directory") && said.contains("RUN"), "{name}: {said}");
            }
        }
        let all = world.list(&world.image(&text("--link ")));
        assert!(all[path].ends_with(link), "{name} --link: {}", all[path]);
        let merged = path.starts_with("/open/d/") || !path.starts_with("/open/d");
        assert_eq!(all.contains_key("/open/d/old"), merged, "{name} --link");
    }
}

#[test]
fn stages_that_cannot_be_meant() {
    let world = world();
    for (text, part) in [
        ("FROM base AS me\nCOPY --from=me /x /\n", "from itself"),
        ("FROM base AS a\nCOPY --from=b /x /\nFROM base AS b\nCOPY --from=a /x /\n", "comes later"),
        (
            "FROM base AS builder\nFROM base\nCOPY --from=biulder /etc /x\n",
            "did you mean the stage 'builder'?",
        ),
        ("FROM base AS builder\nFROM buidler\n", "did you mean the stage 'builder'?"),
    ] {
        let options = isles_build::BuildOptions { target: None, ..world.options() };
        let mut options = options;
        if text.contains("AS b\n") {
            options.target = Some("a".into());
        }
        let error = world.build_with("Dockerfile", text, &options).unwrap_err();
        let text_of = support::describe(&error);
        assert!(text_of.contains(part), "{text}: {text_of}");
    }
}

#[test]
fn odd_files_of_a_context() {
    let world = world();
    world.write("odd/plain", "x");
    let fifo = world.context().join("odd/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.context().join("odd/socket")).unwrap();
    let list = world.list(&world.image("FROM scratch\nCOPY odd /\n"));
    assert_eq!(list["/fifo"], "600 0:0 Fifo");
    assert!(!list.contains_key("/socket"), "an archive has no entry for a socket");
    let error = world.build("FROM scratch\nCOPY odd/socket /\n").unwrap_err();
    assert!(error.to_string().contains("socket"), "{error}");
    if !rustix::process::geteuid().is_root() {
        std::fs::set_permissions(world.context().join("odd/plain"), std::fs::Permissions::from_mode(0o000))
            .unwrap();
        let error = support::describe(&world.build("FROM scratch\nCOPY odd /\n").unwrap_err());
        assert!(error.contains("odd/plain") && error.contains(".dockerignore"), "{error}");
    }
}

#[test]
fn a_glob_reads_only_where_it_may_match() {
    let world = world();
    for i in 0..200 {
        world.write(&format!("many/{i}/x/y"), "");
    }
    let started = std::time::Instant::now();
    let image = world.image("FROM scratch\nCOPY many/*/*/* /all/\nCOPY --parents **/**/**/y /deep/\n");
    assert!(world.list(&image).len() > 200);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn archives() {
    use isles_store::tar::{Entry, Kind, Writer};
    let world = world();
    let tar = |entries: &[(&str, Kind, &str)]| {
        let mut writer = Writer::new(Vec::new());
        for (path, kind, text) in entries {
            let link = if *kind == Kind::File { "" } else { text };
            let data = if *kind == Kind::File { text.as_bytes() } else { b"" };
            let entry = Entry {
                path: path.as_bytes().to_vec(),
                kind: *kind,
                link: link.as_bytes().to_vec(),
                mode: if *kind == Kind::Dir { 0o755 } else { 0o644 },
                uid: 5,
                gid: 6,
                size: data.len() as u64,
                ..Entry::default()
            };
            writer.begin(&entry).unwrap();
            writer.data(data).unwrap();
        }
        writer.finish().unwrap()
    };
    let plain = tar(&[
        ("top/", Kind::Dir, ""),
        ("top/f", Kind::File, "x"),
        ("top/again", Kind::Hardlink, "top/f"),
        ("absolute", Kind::Symlink, "/top"),
        // Through a link of its own, which leads nowhere outside of the destination.
        ("absolute/through", Kind::File, "y"),
        ("escape", Kind::Symlink, "../../../../../../etc"),
        ("escape/made", Kind::File, "z"),
        // The directory above was not said.
        ("missing/parent/f", Kind::File, "p"),
    ]);
    std::fs::write(world.context().join("x.tar"), &plain).unwrap();
    std::fs::write(world.context().join("x.tar.zst"), zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    std::io::Write::write_all(&mut bz, &plain).unwrap();
    std::fs::write(world.context().join("x.tar.bz2"), bz.finish().unwrap()).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &plain).unwrap();
    // Not the name counts, but the content.
    std::fs::write(world.context().join("gz.txt"), gz.finish().unwrap()).unwrap();
    std::fs::write(world.context().join("x.tar.xz"), liblzma::encode_all(&plain[..], 0).unwrap()).unwrap();
    for name in ["x.tar", "x.tar.zst", "x.tar.xz", "x.tar.bz2", "gz.txt"] {
        let changes = changes(&world, &format!("ADD {name} /open/"));
        assert_eq!(changes["/open/top/f"], "644 5:6 \"x\"", "{name}");
        assert_eq!(changes["/open/top/again"], "644 5:6 \"x\"");
        assert_eq!(changes["/open/absolute"], "-> /top");
        assert_eq!(changes["/open/top/through"], "644 5:6 \"y\"", "{changes:#?}");
        assert_eq!(changes["/open/etc/made"], "644 5:6 \"z\"");
        assert_eq!(changes["/open/missing/parent/f"], "644 5:6 \"p\"");
    }
    assert!(!std::path::Path::new("/etc/made").exists());
    // Several archives go to one place.
    std::fs::write(world.context().join("y.tar"), tar(&[("other", Kind::File, "o")])).unwrap();
    let changes = self::changes(&world, "ADD *.tar /several");
    assert_eq!(changes["/several/top/f"], "644 5:6 \"x\"");
    assert_eq!(changes["/several/other"], "644 5:6 \"o\"");
    let changes = self::changes(&world, "ADD --chown=1:2 --unpack=false x.tar /new.tar");
    assert!(changes["/new.tar"].starts_with("644 1:2 "), "{changes:?}");
    let changes = self::changes(&world, "ADD a.txt /new");
    assert_eq!(changes["/new"], "640 0:0 \"a\"", "what is no archive is copied");
    for (entries, part) in [
        (&[("a", Kind::Hardlink, "../../etc/passwd")][..], "not before it"),
        (&[("a", Kind::Hardlink, "etc/passwd")], "not before it"),
        (&[(".wh.etc", Kind::File, "")], "cannot be in an image"),
    ] {
        std::fs::write(world.context().join("bad.tar"), tar(entries)).unwrap();
        let error = world.build("FROM base\nADD bad.tar /open/\n").unwrap_err().to_string();
        assert!(error.contains(part), "{entries:?}: {error}");
    }
    // What is in the way of an entry goes, with all below it; only directories are merged.
    for (entries, expected) in [
        (&[("../../up", Kind::File, "x")][..], &[("/up", "644 5:6 \"x\"")][..]),
        (&[("data", Kind::File, "x")], &[("/data", "644 5:6 \"x\""), ("/data/file", ""), ("/data/real", "")]),
        (&[("data", Kind::Symlink, "open")], &[("/data", "-> open"), ("/data/file", "")]),
        (
            &[("data", Kind::Symlink, "open"), ("data/f", Kind::File, "x")],
            &[("/data", "-> open"), ("/open/f", "644 5:6 \"x\"")],
        ),
        (
            &[("data", Kind::File, "x"), ("data/", Kind::Dir, ""), ("data/new", Kind::File, "y")],
            &[
                ("/data", "755 5:6 dir"),
                ("/data/new", "644 5:6 \"y\""),
                ("/data/file", ""),
                ("/data/real", ""),
            ],
        ),
        (
            &[("lib/", Kind::Dir, ""), ("lib/f", Kind::File, "x")],
            &[("/lib", "755 5:6 dir"), ("/usr/lib/f", "")],
        ),
        (&[("lib/f", Kind::File, "x")], &[("/lib", "-> usr/lib"), ("/usr/lib/f", "644 5:6 \"x\"")]),
        (&[("data/file/", Kind::Dir, "")], &[("/data/file", "755 5:6 dir"), ("/data/real", "755 0:0 dir")]),
        (
            &[("q/", Kind::Dir, ""), ("q/a", Kind::File, "1"), ("q", Kind::File, "2")],
            &[("/q", "644 5:6 \"2\""), ("/q/a", "")],
        ),
        (
            &[("twin", Kind::Hardlink, "/data/file")],
            &[("/twin", "644 0:0 \"old\""), ("/data/file", "644 0:0 \"old\"")],
        ),
        // Some archivers begin with an entry that has no name.
        (&[("", Kind::File, ""), ("f", Kind::File, "x")], &[("/f", "644 5:6 \"x\"")]),
    ] {
        std::fs::write(world.context().join("over.tar"), tar(entries)).unwrap();
        let after = world.list(&world.image("FROM base\nADD over.tar /\n"));
        for (path, line) in expected {
            assert_eq!(after.get(*path).map_or("", String::as_str), *line, "{entries:?}: {path}");
        }
    }
    std::fs::write(world.context().join("bad.tar"), &plain[..plain.len() / 2 - 100]).unwrap();
    assert!(world.build("FROM base\nADD bad.tar /open/\n").is_err());
    // What only begins like one is a file like others.
    std::fs::write(world.context().join("no.bz2"), b"BZh91AY&SY").unwrap();
    let changes = self::changes(&world, "ADD no.bz2 /open/");
    assert_eq!(changes.keys().collect::<Vec<_>>(), ["/open/no.bz2"]);
}

#[test]
fn several_files_for_one_place_are_told() {
    let world = world();
    for (instruction, told) in [
        ("COPY *.txt /x", true),
        ("COPY *.txt /open", false),
        ("COPY *.txt /link", false),
        ("COPY --link *.txt /link", true),
        ("COPY a*.txt /x", false),
    ] {
        let built = world.build(&format!("FROM base\n{instruction}\n")).unwrap();
        let warnings: Vec<_> =
            built.warnings.iter().filter(|w| w.message.contains("only 'b.txt' stays")).collect();
        assert_eq!(warnings.len(), usize::from(told), "{instruction}: {:?}", built.warnings);
    }
}

#[test]
fn of_a_context_that_is_left_out_nothing_is_copied() {
    let world = world();
    world.write("Dockerfile.dockerignore", "**\n");
    for instruction in ["COPY . .", "ADD / /open/", "COPY ./ /", "COPY * /"] {
        assert!(changes(&world, instruction).is_empty(), "{instruction}");
    }
    assert_eq!(changes(&world, "COPY . /new").keys().collect::<Vec<_>>(), ["/new"]);
}

#[test]
fn attributes_go_along() {
    use isles_store::tar::{Entry, Writer};
    let world = world();
    // cap_net_bind_service=ep, in the form of version 2 (capabilities(7)).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let mut writer = Writer::new(Vec::new());
    let entry = Entry {
        path: b"f".to_vec(),
        mode: 0o755,
        xattrs: vec![
            (b"user.note".to_vec(), b"hi".to_vec()),
            (b"security.capability".to_vec(), capability.clone()),
            (b"user.isles.owner".to_vec(), b"0:0".to_vec()),
            (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        ],
        ..Entry::default()
    };
    writer.begin(&entry).unwrap();
    std::fs::write(world.context().join("caps.tar"), writer.finish().unwrap()).unwrap();
    let image = world.image("FROM scratch AS a\nADD caps.tar /\nFROM scratch\nCOPY --from=a /f /g\n");
    let xattrs: BTreeMap<_, _> =
        world.view(&image).xattrs(std::path::Path::new("/g")).unwrap().into_iter().collect();
    assert_eq!(xattrs.get(std::ffi::OsStr::new("user.note")), Some(&b"hi".to_vec()));
    if rustix::process::geteuid().is_root() {
        assert_eq!(xattrs.get(std::ffi::OsStr::new("security.capability")), Some(&capability));
        assert_eq!(xattrs.len(), 2, "{xattrs:?}");
    }
}
