//! A process that is killed at any moment leaves a store that verifies, and the next try succeeds.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use isles_spec::Quiet;
use isles_store::{CommitOptions, Depth, ExportFormat, Merged, PruneOptions, Store, VerifyOptions};
use support::*;

/// What the copy of this program that is to be killed does, and where.
const TASK: &str = "ISLES_TEST_TASK";
const POINTS: u32 = 30;

#[test]
fn ordinary_user() {
    if std::env::var_os(TASK).is_none() {
        again_as_ordinary_user();
    }
}

fn archive() -> Vec<u8> {
    let files = (0..150)
        .fold(Tar::new().dir("d", 0o755), |tar, n| tar.file(&format!("d/f{n}"), &format!("{n}").repeat(200)));
    files.file("d/.wh.gone", "").hardlink("link", "d/f1").done()
}

/// A layout as an archive, made once for all runs.
fn prepare(dir: &Path) {
    let home = Home::new();
    let lease = home.lease();
    let first = home.store.layer_from_tar(&lease, &mut &archive()[..]).unwrap();
    let second = small_layer(&home.store, &lease, "second", "2");
    let image = image(&home.store, &lease, &[first, second], &["app:1"], "1");
    let mut bytes = Vec::new();
    let images = [(image, vec!["app:1".parse().unwrap()])];
    home.store.export_archive(&images, ExportFormat::OciArchive, &mut bytes, &Quiet).unwrap();
    fs::write(dir.join("archive.tar"), bytes).unwrap();
    fs::write(dir.join("layer.gz"), gzip(&archive())).unwrap();
}

fn store_of(dir: &Path) -> Store {
    Store::open(dir.join("store"), ownership()).unwrap()
}

/// One piece of work, from a store of any state to its result.
fn work(task: &str, dir: &Path) {
    let store = store_of(dir);
    let lease = store.lease().unwrap();
    match task {
        "import" => {
            let mut file = fs::File::open(dir.join("archive.tar")).unwrap();
            store.import_archive(&lease, &mut file, &Quiet).unwrap();
        }
        "pull" => {
            let blob = fs::read(dir.join("layer.gz")).unwrap();
            let mut open =
                |offset: u64| -> io::Result<Box<dyn Read + '_>> { Ok(Box::new(&blob[offset as usize..])) };
            let tar = archive();
            let done =
                store.ingest_layer(&lease, &descriptor(&blob), &sha256(&tar), &mut open, &Quiet).unwrap();
            let layer = isles_store::CommittedLayer {
                diff_id: done.diff_id,
                size: tar.len() as u64,
                entries: 0,
                blob: done.blob,
            };
            image(&store, &lease, &[layer], &["app:1"], "1");
        }
        "commit" => {
            let upper = store.scratch_dir().unwrap().join("upper");
            fs::create_dir_all(upper.join("d")).unwrap();
            for n in 0..150 {
                fs::write(upper.join(format!("d/f{n}")), format!("{n}").repeat(200)).unwrap();
            }
            let options = CommitOptions { clamp_mtime: Some(1), ..CommitOptions::default() };
            let layer = store.commit_layer(&lease, &upper, &options).unwrap();
            image(&store, &lease, &[layer], &["app:1"], "1");
        }
        "remove" => {
            // Whatever is there.
            let _ = store.remove_image("app:1", true);
            drop(lease);
            store.prune(&PruneOptions { all_images: true, cache: true, ..Default::default() }).unwrap();
        }
        _ => panic!("{task}"),
    }
}

/// The copy that is to be killed.
#[test]
fn child() {
    if let Some(task) = std::env::var_os(TASK) {
        let task = task.into_string().unwrap();
        let (task, dir) = task.split_once(' ').unwrap();
        work(task, Path::new(dir));
        println!("complete");
    }
}

fn spawn(task: &str, dir: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program)
        .args(["--exact", "child", "--nocapture"])
        .env(TASK, format!("{task} {}", dir.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills the work at moments all over its length.
fn kill_everywhere(task: &str) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let started = Instant::now();
    assert!(spawn(task, dir).wait().unwrap().success());
    let mut whole = started.elapsed();
    let (mut killed, mut point) = (0, 0);
    // A machine that is busy with something else, now or when the length was measured, makes it last longer, not fail.
    while point < POINTS || killed <= POINTS / 3 {
        if task == "remove" {
            work("import", dir);
        } else {
            clear(dir);
        }
        let mut child = spawn(task, dir);
        std::thread::sleep(whole * (point % POINTS) / POINTS);
        let _ = child.kill();
        if child.wait().unwrap().success() {
            // It took less time than that one.
            whole = whole * 9 / 10;
        } else {
            killed += 1;
        }
        check(&format!("{task} {point}"), dir);
        work(task, dir);
        check(&format!("{task} {point}, again"), dir);
        let store = store_of(dir);
        if task != "remove" {
            let image = store.resolve("app:1", None).unwrap();
            assert!(store.is_whole(&image));
            let view = Merged::open(&store.layers_of(&image).unwrap(), ownership()).unwrap();
            let mut text = String::new();
            view.open_file(Path::new("d/f149")).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "149".repeat(200));
        }
        // What the killed one left is collected.
        store.prune(&PruneOptions::default()).unwrap();
        store.collect().unwrap();
        for folder in ["tmp", "leases"] {
            let left: Vec<PathBuf> = fs::read_dir(store.root().join(folder))
                .into_iter()
                .flatten()
                .map(|e| e.unwrap().path())
                .collect();
            assert!(left.is_empty(), "{task} {point}: {left:?}");
        }
        point += 1;
    }
}

fn clear(dir: &Path) {
    open_up(&dir.join("store"));
    let _ = fs::remove_dir_all(dir.join("store"));
}

fn check(when: &str, dir: &Path) {
    let options = VerifyOptions { depth: Depth::Full, repair: false };
    let report = store_of(dir).verify(&options, &Quiet).unwrap();
    assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
}

#[test]
fn killed_while_importing() {
    kill_everywhere("import");
}

#[test]
fn killed_while_pulling() {
    kill_everywhere("pull");
}

#[test]
fn killed_while_committing() {
    kill_everywhere("commit");
}

#[test]
fn killed_while_removing() {
    kill_everywhere("remove");
}

/// Several processes work on one store, one of them removes everything again and again.
#[test]
fn several_processes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    for _ in 0..4 {
        let children: Vec<(&str, Child)> =
            ["import", "pull", "commit", "import", "pull", "remove", "import", "commit"]
                .map(|task| (task, spawn(task, dir)))
                .into();
        for (task, mut child) in children {
            assert!(child.wait().unwrap().success(), "{task}");
        }
        check("together", dir);
    }
    // Time for the collector: all is unlocked now.
    work("remove", dir);
    assert_eq!(store_of(dir).disk_usage().unwrap(), Default::default());
}
