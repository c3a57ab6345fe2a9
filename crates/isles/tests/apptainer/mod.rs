//! What tests of the names `apptainer` and `singularity` begin with: a sandbox, and how the program is called.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::world::{self, Said, World};

/// A sandbox that belongs to whoever runs the program, with all that a definition file leaves in an image.
pub fn sandbox(world: &World) -> PathBuf {
    let tree = world.path("home/tree");
    world::busybox(&tree);
    let put = |path: &str, text: &str| {
        let at = tree.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&at, mode).unwrap();
    };
    put(
        ".singularity.d/env/10-docker2singularity.sh",
        "export PATH=\"${PATH:-/own:/bin}\"\nexport OCI=\"${OCI:-image}\"\n",
    );
    put(".singularity.d/env/90-environment.sh", "export FROM_IMAGE=yes\n");
    put(
        ".singularity.d/env/99-base.sh",
        "export LD_LIBRARY_PATH=\"${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs\"\n",
    );
    put(".singularity.d/runscript", "#!/bin/sh\necho \"run: $*\"\n");
    put(".singularity.d/runscript.help", "the help\n");
    put(".singularity.d/test", "#!/bin/sh\nexit 7\n");
    put(".singularity.d/startscript", "#!/bin/sh\necho \"start: $*\"\n");
    put("scif/apps/tool/scif/runscript", "#!/bin/sh\necho tool\n");
    world.give("home");
    tree
}

pub fn apptainer(world: &World, words: &[&str]) -> Command {
    world.command(["apptainer"].iter().chain(words))
}

pub fn say(world: &World, words: &[&str]) -> Said {
    Said::of(apptainer(world, words).output().unwrap())
}

pub fn with(world: &World, variables: &[(&str, &str)], words: &[&str]) -> Said {
    Said::of(apptainer(world, words).envs(variables.iter().copied()).output().unwrap())
}
