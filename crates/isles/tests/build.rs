//! `isles build` as people use it.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        std::fs::write(self.dir.path().join(path), text).unwrap();
        self
    }

    fn build(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn build_with_input(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may have read enough before the end.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_isles"));
        command
            .arg("build")
            .args(args)
            .current_dir(self.dir.path())
            .env("ISLES_ROOT", self.dir.path().join("state"))
            .env("FROM_CALLER", "environment")
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_image_id_is_all_that_goes_to_standard_output() {
    let world = World::new();
    world
        .write("f", "x")
        .write("Dockerfile", "FROM scratch\nARG A=1 FROM_CALLER=none\nCOPY f /\nLABEL a=$A c=$FROM_CALLER\n");
    let first = world.build(&["-t", "app", "--iidfile", "id", "."]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let id = text(&first.stdout);
    assert!(id.starts_with("sha256:") && id.len() == 72 && id.ends_with('\n'), "{id:?}");
    assert_eq!(world.read("id"), id.trim());
    assert!(text(&first.stderr).contains("COPY f /: done"), "{}", text(&first.stderr));
    let again = world.build(&["-t", "app"]);
    assert_eq!(text(&again.stdout), id);
    assert_eq!(text(&again.stderr), "nothing changed\n");
    let other = world.build(&["-q", "--build-arg", "A=2", "--build-arg", "FROM_CALLER", "."]);
    assert_ne!(text(&other.stdout), id);
    assert_eq!(text(&other.stderr), "");
    // The name stands for the image.
    world.write("Dockerfile", "FROM app\nLABEL more=1\n");
    assert!(world.build(&[]).status.success());
}

#[test]
fn another_recipe_and_another_context() {
    let world = World::new();
    std::fs::create_dir(world.dir.path().join("sub")).unwrap();
    world.write("sub/f", "x").write("other.def", "Bootstrap: scratch\n%files\nf /f\n");
    let built = world.build(&["-f", "other.def", "sub"]);
    assert!(built.status.success(), "{}", text(&built.stderr));
    world.write("Dockerfile", "FROM scratch\n");
    let several = world.build(&["."]);
    assert_eq!(several.status.code(), Some(1));
    assert!(text(&several.stderr).contains("several recipes") && text(&several.stderr).contains("hint: "));
}

#[test]
fn a_recipe_from_standard_input() {
    let world = World::new();
    world.write("f", "x").write(".dockerignore", "left-out\n").write("left-out", "x");
    // What lies there under the usual name is not taken.
    world.write("Dockerfile", "FROM scratch\nNONSENSE\n").write("standard input.dockerignore", "f\n");
    for (recipe, fine) in [
        ("FROM scratch\nCOPY f /\n", Ok(())),
        ("# by a program\nBootstrap: scratch\n%files\nf /f\n", Ok(())),
        ("FROM scratch\nCOPY left-out /\n", Err("left-out")),
        (
            "FROM scratch\nCOPPY f /\n",
            Err("error: standard input:2:1: unknown instruction 'COPPY'\n  2 | COPPY"),
        ),
        ("", Err("standard input")),
    ] {
        let built = world.build_with_input(&["-q", "-f", "-", "."], recipe);
        match fine {
            Ok(()) => assert!(built.status.success(), "{recipe}: {}", text(&built.stderr)),
            Err(words) => {
                assert_eq!(built.status.code(), Some(1), "{recipe}");
                assert!(text(&built.stderr).contains(words), "{recipe}: {}", text(&built.stderr));
            }
        }
    }
    let long = "#".repeat((4 << 20) + 1);
    let refused = world.build_with_input(&["-q", "-f", "-", "."], &long);
    assert!(text(&refused.stderr).contains("larger than a recipe may be"), "{}", text(&refused.stderr));
}

#[test]
fn a_context_that_is_no_folder() {
    use isles_store::tar::{Entry, Writer};
    let world = World::new();
    let mut writer = Writer::new(Vec::new());
    for (path, text) in
        [("Dockerfile", "FROM scratch\nCOPY f /\n"), ("other", "FROM scratch\nCOPY f /g\n"), ("f", "x")]
    {
        let entry = Entry { path: path.into(), mode: 0o644, size: text.len() as u64, ..Entry::default() };
        writer.begin(&entry).unwrap();
        writer.data(text.as_bytes()).unwrap();
    }
    let archive = String::from_utf8(writer.finish().unwrap()).unwrap();
    for args in [&["-q", "-"][..], &["-q", "-f", "other", "-"]] {
        let built = world.build_with_input(args, &archive);
        assert!(built.status.success(), "{args:?}: {}", text(&built.stderr));
    }
    let recipe = world.build_with_input(&["-q", "-"], "FROM scratch\nLABEL a=b\n");
    assert!(recipe.status.success(), "{}", text(&recipe.stderr));
    for (args, words) in [
        (&["-q", "-f", "-", "-"][..], "cannot both be standard input"),
        (&["-q", "-f", "missing", "-"], "no recipe 'missing'"),
        (&["-q", "http://127.0.0.1:1/x.tar"], "connection refused"),
        (&["-q", "https://127.0.0.1:1/x.git#--upload-pack=x"], "no branch, tag or commit"),
    ] {
        let refused = world.build_with_input(args, &archive);
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        assert!(text(&refused.stderr).contains(words), "{args:?}: {}", text(&refused.stderr));
    }
}

#[test]
fn agents_and_rights_are_the_callers() {
    let world = World::new();
    world.write("Dockerfile", "FROM scratch\nRUN --network=host --mount=type=ssh,required x\n");
    for (args, words) in [
        (&["."][..], "the right network.host is not granted"),
        (&["--allow", "network.host", "."], "the SSH agent 'default' is not given"),
        (&["--allow", "network.host", "--ssh", "default", "."], "SSH_AUTH_SOCK is not set"),
        (&["--allow", "network.host", "--ssh", "default=/no/such", "."], "/no/such"),
        (&["--allow", "everything", "."], "no right is called 'everything'"),
    ] {
        let refused = world.command(args).env_remove("SSH_AUTH_SOCK").output().unwrap();
        assert!(!refused.status.success(), "{args:?}");
        assert!(text(&refused.stderr).contains(words), "{args:?}: {}", text(&refused.stderr));
    }
}

#[test]
fn messages_show_the_place() {
    let world = World::new();
    world.write("Dockerfile", "FROM scratch\nCOPPY a /\n");
    let failed = world.build(&[]);
    assert_eq!((failed.status.code(), text(&failed.stdout)), (Some(1), String::new()));
    let expected = "error: ./Dockerfile:2:1: unknown instruction 'COPPY'\n  2 | COPPY a /\n    | ^^^^^\nhint: did you mean COPY?\n";
    assert_eq!(text(&failed.stderr), expected);
    world.write("Dockerfile", "FROM scratch\nLABEL a=$NAEM\n");
    let warned = world.build(&[]);
    assert!(warned.status.success());
    assert!(
        text(&warned.stderr)
            .contains("warning: ./Dockerfile:2:9: UndefinedVar: the variable $NAEM is not set\n  2 | LABEL"),
        "{}",
        text(&warned.stderr)
    );
    let wrong = world.build(&["--secret", "nonsense", "."]);
    assert!(text(&wrong.stderr).contains("--secret id=ID,src=FILE"), "{}", text(&wrong.stderr));
}
