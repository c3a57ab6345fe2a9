//! Images stay whole, whatever comes between: registries that lie, damage, a kill, a full disk, and many processes at once.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use isles_spec::Digest;
use isles_spec::image::media_type;
use serde_json::{Value, json};
use shelf::*;

fn sha256(bytes: &[u8]) -> Digest {
    let store = tempfile::tempdir().unwrap();
    let store = isles_store::Store::open(store.path(), isles_store::Ownership::Single).unwrap();
    store.put_bytes(&store.lease().unwrap(), bytes).unwrap()
}

#[test]
fn registries_that_lie() {
    let liar = Liar::start();
    let layer = tar(&[("a", b"1")]);
    let config =
        json!({"architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]}})
        .to_string()
        .into_bytes();
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()});
    let manifest = |config: Value, layer: Value| {
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [layer]})
            .to_string()
            .into_bytes()
    };
    let good_config = descriptor(media_type::OCI_CONFIG, &config);
    let good_layer = descriptor(media_type::OCI_LAYER, &layer);
    let good = manifest(good_config.clone(), good_layer.clone());
    let kind = media_type::OCI_MANIFEST;
    let (c, l) = (sha256(&config), sha256(&layer));
    liar.image("good", kind, &good, &[(&c, &config), (&l, &layer)]);
    liar.image("wrong-layer", kind, &good, &[(&c, &config), (&l, &tar(&[("a", b"2")]))]);
    liar.image("short-layer", kind, &good, &[(&c, &config), (&l, &layer[..600])]);
    liar.image("wrong-config", kind, &good, &[(&c, &noise(config.len(), 3)), (&l, &layer)]);
    let other = tar(&[("a", b"3")]);
    let lying = manifest(good_config.clone(), descriptor(media_type::OCI_LAYER, &other));
    liar.image("wrong-content", kind, &lying, &[(&c, &config), (&sha256(&other), &other)]);
    liar.image("large", kind, &vec![b' '; 10 << 20], &[]);
    let unknown = String::from_utf8(good.clone()).unwrap().replace(kind, "application/vnd.example.thing");
    liar.image("unknown", "application/vnd.example.thing", unknown.as_bytes(), &[]);
    liar.image("text", "text/html", b"<html>sign in</html>", &[]);
    let helm = descriptor("application/vnd.cncf.helm.config.v1+json", b"{}");
    liar.image("artifact", kind, &manifest(helm, good_layer.clone()), &[(&sha256(b"{}"), b"{}")]);
    let mut huge = good_layer;
    huge["size"] = json!(1u64 << 60);
    liar.image("huge", kind, &manifest(good_config, huge), &[(&c, &config)]);
    liar.say("/v2/private/manifests/latest", 401, "application/json", b"{}");
    liar.say(
        "/v2/denied/manifests/latest",
        403,
        "application/json",
        br#"{"errors":[{"code":"DENIED","message":"no\u001b[2J"}]}"#,
    );
    for shelf in both() {
        let at = |name: &str| format!("{}/{name}", liar.address);
        let pinned = format!("good@sha256:{}", "a".repeat(64));
        for (name, words) in [
            ("wrong-layer", &["has digest sha256:", "expected", "hint: the content was damaged"][..]),
            ("short-layer", &["bytes"]),
            ("wrong-config", &["has the digest", "nothing of it was kept"]),
            ("wrong-content", &["has digest", "expected"]),
            ("large", &["is larger than"]),
            ("unknown", &["not an image", "its media type is application/vnd.example.thing"]),
            ("text", &["not an image"]),
            ("artifact", &["not an image", "helm"]),
            ("huge", &["is larger than"]),
            ("private", &["without signing in", "isles login"]),
            ("denied", &["denies us to pull denied:latest: no [2J"]),
            ("nosuch", &["has no nosuch:latest", "hint: check the spelling"]),
            (&pinned, &["has no good@sha256:"]),
        ] {
            // In a store that knows nothing of the others.
            let state = name.split('@').next().unwrap();
            let said = shelf.isles_in(state, &["pull", &at(name)]);
            assert_eq!(shelf.isles_in(state, &["images", "-q"]).fine(), "", "{name}");
            assert_eq!(said.out, "", "{name}");
            assert!(!said.err.contains('\x1b'), "{said:?}");
            said.fails(1, words);
        }
        shelf.isles(&["pull", "Bad/Name"]).fails(2, &["error: invalid image name 'Bad/Name'", "upper-case"]);
        shelf.isles(&["pull", "--platform", "linux/arm64/v8/x", &at("good")]).fails(2, &["invalid platform"]);
        shelf
            .isles(&["pull", "--platform", "windows/amd64", &at("good")])
            .fails(1, &["is for linux", "--platform"]);
        // After all that, what is right is taken.
        shelf.isles(&["pull", &at("good")]).fine();
        assert_eq!(shelf.isles(&["verify", "--full"]).fine(), "");
    }
}

#[test]
fn damage_is_found_and_pulled_again() {
    for shelf in both() {
        let Some(registry) = Registry::start(false) else { return };
        stocked(&shelf);
        let name = format!("{}/app:1", registry.address);
        shelf.isles(&["push", "app:1", &name]).fine();
        shelf.isles_in("two", &["pull", &name]).fine();
        let said = shelf.isles_in("two", &["verify"]);
        assert!(said.err.contains("checked 1 image, 5 blobs and 3 layers"), "{said:?}");
        said.fine();
        let info = json_of(&shelf.isles_in("two", &["inspect", &name]).fine());
        let manifest = info[0]["Descriptor"]["digest"].as_str().unwrap().to_owned();
        let path = |digest: &str| shelf.path(&format!("two/blobs/sha256/{}/{}", &digest[7..9], &digest[7..]));
        let parsed = json_of(&fs::read_to_string(path(&manifest)).unwrap());
        let parts = [&parsed["layers"][0]["digest"], &parsed["config"]["digest"], &json!(manifest)];
        for digest in parts.map(|d| d.as_str().unwrap()) {
            let file = fs::File::options().write(true).open(path(digest)).unwrap();
            file.write_all_at(b"!", 20).unwrap();
            let said = shelf.isles_in("two", &["verify"]);
            assert!(said.out.contains(&digest[7..19]) && said.out.contains(&name), "{said:?}");
            said.fails(1, &["verify --repair"]);
            let said = shelf.isles_in("two", &["verify", "--repair", "--format", "json"]);
            assert_eq!((said.code, &json_of(&said.out)[0]["Repair"]), (Some(1), &json!("removed")));
            let said = shelf.isles_in("two", &["pull", &name]);
            assert!(said.err.contains("Downloaded newer image"), "{said:?}");
            said.fine();
            shelf.isles_in("two", &["verify", "--full"]).fine();
        }
    }
}

#[test]
fn many_processes_use_one_store() {
    for shelf in both() {
        let Some(registry) = Registry::start(false) else { return };
        stocked(&shelf);
        let name = format!("{}/app:1", registry.address);
        shelf.isles(&["push", "app:1", &name]).fine();
        for round in 0..3 {
            let state = format!("shared{round}");
            let run = |args: &[&str]| {
                shelf.command_in(&state, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            };
            let mut all = Vec::new();
            for i in 0..4 {
                all.push(run(&["pull", "-q", &name]));
                all.push(run(&["load", "-q", "-i", "oci:layout"]));
                all.push(run(&["prune", "-f"]));
                if i % 2 == 0 {
                    all.push(run(&["images", "-q"]));
                    all.push(run(&["verify"]));
                }
            }
            for child in all {
                Said::of(child.wait_with_output().unwrap()).fine();
            }
            assert_eq!(shelf.isles_in(&state, &["images", "-q"]).fine().lines().count(), 1);
            shelf.isles_in(&state, &["verify", "--full"]).fine();
        }
    }
}

#[test]
fn a_pull_that_is_killed_is_continued() {
    for shelf in both() {
        let Some(registry) = Registry::start(false) else { return };
        let large = tar(&[("big", &noise(6_000_000, 5)), ("other", &b"text ".repeat(100_000))]);
        layout(&shelf.path("layout"), "big:1", &[large, tar(&[("small", b"1")])]);
        shelf.share("layout");
        shelf.isles(&["load", "-i", "oci:layout"]).fine();
        let name = format!("{}/big:1", registry.address);
        shelf.isles(&["push", "big:1", &name]).fine();
        let started = std::time::Instant::now();
        shelf.isles_in("whole", &["pull", &name]).fine();
        let whole = started.elapsed();
        let mut killed = 0;
        for point in 0..10 {
            let state = format!("killed{point}");
            let mut command = shelf.command_in(&state, &["pull", &name]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole * point / 10);
            child.kill().unwrap();
            killed += u32::from(!child.wait().unwrap().success());
            shelf.isles_in(&state, &["verify", "--full"]).fine();
            shelf.isles_in(&state, &["pull", &name]).fine();
            shelf.isles_in(&state, &["verify", "--full"]).fine();
            shelf.isles_in(&state, &["prune"]).fine();
            for folder in ["tmp", "leases", "partial"] {
                let left = fs::read_dir(shelf.path(&format!("{state}/{folder}"))).map_or(0, |d| d.count());
                assert_eq!(left, 0, "{folder}, killed at {point}");
            }
        }
        assert!(killed > 2, "only {killed} were killed in time");
    }
}

#[test]
fn a_full_disk_costs_nothing_that_was_complete() {
    let shelf = both().remove(0);
    if !rustix::process::geteuid().is_root() {
        println!("skip: only root can make a small disk");
        return;
    }
    let Some(registry) = Registry::start(false) else { return };
    let small = layout(&shelf.path("layout"), "small:1", &[tar(&[("a", b"1")])]).id().to_string();
    layout(&shelf.path("layout"), "large:1", &[tar(&[("b", &noise(9_000_000, 4))]), tar(&[("c", b"1")])]);
    shelf.isles_in("elsewhere", &["load", "-q", "-i", "oci:layout"]).fine();
    let name = format!("{}/large:1", registry.address);
    shelf.isles_in("elsewhere", &["push", "-q", "large:1", &name]).fine();
    // Everything on a disk of its own, which nobody else sees.
    let script = r#"
        mkdir disk && mount -t tmpfs -o size=5m none disk || exit 99
        export ISLES_ROOT=$PWD/disk/state
        "$1" load -q -i oci:layout:small:1 || exit 1
        "$1" pull "$2" && exit 2
        "$1" load -q -i oci:layout:large:1 && exit 3
        "$1" verify --full || exit 4
        "$1" images -q --no-trunc
        mount -o remount,size=60m disk || exit 5
        "$1" pull -q "$2" || exit 6
        "$1" verify --full || exit 7
        "$1" prune -f
    "#;
    let program = env!("CARGO_BIN_EXE_isles");
    let Some(said) = shelf.peer("unshare", &["-m", "sh", "-c", script, "sh", program, &name]) else { return };
    if said.code == Some(99) {
        println!("skip: no tmpfs can be mounted here: {}", said.err);
        return;
    }
    let told = ["No space left on device", "hint: free some space, for example with `isles prune`"];
    for piece in told {
        assert_eq!(said.err.matches(piece).count(), 2, "{piece}: {said:?}");
    }
    assert_eq!(said.fine(), format!("Loaded image: small:1\n{small}\n{name}\nTotal reclaimed space: 0B\n"));
}
