//! Build checks: what each rule finds and what it does not, by rule and line.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use isles_build::dockerfile::checks::{self, ARGUMENT, Checked, Look, rules};
use isles_build::dockerfile::{self, outline};
use isles_build::pattern::Ignore;
use isles_build::position::SourceText;
use isles_spec::Platform;
use isles_spec::image::ImageConfig;

/// What is looked at beside the text.
#[derive(Default)]
struct With<'a> {
    args: &'a [(&'a str, &'a str)],
    dockerignore: &'a str,
    target: Option<&'a str>,
}

/// Some base images; others cannot be had.
fn base(name: &str, platform: &Platform) -> Option<ImageConfig> {
    let mut image = ImageConfig::empty(platform);
    image.config.env = vec!["PATH=/bin".into(), "BASE=1".into()];
    match name {
        "base" | "base:12" | "base:" => {}
        "shelled" => image.config.shell = Some(vec!["/bin/bash".into(), "-c".into()]),
        "placed" => image.config.working_dir = "/srv".into(),
        "other" => image = ImageConfig::empty(&"linux/s390x".parse().unwrap()),
        "trigger" => {
            image.config.on_build =
                vec!["COPY $MISSING /x".into(), "ARG GIVEN=1".into(), "CMD a".into(), "WORKDIR rel".into()];
        }
        _ => return None,
    }
    Some(image)
}

fn look(text: &str, with: &With<'_>) -> Checked {
    let source = SourceText::new("Dockerfile", text.as_bytes());
    let platform: Platform = "linux/amd64".parse().unwrap();
    let build_args: BTreeMap<String, String> =
        with.args.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let ignore = Ignore::read(with.dockerignore).unwrap();
    checks::check(
        &source,
        &Look {
            platform: &platform,
            build_args: &build_args,
            target: with.target,
            all_stages: with.target.is_none(),
            ignore: &ignore,
            named: &|_| None,
            base: &base,
        },
    )
}

fn found(checked: &Checked) -> Vec<String> {
    let mut found: Vec<String> =
        checked.findings.iter().map(|f| format!("{} {}", f.rule.name, f.lines.0)).collect();
    found.sort();
    found
}

fn expect(text: &str, with: &With<'_>, want: &[&str]) {
    let checked = look(text, with);
    let mut want: Vec<&str> = want.to_vec();
    want.sort_unstable();
    assert!(checked.error.is_none(), "{text}\n{:?}", checked.error);
    assert_eq!(found(&checked), want, "{text}\n{:#?}", checked.findings);
}

#[test]
fn each_rule_finds_what_it_should_and_nothing_else() {
    let rows: &[(&str, &[&str])] = &[
        ("FROM scratch AS Bad\n", &["StageNameCasing 1"]),
        ("FROM scratch AS good-1.x_y\n", &[]),
        ("FROM scratch as a\n", &["FromAsCasing 1"]),
        ("from scratch AS a\nfrom scratch as b\n", &["FromAsCasing 1"]),
        ("from scratch as a\nfrom scratch as b\n", &[]),
        ("From scratch as a\nFROM scratch AS b\n", &["ConsistentInstructionCasing 1"]),
        ("FROM scratch aS a\n", &["FromAsCasing 1"]),
        ("FROM base\nRUN a \\\n\n  b\n", &["NoEmptyContinuation 4"]),
        ("FROM base\nRUN a \\\n\n \\\n\t\n b \\\n c\nRUN d\n", &["NoEmptyContinuation 7"]),
        ("FROM base\nRUN a \\\n# comment\n  b\n", &[]),
        ("FROM base\nRUN <<E \\\n\n  x\na\nE\n", &["NoEmptyContinuation 4"]),
        ("FROM base\ncopy a /\nCOPY b /\n", &["ConsistentInstructionCasing 2"]),
        ("from base\ncopy a /\nCOPY b /\n", &["ConsistentInstructionCasing 3"]),
        ("from base\nCOPY a /\nCOPY b /\n", &["ConsistentInstructionCasing 1"]),
        ("from base\ncopy a /\n", &[]),
        ("from base\nCOPY a /\n", &["ConsistentInstructionCasing 1"]),
        ("FROM base\nCoPy a /\n", &["ConsistentInstructionCasing 2"]),
        ("arg A=1\nFROM base\nRUN x\n", &[]),
        ("FROM base\nONBUILD run x\n", &[]),
        ("FROM base\nRUN <<E\nfrom x\nE\n", &[]),
        ("FROM base AS b\nFROM base AS b\n", &["DuplicateStageName 2"]),
        ("FROM base AS b\nFROM base AS B\n", &["DuplicateStageName 2", "StageNameCasing 2"]),
        ("FROM base AS b\nFROM base AS c\nFROM base\nFROM base\n", &[]),
        ("FROM base AS scratch\nFROM base AS context\n", &["ReservedStageName 1", "ReservedStageName 2"]),
        ("FROM scratch\nFROM scratch AS a\n", &[]),
        ("FROM base\nCMD a b\n", &["JSONArgsRecommended 2"]),
        ("FROM base\nENTRYPOINT a b\n", &["JSONArgsRecommended 2"]),
        ("FROM base\nCMD [\"a\"]\nENTRYPOINT [\"b\"]\n", &[]),
        ("FROM base\nSHELL [\"/bin/bash\"]\nCMD a\n", &[]),
        ("FROM base AS b\nSHELL [\"/bin/bash\"]\nFROM b\nENTRYPOINT a\n", &[]),
        ("FROM base\nCMD a\nSHELL [\"/bin/bash\"]\n", &["JSONArgsRecommended 2"]),
        ("FROM shelled\nCMD a\n", &[]),
        ("FROM base\nHEALTHCHECK CMD a\nRUN b\n", &[]),
        ("FROM base\nMAINTAINER me\n", &["MaintainerDeprecated 2"]),
        ("FROM base\nLABEL org.opencontainers.image.authors=me\n", &[]),
        ("ARG T=12\nFROM base:$T\n", &[]),
        ("ARG D\nFROM base$D\n", &[]),
        ("ARG D\nFROM ba${D:-se}\n", &[]),
        ("FROM base${VERSION}\n", &["UndefinedArgInFrom 1"]),
        ("FROM ${B:-base}\n", &["UndefinedArgInFrom 1"]),
        ("FROM --platform=$BUILDPLATFORM base\n", &[]),
        ("FROM --platform=linux/${ARHC:-amd64} base\n", &["UndefinedArgInFrom 1"]),
        ("FROM base\nARG V=1\nFROM base$V\n", &["UndefinedArgInFrom 3"]),
        ("FROM base\nWORKDIR app/\n", &["WorkdirRelativePath 2"]),
        ("FROM base\nWORKDIR app\nWORKDIR sub\n", &["WorkdirRelativePath 2"]),
        ("FROM base\nWORKDIR /app\nWORKDIR sub\n", &[]),
        ("FROM base AS a\nWORKDIR /app\nFROM a\nWORKDIR sub\n", &[]),
        ("FROM placed\nWORKDIR sub\n", &["WorkdirRelativePath 2"]),
        ("FROM base\nENV D=/d\nWORKDIR $D\n", &[]),
        ("FROM base\nCOPY $foo /\n", &["UndefinedVar 2"]),
        ("FROM base\nARG foo\nCOPY x$foo /\n", &[]),
        ("FROM base\nCOPY $foo /\nARG foo=bar\n", &["UndefinedVar 2"]),
        ("FROM base AS a\nARG foo=x\nFROM a\nCOPY $foo /\n", &[]),
        ("FROM base AS a\nARG foo=x\nFROM base\nCOPY $foo /\n", &["UndefinedVar 4"]),
        ("ARG foo=x\nFROM base\nCOPY $foo /\n", &["UndefinedVar 3"]),
        ("FROM base\nENV PATH=$PATH:/x B=$BASE\nRUN echo $undefined\n", &[]),
        ("FROM base\nENV A=1 B=$A\n", &["UndefinedVar 2"]),
        ("FROM base\nENV A=$x B=$x\n", &["UndefinedVar 2", "UndefinedVar 2"]),
        ("FROM base\nLABEL a=${x:-d} \"$y\"=z\n", &["UndefinedVar 2", "UndefinedVar 2"]),
        ("FROM base\nLABEL a='$x' b=\\$y c=\"$BASE\"\n", &[]),
        ("FROM base\nEXPOSE 80$x\nCMD [\"$x\"]\nHEALTHCHECK CMD $x\nONBUILD COPY $x /\n", &[]),
        (
            "FROM base\nUSER $x\nVOLUME /$y\nSTOPSIGNAL 9$z\n",
            &["UndefinedVar 2", "UndefinedVar 3", "UndefinedVar 4"],
        ),
        ("FROM base\nARG a=$x b=$a\n", &["UndefinedVar 2"]),
        (
            "FROM base\nCOPY --chown=$u:$g --chmod=$m a /\n",
            &["UndefinedVar 2", "UndefinedVar 2", "UndefinedVar 2"],
        ),
        ("FROM base\nCOPY <<E <<'F' /\n$x\nE\n$y\nF\n", &["UndefinedVar 2"]),
        (
            "FROM base\nRUN --mount=type=cache,target=/$x --mount=type=secret,id=$BASE true\n",
            &["UndefinedVar 2"],
        ),
        ("FROM base\nRUN --mount=target=/x,from=base true\n", &[]),
        ("FROM base\nCOPY $HTTP_PROXY /\n", &["UndefinedVar 2"]),
        ("FROM base\nARG TARGETARCH\nCOPY $TARGETARCH $TARGETOS /\n", &["UndefinedVar 3"]),
        ("FROM base\nCOPY a \\\n  $foo /\n", &["UndefinedVar 2"]),
        ("FROM not/to-be-had\nCOPY $JAVA_HOME/x /\n", &[]),
        ("FROM base\nCMD [\"a\"]\nENTRYPOINT [\"a\"]\nHEALTHCHECK CMD a\n", &[]),
        (
            "FROM base\nCMD [\"a\"]\nENTRYPOINT [\"a\"]\nHEALTHCHECK CMD a\nRUN x\nCMD [\"b\"]\nENTRYPOINT [\"b\"]\nHEALTHCHECK NONE\n",
            &[
                "MultipleInstructionsDisallowed 2",
                "MultipleInstructionsDisallowed 3",
                "MultipleInstructionsDisallowed 4",
            ],
        ),
        (
            "FROM base\nCMD [\"a\"]\nCMD [\"b\"]\nCMD [\"c\"]\n",
            &["MultipleInstructionsDisallowed 2", "MultipleInstructionsDisallowed 3"],
        ),
        ("FROM base AS a\nCMD [\"a\"]\nFROM a\nCMD [\"b\"]\n", &[]),
        ("FROM base\nENV a b\nLABEL c d e\n", &["LegacyKeyValueFormat 2", "LegacyKeyValueFormat 3"]),
        ("FROM base\nENV a=b c=\"\"\nLABEL d=\n", &[]),
        ("FROM other\n", &["InvalidBaseImagePlatform 1"]),
        ("FROM --platform=linux/s390x other AS s390x\n", &[]),
        ("FROM --platform=$TARGETPLATFORM base\n", &["RedundantTargetPlatform 1"]),
        ("FROM --platform=${TARGETPLATFORM} base\n", &["RedundantTargetPlatform 1"]),
        ("FROM --platform=${TARGETOS}/${TARGETARCH} base\n", &[]),
        ("FROM --platform=${TARGETPLATFORM}/v2 base\n", &[]),
        ("FROM base\nARG API_KEY\nENV TOKEN=a\n", &["SecretsUsedInArgOrEnv 2", "SecretsUsedInArgOrEnv 3"]),
        (
            "FROM base\nENV my_Secret=a b=c passwd=d\n",
            &["SecretsUsedInArgOrEnv 2", "SecretsUsedInArgOrEnv 2"],
        ),
        ("FROM base\nENV auth x\n", &["LegacyKeyValueFormat 2", "SecretsUsedInArgOrEnv 2"]),
        ("FROM base\nARG PUBLIC_KEY SECRET_FILE AUTH_VERSION KEYBOARD MONKEY tokens\n", &[]),
        ("ARG TOKEN=x\nFROM base\n", &[]),
        ("ARG V=12\nFROM base:$V\n", &[]),
        ("FROM --platform=linux/amd64 base\n", &["FromPlatformFlagConstDisallowed 1"]),
        ("FROM --platform=linux/amd64 base AS my_amd64\n", &[]),
        ("FROM --platform=linux/amd64 base AS linux-x\n", &[]),
        ("FROM base\n# NAME is it\n#\nEXPOSE 80/tcp 90 53/udp 8000-9000\n", &[]),
        ("FROM base\nEXPOSE 80/TcP 81/UDP 82/tcp\n", &["ExposeProtoCasing 2", "ExposeProtoCasing 2"]),
        ("FROM base\nENV p=80/TCP\nEXPOSE $p\n", &["ExposeProtoCasing 3"]),
        (
            "FROM base\nEXPOSE 127.0.0.1:80:80 [::1]:8080:8080 5000:5000 8000\n",
            &["ExposeInvalidFormat 2", "ExposeInvalidFormat 2", "ExposeInvalidFormat 2"],
        ),
        ("FROM base\nEXPOSE 5000:5000/TCP\n", &["ExposeInvalidFormat 2", "ExposeProtoCasing 2"]),
        (
            "FROM trigger\nCMD [\"x\"]\n",
            &[
                "JSONArgsRecommended 1",
                "MultipleInstructionsDisallowed 1",
                "UndefinedVar 1",
                "WorkdirRelativePath 1",
            ],
        ),
        ("FROM base AS a\nONBUILD COPY $x /\nFROM a\n", &["UndefinedVar 3"]),
        ("FROM base AS a\nONBUILD COPY $x /\nFROM a\nFROM trigger\nFROM base\n", &[]),
        // The comments of experimental rules say nothing where nobody asks for them.
        ("# not a description\nFROM base AS a\n# nor this\nARG X=1\n", &[]),
    ];
    for (text, want) in rows {
        expect(text, &With::default(), want);
    }
    let mut seen: BTreeSet<&str> =
        rows.iter().flat_map(|(_, w)| *w).map(|w| w.split(' ').next().unwrap()).collect();
    // Their tests are below.
    seen.extend(["CopyIgnoredFile", "InvalidDefinitionDescription", "InvalidDefaultArgInFrom"]);
    assert_eq!(seen, rules::ALL.iter().map(|r| r.name).collect());
}

#[test]
fn descriptions() {
    let on = "# check=experimental=InvalidDefinitionDescription\n";
    for (text, want) in [
        ("# a does it\nFROM base AS a\n# X is it\nARG X=1\n", &[][..]),
        (
            "# does it\nFROM base AS a\n# is it\nARG X=1\n",
            &["InvalidDefinitionDescription 3", "InvalidDefinitionDescription 5"],
        ),
        ("# does it\nFROM base\n", &[]),
        ("# A does it\nFROM base AS a\n", &["InvalidDefinitionDescription 3"]),
        ("# B is one of them\nARG A=1 B=2\nFROM base\n", &[]),
        ("# C is none of them\nARG A=1 B=2\nFROM base\n", &["InvalidDefinitionDescription 3"]),
        ("# about something else\n#\nFROM base AS a\n", &[]),
        ("# a does it\n# in two lines\nFROM base AS a\n", &["InvalidDefinitionDescription 4"]),
        ("# not about a stage\nFROM base\n# nor an ARG\nRUN x\n", &[]),
    ] {
        expect(&format!("{on}{text}"), &With::default(), want);
        expect(&format!("# check=skip=all\n{text}"), &With::default(), &[]);
        let with = With { args: &[(ARGUMENT, "experimental=all")], ..With::default() };
        let moved: Vec<String> = want
            .iter()
            .map(|w| {
                let (rule, line) = w.split_once(' ').unwrap();
                format!("{rule} {}", line.parse::<usize>().unwrap() - 1)
            })
            .collect();
        expect(text, &with, &moved.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn names_without_build_arguments() {
    for (text, args, want) in [
        ("ARG I\nFROM $I\n", &[("I", "base")][..], &["InvalidDefaultArgInFrom 2"][..]),
        ("ARG S=se:\nFROM ba$S\n", &[("S", "se:12")], &["InvalidDefaultArgInFrom 2"]),
        ("ARG S=\"\"\nFROM base$S\n", &[("S", ":12")], &[]),
        ("ARG S\nFROM base$S\n", &[("S", ":12")], &[]),
        ("ARG V=12\nFROM base:$V\n", &[("V", "12")], &[]),
        (
            "FROM base\nARG foo\nCOPY $foo /\nLABEL a=$other\n",
            &[("foo", "x"), ("other", "y")],
            &["UndefinedVar 4"],
        ),
    ] {
        expect(text, &With { args, ..With::default() }, want);
    }
}

#[test]
fn files_that_the_context_leaves_out() {
    for (dockerignore, text, want) in [
        (
            "Dockerfile\n",
            "FROM base\nCOPY Dockerfile /\nADD Dockerfile /x\n",
            &["CopyIgnoredFile 2", "CopyIgnoredFile 3"][..],
        ),
        ("*.md\n", "FROM base\nCOPY a.md b.md c.txt /\n", &["CopyIgnoredFile 2", "CopyIgnoredFile 2"]),
        ("dir\n", "FROM base\nCOPY ./dir/sub/../x /\n", &["CopyIgnoredFile 2"]),
        ("x\n", "FROM base AS a\nCOPY y /x\nFROM a\nCOPY --from=a /x /\n", &[]),
        ("**\n!keep\n", "FROM base\nCOPY keep other /\n", &[]),
        ("x\n", "FROM base\nENV f=x\nCOPY $f /\n", &["CopyIgnoredFile 3"]),
        (".*\n", "FROM base\nCOPY . /\n", &[]),
        ("*\n", "FROM base\nCOPY . /\n", &["CopyIgnoredFile 2"]),
        ("**\n", "FROM base\nCOPY / /\n", &["CopyIgnoredFile 2"]),
        ("x\n", "FROM base\nCOPY <<x /\nhi\nx\nADD https://example.com/x /\n", &[]),
        ("x\n", "FROM base\nCOPY [\"x\", \"/\"]\n", &["CopyIgnoredFile 2"]),
        ("", "FROM base\nCOPY x /\n", &[]),
    ] {
        expect(text, &With { dockerignore, ..With::default() }, want);
    }
}

#[test]
fn rules_are_switched_off() {
    let twice = "FROM base as a\ncopy x /\n";
    for (first, want, strict) in [
        ("", &["ConsistentInstructionCasing 2", "FromAsCasing 1"][..], false),
        ("# check=skip=all\n", &[], false),
        ("# check=skip=all;error=true\n", &[], true),
        ("# check=skip=ConsistentInstructionCasing,FromAsCasing\n", &[], false),
        ("# check=skip=ConsistentInstructionCasing\n", &["FromAsCasing 2"], false),
        (
            "#!/usr/bin/env docker\n# check=skip=FromAsCasing;error=true\n",
            &["ConsistentInstructionCasing 4"],
            true,
        ),
        (
            "# syntax=docker/dockerfile:1\n# CHECK = error=true\n",
            &["ConsistentInstructionCasing 4", "FromAsCasing 3"],
            true,
        ),
        ("\n# check=skip=FromAsCasing\n", &["ConsistentInstructionCasing 4"], false),
    ] {
        let text = format!("{first}{twice}");
        expect(&text, &With::default(), want);
        let checked = look(&text, &With::default());
        assert_eq!(checked.strict, strict, "{text}");
        assert_eq!(checked.refusal().is_some(), strict && !want.is_empty(), "{text}");
    }
    let args = [(ARGUMENT, "skip=FromAsCasing;error=true")];
    let text = format!("# check=skip=all\n{twice}");
    let checked = look(&text, &With { args: &args, ..With::default() });
    assert_eq!(found(&checked), ["ConsistentInstructionCasing 3"]);
    let refusal = checked.refusal().unwrap();
    assert_eq!(refusal.to_string(), "Dockerfile:3:1: checks fail the build: ConsistentInstructionCasing");
    // Above an instruction the options are added for it alone.
    for (text, want) in [
        ("FROM base\n# check=skip=JSONArgsRecommended\nCMD a\n", &[][..]),
        (
            "FROM base\n# check=skip=JSONArgsRecommended // on purpose\nENTRYPOINT a\nENV a b\n",
            &["LegacyKeyValueFormat 4"],
        ),
        ("FROM base\n# about it\n# check=skip=all\nARG TOKEN\nARG KEY\n", &["SecretsUsedInArgOrEnv 5"]),
        ("FROM base\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n", &[]),
        ("FROM base\n#\n# check=skip=RedundantTargetPlatform\nFROM --platform=$TARGETPLATFORM base\n", &[]),
        ("FROM base\n# check=skip=UndefinedVar\nCOPY $x \\\n # check=skip=all\n $y /\n", &[]),
        ("FROM base\n  # check=skip=UndefinedVar\nCOPY $x /\n", &["UndefinedVar 3"]),
        ("FROM base\n# check=skip=UndefinedVar\n#\nCOPY $x /\n", &["UndefinedVar 4"]),
        // Names of stages and the case of keywords belong to the file.
        ("FROM base AS a\n# check=skip=DuplicateStageName\nFROM base AS a\n", &["DuplicateStageName 3"]),
        // The instruction that makes another superfluous decides.
        ("FROM base\nCMD [\"a\"]\n# check=skip=MultipleInstructionsDisallowed\nCMD [\"b\"]\n", &[]),
    ] {
        expect(text, &With::default(), want);
    }
    for (text, args, part) in [
        (
            "# check=skip\nFROM base\n",
            &[][..],
            "Dockerfile:1:9: cannot read the options of checks: 'skip' has no '='",
        ),
        ("FROM base\n", &[(ARGUMENT, "error=maybe")], "BUILDKIT_DOCKERFILE_CHECK"),
    ] {
        let error = look(text, &With { args, ..With::default() }).error.unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn stages_that_a_target_does_not_need() {
    let text = "FROM base AS a\nENV k v\nFROM base AS Left\nENV k v\nCOPY $x /\nFROM a AS c\n";
    let all = ["LegacyKeyValueFormat 2", "LegacyKeyValueFormat 4", "StageNameCasing 3", "UndefinedVar 5"];
    expect(text, &With::default(), &all);
    let with = With { target: Some("c"), ..With::default() };
    expect(text, &with, &["LegacyKeyValueFormat 2", "StageNameCasing 3"]);
}

#[test]
fn what_stands_before_an_error_is_still_found() {
    for (text, want, error) in [
        (
            "FROM base AS Bad\nMAINTAINER me\nBADCMD\nFROM base as x\n",
            &["MaintainerDeprecated 2", "StageNameCasing 1"][..],
            "Dockerfile:3:1: unknown instruction 'BADCMD'",
        ),
        ("FROM base AS Bad\nRUN \\\n\nx\nENV x\n", &[], "ENV x has no value"),
        ("RUUN x\nRUN \\\n\nx\n", &["NoEmptyContinuation 4"], "unknown instruction 'RUUN'"),
        ("FROM base as Bad x\n", &["FromAsCasing 1"], "FROM takes one image"),
        ("FROM base\n\\\n\n", &[], "Dockerfile:2:1: the continuation has no instruction"),
        (
            "FROM Upper:1 AS a\nFROM base\n",
            &["InvalidDefaultArgInFrom 1"],
            "Dockerfile:1:6: invalid image name",
        ),
        ("FROM base AS build\nFROM Biuld\n", &["InvalidDefaultArgInFrom 2"], "invalid image name 'Biuld'"),
        ("FROM --platform=$BULIDPLATFORM base\n", &["UndefinedArgInFrom 1"], "invalid platform"),
        ("FROM $NOTHING\n", &["InvalidDefaultArgInFrom 1", "UndefinedArgInFrom 1"], "names no image"),
        (
            "FROM base\nENV a b\nCOPY ${x:?needed} /\n",
            &["LegacyKeyValueFormat 2"],
            "Dockerfile:3:6: x: needed",
        ),
        ("FROM base\nCOPY --from=2 a /\n", &[], "no stage 2"),
        ("FROM base\nEXPOSE 99999\n", &[], "Dockerfile:2:8: "),
        ("FROM base\nSTOPSIGNAL SIGNOPE\n", &[], "no signal"),
        ("FROM base\nRUN --mount=type=secret,id=$BASE,mode=9 x\n", &[], "Dockerfile:2:5: "),
        ("", &[], "no instructions"),
    ] {
        let checked = look(text, &With::default());
        assert_eq!(found(&checked), want, "{text}");
        let shown = checked.error.unwrap().to_string();
        assert!(shown.contains(error), "{text}: {shown}");
    }
}

#[test]
fn findings_have_an_exact_place_and_say_what_to_do() {
    for (text, place, caret, hint) in [
        (
            "FROM base\nENV PATH=$PAHT:/x\n",
            "2:10: UndefinedVar: the variable $PAHT is not set",
            8,
            "did you mean $PATH?",
        ),
        (
            "FROM base\nARG DIR_ASSETS=x\nCOPY a \\\n  $DIR_ASSET /\n",
            "4:3: UndefinedVar",
            10,
            "did you mean $DIR_ASSETS?",
        ),
        (
            "ARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH:-amd64} base\n",
            "2:6: UndefinedArgInFrom",
            33,
            "did you mean MY_ARCH?",
        ),
        ("FROM base${v}\n", "1:6: UndefinedArgInFrom", 8, "write ARG v before the first FROM"),
        ("FROM base as x\n", "1:11: FromAsCasing", 2, "write AS"),
        ("FROM base AS Ab\n", "1:14: StageNameCasing", 2, "write ab"),
        ("FROM base\nWORKDIR a/b\n", "2:9: WorkdirRelativePath", 3, "write /a/b"),
        ("FROM base\nLABEL a b c\n", "2:7: LegacyKeyValueFormat", 1, "write LABEL a=\"b c\""),
        ("FROM base\nRUN a \\\n\n b\n", "3:1: NoEmptyContinuation", 1, "blank line"),
        ("FROM base\nEXPOSE 1:2/TCP\n", "2:8: ExposeProtoCasing", 7, "write 2/tcp"),
        ("FROM base\nCMD [\"a\" \"b\"]\n", "2:1: JSONArgsRecommended", 3, "commas between them"),
        (
            "FROM base\nENTRYPOINT [ 'a', 'b' ]\n",
            "2:1: JSONArgsRecommended",
            10,
            "double quotes around each word",
        ),
        ("FROM base\nCMD [ -f /a ] && b\n", "2:1: JSONArgsRecommended", 3, "or SHELL before it"),
    ] {
        let checked = look(text, &With::default());
        let first = &checked.findings[0].place;
        assert!(first.to_string().starts_with(&format!("Dockerfile:{place}")), "{text}: {first}");
        assert_eq!(first.width, caret, "{text}: {}", first.picture());
        assert!(first.suggestion.as_deref().unwrap().contains(hint), "{text}: {:?}", first.suggestion);
    }
}

#[test]
fn the_outline_of_a_target() {
    let text = "ARG INNER=1\nARG OTHER=2\nARG LEFT=$OTHER\n# TAG of the base\nARG TAG=\"v$INNER\"\n\n\
        FROM x:$TAG AS tools\n# of another\nARG MINE=a\n# LEVEL is a number\nARG LEVEL=3\n\
        RUN --mount=type=secret,target=/etc/key,required --mount=type=ssh --mount=type=cache,target=/c true\n\
        FROM y$LEFT AS unused\nARG NOT_THIS\nRUN --mount=type=secret,id=no --mount=type=ssh,id=no true\n\
        FROM scratch AS below\nARG TOKEN\nARG N=1\nRUN --mount=type=secret,id=s$N true\n\
        # app is what is shipped\nFROM below AS app\nARG N=5 OTHER\nCOPY --from=tools /a /\n\
        RUN --mount=type=ssh,id=deploy,required --mount=type=cache,id=shared,target=/d true\nFROM unused\n";
    let args = [("LEVEL", "9")];
    let checked = look(text, &With { target: Some("app"), args: &args, ..With::default() });
    let outline = outline::outline(checked.stages.as_ref().unwrap());
    assert_eq!((outline.name.as_str(), outline.description.as_str()), ("app", "is what is shipped"));
    let args: Vec<_> = outline
        .args
        .iter()
        .map(|a| (a.name.as_str(), a.value.as_str(), a.description.as_str(), a.location.line()))
        .collect();
    assert_eq!(
        args,
        [
            ("INNER", "1", "", 1),
            ("OTHER", "2", "", 2),
            ("TAG", "v1", "of the base", 5),
            ("MINE", "a", "", 9),
            ("LEVEL", "9", "is a number", 11),
            ("TOKEN", "", "", 17),
            ("N", "5", "", 22),
        ]
    );
    let named = |list: &[outline::Named]| -> Vec<_> {
        list.iter().map(|n| (n.name.clone(), n.required, n.location.line())).collect()
    };
    assert_eq!(named(&outline.secrets), [("key".into(), true, 12), ("s1".into(), false, 19)]);
    assert_eq!(named(&outline.ssh), [("default".into(), false, 12), ("deploy".into(), true, 24)]);
    let caches: Vec<_> = outline.cache.iter().map(|c| (c.id.as_str(), c.location.line())).collect();
    assert_eq!(caches, [("/c", 12), ("shared", 24)]);

    let json = serde_json::to_value(&outline).unwrap();
    assert_eq!(json["args"][2]["location"]["ranges"][0]["start"]["line"], 5);
    assert_eq!(json["secrets"][0]["required"], true);
    assert!(json["secrets"][1].get("required").is_none());
    assert!(json["sources"][0].as_str().unwrap().starts_with("QVJHIElOTkVSPTE"));
}

#[test]
fn arguments_that_are_made_of_each_other() {
    let text = "ARG A=1\nARG B=$A\nARG A=$A$B\nARG B=${B}x$A\nFROM scratch\nARG B\nARG C=2\nARG D=$C\nARG C=${C}y$D\n";
    let checked = look(text, &With::default());
    let outline = outline::outline(checked.stages.as_ref().unwrap());
    let args: Vec<_> =
        outline.args.iter().map(|a| (a.name.as_str(), a.value.as_str(), a.location.line())).collect();
    assert_eq!(args, [("A", "11", 3), ("B", "1x11", 4), ("D", "2", 8), ("C", "2y2", 9)]);
}

#[test]
fn the_targets_of_a_file() {
    let text = "# build compiles\nFROM a:$V AS build\nFROM --platform=$P b as Second\n#  c\nFROM a\n# last\n# last is it\nFROM build AS last\n";
    let recipe = dockerfile::parse(SourceText::new("Dockerfile", text.as_bytes())).unwrap();
    let json = serde_json::to_value(outline::targets(&recipe)).unwrap();
    let line = |n: usize| serde_json::json!({"ranges": [{"start": {"line": n}, "end": {"line": n}}]});
    assert_eq!(
        json["targets"],
        serde_json::json!([
            {"name": "build", "description": "compiles", "base": "a:$V", "location": line(2)},
            {"name": "second", "base": "b", "platform": "$P", "location": line(3)},
            {"base": "a", "location": line(5)},
            {"name": "last", "default": true, "description": "is it", "base": "build", "location": line(8)},
        ])
    );
}

#[test]
fn findings_as_a_document() {
    let checked = look("FROM base\nRUN a \\\n b\nCMD a \\\n b\nNOPE\n", &With::default());
    let json = serde_json::to_value(outline::findings(&checked)).unwrap();
    assert_eq!(json["warnings"], serde_json::json!([]));
    assert_eq!(json["buildError"]["location"]["ranges"][0]["start"]["line"], 6);
    let checked = look("FROM base\nCMD a \\\n b\n", &With::default());
    let json = serde_json::to_value(outline::findings(&checked)).unwrap();
    let warning = &json["warnings"][0];
    assert_eq!(warning["ruleName"], "JSONArgsRecommended");
    assert_eq!(warning["url"], "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/");
    assert_eq!(warning["location"]["ranges"].as_array().unwrap().len(), 2, "one for each line");
    assert_eq!(
        warning["location"]["ranges"][1],
        serde_json::json!({"start": {"line": 3}, "end": {"line": 3}})
    );
    assert_eq!(json["sources"][0]["filename"], "Dockerfile");
    assert_eq!(json["sources"][0]["data"], "RlJPTSBiYXNlCkNNRCBhIFwKIGIK");
    assert!(json.get("buildError").is_none());
}
