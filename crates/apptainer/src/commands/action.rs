//! `apptainer exec`, `run`, `shell` and `test`

use crate::action_flags::{OF_ACTIONS, OF_ALL, OF_REGISTRY, RUNSCRIPT_TIMEOUT, SHELL};
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::launch::Launch;
use crate::script::Action;

const IMAGES: &str = "\
The container is a SIF, squashfs or ext3 file, a folder with a root file system, or one of
  instance://NAME            a running instance
  docker://NAME[:TAG]        an image of a registry, kept in the store of Isles and run from there
  oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE, docker-daemon:NAME
  oras://NAME, library://NAME, https://…   a SIF file of a network

Every flag with a variable can be set by it; SINGULARITY_ works in the place of APPTAINER_.";

pub static EXEC: Command = Command {
    usage: "exec [exec options...] <container> <command>",
    short: "Run a command within a container",
    long: IMAGES,
    examples: "apptainer exec debian.sif cat /etc/os-release\n\
               apptainer exec --bind /data:/mnt docker://python:3.12 python3 /mnt/analysis.py",
    flags: &[&OF_ALL, &OF_ACTIONS, &OF_REGISTRY],
    arity: Arity::AtLeast(2),
    run: |cx| act(cx, Action::Exec),
    ..Command::EMPTY
};

pub static RUN: Command = Command {
    usage: "run [run options...] <container> [args...]",
    short: "Run the user-defined default command within a container",
    long: IMAGES,
    examples: "apptainer run docker://hello-world\n./tool.sif --help",
    flags: &[&OF_ALL, &OF_ACTIONS, &OF_REGISTRY, &[&RUNSCRIPT_TIMEOUT]],
    arity: Arity::AtLeast(1),
    run: |cx| act(cx, Action::Run),
    ..Command::EMPTY
};

pub static SHELL_COMMAND: Command = Command {
    usage: "shell [shell options...] <container>",
    short: "Run a shell within a container",
    long: IMAGES,
    examples: "apptainer shell debian.sif\napptainer shell instance://web",
    flags: &[&OF_ALL, &OF_ACTIONS, &OF_REGISTRY, &[&SHELL]],
    arity: Arity::AtLeast(1),
    run: |cx| act(cx, Action::Shell),
    ..Command::EMPTY
};

pub static TEST: Command = Command {
    usage: "test [exec options...] <image path>",
    short: "Run the user-defined tests within a container",
    long: IMAGES,
    flags: &[&OF_ALL, &OF_ACTIONS, &OF_REGISTRY],
    arity: Arity::AtLeast(1),
    run: |cx| act(cx, Action::Test),
    ..Command::EMPTY
};

fn act(cx: &Context<'_>, action: Action) -> Result<u8, Failure> {
    let [image, rest @ ..] = cx.arguments else { return Err(Failure::usage("no container is named")) };
    let arguments = if action == Action::Shell && !rest.is_empty() {
        cx.talk.warning("Parameters to shell command are ignored");
        &[]
    } else {
        rest
    };
    Launch::new(cx, action, arguments)?.run(image)
}
