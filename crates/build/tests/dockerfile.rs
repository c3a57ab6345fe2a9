//! What Dockerfiles give: configuration, history, environment, layers.

#![allow(clippy::unwrap_used)]

mod support;

use isles_build::BuildOptions;
use isles_spec::{Hint, Reference};
use support::{World, describe};

/// The history of an image beyond that of the base: what made each entry, and whether it is a layer.
fn history(image: &isles_store::Image) -> Vec<(String, bool)> {
    let entries = &image.config.history;
    entries.iter().map(|h| (h.created_by.clone().unwrap(), !h.empty_layer)).collect()
}

#[test]
fn the_configuration_and_its_history() {
    let world = World::new();
    world.write("f", "x");
    let image = world.image(
        "ARG OUT=global\nFROM base\nARG OUT\nARG LATER=${OUT}-2\nENV A=1 B=\"two words\" C=$OUT\nENV A=2 D=$A\nENV old form  here\n\
         LABEL k=v \"two words\"='x y'\nWORKDIR /w\nWORKDIR sub\nCOPY f .\nUSER app\nEXPOSE 80 53/udp 79-80\nVOLUME /v [\"/x\"]\n\
         STOPSIGNAL SIGINT\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nHEALTHCHECK --interval=5s CMD true\nONBUILD RUN echo $X\n\
         CMD echo hi\nENTRYPOINT [\"/bin/echo\", \"e\"]\nMAINTAINER me\n",
    );
    let config = &image.config.config;
    assert_eq!(
        config.env,
        ["PATH=/bin", "BASE=1", "A=2", "B=two words", "C=global", "D=1", "old=form  here"]
    );
    assert_eq!(config.labels["two words"], "x y");
    assert_eq!(config.working_dir, "/w/sub");
    assert_eq!(config.user, "app");
    assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "79/tcp", "80/tcp"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(config.cmd.as_ref().unwrap(), &["/bin/busybox", "sh", "-c", "echo hi"]);
    assert_eq!(config.entrypoint.as_ref().unwrap(), &["/bin/echo", "e"]);
    assert_eq!(config.on_build, ["RUN echo $X"]);
    assert_eq!(config.healthcheck.as_ref().unwrap().interval, 5_000_000_000);
    assert_eq!(image.config.author.as_deref(), Some("me"));
    let expected = [
        ("ARG OUT=global", false),
        ("ARG LATER=global-2", false),
        ("ENV A=1 B=two words C=global", false),
        ("ENV A=2 D=1", false),
        ("ENV old=form  here", false),
        ("LABEL k=v two words=x y", false),
        ("WORKDIR /w", true),
        ("WORKDIR /w/sub", true),
        ("COPY f . # buildkit", true),
        ("USER app", false),
        ("EXPOSE [53/udp 79/tcp 80/tcp 80/tcp]", false),
        ("VOLUME [/v [/x]]", false),
        ("STOPSIGNAL SIGINT", false),
        ("SHELL [/bin/busybox sh -c]", false),
        ("HEALTHCHECK &{[\"CMD-SHELL\" \"true\"] \"5s\" \"0s\" \"0s\" \"0s\" '\\x00'}", false),
        ("CMD [\"/bin/busybox\" \"sh\" \"-c\" \"echo hi\"]", false),
        ("ENTRYPOINT [\"/bin/echo\" \"e\"]", false),
        ("MAINTAINER me", false),
    ];
    assert_eq!(history(&image), expected.map(|(t, l)| (t.to_owned(), l)));
    assert!(image.config.history.iter().all(|h| h.created.is_some()));
    let layers = image.config.history.iter().filter(|h| !h.empty_layer).count();
    // The base has a layer without history.
    assert_eq!(image.config.rootfs.diff_ids.len(), layers + 1);
}

#[test]
fn entrypoint_takes_the_command_of_the_base_away() {
    let world = World::new();
    let cmd = |text: &str| world.image(text).config.config.cmd;
    assert_eq!(cmd("FROM base\n"), Some(vec!["sh".into()]));
    assert_eq!(cmd("FROM base\nENTRYPOINT [\"x\"]\n"), None);
    assert_eq!(cmd("FROM base\nCMD [\"y\"]\nENTRYPOINT [\"x\"]\n"), Some(vec!["y".into()]));
    assert_eq!(cmd("FROM base AS a\nCMD [\"y\"]\nFROM a\nENTRYPOINT [\"x\"]\n"), None);
}

#[test]
fn stages_inherit_and_scratch_begins_anew() {
    let world = World::new();
    let image = world.image("FROM base AS a\nARG X=1\nENV Y=2\nWORKDIR /a\nFROM a\nENV Z=$X$Y\n");
    assert!(image.config.config.env.contains(&"Z=12".to_owned()));
    assert_eq!(image.config.config.working_dir, "/a");
    let image = world.image("FROM scratch\nLABEL a=b\n");
    assert!(image.config.config.env[0].starts_with("PATH="));
    assert!(image.config.rootfs.diff_ids.is_empty());
}

#[test]
fn what_a_caller_may_say() {
    let world = World::new();
    let text = "ARG V=base\nFROM $V AS first\nARG X=default\nLABEL x=$X\nFROM scratch AS second\n";
    let mut options =
        BuildOptions { target: Some("first".into()), ..world.args(&[("X", "given"), ("Y", "unused")]) };
    options.labels.insert("mine".into(), "1".into());
    options.tags = vec![Reference::parse("app").unwrap(), Reference::parse("app:v1").unwrap()];
    let built = world.build_with("Dockerfile", text, &options).unwrap();
    assert_eq!(built.image.config.config.labels["x"], "given");
    assert_eq!(built.image.config.config.labels["mine"], "1");
    assert!(built.warnings.iter().any(|w| w.message.contains("'Y'")), "{:?}", built.warnings);
    for name in ["app", "app:v1"] {
        assert_eq!(world.engine.store().resolve(name, None).unwrap().id(), built.image.id());
    }
    options.source_date_epoch = Some(1_000_000_000);
    let dated = world.build_with("Dockerfile", text, &options).unwrap();
    assert_eq!(dated.image.config.created.as_deref(), Some("2001-09-09T01:46:40Z"));
    options.target = Some("fisrt".into());
    let error = world.build_with("Dockerfile", text, &options).unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("did you mean 'first'?"));
}

#[test]
fn unreachable_stages_are_not_looked_at() {
    let world = World::new();
    world.image("FROM nowhere/at/all AS unused\nRUN false\nFROM scratch\nLABEL a=b\n");
}

#[test]
fn warnings_have_places() {
    let world = World::new();
    let text = "FROM base\nARG NAME=x\nLABEL a=$NAEM\nWORKDIR rel\nMAINTAINER me\nCOPY no* /\n";
    let built = world.build(text).unwrap();
    let lines: Vec<_> = built.warnings.iter().map(|w| w.line).collect();
    assert_eq!(lines, [3, 4, 5, 6], "{:#?}", built.warnings);
    assert_eq!(built.warnings[0].suggestion.as_deref(), Some("did you mean $NAME?"));
}

#[test]
fn what_is_refused() {
    let world = World::new();
    for (text, place, part) in [
        ("# syntax=somebody/else\nFROM base\n", "1:10", "somebody/else"),
        ("FROM base\nSTOPSIGNAL SIGNOPE\n", "2:12", "no signal"),
        ("FROM base\nEXPOSE 99999\n", "2:8", "no port"),
        ("FROM base\nRUN --security=insecure true\n", "2:5", "security.insecure is not granted"),
        ("FROM base\nRUN --network=host true\n", "2:5", "network.host is not granted"),
        ("FROM base\nRUN --mount=type=ssh,required true\n", "2:5", "'default' is not given"),
        ("FROM base\nRUN --mount=type=tmpfs,target=/ true\n", "2:5", "whole image"),
        ("FROM base\nRUN --mount=type=secret,id=k,required true\n", "2:5", "'k' is not given"),
        ("FROM base\nLABEL a=${b:?needed}\n", "2:9", "needed"),
        ("FROM --platform=a/b/c/d base\n", "1:6", "a/b/c/d"),
        ("FROM UPPER/case\n", "1:6", "UPPER"),
        ("FROM base\nUSER nobody\nWORKDIR /x\n", "3:1", "no user 'nobody'"),
    ] {
        let error = world.build(text).expect_err(text);
        let shown = describe(&error);
        assert!(shown.contains(&format!("Dockerfile:{place}: ")) && shown.contains(part), "{text}: {shown}");
    }
    world.image("# syntax=docker/dockerfile:1.26-labs\nFROM base\n");
}

#[test]
fn triggers() {
    let world = World::new();
    world.write("f", "context");
    let tag = |name: &str| BuildOptions { tags: vec![Reference::parse(name).unwrap()], ..world.options() };
    let text = "FROM base\nONBUILD ARG X=1\nONBUILD COPY f /copied\nONBUILD ENV FROM_TRIGGER=$X\nONBUILD COPY --from=helper /h /h\n";
    world.build_with("base.Dockerfile", text, &tag("trigger")).unwrap();
    let image = world.image("FROM scratch AS helper\nCOPY f /h\nFROM trigger\nLABEL x=$X\n");
    let list = world.list(&image);
    assert!(list["/copied"].contains("context") && list["/h"].contains("context"));
    assert!(image.config.config.env.contains(&"FROM_TRIGGER=1".to_owned()));
    assert!(image.config.config.on_build.is_empty(), "they are not handed on");
    assert_eq!(image.config.config.labels["x"], "1");
    // What no Dockerfile can store, an image from elsewhere can.
    let store = world.engine.store();
    let lease = store.lease().unwrap();
    let base = store.resolve("base", None).unwrap();
    for (trigger, part) in [
        ("ONBUILD RUN true", "ONBUILD"),
        ("FROM x", "FROM"),
        ("NONSENSE", "unknown instruction"),
        ("COPY a", "destination"),
        ("ENV a=b\nENV c=d", "one instruction"),
    ] {
        let mut config = base.config.clone();
        config.config.on_build = vec![trigger.into()];
        store
            .assemble(&lease, &config, &base.manifest.layers, &[Reference::parse("loop:latest").unwrap()])
            .unwrap();
        let error = world.build("FROM loop\n").unwrap_err().to_string();
        assert!(error.contains(part), "{trigger}: {error}");
    }
}

#[test]
fn triggers_of_the_same_file() {
    let world = World::new();
    world.write("f", "context");
    let image = world.image(
        "FROM scratch AS early\nCOPY f /early\nFROM base AS parent\nONBUILD COPY <<'EOF' /doc\n$text\nEOF\n\
         ONBUILD COPY --from=early /early /taken\nONBUILD WORKDIR /w\nFROM parent AS child\nLABEL a=b\nFROM child\n",
    );
    let list = world.list(&image);
    assert_eq!(list["/doc"], "644 0:0 \"$text\\n\"");
    assert!(list["/taken"].contains("context"));
    assert_eq!(image.config.config.working_dir, "/w");
    assert!(image.config.config.on_build.is_empty());
    let run: Vec<_> = history(&image).into_iter().map(|(text, _)| text).collect();
    assert_eq!(
        run,
        ["COPY <<EOF /doc # buildkit", "COPY /early /taken # buildkit", "WORKDIR /w", "LABEL a=b"]
    );
    let kept = world.image("FROM base\nONBUILD RUN <<EOF\necho hi\nEOF\nONBUILD ENV a=$b\n");
    assert_eq!(kept.config.config.on_build, ["RUN <<EOF\necho hi\nEOF", "ENV a=$b"]);
}

#[test]
fn health_checks() {
    let world = World::new();
    for (text, test, times, retries, said) in [
        ("NONE", &["NONE"][..], [0, 0, 0, 0], 0, "&{[\"NONE\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}"),
        (
            "--interval=1m30s --timeout=1500ms --start-period=1h --start-interval=20ms --retries=5 CMD curl  x",
            &["CMD-SHELL", "curl  x"],
            [90_000_000_000, 1_500_000_000, 3_600_000_000_000, 20_000_000],
            5,
            "&{[\"CMD-SHELL\" \"curl  x\"] \"1m30s\" \"1.5s\" \"1h0m0s\" \"20ms\" '\\x05'}",
        ),
        (
            "--interval=0s CMD [\"a\", \"b c\"]",
            &["CMD", "a", "b c"],
            [0; 4],
            0,
            "&{[\"CMD\" \"a\" \"b c\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}",
        ),
    ] {
        let image = world.image(&format!("FROM base\nHEALTHCHECK CMD first\nHEALTHCHECK {text}\n"));
        let check = image.config.config.healthcheck.clone().unwrap();
        assert_eq!(check.test, test, "{text}");
        assert_eq!(
            [check.interval, check.timeout, check.start_period, check.start_interval],
            times,
            "{text}"
        );
        assert_eq!(check.retries, retries);
        assert_eq!(history(&image).last().unwrap().0, format!("HEALTHCHECK {said}"));
    }
}

#[test]
fn what_words_become() {
    let world = World::new();
    let label = |text: &str, options: &BuildOptions| {
        let built = world.build_with("Dockerfile", text, options);
        built.unwrap_or_else(|e| panic!("{text}\n{}", describe(&e))).image.config.config.labels["x"].clone()
    };
    let here = isles_spec::Platform::host();
    let target = |name: &str| BuildOptions { target: Some(name.into()), ..world.options() };
    for (text, options, expected) in [
        ("FROM base\nARG TARGETSTAGE\nLABEL x=$TARGETSTAGE\n", world.options(), "default"),
        ("FROM base AS last\nARG TARGETSTAGE\nLABEL x=$TARGETSTAGE\n", world.options(), "last"),
        ("FROM base AS a\nARG TARGETSTAGE\nLABEL x=$TARGETSTAGE\nFROM a AS b\n", target("a"), "a"),
        (
            "FROM base\nARG TARGETSTAGE\nLABEL x=$TARGETSTAGE\n",
            world.args(&[("TARGETSTAGE", "mine")]),
            "mine",
        ),
        ("FROM base\nLABEL x=[$TARGETARCH]\n", world.options(), "[]"),
        (
            "FROM base\nARG TARGETARCH BUILDOS\nLABEL x=$TARGETARCH-$BUILDOS\n",
            world.options(),
            &format!("{}-linux", here.architecture),
        ),
        ("FROM base\nARG TARGETARCH\nLABEL x=$TARGETARCH\n", world.args(&[("TARGETARCH", "m68k")]), "m68k"),
        // A default that cannot be expanded is no error where it is not needed.
        ("FROM base\nARG A=${B:?none}\nLABEL x=$A\n", world.args(&[("A", "given")]), "given"),
        ("FROM base\nENV a=1\nENV a=2 b=$a\nLABEL x=$a$b\n", world.options(), "21"),
        ("ARG G=g\nFROM base\nLABEL x=[$G]\n", world.options(), "[]"),
        ("FROM base\nLABEL x=[$HTTP_PROXY]\n", world.args(&[("HTTP_PROXY", "p")]), "[]"),
        (
            "FROM base\nARG V=a.b.c\nLABEL x=${V#*.}-${V%%.*}-${V/b/B}-${V//./_}\n",
            world.options(),
            "b.c-a-a.B.c-a_b_c",
        ),
    ] {
        assert_eq!(label(text, &options), expected, "{text}");
    }
    for (text, folder) in [
        // What is absolute is kept as it is written.
        ("WORKDIR /a/../b/./c/", "/a/../b/./c/"),
        ("WORKDIR /a/\nWORKDIR b/", "/a/b"),
        ("WORKDIR /a/../b/\nWORKDIR ../c", "/c"),
        ("WORKDIR /a\nWORKDIR b\nWORKDIR ../c", "/a/c"),
        ("WORKDIR /a\nWORKDIR $UNSET/b", "/b"),
        ("WORKDIR ~/x", "/~/x"),
        ("WORKDIR /a\nWORKDIR ..", "/"),
    ] {
        let image = world.image(&format!("FROM base\n{text}\n"));
        assert_eq!(image.config.config.working_dir, folder, "{text}");
    }
    let made = world.list(&world.image("FROM base\nWORKDIR /w/../x/\nCOPY Dockerfile .\n"));
    assert!(made.contains_key("/x/Dockerfile") && !made.contains_key("/w"), "{made:#?}");
    let user = world.list(&world.image("FROM base\nUSER app\nWORKDIR /made/by/app\n"));
    assert_eq!(
        (user["/made"].as_str(), user["/made/by/app"].as_str()),
        ("755 1000:1001 dir", "755 1000:1001 dir")
    );
}

#[test]
fn an_image_without_a_path_gets_one() {
    let world = World::new();
    let store = world.engine.store();
    let lease = store.lease().unwrap();
    let base = store.resolve("base", None).unwrap();
    let mut config = base.config.clone();
    config.config.env = vec!["A=1".into()];
    config.config.working_dir = "rel/".into();
    store
        .assemble(&lease, &config, &base.manifest.layers, &[Reference::parse("bare:latest").unwrap()])
        .unwrap();
    let image = world.image("FROM bare\nLABEL a=b\n");
    assert_eq!(image.config.config.env[0], "A=1");
    assert!(image.config.config.env[1].starts_with("PATH=/usr/local/sbin:"));
    assert_eq!(image.config.config.working_dir, "/rel");
    let options = BuildOptions { labels: [("own".to_owned(), "1".to_owned())].into(), ..world.options() };
    let built = world.build_with("Dockerfile", "FROM bare\nENV b=c\n", &options).unwrap();
    assert_eq!(history(&built.image).last().unwrap().0, "ENV b=c", "labels of the caller are no instruction");
}

#[test]
fn proxies_leave_no_trace() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let text = "FROM base\nRUN echo ${https_proxy} > /dev/null\n";
    let plain = world.build_with("Dockerfile", text, &world.options()).unwrap();
    let proxied =
        world.build_with("Dockerfile", text, &world.args(&[("https_proxy", "http://user:pw@h:1")])).unwrap();
    assert!(proxied.cached);
    assert_eq!(plain.image.id(), proxied.image.id());
}

#[test]
fn many_stages_side_by_side() {
    let world = World::new();
    world.write("f", "x");
    let mut text = String::new();
    for i in 0..60 {
        text.push_str(&format!("FROM base AS s{i}\nCOPY f /f{i}\n"));
    }
    text.push_str("FROM scratch\n");
    for i in 0..60 {
        text.push_str(&format!("COPY --from=s{i} /f{i} /\n"));
    }
    assert_eq!(world.list(&world.image(&text)).len(), 60);
}

#[test]
fn other_languages_are_refused_by_name() {
    let world = World::new();
    for (text, name) in [
        ("# syntax=somebody/else:1\nFROM base\n", Some("somebody/else:1")),
        ("#!/usr/bin/env x\n# syntax = ghcr.io/a/b\nnonsense\n", Some("ghcr.io/a/b")),
        ("// syntax=a/b\npackage main\n", Some("a/b")),
        ("{\"syntax\": \"c/d\", \"x\": 1}\n", Some("c/d")),
        ("# syntax=docker/dockerfilex\nFROM base\n", Some("docker/dockerfilex")),
        ("# syntax=somebody/docker/dockerfile:1\nFROM base\n", Some("somebody/docker/dockerfile:1")),
        (
            "# syntax=host.example/notdocker/dockerfile\nFROM base\n",
            Some("host.example/notdocker/dockerfile"),
        ),
        ("# syntax=mirror.example/docker/dockerfile:1.7-labs\nFROM base\n", None),
        ("# syntax=localhost:5000/hub/docker/dockerfile\nFROM base\n", None),
        ("# syntax=docker/dockerfile\nFROM base\n", None),
        ("# syntax=docker.io/docker/dockerfile:1.99-labs\nFROM base\n", None),
        ("# syntax=docker/dockerfile:1@sha256:0123\nFROM base\n", None),
        ("# syntax=docker/dockerfile-upstream:master-labs\nFROM base\n", None),
        ("#!/bin/x\n# syntax=docker/dockerfile:1\nFROM base\n", None),
        ("# a comment\n# syntax=somebody/else\nFROM base\n", None),
    ] {
        match (world.build(text), name) {
            (Ok(_), None) => {}
            (Err(e), Some(name)) => {
                assert!(e.to_string().contains(&format!("the frontend '{name}'")), "{text}: {e}")
            }
            (Err(e), None) => panic!("{text}: {e}"),
            (Ok(_), Some(_)) => panic!("{text} was built"),
        }
    }
    let given =
        |name: &str| world.build_with("Dockerfile", "FROM base\n", &world.args(&[("BUILDKIT_SYNTAX", name)]));
    assert!(given("docker/dockerfile:1").is_ok());
    assert!(given("somebody/else").unwrap_err().to_string().contains("somebody/else"));
}

/// What each layer of an image has: the paths in its archive.
fn entries(world: &World, image: &isles_store::Image) -> Vec<Vec<String>> {
    use isles_store::tar::{Entry, ReadLimits, Reader};
    let mut out = Vec::new();
    for diff_id in &image.config.rootfs.diff_ids {
        let file = world.engine.store().open_blob(diff_id).unwrap();
        let mut reader = Reader::new(std::io::BufReader::new(file), ReadLimits::default());
        let (mut entry, mut paths) = (Entry::default(), Vec::new());
        while reader.next(&mut entry).unwrap() {
            paths.push(String::from_utf8(entry.path.clone()).unwrap());
        }
        out.push(paths);
    }
    out
}

#[test]
fn a_layer_has_what_the_step_changed_and_no_more() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    world.write("Dockerfile.dockerignore", "**\n");
    let image = world.image(
        "FROM base\n\
         RUN mkdir /d && echo x > /d/f && mkdir /d/sub\n\
         RUN chown 0:0 /d /d/sub && chmod 755 /d/sub && touch -r /d /d\n\
         RUN true\n\
         RUN true\n\
         RUN --mount=type=tmpfs,target=/d/made chmod 700 /d/sub\n\
         RUN echo 127.0.0.9 x > /etc/own\n\
         RUN true\n\
         COPY . /\n",
    );
    let entries = entries(&world, &image);
    let steps = &entries[entries.len() - 8..];
    assert_eq!(steps[0], ["d/", "d/f", "d/sub/"]);
    for nothing in [1, 2, 3, 6, 7] {
        assert!(steps[nothing].is_empty(), "{nothing}: {steps:#?}");
    }
    assert_eq!(steps[4], ["d/", "d/sub/"]);
    assert_eq!(steps[5], ["etc/", "etc/own"], "/etc/hosts and the like are not the step's");
    // The same layer several times is no obstacle to whoever uses the image.
    let next =
        world.image("FROM base\nRUN true\nRUN echo 1 > /one\nRUN true\nRUN cat /one > /out\nRUN true\n");
    assert_eq!(world.list(&next)["/out"], "644 0:0 \"1\\n\"");
}

#[test]
fn with_a_fixed_time_two_machines_give_the_same_image() {
    let text = "FROM base AS a\nWORKDIR /new/dir\nCOPY f <<EOF /made/\nhi\nEOF\nCOPY --chown=app f /own\nFROM a\nCOPY --from=a /made /x\n";
    let definition = "Bootstrap: docker\nFrom: base\n%files\nf /a/\n%environment\nexport A=1\n%runscript\nx\n%labels\nA b\n";
    let runs = World::new().can_run();
    let build = || {
        let world = World::new();
        world.write("f", "x");
        let options = BuildOptions { source_date_epoch: Some(1_500_000_000), ..world.options() };
        let run = if runs { "RUN mkdir -p /r/s && echo y > /r/s/t\n" } else { "" };
        let one = world.build_with("Dockerfile", &format!("{text}{run}"), &options).unwrap().image;
        let two = world.build_with("x.def", definition, &options).unwrap().image;
        (one.id().clone(), two.id().clone())
    };
    assert_eq!(build(), build());
}

#[test]
fn the_same_recipe_twice_at_once() {
    let world = World::new();
    world.write("f", "x").write(
        "Dockerfile",
        "FROM base AS a\nCOPY f /a\nFROM base AS b\nCOPY f /a\nFROM a\nCOPY --from=b /a /b\n",
    );
    let path = world.context().join("Dockerfile");
    let build = || {
        isles_build::image_of_recipe(
            &world.engine,
            &world.client,
            &path,
            &world.options(),
            &isles_spec::Quiet,
        )
        .unwrap()
    };
    let ids: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..4).map(|_| scope.spawn(build)).collect();
        handles.into_iter().map(|h| h.join().unwrap().image.config.rootfs.diff_ids.len()).collect()
    });
    assert_eq!(ids, [3; 4]);
}

#[test]
fn images_for_other_platforms_are_used_with_a_warning() {
    let world = World::new();
    world.write("f", "text");
    let host = isles_spec::Platform::host();
    let other = if host.architecture == "s390x" { "linux/amd64" } else { "linux/s390x" };
    let options = BuildOptions { platforms: vec![other.parse().unwrap()], ..world.options() };
    let made = world.build_with("Dockerfile", "FROM scratch\nCOPY f /\n", &options).unwrap();
    let name = "foreign:1".parse::<isles_spec::Reference>().unwrap().normalized();
    world.engine.store().set_name(&name, &made.image.manifest_digest).unwrap();

    let built = world.build("FROM foreign:1\nCOPY f /g\n").unwrap();
    let said: Vec<&str> = built.warnings.iter().map(|w| w.message.as_str()).collect();
    assert!(matches!(said[..], [one] if one.contains("'foreign:1' is for linux/")), "{said:?}");
    assert!(world.list(&built.image).contains_key("/g"));
    world.build("FROM base\nCOPY --from=foreign:1 f /g\n").unwrap();
    // A program of it does not run, or has an interpreter and is missing.
    let shown = describe(&world.build("FROM foreign:1\nRUN true\n").unwrap_err());
    assert!(shown.contains("do not run on this machine") || shown.contains("/bin/sh"), "{shown}");
    // Of a name that stands for several, the right one has to be there.
    let shown = describe(&world.build("FROM nowhere:1\nCOPY f /\n").unwrap_err());
    assert!(shown.contains("nowhere:1"), "{shown}");
}
