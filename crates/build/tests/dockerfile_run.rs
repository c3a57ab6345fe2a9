//! What RUN of a Dockerfile does: what a step sees, whose its programs are, what it is lent and what it leaves.

#![allow(clippy::unwrap_used)]

mod support;

use isles_build::BuildOptions;
use isles_spec::Rlimit;
use support::{World, describe};

/// The text of a file that a RUN wrote.
fn ran(world: &World, text: &str, options: &BuildOptions) -> String {
    let built =
        world.build_with("Dockerfile", text, options).unwrap_or_else(|e| panic!("{text}\n{}", describe(&e)));
    let mut out = String::new();
    let view = world.view(&built.image);
    let mut file = view.open_file(std::path::Path::new("/out")).unwrap();
    std::io::Read::read_to_string(&mut file, &mut out).unwrap();
    out
}

/// What a step sees of `mode uid:gid` where this user has one ID only: all is root's.
fn owned(world: &World, expected: &str) -> String {
    match (expected.split_once(' '), world.engine.store().ownership().keeps_owners()) {
        (Some((mode, owner)), false) if is_owner(owner) => format!("{mode} 0:0\n"),
        _ => expected.to_owned(),
    }
}

fn is_owner(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.trim_end().split_once(':').is_some_and(|(user, group)| number(user) && number(group))
}

#[test]
fn run_sees_what_it_should() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    world.write("f", "context").write("ignored", "x").write("Dockerfile.dockerignore", "ignored\n");
    let mut options = world.args(&[("GIVEN", "caller"), ("HTTP_PROXY", "http://proxy")]);
    let secret = world.dir.path().join("secret");
    std::fs::write(&secret, "s3cret").unwrap();
    options.secrets.insert("key".into(), secret.into());
    options.secrets.insert("path".into(), isles_build::SecretSource::Variable("PATH".into()));
    for (instructions, expected) in [
        ("RUN echo hi > /out", "hi\n"),
        ("RUN [\"/bin/sh\", \"-c\", \"echo exec > /out\"]", "exec\n"),
        ("ENV E=env\nARG E=arg A=1\nARG GIVEN\nRUN echo $E $A $GIVEN > /out", "env 1 caller\n"),
        ("RUN echo $HTTP_PROXY > /out", "http://proxy\n"),
        ("RUN id -G > /out", "0\n"),
        ("RUN echo $HTTP_PROXY $http_proxy > /out", "http://proxy http://proxy\n"),
        (
            "RUN while read a b; do case $b-$a in isle-*.*) echo ${a%.*.*};; esac; done < /etc/hosts > /out",
            "10.0\n",
        ),
        ("RUN test -e /sys/class/net/eth0 && echo own > /out", "own\n"),
        ("RUN --network=none ls /sys/class/net > /out", "lo\n"),
        (
            "RUN --network=none while read a b; do echo $b; done < /etc/hosts > /out",
            "localhost\nlocalhost ip6-localhost ip6-loopback\nisle\n",
        ),
        ("WORKDIR /w\nRUN pwd > /out", "/w\n"),
        ("RUN <<EOF\necho one > /out\necho two >> /out\nEOF", "one\ntwo\n"),
        ("RUN <<EOF\n#!/bin/cat\nscript\nEOF\nRUN echo ok > /out", "ok\n"),
        ("RUN cat <<A > /out && cat <<'B' >> /out\n$BASE\nA\n$BASE\nB", "1\n$BASE\n"),
        ("SHELL [\"/bin/sh\", \"-xc\"]\nRUN echo shell > /out", "shell\n"),
        (
            "RUN --mount=target=/ctx cat /ctx/f > /out; ls /ctx >> /out",
            "contextDockerfile\nDockerfile.dockerignore\nf\n",
        ),
        ("RUN --mount=target=/ctx,rw echo x > /ctx/f && cat /ctx/f > /out", "x\n"),
        ("RUN --mount=target=/one,source=f cat /one > /out", "context"),
        ("RUN --mount=from=base,source=/data/file,target=/x cat /x > /out", "old"),
        ("RUN --mount=type=tmpfs,target=/t touch /t/x && ls /t > /out", "x\n"),
        ("RUN --mount=type=secret,id=key cat /run/secrets/key > /out", "s3cret"),
        ("RUN --mount=type=secret,id=key,env=K echo $K > /out", "s3cret\n"),
        ("RUN --mount=type=secret,id=other test ! -e /run/secrets/other && echo none > /out", "none\n"),
        (
            "RUN --mount=type=cache,target=/c,id=$BASE touch /c/kept\nRUN --mount=type=cache,target=/d,id=1 ls /d > /out",
            "kept\n",
        ),
        ("RUN --network=none ls /sys/class/net > /out", "lo\n"),
        ("RUN --network=none cat /sys/class/net/lo/flags > /out", "0x9\n"),
        (
            "RUN --mount=type=secret,id=key,target=/s,mode=0440,uid=5,gid=6 stat -c '%a %u:%g' /s > /out",
            "440 5:6\n",
        ),
        ("RUN --mount=type=secret,id=key stat -c '%a %u:%g' /run/secrets/key > /out", "400 0:0\n"),
        ("RUN --mount=type=secret,source=key cat /run/secrets/key > /out", "s3cret"),
        ("RUN --mount=type=secret,target=/where/key cat /where/key > /out", "s3cret"),
        (
            "RUN --mount=type=secret,id=key,env=K,target=/s cat /s > /out && test ! -e /run/secrets/key && echo $K >> /out",
            "s3crets3cret\n",
        ),
        (
            "RUN --mount=type=cache,target=/owned,uid=5,gid=6,mode=0700 stat -c '%a %u:%g' /owned > /out",
            "700 5:6\n",
        ),
        ("WORKDIR /w\nRUN --mount=type=cache,target=rel,id=relative touch /w/rel/x && ls rel > /out", "x\n"),
        (
            "RUN --mount=type=cache,target=/first,from=base,source=/etc cat /first/group > /out",
            "root:x:0:\nstaff:x:50:\n",
        ),
        ("RUN --mount=type=cache,target=/first,ro touch /first/x 2>/dev/null || echo no > /out", "no\n"),
        (
            "RUN --mount=type=cache,id=mine,target=/p,sharing=private --mount=type=cache,id=mine,target=/q,sharing=private \
             touch /p/x && ls /q > /out && echo end >> /out",
            "end\n",
        ),
        (
            "FROM base AS other\nRUN mkdir /d && echo stage > /d/f\nFROM base\nRUN --mount=from=other,source=/d,target=/m cat /m/f > /out",
            "stage\n",
        ),
        (
            "RUN --mount=type=cache,id=twice,target=/p,sharing=locked --mount=type=cache,id=twice,target=/q \
             touch /p/x && ls /q > /out",
            "x\n",
        ),
        ("ENV K=env\nRUN --mount=type=secret,id=key,env=K echo $K > /out", "s3cret\n"),
        (
            "RUN --mount=type=cache,id=parts,target=/p mkdir -p /p/sel && echo part > /p/sel/f\n\
             RUN --mount=type=cache,id=parts,source=sel,target=/q cat /q/f > /out",
            "part\n",
        ),
        (
            "RUN --mount=type=cache,target=/foo/bar --mount=type=cache,target=/foo/bar/baz touch /foo/bar/baz/x && ls /foo/bar > /out",
            "baz\n",
        ),
        ("RUN <<A 3<<B sh -s > /out\ncat\nA\nx\nB", ""),
        ("RUN cat <<A - 3<<B <&3 > /out\na\nA\nb\nB", "b\n"),
        ("RUN --mount=type=tmpfs,target=/dev/shm,size=128m stat -f -c %b /dev/shm > /out", "32768\n"),
        ("RUN --mount=type=secret,id=path,env=P test -n \"$P\" && echo set > /out", "set\n"),
        ("RUN <<-EOF\n\t#!/bin/cat\n\tEOF\nRUN echo ok > /out", "ok\n"),
        ("RUN <<EOF cat > /out\nbody $BASE\nEOF", "body 1\n"),
        ("RUN --mount=target=/ctx touch /ctx/f 2>/dev/null || echo no > /out", "no\n"),
        ("RUN --mount=type=tmpfs,target=/t,size=1m stat -f -c %b /t > /out", "256\n"),
        (
            "RUN --mount=type=ssh test ! -e $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > /out",
            "/run/buildkit/ssh_agent.0\n",
        ),
    ] {
        assert_eq!(
            ran(&world, &format!("FROM base\n{instructions}\n"), &options),
            owned(&world, expected),
            "{instructions}"
        );
    }
}

#[test]
fn whose_programs_are() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    if !world.engine.store().ownership().keeps_owners() {
        println!("skip: this user has one ID only");
        return;
    }
    for (user, expected) in [
        ("root", "0:0 0"),
        ("app", "1000:1001 1001"),
        ("1000", "1000:1001 1001"),
        ("app:staff", "1000:50 50"),
        ("1000:staff", "1000:50 50"),
        ("app:7", "1000:7 7"),
        ("1234", "1234:0 0"),
        ("1234:1235", "1234:1235 1235"),
    ] {
        let text = format!(
            "FROM base\nRUN touch /out && chown 1000 /out && busybox chmod 666 /out\nARG U={user}\nUSER $U\n\
             RUN echo $(id -u):$(id -g) $(id -G) > /out\n"
        );
        assert_eq!(ran(&world, &text, &world.options()), format!("{expected}\n"), "{user}");
    }
}

#[test]
fn a_part_of_a_cache_leads_nowhere_else() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    for made in [
        "rm -rf /p/sel && ln -s /etc /p/sel",
        "rm -rf /p/sel && ln -s ../../../../../../../../etc /p/sel",
        "rm -rf /p/sel",
    ] {
        let text = format!(
            "FROM base\nRUN --mount=type=cache,id=c,target=/p {made}\nRUN --mount=type=cache,id=c,source=sel,target=/v ls /v\n"
        );
        let error = world.build(&text).unwrap_err();
        assert!(error.to_string().contains("the cache has no '/sel'"), "{made}: {error}");
    }
}

/// The other half of [`an_agent_is_lent`]: this test's own program, in a step, asks the agent.
#[test]
fn in_a_step_the_agent_is_asked() {
    use std::io::{Read, Write};
    let Some(socket) = std::env::var_os("ISLES_TEST_AGENT") else { return };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    for (request, answer) in [(11, 100), (19, 5)] {
        stream.write_all(&[0, 0, 0, 1, request]).unwrap();
        let mut got = [0; 5];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, [0, 0, 0, 1, answer]);
    }
}

#[test]
fn an_agent_is_lent() {
    use std::io::{Read, Write};
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let socket = world.dir.path().join("agent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 5];
            while stream.read_exact(&mut request).is_ok() {
                stream.write_all(&[0, 0, 0, 1, 100]).unwrap();
            }
        }
    });
    std::fs::copy(std::env::current_exe().unwrap(), world.context().join("program")).unwrap();
    let mut options = world.options();
    options.ssh.insert("default".into(), vec![socket.clone()]);
    options.ssh.insert("other".into(), vec![socket]);
    let named = world.args(&[("BUILDKIT_SANDBOX_HOSTNAME", "box"), ("BUILDKIT_CACHE_MOUNT_NS", "mine")]);
    assert_eq!(ran(&world, "FROM base\nRUN cat /proc/sys/kernel/hostname > /out\n", &named), "box\n");
    let cached = "FROM base\nRUN --mount=type=cache,target=/c touch /c/x\nRUN --mount=type=cache,target=/c ls /c > /out\n";
    assert_eq!(ran(&world, cached, &named), "x\n");
    assert_eq!(ran(&world, &cached.replace("touch /c/x", "true"), &world.options()), "");
    // Steps that are made anew find what the others left in their caches: that is no result of a step.
    let counted = "FROM base\nRUN --mount=type=cache,target=/n echo x >> /n/x && cat /n/x > /out\n";
    let anew = BuildOptions { no_cache: true, ..world.options() };
    assert_eq!(ran(&world, counted, &world.options()), "x\n");
    assert_eq!(ran(&world, counted, &world.options()), "x\n");
    assert_eq!(ran(&world, counted, &anew), "x\nx\n");
    assert_eq!(ran(&world, counted, &anew), "x\nx\nx\n");
    let ask = "/ctx/program --exact in_a_step_the_agent_is_asked >&2";
    for (instruction, expected) in [
        (
            format!(
                "RUN --mount=type=ssh --mount=target=/ctx ISLES_TEST_AGENT=$SSH_AUTH_SOCK {ask} && stat -c '%a %u:%g' $SSH_AUTH_SOCK > /out"
            ),
            "600 0:0\n",
        ),
        (
            format!(
                "RUN --mount=type=ssh,id=other,target=/run/a,mode=0666,uid=1000 --mount=target=/ctx ISLES_TEST_AGENT=/run/a {ask} && stat -c '%a %u:%g' $SSH_AUTH_SOCK > /out"
            ),
            "666 1000:0\n",
        ),
        (
            "RUN --mount=type=ssh --mount=type=ssh,id=other ls /run/buildkit > /out".into(),
            "ssh_agent.0\nssh_agent.1\n",
        ),
        (
            "RUN --mount=type=ssh,id=missing test ! -e /run/buildkit/ssh_agent.0 && echo none > /out".into(),
            "none\n",
        ),
    ] {
        assert_eq!(
            ran(&world, &format!("FROM base\n{instruction}\n"), &options),
            owned(&world, expected),
            "{instruction}"
        );
    }
    let built = world.build_with("Dockerfile", "FROM base\nRUN --mount=type=ssh true\n", &options).unwrap();
    assert!(!world.list(&built.image).contains_key("/run"), "its place is not left behind");
}

#[test]
fn rights_are_granted_by_the_caller() {
    use isles_build::Entitlement;
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let capabilities = |flag: &str, options: &BuildOptions| {
        let text = format!(
            "FROM base\nRUN {flag} while read n v; do test $n != CapBnd: || echo $v; done < /proc/self/status > /out\n"
        );
        u64::from_str_radix(ran(&world, &text, options).trim(), 16).unwrap()
    };
    let mut options = world.options();
    let usual = capabilities("", &options);
    assert_eq!(usual, 0xa804_25fb, "the capabilities that docker gives");
    options.allow.insert(Entitlement::SecurityInsecure);
    assert_eq!(capabilities("--security=sandbox", &options), usual);
    let all = capabilities("--security=insecure", &options);
    assert!(all.count_ones() > usual.count_ones() && all & usual == usual, "{all:x} {usual:x}");
    options.allow.insert(Entitlement::Device(None));
    let device = |flag: &str, text: &str, options: &BuildOptions| {
        ran(&world, &format!("FROM base\nRUN {flag} {text} > /out\n"), options)
    };
    if std::path::Path::new("/dev/fuse").exists() {
        assert_eq!(device("--device=/dev/fuse", "test -c /dev/fuse && echo yes", &options), "yes\n");
    }
    assert_eq!(device("--device=/dev/nothing --device=a.b/c=d", "echo without", &options), "without\n");
    for (flag, part) in [
        ("--device=/dev/nothing,required", "'/dev/nothing' is not here"),
        ("--device=a.b/c=d,required", "'a.b/c=d' is not here"),
        ("--device=gpu", "no name of a device"),
        ("--device=required", "needs a name"),
    ] {
        let error =
            world.build_with("Dockerfile", &format!("FROM base\nRUN {flag} true\n"), &options).unwrap_err();
        assert!(error.to_string().contains(part) && error.to_string().contains("Dockerfile:2:"), "{error}");
    }
    let one = Entitlement::Device(Some("a.b/c=d".into()));
    let only = BuildOptions { allow: [one].into(), ..world.options() };
    assert_eq!(device("--device=a.b/c=d", "echo without", &only), "without\n");
    let error =
        world.build_with("Dockerfile", "FROM base\nRUN --device=/dev/fuse true\n", &only).unwrap_err();
    assert!(error.to_string().contains("device=/dev/fuse is not granted"), "{error}");
    let interfaces = |flag: &str, options: &BuildOptions| {
        ran(&world, &format!("FROM base\nRUN {flag} ls /sys/class/net > /out\n"), options).lines().count()
    };
    let host = std::fs::read_dir("/sys/class/net").unwrap().count();
    options.allow.insert(Entitlement::NetworkHost);
    assert_eq!(interfaces("--network=host", &options), host);
    let by_network = BuildOptions { network: isles_spec::NetworkMode::Host, ..world.options() };
    assert_eq!(interfaces("--network=host", &by_network), host);
}

#[test]
fn run_leaves_nothing_of_the_engine_behind() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let secret = world.dir.path().join("secret");
    std::fs::write(&secret, "s3cret").unwrap();
    let mut options = world.options();
    options.secrets.insert("key".into(), secret.into());
    let text = "FROM base\nRUN --mount=type=cache,target=/root/.cache/x --mount=type=tmpfs,target=/made/by/mount --mount=target=/ctx \
         --mount=type=secret,id=key,target=/run/a/secret echo hi > /own && rm -r /data\n";
    let image =
        world.build_with("Dockerfile", text, &options).unwrap_or_else(|e| panic!("{}", describe(&e))).image;
    let list = world.list(&image);
    for gone in [
        "/proc",
        "/sys",
        "/dev",
        "/ctx",
        "/run",
        "/made",
        "/root/.cache",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/data",
        "/data/file",
    ] {
        assert!(!list.contains_key(gone), "{gone} is in the image: {list:#?}");
    }
    assert_eq!(list["/own"], "644 0:0 \"hi\\n\"");
    assert_eq!(world.view(&image).lstat(std::path::Path::new("/")).unwrap().mode, 0o755);
    assert_eq!(
        image.config.history.last().unwrap().created_by.as_ref().unwrap().split(" --").next().unwrap(),
        "RUN /bin/sh -c echo hi > /own && rm -r /data # buildkit"
    );
}

#[test]
fn what_a_caller_gives_to_all_steps() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    const TEXT: &str = "FROM base\nRUN { grep -c '^10.9.8.7.db$' /etc/hosts; ulimit -n; ulimit -Hn; \
                        df -k /dev/shm | tail -1 | awk '{print $2}'; } > /out\n";
    let given = BuildOptions {
        extra_hosts: vec!["db:10.9.8.7".into()],
        shm_size: Some(2 << 20),
        rlimits: vec![Rlimit::parse("nofile=123:456").unwrap()],
        ..world.options()
    };
    assert_eq!(ran(&world, TEXT, &given), "1\n123\n456\n2048\n");
    assert!(world.build_with("Dockerfile", TEXT, &given).unwrap().cached);
    // Each of them is part of the step.
    for options in [
        BuildOptions { extra_hosts: Vec::new(), ..given.clone() },
        BuildOptions { shm_size: None, ..given.clone() },
        BuildOptions { rlimits: Vec::new(), ..given.clone() },
    ] {
        assert!(!world.build_with("Dockerfile", TEXT, &options).unwrap().cached, "{options:?}");
    }
    let bad = BuildOptions { extra_hosts: vec!["db".into()], ..world.options() };
    let refused = describe(&world.build_with("Dockerfile", TEXT, &bad).unwrap_err());
    assert!(refused.contains("invalid host 'db'"), "{refused}");
}

#[test]
fn caches_of_others_are_others() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let text = "FROM scratch AS one\nCOPY Dockerfile /first\nFROM base\n\
        RUN --mount=type=cache,target=/c touch /c/plain\n\
        RUN --mount=type=cache,target=/c,mode=0700 touch /c/private\n\
        RUN --mount=type=cache,target=/c,from=one touch /c/begun\n\
        RUN --mount=type=cache,target=/c ls /c > /out\n\
        RUN --mount=type=cache,target=/c,mode=0700 ls /c >> /out\n\
        RUN --mount=type=cache,target=/c,from=one ls /c >> /out\n";
    assert_eq!(ran(&world, text, &world.options()), "plain\nprivate\nbegun\nfirst\n");
}

#[test]
fn a_failed_step_says_where_and_why() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let error = world.build("FROM base\nRUN echo before && \\\n  nosuchprogram\n").unwrap_err();
    let shown = describe(&error);
    assert!(shown.contains("Dockerfile:2: ") && shown.contains("exit code 127"), "{shown}");
    assert!(shown.contains("before") && shown.contains("not in the image"), "{shown}");
    let error = world.build("FROM base\nRUN [\"/no/such\"]\n").unwrap_err();
    assert!(error.to_string().contains("Dockerfile:2:1: "), "{error}");
    let error = world.build("FROM base\nUSER nobody\nRUN true\n").unwrap_err();
    assert!(error.to_string().contains("Dockerfile:3:1: "), "{error}");
}
