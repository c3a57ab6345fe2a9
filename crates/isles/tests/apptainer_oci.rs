//! `apptainer oci`: the life of containers from bundles, in the words and with the codes of Apptainer.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use bundle::{Bundle, Said, id};

fn command(b: &Bundle, words: &[&str]) -> Command {
    let name = b.path("apptainer");
    if !name.exists() {
        symlink("isles-oci", &name).unwrap();
    }
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "60"]).arg(name).arg("oci").args(words);
    command.current_dir(b.path("")).stdin(Stdio::null());
    command
}

fn oci(b: &Bundle, words: &[&str]) -> Said {
    b.finish(command(b, words))
}

fn status(b: &Bundle, id: &str) -> String {
    let state: serde_json::Value = serde_json::from_str(&oci(b, &["state", id]).ok()).unwrap();
    state["status"].as_str().unwrap().to_owned()
}

/// Removes a container, whatever became of the test.
struct Gone<'b>(&'b Bundle, String);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let _ = oci(self.0, &["kill", "-f", &self.1]);
        while oci(self.0, &["delete", &self.1]).err.contains("it is running") {}
    }
}

#[test]
fn a_life_with_a_log() {
    let Some(b) = Bundle::root() else { return };
    for (form, line) in
        [("kubernetes", " stdout F said\n"), ("basic", " stdout said\n"), ("json", "\"log\":\"said\"")]
    {
        let name = id("apptainer-log");
        let gone = Gone(&b, name.clone());
        let i = name.as_str();
        b.script("echo said; echo wrong >&2");
        let _ = fs::remove_file(b.path("log"));
        oci(&b, &["create", "-b", ".", "--log-path", "log", "--log-format", form, "--pid-file", "pid", i])
            .ok();
        assert_eq!(status(&b, i), "created");
        assert!(fs::read_to_string(b.path("pid")).unwrap().parse::<i32>().is_ok());
        assert_eq!(fs::read_to_string(b.path("log")).unwrap(), "", "it has not begun");
        oci(&b, &["start", i]).ok();
        // Both lines, in any order.
        let mut log = String::new();
        while log.lines().count() < 2 {
            log = fs::read_to_string(b.path("log")).unwrap();
        }
        assert!(log.contains(line) && log.contains("stderr"), "{log}");
        while status(&b, i) != "stopped" {}
        oci(&b, &["start", i]).fails("it is stopped");
        oci(&b, &["delete", i]).ok();
        assert_eq!(oci(&b, &["state", i]).fails("does not exist").code, 255);
        drop(gone);
    }
}

#[test]
fn what_is_done_to_a_container_that_runs() {
    let Some(b) = Bundle::root() else { return };
    let name = id("apptainer-run");
    let _gone = Gone(&b, name.clone());
    let i = name.as_str();
    b.script("trap : TERM; while :; do sleep 1; done");
    oci(&b, &["create", "-b", ".", "-l", "log", i]).ok();
    oci(&b, &["create", "-b", ".", i]).fails("exists already");
    oci(&b, &["start", i]).ok();
    assert_eq!(oci(&b, &["exec", i, "sh", "-c", "echo inside; exit 3"]).code, 3);
    assert_eq!(oci(&b, &["exec", i, "echo", "-n", "x"]).ok(), "x");
    oci(&b, &["delete", i]).fails("it is running");
    oci(&b, &["pause", i]).ok();
    assert_eq!(status(&b, i), "paused");
    oci(&b, &["pause", i]).fails("it is paused");
    oci(&b, &["resume", i]).ok();
    assert_eq!(status(&b, i), "running");
    fs::write(b.path("limits.json"), "{\"pids\":{\"limit\":77}}").unwrap();
    oci(&b, &["update", "-f", "limits.json", i]).ok();
    oci(&b, &["update", i]).fails("you must specify --from-file");
    let socket = std::os::unix::net::UnixListener::bind(b.path("sync")).unwrap();
    oci(&b, &["state", "-s", "sync", i]).ok();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut socket.accept().unwrap().0, &mut told).unwrap();
    assert!(told.contains("\"running\""), "{told}");
    // It minds no SIGTERM, so it is killed a second later.
    oci(&b, &["kill", "-t", "1", i]).ok();
    while status(&b, i) != "stopped" {}
}

#[test]
fn run_has_the_programs_code_and_streams() {
    let Some(b) = Bundle::root() else { return };
    let name = id("apptainer-code");
    b.script("echo said; exit 7");
    let said = oci(&b, &["run", "--bundle", ".", &name]);
    assert_eq!((said.code, said.out.as_str()), (7, "said\n"));
    oci(&b, &["state", &name]).fails("does not exist");
    for (words, code, word) in [
        (&["run", &name][..], 1, "required flag(s) \"bundle\" not set"),
        (&["run", "-b", "/nonexistent", &name], 255, "/nonexistent"),
        (&["create", "-b", ".", "--log-format", "moon", &name], 255, "moon"),
        (&["create", "-b", ".", "--empty-process", &name], 255, "--empty-process is not supported"),
        (&["attach", &name], 255, "oci attach is not supported"),
        (&["mount", "a.sif", "b"], 255, "oci mount is not supported"),
        (&["kill", &name, "MOON"], 255, "MOON"),
        (&["exec", &name], 1, "requires at least 2 arg(s)"),
    ] {
        let said = oci(&b, words);
        assert!(said.code == code && said.err.contains(word), "{words:?}: {said:?}");
    }
    let mut user = command(&b, &["state", &name]);
    user.uid(4242).gid(4242);
    let said = b.finish(user);
    assert!(
        said.code == 255 && said.err.contains("\"apptainer oci state\" command requires root privileges"),
        "{said:?}"
    );
}
