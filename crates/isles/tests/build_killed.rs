//! What a build leaves that is killed, and who clears it away.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use world::*;

/// The copies in memory of a secret.
fn copies(secret: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir("/dev/shm").unwrap().flatten().map(|e| e.path().join("secret"));
    folders.filter(|file| fs::read(file).is_ok_and(|bytes| bytes == secret.as_bytes())).collect()
}

#[test]
fn the_next_build_and_prune_clear_away() {
    everyone(|world| {
        let oci = world.path("oci").display().to_string();
        world.isles(&["load", "-q", "-i", &format!("oci:{oci}")]).fine();
        let folder = world.path("recipe");
        fs::create_dir(&folder).unwrap();
        let secret = format!("word of {}", folder.display());
        fs::write(folder.join("secret"), &secret).unwrap();
        let recipe = "FROM test\nRUN --mount=type=secret,id=s --mount=type=cache,target=/kept \
                      head -c 300000 /dev/zero | tee /left > /kept/file; echo rea\"\"dy; sleep 1000\n";
        fs::write(folder.join("Dockerfile"), recipe).unwrap();
        world.give("recipe");
        let (folder, src) =
            (folder.display().to_string(), format!("id=s,src={folder}/secret", folder = folder.display()));
        let words = ["build", "--secret", &src, &folder];
        let mut child = world.command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let said: Vec<String> = lines.by_ref().take_while(|line| line != "ready").collect();
        assert_eq!(copies(&secret).len(), 1, "{said:?}");
        world.isles(&["prune", "-a", "-f"]).fine();
        let mounts = world.path("state/cache/mounts");
        assert_eq!(fs::read_dir(&mounts).unwrap().count(), 2, "a step uses it");
        assert_eq!(copies(&secret).len(), 1, "a step uses it");
        child.kill().unwrap();
        child.wait().unwrap();
        // Its end is that of the step too.
        assert_eq!(lines.filter(|line| !line.is_empty()).count(), 0);

        fs::write(world.path("recipe/Dockerfile"), "FROM test\nRUN true\n").unwrap();
        world.isles(&["build", "-q", &folder]).fine();
        assert_eq!(copies(&secret), Vec::<PathBuf>::new());
        let df = |kind: &str| -> u64 {
            let format = "{{.Type}} {{.Bytes}}";
            let out = world.isles(&["df", "--format", format]).fine();
            out.lines().find_map(|l| l.strip_prefix(kind)?.trim().parse().ok()).unwrap_or_default()
        };
        let cache = df("Build Cache");
        assert!(cache >= 300_000, "{cache}");
        let out = world.isles(&["prune", "-a", "-f"]).fine();
        assert!(out.contains("1 cache mount\n"), "{out}");
        assert_eq!(fs::read_dir(&mounts).unwrap().count(), 0);
        assert_eq!((df("Leftovers"), df("Build Cache")), (0, 0));
    });
}
