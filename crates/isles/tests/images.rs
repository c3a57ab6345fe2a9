//! The commands around images, by the program itself, with the registries and clients that others wrote.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::json;
use shelf::*;

#[test]
fn names_and_lists() {
    for shelf in both() {
        assert_eq!(shelf.isles(&["images", "-q"]).fine(), "");
        assert_eq!(shelf.isles(&["images"]).fine(), "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n");
        let id = stocked(&shelf);
        let short = &id[7..19];
        shelf.isles(&["tag", "app:1", "localhost:5000/team/app"]).fine();
        let table = shelf.isles(&["images"]).fine();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(
            lines[1].starts_with("app                       1        ") && lines[1].contains(short),
            "{table}"
        );
        assert!(lines[2].starts_with("localhost:5000/team/app   latest   "), "{table}");
        assert!(lines[1].ends_with("kB"), "{table}");
        for (args, expected) in [
            (&["-q"][..], format!("{short}\n")),
            (&["-q", "--no-trunc"], format!("{id}\n")),
            (&["-a", "-q", "app"], format!("{short}\n")),
            (&["-q", "app:2"], String::new()),
            (&["--format", "{{.Repository}}:{{.Tag}}"], "app:1\nlocalhost:5000/team/app:latest\n".into()),
            (&["--format", "{{.Tag}}", "localhost:5000/*/*"], "latest\n".into()),
            (&["--format", "{{.Tag}}", "-f", "reference=app:*"], "1\n".into()),
            (&["-q", "-f", "dangling=true"], String::new()),
            (&["-q", "-f", "label=color"], format!("{short}\n")),
            (&["-q", "-f", "label=color=red"], String::new()),
            (&["-q", "-f", "before=app:1"], String::new()),
        ] {
            assert_eq!(shelf.isles(&[&["images"], args].concat()).fine(), expected, "{args:?}");
        }
        let digests = shelf.isles(&["images", "--digests"]).fine();
        assert!(digests.contains("DIGEST") && digests.contains("sha256:"), "{digests}");
        let list = json_of(&shelf.isles(&["images", "--format", "json"]).fine());
        assert_eq!((&list[0]["Repository"], &list[0]["ID"]), (&json!("app"), &json!(short)));
        for (args, words) in [
            (
                &["images", "-f", "color=red"][..],
                &["unknown filter 'color'", "hint: filters are reference"][..],
            ),
            (&["images", "-f", "dangling=maybe"], &["true or false, not 'maybe'"]),
            (&["images", "--format", "{{.Nothing}}"], &["'Nothing'", "hint: fields are"]),
            (&["tag", "nosuch", "x"], &["no image 'nosuch'", "hint: fetch it with `isles pull nosuch`"]),
            (&["inspect", "nosuch"], &["no image 'nosuch'"]),
            (&["history", "nosuch"], &["no image 'nosuch'"]),
            (&["save", "nosuch"], &["no image 'nosuch'"]),
            (&["push", "nosuch:1", "127.0.0.1:1/x"], &["127.0.0.1:1"]),
        ] {
            shelf.isles(args).fails(1, words);
        }
        shelf
            .isles(&["images", "-f", "x"])
            .fails(2, &["error: invalid filter 'x'\nhint: a filter is written KEY=VALUE"]);
        shelf.isles(&["tag", "app:1", "Upper"]).fails(2, &["upper-case"]);
    }
}

#[test]
fn everything_about_an_image() {
    for shelf in both() {
        let id = stocked(&shelf);
        let list = json_of(&shelf.isles(&["inspect", "app:1"]).fine());
        let image = &list[0];
        assert_eq!(image["Id"], json!(id));
        assert_eq!(image["RepoTags"], json!(["app:1"]));
        assert!(image["RepoDigests"][0].as_str().unwrap().starts_with("app@sha256:"));
        assert_eq!(image["Config"]["Cmd"], json!(["sh"]));
        assert_eq!(image["Config"]["Labels"]["color"], "blue");
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 3);
        assert_eq!((&image["Os"], &image["RootFS"]["Type"]), (&json!("linux"), &json!("layers")));
        assert!(image["Size"].as_u64().unwrap() > 490_000);
        let args = ["inspect", "-f", "{{.Id}} {{json .Config.Env}}", &id[7..15], "app:1"];
        let line = format!("{id} [\"PATH=/bin\"]\n");
        assert_eq!(shelf.isles(&args).fine(), line.repeat(2));
        // What is there is printed although something else is not.
        let said = shelf.isles(&["inspect", "nosuch", "app:1"]);
        assert_eq!(json_of(&said.out).as_array().unwrap().len(), 1);
        said.fails(1, &["nosuch"]);

        let table = shelf.isles(&["history", "app:1"]).fine();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 7, "{table}");
        assert!(lines[0].starts_with("IMAGE          CREATED"), "{table}");
        assert!(lines[1].starts_with(&id[7..19]) && lines[1].contains("nothing") && lines[1].contains("0B"));
        assert!(
            lines[2].starts_with("<missing>")
                && lines[2].contains("step 2 with")
                && lines[2].contains("90kB")
        );
        assert!(lines[2].contains('…'), "{table}");
        let format = ["history", "--no-trunc", "-H=false", "--format", "{{.CreatedBy}}|{{.Size}}", "app:1"];
        assert!(shelf.isles(&format).fine().contains("is shown of it|90000\n"));
    }
}

#[test]
fn removing() {
    for shelf in both() {
        let id = stocked(&shelf);
        let short = &id[7..19];
        shelf.isles(&["tag", "app:1", "app:2"]).fine();
        assert_eq!(shelf.isles(&["rmi", "app:2"]).fine(), "Untagged: app:2\n");
        shelf.isles(&["tag", "app:1", "app:2"]).fine();
        shelf.isles(&["rmi", short]).fails(1, &["has several names", "hint: remove it name by name"]);
        // The others are removed although one is not there.
        let said = shelf.isles(&["rmi", "nosuch", "app:1", "app:2"]);
        assert_eq!(said.out, format!("Untagged: app:1\nUntagged: app:2\nDeleted: {id}\n"));
        said.fails(1, &["no image 'nosuch'"]);
        assert_eq!(shelf.isles(&["rmi", "-f", "nosuch"]).fine(), "");
        let rows = json_of(&shelf.isles(&["df", "--format", "json"]).fine());
        assert_eq!(
            (&rows[0]["Type"], &rows[0]["Total"], &rows[0]["Bytes"]),
            (&json!("Images"), &json!(0), &json!(0))
        );
        assert_eq!(fs::read_dir(shelf.path("state/layers")).unwrap().count(), 0);

        let id = stocked(&shelf);
        shelf.isles(&["tag", "app:1", "app:2"]).fine();
        let said = shelf.isles(&["rmi", "-f", &id]);
        assert!(said.err.contains("freed "), "{said:?}");
        assert_eq!(said.fine(), format!("Untagged: app:1\nUntagged: app:2\nDeleted: {id}\n"));
    }
}

#[test]
fn pruning_says_what_it_frees() {
    for shelf in both() {
        stocked(&shelf);
        assert_eq!(shelf.isles(&["prune"]).fine(), "Total reclaimed space: 0B\n");
        let would = shelf.isles(&["prune", "-a", "--dry-run"]).fine();
        assert!(would.starts_with("image app:1\n3 layers\n5 blobs\nWould reclaim: "), "{would}");
        assert_eq!(shelf.isles(&["images", "-q"]).fine().lines().count(), 1);
        let df = json_of(&shelf.isles(&["df", "--format", "json"]).fine());
        assert_eq!(df[0]["Reclaimable"].as_str(), would.trim_end().rsplit(' ').next());
        let kept = shelf.isles(&["prune", "-a", "--filter", "until=1h", "--format", "json"]).fine();
        assert_eq!(json_of(&kept)["Layers"], json!([]), "younger than an hour: {kept}");
        shelf.isles(&["prune", "-a"]).fine();
        assert_eq!(shelf.isles(&["images", "-q"]).fine(), "");
        let df = shelf.isles(&["df", "-v"]).fine();
        assert!(df.contains("Images          0") && df.contains("UNIQUE SIZE"), "{df}");
        shelf.isles(&["prune", "--filter", "age=1"]).fails(1, &["unknown filter 'age'"]);
    }
}

#[test]
fn what_a_registry_serves_has_a_row_of_its_own() {
    for shelf in both() {
        stocked(&shelf);
        let row = || {
            let rows = json_of(&shelf.isles(&["df", "--format", "json"]).fine());
            rows.as_array().unwrap().iter().find(|row| row["Type"] == "Registry").cloned()
        };
        assert_eq!(row(), None);
        let server = Served::start(&shelf, "state", &[]);
        let name = format!("{}/lab:1", server.address);
        shelf.isles(&["push", "-q", "app:1", &name]).fine();
        // The image's own blobs: with it they are the image's, without it the registry's alone.
        let shared = row().unwrap();
        assert_eq!((&shared["Total"], &shared["Reclaimable"]), (&json!(1), &json!("0B")), "{shared}");
        shelf.isles(&["prune", "-a"]).fine();
        let alone = row().unwrap();
        assert!(alone["Bytes"].as_u64() > shared["Bytes"].as_u64(), "{shared} {alone}");
        assert!(shelf.isles(&["df"]).fine().contains("Registry        1"));
        shelf.isles(&["registry", "rm", "-r", "lab"]).fine();
        shelf.isles(&["registry", "gc", "--grace", "0s"]).fine();
        assert_eq!(row(), None);
    }
}

#[test]
fn skopeo_reads_what_push_sent() {
    for shelf in both() {
        let Some(registry) = Registry::start(false) else { return };
        let id = stocked(&shelf);
        let name = format!("{}/team/app:1", registry.address);
        shelf.isles(&["tag", "app:1", &name]).fine();
        let line = shelf.isles(&["push", &name]).fine();
        let digest = line.split_whitespace().nth(2).unwrap().to_owned();
        assert!(line.starts_with("1: digest: sha256:") && line.contains(" size: "), "{line}");
        assert_eq!(shelf.isles(&["push", "-q", "app:1", &name]).fine(), format!("{name}\n"));

        let at = format!("docker://{name}");
        let Some(seen) = shelf.peer("skopeo", &["inspect", "--tls-verify=false", &at]) else { return };
        let seen = json_of(&seen.fine());
        assert_eq!(seen["Digest"], json!(digest));
        assert_eq!(seen["Layers"].as_array().unwrap().len(), 3);
        assert_eq!(seen["Labels"]["color"], "blue");

        // What skopeo copies in the registry comes back as the same image, by tag and by digest.
        let copy = format!("docker://{}/copy:2", registry.address);
        let options =
            ["--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"];
        shelf.peer("skopeo", &[&options[..], &[&at, &copy]].concat()).unwrap().fine();
        for name in
            [format!("{}/copy:2", registry.address), format!("{}/team/app@{digest}", registry.address)]
        {
            let said = shelf.isles_in("other", &["pull", &name]);
            assert!(said.err.contains(&format!("Digest: {digest}")), "{said:?}");
            assert!(said.err.contains(&format!("Status: Downloaded newer image for {name}")), "{said:?}");
            assert_eq!(said.fine(), format!("{name}\n"));
            let again = shelf.isles_in("other", &["pull", &name]);
            assert!(again.err.contains("Image is up to date"), "{again:?}");
            assert_eq!(
                shelf.isles_in("other", &["inspect", "-f", "{{.Id}}", &name]).fine(),
                format!("{id}\n")
            );
        }
        let name = format!("docker://{name}");
        let said = shelf.isles_in("other", &["pull", "-q", &name]);
        assert_eq!((said.out.as_str(), said.err.as_str()), (&format!("{}\n", &name[9..]) as &str, ""));
        assert!(shelf.isles_in("other", &["verify", "--full"]).fine().is_empty());

        // Without the registry.
        let gone = registry.address.clone();
        drop(registry);
        let name = format!("{gone}/copy:2");
        shelf.isles_in("other", &["pull", &name]).fails(1, &[&format!("cannot reach {gone}")]);
        shelf.isles_in("other", &["pull", "--policy", "missing", &name]).fine();
        let said = shelf.isles_in("other", &["pull", "--policy", "newer", &name]);
        assert!(said.err.contains("warning: cannot reach"), "{said:?}");
        said.fine();
        let words = ["is not here", "--policy never"];
        shelf.isles_in("other", &["pull", "--policy", "never", &format!("{gone}/x")]).fails(1, &words);
    }
}

#[test]
fn skopeo_and_podman_load_what_save_wrote() {
    for shelf in both() {
        let id = stocked(&shelf);
        let hex = &id[7..];
        for (format, file, transport) in [
            ("docker-archive", "docker.tar", "docker-archive"),
            ("oci-archive", "oci.tar", "oci-archive"),
            ("oci-dir", "oci", "oci"),
        ] {
            shelf.isles(&["save", "--format", format, "-o", file, "app:1"]).fine();
            shelf.share(file);
            let from = format!("{transport}:{file}");
            let to = format!("dir:copy-{file}");
            let Some(said) = shelf.peer("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]) else {
                return;
            };
            said.fine();
            let manifest = fs::read_to_string(shelf.path(&format!("copy-{file}/manifest.json"))).unwrap();
            assert_eq!(json_of(&manifest)["config"]["digest"], json!(id), "{format}");

            // And back, with the same ID, from a file and from a pipe.
            let said = shelf.isles_in("back", &["load", "-q", "-i", file]);
            assert_eq!(said.fine(), "Loaded image: app:1\n", "{format}");
            assert_eq!(shelf.isles_in("back", &["images", "-q", "--no-trunc"]).fine(), format!("{id}\n"));
            shelf.isles_in("back", &["rmi", "app:1"]).fine();
        }
        let mut save = shelf.command_in("state", &["save", "app:1"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut load = shelf.command_in("pipe", &["load"]);
        let said = Said::of(load.stdin(save.stdout.take().unwrap()).output().unwrap());
        assert_eq!(said.fine(), "Loaded image: app:1\n");
        assert!(save.wait().unwrap().success());

        // podman's own rootless mode needs subordinate IDs, so it runs as the tests' user.
        if !rustix::process::geteuid().is_root() {
            println!("skip: podman needs root here");
            continue;
        }
        let (root, runroot) = (shelf.path("p").display().to_string(), shelf.path("pr").display().to_string());
        let options = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
        let podman = |args: &[&str]| shelf.peer("podman", &[&options[..], args].concat());
        for file in ["docker.tar", "oci.tar"] {
            let Some(said) = podman(&["load", "-q", "-i", file]) else { return };
            said.fine();
            let ids = podman(&["images", "-q", "--no-trunc"]).unwrap().fine();
            assert_eq!(ids.trim(), id, "{file}");
            if file == "docker.tar" {
                podman(&["rmi", "-a", "-f"]).unwrap().fine();
            }
        }
        for format in ["docker-archive", "oci-archive"] {
            let file = format!("podman-{format}");
            podman(&["save", "-q", "--format", format, "-o", &file, "app:1"]).unwrap().fine();
            shelf.share(&file);
            let state = format!("from-{format}");
            let out = shelf.isles_in(&state, &["load", "-i", &file]).fine();
            assert!(out.contains("app:1"), "{out}");
            let ids = shelf.isles_in(&state, &["images", "-q", "--no-trunc"]).fine();
            // podman writes the configuration anew for Docker's format.
            assert!(format == "docker-archive" || ids.trim() == id, "{format}: {ids}, not {hex}");
        }
        podman(&["rmi", "-a", "-f"]).unwrap().fine();
    }
}

#[test]
fn archives_are_not_for_terminals() {
    let shelf = both().remove(0);
    stocked(&shelf);
    let (user, terminal) = {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        let terminal = fs::File::options().read(true).write(true).open(name).unwrap();
        (user, terminal)
    };
    let mut save = shelf.command_in("state", &["save", "app:1"]);
    let said = Said::of(save.stdout(terminal.try_clone().unwrap()).output().unwrap());
    said.fails(1, &["not for the terminal", "-o"]);
    let mut load = shelf.command_in("state", &["load"]);
    Said::of(load.stdin(terminal).output().unwrap()).fails(1, &["standard input is a terminal", "-i"]);
    drop(user);
    shelf.isles(&["save", "--format", "oci-dir", "app:1"]).fails(1, &["a folder cannot be written"]);
    // Nothing is left of a file that could not be completed.
    shelf.isles(&["save", "-o", "nodir/x.tar", "app:1"]).fails(1, &["cannot create nodir/x.tar"]);
    fs::remove_dir_all(shelf.path("state/blobs")).unwrap();
    shelf.isles(&["save", "-o", "x.tar", "app:1"]).fails(1, &["is not in the local store"]);
    assert!(
        !fs::read_dir(shelf.path(".")).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("x.tar"))
    );
}

#[test]
fn files_that_are_no_images() {
    for shelf in both() {
        let text = |name: &str, bytes: &[u8]| {
            fs::write(shelf.path(name), bytes).unwrap();
            fs::set_permissions(shelf.path(name), fs::Permissions::from_mode(0o644)).unwrap();
        };
        text("noise", &noise(4000, 7));
        text("empty", b"");
        text("tar", &tar(&[("a", b"1")]));
        text("cycle", &tar(&[("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", b"{}")]));
        let outside = br#"[{"Config":"../../etc/passwd","RepoTags":["x:1"],"Layers":[]}]"#;
        text("outside", &tar(&[("manifest.json", outside)]));
        text("xz", b"\xfd7zXZ\0\0\0\0\0\0\0");
        for (file, words) in [
            ("noise", &["not a valid archive"][..]),
            ("empty", &["neither index.json nor manifest.json"]),
            ("tar", &["neither index.json nor manifest.json"]),
            ("cycle", &["index.json is not valid"]),
            ("outside", &["'..'"]),
            ("xz", &["xz compression is not supported"]),
            ("nosuch", &["cannot open nosuch"]),
            ("oci:.", &["no file oci-layout"]),
            ("oci-archive:tar:1", &["names one image of an archive"]),
        ] {
            shelf.isles(&["load", "-i", file]).fails(1, words);
        }
        assert_eq!(shelf.isles(&["images", "-q"]).fine(), "");
    }
}

#[test]
fn signing_in_and_out() {
    for shelf in both() {
        let Some(registry) = Registry::start(true) else { return };
        stocked(&shelf);
        let name = format!("{}/app:1", registry.address);
        let login = |user: &str, password: &str| {
            fs::write(shelf.path("password"), format!("{password}\n")).unwrap();
            let mut command =
                shelf.command_in("state", &["login", "-u", user, "--password-stdin", &registry.address]);
            Said::of(command.stdin(fs::File::open(shelf.path("password")).unwrap()).output().unwrap())
        };
        let words = ["without signing in", &format!("isles login {}", registry.address)];
        shelf.isles(&["push", "app:1", &name]).fails(1, &words);
        login("me", "wrong").fails(1, &["does not accept this name and password", "hint: check both"]);
        login("me", "").fails(1, &["a name and a password are needed"]);
        assert_eq!(login("me", "secret").fine(), "Login Succeeded\n");
        let file = shelf.path(".docker/config.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        shelf.isles(&["push", "app:1", &name]).fine();
        shelf.isles_in("other", &["pull", &name]).fine();
        let out = shelf.isles(&["logout", &registry.address]).fine();
        assert_eq!(out, format!("Removing login credentials for {}\n", registry.address));
        let out = shelf.isles(&["logout", &registry.address]).fine();
        assert_eq!(out, format!("Not logged in to {}\n", registry.address));
        shelf.isles_in("third", &["pull", &name]).fails(1, &words);
        let said = shelf.isles(&["login", "--password-stdin", &registry.address]);
        said.fails(1, &["--password-stdin needs a name"]);
        shelf.isles(&["doctor", "--registry", &registry.address]).fine();
    }
}

#[test]
fn the_doctor_looks() {
    for shelf in both() {
        let said = shelf.isles(&["doctor", "--format", "json"]);
        let findings = json_of(&said.out);
        let of = |check: &str| {
            let found = findings.as_array().unwrap().iter().find(|f| f["Check"] == check);
            found.unwrap_or_else(|| panic!("no '{check}' in {findings:#}")).clone()
        };
        for check in [
            "kernel",
            "user namespaces",
            "subordinate IDs",
            "control groups",
            "overlay",
            "disk space",
            "clock",
        ] {
            let finding = of(check);
            let cured = finding["Cure"].is_string();
            assert_eq!(cured, finding["Status"] != "ok", "{finding}");
        }
        let problems = findings.as_array().unwrap().iter().filter(|f| f["Status"] == "problem").count();
        assert_eq!(said.code, Some(i32::from(problems > 0)), "{findings:#}");
        // Nothing is left, and nothing was made.
        assert!(!shelf.path("state").exists());
        let odd = |name: &str| name.starts_with(".isles-doctor");
        assert!(
            !fs::read_dir(shelf.path(".")).unwrap().any(|e| odd(&e.unwrap().file_name().to_string_lossy()))
        );
        let said = shelf.isles(&["--root", "/proc/nowhere", "doctor"]);
        assert_eq!(said.code, Some(1));
        assert!(said.out.contains("problem  state directory"), "{said:?}");
        let said = shelf.isles(&["doctor", "--registry", "127.0.0.1:1"]);
        assert!(said.out.contains("cannot reach 127.0.0.1:1"), "{said:?}");
        assert_eq!(said.code, Some(1));
    }
}

/// Runs the program with a terminal of its own, types this, and gives what the terminal showed.
fn on_a_terminal(shelf: &Shelf, args: &[&str], typed: &str) -> Option<String> {
    use std::io::Write;
    let words: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let line = format!("{} {}", env!("CARGO_BIN_EXE_isles"), words.join(" "));
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).current_dir(shelf.path(".")).env("HOME", shelf.path("."));
    command
        .env("ISLES_ROOT", shelf.path("state"))
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = child else {
        println!("skip: script (package bsdutils) is not installed");
        return None;
    };
    // What is typed too early would be shown by the terminal, or thrown away when the password is asked for.
    let mut shown = String::new();
    let mut output = child.stdout.take().unwrap();
    for word in typed.split_inclusive('\n') {
        while !shown.ends_with(": ") && !shown.ends_with("] ") {
            let mut bytes = [0; 256];
            match std::io::Read::read(&mut output, &mut bytes) {
                Ok(0) | Err(_) => return Some(shown),
                Ok(n) => shown += &String::from_utf8_lossy(&bytes[..n]),
            }
        }
        shown.push('|');
        child.stdin.as_mut().unwrap().write_all(word.as_bytes()).unwrap();
    }
    std::io::Read::read_to_string(&mut output, &mut shown).unwrap();
    child.wait().unwrap();
    Some(shown)
}

#[test]
fn questions_on_a_terminal() {
    let shelf = both().remove(0);
    stocked(&shelf);
    let Some(shown) = on_a_terminal(&shelf, &["prune", "-a"], "n\n") else { return };
    assert!(shown.contains("this removes all images without a container, all build cache"), "{shown}");
    assert!(shown.contains("Are you sure you want to continue? [y/N]"), "{shown}");
    assert_eq!(shelf.isles(&["images", "-q"]).fine().lines().count(), 1);
    let shown = on_a_terminal(&shelf, &["prune", "-a"], "y\n").unwrap();
    assert!(shown.contains("Total reclaimed space"), "{shown}");
    assert_eq!(shelf.isles(&["images", "-q"]).fine(), "");

    let Some(registry) = Registry::start(true) else { return };
    let shown = on_a_terminal(&shelf, &["login", &registry.address], "me\nsecret\n").unwrap();
    assert!(shown.contains("Username: |me") && shown.contains("Password: |"), "{shown}");
    assert!(shown.contains("Login Succeeded") && !shown.contains("secret"), "{shown}");
}
