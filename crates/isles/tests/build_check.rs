//! `isles build --check` and `--call` as people and programs use them.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// A folder with recipes, and a state of its own.
struct World {
    dir: tempfile::TempDir,
}

/// What the program said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl World {
    fn new() -> World {
        World { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        std::fs::write(self.dir.path().join(path), text).unwrap();
        self
    }

    fn build(&self, args: &[&str]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_isles"))
            .arg("build")
            .args(args)
            .current_dir(self.dir.path())
            .env("ISLES_ROOT", self.dir.path().join("state"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    fn json(&self, args: &[&str], code: i32) -> serde_json::Value {
        let said = self.build(args);
        assert_eq!(said.code, code, "{}", said.err);
        serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {}", said.out))
    }

    /// The images that there are, by number.
    fn images(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("state/images")).map_or(0, Iterator::count)
    }
}

const ODD: &str = "FROM scratch as base\nENV a b\nCOPY missing $x /\n";

#[test]
fn check_finds_what_a_build_finds_and_builds_nothing() {
    let world = World::new();
    world.write("Dockerfile", ODD);
    let said = world.build(&["--check", "."]);
    assert_eq!((said.code, said.err.as_str()), (1, "3 warnings\n"));
    let expected = "\
warning: ./Dockerfile:1:14: FromAsCasing: 'as' is not written as 'FROM' is
  1 | FROM scratch as base
    |              ^^
  hint: write AS
warning: ./Dockerfile:2:5: LegacyKeyValueFormat: a blank stands between name and value of ENV, not '='
  2 | ENV a b
    |     ^
  hint: write ENV a=b
warning: ./Dockerfile:3:14: UndefinedVar: the variable $x is not set
  3 | COPY missing $x /
    |              ^^
";
    assert_eq!(said.out, expected);
    assert_eq!(world.images(), 0);
    // A build that fails says the same before it says why.
    let failed = world.build(&["-q", "."]);
    assert_eq!((failed.code, failed.out.as_str()), (1, ""));
    assert!(failed.err.starts_with(expected) && failed.err.contains("error: "), "{}", failed.err);
    // One that does not says it, too.
    world.write("missing", "");
    world.write("Dockerfile", "FROM scratch as base\nENV a b\nCOPY missing /$x\n");
    let built = world.build(&["-q", "."]);
    assert_eq!(built.code, 0, "{}", built.err);
    let lines = |text: &str| {
        text.lines().filter(|l| l.starts_with("warning: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&built.err), lines(&world.build(&["--call=check", "."]).out));
    assert_eq!(lines(&built.err).len(), 3);

    world.write("Dockerfile", "FROM scratch\nCOPY missing /\n");
    let fine = world.build(&["--check"]);
    assert_eq!((fine.code, fine.out.as_str(), fine.err.as_str()), (0, "", "nothing is odd\n"));
    assert_eq!(world.build(&["--call", "check,ignorestatus=true", "-f", "none", "."]).code, 1);
}

#[test]
fn findings_are_errors_where_the_file_or_the_caller_says_so() {
    let world = World::new();
    world.write("Dockerfile", &format!("# check=error=true\n{}", ODD.replace("missing $x", "Dockerfile")));
    let refused = world.build(&["."]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("warning: ./Dockerfile:2:14: FromAsCasing"), "{}", refused.err);
    let error = "error: ./Dockerfile:2:14: checks fail the build: FromAsCasing, LegacyKeyValueFormat\n";
    assert!(refused.err.contains(error), "{}", refused.err);
    assert_eq!(world.images(), 0);
    let skip = |rules: &str| format!("BUILDKIT_DOCKERFILE_CHECK=skip={rules};error=true");
    let less = world.build(&["--build-arg", &skip("FromAsCasing"), "."]);
    assert!(less.err.contains("checks fail the build: LegacyKeyValueFormat\n"), "{}", less.err);
    let checked = world.build(&["--check"]);
    assert!(checked.code == 1 && checked.err.contains(error), "{}", checked.err);
    let none = world.build(&["--build-arg", &skip("all"), "."]);
    assert_eq!((none.code, none.err.contains("warning")), (0, false), "{}", none.err);
}

#[test]
fn documents_for_programs() {
    let world = World::new();
    world.write(
        "Dockerfile",
        "# VERSION of it\nARG VERSION=1\n# app is shipped\nFROM scratch AS app\nARG VERSION\n\
         RUN --mount=type=secret,id=key,required --mount=type=cache,target=/c x\nFROM nowhere:$VERSION AS Test\nCMD a\n",
    );
    let targets = world.json(&["--call=targets,format=json", "."], 0);
    assert_eq!(targets["targets"][0]["description"], "is shipped");
    assert_eq!(
        (&targets["targets"][1]["base"], &targets["targets"][1]["default"]),
        (&"nowhere:$VERSION".into(), &true.into())
    );
    assert_eq!(
        world.build(&["--call=targets"]).out,
        "TARGET           DESCRIPTION\napp              is shipped\ntest (default)\n"
    );
    let outline =
        world.json(&["--call=outline,format=json", "--target=app", "--build-arg=VERSION=2", "."], 0);
    assert_eq!((&outline["args"][0]["name"], &outline["args"][0]["value"]), (&"VERSION".into(), &"2".into()));
    assert_eq!(
        (&outline["secrets"][0]["required"], &outline["cache"][0]["ID"]),
        (&true.into(), &"/c".into())
    );
    let text = world.build(&["--call", "outline", "--target", "app"]);
    let expected = "TARGET:      app\nDESCRIPTION: is shipped\n\nBUILD ARG   VALUE   DESCRIPTION\nVERSION     1       of it\n\n\
        SECRET   REQUIRED\nkey      true\n\nCACHE\n/c\n";
    assert_eq!((text.code, text.out.as_str(), text.err.as_str()), (0, expected, ""));
    let findings = world.json(&["--call=check,format=json", "--target", "app", "."], 1);
    assert_eq!(findings["warnings"][0]["ruleName"], "StageNameCasing");
    assert_eq!(findings["warnings"].as_array().unwrap().len(), 1, "{findings}");
    world.write("Dockerfile", "FROM scratch\nCOPPY a /\n");
    let wrong = world.json(&["--call=check,format=json", "."], 1);
    assert_eq!(wrong["buildError"]["location"]["ranges"][0]["start"]["line"], 2);
    let shown = world.build(&["--check"]);
    assert!(
        shown.err.contains("error: ./Dockerfile:2:1: unknown instruction 'COPPY'\n  2 | COPPY a /"),
        "{}",
        shown.err
    );
    assert!(shown.err.contains("hint: did you mean COPY?"), "{}", shown.err);
}

#[test]
fn what_cannot_be_looked_at() {
    let world = World::new();
    world
        .write("x.def", "Bootstrap: docker\nFrom: x#y\n%post\ntrue\n")
        .write("fine.def", "Bootstrap: scratch\n");
    let definition = world.build(&["--check", "x.def"]);
    assert_eq!(definition.code, 1);
    assert!(definition.out.starts_with("warning: x.def:2:8: '#'"), "{}", definition.out);
    assert_eq!(world.build(&["--check", "fine.def"]).code, 0);
    for (args, code, words) in [
        (&["--call=outline", "x.def"][..], 1, "definition file"),
        (&["--check", "debian://bookworm"], 1, "no recipe"),
        (&["--call=nonsense", "."], 2, "'nonsense' is no part of --call"),
        (&["--check", "--call=outline", "."], 2, "--check"),
    ] {
        let said = world.build(args);
        assert_eq!((said.code, said.err.contains(words)), (code, true), "{args:?}: {}", said.err);
    }
    // A base image that nobody has is no error: what depends on it is left out.
    world.write("Dockerfile", "FROM 127.0.0.1:9/none:1\nCOPY $JAVA_HOME /\nCMD a\n");
    let said = world.build(&["--check", "-f", "Dockerfile", "."]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("warning: the base image '127.0.0.1:9/none:1' cannot be looked at: "),
        "{}",
        said.err
    );
    assert!(said.out.contains("JSONArgsRecommended") && !said.out.contains("JAVA_HOME"), "{}", said.out);
}
