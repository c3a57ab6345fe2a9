//! ADD of what is elsewhere: URLs, and repositories of git.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use isles_store::tar::{Entry, Writer};
use support::web::{Server, daemon, git, repository};
use support::{World, describe};

const DATE: &str = "Fri, 14 Jul 2017 02:40:00 GMT";
const STAMP: i64 = 1_500_000_000;

fn archive() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let entry = Entry { path: b"inner".to_vec(), mode: 0o644, uid: 3, gid: 4, size: 2, ..Entry::default() };
    writer.begin(&entry).unwrap();
    writer.data(b"in").unwrap();
    writer.finish().unwrap()
}

/// A world and a server of a few files.
fn world() -> (World, Server) {
    let server = Server::new(|request| match request.path.as_str() {
        "/dir/file.txt?x=/y" | "/dir/file.txt" => {
            (200, vec![("Last-Modified", DATE.into())], b"text".to_vec())
        }
        "/" => (200, Vec::new(), b"root".to_vec()),
        "/x.tar.gz" => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gz, &archive()).unwrap();
            (200, Vec::new(), gz.finish().unwrap())
        }
        "/moved" => (302, vec![("Location", "/dir/file.txt".into())], Vec::new()),
        "/loop" => (302, vec![("Location", "/loop".into())], Vec::new()),
        "/file" => (301, vec![("Location", "file:///etc/passwd".into())], Vec::new()),
        "/secrets" => (307, vec![("Location", "http://169.254.169.254/latest".into())], Vec::new()),
        "/closed" => (403, Vec::new(), b"no".to_vec()),
        _ => (404, Vec::new(), Vec::new()),
    });
    (World::new(), server)
}

#[test]
fn urls_become_files() {
    let (world, server) = world();
    let sum = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1";
    for (instruction, path, line) in [
        ("ADD URL/dir/file.txt?x=/y /new", "/new", "600 0:0 \"text\""),
        ("ADD URL/dir/file.txt /made/", "/made/file.txt", "600 0:0 \"text\""),
        ("ADD URL/dir/file.txt /open", "/open/file.txt", "600 0:0 \"text\""),
        ("ADD URL/ /made/", "/made/__unnamed__", "600 0:0 \"root\""),
        ("ADD URL/moved /new", "/new", "600 0:0 \"text\""),
        ("ADD --chmod=644 --chown=app URL/dir/file.txt /new", "/new", "644 1000:1001 \"text\""),
        ("ADD --checksum=sha256:SUM URL/dir/file.txt /new", "/new", "600 0:0 \"text\""),
        ("ADD --link URL/dir/file.txt /new", "/new", "600 0:0 \"text\""),
        ("ADD URL/x.tar.gz /open/", "/open/x.tar.gz", "600 0:0 "),
        ("ADD --unpack URL/x.tar.gz /open/", "/open/inner", "644 3:4 \"in\""),
        ("ADD --unpack=true URL/dir/file.txt /new", "/new", "600 0:0 \"text\""),
        ("ARG U=URL/dir\nADD $U/file.txt Dockerfile /made/", "/made/Dockerfile", "6"),
    ] {
        let instruction = instruction.replace("URL", &server.url("")).replace("SUM", sum);
        let image = world.image(&format!("FROM base\n{instruction}\n"));
        let list = world.list(&image);
        assert!(list.get(path).is_some_and(|l| l.starts_with(line)), "{instruction}: {:?}", list.get(path));
    }
    let image = world.image(&format!(
        "FROM base\nADD {} /new\nADD {} /old\n",
        server.url("/dir/file.txt"),
        server.url("/")
    ));
    let mtime = |path: &str| world.view(&image).lstat(std::path::Path::new(path)).unwrap().mtime.0;
    assert_eq!((mtime("/new"), mtime("/old")), (STAMP, 0));
    let history = image.config.history.iter().rev().nth(1).unwrap();
    assert_eq!(history.created_by, Some(format!("ADD {} /new # buildkit", server.url("/dir/file.txt"))));
}

#[test]
fn what_is_not_fetched() {
    let (world, server) = world();
    let wrong = "0".repeat(64);
    for (instruction, part, hint) in [
        ("ADD URL/nothing /x", "answers 404", "spelling"),
        ("ADD URL/closed /x", "answers 403", "HTTP_AUTH_TOKEN"),
        ("ADD URL/loop /x", "redirects", ""),
        ("ADD URL/file /x", "it redirects to 'file:///etc/passwd'", ""),
        ("ADD URL/secrets /x", "link-local address 169.254.169.254", "secrets"),
        ("ADD http://169.254.169.254/x /x", "link-local address", ""),
        ("ADD http://[fe80::1]/x /x", "link-local address", ""),
        ("ADD http://127.0.0.1:1/x /x", "connection refused", ""),
        ("ADD --checksum=sha256:WRONG URL/dir/file.txt /x", "has the digest sha256:982d9e3e", "changed"),
        ("ADD --checksum=sha512:WRONGWRONG URL/dir/file.txt /x", "sha512 is not checked", "sha256"),
        ("ADD --checksum=sha256:12 URL/dir/file.txt /x", "invalid checksum", "64"),
        ("ADD --checksum=sha256:WRONG URL/dir/file.txt URL/x /x/", "one source only", "each"),
        ("ADD --checksum=sha256:WRONG Dockerfile /x", "for URLs", ""),
        ("ADD file:///etc/passwd /x", "'file:' addresses", "http"),
        ("ADD ftp://h/x /x", "'ftp:' addresses", ""),
        ("COPY URL/dir/file.txt /x", "COPY takes no URL", "ADD"),
        ("COPY https://h/x.git /x", "COPY takes no git repository", "ADD"),
        ("ADD URL/dir/file.txt URL/x /x", "several sources", ""),
    ] {
        let instruction = instruction.replace("URL", &server.url("")).replace("WRONG", &wrong);
        let error = world.build(&format!("FROM base\n{instruction}\n")).expect_err(&instruction);
        let shown = describe(&error);
        assert!(shown.contains(part) && shown.contains("Dockerfile:2:"), "{instruction}: {shown}");
        assert!(shown.split("hint: ").nth(1).unwrap().contains(hint), "{instruction}: {shown}");
    }
}

#[test]
fn a_token_goes_to_its_host_only() {
    let other = Server::new(|request| match request.header("authorization") {
        None => (200, Vec::new(), b"open".to_vec()),
        Some(_) => (500, Vec::new(), Vec::new()),
    });
    let elsewhere = other.url("/x");
    let server = Server::new(move |request| match (request.path.as_str(), request.header("authorization")) {
        (_, None) => (401, Vec::new(), Vec::new()),
        ("/token", Some("Bearer t0ken")) => (200, Vec::new(), b"closed".to_vec()),
        ("/away", Some("Bearer t0ken")) => (302, vec![("Location", elsewhere.clone())], Vec::new()),
        _ => (403, Vec::new(), Vec::new()),
    });
    let world = World::new();
    let file = world.dir.path().join("token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let mut options = world.options();
    options.secrets.insert("HTTP_AUTH_TOKEN_127.0.0.1".into(), file.into());
    let text = format!("FROM scratch\nADD {} /a\nADD {} /b\n", server.url("/token"), server.url("/away"));
    assert!(world.build(&text).is_err());
    let built =
        world.build_with("Dockerfile", &text, &options).unwrap_or_else(|e| panic!("{}", describe(&e)));
    let list = world.list(&built.image);
    assert_eq!((list["/a"].as_str(), list["/b"].as_str()), ("600 0:0 \"closed\"", "600 0:0 \"open\""));
    let config = serde_json::to_string(&built.image.config).unwrap();
    assert!(!config.contains("t0ken"));
}

#[test]
fn a_token_without_a_host_is_for_the_callers_repository() {
    let server = Server::new(|_| (401, vec![("WWW-Authenticate", "Basic realm=\"x\"".into())], Vec::new()));
    let world = World::new();
    let file = world.dir.path().join("token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let url = server.url("/repo.git");
    let secret = |name: &str| {
        let mut options = world.options();
        options.secrets.insert(name.into(), file.clone().into());
        options
    };
    // Whether it is said, by who names the repository.
    let by_recipe = |name: &str, url: &str| {
        let built = world.build_with("Dockerfile", &format!("FROM scratch\nADD {url} /x/\n"), &secret(name));
        describe(&built.map(drop).unwrap_err())
    };
    // git itself tries it with no name and no password.
    let told = || {
        let token = "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4=";
        let asked = server.requests.lock().unwrap();
        asked
            .iter()
            .filter(|r| r.header("authorization").is_some_and(|a| a.eq_ignore_ascii_case(token)))
            .count()
    };
    let shown = by_recipe("GIT_AUTH_TOKEN", &url);
    if shown.contains("needs the program git") {
        println!("skip: there is no git on this machine");
        return;
    }
    assert_eq!(told(), 0, "{shown}");
    by_recipe("GIT_AUTH_TOKEN.127.0.0.1", &url);
    let before = told();
    assert!(before > 0);
    let far = "http://repository.invalid/x.git";
    let shown = by_recipe("GIT_AUTH_TOKEN.repository.invalid", far);
    assert!(shown.contains("does not go over plain HTTP"), "{shown}");
    let shown = by_recipe("HTTP_AUTH_TOKEN_repository.invalid", "http://repository.invalid/x");
    assert!(shown.contains("does not go over plain HTTP"), "{shown}");
    let options = secret("GIT_AUTH_TOKEN");
    let fetch = |url: &str| {
        let wanted = isles_build::elsewhere::Wanted::Usual;
        let quiet = &isles_spec::Quiet;
        isles_build::elsewhere::fetch(&world.engine, &world.client, url, wanted, &options, quiet).map(drop)
    };
    assert!(fetch(&url).is_err());
    assert!(told() > before);
    let shown = describe(&fetch(far).unwrap_err());
    assert!(shown.contains("does not go over plain HTTP"), "{shown}");
}

#[test]
fn a_download_that_breaks_is_begun_again() {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/f", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let body = if number == 0 { "who" } else { "whole" };
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{body}");
        }
    });
    let world = World::new();
    let list = world.list(&world.image(&format!("FROM scratch\nADD {url} /f\n")));
    assert_eq!(list["/f"], "600 0:0 \"whole\"");
}

#[test]
fn submodules_come_along() {
    let world = World::new();
    let folder = world.dir.path().join("served");
    std::fs::create_dir(&folder).unwrap();
    let Some(commits) = repository(&folder) else {
        println!("skip: there is no git on this machine");
        return;
    };
    let server = Server::of_folder(&folder);
    let real = daemon(&folder);
    let outer = folder.join("outer");
    std::fs::create_dir(&outer).unwrap();
    git(&outer, &["init", "--quiet"]);
    // An address that leads from that of the repository itself, so that it holds for both servers.
    std::fs::write(outer.join(".gitmodules"), "[submodule \"s\"]\n\tpath = in/s\n\turl = ../repo.git\n")
        .unwrap();
    git(&outer, &["update-index", "--add", "--cacheinfo", &format!("160000,{},in/s", commits.second)]);
    git(&outer, &["add", ".gitmodules"]);
    git(&outer, &["commit", "--quiet", "--message", "outer"]);
    git(&folder, &["clone", "--quiet", "--bare", "outer", "outer.git"]);
    git(&folder.join("outer.git"), &["update-server-info"]);
    for url in [server.url("/outer.git"), format!("{real}/outer.git")] {
        let list = world.list(&world.image(&format!("FROM base\nADD {url} /got/\n")));
        assert_eq!(list["/got/in/s/file"], "644 0:0 \"two\"", "{url}");
        assert!(!list.contains_key("/got/in/s/.git"), "{url}");
        let list = world.list(&world.image(&format!("FROM base\nADD {url}?submodules=false /got/\n")));
        assert!(!list.contains_key("/got/in/s/file"), "{url}");
    }
}

#[test]
fn an_unchanged_url_is_not_added_again() {
    let text = Arc::new(Mutex::new("one"));
    let validates = Arc::new(AtomicBool::new(true));
    let (now, says) = (text.clone(), validates.clone());
    let server = Server::new(move |request| {
        let body = *now.lock().unwrap();
        let etag = format!("\"{body}\"");
        match says.load(Ordering::Relaxed) {
            true if request.header("if-none-match") == Some(&etag) => (304, Vec::new(), Vec::new()),
            true => (200, vec![("ETag", etag)], body.into()),
            false => (200, Vec::new(), body.into()),
        }
    });
    let world = World::new();
    let recipe = format!("FROM base\nADD {} /x\n", server.url("/f"));
    let build = || {
        let built = world.build(&recipe).unwrap();
        (built.cached, built.image.id().clone())
    };
    let (cached, first) = build();
    assert!(!cached);
    assert_eq!(build(), (true, first.clone()), "the server says that nothing changed");
    assert_eq!(server.count(), 2);
    *text.lock().unwrap() = "two";
    let (cached, second) = build();
    assert!(!cached && second != first);
    // Without validators it is fetched again, and the same content is the same layer.
    validates.store(false, Ordering::Relaxed);
    assert_eq!(build().1, second);
    let other = format!("FROM base\nADD {} /x\n", server.url("/elsewhere/f"));
    assert_eq!(
        world.build(&other).unwrap().image.config.rootfs,
        world.build(&recipe).unwrap().image.config.rootfs
    );
    // What the recipe says the checksum of is not asked for again.
    let sum = isles_spec::digest::hex(&<sha2::Sha256 as sha2::Digest>::digest(b"two"));
    let checked = format!("FROM base\nADD --checksum=sha256:{sum} {} /x\n", server.url("/f"));
    let before = server.count();
    world.image(&checked);
    assert_eq!(server.count(), before);
}

#[test]
fn repositories_become_files() {
    let world = World::new();
    let folder = world.dir.path().join("served");
    std::fs::create_dir(&folder).unwrap();
    let Some(commits) = repository(&folder) else {
        println!("skip: there is no git on this machine");
        return;
    };
    let server = Server::of_folder(&folder);
    let url = server.url("/repo.git");
    for (suffix, flags, text) in [
        ("", "", "two"),
        ("#main", "", "two"),
        ("#v1", "", "one"),
        ("#v2", "", "one"),
        ("#side", "", "side"),
        ("#refs/heads/side", "", "side"),
        ("?branch=side", "", "side"),
        ("?tag=v2", "", "one"),
        ("?ref=v1&submodules=0&mtime=checkout", "", "one"),
        ("#FIRST", "", "one"),
        ("#v1", "--checksum=FIRST ", "one"),
        ("?checksum=FIRST#v2", "", "one"),
        ("?commit=FIRST&fetch-by-commit", "", "one"),
    ] {
        let suffix = suffix.replace("FIRST", &commits.first);
        let flags = flags.replace("FIRST", &commits.first[..12]);
        let image = world.image(&format!("FROM base\nADD {flags}{url}{suffix} /got\n"));
        let list = world.list(&image);
        assert_eq!(list["/got/file"], format!("644 0:0 {text:?}"), "{suffix}");
        assert_eq!(list["/got/link"], "-> file");
        assert_eq!(list["/got/sub/deep/x"], "644 0:0 \"x\"");
        assert!(!list.keys().any(|path| path.contains(".git")), "{suffix}");
        let mtime = world.view(&image).lstat(std::path::Path::new("/got/file")).unwrap().mtime.0;
        assert_eq!(mtime == STAMP, !suffix.contains("mtime=checkout"), "{suffix}");
    }
    // The same with git's own protocol, which fetches no more than is needed.
    let real = format!("{}/repo.git", daemon(&folder));
    for (suffix, text) in
        [("", "two"), ("#v2", "one"), ("#side", "side"), (&format!("#{}", commits.first), "one")]
    {
        let list =
            world.list(&world.image(&format!("FROM base\nADD --keep-git-dir=true {real}{suffix} /got/\n")));
        assert_eq!(list["/got/file"], format!("644 0:0 {text:?}"), "{suffix}");
        assert!(list.contains_key("/got/.git/shallow"), "{suffix}");
    }
    let list = world.list(&world.image(&format!("FROM base\nADD --chown=7:8 {url}#v1:sub /got/\n")));
    assert_eq!(list["/got/deep/x"], "644 7:8 \"x\"");
    assert!(!list.contains_key("/got/file"));
    let list = world.list(&world.image(&format!("FROM base\nADD --exclude=sub --exclude=l* {url} /got/\n")));
    assert!(
        list.contains_key("/got/run") && !list.contains_key("/got/sub") && !list.contains_key("/got/link")
    );
    assert!(list["/got/run"].starts_with("755 "));
    let image = world.image(&format!("FROM base\nADD --keep-git-dir=true {url}#v2 /got/\n"));
    let list = world.list(&image);
    assert!(list["/got/.git/HEAD"].contains(&commits.first), "{}", list["/got/.git/HEAD"]);
    assert!(!list.contains_key("/got/.git/FETCH_HEAD") && !list.contains_key("/got/.git/logs"));
    // Nothing is fetched where the commit is the one of before.
    let recipe = format!("FROM base\nADD {url}#main /got/\n");
    world.image(&recipe);
    let before = server.count();
    assert!(world.build(&recipe).unwrap().cached);
    let asked: Vec<_> = server.requests.lock().unwrap()[before..].iter().map(|r| r.path.clone()).collect();
    assert!(asked.iter().all(|path| !path.contains("/objects/")), "{asked:?}");
    // A branch that moved is.
    std::fs::write(commits.work.join("file"), "three").unwrap();
    git(&commits.work, &["commit", "--quiet", "--all", "--message", "third"]);
    git(&commits.work, &["push", "--quiet", commits.bare.to_str().unwrap(), "main"]);
    git(&commits.bare, &["update-server-info"]);
    assert!(world.list(&world.image(&recipe))["/got/file"].contains("three"));
}

#[test]
fn what_is_not_checked_out() {
    let world = World::new();
    let folder = world.dir.path().join("served");
    std::fs::create_dir(&folder).unwrap();
    let Some(commits) = repository(&folder) else {
        println!("skip: there is no git on this machine");
        return;
    };
    let server = Server::of_folder(&folder);
    let proof = world.dir.path().join("proof");
    for (source, part) in [
        ("URL#nothing".to_owned(), "no branch or tag 'nothing'"),
        ("URL#:file".to_owned(), "no directory 'file'"),
        ("URL#:link".to_owned(), "no directory 'link'"),
        ("URL#:no/such".to_owned(), "no directory"),
        ("URL#--upload-pack=x".to_owned(), "no branch, tag or commit"),
        (format!("URL?checksum={}", &commits.side[..8]), "not at"),
        ("URL?color=red".to_owned(), "no query 'color'"),
        (format!("URL#{}", "a".repeat(40)), "git cannot use"),
        (server.url("/other.git"), "git cannot use"),
        ("ssh://-oProxyCommand=touch%20PROOF/x.git".to_owned(), "names no host"),
        ("http://169.254.169.254/x.git".to_owned(), "link-local"),
    ] {
        let source =
            source.replace("URL", &server.url("/repo.git")).replace("PROOF", proof.to_str().unwrap());
        let error = world.build(&format!("FROM base\nADD {source} /x/\n")).expect_err(&source);
        let shown = describe(&error);
        assert!(shown.contains(part) && shown.contains("Dockerfile:2:"), "{source}: {shown}");
    }
    assert!(!proof.exists());
    // A submodule is no way to a program or to files of this machine.
    for (address, part) in [
        (format!("ext::touch {}", proof.display()), "not allowed"),
        (format!("file://{}", commits.bare.display()), "not allowed"),
        ("http://169.254.169.254/x.git".to_owned(), "link-local"),
        ("http://%31%36%39.254.169.254/x.git".to_owned(), "no name of a host"),
    ] {
        let text = format!("[submodule \"s\"]\n\tpath = s\n\turl = {address}\n");
        std::fs::write(commits.work.join(".gitmodules"), text).unwrap();
        git(&commits.work, &["update-index", "--add", "--cacheinfo", &format!("160000,{},s", commits.first)]);
        git(&commits.work, &["add", ".gitmodules"]);
        git(&commits.work, &["commit", "--quiet", "--message", "submodule"]);
        git(&commits.work, &["push", "--quiet", "--force", commits.bare.to_str().unwrap(), "main"]);
        git(&commits.bare, &["update-server-info"]);
        let error = world.build(&format!("FROM base\nADD {} /x/\n", server.url("/repo.git"))).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        world.image(&format!("FROM base\nADD {}?submodules=false /x/\n", server.url("/repo.git")));
    }
    assert!(!proof.exists());
}

#[test]
fn named_contexts_from_elsewhere() {
    let (world, server) = world();
    let named = |value: &str, text: &str| {
        let contexts = isles_build::named::NamedContexts::parse([format!("ctx={value}")]).unwrap();
        world.build_with("Dockerfile", text, &isles_build::BuildOptions { contexts, ..world.options() })
    };
    for (value, path, text) in
        [(server.url("/x.tar.gz"), "inner", "in"), (server.url("/dir/file.txt"), "file.txt", "text")]
    {
        let recipe = format!("FROM base\nCOPY --from=ctx {path} /got\n");
        let built = named(&value, &recipe).unwrap_or_else(|e| panic!("{value}: {}", describe(&e)));
        assert!(world.list(&built.image)["/got"].ends_with(&format!("{text:?}")), "{value}");
        assert_eq!(named(&value, &recipe).unwrap().image.id(), built.image.id(), "{value}");
    }
    let error = named(&server.url("/closed"), "FROM base\nCOPY --from=ctx x /got\n").unwrap_err();
    assert!(describe(&error).contains("Dockerfile:2:"), "{}", describe(&error));
    let folder = world.dir.path().join("served");
    std::fs::create_dir(&folder).unwrap();
    let Some(_) = repository(&folder) else {
        println!("skip: there is no git on this machine");
        return;
    };
    let served = Server::of_folder(&folder);
    for (suffix, text) in [("", "two"), ("#side", "side")] {
        let value = format!("{}{suffix}", served.url("/repo.git"));
        let built = named(&value, "FROM base\nCOPY --from=ctx file /got\n");
        let built = built.unwrap_or_else(|e| panic!("{value}: {}", describe(&e)));
        assert!(world.list(&built.image)["/got"].ends_with(&format!("{text:?}")), "{value}");
    }
    let mut options = world.options();
    options.attest.add("type=provenance").unwrap();
    let text =
        format!("FROM base\nADD {} {}#v1 /got/\n", server.url("/dir/file.txt"), served.url("/repo.git"));
    let built = world.build_with("Dockerfile", &text, &options).unwrap();
    let found = built.made[0].attested[0].body["buildDefinition"]["resolvedDependencies"].clone();
    let uris: Vec<&str> = found.as_array().unwrap().iter().filter_map(|d| d["uri"].as_str()).collect();
    assert!(uris.contains(&server.url("/dir/file.txt").as_str()), "{found}");
    assert!(uris.contains(&format!("{}#v1", served.url("/repo.git")).as_str()), "{found}");
    assert!(found.to_string().contains("\"sha1\""), "{found}");
}

#[test]
fn a_server_that_is_gone_is_said_with_what_is_here() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/f", listener.local_addr().unwrap());
    // Closes its port after one file.
    let serving = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntext").unwrap();
    });
    let text = format!("FROM base\nADD {url} /new\n");
    world.image(&text);
    serving.join().unwrap();
    let shown = describe(&world.build(&text).unwrap_err());
    let sum = "sha256:982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1";
    for part in ["cannot reach", "was fetched before", &format!("--checksum={sum}")] {
        assert!(shown.contains(part), "'{part}' is missing in {shown}");
    }
    world.image(&text.replace("ADD", &format!("ADD --checksum={sum}")));
}
